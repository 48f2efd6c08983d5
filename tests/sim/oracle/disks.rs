//! What a node's disk has acknowledged is there in its next life: its log and its vote are what was
//! acknowledged and, of what was under way, a first part or all.

use std::collections::BTreeMap;

use quorate::raft::codec;
use quorate::raft::types::{LogId, NodeId, Vote};
use quorate::store::wal::Write;

use super::Oracle;

/// The logs of all nodes, as those who write them know them.
#[derive(Debug, Default)]
pub struct Disks {
    pub nodes: BTreeMap<NodeId, DiskOfNode>,
}

#[derive(Debug, Default)]
pub struct DiskOfNode {
    /// With everything that consensus has asked for.
    pub asked: DiskLog,
    /// With everything that was synced.
    pub synced: DiskLog,
    /// What is being written and synced.
    under_way: Vec<Write>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskLog {
    pub vote: Option<Vote>,
    pub purged: Option<LogId>,
    /// Behind what is purged.
    pub entries: BTreeMap<u64, LogId>,
}

impl DiskLog {
    fn take(&mut self, write: &Write) {
        match write {
            Write::Vote(bytes) => {
                self.vote = Some(codec::decode_vote(bytes.clone()).expect("a vote"));
            }
            Write::Committed(_) => {}
            Write::Entry { index, payload } => {
                let entry = codec::decode_entry(payload.clone()).expect("an entry");
                self.entries.insert(*index, entry.log_id);
            }
            Write::TruncateAfter { last } => {
                self.entries.split_off(&last.map_or(0, |last| last + 1));
            }
            Write::Purged { index, log_id } => {
                self.entries = self.entries.split_off(&(index + 1));
                self.purged = Some(codec::decode_log_id(log_id.clone()).expect("a log id"));
            }
        }
    }

    /// The entry at an index, or what was purged last.
    pub fn at(&self, index: u64) -> Option<LogId> {
        let purged = self.purged.filter(|purged| purged.index == index);
        self.entries.get(&index).copied().or(purged)
    }

    /// The same vote and the same entries, of which `found` may have some more that are purged.
    fn is_found_in(&self, found: &DiskLog) -> bool {
        let first = self.purged.map_or(0, |purged| purged.index + 1);
        self.vote == found.vote && found.entries.range(first..).eq(self.entries.range(first..))
    }
}

impl Disks {
    /// So many nodes of those that there are.
    pub fn is_quorum(&self, count: usize) -> bool {
        count * 2 > self.nodes.len()
    }
}

impl Oracle {
    fn disk(&mut self, node: NodeId) -> &mut DiskOfNode {
        self.disks.nodes.entry(node).or_default()
    }

    /// Consensus asks a node's log for writes.
    pub fn writes_are_asked(&mut self, node: NodeId, writes: &[Write]) {
        for write in writes {
            if let Write::Entry { index: _, payload } = write {
                self.entry_is_appended(node, payload);
            }
            self.disk(node).asked.take(write);
        }
    }

    pub fn sync_begins(&mut self, node: NodeId, writes: impl Iterator<Item = Write>) {
        self.disk(node).under_way = writes.collect();
    }

    pub fn sync_ends(&mut self, node: NodeId) {
        let disk = self.disk(node);
        for write in std::mem::take(&mut disk.under_way) {
            disk.synced.take(&write);
        }
    }

    /// A node begins a life with this log.
    pub fn log_opens(&mut self, node: NodeId, found: DiskLog) {
        let disk = self.disk(node);
        let mut log = disk.synced.clone();
        let mut kept = log.is_found_in(&found);
        for write in std::mem::take(&mut disk.under_way) {
            log.take(&write);
            kept |= log.is_found_in(&found);
        }
        let before = std::mem::replace(&mut disk.synced, found.clone());
        disk.asked = found.clone();
        if !kept {
            let ends =
                |log: &DiskLog| (log.vote, log.purged, log.entries.values().next_back().copied());
            self.violated(format!(
                "node {node} has acknowledged a log with vote, purge and end {:?}, and finds {:?}",
                ends(&before),
                ends(&found)
            ));
        }
    }
}
