//! Reads of global transactions.

use std::ops::Bound;
use std::sync::Arc;

use super::super::State;
use super::super::memory::SagaPlace;
use super::super::table::{Saga, SagaStatus};

impl State {
    pub fn saga(&self, namespace: &str, gid: &str) -> Option<&Arc<Saga>> {
        self.tables.namespaces.get(namespace)?.sagas.get(gid)
    }

    /// At most `limit` transactions, of one status or of any, whose gids begin with `prefix`, in order, from
    /// behind the gid `after` (empty = from the first), and whether there are more.
    pub fn sagas(
        &self,
        namespace: &str,
        status: Option<SagaStatus>,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<Saga>>, bool) {
        let Some(space) = self.tables.namespaces.get(namespace) else {
            return (Vec::new(), false);
        };
        let from = if prefix > after { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let all: Box<dyn Iterator<Item = &Arc<Saga>>> = match status {
            Some(status) => Box::new(space.sagas.of_status(status, from)),
            None => Box::new(space.sagas.range(from)),
        };
        let mut found = all.take_while(|saga| saga.gid.starts_with(prefix));
        let page = found.by_ref().take(limit).cloned().collect();
        (page, found.next().is_some())
    }

    /// When the next transaction is due, if any ever is.
    pub fn next_saga_ms(&self) -> Option<u64> {
        let timers = &self.tables.ledger.saga_timers;
        if timers.kept().is_too_much() {
            return Some(self.meta.now_ms);
        }
        let firsts = [timers.running.first(), timers.finished.first()];
        firsts.into_iter().flatten().map(|(at_ms, _)| *at_ms).min()
    }

    /// At most `limit` transactions of which time makes something: first those that go on, then those that
    /// are forgotten, each in the order of their times.
    pub fn due_sagas(&self, now_ms: u64, limit: usize) -> Vec<Arc<Saga>> {
        let timers = &self.tables.ledger.saga_timers;
        let running = timers.running.iter().take_while(|(at_ms, _)| *at_ms <= now_ms);
        let running = running.map(|(_, place)| self.saga_at(place));
        let mut kept = timers.kept();
        let finished = timers.finished.iter().map_while(move |(at_ms, place)| {
            let saga = self.saga_at(place);
            let goes = *at_ms <= now_ms || kept.is_too_much();
            kept = kept.without(&saga);
            goes.then_some(saga)
        });
        running.chain(finished).take(limit).collect()
    }

    /// Those with calls under way that leaders of earlier terms began: what a new one takes over.
    pub fn sagas_left_behind(&self, term: u64) -> Vec<Arc<Saga>> {
        self.running_sagas(|saga| saga.is_left_behind(term))
    }

    /// Those with calls under way that the leader of a term began.
    pub fn sagas_begun(&self, term: u64) -> Vec<Arc<Saga>> {
        self.running_sagas(|saga| saga.epochs().any(|epoch| epoch == term))
    }

    fn running_sagas(&self, hold: impl Fn(&Saga) -> bool) -> Vec<Arc<Saga>> {
        let all = self.tables.ledger.saga_timers.running.iter();
        all.map(|(_, place)| self.saga_at(place)).filter(|saga| hold(saga)).collect()
    }

    /// How many are neither finished nor suspended, and how many are suspended.
    pub fn saga_counts(&self) -> (u64, u64) {
        let timers = &self.tables.ledger.saga_timers;
        let (running, finished) = (timers.running.len() as u64, timers.finished.len() as u64);
        (running, timers.sagas - running - finished)
    }

    fn saga_at(&self, (namespace, gid): &SagaPlace) -> Arc<Saga> {
        self.saga(namespace, gid).expect("a timer is of what there is").clone()
    }
}
