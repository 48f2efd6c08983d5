//! Commit indexes that travel with entries. openraft tells a follower of each commit at once, in a request
//! without entries. While entries follow each other closely the next one brings the commit index anyhow, so
//! such a request is held for a moment and dropped when entries overtake it: it costs each node as much as a
//! small write.

use std::time::Duration;

use futures::stream::Fuse;
use futures::{Stream, StreamExt as _, stream};
use openraft::raft::AppendEntriesRequest;

use super::types::Types;
use crate::runtime::{self, Instant};

/// Entries follow each other closely when they are no further apart than this, and a commit waits for the next
/// ones no longer.
const CLOSELY: Duration = Duration::from_millis(2);

type Request = AppendEntriesRequest<Types>;

struct Held<S> {
    /// The end may be met while a commit is held, and is asked for again behind that.
    requests: Fuse<S>,
    /// When entries were last seen.
    entries_at: Option<Instant>,
    /// They came closely behind those before them.
    closely: bool,
}

/// The requests, without those that only tell of a commit of which the next entries tell as well.
pub fn with_entries<S>(requests: S) -> impl Stream<Item = Request>
where
    S: Stream<Item = Request> + Unpin,
{
    let held = Held { requests: requests.fuse(), entries_at: None, closely: false };
    stream::unfold(held, async |mut held| Some((held.next().await?, held)))
}

impl<S: Stream<Item = Request> + Unpin> Held<S> {
    async fn next(&mut self) -> Option<Request> {
        let mut request = self.requests.next().await?;
        if request.entries.is_empty() && self.closely {
            let until = Instant::now() + CLOSELY;
            while request.entries.is_empty() {
                match runtime::timeout_at(until, self.requests.next()).await {
                    // It carries the later commit index.
                    Ok(Some(next)) => request = next,
                    // The end, or nothing came: it is sent after all.
                    Ok(None) | Err(_) => break,
                }
            }
        }
        if request.entries.is_empty() {
            self.closely = false;
        } else {
            let now = Instant::now();
            let before = self.entries_at.replace(now);
            self.closely = before.is_some_and(|before| now - before <= CLOSELY);
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use openraft::EntryPayload;
    use tokio::sync::mpsc;

    use super::*;
    use crate::raft::types::{Entry, LeaderId, LogId, Vote};

    const LEADER: LeaderId = LeaderId { term: 1, node_id: 1 };

    fn id(index: u64) -> LogId {
        LogId { leader_id: LEADER, index }
    }

    fn request(entry: Option<u64>, commit: u64) -> Request {
        let entry = entry.map(|index| Entry { log_id: id(index), payload: EntryPayload::Blank });
        AppendEntriesRequest {
            vote: Vote { leader_id: LEADER, committed: true },
            prev_log_id: None,
            entries: entry.into_iter().collect(),
            leader_commit: Some(id(commit)),
        }
    }

    /// What comes out, and how many ms after the beginning, of what goes in after so many ms.
    async fn sent(script: &[(u64, Option<u64>, u64)]) -> Vec<(u64, Option<u64>, u64)> {
        let (tx, rx) = mpsc::unbounded_channel();
        let begun = Instant::now();
        let script = script.to_vec();
        runtime::spawn(async move {
            for (at, entry, commit) in script {
                tokio::time::sleep_until(begun + Duration::from_millis(at)).await;
                tx.send(request(entry, commit)).unwrap();
            }
        });
        let requests = stream::unfold(rx, async |mut rx| Some((rx.recv().await?, rx)));
        let out = with_entries(requests.boxed()).map(|request| {
            let entry = request.entries.first().map(|entry| entry.log_id.index);
            let at = u64::try_from((Instant::now() - begun).as_millis()).unwrap();
            (at, entry, request.leader_commit.unwrap().index)
        });
        out.collect().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_travels_with_the_next_entries() {
        let busy = [(0, Some(1), 0), (1, Some(2), 0), (1, None, 1), (2, Some(3), 1), (2, None, 2)];
        let out = sent(&[&busy[..], &[(3, Some(4), 2)]].concat()).await;
        assert_eq!(out, [(0, Some(1), 0), (1, Some(2), 0), (2, Some(3), 1), (3, Some(4), 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_does_not_wait_long() {
        let script = [(0, Some(1), 0), (1, Some(2), 0), (2, None, 1), (3, None, 2), (50, None, 3)];
        let out = sent(&script).await;
        // The later one in place of the earlier one, in the earlier one's time; then nothing is busy.
        assert_eq!(out, [(0, Some(1), 0), (1, Some(2), 0), (4, None, 2), (50, None, 3)]);
    }

    /// openraft's stream must not be asked again after its end.
    #[tokio::test(start_paused = true)]
    async fn the_end_comes_while_a_commit_waits() {
        let script = [(0, Some(1), 0), (1, Some(2), 0), (1, None, 1)];
        assert_eq!(sent(&script).await, script);
    }

    #[tokio::test(start_paused = true)]
    async fn a_commit_of_a_lone_write_is_told_at_once() {
        let script = [(0, Some(1), 0), (1, None, 1), (40, Some(2), 1), (41, None, 2)];
        assert_eq!(sent(&script).await, script);
    }
}
