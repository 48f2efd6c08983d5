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

mod catalog;
pub mod command;
mod member;
mod memory;
mod packed;
mod read;
mod registry;
mod session;
pub mod table;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_bytes;
#[cfg(test)]
mod tests_model;
#[cfg(test)]
mod tests_properties;

pub use command::*;
pub use memory::SessionEntry;
pub use read::{Counts, Discovery, Filter, ServiceView};
pub use table::*;

use memory::Tables;

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
        for bytes in &entry.commands {
            let mut changes = Vec::new();
            outcomes.push(match Command::decode(bytes) {
                Ok(command) => self.execute(command, entry.term, &mut changes),
                Err(_) => self.outcome(Err(Refusal::Undecodable)),
            });
            if !changes.is_empty() {
                let Meta { revision, now_ms } = self.meta;
                events.push(Event { revision, at_ms: now_ms, changes });
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
    /// When the records contradict each other: whoever stored them has verified their bytes, so that
    /// only a defect of ours is left as a reason.
    pub fn restore<E>(
        records: impl IntoIterator<Item = Result<(Key, Record), E>>,
    ) -> Result<State, E> {
        let mut state = State::default();
        for record in records {
            match record? {
                (Key::Meta, Record::Meta(meta)) => state.meta = meta,
                (key, record) => state.tables.restore(key, record),
            }
        }
        state.tables.assert_restored();
        Ok(state)
    }

    /// The wrapping sum of [`record_hash`] over all records, and their number. Encodes them all.
    pub fn digest(&self) -> (u64, u64) {
        self.records().fold((0, 0), |(digest, count), (key, record)| {
            (digest.wrapping_add(record_hash(&key.encode(), &record.encode())), count + 1)
        })
    }

    /// Exactly once around [`State::run`].
    fn execute(&mut self, command: Command<&str>, term: u64, changes: &mut Vec<Change>) -> Outcome {
        let Some(request) = command.request else {
            return self.run(command.op, term, changes);
        };
        match self.tables.ledger.admit(&request) {
            Ok(None) => {
                let outcome = self.run(command.op, term, changes);
                self.tables.ledger.keep_reply(&request, &outcome, changes);
                outcome
            }
            Ok(Some(stored)) => Outcome { duplicate: true, ..stored },
            Err(refusal) => self.outcome(Err(refusal)),
        }
    }

    fn run(&mut self, op: Op<&str>, term: u64, changes: &mut Vec<Change>) -> Outcome {
        let Meta { revision, now_ms } = self.meta;
        let at = At { term, now_ms, revision: revision + 1 };
        let tables = &mut self.tables;
        let result = match op {
            Op::OpenSession { ttl_ms, client } => {
                tables.ledger.open_session(ttl_ms, client, &at, changes)
            }
            Op::CloseSession { session } => tables.close_session(session, changes),
            Op::ExpireSessions { term, sessions } => {
                tables.expire_sessions(term, &sessions, &at, changes)
            }
            Op::Reap { instances } => tables.reap(&instances, &at, changes),
            Op::Register(registration) => tables.register(*registration, &at, changes),
            Op::Deregister { name, expected_mod_revision } => {
                tables.deregister(&name, expected_mod_revision, changes)
            }
            Op::UpdateInstance(patch) => tables.update_instance(*patch, &at, changes),
            Op::PutService(settings) => tables.put_service(*settings, &at, changes),
            Op::DeleteService { namespace, name } => {
                tables.delete_service(namespace, name, changes)
            }
            Op::PutNamespace { name, description } => {
                tables.put_namespace(name, description, &at, changes)
            }
            Op::DeleteNamespace { name } => tables.delete_namespace(name, changes),
            Op::AdmitMember { node, store } => tables.members.admit(node, store, changes),
            Op::RetireMember { node } => tables.members.retire(node, changes),
        };
        assert!(
            result.is_ok() || changes.is_empty(),
            "a refused command ({result:?}) made {} changes",
            changes.len()
        );
        if changes.iter().any(|change| !matches!(change.key, Key::Member { .. })) {
            self.meta.revision = at.revision;
        }
        self.outcome(result)
    }

    fn outcome(&self, result: Result<Reply, Refusal>) -> Outcome {
        Outcome { revision: self.meta.revision, duplicate: false, result }
    }
}
