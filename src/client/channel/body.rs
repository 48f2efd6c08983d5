//! The bodies of calls: of requests, which can be sent a second time when the first was certainly not
//! taken up, and of answers, whose end tells how the call went.

use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status};

use super::super::balance::{Flight, Outcome};
use super::super::remote::{lock, root};
use super::call::uncertain;
use super::deadline::expired;
use crate::limits;

/// The body of a request as long as it may have to be sent again. What is read of it is kept, up to
/// [`limits::CHANNEL_REPLAY_BYTES`].
pub struct Kept(Arc<Mutex<Source>>);

struct Source {
    body: tonic::body::Body,
    frames: Vec<Bytes>,
    bytes: usize,
    trailers: Option<HeaderMap>,
    /// `body` has nothing more.
    ended: bool,
    /// Some of it is not kept.
    lost: bool,
    /// What it broke off with.
    failure: Option<Status>,
    /// It may have to be sent again.
    kept: bool,
    /// Number of the reader that may read: the last one.
    reader: u64,
}

/// One reading of a body, from its beginning.
pub struct Replay {
    source: Arc<Mutex<Source>>,
    reader: u64,
    /// Frames that it has given, the trailers included.
    given: usize,
}

impl Kept {
    pub fn new(body: tonic::body::Body) -> Kept {
        Kept(Arc::new(Mutex::new(Source {
            body,
            frames: Vec::new(),
            bytes: 0,
            trailers: None,
            ended: false,
            lost: false,
            failure: None,
            kept: true,
            reader: 0,
        })))
    }

    /// It can be sent from its beginning.
    pub fn is_whole(&self) -> bool {
        !lock(&self.0).lost
    }

    /// What it broke off with, if it did: its sender is at fault.
    pub fn failure(&self) -> Option<Status> {
        lock(&self.0).failure.clone()
    }

    /// The body from its beginning; who has read it before reads no further. None when its beginning is
    /// gone.
    pub fn body(&self) -> Option<Replay> {
        let mut source = lock(&self.0);
        if source.lost {
            return None;
        }
        source.reader += 1;
        Some(Replay { source: self.0.clone(), reader: source.reader, given: 0 })
    }
}

/// The call was taken, or it failed: what comes after this is not kept.
impl Drop for Kept {
    fn drop(&mut self) {
        lock(&self.0).kept = false;
    }
}

impl fmt::Debug for Replay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay").field("given", &self.given).finish_non_exhaustive()
    }
}

impl Body for Replay {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let mut source = lock(&this.source);
        let source = &mut *source;
        if source.reader != this.reader {
            return Poll::Ready(Some(Err(Status::cancelled("the call is sent again"))));
        }
        if !source.lost && this.given < source.frames.len() {
            let frame = source.frames[this.given].clone();
            this.given += 1;
            if !source.kept && this.given == source.frames.len() {
                source.lost = true;
                source.frames = Vec::new();
            }
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        if source.ended {
            let trailers = match this.given == source.frames.len() {
                true => source.trailers.clone(),
                false => None,
            };
            this.given = source.frames.len() + 1;
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let next = ready!(Pin::new(&mut source.body).poll_frame(cx));
        match &next {
            None => source.ended = true,
            Some(Err(status)) => {
                source.lost = true;
                source.failure = Some(status.clone());
            }
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    source.trailers = Some(trailers.clone());
                    source.ended = true;
                    this.given = source.frames.len() + 1;
                } else if let Some(data) = frame.data_ref() {
                    source.bytes += data.len();
                    source.lost |= !source.kept || source.bytes > limits::CHANNEL_REPLAY_BYTES;
                    match source.lost {
                        true => source.frames = Vec::new(),
                        false => source.frames.push(data.clone()),
                    }
                    this.given = source.frames.len();
                }
            }
        }
        Poll::Ready(next)
    }

    fn is_end_stream(&self) -> bool {
        let source = lock(&self.source);
        let rest = source.ended || source.body.is_end_stream();
        rest && source.trailers.is_none() && (source.lost || self.given >= source.frames.len())
    }

    fn size_hint(&self) -> SizeHint {
        let source = lock(&self.source);
        match source.bytes {
            0 => source.body.size_hint(),
            _ => SizeHint::default(),
        }
    }
}

/// The body of an answer. When it has ended the endpoint is told how the call went; a body that is
/// dropped before says nothing.
pub struct Answer {
    body: Incoming,
    /// The call, and when the head of its answer came.
    flight: Option<(Flight, Duration)>,
    /// When the call has to be over.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Its place among the calls of the channel.
    _place: OwnedSemaphorePermit,
}

impl Answer {
    /// The answer of a call that is under way until its body ends. `now` is when the head came.
    pub fn of(
        response: Response<Incoming>,
        flight: Flight,
        now: Duration,
        deadline: Option<Instant>,
        place: OwnedSemaphorePermit,
    ) -> Response<tonic::body::Body> {
        let (head, body) = response.into_parts();
        let mut flight = Some((flight, now));
        // An answer without a body tells its end in its head.
        if body.is_end_stream() || head.status != StatusCode::OK {
            finish(&mut flight, outcome(head.status, &head.headers));
        }
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        let answer = Answer { body, flight, deadline, _place: place };
        Response::from_parts(head, tonic::body::Body::new(answer))
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let Poll::Ready(next) = Pin::new(&mut this.body).poll_frame(cx) else {
            let Some(deadline) = &mut this.deadline else { return Poll::Pending };
            ready!(deadline.as_mut().poll(cx));
            finish(&mut this.flight, Outcome::Failure);
            return Poll::Ready(Some(Err(uncertain(expired()))));
        };
        let late = this.deadline.as_ref().is_some_and(|it| it.deadline() <= Instant::now());
        match &next {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    finish(&mut this.flight, outcome(StatusCode::OK, trailers));
                } else if late {
                    // There was no need to wait, so it may be the reader who is slow.
                    this.flight = None;
                    return Poll::Ready(Some(Err(uncertain(expired()))));
                }
            }
            // An end without a status: it was cut off.
            Some(Err(_)) | None => finish(&mut this.flight, Outcome::Failure),
        }
        Poll::Ready(next.map(|frame| {
            frame.map_err(|error| {
                let message = format!("the answer broke off: {}", root(&error));
                uncertain(Status::unavailable(message))
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn finish(flight: &mut Option<(Flight, Duration)>, outcome: Outcome) {
    if let Some((flight, head)) = flight.take() {
        // The time to the head: a stream may last as long as its reader likes.
        flight.finish(outcome, head);
    }
}

/// Whether the endpoint is to blame. As Envoy counts gRPC: what stands for a 5xx status.
pub fn outcome(status: StatusCode, headers: &HeaderMap) -> Outcome {
    if status != StatusCode::OK {
        return Outcome::Failure;
    }
    match code(headers) {
        Some(
            Code::Unknown
            | Code::DeadlineExceeded
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss,
        ) => Outcome::Failure,
        Some(_) | None => Outcome::Success,
    }
}

/// The status of a call, where it is told.
pub fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(HeaderValue::as_bytes).map(Code::from_bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use futures::{FutureExt as _, StreamExt as _};
    use tokio::sync::mpsc;

    use super::*;

    /// A body that sends what comes through the channel.
    struct Fed(mpsc::Receiver<Bytes>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
        }
    }

    fn fed() -> (mpsc::Sender<Bytes>, Kept) {
        let (feed, fed) = mpsc::channel(8);
        (feed, Kept::new(tonic::body::Body::new(Fed(fed))))
    }

    async fn next(replay: &mut Replay) -> Option<Result<Bytes, Status>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *replay).poll_frame(cx)).await;
        frame.map(|frame| frame.map(|frame| frame.into_data().unwrap()))
    }

    /// The second reader reads from the beginning, and waits for what is still to come; the first one
    /// reads no further.
    #[tokio::test]
    async fn a_body_is_read_again_from_its_beginning() {
        let (feed, kept) = fed();
        let mut first = kept.body().unwrap();
        feed.send("a".into()).await.unwrap();
        assert_eq!(next(&mut first).await.unwrap().unwrap(), "a");
        assert!(next(&mut first).now_or_never().is_none());
        let mut second = kept.body().unwrap();
        assert!(next(&mut first).await.unwrap().is_err());
        assert!(!second.is_end_stream());
        assert_eq!(next(&mut second).await.unwrap().unwrap(), "a");
        let feeding = async {
            tokio::task::yield_now().await;
            feed.send("b".into()).await.unwrap();
            drop(feed);
        };
        let (last, ()) = tokio::join!(next(&mut second), feeding);
        assert_eq!(last.unwrap().unwrap(), "b");
        assert!(next(&mut second).await.is_none());
        let third = kept.body().unwrap();
        let all: Vec<Bytes> = futures::stream::unfold(third, |mut third| async {
            Some((next(&mut third).await?.unwrap(), third))
        })
        .collect()
        .await;
        assert_eq!(all, ["a", "b"]);
    }

    /// Once the call cannot be sent again nothing of it is kept; what was not read yet is.
    #[tokio::test]
    async fn nothing_is_kept_for_longer_than_it_may_be_needed() {
        let (feed, kept) = fed();
        feed.send("a".into()).await.unwrap();
        next(&mut kept.body().unwrap()).await.unwrap().unwrap();
        let mut last = kept.body().unwrap();
        drop(kept);
        for text in ["a", "c", "d"] {
            if text != "a" {
                feed.send(text.into()).await.unwrap();
            }
            assert_eq!(next(&mut last).await.unwrap().unwrap(), text);
            assert_eq!(lock(&last.source).frames.len(), 0);
        }
    }
}
