//! `quorate.v1.Cluster`.

use std::io;
use std::net::Ipv6Addr;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, BoxStream, Stream, StreamExt as _};
use tonic::{Request, Response, Status};

use super::{Api, Drain, convert, read_header, shutting_down, timeout};
use crate::error::Error;
use crate::limits::{HOST_BYTES, NODE_IDS, SNAPSHOT_CHUNK_BYTES};
use crate::node::{Member, MemberStatus};
use crate::proto::v1;
use crate::proto::v1::cluster_server;
use crate::runtime;
use crate::state::State;

#[derive(Debug)]
pub struct Cluster(pub Api);

#[tonic::async_trait]
impl cluster_server::Cluster for Cluster {
    type SnapshotStream = BoxStream<'static, Result<v1::SnapshotResponse, Status>>;

    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let Api { node, about, .. } = &self.0;
        let status = node.status();
        Ok(Response::new(v1::StatusResponse {
            header: Some(v1::Header {
                revision: status.revision,
                consistency: v1::Consistency::Stale.into(),
                node_id: status.id,
                duplicate: false,
            }),
            cluster_id: about.cluster_id.clone(),
            version: about.version.clone(),
            leader_id: status.leader.unwrap_or(0),
            term: status.term,
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            purged_index: status.purged_index,
            learner: status.learner,
            log_bytes: status.log_bytes,
            image_bytes: status.image_bytes,
            snapshot_bytes: status.snapshot_bytes,
            instances: status.instances,
            services: status.services,
            sessions: status.sessions,
            watchers: status.watchers,
            durability: about.durability.clone(),
            errors: status.errors,
            uptime_ms: u64::try_from(about.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            leader_client_address: status.leader_client_address,
        }))
    }

    async fn members(
        &self,
        request: Request<v1::MembersRequest>,
    ) -> Result<Response<v1::MembersResponse>, Status> {
        let timeout = timeout(request.metadata());
        let consistency = convert::consistency(request.into_inner().consistency)?;
        let node = &self.0.node;
        let used = node.barrier(consistency, timeout).await?;
        let header = Some(read_header(node.id(), node.read(State::revision), used));
        Ok(Response::new(v1::MembersResponse { header, members: members(node.members()) }))
    }

    async fn add_learner(
        &self,
        request: Request<v1::AddLearnerRequest>,
    ) -> Result<Response<v1::AddLearnerResponse>, Status> {
        let timeout = timeout(request.metadata());
        let v1::AddLearnerRequest { id, peer_address, client_address } = request.into_inner();
        let id = node_id("id", id)?;
        let peer_address = address("peer_address", peer_address)?;
        let client_address = match client_address.is_empty() {
            // The node tells its address itself once it is reached.
            true => client_address,
            false => address("client_address", client_address)?,
        };
        let member = Member { peer_address, client_address };
        let members = members(self.0.node.add_learner(id, member, timeout).await?);
        Ok(Response::new(v1::AddLearnerResponse { header: Some(self.0.header()), members }))
    }

    async fn promote(
        &self,
        request: Request<v1::PromoteRequest>,
    ) -> Result<Response<v1::PromoteResponse>, Status> {
        let timeout = timeout(request.metadata());
        let id = node_id("id", request.into_inner().id)?;
        let members = members(self.0.node.promote(id, timeout).await?);
        Ok(Response::new(v1::PromoteResponse { header: Some(self.0.header()), members }))
    }

    async fn remove(
        &self,
        request: Request<v1::RemoveRequest>,
    ) -> Result<Response<v1::RemoveResponse>, Status> {
        let timeout = timeout(request.metadata());
        let id = node_id("id", request.into_inner().id)?;
        let members = members(self.0.node.remove(id, timeout).await?);
        Ok(Response::new(v1::RemoveResponse { header: Some(self.0.header()), members }))
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let timeout = timeout(request.metadata());
        let to = match request.into_inner().to {
            0 => None,
            to => Some(node_id("to", to)?),
        };
        let leader_id = self.0.node.transfer_leader(to, timeout).await?;
        Ok(Response::new(v1::TransferLeaderResponse { header: Some(self.0.header()), leader_id }))
    }

    async fn snapshot(
        &self,
        request: Request<v1::SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let node = &self.0.node;
        node.barrier(v1::Consistency::Linearizable, timeout(request.metadata())).await?;
        let snapshot = node.snapshot().await?;
        let meta = snapshot.meta;
        let name = meta.name;
        let file = runtime::blocking(move || snapshot.disk.open(&name)).await;
        let first = v1::SnapshotResponse {
            chunk: Bytes::new(),
            total_bytes: meta.bytes,
            applied_index: meta.point.index,
            revision: meta.revision,
        };
        let file = file.map_err(|error| unreadable(&error))?;
        let read = move |offset, chunk: &mut [u8]| file.read_at(offset, chunk);
        Ok(Response::new(chunks(Arc::new(read), first, self.0.drain.clone()).boxed()))
    }

    async fn digest(
        &self,
        _: Request<v1::DigestRequest>,
    ) -> Result<Response<v1::DigestResponse>, Status> {
        let (applied_index, digest, records) = self.0.node.digest().await?;
        Ok(Response::new(v1::DigestResponse {
            header: Some(self.0.header()),
            applied_index,
            digest: format!("{digest:016x}"),
            records,
        }))
    }
}

/// Fills a chunk with the bytes from an offset on.
type ReadAt = dyn Fn(u64, &mut [u8]) -> io::Result<()> + Send + Sync;

/// The file from its beginning; the first message also says how long it is. Cut off by an error when
/// the node is about to stop, so that it never looks complete.
fn chunks(
    file: Arc<ReadAt>,
    first: v1::SnapshotResponse,
    drain: Drain,
) -> impl Stream<Item = Result<v1::SnapshotResponse, Status>> + Send {
    let total = first.total_bytes;
    stream::unfold(Some((file, 0u64, first, drain)), move |next| async move {
        let (file, offset, mut response, drain) = next?;
        let length = (total - offset).min(SNAPSHOT_CHUNK_BYTES as u64);
        if length == 0 && offset > 0 {
            return None;
        }
        if drain.has_begun() {
            return Some((Err(shutting_down().into()), None));
        }
        let read = runtime::blocking(move || {
            let mut chunk = vec![0; usize::try_from(length).expect("at most a chunk")];
            file(offset, &mut chunk).map(|()| (file, chunk))
        });
        match read.await {
            Ok((file, chunk)) => {
                response.chunk = chunk.into();
                let rest = (file, offset + length, v1::SnapshotResponse::default(), drain);
                Some((Ok(response), Some(rest)))
            }
            Err(error) => Some((Err(unreadable(&error)), None)),
        }
    })
}

fn unreadable(error: &io::Error) -> Status {
    Error::internal(format!("the snapshot file could not be read: {error}")).into()
}

fn members(members: Vec<MemberStatus>) -> Vec<v1::Member> {
    let member = |member| {
        let MemberStatus { id, peer_address, client_address, learner, leader } = member;
        v1::Member { id, peer_address, client_address, learner, leader }
    };
    members.into_iter().map(member).collect()
}

fn node_id(field: &str, id: u64) -> Result<u64, Error> {
    match NODE_IDS.contains(&id) {
        true => Ok(id),
        false => Err(Error::invalid(field, id.to_string(), format!("{NODE_IDS:?}"))),
    }
}

fn address(field: &str, address: String) -> Result<String, Error> {
    let host_byte = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let fits = address.rsplit_once(':').is_some_and(|(host, port)| {
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_fits = match inner {
            Some(inner) => inner.parse::<Ipv6Addr>().is_ok(),
            None => (1..=HOST_BYTES).contains(&host.len()) && host.bytes().all(host_byte),
        };
        host_fits && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    match fits {
        true => Ok(address),
        false => Err(Error::invalid(field, address, "host:port, an IPv6 host in brackets")),
    }
}
