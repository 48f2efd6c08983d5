//! A node whose state is not that of the others takes theirs. The leader tells it (see [`super::audit`]);
//! it looks for itself, sets a mark in its data directory and starts anew; that start fetches a
//! snapshot from a member that was found right before anything else (see `assembly`).

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};

use super::Node;
use crate::limits::REBUILD_REST;
use crate::raft::codec;
use crate::raft::fetch;
use crate::raft::network::PeerError;
use crate::raft::types::NodeId;
use crate::runtime::{self, Instant};
use crate::store::checkpoint::Digest;
use crate::store::driver::Freshness;
use crate::store::rebuild::Mark;

/// Where a node stands with it.
#[derive(Debug)]
pub(super) struct Rebuild {
    /// When this process began with a state that it had fetched.
    pub rebuilt: Option<Instant>,
    /// The mark is set: this process is about to end.
    pub begun: tokio::sync::watch::Sender<bool>,
}

impl Rebuild {
    pub fn new(rebuilt: bool) -> Rebuild {
        let rebuilt = rebuilt.then(Instant::now);
        Rebuild { rebuilt, begun: tokio::sync::watch::channel(false).0 }
    }
}

impl Node {
    /// True from the moment at which this node knows that its state is wrong.
    pub fn rebuilds(&self) -> bool {
        *self.0.rebuild.begun.borrow()
    }

    /// Returns when this process must end, so that the next start fetches the state.
    pub async fn until_rebuild(&self) {
        // The sender lives as long as this node.
        let _ = self.0.rebuild.begun.subscribe().wait_for(|begun| *begun).await;
    }

    /// What this node holds at an index, if it still knows.
    fn held_at(&self, index: u64) -> Option<Digest> {
        self.digests().into_iter().find(|digest| digest.index == index)
    }

    /// Sets the mark, after this node has looked for itself; else says why not.
    pub(super) async fn rebuild(&self, mut mark: Mark) -> Result<(), String> {
        if self.rebuilds() {
            return Ok(());
        }
        let members = self.members();
        let voters = members.iter().filter(|member| !member.learner).map(|member| member.id);
        let ago = self.0.rebuild.rebuilt.map(|at| at.elapsed());
        let right = believe(&mark, self.id(), &voters.collect(), &self.digests(), ago)?;
        tracing::error!(
            index = right.index,
            sources = ?mark.sources,
            "the state of this node differs from what most voters hold: it starts anew and fetches theirs"
        );
        // What is applied may be ahead of the own disk, which another majority went on without.
        let applied = self.0.replica.last_applied().map(|last| last.index);
        mark.applied = applied.min(self.0.log.synced_index());
        let disk = self.0.disk.clone();
        let written = runtime::blocking(move || disk.mark_rebuild(&mark)).await;
        written.map_err(|error| format!("the mark cannot be written: {error}"))?;
        self.0.rebuild.begun.send_replace(true);
        Ok(())
    }

    /// Answers a member that fetches the state.
    async fn offer(
        self,
        mut input: BoxStream<'static, Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, PeerError>>, PeerError> {
        let request = input.next().await.unwrap_or_default();
        let right: Option<Digest> = codec::from_bytes("request for a snapshot", &request)?;
        if self.rebuilds() {
            return Err(PeerError::Refused("this node is about to be rebuilt itself".to_owned()));
        }
        if let Some(right) = right
            && let Some(held) = self.held_at(right.index).filter(|held| *held != right)
        {
            return Err(PeerError::Refused(format!("this node holds {held:?}, not {right:?}")));
        }
        let made = self.0.checkpoints.snapshot(Freshness::Newest).await;
        let file = made.map_err(|error| PeerError::NoAnswer(error.to_string()))?;
        tracing::info!(
            index = file.meta.point.index,
            bytes = file.meta.bytes,
            "a member fetches the state"
        );
        Ok(fetch::pieces(&file))
    }
}

/// What most voters hold, if that is what the mark says and this node holds something else; else why
/// nothing is to be done. Only what is consistent with what this node knows itself is believed.
fn believe(
    mark: &Mark,
    own: NodeId,
    voters: &BTreeSet<NodeId>,
    held: &[Digest],
    rebuilt: Option<Duration>,
) -> Result<Digest, String> {
    let Some(right) = mark.right else { return Err("no digest is stated".to_owned()) };
    match held.iter().find(|held| held.index == right.index) {
        None => return Err(format!("it does not know what it held at {}", right.index)),
        Some(held) if *held == right => {
            return Err(format!("it holds the same at {}", right.index));
        }
        Some(_) => {}
    }
    let agreed = voters.iter().filter(|voter| mark.sources.contains_key(voter)).count();
    if mark.sources.contains_key(&own) || agreed * 2 <= voters.len() {
        let sources: Vec<_> = mark.sources.keys().collect();
        return Err(format!("{sources:?} are not most of the voters {voters:?}"));
    }
    match rebuilt {
        Some(ago) if ago < REBUILD_REST => {
            Err(format!("it was rebuilt less than {REBUILD_REST:?} ago and differs again"))
        }
        Some(_) | None => Ok(right),
    }
}

/// Serves one member that fetches the state.
pub(super) fn serve(
    node: Node,
    input: BoxStream<'static, Bytes>,
) -> BoxStream<'static, Result<Bytes, PeerError>> {
    let offered = futures::stream::once(node.offer(input)).map(|offered| match offered {
        Ok(pieces) => pieces,
        Err(error) => futures::stream::iter([Err(error)]).boxed(),
    });
    offered.flatten().boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_majority_that_contradicts_it_is_believed() {
        let at = |index, digest| Digest { index, digest, records: 3 };
        let mark = |right, sources: &[NodeId]| Mark {
            right,
            sources: sources.iter().map(|id| (*id, String::new())).collect(),
            applied: None,
        };
        let held = [at(10, 7), at(20, 8)];
        let check = |mark: &Mark, voters: u64, rebuilt| {
            believe(mark, 3, &(1..=voters).collect(), &held, rebuilt)
        };
        let right = mark(Some(at(10, 9)), &[1, 2]);
        assert_eq!(check(&right, 3, None), Ok(at(10, 9)));
        assert_eq!(check(&right, 3, Some(REBUILD_REST)), Ok(at(10, 9)));
        for (why, refused) in [
            ("rebuilt less than 600s ago", check(&right, 3, Some(Duration::from_secs(1)))),
            ("not most of the voters", check(&right, 4, None)),
            ("not most of the voters", check(&mark(Some(at(10, 9)), &[1]), 3, None)),
            ("not most of the voters", check(&mark(Some(at(10, 9)), &[1, 8, 9]), 3, None)),
            ("not most of the voters", check(&mark(Some(at(10, 9)), &[1, 2, 3]), 3, None)),
            ("holds the same", check(&mark(Some(at(20, 8)), &[1, 2]), 3, None)),
            ("does not know", check(&mark(Some(at(30, 8)), &[1, 2]), 3, None)),
            ("no digest", check(&mark(None, &[1, 2]), 3, None)),
        ] {
            assert!(refused.as_ref().is_err_and(|said| said.contains(why)), "{why}: {refused:?}");
        }
    }
}
