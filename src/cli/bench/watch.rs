//! The workload `watch`: how long after one change each of many watches of the same service hears of it, and how
//! long the last of them takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep};

use super::super::Error;
use super::load::{Plan, Tally};
use super::phase::{Phase, Shared};
use crate::client::{Client, Options, Watch, WatchRange, WatchUpdate};
use crate::proto::v1::watch_event::Record;

/// What one watch has heard: the change, and when.
type Heard = (u64, Instant);

/// Hears of everything, and tells what it hears of one instance.
async fn follow(mut watch: Watch, id: String, told: mpsc::Sender<Heard>) {
    while let Some(Ok(update)) = watch.next().await {
        let at = Instant::now();
        let (WatchUpdate::Snapshot { events, .. } | WatchUpdate::Changes { events, .. }) = update
        else {
            continue;
        };
        for event in events {
            let Some(Record::Instance(instance)) = event.record else { continue };
            let change = instance.metadata.get("value").and_then(|value| value.get(..16));
            let change = change.and_then(|change| u64::from_str_radix(change, 16).ok());
            if instance.id == id
                && let Some(change) = change
                && told.send((change, at)).await.is_err()
            {
                return;
            }
        }
    }
}

/// Changes one instance again and again, each time when all have heard of the change before.
pub async fn run(
    thread: u32,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    options: Options,
) -> Result<Tally, Error> {
    let client = Client::connect(options.clone())?;
    // Each thread has an instance of its own, which its own watches look at.
    let key = thread % plan.keys();
    let (instance, watches) = (plan.instance(key, 0), plan.share_of_clients(thread));
    let (told, mut heard) = mpsc::channel(watches.len().max(1));
    let per_connection = plan.watches_of_connection();
    let (mut tasks, mut connection) = (JoinSet::new(), client.clone());
    for (nth, _) in watches.clone().enumerate() {
        if nth.is_multiple_of(per_connection) {
            connection = Client::connect(Options { connections: 1, ..options.clone() })?;
        }
        let (namespace, service) = (instance.namespace.clone(), instance.service.clone());
        let watch = connection.watch(WatchRange::Service { namespace, service });
        tasks.spawn(follow(watch, instance.id.clone(), told.clone()));
    }
    // Whoever has heard the first time is connected.
    for _ in watches.clone() {
        let first = heard.recv().await;
        first.ok_or_else(|| crate::error::Error::internal("a watch has ended"))?;
    }
    shared.ready.fetch_add(1, Ordering::AcqRel);
    shared.wait_for_start().await;
    let mut tally = Tally::default();
    for change in 1.. {
        if shared.phase() == Phase::Stop {
            break;
        }
        let begun = Instant::now();
        client.register(plan.instance(key, change), None).await?;
        let mut last = Duration::ZERO;
        for _ in watches.clone() {
            let at = loop {
                match heard.recv().await {
                    Some((what, at)) if what == change => break at,
                    Some(_) => {}
                    None => return Err(crate::error::Error::internal("a watch has ended").into()),
                }
            };
            let took = at.saturating_duration_since(begun);
            last = last.max(took);
            if shared.phase() == Phase::Measure {
                tally.success(true, took);
            }
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
        if shared.phase() == Phase::Measure {
            tally.success(false, last);
        }
        // The first change after a calm is told at once, the next ones are gathered.
        sleep(Duration::from_millis(rand::random_range(0..100))).await;
    }
    Ok(tally)
}
