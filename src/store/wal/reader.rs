//! Reading entries back: an index in memory, and positional reads whose checksums are verified.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;

use super::frame::{self, Kind};
use super::segment::Segment;

/// Entries whose frames are no farther apart than this are read with one call.
const GAP_BYTES: usize = 4 * 1024;
/// Bytes of one read call, unless a single entry is longer.
const RUN_BYTES: usize = 1024 * 1024;

/// Where the frame of an entry lies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub segment: u64,
    pub offset: u32,
    pub len: u32,
}

impl Place {
    fn end(&self) -> usize {
        self.offset as usize + frame::size(self.len as usize)
    }
}

/// How a frame changes the index.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    Append { index: u64, place: Place },
    Truncate { from: u64 },
    Purge { index: u64 },
}

/// Places of all live entries.
///
/// Invariant: places ascend with the index, because an entry is only ever appended behind all that
/// live. So whatever lies in segments before the first entry's is dead.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Index of the first place.
    first: u64,
    places: VecDeque<Place>,
    purged: Option<u64>,
    /// Segments that hold frames, the active one included.
    pub segments: BTreeMap<u64, Arc<Segment>>,
}

impl Index {
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Append { index, place } => {
                if self.places.is_empty() {
                    self.first = index;
                }
                let next = self.first + self.places.len() as u64;
                assert!(index == next, "entry {index} indexed where {next} belongs");
                self.places.push_back(place);
            }
            Change::Truncate { from } => {
                let keep = from.saturating_sub(self.first);
                self.places.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
            }
            Change::Purge { index } => {
                let gone = (index + 1).saturating_sub(self.first).min(self.places.len() as u64);
                self.places.drain(..gone as usize);
                self.first += gone;
                self.purged = Some(index);
            }
        }
    }

    pub fn bounds(&self) -> Range<u64> {
        self.first..self.first + self.places.len() as u64
    }

    /// The lowest segment that a live entry lies in.
    pub fn first_segment(&self) -> Option<u64> {
        self.places.front().map(|place| place.segment)
    }
}

#[derive(Debug, Default)]
pub(super) struct Shared {
    index: RwLock<Index>,
}

impl Shared {
    pub fn new(index: Index) -> Arc<Shared> {
        Arc::new(Shared { index: RwLock::new(index) })
    }

    pub fn read(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads committed entries, beside the writer and beside other readers.
#[derive(Debug, Clone)]
pub struct WalReader {
    pub(super) shared: Arc<Shared>,
}

/// Entries in one segment that are read with one call.
struct Run {
    segment: Arc<Segment>,
    first: u64,
    places: Vec<Place>,
}

impl WalReader {
    /// Indexes of the first and the last entry.
    pub fn bounds(&self) -> Option<(u64, u64)> {
        let bounds = self.shared.read().bounds();
        (!bounds.is_empty()).then(|| (bounds.start, bounds.end - 1))
    }

    /// The entries of `range` that exist, in order, as long as their payloads are no more than
    /// `max_bytes` together; the first one is returned whatever its size. Nothing is returned for a
    /// range behind the last entry. `NotFound` when the range begins before the first entry,
    /// `InvalidData` when the bytes on the disk are not what was written.
    pub fn read(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<(u64, Bytes)>> {
        let mut out = Vec::new();
        for run in self.plan(range, max_bytes)? {
            run.read(&mut out)?;
        }
        Ok(out)
    }

    /// Holds the lock, does not touch the disk. A segment that is purged afterwards stays readable,
    /// because the plan holds it.
    fn plan(&self, range: Range<u64>, max_bytes: usize) -> io::Result<Vec<Run>> {
        let index = self.shared.read();
        let bounds = index.bounds();
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let purged = index.purged.is_some_and(|purged| range.start <= purged);
        if purged || (!bounds.is_empty() && range.start < bounds.start) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("entry {} is no longer, or was never, in the log", range.start),
            ));
        }
        if bounds.is_empty() {
            return Ok(Vec::new());
        }
        let mut runs: Vec<Run> = Vec::new();
        let mut total = 0;
        for at in range.start..range.end.min(bounds.end) {
            let place = index.places[(at - bounds.start) as usize];
            total += place.len as usize;
            if total > max_bytes && at > range.start {
                break;
            }
            let fits = |run: &&mut Run| {
                let (first, last) = (run.places[0], run.places[run.places.len() - 1]);
                run.segment.number == place.segment
                    && place.offset as usize - last.end() <= GAP_BYTES
                    && place.end() - first.offset as usize <= RUN_BYTES
            };
            match runs.last_mut().filter(fits) {
                Some(run) => run.places.push(place),
                None => {
                    let segment = Arc::clone(&index.segments[&place.segment]);
                    runs.push(Run { segment, first: at, places: vec![place] });
                }
            }
        }
        Ok(runs)
    }
}

impl Run {
    fn read(&self, out: &mut Vec<(u64, Bytes)>) -> io::Result<()> {
        let start = self.places[0].offset as usize;
        let end = self.places[self.places.len() - 1].end();
        let mut bytes = vec![0; end - start];
        self.segment.file.read_at(start as u64, &mut bytes)?;
        // One buffer behind all entries of the run: no payload is copied.
        let bytes = Bytes::from(bytes);
        for (index, place) in (self.first..).zip(&self.places) {
            let at = place.offset as usize - start;
            let whole = &bytes[at..place.end() - start];
            match frame::decode(whole, self.segment.seed) {
                Ok(frame)
                    if frame.head.kind == Kind::Entry
                        && frame.head.index == index
                        && frame.payload.len() == place.len as usize =>
                {
                    let payload = at + frame::HEADER;
                    out.push((index, bytes.slice(payload..payload + frame.payload.len())));
                }
                Ok(_) | Err(_) => {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!(
                            "entry {index} does not verify: segment {} at byte {}",
                            self.segment.number, place.offset
                        ),
                    ));
                }
            }
        }
        Ok(())
    }
}
