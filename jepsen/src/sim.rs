//! Runs the simulation (`tests/sim` of Quorate) over many seeds: builds its test binary once and starts it as a
//! process on each core, with a few seeds at a time. What goes wrong in a run, for how long and to how many
//! nodes, the variables of that binary say (`QUORATE_SIM_SECONDS` and so on), which are handed on.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read as _};
use std::ops::{AddAssign, Range};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use quorate_jepsen::bugs::parse_seeds;

use crate::cargo::Cargo;

/// Seeds that one process runs, at most.
const CHUNK: u64 = 25;
/// How often progress is told, on a terminal and elsewhere.
const TERMINAL: Duration = Duration::from_secs(1);
const ELSEWHERE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub struct Options {
    /// Seeds to run, the last one excluded.
    #[arg(long, value_parser = parse_seeds)]
    seeds: Range<u64>,
    /// Processes at the same time; without it, one on each core.
    #[arg(long)]
    jobs: Option<usize>,
    /// How it is compiled: the profile of tests is there already where tests are run; `release` takes minutes
    /// to compile and runs a seed many times as fast.
    #[arg(long, default_value = "test")]
    profile: String,
}

/// What is known of one seed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Outcome {
    seed: u64,
    hash: u64,
    figures: Figures,
    /// What did not hold, and the command that repeats it.
    failure: Option<String>,
}

/// What went on in runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Figures {
    virtual_ms: u64,
    acknowledged: u64,
    kills: u64,
    power_losses: u64,
    /// Losses of power of all nodes at once.
    blackouts: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, more: Figures) {
        self.virtual_ms += more.virtual_ms;
        self.acknowledged += more.acknowledged;
        self.kills += more.kills;
        self.power_losses += more.power_losses;
        self.blackouts += more.blackouts;
    }
}

/// Whether everything held. An error says why that is not known.
pub fn run(options: &Options) -> Result<bool, String> {
    let Options { seeds, jobs, profile } = options;
    let binary = Cargo::here().test_binary(&["--test", "sim"], profile)?;
    let jobs = jobs.map_or_else(cores, |jobs| jobs as u64).max(1);
    let count = seeds.end - seeds.start;
    let size = count.div_ceil(jobs).clamp(1, CHUNK);
    let queue = Queue { next: Mutex::new(seeds.clone()), size };
    run_all(&queue, &binary, &[], jobs, |outcomes| collect(count, outcomes))
}

/// What a search for one failure has come to.
#[derive(Debug)]
pub struct Search {
    /// The lowest seed that failed as it was wanted, and how.
    pub found: Option<(u64, String)>,
    /// Other failures, and runs that came to no end.
    pub others: Vec<String>,
    pub seeds: u64,
}

/// Runs seeds in the test binary, with variables for it, until one fails as it is wanted.
pub fn search(
    binary: &Path,
    variables: &[(String, String)],
    seeds: Range<u64>,
    is_wanted: impl Fn(&str) -> bool,
) -> Search {
    let queue = Queue { next: Mutex::new(seeds), size: 1 };
    run_all(&queue, binary, variables, cores(), |outcomes| {
        let mut search = Search { found: None, others: Vec::new(), seeds: 0 };
        for outcome in outcomes {
            search.seeds += 1;
            match outcome {
                Ok(Outcome { failure: None, .. }) => {}
                Ok(Outcome { seed, failure: Some(failure), .. }) if is_wanted(&failure) => {
                    queue.close();
                    if search.found.as_ref().is_none_or(|(found, _)| seed < *found) {
                        search.found = Some((seed, failure));
                    }
                }
                Ok(Outcome { failure: Some(other), .. }) | Err(other) => search.others.push(other),
            }
        }
        search
    })
}

fn cores() -> u64 {
    std::thread::available_parallelism().map_or(1, usize::from) as u64
}

/// Seeds that no process has taken yet.
struct Queue {
    next: Mutex<Range<u64>>,
    /// How many one process takes.
    size: u64,
}

impl Queue {
    fn take(&self) -> Option<Range<u64>> {
        let mut next = self.next.lock().expect("nobody panics with it");
        let chunk = next.start..next.end.min(next.start + self.size);
        next.start = chunk.end;
        (!chunk.is_empty()).then_some(chunk)
    }

    fn close(&self) {
        let mut next = self.next.lock().expect("nobody panics with it");
        next.start = next.end;
    }
}

/// Lets processes run the seeds, and hands on what is heard of them.
fn run_all<T>(
    queue: &Queue,
    binary: &Path,
    variables: &[(String, String)],
    jobs: u64,
    hear: impl FnOnce(&mpsc::Receiver<Result<Outcome, String>>) -> T,
) -> T {
    let (told, outcomes) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            let told = told.clone();
            scope.spawn(move || {
                while let Some(chunk) = queue.take() {
                    if let Err(error) = run_chunk(binary, variables, chunk, &told) {
                        // The other end is gone when another process has broken down.
                        let _ = told.send(Err(error));
                        return;
                    }
                }
            });
        }
        drop(told);
        hear(&outcomes)
    })
}

/// Runs some seeds in a process of their own.
fn run_chunk(
    binary: &Path,
    variables: &[(String, String)],
    seeds: Range<u64>,
    told: &Sender<Result<Outcome, String>>,
) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", binary.display());
    let mut child = Command::new(binary)
        .args(["--exact", "seeds_one_by_one", "--nocapture"])
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .env("QUORATE_SIM_RUN", format!("{}..{}", seeds.start, seeds.end))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (Some(stdout), Some(mut stderr)) = (stdout, stderr) else {
        return Err("a child without pipes".to_owned());
    };
    // Read beside the other, so that neither pipe fills up.
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was read until it broke off is all there is.
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut next = seeds.start;
    for line in BufReader::new(stdout).lines() {
        let Some(outcome) = parse(&line.map_err(failed)?) else { continue };
        next = outcome.seed + 1;
        // The other end is gone when another process has broken down.
        let _ = told.send(Ok(outcome));
    }
    let status = child.wait().map_err(failed)?;
    let complaints = complaints.join().unwrap_or_default();
    if next == seeds.end {
        return Ok(());
    }
    Err(format!("seed {next} did not come to its end, {status}:\n{complaints}"))
}

/// A line of the form `seed 17 hash 0123456789abcdef virtual 40000 ms, 900 acknowledged, 9 kills, 5 power losses, 1 of
/// all nodes: ok`, or another word and what is wrong in place of `ok`.
fn parse(line: &str) -> Option<Outcome> {
    let (head, verdict) = line.split_once(": ")?;
    let (run, happened) = head.split_once(" ms, ")?;
    let words: Vec<&str> = run.split(' ').collect();
    let ["seed", seed, "hash", hash, "virtual", virtual_ms] = words[..] else { return None };
    let mut numbers = happened.split(", ").map(|part| part.split_once(' '));
    let mut number = |what: &str| match numbers.next()?? {
        (number, of) if of == what => number.parse().ok(),
        _ => None,
    };
    let figures = Figures {
        virtual_ms: virtual_ms.parse().ok()?,
        acknowledged: number("acknowledged")?,
        kills: number("kills")?,
        power_losses: number("power losses")?,
        blackouts: number("of all nodes")?,
    };
    Some(Outcome {
        seed: seed.parse().ok()?,
        hash: u64::from_str_radix(hash, 16).ok()?,
        figures,
        failure: (verdict != "ok").then(|| verdict.to_owned()),
    })
}

/// Tells how far it is, and in the end what came of it.
fn collect(count: u64, outcomes: &mpsc::Receiver<Result<Outcome, String>>) -> Result<bool, String> {
    let terminal = std::io::stderr().is_terminal();
    let pause = if terminal { TERMINAL } else { ELSEWHERE };
    let began = Instant::now();
    let mut next = began + pause;
    let mut hashes = BTreeMap::new();
    let (mut figures, mut failures) = (Figures::default(), 0);
    let mut broken = Vec::new();
    let progress = |done: usize, figures: &Figures, failures: u64| {
        let seconds = began.elapsed().as_secs_f64();
        let rate = done as f64 / seconds;
        let minutes = figures.virtual_ms / 60_000;
        let text = format!(
            "{done} of {count} seeds, {rate:.2} per second, {minutes} minutes of virtual time, \
             {failures} failed"
        );
        if terminal { eprint!("\r{text}  ") } else { eprintln!("{text}") }
    };
    loop {
        match outcomes.recv_timeout(next.saturating_duration_since(Instant::now())) {
            Ok(Ok(outcome)) => {
                figures += outcome.figures;
                hashes.insert(outcome.seed, outcome.hash);
                if let Some(failure) = outcome.failure {
                    failures += 1;
                    println!("seed {}: {failure}", outcome.seed);
                }
            }
            Ok(Err(error)) => broken.push(error),
            Err(RecvTimeoutError::Timeout) => {
                progress(hashes.len(), &figures, failures);
                next += pause;
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    progress(hashes.len(), &figures, failures);
    if terminal {
        eprintln!();
    }
    if !broken.is_empty() {
        return Err(broken.join("\n"));
    }
    // Of all traces in the order of the seeds: the same seeds give the same.
    let hash = hashes.values().fold(0u64, |all, hash| all.rotate_left(5) ^ hash);
    let Figures { acknowledged, kills, power_losses, blackouts, .. } = figures;
    println!(
        "{acknowledged} writes acknowledged, {kills} processes killed, {power_losses} machines without power, \
         {blackouts} times all at once"
    );
    println!("{} seeds, {failures} failed, hash of their traces {hash:016x}", hashes.len());
    Ok(failures == 0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn lines_of_the_simulation_are_told_from_others() {
        const HAPPENED: &str =
            "virtual 40000 ms, 900 acknowledged, 9 kills, 5 power losses, 1 of all nodes";
        let figures = Figures {
            virtual_ms: 40_000,
            acknowledged: 900,
            kills: 9,
            power_losses: 5,
            blackouts: 1,
        };
        let good = parse(&format!("seed 17 hash 00000000000000ff {HAPPENED}: ok")).unwrap();
        assert_eq!(good, Outcome { seed: 17, hash: 255, figures, failure: None });
        let bad = format!("seed 18 hash ff {HAPPENED}: read: nothing; repeat with: x");
        assert_eq!(parse(&bad).unwrap().failure.as_deref(), Some("read: nothing; repeat with: x"));
        let other = HAPPENED.replace("kills", "kisses");
        for line in [
            "",
            "running 1 test",
            "seed 3",
            &format!("seed x hash ff {HAPPENED}: ok"),
            &format!("seed 3 hash ff {other}: ok"),
            "seed 3 hash ff virtual 5 ms, 900 acknowledged: ok",
            "a: b",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
