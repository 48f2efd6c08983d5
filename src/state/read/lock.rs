//! Reads of locks.

use std::ops::Bound;
use std::sync::Arc;

use super::super::State;
use super::super::table::LockRequest;

impl State {
    /// The line of a lock: whoever holds it, and those who wait for it, in order.
    pub fn lock(
        &self,
        namespace: &str,
        lock: &str,
    ) -> impl ExactSizeIterator<Item = &Arc<LockRequest>> {
        let table = self.tables.namespaces.get(namespace).and_then(|space| space.locks.get(lock));
        let line: Vec<_> = table.into_iter().flat_map(|table| table.line()).collect();
        line.into_iter()
    }

    /// At most `limit` locks whose names begin with `prefix`, in order, from behind the name `after`
    /// (empty = from the first): of each whoever holds it and how many wait. And whether there are more.
    pub fn locks(
        &self,
        namespace: &str,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> (Vec<(Arc<LockRequest>, usize)>, bool) {
        let Some(space) = self.tables.namespaces.get(namespace) else {
            return (Vec::new(), false);
        };
        let from = if prefix > after { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let mut found = space
            .locks
            .range(from)
            .take_while(|lock| lock.name().starts_with(prefix))
            .filter_map(|lock| Some((lock.first()?.clone(), lock.line().len() - 1)));
        let page = found.by_ref().take(limit).collect();
        (page, found.next().is_some())
    }
}
