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

/// Whether transactions of list-append replay: in the order of revisions each read is what the appends before
/// it have made. Elements of transactions of unknown outcome may be anywhere in a list, but once one was
/// seen, the rest of its transaction is to be seen too.
pub fn lists(history: &History) -> Result<Report, Error> {
    let mut unknown: HashMap<(&Value, &Value), usize> = HashMap::new();
    let mut owed: HashMap<usize, Vec<(&Value, &Value)>> = HashMap::new();
    for call in history.calls()? {
        if history.outcome(call) == Kind::Info {
            for step in steps(&history.ops[call.invoke])? {
                if let Step::Append(key, element) = step {
                    unknown.insert((key, element), call.invoke);
                    owed.entry(call.invoke).or_default().push((key, element));
                }
            }
        }
    }
    let ordered = in_order(history);
    let mut report = Report::new("lists-replay", ordered.len());
    let mut lists: HashMap<&Value, Vec<&Value>> = HashMap::new();
    // What must be in the next read of a key.
    let mut due: HashMap<&Value, Vec<&Value>> = HashMap::new();
    for (op, _) in ordered {
        // What the transaction itself has appended so far stands at the end of its reads.
        let mut own: HashMap<&Value, Vec<&Value>> = HashMap::new();
        for step in steps(op)? {
            match step {
                Step::Append(key, element) => own.entry(key).or_default().push(element),
                Step::Read(key, elements) => {
                    let own = own.get(key).map_or(&[][..], Vec::as_slice);
                    let elements: Vec<&Value> = elements.iter().collect();
                    let Some(before) = elements.strip_suffix(own) else {
                        let what =
                            format!("key {key} was read without the transaction's own appends");
                        report.anomalies.push(anomaly("replay-differs", what, &[op]));
                        continue;
                    };
                    let list = lists.entry(key).or_default();
                    let is_new = |element: &&Value| {
                        unknown.contains_key(&(key, *element)) && !list.contains(element)
                    };
                    let (new, old): (Vec<_>, Vec<_>) = before.iter().copied().partition(is_new);
                    let owing = due.remove(key).unwrap_or_default();
                    if old != *list || owing.iter().any(|element| !before.contains(element)) {
                        let expected = Value::Vector(list.iter().map(|&e| e.clone()).collect());
                        let what = format!("key {key} is {expected} in the order of revisions");
                        report.anomalies.push(anomaly("replay-differs", what, &[op]));
                    }
                    *list = before.to_vec();
                    for element in new {
                        let rest = owed.remove(&unknown[&(key, element)]).unwrap_or_default();
                        for (other, element) in rest {
                            if other != key
                                && !lists.get(other).is_some_and(|l| l.contains(&element))
                            {
                                due.entry(other).or_default().push(element);
                            }
                        }
                    }
                }
            }
        }
        for (key, elements) in own {
            lists.entry(key).or_default().extend(elements);
        }
    }
    report.settle();
    Ok(report)
}

enum Step<'a> {
    Append(&'a Value, &'a Value),
    Read(&'a Value, &'a [Value]),
}

fn steps(op: &Op) -> Result<Vec<Step<'_>>, Error> {
    let wrong =
        || Error::malformed(op, "a transaction is of [:append key element] and [:r key list]");
    let steps = op.value.elements().ok_or_else(wrong)?.iter().map(|step| match step.elements() {
        Some([Value::Keyword(what), key, element]) if what == "append" => {
            Ok(Step::Append(key, element))
        }
        Some([Value::Keyword(what), key, list]) if what == "r" => {
            Ok(Step::Read(key, list.elements().unwrap_or_default()))
        }
        _ => Err(wrong()),
    });
    steps.collect()
}
