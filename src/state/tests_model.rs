//! The naive model: the rules of the product told once more, in the plainest way and without a look
//! at the code beside it. Flat lists, searched from end to end; each command works on a copy that is
//! thrown away when it refuses. Where model and state differ, one of them is wrong.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::limits;
use std::num::NonZeroU64;
use std::sync::Arc;

mod alarm;
mod config;
mod counter;
mod lock;
mod saga;
mod txn;

pub(super) use self::config::name_of_item;
pub(super) use self::counter::Tally;
pub(super) use self::saga::shown as status_of_saga;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Model {
    pub revision: u64,
    pub now_ms: u64,
    /// The default namespace is here only after it was described.
    namespaces: Vec<Namespace>,
    settings: Vec<Service>,
    pub instances: Vec<Instance>,
    pub sessions: Vec<Session>,
    pub replies: Vec<(u64, u64, StoredReply)>,
    pub members: Vec<Member>,
    pub items: Vec<ConfigItem>,
    /// What was current or gray of which item.
    releases: Vec<(ItemName, Release)>,
    schemas: Vec<Schema>,
    pub reports: Vec<Report>,
    pub counters: Vec<Tally>,
    pub locks: Vec<LockRequest>,
    pub alarms: Vec<Alarm>,
    pub sagas: Vec<Saga>,
    /// When something of a class was last removed from a namespace.
    removals: Vec<(String, Class, u64)>,
}

/// What one command sees of its place in the log.
struct Place {
    term: u64,
    revision: u64,
    now_ms: u64,
}

type Answer = Result<Reply, Refusal>;

impl Model {
    pub fn apply(&mut self, bytes: &[u8], term: u64, at_ms: u64) -> Outcome {
        self.now_ms = self.now_ms.max(at_ms);
        let Ok(command) = Command::decode(bytes) else { return self.refuse(Refusal::Undecodable) };
        let Some(id) = command.request else { return self.run(command.op, term) };

        if !self.sessions.iter().any(|session| session.id == id.session) {
            return self.refuse(Refusal::SessionExpired { session: id.session });
        }
        if id.sequence == 0 {
            return self.refuse(Refusal::Invalid {
                field: "request_id.sequence".into(),
                value: "0".into(),
                allowed: "from 1".into(),
            });
        }
        if id.lowest_unacknowledged > id.sequence {
            return self.refuse(Refusal::Invalid {
                field: "request_id.lowest_unacknowledged".into(),
                value: id.lowest_unacknowledged.to_string(),
                allowed: format!("at most the sequence, {}", id.sequence),
            });
        }
        if let Some((_, _, stored)) =
            self.replies.iter().find(|reply| (reply.0, reply.1) == (id.session, id.sequence))
        {
            let mut outcome = stored.outcome.clone();
            outcome.duplicate = true;
            return outcome;
        }
        let lowest = self.lowest(id.session);
        if id.sequence < lowest {
            let sequence = id.sequence;
            return self.refuse(Refusal::SequenceForgotten { sequence, lowest });
        }
        let lowest = lowest.max(id.lowest_unacknowledged);
        let kept = |reply: &&(u64, u64, StoredReply)| reply.0 == id.session && reply.1 >= lowest;
        if self.replies.iter().filter(kept).count() >= limits::SESSION_IN_FLIGHT {
            return self.refuse(Refusal::TooManyInFlight { limit: 1024 });
        }
        let outcome = self.run(command.op, term);
        // Whoever checked it against another schema does so anew, and comes back.
        let in_vain = |refusal: &Refusal| matches!(refusal, Refusal::SchemaChanged { .. });
        match &outcome.result {
            Err(Refusal::InStep { refusal, .. }) if in_vain(refusal) => return outcome,
            Err(refusal) if in_vain(refusal) => return outcome,
            _ => {}
        }
        if self.sessions.iter().any(|session| session.id == id.session) {
            let lowest_unacknowledged = id.lowest_unacknowledged;
            let stored = StoredReply { lowest_unacknowledged, outcome: outcome.clone() };
            self.replies.push((id.session, id.sequence, stored));
            self.replies.retain(|reply| reply.0 != id.session || reply.1 >= lowest);
        }
        outcome
    }

    /// Every record, in the order of the bytes of the keys.
    pub fn records(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let meta = Meta { revision: self.revision, now_ms: self.now_ms };
        let mut records = vec![(Key::Meta, Record::Meta(meta))];
        for n in &self.namespaces {
            let key = Key::Namespace { name: n.name.clone() };
            records.push((key, Record::Namespace(Arc::new(n.clone()))));
        }
        for s in &self.settings {
            let key = Key::Service { namespace: s.namespace.clone(), name: s.name.clone() };
            records.push((key, Record::Service(Arc::new(s.clone()))));
        }
        for i in &self.instances {
            let key = Key::Instance {
                namespace: i.namespace.clone(),
                service: i.service.clone(),
                id: i.id.clone(),
            };
            records.push((key, Record::Instance(Arc::new(i.clone()))));
        }
        for s in &self.sessions {
            records.push((Key::Session { id: s.id }, Record::Session(Arc::new(s.clone()))));
        }
        for (session, sequence, reply) in &self.replies {
            let key = Key::Reply { session: *session, sequence: *sequence };
            records.push((key, Record::Reply(Arc::new(reply.clone()))));
        }
        for m in &self.members {
            records.push((Key::Member { node: m.node }, Record::Member(Arc::new(m.clone()))));
        }
        for i in &self.items {
            let key = Key::Config {
                namespace: i.namespace.clone(),
                group: i.group.clone(),
                key: i.key.clone(),
            };
            records.push((key, Record::Config(Arc::new(i.clone()))));
        }
        for (name, r) in &self.releases {
            let key = Key::Release {
                namespace: name.namespace.as_str().into(),
                group: name.group.as_str().into(),
                key: name.key.as_str().into(),
                version: r.version,
            };
            records.push((key, Record::Release(Arc::new(r.clone()))));
        }
        for s in &self.schemas {
            let key = Key::Schema {
                namespace: s.namespace.clone(),
                group: s.group.clone(),
                key: s.key.clone(),
            };
            records.push((key, Record::Schema(Arc::new(s.clone()))));
        }
        for r in &self.reports {
            let key = Key::Report {
                namespace: r.namespace.clone(),
                group: r.group.clone(),
                key: r.key.clone(),
                session: r.session,
            };
            records.push((key, Record::Report(Arc::new(r.clone()))));
        }
        for counter in &self.counters {
            let c = counter.record();
            let key = Key::Counter {
                namespace: c.namespace.clone(),
                name: c.name.clone(),
                labels: c.labels.clone(),
            };
            records.push((key, Record::Counter(Arc::new(c))));
        }
        for a in &self.alarms {
            let key = Key::Alarm { namespace: a.namespace.clone(), name: a.name.clone() };
            records.push((key, Record::Alarm(Arc::new(a.clone()))));
        }
        for s in &self.sagas {
            let key = Key::Saga { namespace: s.namespace.clone(), gid: s.gid.clone() };
            records.push((key, Record::Saga(Arc::new(s.clone()))));
        }
        for l in &self.locks {
            let key = Key::Lock {
                namespace: l.namespace.clone(),
                lock: l.lock.clone(),
                ticket: l.ticket,
            };
            records.push((key, Record::Lock(Arc::new(l.clone()))));
        }
        for (namespace, class, revision) in &self.removals {
            let key = Key::Removal { namespace: namespace.as_str().into(), class: *class };
            records.push((key, Record::Removal(Removal { revision: *revision })));
        }
        let mut bytes: Vec<_> = records.iter().map(|(k, r)| (k.encode(), r.encode())).collect();
        bytes.sort();
        bytes
    }

    /// The ids that discovery returns, and whether it protects.
    pub fn discover(&self, namespace: &str, service: &str, filter: &Filter) -> (Vec<String>, bool) {
        let all: Vec<&Instance> = self.of_service(namespace, service);
        let shown = all.iter().filter(|i| i.admin != Admin::Disabled).count();
        let well = all.iter().filter(|i| healthy(i)).count();
        let threshold = self
            .settings
            .iter()
            .find(|s| *s.namespace == *namespace && *s.name == *service)
            .map_or(0, |s| s.protect_threshold_percent as usize);
        let protected = filter.healthy_only && well * 100 < threshold * shown;
        let mut ids = Vec::new();
        for i in all {
            if filter.healthy_only && i.admin == Admin::Disabled {
                continue;
            }
            if filter.healthy_only && !protected && !healthy(i) {
                continue;
            }
            if !filter.zone.is_empty() && *i.zone != *filter.zone {
                continue;
            }
            if filter.metadata.iter().any(|pair| !i.metadata.iter().any(|own| own == pair)) {
                continue;
            }
            ids.push(i.id.to_string());
        }
        ids.sort();
        (ids, protected)
    }

    /// Name, whether it has settings, instances and healthy ones, of each service.
    pub fn services(&self, namespace: &str) -> Vec<(String, bool, u64, u64)> {
        let mut names: Vec<&str> = Vec::new();
        names.extend(self.settings.iter().filter(|s| *s.namespace == *namespace).map(|s| &*s.name));
        names.extend(
            self.instances.iter().filter(|i| *i.namespace == *namespace).map(|i| &*i.service),
        );
        names.sort();
        names.dedup();
        let view = |name: &str| {
            let all = self.of_service(namespace, name);
            let set = self.settings_of(namespace, name).is_some();
            let well = all.iter().filter(|i| healthy(i)).count() as u64;
            (name.to_owned(), set, all.len() as u64, well)
        };
        names.into_iter().map(view).collect()
    }

    /// The orphans by name, with their due times.
    pub fn orphans(&self) -> Vec<(InstanceName, u64)> {
        let mut orphans: Vec<_> =
            self.instances.iter().filter_map(|i| Some((name_of(i), self.due(i)?))).collect();
        orphans.sort();
        orphans
    }

    /// The services with a health check, by name.
    pub fn checked(&self) -> Vec<Service> {
        let mut checked: Vec<Service> =
            self.settings.iter().filter(|s| s.health_check.is_some()).cloned().collect();
        checked.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        checked
    }

    /// The instances of a service that belong to no session, by name.
    pub fn checkable(&self, (namespace, service): (&str, &str)) -> Vec<InstanceName> {
        let all = self.of_service(namespace, service).into_iter();
        let mut names: Vec<_> = all.filter(|i| i.session.is_none()).map(name_of).collect();
        names.sort();
        names
    }

    /// The mod_revision of an instance, 0 when there is none.
    pub fn instance_revision(&self, name: &InstanceName) -> u64 {
        self.instances.iter().find(|i| name_of(i) == *name).map_or(0, |i| i.mod_revision)
    }

    /// Likewise of a service's settings.
    pub fn settings_revision(&self, namespace: &str, name: &str) -> u64 {
        self.settings_of(namespace, name).map_or(0, |s| s.mod_revision)
    }

    pub fn lowest(&self, session: u64) -> u64 {
        let own = self.replies.iter().filter(|reply| reply.0 == session);
        own.map(|reply| reply.2.lowest_unacknowledged).max().unwrap_or(0)
    }

    fn of_service(&self, namespace: &str, service: &str) -> Vec<&Instance> {
        let belongs = |i: &&Instance| *i.namespace == *namespace && *i.service == *service;
        self.instances.iter().filter(belongs).collect()
    }

    fn settings_of(&self, namespace: &str, name: &str) -> Option<&Service> {
        self.settings.iter().find(|s| *s.namespace == *namespace && *s.name == *name)
    }

    fn due(&self, i: &Instance) -> Option<u64> {
        let after = match self.settings_of(&i.namespace, &i.service) {
            Some(settings) => settings.deregister_after_ms,
            None => 30_000,
        };
        Some(i.orphaned_at_ms?.get().saturating_add(after))
    }

    fn has_namespace(&self, name: &str) -> bool {
        name == "default" || self.namespaces.iter().any(|n| *n.name == *name)
    }

    fn needs_namespace(&self, name: &str) -> Result<(), Refusal> {
        match self.has_namespace(name) {
            true => Ok(()),
            false => Err(Refusal::NotFound { kind: Kind::Namespace, name: name.into() }),
        }
    }

    fn refuse(&self, refusal: Refusal) -> Outcome {
        Outcome { revision: self.revision, duplicate: false, result: Err(refusal) }
    }

    fn run(&mut self, op: Op, term: u64) -> Outcome {
        let place = Place { term, revision: self.revision + 1, now_ms: self.now_ms };
        let mut after = self.clone();
        let result = after.op(op, &place);
        after.note_removals(self, place.revision);
        if result.is_ok() && after != *self {
            // Members are not the registry's: no revision tells of them.
            let registry = after.members == self.members;
            *self = after;
            self.revision += u64::from(registry);
        }
        Outcome { revision: self.revision, duplicate: false, result }
    }

    /// Whatever was there before and is not any more was removed.
    fn note_removals(&mut self, before: &Model, revision: u64) {
        let named = |model: &Model| -> Vec<(String, Class, String)> {
            let instances = model.instances.iter().map(|i| {
                (i.namespace.to_string(), Class::Service, format!("{}/{}", i.service, i.id))
            });
            let settings = model.settings.iter();
            let settings =
                settings.map(|s| (s.namespace.to_string(), Class::Service, s.name.to_string()));
            let mut named: Vec<_> = instances.chain(settings).collect();
            for i in &model.items {
                let name = |what| format!("{what} {}/{}", i.group, i.key);
                named.push((i.namespace.to_string(), Class::Config, name("history")));
                if i.current.content.is_some() {
                    named.push((i.namespace.to_string(), Class::Config, name("item")));
                }
            }
            for s in &model.schemas {
                let name = format!("schema {}/{}", s.group, s.key);
                named.push((s.namespace.to_string(), Class::Config, name));
            }
            for c in &model.counters {
                let name = format!("{}{:?}", c.name.name, c.name.labels);
                named.push((c.name.namespace.clone(), Class::Counter, name));
            }
            for a in &model.alarms {
                named.push((a.namespace.to_string(), Class::Alarm, a.name.to_string()));
            }
            for s in &model.sagas {
                named.push((s.namespace.to_string(), Class::Saga, s.gid.to_string()));
            }
            for l in &model.locks {
                let name = format!("{} {}", l.lock, l.ticket);
                named.push((l.namespace.to_string(), Class::Lock, name));
            }
            named
        };
        let left = named(self);
        for gone in named(before) {
            if left.contains(&gone) {
                continue;
            }
            let (namespace, class, _) = gone;
            self.removals.retain(|r| (&r.0, r.1) != (&namespace, class));
            self.removals.push((namespace, class, revision));
        }
        let kept: Vec<_> = self.removals.drain(..).filter(|r| before.has_namespace(&r.0)).collect();
        self.removals = kept.into_iter().filter(|r| self.has_namespace(&r.0)).collect();
    }

    fn op(&mut self, op: Op, place: &Place) -> Answer {
        match op {
            Op::PublishConfig(publication) => self.publish(*publication, place),
            Op::DeleteConfig(deletion) => self.delete_config(*deletion, place),
            Op::RollbackConfig(rollback) => self.roll_back(*rollback, place),
            Op::PutSchema(schema) => self.put_schema(*schema, place),
            Op::DeleteSchema { name } => self.delete_schema(&name),
            Op::EndGray(decision) => self.end_gray(*decision, place),
            Op::JudgeGray { name, rule, schema } => self.judge(&name, &rule, schema, place),
            Op::ReportConfig { session, client, items } => {
                self.report(session, &client, &items, place)
            }
            Op::AddCounter(addition) => self.add(*addition, place),
            Op::SetCounter(setting) => self.set(*setting, place),
            Op::ResetCounter { name, expected } => self.reset(name, expected, place),
            Op::DeleteCounter { name } => self.delete_counter(&name),
            Op::AcquireLock(claim) => self.acquire(*claim, place),
            Op::ReleaseLock { lock, by } => self.release(&lock, &by, place),
            Op::UpdateLock { lock, holder, value } => {
                self.update_lock(&lock, &holder, value, place)
            }
            Op::Txn(txn) => self.txn(*txn, place),
            Op::PutAlarm { name, rule } => self.put_alarm(name, *rule, place),
            Op::DeleteAlarm { name } => self.delete_alarm(&name),
            Op::JudgeAlarm { name } => self.judge_alarm(&name, place),
            Op::NotePost { name, transition, error } => {
                self.note_post(name, transition, error, place)
            }
            Op::BeginSaga(begin) => self.begin_saga(*begin, place),
            Op::SubmitSaga { name } => self.submit_saga(&name, place),
            Op::AbortSaga { name, reason } => self.abort_saga(&name, &reason, place),
            Op::RegisterBranch { name, plan } => self.register_branch(&name, *plan, place),
            Op::AdvanceSagas { epoch, steps } => self.advance_sagas(epoch, steps, place),
            Op::OrderSaga { name, order } => self.order_saga(&name, order, place),
            Op::GuardedTxn { barrier, txn } => self.guarded(&barrier, *txn, place),
            Op::OpenSession { ttl_ms, client } => {
                if self.sessions.len() == limits::SESSIONS {
                    let limit = "sessions of the cluster".into();
                    return Err(Refusal::LimitReached { limit, allowed: 1_000_000 });
                }
                let (id, opened_at_ms) = (place.revision, place.now_ms);
                self.sessions.push(Session { id, ttl_ms, client, opened_at_ms });
                Ok(Reply::SessionOpened { session: id, ttl_ms })
            }
            Op::CloseSession { session } => {
                let closed = self.end_session(session, None, place);
                let before = self.instances.len();
                if closed {
                    self.instances
                        .retain(|i| i.session != Some(session) || i.orphaned_at_ms.is_some());
                }
                let removed_instances = (before - self.instances.len()) as u64;
                Ok(Reply::SessionClosed { closed, removed_instances })
            }
            Op::ExpireSessions { term, sessions } => {
                if term != place.term {
                    return Err(Refusal::StaleTerm { proposed: term, current: place.term });
                }
                let mut expired = 0;
                for id in sessions {
                    if !self.end_session(id, Some(place.now_ms), place) {
                        continue;
                    }
                    expired += 1;
                    for i in &mut self.instances {
                        if i.session == Some(id) && i.orphaned_at_ms.is_none() {
                            if i.health != Health::Critical {
                                i.critical_since_ms = Some(place.now_ms);
                            }
                            i.health = Health::Critical;
                            i.reason = format!("session {id} expired").into();
                            i.orphaned_at_ms = NonZeroU64::new(place.now_ms.max(1));
                            i.mod_revision = place.revision;
                            i.modified_at_ms = place.now_ms;
                        }
                    }
                }
                Ok(Reply::SessionsExpired { expired })
            }
            Op::Reap { instances } => {
                let mut removed = 0;
                for name in instances {
                    let found = self.instances.iter().position(|i| name_of(i) == name);
                    if let Some(found) = found
                        && let Some(due) = self.due(&self.instances[found])
                        && due <= place.now_ms
                    {
                        self.instances.remove(found);
                        removed += 1;
                    }
                }
                Ok(Reply::Reaped { removed })
            }
            Op::JudgeHealth { verdicts } => {
                let mut changed = 0;
                for verdict in verdicts {
                    let InstanceName { namespace, service, id: _ } = &verdict.name;
                    let checked = self.settings_of(namespace, service).is_some_and(|settings| {
                        settings.health_check.is_some()
                            && settings.mod_revision == verdict.settings_revision
                    });
                    let Some(i) = self.instances.iter_mut().find(|i| name_of(i) == verdict.name)
                    else {
                        continue;
                    };
                    let stale = i.mod_revision != verdict.mod_revision || i.session.is_some();
                    if !checked || stale || i.health == verdict.health {
                        continue;
                    }
                    if verdict.health != Health::Critical {
                        i.critical_since_ms = None;
                    } else {
                        i.critical_since_ms = Some(place.now_ms);
                    }
                    i.health = verdict.health;
                    i.reason = verdict.reason.into();
                    i.mod_revision = place.revision;
                    i.modified_at_ms = place.now_ms;
                    changed += 1;
                }
                Ok(Reply::HealthJudged { changed })
            }
            Op::Register(registration) => self.register(*registration, place),
            Op::Deregister { name, expected_mod_revision } => {
                let current = self.instance_revision(&name);
                if let Some(expected) = expected_mod_revision
                    && expected != current
                {
                    return Err(Refusal::CompareFailed { expected, current });
                }
                let before = self.instances.len();
                self.instances.retain(|i| name_of(i) != name);
                Ok(Reply::Deregistered { removed: self.instances.len() < before })
            }
            Op::UpdateInstance(patch) => self.update(*patch, place),
            Op::PutService(settings) => self.put_service(*settings, place),
            Op::DeleteService { namespace, name } => {
                let count = self.of_service(&namespace, &name).len();
                if count > 0 {
                    let by = format!("{count} instance{}", if count > 1 { "s" } else { "" });
                    return Err(Refusal::InUse { kind: Kind::Service, name, by });
                }
                let before = self.settings.len();
                self.settings.retain(|s| *s.namespace != *namespace || *s.name != *name);
                Ok(Reply::ServiceDeleted { removed: self.settings.len() < before })
            }
            Op::PutNamespace { name, description } => {
                let created = !self.has_namespace(&name);
                if created && self.namespace_count() == limits::NAMESPACES {
                    let limit = "namespaces of the cluster".into();
                    return Err(Refusal::LimitReached { limit, allowed: 10_000 });
                }
                let revision = place.revision;
                match self.namespaces.iter_mut().find(|n| *n.name == *name) {
                    Some(n) if n.description == description => {}
                    Some(n) => {
                        n.description = description;
                        n.mod_revision = revision;
                    }
                    None if name == "default" && description.is_empty() => {}
                    None => self.namespaces.push(Namespace {
                        name: name.into(),
                        description,
                        create_revision: revision,
                        mod_revision: revision,
                    }),
                }
                Ok(Reply::NamespacePut { created })
            }
            Op::DeleteNamespace { name } => {
                if name == "default" {
                    return Err(Refusal::Invalid {
                        field: "name".into(),
                        value: name,
                        allowed: "any namespace but \"default\"".into(),
                    });
                }
                let counters = self.counters.iter().filter(|c| c.name.namespace == name).count();
                for (count, what) in [
                    (self.services(&name).len(), "service"),
                    (self.config_names(&name), "config item"),
                    (counters, "counter"),
                    (self.lock_names(&name).len(), "lock"),
                    (self.alarms.iter().filter(|a| *a.namespace == *name).count(), "alarm"),
                    (self.sagas_that(|s| *s.namespace == *name).len(), "global transaction"),
                ] {
                    if count > 0 {
                        let by = format!("{count} {what}{}", if count > 1 { "s" } else { "" });
                        return Err(Refusal::InUse { kind: Kind::Namespace, name, by });
                    }
                }
                let removed = self.has_namespace(&name);
                self.namespaces.retain(|n| *n.name != *name);
                Ok(Reply::NamespaceDeleted { removed })
            }
            Op::AdmitMember { node, store } => {
                let full = self.members.len() == limits::MEMBERS;
                let Some(member) = self.members.iter_mut().find(|m| m.node == node) else {
                    if full {
                        let limit = "members of the cluster, past ones included".into();
                        return Err(Refusal::LimitReached { limit, allowed: 100_000 });
                    }
                    self.members.push(Member { node, store, removed: false });
                    return Ok(Reply::MemberAdmitted { changed: true });
                };
                if member.removed {
                    return Err(Refusal::Invalid {
                        field: "id".into(),
                        value: node.to_string(),
                        allowed: format!(
                            "a number that no member ever had; node {node} was removed"
                        ),
                    });
                }
                match (member.store, store) {
                    (Some(known), Some(given)) if known != given => Err(Refusal::Invalid {
                        field: "store".into(),
                        value: format!("{given:032x}"),
                        allowed: format!(
                            "{known:032x}, the data directory that node {node} has had"
                        ),
                    }),
                    (None, Some(_)) => {
                        member.store = store;
                        Ok(Reply::MemberAdmitted { changed: true })
                    }
                    (_, _) => Ok(Reply::MemberAdmitted { changed: false }),
                }
            }
            Op::RetireMember { node } => {
                if !self.members.iter().any(|m| m.node == node) {
                    self.members.push(Member { node, store: None, removed: false });
                }
                let member = self.members.iter_mut().find(|m| m.node == node).unwrap();
                let changed = !member.removed;
                member.removed = true;
                Ok(Reply::MemberRetired { changed })
            }
        }
    }

    fn namespace_count(&self) -> usize {
        let others = self.namespaces.iter().filter(|n| &*n.name != "default").count();
        others + 1
    }

    /// `lost_at_ms` when nobody closed it.
    fn end_session(&mut self, id: u64, lost_at_ms: Option<u64>, place: &Place) -> bool {
        let before = self.sessions.len();
        if self.sessions.iter().any(|session| session.id == id) {
            self.leave_locks(id, place);
            self.forget_reports(id, lost_at_ms);
        }
        self.sessions.retain(|session| session.id != id);
        self.replies.retain(|reply| reply.0 != id);
        self.sessions.len() < before
    }

    fn register(&mut self, new: Registration, place: &Place) -> Answer {
        if !self.has_namespace(&new.name.namespace) {
            return Err(Refusal::NotFound { kind: Kind::Namespace, name: new.name.namespace });
        }
        if let Some(session) = new.session
            && !self.sessions.iter().any(|s| s.id == session)
        {
            return Err(Refusal::SessionExpired { session });
        }
        let old = self.instances.iter().position(|i| name_of(i) == new.name);
        let mut instance = Instance {
            namespace: (*new.name.namespace).into(),
            service: (*new.name.service).into(),
            id: (*new.name.id).into(),
            endpoints: new.endpoints,
            weight: new.weight,
            zone: new.zone.into(),
            metadata: new.metadata,
            health: new.health,
            admin: new.admin,
            reason: new.reason.into(),
            hash_key: new.hash_key.into(),
            session: new.session,
            orphaned_at_ms: None,
            critical_since_ms: (new.health == Health::Critical).then_some(place.now_ms),
            create_revision: place.revision,
            mod_revision: place.revision,
            created_at_ms: place.now_ms,
            modified_at_ms: place.now_ms,
        };
        let implied = instance.reason.is_empty();
        if implied {
            instance.reason = "registered by client".into();
        }
        let Some(at) = old else {
            let siblings = self.of_service(&new.name.namespace, &new.name.service).len();
            if siblings == limits::INSTANCES_PER_SERVICE {
                let limit = "instances of a service".into();
                return Err(Refusal::LimitReached { limit, allowed: 100_000 });
            }
            self.instances.push(instance);
            return Ok(Reply::Registered { created: true, mod_revision: place.revision });
        };
        let old = self.instances[at].clone();
        let owner = old.session.filter(|s| self.sessions.iter().any(|live| live.id == *s));
        if let (Some(owner), Some(session)) = (owner, new.session)
            && owner != session
        {
            return Err(Refusal::OwnedByAnother { owner });
        }
        instance.create_revision = old.create_revision;
        instance.created_at_ms = old.created_at_ms;
        if old.health == Health::Critical && instance.health == Health::Critical {
            instance.critical_since_ms = old.critical_since_ms;
        }
        let mut same = instance.clone();
        same.mod_revision = old.mod_revision;
        same.modified_at_ms = old.modified_at_ms;
        if implied {
            same.reason = old.reason.clone();
        }
        if same == old {
            return Ok(Reply::Registered { created: false, mod_revision: old.mod_revision });
        }
        self.instances[at] = instance;
        Ok(Reply::Registered { created: false, mod_revision: place.revision })
    }

    fn update(&mut self, patch: InstancePatch, place: &Place) -> Answer {
        let Some(i) = self.instances.iter_mut().find(|i| name_of(i) == patch.name) else {
            let InstanceName { namespace, service, id } = patch.name;
            let name = format!("{namespace}/{service}/{id}");
            return Err(Refusal::NotFound { kind: Kind::Instance, name });
        };
        if let Some(expected) = patch.expected_mod_revision
            && expected != i.mod_revision
        {
            return Err(Refusal::CompareFailed { expected, current: i.mod_revision });
        }
        let old = i.clone();
        i.weight = patch.weight.unwrap_or(i.weight);
        i.admin = patch.admin.unwrap_or(i.admin);
        i.health = patch.health.unwrap_or(i.health);
        i.metadata = patch.metadata.unwrap_or_else(|| i.metadata.clone());
        match (old.health == Health::Critical, i.health == Health::Critical) {
            (false, true) => i.critical_since_ms = Some(place.now_ms),
            (true, false) => i.critical_since_ms = None,
            (true, true) | (false, false) => {}
        }
        if !patch.reason.is_empty() {
            i.reason = patch.reason.into();
        } else if *i != old {
            i.reason = "updated by client".into();
        }
        if *i != old {
            i.mod_revision = place.revision;
            i.modified_at_ms = place.now_ms;
        }
        Ok(Reply::InstanceUpdated(Arc::new(i.clone())))
    }

    fn put_service(&mut self, new: ServiceSettings, place: &Place) -> Answer {
        if !self.has_namespace(&new.namespace) {
            return Err(Refusal::NotFound { kind: Kind::Namespace, name: new.namespace });
        }
        let current = self.settings_revision(&new.namespace, &new.name);
        if let Some(expected) = new.expected_mod_revision
            && expected != current
        {
            return Err(Refusal::CompareFailed { expected, current });
        }
        let mut record = Service {
            namespace: (*new.namespace).into(),
            name: (*new.name).into(),
            protect_threshold_percent: new.protect_threshold_percent,
            deregister_after_ms: new.deregister_after_ms,
            policy: new.policy,
            policy_parameters: new.policy_parameters,
            metadata: new.metadata,
            create_revision: place.revision,
            mod_revision: place.revision,
            health_check: new.health_check,
        };
        let old = self
            .settings
            .iter_mut()
            .find(|s| *s.namespace == *new.namespace && *s.name == *new.name);
        let Some(old) = old else {
            self.settings.push(record);
            return Ok(Reply::ServicePut { created: true });
        };
        record.create_revision = old.create_revision;
        record.mod_revision = old.mod_revision;
        if record != *old {
            record.mod_revision = place.revision;
            *old = record;
        }
        Ok(Reply::ServicePut { created: false })
    }
}

fn healthy(i: &Instance) -> bool {
    i.admin == Admin::Enabled
        && matches!(i.health, Health::Passing | Health::Warning)
        && i.weight != 0
}

pub(super) fn name_of(i: &Instance) -> InstanceName {
    InstanceName {
        namespace: i.namespace.to_string(),
        service: i.service.to_string(),
        id: i.id.to_string(),
    }
}

fn expected(expected: Option<u64>, current: u64) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != current => Err(Refusal::CompareFailed { expected, current }),
        _ => Ok(()),
    }
}

fn too_many(limit: &str, allowed: u64) -> Refusal {
    Refusal::LimitReached { limit: limit.into(), allowed }
}

fn invalid(field: &str, value: &str, allowed: &str) -> Refusal {
    Refusal::Invalid { field: field.into(), value: value.into(), allowed: allowed.into() }
}
