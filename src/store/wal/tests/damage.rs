//! Bits that turn over, files that go away: the log refuses, or it has lost nothing.

use super::*;

/// A log of three segments and more whose last group is sealed or not, and its history.
fn written(sealed: bool) -> (FaultDisk, History, usize) {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut history = History::new();
    history.created = true;
    let mut index = 1;
    while core.active.number < 3 || core.position < SEGMENT_BYTES as usize / 4 {
        let writes = [entry(index, vec![index as u8; 700]), entry(index + 1, vec![9; 90])];
        history.group(&mut core, &writes).unwrap();
        index += 2;
    }
    history.group(&mut core, &[truncate(index - 2), vote("v"), purged(2)]).unwrap();
    let durable = history.acked;
    history.group(&mut core, &[entry(index - 1, "last"), vote("w")]).unwrap();
    if sealed {
        core.seal().unwrap();
    }
    core.job().unwrap().run();
    drop(core);
    disk.crash(Crash::Kill, 0);
    let durable = if sealed { history.acked } else { durable };
    (disk, history, durable)
}

/// A flipped byte anywhere is noticed, or it lies where nothing is, or it is in the last group while
/// no later frame says that it was synced.
#[test]
fn a_flipped_byte_is_never_believed_and_never_hides_what_was_synced() {
    for sealed in [false, true] {
        let (disk, mut history, durable) = written(sealed);
        let last = history.last().clone();
        history.acked = durable;
        let (mut refused, mut cut, mut harmless) = (0, 0, 0);
        for name in disk.list().unwrap() {
            let len = disk.contents(&name).unwrap().len() as u64;
            for offset in 0..len {
                let (disk, mut history) = (disk.fork(), history.clone());
                assert!(disk.flip(&name, offset, 1 << (offset % 8)));
                match open(&disk.fork()) {
                    Err(OpenError::Damaged { segment, offset: at, .. }) => {
                        assert_eq!(segment::name(segment), name);
                        assert!(at <= offset, "the damage at {offset} is reported at {at}");
                        refused += 1;
                        continue;
                    }
                    Err(other) => panic!("{name} at {offset}: {other}"),
                    Ok(_) => {}
                }
                let why = |why| panic!("{name} at {offset}, sealed {sealed}: {why}");
                history.check(&disk).unwrap_or_else(why);
                match history.last() == &last {
                    true => harmless += 1,
                    false => cut += 1,
                }
            }
        }
        // Every byte of a header or a frame counts, but for those of the last group or the seal.
        let used: usize = disk.list().unwrap().iter().map(|name| used(&disk, name)).sum();
        let tail = if sealed { frame::size(0) } else { frame::size(4) + frame::size(1) };
        assert_eq!(refused, used - tail);
        assert_eq!(cut, if sealed { 0 } else { tail });
        assert_eq!(refused + cut + harmless, 4 * SEGMENT_BYTES as usize);
    }
}

/// Bytes of a segment's header and frames.
fn used(disk: &FaultDisk, name: &str) -> usize {
    let bytes = disk.contents(name).unwrap();
    let number = segment::parse_name(name).unwrap();
    let segment = Segment::open(disk.open(name).unwrap(), number).unwrap().ok().unwrap().0;
    let mut at = segment::HEADER;
    while let Ok(frame) = frame::decode(&bytes[at..], segment.seed) {
        at += frame.size();
    }
    at
}

#[test]
fn a_flipped_byte_under_a_reader_is_an_error() {
    let (disk, _, _) = written(true);
    let (core, recovered) = open(&disk).unwrap();
    let index = recovered.first.unwrap() + 1;
    let place_of = core.reader().read(index..index + 1, 0).unwrap();
    assert_eq!(place_of.len(), 1);
    let bytes = disk.contents(&segment::name(1)).unwrap();
    let (offset, _) = frame::find(&bytes, segment::HEADER, core.shared.read().segments[&1].seed)
        .find(|(_, frame)| frame.head.kind == Kind::Entry && frame.head.index == index)
        .unwrap();
    for at in offset as u64..offset as u64 + 40 {
        disk.flip(&segment::name(1), at, 4);
        let error = core.reader().read(index..index + 1, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        disk.flip(&segment::name(1), at, 4);
    }
    core.reader().read(index..index + 1, 0).unwrap();
}

#[test]
fn a_truncated_file_is_damage() {
    let (disk, _, _) = written(true);
    for name in disk.list().unwrap() {
        for len in [0, 100, 511, 512, 513, 4096, SEGMENT_BYTES - 1] {
            let disk = disk.fork();
            disk.truncate(&name, len);
            let error = open(&disk).unwrap_err();
            assert!(matches!(error, OpenError::Damaged { .. }), "{name} of {len}: {error}");
        }
    }
}

#[test]
fn a_lost_file_is_damage() {
    let (disk, history, _) = written(true);
    let names = disk.list().unwrap();
    assert_eq!(names.len(), 4, "{names:?}");
    for (at, name) in names.iter().enumerate() {
        let disk = disk.fork();
        disk.lose_file(name);
        // The prepared one holds nothing.
        if at == 3 {
            history.clone().check(&disk).unwrap();
            continue;
        }
        match open(&disk).unwrap_err() {
            OpenError::Damaged { segment, .. } => assert_eq!(segment, at as u64 + 1, "{name}"),
            other => panic!("{name}: {other}"),
        }
    }
    for name in &names {
        disk.lose_file(name);
    }
    assert!(matches!(open(&disk), Err(OpenError::Missing)));
}

#[test]
fn swapped_and_foreign_segments_are_damage() {
    let (disk, _, _) = written(true);
    let swapped = disk.fork();
    swapped.rename(&segment::name(1), "aside").unwrap();
    swapped.rename(&segment::name(2), &segment::name(1)).unwrap();
    swapped.rename("aside", &segment::name(2)).unwrap();
    let error = open(&swapped).unwrap_err();
    assert!(error.to_string().contains("another segment"), "{error}");

    let other = FaultDisk::new();
    let options = WalOptions { log_id: 77, ..options(true) };
    drop(WalCore::open(other.handle(), options).unwrap());
    let foreign = other.contents(&segment::name(1)).unwrap();
    let (at_one, at_first) = (disk.fork(), disk.fork());
    at_one.open(&segment::name(1)).unwrap().write_at(0, &foreign).unwrap();
    let error = open(&at_one).unwrap_err();
    assert!(error.to_string().contains("another log"), "{error}");

    // An older copy of a segment that is not the last.
    let second = at_first.contents(&segment::name(2)).unwrap();
    let half = vec![0; second.len() / 2];
    let file = at_first.open(&segment::name(2)).unwrap();
    file.write_at(half.len() as u64, &half).unwrap();
    assert!(matches!(open(&at_first), Err(OpenError::Damaged { segment: 2, .. })));
}

/// Whole frames that contradict each other: written by a bug, or put together by hand.
#[test]
fn a_state_that_contradicts_what_was_before_is_damage() {
    let (disk, history, _) = written(true);
    let name = segment::name(2);
    let bytes = disk.contents(&name).unwrap();
    let segment = Segment::open(disk.open(&name).unwrap(), 2).unwrap().ok().unwrap().0;
    let state = frame::decode(&bytes[segment::HEADER..], segment.seed).unwrap();
    let content = Content::decode(state.payload).unwrap();
    let mut shorter = content.clone();
    shorter.live.end -= 1;
    for (content, good) in [(content, true), (shorter, false)] {
        let disk = disk.fork();
        let mut forged = Vec::new();
        frame::encode(&mut forged, segment.seed, state.head, &content.encode());
        let file = disk.open(&name).unwrap();
        file.write_at(segment::HEADER as u64, &forged).unwrap();
        match open(&disk) {
            Ok(_) if good => history.clone().check(&disk).map(drop).unwrap(),
            Err(OpenError::Damaged { segment: 2, .. }) if !good => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Checksums are right, but nothing could be written behind it: numbers would overflow, or there is no room.
#[test]
fn a_segment_that_no_log_comes_to_is_damage() {
    let content = Content { live: 3..3, ..Content::default() };
    let purged =
        |index| Content { purged: Some((index, Bytes::from_static(b"id"))), ..content.clone() };
    let many = u64::MAX - 1;
    let least = SEGMENT_BYTES;
    for (number, bytes, sequence, content, good) in [
        (5, least, 9, purged(2), true),
        (5, least, 9, purged(3), false),
        (5, least, 9, purged(u64::MAX), false),
        (5, least, many, content.clone(), false),
        (many, least, 9, content.clone(), false),
        (0, least, 1, content.clone(), false),
        (5, least - 8, 9, content.clone(), false),
        (5, least + 4, 9, content.clone(), false),
    ] {
        let disk = FaultDisk::new();
        segment::create_spare(&disk, "spare", bytes).unwrap();
        let shape = Shape { log_id: 7, bytes };
        let segment = Segment::prepare(&disk, "spare", &shape, number).unwrap();
        let head = Head { kind: Kind::State, sequence, synced: sequence - 1, index: 0 };
        let mut state = Vec::new();
        frame::encode(&mut state, segment.seed, head, &content.encode());
        segment.file.write_at(segment::HEADER as u64, &state).unwrap();
        match open(&disk) {
            Ok(_) if good => {}
            Err(OpenError::Damaged { .. }) if !good => {}
            other => panic!("{number} {bytes} {sequence} {content:?}: {other:?}"),
        }
    }
}

#[test]
fn a_later_format_is_refused_as_such() {
    let (disk, _, _) = written(true);
    let name = segment::name(1);
    let mut bytes = disk.contents(&name).unwrap()[..segment::HEADER].to_vec();
    bytes[8] = 2;
    bytes[12..16].fill(0);
    let crc = crc32c::crc32c(&bytes);
    bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    disk.open(&name).unwrap().write_at(0, &bytes).unwrap();
    assert!(matches!(open(&disk), Err(OpenError::Version { segment: 1, version: 2 })));
}

/// A log that was in use and of which nothing is left is not a new one.
#[test]
fn an_emptied_log_is_not_begun_anew() {
    let (disk, _, _) = written(true);
    for number in 2..=4 {
        disk.lose_file(&segment::name(number));
    }
    let file = disk.open(&segment::name(1)).unwrap();
    let zeros = vec![0; SEGMENT_BYTES as usize - segment::HEADER];
    file.write_at(segment::HEADER as u64, &zeros).unwrap();
    assert!(matches!(open(&disk), Err(OpenError::Damaged { segment: 1, .. })));
}

/// A payload that holds the bytes of a frame, of this very log, is not taken for one.
#[test]
fn frames_inside_payloads_are_payload() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let other = WalOptions { log_id: 0x1234, ..options(true) };
    let other_disk = FaultDisk::new();
    let (mut other, _) = WalCore::open(other_disk.handle(), other).unwrap();
    for index in 1..8 {
        other.stage(&entry(index, "looks like an acknowledged entry")).unwrap();
        other.commit().unwrap();
    }
    let copied = other_disk.contents(&segment::name(1)).unwrap();
    core.stage(&entry(1, "real")).unwrap();
    core.commit().unwrap();
    let from = core.position;
    core.stage(&entry(2, &copied[512..1200])).unwrap();
    core.commit().unwrap();
    drop(core);
    // The entry is torn: only its header is gone.
    disk.open(&segment::name(1)).unwrap().write_at(from as u64, &[0; 32]).unwrap();
    let (_, recovered) = open(&disk).unwrap();
    assert_eq!(recovered.last, Some(1));
}
