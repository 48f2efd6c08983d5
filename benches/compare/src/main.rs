//! Quorate and etcd side by side on this machine: three nodes each on loopback, the same work in alternating
//! rounds, and what size, failover and growth cost. Prints tables and leaves them with all figures as
//! Markdown, JSON and plots.

mod etcd;
mod failover;
mod growth;
mod load;
mod memory;
mod ours;
mod report;
mod speed;

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use serde::Serialize;
use tokio::time::Instant;

use etcd::Etcd;
use failover::Gaps;
use growth::{Point, Size};
use load::Figures;
use ours::Ours;
use speed::{Arena, KeepAlive, Row};

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Calls, watches, keep-alives and sagas
    Speed,
    /// kill -9 of the leader under load
    Failover,
    /// Memory and restart with 10 000, 100 000 and 1 000 000 instances
    Size,
    /// The price of a write with more keys, watches and connections
    Growth,
}

#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// The parts to run
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["speed", "failover", "size", "growth"])]
    parts: Vec<Part>,
    /// etcd's server
    #[arg(long, value_name = "FILE", default_value = "etcd")]
    etcd: PathBuf,
    /// Our server [default: the one that was built beside this program]
    #[arg(long, value_name = "FILE")]
    quorate: Option<PathBuf>,
    /// Where the nodes keep their data: a real disk, please
    #[arg(long, value_name = "DIR", default_value = "target/compare")]
    data: PathBuf,
    /// Where the report goes [default: --data]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Rounds of each comparison
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// How long each measurement takes
    #[arg(long, value_name = "S", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// Kills of the leader, of each system
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    kills: u32,
    /// The most instances
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(10_000..=10_000_000))]
    most: u64,
}

/// All that came out.
#[derive(Debug, Default, Serialize)]
pub struct Results {
    pub machine: String,
    pub versions: Vec<String>,
    pub durability: String,
    pub load_before: String,
    pub rows: Vec<Row>,
    pub keep_alive: Option<KeepAlive>,
    pub sagas: Vec<Figures>,
    /// Ours, then etcd's.
    pub gaps: Option<(Gaps, Gaps)>,
    pub sizes: Vec<(Size, Size)>,
    pub keys: Vec<(Point, Point)>,
    pub watches: Vec<Point>,
    pub connections: Vec<(Point, Point)>,
}

#[derive(Debug)]
pub struct Progress {
    begun: Instant,
}

impl Progress {
    pub fn say(&self, what: &str) {
        eprintln!("[{:>5} s] {what}", self.begun.elapsed().as_secs());
    }
}

pub fn said(error: impl Display) -> String {
    error.to_string()
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.map_err(said).and_then(|runtime| runtime.block_on(run(&args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// See [`memory`].
fn fill_memory(args: &Args) -> Result<(), String> {
    memory::fill(&args.data.join("cache"))
}

/// The binary beside this one.
fn own_binary() -> Result<PathBuf, String> {
    let own = std::env::current_exe().map_err(said)?;
    let beside = own.with_file_name("quorate");
    match beside.exists() {
        true => Ok(beside),
        false => Err(format!("{} does not exist: cargo build --release", beside.display())),
    }
}

async fn run(args: &Args) -> Result<(), String> {
    let binary = args.quorate.clone().map_or_else(own_binary, Ok)?;
    let progress = Progress { begun: Instant::now() };
    let mut results = Results {
        machine: report::machine(),
        versions: vec![report::version(&binary)?, Etcd::version(&args.etcd)?],
        load_before: report::load(),
        ..Results::default()
    };
    let out = args.out.clone().unwrap_or_else(|| args.data.clone());
    std::fs::create_dir_all(&out).map_err(said)?;
    for part in &args.parts {
        speed::fresh(&args.data.join("run"))?;
        let dir = args.data.join("run");
        fill_memory(args)?;
        match part {
            Part::Speed => speed(args, &binary, &dir, &progress, &mut results).await?,
            Part::Failover => {
                progress.say("failover of Quorate");
                let ours = failover::ours(&binary, &dir, args.kills).await?;
                progress.say("failover of etcd");
                let etcd = failover::etcd(&args.etcd, &dir, args.kills).await?;
                results.gaps = Some((ours, etcd));
            }
            Part::Size => {
                for keys in report::decades(10_000, args.most) {
                    progress.say(&format!("{keys} instances"));
                    speed::fresh(&dir)?;
                    fill_memory(args)?;
                    let ours = growth::size_of_ours(&binary, &dir, keys).await?;
                    speed::fresh(&dir)?;
                    fill_memory(args)?;
                    let etcd = growth::size_of_etcd(&args.etcd, &dir, keys).await?;
                    results.sizes.push((ours, etcd));
                }
            }
            Part::Growth => growth(args, &binary, &dir, &progress, &mut results).await?,
        }
        // What is known so far is not lost with what comes.
        report::write(&results, &out)?;
    }
    speed::fresh(&args.data.join("run"))?;
    std::fs::remove_file(args.data.join("cache")).map_err(said)?;
    print!("{}", report::markdown(&results));
    progress.say(&format!("all of it in {}", out.display()));
    Ok(())
}

async fn speed(
    args: &Args,
    binary: &Path,
    dir: &Path,
    progress: &Progress,
    results: &mut Results,
) -> Result<(), String> {
    let ours = Ours::start(binary, dir).await?;
    let etcd = Etcd::start(&args.etcd, dir).await?;
    results.durability = ours.client()?.status().await.map_err(said)?.durability;
    let time = Duration::from_secs(args.seconds);
    let arena = Arena { ours: &ours, etcd: &etcd, time, rounds: args.rounds, progress };
    arena.fill().await?;
    results.rows = arena.rows().await?;
    results.keep_alive = Some(arena.keep_alive().await?);
    results.sagas = arena.sagas().await?;
    Ok(())
}

async fn growth(
    args: &Args,
    binary: &Path,
    dir: &Path,
    progress: &Progress,
    results: &mut Results,
) -> Result<(), String> {
    let time = Duration::from_secs(args.seconds);
    let ours = Ours::start(binary, dir).await?;
    let etcd = Etcd::start(&args.etcd, dir).await?;
    for count in [0, 100, 1_000, 2_000] {
        progress.say(&format!("{count} idle connections"));
        let etcd = growth::connections_of_etcd(&etcd, count, time).await?;
        results.connections.push((growth::connections_of_ours(&ours, count, time).await?, etcd));
    }
    for count in [0, 100, 1_000, 10_000] {
        progress.say(&format!("{count} idle watches"));
        results.watches.push(growth::watches_of_ours(&ours, count, time).await?);
    }
    // The nodes do some things only now and then.
    let time = time.max(Duration::from_secs(60));
    for count in report::decades(10_000, args.most) {
        progress.say(&format!("{count} keys"));
        fill_memory(args)?;
        let etcd = growth::keys_of_etcd(&etcd, count, time).await?;
        results.keys.push((growth::keys_of_ours(&ours, count, time).await?, etcd));
    }
    Ok(())
}
