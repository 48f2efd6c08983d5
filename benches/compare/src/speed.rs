//! The same work on both, in alternating rounds: only ratios of one run count.

use std::time::Duration;

use serde::Serialize;

use crate::etcd::Etcd;
use crate::load::{Figures, THREADS};
use crate::ours::Ours;
use crate::{Progress, said};

pub const KEYS: u64 = 100_000;
pub const SIZE: usize = 256;
/// Services of a hundred instances.
const SERVICES: u64 = 100;
const WATCHES: usize = 10_000;
const STREAMS: usize = 100;
const SESSIONS: u64 = 10_000;

/// One line of the table: what each round showed.
#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub what: &'static str,
    /// What is compared.
    pub measure: Measure,
    pub ours: Vec<Figures>,
    pub etcd: Vec<Figures>,
    /// Ours to etcd's: at least, or for times at most. Of [`Measure::P50`] ours alone, in ms.
    pub floor: f64,
    pub goal: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Measure {
    Rate,
    P99,
    /// The last of all, the median over the changes.
    P50,
}

impl Measure {
    pub fn of(self, figures: &Figures) -> f64 {
        match self {
            Measure::Rate => figures.per_second,
            Measure::P99 => figures.p99_ms,
            Measure::P50 => figures.p50_ms,
        }
    }
}

impl Row {
    /// What one round shows of both. In every second one ours comes first: whoever comes later finds the disk busy
    /// with what the other has left.
    async fn add(
        &mut self,
        round: u32,
        ours: impl Future<Output = Result<Figures, String>>,
        etcd: impl Future<Output = Result<Figures, String>>,
    ) -> Result<(), String> {
        if round.is_multiple_of(2) {
            self.ours.push(ours.await?);
            self.etcd.push(etcd.await?);
        } else {
            self.etcd.push(etcd.await?);
            self.ours.push(ours.await?);
        }
        Ok(())
    }

    /// Ratios of the rounds, in order of size.
    pub fn ratios(&self) -> Vec<f64> {
        let pairs = self.ours.iter().zip(&self.etcd);
        let mut ratios: Vec<f64> =
            pairs.map(|(ours, etcd)| self.measure.of(ours) / self.measure.of(etcd)).collect();
        ratios.sort_by(f64::total_cmp);
        ratios
    }

    pub fn ratio(&self) -> f64 {
        let ratios = self.ratios();
        ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN)
    }

    pub fn reaches(&self, target: f64) -> bool {
        match self.measure {
            Measure::Rate => self.ratio() >= target,
            Measure::P99 => self.ratio() <= target,
            Measure::P50 => median(&self.ours, |figures| figures.p50_ms) <= target,
        }
    }
}

/// Middle of the rounds.
pub fn median(rounds: &[Figures], of: impl Fn(&Figures) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Processor share of the busiest node, in percent of a core, while 10 000 sessions are kept alive, each
/// once a second.
#[derive(Debug, Clone, Serialize)]
pub struct KeepAlive {
    /// Over one stream, as etcd's leases.
    pub streamed: Vec<f64>,
    /// By 256 clients, a call each time.
    pub unary: Vec<f64>,
    pub etcd: Vec<f64>,
}

/// Who is measured, for how long, how often.
pub struct Arena<'a> {
    pub ours: &'a Ours,
    pub etcd: &'a Etcd,
    pub time: Duration,
    pub rounds: u32,
    pub progress: &'a Progress,
}

impl Arena<'_> {
    fn seconds(&self) -> String {
        self.time.as_secs().max(1).to_string()
    }

    /// One measurement of what is there already.
    async fn ours(&self, workload: &str, call: &str, how: &[&str]) -> Result<Figures, String> {
        let seconds = self.seconds();
        let common = ["--seconds", &seconds, "--warm-up", "1", "--no-fill", "--keep"];
        self.ours.figures(call, &[&[workload], how, &common].concat()).await
    }

    async fn unary(&self, workload: &str, call: &str, clients: u32) -> Result<Figures, String> {
        let threads = THREADS.min(clients).to_string();
        let (clients, keys, size) = (clients.to_string(), KEYS.to_string(), SIZE.to_string());
        let how = ["--clients", &clients, "--threads", &threads, "--keys", &keys, "--size", &size];
        self.ours(workload, call, &how).await
    }

    async fn streamed(&self, workload: &str, call: &str) -> Result<Figures, String> {
        let (keys, size) = (KEYS.to_string(), SIZE.to_string());
        let how = ["--streams", "6", "--window", "256", "--keys", &keys, "--size", &size];
        self.ours(workload, call, &how).await
    }

    /// What all rounds find.
    pub async fn fill(&self) -> Result<(), String> {
        self.progress.say("filling both");
        let (keys, size) = (KEYS.to_string(), SIZE.to_string());
        let fill = ["register", "--keys", &keys, "--size", &size, "--seconds", "1", "--keep"];
        self.ours.bench(&fill).await?;
        let services = (SERVICES * 100).to_string();
        let fill = [
            "discover",
            "--service",
            "shelf",
            "--keys",
            &services,
            "--size",
            &size,
            "--seconds",
            "1",
            "--keep",
        ];
        self.ours.bench(&fill).await?;
        self.etcd.fill(KEYS, SIZE).await?;
        self.etcd.fill_services(SERVICES, SIZE).await
    }

    pub async fn rows(&self) -> Result<Vec<Row>, String> {
        let row = |what, measure, floor, goal| Row {
            what,
            measure,
            floor,
            goal,
            ours: Vec::new(),
            etcd: Vec::new(),
        };
        let mut rows = vec![
            row("put, unary, 1 client", Measure::Rate, 1.0, 1.5),
            row("put, unary, 64 clients", Measure::Rate, 2.5, 4.0),
            row("put, unary, 256 clients", Measure::Rate, 2.5, 4.0),
            row("put, unary, 1 024 clients", Measure::Rate, 2.5, 4.0),
            row("p99 of put, unary, 64 clients", Measure::P99, 0.35, 0.2),
            row("put, 6 session streams x 256, to etcd's best", Measure::Rate, 8.0, 15.0),
            row("linearizable get, unary, 256 clients", Measure::Rate, 4.0, 6.0),
            row(
                "linearizable get, 6 session streams x 256, to etcd's 256 clients",
                Measure::Rate,
                50.0,
                100.0,
            ),
            row("discovery of 100 instances, unary, 64 clients", Measure::Rate, 3.0, 6.0),
            row("last of 10 000 watches that hears of a change", Measure::P50, 250.0, 50.0),
        ];
        for round in 1..=self.rounds {
            self.progress.say(&format!("round {round} of {}", self.rounds));
            for (row, clients) in [(0, 1), (1, 64), (2, 256), (3, 1_024)] {
                self.progress.say(rows[row].what);
                let ours = self.unary("register", "register", clients);
                let etcd = self.etcd.put(clients, KEYS, SIZE, self.time);
                rows[row].add(round, ours, etcd).await?;
            }
            let (ours, etcd) = (rows[1].ours.last().cloned(), rows[1].etcd.last().cloned());
            rows[4].ours.extend(ours);
            rows[4].etcd.extend(etcd);
            let best = rows[..4].iter().filter_map(|row| row.etcd.last());
            let best = best.max_by(|a, b| a.per_second.total_cmp(&b.per_second)).cloned();
            self.progress.say(rows[5].what);
            rows[5].etcd.extend(best);
            rows[5].ours.push(self.streamed("stream-register", "register").await?);
            self.progress.say(rows[6].what);
            let (ours, etcd) = (self.unary("get", "get", 256), self.etcd.get(256, KEYS, self.time));
            rows[6].add(round, ours, etcd).await?;
            self.progress.say(rows[7].what);
            let etcd = rows[6].etcd.last().cloned();
            rows[7].etcd.extend(etcd);
            rows[7].ours.push(self.streamed("stream-get", "get").await?);
            self.progress.say(rows[8].what);
            let etcd = self.etcd.discover(64, SERVICES, self.time);
            rows[8].add(round, self.discover(), etcd).await?;
            self.progress.say(rows[9].what);
            let etcd = self.etcd.fan_out(WATCHES, STREAMS, self.time);
            rows[9].add(round, self.fan_out(), etcd).await?;
        }
        Ok(rows)
    }

    async fn discover(&self) -> Result<Figures, String> {
        let (services, threads) = ((SERVICES * 100).to_string(), THREADS.to_string());
        let how =
            ["--service", "shelf", "--clients", "64", "--threads", &threads, "--keys", &services];
        self.ours("discover", "discover", &how).await
    }

    async fn fan_out(&self) -> Result<Figures, String> {
        let (watches, streams, seconds) =
            (WATCHES.to_string(), STREAMS.to_string(), self.seconds());
        let arguments = [
            "watch",
            "--service",
            "watched",
            "--clients",
            &watches,
            "--streams",
            &streams,
            "--keys",
            "1",
            "--seconds",
            &seconds,
            "--warm-up",
            "1",
        ];
        self.ours.figures("last_notice", &arguments).await
    }

    pub async fn keep_alive(&self) -> Result<KeepAlive, String> {
        let mut all = KeepAlive { streamed: Vec::new(), unary: Vec::new(), etcd: Vec::new() };
        for _ in 0..self.rounds {
            self.progress.say("10 000 sessions kept alive, each once a second");
            all.etcd.push(self.etcd.keep_alive(SESSIONS, self.time).await?);
            let one = ["stream-heartbeat", "--streams", "1", "--window", "1024"];
            all.streamed.push(self.kept_alive(&one).await?);
            all.unary.push(self.kept_alive(&["heartbeat", "--clients", "256"]).await?);
        }
        Ok(all)
    }

    /// Processor share of our busiest node.
    async fn kept_alive(&self, how: &[&str]) -> Result<f64, String> {
        let (sessions, seconds) = (SESSIONS.to_string(), self.seconds());
        let common = ["--keys", &sessions, "--rate", &sessions, "--seconds", &seconds];
        let report = self.ours.bench(&[how, &common, &["--warm-up", "1"]].concat()).await?;
        let rate = report["calls"]["keep_alive"]["ops_per_second"].as_f64().unwrap_or(0.0);
        let servers = report["server_cpu"].as_array().into_iter().flatten();
        let most = servers.filter_map(|server| server["us_per_op"].as_f64()).fold(0.0, f64::max);
        Ok(most * rate / 1e6 * 100.0)
    }

    /// Sagas of two steps a second: etcd has no such thing.
    pub async fn sagas(&self) -> Result<Vec<Figures>, String> {
        let mut all = Vec::new();
        for _ in 0..self.rounds {
            self.progress.say("sagas of two steps, 512 clients");
            let seconds = self.seconds();
            let arguments = ["saga", "--clients", "512", "--seconds", &seconds];
            all.push(self.ours.figures("saga", &arguments).await?);
        }
        Ok(all)
    }
}

/// Bytes that a run leaves, removed before the next one needs the space.
pub fn fresh(dir: &std::path::Path) -> Result<(), String> {
    if dir.exists() {
        std::fs::remove_dir_all(dir).map_err(said)?;
    }
    std::fs::create_dir_all(dir).map_err(said)
}
