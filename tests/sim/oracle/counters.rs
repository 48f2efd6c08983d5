//! A counter is the sum of what was added to it: every acknowledged addition once, with the value that its
//! client was told; of those whose outcome nobody learned each at most once; and nothing else.

use std::collections::BTreeMap;

use quorate::state::{CounterName, Key, Op, Outcome, Record, Refusal, Reply, Step};

use super::Oracle;
use super::history::History;
use super::saga_effects::ACCOUNT;
use super::writes::Write;

#[derive(Debug, Default)]
pub struct Counters {
    /// What was acknowledged, by counter and revision.
    acknowledged: BTreeMap<(Key, u64), i64>,
    /// What may have been added, by counter.
    unknown: BTreeMap<Key, Vec<i64>>,
}

pub fn counter_key(name: &CounterName) -> Key {
    Key::Counter {
        namespace: name.namespace.as_str().into(),
        name: name.name.as_str().into(),
        labels: name.labels.clone(),
    }
}

/// What a write adds, and to which counters.
fn additions(op: &Op) -> Vec<(Key, i64)> {
    match op {
        Op::AddCounter(addition) => vec![(counter_key(&addition.name), addition.delta)],
        Op::Txn(txn) => {
            let writes = txn.then.iter().filter_map(|step| match step {
                Step::Write(op) => Some(additions(op)),
                Step::Get(_) | Step::Range { .. } => None,
            });
            writes.flatten().collect()
        }
        _ => Vec::new(),
    }
}

impl History {
    /// 0 before it was made.
    pub fn value_at(&self, counter: &Key, revision: u64) -> i64 {
        match self.at(counter, revision) {
            Some(Record::Counter(counter)) => counter.value,
            Some(_) | None => 0,
        }
    }
}

impl Oracle {
    /// A write was acknowledged that may add to counters.
    pub fn addition_acknowledged(&mut self, write: &Write, outcome: &Outcome) {
        match &outcome.result {
            Ok(Reply::CounterChanged { .. } | Reply::Txn { succeeded: true, .. }) => {
                for (key, delta) in additions(&write.op) {
                    self.counts.additions += 1;
                    let place = (key, outcome.revision);
                    if let Some(other) = self.counters.acknowledged.insert(place, delta) {
                        self.violated(format!(
                            "write {write:?} and one that adds {other} got the same {outcome:?}"
                        ));
                    }
                }
            }
            Err(Refusal::SessionExpired { .. }) if write.maybe => self.addition_unknown(write),
            Ok(_) | Err(_) => {}
        }
    }

    /// Its client will never learn whether it took place.
    pub fn addition_unknown(&mut self, write: &Write) {
        for (key, delta) in additions(&write.op) {
            self.counters.unknown.entry(key).or_default().push(delta);
        }
    }

    /// The answer to one addition, or to each of a transaction.
    pub fn was_added(&self, op: &Op, revision: u64, told: i64) -> Result<(), String> {
        for (key, delta) in additions(op) {
            let before = self.history.value_at(&key, revision - 1);
            let after = self.history.value_at(&key, revision);
            if (Some(after), after) != (before.checked_add(delta), told) {
                return Err(format!("{key:?} went from {before} to {after} at its revision"));
            }
        }
        Ok(())
    }

    /// At the end.
    pub fn counters_add_up(&mut self) {
        let mut wrong = Vec::new();
        let mut unknown = self.counters.unknown.clone();
        // What global transactions add is another promise.
        let keys = self
            .history
            .keys()
            .filter(|key| matches!(key, Key::Counter { name, .. } if !name.starts_with(ACCOUNT)));
        for key in keys {
            let (mut before, mut known, mut sum) = (0, 0i64, 0i64);
            for (revision, _) in self.history.versions_of(key) {
                let value = self.history.value_at(key, *revision);
                let added = value - before;
                before = value;
                if let Some(delta) = self.counters.acknowledged.get(&(key.clone(), *revision)) {
                    known += 1;
                    sum += delta;
                    continue;
                }
                // Each of these at most once.
                let maybe = unknown.entry(key.clone()).or_default();
                match maybe.iter().position(|delta| *delta == added) {
                    Some(at) => sum += maybe.swap_remove(at),
                    None => wrong.push(format!(
                        "{added} was added to {key:?} at revision {revision}: nobody was told of it, \
                         and nobody waits to hear of it"
                    )),
                }
            }
            let told = self.counters.acknowledged.range((key.clone(), 0)..=(key.clone(), u64::MAX));
            let told = told.count();
            if known != told as i64 || (sum != before && wrong.is_empty()) {
                wrong.push(format!(
                    "{key:?} ends at {before}; {told} acknowledged additions, of which {known} are \
                     there, and those that nobody learned of make up {sum}"
                ));
            }
        }
        for what in wrong {
            self.violated(what);
        }
    }
}
