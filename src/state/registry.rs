//! Namespaces, services and instances: what each command may write, and when it is refused.
//!
//! Who may write what: anybody may change or deregister any instance. Registering is the exception,
//! because two processes under one name are a mistake: an instance that a live session holds cannot
//! be registered by another session. It can be registered without a session, which makes it
//! persistent, and a session may take over a persistent instance or an orphan.
//!
//! A compare looks at the record's `mod_revision`; a record that does not exist is at 0.

use std::sync::{Arc, LazyLock};

use super::At;
use super::command::{
    InstanceName, InstancePatch, Kind, Refusal, Registration, Reply, ServiceSettings,
    check_deletable,
};
use super::journal::Journal;
use super::memory::Tables;
use super::table::{Class, Health, Instance, Namespace, Service};
use crate::limits;

/// The reason of a change whose client gave none. It never makes a change by itself.
static REGISTERED: LazyLock<Arc<str>> = LazyLock::new(|| "registered by client".into());
static UPDATED: LazyLock<Arc<str>> = LazyLock::new(|| "updated by client".into());

impl Tables {
    pub fn register(
        &mut self,
        registration: Registration<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let Registration { name, session, .. } = &registration;
        let namespace = existing(self.namespaces.get_mut(name.namespace), name.namespace)?;
        if let Some(session) = *session
            && !self.ledger.sessions.contains_key(&session)
        {
            return Err(Refusal::SessionExpired { session });
        }
        // From here on only a service that has instances refuses, so none is left behind empty.
        let table = namespace.service_mut(&mut self.ledger, name.service);
        let Some(place) = table.instances.find(name.id) else {
            if table.instances.len() >= limits::INSTANCES_PER_SERVICE {
                return Err(Refusal::LimitReached {
                    limit: "instances of a service".into(),
                    allowed: limits::INSTANCES_PER_SERVICE as u64,
                });
            }
            let names = (table.name.namespace.clone(), table.name.name.clone());
            let instance = registration.into_instance(names, None, at);
            journal.push(table.put_instance(&mut self.ledger, instance));
            return Ok(Reply::Registered { created: true, mod_revision: at.revision });
        };
        let old = table.instances.at(place);
        if let (Some(owner), Some(session)) = (old.holder(), *session)
            && owner != session
        {
            return Err(Refusal::OwnedByAnother { owner });
        }
        if registration.is_content_of(old) {
            return Ok(Reply::Registered { created: false, mod_revision: old.mod_revision });
        }
        let names = (table.name.namespace.clone(), table.name.name.clone());
        let instance = registration.into_instance(names, Some(old), at);
        journal.push(table.replace_instance(&mut self.ledger, place, instance));
        Ok(Reply::Registered { created: false, mod_revision: at.revision })
    }

    pub fn deregister(
        &mut self,
        name: &InstanceName<&str>,
        expected_mod_revision: Option<u64>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let current = self
            .service(name.namespace, name.service)
            .and_then(|table| table.instances.get(name.id))
            .map_or(0, |instance| instance.mod_revision);
        compare(expected_mod_revision, current)?;
        let gone = self.remove_instance(name.namespace, name.service, name.id);
        let removed = gone.is_some();
        if removed {
            journal.extend(gone);
            journal.extend(self.note_removal(name.namespace, Class::Service, at.revision));
        }
        Ok(Reply::Deregistered { removed })
    }

    /// A patch of health does not turn an orphan into anything else: it is reaped when it is due, unless
    /// it is registered again.
    pub fn update_instance(
        &mut self,
        patch: InstancePatch<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let InstanceName { namespace, service, id } = &patch.name;
        let table = self
            .namespaces
            .get_mut(*namespace)
            .and_then(|namespace| namespace.services.get_mut(service));
        let (Some(old), Some(table)) =
            (table.as_ref().and_then(|table| table.instances.get(id)).cloned(), table)
        else {
            let name = format!("{namespace}/{service}/{id}");
            return Err(Refusal::NotFound { kind: Kind::Instance, name });
        };
        compare(patch.expected_mod_revision, old.mod_revision)?;
        if patch.is_content_of(&old) {
            return Ok(Reply::InstanceUpdated(old));
        }
        let mut instance = Arc::unwrap_or_clone(old);
        if let Some(weight) = patch.weight {
            instance.weight = weight;
        }
        if let Some(admin) = patch.admin {
            instance.admin = admin;
        }
        if let Some(health) = patch.health {
            instance.set_health(health, at);
        }
        if let Some(metadata) = patch.metadata {
            instance.metadata = metadata;
        }
        instance.stamp(reason_or(patch.reason, &UPDATED), at);
        let instance = Arc::new(instance);
        journal.push(table.put_instance(&mut self.ledger, instance.clone()));
        Ok(Reply::InstanceUpdated(instance))
    }

    /// Ignores names that are not, or not yet, to be reaped: an instance may have been adopted since
    /// the keeper looked.
    pub fn reap(
        &mut self,
        names: &[InstanceName<&str>],
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let mut removed = 0;
        for InstanceName { namespace, service, id } in names {
            let due = self.service(namespace, service).and_then(|table| {
                let instance = table.instances.get(id)?;
                table.reap_at_ms(instance)
            });
            if due.is_some_and(|due| at.now_ms >= due) {
                journal.extend(self.remove_instance(namespace, service, id));
                journal.extend(self.note_removal(namespace, Class::Service, at.revision));
                removed += 1;
            }
        }
        Ok(Reply::Reaped { removed })
    }

    pub fn put_service(
        &mut self,
        settings: ServiceSettings<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let namespace = existing(self.namespaces.get_mut(settings.namespace), settings.namespace)?;
        let old = namespace.services.get(settings.name).and_then(|t| t.settings.clone());
        let current = old.as_ref().map_or(0, |old| old.mod_revision);
        compare(settings.expected_mod_revision, current)?;
        let table = namespace.service_mut(&mut self.ledger, settings.name);
        let record = Service {
            namespace: table.name.namespace.clone(),
            name: table.name.name.clone(),
            protect_threshold_percent: settings.protect_threshold_percent,
            deregister_after_ms: settings.deregister_after_ms,
            policy: settings.policy.into(),
            policy_parameters: settings.policy_parameters,
            metadata: settings.metadata,
            create_revision: old.as_ref().map_or(at.revision, |old| old.create_revision),
            mod_revision: current,
            health_check: settings.health_check,
        };
        if old.as_deref() != Some(&record) {
            let record = Service { mod_revision: at.revision, ..record };
            journal.push(table.put_settings(&mut self.ledger, record));
        }
        Ok(Reply::ServicePut { created: old.is_none() })
    }

    pub fn delete_service(
        &mut self,
        namespace: &str,
        name: &str,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let absent = Ok(Reply::ServiceDeleted { removed: false });
        let Some(table) = self.namespaces.get_mut(namespace) else { return absent };
        let services = &mut table.services;
        let Some(service) = services.get_mut(name) else { return absent };
        if !service.instances.is_empty() {
            let by = counted(service.instances.len(), "instance");
            return Err(Refusal::InUse { kind: Kind::Service, name: name.into(), by });
        }
        journal.extend(service.remove_settings(&mut self.ledger));
        table.prune(&mut self.ledger, name);
        journal.extend(self.note_removal(namespace, Class::Service, at.revision));
        Ok(Reply::ServiceDeleted { removed: true })
    }

    pub fn put_namespace(
        &mut self,
        name: &str,
        description: &str,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let record = match self.namespaces.get(name).map(|table| &table.record) {
            Some(old) if old.description == description => None,
            Some(old) => {
                // The default namespace may have no record yet.
                let create_revision =
                    if old.create_revision == 0 { at.revision } else { old.create_revision };
                let name = old.name.clone();
                let description = description.into();
                Some(Namespace { name, description, create_revision, mod_revision: at.revision })
            }
            None if self.namespaces.len() >= limits::NAMESPACES => {
                return Err(Refusal::LimitReached {
                    limit: "namespaces of the cluster".into(),
                    allowed: limits::NAMESPACES as u64,
                });
            }
            None => Some(Namespace {
                name: name.into(),
                description: description.into(),
                create_revision: at.revision,
                mod_revision: at.revision,
            }),
        };
        let created = !self.namespaces.contains_key(name);
        if let Some(record) = record {
            journal.push(self.put_namespace_record(record));
        }
        Ok(Reply::NamespacePut { created })
    }

    pub fn delete_namespace(
        &mut self,
        name: &str,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        check_deletable(name)?;
        let Some(namespace) = self.namespaces.get(name) else {
            return Ok(Reply::NamespaceDeleted { removed: false });
        };
        if let Some((count, what)) = namespace.used_by() {
            let by = counted(count, what);
            return Err(Refusal::InUse { kind: Kind::Namespace, name: name.into(), by });
        }
        journal.extend(self.remove_namespace_record(name));
        Ok(Reply::NamespaceDeleted { removed: true })
    }
}

impl Registration<&str> {
    /// True when registering it again would change nothing: revisions and times are not content, and a
    /// reason that was not given is not.
    fn is_content_of(&self, instance: &Instance) -> bool {
        let Registration {
            name: _,
            endpoints,
            weight,
            zone,
            metadata,
            health,
            admin,
            reason,
            hash_key,
            session,
        } = self;
        // Never so for an orphan, whose session is not one that a registration gets through with.
        *session == instance.session
            && *weight == instance.weight
            && *health == instance.health
            && *admin == instance.admin
            && *endpoints == instance.endpoints
            && **zone == *instance.zone
            && *metadata == instance.metadata
            && **hash_key == *instance.hash_key
            && (reason.is_empty() || **reason == *instance.reason)
    }

    fn into_instance(
        self,
        (namespace, service): (Arc<str>, Arc<str>),
        old: Option<&Arc<Instance>>,
        at: &At,
    ) -> Instance {
        let mut instance = Instance {
            namespace,
            service,
            id: old.map_or_else(|| self.name.id.into(), |old| old.id.clone()),
            endpoints: shared(self.endpoints, old.map(|old| &old.endpoints)),
            weight: self.weight,
            zone: self.zone.into(),
            metadata: shared(self.metadata, old.map(|old| &old.metadata)),
            health: self.health,
            admin: self.admin,
            reason: reason_or(self.reason, &REGISTERED),
            hash_key: self.hash_key.into(),
            session: self.session,
            orphaned_at_ms: None,
            critical_since_ms: old.and_then(|old| old.critical_since_ms),
            create_revision: old.map_or(at.revision, |old| old.create_revision),
            mod_revision: at.revision,
            created_at_ms: old.map_or(at.now_ms, |old| old.created_at_ms),
            modified_at_ms: at.now_ms,
        };
        instance.set_health(self.health, at);
        instance
    }
}

impl InstancePatch<&str> {
    /// True when it would change nothing: a reason that was not given does not count.
    fn is_content_of(&self, instance: &Instance) -> bool {
        let InstancePatch { name: _, weight, admin, health, reason, metadata, .. } = self;
        weight.is_none_or(|weight| weight == instance.weight)
            && admin.is_none_or(|admin| admin == instance.admin)
            && health.is_none_or(|health| health == instance.health)
            && metadata.as_ref().is_none_or(|metadata| *metadata == instance.metadata)
            && (reason.is_empty() || **reason == *instance.reason)
    }
}

impl Instance {
    /// `critical_since_ms` is the beginning of the present critical time, whoever prolongs it.
    pub(super) fn set_health(&mut self, health: Health, at: &At) {
        self.health = health;
        self.critical_since_ms =
            (health == Health::Critical).then(|| self.critical_since_ms.unwrap_or(at.now_ms));
    }

    pub(super) fn stamp(&mut self, reason: Arc<str>, at: &At) {
        self.reason = reason;
        self.mod_revision = at.revision;
        self.modified_at_ms = at.now_ms;
    }
}

/// What did not change stays where it is.
fn shared<T: PartialEq + Clone>(new: T, old: Option<&T>) -> T {
    old.filter(|old| **old == new).cloned().unwrap_or(new)
}

pub(super) fn existing<N>(namespace: Option<N>, name: &str) -> Result<N, Refusal> {
    namespace.ok_or_else(|| Refusal::NotFound { kind: Kind::Namespace, name: name.into() })
}

pub(super) fn compare(expected: Option<u64>, current: u64) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != current => Err(Refusal::CompareFailed { expected, current }),
        Some(_) | None => Ok(()),
    }
}

fn reason_or(given: &str, implied: &Arc<str>) -> Arc<str> {
    if given.is_empty() { implied.clone() } else { given.into() }
}

/// A restored reason shares its text again with all that were implied.
pub(super) fn share_reason(reason: &mut Arc<str>) {
    if let Some(implied) = [&*REGISTERED, &*UPDATED].into_iter().find(|text| *text == reason) {
        *reason = implied.clone();
    }
}

pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
