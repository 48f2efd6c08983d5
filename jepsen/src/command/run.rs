//! `run`: one run of one workload and its verdict, or rounds of several.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use quorate_jepsen::report::Valid;
use quorate_jepsen::store::Verdict;
use quorate_jepsen::{run, store};

use super::{Format, print_verdict, rounds};

/// Runs a cluster of real processes under faults, and judges what its clients saw.
///
/// Exits with 0 if all was as it must be, 1 if not, 2 if that is unknown, for instance because a fault took
/// no effect, and 3 if the run itself failed.
#[derive(Debug, Args)]
pub struct Options {
    /// What clients do; several, separated by commas, or all, take turns in rounds
    #[arg(long, default_value = "register", value_delimiter = ',')]
    workload: Vec<String>,
    /// Faults, separated by commas, or all, or none
    #[arg(long, default_value = "partition,kill,pause", value_delimiter = ',')]
    nemesis: Vec<String>,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// How long clients work, in all rounds together
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(15..))]
    seconds: u64,
    /// How long clients work in one round of several workloads
    #[arg(long, default_value_t = 75, value_parser = clap::value_parser!(u64).range(45..))]
    round_seconds: u64,
    /// What everything that is random is drawn from [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Where to leave history, schedule and logs; must not hold a run
    /// [default: target/jepsen/WORKLOAD-SEED]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// The binary under test [default: `quorate` beside this one]
    #[arg(long)]
    binary: Option<PathBuf>,
    /// Clients, each with one operation at a time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=1000))]
    clients: u64,
    /// Operations per second of all clients together
    #[arg(long, default_value_t = 100.0)]
    rate: f64,
    /// Bytes per second that are written beside that, so that the log changes its segments
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(..=100_000_000))]
    ballast: u64,
    /// How long a client waits for an answer, in ms
    #[arg(long, default_value_t = 2_000)]
    patience_ms: u64,
    /// Reads registers without asking for linearizability: shows that this is found out
    #[arg(long)]
    stale_reads: bool,
    /// How to print the verdict
    #[arg(short, long, default_value = "simple")]
    write_out: Format,
}

pub fn main(options: Options) -> Result<Valid, String> {
    let workloads = run::options::workloads(&options.workload)?;
    let seed = options.seed.unwrap_or_else(clock);
    let name = |name: &str| PathBuf::from("target/jepsen").join(format!("{name}-{seed}"));
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => beside()?,
    };
    if !(options.rate.is_finite() && options.rate > 0.0) {
        return Err(format!("--rate {} is no positive number", options.rate));
    }
    let several = workloads.len() > 1;
    let default = if several { name("rounds") } else { name(workloads[0].name()) };
    let run = run::options::Options {
        workload: workloads[0],
        nemesis: run::options::nemeses(&options.nemesis)?,
        nodes: options.nodes as usize,
        seconds: options.seconds,
        seed,
        dir: options.dir.unwrap_or(default),
        binary,
        clients: options.clients as usize,
        rate: options.rate,
        ballast: options.ballast,
        patience: Duration::from_millis(options.patience_ms),
        stale_reads: options.stale_reads,
    };
    eprintln!("seed {seed}, in {}", run.dir.display());
    if several {
        return rounds::main(&run, &workloads, options.round_seconds);
    }
    let verdict = one(&run)?;
    print_verdict(verdict.valid, &verdict.reports, options.write_out)?;
    Ok(verdict.valid)
}

/// One run, judged.
pub fn one(options: &run::options::Options) -> Result<Verdict, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let done = runtime.block_on(run::run(options));
    runtime.shutdown_background();
    done.map_err(|error| error.to_string())?;
    let verdict = store::judge(&options.dir).map_err(|error| error.to_string())?;
    store::finish(&options.dir, &verdict).map_err(|error| error.to_string())?;
    Ok(verdict)
}

fn clock() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    // Few digits, as people repeat them.
    u64::from(now.subsec_nanos()) ^ now.as_secs() & 0xffff_ffff
}

/// The binary that was built together with this one.
fn beside() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let binary = own.with_file_name("quorate");
    match binary.exists() {
        true => Ok(binary),
        false => Err(format!("{} is not there; build it, or say --binary", binary.display())),
    }
}
