//! Between the public API's messages and the state's types, by value: no text is copied on its way
//! in. Every match is exhaustive, so that a new field or variant cannot be forgotten here. The registry and
//! sessions stand here, the other kinds of records below.

pub mod alarm;
mod check;
pub mod config;
pub mod counter;
pub mod lock;
pub mod saga;
pub mod txn;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;

use crate::error::Error;
use crate::limits;
use crate::policy::Policy;
use crate::proto::v1;
use crate::state::{
    self, Change, Class, InstanceName, InstancePatch, Key, Match, Record, Registration, RequestId,
    ServiceSettings, ServiceView,
};
use crate::watch;

// ---- from the wire ----

/// An empty namespace is the default one.
pub fn namespace(namespace: String) -> String {
    if namespace.is_empty() { limits::DEFAULT_NAMESPACE.to_owned() } else { namespace }
}

pub fn instance_name(namespace: String, service: String, id: String) -> InstanceName {
    InstanceName { namespace: self::namespace(namespace), service, id }
}

/// Session 0 means that the write carries no id.
pub fn request_id(id: Option<v1::RequestId>) -> Option<RequestId> {
    let v1::RequestId { session, sequence, lowest_unacknowledged } = id?;
    (session != 0).then_some(RequestId { session, sequence, lowest_unacknowledged })
}

pub fn consistency(value: i32) -> Result<v1::Consistency, Error> {
    match v1::Consistency::try_from(value) {
        Ok(v1::Consistency::Unspecified | v1::Consistency::Linearizable) => {
            Ok(v1::Consistency::Linearizable)
        }
        Ok(v1::Consistency::Stale) => Ok(v1::Consistency::Stale),
        Err(_) => Err(unknown("consistency", value, "CONSISTENCY_LINEARIZABLE, CONSISTENCY_STALE")),
    }
}

/// None = unspecified.
fn health(field: &str, value: i32) -> Result<Option<state::Health>, Error> {
    match v1::Health::try_from(value) {
        Ok(v1::Health::Unspecified) => Ok(None),
        Ok(v1::Health::Passing) => Ok(Some(state::Health::Passing)),
        Ok(v1::Health::Warning) => Ok(Some(state::Health::Warning)),
        Ok(v1::Health::Critical) => Ok(Some(state::Health::Critical)),
        Err(_) => Err(unknown(field, value, "HEALTH_PASSING, HEALTH_WARNING, HEALTH_CRITICAL")),
    }
}

/// None = unspecified.
fn admin(field: &str, value: i32) -> Result<Option<state::Admin>, Error> {
    match v1::Admin::try_from(value) {
        Ok(v1::Admin::Unspecified) => Ok(None),
        Ok(v1::Admin::Enabled) => Ok(Some(state::Admin::Enabled)),
        Ok(v1::Admin::Draining) => Ok(Some(state::Admin::Draining)),
        Ok(v1::Admin::Disabled) => Ok(Some(state::Admin::Disabled)),
        Err(_) => Err(unknown(field, value, "ADMIN_ENABLED, ADMIN_DRAINING, ADMIN_DISABLED")),
    }
}

fn unknown(field: &str, value: i32, allowed: &str) -> Error {
    Error::invalid(field, value.to_string(), allowed)
}

/// Sorted by key, each key once, as the state wants it: the order of the map.
pub fn pairs(map: BTreeMap<String, String>) -> state::Pairs {
    map.into_iter().collect()
}

/// 0 = no expectation.
pub fn expected(mod_revision: u64) -> Option<u64> {
    (mod_revision != 0).then_some(mod_revision)
}

pub fn page(limit: u32) -> Result<usize, Error> {
    match limit as usize {
        0 => Ok(limits::DEFAULT_PAGE),
        limit @ 1..=limits::PAGE => Ok(limit),
        limit => Err(Error::invalid("limit", limit.to_string(), format!("1..={}", limits::PAGE))),
    }
}

pub fn registration(instance: Option<v1::Instance>) -> Result<Registration, Error> {
    let v1::Instance {
        namespace,
        service,
        id,
        endpoints,
        weight,
        zone,
        metadata,
        health,
        admin,
        reason,
        hash_key,
        session,
        // Output only.
        create_revision: _,
        mod_revision: _,
        created_at_ms: _,
        modified_at_ms: _,
        critical_since_ms: _,
    } = instance.ok_or_else(|| Error::invalid("instance", "", "an instance"))?;
    Ok(Registration {
        name: instance_name(namespace, service, id),
        endpoints: endpoints
            .into_iter()
            .enumerate()
            .map(endpoint)
            .collect::<Result<state::Endpoints, Error>>()?,
        weight: weight.unwrap_or(limits::DEFAULT_WEIGHT),
        zone,
        metadata: pairs(metadata),
        health: self::health("instance.health", health)?.unwrap_or(state::Health::Passing),
        admin: self::admin("instance.admin", admin)?.unwrap_or(state::Admin::Enabled),
        reason,
        hash_key,
        session: (session != 0).then_some(session),
    })
}

fn endpoint((i, endpoint): (usize, v1::Endpoint)) -> Result<state::Endpoint, Error> {
    let v1::Endpoint { name, host, port } = endpoint;
    let port = u16::try_from(port).map_err(|_| {
        Error::invalid(format!("instance.endpoints[{i}].port"), port.to_string(), "1..=65535")
    })?;
    Ok(state::Endpoint { name, host, port })
}

/// The change that a request asks for, and its id.
pub fn patch(
    request: v1::UpdateInstanceRequest,
) -> Result<(InstancePatch, Option<v1::RequestId>), Error> {
    let v1::UpdateInstanceRequest {
        namespace,
        service,
        id,
        weight,
        admin,
        health,
        reason,
        metadata,
        replace_metadata,
        expected_mod_revision,
        request_id,
    } = request;
    if !replace_metadata && !metadata.is_empty() {
        // Ignoring them would look like success.
        let value = format!("{} pairs", metadata.len());
        return Err(Error::invalid("metadata", value, "none unless replace_metadata is true"));
    }
    let patch = InstancePatch {
        name: instance_name(namespace, service, id),
        weight,
        admin: self::admin("admin", admin)?,
        health: self::health("health", health)?,
        reason,
        metadata: replace_metadata.then(|| pairs(metadata)),
        expected_mod_revision: expected(expected_mod_revision),
    };
    Ok((patch, request_id))
}

pub fn settings(
    service: Option<v1::Service>,
    expected_mod_revision: u64,
) -> Result<ServiceSettings, Error> {
    let v1::Service {
        namespace,
        name,
        protect_threshold_percent,
        deregister_after_ms,
        policy,
        policy_parameters,
        metadata,
        // Output only.
        create_revision: _,
        mod_revision: _,
        instances: _,
        healthy_instances: _,
        health_check,
        unchecked_instances: _,
        unchecked_reason: _,
    } = service.ok_or_else(|| Error::invalid("service", "", "a service"))?;
    // Here and not in the state: a release that knows more policies, or fewer, must apply the same log.
    Policy::of_service(&policy, &policy_parameters)?;
    Ok(ServiceSettings {
        namespace: self::namespace(namespace),
        name,
        protect_threshold_percent,
        deregister_after_ms: deregister_after_ms.unwrap_or(limits::DEFAULT_DEREGISTER_AFTER_MS),
        policy,
        policy_parameters: pairs(policy_parameters),
        metadata: pairs(metadata),
        expected_mod_revision: expected(expected_mod_revision),
        health_check: health_check.map(|check| check::health_check(*check)).transpose()?,
    })
}

/// A namespace's or a service's range, its names checked.
pub fn range(namespace: String, service: String) -> Result<watch::Range, Error> {
    let namespace = self::namespace(namespace);
    state::check_name("", "namespace", &namespace)?;
    Ok(service_selector("", namespace, service)?.into())
}

/// The union of the selectors, their names checked.
pub fn ranges(selectors: Vec<v1::WatchSelector>) -> Result<watch::Range, Error> {
    let selectors = selectors.into_iter().enumerate().map(selector);
    watch::Range::new(selectors.collect::<Result<Vec<_>, Error>>()?)
}

fn selector((i, selector): (usize, v1::WatchSelector)) -> Result<watch::Selector, Error> {
    use v1::watch_selector::What;
    let v1::WatchSelector { namespace, what } = selector;
    let at = format!("selectors[{i}].");
    // Absent, or of a kind that this release does not know.
    let what = what.ok_or_else(|| {
        Error::invalid(
            format!("{at}what"),
            "",
            "services, config, counters, locks, alarms or sagas",
        )
    })?;
    let namespace = self::namespace(namespace);
    state::check_name(&at, "namespace", &namespace)?;
    match what {
        What::Services(v1::ServiceSelector { service }) => {
            service_selector(&format!("{at}services."), namespace, service)
        }
        What::Config(v1::ConfigSelector { group, name }) => {
            use v1::config_selector::Name;
            let first = if group.is_empty() { Match::Any } else { Match::Exact(group) };
            let second = match name {
                None => Match::Any,
                Some(Name::Key(key)) => Match::Exact(key),
                Some(Name::Prefix(prefix)) => Match::Prefix(prefix),
            };
            checked(&at, watch::Selector { class: Class::Config, namespace, first, second })
        }
        What::Counters(selector) => named(&at, Class::Counter, namespace, selector),
        What::Alarms(selector) => named(&at, Class::Alarm, namespace, selector),
        What::Sagas(selector) => named(&at, Class::Saga, namespace, selector),
        What::Locks(selector) => named(&at, Class::Lock, namespace, selector),
    }
}

/// What has one name.
fn named(
    at: &str,
    class: Class,
    namespace: String,
    selector: v1::NameSelector,
) -> Result<watch::Selector, Error> {
    use v1::name_selector::Match as Name;
    let first = match selector.r#match {
        None => Match::Any,
        Some(Name::Name(name)) => Match::Exact(name),
        Some(Name::Prefix(prefix)) => Match::Prefix(prefix),
    };
    checked(at, watch::Selector { class, namespace, first, second: Match::Any })
}

fn checked(at: &str, selector: watch::Selector) -> Result<watch::Selector, Error> {
    selector.check(at)?;
    Ok(selector)
}

/// One service; all of the namespace when it is empty.
fn service_selector(
    prefix: &str,
    namespace: String,
    service: String,
) -> Result<watch::Selector, Error> {
    if service.is_empty() {
        return Ok(watch::Selector::services(namespace));
    }
    state::check_name(prefix, "service", &service)?;
    Ok(watch::Selector::service(namespace, service))
}

// ---- to the wire ----

fn map(pairs: &state::Pairs) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn health_shown(health: state::Health) -> v1::Health {
    match health {
        state::Health::Passing => v1::Health::Passing,
        state::Health::Warning => v1::Health::Warning,
        state::Health::Critical => v1::Health::Critical,
    }
}

fn admin_shown(admin: state::Admin) -> v1::Admin {
    match admin {
        state::Admin::Enabled => v1::Admin::Enabled,
        state::Admin::Draining => v1::Admin::Draining,
        state::Admin::Disabled => v1::Admin::Disabled,
    }
}

pub fn instance(instance: &state::Instance) -> v1::Instance {
    let state::Instance {
        namespace,
        service,
        id,
        endpoints,
        weight,
        zone,
        metadata,
        health,
        admin,
        reason,
        hash_key,
        session,
        // Told by health, reason and `critical_since_ms`.
        orphaned_at_ms: _,
        critical_since_ms,
        create_revision,
        mod_revision,
        created_at_ms,
        modified_at_ms,
    } = instance;
    let endpoint = |endpoint: state::Endpoint<&str>| v1::Endpoint {
        name: endpoint.name.to_owned(),
        host: endpoint.host.to_owned(),
        port: u32::from(endpoint.port),
    };
    v1::Instance {
        namespace: namespace.to_string(),
        service: service.to_string(),
        id: id.to_string(),
        endpoints: endpoints.iter().map(endpoint).collect(),
        weight: Some(*weight),
        zone: zone.to_string(),
        metadata: map(metadata),
        health: health_shown(*health).into(),
        admin: admin_shown(*admin).into(),
        reason: reason.to_string(),
        hash_key: hash_key.to_string(),
        session: session.unwrap_or(0),
        create_revision: *create_revision,
        mod_revision: *mod_revision,
        created_at_ms: *created_at_ms,
        modified_at_ms: *modified_at_ms,
        critical_since_ms: critical_since_ms.unwrap_or(0),
    }
}

pub fn service(view: &ServiceView) -> v1::Service {
    let ServiceView { settings, instances, healthy } = view;
    v1::Service { instances: *instances, healthy_instances: *healthy, ..service_record(settings) }
}

/// The settings alone: how many instances there are is not part of the record.
fn service_record(service: &state::Service) -> v1::Service {
    let state::Service {
        namespace,
        name,
        protect_threshold_percent,
        deregister_after_ms,
        policy,
        policy_parameters,
        metadata,
        create_revision,
        mod_revision,
        health_check,
    } = service;
    v1::Service {
        namespace: namespace.to_string(),
        name: name.to_string(),
        protect_threshold_percent: *protect_threshold_percent,
        deregister_after_ms: Some(*deregister_after_ms),
        policy: policy.clone(),
        policy_parameters: map(policy_parameters),
        metadata: map(metadata),
        create_revision: *create_revision,
        mod_revision: *mod_revision,
        instances: 0,
        healthy_instances: 0,
        health_check: health_check.as_ref().map(check::record).map(Box::new),
        unchecked_instances: 0,
        unchecked_reason: String::new(),
    }
}

pub fn namespace_record(namespace: &Arc<state::Namespace>) -> v1::Namespace {
    let state::Namespace { name, description, create_revision, mod_revision } = &**namespace;
    v1::Namespace {
        name: name.to_string(),
        description: description.clone(),
        create_revision: *create_revision,
        mod_revision: *mod_revision,
    }
}

pub fn session(session: &state::Session, instances: usize) -> v1::Session {
    let state::Session { id, ttl_ms, client, opened_at_ms } = session;
    v1::Session {
        id: *id,
        ttl_ms: *ttl_ms,
        client: client.clone(),
        opened_at_ms: *opened_at_ms,
        instances: instances as u64,
    }
}

/// As a client sees it whom gray releases of configuration may pick, or, without one, with all of them.
pub fn watch_response(
    message: &watch::Message,
    client: Option<&state::ConfigClient>,
) -> v1::WatchResponse {
    let (snapshot, more, bookmark) = match message.kind {
        watch::Kind::Snapshot { more } => (true, more, false),
        watch::Kind::Changes => (false, false, false),
        watch::Kind::Bookmark => (false, false, true),
    };
    v1::WatchResponse {
        revision: message.revision,
        snapshot,
        more,
        bookmark,
        events: message.events.iter().map(|change| watch_event(change, client)).collect(),
    }
}

/// The message as bytes, made once for all who get it: only where there are gray releases does a client see
/// something of its own.
pub fn watch_bytes(message: &watch::Message, client: Option<&state::ConfigClient>) -> Bytes {
    let gray = |change: &Change| match &change.record {
        Some(Record::Config(item)) => !item.gray.is_empty(),
        Some(_) | None => false,
    };
    if client.is_some() && message.events.iter().any(gray) {
        return watch_response(message, client).encode_to_vec().into();
    }
    message.encoded(|message| watch_response(message, None).encode_to_vec().into())
}

fn watch_event(change: &Change, client: Option<&state::ConfigClient>) -> v1::WatchEvent {
    use v1::watch_event::Record as Event;
    let (record, deleted) = match (&change.record, &change.key) {
        (Some(Record::Instance(record)), _) => (Event::Instance(instance(record)), false),
        (Some(Record::Service(record)), _) => (Event::Service(service_record(record)), false),
        (Some(Record::Config(item)), _) => {
            let shown = client.map_or(config::Shown::All { contents: true }, config::Shown::To);
            (Event::Config(config::item(item, shown)), item.version() == 0)
        }
        (Some(Record::Counter(counter)), _) => {
            (Event::Counter(counter::counter(counter, None)), false)
        }
        (Some(Record::Lock(request)), _) => (Event::Lock(lock::lock_request(request)), false),
        (Some(Record::Alarm(record)), _) => (Event::Alarm(alarm::alarm(record)), false),
        (Some(Record::Saga(record)), _) => (Event::Saga(saga::saga(record, false)), false),
        (None, Key::Saga { namespace, gid }) => (Event::Saga(saga::names(namespace, gid)), true),
        (None, Key::Alarm { namespace, name }) => {
            (Event::Alarm(alarm::alarm_names(namespace, name)), true)
        }
        (None, Key::Config { namespace, group, key }) => {
            (Event::Config(config::item_names(namespace, group, key)), true)
        }
        (None, Key::Counter { namespace, name, labels }) => {
            (Event::Counter(counter::counter_names(namespace, name, labels)), true)
        }
        (None, Key::Lock { namespace, lock, ticket }) => {
            let names = v1::LockRequest {
                namespace: namespace.to_string(),
                lock: lock.to_string(),
                ticket: *ticket,
                ..v1::LockRequest::default()
            };
            (Event::Lock(names), true)
        }
        (None, Key::Instance { namespace, service, id }) => {
            let names = v1::Instance {
                namespace: namespace.to_string(),
                service: service.to_string(),
                id: id.to_string(),
                ..v1::Instance::default()
            };
            (Event::Instance(names), true)
        }
        (None, Key::Service { namespace, name }) => {
            let names = v1::Service {
                namespace: namespace.to_string(),
                name: name.to_string(),
                ..v1::Service::default()
            };
            (Event::Service(names), true)
        }
        (
            Some(
                Record::Meta(_)
                | Record::Namespace(_)
                | Record::Session(_)
                | Record::Reply(_)
                | Record::Member(_)
                | Record::Release(_)
                | Record::Schema(_)
                | Record::Report(_)
                | Record::Removal(_),
            ),
            _,
        )
        | (
            None,
            Key::Meta
            | Key::Namespace { .. }
            | Key::Session { .. }
            | Key::Reply { .. }
            | Key::Member { .. }
            | Key::Release { .. }
            | Key::Schema { .. }
            | Key::Report { .. }
            | Key::Removal { .. },
        ) => {
            unreachable!("the hub passes what can be watched, not {:?}", change.key)
        }
    };
    v1::WatchEvent { record: Some(record), deleted }
}

/// What a unary call would have answered as its status.
pub fn stream_error(error: &Error) -> v1::StreamError {
    let (code, reason, metadata) = error.to_wire();
    v1::StreamError {
        code: code.into(),
        message: error.to_string(),
        reason: reason.into(),
        metadata: metadata.into_iter().collect(),
    }
}
