//! What the checkpointer costs. A small mode runs with the tests; for figures:
//! `RECORDS=100000 cargo test --lib figures -- --nocapture`.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Instant;

use super::checkpoint::{Checkpointer, Settings};
use super::disk::RealDisk;
use super::inbox::Inbox;
use super::pending::AppliedEntry;
use super::recovery::Recovery;
use super::sled_store::SledStore;
use super::testing::{fresh_snapshot, point};
use crate::state::{
    Admin, Command, Endpoint, Entry, Health, InstanceName, Op, Registration, State,
};

fn start(dir: &std::path::Path) -> (Checkpointer, Recovery) {
    let disk = Arc::new(RealDisk::open(dir.join("snapshots")).unwrap());
    let settings = Settings { cluster_id: "production".into(), digest_every: 0 };
    let store = Box::new(SledStore::new(dir));
    Checkpointer::recover(settings, store, disk, Arc::new(Inbox::new(|| {}))).unwrap()
}

/// Registers `count` instances of about 250 bytes, 500 in each entry.
fn register(state: &mut State, first: u64, count: u64, weight: u32) -> Vec<AppliedEntry> {
    let commands: Vec<Vec<u8>> = (0..count)
        .map(|i| {
            let registration = Registration {
                name: InstanceName {
                    namespace: "default".into(),
                    service: format!("service-{}", i % 500),
                    id: format!("instance-{:016x}", i.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                },
                endpoints: vec![Endpoint {
                    name: "grpc".into(),
                    host: "10.20.30.40".into(),
                    port: 8080,
                }]
                .into(),
                weight,
                zone: "zone-a".into(),
                metadata: vec![("version".into(), "1.2.3".into()), ("team".into(), "x".repeat(40))]
                    .into(),
                health: Health::Passing,
                admin: Admin::Enabled,
                reason: "registered".into(),
                hash_key: String::new(),
                session: None,
            };
            let op = Op::Register(Box::new(registration));
            Command { request: None, op }.encode().unwrap()
        })
        .collect();
    (first..)
        .zip(commands.chunks(500))
        .map(|(index, chunk)| {
            let commands: Vec<&[u8]> = chunk.iter().map(Vec::as_slice).collect();
            let log_bytes = commands.iter().map(|bytes| bytes.len() as u64).sum();
            let applied = state.apply(&Entry { term: 1, at_ms: index, commands });
            AppliedEntry {
                point: point(index),
                events: applied.events,
                meta: applied.meta,
                log_bytes,
            }
        })
        .collect()
}

#[test]
fn figures() {
    let count: u64 =
        std::env::var("RECORDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2_000);
    let dir = tempfile::tempdir().unwrap();
    let (mut core, _) = start(dir.path());
    let mut state = State::default();
    let mut next = 0;
    let timed = |what: &str, started: Instant| {
        eprintln!("{count} records: {what}: {:.3} s", started.elapsed().as_secs_f64());
    };
    for (weight, what) in [(1, "insert"), (2, "overwrite"), (3, "overwrite again")] {
        let entries = register(&mut state, next, count, weight);
        next += entries.len() as u64;
        core.inbox().set_synced(Some(next - 1));
        let started = Instant::now();
        for entry in entries {
            core.absorb(entry);
        }
        let took = started.elapsed();
        eprintln!("absorb: {:.0} ns per change", took.as_nanos() as f64 / count as f64);
        let started = Instant::now();
        let meta = core.checkpoint().unwrap().unwrap();
        timed(&format!("{what}: checkpoint"), started);
        assert_eq!((meta.digest, meta.records), state.digest());
    }
    eprintln!("image: {:.1} MB", core.image_bytes() as f64 / 1e6);
    let started = Instant::now();
    let snapshot = fresh_snapshot(&mut core).unwrap();
    timed(&format!("snapshot of {:.1} MB, read back", snapshot.bytes as f64 / 1e6), started);
    drop(core);

    let started = Instant::now();
    let (core, recovery) = start(dir.path());
    timed("open, verify, restore; check the snapshot", started);
    assert_eq!(recovery.state.digest(), state.digest());
    drop(core);

    std::fs::remove_dir_all(dir.path().join("image")).unwrap();
    let started = Instant::now();
    let (core, recovery) = start(dir.path());
    timed("restore from the snapshot, refill the image", started);
    assert_eq!(recovery.state.digest(), state.digest());
    assert_eq!(core.image_meta().unwrap().digest, snapshot.digest);
}
