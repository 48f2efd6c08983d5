//! Election safety: whoever leads has the votes of a quorum, on their disks; and only a leader makes entries.
//! Consensus tells leaders apart by term and node, so two may lead in one term, one after the other.

use std::collections::BTreeSet;

use quorate::raft::types::{LogId, NodeId};

use super::Oracle;

#[derive(Debug, Default)]
pub struct Elections {
    /// Term and node of whoever has led, from its first entry on.
    pub leaders: BTreeSet<(u64, NodeId)>,
}

impl Oracle {
    /// A node appends an entry: the first of a leader tells that it leads.
    pub fn leader_is_elected(&mut self, node: NodeId, log_id: &LogId) {
        let (term, id) = (log_id.leader_id.term, log_id.leader_id.node_id);
        // The first members are nobody's entry.
        if term == 0 || !self.elections.leaders.insert((term, id)) {
            return;
        }
        if id != node {
            self.violated(format!(
                "node {node} appends {log_id:?}, and node {id} has made no entry in that term"
            ));
        }
        let voted = self.disks.nodes.values().filter(|disk| {
            let vote = disk.synced.vote.map(|vote| (vote.leader_id.term, vote.leader_id.node_id));
            vote >= Some((term, id))
        });
        let voted = voted.count();
        if !self.disks.is_quorum(voted) {
            self.violated(format!(
                "node {id} leads in term {term} with {voted} votes on disks: {:?}",
                self.disks
                    .nodes
                    .iter()
                    .map(|(id, disk)| (id, disk.synced.vote))
                    .collect::<Vec<_>>()
            ));
        }
        let one = (term, 0)..=(term, NodeId::MAX);
        self.counts.shared_terms += u64::from(self.elections.leaders.range(one).count() > 1);
        self.leader_has_everything(node, log_id);
    }
}
