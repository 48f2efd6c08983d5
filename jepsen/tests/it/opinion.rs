//! Second opinions, from checkers that others wrote: `todc-utils` (Wing, Gong & Lowe's search) and `adya`
//! (Elle's method).

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

#[test]
fn todc_agrees_on_registers() {
    let mut verdicts = [0; 2];
    let random = (0..6000).map(|seed| register::random_history(seed, 12));
    let simulated = (0..500).map(|seed| register::simulate(seed, 40, false));
    for (number, operations) in random.chain(simulated).enumerate() {
        if operations.is_empty() {
            continue;
        }
        let verdict = linear::check(&Register, 0, &operations, LIMIT);
        let ours = matches!(verdict, Verdict::Linearizable { .. });
        assert_eq!(ours, todc(&operations), "history {number}: {operations:?}");
        verdicts[usize::from(ours)] += 1;
    }
    assert!(verdicts.iter().all(|&count| count > 1000), "{verdicts:?}");
}

#[test]
fn adya_agrees_on_list_append() {
    let mut verdicts = [0; 2];
    let mut stricter = 0;
    for seed in 0..2000 {
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
        let history = adya::History::from_edn(&append::text(&transactions)).unwrap();
        let theirs = adya::check(&history, Workload::ListAppend, &Opts::default());
        match (ours.valid, theirs.valid) {
            (Valid::True, adya::Valid::True) => verdicts[1] += 1,
            (Valid::False, adya::Valid::False) => verdicts[0] += 1,
            // A read that ends within the appends of a transaction that never completed: since it was read from, it
            // took place, and the read saw half of it. Theirs looks for G1b among completed transactions only.
            (Valid::False, adya::Valid::True) => {
                assert!(ours.names().contains(&"G1b"), "seed {seed}: {ours}");
                stricter += 1;
            }
            (ours, theirs) => panic!("seed {seed}: ours {ours}, theirs {theirs:?}"),
        }
    }
    assert!(verdicts.iter().all(|&count| count > 500), "{verdicts:?}");
    assert!(stricter < 20, "{stricter}");
}
