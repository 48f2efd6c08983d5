//! Global transactions of one namespace.

use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Arc;

use super::super::catalog::Catalog;
use super::super::command::Refusal;
use super::super::config::limit;
use super::super::journal::Written;
use super::super::table::{Key, Record, Saga, SagaStatus};
use super::Ledger;
use crate::limits;

#[derive(Debug)]
pub(in crate::state) struct SagaTable {
    namespace: Arc<str>,
    sagas: Catalog<Arc<Saga>>,
    by_status: BTreeSet<(SagaStatus, Arc<str>)>,
}

/// Namespace and gid.
pub(in crate::state) type SagaPlace = (Arc<str>, Arc<str>);

/// When time alone makes something of transactions.
#[derive(Debug, Default)]
pub(in crate::state) struct SagaTimers {
    /// Of those that are neither finished nor suspended.
    pub running: BTreeSet<(u64, SagaPlace)>,
    /// When those that are finished are forgotten.
    pub finished: BTreeSet<(u64, SagaPlace)>,
    /// How many transactions there are, suspended ones included.
    pub sagas: u64,
    /// What all of them take, and the finished ones.
    bytes: usize,
    finished_bytes: usize,
}

/// Finished transactions that are kept.
#[derive(Debug, Clone, Copy)]
pub(in crate::state) struct SagasKept {
    count: usize,
    bytes: usize,
}

impl SagaTable {
    pub fn new(namespace: Arc<str>) -> SagaTable {
        SagaTable { namespace, sagas: Catalog::default(), by_status: BTreeSet::new() }
    }

    pub fn len(&self) -> usize {
        self.sagas.len()
    }

    pub fn get(&self, gid: &str) -> Option<&Arc<Saga>> {
        self.sagas.get(gid)
    }

    pub fn namespace(&self) -> &Arc<str> {
        &self.namespace
    }

    /// By gid, from a bound on.
    pub fn range(&self, from: Bound<&str>) -> impl Iterator<Item = &Arc<Saga>> {
        self.sagas.range(from).map(|(_, saga)| saga)
    }

    /// Those of one status by gid, from a bound on.
    pub fn of_status(
        &self,
        status: SagaStatus,
        from: Bound<&str>,
    ) -> impl Iterator<Item = &Arc<Saga>> {
        let from = match from {
            Bound::Included(gid) => Bound::Included((status, gid.into())),
            Bound::Excluded(gid) => Bound::Excluded((status, gid.into())),
            Bound::Unbounded => Bound::Included((status, Arc::default())),
        };
        let all = self.by_status.range((from, Bound::Unbounded));
        let own = all.take_while(move |(other, _)| *other == status);
        own.map(|(_, gid)| self.sagas.get(gid).expect("the index holds what there is"))
    }

    pub fn put(&mut self, ledger: &mut Ledger, record: Saga) -> Written {
        let record = Arc::new(record);
        let before = self.sagas.put(&record.gid, record.clone());
        let old = before.as_deref();
        if old.map(Saga::status) != Some(record.status()) {
            if let Some(old) = old {
                self.by_status.remove(&(old.status(), old.gid.clone()));
            }
            self.by_status.insert((record.status(), record.gid.clone()));
        }
        ledger.saga_timers.follow(old, Some(&record));
        Written::put(record.key(), Record::Saga(record), before.map(Record::Saga))
    }

    pub fn remove(&mut self, ledger: &mut Ledger, gid: &str) -> Option<Written> {
        let gone = self.sagas.remove(gid)?;
        self.by_status.remove(&(gone.status(), gone.gid.clone()));
        ledger.saga_timers.follow(Some(&gone), None);
        Some(Written::removed(gone.key(), Record::Saga(gone)))
    }

    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> {
        self.sagas.values().map(|saga| (saga.key(), Record::Saga(saga.clone())))
    }
}

impl SagasKept {
    /// The first of them goes, also before its time.
    pub fn is_too_much(self) -> bool {
        self.count > limits::SAGAS_FINISHED || self.bytes > limits::SAGAS_FINISHED_BYTES
    }

    pub fn without(self, saga: &Saga) -> SagasKept {
        SagasKept { count: self.count - 1, bytes: self.bytes - saga.bytes() }
    }
}

impl SagaTimers {
    pub fn kept(&self) -> SagasKept {
        SagasKept { count: self.finished.len(), bytes: self.finished_bytes }
    }

    /// Whether there is room for so many more.
    pub fn check_bytes(&self, bytes: usize) -> Result<(), Refusal> {
        match self.bytes + bytes > limits::SAGAS_BYTES {
            true => Err(limit("bytes of the cluster's transactions", limits::SAGAS_BYTES)),
            false => Ok(()),
        }
    }

    fn follow(&mut self, old: Option<&Saga>, new: Option<&Saga>) {
        self.sagas += u64::from(new.is_some());
        self.sagas -= u64::from(old.is_some());
        let bytes = |saga: Option<&Saga>| saga.map_or(0, Saga::bytes);
        let finished = |saga: Option<&Saga>| bytes(saga.filter(|it| it.phase.is_finished()));
        self.bytes = self.bytes + bytes(new) - bytes(old);
        self.finished_bytes = self.finished_bytes + finished(new) - finished(old);
        let place = |saga: &Saga| (saga.namespace.clone(), saga.gid.clone());
        if let Some((old, at_ms)) = old.and_then(|old| Some((old, old.fire_at_ms()?))) {
            self.timers_of(old).remove(&(at_ms, place(old)));
        }
        if let Some((new, at_ms)) = new.and_then(|new| Some((new, new.fire_at_ms()?))) {
            self.timers_of(new).insert((at_ms, place(new)));
        }
    }

    fn timers_of(&mut self, saga: &Saga) -> &mut BTreeSet<(u64, SagaPlace)> {
        if saga.phase.is_finished() { &mut self.finished } else { &mut self.running }
    }
}
