//! Gray releases: `:publish [item value]`, `:gray [item value rule priority picks]`, `:end [item rule promote]`, and
//! `:read [item reader nil]`, answered with `[item reader [value rule]]`, an empty rule for what everybody gets, or
//! with nil for the last part when there is no such item. `:final` is a read at rest, when nothing is gray.
//!
//! Each read shows what the releases and the rules of its revision give that reader: every item is replayed in the
//! order of revisions, with writes of unknown outcome wherever they may have taken place. Besides, without any
//! trust in revisions: nobody is shown what was not published, or is not for him, or what was ended before; and at
//! rest all are shown the same.

use std::collections::{BTreeMap, BTreeSet};

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::counter::{int, part};
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Call, Error, History, Kind, Op};
use crate::report::Report;

pub const GROUP: &str = "jepsen-gray";

/// States that are kept for one item before it is too much to guess.
const STATES: usize = 50_000;

pub fn key(item: &Value) -> String {
    format!("g-{item}")
}

/// The id of a reader, and its labels.
pub fn client(reader: i64) -> String {
    format!("reader-{reader}")
}

pub fn labels(reader: i64) -> BTreeMap<String, String> {
    let label = |name: &str, value| (name.to_owned(), format!("{value}"));
    BTreeMap::from([label("tier", reader % 2), label("zone", reader % 3)])
}

/// Whom a rule picks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Picks {
    Labels(BTreeMap<String, String>),
    Clients(Vec<i64>),
    /// In hundredths of a percent.
    Share(i64),
}

impl Picks {
    pub fn of(value: &Value) -> Option<Picks> {
        let Value::Map(map) = value else { return None };
        let (kind, value) = map.iter().next()?;
        let Value::Keyword(kind) = kind else { return None };
        match (kind.as_str(), value) {
            ("labels", Value::Map(labels)) => {
                let labels = labels.iter().map(|label| match label {
                    (Value::String(name), Value::String(value)) => {
                        Some((name.clone(), value.clone()))
                    }
                    _ => None,
                });
                labels.collect::<Option<_>>().map(Picks::Labels)
            }
            ("clients", Value::Vector(clients)) => {
                let clients = clients.iter().map(|client| match client {
                    Value::Int(client) => Some(*client),
                    _ => None,
                });
                clients.collect::<Option<_>>().map(Picks::Clients)
            }
            ("share", Value::Int(share)) => Some(Picks::Share(*share)),
            _ => None,
        }
    }

    fn picks(&self, item: &Value, reader: i64) -> bool {
        match self {
            Picks::Labels(wanted) => {
                let has = labels(reader);
                wanted.iter().all(|(name, value)| has.get(name) == Some(value))
            }
            Picks::Clients(clients) => clients.contains(&reader),
            // docs/CONFIG.md: by a stable hash of the client's id, another one for each item.
            Picks::Share(share) => {
                let names = format!("default\0{GROUP}\0{}", key(item));
                let place = xxh3_64_with_seed(client(reader).as_bytes(), xxh3_64(names.as_bytes()));
                ((place % 10_000) as i64) < *share
            }
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Gray {
    value: i64,
    priority: i64,
    picks: Picks,
}

/// What an item is.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Item {
    current: Option<i64>,
    gray: BTreeMap<String, Gray>,
}

#[derive(Debug, Clone)]
enum Write {
    Publish(i64),
    Gray(String, Gray),
    End { rule: String, promote: bool },
}

/// What a read showed: value and rule.
type Shown<'a> = Option<(i64, &'a str)>;

impl Item {
    /// The item after a write; None: it is refused.
    fn after(&self, write: &Write) -> Option<Item> {
        let mut item = self.clone();
        match write {
            Write::Publish(value) => item.current = Some(*value),
            Write::Gray(rule, gray) => {
                item.current?;
                item.gray.insert(rule.clone(), gray.clone());
            }
            Write::End { rule, promote } => {
                let gray = item.gray.remove(rule)?;
                if *promote {
                    item.current = Some(gray.value);
                }
            }
        }
        Some(item)
    }

    /// Of the rules that pick the reader the one of the greatest priority, among these the first by name.
    fn shows(&self, name: &Value, reader: i64) -> Shown<'_> {
        let mut best: Option<(&String, &Gray)> = None;
        for (rule, gray) in &self.gray {
            let better = best.is_none_or(|(_, other)| gray.priority > other.priority);
            if gray.picks.picks(name, reader) && better {
                best = Some((rule, gray));
            }
        }
        match best {
            Some((rule, gray)) => Some((gray.value, rule)),
            None => self.current.map(|value| (value, "")),
        }
    }
}

/// A write to an item.
struct Written<'a> {
    call: Call,
    op: &'a Op,
    outcome: Kind,
    write: Write,
}

/// A read of an item.
struct Read<'a> {
    call: Call,
    op: &'a Op,
    reader: i64,
    shown: Shown<'a>,
}

#[derive(Default)]
struct Story<'a> {
    writes: Vec<Written<'a>>,
    reads: Vec<Read<'a>>,
}

pub fn check(history: &History) -> Result<Report, Error> {
    let calls = history.calls()?;
    let succeeded = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok).count();
    let mut report = Report::new("same-for-one", succeeded);
    let stories = stories(history, &calls)?;
    let (mut grays, mut finals) = (0, 0);
    for (item, story) in &stories {
        replay(item, story, &mut report);
        for read in &story.reads {
            believable(item, story, read, &mut report);
            grays += usize::from(read.shown.is_some_and(|(_, rule)| !rule.is_empty()));
        }
        finals += at_rest(item, story, &mut report);
    }
    if grays == 0 {
        report.unknown.push("nobody was shown a gray release".to_owned());
    }
    if finals == 0 {
        report.unknown.push("nobody looked at rest".to_owned());
    }
    report.settle();
    Ok(report)
}

fn stories<'a>(
    history: &'a History,
    calls: &[Call],
) -> Result<BTreeMap<&'a Value, Story<'a>>, Error> {
    let mut stories: BTreeMap<&Value, Story<'_>> = BTreeMap::new();
    for &call in calls {
        let op = &history.ops[call.invoke];
        let outcome = history.outcome(call);
        let wrong = || Error::malformed(op, "it is no operation on gray releases");
        let write = match op.f.as_str() {
            "wait" => continue,
            "read" | "final" => {
                let Some(at) = call.complete.filter(|_| outcome == Kind::Ok) else { continue };
                let op = &history.ops[at];
                let shown = match part(op, 2)?.elements() {
                    None if *part(op, 2)? == Value::Nil => None,
                    Some([Value::Int(value), Value::String(rule)]) => Some((*value, rule.as_str())),
                    _ => return Err(Error::malformed(op, "a read shows [value rule]")),
                };
                let reader = int(op, 1)?;
                stories.entry(part(op, 0)?).or_default().reads.push(Read {
                    call,
                    op,
                    reader,
                    shown,
                });
                continue;
            }
            "publish" => Write::Publish(int(op, 1)?),
            "gray" => {
                let Value::String(rule) = part(op, 2)? else { return Err(wrong()) };
                let picks = Picks::of(part(op, 4)?).ok_or_else(wrong)?;
                let gray = Gray { value: int(op, 1)?, priority: int(op, 3)?, picks };
                Write::Gray(rule.clone(), gray)
            }
            "end" => match (part(op, 1)?, part(op, 2)?) {
                (Value::String(rule), Value::Bool(promote)) => {
                    Write::End { rule: rule.clone(), promote: *promote }
                }
                _ => return Err(wrong()),
            },
            _ => return Err(wrong()),
        };
        let op = call.complete.map_or(op, |at| &history.ops[at]);
        let written = Written { call, op, outcome, write };
        stories.entry(part(op, 0)?).or_default().writes.push(written);
    }
    Ok(stories)
}

/// An event of an item whose place in the order is known.
#[derive(Clone, Copy)]
enum Event<'a> {
    Write(&'a Written<'a>),
    Read(&'a Read<'a>),
}

impl<'a> Event<'a> {
    fn op(self) -> &'a Op {
        match self {
            Event::Write(write) => write.op,
            Event::Read(read) => read.op,
        }
    }
}

/// All states that the item may be in, from event to event. The first event that fits none is reported.
fn replay(name: &Value, story: &Story<'_>, report: &mut Report) {
    let known = story.writes.iter().filter(|write| write.outcome == Kind::Ok).map(Event::Write);
    let reads = story.reads.iter().map(Event::Read);
    // What a read saw includes the write of its revision.
    let order = |event: &Event<'_>| {
        let at = event.op().at.map(|at| at.revision);
        at.map(|revision| (revision, matches!(event, Event::Read(_))))
    };
    let mut events: Vec<Event<'_>> = known.chain(reads).filter(|it| order(it).is_some()).collect();
    events.sort_by_key(order);
    let unknown: Vec<&Written<'_>> =
        story.writes.iter().filter(|write| write.outcome == Kind::Info).collect();
    if unknown.len() > 64 {
        let count = unknown.len();
        report.unknown.push(format!("item {name} has {count} writes of unknown outcome"));
        return;
    }
    // Each with the unknown writes that took place in it.
    let mut states = BTreeSet::from([(Item::default(), 0u64)]);
    for event in events {
        let op = event.op();
        let may = |number: usize| unknown[number].call.invoke < op_place(event);
        let mut fresh: Vec<(Item, u64)> = states.iter().cloned().collect();
        while let Some((item, used)) = fresh.pop() {
            for (number, write) in unknown.iter().enumerate() {
                let bit = 1 << number;
                if used & bit == 0
                    && may(number)
                    && let Some(after) = item.after(&write.write)
                    && states.insert((after.clone(), used | bit))
                {
                    fresh.push((after, used | bit));
                }
            }
            if states.len() > STATES {
                report.unknown.push(format!("item {name} may be in too many states to be judged"));
                return;
            }
        }
        let next: BTreeSet<(Item, u64)> = match event {
            Event::Write(write) => {
                let after = |(item, used): &(Item, u64)| Some((item.after(&write.write)?, *used));
                states.iter().filter_map(after).collect()
            }
            Event::Read(read) => {
                let fits = |(item, _): &&(Item, u64)| item.shows(name, read.reader) == read.shown;
                states.iter().filter(fits).cloned().collect()
            }
        };
        if next.is_empty() {
            let expected = states.first().map(|(item, _)| format!("{item:?}")).unwrap_or_default();
            let what = format!("item {name} differs; of {} states one is {expected}", states.len());
            report.anomalies.push(anomaly("replay-differs", what, &[op]));
            return;
        }
        states = next;
    }
}

/// Where in the history the event had certainly taken place.
fn op_place(event: Event<'_>) -> usize {
    let call = match event {
        Event::Write(write) => write.call,
        Event::Read(read) => read.call,
    };
    call.complete.unwrap_or(usize::MAX)
}

/// Whether the reader may be shown this at all.
fn believable(name: &Value, story: &Story<'_>, read: &Read<'_>, report: &mut Report) {
    let Some((value, rule)) = read.shown else { return };
    let done = read.call.complete.unwrap_or(usize::MAX);
    // What certainly did not take place, or had not begun, shows nothing.
    let mut possible =
        story.writes.iter().filter(|write| write.outcome != Kind::Fail && write.call.invoke < done);
    let origin = possible.clone().find(|written| match &written.write {
        Write::Publish(published) => *published == value,
        Write::Gray(_, gray) => gray.value == value,
        Write::End { .. } => false,
    });
    let mut found = |name, what, ops: &[&Op]| report.anomalies.push(anomaly(name, what, ops));
    let Some(origin) = origin else {
        let what = format!("item {name} shows {value}, which nobody published");
        return found("phantom-release", what, &[read.op]);
    };
    let ends = |written: &Written<'_>, of: &str, promoted: bool| match &written.write {
        Write::End { rule, promote } => rule == of && (*promote || !promoted),
        _ => false,
    };
    match &origin.write {
        Write::Publish(_) if rule.is_empty() => {}
        Write::Gray(of, _) if rule.is_empty() => {
            if !possible.any(|written| ends(written, of, true)) {
                let what = format!("everybody is shown {value}, and nobody promoted it");
                found("not-promoted", what, &[origin.op, read.op]);
            }
        }
        Write::Gray(of, gray) if of == rule => {
            if !gray.picks.picks(name, read.reader) {
                let what = format!("reader {} is shown {value}, which is for others", read.reader);
                found("for-others", what, &[origin.op, read.op]);
            }
            // It was there before its end was asked for, so the end was its own or that of a later one.
            let published = origin.call.complete.filter(|_| origin.outcome == Kind::Ok);
            let ended = possible.find(|written| {
                let before = written.call.complete.is_some_and(|at| at < read.call.invoke);
                written.outcome == Kind::Ok
                    && ends(written, of, false)
                    && before
                    && published.is_some_and(|at| at < written.call.invoke)
            });
            if let Some(ended) = ended {
                let what = format!("reader {} is shown {value} after its end", read.reader);
                found("gray-after-its-end", what, &[origin.op, ended.op, read.op]);
            }
        }
        _ => {
            let what = format!("item {name} shows {value} by rule {rule:?}, which is not its own");
            found("phantom-release", what, &[origin.op, read.op]);
        }
    }
}

/// When nothing is gray any more all are shown the same. How many looked.
fn at_rest(name: &Value, story: &Story<'_>, report: &mut Report) -> usize {
    let mut finals = story.reads.iter().filter(|read| read.op.f == "final");
    let Some(first) = finals.next() else { return 0 };
    let mut count = 1;
    for read in finals {
        count += 1;
        if read.shown != first.shown {
            let what = format!("item {name} is not the same for all at rest");
            report.anomalies.push(anomaly("not-the-same", what, &[first.op, read.op]));
        }
    }
    if let Some((value, rule)) = first.shown.filter(|(_, rule)| !rule.is_empty()) {
        let what = format!("item {name} shows {value} by rule {rule:?} at rest");
        report.anomalies.push(anomaly("still-gray", what, &[first.op]));
    }
    count
}
