//! A run: generator -> clients, and faults meanwhile -> history -> heal -> last reads. What it was worth is
//! decided afterwards, from what it left in its directory.

mod ballast;
mod client;
mod faults;
pub mod options;
pub mod recorder;
mod recovery;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::Cluster;
use crate::cluster::connection::Connection;
use crate::nemesis::{self, Plan};
use crate::random::Random;
use crate::store;
use crate::workload::{Shape, Ways, Workload};
use client::{Pace, Phase};
use options::Options;
use recorder::Recorder;

/// How long clients go on after the last fault, and how long the last reads may take.
const AFTERWARDS: Duration = Duration::from_secs(5);
const LAST: Duration = Duration::from_secs(90);
const AGAIN: Duration = Duration::from_millis(200);

/// Why there is no history: nothing that says anything about the cluster under test.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0} s are too short for all faults: no time is left for {1:?}")]
    TooShort(u64, Vec<nemesis::Kind>),
    #[error("the cluster did not start: {0}")]
    Start(String),
    #[error("the workload could not be prepared: {0}")]
    Prepare(String),
    #[error("a client: {0}")]
    Client(String),
}

/// Runs, and leaves history, schedule and logs in the directory of the options.
pub async fn run(options: &Options) -> Result<(), Error> {
    let mut random = Random::new(options.seed);
    let time = Duration::from_secs(options.seconds).saturating_sub(AFTERWARDS);
    let plan = Plan::draw(&options.nemesis, options.nodes, time, &mut random.fork());
    let lacks = plan.lacks(&options.nemesis);
    if !lacks.is_empty() {
        return Err(Error::TooShort(options.seconds, lacks));
    }
    store::begin(options, &plan)?;
    let recorder = Arc::new(Recorder::new(&options.dir.join(store::HISTORY))?);
    let nodes = options.nodes as u64;
    let mut cluster =
        Cluster::start(&options.binary, &options.dir, nodes, &options.node_options()).await?;
    recovery::answers(&cluster).await.map_err(Error::Start)?;

    let shape = Shape {
        clients: options.clients,
        endpoints: cluster.doors().iter().map(ToString::to_string).collect(),
        stale_reads: options.stale_reads,
    };
    let workload = options.workload.workload(shape);
    prepare(&*workload, &cluster).await?;
    let (phase, phases) = watch::channel(Phase::Work);
    let mut clients = JoinSet::new();
    let pause = Duration::from_secs_f64(options.clients as f64 / options.rate);
    let pace = Arc::new(Pace { pause, clients: options.clients });
    for number in 0..options.clients {
        let (worker, draws) = (workload.client(number, random.fork()), random.fork());
        let ways = ways(&cluster, number, options.patience);
        let (recorder, phases, pace) = (recorder.clone(), phases.clone(), pace.clone());
        clients.spawn(client::work(number, worker, ways, recorder, phases, pace, draws));
    }
    if options.ballast > 0 {
        let ways = ways(&cluster, 0, options.patience);
        clients.spawn(ballast::load(options.ballast, ways, phases.clone()));
    }

    let begun = Instant::now();
    faults::carry_out(&plan, &mut cluster, &recorder, &mut random).await?;
    faults::rest(&mut cluster, &recorder, time.saturating_sub(begun.elapsed())).await?;
    faults::heal(&mut cluster, &recorder).await?;
    faults::rest(&mut cluster, &recorder, AFTERWARDS).await?;
    phase.send_replace(Phase::Rest);
    if recovery::recovered(&cluster, &recorder).await {
        phase.send_replace(Phase::Last);
        let joined = timeout(LAST, join(&mut clients)).await;
        joined.map_err(|_| Error::Client("the last reads do not end".to_owned()))??;
        recovery::digests(&cluster, &recorder).await;
        recovery::statuses(&cluster, &recorder).await;
    }
    faults::rest(&mut cluster, &recorder, AGAIN).await?;
    clients.shutdown().await;
    recorder.history()?;
    Ok(())
}

async fn join(clients: &mut JoinSet<Result<(), String>>) -> Result<(), Error> {
    while let Some(ended) = clients.join_next().await {
        ended.map_err(|error| Error::Client(error.to_string()))?.map_err(Error::Client)?;
    }
    Ok(())
}

async fn prepare(workload: &dyn Workload, cluster: &Cluster) -> Result<(), Error> {
    let ids = cluster.ids();
    let deadline = Instant::now() + recovery::PATIENCE;
    for id in ids.iter().cycle() {
        match workload.prepare(cluster.admin(*id)).await {
            Ok(()) => break,
            Err(error) if Instant::now() > deadline => {
                return Err(Error::Prepare(error.to_string()));
            }
            Err(_) => sleep(AGAIN).await,
        }
    }
    Ok(())
}

/// Connections of its own for each client, so that one that hangs holds up no other.
fn ways(cluster: &Cluster, number: usize, patience: Duration) -> Ways {
    let routes = cluster.routes().into_iter();
    let all: Vec<_> = routes.map(|route| Connection::routed(route, patience)).collect();
    Ways { home: number % all.len(), all }
}
