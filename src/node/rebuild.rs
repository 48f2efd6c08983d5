//! A node whose state is not that of the others takes theirs. The leader tells it (see [`super::audit`]);
//! it looks for itself, sets a mark in its data directory and starts anew; that start fetches a
//! snapshot from a member that was found right before anything else (see `assembly`).

use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _};

use super::Node;
use crate::limits::REBUILD_REST;
use crate::raft::codec;
use crate::raft::fetch;
use crate::raft::network::PeerError;
use crate::runtime::{self, Instant};
use crate::store::checkpoint::Digest;
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
    pub(super) async fn rebuild(&self, mark: Mark) -> Result<(), String> {
        if self.rebuilds() {
            return Ok(());
        }
        self.doubt(&mark)?;
        let Some(right) = mark.right else { return Err("no digest is stated".to_owned()) };
        tracing::error!(
            index = right.index,
            sources = ?mark.sources,
            "the state of this node differs from what most voters hold: it starts anew and fetches theirs"
        );
        let disk = self.0.disk.clone();
        let written = runtime::blocking(move || disk.mark_rebuild(&mark)).await;
        written.map_err(|error| format!("the mark cannot be written: {error}"))?;
        self.0.rebuild.begun.send_replace(true);
        Ok(())
    }

    /// Nobody is believed who says less than that most voters, this node not among them, hold
    /// something else than this node holds.
    fn doubt(&self, mark: &Mark) -> Result<(), String> {
        let Some(right) = mark.right else { return Err("no digest is stated".to_owned()) };
        match self.held_at(right.index) {
            None => return Err(format!("it does not know what it held at {}", right.index)),
            Some(held) if held == right => {
                return Err(format!("it holds the same at {}", right.index));
            }
            Some(_) => {}
        }
        let members = self.members();
        let voters = members.iter().filter(|member| !member.learner);
        let (all, agreed) = voters.fold((0, 0), |(all, agreed), voter| {
            (all + 1, agreed + usize::from(mark.sources.contains_key(&voter.id)))
        });
        if mark.sources.contains_key(&self.id()) || agreed * 2 <= all {
            return Err(format!("{:?} are not most of {all} voters", mark.sources.keys()));
        }
        match self.0.rebuild.rebuilt.map(|at| at.elapsed()) {
            Some(ago) if ago < REBUILD_REST => {
                Err(format!("it was rebuilt {} s ago and differs again", ago.as_secs()))
            }
            Some(_) | None => Ok(()),
        }
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
        let made = self.0.checkpoints.snapshot().await;
        let file = made.map_err(|error| PeerError::NoAnswer(error.to_string()))?;
        tracing::info!(
            index = file.meta.point.index,
            bytes = file.meta.bytes,
            "a member fetches the state"
        );
        Ok(fetch::pieces(&file))
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
