//! Ballast: large writes beside those of the workload, so that the log changes its segments within a run.
//!
//! Nothing is asked of them: they go to instances that no workload looks at.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use quorate::limits;
use quorate::proto::v1;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};

use super::client::Phase;
use crate::cluster::Cluster;
use crate::workload::Ways;

const SERVICE: &str = "ballast";
const INSTANCES: u64 = 16;
/// Pairs of metadata, each as long as it may be, with room for the keys.
const PAIRS: usize = limits::METADATA_TOTAL_BYTES / limits::METADATA_VALUE_BYTES - 1;
const CALL_BYTES: u64 = (PAIRS * limits::METADATA_VALUE_BYTES) as u64;

/// Writes so many bytes a second, if the cluster takes them, one call after the other and each to the next node.
pub async fn load(rate: u64, ways: Ways, mut phase: watch::Receiver<Phase>) -> Result<(), String> {
    let mut due = interval(Duration::from_secs_f64(CALL_BYTES as f64 / rate as f64));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0.. {
        tokio::select! {
            _ = due.tick() => {}
            _ = phase.wait_for(|phase| *phase != Phase::Work) => break,
        }
        // Whether it takes place is all the same.
        let _ = ways.all[number as usize % ways.all.len()].register(call(number)).await;
    }
    Ok(())
}

/// Each changes the whole record.
fn call(number: u64) -> v1::RegisterRequest {
    let value = format!("{number:0>width$}", width = limits::METADATA_VALUE_BYTES);
    let metadata: BTreeMap<String, String> =
        (0..PAIRS).map(|pair| (format!("pair-{pair}"), value.clone())).collect();
    let instance = v1::Instance {
        service: SERVICE.to_owned(),
        id: format!("i{}", number % INSTANCES),
        metadata,
        endpoints: vec![v1::Endpoint {
            name: String::new(),
            host: "192.0.2.1".to_owned(),
            port: 1,
        }],
        ..Default::default()
    };
    instance.into()
}

/// The greatest number of a segment in the log of a node, whose numbers begin with 1 and are given out once.
pub fn segment(cluster: &Cluster, id: u64) -> Option<u64> {
    let names = fs::read_dir(cluster.node(id).setup.data.join("log")).ok()?;
    let number = |name: &str| name.strip_prefix("segment-")?.strip_suffix(".wal")?.parse().ok();
    names.filter_map(|entry| number(entry.ok()?.file_name().to_str()?)).max()
}
