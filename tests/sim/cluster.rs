//! The simulated machines: each node's disks, clock and lives. A node is put together as
//! `assembly.rs` does it, on disks that lose and tear bytes, with tasks in place of threads.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, join_all};
use quorate::clock::Clock;
use quorate::node::{
    Config, Leadership, Node, OnFatal, Parts, Prober, Saw, Storage, Target, Webhooks,
};
use quorate::raft::codec;
use quorate::raft::log::Log;
use quorate::raft::machine::{
    Checkpoints, Observer, Replica, SnapshotFile, StoreCheckpoints, raft_meta,
};
use quorate::raft::types::{LogId, Member, NodeId, StoredMembership};
use quorate::runtime::{self, Instant, Scope};
use quorate::state::{Applied, Record, State};
use quorate::store::checkpoint::{self, Checkpointer, Digest, Settings};
use quorate::store::disk::Disk;
use quorate::store::driver::{Driver, Freshness, Handle, Pace};
use quorate::store::fault::{Crash, FaultDisk, Faults};
use quorate::store::image::{ImageMeta, MemoryStore};
use quorate::store::inbox::Inbox;
use quorate::store::pending::AppliedEntry;
use quorate::store::rebuild::Mark;
use quorate::store::recovery::Origin;
use quorate::store::wal::{OpenError, Recovered, WalCore, WalOptions};
use quorate::watch::{Capacity, Hub};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, oneshot};

use crate::faults::Mix;
use crate::journal::{self, SimJournal, SyncTime};
use crate::network::{Network, SimPeers};
use crate::oracle::Oracle;
use crate::oracle::disks::DiskLog;
use crate::participants::{PLAIN, Services, SimParticipants};
use crate::plant::Plant;
use crate::run::Setup;
use crate::trace::{Trace, trace};

const CLUSTER: &str = "simulation";
/// Where alarms are told.
pub const HOOK: &str = "http://hook";

/// Small, so that segments are rolled and reused.
const SEGMENT_BYTES: u64 = 32 * 1024;
/// Small, so that entries are read back from the disk.
const TAIL_BYTES: usize = 8 * 1024;
/// Wall-clock time at which each run begins, in ms since the Unix epoch.
const EPOCH_MS: u64 = 1_700_000_000_000;

/// Within what time a node that failed notices it.
const NOTICE: Duration = Duration::from_millis(500);

/// How a life ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    pub crash: Crash,
    /// The image takes its last write back too.
    pub image: bool,
}

/// Everything of one run.
pub struct World {
    pub plant: Plant,
    pub nodes: Vec<NodeId>,
    pub mix: Mix,
    /// How many clients of each kind there are, as a multiple of the usual number.
    pub load: u64,
    pub trace: Trace,
    pub network: Network,
    /// Tasks that are no node's: clients, the nemesis.
    pub harness: Scope,
    /// Clients go on while this is set.
    pub busy: AtomicBool,
    oracle: Mutex<Oracle>,
    machines: Mutex<BTreeMap<NodeId, Machine>>,
    random: Mutex<StdRng>,
    hook: Mutex<Hook>,
    targets: Mutex<Targets>,
    services: Mutex<Services>,
    /// Nodes that have ended by themselves.
    pub aborted: Mutex<Vec<(NodeId, String)>>,
}

/// A computer.
struct Machine {
    log: FaultDisk,
    snapshots: FaultDisk,
    image: MemoryStore,
    clock: Arc<SimClock>,
    sync_time: Arc<SyncTime>,
    /// Its log was created.
    created: bool,
    /// Until when this life may end by itself: something on its disks was made to fail.
    excused_until: Duration,
    /// A life is being ended.
    ending: u32,
    /// When it may begin its next life.
    revive_at: Duration,
    lives: u64,
    life: Option<Life>,
    /// Asked for a snapshot, the checkpointer says that it has stopped.
    checkpointer_gone: bool,
    /// How often the checkpointer was asked for a snapshot.
    snapshots_asked: u64,
}

struct Life {
    scope: Scope,
    node: Option<Node>,
    replica: Weak<Replica>,
    checkpointer: Option<Handle>,
}

impl World {
    pub fn new(setup: &Setup, trace: Trace) -> Arc<World> {
        let mut random = StdRng::seed_from_u64(setup.seed);
        let nodes: Vec<NodeId> = (1..=setup.nodes).collect();
        let machines = nodes.iter().map(|id| {
            let machine = Machine {
                log: FaultDisk::new(),
                snapshots: FaultDisk::new(),
                image: MemoryStore::default(),
                clock: Arc::new(SimClock {
                    start: Instant::now(),
                    offset_ms: AtomicI64::new(random.random_range(-50..50)),
                }),
                sync_time: Arc::new(SyncTime::new()),
                created: false,
                excused_until: Duration::ZERO,
                ending: 0,
                revive_at: Duration::ZERO,
                lives: 0,
                life: None,
                checkpointer_gone: false,
                snapshots_asked: 0,
            };
            (*id, machine)
        });
        let machines = Mutex::new(machines.collect());
        Arc::new(World {
            plant: setup.plant,
            nodes,
            mix: setup.mix,
            load: setup.load,
            trace,
            network: Network::new(random.random()),
            harness: Scope::new(random.random()),
            busy: AtomicBool::new(true),
            oracle: Mutex::default(),
            machines,
            services: Mutex::new(Services::new(!setup.seed)),
            random: Mutex::new(random),
            hook: Mutex::default(),
            targets: Mutex::default(),
            aborted: Mutex::default(),
        })
    }

    /// An independent source of chance.
    pub fn fork_random(&self) -> StdRng {
        StdRng::seed_from_u64(self.draw())
    }

    pub fn draw(&self) -> u64 {
        self.random.lock().unwrap_or_else(PoisonError::into_inner).random()
    }

    pub fn oracle(&self) -> MutexGuard<'_, Oracle> {
        self.oracle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn hook(&self) -> MutexGuard<'_, Hook> {
        self.hook.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn targets(&self) -> MutexGuard<'_, Targets> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn services(&self) -> MutexGuard<'_, Services> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<NodeId, Machine>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn machine<R>(&self, id: NodeId, look: impl FnOnce(&mut Machine) -> R) -> R {
        look(self.machines().get_mut(&id).expect("a machine for each node"))
    }

    /// Virtual time since the run began.
    pub fn now(&self) -> Duration {
        self.trace.now()
    }

    pub fn violated(&self, what: String) {
        trace!(self, "violation: {what}");
        self.oracle().violated(what);
    }

    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed)
    }

    /// Where a node's tasks belong, and the node, when it is up.
    pub fn running(&self, id: NodeId) -> Option<(Scope, Node)> {
        let machines = self.machines();
        let life = machines.get(&id)?.life.as_ref()?;
        Some((life.scope.clone(), life.node.clone()?))
    }

    /// At the end of the run.
    pub fn drop_life(&self, id: NodeId) {
        self.machine(id, Machine::switch_off);
    }

    /// Who leads in the latest term, as the nodes themselves see it.
    pub fn leader(&self) -> Option<NodeId> {
        let leading = self.nodes.iter().filter_map(|id| {
            let id = *id;
            let (_, node) = self.running(id)?;
            match node.leadership() {
                Leadership::Leader { term } => Some((term, id)),
                Leadership::Follower { .. } | Leadership::Unknown => None,
            }
        });
        leading.max().map(|(_, id)| id)
    }

    pub fn pause(&self, id: NodeId) {
        self.machine(id, |machine| machine.life.as_ref().map(|life| life.scope.pause()));
    }

    pub fn resume(&self, id: NodeId) {
        self.machine(id, |machine| machine.life.as_ref().map(|life| life.scope.resume()));
    }

    pub fn shift_clock(&self, id: NodeId, ms: i64) {
        self.machine(id, |machine| machine.clock.offset_ms.fetch_add(ms, Ordering::Relaxed));
    }

    pub fn sync_time(&self, id: NodeId) -> Arc<SyncTime> {
        self.machine(id, |machine| machine.sync_time.clone())
    }

    /// Makes the disks of a node fail at a coming call.
    pub fn sabotage(&self, id: NodeId, change: impl FnOnce(&FaultDisk, &FaultDisk)) {
        self.machine(id, |machine| {
            machine.excused_until = Duration::MAX;
            change(&machine.log, &machine.snapshots);
        });
    }

    /// Asked for a snapshot, the checkpointer of a node says that it has stopped, which consensus
    /// cannot go on without.
    pub fn lose_checkpointer(&self, id: NodeId) {
        self.machine(id, |machine| {
            machine.excused_until = Duration::MAX;
            machine.checkpointer_gone = true;
        });
    }

    /// The disk with a node's snapshot files.
    pub fn snapshots(&self, id: NodeId) -> FaultDisk {
        self.machine(id, |machine| machine.snapshots.clone())
    }

    /// How often consensus or an operator has asked a node's checkpointer for a snapshot.
    pub fn snapshots_asked(&self, id: NodeId) -> u64 {
        self.machine(id, |machine| machine.snapshots_asked)
    }

    /// Stops a node in order, as `Assembly::stop` does. Its tasks go on for as long as they want to.
    pub async fn stop(&self, id: NodeId) {
        let life = self.machine(id, |machine| {
            let life = machine.life.as_ref()?;
            Some((life.node.clone()?, life.checkpointer.clone()?))
        });
        let Some((node, checkpointer)) = life else { return };
        trace!(self, "{id} is told to stop");
        node.shutdown().await;
        let (tx, rx) = oneshot::channel();
        // The answer of a last checkpoint that failed is that of production too: the log has all.
        checkpointer.stop(Box::new(move |result| {
            let _ = tx.send(result.is_ok());
        }));
        let written = rx.await;
        trace!(self, "{id} has stopped: {written:?}");
    }

    /// The disks of a node work again, for a life that has not met its fault.
    pub fn repair(&self, id: NodeId) {
        let soon = self.now() + NOTICE;
        self.machine(id, |machine| {
            if machine.life.is_some() {
                machine.excused_until = machine.excused_until.min(soon);
                machine.faults(self.plant == Plant::SyncIgnored);
            }
        });
    }

    /// Begins a node's next life when it is time for it.
    pub fn start_if_due(self: &Arc<Self>, id: NodeId) {
        let now = self.now();
        let due = self.machine(id, |machine| {
            machine.life.is_none() && machine.ending == 0 && machine.revive_at <= now
        });
        if !due {
            return;
        }
        let seed = self.draw();
        let scope = Scope::new(seed);
        let number = self.machine(id, |machine| {
            machine.lives += 1;
            let replica = Weak::new();
            let checkpointer = None;
            machine.life = Some(Life { scope: scope.clone(), node: None, replica, checkpointer });
            machine.lives
        });
        trace!(self, "{id} starts life {number}");
        let world = self.clone();
        scope.spawn(async move {
            match world.assemble(id, seed).await {
                Ok(node) => world.machine(id, |machine| {
                    // It may have been killed meanwhile.
                    if let Some(life) = machine.life.as_mut().filter(|_| machine.lives == number) {
                        life.node = Some(node);
                    }
                }),
                Err(why) => world.abort(id, why),
            }
        });
    }

    /// The process ends by itself: every task of it is dropped, its disks hear no more of it.
    pub fn abort(&self, id: NodeId, why: String) {
        trace!(self, "{id} aborts: {why}");
        let excused_until = self.machine(id, |machine| {
            machine.switch_off();
            // Whoever ends it for good says when.
            machine.revive_at = Duration::MAX;
            machine.excused_until
        });
        self.oracle().counts.disk_failures += 1;
        if self.now() > excused_until {
            self.violated(format!("node {id} gave up: {why}"));
        }
        self.aborted.lock().unwrap_or_else(PoisonError::into_inner).push((id, why));
    }

    /// Ends a node's life, if it lives, and what its machine had not made durable. The next one
    /// begins after `rest`.
    pub async fn end(self: &Arc<Self>, id: NodeId, end: End, rest: Duration) {
        trace!(self, "{id} ends {:?} {}", end.crash, end.image);
        let revive_at = self.now() + rest;
        let replica = self.machine(id, |machine| {
            machine.ending += 1;
            machine.revive_at = revive_at;
            machine.switch_off()
        });
        // The tasks are dropped when their turn comes.
        runtime::sleep(Duration::from_millis(2)).await;
        if replica.is_some_and(|replica| replica.strong_count() > 0) {
            self.violated(format!("something of node {id} goes on after its end"));
        }
        let seed = self.draw();
        self.machine(id, |machine| {
            machine.log.crash(end.crash, seed);
            machine.snapshots.crash(end.crash, !seed);
            machine.ending -= 1;
            machine.excused_until = Duration::ZERO;
            machine.faults(self.plant == Plant::SyncIgnored);
            if end.image && seed.is_multiple_of(2) {
                machine.image.interrupt_last_write();
            } else if end.image {
                machine.image.lose_last_write();
            }
        });
        let mut oracle = self.oracle();
        match end.crash {
            Crash::Kill => oracle.counts.kills += 1,
            Crash::Lose | Crash::Scatter | Crash::Tear => oracle.counts.power_losses += 1,
        }
    }

    /// Ends several at one instant: none hears of the end of another.
    pub async fn end_all(self: &Arc<Self>, ends: Vec<(NodeId, End, Duration)>) {
        join_all(ends.into_iter().map(|(id, end, rest)| self.end(id, end, rest))).await;
    }

    /// As `assembly::assemble`.
    async fn assemble(self: &Arc<Self>, id: NodeId, seed: u64) -> Result<Node, String> {
        let (log_disk, snapshots, store, clock, sync_time, create) = self.machine(id, |machine| {
            machine.faults_once(self.plant == Plant::SyncIgnored);
            (
                machine.log.handle(),
                machine.snapshots.handle(),
                machine.image.clone(),
                machine.clock.clone(),
                machine.sync_time.clone(),
                !machine.created,
            )
        });
        let options = WalOptions { segment_bytes: SEGMENT_BYTES, create, log_id: seed };
        let (core, recovered) = match WalCore::open(log_disk, options) {
            Ok(opened) => opened,
            Err(error @ OpenError::Io { .. }) => return Err(error.to_string()),
            Err(error) => {
                self.violated(format!("node {id} does not open its log: {error}"));
                return Err(error.to_string());
            }
        };
        self.machine(id, |machine| machine.created = true);
        let found = disk_log(&core, &recovered).map_err(|error| error.to_string())?;
        self.oracle().log_opens(id, found);
        self.oracle().counts.cuts += u64::from(recovered.cut.is_some());

        let wake = Arc::new(Notify::new());
        let inbox = {
            let wake = wake.clone();
            Arc::new(Inbox::new(move || wake.notify_one()))
        };
        let settings = Settings { cluster_id: CLUSTER.to_owned(), digest_every: 40 };
        let (core_of_image, recovery) =
            Checkpointer::recover(settings, Box::new(store), snapshots.clone(), inbox)
                .map_err(|error| error.to_string())?;
        let point = recovery.point.as_ref().map(|point| point.index);
        trace!(
            self,
            "{id} recovers {point:?} from {:?}, log {:?}..={:?}",
            recovery.origin,
            recovered.first,
            recovered.last
        );
        {
            let mut oracle = self.oracle();
            let rebuilt = matches!(recovery.origin, Origin::Snapshot(_));
            oracle.counts.rebuilds += u64::from(rebuilt);
            oracle.begins_with(id, point, &recovery.state, "disk");
        }
        let first = recovered.first.or(recovered.purged.as_ref().map(|(index, _)| index + 1));
        if let Err(why) = recovery.covers(first) {
            // What a disk did not read this time is not lost. (A real node takes another one's state meanwhile.)
            if !failed_to_read(&self.snapshots(id)) {
                self.violated(format!("node {id}: {why}"));
            }
            return Err(why);
        }
        let last = recovered.last_index();
        if let Some(end) = recovery.beyond(last) {
            let why = format!("the state is at {end}, the log ends at {last:?}");
            self.violated(format!("node {id}: {why}"));
            return Err(why);
        }
        let started = Instant::now();
        let pace = Pace { interval: Duration::from_millis(700), log_bytes: 64 * 1024 };
        let on_failure = {
            let world = self.clone();
            Box::new(move |error: &checkpoint::Error| {
                world.abort(id, format!("the image: {error}"))
            })
        };
        let clock_of_image = Arc::new(move || started.elapsed());
        let driver = Driver::new(core_of_image, pace, clock_of_image, on_failure);
        let handle = driver.handle();
        runtime::spawn(journal::checkpoints(self.clone(), id, driver, wake));

        let journal = SimJournal::spawn(self.clone(), id, core, sync_time);
        let on_synced = {
            let handle = handle.clone();
            Arc::new(move |index| handle.set_synced(index))
        };
        let log = Log::with_tail(Arc::new(journal), &recovered, on_synced, TAIL_BYTES)
            .map_err(|error| error.to_string())?;
        let (last, membership) = match &recovery.point {
            Some(point) => {
                let meta = raft_meta(point).map_err(|error| error.to_string())?;
                (meta.last_log_id, meta.last_membership)
            }
            None => (None, StoredMembership::default()),
        };
        let capacity = Capacity {
            ring_events: 150,
            queue_messages: 40,
            snapshot_events: 5,
            ..Capacity::default()
        };
        let hub = Hub::with_capacity(recovery.state.revision(), capacity);
        let replica = Replica::new(recovery.state, hub, last, membership);
        self.machine(id, |machine| {
            if let Some(life) = &mut machine.life {
                life.replica = Arc::downgrade(&replica);
                life.checkpointer = Some(handle.clone());
            }
        });
        let config = Config {
            id,
            cluster_id: CLUSTER.to_owned(),
            version: "simulated".to_owned(),
            client_address: format!("client-{id}"),
            initial: self.nodes.iter().map(|id| (*id, member(*id))).collect(),
            heartbeat_ms: 100,
            election_min_ms: 300,
            election_max_ms: 600,
            snapshot_entries: 60,
            snapshot_keep_entries: 20,
            webhook_allow: vec![HOOK.to_owned()],
            participant_allow: vec![PLAIN.to_owned()],
        };
        let checkpoints = StoreCheckpoints { handle: handle.clone(), disk: snapshots.clone() };
        let parts = Parts {
            log,
            replica,
            checkpoints: Arc::new(Watched { world: self.clone(), id, checkpoints }),
            peers: Arc::new(SimPeers { world: self.clone(), id }),
            clock,
            observer: Arc::new(Ear { world: self.clone(), id }),
            disk: Arc::new(SimStorage { world: self.clone(), id, snapshots }),
            webhooks: Arc::new(SimWebhooks { world: self.clone() }),
            prober: Arc::new(SimProber { world: self.clone(), id }),
            participants: Arc::new(SimParticipants { world: self.clone(), id }),
            rebuilt: false,
            on_fatal: OnFatal(Box::new({
                let world = self.clone();
                move |why| {
                    world.oracle().counts.fatals += 1;
                    world.abort(id, format!("consensus: {why}"));
                }
            })),
        };
        Node::start(config, parts).await.map_err(|error| error.to_string())
    }
}

impl Machine {
    /// Drops the process; its last writes reach no disk.
    fn switch_off(&mut self) -> Option<Weak<Replica>> {
        let life = self.life.take()?;
        life.scope.kill();
        self.checkpointer_gone = false;
        for disk in [&self.log, &self.snapshots] {
            disk.set_faults(Faults { power_off_at: Some(0), ..disk.faults() });
        }
        Some(life.replica)
    }

    fn faults(&self, skip_syncs: bool) {
        self.log.set_faults(Faults { skip_syncs, ..Faults::default() });
        self.snapshots.set_faults(Faults::default());
    }

    /// Before the first life nothing has ended that would have set the faults.
    fn faults_once(&self, skip_syncs: bool) {
        if skip_syncs {
            self.log.set_faults(Faults { skip_syncs, ..self.log.faults() });
        }
    }
}

/// Whether the call has come that was to fail.
fn failed_to_read(disk: &FaultDisk) -> bool {
    disk.faults().fail_read.is_some_and(|call| disk.counts().reads > call)
}

/// All that a log holds.
fn disk_log(core: &WalCore, recovered: &Recovered) -> io::Result<DiskLog> {
    let reader = core.reader();
    let (first, behind) = reader.bounds().map_or((0, 0), |(first, last)| (first, last + 1));
    let entries = reader.read(first..behind, usize::MAX)?.into_iter().map(|(index, payload)| {
        let entry = codec::decode_entry(payload).map_err(io::Error::other)?;
        Ok((index, entry.log_id))
    });
    let vote = recovered.vote.clone().map(codec::decode_vote).transpose();
    let purged = recovered.purged.clone().map(|(_, log_id)| codec::decode_log_id(log_id));
    Ok(DiskLog {
        vote: vote.map_err(io::Error::other)?,
        purged: purged.transpose().map_err(io::Error::other)?,
        entries: entries.collect::<io::Result<_>>()?,
    })
}

fn member(id: NodeId) -> Member {
    Member { peer_address: format!("peer-{id}"), client_address: String::new() }
}

/// A machine's wall clock: as wrong as the nemesis makes it.
#[derive(Debug)]
struct SimClock {
    start: Instant,
    offset_ms: AtomicI64,
}

impl SimClock {
    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        let now = EPOCH_MS + self.elapsed_ms();
        now.saturating_add_signed(self.offset_ms.load(Ordering::Relaxed))
    }
}

/// Tells the oracle what a node applies.
struct Ear {
    world: Arc<World>,
    id: NodeId,
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Observer for Ear {
    fn applied(&self, log_id: &LogId, applied: &Applied) {
        let (world, id) = (&self.world, self.id);
        let (index, term) = (log_id.index, log_id.leader_id.term);
        trace!(world, "{id} applies {index} of {term} to {}", applied.meta.revision);
        let now = world.now();
        let mut oracle = world.oracle();
        for session in oracle.applied(id, index, term, log_id.leader_id.node_id, applied) {
            oracle.session_ended(session, now);
        }
    }

    fn installed(&self, log_id: Option<&LogId>, state: &State) {
        let index = log_id.map(|log_id| log_id.index);
        trace!(self.world, "{} installs {index:?}", self.id);
        let mut oracle = self.world.oracle();
        oracle.counts.installs += 1;
        oracle.begins_with(self.id, index, state, "installed snapshot");
    }
}

/// The checkpointer, and a bug in it if one is planted.
struct Watched {
    world: Arc<World>,
    id: NodeId,
    checkpoints: StoreCheckpoints,
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("checkpoints", &self.checkpoints).finish_non_exhaustive()
    }
}

impl Checkpoints for Watched {
    fn absorb(&self, entry: AppliedEntry) {
        self.checkpoints.absorb(entry);
    }

    fn snapshot(&self, freshness: Freshness) -> BoxFuture<'static, io::Result<SnapshotFile>> {
        let gone = self.world.machine(self.id, |machine| {
            machine.snapshots_asked += 1;
            machine.checkpointer_gone
        });
        match gone {
            true => async { Err(io::Error::from(io::ErrorKind::BrokenPipe)) }.boxed(),
            false => self.checkpoints.snapshot(freshness),
        }
    }

    fn current(&self) -> Option<SnapshotFile> {
        self.checkpoints.current()
    }

    fn install(&self, file: SnapshotFile) -> BoxFuture<'static, io::Result<State>> {
        let install = self.checkpoints.install(file);
        let forgets = self.world.plant == Plant::RepliesLostInSnapshot;
        async move {
            let state = install.await?;
            if !forgets {
                return Ok(state);
            }
            let kept = state.records().filter(|(_, record)| !matches!(record, Record::Reply(_)));
            State::restore(kept.map(Ok))
        }
        .boxed()
    }

    fn image(&self) -> BoxFuture<'static, io::Result<Option<ImageMeta>>> {
        self.checkpoints.image()
    }

    fn digests(&self) -> Vec<Digest> {
        self.checkpoints.digests()
    }
}

/// What a node asks of its machine's disks besides log and snapshots.
struct SimStorage {
    world: Arc<World>,
    id: NodeId,
    snapshots: Arc<dyn Disk>,
}

impl fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimStorage").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Storage for SimStorage {
    fn snapshots(&self) -> Arc<dyn Disk> {
        self.snapshots.clone()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.snapshots.free_bytes()
    }

    fn log_bytes(&self) -> u64 {
        0
    }

    fn image_bytes(&self) -> u64 {
        0
    }

    fn snapshot_bytes(&self) -> u64 {
        0
    }

    /// Nothing here makes a replica differ, so one that does is a bug.
    fn mark_rebuild(&self, mark: &Mark) -> io::Result<()> {
        self.world.violated(format!("node {} is told to rebuild: {mark:?}", self.id));
        Err(io::Error::from(io::ErrorKind::Unsupported))
    }
}

/// The one webhook that there is.
#[derive(Debug, Default)]
pub struct Hook {
    pub refuses: bool,
    /// What was posted and refused, and what was taken.
    pub refused: Vec<serde_json::Value>,
    pub taken: Vec<serde_json::Value>,
}

struct SimWebhooks {
    world: Arc<World>,
}

impl fmt::Debug for SimWebhooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWebhooks").finish_non_exhaustive()
    }
}

impl Webhooks for SimWebhooks {
    fn post(&self, url: &str, body: String) -> BoxFuture<'static, Result<(), String>> {
        assert_eq!(url, HOOK);
        let mut hook = self.world.hook();
        let body = serde_json::from_str(&body).expect("what is posted is JSON");
        let answer = match hook.refuses {
            true => {
                hook.refused.push(body);
                Err("refused".to_owned())
            }
            false => {
                hook.taken.push(body);
                Ok(())
            }
        };
        async { answer }.boxed()
    }
}

/// What is asked by health checks: whatever is not down answers at once.
#[derive(Debug, Default)]
pub struct Targets {
    pub down: BTreeSet<String>,
    /// Which node asked which host, in order.
    pub asked: Vec<(NodeId, String)>,
}

struct SimProber {
    world: Arc<World>,
    id: NodeId,
}

impl fmt::Debug for SimProber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimProber").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Prober for SimProber {
    fn probe(&self, target: Target) -> BoxFuture<'static, Saw> {
        let mut targets = self.world.targets();
        let saw = match targets.down.contains(&target.host) {
            true => Saw::Failed("it is down".to_owned()),
            false => Saw::Passed,
        };
        targets.asked.push((self.id, target.host));
        async { saw }.boxed()
    }

    fn refuses(&self, _host: &str) -> Option<String> {
        None
    }
}
