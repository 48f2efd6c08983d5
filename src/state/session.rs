//! Sessions, which keep instances alive and scope exactly-once, and the stored replies.
//!
//! A session ends in one of two ways. Closing it deregisters its instances at once. Expiry, decided
//! by the leader's keeper, turns them critical and orphans them: discovery stops handing them out, and
//! the keeper reaps them when their service's `deregister_after_ms` has passed, so that a process that
//! comes back in time finds its place. Registering an orphan again adopts it. Locks are released either
//! way, and what the session reported of configuration is forgotten, unless a gray release needs it
//! to tell that clients were lost.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;

use super::At;
use super::command::{Outcome, Refusal, Reply, RequestId, check_request};
use super::journal::{Journal, Written};
use super::memory::{Ledger, ServiceName, Tables};
use super::table::{Class, Health, Key, Record, Session, StoredReply};
use crate::limits;

impl Ledger {
    /// Whether a write with this id is to be carried out: Ok(None) = yes, Ok(Some) = it was, with this
    /// outcome. What is refused here is not stored: the client sends it again under the same id.
    pub fn admit(&self, request: &RequestId) -> Result<Option<Outcome>, Refusal> {
        let &RequestId { session, sequence, lowest_unacknowledged } = request;
        let Some(entry) = self.sessions.get(&session) else {
            return Err(Refusal::SessionExpired { session });
        };
        check_request(request)?;
        if let Some(stored) = entry.replies.get(&sequence) {
            return Ok(Some(stored.outcome.clone()));
        }
        if sequence < entry.lowest {
            return Err(Refusal::SequenceForgotten { sequence, lowest: entry.lowest });
        }
        let limit = limits::SESSION_IN_FLIGHT;
        if entry.replies.len() >= limit {
            // What the write itself acknowledges makes room for it.
            let lowest = entry.lowest.max(lowest_unacknowledged);
            let acknowledged = entry.replies.range(..lowest).count();
            if entry.replies.len() - acknowledged >= limit {
                return Err(Refusal::TooManyInFlight { limit: limit as u64 });
            }
        }
        Ok(None)
    }

    /// Stores the outcome of an admitted write and drops what it acknowledges. A write that ended its
    /// own session leaves nothing behind.
    pub fn keep_reply(&mut self, request: &RequestId, outcome: &Outcome, journal: &mut Journal) {
        let &RequestId { session, sequence, lowest_unacknowledged } = request;
        let Some(entry) = self.sessions.get_mut(&session) else { return };
        let reply = Arc::new(StoredReply { lowest_unacknowledged, outcome: outcome.clone() });
        let before = entry.replies.insert(sequence, reply.clone());
        assert!(before.is_none(), "sequence {sequence} of session {session} ran twice: {before:?}");
        self.replies += 1;
        let key = Key::Reply { session, sequence };
        journal.push(Written::put(key, Record::Reply(reply), None));

        if lowest_unacknowledged <= entry.lowest {
            return;
        }
        // It is at most `sequence`, so the reply that carries it is not among those dropped and
        // `lowest` stays the greatest of the stored ones.
        entry.lowest = lowest_unacknowledged;
        while let Some(first) = entry.replies.first_entry()
            && *first.key() < lowest_unacknowledged
        {
            let key = Key::Reply { session, sequence: *first.key() };
            self.replies -= 1;
            journal.push(Written::removed(key, Record::Reply(first.remove())));
        }
    }

    /// The id of a session is the revision that opens it.
    pub fn open_session(
        &mut self,
        ttl_ms: u64,
        client: &str,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        if self.sessions.len() >= limits::SESSIONS {
            let allowed = limits::SESSIONS as u64;
            return Err(Refusal::LimitReached { limit: "sessions of the cluster".into(), allowed });
        }
        let id = at.revision;
        let session = Session { id, ttl_ms, client: client.into(), opened_at_ms: at.now_ms };
        journal.push(self.put_session(session));
        Ok(Reply::SessionOpened { session: id, ttl_ms })
    }
}

impl Tables {
    pub fn close_session(
        &mut self,
        session: u64,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        if !self.ledger.sessions.contains_key(&session) {
            return Ok(Reply::SessionClosed { closed: false, removed_instances: 0 });
        }
        let held = self.held_by(session);
        for (service, id) in &held {
            let gone = self.remove_instance(&service.namespace, &service.name, id);
            journal.push(gone.expect("what a session holds exists"));
            journal.extend(self.note_removal(&service.namespace, Class::Service, at.revision));
        }
        self.release_locks_of(&[session], at, journal);
        self.forget_reports_of(session, None, journal);
        self.ledger.remove_session(session, journal);
        Ok(Reply::SessionClosed { closed: true, removed_instances: held.len() as u64 })
    }

    /// `term` is the one in which the keeper decided.
    pub fn expire_sessions(
        &mut self,
        term: u64,
        sessions: &[u64],
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        if term != at.term {
            return Err(Refusal::StaleTerm { proposed: term, current: at.term });
        }
        let mut seen = BTreeSet::new();
        let lives = |id: &&u64| self.ledger.sessions.contains_key(id) && seen.insert(**id);
        let sessions: Vec<u64> = sessions.iter().filter(lives).copied().collect();
        self.release_locks_of(&sessions, at, journal);
        for session in &sessions {
            self.expire_session(*session, at, journal);
        }
        Ok(Reply::SessionsExpired { expired: sessions.len() as u64 })
    }

    fn expire_session(&mut self, session: u64, at: &At, journal: &mut Journal) {
        let reason: Arc<str> = format!("session {session} expired").into();
        for (service, id) in self.held_by(session) {
            let table = self
                .namespaces
                .get_mut(&service.namespace)
                .and_then(|namespace| namespace.services.get_mut(&service.name))
                .expect("what a session holds has a service");
            let held = table.instances.get(&id).expect("what a session holds exists");
            let mut instance = (**held).clone();
            instance.set_health(Health::Critical, at);
            instance.orphaned_at_ms = NonZeroU64::new(at.now_ms.max(1));
            instance.stamp(reason.clone(), at);
            journal.push(table.put_instance(&mut self.ledger, instance));
        }
        self.forget_reports_of(session, Some(at.now_ms), journal);
        self.ledger.remove_session(session, journal);
    }

    fn held_by(&self, session: u64) -> Vec<(Arc<ServiceName>, Arc<str>)> {
        self.ledger.held_by(session).map(|(service, id)| (service.clone(), id.clone())).collect()
    }
}
