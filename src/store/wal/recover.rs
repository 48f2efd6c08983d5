//! Reading the log at start: what it holds, and whether it may be trusted.
//!
//! # When the log is cut, and when it is damaged
//!
//! Frames carry consecutive sequence numbers, and each says up to which number everything was synced
//! when it was written (its *mark*). A group is written with one write and synced once; the next
//! group is written only after that. So after a crash the disk holds all groups but the last whole,
//! and of the last any subset of its sectors, in any order: a later frame of that group may be there
//! while an earlier one is torn. All frames of it carry marks before the group.
//!
//! Let `s` be the first sequence number whose frame does not verify. Then:
//! - a later frame that verifies with a mark of at least `s` proves that `s` was once durable: the
//!   log is **damaged**, and acknowledged writes may be lost. We refuse to go on.
//! - later frames with marks below `s` are of the same, never acknowledged group: a **torn group**.
//!   The log is cut at `s`, and they are erased, so that they cannot come back behind new frames.
//! - with no later frame it is a torn tail, and is cut likewise.
//!
//! Only the segment that the stream ends in may have such a place: a segment is synced with its end
//! frame before the first frame is written to the next, and that next one, with its header, is
//! durable before the end frame is written. A missing, short or unreadable segment is damage.
//!
//! What frames alone cannot tell from a tear is damage to the very last group, when nothing was
//! written after it. The writer narrows that window: `WalCore::seal` writes a frame with a newer mark
//! as soon as the log is idle. A whole log replaced by an older copy of itself cannot be noticed here
//! either; that takes a second witness, such as the image's applied index.
//!
//! All of this takes for granted that a torn write harms only bytes that it was to change: the last
//! sector of a synced group is written again, with the same bytes in front, by the next group.
//!
//! # What was read is made durable
//!
//! After a kill without a power loss, frames may be read that are in the page cache and not on the
//! disk; and after a failed sync the kernel may hold pages as clean that never reached it. Syncing
//! again would report success and write nothing. So recovery *writes* every frame above the highest
//! mark again, then syncs, before anybody may rely on them. Likewise a segment may have its name only
//! in memory: the directory is synced before anything is written.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::content::Content;
use super::frame::{self, Bad, Frame, Kind};
use super::prepare::Work;
use super::reader::{Change, Index, Place};
use super::segment::{self, BadHeader, HEADER, Segment, Shape};
use super::{BLOCK_BYTES, Cut, OpenError, WalOptions};
use crate::limits;
use crate::store::disk::Disk;

/// What is left of a log does not begin with a segment or a frame of a higher number: there are not as many
/// writes in the life of a disk. From here on numbers are counted without looking for their end.
const FIRST: u64 = u64::MAX / 2;

/// What the writer goes on from.
#[derive(Debug)]
pub(super) struct Opened {
    pub shape: Shape,
    pub index: Index,
    pub content: Content,
    pub active: Arc<Segment>,
    /// Where the next frame goes in the active segment.
    pub position: usize,
    /// Sequence number of the next frame; everything before it is durable.
    pub sequence: u64,
    pub prepared: VecDeque<Segment>,
    pub pool: Vec<String>,
    pub bytes: Arc<AtomicU64>,
    pub cut: Option<Cut>,
}

fn io_error<'a>(what: &'a str, name: &'a str) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io { what: format!("{what} {name}"), source }
}

fn damaged(segment: u64, offset: usize, why: impl Into<String>) -> OpenError {
    OpenError::Damaged { segment, offset: offset as u64, why: why.into() }
}

pub(super) fn recover(disk: &Arc<dyn Disk>, options: &WalOptions) -> Result<Opened, OpenError> {
    let shape = Shape { log_id: options.log_id, bytes: options.segment_bytes };
    let bytes = Arc::new(AtomicU64::new(0));
    let mut names = disk.list().map_err(io_error("list", "the log's directory"))?;
    if !names.iter().any(|name| segment::parse_name(name).is_some()) {
        if !options.create {
            return Err(OpenError::Missing);
        }
        let pool = clear_spares(&**disk, &names, shape.bytes)?;
        let work = Work {
            disk: Arc::clone(disk),
            shape,
            pool,
            retired: Vec::new(),
            number: Some(1),
            bytes: Arc::clone(&bytes),
        };
        work.run().prepared.map_err(io_error("create", &segment::name(1)))?;
        names = disk.list().map_err(io_error("list", "the log's directory"))?;
    }
    let (segments, log_id) = open_segments(&**disk, &names)?;
    let shape = Shape { log_id, ..shape };
    let pool = clear_spares(&**disk, &names, shape.bytes)?;
    let total = segments.iter().map(|segment| segment.bytes).sum::<u64>();
    bytes.store(total + pool.len() as u64 * shape.bytes, Ordering::Relaxed);

    let mut scan = Scan::default();
    let mut buffer = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        buffer.resize(segment.bytes as usize, 0);
        let name = segment::name(segment.number);
        segment.file.read_at(0, &mut buffer).map_err(io_error("read", &name))?;
        match &scan.tail {
            None => scan.segment(segment, at == 0, at + 1 == segments.len(), &buffer)?,
            Some(tail) => tail.nothing_follows(segment, &buffer)?,
        }
    }
    let tail = scan.tail.take().expect("the scan ends at a tail or with an error");
    if !options.create && tail.sequence <= 1 {
        return Err(damaged(
            tail.segment,
            tail.offset,
            "no frame is left of a log that was in use",
        ));
    }
    scan.complete(segments[0].number)?;
    disk.sync_dir().map_err(io_error("sync", "the log's directory"))?;
    make_durable(&segments, &scan.unsynced, &tail)?;

    let mut index = scan.index;
    let mut prepared = VecDeque::new();
    let mut active = None;
    for segment in segments {
        if segment.number > tail.segment {
            prepared.push_back(segment);
        } else {
            let segment = Arc::new(segment);
            index.segments.insert(segment.number, Arc::clone(&segment));
            active = Some(segment);
        }
    }
    Ok(Opened {
        shape,
        index,
        content: scan.content,
        active: active.expect("the tail lies in a segment"),
        position: tail.offset,
        sequence: tail.sequence,
        prepared,
        pool,
        bytes,
        cut: tail.cut,
    })
}

/// Opens all segments in order and checks that none is missing between two others.
fn open_segments(disk: &dyn Disk, names: &[String]) -> Result<(Vec<Segment>, u64), OpenError> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut log = None;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::parse_name(name)).collect();
    numbers.sort_unstable();
    if let Some(first) = numbers.first().filter(|first| !(1..=FIRST).contains(*first)) {
        return Err(damaged(*first, 0, "no segment gets this number"));
    }
    for number in numbers {
        if let Some(last) = segments.last()
            && last.number + 1 != number
        {
            return Err(damaged(last.number + 1, 0, format!("missing, though {number} exists")));
        }
        let name = segment::name(number);
        let file = disk.open(&name).map_err(io_error("open", &name))?;
        let (segment, log_id) =
            match Segment::open(file, number).map_err(io_error("read", &name))? {
                Ok(opened) => opened,
                Err(BadHeader::Damaged(why)) => return Err(damaged(number, 0, why)),
                Err(BadHeader::Version(version)) => {
                    return Err(OpenError::Version { segment: number, version });
                }
            };
        if *log.get_or_insert(log_id) != log_id {
            return Err(damaged(number, 0, "it belongs to another log"));
        }
        segments.push(segment);
    }
    let log = log.expect("recover made sure that there is a segment");
    Ok((segments, log))
}

/// Keeps whole spare files for reuse and removes the others. Returns the names of those kept.
fn clear_spares(disk: &dyn Disk, names: &[String], bytes: u64) -> Result<Vec<String>, OpenError> {
    let mut pool = Vec::new();
    for name in names.iter().filter(|name| segment::is_spare_name(name)) {
        let file = disk.open(name).map_err(io_error("open", name))?;
        let len = file.len().map_err(io_error("read", name))?;
        if len == bytes && pool.len() < limits::WAL_SPARE_SEGMENTS {
            pool.push(name.clone());
        } else {
            disk.remove(name).map_err(io_error("remove", name))?;
        }
    }
    Ok(pool)
}

/// Where the stream ends.
#[derive(Debug)]
struct Tail {
    segment: u64,
    offset: usize,
    /// Of the frame that would stand there.
    sequence: u64,
    /// End of the last frame of a torn group.
    erase_to: usize,
    cut: Option<Cut>,
}

impl Tail {
    /// The segment that the stream ends in: what lies behind the tail decides between a tear and
    /// damage.
    fn find(
        segment: &Segment,
        offset: usize,
        sequence: u64,
        buffer: &[u8],
        bad: Bad,
    ) -> Result<Tail, OpenError> {
        let mut erase_to = offset;
        let mut frames = 0;
        for (at, frame) in frame::find(buffer, offset, segment.seed) {
            let head = frame.head;
            if head.synced >= sequence || head.sequence < sequence {
                return Err(damaged(
                    segment.number,
                    offset,
                    format!(
                        "frame {sequence} does not verify, but frame {} at byte {at} says that \
                         everything up to {} was on the disk",
                        head.sequence, head.synced
                    ),
                ));
            }
            erase_to = at + frame.size();
            frames += 1;
        }
        let torn = frames > 0 || bad == Bad::Payload;
        let cut =
            torn.then_some(Cut { segment: segment.number, offset: offset as u64, erased: frames });
        Ok(Tail { segment: segment.number, offset, sequence, erase_to, cut })
    }

    /// A segment behind the tail is prepared and not yet used.
    fn nothing_follows(&self, segment: &Segment, buffer: &[u8]) -> Result<(), OpenError> {
        match frame::find(buffer, HEADER, segment.seed).next() {
            None => Ok(()),
            Some((at, frame)) => Err(damaged(
                self.segment,
                self.offset,
                format!(
                    "frame {} does not verify, but segment {} holds frame {} at byte {at}",
                    self.sequence, segment.number, frame.head.sequence
                ),
            )),
        }
    }
}

/// A frame above the highest mark.
#[derive(Debug)]
struct Unsynced {
    segment: u64,
    sequence: u64,
    start: usize,
    end: usize,
}

/// Replays the stream.
#[derive(Debug, Default)]
struct Scan {
    content: Content,
    index: Index,
    /// Of the last frame.
    sequence: u64,
    unsynced: VecDeque<Unsynced>,
    tail: Option<Tail>,
}

impl Scan {
    fn segment(
        &mut self,
        segment: &Segment,
        first: bool,
        last: bool,
        buffer: &[u8],
    ) -> Result<(), OpenError> {
        let mut offset = HEADER;
        loop {
            let frame = match frame::decode(&buffer[offset.min(buffer.len())..], segment.seed) {
                Ok(frame) => frame,
                Err(_) if first && offset == HEADER && segment.number > 1 => {
                    let why = "it does not begin with the state of those before it";
                    return Err(damaged(segment.number, offset, why));
                }
                Err(bad) => {
                    let sequence = self.sequence + 1;
                    self.tail = Some(Tail::find(segment, offset, sequence, buffer, bad)?);
                    return Ok(());
                }
            };
            self.frame(segment, first, offset, &frame)
                .map_err(|why| damaged(segment.number, offset, why))?;
            let start = offset;
            offset += frame.size();
            let sequence = frame.head.sequence;
            self.unsynced.push_back(Unsynced {
                segment: segment.number,
                sequence,
                start,
                end: offset,
            });
            while self.unsynced.front().is_some_and(|front| front.sequence <= frame.head.synced) {
                self.unsynced.pop_front();
            }
            if frame.head.kind == Kind::End {
                if last {
                    let why = format!("missing, though {} goes on in it", segment.number);
                    return Err(damaged(segment.number + 1, 0, why));
                }
                return Ok(());
            }
        }
    }

    fn frame(
        &mut self,
        segment: &Segment,
        first: bool,
        offset: usize,
        frame: &Frame<'_>,
    ) -> Result<(), String> {
        let head = frame.head;
        let begins = offset == HEADER;
        if begins && first && segment.number > 1 {
            if head.sequence > FIRST {
                return Err(format!("it begins with frame {}", head.sequence));
            }
            self.sequence = head.sequence - 1;
        }
        if head.sequence != self.sequence + 1 {
            return Err(format!("frame {} where {} belongs", head.sequence, self.sequence + 1));
        }
        self.sequence = head.sequence;
        if begins != (head.kind == Kind::State) {
            return Err(format!("a frame of kind {:?} is out of place", head.kind));
        }
        let payload = || Bytes::copy_from_slice(frame.payload);
        match head.kind {
            Kind::State => {
                let state = Content::decode(frame.payload).ok_or("a state that is none")?;
                if first {
                    self.content = state;
                } else {
                    // The committed id may ride in the state alone.
                    self.content.committed.clone_from(&state.committed);
                    if self.content != state {
                        return Err(format!(
                            "it says that the segments before it hold {:?}, but they hold {:?}",
                            state.live, self.content.live
                        ));
                    }
                }
                if let Some((index, _)) = self.content.purged {
                    self.index.apply(Change::Purge { index });
                }
            }
            Kind::Vote => self.content.vote = Some(payload()),
            Kind::Committed => self.content.committed = Some(payload()),
            Kind::Entry => {
                self.content.may_append(head.index)?;
                self.content.append(head.index);
                let place = Place {
                    segment: segment.number,
                    offset: offset as u32,
                    len: frame.payload.len() as u32,
                };
                self.index.apply(Change::Append { index: head.index, place });
            }
            Kind::Truncate => {
                self.content.may_truncate(head.index)?;
                self.content.truncate(head.index);
                self.index.apply(Change::Truncate { from: head.index });
            }
            Kind::Purged => {
                self.content.may_purge(head.index)?;
                self.content.purge(head.index, payload());
                self.index.apply(Change::Purge { index: head.index });
            }
            Kind::Mark | Kind::End => {}
        }
        Ok(())
    }

    /// Every live entry must have been found: those that are missing were in segments that are.
    fn complete(&self, first_segment: u64) -> Result<(), OpenError> {
        let (live, found) = (&self.content.live, self.index.bounds());
        if live.end - live.start == found.end - found.start {
            return Ok(());
        }
        let until = if found.is_empty() { live.end } else { found.start };
        let why = format!("missing, with the entries {} to {}", live.start, until - 1);
        Err(damaged(first_segment.saturating_sub(1), 0, why))
    }
}

/// Writes the unsynced frames again and erases what lies behind them, then syncs.
fn make_durable(
    segments: &[Segment],
    unsynced: &VecDeque<Unsynced>,
    tail: &Tail,
) -> Result<(), OpenError> {
    for segment in segments {
        let mut frames = unsynced.iter().filter(|frame| frame.segment == segment.number);
        let at_tail = segment.number == tail.segment;
        let (start, end) = match (frames.next(), frames.next_back()) {
            (Some(first), Some(last)) => (first.start, last.end),
            (Some(only), None) => (only.start, only.end),
            (None, _) if at_tail => (tail.offset, tail.offset),
            (None, _) => continue,
        };
        let name = segment::name(segment.number);
        let mut bytes = vec![0; end - start];
        segment.file.read_at(start as u64, &mut bytes).map_err(io_error("read", &name))?;
        if at_tail {
            let clear = tail.erase_to.max(tail.offset.next_multiple_of(BLOCK_BYTES));
            bytes.resize(clear.min(segment.bytes as usize) - start, 0);
        }
        segment.file.write_at(start as u64, &bytes).map_err(io_error("write", &name))?;
        segment.file.sync().map_err(io_error("sync", &name))?;
    }
    Ok(())
}
