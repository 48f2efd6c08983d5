//! Active health checks. Every node that can reach the leader checks its share of the persistent instances
//! whose services ask for it, and proposes what it saw when that contradicts the health in the state often
//! enough; the state takes a verdict only of the instance and the settings that were checked. So nothing is
//! written while nothing changes, whoever leads, and two nodes that check the same for a moment do no harm.
//!
//! How a target is asked is a parameter, [`Prober`].

mod roll;
mod schedule;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};

use self::roll::Roll;
use self::schedule::{Job, Schedule, checker};
use super::Node;
use crate::limits::{HEALTH_CHECKS_UNDER_WAY, HEALTH_VERDICTS};
use crate::raft::types::NodeId;
use crate::runtime::{self, Instant};
use crate::state::{Command, HealthVerdict, Instance, Op, Probe, Reply, Service};

/// How often it is looked which instances there are, and what is to be proposed.
const LOOK: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);
/// Instances that are looked at under one lock of the state.
const PAGE: usize = 1_000;
const TIMEOUT: Duration = Duration::from_secs(5);
/// A failure that comes so long after its timeout is this node's own: it was stopped, as a virtual machine
/// is, and the answer may have come in time.
const STALLED: Duration = Duration::from_millis(500);

/// What is asked, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub host: String,
    pub port: u16,
    pub probe: Probe,
    /// For all of it: name, connection and answer.
    pub timeout: Duration,
}

/// What a check saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    Passed,
    Failed(String),
    /// Nothing was connected to, and nothing is known of the instance.
    NotAllowed(String),
    /// Nothing, because this node was stopped meanwhile, or had no time for it.
    Nothing,
}

/// Asks targets.
pub trait Prober: Send + Sync + Debug + 'static {
    /// Asks once; ends within the target's timeout.
    fn probe(&self, target: Target) -> BoxFuture<'static, Saw>;

    /// Why a host would not be asked, as far as that is known without resolving its name.
    fn refuses(&self, host: &str) -> Option<String>;
}

/// What this node counts of its checks, and who else checks.
#[derive(Debug, Default)]
pub struct Health {
    roll: Roll,
    figures: Figures,
    /// Why the first of the instances that it should check is not checked.
    unchecked: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Figures {
    checks: AtomicU64,
    failures: AtomicU64,
    turned: AtomicU64,
    instances: AtomicU64,
    unchecked: AtomicU64,
}

/// See [`super::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthStatus {
    /// Instances that this node checks, and those of them that it cannot.
    pub instances: u64,
    pub unchecked: u64,
    /// Checks carried out here, and those of them that failed.
    pub checks: u64,
    pub failures: u64,
    /// Instances whose health was turned by what this node saw.
    pub turned: u64,
}

impl Health {
    pub(super) fn status(&self) -> HealthStatus {
        let Figures { checks, failures, turned, instances, unchecked } = &self.figures;
        let [checks, failures, turned, instances, unchecked] =
            [checks, failures, turned, instances, unchecked].map(|f| f.load(Ordering::Relaxed));
        HealthStatus { instances, unchecked, checks, failures, turned }
    }

    /// In words, if some of the instances are not checked.
    pub(super) fn complaint(&self) -> Option<String> {
        let count = self.figures.unchecked.load(Ordering::Relaxed);
        let first = self.unchecked.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        Some(format!("health checks: {count} instances are not checked by this node; {first}"))
    }
}

impl Node {
    /// How many instances of a service this node would not check, and why the first not, as far as that is
    /// known without resolving names. For a service without a check there are none.
    pub fn unchecked(&self, namespace: &str, service: &str) -> (u64, String) {
        let (mut count, mut first, mut after) = (0, String::new(), Arc::<str>::default());
        let settings = self.read(|state| Some(state.service(namespace, service)?.settings));
        let check = settings.as_ref().and_then(|settings| settings.health_check.as_ref());
        let Some(check) = check else { return (0, first) };
        loop {
            let (page, last) =
                self.read(|state| state.checkable_instances(namespace, service, &after, PAGE));
            for instance in page {
                let why = match check.target(&instance.endpoints) {
                    Some(target) => self.0.prober.refuses(target.host),
                    None => Some(no_endpoint(&check.endpoint)),
                };
                let Some(why) = why else { continue };
                if count == 0 {
                    first = format!("{}: {why}", instance.id);
                }
                count += 1;
            }
            match last {
                Some(last) => after = last,
                None => return (count, first),
            }
        }
    }
}

fn no_endpoint(name: &str) -> String {
    match name {
        "" => "it has no endpoint".to_owned(),
        name => format!("it has no endpoint {name:?}"),
    }
}

/// Says that this node is there to check, and checks, until the node is dropped.
pub async fn run(node: Node) {
    runtime::spawn(roll::run(node.clone()));
    let permits = Arc::new(Semaphore::new(HEALTH_CHECKS_UNDER_WAY));
    let (done, mut results) = mpsc::channel::<(Job, Saw)>(HEALTH_CHECKS_UNDER_WAY);
    let mut schedule = Schedule::default();
    let mut looked = Looked::default();
    let mut tick = Instant::now();
    let mut proposing: Option<runtime::JoinHandle<()>> = None;
    loop {
        let due = schedule.next_due().filter(|_| permits.available_permits() > 0);
        let wake = due.map_or(tick, |due| due.min(tick));
        tokio::select! {
            biased;
            Some((job, saw)) = results.recv() => settle(&node, &mut schedule, &job, saw),
            () = runtime::sleep_until(wake) => {}
        }
        let now = Instant::now();
        if now >= tick {
            tick = now + TICK;
            looked.look(&node, &mut schedule, now);
            let (count, first) = schedule.unchecked();
            let health = &node.0.health;
            health.figures.instances.store(schedule.len() as u64, Ordering::Relaxed);
            health.figures.unchecked.store(count as u64, Ordering::Relaxed);
            *health.unchecked.lock().unwrap_or_else(PoisonError::into_inner) = first;
            if proposing.as_ref().is_none_or(runtime::JoinHandle::is_finished) {
                let verdicts = schedule.take_verdicts(HEALTH_VERDICTS);
                proposing =
                    (!verdicts.is_empty()).then(|| runtime::spawn(propose(node.clone(), verdicts)));
            }
        }
        while let Ok(permit) = permits.clone().try_acquire_owned() {
            let Some(job) = schedule.take_due(now) else { break };
            let asked = ask(&*node.0.prober, &job);
            let done = done.clone();
            runtime::spawn(async move {
                let mut saw = asked.await;
                if matches!(saw, Saw::Failed(_)) && now.elapsed() > job.timeout() + STALLED {
                    saw = Saw::Nothing;
                }
                // As many fit as there are permits.
                let _ = done.send((job, saw)).await;
                drop(permit);
            });
        }
    }
}

/// What was looked at last.
#[derive(Debug, Default)]
struct Looked {
    at: Option<Instant>,
    revision: u64,
    present: Option<Arc<[NodeId]>>,
}

impl Looked {
    /// Brings the schedule up to the state, unless nothing has changed, or did so only just now.
    fn look(&mut self, node: &Node, schedule: &mut Schedule, now: Instant) {
        let Some(present) = node.0.health.roll.present(now) else {
            if self.present.take().is_some() {
                schedule.clear();
            }
            return;
        };
        let revision = node.read(crate::state::State::revision);
        if self.present.as_ref() == Some(&present) {
            let lately = self.at.is_some_and(|at| now.saturating_duration_since(at) < LOOK);
            if lately || revision == self.revision {
                return;
            }
        }
        *self = Looked { at: Some(now), revision, present: Some(present.clone()) };
        schedule.begin_look();
        let services: Vec<Arc<Service>> =
            node.read(|state| state.checked_services().cloned().collect());
        for service in services {
            let mut after = Arc::<str>::default();
            loop {
                // What changes between two pages is seen the next time: the revision is another one.
                let (page, last) = node.read(|state| {
                    state.checkable_instances(&service.namespace, &service.name, &after, PAGE)
                });
                let own =
                    |instance: &&Arc<Instance>| checker(instance, &present) == Some(node.id());
                for instance in page.iter().filter(own) {
                    schedule.see(&service, instance, now, runtime::jitter);
                }
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
        }
        schedule.end_look();
    }
}

fn ask(prober: &dyn Prober, job: &Job) -> BoxFuture<'static, Saw> {
    let saw = |saw| Box::pin(std::future::ready(saw));
    let Some(check) = &job.service.health_check else {
        return saw(Saw::NotAllowed("its service asks for no check".to_owned()));
    };
    match check.target(&job.instance.endpoints) {
        Some(endpoint) => prober.probe(Target {
            host: endpoint.host.to_owned(),
            port: endpoint.port,
            probe: check.probe.clone(),
            timeout: job.timeout(),
        }),
        None => saw(Saw::NotAllowed(no_endpoint(&check.endpoint))),
    }
}

fn settle(node: &Node, schedule: &mut Schedule, job: &Job, saw: Saw) {
    let figures = &node.0.health.figures;
    match saw {
        Saw::Passed => _ = figures.checks.fetch_add(1, Ordering::Relaxed),
        Saw::Failed(_) => {
            figures.checks.fetch_add(1, Ordering::Relaxed);
            figures.failures.fetch_add(1, Ordering::Relaxed);
        }
        Saw::NotAllowed(_) | Saw::Nothing => {}
    }
    if let Some(why) = schedule.settle(node.id(), job, saw, Instant::now()) {
        let (namespace, service, id) = &job.name;
        tracing::warn!(%namespace, %service, %id, why, "instances of a service are not checked");
    }
}

async fn propose(node: Node, verdicts: Vec<HealthVerdict>) {
    let op = Op::JudgeHealth { verdicts };
    match node.propose(&Command { request: None, op }, TIMEOUT).await {
        Ok(outcome) => {
            if let Ok(Reply::HealthJudged { changed }) = outcome.result {
                node.0.health.figures.turned.fetch_add(changed, Ordering::Relaxed);
                tracing::info!(
                    changed,
                    revision = outcome.revision,
                    "health checks turned instances"
                );
            }
        }
        // The next results say it again.
        Err(error) => tracing::info!(%error, "verdicts of health checks were not proposed"),
    }
}

#[cfg(test)]
mod tests;
