//! What was applied and is not in the image yet. An entry waits by itself until the own log has synced
//! it; from then on only the last write to each key matters, and it is merged. What came and went in
//! between leaves nothing. So what is held is bounded by the state, by the image, and by what the log may
//! hold unsynced.
//!
//! Invariant: stages first, then the queue, in log order. A stage is closed at an index whose digest
//! every node computes: the image is written exactly up to there, and the next stage begins.

use std::collections::VecDeque;
use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::hash_map::Entry;
use hashbrown::{DefaultHashBuilder, HashMap, HashTable, hash_table};

use super::image::Point;
use super::writes::{Unordered, Writes};
use crate::limits::LOOK_AHEAD;
use crate::state::{self, Change, Event, Instance, Key, Meta, Record, Versions};

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
    instances: Hashed<InstanceChange>,
    /// By session and sequence: a session that writes makes and forgets one with every write.
    replies: HashMap<(u64, u64), Last>,
    /// Configuration: a publication writes an item and two of its releases, which lie together here.
    items: Hashed<ItemChange>,
    others: Hashed<(Key, Last)>,
    hashing: DefaultHashBuilder,
}

/// Each with its hash: while a table grows, every write waits for it, and it grows without a look at the records, which
/// lie all over the memory.
#[derive(Debug)]
struct Hashed<T>(HashTable<(u64, T)>);

impl<T> Default for Hashed<T> {
    fn default() -> Hashed<T> {
        Hashed(HashTable::new())
    }
}

impl<T> Hashed<T> {
    fn entry(&mut self, hash: u64, is: impl Fn(&T) -> bool) -> hash_table::Entry<'_, (u64, T)> {
        let same = |(known_hash, known): &(u64, T)| *known_hash == hash && is(known);
        self.0.entry(hash, same, |(hash, _)| *hash)
    }

    /// What has this hash, and is what is looked for in all likelihood.
    fn likely(&self, hash: u64) -> Option<&T> {
        self.0.find(hash, |(known_hash, _)| *known_hash == hash).map(|(_, known)| known)
    }

    fn into_iter(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, known)| known)
    }
}

/// What is to be written of one item of configuration.
#[derive(Debug)]
struct ItemChange {
    names: ItemNames,
    item: Option<Last>,
    releases: Versions<Last>,
}

/// Namespace, group and key.
type ItemNames = (Arc<str>, Arc<str>, Arc<str>);

/// The last write to a record.
#[derive(Debug)]
struct Last {
    /// None: it goes.
    record: Option<Record>,
    /// The image has no such record before this batch: if it goes again, nothing is to be written.
    fresh: bool,
}

#[derive(Debug)]
enum InstanceChange {
    /// The image has no such instance before this batch.
    Made(Arc<Instance>),
    Put(Arc<Instance>),
    Gone(Box<InstanceKey>),
}

/// Namespace, service and id.
type InstanceKey = (Arc<str>, Arc<str>, Arc<str>);

impl Changes {
    pub fn put(&mut self, change: Change) {
        self.put_all(std::iter::once(change));
    }

    /// In the order given.
    fn put_all(&mut self, changes: impl Iterator<Item = Change>) {
        let mut instances = Vec::new();
        for change in changes {
            instances.extend(self.put_unless_instance(change));
            if instances.len() == LOOK_AHEAD {
                self.put_instances(&mut instances);
            }
        }
        self.put_instances(&mut instances);
    }

    /// A change of an instance is given back.
    fn put_unless_instance(&mut self, change: Change) -> Option<InstanceChange> {
        let Change { key, record, fresh } = change;
        match (key, record) {
            (Key::Instance { .. }, Some(Record::Instance(instance))) => {
                return Some(match fresh {
                    true => InstanceChange::Made(instance),
                    false => InstanceChange::Put(instance),
                });
            }
            (Key::Instance { namespace, service, id }, None) => {
                return Some(InstanceChange::Gone(Box::new((namespace, service, id))));
            }
            (Key::Reply { session, sequence }, record) => {
                let next = Last { record, fresh };
                match self.replies.entry((session, sequence)) {
                    Entry::Occupied(known) => {
                        known.replace_entry_with(|_, known| known.then(next));
                    }
                    Entry::Vacant(new) => {
                        new.insert(next);
                    }
                }
            }
            (Key::Config { namespace, group, key }, record) => {
                let known = &mut self.item((namespace, group, key)).item;
                let next = Last { record, fresh };
                *known = match known.take() {
                    Some(known) => known.then(next),
                    None => Some(next),
                };
            }
            (Key::Release { namespace, group, key, version }, record) => {
                self.item((namespace, group, key)).put_release(version, Last { record, fresh });
            }
            (key, record) => {
                let hash = self.hashing.hash_one(&key);
                let next = Last { record, fresh };
                match self.others.entry(hash, |(known, _)| *known == key) {
                    hash_table::Entry::Occupied(known) => {
                        known.replace_entry_with(|(hash, (key, last))| {
                            Some((hash, (key, last.then(next)?)))
                        });
                    }
                    hash_table::Entry::Vacant(new) => {
                        new.insert((hash, (key, next)));
                    }
                }
            }
        }
        None
    }

    fn item(&mut self, names: ItemNames) -> &mut ItemChange {
        let Changes { items, hashing, .. } = self;
        let hash = hashing.hash_one(&names);
        let entry = items.entry(hash, |known| known.names == names);
        let new = || (hash, ItemChange { names, item: None, releases: Versions::default() });
        &mut entry.or_insert_with(new).into_mut().1
    }

    /// Looks at what is there of all of them first.
    fn put_instances(&mut self, changes: &mut Vec<InstanceChange>) {
        state::look_at_all(changes.iter().filter_map(InstanceChange::instance));
        let hashes: Vec<_> =
            changes.iter().map(|change| self.hashing.hash_one(change.key())).collect();
        let known: Vec<_> = hashes.iter().filter_map(|hash| self.instances.likely(*hash)).collect();
        state::look_at_all(known.iter().filter_map(|known| known.instance()));
        for (change, hash) in changes.drain(..).zip(hashes) {
            self.put_instance(hash, change);
        }
    }

    fn put_instance(&mut self, hash: u64, change: InstanceChange) {
        match self.instances.entry(hash, |known| known.is_of(&change)) {
            hash_table::Entry::Occupied(mut known) => match (&known.get().1, change) {
                (InstanceChange::Made(_), InstanceChange::Gone(_)) => {
                    known.remove();
                }
                (InstanceChange::Made(_), InstanceChange::Made(new) | InstanceChange::Put(new)) => {
                    known.get_mut().1 = InstanceChange::Made(new);
                }
                // Made again after it went: the image has the old one.
                (InstanceChange::Put(_) | InstanceChange::Gone(_), InstanceChange::Made(new)) => {
                    known.get_mut().1 = InstanceChange::Put(new);
                }
                (InstanceChange::Put(_) | InstanceChange::Gone(_), change) => {
                    known.get_mut().1 = change;
                }
            },
            hash_table::Entry::Vacant(new) => {
                new.insert((hash, change));
            }
        }
    }

    /// What is to be written, in the order of the keys.
    pub fn into_writes(self) -> Writes {
        let mut writes = Unordered::with_capacity(self.len());
        for (key, last) in self.others.into_iter() {
            writes.push(&key, last.record);
        }
        for (key, record) in self.items.into_iter().flat_map(ItemChange::into_rows) {
            writes.push(&key, record);
        }
        for ((session, sequence), last) in self.replies {
            writes.push(&Key::Reply { session, sequence }, last.record);
        }
        let mut instances = self.instances.into_iter();
        loop {
            let next: Vec<_> = instances.by_ref().take(LOOK_AHEAD).collect();
            if next.is_empty() {
                break;
            }
            state::look_at_names(next.iter().filter_map(InstanceChange::instance));
            next.into_iter().for_each(|change| change.write_to(&mut writes));
        }
        drop(instances);
        writes.into_ordered()
    }

    pub fn len(&self) -> usize {
        let items = self.items.0.iter().map(|(_, item)| item.len()).sum::<usize>();
        self.instances.0.len() + self.replies.len() + items + self.others.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Last {
    /// What is to be written after another write; None = nothing.
    fn then(self, next: Last) -> Option<Last> {
        // What the image has of it does not change with what waits.
        let fresh = self.fresh;
        (next.record.is_some() || !fresh).then_some(Last { record: next.record, fresh })
    }
}

impl ItemChange {
    fn put_release(&mut self, version: u64, next: Last) {
        let last = match self.releases.remove(version) {
            Some(known) => known.then(next),
            None => Some(next),
        };
        if let Some(last) = last {
            self.releases.put(version, last);
        }
    }

    fn len(&self) -> usize {
        usize::from(self.item.is_some()) + self.releases.len()
    }

    fn into_rows(self) -> impl Iterator<Item = (Key, Option<Record>)> {
        let ItemChange { names: (namespace, group, key), item, releases } = self;
        let names = (namespace.clone(), group.clone(), key.clone());
        let item = item.map(|last| (Key::Config { namespace, group, key }, last.record));
        item.into_iter().chain(releases.into_iter().map(move |(version, last)| {
            let (namespace, group, key) = names.clone();
            (Key::Release { namespace, group, key, version }, last.record)
        }))
    }
}

impl InstanceChange {
    /// Of one instance: of two versions of it that follow on each other, all the names are shared.
    fn is_of(&self, other: &InstanceChange) -> bool {
        let (a, b) = (self.key(), other.key());
        let same = |a: &str, b: &str| std::ptr::eq(a, b) || a == b;
        same(a.2, b.2) && same(a.1, b.1) && same(a.0, b.0)
    }

    fn instance(&self) -> Option<&Instance> {
        match self {
            InstanceChange::Made(instance) | InstanceChange::Put(instance) => Some(instance),
            InstanceChange::Gone(_) => None,
        }
    }

    fn key(&self) -> (&str, &str, &str) {
        match self {
            InstanceChange::Made(instance) | InstanceChange::Put(instance) => {
                (&instance.namespace, &instance.service, &instance.id)
            }
            InstanceChange::Gone(key) => (&key.0, &key.1, &key.2),
        }
    }

    fn write_to(self, writes: &mut Unordered) {
        writes.push_with(|out| {
            let (namespace, service, id) = self.key();
            state::encode_instance_key([namespace, service, id], out);
            match self {
                InstanceChange::Made(instance) | InstanceChange::Put(instance) => {
                    Some(Record::Instance(instance))
                }
                InstanceChange::Gone(_) => None,
            }
        });
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
        records.for_each(|(key, record)| changes.put(Change::new(key, Some(record))));
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
            stage.changes.put_all(entry.events.into_iter().flat_map(|event| event.changes));
            stage.changes.put(Change::new(Key::Meta, Some(Record::Meta(entry.meta))));
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::super::testing::{World, records};
    use super::*;

    /// Whatever comes and goes, a batch makes the image what the state is, and neither holds nor writes
    /// a record that the image never had and does not get. Some transactions write a record twice.
    #[test]
    fn a_batch_is_the_difference_between_image_and_state() {
        let (mut left_out, mut written, mut twice) = (0, 0, 0);
        for seed in 0..40 {
            let mut world = World::new(seed);
            let mut pending = Pending::default();
            pending.set_digest_every(if seed % 2 == 0 { 0 } else { 7 });
            let mut image: BTreeMap<Key, Record> = BTreeMap::new();
            for batch in 1..20u64 {
                for entry in world.entries((seed * batch % 13) as usize + 1) {
                    twice += entry.events.iter().filter(|event| writes_one_twice(event)).count();
                    left_out += entry.events.iter().map(|event| event.changes.len()).sum::<usize>();
                    pending.push(entry);
                }
                pending.advance(world.index());
                for stage in pending.take_stages() {
                    left_out -= stage.changes.len().min(left_out);
                    written += stage.changes.len();
                    for (key, value) in stage.changes.into_writes() {
                        match value {
                            Some(value) => {
                                let (key, record) = Record::decode_row(&key, &value).unwrap();
                                image.insert(key, record);
                            }
                            None => {
                                let key = Key::decode(&key).unwrap();
                                let gone = image.remove(&key);
                                assert!(gone.is_some(), "{key:?} was never in the image");
                            }
                        }
                    }
                }
                let state = records(&world.state);
                assert!(image.iter().eq(state.iter().map(|(key, record)| (key, record))));
            }
        }
        let reached = left_out > 1_000 && written > 1_000 && twice > 100;
        assert!(reached, "{left_out} {written} {twice}");
    }

    fn writes_one_twice(event: &Event) -> bool {
        let keys: BTreeSet<_> = event.changes.iter().map(|change| &change.key).collect();
        keys.len() < event.changes.len()
    }

    /// All three names tell instances apart, whatever their hashes, and nothing but their texts.
    #[test]
    fn changes_are_of_one_instance_when_all_its_names_are() {
        let gone = |[namespace, service, id]: [&str; 3]| {
            InstanceChange::Gone(Box::new((namespace.into(), service.into(), id.into())))
        };
        let known = gone(["n", "s", "i"]);
        assert!(known.is_of(&known) && known.is_of(&gone(["n", "s", "i"])));
        for other in [["m", "s", "i"], ["n", "t", "i"], ["n", "s", "j"], ["n", "si", ""]] {
            assert!(!known.is_of(&gone(other)) && !gone(other).is_of(&known), "{other:?}");
        }
    }
}
