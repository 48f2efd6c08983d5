//! Reads of alarms.

use std::ops::Bound;
use std::sync::Arc;

use super::super::State;
use super::super::memory::NamespaceTable;
use super::super::table::Alarm;

impl State {
    pub fn alarm(&self, namespace: &str, name: &str) -> Option<&Arc<Alarm>> {
        self.tables.namespaces.get(namespace)?.alarms.get(name)
    }

    /// At most `limit` alarms whose names begin with `prefix`, in order, from behind the name `after`
    /// (empty = from the first), and whether there are more.
    pub fn alarms(
        &self,
        namespace: &str,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<Alarm>>, bool) {
        let Some(space) = self.tables.namespaces.get(namespace) else {
            return (Vec::new(), false);
        };
        let from = if prefix > after { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let mut found = space.alarms.range(from).take_while(|alarm| alarm.name.starts_with(prefix));
        let page = found.by_ref().take(limit).cloned().collect();
        (page, found.next().is_some())
    }

    /// The alarms of all namespaces, by namespace and name.
    pub fn all_alarms(&self) -> Vec<Arc<Alarm>> {
        let spaces = self.spaces_with_alarms();
        spaces.flat_map(|space| space.alarms.range(Bound::Unbounded)).cloned().collect()
    }

    /// Whether an alarm turns to something else at a time. Looks through the counters of a name, so those who
    /// ask for all alarms ask for one after the other.
    pub fn is_due_alarm(&self, namespace: &str, name: &str, now_ms: u64) -> bool {
        let space = self.tables.namespaces.get(namespace);
        space.is_some_and(|space| {
            let alarm = space.alarms.get(name);
            alarm.is_some_and(|alarm| space.judge_alarm(alarm, now_ms).is_some())
        })
    }

    /// Looked for several times a second: nothing is looked through when there are no alarms.
    fn spaces_with_alarms(&self) -> impl Iterator<Item = &NamespaceTable> {
        let any = self.tables.ledger.alarms > 0;
        let spaces = any.then(|| self.tables.namespaces.values());
        spaces.into_iter().flatten().filter(|space| space.alarms.len() > 0)
    }

    /// The alarms whose webhooks have not been told of their last transition.
    pub fn untold_alarms(&self) -> Vec<Arc<Alarm>> {
        let spaces = self.spaces_with_alarms();
        let all = spaces.flat_map(|space| space.alarms.range(Bound::Unbounded));
        all.filter(|alarm| alarm.is_untold()).cloned().collect()
    }
}
