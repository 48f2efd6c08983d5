//! openraft's log storage over our write-ahead log: entries as bytes, a tail of recent ones in
//! memory for replication and apply, votes and entries in one ordered stream.
//!
//! Invariants: what `append` was given is readable when it returns, before it is durable; the tail
//! holds every entry that is not yet durable; `purge` is asked for only behind a verified snapshot.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::{OptionalSend, alias::VoteOf};
use tokio::sync::oneshot;

use super::codec;
use super::types::{Entry, LogId, Types, Vote};
use crate::failpoint::failpoint;
use crate::limits::{LOG_READ_BYTES, LOG_TAIL_BYTES};
use crate::store::wal::{Recovered, WalReader, Write};

/// What is called when a write has become durable, or failed.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// Hears which entry is the last durable one: the image must not be ahead of it.
pub type OnSynced = Arc<dyn Fn(Option<u64>) + Send + Sync>;

/// The write-ahead log and whatever drives it: a thread in production, a task in the simulation.
pub trait Journal: Send + Sync + Debug + 'static {
    /// Queues writes; order is kept, `done` is called after they are durable.
    fn submit(&self, writes: Vec<Write>, done: Done);
    /// Reads entries that are on disk.
    fn reader(&self) -> WalReader;
}

impl Journal for crate::store::wal::Wal {
    fn submit(&self, writes: Vec<Write>, done: Done) {
        crate::store::wal::Wal::submit(self, writes, done);
    }

    fn reader(&self) -> WalReader {
        crate::store::wal::Wal::reader(self)
    }
}

/// The log of one node. Clones share it.
#[derive(Debug, Clone)]
pub struct Log {
    journal: Arc<dyn Journal>,
    reader: WalReader,
    shared: Arc<Shared>,
}

impl Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

struct Shared {
    state: Mutex<LogMemory>,
    /// Index + 1 of the last durable entry.
    synced: AtomicU64,
    on_synced: OnSynced,
    tail_bytes: usize,
}

#[derive(Debug)]
struct LogMemory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    /// Index of the first entry; None when there is none.
    first: Option<u64>,
    /// The last entry, or what was purged last when there is none.
    last: Option<LogId>,
    tail: VecDeque<(Entry, usize)>,
    tail_bytes: usize,
    /// Bytes appended since the start, and at which index each further [`MARK_BYTES`] of them began.
    appended: u64,
    marks: VecDeque<(u64, u64)>,
}

/// Distance of the marks by which [`Log::index_before`] finds its way.
const MARK_BYTES: u64 = 1024 * 1024;

impl Log {
    /// The log as it was recovered. Fails when recovered bytes do not decode: they passed their
    /// checksums, so they are of another release.
    pub fn new(
        journal: Arc<dyn Journal>,
        recovered: &Recovered,
        on_synced: OnSynced,
    ) -> io::Result<Self> {
        Self::with_tail(journal, recovered, on_synced, LOG_TAIL_BYTES)
    }

    /// See [`Log::new`]; `tail_bytes` bounds the entries kept in memory.
    pub fn with_tail(
        journal: Arc<dyn Journal>,
        recovered: &Recovered,
        on_synced: OnSynced,
        tail_bytes: usize,
    ) -> io::Result<Self> {
        let reader = journal.reader();
        let vote = recovered.vote.clone().map(codec::decode_vote).transpose();
        let committed = recovered.committed.clone().map(codec::decode_log_id).transpose();
        let purged =
            recovered.purged.clone().map(|(_, bytes)| codec::decode_log_id(bytes)).transpose();
        let purged = purged.map_err(io::Error::other)?;
        let last = match recovered.last {
            None => purged,
            Some(index) => Some(read(&reader, index, index + 1, 1)?.pop().map_or_else(
                || Err(io::Error::other(format!("entry {index} is in the index, not in the log"))),
                |entry| Ok(entry.log_id),
            )?),
        };
        let state = LogMemory {
            vote: vote.map_err(io::Error::other)?,
            committed: committed.map_err(io::Error::other)?,
            purged,
            first: recovered.first,
            last,
            tail: VecDeque::new(),
            tail_bytes: 0,
            appended: 0,
            marks: VecDeque::new(),
        };
        let synced = last.map_or(0, |last| last.index + 1);
        on_synced(synced.checked_sub(1));
        let synced = AtomicU64::new(synced);
        let shared = Shared { state: Mutex::new(state), synced, on_synced, tail_bytes };
        Ok(Log { journal, reader, shared: Arc::new(shared) })
    }

    /// True when the log has ever held anything: the node has been a member of a cluster.
    pub fn is_initialized(&self) -> bool {
        let state = self.state();
        state.vote.is_some() || state.last.is_some()
    }

    /// Lets the log go on behind a state that came from another member and holds everything up to
    /// `at`, as openraft does it with a snapshot that it installs: what contradicts `at` goes.
    ///
    /// No committed entry is lost: `at` was committed, so an own entry in its place that is another
    /// one was not, and neither was what follows it; and what is before `at` is in the state. After a
    /// crash between the two steps the log still has all of its committed entries.
    pub async fn go_on_behind(&mut self, at: LogId) -> io::Result<()> {
        let (purged, last) = {
            let state = self.state();
            (state.purged, state.last)
        };
        if purged.is_some_and(|purged| purged.index >= at.index) {
            return Ok(());
        }
        if last.is_some_and(|last| last.index >= at.index) {
            let held = self.entries(at.index, at.index + 1, 1)?.pop();
            if held.is_some_and(|entry| entry.log_id == at) {
                return Ok(());
            }
            // The entry before it, unless that is the purged one or there is none.
            let before = match at.index.checked_sub(1) {
                Some(before) if purged.is_none_or(|purged| purged.index < before) => {
                    self.entries(before, at.index, 1)?.pop().map(|entry| entry.log_id)
                }
                Some(_) | None => None,
            };
            self.truncate_after(before.or(purged)).await?;
        }
        self.purge(at).await
    }

    /// Up to where the log is purged.
    pub fn purged_index(&self) -> Option<u64> {
        self.state().purged.map(|purged| purged.index)
    }

    /// Bytes of entries appended since the start.
    pub fn appended_bytes(&self) -> u64 {
        self.state().appended
    }

    /// An index such that about `bytes` of the newest entries stand behind it; 0 when fewer were
    /// appended since the start.
    pub fn index_before(&self, bytes: u64) -> u64 {
        let state = self.state();
        let Some(target) = state.appended.checked_sub(bytes) else { return 0 };
        let behind = state.marks.partition_point(|(at, _)| *at <= target);
        behind.checked_sub(1).and_then(|mark| state.marks.get(mark)).map_or(0, |(_, index)| *index)
    }

    /// The last entry that is on disk, or was before it was purged.
    pub fn synced_index(&self) -> Option<u64> {
        self.shared.synced.load(Ordering::Acquire).checked_sub(1)
    }

    fn state(&self) -> MutexGuard<'_, LogMemory> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the writes are durable.
    async fn write(&self, write: Write) -> io::Result<()> {
        let (tx, rx) = oneshot::channel();
        let done = Box::new(move |result| {
            // Nobody waits when the node is being dropped.
            let _ = tx.send(result);
        });
        self.journal.submit(vec![write], done);
        rx.await.map_err(|_| io::Error::other("the log has stopped"))?
    }

    /// Entries of `start..end`, from memory as far as it reaches, else from disk.
    fn entries(&self, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        let tail_start = {
            let state = self.state();
            let first = state.tail.front().map(|(entry, _)| entry.log_id.index);
            match first {
                Some(first) if start >= first => {
                    return Ok(state.tail_entries(start, end, max_bytes));
                }
                Some(first) => first,
                None => u64::MAX,
            }
        };
        // On disk: everything before the tail is durable. A later call goes on from where this ends.
        read(&self.reader, start, end.min(tail_start), max_bytes)
    }
}

/// Reads and decodes entries from disk.
fn read(reader: &WalReader, start: u64, end: u64, max_bytes: usize) -> io::Result<Vec<Entry>> {
    let raw = reader.read(start..end, max_bytes)?;
    raw.into_iter().map(|(_, bytes)| codec::decode_entry(bytes).map_err(io::Error::other)).collect()
}

impl Shared {
    fn set_synced(&self, next: u64) {
        self.synced.store(next, Ordering::Release);
        (self.on_synced)(next.checked_sub(1));
    }
}

impl LogMemory {
    fn tail_entries(&self, start: u64, end: u64, max_bytes: usize) -> Vec<Entry> {
        let Some(first) = self.tail.front().map(|(entry, _)| entry.log_id.index) else {
            return Vec::new();
        };
        let skip = usize::try_from(start - first).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut out = Vec::new();
        for (entry, size) in self.tail.iter().skip(skip) {
            if entry.log_id.index >= end || (!out.is_empty() && bytes + size > max_bytes) {
                break;
            }
            bytes += size;
            out.push(entry.clone());
        }
        out
    }

    /// Drops the oldest entries that are durable until the tail is within its bytes.
    fn trim(&mut self, synced: u64, limit: usize) {
        while self.tail_bytes > limit {
            match self.tail.front() {
                Some((entry, size)) if entry.log_id.index < synced => {
                    self.tail_bytes -= size;
                    self.tail.pop_front();
                }
                Some(_) | None => break,
            }
        }
    }
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        // What is not there is left out; openraft asks for such ranges only to learn where the log is.
        let (start, end) = {
            let state = self.state();
            let Some(first) = state.first else { return Ok(Vec::new()) };
            (start.max(first), end.min(state.last.map_or(0, |last| last.index + 1)))
        };
        let mut out: Vec<Entry> = Vec::new();
        let mut next = start;
        while next < end {
            let part = self.entries(next, end, usize::MAX)?;
            match part.last() {
                Some(entry) => next = entry.log_id.index + 1,
                None => break,
            }
            out.extend(part);
        }
        Ok(out)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        match self.entries(start, end, LOG_READ_BYTES) {
            // Purged while this was under way: openraft sends an empty request in place of the entries, and the stream
            // fails at the horizon (see `answers`). An error would end the node.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound
                    && self.purged_index() >= Some(start) =>
            {
                tracing::debug!(start, "entries to replicate were purged");
                Ok(Vec::new())
            }
            entries => entries,
        }
    }

    async fn read_vote(&mut self) -> Result<Option<VoteOf<Types>>, io::Error> {
        Ok(self.state().vote)
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.state();
        Ok(LogState { last_purged_log_id: state.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.state().vote = Some(*vote);
        self.write(Write::Vote(codec::encode_vote(vote))).await
    }

    /// Rides along with the next write: losing it only means that a restarted node learns the commit
    /// index from the leader instead.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.state().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.state().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut writes = Vec::new();
        let mut last = None;
        {
            let mut state = self.state();
            if let Some(committed) = state.committed {
                writes.push(Write::Committed(codec::encode_log_id(&committed)));
            }
            for entry in entries {
                let payload: Bytes = codec::encode_entry(&entry);
                writes.push(Write::Entry { index: entry.log_id.index, payload });
                let size = codec::entry_size(&entry);
                last = Some(entry.log_id);
                state.first.get_or_insert(entry.log_id.index);
                let size_on_disk = size as u64;
                if state.appended / MARK_BYTES != (state.appended + size_on_disk) / MARK_BYTES {
                    let mark = (state.appended, entry.log_id.index);
                    state.marks.push_back(mark);
                }
                state.appended += size_on_disk;
                state.tail_bytes += size;
                state.tail.push_back((entry, size));
            }
            if last.is_some() {
                state.last = last;
            }
            state.trim(self.shared.synced.load(Ordering::Acquire), self.shared.tail_bytes);
        }
        let shared = self.shared.clone();
        let done = Box::new(move |result: io::Result<()>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                shared.set_synced(last.index + 1);
            }
            callback.io_completed(result);
        });
        self.journal.submit(writes, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let keep = last.map_or(0, |last| last.index + 1);
        {
            let mut state = self.state();
            while state.tail.back().is_some_and(|(entry, _)| entry.log_id.index >= keep) {
                if let Some((_, size)) = state.tail.pop_back() {
                    state.tail_bytes -= size;
                }
            }
            if state.last > last {
                state.last = last.or(state.purged);
            }
            state.first = state.first.filter(|first| *first < keep);
        }
        let shared = self.shared.clone();
        let result = self.write(Write::TruncateAfter { last: last.map(|last| last.index) }).await;
        if keep < shared.synced.load(Ordering::Acquire) {
            shared.set_synced(keep);
        }
        result
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        failpoint!(await LogPurge, |error| Err(io::Error::other(error)));
        {
            let mut state = self.state();
            if state.purged.is_none_or(|purged| purged < log_id) {
                state.purged = Some(log_id);
            }
            // By index: a tail that was never committed may have a greater term.
            if state.last.is_none_or(|last| last.index < log_id.index) {
                // A snapshot beyond the log was installed: the log goes on behind it.
                state.last = Some(log_id);
                state.marks.clear();
                if self.shared.synced.load(Ordering::Acquire) <= log_id.index {
                    self.shared.set_synced(log_id.index + 1);
                }
            }
            let beyond = state.last.is_none_or(|last| last.index <= log_id.index);
            state.first = state.first.filter(|_| !beyond).map(|first| first.max(log_id.index + 1));
            while state.marks.front().is_some_and(|(_, index)| *index <= log_id.index) {
                state.marks.pop_front();
            }
            while state.tail.front().is_some_and(|(entry, _)| entry.log_id.index <= log_id.index) {
                if let Some((_, size)) = state.tail.pop_front() {
                    state.tail_bytes -= size;
                }
            }
        }
        let write = Write::Purged { index: log_id.index, log_id: codec::encode_log_id(&log_id) };
        self.write(write).await
    }
}
