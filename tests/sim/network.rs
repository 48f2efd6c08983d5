//! The simulated network: between nodes as [`Peers`], between clients and nodes as [`World::ask`].
//!
//! A message takes a random time and may get lost; a link may be cut in one direction or both. A
//! stream is a connection: ordered, held back while its link is cut, broken when that lasts or when
//! an end dies. What is under way to a node that dies is lost with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _};
use quorate::error::Error;
use quorate::node::Node;
use quorate::raft::codec;
use quorate::raft::network::{Channel, Method, PeerError, Peers};
use quorate::raft::service::PeerHandler;
use quorate::raft::types::{LogId, NodeId};
use quorate::runtime::{self, Instant};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{Notify, mpsc, oneshot};
use xxhash_rust::xxh3::xxh3_64;

use crate::cluster::World;
use crate::plant::Plant;
use crate::trace::trace;

/// How long opening a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// A connection whose link is cut for this long breaks.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Messages under way on one stream in one direction.
const WINDOW: usize = 64;
/// Bytes of a snapshot that travel in one piece.
const PIECE: usize = 2_048;
/// How often a message that is held back looks whether it may go on.
const LOOK: Duration = Duration::from_millis(10);

/// The state of all links. Numbers from [`CLIENTS`] on are clients.
#[derive(Debug)]
pub struct Network {
    inner: Mutex<Inner>,
}

/// Numbers of clients begin here.
pub const CLIENTS: u64 = 100;

#[derive(Debug)]
struct Inner {
    random: StdRng,
    /// Links that carry nothing, by sender and receiver.
    cut: BTreeSet<(u64, u64)>,
    /// Links on which something answers for the receiver that nobody listens.
    rejected: BTreeSet<(u64, u64)>,
    /// One message in so many is lost on a link.
    loss: BTreeMap<(u64, u64), u32>,
    /// Greatest extra delay of a node's links, in ms.
    slow: BTreeMap<u64, u64>,
    /// What a node has sent since then arrives after this moment.
    held: BTreeMap<u64, Instant>,
    connections: Vec<(u64, u64, Weak<Break>)>,
}

/// A connection, as far as its end is concerned.
#[derive(Debug, Default)]
struct Break {
    broken: AtomicBool,
    /// One for each who waits: the sender of requests, their receiver, the receiver of answers.
    waiters: [Notify; 3],
}

impl Break {
    fn now(&self) {
        self.broken.store(true, Ordering::Relaxed);
        for waiter in &self.waiters {
            waiter.notify_one();
        }
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    async fn wait(&self, who: usize) {
        while !self.is_broken() {
            self.waiters[who].notified().await;
        }
    }
}

/// Ends the connection together with the end that holds it.
struct Tied(Arc<Break>);

impl Drop for Tied {
    fn drop(&mut self) {
        self.0.now();
    }
}

impl Network {
    pub fn new(seed: u64) -> Network {
        let inner = Inner {
            random: StdRng::seed_from_u64(seed),
            cut: BTreeSet::new(),
            rejected: BTreeSet::new(),
            loss: BTreeMap::new(),
            slow: BTreeMap::new(),
            held: BTreeMap::new(),
            connections: Vec::new(),
        };
        Network { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cuts a link in one direction.
    pub fn cut(&self, from: u64, to: u64) {
        self.lock().cut.insert((from, to));
    }

    /// Cuts a link as a firewall does that says so.
    pub fn reject(&self, from: u64, to: u64) {
        let mut inner = self.lock();
        inner.cut.insert((from, to));
        inner.rejected.insert((from, to));
    }

    pub fn join(&self, from: u64, to: u64) {
        let mut inner = self.lock();
        inner.cut.remove(&(from, to));
        inner.rejected.remove(&(from, to));
    }

    pub fn lose(&self, from: u64, to: u64, one_in: Option<u32>) {
        match one_in {
            Some(one_in) => self.lock().loss.insert((from, to), one_in),
            None => self.lock().loss.remove(&(from, to)),
        };
    }

    pub fn slow_down(&self, node: u64, ms: Option<u64>) {
        match ms {
            Some(ms) => self.lock().slow.insert(node, ms),
            None => self.lock().slow.remove(&node),
        };
    }

    /// Lets nothing that this node sends arrive before `until`.
    pub fn hold(&self, node: u64, until: Instant) {
        self.lock().held.insert(node, until);
    }

    /// Everything works again.
    pub fn heal(&self) {
        let mut inner = self.lock();
        inner.cut.clear();
        inner.rejected.clear();
        inner.loss.clear();
        inner.slow.clear();
        inner.held.clear();
    }

    /// Breaks the connections of a node.
    pub fn reset(&self, node: u64) {
        let mut inner = self.lock();
        for (from, to, connection) in std::mem::take(&mut inner.connections) {
            let Some(broken) = connection.upgrade() else { continue };
            if from == node || to == node {
                broken.now();
            } else {
                inner.connections.push((from, to, connection));
            }
        }
    }

    fn passes(&self, from: u64, to: u64) -> bool {
        !self.lock().cut.contains(&(from, to))
    }

    fn is_rejected(&self, from: u64, to: u64) -> bool {
        self.lock().rejected.contains(&(from, to))
    }

    fn connected(&self, from: u64, to: u64) -> Arc<Break> {
        let connection = Arc::new(Break::default());
        let mut inner = self.lock();
        if inner.connections.len() == inner.connections.capacity() {
            inner.connections.retain(|(_, _, other)| other.strong_count() > 0);
        }
        inner.connections.push((from, to, Arc::downgrade(&connection)));
        connection
    }

    fn delay(&self, from: u64, to: u64) -> Duration {
        let mut inner = self.lock();
        let mut ms = match inner.random.random_range(0..100) {
            0..80 => 1,
            80..98 => inner.random.random_range(1..=5),
            _ => inner.random.random_range(5..=60),
        };
        let slow = inner.slow.get(&from).or(inner.slow.get(&to)).copied();
        if let Some(most) = slow {
            ms += inner.random.random_range(0..=most);
        }
        let mut delay = Duration::from_millis(ms);
        if let Some(until) = inner.held.get(&from) {
            delay += until.saturating_duration_since(Instant::now());
        }
        delay
    }

    fn is_lost(&self, from: u64, to: u64) -> bool {
        let mut inner = self.lock();
        let Some(one_in) = inner.loss.get(&(from, to)).copied() else { return false };
        inner.random.random_range(0..one_in) == 0
    }

    fn chance(&self, one_in: u32) -> bool {
        self.lock().random.random_range(0..one_in) == 0
    }

    /// Waits until the link carries something; false when that takes too long.
    async fn wait_for_link(&self, from: u64, to: u64) -> bool {
        let give_up = Instant::now() + KEEP_ALIVE;
        while !self.passes(from, to) {
            if Instant::now() >= give_up {
                return false;
            }
            runtime::sleep(LOOK).await;
        }
        true
    }
}

fn no_answer(why: &str) -> PeerError {
    PeerError::NoAnswer(why.to_owned())
}

/// The seed of a value in a trace.
pub fn short(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

/// What a request of a stream says, for the trace.
fn request(channel: Channel, bytes: &Bytes) -> String {
    let hash = short(bytes);
    match (channel, codec::decode_append(bytes.clone())) {
        (Channel::Append, Ok(request)) => {
            let index = |id: Option<LogId>| id.map(|id| (id.leader_id.term, id.index));
            let (previous, commit) = (index(request.prev_log_id), index(request.leader_commit));
            let last = index(request.entries.last().map(|entry| entry.log_id));
            format!(
                "{hash:08x} {:?} after {previous:?} to {last:?} commits {commit:?}",
                request.vote
            )
        }
        _ => format!("{hash:08x}"),
    }
}

/// What an answer of a stream says, for the trace.
fn response(channel: Channel, bytes: &Bytes) -> String {
    match (channel, codec::decode_append_result(bytes.clone())) {
        (Channel::Append, Ok(result)) => format!("{result:?}"),
        _ => format!("{:08x}", short(bytes)),
    }
}

impl World {
    /// Carries one message over; false when it did not arrive.
    pub async fn travel(&self, from: u64, to: u64) -> bool {
        let lost = self.network.is_lost(from, to) || !self.network.passes(from, to);
        runtime::sleep(self.network.delay(from, to)).await;
        !lost && self.network.passes(from, to)
    }

    async fn call(
        self: Arc<Self>,
        from: NodeId,
        to: NodeId,
        method: Method,
        payload: Bytes,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let deadline = Instant::now() + timeout;
        trace!(self, "{from}>{to} {method:?} {:08x}", short(&payload));
        match (self.plant, method) {
            (Plant::ReadWithoutIndex, Method::ReadIndex) => {
                return Ok(codec::to_bytes(&Some(0u64)));
            }
            (Plant::KeepAliveNotForwarded, Method::KeepAlive) => {
                let sessions: Vec<u64> = codec::from_bytes("keep-alives", &payload)?;
                let ttls: Vec<Result<u64, u64>> = sessions.iter().map(|_| Ok(1_000)).collect();
                return Ok(codec::to_bytes(&ttls));
            }
            _ => {}
        }
        if !self.travel(from, to).await {
            // Either the connection stood, and nobody knows; or it had to be made first.
            if self.network.chance(2) {
                runtime::sleep(CONNECT.min(deadline - Instant::now())).await;
                return Err(PeerError::Unreachable("no connection".to_owned()));
            }
            runtime::sleep_until(deadline).await;
            return Err(no_answer("lost"));
        }
        let Some((scope, node)) = self.running(to) else {
            runtime::sleep(self.network.delay(to, from)).await;
            return Err(PeerError::Unreachable("refused".to_owned()));
        };
        trace!(self, "{from}:{to} {method:?}");
        let (tx, rx) = oneshot::channel();
        scope.spawn(async move {
            let answer = PeerHandler::call(&node, method, payload).await;
            // The caller may have given up.
            let _ = tx.send(answer);
        });
        let answer = rx.await;
        if !self.travel(to, from).await {
            runtime::sleep_until(deadline).await;
            return Err(no_answer("lost"));
        }
        let answer = answer.unwrap_or_else(|_| Err(no_answer("reset")));
        let hash = answer.as_ref().map(|bytes| short(bytes));
        trace!(self, "{to}>{from} answers {method:?} {hash:08x?}");
        answer
    }

    /// Opens a connection; an error when that does not succeed.
    async fn connect(
        &self,
        from: u64,
        to: u64,
    ) -> Result<(runtime::Scope, Node, Arc<Break>), PeerError> {
        let give_up = Instant::now() + CONNECT;
        if !self.travel(from, to).await || !self.network.passes(to, from) {
            runtime::sleep_until(give_up).await;
            return Err(PeerError::Unreachable("no connection".to_owned()));
        }
        // Whoever connects hears of it one journey later.
        runtime::sleep(self.network.delay(to, from)).await;
        match self.running(to) {
            Some((scope, node)) => Ok((scope, node, self.network.connected(from, to))),
            None => Err(PeerError::Unreachable("refused".to_owned())),
        }
    }

    /// When the next message of a stream arrives: not before the one sent before it.
    fn arrival(&self, from: u64, to: u64, last: &mut Instant) -> Instant {
        // What a lossy link drops is sent again.
        let again = if self.network.is_lost(from, to) { 200 } else { 0 };
        let delay = self.network.delay(from, to) + Duration::from_millis(again);
        *last = (*last).max(Instant::now() + delay);
        *last
    }

    async fn stream(
        self: Arc<Self>,
        from: NodeId,
        to: NodeId,
        channel: Channel,
        mut input: BoxStream<'static, Bytes>,
    ) -> Result<BoxStream<'static, Result<Bytes, PeerError>>, PeerError> {
        let (scope, node, connection) = self.connect(from, to).await?;
        trace!(self, "{from}:{to} {channel:?} opens");
        let (request_tx, request_rx) = mpsc::channel::<(Instant, Bytes)>(WINDOW);
        let (answer_tx, answer_rx) = mpsc::channel(WINDOW);

        // The caller's side of the requests.
        let (world, broken) = (self.clone(), connection.clone());
        runtime::spawn(async move {
            let mut last = Instant::now();
            loop {
                let bytes = tokio::select! {
                    biased;
                    () = broken.wait(0) => break,
                    bytes = input.next() => bytes,
                };
                let Some(bytes) = bytes else { break };
                trace!(world, "{from}>{to} {channel:?} {}", request(channel, &bytes));
                let at = world.arrival(from, to, &mut last);
                if request_tx.send((at, bytes)).await.is_err() {
                    break;
                }
            }
        });

        // The other side: its handler reads what has arrived, and its answers travel back.
        let requests = self.clone().arrivals(from, to, 1, connection.clone(), request_rx);
        let requests = requests.filter_map(|bytes| std::future::ready(bytes.ok()));
        let (world, tied) = (self.clone(), Tied(connection.clone()));
        scope.spawn(async move {
            let mut answers = PeerHandler::stream(&node, channel, requests.boxed());
            drop(node);
            let mut last = Instant::now();
            while let Some(answer) = answers.next().await {
                let said = answer.as_ref().map(|bytes| response(channel, bytes));
                trace!(world, "{to}>{from} {channel:?} answers {said:?}");
                let at = world.arrival(to, from, &mut last);
                if answer_tx.send((at, Some(answer))).await.is_err() {
                    return;
                }
            }
            // The end travels behind what was sent before it.
            let at = world.arrival(to, from, &mut last);
            if answer_tx.send((at, None)).await.is_ok() {
                answer_tx.closed().await;
            }
            drop(tied);
        });

        let tied = Tied(connection.clone());
        let answers = self.arrivals(to, from, 2, connection, answer_rx);
        let answers = answers
            .take_while(|answer| std::future::ready(!matches!(answer, Ok(None))))
            .filter_map(move |answer| {
                let _tied = &tied;
                std::future::ready(
                    answer.transpose().map(|answer| answer.and_then(|answer| answer)),
                )
            });
        Ok(answers.boxed())
    }

    /// What arrives at `to`, at its time; an error last when the connection breaks.
    fn arrivals<T: Send + 'static>(
        self: Arc<Self>,
        from: u64,
        to: u64,
        who: usize,
        connection: Arc<Break>,
        queue: mpsc::Receiver<(Instant, T)>,
    ) -> BoxStream<'static, Result<T, PeerError>> {
        let start = Some((self, connection, queue));
        futures::stream::unfold(start, move |state| async move {
            let (world, connection, mut queue) = state?;
            let arrive = async {
                let (at, item) = queue.recv().await?;
                runtime::sleep_until(at).await;
                if !world.network.wait_for_link(from, to).await {
                    connection.now();
                    return None;
                }
                Some(item)
            };
            let item = tokio::select! {
                biased;
                () = connection.wait(who) => None,
                item = arrive => item,
            };
            match item {
                Some(item) => Some((Ok(item), Some((world, connection, queue)))),
                None => Some((Err(no_answer("reset")), None)),
            }
        })
        .boxed()
    }

    async fn snapshot(
        self: Arc<Self>,
        from: NodeId,
        to: NodeId,
        head: Bytes,
        mut chunks: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let deadline = Instant::now() + timeout;
        let (scope, node, connection) = self.connect(from, to).await?;
        trace!(self, "{from}:{to} snapshot {:08x}", short(&head));
        let _tied = Tied(connection.clone());
        let (tx, rx) = mpsc::channel(WINDOW);
        let (world, broken) = (self.clone(), connection.clone());
        runtime::spawn(async move {
            let mut last = Instant::now();
            while let Some(mut chunk) = chunks.next().await {
                while !chunk.is_empty() {
                    let piece = chunk.split_to(chunk.len().min(PIECE));
                    let at = world.arrival(from, to, &mut last);
                    if broken.is_broken() || tx.send((at, Some(piece))).await.is_err() {
                        return;
                    }
                }
            }
            // A receiver that is gone has said so by an answer.
            let _ = tx.send((last, None)).await;
        });
        let pieces = self.clone().arrivals(from, to, 1, connection.clone(), rx);
        let pieces = pieces.take_while(|piece| std::future::ready(!matches!(piece, Ok(None))));
        let pieces = pieces.filter_map(|piece| std::future::ready(piece.transpose()));
        let (answer_tx, answer_rx) = oneshot::channel();
        scope.spawn(async move {
            let answer = PeerHandler::snapshot(&node, head, pieces.boxed()).await;
            // The caller may have given up.
            let _ = answer_tx.send(answer);
        });
        let arrive = async {
            let answer = answer_rx.await.unwrap_or_else(|_| Err(no_answer("reset")));
            // It travels on the connection: sent again when it is lost, until the connection breaks.
            let at = self.arrival(to, from, &mut Instant::now());
            runtime::sleep_until(at).await;
            if self.network.wait_for_link(to, from).await {
                answer
            } else {
                Err(no_answer("reset"))
            }
        };
        let answer = tokio::select! {
            biased;
            () = connection.wait(2) => Err(no_answer("reset")),
            () = runtime::sleep_until(deadline) => Err(no_answer("late")),
            answer = arrive => answer,
        };
        trace!(self, "{to}>{from} snapshot answers {}", answer.is_ok());
        answer
    }

    /// A client's call: `work` runs on the node, and what it says travels back.
    pub async fn ask<T, W, F>(
        self: &Arc<Self>,
        client: u64,
        to: NodeId,
        timeout: Duration,
        work: W,
    ) -> Result<T, Error>
    where
        T: Send + 'static,
        W: FnOnce(Node) -> F,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let deadline = Instant::now() + timeout;
        let connection = |definite| Error::Connection { message: String::new(), definite };
        if !self.travel(client, to).await {
            if self.network.chance(2) {
                runtime::sleep(CONNECT.min(deadline - Instant::now())).await;
                return Err(connection(true));
            }
            runtime::sleep_until(deadline).await;
            return Err(Error::Timeout { definite: false });
        }
        let Some((scope, node)) = self.running(to) else {
            runtime::sleep(self.network.delay(to, client)).await;
            return Err(connection(true));
        };
        let (tx, rx) = oneshot::channel();
        let work = work(node);
        scope.spawn(async move {
            // The client may have given up.
            let _ = tx.send(work.await);
        });
        match runtime::timeout_at(deadline, rx).await {
            Ok(Ok(answer)) if self.travel(to, client).await => answer,
            Ok(Err(_)) => {
                runtime::sleep(self.network.delay(to, client)).await;
                Err(connection(false))
            }
            Ok(Ok(_)) | Err(_) => {
                runtime::sleep_until(deadline).await;
                Err(Error::Timeout { definite: false })
            }
        }
    }

    /// Waits as long as a message from a node to a client takes; false when the link is cut for good.
    pub async fn reaches_client(&self, from: NodeId, client: u64) -> bool {
        runtime::sleep(self.network.delay(from, client)).await;
        self.network.wait_for_link(from, client).await
    }
}

/// The network as one node sees it.
pub struct SimPeers {
    pub world: Arc<World>,
    pub id: NodeId,
}

impl fmt::Debug for SimPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimPeers").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Peers for SimPeers {
    fn refuses(&self, to: NodeId, _address: &str, timeout: Duration) -> BoxFuture<'static, bool> {
        let (world, from) = (self.world.clone(), self.id);
        async move {
            let refused = async {
                if world.network.is_rejected(from, to) {
                    runtime::sleep(world.network.delay(from, to)).await;
                    return true;
                }
                if world.travel(from, to).await && world.running(to).is_none() {
                    return world.travel(to, from).await;
                }
                false
            };
            runtime::timeout(timeout, refused).await.unwrap_or(false)
        }
        .boxed()
    }

    fn call(
        &self,
        to: NodeId,
        _address: &str,
        method: Method,
        payload: Bytes,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        self.world.clone().call(self.id, to, method, payload, timeout).boxed()
    }

    fn stream(
        &self,
        to: NodeId,
        _address: &str,
        channel: Channel,
        input: BoxStream<'static, Bytes>,
    ) -> BoxFuture<'static, Result<BoxStream<'static, Result<Bytes, PeerError>>, PeerError>> {
        self.world.clone().stream(self.id, to, channel, input).boxed()
    }

    fn snapshot(
        &self,
        to: NodeId,
        _address: &str,
        head: Bytes,
        chunks: BoxStream<'static, Bytes>,
        timeout: Duration,
    ) -> BoxFuture<'static, Result<Bytes, PeerError>> {
        self.world.clone().snapshot(self.id, to, head, chunks, timeout).boxed()
    }
}
