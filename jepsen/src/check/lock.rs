//! Locks with fencing tokens: `:acquire [session lock]`, answered with `[session lock token]`, `:release [session
//! lock]`, `:beat`, `:open`, and `:guarded [session lock token]`, a write under the lock to a store outside that
//! remembers the greatest token.
//!
//! A token belongs to one holder, and whoever gets the lock later has a greater one. While its session certainly
//! lives and it has not asked to release, a holder is the only one. The store accepts nobody whose successor has
//! been there.

use std::collections::{BTreeMap, HashMap};

use super::counter::{int, part};
use super::leases::{Time, leases};
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Error, History, Kind, Op};
use crate::report::Report;

/// A lock in one session's hands.
struct Grant<'a> {
    session: i64,
    token: i64,
    invoked: &'a Op,
    op: &'a Op,
    /// It certainly holds until then.
    until: Time,
}

pub fn check(history: &History, ttl: Time) -> Result<Report, Error> {
    let calls = history.calls()?;
    let succeeded = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok).count();
    let mut report = Report::new("exclusive-and-fenced", succeeded);
    let leases = leases(history, &calls, ttl, &mut report)?;
    let mut grants: BTreeMap<&Value, Vec<Grant<'_>>> = BTreeMap::new();
    let mut guarded: BTreeMap<&Value, Vec<&Op>> = BTreeMap::new();
    for call in &calls {
        let invoked = &history.ops[call.invoke];
        let done = call.complete.filter(|_| history.outcome(*call) == Kind::Ok);
        let done = done.map(|at| &history.ops[at]);
        match (invoked.f.as_str(), done) {
            ("acquire", Some(op)) => {
                let (session, token) = (int(op, 0)?, int(op, 2)?);
                let until = leases.get(&session).map_or(0, |lease| lease.until);
                let grant = Grant { session, token, invoked, op, until };
                grants.entry(part(op, 1)?).or_default().push(grant);
            }
            ("release", _) => {
                // From the asking on it may be anybody's.
                let session = int(invoked, 0)?;
                for grant in grants.entry(part(invoked, 1)?).or_default() {
                    if grant.session == session && grant.op.index < invoked.index {
                        grant.until = grant.until.min(invoked.time);
                    }
                }
            }
            ("guarded", Some(op)) => guarded.entry(part(op, 1)?).or_default().push(op),
            _ => {}
        }
    }
    for (lock, grants) in &mut grants {
        grants.sort_by_key(|grant| (grant.token, grant.op.index));
        tokens(lock, grants, &mut report);
        in_time(lock, grants, &mut report);
        exclusive(lock, grants, &mut report);
    }
    for (lock, ops) in &mut guarded {
        ops.sort_by_key(|op| op.index);
        store(lock, ops, &mut report)?;
    }
    report.settle();
    Ok(report)
}

/// No token has two holders.
fn tokens(lock: &Value, grants: &[Grant<'_>], report: &mut Report) {
    let mut holders: HashMap<i64, &Grant<'_>> = HashMap::new();
    for grant in grants {
        let first = holders.entry(grant.token).or_insert(grant);
        if first.session != grant.session {
            let what = format!("two sessions hold lock {lock} with token {}", grant.token);
            report.anomalies.push(anomaly("shared-token", what, &[first.op, grant.op]));
        }
    }
}

/// Who asked after another one had got the lock has a greater token, unless it is the same holder.
fn in_time(lock: &Value, grants: &[Grant<'_>], report: &mut Report) {
    // From the greatest token down, the one that was asked for first of those with a greater token.
    let mut earliest_complete: Option<&Grant<'_>> = None;
    for grant in grants.iter().rev() {
        if let Some(greater) = earliest_complete
            && greater.token > grant.token
            && greater.op.index < grant.invoked.index
        {
            let what = format!(
                "lock {lock} was given with token {} after it had been given with {}",
                grant.token, greater.token
            );
            report.anomalies.push(anomaly("token-goes-back", what, &[greater.op, grant.op]));
        }
        if earliest_complete.is_none_or(|earliest| grant.op.index < earliest.op.index) {
            earliest_complete = Some(grant);
        }
    }
}

/// While one certainly holds the lock nobody gets it.
fn exclusive(lock: &Value, grants: &[Grant<'_>], report: &mut Report) {
    // The holder, among those with lower tokens, that holds longest.
    let mut longest: Option<&Grant<'_>> = None;
    for grant in grants {
        if let Some(holder) = longest
            && holder.session != grant.session
            && holder.token < grant.token
            && grant.op.time < holder.until
            // Else the tokens are wrong, which is reported as that.
            && grant.op.index > holder.invoked.index
        {
            let what = format!(
                "lock {lock} was given to session {} while session {} held it",
                grant.session, holder.session
            );
            report.anomalies.push(anomaly("two-holders", what, &[holder.op, grant.op]));
        }
        if longest.is_none_or(|longest| longest.until < grant.until) {
            longest = Some(grant);
        }
    }
}

/// The store saw tokens in ascending order.
fn store(lock: &Value, ops: &[&Op], report: &mut Report) -> Result<(), Error> {
    let mut by_sequence = Vec::new();
    for op in ops {
        by_sequence.push((int(op, 3)?, int(op, 2)?, *op));
    }
    by_sequence.sort_by_key(|(sequence, ..)| *sequence);
    for pair in by_sequence.windows(2) {
        if pair[1].1 < pair[0].1 || pair[1].0 == pair[0].0 {
            let what = format!(
                "the store behind lock {lock} took token {} after {}",
                pair[1].1, pair[0].1
            );
            report.anomalies.push(anomaly("not-fenced", what, &[pair[0].2, pair[1].2]));
        }
    }
    Ok(())
}
