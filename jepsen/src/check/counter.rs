//! The counter: `:add [counter delta]`, answered with `[counter delta value]`, the value after it, and
//! `:read [counter nil]`. Every value lies between what is certain and what is possible; at rest, and with no
//! addition of unknown outcome, that is one number.

use std::collections::BTreeMap;

use super::bounds::{Addition, Look, bounds, with_own};
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Error, History, Kind, Op};
use crate::report::Report;

#[derive(Default)]
struct Counter<'a> {
    additions: Vec<Addition>,
    looks: Vec<Look>,
    /// What each look showed, and what the look itself had added.
    shown: Vec<(i64, i64, &'a Op)>,
}

pub fn check(history: &History) -> Result<Report, Error> {
    let mut counters: BTreeMap<&Value, Counter<'_>> = BTreeMap::new();
    let mut succeeded = 0;
    for call in history.calls()? {
        let invoked = &history.ops[call.invoke];
        let outcome = history.outcome(call);
        succeeded += usize::from(outcome == Kind::Ok);
        let counter = counters.entry(part(invoked, 0)?).or_default();
        let done = call.complete.filter(|_| outcome == Kind::Ok);
        if invoked.f == "add" && outcome != Kind::Fail {
            let delta = int(invoked, 1)?;
            counter.additions.push(Addition { delta, possible: call.invoke, certain: done });
        } else if invoked.f != "add" && invoked.f != "read" {
            return Err(Error::malformed(invoked, format!("a counter knows no :{}", invoked.f)));
        }
        if let Some(complete) = done {
            let op = &history.ops[complete];
            let (value, own) = match op.f.as_str() {
                "add" => (int(op, 2)?, int(invoked, 1)?),
                _ => (int(op, 1)?, 0),
            };
            counter.looks.push(Look { invoke: call.invoke, complete });
            counter.shown.push((value, own, op));
        }
    }
    let mut report = Report::new("counted", succeeded);
    for (name, counter) in counters {
        let bounds = bounds(&counter.additions, &counter.looks);
        for ((value, own, op), bounds) in counter.shown.into_iter().zip(bounds) {
            let (least, most) = with_own(bounds, own);
            if !(least..=most).contains(&value) {
                let what = format!("counter {name} shows {value}, which is not {least}..={most}");
                report.anomalies.push(anomaly("wrong-sum", what, &[op]));
            }
        }
    }
    report.settle();
    Ok(report)
}

pub(super) fn part(op: &Op, at: usize) -> Result<&Value, Error> {
    let part = op.value.elements().and_then(|parts| parts.get(at));
    part.ok_or_else(|| Error::malformed(op, format!("{} has no part {at}", op.value)))
}

pub(super) fn int(op: &Op, at: usize) -> Result<i64, Error> {
    match part(op, at)? {
        Value::Int(number) => Ok(*number),
        other => Err(Error::malformed(op, format!("{other} is no number"))),
    }
}
