//! Counters whose additions are summed up here before they go to the cluster: a program counts a million
//! times a second, the cluster sees one addition for each counter and interval.
//!
//! Exactly once: a sum that was sent keeps its request id until it is answered, however often it is sent.
//! When the session is lost before the answer, nobody knows whether the sum was added; it is not sent
//! again, and [`Counters::tally`] tells of it. So a counter may lack what was under way when a session was
//! lost, and never has anything twice.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::connection::Client;
use super::remote::{lock, spawn};
use super::session::{Session, SessionOptions};
use super::stream::StreamHandle;
use crate::error::Error;
use crate::limits;
use crate::proto::v1;

/// When sums are sent.
#[derive(Debug, Clone)]
pub struct CounterOptions {
    /// How long an addition waits at most before its sum is sent.
    pub interval: Duration,
    /// So many additions to one counter do not wait for the interval.
    pub additions: u64,
}

impl Default for CounterOptions {
    fn default() -> Self {
        CounterOptions {
            interval: limits::CLIENT_COUNTER_INTERVAL,
            additions: limits::CLIENT_COUNTER_ADDITIONS,
        }
    }
}

/// What became of additions, summed over all counters without their signs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Acknowledged by the cluster.
    pub counted: u64,
    /// Refused by the cluster, for instance because the counter is of another kind.
    pub refused: u64,
    /// Sent, and the session was lost before the answer: counted or not.
    pub uncertain: u64,
}

/// A sender of additions with a session of its own. Clones share it. When the last clone and the last
/// [`Counter`] are dropped, what is left is sent, as far as the cluster can be reached; [`Counters::close`]
/// waits for that.
#[derive(Clone)]
pub struct Counters {
    shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

/// One counter. Clones share it.
#[derive(Clone)]
pub struct Counter {
    cell: Arc<Cell>,
    shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

struct Shared {
    options: CounterOptions,
    cells: Mutex<BTreeMap<Name, Arc<Cell>>>,
    /// Those in which something was added since they were last looked at.
    dirty: Mutex<Vec<Arc<Cell>>>,
    /// Somebody wants what is dirty to be sent at once, or the sender is to end.
    wake: Notify,
    /// Numbers of flushes: asked for, and done.
    asked: AtomicU64,
    done: watch::Sender<u64>,
    counted: AtomicU64,
    refused: AtomicU64,
    uncertain: AtomicU64,
    closing: AtomicBool,
    ended: watch::Sender<bool>,
}

/// Exists as long as somebody may add.
struct Guard {
    shared: Arc<Shared>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
}

/// Sums up what is added until it is sent.
struct Cell {
    name: Name,
    kind: v1::CounterKind,
    sum: AtomicI64,
    additions: AtomicU64,
    is_dirty: AtomicBool,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").field("tally", &self.tally()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counter").field("name", &self.cell.name).finish_non_exhaustive()
    }
}

impl Client {
    /// A sender of additions; opens a session for them.
    pub async fn counters(&self, options: CounterOptions) -> Result<Counters, Error> {
        let session = SessionOptions { reopen: true, ..SessionOptions::default() };
        let session = self.session(session).await?;
        let shared = Arc::new(Shared {
            options,
            cells: Mutex::default(),
            dirty: Mutex::default(),
            wake: Notify::new(),
            asked: AtomicU64::new(0),
            done: watch::Sender::new(0),
            counted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            uncertain: AtomicU64::new(0),
            closing: AtomicBool::new(false),
            ended: watch::Sender::new(false),
        });
        spawn(send(self.clone(), session, shared.clone()));
        let guard = Arc::new(Guard { shared: shared.clone() });
        Ok(Counters { shared, _guard: guard })
    }
}

impl Counters {
    /// A counter that only grows; it comes into being with its first addition. An empty namespace is the
    /// default one.
    pub fn counter<K: Into<String>, V: Into<String>>(
        &self,
        namespace: &str,
        name: &str,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Counter {
        self.handle(v1::CounterKind::Counter, namespace, name, labels)
    }

    /// A counter that goes up and down.
    pub fn gauge<K: Into<String>, V: Into<String>>(
        &self,
        namespace: &str,
        name: &str,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Counter {
        self.handle(v1::CounterKind::Gauge, namespace, name, labels)
    }

    fn handle<K: Into<String>, V: Into<String>>(
        &self,
        kind: v1::CounterKind,
        namespace: &str,
        name: &str,
        labels: impl IntoIterator<Item = (K, V)>,
    ) -> Counter {
        let name = Name {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: labels.into_iter().map(|(key, value)| (key.into(), value.into())).collect(),
        };
        let mut cells = lock(&self.shared.cells);
        let cell = cells.entry(name.clone()).or_insert_with(|| {
            Arc::new(Cell {
                name,
                kind,
                sum: AtomicI64::new(0),
                additions: AtomicU64::new(0),
                is_dirty: AtomicBool::new(false),
            })
        });
        let (shared, _guard) = (self.shared.clone(), self._guard.clone());
        Counter { cell: cell.clone(), shared, _guard }
    }

    /// Sends what was added before, and waits until the cluster has answered; what becomes of it shows in
    /// the [`Counters::tally`].
    pub async fn flush(&self) {
        let number = self.shared.asked.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.wake.notify_one();
        let mut done = self.shared.done.subscribe();
        // An error means that the sender has ended, and so has sent everything.
        let _ = done.wait_for(|done| *done >= number).await;
    }

    /// Sends what is left and waits for it, at most this long. False when the time was too short; the
    /// sending goes on then. Nothing may be added any more.
    pub async fn close(self, within: Duration) -> bool {
        let mut ended = self.shared.ended.subscribe();
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
        timeout_at(Instant::now() + within, ended.wait_for(|ended| *ended)).await.is_ok()
    }

    pub fn tally(&self) -> Tally {
        let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Tally {
            counted: read(&self.shared.counted),
            refused: read(&self.shared.refused),
            uncertain: read(&self.shared.uncertain),
        }
    }
}

impl Counter {
    pub fn increment(&self) {
        self.add(1);
    }

    /// Never waits. What does not fit 64 bits with what waits to be sent is sent as much as does. A counter
    /// that only grows takes nothing negative: the cluster refuses it.
    pub fn add(&self, delta: i64) {
        let Cell { sum, additions, is_dirty, .. } = &*self.cell;
        let before = sum.fetch_add(delta, Ordering::Relaxed);
        if before.checked_add(delta).is_none() {
            // Wrapped around: to the end that it crossed, so that nothing of the wrong sign is sent.
            sum.store(if delta < 0 { i64::MIN } else { i64::MAX }, Ordering::Relaxed);
        }
        let count = additions.fetch_add(1, Ordering::Relaxed) + 1;
        // After the addition: who takes the cell from the list then sees it.
        if !is_dirty.swap(true, Ordering::AcqRel) {
            lock(&self.shared.dirty).push(self.cell.clone());
        }
        if count == self.shared.options.additions {
            self.shared.wake.notify_one();
        }
    }
}

impl Shared {
    /// Names that came once, for instance with a label of a user's, must not pile up.
    fn forget_unused(&self) {
        let mut cells = lock(&self.cells);
        if cells.len() > limits::CLIENT_COUNTERS_KEPT {
            // Only the map holds them: nobody can add to them, and nothing waits in them.
            cells.retain(|_, cell| Arc::strong_count(cell) > 1);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }
}

/// Sends sums until nobody can add any more and nothing is left.
async fn send(client: Client, session: Session, shared: Arc<Shared>) {
    let stream = client.stream();
    let mut under_way = FuturesUnordered::new();
    loop {
        shared.forget_unused();
        let asked = shared.asked.load(Ordering::SeqCst);
        let closing = shared.closing.load(Ordering::SeqCst);
        let dirty = std::mem::take(&mut *lock(&shared.dirty));
        for cell in dirty {
            // Before its sum is taken: who adds later puts it back on the list, and who has added and
            // found it there is seen, because this reads what that one wrote.
            cell.is_dirty.swap(false, Ordering::AcqRel);
            cell.additions.store(0, Ordering::Relaxed);
            let delta = cell.sum.swap(0, Ordering::AcqRel);
            if delta != 0 {
                while under_way.len() >= limits::CLIENT_COUNTERS_UNDER_WAY {
                    under_way.next().await;
                }
                under_way.push(deliver(&stream, &session, &shared, cell, delta));
            }
        }
        if *shared.done.borrow() < asked || closing {
            while under_way.next().await.is_some() {}
            shared.done.send_replace(asked);
            if closing && lock(&shared.dirty).is_empty() {
                break;
            }
        }
        let tick = sleep(shared.options.interval);
        tokio::pin!(tick);
        loop {
            tokio::select! {
                biased;
                () = shared.wake.notified() => break,
                () = &mut tick => break,
                // Answers are taken while nothing else is to do.
                Some(()) = under_way.next(), if !under_way.is_empty() => {}
            }
        }
    }
    drop(under_way);
    if let Err(error) = session.close().await {
        tracing::debug!(%error, "the session of counters was not closed; it ends with its TTL");
    }
    shared.ended.send_replace(true);
}

/// Sends one sum until it is answered, or nobody can know any more.
async fn deliver(
    stream: &StreamHandle,
    session: &Session,
    shared: &Shared,
    cell: Arc<Cell>,
    delta: i64,
) {
    let mut attempt = 0;
    let ticket = loop {
        match session.next_request_id().await {
            Ok(ticket) => break ticket,
            // Not sent yet: the next session takes it.
            Err(error) => tracing::debug!(%error, "counters wait for a session"),
        }
        pause(&mut attempt).await;
    };
    let Name { namespace, name, labels } = cell.name.clone();
    let request = v1::AddCounterRequest {
        namespace,
        name,
        labels,
        kind: cell.kind.into(),
        delta,
        floor: None,
        ceil: None,
        request_id: Some(ticket.request_id()),
    };
    attempt = 0;
    let mut uncertain = false;
    loop {
        let figure = match stream.call(request.clone(), Some(session)).await {
            Ok(_) => &shared.counted,
            Err(error @ (Error::SessionExpired { .. } | Error::SequenceForgotten { .. })) => {
                tracing::warn!(%error, name = request.name, delta, "added or not: nobody knows");
                &shared.uncertain
            }
            Err(error)
                if error.retryable()
                    || !error.definite()
                    || uncertain && matches!(error, Error::NoSpace { .. }) =>
            {
                uncertain |= !error.definite();
                tracing::debug!(%error, name = request.name, "not counted yet; trying again");
                pause(&mut attempt).await;
                continue;
            }
            Err(error) => {
                tracing::warn!(%error, name = request.name, delta, "not counted");
                &shared.refused
            }
        };
        figure.fetch_add(delta.unsigned_abs(), Ordering::Relaxed);
        return;
    }
}

async fn pause(attempt: &mut u32) {
    let pause = limits::CLIENT_BACKOFF_MIN * 2u32.saturating_pow((*attempt).min(10));
    *attempt += 1;
    sleep(pause.min(limits::CLIENT_BACKOFF_MAX)).await;
}
