//! Kills and power losses at every moment.

use super::*;

const GROUPS: usize = 40;

/// Runs a script from the beginning until the power goes off at a call, or to the end.
fn run(seed: u64, faults: Faults) -> (FaultDisk, History, io::Result<()>) {
    let disk = FaultDisk::new();
    disk.set_faults(faults);
    let mut history = History::new();
    let mut script = Script::new(seed);
    let result = WalCore::open(disk.handle(), options(true)).map_err(io::Error::other);
    let result = result.and_then(|(mut core, _)| {
        history.created = true;
        script.run(&mut history, &mut core, GROUPS)
    });
    (disk, history, result)
}

/// A second life, then a power loss: what the first left behind must not come back.
fn live_on(disk: &FaultDisk, history: &mut History, seed: u64) -> Result<(), String> {
    let mut core = history.check(disk)?;
    let mut script = Script::new(!seed);
    script.committed = history.committed.1;
    script.run(history, &mut core, 3).map_err(|error| error.to_string())?;
    // A group that is written and not synced.
    let sync = disk.counts().syncs;
    disk.set_faults(Faults { fail_sync: Some(sync), ..Faults::default() });
    let next = history.last().next();
    for index in next..next + 4 {
        let write = entry(index, vec![7; 300]);
        history.stage(&mut core, &write).ok();
    }
    core.commit().ok();
    drop(core);
    disk.set_faults(Faults::default());
    let crash = Crash::ALL[seed as usize % 4];
    disk.crash(crash, seed);
    let core = history.check(disk)?;
    drop(core);
    disk.crash(Crash::Lose, seed);
    history.check(disk).map(drop)
}

#[test]
fn every_acknowledged_write_survives_a_crash_between_any_two_calls() {
    for seed in 0..4 {
        let (disk, _, result) = run(seed, Faults::default());
        result.unwrap();
        let calls = disk.counts().calls;
        assert!(calls > 120, "{calls}");
        for at in 0..calls {
            let faults = Faults { power_off_at: Some(at), ..Faults::default() };
            let (disk, history, _) = run(seed, faults);
            for crash in Crash::ALL {
                for dice in 0..if crash == Crash::Kill || crash == Crash::Lose { 1 } else { 4 } {
                    let (disk, mut history) = (disk.fork(), history.clone());
                    disk.crash(crash, dice);
                    if let Err(why) = live_on(&disk, &mut history, at + dice) {
                        panic!("seed {seed}, call {at}, {crash:?} {dice}: {why}");
                    }
                }
            }
        }
    }
}

/// Random scripts, and crashes inside of recoveries as well.
#[test]
fn any_series_of_crashes_leaves_a_prefix() {
    for seed in 0..300 {
        let mut chance = Chance(seed);
        let mut script = Script::new(seed);
        let disk = FaultDisk::new();
        let mut history = History::new();
        let mut lives = Vec::new();
        for _ in 0..12 {
            let at = disk.counts().calls + chance.below(60) as u64;
            disk.set_faults(Faults { power_off_at: Some(at), ..Faults::default() });
            let outcome = match history.check(&disk) {
                Ok(mut core) => script.run(&mut history, &mut core, GROUPS).err(),
                Err(why) if why.contains("injected") => None,
                Err(why) => panic!("seed {seed}, {lives:?}: {why}"),
            };
            let (crash, dice) = (Crash::ALL[chance.below(4)], chance.next());
            lives.push((at, crash, dice, outcome.is_some()));
            disk.crash(crash, dice);
        }
        disk.set_faults(Faults::default());
        if let Err(why) = history.check(&disk) {
            panic!("seed {seed}, {lives:?}: {why}");
        }
    }
}

/// Every combination of sectors of a group may be what reached the disk. The log is cut where the
/// first frame is incomplete, and what lies behind never comes back, not even when the same entries
/// are written again.
#[test]
fn every_subset_of_the_sectors_of_an_unsynced_group_is_a_tear() {
    let disk = FaultDisk::new();
    let mut history = History::new();
    let mut core = create(&disk);
    history.created = true;
    let name = segment::name(1);
    history.group(&mut core, &[vote("first"), entry(1, vec![1; 100])]).unwrap();
    let before = disk.contents(&name).unwrap();
    let group: Vec<Write> = (2..8).map(|index| entry(index, vec![index as u8; 560])).collect();
    for write in &group {
        history.stage(&mut core, write).unwrap();
    }
    // Written, not acknowledged.
    let sync = disk.counts().syncs;
    disk.set_faults(Faults { fail_sync: Some(sync), ..Faults::default() });
    core.commit().unwrap_err();
    disk.set_faults(Faults::default());
    let after = disk.contents(&name).unwrap();
    let changed: Vec<usize> = (0..before.len() / 512)
        .filter(|at| before[at * 512..][..512] != after[at * 512..][..512])
        .collect();
    assert!((7..=9).contains(&changed.len()), "{changed:?}");

    let (mut tears, mut erased) = (0, 0);
    for subset in 0..1u32 << changed.len() {
        let mut bytes = before.clone();
        for (bit, sector) in changed.iter().enumerate() {
            if subset & (1 << bit) != 0 {
                bytes[sector * 512..][..512].copy_from_slice(&after[sector * 512..][..512]);
            }
        }
        let (disk, mut history) = (disk.fork(), history.clone());
        disk.crash(Crash::Lose, 0);
        let file = disk.open(&name).unwrap();
        file.write_at(0, &bytes).unwrap();
        file.sync().unwrap();
        let recovered = open(&disk.fork()).unwrap().1;
        tears += usize::from(recovered.cut.is_some());
        erased += recovered.cut.map_or(0, |cut| cut.erased);
        let mut core = history.check(&disk).unwrap_or_else(|why| panic!("{subset:b}: {why}"));
        // The same again, one by one, over what the group has left.
        let next = history.last().next();
        for write in &group[next as usize - 2..] {
            history.group(&mut core, std::slice::from_ref(write)).unwrap();
            let (disk, mut history) = (disk.fork(), history.clone());
            disk.crash(Crash::Lose, 0);
            history.check(&disk).unwrap_or_else(|why| panic!("{subset:b}, then {write:?}: {why}"));
        }
    }
    assert!(tears > 100 && erased > 100, "{tears} tears, {erased} erased");
}

/// The tail may end anywhere.
#[test]
fn a_group_cut_at_any_byte_leaves_what_was_acknowledged() {
    let disk = FaultDisk::new();
    let mut history = History::new();
    let mut core = create(&disk);
    history.created = true;
    history.group(&mut core, &[vote("first"), entry(1, "one")]).unwrap();
    let from = core.position;
    let writes = [entry(2, vec![2; 90]), vote("second"), truncate(1), entry(2, vec![3; 41])];
    for write in &writes {
        history.stage(&mut core, write).unwrap();
    }
    core.commit().unwrap();
    let to = core.position;
    drop(core);
    let whole = disk.contents(&segment::name(1)).unwrap();
    let mut found = std::collections::BTreeSet::new();
    for cut in from..=to {
        for rest in [0, 0xff, 0xa5] {
            let (disk, mut history) = (disk.fork(), history.clone());
            let file = disk.open(&segment::name(1)).unwrap();
            file.write_at(cut as u64, &vec![rest; whole.len() - cut]).unwrap();
            file.sync().unwrap();
            let core = history.check(&disk).unwrap_or_else(|why| panic!("{cut}, {rest}: {why}"));
            found.insert(core.sequence);
            drop(core);
            live_on(&disk, &mut history, cut as u64).unwrap();
        }
    }
    assert_eq!(found.len(), writes.len() + 1, "each prefix was found");
}

/// The test disk and the check notice a log that forgets to sync.
#[test]
fn a_log_without_syncs_is_caught() {
    for skipped in [
        Faults { skip_dir_syncs: true, ..Faults::default() },
        Faults { skip_syncs: true, ..Faults::default() },
    ] {
        let (disk, mut history, result) = run(1, skipped.clone());
        result.unwrap();
        assert!(history.clone().check(&disk.fork()).is_ok(), "nothing is lost without a crash");
        disk.crash(Crash::Lose, 1);
        let why = history.check(&disk).unwrap_err();
        assert!(why.contains("missing") || why.contains("damaged"), "{skipped:?}: {why}");
    }
}

/// Only the later segments lack their directory entries.
#[test]
fn a_roll_without_a_sync_of_the_directory_is_caught() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut history = History::new();
    history.created = true;
    disk.set_faults(Faults { skip_dir_syncs: true, ..Faults::default() });
    for index in 1..40 {
        history.group(&mut core, &[entry(index, vec![1; 400])]).unwrap();
    }
    assert!(core.active.number > 1);
    drop(core);
    disk.crash(Crash::Lose, 1);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { segment: 2, .. }), "{error}");
}

/// A kill between the rename and the sync of the directory: the next life finds a prepared segment
/// that a power loss would take away, and goes on in it.
#[test]
fn a_name_that_was_not_durable_at_start_is_made_so() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    let mut history = History::new();
    history.created = true;
    let fill = |history: &mut History, core: &mut WalCore, count| {
        for _ in 0..count {
            let next = history.last().next();
            history.group(core, &[entry(next, vec![1; 400])]).unwrap();
        }
    };
    fill(&mut history, &mut core, 8);
    disk.set_faults(Faults { skip_dir_syncs: true, ..Faults::default() });
    core.job().unwrap().run();
    drop(core);
    disk.set_faults(Faults::default());
    disk.crash(Crash::Kill, 0);
    let mut core = history.check(&disk).unwrap();
    assert_eq!(core.prepared.len(), 1);
    fill(&mut history, &mut core, 20);
    assert!(core.active.number >= 2);
    disk.crash(Crash::Lose, 0);
    history.check(&disk).unwrap();
}

#[test]
fn a_failed_write_or_sync_poisons_the_log_and_acknowledges_nothing() {
    type Plant = fn(u64) -> Faults;
    let plants: [Plant; 3] = [
        |at| Faults { fail_write: Some(at), ..Faults::default() },
        |at| Faults { fail_sync: Some(at), ..Faults::default() },
        |at| Faults { fail_sync_dir: Some(at), ..Faults::default() },
    ];
    for seed in 0..2 {
        let (disk, _, _) = run(seed, Faults::default());
        let counts = disk.counts();
        assert!(counts.dir_syncs > 4);
        let ends = [counts.writes, counts.syncs, counts.dir_syncs];
        for (plant, end) in plants.iter().zip(ends) {
            for at in 0..end {
                let disk = FaultDisk::new();
                let mut core = create(&disk);
                let mut history = History::new();
                history.created = true;
                let begun = disk.counts();
                disk.set_faults(plant(at));
                let Err(error) = Script::new(seed).run(&mut history, &mut core, GROUPS) else {
                    // It failed in a job that the core has not looked at, or not at all.
                    continue;
                };
                assert!(error.to_string().contains("injected"), "{error}");
                let acked = history.acked;
                let calls = disk.counts().calls;
                assert!(calls > begun.calls);
                for _ in 0..2 {
                    let write = vote("after the failure");
                    assert!(core.stage(&write).is_err());
                    assert!(core.commit().is_err());
                    assert!(core.seal().is_err());
                    assert!(core.close().is_err());
                    assert!(core.job().is_none());
                }
                assert_eq!(disk.counts().calls, calls, "nothing is tried again");
                assert_eq!(history.acked, acked);
                drop(core);
                disk.set_faults(Faults::default());

                // What the next life finds in the page cache may never have reached the disk.
                disk.crash(Crash::Kill, at);
                let core = history.check(&disk).unwrap_or_else(|why| panic!("{seed} {at}: {why}"));
                drop(core);
                disk.crash(Crash::Lose, at);
                history.check(&disk).unwrap_or_else(|why| panic!("{seed} {at}, later: {why}"));
            }
        }
    }
}

/// Checks the check: entries that were read after a failed sync are lost unless they are written
/// again, so a recovery that only synced would be caught by the test above.
#[test]
fn after_a_failed_sync_the_disk_lacks_what_the_page_cache_shows() {
    let disk = FaultDisk::new();
    let mut core = create(&disk);
    core.stage(&entry(1, "one")).unwrap();
    let sync = disk.counts().syncs;
    disk.set_faults(Faults { fail_sync: Some(sync), ..Faults::default() });
    core.commit().unwrap_err();
    disk.crash(Crash::Kill, 0);
    let lost = disk.fork();
    lost.open(&segment::name(1)).unwrap().sync().unwrap();
    lost.crash(Crash::Lose, 0);
    assert_eq!(open(&lost).unwrap().1.last, None);
    assert_eq!(open(&disk).unwrap().1.last, Some(1));
    disk.crash(Crash::Lose, 0);
    assert_eq!(open(&disk).unwrap().1.last, Some(1));
}

#[test]
fn a_read_error_at_start_is_no_verdict_on_the_log() {
    let (disk, mut history, _) = run(0, Faults::default());
    disk.crash(Crash::Kill, 0);
    let reads = disk.counts().reads;
    for at in 0.. {
        let disk = disk.fork();
        disk.set_faults(Faults { fail_read: Some(reads + at), ..Faults::default() });
        match open(&disk) {
            Err(OpenError::Io { .. }) => {}
            Err(other) => panic!("read {at}: {other}"),
            Ok(_) if at > 3 => break,
            Ok(_) => panic!("read {at} did not take place"),
        }
    }
    history.check(&disk).unwrap();
}
