//! The two tasks of a session stream: one owns the connection, the other the clock.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use futures::future::{BoxFuture, FutureExt};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::super::remote::{Failure, Remote, failure, lock};
use super::super::request::Route;
use super::Shared;
use super::table::After;
use super::wire::{Frame, PATH, StreamCodec};
use crate::error::Error;
use crate::limits;
use crate::proto::v1::StreamResponse;
use crate::proto::v1::stream_answer::Answer;

/// How often a connection looks after itself: does its node still lead, does it still answer?
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// Deadlines are kept to within this.
const TEND_INTERVAL: Duration = Duration::from_millis(10);

/// Where to go next: a node, perhaps with a connection to it that stands already.
struct Target {
    node: Arc<Remote>,
    channel: Option<Channel>,
}

/// A connection to the leader that is being opened.
type Dialing = BoxFuture<'static, (Arc<Remote>, Result<Channel, Error>)>;

/// Keeps a connection while there is work, until the stream is closed.
pub async fn drive(shared: Arc<Shared>) {
    let client = shared.client.clone();
    let mut attempt = 0;
    let mut avoid: Option<Arc<Remote>> = None;
    let mut next: Option<Target> = None;
    while wait_for_work(&shared).await {
        let target = next.take().unwrap_or_else(|| Target {
            node: client.pick(Route::Fresh, avoid.as_ref()),
            channel: None,
        });
        let node = target.node;
        let channel = match target.channel {
            Some(channel) => Ok(channel),
            None => node.dial().await,
        };
        let ended = match channel {
            Ok(channel) => run(&shared, &node, channel, &mut attempt).await,
            // Nothing was sent: calls go on waiting.
            Err(error) => Err(Failure { error, silent: true }),
        };
        match ended {
            Ok(target) => {
                next = target;
                avoid = None;
            }
            Err(failure) => {
                tracing::debug!(node = %node.address, error = %failure.error, "stream broken");
                client.note(&node, &failure);
                lose(&shared, &failure);
                avoid = Some(node);
                sleep(client.backoff(attempt)).await;
                attempt += 1;
            }
        }
    }
    let error = Error::Connection { message: "the stream is closed".into(), definite: true };
    let mut after = After::default();
    lock(&shared.table).fail_all(&error, &mut after);
    shared.carry_out(after);
}

/// Returns false when the stream is closed.
async fn wait_for_work(shared: &Shared) -> bool {
    loop {
        {
            let table = lock(&shared.table);
            if table.closed {
                return false;
            }
            if table.has_work() {
                return true;
            }
        }
        shared.work.notified().await;
    }
}

/// The connection is gone. Calls are sent again over the next one, unless the node said something
/// that every node would say.
fn lose(shared: &Shared, failure: &Failure) {
    let after = {
        let mut table = lock(&shared.table);
        let mut after = table.disconnect(&failure.error);
        if !failure.silent && !failure.error.retryable() {
            table.fail_all(&failure.error, &mut after);
        }
        after
    };
    shared.carry_out(after);
}

/// One connection from its first frame to its end. Ok is a planned end, perhaps with where to go
/// next; then nothing is under way on it any more.
async fn run(
    shared: &Arc<Shared>,
    node: &Arc<Remote>,
    channel: Channel,
    attempt: &mut u32,
) -> Result<Option<Target>, Failure> {
    let outgoing = Outgoing { shared: shared.clone(), connection: lock(&shared.table).connect() };
    let mut incoming = open(shared, channel, outgoing).await?;
    let mut heard = Instant::now();
    let mut heard_before = heard;
    let mut check = heard + CHECK_INTERVAL;
    let mut dialing: Option<Dialing> = None;
    // Set once no more frames are sent: where to go, and how long answers are waited for.
    let mut leaving: Option<(Option<Target>, Instant)> = None;
    loop {
        if leaving.is_none() && lock(&shared.table).closed {
            leaving = Some((None, Instant::now() + limits::STREAM_DRAIN));
        }
        let wake = leaving.as_ref().map_or(check, |(_, until)| *until);
        tokio::select! {
            biased;
            message = incoming.message() => match message {
                Ok(Some(response)) => {
                    heard = Instant::now();
                    *attempt = 0;
                    if let Some(error) = answered(shared, response, heard) {
                        shared.client.note(node, &Failure { error, silent: false });
                    }
                }
                Ok(None) => break,
                Err(status) => return Err(failure(&status)),
            },
            (leader, dialed) = async {
                match &mut dialing {
                    Some(dialing) => dialing.await,
                    None => std::future::pending().await,
                }
            } => {
                dialing = None;
                match dialed {
                    Ok(channel) if is_silent(shared, heard) => {
                        // Waiting for answers gains nothing, and no call is harmed by not waiting.
                        tracing::debug!(from = %node.address, to = %leader.address, "stream moves");
                        let error = cut("the node was silent, and another one leads");
                        lose(shared, &Failure { error, silent: true });
                        return Ok(Some(Target { node: leader, channel: Some(channel) }));
                    }
                    Ok(channel) => {
                        tracing::debug!(from = %node.address, to = %leader.address, "stream moves");
                        let sender = lock(&shared.table).finish();
                        if let Some(sender) = sender {
                            sender.wake();
                        }
                        let target = Target { node: leader, channel: Some(channel) };
                        leaving = Some((Some(target), Instant::now() + limits::STREAM_DRAIN));
                    }
                    Err(error) => {
                        shared.client.note(&leader, &Failure { error, silent: true });
                    }
                }
            },
            () = shared.work.notified() => {}
            () = sleep_until(wake) => {
                if leaving.is_some() {
                    break;
                }
                check = Instant::now() + CHECK_INTERVAL;
                let waiting = lock(&shared.table).sent() > 0;
                let patience = shared.client.options().attempt_timeout;
                let silent = waiting && heard.elapsed() >= patience / 3;
                // Nobody knows of a better node, but this one has been silent for too long: as long
                // as that harms no call, any other is worth a try.
                if is_silent(shared, heard)
                    && heard.elapsed() >= 2 * patience
                    && dialing.is_none()
                    && shared.client.nodes().len() > 1
                {
                    return Err(Failure { error: Error::Timeout { definite: false }, silent: true });
                }
                if (waiting || heard > heard_before)
                    && let Some(leader) = shared.client.better_than(node, silent)
                    && dialing.is_none()
                {
                    let to = leader.clone();
                    dialing = Some(async move { (to, leader.dial().await) }.boxed());
                }
                if !waiting {
                    // Silence counts from when something could have been said.
                    heard = Instant::now();
                }
                heard_before = heard;
            }
        }
    }
    // A planned end leaves nothing behind; an unplanned one, or a node that did not answer all in
    // time, is a broken connection.
    let under_way = lock(&shared.table).sent();
    match leaving {
        Some((target, _)) if under_way == 0 => Ok(target),
        Some((Some(target), _)) => {
            let error = cut("the node did not answer before the stream moved on");
            lose(shared, &Failure { error, silent: true });
            Ok(Some(target))
        }
        Some((None, _)) | None => {
            Err(Failure { error: cut("the node ended the stream"), silent: false })
        }
    }
}

/// True when calls wait for a node that has said nothing for a while, and each may be sent again.
fn is_silent(shared: &Shared, heard: Instant) -> bool {
    let table = lock(&shared.table);
    table.sent() > 0
        && heard.elapsed() >= shared.client.options().attempt_timeout / 3
        && table.sent_is_repeatable()
}

fn cut(why: &str) -> Error {
    Error::Connection { message: why.to_owned(), definite: false }
}

async fn open(
    shared: &Shared,
    channel: Channel,
    outgoing: Outgoing,
) -> Result<Streaming<StreamResponse>, Failure> {
    let mut grpc =
        tonic::client::Grpc::new(channel).max_decoding_message_size(limits::CLIENT_ANSWER_BYTES);
    let call = async {
        grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
        let path = PathAndQuery::from_static(PATH);
        grpc.streaming(tonic::Request::new(outgoing), path, StreamCodec).await
    };
    match timeout(shared.client.options().attempt_timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(failure(&status)),
        Err(_) => Err(Failure { error: Error::Timeout { definite: false }, silent: true }),
    }
}

/// Hands out the answers of one message. Returns an error that tells something about the leader.
fn answered(shared: &Shared, response: StreamResponse, now: Instant) -> Option<Error> {
    let mut after = After::default();
    let mut telling = None;
    let mut due = false;
    {
        let mut table = lock(&shared.table);
        for answer in response.answers {
            let (reply, error) = match answer.answer {
                Some(Answer::Error(error)) => (None, Some(error)),
                reply => (reply, None),
            };
            let pause = |attempts| shared.client.backoff(attempts + 1);
            if let Some(error) = table.answer(answer.id, reply, error, now, pause, &mut after) {
                due |= error.retryable();
                if matches!(error, Error::NoLeader { .. } | Error::LeaderChanged) {
                    telling = Some(error);
                }
            }
        }
    }
    shared.carry_out(after);
    if due {
        shared.timers.notify_one();
    }
    telling
}

/// Keeps deadlines and sends again what was to be sent again later, until the stream is closed.
pub async fn tend(shared: Arc<Shared>) {
    loop {
        let now = Instant::now();
        let (after, due) = {
            let mut table = lock(&shared.table);
            if table.closed {
                return;
            }
            let after = table.tend(now);
            let due = table.next_due().map(|due| due.max(now + TEND_INTERVAL));
            *lock(&shared.armed) = due;
            (after, due)
        };
        shared.carry_out(after);
        match due {
            Some(due) => {
                tokio::select! {
                    biased;
                    () = shared.timers.notified() => {}
                    () = sleep_until(due) => {}
                }
            }
            None => shared.timers.notified().await,
        }
    }
}

/// The frames of one connection, taken from the table when the connection can send.
struct Outgoing {
    shared: Arc<Shared>,
    connection: u64,
}

impl Stream for Outgoing {
    type Item = Frame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Frame>> {
        let mut bytes = std::mem::take(&mut *lock(&self.shared.spare));
        let polled = lock(&self.shared.table).poll_frame(self.connection, &mut bytes, cx.waker());
        match polled {
            Poll::Ready(Some(_)) => {
                Poll::Ready(Some(Frame { bytes, spare: self.shared.spare.clone() }))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                *lock(&self.shared.spare) = bytes;
                Poll::Pending
            }
        }
    }
}
