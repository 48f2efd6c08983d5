//! Counters: what each command may write, and what the windows say.
//!
//! What is added is summed up in slots of [`limits::COUNTER_SLOT_MS`] of the state's clock, so that
//! every replica has the same sums; a window is made of whole slots and the one that is not over.

use std::sync::Arc;

use super::At;
use super::command::{Addition, CounterName, Refusal, Reply, Setting, invalid};
use super::config::limit;
use super::journal::Journal;
use super::memory::Tables;
use super::registry::existing;
use super::table::{Class, Counter, CounterKind, Slot};
use crate::limits;

impl Tables {
    pub fn add_to_counter(
        &mut self,
        addition: Addition<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let Addition { name, kind, delta, floor, ceil } = addition;
        let old = self.counter(&name)?;
        check_kind(old.as_deref(), kind)?;
        let kind = old.as_ref().map_or(kind.unwrap_or(CounterKind::Counter), |old| old.kind);
        if kind == CounterKind::Counter && delta < 0 {
            let allowed = "0 or more: this counter only grows";
            return Err(invalid("delta", delta.to_string(), allowed));
        }
        let value = old.as_ref().map_or(0, |old| old.value);
        let (end, bound) = if delta < 0 { (i64::MIN, floor) } else { (i64::MAX, ceil) };
        let out = |bound| Refusal::OutOfBounds { value, delta, bound };
        let next = value.checked_add(delta).ok_or_else(|| out(end))?;
        if let Some(bound) = bound
            && ((delta < 0 && next < bound) || (delta > 0 && next > bound))
        {
            return Err(out(bound));
        }
        self.change_counter(&name, old, kind, (next, delta), at, journal)
    }

    pub fn set_counter(
        &mut self,
        setting: Setting<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let Setting { name, kind, value, expected } = setting;
        let old = self.counter(&name)?;
        check_kind(old.as_deref(), kind)?;
        let kind = old.as_ref().map_or(kind.unwrap_or(CounterKind::Gauge), |old| old.kind);
        let current = old.as_ref().map_or(0, |old| old.value);
        check_value(expected, current)?;
        if kind == CounterKind::Counter && value < current {
            let allowed = format!("at least {current}: this counter only grows; it can be reset");
            return Err(invalid("value", value.to_string(), allowed));
        }
        let added = value.saturating_sub(current);
        self.change_counter(&name, old, kind, (value, added), at, journal)
    }

    pub fn reset_counter(
        &mut self,
        name: &CounterName<&str>,
        expected: Option<i64>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let old = self.counter(name)?;
        let current = old.as_ref().map_or(0, |old| old.value);
        check_value(expected, current)?;
        match old {
            Some(old) => {
                let kind = old.kind;
                self.change_counter(name, Some(old), kind, (0, 0), at, journal)
            }
            None => Ok(Reply::CounterChanged { value: 0, changed: false, mod_revision: 0 }),
        }
    }

    pub fn delete_counter(
        &mut self,
        name: &CounterName<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let gone = self
            .namespaces
            .get_mut(name.namespace)
            .and_then(|space| space.counters.remove(&mut self.ledger, name.name, &name.labels));
        let removed = gone.is_some();
        if removed {
            journal.extend(gone);
            journal.extend(self.note_removal(name.namespace, Class::Counter, at.revision));
        }
        Ok(Reply::CounterDeleted { removed })
    }

    fn counter(&self, name: &CounterName<&str>) -> Result<Option<Arc<Counter>>, Refusal> {
        let space = existing(self.namespaces.get(name.namespace), name.namespace)?;
        Ok(space.counters.get(name.name, &name.labels).cloned())
    }

    /// Gives a counter of an existing namespace a value, `added` of which counts in the windows.
    fn change_counter(
        &mut self,
        name: &CounterName<&str>,
        old: Option<Arc<Counter>>,
        kind: CounterKind,
        (value, added): (i64, i64),
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let space = self.namespaces.get_mut(name.namespace).expect("the counter was looked up");
        let counter = match old {
            Some(old) if old.value == value => {
                let mod_revision = old.mod_revision;
                return Ok(Reply::CounterChanged { value, changed: false, mod_revision });
            }
            Some(old) => {
                let mut counter = Counter::clone(&old);
                counter.turn_to(at.now_ms);
                counter
            }
            None if self.ledger.counters >= limits::COUNTERS as u64 => {
                return Err(limit("counters of the cluster", limits::COUNTERS));
            }
            None => {
                let (namespace, name_of) = space.counters.names(name.name);
                Counter {
                    namespace,
                    name: name_of,
                    labels: name.labels.clone(),
                    kind,
                    value: 0,
                    open: Slot { number: at.now_ms / limits::COUNTER_SLOT_MS, sum: 0 },
                    past: Arc::default(),
                    create_revision: at.revision,
                    mod_revision: at.revision,
                    created_at_ms: at.now_ms,
                    modified_at_ms: at.now_ms,
                }
            }
        };
        let open = Slot { sum: counter.open.sum.saturating_add(added), ..counter.open };
        let counter = Counter {
            value,
            open,
            mod_revision: at.revision,
            modified_at_ms: at.now_ms,
            ..counter
        };
        journal.push(space.counters.put(&mut self.ledger, counter));
        Ok(Reply::CounterChanged { value, changed: true, mod_revision: at.revision })
    }
}

impl Counter {
    /// Closes the open slot when it is over.
    fn turn_to(&mut self, now_ms: u64) {
        let number = now_ms / limits::COUNTER_SLOT_MS;
        if number == self.open.number {
            return;
        }
        let reach = (number + 1).saturating_sub(limits::COUNTER_SLOTS);
        let kept = self.past.iter().chain([&self.open]);
        self.past = kept.filter(|slot| slot.number >= reach && slot.sum != 0).copied().collect();
        self.open = Slot { number, sum: 0 };
    }

    /// What was added in the last `slots` slots, the one of `now_ms` included; saturates.
    pub fn sum(&self, slots: u64, now_ms: u64) -> i64 {
        let last = now_ms / limits::COUNTER_SLOT_MS;
        let first = (last + 1).saturating_sub(slots);
        let all = self.past.iter().chain([&self.open]);
        let within = all.filter(|slot| (first..=last).contains(&slot.number));
        within.fold(0, |sum, slot| sum.saturating_add(slot.sum))
    }
}

/// How long a window of so many slots reaches back from `now_ms`, in ms: less than its name says,
/// because the last slot is not over.
pub fn window_ms(slots: u64, now_ms: u64) -> u64 {
    let whole = slots.saturating_sub(1).saturating_mul(limits::COUNTER_SLOT_MS);
    whole.saturating_add(now_ms % limits::COUNTER_SLOT_MS)
}

fn check_kind(old: Option<&Counter>, kind: Option<CounterKind>) -> Result<(), Refusal> {
    match (old, kind) {
        (Some(old), Some(kind)) if old.kind != kind => {
            let allowed = format!("{:?}, which it was made as", old.kind);
            Err(invalid("kind", format!("{kind:?}"), allowed))
        }
        (Some(_) | None, _) => Ok(()),
    }
}

fn check_value(expected: Option<i64>, current: i64) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != current => Err(Refusal::ValueDiffers { expected, current }),
        Some(_) | None => Ok(()),
    }
}
