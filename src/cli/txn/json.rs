//! The JSON form of a transaction: `{"when": [...], "then": [...], "or_else": [...]}`, with the field names
//! of the API, the content of configuration as text and enumerations as words.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::super::view;
use super::Wrong;
use super::text::{config_format, counter_kind, names, relation};
use crate::client::txn::{self, Record};
use crate::proto::v1;
use crate::proto::v1::compare::To;
use crate::proto::v1::txn_step::Step as Wire;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Txn {
    #[serde(default)]
    when: Vec<Compare>,
    #[serde(default)]
    then: Vec<Step>,
    #[serde(default)]
    or_else: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Compare {
    record: Option<Name>,
    /// `=` `!=` `<` `>`; `=` when it is left out.
    #[serde(default)]
    is: String,
    exists: Option<bool>,
    create_revision: Option<u64>,
    mod_revision: Option<u64>,
    version: Option<u64>,
    content: Option<String>,
    value: Option<i64>,
    health: Option<view::Health>,
    token: Option<u64>,
    unchanged: Option<Unchanged>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchanged {
    scope: Scope,
    since: u64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Name {
    Namespace(String),
    Service(Service),
    Instance(Instance),
    Config(Item),
    Counter(Counter),
    Lock(Lock),
    Session(u64),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Service {
    namespace: Option<String>,
    service: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Instance {
    namespace: Option<String>,
    service: String,
    id: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    namespace: Option<String>,
    #[serde(default)]
    group: String,
    key: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counter {
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Lock {
    namespace: Option<String>,
    lock: String,
}

/// Names are exact, `PREFIX*` or `*`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    namespace: Option<String>,
    services: Option<String>,
    config: Option<ItemMatch>,
    counters: Option<String>,
    locks: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemMatch {
    /// Empty = all groups.
    #[serde(default)]
    group: String,
    key: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Step {
    Get(Name),
    Range(Range),
    Register(Box<view::Instance>),
    Deregister(Deregister),
    UpdateInstance(Update),
    PutService(PutService),
    DeleteService(Service),
    PublishConfig(Publish),
    DeleteConfig(ItemChange),
    RollbackConfig(ItemChange),
    AddCounter(AddCounter),
    SetCounter(SetCounter),
    ResetCounter(SetCounter),
    DeleteCounter(Counter),
    AcquireLock(LockChange),
    ReleaseLock(LockChange),
    UpdateLock(LockChange),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Range {
    scope: Scope,
    #[serde(default)]
    limit: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deregister {
    namespace: Option<String>,
    service: String,
    id: String,
    #[serde(default)]
    expected_mod_revision: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Update {
    namespace: Option<String>,
    service: String,
    id: String,
    weight: Option<u32>,
    health: Option<view::Health>,
    admin: Option<view::Admin>,
    #[serde(default)]
    reason: String,
    /// Replaces all pairs.
    metadata: Option<BTreeMap<String, String>>,
    #[serde(default)]
    expected_mod_revision: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PutService {
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    protect_threshold_percent: u32,
    deregister_after_ms: Option<u64>,
    #[serde(default)]
    policy: String,
    #[serde(default)]
    policy_parameters: BTreeMap<String, String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    health_check: Option<view::HealthCheck>,
    #[serde(default)]
    expected_mod_revision: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    namespace: Option<String>,
    #[serde(default)]
    group: String,
    key: String,
    content: String,
    #[serde(default)]
    format: String,
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    keep: u32,
    #[serde(default)]
    author: String,
    #[serde(default)]
    comment: String,
    expected_version: Option<u64>,
}

/// A deletion, or a rollback to `version`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemChange {
    namespace: Option<String>,
    #[serde(default)]
    group: String,
    key: String,
    #[serde(default)]
    version: u64,
    #[serde(default)]
    author: String,
    #[serde(default)]
    comment: String,
    expected_version: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddCounter {
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    kind: String,
    delta: i64,
    floor: Option<i64>,
    ceil: Option<i64>,
}

/// A setting, or a reset, which has no `value`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SetCounter {
    namespace: Option<String>,
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    value: i64,
    expected: Option<i64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LockChange {
    namespace: Option<String>,
    lock: String,
    #[serde(default)]
    session: u64,
    #[serde(default)]
    holder: String,
    #[serde(default)]
    value: String,
    /// Of a release: instead of session and holder.
    #[serde(default)]
    token: u64,
}

pub fn parse(text: &str, namespace: &str) -> Result<v1::TxnRequest, Wrong> {
    let txn: Txn = serde_json::from_str(text).map_err(|error| {
        let why = error.to_string();
        // The line stands in front.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why).to_owned();
        Wrong { line: error.line(), why }
    })?;
    // What is parsed has no lines any more: the place in its list tells which it was.
    let at = |list: &str, i: usize, why: String| Wrong {
        line: line_of(text, list),
        why: format!("{list}[{i}]: {why}"),
    };
    let names = Names { namespace };
    let mut request = v1::TxnRequest::default();
    for (i, compare) in txn.when.into_iter().enumerate() {
        request.when.push(names.compare(compare).map_err(|why| at("when", i, why))?);
    }
    for (i, step) in txn.then.into_iter().enumerate() {
        request.then.push(names.step(step).map_err(|why| at("then", i, why))?);
    }
    for (i, step) in txn.or_else.into_iter().enumerate() {
        request.or_else.push(names.step(step).map_err(|why| at("or_else", i, why))?);
    }
    if request.then.is_empty() && request.or_else.is_empty() {
        let why = "no step; needed: \"then\" or \"or_else\"".to_owned();
        return Err(Wrong { line: 1, why });
    }
    Ok(request)
}

/// Where a list begins.
fn line_of(text: &str, list: &str) -> usize {
    let before = text.split(&format!("\"{list}\"")).next().unwrap_or_default();
    before.matches('\n').count() + 1
}

/// Fills in the namespace of the command line.
struct Names<'a> {
    namespace: &'a str,
}

impl Names<'_> {
    fn namespace(&self, given: Option<String>) -> String {
        given.unwrap_or_else(|| self.namespace.to_owned())
    }

    fn record(&self, name: Name) -> v1::RecordName {
        match name {
            Name::Namespace(name) => txn::namespace(name).record_name(),
            Name::Service(it) => {
                txn::service(self.namespace(it.namespace), it.service).record_name()
            }
            Name::Instance(it) => {
                txn::instance(self.namespace(it.namespace), it.service, it.id).record_name()
            }
            Name::Config(it) => {
                txn::config(self.namespace(it.namespace), it.group, it.key).record_name()
            }
            Name::Counter(it) => self.counter(it.namespace, it.name, it.labels).record_name(),
            Name::Lock(it) => txn::lock(self.namespace(it.namespace), it.lock).record_name(),
            Name::Session(id) => txn::session(id).record_name(),
        }
    }

    fn counter(
        &self,
        namespace: Option<String>,
        name: String,
        labels: BTreeMap<String, String>,
    ) -> v1::CounterName {
        v1::CounterName { namespace: self.namespace(namespace), name, labels }
    }

    fn scope(&self, scope: Scope) -> Result<v1::Scope, String> {
        let namespace = self.namespace(scope.namespace);
        match (scope.services, scope.config, scope.counters, scope.locks) {
            (Some(it), None, None, None) => {
                Ok(txn::services(namespace, names(&it)).scope().clone())
            }
            (None, Some(it), None, None) => {
                Ok(txn::configs(namespace, it.group, names(&it.key)).scope().clone())
            }
            (None, None, Some(it), None) => {
                Ok(txn::counters(namespace, names(&it)).scope().clone())
            }
            (None, None, None, Some(it)) => Ok(txn::locks(namespace, names(&it)).scope().clone()),
            _ => Err("a scope has one of services, config, counters and locks".to_owned()),
        }
    }

    fn compare(&self, compare: Compare) -> Result<v1::Compare, String> {
        let is = match compare.is.as_str() {
            "" => v1::Relation::Equal,
            given => relation(given)?,
        };
        let mut to = [
            compare.exists.map(To::Exists),
            compare.create_revision.map(To::CreateRevision),
            compare.mod_revision.map(To::ModRevision),
            compare.version.map(To::Version),
            compare.content.map(|content| To::Content(content.into())),
            compare.value.map(To::Value),
            compare.health.map(|health| To::Health(v1::Health::from(health).into())),
            compare.token.map(To::Token),
        ]
        .into_iter()
        .flatten();
        match (compare.record, to.next(), to.next(), compare.unchanged) {
            (Some(record), Some(to), None, None) => {
                let record = Some(self.record(record));
                Ok(v1::Compare { record, is: is.into(), to: Some(to), unchanged: None })
            }
            (None, None, None, Some(Unchanged { scope, since })) if compare.is.is_empty() => {
                let unchanged = Some(v1::Unchanged { scope: Some(self.scope(scope)?), since });
                Ok(v1::Compare { unchanged, ..v1::Compare::default() })
            }
            _ => Err("needed: either \"unchanged\", or \"record\" and one of exists, \
                      create_revision, mod_revision, version, content, value, health, token"
                .to_owned()),
        }
    }

    fn step(&self, step: Step) -> Result<v1::TxnStep, String> {
        Ok(match step {
            Step::Get(name) => Wire::Get(self.record(name)).into(),
            Step::Range(it) => {
                v1::TxnRange { scope: Some(self.scope(it.scope)?), limit: it.limit }.into()
            }
            Step::Register(instance) => {
                let mut instance = instance.into_registration();
                if instance.namespace.is_empty() {
                    instance.namespace = self.namespace(None);
                }
                instance.into()
            }
            Step::Deregister(it) => v1::DeregisterRequest {
                expected_mod_revision: it.expected_mod_revision,
                ..txn::instance(self.namespace(it.namespace), it.service, it.id).deregister()
            }
            .into(),
            Step::UpdateInstance(it) => v1::UpdateInstanceRequest {
                weight: it.weight,
                health: it.health.map_or(v1::Health::Unspecified, Into::into).into(),
                admin: it.admin.map_or(v1::Admin::Unspecified, Into::into).into(),
                reason: it.reason,
                replace_metadata: it.metadata.is_some(),
                metadata: it.metadata.unwrap_or_default(),
                expected_mod_revision: it.expected_mod_revision,
                ..txn::instance(self.namespace(it.namespace), it.service, it.id).update()
            }
            .into(),
            Step::PutService(it) => v1::PutServiceRequest {
                service: Some(v1::Service {
                    namespace: self.namespace(it.namespace),
                    name: it.name,
                    protect_threshold_percent: it.protect_threshold_percent,
                    deregister_after_ms: it.deregister_after_ms,
                    policy: it.policy,
                    policy_parameters: it.policy_parameters,
                    metadata: it.metadata,
                    health_check: it.health_check.map(|check| Box::new(check.into())),
                    ..v1::Service::default()
                }),
                expected_mod_revision: it.expected_mod_revision,
                request_id: None,
            }
            .into(),
            Step::DeleteService(it) => {
                txn::service(self.namespace(it.namespace), it.service).delete().into()
            }
            Step::PublishConfig(it) => v1::PublishConfigRequest {
                format: config_format(&it.format)?.into(),
                replace_labels: it.labels.is_some(),
                labels: it.labels.unwrap_or_default(),
                keep: it.keep,
                author: it.author,
                comment: it.comment,
                expected_version: it.expected_version,
                ..txn::config(self.namespace(it.namespace), it.group, it.key).publish(it.content)
            }
            .into(),
            Step::DeleteConfig(it) if it.version == 0 => v1::DeleteConfigRequest {
                author: it.author,
                comment: it.comment,
                expected_version: it.expected_version,
                ..txn::config(self.namespace(it.namespace), it.group, it.key).delete()
            }
            .into(),
            Step::DeleteConfig(_) => {
                return Err("a deletion has no version; allowed: expected_version".to_owned());
            }
            Step::RollbackConfig(it) => v1::RollbackConfigRequest {
                author: it.author,
                comment: it.comment,
                expected_version: it.expected_version,
                ..txn::config(self.namespace(it.namespace), it.group, it.key).roll_back(it.version)
            }
            .into(),
            Step::AddCounter(it) => v1::AddCounterRequest {
                kind: counter_kind(&it.kind)?.into(),
                floor: it.floor,
                ceil: it.ceil,
                ..self.counter(it.namespace, it.name, it.labels).add(it.delta)
            }
            .into(),
            Step::SetCounter(it) => v1::SetCounterRequest {
                kind: counter_kind(&it.kind)?.into(),
                expected: it.expected,
                ..self.counter(it.namespace, it.name, it.labels).set(it.value)
            }
            .into(),
            Step::ResetCounter(it) if it.value == 0 && it.kind.is_empty() => {
                v1::ResetCounterRequest {
                    expected: it.expected,
                    ..self.counter(it.namespace, it.name, it.labels).reset()
                }
                .into()
            }
            Step::ResetCounter(_) => {
                return Err("a reset has no value and no kind; allowed: expected".to_owned());
            }
            Step::DeleteCounter(it) => {
                self.counter(it.namespace, it.name, it.labels).delete().into()
            }
            Step::AcquireLock(it) if it.token == 0 => v1::AcquireLockRequest {
                value: it.value,
                ..txn::lock(self.namespace(it.namespace), it.lock).acquire(it.session, it.holder)
            }
            .into(),
            Step::ReleaseLock(it) if it.value.is_empty() => v1::ReleaseLockRequest {
                session: it.session,
                holder: it.holder,
                ..txn::lock(self.namespace(it.namespace), it.lock).release(it.token)
            }
            .into(),
            Step::UpdateLock(it) if it.token == 0 => v1::UpdateLockRequest {
                namespace: self.namespace(it.namespace),
                lock: it.lock,
                session: it.session,
                holder: it.holder,
                value: it.value,
                request_id: None,
            }
            .into(),
            Step::AcquireLock(_) | Step::UpdateLock(_) => {
                return Err("only a release has a token".to_owned());
            }
            Step::ReleaseLock(_) => return Err("a release has no value".to_owned()),
        })
    }
}
