//! The client: what a program links to talk to a cluster.
//!
//! A [`Client`] knows some nodes, learns which of them leads and sends writes there; it repeats what
//! may be repeated on other nodes until the call's deadline. A [`Session`] is kept alive in the
//! background; it carries ephemeral instances and makes writes exactly once. A [`Registration`] keeps an
//! instance registered for as long as the program runs.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use quorate::client::{Client, Options, RegistrationOptions};
//! use quorate::proto::v1;
//!
//! # async fn example() -> Result<(), quorate::error::Error> {
//! let client = Client::connect(Options::new(["10.0.0.1:7650", "10.0.0.2:7650"]))?;
//! let instance = v1::Instance {
//!     service: "orders".into(),
//!     id: "orders-1".into(),
//!     endpoints: vec![v1::Endpoint { name: "grpc".into(), host: "10.0.1.7".into(), port: 8080 }],
//!     ..Default::default()
//! };
//! let registration = client.registration(RegistrationOptions::new(instance))?;
//! registration.registered().await?;
//!
//! let found = client
//!     .list_instances(v1::ListInstancesRequest {
//!         service: "orders".into(),
//!         filter: Some(v1::InstanceFilter { healthy_only: true, ..Default::default() }),
//!         ..Default::default()
//!     })
//!     .await?;
//! println!("{} instances", found.instances.len());
//!
//! registration.run_until_terminated(Duration::from_millis(500)).await?;
//! # Ok(())
//! # }
//! ```

pub mod balance;
mod calls;
pub mod channel;
mod cluster;
mod config;
mod connection;
mod counter;
pub mod discovery;
mod election;
mod kept;
mod lock;
mod options;
pub mod participant;
pub mod registration;
mod registry;
mod remote;
mod request;
pub mod saga;
mod session;
mod stream;
mod transaction;
pub mod txn;
mod watch;

// Their fake nodes are servers.
#[cfg(all(test, feature = "server"))]
mod tests;

pub use channel::{Channel, ChannelOptions, HashKey, Retry, ServedBy, TlsOptions};
pub use cluster::{DownloadError, SnapshotInfo};
pub use config::{
    ConfigCache, ConfigCacheOptions, ConfigCacheStatus, ConfigChange, ConfigChanges, ConfigItems,
    ConfigValue, Reporting,
};
pub use connection::Client;
pub use counter::{Counter, CounterOptions, Counters, Tally};
pub use discovery::{Discovery, DiscoveryOptions, DiscoveryStatus, ServiceState, States};
pub use election::{Election, Leader, Leadership};
pub use lock::{Lock, LockGuard, Lost};
pub use options::{Options, ReadFrom};
pub use participant::{BranchContext, BranchOp, BranchResults, ParticipantLayer};
pub use registration::{Registration, RegistrationOptions, RegistrationState, RegistrationStatus};
pub use saga::{
    Branch, MessagePlan, PreparedMessage, SagaHandle, SagaOutcome, SagaPlan, SagaProgress, Tcc,
    TccPlan,
};
pub use session::{Session, SessionOptions, SessionState, Ticket};
pub use stream::{Answer, Call, Pipeline, Pipelined, StreamHandle, Submission};
pub use transaction::{Committed, Transaction, TransactionOptions};
pub use watch::{Watch, WatchRange, WatchUpdate};
