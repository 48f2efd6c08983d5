//! The set: `:add [set element]`, each element once, and `:read [set [element ..]]`. What was acknowledged, or
//! seen once, is in every read that begins later; what failed or was never added is in none.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::counter::part;
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Error, History, Kind, Op};
use crate::report::Report;

/// What is known of an element.
struct Element<'a> {
    add: &'a Op,
    outcome: Kind,
    invoke: usize,
    /// From here on it must be seen, and which op says so.
    known: Option<(usize, &'a Op)>,
    /// It was looked for after that.
    looked_for: bool,
}

struct Read<'a> {
    invoke: usize,
    complete: usize,
    op: &'a Op,
    shows: &'a [Value],
}

pub fn check(history: &History) -> Result<Report, Error> {
    let mut sets: BTreeMap<&Value, (HashMap<&Value, Element<'_>>, Vec<Read<'_>>)> = BTreeMap::new();
    let mut succeeded = 0;
    for call in history.calls()? {
        let invoked = &history.ops[call.invoke];
        let outcome = history.outcome(call);
        succeeded += usize::from(outcome == Kind::Ok);
        let done = call.complete.filter(|_| outcome == Kind::Ok);
        let (elements, reads) = sets.entry(part(invoked, 0)?).or_default();
        match invoked.f.as_str() {
            "add" => {
                let known = done.map(|at| (at, &history.ops[at]));
                let (add, invoke) = (invoked, call.invoke);
                let element = Element { add, outcome, invoke, known, looked_for: false };
                if elements.insert(part(invoked, 1)?, element).is_some() {
                    return Err(Error::malformed(invoked, "an element is added twice"));
                }
            }
            "read" => {
                if let Some(complete) = done {
                    let op = &history.ops[complete];
                    let shows = part(op, 1)?.elements();
                    let shows = shows.ok_or_else(|| Error::malformed(op, "a read shows a list"))?;
                    reads.push(Read { invoke: call.invoke, complete, op, shows });
                }
            }
            other => return Err(Error::malformed(invoked, format!("a set knows no :{other}"))),
        }
    }
    let mut report = Report::new("set-complete", succeeded);
    for (name, (mut elements, mut reads)) in sets {
        reads.sort_by_key(|read| read.complete);
        for read in &reads {
            shown(name, read, &mut elements, &mut report);
        }
        for read in &reads {
            missing(name, read, &mut elements, &mut report);
        }
        let unseen = elements.values().filter(|element| element.known.is_some());
        let unseen = unseen.filter(|element| !element.looked_for).count();
        if unseen > 0 {
            report.unknown.push(format!("{unseen} elements of set {name} were never looked for"));
        }
    }
    report.settle();
    Ok(report)
}

/// What a read shows must have been added, and is known from then on.
fn shown<'a>(
    set: &Value,
    read: &Read<'a>,
    elements: &mut HashMap<&Value, Element<'a>>,
    report: &mut Report,
) {
    let mut seen = HashSet::new();
    for value in read.shows {
        if !seen.insert(value) {
            let what = format!("a read of set {set} shows {value} twice");
            report.anomalies.push(anomaly("duplicate-element", what, &[read.op]));
        }
        let added = elements.get_mut(value).filter(|element| element.invoke < read.complete);
        let Some(element) = added else {
            let what = format!("a read of set {set} shows {value}, which nobody had added");
            report.anomalies.push(anomaly("phantom-element", what, &[read.op]));
            continue;
        };
        if element.outcome == Kind::Fail {
            let what = format!("a read of set {set} shows {value}, whose addition failed");
            report.anomalies.push(anomaly("failed-but-there", what, &[element.add, read.op]));
        }
        if element.known.is_none_or(|(at, _)| read.complete < at) {
            element.known = Some((read.complete, read.op));
        }
    }
}

/// What was known before a read began must be in it.
fn missing<'a>(
    set: &Value,
    read: &Read<'a>,
    elements: &mut HashMap<&Value, Element<'a>>,
    report: &mut Report,
) {
    let shows: HashSet<&Value> = read.shows.iter().collect();
    for (value, element) in elements {
        let Some((_, by)) = element.known.filter(|(at, _)| *at < read.invoke) else { continue };
        element.looked_for = true;
        if !shows.contains(value) {
            let what = format!("a read of set {set} lacks {value}");
            report.anomalies.push(anomaly("lost-element", what, &[element.add, by, read.op]));
        }
    }
}
