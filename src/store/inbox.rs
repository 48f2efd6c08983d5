//! Where the apply path leaves applied entries for the checkpointer. Leaving one costs a push under a
//! lock that is never held for long; it never waits. Should the checkpointer be busy for long, the
//! sender merges what overwrites each other, so that the queue is bounded by the state and not by time.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pending::{AppliedEntry, Marks, Pending};
use crate::limits::{CHECKPOINT_QUEUE_CHANGES, CHECKPOINT_WAKE_BYTES, CHECKPOINT_WAKE_CHANGES};

pub struct Inbox {
    queue: Mutex<Queue>,
    /// One more than the last index that the own log has synced; 0 = none.
    synced: AtomicU64,
    /// Gets the checkpointer going.
    wake: Box<dyn Fn() + Send + Sync>,
    queue_changes: usize,
}

#[derive(Debug, Default)]
struct Queue {
    /// What came before `entries`, merged by the sender.
    merged: Option<Pending>,
    entries: Vec<AppliedEntry>,
    /// Of `entries`.
    changes: usize,
    bytes: u64,
    marks: Marks,
}

impl Inbox {
    /// `wake` is called, seldom, when much has been left here; it must not block.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Inbox {
        Inbox::with_limit(wake, CHECKPOINT_QUEUE_CHANGES)
    }

    pub(super) fn with_limit(wake: impl Fn() + Send + Sync + 'static, changes: usize) -> Inbox {
        Inbox {
            queue: Mutex::default(),
            synced: AtomicU64::new(0),
            wake: Box::new(wake),
            queue_changes: changes,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next applied entry, in log order, every index once.
    pub fn absorb(&self, entry: AppliedEntry) {
        let mut queue = self.lock();
        let before = queue.is_much();
        queue.changes += entry.changes();
        queue.bytes += entry.log_bytes;
        queue.entries.push(entry);
        let wake = !before && queue.is_much();
        if queue.changes >= self.queue_changes {
            self.merge(&mut queue);
        }
        drop(queue);
        if wake {
            (self.wake)();
        }
    }

    fn merge(&self, queue: &mut Queue) {
        let Queue { merged, entries, changes, marks, .. } = queue;
        let merged = merged.get_or_insert_with(|| Pending::new(marks.clone()));
        for entry in entries.drain(..) {
            merged.push(entry);
        }
        // `bytes` stays, and with it the wake-up that was sent.
        *changes = 0;
        if let Some(synced) = self.synced() {
            merged.advance(synced);
        }
    }

    /// The log has synced all entries up to `index`. After a truncation of the log it must be called
    /// with the index that is left, before anything new is appended.
    pub fn set_synced(&self, index: Option<u64>) {
        self.synced.store(index.map_or(0, |index| index + 1), Ordering::Release);
    }

    pub fn synced(&self) -> Option<u64> {
        self.synced.load(Ordering::Acquire).checked_sub(1)
    }

    pub(super) fn drain_into(&self, pending: &mut Pending) {
        let mut queue = self.lock();
        let merged = queue.merged.take();
        let entries = std::mem::take(&mut queue.entries);
        queue.changes = 0;
        queue.bytes = 0;
        drop(queue);
        if let Some(merged) = merged {
            pending.merge(merged);
        }
        for entry in entries {
            pending.push(entry);
        }
    }

    /// Where the sender must not merge across.
    pub(super) fn set_marks(&self, marks: Marks) {
        self.lock().marks = marks;
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }
}

impl Queue {
    fn is_much(&self) -> bool {
        self.merged.is_some()
            || self.changes >= CHECKPOINT_WAKE_CHANGES
            || self.bytes >= CHECKPOINT_WAKE_BYTES
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("queue", &self.lock())
            .field("synced", &self.synced())
            .finish()
    }
}
