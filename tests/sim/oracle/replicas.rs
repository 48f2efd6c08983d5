//! All nodes apply the same entries in the same order, with the same results, and what is committed
//! never changes: each applied index has one term, one proposer and one hash of all it did, on every
//! node and in every life; a state that comes from an image or a snapshot is the state at its index.

use std::collections::BTreeMap;

use quorate::raft::types::NodeId;
use quorate::state::{Applied, State};
use xxhash_rust::xxh3::Xxh3;

use super::Oracle;

#[derive(Debug, Default)]
pub struct Replicas {
    /// Entries that carry commands, by log index.
    entries: BTreeMap<u64, Entry>,
    /// Up to which index each node has applied, in its present life.
    applied: BTreeMap<NodeId, Option<u64>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    term: u64,
    leader: NodeId,
    hash: u64,
    /// Digest of the state after it, and the number of its records.
    digest: (u64, u64),
}

impl Replicas {
    /// Index, term and leader of the last entry with commands that was applied.
    pub fn last(&self) -> Option<(u64, u64, NodeId)> {
        let (index, entry) = self.entries.last_key_value()?;
        Some((*index, entry.term, entry.leader))
    }
}

/// All that an entry did, as one number.
pub fn hash(applied: &Applied) -> u64 {
    let mut hasher = Xxh3::new();
    let outcomes = bincode::serialize(&applied.outcomes).expect("outcomes have a serial form");
    hasher.update(&outcomes);
    for event in &applied.events {
        hasher.update(&event.revision.to_le_bytes());
        hasher.update(&event.at_ms.to_le_bytes());
        for change in &event.changes {
            hasher.update(&change.key.encode());
            match &change.record {
                Some(record) => hasher.update(&record.encode()),
                None => hasher.update(b"gone"),
            }
        }
    }
    hasher.update(&applied.meta.revision.to_le_bytes());
    hasher.update(&applied.meta.now_ms.to_le_bytes());
    hasher.digest()
}

impl Oracle {
    /// A node applied an entry with commands. Returns the sessions that ended now for the first time.
    pub fn applied(
        &mut self,
        node: NodeId,
        index: u64,
        term: u64,
        leader: NodeId,
        applied: &Applied,
    ) -> Vec<u64> {
        let hash = hash(applied);
        let before = self.replicas.applied.insert(node, Some(index)).flatten();
        let previous = self.replicas.entries.range(..index).next_back().map(|(index, _)| *index);
        if before >= Some(index) {
            self.violated(format!("node {node} applied entry {index} after {before:?}"));
        }
        if previous > before {
            self.violated(format!(
                "node {node} went from {before:?} to entry {index}; another one applied {previous:?}"
            ));
        }
        let mut ended = Vec::new();
        match self.replicas.entries.get(&index) {
            Some(entry) => {
                if (entry.term, entry.leader, entry.hash) != (term, leader, hash) {
                    let what = format!(
                        "node {node} applied entry {index} as {hash:016x} of node {leader} in term \
                         {term}; another one applied {entry:?}"
                    );
                    self.violated(what);
                }
            }
            None => {
                if let Some(last) = self.replicas.entries.keys().next_back()
                    && *last > index
                {
                    let what = format!(
                        "node {node} applied commands at {index}; another one went past it to {last}"
                    );
                    self.violated(what);
                }
                self.is_on_a_quorum(index, term, leader);
                let result = self.history.apply(applied, &mut ended);
                self.check(result);
                self.is_in_order(applied);
                let digest = self.history.digest();
                self.replicas.entries.insert(index, Entry { term, leader, hash, digest });
            }
        }
        ended
    }

    /// A node begins a life, or goes on after an installed snapshot, with this state.
    pub fn begins_with(&mut self, node: NodeId, index: Option<u64>, state: &State, how: &str) {
        self.replicas.applied.insert(node, index);
        let entry = index.and_then(|index| self.replicas.entries.range(..=index).next_back());
        let expected = match entry {
            Some((_, entry)) => entry.digest,
            None => State::default().digest(),
        };
        let found = state.digest();
        if found != expected {
            self.violated(format!(
                "node {node} has, from its {how}, another state at {index:?}: digest and records \
                 {found:?}, expected {expected:?}"
            ));
        }
    }

    /// At the end: all nodes have the state that was applied.
    pub fn ends_with(&mut self, node: NodeId, digest: u64, records: u64) {
        let expected = self.history.digest();
        if (digest, records) != expected {
            self.violated(format!(
                "node {node} ends with digest and records {:?}, expected {expected:?}",
                (digest, records)
            ));
        }
    }
}
