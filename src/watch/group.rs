//! All watchers of one range: their queue, and each reader's place in it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use tokio::sync::Notify;

use super::Shared;
use super::message::{Message, Snapshot};
use super::range::Range;
use crate::state::State;

/// All watchers of one range.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) number: u64,
    pub(super) range: Range,
    pub(super) queue: Mutex<Queue>,
    pub(super) notify: Notify,
}

#[derive(Debug)]
pub(super) struct Queue {
    slots: VecDeque<Slot>,
    /// Place of `slots[0]`; places count up for ever.
    pub(super) first: u64,
    /// Watchers that get what is pushed: all but those that fell behind.
    pub(super) readers: usize,
    /// Watchers that were not told yet that they fell behind, and the readers.
    pub(super) members: usize,
    /// Place of the last snapshot that [`Hub::reset`] pushed.
    pub(super) reset: Option<u64>,
    /// Nothing in the range changed after this revision: the one at which the group was made or reset, or
    /// of what was last published to it.
    pub(super) quiet_since: u64,
    /// The last snapshot of the range, for whoever comes while it is still right.
    snapshot: Weak<Snapshot>,
    pub(super) bookmark: Option<Arc<Message>>,
    pub(super) bookmarks: u64,
    /// A wake-up is on its way.
    waking: bool,
    pub(super) closed: bool,
}

#[derive(Debug)]
struct Slot {
    item: Item,
    /// Readers that have not read it. Never less than the next slot's share of old readers: readers
    /// read in order, so the front is always the first to reach 0.
    unread: usize,
    bytes: usize,
}

#[derive(Debug, Clone)]
pub(super) enum Item {
    Message(Arc<Message>),
    Snapshot(Arc<Snapshot>),
}

/// Who has to be woken after a publication. It happens when this is dropped, which may be after the
/// state's lock is released.
#[derive(Debug, Default)]
pub struct WakeUps {
    pub(super) groups: Vec<Arc<Group>>,
}

impl Group {
    pub(super) fn new(number: u64, range: Range, revision: u64) -> Group {
        let queue = Queue {
            slots: VecDeque::new(),
            first: 0,
            readers: 0,
            members: 0,
            reset: None,
            quiet_since: revision,
            snapshot: Weak::new(),
            bookmark: None,
            bookmarks: 0,
            waking: false,
            closed: false,
        };
        Group { number, range, queue: Mutex::new(queue), notify: Notify::new() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no thread panicked while it held the group")
    }

    /// Puts all that the revision changed in the range into the queue. The second time that is asked
    /// for one revision, nothing is left to do.
    pub(super) fn publish(
        self: &Arc<Self>,
        shared: &Shared,
        message: &Arc<Message>,
        wake_ups: &mut WakeUps,
    ) {
        let mut queue = self.lock();
        if queue.quiet_since == message.revision {
            return;
        }
        queue.quiet_since = message.revision;
        if message.bytes > shared.capacity.message_bytes {
            // No message may hold it all and none may hold a part: everybody is cut off and comes
            // back for a snapshot.
            queue.cut(shared);
        } else {
            let bytes = message.bytes;
            queue.push(shared, Item::Message(message.clone()), bytes);
        }
        wake_ups.add(self, &mut queue);
    }
}

impl Queue {
    /// Place of what is pushed next.
    pub(super) fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    pub(super) fn push(&mut self, shared: &Shared, item: Item, bytes: usize) {
        if self.readers == 0 {
            return;
        }
        shared.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.slots.push_back(Slot { item, unread: self.readers, bytes });
        while self.slots.len() > shared.capacity.queue_messages {
            self.overrun(shared);
        }
    }

    /// Revision of the oldest message that somebody has not read; None also when what waits takes no room.
    pub(super) fn oldest(&self) -> Option<u64> {
        self.slots.iter().find(|slot| slot.bytes > 0)?;
        Some(match &self.slots.front()?.item {
            Item::Message(message) => message.revision,
            Item::Snapshot(snapshot) => snapshot.revision,
        })
    }

    /// Drops the oldest message unread: those who have not read it are readers no more.
    pub(super) fn overrun(&mut self, shared: &Shared) {
        let slot = self.pop(shared);
        self.readers -= slot.unread;
        for later in &mut self.slots {
            later.unread -= slot.unread;
        }
        self.trim(shared);
    }

    /// Drops what all readers have read.
    fn trim(&mut self, shared: &Shared) {
        while self.slots.front().is_some_and(|slot| slot.unread == 0) {
            self.pop(shared);
        }
    }

    fn pop(&mut self, shared: &Shared) -> Slot {
        let slot = self.slots.pop_front().expect("the caller saw that it is not empty");
        self.first += 1;
        shared.queued_bytes.fetch_sub(slot.bytes, Ordering::Relaxed);
        slot
    }

    pub(super) fn drop_slots(&mut self, shared: &Shared) {
        while !self.slots.is_empty() {
            self.pop(shared);
        }
    }

    /// Everybody falls behind, also those who had read everything.
    fn cut(&mut self, shared: &Shared) {
        self.drop_slots(shared);
        self.first += 1;
        self.readers = 0;
    }

    pub(super) fn read(&mut self, shared: &Shared, place: u64) -> Option<Item> {
        let index = usize::try_from(place - self.first).expect("a place in a bounded queue");
        let slot = self.slots.get_mut(index)?;
        let item = slot.item.clone();
        slot.unread -= 1;
        self.trim(shared);
        Some(item)
    }

    /// A member that is at `place` goes.
    pub(super) fn leave(&mut self, shared: &Shared, place: u64) {
        self.members -= 1;
        let place = match self.reset {
            Some(reset) if place < self.first && reset >= self.first => reset,
            Some(_) | None if place < self.first => return,
            Some(_) | None => place,
        };
        self.readers -= 1;
        let from = usize::try_from(place - self.first).expect("a place in a bounded queue");
        for slot in self.slots.iter_mut().skip(from) {
            slot.unread -= 1;
        }
        self.trim(shared);
    }

    /// The last snapshot, when it is still right: watchers that come while nothing changes in the range share one.
    pub(super) fn known_snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.upgrade().filter(|snapshot| snapshot.revision >= self.quiet_since)
    }

    /// The range as it is in `state`.
    pub(super) fn snapshot(
        &mut self,
        range: &Range,
        state: &State,
        shared: &Shared,
    ) -> Arc<Snapshot> {
        self.known_snapshot().unwrap_or_else(|| {
            let snapshot = Snapshot::of(range, state, &shared.capacity, &shared.snapshot_bytes);
            let snapshot = Arc::new(snapshot);
            self.snapshot = Arc::downgrade(&snapshot);
            snapshot
        })
    }
}

impl Drop for WakeUps {
    fn drop(&mut self) {
        for group in self.groups.drain(..) {
            let Ok(mut queue) = group.queue.lock() else { continue };
            queue.waking = false;
            drop(queue);
            group.notify.notify_waiters();
        }
    }
}

impl WakeUps {
    pub(super) fn add(&mut self, group: &Arc<Group>, queue: &mut Queue) {
        if !std::mem::replace(&mut queue.waking, true) {
            self.groups.push(group.clone());
        }
    }
}
