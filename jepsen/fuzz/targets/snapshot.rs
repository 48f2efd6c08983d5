//! Snapshot files. Input: flags, then a file. Unless flagged, checksums and the footer are put right.
//!
//! Reading neither panics nor depends on anything but the file; what verifies is written as a snapshot of
//! the same records.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate::state::record_hash;
use quorate::store::disk::Disk;
use quorate::store::fault::FaultDisk;
use quorate::store::image::{Row, Tally};
use quorate::store::snapshot::{self, Error, Reader, SnapshotMeta};
use quorate_fuzz::{Input, check_record};
use xxhash_rust::xxh3::xxh3_64;

const AS_IT_IS: u8 = 1;
/// What stands behind the first footer stays there.
const WITH_REST: u8 = 2;

const HEAD: usize = 16;
const BLOCK_HEAD: usize = 9;
const FOOTER: usize = 49;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let flags = input.byte();
    let mut file = input.0.to_vec();
    if flags & AS_IT_IS == 0 {
        let rest = put_right(&mut file);
        if flags & WITH_REST == 0 {
            file.truncate(rest);
        }
    }
    let disk = FaultDisk::new().handle();
    let handle = disk.create("file").expect("a new file");
    handle.write_at(0, &file).expect("written");

    let meta = snapshot::verify(&*disk, "file");
    assert_eq!(told(&meta), told(&snapshot::verify(&*disk, "file")));
    let Ok(meta) = meta else { return };
    assert_eq!(meta.bytes, file.len() as u64);
    let (head, rows) = read(&*disk, "file");
    for (key, value) in &rows {
        check_record(key, value);
    }
    let expected = Tally { records: meta.records, digest: meta.digest };
    let mut written: Option<Vec<u8>> = None;
    for _ in 0..2 {
        let source = rows.iter().cloned().map(Ok::<Row, Error>);
        let again = snapshot::write(&*disk, &head, source, Some(expected)).expect("written again");
        let SnapshotMeta { name, bytes, .. } = again.clone();
        assert_eq!(SnapshotMeta { name: meta.name.clone(), bytes: meta.bytes, ..again }, meta);
        assert_eq!(read(&*disk, &name), (head.clone(), rows.clone()));
        let mut content = vec![0; usize::try_from(bytes).expect("small")];
        disk.open(&name).expect("there").read_at(0, &mut content).expect("read");
        assert_eq!(*written.get_or_insert(content.clone()), content);
    }
});

fn told(meta: &Result<SnapshotMeta, Error>) -> String {
    meta.as_ref().map_or_else(ToString::to_string, |meta| format!("{meta:?}"))
}

fn read(disk: &dyn Disk, name: &str) -> (snapshot::Head, Vec<Row>) {
    let reader = Reader::open(disk, name).expect("verified");
    let head = reader.head().clone();
    (head, reader.collect::<Result<_, Error>>().expect("verified"))
}

/// Gives header and blocks their checksums and puts the right footer where there is one, or behind all.
/// Returns where it ends.
fn put_right(file: &mut Vec<u8>) -> usize {
    let length =
        |file: &[u8], at: usize| file.get(at..at + 4).map(|length| Input(length).word() as usize);
    let Some(mut at) = length(file, 12).map(|length| HEAD + length) else { return file.len() };
    let Some(covered) = file.get(..at) else { return file.len() };
    let crc = crc32c::crc32c(covered).to_le_bytes();
    if !put(file, at, &crc) {
        return file.len();
    }
    at += crc.len();
    let mut blocks = 0u64;
    let mut payloads = Vec::new();
    while file.get(at) == Some(&1) {
        let payload = length(file, at + 1)
            .and_then(|length| file.get(at + BLOCK_HEAD..(at + BLOCK_HEAD).checked_add(length)?));
        let Some(payload) = payload else { break };
        let crc = crc32c::crc32c(&blocks.to_le_bytes());
        let crc = crc32c::crc32c_append(crc, &file[at..at + 5]);
        let crc = crc32c::crc32c_append(crc, payload).to_le_bytes();
        payloads.extend_from_slice(payload);
        let size = BLOCK_HEAD + payload.len();
        put(file, at + 5, &crc);
        at += size;
        blocks += 1;
    }
    let (mut records, mut digest) = (0u64, 0u64);
    let mut rest = Input(&payloads);
    while !rest.is_empty() {
        let (key, value) = (rest.word() as usize, rest.word() as usize);
        let (key, value) = (rest.bytes(key), rest.bytes(value));
        records += 1;
        digest = digest.wrapping_add(record_hash(key, value));
    }
    file.resize(file.len().max(at + FOOTER), 0);
    file[at] = 2;
    let end = at + FOOTER;
    for (i, number) in [blocks, records, digest, end as u64].into_iter().enumerate() {
        put(file, at + 1 + 8 * i, &number.to_le_bytes());
    }
    let hash = xxh3_64(&file[..at + 33]);
    put(file, at + 33, &hash.to_le_bytes());
    put(file, at + 41, b"PANSROUQ");
    end
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) -> bool {
    let place = file.get_mut(at..at + bytes.len());
    place.is_some_and(|place| {
        place.copy_from_slice(bytes);
        true
    })
}
