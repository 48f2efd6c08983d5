//! openraft's state machine: applies committed batches to the state, hands the changes to the watch
//! hub and to the checkpointer, and answers the proposer. Snapshots are made from the checkpointer's
//! frozen image, never from the live state.

use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt as _, Stream, StreamExt as _};
use openraft::async_runtime::watch::{Watch as _, WatchReceiver as _, WatchSender as _};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{OptionalSend, alias};
use tokio::sync::oneshot;

use super::codec;
use super::types::{
    LogId, Outcomes, Payload, SnapshotMeta, StoredMembership, Types, Watch, WatchReceiver,
    WatchSender,
};
use crate::clock::Slew;
use crate::failpoint::failpoint;
use crate::limits::BATCH_COMMANDS;
use crate::runtime::{self, Instant};
use crate::state::{self, State};
use crate::store::checkpoint::{self, Digest};
use crate::store::disk::Disk;
use crate::store::driver::{Freshness, Handle, Reply};
use crate::store::image::{ImageMeta, Point};
use crate::store::pending::AppliedEntry;
use crate::store::snapshot;
use crate::watch::{Hub, SagaBoard, SagaWakeUps, WakeUps};

/// The checkpointer, as the state machine sees it.
pub trait Checkpoints: Send + Sync + Debug + 'static {
    /// Takes what one entry changed. Never blocks; called in log order.
    fn absorb(&self, entry: AppliedEntry);
    /// Makes a snapshot file of a durable state as fresh as that, or finds that the newest file is it. Fails
    /// with `BrokenPipe` when the checkpointer has stopped; any other failure may pass.
    fn snapshot(&self, freshness: Freshness) -> BoxFuture<'static, io::Result<SnapshotFile>>;
    /// The newest verified snapshot file.
    fn current(&self) -> Option<SnapshotFile>;
    /// Makes a received, verified file the state. Atomic under a crash at any step.
    fn install(&self, file: SnapshotFile) -> BoxFuture<'static, io::Result<State>>;
    /// What the image holds, once all that may be in it is; None when nothing was ever written.
    fn image(&self) -> BoxFuture<'static, io::Result<Option<ImageMeta>>>;
    /// Digests of the state at indexes where every node computes one: the last few.
    fn digests(&self) -> Vec<Digest>;
}

/// A snapshot file on the own disk, verified.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    pub disk: Arc<dyn Disk>,
    pub meta: snapshot::SnapshotMeta,
}

/// The checkpointer of [`crate::store`] and the directory of its files.
#[derive(Debug, Clone)]
pub struct StoreCheckpoints {
    pub handle: Handle,
    pub disk: Arc<dyn Disk>,
}

impl StoreCheckpoints {
    fn file(&self, meta: snapshot::SnapshotMeta) -> SnapshotFile {
        SnapshotFile { disk: self.disk.clone(), meta }
    }
}

/// Asks the checkpointer and waits for its answer.
async fn ask<T: Send + 'static>(ask: impl FnOnce(Reply<T>)) -> io::Result<T> {
    let (tx, rx) = oneshot::channel();
    ask(Box::new(move |result| {
        // Nobody waits when the node is being dropped.
        let _ = tx.send(result);
    }));
    match rx.await {
        Ok(Err(checkpoint::Error::Stopped)) | Err(_) => {
            Err(io::Error::new(io::ErrorKind::BrokenPipe, checkpoint::Error::Stopped))
        }
        Ok(result) => result.map_err(io::Error::other),
    }
}

impl Checkpoints for StoreCheckpoints {
    fn absorb(&self, entry: AppliedEntry) {
        self.handle.absorb(entry);
    }

    fn snapshot(&self, freshness: Freshness) -> BoxFuture<'static, io::Result<SnapshotFile>> {
        let this = self.clone();
        async move {
            let meta = ask(|reply| this.handle.snapshot(freshness, reply)).await?;
            Ok(this.file(meta))
        }
        .boxed()
    }

    fn current(&self) -> Option<SnapshotFile> {
        self.handle.newest_snapshot().map(|meta| self.file(meta))
    }

    fn install(&self, file: SnapshotFile) -> BoxFuture<'static, io::Result<State>> {
        let this = self.clone();
        async move {
            let (_, state) = ask(|reply| this.handle.install(file.meta.name, reply)).await?;
            Ok(state)
        }
        .boxed()
    }

    fn image(&self) -> BoxFuture<'static, io::Result<Option<ImageMeta>>> {
        let handle = self.handle.clone();
        async move { ask(|reply| handle.checkpoint(reply)).await }.boxed()
    }

    fn digests(&self) -> Vec<Digest> {
        self.handle.digests()
    }
}

/// What the simulation's oracle hears; silent in production.
pub trait Observer: Send + Sync + Debug + 'static {
    fn applied(&self, _log_id: &LogId, _applied: &state::Applied) {}
    fn installed(&self, _log_id: Option<&LogId>, _state: &State) {}
}

/// The observer of production.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// The replicated state of one node and what hangs on its changes. Shared by the machine, which
/// alone writes, and the node, which reads.
#[derive(Debug)]
pub struct Replica {
    state: RwLock<State>,
    pub hub: Hub,
    pub sagas: SagaBoard,
    progress: Mutex<Progress>,
    applied: WatchSender<u64>,
    slow_applies: AtomicU64,
    commands: AtomicU64,
}

#[derive(Debug, Clone)]
struct Progress {
    last: Option<LogId>,
    membership: StoredMembership,
    membership_bytes: Bytes,
    /// The clock of the state, as it goes on between two entries.
    time: Slew,
}

/// Pause before a snapshot that failed is tried again.
const SNAPSHOT_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);
/// An apply that holds the state's lock longer than this delays every reader; it is counted.
const SLOW_APPLY: std::time::Duration = std::time::Duration::from_millis(100);

impl Replica {
    pub fn new(
        state: State,
        hub: Hub,
        last: Option<LogId>,
        membership: StoredMembership,
    ) -> Arc<Self> {
        let (applied, _) = Watch::channel(last.map_or(0, |last| last.index + 1));
        let membership_bytes = codec::to_bytes(&membership);
        let time = Slew::new(state.meta().now_ms, Instant::now());
        Arc::new(Replica {
            state: RwLock::new(state),
            hub,
            sagas: SagaBoard::default(),
            progress: Mutex::new(Progress { last, membership, membership_bytes, time }),
            applied,
            slow_applies: AtomicU64::new(0),
            commands: AtomicU64::new(0),
        })
    }

    /// The state, for reading. Held for the length of one answer, never over an await.
    pub fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn membership(&self) -> StoredMembership {
        self.progress().membership.clone()
    }

    pub fn last_applied(&self) -> Option<LogId> {
        self.progress().last
    }

    /// The clock of the state, as it has gone on since the last entry: never behind [`State::meta`]'s.
    pub fn now_ms(&self) -> u64 {
        self.progress().time.at(Instant::now())
    }

    /// Applies that took longer than 100 ms, since the start.
    pub fn slow_applies(&self) -> u64 {
        self.slow_applies.load(Ordering::Relaxed)
    }

    /// Commands applied since the start.
    pub fn commands(&self) -> u64 {
        self.commands.load(Ordering::Relaxed)
    }

    /// Waits until the entry at `index` is applied. False when the node is being dropped.
    pub async fn wait_applied(&self, index: u64) -> bool {
        let mut applied: WatchReceiver<u64> = self.applied.subscribe();
        loop {
            if *applied.borrow_and_update() > index {
                return true;
            }
            if applied.changed().await.is_err() {
                return false;
            }
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Machine {
    replica: Arc<Replica>,
    checkpoints: Arc<dyn Checkpoints>,
    observer: Arc<dyn Observer>,
}

impl Machine {
    pub fn new(
        replica: Arc<Replica>,
        checkpoints: Arc<dyn Checkpoints>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        Machine { replica, checkpoints, observer }
    }

    fn apply_and_answer(&self, entries: Vec<EntryResponder<Types>>) {
        for (responder, outcomes) in self.apply_all(entries) {
            responder.send(outcomes);
        }
    }

    /// Applies entries under one write lock: readers see all of them or none.
    fn apply_all(
        &self,
        entries: Vec<EntryResponder<Types>>,
    ) -> Vec<(openraft::storage::ApplyResponder<Types>, Outcomes)> {
        failpoint!(Apply);
        let started = Instant::now();
        let mut wake_ups: Vec<(WakeUps, SagaWakeUps)> = Vec::new();
        let mut answers = Vec::with_capacity(entries.len());
        let mut state = self.replica.state.write().unwrap_or_else(PoisonError::into_inner);
        let mut progress = self.replica.progress().clone();
        for (entry, responder) in entries {
            let log_id = entry.log_id;
            progress.last = Some(log_id);
            let mut outcomes = Outcomes::default();
            let mut events = Vec::new();
            let mut bytes = 0;
            match entry.payload {
                Payload::Blank => {}
                Payload::Membership(membership) => {
                    progress.membership = StoredMembership::new(Some(log_id), membership);
                    progress.membership_bytes = codec::to_bytes(&progress.membership);
                }
                Payload::Normal(batch) => {
                    bytes = batch.commands.len() as u64;
                    let entry = state::Entry {
                        term: log_id.leader_id.term,
                        at_ms: batch.at_ms,
                        commands: batch.iter().collect(),
                    };
                    let applied = state.apply(&entry);
                    self.observer.applied(&log_id, &applied);
                    self.replica.commands.fetch_add(u64::from(batch.count), Ordering::Relaxed);
                    let Replica { hub, sagas, .. } = &*self.replica;
                    let watchers = hub.publish(state.revision(), &applied.events);
                    wake_ups.push((watchers, sagas.publish(&applied.events)));
                    events = applied.events;
                    outcomes = Outcomes(applied.outcomes);
                }
            }
            let point = Point {
                index: log_id.index,
                log_id: codec::encode_log_id(&log_id),
                membership: progress.membership_bytes.clone(),
            };
            let meta = state.meta();
            self.checkpoints.absorb(AppliedEntry { point, events, meta, log_bytes: bytes });
            if let Some(responder) = responder {
                answers.push((responder, outcomes));
            }
        }
        progress.time.tell(state.meta().now_ms, Instant::now());
        let next = progress.last.map_or(0, |last| last.index + 1);
        *self.replica.progress() = progress;
        drop(state);
        drop(wake_ups);
        self.replica.applied.send_if_greater(next);
        if started.elapsed() > SLOW_APPLY {
            self.replica.slow_applies.fetch_add(1, Ordering::Relaxed);
        }
        answers
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let progress = self.replica.progress();
        Ok((progress.last, progress.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let (mut ready, mut commands) = (Vec::new(), 0);
        while let Some(entry) = entries.next().await {
            let entry = entry?;
            if let Payload::Normal(batch) = &entry.0.payload {
                commands += batch.count as usize;
            }
            ready.push(entry);
            if commands >= BATCH_COMMANDS {
                commands = 0;
                self.apply_and_answer(std::mem::take(&mut ready));
                // Nothing else on the node runs meanwhile. Without this the nodes come to take turns: each gets
                // all that is in flight at once, and the others have nothing to do until it is through.
                runtime::yield_now().await;
            }
        }
        if !ready.is_empty() {
            self.apply_and_answer(ready);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        Builder { checkpoints: self.checkpoints.clone() }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> Result<(), io::Error> {
        let installed = self.checkpoints.install(snapshot).await?;
        let mut state = self.replica.state.write().unwrap_or_else(PoisonError::into_inner);
        *state = installed;
        self.observer.installed(meta.last_log_id.as_ref(), &state);
        {
            let mut progress = self.replica.progress();
            progress.last = meta.last_log_id;
            progress.membership = meta.last_membership.clone();
            progress.membership_bytes = codec::to_bytes(&meta.last_membership);
            progress.time.tell(state.meta().now_ms, Instant::now());
        }
        let wake_ups = (self.replica.hub.reset(&state), self.replica.sagas.reset());
        drop(state);
        drop(wake_ups);
        self.replica.applied.send_if_greater(meta.last_log_id.map_or(0, |last| last.index + 1));
        Ok(())
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<alias::SnapshotOf<Types, SnapshotFile>>, io::Error> {
        self.checkpoints.current().map(to_snapshot).transpose()
    }
}

/// Makes snapshot files while apply goes on.
#[derive(Debug)]
pub struct Builder {
    checkpoints: Arc<dyn Checkpoints>,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(
        &mut self,
    ) -> Result<alias::SnapshotOf<Types, SnapshotFile>, io::Error> {
        to_snapshot(make_snapshot(&*self.checkpoints, Freshness::Recent).await?)
    }
}

/// Makes a snapshot, however long it takes. openraft ends consensus for good when that fails. A full
/// disk is no reason for it: the log goes on and is not purged, and the next attempt may find space.
pub async fn make_snapshot(
    checkpoints: &dyn Checkpoints,
    freshness: Freshness,
) -> io::Result<SnapshotFile> {
    loop {
        match checkpoints.snapshot(freshness).await {
            Ok(file) => return Ok(file),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(error),
            Err(error) => {
                tracing::warn!(%error, "no snapshot could be made; it will be tried again");
                runtime::sleep(SNAPSHOT_AGAIN).await;
            }
        }
    }
}

fn to_snapshot(file: SnapshotFile) -> io::Result<alias::SnapshotOf<Types, SnapshotFile>> {
    let meta = raft_meta(&file.meta.point)?;
    Ok(openraft::Snapshot { meta, snapshot: file })
}

/// What openraft wants to know of the point at which a snapshot or an image stands.
pub fn raft_meta(point: &Point) -> io::Result<SnapshotMeta> {
    let last_log_id = match point.log_id.is_empty() {
        true => None,
        false => Some(codec::decode_log_id(point.log_id.clone()).map_err(io::Error::other)?),
    };
    let last_membership =
        codec::from_bytes("membership", &point.membership).map_err(io::Error::other)?;
    Ok(SnapshotMeta { last_log_id, last_membership })
}
