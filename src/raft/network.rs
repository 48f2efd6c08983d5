//! How openraft reaches its peers: over [`Peers`], which is gRPC in production and a simulated
//! network in tests. Replication, control messages (heartbeats, votes) and snapshots travel on
//! connections of their own, so that none waits behind another.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, Stream, StreamExt as _, TryFutureExt as _, stream};
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{RPCOption, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, alias};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::answers::{self, Answers, Horizon, REFUSED_PAUSE, Sent};
use super::codec::{self, Malformed};
use super::commits;
use super::machine::{Checkpoints, SnapshotFile};
use super::types::{Member, NodeId, SnapshotMeta, StoredMembership, Types, Vote};
use crate::limits::SNAPSHOT_SLOWEST_BYTES;
use crate::runtime;
use crate::store::data_dir::StoreId;
use crate::store::driver::Freshness;
use crate::store::snapshot;

/// Bytes of one chunk of a snapshot on the wire.
pub(super) const SNAPSHOT_CHUNK_BYTES: usize = 1024 * 1024;
/// How long a peer may take to answer that a stream is open. Longer than openraft's deadline, which is one
/// heartbeat: on a busy machine or a long line each attempt would miss it, and openraft pauses between them. Not
/// much longer: what the stream is to carry was chosen when its opening began, and is not purged meanwhile.
const OPEN_TIMEOUT: Duration = Duration::from_millis(300);

/// What is asked of a peer in one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Method {
    Append,
    Vote,
    PreVote,
    TransferLeader,
    ReadIndex,
    /// Does the peer know a later leader than the one that asks?
    Confirm,
    KeepAlive,
    Admin,
    Digest,
    Rebuild,
    /// Who is there to check instances.
    Roll,
}

/// What a stream between peers is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    /// Log replication.
    Append,
    /// Commands forwarded to the leader.
    Forward,
    /// A snapshot file that this node asks for: see [`super::fetch`].
    Fetch,
}

/// Why a peer did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection; the request was certainly not carried out.
    #[error("unreachable: {0}")]
    Unreachable(String),
    /// The connection broke or the deadline passed; the request may have been carried out.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The peer is not the node that was meant, or does not know this one.
    #[error("refused: {0}")]
    Refused(String),
}

impl From<Malformed> for PeerError {
    fn from(error: Malformed) -> Self {
        PeerError::NoAnswer(error.to_string())
    }
}

/// The other members, seen from one node. Every call ends within its timeout.
pub trait Peers: Send + Sync + Debug + 'static {
    /// One request, one answer.
    fn call(
        &self,
        to: NodeId,
        address: &str,
        method: Method,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>>;

    /// A stream of requests, answered in order. Ends when `input` ends or the connection breaks.
    fn stream(
        &self,
        to: NodeId,
        address: &str,
        channel: Channel,
        input: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, PeerError>>, PeerError>>;

    /// Whether the machine of a peer refuses a connection: nobody listens at the address. False when it is silent.
    fn refuses(&self, to: NodeId, address: &str, timeout: Duration) -> BoxFuture<'static, bool>;

    /// The data directory under which this node knows a node, itself among them; None when it never
    /// talked to it, or when a transport has no such thing.
    fn known_store(&self, _node: NodeId) -> Option<StoreId> {
        None
    }

    /// Asks a node that is no member yet which data directory it has, and notes nothing. Refused when
    /// another node answers there.
    fn store_of(
        &self,
        _node: NodeId,
        _address: &str,
    ) -> BoxFuture<'static, Result<Option<StoreId>, PeerError>> {
        std::future::ready(Ok(None)).boxed()
    }

    /// Ships a snapshot: its head, then the file; the answer comes once it is installed.
    fn snapshot(
        &self,
        to: NodeId,
        address: &str,
        head: Bytes,
        chunks: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>>;
}

/// What travels before the bytes of a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotHead {
    pub vote: Vote,
    pub last_log_id: Option<super::types::LogId>,
    pub membership: StoredMembership,
    /// Bytes of the file.
    pub bytes: u64,
}

impl SnapshotHead {
    pub fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.last_log_id, last_membership: self.membership.clone() }
    }
}

/// Makes openraft's connections.
#[derive(Debug, Clone)]
pub struct Network {
    id: NodeId,
    peers: Arc<dyn Peers>,
    horizon: Arc<Horizon>,
    checkpoints: Arc<dyn Checkpoints>,
}

impl Network {
    pub fn new(
        id: NodeId,
        peers: Arc<dyn Peers>,
        horizon: Arc<Horizon>,
        checkpoints: Arc<dyn Checkpoints>,
    ) -> Self {
        Network { id, peers, horizon, checkpoints }
    }

    fn link(&self, target: NodeId, node: &Member, pipelined: bool) -> Link {
        Link {
            id: self.id,
            target,
            address: node.peer_address.clone(),
            peers: self.peers.clone(),
            horizon: self.horizon.clone(),
            checkpoints: self.checkpoints.clone(),
            pipelined,
        }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: NodeId, node: &Member) -> Link {
        self.link(target, node, true)
    }

    /// Heartbeats are unary: openraft would open and close a stream for each.
    async fn new_heartbeat_client(&mut self, target: NodeId, node: &Member) -> Link {
        self.link(target, node, false)
    }
}

/// One peer, as openraft sees it.
#[derive(Debug)]
pub struct Link {
    id: NodeId,
    target: NodeId,
    address: String,
    peers: Arc<dyn Peers>,
    horizon: Arc<Horizon>,
    checkpoints: Arc<dyn Checkpoints>,
    pipelined: bool,
}

impl Link {
    async fn call(
        &self,
        method: Method,
        kind: RPCTypes,
        payload: Bytes,
        option: &RPCOption,
    ) -> Result<Bytes, RPCError<Types>> {
        let timeout = option.hard_ttl();
        let call = self.peers.call(self.target, &self.address, method, payload, timeout);
        match runtime::timeout(timeout, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(rpc_error(error)),
            Err(_) => {
                Err(Timeout { action: kind, id: self.id, target: self.target, timeout }.into())
            }
        }
    }

    /// A file that was sent whole and not taken may have rotted since it was made, and openraft would send it again and
    /// again: then another one is made.
    async fn make_again_if_rotten(&self, SnapshotFile { disk, meta }: SnapshotFile) {
        let name = meta.name.clone();
        let found = runtime::blocking(move || snapshot::verify(&*disk, &meta.name)).await;
        let Err(error) = found else { return };
        if self.checkpoints.current().is_none_or(|newest| newest.meta.name != name) {
            return;
        }
        tracing::error!(%error, name, "a snapshot is made again");
        if let Err(error) = self.checkpoints.snapshot(Freshness::Newest).await {
            tracing::warn!(%error, name, "a snapshot could not be made again");
        }
    }
}

pub(super) fn rpc_error(error: PeerError) -> RPCError<Types> {
    match error {
        PeerError::Unreachable(_) | PeerError::Refused(_) => {
            RPCError::Unreachable(Unreachable::new(&error))
        }
        PeerError::NoAnswer(_) => RPCError::Network(NetworkError::new(&error)),
    }
}

fn decoded<T>(result: Result<T, Malformed>) -> Result<T, RPCError<Types>> {
    result.map_err(|error| RPCError::Network(NetworkError::new(&error)))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let payload = codec::encode_append(&request);
        let answer = self.call(Method::Append, RPCTypes::AppendEntries, payload, &option).await?;
        decoded(codec::from_bytes("append response", &answer))
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if !self.pipelined {
            return openraft::network::stream_append_sequential(self, input, option);
        }
        let (wanted, unwanted) = oneshot::channel();
        let sent = Arc::new(Sent::default());
        let (telling, ending) = (sent.clone(), sent.clone());
        let input = commits::with_entries(input).take_until(unwanted);
        let input = input.map(move |request| {
            telling.request(request.prev_log_id.as_ref());
            codec::encode_append(&request)
        });
        let input = input.chain(stream::poll_fn(move |_| {
            ending.end();
            Poll::Ready(None)
        }));
        let open = self.peers.stream(self.target, &self.address, Channel::Append, input.boxed());
        let (id, target, horizon) = (self.id, self.target, self.horizon.clone());
        let answers = async move {
            match runtime::timeout(OPEN_TIMEOUT, open).await {
                Ok(Ok(answers)) => {
                    Ok(answers::heard(Answers { target, answers, sent, horizon, wanted }))
                }
                Ok(Err(error)) => {
                    drop(wanted);
                    runtime::sleep(REFUSED_PAUSE).await;
                    Err(rpc_error(error))
                }
                Err(_) => {
                    drop(wanted);
                    let (action, timeout) = (RPCTypes::AppendEntries, OPEN_TIMEOUT);
                    Err(Timeout { action, id, target, timeout }.into())
                }
            }
        };
        // Opened by whoever reads the answers: openraft does not hear that it leads no more before it has the
        // stream.
        std::future::ready(Ok(answers.try_flatten_stream().boxed())).boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let payload = codec::to_bytes(&request);
        let answer = self.call(Method::Vote, RPCTypes::Vote, payload, &option).await?;
        decoded(codec::from_bytes("vote response", &answer))
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let payload = codec::to_bytes(&request);
        let answer = self.call(Method::PreVote, RPCTypes::Vote, payload, &option).await?;
        decoded(codec::from_bytes("pre-vote response", &answer))
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: alias::SnapshotOf<Types, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let file = snapshot.snapshot;
        let head = SnapshotHead {
            vote,
            last_log_id: snapshot.meta.last_log_id,
            membership: snapshot.meta.last_membership,
            bytes: file.meta.bytes,
        };
        let seconds = file.meta.bytes / SNAPSHOT_SLOWEST_BYTES;
        let timeout = option.hard_ttl() + Duration::from_secs(seconds);
        let sent = Arc::new(AtomicBool::new(false));
        let end = sent.clone();
        let end = stream::poll_fn(move |_| {
            end.store(true, Ordering::Relaxed);
            Poll::Ready(None)
        });
        let call = self.peers.snapshot(
            self.target,
            &self.address,
            codec::to_bytes(&head),
            file.chunks(SNAPSHOT_CHUNK_BYTES).chain(end).boxed(),
            timeout,
        );
        let call = runtime::timeout(timeout, call);
        let answer = match futures::future::select(std::pin::pin!(cancel), call.boxed()).await {
            futures::future::Either::Left((closed, _)) => return Err(closed.into()),
            futures::future::Either::Right((answer, _)) => answer,
        };
        match answer {
            Ok(Ok(bytes)) => Ok(decoded(codec::from_bytes("snapshot response", &bytes))?),
            Ok(Err(error)) => {
                if sent.load(Ordering::Relaxed) {
                    self.make_again_if_rotten(file).await;
                }
                Err(rpc_error(error).into())
            }
            Err(_) => Err(StreamingError::Timeout(Timeout {
                action: RPCTypes::InstallSnapshot,
                id: self.id,
                target: self.target,
                timeout,
            })),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let payload = codec::to_bytes(&request);
        let answer =
            self.call(Method::TransferLeader, RPCTypes::TransferLeader, payload, &option).await?;
        decoded(codec::from_bytes("transfer response", &answer))
    }
}

impl SnapshotFile {
    /// The bytes of the file in chunks. Ends early when the file cannot be read, which the receiver
    /// notices by its size and digest.
    pub fn chunks(&self, chunk_bytes: usize) -> BoxStream<'static, Bytes> {
        let (disk, name, total) = (self.disk.clone(), self.meta.name.clone(), self.meta.bytes);
        let state = (disk, name, None, 0u64);
        futures::stream::unfold(state, move |(disk, name, file, offset)| async move {
            if offset >= total {
                return None;
            }
            let length = (total - offset).min(chunk_bytes as u64);
            runtime::blocking(move || {
                let file = match file {
                    Some(file) => file,
                    None => disk.open(&name).ok()?,
                };
                let mut chunk = vec![0; usize::try_from(length).ok()?];
                file.read_at(offset, &mut chunk).ok()?;
                Some((Bytes::from(chunk), (disk, name, Some(file), offset + length)))
            })
            .await
        })
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::AtomicUsize;

    use openraft::raft::StreamAppendError;

    use super::*;
    use crate::raft::types::{LeaderId, LogId};
    use crate::state::State;
    use crate::store::checkpoint::Digest;
    use crate::store::fault::FaultDisk;
    use crate::store::image::{ImageMeta, Point};
    use crate::store::pending::AppliedEntry;
    use crate::store::snapshot::Head;

    /// What a peer does with a stream; somebody goes on to read what is to be sent in any case.
    #[derive(Debug, Clone, Copy)]
    enum Peer {
        Refuses,
        Breaks,
        AnswersAndBreaks,
        Hangs,
        AnswersAndHangs,
        AnswersAndEnds,
        /// Reads a snapshot, whole or not, and does not take it.
        Declines {
            whole: bool,
        },
    }

    impl Peers for Peer {
        fn refuses(&self, _: NodeId, _: &str, _: Duration) -> BoxFuture<'static, bool> {
            unreachable!("a stream is opened")
        }

        fn call(
            &self,
            _: NodeId,
            _: &str,
            _: Method,
            _: Bytes,
            _: Duration,
        ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
            unreachable!("a stream is opened")
        }

        fn stream(
            &self,
            _: NodeId,
            _: &str,
            _: Channel,
            mut input: BoxStream<'static, Bytes>,
        ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, PeerError>>, PeerError>>
        {
            let error = Err(PeerError::NoAnswer("reset".to_owned()));
            let id = LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index: 7 };
            let answer = Ok(codec::encode_append_result(&Ok(Some(id))));
            let (answers, hangs) = match self {
                Peer::Refuses => {
                    runtime::spawn(input.count());
                    return std::future::ready(Err(PeerError::NoAnswer("no".to_owned()))).boxed();
                }
                Peer::Breaks => (vec![error], false),
                Peer::AnswersAndBreaks => (vec![answer, error], false),
                Peer::Hangs => (vec![], true),
                Peer::AnswersAndHangs => (vec![answer], true),
                Peer::AnswersAndEnds => (vec![answer], false),
                Peer::Declines { .. } => unreachable!("a snapshot is sent"),
            };
            async move {
                input.next().await.unwrap();
                runtime::spawn(input.count());
                let answers = stream::iter(answers);
                Ok(if hangs { answers.chain(stream::pending()).boxed() } else { answers.boxed() })
            }
            .boxed()
        }

        fn snapshot(
            &self,
            _: NodeId,
            _: &str,
            _: Bytes,
            mut chunks: BoxStream<'static, Bytes>,
            _: Duration,
        ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
            let Peer::Declines { whole } = *self else { unreachable!("a stream is opened") };
            async move {
                while whole && chunks.next().await.is_some() {}
                Err(PeerError::NoAnswer("it is not taken".to_owned()))
            }
            .boxed()
        }
    }

    /// Counts the snapshots that are wanted.
    #[derive(Debug, Default)]
    struct Store {
        current: Option<SnapshotFile>,
        made: AtomicUsize,
    }

    impl Checkpoints for Store {
        fn absorb(&self, _: AppliedEntry) {}

        fn snapshot(&self, _: Freshness) -> BoxFuture<'static, std::io::Result<SnapshotFile>> {
            self.made.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err(std::io::Error::other("no"))).boxed()
        }

        fn current(&self) -> Option<SnapshotFile> {
            self.current.clone()
        }

        fn install(&self, _: SnapshotFile) -> BoxFuture<'static, std::io::Result<State>> {
            unreachable!("a snapshot is sent")
        }

        fn image(&self) -> BoxFuture<'static, std::io::Result<Option<ImageMeta>>> {
            unreachable!("a snapshot is sent")
        }

        fn digests(&self) -> Vec<Digest> {
            Vec::new()
        }
    }

    /// A follower that is full, away or slow costs no new snapshot; one that was sent a file that has rotted does.
    #[tokio::test]
    async fn a_snapshot_is_made_again_only_when_it_has_rotted() {
        for (rotten, whole, gone, expected) in [
            (false, true, false, 0),
            (true, true, false, 1),
            (true, false, false, 0),
            // There is a newer one.
            (true, true, true, 0),
        ] {
            let disk = FaultDisk::new();
            let head = Head {
                cluster_id: "test".to_owned(),
                point: Point { index: 7, ..Point::default() },
                revision: 1,
                now_ms: 1,
            };
            let row = (vec![1], vec![0; 3 * SNAPSHOT_CHUNK_BYTES]);
            let rows = std::iter::once(Ok::<_, std::convert::Infallible>(row));
            let meta = snapshot::write(&disk, &head, rows, None).unwrap();
            if rotten {
                assert!(disk.flip(&meta.name, 2_000_000, 1));
            }
            let file = SnapshotFile { disk: disk.handle(), meta };
            let current = (!gone).then(|| file.clone());
            let store = Arc::new(Store { current, ..Store::default() });
            let network =
                Network::new(1, Arc::new(Peer::Declines { whole }), Arc::default(), store.clone());
            let mut link = network.link(2, &Member::default(), true);
            let meta = SnapshotMeta::default();
            let snapshot = openraft::Snapshot { meta, snapshot: file };
            let vote = Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true };
            let option = RPCOption::new(Duration::from_secs(5));
            let sent = link.full_snapshot(vote, snapshot, std::future::pending(), option).await;
            assert!(matches!(sent, Err(StreamingError::Network(_))), "{sent:?}");
            assert_eq!(store.made.load(Ordering::SeqCst), expected, "{rotten} {whole} {gone}");
        }
    }

    type Answer = Result<Result<Option<LogId>, StreamAppendError<Types>>, RPCError<Types>>;

    /// What openraft sees of a stream with so many requests, and how many were read in all; None when it goes on
    /// for ever. The horizon rises once the stream is open.
    async fn seen(peer: Peer, count: usize, horizon: u64) -> Option<(Vec<Answer>, usize)> {
        let network = Network::new(1, Arc::new(peer), Arc::default(), Arc::new(Store::default()));
        let mut link = network.link(2, &Member::default(), true);
        let read = Arc::new(AtomicUsize::new(0));
        let counter = read.clone();
        let requests = stream::repeat_with(move || {
            counter.fetch_add(1, Ordering::SeqCst);
            AppendEntriesRequest {
                vote: Vote { leader_id: LeaderId { term: 1, node_id: 1 }, committed: true },
                prev_log_id: None,
                entries: Vec::new(),
                leader_commit: None,
            }
        });
        // One at a time: the reader would never end.
        let requests = requests.take(count).then(|request| async {
            runtime::sleep(Duration::from_millis(1)).await;
            request
        });
        let option = RPCOption::new(Duration::from_secs(1));
        let answers = link.stream_append(requests.boxed(), option).await.unwrap();
        runtime::spawn(async move {
            runtime::sleep(Duration::from_secs(5)).await;
            network.horizon.raise(horizon);
        });
        let answers = runtime::timeout(Duration::from_secs(60), answers.collect()).await.ok()?;
        let then = read.load(Ordering::SeqCst);
        runtime::sleep(Duration::from_millis(20)).await;
        assert_eq!(read.load(Ordering::SeqCst), then, "nobody reads on");
        Some((answers, then))
    }

    const ENDLESS: usize = usize::MAX;

    fn assert_acknowledged(answer: &Answer) {
        let acknowledged = answer.as_ref().unwrap().as_ref().unwrap();
        assert_eq!(acknowledged.map(|id| id.index), Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_after_an_answer_ends_without_an_error() {
        let (answers, read) = seen(Peer::AnswersAndBreaks, ENDLESS, 0).await.unwrap();
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert_acknowledged(&answers[0]);
        assert!(read > 0);
    }

    /// openraft would carry out an order that it has taken back.
    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_before_any_answer_says_so() {
        for requests in [1, ENDLESS] {
            let (answers, _) = seen(Peer::Breaks, requests, 0).await.unwrap();
            assert!(matches!(answers[..], [Err(RPCError::Network(_))]), "{answers:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_refused_says_so() {
        let (answers, _) = seen(Peer::Refuses, ENDLESS, 0).await.unwrap();
        assert!(matches!(answers[..], [Err(RPCError::Network(_))]), "{answers:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_follower_behind_the_horizon_is_given_up() {
        assert!(seen(Peer::Hangs, ENDLESS, 0).await.is_none(), "it may take its time");
        for requests in [1, ENDLESS] {
            let (answers, _) = seen(Peer::Hangs, requests, 1).await.unwrap();
            assert!(matches!(answers[..], [Err(RPCError::Network(_))]), "{answers:?}");
        }
        assert!(seen(Peer::AnswersAndHangs, ENDLESS, 8).await.is_none(), "it lacks nothing");
        let (answers, _) = seen(Peer::AnswersAndHangs, ENDLESS, 9).await.unwrap();
        assert_acknowledged(&answers[0]);
        assert!(matches!(answers[1..], [Err(RPCError::Network(_))]), "{answers:?}");
        // What was asked once and answered is over: an error would be taken for one of what came next.
        assert!(seen(Peer::AnswersAndHangs, 1, 9).await.is_none());
        let (answers, _) = seen(Peer::AnswersAndEnds, 1, 9).await.unwrap();
        assert_eq!(answers.len(), 1, "{answers:?}");
    }
}
