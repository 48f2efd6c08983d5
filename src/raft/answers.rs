//! What openraft hears of a stream of the log.
//!
//! In 0.10.0-alpha.37 an error is taken for one of whatever is in flight to that follower by then, and what is in
//! flight keeps the log from being purged. So:
//!
//! - A stream that breaks after an answer ends without an error. What is in flight may be more than it was opened
//!   for: an error would let the log be purged that the next stream has been told to carry. Without one the next
//!   stream goes on behind what was acknowledged here.
//! - A stream that breaks before any answer fails. Nothing else can be in flight yet; and openraft, told nothing
//!   of a request that only tells of a commit, would next carry out an order that it has taken back (the log
//!   since a place that is purged, again and again).
//! - A follower that is behind the [`Horizon`] fails, whether it is slow or says nothing at all. It would keep the
//!   log for ever; openraft sends it a snapshot instead.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _, stream};
use openraft::errors::RPCError;
use openraft::raft::StreamAppendResult;
use tokio::sync::oneshot;

use super::codec;
use super::network::{PeerError, rpc_error};
use super::types::{LogId, NodeId, Types};
use crate::runtime;

/// openraft's own pause after a failure only runs once the transport has polled the requests; without
/// this one a peer that refuses connections is asked tens of thousands of times a second.
pub(super) const REFUSED_PAUSE: Duration = Duration::from_millis(50);
/// A follower that says nothing for so long is looked at, and given up when it is behind the horizon the second time.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Followers that lack entries before this index get a snapshot in place of them. Only rises.
#[derive(Debug, Default)]
pub struct Horizon(AtomicU64);

impl Horizon {
    pub fn raise(&self, index: u64) {
        self.0.fetch_max(index, Ordering::Relaxed);
    }

    fn index(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What was sent on a stream.
#[derive(Debug)]
pub(super) struct Sent {
    /// The first index that the follower lacks, as far as the stream knows.
    lacks: AtomicU64,
    ended: AtomicBool,
}

/// Nothing was sent yet.
const UNKNOWN: u64 = u64::MAX;

impl Default for Sent {
    fn default() -> Self {
        Sent { lacks: AtomicU64::new(UNKNOWN), ended: AtomicBool::new(false) }
    }
}

impl Sent {
    /// A request goes out behind `previous`: the first one says where the stream begins.
    pub fn request(&self, previous: Option<&LogId>) {
        let (next, relaxed) = (next_index(previous), Ordering::Relaxed);
        let _ = self.lacks.compare_exchange(UNKNOWN, next, relaxed, relaxed);
    }

    /// There are no more requests.
    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    fn anything(&self) -> bool {
        self.lacks.load(Ordering::Relaxed) != UNKNOWN
    }
}

fn next_index(id: Option<&LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

/// The answers of one stream as they come from a peer.
pub(super) struct Answers {
    pub target: NodeId,
    pub answers: BoxStream<'static, Result<Bytes, PeerError>>,
    pub sent: Arc<Sent>,
    pub horizon: Arc<Horizon>,
    /// Dropped when no more requests are wanted. A transport may still ask for them after it has reported an error;
    /// what they would carry may have been purged by then.
    pub wanted: oneshot::Sender<()>,
}

/// See [`self`].
pub(super) fn heard(
    answers: Answers,
) -> impl Stream<Item = Result<StreamAppendResult<Types>, RPCError<Types>>> {
    stream::unfold(Some((answers, false)), async |state| {
        let (mut answers, answered) = state?;
        match answers.next(answered).await {
            Ok(Some(result)) => Some((Ok(result), Some((answers, true)))),
            Ok(None) => None,
            Err(error) => {
                tracing::debug!(target = answers.target, %error, "replication stream broke");
                let fails = !answered || answers.is_behind();
                drop(answers.wanted);
                runtime::sleep(REFUSED_PAUSE).await;
                fails.then(|| (Err(rpc_error(error)), None))
            }
        }
    })
}

impl Answers {
    async fn next(
        &mut self,
        answered: bool,
    ) -> Result<Option<StreamAppendResult<Types>>, PeerError> {
        let mut seen_behind = answered;
        let answer = loop {
            // A single request that was answered is over: openraft is elsewhere already.
            let over = answered && self.sent.ended.load(Ordering::Relaxed);
            let behind = !over && self.is_behind();
            if behind && seen_behind {
                return Err(PeerError::NoAnswer("far behind: to get a snapshot".to_owned()));
            }
            seen_behind |= behind;
            if let Ok(answer) = runtime::timeout(LOOK_INTERVAL, self.answers.next()).await {
                break answer;
            }
        };
        match answer {
            Some(answer) => {
                let result = codec::decode_append_result(answer?)?;
                if let Ok(matching) = &result {
                    self.sent.lacks.fetch_max(next_index(matching.as_ref()), Ordering::Relaxed);
                }
                Ok(Some(result))
            }
            None if !answered && self.sent.anything() => {
                Err(PeerError::NoAnswer("the stream ended".to_owned()))
            }
            None => Ok(None),
        }
    }

    fn is_behind(&self) -> bool {
        self.sent.lacks.load(Ordering::Relaxed) < self.horizon.index()
    }
}
