//! The simulation: a cluster of nodes, their clients and everything that can go wrong, in one thread, on
//! virtual time, from one seed. The code from [`quorate::node`] down is production's; disks, network,
//! clocks and chance are the simulation's.
//!
//! - `cargo test --test sim` runs a few seeds, repeats one, and lets planted bugs be caught.
//! - `QUORATE_SIM_SEEDS=0..1000 cargo test --test sim seeds` runs more; `QUORATE_SIM_SECONDS` says how
//!   long things go wrong in each, `QUORATE_SIM_MIX` what (a name of [`faults::Mix`]),
//!   `QUORATE_SIM_NODES` how many nodes there are, `QUORATE_SIM_LOAD` multiplies the clients,
//!   `QUORATE_SIM_THREADS` says on how many cores.
//! - `cargo run -p quorate-jepsen -- sim --seeds 0..1000` runs many, optimized, with a line of progress.
//! - A failure prints the command that repeats it. `QUORATE_SIM_TRACE=<file>` writes down what happens.

#![cfg(feature = "server")]
#![allow(clippy::unwrap_used)]

mod cluster;
mod faults;
mod journal;
mod network;
mod oracle;
mod participants;
mod plant;
mod run;
mod stories;
mod trace;
mod workload;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use faults::Mix;
use oracle::Counts;
use plant::Plant;
use run::{Report, Setup, repeat, run};

/// Seeds of a plain `cargo test`.
const SEEDS: Range<u64> = 0..8;
const SECONDS: u64 = 20;

fn setup(seed: u64, plant: Plant) -> Setup {
    let seconds = number("QUORATE_SIM_SECONDS").unwrap_or(SECONDS);
    Setup {
        seed,
        plant,
        faults: Duration::from_secs(seconds),
        mix: named("QUORATE_SIM_MIX", &Mix::ALL).unwrap_or(Mix::Everything),
        nodes: number("QUORATE_SIM_NODES").unwrap_or(3),
        load: number("QUORATE_SIM_LOAD").unwrap_or(1),
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")))
}

/// The value of that name.
fn named<T: Copy + Debug>(variable: &str, all: &[T]) -> Option<T> {
    let text = std::env::var(variable).ok()?;
    let found = all.iter().find(|value| format!("{value:?}") == text);
    Some(*found.unwrap_or_else(|| panic!("{variable}={text} is none of {all:?}")))
}

/// `A..B`
fn range(variable: &str) -> Option<Range<u64>> {
    let text = std::env::var(variable).ok()?;
    let range = text.split_once("..").and_then(|(a, b)| Some(a.parse().ok()?..b.parse().ok()?));
    Some(range.unwrap_or_else(|| panic!("{variable}={text} is not of the form A..B")))
}

/// Runs a seed, every hundredth one twice.
fn judge(setup: &Setup) -> (Report, Option<String>) {
    let report = run(setup);
    let mut failure = failure(setup, &report);
    if setup.seed % 100 == 99 {
        let again = run(setup);
        if again.hash != report.hash {
            failure = Some(format!("seed {} gave two traces\n{}", setup.seed, repeat(setup)));
        }
    }
    (report, failure)
}

/// Runs seeds on all cores.
fn run_all(seeds: Range<u64>) -> (Counts, Vec<String>, Duration) {
    let next = AtomicU64::new(seeds.start);
    let total = Mutex::new((Counts::default(), Vec::new(), Duration::ZERO));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                break;
            }
            let (report, failure) = judge(&setup(seed, Plant::None));
            let mut total = total.lock().unwrap();
            total.0.add(&report.counts);
            total.2 += report.took;
            if let Some(failure) = failure {
                eprintln!("{failure}");
                total.1.push(failure);
            }
        }
    };
    std::thread::scope(|scope| {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
        for _ in 0..number("QUORATE_SIM_THREADS").unwrap_or(cores) {
            scope.spawn(work);
        }
    });
    total.into_inner().unwrap()
}

fn failure(setup: &Setup, report: &Report) -> Option<String> {
    let first = report.violations.first()?;
    Some(format!("seed {} after {:?}: {first}\n{}", report.seed, report.took, repeat(setup)))
}

#[test]
fn seeds_hold_every_promise() {
    let (counts, failures, virtual_time) = run_all(range("QUORATE_SIM_SEEDS").unwrap_or(SEEDS));
    println!("{virtual_time:?} of virtual time: {counts:?}");
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    if setup(0, Plant::None).mix != Mix::Everything {
        return;
    }
    // A run in which nothing went wrong proves nothing.
    let Counts { acknowledged, duplicates, reads, watch_messages, keep_alives, expired, .. } =
        counts;
    let Counts { additions, publications, conflicts, transactions, taken_back, .. } = counts;
    let Counts { locks_held, locks_awaited, .. } = counts;
    let Counts { calls_made, saga_effects, sagas_succeeded, sagas_failed, sagas_awaited, .. } =
        counts;
    let Counts { kills, power_losses, blackouts, partitions, pauses, leaders, .. } = counts;
    let Counts { snapshots, installs, .. } = counts;
    for (what, count) in [
        ("acknowledged writes", acknowledged),
        ("retries answered from memory", duplicates),
        ("additions to counters", additions),
        ("publications", publications),
        ("refused publications", conflicts),
        ("transactions", transactions),
        ("transactions that were taken back", taken_back),
        ("locks that were held", locks_held),
        ("locks that were waited for", locks_awaited),
        ("calls of participants", calls_made),
        ("effects of global transactions", saga_effects),
        ("global transactions that succeeded", sagas_succeeded),
        ("global transactions that failed", sagas_failed),
        ("global transactions that were waited for", sagas_awaited),
        ("reads", reads),
        ("watch messages", watch_messages),
        ("keep-alives", keep_alives),
        ("expired sessions", expired),
        ("kills", kills),
        ("power losses", power_losses),
        ("power losses of all nodes", blackouts),
        ("partitions", partitions),
        ("pauses", pauses),
        ("leaders", leaders),
        ("snapshots", snapshots),
        ("installed snapshots", installs),
    ] {
        assert!(count > 0, "no {what} in {counts:?}");
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let setup = setup(1, Plant::None);
    let (first, second) = (run(&setup), run(&setup));
    assert!(first.events > 10_000, "{}", first.events);
    assert_eq!((first.hash, first.events), (second.hash, second.events), "{}", repeat(&setup));
    let other = run(&Setup { seed: 2, ..setup });
    assert_ne!(first.hash, other.hash, "another seed gives another trace");
}

/// `QUORATE_SIM_RUN=A..B`: what `quorate-jepsen sim` starts on each core. A line tells what came of each seed.
#[test]
fn seeds_one_by_one() {
    let Some(seeds) = range("QUORATE_SIM_RUN") else { return };
    let mut failed = 0;
    for seed in seeds {
        let (Report { hash, took, counts, .. }, failure) = judge(&setup(seed, Plant::None));
        failed += u64::from(failure.is_some());
        let verdict = failure.map_or_else(|| "ok".to_owned(), |text| text.replace('\n', "; "));
        let Counts { acknowledged, kills, power_losses, blackouts, .. } = counts;
        println!(
            "\nseed {seed} hash {hash:016x} virtual {} ms, {acknowledged} acknowledged, {kills} kills, \
             {power_losses} power losses, {blackouts} of all nodes: {verdict}",
            took.as_millis()
        );
    }
    assert_eq!(failed, 0, "seeds have failed");
}

/// `QUORATE_SIM_SEED=N`, and `QUORATE_SIM_PLANT` for a planted bug.
#[test]
fn one_seed_from_the_environment() {
    let Some(seed) = number("QUORATE_SIM_SEED") else { return };
    let plant = named("QUORATE_SIM_PLANT", &Plant::ALL).unwrap_or(Plant::None);
    let setup = setup(seed, plant);
    let report = run(&setup);
    println!("{report:#?}");
    if let Some(failure) = failure(&setup, &report) {
        panic!("{failure}");
    }
}

/// The oracle is believed because it catches each of these within a few seeds.
fn is_caught(plant: Plant, within: u64) {
    is_caught_in(setup(0, plant).mix, plant, within);
}

fn is_caught_in(mix: Mix, plant: Plant, within: u64) {
    for seed in 0..within {
        let report = run(&Setup { mix, ..setup(seed, plant) });
        if let Some(first) = report.violations.first() {
            println!("{plant:?} fell at seed {seed} after {:?}: {first}", report.took);
            return;
        }
    }
    panic!("{plant:?} was not caught within {within} seeds");
}

#[test]
fn planted_acknowledgement_before_the_sync_is_caught() {
    // It takes losses of power to be seen.
    is_caught_in(Mix::Disks, Plant::AckBeforeSync, 10);
}

#[test]
fn planted_ignored_syncs_are_caught() {
    is_caught(Plant::SyncIgnored, 10);
}

#[test]
fn planted_loss_of_votes_is_caught() {
    is_caught(Plant::VoteLost, 10);
}

#[test]
fn planted_read_without_an_index_is_caught() {
    is_caught(Plant::ReadWithoutIndex, 10);
}

#[test]
fn planted_double_application_is_caught() {
    is_caught(Plant::RetryForgotten, 10);
}

#[test]
fn planted_loss_of_replies_in_a_snapshot_is_caught() {
    is_caught(Plant::RepliesLostInSnapshot, 10);
}

#[test]
fn planted_keep_alive_of_a_follower_is_caught() {
    is_caught(Plant::KeepAliveNotForwarded, 10);
}

#[test]
fn planted_gap_in_a_watch_is_caught() {
    is_caught(Plant::WatchSkips, 10);
}

#[test]
fn planted_repetition_of_an_addition_is_caught() {
    is_caught(Plant::AddRepeated, 10);
}

#[test]
fn planted_lock_of_one_who_waits_is_caught() {
    is_caught(Plant::QueuedIsHeld, 10);
}

#[test]
fn planted_overwriting_of_a_version_is_caught() {
    is_caught(Plant::CompareIgnored, 10);
}

#[test]
fn planted_transaction_in_two_messages_is_caught() {
    is_caught(Plant::WatchSplits, 10);
}

#[test]
fn planted_call_that_was_not_recorded_is_caught() {
    is_caught(Plant::CallUnrecorded, 10);
}

#[test]
fn planted_key_of_an_attempt_is_caught() {
    is_caught(Plant::KeyOfAttempt, 10);
}

#[test]
fn planted_refusal_of_one_who_is_silent_is_caught() {
    is_caught(Plant::SilenceIsRefusal, 10);
}

#[test]
fn planted_end_of_what_goes_on_is_caught() {
    is_caught(Plant::OngoingIsDone, 10);
}

#[test]
fn planted_answer_that_comes_too_late_is_caught() {
    is_caught(Plant::LateIsHeard, 10);
}

#[test]
fn planted_loss_of_calls_with_their_leader_is_caught() {
    is_caught(Plant::TakeoverForgotten, 10);
}
