//! Every key and value that the state holds, their bytes on disk, and the change that a write to a
//! table records. Kinds are numbered explicitly and never reused.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::command::Outcome;

/// Key of a record. The order of the variants and fields is the order of the encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// Kind 1. One record: revision and clock.
    Meta,
    /// Kind 2.
    Namespace { name: Arc<str> },
    /// Kind 3. Settings of a service.
    Service { namespace: Arc<str>, name: Arc<str> },
    /// Kind 4.
    Instance { namespace: Arc<str>, service: Arc<str>, id: Arc<str> },
    /// Kind 5.
    Session { id: u64 },
    /// Kind 6. The stored answer of a write, for exactly-once.
    Reply { session: u64, sequence: u64 },
}

/// Value of a record; shared, never changed in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    Meta(Meta),
    Namespace(Arc<Namespace>),
    Service(Arc<Service>),
    Instance(Arc<Instance>),
    Session(Arc<Session>),
    Reply(Arc<StoredReply>),
}

/// One write to a table: the new record, or None when it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub record: Option<Record>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// +1 per command that changed something.
    pub revision: u64,
    /// The greatest `at_ms` seen.
    pub now_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    pub name: Arc<str>,
    pub description: String,
    pub create_revision: u64,
    pub mod_revision: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// 0..=100; 0 = off.
    pub protect_threshold_percent: u32,
    pub deregister_after_ms: u64,
    pub policy: String,
    pub policy_parameters: Vec<(String, String)>,
    pub metadata: Vec<(String, String)>,
    pub create_revision: u64,
    pub mod_revision: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Health {
    Passing,
    Warning,
    Critical,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    Enabled,
    Draining,
    Disabled,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub name: String,
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub id: Arc<str>,
    pub endpoints: Vec<Endpoint>,
    pub weight: u32,
    pub zone: String,
    pub metadata: Vec<(String, String)>,
    pub health: Health,
    pub admin: Admin,
    /// Who or what changed it last, and why.
    pub reason: String,
    /// Empty = the id.
    pub hash_key: String,
    /// The session that keeps it alive; None = persistent. An instance whose session has ended by
    /// expiry keeps the number; `orphaned_at_ms` says so.
    pub session: Option<u64>,
    /// When its session expired; None = its session lives, or it is persistent.
    pub orphaned_at_ms: Option<u64>,
    /// Since when it is critical.
    pub critical_since_ms: Option<u64>,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    pub id: u64,
    pub ttl_ms: u64,
    pub client: String,
    pub opened_at_ms: u64,
}

/// The stored answer of one write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReply {
    /// The session's lowest unacknowledged sequence as this write stated it. Since it is never above
    /// the write's own sequence, the greatest value among the stored replies is the session's: it
    /// needs no record of its own and survives a restart.
    pub lowest_unacknowledged: u64,
    pub outcome: Outcome,
}
