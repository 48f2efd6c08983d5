//! Starts everything, kills it again and again, waits until nothing runs, and lets the books be audited.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate::client::{Client, Options};
use quorate::limits;
use quorate::proto::v1::{self, SagaStatus};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::audit::audit;
use crate::cluster::Cluster;
use crate::{BANKS, Failed};

/// How long something may take that should take a second or two.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long what was killed stays dead.
const DEAD: Duration = Duration::from_millis(700);
/// Processes of customers.
const CLIENTS: usize = 2;

#[derive(Debug, clap::Args)]
pub struct Plan {
    /// How long money is moved. The cluster keeps 100 000 finished transactions for the audit
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=120))]
    seconds: u64,
    /// From one kill to the next, in milliseconds
    #[arg(long, default_value_t = 1_500, value_parser = clap::value_parser!(u64).range(100..))]
    every: u64,
    /// Customers of each of the two client processes
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    customers: u32,
    /// Client addresses of a running cluster; otherwise one of three nodes is started
    #[arg(long)]
    endpoints: Option<String>,
    /// Kill nothing
    #[arg(long)]
    peaceful: bool,
}

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Victim {
    Bank(&'static str),
    Leader,
    Client(usize),
}

/// What customers were told, by gid: whether the transfer has succeeded.
type Told = Arc<Mutex<BTreeMap<String, bool>>>;

struct Play<'a> {
    plan: &'a Plan,
    dir: &'a Path,
    cluster: Option<Cluster>,
    endpoints: String,
    client: Client,
    /// What the gids of this run begin with.
    run: String,
    banks: BTreeMap<&'static str, Child>,
    clients: BTreeMap<usize, Child>,
    /// Client processes so far.
    generation: u32,
    told: Told,
    listeners: JoinSet<()>,
}

/// True when the books agree.
pub async fn run(plan: Plan) -> Result<bool, Failed> {
    let dir = tempfile::Builder::new().prefix("transfer-").tempdir()?;
    let cluster = match plan.endpoints {
        Some(_) => None,
        None => Some(Cluster::start(dir.path())?),
    };
    let own = cluster.as_ref().map(Cluster::endpoints);
    let endpoints = plan.endpoints.clone().or(own).unwrap_or_default();
    let mut options = Options::new(endpoints.split(','));
    options.call_timeout = PATIENCE;
    let mut play = Play {
        plan: &plan,
        dir: dir.path(),
        cluster,
        endpoints,
        client: Client::connect(options)?,
        run: format!("x{:08x}", rand::random::<u32>()),
        banks: BTreeMap::new(),
        clients: BTreeMap::new(),
        generation: 0,
        told: Told::default(),
        listeners: JoinSet::new(),
    };
    play.open().await?;
    let killed = play.go_on().await?;
    println!("\nno new transfers; those under way go on");
    let since = Instant::now();
    play.close().await?;
    let transfers = play.settled().await?;
    println!("nothing runs any more, {:.1?} later; killed: {killed:?}", since.elapsed());
    play.banks.clear();
    let told = std::mem::take(&mut *locked(&play.told));
    audit(dir.path(), &transfers, &told).await
}

impl Play<'_> {
    /// Starts the banks and their customers.
    async fn open(&mut self) -> Result<(), Failed> {
        for name in BANKS {
            let service = v1::Service {
                name: name.to_owned(),
                // A bank that died is gone when its session has been for so long.
                deregister_after_ms: Some(1_000),
                ..Default::default()
            };
            self.client.put_service(service, None).await?;
            self.start_bank(name)?;
        }
        for name in BANKS {
            let request = v1::ListInstancesRequest { service: name.into(), ..Default::default() };
            let since = Instant::now();
            while self.client.list_instances(request.clone()).await?.instances.is_empty() {
                if since.elapsed() > PATIENCE {
                    return Err(format!("{name} does not register").into());
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
        for place in 0..CLIENTS {
            self.start_client(place)?;
        }
        let customers = CLIENTS as u32 * self.plan.customers;
        println!("{customers} customers move money between {} and {}", BANKS[0], BANKS[1]);
        Ok(())
    }

    /// Until the time is over. How often what was killed.
    async fn go_on(&mut self) -> Result<BTreeMap<&'static str, u32>, Failed> {
        let end = Instant::now() + Duration::from_secs(self.plan.seconds);
        let victims = [
            Victim::Bank(BANKS[0]),
            Victim::Leader,
            Victim::Client(0),
            Victim::Bank(BANKS[1]),
            Victim::Leader,
            Victim::Client(1),
        ];
        let mut killed = BTreeMap::new();
        for victim in victims.into_iter().cycle() {
            let left = end.saturating_duration_since(Instant::now());
            sleep(left.min(Duration::from_millis(self.plan.every))).await;
            if Instant::now() >= end {
                break;
            }
            let possible = victim != Victim::Leader || self.cluster.is_some();
            if possible && !self.plan.peaceful {
                self.kill(victim).await?;
                let kind = match victim {
                    Victim::Bank(_) => "banks",
                    Victim::Leader => "leaders",
                    Victim::Client(_) => "clients",
                };
                *killed.entry(kind).or_default() += 1;
            }
        }
        Ok(killed)
    }

    /// kill -9, and a new start a moment later.
    async fn kill(&mut self, victim: Victim) -> Result<(), Failed> {
        match victim {
            Victim::Bank(name) => {
                println!("> kill -9 of {name}");
                if let Some(mut bank) = self.banks.remove(name) {
                    bank.kill().await?;
                }
                sleep(DEAD).await;
                self.start_bank(name)
            }
            Victim::Client(place) => {
                println!("> kill -9 of client {place}");
                if let Some(mut client) = self.clients.remove(&place) {
                    client.kill().await?;
                }
                self.start_client(place)
            }
            Victim::Leader => {
                let leader = loop {
                    match self.client.status().await?.leader_id {
                        0 => sleep(Duration::from_millis(20)).await,
                        leader => break leader,
                    }
                };
                let Some(cluster) = &mut self.cluster else { return Ok(()) };
                println!("> kill -9 of node {leader}, which leads");
                cluster.kill(leader)?;
                sleep(DEAD).await;
                cluster.spawn(leader)
            }
        }
    }

    /// Lets customers finish what they are at.
    async fn close(&mut self) -> Result<(), Failed> {
        for client in self.clients.values_mut() {
            drop(client.stdin.take());
        }
        for (place, mut client) in std::mem::take(&mut self.clients) {
            if timeout(PATIENCE, client.wait()).await.is_err() {
                return Err(format!("client {place} does not come to an end").into());
            }
        }
        while self.listeners.join_next().await.is_some() {}
        Ok(())
    }

    /// All transfers of this run, when none is under way any more.
    async fn settled(&self) -> Result<Vec<v1::Saga>, Failed> {
        let since = Instant::now();
        loop {
            let transfers = self.transfers().await?;
            let runs = |transfer: &&v1::Saga| {
                let ended = [SagaStatus::Succeeded, SagaStatus::Failed, SagaStatus::Suspended];
                !ended.contains(&transfer.status())
            };
            let running = transfers.iter().filter(runs).count();
            if running == 0 || since.elapsed() > PATIENCE {
                return Ok(transfers);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn transfers(&self) -> Result<Vec<v1::Saga>, Failed> {
        let mut request = v1::ListSagasRequest {
            prefix: format!("{}-", self.run),
            limit: limits::PAGE as u32,
            ..Default::default()
        };
        let mut all = Vec::new();
        loop {
            let page = self.client.list_sagas(request.clone()).await?;
            let Some(last) = page.sagas.last() else { return Ok(all) };
            request.after.clone_from(&last.gid);
            all.extend(page.sagas);
            if !page.more {
                return Ok(all);
            }
        }
    }

    fn start_bank(&mut self, name: &'static str) -> Result<(), Failed> {
        let child = Command::new(std::env::current_exe()?)
            .args(["bank", "--name", name, "--endpoints", &self.endpoints, "--database"])
            .arg(self.dir.join(name))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        self.banks.insert(name, child);
        Ok(())
    }

    fn start_client(&mut self, place: usize) -> Result<(), Failed> {
        let name = format!("{}-{}", self.run, self.generation);
        self.generation += 1;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["client", "--name", &name, "--endpoints", &self.endpoints])
            .args(["--customers", &self.plan.customers.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(stdout) = child.stdout.take() {
            let told = self.told.clone();
            self.listeners.spawn(async move {
                let mut lines = BufReader::new(stdout).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    match line.split_once(' ') {
                        Some((gid, "succeeded")) => locked(&told).insert(gid.to_owned(), true),
                        Some((gid, "failed")) => locked(&told).insert(gid.to_owned(), false),
                        _ => None,
                    };
                }
            });
        }
        self.clients.insert(place, child);
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
