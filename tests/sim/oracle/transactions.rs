//! A transaction takes place as a whole: two counters that are only ever changed together are equal at every
//! revision, and whoever watches both sees them change in one message.

use quorate::state::{
    Change, Compare, CounterName, Event, Key, Op, Pairs, Record, Refusal, Reply, StepReply, Txn,
};
use quorate::watch::Kind;

use super::Oracle;
use super::counters::counter_key;

/// The counters that are only changed together, by the same.
pub const PAIR: [&str; 2] = ["left", "right"];

fn pair(namespace: &str) -> [Key; 2] {
    PAIR.map(|name| {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        counter_key(&CounterName { namespace, name, labels: Pairs::default() })
    })
}

/// One of the two.
fn is_of_pair(key: &Key) -> bool {
    matches!(key, Key::Counter { name, .. } if PAIR.contains(&&**name))
}

fn values(changes: &[Change]) -> Vec<i64> {
    let records = changes.iter().filter(|change| is_of_pair(&change.key));
    let counters = records.filter_map(|change| match &change.record {
        Some(Record::Counter(counter)) => Some(counter.value),
        Some(_) | None => None,
    });
    counters.collect()
}

impl Oracle {
    /// Something was applied for the first time.
    pub fn pair_changes_together(&self, event: &Event) -> Result<(), String> {
        match values(&event.changes)[..] {
            [] => Ok(()),
            [left, right] if left == right => Ok(()),
            ref other => Err(format!("revision {} left a pair at {other:?}", event.revision)),
        }
    }

    /// A watcher, of both if of one, got a message.
    pub fn pair_is_seen_together(&self, kind: Kind, events: &[Change]) -> Result<(), String> {
        // A snapshot may come in several messages.
        if kind != Kind::Changes {
            return Ok(());
        }
        match values(events)[..] {
            [] => Ok(()),
            [left, right] if left == right => Ok(()),
            ref other => Err(format!("it saw {other:?} of a pair")),
        }
    }

    /// A transaction was carried out.
    pub fn was_carried_out(
        &self,
        txn: &Txn,
        revision: u64,
        succeeded: bool,
        replies: &[StepReply],
    ) -> Result<(), String> {
        // What it compares is the state before it, which is that of its revision when it wrote nothing.
        let before = if succeeded { revision - 1 } else { revision };
        let holds = txn.when.iter().all(|compare| match compare {
            Compare::Counter { counter, is: _, than } => {
                self.history.value_at(&counter_key(counter), before) == *than
            }
            other => panic!("no client compares {other:?}"),
        });
        if holds != succeeded {
            return Err(format!("its conditions were {holds} at revision {before}"));
        }
        let mut told = Vec::new();
        for reply in replies {
            match reply {
                StepReply::Written(Reply::CounterChanged { value, .. }) => told.push(*value),
                StepReply::Found(Some(Record::Counter(counter))) => told.push(counter.value),
                StepReply::Found(None) => told.push(0),
                StepReply::Written(Reply::Registered { .. }) if succeeded => {}
                other => return Err(format!("{other:?} is no answer to a step of it")),
            }
        }
        let found = pair("default").map(|key| self.history.value_at(&key, revision));
        if told != found {
            return Err(format!("the pair was {found:?}"));
        }
        match succeeded {
            true => self.was_added(&Op::Txn(Box::new(txn.clone())), revision, found[0]),
            false => Ok(()),
        }
    }

    /// A transaction was refused: only the second addition has a bound that can be crossed.
    pub fn was_taken_back(
        &mut self,
        txn: &Txn,
        revision: u64,
        step: u32,
        refusal: &Refusal,
    ) -> Result<(), String> {
        self.counts.taken_back += 1;
        let Refusal::OutOfBounds { value, delta, bound } = refusal else {
            return Err("no step of it can be refused so".to_owned());
        };
        let now = pair("default").map(|key| self.history.value_at(&key, revision));
        if step as usize != txn.then.len() - 1 || now != [*value; 2] || value + delta <= *bound {
            return Err(format!("the pair was {now:?}"));
        }
        Ok(())
    }
}
