//! The image: the state at one log index, on disk, as encoded records. The checkpointer writes it
//! every few seconds and reads it back at start-up; between two writes it is an exact, frozen view.
//! The image is never the only copy: what it holds can be rebuilt from a snapshot file and the log,
//! so anything doubtful about it is an error, and an error leads to rebuilding.
//!
//! Absent on purpose: what a record means. Keys and values are opaque bytes here.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::state::record_hash;

/// A position in the log. The ids are raft's own and opaque here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Point {
    /// Index of `log_id`.
    pub index: u64,
    pub log_id: Bytes,
    /// The membership in force at `index`.
    pub membership: Bytes,
}

/// What an image says about itself, written together with the last of its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMeta {
    pub point: Point,
    pub records: u64,
    /// Wrapping sum of [`record_hash`] over all records.
    pub digest: u64,
}

/// One write to the image: an encoded key and its new encoded value, None to remove it.
pub type Write = (Vec<u8>, Option<Vec<u8>>);
/// An encoded record.
pub type Row = (Vec<u8>, Vec<u8>);
/// Records in key order, each read from the disk when it is asked for.
pub type Rows<'a> = Box<dyn Iterator<Item = Result<Row, Error>> + 'a>;

/// Why an image cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the image is damaged: {why}")]
    Damaged { why: String },
    #[error("the image cannot be read or written: {0}")]
    Io(#[from] io::Error),
}

impl Error {
    pub(crate) fn damaged(why: impl Into<String>) -> Error {
        Error::Damaged { why: why.into() }
    }
}

/// The state at one index. One thread writes it.
///
/// Invariant: an image with a meta was written completely up to that meta's point; it holds exactly
/// `meta.records` records whose digest is `meta.digest`, or it is damaged.
pub trait Image: Send + Sync + Debug {
    /// None: nothing was written yet, or a long write or a refill did not come to its end.
    fn meta(&self) -> Option<ImageMeta>;

    /// Makes all changes and the meta durable. They come in the order of their keys, each key once. A crash leaves what
    /// was there before, or an image without a meta. After an error the image must not be written again before
    /// [`Image::reset`].
    fn write(
        &mut self,
        changes: &mut dyn Iterator<Item = Write>,
        point: &Point,
    ) -> Result<ImageMeta, Error>;

    /// All records in key order.
    fn scan(&self) -> Rows<'_>;

    /// Calls `take` with the key and value of each record, in key order, until there is an error.
    fn visit(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error>;

    /// Removes everything. The image has no meta until the next [`Image::write`], also after a crash.
    fn reset(&mut self) -> Result<(), Error>;

    /// Adds all records to an image that was reset, in the order of their keys and in steps that are not atomic together.
    /// They count only once a [`Image::write`] has followed.
    fn fill(&mut self, rows: &mut dyn Iterator<Item = Row>) -> Result<(), Error>;

    /// Bytes on disk.
    fn bytes(&self) -> u64;
}

/// Where a node's image lives: opens it, and puts a damaged one out of the way.
pub trait ImageStore: Send + Debug {
    /// Opens what is there, or creates an empty image.
    fn open(&mut self) -> Result<Box<dyn Image>, Error>;
    /// The image that was opened last has been read completely and can be trusted.
    fn confirm(&mut self) -> io::Result<()>;
    /// Moves the image aside, so that the next [`ImageStore::open`] creates an empty one. Says where
    /// to. The opened image must have been dropped.
    fn set_aside(&mut self) -> io::Result<String>;
}

/// Count and digest of records, kept up to date change by change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub records: u64,
    pub digest: u64,
}

impl Tally {
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records = self.records.wrapping_add(1);
        self.digest = self.digest.wrapping_add(record_hash(key, value));
    }

    /// Wraps instead of failing: removing a record that was damaged on disk leaves a tally that no
    /// scan will confirm, which is how the damage is found.
    pub fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(record_hash(key, value));
    }

    /// Compares with what was promised.
    pub fn check(&self, records: u64, digest: u64) -> Result<(), String> {
        if (self.records, self.digest) == (records, digest) {
            return Ok(());
        }
        Err(format!(
            "expected {records} records with digest {digest:016x}, found {} with {:016x}",
            self.records, self.digest
        ))
    }
}

/// Reads the whole image and compares it with its own meta.
pub fn verify(image: &dyn Image) -> Result<ImageMeta, Error> {
    let meta = image.meta().ok_or_else(|| Error::damaged("it has no meta"))?;
    let mut tally = Tally::default();
    image.visit(&mut |key, value| tally.add(key, value))?;
    tally.check(meta.records, meta.digest).map_err(Error::damaged)?;
    Ok(meta)
}

/// An image in memory, for tests and the simulation. The handle outlives the node that uses it, as a
/// disk does: [`MemoryStore::open`] sees what was written, and [`MemoryStore::lose_last_write`] is the
/// power failure that takes a write with it.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    now: Content,
    undo: Option<Undo>,
    set_aside: u64,
    opened: u64,
    /// Writes that still succeed; None = all.
    writes_left: Option<u64>,
}

#[derive(Debug, Clone, Default)]
struct Content {
    meta: Option<ImageMeta>,
    tally: Tally,
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// How to take the last step back: what it replaced, or everything.
#[derive(Debug, Clone)]
struct Undo {
    meta: Option<ImageMeta>,
    tally: Tally,
    rows: Vec<Write>,
    all: Option<BTreeMap<Vec<u8>, Vec<u8>>>,
}

impl Content {
    fn undo(&self) -> Undo {
        Undo { meta: self.meta.clone(), tally: self.tally, rows: Vec::new(), all: None }
    }

    fn put(&mut self, undo: &mut Undo, key: Vec<u8>, value: Option<Vec<u8>>) {
        let old = match value {
            Some(value) => {
                self.tally.add(&key, &value);
                self.rows.insert(key.clone(), value)
            }
            None => self.rows.remove(&key),
        };
        if let Some(old) = &old {
            self.tally.remove(&key, old);
        }
        undo.rows.push((key, old));
    }

    /// Rows as they were before changes, which are given in the order in which they were made.
    fn take_back(&mut self, rows: impl DoubleEndedIterator<Item = Write>) {
        for (key, old) in rows.rev() {
            match old {
                Some(old) => self.rows.insert(key, old),
                None => self.rows.remove(&key),
            };
        }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the last write back, as a disk does that lied about a sync. At most one step.
    pub fn lose_last_write(&self) {
        let mut shared = self.lock();
        let Some(undo) = shared.undo.take() else { return };
        if let Some(all) = undo.all {
            shared.now.rows = all;
        }
        shared.now.take_back(undo.rows.into_iter());
        shared.now.meta = undo.meta;
        shared.now.tally = undo.tally;
    }

    /// Takes a part of the last write back, as a crash leaves one that was being made in several steps.
    pub fn interrupt_last_write(&self) {
        let mut shared = self.lock();
        let Some(mut undo) = shared.undo.take() else { return };
        let done = undo.rows.len() / 2;
        shared.now.take_back(undo.rows.drain(done..));
        shared.now.meta = None;
    }

    /// Flips one bit of the value at `position` (modulo the number of records); false when empty.
    pub fn damage(&self, position: usize) -> bool {
        let mut shared = self.lock();
        let count = shared.now.rows.len();
        if count == 0 {
            return false;
        }
        let value = shared.now.rows.values_mut().nth(position % count);
        match value.and_then(|value| value.last_mut()) {
            Some(byte) => {
                *byte ^= 1;
                true
            }
            None => false,
        }
    }

    /// Only so many writes, fills and resets succeed from now on; None = all.
    pub fn limit_writes(&self, count: Option<u64>) {
        self.lock().writes_left = count;
    }

    /// An independent image with the same content.
    pub fn fork(&self) -> MemoryStore {
        let shared = self.lock();
        let copy = Shared {
            now: shared.now.clone(),
            undo: shared.undo.clone(),
            set_aside: shared.set_aside,
            opened: shared.opened,
            writes_left: shared.writes_left,
        };
        MemoryStore { shared: Arc::new(Mutex::new(copy)) }
    }

    /// How many images were set aside.
    pub fn set_aside_count(&self) -> u64 {
        self.lock().set_aside
    }

    pub fn meta(&self) -> Option<ImageMeta> {
        self.lock().now.meta.clone()
    }
}

impl ImageStore for MemoryStore {
    fn open(&mut self) -> Result<Box<dyn Image>, Error> {
        let mut shared = self.lock();
        shared.opened += 1;
        let generation = shared.opened;
        drop(shared);
        Ok(Box::new(MemoryImage { store: self.clone(), generation }))
    }

    fn confirm(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn set_aside(&mut self) -> io::Result<String> {
        let mut shared = self.lock();
        shared.now = Content::default();
        shared.undo = None;
        shared.set_aside += 1;
        Ok(format!("memory.damaged-{}", shared.set_aside))
    }
}

/// See [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryImage {
    store: MemoryStore,
    /// A later opening takes the image away from this one, as a restarted process does.
    generation: u64,
}

impl MemoryImage {
    fn change<T>(&self, change: impl FnOnce(&mut Content, &mut Undo) -> T) -> Result<T, Error> {
        let mut shared = self.store.lock();
        if shared.writes_left == Some(0) || shared.opened != self.generation {
            return Err(Error::Io(io::Error::other("the image takes no writes")));
        }
        shared.writes_left = shared.writes_left.map(|left| left - 1);
        let mut undo = shared.now.undo();
        let result = change(&mut shared.now, &mut undo);
        shared.undo = Some(undo);
        Ok(result)
    }
}

impl Image for MemoryImage {
    fn meta(&self) -> Option<ImageMeta> {
        self.store.lock().now.meta.clone()
    }

    fn write(
        &mut self,
        changes: &mut dyn Iterator<Item = Write>,
        point: &Point,
    ) -> Result<ImageMeta, Error> {
        // Outside of the lock: the iterator may do more than encode.
        let changes: Vec<Write> = changes.collect();
        assert!(changes.is_sorted_by(|(a, _), (b, _)| a < b), "not in the order of keys");
        self.change(|content, undo| {
            for (key, value) in changes {
                content.put(undo, key, value);
            }
            let Tally { records, digest } = content.tally;
            let meta = ImageMeta { point: point.clone(), records, digest };
            content.meta = Some(meta.clone());
            meta
        })
    }

    fn scan(&self) -> Rows<'_> {
        // A copy: the lock is not held between two steps of the iterator.
        Box::new(self.store.lock().now.rows.clone().into_iter().map(Ok))
    }

    fn visit(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let rows = self.store.lock().now.rows.clone();
        rows.iter().for_each(|(key, value)| take(key, value));
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Error> {
        self.change(|content, undo| {
            undo.all = Some(std::mem::take(&mut content.rows));
            *content = Content::default();
        })
    }

    fn fill(&mut self, rows: &mut dyn Iterator<Item = Row>) -> Result<(), Error> {
        let rows: Vec<Row> = rows.collect();
        assert!(rows.is_sorted_by(|(a, _), (b, _)| a < b), "not in the order of keys");
        self.change(|content, undo| {
            let empty = content.meta.is_none() && content.rows.is_empty();
            assert!(empty, "only an image that was reset is filled, and once");
            for (key, value) in rows {
                content.put(undo, key, Some(value));
            }
        })
    }

    fn bytes(&self) -> u64 {
        let shared = self.store.lock();
        shared.now.rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum()
    }
}
