//! Whether a run shows anything: each fault provably took effect, and operations succeeded before, during
//! and after.
//!
//! Read from what the nemesis wrote into the history: `{:begin n, ..}`, once it is done, and `{:end n, :proof ..}`.

use std::collections::{BTreeMap, BTreeSet};

use crate::edn::Value;
use crate::history::{History, Kind, Op, Process};
use crate::report::Report;

/// A fault as the history tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub kind: String,
    pub what: Value,
    /// Positions in the history and times in nanoseconds.
    pub begin: (usize, i64),
    /// None: it lasted until the history ended.
    pub end: Option<(usize, i64)>,
    /// Why it is known to have taken effect.
    pub proof: Option<String>,
    pub missing: Option<String>,
    /// A majority of nodes could go on.
    pub majority: bool,
}

/// What an op of the nemesis says under a key.
pub fn get<'a>(op: &'a Op, key: &str) -> Option<&'a Value> {
    match &op.value {
        Value::Map(map) => map.get(&Value::keyword(key)),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// What the nemesis did, in order.
pub fn nemesis(history: &History) -> impl Iterator<Item = (usize, &Op)> {
    let is_it = |op: &Op| matches!(&op.process, Process::Other(name) if name == "nemesis");
    history.ops.iter().enumerate().filter(move |(_, op)| is_it(op))
}

/// The faults of a history in the order in which they began.
pub fn spans(history: &History) -> Vec<Span> {
    let mut spans: Vec<(Value, Span)> = Vec::new();
    for (at, op) in nemesis(history) {
        if let Some(number) = get(op, "begin") {
            let span = Span {
                kind: op.f.clone(),
                what: get(op, "what").cloned().unwrap_or(Value::Nil),
                begin: (at, op.time),
                end: None,
                proof: None,
                missing: None,
                majority: get(op, "majority") == Some(&Value::Bool(true)),
            };
            spans.push((number.clone(), span));
        } else if let Some(number) = get(op, "end")
            && let Some((_, span)) = spans.iter_mut().find(|(begun, _)| begun == number)
        {
            span.end = Some((at, op.time));
            span.proof = text(get(op, "proof"));
            span.missing = text(get(op, "missing"));
        }
    }
    spans.into_iter().map(|(_, span)| span).collect()
}

/// What is missing before the run counts. `kinds` are the faults that were asked for.
pub fn check(history: &History, kinds: &[&str]) -> Report {
    let spans = spans(history);
    let succeeded = positions(history);
    let mut report = Report::new("covered", succeeded.len());
    for span in &spans {
        let name = format!("{} {}", span.kind, span.what);
        match (&span.proof, &span.missing) {
            (Some(_), _) => {}
            (None, Some(missing)) => {
                report.unknown.push(format!("{name} took no effect: {missing}"))
            }
            (None, None) => report.unknown.push(format!("{name} was not ended")),
        }
    }
    let happened: BTreeSet<&str> = spans.iter().map(|span| span.kind.as_str()).collect();
    for kind in kinds.iter().filter(|kind| !happened.contains(**kind)) {
        report.unknown.push(format!("{kind} did not take place"));
    }
    // What was asked before is no proof of what comes then.
    let within =
        |from: usize, to: usize| succeeded.iter().any(|(asked, done)| *asked >= from && *done < to);
    // Of a kind of fault that leaves a majority at least one must have been survived.
    let mut survived: BTreeMap<&str, bool> = BTreeMap::new();
    for span in spans.iter().filter(|span| span.majority) {
        let end = span.end.map_or(history.ops.len(), |(at, _)| at);
        *survived.entry(&span.kind).or_default() |= within(span.begin.0, end);
    }
    for (kind, _) in survived.iter().filter(|(_, survived)| !**survived) {
        report.unknown.push(format!("nothing succeeded during any {kind}"));
    }
    if let Some(first) = spans.iter().map(|span| span.begin.0).min()
        && !within(0, first)
    {
        report.unknown.push("nothing succeeded before the first fault".to_owned());
    }
    let last = spans.iter().map(|span| span.end.map_or(history.ops.len(), |(at, _)| at)).max();
    if let Some(last) = last
        && !within(last, history.ops.len())
    {
        report.unknown.push("nothing succeeded after the last fault".to_owned());
    }
    report.settle();
    report
}

/// What clients do without any node, or with one that tells what it knows by itself.
const LOCAL: [&str; 6] = ["wait", "pick", "journal", "guarded", "doze", "watch"];

/// Where operations of clients that needed the cluster were invoked and succeeded.
fn positions(history: &History) -> Vec<(usize, usize)> {
    let mut asked: BTreeMap<i64, usize> = BTreeMap::new();
    let mut succeeded = Vec::new();
    for (at, op) in history.ops.iter().enumerate() {
        let Process::Client(process) = op.process else { continue };
        match op.kind {
            Kind::Invoke => {
                asked.insert(process, at);
            }
            Kind::Ok if !LOCAL.contains(&&*op.f) => {
                succeeded.extend(asked.get(&process).map(|asked| (*asked, at)));
            }
            Kind::Ok | Kind::Fail | Kind::Info => {}
        }
    }
    succeeded
}
