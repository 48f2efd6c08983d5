//! A closed loop over any call, measured as `quorate bench` measures: one thread, times of calls that ended
//! within the measured time, processor time from /proc.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use quorate::cli::bench::cpu::Sample;
use quorate::cli::bench::histogram::Histogram;
use serde::Serialize;
use tokio::task::{LocalSet, yield_now};
use tokio::time::{Instant, sleep};

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

#[derive(Debug, Default)]
struct Tally {
    times: Histogram,
    errors: u64,
    measuring: bool,
    stopping: bool,
}

impl Tally {
    fn count(&mut self, begun: Instant, outcome: Result<(), String>) {
        match outcome {
            Ok(()) if self.measuring => {
                self.times.record_many(begun.elapsed().as_nanos() as u64, 1);
            }
            Err(_) if self.measuring => self.errors += 1,
            Ok(()) | Err(_) => {}
        }
    }
}

/// `clients` tasks that call one after the other. `call` gets the number of its client and of its call.
pub async fn closed_loop<F>(
    clients: u32,
    warm_up: Duration,
    time: Duration,
    pids: &[u32],
    call: impl Fn(u32, u64) -> F + Clone + 'static,
) -> Figures
where
    F: Future<Output = Result<(), String>> + 'static,
{
    let tally = Rc::new(RefCell::new(Tally::default()));
    let tasks = LocalSet::new();
    for client in 0..clients {
        let (tally, call) = (tally.clone(), call.clone());
        tasks.spawn_local(async move {
            for number in 0.. {
                if tally.borrow().stopping {
                    return;
                }
                let begun = Instant::now();
                let outcome = call(client, number).await;
                tally.borrow_mut().count(begun, outcome);
                yield_now().await;
            }
        });
    }
    let watch = async {
        sleep(warm_up).await;
        let before = Sample::take(pids);
        let begun = Instant::now();
        tally.borrow_mut().measuring = true;
        sleep(time).await;
        let seconds = begun.elapsed().as_secs_f64();
        let after = Sample::take(pids);
        let mut tally = tally.borrow_mut();
        (tally.measuring, tally.stopping) = (false, true);
        figures(&tally, seconds, &before, &after, pids)
    };
    let figures = tasks.run_until(watch).await;
    tasks.await;
    figures
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
