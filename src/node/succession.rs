//! Who follows a leader whose process has ended. openraft gives a silent leader its lease, the longest election
//! timeout, and a random election timeout on top, for silence may be a pause, load or the network. Where a process
//! has ended its machine refuses connections. Its voters ask for the lead as soon as the lease is over then, one
//! after the other so that none overtakes another that has just won. They ask by a pre-vote, which whoever still hears a
//! leader refuses: where a refusal meant something else no term begins. What fails is left to openraft's own timeouts.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;

use super::{Leadership, Node};
use crate::raft::types::NodeId;
use crate::runtime::{self, Instant};

/// The leader that this voter follows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Followed {
    term: u64,
    leader: NodeId,
    address: String,
    heard: Instant,
    /// How many voters ask for the lead before this one.
    before: u32,
}

/// Runs as long as the node's other loops.
pub async fn run(node: Node) {
    let heartbeat = Duration::from_millis(node.0.config.heartbeat_ms);
    let lease = Duration::from_millis(node.0.config.election_max_ms);
    let mut told = None;
    loop {
        let Some(followed) = node.followed().await else {
            runtime::sleep(heartbeat).await;
            continue;
        };
        // The others may have heard the leader's last words a little later.
        let due = followed.heard + lease + heartbeat / 4 + heartbeat * followed.before;
        if Instant::now() < due {
            runtime::sleep_until(due).await;
            continue;
        }
        let (leader, term) = (followed.leader, followed.term);
        // Meanwhile it may have been heard again, or this node may have voted for another.
        if node.peers().refuses(leader, &followed.address, lease).await
            && node.followed().await == Some(followed)
        {
            if told.replace((leader, term)) != Some((leader, term)) {
                tracing::info!(leader, term, "the leader's machine refuses: asking for the lead");
            }
            if node.raft().trigger().elect(true).await.is_err() {
                return;
            }
        }
        runtime::sleep(lease).await;
    }
}

impl Node {
    /// None as well when this node had better not lead.
    async fn followed(&self) -> Option<Followed> {
        if self.is_low_on_disk() || self.rebuilds() || self.0.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let Leadership::Follower { term, leader, address } = self.leadership() else { return None };
        let heard = self.raft_state(move |state| {
            let vote = state.vote_ref();
            let follows = vote.committed && vote.leader_id.term == term;
            state.vote_last_modified().filter(|_| follows && vote.leader_id.node_id == leader)
        });
        let heard = heard.await.flatten()?.0;
        let metrics = self.raft().server_metrics();
        let metrics = metrics.borrow_watched();
        let voters = metrics.membership_config.voter_ids().collect::<Vec<_>>();
        // From the highest id on: of two votes in one term the higher id's is the greater.
        let mut others = voters.iter().rev().filter(|id| **id != leader);
        let before = others.position(|id| *id == self.id())?.try_into().ok()?;
        Some(Followed { term, leader, address, heard, before })
    }
}
