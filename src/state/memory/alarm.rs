//! Alarms of one namespace.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::super::journal::Written;
use super::super::table::{Alarm, Key, Record};
use super::Ledger;

#[derive(Debug)]
pub(in crate::state) struct AlarmTable {
    namespace: Arc<str>,
    alarms: BTreeMap<Arc<str>, Arc<Alarm>>,
}

impl AlarmTable {
    pub fn new(namespace: Arc<str>) -> AlarmTable {
        AlarmTable { namespace, alarms: BTreeMap::new() }
    }

    pub fn len(&self) -> usize {
        self.alarms.len()
    }

    pub fn get(&self, name: &str) -> Option<&Arc<Alarm>> {
        self.alarms.get(name)
    }

    /// By name, from a bound on.
    pub fn range(&self, from: Bound<&str>) -> impl Iterator<Item = &Arc<Alarm>> {
        self.alarms.range::<str, _>((from, Bound::Unbounded)).map(|(_, alarm)| alarm)
    }

    /// The names under which an alarm is kept.
    pub fn names(&self, name: &str) -> (Arc<str>, Arc<str>) {
        let known = self.alarms.get(name).map(|alarm| alarm.name.clone());
        (self.namespace.clone(), known.unwrap_or_else(|| name.into()))
    }

    pub fn put(&mut self, ledger: &mut Ledger, record: Alarm) -> Written {
        let record = Arc::new(record);
        let before = self.alarms.insert(record.name.clone(), record.clone());
        ledger.alarms += u64::from(before.is_none());
        Written::put(record.key(), Record::Alarm(record), before.map(Record::Alarm))
    }

    pub fn remove(&mut self, ledger: &mut Ledger, name: &str) -> Option<Written> {
        let gone = self.alarms.remove(name)?;
        ledger.alarms -= 1;
        Some(Written::removed(gone.key(), Record::Alarm(gone)))
    }

    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> {
        self.alarms.values().map(|alarm| (alarm.key(), Record::Alarm(alarm.clone())))
    }
}
