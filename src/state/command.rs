//! What can be asked of the state, and what it answers: commands, replies, refusals and the entry
//! that carries commands through the log. Bytes of commands outlive a release: variants are only
//! ever added at the end, and the tests hold encoded samples of each.
//!
//! Bytes of a command: [`COMMAND_VERSION`] as one byte, then the fields by bincode 1.3 with
//! variable-length integers and nothing after them.

use bincode::Options;
use serde::{Deserialize, Serialize};

mod alarm;
mod check;
mod config;
mod counter;
mod lock;
mod saga;
mod target;
pub(super) mod txn;

pub use self::alarm::*;
pub use self::check::*;
pub use self::config::*;
pub use self::counter::*;
pub use self::lock::*;
pub use self::saga::*;
pub use self::target::Target;
pub use self::txn::*;
use super::table::{
    Admin, AlarmRule, AlarmStatus, BranchPlan, Corrupt, Endpoint, Endpoints, Health, HealthCheck,
    Instance, Pairs, SagaMode, SagaStatus, coding,
};
use crate::limits;

/// The first byte of every command.
pub const COMMAND_VERSION: u8 = 1;

/// The exactly-once id of a write (Ongaro, Raft dissertation, 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestId {
    pub session: u64,
    /// From 1, each used for one write only.
    pub sequence: u64,
    /// Every lower sequence has been answered; their replies may be forgotten.
    pub lowest_unacknowledged: u64,
}

/// One write as a client sent it. `T` holds its texts: a [`String`] where it is made, a [`str`] of the
/// log's bytes where it is carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command<T = String> {
    pub request: Option<RequestId>,
    pub op: Op<T>,
}

/// What a command does. Text limits are checked by [`Command::check`] before it is proposed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op<T = String> {
    OpenSession {
        ttl_ms: u64,
        client: T,
    },
    CloseSession {
        session: u64,
    },
    /// From the leader's keeper only. Refused unless the entry's term is `term`, so that an expiry
    /// decided under one leadership cannot take effect under a later one.
    ExpireSessions {
        term: u64,
        sessions: Vec<u64>,
    },
    /// From the leader's keeper only: deregisters those of the named instances whose session expired
    /// at least their service's `deregister_after_ms` ago and that nobody has registered since.
    Reap {
        instances: Vec<InstanceName<T>>,
    },
    Register(Box<Registration<T>>),
    Deregister {
        name: InstanceName<T>,
        expected_mod_revision: Option<u64>,
    },
    UpdateInstance(Box<InstancePatch<T>>),
    PutService(Box<ServiceSettings<T>>),
    DeleteService {
        namespace: T,
        name: T,
    },
    PutNamespace {
        name: T,
        description: T,
    },
    DeleteNamespace {
        name: T,
    },
    /// From the leader only: notes a node before it becomes a member, or the data directory of one
    /// that has been met. Refused for a node whose removal has begun, and for another directory than
    /// the one it is known by.
    AdmitMember {
        node: u64,
        /// None = not known yet.
        store: Option<u128>,
    },
    /// From the leader only: notes, before a node is removed, that its number is never used again.
    RetireMember {
        node: u64,
    },
    PublishConfig(Box<Publication<T>>),
    DeleteConfig(Box<ConfigDeletion<T>>),
    RollbackConfig(Box<ConfigRollback<T>>),
    PutSchema(Box<SchemaPut<T>>),
    DeleteSchema {
        name: ItemName<T>,
    },
    EndGray(Box<GrayDecision<T>>),
    /// From the leader's loop only: does what the gate of a gray release now asks for, if anything.
    JudgeGray {
        name: ItemName<T>,
        rule: T,
        /// As of [`Publication`].
        schema: u64,
    },
    /// What a session's client runs from now on.
    ReportConfig {
        session: u64,
        client: T,
        items: Vec<Running<T>>,
    },
    AddCounter(Box<Addition<T>>),
    SetCounter(Box<Setting<T>>),
    /// To 0, also a counter that only grows. Windows go on as they were.
    ResetCounter {
        name: CounterName<T>,
        expected: Option<i64>,
    },
    DeleteCounter {
        name: CounterName<T>,
    },
    AcquireLock(Box<Claim<T>>),
    ReleaseLock {
        lock: LockName<T>,
        by: Leaving<T>,
    },
    /// The value of a lock that the holder has.
    UpdateLock {
        lock: LockName<T>,
        holder: Holder<T>,
        value: T,
    },
    Txn(#[serde(deserialize_with = "txn::not_nested")] Box<Txn<T>>),
    PutAlarm {
        name: AlarmName<T>,
        rule: Box<AlarmRule>,
    },
    DeleteAlarm {
        name: AlarmName<T>,
    },
    /// From the leader's loop only: turns an alarm to what its rule now asks for, if it is not so.
    JudgeAlarm {
        name: AlarmName<T>,
    },
    /// From the leader's loop only: the webhook was told of a transition, or, with an error, will not be.
    NotePost {
        name: AlarmName<T>,
        transition: u64,
        error: T,
    },
    /// From a node that checks instances only: turns the health of those that are still as they were
    /// checked.
    JudgeHealth {
        verdicts: Vec<HealthVerdict<T>>,
    },
    BeginSaga(Box<SagaBegin<T>>),
    SubmitSaga {
        name: SagaName<T>,
    },
    /// Refused once it is submitted.
    AbortSaga {
        name: SagaName<T>,
        reason: T,
    },
    /// Of TCC, before the branch is tried.
    RegisterBranch {
        name: SagaName<T>,
        plan: Box<BranchPlan>,
    },
    /// From the leader's coordinator only. Refused unless the entry's term is `epoch`.
    AdvanceSagas {
        epoch: u64,
        steps: Vec<SagaStep<T>>,
    },
    OrderSaga {
        name: SagaName<T>,
        order: SagaOrder<T>,
    },
    /// A transaction that is a participant's part of a global one.
    GuardedTxn {
        barrier: Barrier<T>,
        #[serde(deserialize_with = "txn::not_nested")]
        txn: Box<Txn<T>>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InstanceName<T = String> {
    pub namespace: T,
    pub service: T,
    pub id: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration<T = String> {
    pub name: InstanceName<T>,
    pub endpoints: Endpoints,
    pub weight: u32,
    pub zone: T,
    /// Sorted by key, keys unique.
    pub metadata: Pairs,
    pub health: Health,
    pub admin: Admin,
    pub reason: T,
    /// Empty = the instance id.
    pub hash_key: T,
    /// None = persistent.
    pub session: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstancePatch<T = String> {
    pub name: InstanceName<T>,
    pub weight: Option<u32>,
    pub admin: Option<Admin>,
    pub health: Option<Health>,
    /// Empty = "updated by client".
    pub reason: T,
    pub metadata: Option<Pairs>,
    pub expected_mod_revision: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceSettings<T = String> {
    pub namespace: T,
    pub name: T,
    pub protect_threshold_percent: u32,
    pub deregister_after_ms: u64,
    pub policy: T,
    /// Sorted by key, keys unique; likewise `metadata`.
    pub policy_parameters: Pairs,
    pub metadata: Pairs,
    pub expected_mod_revision: Option<u64>,
    /// None: its instances are not checked.
    pub health_check: Option<HealthCheck>,
}

/// What a command that was carried out answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    SessionOpened {
        session: u64,
        ttl_ms: u64,
    },
    SessionClosed {
        closed: bool,
        removed_instances: u64,
    },
    SessionsExpired {
        expired: u64,
    },
    Reaped {
        removed: u64,
    },
    Registered {
        created: bool,
        mod_revision: u64,
    },
    Deregistered {
        removed: bool,
    },
    InstanceUpdated(std::sync::Arc<Instance>),
    ServicePut {
        created: bool,
    },
    ServiceDeleted {
        removed: bool,
    },
    NamespacePut {
        created: bool,
    },
    NamespaceDeleted {
        removed: bool,
    },
    MemberAdmitted {
        changed: bool,
    },
    MemberRetired {
        changed: bool,
    },
    /// The version is that of the current release, or of the gray one; not `changed`: it was so.
    ConfigPublished {
        version: u64,
        changed: bool,
    },
    /// Not `removed`: there was none, or it was deleted before.
    ConfigDeleted {
        removed: bool,
        version: u64,
    },
    SchemaPut {
        changed: bool,
        mod_revision: u64,
    },
    SchemaDeleted {
        removed: bool,
    },
    /// The version of the new current release of a promotion; the one that ended otherwise.
    GrayEnded {
        version: u64,
    },
    /// None: nothing was due.
    GrayJudged {
        ending: Option<super::table::Ending>,
    },
    ConfigReported {
        changed: u64,
    },
    /// The new value.
    CounterChanged {
        value: i64,
        changed: bool,
        mod_revision: u64,
    },
    CounterDeleted {
        removed: bool,
    },
    /// With the fencing token.
    LockAcquired {
        token: u64,
    },
    /// How many stand before it.
    LockQueued {
        ticket: u64,
        ahead: u64,
    },
    /// Not `released`: there was no such request.
    LockReleased {
        released: bool,
    },
    LockUpdated {
        changed: bool,
    },
    /// Which way it went, and what each step said.
    Txn {
        succeeded: bool,
        #[serde(deserialize_with = "txn::few_levels")]
        replies: Vec<StepReply>,
    },
    AlarmPut {
        changed: bool,
        mod_revision: u64,
    },
    AlarmDeleted {
        removed: bool,
    },
    /// None: nothing was due.
    AlarmJudged {
        status: Option<AlarmStatus>,
    },
    PostNoted {
        changed: bool,
    },
    HealthJudged {
        changed: u64,
    },
    /// Not `created`: it was there with the same content.
    SagaBegun {
        gid: String,
        status: SagaStatus,
        created: bool,
        mod_revision: u64,
    },
    SagaTurned {
        status: SagaStatus,
        changed: bool,
        mod_revision: u64,
    },
    /// Not `created`: it was registered before.
    BranchRegistered {
        number: u32,
        created: bool,
    },
    /// Of how many steps something came.
    SagasAdvanced {
        taken: u64,
    },
    /// The transaction's reply when it was carried out.
    Guarded {
        outcome: BarrierOutcome,
        #[serde(deserialize_with = "txn::few_levels")]
        txn: Option<Box<Reply>>,
    },
}

/// Why a command was not carried out. A refusal is a value: its neighbours in the batch go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// A field is out of its limits.
    Invalid {
        field: String,
        value: String,
        allowed: String,
    },
    NotFound {
        kind: Kind,
        name: String,
    },
    SessionExpired {
        session: u64,
    },
    SequenceForgotten {
        sequence: u64,
        lowest: u64,
    },
    TooManyInFlight {
        limit: u64,
    },
    CompareFailed {
        expected: u64,
        current: u64,
    },
    /// An instance belongs to another live session.
    OwnedByAnother {
        owner: u64,
    },
    LimitReached {
        limit: String,
        allowed: u64,
    },
    InUse {
        kind: Kind,
        name: String,
        by: String,
    },
    /// An expiry of an earlier leadership.
    StaleTerm {
        proposed: u64,
        current: u64,
    },
    /// The bytes of the command are not of this release.
    Undecodable,
    /// Content was checked against another schema than the item has.
    SchemaChanged {
        checked: u64,
        current: u64,
    },
    /// The value of a counter is another one.
    ValueDiffers {
        expected: i64,
        current: i64,
    },
    /// An addition would cross a bound; that of 64 bits is one.
    OutOfBounds {
        value: i64,
        delta: i64,
        bound: i64,
    },
    /// Somebody else holds the lock.
    LockHeld {
        owner: u64,
        token: u64,
    },
    /// A step of a transaction was refused, so none was carried out.
    InStep {
        step: u32,
        #[serde(deserialize_with = "txn::few_levels")]
        refusal: Box<Refusal>,
    },
    /// A global transaction is not where this can be done.
    SagaIs {
        status: SagaStatus,
    },
}

impl Refusal {
    /// True when the same write may be carried out later under the same id, so that its answer is not
    /// stored: whoever proposed it checks it anew and proposes it again.
    pub fn is_passing(&self) -> bool {
        match self {
            Refusal::SchemaChanged { .. } => true,
            Refusal::InStep { refusal, .. } => refusal.is_passing(),
            _ => false,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    Namespace,
    Service,
    Instance,
    Session,
    Config,
    Release,
    Gray,
    Counter,
    Lock,
    Alarm,
    Saga,
}

/// What the log carries: commands in order, stamped by the leader that proposed them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Term of the log entry.
    pub term: u64,
    /// The time by the leader, in ms since the Unix epoch. The state's clock is the greatest seen.
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

impl<T: Serialize> Command<T> {
    /// The bytes for the log, or a refusal when there are too many of them.
    pub fn encode(&self) -> Result<Vec<u8>, Refusal> {
        let mut out = Vec::with_capacity(256);
        out.push(COMMAND_VERSION);
        coding(limits::COMMAND_BYTES - 1).serialize_into(&mut out, self).map_err(|_| {
            invalid(
                "command",
                "(too long)",
                format!("at most {} bytes when encoded", limits::COMMAND_BYTES),
            )
        })?;
        Ok(out)
    }
}

impl<'a, T: Deserialize<'a>> Command<T> {
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Corrupt> {
        match bytes.split_first() {
            Some((&COMMAND_VERSION, rest)) => coding(limits::COMMAND_BYTES - 1)
                .deserialize(rest)
                .map_err(|e| Corrupt::new(format!("a command: {e}"))),
            Some((version, _)) => Err(Corrupt::new(format!(
                "a command of version {version}; this release reads {COMMAND_VERSION}"
            ))),
            None => Err(Corrupt::new("a command of no bytes")),
        }
    }
}

impl Command {
    /// Refuses what is out of its limits whatever the state holds. Called once, before a command is
    /// proposed: the state itself takes what the log says, so that nodes of two releases with
    /// different limits never disagree over an entry.
    pub fn check(&self) -> Result<(), Refusal> {
        if let Some(request) = &self.request {
            check_request(request)?;
        }
        Command::check_op(&self.op)
    }

    fn check_op(op: &Op) -> Result<(), Refusal> {
        match op {
            Op::OpenSession { ttl_ms, client } => {
                check_range("ttl_ms", *ttl_ms, &limits::SESSION_TTL_MS)?;
                check_text("client", client, limits::TEXT_BYTES)
            }
            Op::CloseSession { session: _ } | Op::ExpireSessions { term: _, sessions: _ } => Ok(()),
            Op::Reap { instances } => instances
                .iter()
                .enumerate()
                .try_for_each(|(i, name)| check_instance_name(&format!("instances[{i}]."), name)),
            Op::Register(registration) => registration.check(),
            Op::Deregister { name, expected_mod_revision: _ } => check_instance_name("", name),
            Op::UpdateInstance(patch) => patch.check(),
            Op::PutService(settings) => settings.check(),
            Op::DeleteService { namespace, name } => {
                check_name("", "namespace", namespace)?;
                check_name("", "name", name)
            }
            Op::PutNamespace { name, description } => {
                check_name("", "name", name)?;
                check_text("description", description, limits::TEXT_BYTES)
            }
            Op::DeleteNamespace { name } => {
                check_name("", "name", name)?;
                check_deletable(name)
            }
            Op::AdmitMember { node, store: _ } | Op::RetireMember { node } => {
                check_range("id", *node, &limits::NODE_IDS)
            }
            Op::PublishConfig(publication) => publication.check(),
            Op::DeleteConfig(deletion) => deletion.check(),
            Op::RollbackConfig(rollback) => rollback.check(),
            Op::PutSchema(schema) => schema.check(),
            Op::DeleteSchema { name } => name.check(),
            Op::EndGray(decision) => decision.check(),
            Op::JudgeGray { name, rule, schema: _ } => {
                name.check()?;
                check_name("", "rule", rule)
            }
            Op::ReportConfig { session: _, client, items } => {
                check_client("client", client)?;
                let allowed = 1..=limits::CONFIG_REPORTS as u64;
                check_range("items", items.len() as u64, &allowed)?;
                items.iter().enumerate().try_for_each(|(i, item)| item.check(i))
            }
            Op::AddCounter(addition) => addition.check(),
            Op::SetCounter(setting) => setting.check(),
            Op::ResetCounter { name, expected: _ } | Op::DeleteCounter { name } => name.check(),
            Op::AcquireLock(claim) => claim.check(),
            Op::ReleaseLock { lock, by } => {
                lock.check()?;
                by.check()
            }
            Op::UpdateLock { lock, holder, value } => {
                lock.check()?;
                holder.check()?;
                lock::check_value(value)
            }
            Op::Txn(txn) => txn.check(),
            Op::PutAlarm { name, rule } => {
                name.check()?;
                rule.check()
            }
            Op::DeleteAlarm { name } | Op::JudgeAlarm { name } => name.check(),
            Op::NotePost { name, transition: _, error } => {
                name.check()?;
                check_text("error", error, limits::TEXT_BYTES)
            }
            Op::JudgeHealth { verdicts } => check::check_verdicts(verdicts),
            Op::BeginSaga(begin) => begin.check(),
            Op::SubmitSaga { name } => name.check(),
            Op::AbortSaga { name, reason } => {
                name.check()?;
                check_text("reason", reason, limits::TEXT_BYTES)
            }
            Op::RegisterBranch { name, plan } => {
                name.check()?;
                check_bytes(plan.bytes())?;
                plan.check("branch", SagaMode::Tcc)
            }
            Op::AdvanceSagas { epoch: _, steps } => {
                let allowed = 1..=limits::SAGA_STEPS as u64;
                check_range("steps", steps.len() as u64, &allowed)?;
                steps.iter().enumerate().try_for_each(|(i, step)| step.check(i))
            }
            Op::OrderSaga { name, order } => {
                name.check()?;
                order.check()
            }
            Op::GuardedTxn { barrier, txn } => {
                barrier.check()?;
                txn.check()?;
                match txn.otherwise.iter().any(|step| matches!(step, Step::Write(_))) {
                    true => Err(invalid("or_else", "writes", "only reads, behind a barrier")),
                    false => Ok(()),
                }
            }
        }
    }
}

impl Registration {
    fn check(&self) -> Result<(), Refusal> {
        check_instance_name("instance.", &self.name)?;
        if self.endpoints.is_empty() || self.endpoints.len() > limits::ENDPOINTS {
            return Err(invalid(
                "instance.endpoints",
                format!("{} endpoints", self.endpoints.len()),
                format!("1..={} endpoints", limits::ENDPOINTS),
            ));
        }
        for (i, endpoint) in self.endpoints.iter().enumerate() {
            endpoint.check(i)?;
            if self.endpoints.iter().take(i).any(|other| other.name == endpoint.name) {
                return Err(invalid(
                    format!("instance.endpoints[{i}].name"),
                    endpoint.name,
                    "a name that no other endpoint of the instance has",
                ));
            }
        }
        check_weight("instance.weight", self.weight)?;
        check_text("instance.zone", &self.zone, limits::ZONE_BYTES)?;
        check_pairs("instance.metadata", &self.metadata)?;
        check_text("instance.reason", &self.reason, limits::TEXT_BYTES)?;
        check_text("instance.hash_key", &self.hash_key, limits::NAME_BYTES)
    }
}

impl Endpoint<&str> {
    fn check(&self, i: usize) -> Result<(), Refusal> {
        check_text(&format!("instance.endpoints[{i}].name"), self.name, limits::NAME_BYTES)?;
        let host_byte = |b: u8| b.is_ascii_alphanumeric() || b"._:%-".contains(&b);
        if self.host.is_empty()
            || self.host.len() > limits::HOST_BYTES
            || !self.host.bytes().all(host_byte)
        {
            return Err(invalid(
                format!("instance.endpoints[{i}].host"),
                self.host,
                format!(
                    "a host name or an IP address without port: 1..={} bytes of [A-Za-z0-9._:%-]",
                    limits::HOST_BYTES
                ),
            ));
        }
        if self.port == 0 {
            return Err(invalid(format!("instance.endpoints[{i}].port"), "0", "1..=65535"));
        }
        Ok(())
    }
}

impl InstancePatch {
    fn check(&self) -> Result<(), Refusal> {
        check_instance_name("", &self.name)?;
        if let Some(weight) = self.weight {
            check_weight("weight", weight)?;
        }
        check_text("reason", &self.reason, limits::TEXT_BYTES)?;
        self.metadata.as_ref().map_or(Ok(()), |metadata| check_pairs("metadata", metadata))
    }
}

impl ServiceSettings {
    fn check(&self) -> Result<(), Refusal> {
        check_name("service.", "namespace", &self.namespace)?;
        check_name("service.", "name", &self.name)?;
        check_range(
            "service.protect_threshold_percent",
            u64::from(self.protect_threshold_percent),
            &(0..=100),
        )?;
        check_range(
            "service.deregister_after_ms",
            self.deregister_after_ms,
            &limits::DEREGISTER_AFTER_MS,
        )?;
        check_text("service.policy", &self.policy, limits::POLICY_BYTES)?;
        check_pairs("service.policy_parameters", &self.policy_parameters)?;
        check_pairs("service.metadata", &self.metadata)?;
        self.health_check.as_ref().map_or(Ok(()), HealthCheck::check)
    }
}

/// Bytes of a refused value that its refusal repeats: it is stored for exactly-once and no place for
/// a megabyte of input.
const SHOWN_BYTES: usize = 64;

pub(super) fn invalid(
    field: impl Into<String>,
    value: impl Into<String>,
    allowed: impl Into<String>,
) -> Refusal {
    let mut value = value.into();
    if value.len() > SHOWN_BYTES {
        value.truncate(value.floor_char_boundary(SHOWN_BYTES));
        value.push('…');
    }
    Refusal::Invalid { field: field.into(), value, allowed: allowed.into() }
}

/// Also asked by the state, which must not keep the answer to sequence 0 or to one that the client
/// itself calls acknowledged.
pub(super) fn check_request(request: &RequestId) -> Result<(), Refusal> {
    if request.sequence == 0 {
        return Err(invalid("request_id.sequence", "0", "from 1"));
    }
    if request.lowest_unacknowledged > request.sequence {
        return Err(invalid(
            "request_id.lowest_unacknowledged",
            request.lowest_unacknowledged.to_string(),
            format!("at most the sequence, {}", request.sequence),
        ));
    }
    Ok(())
}

/// Also asked by the state, which must not lose the namespace that always exists.
pub(super) fn check_deletable(namespace: &str) -> Result<(), Refusal> {
    if namespace == limits::DEFAULT_NAMESPACE {
        let allowed = format!("any namespace but {:?}", limits::DEFAULT_NAMESPACE);
        return Err(invalid("name", namespace, allowed));
    }
    Ok(())
}

pub(crate) fn check_instance_name(prefix: &str, name: &InstanceName) -> Result<(), Refusal> {
    check_name(prefix, "namespace", &name.namespace)?;
    check_name(prefix, "service", &name.service)?;
    check_name(prefix, "id", &name.id)
}

pub(crate) fn check_name(prefix: &str, field: &str, name: &str) -> Result<(), Refusal> {
    let name_byte = |b: u8| b.is_ascii_alphanumeric() || b"._:/-".contains(&b);
    let begins = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if begins && name.len() <= limits::NAME_BYTES && name.bytes().all(name_byte) {
        return Ok(());
    }
    Err(invalid(
        format!("{prefix}{field}"),
        name,
        format!(
            "1..={} bytes of [A-Za-z0-9._:/-], starting with a letter or digit",
            limits::NAME_BYTES
        ),
    ))
}

pub(crate) fn check_text(field: &str, text: &str, bytes: usize) -> Result<(), Refusal> {
    if text.len() > bytes {
        return Err(invalid(field, text, format!("at most {bytes} bytes")));
    }
    Ok(())
}

fn check_weight(field: &str, weight: u32) -> Result<(), Refusal> {
    check_range(field, u64::from(weight), &(0..=u64::from(limits::WEIGHT)))
}

pub(crate) fn check_range(
    field: &str,
    value: u64,
    allowed: &std::ops::RangeInclusive<u64>,
) -> Result<(), Refusal> {
    if !allowed.contains(&value) {
        return Err(invalid(field, value.to_string(), format!("{allowed:?}")));
    }
    Ok(())
}

pub(crate) fn check_pairs(field: &str, pairs: &Pairs) -> Result<(), Refusal> {
    if pairs.len() > limits::METADATA_PAIRS {
        return Err(invalid(
            field,
            format!("{} pairs", pairs.len()),
            format!("at most {} pairs", limits::METADATA_PAIRS),
        ));
    }
    let (mut total, mut last) = (0, "");
    for (key, value) in pairs.iter() {
        if key.is_empty() || key.len() > limits::METADATA_KEY_BYTES {
            return Err(invalid(
                format!("{field} key"),
                key,
                format!("1..={} bytes", limits::METADATA_KEY_BYTES),
            ));
        }
        if value.len() > limits::METADATA_VALUE_BYTES {
            return Err(invalid(
                format!("{field}[{key:?}]"),
                value,
                format!("at most {} bytes", limits::METADATA_VALUE_BYTES),
            ));
        }
        if last >= key {
            return Err(invalid(format!("{field} key"), key, "keys in order, each once"));
        }
        total += key.len() + value.len();
        last = key;
    }
    if total > limits::METADATA_TOTAL_BYTES {
        return Err(invalid(
            field,
            format!("{total} bytes"),
            format!("at most {} bytes of keys and values", limits::METADATA_TOTAL_BYTES),
        ));
    }
    Ok(())
}
