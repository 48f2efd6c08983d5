//! Peers over gRPC: the client side is [`GrpcPeers`], the server side [`PeerServer`]. Both verify on
//! every call that they talk to a member of their own cluster, to the node that was meant, and to the
//! data directory they have known it by.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tonic::transport::{Channel as Connection, Endpoint};
use tonic::{Code, Request, Response, Status, Streaming};

use super::network::{Channel, Method, PeerError, Peers};
use super::service::PeerHandler;
use super::types::NodeId;
use crate::gather;
use crate::limits::PEER_MESSAGE_BYTES;
use crate::proto::peer::peer_client::PeerClient;
use crate::proto::peer::peer_server::Peer;
use crate::proto::peer::{
    self as wire, CallRequest, HelloRequest, HelloResponse, Packet, SnapshotChunk,
};
use crate::store::data_dir::StoreId;
use crate::store::peers::PeerBook;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A peer that does not answer a ping for this long is gone; what was under way on it fails.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1_500);
const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;

/// Who this node is to its peers, and by which data directories it knows them.
#[derive(Debug)]
pub struct Identity {
    pub cluster_id: String,
    pub node_id: NodeId,
    pub store_id: StoreId,
    pub version: String,
    pub book: Arc<dyn PeerBook>,
}

impl Identity {
    fn to_wire(&self) -> wire::Identity {
        wire::Identity {
            cluster_id: self.cluster_id.clone(),
            node_id: self.node_id,
            store_id: self.store_id.to_string(),
        }
    }

    /// The data directory of a node of this cluster, and of the expected one.
    fn is_meant(
        &self,
        other: Option<&wire::Identity>,
        expected: Option<NodeId>,
    ) -> Result<StoreId, String> {
        let Some(other) = other else { return Err("the peer does not say who it is".to_owned()) };
        if other.cluster_id != self.cluster_id {
            return Err(format!(
                "the peer is of cluster {:?}, node {} of {:?}",
                other.cluster_id, self.node_id, self.cluster_id
            ));
        }
        if let Some(expected) = expected.filter(|expected| *expected != other.node_id) {
            return Err(format!("node {expected} was meant, node {} answers", other.node_id));
        }
        other.store_id.parse().map_err(|error| format!("{error}"))
    }

    /// Trust on first use: the first data directory under which a node is met is the one it has.
    fn check(
        &self,
        other: Option<&wire::Identity>,
        expected: Option<NodeId>,
    ) -> Result<(), String> {
        let store = self.is_meant(other, expected)?;
        let node = other.map_or(0, |other| other.node_id);
        let known = match self.book.known_store(node) {
            Some(known) => known,
            None => self.book.remember(node, store).map_err(|error| {
                format!("the data directory of a peer cannot be noted: {error}")
            })?,
        };
        if known == store {
            return Ok(());
        }
        Err(format!(
            "node {node} comes with another data directory than the one it had; a wiped node must \
             be removed and added again under a new id"
        ))
    }
}

/// What a connection is for; each kind has its own, so that none waits behind another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    /// Heartbeats, votes, read indexes, keep-alives.
    Control,
    /// Log replication.
    Append,
    /// Forwarded commands.
    Forward,
    Snapshot,
}

/// The only place where a connection is made over which peers talk.
fn connect(address: &str) -> Result<Connection, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| format!("{address:?} is not an address: {error}"))?;
    Ok(endpoint
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(gather::connector(CONNECT_TIMEOUT)))
}

type Client = PeerClient<Connection>;

/// The peers of a node over gRPC.
#[derive(Debug)]
pub struct GrpcPeers {
    identity: Arc<Identity>,
    connections: Mutex<BTreeMap<(NodeId, String, Lane), Client>>,
}

impl GrpcPeers {
    pub fn new(identity: Arc<Identity>) -> Self {
        GrpcPeers { identity, connections: Mutex::new(BTreeMap::new()) }
    }

    fn client(&self, to: NodeId, address: &str, lane: Lane) -> Result<Client, PeerError> {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (to, address.to_owned(), lane);
        if let Some(client) = connections.get(&key) {
            return Ok(client.clone());
        }
        // A member that moved leaves its old address behind.
        connections.retain(|(id, known, _), _| *id != to || known == address);
        let client = PeerClient::new(connect(address).map_err(PeerError::Unreachable)?)
            .max_decoding_message_size(PEER_MESSAGE_BYTES)
            .max_encoding_message_size(PEER_MESSAGE_BYTES);
        connections.insert(key, client.clone());
        Ok(client)
    }
}

/// Asks an address who is there, before this node takes part in anything.
pub async fn hello(identity: Option<&Identity>, address: &str) -> Result<HelloResponse, PeerError> {
    let mut client = PeerClient::new(connect(address).map_err(PeerError::Unreachable)?);
    let request = HelloRequest { from: identity.map(Identity::to_wire), to: 0 };
    let call = client.hello(Request::new(request));
    match tokio::time::timeout(CONNECT_TIMEOUT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(peer_error(&status)),
        Err(_) => Err(PeerError::NoAnswer("deadline".to_owned())),
    }
}

fn peer_error(status: &Status) -> PeerError {
    let message = status.message().to_owned();
    match status.code() {
        Code::FailedPrecondition => PeerError::Refused(message),
        // tonic reports a connection that could not be made as its source; one that broke has none
        // of that kind, and its request may have arrived.
        Code::Unavailable if connect_failed(status) => PeerError::Unreachable(message),
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::InvalidArgument
        | Code::DeadlineExceeded
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated => PeerError::NoAnswer(message),
    }
}

fn connect_failed(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Whether nobody listens at an address, as its machine says.
async fn is_refused(address: &str, timeout: Duration) -> bool {
    let connecting = tokio::time::timeout(timeout, TcpStream::connect(address)).await;
    let refused = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    connecting.is_ok_and(|connected| connected.is_err_and(refused))
}

/// A boxed stream with a name of its own: the compiler cannot prove a future `Send` that holds the
/// bare trait object inside tonic's generics.
struct Requests<T>(BoxStream<'static, T>);

impl<T> futures::Stream for Requests<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        self.0.as_mut().poll_next(context)
    }
}

fn prepend<T: Send + 'static>(first: T, rest: BoxStream<'static, T>) -> Requests<T> {
    Requests(futures::stream::iter([first]).chain(rest).boxed())
}

fn payloads(packets: Streaming<Packet>) -> BoxStream<'static, Result<Bytes, PeerError>> {
    packets
        .map(|packet| match packet {
            Ok(packet) => Ok(packet.payload),
            Err(status) => Err(peer_error(&status)),
        })
        .boxed()
}

fn lane_of(method: Method) -> Lane {
    match method {
        Method::Append
        | Method::Vote
        | Method::PreVote
        | Method::TransferLeader
        | Method::ReadIndex
        | Method::Confirm
        | Method::KeepAlive
        | Method::Admin
        | Method::Digest
        | Method::Rebuild
        | Method::Roll => Lane::Control,
    }
}

fn wire_method(method: Method) -> wire::Method {
    match method {
        Method::Append => wire::Method::Append,
        Method::Vote => wire::Method::Vote,
        Method::PreVote => wire::Method::PreVote,
        Method::TransferLeader => wire::Method::TransferLeader,
        Method::ReadIndex => wire::Method::ReadIndex,
        Method::Confirm => wire::Method::Confirm,
        Method::KeepAlive => wire::Method::KeepAlive,
        Method::Admin => wire::Method::Admin,
        Method::Digest => wire::Method::Digest,
        Method::Rebuild => wire::Method::Rebuild,
        Method::Roll => wire::Method::Roll,
    }
}

fn method_of(method: wire::Method) -> Option<Method> {
    match method {
        wire::Method::Unspecified => None,
        wire::Method::Append => Some(Method::Append),
        wire::Method::Vote => Some(Method::Vote),
        wire::Method::PreVote => Some(Method::PreVote),
        wire::Method::TransferLeader => Some(Method::TransferLeader),
        wire::Method::ReadIndex => Some(Method::ReadIndex),
        wire::Method::Confirm => Some(Method::Confirm),
        wire::Method::KeepAlive => Some(Method::KeepAlive),
        wire::Method::Admin => Some(Method::Admin),
        wire::Method::Digest => Some(Method::Digest),
        wire::Method::Rebuild => Some(Method::Rebuild),
        wire::Method::Roll => Some(Method::Roll),
    }
}

impl Peers for GrpcPeers {
    fn refuses(&self, _to: NodeId, address: &str, timeout: Duration) -> BoxFuture<'static, bool> {
        let address = address.to_owned();
        async move { is_refused(&address, timeout).await }.boxed()
    }

    fn known_store(&self, node: NodeId) -> Option<StoreId> {
        match node == self.identity.node_id {
            true => Some(self.identity.store_id),
            false => self.identity.book.known_store(node),
        }
    }

    fn store_of(
        &self,
        node: NodeId,
        address: &str,
    ) -> BoxFuture<'static, Result<Option<StoreId>, PeerError>> {
        let identity = self.identity.clone();
        let address = address.to_owned();
        async move {
            let answer = hello(Some(&identity), &address).await?.identity;
            let store = identity.is_meant(answer.as_ref(), Some(node));
            store.map(Some).map_err(PeerError::Refused)
        }
        .boxed()
    }

    fn call(
        &self,
        to: NodeId,
        address: &str,
        method: Method,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        let client = self.client(to, address, lane_of(method));
        let identity = self.identity.clone();
        async move {
            let from = Some(identity.to_wire());
            let mut request =
                Request::new(CallRequest { from, to, method: wire_method(method).into(), payload });
            request.set_timeout(timeout);
            let response = client?.call(request).await.map_err(|status| peer_error(&status))?;
            let packet = response.into_inner();
            identity.check(packet.from.as_ref(), Some(to)).map_err(PeerError::Refused)?;
            Ok(packet.payload)
        }
        .boxed()
    }

    fn stream(
        &self,
        to: NodeId,
        address: &str,
        channel: Channel,
        input: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, PeerError>>, PeerError>> {
        let lane = match channel {
            Channel::Append => Lane::Append,
            Channel::Forward => Lane::Forward,
            Channel::Fetch => Lane::Snapshot,
        };
        let client = self.client(to, address, lane);
        let identity = self.identity.clone();
        // Who speaks stands in the first packet, which carries nothing else.
        let first = Packet { from: Some(identity.to_wire()), to, payload: Bytes::new() };
        let rest = input.map(|payload| Packet { from: None, to: 0, payload });
        let packets = prepend(first, rest.boxed());
        async move {
            let mut client = client?;
            let response = match channel {
                Channel::Append => client.append(packets).await,
                Channel::Forward => client.forward(packets).await,
                Channel::Fetch => client.fetch(packets).await,
            };
            let mut answers = response.map_err(|status| peer_error(&status))?.into_inner();
            let first = answers.message().await.map_err(|status| peer_error(&status))?;
            let from = first.and_then(|packet| packet.from);
            identity.check(from.as_ref(), Some(to)).map_err(PeerError::Refused)?;
            Ok(payloads(answers))
        }
        .boxed()
    }

    fn snapshot(
        &self,
        to: NodeId,
        address: &str,
        head: Bytes,
        chunks: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        let client = self.client(to, address, Lane::Snapshot);
        let identity = self.identity.clone();
        let from = Some(identity.to_wire());
        let first = SnapshotChunk { from, to, head, chunk: Bytes::new() };
        let rest = chunks.map(|chunk| SnapshotChunk { chunk, ..SnapshotChunk::default() });
        let mut request = Request::new(prepend(first, rest.boxed()));
        request.set_timeout(timeout);
        async move {
            let response = client?.snapshot(request).await.map_err(|status| peer_error(&status))?;
            let packet = response.into_inner();
            identity.check(packet.from.as_ref(), Some(to)).map_err(PeerError::Refused)?;
            Ok(packet.payload)
        }
        .boxed()
    }
}

// ---- the server side ----

/// Answers peers.
pub struct PeerServer {
    identity: Arc<Identity>,
    handler: Arc<dyn PeerHandler>,
    initialized: bool,
}

impl Debug for PeerServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PeerServer").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl PeerServer {
    /// `initialized`: whether this node had a log when it started.
    pub fn new(identity: Arc<Identity>, handler: Arc<dyn PeerHandler>, initialized: bool) -> Self {
        PeerServer { identity, handler, initialized }
    }

    fn check(&self, from: Option<&wire::Identity>, to: NodeId) -> Result<(), Status> {
        if to != self.identity.node_id {
            return Err(Status::failed_precondition(format!(
                "node {to} was meant, this is node {}",
                self.identity.node_id
            )));
        }
        self.identity.check(from, None).map_err(Status::failed_precondition)
    }

    fn packet(&self, payload: Bytes) -> Packet {
        Packet { from: Some(self.identity.to_wire()), to: 0, payload }
    }

    /// Checks the first packet of a stream and answers with this node's own.
    async fn open(
        &self,
        channel: Channel,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<BoxStream<'static, Result<Packet, Status>>>, Status> {
        let mut packets = request.into_inner();
        let first = packets.message().await?.unwrap_or_default();
        self.check(first.from.as_ref(), first.to)?;
        let input = packets
            .take_while(|packet| std::future::ready(packet.is_ok()))
            .filter_map(|packet| std::future::ready(packet.ok().map(|packet| packet.payload)))
            .boxed();
        let answers = self.handler.stream(channel, input).map(|answer| match answer {
            Ok(payload) => Ok(Packet { from: None, to: 0, payload }),
            Err(error) => Err(status_of(&error)),
        });
        let first = self.packet(Bytes::new());
        Ok(Response::new(futures::stream::iter([Ok(first)]).chain(answers).boxed()))
    }
}

fn status_of(error: &PeerError) -> Status {
    match error {
        PeerError::Unreachable(message) | PeerError::NoAnswer(message) => {
            Status::unavailable(message.clone())
        }
        PeerError::Refused(message) => Status::failed_precondition(message.clone()),
    }
}

#[tonic::async_trait]
impl Peer for PeerServer {
    type AppendStream = BoxStream<'static, Result<Packet, Status>>;
    type ForwardStream = BoxStream<'static, Result<Packet, Status>>;
    type FetchStream = BoxStream<'static, Result<Packet, Status>>;

    /// Answers anybody of the same cluster, a wiped node too: it learns here that it is one.
    async fn hello(
        &self,
        request: Request<HelloRequest>,
    ) -> Result<Response<HelloResponse>, Status> {
        let from = request.into_inner().from.unwrap_or_default();
        let known_store_id = if from.cluster_id == self.identity.cluster_id {
            let known = self.identity.book.known_store(from.node_id);
            known.map(|store| store.to_string()).unwrap_or_default()
        } else {
            String::new()
        };
        Ok(Response::new(HelloResponse {
            identity: Some(self.identity.to_wire()),
            known_store_id,
            initialized: self.initialized,
            version: self.identity.version.clone(),
        }))
    }

    async fn append(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        self.open(Channel::Append, request).await
    }

    async fn forward(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::ForwardStream>, Status> {
        self.open(Channel::Forward, request).await
    }

    async fn fetch(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        self.open(Channel::Fetch, request).await
    }

    async fn call(&self, request: Request<CallRequest>) -> Result<Response<Packet>, Status> {
        let request = request.into_inner();
        self.check(request.from.as_ref(), request.to)?;
        let method = method_of(request.method())
            .ok_or_else(|| Status::invalid_argument("method: not one of this release"))?;
        let payload = self.handler.call(method, request.payload).await;
        Ok(Response::new(self.packet(payload.map_err(|error| status_of(&error))?)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotChunk>>,
    ) -> Result<Response<Packet>, Status> {
        let mut chunks = request.into_inner();
        let first = chunks.message().await?.unwrap_or_default();
        self.check(first.from.as_ref(), first.to)?;
        let chunks = chunks.map(|chunk| match chunk {
            Ok(chunk) => Ok(chunk.chunk),
            Err(status) => Err(peer_error(&status)),
        });
        let payload = self.handler.snapshot(first.head, chunks.boxed()).await;
        Ok(Response::new(self.packet(payload.map_err(|error| status_of(&error))?)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::net::TcpListener;

    use super::*;

    /// A process that stands still, or is too busy to take a connection, has not ended.
    #[tokio::test]
    async fn only_an_address_where_nobody_listens_refuses() {
        let timeout = Duration::from_secs(5);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        assert!(!is_refused(&address, timeout).await);
        drop(listener);
        assert!(is_refused(&address, timeout).await);
        assert!(!is_refused("not an address", timeout).await);
    }
}
