//! The thread: order, groups, failure, shutdown. On real files.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Condvar, Mutex, mpsc};
use std::time::Duration;

use super::*;
use crate::store::disk::{File, RealDisk};

fn no_failure() -> Box<dyn Fn(io::Error) + Send> {
    Box::new(|error| panic!("{error}"))
}

#[test]
fn callbacks_come_in_order_and_after_the_sync() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let options = WalOptions { segment_bytes: 64 * 1024, ..options(true) };
    let (core, _) = WalCore::open(disk.clone(), options).unwrap();
    let wal = Wal::spawn(core, no_failure());
    let (sender, receiver) = mpsc::channel();
    for index in 1..=2000u64 {
        let (sender, reader) = (sender.clone(), wal.reader());
        let done = Box::new(move |result: io::Result<()>| {
            result.unwrap();
            let found = reader.read(index..index + 1, 0).unwrap();
            sender.send((index, found[0].1.len())).unwrap();
        });
        wal.submit(vec![entry(index, vec![1; (index % 300) as usize])], done);
    }
    for index in 1..=2000u64 {
        assert_eq!(receiver.recv().unwrap(), (index, (index % 300) as usize));
    }
    let stats = wal.stats();
    assert!(stats.syncs < 1500, "{stats:?}: there are groups");
    assert!(stats.last_sync.as_nanos() > 0 && stats.queued == 0);
    wal.submit(vec![Write::Committed("c".into())], Box::new(|result| result.unwrap()));
    wal.shutdown();
    wal.shutdown();
    let (sender, receiver) = mpsc::channel();
    wal.submit(vec![vote("v")], Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);

    let (core, recovered) = WalCore::open(disk, WalOptions { create: false, ..options }).unwrap();
    assert_eq!((recovered.last, recovered.committed), (Some(2000), Some("c".into())));
    assert!(core.active.number > 4);
}

/// Without another write, without a shutdown: the last group is told from a tear once a pause has come.
#[test]
fn a_pause_seals_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let disk: Arc<RealDisk> = Arc::new(RealDisk::open(directory.path()).unwrap());
    let (core, _) = WalCore::open(disk.clone(), options(true)).unwrap();
    let wal = Wal::spawn(core, no_failure());
    let (sender, receiver) = mpsc::channel();
    for index in 1..4 {
        let sender = sender.clone();
        let done = Box::new(move |result: io::Result<()>| sender.send(result).unwrap());
        wal.submit(vec![entry(index, "payload")], done);
        receiver.recv().unwrap().unwrap();
    }
    let segment = directory.path().join(&disk.list().unwrap()[0]);
    let frames = || {
        let bytes = std::fs::read(&segment).unwrap();
        bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count()
    };
    let at_once = frames();
    let (_nothing, pause) = mpsc::channel::<()>();
    let looks = (0..5_000).map(|_| {
        _ = pause.recv_timeout(Duration::from_millis(2));
        frames()
    });
    assert!(looks.into_iter().any(|end| end > at_once), "it is not sealed");
    let mut bytes = std::fs::read(&segment).unwrap();
    let last = bytes.windows(7).rposition(|window| window == b"payload").unwrap();
    bytes[last] ^= 1;
    let copy = tempfile::tempdir().unwrap();
    std::fs::write(copy.path().join(segment.file_name().unwrap()), bytes).unwrap();
    let copy = Arc::new(RealDisk::open(copy.path()).unwrap());
    let opened = WalCore::open(copy, options(false));
    assert!(matches!(opened, Err(OpenError::Damaged { .. })), "{opened:?}");
    wal.shutdown();
}

#[test]
fn a_dropped_log_finishes_what_was_submitted() {
    let disk = FaultDisk::new();
    let wal = Wal::spawn(create(&disk), no_failure());
    let (sender, receiver) = mpsc::channel();
    for index in 1..50 {
        let sender = sender.clone();
        wal.submit(vec![entry(index, "x")], Box::new(move |result| sender.send(result).unwrap()));
    }
    drop((wal, sender));
    assert_eq!(receiver.iter().filter(Result::is_ok).count(), 49);
}

#[test]
fn a_failure_is_told_first_to_who_ends_the_process_and_then_to_all() {
    let disk = FaultDisk::new();
    let (sender, receiver) = mpsc::channel();
    let failure = sender.clone();
    let on_failure = move |error: io::Error| failure.send(error.to_string()).unwrap();
    let wal = Wal::spawn(create(&disk), Box::new(on_failure));
    let submit = |index| {
        let sender = sender.clone();
        let done = move |result: io::Result<()>| {
            sender.send(format!("{index} {}", result.is_ok())).unwrap();
        };
        wal.submit(vec![entry(index, "x")], Box::new(done));
    };
    submit(1);
    assert_eq!(receiver.recv().unwrap(), "1 true");
    disk.set_faults(Faults { fail_sync: Some(disk.counts().syncs), ..Faults::default() });
    (2..=20).for_each(submit);
    wal.shutdown();
    drop((wal, sender));
    let told: Vec<String> = receiver.iter().collect();
    assert_eq!(told[0], "injected: sync");
    // Refused by two threads, so in no order.
    let rest: BTreeSet<String> = (2..=20).map(|index| format!("{index} false")).collect();
    assert_eq!(BTreeSet::from_iter(told[1..].iter().cloned()), rest);
    assert_eq!(told.len(), 20);
    disk.set_faults(Faults::default());
    disk.crash(Crash::Lose, 0);
    assert_eq!(open(&disk).unwrap().1.last, Some(1));
}

#[test]
fn a_write_that_does_not_follow_ends_the_log() {
    let (sender, receiver) = mpsc::channel();
    let failure = sender.clone();
    let on_failure = move |error: io::Error| failure.send(error.kind()).unwrap();
    let wal = Wal::spawn(create(&FaultDisk::new()), Box::new(on_failure));
    let gap = vec![entry(1, "x"), entry(7, "x")];
    wal.submit(gap, Box::new(move |result| sender.send(result.unwrap_err().kind()).unwrap()));
    wal.shutdown();
    assert_eq!(receiver.iter().collect::<Vec<_>>(), [io::ErrorKind::InvalidInput; 2]);
}

#[test]
fn a_panic_in_a_callback_leaves_nobody_waiting() {
    let told = Arc::new(AtomicBool::new(false));
    let failure = Arc::clone(&told);
    let on_failure = move |_: io::Error| failure.store(true, Ordering::SeqCst);
    let wal = Wal::spawn(create(&FaultDisk::new()), Box::new(on_failure));
    wal.submit(vec![entry(1, "x")], Box::new(|_| panic!("on purpose")));
    wal.shutdown();
    assert!(told.load(Ordering::SeqCst));
    let (sender, receiver) = mpsc::channel();
    wal.submit(vec![entry(2, "x")], Box::new(move |result| sender.send(result).unwrap()));
    assert!(receiver.recv().unwrap().is_err());
}

/// A disk whose syncs wait for a permit.
#[derive(Debug)]
struct Gate {
    disk: FaultDisk,
    open: Arc<(Mutex<bool>, Condvar)>,
}

#[derive(Debug)]
struct GateFile {
    file: Arc<dyn File>,
    open: Arc<(Mutex<bool>, Condvar)>,
}

impl Gate {
    fn set(&self, open: bool) {
        *self.open.0.lock().unwrap() = open;
        self.open.1.notify_all();
    }

    fn wrap(&self, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(GateFile { file, open: Arc::clone(&self.open) })
    }
}

impl Disk for Gate {
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.disk.open(name)?))
    }
    fn create(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.wrap(self.disk.create(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.disk.remove(name)
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
}

impl File for GateFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write_at(offset, buf)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        let mut open = self.open.0.lock().unwrap();
        while !*open {
            open = self.open.1.wait(open).unwrap();
        }
        self.file.sync()
    }
}

#[test]
fn a_full_queue_makes_the_submitter_wait() {
    let disk = Arc::new(Gate { disk: FaultDisk::new(), open: Arc::default() });
    disk.set(true);
    let (core, _) = WalCore::open(disk.clone(), options(true)).unwrap();
    let wal = Wal::spawn(core, no_failure());
    disk.set(false);
    let (submitted, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let total = 3 * limits::WAL_QUEUE;
    let submitter = {
        let (wal, submitted, done) = (wal.clone(), Arc::clone(&submitted), Arc::clone(&done));
        std::thread::spawn(move || {
            for _ in 0..total {
                let done = Arc::clone(&done);
                let count = move |result: io::Result<()>| {
                    result.unwrap();
                    done.fetch_add(1, Ordering::SeqCst);
                };
                wal.submit(vec![vote("v")], Box::new(count));
                submitted.fetch_add(1, Ordering::SeqCst);
            }
        })
    };
    // One group is with the driver, which waits for the disk, and one queue is full.
    while wal.stats().queued < limits::WAL_QUEUE {
        std::thread::yield_now();
    }
    assert_eq!(wal.stats().queued, limits::WAL_QUEUE);
    assert!(submitted.load(Ordering::SeqCst) <= 2 * limits::WAL_QUEUE);
    assert_eq!(done.load(Ordering::SeqCst), 0, "nothing before the sync");
    disk.set(true);
    submitter.join().unwrap();
    wal.shutdown();
    assert_eq!(done.load(Ordering::SeqCst), total);
}

/// The roll neither prepares a second file nor goes on without one.
#[test]
fn a_roll_waits_for_the_preparation_under_way() {
    let disk = Arc::new(Gate { disk: FaultDisk::new(), open: Arc::default() });
    disk.set(true);
    let (mut core, _) = WalCore::open(disk.clone(), options(true)).unwrap();
    for index in 1..8 {
        core.stage(&entry(index, vec![1; 400])).unwrap();
        core.commit().unwrap();
    }
    let job = core.job().unwrap();
    disk.set(false);
    let calls = disk.disk.counts().calls;
    let helper = std::thread::spawn(move || job.run());
    while disk.disk.counts().calls == calls {
        std::thread::yield_now();
    }
    let rolled = Arc::new(AtomicBool::new(false));
    let writer = {
        let rolled = Arc::clone(&rolled);
        std::thread::spawn(move || {
            core.stage(&entry(8, vec![1; 6000])).unwrap();
            rolled.store(true, Ordering::SeqCst);
            core.commit().unwrap();
            core
        })
    };
    assert!(!rolled.load(Ordering::SeqCst));
    disk.set(true);
    helper.join().unwrap();
    let core = writer.join().unwrap();
    assert_eq!(core.active.number, 2);
    assert_eq!(disk.list().unwrap(), [segment::name(1), segment::name(2)]);
}

/// Readers beside a writer that purges and reuses: they get what was written, or hear that it is
/// gone.
#[test]
fn readers_beside_the_writer_see_whole_entries() {
    let directory = tempfile::tempdir().unwrap();
    let disk = Arc::new(RealDisk::open(directory.path()).unwrap());
    let (core, _) = WalCore::open(disk, options(true)).unwrap();
    let wal = Wal::spawn(core, no_failure());
    let stop = Arc::new(AtomicBool::new(false));
    let payload = |index: u64| vec![index as u8; 100 + (index % 200) as usize];
    let readers: Vec<_> = (0..2)
        .map(|seed| {
            let (reader, stop) = (wal.reader(), Arc::clone(&stop));
            std::thread::spawn(move || {
                let (mut chance, mut read, mut gone) = (Chance(seed), 0, 0);
                while !stop.load(Ordering::SeqCst) {
                    let Some((first, last)) = reader.bounds() else { continue };
                    let from = first + chance.below((last - first + 1) as usize) as u64;
                    match reader.read(from..from + 20, 4000) {
                        Ok(found) => {
                            assert!(!found.is_empty());
                            for ((index, bytes), at) in found.into_iter().zip(from..) {
                                assert_eq!((index, bytes.to_vec()), (at, payload(at)));
                                read += 1;
                            }
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
                            gone += 1;
                        }
                    }
                }
                (read, gone)
            })
        })
        .collect();
    for index in 1..=6000u64 {
        let mut writes = vec![entry(index, payload(index))];
        if index % 40 == 0 {
            writes.push(purged(index - 30));
        }
        wal.submit(writes, Box::new(|result| result.unwrap()));
        // Small groups, so that there is something to read all the time.
        while wal.stats().queued > 20 {
            std::thread::yield_now();
        }
    }
    stop.store(true, Ordering::SeqCst);
    for reader in readers {
        let (read, gone) = reader.join().unwrap();
        assert!(read > 100, "{read} read, {gone} gone");
    }
    wal.shutdown();
    assert!(wal.stats().bytes_on_disk <= 16 * SEGMENT_BYTES, "{:?}", wal.stats());
}
