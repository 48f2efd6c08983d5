//! A disk in memory that loses, tears and damages bytes: for tests and for the simulation only.
//!
//! It tells what was written from what is durable, sector by sector and name by name. A
//! [`FaultDisk::crash`] with a power loss forgets what was not synced, in part or in whole; every
//! version that a sector had since its last sync may be the one that survives. A failed sync leaves
//! written bytes readable and drops them from what a later sync makes durable, as Linux does.
//!
//! All chance comes from the seed given to `crash`; names and files are visited in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, File};

/// What is written to the medium in one piece, unless it is torn.
pub const SECTOR_BYTES: usize = 512;
/// Versions of one sector that are remembered between two syncs, besides the durable one.
const VERSIONS: usize = 4;

/// What a crash leaves behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crash {
    /// The process is killed: what was written is still there, and still not durable.
    Kill,
    /// Power loss: everything that was not synced is gone.
    Lose,
    /// Power loss: of what was not synced, any sectors, names and lengths have survived.
    Scatter,
    /// Like `Scatter`, and a sector may hold the beginning of one version and the end of another.
    Tear,
}

impl Crash {
    pub const ALL: [Crash; 4] = [Crash::Kill, Crash::Lose, Crash::Scatter, Crash::Tear];
}

/// Calls that fail. The numbers count from the disk's creation, see [`Counts`], and begin at 0.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// From this call on the power is off: everything fails until the crash.
    pub power_off_at: Option<u64>,
    /// Fails after half of the bytes.
    pub fail_write: Option<u64>,
    /// Fails, and what it should have made durable never will be unless it is written again.
    pub fail_sync: Option<u64>,
    pub fail_read: Option<u64>,
    /// No file may be read.
    pub deny_reads: bool,
    pub fail_sync_dir: Option<u64>,
    /// Bytes of all files together; a write beyond them fails with `StorageFull`.
    pub capacity: Option<u64>,
    /// Planted bugs: these calls report success and do nothing.
    pub skip_syncs: bool,
    pub skip_dir_syncs: bool,
}

/// Calls so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All calls that change something: create, rename, remove, write, set_len and both syncs.
    pub calls: u64,
    pub writes: u64,
    pub syncs: u64,
    pub reads: u64,
    pub dir_syncs: u64,
}

/// One directory of files. Clones are handles to the same disk.
#[derive(Debug, Clone, Default)]
pub struct FaultDisk {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    /// Changes of names since the last sync of the directory, in order.
    name_changes: Vec<NameChange>,
    faults: Faults,
    counts: Counts,
    /// Handles of an earlier life of the machine do not work.
    life: u64,
}

/// Names that one call has set or removed; it survives whole or not at all.
type NameChange = Vec<(String, Option<u64>)>;

#[derive(Debug, Clone)]
struct Inode {
    /// As the process sees it.
    data: Arc<Vec<u8>>,
    durable_len: u64,
    /// Sectors that were written since they were last synced: the durable version first, then those
    /// that were overwritten since. The newest is in `data`.
    dirty: BTreeMap<usize, Vec<Sector>>,
    /// Sectors whose sync has failed, with what the medium holds: clean in the kernel's eyes.
    lost: BTreeMap<usize, Sector>,
    /// One reference here, one in each open handle.
    handles: Arc<()>,
}

type Sector = Arc<[u8; SECTOR_BYTES]>;

impl FaultDisk {
    pub fn new() -> FaultDisk {
        FaultDisk::default()
    }

    pub fn handle(&self) -> Arc<dyn Disk> {
        Arc::new(self.clone())
    }

    /// An independent disk with the same content, durable and not. The faults and counts come along.
    pub fn fork(&self) -> FaultDisk {
        let inner = self.lock();
        let mut inodes = inner.inodes.clone();
        for inode in inodes.values_mut() {
            inode.handles = Arc::new(());
        }
        let copy = Inner {
            inodes,
            next_inode: inner.next_inode,
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            name_changes: inner.name_changes.clone(),
            faults: inner.faults.clone(),
            counts: inner.counts,
            life: inner.life,
        };
        FaultDisk { inner: Arc::new(Mutex::new(copy)) }
    }

    /// Ends the machine's life, or the process's, and begins the next: open files stop working, the
    /// power is back, other faults stay as they are. The same seed gives the same result.
    pub fn crash(&self, crash: Crash, seed: u64) {
        let mut inner = self.lock();
        inner.life += 1;
        inner.faults.power_off_at = None;
        if crash != Crash::Kill {
            let mut chance = Chance(seed);
            for inode in inner.inodes.values_mut() {
                inode.lose_power(crash, &mut chance);
            }
            inner.lose_names(crash, &mut chance);
        }
        inner.forget_unused();
    }

    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    pub fn faults(&self) -> Faults {
        self.lock().faults.clone()
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Bytes of a file as the process sees them.
    pub fn contents(&self, name: &str) -> Option<Vec<u8>> {
        let inner = self.lock();
        let id = inner.names.get(name)?;
        Some(inner.inodes[id].data.to_vec())
    }

    /// The medium decays: turns bits of one byte over, in every version of it. False when there is
    /// no such byte.
    pub fn flip(&self, name: &str, offset: u64, mask: u8) -> bool {
        let mut inner = self.lock();
        let Some(inode) = inner.inode_of(name) else { return false };
        let at = offset as usize;
        if at >= inode.data.len() {
            return false;
        }
        Arc::make_mut(&mut inode.data)[at] ^= mask;
        let (sector, within) = (at / SECTOR_BYTES, at % SECTOR_BYTES);
        for version in inode.dirty.get_mut(&sector).into_iter().flatten() {
            Arc::make_mut(version)[within] ^= mask;
        }
        if let Some(version) = inode.lost.get_mut(&sector) {
            Arc::make_mut(version)[within] ^= mask;
        }
        true
    }

    /// Cuts a file short, durably, behind everybody's back. False when it does not exist.
    pub fn truncate(&self, name: &str, len: u64) -> bool {
        let mut inner = self.lock();
        let Some(inode) = inner.inode_of(name) else { return false };
        inode.set_len(len as usize);
        inode.sync();
        true
    }

    /// Removes a file, durably, behind everybody's back. False when it does not exist.
    pub fn lose_file(&self, name: &str) -> bool {
        let mut inner = self.lock();
        inner.durable_names.remove(name);
        inner.names.remove(name).is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn failure(why: &str) -> io::Error {
    io::Error::other(format!("injected: {why}"))
}

impl Inner {
    fn powered(&self) -> io::Result<()> {
        match self.faults.power_off_at {
            Some(call) if self.counts.calls >= call => Err(failure("the power is off")),
            Some(_) | None => Ok(()),
        }
    }

    /// Counts a call that changes something.
    fn call(&mut self) -> io::Result<()> {
        self.powered()?;
        self.counts.calls += 1;
        Ok(())
    }

    fn find(&self, name: &str) -> io::Result<u64> {
        let found = self.names.get(name).copied();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no file {name}")))
    }

    fn inode_of(&mut self, name: &str) -> Option<&mut Inode> {
        let id = self.names.get(name)?;
        self.inodes.get_mut(id)
    }

    fn change_names(&mut self, change: NameChange) {
        apply_names(&mut self.names, &change);
        self.name_changes.push(change);
    }

    fn used(&self) -> u64 {
        self.inodes.values().map(|inode| inode.data.len() as u64).sum()
    }

    fn free(&self) -> u64 {
        self.faults.capacity.map_or(1 << 40, |capacity| capacity.saturating_sub(self.used()))
    }

    fn lose_names(&mut self, crash: Crash, chance: &mut Chance) {
        let changes = std::mem::take(&mut self.name_changes);
        // A journal keeps a prefix, other file systems anything.
        let keep: Vec<bool> = match (crash, chance.below(2)) {
            (Crash::Kill | Crash::Lose, _) => vec![false; changes.len()],
            (Crash::Scatter | Crash::Tear, 0) => {
                let prefix = chance.below(changes.len() + 1);
                (0..changes.len()).map(|at| at < prefix).collect()
            }
            (Crash::Scatter | Crash::Tear, _) => {
                changes.iter().map(|_| chance.below(2) == 0).collect()
            }
        };
        for (change, _) in changes.iter().zip(keep).filter(|(_, keep)| *keep) {
            apply_names(&mut self.durable_names, change);
        }
        self.names = self.durable_names.clone();
    }

    /// Frees what has neither a name nor a handle.
    fn forget_unused(&mut self) {
        let named: BTreeSet<u64> =
            self.names.values().chain(self.durable_names.values()).copied().collect();
        let pending: BTreeSet<u64> =
            self.name_changes.iter().flatten().filter_map(|(_, inode)| *inode).collect();
        self.inodes.retain(|id, inode| {
            named.contains(id) || pending.contains(id) || Arc::strong_count(&inode.handles) > 1
        });
    }
}

fn apply_names(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    for (name, inode) in change {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

impl Inode {
    fn new() -> Inode {
        Inode {
            data: Arc::default(),
            durable_len: 0,
            dirty: BTreeMap::new(),
            lost: BTreeMap::new(),
            handles: Arc::new(()),
        }
    }

    /// A sector as the process sees it, zeros behind the end of the file.
    fn sector(&self, at: usize) -> [u8; SECTOR_BYTES] {
        let mut sector = [0; SECTOR_BYTES];
        let start = (at * SECTOR_BYTES).min(self.data.len());
        let end = (start + SECTOR_BYTES).min(self.data.len());
        sector[..end - start].copy_from_slice(&self.data[start..end]);
        sector
    }

    /// Remembers the sectors of a range as they are before they change.
    fn touch(&mut self, start: usize, end: usize) {
        for at in start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            if let Some(durable) = self.lost.remove(&at) {
                self.dirty.insert(at, vec![durable]);
                continue;
            }
            let before = Arc::new(self.sector(at));
            let versions = self.dirty.entry(at).or_default();
            versions.push(before);
            if versions.len() > VERSIONS + 1 {
                versions.remove(1);
            }
        }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        self.touch(offset, end);
        let data = Arc::make_mut(&mut self.data);
        if data.len() < end {
            data.resize(end, 0);
        }
        data[offset..end].copy_from_slice(bytes);
    }

    fn set_len(&mut self, len: usize) {
        let old = self.data.len();
        self.touch(len.min(old), len.max(old));
        Arc::make_mut(&mut self.data).resize(len, 0);
    }

    fn sync(&mut self) {
        self.dirty.clear();
        self.durable_len = self.data.len() as u64;
    }

    fn fail_sync(&mut self) {
        for (at, mut versions) in std::mem::take(&mut self.dirty) {
            self.lost.insert(at, versions.swap_remove(0));
        }
    }

    fn lose_power(&mut self, crash: Crash, chance: &mut Chance) {
        let scatter = crash == Crash::Scatter || crash == Crash::Tear;
        let (durable, newest) = (self.durable_len as usize, self.data.len());
        let len = match chance.below(3) {
            1 if scatter => newest,
            2 if scatter => durable.min(newest) + chance.below(durable.abs_diff(newest) + 1),
            _ => durable,
        };
        let lost = std::mem::take(&mut self.lost).into_iter();
        let lost = lost.map(|(at, durable)| (at, vec![durable]));
        let dirty = std::mem::take(&mut self.dirty).into_iter();
        let sectors: Vec<(usize, Vec<Sector>)> = dirty.chain(lost).collect();
        let mut data = self.data.to_vec();
        data.resize(data.len().max(len), 0);
        for (at, mut versions) in sectors {
            versions.push(Arc::new(self.sector(at)));
            let mut pick = || match chance.below(4) {
                _ if !scatter => 0,
                0 | 1 => versions.len() - 1,
                2 => 0,
                _ => chance.below(versions.len()),
            };
            let (one, other) = (pick(), pick());
            let mut sector = *versions[one];
            if crash == Crash::Tear && chance.below(4) == 0 {
                let split = chance.below(SECTOR_BYTES + 1);
                sector[split..].copy_from_slice(&versions[other][split..]);
            }
            let start = (at * SECTOR_BYTES).min(data.len());
            let end = (start + SECTOR_BYTES).min(data.len());
            data[start..end].copy_from_slice(&sector[..end - start]);
        }
        data.truncate(len);
        self.durable_len = len as u64;
        self.data = Arc::new(data);
    }
}

impl Disk for FaultDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        let inner = self.lock();
        inner.powered()?;
        Ok(inner.names.keys().cloned().collect())
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let inner = self.lock();
        inner.powered()?;
        let id = inner.find(name)?;
        Ok(self.file(&inner, id))
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut inner = self.lock();
        inner.call()?;
        if inner.names.contains_key(name) {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{name} exists")));
        }
        let id = inner.next_inode;
        inner.next_inode += 1;
        inner.inodes.insert(id, Inode::new());
        inner.change_names(vec![(name.to_owned(), Some(id))]);
        Ok(self.file(&inner, id))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        let id = inner.find(from)?;
        if from != to {
            inner.change_names(vec![(from.to_owned(), None), (to.to_owned(), Some(id))]);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        inner.find(name)?;
        inner.change_names(vec![(name.to_owned(), None)]);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.call()?;
        let number = inner.counts.dir_syncs;
        inner.counts.dir_syncs += 1;
        if inner.faults.fail_sync_dir == Some(number) {
            return Err(failure("sync of the directory"));
        }
        if !inner.faults.skip_dir_syncs {
            inner.durable_names = inner.names.clone();
            inner.name_changes.clear();
            inner.forget_unused();
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let inner = self.lock();
        inner.powered()?;
        Ok(inner.free())
    }
}

impl FaultDisk {
    fn file(&self, inner: &Inner, id: u64) -> Arc<dyn File> {
        Arc::new(FaultFile {
            disk: self.clone(),
            id,
            life: inner.life,
            _handle: Arc::clone(&inner.inodes[&id].handles),
        })
    }
}

#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    id: u64,
    life: u64,
    _handle: Arc<()>,
}

impl FaultFile {
    fn lock(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.lock();
        if inner.life != self.life {
            return Err(failure("the file was opened before the crash"));
        }
        Ok(inner)
    }
}

/// The handle keeps its inode alive.
fn inode(inner: &mut Inner, id: u64) -> &mut Inode {
    inner.inodes.get_mut(&id).expect("an open file has an inode")
}

impl File for FaultFile {
    fn len(&self) -> io::Result<u64> {
        let mut inner = self.lock()?;
        inner.powered()?;
        Ok(inode(&mut inner, self.id).data.len() as u64)
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.powered()?;
        let number = inner.counts.reads;
        inner.counts.reads += 1;
        if inner.faults.fail_read == Some(number) {
            return Err(failure("read"));
        }
        if inner.faults.deny_reads {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "injected: no permission"));
        }
        let data = &inode(&mut inner, self.id).data;
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        match data.get(start..start.saturating_add(buf.len())) {
            Some(bytes) => {
                buf.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before")),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.call()?;
        let number = inner.counts.writes;
        inner.counts.writes += 1;
        let free = inner.free();
        let fails = inner.faults.fail_write == Some(number);
        let inode = inode(&mut inner, self.id);
        let offset = offset as usize;
        if fails {
            inode.write(offset, &buf[..buf.len() / 2]);
            return Err(failure("write"));
        }
        let grows = ((offset + buf.len()) as u64).saturating_sub(inode.data.len() as u64);
        if grows > free {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "injected: the disk is full"));
        }
        inode.write(offset, buf);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.call()?;
        inode(&mut inner, self.id).set_len(len as usize);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.lock()?;
        inner.call()?;
        let number = inner.counts.syncs;
        inner.counts.syncs += 1;
        let fails = inner.faults.fail_sync == Some(number);
        let skips = inner.faults.skip_syncs;
        let inode = inode(&mut inner, self.id);
        if fails {
            inode.fail_sync();
            return Err(failure("sync"));
        }
        if !skips {
            inode.sync();
        }
        Ok(())
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): the same numbers from the same seed in every release.
pub(in crate::store) struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A file whose first two sectors hold `a`, durably, and then `b`, not synced.
    fn written() -> (FaultDisk, Arc<dyn File>) {
        let disk = FaultDisk::new();
        let file = disk.create("f").unwrap();
        file.write_at(0, &[b'a'; 2 * SECTOR_BYTES]).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        file.write_at(0, &[b'b'; 2 * SECTOR_BYTES]).unwrap();
        (disk, file)
    }

    #[test]
    fn a_power_loss_takes_what_was_not_synced() {
        let (disk, file) = written();
        disk.crash(Crash::Lose, 0);
        assert_eq!(disk.contents("f").unwrap(), [b'a'; 2 * SECTOR_BYTES]);
        assert!(file.sync().is_err(), "a handle from before the crash");

        let (disk, file) = written();
        file.sync().unwrap();
        disk.crash(Crash::Lose, 0);
        assert_eq!(disk.contents("f").unwrap(), [b'b'; 2 * SECTOR_BYTES]);
    }

    #[test]
    fn a_kill_takes_nothing_and_makes_nothing_durable() {
        let (disk, _file) = written();
        disk.crash(Crash::Kill, 0);
        assert_eq!(disk.contents("f").unwrap(), [b'b'; 2 * SECTOR_BYTES]);
        disk.crash(Crash::Lose, 0);
        assert_eq!(disk.contents("f").unwrap(), [b'a'; 2 * SECTOR_BYTES]);
    }

    #[test]
    fn sectors_survive_in_any_combination_and_in_parts() {
        let mut seen = BTreeSet::new();
        let mut torn = 0;
        for seed in 0..200 {
            for crash in [Crash::Scatter, Crash::Tear] {
                let (disk, _file) = written();
                disk.crash(crash, seed);
                let bytes = disk.contents("f").unwrap();
                let (first, second) = bytes.split_at(SECTOR_BYTES);
                let whole = |sector: &[u8]| sector.iter().all(|byte| *byte == sector[0]);
                if whole(first) && whole(second) {
                    seen.insert((first[0], second[0]));
                } else {
                    assert_eq!(crash, Crash::Tear);
                    torn += 1;
                }
            }
        }
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert!(torn > 10, "{torn}");
    }

    #[test]
    fn an_older_version_of_a_sector_may_be_the_one_that_survives() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let (disk, file) = written();
            file.write_at(0, b"c").unwrap();
            disk.crash(Crash::Scatter, seed);
            seen.insert(disk.contents("f").unwrap()[0]);
        }
        assert_eq!(seen, BTreeSet::from([b'a', b'b', b'c']));
    }

    #[test]
    fn a_failed_sync_is_not_made_good_by_the_next() {
        let (disk, file) = written();
        disk.set_faults(Faults { fail_sync: Some(1), ..Faults::default() });
        assert!(file.sync().is_err());
        file.sync().unwrap();
        assert_eq!(disk.contents("f").unwrap()[0], b'b', "it still reads like that");
        let repaired = disk.fork();
        disk.crash(Crash::Lose, 0);
        assert_eq!(disk.contents("f").unwrap()[0], b'a', "but it was not on the disk");

        let file = repaired.open("f").unwrap();
        file.write_at(0, &[b'b'; 2 * SECTOR_BYTES]).unwrap();
        file.sync().unwrap();
        repaired.crash(Crash::Lose, 0);
        assert_eq!(repaired.contents("f").unwrap()[0], b'b', "writing it again helps");
    }

    #[test]
    fn names_are_durable_after_a_sync_of_the_directory() {
        let names = |prepare: &dyn Fn(&FaultDisk)| {
            let disk = FaultDisk::new();
            disk.create("old").unwrap();
            disk.sync_dir().unwrap();
            prepare(&disk);
            disk.crash(Crash::Lose, 0);
            disk.list().unwrap()
        };
        assert_eq!(names(&|disk| drop(disk.create("new").unwrap())), ["old"]);
        assert_eq!(names(&|disk| disk.remove("old").unwrap()), ["old"]);
        assert_eq!(names(&|disk| disk.rename("old", "new").unwrap()), ["old"]);
        let synced = names(&|disk| {
            disk.rename("old", "new").unwrap();
            disk.sync_dir().unwrap();
        });
        assert_eq!(synced, ["new"]);
        let skipped = names(&|disk| {
            disk.set_faults(Faults { skip_dir_syncs: true, ..Faults::default() });
            disk.rename("old", "new").unwrap();
            disk.sync_dir().unwrap();
        });
        assert_eq!(skipped, ["old"]);
    }

    #[test]
    fn a_removed_file_stays_readable_through_its_handle() {
        let disk = FaultDisk::new();
        let file = disk.create("f").unwrap();
        file.write_at(0, b"x").unwrap();
        disk.remove("f").unwrap();
        disk.sync_dir().unwrap();
        let mut byte = [0];
        file.read_at(0, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
        drop(file);
        disk.sync_dir().unwrap();
        assert_eq!(disk.lock().inodes.len(), 0, "and is freed with it");
    }

    #[test]
    fn the_power_goes_off_at_a_call_and_space_runs_out() {
        let (disk, file) = written();
        let calls = disk.counts().calls;
        disk.set_faults(Faults { power_off_at: Some(calls + 1), ..Faults::default() });
        file.write_at(0, b"x").unwrap();
        assert!(file.write_at(0, b"y").is_err());
        assert!(file.read_at(0, &mut [0]).is_err());
        assert!(disk.list().is_err());
        disk.crash(Crash::Kill, 0);
        assert_eq!(disk.contents("f").unwrap()[0], b'x');

        let len = 2 * SECTOR_BYTES as u64;
        disk.set_faults(Faults { capacity: Some(len + 4), ..Faults::default() });
        let file = disk.open("f").unwrap();
        assert_eq!(disk.free_bytes().unwrap(), 4);
        let full = file.write_at(len, &[0; 5]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        file.write_at(len, &[0; 4]).unwrap();
        file.write_at(0, &[0; 9]).unwrap();
    }

    #[test]
    fn the_same_seed_gives_the_same_disk() {
        let run = |seed| {
            let (disk, file) = written();
            file.write_at(700, &[b'c'; 900]).unwrap();
            disk.crash(Crash::Tear, seed);
            disk.contents("f")
        };
        assert!((0..50).all(|seed| run(seed) == run(seed)));
    }
}
