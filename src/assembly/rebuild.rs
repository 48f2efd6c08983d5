//! A start that finds the mark of `store::rebuild`: this node's state is wrong or lost, and nothing
//! else happens before it has that of another member. Its log and votes are its own and stay; so it
//! never votes as if it had less log.

use std::sync::Arc;

use super::{Error, Progress};
use crate::limits::{FETCH_AGAIN, FETCH_AGAIN_MAX};
use crate::raft::fetch::fetch;
use crate::raft::network::Peers;
use crate::runtime;
use crate::store::data_dir::DataDir;
use crate::store::disk::Disk;
use crate::store::rebuild::{Mark, path, replace_state};
use crate::store::recovery;
use crate::store::snapshot::{self, SnapshotMeta};

/// Puts another member's state in the place of this node's own. Waits for one that has it, however
/// long that takes. `first` is where the log begins, as for [`recovery::Recovery::covers`].
pub async fn run(
    mark: &Mark,
    dir: &DataDir,
    disk: &Arc<dyn Disk>,
    peers: &dyn Peers,
    first: Option<u64>,
    progress: &Progress,
) -> Result<(), Error> {
    tracing::warn!(?mark, "this node takes its state from another member");
    metrics::gauge!("quorate_rebuilding").set(1.0);
    let io = |source| Error::Io { what: "cleaning the snapshots' directory".to_owned(), source };
    snapshot::clean_tmp(&**disk).map_err(io)?;
    let received = obtain(mark, dir, disk, peers, first, progress).await;
    let (data_dir, disk) = (dir.path().to_owned(), disk.clone());
    let index = received.point.index;
    let report = runtime::blocking(move || replace_state(&data_dir, &*disk, &received)).await?;
    for sentence in report {
        tracing::warn!("{sentence}");
    }
    tracing::warn!(index, "the state of another member is in place");
    metrics::gauge!("quorate_rebuilding").set(0.0);
    Ok(())
}

/// Asks one member after the other until one has sent a state behind which the own log goes on.
async fn obtain(
    mark: &Mark,
    dir: &DataDir,
    disk: &Arc<dyn Disk>,
    peers: &dyn Peers,
    first: Option<u64>,
    progress: &Progress,
) -> SnapshotMeta {
    let mut said = String::new();
    let mut pause = FETCH_AGAIN;
    loop {
        let mut reasons = Vec::new();
        for (id, address) in &mark.sources {
            progress.say(format!("rebuilding: fetching the state from node {id}"));
            let fetched =
                fetch(peers, *id, address, mark.right, disk.clone(), dir.cluster_id()).await;
            match fetched {
                Ok(meta) => match recovery::covers(Some(meta.point.index), first) {
                    Ok(()) => return meta,
                    Err(why) => {
                        // Best effort: the next start removes it as well.
                        let _ = disk.remove(&meta.name);
                        reasons.push(format!("node {id}: {why}"));
                    }
                },
                Err(error) => reasons.push(format!("node {id}: {error}")),
            }
        }
        let now = format!(
            "rebuilding: no member has sent a state that fits, asking again; {}",
            reasons.join("; ")
        );
        progress.say(now.clone());
        if now != said {
            tracing::warn!("{now}");
            // A state that is lost is no alternative.
            if mark.right.is_some() {
                let mark = path(dir.path()).display().to_string();
                tracing::warn!(
                    mark,
                    "to go on with the own state, stop this node and remove its mark"
                );
            }
            said = now;
        }
        runtime::sleep(pause).await;
        pause = (2 * pause).min(FETCH_AGAIN_MAX);
    }
}
