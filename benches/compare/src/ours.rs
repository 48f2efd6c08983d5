//! Three nodes of Quorate with its defaults; their load comes from `quorate bench`.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate::client::{Client, Options};
use quorate::proto::v1;
use quorate_jepsen::cluster::{Node, Setup};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::load::Figures;

const FIRST_PORT: u16 = 23_890;
const START: Duration = Duration::from_secs(60);

pub struct Ours {
    binary: PathBuf,
    nodes: Vec<Node>,
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn address(node: usize, port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], FIRST_PORT + 10 * node as u16 + port))
}

impl Ours {
    pub async fn start(binary: &Path, dir: &Path) -> Result<Ours, String> {
        let members: Vec<String> =
            (0..3).map(|node| format!("{}={}", node + 1, address(node, 1))).collect();
        let nodes = (0..3).map(|node| {
            Node::new(Setup {
                id: node as u64 + 1,
                client: address(node, 0),
                peer: address(node, 1),
                http: address(node, 2),
                advertised: address(node, 1),
                data: dir.join(format!("quorate-{node}")),
                log: dir.join(format!("quorate-{node}.log")),
                options: ["--initial-cluster".to_owned(), members.join(",")].into(),
            })
        });
        let mut ours = Ours { binary: binary.to_owned(), nodes: nodes.collect() };
        fs::create_dir_all(dir).map_err(said)?;
        for node in 0..3 {
            ours.spawn(node)?;
        }
        ours.ready().await?;
        Ok(ours)
    }

    pub fn spawn(&mut self, node: usize) -> Result<(), String> {
        self.nodes[node].spawn(&self.binary).map(|_| ()).map_err(said)
    }

    pub fn kill(&mut self, node: usize) -> Result<(), String> {
        self.nodes[node].kill().map(|_| ()).map_err(said)
    }

    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().filter_map(Node::pid).collect()
    }

    pub fn endpoints(&self) -> Vec<String> {
        (0..3).map(|node| address(node, 0).to_string()).collect()
    }

    pub fn client(&self) -> Result<Client, String> {
        Client::connect(Options::new(self.endpoints())).map_err(said)
    }

    /// Waits until every node serves reads.
    pub async fn ready(&self) -> Result<(), String> {
        let give_up = Instant::now() + START;
        let client = self.client()?.with_timeout(Duration::from_secs(2));
        for endpoint in self.endpoints() {
            let node = client.at(&endpoint).map_err(said)?;
            let request = || v1::GetInstanceRequest {
                service: "ready".to_owned(),
                id: "ready".to_owned(),
                ..Default::default()
            };
            // That there is no such instance is an answer.
            while let Err(error) = node.get_instance(request()).await {
                if matches!(error, quorate::error::Error::NotFound { .. }) {
                    break;
                }
                if Instant::now() > give_up {
                    return Err(format!("{endpoint} does not serve within {START:?}: {error}"));
                }
                sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    /// The place of the node that leads.
    pub async fn leader(&self) -> Result<usize, String> {
        let give_up = Instant::now() + START;
        loop {
            let client = self.client()?.with_timeout(Duration::from_secs(1));
            for place in (0..3).filter(|place| self.nodes[*place].pid().is_some()) {
                let node = client.at(&address(place, 0).to_string()).map_err(said)?;
                // Whoever leads says so itself.
                if matches!(node.status().await, Ok(status) if status.leader_id == place as u64 + 1)
                {
                    return Ok(place);
                }
            }
            if Instant::now() > give_up {
                return Err(format!("there is no leader within {START:?}"));
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Has each node write all that it has applied to its image.
    pub async fn write_images(&self) -> Result<(), String> {
        let client = self.client()?.with_timeout(START);
        for endpoint in self.endpoints() {
            let node = client.at(&endpoint).map_err(said)?;
            node.snapshot(&mut tokio::io::sink()).await.map_err(said)?;
        }
        Ok(())
    }

    /// What `quorate bench` says.
    pub async fn bench(&self, arguments: &[&str]) -> Result<Value, String> {
        let pids: Vec<String> = self.pids().iter().map(u32::to_string).collect();
        let output = Command::new(&self.binary)
            .args(["--endpoints", &self.endpoints().join(","), "-w", "json", "bench"])
            .args(arguments)
            .args(["--pids", &pids.join(",")])
            .output()
            .await
            .map_err(said)?;
        if !output.status.success() {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!("quorate bench {}: {errors}", arguments.join(" ")));
        }
        serde_json::from_slice(&output.stdout).map_err(said)
    }

    /// The figures of one kind of call.
    pub async fn figures(&self, call: &str, arguments: &[&str]) -> Result<Figures, String> {
        let report = self.bench(arguments).await?;
        let number = |value: &Value| value.as_f64().unwrap_or(0.0);
        let calls = &report["calls"][call];
        let servers = report["server_cpu"].as_array().into_iter().flatten();
        Ok(Figures {
            per_second: number(&calls["ops_per_second"]),
            p50_ms: number(&calls["p50_us"]) / 1e3,
            p99_ms: number(&calls["p99_us"]) / 1e3,
            max_ms: number(&calls["max_us"]) / 1e3,
            errors: report["errors"].as_u64().unwrap_or(0),
            client_us: number(&report["client_cpu_us_per_op"]),
            servers_us: servers.map(|server| number(&server["us_per_op"])).sum(),
        })
    }
}
