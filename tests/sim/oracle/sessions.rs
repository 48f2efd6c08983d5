//! A session does not expire before its TTL has passed since its client sent the last keep-alive that
//! was acknowledged, whoever leads; and it does expire once nobody keeps it alive.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Oracle;

#[derive(Debug, Default)]
pub struct Sessions {
    known: BTreeMap<u64, Known>,
    /// Their clients have asked for their end.
    closing: BTreeSet<u64>,
}

#[derive(Debug)]
struct Known {
    ttl: Duration,
    /// When the last keep-alive that was acknowledged was sent.
    renewed: Duration,
}

impl Oracle {
    /// `sent` is when the client asked for the session.
    pub fn session_opened(&mut self, session: u64, ttl: Duration, sent: Duration) {
        self.counts.sessions += 1;
        self.sessions.known.insert(session, Known { ttl, renewed: sent });
    }

    /// A keep-alive was acknowledged.
    pub fn session_renewed(&mut self, session: u64, sent: Duration) {
        self.counts.keep_alives += 1;
        if let Some(known) = self.sessions.known.get_mut(&session) {
            known.renewed = known.renewed.max(sent);
        }
    }

    pub fn session_closing(&mut self, session: u64) {
        self.sessions.closing.insert(session);
    }

    /// The state has ended a session.
    pub fn session_ended(&mut self, session: u64, now: Duration) {
        if self.sessions.closing.contains(&session) {
            return;
        }
        self.counts.expired += 1;
        self.is_overdue(session, now, "expired");
    }

    /// A client was told that its session is no more.
    pub fn session_refused(&mut self, session: u64, now: Duration) {
        if !self.sessions.closing.contains(&session) {
            self.is_overdue(session, now, "was called expired");
        }
    }

    /// Nobody may have ended it yet.
    pub fn is_alive(&self, session: u64, now: Duration) -> bool {
        let known = self.sessions.known.get(&session);
        known.is_some_and(|known| now < known.renewed + known.ttl)
            && !self.sessions.closing.contains(&session)
    }

    fn is_overdue(&mut self, session: u64, now: Duration, what: &str) {
        // Of a session whose opening was never answered nobody expects anything.
        let Some(Known { ttl, renewed }) = self.sessions.known.get(&session) else { return };
        if now < *renewed + *ttl {
            self.violated(format!(
                "session {session} {what} at {now:?}; its TTL is {ttl:?} and an acknowledged \
                 keep-alive was sent at {renewed:?}"
            ));
        }
    }
}
