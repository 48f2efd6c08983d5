//! Health checks over real connections. A name is resolved once, each address it leads to is held against
//! the allow-list, and the connection goes to an address that passed: what a name says a moment later
//! does not matter. Nothing that a target answers leads anywhere else, and little of it is read.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use http_body_util::Empty;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
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
    /// A name that is being resolved holds a thread, also when nobody waits for it any more.
    lookups: Arc<Semaphore>,
}

impl SocketProber {
    pub fn new(allowed: AllowList) -> Self {
        SocketProber {
            allowed: Arc::new(allowed),
            lookups: Arc::new(Semaphore::new(HEALTH_LOOKUPS)),
        }
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
        let deadline = Instant::now() + target.timeout;
        let within = shown(target.timeout);
        let late = |what: &str| failed(format!("no {what} within {within}"));
        let connected = runtime::timeout_at(deadline, self.connect(target)).await;
        let stream = connected.map_err(|_| late("connection"))??;
        let answered = async {
            match &target.probe {
                Probe::Tcp => Ok(()),
                Probe::Http { path, host, statuses } => {
                    http(stream, target, path, host, *statuses).await
                }
                Probe::Grpc { service } => grpc(stream, target, service).await,
            }
        };
        runtime::timeout_at(deadline, answered).await.map_err(|_| late("answer"))?.map_err(failed)
    }

    /// To the first of the allowed addresses that takes the connection.
    async fn connect(&self, target: &Target) -> Result<TcpStream, Saw> {
        let Target { host, port, .. } = target;
        if !self.allowed.may_allow(host) {
            return Err(Saw::NotAllowed(not_allowed(host, None)));
        }
        let found = self.resolve(host, *port).await.map_err(failed)?;
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

    async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        if let Ok(address) = host.parse::<IpAddr>() {
            return Ok(vec![SocketAddr::new(address.to_canonical(), port)]);
        }
        let permit = self.lookups.clone().acquire_owned().await.map_err(|e| e.to_string())?;
        let name = (host.to_owned(), port);
        let found = runtime::blocking(move || {
            let found = name.to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>);
            drop(permit);
            found
        });
        let found = found.await.map_err(|error| format!("its name is not resolved: {error}"))?;
        Ok(found.into_iter().map(canonical).collect())
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
