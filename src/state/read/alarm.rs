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

    /// The alarms that turn to something else at a time.
    pub fn due_alarms(&self, now_ms: u64) -> Vec<Arc<Alarm>> {
        let due = self.spaces_with_alarms().flat_map(|space| {
            let alarms = space.alarms.range(Bound::Unbounded);
            alarms.filter(|alarm| space.judge_alarm(alarm, now_ms).is_some())
        });
        due.cloned().collect()
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
