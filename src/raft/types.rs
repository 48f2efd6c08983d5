//! openraft's types with ours filled in, and the async runtime that openraft runs on.

use std::collections::VecDeque;
use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::task::{Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime as rt;
use openraft::impls::{BoxedErrorSource, InlineBatch, ProgressResponder, leader_id_adv};
use openraft::{EntryPayload, OptionalSend, OptionalSync, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use crate::runtime::{self, JoinHandle};
use crate::state::Outcome;

/// The types of our consensus.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Types;

pub type NodeId = u64;
pub type LeaderId = leader_id_adv::LeaderId<u64, NodeId>;
pub type LogId = openraft::LogId<LeaderId>;
pub type Vote = openraft::impls::Vote<LeaderId>;
pub type Payload = EntryPayload<Batch, NodeId, Member>;
pub type Entry = openraft::Entry<LeaderId, Payload>;
pub type Membership = openraft::Membership<NodeId, Member>;
pub type StoredMembership = openraft::StoredMembership<LeaderId, NodeId, Member>;
pub type SnapshotMeta = openraft::SnapshotMeta<LeaderId, NodeId, Member>;

impl RaftTypeConfig for Types {
    type D = Batch;
    type R = Outcomes;
    type NodeId = NodeId;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Runtime;
    type Responder<T>
        = ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = BoxedErrorSource;
}

/// Where a member is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// host:port of the peer listener.
    pub peer_address: String,
    /// host:port of the client listener; empty until the member has told it.
    pub client_address: String,
}

/// What one log entry carries: many commands, encoded once, at ingress.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The time by the proposing leader, in ms since the Unix epoch.
    pub at_ms: u64,
    /// Number of commands.
    pub count: u32,
    /// Each command behind its length (u32, little endian).
    pub commands: Bytes,
}

impl Batch {
    /// The commands, in order. Ends early when the bytes are not a batch, which checksums rule out.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest: &[u8] = &self.commands;
        std::iter::from_fn(move || {
            let (head, tail) = rest.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*head) as usize;
            let (command, after) = tail.split_at_checked(length)?;
            rest = after;
            Some(command)
        })
    }
}

impl Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} commands, {} bytes)", self.count, self.commands.len())
    }
}

impl Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self, f)
    }
}

/// The answers to a batch, one per command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcomes(pub Vec<Outcome>);

/// The runtime under openraft: [`crate::runtime`] with a watch channel that wakes in a fixed order.
/// tokio's own spreads its waiters over slots picked at random, which no seed controls.
#[derive(Debug)]
pub struct Runtime;

impl rt::AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = tokio::time::Sleep;
    type Instant = Instant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = runtime::Random;
    type Mpsc = Mpsc;
    type Watch = Watch;
    type Oneshot = Oneshot;
    type Mutex<T: OptionalSend + 'static> = AsyncMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        runtime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        runtime::sleep(duration)
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        runtime::sleep_until(deadline.0)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        runtime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        runtime::timeout_at(deadline.0, future)
    }

    fn is_panic(error: &Self::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        runtime::random()
    }

    fn new(_threads: usize) -> Self {
        Runtime
    }

    /// Only openraft's conformance suite calls this.
    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime on the current thread needs no resources that could be missing")
            .block_on(future)
    }
}

/// Monotonic time as openraft's trait wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub runtime::Instant);

impl std::ops::Add<Duration> for Instant {
    type Output = Self;
    fn add(self, duration: Duration) -> Self {
        Instant(self.0 + duration)
    }
}

impl std::ops::AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        self.0 += duration;
    }
}

impl std::ops::Sub<Duration> for Instant {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        Instant(self.0 - duration)
    }
}

impl std::ops::Sub<Self> for Instant {
    type Output = Duration;
    fn sub(self, other: Self) -> Duration {
        self.0 - other.0
    }
}

impl std::ops::SubAssign<Duration> for Instant {
    fn sub_assign(&mut self, duration: Duration) {
        self.0 -= duration;
    }
}

impl rt::Instant for Instant {
    fn now() -> Self {
        Instant(runtime::Instant::now())
    }
}

// ---- channels: tokio's behind openraft's traits ----

#[derive(Debug)]
pub struct Mpsc;

#[derive(Debug)]
pub struct MpscSender<T>(tokio::sync::mpsc::Sender<T>);
#[derive(Debug)]
pub struct MpscReceiver<T>(tokio::sync::mpsc::Receiver<T>);
#[derive(Debug)]
pub struct MpscWeakSender<T>(tokio::sync::mpsc::WeakSender<T>);

impl<T> Clone for MpscSender<T> {
    fn clone(&self) -> Self {
        MpscSender(self.0.clone())
    }
}

impl<T> Clone for MpscWeakSender<T> {
    fn clone(&self) -> Self {
        MpscWeakSender(self.0.clone())
    }
}

impl rt::Mpsc for Mpsc {
    type Sender<T: OptionalSend> = MpscSender<T>;
    type Receiver<T: OptionalSend> = MpscReceiver<T>;
    type WeakSender<T: OptionalSend> = MpscWeakSender<T>;

    fn channel<T: OptionalSend>(buffer: usize) -> (Self::Sender<T>, Self::Receiver<T>) {
        let (tx, rx) = tokio::sync::mpsc::channel(buffer);
        (MpscSender(tx), MpscReceiver(rx))
    }
}

impl<T: OptionalSend> rt::MpscSender<Mpsc, T> for MpscSender<T> {
    async fn send(&self, message: T) -> Result<(), rt::SendError<T>> {
        self.0.send(message).await.map_err(|error| rt::SendError(error.0))
    }

    fn downgrade(&self) -> MpscWeakSender<T> {
        MpscWeakSender(self.0.downgrade())
    }
}

impl<T: OptionalSend> rt::MpscReceiver<T> for MpscReceiver<T> {
    async fn recv(&mut self) -> Option<T> {
        self.0.recv().await
    }

    fn try_recv(&mut self) -> Result<T, rt::TryRecvError> {
        self.0.try_recv().map_err(|error| match error {
            tokio::sync::mpsc::error::TryRecvError::Empty => rt::TryRecvError::Empty,
            tokio::sync::mpsc::error::TryRecvError::Disconnected => rt::TryRecvError::Disconnected,
        })
    }
}

impl<T: OptionalSend> rt::MpscWeakSender<Mpsc, T> for MpscWeakSender<T> {
    fn upgrade(&self) -> Option<MpscSender<T>> {
        self.0.upgrade().map(MpscSender)
    }
}

#[derive(Debug)]
pub struct Oneshot;
#[derive(Debug)]
pub struct OneshotSender<T>(tokio::sync::oneshot::Sender<T>);

impl rt::Oneshot for Oneshot {
    type Sender<T: OptionalSend> = OneshotSender<T>;
    type Receiver<T: OptionalSend> = tokio::sync::oneshot::Receiver<T>;
    type ReceiverError = tokio::sync::oneshot::error::RecvError;

    fn channel<T>() -> (Self::Sender<T>, Self::Receiver<T>)
    where
        T: OptionalSend,
    {
        let (tx, rx) = tokio::sync::oneshot::channel();
        (OneshotSender(tx), rx)
    }
}

impl<T: OptionalSend> rt::OneshotSender<T> for OneshotSender<T> {
    fn send(self, value: T) -> Result<(), T> {
        self.0.send(value)
    }
}

#[derive(Debug)]
pub struct AsyncMutex<T>(tokio::sync::Mutex<T>);

impl<T: OptionalSend + 'static> rt::Mutex<T> for AsyncMutex<T> {
    type Guard<'a> = tokio::sync::MutexGuard<'a, T>;

    fn new(value: T) -> Self {
        AsyncMutex(tokio::sync::Mutex::new(value))
    }

    fn lock(&self) -> impl Future<Output = Self::Guard<'_>> + OptionalSend {
        self.0.lock()
    }
}

// ---- a watch channel with a fixed wake order ----

/// A channel that holds one value and tells its receivers, in the order in which they began to wait,
/// that it has changed.
#[derive(Debug)]
pub struct Watch;

struct Versioned<T> {
    value: T,
    version: u64,
}

#[derive(Default)]
struct Waiters {
    next: u64,
    queue: VecDeque<(u64, Waker)>,
    senders: usize,
    receivers: usize,
}

struct Channel<T> {
    value: RwLock<Versioned<T>>,
    waiters: Mutex<Waiters>,
}

impl<T> Channel<T> {
    fn read(&self) -> RwLockReadGuard<'_, Versioned<T>> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Versioned<T>> {
        self.value.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiters(&self) -> MutexGuard<'_, Waiters> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        let queue = std::mem::take(&mut self.waiters().queue);
        for (_, waker) in queue {
            waker.wake();
        }
    }
}

pub struct WatchSender<T>(Arc<Channel<T>>);

pub struct WatchReceiver<T> {
    channel: Arc<Channel<T>>,
    seen: u64,
}

pub struct WatchRef<'a, T>(RwLockReadGuard<'a, Versioned<T>>);

impl<T> Debug for WatchSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchSender")
    }
}

impl<T> Debug for WatchReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WatchReceiver").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl<T> Debug for WatchRef<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WatchRef")
    }
}

impl<T> Deref for WatchRef<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.value
    }
}

impl rt::watch::Watch for Watch {
    type Sender<T: OptionalSend + OptionalSync> = WatchSender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = WatchReceiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = WatchRef<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(value: T) -> (Self::Sender<T>, Self::Receiver<T>) {
        let channel = Arc::new(Channel {
            value: RwLock::new(Versioned { value, version: 0 }),
            waiters: Mutex::new(Waiters { senders: 1, receivers: 1, ..Waiters::default() }),
        });
        (WatchSender(channel.clone()), WatchReceiver { channel, seen: 0 })
    }
}

impl<T> Clone for WatchSender<T> {
    fn clone(&self) -> Self {
        self.0.waiters().senders += 1;
        WatchSender(self.0.clone())
    }
}

impl<T> Drop for WatchSender<T> {
    fn drop(&mut self) {
        let last = {
            let mut waiters = self.0.waiters();
            waiters.senders -= 1;
            waiters.senders == 0
        };
        if last {
            self.0.wake_all();
        }
    }
}

impl<T: OptionalSend + OptionalSync> rt::watch::WatchSender<Watch, T> for WatchSender<T> {
    fn send(&self, value: T) -> Result<(), rt::watch::SendError<T>> {
        if self.0.waiters().receivers == 0 {
            return Err(rt::watch::SendError(value));
        }
        {
            let mut current = self.0.write();
            current.value = value;
            current.version += 1;
        }
        self.0.wake_all();
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = {
            let mut current = self.0.write();
            let modified = modify(&mut current.value);
            if modified {
                current.version += 1;
            }
            modified
        };
        if modified {
            self.0.wake_all();
        }
        modified
    }

    fn borrow_watched(&self) -> WatchRef<'_, T> {
        WatchRef(self.0.read())
    }

    fn subscribe(&self) -> WatchReceiver<T> {
        self.0.waiters().receivers += 1;
        let seen = self.0.read().version;
        WatchReceiver { channel: self.0.clone(), seen }
    }
}

impl<T> Clone for WatchReceiver<T> {
    fn clone(&self) -> Self {
        self.channel.waiters().receivers += 1;
        WatchReceiver { channel: self.channel.clone(), seen: self.seen }
    }
}

impl<T> Drop for WatchReceiver<T> {
    fn drop(&mut self) {
        self.channel.waiters().receivers -= 1;
    }
}

/// Takes a waiter that gave up out of the queue.
struct Registered<'a, T> {
    channel: &'a Channel<T>,
    id: Option<u64>,
}

impl<T> Drop for Registered<'_, T> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.channel.waiters().queue.retain(|(waiting, _)| *waiting != id);
        }
    }
}

impl<T: OptionalSend + OptionalSync> rt::watch::WatchReceiver<Watch, T> for WatchReceiver<T> {
    async fn changed(&mut self) -> Result<(), rt::watch::RecvError> {
        let mut registered = Registered { channel: &self.channel, id: None };
        let seen = self.seen;
        let version = std::future::poll_fn(|context| {
            let channel = registered.channel;
            // The waiter is queued before the version is read, so that a change in between wakes it.
            let closed = {
                let mut waiters = channel.waiters();
                if let Some(id) = registered.id {
                    waiters.queue.retain(|(waiting, _)| *waiting != id);
                }
                let id = waiters.next;
                waiters.next += 1;
                waiters.queue.push_back((id, context.waker().clone()));
                registered.id = Some(id);
                waiters.senders == 0
            };
            let version = channel.read().version;
            if version != seen {
                return Poll::Ready(Ok(version));
            }
            if closed {
                return Poll::Ready(Err(rt::watch::RecvError(())));
            }
            Poll::Pending
        })
        .await;
        drop(registered);
        self.seen = version?;
        Ok(())
    }

    fn borrow_watched(&self) -> WatchRef<'_, T> {
        WatchRef(self.channel.read())
    }

    fn borrow_and_update(&mut self) -> WatchRef<'_, T> {
        let value = self.channel.read();
        self.seen = value.version;
        WatchRef(value)
    }
}
