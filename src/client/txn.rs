//! Atomic transactions as a user writes them: records by name, conditions on them, and steps.
//!
//! ```no_run
//! use quorate::client::txn::{Txn, config, counter};
//! # use quorate::client::{Client, LockGuard};
//! # async fn example(client: Client, guard: LockGuard) -> Result<(), quorate::error::Error> {
//! let app = config("default", "default", "app.yaml");
//! let deploys = counter("default", "deploys_total");
//! let outcome = Txn::new()
//!     .when(app.version().is(3))
//!     .when(guard.condition())
//!     .then(app.publish("replicas: 5"))
//!     .then(deploys.add(1))
//!     .or_else(app.get())
//!     .commit(&client, None)
//!     .await?;
//! println!("published: {}", outcome.succeeded);
//! # Ok(())
//! # }
//! ```
//!
//! Names, scopes and requests are the messages of `proto/`; what a shorthand here leaves out is set on the
//! message itself: `AddCounterRequest { floor: Some(0), ..stock.add(-1) }`. Every request is a step.

use std::marker::PhantomData;

use super::connection::Client;
use super::session::Session;
use crate::error::Error;
use crate::proto::v1;
use crate::proto::v1::compare::To;
use crate::proto::v1::found_record::Record as Found;
use crate::proto::v1::record_name::Record as Name;
use crate::proto::v1::txn_step::Step;
use crate::proto::v1::{name_match, scope};

/// A transaction that is being written down. All conditions are asked of the state before it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Txn {
    request: v1::TxnRequest,
}

impl Txn {
    pub fn new() -> Txn {
        Txn::default()
    }

    /// A condition; all must hold.
    pub fn when(mut self, compare: v1::Compare) -> Txn {
        self.request.when.push(compare);
        self
    }

    /// Carried out when all conditions hold.
    pub fn then(mut self, step: impl Into<v1::TxnStep>) -> Txn {
        self.request.then.push(step.into());
        self
    }

    /// Carried out when a condition does not hold.
    pub fn or_else(mut self, step: impl Into<v1::TxnStep>) -> Txn {
        self.request.or_else.push(step.into());
        self
    }

    /// Carries it out. With a session it takes place once, even when its answer is lost on the way.
    pub async fn commit(
        self,
        client: &Client,
        session: Option<&Session>,
    ) -> Result<v1::TxnResponse, Error> {
        client.txn(self.request, session).await
    }
}

impl From<Txn> for v1::TxnRequest {
    fn from(txn: Txn) -> Self {
        txn.request
    }
}

// ---- records ----

/// The name of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceName(pub String);

/// The id of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionName(pub u64);

/// A namespace as a record.
pub fn namespace(name: impl Into<String>) -> NamespaceName {
    NamespaceName(name.into())
}

/// The settings of a service. An empty namespace is "default", here and below.
pub fn service(namespace: impl Into<String>, service: impl Into<String>) -> v1::ServiceName {
    v1::ServiceName { namespace: namespace.into(), service: service.into() }
}

pub fn instance(
    namespace: impl Into<String>,
    service: impl Into<String>,
    id: impl Into<String>,
) -> v1::InstanceName {
    v1::InstanceName { namespace: namespace.into(), service: service.into(), id: id.into() }
}

/// An item of configuration; an empty group is "default".
pub fn config(
    namespace: impl Into<String>,
    group: impl Into<String>,
    key: impl Into<String>,
) -> v1::ItemName {
    v1::ItemName { namespace: namespace.into(), group: group.into(), key: key.into() }
}

/// A counter without labels; with labels see [`v1::CounterName::label`].
pub fn counter(namespace: impl Into<String>, name: impl Into<String>) -> v1::CounterName {
    v1::CounterName { namespace: namespace.into(), name: name.into(), ..Default::default() }
}

/// Whoever holds a lock.
pub fn lock(namespace: impl Into<String>, lock: impl Into<String>) -> v1::LockName {
    v1::LockName { namespace: namespace.into(), lock: lock.into() }
}

pub fn session(id: u64) -> SessionName {
    SessionName(id)
}

/// The name of a record, and what is found under it.
pub trait Record: Clone {
    type Value: FromFound;
    fn record_name(&self) -> v1::RecordName;
}

/// What a transaction finds, by its type.
pub trait FromFound: Sized {
    /// None when it is a record of another kind.
    fn from_found(found: Found) -> Option<Self>;
}

impl FromFound for Found {
    fn from_found(found: Found) -> Option<Self> {
        Some(found)
    }
}

macro_rules! records {
    ($($name:ty => $value:ident, $kind:ident, |$it:ident| $record:expr;)*) => {$(
        impl FromFound for v1::$value {
            fn from_found(found: Found) -> Option<Self> {
                match found {
                    Found::$kind(value) => Some(value),
                    _ => None,
                }
            }
        }

        impl Record for $name {
            type Value = v1::$value;
            fn record_name(&self) -> v1::RecordName {
                let $it = self.clone();
                v1::RecordName { record: Some($record) }
            }
        }

        /// Conditions on the record, and the step that reads it.
        impl $name {
            pub fn exists(&self) -> v1::Compare {
                condition(self, v1::Relation::Equal, To::Exists(true))
            }

            pub fn is_missing(&self) -> v1::Compare {
                condition(self, v1::Relation::Equal, To::Exists(false))
            }

            /// 0 when it does not exist.
            pub fn create_revision(&self) -> Question<u64> {
                question(self, To::CreateRevision)
            }

            /// 0 when it does not exist.
            pub fn mod_revision(&self) -> Question<u64> {
                question(self, To::ModRevision)
            }

            pub fn get(&self) -> v1::TxnStep {
                Step::Get(self.record_name()).into()
            }
        }
    )*};
}

records! {
    NamespaceName => Namespace, Namespace, |it| Name::Namespace(it.0);
    v1::ServiceName => Service, Service, |it| Name::Service(it);
    v1::InstanceName => Instance, Instance, |it| Name::Instance(it);
    v1::ItemName => ConfigItem, Config, |it| Name::Config(it);
    v1::CounterName => Counter, Counter, |it| Name::Counter(it);
    v1::LockName => LockRequest, Lock, |it| Name::Lock(it);
    SessionName => Session, Session, |it| Name::Session(it.0);
}

impl v1::ItemName {
    /// Version of the current release; 0 when there is none.
    pub fn version(&self) -> Question<u64> {
        question(self, To::Version)
    }

    /// Content of the current release.
    pub fn content<'a>(&self) -> Question<&'a [u8]> {
        question(self, |content: &[u8]| To::Content(content.to_vec()))
    }

    pub fn publish(&self, content: impl Into<Vec<u8>>) -> v1::PublishConfigRequest {
        let v1::ItemName { namespace, group, key } = self.clone();
        let content = content.into();
        v1::PublishConfigRequest { namespace, group, key, content, ..Default::default() }
    }

    pub fn delete(&self) -> v1::DeleteConfigRequest {
        let v1::ItemName { namespace, group, key } = self.clone();
        v1::DeleteConfigRequest { namespace, group, key, ..Default::default() }
    }

    /// A new release with the content of an earlier one.
    pub fn roll_back(&self, version: u64) -> v1::RollbackConfigRequest {
        let v1::ItemName { namespace, group, key } = self.clone();
        v1::RollbackConfigRequest { namespace, group, key, version, ..Default::default() }
    }
}

impl v1::CounterName {
    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// 0 when it does not exist.
    pub fn value(&self) -> Question<i64> {
        question(self, To::Value)
    }

    /// A new counter is one that only grows unless the request says another kind.
    pub fn add(&self, delta: i64) -> v1::AddCounterRequest {
        let v1::CounterName { namespace, name, labels } = self.clone();
        v1::AddCounterRequest { namespace, name, labels, delta, ..Default::default() }
    }

    pub fn set(&self, value: i64) -> v1::SetCounterRequest {
        let v1::CounterName { namespace, name, labels } = self.clone();
        v1::SetCounterRequest { namespace, name, labels, value, ..Default::default() }
    }

    pub fn reset(&self) -> v1::ResetCounterRequest {
        let v1::CounterName { namespace, name, labels } = self.clone();
        v1::ResetCounterRequest { namespace, name, labels, ..Default::default() }
    }

    pub fn delete(&self) -> v1::DeleteCounterRequest {
        let v1::CounterName { namespace, name, labels } = self.clone();
        v1::DeleteCounterRequest { namespace, name, labels, ..Default::default() }
    }
}

impl v1::InstanceName {
    /// Never holds for an instance that does not exist.
    pub fn health(&self) -> Question<v1::Health> {
        question(self, |health: v1::Health| To::Health(health.into()))
    }

    pub fn update(&self) -> v1::UpdateInstanceRequest {
        let v1::InstanceName { namespace, service, id } = self.clone();
        v1::UpdateInstanceRequest { namespace, service, id, ..Default::default() }
    }

    pub fn deregister(&self) -> v1::DeregisterRequest {
        let v1::InstanceName { namespace, service, id } = self.clone();
        v1::DeregisterRequest { namespace, service, id, ..Default::default() }
    }
}

impl v1::ServiceName {
    pub fn delete(&self) -> v1::DeleteServiceRequest {
        let v1::ServiceName { namespace, service } = self.clone();
        v1::DeleteServiceRequest { namespace, name: service, request_id: None }
    }
}

impl v1::LockName {
    /// Fencing token of its holder; 0 = nobody holds it.
    pub fn token(&self) -> Question<u64> {
        question(self, To::Token)
    }

    /// Takes the lock if nobody holds it; a transaction does not wait, it is refused.
    pub fn acquire(&self, session: u64, holder: impl Into<String>) -> v1::AcquireLockRequest {
        let v1::LockName { namespace, lock } = self.clone();
        let holder = holder.into();
        v1::AcquireLockRequest { namespace, lock, session, holder, ..Default::default() }
    }

    /// Takes the lock from whoever holds it with this token.
    pub fn release(&self, token: u64) -> v1::ReleaseLockRequest {
        let v1::LockName { namespace, lock } = self.clone();
        v1::ReleaseLockRequest { namespace, lock, token, ..Default::default() }
    }
}

// ---- conditions ----

/// Something of a record that a condition is about.
pub struct Question<T> {
    record: v1::RecordName,
    to: fn(T) -> To,
}

impl<T> std::fmt::Debug for Question<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Question").field("record", &self.record).finish_non_exhaustive()
    }
}

fn question<T>(record: &impl Record, to: fn(T) -> To) -> Question<T> {
    Question { record: record.record_name(), to }
}

fn condition(record: &impl Record, is: v1::Relation, to: To) -> v1::Compare {
    compare(record.record_name(), is, to)
}

pub(super) fn compare(record: v1::RecordName, is: v1::Relation, to: To) -> v1::Compare {
    v1::Compare { record: Some(record), is: is.into(), to: Some(to), unchanged: None }
}

impl<T> Question<T> {
    pub fn is(self, value: T) -> v1::Compare {
        self.relates(v1::Relation::Equal, value)
    }

    pub fn is_not(self, value: T) -> v1::Compare {
        self.relates(v1::Relation::NotEqual, value)
    }

    /// Only of numbers.
    pub fn is_less_than(self, value: T) -> v1::Compare {
        self.relates(v1::Relation::Less, value)
    }

    /// Only of numbers.
    pub fn is_greater_than(self, value: T) -> v1::Compare {
        self.relates(v1::Relation::Greater, value)
    }

    fn relates(self, is: v1::Relation, value: T) -> v1::Compare {
        compare(self.record, is, (self.to)(value))
    }
}

// ---- scopes ----

/// Which names of a kind.
pub fn all() -> v1::NameMatch {
    v1::NameMatch::default()
}

pub fn exactly(name: impl Into<String>) -> v1::NameMatch {
    v1::NameMatch { name: Some(name_match::Name::Exact(name.into())) }
}

pub fn starting_with(prefix: impl Into<String>) -> v1::NameMatch {
    v1::NameMatch { name: Some(name_match::Name::Prefix(prefix.into())) }
}

/// All records of a kind in a namespace whose names match.
#[derive(Debug, Clone, PartialEq)]
pub struct Range<V> {
    scope: v1::Scope,
    kind: PhantomData<fn() -> V>,
}

impl<V> Range<V> {
    fn new(namespace: impl Into<String>, kind: scope::Kind) -> Range<V> {
        let scope = v1::Scope { namespace: namespace.into(), kind: Some(kind) };
        Range { scope, kind: PhantomData }
    }

    pub fn scope(&self) -> &v1::Scope {
        &self.scope
    }

    /// Nothing of it was made, changed or removed after the revision. It is careful: any removal of
    /// the same kind in the namespace counts.
    pub fn unchanged_since(&self, revision: u64) -> v1::Compare {
        unchanged(self.scope.clone(), revision)
    }

    /// Reads the first 1 000 of it.
    pub fn get(&self) -> v1::TxnStep {
        Step::Range(v1::TxnRange { scope: Some(self.scope.clone()), limit: 0 }).into()
    }
}

pub(super) fn unchanged(scope: v1::Scope, since: u64) -> v1::Compare {
    let unchanged = Some(v1::Unchanged { scope: Some(scope), since });
    v1::Compare { unchanged, ..Default::default() }
}

/// Services' settings and their instances.
pub fn services(namespace: impl Into<String>, names: v1::NameMatch) -> Range<Found> {
    Range::new(namespace, scope::Kind::Services(names))
}

/// Items of a group, or, when it is empty, of all groups.
pub fn configs(
    namespace: impl Into<String>,
    group: impl Into<String>,
    keys: v1::NameMatch,
) -> Range<v1::ConfigItem> {
    let items = v1::ItemMatch { group: group.into(), key: Some(keys) };
    Range::new(namespace, scope::Kind::Config(items))
}

pub fn counters(namespace: impl Into<String>, names: v1::NameMatch) -> Range<v1::Counter> {
    Range::new(namespace, scope::Kind::Counters(names))
}

/// Locks that are held or waited for: every request for them.
pub fn locks(namespace: impl Into<String>, names: v1::NameMatch) -> Range<v1::LockRequest> {
    Range::new(namespace, scope::Kind::Locks(names))
}

// ---- steps ----

impl From<Step> for v1::TxnStep {
    fn from(step: Step) -> Self {
        v1::TxnStep { step: Some(step) }
    }
}

macro_rules! steps {
    ($($request:ident => $step:ident,)*) => {$(
        impl From<v1::$request> for v1::TxnStep {
            fn from(request: v1::$request) -> Self {
                Step::$step(request).into()
            }
        }
    )*};
}

steps! {
    RegisterRequest => Register,
    DeregisterRequest => Deregister,
    UpdateInstanceRequest => UpdateInstance,
    PutServiceRequest => PutService,
    DeleteServiceRequest => DeleteService,
    PublishConfigRequest => PublishConfig,
    DeleteConfigRequest => DeleteConfig,
    RollbackConfigRequest => RollbackConfig,
    AddCounterRequest => AddCounter,
    SetCounterRequest => SetCounter,
    ResetCounterRequest => ResetCounter,
    DeleteCounterRequest => DeleteCounter,
    AcquireLockRequest => AcquireLock,
    ReleaseLockRequest => ReleaseLock,
    UpdateLockRequest => UpdateLock,
    TxnRange => Range,
}

impl From<v1::Instance> for v1::TxnStep {
    fn from(instance: v1::Instance) -> Self {
        v1::RegisterRequest::from(instance).into()
    }
}

impl From<v1::Service> for v1::TxnStep {
    fn from(service: v1::Service) -> Self {
        v1::PutServiceRequest::from(service).into()
    }
}
