//! Sessions in time: until when each certainly lived, from what was acknowledged.
//!
//! A keep-alive that was acknowledged was counted at some time after it was sent, and from then on the TTL runs
//! in full. So a session lives at least until its last acknowledged keep-alive was *sent*, plus the TTL. Clients
//! and nodes read the same clock, and the TTL is measured on a monotonic one: no tolerance is needed.

use std::collections::HashMap;

use super::counter::int;
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Call, Error, History, Kind};
use crate::report::Report;

/// Nanoseconds since the start of the history.
pub type Time = i64;

#[derive(Debug, Clone, Copy)]
pub struct Lease {
    /// It certainly lived before this, unless it was closed.
    pub until: Time,
    /// Nothing that could have prolonged it was under way after this, but for what a fault held up.
    pub last_try: Time,
    /// A node said that it had expired, at this time.
    pub expired: Option<Time>,
}

/// The sessions of a history: `:open`, answered with `[session]`, and `:beat [session]`. What is asked in a session,
/// `[session ..]`, fails with `"expired"` when a node says that the session is gone; nobody closes one, so that
/// this is reported when it comes too early.
pub fn leases(
    history: &History,
    calls: &[Call],
    ttl: Time,
    report: &mut Report,
) -> Result<HashMap<i64, Lease>, Error> {
    let end = history.ops.last().map_or(0, |op| op.time);
    let mut leases: HashMap<i64, Lease> = HashMap::new();
    let mut expiries = Vec::new();
    // Of each session: which op acknowledged that it lives, and until when.
    let mut renewals: HashMap<i64, Vec<(usize, Time)>> = HashMap::new();
    for call in calls {
        let invoked = &history.ops[call.invoke];
        let completed = call.complete.map(|at| &history.ops[at]);
        if let Some(op) = completed.filter(|op| op.error.as_ref().is_some_and(is_expired)) {
            expiries.push((int(invoked, 0)?, invoked, op));
        }
        let outcome = history.outcome(*call);
        let session = match (invoked.f.as_str(), completed) {
            ("open", Some(op)) if outcome == Kind::Ok => int(op, 0)?,
            ("beat", _) => int(invoked, 0)?,
            _ => continue,
        };
        let lease = leases.entry(session).or_insert(Lease { until: 0, last_try: 0, expired: None });
        if outcome == Kind::Ok {
            lease.until = lease.until.max(invoked.time + ttl);
            let renewal = completed.map(|op| (op.index, invoked.time + ttl));
            renewals.entry(session).or_default().extend(renewal);
        }
        if outcome != Kind::Fail {
            // What nobody waits for any more is given up within the bounds of whoever judges, unless a fault holds
            // it, whose end they count. What was never completed may arrive at any time.
            lease.last_try = lease.last_try.max(completed.map_or(end, |op| op.time));
        }
    }
    for (session, invoked, op) in expiries {
        if let Some(lease) = leases.get_mut(&session) {
            lease.expired = Some(lease.expired.map_or(op.time, |first| first.min(op.time)));
        }
        // A leader may say so of what it has proposed, and be deposed before that is decided: with the next one
        // the session goes on. So only what was acknowledged before counts.
        let renewed = renewals.get(&session).into_iter().flatten();
        let until = renewed.filter(|(at, _)| *at < invoked.index).map(|(_, until)| *until).max();
        if let Some(until) = until.filter(|until| op.time < *until) {
            let early = (until - op.time) / 1_000_000;
            let what = format!("session {session} is said to have expired {early} ms too early");
            report.anomalies.push(anomaly("expired-early", what, &[invoked, op]));
        }
    }
    Ok(leases)
}

fn is_expired(error: &Value) -> bool {
    matches!(error, Value::String(text) if text == EXPIRED)
}

/// What fails with when a node says that there is no such session.
pub const EXPIRED: &str = "expired";
