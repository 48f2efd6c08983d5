//! The session stream: many calls under way on one connection of its own, answered in any order.
//!
//! Calls that are made while a frame is on its way leave together in the next one; there is no timer,
//! so a lone call leaves at once. When the connection breaks, calls that may be repeated are sent
//! again over another one, to another node if need be, until their deadlines.

mod driver;
mod table;
mod wire;

#[cfg(test)]
mod tests;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout_at};

use self::table::{After, Place, Table, Waiter};
use self::wire::Encoded;
pub use self::wire::Pipelined;
use super::connection::Client;
use super::remote::{lock, spawn};
use super::session::{Session, Ticket};
use crate::error::Error;
use crate::limits;
pub use crate::proto::v1::stream_answer::Answer;
pub use crate::proto::v1::stream_call::Call;

/// A session stream. Clones share it; it ends with the last of them.
#[derive(Clone)]
pub struct StreamHandle {
    pub(super) shared: Arc<Shared>,
    timeout: Duration,
    _guard: Arc<Guard>,
}

pub(super) struct Shared {
    client: Client,
    table: Mutex<Table>,
    /// One for each call that may be under way.
    permits: Semaphore,
    /// Wakes the connection: there is work, or the stream is closed.
    work: Notify,
    /// Wakes the tender: a call has an earlier deadline than it knows of, or the stream is closed.
    timers: Notify,
    /// What the tender sleeps until.
    armed: Mutex<Option<Instant>>,
    /// The buffer of the last frame.
    spare: Arc<Mutex<Vec<u8>>>,
}

/// Exists as long as somebody can make calls.
struct Guard {
    shared: Arc<Shared>,
}

/// Many calls of one caller, without a future for each: what load generators and bulk loaders use.
/// Each call is submitted under a tag, and its outcome comes back with it.
pub struct Pipeline {
    stream: StreamHandle,
    index: usize,
}

/// A call for a [`Pipeline`].
#[derive(Debug)]
pub struct Submission {
    /// Comes back with the outcome.
    pub tag: u64,
    pub call: Call,
    /// Whose id the call carries, if it does: settled when the call is over.
    pub ticket: Option<Ticket>,
}

impl fmt::Debug for StreamHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHandle")
            .field("under_way", &self.in_flight())
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("in_flight", &self.in_flight()).finish_non_exhaustive()
    }
}

impl Client {
    /// A new session stream with a connection of its own, which is opened with the first call.
    pub fn stream(&self) -> StreamHandle {
        let shared = Arc::new(Shared {
            client: self.clone(),
            table: Mutex::default(),
            permits: Semaphore::new(limits::STREAM_CALLS_IN_FLIGHT),
            work: Notify::new(),
            timers: Notify::new(),
            armed: Mutex::new(None),
            spare: Arc::default(),
        });
        spawn(driver::drive(shared.clone()));
        spawn(driver::tend(shared.clone()));
        StreamHandle {
            timeout: self.timeout(),
            _guard: Arc::new(Guard { shared: shared.clone() }),
            shared,
        }
    }
}

impl StreamHandle {
    /// The same stream with another deadline for each call.
    pub fn with_timeout(&self, call_timeout: Duration) -> StreamHandle {
        StreamHandle { timeout: call_timeout, ..self.clone() }
    }

    /// Calls under way, those included that wait to be sent.
    pub fn in_flight(&self) -> usize {
        limits::STREAM_CALLS_IN_FLIGHT - self.shared.permits.available_permits()
    }

    /// One call; like every future it does nothing before it is first polled. With a session, a
    /// write that carries no id yet gets one.
    pub async fn call<R: Pipelined>(
        &self,
        mut request: R,
        session: Option<&Session>,
    ) -> Result<R::Answer, Error> {
        let deadline = Instant::now() + self.timeout;
        let mut ticket = None;
        if let Some(session) = session
            && !request.has_id()
            && let Some(id) = request.id()
        {
            let next = session.ticket_until(deadline).await?;
            *id = Some(next.request_id());
            ticket = Some(next);
        }
        let call: Call = request.into();
        let outcome = self.send(&call, deadline, ticket).await;
        match outcome {
            Ok(answer) => R::response(answer)
                .ok_or_else(|| Error::internal("the answer is of another kind than the call")),
            Err(error) => {
                if let Some(session) = session {
                    session.note(&error);
                }
                Err(error)
            }
        }
    }

    /// One call of whichever kind, sent as it is.
    pub async fn call_raw(&self, call: Call) -> Result<Answer, Error> {
        self.send(&call, Instant::now() + self.timeout, None).await
    }

    /// Any number of calls, as many of them under way at once as the stream takes. The outcomes come
    /// in the order of the calls.
    pub async fn call_many(&self, calls: Vec<Call>) -> Vec<Result<Answer, Error>> {
        let mut pipeline = self.pipeline();
        let mut outcomes: Vec<Option<Result<Answer, Error>>> =
            std::iter::repeat_with(|| None).take(calls.len()).collect();
        let mut done = Vec::new();
        let mut waiting =
            calls.into_iter().enumerate().map(|(tag, call)| (tag as u64, call)).peekable();
        loop {
            let room = limits::STREAM_CALLS_IN_FLIGHT / 2;
            let free = room.saturating_sub(pipeline.in_flight());
            let batch = waiting.by_ref().take(free).map(|(tag, call)| Submission {
                tag,
                call,
                ticket: None,
            });
            pipeline.submit(batch.collect::<Vec<_>>()).await;
            if pipeline.completed(&mut done).await == 0 && waiting.peek().is_none() {
                break;
            }
            for (tag, outcome) in done.drain(..) {
                outcomes[tag as usize] = Some(outcome);
            }
        }
        outcomes
            .into_iter()
            .map(|outcome| outcome.expect("every call that was submitted has completed"))
            .collect()
    }

    /// Calls without a future for each.
    pub fn pipeline(&self) -> Pipeline {
        let index = lock(&self.shared.table).open_pipeline();
        Pipeline { stream: self.clone(), index }
    }

    async fn send(
        &self,
        call: &Call,
        deadline: Instant,
        ticket: Option<Ticket>,
    ) -> Result<Answer, Error> {
        let encoded = Encoded::new(call)?;
        match self.shared.permits.try_acquire() {
            Ok(permit) => permit.forget(),
            Err(_) => match timeout_at(deadline, self.shared.permits.acquire()).await {
                Ok(Ok(permit)) => permit.forget(),
                Ok(Err(_)) => {
                    return Err(Error::internal("the permits of a stream are not closed"));
                }
                Err(_) => return Err(Error::Timeout { definite: true }),
            },
        }
        let mut after = After::default();
        let place = {
            let waiter = Waiter::One { waker: None, outcome: None };
            let mut table = lock(&self.shared.table);
            table.insert(encoded, deadline, waiter, ticket, &mut after)
        };
        self.shared.inserted(after, deadline);
        Waiting { shared: &self.shared, place: Some(place) }.await
    }
}

/// Waits for the outcome of one call; dropped before, it forgets the call.
struct Waiting<'a> {
    shared: &'a Shared,
    place: Option<Place>,
}

impl Future for Waiting<'_> {
    type Output = Result<Answer, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let place = self.place.expect("polled after it was ready");
        let outcome = lock(&self.shared.table).poll_take(place, cx.waker());
        if outcome.is_ready() {
            self.place = None;
            self.shared.permits.add_permits(1);
        }
        outcome
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let ticket = lock(&self.shared.table).abandon(place);
            drop(ticket);
            self.shared.permits.add_permits(1);
        }
    }
}

impl Pipeline {
    /// Sends calls, in order; waits while the stream is full. A call that cannot be encoded completes
    /// with its error. Outcomes have to be taken with [`Pipeline::completed`].
    pub async fn submit(&mut self, calls: impl IntoIterator<Item = Submission>) {
        let deadline = Instant::now() + self.stream.timeout;
        let shared = &self.stream.shared;
        let mut calls = calls.into_iter();
        loop {
            // Encoded outside the lock, inserted under one lock for many.
            let mut batch = Vec::new();
            for submission in calls.by_ref().take(limits::STREAM_FRAME_CALLS) {
                let Submission { tag, call, ticket } = submission;
                match Encoded::new(&call) {
                    Ok(encoded) => batch.push((tag, encoded, ticket)),
                    Err(error) => lock(&shared.table).push_completed(self.index, tag, Err(error)),
                }
            }
            if batch.is_empty() {
                return;
            }
            let count = batch.len() as u32;
            let permits = shared.permits.acquire_many(count).await;
            permits.expect("the permits of a stream are not closed").forget();
            let mut after = After::default();
            {
                let mut table = lock(&shared.table);
                for (tag, encoded, ticket) in batch {
                    let waiter = Waiter::Pipeline { pipeline: self.index, tag };
                    table.insert(encoded, deadline, waiter, ticket, &mut after);
                }
            }
            shared.inserted(after, deadline);
        }
    }

    /// Waits until something has completed and moves it all to the end of `into`, in the order of
    /// completion. Returns how much that was: 0 when nothing is under way.
    pub async fn completed(&mut self, into: &mut Vec<(u64, Result<Answer, Error>)>) -> usize {
        poll_fn(|cx| lock(&self.stream.shared.table).poll_completed(self.index, into, cx.waker()))
            .await
    }

    /// Calls without an outcome.
    pub fn in_flight(&self) -> usize {
        lock(&self.stream.shared.table).pipeline_load(self.index).0
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let (after, tickets) = lock(&self.stream.shared.table).close_pipeline(self.index);
        drop(tickets);
        self.stream.shared.carry_out(after);
    }
}

impl Shared {
    /// After calls were put into the table.
    fn inserted(&self, after: After, deadline: Instant) {
        self.carry_out(after);
        if lock(&self.armed).is_none_or(|armed| deadline < armed) {
            self.timers.notify_one();
        }
    }

    fn carry_out(&self, after: After) {
        if after.permits > 0 {
            self.permits.add_permits(after.permits);
        }
        if after.connect {
            self.work.notify_one();
        }
        for waker in after.wakers {
            waker.wake();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let sender = {
            let mut table = lock(&self.shared.table);
            table.closed = true;
            table.finish()
        };
        if let Some(sender) = sender {
            sender.wake();
        }
        self.shared.work.notify_one();
        self.shared.timers.notify_one();
    }
}
