//! The clients of a run: each does one operation after the other and writes down what it heard.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::recorder::{Outcome, Recorder};
use crate::random::Random;
use crate::workload::{Client, Ways};

/// How far a run has come, for its clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Work,
    /// Nothing new is begun.
    Rest,
    /// Each shows what has become of everything, and ends.
    Last,
}

/// Longer than any operation may take by itself; without it a defect of the harness would look like a run.
const STUCK: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Pace {
    /// The mean time between two operations of one client.
    pub pause: Duration,
    /// Clients of the run: a client goes on under its number plus this.
    pub clients: usize,
}

/// Works until the last phase is done. An error is one of the harness.
pub async fn work(
    number: usize,
    mut client: Box<dyn Client>,
    ways: Ways,
    recorder: Arc<Recorder>,
    mut phase: watch::Receiver<Phase>,
    pace: Arc<Pace>,
    mut random: Random,
) -> Result<(), String> {
    let mut process = number as i64;
    loop {
        let now = *phase.borrow_and_update();
        let what = match now {
            Phase::Work => client.next(),
            Phase::Last => client.last(),
            Phase::Rest => {
                if phase.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            }
        };
        match what {
            Some(what) => {
                recorder.invoke(process, what.f, what.value.clone());
                let outcome = timeout(STUCK, client.invoke(&what, &ways)).await;
                let outcome =
                    outcome.map_err(|_| format!(":{} {} does not end", what.f, what.value))?;
                let ends = matches!(outcome, Outcome::Info(_));
                recorder.complete(process, what.f, what.value, outcome);
                if ends {
                    process += pace.clients as i64;
                }
            }
            None if now == Phase::Last => return Ok(()),
            None => {}
        }
        if now == Phase::Work {
            // Twice the mean at most, so that clients do not march in step.
            let micros = random.between(0..=2 * pace.pause.as_micros() as u64);
            let rest = sleep(Duration::from_micros(micros));
            tokio::select! {
                () = rest => {}
                _ = phase.changed() => phase.mark_changed(),
            }
        }
    }
}
