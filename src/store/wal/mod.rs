//! The log: votes and entries as one ordered stream of frames in preallocated segments.
//!
//! [`WalCore`] is synchronous and asks for nothing but a [`Disk`]; the simulation drives it call by
//! call. [`Wal`] drives it from a thread in production. What the payloads mean is none of the log's
//! business.
//!
//! `frame` and `segment` give the bytes, `recover` the rules by which they are believed.

mod content;
mod driver;
mod frame;
mod prepare;
mod reader;
mod recover;
mod segment;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

pub use self::driver::{Stats, Wal};
pub use self::prepare::Job;
pub use self::reader::WalReader;

use self::content::Content;
use self::frame::{Head, Kind};
use self::prepare::{Outcome, Retired, Slot, Work};
use self::reader::{Change, Place, Shared};
use self::segment::{Segment, Shape};
use super::disk::Disk;
use crate::failpoint::failpoint;
use crate::limits;

/// Writes end at multiples of this, padded with zeros: a block that is overwritten whole need not be
/// read first when a reused segment has left the page cache.
const BLOCK_BYTES: usize = 4096;
/// Of segments: at least room for the header, a state and any frame that carries an id.
const LENGTHS: RangeInclusive<u64> = 8 * 1024..=u32::MAX as u64;
const _: () = assert!(
    *LENGTHS.start() as usize
        > segment::HEADER + 4 * (limits::WAL_ID_BYTES + frame::HEADER) + 4 * frame::HEADER
);
/// Capacity that the group's buffer keeps after a large group.
const KEEP_BYTES: usize = 4 * 1024 * 1024;

/// One write to the log, in the order of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    Vote(Bytes),
    /// Lazy: reaches the disk with the next other write, or when the log is sealed or closed.
    Committed(Bytes),
    /// Indexes follow each other; the first of an empty log may be any, behind a purge the next one.
    Entry {
        index: u64,
        payload: Bytes,
    },
    /// Drops the entries with an index above `last`; None drops all.
    TruncateAfter {
        last: Option<u64>,
    },
    /// The entries up to `index` may go. It may lie beyond the last entry.
    Purged {
        index: u64,
        log_id: Bytes,
    },
}

impl Write {
    /// Bytes that it takes up in memory and, roughly, in the log.
    pub fn bytes(&self) -> usize {
        let payload = match self {
            Write::Vote(payload)
            | Write::Committed(payload)
            | Write::Entry { payload, .. }
            | Write::Purged { log_id: payload, .. } => payload.len(),
            Write::TruncateAfter { .. } => 0,
        };
        frame::size(payload)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct WalOptions {
    /// Length of new segments; [`limits::WAL_SEGMENT_BYTES`] but for tests.
    pub segment_bytes: u64,
    /// Whether a log may be created where there is none. Set it only before the node's identity is
    /// written: a member whose log has vanished must not begin anew, it might vote twice.
    pub create: bool,
    /// Identity of a log created now: a random number, kept from clients. An existing log keeps its.
    pub log_id: u64,
}

/// What the log held when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    /// Index and log id.
    pub purged: Option<(u64, Bytes)>,
    /// Indexes of the first and the last entry.
    pub first: Option<u64>,
    pub last: Option<u64>,
    /// A torn tail was removed: writes that were never acknowledged.
    pub cut: Option<Cut>,
}

impl Recovered {
    /// The last entry that there was, also if it is purged.
    pub fn last_index(&self) -> Option<u64> {
        self.last.or(self.purged.as_ref().map(|(index, _)| *index))
    }
}

/// Where a torn tail was cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub segment: u64,
    pub offset: u64,
    /// Whole frames of the torn group behind the cut that were erased.
    pub erased: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Acknowledged writes may be lost: the node must neither vote nor lead.
    #[error(
        "log segment {segment} is damaged at byte {offset}: {why}; this node must not take part \
         again: remove it from the cluster and add it as a new member with an empty data directory"
    )]
    Damaged { segment: u64, offset: u64, why: String },
    #[error(
        "the log is missing; this node must not begin anew under its old id: remove it from the \
         cluster and add it as a new member"
    )]
    Missing,
    #[error(
        "log segment {segment} has format version {version}, this release knows {}",
        segment::VERSION
    )]
    Version { segment: u64, version: u32 },
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
}

/// Hears when a sync begins and when it has ended.
pub trait Meter: Send {
    fn sync_begins(&mut self);
    fn sync_ended(&mut self);
}

/// The writer of the log.
///
/// After an error of [`WalCore::commit`], or of [`WalCore::stage`] other than `InvalidInput`, it is
/// poisoned: every later call fails, because nobody knows any more what the disk holds. The process
/// must stop; opening the log again finds out.
///
/// Invariant: everything below `synced` is durable; bytes are written only after those of the
/// previous group were synced, except for a seal's, whose loss loses nothing.
pub struct WalCore {
    disk: Arc<dyn Disk>,
    shape: Shape,
    shared: Arc<Shared>,
    active: Arc<Segment>,
    /// Where the group's buffer goes in the active segment.
    position: usize,
    /// The group's frames.
    buffer: Vec<u8>,
    /// How the group will change the index.
    changes: Vec<Change>,
    content: Content,
    /// The committed id in `content` is not in the stream yet.
    lazy: bool,
    /// Of the next frame.
    sequence: u64,
    /// Every frame up to this one is synced.
    synced: u64,
    /// The last mark that was written.
    marked: u64,
    prepared: VecDeque<Segment>,
    pool: Vec<String>,
    retired: Vec<Retired>,
    slot: Arc<Slot>,
    /// After a preparation failed for lack of space, the next attempt waits for this position.
    retry_at: usize,
    bytes: Arc<AtomicU64>,
    failed: Option<(io::ErrorKind, String)>,
    meter: Option<Box<dyn Meter>>,
}

impl std::fmt::Debug for WalCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WalCore")
            .field("content", &self.content)
            .field("segment", &self.active.number)
            .field("position", &self.position)
            .field("sequence", &self.sequence)
            .field("synced", &self.synced)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}

impl WalCore {
    /// Opens the log, or creates it when `options` allow. What it reports is durable.
    pub fn open(
        disk: Arc<dyn Disk>,
        options: WalOptions,
    ) -> Result<(WalCore, Recovered), OpenError> {
        let length = options.segment_bytes;
        if !LENGTHS.contains(&length) || !length.is_multiple_of(frame::ALIGN as u64) {
            let text = format!("segments of {length} bytes: not in {LENGTHS:?}");
            let source = io::Error::new(io::ErrorKind::InvalidInput, text);
            return Err(OpenError::Io { what: "open the log".into(), source });
        }
        let opened = recover::recover(&disk, &options)?;
        if let Some(cut) = &opened.cut {
            tracing::info!(
                segment = cut.segment,
                offset = cut.offset,
                erased = cut.erased,
                "cut a torn tail off the log"
            );
        }
        let live = &opened.content.live;
        let recovered = Recovered {
            vote: opened.content.vote.clone(),
            committed: opened.content.committed.clone(),
            purged: opened.content.purged.clone(),
            first: (!live.is_empty()).then_some(live.start),
            last: (!live.is_empty()).then(|| live.end - 1),
            cut: opened.cut,
        };
        let fresh = opened.position == segment::HEADER;
        let mut core = WalCore {
            disk,
            shape: opened.shape,
            shared: Shared::new(opened.index),
            active: opened.active,
            position: opened.position,
            buffer: Vec::new(),
            changes: Vec::new(),
            content: opened.content,
            lazy: false,
            sequence: opened.sequence,
            synced: opened.sequence - 1,
            marked: 0,
            prepared: opened.prepared,
            pool: opened.pool,
            retired: Vec::new(),
            slot: Slot::new(),
            retry_at: 0,
            bytes: opened.bytes,
            failed: None,
            meter: None,
        };
        // Seals what was recovered: damage to it will be told from a tear. A segment that the last
        // run went over to and did not use gets its state.
        let sealed = if fresh {
            core.encode_state();
            core.write().and_then(|()| core.sync())
        } else {
            core.seal().and_then(|()| core.sync())
        };
        sealed.map_err(|source| OpenError::Io { what: "write to the log".into(), source })?;
        core.retire();
        Ok((core, recovered))
    }

    /// Adds a write to the group. `InvalidInput` when it does not fit the stream (a gap in the
    /// indexes, a payload beyond its limit); then nothing was added and the log is as good as before.
    pub fn stage(&mut self, write: &Write) -> io::Result<()> {
        self.check()?;
        self.fits(write).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
        // The content changes after the push: a segment begun by it states what was before.
        match write {
            Write::Vote(vote) => {
                self.push(Kind::Vote, 0, vote)?;
                self.content.vote = Some(vote.clone());
            }
            Write::Committed(id) => {
                self.content.committed = Some(id.clone());
                self.lazy = true;
            }
            Write::Entry { index, payload } => {
                let offset = self.push(Kind::Entry, *index, payload)?;
                self.content.append(*index);
                let place = Place {
                    segment: self.active.number,
                    offset: offset as u32,
                    len: payload.len() as u32,
                };
                self.changes.push(Change::Append { index: *index, place });
            }
            Write::TruncateAfter { last } => {
                let from = self.content.first_after(*last);
                self.push(Kind::Truncate, from, &[])?;
                self.content.truncate(from);
                self.changes.push(Change::Truncate { from });
            }
            Write::Purged { index, log_id } => {
                self.push(Kind::Purged, *index, log_id)?;
                self.content.purge(*index, log_id.clone());
                self.changes.push(Change::Purge { index: *index });
            }
        }
        Ok(())
    }

    /// Whether a write follows from what the log holds, and is within its limits.
    fn fits(&self, write: &Write) -> Result<(), String> {
        let (payload, limit) = match write {
            Write::Entry { index, payload } => {
                self.content.may_append(*index)?;
                // Room in a new segment: a frame is never cut in two.
                let used = segment::HEADER + frame::size(self.content.encoded_len());
                let ends = 2 * frame::size(0);
                let room = (self.shape.bytes as usize).saturating_sub(used + ends);
                (payload.len(), room.min(limits::WAL_FRAME_BYTES))
            }
            Write::Vote(id) | Write::Committed(id) => (id.len(), limits::WAL_ID_BYTES),
            Write::TruncateAfter { last } => {
                self.content.may_truncate(self.content.first_after(*last))?;
                (0, 0)
            }
            Write::Purged { index, log_id } => {
                self.content.may_purge(*index)?;
                (log_id.len(), limits::WAL_ID_BYTES)
            }
        };
        if payload > limit {
            return Err(format!("a payload of {payload} bytes, at most {limit} fit"));
        }
        Ok(())
    }

    /// Makes the group durable: one write, one sync. Then its entries can be read.
    pub fn commit(&mut self) -> io::Result<()> {
        self.check()?;
        if self.buffer.is_empty() {
            return Ok(());
        }
        self.push_committed()?;
        self.write()?;
        self.sync()?;
        failpoint!(LogAfterSync);
        {
            let mut index = self.shared.write();
            for change in self.changes.drain(..) {
                index.apply(change);
            }
        }
        self.retire();
        self.collect()
    }

    /// To be called when nothing waits to be written. Writes, without syncing it, a frame which says
    /// that the last group was synced, so that damage to that group is told from a tear as soon as
    /// the kernel has written the frame back; and the committed id, when it has changed.
    pub fn seal(&mut self) -> io::Result<()> {
        self.check()?;
        let nothing_new = self.marked == self.synced && !self.lazy;
        if !self.buffer.is_empty() || nothing_new {
            return Ok(());
        }
        let committed = self.content.committed.as_ref().map_or(0, Bytes::len);
        if self.room() < frame::size(committed) + frame::size(0) {
            // Not worth a new segment.
            return Ok(());
        }
        self.push_committed()?;
        if self.marked < self.synced {
            self.push(Kind::Mark, 0, &[])?;
        }
        self.write()
    }

    /// Seals the log and syncs that too.
    pub fn close(&mut self) -> io::Result<()> {
        self.commit()?;
        self.seal()?;
        self.sync()
    }

    /// Work that another thread should do now, if there is any. At most one job at a time.
    pub fn job(&mut self) -> Option<Job> {
        if self.failed.is_some() || self.collect().is_err() || !self.slot.is_idle() {
            return None;
        }
        let used =
            self.position >= (self.active.bytes / 4) as usize && self.position > self.retry_at;
        let number = (self.prepared.is_empty() && used).then_some(self.active.number + 1);
        if number.is_none() && self.retired.is_empty() {
            return None;
        }
        Some(self.offer(number))
    }

    pub fn reader(&self) -> WalReader {
        WalReader { shared: Arc::clone(&self.shared) }
    }

    /// Bytes of all files of the log.
    pub fn bytes_on_disk(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of frames that were written to the active segment, its header included.
    pub fn set_meter(&mut self, meter: Box<dyn Meter>) {
        self.meter = Some(meter);
    }

    fn check(&self) -> io::Result<()> {
        match &self.failed {
            None => Ok(()),
            Some((kind, why)) => {
                Err(io::Error::new(*kind, format!("the log has failed before: {why}")))
            }
        }
    }

    /// Poisons the log.
    fn fail(&mut self, error: io::Error) -> io::Error {
        self.failed = Some((error.kind(), error.to_string()));
        error
    }

    /// Bytes left for frames in the active segment; an end frame always fits behind them.
    fn room(&self) -> usize {
        let used = self.position + self.buffer.len() + frame::size(0);
        (self.active.bytes as usize).saturating_sub(used)
    }

    /// Appends a frame to the group, in the next segment when this one is full. Returns its offset.
    fn push(&mut self, kind: Kind, index: u64, payload: &[u8]) -> io::Result<usize> {
        if self.room() < frame::size(payload.len()) {
            self.roll()?;
        }
        let offset = self.position + self.buffer.len();
        self.encode(kind, index, payload);
        Ok(offset)
    }

    fn encode(&mut self, kind: Kind, index: u64, payload: &[u8]) {
        let head = Head { kind, sequence: self.sequence, synced: self.synced, index };
        frame::encode(&mut self.buffer, self.active.seed, head, payload);
        self.sequence += 1;
        self.marked = self.synced;
    }

    fn encode_state(&mut self) {
        let state = self.content.encode();
        self.encode(Kind::State, 0, &state);
        self.lazy = false;
    }

    fn push_committed(&mut self) -> io::Result<()> {
        if !self.lazy {
            return Ok(());
        }
        let committed = self.content.committed.clone().unwrap_or_default();
        self.lazy = false;
        self.push(Kind::Committed, 0, &committed).map(drop)
    }

    /// Ends the active segment and goes on in the next.
    ///
    /// Invariant: the next segment is durable before the end frame that leads to it is written, and
    /// this one is synced with its end frame before anything is written to the next.
    fn roll(&mut self) -> io::Result<()> {
        let next = self.next_segment()?;
        self.encode(Kind::End, 0, &[]);
        self.write()?;
        self.sync()?;
        self.active = Arc::new(next);
        self.position = segment::HEADER;
        self.retry_at = 0;
        let mut index = self.shared.write();
        index.segments.insert(self.active.number, Arc::clone(&self.active));
        drop(index);
        self.encode_state();
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<Segment> {
        if self.prepared.is_empty()
            && let Some(outcome) = self.slot.complete()
        {
            self.absorb(outcome)?;
        }
        if self.prepared.is_empty() {
            tracing::warn!(
                segment = self.active.number + 1,
                "the next log segment was not prepared in time; preparing it now"
            );
            self.offer(Some(self.active.number + 1)).run();
            if let Some(outcome) = self.slot.complete() {
                self.absorb(outcome)?;
            }
        }
        let next = self.prepared.pop_front();
        next.ok_or_else(|| {
            let why = "no space for the next log segment";
            self.fail(io::Error::new(io::ErrorKind::StorageFull, why))
        })
    }

    fn offer(&mut self, number: Option<u64>) -> Job {
        self.slot.offer(Work {
            disk: Arc::clone(&self.disk),
            shape: self.shape,
            pool: std::mem::take(&mut self.pool),
            retired: std::mem::take(&mut self.retired),
            number,
            bytes: Arc::clone(&self.bytes),
        })
    }

    fn collect(&mut self) -> io::Result<()> {
        match self.slot.collect() {
            Some(outcome) => self.absorb(outcome),
            None => Ok(()),
        }
    }

    /// A failed job poisons the log like a failed write, but for a lack of space: that may pass
    /// before the next segment is needed.
    fn absorb(&mut self, outcome: Outcome) -> io::Result<()> {
        self.pool = outcome.pool;
        match outcome.prepared {
            Ok(segment) => {
                self.prepared.extend(segment);
                Ok(())
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                ) =>
            {
                tracing::warn!(%error, "no space for the next log segment");
                self.retry_at = self.position + (self.active.bytes / 16) as usize;
                Ok(())
            }
            Err(error) => Err(self.fail(error)),
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let len = self.buffer.len();
        let end = (self.position + len).next_multiple_of(BLOCK_BYTES);
        let end = end.min(self.active.bytes as usize);
        self.buffer.resize(end - self.position, 0);
        let written = self.active.file.write_at(self.position as u64, &self.buffer);
        self.position += len;
        self.buffer.clear();
        self.buffer.shrink_to(KEEP_BYTES);
        written.map_err(|error| self.fail(error))
    }

    fn sync(&mut self) -> io::Result<()> {
        if let Some(meter) = &mut self.meter {
            meter.sync_begins();
        }
        failpoint!(LogBeforeSync, |error| Err(self.fail(error)));
        let synced = self.active.file.sync();
        if let Some(meter) = &mut self.meter {
            meter.sync_ended();
        }
        synced.map_err(|error| self.fail(error))?;
        self.synced = self.sequence - 1;
        Ok(())
    }

    /// Gives up the segments before the first live entry. What they held is in the state that the
    /// first remaining one begins with, which is durable.
    fn retire(&mut self) {
        let mut index = self.shared.write();
        let keep = index.first_segment().unwrap_or(self.active.number);
        while let Some(lowest) = index.segments.first_entry() {
            if *lowest.key() >= keep {
                break;
            }
            let segment = lowest.remove();
            let reusable = Arc::strong_count(&segment) == 1;
            self.retired.push(Retired { number: segment.number, bytes: segment.bytes, reusable });
        }
    }
}
