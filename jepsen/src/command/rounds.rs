//! Rounds: for a long time, one run after the other, each of another workload under another combination of
//! faults, on a cluster of its own.

use std::time::{Duration, Instant};

use quorate_jepsen::random::Random;
use quorate_jepsen::report::Valid;
use quorate_jepsen::run::options::Options;
use quorate_jepsen::{nemesis, workload};

use super::print;
use super::run::one;

/// Kinds of faults in one round: with more of them each would come up once at most.
const KINDS: usize = 3;

/// Runs rounds until the seconds of the options are used up, at least one of each workload.
///
/// One false is false; a round that failed by itself is no verdict, and makes none of the others a pass.
pub fn main(
    options: &Options,
    workloads: &[workload::Kind],
    seconds: u64,
) -> Result<Valid, String> {
    let mut random = Random::new(options.seed);
    let began = Instant::now();
    let time = Duration::from_secs(options.seconds);
    let round = Duration::from_secs(seconds);
    let (mut turn, mut number) = (Vec::new(), 0);
    let (mut valid, mut failed) = (Valid::True, Vec::new());
    while number < workloads.len() || began.elapsed() + round <= time {
        if turn.is_empty() {
            turn = workloads.to_vec();
            random.shuffle(&mut turn);
        }
        let Some(workload) = turn.pop() else { break };
        number += 1;
        let options = Options {
            workload,
            nemesis: some(&options.nemesis, &mut random),
            seconds,
            // Few digits, as people repeat them.
            seed: random.between(1..=999_999_999),
            dir: options.dir.join(format!("{number:04}-{}", workload.name())),
            ..options.clone()
        };
        let faults: Vec<&str> = options.nemesis.iter().map(|kind| kind.name()).collect();
        let found = match one(&options) {
            Ok(verdict) => {
                valid = worse(valid, verdict.valid);
                let succeeded = verdict.reports.iter().map(|report| report.succeeded).max();
                let why = verdict.reports.iter().flat_map(|report| {
                    let names = report.names().into_iter().map(str::to_owned);
                    names.chain(report.unknown.iter().cloned())
                });
                let why: String = why.map(|why| format!("; {why}")).collect();
                format!("{}, {} operations{why}", verdict.valid, succeeded.unwrap_or(0))
            }
            Err(problem) => {
                failed.push(number);
                format!("failed: {problem}")
            }
        };
        print(&format!(
            "{:>6} s, round {number}, {} with {}, seed {}: {found}\n",
            began.elapsed().as_secs(),
            workload.name(),
            if faults.is_empty() { "no faults".to_owned() } else { faults.join(" + ") },
            options.seed,
        ))?;
    }
    print(&format!("{number} rounds: {valid}\n"))?;
    match failed.as_slice() {
        failed if valid != Valid::False && !failed.is_empty() => {
            Err(format!("rounds {failed:?} failed by themselves"))
        }
        _ => Ok(valid),
    }
}

fn worse(one: Valid, other: Valid) -> Valid {
    match (one, other) {
        (Valid::False, _) | (_, Valid::False) => Valid::False,
        (Valid::Unknown, _) | (_, Valid::Unknown) => Valid::Unknown,
        (Valid::True, Valid::True) => Valid::True,
    }
}

/// One to three of the kinds.
fn some(kinds: &[nemesis::Kind], random: &mut Random) -> Vec<nemesis::Kind> {
    let mut kinds = kinds.to_vec();
    random.shuffle(&mut kinds);
    kinds.truncate(1 + random.below(KINDS));
    kinds.sort_unstable();
    kinds
}
