//! Atomic transactions: compares are asked of the state before, steps see those before them, and the
//! refusal of one takes all of them back.

use bincode::Options as _;

use super::At;
use super::command::{
    Compare, RecordName, Refusal, Reply, Step, StepReply, Txn, txn::check_allowed,
};
use super::config::limit;
use super::journal::Journal;
use super::memory::Tables;
use super::scope::Scope;
use super::table::{Class, Record, coding};
use crate::limits;

impl Tables {
    pub fn txn(
        &mut self,
        txn: Txn<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        journal.begin();
        let result = self.carry_out_txn(txn, at, journal);
        match &result {
            Ok(_) => journal.commit(),
            Err(_) => journal.take_back(self),
        }
        result
    }

    /// To be taken back when it is refused.
    pub(super) fn carry_out_txn(
        &mut self,
        txn: Txn<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let mut budget = Budget::default();
        let succeeded = self.all_hold(&txn.when, &mut budget)?;
        let steps = if succeeded { txn.then } else { txn.otherwise };
        let mut replies = Vec::with_capacity(steps.len());
        for (number, step) in (0..).zip(steps) {
            let reply = match step {
                Step::Write(op) => check_allowed(&op, "")
                    .and_then(|()| self.carry_out(op, at, journal))
                    .map(StepReply::Written),
                Step::Get(record) => Ok(StepReply::Found(self.find(&record))),
                Step::Range { scope, limit } => self.range(&scope, limit, &mut budget),
            };
            replies.push(reply.map_err(in_step(number))?);
        }
        answer(succeeded, replies)
    }

    /// A transaction that writes nothing.
    pub fn look(&self, txn: &Txn) -> Result<Reply, Refusal> {
        let mut budget = Budget::default();
        let succeeded = self.all_hold(&txn.when, &mut budget)?;
        let steps = if succeeded { &txn.then } else { &txn.otherwise };
        let mut replies = Vec::with_capacity(steps.len());
        for (number, step) in (0..).zip(steps) {
            let reply = match step {
                Step::Get(record) => Ok(StepReply::Found(self.find(record))),
                Step::Range { scope, limit } => self.range(scope, *limit, &mut budget),
                Step::Write(op) => unreachable!("{op:?} writes"),
            };
            replies.push(reply.map_err(in_step(number))?);
        }
        answer(succeeded, replies)
    }

    fn all_hold<T: AsRef<str>>(
        &self,
        when: &[Compare<T>],
        budget: &mut Budget,
    ) -> Result<bool, Refusal> {
        for compare in when {
            if !self.holds(compare, budget)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn holds<T: AsRef<str>>(
        &self,
        compare: &Compare<T>,
        budget: &mut Budget,
    ) -> Result<bool, Refusal> {
        Ok(match compare {
            Compare::Exists { record, exists } => self.find(record).is_some() == *exists,
            Compare::CreateRevision { record, is, than } => {
                is.holds(self.find(record).map_or(0, |record| record.create_revision()), *than)
            }
            Compare::ModRevision { record, is, than } => {
                is.holds(self.find(record).map_or(0, |record| record.mod_revision()), *than)
            }
            Compare::Version { item, is, than } => {
                let item = self.config_item(&item.namespace, &item.group, &item.key);
                is.holds(item.map_or(0, |item| item.version()), *than)
            }
            Compare::Content { item, equal, to } => {
                let item = self.config_item(&item.namespace, &item.group, &item.key);
                let content = item.and_then(|item| item.current.content.as_ref());
                content.is_some_and(|content| content.bytes == *to) == *equal
            }
            Compare::Counter { counter, is, than } => {
                let space = self.namespaces.get(counter.namespace.as_ref());
                let found = space
                    .and_then(|space| space.counters.get(counter.name.as_ref(), &counter.labels));
                is.holds(found.map_or(0, |counter| counter.value), *than)
            }
            Compare::Health { instance, equal, to } => {
                let table = self.service(instance.namespace.as_ref(), instance.service.as_ref());
                let found = table.and_then(|table| table.instances.get(instance.id.as_ref()));
                found.is_some_and(|instance| (instance.health == *to) == *equal)
            }
            Compare::Token { lock, is, than } => {
                let space = self.namespaces.get(lock.namespace.as_ref());
                let first = space.and_then(|space| space.locks.get(lock.lock.as_ref())?.first());
                is.holds(first.and_then(|first| first.token).unwrap_or(0), *than)
            }
            Compare::Unchanged { scope, since } => self.is_unchanged(scope, *since, budget)?,
        })
    }

    fn is_unchanged<T: AsRef<str>>(
        &self,
        scope: &Scope<T>,
        since: u64,
        budget: &mut Budget,
    ) -> Result<bool, Refusal> {
        let Some(space) = self.namespaces.get(scope.namespace.as_ref()) else {
            // What was in it is not remembered.
            return Ok(false);
        };
        if space.begins() > since || space.removal(scope.class) > since {
            return Ok(false);
        }
        for record in self.scope(scope) {
            budget.take(record.as_ref())?;
            if record.is_some_and(|record| record.mod_revision() > since) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn range<T: AsRef<str>>(
        &self,
        scope: &Scope<T>,
        limit: u64,
        budget: &mut Budget,
    ) -> Result<StepReply, Refusal> {
        let mut records = Vec::new();
        for record in self.scope(scope) {
            if record.is_some() && records.len() as u64 == limit {
                return Ok(StepReply::Range { records, more: true });
            }
            budget.take(record.as_ref())?;
            records.extend(record);
        }
        Ok(StepReply::Range { records, more: false })
    }

    fn find<T: AsRef<str>>(&self, name: &RecordName<T>) -> Option<Record> {
        Some(match name {
            RecordName::Namespace { name } => {
                Record::Namespace(self.namespaces.get(name.as_ref())?.record.clone())
            }
            RecordName::Service { namespace, name } => {
                let table = self.service(namespace.as_ref(), name.as_ref())?;
                Record::Service(table.settings.clone()?)
            }
            RecordName::Instance(name) => {
                let table = self.service(name.namespace.as_ref(), name.service.as_ref())?;
                Record::Instance(table.instances.get(name.id.as_ref())?.clone())
            }
            RecordName::Config(name) => {
                let item = self.config_item(&name.namespace, &name.group, &name.key)?;
                Record::Config(item.clone())
            }
            RecordName::Counter(name) => {
                let space = self.namespaces.get(name.namespace.as_ref())?;
                Record::Counter(space.counters.get(name.name.as_ref(), &name.labels)?.clone())
            }
            RecordName::Lock(name) => {
                let space = self.namespaces.get(name.namespace.as_ref())?;
                Record::Lock(space.locks.get(name.lock.as_ref())?.first()?.clone())
            }
            RecordName::Session { id } => {
                Record::Session(self.ledger.sessions.get(id)?.record.clone())
            }
        })
    }

    /// The item, unless it is deleted.
    fn config_item(
        &self,
        namespace: &impl AsRef<str>,
        group: &impl AsRef<str>,
        key: &impl AsRef<str>,
    ) -> Option<&std::sync::Arc<super::table::ConfigItem>> {
        let space = self.namespaces.get(namespace.as_ref())?;
        let item = space.config.item(group.as_ref(), key.as_ref())?;
        (item.version() > 0).then_some(item)
    }

    /// The records of a scope, in order.
    pub fn scope<'a, T: AsRef<str>>(
        &'a self,
        scope: &'a Scope<T>,
    ) -> Box<dyn Iterator<Item = Option<Record>> + 'a> {
        let Some(space) = self.namespaces.get(scope.namespace.as_ref()) else {
            return Box::new(std::iter::empty());
        };
        let Scope { first, second, .. } = scope;
        match scope.class {
            Class::Service => {
                let names = space.services.range(first.from());
                let within = names.take_while(|(name, _)| first.matches(name));
                Box::new(within.flat_map(|(_, table)| {
                    let settings = table.settings.iter().cloned().map(Record::Service);
                    let instances = table.instances.values().cloned().map(Record::Instance);
                    settings.chain(instances).map(Some)
                }))
            }
            Class::Config => {
                Box::new(space.config.scope(first, second).map(|item| item.map(Record::Config)))
            }
            Class::Counter => Box::new(space.counters.scope(first).map(Record::Counter).map(Some)),
            Class::Alarm => {
                let alarms = space.alarms.range(first.from());
                let within = alarms.take_while(|alarm| first.matches(&alarm.name));
                Box::new(within.cloned().map(Record::Alarm).map(Some))
            }
            Class::Saga => {
                let sagas = space.sagas.range(first.from());
                let within = sagas.take_while(|saga| first.matches(&saga.gid));
                Box::new(within.cloned().map(Record::Saga).map(Some))
            }
            Class::Lock => {
                let locks = space.locks.range(first.from());
                let within = locks.take_while(|lock| first.matches(lock.name()));
                Box::new(within.flat_map(|lock| lock.line().cloned().map(Record::Lock).map(Some)))
            }
        }
    }
}

/// How much a transaction may still look at.
struct Budget {
    records: usize,
    /// Groups, and items that were deleted.
    passed: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { records: limits::TXN_RECORDS, passed: limits::TXN_RECORDS }
    }
}

impl Budget {
    fn take(&mut self, record: Option<&Record>) -> Result<(), Refusal> {
        let (left, what) = match record {
            Some(_) => (&mut self.records, "records in the scopes of a transaction"),
            None => (&mut self.passed, "groups and deleted items in the scopes of a transaction"),
        };
        *left = left.checked_sub(1).ok_or_else(|| limit(what, limits::TXN_RECORDS))?;
        Ok(())
    }
}

fn in_step(step: u32) -> impl FnOnce(Refusal) -> Refusal {
    move |refusal| Refusal::InStep { step, refusal: Box::new(refusal) }
}

fn answer(succeeded: bool, replies: Vec<StepReply>) -> Result<Reply, Refusal> {
    let reply = Reply::Txn { succeeded, replies };
    match coding(limits::TXN_REPLY_BYTES).serialized_size(&reply) {
        Ok(_) => Ok(reply),
        Err(_) => Err(limit("bytes of the answer to a transaction", limits::TXN_REPLY_BYTES)),
    }
}
