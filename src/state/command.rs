//! What can be asked of the state, and what it answers: commands, replies, refusals and the entry
//! that carries commands through the log. Bytes of commands outlive a release: variants are only
//! ever added at the end, and `testdata` holds encoded samples of each.

use serde::{Deserialize, Serialize};

use super::table::{Admin, Endpoint, Health, Instance};

/// The exactly-once id of a write (Ongaro, Raft dissertation, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    pub session: u64,
    /// From 1, each used for one write only.
    pub sequence: u64,
    /// Every lower sequence has been answered; their replies may be forgotten.
    pub lowest_unacknowledged: u64,
}

/// One write as a client sent it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub request: Option<RequestId>,
    pub op: Op,
}

/// What a command does. Text limits are checked by [`Command::check`] before it is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    OpenSession { ttl_ms: u64, client: String },
    CloseSession { session: u64 },
    /// From the leader's keeper only. Refused unless the entry's term is `term`, so that an expiry
    /// decided under one leadership cannot take effect under a later one.
    ExpireSessions { term: u64, sessions: Vec<u64> },
    /// From the leader's keeper only: deregisters those of the named instances that have been
    /// critical without a session for longer than their service's `deregister_after_ms`.
    Reap { instances: Vec<InstanceName> },
    Register(Box<Registration>),
    Deregister { name: InstanceName, expected_mod_revision: Option<u64> },
    UpdateInstance(Box<InstancePatch>),
    PutService(Box<ServiceSettings>),
    DeleteService { namespace: String, name: String },
    PutNamespace { name: String, description: String },
    DeleteNamespace { name: String },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceName {
    pub namespace: String,
    pub service: String,
    pub id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub name: InstanceName,
    pub endpoints: Vec<Endpoint>,
    pub weight: u32,
    pub zone: String,
    /// Sorted by key, keys unique.
    pub metadata: Vec<(String, String)>,
    pub health: Health,
    pub admin: Admin,
    pub reason: String,
    /// Empty = the instance id.
    pub hash_key: String,
    /// None = persistent.
    pub session: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePatch {
    pub name: InstanceName,
    pub weight: Option<u32>,
    pub admin: Option<Admin>,
    pub health: Option<Health>,
    /// Empty = "updated by client".
    pub reason: String,
    pub metadata: Option<Vec<(String, String)>>,
    pub expected_mod_revision: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings {
    pub namespace: String,
    pub name: String,
    pub protect_threshold_percent: u32,
    pub deregister_after_ms: u64,
    pub policy: String,
    /// Sorted by key, keys unique; likewise `metadata`.
    pub policy_parameters: Vec<(String, String)>,
    pub metadata: Vec<(String, String)>,
    pub expected_mod_revision: Option<u64>,
}

/// What a command that was carried out answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    SessionOpened { session: u64, ttl_ms: u64 },
    SessionClosed { closed: bool, removed_instances: u64 },
    SessionsExpired { expired: u64 },
    Reaped { removed: u64 },
    Registered { created: bool, mod_revision: u64 },
    Deregistered { removed: bool },
    InstanceUpdated(std::sync::Arc<Instance>),
    ServicePut { created: bool },
    ServiceDeleted { removed: bool },
    NamespacePut { created: bool },
    NamespaceDeleted { removed: bool },
}

/// Why a command was not carried out. A refusal is a value: its neighbours in the batch go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A field is out of its limits.
    Invalid { field: String, value: String, allowed: String },
    NotFound { kind: Kind, name: String },
    SessionExpired { session: u64 },
    SequenceForgotten { sequence: u64, lowest: u64 },
    TooManyInFlight { limit: u64 },
    CompareFailed { expected: u64, current: u64 },
    /// An instance belongs to another live session.
    OwnedByAnother { owner: u64 },
    LimitReached { limit: String, allowed: u64 },
    InUse { kind: Kind, name: String, by: String },
    /// An expiry of an earlier leadership.
    StaleTerm { proposed: u64, current: u64 },
    /// The bytes of the command are not of this release.
    Undecodable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Namespace,
    Service,
    Instance,
    Session,
}

/// What the log carries: commands in order, stamped by the leader that proposed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Term of the log entry.
    pub term: u64,
    /// The leader's wall clock, milliseconds since the Unix epoch. The state's clock is the greatest seen.
    pub at_ms: u64,
    /// Encoded [`Command`]s.
    pub commands: Vec<&'a [u8]>,
}

/// The answer to one command.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// The revision that the command got, or the current one when it changed nothing.
    pub revision: u64,
    /// True when this is the stored answer of an earlier command with the same [`RequestId`].
    pub duplicate: bool,
    pub result: Result<Reply, Refusal>,
}
