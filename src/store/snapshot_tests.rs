//! Snapshot files and transfers: the bytes, every damage, every crash.
#![allow(clippy::unwrap_used)]

use std::convert::Infallible;
use std::sync::Arc;

use super::disk::Disk;
use super::fault::{Crash, FaultDisk, Faults};
use super::image::{Row, Tally};
use super::receiver::Receiver;
use super::snapshot::{self, Error, Head, Reader, SnapshotMeta};
use super::testing::point;
use crate::limits::{
    PEER_MESSAGE_BYTES, RECORD_BYTES, SNAPSHOT_BLOCK_BYTES, SNAPSHOT_FILE_BYTES,
    SNAPSHOT_RESERVE_BYTES,
};

const CLUSTER: &str = "production";

fn head(index: u64) -> Head {
    Head { cluster_id: CLUSTER.into(), point: point(index), revision: 77, now_ms: 123_456 }
}

fn small() -> Vec<Row> {
    vec![
        (vec![1], b"meta".to_vec()),
        (b"\x02default\0\x01".to_vec(), vec![]),
        (b"\x02shop\0\x01".to_vec(), b"a shop".to_vec()),
    ]
}

/// Some records are longer than a block.
fn large() -> Vec<Row> {
    let length = |i: u32| if i.is_multiple_of(50) { 300_000 } else { (i % 700) as usize };
    (0..201u32).map(|i| (i.to_be_bytes().to_vec(), vec![(i % 251) as u8; length(i)])).collect()
}

fn write(disk: &dyn Disk, index: u64, rows: &[Row]) -> Result<SnapshotMeta, Error> {
    snapshot::write(disk, &head(index), rows.iter().cloned().map(Ok::<_, Infallible>), None)
}

fn read(disk: &dyn Disk, name: &str) -> Result<Vec<Row>, Error> {
    Reader::open(disk, name)?.collect()
}

fn names(disk: &FaultDisk) -> Vec<String> {
    disk.list().unwrap()
}

#[test]
fn what_is_written_is_read() {
    for rows in [vec![], small(), large()] {
        let disk = FaultDisk::new();
        let meta = write(&disk, 42, &rows).unwrap();
        let mut tally = Tally::default();
        rows.iter().for_each(|(key, value)| tally.add(key, value));
        assert_eq!((meta.records, meta.digest), (tally.records, tally.digest));
        assert_eq!((meta.revision, meta.now_ms), (77, 123_456));
        assert_eq!(meta.point, point(42));
        assert_eq!(meta.cluster_id, CLUSTER);
        assert_eq!(meta.name, "snapshot-00000000000000000042.snap");
        assert_eq!(meta.bytes, disk.contents(&meta.name).unwrap().len() as u64);
        disk.crash(Crash::Lose, 0);
        assert_eq!(names(&disk), [&*meta.name]);
        assert_eq!(snapshot::verify(&disk, &meta.name).unwrap(), meta);
        assert_eq!(read(&disk, &meta.name).unwrap(), rows);
    }
}

/// The file as the first release writes it: it must stay readable, and be written like this.
#[test]
fn the_bytes_of_the_first_release() {
    const OLD: &str = include_str!("testdata/snapshot-v1.hex");
    let old: Vec<u8> = OLD
        .lines()
        .filter_map(|line| line.split('|').next())
        .flat_map(str::split_whitespace)
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect();
    let disk = FaultDisk::new();
    let meta = write(&disk, 42, &small()).unwrap();
    let new = disk.contents(&meta.name).unwrap();
    if std::env::var_os("REWRITE").is_some() {
        let lines = new.chunks(16).map(|chunk| {
            let bytes: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
            let text: String = chunk
                .iter()
                .map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '.' })
                .collect();
            format!("{:<47} | {}\n", bytes.join(" "), text.replace('|', "."))
        });
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/store/testdata/snapshot-v1.hex");
        std::fs::write(path, lines.collect::<String>()).unwrap();
        return;
    }
    assert_eq!(new, old);
    let file = disk.create("old").unwrap();
    file.write_at(0, &old).unwrap();
    assert_eq!(read(&disk, "old").unwrap(), small());
}

#[test]
fn every_flipped_byte_is_noticed() {
    let disk = FaultDisk::new();
    let name = write(&disk, 42, &small()).unwrap().name;
    let length = disk.contents(&name).unwrap().len() as u64;
    for offset in 0..length {
        for mask in [0x01, 0x10, 0x80, 0xff] {
            disk.flip(&name, offset, mask);
            assert!(snapshot::verify(&disk, &name).is_err(), "byte {offset} ^ {mask:#x}");
            // Reading it for its records notices as well, at the end at the latest.
            assert!(read(&disk, &name).is_err(), "byte {offset} ^ {mask:#x}");
            disk.flip(&name, offset, mask);
        }
    }
    snapshot::verify(&disk, &name).unwrap();
}

#[test]
fn flips_in_a_large_file_are_noticed() {
    let disk = FaultDisk::new();
    let name = write(&disk, 42, &large()).unwrap().name;
    let length = disk.contents(&name).unwrap().len() as u64;
    assert!(length > 5 * SNAPSHOT_BLOCK_BYTES as u64);
    for offset in (0..length).step_by(9_973).chain(length - 60..length) {
        disk.flip(&name, offset, 0x04);
        assert!(snapshot::verify(&disk, &name).is_err(), "byte {offset}");
        disk.flip(&name, offset, 0x04);
    }
}

#[test]
fn every_truncation_and_every_addition_is_noticed() {
    let disk = FaultDisk::new();
    let name = write(&disk, 42, &small()).unwrap().name;
    let whole = disk.contents(&name).unwrap();
    for length in 0..whole.len() {
        let copy = disk.fork();
        copy.truncate(&name, length as u64);
        assert!(snapshot::verify(&copy, &name).is_err(), "{length} bytes");
    }
    for addition in [&b"\0"[..], &whole] {
        let copy = disk.fork();
        copy.open(&name).unwrap().write_at(whole.len() as u64, addition).unwrap();
        assert!(snapshot::verify(&copy, &name).is_err());
    }
}

/// Two whole blocks in the wrong order, each with a right checksum of its own.
#[test]
fn blocks_are_numbered() {
    let disk = FaultDisk::new();
    let rows = vec![(vec![1], vec![0; 3 * SNAPSHOT_BLOCK_BYTES])];
    let name = write(&disk, 42, &rows).unwrap().name;
    let whole = disk.contents(&name).unwrap();
    let block = SNAPSHOT_BLOCK_BYTES + 9;
    let second = whole.windows(5).position(|window| window == [1, 0, 0, 4, 0]).unwrap() + block;
    let file = disk.open(&name).unwrap();
    file.write_at(second as u64, &whole[second + block..second + 2 * block]).unwrap();
    file.write_at((second + block) as u64, &whole[second..second + block]).unwrap();
    let error = snapshot::verify(&disk, &name).unwrap_err().to_string();
    assert!(error.contains("checksum of block 1"), "{error}");
}

#[test]
fn a_later_version_is_named() {
    let disk = FaultDisk::new();
    let name = write(&disk, 42, &small()).unwrap().name;
    let mut bytes = disk.contents(&name).unwrap();
    bytes[8] = 2;
    let length = 16 + u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
    let crc = crc32c::crc32c(&bytes[..length]);
    bytes[length..length + 4].copy_from_slice(&crc.to_le_bytes());
    disk.open(&name).unwrap().write_at(0, &bytes).unwrap();
    assert!(matches!(snapshot::verify(&disk, &name), Err(Error::Version { found: 2, .. })));
}

#[test]
fn a_source_that_is_wrong_leaves_no_file() {
    let disk = FaultDisk::new();
    let backwards: Vec<Row> = small().into_iter().rev().collect();
    assert!(matches!(write(&disk, 1, &backwards), Err(Error::Source { .. })));
    let twice = [small()[1].clone(), small()[1].clone()];
    assert!(matches!(write(&disk, 1, &twice), Err(Error::Source { .. })));
    let too_long = [(vec![1], vec![0; 2 * RECORD_BYTES])];
    assert!(matches!(write(&disk, 1, &too_long), Err(Error::Source { .. })));

    let failing = small().into_iter().map(Ok).chain([Err("the image is damaged")]);
    assert!(snapshot::write(&disk, &head(1), failing, None).is_err());
    let rows = small().into_iter().map(Ok::<_, Infallible>);
    let promised = Some(Tally { records: 3, digest: 99 });
    assert!(snapshot::write(&disk, &head(1), rows, promised).is_err());
    assert!(names(&disk).is_empty());
}

/// The power goes off before each call that changes something; whatever the disk keeps of it, the
/// next start finds the old snapshots and the new one whole or not at all.
#[test]
fn a_crash_at_any_call_leaves_old_or_new() {
    let base = FaultDisk::new();
    let old = write(&base, 10, &small()).unwrap();
    let (mut complete, mut absent) = (0, 0);
    for call in 0.. {
        let disk = base.fork();
        let at = disk.counts().calls + call;
        disk.set_faults(Faults { power_off_at: Some(at), ..Faults::default() });
        let done = write(&disk, 20, &large()).is_ok();
        for (crash, seed) in
            Crash::ALL.into_iter().flat_map(|crash| (0..4).map(move |s| (crash, s)))
        {
            let disk = disk.fork();
            disk.crash(crash, seed);
            snapshot::clean_tmp(&disk).unwrap();
            let found = snapshot::list(&disk).unwrap();
            assert_eq!(found.len(), names(&disk).len(), "something else is left");
            assert_eq!(found[0], (10, old.name.clone()));
            assert_eq!(snapshot::verify(&disk, &old.name).unwrap(), old);
            if let Some((index, name)) = found.get(1) {
                assert_eq!(*index, 20);
                assert_eq!(read(&disk, name).unwrap(), large());
                complete += 1;
            } else {
                assert!(!done, "a snapshot was reported and then lost");
                absent += 1;
            }
        }
        if done {
            break;
        }
    }
    assert!(complete > 10 && absent > 50, "{complete} {absent}");
}

#[test]
fn a_failing_call_is_an_error_and_the_next_attempt_succeeds() {
    type Plant = fn(&mut Faults, u64);
    let plants: [Plant; 3] = [
        |faults, number| faults.fail_write = Some(number),
        |faults, number| faults.fail_sync = Some(number),
        |faults, number| faults.fail_read = Some(number),
    ];
    for plant in plants {
        let mut failures = 0;
        for number in 0.. {
            let disk = FaultDisk::new();
            let mut faults = Faults::default();
            plant(&mut faults, number);
            disk.set_faults(faults);
            if write(&disk, 20, &large()).is_ok() {
                break;
            }
            failures += 1;
            assert!(names(&disk).is_empty(), "{:?}", names(&disk));
            write(&disk, 20, &large()).unwrap();
        }
        assert!(failures > 0);
    }
    let disk = FaultDisk::new();
    disk.set_faults(Faults { fail_sync_dir: Some(0), ..Faults::default() });
    assert!(write(&disk, 20, &small()).is_err());
    disk.set_faults(Faults { capacity: Some(1_000), ..Faults::default() });
    assert!(write(&disk, 30, &large()).is_err());
}

/// A snapshot that does not fit stops while the log still has space, and leaves no file.
#[test]
fn a_snapshot_leaves_a_reserve_to_the_log() {
    let disk = FaultDisk::new();
    let rows: Vec<Row> = (0..40u8).map(|i| (vec![1, i], vec![i; 1 << 20])).collect();
    let within = |reserve| {
        let capacity = Some(reserve + (20 << 20));
        disk.set_faults(Faults { capacity, ..Faults::default() });
        write(&disk, 20, &rows)
    };
    match within(SNAPSHOT_RESERVE_BYTES).unwrap_err() {
        Error::Io { source, .. } => {
            assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
            assert!(source.to_string().contains("left to the log"), "{source}");
        }
        error => panic!("{error}"),
    }
    assert!(names(&disk).is_empty());
    within(2 * SNAPSHOT_RESERVE_BYTES).unwrap();
}

/// A sync that lies is found by reading back only after a power loss; nothing in the file can hide it.
#[test]
fn a_lying_sync_does_not_make_a_false_snapshot() {
    for seed in 0..40 {
        let disk = FaultDisk::new();
        disk.set_faults(Faults { skip_syncs: true, ..Faults::default() });
        let meta = write(&disk, 20, &small()).unwrap();
        disk.crash(Crash::Tear, seed);
        match read(&disk, &meta.name) {
            Ok(rows) => assert_eq!(rows, small()),
            Err(Error::Damaged { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn only_names_of_snapshots_are_listed() {
    let disk = FaultDisk::new();
    for name in [
        "snapshot-00000000000000000007.snap",
        "snapshot-7.snap",
        "snapshot-00000000000000000008.snap.tmp",
        "snapshot-00000000000000000006.snap.damaged",
        "snapshot-99999999999999999999.snap",
        "received-00000000000000000009-1.snap",
        "incoming-1.tmp",
    ] {
        disk.create(name).unwrap();
    }
    let found = snapshot::list(&disk).unwrap();
    assert_eq!(found, [(7, "snapshot-00000000000000000007.snap".to_owned())]);
    assert!(snapshot::clean_tmp(&disk).unwrap());
    assert!(!snapshot::clean_tmp(&disk).unwrap());
    assert_eq!(names(&disk).len(), 4);
}

// ---- transfers ----

/// A whole snapshot file of another member.
fn sent(rows: &[Row]) -> Vec<u8> {
    let disk = FaultDisk::new();
    let name = write(&disk, 20, rows).unwrap().name;
    disk.contents(&name).unwrap()
}

fn receive(disk: &FaultDisk, bytes: &[u8], chunk: usize) -> Result<SnapshotMeta, Error> {
    let mut receiver = Receiver::begin(disk.handle(), CLUSTER, bytes.len() as u64)?;
    for bytes in bytes.chunks(chunk) {
        receiver.chunk(receiver.received(), bytes)?;
    }
    receiver.finish()
}

/// Each has its own file until it is installed or thrown away, also when they hold the same.
#[test]
fn transfers_of_the_same_snapshot_do_not_share_a_file() {
    let disk = FaultDisk::new();
    let bytes = sent(&small());
    let mut begun = Receiver::begin(disk.handle(), CLUSTER, bytes.len() as u64).unwrap();
    begun.chunk(0, &bytes).unwrap();
    let received: Vec<String> =
        (0..2).map(|_| receive(&disk, &bytes, 1_000).unwrap().name).collect();
    let last = begun.finish().unwrap().name;
    let all = [&*last, &*received[0], &*received[1]];
    assert_eq!(names(&disk), all, "in the order of their numbers");
    disk.remove(&last).unwrap();
    assert_eq!(receive(&disk, &bytes, 1_000).unwrap().name, last, "the number is free again");
}

#[test]
fn a_transfer_arrives_and_counts_for_nothing_yet() {
    for (rows, chunk) in [(small(), 1), (large(), 100_000)] {
        let disk = FaultDisk::new();
        let meta = receive(&disk, &sent(&rows), chunk).unwrap();
        assert_eq!(meta.name, "received-00000000000000000020-1.snap");
        assert_eq!(meta.point, point(20));
        assert_eq!(names(&disk), [&*meta.name]);
        assert_eq!(read(&disk, &meta.name).unwrap(), rows);
        assert!(snapshot::list(&disk).unwrap().is_empty());
        // Its bytes are durable: the rename into place must not outrun them.
        disk.rename(&meta.name, &snapshot::file_name(20)).unwrap();
        disk.sync_dir().unwrap();
        disk.crash(Crash::Lose, 0);
        assert_eq!(read(&disk, &snapshot::file_name(20)).unwrap(), rows);
    }
}

#[test]
fn a_transfer_that_is_not_what_was_announced_is_refused_and_leaves_nothing() {
    let disk = FaultDisk::new();
    let bytes = sent(&small());
    let total = bytes.len() as u64;
    let begin = |total| Receiver::begin(disk.handle(), CLUSTER, total);

    let mut receiver = begin(total).unwrap();
    assert!(matches!(receiver.chunk(1, &bytes[1..]), Err(Error::Transfer { .. })), "a gap");
    receiver.chunk(0, &bytes[..10]).unwrap();
    assert!(matches!(receiver.chunk(0, &bytes[..10]), Err(Error::Transfer { .. })), "twice");
    assert!(matches!(receiver.chunk(10, &bytes), Err(Error::Transfer { .. })), "too much");
    receiver.chunk(10, &bytes[10..20]).unwrap();
    assert!(matches!(receiver.finish(), Err(Error::Transfer { .. })), "too little");
    let mut receiver = begin(1 << 30).unwrap();
    let huge = vec![0; PEER_MESSAGE_BYTES + 1];
    assert!(matches!(receiver.chunk(0, &huge), Err(Error::Transfer { .. })), "a huge chunk");
    drop(receiver);
    assert!(names(&disk).is_empty());

    for offset in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[offset] ^= 0x20;
        assert!(receive(&disk, &bytes, 50).is_err(), "byte {offset}");
    }
    assert!(receive(&disk, &bytes[..bytes.len() - 1], 50).is_err());
    assert!(names(&disk).is_empty());

    let mut receiver = Receiver::begin(disk.handle(), "staging", total).unwrap();
    receiver.chunk(0, &bytes).unwrap();
    let error = receiver.finish().unwrap_err();
    assert!(matches!(error, Error::ForeignCluster { .. }), "{error}");
    assert!(names(&disk).is_empty());
}

#[test]
fn a_transfer_has_to_fit() {
    let disk = FaultDisk::new();
    let begin = |disk: &FaultDisk, total| Receiver::begin(disk.handle(), CLUSTER, total);
    assert!(matches!(begin(&disk, SNAPSHOT_FILE_BYTES + 1), Err(Error::Transfer { .. })));
    disk.set_faults(Faults { capacity: Some(1 << 30), ..Faults::default() });
    assert!(matches!(begin(&disk, 900 << 20), Err(Error::Transfer { .. })), "none would be left");
    begin(&disk, 400 << 20).unwrap();
    assert!(names(&disk).is_empty());
}

#[test]
fn two_transfers_do_not_meet() {
    let disk = FaultDisk::new();
    let bytes = sent(&small());
    let mut one = Receiver::begin(disk.handle(), CLUSTER, bytes.len() as u64).unwrap();
    let mut other = Receiver::begin(disk.handle(), CLUSTER, bytes.len() as u64).unwrap();
    one.chunk(0, &bytes[..9]).unwrap();
    other.chunk(0, &bytes).unwrap();
    one.chunk(9, &bytes[9..]).unwrap();
    let (other, one) = (other.finish().unwrap(), one.finish().unwrap());
    assert_eq!(names(&disk), [&*one.name, &*other.name]);
    assert_eq!(one.digest, other.digest);
}

#[test]
fn a_crash_during_a_transfer_leaves_nothing_after_the_start() {
    let bytes = sent(&large());
    for call in 0.. {
        let disk = FaultDisk::new();
        disk.set_faults(Faults { power_off_at: Some(call), ..Faults::default() });
        let done = receive(&disk, &bytes, 200_000).is_ok();
        for crash in Crash::ALL {
            let disk = disk.fork();
            disk.crash(crash, call);
            snapshot::clean_tmp(&disk).unwrap();
            assert!(names(&disk).is_empty());
        }
        if done {
            break;
        }
    }
    let disk: Arc<dyn Disk> = FaultDisk::new().handle();
    assert!(!snapshot::clean_tmp(&*disk).unwrap());
}
