//! A closed loop over any call, measured as `quorate bench` measures: times of calls that ended within the
//! measured time, processor time from /proc.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate::cli::bench::cpu::Sample;
use quorate::cli::bench::histogram::Histogram;
use quorate::cli::bench::phase::{Phase, Shared};
use serde::Serialize;
use tokio::task::{JoinSet, LocalSet, yield_now};
use tokio::time::{Instant, sleep};

use crate::said;

/// Threads that make unary calls, to either system: with one, the load generator was what bounded most rates.
pub const THREADS: u32 = 2;

/// What one measurement showed.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    pub per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub errors: u64,
    /// Microseconds of processor time for each call: the load generator, and all nodes together.
    pub client_us: f64,
    pub servers_us: f64,
}

/// The least value that the share of all does not exceed; None when there is none.
pub fn quantile(values: &[f64], share: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = ((sorted.len() as f64 * share).ceil() as usize).max(1);
    sorted.get(place - 1).copied()
}

/// A closed loop that runs for a while.
#[derive(Debug, Clone)]
pub struct Loop {
    pub clients: u32,
    pub warm_up: Duration,
    pub time: Duration,
    /// Of the nodes.
    pub pids: Vec<u32>,
}

#[derive(Debug, Default)]
struct Tally {
    times: Histogram,
    errors: u64,
}

impl Loop {
    /// Clients that call one after the other, on [`THREADS`] threads. Each thread opens connections for so many
    /// clients, which share them; a call gets the number of its client and its own.
    pub async fn run<T, O, C, F>(
        self,
        open: impl Fn(u32) -> O + Clone + Send + 'static,
        call: C,
    ) -> Result<Figures, String>
    where
        T: Clone + 'static,
        O: Future<Output = Result<Vec<T>, String>>,
        C: Fn(T, u32, u64) -> F + Clone + Send + 'static,
        F: Future<Output = Result<(), String>> + 'static,
    {
        let threads = THREADS.min(self.clients);
        let shared = Arc::new(Shared::default());
        let mut running = JoinSet::new();
        for thread in 0..threads {
            let clients = self.clients * thread / threads..self.clients * (thread + 1) / threads;
            let (shared, open, call) = (shared.clone(), open.clone(), call.clone());
            running.spawn_blocking(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map_err(said)?.block_on(async {
                    let connections = open(clients.len() as u32).await?;
                    shared.ready.fetch_add(1, Ordering::AcqRel);
                    Ok::<_, String>(make(clients, &connections, &shared, call).await)
                })
            });
        }
        let mut tally = Tally::default();
        let mut add = |ended: Result<Result<Tally, String>, _>| {
            let Tally { times, errors } = ended.map_err(said)??;
            tally.times.merge(&times);
            tally.errors += errors;
            Ok::<_, String>(())
        };
        while shared.ready.load(Ordering::Acquire) < threads as usize {
            // None ends before it is told to, but those that cannot connect.
            if let Some(ended) = running.try_join_next() {
                shared.enter(Phase::Stop);
                add(ended)?;
            }
            sleep(Duration::from_millis(1)).await;
        }
        sleep(self.warm_up).await;
        let before = Sample::take(&self.pids);
        let begun = Instant::now();
        shared.enter(Phase::Measure);
        sleep(self.time).await;
        shared.enter(Phase::Stop);
        let seconds = begun.elapsed().as_secs_f64();
        let after = Sample::take(&self.pids);
        while let Some(ended) = running.join_next().await {
            add(ended)?;
        }
        Ok(figures(&tally, seconds, &before, &after, &self.pids))
    }
}

/// The clients of one thread.
async fn make<T, C, F>(
    clients: std::ops::Range<u32>,
    connections: &[T],
    shared: &Arc<Shared>,
    call: C,
) -> Tally
where
    T: Clone + 'static,
    C: Fn(T, u32, u64) -> F + Clone + 'static,
    F: Future<Output = Result<(), String>> + 'static,
{
    let tally = Rc::new(RefCell::new(Tally::default()));
    let tasks = LocalSet::new();
    for (client, connection) in clients.zip(connections.iter().cycle()) {
        let (tally, call) = (tally.clone(), call.clone());
        let (connection, shared) = (connection.clone(), shared.clone());
        tasks.spawn_local(async move {
            for number in 0.. {
                if shared.phase() == Phase::Stop {
                    return;
                }
                let begun = Instant::now();
                let outcome = call(connection.clone(), client, number).await;
                if shared.phase() == Phase::Measure {
                    let mut tally = tally.borrow_mut();
                    match outcome {
                        Ok(()) => tally.times.record_many(begun.elapsed().as_nanos() as u64, 1),
                        Err(_) => tally.errors += 1,
                    }
                }
                yield_now().await;
            }
        });
    }
    tasks.await;
    tally.take()
}

fn figures(tally: &Tally, seconds: f64, before: &Sample, after: &Sample, pids: &[u32]) -> Figures {
    let ms = |nanos: u64| nanos as f64 / 1e6;
    let ops = tally.times.count().max(1) as f64;
    let servers: u64 = pids.iter().filter_map(|&pid| after.since(before, pid)).sum();
    Figures {
        per_second: tally.times.count() as f64 / seconds,
        p50_ms: ms(tally.times.quantile(0.5)),
        p99_ms: ms(tally.times.quantile(0.99)),
        max_ms: ms(tally.times.max()),
        errors: tally.errors,
        client_us: after.own_since(before).unwrap_or(0) as f64 / ops,
        servers_us: servers as f64 / ops,
    }
}
