//! The core: the registry as a pure function of its log. [`State::apply`] is total, synchronous and
//! deterministic: two states that were given the same entries in the same order are equal to the byte.
//! Its clock is the greatest time stamp of the entries so far; expiry and reaping are commands in the
//! log. Deliberately absent: I/O, clocks, threads, randomness, hashed maps whose order could be seen,
//! and the limits of single fields, which [`Command::check`] keeps before a command reaches the log.
//!
//! Invariants, beside those of `memory`:
//! - the revision grows by one per command that changed something in the registry: not with a
//!   stored reply or a member; it is the greatest
//!   `mod_revision` and session id ever given out;
//! - a refused command has written nothing but, for exactly-once, its stored reply.

mod alarm;
mod barrier;
mod blob;
mod catalog;
pub mod command;
mod config;
mod counter;
mod health;
mod journal;
mod lock;
mod look_ahead;
mod member;
mod memory;
mod packed;
mod read;
mod registry;
mod saga;
mod scope;
mod session;
pub mod table;
mod txn;
mod versions;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_bytes;
#[cfg(test)]
mod tests_center;
#[cfg(test)]
mod tests_model;
#[cfg(test)]
mod tests_properties;

pub use command::*;
pub use config::Verdict;
pub use counter::window_ms;
pub use look_ahead::{look_at_all, look_at_names, look_at_whole};
pub use memory::{ServiceVersion, SessionEntry};
pub use read::*;
pub use scope::{Match, Scope};
pub use table::*;
pub use versions::Versions;

use journal::Journal;
use memory::{Restoration, Tables};

use crate::limits;

/// The whole replicated state.
#[derive(Debug, Default)]
pub struct State {
    meta: Meta,
    tables: Tables,
}

/// All that one command wrote, in the order of the writes. The record of [`Key::Meta`] is not among
/// it: [`Applied::meta`] is its value after the entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The revision of the command; of a command that wrote a stored reply or a member only, the
    /// current one.
    pub revision: u64,
    pub at_ms: u64,
    /// Never empty.
    pub changes: Vec<Change>,
}

/// What an entry did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// One per command, in order.
    pub outcomes: Vec<Outcome>,
    /// One per command that wrote anything, in order.
    pub events: Vec<Event>,
    /// After the entry.
    pub meta: Meta,
}

/// Where in the log a command stands, as far as it may know.
struct At {
    term: u64,
    /// The clock of the state.
    now_ms: u64,
    /// The revision that the command gets if it changes anything.
    revision: u64,
}

impl State {
    /// Carries out the commands of one log entry, in order.
    pub fn apply(&mut self, entry: &Entry<'_>) -> Applied {
        self.meta.now_ms = self.meta.now_ms.max(entry.at_ms);
        let mut outcomes = Vec::with_capacity(entry.commands.len());
        let mut events = Vec::with_capacity(entry.commands.len());
        for some in entry.commands.chunks(limits::LOOK_AHEAD) {
            let commands: Vec<_> = some.iter().map(|bytes| Command::decode(bytes)).collect();
            self.tables.look_ahead(commands.iter().flatten());
            for command in commands {
                let mut journal = Journal::default();
                outcomes.push(match command {
                    Ok(command) => self.execute(command, entry.term, &mut journal),
                    Err(_) => self.outcome(Err(Refusal::Undecodable)),
                });
                if !journal.is_empty() {
                    let Meta { revision, now_ms } = self.meta;
                    events.push(Event { revision, at_ms: now_ms, changes: journal.into_changes() });
                }
            }
        }
        Applied { outcomes, events, meta: self.meta }
    }

    pub fn meta(&self) -> Meta {
        self.meta
    }

    pub fn revision(&self) -> u64 {
        self.meta.revision
    }

    /// Every record in the order of the keys, [`Key::Meta`] first. Two states with equal records
    /// behave alike from then on.
    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> + '_ {
        std::iter::once((Key::Meta, Record::Meta(self.meta))).chain(self.tables.records())
    }

    /// The inverse of [`State::records`].
    ///
    /// # Panics
    /// When the records contradict each other. Of those whose bytes were found right that would be a
    /// defect of ours.
    pub fn restore<E>(
        records: impl IntoIterator<Item = Result<(Key, Record), E>>,
    ) -> Result<State, E> {
        let (mut meta, mut restoration) = (Meta::default(), Restoration::default());
        for record in records {
            match record? {
                (Key::Meta, Record::Meta(found)) => meta = found,
                (key, record) => restoration.put(key, record),
            }
        }
        Ok(State { meta, tables: restoration.finish() })
    }

    /// The wrapping sum of [`record_hash`] over all records, and their number. Encodes them all.
    pub fn digest(&self) -> (u64, u64) {
        self.records().fold((0, 0), |(digest, count), (key, record)| {
            (digest.wrapping_add(record_hash(&key.encode(), &record.encode())), count + 1)
        })
    }

    /// Exactly once around [`State::run`].
    fn execute(&mut self, command: Command<&str>, term: u64, journal: &mut Journal) -> Outcome {
        let Some(request) = command.request else {
            return self.run(command.op, term, journal);
        };
        match self.tables.ledger.admit(&request) {
            Ok(None) => {
                let outcome = self.run(command.op, term, journal);
                if !outcome.result.as_ref().is_err_and(Refusal::is_passing) {
                    self.tables.ledger.keep_reply(&request, &outcome, journal);
                }
                outcome
            }
            Ok(Some(stored)) => Outcome { duplicate: true, ..stored },
            Err(refusal) => self.outcome(Err(refusal)),
        }
    }

    fn run(&mut self, op: Op<&str>, term: u64, journal: &mut Journal) -> Outcome {
        let Meta { revision, now_ms } = self.meta;
        let at = At { term, now_ms, revision: revision + 1 };
        let result = match op {
            Op::Txn(txn) => self.tables.txn(*txn, &at, journal),
            Op::GuardedTxn { barrier, txn } => {
                self.tables.guarded_txn(&barrier, *txn, &at, journal)
            }
            op => self.tables.carry_out(op, &at, journal),
        };
        assert!(
            result.is_ok() || journal.is_empty(),
            "a refused command ({result:?}) made {} changes",
            journal.changes().len()
        );
        if journal.changes().iter().any(|change| !matches!(change.key, Key::Member { .. })) {
            self.meta.revision = at.revision;
        }
        self.outcome(result)
    }

    fn outcome(&self, result: Result<Reply, Refusal>) -> Outcome {
        Outcome { revision: self.meta.revision, duplicate: false, result }
    }
}

impl Tables {
    /// Any command but a transaction. What is refused has written nothing.
    fn carry_out(
        &mut self,
        op: Op<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        match op {
            Op::OpenSession { ttl_ms, client } => {
                self.ledger.open_session(ttl_ms, client, at, journal)
            }
            Op::CloseSession { session } => self.close_session(session, at, journal),
            Op::ExpireSessions { term, sessions } => {
                self.expire_sessions(term, &sessions, at, journal)
            }
            Op::Reap { instances } => self.reap(&instances, at, journal),
            Op::Register(registration) => self.register(*registration, at, journal),
            Op::Deregister { name, expected_mod_revision } => {
                self.deregister(&name, expected_mod_revision, at, journal)
            }
            Op::UpdateInstance(patch) => self.update_instance(*patch, at, journal),
            Op::PutService(settings) => self.put_service(*settings, at, journal),
            Op::DeleteService { namespace, name } => {
                self.delete_service(namespace, name, at, journal)
            }
            Op::PutNamespace { name, description } => {
                self.put_namespace(name, description, at, journal)
            }
            Op::DeleteNamespace { name } => self.delete_namespace(name, journal),
            Op::AdmitMember { node, store } => self.members.admit(node, store, journal),
            Op::RetireMember { node } => self.members.retire(node, journal),
            Op::PublishConfig(publication) => self.publish(*publication, at, journal),
            Op::DeleteConfig(deletion) => self.delete_config(*deletion, at, journal),
            Op::RollbackConfig(rollback) => self.rollback(*rollback, at, journal),
            Op::PutSchema(schema) => self.put_schema(*schema, at, journal),
            Op::DeleteSchema { name } => self.delete_schema(&name, at, journal),
            Op::EndGray(decision) => self.end_gray(*decision, at, journal),
            Op::JudgeGray { name, rule, schema } => {
                self.judge_gray(&name, rule, schema, at, journal)
            }
            Op::ReportConfig { session, client, items } => {
                self.report(session, client, &items, at, journal)
            }
            Op::AddCounter(addition) => self.add_to_counter(*addition, at, journal),
            Op::SetCounter(setting) => self.set_counter(*setting, at, journal),
            Op::ResetCounter { name, expected } => self.reset_counter(&name, expected, at, journal),
            Op::DeleteCounter { name } => self.delete_counter(&name, at, journal),
            Op::AcquireLock(claim) => self.acquire_lock(*claim, at, journal),
            Op::ReleaseLock { lock, by } => self.release_lock(&lock, &by, at, journal),
            Op::UpdateLock { lock, holder, value } => {
                self.update_lock(&lock, &holder, value, at, journal)
            }
            Op::PutAlarm { name, rule } => self.put_alarm(&name, *rule, at, journal),
            Op::DeleteAlarm { name } => self.delete_alarm(&name, at, journal),
            Op::JudgeAlarm { name } => self.judge_alarm(&name, at, journal),
            Op::NotePost { name, transition, error } => {
                self.note_post(&name, transition, error, at, journal)
            }
            Op::JudgeHealth { verdicts } => self.judge_health(&verdicts, at, journal),
            Op::BeginSaga(begin) => self.begin_saga(*begin, at, journal),
            Op::SubmitSaga { name } => self.submit_saga(&name, at, journal),
            Op::AbortSaga { name, reason } => self.abort_saga(&name, reason, at, journal),
            Op::RegisterBranch { name, plan } => self.register_branch(&name, *plan, at, journal),
            Op::AdvanceSagas { epoch, steps } => self.advance_sagas(epoch, &steps, at, journal),
            Op::OrderSaga { name, order } => self.order_saga(&name, &order, at, journal),
            Op::Txn(_) | Op::GuardedTxn { .. } => unreachable!("transactions are not nested"),
        }
    }
}
