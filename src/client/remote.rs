//! One node as the client sees it: its connections, and one attempt of one call over them.
//!
//! Connections are opened on first use, by one caller for all who wait, and opening is kept apart
//! from calling: what fails before a connection stands certainly did not take place.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt, Shared};
use tokio::time::{Instant, timeout};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{ConnectError, Status, Streaming};

use super::options::Options;
use super::request::{Request, SharedCodec};
use crate::error::Error;
use crate::{gather, limits};

/// Locks; a panic of another holder leaves nothing half done here.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Spawns a task. The client is linked by programs that are no simulated nodes, so tokio's own way is
/// the right one, and this is the only place that uses it.
#[allow(clippy::disallowed_methods)]
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// Why an attempt failed, and whether the node itself said so.
#[derive(Debug)]
pub struct Failure {
    pub error: Error,
    /// True when no answer of the node arrived: the network, the node or its deadline failed.
    pub silent: bool,
}

type Dial = Shared<BoxFuture<'static, Result<Channel, Error>>>;

enum Slot {
    Idle,
    Dialing(Dial),
    Ready(Channel),
}

/// A connection and how often it was replaced, so that a late failure of an old one does not throw
/// away the new one.
struct Connection {
    slot: Slot,
    generation: u64,
}

pub struct Remote {
    pub address: String,
    options: Arc<Options>,
    connections: Vec<Mutex<Connection>>,
    cursor: AtomicUsize,
    /// Milliseconds since `started` until which the node is asked last.
    suspect_until: AtomicU64,
    /// Failures since it last answered.
    failures: AtomicU32,
    started: Instant,
    /// 0 = not known.
    pub node_id: AtomicU64,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Remote {
    pub fn new(address: String, options: Arc<Options>) -> Arc<Remote> {
        let connections = (0..options.connections)
            .map(|_| Mutex::new(Connection { slot: Slot::Idle, generation: 0 }))
            .collect();
        Arc::new(Remote {
            address,
            options,
            connections,
            cursor: AtomicUsize::new(0),
            suspect_until: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            started: Instant::now(),
            node_id: AtomicU64::new(0),
        })
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    pub fn is_suspect(&self) -> bool {
        let until = self.suspect_until.load(Ordering::Relaxed);
        until != 0 && self.now_ms() < until
    }

    /// The node did not answer. The longer that goes on, the longer it is left alone, for instance
    /// when its advertised address cannot be reached from here.
    pub fn suspect(&self) {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).min(64);
        let pause = limits::CLIENT_SUSPECT * (1 << (failures / 4).min(3));
        self.suspect_until.store(self.now_ms() + pause.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn trust(&self) {
        if self.suspect_until.load(Ordering::Relaxed) != 0 {
            self.suspect_until.store(0, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// A connection of its own, for a stream that would crowd out unary calls.
    pub async fn dial(&self) -> Result<Channel, Error> {
        dial(self.address.clone(), self.options.clone()).await
    }

    /// One of the shared connections, opened when there is none.
    async fn channel(&self) -> Result<(Channel, usize, u64), Error> {
        let index = self.cursor.fetch_add(1, Ordering::Relaxed) % self.connections.len();
        let (opening, generation) = {
            let mut connection = lock(&self.connections[index]);
            let opening = match &connection.slot {
                Slot::Ready(channel) => {
                    return Ok((channel.clone(), index, connection.generation));
                }
                Slot::Dialing(opening) => opening.clone(),
                Slot::Idle => {
                    let opening = dial(self.address.clone(), self.options.clone()).boxed().shared();
                    connection.slot = Slot::Dialing(opening.clone());
                    connection.generation += 1;
                    opening
                }
            };
            (opening, connection.generation)
        };
        let outcome = opening.await;
        let mut connection = lock(&self.connections[index]);
        if connection.generation == generation && matches!(connection.slot, Slot::Dialing(_)) {
            connection.slot = match &outcome {
                Ok(channel) => Slot::Ready(channel.clone()),
                Err(_) => Slot::Idle,
            };
        }
        outcome.map(|channel| (channel, index, generation))
    }

    fn discard(&self, index: usize, generation: u64) {
        let mut connection = lock(&self.connections[index]);
        if connection.generation == generation && matches!(connection.slot, Slot::Ready(_)) {
            connection.slot = Slot::Idle;
        }
    }

    /// One attempt of a unary call.
    pub async fn unary<R: Request>(
        &self,
        request: &Arc<R>,
        patience: Duration,
    ) -> Result<R::Response, Failure> {
        let deadline = Instant::now() + patience;
        let (channel, index, generation) = self.open(patience).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut message = tonic::Request::new(request.clone());
        message.set_timeout(left);
        let mut grpc = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(limits::CLIENT_ANSWER_BYTES);
        let call = async {
            grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            let path = PathAndQuery::from_static(R::PATH);
            grpc.unary(message, path, SharedCodec::<R>::default()).await
        };
        match timeout(left, call).await {
            Ok(Ok(response)) => {
                self.trust();
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(self.failed(&status, index, generation)),
            Err(_) => Err(Failure { error: Error::Timeout { definite: false }, silent: true }),
        }
    }

    /// Begins a call whose answer is a stream. `patience` covers the beginning only.
    pub async fn server_stream<R: Request>(
        &self,
        request: R,
        patience: Duration,
    ) -> Result<Streaming<R::Response>, Failure> {
        let deadline = Instant::now() + patience;
        let (channel, index, generation) = self.open(patience).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut grpc = tonic::client::Grpc::new(channel)
            .max_decoding_message_size(limits::CLIENT_ANSWER_BYTES);
        let message = tonic::Request::new(Arc::new(request));
        let call = async {
            grpc.ready().await.map_err(|e| Status::from_error(Box::new(e)))?;
            let path = PathAndQuery::from_static(R::PATH);
            grpc.server_streaming(message, path, SharedCodec::<R>::default()).await
        };
        match timeout(left, call).await {
            Ok(Ok(response)) => {
                self.trust();
                Ok(response.into_inner())
            }
            Ok(Err(status)) => Err(self.failed(&status, index, generation)),
            Err(_) => Err(Failure { error: Error::Timeout { definite: false }, silent: true }),
        }
    }

    async fn open(&self, patience: Duration) -> Result<(Channel, usize, u64), Failure> {
        match timeout(patience, self.channel()).await {
            Ok(Ok(opened)) => Ok(opened),
            Ok(Err(error)) => Err(Failure { error, silent: true }),
            Err(_) => Err(Failure { error: Error::Timeout { definite: true }, silent: true }),
        }
    }

    fn failed(&self, status: &Status, index: usize, generation: u64) -> Failure {
        let failure = failure(status);
        if failure.silent && !matches!(failure.error, Error::Timeout { .. }) {
            self.discard(index, generation);
        }
        failure
    }
}

/// The one place where a connection is made.
async fn dial(address: String, options: Arc<Options>) -> Result<Channel, Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .and_then(|endpoint| endpoint.user_agent(concat!("quorate/", env!("CARGO_PKG_VERSION"))))
        .map_err(|e| Error::invalid("endpoint", address.clone(), e.to_string()))?
        .http2_keep_alive_interval(limits::CLIENT_PROBE_INTERVAL)
        .keep_alive_timeout(limits::CLIENT_PROBE_TIMEOUT)
        .keep_alive_while_idle(false)
        .initial_stream_window_size(limits::CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW);
    let connector = gather::connector(options.connect_timeout);
    // The connector's limit covers the TCP handshake only.
    match timeout(options.connect_timeout, endpoint.connect_with_connector(connector)).await {
        Ok(Ok(channel)) => Ok(channel),
        Ok(Err(e)) => Err(unreachable(&address, &root(&e))),
        Err(_) => {
            Err(unreachable(&address, &format!("no answer within {:?}", options.connect_timeout)))
        }
    }
}

fn unreachable(address: &str, why: &str) -> Error {
    Error::Connection { message: format!("{address}: {why}"), definite: true }
}

/// The innermost reason: "connection refused" says more than "transport error".
pub fn root(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

/// Reads a status: one that a node sent, or one that tonic made of a failure on the way. The latter
/// has a source.
pub fn failure(status: &Status) -> Failure {
    let Some(outermost) = std::error::Error::source(status) else {
        return Failure { error: Error::from(status.clone()), silent: false };
    };
    let mut definite = false;
    let mut timed_out = false;
    let mut source = Some(outermost);
    while let Some(error) = source {
        definite |= error.is::<ConnectError>();
        timed_out |= error.is::<tonic::TimeoutExpired>();
        source = error.source();
    }
    let error = if timed_out {
        Error::Timeout { definite: false }
    } else {
        Error::Connection { message: root(outermost), definite }
    };
    Failure { error, silent: true }
}
