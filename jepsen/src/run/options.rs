//! What a run is made of.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum as _;

use crate::nemesis::{self, KINDS};
use crate::workload;

#[derive(Debug, Clone)]
pub struct Options {
    pub workload: workload::Kind,
    pub nemesis: Vec<nemesis::Kind>,
    pub nodes: usize,
    pub seconds: u64,
    pub seed: u64,
    /// Where the run leaves what it leaves; made by it.
    pub dir: PathBuf,
    /// The binary under test.
    pub binary: PathBuf,
    pub clients: usize,
    /// Operations that all clients together begin in a second, if nothing holds them up.
    pub rate: f64,
    /// Bytes per second that are written beside what the clients do.
    pub ballast: u64,
    /// How long a client waits for an answer.
    pub patience: Duration,
    /// Registers are read without asking for linearizability: a run that must come out false.
    pub stale_reads: bool,
}

/// So low that snapshots, purges and comparisons of replicas happen in seconds.
const SNAPSHOT_ENTRIES: u64 = 200;
const DIGEST_ENTRIES: u64 = 100;

impl Options {
    /// What nodes are started with.
    pub fn node_options(&self) -> Vec<String> {
        let options =
            [("--snapshot-entries", SNAPSHOT_ENTRIES), ("--digest-entries", DIGEST_ENTRIES)];
        options.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]).collect()
    }
}

/// Kinds of faults by their names: `all`, `none`, or some, each once.
pub fn nemeses(names: &[String]) -> Result<Vec<nemesis::Kind>, String> {
    let mut kinds = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => kinds.extend(KINDS),
            "none" => {}
            name => kinds.push(nemesis::Kind::from_str(name, false)?),
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    Ok(kinds)
}

/// Workloads by their names: `all`, or some, each once.
pub fn workloads(names: &[String]) -> Result<Vec<workload::Kind>, String> {
    let mut kinds = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => kinds.extend(workload::KINDS),
            name => kinds.push(workload::Kind::from_str(name, false)?),
        }
    }
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() { Err("no workload is named".to_owned()) } else { Ok(kinds) }
}
