//! Linearizability: can the operations be put in an order that a single copy would have produced, and
//! that keeps operations in order which did not overlap?
//!
//! The search is Wing & Gong's (Testing and Verifying Concurrent Objects, 1993): take any operation that
//! was invoked before the first completion of those that are left, apply it, go on; go back when stuck.
//! Lowe (Testing for Linearizability, 2017) remembers the configurations (set of operations placed, state)
//! that were visited. Entries stand in a linked list from which placed operations are lifted, as in
//! Porcupine. What does not complete may be placed at any later time, or never.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Debug;
use std::hash::Hash;

/// What a single copy does.
pub trait Model {
    type State: Clone + Eq + Hash + Ord + Debug;
    type Input: Clone + Eq + Hash + Debug;

    /// The state after an operation with the answer that was heard, or None if it cannot be heard.
    fn step(&self, state: &Self::State, input: &Self::Input) -> Option<Self::State>;
}

/// An operation that took place or may have: what failed is not among them.
#[derive(Debug, Clone)]
pub struct Operation<I> {
    /// With the answer, if it has one.
    pub input: I,
    /// When it was invoked; no two events of a history are at the same place.
    pub invoke: usize,
    /// When it completed; None if that is not known.
    pub complete: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<S> {
    Linearizable {
        /// Operations, by their number, in an order that explains the history.
        order: Vec<usize>,
    },
    NotLinearizable(Stuck<S>),
    /// The limit was reached first.
    Unknown,
}

/// The end of the shortest prefix of a history that cannot be linearized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck<S> {
    /// The operation whose completion ends the prefix: it could not be placed.
    pub operation: usize,
    /// Every state that could hold when it had to be placed.
    pub states: BTreeSet<S>,
    /// One order that leads there.
    pub order: Vec<usize>,
}

/// How many configurations are remembered at most, by default: about 200 bytes each for a thousand operations.
pub const LIMIT: usize = 2_000_000;

/// Judges operations of one object. `limit` is the number of configurations to visit.
pub fn check<M: Model>(
    model: &M,
    initial: M::State,
    operations: &[Operation<M::Input>],
    limit: usize,
) -> Verdict<M::State> {
    let mut entries = Entries::new(operations);
    let twins = twins(operations);
    let mut left = operations.iter().filter(|operation| operation.complete.is_some()).count();
    let mut state = initial.clone();
    let mut placed = Bits::new(operations.len());
    let mut visited = HashSet::from([(placed.clone(), initial)]);
    // What was placed, and the state before it.
    let mut stack: Vec<(usize, M::State)> = Vec::new();
    let order = |stack: &[(usize, M::State)]| stack.iter().map(|(at, _)| *at).collect();
    let mut stuck: Option<(usize, Stuck<M::State>)> = None;

    let mut entry = entries.first();
    while left > 0 {
        // Invariant: a completed operation that is not placed has its completion in the list.
        let (number, is_invocation) = entries.at(entry);
        if is_invocation {
            let next = match twins[number] {
                Some(twin) if !placed.has(twin) => None,
                _ => model.step(&state, &operations[number].input),
            };
            if let Some(next) = next {
                placed.flip(number);
                if visited.insert((placed.clone(), next.clone())) {
                    if visited.len() > limit {
                        return Verdict::Unknown;
                    }
                    stack.push((number, std::mem::replace(&mut state, next)));
                    left -= usize::from(operations[number].complete.is_some());
                    entries.lift(number);
                    entry = entries.first();
                    continue;
                }
                placed.flip(number);
            }
            entry = entries.next(entry);
            continue;
        }
        // This operation must be placed before its completion, and nothing that may stand before it is
        // left to try. The prefix up to the furthest such completion is the one without explanation.
        let complete = operations[number].complete.unwrap_or(usize::MAX);
        match &mut stuck {
            Some((furthest, stuck)) if *furthest == complete => {
                stuck.states.insert(state.clone());
            }
            Some((furthest, _)) if *furthest > complete => {}
            _ => {
                let states = BTreeSet::from([state.clone()]);
                let order = order(&stack);
                stuck = Some((complete, Stuck { operation: number, states, order }));
            }
        }
        let Some((last, before)) = stack.pop() else {
            return match stuck {
                Some((_, stuck)) => Verdict::NotLinearizable(stuck),
                None => Verdict::Unknown,
            };
        };
        state = before;
        placed.flip(last);
        left += usize::from(operations[last].complete.is_some());
        entries.unlift(last);
        entry = entries.next(entries.invocation(last));
    }
    Verdict::Linearizable { order: order(&stack) }
}

/// Of operations that never completed and do the same, each one's predecessor: whichever took place, it may as
/// well be the earlier. Without this, n equal writes of unknown outcome would be 2^n configurations.
fn twins<I: Clone + Eq + Hash>(operations: &[Operation<I>]) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..operations.len()).collect();
    order.sort_by_key(|&at| operations[at].invoke);
    let mut last = std::collections::HashMap::new();
    let mut twins = vec![None; operations.len()];
    for at in order {
        if operations[at].complete.is_none() {
            twins[at] = last.insert(&operations[at].input, at);
        }
    }
    twins
}

/// A set of operations.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(count: usize) -> Bits {
        Bits(vec![0; count.div_ceil(64)].into())
    }

    fn has(&self, at: usize) -> bool {
        self.0[at / 64] & (1 << (at % 64)) != 0
    }

    fn flip(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

/// Invocations and completions in the order of the history, as a doubly linked list.
#[derive(Debug)]
struct Entries {
    /// The operation, and whether this is its invocation. The first one stands before all entries.
    entries: Vec<(usize, bool)>,
    next: Vec<usize>,
    previous: Vec<usize>,
    /// The entries of each operation.
    invocations: Vec<usize>,
    completions: Vec<Option<usize>>,
}

impl Entries {
    fn new<I>(operations: &[Operation<I>]) -> Entries {
        let mut events = Vec::new();
        for (number, operation) in operations.iter().enumerate() {
            events.push((operation.invoke, number, true));
            events.extend(operation.complete.map(|at| (at, number, false)));
        }
        events.sort_unstable();
        let mut entries = vec![(usize::MAX, false)];
        let mut invocations = vec![0; operations.len()];
        let mut completions = vec![None; operations.len()];
        for (_, number, is_invocation) in events {
            if is_invocation {
                invocations[number] = entries.len();
            } else {
                completions[number] = Some(entries.len());
            }
            entries.push((number, is_invocation));
        }
        let count = entries.len();
        let next = (1..=count).map(|at| at % count).collect();
        let previous = (0..count).map(|at| (at + count - 1) % count).collect();
        Entries { entries, next, previous, invocations, completions }
    }

    fn at(&self, entry: usize) -> (usize, bool) {
        self.entries[entry]
    }

    fn first(&self) -> usize {
        self.next[0]
    }

    fn next(&self, entry: usize) -> usize {
        self.next[entry]
    }

    fn invocation(&self, number: usize) -> usize {
        self.invocations[number]
    }

    fn lift(&mut self, number: usize) {
        for entry in
            [Some(self.invocations[number]), self.completions[number]].into_iter().flatten()
        {
            let (next, previous) = (self.next[entry], self.previous[entry]);
            self.next[previous] = next;
            self.previous[next] = previous;
        }
    }

    /// Undoes the last `lift` that was not undone: an entry still knows where it stood.
    fn unlift(&mut self, number: usize) {
        for entry in
            [self.completions[number], Some(self.invocations[number])].into_iter().flatten()
        {
            let (next, previous) = (self.next[entry], self.previous[entry]);
            self.next[previous] = entry;
            self.previous[next] = entry;
        }
    }
}
