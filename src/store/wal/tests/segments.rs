//! Segments, space, reading, and what is asked of writes.

use super::*;

#[test]
fn a_log_is_read_back_as_it_was_written() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut history = History::new();
    history.created = true;
    history.group(&mut core, &[vote("one"), entry(1, "a"), entry(2, "b"), entry(3, "c")]).unwrap();
    history.group(&mut core, &[truncate(1), entry(2, "B"), vote("two")]).unwrap();
    history.group(&mut core, &[purged(1)]).unwrap();
    core.close().unwrap();
    let (core, recovered) = open(&disk).unwrap();
    let expected = Recovered {
        vote: Some("two".into()),
        committed: None,
        purged: Some((1, "id 1".into())),
        first: Some(2),
        last: Some(2),
        cut: None,
    };
    assert_eq!(recovered, expected);
    assert_eq!(core.reader().read(2..3, 0).unwrap(), [(2, Bytes::from("B"))]);
}

#[test]
fn the_committed_id_rides_along_and_survives_a_seal() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let calls = disk.counts().calls;
    core.stage(&Write::Committed("c1".into())).unwrap();
    core.commit().unwrap();
    assert_eq!(disk.counts().calls, calls, "alone it costs nothing");
    core.stage(&entry(1, "a")).unwrap();
    core.commit().unwrap();
    let lost = disk.fork();
    lost.crash(Crash::Lose, 0);
    assert_eq!(open(&lost).unwrap().1.committed, Some("c1".into()));
    core.stage(&Write::Committed("c2".into())).unwrap();
    core.close().unwrap();
    disk.crash(Crash::Lose, 0);
    assert_eq!(open(&disk).unwrap().1.committed, Some("c2".into()));
}

#[test]
fn a_group_costs_one_write_and_one_sync() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let before = disk.counts();
    for index in 1..20 {
        core.stage(&entry(index, vec![1; 100])).unwrap();
    }
    core.stage(&vote("v")).unwrap();
    core.commit().unwrap();
    let after = disk.counts();
    assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
    assert_eq!(after.calls - before.calls, 2);
}

#[test]
fn entries_can_be_read_once_they_are_committed() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let reader = core.reader();
    core.stage(&entry(5, "five")).unwrap();
    assert_eq!(reader.bounds(), None);
    assert_eq!(reader.read(5..6, 100).unwrap(), []);
    core.commit().unwrap();
    for index in 6..60 {
        core.stage(&entry(index, vec![index as u8; 300])).unwrap();
    }
    core.commit().unwrap();
    assert_eq!(reader.bounds(), Some((5, 59)));
    let all = reader.read(0..100, usize::MAX).unwrap_err();
    assert_eq!(all.kind(), io::ErrorKind::NotFound, "it begins before the log");
    let all = reader.read(5..100, usize::MAX).unwrap();
    assert_eq!(all.len(), 55);
    assert!(all.iter().zip(5..).all(|((index, _), at)| *index == at));
    assert_eq!(reader.read(10..20, 899).unwrap().len(), 2);
    assert_eq!(reader.read(10..20, 900).unwrap().len(), 3);
    assert_eq!(reader.read(10..20, 0).unwrap().len(), 1, "at least one");
    assert_eq!(reader.read(10..10, 900).unwrap(), []);
    assert_eq!(reader.read(60..70, 900).unwrap(), []);
    core.stage(&purged(10)).unwrap();
    core.commit().unwrap();
    assert_eq!(reader.read(10..20, 0).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(reader.bounds(), Some((11, 59)));
    core.stage(&Write::TruncateAfter { last: None }).unwrap();
    core.commit().unwrap();
    assert_eq!(reader.bounds(), None);
    assert_eq!(reader.read(11..20, 0).unwrap(), []);
}

/// An empty log that began high and was emptied has no entry to offer below its old beginning.
#[test]
fn an_emptied_log_reads_as_empty() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    core.stage(&entry(10, "a")).unwrap();
    core.stage(&Write::TruncateAfter { last: None }).unwrap();
    core.commit().unwrap();
    assert_eq!(core.reader().read(5..20, 100).unwrap(), []);
    core.stage(&entry(3, "b")).unwrap();
    core.commit().unwrap();
    assert_eq!(core.reader().bounds(), Some((3, 3)));
    drop(core);
    assert_eq!(open(&disk).unwrap().1.first, Some(3));
}

#[test]
fn writes_that_do_not_follow_are_refused_and_leave_no_trace() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    for write in [entry(1, "a"), entry(2, "b"), entry(3, "c"), purged(1)] {
        core.stage(&write).unwrap();
    }
    core.commit().unwrap();
    let before = disk.counts();
    let too_long = vec![0; limits::WAL_ID_BYTES + 1];
    for write in [
        entry(3, "again"),
        entry(5, "gap"),
        entry(4, vec![0; SEGMENT_BYTES as usize]),
        Write::Vote(too_long.clone().into()),
        Write::Committed(too_long.clone().into()),
        Write::Purged { index: 2, log_id: too_long.into() },
        purged(0),
        truncate(0),
    ] {
        let error = core.stage(&write).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{write:?}");
    }
    core.commit().unwrap();
    assert_eq!(disk.counts(), before);
    core.stage(&entry(4, "d")).unwrap();
    core.commit().unwrap();
    drop(core);
    assert_eq!(open(&disk).unwrap().1.last, Some(4));
}

/// The longest entry that is let in fits a new segment whatever was before.
#[test]
fn the_longest_payloads_fit() {
    let id = Bytes::from(vec![3; limits::WAL_ID_BYTES]);
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut history = History::new();
    history.created = true;
    let mut index = 1;
    for round in 0..30 {
        let mut committed = vec![round; limits::WAL_ID_BYTES];
        committed[..8].copy_from_slice(&u64::from(round).to_le_bytes());
        let mut writes = vec![
            Write::Vote(id.clone()),
            Write::Committed(committed.into()),
            Write::Purged { index, log_id: id.clone() },
        ];
        index += 1;
        let used = segment::HEADER + frame::size(core.content.encoded_len()) + 64;
        let most = SEGMENT_BYTES as usize - used - 3 * limits::WAL_ID_BYTES - frame::HEADER;
        writes.push(entry(index, vec![round; most.min(2000 + usize::from(round) * 64)]));
        history.group(&mut core, &writes).unwrap();
    }
    drop(core);
    disk.crash(Crash::Lose, 0);
    history.check(&disk).unwrap();

    let mut core = create(&FaultDisk::new());
    let most = SEGMENT_BYTES as usize - segment::HEADER - frame::size(36) - 2 * frame::HEADER;
    assert!(core.stage(&entry(1, vec![1; most + 1])).is_err());
    for index in 1..5 {
        core.stage(&entry(index, vec![1; most])).unwrap();
        core.commit().unwrap();
    }
    assert_eq!(core.active.number, 4, "one in each");
}

/// Purged segments are used again: the disk does not grow, and nothing old shines through.
#[test]
fn purged_segments_are_reused_and_their_frames_never_come_back() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut history = History::new();
    history.created = true;
    let mut most = 0;
    for index in 1..600u64 {
        // All of one size, so that old frames lie where new ones begin.
        history.group(&mut core, &[entry(index, vec![index as u8; 96])]).unwrap();
        if index % 50 == 0 {
            history.group(&mut core, &[purged(index - 10)]).unwrap();
        }
        if let Some(job) = core.job() {
            job.run();
        }
        most = most.max(core.bytes_on_disk());
        let (disk, mut history) = (disk.fork(), history.clone());
        disk.crash(Crash::Lose, 0);
        history.check(&disk).unwrap_or_else(|why| panic!("{index}: {why}"));
    }
    assert!(core.active.number > 10, "{}", core.active.number);
    assert!(most <= 6 * SEGMENT_BYTES, "{most} bytes");
    let files: u64 =
        disk.list().unwrap().iter().map(|name| disk.contents(name).unwrap().len() as u64).sum();
    assert_eq!(core.bytes_on_disk(), files);
    let created = disk.counts().writes;
    assert!(created < 1400, "{created} writes");

    // With the frames of the old use still in the file behind the new ones.
    let name = segment::name(core.active.number);
    let bytes = disk.contents(&name).unwrap();
    assert!(bytes[core.position.next_multiple_of(4096)..].iter().any(|byte| *byte != 0));
}

/// A purge far ahead gives most of the space back and keeps no more than the pool's bound.
#[test]
fn a_purge_returns_space() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    for index in 1..200 {
        core.stage(&entry(index, vec![1; 900])).unwrap();
        core.commit().unwrap();
    }
    assert!(core.bytes_on_disk() > 20 * SEGMENT_BYTES);
    core.stage(&purged(199)).unwrap();
    core.commit().unwrap();
    core.job().unwrap().run();
    assert!(core.job().is_none());
    assert!(core.bytes_on_disk() <= (2 + limits::WAL_SPARE_SEGMENTS as u64) * SEGMENT_BYTES);
    drop(core);
    let (core, recovered) = open(&disk).unwrap();
    assert_eq!((recovered.first, recovered.purged.unwrap().0), (None, 199));
    assert!(core.bytes_on_disk() <= (2 + limits::WAL_SPARE_SEGMENTS as u64) * SEGMENT_BYTES);
}

/// A reader that has looked up its entries reads them although they are purged meanwhile.
#[test]
fn a_segment_that_is_being_read_is_not_overwritten() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    for index in 1..40 {
        core.stage(&entry(index, vec![index as u8; 500])).unwrap();
        core.commit().unwrap();
    }
    let held: Vec<_> = core.shared.read().segments.values().cloned().collect();
    let bytes = |segment: &Arc<Segment>| {
        let mut bytes = vec![0; SEGMENT_BYTES as usize];
        segment.file.read_at(0, &mut bytes).unwrap();
        bytes
    };
    let (last, before) = (held.len() - 1, held.iter().map(bytes).collect::<Vec<_>>());
    assert!(last > 1);
    for index in 40..90 {
        core.stage(&entry(index, vec![index as u8; 500])).unwrap();
        core.stage(&purged(index - 1)).unwrap();
        core.commit().unwrap();
        if let Some(job) = core.job() {
            job.run();
        }
    }
    assert!(!core.shared.read().segments.contains_key(&held[last].number));
    for (segment, before) in held[..last].iter().zip(before) {
        assert!(bytes(segment) == before, "segment {}", segment.number);
    }
}

/// A preparation that fails otherwise than for lack of space leaves the disk in doubt.
#[test]
fn a_failed_job_poisons_the_log() {
    for plant in [
        |disk: &FaultDisk| Faults { fail_sync: Some(disk.counts().syncs), ..Faults::default() },
        |disk: &FaultDisk| Faults { fail_write: Some(disk.counts().writes), ..Faults::default() },
        |disk: &FaultDisk| Faults {
            fail_sync_dir: Some(disk.counts().dir_syncs),
            ..Faults::default()
        },
    ] {
        let disk = FaultDisk::new();
        let mut core = create(&disk);
        for index in 1..8 {
            core.stage(&entry(index, vec![1; 400])).unwrap();
            core.commit().unwrap();
        }
        let job = core.job().unwrap();
        disk.set_faults(plant(&disk));
        job.run();
        core.stage(&vote("v")).unwrap();
        core.commit().unwrap_err();
        core.stage(&vote("v")).unwrap_err();
    }
}

#[test]
fn a_full_disk_stops_the_log_and_loses_nothing() {
    for capacity in (2..12).map(|segments| segments * SEGMENT_BYTES - 100) {
        let disk = FaultDisk::new();
        let mut core = create(&disk);
        let mut history = History::new();
        history.created = true;
        let faults = Faults { capacity: Some(capacity), ..Faults::default() };
        disk.set_faults(faults);
        let mut script = Script::new(capacity);
        let mut index = 1;
        let error = loop {
            let writes = [entry(index, vec![1; 600])];
            match history.group(&mut core, &writes) {
                Ok(()) => index += 1,
                Err(error) => break error,
            }
            if let Some(job) = core.job() {
                job.run();
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(core.stage(&vote("v")).is_err(), "poisoned");
        drop(core);
        // It can be opened while there is no space, and goes on when there is.
        disk.crash(Crash::Lose, 0);
        drop(history.check(&disk).unwrap());
        disk.set_faults(Faults::default());
        let mut core = history.check(&disk).unwrap();
        script.run(&mut history, &mut core, 20).unwrap();
    }
}

/// Space that is short when the next segment is prepared, and there again when it is needed.
#[test]
fn a_preparation_that_found_no_space_is_tried_again() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let capacity = Some(SEGMENT_BYTES + 5000);
    disk.set_faults(Faults { capacity, ..Faults::default() });
    let mut attempts = 0;
    let mut index = 1;
    while core.room() > 1000 {
        core.stage(&entry(index, vec![1; 100])).unwrap();
        core.commit().unwrap();
        index += 1;
        if let Some(job) = core.job() {
            job.run();
            attempts += 1;
        }
    }
    assert!((2..=16).contains(&attempts), "{attempts}: again and again, but not each time");
    disk.set_faults(Faults::default());
    for index in index..index + 60 {
        core.stage(&entry(index, vec![1; 100])).unwrap();
        core.commit().unwrap();
        if let Some(job) = core.job() {
            job.run();
        }
    }
    assert!(core.active.number > 1);
    assert_eq!(disk.list().unwrap().len() as u64 * SEGMENT_BYTES, core.bytes_on_disk());
}

#[test]
fn the_next_segment_is_ready_before_it_is_needed() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut most = 0;
    for index in 1..300 {
        let before = disk.counts().calls;
        core.stage(&entry(index, vec![1; 300])).unwrap();
        core.commit().unwrap();
        most = most.max(disk.counts().calls - before);
        if let Some(job) = core.job() {
            assert!(core.job().is_none(), "one job at a time");
            job.run();
        }
    }
    assert!(core.active.number > 8);
    assert_eq!(most, 4, "a roll is two writes and two syncs");
}

#[test]
fn a_different_segment_size_is_taken_up_with_the_next_segment() {
    let disk = FaultDisk::new();
    let mut history = History::new();
    history.created = true;
    let mut core = create(&disk);
    for index in 1..40 {
        history.group(&mut core, &[entry(index, vec![1; 500])]).unwrap();
    }
    core.job().into_iter().for_each(Job::run);
    drop(core);
    let larger = WalOptions { segment_bytes: 4 * SEGMENT_BYTES, ..options(false) };
    let (mut core, _) = WalCore::open(disk.handle(), larger).unwrap();
    for index in 40..100 {
        history.group(&mut core, &[entry(index, vec![1; 500]), purged(index - 1)]).unwrap();
        core.job().into_iter().for_each(Job::run);
    }
    assert_eq!(core.active.bytes, 4 * SEGMENT_BYTES);
    drop(core);
    history.check(&disk).unwrap();
    for bytes in [0, 4096, SEGMENT_BYTES + 1, 1 << 32] {
        let options = WalOptions { segment_bytes: bytes, ..options(false) };
        assert!(WalCore::open(disk.handle(), options).is_err(), "{bytes}");
    }
}

/// A crash left spares behind, one of them under a number that is yet to come.
#[test]
fn a_spare_is_not_taken_for_another_of_its_name() {
    let disk = FaultDisk::new();
    drop(create(&disk));
    for number in [2, 9] {
        let file = disk.create(&segment::spare_name(number)).unwrap();
        file.set_len(SEGMENT_BYTES).unwrap();
        file.sync().unwrap();
    }
    disk.sync_dir().unwrap();
    let (mut core, _) = open(&disk).unwrap();
    for index in 1..100 {
        core.stage(&entry(index, vec![7; 900])).unwrap();
        core.stage(&purged(index)).unwrap();
        core.commit().unwrap();
        if let Some(job) = core.job() {
            job.run();
        }
    }
    let names = disk.list().unwrap();
    let lens = names.iter().map(|name| disk.open(name).unwrap().len().unwrap());
    assert_eq!(core.bytes_on_disk(), lens.sum::<u64>(), "{names:?}");
}
