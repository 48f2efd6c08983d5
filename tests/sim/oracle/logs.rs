//! Log matching: when two logs hold an entry of the same leader at the same index, it is the same entry, and
//! what is before it is the same as well. By induction it is enough to look one entry back.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::raft::codec;
use quorate::raft::types::{LeaderId, LogId, NodeId};
use xxhash_rust::xxh3::xxh3_64;

use super::Oracle;

#[derive(Debug, Default)]
pub struct Logs {
    /// By index, and term and node of the leader: a hash of the entry, and who made the one before it.
    known: BTreeMap<(u64, u64, NodeId), (u64, Option<LeaderId>)>,
}

impl Oracle {
    /// A node appends an entry to its log.
    pub fn entry_is_appended(&mut self, node: NodeId, payload: &Bytes) {
        let entry = codec::decode_entry(payload.clone()).expect("consensus writes entries");
        let LogId { index, leader_id } = entry.log_id;
        let disk = self.disks.nodes.get(&node);
        let before = index.checked_sub(1).and_then(|before| disk?.asked.at(before));
        let now = (xxh3_64(payload), before.map(|before| before.leader_id));
        let place = (index, leader_id.term, leader_id.node_id);
        let first = *self.logs.known.entry(place).or_insert(now);
        if first != now {
            self.violated(format!(
                "node {node} appends at {index} an entry of {leader_id:?} with hash and leader before \
                 it {now:x?}; elsewhere these were {first:x?}"
            ));
        }
        self.leader_is_elected(node, &entry.log_id);
    }
}
