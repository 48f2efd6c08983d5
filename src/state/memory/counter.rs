//! Counters of one namespace, found by name and labels.

use std::ops::Bound;
use std::sync::Arc;

use super::super::catalog::Catalog;
use super::super::journal::Written;
use super::super::scope::Match;
use super::super::table::{Counter, Key, Pairs, Record};
use super::Ledger;

#[derive(Debug)]
pub(in crate::state) struct CounterTable {
    namespace: Arc<str>,
    names: Catalog<Series>,
    /// Of all names.
    counters: usize,
}

/// The counters of one name, by the text that their labels are encoded as.
#[derive(Debug)]
pub(in crate::state) struct Series {
    name: Arc<str>,
    counters: Catalog<Arc<Counter>>,
    /// Of their values.
    sum: i128,
}

impl CounterTable {
    pub fn new(namespace: Arc<str>) -> CounterTable {
        CounterTable { namespace, names: Catalog::default(), counters: 0 }
    }

    pub fn len(&self) -> usize {
        self.counters
    }

    pub fn get(&self, name: &str, labels: &Pairs) -> Option<&Arc<Counter>> {
        self.names.get(name)?.counters.get(labels.as_packed())
    }

    /// As [`Catalog::likely`].
    pub fn likely(&self, name: &str) -> Option<&Option<(Arc<str>, Series)>> {
        self.names.likely(name)
    }

    /// The sum of all values of one name; looks at none of them.
    pub fn sum(&self, name: &str) -> i128 {
        self.names.get(name).map_or(0, |series| series.sum)
    }

    /// Of one name.
    pub fn of(&self, name: &str) -> impl Iterator<Item = &Arc<Counter>> {
        self.names.get(name).into_iter().flat_map(|series| series.counters.values())
    }

    /// By name and labels, from behind those of `after`, which begin with `name`.
    pub fn after<'a>(
        &'a self,
        name: &'a str,
        labels: Option<&'a Pairs>,
    ) -> impl Iterator<Item = &'a Arc<Counter>> {
        self.names.range(Bound::Included(name)).flat_map(move |(this, series)| {
            let from = match labels {
                Some(labels) if **this == *name => Bound::Excluded(labels.as_packed()),
                Some(_) | None => Bound::Unbounded,
            };
            series.counters.range(from).map(|(_, counter)| counter)
        })
    }

    /// By name and labels.
    pub fn scope<'a, T: AsRef<str>>(
        &'a self,
        name: &'a Match<T>,
    ) -> impl Iterator<Item = Arc<Counter>> + 'a {
        let names = self.names.range(name.from());
        let within = names.take_while(|(this, _)| name.matches(this));
        within.flat_map(|(_, series)| series.counters.values().cloned())
    }

    /// The names under which a new counter is kept.
    pub fn names(&self, name: &str) -> (Arc<str>, Arc<str>) {
        let name = self.names.get(name).map_or_else(|| name.into(), |series| series.name.clone());
        (self.namespace.clone(), name)
    }

    pub fn put(&mut self, ledger: &mut Ledger, record: Counter) -> Written {
        let record = Arc::new(record);
        let series = self.names.get_or_insert_with(record.name.clone(), |name| Series {
            name: name.clone(),
            counters: Catalog::default(),
            sum: 0,
        });
        series.sum += i128::from(record.value);
        let before = match series.counters.get_mut(record.labels.as_packed()) {
            Some(counter) => {
                series.sum -= i128::from(counter.value);
                Some(std::mem::replace(counter, record.clone()))
            }
            None => {
                series.counters.put(&record.labels.as_packed().into(), record.clone());
                self.counters += 1;
                ledger.counters += 1;
                None
            }
        };
        Written::put(record.key(), Record::Counter(record), before.map(Record::Counter))
    }

    pub fn remove(&mut self, ledger: &mut Ledger, name: &str, labels: &Pairs) -> Option<Written> {
        let series = self.names.get_mut(name)?;
        let gone = series.counters.remove(labels.as_packed())?;
        series.sum -= i128::from(gone.value);
        if series.counters.is_empty() {
            self.names.remove(name);
        }
        self.counters -= 1;
        ledger.counters -= 1;
        Some(Written::removed(gone.key(), Record::Counter(gone)))
    }

    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> {
        let all = self.names.values().flat_map(|series| series.counters.values());
        all.map(|counter| (counter.key(), Record::Counter(counter.clone())))
    }
}

impl Series {
    /// As [`Catalog::likely`].
    pub fn likely(&self, labels: &Pairs) -> Option<&Option<(Arc<str>, Arc<Counter>)>> {
        self.counters.likely(labels.as_packed())
    }
}
