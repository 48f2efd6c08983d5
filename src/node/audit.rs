//! Do the replicas hold the same? Every node computes a digest of its state at the same applied
//! indexes; the leader compares them. A mismatch means that a state machine was not deterministic or
//! that memory or disk lied: an alarm, until a later index agrees again. Where most voters agree, the
//! odd node is told to take their state; a leader that is odd itself lets another one lead, which
//! then finds the same.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Leadership, MemberStatus, Node, PEER_TIMEOUT};
use crate::limits::AUDIT_INTERVAL;
use crate::raft::codec;
use crate::raft::network::Method;
use crate::raft::types::NodeId;
use crate::runtime;
use crate::store::checkpoint::Digest;
use crate::store::rebuild::Mark;

/// The digests of each node that answered, oldest first.
type Rows = BTreeMap<NodeId, Vec<Digest>>;

/// What is wrong with a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Most voters, `by`, hold `right`, and it does not.
    Odd { right: Digest, by: BTreeSet<NodeId> },
    /// Nodes differ at an index, and no majority of the voters says who is right.
    Undecided { index: u64, nodes: BTreeSet<NodeId> },
}

/// Judges every node at the newest index that says something about it. A majority is one of all
/// voters, of which those that do not answer agree with nobody: so two majorities never contradict
/// each other, and the cluster has a quorum without the node that is found odd.
pub fn judge(voters: &BTreeSet<NodeId>, rows: &Rows) -> BTreeMap<NodeId, Verdict> {
    let mut verdicts = BTreeMap::new();
    for (node, own) in rows {
        for row in own.iter().rev() {
            let at = |rows: &Vec<Digest>| rows.iter().find(|at| at.index == row.index).copied();
            let held: BTreeMap<NodeId, Digest> =
                rows.iter().filter_map(|(id, rows)| at(rows).map(|row| (*id, row))).collect();
            let mut agreed: BTreeMap<Digest, BTreeSet<NodeId>> = BTreeMap::new();
            for (id, row) in held.iter().filter(|(id, _)| voters.contains(id)) {
                agreed.entry(*row).or_default().insert(*id);
            }
            let most = agreed.into_iter().find(|(_, by)| by.len() * 2 > voters.len());
            match most {
                Some((right, _)) if right == *row => break,
                Some((right, by)) => {
                    verdicts.insert(*node, Verdict::Odd { right, by });
                    break;
                }
                None if held.values().any(|other| other != row) => {
                    let nodes = held.into_keys().collect();
                    verdicts.insert(*node, Verdict::Undecided { index: row.index, nodes });
                    break;
                }
                // Nobody contradicts it, too few confirm it: an older index may say more.
                None => {}
            }
        }
    }
    verdicts
}

/// Compares until the node is dropped.
pub async fn run(node: Node) {
    let mut alarms = BTreeMap::new();
    loop {
        runtime::sleep(AUDIT_INTERVAL).await;
        let Leadership::Leader { .. } = node.leadership() else {
            alarms.clear();
            node.set_alarms(&alarms);
            continue;
        };
        let members = node.members();
        let rows = ask_all(&node, &members).await;
        let voters = members.iter().filter(|member| !member.learner);
        let mut verdicts = judge(&voters.map(|member| member.id).collect(), &rows);
        let before = alarms.clone();
        // A node that does not answer, because it is being rebuilt for one, is what it was.
        alarms.retain(|id, _| {
            members.iter().any(|member| member.id == *id) && !rows.contains_key(id)
        });
        // The leader last: the others are told before it is none any more.
        let own = verdicts.remove_entry(&node.id());
        for (id, verdict) in verdicts.into_iter().chain(own) {
            let alarm = act(&node, &members, id, verdict).await;
            if before.get(&id) != Some(&alarm) {
                tracing::error!(node = id, "{alarm}");
            }
            alarms.insert(id, alarm);
            node.set_alarms(&alarms);
        }
        node.set_alarms(&alarms);
    }
}

async fn ask_all(node: &Node, members: &[MemberStatus]) -> Rows {
    let mut rows = BTreeMap::from([(node.id(), node.digests())]);
    for member in members.iter().filter(|member| member.id != node.id()) {
        if let Some(answer) = ask(node, member, Method::Digest, Bytes::new()).await
            && let Ok(theirs) = codec::from_bytes("digests", &answer)
        {
            rows.insert(member.id, theirs);
        }
    }
    rows
}

async fn ask(node: &Node, member: &MemberStatus, method: Method, payload: Bytes) -> Option<Bytes> {
    let call = node.peers().call(member.id, &member.peer_address, method, payload, PEER_TIMEOUT);
    runtime::timeout(PEER_TIMEOUT, call).await.ok()?.ok()
}

/// Sees to it that an odd node is rebuilt, and says how it stands with it.
async fn act(node: &Node, members: &[MemberStatus], id: NodeId, verdict: Verdict) -> String {
    let (right, by) = match verdict {
        Verdict::Undecided { index, nodes } => {
            return format!(
                "CORRUPT: the states of nodes {nodes:?} differ at index {index}, and no majority \
                 says which is right"
            );
        }
        Verdict::Odd { right, by } => (right, by),
    };
    let odd = format!("CORRUPT: the state of node {id} differs at index {}", right.index);
    if id == node.id() {
        return match node.hand_over_to(&by).await {
            Ok(to) => format!("{odd}; it has let node {to} lead, which tells it to rebuild"),
            Err(error) => format!("{odd}; it leads, and nobody takes over: {error}"),
        };
    }
    let sources = members.iter().filter(|member| by.contains(&member.id));
    let sources = sources.map(|member| (member.id, member.peer_address.clone())).collect();
    let Some(member) = members.iter().find(|member| member.id == id) else { return odd };
    let payload = codec::to_bytes(&Mark { right: Some(right), sources, applied: None });
    let Some(answer) = ask(node, member, Method::Rebuild, payload).await else {
        return format!("{odd}; it does not answer");
    };
    let answer: Result<Result<(), String>, _> = codec::from_bytes("rebuild answer", &answer);
    match answer {
        Ok(Ok(())) => format!("{odd}; it is being rebuilt"),
        Ok(Err(why)) => format!("{odd}; it is not rebuilt: {why}"),
        Err(error) => format!("{odd}; it is not rebuilt: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[(NodeId, &[(u64, u64)])]) -> Rows {
        let row =
            |(index, digest): &(u64, u64)| Digest { index: *index, digest: *digest, records: 3 };
        rows.iter().map(|(id, rows)| (*id, rows.iter().map(row).collect())).collect()
    }

    fn voters(count: u64) -> BTreeSet<NodeId> {
        (1..=count).collect()
    }

    fn odd(index: u64, digest: u64, by: &[NodeId]) -> Verdict {
        let right = Digest { index, digest, records: 3 };
        Verdict::Odd { right, by: by.iter().copied().collect() }
    }

    fn undecided(index: u64, nodes: &[NodeId]) -> Verdict {
        Verdict::Undecided { index, nodes: nodes.iter().copied().collect() }
    }

    #[test]
    fn the_minority_is_odd() {
        let held =
            rows(&[(1, &[(10, 7), (20, 8)]), (2, &[(20, 9), (30, 1)]), (3, &[(10, 7), (20, 9)])]);
        let found = judge(&voters(3), &held);
        assert_eq!(found, BTreeMap::from([(1, odd(20, 9, &[2, 3]))]));
    }

    /// The newest index that decides counts: one that only some have reached does not hide what an
    /// older one says, and one at which a node agrees again clears it.
    #[test]
    fn each_node_is_judged_at_its_newest_index() {
        let held = rows(&[(1, &[(10, 7), (20, 8)]), (2, &[(10, 7), (20, 8)]), (3, &[(10, 6)])]);
        assert_eq!(judge(&voters(3), &held), BTreeMap::from([(3, odd(10, 7, &[1, 2]))]));
        let held =
            rows(&[(1, &[(10, 7), (20, 8)]), (2, &[(10, 7), (20, 8)]), (3, &[(10, 6), (20, 8)])]);
        assert_eq!(judge(&voters(3), &held), BTreeMap::new());
        // Two have gone on; nobody contradicts them there.
        let held = rows(&[(1, &[(10, 7), (30, 1)]), (2, &[(10, 7)]), (3, &[(10, 6), (20, 2)])]);
        assert_eq!(judge(&voters(3), &held), BTreeMap::from([(3, odd(10, 7, &[1, 2]))]));
    }

    #[test]
    fn a_tie_accuses_nobody() {
        let held = rows(&[(1, &[(10, 7)]), (2, &[(10, 8)])]);
        let tie = undecided(10, &[1, 2]);
        assert_eq!(judge(&voters(3), &held), BTreeMap::from([(1, tie.clone()), (2, tie.clone())]));
        assert_eq!(judge(&voters(2), &held), BTreeMap::from([(1, tie.clone()), (2, tie)]));
        // Two against two, and all of them different.
        let held = rows(&[(1, &[(10, 7)]), (2, &[(10, 7)]), (3, &[(10, 8)]), (4, &[(10, 8)])]);
        assert_eq!(judge(&voters(4), &held).values().next(), Some(&undecided(10, &[1, 2, 3, 4])));
        let held = rows(&[(1, &[(10, 7)]), (2, &[(10, 8)]), (3, &[(10, 9)])]);
        assert_eq!(judge(&voters(3), &held).values().next(), Some(&undecided(10, &[1, 2, 3])));
    }

    /// Two of five are no majority although they are most of those that answer.
    #[test]
    fn who_does_not_answer_agrees_with_nobody() {
        let held = rows(&[(1, &[(10, 7)]), (2, &[(10, 7)]), (3, &[(10, 8)])]);
        assert_eq!(judge(&voters(5), &held).get(&3), Some(&undecided(10, &[1, 2, 3])));
        assert_eq!(judge(&voters(3), &held), BTreeMap::from([(3, odd(10, 7, &[1, 2]))]));
    }

    /// A learner is found odd as well, but its digest counts for nothing.
    #[test]
    fn learners_do_not_judge() {
        let held = rows(&[
            (1, &[(10, 7)]),
            (2, &[(10, 7)]),
            (4, &[(10, 8)]),
            (5, &[(10, 8)]),
            (6, &[(10, 8)]),
        ]);
        let found = judge(&voters(3), &held);
        let expected = odd(10, 7, &[1, 2]);
        assert_eq!(found, [4, 5, 6].map(|id| (id, expected.clone())).into());
        let held = rows(&[(1, &[(10, 7)]), (4, &[(10, 8)]), (5, &[(10, 8)])]);
        let tie = undecided(10, &[1, 4, 5]);
        assert_eq!(judge(&voters(3), &held), [1, 4, 5].map(|id| (id, tie.clone())).into());
    }

    #[test]
    fn nothing_in_common_says_nothing() {
        let held = rows(&[(1, &[(10, 7)]), (2, &[(20, 8)]), (3, &[])]);
        assert_eq!(judge(&voters(3), &held), BTreeMap::new());
        assert_eq!(judge(&voters(1), &rows(&[(1, &[(10, 7)])])), BTreeMap::new());
    }
}
