//! List-append: transactions of `[:append key element]` and `[:r key [elements..]]`, where every element is
//! appended to a key once. What a read shows is then a key's whole past, from which dependencies follow.
//!
//! The method is Elle's (Kingsbury & Alvaro, VLDB 2020); the phenomena are Adya's (1999).
//!
//! What took place and is not in a key's longest read comes after it, so a lost append is a cycle once a
//! later read should have shown it, and so is the half of a transaction.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::edn::Value;
use crate::graph::{Graph, Kind as Edge};
use crate::history::{Error, History, Kind, Op};
use crate::intern::Interner;
use crate::report::{Anomaly, Report};

/// A micro-operation; keys and elements are interned.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Append(u32, u32),
    /// None: what it saw is not known.
    Read(u32, Option<Vec<u32>>),
}

#[derive(Debug)]
struct Transaction {
    steps: Vec<Step>,
    outcome: Kind,
    invoke: usize,
    complete: Option<usize>,
}

/// Why an edge is there.
#[derive(Debug)]
enum Reason {
    /// `element` right after `before`.
    Appended {
        key: u32,
        element: u32,
        before: u32,
    },
    Observed {
        key: u32,
        element: u32,
    },
    /// `last` is what it saw last; None: it saw an empty list.
    Missed {
        key: u32,
        element: u32,
        last: Option<u32>,
    },
    Completed {
        complete: usize,
        invoke: usize,
    },
}

/// Judges whether the transactions of a history are strictly serializable.
pub fn check(history: &History) -> Result<Report, Error> {
    let checker = Checker::new(history)?;
    let succeeded = checker.transactions.iter().filter(|t| t.outcome == Kind::Ok).count();
    let mut report = Report::new("strict-serializable", succeeded);
    checker.internal(&mut report);
    checker.duplicates(&mut report);
    checker.aborted(&mut report);
    checker.intermediate(&mut report);
    checker.phantoms(&mut report);
    let orders = checker.orders(&mut report);
    checker.dirty_updates(&orders, &mut report);
    checker.lost_updates(&mut report);
    checker.cycles(&orders, &mut report);
    report.settle();
    Ok(report)
}

#[derive(Debug)]
struct Checker<'a> {
    history: &'a History,
    names: Interner,
    transactions: Vec<Transaction>,
    /// Who appended an element to a key, and at which step.
    writers: HashMap<(u32, u32), (usize, usize)>,
    /// What each key's successful reads showed, with the transaction, in the order of invocations.
    reads: BTreeMap<u32, Vec<(usize, Vec<u32>)>>,
}

/// The elements of each key in the order of their appending, as far as it was seen.
type Orders = BTreeMap<u32, Vec<u32>>;

impl<'a> Checker<'a> {
    fn new(history: &'a History) -> Result<Checker<'a>, Error> {
        let mut names = Interner::default();
        let mut transactions = Vec::new();
        for call in history.calls()? {
            let invoked = &history.ops[call.invoke];
            let outcome = history.outcome(call);
            let asked = steps(invoked, &mut names)?;
            let mut heard = match call.complete {
                Some(at) if outcome == Kind::Ok => {
                    let op = &history.ops[at];
                    let heard = steps(op, &mut names)?;
                    if !fits(&asked, &heard) {
                        let problem = format!("completes {} as {}", invoked.value, op.value);
                        return Err(Error::malformed(op, problem));
                    }
                    heard
                }
                _ => asked,
            };
            if outcome != Kind::Ok {
                forget(&mut heard);
            }
            let complete = call.complete.filter(|_| outcome == Kind::Ok);
            let (steps, invoke) = (heard, call.invoke);
            transactions.push(Transaction { steps, outcome, invoke, complete });
        }
        let mut writers = HashMap::new();
        let mut reads: BTreeMap<u32, Vec<_>> = BTreeMap::new();
        for (number, transaction) in transactions.iter().enumerate() {
            for (at, step) in transaction.steps.iter().enumerate() {
                match step {
                    Step::Append(key, element) => {
                        if writers.insert((*key, *element), (number, at)).is_some() {
                            let (key, element) = (names.value(*key), names.value(*element));
                            let op = &history.ops[transaction.invoke];
                            let problem = format!("{element} is appended to {key} twice");
                            return Err(Error::malformed(op, problem));
                        }
                    }
                    Step::Read(key, Some(elements)) => {
                        reads.entry(*key).or_default().push((number, elements.clone()));
                    }
                    Step::Read(_, None) => {}
                }
            }
        }
        Ok(Checker { history, names, transactions, writers, reads })
    }

    /// The op that shows a transaction best.
    fn op(&self, number: usize) -> &Op {
        let transaction = &self.transactions[number];
        &self.history.ops[transaction.complete.unwrap_or(transaction.invoke)]
    }

    fn writer(&self, key: u32, element: u32) -> Option<usize> {
        self.writers.get(&(key, element)).map(|&(number, _)| number)
    }

    fn list(&self, elements: &[u32]) -> String {
        let values = elements.iter().map(|&element| self.names.value(element).clone());
        Value::Vector(values.collect()).to_string()
    }

    fn anomaly(&self, name: &'static str, what: String, numbers: &[usize]) -> Anomaly {
        let details = numbers.iter().map(|&number| self.op(number).to_string()).collect();
        Anomaly { name, what, details }
    }

    fn all_reads(&self) -> impl Iterator<Item = (u32, usize, &[u32])> {
        self.reads.iter().flat_map(|(&key, reads)| {
            reads.iter().map(move |(number, elements)| (key, *number, elements.as_slice()))
        })
    }

    /// A transaction disagrees with itself: a read is not what an earlier read and its own appends make it,
    /// or shows what it is to append later.
    fn internal(&self, report: &mut Report) {
        for (number, transaction) in self.transactions.iter().enumerate() {
            // For each key what is known of its end, and whether that is the whole list.
            let mut known: HashMap<u32, (Vec<u32>, bool)> = HashMap::new();
            for (at, step) in transaction.steps.iter().enumerate() {
                match step {
                    Step::Append(key, element) => known.entry(*key).or_default().0.push(*element),
                    Step::Read(key, Some(elements)) => {
                        let (end, whole) = known.entry(*key).or_default();
                        let agrees = if *whole { elements == end } else { elements.ends_with(end) };
                        let own = |element: &&u32| self.writers.get(&(*key, **element));
                        let early = |element: &&u32| {
                            own(element)
                                .is_some_and(|&(writer, step)| writer == number && step > at)
                        };
                        let name = self.names.value(*key);
                        if !agrees {
                            let ending = if *whole { "" } else { "a list that ends with " };
                            let (expected, read) = (self.list(end), self.list(elements));
                            let what = format!(
                                "read {read} of key {name} where its own steps make it {ending}{expected}"
                            );
                            report.anomalies.push(self.anomaly("internal", what, &[number]));
                        } else if let Some(&element) = elements.iter().find(early) {
                            let element = self.names.value(element);
                            let what = format!("read {element} of key {name} before appending it");
                            report.anomalies.push(self.anomaly("internal", what, &[number]));
                        }
                        (*end, *whole) = (elements.clone(), true);
                    }
                    Step::Read(_, None) => {}
                }
            }
        }
    }

    fn duplicates(&self, report: &mut Report) {
        for (key, number, elements) in self.all_reads() {
            if let Some(element) = repeated(elements) {
                let (key, element) = (self.names.value(key), self.names.value(element));
                let what = format!("a read of key {key} shows {element} more than once");
                report.anomalies.push(self.anomaly("duplicate-elements", what, &[number]));
            }
        }
    }

    /// G1a: what a failed transaction appended was read.
    fn aborted(&self, report: &mut Report) {
        for (key, number, elements) in self.all_reads() {
            for &element in elements {
                let Some(writer) = self.writer(key, element) else { continue };
                if self.transactions[writer].outcome == Kind::Fail {
                    let (key, element) = (self.names.value(key), self.names.value(element));
                    let what = format!("a read of key {key} shows {element}, whose append failed");
                    report.anomalies.push(self.anomaly("G1a", what, &[number, writer]));
                }
            }
        }
    }

    /// G1b: a read ends within another transaction's appends.
    fn intermediate(&self, report: &mut Report) {
        for (key, number, elements) in self.all_reads() {
            let Some(&element) = elements.last() else { continue };
            let Some(&(writer, at)) = self.writers.get(&(key, element)) else { continue };
            let later = self.transactions[writer].steps.iter().skip(at + 1);
            let next = later.filter_map(|step| match step {
                Step::Append(other, next) if *other == key => Some(*next),
                _ => None,
            });
            if let Some(next) = next.into_iter().next().filter(|_| writer != number) {
                let (key, element) = (self.names.value(key), self.names.value(element));
                let what = format!(
                    "a read of key {key} ends with {element}, after which the same transaction appended {}",
                    self.names.value(next)
                );
                report.anomalies.push(self.anomaly("G1b", what, &[number, writer]));
            }
        }
    }

    fn phantoms(&self, report: &mut Report) {
        for (key, number, elements) in self.all_reads() {
            for &element in elements {
                if self.writer(key, element).is_none() {
                    let (key, element) = (self.names.value(key), self.names.value(element));
                    let what =
                        format!("a read of key {key} shows {element}, which nobody appended");
                    report.anomalies.push(self.anomaly("phantom-element", what, &[number]));
                }
            }
        }
    }

    /// Each key's order, from its longest read. Keys whose reads contradict each other have none.
    fn orders(&self, report: &mut Report) -> Orders {
        let mut orders = Orders::new();
        for (&key, reads) in &self.reads {
            let Some((longest, order)) = reads.iter().max_by_key(|(_, elements)| elements.len())
            else {
                continue;
            };
            let other = reads.iter().find(|(_, elements)| !order.starts_with(elements));
            if let Some((number, elements)) = other {
                let (key, order, elements) =
                    (self.names.value(key), self.list(order), self.list(elements));
                let what = format!("key {key} was read as {elements} and as {order}");
                let numbers = [*number, *longest];
                report.anomalies.push(self.anomaly("incompatible-order", what, &numbers));
            } else if repeated(order).is_none() {
                orders.insert(key, order.clone());
            }
        }
        orders
    }

    /// What committed builds upon what was aborted.
    fn dirty_updates(&self, orders: &Orders, report: &mut Report) {
        for (&key, order) in orders {
            let mut aborted = None;
            for &element in order {
                let Some(writer) = self.writer(key, element) else { continue };
                match (self.transactions[writer].outcome, aborted) {
                    (Kind::Fail, _) => aborted = Some((writer, element)),
                    (Kind::Ok, Some((failed, dirty))) => {
                        let name = |id| self.names.value(id);
                        let what = format!(
                            "key {} has {}, which was committed, after {}, whose append failed",
                            name(key),
                            name(element),
                            name(dirty)
                        );
                        report.anomalies.push(self.anomaly(
                            "dirty-update",
                            what,
                            &[failed, writer],
                        ));
                        aborted = None;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Two committed transactions read the same version of a key and appended to it.
    fn lost_updates(&self, report: &mut Report) {
        let mut updates: BTreeMap<(u32, &[u32]), Vec<usize>> = BTreeMap::new();
        for (number, transaction) in self.transactions.iter().enumerate() {
            // Keys whose first step here was this read.
            let mut first: BTreeMap<u32, Option<&[u32]>> = BTreeMap::new();
            let mut appended = BTreeSet::new();
            for step in &transaction.steps {
                match step {
                    Step::Append(key, _) => {
                        first.entry(*key).or_insert(None);
                        appended.insert(*key);
                    }
                    Step::Read(key, elements) => {
                        first.entry(*key).or_insert(elements.as_deref());
                    }
                }
            }
            for key in appended {
                if let Some(Some(version)) = first.get(&key) {
                    updates.entry((key, version)).or_default().push(number);
                }
            }
        }
        for ((key, version), numbers) in updates {
            if numbers.len() > 1 {
                let (key, version) = (self.names.value(key), self.list(version));
                let what = format!("{} transactions read key {key} as {version}", numbers.len());
                let what = format!("{what} and appended to it");
                report.anomalies.push(self.anomaly("lost-update", what, &numbers));
            }
        }
    }

    fn cycles(&self, orders: &Orders, report: &mut Report) {
        let times = self.transactions.iter().map(|t| (t.invoke, t.complete)).collect();
        let mut graph = Graph::new(times);
        let observed: BTreeSet<usize> = self.observed().collect();
        let mut unread = self.unread(orders, &observed);
        for (&key, order) in orders {
            let unread = unread.remove(&key).unwrap_or_default();
            self.dependencies(key, order, &unread, &mut graph);
        }
        self.real_time(&observed, &mut graph);
        for (name, cycle) in graph.cycles() {
            let mut details = Vec::new();
            for (at, &(number, _)) in cycle.iter().enumerate() {
                details.push(format!("T{} = {}", at + 1, self.op(number)));
            }
            let mut kinds = Vec::new();
            for (at, &(from, kind)) in cycle.iter().enumerate() {
                let next = (at + 1) % cycle.len();
                let (to, _) = cycle[next];
                let (complete, invoke) =
                    (self.transactions[from].complete, self.transactions[to].invoke);
                let why = match (kind, complete) {
                    (Edge::RealTime, Some(complete)) => {
                        Some(&Reason::Completed { complete, invoke })
                    }
                    _ => graph.reason(from, to, kind),
                };
                let Some(reason) = why else { continue };
                let (first, second) = (format!("T{}", at + 1), format!("T{}", next + 1));
                kinds.push(symbol(kind));
                details.push(self.explain(&first, &second, kind, reason));
            }
            let what = format!("a cycle of {} transactions: {}", cycle.len(), kinds.join(" "));
            report.anomalies.push(Anomaly { name, what, details });
        }
    }

    fn committed(&self, key: u32, element: u32) -> Option<usize> {
        let writer = self.writer(key, element)?;
        (self.transactions[writer].outcome != Kind::Fail).then_some(writer)
    }

    /// Transactions of unknown outcome of which something was read: they took place.
    fn observed(&self) -> impl Iterator<Item = usize> {
        self.all_reads().flat_map(move |(key, _, elements)| {
            elements.iter().filter_map(move |&element| self.committed(key, element))
        })
    }

    /// For each key what was appended to it and is not in its order, with who appended it: transactions that
    /// succeeded, and those of unknown outcome that were seen elsewhere, and so took place as a whole.
    fn unread(
        &self,
        orders: &Orders,
        observed: &BTreeSet<usize>,
    ) -> BTreeMap<u32, Vec<(usize, u32)>> {
        let read: HashSet<(u32, u32)> = orders
            .iter()
            .flat_map(|(&key, order)| order.iter().map(move |&element| (key, element)))
            .collect();
        let mut unread: BTreeMap<u32, Vec<(usize, u32)>> = BTreeMap::new();
        for (number, transaction) in self.transactions.iter().enumerate() {
            for step in &transaction.steps {
                if let &Step::Append(key, element) = step
                    && (transaction.outcome == Kind::Ok || observed.contains(&number))
                    && !read.contains(&(key, element))
                {
                    unread.entry(key).or_default().push((number, element));
                }
            }
        }
        unread
    }

    /// The edges that one key's order gives.
    fn dependencies(
        &self,
        key: u32,
        order: &[u32],
        unread: &[(usize, u32)],
        graph: &mut Graph<Reason>,
    ) {
        // Neighbours; what was aborted is reported elsewhere and no version here.
        let chain: Vec<(usize, u32)> = order
            .iter()
            .filter_map(|&element| Some((self.committed(key, element)?, element)))
            .collect();
        for pair in chain.windows(2) {
            let ((from, before), (to, element)) = (pair[0], pair[1]);
            let reason = Reason::Appended { key, element, before };
            graph.add(from, to, Edge::WriteWrite, reason);
        }
        // What was never read stands behind all that was.
        for &(to, element) in unread {
            if let Some(&(from, before)) = chain.last() {
                let reason = Reason::Appended { key, element, before };
                graph.add(from, to, Edge::WriteWrite, reason);
            }
        }
        for (reader, elements) in self.reads.get(&key).into_iter().flatten() {
            let last = elements.last().copied();
            if let Some(element) = last
                && let Some(writer) = self.committed(key, element)
            {
                graph.add(writer, *reader, Edge::WriteRead, Reason::Observed { key, element });
            }
            let rest = order.get(elements.len()..).unwrap_or_default();
            let next =
                rest.iter().find_map(|&element| Some((self.committed(key, element)?, element)));
            match next {
                Some((writer, element)) => {
                    let reason = Reason::Missed { key, element, last };
                    graph.add(*reader, writer, Edge::ReadWrite, reason);
                }
                None => {
                    for &(writer, element) in unread {
                        let reason = Reason::Missed { key, element, last };
                        graph.add(*reader, writer, Edge::ReadWrite, reason);
                    }
                }
            }
        }
    }

    /// Edges from what had completed to what was invoked then, without those that others imply.
    fn real_time(&self, observed: &BTreeSet<usize>, graph: &mut Graph<Reason>) {
        let mut events = Vec::new();
        for (number, transaction) in self.transactions.iter().enumerate() {
            let took_place = transaction.outcome == Kind::Ok || observed.contains(&number);
            if took_place {
                events.push((transaction.invoke, number, true));
                events.extend(transaction.complete.map(|at| (at, number, false)));
            }
        }
        events.sort_unstable();
        // Completed transactions that no other completed one follows.
        let mut frontier: BTreeSet<usize> = BTreeSet::new();
        // What completed before an open transaction was invoked.
        let mut before: HashMap<usize, Vec<usize>> = HashMap::new();
        for (at, number, is_invocation) in events {
            if is_invocation {
                for &earlier in &frontier {
                    let complete = self.transactions[earlier].complete.unwrap_or(at);
                    let reason = Reason::Completed { complete, invoke: at };
                    graph.add(earlier, number, Edge::RealTime, reason);
                }
                before.insert(number, frontier.iter().copied().collect());
            } else {
                for earlier in before.remove(&number).unwrap_or_default() {
                    frontier.remove(&earlier);
                }
                frontier.insert(number);
            }
        }
    }

    fn explain(&self, first: &str, second: &str, kind: Edge, reason: &Reason) -> String {
        let name = |id: &u32| self.names.value(*id);
        let why = match reason {
            Reason::Appended { key, element, before } => format!(
                "{second} appended {} to key {} after {first} appended {}",
                name(element),
                name(key),
                name(before)
            ),
            Reason::Observed { key, element } => {
                format!(
                    "{second} read {}, which {first} appended to key {}",
                    name(element),
                    name(key)
                )
            }
            Reason::Missed { key, element, last } => {
                let saw = match last {
                    Some(last) => format!("up to {}", name(last)),
                    None => "as empty".to_owned(),
                };
                format!(
                    "{first} read key {} {saw}, without {}, which {second} appended",
                    name(key),
                    name(element)
                )
            }
            Reason::Completed { complete, invoke } => {
                let index = |at: &usize| self.history.ops[*at].index;
                format!(
                    "{first} completed at op {}, before {second} was invoked at op {}",
                    index(complete),
                    index(invoke)
                )
            }
        };
        format!("{first} -{}-> {second}: {why}", symbol(kind))
    }
}

fn symbol(kind: Edge) -> &'static str {
    match kind {
        Edge::WriteWrite => "ww",
        Edge::WriteRead => "wr",
        Edge::ReadWrite => "rw",
        Edge::RealTime => "rt",
    }
}

fn repeated(elements: &[u32]) -> Option<u32> {
    let mut seen = BTreeSet::new();
    elements.iter().copied().find(|&element| !seen.insert(element))
}

fn steps(op: &Op, names: &mut Interner) -> Result<Vec<Step>, Error> {
    if op.f != "txn" {
        return Err(Error::malformed(op, format!("list-append knows no :{}", op.f)));
    }
    let wrong = |step: &Value| {
        let wants = "a transaction is of [:append key element] and [:r key [elements]]";
        Error::malformed(op, format!("{wants}, not of {step}"))
    };
    let steps = op.value.elements().ok_or_else(|| wrong(&op.value))?;
    let steps = steps.iter().map(|step| {
        let Some([Value::Keyword(what), key, value]) = step.elements() else {
            return Err(wrong(step));
        };
        let key = names.id(key);
        match (what.as_str(), value.untagged()) {
            ("append", element) => Ok(Step::Append(key, names.id(element))),
            // A list that is not there is an empty one, if the transaction succeeded.
            ("r", Value::Nil) => Ok(Step::Read(key, Some(Vec::new()))),
            ("r", list) => {
                let elements = list.elements().ok_or_else(|| wrong(step))?;
                Ok(Step::Read(key, Some(elements.iter().map(|e| names.id(e)).collect())))
            }
            _ => Err(wrong(step)),
        }
    });
    steps.collect()
}

/// What a transaction of unknown outcome asks for says nothing of what it read.
fn forget(steps: &mut [Step]) {
    for step in steps {
        if let Step::Read(_, elements) = step {
            *elements = None;
        }
    }
}

/// Whether a completion has the steps of its invocation.
fn fits(asked: &[Step], heard: &[Step]) -> bool {
    let fits = |pair: (&Step, &Step)| match pair {
        (Step::Append(..), Step::Append(..)) => pair.0 == pair.1,
        (Step::Read(asked, _), Step::Read(heard, _)) => asked == heard,
        _ => false,
    };
    asked.len() == heard.len() && asked.iter().zip(heard).all(fits)
}
