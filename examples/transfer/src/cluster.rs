//! Three nodes of `quorate serve` as processes of this one.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::Failed;

const NODES: u16 = 3;
/// Of each node: for clients, for the other nodes, and for HTTP.
const PORTS: u16 = 3;

/// Ends with this process, however that ends.
#[derive(Debug)]
pub struct Cluster {
    binary: PathBuf,
    dir: PathBuf,
    first_port: u16,
    nodes: Vec<Option<Child>>,
}

impl Cluster {
    pub fn start(dir: &Path) -> Result<Cluster, Failed> {
        let binary = std::env::current_exe()?.with_file_name("quorate");
        if !binary.exists() {
            let binary = binary.display();
            return Err(format!("there is no {binary}: build it with `cargo build`").into());
        }
        let first_port = free_ports()?;
        let nodes = (0..NODES).map(|_| None).collect();
        let mut cluster = Cluster { binary, dir: dir.to_owned(), first_port, nodes };
        for id in 1..=NODES {
            cluster.spawn(id.into())?;
        }
        Ok(cluster)
    }

    /// Client addresses, separated by commas.
    pub fn endpoints(&self) -> String {
        let addresses: Vec<String> = (1..=NODES).map(|id| self.address(id, 0)).collect();
        addresses.join(",")
    }

    /// Starts a node, or starts it again.
    pub fn spawn(&mut self, id: u64) -> Result<(), Failed> {
        let number = u16::try_from(id)?;
        let peer = |id: u16| format!("{id}={}", self.address(id, 1));
        let members: Vec<String> = (1..=NODES).map(peer).collect();
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(format!("node-{id}.log")))?;
        let child = Command::new(&self.binary)
            .args(["serve", "--exit-with-parent", "--id", &id.to_string(), "--data-dir"])
            .arg(self.dir.join(format!("node-{id}")))
            .args(["--listen-client", &self.address(number, 0)])
            .args(["--listen-peer", &self.address(number, 1)])
            .args(["--listen-http", &self.address(number, 2)])
            .args(["--initial-cluster", &members.join(",")])
            // The end of this pipe stops the node.
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.nodes[usize::from(number) - 1] = Some(child);
        Ok(())
    }

    /// kill -9.
    pub fn kill(&mut self, id: u64) -> Result<(), Failed> {
        let node = self.nodes.get_mut(usize::try_from(id)?.wrapping_sub(1));
        if let Some(mut child) = node.and_then(Option::take) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn address(&self, id: u16, port: u16) -> String {
        format!("127.0.0.1:{}", self.first_port + (id - 1) * PORTS + port)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for id in 1..=NODES {
            let _ = self.kill(id.into());
        }
    }
}

/// Below those of outgoing connections: nobody takes the port of a node that is down for a while.
fn free_ports() -> Result<u16, Failed> {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 18_000;
    let all = NODES * PORTS;
    let start = std::process::id().wrapping_mul(97);
    (0..COUNT)
        .map(|i| (FIRST + start.wrapping_add(i * u32::from(all)) % COUNT) as u16)
        .find(|first| (0..all).all(|i| TcpListener::bind(("127.0.0.1", first + i)).is_ok()))
        .ok_or_else(|| "there are no free ports".into())
}
