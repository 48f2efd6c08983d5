//! Clients that balance: lives of instances as in `registry`, and `:pick [seen]`, answered with `[seen connected
//! [[instance count] ..] empty [error ..]]`: who served the calls of some hundred milliseconds, how many found an
//! empty list, what failed, whether the client said all the while that it follows the service, and which
//! revision it had seen before.
//!
//! Nobody is picked who was never there; nor, by a client that has seen a revision at which it was gone, who has
//! left; nor, some time after it has left or its session has ended, by anybody in whose way no fault was.
//! Instances that never leave have negative ids, so no list is ever empty.

use std::collections::HashMap;

use super::counter::{int, part};
use super::faults::Faults;
use super::leases::{Lease, Time, leases};
use super::registry::{self, Life, lives};
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Call, Error, History, Kind, Op};
use crate::report::Report;

#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Of the sessions and the service.
    pub life: registry::Terms,
    /// How much later than the cluster a client may know that an instance has left, in nanoseconds.
    pub bound: Time,
}

struct Pick<'a> {
    invoked: &'a Op,
    op: &'a Op,
    seen: i64,
    connected: bool,
    instances: Vec<&'a Value>,
}

/// What was looked for, and what was let pass.
#[derive(Default)]
struct Counts {
    /// Picks that could have shown an instance that has left.
    due: usize,
    /// Late ones while a fault held, or so soon after it.
    disturbed: usize,
    /// Late ones of clients that said that they do not follow the service.
    unconnected: usize,
}

pub fn check(history: &History, terms: Terms) -> Result<Report, Error> {
    let calls = history.calls()?;
    let succeeded = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok).count();
    let mut report = Report::new("balanced", succeeded);
    let leases = leases(history, &calls, terms.life.ttl, &mut report)?;
    let lives = lives(history, &calls)?;
    let faults = Faults::new(history);
    let mut counts = Counts::default();
    for pick in picks(history, &calls, &mut report)? {
        let disturbed = faults.last_before(pick.op.index);
        for &instance in &pick.instances {
            if matches!(instance, Value::Int(number) if *number < 0) {
                continue;
            }
            let asked =
                |life: &&Life<'_>| life.asked.is_some_and(|asked| asked.index < pick.op.index);
            let Some(life) = lives.get(instance).filter(asked) else {
                let what = format!("instance {instance} was picked and never registered");
                report.anomalies.push(anomaly("phantom-instance", what, &[pick.op]));
                continue;
            };
            knows(instance, life, &pick, &mut report);
            in_time(instance, life, &leases, &pick, disturbed, terms, &mut counts, &mut report);
        }
        let gone = |life: &Life<'_>| {
            let left = life.left.map(|op| op.time.max(disturbed.unwrap_or(Time::MAX)));
            left.is_some_and(|left| pick.invoked.time >= left.saturating_add(terms.bound))
        };
        counts.due += usize::from(pick.connected && lives.values().any(gone));
    }
    let Counts { due, disturbed, unconnected } = counts;
    if due == 0 {
        let missing = "nobody picked when an instance had left for long and nothing was in the way";
        report.unknown.push(missing.to_owned());
    }
    for (count, excuse) in [
        (disturbed, "while a fault held or shortly after it"),
        (unconnected, "by clients that said that they do not follow the service"),
    ] {
        if count > 0 {
            report.notes.push(format!("{count} late picks are excused, {excuse}"));
        }
    }
    report.settle();
    Ok(report)
}

/// The picks; what is wrong with them whoever was picked is reported.
fn picks<'a>(
    history: &'a History,
    calls: &[Call],
    report: &mut Report,
) -> Result<Vec<Pick<'a>>, Error> {
    let mut picks = Vec::new();
    for call in calls {
        let invoked = &history.ops[call.invoke];
        let done = call.complete.filter(|_| history.outcome(*call) == Kind::Ok);
        let Some(at) = done.filter(|_| invoked.f == "pick") else { continue };
        let op = &history.ops[at];
        let wrong = || Error::malformed(op, "a pick shows [seen connected picks empty errors]");
        let shown = part(op, 2)?.elements().ok_or_else(wrong)?.iter();
        let instances = shown.map(|pick| match pick.elements() {
            Some([instance, Value::Int(_)]) => Ok(instance),
            _ => Err(wrong()),
        });
        let empty = int(op, 3)?;
        if empty > 0 {
            let what = format!("{empty} calls found an empty list");
            report.anomalies.push(anomaly("empty-list", what, &[op]));
        }
        if let Some(error) = part(op, 4)?.elements().ok_or_else(wrong)?.first() {
            let what = format!("a call failed, and everybody can be reached: {error}");
            report.anomalies.push(anomaly("failed-call", what, &[op]));
        }
        picks.push(Pick {
            invoked,
            op,
            seen: int(op, 0)?,
            connected: *part(op, 1)? == Value::Bool(true),
            instances: instances.collect::<Result<_, _>>()?,
        });
    }
    Ok(picks)
}

/// A client that has seen that an instance is gone does not pick it.
fn knows(instance: &Value, life: &Life<'_>, pick: &Pick<'_>, report: &mut Report) {
    if let Some(left) = life.left
        && left.at.is_some_and(|at| at.revision <= pick.seen)
    {
        let what = format!("instance {instance} was picked by a client that had seen it leave");
        report.anomalies.push(anomaly("known-gone", what, &[left, pick.op]));
    }
}

#[allow(clippy::too_many_arguments, reason = "each is what the judgement rests on")]
fn in_time(
    instance: &Value,
    life: &Life<'_>,
    leases: &HashMap<i64, Lease>,
    pick: &Pick<'_>,
    disturbed: Option<Time>,
    terms: Terms,
    counts: &mut Counts,
    report: &mut Report,
) {
    // Since when it is certainly gone, as far as no fault holds up who decides that.
    let ends = leases.get(&life.session).map(|lease| {
        let born = life.registered.or(life.asked).map_or(0, |op| op.time);
        let rests_since = lease.last_try.max(disturbed.unwrap_or(0)).max(born);
        rests_since + terms.life.ttl + terms.life.bound
    });
    let (gone, name, why) = match (life.left, ends) {
        (Some(left), ends) if ends.is_none_or(|ends| left.time < ends) => {
            (left.time, "picked-after-leaving", "after it had left")
        }
        (_, Some(ends)) => (ends, "picked-after-session", "after its session must have ended"),
        (_, None) => return,
    };
    let from = pick.invoked.time;
    if from < gone.saturating_add(terms.bound) {
        return;
    }
    if !pick.connected {
        counts.unconnected += 1;
    } else if disturbed.is_none_or(|last| from < last.saturating_add(terms.bound)) {
        counts.disturbed += 1;
    } else {
        let late = (from - gone) / 1_000_000;
        let what = format!("instance {instance} was picked {late} ms {why}");
        let ops: Vec<&Op> = life.left.into_iter().chain([pick.op]).collect();
        report.anomalies.push(anomaly(name, what, &ops));
    }
}
