//! The calls that are under way on one session stream: a table of slots, without I/O and without a
//! clock, so that every rule of it can be tested alone.
//!
//! A call waits in the outbox, is sent with a frame, and is answered, sent again or failed.
//! Invariants: a call has one outcome; a write without an id is never sent twice unless every answer
//! so far said that it did not take place; the id on the wire names slot and generation, so that an
//! answer that comes late meets no other call.

use std::collections::{BTreeMap, VecDeque};
use std::task::{Poll, Waker};

use tokio::time::{Duration, Instant};

use super::super::connection::settle;
use super::super::session::Ticket;
use super::wire::{Encoded, push_call};
use crate::error::Error;
use crate::limits;
use crate::proto::v1::stream_answer::Answer;
use crate::proto::v1::{Reason, StreamError};

pub type Outcome = Result<Answer, Error>;

/// A slot in one of its uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    index: u32,
    generation: u32,
}

impl Place {
    fn id(self) -> u64 {
        (u64::from(self.generation) << 16) | u64::from(self.index)
    }

    fn of(id: u64) -> Place {
        Place { index: (id & 0xffff) as u32, generation: (id >> 16) as u32 }
    }
}

/// Who waits for a call.
#[derive(Debug)]
pub enum Waiter {
    /// A future, which takes the outcome out of the slot.
    One { waker: Option<Waker>, outcome: Option<Box<Outcome>> },
    /// A pipeline, which gets the outcome under its tag.
    Pipeline { pipeline: usize, tag: u64 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// In the outbox.
    Waiting,
    /// In a frame of the present connection.
    Sent,
    /// To be sent again later.
    Delayed,
    /// Its outcome waits to be taken.
    Done,
}

#[derive(Debug)]
struct UnderWay {
    encoded: Encoded,
    deadline: Instant,
    /// Order in which calls were made, kept when they are sent again.
    order: u64,
    attempts: u32,
    /// It may have taken place although no answer says so.
    uncertain: bool,
    stage: Stage,
    waiter: Waiter,
    /// Keeps the exactly-once id until the call is over.
    ticket: Option<Ticket>,
}

#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    call: Option<UnderWay>,
}

#[derive(Debug, Default)]
struct Completed {
    outcomes: Vec<(u64, Outcome)>,
    waker: Option<Waker>,
    in_flight: usize,
}

#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    outbox: VecDeque<Place>,
    delayed: BTreeMap<(Instant, u64), Place>,
    pipelines: Vec<Option<Completed>>,
    orders: u64,
    /// Calls in `Stage::Sent`.
    sent: usize,
    /// Number of the present connection, and whether it takes frames.
    connection: u64,
    open: bool,
    /// The sender of the present connection, when it waits for calls.
    sender: Option<Waker>,
    /// No call under way has an earlier deadline.
    earliest: Option<Instant>,
    /// Why the last connection failed; the reason given to calls that were never sent.
    broken: Option<Error>,
    pub closed: bool,
}

/// What happens outside the lock after a change.
#[derive(Debug, Default)]
pub struct After {
    pub wakers: Vec<Waker>,
    /// Permits to give back.
    pub permits: usize,
    /// There are calls to send and no connection takes them.
    pub connect: bool,
}

impl Table {
    // ---- callers ----

    /// Puts a call into the outbox.
    pub fn insert(
        &mut self,
        encoded: Encoded,
        deadline: Instant,
        waiter: Waiter,
        ticket: Option<Ticket>,
        after: &mut After,
    ) -> Place {
        if let Waiter::Pipeline { pipeline, .. } = &waiter
            && let Some(Some(completed)) = self.pipelines.get_mut(*pipeline)
        {
            completed.in_flight += 1;
        }
        let call = UnderWay {
            encoded,
            deadline,
            order: self.orders,
            attempts: 0,
            uncertain: false,
            stage: Stage::Waiting,
            waiter,
            ticket,
        };
        self.orders += 1;
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        assert!(index < 1 << 16, "slot {index}: permits keep the calls under way below 65536");
        let slot = &mut self.slots[index as usize];
        slot.call = Some(call);
        let place = Place { index, generation: slot.generation };
        if self.outbox.len() > 2 * self.slots.len() + 64 {
            self.compact();
        }
        self.outbox.push_back(place);
        self.announce(after);
        place
    }

    /// The outbox has something: whoever sends must know.
    fn announce(&mut self, after: &mut After) {
        after.wakers.extend(self.sender.take());
        after.connect |= !self.open;
    }

    /// The outcome of a call, once.
    pub fn poll_take(&mut self, place: Place, waker: &Waker) -> Poll<Outcome> {
        let call = self.call(place).expect("a future polls its own call until it is done");
        let Waiter::One { waker: waiting, outcome } = &mut call.waiter else {
            unreachable!("a future's call waits for the future")
        };
        match outcome.take() {
            Some(outcome) => {
                self.vacate(place);
                Poll::Ready(*outcome)
            }
            None => {
                match waiting {
                    Some(waiting) => waiting.clone_from(waker),
                    None => *waiting = Some(waker.clone()),
                }
                Poll::Pending
            }
        }
    }

    /// Forgets a call whose future was dropped. Its answer, if one comes, meets an empty slot.
    pub fn abandon(&mut self, place: Place) -> Option<Ticket> {
        if self.call(place)?.stage == Stage::Sent {
            self.sent -= 1;
        }
        self.vacate(place).and_then(|call| call.ticket)
    }

    pub fn open_pipeline(&mut self) -> usize {
        let index = self.pipelines.iter().position(Option::is_none).unwrap_or_else(|| {
            self.pipelines.push(None);
            self.pipelines.len() - 1
        });
        self.pipelines[index] = Some(Completed::default());
        index
    }

    /// Forgets the pipeline and what is under way of it.
    pub fn close_pipeline(&mut self, pipeline: usize) -> (After, Vec<Ticket>) {
        let mut after = After::default();
        let mut tickets = Vec::new();
        if self.pipeline_load(pipeline).0 == 0 {
            self.pipelines[pipeline] = None;
            return (after, tickets);
        }
        for index in 0..self.slots.len() {
            let generation = self.slots[index].generation;
            let Some(call) = &self.slots[index].call else { continue };
            if matches!(call.waiter, Waiter::Pipeline { pipeline: p, .. } if p == pipeline) {
                let place = Place { index: index as u32, generation };
                tickets.extend(self.abandon(place));
                after.permits += 1;
            }
        }
        self.pipelines[pipeline] = None;
        (after, tickets)
    }

    /// An outcome of a call that was never made.
    pub fn push_completed(&mut self, pipeline: usize, tag: u64, outcome: Outcome) {
        if let Some(Some(completed)) = self.pipelines.get_mut(pipeline) {
            completed.outcomes.push((tag, outcome));
        }
    }

    /// Calls of a pipeline without an outcome, and outcomes that were not taken.
    pub fn pipeline_load(&self, pipeline: usize) -> (usize, usize) {
        self.pipelines[pipeline]
            .as_ref()
            .map_or((0, 0), |completed| (completed.in_flight, completed.outcomes.len()))
    }

    /// Takes what a pipeline has completed, if there is any or nothing is under way.
    pub fn poll_completed(
        &mut self,
        pipeline: usize,
        into: &mut Vec<(u64, Outcome)>,
        waker: &Waker,
    ) -> Poll<usize> {
        let completed = self.pipelines[pipeline].as_mut().expect("open as long as its handle");
        let count = completed.outcomes.len();
        if count == 0 && completed.in_flight > 0 {
            completed.waker = Some(waker.clone());
            return Poll::Pending;
        }
        into.append(&mut completed.outcomes);
        Poll::Ready(count)
    }

    // ---- the connection ----

    /// A new connection takes over. Returns its number.
    pub fn connect(&mut self) -> u64 {
        assert_eq!(self.sent, 0, "the connection before was ended");
        self.connection += 1;
        self.open = true;
        self.sender = None;
        self.broken = None;
        self.connection
    }

    /// No more frames on the present connection; what was sent may still be answered.
    pub fn finish(&mut self) -> Option<Waker> {
        self.open = false;
        self.sender.take()
    }

    /// The present connection is gone: what was sent on it is sent again or fails.
    pub fn disconnect(&mut self, error: &Error) -> After {
        let mut after = After::default();
        self.open = false;
        self.sender = None;
        self.broken = Some(error.clone());
        let mut again = Vec::new();
        for index in 0..self.slots.len() {
            let generation = self.slots[index].generation;
            let Some(call) = &mut self.slots[index].call else { continue };
            if call.stage != Stage::Sent {
                continue;
            }
            let place = Place { index: index as u32, generation };
            call.uncertain |= !call.encoded.read;
            if call.encoded.repeatable {
                call.stage = Stage::Waiting;
                again.push((call.order, place));
            } else {
                let error = settle(error.clone(), true, true);
                self.complete(place, Err(error), &mut after);
            }
        }
        self.sent = 0;
        again.sort_unstable_by_key(|(order, _)| *order);
        for (_, place) in again.into_iter().rev() {
            self.outbox.push_front(place);
        }
        after
    }

    /// The next frame of a connection: None = it takes no more, Pending = nothing to send.
    pub fn poll_frame(
        &mut self,
        connection: u64,
        frame: &mut Vec<u8>,
        waker: &Waker,
    ) -> Poll<Option<usize>> {
        if connection != self.connection || !self.open {
            return Poll::Ready(None);
        }
        let mut calls = 0;
        while calls < limits::STREAM_FRAME_CALLS && frame.len() < limits::STREAM_FRAME_BYTES {
            let Some(place) = self.outbox.front().copied() else { break };
            // A call that was abandoned or has failed meanwhile left its place behind.
            if let Some(call) = self.call(place)
                && call.stage == Stage::Waiting
            {
                let bytes = &call.encoded.payload;
                if calls > 0 && frame.len() + bytes.len() > limits::STREAM_FRAME_BYTES {
                    break;
                }
                push_call(frame, place.id(), bytes);
                call.stage = Stage::Sent;
                calls += 1;
            }
            self.outbox.pop_front();
        }
        if calls == 0 {
            self.sender = Some(waker.clone());
            return Poll::Pending;
        }
        self.sent += calls;
        Poll::Ready(Some(calls))
    }

    /// One answer of the present connection. A call that may be repeated after it waits for `pause`
    /// of its number of attempts. Returns the error, if it was one.
    pub fn answer(
        &mut self,
        id: u64,
        answer: Option<Answer>,
        error: Option<StreamError>,
        now: Instant,
        pause: impl FnOnce(u32) -> Duration,
        after: &mut After,
    ) -> Option<Error> {
        let place = Place::of(id);
        let call = self.call(place)?;
        if call.stage != Stage::Sent {
            return None;
        }
        let error = match (answer, error) {
            (_, Some(error)) => read_error(error),
            (Some(answer), None) => {
                self.sent -= 1;
                self.complete(place, Ok(answer), after);
                return None;
            }
            (None, None) => Error::internal("an answer of a kind that this release does not know"),
        };
        let repeat = error.retryable() && (call.encoded.repeatable || error.definite());
        let again = now + pause(call.attempts);
        if repeat && again < call.deadline {
            call.uncertain |= !call.encoded.read && !error.definite();
            call.attempts += 1;
            call.stage = Stage::Delayed;
            let order = call.order;
            self.delayed.insert((again, order), place);
        } else {
            let uncertain = call.uncertain;
            self.complete(place, Err(settle(error.clone(), uncertain, true)), after);
        }
        self.sent -= 1;
        Some(error)
    }

    // ---- time ----

    /// Fails what has passed its deadline and moves what has waited long enough into the outbox.
    pub fn tend(&mut self, now: Instant) -> After {
        let mut after = After::default();
        while let Some(entry) = self.delayed.first_entry()
            && entry.key().0 <= now
        {
            let place = entry.remove();
            if let Some(call) = self.call(place)
                && call.stage == Stage::Delayed
            {
                call.stage = Stage::Waiting;
                self.outbox.push_back(place);
                self.announce(&mut after);
            }
        }
        if self.earliest.is_some_and(|earliest| earliest <= now) {
            self.expire(now, &mut after);
        }
        after
    }

    fn expire(&mut self, now: Instant, after: &mut After) {
        let mut earliest: Option<Instant> = None;
        for index in 0..self.slots.len() {
            let generation = self.slots[index].generation;
            let Some(call) = &self.slots[index].call else { continue };
            if call.stage == Stage::Done {
                continue;
            }
            if call.deadline > now {
                earliest =
                    Some(earliest.map_or(call.deadline, |earliest| earliest.min(call.deadline)));
                continue;
            }
            let error = match call.stage {
                Stage::Sent => {
                    self.sent -= 1;
                    Error::Timeout { definite: false }
                }
                Stage::Waiting | Stage::Delayed | Stage::Done => {
                    let error = self.broken.clone().unwrap_or(Error::Timeout { definite: true });
                    match error {
                        // It was never sent, whatever became of others.
                        Error::Connection { message, .. } => {
                            Error::Connection { message, definite: true }
                        }
                        _ => Error::Timeout { definite: true },
                    }
                }
            };
            let error = settle(error, call.uncertain, true);
            self.complete(Place { index: index as u32, generation }, Err(error), after);
        }
        self.earliest = earliest;
    }

    /// When `tend` has something to do.
    pub fn next_due(&self) -> Option<Instant> {
        let delayed = self.delayed.first_key_value().map(|((at, _), _)| *at);
        match (self.earliest, delayed) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Fails everything: the stream cannot go on.
    pub fn fail_all(&mut self, error: &Error, after: &mut After) {
        for index in 0..self.slots.len() {
            let generation = self.slots[index].generation;
            let Some(call) = &self.slots[index].call else { continue };
            if call.stage == Stage::Done {
                continue;
            }
            let error = settle(error.clone(), call.uncertain || call.stage == Stage::Sent, true);
            self.complete(Place { index: index as u32, generation }, Err(error), after);
        }
        self.sent = 0;
        self.earliest = None;
    }

    // ---- questions ----

    /// True when a connection is needed.
    pub fn has_work(&self) -> bool {
        !self.outbox.is_empty() || !self.delayed.is_empty()
    }

    /// Calls sent on the present connection that are not answered.
    pub fn sent(&self) -> usize {
        self.sent
    }

    /// True when everything that is under way on the present connection may be sent again.
    pub fn sent_is_repeatable(&self) -> bool {
        self.slots
            .iter()
            .filter_map(|slot| slot.call.as_ref())
            .all(|call| call.stage != Stage::Sent || call.encoded.repeatable)
    }

    // ---- slots ----

    fn call(&mut self, place: Place) -> Option<&mut UnderWay> {
        let slot = self.slots.get_mut(place.index as usize)?;
        if slot.generation != place.generation {
            return None;
        }
        slot.call.as_mut()
    }

    #[cfg(test)]
    pub fn outbox_len(&self) -> usize {
        self.outbox.len()
    }

    /// Drops the places that calls left behind, which pile up while there is no connection.
    fn compact(&mut self) {
        let slots = &self.slots;
        self.outbox.retain(|place| {
            let slot = &slots[place.index as usize];
            slot.generation == place.generation
                && slot.call.as_ref().is_some_and(|call| call.stage == Stage::Waiting)
        });
    }

    fn vacate(&mut self, place: Place) -> Option<UnderWay> {
        let slot = &mut self.slots[place.index as usize];
        let call = slot.call.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(place.index);
        Some(call)
    }

    /// Hands an outcome over. The caller keeps `sent` right.
    fn complete(&mut self, place: Place, outcome: Outcome, after: &mut After) {
        let Some(call) = self.call(place) else { return };
        match &mut call.waiter {
            Waiter::One { waker, outcome: slot } => {
                *slot = Some(Box::new(outcome));
                after.wakers.extend(waker.take());
                call.stage = Stage::Done;
                // Answered: the id may be forgotten, even if nobody looks at the outcome for a while.
                call.ticket = None;
            }
            Waiter::Pipeline { pipeline, tag } => {
                let (pipeline, tag) = (*pipeline, *tag);
                self.vacate(place);
                after.permits += 1;
                if let Some(Some(completed)) = self.pipelines.get_mut(pipeline) {
                    completed.in_flight -= 1;
                    completed.outcomes.push((tag, outcome));
                    after.wakers.extend(completed.waker.take());
                }
            }
        }
    }
}

fn read_error(error: StreamError) -> Error {
    let reason = Reason::try_from(error.reason).unwrap_or(Reason::Unspecified);
    Error::from_wire(tonic::Code::from(error.code), &error.message, reason, &error.metadata)
}
