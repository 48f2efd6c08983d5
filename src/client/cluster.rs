//! Typed calls for those who run a cluster: status, membership, backup and sessions.

use std::io;

use futures::future::join_all;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::connection::Client;
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, Consistency};

/// What a downloaded snapshot is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SnapshotInfo {
    pub bytes: u64,
    pub applied_index: u64,
    pub revision: u64,
}

/// Why a download ended early.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    #[error(transparent)]
    Call(#[from] Error),
    #[error("writing the snapshot: {0}")]
    Write(#[from] io::Error),
    #[error("the snapshot ended after {received} of {expected} bytes")]
    Cut { received: u64, expected: u64 },
}

impl Client {
    /// The view of one node: of any, or of the one that the client is [`Client::at`].
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        self.call(v1::StatusRequest {}).await
    }

    /// The view of every node that the client knows, in the order of [`Client::endpoints`]. Each node
    /// is asked once.
    pub async fn status_of_all(&self) -> Vec<(String, Result<v1::StatusResponse, Error>)> {
        let patience = self.options().attempt_timeout.min(self.timeout());
        let request = std::sync::Arc::new(v1::StatusRequest {});
        join_all(self.nodes().into_iter().map(|node| {
            let request = request.clone();
            async move {
                let answer = node.unary(&request, patience).await;
                (node.address.clone(), answer.map_err(|failure| failure.error))
            }
        }))
        .await
    }

    pub async fn members(&self, consistency: Consistency) -> Result<v1::MembersResponse, Error> {
        self.call(v1::MembersRequest { consistency: consistency.into() }).await
    }

    /// Adds a node that replicates but does not vote.
    pub async fn add_learner(
        &self,
        request: v1::AddLearnerRequest,
    ) -> Result<v1::AddLearnerResponse, Error> {
        self.administer(request).await
    }

    pub async fn promote(&self, id: u64) -> Result<v1::PromoteResponse, Error> {
        self.administer(v1::PromoteRequest { id }).await
    }

    pub async fn remove(&self, id: u64) -> Result<v1::RemoveResponse, Error> {
        self.administer(v1::RemoveRequest { id }).await
    }

    /// Makes `to` the leader; None = the voter whose log is longest.
    pub async fn transfer_leader(
        &self,
        to: Option<u64>,
    ) -> Result<v1::TransferLeaderResponse, Error> {
        self.administer(v1::TransferLeaderRequest { to: to.unwrap_or(0) }).await
    }

    /// Digest of the state of one node, for comparing nodes at equal applied index.
    pub async fn digest(&self) -> Result<v1::DigestResponse, Error> {
        self.call(v1::DigestRequest {}).await
    }

    /// One page of the sessions of the cluster.
    pub async fn list_sessions(
        &self,
        request: v1::ListSessionsRequest,
    ) -> Result<v1::ListSessionsResponse, Error> {
        self.call(request).await
    }

    /// Every session of the cluster, page by page.
    pub async fn all_sessions(&self, consistency: Consistency) -> Result<Vec<v1::Session>, Error> {
        let mut sessions: Vec<v1::Session> = Vec::new();
        loop {
            let page = self
                .list_sessions(v1::ListSessionsRequest {
                    consistency: consistency.into(),
                    limit: limits::DEFAULT_PAGE as u32,
                    after: sessions.last().map_or(0, |last| last.id),
                })
                .await?;
            let stuck = page.sessions.is_empty();
            sessions.extend(page.sessions);
            if !page.more || stuck {
                return Ok(sessions);
            }
        }
    }

    /// Closes somebody's session; [`Session::close`](super::Session::close) closes one's own.
    pub async fn close_session(&self, session: u64) -> Result<v1::CloseSessionResponse, Error> {
        self.call(v1::CloseSessionRequest { session, request_id: None }).await
    }

    /// Downloads a snapshot file from any node, or from the one that the client is [`Client::at`].
    /// What was written is worth nothing unless this returns Ok; a cut download is not resumed.
    pub async fn snapshot(
        &self,
        sink: &mut (impl AsyncWrite + Unpin),
    ) -> Result<SnapshotInfo, DownloadError> {
        let node = self.pick(super::request::Route::Anywhere, None);
        let patience = limits::CLIENT_ADMIN_TIMEOUT;
        let opened = node.server_stream(v1::SnapshotRequest {}, patience).await;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(failure) => {
                self.note(&node, &failure);
                return Err(failure.error.into());
            }
        };
        let mut info: Option<SnapshotInfo> = None;
        let mut received = 0u64;
        loop {
            let message = match timeout(patience, stream.message()).await {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => break,
                Ok(Err(status)) => return Err(super::remote::failure(&status).error.into()),
                Err(_) => return Err(Error::Timeout { definite: true }.into()),
            };
            info.get_or_insert(SnapshotInfo {
                bytes: message.total_bytes,
                applied_index: message.applied_index,
                revision: message.revision,
            });
            received += message.chunk.len() as u64;
            sink.write_all(&message.chunk).await?;
        }
        sink.flush().await?;
        match info {
            Some(info) if info.bytes == received => Ok(info),
            Some(info) => Err(DownloadError::Cut { received, expected: info.bytes }),
            None => Err(DownloadError::Cut { received, expected: 0 }),
        }
    }

    /// Like [`Client::snapshot`], into anything that writes synchronously, a `std::fs::File` for
    /// instance. The thread waits for each write.
    pub async fn snapshot_to(
        &self,
        sink: &mut (dyn io::Write + Send),
    ) -> Result<SnapshotInfo, DownloadError> {
        self.snapshot(&mut Blocking(sink)).await
    }

    /// A membership change: it may wait for nodes to catch up, so its deadline is a longer one.
    async fn administer<R: super::request::Request>(
        &self,
        request: R,
    ) -> Result<R::Response, Error> {
        let patience = self.timeout().max(limits::CLIENT_ADMIN_TIMEOUT);
        Ok(self.call_until(request, Instant::now() + patience).await?.response)
    }
}

/// A synchronous writer as an asynchronous one that is always ready.
struct Blocking<'a>(&'a mut (dyn io::Write + Send));

impl AsyncWrite for Blocking<'_> {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::task::Poll::Ready(self.0.write(bytes))
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::task::Poll::Ready(self.0.flush())
    }

    fn poll_shutdown(
        self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}
