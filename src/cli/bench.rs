//! `quorate bench`: a load generator. Closed loop by default, or at a fixed rate, in which case a call
//! that starts late counts from when it should have started. What is registered really changes with
//! every call, so that nothing is answered as a repetition.

pub mod cpu;
pub mod histogram;
mod load;
mod notice;
pub mod phase;
pub mod plot;
mod saga;
mod sweep;
mod watch;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use self::cpu::Sample;
use self::histogram::Histogram;
use self::load::{Plan, Tally};
use self::phase::{Phase, Shared};
use super::output::{self, Table};
use super::{Context, Error};
use crate::client::{self, Client, ReadFrom};
use crate::limits;
use crate::options::exit;

/// What the load consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// Register instances by unary calls
    Register,
    /// Read instances by unary calls
    Get,
    /// Read all instances of a service, of which each has 100, by unary calls
    Discover,
    /// Register instances over session streams
    StreamRegister,
    /// Read instances over session streams
    StreamGet,
    /// Read and register over session streams
    Mix,
    /// Publish configuration over session streams
    StreamPublish,
    /// Add to counters by unary calls
    Count,
    /// Add to counters over session streams
    StreamCount,
    /// Add to counters whose additions the client sums up; one loop a thread
    CountLocal,
    /// Read configuration from the client's cache; one loop a thread
    ConfigCache,
    /// Transactions of four steps by unary calls: publish, add twice, read
    Txn,
    /// Keep sessions alive by unary calls; `--keys` says how many sessions
    Heartbeat,
    /// Keep sessions alive over streams
    StreamHeartbeat,
    /// How long after one change each of many watches of a service hears of it, and the last of them
    Watch,
    /// How long after a deregistration clients that follow the service do without the instance
    Deregister,
    /// Sagas of two steps, from their beginning to their end, with a participant in this process
    Saga,
}

/// How the calls of a workload are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Unary,
    Streamed,
    /// Within the client: no call waits for the cluster.
    Local,
}

impl Workload {
    fn way(self) -> Way {
        match self {
            Workload::Register
            | Workload::Get
            | Workload::Discover
            | Workload::Count
            | Workload::Txn
            | Workload::Heartbeat
            | Workload::Watch
            | Workload::Deregister
            | Workload::Saga => Way::Unary,
            Workload::StreamRegister
            | Workload::StreamGet
            | Workload::Mix
            | Workload::StreamPublish
            | Workload::StreamCount
            | Workload::StreamHeartbeat => Way::Streamed,
            Workload::CountLocal | Workload::ConfigCache => Way::Local,
        }
    }

    /// Whether `--rate` means anything to it.
    fn takes_rate(self) -> bool {
        let own = matches!(self, Workload::Watch | Workload::Deregister | Workload::Saga);
        !own && self.way() != Way::Local
    }

    /// What its reads are called.
    fn read(self) -> &'static str {
        match self {
            Workload::Discover => "discover",
            Workload::Watch => "notice",
            _ => "get",
        }
    }

    /// What its writes do.
    fn write(self) -> &'static str {
        match self {
            Workload::Register | Workload::Get | Workload::Discover => "register",
            Workload::Heartbeat | Workload::StreamHeartbeat => "keep_alive",
            Workload::Watch => "last_notice",
            Workload::StreamRegister | Workload::StreamGet | Workload::Mix => "register",
            Workload::StreamPublish | Workload::ConfigCache => "publish",
            Workload::Count | Workload::StreamCount | Workload::CountLocal => "count",
            Workload::Txn => "txn",
            Workload::Deregister => "deregister",
            Workload::Saga => "saga",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Workload::Register => "register",
            Workload::Get => "get",
            Workload::Discover => "discover",
            Workload::StreamRegister => "stream-register",
            Workload::StreamGet => "stream-get",
            Workload::Mix => "mix",
            Workload::StreamPublish => "stream-publish",
            Workload::Count => "count",
            Workload::StreamCount => "stream-count",
            Workload::CountLocal => "count-local",
            Workload::ConfigCache => "config-cache",
            Workload::Txn => "txn",
            Workload::Heartbeat => "heartbeat",
            Workload::StreamHeartbeat => "stream-heartbeat",
            Workload::Watch => "watch",
            Workload::Deregister => "deregister",
            Workload::Saga => "saga",
        }
    }
}

/// The options of `quorate bench`.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    #[arg(value_enum)]
    pub workload: Workload,
    /// Unary calls under way at once; for `watch` and `deregister`, watches and clients that follow
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub clients: u32,
    /// Connections to each node for unary calls [default: one for 32 clients, at most 8]
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(1..=limits::CLIENT_CONNECTIONS as i64),
    )]
    pub connections: Option<u32>,
    /// Session streams; for `watch`, connections that the watches share
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub streams: u32,
    /// Calls under way at once on each stream
    #[arg(
        long,
        value_name = "CALLS",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(1..=limits::STREAM_CALLS_IN_FLIGHT as i64),
    )]
    pub window: u32,
    /// Bytes of the value that each registration or release changes
    #[arg(
        long,
        value_name = "BYTES",
        default_value_t = 256,
        value_parser = clap::value_parser!(u32).range(16..=limits::METADATA_VALUE_BYTES as i64),
    )]
    pub size: u32,
    /// Instances, items or counters that the load is spread over
    #[arg(
        long,
        value_name = "N",
        default_value_t = 100_000,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000),
    )]
    pub keys: u32,
    /// Pairs of metadata of an instance, of which one is the value
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=limits::METADATA_PAIRS as i64))]
    pub pairs: u32,
    /// How long to measure
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// How long to run before measuring
    #[arg(long, value_name = "S", default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=3_600))]
    pub warm_up: u32,
    /// Calls a second, all together [default: as many as possible]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Share of reads in a mix
    #[arg(long, value_name = "PERCENT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub reads: u32,
    /// Read whatever the asked node has applied
    #[arg(long)]
    pub stale: bool,
    /// Spread reads and streams over all nodes; the leader gets them otherwise
    #[arg(long)]
    pub spread: bool,
    /// Write without exactly-once ids
    #[arg(long)]
    pub without_ids: bool,
    /// Threads that make load
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Do not register all instances before the measurement
    #[arg(long)]
    pub no_fill: bool,
    /// Leave the instances registered afterwards
    #[arg(long)]
    pub keep: bool,
    /// Prefix of the services' names
    #[arg(long, value_name = "NAME", default_value = "bench")]
    pub service: String,
    /// Measure at so many rates, up to what a first measurement has reached: how latency grows with the load
    #[arg(long, value_name = "POINTS", conflicts_with = "rate", value_parser = clap::value_parser!(u32).range(2..=100))]
    pub sweep: Option<u32>,
    /// Draw latency against load, as SVG
    #[arg(long, value_name = "FILE", requires = "sweep")]
    pub plot: Option<PathBuf>,
    /// Processes of the nodes, if they run on this machine: their processor time is shown
    #[arg(long, value_name = "PID,...", value_delimiter = ',')]
    pub pids: Vec<u32>,
}

/// What came out, as JSON shows it. Times are of calls that ended within the measured time.
#[derive(Debug, Serialize)]
pub struct Report {
    pub workload: Workload,
    pub clients: Option<u32>,
    pub connections: Option<u32>,
    pub streams: Option<u32>,
    pub window: Option<u32>,
    pub threads: u32,
    pub size: u32,
    pub keys: u32,
    pub rate: Option<u32>,
    pub exactly_once: bool,
    pub stale: bool,
    pub spread: bool,
    /// How the nodes make writes durable, as they say themselves.
    pub durability: String,
    pub seconds: f64,
    pub ops: u64,
    pub ops_per_second: f64,
    pub errors: u64,
    /// By kind of error.
    pub error_counts: BTreeMap<String, u64>,
    pub error_example: Option<String>,
    /// By kind of call: `register`, `get`, `discover`, `publish`, `count`, `txn`, `keep_alive`, `notice`,
    /// `last_notice`, `deregister`, `saga`.
    pub calls: BTreeMap<&'static str, Figures>,
    /// Microseconds of processor time for each call, of this process.
    pub client_cpu_us_per_op: Option<f64>,
    pub server_cpu: Vec<ServerCpu>,
}

#[derive(Debug, Serialize)]
pub struct Figures {
    pub ops: u64,
    pub ops_per_second: f64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

#[derive(Debug, Serialize)]
pub struct ServerCpu {
    pub pid: u32,
    /// None when the process cannot be looked at.
    pub us_per_op: Option<f64>,
}

/// Runs the load and prints what came out.
pub async fn run(args: BenchArgs, context: &Context) -> Result<(), Error> {
    if args.rate.is_some() && !args.workload.takes_rate() {
        let what = format!("--rate: {} makes as many calls as it can", args.workload.name());
        return Err(Error::refused(exit::USAGE, what));
    }
    if args.sweep.is_some() {
        return sweep::run(&args, context).await;
    }
    let report = measure(&args, context).await?;
    context.printer().answer(&report, || text(&report))?;
    if report.ops == 0 {
        let why = report.error_example.unwrap_or_else(|| "no call was answered".to_owned());
        return Err(Error::refused(exit::ERROR, why));
    }
    Ok(())
}

async fn measure(args: &BenchArgs, context: &Context) -> Result<Report, Error> {
    let connections = args.connections.unwrap_or((args.clients / 32 / args.threads).clamp(1, 8));
    let options = client::Options {
        client_name: "quorate bench".to_owned(),
        call_timeout: context.options.timeout,
        connections: connections as usize,
        read_from: if args.spread { ReadFrom::Any } else { ReadFrom::Leader },
        ..client::Options::new(&context.options.endpoints)
    };
    let client = Client::connect(options.clone())?;
    let durability = client.status().await?.durability;
    let plan = Arc::new(Plan::new(args, context.namespace()));
    let mut progress = Progress::new();
    if !args.no_fill {
        load::fill(&client, &plan, |done| progress.show(&format!("filling: {done}"))).await?;
    }
    let shared = Arc::new(Shared::default());
    let mut threads = Vec::new();
    for thread in 0..args.threads {
        let (plan, shared, options) = (plan.clone(), shared.clone(), options.clone());
        let spawned = thread::Builder::new().name(format!("load-{thread}")).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|error| Error::io("the runtime", error))?;
            runtime.block_on(load::run(thread, plan, shared, options))
        });
        threads.push(spawned.map_err(|error| Error::io("a thread", error))?);
    }
    let ready = Instant::now();
    while shared.ready.load(Ordering::Acquire) < args.threads as usize {
        if threads.iter().any(thread::JoinHandle::is_finished)
            || ready.elapsed() > context.options.timeout + Duration::from_secs(5)
        {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    shared.start();
    sleep_until(Instant::now() + Duration::from_secs(args.warm_up.into())).await;

    let pids = &args.pids;
    let before = Sample::take(pids);
    let begun = Instant::now();
    shared.enter(Phase::Measure);
    let end = begun + Duration::from_secs(args.seconds.into());
    let (mut last, mut last_at) = (shared.done.load(Ordering::Relaxed), begun);
    while Instant::now() < end {
        sleep_until((Instant::now() + Duration::from_secs(1)).min(end)).await;
        let (now, done) = (Instant::now(), shared.done.load(Ordering::Relaxed));
        let rate = (done - last) as f64 / (now - last_at).as_secs_f64().max(0.001);
        let elapsed = (now - begun).as_secs();
        progress.show(&format!("{elapsed} of {} s: {rate:.0} calls/s", args.seconds));
        (last, last_at) = (done, now);
    }
    shared.enter(Phase::Stop);
    let seconds = begun.elapsed().as_secs_f64();
    let after = Sample::take(pids);

    let mut tally = Tally::default();
    for thread in threads {
        let joined = tokio::task::spawn_blocking(move || thread.join());
        match joined.await {
            Ok(Ok(part)) => tally.merge(part?),
            Ok(Err(_)) | Err(_) => {
                return Err(Error::refused(exit::ERROR, "a load thread has panicked".to_owned()));
            }
        }
    }
    if !args.keep {
        load::clean(&client, &plan, |done| progress.show(&format!("cleaning up: {done}"))).await?;
    }
    progress.end();
    Ok(report(args, connections, durability, seconds, &tally, &before, &after))
}

fn report(
    args: &BenchArgs,
    connections: u32,
    durability: String,
    seconds: f64,
    tally: &Tally,
    before: &Sample,
    after: &Sample,
) -> Report {
    let way = args.workload.way();
    let figures = |histogram: &Histogram| {
        (histogram.count() > 0).then(|| Figures {
            ops: histogram.count(),
            ops_per_second: histogram.count() as f64 / seconds,
            mean_us: histogram.mean() / 1e3,
            p50_us: histogram.quantile(0.5) as f64 / 1e3,
            p99_us: histogram.quantile(0.99) as f64 / 1e3,
            p999_us: histogram.quantile(0.999) as f64 / 1e3,
            max_us: histogram.max() as f64 / 1e3,
        })
    };
    let calls: BTreeMap<&'static str, Figures> =
        [(args.workload.read(), &tally.gets), (args.workload.write(), &tally.writes)]
            .into_iter()
            .filter_map(|(name, histogram)| Some((name, figures(histogram)?)))
            .collect();
    let ops = tally.gets.count() + tally.writes.count();
    let per_op = |micros: Option<u64>| micros.filter(|_| ops > 0).map(|us| us as f64 / ops as f64);
    Report {
        workload: args.workload,
        clients: (way == Way::Unary).then_some(args.clients),
        connections: (way == Way::Unary).then_some(connections),
        streams: (way == Way::Streamed || args.workload == Workload::Watch).then_some(args.streams),
        window: (way == Way::Streamed).then_some(args.window),
        threads: args.threads,
        size: args.size,
        keys: args.keys,
        rate: args.rate,
        exactly_once: !args.without_ids,
        stale: args.stale,
        spread: args.spread,
        durability,
        seconds,
        ops,
        ops_per_second: ops as f64 / seconds,
        errors: tally.errors.values().sum(),
        error_counts: tally.errors.clone(),
        error_example: tally.example.clone(),
        calls,
        client_cpu_us_per_op: per_op(after.own_since(before)),
        server_cpu: args
            .pids
            .iter()
            .map(|&pid| ServerCpu { pid, us_per_op: per_op(after.since(before, pid)) })
            .collect(),
    }
}

/// The report for people.
fn text(report: &Report) -> String {
    let mut text = String::new();
    let how = match (report.clients, report.streams) {
        (Some(watches), Some(streams)) => format!("{watches} watches over {streams} connections"),
        (Some(clients), _) => format!(
            "{clients} unary clients over {} connections a node",
            report.connections.unwrap_or(1)
        ),
        (None, Some(streams)) => {
            format!("{streams} streams with {} calls under way each", report.window.unwrap_or(0))
        }
        (None, None) => "within the client".to_owned(),
    };
    let how = match report.threads {
        1 => how,
        threads => format!("{how}, {threads} threads"),
    };
    let mut traits = vec![format!("{} keys", report.keys), format!("{} bytes", report.size)];
    if report.exactly_once && report.calls.contains_key("register") {
        traits.push("exactly-once ids".to_owned());
    }
    let is_local = report.workload.way() == Way::Local;
    let reads = ["get", "discover"].iter().any(|call| report.calls.contains_key(call));
    if reads && !is_local {
        traits.push(if report.stale { "stale reads" } else { "linearizable reads" }.to_owned());
    }
    if report.spread {
        traits.push("over all nodes".to_owned());
    }
    if let Some(rate) = report.rate {
        traits.push(format!("{rate} calls/s asked for"));
    }
    let _ = writeln!(text, "{}: {how}; {}", report.workload.name(), traits.join(", "));
    let _ = writeln!(text, "durability: {}; {:.1} s", report.durability, report.seconds);
    let mut table = match is_local {
        false => Table::new(&["call", "calls/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms"]),
        true => Table::new(&["call", "calls/s", "p50 us", "p99 us", "p99.9 us", "max us"]),
    };
    for (name, figures) in &report.calls {
        let ms = |us: f64| format!("{:.3}", if is_local { us } else { us / 1e3 });
        table.row([
            (*name).to_owned(),
            format!("{:.0}", figures.ops_per_second),
            ms(figures.p50_us),
            ms(figures.p99_us),
            ms(figures.p999_us),
            ms(figures.max_us),
        ]);
    }
    text.push_str(&table.render(crate::options::Output::Simple));
    let cpu = |us: Option<f64>| us.map_or("unknown".to_owned(), |us| format!("{us:.2}"));
    let mut parts = vec![format!("client {}", cpu(report.client_cpu_us_per_op))];
    parts.extend(
        report
            .server_cpu
            .iter()
            .map(|server| format!("pid {} {}", server.pid, cpu(server.us_per_op))),
    );
    let _ = writeln!(text, "processor microseconds a call: {}", parts.join(", "));
    let _ = writeln!(text, "errors: {}", report.errors);
    for (kind, count) in &report.error_counts {
        let _ = writeln!(text, "  {count} {kind}");
    }
    if let Some(example) = &report.error_example {
        let _ = writeln!(text, "  the first: {example}");
    }
    text
}

/// One line on standard error that is written over, if somebody looks at it.
struct Progress {
    live: bool,
    width: usize,
}

impl Progress {
    fn new() -> Progress {
        Progress { live: io::stderr().is_terminal(), width: 0 }
    }

    fn show(&mut self, line: &str) {
        if self.live {
            // Nothing is lost when nobody reads it.
            let _ = write!(io::stderr(), "\r{line:<width$}", width = self.width);
            self.width = line.len();
        } else {
            output::note(line);
        }
    }

    fn end(&mut self) {
        if self.live {
            let _ = write!(io::stderr(), "\r{:<width$}\r", "", width = self.width);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> Result<BenchArgs, String> {
        use clap::Parser as _;
        let words = std::iter::once("bench").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args).map_err(|error| error.to_string())
    }

    #[test]
    fn limits_hold_on_the_command_line() {
        let args = parse("mix --reads 10 --pids 1,2,3 --rate 500").unwrap();
        assert_eq!((args.workload, args.reads), (Workload::Mix, 10));
        assert_eq!(args.pids, [1, 2, 3]);
        for line in
            ["", "put", "get --size 15", "get --size 1025", "mix --reads 101", "get --window 0"]
        {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_report_reads_well() {
        let args = parse("mix --streams 2 --window 8 --keys 10 --pids 7").unwrap();
        let mut tally = Tally::default();
        for micros in 1..=1_000u64 {
            tally.gets.record_many(micros * 1_000, 1);
        }
        tally.writes.record_many(2_000_000, 1);
        tally.errors.insert("TIMEOUT".into(), 3);
        tally.example = Some("the deadline passed".into());
        let before = Sample::default();
        let report = report(&args, 1, "none".into(), 2.0, &tally, &before, &Sample::default());
        assert_eq!(report.ops, 1_001);
        let expected = "\
mix: 2 streams with 8 calls under way each; 10 keys, 256 bytes, exactly-once ids, linearizable reads
durability: none; 2.0 s
CALL       CALLS/S   P50 MS   P99 MS   P99.9 MS   MAX MS
get        500       0.504    0.991    0.999      1.000
register   0         2.000    2.000    2.000      2.000
processor microseconds a call: client unknown, pid 7 unknown
errors: 3
  3 TIMEOUT
  the first: the deadline passed
";
        assert_eq!(text(&report), expected);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["workload"], "mix");
        assert_eq!(json["calls"]["get"]["ops"], 1_000);
        assert_eq!(json["clients"], serde_json::Value::Null);
    }
}
