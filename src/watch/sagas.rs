//! Who hears of global transactions as they change: calls that wait until one is finished or suspended,
//! and the coordinator, which makes the calls that a transaction has begun. Both want the newest state of a
//! transaction and nothing before it, so nothing queues up: per transaction there is one record at most.
//!
//! Invariant: as of [`Hub`](super::Hub): published with the state's write lock held, asked with its read lock
//! held, so nothing that the asking has not seen goes unheard.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, oneshot};

use crate::error::Error;
use crate::limits;
use crate::state::{Event, Key, Record, Saga};

/// Namespace and gid.
type Place = (Arc<str>, Arc<str>);

/// A handle: clones share.
#[derive(Debug, Clone, Default)]
pub struct SagaBoard(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: AtomicUsize,
    followed: AtomicBool,
    inner: Mutex<Inner>,
    /// Something has changed that the follower has not taken.
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    waits: BTreeMap<Place, BTreeMap<u64, oneshot::Sender<()>>>,
    next_wait: u64,
    /// What has changed since the follower looked last.
    changed: BTreeMap<Place, Arc<Saga>>,
}

/// Wakes whoever waited, when it is dropped: without the state's lock.
#[derive(Debug, Default)]
#[must_use]
pub struct SagaWakeUps {
    waits: Vec<oneshot::Sender<()>>,
}

/// Until one transaction is finished, suspended or gone.
#[derive(Debug)]
pub struct SagaWait {
    board: SagaBoard,
    place: Place,
    number: u64,
    woken: oneshot::Receiver<()>,
}

impl SagaBoard {
    /// Tells of what commands have changed.
    pub fn publish(&self, events: &[Event]) -> SagaWakeUps {
        let mut wake_ups = SagaWakeUps::default();
        let followed = self.0.followed.load(Ordering::SeqCst);
        if !followed && self.0.waiting.load(Ordering::SeqCst) == 0 {
            return wake_ups;
        }
        let changes = events.iter().flat_map(|event| &event.changes);
        let mut changes =
            changes.filter(|change| matches!(change.key, Key::Saga { .. })).peekable();
        if changes.peek().is_none() {
            return wake_ups;
        }
        let mut inner = self.inner();
        for change in changes {
            let Key::Saga { namespace, gid } = &change.key else { continue };
            let place = (namespace.clone(), gid.clone());
            let stands = match &change.record {
                Some(Record::Saga(saga)) => Some(saga),
                _ => None,
            };
            if stands.is_none_or(|saga| saga.rests())
                && let Some(waits) = inner.waits.remove(&place)
            {
                wake_ups.waits.extend(waits.into_values());
            }
            match stands {
                Some(saga) if followed => {
                    inner.changed.insert(place, saga.clone());
                }
                _ => {}
            }
        }
        if followed && !inner.changed.is_empty() {
            self.0.news.notify_one();
        }
        wake_ups
    }

    /// The state is another one.
    pub fn reset(&self) -> SagaWakeUps {
        let mut inner = self.inner();
        inner.changed.clear();
        let waits = std::mem::take(&mut inner.waits);
        SagaWakeUps { waits: waits.into_values().flat_map(BTreeMap::into_values).collect() }
    }

    /// From the state that was asked on.
    pub fn wait(&self, saga: &Saga) -> Result<SagaWait, Error> {
        let waiting = self.0.waiting.fetch_add(1, Ordering::SeqCst);
        if waiting >= limits::SAGA_WAITS {
            self.0.waiting.fetch_sub(1, Ordering::SeqCst);
            let limit = "calls that wait for transactions on this node".to_owned();
            return Err(Error::LimitReached { limit, allowed: limits::SAGA_WAITS as u64 });
        }
        let (wake, woken) = oneshot::channel();
        let place = (saga.namespace.clone(), saga.gid.clone());
        let mut inner = self.inner();
        let number = inner.next_wait;
        inner.next_wait += 1;
        inner.waits.entry(place.clone()).or_default().insert(number, wake);
        Ok(SagaWait { board: self.clone(), place, number, woken })
    }

    /// From now on what changes is kept for [`SagaBoard::changed`]. There is one follower at most.
    pub fn follow(&self) {
        self.inner().changed.clear();
        self.0.followed.store(true, Ordering::SeqCst);
    }

    pub fn unfollow(&self) {
        self.0.followed.store(false, Ordering::SeqCst);
        self.inner().changed.clear();
    }

    /// Waits for transactions that have changed, and takes them.
    pub async fn changed(&self) -> Vec<Arc<Saga>> {
        loop {
            let changed = std::mem::take(&mut self.inner().changed);
            if !changed.is_empty() {
                return changed.into_values().collect();
            }
            self.0.news.notified().await;
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SagaWait {
    /// Returns when the transaction has come to rest, or the state has become another one.
    pub async fn woken(&mut self) {
        // The sender is dropped to wake.
        let _ = (&mut self.woken).await;
    }
}

impl Drop for SagaWait {
    fn drop(&mut self) {
        let mut inner = self.board.inner();
        if let Some(waits) = inner.waits.get_mut(&self.place) {
            waits.remove(&self.number);
            if waits.is_empty() {
                inner.waits.remove(&self.place);
            }
        }
        drop(inner);
        self.board.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
