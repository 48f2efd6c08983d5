//! Second opinions, from checkers that others wrote: `todc-utils` (Wing, Gong & Lowe's search) and `adya`
//! (Elle's method).

use std::collections::BTreeSet;

use adya::{Opts, Workload};
use quorate_jepsen::linear::{self, LIMIT, Model, Operation, Verdict};
use quorate_jepsen::register::{Input, Register};
use quorate_jepsen::report::Valid;
use todc_utils::{Action, Specification, WGLChecker};

use crate::append::{self, Step, Transaction};
use crate::register;
use quorate_jepsen::random::Random;

/// A register for a checker that knows completed operations only: what never completed does so at the end,
/// where a cas that does not fit has no effect.
struct Completed;

impl Specification for Completed {
    type State = u32;
    type Operation = (Input, bool);

    fn init() -> u32 {
        0
    }

    fn apply((input, known): &(Input, bool), state: &u32) -> (bool, u32) {
        match Register.step(state, input) {
            Some(next) => (true, next),
            None => (!known, *state),
        }
    }
}

fn todc(operations: &[Operation<Input>]) -> bool {
    let mut events = Vec::new();
    for (number, Operation { input, invoke, complete }) in operations.iter().enumerate() {
        let operation = (*input, complete.is_some());
        events.push((*invoke, number, Action::Call(operation)));
        let complete = complete.unwrap_or(1_000_000 + number);
        events.push((complete, number, Action::Response(operation)));
    }
    events.sort_by_key(|(at, ..)| *at);
    let actions = events.into_iter().map(|(_, number, action)| (number, action)).collect();
    WGLChecker::<Completed>::is_linearizable(todc_utils::History::from_actions(actions))
}

/// How many histories of each kind, every other of them mutated; `QUORATE_JEPSEN_HISTORIES` asks for more.
fn count() -> u64 {
    std::env::var("QUORATE_JEPSEN_HISTORIES").map_or(5000, |count| count.parse().unwrap())
}

fn both_agree(name: &str, operations: &[Operation<Input>], verdicts: &mut [u64; 2]) {
    if operations.is_empty() {
        return;
    }
    let verdict = linear::check(&Register, 0, operations, LIMIT);
    let ours = matches!(verdict, Verdict::Linearizable { .. });
    assert_eq!(ours, todc(operations), "{name}: {operations:?}");
    verdicts[usize::from(ours)] += 1;
}

#[test]
fn todc_agrees_on_registers() {
    let mut verdicts = [0; 2];
    for seed in 0..6000 {
        let operations = register::random_history(seed, 12);
        both_agree(&format!("random history {seed}"), &operations, &mut verdicts);
    }
    assert!(verdicts.iter().all(|&count| count > 1000), "{verdicts:?}");
}

#[test]
fn todc_agrees_on_registers_with_a_wrong_read() {
    let mut verdicts = [0; 2];
    for seed in 0..count() {
        let mut operations = register::simulate(seed, 40, false);
        if seed % 2 == 1 {
            let mut random = Random::new(seed ^ 0x70dc);
            let reads = operations.iter_mut().filter_map(|operation| match &mut operation.input {
                Input::Read(value) => Some(value),
                _ => None,
            });
            let mut reads: Vec<&mut u32> = reads.collect();
            if reads.is_empty() {
                continue;
            }
            // Another value of the three that there are: it may well fit, or not.
            let victim = random.below(reads.len());
            *reads[victim] = (*reads[victim] + 1 + random.below(2) as u32) % 3;
        }
        both_agree(&format!("seed {seed}"), &operations, &mut verdicts);
    }
    println!("{} wrong, {} linearizable", verdicts[0], verdicts[1]);
    assert!(verdicts.iter().all(|&number| number > count() / 5), "{verdicts:?}");
}

fn theirs(transactions: &[Transaction]) -> adya::Valid {
    let history = adya::History::from_edn(&append::text(transactions)).unwrap();
    adya::check(&history, Workload::ListAppend, &Opts::default()).valid
}

/// Transactions that never completed and whose appends a read shows complete after all others.
fn complete_what_was_read(transactions: &mut [Transaction]) {
    let mut read = BTreeSet::new();
    for transaction in transactions.iter().filter(|transaction| !transaction.failed) {
        for step in &transaction.steps {
            if let (Step::Read(_, elements), Some(_)) = (step, transaction.complete) {
                read.extend(elements.iter().copied());
            }
        }
    }
    for (number, transaction) in transactions.iter_mut().enumerate() {
        let was_read = |step: &Step| match step {
            Step::Append(_, element) => read.contains(element),
            Step::Read(..) => false,
        };
        if transaction.complete.is_none() && transaction.steps.iter().any(was_read) {
            transaction.complete = Some(2_000_000 + number);
            transaction.steps.retain(|step| matches!(step, Step::Append(..)));
        }
    }
}

#[test]
fn adya_agrees_on_list_append() {
    let mut verdicts = [0; 2];
    let mut told = 0;
    for seed in 0..count() {
        let mut random = Random::new(seed ^ 0xada);
        let (mut transactions, lists) = append::run(seed, 5 + random.below(30));
        // A last transaction reads every key: theirs says nothing of appends that no read shows.
        let steps =
            lists.into_iter().enumerate().map(|(key, list)| Step::Read(key, list)).collect();
        let (process, invoke, complete) = (1_000_000, 1_000_000, Some(1_000_001));
        transactions.push(Transaction { process, steps, invoke, complete, failed: false });
        // In every other history the reads of up to three transactions are cut short.
        for _ in 0..(seed as usize % 2) * (1 + random.below(3)) {
            let victim = random.below(transactions.len());
            for step in &mut transactions[victim].steps {
                if let Step::Read(_, elements) = step {
                    elements.truncate(random.below(elements.len() + 1));
                }
            }
        }
        let ours = append::check(&transactions);
        let expected = match ours.valid {
            Valid::True => adya::Valid::True,
            Valid::False => adya::Valid::False,
            Valid::Unknown => panic!("seed {seed}: {ours}"),
        };
        if theirs(&transactions) != expected {
            // It takes no transaction into account that never completed, though another has read from it: told that
            // these completed in the end, it must see the same.
            complete_what_was_read(&mut transactions);
            assert_eq!(theirs(&transactions), expected, "seed {seed}: {ours}");
            told += 1;
        }
        verdicts[usize::from(ours.valid == Valid::True)] += 1;
    }
    println!(
        "{} wrong, {} serializable, {told} only when told what completed",
        verdicts[0], verdicts[1]
    );
    assert!(verdicts.iter().all(|&number| number > count() / 4), "{verdicts:?}");
    assert!(told < count() / 100, "{told}");
}
