//! A lock has one holder, and its fencing tokens grow: at every revision in the line of requests, and at
//! every moment in what clients believe. A client believes that it holds a lock from the answer that says so
//! until it asks for the end of it, or its session may have expired.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate::state::{
    Change, Event, Holder, Key, Leaving, LockName, LockRequest, Op, Record, Refusal, Reply,
};

use super::Oracle;
use super::history::History;

#[derive(Debug, Default)]
pub struct Locks {
    /// The requests of each lock as of the last revision, with their tokens.
    lines: BTreeMap<String, BTreeMap<u64, Option<u64>>>,
    /// The last token that the state gave out, of each lock.
    tokens: BTreeMap<String, u64>,
    /// Who believes to hold which.
    believed: BTreeMap<String, Vec<Belief>>,
    /// The greatest token that a client knows, of each lock.
    known: BTreeMap<String, u64>,
}

#[derive(Debug)]
struct Belief {
    holder: Holder,
    token: u64,
}

impl History {
    /// The line of a lock as it was at a revision.
    fn line_at(&self, lock: &LockName, revision: u64) -> Vec<&LockRequest> {
        let LockName { namespace, lock } = lock;
        let [first, last] = [0, u64::MAX].map(|ticket| Key::Lock {
            namespace: namespace.as_str().into(),
            lock: lock.as_str().into(),
            ticket,
        });
        let requests = self.between(first, last, revision).filter_map(|record| match record {
            Record::Lock(request) => Some(&**request),
            _ => None,
        });
        requests.collect()
    }
}

impl Oracle {
    /// Something was applied for the first time.
    pub fn lines_have_one_head(&mut self, event: &Event) -> Result<(), String> {
        let mut touched = Vec::new();
        for Change { key, record, fresh: _ } in &event.changes {
            let Key::Lock { lock, ticket, .. } = key else { continue };
            let line = self.locks.lines.entry(lock.to_string()).or_default();
            match record {
                Some(Record::Lock(request)) => line.insert(*ticket, request.token),
                Some(_) | None => line.remove(ticket),
            };
            touched.push(lock.to_string());
        }
        for lock in touched {
            let line = &self.locks.lines[&lock];
            let mut tokens = line.values().copied();
            let first = tokens.next();
            if first == Some(None) || tokens.any(|token| token.is_some()) {
                return Err(format!("revision {}: {lock} has the line {line:?}", event.revision));
            }
            let Some(Some(token)) = first else { continue };
            let before = self.locks.tokens.insert(lock.clone(), token).unwrap_or(0);
            let is_new = token > before && token == event.revision;
            if token != before && !is_new {
                return Err(format!(
                    "revision {}: {lock} has the token {token} after {before}",
                    event.revision
                ));
            }
        }
        Ok(())
    }

    /// What clients know of the tokens of a lock.
    pub fn greatest_token(&self, lock: &str) -> u64 {
        self.locks.known.get(lock).copied().unwrap_or(0)
    }

    /// A client was told that it holds a lock. `before` is what clients knew when it asked.
    pub fn lock_held(
        &mut self,
        lock: &str,
        holder: &Holder,
        token: u64,
        before: u64,
        now: Duration,
    ) {
        if !self.is_alive(holder.session, now) {
            return;
        }
        self.counts.locks_held += 1;
        let mut believed = self.locks.believed.remove(lock).unwrap_or_default();
        believed.retain(|belief| self.is_alive(belief.holder.session, now));
        for other in &believed {
            if other.holder != *holder {
                self.violated(format!(
                    "{holder:?} holds {lock} with token {token}, and so does {other:?}"
                ));
            }
        }
        let again = believed.iter().any(|own| (&own.holder, own.token) == (holder, token));
        if token <= before && !again {
            self.violated(format!(
                "{holder:?} got {lock} with token {token}; {before} was known when it asked"
            ));
        }
        if !again {
            believed.push(Belief { holder: holder.clone(), token });
        }
        self.locks.believed.insert(lock.to_owned(), believed);
        let known = self.locks.known.entry(lock.to_owned()).or_default();
        *known = token.max(*known);
    }

    /// A client is about to give up its place.
    pub fn lock_left(&mut self, lock: &str, holder: &Holder) {
        if let Some(believed) = self.locks.believed.get_mut(lock) {
            believed.retain(|belief| belief.holder != *holder);
        }
    }

    /// An answer to one who wanted a lock, or wanted it no more.
    pub fn stands_in_line(&self, op: &Op, revision: u64, reply: &Reply) -> Result<(), String> {
        let (lock, holder) = match op {
            Op::AcquireLock(claim) => (&claim.lock, &claim.holder),
            Op::ReleaseLock { lock, by: Leaving::Holder(holder) } => (lock, holder),
            other => return Err(format!("{other:?} asks for no lock")),
        };
        let line = self.history.line_at(lock, revision);
        let own = |request: &&LockRequest| {
            (request.session, &request.holder) == (holder.session, &holder.name)
        };
        let place = line.iter().position(own);
        let request = place.map(|place| line[place]);
        let right = match reply {
            Reply::LockAcquired { token } => {
                place == Some(0) && request.is_some_and(|request| request.token == Some(*token))
            }
            Reply::LockQueued { ticket, ahead } => {
                place == usize::try_from(*ahead).ok()
                    && request.is_some_and(|own| (own.ticket, own.token) == (*ticket, None))
            }
            Reply::LockReleased { released } => {
                let before = self.history.line_at(lock, revision - u64::from(*released));
                place.is_none() && before.iter().any(own) == *released
            }
            _ => false,
        };
        match right {
            true => Ok(()),
            false => Err(format!("the line was {line:?}")),
        }
    }

    /// One who did not want to wait was refused.
    pub fn lock_was_held(&self, op: &Op, revision: u64, refusal: &Refusal) -> Result<(), String> {
        let Op::AcquireLock(claim) = op else { return Err("it asks for no lock".to_owned()) };
        let line = self.history.line_at(&claim.lock, revision);
        let held = line.first().map(|first| (first.session, first.token.unwrap_or(0)));
        match refusal {
            Refusal::LockHeld { owner, token } if held == Some((*owner, *token)) => Ok(()),
            _ => Err(format!("the line was {line:?}")),
        }
    }

    /// At the end all sessions have ended, and with them all requests.
    pub fn no_lock_is_left(&mut self) {
        let left = self.locks.lines.iter().find(|(_, line)| !line.is_empty());
        if let Some((lock, line)) = left {
            self.violated(format!("{lock} ends with the line {line:?}"));
        }
    }
}
