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

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, Stream, StreamExt as _};
use prost::Message as _;
use tonic::Status;

use super::calls::{self, Read, StreamWrite};
use super::{Api, convert, lock, read_header, shutting_down};
use crate::error::Error;
use crate::limits::{
    DEFAULT_CALL_TIMEOUT, MAX_CALL_TIMEOUT, STREAM_CALLS_IN_FLIGHT, STREAM_FRAME_BYTES,
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
    SetCounterRequest, StreamAnswer, StreamCall, StreamRequest, StreamResponse, TxnRequest,
    UpdateInstanceRequest, UpdateLockRequest,
};
use crate::state::{self, Command, State};

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
    waiting: FuturesUnordered<BoxFuture<'static, Vec<StreamAnswer>>>,
    /// Replies being turned into answers; kept for its memory.
    batch: Vec<Reply>,
    outbox: VecDeque<StreamAnswer>,
    under_way: usize,
    /// How the stream ends after the last answer; None = well.
    end: Option<Status>,
}

/// Replies of the node to writes, until the stream's task takes them.
#[derive(Default)]
struct Replies {
    inner: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    replies: Vec<Reply>,
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
            batch: Vec::new(),
            outbox: VecDeque::new(),
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
        let mut read = |this: &mut Self, id, query: Result<(Consistency, Query), Error>| match query
        {
            Ok((Consistency::Stale, query)) => stale.push((id, query)),
            Ok((Consistency::Linearizable | Consistency::Unspecified, query)) => {
                linearizable.push((id, query));
            }
            Err(error) => this.outbox.push_back(failed(id, &error)),
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
                    let now_ms = self.node.clock().wall_ms();
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
                    let answer = keep_alive(self.node.clone(), id, session);
                    self.waiting.push(Box::pin(answer));
                }
                None => {
                    let allowed = "a call that this release knows";
                    let error = Error::invalid("call", "none or an unknown one", allowed);
                    self.outbox.push_back(failed(id, &error));
                }
            }
        }
        for (consistency, reads) in
            [(Consistency::Linearizable, linearizable), (Consistency::Stale, stale)]
        {
            if !reads.is_empty() {
                self.waiting.push(Box::pin(look_up(self.node.clone(), consistency, reads)));
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
            Err(error) => self.outbox.push_back(failed(id, &error)),
        }
    }

    /// Collects the answers that are there.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(answers)) = self.waiting.poll_next_unpin(cx) {
            self.outbox.extend(answers);
        }
        self.replies.take(&mut self.batch, cx.waker());
        let node_id = self.node.id();
        for Reply { id, respond, outcome } in self.batch.drain(..) {
            self.outbox.push_back(match outcome.and_then(|outcome| respond(node_id, outcome)) {
                Ok(answer) => StreamAnswer { id, answer: Some(answer) },
                Err(error) => failed(id, &error),
            });
        }
    }

    /// As many answers as one message takes; at least one when there is one.
    fn pack(&mut self) -> Option<StreamResponse> {
        let mut bytes = 0;
        let mut count = 0;
        for answer in self.outbox.iter().take(STREAM_FRAME_CALLS) {
            bytes += answer.encoded_len();
            if count > 0 && bytes > STREAM_FRAME_BYTES {
                break;
            }
            count += 1;
        }
        self.under_way -= count;
        (count > 0).then(|| StreamResponse { answers: self.outbox.drain(..count).collect() })
    }
}

impl<I> Stream for Pipeline<I>
where
    I: Stream<Item = Result<StreamRequest, Status>> + Unpin,
{
    type Item = Result<StreamResponse, Status>;

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

impl Replies {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, reply: Reply) {
        let mut inbox = self.lock();
        if inbox.closed {
            return;
        }
        inbox.replies.push(reply);
        let waker = inbox.waker.take();
        drop(inbox);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Swaps what is there with the empty `batch`; when nothing is there, whoever pushes next wakes.
    fn take(&self, batch: &mut Vec<Reply>, waker: &Waker) {
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
        inbox.replies = Vec::new();
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
    fn answer(self, header: Header, node: &Node) -> Result<Answer, Error> {
        match self {
            Found::Instance(found) => {
                GetInstanceRequest::respond(header, found).map(Answer::GetInstance)
            }
            Found::Instances(found) => {
                let mut response = ListInstancesRequest::respond(header, found)?;
                ListInstancesRequest::complete(&mut response, node);
                Ok(Answer::ListInstances(response))
            }
            Found::Service(found) => {
                let mut response = GetServiceRequest::respond(header, found)?;
                GetServiceRequest::complete(&mut response, node);
                Ok(Answer::GetService(response))
            }
            Found::Config(found) => GetConfigRequest::respond(header, found).map(Answer::GetConfig),
            Found::Counter(found) => {
                GetCounterRequest::respond(header, found).map(Answer::GetCounter)
            }
            Found::Txn(found) => <TxnRequest as Read>::respond(header, found).map(Answer::Txn),
        }
    }
}

/// Answers reads that share a barrier.
async fn look_up(node: Node, consistency: Consistency, reads: Reads) -> Vec<StreamAnswer> {
    let used = match node.barrier(consistency, DEFAULT_CALL_TIMEOUT).await {
        Ok(used) => used,
        Err(error) => return reads.iter().map(|(id, _)| failed(*id, &error)).collect(),
    };
    let mut answers = Vec::with_capacity(reads.len());
    let mut found = Vec::with_capacity(reads.len().min(READS_AT_ONCE));
    for reads in reads.chunks(READS_AT_ONCE) {
        let revision = node.read(|state| {
            found.extend(reads.iter().map(|(_, query)| query.find(state)));
            state.revision()
        });
        let header = read_header(node.id(), revision, used);
        for ((id, _), found) in reads.iter().zip(found.drain(..)) {
            answers.push(match found.and_then(|found| found.answer(header, &node)) {
                Ok(answer) => StreamAnswer { id: *id, answer: Some(answer) },
                Err(error) => failed(*id, &error),
            });
        }
    }
    answers
}

/// A write whose content takes time to check.
async fn prepare(node: Node, id: u64, mut command: Command, respond: Respond) -> Vec<StreamAnswer> {
    let answer = async {
        node.prepare(&mut command, DEFAULT_CALL_TIMEOUT).await?;
        respond(node.id(), node.propose(&command, DEFAULT_CALL_TIMEOUT).await?)
    };
    vec![answered(id, answer.await)]
}

async fn acquire(node: Node, id: u64, call: AcquireLockRequest) -> Vec<StreamAnswer> {
    // As long as the call waits for the lock, and as any other call beyond that.
    let timeout = Duration::from_millis(call.wait_ms).saturating_add(DEFAULT_CALL_TIMEOUT);
    let answer = lock::acquire(&node, call, timeout.min(MAX_CALL_TIMEOUT)).await;
    vec![answered(id, answer.map(Answer::AcquireLock))]
}

fn answered(id: u64, answer: Result<Answer, Error>) -> StreamAnswer {
    match answer {
        Ok(answer) => StreamAnswer { id, answer: Some(answer) },
        Err(error) => failed(id, &error),
    }
}

async fn keep_alive(node: Node, id: u64, session: u64) -> Vec<StreamAnswer> {
    let answer = match node.keep_alive(session, DEFAULT_CALL_TIMEOUT).await {
        Ok(ttl_ms) => {
            let revision = node.read(State::revision);
            let header = read_header(node.id(), revision, Consistency::Unspecified);
            let answer = Answer::KeepAlive(KeepAliveResponse { header: Some(header), ttl_ms });
            StreamAnswer { id, answer: Some(answer) }
        }
        Err(error) => failed(id, &error),
    };
    vec![answer]
}

fn failed(id: u64, error: &Error) -> StreamAnswer {
    StreamAnswer { id, answer: Some(Answer::Error(convert::stream_error(error))) }
}
