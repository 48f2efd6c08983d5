//! Transactions: the copy that each command works on is all that they need.

use bincode::Options as _;

use super::*;

impl Model {
    pub(super) fn txn(&mut self, txn: Txn, place: &Place) -> Answer {
        let succeeded = txn.when.iter().all(|compare| self.holds(compare));
        let steps = if succeeded { txn.then } else { txn.otherwise };
        let mut replies = vec![];
        for (number, step) in steps.into_iter().enumerate() {
            let refused =
                |refusal| Refusal::InStep { step: number as u32, refusal: Box::new(refusal) };
            replies.push(match step {
                Step::Get(name) => StepReply::Found(self.find(&name)),
                Step::Range { scope, limit } => {
                    let mut records = self.scope(&scope);
                    let more = records.len() as u64 > limit;
                    records.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                    StepReply::Range { records, more }
                }
                Step::Write(op) => {
                    may_be_a_step(&op).map_err(refused)?;
                    let before = self.clone();
                    let reply = self.op(op, place).map_err(refused)?;
                    self.note_removals(&before, place.revision);
                    StepReply::Written(reply)
                }
            });
        }
        let reply = Reply::Txn { succeeded, replies };
        let bytes = bincode::DefaultOptions::new().serialized_size(&reply).unwrap();
        if bytes > 2 * 1024 * 1024 {
            return Err(too_many("bytes of the answer to a transaction", 2 * 1024 * 1024));
        }
        Ok(reply)
    }

    pub fn holds(&self, compare: &Compare) -> bool {
        let relate = |is: &Relation, left: i128, right: i128| match is {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        };
        match compare {
            Compare::Exists { record, exists } => self.find(record).is_some() == *exists,
            Compare::CreateRevision { record, is, than } => {
                let created = self.find(record).map_or(0, |record| revisions(&record).0);
                relate(is, created.into(), (*than).into())
            }
            Compare::ModRevision { record, is, than } => {
                let changed = self.find(record).map_or(0, |record| revisions(&record).1);
                relate(is, changed.into(), (*than).into())
            }
            Compare::Version { item, is, than } => {
                relate(is, self.shown(item).into(), (*than).into())
            }
            Compare::Content { item, equal, to } => {
                let content = self.item(item).and_then(|item| item.current.content.as_ref());
                *equal == content.is_some_and(|content| content.bytes == *to)
            }
            Compare::Counter { counter, is, than } => {
                relate(is, self.value(counter).into(), (*than).into())
            }
            Compare::Health { instance, equal, to } => {
                let instance = self.instances.iter().find(|i| name_of(i) == *instance);
                instance.is_some_and(|instance| *equal == (instance.health == *to))
            }
            Compare::Token { lock, is, than } => {
                relate(is, self.token(lock).into(), (*than).into())
            }
            Compare::Unchanged { scope, since } => self.is_unchanged(scope, *since),
        }
    }

    /// By what is remembered: the revisions of what is there, the last removal of the class, and when
    /// the namespace was made.
    fn is_unchanged(&self, scope: &Scope, since: u64) -> bool {
        if !self.has_namespace(&scope.namespace) {
            return false;
        }
        let mine = self.namespaces.iter().find(|n| *n.name == *scope.namespace);
        if scope.namespace != "default" && mine.unwrap().create_revision > since {
            return false;
        }
        let removed = self.removals.iter().any(|(namespace, class, at)| {
            (namespace, class) == (&scope.namespace, &scope.class) && *at > since
        });
        !removed && self.scope(scope).iter().all(|record| revisions(record).1 <= since)
    }

    pub fn find(&self, name: &RecordName) -> Option<Record> {
        match name {
            RecordName::Namespace { name } => {
                let bare = Namespace {
                    name: name.as_str().into(),
                    description: String::new(),
                    create_revision: 0,
                    mod_revision: 0,
                };
                let found = self.namespaces.iter().find(|n| *n.name == **name).cloned();
                let found = found.or((name == "default").then_some(bare))?;
                Some(Record::Namespace(found.into()))
            }
            RecordName::Service { namespace, name } => {
                Some(Record::Service(self.settings_of(namespace, name)?.clone().into()))
            }
            RecordName::Instance(name) => {
                let found = self.instances.iter().find(|i| name_of(i) == *name)?;
                Some(Record::Instance(found.clone().into()))
            }
            RecordName::Config(name) => {
                let shown = self.shown(name) > 0;
                let item = self.item(name).filter(|_| shown)?;
                Some(Record::Config(item.clone().into()))
            }
            RecordName::Counter(name) => Some(Record::Counter(self.counter(name)?.record().into())),
            RecordName::Lock(LockName { namespace, lock }) => {
                let line = self.line(namespace, lock);
                Some(Record::Lock((*line.first()?).clone().into()))
            }
            RecordName::Session { id } => {
                let found = self.sessions.iter().find(|session| session.id == *id)?;
                Some(Record::Session(found.clone().into()))
            }
        }
    }

    /// All records of a scope, in the order of their names.
    pub fn scope(&self, scope: &Scope) -> Vec<Record> {
        let mut found: Vec<(Vec<String>, Record)> = vec![];
        let fits = |what: &Match, name: &str| match what {
            Match::Any => true,
            Match::Exact(exact) => exact == name,
            Match::Prefix(prefix) => name.len() >= prefix.len() && name.starts_with(&**prefix),
        };
        let mut put = |class, namespace: &str, first: &str, order: Vec<String>, record: Record| {
            let here = scope.class == class && scope.namespace == namespace;
            if here && fits(&scope.first, first) {
                found.push(([&[first.to_owned()], &order[..]].concat(), record));
            }
        };
        for s in &self.settings {
            put(Class::Service, &s.namespace, &s.name, vec![], Record::Service(s.clone().into()));
        }
        for i in &self.instances {
            let order = vec![i.id.to_string()];
            put(
                Class::Service,
                &i.namespace,
                &i.service,
                order,
                Record::Instance(i.clone().into()),
            );
        }
        for c in &self.items {
            if c.current.content.is_some() && fits(&scope.second, &c.key) {
                let order = vec![c.key.to_string()];
                put(Class::Config, &c.namespace, &c.group, order, Record::Config(c.clone().into()));
            }
        }
        for c in &self.counters {
            let order = vec![c.name.labels.as_packed().to_owned()];
            let (namespace, name) = (&c.name.namespace, &c.name.name);
            put(Class::Counter, namespace, name, order, Record::Counter(c.record().into()));
        }
        for a in &self.alarms {
            put(Class::Alarm, &a.namespace, &a.name, vec![], Record::Alarm(a.clone().into()));
        }
        for s in &self.sagas {
            put(Class::Saga, &s.namespace, &s.gid, vec![], Record::Saga(s.clone().into()));
        }
        for l in &self.locks {
            let order = vec![format!("{:020}", l.ticket)];
            put(Class::Lock, &l.namespace, &l.lock, order, Record::Lock(l.clone().into()));
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found.into_iter().map(|(_, record)| record).collect()
    }
}

/// At which it was made and last changed.
fn revisions(record: &Record) -> (u64, u64) {
    match record {
        Record::Namespace(r) => (r.create_revision, r.mod_revision),
        Record::Service(r) => (r.create_revision, r.mod_revision),
        Record::Instance(r) => (r.create_revision, r.mod_revision),
        Record::Session(r) => (r.id, r.id),
        Record::Config(r) => (r.create_revision, r.mod_revision),
        Record::Counter(r) => (r.create_revision, r.mod_revision),
        Record::Lock(r) => (r.ticket, r.mod_revision),
        Record::Alarm(r) => (r.create_revision, r.mod_revision),
        Record::Saga(r) => (r.create_revision, r.mod_revision),
        other => panic!("{other:?} is in no scope and has no name"),
    }
}

fn may_be_a_step(op: &Op) -> Result<(), Refusal> {
    let what = match op {
        Op::DeleteConfig(deletion) if deletion.purge => "a purge",
        Op::AcquireLock(claim) if claim.wait => "waiting for a lock",
        Op::Txn(_) | Op::GuardedTxn { .. } => "a transaction",
        Op::OpenSession { .. } | Op::CloseSession { .. } | Op::ExpireSessions { .. } => "a session",
        Op::Reap { .. } => "the removal of orphans",
        Op::JudgeHealth { .. } => "a verdict of health checks",
        Op::PutNamespace { .. } | Op::DeleteNamespace { .. } => "a namespace",
        Op::AdmitMember { .. } | Op::RetireMember { .. } => "a member",
        Op::PutSchema(_) | Op::DeleteSchema { .. } => "a schema",
        Op::EndGray(_) | Op::JudgeGray { .. } => "the end of a gray release",
        Op::ReportConfig { .. } => "a report",
        Op::PutAlarm { .. }
        | Op::DeleteAlarm { .. }
        | Op::JudgeAlarm { .. }
        | Op::NotePost { .. } => "an alarm",
        Op::BeginSaga(_)
        | Op::SubmitSaga { .. }
        | Op::AbortSaga { .. }
        | Op::RegisterBranch { .. }
        | Op::AdvanceSagas { .. }
        | Op::OrderSaga { .. } => "a global transaction",
        _ => return Ok(()),
    };
    let allowed = "registrations, releases and rollbacks of configuration, counters, and locks \
                   that are not waited for";
    Err(invalid("write", what, allowed))
}
