//! Every key and value that the state holds, their bytes on disk, and the change that a write to a
//! table records. Kinds are numbered explicitly and never reused.
//!
//! Key bytes: the kind as one byte, then the fields in order. A number is 8 bytes, big endian. A text
//! is its bytes, with 0x00 written as 0x00 0xFF, closed by 0x00 0x01. So the order of the bytes is the
//! order of [`Key`], no key is the beginning of another one, and a prefix scan over a table, a
//! namespace or a service is a range scan.
//!
//! Value bytes: [`RECORD_VERSION`] as one byte, then the fields by bincode 1.3 with variable-length
//! integers and nothing after them. A kind's fields are never reordered or dropped; a
//! release that needs other fields takes the next version and goes on reading this one.

use std::fmt;
use std::num::NonZeroU64;
use std::sync::Arc;

use bincode::Options;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

mod alarm;
mod check;
mod config;
mod counter;
mod lock;
mod saga;

pub use self::alarm::*;
pub use self::check::*;
pub use self::config::*;
pub use self::counter::*;
pub use self::lock::*;
pub use self::saga::*;
pub use super::blob::Blob;
use super::command::Outcome;
pub use super::packed::{Endpoint, Endpoints, Pairs};
use crate::limits;

/// The first byte of every value.
pub const RECORD_VERSION: u8 = 1;

const META: u8 = 1;
const NAMESPACE: u8 = 2;
const SERVICE: u8 = 3;
const INSTANCE: u8 = 4;
const SESSION: u8 = 5;
const REPLY: u8 = 6;
const MEMBER: u8 = 7;
const CONFIG: u8 = 8;
const RELEASE: u8 = 9;
const SCHEMA: u8 = 10;
const REPORT: u8 = 11;
const COUNTER: u8 = 12;
const ALARM: u8 = 13;
const LOCK: u8 = 14;
const REMOVAL: u8 = 15;
const SAGA: u8 = 16;

/// Key of a record. The order of the variants and fields is the order of the encoded bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
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
    /// Kind 7. A node that is or was a member of the cluster.
    Member { node: u64 },
    /// Kind 8. What is served of a configuration item.
    Config { namespace: Arc<str>, group: Arc<str>, key: Arc<str> },
    /// Kind 9. What was served before.
    Release { namespace: Arc<str>, group: Arc<str>, key: Arc<str>, version: u64 },
    /// Kind 10.
    Schema { namespace: Arc<str>, group: Arc<str>, key: Arc<str> },
    /// Kind 11. What a client runs of an item.
    Report { namespace: Arc<str>, group: Arc<str>, key: Arc<str>, session: u64 },
    /// Kind 12. The labels as one text, in the form of [`Pairs`].
    Counter { namespace: Arc<str>, name: Arc<str>, labels: Pairs },
    /// Kind 13.
    Alarm { namespace: Arc<str>, name: Arc<str> },
    /// Kind 14. One who holds a lock or waits for it.
    Lock { namespace: Arc<str>, lock: Arc<str>, ticket: u64 },
    /// Kind 15. When something of a class was last removed in a namespace. The class is one byte.
    Removal { namespace: Arc<str>, class: Class },
    /// Kind 16. A global transaction with its branches.
    Saga { namespace: Arc<str>, gid: Arc<str> },
}

/// Records that belong together: what a watcher or a compare may name. The numbers are the bytes of
/// keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Services and their instances.
    Service = 1,
    Config = 2,
    Counter = 3,
    Lock = 5,
    Alarm = 4,
    /// Global transactions.
    Saga = 6,
}

impl Class {
    pub const ALL: [Class; 6] =
        [Class::Service, Class::Config, Class::Counter, Class::Lock, Class::Alarm, Class::Saga];
}

/// Value of a record; shared, never changed in place. The answers of transactions, which are stored,
/// hold records: variants are only ever added at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    Meta(Meta),
    Namespace(Arc<Namespace>),
    Service(Arc<Service>),
    Instance(Arc<Instance>),
    Session(Arc<Session>),
    Reply(Arc<StoredReply>),
    Member(Arc<Member>),
    Config(Arc<ConfigItem>),
    Release(Arc<Release>),
    Schema(Arc<Schema>),
    Report(Arc<Report>),
    Counter(Arc<Counter>),
    Lock(Arc<LockRequest>),
    Removal(Removal),
    Alarm(Arc<Alarm>),
    Saga(Arc<Saga>),
}

/// One write to a table: the new record, or None when it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub key: Key,
    pub record: Option<Record>,
    /// The state had no such record before. The image needs to know: what comes and goes between two
    /// of its batches leaves nothing to write. Watchers are not told; to them it is always false.
    pub fresh: bool,
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
    pub policy_parameters: Pairs,
    pub metadata: Pairs,
    pub create_revision: u64,
    pub mod_revision: u64,
    /// None: nobody checks its instances.
    pub health_check: Option<HealthCheck>,
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

/// There may be a million of them: see the size asserted below.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    #[serde(deserialize_with = "shared")]
    pub namespace: Arc<str>,
    #[serde(deserialize_with = "shared")]
    pub service: Arc<str>,
    #[serde(deserialize_with = "shared")]
    pub id: Arc<str>,
    pub endpoints: Endpoints,
    pub weight: u32,
    pub zone: Box<str>,
    pub metadata: Pairs,
    pub health: Health,
    pub admin: Admin,
    /// Who or what changed it last, and why. Most instances share theirs with others.
    #[serde(deserialize_with = "shared")]
    pub reason: Arc<str>,
    /// Empty = the id.
    pub hash_key: Box<str>,
    /// The session that keeps it alive; None = persistent. An instance whose session has ended by
    /// expiry keeps the number; `orphaned_at_ms` says so.
    pub session: Option<u64>,
    /// When its session expired; None = its session lives, or it is persistent. What expires at 0 has 1.
    pub orphaned_at_ms: Option<NonZeroU64>,
    /// Since when it is critical.
    pub critical_since_ms: Option<u64>,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

// With the two counts of its Arc it fits an allocation of 224 bytes; the next greater one has 256.
const _: () = assert!(size_of::<Instance>() + 2 * size_of::<usize>() <= 224);

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

/// What the cluster remembers of a node for ever: its number is never another node's. Members are no
/// part of the registry: no revision belongs to them, and a backup is restored without them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub node: u64,
    /// The data directory under which it is known; None until it has been met. Never changed once it
    /// is there: a node with another directory has forgotten what it voted for.
    pub store: Option<u128>,
    /// Its removal has begun, or is over. Never taken back.
    pub removed: bool,
}

/// What is removed leaves no record behind that could tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Removal {
    pub revision: u64,
}

impl Change {
    /// As watchers see it.
    pub fn new(key: Key, record: Option<Record>) -> Change {
        Change { key, record, fresh: false }
    }
}

impl Service {
    pub fn key(&self) -> Key {
        Key::Service { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl Instance {
    pub fn key(&self) -> Key {
        Key::Instance {
            namespace: self.namespace.clone(),
            service: self.service.clone(),
            id: self.id.clone(),
        }
    }

    /// The live session that keeps the instance alive.
    pub fn holder(&self) -> Option<u64> {
        self.session.filter(|_| self.orphaned_at_ms.is_none())
    }

    /// Whether a health check may be about it: the health of one with a session, also an ended one, is
    /// its session.
    pub fn is_checkable(&self) -> bool {
        self.session.is_none()
    }

    /// Whether it can take calls.
    pub fn is_healthy(&self) -> bool {
        self.admin == Admin::Enabled && self.health != Health::Critical && self.weight > 0
    }

    /// Whether discovery may show it to callers at all.
    pub fn is_visible(&self) -> bool {
        self.admin != Admin::Disabled
    }
}

impl Record {
    /// None for a record that does not hold its own names.
    pub fn key(&self) -> Option<Key> {
        Some(match self {
            Record::Meta(_) => Key::Meta,
            Record::Namespace(record) => Key::Namespace { name: record.name.clone() },
            Record::Service(record) => record.key(),
            Record::Instance(record) => record.key(),
            Record::Session(record) => Key::Session { id: record.id },
            Record::Member(record) => Key::Member { node: record.node },
            Record::Config(record) => record.key(),
            Record::Counter(record) => record.key(),
            Record::Lock(record) => record.key(),
            Record::Alarm(record) => record.key(),
            Record::Saga(record) => record.key(),
            Record::Reply(_)
            | Record::Release(_)
            | Record::Schema(_)
            | Record::Report(_)
            | Record::Removal(_) => return None,
        })
    }

    /// The revision that made it; 0 for what has none.
    pub fn create_revision(&self) -> u64 {
        match self {
            Record::Namespace(record) => record.create_revision,
            Record::Service(record) => record.create_revision,
            Record::Instance(record) => record.create_revision,
            Record::Session(record) => record.id,
            Record::Config(record) => record.create_revision,
            Record::Release(record) => record.revision,
            Record::Schema(record) => record.create_revision,
            Record::Counter(record) => record.create_revision,
            Record::Lock(record) => record.ticket,
            Record::Alarm(record) => record.create_revision,
            Record::Saga(record) => record.create_revision,
            Record::Removal(record) => record.revision,
            Record::Meta(_) | Record::Reply(_) | Record::Member(_) | Record::Report(_) => 0,
        }
    }

    /// The revision that changed it last; 0 for what has none.
    pub fn mod_revision(&self) -> u64 {
        match self {
            Record::Namespace(record) => record.mod_revision,
            Record::Service(record) => record.mod_revision,
            Record::Instance(record) => record.mod_revision,
            Record::Session(record) => record.id,
            Record::Config(record) => record.mod_revision,
            Record::Release(record) => record.revision,
            Record::Schema(record) => record.mod_revision,
            Record::Counter(record) => record.mod_revision,
            Record::Lock(record) => record.mod_revision,
            Record::Alarm(record) => record.mod_revision,
            Record::Saga(record) => record.mod_revision,
            Record::Removal(record) => record.revision,
            Record::Meta(_) | Record::Reply(_) | Record::Member(_) | Record::Report(_) => 0,
        }
    }
}

/// Bytes that are not what this release, or one before it, wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corrupt {
    pub what: String,
}

impl Corrupt {
    pub(super) fn new(what: impl Into<String>) -> Self {
        Corrupt { what: what.into() }
    }
}

impl fmt::Display for Corrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "corrupt: {}", self.what)
    }
}

impl std::error::Error for Corrupt {}

impl Key {
    pub fn encode(&self) -> Vec<u8> {
        // Kind, three texts of usual length and their terminators fit; longer ones grow it.
        let mut out = Vec::with_capacity(64);
        self.encode_to(&mut out);
        out
    }

    /// Appends what [`Key::encode`] returns.
    pub fn encode_to(&self, out: &mut Vec<u8>) {
        match self {
            Key::Meta => out.push(META),
            Key::Namespace { name } => {
                put_texts(out, NAMESPACE, [name]);
            }
            Key::Service { namespace, name } => {
                put_texts(out, SERVICE, [namespace, name]);
            }
            Key::Instance { namespace, service, id } => {
                encode_instance_key([namespace, service, id], out);
            }
            Key::Session { id } => {
                out.push(SESSION);
                out.extend_from_slice(&id.to_be_bytes());
            }
            Key::Reply { session, sequence } => {
                out.push(REPLY);
                out.extend_from_slice(&session.to_be_bytes());
                out.extend_from_slice(&sequence.to_be_bytes());
            }
            Key::Member { node } => {
                out.push(MEMBER);
                out.extend_from_slice(&node.to_be_bytes());
            }
            Key::Config { namespace, group, key } => {
                put_texts(out, CONFIG, [namespace, group, key]);
            }
            Key::Release { namespace, group, key, version } => {
                put_texts(out, RELEASE, [namespace, group, key]);
                out.extend_from_slice(&version.to_be_bytes());
            }
            Key::Schema { namespace, group, key } => {
                put_texts(out, SCHEMA, [namespace, group, key]);
            }
            Key::Report { namespace, group, key, session } => {
                put_texts(out, REPORT, [namespace, group, key]);
                out.extend_from_slice(&session.to_be_bytes());
            }
            Key::Counter { namespace, name, labels } => {
                put_texts(out, COUNTER, [namespace, name, labels.as_packed()]);
            }
            Key::Alarm { namespace, name } => put_texts(out, ALARM, [namespace, name]),
            Key::Lock { namespace, lock, ticket } => {
                put_texts(out, LOCK, [namespace, lock]);
                out.extend_from_slice(&ticket.to_be_bytes());
            }
            Key::Removal { namespace, class } => {
                put_texts(out, REMOVAL, [namespace]);
                out.push(*class as u8);
            }
            Key::Saga { namespace, gid } => put_texts(out, SAGA, [namespace, gid]),
        }
    }

    pub fn decode(bytes: &[u8]) -> Result<Key, Corrupt> {
        let (kind, mut rest) =
            bytes.split_first().ok_or_else(|| Corrupt::new("a key of no bytes"))?;
        let key = match *kind {
            META => Key::Meta,
            NAMESPACE => Key::Namespace { name: take_text(&mut rest)? },
            SERVICE => {
                let [namespace, name] = take_texts(&mut rest)?;
                Key::Service { namespace, name }
            }
            INSTANCE => {
                let [namespace, service, id] = take_texts(&mut rest)?;
                Key::Instance { namespace, service, id }
            }
            SESSION => Key::Session { id: take_number(&mut rest)? },
            REPLY => {
                Key::Reply { session: take_number(&mut rest)?, sequence: take_number(&mut rest)? }
            }
            MEMBER => Key::Member { node: take_number(&mut rest)? },
            CONFIG => {
                let [namespace, group, key] = take_texts(&mut rest)?;
                Key::Config { namespace, group, key }
            }
            RELEASE => {
                let [namespace, group, key] = take_texts(&mut rest)?;
                Key::Release { namespace, group, key, version: take_number(&mut rest)? }
            }
            SCHEMA => {
                let [namespace, group, key] = take_texts(&mut rest)?;
                Key::Schema { namespace, group, key }
            }
            REPORT => {
                let [namespace, group, key] = take_texts(&mut rest)?;
                Key::Report { namespace, group, key, session: take_number(&mut rest)? }
            }
            COUNTER => {
                let [namespace, name, labels] = take_texts(&mut rest)?;
                let labels = Pairs::from_packed(labels)
                    .ok_or_else(|| Corrupt::new("labels in a key that are no pairs"))?;
                Key::Counter { namespace, name, labels }
            }
            ALARM => {
                let [namespace, name] = take_texts(&mut rest)?;
                Key::Alarm { namespace, name }
            }
            LOCK => {
                let [namespace, lock] = take_texts(&mut rest)?;
                Key::Lock { namespace, lock, ticket: take_number(&mut rest)? }
            }
            REMOVAL => {
                let [namespace] = take_texts(&mut rest)?;
                Key::Removal { namespace, class: take_class(&mut rest)? }
            }
            SAGA => {
                let [namespace, gid] = take_texts(&mut rest)?;
                Key::Saga { namespace, gid }
            }
            other => return Err(Corrupt::new(format!("a key of unknown kind {other}"))),
        };
        if !rest.is_empty() {
            return Err(Corrupt::new(format!("{} bytes after the key {key:?}", rest.len())));
        }
        Ok(key)
    }
}

/// Appends the encoded key of an instance: namespace, service and id.
pub fn encode_instance_key(names: [&str; 3], out: &mut Vec<u8>) {
    put_texts(out, INSTANCE, names);
}

fn put_texts<const N: usize>(out: &mut Vec<u8>, kind: u8, texts: [&str; N]) {
    out.push(kind);
    for text in texts {
        put_text(out, text);
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Names never hold a NUL; the escape is there so that the order does not rest on that.
    for (i, part) in text.as_bytes().split(|byte| *byte == 0).enumerate() {
        if i > 0 {
            out.extend_from_slice(&[0x00, 0xFF]);
        }
        out.extend_from_slice(part);
    }
    out.extend_from_slice(&[0x00, 0x01]);
}

fn take_text(rest: &mut &[u8]) -> Result<Arc<str>, Corrupt> {
    let text = |bytes: &[u8]| match str::from_utf8(bytes) {
        Ok(text) => Ok(text.into()),
        Err(_) => Err(Corrupt::new("a text in a key is not UTF-8")),
    };
    // What came before the last escape.
    let mut before = Vec::new();
    loop {
        let end = rest.iter().position(|byte| *byte == 0);
        let (Some(end), Some(mark)) = (end, end.and_then(|end| rest.get(end + 1))) else {
            return Err(Corrupt::new("a text in a key without its end"));
        };
        let part = &rest[..end];
        *rest = &rest[end + 2..];
        match mark {
            0x01 if before.is_empty() => return text(part),
            0x01 => return text(&[&before, part].concat()),
            0xFF => before.extend(part.iter().chain(&[0])),
            other => return Err(Corrupt::new(format!("0x00 {other:#04x} in a text in a key"))),
        }
    }
}

fn take_texts<const N: usize>(rest: &mut &[u8]) -> Result<[Arc<str>; N], Corrupt> {
    let mut texts = [(); N].map(|()| Arc::default());
    for text in &mut texts {
        *text = take_text(rest)?;
    }
    Ok(texts)
}

fn take_class(rest: &mut &[u8]) -> Result<Class, Corrupt> {
    let (byte, after) =
        rest.split_first().ok_or_else(|| Corrupt::new("a key without its class"))?;
    *rest = after;
    let class = Class::ALL.into_iter().find(|class| *class as u8 == *byte);
    class.ok_or_else(|| Corrupt::new(format!("a key of unknown class {byte}")))
}

fn take_number(rest: &mut &[u8]) -> Result<u64, Corrupt> {
    let (number, after) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| Corrupt::new("a number in a key without its end"))?;
    *rest = after;
    Ok(u64::from_be_bytes(*number))
}

impl Record {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Record::Meta(meta) => encode_value(meta),
            Record::Namespace(namespace) => encode_value(&**namespace),
            Record::Service(service) => encode_value(&**service),
            Record::Instance(instance) => encode_value(&**instance),
            Record::Session(session) => encode_value(&**session),
            Record::Reply(reply) => encode_value(&**reply),
            Record::Member(member) => encode_value(&**member),
            Record::Config(item) => encode_value(&**item),
            Record::Release(release) => encode_value(&**release),
            Record::Schema(schema) => encode_value(&**schema),
            Record::Report(report) => encode_value(&**report),
            Record::Counter(counter) => encode_value(&**counter),
            Record::Lock(request) => encode_value(&**request),
            Record::Removal(removal) => encode_value(removal),
            Record::Alarm(alarm) => encode_value(&**alarm),
            Record::Saga(saga) => encode_value(&**saga),
        }
    }

    /// The record that was stored under `key`; it must name what the key names.
    pub fn decode(key: &Key, bytes: &[u8]) -> Result<Record, Corrupt> {
        let record = match key {
            Key::Meta => Record::Meta(decode_value(key, bytes)?),
            Key::Namespace { .. } => Record::Namespace(Arc::new(decode_value(key, bytes)?)),
            Key::Service { .. } => Record::Service(Arc::new(decode_value(key, bytes)?)),
            Key::Instance { .. } => Record::Instance(Arc::new(decode_value(key, bytes)?)),
            Key::Session { .. } => Record::Session(Arc::new(decode_value(key, bytes)?)),
            Key::Reply { .. } => Record::Reply(Arc::new(decode_value(key, bytes)?)),
            Key::Member { .. } => Record::Member(Arc::new(decode_value(key, bytes)?)),
            Key::Config { .. } => Record::Config(Arc::new(decode_value(key, bytes)?)),
            Key::Release { .. } => Record::Release(Arc::new(decode_value(key, bytes)?)),
            Key::Schema { .. } => Record::Schema(Arc::new(decode_value(key, bytes)?)),
            Key::Report { .. } => Record::Report(Arc::new(decode_value(key, bytes)?)),
            Key::Counter { .. } => Record::Counter(Arc::new(decode_value(key, bytes)?)),
            Key::Lock { .. } => Record::Lock(Arc::new(decode_value(key, bytes)?)),
            Key::Removal { .. } => Record::Removal(decode_value(key, bytes)?),
            Key::Alarm { .. } => Record::Alarm(Arc::new(decode_value(key, bytes)?)),
            Key::Saga { .. } => Record::Saga(Arc::new(decode_value(key, bytes)?)),
        };
        if !record.is_of(key) {
            return Err(Corrupt::new(format!("the record under {key:?} is of another name")));
        }
        Ok(record)
    }

    /// Key and record of a row.
    pub fn decode_row(key: &[u8], value: &[u8]) -> Result<(Key, Record), Corrupt> {
        if let Some(instance) = decode_instance(key, value) {
            return Ok((instance.key(), Record::Instance(Arc::new(instance))));
        }
        let key = Key::decode(key)?;
        let record = Record::decode(&key, value)?;
        Ok((key, record))
    }

    /// True when the record belongs under `key`.
    pub(super) fn is_of(&self, key: &Key) -> bool {
        match (key, self) {
            (Key::Meta, Record::Meta(_)) | (Key::Reply { .. }, Record::Reply(_)) => true,
            (Key::Namespace { name }, Record::Namespace(record)) => *name == record.name,
            (Key::Service { namespace, name }, Record::Service(record)) => {
                *namespace == record.namespace && *name == record.name
            }
            (Key::Instance { namespace, service, id }, Record::Instance(record)) => {
                *namespace == record.namespace && *service == record.service && *id == record.id
            }
            (Key::Session { id }, Record::Session(record)) => *id == record.id,
            (Key::Member { node }, Record::Member(record)) => *node == record.node,
            (Key::Config { .. }, Record::Config(record)) => *key == record.key(),
            (Key::Release { version, .. }, Record::Release(record)) => *version == record.version,
            (Key::Schema { namespace, group, key }, Record::Schema(record)) => {
                *namespace == record.namespace && *group == record.group && *key == record.key
            }
            (Key::Report { namespace, group, key, session }, Record::Report(record)) => {
                *namespace == record.namespace
                    && *group == record.group
                    && *key == record.key
                    && *session == record.session
            }
            (Key::Counter { .. }, Record::Counter(record)) => *key == record.key(),
            (Key::Lock { .. }, Record::Lock(record)) => *key == record.key(),
            (Key::Removal { .. }, Record::Removal(_)) => true,
            (Key::Alarm { .. }, Record::Alarm(record)) => *key == record.key(),
            (Key::Saga { .. }, Record::Saga(record)) => *key == record.key(),
            (
                Key::Meta
                | Key::Namespace { .. }
                | Key::Service { .. }
                | Key::Instance { .. }
                | Key::Session { .. }
                | Key::Reply { .. }
                | Key::Member { .. }
                | Key::Config { .. }
                | Key::Release { .. }
                | Key::Schema { .. }
                | Key::Report { .. }
                | Key::Counter { .. }
                | Key::Lock { .. }
                | Key::Removal { .. }
                | Key::Alarm { .. }
                | Key::Saga { .. },
                _,
            ) => false,
        }
    }
}

/// How values and commands become bytes; `limit` bounds them both ways, so that a damaged length
/// never makes a reader allocate.
pub(super) fn coding(limit: usize) -> impl Options {
    bincode::DefaultOptions::new()
        .with_varint_encoding()
        .with_limit(limit as u64)
        .reject_trailing_bytes()
}

fn encode_value<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.push(RECORD_VERSION);
    // With a limit bincode goes through the value twice, the first time for its length.
    let coding = coding(limits::RECORD_BYTES - 1).with_no_limit();
    coding.serialize_into(&mut out, value).expect("a vector takes what it is given");
    assert!(out.len() <= limits::RECORD_BYTES, "limits.rs adds up what a record may be made of");
    out
}

fn decode_value<T: DeserializeOwned>(key: &Key, bytes: &[u8]) -> Result<T, Corrupt> {
    match bytes.split_first() {
        Some((&RECORD_VERSION, rest)) => coding(limits::RECORD_BYTES - 1)
            .deserialize(rest)
            .map_err(|e| Corrupt::new(format!("the record under {key:?}: {e}"))),
        Some((version, _)) => Err(Corrupt::new(format!(
            "the record under {key:?} is of version {version}; this release reads {RECORD_VERSION}"
        ))),
        None => Err(Corrupt::new(format!("the record under {key:?} has no bytes"))),
    }
}

/// An instance whose names make up its key, as they nearly always do: the key is compared, not made. There may be a
/// million of them at a start.
fn decode_instance(key: &[u8], value: &[u8]) -> Option<Instance> {
    let mut rest = key.strip_prefix(&[INSTANCE])?;
    let value = value.strip_prefix(&[RECORD_VERSION])?;
    let instance: Instance = coding(limits::RECORD_BYTES - 1).deserialize(value).ok()?;
    for name in [&instance.namespace, &instance.service, &instance.id] {
        let name = name.as_bytes();
        // One with a NUL is written in another way.
        rest = rest.strip_prefix(name)?.strip_prefix(&[0x00, 0x01])?;
        if name.contains(&0) {
            return None;
        }
    }
    rest.is_empty().then_some(instance)
}

/// Reads a shared text from bytes that hold it. What serde does by itself makes it twice.
fn shared<'de, D: Deserializer<'de>>(from: D) -> Result<Arc<str>, D::Error> {
    <&str>::deserialize(from).map(Arc::from)
}

/// Hash of one record: the digest of a state is their wrapping sum, so that it does not depend on the
/// order of the records. Neither a key nor a value can be taken for a part of the other one.
pub fn record_hash(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(key))
}
