//! What a peer may ask of this node's consensus: plain async functions below gRPC, so that the
//! simulation calls them too.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt as _};
use openraft::Raft;
use openraft::raft::SnapshotResponse;

use super::codec;
use super::machine::{Machine, SnapshotFile, raft_meta};
use super::network::{Channel, Method, PeerError, SnapshotHead};
use super::types::Types;
use crate::runtime;
use crate::store::disk::Disk;
use crate::store::receiver::Receiver;

/// What answers the peers of a node, below the transport.
pub trait PeerHandler: Send + Sync + 'static {
    /// One message.
    fn call(&self, method: Method, payload: Bytes) -> BoxFuture<'static, Result<Bytes, PeerError>>;

    /// A stream, answered in order.
    fn stream(
        &self,
        channel: Channel,
        input: BoxStream<'static, Bytes>,
    ) -> BoxStream<'static, Result<Bytes, PeerError>>;

    /// A snapshot that is received and installed.
    fn snapshot(
        &self,
        head: Bytes,
        chunks: BoxStream<'static, Result<Bytes, PeerError>>,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>>;
}

/// Answers consensus messages.
#[derive(Debug, Clone)]
pub struct Service {
    raft: Raft<Types, Machine>,
}

fn stopped(error: impl std::fmt::Display) -> PeerError {
    PeerError::NoAnswer(error.to_string())
}

impl Service {
    pub fn new(raft: Raft<Types, Machine>) -> Self {
        Service { raft }
    }

    /// Answers one of the consensus methods; the rest of [`Method`] is the node's.
    pub async fn call(&self, method: Method, payload: Bytes) -> Result<Bytes, PeerError> {
        match method {
            Method::Append => {
                let request = codec::decode_append(payload)?;
                let response = self.raft.append_entries(request).await.map_err(stopped)?;
                Ok(codec::to_bytes(&response))
            }
            Method::Vote => {
                let request = codec::from_bytes("vote request", &payload)?;
                let response = self.raft.vote(request).await.map_err(stopped)?;
                Ok(codec::to_bytes(&response))
            }
            Method::PreVote => {
                let request = codec::from_bytes("pre-vote request", &payload)?;
                let response = self.raft.pre_vote(request).await.map_err(stopped)?;
                Ok(codec::to_bytes(&response))
            }
            Method::TransferLeader => {
                let request = codec::from_bytes("transfer request", &payload)?;
                let response = self.raft.handle_transfer_leader(request).await.map_err(stopped)?;
                Ok(codec::to_bytes(&response))
            }
            Method::ReadIndex
            | Method::Confirm
            | Method::KeepAlive
            | Method::Admin
            | Method::Digest
            | Method::Rebuild
            | Method::Roll => {
                Err(PeerError::Refused(format!("{method:?} is not a consensus message")))
            }
        }
    }

    /// Answers a replication stream, in order. Ends at the first request that is not ours.
    pub fn append(
        &self,
        input: BoxStream<'static, Bytes>,
    ) -> impl Stream<Item = Result<Bytes, PeerError>> + Send + 'static {
        let requests = input
            .map(codec::decode_append)
            .take_while(|request| std::future::ready(request.is_ok()))
            .filter_map(|request| std::future::ready(request.ok()));
        self.raft.stream_append(requests).map(|answer| match answer {
            Ok(result) => Ok(codec::encode_append_result(&result)),
            Err(fatal) => Err(stopped(fatal)),
        })
    }

    /// Receives a snapshot file into `disk` and installs it.
    pub async fn snapshot(
        &self,
        head: Bytes,
        mut chunks: BoxStream<'static, Result<Bytes, PeerError>>,
        disk: Arc<dyn Disk>,
        cluster_id: &str,
    ) -> Result<Bytes, PeerError> {
        let head: SnapshotHead = codec::from_bytes("snapshot head", &head)?;
        let mut receiver =
            Receiver::begin(disk.clone(), cluster_id, head.bytes).map_err(stopped)?;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            receiver = runtime::blocking(move || {
                receiver.chunk(receiver.received(), &chunk)?;
                Ok::<_, crate::store::snapshot::Error>(receiver)
            })
            .await
            .map_err(stopped)?;
        }
        // Whoever sends may give up meanwhile: what is done with the file goes on, or it would stay for ever.
        let installed = runtime::spawn(self.clone().install(head, receiver, disk)).await;
        let installed = installed.map_err(|_| PeerError::NoAnswer("the node ends".to_owned()))?;
        Ok(codec::to_bytes(&installed?))
    }

    /// Installs a file that has arrived, or removes it.
    async fn install(
        self,
        head: SnapshotHead,
        receiver: Receiver,
        disk: Arc<dyn Disk>,
    ) -> Result<SnapshotResponse<Types>, PeerError> {
        let meta = runtime::blocking(move || receiver.finish()).await.map_err(stopped)?;
        let name = meta.name.clone();
        let snapshot = SnapshotFile { disk: disk.clone(), meta };
        // Consensus goes by the head, the state by the file.
        let same = raft_meta(&snapshot.meta.point).is_ok_and(|meta| meta == head.meta());
        let installed = if same {
            let snapshot = openraft::Snapshot { meta: head.meta(), snapshot };
            self.raft.install_full_snapshot(head.vote, snapshot).await.map_err(stopped)
        } else {
            Err(PeerError::NoAnswer(format!("{name} is not what its head says")))
        };
        if installed.is_ok() || !same {
            // An installed file has another name by now; one that was not needed goes.
            runtime::blocking(move || drop(disk.remove(&name))).await;
        }
        installed
    }
}
