//! After the faults: every node answers again, and all hold the same.

use std::time::Duration;

use quorate::proto::v1;
use tokio::time::{Instant, sleep};

use super::ballast;
use super::faults::entries;
use super::recorder::Recorder;
use crate::cluster::Cluster;
use crate::edn::Value;

/// A healthy cluster needs a second or two; a busy machine more.
pub const PATIENCE: Duration = Duration::from_secs(60);
const AGAIN: Duration = Duration::from_millis(100);

/// Waits until every node answers a linearizable read, and returns why not if one does not in time.
pub async fn answers(cluster: &Cluster) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    for id in cluster.ids() {
        loop {
            let consistency = v1::Consistency::Linearizable.into();
            let answer = cluster.admin(id).members(v1::MembersRequest { consistency }).await;
            match answer {
                Ok(_) => break,
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("node {id} does not answer within {PATIENCE:?}: {error}"));
                }
                Err(_) => sleep(AGAIN).await,
            }
        }
    }
    Ok(())
}

/// Writes down whether the cluster answers again, and how long that took.
pub async fn recovered(cluster: &Cluster, recorder: &Recorder) -> bool {
    let began = Instant::now();
    let answered = answers(cluster).await;
    let millis = Value::Int(began.elapsed().as_millis() as i64);
    match &answered {
        Ok(()) => recorder.nemesis("recovered", entries([("after-ms", millis)])),
        Err(why) => recorder.nemesis("unrecovered", entries([("why", Value::String(why.clone()))])),
    }
    answered.is_ok()
}

/// Writes down whether all nodes hold the same once they have applied the same.
pub async fn digests(cluster: &Cluster, recorder: &Recorder) {
    let deadline = Instant::now() + PATIENCE;
    let mut last = "no answer".to_owned();
    while Instant::now() < deadline {
        let mut digests = Vec::new();
        for id in cluster.ids() {
            if let Ok(digest) = cluster.admin(id).digest(v1::DigestRequest {}).await {
                digests.push((id, digest.applied_index, digest.digest));
            }
        }
        last = format!("{digests:?}");
        let all = digests.len() == cluster.ids().len();
        if all && digests.iter().all(|digest| digest.1 == digests[0].1) {
            let equal = digests.iter().all(|digest| digest.2 == digests[0].2);
            let told = [("equal", Value::Bool(equal)), ("digests", Value::String(last))];
            recorder.nemesis("digests", entries(told));
            return;
        }
        sleep(AGAIN).await;
    }
    let told = [("equal", Value::Bool(false)), ("never-at-one-index", Value::String(last))];
    recorder.nemesis("digests", entries(told));
}

/// Writes down how far each node's log, snapshot and purge have come, and what the proxies had to drop.
pub async fn statuses(cluster: &Cluster, recorder: &Recorder) {
    let strangers = Value::Int(cluster.links().strangers() as i64);
    recorder.nemesis("proxies", entries([("dropped", strangers)]));
    for id in cluster.ids() {
        let Ok(status) = cluster.admin(id).status(v1::StatusRequest {}).await else { continue };
        let int = |number: u64| Value::Int(number as i64);
        let errors = status.errors.iter().map(|error| Value::String(error.clone()));
        let told = [
            ("node", int(id)),
            ("term", int(status.term)),
            ("leader", int(status.leader_id)),
            ("applied", int(status.applied_index)),
            ("snapshot", int(status.snapshot_index)),
            ("purged", int(status.purged_index)),
            ("segment", ballast::segment(cluster, id).map_or(Value::Nil, int)),
            ("errors", Value::Vector(errors.collect())),
        ];
        recorder.nemesis("status", entries(told));
    }
}
