//! `run`: one run of one workload, and its verdict.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use quorate_jepsen::report::Valid;
use quorate_jepsen::{run, store, workload};

use super::{Format, print_verdict};

/// Runs a cluster of real processes under faults, and judges what its clients saw.
///
/// Exits with 0 if all was as it must be, 1 if not, 2 if that is unknown, for instance because a fault took
/// no effect, and 3 if the run itself failed.
#[derive(Debug, Args)]
pub struct Options {
    /// What clients do
    #[arg(long, default_value = "register")]
    workload: workload::Kind,
    /// Faults, separated by commas, or all, or none
    #[arg(long, default_value = "partition,kill,pause", value_delimiter = ',')]
    nemesis: Vec<String>,
    /// Nodes of the cluster
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=9))]
    nodes: u64,
    /// How long clients work
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(15..))]
    seconds: u64,
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
    /// How long a client waits for an answer, in ms
    #[arg(long, default_value_t = 2_000)]
    patience_ms: u64,
    /// How to print the verdict
    #[arg(short, long, default_value = "simple")]
    write_out: Format,
}

pub fn main(options: Options) -> Result<Valid, String> {
    let seed = options.seed.unwrap_or_else(clock);
    let nemesis = run::options::nemeses(&options.nemesis)?;
    let name = format!("{}-{seed}", options.workload.name());
    let dir = options.dir.unwrap_or_else(|| PathBuf::from("target/jepsen").join(name));
    let binary = match options.binary {
        Some(binary) => binary,
        None => beside()?,
    };
    if !(options.rate.is_finite() && options.rate > 0.0) {
        return Err(format!("--rate {} is no positive number", options.rate));
    }
    let run = run::options::Options {
        workload: options.workload,
        nemesis,
        nodes: options.nodes as usize,
        seconds: options.seconds,
        seed,
        dir,
        binary,
        clients: options.clients as usize,
        rate: options.rate,
        patience: Duration::from_millis(options.patience_ms),
    };
    eprintln!("seed {seed}, in {}", run.dir.display());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(run::run(&run)).map_err(|error| error.to_string())?;
    runtime.shutdown_background();
    let verdict = store::judge(&run.dir).map_err(|error| error.to_string())?;
    print_verdict(verdict.valid, &verdict.reports, options.write_out)?;
    Ok(verdict.valid)
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
