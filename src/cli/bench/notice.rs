//! The workload `deregister`: how long after its acknowledgement each of many clients that follow a service
//! does without the instance.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant, sleep};

use super::super::Error;
use super::load::{Plan, Tally};
use super::phase::{Phase, Shared};
use crate::client::{Client, Discovery, DiscoveryOptions, Options};

/// A client of its own, with a watch of its own, and since when it has seen the instance or not.
struct Follower {
    seen: watch::Receiver<(bool, Instant)>,
    _discovery: Discovery,
    /// Ends with the follower.
    _task: JoinSet<()>,
}

impl Follower {
    async fn start(plan: &Plan, options: Options, id: &str) -> Result<Follower, Error> {
        let options_of = DiscoveryOptions::new(plan.service(0)).namespace(plan.namespace());
        let discovery = Client::connect(options)?.discovery(options_of).await?;
        discovery.synced().await?;
        let (told, seen) = watch::channel((false, Instant::now()));
        let (mut states, id) = (discovery.subscribe(), id.to_owned());
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(state) = states.next().await {
                let there = state.instances.contains_key(&id);
                told.send_if_modified(|(before, at)| {
                    let turned = *before != there;
                    if turned {
                        (*before, *at) = (there, Instant::now());
                    }
                    turned
                });
            }
        });
        Ok(Follower { seen, _discovery: discovery, _task: task })
    }

    /// When it saw that the instance is there, or is not.
    async fn sees(&mut self, there: bool) -> Result<Instant, Error> {
        let seen = self.seen.wait_for(|(now, _)| *now == there).await;
        let seen = seen.map_err(|_| crate::error::Error::internal("a follower has ended"))?;
        Ok(seen.1)
    }
}

/// Registers and deregisters one instance in turn. The pause before is random, because the first change
/// after a calm is told at once and the next ones are gathered.
pub async fn run(
    thread: u32,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    options: Options,
) -> Result<Tally, Error> {
    let client = Client::connect(options.clone())?;
    // Each thread has an instance of its own.
    let key = thread % plan.keys();
    let id = plan.instance(key, 0).id;
    let mut followers = Vec::new();
    for _ in plan.share_of_clients(thread) {
        followers.push(Follower::start(&plan, options.clone(), &id).await?);
    }
    shared.ready.fetch_add(1, Ordering::AcqRel);
    shared.wait_for_start().await;
    let mut tally = Tally::default();
    for change in 0.. {
        if shared.phase() == Phase::Stop {
            break;
        }
        client.register(plan.instance(key, change), None).await?;
        for follower in &mut followers {
            follower.sees(true).await?;
        }
        sleep(Duration::from_millis(rand::random_range(0..100))).await;
        client.deregister(plan.deregister(key), None).await?;
        let acknowledged = Instant::now();
        for follower in &mut followers {
            let after = follower.sees(false).await?.saturating_duration_since(acknowledged);
            if shared.phase() == Phase::Measure {
                tally.success(false, after);
            }
            shared.done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(tally)
}
