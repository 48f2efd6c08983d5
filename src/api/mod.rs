//! The public gRPC services. Each handler makes three moves: decode, one call of the node, encode.
//! What a call means to the state stands in [`calls`], how messages and records become each other in
//! [`convert`], and the pipelined stream, which serves the same calls, in [`stream`].

pub mod alarm;
pub mod calls;
pub mod cluster;
pub mod config;
pub mod convert;
pub mod counter;
mod discovery;
mod encoded;
pub mod lock;
pub mod registry;
pub mod saga;
pub mod sessions;
pub mod stream;
#[cfg(test)]
mod tests;
pub mod txn;
pub mod watch;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use self::calls::{Read, Write};
pub use self::discovery::Answers;
use crate::error::Error;
use crate::limits::{
    CLIENT_ANSWER_BYTES, CLIENT_MESSAGE_BYTES, DEFAULT_CALL_TIMEOUT, MAX_CALL_TIMEOUT,
};
use crate::node::Node;
use crate::proto::v1::alarms_server::AlarmsServer;
use crate::proto::v1::cluster_server::ClusterServer;
use crate::proto::v1::config_server::ConfigServer;
use crate::proto::v1::counters_server::CountersServer;
use crate::proto::v1::locks_server::LocksServer;
use crate::proto::v1::registry_server::RegistryServer;
use crate::proto::v1::sagas_server::SagasServer;
use crate::proto::v1::sessions_server::SessionsServer;
use crate::proto::v1::txn_server::TxnServer;
use crate::proto::v1::watches_server::WatchesServer;
use crate::proto::v1::{Consistency, Header, WatchRangesRequest, WatchRequest};
use crate::runtime::Instant;

/// What the node does not know of itself.
#[derive(Debug)]
pub struct About {
    pub cluster_id: String,
    pub version: String,
    /// "fdatasync" or "none".
    pub durability: String,
    pub started: Instant,
}

/// Tells everything that waits for a client that the node is about to stop: streams take in nothing
/// more, answer what is under way and end.
#[derive(Debug, Clone, Default)]
pub struct Drain(Arc<DrainState>);

#[derive(Debug, Default)]
struct DrainState {
    begun: AtomicBool,
    notify: Notify,
}

impl Drain {
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::SeqCst);
        self.0.notify.notify_waiters();
    }

    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::SeqCst)
    }

    pub async fn begun(self) {
        // Notifications are kept from here on; what was begun before shows in the flag.
        let notified = self.0.notify.notified();
        if !self.has_begun() {
            notified.await;
        }
    }
}

/// What the services share.
#[derive(Debug, Clone)]
pub struct Api {
    pub node: Node,
    pub about: Arc<About>,
    pub drain: Drain,
    pub answers: Arc<Answers>,
}

impl Api {
    /// All services.
    pub fn routes(&self) -> Routes {
        // Macro: the generated servers have these methods, but no trait that names them.
        macro_rules! limited {
            ($server:expr) => {
                $server
                    .max_decoding_message_size(CLIENT_MESSAGE_BYTES)
                    .max_encoding_message_size(CLIENT_ANSWER_BYTES)
            };
        }
        let router = Routes::new(limited!(RegistryServer::new(registry::Registry(self.clone()))))
            .add_service(limited!(SessionsServer::new(sessions::Sessions(self.clone()))))
            .add_service(limited!(ClusterServer::new(cluster::Cluster(self.clone()))))
            .add_service(limited!(WatchesServer::new(watch::Watches(self.clone()))))
            .add_service(limited!(ConfigServer::new(config::Config(self.clone()))))
            .add_service(limited!(CountersServer::new(counter::Counters(self.clone()))))
            .add_service(limited!(AlarmsServer::new(alarm::Alarms(self.clone()))))
            .add_service(limited!(LocksServer::new(lock::Locks(self.clone()))))
            .add_service(limited!(SagasServer::new(saga::Sagas(self.clone()))))
            .add_service(limited!(TxnServer::new(txn::Txn(self.clone()))))
            .into_axum_router();
        let router = discovery::route(router, self);
        let router = stream::route(router, self);
        let router = watch::route::<WatchRequest>(router, self);
        Routes::from(watch::route::<WatchRangesRequest>(router, self))
    }

    async fn write<W: Write>(&self, request: Request<W>) -> Result<Response<W::Response>, Status> {
        let timeout = timeout(request.metadata());
        let mut command = request.into_inner().command()?;
        self.node.prepare(&mut command, timeout).await?;
        let outcome = self.node.propose(&command, timeout).await?;
        Ok(Response::new(calls::response::<W>(self.node.id(), outcome)?))
    }

    async fn read<R: Read>(&self, request: Request<R>) -> Result<Response<R::Response>, Status> {
        let timeout = timeout(request.metadata());
        let (consistency, mut query) = request.into_inner().query()?;
        R::stamp(&mut query, self.node.now_ms());
        let used = self.node.barrier(consistency, timeout).await?;
        let (found, revision) = self.node.read(|state| (R::find(&query, state), state.revision()));
        let header = read_header(self.node.id(), revision, used);
        let mut response = R::respond(header, found?)?;
        R::complete(&mut response, &self.node);
        Ok(Response::new(response))
    }

    /// Header of an answer that belongs to no revision of its own.
    fn header(&self) -> Header {
        Header {
            revision: self.node.read(crate::state::State::revision),
            consistency: Consistency::Unspecified.into(),
            node_id: self.node.id(),
            duplicate: false,
        }
    }
}

fn read_header(node_id: u64, revision: u64, used: Consistency) -> Header {
    Header { revision, consistency: used.into(), node_id, duplicate: false }
}

/// How long the caller waits, less what it takes to find a call overdue and to answer it: so the
/// caller learns what became of its call instead of giving up a moment before.
fn timeout(metadata: &MetadataMap) -> Duration {
    const ON_THE_WAY: Duration = Duration::from_millis(75);
    let stated = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok());
    match stated.and_then(parse_timeout) {
        Some(stated) => {
            let kept = stated.min(MAX_CALL_TIMEOUT);
            kept - ON_THE_WAY.min(kept / 10)
        }
        None => DEFAULT_CALL_TIMEOUT,
    }
}

/// `TimeoutValue TimeoutUnit` of the gRPC protocol: at most 8 digits and one of H M S m u n.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (value, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if value.is_empty() || value.len() > 8 || !value.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = value.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 3_600)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

fn shutting_down() -> Error {
    Error::ShuttingDown { definite: true }
}
