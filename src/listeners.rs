//! The one place where ports are opened and servers get their settings. TLS belongs here: no service
//! knows what it is served over.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures::{Stream, StreamExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::gather::Gather;
use crate::limits::{
    HEADER_BYTES, LISTEN_BACKLOG, MAX_CALL_TIMEOUT, PEER_CONCURRENT_STREAMS,
    PEER_CONNECTION_WINDOW, PEER_STREAM_WINDOW, SERVER_CONCURRENT_STREAMS,
    SERVER_CONNECTION_WINDOW, SERVER_PROBE_INTERVAL, SERVER_PROBE_TIMEOUT, SERVER_STREAM_WINDOW,
};

/// An address that cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} (--listen-{purpose}): {source}")]
pub struct Error {
    pub purpose: &'static str,
    pub address: SocketAddr,
    pub source: io::Error,
}

/// A port that is ours but refuses connections yet. A node takes its ports before it touches its data
/// and opens them once it can answer: meanwhile callers go elsewhere instead of waiting. Operators are
/// answered at once, see `http`.
#[derive(Debug)]
pub struct Port {
    purpose: &'static str,
    address: SocketAddr,
    socket: TcpSocket,
}

impl Port {
    /// `purpose` as in the option `--listen-...`.
    pub fn take(purpose: &'static str, address: SocketAddr) -> Result<Port, Error> {
        let error = |source| Error { purpose, address, source };
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4(),
            SocketAddr::V6(_) => TcpSocket::new_v6(),
        };
        let socket = socket.map_err(error)?;
        // A node that restarts finds its port although old connections linger.
        socket.set_reuseaddr(true).map_err(error)?;
        socket.bind(address).map_err(error)?;
        Ok(Port { purpose, address, socket })
    }

    pub fn open(self) -> Result<TcpListener, Error> {
        let Port { purpose, address, socket } = self;
        socket.listen(LISTEN_BACKLOG).map_err(|source| Error { purpose, address, source })
    }
}

/// Connections for a gRPC server. Nagle's delay is switched off here: the server's own setting has no
/// effect on connections that it is handed.
pub fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Gather<TcpStream>>> {
    TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(Duration::from_secs(60)))
        .map(|stream| stream.map(Gather::new))
}

/// As [`incoming`], for the HTTP server.
pub fn tune(stream: &mut TcpStream) {
    // A connection that cannot be tuned is about to fail by itself.
    let _ = stream.set_nodelay(true);
}

/// Settings of the server for clients.
pub fn client_server() -> Server {
    probing(Server::builder())
        .initial_stream_window_size(SERVER_STREAM_WINDOW)
        .initial_connection_window_size(SERVER_CONNECTION_WINDOW)
        .max_concurrent_streams(SERVER_CONCURRENT_STREAMS)
        .timeout(MAX_CALL_TIMEOUT)
}

/// Settings of the server for peers. No timeout: each message between nodes brings its own.
pub fn peer_server() -> Server {
    probing(Server::builder())
        .initial_stream_window_size(PEER_STREAM_WINDOW)
        .initial_connection_window_size(PEER_CONNECTION_WINDOW)
        .max_concurrent_streams(PEER_CONCURRENT_STREAMS)
}

fn probing(server: Server) -> Server {
    server
        .http2_max_header_list_size(HEADER_BYTES)
        .http2_keepalive_interval(Some(SERVER_PROBE_INTERVAL))
        .http2_keepalive_timeout(Some(SERVER_PROBE_TIMEOUT))
}

#[cfg(test)]
pub mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// An address that nobody else gets: below the ports that the kernel gives to connections and to whoever asks for
    /// any, and no two of this process alike.
    pub fn free_address() -> SocketAddr {
        const FIRST: u32 = 10_000;
        const COUNT: u32 = 22_000;
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let start = std::process::id().wrapping_mul(331);
        (0..COUNT)
            .map(|_| start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT + FIRST)
            .map(|port| SocketAddr::from(([127, 0, 0, 1], port as u16)))
            .find(|address| std::net::TcpListener::bind(address).is_ok())
            .expect("a free port")
    }

    #[tokio::test]
    async fn a_taken_port_refuses_until_it_is_open_and_is_nobody_elses() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = Port::take("client", any).unwrap();
        let address = port.socket.local_addr().unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "not open yet");
        let listener = port.open().unwrap();
        TcpStream::connect(address).await.unwrap();
        let error = Port::take("peer", address).unwrap_err();
        let text = format!("cannot listen on {address} (--listen-peer): ");
        assert!(error.to_string().starts_with(&text), "{error}");
        assert_eq!(error.source.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        Port::take("peer", address).unwrap();
    }
}
