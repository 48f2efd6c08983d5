//! Watch: a bounded ring of recent changes, and how they reach whoever watches a range.
//!
//! A range is the union of some selectors: the records of one class in one namespace, by their names,
//! whole or by prefix. Its watcher first gets the state of the range (or, when it resumes at a revision
//! that the ring still covers, the changes after it) and then every change: in order, none twice, none
//! missing, all changes of one revision in one message, whatever they are changes of.
//!
//! Invariant: [`Hub::publish`] and [`Hub::reset`] are called with the state's write lock held, after
//! the change and before the lock is released; [`Hub::subscribe`] with its read lock held. So whoever
//! subscribes sees a state and a hub of the same revision, and what is published later is exactly
//! what that state lacks. Order of locks: state, hub, group.
//!
//! Watchers of one range share a group: one queue of messages, in which each reader has its place. A
//! message costs the same however many wait for it, and is encoded once. What every reader has read
//! leaves the queue; a reader that falls behind a full queue is cut off with the revision after which
//! it may resume. When all queues together hold too much, it is those who are furthest behind, in whatever
//! range: whoever reads pays for nobody who does not. Nothing here is kept per watcher but its place and what
//! is left of its beginning.
//!
//! What a change costs: its place in the ring; when anybody watches anything, a few look-ups by its
//! names; when somebody watches it, one message for all groups that see the same of its revision.
//!
//! Another kind of record is made watchable by an arm in each of `range::names`, `Range::visit`,
//! `message::weigh`, `ring::Kept` and `api::convert::watch_event`; the matches there are exhaustive.

mod group;
mod index;
mod message;
mod range;
mod ring;
mod sagas;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

pub use group::WakeUps;
use group::{Group, Item};
use index::Index;
use message::Snapshot;
pub use message::{Kind, Message};
pub use range::Range;
use range::names;
use ring::Ring;
pub use sagas::{SagaBoard, SagaWait, SagaWakeUps};

use crate::error::Error;
use crate::limits;
use crate::state::{Change, Event, State};
pub use crate::state::{Class, Match, Scope as Selector};

/// The ranges are divided into this many parts; each tick sends the bookmarks of one, so that idle
/// watchers do not all wake at once.
const BOOKMARK_PARTS: u32 = 10;

/// How much a hub keeps.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Changes in the ring, and their bytes.
    pub ring_events: usize,
    pub ring_bytes: usize,
    /// Messages that wait in one range, and the bytes that wait in all of them.
    pub queue_messages: usize,
    pub queue_bytes: usize,
    /// Bytes of snapshots that are on their way, beyond which none is made for a new watcher.
    pub snapshot_bytes: usize,
    /// Events and bytes in one message of a snapshot. A revision whose changes have more bytes in one
    /// range than this reaches its watchers as a snapshot.
    pub snapshot_events: usize,
    pub message_bytes: usize,
    pub watchers: usize,
}

impl Default for Capacity {
    fn default() -> Self {
        Capacity {
            ring_events: limits::WATCH_RING_EVENTS,
            ring_bytes: limits::WATCH_RING_BYTES,
            queue_messages: limits::WATCH_QUEUE,
            queue_bytes: limits::WATCH_QUEUE_BYTES,
            snapshot_bytes: limits::WATCH_SNAPSHOT_BYTES,
            snapshot_events: limits::WATCH_SNAPSHOT_EVENTS,
            message_bytes: limits::WATCH_MESSAGE_BYTES,
            watchers: limits::WATCHERS,
        }
    }
}

/// The ring and the fan-out of one node. A handle: clones share.
#[derive(Debug, Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    capacity: Capacity,
    /// Bytes of the messages that wait in all groups.
    queued_bytes: AtomicUsize,
    /// Bytes of the snapshots that somebody has not read to their end.
    snapshot_bytes: Arc<AtomicUsize>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Revision of the state.
    revision: u64,
    ring: Ring,
    /// Every range that is watched has one group.
    groups: BTreeMap<Range, Arc<Group>>,
    /// The same groups, by the names of what they watch.
    index: Index,
    /// The same, by which part of the bookmarks they are in and by their number.
    parts: [BTreeMap<u64, Arc<Group>>; BOOKMARK_PARTS as usize],
    next_part: usize,
    next_group: u64,
    watchers: usize,
    closed: bool,
}

/// One watcher. Dropping it ends the watch.
#[derive(Debug)]
pub struct Subscription {
    shared: Arc<Shared>,
    group: Arc<Group>,
    reader: Reader,
}

#[derive(Debug)]
struct Reader {
    backlog: Backlog,
    /// Place in the group's queue of what comes next.
    place: u64,
    /// The last revision up to which the watcher is complete.
    complete: u64,
    /// Number of the last bookmark it was offered.
    bookmarks: u64,
    ended: bool,
}

/// What a watcher gets before it reads the queue.
#[derive(Debug)]
enum Backlog {
    Changes(VecDeque<Arc<Message>>),
    Snapshot(Arc<Snapshot>, usize),
}

impl Hub {
    /// A hub for a state that is at `revision`.
    pub fn new(revision: u64) -> Hub {
        Hub::with_capacity(revision, Capacity::default())
    }

    pub fn with_capacity(revision: u64, capacity: Capacity) -> Hub {
        let inner = Inner {
            revision,
            ring: Ring::new(revision),
            groups: BTreeMap::new(),
            index: Index::default(),
            parts: std::array::from_fn(|_| BTreeMap::new()),
            next_part: 0,
            next_group: 0,
            watchers: 0,
            closed: false,
        };
        let (queued_bytes, snapshot_bytes) = Default::default();
        let inner = Mutex::new(inner);
        Hub { shared: Arc::new(Shared { capacity, queued_bytes, snapshot_bytes, inner }) }
    }

    /// Hands what was applied to the watchers; `revision` is the state's after `events`. Called with
    /// the state's write lock held; see the top of this file.
    pub fn publish(&self, revision: u64, events: &[Event]) -> WakeUps {
        let mut wake_ups = WakeUps::default();
        let mut inner = self.shared.lock();
        let before = inner.revision;
        for event in events {
            let known = inner.revision;
            if !inner.ring.push(event.revision, &event.changes) {
                continue;
            }
            assert!(
                event.revision > known && event.revision <= revision,
                "changes of revision {} after revision {known}, up to {revision}",
                event.revision,
            );
            inner.revision = event.revision;
            inner.fan_out(&self.shared, event, &mut wake_ups);
        }
        inner.ring.trim(&self.shared.capacity);
        inner.relieve(&self.shared, before);
        assert!(revision >= inner.revision, "revision {revision} after {}", inner.revision);
        inner.revision = revision;
        wake_ups
    }

    /// Begins a watch. The changes after `after_revision` when they are all still known, a snapshot
    /// otherwise: that is when it is 0, older than the ring, or newer than the state (a client that
    /// talked to a cluster which has since been restored from a backup). Called with the read lock of
    /// the node's `state` held; see the top of this file.
    pub fn subscribe(
        &self,
        range: Range,
        after_revision: u64,
        state: &State,
    ) -> Result<Subscription, Error> {
        let capacity = &self.shared.capacity;
        let (group, (place, bookmarks), changes) = {
            let mut inner = self.shared.lock();
            assert_eq!(inner.revision, state.revision(), "a state that was not published");
            if inner.closed {
                return Err(Error::ShuttingDown { definite: true });
            }
            if inner.watchers >= capacity.watchers {
                let limit = capacity.watchers as u64;
                return Err(Error::Overloaded { queue: "watchers".into(), limit });
            }
            let group = inner.group(range);
            let changes = inner.changes_after(&group, after_revision, capacity);
            inner.watchers += 1;
            let mut queue = group.lock();
            queue.readers += 1;
            queue.members += 1;
            let start = (queue.end(), queue.bookmarks);
            drop(queue);
            (group, start, changes)
        };
        let whole = changes.is_none();
        let backlog = Backlog::Changes(changes.unwrap_or_default());
        let reader = Reader { backlog, place, complete: after_revision, bookmarks, ended: false };
        let mut subscription = Subscription { shared: self.shared.clone(), group, reader };
        if whole {
            let snapshot = subscription.snapshot(state)?;
            subscription.reader.backlog = Backlog::Snapshot(snapshot, 0);
        }
        Ok(subscription)
    }

    /// After the state was replaced by a snapshot from another node: whoever watches gets a snapshot.
    /// Called with the state's write lock held; see the top of this file.
    pub fn reset(&self, state: &State) -> WakeUps {
        let mut wake_ups = WakeUps::default();
        let mut inner = self.shared.lock();
        inner.revision = state.revision();
        inner.ring = Ring::new(state.revision());
        for group in inner.parts.iter().flat_map(BTreeMap::values) {
            let mut queue = group.lock();
            queue.quiet_since = state.revision();
            let snapshot = queue.snapshot(&group.range, state, &self.shared);
            queue.drop_slots(&self.shared);
            queue.readers = queue.members;
            queue.reset = Some(queue.first);
            queue.push(&self.shared, Item::Snapshot(snapshot), 0);
            wake_ups.add(group, &mut queue);
        }
        wake_ups
    }

    /// Offers a bookmark to the idle watchers of one part of the ranges. Called
    /// `BOOKMARK_PARTS` times in each [`limits::WATCH_BOOKMARK_INTERVAL`].
    pub fn bookmark(&self) -> WakeUps {
        let (groups, revision) = {
            let mut inner = self.shared.lock();
            let part = inner.next_part;
            inner.next_part = (part + 1) % inner.parts.len();
            (inner.parts[part].values().cloned().collect::<Vec<_>>(), inner.revision)
        };
        let mut wake_ups = WakeUps::default();
        let message = Message::new(revision, Kind::Bookmark, Box::new([]));
        for group in &groups {
            let mut queue = group.lock();
            queue.bookmark = Some(message.clone());
            queue.bookmarks += 1;
            wake_ups.add(group, &mut queue);
        }
        wake_ups
    }

    /// Sends bookmarks for ever: the one timer that all watchers share. To be spawned once per hub.
    pub async fn run(self) {
        loop {
            tokio::time::sleep(limits::WATCH_BOOKMARK_INTERVAL / BOOKMARK_PARTS).await;
            self.bookmark();
        }
    }

    /// Ends every watch with [`Error::ShuttingDown`] and admits no more.
    pub fn close(&self) {
        let mut wake_ups = WakeUps::default();
        let mut inner = self.shared.lock();
        inner.closed = true;
        for group in inner.parts.iter().flat_map(BTreeMap::values) {
            let mut queue = group.lock();
            queue.closed = true;
            wake_ups.add(group, &mut queue);
        }
    }

    pub fn watchers(&self) -> u64 {
        self.shared.lock().watchers as u64
    }
}

impl Subscription {
    /// What the watcher begins with. A snapshot lives until the last of its readers has read it, and while the range
    /// changes each new one needs another: so many slow readers are not let in.
    fn snapshot(&self, state: &State) -> Result<Arc<Snapshot>, Error> {
        let Subscription { shared, group, .. } = self;
        let mut queue = group.lock();
        let limit = shared.capacity.snapshot_bytes;
        let is_full = shared.snapshot_bytes.load(Ordering::Relaxed) > limit
            && queue.known_snapshot().is_none();
        let snapshot = queue.snapshot(&group.range, state, shared);
        // Small ones come in all the same: those of large ranges shut out nobody else.
        if is_full && snapshot.bytes > shared.capacity.message_bytes {
            let limit = limit as u64;
            return Err(Error::Overloaded { queue: "bytes of watch snapshots".into(), limit });
        }
        Ok(snapshot)
    }

    /// The next message; None after an error, which ends the watch. Nothing is lost when the future
    /// is dropped.
    pub async fn next(&mut self) -> Option<Result<Arc<Message>, Error>> {
        let Subscription { shared, group, reader } = self;
        if reader.ended {
            return None;
        }
        loop {
            if let Some(next) = reader.take(shared, group) {
                return Some(next);
            }
            // From here on every notification is kept for us: what was pushed before is seen by the
            // second look, what is pushed later wakes us.
            let notified = group.notify.notified();
            if let Some(next) = reader.take(shared, group) {
                return Some(next);
            }
            notified.await;
        }
    }
}

impl Reader {
    fn take(&mut self, shared: &Shared, group: &Group) -> Option<Result<Arc<Message>, Error>> {
        if let Some(message) = self.backlog.next() {
            return Some(Ok(self.hand(message)));
        }
        let mut queue = group.lock();
        if queue.closed {
            self.ended = true;
            queue.leave(shared, self.place);
            return Some(Err(Error::ShuttingDown { definite: true }));
        }
        if self.place < queue.first {
            match queue.reset {
                // What lies between is void: the snapshot replaces it.
                Some(reset) if reset >= queue.first => self.place = reset,
                Some(_) | None => {
                    self.ended = true;
                    queue.leave(shared, self.place);
                    return Some(Err(Error::WatchLagged { resume_revision: self.complete }));
                }
            }
        }
        if let Some(item) = queue.read(shared, self.place) {
            drop(queue);
            self.place += 1;
            let message = match item {
                Item::Message(message) => message,
                Item::Snapshot(snapshot) => {
                    self.backlog = Backlog::Snapshot(snapshot, 0);
                    self.backlog.next().expect("a snapshot has at least one message")
                }
            };
            return Some(Ok(self.hand(message)));
        }
        // All that was published into the group before the bookmark was made is read by now, so the
        // bookmark is true; it is old news when something later has been read as well.
        if self.bookmarks != queue.bookmarks {
            self.bookmarks = queue.bookmarks;
            let bookmark = queue.bookmark.clone()?;
            if bookmark.revision >= self.complete {
                drop(queue);
                return Some(Ok(self.hand(bookmark)));
            }
        }
        None
    }

    /// Notes how far the watcher is complete once it has this message.
    fn hand(&mut self, message: Arc<Message>) -> Arc<Message> {
        match message.kind {
            Kind::Snapshot { more: true } => {}
            Kind::Snapshot { more: false } => self.complete = message.revision,
            Kind::Changes | Kind::Bookmark => {
                assert!(
                    message.revision >= self.complete,
                    "revision {} after {}",
                    message.revision,
                    self.complete,
                );
                self.complete = message.revision;
            }
        }
        message
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // A lock that a panic has poisoned is left alone: a second panic would hide the first.
        let Ok(mut inner) = self.shared.inner.lock() else { return };
        let Ok(mut queue) = self.group.queue.lock() else { return };
        inner.watchers -= 1;
        if !self.reader.ended {
            queue.leave(&self.shared, self.reader.place);
        }
        let unwatched = queue.members == 0;
        drop(queue);
        if unwatched {
            inner.forget(&self.group);
        }
    }
}

/// A change as watchers are told of it.
fn seen(change: &Change) -> Change {
    Change::new(change.key.clone(), change.record.clone())
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no thread panicked while it held the hub")
    }
}

impl Inner {
    /// Puts the changes into the queue of every group whose range they touch: each change once, and all
    /// of them in one message, however many selectors of the range hold it.
    fn fan_out(&self, shared: &Shared, event: &Event, wake_ups: &mut WakeUps) {
        if self.groups.is_empty() {
            return;
        }
        let mut watchable =
            event.changes.iter().filter_map(|change| Some((names(&change.key)?, change)));
        let message = |changes| Message::new(event.revision, Kind::Changes, changes);
        let all = watchable.clone();
        let Some((first, _)) = watchable.next() else { return };
        if watchable.all(|(names, _)| names == first) {
            // Nearly every write: whoever sees one of the changes sees all.
            let mut whole = None;
            for group in self.index.groups(first) {
                let whole = whole.get_or_insert_with(|| {
                    message(all.clone().map(|(_, change)| seen(change)).collect())
                });
                group.publish(shared, whole, wake_ups);
            }
            return;
        }
        // Which of the changes each group sees. Groups that see the same ones share a message.
        let mut parts: BTreeMap<u64, (&Arc<Group>, Vec<usize>)> = BTreeMap::new();
        for (at, (names, _)) in all.clone().enumerate() {
            for group in self.index.groups(names) {
                let (_, part) = parts.entry(group.number).or_insert_with(|| (group, Vec::new()));
                if part.last() != Some(&at) {
                    part.push(at);
                }
            }
        }
        if parts.is_empty() {
            return;
        }
        let all: Vec<_> = all.map(|(_, change)| change).collect();
        let mut messages: BTreeMap<Vec<usize>, Arc<Message>> = BTreeMap::new();
        for (group, part) in parts.into_values() {
            let message = messages
                .entry(part)
                .or_insert_with_key(|part| message(part.iter().map(|at| seen(all[*at])).collect()));
            group.publish(shared, message, wake_ups);
        }
    }

    /// When more waits than there is room for, cuts off those who are furthest behind. It is looked through all ranges
    /// for them, so some more room is made than is lacking. What came after `before` stays: nobody could read it yet.
    fn relieve(&self, shared: &Shared, before: u64) {
        let most = shared.capacity.queue_bytes;
        let waits = || shared.queued_bytes.load(Ordering::Relaxed);
        if waits() <= most {
            return;
        }
        let lagging = |queue: &group::Queue| queue.oldest().filter(|old| *old <= before);
        let groups = || self.parts.iter().flat_map(BTreeMap::values);
        let mut oldest: BinaryHeap<Reverse<(u64, u64)>> = groups()
            .filter_map(|group| Some(Reverse((lagging(&group.lock())?, group.number))))
            .collect();
        while waits() > most - most / 8
            && let Some(Reverse((revision, number))) = oldest.pop()
        {
            let mut queue = self.parts[part_of(number)][&number].lock();
            // Unless they have read it meanwhile.
            if queue.oldest() == Some(revision) {
                queue.overrun(shared);
            }
            oldest.extend(lagging(&queue).map(|revision| Reverse((revision, number))));
        }
    }

    /// What a watcher that is complete up to `after` lacks, closed by a bookmark at the present
    /// revision; None when only a snapshot can tell.
    fn changes_after(
        &self,
        group: &Group,
        after: u64,
        capacity: &Capacity,
    ) -> Option<VecDeque<Arc<Message>>> {
        if after == 0 || after > self.revision {
            return None;
        }
        let quiet = after >= group.lock().quiet_since;
        let mut changes = match quiet {
            true => VecDeque::new(),
            false => self.ring.after(after, &group.range, capacity)?,
        };
        if changes.back().is_none_or(|last: &Arc<Message>| last.revision < self.revision) {
            changes.push_back(Message::new(self.revision, Kind::Bookmark, Box::new([])));
        }
        Some(changes)
    }

    /// The group of a range; made when it is the first of its kind.
    fn group(&mut self, range: Range) -> Arc<Group> {
        if let Some(group) = self.groups.get(&range) {
            return group.clone();
        }
        let number = self.next_group;
        self.next_group += 1;
        let group = Arc::new(Group::new(number, range.clone(), self.revision));
        self.groups.insert(range, group.clone());
        self.index.insert(&group);
        self.parts[part_of(number)].insert(number, group.clone());
        group
    }

    /// Removes a group that nobody watches. Asked again for a group that is gone, or whose range has
    /// another group by now, it does nothing.
    fn forget(&mut self, group: &Arc<Group>) {
        if self.parts[part_of(group.number)].remove(&group.number).is_none() {
            return;
        }
        self.groups.remove(&group.range);
        self.index.remove(group);
    }
}

fn part_of(group: u64) -> usize {
    usize::try_from(group % u64::from(BOOKMARK_PARTS)).expect("less than BOOKMARK_PARTS")
}

impl Backlog {
    fn next(&mut self) -> Option<Arc<Message>> {
        match self {
            Backlog::Changes(changes) => {
                let next = changes.pop_front();
                if changes.is_empty() {
                    // Gives the memory back: this is all that an idle watcher would hold.
                    *changes = VecDeque::new();
                }
                next
            }
            Backlog::Snapshot(snapshot, at) => {
                let next = snapshot.messages.get(*at).cloned();
                *at += 1;
                if *at >= snapshot.messages.len() {
                    *self = Backlog::Changes(VecDeque::new());
                }
                next
            }
        }
    }
}
