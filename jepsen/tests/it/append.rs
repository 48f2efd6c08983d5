//! List-append: a written history for each anomaly, simulated databases, and what breaks them.

use quorate_jepsen::append;
use quorate_jepsen::history::History;
use quorate_jepsen::report::{Report, Valid};

use quorate_jepsen::random::Random;

/// A history of lines such as `0 invoke a x 1, r x`: process, type, and steps `a key element` or
/// `r key elements..`.
fn history(lines: &str) -> History {
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    let ops = lines.map(|line| {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().unwrap();
        let (process, kind, steps) = (word(), word(), word());
        let steps = steps.split(',').map(|step| {
            let words: Vec<&str> = step.split_whitespace().collect();
            match words[0] {
                "a" => format!("[:append :{} {}]", words[1], words[2]),
                _ if kind != "ok" => format!("[:r :{} nil]", words[1]),
                _ => format!("[:r :{} [{}]]", words[1], words[2..].join(" ")),
            }
        });
        let steps = steps.collect::<Vec<_>>().join(" ");
        format!("{{:type :{kind}, :process {process}, :f :txn, :value [{steps}]}}\n")
    });
    History::read(&ops.collect::<String>()).unwrap()
}

fn judge(lines: &str) -> Report {
    append::check(&history(lines)).unwrap()
}

/// Transactions of concurrent processes that all succeed: `a x 1 | r x 1`.
fn concurrent(transactions: &str) -> String {
    let lines = |kind: &'static str| {
        let transactions = transactions.split('|').enumerate();
        transactions.map(move |(process, steps)| format!("{process} {kind} {}\n", steps.trim()))
    };
    lines("invoke").chain(lines("ok")).collect()
}

/// The same one after the other.
fn serial(transactions: &str) -> String {
    let transactions = transactions.split('|').enumerate();
    let lines = transactions.map(|(process, steps)| {
        let steps = steps.trim();
        format!("{process} invoke {steps}\n{process} ok {steps}\n")
    });
    lines.collect()
}

fn found(lines: &str, expected: &[&str]) {
    let report = judge(lines);
    assert_eq!(report.names(), expected, "{lines}\n{report}");
    assert_eq!(report.valid, if expected.is_empty() { Valid::True } else { Valid::False });
}

#[test]
fn what_a_serializable_database_does() {
    found(&serial("a x 1 | r x 1, a x 2, r x 1 2 | r x 1 2, r y"), &[]);
    found(&concurrent("a x 1, a y 1 | r x 1, r y 1, a x 2 | r x"), &[]);
    // Of unknown outcome: read, and not read.
    found("0 invoke a x 1\n0 info a x 1\n1 invoke r x\n1 ok r x\n1 invoke r x\n1 ok r x 1", &[]);
    // Failed, and not seen.
    found("0 invoke a x 1\n0 fail a x 1\n1 invoke r x\n1 ok r x", &[]);
}

#[test]
fn what_reads_alone_show() {
    let aborted = "0 invoke a x 1\n0 fail a x 1\n";
    found(&format!("{aborted}1 invoke r x\n1 ok r x 1"), &["G1a"]);
    found(&concurrent("a x 1 | r x 1 1"), &["duplicate-elements"]);
    found(&concurrent("r x 7"), &["phantom-element"]);
    found(&concurrent("a x 1 | a x 2 | r x 1 2 | r x 2 1"), &["incompatible-order"]);
    found(&concurrent("a x 1, r x"), &["internal"]);
    found(&concurrent("a x 1 | a x 2, r x 2 1"), &["internal", "G1c"]);
    found(&concurrent("r x, r x 1 | a x 1"), &["internal", "G-single"]);
    found(&concurrent("r x 1, a x 1"), &["internal"]);
    // A part of a transaction; also a cycle, since it did not see the rest.
    found(&concurrent("a x 1, a x 2 | r x 1 | r x 1 2"), &["G1b", "G-single"]);
    found(&concurrent("a x 1, a x 2 | r x 1"), &["G1b", "G-single"]);
    // Committed on top of what was aborted.
    let dirty = format!("{aborted}1 invoke a x 2\n1 ok a x 2\n2 invoke r x\n2 ok r x 1 2");
    found(&dirty, &["G1a", "dirty-update"]);
    found(&concurrent("r x, a x 1 | r x, a x 2 | r x 1 2"), &["lost-update", "G-single"]);
    // Without a later read both may have overwritten the other.
    found(&concurrent("r x, a x 1 | r x, a x 2"), &["lost-update", "G2-item"]);
}

#[test]
fn cycles() {
    // Two transactions' writes interleaved.
    found(&concurrent("a x 1, a y 1 | a x 2, a y 2 | r x 1 2 | r y 2 1"), &["G0"]);
    // Each saw the other.
    found(&concurrent("a x 1, r y 1 | a y 1, r x 1"), &["G1c"]);
    // Read skew: one of two writes of a transaction.
    found(&concurrent("r x, r y 1 | a x 1, a y 1 | r x 1"), &["G-single"]);
    // Half of a transaction of unknown outcome.
    found(
        "0 invoke a x 1, a y 1\n0 info a x 1, a y 1\n1 invoke r x, r y\n1 ok r x 1, r y",
        &["G-single"],
    );
    // Write skew.
    found(&concurrent("r x, r y, a x 1 | r x, r y, a y 1"), &["G2-item"]);
    // Two readers that saw two writes in different orders.
    found(&concurrent("a x 1 | a y 1 | r x 1, r y | r x, r y 1"), &["G2-item"]);
}

#[test]
fn cycles_in_real_time() {
    // The first write stands after the later one.
    found(&serial("a x 1 | a x 2 | r x 2 1"), &["G0-realtime"]);
    // Read before it was begun.
    found(&serial("r x 1 | a x 1"), &["G1c-realtime"]);
    // Stale read.
    found(&serial("a x 1 | r x | r x 1"), &["G-single-realtime"]);
    // Lost append: no read ever shows it.
    found(&serial("a x 1 | a x 2 | r x 1"), &["G-single-realtime"]);
    found(&serial("a x 1 | r x"), &["G-single-realtime"]);
    // Each of two readers missed a write that had completed when the other's was begun.
    // One reader missed a write that had completed when another was begun; that one missed a write that the
    // first saw.
    let two = "
        0 invoke r x, r y
        1 invoke a x 1
        2 invoke a y 1
        1 ok a x 1
        3 invoke r y
        2 ok a y 1
        3 ok r y
        0 ok r x, r y 1";
    found(two, &["G2-item-realtime"]);
}

/// However many transactions lie between, a stale read is a cycle of two.
#[test]
fn stale_after_a_long_time() {
    let mut transactions = simulate(1, 400);
    let steps = vec![Step::Append(100, 1)];
    let (end, failed) = (1_000_000, false);
    let (process, complete) = (end, Some(0));
    transactions.push(Transaction { process, steps, invoke: 0, complete, failed });
    for (at, steps) in [(0, Step::Read(100, vec![1])), (2, Step::Read(100, vec![]))] {
        let (invoke, complete, steps) = (end + at, Some(end + at + 1), vec![steps]);
        transactions.push(Transaction { process, steps, invoke, complete, failed });
    }
    let report = check(&transactions);
    assert_eq!(report.anomalies.len(), 1);
    assert_eq!(report.names(), ["G-single-realtime"]);
    assert_eq!(report.anomalies[0].what, "a cycle of 2 transactions: rw rt");
}

#[test]
fn a_cycle_is_explained() {
    let report = judge(&serial("a x 1 | a x 2 | r x 1"));
    let expected = "\
strict-serializable: false (3 operations succeeded)
G-single-realtime: a cycle of 2 transactions: rw rt
  T1 = {:index 5, :time 0, :type :ok, :process 2, :f :txn, :value [[:r :x [1]]]}
  T2 = {:index 3, :time 0, :type :ok, :process 1, :f :txn, :value [[:append :x 2]]}
  T1 -rw-> T2: T1 read key :x up to 1, without 2, which T2 appended
  T2 -rt-> T1: T2 completed at op 3, before T1 was invoked at op 4
";
    assert_eq!(report.to_string(), expected);
    let report = judge(&concurrent("a x 1, r y 1 | a y 1, a y 2, r x 1 | r y 1 2"));
    let expected = "\
strict-serializable: false (3 operations succeeded)
G1b: a read of key :y ends with 1, after which the same transaction appended 2
  {:index 3, :time 0, :type :ok, :process 0, :f :txn, :value [[:append :x 1] [:r :y [1]]]}
  {:index 4, :time 0, :type :ok, :process 1, :f :txn, :value [[:append :y 1] [:append :y 2] [:r :x [1]]]}
G1c: a cycle of 2 transactions: wr wr
  T1 = {:index 4, :time 0, :type :ok, :process 1, :f :txn, :value [[:append :y 1] [:append :y 2] [:r :x [1]]]}
  T2 = {:index 3, :time 0, :type :ok, :process 0, :f :txn, :value [[:append :x 1] [:r :y [1]]]}
  T1 -wr-> T2: T2 read 1, which T1 appended to key :y
  T2 -wr-> T1: T1 read 1, which T2 appended to key :x
G-single: a cycle of 2 transactions: rw wr
  T1 = {:index 3, :time 0, :type :ok, :process 0, :f :txn, :value [[:append :x 1] [:r :y [1]]]}
  T2 = {:index 4, :time 0, :type :ok, :process 1, :f :txn, :value [[:append :y 1] [:append :y 2] [:r :x [1]]]}
  T1 -rw-> T2: T1 read key :y up to 1, without 2, which T2 appended
  T2 -wr-> T1: T1 read 1, which T2 appended to key :y
";
    assert_eq!(report.to_string(), expected);
}

#[test]
fn histories_of_something_else_are_refused() {
    let refused = |text: &str, expected: &str| {
        let error = append::check(&History::read(text).unwrap()).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    let wants = "a transaction is of [:append key element] and [:r key [elements]]";
    refused("{:type :invoke :process 0 :f :read}", "op 0: list-append knows no :read");
    let op = |value: &str| format!("{{:type :invoke :process 0 :f :txn :value {value}}}");
    refused(&op("7"), &format!("op 0: {wants}, not of 7"));
    refused(&op("[[:w :x 1]]"), &format!("op 0: {wants}, not of [:w :x 1]"));
    refused(&op("[[:r :x 1]]"), &format!("op 0: {wants}, not of [:r :x 1]"));
    refused(&op("[[:append :x 1] [:append :x 1]]"), "op 0: 1 is appended to :x twice");
    let other = op("[[:append :x 1]]") + "{:type :ok :process 0 :f :txn :value [[:append :x 2]]}";
    refused(&other, "op 1: completes [[:append :x 1]] as [[:append :x 2]]");
}

#[test]
fn nothing_shown_is_not_a_pass() {
    assert_eq!(judge("").valid, Valid::Unknown);
    assert_eq!(judge("0 invoke a x 1\n0 info a x 1").valid, Valid::Unknown);
}

#[derive(Debug, Clone)]
pub enum Step {
    Append(usize, usize),
    Read(usize, Vec<usize>),
}

/// A transaction of a simulated run, as its client saw it.
#[derive(Debug, Clone)]
pub struct Transaction {
    pub process: usize,
    pub steps: Vec<Step>,
    pub invoke: usize,
    /// None: unknown.
    pub complete: Option<usize>,
    pub failed: bool,
}

/// A run without its last lists.
fn simulate(seed: u64, count: usize) -> Vec<Transaction> {
    run(seed, count).0
}

/// A database that executes each transaction at one moment between invocation and completion; and what its
/// keys hold at the end.
pub fn run(seed: u64, count: usize) -> (Vec<Transaction>, Vec<Vec<usize>>) {
    let mut random = Random::new(seed);
    let clients = 1 + random.below(6);
    let keys = 1 + random.below(4);
    let mut lists: Vec<Vec<usize>> = vec![Vec::new(); keys];
    let mut transactions: Vec<Transaction> = Vec::new();
    // What each client has open, and whether it was executed; and its process.
    let mut open: Vec<Option<(usize, bool)>> = vec![None; clients];
    let mut processes: Vec<usize> = (0..clients).collect();
    let (mut element, mut now) = (0, 0);
    while transactions.len() < count || open.iter().any(Option::is_some) {
        now += 1;
        let client = random.below(clients);
        match open[client] {
            None if transactions.len() < count => {
                let steps = (0..1 + random.below(4)).map(|_| {
                    let key = random.below(keys);
                    element += 1;
                    if random.chance(50) {
                        Step::Append(key, element)
                    } else {
                        Step::Read(key, vec![])
                    }
                });
                let steps = steps.collect();
                open[client] = Some((transactions.len(), false));
                let process = processes[client];
                let (complete, failed) = (None, false);
                transactions.push(Transaction { process, steps, invoke: now, complete, failed });
            }
            None => {}
            Some((number, false)) => {
                let transaction = &mut transactions[number];
                let fails = random.chance(10);
                let crashes = !fails && random.chance(5);
                if !fails && (!crashes || random.chance(50)) {
                    for step in &mut transaction.steps {
                        match step {
                            Step::Append(key, element) => lists[*key].push(*element),
                            Step::Read(key, elements) => elements.clone_from(&lists[*key]),
                        }
                    }
                }
                transaction.failed = fails;
                open[client] = (!crashes).then_some((number, true));
                if crashes {
                    processes[client] += clients;
                }
            }
            Some((number, true)) => {
                transactions[number].complete = Some(now);
                open[client] = None;
            }
        }
    }
    (transactions, lists)
}

/// As EDN.
pub fn text(transactions: &[Transaction]) -> String {
    let mut events = Vec::new();
    for transaction in transactions {
        let line = |kind: &str, shown: bool| {
            let steps = transaction.steps.iter().map(|step| match step {
                Step::Append(key, element) => format!("[:append {key} {element}]"),
                Step::Read(key, elements) if shown => format!("[:r {key} {elements:?}]"),
                Step::Read(key, _) => format!("[:r {key} nil]"),
            });
            let steps = steps.collect::<Vec<_>>().join(" ");
            let process = transaction.process;
            format!("{{:type :{kind}, :process {process}, :f :txn, :value [{steps}]}}\n")
        };
        events.push((transaction.invoke, line("invoke", false)));
        let kind = if transaction.failed { "fail" } else { "ok" };
        events.extend(transaction.complete.map(|at| (at, line(kind, !transaction.failed))));
    }
    events.sort();
    let lines = events.into_iter().enumerate().map(|(index, (at, line))| {
        line.replacen('{', &format!("{{:index {index}, :time {at}, "), 1)
    });
    lines.collect()
}

pub fn check(transactions: &[Transaction]) -> Report {
    append::check(&History::read(&text(transactions)).unwrap()).unwrap()
}

#[test]
fn simulated_histories_are_strictly_serializable() {
    for seed in 0..2000 {
        let report = check(&simulate(seed, 10 + seed as usize % 60));
        assert_eq!(report.valid, Valid::True, "seed {seed}: {report}");
    }
}

/// The successful reads, as transaction and step.
fn reads(transactions: &[Transaction]) -> Vec<(usize, usize)> {
    let mut reads = Vec::new();
    for (number, transaction) in transactions.iter().enumerate() {
        if transaction.complete.is_some() && !transaction.failed {
            let steps = transaction.steps.iter().enumerate();
            let its = steps.filter(|(_, step)| matches!(step, Step::Read(..)));
            reads.extend(its.map(|(at, _)| (number, at)));
        }
    }
    reads
}

fn elements(
    transactions: &mut [Transaction],
    (number, at): (usize, usize),
) -> (usize, &mut Vec<usize>) {
    match &mut transactions[number].steps[at] {
        Step::Read(key, elements) => (*key, elements),
        Step::Append(..) => unreachable!(),
    }
}

/// What a broken database would have shown, one read at a time.
#[test]
fn broken_histories_are_not() {
    let mut broken = [0; 5];
    for seed in 0..1000 {
        let mut transactions = simulate(seed, 10 + seed as usize % 40);
        let mut random = Random::new(seed ^ 0xbad);
        let reads = reads(&transactions);
        let Some(&victim) = reads.get(random.below(reads.len().max(1))) else { continue };
        let began = transactions[victim.0].invoke;
        let (key, seen) = elements(&mut transactions, victim);
        let seen = seen.clone();
        let mut with = |name: &str, at: usize, list: Vec<usize>| {
            let mut mutant = transactions.clone();
            *elements(&mut mutant, victim).1 = list;
            let report = check(&mutant);
            assert_eq!(report.valid, Valid::False, "{name}, seed {seed}");
            broken[at] += 1;
        };
        with("phantom", 0, seen.iter().copied().chain([1_000_000]).collect());
        if let Some(&first) = seen.first() {
            with("duplicate", 1, seen.iter().copied().chain([first]).collect());
        }
        // Of the elements, one that had to be there is gone: lost from the middle or from the end.
        let known = |element: &usize| {
            transactions.iter().any(|transaction| {
                transaction.complete.is_some_and(|complete| complete < began)
                    && transaction
                        .steps
                        .iter()
                        .any(|step| matches!(step, Step::Append(k, e) if *k == key && e == element))
            })
        };
        if seen.last().is_some_and(known) {
            with("stale", 2, seen[..seen.len() - 1].to_vec());
            with("empty", 3, Vec::new());
        }
        // An element that every read loses, though its transaction had committed.
        let lost = seen.iter().copied().find(|element| known(element));
        if let Some(lost) = lost {
            let mut mutant = transactions.clone();
            for transaction in &mut mutant {
                for step in &mut transaction.steps {
                    if let Step::Read(_, elements) = step {
                        elements.retain(|element| *element != lost);
                    }
                }
            }
            let report = check(&mutant);
            assert_eq!(report.valid, Valid::False, "lost, seed {seed}");
            broken[4] += 1;
        }
    }
    assert!(broken.iter().all(|&count| count > 200), "{broken:?}");
}

/// Every serial order that keeps real time and has what succeeded: exponential, and obviously right.
fn oracle(transactions: &[Transaction], placed: u32, lists: &[Vec<usize>]) -> bool {
    let left = || (0..transactions.len()).filter(|at| placed & (1 << at) == 0);
    let completed = |at: &usize| transactions[*at].complete;
    if left().all(|at| transactions[at].complete.is_none()) {
        return true;
    }
    let first = left().filter_map(|at| completed(&at)).min().unwrap_or(usize::MAX);
    left().filter(|&at| transactions[at].invoke < first).any(|at| {
        let mut lists = lists.to_vec();
        let known = completed(&at).is_some();
        let fits = transactions[at].steps.iter().all(|step| match step {
            Step::Append(key, element) => {
                lists[*key].push(*element);
                true
            }
            Step::Read(key, elements) => !known || lists[*key] == *elements,
        });
        fits && oracle(transactions, placed | 1 << at, &lists)
    })
}

/// Up to five transactions whose reads show the beginning of some order of a key's elements.
fn random_history(seed: u64) -> Vec<Transaction> {
    let mut random = Random::new(seed);
    let count = 2 + random.below(4);
    let mut slots: Vec<usize> = (0..2 * count).collect();
    for at in (1..slots.len()).rev() {
        // Mostly near its place, so that some histories are valid.
        slots.swap(at, at.saturating_sub(random.below(4)));
    }
    let mut element = 0;
    let mut orders: Vec<Vec<usize>> = vec![Vec::new(); 2];
    let mut transactions: Vec<Transaction> = slots
        .chunks(2)
        .enumerate()
        .map(|(process, pair)| {
            let steps = (0..1 + random.below(3)).map(|_| {
                let key = random.below(2);
                element += 1;
                if random.chance(50) {
                    orders[key].push(element);
                    Step::Append(key, element)
                } else {
                    Step::Read(key, Vec::new())
                }
            });
            let steps = steps.collect();
            let complete = (!random.chance(15)).then_some(pair[0].max(pair[1]));
            Transaction { process, steps, invoke: pair[0].min(pair[1]), complete, failed: false }
        })
        .collect();
    for step in transactions.iter_mut().flat_map(|transaction| &mut transaction.steps) {
        if let Step::Read(key, elements) = step {
            let order = &orders[*key];
            *elements = order[..random.below(order.len() + 1)].to_vec();
        }
    }
    transactions
}

#[test]
fn all_serial_orders_agree() {
    // By our verdict and the oracle's.
    let mut verdicts = [[0; 2]; 2];
    for seed in 0..20_000 {
        let transactions = random_history(seed);
        if transactions.iter().all(|transaction| transaction.complete.is_none()) {
            continue;
        }
        let serializable = oracle(&transactions, 0, &vec![Vec::new(); 2]);
        let report = check(&transactions);
        let ours = report.valid == Valid::True;
        // What is called false is false. The method may miss what no read tells; here it misses nothing.
        assert!(ours || !serializable, "seed {seed}: {report}\n{}", text(&transactions));
        verdicts[usize::from(ours)][usize::from(serializable)] += 1;
    }
    let [[both_false, _], [missed, both_true]] = verdicts;
    assert!(both_false > 4000 && both_true > 4000 && missed == 0, "{verdicts:?}");
}
