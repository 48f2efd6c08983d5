//! A cluster of real processes on this machine, and the ways to it.
//!
//! Nodes know each other by the addresses of proxies, and clients connect through links of their own, so that
//! any link can be cut. The harness itself calls the nodes directly.

pub mod callers;
pub mod connection;
pub mod links;
mod node;
mod pipe;
mod proxy;
pub mod route;

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::proto::v1;
use rustix::process::Signal;
use tokio::sync::watch;

use callers::Callers;
use connection::Connection;
use links::{Links, Party};
pub use node::{Node, Setup};
use proxy::{Proxy, Target, Visitors};
use route::Route;

/// How long the harness waits for one answer of a node.
const ADMIN: Duration = Duration::from_secs(1);

/// Where the nodes' directories are.
pub const DATA: &str = "data";

/// The place of a node for clients: a replaced node leaves it to its successor.
pub type Slot = usize;

/// A node and the ways to it.
#[derive(Debug)]
struct Member {
    node: Node,
    slot: Slot,
    admin: Connection,
    /// What its peers connect to.
    _peers: Proxy,
}

/// What a node did that none may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defect {
    /// As the history calls it: `exited`, without having been told to, or `believed` what is damaged.
    pub f: &'static str,
    pub node: u64,
    pub status: String,
}

#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    options: Vec<String>,
    links: Links,
    callers: Callers,
    members: BTreeMap<u64, Member>,
    /// Where clients find who is in each slot.
    slots: Vec<watch::Sender<Target>>,
    /// Where programs that use the client library do. Nodes advertise them as their own address.
    doors: Vec<Proxy>,
    /// Ids and ports are used once.
    next_id: u64,
    defects: Vec<Defect>,
    /// Nodes whose processes may end, and how they did.
    mortal: BTreeMap<u64, Option<String>>,
}

impl Cluster {
    /// Defines and starts that many nodes.
    pub async fn start(
        binary: &Path,
        dir: &Path,
        nodes: u64,
        options: &[String],
    ) -> io::Result<Cluster> {
        let mut cluster = Cluster {
            binary: binary.to_owned(),
            dir: dir.to_owned(),
            options: options.to_vec(),
            links: Links::default(),
            callers: Callers::default(),
            members: BTreeMap::new(),
            slots: Vec::new(),
            doors: Vec::new(),
            next_id: 1,
            defects: Vec::new(),
            mortal: BTreeMap::new(),
        };
        let mut defined = Vec::new();
        for _ in 0..nodes {
            defined.push(cluster.define().await?);
        }
        let members: Vec<String> =
            defined.iter().map(|(setup, _)| format!("{}={}", setup.id, setup.advertised)).collect();
        for (slot, (mut setup, peers)) in defined.into_iter().enumerate() {
            setup.options.extend(["--initial-cluster".to_owned(), members.join(",")]);
            let target = Target { party: Party::Node(setup.id), address: setup.client };
            let (sender, target) = watch::channel(target);
            let door = Proxy::start(Visitors::Clients, target, cluster.links.clone()).await?;
            cluster.slots.push(sender);
            cluster.doors.push(door);
            cluster.enter(slot, setup, peers)?;
        }
        for id in cluster.ids() {
            cluster.spawn(id)?;
        }
        Ok(cluster)
    }

    /// Addresses and directories of a new node, and the proxy before it.
    async fn define(&mut self) -> io::Result<(Setup, Proxy)> {
        let id = self.next_id;
        self.next_id += 1;
        let [client, peer, http] = free_addresses()?;
        // It stays there for good.
        let (_, target) = watch::channel(Target { party: Party::Node(id), address: peer });
        let visitors = Visitors::Peers(self.callers.clone());
        let peers = Proxy::start(visitors, target, self.links.clone()).await?;
        let setup = Setup {
            id,
            client,
            peer,
            http,
            advertised: peers.address,
            data: self.dir.join(DATA).join(format!("node-{id}")),
            log: self.dir.join(format!("node-{id}.log")),
            options: self.options.clone(),
        };
        std::fs::create_dir_all(self.dir.join(DATA))?;
        Ok((setup, peers))
    }

    fn enter(&mut self, slot: Slot, mut setup: Setup, peers: Proxy) -> io::Result<()> {
        let door = self.door(slot).to_string();
        setup.options.extend(["--advertise-client".to_owned(), door]);
        let admin = Connection::direct(setup.client, ADMIN).map_err(io::Error::other)?;
        let member = Member { node: Node::new(setup), slot, admin, _peers: peers };
        self.members.insert(member.node.id(), member);
        Ok(())
    }

    /// Defines and starts a node that waits to be added to the cluster.
    pub async fn join(&mut self, slot: Slot, through: u64) -> io::Result<u64> {
        let (mut setup, peers) = self.define().await?;
        let known = self.member(through).node.setup.advertised;
        setup.options.extend(["--join".to_owned(), known.to_string()]);
        let id = setup.id;
        self.enter(slot, setup, peers)?;
        self.spawn(id)?;
        Ok(id)
    }

    /// From now on clients of the slot reach this node.
    pub fn takes_slot(&self, id: u64) {
        let member = self.member(id);
        let address = member.node.setup.client;
        self.slots[member.slot].send_replace(Target { party: Party::Node(id), address });
    }

    /// Ends a node for good.
    pub fn forget(&mut self, id: u64) -> io::Result<()> {
        self.kill(id)?;
        self.members.remove(&id);
        Ok(())
    }

    // ---- processes ----

    pub fn spawn(&mut self, id: u64) -> io::Result<()> {
        let binary = self.binary.clone();
        let pid = self.member_mut(id).node.spawn(&binary)?;
        self.callers.add(pid, Party::Node(id));
        Ok(())
    }

    /// SIGKILL; how the process ended, None if it did not run. One that had ended by itself before is noted.
    pub fn kill(&mut self, id: u64) -> io::Result<Option<std::process::ExitStatus>> {
        let node = &mut self.member_mut(id).node;
        let pid = node.pid();
        let status = node.kill()?;
        if let Some(pid) = pid {
            self.callers.remove(pid);
        }
        if let Some(status) = status
            && status.signal() != Some(Signal::KILL.as_raw())
            && !self.mortal.contains_key(&id)
        {
            self.note_exit(id, status.to_string());
        }
        Ok(status)
    }

    pub fn signal(&self, id: u64, signal: Signal) -> io::Result<()> {
        self.member(id).node.signal(signal)
    }

    /// Looks for processes that ended by themselves, notes them and starts them again. Those that may end stay
    /// down.
    pub fn look_after(&mut self) -> io::Result<()> {
        for id in self.ids() {
            if self.mortal.contains_key(&id) {
                self.has_ended(id)?;
                continue;
            }
            if let Some(status) = self.member_mut(id).node.exited()? {
                self.note_exit(id, status.to_string());
                self.spawn(id)?;
            }
        }
        Ok(())
    }

    /// From now on the process may end by itself, because that was asked for; or not any more.
    pub fn expects_end(&mut self, id: u64, may: bool) {
        match may {
            true => self.mortal.insert(id, None),
            false => self.mortal.remove(&id),
        };
    }

    /// How a process that may end did; None if it did not.
    pub fn has_ended(&mut self, id: u64) -> io::Result<Option<String>> {
        if let Some(status) = self.ended(id)? {
            self.mortal.insert(id, Some(status.to_string()));
        }
        Ok(self.mortal.get(&id).cloned().flatten())
    }

    /// How a process that is expected to end did; None while it runs.
    pub fn ended(&mut self, id: u64) -> io::Result<Option<std::process::ExitStatus>> {
        self.member_mut(id).node.exited()
    }

    /// Notes how a process ended that should not have.
    pub fn note_exit(&mut self, node: u64, status: String) {
        self.defects.push(Defect { f: "exited", node, status });
    }

    /// Notes that a node works with what is certainly damaged.
    pub fn note_belief(&mut self, node: u64, what: String) {
        self.defects.push(Defect { f: "believed", node, status: what });
    }

    /// What was noted since this was asked before.
    pub fn take_defects(&mut self) -> Vec<Defect> {
        std::mem::take(&mut self.defects)
    }

    // ---- who is there ----

    pub fn links(&self) -> &Links {
        &self.links
    }

    pub fn ids(&self) -> Vec<u64> {
        self.members.keys().copied().collect()
    }

    pub fn node(&self, id: u64) -> &Node {
        &self.member(id).node
    }

    pub fn slot(&self, id: u64) -> Slot {
        self.member(id).slot
    }

    /// How clients reach the node of each slot.
    pub fn routes(&self) -> Vec<Route> {
        let route = |target: &watch::Sender<Target>| Route {
            target: target.subscribe(),
            links: self.links.clone(),
        };
        self.slots.iter().map(route).collect()
    }

    /// Where the client library reaches the node of a slot.
    pub fn door(&self, slot: Slot) -> SocketAddr {
        self.doors[slot].address
    }

    /// The same of all slots.
    pub fn doors(&self) -> Vec<SocketAddr> {
        self.doors.iter().map(|door| door.address).collect()
    }

    /// Calls of the harness to this node, which no link stops.
    pub fn admin(&self, id: u64) -> &Connection {
        &self.member(id).admin
    }

    /// Nodes whose processes run and are not stopped.
    pub fn awake(&self) -> Vec<u64> {
        let awake = |node: &Node| node.state().is_some_and(|state| state != 'T');
        let members = self.members.iter().filter(|(_, member)| awake(&member.node));
        members.map(|(id, _)| *id).collect()
    }

    /// The node that says it leads, with its term: the one of the greatest term if there are several.
    pub async fn leader(&self) -> Option<(u64, u64)> {
        let mut found: Option<(u64, u64)> = None;
        for id in self.awake() {
            let Ok(status) = self.admin(id).status(v1::StatusRequest {}).await else { continue };
            if status.leader_id == id && found.is_none_or(|(_, term)| status.term > term) {
                found = Some((id, status.term));
            }
        }
        found
    }

    fn member(&self, id: u64) -> &Member {
        self.members.get(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }

    fn member_mut(&mut self, id: u64) -> &mut Member {
        self.members.get_mut(&id).unwrap_or_else(|| panic!("there is no node {id}"))
    }
}

/// Three ports below those that the kernel gives to outgoing connections, so that nobody takes the port of a
/// node that is down for a while.
fn free_addresses() -> io::Result<[SocketAddr; 3]> {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    for _ in 0..COUNT {
        let count = NEXT.fetch_add(3, std::sync::atomic::Ordering::Relaxed);
        let from = FIRST + std::process::id().wrapping_mul(331).wrapping_add(count) % COUNT;
        let addresses =
            [0, 1, 2].map(|offset| SocketAddr::from((Ipv4Addr::LOCALHOST, (from + offset) as u16)));
        if addresses.iter().all(|address| TcpListener::bind(address).is_ok()) {
            return Ok(addresses);
        }
    }
    Err(io::Error::other("no free ports"))
}
