//! Damage to sled's files: whatever is flipped, cut off, zeroed or missing, the next start has exactly
//! a state of the past, at least as new as the snapshot, and the one after it finds nothing unusual.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checkpoint::{Checkpointer, Error, Settings};
use super::disk::RealDisk;
use super::image_tests::copy_dir;
use super::inbox::Inbox;
use super::pending::AppliedEntry;
use super::recovery::{Origin, Recovery};
use super::sled_store::SledStore;
use super::testing::{World, fresh_snapshot, point as point_at};
use crate::state::Meta;

const SNAPSHOT_AT: u64 = 59;

/// Damages of each kind. A longer search: `DAMAGES=5000 SEED=7 cargo test --lib sled_damage`.
fn environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn start(dir: &Path) -> Result<(Checkpointer, Recovery), Error> {
    let disk = RealDisk::open(dir.join("snapshots")).unwrap();
    let settings = Settings { cluster_id: "production".into(), digest_every: 0 };
    let store = Box::new(SledStore::new(dir));
    Checkpointer::recover(settings, store, Arc::new(disk), Arc::new(Inbox::new(|| {})))
}

/// A data directory with an image that was written in several batches over two openings.
fn build(dir: &Path) -> World {
    let mut world = World::new(77);
    world.long_values = true;
    for _ in 0..2 {
        let (mut core, _) = start(dir).unwrap();
        for _ in 0..4 {
            for entry in world.entries(15) {
                core.absorb(entry);
            }
            core.inbox().set_synced(Some(world.index()));
            core.checkpoint().unwrap();
            if world.index() == SNAPSHOT_AT {
                fresh_snapshot(&mut core).unwrap();
            }
        }
    }
    assert_eq!(world.index(), 119);
    world
}

/// Files of the image, not those of the lock or of directories.
fn files(image: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(image).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    files
}

#[derive(Debug, Default)]
struct Seen {
    intact: u64,
    older: u64,
    rebuilt: u64,
    /// Of those: sled itself noticed nothing.
    by_digest: u64,
}

struct Site {
    _dir: tempfile::TempDir,
    base: PathBuf,
    world: World,
    seen: Seen,
}

impl Site {
    fn new() -> Site {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().join("base");
        fs::create_dir(&base).unwrap();
        let world = build(&base);
        Site { _dir: dir, base, world, seen: Seen::default() }
    }

    /// Damages a copy and starts on it, twice.
    fn check(&mut self, what: &str, damage: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().unwrap();
        let copy = copy_dir(&self.base, dir.path());
        damage(&copy.join("image"));
        if std::env::var_os("DAMAGES").is_some() {
            eprintln!("{what}");
        }
        let (mut core, recovery) =
            start(&copy).unwrap_or_else(|error| panic!("{what}: the start failed: {error}"));
        let Some(point) = recovery.point.clone() else { panic!("{what}: nothing was left") };
        assert!(point.index >= SNAPSHOT_AT, "{what}: back to {}", point.index);
        self.world.assert_past(&recovery.state, &point);
        self.world.assert_meta(&core.image_meta().unwrap());
        match recovery.origin {
            Origin::Image if point.index == 119 => self.seen.intact += 1,
            Origin::Image => self.seen.older += 1,
            Origin::Snapshot(_) => {
                assert!(!recovery.report.is_empty(), "{what}: rebuilt without a word");
                self.seen.rebuilt += 1;
                let ours = |line: &String| !line.contains("sled") && !line.contains("os error");
                self.seen.by_digest += u64::from(recovery.report.iter().all(ours));
                if std::env::var_os("DAMAGES").is_some() {
                    eprintln!("  {:?}", recovery.report);
                }
            }
            Origin::Empty => panic!("{what}: empty"),
        }
        // It takes writes.
        let meta = Meta { now_ms: 9_999_999, ..recovery.state.meta() };
        core.absorb(AppliedEntry { point: point_at(500), events: Vec::new(), meta, log_bytes: 1 });
        core.inbox().set_synced(Some(500));
        let meta = core.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}")).unwrap();
        drop(core);
        let (core, recovery) = start(&copy).unwrap();
        assert_eq!(recovery.report, Vec::<String>::new(), "{what}: at the second start");
        if core.image_meta() != Some(meta) {
            // sled may forget what it was given behind the damage. As at the first start that is a
            // state of the past, from which snapshot and log go on.
            let point = recovery.point.unwrap_or_else(|| panic!("{what}: nothing was left"));
            assert!(point.index >= SNAPSHOT_AT, "{what}: back to {}", point.index);
            self.world.assert_past(&recovery.state, &point);
            self.seen.older += 1;
        }
    }
}

#[test]
fn damage_to_sleds_files_never_makes_a_wrong_state() {
    let mut site = Site::new();
    let mut random = StdRng::seed_from_u64(environment("SEED", 1));
    let count = environment("DAMAGES", 16);
    let image = site.base.join("image");
    let paths = files(&image);
    let names: Vec<String> =
        paths.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert!(names.iter().any(|name| name == "db"), "{names:?}");
    assert!(names.iter().any(|name| name.starts_with("snap.")), "{names:?}");
    site.check("nothing", |_| {});
    assert_eq!(site.seen.intact, 1);

    for (path, name) in paths.iter().zip(&names) {
        let content = fs::read(path).unwrap();
        let length = content.len() as u64;
        // sled fills the rest of a segment with one byte; most of the damage goes to the content.
        let used: Vec<u64> = (0..length)
            .filter(|at| *at == 0 || content[*at as usize] != content[*at as usize - 1])
            .collect();
        // The large file gets more.
        let count = if name == "db" { 4 * count } else { count / 2 };
        for _ in 0..count {
            let offset = used[random.random_range(0..used.len())];
            let mask = 1u8 << random.random_range(0..8);
            site.check(&format!("{name}: byte {offset} ^ {mask:#x}"), |image| {
                let file = fs::File::options().write(true).open(image.join(name)).unwrap();
                file.write_all_at(&[content[offset as usize] ^ mask], offset).unwrap();
            });
        }
        for _ in 0..count / 4 {
            let cut = random.random_range(0..length);
            site.check(&format!("{name}: cut to {cut} of {length}"), |image| {
                let file = fs::File::options().write(true).open(image.join(name)).unwrap();
                file.set_len(cut).unwrap();
            });
            let offset = used[random.random_range(0..used.len())];
            let size = 1 << random.random_range(0..16);
            let byte = [0, 0xff, random.random()][random.random_range(0..3)];
            let size = size.min(length - offset);
            site.check(&format!("{name}: {size} bytes of {byte:#x} at {offset}"), |image| {
                let file = fs::File::options().write(true).open(image.join(name)).unwrap();
                file.write_all_at(&vec![byte; size as usize], offset).unwrap();
            });
        }
        site.check(&format!("{name}: missing"), |image| {
            fs::remove_file(image.join(name)).unwrap();
        });
    }
    eprintln!("{:?}", site.seen);
    assert!(site.seen.rebuilt > count, "{:?}", site.seen);
}

/// A sector of the log that was written some batches ago: what a disk leaves that lost some writes.
#[test]
fn old_sectors_never_make_a_wrong_state() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    // The same life, but it ends earlier.
    let mut world = World::new(77);
    world.long_values = true;
    let (mut core, _) = start(&base).unwrap();
    for _ in 0..6 {
        for entry in world.entries(15) {
            core.absorb(entry);
        }
        core.inbox().set_synced(Some(world.index()));
        core.checkpoint().unwrap();
        if world.index() == SNAPSHOT_AT {
            fresh_snapshot(&mut core).unwrap();
        }
    }
    let old = fs::read(base.join("image/db")).unwrap();
    for entry in world.entries(30) {
        core.absorb(entry);
    }
    core.inbox().set_synced(Some(world.index()));
    core.checkpoint().unwrap();
    drop(core);
    let new = fs::read(base.join("image/db")).unwrap();
    let differ: Vec<usize> = (0..new.len() / 512)
        .filter(|at| old.get(at * 512..(at + 1) * 512) != Some(&new[at * 512..(at + 1) * 512]))
        .collect();
    assert!(differ.len() > 20, "{}", differ.len());

    let mut site = Site { _dir: dir, base, world, seen: Seen::default() };
    let mut random = StdRng::seed_from_u64(environment("SEED", 2));
    for _ in 0..environment("DAMAGES", 16) {
        let share = [0.02, 0.2, 0.5, 0.9, 0.98][random.random_range(0..5)];
        let lost: Vec<usize> =
            differ.iter().copied().filter(|_| random.random_bool(share)).collect();
        site.check(&format!("sectors {lost:?} of {} are old", differ.len()), |image| {
            let file = fs::File::options().write(true).open(image.join("db")).unwrap();
            for at in lost {
                let sector = old.get(at * 512..(at + 1) * 512).unwrap_or(&[0; 512]);
                file.write_all_at(sector, (at * 512) as u64).unwrap();
            }
        });
    }
    eprintln!("{:?}", site.seen);
    assert!(site.seen.older + site.seen.rebuilt > 3, "{:?}", site.seen);
}

/// A copy of the files while the image is open is what a killed process leaves.
#[test]
fn a_killed_process_keeps_every_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::create_dir(&base).unwrap();
    let mut world = World::new(78);
    world.long_values = true;
    let (mut core, _) = start(&base).unwrap();
    for round in 0..12 {
        for entry in world.entries(11) {
            core.absorb(entry);
        }
        core.inbox().set_synced(Some(world.index()));
        if round % 4 == 3 {
            fresh_snapshot(&mut core).unwrap();
        } else {
            core.checkpoint().unwrap();
        }
        // These are absorbed and not checkpointed.
        for entry in world.entries(2) {
            core.absorb(entry);
        }
        let copy = copy_dir(&base, &dir.path().join(format!("copy-{round}")));
        let (_, recovery) = start(&copy).unwrap();
        assert_eq!(recovery.report, Vec::<String>::new());
        assert_eq!(recovery.origin, Origin::Image);
        let point = recovery.point.unwrap();
        assert_eq!(point.index, world.index() - 2);
        world.assert_past(&recovery.state, &point);
    }
}
