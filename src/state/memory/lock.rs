//! Locks of one namespace: for each a line of requests, the first of which holds it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::super::catalog::Catalog;
use super::super::journal::Written;
use super::super::table::{Key, LockRequest, Record};
use super::Ledger;

#[derive(Debug)]
pub(in crate::state) struct LockTables {
    namespace: Arc<str>,
    locks: Catalog<LockTable>,
}

/// Invariant: never empty; `places` holds the ticket of each request.
#[derive(Debug)]
pub(in crate::state) struct LockTable {
    name: Arc<str>,
    /// By ticket: the first holds the lock.
    line: BTreeMap<u64, Arc<LockRequest>>,
    /// The ticket of each session's holders.
    places: BTreeMap<(u64, Box<str>), u64>,
}

impl LockTables {
    pub fn new(namespace: Arc<str>) -> LockTables {
        LockTables { namespace, locks: Catalog::default() }
    }

    /// Locks that somebody holds.
    pub fn len(&self) -> usize {
        self.locks.len()
    }

    pub fn get(&self, lock: &str) -> Option<&LockTable> {
        self.locks.get(lock)
    }

    /// By name, from a bound on.
    pub fn range(&self, from: Bound<&str>) -> impl Iterator<Item = &LockTable> {
        self.locks.range(from).map(|(_, lock)| lock)
    }

    /// The names under which a request is kept.
    pub fn names(&self, lock: &str) -> (Arc<str>, Arc<str>) {
        let lock = self.locks.get(lock).map_or_else(|| lock.into(), |table| table.name.clone());
        (self.namespace.clone(), lock)
    }

    pub fn put(&mut self, ledger: &mut Ledger, record: LockRequest) -> Written {
        let record = Arc::new(record);
        let table = self.locks.get_or_insert_with(record.lock.clone(), |name| LockTable {
            name: name.clone(),
            line: BTreeMap::new(),
            places: BTreeMap::new(),
        });
        let before = table.line.insert(record.ticket, record.clone());
        if before.is_none() {
            table.places.insert((record.session, record.holder.as_str().into()), record.ticket);
            ledger.requested.insert(record.place());
            ledger.lock_requests += 1;
        }
        Written::put(record.key(), Record::Lock(record), before.map(Record::Lock))
    }

    pub fn remove(&mut self, ledger: &mut Ledger, lock: &str, ticket: u64) -> Option<Written> {
        let table = self.locks.get_mut(lock)?;
        let gone = table.line.remove(&ticket)?;
        table.places.remove(&(gone.session, gone.holder.as_str().into()));
        if table.line.is_empty() {
            self.locks.remove(lock);
        }
        ledger.requested.remove(&gone.place());
        ledger.lock_requests -= 1;
        Some(Written::removed(gone.key(), Record::Lock(gone)))
    }

    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> {
        let all = self.locks.values().flat_map(|lock| lock.line.values());
        all.map(|request| (request.key(), Record::Lock(request.clone())))
    }
}

impl LockTable {
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The first holds the lock.
    pub fn line(&self) -> impl ExactSizeIterator<Item = &Arc<LockRequest>> {
        self.line.values()
    }

    pub fn first(&self) -> Option<&Arc<LockRequest>> {
        self.line.values().next()
    }

    /// The request of one of a session's holders.
    pub fn of(&self, session: u64, holder: &str) -> Option<&Arc<LockRequest>> {
        let ticket = self.places.get(&(session, holder.into()))?;
        self.line.get(ticket)
    }
}

impl LockRequest {
    fn place(&self) -> (u64, super::LockPlace) {
        (self.session, (self.namespace.clone(), self.lock.clone(), self.ticket))
    }
}
