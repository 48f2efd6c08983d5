//! Who makes the checkpointer work: the timer, the requests, and the one thread that is allowed to
//! touch the image. The simulation runs the same [`Driver`] from a task of its own.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::checkpoint::{Checkpointer, Digest, Error, Settings};
use super::disk::Disk;
use super::image::{ImageMeta, ImageStore};
use super::inbox::Inbox;
use super::pending::AppliedEntry;
use super::recovery::Recovery;
use super::snapshot::SnapshotMeta;
use crate::limits::{
    CHECKPOINT_INTERVAL, CHECKPOINT_LOG_BYTES, CHECKPOINT_NICE, CHECKPOINT_REQUESTS,
};
use crate::state::State;

/// Called once with the answer, on the driver's thread. Must not block.
pub type Reply<T> = Box<dyn FnOnce(Result<T, Error>) + Send>;
/// Monotonic time since some moment.
pub type Clock = Arc<dyn Fn() -> Duration + Send + Sync>;
/// The image has failed and the checkpointer stands still: production ends the process.
pub type OnFailure = Box<dyn Fn(&Error) + Send>;

/// How much of what was applied a snapshot must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// All that the own log has synced.
    Newest,
    /// Most of what was applied since the last snapshot: enough for most of the log to be purged, and seldom a checkpoint
    /// more than there is anyway.
    Recent,
}

enum Request {
    Checkpoint(Reply<Option<ImageMeta>>),
    Snapshot(Freshness, Reply<SnapshotMeta>),
    Install(String, Reply<(SnapshotMeta, State)>),
    Stop(Reply<()>),
}

impl Request {
    /// Consensus ends when an installation fails, and a shutdown waits for the thread: however many
    /// operators ask for snapshots, these are taken. Each is asked for once at a time.
    fn is_vital(&self) -> bool {
        match self {
            Request::Install(..) | Request::Stop(_) => true,
            Request::Checkpoint(_) | Request::Snapshot(..) => false,
        }
    }

    fn refuse(self, error: Error) {
        match self {
            Request::Checkpoint(reply) => reply(Err(error)),
            Request::Snapshot(_, reply) => reply(Err(error)),
            Request::Install(_, reply) => reply(Err(error)),
            Request::Stop(reply) => reply(Err(error)),
        }
    }
}

/// What the node holds of the checkpointer.
#[derive(Clone)]
pub struct Handle {
    inbox: Arc<Inbox>,
    desk: Arc<Mutex<Desk>>,
}

#[derive(Default)]
struct Desk {
    requests: VecDeque<Request>,
    stopped: bool,
    digests: Vec<Digest>,
    snapshot: Option<SnapshotMeta>,
    image_bytes: u64,
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("inbox", &self.inbox).finish_non_exhaustive()
    }
}

impl Handle {
    /// See [`Inbox::absorb`]: cheap, never waits.
    pub fn absorb(&self, entry: AppliedEntry) {
        self.inbox.absorb(entry);
    }

    /// See [`Inbox::set_synced`].
    pub fn set_synced(&self, index: Option<u64>) {
        self.inbox.set_synced(index);
    }

    /// A checkpoint now. Answers with the image's meta, None when nothing was ever written.
    pub fn checkpoint(&self, reply: Reply<Option<ImageMeta>>) {
        self.request(Request::Checkpoint(reply));
    }

    /// A snapshot file of the image, after a checkpoint if it is not as fresh as that.
    pub fn snapshot(&self, freshness: Freshness, reply: Reply<SnapshotMeta>) {
        self.request(Request::Snapshot(freshness, reply));
    }

    /// See [`Checkpointer::install`]. Nothing may be absorbed until it is answered.
    pub fn install(&self, name: String, reply: Reply<(SnapshotMeta, State)>) {
        self.request(Request::Install(name, reply));
    }

    /// Digests at the last few indices where every node computes one.
    pub fn digests(&self) -> Vec<Digest> {
        self.lock().digests.clone()
    }

    /// The newest snapshot that is whole.
    pub fn newest_snapshot(&self) -> Option<SnapshotMeta> {
        self.lock().snapshot.clone()
    }

    pub fn image_bytes(&self) -> u64 {
        self.lock().image_bytes
    }

    /// A last checkpoint; nothing is done after it.
    pub fn stop(&self, reply: Reply<()>) {
        self.request(Request::Stop(reply));
    }

    fn request(&self, request: Request) {
        let mut desk = self.lock();
        let refused = if desk.stopped {
            Error::Stopped
        } else if desk.requests.len() >= CHECKPOINT_REQUESTS && !request.is_vital() {
            Error::Busy { limit: CHECKPOINT_REQUESTS }
        } else {
            desk.requests.push_back(request);
            drop(desk);
            return self.inbox.wake();
        };
        drop(desk);
        request.refuse(refused);
    }

    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When a checkpoint is due.
#[derive(Debug, Clone)]
pub struct Pace {
    pub interval: Duration,
    pub log_bytes: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { interval: CHECKPOINT_INTERVAL, log_bytes: CHECKPOINT_LOG_BYTES }
    }
}

/// What the driver's thread or task does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Call again when woken, or after this long.
    Wait(Duration),
    Stopped,
}

pub struct Driver {
    core: Checkpointer,
    handle: Handle,
    pace: Pace,
    clock: Clock,
    on_failure: OnFailure,
    due: Duration,
    stopped: bool,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver")
            .field("core", &self.core)
            .field("due", &self.due)
            .finish_non_exhaustive()
    }
}

impl Driver {
    pub fn new(core: Checkpointer, pace: Pace, clock: Clock, on_failure: OnFailure) -> Driver {
        let handle = Handle { inbox: core.inbox().clone(), desk: Arc::default() };
        let due = clock() + pace.interval;
        let driver = Driver { core, handle, pace, clock, on_failure, due, stopped: false };
        driver.publish();
        driver
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Does everything that is due: requests in order, then a checkpoint when it is time for one.
    pub fn turn(&mut self) -> Turn {
        loop {
            let request = self.handle.lock().requests.pop_front();
            let Some(request) = request else { break };
            self.serve(request);
            self.publish();
            if self.stopped {
                return Turn::Stopped;
            }
        }
        let (much, wanted) = {
            let pending = self.core.inbox().settled();
            (pending.log_bytes() >= self.pace.log_bytes, pending.has_closed_stage())
        };
        if (self.clock)() >= self.due || much || wanted {
            if let Err(error) = self.checkpoint() {
                return self.fail(&error);
            }
            self.publish();
        }
        Turn::Wait(self.due.saturating_sub((self.clock)()))
    }

    fn checkpoint(&mut self) -> Result<Option<ImageMeta>, Error> {
        let started = (self.clock)();
        let meta = self.core.checkpoint()?;
        let now = (self.clock)();
        let took = now - started;
        metrics::histogram!("quorate_disk_image_checkpoint_duration_seconds").record(took);
        metrics::gauge!("quorate_disk_image_bytes").set(self.core.image_bytes() as f64);
        if let Some(meta) = &meta {
            tracing::debug!(index = meta.point.index, records = meta.records, ?took, "checkpoint");
        }
        self.due = now + self.pace.interval;
        Ok(meta)
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Checkpoint(reply) => {
                let result = self.checkpoint();
                self.watch(&result);
                reply(result);
            }
            Request::Snapshot(freshness, reply) => {
                let result = self.snapshot(freshness);
                self.watch(&result);
                reply(result);
            }
            Request::Install(name, reply) => {
                let result = self.core.install(&name);
                self.watch(&result);
                if let Ok((meta, _)) = &result {
                    let SnapshotMeta { name, point, records, bytes, .. } = meta;
                    tracing::info!(name, index = point.index, records, bytes, "snapshot installed");
                }
                reply(result);
            }
            Request::Stop(reply) => {
                let result = self.checkpoint().map(|_| ());
                self.stop();
                reply(result);
            }
        }
    }

    fn snapshot(&mut self, freshness: Freshness) -> Result<SnapshotMeta, Error> {
        if freshness == Freshness::Newest || !self.core.is_image_recent() {
            self.checkpoint()?;
        }
        let started = (self.clock)();
        let meta = self.core.snapshot()?;
        let took = (self.clock)() - started;
        metrics::histogram!("quorate_disk_snapshot_duration_seconds").record(took);
        metrics::gauge!("quorate_disk_snapshot_bytes").set(meta.bytes as f64);
        let SnapshotMeta { name, point, records, bytes, .. } = &meta;
        tracing::info!(name, index = point.index, records, bytes, ?took, "snapshot written");
        Ok(meta)
    }

    /// Before a request is answered: whoever asked sees what it changed. An error of one request may
    /// be the end of the image.
    fn watch<T>(&mut self, result: &Result<T, Error>) {
        self.publish();
        if let Err(error) = result
            && self.core.has_failed()
        {
            self.fail(error);
        }
    }

    fn fail(&mut self, error: &Error) -> Turn {
        if !self.stopped {
            tracing::error!(%error, "the image failed");
            self.stop();
            (self.on_failure)(error);
        }
        Turn::Stopped
    }

    fn stop(&mut self) {
        self.stopped = true;
        let mut desk = self.handle.lock();
        desk.stopped = true;
        let requests = std::mem::take(&mut desk.requests);
        drop(desk);
        for request in requests {
            request.refuse(Error::Stopped);
        }
    }

    fn publish(&self) {
        let mut desk = self.handle.lock();
        desk.digests = self.core.digests().copied().collect();
        desk.snapshot = self.core.newest_snapshot().cloned();
        desk.image_bytes = self.core.image_bytes();
    }
}

/// The production driver: one OS thread of low priority, the only one that touches the image.
#[derive(Debug)]
pub struct CheckpointThread {
    handle: Handle,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl CheckpointThread {
    /// Recovers on the new thread and returns when that is done.
    pub fn spawn(
        settings: Settings,
        pace: Pace,
        store: Box<dyn ImageStore>,
        disk: Arc<dyn Disk>,
        clock: Clock,
        on_failure: OnFailure,
    ) -> Result<(CheckpointThread, Recovery), Error> {
        let bell = Arc::new(Bell::default());
        let ring = bell.clone();
        let inbox = Arc::new(Inbox::new(move || ring.ring()));
        let (sender, recovered) = mpsc::sync_channel(1);
        let body = move || {
            let (core, recovery) = match Checkpointer::recover(settings, store, disk, inbox) {
                Ok(recovered) => recovered,
                Err(error) => {
                    // The receiver waits for exactly this.
                    let _ = sender.send(Err(error));
                    return;
                }
            };
            let mut driver = Driver::new(core, pace, clock, on_failure);
            let _ = sender.send(Ok((driver.handle(), recovery)));
            // After the recovery, for which everybody waits. On Linux it counts for this thread only.
            if let Err(error) = rustix::process::setpriority_process(None, CHECKPOINT_NICE) {
                tracing::debug!(%error, "the checkpointer keeps its priority");
            }
            let ended = catch_unwind(AssertUnwindSafe(|| {
                while let Turn::Wait(time) = driver.turn() {
                    bell.wait(time);
                }
            }));
            if ended.is_err() {
                // Nobody may wait for answers that never come.
                driver.fail(&Error::Panicked);
            }
        };
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(body)
            .map_err(|source| Error::Io { what: "starting the checkpointer".to_owned(), source })?;
        // A thread that panicked has dropped the sender.
        let (handle, recovery) = recovered.recv().unwrap_or(Err(Error::Stopped))?;
        Ok((CheckpointThread { handle, thread: Mutex::new(Some(thread)) }, recovery))
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// A last checkpoint, then the end of the thread. Blocks.
    pub fn shutdown(&self) -> Result<(), Error> {
        let (sender, answer) = mpsc::sync_channel(1);
        self.handle.stop(Box::new(move |result| {
            let _ = sender.send(result);
        }));
        let result = answer.recv().unwrap_or(Err(Error::Stopped));
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            return Err(Error::Stopped);
        }
        result
    }
}

/// Wakes one thread; a ring before the wait is not lost.
#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<bool>,
    condition: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.condition.notify_one();
    }

    fn wait(&self, time: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.condition.wait_timeout_while(rung, time, |rung| !*rung);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}
