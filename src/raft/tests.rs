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
use crate::store::driver::{CheckpointThread, Pace};
use crate::store::image::Point;
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

    fn snapshot(&self) -> BoxFuture<'static, io::Result<SnapshotFile>> {
        let (made, disk) = (self.0.snapshot(), self.0.disk.clone());
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
