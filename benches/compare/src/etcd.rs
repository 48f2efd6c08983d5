//! Three nodes of etcd with its defaults, and the same work as `quorate bench` does.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::load::{Figures, Loop, quantile};

#[allow(clippy::all, clippy::pedantic)]
mod api {
    tonic::include_proto!("etcdserverpb");
}

pub use api::kv_client::KvClient;
use api::lease_client::LeaseClient;
use api::maintenance_client::MaintenanceClient;
use api::watch_client::WatchClient;
use api::watch_request::RequestUnion;
use api::{
    LeaseGrantRequest, LeaseKeepAliveRequest, StatusRequest, WatchCreateRequest, WatchRequest,
};
pub use api::{PutRequest, RangeRequest};

const FIRST_PORT: u16 = 23_790;
const START: Duration = Duration::from_secs(60);
/// Unary calls share connections as those of `quorate bench` do.
const CLIENTS_OF_CONNECTION: u32 = 32;
const CONNECTIONS: u32 = 8;

pub struct Etcd {
    binary: PathBuf,
    dir: PathBuf,
    nodes: Vec<Option<Child>>,
}

/// A range of names: those that begin with a prefix.
fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

fn key(number: u64) -> Vec<u8> {
    format!("bench/{number:08}").into_bytes()
}

/// A service of a hundred instances, as `quorate bench discover` has them.
fn service(number: u64) -> String {
    format!("service/{number:05}/")
}

fn value(number: u64, size: usize) -> Vec<u8> {
    let mut value = format!("{number:016x}").into_bytes();
    value.resize(size, b'v');
    value
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl Etcd {
    pub fn version(binary: &Path) -> Result<String, String> {
        let output = Command::new(binary).arg("--version").output();
        let output = output.map_err(|error| {
            format!("{}: {error}; on Debian: apt install etcd-server", binary.display())
        })?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().next().unwrap_or("etcd").to_owned())
    }

    pub async fn start(binary: &Path, dir: &Path) -> Result<Etcd, String> {
        let mut etcd = Etcd { binary: binary.to_owned(), dir: dir.to_owned(), nodes: Vec::new() };
        for node in 0..3 {
            etcd.nodes.push(None);
            etcd.spawn(node).map_err(said)?;
        }
        etcd.ready().await?;
        Ok(etcd)
    }

    pub fn endpoint(node: usize) -> String {
        format!("http://127.0.0.1:{}", FIRST_PORT as usize + 10 * node)
    }

    fn peer(node: usize) -> String {
        format!("http://127.0.0.1:{}", FIRST_PORT as usize + 10 * node + 1)
    }

    pub fn spawn(&mut self, node: usize) -> io::Result<()> {
        let data = self.dir.join(format!("etcd-{node}"));
        fs::create_dir_all(&data)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("etcd-{node}.log")))?;
        let all: Vec<String> = (0..3).map(|it| format!("n{it}={}", Etcd::peer(it))).collect();
        let child = Command::new(&self.binary)
            .arg("--name")
            .arg(format!("n{node}"))
            .arg("--data-dir")
            .arg(data)
            .args(["--listen-client-urls", &Etcd::endpoint(node)])
            .args(["--advertise-client-urls", &Etcd::endpoint(node)])
            .args(["--listen-peer-urls", &Etcd::peer(node)])
            .args(["--initial-advertise-peer-urls", &Etcd::peer(node)])
            .args(["--initial-cluster", &all.join(",")])
            .args(["--initial-cluster-state", "new"])
            // Its default of 2 GB is too little for a million keys with all their versions.
            .args(["--quota-backend-bytes", "8589934592"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.nodes[node] = Some(child);
        Ok(())
    }

    pub fn kill(&mut self, node: usize) -> io::Result<()> {
        if let Some(mut child) = self.nodes[node].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().flatten().map(Child::id).collect()
    }

    /// Waits until every node serves reads and knows a leader.
    pub async fn ready(&self) -> Result<(), String> {
        let give_up = Instant::now() + START;
        for node in 0..3 {
            loop {
                let read = async {
                    let channel = connect(&Etcd::endpoint(node)).await?;
                    let request = RangeRequest { key: key(0), ..Default::default() };
                    KvClient::new(channel).range(request).await.map_err(said)
                };
                if matches!(timeout(Duration::from_secs(2), read).await, Ok(Ok(_))) {
                    break;
                }
                if Instant::now() > give_up {
                    return Err(format!("etcd node {node} does not serve within {START:?}"));
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// The number of the node that leads.
    pub async fn leader(&self) -> Result<usize, String> {
        let give_up = Instant::now() + START;
        loop {
            for node in (0..3).filter(|node| self.nodes[*node].is_some()) {
                let Ok(channel) = connect(&Etcd::endpoint(node)).await else { continue };
                let mut client = MaintenanceClient::new(channel);
                let status = client.status(StatusRequest {});
                let Ok(Ok(status)) = timeout(Duration::from_secs(1), status).await else {
                    continue;
                };
                let status = status.into_inner();
                let own = status.header.map_or(0, |header| header.member_id);
                if status.leader != 0 && status.leader == own {
                    return Ok(node);
                }
            }
            if Instant::now() > give_up {
                return Err(format!("etcd has no leader within {START:?}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Calls to the leader: none is forwarded, which is its best case.
    async fn closed_loop<F>(
        &self,
        clients: u32,
        time: Duration,
        call: impl Fn(KvClient<Channel>, u32, u64) -> F + Clone + Send + 'static,
    ) -> Result<Figures, String>
    where
        F: Future<Output = Result<(), String>> + 'static,
    {
        let endpoint = Etcd::endpoint(self.leader().await?);
        let open = move |clients| connections(endpoint.clone(), clients);
        let load = Loop { clients, warm_up: Duration::from_secs(1), time, pids: self.pids() };
        load.run(open, call).await
    }

    pub async fn put(
        &self,
        clients: u32,
        keys: u64,
        size: usize,
        time: Duration,
    ) -> Result<Figures, String> {
        let put = move |mut kv: KvClient<Channel>, client, number| {
            let put =
                PutRequest { key: key(draw(client, number) % keys), value: value(number, size) };
            async move { kv.put(put).await.map(|_| ()).map_err(said) }
        };
        self.closed_loop(clients, time, put).await
    }

    pub async fn get(&self, clients: u32, keys: u64, time: Duration) -> Result<Figures, String> {
        let get = move |mut kv: KvClient<Channel>, client, number| {
            let get = RangeRequest { key: key(draw(client, number) % keys), ..Default::default() };
            async move {
                let found = kv.range(get).await.map_err(said)?;
                if found.into_inner().count == 1 { Ok(()) } else { Err("not there".to_owned()) }
            }
        };
        self.closed_loop(clients, time, get).await
    }

    /// Reads all of a service.
    pub async fn discover(
        &self,
        clients: u32,
        services: u64,
        time: Duration,
    ) -> Result<Figures, String> {
        let get = move |mut kv: KvClient<Channel>, client, number| {
            let prefix = service(draw(client, number) % services);
            let range_end = range_end(&prefix);
            let get = RangeRequest { key: prefix.into_bytes(), range_end, ..Default::default() };
            async move {
                let found = kv.range(get).await.map_err(said)?;
                if found.into_inner().kvs.len() == 100 { Ok(()) } else { Err("not all".to_owned()) }
            }
        };
        self.closed_loop(clients, time, get).await
    }

    /// Puts every key once.
    pub async fn fill(&self, keys: u64, size: usize) -> Result<(), String> {
        self.fill_names((0..keys).map(key), size).await
    }

    /// Services of a hundred instances each.
    pub async fn fill_services(&self, services: u64, size: usize) -> Result<(), String> {
        let names = (0..services).flat_map(|number| {
            (0..100).map(move |instance| format!("{}{instance:03}", service(number)).into_bytes())
        });
        self.fill_names(names, size).await
    }

    async fn fill_names(
        &self,
        names: impl Iterator<Item = Vec<u8>>,
        size: usize,
    ) -> Result<(), String> {
        use futures::StreamExt as _;
        let connections = connections(Etcd::endpoint(self.leader().await?), 256).await?;
        let puts = names.enumerate().map(|(number, key)| {
            let mut kv = connections[number % connections.len()].clone();
            let put = PutRequest { key, value: value(0, size) };
            async move { kv.put(put).await.map(|_| ()).map_err(said) }
        });
        let mut puts = futures::stream::iter(puts).buffer_unordered(512);
        while let Some(put) = puts.next().await {
            put?;
        }
        Ok(())
    }

    /// How long after one change all of many watchers have heard of it, again and again.
    pub async fn fan_out(
        &self,
        watchers: usize,
        streams: usize,
        time: Duration,
    ) -> Result<Figures, String> {
        let leader = Etcd::endpoint(self.leader().await?);
        let (told, mut heard) = mpsc::channel(watchers);
        let mut tasks = tokio::task::JoinSet::new();
        let watched = b"watched".to_vec();
        for stream in 0..streams {
            let endpoint = Etcd::endpoint(stream % 3);
            let share = watchers / streams + usize::from(stream < watchers % streams);
            let (told, watched) = (told.clone(), watched.clone());
            let channel = connect(&endpoint).await?;
            tasks.spawn(async move {
                let (ask, asked) = mpsc::channel(share.max(1));
                let mut client = WatchClient::new(channel);
                let answers = client.watch(ReceiverStream::new(asked));
                let create = WatchCreateRequest { key: watched, ..Default::default() };
                for _ in 0..share {
                    let union = Some(RequestUnion::CreateRequest(create.clone()));
                    let _ = ask.send(WatchRequest { request_union: union }).await;
                }
                let Ok(answers) = answers.await else { return };
                let mut answers = answers.into_inner();
                while let Ok(Some(answer)) = answers.message().await {
                    let change = answer.events.last().and_then(|event| event.kv.as_ref());
                    let change = change.map(|kv| kv.value.clone());
                    if told.send((change, Instant::now())).await.is_err() {
                        return;
                    }
                }
            });
        }
        // Each says first that it is there.
        for _ in 0..watchers {
            let first = timeout(START, heard.recv()).await;
            first.ok().flatten().ok_or("a watcher does not begin")?;
        }
        let mut kv = KvClient::new(connect(&leader).await?);
        let (begun, mut lasts) = (Instant::now(), Vec::new());
        while begun.elapsed() < time {
            let value = value(lasts.len() as u64 + 1, 256);
            let changed = Instant::now();
            kv.put(PutRequest { key: watched.clone(), value: value.clone() })
                .await
                .map_err(said)?;
            let (mut last, mut left) = (Duration::ZERO, watchers);
            while left > 0 {
                let next = timeout(START, heard.recv()).await.ok().flatten();
                let (change, at) = next.ok_or("a watcher has heard nothing")?;
                if change.as_ref() == Some(&value) {
                    left -= 1;
                    last = last.max(at.saturating_duration_since(changed));
                }
            }
            lasts.push(last.as_secs_f64() * 1e3);
            sleep(Duration::from_millis(50)).await;
        }
        Ok(lasts_as_figures(&lasts))
    }

    /// Keeps leases alive, each once a second: etcd's own way, one stream a connection.
    pub async fn keep_alive(&self, leases: u64, time: Duration) -> Result<f64, String> {
        let channel = connect(&Etcd::endpoint(self.leader().await?)).await?;
        let mut client = LeaseClient::new(channel);
        let mut ids = Vec::new();
        for _ in 0..leases {
            // It chooses the number.
            let request = LeaseGrantRequest { ttl: 60, id: 0 };
            ids.push(client.lease_grant(request).await.map_err(said)?.into_inner().id);
        }
        let (ask, asked) = mpsc::channel(1_024);
        // It says that the stream is open with its first answer only.
        let mut reader = tokio::task::JoinSet::new();
        reader.spawn(async move {
            let answers = client.lease_keep_alive(ReceiverStream::new(asked)).await;
            let mut answers = answers.map_err(said)?.into_inner();
            while answers.message().await.map_err(said)?.is_some() {}
            Err::<f64, _>("the stream has ended".to_owned())
        });
        let pids = self.pids();
        let before = quorate::cli::bench::cpu::Sample::take(&pids);
        let begun = Instant::now();
        let mut number = 0u64;
        while begun.elapsed() < time {
            // Ten thousand a second is ten each millisecond.
            let due = (begun.elapsed().as_secs_f64() * leases as f64) as u64;
            while number < due {
                let id = ids[(number % leases) as usize];
                if ask.send(LeaseKeepAliveRequest { id }).await.is_err() {
                    return reader.join_next().await.ok_or("no reader")?.map_err(said)?;
                }
                number += 1;
            }
            sleep(Duration::from_millis(1)).await;
        }
        let seconds = begun.elapsed().as_secs_f64();
        let after = quorate::cli::bench::cpu::Sample::take(&pids);
        let most = pids.iter().filter_map(|&pid| after.since(&before, pid)).max().unwrap_or(0);
        Ok(most as f64 / 1e6 / seconds * 100.0)
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for node in 0..self.nodes.len() {
            // It is gone all the same.
            let _ = self.kill(node);
        }
    }
}

/// Connections that so many clients share.
async fn connections(endpoint: String, clients: u32) -> Result<Vec<KvClient<Channel>>, String> {
    let mut connections = Vec::new();
    for _ in 0..(clients / CLIENTS_OF_CONNECTION).clamp(1, CONNECTIONS) {
        connections.push(KvClient::new(connect(&endpoint).await?));
    }
    Ok(connections)
}

/// Times until the last watcher had heard.
fn lasts_as_figures(lasts: &[f64]) -> Figures {
    let at = |share: f64| quantile(lasts, share).unwrap_or(0.0);
    Figures { p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0), ..Figures::default() }
}

/// Which key comes next: the same for all systems, spread over all keys.
pub fn draw(client: u32, number: u64) -> u64 {
    let seed = (u64::from(client) << 40) ^ number;
    let mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (mixed ^ (mixed >> 31)).wrapping_mul(0x94d0_49bb_1331_11eb) >> 20
}

pub async fn connect(endpoint: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(endpoint.to_owned()).map_err(said)?;
    // As our own client connects.
    let connector = quorate::gather::connector(Duration::from_secs(1));
    endpoint.connect_with_connector(connector).await.map_err(said)
}
