//! The pipelined stream: any number of calls under way, answered in any order, in as few messages as
//! possible. One task does it all, whenever the connection can take an answer: it takes in what was
//! sent, hands writes to the node, looks up all reads of a message behind one barrier, and packs
//! whatever answers are there into the next message. A client that does not read its answers is
//! therefore not read from either.
//!
//! Invariant: `under_way` counts the calls that were taken in and not answered, and never exceeds
//! `STREAM_CALLS_IN_FLIGHT`. Each call is answered exactly once unless the connection breaks; when the
//! stream ends by itself, every call that was taken in has been answered.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::Router;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered, Stream, StreamExt as _};
use prost::Message as _;
use tonic::codec::EncodeBuf;
use tonic::server::StreamingService;
use tonic::{Request, Response, Status, Streaming};

use super::calls::{self, Read, StreamWrite};
use super::convert::wire;
use super::encoded::{self, Encoded};
use super::{Api, convert, lock, read_header, shutting_down};
use crate::error::Error;
use crate::limits::{
    DEFAULT_CALL_TIMEOUT, LOOK_AHEAD, MAX_CALL_TIMEOUT, STREAM_CALLS_IN_FLIGHT, STREAM_FRAME_BYTES,
    STREAM_FRAME_CALLS,
};
use crate::node::{Answer as Outcome, Node, ReplyTo, Sink};
use crate::proto::v1::stream_answer::Answer;
use crate::proto::v1::stream_call::Call;
use crate::proto::v1::{
    AcquireLockRequest, AddCounterRequest, CloseSessionRequest, Consistency, DeleteConfigRequest,
    DeleteServiceRequest, DeregisterRequest, GetConfigRequest, GetCounterRequest,
    GetInstanceRequest, GetServiceRequest, Header, KeepAliveRequest, KeepAliveResponse,
    ListInstancesRequest, OpenSessionRequest, PublishConfigRequest, PutServiceRequest,
    RegisterRequest, ReleaseLockRequest, ReportConfigRequest, RollbackConfigRequest,
    SetCounterRequest, StreamAnswer, StreamCall, StreamRequest, TxnRequest, UpdateInstanceRequest,
    UpdateLockRequest,
};
use crate::state::{self, Command, InstanceName, State};

const PATH: &str = "/quorate.v1.Sessions/Stream";
/// Reads that are looked up while the state is locked once.
const READS_AT_ONCE: usize = 256;

/// One stream of a client's.
pub struct Pipeline<I> {
    node: Node,
    /// None when nothing more is read.
    input: Option<I>,
    /// None once the node is about to stop.
    drain: Option<BoxFuture<'static, ()>>,
    /// A message that has to wait until there is room for its calls.
    parked: Option<Vec<StreamCall>>,
    replies: Arc<Replies>,
    sinks: Sinks,
    waiting: FuturesUnordered<BoxFuture<'static, Waited>>,
    allowed: VecDeque<Allowed>,
    /// Found and not encoded; kept for its memory.
    found: Vec<Result<Found, Error>>,
    /// Replies that were taken and are not encoded.
    batch: VecDeque<Reply>,
    outbox: Answers,
    under_way: usize,
    /// How the stream ends after the last answer; None = well.
    end: Option<Status>,
}

/// Answers as they stand in a message, one behind the other: each is encoded once, and a message is a piece of them.
#[derive(Default)]
struct Answers {
    bytes: BytesMut,
    /// Of each.
    lengths: VecDeque<usize>,
    /// An instance on its way into an answer; kept for its memory.
    instance: Vec<u8>,
}

/// A message as its bytes.
#[derive(Debug)]
pub struct Packed(pub Bytes);

/// Replies of the node to writes, until the stream's task takes them.
#[derive(Default)]
struct Replies {
    inner: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    replies: VecDeque<Reply>,
    waker: Option<Waker>,
    /// Nobody takes them any more.
    closed: bool,
}

struct Reply {
    id: u64,
    respond: Respond,
    outcome: Outcome,
}

/// Turns what the state said into the answer that its kind of call gets.
type Respond = fn(u64, state::Outcome) -> Result<Answer, Error>;

/// Where the answers to one kind of call go; the tag of a command is the id of its call.
struct KindSink {
    respond: Respond,
    replies: Arc<Replies>,
}

struct Sinks {
    register: Arc<dyn Sink>,
    deregister: Arc<dyn Sink>,
    update_instance: Arc<dyn Sink>,
    put_service: Arc<dyn Sink>,
    delete_service: Arc<dyn Sink>,
    open_session: Arc<dyn Sink>,
    close_session: Arc<dyn Sink>,
    publish_config: Arc<dyn Sink>,
    delete_config: Arc<dyn Sink>,
    rollback_config: Arc<dyn Sink>,
    report_config: Arc<dyn Sink>,
    add_counter: Arc<dyn Sink>,
    set_counter: Arc<dyn Sink>,
    acquire_lock: Arc<dyn Sink>,
    release_lock: Arc<dyn Sink>,
    update_lock: Arc<dyn Sink>,
    txn: Arc<dyn Sink>,
}

/// A read of the stream, and what it found.
enum Query {
    Instance(<GetInstanceRequest as Read>::Query),
    Instances(<ListInstancesRequest as Read>::Query),
    Service(<GetServiceRequest as Read>::Query),
    Config(<GetConfigRequest as Read>::Query),
    Counter(<GetCounterRequest as Read>::Query),
    Txn(<TxnRequest as Read>::Query),
}

enum Found {
    Instance(<GetInstanceRequest as Read>::Found),
    Instances(<ListInstancesRequest as Read>::Found),
    Service(<GetServiceRequest as Read>::Found),
    Config(<GetConfigRequest as Read>::Found),
    Counter(<GetCounterRequest as Read>::Found),
    Txn(<TxnRequest as Read>::Found),
}

/// The reads of one message that share a barrier.
type Reads = Vec<(u64, Query)>;

/// What came of calls that had to wait.
enum Waited {
    Answers(Answers),
    Reply(Reply),
    Reads(Allowed),
}

/// Reads whose barrier is behind them.
struct Allowed {
    used: Consistency,
    reads: std::vec::IntoIter<(u64, Query)>,
}

impl<I> Pipeline<I>
where
    I: Stream<Item = Result<StreamRequest, Status>> + Unpin,
{
    pub fn new(api: &Api, input: I) -> Pipeline<I> {
        let replies = Arc::new(Replies::default());
        Pipeline {
            node: api.node.clone(),
            input: Some(input),
            drain: Some(Box::pin(api.drain.clone().begun())),
            parked: None,
            sinks: Sinks::new(&replies),
            replies,
            waiting: FuturesUnordered::new(),
            allowed: VecDeque::new(),
            found: Vec::new(),
            batch: VecDeque::new(),
            outbox: Answers::default(),
            under_way: 0,
            end: None,
        }
    }

    /// Reads no further; what is under way is still answered.
    fn stop(&mut self, end: Option<Status>) {
        self.input = None;
        self.end = end;
    }

    /// Takes in one message when there is one and there is room for its calls.
    fn take_in(&mut self, cx: &mut Context<'_>) -> bool {
        if self.parked.is_none() {
            self.read(cx);
        }
        match self.parked.take() {
            Some(calls) if self.under_way + calls.len() <= STREAM_CALLS_IN_FLIGHT => {
                self.begin(calls);
                true
            }
            // The answers that make room wake this task.
            parked => {
                self.parked = parked;
                false
            }
        }
    }

    fn read(&mut self, cx: &mut Context<'_>) {
        let Some(input) = &mut self.input else { return };
        match input.poll_next_unpin(cx) {
            Poll::Pending => {}
            Poll::Ready(None) => self.stop(None),
            Poll::Ready(Some(Err(status))) => self.stop(Some(status)),
            Poll::Ready(Some(Ok(StreamRequest { calls }))) => match calls.len() {
                1..=STREAM_FRAME_CALLS => self.parked = Some(calls),
                count => {
                    let allowed = format!("1..={STREAM_FRAME_CALLS} calls in one message");
                    let error = Error::invalid("calls", format!("{count} calls"), allowed);
                    self.stop(Some(error.into()));
                }
            },
        }
    }

    /// Begins the calls of one message.
    fn begin(&mut self, calls: Vec<StreamCall>) {
        self.under_way += calls.len();
        let mut linearizable = Reads::new();
        let mut stale = Reads::new();
        let mut kept_alive = Vec::new();
        let mut read = |this: &mut Self, id, query: Result<(Consistency, Query), Error>| match query
        {
            Ok((Consistency::Stale, query)) => stale.push((id, query)),
            Ok((Consistency::Linearizable | Consistency::Unspecified, query)) => {
                linearizable.push((id, query));
            }
            Err(error) => this.outbox.push(&failed(id, &error)),
        };
        for StreamCall { id, call } in calls {
            match call {
                Some(Call::Register(call)) => self.write(id, call, |sinks| &sinks.register),
                Some(Call::Deregister(call)) => self.write(id, call, |sinks| &sinks.deregister),
                Some(Call::UpdateInstance(call)) => {
                    self.write(id, call, |sinks| &sinks.update_instance)
                }
                Some(Call::PutService(call)) => self.write(id, call, |sinks| &sinks.put_service),
                Some(Call::DeleteService(call)) => {
                    self.write(id, call, |sinks| &sinks.delete_service)
                }
                Some(Call::OpenSession(call)) => self.write(id, call, |sinks| &sinks.open_session),
                Some(Call::CloseSession(call)) => {
                    self.write(id, call, |sinks| &sinks.close_session)
                }
                Some(Call::PublishConfig(call)) => {
                    self.write(id, call, |sinks| &sinks.publish_config)
                }
                Some(Call::DeleteConfig(call)) => {
                    self.write(id, call, |sinks| &sinks.delete_config)
                }
                Some(Call::RollbackConfig(call)) => {
                    self.write(id, call, |sinks| &sinks.rollback_config)
                }
                Some(Call::ReportConfig(call)) => {
                    self.write(id, call, |sinks| &sinks.report_config)
                }
                Some(Call::AddCounter(call)) => self.write(id, call, |sinks| &sinks.add_counter),
                Some(Call::SetCounter(call)) => self.write(id, call, |sinks| &sinks.set_counter),
                Some(Call::AcquireLock(call)) if call.wait_ms > 0 => {
                    self.waiting.push(Box::pin(acquire(self.node.clone(), id, call)));
                }
                Some(Call::AcquireLock(call)) => self.write(id, call, |sinks| &sinks.acquire_lock),
                Some(Call::ReleaseLock(call)) => self.write(id, call, |sinks| &sinks.release_lock),
                Some(Call::UpdateLock(call)) => self.write(id, call, |sinks| &sinks.update_lock),
                Some(Call::Txn(call)) if call.only_reads() => {
                    read(self, id, Read::query(call).map(|(c, query)| (c, Query::Txn(query))));
                }
                Some(Call::Txn(call)) => self.write(id, call, |sinks| &sinks.txn),
                Some(Call::GetConfig(call)) => {
                    read(self, id, call.query().map(|(c, query)| (c, Query::Config(query))));
                }
                Some(Call::GetCounter(call)) => {
                    let now_ms = self.node.now_ms();
                    let query = call.query().map(|(consistency, mut query)| {
                        GetCounterRequest::stamp(&mut query, now_ms);
                        (consistency, Query::Counter(query))
                    });
                    read(self, id, query);
                }
                Some(Call::GetInstance(call)) => {
                    read(self, id, call.query().map(|(c, query)| (c, Query::Instance(query))));
                }
                Some(Call::ListInstances(call)) => {
                    read(self, id, call.query().map(|(c, query)| (c, Query::Instances(query))));
                }
                Some(Call::GetService(call)) => {
                    read(self, id, call.query().map(|(c, query)| (c, Query::Service(query))));
                }
                Some(Call::KeepAlive(KeepAliveRequest { session })) => {
                    kept_alive.push((id, session));
                }
                None => {
                    let allowed = "a call that this release knows";
                    let error = Error::invalid("call", "none or an unknown one", allowed);
                    self.outbox.push(&failed(id, &error));
                }
            }
        }
        if !kept_alive.is_empty() {
            self.waiting.push(Box::pin(keep_alive(self.node.clone(), kept_alive)));
        }
        for (consistency, reads) in
            [(Consistency::Linearizable, linearizable), (Consistency::Stale, stale)]
        {
            if !reads.is_empty() {
                self.waiting.push(Box::pin(allow(self.node.clone(), consistency, reads)));
            }
        }
    }

    fn write<W: StreamWrite>(&mut self, id: u64, call: W, sink: fn(&Sinks) -> &Arc<dyn Sink>) {
        let prepared = call.command().and_then(|mut command| {
            let prepared = self.node.prepare_now(&mut command);
            prepared.transpose().map(|now| (command, now.is_some()))
        });
        match prepared {
            Ok((command, true)) => {
                let reply = ReplyTo::Sink { tag: id, sink: sink(&self.sinks).clone() };
                self.node.submit(&command, reply, DEFAULT_CALL_TIMEOUT);
            }
            Ok((command, false)) => {
                let respond = calls::stream_response::<W>;
                self.waiting.push(Box::pin(prepare(self.node.clone(), id, command, respond)));
            }
            Err(error) => self.outbox.push(&failed(id, &error)),
        }
    }

    /// Collects the answers that are there, as far as there is room for them.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(waited)) = self.waiting.poll_next_unpin(cx) {
            match waited {
                Waited::Answers(answers) => self.outbox.append(answers),
                Waited::Reply(reply) => self.batch.push_back(reply),
                Waited::Reads(reads) => self.allowed.push_back(reads),
            }
        }
        // An answer may be many times as long as its call: the rest waits until this is sent. Reads and writes may each
        // fill a message, so that neither waits for the other for ever.
        if self.outbox.bytes.len() < STREAM_FRAME_BYTES {
            self.look_up();
            self.answer(self.outbox.bytes.len() + STREAM_FRAME_BYTES, cx.waker());
        }
    }

    /// Turns replies into answers, until the outbox holds so many bytes or no reply is left.
    fn answer(&mut self, upto: usize, waker: &Waker) {
        let node_id = self.node.id();
        while self.outbox.bytes.len() < upto {
            if self.batch.is_empty() {
                self.replies.take(&mut self.batch, waker);
            }
            let Some(Reply { id, respond, outcome }) = self.batch.pop_front() else { return };
            let answer = outcome.and_then(|outcome| respond(node_id, outcome));
            self.outbox.push(&answered(id, answer));
        }
    }

    /// Looks up as much as one message takes.
    fn look_up(&mut self) {
        while self.outbox.bytes.len() < STREAM_FRAME_BYTES {
            let Some(Allowed { used, reads }) = self.allowed.front_mut() else { return };
            let next = reads.as_slice();
            let short = next.iter().take(READS_AT_ONCE).take_while(|(_, query)| query.is_short());
            let count = short.count().max(1).min(next.len());
            if count == 0 {
                self.allowed.pop_front();
                continue;
            }
            let revision = self.node.read(|state| {
                for some in next[..count].chunks(LOOK_AHEAD) {
                    let names: Vec<_> = some.iter().filter_map(|(_, it)| it.instance()).collect();
                    state.look_at_instances(&names);
                    self.found.extend(some.iter().map(|(_, query)| query.find(state)));
                }
                state.revision()
            });
            let header = read_header(self.node.id(), revision, *used);
            for ((id, _), found) in reads.by_ref().take(count).zip(self.found.drain(..)) {
                match found {
                    Ok(found) => found.put(id, header, &self.node, &mut self.outbox),
                    Err(error) => self.outbox.push(&failed(id, &error)),
                }
            }
        }
    }

    /// Bytes of the answers that are made and not sent.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.outbox.bytes.len()
    }

    /// As many answers as one message takes; at least one when there is one.
    fn pack(&mut self) -> Option<Packed> {
        let (count, bytes) = self.outbox.take()?;
        self.under_way -= count;
        Some(Packed(bytes))
    }
}

impl<I> Stream for Pipeline<I>
where
    I: Stream<Item = Result<StreamRequest, Status>> + Unpin,
{
    type Item = Result<Packed, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.drain.as_mut().is_some_and(|drain| drain.as_mut().poll(cx).is_ready()) {
            this.drain = None;
            // What waits for room has not begun: the error is true of it as of what was never read.
            this.parked = None;
            this.stop(Some(shutting_down().into()));
        }
        let took = this.take_in(cx);
        this.collect(cx);
        if let Some(response) = this.pack() {
            return Poll::Ready(Some(Ok(response)));
        }
        if took {
            // There may be more to read. One message at a time: the log begins with the first while
            // the next is decoded, and nobody else waits for a whole pipeline.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.input.is_none() && this.parked.is_none() && this.under_way == 0 {
            return Poll::Ready(this.end.take().map(Err));
        }
        Poll::Pending
    }
}

impl<I> Drop for Pipeline<I> {
    fn drop(&mut self) {
        self.replies.close();
    }
}

impl<I> fmt::Debug for Pipeline<I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("under_way", &self.under_way).finish_non_exhaustive()
    }
}

/// `StreamResponse.answers`, `StreamAnswer.id` and `.get_instance`, `GetInstanceResponse.header` and `.instance`.
const ANSWERS: u32 = 1;
const ID: u32 = 1;
const GET_INSTANCE: u32 = 5;
const HEADER: u32 = 1;
const INSTANCE: u32 = 2;

impl Answers {
    fn push(&mut self, answer: &StreamAnswer) {
        let before = self.bytes.len();
        prost::encoding::message::encode(ANSWERS, answer, &mut self.bytes);
        self.lengths.push_back(self.bytes.len() - before);
    }

    /// The answer to `GetInstance`.
    fn push_instance(&mut self, id: u64, header: &Header, found: &state::Instance) {
        self.instance.clear();
        wire::put_instance(found, &mut self.instance);
        let header_len = header.encoded_len();
        let response =
            wire::field_len(HEADER, header_len) + wire::field_len(INSTANCE, self.instance.len());
        let answer = wire::number_len(ID, id) + wire::field_len(GET_INSTANCE, response);
        let to = &mut self.bytes;
        to.reserve(wire::field_len(ANSWERS, answer));
        wire::put_head(ANSWERS, answer, to);
        wire::put_number(ID, id, to);
        wire::put_head(GET_INSTANCE, response, to);
        wire::put_head(HEADER, header_len, to);
        header.encode_raw(to);
        wire::put_head(INSTANCE, self.instance.len(), to);
        to.extend_from_slice(&self.instance);
        self.lengths.push_back(wire::field_len(ANSWERS, answer));
    }

    fn append(&mut self, more: Answers) {
        if self.lengths.is_empty() {
            *self = more;
        } else {
            self.bytes.extend_from_slice(&more.bytes);
            self.lengths.extend(more.lengths);
        }
    }

    /// How many and which stand in the next message.
    fn take(&mut self) -> Option<(usize, Bytes)> {
        let (mut count, mut bytes) = (0, 0);
        for length in self.lengths.iter().take(STREAM_FRAME_CALLS) {
            if count > 0 && bytes + length > STREAM_FRAME_BYTES {
                break;
            }
            bytes += length;
            count += 1;
        }
        self.lengths.drain(..count);
        (count > 0).then(|| (count, self.bytes.split_to(bytes).freeze()))
    }
}

impl From<StreamAnswer> for Waited {
    fn from(answer: StreamAnswer) -> Waited {
        let mut answers = Answers::default();
        answers.push(&answer);
        Waited::Answers(answers)
    }
}

impl Encoded for Packed {
    fn put(self, buf: &mut EncodeBuf<'_>) {
        buf.put(self.0);
    }
}

impl Replies {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, reply: Reply) {
        let mut inbox = self.lock();
        if inbox.closed {
            return;
        }
        inbox.replies.push_back(reply);
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Swaps what is there with the empty `batch`; when nothing is there, whoever pushes next wakes.
    fn take(&self, batch: &mut VecDeque<Reply>, waker: &Waker) {
        let mut inbox = self.lock();
        std::mem::swap(&mut inbox.replies, batch);
        if batch.is_empty() {
            match &mut inbox.waker {
                Some(old) => old.clone_from(waker),
                none => *none = Some(waker.clone()),
            }
        }
    }

    fn close(&self) {
        let mut inbox = self.lock();
        inbox.closed = true;
        inbox.replies = VecDeque::new();
    }
}

impl Sink for KindSink {
    fn answer(&self, tag: u64, answer: Outcome) {
        self.replies.push(Reply { id: tag, respond: self.respond, outcome: answer });
    }
}

impl Sinks {
    fn new(replies: &Arc<Replies>) -> Sinks {
        fn sink<W: StreamWrite + 'static>(replies: &Arc<Replies>) -> Arc<dyn Sink> {
            Arc::new(KindSink { respond: calls::stream_response::<W>, replies: replies.clone() })
        }
        Sinks {
            register: sink::<RegisterRequest>(replies),
            deregister: sink::<DeregisterRequest>(replies),
            update_instance: sink::<UpdateInstanceRequest>(replies),
            put_service: sink::<PutServiceRequest>(replies),
            delete_service: sink::<DeleteServiceRequest>(replies),
            open_session: sink::<OpenSessionRequest>(replies),
            close_session: sink::<CloseSessionRequest>(replies),
            publish_config: sink::<PublishConfigRequest>(replies),
            delete_config: sink::<DeleteConfigRequest>(replies),
            rollback_config: sink::<RollbackConfigRequest>(replies),
            report_config: sink::<ReportConfigRequest>(replies),
            add_counter: sink::<AddCounterRequest>(replies),
            set_counter: sink::<SetCounterRequest>(replies),
            acquire_lock: sink::<AcquireLockRequest>(replies),
            release_lock: sink::<ReleaseLockRequest>(replies),
            update_lock: sink::<UpdateLockRequest>(replies),
            txn: sink::<TxnRequest>(replies),
        }
    }
}

impl Query {
    /// Many of them are looked up while the state is locked once.
    fn is_short(&self) -> bool {
        match self {
            Query::Instance(_) | Query::Service(_) | Query::Counter(_) => true,
            Query::Instances(_) | Query::Config(_) | Query::Txn(_) => false,
        }
    }

    /// The one that is wanted.
    fn instance(&self) -> Option<&InstanceName> {
        match self {
            Query::Instance(name) => Some(name),
            _ => None,
        }
    }

    fn find(&self, state: &State) -> Result<Found, Error> {
        match self {
            Query::Instance(query) => GetInstanceRequest::find(query, state).map(Found::Instance),
            Query::Instances(query) => {
                ListInstancesRequest::find(query, state).map(Found::Instances)
            }
            Query::Service(query) => GetServiceRequest::find(query, state).map(Found::Service),
            Query::Config(query) => GetConfigRequest::find(query, state).map(Found::Config),
            Query::Counter(query) => GetCounterRequest::find(query, state).map(Found::Counter),
            Query::Txn(query) => TxnRequest::find(query, state).map(Found::Txn),
        }
    }
}

impl Found {
    fn put(self, id: u64, header: Header, node: &Node, to: &mut Answers) {
        let answer = match self {
            Found::Instance(found) => return to.push_instance(id, &header, &found),
            Found::Instances(found) => {
                ListInstancesRequest::respond(header, found).map(|mut response| {
                    ListInstancesRequest::complete(&mut response, node);
                    Answer::ListInstances(response)
                })
            }
            Found::Service(found) => {
                GetServiceRequest::respond(header, found).map(|mut response| {
                    GetServiceRequest::complete(&mut response, node);
                    Answer::GetService(response)
                })
            }
            Found::Config(found) => GetConfigRequest::respond(header, found).map(Answer::GetConfig),
            Found::Counter(found) => {
                GetCounterRequest::respond(header, found).map(Answer::GetCounter)
            }
            Found::Txn(found) => <TxnRequest as Read>::respond(header, found).map(Answer::Txn),
        };
        to.push(&answered(id, answer));
    }
}

/// Waits for the barrier that these reads share.
async fn allow(node: Node, consistency: Consistency, reads: Reads) -> Waited {
    match node.barrier(consistency, DEFAULT_CALL_TIMEOUT).await {
        Ok(used) => Waited::Reads(Allowed { used, reads: reads.into_iter() }),
        Err(error) => {
            let mut answers = Answers::default();
            reads.iter().for_each(|(id, _)| answers.push(&failed(*id, &error)));
            Waited::Answers(answers)
        }
    }
}

/// A write whose content takes time to check.
async fn prepare(node: Node, id: u64, mut command: Command, respond: Respond) -> Waited {
    let outcome = async {
        node.prepare(&mut command, DEFAULT_CALL_TIMEOUT).await?;
        node.propose(&command, DEFAULT_CALL_TIMEOUT).await
    };
    Waited::Reply(Reply { id, respond, outcome: outcome.await })
}

async fn acquire(node: Node, id: u64, call: AcquireLockRequest) -> Waited {
    // As long as the call waits for the lock, and as any other call beyond that.
    let timeout = Duration::from_millis(call.wait_ms).saturating_add(DEFAULT_CALL_TIMEOUT);
    let answer = lock::acquire(&node, call, timeout.min(MAX_CALL_TIMEOUT)).await;
    answered(id, answer.map(Answer::AcquireLock)).into()
}

fn answered(id: u64, answer: Result<Answer, Error>) -> StreamAnswer {
    match answer {
        Ok(answer) => StreamAnswer { id, answer: Some(answer) },
        Err(error) => failed(id, &error),
    }
}

/// Calls by their ids, and the sessions that they keep alive.
async fn keep_alive(node: Node, calls: Vec<(u64, u64)>) -> Waited {
    let sessions = calls.iter().map(|(_, session)| *session).collect();
    let outcomes = node.keep_all_alive(sessions, DEFAULT_CALL_TIMEOUT).await;
    let header = read_header(node.id(), node.read(State::revision), Consistency::Unspecified);
    let mut answers = Answers::default();
    for ((id, _), outcome) in calls.into_iter().zip(outcomes) {
        let answer = outcome
            .map(|ttl_ms| Answer::KeepAlive(KeepAliveResponse { header: Some(header), ttl_ms }));
        answers.push(&answered(id, answer));
    }
    Waited::Answers(answers)
}

fn failed(id: u64, error: &Error) -> StreamAnswer {
    StreamAnswer { id, answer: Some(Answer::Error(convert::stream_error(error))) }
}

/// A stream's messages.
pub type Messages = BoxStream<'static, Result<Packed, Status>>;

struct Method(Api);

impl StreamingService<StreamRequest> for Method {
    type Response = Packed;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<Streaming<StreamRequest>>) -> Self::Future {
        let messages = Pipeline::new(&self.0, request.into_inner()).boxed();
        Box::pin(std::future::ready(Ok(Response::new(messages))))
    }
}

/// Mounts the method.
pub fn route(router: Router, api: &Api) -> Router {
    let api = api.clone();
    encoded::route::<Packed, StreamRequest>(router, PATH, move |mut grpc, request| {
        let method = Method(api.clone());
        Box::pin(async move { grpc.streaming(method, request).await })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::proto::v1::{GetInstanceResponse, StreamResponse};

    fn instance(bytes: usize) -> state::Instance {
        let reason = "r".repeat(bytes);
        state::Instance {
            namespace: "default".into(),
            service: "web".into(),
            id: "a".into(),
            endpoints: state::Endpoints::default(),
            weight: 1,
            zone: "".into(),
            metadata: state::Pairs::default(),
            health: state::Health::Passing,
            admin: state::Admin::Enabled,
            reason: reason.into(),
            hash_key: "".into(),
            session: None,
            orphaned_at_ms: None,
            critical_since_ms: None,
            create_revision: 1,
            mod_revision: 2,
            created_at_ms: 3,
            modified_at_ms: 4,
        }
    }

    /// Of every size, in their order, each once, whole messages within their bytes and calls.
    #[test]
    fn messages_are_pieces_of_the_answers() {
        let header = read_header(3, u64::MAX, Consistency::Linearizable);
        let (mut answers, mut expected) = (Answers::default(), Vec::new());
        for id in 0..20_000u64 {
            let mut more = Answers::default();
            let to = if id % 3 == 0 { &mut more } else { &mut answers };
            let bytes = match id {
                77 => 2 * STREAM_FRAME_BYTES,
                _ => [0, 100, 130, 20_000][(id % 41 % 4) as usize * usize::from(id < 9_000)],
            };
            let answer = if id % 5 == 0 {
                let error = Error::Timeout { definite: true };
                let answer = failed(id, &error);
                to.push(&answer);
                answer
            } else {
                let found = instance(bytes);
                to.push_instance(id, &header, &found);
                let instance = Some(convert::instance(&found));
                let response = GetInstanceResponse { header: Some(header), instance };
                StreamAnswer { id, answer: Some(Answer::GetInstance(response)) }
            };
            expected.push(answer);
            answers.append(more);
        }
        let mut seen = Vec::new();
        while let Some((count, bytes)) = answers.take() {
            assert!(bytes.len() <= STREAM_FRAME_BYTES || count == 1, "{} in {count}", bytes.len());
            let response = StreamResponse::decode(bytes).unwrap();
            assert_eq!(response.answers.len(), count);
            assert!((1..=STREAM_FRAME_CALLS).contains(&count));
            seen.extend(response.answers);
        }
        assert!(seen == expected);
        assert!(answers.bytes.is_empty() && answers.lengths.is_empty());
    }
}
