//! openraft's own conformance suite on the real log, machine, image and snapshot files.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use super::codec;
use super::log::Log;
use super::machine::{Checkpoints, Machine, Replica, Silent, SnapshotFile, StoreCheckpoints};
use super::types::{StoredMembership, Types};
use crate::runtime::Instant;
use crate::state::State;
use crate::store::checkpoint::{Digest, Settings};
use crate::store::disk::{Disk, RealDisk};
use crate::store::driver::{CheckpointThread, Freshness, Pace};
use crate::store::image::{ImageMeta, Point};
use crate::store::pending::AppliedEntry;
use crate::store::receiver::Receiver;
use crate::store::sled_store::SledStore;
use crate::store::snapshot::SnapshotMeta;
use crate::store::wal::{Wal, WalCore, WalOptions};
use crate::watch::Hub;

struct Builder;

/// The real checkpointer, and what the suite does to it that a cluster never does: it wants a
/// snapshot of a state to which nothing was applied, and installs a file that is still on the disk of
/// the node that made it, which production ships first.
#[derive(Debug)]
struct SuiteCheckpoints(StoreCheckpoints);

impl Checkpoints for SuiteCheckpoints {
    fn absorb(&self, entry: AppliedEntry) {
        self.0.absorb(entry);
    }

    fn snapshot(&self, freshness: Freshness) -> BoxFuture<'static, io::Result<SnapshotFile>> {
        let (made, disk) = (self.0.snapshot(freshness), self.0.disk.clone());
        async move {
            match made.await {
                Err(error) if error.to_string().contains("nothing has been applied") => {
                    let membership = codec::to_bytes(&StoredMembership::default());
                    let point = Point { index: 0, log_id: Bytes::new(), membership };
                    let meta = SnapshotMeta {
                        name: String::new(),
                        cluster_id: "test".to_owned(),
                        point,
                        revision: 0,
                        now_ms: 0,
                        records: 0,
                        digest: 0,
                        bytes: 0,
                    };
                    Ok(SnapshotFile { disk, meta })
                }
                made => made,
            }
        }
        .boxed()
    }

    fn current(&self) -> Option<SnapshotFile> {
        self.0.current()
    }

    fn image(&self) -> BoxFuture<'static, io::Result<Option<ImageMeta>>> {
        self.0.image()
    }

    fn digests(&self) -> Vec<Digest> {
        self.0.digests()
    }

    fn install(&self, file: SnapshotFile) -> BoxFuture<'static, io::Result<State>> {
        let mut shipped = Receiver::begin(self.0.disk.clone(), "test", file.meta.bytes).unwrap();
        let mut bytes = vec![0; usize::try_from(file.meta.bytes).unwrap()];
        file.disk.open(&file.meta.name).unwrap().read_at(0, &mut bytes).unwrap();
        shipped.chunk(0, &bytes).unwrap();
        let meta = shipped.finish().unwrap();
        self.0.install(SnapshotFile { disk: self.0.disk.clone(), meta })
    }
}

/// What must outlive the stores of one test.
#[allow(dead_code)]
struct Guard {
    directory: tempfile::TempDir,
    checkpoints: CheckpointThread,
}

impl StoreBuilder<Types, Log, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, Log, Machine), StorageError<Types>> {
        let directory = tempfile::tempdir().unwrap();
        let log_disk = Arc::new(RealDisk::open(directory.path().join("log")).unwrap());
        let options = WalOptions { segment_bytes: 1024 * 1024, create: true, log_id: 1 };
        let (core, recovered) = WalCore::open(log_disk, options).unwrap();
        let wal = Wal::spawn(core, Box::new(|error| panic!("{error}")));
        let snapshots: Arc<dyn Disk> =
            Arc::new(RealDisk::open(directory.path().join("snapshots")).unwrap());
        let started = Instant::now();
        let (checkpoints, recovery) = CheckpointThread::spawn(
            Settings { cluster_id: "test".to_owned(), digest_every: 0 },
            Pace { interval: Duration::from_secs(3600), log_bytes: u64::MAX },
            Box::new(SledStore::new(directory.path())),
            snapshots.clone(),
            Arc::new(move || started.elapsed()),
            Box::new(|error| panic!("{error}")),
        )
        .unwrap();
        let handle = checkpoints.handle();
        // The suite applies entries that it never appends: as if all of them were durable.
        handle.set_synced(Some(u64::MAX - 1));
        let log = Log::new(Arc::new(wal), &recovered, Arc::new(|_| {})).unwrap();
        let hub = Hub::new(recovery.state.revision());
        let replica = Replica::new(recovery.state, hub, None, StoredMembership::default());
        let checkpoints_of_store = SuiteCheckpoints(StoreCheckpoints { handle, disk: snapshots });
        let machine = Machine::new(replica, Arc::new(checkpoints_of_store), Arc::new(Silent));
        Ok((Guard { directory, checkpoints }, log, machine))
    }
}

#[tokio::test]
async fn openraft_conformance_suite() {
    Suite::test_all(Builder).await.unwrap();
}

/// A log on real files, written by openraft's own storage calls, closed and opened again.
mod behind {
    use std::path::Path;

    use openraft::storage::{IOFlushed, RaftLogReader as _, RaftLogStorage as _};

    use std::sync::Mutex;

    use super::*;
    use crate::raft::log::{Done, Journal};
    use crate::raft::types::{Entry, LeaderId, LogId, Payload};
    use crate::store::wal::{WalReader, Write};

    fn id(term: u64, index: u64) -> LogId {
        LogId { leader_id: LeaderId { term, node_id: 1 }, index }
    }

    fn open(directory: &Path, create: bool) -> (Log, Wal) {
        let disk = Arc::new(RealDisk::open(directory).unwrap());
        let options = WalOptions { segment_bytes: 1024 * 1024, create, log_id: 1 };
        let (core, recovered) = WalCore::open(disk, options).unwrap();
        let wal = Wal::spawn(core, Box::new(|error| panic!("{error}")));
        (Log::new(Arc::new(wal.clone()), &recovered, Arc::new(|_| {})).unwrap(), wal)
    }

    /// Terms of the entries from index 0 on; what the log holds after a state at `at` came, in this
    /// life and in the next one.
    async fn check(terms: &[u64], purged: Option<LogId>, at: LogId, expected: &[LogId]) {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, wal) = open(directory.path(), true);
        let entries = (0..)
            .zip(terms)
            .map(|(index, term)| Entry { log_id: id(*term, index), payload: Payload::Blank });
        log.append(entries, IOFlushed::noop()).await.unwrap();
        if let Some(purged) = purged {
            log.purge(purged).await.unwrap();
        }
        log.go_on_behind(at).await.unwrap();
        for life in 0..2 {
            let state = log.get_log_state().await.unwrap();
            let held: Vec<LogId> =
                log.try_get_log_entries(..).await.unwrap().iter().map(|e| e.log_id).collect();
            assert_eq!(held, expected, "life {life} behind {at}");
            assert_eq!(state.last_log_id, Some(expected.last().copied().unwrap_or(at).max(at)));
            if life == 0 {
                wal.shutdown();
                (log, _) = open(directory.path(), false);
            }
        }
    }

    /// A stream of the log that is under way asks for what is being purged: nothing is no error, which would
    /// end the node.
    #[tokio::test]
    async fn what_is_purged_is_not_replicated() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, wal) = open(directory.path(), true);
        let entries = (0..9).map(|index| Entry { log_id: id(1, index), payload: Payload::Blank });
        log.append(entries, IOFlushed::noop()).await.unwrap();
        log.purge(id(1, 4)).await.unwrap();
        for start in [0, 4] {
            assert_eq!(log.limited_get_log_entries(start, 7).await.unwrap(), []);
        }
        let rest = log.limited_get_log_entries(5, 7).await.unwrap();
        assert_eq!(rest.iter().map(|entry| entry.log_id.index).collect::<Vec<_>>(), [5, 6]);
        wal.shutdown();
    }

    #[tokio::test]
    async fn a_log_goes_on_behind_a_state_from_elsewhere() {
        let own = [id(1, 0), id(1, 1), id(2, 2), id(2, 3)];
        // It holds the same: nothing goes, least of all what follows.
        check(&[1, 1, 2, 2], None, id(2, 2), &own).await;
        check(&[1, 1, 2, 2], None, id(2, 3), &own).await;
        check(&[1, 1, 2, 2], Some(id(1, 1)), id(2, 2), &own[2..]).await;
        // What was purged was committed, and so the same.
        check(&[1, 1, 2, 2], Some(id(2, 2)), id(2, 2), &own[3..]).await;
        // The state is newer.
        check(&[1, 1, 2, 2], None, id(2, 9), &[]).await;
        // Entries that were never committed are in its place: they go, and what follows them.
        check(&[1, 1, 2, 2], None, id(3, 2), &[]).await;
        check(&[1, 1, 2, 2], Some(id(1, 1)), id(3, 2), &[]).await;
        check(&[2, 2], None, id(3, 0), &[]).await;
        // Also when their term is the greater one.
        check(&[1, 5, 5, 5], None, id(3, 2), &[]).await;
        check(&[1, 5], None, id(3, 4), &[]).await;
    }

    /// Writes down what the log is told.
    #[derive(Debug)]
    struct Witness(Wal, Mutex<Vec<Write>>);

    impl Journal for Witness {
        fn submit(&self, writes: Vec<Write>, done: Done) {
            self.1.lock().unwrap().extend(writes.clone());
            self.0.submit(writes, done);
        }

        fn reader(&self) -> WalReader {
            self.0.reader()
        }
    }

    /// A crash may come between any two steps: none of them takes an entry that may be committed
    /// before the purge, which a later start takes as the least that a state must hold.
    #[tokio::test]
    async fn the_steps_lose_nothing_committed() {
        for (at, truncated) in [(id(3, 2), Some(Some(1))), (id(3, 0), Some(None)), (id(3, 9), None)]
        {
            let directory = tempfile::tempdir().unwrap();
            let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
            let options = WalOptions { segment_bytes: 1024 * 1024, create: true, log_id: 1 };
            let (core, recovered) = WalCore::open(disk, options).unwrap();
            let wal = Wal::spawn(core, Box::new(|error| panic!("{error}")));
            let witness = Arc::new(Witness(wal, Mutex::default()));
            let mut log = Log::new(witness.clone(), &recovered, Arc::new(|_| {})).unwrap();
            let entries = [id(1, 0), id(1, 1), id(2, 2), id(2, 3)];
            let blank = |log_id| Entry { log_id, payload: Payload::Blank };
            log.append(entries.map(blank), IOFlushed::noop()).await.unwrap();
            witness.1.lock().unwrap().clear();
            log.go_on_behind(at).await.unwrap();
            let purge = Write::Purged { index: at.index, log_id: codec::encode_log_id(&at) };
            let truncate = truncated.map(|last| Write::TruncateAfter { last });
            let expected: Vec<Write> = truncate.into_iter().chain([purge]).collect();
            assert_eq!(*witness.1.lock().unwrap(), expected, "{at}");
        }
    }
}
