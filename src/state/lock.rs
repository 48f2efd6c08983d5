//! Locks: who holds one, and who is next.
//!
//! A lock is a line of requests in the order of their tickets, each of a session; the first holds it.
//! When its request ends, by release or with its session, the next one gets the lock in the same
//! command. The fencing token is the revision at which a holder got the lock: whoever gets it later has
//! a greater one, so what is protected can refuse a holder that does not know yet that it lost it.

use super::At;
use super::command::{Claim, Holder, Kind, Leaving, LockName, Refusal, Reply};
use super::config::limit;
use super::journal::Journal;
use super::memory::Tables;
use super::registry::existing;
use super::table::{Class, LockRequest};
use crate::limits;

impl Tables {
    /// Asked again by the same holder it says where that holder stands.
    pub fn acquire_lock(
        &mut self,
        claim: Claim<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let Claim { lock: LockName { namespace, lock }, holder, value, wait } = claim;
        let space = existing(self.namespaces.get_mut(namespace), namespace)?;
        if !self.ledger.sessions.contains_key(&holder.session) {
            return Err(Refusal::SessionExpired { session: holder.session });
        }
        let table = space.locks.get(lock);
        let owner = table.and_then(|table| table.first());
        let known = table.and_then(|table| table.of(holder.session, holder.name));
        if let Some(token) = known.and_then(|known| known.token) {
            return Ok(Reply::LockAcquired { token });
        }
        if let Some(owner) = owner
            && !wait
        {
            let token = owner.token.expect("the first of the line holds the lock");
            return Err(Refusal::LockHeld { owner: owner.session, token });
        }
        if let (Some(known), Some(table)) = (known, table) {
            let ahead = table.line().take_while(|other| other.ticket < known.ticket).count();
            return Ok(Reply::LockQueued { ticket: known.ticket, ahead: ahead as u64 });
        }
        let ahead = table.map_or(0, |table| table.line().len());
        if ahead >= limits::LOCK_REQUESTS {
            return Err(limit("requests for a lock", limits::LOCK_REQUESTS));
        }
        if ahead == 0 && space.locks.len() >= limits::LOCKS {
            return Err(limit("locks of a namespace", limits::LOCKS));
        }
        let got = ahead == 0;
        let (namespace, lock) = space.locks.names(lock);
        let request = LockRequest {
            namespace,
            lock,
            ticket: at.revision,
            session: holder.session,
            holder: holder.name.into(),
            value: value.into(),
            token: got.then_some(at.revision),
            requested_at_ms: at.now_ms,
            acquired_at_ms: got.then_some(at.now_ms),
            mod_revision: at.revision,
        };
        journal.push(space.locks.put(&mut self.ledger, request));
        Ok(match got {
            true => Reply::LockAcquired { token: at.revision },
            false => Reply::LockQueued { ticket: at.revision, ahead: ahead as u64 },
        })
    }

    pub fn release_lock(
        &mut self,
        lock: &LockName<&str>,
        by: &Leaving<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let table =
            self.namespaces.get(lock.namespace).and_then(|space| space.locks.get(lock.lock));
        let request = table.and_then(|table| match by {
            Leaving::Holder(holder) => table.of(holder.session, holder.name),
            Leaving::Token(token) => table.first().filter(|first| first.token == Some(*token)),
            Leaving::Place(ticket) => {
                table.line().find(|it| it.ticket == *ticket && it.token.is_none())
            }
        });
        let Some(ticket) = request.map(|request| request.ticket) else {
            return Ok(Reply::LockReleased { released: false });
        };
        self.end_request(lock.namespace, lock.lock, ticket, at, journal);
        Ok(Reply::LockReleased { released: true })
    }

    pub fn update_lock(
        &mut self,
        LockName { namespace, lock }: &LockName<&str>,
        holder: &Holder<&str>,
        value: &str,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let space = self.namespaces.get_mut(*namespace);
        let held = space.and_then(|space| {
            let first = space.locks.get(lock)?.first()?.clone();
            Some((&mut space.locks, first))
        });
        let Some((locks, first)) = held else {
            let name = format!("{namespace}/{lock}");
            return Err(Refusal::NotFound { kind: Kind::Lock, name });
        };
        if (first.session, &*first.holder) != (holder.session, holder.name) {
            let token = first.token.expect("the first of the line holds the lock");
            return Err(Refusal::LockHeld { owner: first.session, token });
        }
        let changed = first.value != value;
        if changed {
            let request = LockRequest {
                value: value.into(),
                mod_revision: at.revision,
                ..LockRequest::clone(&first)
            };
            journal.push(locks.put(&mut self.ledger, request));
        }
        Ok(Reply::LockUpdated { changed })
    }

    /// The sessions end. Their requests that wait go first, so that none is granted what ends with it.
    pub(super) fn release_locks_of(&mut self, sessions: &[u64], at: &At, journal: &mut Journal) {
        let requested = sessions.iter().flat_map(|session| self.ledger.requested_by(*session));
        let (held, waiting): (Vec<_>, Vec<_>) = requested.cloned().partition(|place| {
            let (namespace, lock, ticket) = place;
            let table = self.namespaces.get(namespace).and_then(|space| space.locks.get(lock));
            table.and_then(|table| table.first()).is_some_and(|first| first.ticket == *ticket)
        });
        for (namespace, lock, ticket) in waiting.into_iter().chain(held) {
            self.end_request(&namespace, &lock, ticket, at, journal);
        }
    }

    /// Removes a request that exists; the next of the line gets the lock when it was held by this one.
    fn end_request(
        &mut self,
        namespace: &str,
        lock: &str,
        ticket: u64,
        at: &At,
        journal: &mut Journal,
    ) {
        let space = self.namespaces.get_mut(namespace).expect("the request was found in it");
        let gone = space.locks.remove(&mut self.ledger, lock, ticket);
        journal.push(gone.expect("the request was found"));
        let next = space.locks.get(lock).and_then(|table| table.first()).cloned();
        if let Some(next) = next
            && next.token.is_none()
        {
            let request = LockRequest {
                token: Some(at.revision),
                acquired_at_ms: Some(at.now_ms),
                mod_revision: at.revision,
                ..LockRequest::clone(&next)
            };
            journal.push(space.locks.put(&mut self.ledger, request));
        }
        journal.extend(self.note_removal(namespace, Class::Lock, at.revision));
    }
}
