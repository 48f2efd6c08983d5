//! The thread that drives the log in production: take everything queued, stage it, one write, one
//! sync, then the callbacks in order. A lone write leaves at once, and groups grow by themselves while a
//! sync is under way. Only the seal waits for a pause.
//!
//! A second thread prepares segments. The simulation uses neither, it drives a `WalCore` by itself.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::prepare::Job;
use super::{Meter, WalCore, WalReader, Write};
use crate::limits;

/// How long nothing must have been written before the log is sealed: a write of its own behind each of a row of
/// groups would cost as much as they do, and the kernel takes seconds to write it back.
const SEAL_AFTER: Duration = Duration::from_millis(10);

/// Called once, after the writes are durable or certainly not acknowledged.
type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Submission {
    writes: Vec<Write>,
    done: Done,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Submission>,
    bytes: usize,
    /// The thread waits for work; whoever brings some must wake it.
    idle: bool,
    /// Submitters that wait for room.
    blocked: usize,
    closed: bool,
    failed: Option<(io::ErrorKind, String)>,
}

impl Queue {
    fn is_full(&self) -> bool {
        self.waiting.len() >= limits::WAL_QUEUE || self.bytes >= limits::WAL_QUEUE_BYTES
    }

    /// Why nothing is taken any more.
    fn refusal(&self) -> Option<io::Error> {
        if let Some((kind, why)) = &self.failed {
            return Some(io::Error::new(*kind, format!("the log has failed: {why}")));
        }
        self.closed.then(|| io::Error::new(io::ErrorKind::BrokenPipe, "the log is closed"))
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    room: Condvar,
    bytes_on_disk: AtomicU64,
    syncs: AtomicU64,
    last_sync_ns: AtomicU64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is work or the log is closed, at most so long.
    fn wait<'a>(
        &self,
        mut queue: MutexGuard<'a, Queue>,
        at_most: Option<Duration>,
    ) -> MutexGuard<'a, Queue> {
        let nothing = |queue: &mut Queue| queue.waiting.is_empty() && !queue.closed;
        queue.idle = true;
        let mut queue = match at_most {
            Some(at_most) => {
                let waited = self.work.wait_timeout_while(queue, at_most, nothing);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.work.wait_while(queue, nothing).unwrap_or_else(PoisonError::into_inner),
        };
        queue.idle = false;
        queue
    }
}

/// Figures of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all its files.
    pub bytes_on_disk: u64,
    /// Submissions that wait for the next group.
    pub queued: usize,
    /// Syncs since the start, and how long the last one took.
    pub syncs: u64,
    pub last_sync: Duration,
}

/// A handle to the log's thread; clones share it. When the last one is dropped the thread finishes
/// what is queued and ends.
#[derive(Clone)]
pub struct Wal {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    reader: WalReader,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal").field("stats", &self.stats()).finish()
    }
}

impl Wal {
    /// Starts the threads. `on_failure` is called once, on the log's thread, when a write or a sync
    /// has failed, and before anybody is told; production ends the process in it.
    pub fn spawn(mut core: WalCore, on_failure: Box<dyn Fn(io::Error) + Send>) -> Wal {
        let shared = Arc::new(Shared::default());
        shared.bytes_on_disk.store(core.bytes_on_disk(), Ordering::Relaxed);
        core.set_meter(Box::new(Stopwatch {
            shared: Arc::clone(&shared),
            histogram: metrics::histogram!("quorate_disk_wal_fsync_duration_seconds"),
            begun: None,
        }));
        let reader = core.reader();
        let (jobs, receiver) = mpsc::sync_channel::<Job>(1);
        let helper = std::thread::Builder::new()
            .name("wal-prepare".into())
            .spawn(move || receiver.into_iter().for_each(Job::run))
            .expect("the operating system has a thread for the log");
        let driver = Driver { core, shared: Arc::clone(&shared), jobs, on_failure };
        let thread = std::thread::Builder::new()
            .name("wal".into())
            .spawn(move || {
                driver.run();
                // The driver's end has closed the channel.
                let _ = helper.join();
            })
            .expect("the operating system has a thread for the log");
        Wal { inner: Arc::new(Inner { shared, reader, thread: Mutex::new(Some(thread)) }) }
    }

    /// Queues writes. `done` is called on the log's thread, in the order of submission, once they
    /// are durable; it must neither block nor submit. When the queue is full the call waits for room, which is as
    /// long as the disk needs for one group. After a failure or a shutdown `done` is called at once,
    /// on this thread, with an error.
    pub fn submit(&self, writes: Vec<Write>, done: Done) {
        let shared = &*self.inner.shared;
        let bytes: usize = writes.iter().map(Write::bytes).sum();
        let mut queue = shared.lock();
        while queue.is_full() && queue.refusal().is_none() {
            queue.blocked += 1;
            queue = shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
            queue.blocked -= 1;
        }
        if let Some(refusal) = queue.refusal() {
            drop(queue);
            return done(Err(refusal));
        }
        queue.bytes += bytes;
        queue.waiting.push_back(Submission { writes, done });
        let wake = std::mem::take(&mut queue.idle);
        drop(queue);
        if wake {
            shared.work.notify_one();
        }
    }

    pub fn reader(&self) -> WalReader {
        self.inner.reader.clone()
    }

    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        Stats {
            bytes_on_disk: shared.bytes_on_disk.load(Ordering::Relaxed),
            queued: shared.lock().waiting.len(),
            syncs: shared.syncs.load(Ordering::Relaxed),
            last_sync: Duration::from_nanos(shared.last_sync_ns.load(Ordering::Relaxed)),
        }
    }

    /// Writes what is queued, seals the log and waits for the threads to end. Not to be called from
    /// a callback.
    pub fn shutdown(&self) {
        self.inner.close();
        let mut thread = self.inner.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A panic of the thread was reported through `on_failure`.
            let _ = thread.join();
        }
    }
}

impl Inner {
    fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.work.notify_all();
        self.shared.room.notify_all();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

struct Driver {
    core: WalCore,
    shared: Arc<Shared>,
    jobs: SyncSender<Job>,
    on_failure: Box<dyn Fn(io::Error) + Send>,
}

impl Driver {
    fn run(self) {
        let mut guard = Guard { driver: self, finished: false };
        let result = guard.driver.serve();
        guard.finished = true;
        if let Err(error) = result {
            guard.driver.fail(error);
        }
    }

    /// Ends well when the log is closed.
    fn serve(&mut self) -> io::Result<()> {
        let mut group = VecDeque::new();
        while self.take(&mut group)? {
            if let Err(error) = self.write(&group) {
                // Back into the queue, from which they are failed in order.
                let mut queue = self.shared.lock();
                group.append(&mut queue.waiting);
                queue.waiting = group;
                return Err(error);
            }
            for submission in group.drain(..) {
                (submission.done)(Ok(()));
            }
            if let Some(job) = self.core.job() {
                // The slot holds one job at a time, so there is room; without the thread the core
                // does the work itself when it must.
                let _ = self.jobs.try_send(job);
            }
            self.shared.bytes_on_disk.store(self.core.bytes_on_disk(), Ordering::Relaxed);
        }
        self.core.close()
    }

    fn write(&mut self, group: &VecDeque<Submission>) -> io::Result<()> {
        for write in group.iter().flat_map(|submission| &submission.writes) {
            self.core.stage(write)?;
        }
        self.core.commit()
    }

    /// Waits for work and takes all of it; seals the log when there is none for a while. False when the log is
    /// closed and nothing is left.
    fn take(&mut self, group: &mut VecDeque<Submission>) -> io::Result<bool> {
        let mut queue = self.shared.wait(self.shared.lock(), Some(SEAL_AFTER));
        if queue.waiting.is_empty() && !queue.closed {
            drop(queue);
            self.core.seal()?;
            queue = self.shared.wait(self.shared.lock(), None);
        }
        if queue.waiting.is_empty() {
            return Ok(false);
        }
        std::mem::swap(&mut queue.waiting, group);
        queue.bytes = 0;
        let blocked = queue.blocked > 0;
        drop(queue);
        if blocked {
            self.shared.room.notify_all();
        }
        Ok(true)
    }

    /// Nothing is acknowledged any more. The failure goes first to who ends the process.
    fn fail(&self, error: io::Error) {
        tracing::error!(%error, "the log has failed");
        let refuse = Refuse { shared: &self.shared, kind: error.kind(), why: error.to_string() };
        (self.on_failure)(error);
        drop(refuse);
    }
}

/// Refuses what waits and what will come: also when the handler of the failure panics.
struct Refuse<'a> {
    shared: &'a Shared,
    kind: io::ErrorKind,
    why: String,
}

impl Drop for Refuse<'_> {
    fn drop(&mut self) {
        let mut queue = self.shared.lock();
        queue.failed = Some((self.kind, self.why.clone()));
        let waiting = std::mem::take(&mut queue.waiting);
        drop(queue);
        self.shared.room.notify_all();
        for submission in waiting {
            (submission.done)(Err(io::Error::new(self.kind, self.why.clone())));
        }
    }
}

/// A panic, in a callback say, must not leave submitters waiting for ever.
struct Guard {
    driver: Driver,
    finished: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.finished {
            self.driver.fail(io::Error::other("the log's thread panicked"));
        }
    }
}

/// Times the syncs. The one place of the log that reads a clock; nothing depends on it.
struct Stopwatch {
    shared: Arc<Shared>,
    histogram: metrics::Histogram,
    begun: Option<Instant>,
}

impl Meter for Stopwatch {
    #[allow(clippy::disallowed_methods, reason = "a figure for operators, on a real thread")]
    fn sync_begins(&mut self) {
        self.begun = Some(Instant::now());
    }

    fn sync_ended(&mut self) {
        if let Some(begun) = self.begun.take() {
            let took = begun.elapsed();
            self.histogram.record(took.as_secs_f64());
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.shared.last_sync_ns.store(nanos, Ordering::Relaxed);
            self.shared.syncs.fetch_add(1, Ordering::Relaxed);
        }
    }
}
