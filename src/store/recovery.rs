//! Puts the state together again at start-up, from the image and the snapshot files. Whatever is
//! damaged is set aside and reported; the newest copy that is whole is the state.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use super::checkpoint::Error;
use super::disk::Disk;
use super::image::{self, Image, ImageMeta, ImageStore, Point, Tally};
use super::snapshot::{self, Reader, SnapshotMeta};
use crate::limits::{RESTORE_BATCH_BYTES, RESTORE_BATCHES, SNAPSHOTS_SET_ASIDE};
use crate::panic;
use crate::state::{Key, Meta, Record, State};

/// Where the state of a start came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// There was neither an image nor a snapshot.
    Empty,
    Image,
    /// Name of the file.
    Snapshot(String),
}

/// What a start found.
#[derive(Debug)]
pub struct Recovery {
    pub state: State,
    /// Up to where the state goes. None: nothing was applied. The log must hold what follows; see
    /// [`Recovery::covers`].
    pub point: Option<Point>,
    pub origin: Origin,
    /// The newest snapshot that is whole: what may be sent to other members.
    pub snapshot: Option<SnapshotMeta>,
    /// What was unusual, one sentence each: for the log, at level warn.
    pub report: Vec<String>,
    /// The snapshots that were received and were to be put in place, if this node has made none since.
    installing: BTreeSet<u64>,
}

impl Recovery {
    /// Checks that the log goes on where the state ends. `first` is the log's first index, or the one
    /// after what was purged when the log is empty; None = the log never had an entry. The first entry
    /// of a cluster has index 0.
    pub fn covers(&self, first: Option<u64>) -> Result<(), String> {
        covers(self.point.as_ref().map(|point| point.index), first)
    }

    /// Where image or snapshot end, when they end behind the log, whose last index is `last`, purged ones included.
    /// What they hold was in the log and synced before, so the log was replaced by an older one; only an installation
    /// that was interrupted looks the same.
    pub fn beyond(&self, last: Option<u64>) -> Option<u64> {
        let end = |point: &Point| point.index;
        let snapshot = self.snapshot.as_ref().map(|snapshot| end(&snapshot.point));
        let end = self.point.as_ref().map(end).max(snapshot);
        end.filter(|index| end > last && !self.installing.contains(index))
    }
}

/// See [`Recovery::covers`]: a state that goes up to `index`, or is empty.
pub fn covers(index: Option<u64>, first: Option<u64>) -> Result<(), String> {
    let next = index.map_or(0, |index| index + 1);
    match first {
        Some(first) if first > next => Err(format!(
            "the log begins at index {first}, the state lacks everything from {next}: this node \
             has lost committed entries"
        )),
        Some(_) | None => Ok(()),
    }
}

/// An error that says nothing of what the disk holds.
fn may_pass(error: &io::Error) -> bool {
    const TOO_MANY_OPEN_FILES: [i32; 2] = [23, 24];
    let passing = [
        io::ErrorKind::ResourceBusy,
        io::ErrorKind::StorageFull,
        io::ErrorKind::QuotaExceeded,
        io::ErrorKind::PermissionDenied,
    ];
    let number = error.raw_os_error();
    passing.contains(&error.kind()) || number.is_some_and(|it| TOO_MANY_OPEN_FILES.contains(&it))
}

/// An end of recovery that says nothing against the image.
fn spares_the_image(error: &Error) -> bool {
    match error {
        Error::Image(image::Error::Io(source))
        | Error::Io { source, .. }
        | Error::Snapshot(snapshot::Error::Io { source, .. }) => may_pass(source),
        Error::Snapshot(error) => matches!(error, snapshot::Error::Version { .. }),
        _ => false,
    }
}

/// The image, as new as the state that is returned with it.
pub(super) fn recover(
    mut store: Box<dyn ImageStore>,
    disk: &dyn Disk,
    cluster_id: &str,
) -> Result<(Box<dyn Image>, Recovery), Error> {
    let recovered = recover_from(&mut *store, disk, cluster_id);
    match &recovered {
        Ok(_) => {
            let io = |source| Error::Io { what: "confirming the image".to_owned(), source };
            store.confirm().map_err(io)?;
        }
        // Best effort: the error is to be told.
        Err(error) if spares_the_image(error) => _ = store.confirm(),
        Err(_) => {}
    }
    recovered
}

fn recover_from(
    store: &mut dyn ImageStore,
    disk: &dyn Disk,
    cluster_id: &str,
) -> Result<(Box<dyn Image>, Recovery), Error> {
    let mut report = Vec::new();
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Io { what, source }
    };
    if snapshot::clean_tmp(disk).map_err(io("cleaning the snapshot directory"))? {
        report.push("removed files of an interrupted snapshot or transfer".to_owned());
    }

    let (mut image, from_image) = match open_image(store) {
        Ok(opened) => opened,
        Err(image::Error::Io(error)) if may_pass(&error) => {
            return Err(image::Error::Io(error).into());
        }
        Err(error) => {
            let place = store.set_aside().map_err(io("setting the image aside"))?;
            report.push(format!("{error}; set aside as {place}, rebuilding it"));
            (store.open()?, None)
        }
    };
    let image_index = from_image.as_ref().map(|(meta, _)| meta.point.index);

    let newest = newest_snapshot(disk, cluster_id, image_index, &mut report)?;
    let newest_meta = newest.as_ref().map(|found| found.meta.clone());
    let (state, point, origin) = match (from_image, newest) {
        (_, Some(Found { meta, state: Some(state) })) => {
            report.push(match image_index {
                Some(index) => {
                    format!("the image ends at {index}: rebuilt from the newer {}", meta.name)
                }
                None => format!("there was no complete image: built from {}", meta.name),
            });
            refill(&mut *image, disk, &meta)?;
            (state, Some(meta.point), Origin::Snapshot(meta.name))
        }
        (Some((meta, state)), _) => (state, Some(meta.point), Origin::Image),
        (None, _) => {
            image.reset()?;
            (State::default(), None, Origin::Empty)
        }
    };
    let names = disk.list().map_err(io("listing the snapshots"))?;
    let installing = names.iter().filter_map(|name| snapshot::installing_index(name)).collect();
    let snapshot = newest_meta;
    Ok((image, Recovery { state, point, origin, snapshot, report, installing }))
}

/// The image and its state; no state when nothing was written, or a refill was interrupted.
type Opened = (Box<dyn Image>, Option<(ImageMeta, State)>);

fn open_image(store: &mut dyn ImageStore) -> Result<Opened, image::Error> {
    let image = store.open()?;
    let Some(meta) = image.meta() else { return Ok((image, None)) };
    let (tally, state) = read_all(|take| image.visit(take)).map_err(|error| match error {
        LoadError::Source(error) => error,
        LoadError::Content(why) => image::Error::damaged(why),
        LoadError::Thread(error) => image::Error::Io(error),
    })?;
    tally.check(meta.records, meta.digest).map_err(image::Error::damaged)?;
    Ok((image, Some((meta, state))))
}

enum LoadError<E> {
    Source(E),
    Content(String),
    /// There is no thread to be had.
    Thread(io::Error),
}

/// The state of the records that `read` hands to what it is given, and what they add up to: nothing has compared that
/// with anything yet. A thread of its own reads on while this one makes the state. It reads to the end even when
/// the state cannot be made: what is read of a disk does not depend on which of the two is ahead.
fn read_all<E: Send>(
    read: impl FnOnce(&mut dyn FnMut(&[u8], &[u8])) -> Result<(), E> + Send,
) -> Result<(Tally, State), LoadError<E>> {
    let (batches, received) = mpsc::sync_channel(RESTORE_BATCHES);
    let (read, made) = thread::scope(|scope| {
        let reader = thread::Builder::new()
            .name("recovery".to_owned())
            .spawn_scoped(scope, move || hand_over(read, &batches))
            .map_err(|error| {
                LoadError::Thread(io::Error::new(io::ErrorKind::ResourceBusy, error))
            })?;
        let made = make(received);
        Ok((reader.join().expect("it is guarded"), made))
    })?;
    // Of two errors the one that came first: nothing that follows an unreadable record was handed over.
    match (read, made) {
        (_, Err(Unmade::Content(why))) => Err(LoadError::Content(why)),
        (Err(error), _) => Err(error),
        (Ok(()), Ok(made)) => Ok(made),
        (Ok(()), Err(Unmade::BrokenOff)) => unreachable!("only an error says so"),
    }
}

/// None at the end says that reading failed.
fn hand_over<E>(
    read: impl FnOnce(&mut dyn FnMut(&[u8], &[u8])) -> Result<(), E>,
    batches: &SyncSender<Option<Batch>>,
) -> Result<(), LoadError<E>> {
    let mut batch = Batch::default();
    // Nobody takes them any more when the state cannot be made.
    let hand = |batch: &mut Batch| _ = batches.send(Some(std::mem::take(batch)));
    let read = panic::guarded(|| {
        read(&mut |key, value| {
            batch.push(key, value);
            if batch.bytes.len() >= RESTORE_BATCH_BYTES {
                hand(&mut batch);
            }
        })
    });
    hand(&mut batch);
    let read = match read {
        Ok(read) => read.map_err(LoadError::Source),
        Err(message) => Err(LoadError::Content(format!("reading it panicked: {message}"))),
    };
    if read.is_err() {
        let _ = batches.send(None);
    }
    read
}

/// Why there is no state.
enum Unmade {
    /// The records have no end: what there is of them need not be a state.
    BrokenOff,
    Content(String),
}

/// Some records, one after the other.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    /// Where the key of each ends, and its value.
    ends: Vec<(usize, usize)>,
}

impl Batch {
    fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((key_end, self.bytes.len()));
    }

    /// Key and value of one of them.
    fn row(&self, number: usize) -> Option<(&[u8], &[u8])> {
        let (key_end, end) = *self.ends.get(number)?;
        let begin = number.checked_sub(1).map_or(0, |before| self.ends[before].1);
        Some((&self.bytes[begin..key_end], &self.bytes[key_end..end]))
    }
}

/// Damaged records may contradict each other, and even a defect of ours would be no reason to fail at every
/// start when there is another copy.
fn make(batches: Receiver<Option<Batch>>) -> Result<(Tally, State), Unmade> {
    let mut tally = Tally::default();
    let (mut batch, mut next) = (Batch::default(), 0);
    let records = std::iter::from_fn(|| {
        while next == batch.ends.len() {
            match batches.recv().ok()? {
                Some(received) => (batch, next) = (received, 0),
                None => return Some(Err(Unmade::BrokenOff)),
            }
        }
        let (key, value) = batch.row(next)?;
        next += 1;
        tally.add(key, value);
        Some(Record::decode_row(key, value).map_err(|error| Unmade::Content(error.to_string())))
    });
    let state = panic::guarded(|| State::restore(records))
        .unwrap_or_else(|_| Err(Unmade::Content("its records contradict each other".to_owned())))?;
    Ok((tally, state))
}

pub(super) fn first_meta(key: &[u8], value: &[u8]) -> Option<Meta> {
    match Record::decode_row(key, value) {
        Ok((Key::Meta, Record::Meta(meta))) => Some(meta),
        Ok(_) | Err(_) => None,
    }
}

/// Replaces the image's content by that of a snapshot file. The image has no meta before the end.
pub(super) fn refill(
    image: &mut dyn Image,
    disk: &dyn Disk,
    meta: &SnapshotMeta,
) -> Result<(), Error> {
    image.reset()?;
    let mut reader = Reader::open(disk, &meta.name)?;
    let mut failure = None;
    let mut rows = std::iter::from_fn(|| match reader.next_row() {
        Ok(row) => row,
        Err(error) => {
            failure = Some(error);
            None
        }
    });
    image.fill(&mut rows)?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let written = image.write(&mut std::iter::empty(), &meta.point)?;
    let tally = Tally { records: written.records, digest: written.digest };
    Ok(tally.check(meta.records, meta.digest).map_err(image::Error::damaged)?)
}

/// Reads a snapshot once: the reader checks every byte, and fails at the end if not before.
pub(super) fn load_snapshot(
    disk: &dyn Disk,
    name: &str,
    cluster_id: &str,
) -> Result<(SnapshotMeta, State), snapshot::Error> {
    let damaged = |why: String| snapshot::Error::Damaged { name: name.to_owned(), offset: 0, why };
    let mut reader = Reader::open(disk, name)?;
    check_cluster(name, &reader.head().cluster_id, cluster_id)?;
    let (_, state) = read_all(|take| reader.visit(take)).map_err(|error| match error {
        LoadError::Source(error) => error,
        LoadError::Content(why) => damaged(why),
        LoadError::Thread(error) => snapshot::Error::io("restoring a snapshot")(error),
    })?;
    let meta = reader.meta().expect("a reader that ended without an error has read the footer");
    Ok((meta, state))
}

fn check_snapshot(
    disk: &dyn Disk,
    name: &str,
    cluster_id: &str,
) -> Result<SnapshotMeta, snapshot::Error> {
    let meta = snapshot::verify(disk, name)?;
    check_cluster(name, &meta.cluster_id, cluster_id)?;
    Ok(meta)
}

fn check_cluster(name: &str, found: &str, expected: &str) -> Result<(), snapshot::Error> {
    if found == expected {
        return Ok(());
    }
    let (name, found, expected) = (name.to_owned(), found.to_owned(), expected.to_owned());
    Err(snapshot::Error::ForeignCluster { name, found, expected })
}

/// A snapshot that is whole, with its state when that is newer than the image's.
struct Found {
    meta: SnapshotMeta,
    state: Option<State>,
}

/// The newest snapshot that is whole. Damaged ones are renamed, so that nobody takes them again;
/// ones that cannot be read stay, for the next start may be able to.
fn newest_snapshot(
    disk: &dyn Disk,
    cluster_id: &str,
    image_index: Option<u64>,
    report: &mut Vec<String>,
) -> Result<Option<Found>, Error> {
    let io = |source| Error::Io { what: "listing the snapshots".to_owned(), source };
    for (index, name) in snapshot::list(disk).map_err(io)?.into_iter().rev() {
        let newer = image_index.is_none_or(|image_index| index > image_index);
        let found = if newer {
            load_snapshot(disk, &name, cluster_id)
                .map(|(meta, state)| Found { meta, state: Some(state) })
        } else {
            check_snapshot(disk, &name, cluster_id).map(|meta| Found { meta, state: None })
        };
        match found {
            Ok(found) if found.meta.point.index == index => return Ok(Some(found)),
            Ok(found) => {
                let index = found.meta.point.index;
                report.push(format!("snapshot {name} holds index {index}; set aside"));
                set_aside(disk, &name)?;
            }
            // The state cannot do without it, unless it is damaged.
            Err(snapshot::Error::Io { what, source }) if newer && may_pass(&source) => {
                return Err(snapshot::Error::Io { what, source }.into());
            }
            Err(error @ snapshot::Error::Io { .. }) => {
                report.push(format!("{error}; it is left out"));
            }
            // Written by a later release: not ours to judge.
            Err(error @ snapshot::Error::Version { .. }) => return Err(error.into()),
            Err(error) => {
                report.push(format!("{error}; set aside"));
                set_aside(disk, &name)?;
            }
        }
    }
    Ok(None)
}

pub(super) fn set_aside(disk: &dyn Disk, name: &str) -> Result<(), Error> {
    let io = |source| Error::Io { what: format!("setting {name} aside"), source };
    disk.rename(name, &format!("{name}.damaged")).map_err(io)?;
    let mut aside = disk.list().map_err(io)?;
    aside.retain(|name| name.ends_with(".damaged"));
    for name in &aside[..aside.len().saturating_sub(SNAPSHOTS_SET_ASIDE)] {
        disk.remove(name).map_err(io)?;
    }
    disk.sync_dir().map_err(io)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::super::image::Row;
    use super::super::testing::World;
    use super::*;

    /// More than can wait between the two threads.
    const BYTES: usize = (RESTORE_BATCHES + 4) * RESTORE_BATCH_BYTES;

    fn large_state() -> Vec<Row> {
        let mut world = World::new(11);
        (0..50).for_each(|_| _ = world.entry());
        let encode = |(key, record): (Key, Record)| (key.encode(), record.encode());
        let mut rows: BTreeMap<_, _> = world.state.records().map(encode).collect();
        let known = world.state.records().find_map(|(_, record)| match record {
            Record::Instance(known) => Some(known),
            _ => None,
        });
        let mut more = Arc::unwrap_or_clone(known.unwrap());
        more.session = None;
        more.orphaned_at_ms = None;
        more.metadata = (0..8).map(|i| (i.to_string(), "x".repeat(1_000))).collect();
        for i in 0..BYTES / 8_000 {
            more.id = format!("more-{i}").into();
            rows.extend([encode((more.key(), Record::Instance(Arc::new(more.clone()))))]);
        }
        rows.into_iter().collect()
    }

    #[test]
    fn a_state_is_made_of_many_batches() {
        let rows = large_state();
        let read = |take: &mut dyn FnMut(&[u8], &[u8])| {
            rows.iter().for_each(|(key, value)| take(key, value));
            Ok::<_, ()>(())
        };
        let (tally, made) = read_all(read).unwrap_or_else(|_| panic!("nothing is wrong with them"));
        let records = made.records().map(|(key, record)| (key.encode(), record.encode()));
        assert!(records.eq(rows));
        assert_eq!((tally.digest, tally.records), made.digest());
    }

    /// Also when what came before an unreadable record makes no state by itself.
    #[test]
    fn of_two_errors_the_first_is_told() {
        let rows = large_state();
        let last = rows.len() - 1;
        let unreadable_only = (0..=last).map(|unreadable| (None, Some(unreadable)));
        let bad_only = [0, last / 2, last].map(|bad| (Some(bad), None));
        let both = [(0, last), (last / 2, last), (last, 3)].map(|(b, u)| (Some(b), Some(u)));
        for (bad, unreadable) in unreadable_only.chain(bad_only).chain(both) {
            let read = |take: &mut dyn FnMut(&[u8], &[u8])| {
                for (i, (key, value)) in rows.iter().enumerate() {
                    if Some(i) == unreadable {
                        return Err("unreadable");
                    }
                    take(key, if Some(i) == bad { &value[..1] } else { value });
                }
                Ok(())
            };
            let bad_first = bad.is_some_and(|bad| unreadable.is_none_or(|it| bad < it));
            match read_all(read) {
                Err(LoadError::Content(why)) => assert!(bad_first, "{unreadable:?}: {why}"),
                Err(LoadError::Source("unreadable")) => assert!(!bad_first, "{bad:?}"),
                _ => panic!("neither error was met"),
            }
        }
    }

    #[test]
    fn a_panic_while_reading_is_an_error() {
        let read = |take: &mut dyn FnMut(&[u8], &[u8])| {
            take(&Key::Meta.encode(), &Record::Meta(Meta::default()).encode());
            std::panic::panic_any("more of it".to_owned())
        };
        match read_all::<()>(read) {
            Err(LoadError::Content(why)) => assert_eq!(why, "reading it panicked: more of it"),
            _ => panic!("it was taken for a whole state"),
        }
    }
}
