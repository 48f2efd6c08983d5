//! Sessions in time: until when each certainly lived, from what was acknowledged.
//!
//! A keep-alive that was acknowledged was counted at some time after it was sent, and from then on the TTL runs
//! in full. So a session lives at least until its last acknowledged keep-alive was *sent*, plus the TTL. Clients
//! and nodes read the same clock, and the TTL is measured on a monotonic one: no tolerance is needed.

use std::collections::HashMap;

use super::counter::int;
use crate::history::{Call, Error, History, Kind};

/// Nanoseconds since the start of the history.
pub type Time = i64;

#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// It certainly lived before this, unless it was closed.
    pub until: Time,
    /// Nothing that could have prolonged it was under way after this.
    pub last_try: Time,
    /// A node said that it had expired, at this time.
    pub expired: Option<Time>,
}

/// The sessions of a history: `:open`, answered with `[session]`, and `:beat [session]`, whose failure `"expired"`
/// is a node's word that the session is gone.
pub fn leases(history: &History, calls: &[Call], ttl: Time) -> Result<HashMap<i64, Lease>, Error> {
    let end = history.ops.last().map_or(0, |op| op.time);
    let mut leases: HashMap<i64, Lease> = HashMap::new();
    for call in calls {
        let invoked = &history.ops[call.invoke];
        let completed = call.complete.map(|at| &history.ops[at]);
        let outcome = history.outcome(*call);
        let session = match (invoked.f.as_str(), completed) {
            ("open", Some(op)) if outcome == Kind::Ok => int(op, 0)?,
            ("beat", _) => int(invoked, 0)?,
            _ => continue,
        };
        // A copy of unknown outcome may arrive late, but not after the history.
        let last = match outcome {
            Kind::Info => end,
            _ => completed.map_or(end, |op| op.time),
        };
        let lease = leases.entry(session).or_insert(Lease { until: 0, last_try: 0, expired: None });
        if outcome == Kind::Ok {
            lease.until = lease.until.max(invoked.time + ttl);
        }
        if outcome != Kind::Fail {
            lease.last_try = lease.last_try.max(last);
        }
        let expired = |error: &crate::edn::Value| matches!(error, crate::edn::Value::String(text) if text == EXPIRED);
        if let Some(op) = completed.filter(|op| op.error.as_ref().is_some_and(expired)) {
            lease.expired = Some(lease.expired.map_or(op.time, |first| first.min(op.time)));
        }
    }
    Ok(leases)
}

/// What a `:beat` fails with when a node says that there is no such session.
pub const EXPIRED: &str = "expired";
