//! A global transaction that was begun: where it stands, how it goes on, how it ends.

use std::collections::BTreeMap;
use std::fmt;

use futures::{Stream, stream};
use tokio::time::{Instant, sleep};

use super::super::connection::Client;
use super::super::participant::BranchResults;
use super::super::watch::{Watch, WatchRange, WatchUpdate};
use super::millis;
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::watch_event::Record;

/// A transaction by its name. Dropped, the transaction goes on.
#[derive(Clone)]
pub struct SagaHandle {
    client: Client,
    namespace: String,
    gid: String,
}

/// How a transaction has ended, or why it does not go on.
#[derive(Debug, Clone, PartialEq)]
pub enum SagaOutcome {
    /// All branches are done; of TCC: confirmed.
    Succeeded { results: BranchResults },
    /// All that may have been done is undone; of a message: it was not sent.
    Failed { error: String },
    /// Nothing goes on until an operator says so: see [`SagaHandle::wait`]. `error` is what went wrong last.
    Suspended { reason: String, error: String },
}

impl SagaOutcome {
    /// None = it is under way, or prepared.
    pub fn of(saga: &v1::Saga) -> Option<SagaOutcome> {
        match saga.status() {
            v1::SagaStatus::Succeeded => {
                let branches = saga.branches.iter().filter(|branch| !branch.result.is_empty());
                let results = branches.map(|branch| (branch.id.clone(), branch.result.clone()));
                let results = BranchResults(results.collect::<BTreeMap<_, _>>());
                Some(SagaOutcome::Succeeded { results })
            }
            v1::SagaStatus::Failed => Some(SagaOutcome::Failed { error: saga.error.clone() }),
            v1::SagaStatus::Suspended => {
                let (reason, error) = (saga.suspended.clone(), saga.error.clone());
                Some(SagaOutcome::Suspended { reason, error })
            }
            v1::SagaStatus::Unspecified
            | v1::SagaStatus::Prepared
            | v1::SagaStatus::Submitted
            | v1::SagaStatus::Aborting => None,
        }
    }

    pub fn succeeded(&self) -> bool {
        matches!(self, SagaOutcome::Succeeded { .. })
    }
}

impl fmt::Debug for SagaHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SagaHandle")
            .field("namespace", &self.namespace)
            .field("gid", &self.gid)
            .finish_non_exhaustive()
    }
}

impl SagaHandle {
    pub(super) fn new(client: &Client, namespace: String, gid: String) -> SagaHandle {
        SagaHandle { client: client.clone(), namespace, gid }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn gid(&self) -> &str {
        &self.gid
    }

    /// Where it stands now, with its payloads.
    pub async fn status(&self) -> Result<v1::Saga, Error> {
        Ok(self.look().await?.0)
    }

    /// Waits until it is finished or suspended, through the loss of nodes and however long that takes; to
    /// wait for less, drop the future. A suspended one may go on later: to be waited for anew.
    ///
    /// Fails with [`Error::NotFound`] when there is no such transaction: it was never begun, or its retention
    /// is over.
    pub async fn wait(&self) -> Result<SagaOutcome, Error> {
        let mut attempt = 0;
        loop {
            let request = v1::WaitSagaRequest {
                namespace: self.namespace.clone(),
                gid: self.gid.clone(),
                timeout_ms: millis(limits::CLIENT_SAGA_WAIT),
            };
            let deadline = Instant::now() + limits::CLIENT_SAGA_WAIT + self.client.timeout();
            match self.client.call_until(request, deadline).await {
                Ok(answered) => {
                    attempt = 0;
                    let saga = answered.response.saga.unwrap_or_default();
                    if let Some(outcome) = SagaOutcome::of(&saga) {
                        return Ok(outcome);
                    }
                }
                Err(error) if error.retryable() => {
                    tracing::debug!(gid = %self.gid, %error, "waiting on for a transaction");
                    sleep(self.client.backoff(attempt)).await;
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Where it stands now, and then every change until it is finished.
    pub fn progress(&self) -> SagaProgress {
        SagaProgress { handle: self.clone(), watch: None, over: false }
    }

    pub(super) async fn look(&self) -> Result<(v1::Saga, u64), Error> {
        let (namespace, gid) = (self.namespace.clone(), self.gid.clone());
        let request = v1::GetSagaRequest { namespace, gid, ..Default::default() };
        let answer = self.client.get_saga(request).await?;
        let revision = answer.header.map_or(0, |header| header.revision);
        let saga = answer.saga.ok_or_else(|| Error::internal("an answer without its record"))?;
        Ok((saga, revision))
    }

    fn gone(&self) -> Error {
        let name = format!("{}/{}", self.namespace, self.gid);
        Error::NotFound { kind: "global transaction".to_owned(), name }
    }
}

/// What a transaction goes through. It survives the loss of nodes and connections; states that follow each
/// other quickly may come as one.
#[derive(Debug)]
pub struct SagaProgress {
    handle: SagaHandle,
    /// None = nothing was told so far.
    watch: Option<Watch>,
    over: bool,
}

impl SagaProgress {
    /// The first is as [`SagaHandle::status`] has it, the others come without payloads. None after the state in
    /// which it is finished, or after an error, which will not pass. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<v1::Saga, Error>> {
        if self.over {
            return None;
        }
        let told = self.advance().await;
        let finished = [v1::SagaStatus::Succeeded, v1::SagaStatus::Failed];
        self.over = told.as_ref().map_or(true, |saga| finished.contains(&saga.status()));
        Some(told)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<v1::Saga, Error>> + Send {
        stream::unfold(self, |mut progress| async move {
            let item = progress.next().await?;
            Some((item, progress))
        })
    }

    async fn advance(&mut self) -> Result<v1::Saga, Error> {
        let Some(watch) = &mut self.watch else {
            let (saga, revision) = self.handle.look().await?;
            let SagaHandle { client, namespace, gid } = self.handle.clone();
            let range = WatchRange::Saga { namespace, gid };
            self.watch = Some(client.watch_after(range, revision));
            return Ok(saga);
        };
        loop {
            let update = match watch.next().await {
                Some(update) => update?,
                None => return Err(Error::internal("the watch has ended")),
            };
            let events = match update {
                WatchUpdate::Snapshot { events, .. } if events.is_empty() => {
                    return Err(self.handle.gone());
                }
                WatchUpdate::Snapshot { events, .. } | WatchUpdate::Changes { events, .. } => {
                    events
                }
                WatchUpdate::Bookmark { .. } => continue,
            };
            match events.into_iter().next_back() {
                Some(event) if event.deleted => return Err(self.handle.gone()),
                Some(v1::WatchEvent { record: Some(Record::Saga(saga)), .. }) => return Ok(saga),
                Some(_) | None => {}
            }
        }
    }
}
