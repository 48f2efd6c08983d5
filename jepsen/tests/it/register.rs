//! Registers: written histories, simulated ones, broken ones, and all permutations of small ones.

use quorate_jepsen::edn::Value;
use quorate_jepsen::history::History;
use quorate_jepsen::linear::{self, LIMIT, Model, Operation, Verdict};
use quorate_jepsen::register::{self, Input, Register};
use quorate_jepsen::report::{Report, Valid};

use quorate_jepsen::random::Random;

/// A history of lines such as `0 invoke write 1`.
fn history(lines: &str) -> History {
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    let ops = lines.map(|line| {
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap();
        let (process, kind, f, value) = (word(), word(), word(), word());
        format!("{{:type :{kind}, :process {process}, :f :{f}, :value {value}}}\n")
    });
    History::read(&ops.collect::<String>()).unwrap()
}

fn judge(lines: &str) -> Report {
    register::check(&history(lines), &Value::Nil, LIMIT).unwrap()
}

fn valid(lines: &str) {
    let report = judge(lines);
    assert_eq!(report.valid, Valid::True, "{lines}\n{report}");
}

fn invalid(lines: &str, expected: &str) {
    let report = judge(lines);
    assert_eq!(report.to_string().trim(), expected.trim(), "{lines}");
    assert_eq!(report.valid, Valid::False);
}

#[test]
fn what_a_register_does() {
    valid(
        "0 invoke read nil\n0 ok read nil\n0 invoke write 1\n0 ok write 1\n0 invoke read nil\n0 ok read 1",
    );
    valid(
        "0 invoke write 1\n0 ok write 1\n0 invoke cas [1 2]\n0 ok cas [1 2]\n0 invoke read nil\n0 ok read 2",
    );
    // What overlaps may be in either order.
    valid("0 invoke write 1\n1 invoke read nil\n1 ok read nil\n0 ok write 1");
    valid("0 invoke write 1\n1 invoke read nil\n1 ok read 1\n0 ok write 1");
    // A failed cas did not happen, whatever the value was.
    valid(
        "0 invoke write 1\n0 ok write 1\n0 invoke cas [1 2]\n0 fail cas [1 2]\n0 invoke read nil\n0 ok read 1",
    );
    // Reads that fail or are open tell nothing.
    valid("0 invoke write 1\n0 ok write 1\n0 invoke read nil\n0 fail read nil\n1 invoke read nil");
}

#[test]
fn what_is_not_known_may_happen_later_or_never() {
    let write = "0 invoke write 1\n0 info write 1\n1 invoke read nil\n1 ok read nil\n";
    valid(write);
    valid(&format!("{write}1 invoke read nil\n1 ok read 1"));
    valid(&format!("{write}1 invoke read nil\n1 ok read 1\n1 invoke read nil\n1 ok read 1"));
    invalid(
        &format!("{write}1 invoke read nil\n1 ok read 1\n1 invoke read nil\n1 ok read nil"),
        "linearizable: false (3 operations succeeded)
nonlinearizable: the history up to op 7 has no order; its operation fits none of the states 1
  not placed: {:index 7, :time 0, :type :ok, :process 1, :f :read, :value nil}
  one order of those before it:
    {:index 3, :time 0, :type :ok, :process 1, :f :read, :value nil}
    {:index 1, :time 0, :type :info, :process 0, :f :write, :value 1}
    {:index 5, :time 0, :type :ok, :process 1, :f :read, :value 1}",
    );
    // It happens once only.
    let twice = "1 invoke write 2\n1 ok write 2\n1 invoke read nil\n1 ok read 1\n";
    invalid(
        &format!("0 invoke write 1\n{twice}{twice}"),
        "linearizable: false (4 operations succeeded)
nonlinearizable: the history up to op 8 has no order; its operation fits none of the states 2
  not placed: {:index 8, :time 0, :type :ok, :process 1, :f :read, :value 1}
  one order of those before it:
    {:index 2, :time 0, :type :ok, :process 1, :f :write, :value 2}
    {:index 0, :time 0, :type :invoke, :process 0, :f :write, :value 1}
    {:index 4, :time 0, :type :ok, :process 1, :f :read, :value 1}
    {:index 6, :time 0, :type :ok, :process 1, :f :write, :value 2}",
    );
}

#[test]
fn stale_read() {
    let stale = "0 invoke write 1\n0 ok write 1\n0 invoke write 2\n0 ok write 2\n1 invoke read nil\n1 ok read 1";
    invalid(
        // What comes after the prefix is not looked at.
        &format!("{stale}\n1 invoke read nil\n1 ok read 2"),
        "linearizable: false (4 operations succeeded)
nonlinearizable: the history up to op 5 has no order; its operation fits none of the states 2
  not placed: {:index 5, :time 0, :type :ok, :process 1, :f :read, :value 1}
  one order of those before it:
    {:index 1, :time 0, :type :ok, :process 0, :f :write, :value 1}
    {:index 3, :time 0, :type :ok, :process 0, :f :write, :value 2}",
    );
}

#[test]
fn anomalies() {
    let broken = [
        ("phantom", "0 invoke read nil\n0 ok read 7"),
        ("lost write", "0 invoke write 1\n0 ok write 1\n0 invoke read nil\n0 ok read nil"),
        ("aborted read", "0 invoke write 1\n0 fail write 1\n0 invoke read nil\n0 ok read 1"),
        ("read of the future", "0 invoke read nil\n0 ok read 1\n0 invoke write 1\n0 ok write 1"),
        (
            "two cas of one value",
            "0 invoke cas [nil 1]\n1 invoke cas [nil 2]\n0 ok cas [nil 1]\n1 ok cas [nil 2]",
        ),
        (
            "new, then old",
            "0 invoke write 1\n1 invoke read nil\n1 ok read 1\n1 invoke read nil\n1 ok read nil\n0 ok write 1",
        ),
        (
            "split brain",
            "0 invoke write 1\n1 invoke write 2\n0 ok write 1\n1 ok write 2\n\
             0 invoke read nil\n0 ok read 1\n1 invoke read nil\n1 ok read 2",
        ),
    ];
    for (name, lines) in broken {
        assert_eq!(judge(lines).valid, Valid::False, "{name}");
    }
}

#[test]
fn keys_are_registers_of_their_own() {
    valid("0 invoke write [:a 1]\n0 ok write [:a 1]\n0 invoke read [:b nil]\n0 ok read [:b nil]");
    invalid(
        "0 invoke write [:a 1]\n0 ok write [:a 1]\n0 invoke cas [:b [1 2]]\n0 ok cas [:b [1 2]]",
        "linearizable: false (2 operations succeeded)
nonlinearizable: key :b: the history up to op 3 has no order; its operation fits none of the states nil
  not placed: {:index 3, :time 0, :type :ok, :process 0, :f :cas, :value [:b [1 2]]}
  one order of those before it:",
    );
}

#[test]
fn histories_of_something_else_are_refused() {
    let refused = |lines: &str, expected: &str| {
        let error = register::check(&history(lines), &Value::Nil, LIMIT).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    refused("0 invoke push 1", "op 0: a register knows no :push");
    refused("0 invoke cas 1", "op 0: a cas wants [from to]");
    refused("0 invoke write 1\n0 ok write 2", "op 1: completes 1 as 2");
    refused(
        "0 invoke write [1 2]\n0 ok write 2",
        "op 1: some values are [key value], some are not",
    );
    refused("0 invoke read [1 nil]\n0 ok read [2 nil]", "op 1: is about key 2, was invoked for 1");
}

#[test]
fn nothing_shown_is_not_a_pass() {
    assert_eq!(judge("").valid, Valid::Unknown);
    assert_eq!(judge("0 invoke write 1\n0 info write 1").valid, Valid::Unknown);
}

/// Many operations of unknown outcome, and a completed one that needs all of them to be tried.
#[test]
fn the_limit_makes_it_unknown() {
    let mut lines = String::new();
    for process in 0..20 {
        lines += &format!("{process} invoke write {process}\n");
    }
    lines += "99 invoke read nil\n99 ok read :phantom";
    let report = register::check(&history(&lines), &Value::Nil, 1000).unwrap();
    assert_eq!(report.valid, Valid::Unknown);
    assert_eq!(report.unknown, ["more than 1000 configurations for the 21 operations"]);
    // Twenty that do the same are twenty-one configurations.
    let same = lines.lines().map(|line| match line.split_once(" invoke write ") {
        Some((process, _)) => format!("{process} invoke write 1\n"),
        None => format!("{line}\n"),
    });
    let report = register::check(&history(&same.collect::<String>()), &Value::Nil, 1000).unwrap();
    assert_eq!(report.valid, Valid::False);
}

/// A register with a random concurrent schedule: each operation takes effect at one moment between its
/// invocation and its completion. Values written are unique when `unique`.
pub fn simulate(seed: u64, count: usize, unique: bool) -> Vec<Operation<Input>> {
    let mut random = Random::new(seed);
    let processes = 1 + random.below(6);
    // What a process has open: its operation, and whether it took effect.
    let mut open: Vec<Option<(usize, bool)>> = vec![None; processes];
    let mut operations: Vec<Operation<Input>> = Vec::new();
    let mut wanted = Vec::new();
    let mut state = 0;
    let mut now = 0;
    while operations.len() < count || open.iter().any(Option::is_some) {
        now += 1;
        let process = random.below(processes);
        match open[process] {
            None if operations.len() < count => {
                let fresh =
                    if unique { operations.len() as u32 + 1 } else { random.below(3) as u32 };
                let input = match random.below(3) {
                    0 => Input::Read(u32::MAX),
                    1 => Input::Write(fresh),
                    _ => Input::Cas(if random.chance(70) { state } else { 1 }, fresh),
                };
                open[process] = Some((operations.len(), false));
                operations.push(Operation { input, invoke: now, complete: None });
                wanted.push(true);
            }
            None => {}
            Some((number, false)) => {
                let input = &mut operations[number].input;
                // A crash: the client never hears; it took effect, or will never.
                if random.chance(5) {
                    if random.chance(50) {
                        state = Register.step(&state, input).unwrap_or(state);
                    }
                    wanted[number] = !matches!(input, Input::Read(_));
                    open[process] = None;
                    continue;
                }
                if let Input::Read(value) = input {
                    *value = state;
                }
                match Register.step(&state, input) {
                    Some(next) => {
                        state = next;
                        open[process] = Some((number, true));
                    }
                    None => {
                        wanted[number] = false;
                        open[process] = None;
                    }
                }
            }
            Some((number, true)) => {
                operations[number].complete = Some(now);
                open[process] = None;
            }
        }
    }
    let mut wanted = wanted.into_iter();
    operations.retain(|_| wanted.next().unwrap());
    operations
}

fn linearizable(operations: &[Operation<Input>]) -> bool {
    match linear::check(&Register, 0, operations, LIMIT) {
        Verdict::Linearizable { order } => {
            // The order is evidence: it is checked.
            let mut state = 0;
            for number in &order {
                state = Register.step(&state, &operations[*number].input).unwrap();
            }
            for (at, &later) in order.iter().enumerate() {
                for &earlier in &order[..at] {
                    let completed = operations[later].complete.unwrap_or(usize::MAX);
                    assert!(operations[earlier].invoke < completed);
                }
            }
            let completed = operations.iter().filter(|operation| operation.complete.is_some());
            assert!(order.len() >= completed.count());
            true
        }
        Verdict::NotLinearizable(_) => false,
        Verdict::Unknown => panic!("the limit was reached"),
    }
}

#[test]
fn simulated_histories_are_linearizable() {
    for seed in 0..2000 {
        let operations = simulate(seed, 10 + seed as usize % 100, seed % 2 == 0);
        assert!(linearizable(&operations), "seed {seed}");
    }
}

/// Each of these certainly breaks a history in which every written value is unique.
#[test]
fn broken_histories_are_not() {
    let mut broken = [0; 3];
    for seed in 0..2000 {
        let operations = simulate(seed, 10 + seed as usize % 60, true);
        let mut random = Random::new(seed ^ 0xbad);
        let reads = |operation: &Operation<Input>| matches!(operation.input, Input::Read(_));
        let all: Vec<usize> = (0..operations.len()).filter(|&at| reads(&operations[at])).collect();
        if all.is_empty() {
            continue;
        }
        let victim = all[random.below(all.len())];
        let value = match operations[victim].input {
            Input::Read(value) => value,
            _ => unreachable!(),
        };
        // Phantom: a value that nobody wrote.
        let mut phantom = operations.clone();
        phantom[victim].input = Input::Read(1_000_000);
        assert!(!linearizable(&phantom), "phantom, seed {seed}");
        broken[0] += 1;
        // Stale: the initial value, after a read of another one or a write had completed.
        let began = operations[victim].invoke;
        let earlier = |operation: &Operation<Input>| {
            operation.complete.is_some_and(|complete| complete < began)
                && !matches!(operation.input, Input::Read(0))
        };
        if operations.iter().any(earlier) {
            let mut stale = operations.clone();
            stale[victim].input = Input::Read(0);
            assert!(!linearizable(&stale), "stale, seed {seed}");
            broken[1] += 1;
        }
        // Lost: what was read was never written.
        if value != 0 {
            let mut lost = operations.clone();
            lost.retain(|operation| match operation.input {
                Input::Write(written) | Input::Cas(_, written) => written != value,
                Input::Read(_) => true,
            });
            assert!(!linearizable(&lost), "lost, seed {seed}");
            broken[2] += 1;
        }
    }
    assert!(broken.iter().all(|&count| count > 500), "{broken:?}");
}

/// Every order of every subset that has the completed operations: exponential, and obviously right.
fn oracle(operations: &[Operation<Input>], placed: u32, state: u32) -> bool {
    let left = |at: &usize| placed & (1 << at) == 0;
    let numbers = || (0..operations.len()).filter(left);
    if numbers().all(|at| operations[at].complete.is_none()) {
        return true;
    }
    let first = numbers().filter_map(|at| operations[at].complete).min().unwrap_or(usize::MAX);
    numbers().filter(|&at| operations[at].invoke < first).any(|at| {
        Register
            .step(&state, &operations[at].input)
            .is_some_and(|next| oracle(operations, placed | 1 << at, next))
    })
}

/// A history of anything at all.
pub fn random_history(seed: u64, most: usize) -> Vec<Operation<Input>> {
    let mut random = Random::new(seed);
    let count = 1 + random.below(most);
    let mut slots: Vec<usize> = (0..2 * count).collect();
    for at in (1..slots.len()).rev() {
        slots.swap(at, random.below(at + 1));
    }
    let operations = slots.chunks(2).map(|pair| {
        let complete = (!random.chance(20)).then_some(pair[0].max(pair[1]));
        let value = random.below(3) as u32;
        let input = match random.below(3) {
            // What never completes has no answer.
            0 if complete.is_some() => Input::Read(value),
            1 => Input::Cas(value, random.below(3) as u32),
            _ => Input::Write(value),
        };
        Operation { input, invoke: pair[0].min(pair[1]), complete }
    });
    operations.collect()
}

#[test]
fn all_permutations_agree() {
    let mut verdicts = [0; 2];
    for seed in 0..20_000 {
        let operations = random_history(seed, 6);
        let expected = oracle(&operations, 0, 0);
        let verdict = linear::check(&Register, 0, &operations, LIMIT);
        match &verdict {
            Verdict::Linearizable { .. } => assert!(expected, "seed {seed}: {operations:?}"),
            Verdict::NotLinearizable(stuck) => {
                assert!(!expected, "seed {seed}: {operations:?}");
                // It is the shortest prefix: up to its end there is no order, just before it there is.
                let end = operations[stuck.operation].complete.unwrap();
                assert!(!oracle(&prefix(&operations, end + 1), 0, 0), "seed {seed}: {verdict:?}");
                assert!(oracle(&prefix(&operations, end), 0, 0), "seed {seed}: {verdict:?}");
            }
            Verdict::Unknown => panic!("seed {seed}: the limit was reached"),
        }
        verdicts[usize::from(expected)] += 1;
    }
    assert!(verdicts.iter().all(|&count| count > 4000), "{verdicts:?}");
}

/// The events before `end`. A read without its answer tells nothing.
fn prefix(operations: &[Operation<Input>], end: usize) -> Vec<Operation<Input>> {
    let mut prefix: Vec<_> = operations.iter().filter(|o| o.invoke < end).cloned().collect();
    for operation in &mut prefix {
        operation.complete = operation.complete.filter(|&complete| complete < end);
    }
    prefix.retain(|o| o.complete.is_some() || !matches!(o.input, Input::Read(_)));
    prefix
}
