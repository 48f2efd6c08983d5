//! Where the apply path leaves applied entries for the checkpointer: merged at once, while their
//! records are still in the processor's caches, under a lock that is never held for long. Whoever
//! leaves one never waits for the image.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::pending::{AppliedEntry, Pending};
use crate::limits::CHECKPOINT_WAKE_BYTES;

pub struct Inbox {
    pending: Mutex<Pending>,
    /// One more than the last index that the own log has synced; 0 = none.
    synced: AtomicU64,
    /// Gets the checkpointer going.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl Inbox {
    /// `wake` is called, seldom, when the checkpointer should see whether something is due; it must
    /// not block.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Inbox {
        let wake = Box::new(wake);
        Inbox { pending: Mutex::default(), synced: AtomicU64::new(0), wake }
    }

    /// Takes the next applied entry, in log order, every index once.
    pub fn absorb(&self, entry: AppliedEntry) {
        let mut pending = self.pending();
        let closed = pending.has_closed_stage();
        let portions = pending.log_bytes() / CHECKPOINT_WAKE_BYTES;
        pending.push(entry);
        self.advance(&mut pending);
        let due = pending.has_closed_stage() != closed
            || pending.log_bytes() / CHECKPOINT_WAKE_BYTES > portions;
        drop(pending);
        if due {
            self.wake();
        }
    }

    fn advance(&self, pending: &mut Pending) {
        if let Some(synced) = self.synced() {
            pending.advance(synced);
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

    /// All that is held, merged as far as the log is synced.
    pub(super) fn settled(&self) -> MutexGuard<'_, Pending> {
        let mut pending = self.pending();
        self.advance(&mut pending);
        pending
    }

    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        (self.wake)();
    }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox")
            .field("changes", &self.pending().len())
            .field("synced", &self.synced())
            .finish_non_exhaustive()
    }
}
