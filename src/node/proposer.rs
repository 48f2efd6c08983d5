//! The way of a command into the log: one queue, one entry per batch, a few entries in flight.
//!
//! The proposer waits for a first command, lets everything that is runnable queue up once, takes what
//! waits (never a timer: a lone command leaves at once) and proposes it. While two entries are in flight it
//! waits for a full one: so batches grow with the load, and with a great one the nodes always have work. When
//! another node leads, the same batch goes to it over one stream. Without a leader commands wait, up to their
//! deadlines.
//!
//! Invariant: each command that was taken in is answered exactly once. `definite` in an error is
//! true only when the command was certainly never proposed.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt as _;
use openraft::errors::ClientWriteError;
use openraft::impls::ProgressResponder;
use tokio::sync::{Notify, mpsc, oneshot};

use super::wire::{self, WireError};
use super::{Answer, Leadership, Node};
use crate::error::Error;
use crate::failpoint::failpoint;
use crate::limits::{
    BATCH_BYTES, BATCH_COMMANDS, FORWARD_ANSWER_BYTES, FULL_PROPOSALS_IN_FLIGHT, MAX_CALL_TIMEOUT,
    PROPOSAL_QUEUE, PROPOSALS_IN_FLIGHT,
};
use crate::raft::codec;
use crate::raft::network::{Channel, PeerError};
use crate::raft::types::Batch;
use crate::runtime::{self, Instant};
use crate::state::Outcome;

/// How often overdue commands are looked for behind others.
const SWEEP: Duration = Duration::from_millis(50);
/// Pause before commands are offered again to a leader that did not take them.
const OFFER_AGAIN: Duration = Duration::from_millis(5);
/// How long opening the stream to a leader may take.
const OPEN_STREAM: Duration = Duration::from_secs(2);
/// Forwarded batches that wait for the stream to the leader.
const FORWARD_QUEUE: usize = 16;

/// Gets the answers of submitted commands; called exactly once for each.
pub trait Sink: Send + Sync {
    fn answer(&self, tag: u64, answer: Answer);
}

/// Where an answer goes.
pub enum ReplyTo {
    Once(oneshot::Sender<Answer>),
    /// Many commands of one stream share a sink and are told apart by their tags.
    Sink {
        tag: u64,
        sink: Arc<dyn Sink>,
    },
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReplyTo::Once(_) => f.write_str("Once"),
            ReplyTo::Sink { tag, .. } => write!(f, "Sink({tag})"),
        }
    }
}

impl ReplyTo {
    pub(super) fn send(self, answer: Answer) {
        match self {
            // The caller may have given up.
            ReplyTo::Once(tx) => drop(tx.send(answer)),
            ReplyTo::Sink { tag, sink } => sink.answer(tag, answer),
        }
    }
}

/// A command that waits.
#[derive(Debug)]
pub struct Pending {
    pub command: Bytes,
    pub deadline: Instant,
    /// It was forwarded to this node, or is the leader's own: it goes no further.
    pub local_only: bool,
    pub reply: ReplyTo,
}

impl Pending {
    fn fail(self, error: Error) {
        self.reply.send(Err(error));
    }
}

/// The queue in front of the log.
#[derive(Debug)]
pub struct Proposer {
    queue: Mutex<VecDeque<Pending>>,
    wake: Notify,
    forwarder: Forwarder,
    /// Commands and entries that were proposed and not answered.
    in_flight: AtomicU64,
    entries: AtomicUsize,
    failed: AtomicU64,
    proposed: AtomicU64,
}

impl Proposer {
    pub fn new() -> Self {
        Proposer {
            queue: Mutex::new(VecDeque::new()),
            wake: Notify::new(),
            forwarder: Forwarder::default(),
            in_flight: AtomicU64::new(0),
            entries: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
            proposed: AtomicU64::new(0),
        }
    }

    /// Queues a command; never blocks. A full queue answers `Overloaded` at once.
    pub fn submit(&self, pending: Pending) {
        {
            let mut queue = self.queue();
            if queue.len() < PROPOSAL_QUEUE {
                queue.push_back(pending);
                drop(queue);
                self.wake.notify_one();
                return;
            }
        }
        self.failed.fetch_add(1, Ordering::Relaxed);
        let (queue, limit) = ("proposals".to_owned(), PROPOSAL_QUEUE as u64);
        pending.fail(Error::Overloaded { queue, limit });
    }

    /// Commands that wait or are in flight.
    pub fn pending(&self) -> u64 {
        self.queue().len() as u64 + self.in_flight.load(Ordering::Relaxed)
    }

    /// Commands that were answered with an error of the node's, since the start.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Commands proposed by this node as the leader, since the start.
    pub fn proposed(&self) -> u64 {
        self.proposed.load(Ordering::Relaxed)
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Pending>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts commands that were certainly not proposed back where they were.
    fn requeue(&self, batch: Vec<Pending>) {
        let mut queue = self.queue();
        for pending in batch.into_iter().rev() {
            queue.push_front(pending);
        }
        drop(queue);
        self.wake.notify_one();
    }

    fn fail(&self, pending: Pending, error: Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        pending.fail(error);
    }

    /// Waits until something waits, and then until it may leave, but not beyond `until`; says whether it may. Entries in
    /// flight hold back only what is to follow them into the log.
    async fn ready(&self, leads: impl Fn() -> bool, until: Instant) -> bool {
        loop {
            let waiting = self.queue().len();
            let entries = self.entries.load(Ordering::Relaxed);
            if waiting == 0 {
                self.wake.notified().await;
            } else if entries < PROPOSALS_IN_FLIGHT || !leads() {
                runtime::yield_now().await;
                return true;
            } else if waiting >= BATCH_COMMANDS && entries < FULL_PROPOSALS_IN_FLIGHT {
                return true;
            } else if runtime::timeout_at(until, self.wake.notified()).await.is_err() {
                return false;
            }
        }
    }

    /// Takes the next batch: everything that waits, within the limits of one entry.
    fn take(&self) -> Vec<Pending> {
        let now = Instant::now();
        let mut queue = self.queue();
        let mut batch = Vec::with_capacity(queue.len().min(BATCH_COMMANDS));
        let mut overdue = Vec::new();
        let mut bytes = 0;
        while let Some(next) = queue.front() {
            if !batch.is_empty()
                && (batch.len() >= BATCH_COMMANDS || bytes + next.command.len() > BATCH_BYTES)
            {
                break;
            }
            let Some(pending) = queue.pop_front() else { break };
            if pending.deadline <= now {
                overdue.push(pending);
            } else {
                bytes += pending.command.len();
                batch.push(pending);
            }
        }
        drop(queue);
        for pending in overdue {
            self.fail(pending, Error::Timeout { definite: true });
        }
        batch
    }

    /// Answers those that go, wherever in the queue they are: deadlines mostly grow from front to back, but need not.
    fn sweep(&self, goes: impl Fn(&Pending) -> bool, error: impl Fn() -> Error) {
        let mut gone = VecDeque::new();
        {
            let mut queue = self.queue();
            if queue.iter().any(&goes) {
                let all = std::mem::take(&mut *queue);
                (gone, *queue) = all.into_iter().partition(&goes);
            }
        }
        for pending in gone {
            self.fail(pending, error());
        }
    }

    /// Answers everything that waits; the node is being shut down.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.queue());
        for pending in all {
            self.fail(pending, Error::ShuttingDown { definite: true });
        }
    }
}

/// Proposes what is queued until the node is dropped.
pub async fn run(node: Node) {
    let proposer = node.proposer();
    let leads = || matches!(node.leadership(), Leadership::Leader { .. });
    let mut sweep_at = Instant::now() + SWEEP;
    loop {
        let may_propose = proposer.ready(leads, sweep_at).await;
        let now = Instant::now();
        let is_overdue = |pending: &Pending| pending.deadline <= now;
        let overdue = || Error::Timeout { definite: true };
        match node.leadership() {
            Leadership::Leader { .. } => {
                if sweep_at <= now {
                    proposer.sweep(is_overdue, overdue);
                    sweep_at = now + SWEEP;
                }
                let batch = if may_propose { proposer.take() } else { Vec::new() };
                if !batch.is_empty() {
                    propose(&node, batch).await;
                }
            }
            Leadership::Follower { leader, address, .. } => {
                proposer.sweep(is_overdue, overdue);
                proposer.sweep(|pending| pending.local_only, || node.no_leader());
                let batch = proposer.take();
                if !batch.is_empty() {
                    forward(&node, leader, &address, batch).await;
                }
            }
            Leadership::Unknown => {
                let goes = |pending: &Pending| is_overdue(pending) || pending.local_only;
                proposer.sweep(goes, || Error::NoLeader { leader: None, definite: true });
                runtime::sleep(OFFER_AGAIN).await;
            }
        }
    }
}

/// Proposes one batch as one entry and answers it when the entry is applied.
async fn propose(node: &Node, batch: Vec<Pending>) {
    let size: usize = batch.iter().map(|pending| pending.command.len() + 4).sum();
    let mut commands = BytesMut::with_capacity(size);
    for pending in &batch {
        let length = u32::try_from(pending.command.len()).expect("commands are below their limit");
        commands.put_u32_le(length);
        commands.put_slice(&pending.command);
    }
    let count = u32::try_from(batch.len()).expect("a batch is below its limit");
    let entry = Batch { at_ms: node.now_ms(), count, commands: commands.freeze() };
    let (responder, answer) = ProgressResponder::complete_only();
    let proposer = node.proposer();
    let in_flight = InFlight::begin(node, batch.len() as u64);
    proposer.proposed.fetch_add(batch.len() as u64, Ordering::Relaxed);
    if node.raft().client_write_ff(entry, Some(responder)).await.is_err() {
        for pending in batch {
            proposer.fail(pending, Error::ShuttingDown { definite: false });
        }
        return;
    }
    runtime::spawn(settle(in_flight, batch, answer));
}

/// An entry in flight, until this is dropped, and those of its commands whose callers may wait.
struct InFlight {
    node: Node,
    commands: u64,
}

impl InFlight {
    fn begin(node: &Node, commands: u64) -> InFlight {
        let proposer = node.proposer();
        proposer.in_flight.fetch_add(commands, Ordering::Relaxed);
        proposer.entries.fetch_add(1, Ordering::Relaxed);
        InFlight { node: node.clone(), commands }
    }

    /// They count no longer.
    fn release_commands(&mut self) {
        let commands = std::mem::take(&mut self.commands);
        self.node.proposer().in_flight.fetch_sub(commands, Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.release_commands();
        let proposer = self.node.proposer();
        proposer.entries.fetch_sub(1, Ordering::Relaxed);
        proposer.wake.notify_one();
    }
}

type Applied = openraft::raft::ClientWriteResult<crate::raft::types::Types>;

/// Answers a proposed batch: with its outcomes, or each command at its own deadline.
async fn settle(
    mut in_flight: InFlight,
    batch: Vec<Pending>,
    mut answer: oneshot::Receiver<Applied>,
) {
    let node = in_flight.node.clone();
    let proposer = node.proposer();
    let mut waiting: Vec<Option<Pending>> = batch.into_iter().map(Some).collect();
    let result = loop {
        let Some(next) = waiting.iter().flatten().map(|pending| pending.deadline).min() else {
            // The entry is in flight as long as nobody knows what becomes of it.
            in_flight.release_commands();
            drop(answer.await);
            return;
        };
        match runtime::timeout_at(next, &mut answer).await {
            Ok(result) => break result,
            Err(_) => {
                let now = Instant::now();
                for slot in &mut waiting {
                    if slot.as_ref().is_some_and(|pending| pending.deadline <= now)
                        && let Some(pending) = slot.take()
                    {
                        proposer.fail(pending, Error::Timeout { definite: false });
                    }
                }
            }
        }
    };
    match result {
        Ok(Ok(response)) => {
            failpoint!(await Answer, |_| {
                for pending in waiting.into_iter().flatten() {
                    proposer.fail(pending, Error::LeaderChanged);
                }
            });
            let outcomes: Vec<Outcome> = response.data.0;
            assert_eq!(outcomes.len(), waiting.len(), "one outcome per command");
            for (slot, outcome) in waiting.into_iter().zip(outcomes) {
                if let Some(pending) = slot {
                    pending.reply.send(Ok(outcome));
                }
            }
        }
        // Rejected before it was appended (openraft documents and its code shows it): offer it again.
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => {
            runtime::sleep(OFFER_AGAIN).await;
            proposer.requeue(waiting.into_iter().flatten().collect());
        }
        Ok(Err(
            ClientWriteError::LogEntryDiscarded(_)
            | ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_),
        )) => {
            for pending in waiting.into_iter().flatten() {
                proposer.fail(pending, Error::LeaderChanged);
            }
        }
        Err(_) => {
            for pending in waiting.into_iter().flatten() {
                proposer.fail(pending, Error::ShuttingDown { definite: false });
            }
        }
    }
}

// ---- forwarding ----

/// The stream to the leader and the commands that are under way on it.
#[derive(Debug, Default)]
struct Forwarder {
    current: Mutex<Option<Arc<Stream>>>,
}

#[derive(Debug)]
struct Stream {
    leader: u64,
    input: mpsc::Sender<Bytes>,
    under_way: Mutex<UnderWay>,
}

#[derive(Debug, Default)]
struct UnderWay {
    closed: bool,
    next: u64,
    commands: BTreeMap<u64, Pending>,
}

impl Stream {
    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more commands; gives back those that were not answered.
    fn close(&self) -> Vec<Pending> {
        let mut under_way = self.under_way();
        under_way.closed = true;
        std::mem::take(&mut under_way.commands).into_values().collect()
    }
}

impl Forwarder {
    fn current(&self) -> MutexGuard<'_, Option<Arc<Stream>>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The open stream to this leader, or a new one.
    fn stream(&self, node: &Node, leader: u64, address: &str) -> Arc<Stream> {
        let mut current = self.current();
        if let Some(stream) = &*current
            && stream.leader == leader
            && !stream.under_way().closed
        {
            return stream.clone();
        }
        let (input, output) = mpsc::channel(FORWARD_QUEUE);
        let stream = Arc::new(Stream { leader, input, under_way: Mutex::default() });
        *current = Some(stream.clone());
        runtime::spawn(pump(node.clone(), stream.clone(), address.to_owned(), output));
        stream
    }
}

/// Hands a batch to the leader. What could not be handed over is offered again.
async fn forward(node: &Node, leader: u64, address: &str, batch: Vec<Pending>) {
    let stream = node.proposer().forwarder.stream(node, leader, address);
    let now = Instant::now();
    let bytes = {
        let mut under_way = stream.under_way();
        if under_way.closed || under_way.commands.len() > PROPOSAL_QUEUE {
            None
        } else {
            let first = under_way.next;
            under_way.next += batch.len() as u64;
            let bytes = wire::encode_forward(batch.iter().zip(first..).map(|(pending, id)| {
                let left = pending.deadline.saturating_duration_since(now).as_millis();
                (id, u32::try_from(left).unwrap_or(u32::MAX), &pending.command)
            }));
            Some((first, bytes))
        }
    };
    let Some((first, bytes)) = bytes else {
        runtime::sleep(OFFER_AGAIN).await;
        node.proposer().requeue(batch);
        return;
    };
    // The queue is bounded: a leader that does not read holds the proposer here, and commands that
    // wait behind it are refused as overloaded or run into their deadlines.
    let permit = runtime::timeout(SWEEP, stream.input.reserve()).await;
    match permit {
        Ok(Ok(permit)) => {
            let mut under_way = stream.under_way();
            if under_way.closed {
                drop(under_way);
                node.proposer().requeue(batch);
                return;
            }
            under_way.commands.extend((first..).zip(batch));
            permit.send(bytes);
        }
        Ok(Err(_)) | Err(_) => {
            node.proposer().requeue(batch);
            runtime::sleep(OFFER_AGAIN).await;
        }
    }
}

/// Carries one stream to the leader until it breaks or another node leads.
async fn pump(node: Node, stream: Arc<Stream>, address: String, output: mpsc::Receiver<Bytes>) {
    let input = tokio_stream::wrappers::ReceiverStream::new(output).boxed();
    let open = node.peers().stream(stream.leader, &address, Channel::Forward, input);
    let mut open = std::pin::pin!(runtime::timeout(OPEN_STREAM, open));
    let opened = loop {
        tokio::select! {
            biased;
            opened = &mut open => break opened,
            () = runtime::sleep(SWEEP) => expire(&node, &stream),
        }
    };
    match opened {
        Ok(Ok(mut answers)) => loop {
            tokio::select! {
                biased;
                answer = answers.next() => match answer {
                    Some(Ok(bytes)) => deliver(&node, &stream, &bytes),
                    Some(Err(_)) | None => break,
                },
                () = runtime::sleep(SWEEP) => {
                    expire(&node, &stream);
                    let idle = stream.under_way().commands.is_empty();
                    if idle && node.leader_id() != Some(stream.leader) {
                        break;
                    }
                }
            }
        },
        Ok(Err(PeerError::Unreachable(_) | PeerError::Refused(_))) => {
            // No connection: nothing of what is queued in the channel has been sent.
            runtime::sleep(SWEEP).await;
            let never_sent = stream.close();
            node.proposer().requeue(never_sent);
            return;
        }
        // Requests travel before the stream is known to be open: they may have arrived.
        Ok(Err(PeerError::NoAnswer(_))) | Err(_) => {}
    }
    for pending in stream.close() {
        node.proposer().fail(pending, Error::LeaderChanged);
    }
}

/// Hands out the answers of one message of the leader's.
fn deliver(node: &Node, stream: &Stream, bytes: &[u8]) {
    let answers: Vec<(u64, Result<Outcome, WireError>)> =
        match codec::from_bytes("forwarded answers", bytes) {
            Ok(answers) => answers,
            Err(error) => {
                tracing::warn!(%error, leader = stream.leader, "unreadable answer of the leader");
                return;
            }
        };
    let mut again = Vec::new();
    for (id, result) in answers {
        let Some(pending) = stream.under_way().commands.remove(&id) else { continue };
        match result {
            Ok(outcome) => pending.reply.send(Ok(outcome)),
            Err(error) => match Error::from(error) {
                // It does not lead any more and has not proposed it.
                Error::NoLeader { definite: true, .. } if !pending.local_only => {
                    again.push(pending)
                }
                error => node.proposer().fail(pending, error),
            },
        }
    }
    if !again.is_empty() {
        node.proposer().requeue(again);
    }
}

/// Answers forwarded commands whose deadline passed without a word of the leader.
fn expire(node: &Node, stream: &Stream) {
    let now = Instant::now();
    let overdue: Vec<Pending> = {
        let mut under_way = stream.under_way();
        let ids: Vec<u64> = under_way
            .commands
            .iter()
            .filter(|(_, pending)| pending.deadline <= now)
            .map(|(id, _)| *id)
            .collect();
        ids.iter().filter_map(|id| under_way.commands.remove(id)).collect()
    };
    for pending in overdue {
        node.proposer().fail(pending, Error::Timeout { definite: false });
    }
}

// ---- the leader's side of forwarding ----

/// Collects the answers to one peer's forwarded commands and sends them in as few messages as it can.
#[derive(Debug, Default)]
struct Collector {
    ready: Mutex<Vec<(u64, Result<Outcome, WireError>)>>,
    wake: Notify,
}

impl Sink for Collector {
    fn answer(&self, tag: u64, answer: Answer) {
        let answer = answer.map_err(WireError::from);
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).push((tag, answer));
        self.wake.notify_one();
    }
}

/// Answers a peer's stream of forwarded commands.
pub fn serve(
    node: Node,
    mut input: futures::stream::BoxStream<'static, Bytes>,
) -> futures::stream::BoxStream<'static, Bytes> {
    let collector = Arc::new(Collector::default());
    let (tx, rx) = mpsc::channel(FORWARD_QUEUE);
    let sink: Arc<Collector> = collector.clone();
    let reader = runtime::spawn(async move {
        while let Some(bytes) = input.next().await {
            let Ok(commands) = wire::decode_forward(bytes) else { return };
            for (tag, timeout_ms, command) in commands {
                let reply = ReplyTo::Sink { tag, sink: sink.clone() };
                // It is this disk that the write would go to first.
                if let Some(error) = node.no_space() {
                    reply.send(Err(error));
                    continue;
                }
                let timeout = Duration::from_millis(timeout_ms.into()).min(MAX_CALL_TIMEOUT);
                let deadline = Instant::now() + timeout;
                node.proposer().submit(Pending { command, deadline, local_only: true, reply });
            }
        }
    });
    runtime::spawn(async move {
        loop {
            tokio::select! {
                biased;
                () = collector.wake.notified() => {}
                () = tx.closed() => break,
            }
            let ready = std::mem::take(
                &mut *collector.ready.lock().unwrap_or_else(PoisonError::into_inner),
            );
            // Each may be as long as the reply to a transaction, and many come of one entry: the next message is made
            // when the peer has room for it.
            for answers in codec::lists_to_bytes(ready, FORWARD_ANSWER_BYTES) {
                if tx.send(answers).await.is_err() {
                    break;
                }
            }
        }
        reader.abort();
    });
    tokio_stream::wrappers::ReceiverStream::new(rx).boxed()
}
