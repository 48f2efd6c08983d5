//! The connection to one endpoint: opened by the first call that needs it, shared by all, opened again when
//! it is lost. What an endpoint did not begin with is told from what it may have done.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::{BoxFuture, FutureExt as _, Shared};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, request};
use hyper::body::Incoming;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant, timeout};

use super::super::remote::{lock, root, spawn};
use super::body::{Kept, Replay};
use super::tls::Tls;
use crate::gather::Gather;
use crate::limits;
use crate::proto::host_port;

type Sender = SendRequest<Replay>;
type Dial = Shared<BoxFuture<'static, Result<Connection, Failure>>>;

/// Where an endpoint is, and whether it wants TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    pub host: String,
    pub port: u16,
    pub tls: bool,
}

/// One endpoint's connection. Calls that are under way when it is dropped go on.
pub struct Link {
    instance: Arc<str>,
    address: Address,
    /// The address as the URIs of calls name it.
    authority: Result<Authority, Failure>,
    tls: Option<Tls>,
    slot: Mutex<Slot>,
}

/// A connection that stands, as far as is known.
#[derive(Clone)]
pub(super) struct Connection {
    sender: Sender,
    /// Tells it from the ones before.
    number: u64,
}

struct Slot {
    state: State,
    /// Number of the last connection.
    last: u64,
    /// Dials that failed since one succeeded.
    failures: u32,
}

enum State {
    Idle,
    Dialing(Dial),
    Ready(Connection),
    /// Not to be tried again before.
    Failed(Instant, Failure),
}

/// How a call begins.
pub(super) enum Start {
    Connected(Connection),
    /// Somebody opens it.
    Dialing(Dial),
    /// It could not be opened the last time. If it is time to try again, somebody does.
    Down(Failure),
}

/// Why an attempt came to nothing.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub why: Arc<str>,
    /// The endpoint certainly has not begun with the call.
    pub untouched: bool,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&host_port(&self.host, self.port))
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Start {
    pub(super) async fn connection(self) -> Result<Connection, Failure> {
        match self {
            Start::Connected(connection) => Ok(connection),
            Start::Dialing(dial) => dial.await,
            Start::Down(failure) => Err(failure),
        }
    }
}

impl Failure {
    fn new(address: &Address, why: impl fmt::Display, untouched: bool) -> Failure {
        Failure { why: format!("{address}: {why}").into(), untouched }
    }
}

impl Link {
    /// Connects when it is used. `tls` is how, for an address that wants it.
    pub(super) fn new(instance: &str, address: Address, tls: Option<Tls>) -> Link {
        let authority = address.to_string().parse::<Authority>();
        let authority = authority.map_err(|error| Failure::new(&address, error, true));
        let slot = Mutex::new(Slot { state: State::Idle, last: 0, failures: 0 });
        Link { instance: instance.into(), address, authority, tls, slot }
    }

    /// The id of the instance.
    pub fn instance(&self) -> &Arc<str> {
        &self.instance
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The instance was reached and would not do it.
    pub(super) fn failure(&self, why: &str) -> Failure {
        Failure::new(&self.address, why, false)
    }

    /// A connection stands, as far as is known.
    pub(super) fn is_connected(&self) -> bool {
        matches!(&self.slot().state, State::Ready(it) if !it.sender.is_closed())
    }

    /// Nobody has tried to reach it.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.slot().state, State::Idle)
    }

    /// The connection, or what there is instead. Opens it when there is none, unless that failed a moment
    /// ago. Only who comes first waits for that: after a failure it is tried beside the calls, so that a
    /// host which answers nothing does not hold up each of them.
    pub(super) fn start(self: &Arc<Self>) -> Start {
        let mut slot = self.slot();
        match &slot.state {
            State::Ready(connection) if !connection.sender.is_closed() => {
                return Start::Connected(connection.clone());
            }
            State::Failed(until, failure) if Instant::now() < *until => {
                return Start::Down(failure.clone());
            }
            State::Failed(_, failure) => {
                let failure = failure.clone();
                drop(self.open(&mut slot));
                return Start::Down(failure);
            }
            State::Dialing(dial) => {
                return match slot.failures {
                    0 => Start::Dialing(dial.clone()),
                    _ => Start::Down(Failure::new(&self.address, "it is tried again", true)),
                };
            }
            State::Idle | State::Ready(_) => {}
        }
        Start::Dialing(self.open(&mut slot))
    }

    /// The same for who has nowhere else to go: never says that it is down.
    pub(super) fn insist(self: &Arc<Self>) -> Start {
        let mut slot = self.slot();
        match &slot.state {
            State::Ready(connection) if !connection.sender.is_closed() => {
                Start::Connected(connection.clone())
            }
            State::Dialing(dial) => Start::Dialing(dial.clone()),
            State::Idle | State::Ready(_) | State::Failed(..) => {
                Start::Dialing(self.open(&mut slot))
            }
        }
    }

    /// Sends a call and waits for the head of its answer.
    pub(super) async fn send(
        self: &Arc<Self>,
        mut connection: Connection,
        parts: &request::Parts,
        body: &Kept,
    ) -> Result<Response<Incoming>, Failure> {
        // A connection that was closed since its last call is found out by sending on it; another one may
        // stand.
        for again in [true, false] {
            let Some(body) = body.body() else {
                return Err(Failure::new(&self.address, "too long to be sent again", true));
            };
            let request = self.request(parts, body)?;
            let mut error = match connection.sender.try_send_request(request).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let unsent = error.take_message().is_some();
            let error = error.into_error();
            let refusal = Refusal::of(&error);
            let untouched = unsent || refusal.is_some();
            let failure = Failure::new(&self.address, root(&error), untouched);
            if unsent || refusal == Some(Refusal::Connection) {
                self.leave(&connection);
            }
            if !untouched || refusal == Some(Refusal::Call) || !again {
                return Err(failure);
            }
            connection = self.start().connection().await?;
        }
        unreachable!("the second attempt returns")
    }

    fn request(&self, parts: &request::Parts, body: Replay) -> Result<Request<Replay>, Failure> {
        let authority = self.authority.clone()?;
        let scheme = if self.address.tls { Scheme::HTTPS } else { Scheme::HTTP };
        let path = parts.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path);
        let uri = uri.build().map_err(|error| Failure::new(&self.address, error, true))?;
        let mut request = Request::new(body);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = http::Version::HTTP_2;
        *request.headers_mut() = parts.headers.clone();
        Ok(request)
    }

    /// Opens it in a task of its own, which also ends when nobody waits any more.
    fn open(self: &Arc<Self>, slot: &mut Slot) -> Dial {
        slot.last += 1;
        let number = slot.last;
        let dial = dial(self.address.clone(), self.tls.clone())
            .map(move |made| made.map(|sender| Connection { sender, number }));
        let dial = dial.boxed().shared();
        slot.state = State::Dialing(dial.clone());
        let link = self.clone();
        let opening = dial.clone();
        spawn(async move {
            // It stands in the slot as long as it is under way.
            let _ = opening.await;
            drop(link.slot());
        });
        dial
    }

    /// How it stands. Whoever looks first after a dial has ended notes its outcome: who waited for it goes
    /// on before the dial's own task does, and must not take a dial that failed for one under way.
    fn slot(&self) -> MutexGuard<'_, Slot> {
        let mut slot = lock(&self.slot);
        let outcome = match &slot.state {
            State::Dialing(dial) => dial.peek().cloned(),
            State::Idle | State::Ready(_) | State::Failed(..) => None,
        };
        match outcome {
            None => {}
            Some(Ok(connection)) => {
                slot.failures = 0;
                slot.state = State::Ready(connection);
            }
            Some(Err(failure)) => {
                let pause = limits::CHANNEL_CONNECT_AGAIN * (1 << slot.failures.min(5));
                slot.failures = slot.failures.saturating_add(1);
                let until = Instant::now() + pause.min(limits::CHANNEL_CONNECT_AGAIN_MAX);
                slot.state = State::Failed(until, failure);
            }
        }
        slot
    }

    /// No more calls over this connection.
    fn leave(&self, connection: &Connection) {
        let mut slot = self.slot();
        if let State::Ready(current) = &slot.state
            && current.number == connection.number
        {
            slot.state = State::Idle;
        }
    }
}

/// What the peer would not begin with, and said so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// This call: it has too many.
    Call,
    /// This call and all later ones of the connection: it stops, or closes old connections.
    Connection,
}

impl Refusal {
    /// A stream that was refused was not begun with (RFC 9113, 8.7). A GOAWAY of the peer is the error of
    /// those streams only that are beyond the last one it will see to; the end of the connection is
    /// another error.
    fn of(error: &hyper::Error) -> Option<Refusal> {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = source {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
                return match (error.is_remote(), error.is_go_away()) {
                    (true, true) => Some(Refusal::Connection),
                    (true, false) if refused => Some(Refusal::Call),
                    (true | false, _) => None,
                };
            }
            source = error.source();
        }
        None
    }
}

async fn dial(address: Address, tls: Option<Tls>) -> Result<Sender, Failure> {
    let host = address.host.as_str();
    let connect = async {
        let stream = TcpStream::connect((host, address.port)).await;
        let stream = stream.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        match (address.tls, tls) {
            (false, _) => handshake(stream).await,
            (true, Some(tls)) => handshake(tls.connect(host, stream).await?).await,
            (true, None) => Err("it wants TLS, and the channel has no options for it".to_owned()),
        }
    };
    let within: Duration = limits::CHANNEL_CONNECT_TIMEOUT;
    match timeout(within, connect).await {
        Ok(Ok(sender)) => Ok(sender),
        Ok(Err(why)) => Err(Failure::new(&address, why, true)),
        Err(_) => {
            Err(Failure::new(&address, format_args!("no connection within {within:?}"), true))
        }
    }
}

async fn handshake<S>(stream: S) -> Result<Sender, String>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(limits::CLIENT_STREAM_WINDOW)
        .initial_connection_window_size(limits::CLIENT_CONNECTION_WINDOW)
        .keep_alive_interval(limits::CLIENT_PROBE_INTERVAL)
        .keep_alive_timeout(limits::CLIENT_PROBE_TIMEOUT);
    let made = builder.handshake(TokioIo::new(Gather::new(stream))).await;
    let (sender, connection) = made.map_err(|error| root(&error))?;
    spawn(async move {
        // It ends with its last call once nobody holds the sender; the calls tell of its errors.
        let _ = connection.await;
    });
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// On one thread, the one that waits goes on before the task that opened it.
    #[tokio::test]
    async fn a_dial_that_failed_is_over_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let link =
            Arc::new(Link::new("a", Address { host: "127.0.0.1".into(), port, tls: false }, None));
        let Err(failure) = link.insist().connection().await else { panic!("nobody listens") };
        assert!(failure.untouched && failure.why.contains("refused"), "{failure:?}");
        assert!(matches!(link.start(), Start::Down(_)), "it is not tried again at once");
        let _listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        link.insist().connection().await.map_err(|failure| failure.why).unwrap();
        assert!(link.is_connected());
    }
}
