//! Balancing, on the public interface but for the tables themselves. Whatever is random is seeded; each
//! failure of a property prints the command that repeats it.
#![allow(clippy::unwrap_used)]

mod around;
mod choosing;
mod ejection;
mod golden;
mod hashing;
mod load;
mod policy;
mod subsetting;

use std::time::Duration;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use super::math::Random;
use super::*;

const SEED: u64 = 7;
const ZERO: Duration = Duration::ZERO;

pub(super) fn check<S: Strategy>(name: &str, cases: u32, strategy: S, test: impl Fn(S::Value)) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => SEED,
    };
    config.rng_seed = RngSeed::Fixed(seed);
    let cases = config.cases;
    let run = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    let again = format!(
        "again: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} cargo test --lib client::balance::{name}"
    );
    match run {
        Ok(()) => {}
        Err(TestError::Fail(why, least)) => panic!("{why}\nleast input: {least:#?}\n{again}"),
        Err(TestError::Abort(why)) => panic!("{why}\n{again}"),
    }
}

/// An endpoint that is its own target.
fn endpoint(id: impl Into<String>) -> Endpoint<()> {
    Endpoint::new(id, ())
}

fn weighted(id: impl Into<String>, weight: u32) -> Endpoint<()> {
    Endpoint { weight, ..endpoint(id) }
}

/// `n-000`, `n-001` ...: in the order of their numbers.
fn numbered(n: usize) -> Vec<Endpoint<()>> {
    (0..n).map(|i| endpoint(format!("n-{i:03}"))).collect()
}

fn snapshot(policy: &str, endpoints: Vec<Endpoint<()>>) -> Snapshot<()> {
    Snapshot::new(&policy.parse().unwrap(), &Origin::default(), endpoints)
}

fn origin(id: &str, zone: &str) -> Origin {
    Origin { id: id.to_owned(), zone: zone.to_owned() }
}

/// What follows with the same policy and origin.
fn successor(before: &Snapshot<()>, endpoints: Vec<Endpoint<()>>, now: Duration) -> Snapshot<()> {
    before.successor(before.policy(), before.origin(), endpoints, now)
}

/// The id of the first candidate.
fn picked(snapshot: &Snapshot<()>, hash: Option<u64>, now: Duration, random: u64) -> &str {
    &snapshot.pick(hash, now, random).unwrap().endpoint().id
}

/// The owners of the keys `0..n`.
fn owners(snapshot: &Snapshot<()>, n: u64) -> Vec<&str> {
    (0..n).map(|key| picked(snapshot, Some(hash(&key.to_le_bytes())), ZERO, key)).collect()
}

/// How many of `n` picks each member of a snapshot gets.
fn tally(snapshot: &Snapshot<()>, n: u64, now: Duration) -> Vec<u64> {
    let mut random = Random(SEED);
    let mut counts = vec![0; snapshot.members().len()];
    for _ in 0..n {
        let id = picked(snapshot, Some(random.next()), now, random.next());
        let place = snapshot.members().iter().position(|member| member.endpoint().id == id);
        counts[place.unwrap()] += 1;
    }
    counts
}

/// The share of one endpoint among `n` picks.
fn share(snapshot: &Snapshot<()>, id: &str, n: u64, now: Duration) -> f64 {
    let place = snapshot.members().iter().position(|member| member.endpoint().id == id).unwrap();
    tally(snapshot, n, now)[place] as f64 / n as f64
}

/// One of each policy.
const POLICIES: [&str; 13] = [
    "ring_hash",
    "ketama",
    "maglev",
    "rendezvous",
    "ring_hash?bound=1.25",
    "maglev?bound=1.25",
    "rendezvous?bound=1.25",
    "least_request",
    "peak_ewma",
    "weighted_round_robin",
    "round_robin",
    "random",
    "pick_first?shuffle=on",
];
