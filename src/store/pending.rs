//! What was applied and is not in the image yet. Entries wait one by one until the own log has synced
//! them; from then on only the last write to each key matters, and they are merged.
//!
//! Invariant: stages first, then the queue, in log order. A stage is closed at an index whose digest
//! somebody wants: the image is written exactly up to there, and the next stage begins.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::image::Point;
use crate::state::{Event, Key, Meta, Record};

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

impl AppliedEntry {
    pub(super) fn changes(&self) -> usize {
        self.events.iter().map(|event| event.changes.len()).sum()
    }
}

/// The merged changes up to one point: one batch of the image.
#[derive(Debug, Default)]
pub struct Stage {
    /// None: only the seed is in it.
    pub point: Option<Point>,
    pub changes: Changes,
    pub log_bytes: u64,
    /// Its digest is wanted; nothing may be merged into it any more.
    pub closed: bool,
}

/// What is to be written of each record: its last value, or that it goes.
///
/// Stored replies are kept apart. A session that writes makes and forgets one with every write, and
/// its key is never used again: one that goes before it was ever written leaves nothing to write.
#[derive(Debug, Default)]
pub struct Changes {
    records: BTreeMap<Key, Option<Record>>,
    replies: BTreeMap<(u64, u64), Option<Record>>,
}

impl Changes {
    pub fn put(&mut self, key: Key, record: Option<Record>) {
        match key {
            Key::Reply { session, sequence } => self.put_reply((session, sequence), record),
            key => {
                self.records.insert(key, record);
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

    /// Later changes.
    fn append(&mut self, mut later: Changes) {
        self.records.append(&mut later.records);
        for (key, record) in later.replies {
            self.put_reply(key, record);
        }
    }

    pub fn len(&self) -> usize {
        self.records.len() + self.replies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.records.is_empty() && self.replies.is_empty()
    }
}

impl IntoIterator for Changes {
    type Item = (Key, Option<Record>);
    type IntoIter = Box<dyn Iterator<Item = Self::Item>>;

    /// In the order of the keys: replies have the greatest kind.
    fn into_iter(self) -> Self::IntoIter {
        let reply = |((session, sequence), record)| (Key::Reply { session, sequence }, record);
        Box::new(self.records.into_iter().chain(self.replies.into_iter().map(reply)))
    }
}

impl Stage {
    fn index(&self) -> Option<u64> {
        self.point.as_ref().map(|point| point.index)
    }
}

#[derive(Debug, Default)]
pub struct Pending {
    /// All but the last one are closed, and have a point.
    stages: VecDeque<Stage>,
    queue: VecDeque<AppliedEntry>,
    marks: Marks,
}

/// The indices at which a stage is closed.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Multiples of this; 0 = none.
    pub every: u64,
    pub at: BTreeSet<u64>,
}

impl Marks {
    pub fn contains(&self, index: u64) -> bool {
        (self.every > 0 && index > 0 && index.is_multiple_of(self.every))
            || self.at.contains(&index)
    }
}

impl Pending {
    pub fn new(marks: Marks) -> Pending {
        Pending { marks, ..Pending::default() }
    }

    /// Records that the image needs before any entry: those of the empty state.
    pub fn seed(&mut self, records: impl Iterator<Item = (Key, Record)>) {
        assert!(self.stages.is_empty() && self.queue.is_empty(), "seeded before anything else");
        let mut changes = Changes::default();
        records.for_each(|(key, record)| changes.put(key, Some(record)));
        self.stages.push_back(Stage { changes, ..Stage::default() });
    }

    pub fn push(&mut self, entry: AppliedEntry) {
        if let Some(last) = self.last_index() {
            let index = entry.point.index;
            assert!(index > last, "entry {index} was absorbed after {last}");
        }
        self.queue.push_back(entry);
    }

    /// Index of the last entry that was absorbed and is not in the image.
    pub fn last_index(&self) -> Option<u64> {
        let queued = self.queue.back().map(|entry| entry.point.index);
        queued.or_else(|| self.merged_index())
    }

    /// Index up to which entries are merged.
    pub fn merged_index(&self) -> Option<u64> {
        self.stages.back().and_then(Stage::index)
    }

    /// Merges the entries up to `synced`.
    pub fn advance(&mut self, synced: u64) {
        while let Some(entry) = self.queue.pop_front_if(|entry| entry.point.index <= synced) {
            if self.stages.back().is_none_or(|stage| stage.closed) {
                self.stages.push_back(Stage::default());
            }
            let stage = self.stages.back_mut().expect("one was just made sure of");
            for change in entry.events.into_iter().flat_map(|event| event.changes) {
                stage.changes.put(change.key, change.record);
            }
            stage.changes.put(Key::Meta, Some(Record::Meta(entry.meta)));
            stage.log_bytes += entry.log_bytes;
            stage.closed = self.marks.contains(entry.point.index);
            stage.point = Some(entry.point);
        }
    }

    /// Takes what a sender has merged itself. It comes after everything here, and was synced.
    pub fn merge(&mut self, mut later: Pending) {
        if let Some(mut first) = later.stages.pop_front() {
            let index = first.index().expect("only the checkpointer's own first stage is seeded");
            self.advance(index);
            assert!(self.queue.is_empty(), "what is merged later was absorbed later");
            match self.stages.back_mut() {
                Some(stage) if !stage.closed => {
                    stage.changes.append(std::mem::take(&mut first.changes));
                    stage.log_bytes += first.log_bytes;
                    stage.closed = first.closed;
                    stage.point = first.point;
                }
                Some(_) | None => self.stages.push_back(first),
            }
        }
        self.stages.append(&mut later.stages);
        self.queue.append(&mut later.queue);
    }

    /// The batches for the image: merged changes that end at a point. A seed alone stays.
    pub fn take_stages(&mut self) -> VecDeque<Stage> {
        if self.stages.front().is_some_and(|stage| stage.point.is_none()) {
            return VecDeque::new();
        }
        std::mem::take(&mut self.stages)
    }

    /// True when a stage waits whose digest is wanted.
    pub fn has_closed_stage(&self) -> bool {
        self.stages.front().is_some_and(|stage| stage.closed)
    }

    pub fn log_bytes(&self) -> u64 {
        self.stages.iter().map(|stage| stage.log_bytes).sum::<u64>()
            + self.queue.iter().map(|entry| entry.log_bytes).sum::<u64>()
    }

    /// Changes held, merged or not.
    pub fn len(&self) -> usize {
        self.stages.iter().map(|stage| stage.changes.len()).sum::<usize>()
            + self.queue.iter().map(AppliedEntry::changes).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.stages.is_empty() && self.queue.is_empty()
    }

    /// Forgets everything: a snapshot beyond it was installed.
    pub fn clear(&mut self) {
        self.stages.clear();
        self.queue.clear();
    }

    /// Closes a stage at `index` once it is merged. False when it is too late for that.
    pub fn mark(&mut self, index: u64) -> bool {
        if self.is_closed_at(index) {
            return true;
        }
        let merged = self.merged_index();
        if merged.is_none_or(|merged| merged < index) {
            self.marks.at.insert(index);
            return true;
        }
        match self.stages.back_mut() {
            Some(stage) if merged == Some(index) => {
                stage.closed = true;
                true
            }
            Some(_) | None => false,
        }
    }

    pub fn unmark(&mut self, index: u64) {
        self.marks.at.remove(&index);
    }

    /// True when the stage for the digest at `index` is there.
    pub fn is_closed_at(&self, index: u64) -> bool {
        self.stages.iter().any(|stage| stage.closed && stage.index() == Some(index))
    }

    pub fn marks(&self) -> &Marks {
        &self.marks
    }
}
