//! The checkpointer over a memory image and a disk that fails: what it writes, and what a start finds
//! after it was interrupted anywhere.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use super::checkpoint::{Checkpointer, Digest, Error, Settings};
use super::disk::{Disk, RealDisk};
use super::driver::{CheckpointThread, Driver, Freshness, Pace, Turn};
use super::fault::{Crash, FaultDisk, Faults};
use super::image::{self, Image, ImageStore, MemoryStore, Row, verify};
use super::inbox::Inbox;
use super::pending::AppliedEntry;
use super::recovery::{Origin, Recovery};
use super::sled_store::SledStore;
use super::snapshot::{self, Head};
use super::testing::{World, fresh_snapshot, point};
use crate::limits::{
    CHECKPOINT_REQUESTS, CHECKPOINT_WAKE_BYTES, DIGESTS_KEPT, SNAPSHOT_LACKS_BYTES,
};
use crate::state::{Key, Record, State};

const CLUSTER: &str = "production";

/// What outlives a node.
#[derive(Clone)]
struct Machine {
    image: MemoryStore,
    disk: FaultDisk,
    digest_every: u64,
}

impl Machine {
    fn new() -> Machine {
        Machine { image: MemoryStore::default(), disk: FaultDisk::new(), digest_every: 0 }
    }

    fn fork(&self) -> Machine {
        Machine { image: self.image.fork(), disk: self.disk.fork(), ..*self }
    }

    fn try_start(&self, inbox: Inbox) -> Result<(Checkpointer, Recovery), Error> {
        let settings = Settings { cluster_id: CLUSTER.into(), digest_every: self.digest_every };
        let image = Box::new(self.image.clone());
        Checkpointer::recover(settings, image, self.disk.handle(), Arc::new(inbox))
    }

    fn start(&self) -> (Checkpointer, Recovery) {
        self.try_start(Inbox::new(|| {})).unwrap()
    }

    /// Starts, and asserts that nothing was unusual.
    #[track_caller]
    fn start_well(&self) -> (Checkpointer, Recovery) {
        let (core, recovery) = self.start();
        assert_eq!(recovery.report, Vec::<String>::new());
        (core, recovery)
    }
}

/// Applies `count` entries and hands them over; `synced` of them count as synced.
fn feed(core: &Checkpointer, world: &mut World, count: usize) {
    for entry in world.entries(count) {
        core.absorb(entry);
    }
    core.inbox().set_synced(Some(world.index()));
}

fn rows(records: &[(Key, Record)]) -> Vec<Row> {
    records.iter().map(|(key, record)| (key.encode(), record.encode())).collect()
}

/// Puts the snapshot of a past index on a disk, as another member would have sent it.
fn send(world: &World, disk: &FaultDisk, index: u64) -> String {
    let other = FaultDisk::new();
    let meta = match &world.past[&index][0].1 {
        Record::Meta(meta) => *meta,
        other => panic!("{other:?}"),
    };
    let head = Head {
        cluster_id: CLUSTER.into(),
        point: point(index),
        revision: meta.revision,
        now_ms: meta.now_ms,
    };
    let rows = rows(&world.past[&index]).into_iter().map(Ok::<_, Infallible>);
    let name = snapshot::write(&other, &head, rows, None).unwrap().name;
    let bytes = other.contents(&name).unwrap();
    let mut receiver =
        super::receiver::Receiver::begin(disk.handle(), CLUSTER, bytes.len() as u64).unwrap();
    receiver.chunk(0, &bytes).unwrap();
    receiver.finish().unwrap().name
}

/// An image that cannot be opened for want of permission.
#[derive(Debug)]
struct Closed(SledStore);

impl ImageStore for Closed {
    fn open(&mut self) -> Result<Box<dyn Image>, image::Error> {
        self.0.open()?;
        Err(io::Error::from(io::ErrorKind::PermissionDenied).into())
    }

    fn confirm(&mut self) -> io::Result<()> {
        self.0.confirm()
    }

    fn set_aside(&mut self) -> io::Result<String> {
        self.0.set_aside()
    }
}

/// However often: the image is whole, and the log may not go back to its beginning any more.
#[test]
fn what_says_nothing_of_the_image_does_not_have_it_set_aside() {
    let (dir, disk) = (tempfile::tempdir().unwrap(), FaultDisk::new());
    let start = |store: Box<dyn ImageStore>| {
        let settings = Settings { cluster_id: CLUSTER.into(), digest_every: 0 };
        Checkpointer::recover(settings, store, disk.handle(), Arc::new(Inbox::new(|| {})))
    };
    let sled = || SledStore::new(dir.path());
    let (mut core, _) = start(Box::new(sled())).unwrap();
    let mut world = World::new(5);
    feed(&core, &mut world, 30);
    fresh_snapshot(&mut core).unwrap();
    feed(&core, &mut world, 10);
    core.checkpoint().unwrap().unwrap();
    drop(core);
    for _ in 0..4 {
        let error = start(Box::new(Closed(sled()))).unwrap_err();
        assert!(matches!(&error, Error::Image(image::Error::Io(_))), "{error}");
    }
    let (_, recovery) = start(Box::new(sled())).unwrap();
    assert_eq!((recovery.report, recovery.origin), (vec![], Origin::Image));
}

/// Left out, it would leave a gap before the log, as when entries were lost.
#[test]
fn a_snapshot_that_is_needed_and_may_not_be_read_is_waited_for() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(6);
    feed(&core, &mut world, 30);
    fresh_snapshot(&mut core).unwrap();
    drop(core);
    let deny = |deny_reads| machine.disk.set_faults(Faults { deny_reads, ..Faults::default() });
    deny(true);
    // The image goes as far.
    assert_eq!(machine.start().1.origin, Origin::Image);
    machine.image.clone().set_aside().unwrap();
    let error = machine.try_start(Inbox::new(|| {})).unwrap_err();
    assert!(matches!(&error, Error::Snapshot(snapshot::Error::Io { .. })), "{error}");
    deny(false);
    assert!(matches!(machine.start().1.origin, Origin::Snapshot(_)));
}

/// Of the first one only the note is left, for the leader that sent it was followed by one whose snapshot is older.
#[test]
fn an_installation_that_came_to_nothing_does_not_make_the_next_one_suspect() {
    let mut world = World::new(7);
    world.entries(40);
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    drop(machine.disk.create(&snapshot::installing_name(35)).unwrap());
    let name = send(&world, &machine.disk, 30);
    // It ends when the snapshot is in place, before the image and the notes are looked after.
    machine.image.limit_writes(Some(0));
    core.install(&name).unwrap_err();
    machine.image.limit_writes(None);
    drop(core);
    let (_, recovery) = machine.start();
    assert_eq!(recovery.point.as_ref().unwrap().index, 30);
    assert_eq!(recovery.beyond(Some(10)), None);
}

#[test]
fn a_first_start_is_empty_and_the_next_one_finds_what_was_written() {
    let machine = Machine::new();
    let (mut core, recovery) = machine.start_well();
    assert_eq!((recovery.point.clone(), recovery.origin.clone()), (None, Origin::Empty));
    assert!(recovery.covers(None).is_ok() && recovery.covers(Some(0)).is_ok());
    assert!(recovery.covers(Some(1)).is_err());
    assert_eq!(core.checkpoint().unwrap(), None);
    assert!(matches!(fresh_snapshot(&mut core), Err(Error::Nothing)));

    let mut world = World::new(1);
    feed(&core, &mut world, 1);
    // The first entry carries no command: the records of the empty state come with it.
    let meta = core.checkpoint().unwrap().unwrap();
    assert_eq!(meta.point, point(0));
    world.assert_meta(&meta);

    feed(&core, &mut world, 80);
    let meta = core.checkpoint().unwrap().unwrap();
    assert_eq!(meta.point.index, 80);
    world.assert_meta(&meta);
    assert!(core.inbox().settled().is_empty());

    let (_, recovery) = machine.start_well();
    assert_eq!(recovery.origin, Origin::Image);
    world.assert_past(&recovery.state, &recovery.point.clone().unwrap());
    assert!(recovery.covers(Some(81)).is_ok());
    assert!(recovery.covers(Some(82)).unwrap_err().contains("lacks everything from 81"));
}

/// The image is never ahead of the own log.
#[test]
fn nothing_beyond_the_synced_index_is_written() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(2);
    for entry in world.entries(60) {
        core.absorb(entry);
    }
    assert_eq!(core.checkpoint().unwrap(), None, "nothing is synced");
    for synced in [0, 1, 17, 17, 40, 59, 1_000] {
        core.inbox().set_synced(Some(synced));
        let meta = core.checkpoint().unwrap().unwrap();
        assert_eq!(meta.point, point(synced.min(59)));
        world.assert_meta(&meta);
        let (_, recovery) = machine.fork().start_well();
        world.assert_past(&recovery.state, &meta.point);
    }
    // A truncation takes the synced index back.
    core.inbox().set_synced(Some(59));
    for entry in world.entries(5) {
        core.absorb(entry);
    }
    assert_eq!(core.checkpoint().unwrap().unwrap().point.index, 59);
}

#[test]
fn snapshots_are_the_image_and_the_newest_two_stay() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(3);
    for round in 1..=4u64 {
        feed(&core, &mut world, 30);
        let meta = fresh_snapshot(&mut core).unwrap();
        assert_eq!(meta.point.index, round * 30 - 1);
        assert_eq!((meta.revision, meta.now_ms), {
            let meta = world.state.meta();
            (meta.revision, meta.now_ms)
        });
        assert_eq!((meta.digest, meta.records), world.state.digest());
        let read: Result<Vec<Row>, _> =
            snapshot::Reader::open(&machine.disk, &meta.name).unwrap().collect();
        assert_eq!(read.unwrap(), rows(&world.past[&meta.point.index]));
        // Nothing new: the same file.
        let calls = machine.disk.counts().calls;
        assert_eq!(fresh_snapshot(&mut core).unwrap(), meta);
        assert_eq!(machine.disk.counts().calls, calls);
    }
    let kept: Vec<u64> = snapshot::list(&machine.disk).unwrap().iter().map(|(i, _)| *i).collect();
    assert_eq!(kept, [89, 119]);
    assert_eq!(machine.disk.list().unwrap().len(), 2);
    let (_, recovery) = machine.start_well();
    assert_eq!(recovery.snapshot.unwrap().point.index, 119);
}

#[test]
fn an_image_that_lost_its_last_write_is_an_older_state() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(4);
    feed(&core, &mut world, 30);
    core.checkpoint().unwrap();
    feed(&core, &mut world, 30);
    core.checkpoint().unwrap();
    machine.image.lose_last_write();
    let (_, recovery) = machine.start_well();
    world.assert_past(&recovery.state, &point(29));
    assert_eq!(recovery.point.unwrap().index, 29);
}

/// A crash in the middle of a long checkpoint: the state is that of the newest snapshot, or the log from its beginning.
#[test]
fn an_image_that_was_being_written_is_rebuilt() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(6);
    let mut origins = Vec::new();
    for round in 0..3 {
        feed(&core, &mut world, 30);
        core.checkpoint().unwrap();
        let crashed = machine.fork();
        crashed.image.interrupt_last_write();
        let (mut again, recovery) = crashed.start();
        origins.push(recovery.origin.clone());
        let next = recovery.point.as_ref().map_or(0, |at| at.index + 1);
        if let Some(at) = &recovery.point {
            world.assert_past(&recovery.state, at);
        }
        for entry in replay_all(&world, next..=world.index()) {
            again.absorb(entry);
        }
        again.inbox().set_synced(Some(world.index()));
        world.assert_meta(&again.checkpoint().unwrap().unwrap());
        crashed.start_well();
        if round == 0 {
            fresh_snapshot(&mut core).unwrap();
        }
    }
    let snapshot = || Origin::Snapshot(snapshot::file_name(29));
    assert_eq!(origins, [Origin::Empty, snapshot(), snapshot()]);
}

/// Whoever needs it could not be sent another one: nothing was written since.
#[test]
fn a_snapshot_that_has_rotted_is_made_again() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    feed(&core, &mut World::new(5), 50);
    let made = fresh_snapshot(&mut core).unwrap();
    let bytes = machine.disk.contents(&made.name).unwrap();
    machine.disk.flip(&made.name, 400, 1);
    assert_ne!(machine.disk.contents(&made.name).unwrap(), bytes);
    assert_eq!(fresh_snapshot(&mut core).unwrap(), made);
    assert_eq!(machine.disk.contents(&made.name).unwrap(), bytes);
}

#[test]
fn a_damaged_image_is_rebuilt_from_the_newest_snapshot() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(5);
    for _ in 0..2 {
        feed(&core, &mut world, 50);
        fresh_snapshot(&mut core).unwrap();
    }
    feed(&core, &mut world, 50);
    core.checkpoint().unwrap();
    assert!(machine.image.damage(7));

    let copy = machine.fork();
    let (mut core, recovery) = copy.start();
    assert_eq!(recovery.origin, Origin::Snapshot(snapshot::file_name(99)));
    world.assert_past(&recovery.state, &recovery.point.unwrap());
    assert!(recovery.report[0].contains("memory.damaged-1"), "{:?}", recovery.report);
    assert_eq!(copy.image.set_aside_count(), 1);
    let index = world.index();
    for entry in replay(&world, 100..=index) {
        core.absorb(entry);
    }
    core.inbox().set_synced(Some(index));
    world.assert_meta(&core.checkpoint().unwrap().unwrap());
    copy.start_well();

    // The newest snapshot is damaged as well: the one before it is the state.
    let name = snapshot::file_name(99);
    machine.disk.flip(&name, 400, 1);
    let (_, recovery) = machine.start();
    assert_eq!(recovery.origin, Origin::Snapshot(snapshot::file_name(49)));
    assert_eq!(recovery.snapshot.clone().unwrap().point.index, 49);
    world.assert_past(&recovery.state, &point(49));
    assert!(recovery.report.iter().any(|line| line.contains(&name) && line.contains("set aside")));
    assert!(machine.disk.list().unwrap().contains(&format!("{name}.damaged")));
    assert!(recovery.covers(Some(50)).is_ok());
    assert!(recovery.covers(Some(80)).is_err());
    machine.start_well();
}

/// Its bytes are right, and its records cannot be a state.
#[test]
fn an_image_whose_records_contradict_each_other_is_rebuilt() {
    let mut machine = Machine::new();
    let mut world = World::new(5);
    let (mut core, _) = machine.start_well();
    feed(&core, &mut world, 50);
    fresh_snapshot(&mut core).unwrap();
    drop(core);

    let known = world.state.records().find_map(|(_, record)| match record {
        Record::Instance(known) => Some(known),
        _ => None,
    });
    let mut stray = Arc::unwrap_or_clone(known.unwrap());
    stray.namespace = "nowhere".into();
    let key = stray.key().encode();
    let mut changes = std::iter::once((key, Some(Record::Instance(Arc::new(stray)).encode())));
    let mut image = machine.image.open().unwrap();
    image.write(&mut changes, &point(49)).unwrap();
    verify(&*image).unwrap();
    drop(image);

    let (_, recovery) = machine.start();
    assert_eq!(recovery.origin, Origin::Snapshot(snapshot::file_name(49)));
    world.assert_past(&recovery.state, &recovery.point.unwrap());
    assert!(recovery.report[0].contains("contradict each other"), "{:?}", recovery.report);
    machine.start_well();
}

/// A start that is itself interrupted, at any step, while it rebuilds the image.
#[test]
fn a_crash_at_any_step_of_a_start_costs_nothing() {
    let base = Machine::new();
    let (mut core, _) = base.start_well();
    let mut world = World::new(20);
    for _ in 0..2 {
        feed(&core, &mut world, 50);
        fresh_snapshot(&mut core).unwrap();
    }
    drop(send(&world, &base.disk, 70));
    assert!(base.image.damage(3));
    let check = |machine: &Machine, done: bool| {
        for (number, crash) in (0..).zip(Crash::ALL) {
            let machine = machine.fork();
            machine.disk.crash(crash, number);
            let (core, recovery) = machine.start();
            world.assert_past(&recovery.state, &point(99));
            world.assert_meta(&core.image_meta().unwrap());
            assert!(machine.image.set_aside_count() == 1, "{:?}", recovery.report);
            assert!(!done || recovery.origin == Origin::Image);
            assert_eq!(machine.disk.list().unwrap().len(), 2);
            machine.start_well();
        }
    };
    let mut steps = 0;
    for call in 0.. {
        let machine = base.fork();
        let at = machine.disk.counts().calls + call;
        machine.disk.set_faults(Faults { power_off_at: Some(at), ..Faults::default() });
        let done = machine.try_start(Inbox::new(|| {})).is_ok();
        check(&machine, done);
        steps += 1;
        if done {
            break;
        }
    }
    for writes in 0.. {
        let machine = base.fork();
        machine.image.limit_writes(Some(writes));
        let done = machine.try_start(Inbox::new(|| {})).is_ok();
        machine.image.limit_writes(None);
        check(&machine, done);
        steps += 1;
        if done {
            break;
        }
    }
    assert!(steps > 5, "{steps}");
}

/// With the image gone and no snapshot whole, the start says so instead of passing for a new node.
#[test]
fn nothing_whole_is_an_empty_state_that_a_purged_log_does_not_cover() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(6);
    feed(&core, &mut world, 50);
    let name = fresh_snapshot(&mut core).unwrap().name;
    machine.image.damage(0);
    machine.disk.truncate(&name, 100);
    let (_, recovery) = machine.start();
    assert_eq!(recovery.origin, Origin::Empty);
    assert_eq!(recovery.report.len(), 2, "{:?}", recovery.report);
    assert!(recovery.covers(Some(0)).is_ok());
    assert!(recovery.covers(Some(30)).is_err());
}

#[test]
fn a_snapshot_that_cannot_be_read_is_left_for_the_next_start() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(7);
    feed(&core, &mut world, 50);
    let name = fresh_snapshot(&mut core).unwrap().name;
    let reads = machine.disk.counts().reads;
    machine.disk.set_faults(Faults { fail_read: Some(reads), ..Faults::default() });
    let (_, recovery) = machine.start();
    assert_eq!(recovery.origin, Origin::Image);
    assert!(recovery.snapshot.is_none());
    assert!(recovery.report[0].contains("left out"), "{:?}", recovery.report);
    let (_, recovery) = machine.start_well();
    assert_eq!(recovery.snapshot.unwrap().name, name);
}

#[test]
fn a_snapshot_of_another_cluster_is_not_taken() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(8);
    feed(&core, &mut world, 50);
    fresh_snapshot(&mut core).unwrap();
    let settings = Settings { cluster_id: "staging".into(), digest_every: 0 };
    let store = Box::new(MemoryStore::default());
    let inbox = Arc::new(Inbox::new(|| {}));
    let (_, recovery) =
        Checkpointer::recover(settings, store, machine.disk.handle(), inbox).unwrap();
    assert_eq!(recovery.origin, Origin::Empty);
    assert!(recovery.report[0].contains("belongs to cluster \"production\""));
}

/// A node of an earlier release must not throw away what a later one wrote.
#[test]
fn a_snapshot_of_a_later_release_stops_the_start() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(8);
    feed(&core, &mut world, 5);
    let name = fresh_snapshot(&mut core).unwrap().name;
    let mut bytes = machine.disk.contents(&name).unwrap();
    bytes[8] = 2;
    let length = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c(&bytes[..length]);
    bytes[length..length + 4].copy_from_slice(&crc.to_le_bytes());
    machine.disk.open(&name).unwrap().write_at(0, &bytes).unwrap();
    let error = machine.try_start(Inbox::new(|| {})).unwrap_err();
    assert!(error.to_string().contains("format version 2"), "{error}");
    assert_eq!(machine.disk.list().unwrap(), [name]);
}

// ---- installation ----

#[test]
fn an_installed_snapshot_is_the_state() {
    let machine = Machine::new();
    let mut world = World::new(9);
    let (mut core, _) = machine.start_well();
    feed(&core, &mut world, 20);
    fresh_snapshot(&mut core).unwrap();
    // These wait, and are overtaken.
    feed(&core, &mut world, 5);
    let ahead = world.entries(60).last().unwrap().point.index;
    let name = send(&world, &machine.disk, ahead);
    let (meta, state) = core.install(&name).unwrap();
    assert_eq!(meta.name, snapshot::file_name(ahead));
    world.assert_past(&state, &meta.point);
    world.assert_meta(&verify(&*machine.image.clone().open().unwrap()).unwrap());
    assert!(core.inbox().settled().is_empty());
    assert_eq!(core.newest_snapshot().unwrap(), &meta);

    // Back to work, from there.
    let (mut core, recovery) = machine.start_well();
    assert_eq!(recovery.origin, Origin::Image);
    world.assert_past(&recovery.state, &meta.point);
    feed(&core, &mut world, 10);
    world.assert_meta(&core.checkpoint().unwrap().unwrap());

    // What is older than the node's own state is refused and changes nothing.
    let name = send(&world, &machine.disk, 30);
    let error = core.install(&name).unwrap_err();
    assert!(matches!(error, Error::Stale { index: 30, applied: 94, .. }), "{error}");
    world.assert_meta(&core.checkpoint().unwrap().unwrap());
    assert!(!machine.disk.list().unwrap().contains(&name), "nobody removes it later");
    assert!(matches!(core.install("received-1.snap"), Err(Error::Snapshot(_))));

    // So is one whose records make no state, whole as it may be.
    let head = Head { cluster_id: CLUSTER.into(), point: point(500), revision: 1, now_ms: 1 };
    let orphan =
        world.past[&world.index()].iter().find(|(key, _)| matches!(key, Key::Reply { .. }));
    let session = |key: &Key| matches!(key, Key::Session { .. });
    let kept = world.past[&world.index()].iter().filter(|(key, _)| !session(key)).cloned();
    let kept: Vec<_> = kept.collect();
    assert!(orphan.is_some());
    let senseless = rows(&kept).into_iter().map(Ok::<_, Infallible>);
    let name = snapshot::write(&machine.disk, &head, senseless, None).unwrap().name;
    let error = core.install(&name).unwrap_err();
    assert!(error.to_string().contains("contradict"), "{error}");
}

/// Every call to the disk and every write of the image is the last one before a crash; whatever the
/// disk keeps, the next start finds the state of before or the installed one.
#[test]
fn a_crash_at_any_step_of_an_installation_leaves_old_or_new() {
    let base = Machine::new();
    let mut world = World::new(10);
    let (mut core, _) = base.start_well();
    feed(&core, &mut world, 20);
    fresh_snapshot(&mut core).unwrap();
    feed(&core, &mut world, 20);
    fresh_snapshot(&mut core).unwrap();
    feed(&core, &mut world, 3);
    core.checkpoint().unwrap();
    let old = world.index();
    let new = world.entries(60).last().unwrap().point.index;
    let name = send(&world, &base.disk, new);
    drop(core);

    let (mut found_old, mut found_new) = (0, 0);
    // Starting throws received files away, so that a running node is forked instead: its disk is
    // given the fault after the start.
    let received = base.disk.contents(&name).unwrap();
    let receive = |machine: &Machine| {
        let (core, _) = machine.start();
        let mut receiver =
            super::receiver::Receiver::begin(machine.disk.handle(), CLUSTER, received.len() as u64)
                .unwrap();
        receiver.chunk(0, &received).unwrap();
        (core, receiver.finish().unwrap().name)
    };
    let run = |faults: &dyn Fn(u64) -> Faults, writes: Option<u64>| {
        let machine = base.fork();
        let (mut core, name) = receive(&machine);
        machine.disk.set_faults(faults(machine.disk.counts().calls));
        machine.image.limit_writes(writes);
        let done = core.install(&name).is_ok();
        machine.image.limit_writes(None);
        (machine, done)
    };
    let mut check = |machine: &Machine, done: bool| {
        for (crash, seed) in
            Crash::ALL.into_iter().flat_map(|crash| (0..6).map(move |s| (crash, s)))
        {
            let machine = machine.fork();
            machine.disk.crash(crash, seed);
            if seed % 2 == 1 && !done {
                machine.image.lose_last_write();
            }
            {
                // It is sent once more.
                let machine = machine.fork();
                let (mut core, name) = receive(&machine);
                let (meta, _) = core.install(&name).unwrap();
                assert_eq!(meta.point.index, new);
                drop(core);
                assert_eq!(machine.start().1.point.unwrap().index, new);
            }
            let (mut core, recovery) = machine.start();
            let point = recovery.point.clone().unwrap();
            if point.index == new {
                found_new += 1;
            } else {
                assert!(!done, "an installed snapshot was lost");
                // The image may have lost its last write, which went up to `old`.
                assert!(point.index == old || point.index == 39, "{point:?}");
                found_old += 1;
            }
            world.assert_past(&recovery.state, &point);
            world.assert_meta(&core.image_meta().unwrap());
            assert_eq!(core.image_meta().unwrap().point, point);
            assert_eq!(machine.image.set_aside_count(), 0, "{:?}", recovery.report);
            let left = machine.disk.list().unwrap();
            let note = snapshot::installing_name(new);
            let snapshot = |name: &str| name.starts_with("snapshot-") && name.ends_with(".snap");
            assert!(left.iter().all(|name| snapshot(name) || *name == note), "{left:?}");
            // The log may end where it did before, and is not taken for an older one.
            assert_eq!(recovery.beyond(Some(old)), None);
            // It goes on from there.
            for entry in replay(&world, point.index + 1..=new + 1) {
                core.absorb(entry);
            }
            core.inbox().set_synced(Some(new + 1));
            let meta = fresh_snapshot(&mut core).unwrap();
            assert_eq!(meta.point.index, new.max(point.index));
            world.assert_meta(&core.image_meta().unwrap());
            machine.start_well();
            // It must go as far as a snapshot of the node's own.
            let (_, recovery) = machine.start();
            let own = meta.point.index;
            assert_eq!(recovery.beyond(Some(own - 1)), (point.index != new).then_some(own));
            assert_eq!(recovery.beyond(Some(own)), None);
        }
    };
    for call in 0.. {
        let power_off =
            |calls: u64| Faults { power_off_at: Some(calls + call), ..Faults::default() };
        let (machine, done) = run(&power_off, None);
        check(&machine, done);
        if done {
            break;
        }
    }
    for writes in 0.. {
        let (machine, done) = run(&|_| Faults::default(), Some(writes));
        check(&machine, done);
        if done {
            break;
        }
    }
    assert!(found_old > 20 && found_new > 50, "{found_old} {found_new}");
}

/// Entries of the past as they would be absorbed again: the differences between two states.
fn replay(
    world: &World,
    range: std::ops::RangeInclusive<u64>,
) -> Vec<super::pending::AppliedEntry> {
    use crate::state::{Change, Event};
    let of = |index: u64| -> BTreeMap<Key, Record> {
        world.past.get(&index).into_iter().flatten().cloned().collect()
    };
    range
        .filter(|index| world.past.contains_key(index))
        .map(|index| {
            let (before, mut after) = (of(index - 1), of(index));
            let Some(Record::Meta(meta)) = after.remove(&Key::Meta) else { panic!("no meta") };
            let gone = before.keys().filter(|key| **key != Key::Meta && !after.contains_key(key));
            let mut changes: Vec<Change> = gone.map(|key| Change::new(key.clone(), None)).collect();
            let new = after.into_iter().filter(|(key, record)| before.get(key) != Some(record));
            changes.extend(new.map(|(key, record)| {
                let fresh = !before.contains_key(&key);
                Change { key, record: Some(record), fresh }
            }));
            let event = Event { revision: meta.revision, at_ms: meta.now_ms, changes };
            let events = vec![event];
            super::pending::AppliedEntry { point: point(index), events, meta, log_bytes: 1 }
        })
        .collect()
}

/// Crashes between checkpoints and snapshots of a whole life: every start is a state of the past that
/// the log covers, given that it is purged up to the older one of the two snapshots.
#[test]
fn crashes_anywhere_in_a_life() {
    for seed in 0..60u64 {
        let machine = Machine::new();
        let mut world = World::new(100 + seed);
        let mut expected_at_least = None;
        let mut next = 0;
        for life in 0..6 {
            let calls = machine.disk.counts().calls;
            let (mut core, recovery) = machine.start();
            let at = recovery.point.as_ref().map(|point| point.index);
            assert!(at >= expected_at_least, "{at:?} {expected_at_least:?} {:?}", recovery.report);
            if let Some(point) = &recovery.point {
                world.assert_past(&recovery.state, point);
            }
            if next > 0 {
                for entry in replay_all(&world, at.map_or(0, |at| at + 1)..=next - 1) {
                    core.absorb(entry);
                }
            }
            // The power goes off somewhere in this life.
            let off = calls + 3 + (seed * 7 + life * 13) % 40;
            machine.disk.set_faults(Faults { power_off_at: Some(off), ..Faults::default() });
            machine.image.limit_writes((life % 3 == 2).then_some(seed % 5));
            for step in 0..4 {
                feed(&core, &mut world, 10);
                next = world.index() + 1;
                let done = if (step + seed) % 2 == 0 {
                    core.checkpoint().map(|_| ()).is_ok()
                } else {
                    fresh_snapshot(&mut core).map(|_| ()).is_ok()
                };
                if !done {
                    break;
                }
                // A checkpoint that was reported holds as long as the image's disk does not lie.
                expected_at_least = core.image_meta().map(|meta| meta.point.index);
            }
            machine.image.limit_writes(None);
            machine.disk.crash(Crash::ALL[(seed % 4) as usize], seed * 31 + life);
        }
    }
}

/// Like [`replay`], from the very first entry.
fn replay_all(
    world: &World,
    range: std::ops::RangeInclusive<u64>,
) -> Vec<super::pending::AppliedEntry> {
    let first = *range.start();
    let mut entries = Vec::new();
    if first == 0 {
        let mut again = World::new(0);
        // The first entry of every world carries no command.
        entries.push(again.entry());
    }
    entries.extend(replay(world, first.max(1)..=*range.end()));
    entries
}

#[test]
fn an_image_that_fails_stops_the_checkpointer() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(11);
    feed(&core, &mut world, 10);
    core.checkpoint().unwrap();
    feed(&core, &mut world, 10);
    machine.image.limit_writes(Some(0));
    assert!(matches!(core.checkpoint(), Err(Error::Image(_))));
    machine.image.limit_writes(None);
    // What was taken for the failed write is gone: going on would leave a hole.
    feed(&core, &mut world, 10);
    assert!(core.has_failed());
    assert!(matches!(core.checkpoint(), Err(Error::Image(_))));
    assert!(matches!(fresh_snapshot(&mut core), Err(Error::Image(_))));
    let (_, recovery) = machine.start_well();
    world.assert_past(&recovery.state, &point(9));
}

#[test]
fn a_snapshot_is_not_made_from_a_damaged_image() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(12);
    feed(&core, &mut world, 50);
    core.checkpoint().unwrap();
    machine.image.damage(9);
    let error = fresh_snapshot(&mut core).unwrap_err();
    assert!(error.to_string().contains("expected"), "{error}");
    assert!(core.has_failed());
    assert!(machine.disk.list().unwrap().is_empty());
}

#[test]
fn a_full_disk_fails_the_snapshot_and_nothing_else() {
    let machine = Machine::new();
    let (mut core, _) = machine.start_well();
    let mut world = World::new(13);
    feed(&core, &mut world, 50);
    machine.disk.set_faults(Faults { capacity: Some(500), ..Faults::default() });
    assert!(matches!(fresh_snapshot(&mut core), Err(Error::Snapshot(_))));
    assert!(!core.has_failed());
    machine.disk.set_faults(Faults::default());
    fresh_snapshot(&mut core).unwrap();
}

// ---- digests ----

#[test]
fn digests_are_computed_at_exactly_the_same_indices_everywhere() {
    let mut machine = Machine::new();
    machine.digest_every = 10;
    let mut world = World::new(14);
    let entries = world.entries(400);
    let mut all = Vec::new();
    // Three replicas with different habits.
    for step in [1, 7, 64] {
        let machine = machine.fork();
        let (mut core, _) = machine.start_well();
        for (i, entry) in entries.iter().enumerate() {
            core.absorb(entry.clone());
            if i % step == 0 {
                core.inbox().set_synced(Some(entry.point.index));
                core.checkpoint().unwrap();
            }
        }
        core.inbox().set_synced(Some(399));
        core.checkpoint().unwrap();
        let digests: Vec<Digest> = core.digests().copied().collect();
        assert_eq!(digests.len(), DIGESTS_KEPT);
        for found in &digests {
            assert_eq!(found.index % 10, 0);
            let records = world.past[&found.index].iter().cloned().map(Ok::<_, Infallible>);
            let state = State::restore(records).unwrap();
            assert_eq!((found.digest, found.records), state.digest());
        }
        all.push(digests);
    }
    assert!(all.iter().all(|digests| *digests == all[0]));
    assert_eq!(all[0].last().unwrap().index, 390);
}

// ---- inbox ----

/// How far the log lags behind decides when changes are merged, and nothing else.
#[test]
fn a_lagging_log_changes_nothing_but_the_time() {
    for seed in 0..20 {
        let mut machine = Machine::new();
        machine.digest_every = 16;
        let mut world = World::new(200 + seed);
        let (mut core, _) = machine.fork().start_well();
        let (mut lagging, _) = machine.start_well();
        for round in 0..6u64 {
            for entry in world.entries(25) {
                let index = entry.point.index;
                for (core, lag) in [(&core, 0), (&lagging, round * 3)] {
                    core.absorb(entry.clone());
                    core.inbox().set_synced(index.checked_sub(lag));
                }
            }
            let behind = world.index() - round * 3;
            assert_eq!(core.checkpoint().unwrap().unwrap().point, point(world.index()));
            assert_eq!(lagging.checkpoint().unwrap().unwrap().point, point(behind));
            world.assert_meta(&lagging.image_meta().unwrap());
        }
        lagging.inbox().set_synced(Some(world.index()));
        assert_eq!(core.checkpoint().unwrap(), lagging.checkpoint().unwrap());
        let digests: Vec<_> = core.digests().collect();
        assert_eq!(digests, lagging.digests().collect::<Vec<_>>());
        assert_eq!(digests.len(), 9);
        let (_, recovery) = machine.start_well();
        world.assert_past(&recovery.state, &recovery.point.unwrap());
    }
}

/// However long the checkpointer is busy, each key waits once, and the bell rings seldom.
#[test]
fn what_waits_is_bounded_by_the_state() {
    let rung = Arc::new(AtomicU64::new(0));
    let bell = rung.clone();
    let inbox = Inbox::new(move || {
        bell.fetch_add(1, Ordering::Relaxed);
    });
    let mut world = World::new(16);
    let (mut absorbed, mut most) = (0, 0);
    for _ in 0..2_000 {
        let mut entry = world.entry();
        entry.log_bytes = CHECKPOINT_WAKE_BYTES / 500;
        world.past.clear();
        absorbed += entry.events.iter().map(|event| event.changes.len()).sum::<usize>();
        inbox.set_synced(Some(entry.point.index));
        inbox.absorb(entry);
        most = most.max(inbox.settled().len());
    }
    assert_eq!(rung.load(Ordering::Relaxed), 3);
    // Keys of the state, and keys that are gone.
    assert!(most < absorbed / 4, "{most} of {absorbed}");
    assert_eq!(inbox.settled().last_index(), Some(world.index()));
}

// ---- drivers ----

#[derive(Clone, Default)]
struct Now(Arc<Mutex<Duration>>);

impl Now {
    fn clock(&self) -> super::driver::Clock {
        let now = self.clone();
        Arc::new(move || *now.0.lock().unwrap())
    }
    fn pass(&self, seconds: u64) {
        *self.0.lock().unwrap() += Duration::from_secs(seconds);
    }
}

/// An answer that has arrived.
fn answer<T: Send + 'static>(
    ask: impl FnOnce(super::driver::Reply<T>),
) -> mpsc::Receiver<Result<T, Error>> {
    let (sender, receiver) = mpsc::channel();
    ask(Box::new(move |result| sender.send(result).unwrap()));
    receiver
}

#[test]
fn the_driver_keeps_the_time_and_serves_requests() {
    let mut machine = Machine::new();
    machine.digest_every = 32;
    let now = Now::default();
    let (core, _) = machine.start_well();
    let pace = Pace { interval: Duration::from_secs(15), log_bytes: 1_000_000 };
    let failures = Arc::new(AtomicU64::new(0));
    let count = failures.clone();
    let on_failure = Box::new(move |_: &Error| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut driver = Driver::new(core, pace, now.clock(), on_failure);
    let handle = driver.handle();
    let mut world = World::new(17);
    let feed = |world: &mut World, count, bytes| {
        for mut entry in world.entries(count) {
            entry.log_bytes = bytes;
            handle.absorb(entry);
        }
        handle.set_synced(Some(world.index()));
    };
    let index = || machine.image.meta().map(|meta| meta.point.index);

    // By time.
    feed(&mut world, 10, 1);
    assert_eq!(driver.turn(), Turn::Wait(Duration::from_secs(15)));
    now.pass(10);
    assert_eq!(driver.turn(), Turn::Wait(Duration::from_secs(5)));
    assert_eq!(index(), None);
    now.pass(5);
    assert_eq!(driver.turn(), Turn::Wait(Duration::from_secs(15)));
    assert_eq!(index(), Some(9));
    // By bytes of log.
    feed(&mut world, 10, 99_000);
    driver.turn();
    assert_eq!(index(), Some(9));
    feed(&mut world, 1, 10_000);
    driver.turn();
    assert_eq!(index(), Some(20));

    // Requests, answered in order within one turn.
    feed(&mut world, 9, 1);
    let snapshot = answer(|reply| handle.snapshot(Freshness::Newest, reply));
    driver.turn();
    assert_eq!(snapshot.try_recv().unwrap().unwrap().point.index, 29);
    assert_eq!(handle.newest_snapshot().unwrap().point.index, 29);
    // A digest does not wait for the timer.
    feed(&mut world, 2, 1);
    driver.turn();
    assert_eq!(index(), Some(29));
    feed(&mut world, 8, 1);
    driver.turn();
    assert_eq!(handle.digests().iter().map(|digest| digest.index).collect::<Vec<_>>(), [32]);
    let meta = answer(|reply| handle.checkpoint(reply));
    driver.turn();
    assert_eq!(meta.try_recv().unwrap().unwrap().unwrap().point.index, 39);

    let ahead = world.entries(30).last().unwrap().point.index;
    let name = send(&world, &machine.disk, ahead);
    let installed = answer(|reply| handle.install(name, reply));
    let refused = answer(|reply| handle.install("nothing".into(), reply));
    driver.turn();
    let (meta, state) = installed.try_recv().unwrap().unwrap();
    world.assert_past(&state, &meta.point);
    assert!(refused.try_recv().unwrap().is_err());

    // A full desk refuses; a stopped one as well, and what waits is answered.
    feed(&mut world, 5, 1);
    let asked: Vec<_> = (0..=CHECKPOINT_REQUESTS)
        .map(|_| answer(|reply| handle.snapshot(Freshness::Newest, reply)))
        .collect();
    assert!(matches!(asked.last().unwrap().try_recv().unwrap(), Err(Error::Busy { .. })));
    driver.turn();
    assert!(asked[..CHECKPOINT_REQUESTS].iter().all(|answer| answer.try_recv().unwrap().is_ok()));
    feed(&mut world, 5, 1);
    let stopped = answer(|reply| handle.stop(reply));
    let behind = answer(|reply| handle.snapshot(Freshness::Newest, reply));
    assert_eq!(driver.turn(), Turn::Stopped);
    stopped.try_recv().unwrap().unwrap();
    assert_eq!(index(), Some(world.index()), "a last checkpoint");
    for answer in [behind, answer(|reply| handle.snapshot(Freshness::Newest, reply))] {
        assert!(matches!(answer.try_recv().unwrap(), Err(Error::Stopped)));
    }
    assert_eq!(failures.load(Ordering::Relaxed), 0);
}

/// What the log is purged behind costs no checkpoint of its own when the image has most of what came since the last one;
/// what an operator asks for has all.
#[test]
fn a_routine_snapshot_takes_the_image_as_it_is_when_that_is_recent() {
    let machine = Machine::new();
    let (core, _) = machine.start_well();
    let pace = Pace { interval: Duration::MAX / 2, log_bytes: u64::MAX };
    let mut driver = Driver::new(core, pace, Now::default().clock(), Box::new(|_| {}));
    let handle = driver.handle();
    let mut world = World::new(19);
    let mut feed = |count, log_bytes| {
        for entry in world.entries(count) {
            handle.absorb(AppliedEntry { log_bytes, ..entry });
        }
        handle.set_synced(Some(world.index()));
        world.index()
    };
    let image = || machine.image.meta().map(|meta| meta.point.index);
    // Entries before and after a checkpoint, the length in the log of all the latter, and how many of them are not in the
    // snapshot.
    for (before, after, log_bytes, freshness, missing) in [
        (0, 5, 0, Freshness::Recent, 0),
        (10, 9, 9, Freshness::Recent, 9),
        (0, 9, 9, Freshness::Recent, 0),
        (10, 10, 10, Freshness::Recent, 0),
        (10, 0, 0, Freshness::Recent, 0),
        (0, 0, 0, Freshness::Recent, 0),
        (10, 1, SNAPSHOT_LACKS_BYTES, Freshness::Recent, 1),
        (10, 1, SNAPSHOT_LACKS_BYTES + 1, Freshness::Recent, 0),
        (10, 1, 1, Freshness::Newest, 0),
    ] {
        if before > 0 {
            feed(before, 1);
            let checkpoint = answer(|reply| handle.checkpoint(reply));
            driver.turn();
            checkpoint.try_recv().unwrap().unwrap();
        }
        let applied = feed(after, log_bytes / after.max(1) as u64);
        let snapshot = answer(|reply| handle.snapshot(freshness, reply));
        driver.turn();
        let made = snapshot.try_recv().unwrap().unwrap();
        assert_eq!(
            made.point.index,
            applied - missing,
            "{before} {after} {log_bytes} {freshness:?}"
        );
        assert_eq!(image(), Some(applied - missing), "nothing but the snapshot is written");
        let read = snapshot::verify(&machine.disk, &made.name).unwrap();
        assert_eq!((&read.point, read.digest), (&made.point, made.digest));
    }
}

/// However many operators ask for snapshots: consensus ends when an installation is refused, and a
/// thread that was not told to stop is waited for in vain.
#[test]
fn a_full_desk_takes_an_installation_and_the_stop() {
    let machine = Machine::new();
    let (core, _) = machine.start_well();
    let clock = Now::default().clock();
    let mut driver = Driver::new(core, Pace::default(), clock, Box::new(|_| {}));
    let handle = driver.handle();
    let mut world = World::new(22);
    for entry in world.entries(5) {
        handle.absorb(entry);
    }
    handle.set_synced(Some(world.index()));
    let fill = || {
        let asked = || answer(|reply| handle.snapshot(Freshness::Newest, reply));
        (0..CHECKPOINT_REQUESTS).map(|_| asked()).collect::<Vec<_>>()
    };

    let asked = fill();
    let refused = answer(|reply| handle.checkpoint(reply));
    assert!(matches!(refused.try_recv().unwrap(), Err(Error::Busy { .. })));
    let ahead = world.entries(30).last().unwrap().point.index;
    let name = send(&world, &machine.disk, ahead);
    let installed = answer(|reply| handle.install(name, reply));
    driver.turn();
    assert!(asked.iter().all(|answer| answer.try_recv().unwrap().is_ok()));
    assert_eq!(installed.try_recv().unwrap().unwrap().0.point.index, ahead);

    let asked = fill();
    let stopped = answer(|reply| handle.stop(reply));
    assert_eq!(driver.turn(), Turn::Stopped);
    assert!(asked.iter().all(|answer| answer.try_recv().unwrap().is_ok()));
    stopped.try_recv().unwrap().unwrap();
}

#[test]
fn the_driver_reports_a_failed_image_once_and_stops() {
    let machine = Machine::new();
    let now = Now::default();
    let (core, _) = machine.start_well();
    let failures = Arc::new(AtomicU64::new(0));
    let count = failures.clone();
    let on_failure = Box::new(move |_: &Error| {
        count.fetch_add(1, Ordering::Relaxed);
    });
    let mut driver = Driver::new(core, Pace::default(), now.clock(), on_failure);
    let handle = driver.handle();
    let mut world = World::new(18);
    for entry in world.entries(5) {
        handle.absorb(entry);
    }
    handle.set_synced(Some(4));
    machine.image.limit_writes(Some(0));
    let snapshot = answer(|reply| handle.snapshot(Freshness::Newest, reply));
    let behind = answer(|reply| handle.checkpoint(reply));
    assert_eq!(driver.turn(), Turn::Stopped);
    assert!(matches!(snapshot.try_recv().unwrap(), Err(Error::Image(_))));
    assert!(matches!(behind.try_recv().unwrap(), Err(Error::Stopped)));
    assert_eq!(failures.load(Ordering::Relaxed), 1);
}

/// The production arrangement: a thread, sled and files.
#[test]
fn the_thread_runs_on_sled_and_files() {
    let dir = tempfile::tempdir().unwrap();
    let started = std::time::Instant::now();
    let spawn = || {
        let settings = Settings { cluster_id: CLUSTER.into(), digest_every: 50 };
        let pace = Pace { interval: Duration::from_millis(20), ..Pace::default() };
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path().join("snapshots")).unwrap());
        let store = Box::new(SledStore::new(dir.path()));
        let clock = Arc::new(move || started.elapsed());
        CheckpointThread::spawn(settings, pace, store, disk, clock, Box::new(|_| {})).unwrap()
    };
    let mut world = World::new(19);
    world.long_values = true;
    for life in 0..4 {
        let (thread, recovery) = spawn();
        assert_eq!(recovery.report, Vec::<String>::new());
        match &recovery.point {
            Some(point) => {
                assert_eq!(point.index, world.index(), "the last checkpoint of a shutdown");
                world.assert_past(&recovery.state, point);
            }
            None => assert_eq!(life, 0),
        }
        let handle = thread.handle();
        for _ in 0..5 {
            for entry in world.entries(20) {
                handle.absorb(entry);
            }
            handle.set_synced(Some(world.index()));
            let meta = answer(|reply| handle.checkpoint(reply));
            world.assert_meta(&meta.recv().unwrap().unwrap().unwrap());
        }
        let snapshot =
            answer(|reply| handle.snapshot(Freshness::Newest, reply)).recv().unwrap().unwrap();
        assert_eq!((snapshot.digest, snapshot.records), world.state.digest());
        assert_eq!(handle.digests().last().unwrap().index, world.index() / 50 * 50);
        assert!(handle.image_bytes() > 0);
        for entry in world.entries(3) {
            handle.absorb(entry);
        }
        handle.set_synced(Some(world.index()));
        thread.shutdown().unwrap();
        assert!(matches!(thread.shutdown(), Err(Error::Stopped)));
    }
}

/// Whoever waits for a checkpointer that panics is answered, and the node hears of it.
#[test]
fn a_panic_ends_the_thread_and_not_the_answers() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings { cluster_id: CLUSTER.into(), digest_every: 0 };
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(dir.path().join("snapshots")).unwrap());
    let (sender, failure) = mpsc::channel();
    let on_failure = Box::new(move |error: &Error| sender.send(error.to_string()).unwrap());
    let store = Box::new(MemoryStore::default());
    // Any panic on the thread will do: this one comes from the clock.
    let broken = Arc::new(AtomicU64::new(0));
    let breaks = broken.clone();
    let clock: super::driver::Clock = Arc::new(move || {
        assert_eq!(breaks.load(Ordering::Relaxed), 0, "the clock broke");
        Duration::ZERO
    });
    let pace = Pace::default();
    let (thread, _) =
        CheckpointThread::spawn(settings, pace, store, disk, clock, on_failure).unwrap();
    let handle = thread.handle();
    broken.store(1, Ordering::Relaxed);
    let snapshot = answer(|reply| handle.snapshot(Freshness::Newest, reply));
    let behind = answer(|reply| handle.checkpoint(reply));
    assert_eq!(failure.recv().unwrap(), "the checkpointer panicked");
    // The one that was being served goes down with its sender.
    assert!(snapshot.recv().is_err());
    assert!(behind.recv().unwrap().is_err());
    assert!(matches!(thread.shutdown(), Err(Error::Stopped)));
}
