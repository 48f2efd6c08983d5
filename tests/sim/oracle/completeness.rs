//! Leader completeness: whoever comes to lead has every entry that was committed before. With log matching it
//! is enough to look at the last of them.

use quorate::raft::types::{LogId, NodeId};

use super::Oracle;

impl Oracle {
    /// A node appends its first entry as a leader.
    pub fn leader_has_everything(&mut self, node: NodeId, log_id: &LogId) {
        // One that was elected long ago and paused since then does not know what later ones have committed.
        let own = (log_id.leader_id.term, log_id.leader_id.node_id);
        if self.elections.leaders.last() != Some(&own) {
            return;
        }
        let Some((index, term, leader)) = self.replicas.last() else { return };
        let log = &self.disks.nodes[&node].asked;
        let found = log.at(index).map(|found| (found.leader_id.term, found.leader_id.node_id));
        let purged = log.purged.is_some_and(|purged| purged.index > index);
        if found != Some((term, leader)) && !purged {
            self.violated(format!(
                "node {node} comes to lead with {log_id:?}; entry {index} of node {leader} in term \
                 {term} was applied before, and it has {found:?} there"
            ));
        }
    }
}
