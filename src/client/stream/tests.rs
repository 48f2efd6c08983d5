//! The table of calls under way, step by step and without a network.

#![allow(clippy::unwrap_used)]

use std::task::{Poll, Waker};
use std::time::Duration;

use prost::Message as _;
use tokio::time::Instant;

use super::table::{After, Outcome, Place, Table, Waiter};
use super::wire::Encoded;
use super::{Answer, Call};
use crate::error::Error;
use crate::limits;
use crate::proto::v1::*;

const SECOND: Duration = Duration::from_secs(1);

fn read(id: &str) -> Call {
    GetInstanceRequest { id: id.into(), ..Default::default() }.into()
}

/// A registration, with an id if `sequence` is not 0.
fn write(id: &str, sequence: u64) -> Call {
    let request_id =
        (sequence != 0).then_some(RequestId { session: 1, sequence, lowest_unacknowledged: 1 });
    let instance = Some(Instance { id: id.into(), ..Default::default() });
    RegisterRequest { instance, request_id }.into()
}

/// A table with the times and places of a test.
struct Bed {
    table: Table,
    now: Instant,
    connection: u64,
}

impl Bed {
    fn new() -> Bed {
        let mut table = Table::default();
        let connection = table.connect();
        Bed { table, now: Instant::now(), connection }
    }

    fn call(&mut self, call: Call) -> Place {
        self.call_until(call, SECOND)
    }

    fn call_until(&mut self, call: Call, deadline: Duration) -> Place {
        let waiter = Waiter::One { waker: None, outcome: None };
        let encoded = Encoded::new(&call).unwrap();
        let deadline = self.now + deadline;
        self.table.insert(encoded, deadline, waiter, None, &mut After::default())
    }

    /// The next frame: wire ids, and the instance ids of the calls.
    fn frame(&mut self) -> Vec<(u64, String)> {
        let mut bytes = Vec::new();
        match self.table.poll_frame(self.connection, &mut bytes, Waker::noop()) {
            Poll::Ready(Some(count)) => {
                let frame = StreamRequest::decode(&bytes[..]).unwrap();
                assert_eq!(frame.calls.len(), count);
                frame.calls.into_iter().map(|call| (call.id, name(call.call.unwrap()))).collect()
            }
            Poll::Ready(None) => panic!("the connection has ended"),
            Poll::Pending => Vec::new(),
        }
    }

    fn answer(&mut self, id: u64) -> After {
        let answer = Answer::Register(RegisterResponse { mod_revision: id, ..Default::default() });
        let mut after = After::default();
        let pause = |_| Duration::ZERO;
        assert_eq!(self.table.answer(id, Some(answer), None, self.now, pause, &mut after), None);
        after
    }

    fn refuse(&mut self, id: u64, error: Error) {
        let (code, reason, metadata) = error.to_wire();
        let error = StreamError {
            code: code.into(),
            message: error.to_string(),
            reason: reason.into(),
            metadata: metadata.into_iter().collect(),
        };
        let pause = |_| Duration::from_millis(100);
        self.table.answer(id, None, Some(error), self.now, pause, &mut After::default());
    }

    fn take(&mut self, place: Place) -> Option<Outcome> {
        match self.table.poll_take(place, Waker::noop()) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    fn reconnect(&mut self) {
        let error = Error::Connection { message: "broken".into(), definite: false };
        self.table.disconnect(&error);
        self.connection = self.table.connect();
    }
}

fn name(call: Call) -> String {
    match call {
        Call::GetInstance(request) => request.id,
        Call::Register(request) => request.instance.unwrap().id,
        call => panic!("{call:?}"),
    }
}

fn names(frame: &[(u64, String)]) -> Vec<&str> {
    frame.iter().map(|(_, name)| name.as_str()).collect()
}

#[test]
fn what_waits_leaves_in_one_frame() {
    let mut bed = Bed::new();
    let places = ["a", "b", "c"].map(|id| bed.call(read(id)));
    let frame = bed.frame();
    assert_eq!(names(&frame), ["a", "b", "c"]);
    assert_eq!(bed.frame(), [], "nothing waits now");
    assert_eq!(bed.table.sent(), 3);
    // Answers come in any order.
    bed.answer(frame[2].0);
    bed.answer(frame[0].0);
    assert!(bed.take(places[1]).is_none());
    for (place, (id, _)) in [(places[0], &frame[0]), (places[2], &frame[2])] {
        let Some(Ok(Answer::Register(answer))) = bed.take(place) else { panic!("no answer") };
        assert_eq!(answer.mod_revision, *id);
    }
    assert_eq!(bed.table.sent(), 1);
}

#[test]
fn a_frame_has_its_limits() {
    let mut bed = Bed::new();
    for i in 0..limits::STREAM_FRAME_CALLS + 10 {
        bed.call(read(&i.to_string()));
    }
    assert_eq!(bed.frame().len(), limits::STREAM_FRAME_CALLS);
    assert_eq!(bed.frame().len(), 10);
    // By bytes; one that is too large for any frame goes alone.
    let half = "x".repeat(limits::STREAM_FRAME_BYTES / 2 + 1);
    let whole = "y".repeat(limits::STREAM_FRAME_BYTES * 2);
    for id in [&half, &half, &whole, "z"] {
        bed.call(read(id));
    }
    let mut lengths = Vec::new();
    loop {
        let frame = bed.frame();
        if frame.is_empty() {
            break;
        }
        lengths.push(frame.len());
    }
    assert_eq!(lengths, [1, 1, 1, 1]);
}

#[test]
fn a_late_answer_meets_no_other_call() {
    let mut bed = Bed::new();
    let dropped = bed.call(read("dropped"));
    let late = bed.frame()[0].0;
    bed.table.abandon(dropped);
    assert_eq!(bed.table.sent(), 0);
    // The next call gets the same slot, under another id.
    let next = bed.call(read("next"));
    let id = bed.frame()[0].0;
    assert_eq!((id & 0xffff, id == late), (late & 0xffff, false));
    bed.answer(late);
    assert!(bed.take(next).is_none());
    bed.answer(id);
    assert!(bed.take(next).is_some());
    // Not even when nothing is there, or for an id that was never given out.
    bed.answer(id);
    bed.answer(u64::MAX);
    assert_eq!(bed.table.sent(), 0);
}

#[test]
fn a_dropped_call_that_was_not_sent_is_not_sent() {
    let mut bed = Bed::new();
    let places = ["a", "b", "c"].map(|id| bed.call(read(id)));
    bed.table.abandon(places[1]);
    assert_eq!(names(&bed.frame()), ["a", "c"]);
}

#[test]
fn a_broken_connection_sends_again_what_may_be_sent_again() {
    let mut bed = Bed::new();
    let bare = bed.call(write("bare", 0));
    let tagged = bed.call(write("tagged", 1));
    bed.call(read("read"));
    let answered = bed.call(read("answered"));
    let frame = bed.frame();
    bed.answer(frame[3].0);
    let unsent = bed.call(write("unsent", 0));
    bed.reconnect();
    // In the order in which they were made, and what was never sent is not in doubt.
    assert_eq!(names(&bed.frame()), ["tagged", "read", "unsent"]);
    let error = bed.take(bare).unwrap().unwrap_err();
    assert!(matches!(error, Error::Connection { definite: false, .. }), "{error:?}");
    assert!(bed.take(answered).unwrap().is_ok());
    assert!(bed.take(tagged).is_none() && bed.take(unsent).is_none());
    // The second time the one without an id has been sent.
    bed.reconnect();
    assert_eq!(names(&bed.frame()), ["tagged", "read"]);
    assert!(bed.take(unsent).is_some());
}

#[test]
fn an_old_connection_gets_no_more_frames() {
    let mut bed = Bed::new();
    let old = bed.connection;
    bed.reconnect();
    bed.call(read("a"));
    let polled = bed.table.poll_frame(old, &mut Vec::new(), Waker::noop());
    assert_eq!(polled, Poll::Ready(None));
    assert_eq!(names(&bed.frame()), ["a"]);
    bed.call(read("b"));
    bed.table.finish();
    let polled = bed.table.poll_frame(bed.connection, &mut Vec::new(), Waker::noop());
    assert_eq!(polled, Poll::Ready(None));
    assert!(bed.table.has_work());
}

#[test]
fn errors_that_pass_are_waited_out() {
    let mut bed = Bed::new();
    let no_leader = Error::NoLeader { leader: None, definite: true };
    let place = bed.call(write("a", 0));
    let id = bed.frame()[0].0;
    bed.refuse(id, no_leader.clone());
    assert!(bed.take(place).is_none());
    assert_eq!(bed.frame(), [], "not before its pause is over");
    assert_eq!(bed.table.next_due(), Some(bed.now + Duration::from_millis(100)));
    bed.now += Duration::from_millis(100);
    bed.table.tend(bed.now);
    let id = bed.frame()[0].0;
    // No more when the deadline would pass meanwhile.
    bed.now += Duration::from_millis(850);
    bed.refuse(id, no_leader.clone());
    assert_eq!(bed.take(place).unwrap().unwrap_err(), no_leader);
}

#[test]
fn doubt_stays_over_connections_and_answers() {
    let mut bed = Bed::new();
    let place = bed.call(write("a", 1));
    bed.frame();
    bed.reconnect();
    let id = bed.frame()[0].0;
    // This node certainly did not take it; the one before may have.
    bed.now += Duration::from_millis(950);
    bed.refuse(id, Error::NoLeader { leader: None, definite: true });
    let error = bed.take(place).unwrap().unwrap_err();
    assert_eq!(error, Error::NoLeader { leader: None, definite: false });
    // A read is never in doubt.
    let place = bed.call(read("a"));
    bed.frame();
    bed.reconnect();
    let id = bed.frame()[0].0;
    let refusal = Error::NotFound { kind: "instance".into(), name: "a".into() };
    bed.refuse(id, refusal.clone());
    assert_eq!(bed.take(place).unwrap().unwrap_err(), refusal);
}

#[test]
fn deadlines_tell_what_was_sent() {
    let mut bed = Bed::new();
    let sent = bed.call_until(write("sent", 0), SECOND);
    bed.frame();
    let unsent = bed.call_until(write("unsent", 0), SECOND);
    let later = bed.call_until(write("later", 0), 3 * SECOND);
    assert_eq!(bed.table.next_due(), Some(bed.now + SECOND));
    bed.now += SECOND;
    bed.table.tend(bed.now);
    assert_eq!(bed.take(sent).unwrap().unwrap_err(), Error::Timeout { definite: false });
    assert_eq!(bed.take(unsent).unwrap().unwrap_err(), Error::Timeout { definite: true });
    assert!(bed.take(later).is_none());
    assert_eq!(bed.table.next_due(), Some(bed.now + 2 * SECOND));
    assert_eq!(names(&bed.frame()), ["later"]);
    assert_eq!(bed.table.sent(), 1);
}

#[test]
fn what_is_left_behind_does_not_pile_up() {
    // Nobody takes frames for long, while callers come and give up.
    let mut table = Table::default();
    let now = Instant::now();
    for _ in 0..100_000 {
        let waiter = Waiter::One { waker: None, outcome: None };
        let encoded = Encoded::new(&read("a")).unwrap();
        let place = table.insert(encoded, now + SECOND, waiter, None, &mut After::default());
        table.abandon(place);
    }
    assert!(table.outbox_len() < 1_000, "{} places", table.outbox_len());
}

#[test]
fn a_pipeline_is_told_once_of_many() {
    let mut bed = Bed::new();
    let pipeline = bed.table.open_pipeline();
    let mut after = After::default();
    for tag in 10..14 {
        let waiter = Waiter::Pipeline { pipeline, tag };
        let encoded = Encoded::new(&read(&tag.to_string())).unwrap();
        bed.table.insert(encoded, bed.now + SECOND, waiter, None, &mut after);
    }
    let frame = bed.frame();
    let mut done = Vec::new();
    assert!(bed.table.poll_completed(pipeline, &mut done, Waker::noop()).is_pending());
    assert_eq!(bed.answer(frame[3].0).wakers.len(), 1);
    let after = bed.answer(frame[1].0);
    assert_eq!((after.wakers.len(), after.permits), (0, 1), "it knows already");
    let polled = bed.table.poll_completed(pipeline, &mut done, Waker::noop());
    assert_eq!(polled, Poll::Ready(2));
    assert_eq!(done.iter().map(|(tag, _)| *tag).collect::<Vec<_>>(), [13, 11]);
    assert_eq!(bed.table.pipeline_load(pipeline), (2, 0));
    // Closed, it gives the permits of the others back, and their answers are nobody's.
    let (after, _) = bed.table.close_pipeline(pipeline);
    assert_eq!(after.permits, 2);
    bed.answer(frame[0].0);
    assert_eq!(bed.table.open_pipeline(), pipeline);
    assert_eq!(bed.table.pipeline_load(pipeline), (0, 0));
}
