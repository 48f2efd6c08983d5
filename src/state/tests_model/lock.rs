//! Locks. The list holds requests in the order in which they were made.

use super::*;

impl Model {
    /// The first holds the lock.
    pub fn line(&self, namespace: &str, lock: &str) -> Vec<&LockRequest> {
        self.locks.iter().filter(|r| *r.namespace == *namespace && *r.lock == *lock).collect()
    }

    pub fn token(&self, lock: &LockName) -> u64 {
        let line = self.line(&lock.namespace, &lock.lock);
        line.first().map_or(0, |request| request.token.unwrap())
    }

    /// Of the last one in the line.
    pub fn ticket(&self, lock: &LockName) -> u64 {
        let line = self.line(&lock.namespace, &lock.lock);
        line.last().map_or(0, |request| request.ticket)
    }

    pub(super) fn lock_names(&self, namespace: &str) -> Vec<&str> {
        let own = self.locks.iter().filter(|request| *request.namespace == *namespace);
        let mut names: Vec<&str> = own.map(|request| &*request.lock).collect();
        names.sort();
        names.dedup();
        names
    }

    pub(super) fn acquire(&mut self, claim: Claim, place: &Place) -> Answer {
        let Claim { lock: LockName { namespace, lock }, holder, value, wait } = claim;
        self.needs_namespace(&namespace)?;
        if !self.sessions.iter().any(|s| s.id == holder.session) {
            return Err(Refusal::SessionExpired { session: holder.session });
        }
        let line = self.line(&namespace, &lock);
        let stands = line.iter().position(|r| is_of(r, &holder));
        let held = || line.first().map(|first| (first.session, first.token.unwrap()));
        match (stands, held()) {
            (Some(0), Some((_, token))) => return Ok(Reply::LockAcquired { token }),
            (_, Some((owner, token))) if !wait => return Err(Refusal::LockHeld { owner, token }),
            (Some(at), _) => {
                return Ok(Reply::LockQueued { ticket: line[at].ticket, ahead: at as u64 });
            }
            (None, _) => {}
        }
        let ahead = line.len();
        if ahead == limits::LOCK_REQUESTS {
            return Err(too_many("requests for a lock", 10_000));
        }
        if ahead == 0 && self.lock_names(&namespace).len() == limits::LOCKS {
            return Err(too_many("locks of a namespace", 100_000));
        }
        let alone = ahead == 0;
        self.locks.push(LockRequest {
            namespace: namespace.into(),
            lock: lock.into(),
            ticket: place.revision,
            session: holder.session,
            holder: holder.name,
            value,
            token: if alone { Some(place.revision) } else { None },
            requested_at_ms: place.now_ms,
            acquired_at_ms: if alone { Some(place.now_ms) } else { None },
            mod_revision: place.revision,
        });
        if alone {
            Ok(Reply::LockAcquired { token: place.revision })
        } else {
            Ok(Reply::LockQueued { ticket: place.revision, ahead: ahead as u64 })
        }
    }

    pub(super) fn release(&mut self, name: &LockName, by: &Leaving, place: &Place) -> Answer {
        let line = self.line(&name.namespace, &name.lock);
        let gone = match by {
            Leaving::Holder(holder) => line.into_iter().find(|r| is_of(r, holder)),
            Leaving::Token(token) => line.into_iter().find(|r| r.token == Some(*token)),
            Leaving::Place(ticket) => {
                line.into_iter().find(|r| r.ticket == *ticket && r.token.is_none())
            }
        };
        let Some(gone) = gone.cloned() else { return Ok(Reply::LockReleased { released: false }) };
        self.locks.retain(|r| *r != gone);
        self.pass_on(place);
        Ok(Reply::LockReleased { released: true })
    }

    pub(super) fn update_lock(
        &mut self,
        name: &LockName,
        holder: &Holder,
        value: String,
        place: &Place,
    ) -> Answer {
        let LockName { namespace, lock } = name;
        let first =
            self.locks.iter_mut().find(|r| *r.namespace == **namespace && *r.lock == **lock);
        let Some(first) = first else {
            let name = format!("{namespace}/{lock}");
            return Err(Refusal::NotFound { kind: Kind::Lock, name });
        };
        if !is_of(first, holder) {
            let (owner, token) = (first.session, first.token.unwrap());
            return Err(Refusal::LockHeld { owner, token });
        }
        let changed = first.value != value;
        if changed {
            first.value = value;
            first.mod_revision = place.revision;
        }
        Ok(Reply::LockUpdated { changed })
    }

    pub(super) fn leave_locks(&mut self, session: u64, place: &Place) {
        self.locks.retain(|request| request.session != session);
        self.pass_on(place);
    }

    /// Whoever is the first of a line now holds the lock.
    fn pass_on(&mut self, place: &Place) {
        for at in 0..self.locks.len() {
            let (before, rest) = self.locks.split_at_mut(at);
            let request = &mut rest[0];
            let same =
                |r: &LockRequest| (&r.namespace, &r.lock) == (&request.namespace, &request.lock);
            if !before.iter().any(same) && request.token.is_none() {
                request.token = Some(place.revision);
                request.acquired_at_ms = Some(place.now_ms);
                request.mod_revision = place.revision;
            }
        }
    }
}

fn is_of(request: &LockRequest, holder: &Holder) -> bool {
    (request.session, &request.holder) == (holder.session, &holder.name)
}
