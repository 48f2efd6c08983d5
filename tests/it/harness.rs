//! Clusters of real processes. A [`Cluster`] starts its nodes in a temporary directory on free ports,
//! kills, stops, pauses and restarts them one by one, and ends them all when it is dropped, also by a
//! panic; then it shows the end of every node's log. A node that panicked fails the test in any case.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quorate::client::{Client, Options};
use quorate::error::Error;
use quorate::proto::v1;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

pub const BINARY: &str = env!("CARGO_BIN_EXE_quorate");
/// How long the tests wait for something that a healthy cluster does within a second or two.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long a whole test may take, besides waiting for its turn.
const TEST_DEADLINE: Duration = Duration::from_secs(240);
/// Pause between two looks at something that is awaited.
const AGAIN: Duration = Duration::from_millis(25);
/// Lines of each node's log that are shown when a test fails.
const LOG_LINES: usize = 60;

/// Clusters that run at the same time.
static ROOM: Semaphore = Semaphore::const_new(2);

/// Runs one test with processes: in its turn, and with a deadline for the whole.
pub fn run(test: impl Future<Output = ()>) {
    run_within(TEST_DEADLINE, test);
}

/// The same with a deadline of its own.
pub fn run_within(deadline: Duration, test: impl Future<Output = ()>) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut test = Box::pin(test);
    runtime.block_on(async {
        let _room = ROOM.acquire().await.unwrap();
        let mut test = pin!(test.as_mut());
        // The test is dropped by the panic, so that its clusters know that it failed.
        assert!(timeout(deadline, test.as_mut()).await.is_ok(), "not done in {deadline:?}");
    });
    drop(test);
    runtime.shutdown_background();
}

/// Looks until there is something, and fails with the last reason why there is not.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let reason = match timeout(PATIENCE, look()).await {
            Ok(Ok(found)) => return found,
            Ok(Err(reason)) => reason,
            Err(_) => "no answer".to_owned(),
        };
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}: {reason}");
        sleep(AGAIN).await;
    }
}

/// `Ok` or a text for [`eventually`].
pub fn text<T>(result: Result<T, Error>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// Ports below those that the kernel gives to outgoing connections: nobody takes the port of a node
/// that is down for a while.
pub fn free_ports(count: u16) -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: LazyLock<AtomicU32> =
        LazyLock::new(|| AtomicU32::new(std::process::id().wrapping_mul(331)));
    loop {
        let from = FIRST + NEXT.fetch_add(u32::from(count), Ordering::Relaxed) % COUNT;
        let ports = from as u16..from as u16 + count;
        if ports.clone().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return ports.start;
        }
    }
}

/// One process of `quorate serve`, running or not.
pub struct Node {
    pub id: u64,
    pub client: String,
    pub peer: String,
    pub http: String,
    pub data: PathBuf,
    pub log: PathBuf,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Node {
    /// Calls this node and no other.
    pub fn at(&self) -> Client {
        client([&self.client]).at(&self.client).unwrap()
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Length of the log so far: what is behind it was said later.
    pub fn log_length(&self) -> usize {
        self.log_text().len()
    }

    fn spawn(&mut self) {
        assert!(self.child.is_none(), "node {} runs already", self.id);
        let log = OpenOptions::new().create(true).append(true).open(&self.log).unwrap();
        let mut command = command();
        command
            .args(&self.arguments)
            // The end of this pipe stops the node should this process be killed.
            .stdin(Stdio::piped())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn signal(&self, signal: Signal) {
        send(self.child.as_ref().expect("the node runs").id(), signal);
    }

    fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap();
        if status.is_some() {
            self.child = None;
        }
        status
    }

    /// SIGKILL, and the process is gone.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

/// What a cluster is made of.
#[derive(Clone, Default)]
pub struct Setup {
    /// Options of every node besides its addresses.
    options: Vec<String>,
}

impl Setup {
    pub fn option(mut self, name: &str, value: impl ToString) -> Setup {
        self.options.extend([name.to_owned(), value.to_string()]);
        self
    }

    /// That many nodes with addresses and directories, none of them started.
    pub fn define(&self, nodes: u64) -> Cluster {
        Cluster::new(self, nodes)
    }

    /// Starts that many nodes and waits until all serve.
    pub async fn start(self, nodes: u64) -> Cluster {
        for _ in 0..5 {
            let mut cluster = Cluster::new(&self, nodes);
            cluster.spawn_all();
            match cluster.until_ready().await {
                Ok(()) => return cluster,
                // Somebody else took a port between our look and the start: choose others.
                Err(NotReady::Exited(5)) => {}
                Err(reason) => panic!("the cluster did not start: {reason:?}"),
            }
        }
        panic!("no free ports in five attempts");
    }
}

#[derive(Debug)]
enum NotReady {
    Exited(i32),
    #[expect(dead_code, reason = "shown in the panic's message")]
    Slow(String),
}

pub struct Cluster {
    nodes: BTreeMap<u64, Node>,
    setup: Setup,
    dir: TempDir,
}

impl Cluster {
    /// Three nodes with default options.
    pub async fn three() -> Cluster {
        Setup::default().start(3).await
    }

    fn new(setup: &Setup, count: u64) -> Cluster {
        let dir = tempfile::Builder::new().prefix("quorate-it-").tempdir().unwrap();
        let mut cluster = Cluster { nodes: BTreeMap::new(), setup: setup.clone(), dir };
        let ports: Vec<u16> = (0..count).map(|_| free_ports(3)).collect();
        let members: Vec<String> =
            (1..).zip(&ports).map(|(id, port)| format!("{id}=127.0.0.1:{}", port + 1)).collect();
        let members = ["--initial-cluster".to_owned(), members.join(",")];
        for (id, port) in (1..).zip(ports) {
            cluster.define(id, port, &members);
        }
        cluster
    }

    fn define(&mut self, id: u64, port: u16, further: &[String]) {
        let [client, peer, http] = [0, 1, 2].map(|offset| format!("127.0.0.1:{}", port + offset));
        let data = self.dir.path().join(format!("node-{id}"));
        let log = self.dir.path().join(format!("node-{id}.log"));
        let mut arguments = vec!["serve".to_owned(), "--exit-with-parent".to_owned()];
        for (option, value) in [
            ("--id", id.to_string()),
            ("--data-dir", data.display().to_string()),
            ("--listen-client", client.clone()),
            ("--listen-peer", peer.clone()),
            ("--listen-http", http.clone()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        arguments.extend_from_slice(further);
        arguments.extend_from_slice(&self.setup.options);
        let node = Node { id, client, peer, http, data, log, arguments, child: None };
        assert!(self.nodes.insert(id, node).is_none(), "node {id} is defined twice");
    }

    /// A node that waits to be added to the running cluster; it is not started.
    pub fn define_joining(&mut self, id: u64) {
        let join = self.nodes.values().find(|node| node.is_running()).unwrap().peer.clone();
        self.define(id, free_ports(3), &["--join".to_owned(), join]);
    }

    /// `--initial-cluster` of all nodes.
    pub fn members(&self) -> String {
        let members = self.nodes.values().map(|node| format!("{}={}", node.id, node.peer));
        members.collect::<Vec<_>>().join(",")
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.nodes[&id]
    }

    pub fn ids(&self) -> Vec<u64> {
        self.nodes.keys().copied().collect()
    }

    pub fn running(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.is_running())
    }

    pub fn endpoints(&self) -> Vec<String> {
        self.nodes.values().map(|node| node.client.clone()).collect()
    }

    /// A client of the whole cluster.
    pub fn client(&self) -> Client {
        client(self.endpoints())
    }

    /// A client of one node.
    pub fn at(&self, id: u64) -> Client {
        self.node(id).at()
    }

    // ---- processes ----

    pub fn spawn(&mut self, id: u64) {
        self.node_mut(id).spawn();
    }

    pub fn spawn_all(&mut self) {
        for node in self.nodes.values_mut() {
            node.spawn();
        }
    }

    /// Starts a node and waits until it serves.
    pub async fn start(&mut self, id: u64) {
        self.spawn(id);
        self.ready(&[id]).await;
    }

    /// kill -9.
    pub fn kill(&mut self, id: u64) {
        self.node_mut(id).kill();
    }

    pub fn kill_all(&mut self) {
        // All are told before any is awaited: it happens at once.
        for node in self.running() {
            node.signal(Signal::KILL);
        }
        for node in self.nodes.values_mut() {
            node.kill();
        }
    }

    pub fn pause(&self, id: u64) {
        self.node(id).signal(Signal::STOP);
    }

    pub fn resume(&self, id: u64) {
        self.node(id).signal(Signal::CONT);
    }

    /// SIGTERM.
    pub fn terminate(&self, id: u64) {
        self.node(id).signal(Signal::TERM);
    }

    /// SIGTERM, and the process is gone; its exit code.
    pub async fn stop(&mut self, id: u64) -> i32 {
        self.terminate(id);
        self.exit_code(id).await
    }

    /// Waits for the end of a process.
    pub async fn exit_code(&mut self, id: u64) -> i32 {
        let node = self.node_mut(id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = node.exited() {
                return status.code().unwrap_or_else(|| panic!("node {id} ended by {status}"));
            }
            assert!(Instant::now() < deadline, "node {id} still runs");
            sleep(AGAIN).await;
        }
    }

    fn node_mut(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).expect("the node is defined")
    }

    /// Waits until `/readyz` of these nodes says yes.
    pub async fn ready(&mut self, ids: &[u64]) {
        if let Err(reason) = self.are_ready(ids).await {
            panic!("nodes {ids:?} are not ready: {reason:?}");
        }
    }

    async fn until_ready(&mut self) -> Result<(), NotReady> {
        self.are_ready(&self.ids()).await
    }

    async fn are_ready(&mut self, ids: &[u64]) -> Result<(), NotReady> {
        let deadline = Instant::now() + PATIENCE;
        for id in ids {
            let node = self.node_mut(*id);
            loop {
                if let Some(status) = node.exited() {
                    return Err(NotReady::Exited(status.code().unwrap_or(-1)));
                }
                let answer = get(&node.http, "/readyz").await;
                match answer {
                    Ok((200, _)) => break,
                    _ if Instant::now() < deadline => sleep(AGAIN).await,
                    other => return Err(NotReady::Slow(format!("node {id}: {other:?}"))),
                }
            }
        }
        Ok(())
    }

    // ---- what nodes say ----

    pub async fn status(&self, id: u64) -> v1::StatusResponse {
        let client = self.at(id);
        eventually(&format!("status of node {id}"), async || text(client.status().await)).await
    }

    /// The node that leads: itself and every other running node says so. Nodes in `without` are
    /// neither asked nor accepted.
    pub async fn leader_without(&self, without: &[u64]) -> u64 {
        let asked: Vec<(u64, Client)> = self
            .running()
            .filter(|node| !without.contains(&node.id))
            .map(|node| (node.id, node.at().with_timeout(Duration::from_secs(2))))
            .collect();
        eventually("a leader that all agree on", async || {
            let mut views = BTreeMap::new();
            for (id, client) in &asked {
                let status = text(client.status().await)?;
                views.insert(*id, (status.leader_id, status.term));
            }
            let view = *views.values().next().ok_or("no node runs")?;
            let agreed = views.values().all(|other| *other == view);
            let leader = view.0;
            match agreed && views.contains_key(&leader) {
                true => Ok(leader),
                false => Err(format!("{views:?}")),
            }
        })
        .await
    }

    pub async fn leader(&self) -> u64 {
        self.leader_without(&[]).await
    }

    /// Running nodes that do not lead.
    pub async fn followers(&self) -> Vec<u64> {
        let leader = self.leader().await;
        self.running().map(|node| node.id).filter(|id| *id != leader).collect()
    }

    /// Makes this node lead.
    pub async fn lead(&self, id: u64) {
        let client = self.client();
        eventually("the transfer of leadership", async || {
            let answer = text(client.transfer_leader(Some(id)).await)?;
            match answer.leader_id == id && self.leader().await == id {
                true => Ok(()),
                false => Err(format!("{answer:?}")),
            }
        })
        .await;
    }

    /// Waits until all running nodes have applied the same and says how far; fails when they then do
    /// not hold the same.
    pub async fn same_digest(&self) -> v1::DigestResponse {
        let clients: Vec<Client> = self.running().map(Node::at).collect();
        let digests = eventually("all nodes at one applied index", async || {
            let mut digests = Vec::new();
            for client in &clients {
                let mut digest = text(client.digest().await)?;
                digest.header = None;
                digests.push(digest);
            }
            let same = digests.iter().all(|one| one.applied_index == digests[0].applied_index);
            if same { Ok(digests) } else { Err(format!("{digests:?}")) }
        })
        .await;
        assert!(digests.iter().all(|one| *one == digests[0]), "replicas differ: {digests:?}");
        digests.into_iter().next().unwrap()
    }

    /// All instances of a service by id, by a linearizable read through one node.
    pub async fn instances(&self, through: u64, service: &str) -> BTreeMap<String, v1::Instance> {
        let client = self.at(through);
        let answer = eventually(&format!("the instances of {service}"), async || {
            let service = service.to_owned();
            let request = v1::ListInstancesRequest { service, ..Default::default() };
            text(client.list_instances(request).await)
        })
        .await;
        let header = answer.header.unwrap();
        assert_eq!(header.consistency(), v1::Consistency::Linearizable);
        assert_eq!(header.node_id, through);
        answer.instances.into_iter().map(|instance| (instance.id.clone(), instance)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        for node in self.nodes.values_mut() {
            node.kill();
            let log = node.log_text();
            if failed {
                let lines: Vec<&str> = log.lines().collect();
                let from = lines.len().saturating_sub(LOG_LINES);
                eprintln!("---- node {}, end of its log:\n{}", node.id, lines[from..].join("\n"));
            } else {
                let panicked =
                    log.lines().find(|line| line.contains("panicked") || line.contains("panic;"));
                assert!(panicked.is_none(), "node {} panicked: {panicked:?}", node.id);
            }
        }
    }
}

/// A client that gives a call long enough for an election on a busy machine.
pub fn client<I>(endpoints: I) -> Client
where
    I: IntoIterator,
    I::Item: AsRef<str>,
{
    let endpoints = endpoints.into_iter().map(|endpoint| endpoint.as_ref().to_owned());
    let mut options = Options::new(endpoints.collect::<Vec<_>>());
    options.call_timeout = PATIENCE;
    Client::connect(options).unwrap()
}

/// A connection for bare calls of the generated clients.
pub async fn channel(address: &str) -> tonic::transport::Channel {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{address}")).unwrap();
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    eventually(address, async || endpoint.connect().await.map_err(|error| error.to_string())).await
}

/// An instance with one endpoint.
pub fn instance(service: &str, id: &str) -> v1::Instance {
    v1::Instance {
        service: service.to_owned(),
        id: id.to_owned(),
        endpoints: vec![v1::Endpoint { name: "grpc".into(), host: "10.0.0.1".into(), port: 8080 }],
        ..Default::default()
    }
}

/// Names of one instance in requests.
pub fn get_instance(service: &str, id: &str) -> v1::GetInstanceRequest {
    v1::GetInstanceRequest { service: service.into(), id: id.into(), ..Default::default() }
}

/// The binary, untouched by the surroundings' options.
fn command() -> Command {
    let mut command = Command::new(BINARY);
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("QUORATE_") {
            command.env_remove(variable);
        }
    }
    command
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Printed {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A command line that has not been run.
pub fn quorate<I>(arguments: I) -> tokio::process::Command
where
    I: IntoIterator,
    I::Item: AsRef<std::ffi::OsStr>,
{
    let mut command = tokio::process::Command::from(command());
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// Runs a command line to its end.
pub async fn printed<I>(arguments: I) -> Printed
where
    I: IntoIterator,
    I::Item: AsRef<std::ffi::OsStr>,
{
    let mut command = quorate(arguments);
    let output = timeout(PATIENCE, command.output());
    let output = output.await.unwrap_or_else(|_| panic!("{command:?} does not end")).unwrap();
    Printed {
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Sends a signal to a process.
pub fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// HTTP GET: status and body.
pub async fn get(address: &str, path: &str) -> io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer: String = timeout(Duration::from_secs(10), exchange)
        .await
        .unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut)))?;
    let malformed = || io::Error::new(io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((status, body.to_owned()))
}

/// Flips every bit of some bytes of a file.
pub fn flip(path: &Path, at: u64, count: usize) {
    use std::os::unix::fs::FileExt as _;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; count];
    file.read_exact_at(&mut bytes, at).unwrap();
    for byte in &mut bytes {
        *byte = !*byte;
    }
    file.write_all_at(&bytes, at).unwrap();
    file.sync_all().unwrap();
}
