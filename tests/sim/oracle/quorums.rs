//! What is committed is on the disks of a quorum: when the first node applies an entry, the logs of a quorum
//! hold it, synced.

use quorate::raft::types::NodeId;

use super::Oracle;

impl Oracle {
    /// An entry is applied for the first time.
    pub fn is_on_a_quorum(&mut self, index: u64, term: u64, leader: NodeId) {
        let holds = self.disks.nodes.values().filter(|disk| {
            let found = disk.synced.at(index);
            found.is_some_and(|it| (it.leader_id.term, it.leader_id.node_id) == (term, leader))
        });
        let holds = holds.count();
        if !self.disks.is_quorum(holds) {
            self.violated(format!(
                "entry {index} of node {leader} in term {term} is applied, and synced on {holds} \
                 of {} nodes",
                self.disks.nodes.len()
            ));
        }
    }
}
