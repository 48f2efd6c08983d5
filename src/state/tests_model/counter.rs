//! Counters. Nothing is summed up: every addition is kept with its time.

use super::*;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::state) struct Tally {
    pub name: CounterName,
    pub kind: CounterKind,
    pub value: i64,
    pub additions: Vec<(u64, i64)>,
    create_revision: u64,
    pub mod_revision: u64,
    created_at_ms: u64,
    modified_at_ms: u64,
}

impl Tally {
    /// What was added in one stretch of ten seconds.
    fn slot(&self, number: u64) -> Slot {
        let own = self.additions.iter().filter(|(at_ms, _)| at_ms / 10_000 == number);
        Slot { number, sum: own.fold(0i64, |sum, (_, delta)| sum.saturating_add(*delta)) }
    }

    pub fn record(&self) -> Counter {
        let open = self.modified_at_ms / 10_000;
        let mut past: Vec<u64> = self.additions.iter().map(|(at_ms, _)| at_ms / 10_000).collect();
        past.dedup();
        past.retain(|number| *number < open && open - number < 90);
        let past: Vec<Slot> = past.into_iter().map(|number| self.slot(number)).collect();
        Counter {
            namespace: self.name.namespace.as_str().into(),
            name: self.name.name.as_str().into(),
            labels: self.name.labels.clone(),
            kind: self.kind,
            value: self.value,
            open: self.slot(open),
            past: past.into_iter().filter(|slot| slot.sum != 0).collect(),
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            created_at_ms: self.created_at_ms,
            modified_at_ms: self.modified_at_ms,
        }
    }

    /// What was added in the last `slots` stretches, with the present one.
    pub fn window(&self, slots: u64, now_ms: u64) -> i64 {
        let now = now_ms / 10_000;
        let mut within: Vec<u64> = self.additions.iter().map(|(at_ms, _)| at_ms / 10_000).collect();
        within.dedup();
        within.retain(|number| *number <= now && now - number < slots);
        within.into_iter().fold(0, |sum, number| sum.saturating_add(self.slot(number).sum))
    }
}

impl Model {
    pub fn counter(&self, name: &CounterName) -> Option<&Tally> {
        self.counters.iter().find(|tally| tally.name == *name)
    }

    pub fn value(&self, name: &CounterName) -> i64 {
        self.counter(name).map_or(0, |tally| tally.value)
    }

    pub(super) fn sum_of(&self, namespace: &str, name: &str, labels: &Pairs) -> i128 {
        let own = self.counters.iter().filter(|tally| {
            tally.name.namespace == namespace
                && tally.name.name == name
                && tally.name.labels.has_all(labels)
        });
        own.map(|tally| i128::from(tally.value)).sum()
    }

    pub(super) fn add(&mut self, a: Addition, place: &Place) -> Answer {
        let kind = self.kind_of(&a.name, a.kind, CounterKind::Counter)?;
        if kind == CounterKind::Counter && a.delta < 0 {
            let allowed = "0 or more: this counter only grows";
            return Err(invalid("delta", &a.delta.to_string(), allowed));
        }
        let value = self.value(&a.name);
        let sum = i128::from(value) + i128::from(a.delta);
        let refused = |bound| Err(Refusal::OutOfBounds { value, delta: a.delta, bound });
        if sum > i128::from(i64::MAX) {
            return refused(i64::MAX);
        }
        if sum < i128::from(i64::MIN) {
            return refused(i64::MIN);
        }
        match (a.floor, a.ceil) {
            (Some(floor), _) if a.delta < 0 && sum < i128::from(floor) => return refused(floor),
            (_, Some(ceil)) if a.delta > 0 && sum > i128::from(ceil) => return refused(ceil),
            (_, _) => {}
        }
        self.change(a.name, kind, sum as i64, Some(a.delta), place)
    }

    pub(super) fn set(&mut self, s: Setting, place: &Place) -> Answer {
        let kind = self.kind_of(&s.name, s.kind, CounterKind::Gauge)?;
        let current = self.value(&s.name);
        value_is(s.expected, current)?;
        if kind == CounterKind::Counter && s.value < current {
            let allowed = format!("at least {current}: this counter only grows; it can be reset");
            return Err(invalid("value", &s.value.to_string(), &allowed));
        }
        let added = i128::from(s.value) - i128::from(current);
        let added = added.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        self.change(s.name, kind, s.value, Some(added), place)
    }

    pub(super) fn reset(
        &mut self,
        name: CounterName,
        expect: Option<i64>,
        place: &Place,
    ) -> Answer {
        self.needs_namespace(&name.namespace)?;
        value_is(expect, self.value(&name))?;
        match self.counter(&name).map(|tally| tally.kind) {
            Some(kind) => self.change(name, kind, 0, None, place),
            None => Ok(Reply::CounterChanged { value: 0, changed: false, mod_revision: 0 }),
        }
    }

    pub(super) fn delete_counter(&mut self, name: &CounterName) -> Answer {
        let before = self.counters.len();
        self.counters.retain(|tally| tally.name != *name);
        Ok(Reply::CounterDeleted { removed: self.counters.len() < before })
    }

    fn kind_of(
        &self,
        name: &CounterName,
        asked: Option<CounterKind>,
        otherwise: CounterKind,
    ) -> Result<CounterKind, Refusal> {
        self.needs_namespace(&name.namespace)?;
        let Some(tally) = self.counter(name) else { return Ok(asked.unwrap_or(otherwise)) };
        if let Some(asked) = asked
            && asked != tally.kind
        {
            let allowed = format!("{:?}, which it was made as", tally.kind);
            return Err(invalid("kind", &format!("{asked:?}"), &allowed));
        }
        Ok(tally.kind)
    }

    fn change(
        &mut self,
        name: CounterName,
        kind: CounterKind,
        value: i64,
        added: Option<i64>,
        place: &Place,
    ) -> Answer {
        let full = self.counters.len() >= limits::COUNTERS;
        let Some(tally) = self.counters.iter_mut().find(|tally| tally.name == name) else {
            if full {
                return Err(too_many("counters of the cluster", 1_000_000));
            }
            let additions = added.map(|added| (place.now_ms, added)).into_iter().collect();
            self.counters.push(Tally {
                name,
                kind,
                value,
                additions,
                create_revision: place.revision,
                mod_revision: place.revision,
                created_at_ms: place.now_ms,
                modified_at_ms: place.now_ms,
            });
            let mod_revision = place.revision;
            return Ok(Reply::CounterChanged { value, changed: true, mod_revision });
        };
        let changed = tally.value != value;
        if changed {
            tally.value = value;
            tally.additions.extend(added.map(|added| (place.now_ms, added)));
            tally.mod_revision = place.revision;
            tally.modified_at_ms = place.now_ms;
        }
        Ok(Reply::CounterChanged { value, changed, mod_revision: tally.mod_revision })
    }
}

fn value_is(expected: Option<i64>, current: i64) -> Result<(), Refusal> {
    match expected {
        Some(expected) if expected != current => Err(Refusal::ValueDiffers { expected, current }),
        _ => Ok(()),
    }
}
