//! What the log, the image and snapshot files take: `cargo bench --bench store`, on the disk of the directory for
//! temporary files (`TMPDIR`), with every sync that a node waits for. Under `cargo test --benches` each runs
//! once, in a small size.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use quorate::limits::WAL_SEGMENT_BYTES;
use quorate::state::{
    Admin, Command, Endpoint, Entry, Health, InstanceName, Op, Registration, State,
};
use quorate::store::checkpoint::{Checkpointer, Settings};
use quorate::store::disk::RealDisk;
use quorate::store::image::Point;
use quorate::store::inbox::Inbox;
use quorate::store::pending::AppliedEntry;
use quorate::store::recovery::Recovery;
use quorate::store::sled_store::SledStore;
use quorate::store::wal::{WalCore, WalOptions, Write};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    divan::main();
}

/// `cargo bench` says so; `cargo test` does not.
fn records() -> u64 {
    if std::env::args().any(|argument| argument == "--bench") { 100_000 } else { 2_000 }
}

/// One group of entries as a leader writes it: staged, then synced once.
#[divan::bench(args = [1, 16, 256, 4_096])]
fn log_append_and_sync(bencher: Bencher<'_, '_>, entries: u64) {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(dir.path()).unwrap());
    let options = WalOptions { segment_bytes: WAL_SEGMENT_BYTES, create: true, log_id: 1 };
    let (mut log, _) = WalCore::open(disk, options).unwrap();
    let payload = Bytes::from(vec![7; 300]);
    let mut index = 0;
    let bencher = bencher.counter(ItemsCount::new(entries));
    bencher.counter(BytesCount::new(300 * entries)).bench_local(|| {
        for _ in 0..entries {
            index += 1;
            log.stage(&Write::Entry { index, payload: payload.clone() }).unwrap();
        }
        log.commit().unwrap();
        // What a node's own thread does beside it: the next segment.
        if let Some(job) = log.job() {
            job.run();
        }
    });
}

fn start(dir: &Path) -> (Checkpointer, Recovery, Arc<Inbox>) {
    let disk = Arc::new(RealDisk::open(dir.join("snapshots")).unwrap());
    let settings = Settings { cluster_id: "bench".into(), digest_every: 0 };
    let inbox = Arc::new(Inbox::new(|| {}));
    let store = Box::new(SledStore::new(dir));
    let (core, recovery) = Checkpointer::recover(settings, store, disk, inbox.clone()).unwrap();
    (core, recovery, inbox)
}

/// A state, and what its changes look like to the image.
#[derive(Default)]
struct World {
    state: State,
    index: u64,
}

impl World {
    /// Registers each `step`th instance, 500 in each entry; `weight` makes each another one.
    fn register(&mut self, weight: u32, step: u64) -> Vec<AppliedEntry> {
        let numbers = (0..records()).step_by(step as usize);
        let commands: Vec<Vec<u8>> = numbers.map(|i| register(i, weight)).collect();
        let entries = commands.chunks(500).map(|chunk| {
            self.index += 1;
            let commands: Vec<&[u8]> = chunk.iter().map(Vec::as_slice).collect();
            let log_bytes = commands.iter().map(|bytes| bytes.len() as u64).sum();
            let applied = self.state.apply(&Entry { term: 1, at_ms: self.index, commands });
            let (log_id, membership) =
                (format!("{}", self.index).into(), "members".to_owned().into());
            let point = Point { index: self.index, log_id, membership };
            AppliedEntry { point, events: applied.events, meta: applied.meta, log_bytes }
        });
        entries.collect()
    }
}

fn register(number: u64, weight: u32) -> Vec<u8> {
    let id = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let op = Op::Register(Box::new(Registration {
        name: InstanceName {
            namespace: "default".into(),
            service: format!("service-{}", number % 500),
            id: format!("instance-{id:016x}"),
        },
        endpoints: vec![Endpoint { name: "grpc".into(), host: "10.20.30.40".into(), port: 8080 }]
            .into(),
        weight,
        zone: "zone-a".into(),
        metadata: vec![("version".into(), "1.2.3".into()), ("team".into(), "x".repeat(40))].into(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: "registered".into(),
        hash_key: String::new(),
        session: None,
    }));
    Command { request: None, op }.encode().unwrap()
}

fn absorb(inbox: &Inbox, entries: Vec<AppliedEntry>) {
    if let Some(last) = entries.last() {
        inbox.set_synced(Some(last.point.index));
    }
    for entry in entries {
        inbox.absorb(entry);
    }
}

/// All records changed, or one in `step` of them, and written to the image.
#[divan::bench(args = [1, 101], sample_count = 10, sample_size = 1)]
fn image_checkpoint(bencher: Bencher<'_, '_>, step: u64) {
    let dir = tempfile::tempdir().unwrap();
    let (mut core, _, inbox) = start(dir.path());
    let (mut world, mut weight) = (World::default(), 0);
    absorb(&inbox, world.register(weight, 1));
    core.checkpoint().unwrap();
    let bencher = bencher.counter(ItemsCount::new(records().div_ceil(step)));
    let core = std::cell::RefCell::new(&mut core);
    bencher
        .with_inputs(|| {
            weight += 1;
            absorb(&inbox, world.register(weight, step));
        })
        .bench_local_values(|()| core.borrow_mut().checkpoint().unwrap());
}

/// A snapshot file of all records, read back, of an image that is up to date.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn snapshot_write(bencher: Bencher<'_, '_>) {
    let dir = tempfile::tempdir().unwrap();
    let (mut core, _, inbox) = start(dir.path());
    let mut world = World::default();
    absorb(&inbox, world.register(1, 1));
    core.checkpoint().unwrap();
    let core = std::cell::RefCell::new(core);
    let bencher = bencher.counter(ItemsCount::new(records()));
    bencher
        .with_inputs(|| {
            // A snapshot of what has not changed is the one that is there.
            world.index += 1;
            let applied = world.state.apply(&Entry {
                term: 1,
                at_ms: world.index,
                commands: vec![&register(0, world.index as u32)],
            });
            let point = Point {
                index: world.index,
                log_id: format!("{}", world.index).into(),
                membership: "members".to_owned().into(),
            };
            let (events, meta) = (applied.events, applied.meta);
            absorb(&inbox, vec![AppliedEntry { point, events, meta, log_bytes: 300 }]);
            core.borrow_mut().checkpoint().unwrap();
        })
        .bench_local_values(|()| core.borrow_mut().snapshot().unwrap());
}

fn filled() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (mut core, _, inbox) = start(dir.path());
    absorb(&inbox, World::default().register(1, 1));
    core.checkpoint().unwrap();
    core.snapshot().unwrap();
    dir
}

/// The start of a node: open, verify and load the image, check the snapshot.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn start_from_the_image(bencher: Bencher<'_, '_>) {
    let dir = filled();
    bencher.counter(ItemsCount::new(records())).bench_local(|| start(dir.path()));
}

/// The start of a node whose image is lost: load the snapshot and fill an image from it.
#[divan::bench(sample_count = 5, sample_size = 1)]
fn start_from_a_snapshot(bencher: Bencher<'_, '_>) {
    let dir = filled();
    bencher
        .counter(ItemsCount::new(records()))
        .with_inputs(|| std::fs::remove_dir_all(dir.path().join("image")).unwrap())
        .bench_local_values(|()| start(dir.path()));
}
