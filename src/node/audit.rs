//! Do the replicas hold the same? Every node computes a digest of its state at the same applied
//! indexes; the leader compares them. A mismatch means that a state machine was not deterministic or
//! that memory or disk lied: an alarm, until a later index agrees again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Leadership, Node, PEER_TIMEOUT};
use crate::raft::codec;
use crate::raft::network::Method;
use crate::raft::types::NodeId;
use crate::runtime;

/// How often the leader asks its followers.
const INTERVAL: Duration = Duration::from_secs(5);

/// Index, digest, number of records.
pub type Row = (u64, u64, u64);

/// Nodes whose digest differs from what most hold at the newest index that all of `rows` share with
/// the leader; when there is no majority, everybody who differs from the leader.
pub fn odd_ones(leader: NodeId, rows: &BTreeMap<NodeId, Vec<Row>>) -> Option<(u64, Vec<NodeId>)> {
    let own = rows.get(&leader)?;
    let (index, held) = own.iter().rev().find_map(|(index, ..)| {
        let held: BTreeMap<NodeId, Row> = rows
            .iter()
            .filter_map(|(id, rows)| {
                rows.iter().find(|(at, ..)| at == index).map(|row| (*id, *row))
            })
            .collect();
        (held.len() > 1).then_some((*index, held))
    })?;
    let mut votes: BTreeMap<Row, usize> = BTreeMap::new();
    for row in held.values() {
        *votes.entry(*row).or_default() += 1;
    }
    let most = votes.iter().find(|(_, count)| **count * 2 > held.len()).map(|(row, _)| *row);
    let right = most.or_else(|| held.get(&leader).copied())?;
    let odd = held.iter().filter(|(_, row)| **row != right).map(|(id, _)| *id).collect();
    Some((index, odd))
}

/// Compares until the node is dropped.
pub async fn run(node: Node) {
    loop {
        runtime::sleep(INTERVAL).await;
        let Leadership::Leader { .. } = node.leadership() else {
            node.set_alarms(BTreeSet::new());
            continue;
        };
        let mut rows = BTreeMap::from([(node.id(), node.digests())]);
        for member in node.members() {
            if member.id == node.id() {
                continue;
            }
            let call = node.peers().call(
                member.id,
                &member.peer_address,
                Method::Digest,
                Bytes::new(),
                PEER_TIMEOUT,
            );
            if let Ok(Ok(answer)) = runtime::timeout(PEER_TIMEOUT, call).await
                && let Ok(theirs) = codec::from_bytes("digests", &answer)
            {
                rows.insert(member.id, theirs);
            }
        }
        let Some((index, odd)) = odd_ones(node.id(), &rows) else { continue };
        for id in &odd {
            tracing::error!(
                node = id,
                index,
                "the state of a node differs from that of the others"
            );
        }
        let alarm = |id| format!("CORRUPT: the state of node {id} differs at index {index}");
        node.set_alarms(odd.into_iter().map(alarm).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(NodeId, &[Row])]) -> BTreeMap<NodeId, Vec<Row>> {
        rows.iter().map(|(id, rows)| (*id, rows.to_vec())).collect()
    }

    #[test]
    fn the_minority_is_odd_even_when_it_leads() {
        let held = rows(&[
            (1, &[(10, 7, 3), (20, 8, 3)]),
            (2, &[(20, 9, 3), (30, 1, 3)]),
            (3, &[(10, 7, 3), (20, 9, 3)]),
        ]);
        assert_eq!(odd_ones(1, &held), Some((20, vec![1])));
        assert_eq!(odd_ones(2, &held), Some((20, vec![1])));
    }

    #[test]
    fn two_that_differ_point_at_the_follower_and_nothing_in_common_says_nothing() {
        let held = rows(&[(1, &[(10, 7, 3)]), (2, &[(10, 8, 3)])]);
        assert_eq!(odd_ones(1, &held), Some((10, vec![2])));
        let held = rows(&[(1, &[(10, 7, 3)]), (2, &[(20, 8, 3)])]);
        assert_eq!(odd_ones(1, &held), None);
        let held = rows(&[(1, &[(10, 7, 3)]), (2, &[(10, 7, 3)])]);
        assert_eq!(odd_ones(1, &held), Some((10, vec![])));
    }
}
