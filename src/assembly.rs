//! Puts a node together from its configuration: data directory, log, image and snapshots, peers. The
//! only place, beside the listeners, where production's files, threads and clocks are named.

mod rebuild;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock;
use crate::limits::WAL_SEGMENT_BYTES;
use crate::node::{self, Node, OnFatal, Parts, Storage};
use crate::options::{Config, Durability};
use crate::participants::RemoteParticipants;
use crate::prober::SocketProber;
use crate::raft::log::Log;
use crate::raft::machine::{Replica, Silent, StoreCheckpoints, raft_meta};
use crate::raft::network::PeerError;
use crate::raft::transport::{GrpcPeers, Identity, hello};
use crate::raft::types::{Member, StoredMembership};
use crate::runtime::{self, Instant};
use crate::store::checkpoint::{self, Settings};
use crate::store::data_dir::{self, DataDir, StoreId};
use crate::store::disk::{Disk, File, RealDisk};
use crate::store::driver::{CheckpointThread, Handle, Pace};
use crate::store::peers::{FilePeers, PeerBook};
use crate::store::rebuild::{self as marks, Mark};
use crate::store::recovery::Recovery;
use crate::store::sled_store::SledStore;
use crate::store::wal::{OpenError, Recovered, Wal, WalCore, WalOptions};
use crate::watch::Hub;
use crate::webhook::HttpWebhooks;

/// How long a joining node looks for the member that it was told to join.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("data directory: {0}")]
    DataDir(#[from] data_dir::Error),
    #[error("the log: {0}")]
    Log(#[from] OpenError),
    #[error("the state on disk: {0}")]
    State(#[from] checkpoint::Error),
    /// The log does not go on where image and snapshots end.
    #[error("the log: {0}")]
    Gap(String),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The cluster knows this node by another data directory.
    #[error(
        "node {id} is known to the cluster with another data directory than {path}; a wiped node \
         must be removed (member remove {id}) and added again under a new id"
    )]
    Wiped { id: u64, path: String },
    #[error("--join {address}: {why}")]
    Join { address: String, why: String },
    #[error("consensus did not start: {0}")]
    Consensus(crate::error::Error),
    #[error("the client for participants in transactions: {0}")]
    Participants(crate::error::Error),
}

impl Error {
    /// 3 = the data directory is refused, 4 = the log is damaged, 1 = what may pass, such as a disk that does not answer.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Log(OpenError::Io { .. }) => 1,
            Error::DataDir(_) | Error::Wiped { .. } | Error::Log(OpenError::Version { .. }) => 3,
            Error::Log(_) | Error::Gap(_) => 4,
            Error::State(_) | Error::Io { .. } | Error::Join { .. } => 1,
            Error::Consensus(_) | Error::Participants(_) => 1,
        }
    }
}

/// How far a start is, for whoever asks meanwhile. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Mutex<String>>);

impl Progress {
    pub fn say(&self, what: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }

    pub fn text(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A running node and what must be stopped after it.
#[derive(Debug)]
pub struct Assembly {
    pub node: Node,
    pub identity: Arc<Identity>,
    /// Whether the node had a log before this start.
    pub initialized: bool,
    wal: Wal,
    checkpoints: CheckpointThread,
    /// Keeps the data directory locked.
    _dir: DataDir,
}

impl Assembly {
    /// Stops the node: hands leadership over, closes the log, writes the image, which then goes as far.
    pub async fn stop(self) {
        self.node.shutdown().await;
        let Assembly { wal, checkpoints, _dir: dir, .. } = self;
        runtime::blocking(move || {
            // Locked for as long as anything can still be written, also when nobody waits for it.
            let _dir = dir;
            wal.shutdown();
            if let Err(error) = checkpoints.shutdown() {
                tracing::warn!(%error, "the last checkpoint failed; the log has everything");
            }
        })
        .await;
    }
}

/// Opens everything, recovers the state and starts the node.
pub async fn assemble(config: &Config, progress: &Progress) -> Result<Assembly, Error> {
    progress.say("starting: reading the disk".to_owned());
    let clock = clock::of_process();
    #[cfg(feature = "failpoints")]
    crate::failpoint::follow();
    let cluster_id = match &config.cluster_id {
        Some(cluster_id) => cluster_id.clone(),
        None => cluster_to_join(config).await?,
    };
    let mut dir = DataDir::open(&config.data_dir, &cluster_id, config.id, clock.wall_ms())?;
    let book = Arc::new(dir.peers()?);

    let log_disk = open_disk(config, "the log's directory", &dir.log())?;
    let snapshots = open_disk(config, "the snapshots' directory", &dir.snapshots())?;
    let options = WalOptions {
        segment_bytes: WAL_SEGMENT_BYTES,
        create: dir.is_new(),
        log_id: rand::random(),
    };
    let (core, recovered) = WalCore::open(log_disk, options)?;
    dir.seal()?;
    if let Some(cut) = &recovered.cut {
        tracing::warn!(?cut, "a torn tail of the log was removed: writes never acknowledged");
    }

    let identity_with = |book: Arc<dyn PeerBook>| {
        Arc::new(Identity {
            cluster_id: cluster_id.clone(),
            node_id: config.id,
            store_id: dir.store_id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            book,
        })
    };
    let first = recovered.first.or(recovered.purged.as_ref().map(|(index, _)| index + 1));
    let started = Instant::now();
    let mut mark = dir.rebuild()?;
    if let Some(applied) = mark.as_ref().and_then(|mark| mark.applied) {
        refuse_shortened(applied, &recovered)?;
    }
    let (checkpoints, recovery) = loop {
        if let Some(mark) = &mark {
            // There is no state yet that would know members whom this node has not met.
            let peers = GrpcPeers::new(identity_with(book.clone()));
            rebuild::run(mark, &dir, &snapshots, &peers, first, progress).await?;
        }
        let (checkpoints, recovery) = recover(config, &cluster_id, &dir, &snapshots)?;
        match recovery.covers(first) {
            Ok(()) => break (checkpoints, recovery),
            Err(why) if mark.is_none() => {
                // Image and snapshots are gone, the log is not: another member's state will do.
                let sources = other_members(config).await;
                if sources.is_empty() {
                    return Err(Error::Gap(why));
                }
                tracing::error!("{why}");
                checkpoints.shutdown()?;
                let lost = Mark { right: None, sources, applied: None };
                marks::write(dir.path(), &lost).map_err(mark_failed(dir.path()))?;
                mark = Some(lost);
            }
            Err(why) => return Err(Error::Gap(why)),
        }
    };
    // Another member's state may be ahead of the log, which goes on behind it below.
    if mark.is_none()
        && let Some(end) = recovery.beyond(recovered.last_index())
    {
        refuse_shortened(end, &recovered)?;
    }
    tracing::info!(origin = ?recovery.origin, took = ?started.elapsed(), "state recovered");

    let wal = Wal::spawn(
        core,
        Box::new(|error| {
            // Nobody knows what the disk holds now: a restart finds out. Never retry an fsync.
            tracing::error!(%error, "the log could not be written; the process ends");
            std::process::abort();
        }),
    );
    let handle = checkpoints.handle();
    let on_synced = {
        let handle = handle.clone();
        Arc::new(move |index| handle.set_synced(index))
    };
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Io { what, source }
    };
    let mut log = Log::new(Arc::new(wal.clone()), &recovered, on_synced).map_err(io("the log"))?;
    let initialized = log.is_initialized();

    let (last, membership) = match &recovery.point {
        Some(point) => {
            let meta = raft_meta(point).map_err(io("the state's membership"))?;
            (meta.last_log_id, meta.last_membership)
        }
        None => (None, StoredMembership::default()),
    };
    if mark.is_some() {
        if let Some(last) = last {
            log.go_on_behind(last).await.map_err(io("the log"))?;
        }
        // Everything is in place.
        marks::remove(dir.path()).map_err(mark_failed(dir.path()))?;
    }
    let hub = Hub::new(recovery.state.revision());
    let replica = Replica::new(recovery.state, hub, last, membership);

    let identity =
        identity_with(Arc::new(KnownPeers { replica: replica.clone(), met: book.clone() }));
    progress.say("starting".to_owned());
    refuse_wiped(config, &identity).await?;

    let joins = config.join.is_some();
    let initial: BTreeMap<u64, Member> = config
        .initial_members
        .iter()
        .filter(|_| !joins)
        .map(|(id, peer_address)| {
            let peer_address = peer_address.clone();
            (*id, Member { peer_address, client_address: String::new() })
        })
        .collect();
    let participants =
        RemoteParticipants::new(config.listen.client).map_err(Error::Participants)?;
    let node_config = node::Config {
        id: config.id,
        cluster_id,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        client_address: config.advertise_client.clone(),
        initial,
        heartbeat_ms: config.timing.heartbeat_ms,
        election_min_ms: config.timing.election_min_ms,
        election_max_ms: config.timing.election_max_ms,
        snapshot_entries: config.snapshot_entries,
        snapshot_keep_entries: config.snapshot_keep_entries,
        webhook_allow: config.webhook_allow.clone(),
        participant_allow: config.participant_allow.clone(),
    };
    let parts = Parts {
        log,
        replica,
        checkpoints: Arc::new(StoreCheckpoints { handle: handle.clone(), disk: snapshots.clone() }),
        peers: Arc::new(GrpcPeers::new(identity.clone())),
        clock,
        observer: Arc::new(Silent),
        disk: Arc::new(NodeDisk {
            data_dir: dir.path().to_owned(),
            snapshots,
            wal: wal.clone(),
            handle,
        }),
        webhooks: Arc::new(HttpWebhooks::default()),
        prober: Arc::new(SocketProber::new(config.health_check_allow.clone())),
        participants: Arc::new(participants),
        rebuilt: mark.is_some_and(|mark| mark.right.is_some()),
        on_fatal: OnFatal(Box::new(|why| consensus_ended(why))),
    };
    let node = Node::start(node_config, parts).await.map_err(Error::Consensus)?;
    Ok(Assembly { node, identity, initialized, wal, checkpoints, _dir: dir })
}

/// Reads back what image and snapshots hold, and starts the thread that writes them from then on.
fn recover(
    config: &Config,
    cluster_id: &str,
    dir: &DataDir,
    snapshots: &Arc<dyn Disk>,
) -> Result<(CheckpointThread, Recovery), Error> {
    let started = Instant::now();
    let (checkpoints, recovery) = CheckpointThread::spawn(
        Settings { cluster_id: cluster_id.to_owned(), digest_every: config.digest_entries },
        Pace::default(),
        Box::new(SledStore::new(dir.path())),
        snapshots.clone(),
        Arc::new(move || started.elapsed()),
        Box::new(|error| {
            // The next start sets the image aside and rebuilds it from snapshot and log.
            tracing::error!(%error, "the image failed; the process ends");
            std::process::abort();
        }),
    )?;
    for sentence in &recovery.report {
        tracing::warn!("{sentence}");
    }
    Ok((checkpoints, recovery))
}

/// The other members that this node was told of: number and peer address.
async fn other_members(config: &Config) -> BTreeMap<u64, String> {
    let mut members: BTreeMap<u64, String> = config.initial_members.iter().cloned().collect();
    if let Some(address) = &config.join
        && let Ok(answer) = hello(None, address).await
        && let Some(identity) = answer.identity
    {
        members.insert(identity.node_id, address.clone());
    }
    members.remove(&config.id);
    members
}

fn mark_failed(data_dir: &Path) -> impl FnOnce(io::Error) -> Error {
    let what = marks::path(data_dir).display().to_string();
    move |source| Error::Io { what, source }
}

/// A node without consensus would listen, answer nobody and look alive. A restart finds out what the
/// disks hold, and whoever supervises the process sees the signal, as when the log fails.
fn consensus_ended(why: &str) -> ! {
    tracing::error!(why, "consensus has stopped; the process ends");
    std::process::abort();
}

/// A log that does not reach what this node had applied.
fn refuse_shortened(applied: u64, recovered: &Recovered) -> Result<(), Error> {
    let last = recovered.last_index();
    if last.is_some_and(|last| last >= applied) {
        return Ok(());
    }
    let ends = last.map_or("is empty".to_owned(), |last| format!("ends at index {last}"));
    Err(Error::Gap(format!(
        "it {ends}, the state was at index {applied}: the log was replaced by an older one; this \
         node must not take part again under its id"
    )))
}

fn open_disk(config: &Config, what: &str, path: &std::path::Path) -> Result<Arc<dyn Disk>, Error> {
    let disk = RealDisk::open(path)
        .map_err(|source| Error::Io { what: format!("{what} {}", path.display()), source })?;
    Ok(match config.durability {
        Durability::Fdatasync => Arc::new(disk),
        Durability::None => {
            tracing::warn!(path = %path.display(), "DURABILITY IS OFF: a crash loses writes");
            Arc::new(Unsynced(disk))
        }
    })
}

/// The cluster of the member that this node was told to join. A node that has joined before knows it, and
/// needs that member no more; should it answer all the same, it must be of the same cluster.
async fn cluster_to_join(config: &Config) -> Result<String, Error> {
    let address = config.join.clone().unwrap_or_default();
    let known = data_dir::cluster_of(&config.data_dir);
    let give_up = Instant::now() + JOIN_TIMEOUT;
    loop {
        match (hello(None, &address).await, &known) {
            (Ok(answer), _) => {
                return Ok(answer.identity.map(|identity| identity.cluster_id).unwrap_or_default());
            }
            (Err(_), Some(known)) => return Ok(known.clone()),
            (Err(error), None) if Instant::now() >= give_up => {
                return Err(Error::Join { address, why: error.to_string() });
            }
            (Err(error), None) => {
                tracing::info!(%error, address, "waiting for the member to join");
                runtime::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

/// A node that lost its data directory must not vote under its old id: it may have voted before. The
/// others know it by the directory it had.
async fn refuse_wiped(config: &Config, identity: &Identity) -> Result<(), Error> {
    let own = identity.store_id.to_string();
    let others = config.initial_members.iter().filter(|(id, _)| *id != config.id);
    let addresses = others.map(|(_, address)| address).chain(&config.join);
    for address in addresses {
        match hello(Some(identity), address).await {
            Ok(answer) if !answer.known_store_id.is_empty() && answer.known_store_id != own => {
                let path = config.data_dir.display().to_string();
                return Err(Error::Wiped { id: config.id, path });
            }
            Ok(_) => {}
            // It may not be up yet; every later message is checked as well.
            Err(PeerError::Unreachable(_) | PeerError::NoAnswer(_) | PeerError::Refused(_)) => {}
        }
    }
    Ok(())
}

/// The data directories of the other members: as this node met them, or, for those that it has not met
/// yet, as the cluster has noted them.
#[derive(Debug)]
struct KnownPeers {
    replica: Arc<Replica>,
    met: Arc<FilePeers>,
}

impl PeerBook for KnownPeers {
    /// The own book first: the state's lock is not taken for a peer that is known.
    fn known_store(&self, node: u64) -> Option<StoreId> {
        self.met.known_store(node).or_else(|| {
            let noted = self.replica.state().member(node)?.store.map(StoreId)?;
            // As good as met; when it cannot be written down it is looked up again.
            Some(self.met.remember(node, noted).unwrap_or(noted))
        })
    }

    fn remember(&self, node: u64, store: StoreId) -> io::Result<StoreId> {
        self.met.remember(node, self.known_store(node).unwrap_or(store))
    }
}

/// What the node asks of its disk.
#[derive(Debug)]
struct NodeDisk {
    data_dir: PathBuf,
    snapshots: Arc<dyn Disk>,
    wal: Wal,
    handle: Handle,
}

impl Storage for NodeDisk {
    fn snapshots(&self) -> Arc<dyn Disk> {
        self.snapshots.clone()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.snapshots.free_bytes()
    }

    fn log_bytes(&self) -> u64 {
        self.wal.stats().bytes_on_disk
    }

    fn image_bytes(&self) -> u64 {
        self.handle.image_bytes()
    }

    fn snapshot_bytes(&self) -> u64 {
        self.handle.newest_snapshot().map_or(0, |snapshot| snapshot.bytes)
    }

    fn mark_rebuild(&self, mark: &Mark) -> io::Result<()> {
        marks::write(&self.data_dir, mark)
    }
}

/// `--unsafe-no-fsync`: a disk whose syncs do nothing.
#[derive(Debug)]
struct Unsynced<D>(D);

#[derive(Debug)]
struct UnsyncedFile(Arc<dyn File>);

impl<D: Disk> Disk for Unsynced<D> {
    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(UnsyncedFile(self.0.open(name)?)))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(UnsyncedFile(self.0.create(name)?)))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        self.0.free_bytes()
    }
}

impl File for UnsyncedFile {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, buf)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    /// Run by the other test, in a process of its own.
    const CHILD: &str = "QUORATE_TEST_CONSENSUS_ENDED";

    #[test]
    fn the_end_of_consensus_ends_the_process_and_says_why() {
        if std::env::var_os(CHILD).is_some() {
            let out = || std::io::stderr();
            tracing::subscriber::set_global_default(
                tracing_subscriber::fmt().with_writer(out).with_ansi(false).finish(),
            )
            .unwrap();
            super::consensus_ended("the disk said no");
        }
        let name = "assembly::tests::the_end_of_consensus_ends_the_process_and_says_why";
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        // SIGABRT
        assert_eq!(child.status.signal(), Some(6), "{child:?}");
        let log = String::from_utf8(child.stderr).unwrap();
        assert!(log.contains("consensus has stopped; the process ends"), "{log}");
        assert!(log.contains("the disk said no"), "{log}");
    }
}
