//! An acknowledged write took place, once, at the revision it was told, in real-time order; a write
//! that failed definitely did not take place.

use std::collections::{BTreeMap, BTreeSet};

use quorate::state::{Change, InstanceName, Key, Op, Outcome, Record, Refusal, Reply, RequestId};

use super::Oracle;
use super::configs::item_key;

#[derive(Debug, Default)]
pub struct Writes {
    /// Marks of writes that failed definitely.
    failed: BTreeSet<String>,
    /// Which request ids were acknowledged, at which revision.
    acknowledged: BTreeMap<(u64, u64), u64>,
}

/// A write, from its first attempt to its answer.
#[derive(Debug, Clone)]
pub struct Write {
    pub tag: String,
    pub op: Op,
    pub request: Option<RequestId>,
    /// What was known to clients when it began.
    pub floor: u64,
    /// An earlier attempt may have taken place.
    pub maybe: bool,
}

impl Write {
    /// The session in which it was numbered has ended before this attempt: what became of an earlier
    /// one is forgotten.
    fn session_is_gone(&self, outcome: &Outcome) -> bool {
        let Some(request) = &self.request else { return false };
        let gone = Err(Refusal::SessionExpired { session: request.session });
        outcome.result == gone
    }
}

pub fn instance_key(name: &InstanceName) -> Key {
    Key::Instance {
        namespace: name.namespace.as_str().into(),
        service: name.service.as_str().into(),
        id: name.id.as_str().into(),
    }
}

fn mod_revision(record: Option<&Record>) -> u64 {
    match record {
        Some(Record::Instance(instance)) => instance.mod_revision,
        Some(Record::Service(service)) => service.mod_revision,
        Some(
            Record::Meta(_)
            | Record::Namespace(_)
            | Record::Session(_)
            | Record::Reply(_)
            | Record::Member(_)
            | Record::Config(_)
            | Record::Release(_)
            | Record::Schema(_)
            | Record::Report(_)
            | Record::Counter(_)
            | Record::Lock(_)
            | Record::Removal(_)
            | Record::Alarm(_)
            | Record::Saga(_),
        )
        | None => 0,
    }
}

impl Oracle {
    /// A client got the answer to its write.
    pub fn acknowledged(&mut self, write: &Write, outcome: &Outcome) {
        self.counts.acknowledged += 1;
        self.counts.duplicates += u64::from(outcome.duplicate);
        if write.session_is_gone(outcome) && !write.maybe {
            self.writes.failed.insert(write.tag.clone());
        }
        self.addition_acknowledged(write, outcome);
        let result = self.is_true(write, outcome);
        self.check(result.map_err(|why| format!("write {write:?} got {outcome:?}: {why}")));
        self.seen(outcome.revision);
    }

    fn is_true(&mut self, write: &Write, outcome: &Outcome) -> Result<(), String> {
        let revision = outcome.revision;
        if revision < write.floor {
            return Err(format!("revision {} was known when it began", write.floor));
        }
        if revision > self.history.revision {
            return Err(format!("no node has applied more than {}", self.history.revision));
        }
        if let Some(RequestId { session, sequence, .. }) = write.request {
            if let Some(stored) = self.history.replies.get(&(session, sequence)) {
                let forgotten = write.maybe && write.session_is_gone(outcome);
                if !forgotten && (stored.revision, &stored.result) != (revision, &outcome.result) {
                    return Err(format!("the answer that was stored is {stored:?}"));
                }
            } else if outcome.result.is_ok() && !matches!(write.op, Op::CloseSession { .. }) {
                return Err("nothing was stored for its id".to_owned());
            }
            let before = self.writes.acknowledged.insert((session, sequence), revision);
            if let Some(before) = before.filter(|before| *before != revision) {
                return Err(format!("it was acknowledged at revision {before}"));
            }
        }
        let key = match &write.op {
            Op::Register(registration) => Some(instance_key(&registration.name)),
            Op::UpdateInstance(patch) => Some(instance_key(&patch.name)),
            Op::Deregister { name, .. } => Some(instance_key(name)),
            Op::PutService(settings) => Some(Key::Service {
                namespace: settings.namespace.as_str().into(),
                name: settings.name.as_str().into(),
            }),
            Op::DeleteService { namespace, name } => Some(Key::Service {
                namespace: namespace.as_str().into(),
                name: name.as_str().into(),
            }),
            Op::OpenSession { .. }
            | Op::CloseSession { .. }
            | Op::ExpireSessions { .. }
            | Op::Reap { .. }
            | Op::PutNamespace { .. }
            | Op::DeleteNamespace { .. }
            | Op::AdmitMember { .. }
            | Op::RetireMember { .. }
            | Op::PublishConfig(_)
            | Op::DeleteConfig(_)
            | Op::RollbackConfig(_)
            | Op::PutSchema(_)
            | Op::DeleteSchema { .. }
            | Op::EndGray(_)
            | Op::JudgeGray { .. }
            | Op::ReportConfig { .. }
            | Op::AddCounter(_)
            | Op::SetCounter(_)
            | Op::ResetCounter { .. }
            | Op::DeleteCounter { .. }
            | Op::AcquireLock(_)
            | Op::ReleaseLock { .. }
            | Op::UpdateLock { .. }
            | Op::PutAlarm { .. }
            | Op::DeleteAlarm { .. }
            | Op::JudgeAlarm { .. }
            | Op::BeginSaga(_)
            | Op::SubmitSaga { .. }
            | Op::AbortSaga { .. }
            | Op::RegisterBranch { .. }
            | Op::AdvanceSagas { .. }
            | Op::OrderSaga { .. }
            | Op::NotePost { .. }
            | Op::JudgeHealth { .. }
            | Op::GuardedTxn { .. }
            | Op::Txn(_) => None,
        };
        if let Some(result) = self.is_true_of_center(write, outcome) {
            return result;
        }
        let history = &self.history;
        let record = key.as_ref().and_then(|key| history.at(key, revision));
        let gone = |key: Key| history.changes(revision).contains(&Change::new(key, None));
        let new = |what: &str| self.is_new(write, revision, what);
        match &outcome.result {
            Ok(Reply::Registered { mod_revision, .. }) if *mod_revision != revision => {
                Err(format!("a registration with a new mark got revision {mod_revision}"))
            }
            Ok(Reply::Registered { .. }) => new("registered"),
            Ok(Reply::InstanceUpdated(_)) => new("updated"),
            Ok(Reply::ServicePut { .. }) => new("put"),
            Ok(Reply::Deregistered { removed: true } | Reply::ServiceDeleted { removed: true }) => {
                match key {
                    Some(key) if gone(key.clone()) => Ok(()),
                    _ => Err("nothing was removed at its revision".to_owned()),
                }
            }
            Ok(Reply::Deregistered { removed: false }) => match record {
                Some(record) => Err(format!("there was {record:?}")),
                None => Ok(()),
            },
            Ok(Reply::SessionClosed { .. }) => match &write.op {
                Op::CloseSession { session }
                    if history.at(&Key::Session { id: *session }, revision).is_none() =>
                {
                    Ok(())
                }
                _ => Err("the session was there at its revision".to_owned()),
            },
            Ok(Reply::SessionOpened { session, .. }) => {
                match history.at(&Key::Session { id: *session }, *session) {
                    Some(_) => Ok(()),
                    None => Err("there is no such session".to_owned()),
                }
            }
            Ok(
                Reply::ServiceDeleted { removed: false }
                | Reply::SessionsExpired { .. }
                | Reply::Reaped { .. }
                | Reply::NamespacePut { .. }
                | Reply::NamespaceDeleted { .. }
                | Reply::MemberAdmitted { .. }
                | Reply::MemberRetired { .. },
            ) => Ok(()),
            Ok(
                Reply::ConfigPublished { .. }
                | Reply::ConfigDeleted { .. }
                | Reply::SchemaPut { .. }
                | Reply::SchemaDeleted { .. }
                | Reply::GrayEnded { .. }
                | Reply::GrayJudged { .. }
                | Reply::ConfigReported { .. }
                | Reply::CounterChanged { .. }
                | Reply::CounterDeleted { .. }
                | Reply::LockAcquired { .. }
                | Reply::LockQueued { .. }
                | Reply::LockReleased { .. }
                | Reply::LockUpdated { .. }
                | Reply::Txn { .. }
                | Reply::Guarded { .. }
                | Reply::AlarmPut { .. }
                | Reply::AlarmDeleted { .. }
                | Reply::AlarmJudged { .. }
                | Reply::SagaBegun { .. }
                | Reply::SagaTurned { .. }
                | Reply::BranchRegistered { .. }
                | Reply::SagasAdvanced { .. }
                | Reply::PostNoted { .. }
                | Reply::HealthJudged { .. },
            ) => Err("no client asked for anything of the kind".to_owned()),
            Err(Refusal::CompareFailed { current, .. }) => match mod_revision(record) == *current {
                true => Ok(()),
                false => Err(format!("there was {record:?}")),
            },
            Err(Refusal::NotFound { .. }) => match record {
                Some(record) => Err(format!("there was {record:?}")),
                None => Ok(()),
            },
            Err(Refusal::SessionExpired { session }) => {
                match history.at(&Key::Session { id: *session }, revision) {
                    Some(_) => Err("the session was there".to_owned()),
                    None => Ok(()),
                }
            }
            Err(Refusal::OwnedByAnother { .. } | Refusal::InUse { .. }) => Ok(()),
            Err(
                Refusal::Invalid { .. }
                | Refusal::SequenceForgotten { .. }
                | Refusal::TooManyInFlight { .. }
                | Refusal::LimitReached { .. }
                | Refusal::StaleTerm { .. }
                | Refusal::Undecodable
                | Refusal::SchemaChanged { .. }
                | Refusal::ValueDiffers { .. }
                | Refusal::OutOfBounds { .. }
                | Refusal::LockHeld { .. }
                | Refusal::SagaIs { .. }
                | Refusal::InStep { .. },
            ) => Err("no client asked for anything of the kind".to_owned()),
        }
    }

    /// The write took place at a revision that nobody knew when it began.
    fn is_new(&self, write: &Write, revision: u64, what: &str) -> Result<(), String> {
        if revision <= write.floor {
            return Err(format!("revision {} was known when it began", write.floor));
        }
        match self.history.tags.get(&write.tag) {
            Some(at) if *at == revision => Ok(()),
            at => Err(format!("{what}, but its mark is at revision {at:?}")),
        }
    }

    /// What is said of counters, configuration, locks and transactions, global ones too; None of anything else.
    fn is_true_of_center(
        &mut self,
        write: &Write,
        outcome: &Outcome,
    ) -> Option<Result<(), String>> {
        let Outcome { revision, result, .. } = outcome;
        let revision = *revision;
        if let Some(told) = self.saga_stands(&write.op, revision, result) {
            return Some(told);
        }
        Some(match (&write.op, result) {
            (_, Err(Refusal::SessionExpired { .. })) => return None,
            (Op::AddCounter(_), Ok(Reply::CounterChanged { value, changed: true, .. })) => {
                self.was_added(&write.op, revision, *value)
            }
            (
                Op::PublishConfig(publication),
                Ok(Reply::ConfigPublished { version, changed: true }),
            ) => self
                .is_new(write, revision, "published")
                .and_then(|()| self.was_published(publication, revision, *version)),
            (Op::PublishConfig(publication), Err(Refusal::CompareFailed { current, .. })) => {
                self.counts.conflicts += 1;
                let found = self.history.version_at(&item_key(&publication.name), revision);
                match found == *current && publication.expected_version != Some(found) {
                    true => Ok(()),
                    false => Err(format!("its item was at version {found}")),
                }
            }
            (Op::AcquireLock(_) | Op::ReleaseLock { .. }, Ok(reply)) => {
                let waits = matches!(reply, Reply::LockQueued { .. });
                self.counts.locks_awaited += u64::from(waits);
                self.stands_in_line(&write.op, revision, reply)
            }
            (Op::AcquireLock(_), Err(refusal)) => self.lock_was_held(&write.op, revision, refusal),
            (Op::Txn(txn), Ok(Reply::Txn { succeeded, replies })) => {
                self.counts.transactions += 1;
                let new = match succeeded {
                    true => self.is_new(write, revision, "carried out"),
                    false => Ok(()),
                };
                new.and_then(|()| self.was_carried_out(txn, revision, *succeeded, replies))
            }
            (Op::Txn(txn), Err(Refusal::InStep { step, refusal })) => {
                self.was_taken_back(txn, revision, *step, refusal)
            }
            _ => return None,
        })
    }

    /// A client has given up its write.
    pub fn gave_up(&mut self, write: &Write) {
        self.counts.unknown += u64::from(write.maybe);
        match write.maybe {
            true => self.addition_unknown(write),
            false => {
                self.writes.failed.insert(write.tag.clone());
            }
        }
    }

    /// At the end: what failed definitely is not there.
    pub fn failed_writes_are_not_there(&mut self) {
        let there = self.writes.failed.iter().find_map(|tag| {
            let revision = self.history.tags.get(tag)?;
            Some(format!("write {tag} failed definitely and took place at revision {revision}"))
        });
        self.check(there.map_or(Ok(()), Err));
    }
}
