//! Recovery of the log from a disk of any content. Input: flags, then files, each by its kind: bytes as they
//! are, or a header and frames whose checksums are put right, or frames by what they say.
//!
//! Opening never panics and never comes out in two ways. What was recovered can be read and is recovered
//! again: after a kill, after a power loss, by copying it into a new log, and with writes behind it.
#![no_main]

use std::io::ErrorKind;
use std::sync::Arc;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate::store::disk::Disk;
use quorate::store::fault::{Crash, FaultDisk};
use quorate::store::wal::{Recovered, WalCore, WalOptions, Write};
use quorate_fuzz::Input;

/// Of the whole input.
const CREATE: u8 = 1;
/// Of a file. Its number is in the lower bits.
const AS_IT_IS: u8 = 0x80;
const BY_MEANING: u8 = 0x40;
const OWN_HEADER: u8 = 0x20;
const NUMBER: u8 = 0x0f;

const SEGMENT: usize = 8192;
const HEADER: usize = 512;
const FRAME: usize = 32;
const LOG: u64 = 7;

/// What a log holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Held {
    recovered: Recovered,
    entries: Vec<(u64, Bytes)>,
}

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let create = input.byte() & CREATE != 0;
    let disk = FaultDisk::new();
    // Frames, by their order on the disk, that keep the checksums they have.
    let mut spared = input.word();
    while !input.is_empty() {
        add_file(&*disk.handle(), &mut input, &mut spared);
    }
    disk.handle().sync_dir().expect("no fault is set");

    let (mut core, held) = match open(&disk.handle(), create) {
        Ok(opened) => opened,
        Err(error) => {
            assert_eq!(open(&disk.handle(), create).map(|(_, held)| held), Err(error));
            return;
        }
    };
    for crash in [Crash::Kill, Crash::Lose] {
        let fork = disk.fork();
        fork.crash(crash, 0);
        let (_, again) = open(&fork.handle(), false).unwrap_or_else(|error| {
            panic!("{held:?} is not recovered after {crash:?}: {error}");
        });
        assert_eq!(again, uncut(&held), "after {crash:?}");
    }
    copy(&held);

    let next = held.recovered.last.or(held.recovered.purged.as_ref().map(|(index, _)| *index));
    let next = next.map_or(1, |last| last.saturating_add(1));
    let entry = Bytes::from_static(b"one more");
    match core.stage(&Write::Entry { index: next, payload: entry.clone() }) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::InvalidInput => return,
        Err(error) => panic!("{error}"),
    }
    let vote = Write::Vote(Bytes::from_static(b"vote"));
    core.stage(&vote).and_then(|()| core.commit()).expect("no fault is set");
    drop(core);
    disk.crash(Crash::Lose, 0);
    let mut more = uncut(&held);
    more.entries.push((next, entry));
    more.recovered.vote = Some(Bytes::from_static(b"vote"));
    more.recovered.first.get_or_insert(next);
    more.recovered.last = Some(next);
    assert_eq!(open(&disk.handle(), false).map(|(_, held)| held), Ok(more));
});

fn options(create: bool) -> WalOptions {
    WalOptions { segment_bytes: SEGMENT as u64, create, log_id: LOG }
}

fn open(disk: &Arc<dyn Disk>, create: bool) -> Result<(WalCore, Held), String> {
    let opened = WalCore::open(disk.clone(), options(create));
    let (core, recovered) = opened.map_err(|error| error.to_string())?;
    let entries = match (recovered.first, recovered.last) {
        (Some(first), Some(last)) => core.reader().read(first..last + 1, usize::MAX),
        (None, None) => Ok(Vec::new()),
        one => panic!("{one:?}"),
    };
    let entries = entries.expect("what was recovered is read");
    let indexes = entries.iter().map(|(index, _)| *index);
    assert!(indexes.eq(recovered.first.unwrap_or(1)..=recovered.last.unwrap_or(0)));
    Ok((core, Held { recovered, entries }))
}

fn uncut(held: &Held) -> Held {
    Held { recovered: Recovered { cut: None, ..held.recovered.clone() }, ..held.clone() }
}

/// Into a new log, as far as its limits allow.
fn copy(held: &Held) {
    let disk = FaultDisk::new();
    let (mut core, _) = open(&disk.handle(), true).expect("a new log");
    let Recovered { vote, committed, purged, .. } = held.recovered.clone();
    let purged = purged.map(|(index, log_id)| Write::Purged { index, log_id });
    let entries = held.entries.iter().cloned();
    let entries = entries.map(|(index, payload)| Write::Entry { index, payload });
    let writes = purged.into_iter().chain(vote.map(Write::Vote)).chain(entries);
    for write in writes.chain(committed.map(Write::Committed)) {
        match core.stage(&write).and_then(|()| core.commit()) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::InvalidInput => return,
            Err(error) => panic!("{error}"),
        }
    }
    core.close().expect("no fault is set");
    assert_eq!(open(&disk.handle(), false).map(|(_, held)| held), Ok(uncut(held)));
}

fn add_file(disk: &dyn Disk, input: &mut Input<'_>, spared: &mut u32) {
    let kind = input.byte();
    let number = match kind & NUMBER {
        number @ 0..=11 => u64::from(number),
        12 => u64::MAX - 1,
        13 => u64::MAX,
        _ => input.number(),
    };
    let name = match kind & NUMBER {
        10 | 11 => format!("spare-{number:020}.wal"),
        _ => format!("segment-{number:020}.wal"),
    };
    let mut given = Input(input.counted());
    let mut file = Vec::new();
    if kind & AS_IT_IS != 0 {
        file.extend_from_slice(given.0);
    } else {
        file.resize(HEADER, 0);
        if kind & OWN_HEADER != 0 {
            let own = given.bytes(48);
            file[..own.len()].copy_from_slice(own);
        } else {
            put_header(&mut file, number);
        }
        put(&mut file, 12, &[0; 4]);
        let crc = crc32c::crc32c(&file);
        put(&mut file, 12, &crc.to_le_bytes());
        if kind & BY_MEANING != 0 {
            put_frames(&mut file, &mut given);
        } else {
            file.extend_from_slice(given.0);
        }
        file.resize(file.len().max(SEGMENT), 0);
        put_checksums(&mut file, spared);
    }
    // A name comes up twice: the first one has it.
    let Ok(handle) = disk.create(&name) else { return };
    handle.write_at(0, &file).and_then(|()| handle.sync()).expect("no fault is set");
}

fn put_header(file: &mut [u8], number: u64) {
    put(file, 0, b"QUORATEL");
    put(file, 8, &1u32.to_le_bytes());
    let words = [LOG, number, LOG ^ number.rotate_left(17), SEGMENT as u64];
    for (i, word) in words.into_iter().enumerate() {
        put(file, 16 + 8 * i, &word.to_le_bytes());
    }
}

/// Frames in the order of their numbers unless they say otherwise. A state is written field by field.
fn put_frames(file: &mut Vec<u8>, given: &mut Input<'_>) {
    let mut sequence = given.number();
    while !given.is_empty() {
        let kind = given.byte();
        if kind & 0x80 != 0 {
            sequence = given.number();
        }
        let (index, distance) = (given.number(), given.number());
        let mut payload = Vec::new();
        if kind & 0x0f == 1 {
            payload.extend(given.number().to_le_bytes());
            payload.extend(given.number().to_le_bytes());
            for _ in 0..3 {
                let id = given.byte();
                let length = if id == u8::MAX { u32::MAX } else { id.into() };
                payload.extend(length.to_le_bytes());
                payload.extend(given.bytes(if id == u8::MAX { 0 } else { id.into() }));
            }
            payload.extend(given.number().to_le_bytes());
        } else {
            let length = given.byte();
            payload.extend_from_slice(given.bytes(length.into()));
        }
        file.extend([0; 4]);
        file.extend((payload.len() as u32).to_le_bytes());
        file.extend(sequence.to_le_bytes());
        file.extend(index.to_le_bytes());
        file.extend((distance as u32).to_le_bytes());
        file.extend([kind & 0x0f, 0, 0, 0]);
        file.extend_from_slice(&payload);
        file.resize(file.len().next_multiple_of(8), 0);
        sequence = sequence.wrapping_add(1);
    }
}

/// To every frame that is not spared, up to the first that does not fit.
fn put_checksums(file: &mut [u8], spared: &mut u32) {
    let seed = crc32c::crc32c(&file[32..40]);
    let mut at = HEADER;
    while let Some(head) = file.get(at..at + FRAME) {
        let length = Input(&head[4..]).word() as usize;
        let end = at + FRAME + length.next_multiple_of(8);
        if head[28] == 0 || file.len() < end {
            return;
        }
        if *spared & 1 == 0 {
            let tag = crc32c::crc32c_append(seed, &head[4..29]).to_le_bytes();
            put(file, at + 29, &tag[1..]);
            let crc = crc32c::crc32c_append(seed, &file[at + 4..end]);
            put(file, at, &crc.to_le_bytes());
        }
        *spared >>= 1;
        at = end;
    }
}

fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
