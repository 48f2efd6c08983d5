//! Reads of counters.

use std::sync::Arc;

use super::super::State;
use super::super::table::{Counter, Pairs};

/// Which counters a listing shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CounterFilter {
    /// How names begin.
    pub prefix: String,
    /// All these must be there.
    pub labels: Pairs,
}

impl State {
    pub fn counter(&self, namespace: &str, name: &str, labels: &Pairs) -> Option<&Arc<Counter>> {
        self.tables.namespaces.get(namespace)?.counters.get(name, labels)
    }

    /// At most `limit` counters by name and labels, from behind those of `after`, and whether there are
    /// more. The order of labels is the same at all times, and none that people would choose.
    pub fn counters(
        &self,
        namespace: &str,
        filter: &CounterFilter,
        after: Option<(&str, &Pairs)>,
        limit: usize,
    ) -> (Vec<Arc<Counter>>, bool) {
        let Some(space) = self.tables.namespaces.get(namespace) else {
            return (Vec::new(), false);
        };
        let (name, labels) = match after {
            Some((name, labels)) if name >= filter.prefix.as_str() => (name, Some(labels)),
            Some(_) | None => (filter.prefix.as_str(), None),
        };
        let mut found = space
            .counters
            .after(name, labels)
            .take_while(|counter| counter.name.starts_with(&filter.prefix))
            .filter(|counter| counter.labels.has_all(&filter.labels));
        let page = found.by_ref().take(limit).cloned().collect();
        (page, found.next().is_some())
    }

    /// Those of all namespaces, by namespace, name and labels.
    pub fn all_counters(&self) -> impl Iterator<Item = &Arc<Counter>> {
        let spaces = self.tables.namespaces.values();
        spaces.flat_map(|space| space.counters.after("", None))
    }
}
