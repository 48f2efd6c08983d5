//! Watches, against the order of revisions. Writers: `:write [[key value] ..]`, a nil value deletes; all pairs of
//! one write at one revision. Watchers: `:watch [after nil]`, answered with `[after [message ..]]` where a message
//! is `[:snapshot revision [[key value] ..]]`, `[:changes revision [[key value] ..]]` or `[:bookmark revision]`.
//! When all is at rest, `:watch [after revision]` has waited long enough for everything up to that revision.
//!
//! The guarantees: ordered, unique, reliable (no gap), atomic (a revision is one message), resumable (a watch
//! that goes on after a revision begins right behind it, or with a snapshot that is the state at its
//! revision), bookmarked (a bookmark promises that nothing up to it is missing).

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::counter::int;
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Error, History, Kind, Op};
use crate::report::Report;

/// What a revision did: the new value of each key, nil for a deletion.
type Changes<'a> = BTreeMap<&'a Value, &'a Value>;

/// All that is known of each revision, and who says so.
type Revisions<'a> = BTreeMap<i64, (Changes<'a>, &'a Op)>;

#[derive(Debug)]
enum Message<'a> {
    Snapshot(i64, Changes<'a>),
    Changes(i64, Changes<'a>),
    Bookmark(i64),
}

struct Watched<'a> {
    op: &'a Op,
    after: i64,
    messages: Vec<Message<'a>>,
    /// It must have come to what was acknowledged before it.
    least: Option<i64>,
}

pub fn check(history: &History) -> Result<Report, Error> {
    let mut acknowledged = Revisions::new();
    let mut unknown: Vec<Changes<'_>> = Vec::new();
    let mut watches = Vec::new();
    let mut succeeded = 0;
    let greatest = greatest(history);
    for call in history.calls()? {
        let invoked = &history.ops[call.invoke];
        let outcome = history.outcome(call);
        succeeded += usize::from(outcome == Kind::Ok);
        let done = call.complete.filter(|_| outcome == Kind::Ok).map(|at| &history.ops[at]);
        match (invoked.f.as_str(), done) {
            ("write", Some(op)) => {
                if let Some(at) = op.at.filter(|at| at.wrote) {
                    acknowledged.insert(at.revision, (pairs(op, &op.value)?, op));
                }
            }
            ("write", None) if outcome == Kind::Info => {
                unknown.push(pairs(invoked, &invoked.value)?)
            }
            ("watch", Some(op)) => {
                let waits = matches!(super::counter::part(invoked, 1)?, Value::Int(_));
                let least = waits.then(|| greatest(invoked.index)).flatten();
                watches.push(Watched { least, ..watched(op)? });
            }
            ("write" | "watch", None) => {}
            (other, _) => return Err(Error::malformed(invoked, format!("nobody knows :{other}"))),
        }
    }
    let mut report = Report::new("watched", succeeded);
    let known = agreed(&acknowledged, &unknown, &watches, &mut report);
    let mut seen = 0;
    for watch in &watches {
        seen += follow(watch, &known, &unknown, &mut report);
    }
    if seen == 0 {
        report.unknown.push("no watcher saw a change".to_owned());
    }
    report.settle();
    Ok(report)
}

fn pairs<'a>(op: &Op, value: &'a Value) -> Result<Changes<'a>, Error> {
    let wrong = || Error::malformed(op, "changes are [key value]");
    let mut changes = Changes::new();
    for pair in value.elements().ok_or_else(wrong)? {
        let Some([key, value]) = pair.elements() else { return Err(wrong()) };
        changes.insert(key, value);
    }
    Ok(changes)
}

fn watched(op: &Op) -> Result<Watched<'_>, Error> {
    let wrong = || {
        Error::malformed(
            op,
            "a watch hears [:snapshot|:changes revision pairs] and [:bookmark revision]",
        )
    };
    let heard = super::counter::part(op, 1)?.elements().ok_or_else(wrong)?;
    let mut messages = Vec::new();
    for message in heard {
        messages.push(match message.elements() {
            Some([Value::Keyword(kind), Value::Int(revision), changes]) if kind == "snapshot" => {
                Message::Snapshot(*revision, pairs(op, changes)?)
            }
            Some([Value::Keyword(kind), Value::Int(revision), changes]) if kind == "changes" => {
                Message::Changes(*revision, pairs(op, changes)?)
            }
            Some([Value::Keyword(kind), Value::Int(revision)]) if kind == "bookmark" => {
                Message::Bookmark(*revision)
            }
            _ => return Err(wrong()),
        });
    }
    Ok(Watched { op, after: int(op, 0)?, messages, least: None })
}

/// The greatest revision of a write that was acknowledged before an op.
fn greatest(history: &History) -> impl Fn(usize) -> Option<i64> {
    let mut greatest: Vec<(usize, i64)> = Vec::new();
    for op in history.ops.iter().filter(|op| op.kind == Kind::Ok && op.f == "write") {
        if let Some(at) = op.at.filter(|at| at.wrote) {
            let before = greatest.last().map_or(at.revision, |(_, revision)| *revision);
            greatest.push((op.index, before.max(at.revision)));
        }
    }
    move |index| {
        let before = greatest.partition_point(|(at, _)| *at < index);
        before.checked_sub(1).map(|last| greatest[last].1)
    }
}

/// What happened at each revision, by acknowledgements and by what watchers saw, who must agree.
fn agreed<'a>(
    acknowledged: &Revisions<'a>,
    unknown: &[Changes<'a>],
    watches: &[Watched<'a>],
    report: &mut Report,
) -> Revisions<'a> {
    let mut known = acknowledged.clone();
    for watch in watches {
        for message in &watch.messages {
            let Message::Changes(revision, changes) = message else { continue };
            match known.get(revision) {
                Some((other, by)) if other != changes => {
                    let what =
                        format!("revision {revision} is {changes:?} here and {other:?} there");
                    report.anomalies.push(anomaly("changes-differ", what, &[by, watch.op]));
                }
                Some(_) => {}
                None => {
                    if !unknown.contains(changes) {
                        let what =
                            format!("nobody wrote what revision {revision} shows: {changes:?}");
                        report.anomalies.push(anomaly("phantom-change", what, &[watch.op]));
                    }
                    known.insert(*revision, (changes.clone(), watch.op));
                }
            }
        }
    }
    known
}

/// One watch from its beginning to its end; the number of changes that it saw.
fn follow<'a>(
    watch: &Watched<'a>,
    known: &Revisions<'a>,
    unknown: &[Changes<'a>],
    report: &mut Report,
) -> usize {
    let mut complete = watch.after;
    let mut seen = 0;
    let mut wrong = |name, what: String, by: Option<&Op>| {
        let ops: Vec<&Op> = by.into_iter().chain([watch.op]).collect();
        report.anomalies.push(anomaly(name, what, &ops));
    };
    // Without a revision to go on after, a watch begins with a snapshot.
    if watch.after == 0 && !matches!(watch.messages.first(), None | Some(Message::Snapshot(..))) {
        wrong("no-snapshot", "the watch does not begin with a snapshot".to_owned(), None);
    }
    for message in &watch.messages {
        let (Message::Snapshot(revision, _)
        | Message::Changes(revision, _)
        | Message::Bookmark(revision)) = message;
        let goes_on = match message {
            Message::Changes(..) => *revision > complete,
            Message::Snapshot(..) | Message::Bookmark(_) => *revision >= complete,
        };
        if !goes_on {
            let what = format!("revision {revision} comes after {complete}");
            wrong("not-in-order", what, None);
            continue;
        }
        match message {
            Message::Snapshot(_, shown) => {
                if let Some(what) = differs(shown, *revision, known, unknown) {
                    wrong("wrong-snapshot", what, None);
                }
            }
            Message::Changes(..) | Message::Bookmark(_) => {
                let until = match message {
                    Message::Changes(..) => *revision - 1,
                    _ => *revision,
                };
                if complete < until
                    && let Some((missed, (_, by))) = known.range(complete + 1..=until).next()
                {
                    let what =
                        format!("revision {missed} is missing between {complete} and {revision}");
                    wrong("gap", what, Some(by));
                }
                seen += usize::from(matches!(message, Message::Changes(..)));
            }
        }
        complete = *revision;
    }
    if let Some(least) = watch.least.filter(|least| complete < *least) {
        let what = format!("the watch waits at {complete}, and {least} was acknowledged before it");
        wrong("silent", what, None);
    }
    seen
}

/// Why a snapshot is not the state at its revision; None if it is. What was written with unknown outcome may
/// explain what no known revision does.
fn differs(
    shown: &Changes<'_>,
    revision: i64,
    known: &Revisions<'_>,
    unknown: &[Changes<'_>],
) -> Option<String> {
    let mut state: HashMap<&Value, &Value> = HashMap::new();
    for (changes, _) in known.range(..=revision).map(|(_, known)| known) {
        state.extend(changes);
    }
    let nil = Value::Nil;
    let keys: BTreeSet<&Value> = shown.keys().copied().chain(state.keys().copied()).collect();
    keys.into_iter().find_map(|key| {
        let found = shown.get(key).copied().unwrap_or(&nil);
        let expected = state.get(key).copied().unwrap_or(&nil);
        let explained = || unknown.iter().any(|changes| changes.get(key) == Some(&found));
        (found != expected && !explained()).then(|| {
            format!("at revision {revision} the snapshot shows {key} as {found}, it is {expected}")
        })
    })
}
