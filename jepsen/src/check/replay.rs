//! Replay by revision: every acknowledgement says where in the total order it took place. So the order need
//! not be searched: it is replayed against a naive model, in one pass over millions of operations, and
//! compared with real time.
//!
//! It trusts what the server says of revisions, so it always stands beside a checker that does not.

use std::collections::{BTreeMap, HashMap};

use crate::edn::Value;
use crate::history::{At, Error, History, Kind, Op, Process};
use crate::report::{Anomaly, Report};

/// Whether revisions are those of one order that agrees with real time: no two writes share one, and what was
/// invoked after something had completed does not stand before it.
pub fn order(history: &History) -> Result<Report, Error> {
    history.calls()?;
    let mut report = Report::new("revisions-ordered", placed(history).count());
    let mut writers: HashMap<i64, &Op> = HashMap::new();
    // The greatest revision that was completed, and what each process had before it when it invoked.
    let mut latest: Option<&Op> = None;
    let mut before: HashMap<&Process, Option<&Op>> = HashMap::new();
    for op in &history.ops {
        if op.kind == Kind::Invoke {
            before.insert(&op.process, latest);
            continue;
        }
        let Some(At { revision, wrote }) = op.at.filter(|_| op.kind == Kind::Ok) else { continue };
        if let Some(earlier) = before.get(&op.process).copied().flatten()
            && let Some(least) = earlier.at
            && (revision < least.revision || wrote && revision == least.revision)
        {
            let what = format!(
                "op {} is at revision {revision}, op {} had completed at {} before it was invoked",
                op.index, earlier.index, least.revision
            );
            report.anomalies.push(anomaly("revision-goes-back", what, &[earlier, op]));
        }
        if wrote && let Some(other) = writers.insert(revision, op) {
            let what = format!("two writes share revision {revision}");
            report.anomalies.push(anomaly("shared-revision", what, &[other, op]));
        }
        let greatest = latest.and_then(|op| op.at).map_or(i64::MIN, |at| at.revision);
        if revision > greatest {
            latest = Some(op);
        }
    }
    report.settle();
    Ok(report)
}

fn placed(history: &History) -> impl Iterator<Item = (&Op, At)> {
    let succeeded = history.ops.iter().filter(|op| op.kind == Kind::Ok);
    succeeded.filter_map(|op| Some((op, op.at?)))
}

/// Successful operations in the order of their revisions; at one revision the write comes before those that
/// saw its state.
pub fn in_order(history: &History) -> Vec<(&Op, At)> {
    let mut placed: Vec<_> = placed(history).collect();
    placed.sort_by_key(|(op, at)| (at.revision, !at.wrote, op.index));
    placed
}

pub fn anomaly(name: &'static str, what: String, ops: &[&Op]) -> Anomaly {
    Anomaly { name, what, details: ops.iter().map(|op| op.to_string()).collect() }
}

/// Whether registers (`:read [key value]`, `:write [key value]`, `:cas [key [from to]]`) replay: in the order
/// of revisions each operation fits what those before it have left. A value that no known write has left
/// must be that of one of unknown outcome, each of which explains one change.
pub fn registers(history: &History) -> Result<Report, Error> {
    let mut unknown = unknown_writes(history)?;
    let ordered = in_order(history);
    let mut report = Report::new("registers-replay", ordered.len());
    let mut registers: HashMap<&Value, (&Value, Option<&Op>)> = HashMap::new();
    let nil = Value::Nil;
    for (op, _) in ordered {
        let (key, needed, left) = register(op)?;
        let (found, by) = registers.get(key).copied().unwrap_or((&nil, None));
        if let Some(needed) = needed.filter(|needed| *needed != found) {
            let explanations = unknown.get_mut(&(key, needed));
            let fitting = explanations.and_then(|all| {
                let at = all.iter().position(|&invoked| invoked < op.index)?;
                Some(all.remove(at))
            });
            if fitting.is_none() {
                let what = format!(
                    "key {key} is {found} in the order of revisions, which op {} contradicts",
                    op.index
                );
                let ops: Vec<&Op> = by.into_iter().chain([op]).collect();
                report.anomalies.push(anomaly("replay-differs", what, &ops));
            }
        }
        registers.insert(key, (left, Some(op)));
    }
    report.settle();
    Ok(report)
}

/// The indices of writes of unknown outcome by key and by the value that they leave.
fn unknown_writes(history: &History) -> Result<BTreeMap<(&Value, &Value), Vec<usize>>, Error> {
    let mut unknown: BTreeMap<_, Vec<usize>> = BTreeMap::new();
    for call in history.calls()? {
        let invoked = &history.ops[call.invoke];
        if history.outcome(call) == Kind::Info && invoked.f != "read" {
            let (key, _, left) = register(invoked)?;
            unknown.entry((key, left)).or_default().push(invoked.index);
        }
    }
    Ok(unknown)
}

/// The key of an operation, the value that it needs to find, and the one that it leaves.
fn register(op: &Op) -> Result<(&Value, Option<&Value>, &Value), Error> {
    let wrong = || Error::malformed(op, "a register knows :read, :write and :cas of [key value]");
    let Some([key, value]) = op.value.elements() else { return Err(wrong()) };
    match op.f.as_str() {
        "read" => Ok((key, Some(value), value)),
        // One that changed nothing found what it was to write.
        "write" => Ok((key, op.at.filter(|at| !at.wrote).map(|_| value), value)),
        "cas" => match value.elements() {
            Some([from, to]) => Ok((key, Some(from), to)),
            _ => Err(wrong()),
        },
        _ => Err(wrong()),
    }
}
