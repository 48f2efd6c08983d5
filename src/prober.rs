//! Health checks over real connections. A name is resolved once, each address it leads to is held against
//! the allow-list, and the connection goes to an address that passed: what a name says a moment later
//! does not matter. Nothing that a target answers leads anywhere else, and little of it is read.
//!
//! A name that is not resolved in time is a failure of those who stand behind it, and of nobody else: who had to
//! wait before his own was asked for, and then was late, has seen nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tonic::Code;
use tonic::codegen::{Bytes, http};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::allow::AllowList;
use crate::limits::{HEALTH_ANSWER_BYTES, HEALTH_LOOKUPS};
use crate::node::{Prober, Saw, Target};
use crate::proto::host_port;
use crate::runtime::{self, Instant};
use crate::state::Probe;

#[derive(Debug, Clone)]
pub struct SocketProber {
    allowed: Arc<AllowList>,
    lookups: Arc<Lookups>,
}

/// The names that are being resolved, each once, whoever asks. One of them holds a thread, also when nobody waits
/// for it any more; so there are few at a time, and the others wait their turn.
#[derive(Debug)]
struct Lookups {
    permits: Arc<Semaphore>,
    resolve: fn(&str) -> io::Result<Vec<SocketAddr>>,
    under_way: Mutex<BTreeMap<String, Arc<watch::Sender<Lookup>>>>,
}

#[derive(Debug, Clone)]
enum Lookup {
    /// For its turn.
    Waits,
    /// When.
    Begun(Instant),
    Found(Instant, Result<Vec<SocketAddr>, String>),
}

impl SocketProber {
    pub fn new(allowed: AllowList) -> Self {
        let lookups = Lookups {
            permits: Arc::new(Semaphore::new(HEALTH_LOOKUPS)),
            resolve,
            under_way: Mutex::default(),
        };
        SocketProber { allowed: Arc::new(allowed), lookups: Arc::new(lookups) }
    }
}

/// By the operating system.
fn resolve(host: &str) -> io::Result<Vec<SocketAddr>> {
    Ok((host, 0).to_socket_addrs()?.map(canonical).collect())
}

impl Lookups {
    fn under_way(&self) -> MutexGuard<'_, BTreeMap<String, Arc<watch::Sender<Lookup>>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the name leads to, or how far that has come until the deadline.
    async fn find(self: &Arc<Self>, host: &str, deadline: Instant) -> Lookup {
        let mut lookup = self.begin(host);
        let found = lookup.wait_for(|lookup| matches!(lookup, Lookup::Found(..)));
        let _ = runtime::timeout_at(deadline, found).await;
        lookup.borrow().clone()
    }

    /// Joins the lookup that is under way, or begins one.
    fn begin(self: &Arc<Self>, host: &str) -> watch::Receiver<Lookup> {
        let mut under_way = self.under_way();
        if let Some(lookup) = under_way.get(host) {
            return lookup.subscribe();
        }
        let (lookup, receiver) = watch::channel(Lookup::Waits);
        let lookup = Arc::new(lookup);
        under_way.insert(host.to_owned(), lookup.clone());
        runtime::spawn(self.clone().run(host.to_owned(), lookup));
        receiver
    }

    async fn run(self: Arc<Self>, host: String, lookup: Arc<watch::Sender<Lookup>>) {
        // It keeps its place when nobody waits any more: the next check of that name joins it.
        let permit = self.permits.clone().acquire_owned().await;
        let begun = Instant::now();
        lookup.send_replace(Lookup::Begun(begun));
        let (name, resolve) = (host.clone(), self.resolve);
        let found = runtime::blocking(move || {
            let found = resolve(&name);
            drop(permit);
            found.map_err(|error| format!("its name is not resolved: {error}"))
        });
        let found = found.await;
        self.under_way().remove(&host);
        lookup.send_replace(Lookup::Found(begun, found));
    }
}

impl Prober for SocketProber {
    fn probe(&self, target: Target) -> BoxFuture<'static, Saw> {
        let prober = self.clone();
        async move {
            match prober.ask(&target).await {
                Ok(()) => Saw::Passed,
                Err(saw) => saw,
            }
        }
        .boxed()
    }

    fn refuses(&self, host: &str) -> Option<String> {
        (!self.allowed.may_allow(host)).then(|| not_allowed(host, None))
    }
}

fn not_allowed(host: &str, address: Option<IpAddr>) -> String {
    match address.filter(|address| address.to_string() != host) {
        Some(address) => format!("--health-check-allow does not allow {host} at {address}"),
        None => format!("--health-check-allow does not allow {host}"),
    }
}

fn failed(why: impl Into<String>) -> Saw {
    Saw::Failed(why.into())
}

impl SocketProber {
    async fn ask(&self, target: &Target) -> Result<(), Saw> {
        let asked = Instant::now();
        let deadline = asked + target.timeout;
        let within = shown(target.timeout);
        let late = |turn: Instant, what: &str| {
            let waited = turn.saturating_duration_since(asked) > target.timeout / 10;
            if waited { Saw::Nothing } else { failed(format!("no {what} within {within}")) }
        };
        let Target { host, port, .. } = target;
        if !self.allowed.may_allow(host) {
            return Err(Saw::NotAllowed(not_allowed(host, None)));
        }
        let (turn, mut found) = match host.parse::<IpAddr>() {
            Ok(address) => (asked, vec![SocketAddr::new(address.to_canonical(), *port)]),
            Err(_) => match self.lookups.find(host, deadline).await {
                Lookup::Found(turn, found) => (turn, found.map_err(failed)?),
                Lookup::Begun(turn) => return Err(late(turn, "connection")),
                Lookup::Waits => return Err(Saw::Nothing),
            },
        };
        found.iter_mut().for_each(|address| address.set_port(*port));
        let connected = runtime::timeout_at(deadline, self.connect(host, &found)).await;
        let stream = connected.map_err(|_| late(turn, "connection"))??;
        let answered = async {
            match &target.probe {
                Probe::Tcp => Ok(()),
                Probe::Http { path, host, statuses } => {
                    http(stream, target, path, host, *statuses).await
                }
                Probe::Grpc { service } => grpc(stream, target, service).await,
            }
        };
        runtime::timeout_at(deadline, answered)
            .await
            .map_err(|_| late(turn, "answer"))?
            .map_err(failed)
    }

    /// To the first of the allowed addresses that takes the connection.
    async fn connect(&self, host: &str, found: &[SocketAddr]) -> Result<TcpStream, Saw> {
        let allowed = |address: &&SocketAddr| self.allowed.allows(host, address.ip());
        let mut last = match found.first() {
            Some(first) => Saw::NotAllowed(not_allowed(host, Some(first.ip()))),
            None => failed("its name has no address"),
        };
        for address in found.iter().filter(allowed) {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = failed(io_text(&error)),
            }
        }
        Err(last)
    }
}

/// IPv4 as such: what is connected to is what was looked at.
fn canonical(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(six) if six.ip().to_ipv4_mapped().is_some() => {
            SocketAddr::new(address.ip().to_canonical(), address.port())
        }
        _ => address,
    }
}

fn shown(timeout: Duration) -> String {
    match timeout.as_millis() {
        ms if ms.is_multiple_of(1_000) => format!("{} s", ms / 1_000),
        ms => format!("{ms} ms"),
    }
}

/// Without the number of the operating system.
fn io_text(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(_) => {
            let text = error.to_string();
            let text = text.split(" (os error").next().unwrap_or_default();
            text.to_ascii_lowercase()
        }
        None => error.to_string(),
    }
}

/// One GET. The body is not read: the connection goes once the head is there.
async fn http(
    stream: TcpStream,
    target: &Target,
    path: &str,
    host: &str,
    (first, last): (u16, u16),
) -> Result<(), String> {
    let host = if host.is_empty() { host_port(&target.host, target.port) } else { host.to_owned() };
    let request = http::Request::get(path)
        .header(http::header::HOST, host)
        .header(http::header::USER_AGENT, concat!("quorate/", env!("CARGO_PKG_VERSION")))
        .header(http::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let broken = |error: hyper::Error| format!("no HTTP answer: {error}");
    let mut builder = http1::Builder::new();
    builder.max_buf_size(HEALTH_ANSWER_BYTES);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let mut answer = pin!(sender.send_request(request));
    let mut connection = pin!(connection);
    let mut open = true;
    let response = loop {
        tokio::select! {
            biased;
            answer = &mut answer => break answer.map_err(broken)?,
            _ = &mut connection, if open => open = false,
        }
    };
    match response.status().as_u16() {
        status if (first..=last).contains(&status) => Ok(()),
        status => Err(format!("answered {status}, expected {first}-{last}")),
    }
}

/// One call of grpc.health.v1 over the connection that was made.
async fn grpc(stream: TcpStream, target: &Target, service: &str) -> Result<(), String> {
    // A host that is no part of a URI, a link-local address with its zone for instance, is called by the
    // address that it has.
    let called = |authority: String| Endpoint::from_shared(format!("http://{authority}"));
    let endpoint = match called(host_port(&target.host, target.port)) {
        Ok(endpoint) => endpoint,
        Err(_) => {
            let address = stream.peer_addr().map_err(|error| io_text(&error))?;
            called(address.to_string()).map_err(|error| error.to_string())?
        }
    };
    // There is one connection, and no other is made when it breaks.
    let mut made = Some(TokioIo::new(stream));
    let connector = tower::service_fn(move |_: http::Uri| {
        let made = made.take().ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted));
        std::future::ready(made)
    });
    let channel = endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| format!("no gRPC answer: {error}"))?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(HEALTH_ANSWER_BYTES);
    let request = HealthCheckRequest { service: service.to_owned() };
    match client.check(request).await {
        Ok(answer) => match answer.into_inner().status() {
            ServingStatus::Serving => Ok(()),
            other => Err(format!("answered {}", other.as_str_name())),
        },
        // Its text is the target's and stays out of the state.
        Err(status) => Err(match status.code() {
            Code::Unavailable | Code::Unknown => "no gRPC answer".to_owned(),
            code => format!("answered {code:?}"),
        }),
    }
}

#[cfg(test)]
mod tests;
