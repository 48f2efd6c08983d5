//! What was applied and is not in the image yet. An entry waits by itself until the own log has synced
//! it; from then on only the last write to each key matters, and it is merged. So what is held is
//! bounded by the state, and by what the log may hold unsynced.
//!
//! Invariant: stages first, then the queue, in log order. A stage is closed at an index whose digest
//! every node computes: the image is written exactly up to there, and the next stage begins.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::hash_map::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable, hash_table};

use super::image::Point;
use crate::state::{Event, Instance, Key, Meta, Record};

/// One applied log entry. Every index is absorbed, also those of entries that carry no command.
#[derive(Debug, Clone)]
pub struct AppliedEntry {
    /// Where the log stands with this entry, and the membership in force.
    pub point: Point,
    pub events: Vec<Event>,
    /// The state's meta after the entry.
    pub meta: Meta,
    /// Length of the entry in the log.
    pub log_bytes: u64,
}

/// The merged changes up to one point: one batch of the image.
#[derive(Debug, Default)]
pub struct Stage {
    /// None: only the seed is in it.
    pub point: Option<Point>,
    pub changes: Changes,
    /// Its digest is wanted; nothing may be merged into it any more.
    pub closed: bool,
}

/// What is to be written of each record: its last value, or that it goes. Hashed, because every write
/// on every node comes through here; the order is made once, when the changes are written.
#[derive(Debug, Default)]
pub struct Changes {
    /// Most of all, and apart because the record itself can be the key.
    instances: HashTable<InstanceChange>,
    /// A session that writes makes and forgets one with every write, and its key is never used again:
    /// one that goes before it was ever written leaves nothing to write.
    replies: HashMap<(u64, u64), Option<Record>>,
    others: HashMap<Key, Option<Record>>,
    hashing: DefaultHashBuilder,
}

#[derive(Debug)]
enum InstanceChange {
    Put(Arc<Instance>),
    Gone(Box<InstanceKey>),
}

/// Namespace, service and id.
type InstanceKey = (Arc<str>, Arc<str>, Arc<str>);

impl Changes {
    pub fn put(&mut self, key: Key, record: Option<Record>) {
        match (key, record) {
            (Key::Instance { .. }, Some(Record::Instance(instance))) => {
                self.put_instance(InstanceChange::Put(instance));
            }
            (Key::Instance { namespace, service, id }, None) => {
                self.put_instance(InstanceChange::Gone(Box::new((namespace, service, id))));
            }
            (Key::Reply { session, sequence }, record) => {
                self.put_reply((session, sequence), record);
            }
            (key, record) => {
                self.others.insert(key, record);
            }
        }
    }

    fn put_instance(&mut self, change: InstanceChange) {
        let Changes { instances, hashing, .. } = self;
        let key = change.key();
        let hash = hashing.hash_one(key);
        let rehash = |known: &InstanceChange| hashing.hash_one(known.key());
        match instances.entry(hash, |known| known.key() == key, rehash) {
            hash_table::Entry::Occupied(mut known) => *known.get_mut() = change,
            hash_table::Entry::Vacant(new) => {
                new.insert(change);
            }
        }
    }

    fn put_reply(&mut self, key: (u64, u64), record: Option<Record>) {
        match self.replies.entry(key) {
            Entry::Occupied(made) if record.is_none() && made.get().is_some() => {
                made.remove();
            }
            Entry::Occupied(mut known) => {
                known.insert(record);
            }
            Entry::Vacant(new) => {
                new.insert(record);
            }
        }
    }

    pub fn len(&self) -> usize {
        self.instances.len() + self.replies.len() + self.others.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl InstanceChange {
    fn key(&self) -> (&str, &str, &str) {
        match self {
            InstanceChange::Put(instance) => (&instance.namespace, &instance.service, &instance.id),
            InstanceChange::Gone(key) => (&key.0, &key.1, &key.2),
        }
    }

    fn into_row(self) -> (Key, Option<Record>) {
        match self {
            InstanceChange::Put(instance) => (instance.key(), Some(Record::Instance(instance))),
            InstanceChange::Gone(key) => {
                let (namespace, service, id) = *key;
                (Key::Instance { namespace, service, id }, None)
            }
        }
    }
}

impl IntoIterator for Changes {
    type Item = (Key, Option<Record>);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    /// In the order of the keys.
    fn into_iter(self) -> Self::IntoIter {
        let mut rows = Vec::with_capacity(self.len());
        rows.extend(self.others);
        rows.extend(self.instances.into_iter().map(InstanceChange::into_row));
        let reply = |((session, sequence), record)| (Key::Reply { session, sequence }, record);
        rows.extend(self.replies.into_iter().map(reply));
        rows.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        rows.into_iter()
    }
}

#[derive(Debug, Default)]
pub struct Pending {
    /// All but the last one are closed, and have a point.
    stages: VecDeque<Stage>,
    queue: VecDeque<AppliedEntry>,
    /// Length in the log of all that is held.
    log_bytes: u64,
    /// A stage is closed at each multiple of this; 0 = never.
    digest_every: u64,
}

impl Pending {
    /// Closes a stage at each multiple of `every` from now on; 0 = never.
    pub fn set_digest_every(&mut self, every: u64) {
        self.digest_every = every;
    }

    /// True when every node computes the digest at this index.
    pub fn has_digest(&self, index: u64) -> bool {
        self.digest_every > 0 && index > 0 && index.is_multiple_of(self.digest_every)
    }

    /// Records that the image needs before any entry: those of the empty state.
    pub fn seed(&mut self, records: impl Iterator<Item = (Key, Record)>) {
        assert!(self.is_empty(), "seeded before anything else");
        let mut changes = Changes::default();
        records.for_each(|(key, record)| changes.put(key, Some(record)));
        self.stages.push_back(Stage { changes, ..Stage::default() });
    }

    pub fn push(&mut self, entry: AppliedEntry) {
        if let Some(last) = self.last_index() {
            let index = entry.point.index;
            assert!(index > last, "entry {index} was absorbed after {last}");
        }
        self.log_bytes += entry.log_bytes;
        self.queue.push_back(entry);
    }

    /// Index of the last entry that was absorbed and is not in the image.
    pub fn last_index(&self) -> Option<u64> {
        let merged = || Some(self.stages.back()?.point.as_ref()?.index);
        self.queue.back().map(|entry| entry.point.index).or_else(merged)
    }

    /// Merges the entries up to `synced`.
    pub fn advance(&mut self, synced: u64) {
        while let Some(entry) = self.queue.pop_front_if(|entry| entry.point.index <= synced) {
            let closed = self.has_digest(entry.point.index);
            if self.stages.back().is_none_or(|stage| stage.closed) {
                self.stages.push_back(Stage::default());
            }
            let stage = self.stages.back_mut().expect("one was just made sure of");
            for change in entry.events.into_iter().flat_map(|event| event.changes) {
                stage.changes.put(change.key, change.record);
            }
            stage.changes.put(Key::Meta, Some(Record::Meta(entry.meta)));
            stage.closed = closed;
            stage.point = Some(entry.point);
        }
    }

    /// The batches for the image: merged changes that end at a point. A seed alone stays.
    pub fn take_stages(&mut self) -> VecDeque<Stage> {
        if self.stages.front().is_some_and(|stage| stage.point.is_none()) {
            return VecDeque::new();
        }
        self.log_bytes = self.queue.iter().map(|entry| entry.log_bytes).sum();
        std::mem::take(&mut self.stages)
    }

    /// True when a stage waits whose digest is wanted.
    pub fn has_closed_stage(&self) -> bool {
        self.stages.front().is_some_and(|stage| stage.closed)
    }

    pub fn log_bytes(&self) -> u64 {
        self.log_bytes
    }

    /// Changes held, merged or not.
    pub fn len(&self) -> usize {
        let of = |entry: &AppliedEntry| -> usize {
            entry.events.iter().map(|event| event.changes.len()).sum()
        };
        self.stages.iter().map(|stage| stage.changes.len()).sum::<usize>()
            + self.queue.iter().map(of).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && self.queue.is_empty()
    }

    /// Forgets everything: a snapshot beyond it was installed.
    pub fn clear(&mut self) {
        self.stages.clear();
        self.queue.clear();
        self.log_bytes = 0;
    }
}
