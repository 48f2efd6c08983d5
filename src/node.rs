//! The door to the replicated state: propose, read, watch, membership, status. Everything that
//! serves clients goes through [`Node`]; everything below it (log, snapshots, peers, time, chance)
//! is a parameter, so that a simulation runs the same code.

mod audit;
mod batcher;
mod coordinator;
mod health;
mod judge;
mod keeper;
mod membership;
mod proposer;
mod rebuild;
mod releases;
mod succession;
mod webhook;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Raft, RaftState, ServerState};
use tokio::sync::oneshot;

use self::batcher::Batcher;
pub use self::coordinator::{Call, Participants, SagaStatus, find_saga};
use self::health::Health;
pub use self::health::{HealthStatus, Prober, Saw, Target};
use self::keeper::Keeper;
use self::proposer::{Pending, Proposer};
pub use self::proposer::{ReplyTo, Sink};
use self::rebuild::Rebuild;
use self::releases::Schemas;
pub use self::webhook::Webhooks;
use self::wire::{Admin, AdminReply, Description, WireError};
use crate::clock::Clock;
use crate::error::Error;
use crate::limits::{
    CLIENT_ADMIN_TIMEOUT, CLOCK_LEAD, DIGEST_IN_MEMORY, DISK_LOW_BYTES, DISK_OK_BYTES,
    KEEP_ALIVE_DISTANCE, LAG_SNAPSHOTS, MAX_CALL_TIMEOUT, PROPOSAL_QUEUE, READ_QUEUE,
    SNAPSHOT_LOG_BYTES, TEXT_BYTES,
};
use crate::proto::v1::Consistency;
use crate::raft::answers::Horizon;
use crate::raft::codec;
use crate::raft::log::Log;
use crate::raft::machine::{Checkpoints, Machine, Observer, Replica, SnapshotFile, make_snapshot};
use crate::raft::network::{Channel, Method, Network, PeerError, Peers};
use crate::raft::service::{PeerHandler, Service};
pub use crate::raft::types::Member;
use crate::raft::types::{LeaderId, NodeId, Types};
use crate::runtime::{self, Instant};
use crate::state::{Command, Kind, Outcome, Refusal, State};
use crate::store::checkpoint::Digest;
use crate::store::disk::Disk;
use crate::store::driver::Freshness;
use crate::store::rebuild::Mark;
use crate::watch;

/// The answer to a submitted command: what the state said, or why it was not asked.
pub type Answer = Result<Outcome, Error>;

/// Pause between two attempts to learn something of a cluster that has no leader.
const AGAIN: Duration = Duration::from_millis(10);
/// How often whoever waits for the leader's answer looks whether it still leads.
const DEPOSED: Duration = Duration::from_millis(50);
/// Deadline of one message between nodes.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);

/// What a node is told when it starts.
#[derive(Debug, Clone)]
pub struct Config {
    pub id: NodeId,
    pub cluster_id: String,
    pub version: String,
    /// Where clients reach this node.
    pub client_address: String,
    /// The voters of a new cluster; empty for a node that waits to be added to one.
    pub initial: BTreeMap<NodeId, Member>,
    pub heartbeat_ms: u64,
    pub election_min_ms: u64,
    /// The leader's lease too.
    pub election_max_ms: u64,
    /// Entries after which a snapshot is made.
    pub snapshot_entries: u64,
    /// Entries that stay in the log behind a snapshot, for followers that lag a little.
    pub snapshot_keep_entries: u64,
    /// How URLs of webhooks may begin.
    pub webhook_allow: Vec<String>,
    /// How URLs of participants in global transactions may begin.
    pub participant_allow: Vec<String>,
}

/// What a node is made of.
#[derive(Debug)]
pub struct Parts {
    pub log: Log,
    pub replica: Arc<Replica>,
    pub checkpoints: Arc<dyn Checkpoints>,
    pub peers: Arc<dyn Peers>,
    pub clock: Arc<dyn Clock>,
    pub observer: Arc<dyn Observer>,
    pub disk: Arc<dyn Storage>,
    pub webhooks: Arc<dyn Webhooks>,
    pub prober: Arc<dyn Prober>,
    pub participants: Arc<dyn Participants>,
    /// This start has fetched the state from another member.
    pub rebuilt: bool,
    pub on_fatal: OnFatal,
}

/// Called once, with the reason, when consensus has ended by itself: a storage call failed that it
/// cannot go on without. Nothing brings it back but a restart, so production ends the process. Never
/// called once [`Node::shutdown`] has begun.
pub struct OnFatal(pub Box<dyn Fn(&str) + Send + Sync>);

impl Debug for OnFatal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OnFatal")
    }
}

/// What the node asks of its disk besides log and snapshots.
pub trait Storage: Send + Sync + Debug + 'static {
    /// Where snapshot files are.
    fn snapshots(&self) -> Arc<dyn Disk>;
    fn free_bytes(&self) -> io::Result<u64>;
    fn log_bytes(&self) -> u64;
    fn image_bytes(&self) -> u64;
    fn snapshot_bytes(&self) -> u64;
    /// Notes that the state must come from another member; durable on return. The next start does
    /// nothing before it has it.
    fn mark_rebuild(&self, mark: &Mark) -> io::Result<()>;
}

/// Who leads, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leadership {
    Leader { term: u64 },
    Follower { term: u64, leader: NodeId, address: String },
    Unknown,
}

/// A member of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    pub id: NodeId,
    pub peer_address: String,
    pub client_address: String,
    pub learner: bool,
    pub leader: bool,
}

/// One node's own view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Status {
    pub id: NodeId,
    pub leader: Option<NodeId>,
    pub leader_client_address: String,
    pub is_leader: bool,
    pub learner: bool,
    pub term: u64,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    pub revision: u64,
    pub log_bytes: u64,
    pub image_bytes: u64,
    pub snapshot_bytes: u64,
    pub instances: u64,
    pub services: u64,
    pub sessions: u64,
    pub watchers: u64,
    pub proposals_pending: u64,
    pub proposals_failed: u64,
    pub proposals_proposed: u64,
    pub commands_applied: u64,
    pub slow_applies: u64,
    pub leader_changes: u64,
    /// Replicas that differ from the others, as the leader found them.
    pub corrupt_replicas: u64,
    pub health: HealthStatus,
    pub sagas: SagaStatus,
    /// What an operator should look at, in words.
    pub errors: Vec<String>,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        match refusal {
            Refusal::Invalid { field, value, allowed } => Error::invalid(field, value, allowed),
            Refusal::NotFound { kind, name } => {
                Error::NotFound { kind: kind_name(kind).to_owned(), name }
            }
            Refusal::SessionExpired { session } => Error::SessionExpired { session },
            Refusal::SequenceForgotten { sequence, lowest } => {
                Error::SequenceForgotten { sequence, lowest }
            }
            Refusal::TooManyInFlight { limit } => Error::TooManyInFlight { limit },
            Refusal::CompareFailed { expected, current } => {
                Error::CompareFailed { expected, current }
            }
            Refusal::OwnedByAnother { owner } => Error::OwnedByAnother { owner },
            Refusal::LimitReached { limit, allowed } => Error::LimitReached { limit, allowed },
            Refusal::InUse { kind, name, by } => {
                Error::InUse { kind: kind_name(kind).to_owned(), name, by }
            }
            Refusal::StaleTerm { proposed, current } => Error::Internal {
                message: format!("an expiry decided in term {proposed} came up in term {current}"),
            },
            Refusal::Undecodable => {
                Error::internal("the command was written by another release of Quorate")
            }
            Refusal::SchemaChanged { checked, current } => {
                Error::SchemaChanged { checked, current }
            }
            Refusal::ValueDiffers { expected, current } => {
                Error::ValueDiffers { expected, current }
            }
            Refusal::OutOfBounds { value, delta, bound } => {
                Error::OutOfBounds { value, delta, bound }
            }
            Refusal::LockHeld { owner, token } => Error::LockHeld { owner, token },
            Refusal::SagaIs { status } => Error::SagaIs { status: status.name().to_owned() },
            Refusal::InStep { step, refusal } => {
                Error::InStep { step, error: Box::new((*refusal).into()) }
            }
        }
    }
}

/// Whether a URL is one that a prefix allows, by whole parts only: `http://hooks` is no beginning of
/// `http://hooks.example.com`.
fn is_below(prefix: &str, url: &str) -> bool {
    let Some(rest) = url.strip_prefix(prefix) else { return false };
    // Many servers go up a step for it.
    let lower = rest.to_ascii_lowercase();
    if lower.contains("/..") || lower.contains("%2e") || lower.starts_with("..") {
        return false;
    }
    prefix.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?'])
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespace",
        Kind::Service => "service",
        Kind::Instance => "instance",
        Kind::Session => "session",
        Kind::Config => "config item",
        Kind::Release => "release",
        Kind::Gray => "gray release",
        Kind::Counter => "counter",
        Kind::Lock => "lock",
        Kind::Alarm => "alarm",
        Kind::Saga => "global transaction",
    }
}

/// A running node. Clones share it.
#[derive(Debug, Clone)]
pub struct Node(Arc<Inner>);

struct Inner {
    config: Config,
    raft: Raft<Types, Machine>,
    service: Service,
    log: Log,
    horizon: Arc<Horizon>,
    replica: Arc<Replica>,
    checkpoints: Arc<dyn Checkpoints>,
    peers: Arc<dyn Peers>,
    clock: Arc<dyn Clock>,
    disk: Arc<dyn Storage>,
    webhooks: Arc<dyn Webhooks>,
    prober: Arc<dyn Prober>,
    participants: Arc<dyn Participants>,
    saga_figures: coordinator::Figures,
    health: Health,
    /// One membership change at a time: each is more than one entry of the log.
    administration: tokio::sync::Mutex<()>,
    on_fatal: OnFatal,
    proposer: Proposer,
    reads: Batcher<(), u64>,
    keep_alives: Batcher<u64, u64>,
    keeper: Keeper,
    /// Client addresses of the members, as they told them.
    directory: Mutex<BTreeMap<NodeId, String>>,
    /// What the leader's comparison of the replicas found.
    alarms: Mutex<BTreeMap<NodeId, String>>,
    rebuild: Rebuild,
    schemas: Schemas,
    closing: AtomicBool,
    /// The node is being shut down: that consensus ends is no surprise any more.
    stopping: AtomicBool,
    /// Free bytes when the disk is low, else u64::MAX.
    low_disk: AtomicU64,
    leader_changes: AtomicU64,
    /// Nothing was heard of a leader, or, on the leader, of a quorum, for longer than an election takes.
    out_of_touch: AtomicBool,
}

impl Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("id", &self.config.id).finish_non_exhaustive()
    }
}

impl Node {
    /// Starts consensus and the node's loops. A new cluster is formed when `initial` names this
    /// node and its log is empty.
    pub async fn start(config: Config, parts: Parts) -> Result<Node, Error> {
        let raft_config = openraft::Config {
            cluster_name: "quorate".to_owned(),
            heartbeat_interval: config.heartbeat_ms,
            election_timeout_min: config.election_min_ms,
            election_timeout_max: config.election_max_ms,
            install_snapshot_timeout: 60_000,
            max_payload_entries: 1_024,
            replication_lag_threshold: config.snapshot_keep_entries.max(1),
            // Snapshots and purges are asked for by `housekeep`, by bytes as well as entries.
            snapshot_policy: openraft::SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: u64::MAX,
            enable_pre_vote: Some(true),
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            ..openraft::Config::default()
        };
        let raft_config = raft_config.validate().map_err(Error::internal)?;
        let Parts {
            log,
            replica,
            checkpoints,
            peers,
            clock,
            observer,
            disk,
            webhooks,
            prober,
            participants,
            rebuilt,
            on_fatal,
        } = parts;
        let fresh = !log.is_initialized();
        let horizon = Arc::new(Horizon::default());
        let network = Network::new(config.id, peers.clone(), horizon.clone(), checkpoints.clone());
        let machine = Machine::new(replica.clone(), checkpoints.clone(), observer);
        // What is purged can only be replicated as a snapshot. The newest file may have been damaged,
        // and an older one would be sent again and again to a member that needs more.
        let reaches =
            |index| checkpoints.current().is_some_and(|file| file.meta.point.index >= index);
        if let Some(purged) = log.purged_index()
            && !reaches(purged)
        {
            let made = make_snapshot(&*checkpoints, Freshness::Newest).await;
            made.map_err(Error::internal)?;
        }
        let raft = Raft::new(config.id, Arc::new(raft_config), network, log.clone(), machine)
            .await
            .map_err(Error::internal)?;
        runtime::spawn(replica.hub.clone().run());
        let node = Node(Arc::new(Inner {
            service: Service::new(raft.clone()),
            raft,
            log,
            horizon,
            replica,
            checkpoints,
            peers,
            clock,
            disk,
            webhooks,
            prober,
            participants,
            saga_figures: coordinator::Figures::default(),
            health: Health::default(),
            administration: tokio::sync::Mutex::new(()),
            on_fatal,
            proposer: Proposer::new(),
            reads: Batcher::new("reads", READ_QUEUE),
            keep_alives: Batcher::spaced("keep-alives", PROPOSAL_QUEUE, KEEP_ALIVE_DISTANCE),
            keeper: Keeper::default(),
            directory: Mutex::new(BTreeMap::from([(config.id, config.client_address.clone())])),
            alarms: Mutex::default(),
            rebuild: Rebuild::new(rebuilt),
            schemas: Schemas::default(),
            closing: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            low_disk: AtomicU64::new(u64::MAX),
            leader_changes: AtomicU64::new(0),
            out_of_touch: AtomicBool::new(false),
            config,
        }));
        if fresh && node.0.config.initial.contains_key(&node.id()) {
            node.raft().initialize(node.0.config.initial.clone()).await.map_err(Error::internal)?;
        }
        runtime::spawn(proposer::run(node.clone()));
        runtime::spawn(node.clone().run_reads());
        runtime::spawn(node.clone().run_keep_alives());
        runtime::spawn(keeper::run(node.clone()));
        runtime::spawn(judge::run(node.clone()));
        runtime::spawn(webhook::run(node.clone()));
        runtime::spawn(health::run(node.clone()));
        runtime::spawn(coordinator::run(node.clone()));
        runtime::spawn(succession::run(node.clone()));
        runtime::spawn(node.clone().run_housekeeping());
        runtime::spawn(node.clone().run_directory());
        runtime::spawn(audit::run(node.clone()));
        runtime::spawn(node.clone().run_notes());
        Ok(node)
    }

    pub fn id(&self) -> NodeId {
        self.0.config.id
    }

    /// The time of the cluster, in ms since the Unix epoch: what a leader stamps its entries with, never behind
    /// the stamps that are applied. It is the wall clock's; while that is behind the stamps, it goes on from the greatest
    /// of them, see [`crate::clock::Slew`].
    pub fn now_ms(&self) -> u64 {
        self.0.clock.wall_ms().max(self.0.replica.now_ms())
    }

    fn keeper(&self) -> &Keeper {
        &self.0.keeper
    }

    fn proposer(&self) -> &Proposer {
        &self.0.proposer
    }

    fn webhooks(&self) -> &dyn Webhooks {
        &*self.0.webhooks
    }

    fn raft(&self) -> &Raft<Types, Machine> {
        &self.0.raft
    }

    fn peers(&self) -> &Arc<dyn Peers> {
        &self.0.peers
    }

    // ---- who leads ----

    pub fn leadership(&self) -> Leadership {
        let metrics = self.0.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let term = metrics.vote.leader_id.term;
        match metrics.current_leader {
            Some(leader) if leader == self.id() => match metrics.state {
                ServerState::Leader => Leadership::Leader { term },
                ServerState::Learner
                | ServerState::Follower
                | ServerState::Candidate
                | ServerState::Shutdown => Leadership::Unknown,
            },
            Some(leader) => match metrics.membership_config.get_node(&leader) {
                Some(member) => {
                    Leadership::Follower { term, leader, address: member.peer_address.clone() }
                }
                None => Leadership::Unknown,
            },
            None => Leadership::Unknown,
        }
    }

    pub fn leader_id(&self) -> Option<NodeId> {
        match self.leadership() {
            Leadership::Leader { .. } => Some(self.id()),
            Leadership::Follower { leader, .. } => Some(leader),
            Leadership::Unknown => None,
        }
    }

    fn client_address(&self, id: NodeId) -> Option<String> {
        let directory = self.0.directory.lock().unwrap_or_else(PoisonError::into_inner);
        directory.get(&id).cloned().filter(|address| !address.is_empty())
    }

    fn no_leader(&self) -> Error {
        let leader = self.leader_id().and_then(|id| self.client_address(id));
        Error::NoLeader { leader, definite: true }
    }

    // ---- writes ----

    /// Checks, proposes and waits for the answer. Works on every node.
    pub async fn propose(&self, command: &Command, timeout: Duration) -> Answer {
        let (tx, rx) = oneshot::channel();
        self.submit(command, ReplyTo::Once(tx), timeout);
        rx.await.unwrap_or(Err(Error::ShuttingDown { definite: false }))
    }

    /// As [`Node::propose`], but never forwarded: for decisions of this node as the leader.
    pub async fn propose_here(&self, command: &Command, timeout: Duration) -> Answer {
        let (tx, rx) = oneshot::channel();
        self.queue(command, ReplyTo::Once(tx), timeout, true);
        rx.await.unwrap_or(Err(Error::ShuttingDown { definite: false }))
    }

    /// Checks and queues a command; never blocks. `reply` gets exactly one answer.
    pub fn submit(&self, command: &Command, reply: ReplyTo, timeout: Duration) {
        if let Some(error) = self.refuses_writes() {
            return reply.send(Err(error));
        }
        if let Err(refusal) = command.check() {
            return reply.send(Err(refusal.into()));
        }
        self.queue(command, reply, timeout, false);
    }

    fn queue(&self, command: &Command, reply: ReplyTo, timeout: Duration, local_only: bool) {
        match command.encode() {
            Ok(bytes) => self.0.proposer.submit(Pending {
                command: Bytes::from(bytes),
                deadline: Instant::now() + timeout.min(MAX_CALL_TIMEOUT),
                local_only,
                reply,
            }),
            Err(refusal) => reply.send(Err(refusal.into())),
        }
    }

    fn refuses_writes(&self) -> Option<Error> {
        if self.0.closing.load(Ordering::Relaxed) {
            return Some(Error::ShuttingDown { definite: true });
        }
        // A follower passes them on: the leader's disk counts, and its own gets them through whomever they come.
        match self.leadership() {
            Leadership::Follower { .. } => None,
            Leadership::Leader { .. } | Leadership::Unknown => self.no_space(),
        }
    }

    fn no_space(&self) -> Option<Error> {
        match self.0.low_disk.load(Ordering::Relaxed) {
            u64::MAX => None,
            free_bytes => Some(Error::NoSpace { free_bytes }),
        }
    }

    // ---- reads ----

    /// After it, [`Node::read`] sees every write that was acknowledged before this call.
    /// Answers the consistency that was used.
    pub async fn barrier(
        &self,
        consistency: Consistency,
        timeout: Duration,
    ) -> Result<Consistency, Error> {
        if self.rebuilds() {
            return Err(Error::ShuttingDown { definite: true });
        }
        match consistency {
            Consistency::Stale => Ok(Consistency::Stale),
            Consistency::Unspecified | Consistency::Linearizable => {
                let deadline = Instant::now() + timeout.min(MAX_CALL_TIMEOUT);
                let wait = async {
                    let index = self.0.reads.call(()).await?;
                    if self.0.replica.wait_applied(index).await {
                        Ok(Consistency::Linearizable)
                    } else {
                        Err(Error::ShuttingDown { definite: true })
                    }
                };
                match runtime::timeout_at(deadline, wait).await {
                    Ok(result) => result,
                    Err(_) => Err(match self.leadership() {
                        Leadership::Leader { .. } | Leadership::Follower { .. } => {
                            Error::Timeout { definite: true }
                        }
                        Leadership::Unknown => self.no_leader(),
                    }),
                }
            }
        }
    }

    /// Reads the state as this node has applied it.
    pub fn read<R>(&self, read: impl FnOnce(&State) -> R) -> R {
        read(&self.0.replica.state())
    }

    /// Follows a range. See [`watch::Hub::subscribe`].
    pub fn watch(
        &self,
        range: watch::Range,
        after_revision: u64,
    ) -> Result<watch::Subscription, Error> {
        if self.rebuilds() {
            return Err(Error::ShuttingDown { definite: true });
        }
        // The read lock keeps the machine from publishing between the snapshot and the subscription.
        let state = self.0.replica.state();
        self.0.replica.hub.subscribe(range, after_revision, &state)
    }

    async fn run_reads(self) {
        let node = self.clone();
        self.0
            .reads
            .run(move |waiting| {
                let node = node.clone();
                async move {
                    let index = node.read_index().await;
                    waiting.iter().map(|()| index.clone()).collect()
                }
            })
            .await;
    }

    /// One ReadIndex round (Ongaro, Raft dissertation, 6.4): the leader confirms with a quorum that
    /// it still leads; the answer is the index that must be applied before reading.
    async fn read_index(&self) -> Result<u64, Error> {
        let give_up = Instant::now() + PEER_TIMEOUT;
        loop {
            let index = match self.leadership() {
                Leadership::Leader { .. } => self.confirm_leadership().await,
                Leadership::Follower { leader, address, .. } => {
                    match self.ask_leader(leader, &address, Method::ReadIndex, Bytes::new()).await {
                        Some(answer) => codec::from_bytes("read index", &answer).ok().flatten(),
                        None => None,
                    }
                }
                Leadership::Unknown => None,
            };
            match index {
                Some(index) => return Ok(index),
                None if Instant::now() >= give_up => return Err(self.no_leader()),
                None => runtime::sleep(AGAIN).await,
            }
        }
    }

    /// Asks members whether they follow this leadership; None from one that does not answer.
    fn confirmations(
        &self,
        leader: &LeaderId,
        members: impl Iterator<Item = (NodeId, String)>,
    ) -> FuturesUnordered<BoxFuture<'static, Option<(NodeId, bool)>>> {
        let payload = codec::to_bytes(leader);
        let ask = |(id, address): (NodeId, String)| {
            let (peers, payload) = (self.0.peers.clone(), payload.clone());
            let answer = async move {
                let call = peers.call(id, &address, Method::Confirm, payload, PEER_TIMEOUT);
                let follows = codec::from_bytes("confirmation", &call.await.ok()?).ok()?;
                Some((id, follows))
            };
            answer.boxed()
        };
        members.map(ask).collect()
    }

    /// The read index, when this node leads: what is committed now, once a majority has said since
    /// that it knows no later leader.
    ///
    /// openraft's own confirmation is not used. It counts what is acknowledged on a replication stream
    /// by log id alone: an old acknowledgement that arrives late, when a link is back, counts for the
    /// empty request that the commit before it has just caused, and confirms who was deposed meanwhile.
    async fn confirm_leadership(&self) -> Option<u64> {
        let own = self.id();
        let leads = self.raft_state(move |state| {
            let vote = state.vote_ref();
            // Before its first entry is committed a leader does not know what is.
            let committed = state.local_committed().filter(|id| id.leader_id == vote.leader_id)?;
            let leads = vote.committed && vote.leader_id.node_id == own;
            let members = state.membership_state.effective().clone();
            leads.then_some((vote.leader_id, committed.index, members))
        });
        let (leader, index, members) = leads.await??;
        let voters = members.voter_ids().filter(|id| *id != own);
        let address = |id: NodeId| Some((id, members.get_node(&id)?.peer_address.clone()));
        let mut answers = self.confirmations(&leader, voters.filter_map(address));
        let mut agree = BTreeSet::from([own]);
        let confirmed = async {
            // During a change of members, of both memberships.
            let configs = members.membership().get_joint_config();
            let most = |agree: &BTreeSet<NodeId>, config: &BTreeSet<NodeId>| {
                config.intersection(agree).count() * 2 > config.len()
            };
            while !configs.iter().all(|config| most(&agree, config)) {
                if let Some((id, true)) = answers.next().await? {
                    agree.insert(id);
                }
            }
            Some(index)
        };
        let patience = Duration::from_millis(self.0.config.election_max_ms);
        runtime::timeout(patience, confirmed).await.ok()?
    }

    /// What consensus knows; None when it has ended. openraft's own `with_raft_state` complains in the log
    /// whenever whoever asked has given up, as half of those do who ask for a confirmation.
    async fn raft_state<T: Send + 'static>(
        &self,
        look: impl FnOnce(&RaftState<Types>) -> T + Send + 'static,
    ) -> Option<T> {
        let (found, answer) = oneshot::channel();
        let ask = self.0.raft.external_request(move |state| drop(found.send(look(state))));
        ask.await.ok()?;
        answer.await.ok()
    }

    /// Whether this node knows no later leader than this one.
    async fn follows(&self, leader: LeaderId) -> Option<bool> {
        self.raft_state(move |state| state.vote_ref().leader_id == leader).await
    }

    // ---- sessions ----

    /// Restarts a session's TTL; answers the TTL. Acknowledged only by a node that has just
    /// confirmed that it leads.
    pub async fn keep_alive(&self, session: u64, timeout: Duration) -> Result<u64, Error> {
        match runtime::timeout(timeout.min(MAX_CALL_TIMEOUT), self.0.keep_alives.call(session))
            .await
        {
            Ok(result) => result,
            Err(_) => Err(Error::Timeout { definite: false }),
        }
    }

    /// As [`Node::keep_alive`], for several sessions; answers in their order.
    pub async fn keep_all_alive(
        &self,
        sessions: Vec<u64>,
        timeout: Duration,
    ) -> Vec<Result<u64, Error>> {
        let count = sessions.len();
        let answers = self.0.keep_alives.call_all(sessions);
        match runtime::timeout(timeout.min(MAX_CALL_TIMEOUT), answers).await {
            Ok(answers) => answers,
            Err(_) => vec![Err(Error::Timeout { definite: false }); count],
        }
    }

    async fn run_keep_alives(self) {
        let node = self.clone();
        self.0
            .keep_alives
            .run(move |sessions| {
                let node = node.clone();
                async move { node.renew(sessions).await }
            })
            .await;
    }

    /// Renews sessions here or at the leader.
    async fn renew(&self, sessions: Vec<u64>) -> Vec<Result<u64, Error>> {
        let all = |error: Error| sessions.iter().map(|_| Err(error.clone())).collect();
        match self.leadership() {
            Leadership::Leader { .. } => self.renew_here(&sessions).await,
            Leadership::Follower { leader, address, .. } => {
                let payload = codec::to_bytes(&sessions);
                match self.ask_leader(leader, &address, Method::KeepAlive, payload).await {
                    Some(answer) => {
                        let results: Result<Vec<Result<u64, WireError>>, _> =
                            codec::from_bytes("keep-alive answer", &answer);
                        match results {
                            Ok(results) if results.len() == sessions.len() => results
                                .into_iter()
                                .map(|result| result.map_err(Error::from))
                                .collect(),
                            Ok(_) | Err(_) => all(Error::internal("malformed keep-alive answer")),
                        }
                    }
                    None => all(self.no_leader()),
                }
            }
            Leadership::Unknown => all(self.no_leader()),
        }
    }

    /// Asks the leader, for as long as it is the leader: whoever waits for a dead one would hold up
    /// those that the next one could answer.
    async fn ask_leader(
        &self,
        leader: NodeId,
        address: &str,
        method: Method,
        payload: Bytes,
    ) -> Option<Bytes> {
        let call = self.0.peers.call(leader, address, method, payload, PEER_TIMEOUT);
        let deposed = async {
            while self.leader_id() == Some(leader) {
                runtime::sleep(DEPOSED).await;
            }
        };
        tokio::select! {
            biased;
            answer = runtime::timeout(PEER_TIMEOUT, call) => answer.ok()?.ok(),
            () = deposed => None,
        }
    }

    async fn renew_here(&self, sessions: &[u64]) -> Vec<Result<u64, Error>> {
        let Leadership::Leader { term } = self.leadership() else {
            return sessions.iter().map(|_| Err(self.no_leader())).collect();
        };
        // A leader that was paused finds out here that it was deposed.
        let Ok(index) = self.read_index().await else {
            return sessions.iter().map(|_| Err(self.no_leader())).collect();
        };
        if !self.0.replica.wait_applied(index).await
            || self.leadership() != (Leadership::Leader { term })
        {
            return sessions.iter().map(|_| Err(self.no_leader())).collect();
        }
        self.0.keeper.renew(self, term, sessions)
    }

    // ---- status ----

    /// The leader, unless it is one of the past: consensus itself goes on to name the last leader that
    /// it knew, and a leader itself, when they have lost sight of the others.
    fn present_leader(&self) -> Option<NodeId> {
        self.leader_id().filter(|_| !self.0.out_of_touch.load(Ordering::Relaxed))
    }

    /// True when a leader is known and heard of, and this node has applied something of its term.
    pub fn is_ready(&self) -> bool {
        !self.0.closing.load(Ordering::Relaxed)
            && !self.rebuilds()
            && self.present_leader().is_some()
            && self.0.replica.last_applied().is_some()
    }

    pub fn status(&self) -> Status {
        let metrics = self.0.raft.metrics();
        let metrics = metrics.borrow_watched().clone();
        let index = |log_id: Option<crate::raft::types::LogId>| log_id.map_or(0, |id| id.index);
        let leader = self.present_leader();
        // openraft tells last what it has committed: after a pause of the process the replica may be ahead of it.
        let applied_index = index(self.0.replica.last_applied());
        let (counts, revision) = self.read(|state| (state.counts(), state.revision()));
        let mut errors = Vec::new();
        if let Err(error) = &metrics.running_state {
            errors.push(format!("consensus stopped: {error}"));
        }
        if leader.is_none() {
            errors.push("no leader".to_owned());
        }
        match self.0.low_disk.load(Ordering::Relaxed) {
            u64::MAX => {}
            free => {
                errors.push(format!("NOSPACE: {free} bytes free; takes no writes as the leader"))
            }
        }
        let lead = Duration::from_millis(self.now_ms().saturating_sub(self.0.clock.wall_ms()));
        if lead >= CLOCK_LEAD {
            let seconds = lead.as_secs();
            errors.push(format!("this machine's clock is {seconds} s behind the cluster's time"));
        }
        if self.rebuilds() {
            errors.push("CORRUPT: this node starts anew and fetches its state".to_owned());
        }
        let alarms = self.0.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let corrupt_replicas = alarms.len() as u64;
        // Nodes that differ from each other share one sentence.
        errors.extend(alarms.into_values().collect::<BTreeSet<String>>());
        errors.extend(self.0.health.complaint());
        if !metrics.membership_config.nodes().any(|(id, _)| *id == self.id()) {
            errors.push("not a member: waiting to be added, or removed".to_owned());
        }
        let voter = metrics.membership_config.voter_ids().any(|id| id == self.id());
        Status {
            id: self.id(),
            leader,
            leader_client_address: leader
                .and_then(|id| self.client_address(id))
                .unwrap_or_default(),
            is_leader: leader == Some(self.id()),
            learner: !voter,
            term: metrics.current_term,
            last_log_index: metrics.last_log_index.unwrap_or(0).max(applied_index),
            committed_index: index(metrics.local_committed).max(applied_index),
            applied_index,
            snapshot_index: index(metrics.snapshot),
            purged_index: index(metrics.purged),
            revision,
            log_bytes: self.0.disk.log_bytes(),
            image_bytes: self.0.disk.image_bytes(),
            snapshot_bytes: self.0.disk.snapshot_bytes(),
            instances: counts.instances,
            services: counts.services,
            sessions: counts.sessions,
            watchers: self.0.replica.hub.watchers(),
            proposals_pending: self.0.proposer.pending(),
            proposals_failed: self.0.proposer.failed(),
            proposals_proposed: self.0.proposer.proposed(),
            commands_applied: self.0.replica.commands(),
            slow_applies: self.0.replica.slow_applies(),
            leader_changes: self.0.leader_changes.load(Ordering::Relaxed),
            corrupt_replicas,
            health: self.0.health.status(),
            sagas: self.saga_status(),
            errors,
        }
    }

    /// Digest of this node's state, and at which applied index. Nothing is applied while it is made, so that of a large
    /// state it is the image's.
    pub async fn digest(&self) -> Result<(u64, u64, u64), Error> {
        if self.read(|state| state.counts().records()) > DIGEST_IN_MEMORY
            && let Some(image) = self.0.checkpoints.image().await.map_err(Error::internal)?
        {
            return Ok((image.point.index, image.digest, image.records));
        }
        let replica = self.0.replica.clone();
        Ok(runtime::blocking(move || {
            // The machine sets the applied index under the state's write lock.
            let state = replica.state();
            let index = replica.last_applied().map_or(0, |id| id.index);
            let (digest, records) = state.digest();
            (index, digest, records)
        })
        .await)
    }

    /// Digests at the indexes where every node computes one.
    fn digests(&self) -> Vec<Digest> {
        self.0.checkpoints.digests()
    }

    fn set_alarms(&self, alarms: &BTreeMap<NodeId, String>) {
        self.0.alarms.lock().unwrap_or_else(PoisonError::into_inner).clone_from(alarms);
    }

    /// A snapshot file that holds at least what is applied now, for backup.
    pub async fn snapshot(&self) -> Result<SnapshotFile, Error> {
        self.0.checkpoints.snapshot(Freshness::Newest).await.map_err(Error::internal)
    }

    /// Answers one message of a peer.
    async fn answer(&self, method: Method, payload: Bytes) -> Result<Bytes, PeerError> {
        match method {
            Method::Append | Method::Vote | Method::PreVote | Method::TransferLeader => {
                self.0.service.call(method, payload).await
            }
            Method::ReadIndex => {
                let index = match self.leadership() {
                    Leadership::Leader { .. } => self.0.reads.call(()).await.ok(),
                    Leadership::Follower { .. } | Leadership::Unknown => None,
                };
                Ok(codec::to_bytes(&index))
            }
            Method::Confirm => {
                let leader = codec::from_bytes("confirmation", &payload)?;
                Ok(codec::to_bytes(&self.follows(leader).await.unwrap_or(false)))
            }
            Method::KeepAlive => {
                let sessions: Vec<u64> = codec::from_bytes("keep-alives", &payload)?;
                let results: Vec<Result<u64, WireError>> = self
                    .renew_here(&sessions)
                    .await
                    .into_iter()
                    .map(|result| result.map_err(WireError::from))
                    .collect();
                Ok(codec::to_bytes(&results))
            }
            Method::Admin => {
                let admin: Admin = codec::from_bytes("administration", &payload)?;
                // Whoever asked waits no longer.
                let done = runtime::timeout(CLIENT_ADMIN_TIMEOUT, self.administer_here(admin));
                let reply = done.await.unwrap_or(Err(Error::Timeout { definite: false }));
                Ok(codec::to_bytes(&reply.map_err(WireError::from)))
            }
            Method::Digest => Ok(codec::to_bytes(&self.digests())),
            Method::Roll => {
                let from: NodeId = codec::from_bytes("roll", &payload)?;
                Ok(codec::to_bytes(&self.roll_call(from)))
            }
            Method::Rebuild => {
                let mark: Mark = codec::from_bytes("rebuild", &payload)?;
                Ok(codec::to_bytes(&self.rebuild(mark).await))
            }
        }
    }

    fn describe(&self) -> Description {
        Description {
            client_address: self.0.config.client_address.clone(),
            version: self.0.config.version.clone(),
        }
    }

    // ---- loops ----

    /// Makes snapshots, purges the log behind them, watches consensus, the disk and the leadership.
    async fn run_housekeeping(self) {
        let mut known = None;
        let mut snapshot_bytes = 0;
        let mut wait = 0u64;
        let mut touched = Instant::now();
        let silence = Duration::from_millis(2 * self.0.config.election_max_ms);
        loop {
            runtime::sleep(Duration::from_millis(100)).await;
            // A panic inside consensus leaves this unset; it ends the process by its own way.
            let running = self.0.raft.metrics().borrow_watched().running_state.clone();
            if let Err(fatal) = running {
                if !self.0.stopping.load(Ordering::Relaxed) {
                    (self.0.on_fatal.0)(&fatal.to_string());
                }
                return;
            }
            touched = touched.max(self.last_touch().await.unwrap_or(touched));
            let leader = self.leader_id();
            if leader.is_some() && leader != known {
                touched = Instant::now();
                self.0.leader_changes.fetch_add(1, Ordering::Relaxed);
                tracing::info!(leader, node = self.id(), "leader");
                known = leader;
            }
            self.0.out_of_touch.store(touched.elapsed() > silence, Ordering::Relaxed);
            wait += 1;
            if wait.is_multiple_of(5) {
                self.housekeep(&mut snapshot_bytes).await;
                self.look_at_disk();
            }
        }
    }

    /// When this node last heard of its leader or, if it leads, of a quorum.
    async fn last_touch(&self) -> Option<Instant> {
        match self.leadership() {
            Leadership::Leader { .. } => {
                let metrics = self.0.raft.metrics();
                let metrics = metrics.borrow_watched();
                if metrics.membership_config.voter_ids().count() == 1 {
                    return Some(Instant::now());
                }
                metrics.last_quorum_acked.map(|at| at.0)
            }
            Leadership::Follower { .. } => {
                let heard = self.raft_state(|state| state.vote_last_modified());
                heard.await.flatten().map(|at| at.0)
            }
            Leadership::Unknown => None,
        }
    }

    async fn housekeep(&self, snapshot_bytes: &mut u64) {
        let (applied, snapshot, purged) = {
            let metrics = self.0.raft.metrics();
            let metrics = metrics.borrow_watched();
            let next = |id: &Option<crate::raft::types::LogId>| id.map_or(0, |id| id.index + 1);
            (next(&metrics.last_applied), next(&metrics.snapshot), next(&metrics.purged))
        };
        let appended = self.0.log.appended_bytes();
        let by_entries = applied.saturating_sub(snapshot) >= self.0.config.snapshot_entries;
        // What was in the log before this start counts as well, until the first snapshot after it.
        let unknown = *snapshot_bytes == 0 && self.0.disk.log_bytes() >= 2 * SNAPSHOT_LOG_BYTES;
        let by_bytes = unknown || appended.saturating_sub(*snapshot_bytes) >= SNAPSHOT_LOG_BYTES;
        if applied > snapshot && (by_entries || by_bytes) {
            *snapshot_bytes = appended.max(1);
            if let Err(error) = self.0.raft.trigger().snapshot().await {
                tracing::warn!(%error, "no snapshot could be asked for");
            }
        }
        // Followers that lag a little are served from the log: some of it stays behind the snapshot.
        let keep = self.0.config.snapshot_keep_entries;
        let by_entries = snapshot.saturating_sub(keep);
        let by_bytes = self.0.log.index_before(SNAPSHOT_LOG_BYTES / 2).min(snapshot);
        let upto = by_entries.max(by_bytes);
        // openraft purges nothing that a follower is to get from the log, however far behind it is.
        let far = LAG_SNAPSHOTS * self.0.config.snapshot_entries;
        let by_entries = snapshot.saturating_sub(far);
        let by_bytes = self.0.log.index_before(LAG_SNAPSHOTS * SNAPSHOT_LOG_BYTES);
        let horizon = if self.is_low_on_disk() { upto } else { by_entries.max(by_bytes).min(upto) };
        self.0.horizon.raise(horizon.max(purged));
        if upto > purged
            && let Err(error) = self.0.raft.trigger().purge_log(upto - 1).await
        {
            tracing::warn!(%error, "the log could not be purged");
        }
    }

    fn is_low_on_disk(&self) -> bool {
        self.0.low_disk.load(Ordering::Relaxed) != u64::MAX
    }

    /// Low on space the node takes no more writes, before the disk is full; it recovers by itself.
    fn look_at_disk(&self) {
        let Ok(free) = self.0.disk.free_bytes() else { return };
        let low = self.is_low_on_disk();
        if free < DISK_LOW_BYTES {
            if !low {
                tracing::warn!(free, "low on disk space: no more writes are taken");
            }
            self.0.low_disk.store(free, Ordering::Relaxed);
        } else if low && free >= DISK_OK_BYTES {
            tracing::info!(free, "disk space is back: writes are taken again");
            self.0.low_disk.store(u64::MAX, Ordering::Relaxed);
        }
    }

    /// Learns where clients reach the other members.
    async fn run_directory(self) {
        let mut round = 0u64;
        loop {
            let members: Vec<(NodeId, String)> = {
                let metrics = self.0.raft.server_metrics();
                let metrics = metrics.borrow_watched();
                let members = metrics.membership_config.nodes();
                members
                    .filter(|(id, _)| **id != self.id())
                    .map(|(id, member)| (*id, member.peer_address.clone()))
                    .collect()
            };
            for (id, address) in members {
                // Known addresses are asked for again now and then: a node may come back elsewhere.
                if self.client_address(id).is_some() && !round.is_multiple_of(60) {
                    continue;
                }
                let payload = codec::to_bytes(&Admin::Describe);
                let call = self.0.peers.call(id, &address, Method::Admin, payload, PEER_TIMEOUT);
                let Ok(Ok(answer)) = runtime::timeout(PEER_TIMEOUT, call).await else { continue };
                let reply: Result<Result<AdminReply, WireError>, _> =
                    codec::from_bytes("description", &answer);
                if let Ok(Ok(AdminReply::Description(description))) = reply {
                    let mut directory =
                        self.0.directory.lock().unwrap_or_else(PoisonError::into_inner);
                    directory.insert(id, description.client_address);
                }
            }
            round += 1;
            runtime::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Hands leadership over, lets running writes finish and stops consensus. The caller stops the
    /// checkpointer and the log afterwards.
    pub async fn shutdown(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
        self.hand_over(Duration::from_secs(2)).await;
        self.0.closing.store(true, Ordering::Relaxed);
        let drained = async {
            while self.0.proposer.pending() > 0 {
                runtime::sleep(AGAIN).await;
            }
        };
        let _ = runtime::timeout(Duration::from_secs(1), drained).await;
        self.0.proposer.close();
        if let Err(error) = self.0.raft.shutdown().await {
            tracing::warn!(%error, "consensus did not stop cleanly");
        }
    }
}

/// What is kept of what somebody said.
pub fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES));
    text
}

impl PeerHandler for Node {
    fn call(&self, method: Method, payload: Bytes) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        let node = self.clone();
        async move { node.answer(method, payload).await }.boxed()
    }

    fn stream(
        &self,
        channel: Channel,
        input: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, PeerError>> {
        match channel {
            Channel::Append => self.0.service.append(input).boxed(),
            Channel::Forward => proposer::serve(self.clone(), input).map(Ok).boxed(),
            Channel::Fetch => rebuild::serve(self.clone(), input),
        }
    }

    fn snapshot(
        &self,
        head: Bytes,
        chunks: BoxStream<'static, Result<Bytes, PeerError>>,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        let node = self.clone();
        async move {
            let disk = node.0.disk.snapshots();
            node.0.service.snapshot(head, chunks, disk, &node.0.config.cluster_id).await
        }
        .boxed()
    }
}
