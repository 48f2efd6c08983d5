//! One call: from candidate to candidate until an instance takes it.

use std::sync::Arc;

use http::{Request, Response, StatusCode, request};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Duration;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

use super::super::balance::{Flight, Outcome, Pick, Unavailable, hash};
use super::body::{self, Answer, Kept};
use super::deadline::{self, Deadline, expired};
use super::link::{Failure, Link, Start};
use super::{Core, HashKey, Retry, ServedBy};
use crate::limits;

type Grpc = Response<tonic::body::Body>;

impl Core {
    /// The whole call, up to the head of its answer.
    pub async fn call(
        self: Arc<Self>,
        request: Request<tonic::body::Body>,
    ) -> Result<Grpc, Status> {
        let Ok(place) = self.calls.clone().try_acquire_owned() else {
            let message = format!(
                "{}: {} calls of this channel are under way, which is the most it takes",
                self.options.service,
                limits::CHANNEL_CALLS
            );
            return Err(Status::resource_exhausted(message));
        };
        let (parts, body) = request.into_parts();
        let deadline = Deadline::of(&parts.headers);
        self.be_known(&deadline).await?;
        let snapshot = self.snapshot.load_full();
        let mut call = snapshot.call(self.hash(&parts), self.now(), self.random());
        let retry = parts.extensions.get::<Retry>().copied().unwrap_or(self.options.retry);
        let body = Kept::new(body);
        let mut attempts = Attempts {
            core: &self,
            parts,
            body,
            deadline,
            retry,
            place,
            made: 0,
            lost: 0,
            last: None,
        };
        // Those that could not be reached lately.
        let mut away: Vec<Pick<'_, Arc<Link>>> = Vec::new();
        let unavailable = loop {
            let pick = match call.candidate() {
                Ok(pick) => pick,
                Err(unavailable) => break unavailable,
            };
            let start = pick.endpoint().target.start();
            if let Start::Down(failure) = start {
                attempts.last.get_or_insert(failure);
                away.push(pick);
                continue;
            }
            if let Some(taken) = attempts.make(pick, start).await? {
                return Ok(attempts.answer(taken));
            }
        };
        // Many are away; there may be others that the policy had no turn for.
        let exhausted = Unavailable::Exhausted { tried: limits::BALANCE_ATTEMPTS };
        let more = if unavailable == exhausted { limits::BALANCE_ATTEMPTS } else { 0 };
        for _ in 0..more {
            let connected = call.reachable(|link| link.is_connected());
            let Some(pick) = connected.or_else(|| call.reachable(|link| link.is_unknown())) else {
                break;
            };
            let start = pick.endpoint().target.start();
            if let Some(taken) = attempts.make(pick, start).await? {
                return Ok(attempts.answer(taken));
            }
        }
        // Nobody else took it, and one of them may be back. All are tried at once: those that answer
        // nothing hold it up for the time of one.
        let starts: Vec<Start> = away.iter().map(|pick| pick.endpoint().target.insist()).collect();
        for (pick, start) in away.into_iter().zip(starts) {
            if let Some(taken) = attempts.make(pick, start).await? {
                return Ok(attempts.answer(taken));
            }
        }
        let service = &self.options.service;
        Err(attempts.judged(Status::unavailable(match &attempts.last {
            Some(failure) => format!("{service}: {unavailable}; {}", failure.why),
            None => format!("{service}: {unavailable}"),
        })))
    }

    fn hash(&self, parts: &request::Parts) -> Option<u64> {
        if let Some(HashKey(hash)) = parts.extensions.get() {
            return Some(*hash);
        }
        let mut values = parts.headers.get_all(self.options.hash_header.as_ref()?).iter();
        let first = values.next()?.as_bytes();
        let Some(second) = values.next() else { return Some(hash(first)) };
        // As in gRFC A42.
        let mut joined = [first, b",", second.as_bytes()].concat();
        values.for_each(|value| {
            joined.push(b',');
            joined.extend_from_slice(value.as_bytes());
        });
        Some(hash(&joined))
    }
}

/// One call on its way to somebody who takes it.
struct Attempts<'a> {
    core: &'a Core,
    parts: request::Parts,
    body: Kept,
    deadline: Deadline,
    retry: Retry,
    /// Its place among the calls of the channel.
    place: OwnedSemaphorePermit,
    made: u32,
    /// Attempts that may have taken place.
    lost: u32,
    last: Option<Failure>,
}

/// A call that was taken, by whom, and when the head of its answer came.
struct Taken<'a> {
    link: &'a Link,
    response: Response<Incoming>,
    flight: Flight,
    head: Duration,
}

impl Attempts<'_> {
    /// One attempt. None: it is for the next candidate.
    async fn make<'a>(
        &mut self,
        pick: Pick<'a, Arc<Link>>,
        start: Start,
    ) -> Result<Option<Taken<'a>>, Status> {
        let link = &pick.endpoint().target;
        let flight = pick.start(self.core.now());
        if self.deadline.has_passed() {
            // The flight says nothing of an instance that was not asked.
            return Err(self.judged(expired()));
        }
        if self.made > 0
            && let Some(left) = self.deadline.header()
        {
            self.parts.headers.insert(deadline::HEADER, left);
        }
        self.made += 1;
        let attempt = async { link.send(start.connection().await?, &self.parts, &self.body).await };
        let outcome = self.deadline.keep(attempt).await;
        let now = self.core.now();
        let failure = match outcome {
            Some(Ok(response)) if !self.may_repeat(&response) => {
                return Ok(Some(Taken { link, response, flight, head: now }));
            }
            Some(Ok(response)) => link.failure(&told(&response)),
            Some(Err(failure)) => match self.body.failure() {
                // The caller's own request broke off: no instance is to blame, and none could do better.
                Some(status) if failure.untouched => return Err(self.judged(status)),
                Some(status) => return Err(uncertain(status)),
                None => failure,
            },
            None => {
                flight.finish(Outcome::Failure, now);
                return Err(uncertain(expired()));
            }
        };
        flight.finish(Outcome::Failure, now);
        let service = &self.core.options.service;
        tracing::debug!(service, why = %failure.why, untouched = failure.untouched, "attempt failed");
        if !failure.untouched {
            self.lost += 1;
            if self.retry == Retry::Unsent || self.lost > limits::CHANNEL_LOST_RETRIES {
                let message = format!("{service}: {}; the call may have taken place", failure.why);
                return Err(uncertain(Status::unavailable(message)));
            }
        }
        if !self.body.is_whole() {
            let why = "it is too long to be sent to another instance";
            let message = format!("{service}: {}; {why}", failure.why);
            return Err(self.judged(Status::unavailable(message)));
        }
        self.last = Some(failure);
        Ok(None)
    }

    fn answer(self, taken: Taken<'_>) -> Grpc {
        let Taken { link, mut response, flight, head } = taken;
        let served = ServedBy { instance: link.instance().clone(), attempts: self.made };
        response.extensions_mut().insert(served);
        Answer::of(response, flight, head, self.deadline.get(), self.place)
    }

    /// An error of the call as a whole: an attempt before may have taken place.
    fn judged(&self, status: Status) -> Status {
        if self.lost > 0 { uncertain(status) } else { status }
    }

    /// The instance says that it is not available, and there are others that may be asked.
    fn may_repeat(&self, response: &Response<Incoming>) -> bool {
        let unavailable = response.status() == StatusCode::OK
            && body::code(response.headers()) == Some(Code::Unavailable);
        unavailable
            && self.retry == Retry::Lost
            && self.lost < limits::CHANNEL_LOST_RETRIES
            && self.body.is_whole()
    }
}

/// Header of the errors of calls that may have taken place.
const UNCERTAIN: &str = "quorate-may-have-taken-place";

pub(super) fn uncertain(mut status: Status) -> Status {
    status.metadata_mut().insert(UNCERTAIN, MetadataValue::from_static("true"));
    status
}

/// True for an error of a channel when the call may have taken place nevertheless: whoever repeats it may
/// do it twice. Other errors of a channel say that it certainly did not; those that an instance
/// answers mean what it says.
pub fn may_have_taken_place(status: &Status) -> bool {
    status.metadata().contains_key(UNCERTAIN)
}

/// What an instance says that refuses a call.
fn told(response: &Response<Incoming>) -> String {
    let status = Status::from_header_map(response.headers());
    status.map_or_else(String::new, |status| status.message().to_owned())
}
