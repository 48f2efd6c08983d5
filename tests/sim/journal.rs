//! Drives the log and the checkpointer of a simulated node from tasks instead of threads: the same
//! cores, with a sync that takes virtual time.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate::raft::log::{Done, Journal};
use quorate::raft::types::NodeId;
use quorate::runtime;
use quorate::store::driver::{Driver, Turn};
use quorate::store::wal::{WalCore, WalReader, Write};
use rand::RngExt as _;
use tokio::sync::Notify;

use crate::cluster::World;
use crate::plant::Plant;
use crate::trace::trace;

/// How long a sync takes at least and at most, in ms; the nemesis changes it.
#[derive(Debug)]
pub struct SyncTime {
    least: AtomicU64,
    most: AtomicU64,
}

impl SyncTime {
    pub fn new() -> SyncTime {
        SyncTime { least: AtomicU64::new(0), most: AtomicU64::new(3) }
    }

    pub fn set(&self, least: u64, most: u64) {
        self.least.store(least, Ordering::Relaxed);
        self.most.store(most, Ordering::Relaxed);
    }

    fn draw(&self) -> Duration {
        let range = self.least.load(Ordering::Relaxed)..=self.most.load(Ordering::Relaxed);
        Duration::from_millis(runtime::random().random_range(range))
    }
}

struct Submission {
    writes: Vec<Write>,
    done: Done,
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Submission>>,
    wake: Notify,
}

impl Queue {
    fn take(&self) -> VecDeque<Submission> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_empty(&self) -> bool {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// The log of a simulated node.
pub struct SimJournal {
    world: Arc<World>,
    id: NodeId,
    queue: Arc<Queue>,
    reader: WalReader,
}

impl fmt::Debug for SimJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimJournal").finish_non_exhaustive()
    }
}

impl Journal for SimJournal {
    fn submit(&self, writes: Vec<Write>, done: Done) {
        self.world.oracle().writes_are_asked(self.id, &writes);
        let submission = Submission { writes, done };
        self.queue.waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(submission);
        self.queue.wake.notify_one();
    }

    fn reader(&self) -> WalReader {
        self.reader.clone()
    }
}

impl SimJournal {
    /// Takes the core over; the task belongs to the node whose scope this runs in.
    pub fn spawn(world: Arc<World>, id: NodeId, core: WalCore, time: Arc<SyncTime>) -> SimJournal {
        let queue = Arc::new(Queue::default());
        let reader = core.reader();
        runtime::spawn(drive(world.clone(), id, core, queue.clone(), time));
        SimJournal { world, id, queue, reader }
    }
}

/// As the thread of production: everything queued, one write, one sync, the callbacks in order. The
/// time that a sync takes passes in part before and in part after the bytes are durable.
async fn drive(
    world: Arc<World>,
    id: NodeId,
    mut core: WalCore,
    queue: Arc<Queue>,
    time: Arc<SyncTime>,
) {
    loop {
        while queue.is_empty() {
            queue.wake.notified().await;
        }
        let mut group = queue.take();
        if world.plant == Plant::AckBeforeSync {
            for submission in &mut group {
                std::mem::replace(&mut submission.done, Box::new(|_| {}))(Ok(()));
            }
        }
        runtime::sleep(time.draw()).await;
        let under_way = group.iter().flat_map(|submission| &submission.writes).cloned();
        world.oracle().sync_begins(id, under_way);
        if let Err(error) = write(&world, &mut core, &group) {
            trace!(world, "{id} log fails");
            return world.abort(id, format!("the log: {error}"));
        }
        world.oracle().sync_ends(id);
        let writes: usize = group.iter().map(|submission| submission.writes.len()).sum();
        trace!(world, "{id} syncs {writes}");
        runtime::sleep(time.draw()).await;
        for submission in group {
            (submission.done)(Ok(()));
        }
        if runtime::random().random_range(0..2) == 0
            && let Some(job) = core.job()
        {
            job.run();
        }
        if queue.is_empty()
            && let Err(error) = core.seal()
        {
            return world.abort(id, format!("the log: {error}"));
        }
    }
}

fn write(world: &World, core: &mut WalCore, group: &VecDeque<Submission>) -> io::Result<()> {
    for write in group.iter().flat_map(|submission| &submission.writes) {
        if world.plant == Plant::VoteLost && matches!(write, Write::Vote(_)) {
            continue;
        }
        core.stage(write)?;
    }
    core.commit()
}

/// Drives the checkpointer as its thread does in production.
pub async fn checkpoints(world: Arc<World>, id: NodeId, mut driver: Driver, wake: Arc<Notify>) {
    let mut snapshot = driver.handle().newest_snapshot().map(|meta| meta.point.index);
    loop {
        let turn = driver.turn();
        let newest = driver.handle().newest_snapshot().map(|meta| meta.point.index);
        if newest != snapshot {
            trace!(world, "{id} snapshot {newest:?}");
            world.oracle().counts.snapshots += 1;
            snapshot = newest;
        }
        let Turn::Wait(time) = turn else { return };
        tokio::select! {
            biased;
            () = wake.notified() => {
                // Requests wait for the thread to come round.
                let late = runtime::random().random_range(0..4);
                runtime::sleep(Duration::from_millis(late)).await;
            }
            () = runtime::sleep(time) => {}
        }
    }
}
