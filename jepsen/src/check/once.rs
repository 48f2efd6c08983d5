//! Exactly once: `:add [session sequence delta]`, answered with `[session sequence delta value revision]`, is
//! sent again and again under the same id, and counts once. `:read nil` shows the sum.

use std::collections::{BTreeMap, HashSet};

use super::bounds::{Addition, Look, bounds, with_own};
use super::counter::int;
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Call, Error, History, Kind, Op};
use crate::report::Report;

/// All copies of one write.
#[derive(Debug)]
struct Write<'a> {
    delta: i64,
    first: usize,
    answers: Vec<&'a Op>,
    /// The place of the first answer.
    certain: Option<usize>,
    /// Some copy has no definite failure.
    possible: bool,
}

pub fn check(history: &History) -> Result<Report, Error> {
    let calls = history.calls()?;
    let succeeded = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok).count();
    let mut report = Report::new("exactly-once", succeeded);
    let writes = writes(history, &calls)?;
    for (id, write) in &writes {
        let Some(first) = write.answers.first() else { continue };
        for other in &write.answers[1..] {
            if int(first, 3)? != int(other, 3)? || int(first, 4)? != int(other, 4)? {
                let what =
                    format!("the write {id:?} was answered differently when it was repeated");
                report.anomalies.push(anomaly("answers-differ", what, &[first, other]));
            }
        }
    }
    steps(&writes, &mut report)?;
    sums(history, &calls, &writes, &mut report)?;
    report.settle();
    Ok(report)
}

type Writes<'a> = BTreeMap<(i64, i64), Write<'a>>;

fn writes<'a>(history: &'a History, calls: &[Call]) -> Result<Writes<'a>, Error> {
    let mut writes = Writes::new();
    for call in calls {
        let invoked = &history.ops[call.invoke];
        if invoked.f != "add" {
            continue;
        }
        let (id, delta) = ((int(invoked, 0)?, int(invoked, 1)?), int(invoked, 2)?);
        let write = writes.entry(id).or_insert(Write {
            delta,
            first: call.invoke,
            answers: Vec::new(),
            certain: None,
            possible: false,
        });
        if write.delta != delta {
            return Err(Error::malformed(invoked, format!("the write {id:?} is another one")));
        }
        write.possible |= history.outcome(*call) != Kind::Fail;
        if let Some(at) = call.complete.filter(|_| history.outcome(*call) == Kind::Ok) {
            write.answers.push(&history.ops[at]);
            write.certain = Some(write.certain.map_or(at, |first| first.min(at)));
        }
    }
    Ok(writes)
}

/// All deltas are positive, so in the order of revisions each value is greater than the one before, by at
/// least what was added last: two writes that count as one, or one that counts twice, break that.
fn steps(writes: &Writes<'_>, report: &mut Report) -> Result<(), Error> {
    let answered = writes.values().filter_map(|write| Some((*write.answers.first()?, write.delta)));
    let placed = answered.map(|(op, delta)| Ok((int(op, 4)?, op, delta)));
    let mut placed = placed.collect::<Result<Vec<(i64, &Op, i64)>, Error>>()?;
    placed.sort_by_key(|(revision, op, _)| (*revision, op.index));
    for pair in placed.windows(2) {
        let ((before, first, _), (revision, second, delta)) = (pair[0], pair[1]);
        if revision == before || int(second, 3)? < int(first, 3)? + delta {
            let what = format!("at revision {revision} too little was added to that of {before}");
            report.anomalies.push(anomaly("lost-addition", what, &[first, second]));
        }
    }
    Ok(())
}

fn sums(
    history: &History,
    calls: &[Call],
    writes: &Writes<'_>,
    report: &mut Report,
) -> Result<(), Error> {
    let additions: Vec<Addition> = writes
        .values()
        .filter(|write| write.possible)
        .map(|write| Addition { delta: write.delta, possible: write.first, certain: write.certain })
        .collect();
    let done = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok);
    let mut shown = Vec::new();
    let mut looks = Vec::new();
    // A repeated write is answered with what the first copy saw, so only one answer is a look.
    let mut answered = HashSet::new();
    for call in done {
        let Some(complete) = call.complete else { continue };
        let op = &history.ops[complete];
        let (value, own, invoke) = match op.f.as_str() {
            "read" => match op.value {
                Value::Int(value) => (value, 0, call.invoke),
                _ => return Err(Error::malformed(op, "a read shows a number")),
            },
            "add" => {
                let id = (int(op, 0)?, int(op, 1)?);
                if !answered.insert(id) {
                    continue;
                }
                // It can have counted from its first copy on, and has for this answer.
                (int(op, 3)?, writes[&id].delta, writes[&id].first)
            }
            _ => continue,
        };
        looks.push(Look { invoke, complete });
        shown.push((value, own, op));
    }
    for ((value, own, op), bounds) in shown.into_iter().zip(bounds(&additions, &looks)) {
        let (least, most) = with_own(bounds, own);
        if !(least..=most).contains(&value) {
            let what = format!("the sum is {value}, which is not {least}..={most}");
            report.anomalies.push(anomaly("wrong-sum", what, &[op]));
        }
    }
    Ok(())
}
