//! Transactions, between messages and the state's types.

use super::super::calls::Write;
use super::{
    config, consistency, counter, instance_name, lock, namespace, service_record, session,
};
use super::{instance, namespace_record, page};
use crate::error::Error;
use crate::proto::v1;
use crate::state::{
    self, Class, Compare, Match, Op, Record, RecordName, Relation, Scope, Step, StepReply,
};

#[derive(Debug)]
pub struct Txn {
    pub txn: state::Txn,
    pub barrier: Option<state::Barrier>,
    pub consistency: v1::Consistency,
    pub request_id: Option<v1::RequestId>,
}

pub fn txn(request: v1::TxnRequest) -> Result<Txn, Error> {
    let v1::TxnRequest { when, then, or_else, consistency, barrier, request_id } = request;
    let when = when.into_iter().enumerate().map(|(i, it)| compare(&format!("when[{i}]"), it));
    let txn = state::Txn {
        when: when.collect::<Result<_, _>>()?,
        then: steps("then", then)?,
        otherwise: steps("or_else", or_else)?,
    };
    let barrier = barrier.map(super::saga::barrier).transpose()?;
    Ok(Txn { txn, barrier, consistency: self::consistency(consistency)?, request_id })
}

fn steps(list: &str, steps: Vec<v1::TxnStep>) -> Result<Vec<Step>, Error> {
    let all = steps.into_iter().enumerate();
    all.map(|(i, it)| step(&format!("{list}[{i}]"), it)).collect()
}

fn step(field: &str, step: v1::TxnStep) -> Result<Step, Error> {
    use v1::txn_step::Step as Wire;
    let step = step.step.ok_or_else(|| missing(field, "step", "a step of this release"))?;
    Ok(match step {
        Wire::Register(it) => write(field, it)?,
        Wire::Deregister(it) => write(field, it)?,
        Wire::UpdateInstance(it) => write(field, it)?,
        Wire::PutService(it) => write(field, it)?,
        Wire::DeleteService(it) => write(field, it)?,
        Wire::PublishConfig(it) => write(field, it)?,
        Wire::DeleteConfig(it) => write(field, it)?,
        Wire::RollbackConfig(it) => write(field, it)?,
        Wire::AddCounter(it) => write(field, it)?,
        Wire::SetCounter(it) => write(field, it)?,
        Wire::ResetCounter(it) => write(field, it)?,
        Wire::DeleteCounter(it) => write(field, it)?,
        Wire::AcquireLock(it) => write(field, it)?,
        Wire::ReleaseLock(it) => write(field, it)?,
        Wire::UpdateLock(it) => write(field, it)?,
        Wire::Get(it) => Step::Get(record_name(field, it)?),
        Wire::Range(v1::TxnRange { scope, limit }) => {
            Step::Range { scope: self::scope(field, scope)?, limit: page(limit)? as u64 }
        }
    })
}

/// A request as one step: its fields are named after it, and it has no id of its own.
fn write<W: Write>(field: &str, request: W) -> Result<Step, Error> {
    let command = request.command().map_err(|error| match error {
        Error::Invalid { field: inner, value, allowed } => {
            Error::Invalid { field: format!("{field}.{inner}"), value, allowed }
        }
        other => other,
    })?;
    if command.request.is_some() {
        let allowed = "none: the transaction has one for all of its steps";
        return Err(Error::invalid(format!("{field}.request_id"), "an id", allowed));
    }
    if let Op::AcquireLock(claim) = &command.op
        && claim.wait
    {
        let allowed = "no waiting for locks in a transaction";
        return Err(Error::invalid(format!("{field}.queue"), "true", allowed));
    }
    Ok(Step::Write(command.op))
}

fn missing(field: &str, what: &str, allowed: &str) -> Error {
    Error::invalid(format!("{field}.{what}"), "none or an unknown one", allowed)
}

fn record_name(field: &str, name: v1::RecordName) -> Result<RecordName, Error> {
    use v1::record_name::Record as Wire;
    let name = name.record.ok_or_else(|| missing(field, "record", "the name of a record"))?;
    Ok(match name {
        Wire::Namespace(name) => RecordName::Namespace { name: namespace(name) },
        Wire::Service(v1::ServiceName { namespace, service }) => {
            RecordName::Service { namespace: self::namespace(namespace), name: service }
        }
        Wire::Instance(v1::InstanceName { namespace, service, id }) => {
            RecordName::Instance(instance_name(namespace, service, id))
        }
        Wire::Config(v1::ItemName { namespace, group, key }) => {
            RecordName::Config(config::item_name(namespace, group, key))
        }
        Wire::Counter(v1::CounterName { namespace, name, labels }) => {
            RecordName::Counter(counter::counter_name(namespace, name, labels))
        }
        Wire::Lock(v1::LockName { namespace, lock }) => {
            RecordName::Lock(lock::lock_name(namespace, lock))
        }
        Wire::Session(id) => RecordName::Session { id },
    })
}

fn scope(field: &str, scope: Option<v1::Scope>) -> Result<Scope, Error> {
    use v1::scope::Kind as Wire;
    let none = || missing(field, "scope", "services, config, counters or locks of a namespace");
    let v1::Scope { namespace, kind } = scope.ok_or_else(none)?;
    let (class, first, second) = match kind.ok_or_else(none)? {
        Wire::Services(name) => (Class::Service, name_match(name), Match::Any),
        Wire::Config(v1::ItemMatch { group, key }) => {
            let group = if group.is_empty() { Match::Any } else { Match::Exact(group) };
            (Class::Config, group, key.map_or(Match::Any, name_match))
        }
        Wire::Counters(name) => (Class::Counter, name_match(name), Match::Any),
        Wire::Locks(name) => (Class::Lock, name_match(name), Match::Any),
    };
    Ok(Scope { class, namespace: self::namespace(namespace), first, second })
}

fn name_match(name: v1::NameMatch) -> Match {
    match name.name {
        None => Match::Any,
        Some(v1::name_match::Name::Exact(name)) => Match::Exact(name),
        Some(v1::name_match::Name::Prefix(name)) => Match::Prefix(name),
    }
}

fn compare(field: &str, compare: v1::Compare) -> Result<Compare, Error> {
    use v1::compare::To;
    let v1::Compare { record, is, to, unchanged } = compare;
    if let Some(v1::Unchanged { scope, since }) = unchanged {
        if record.is_some() || to.is_some() {
            let allowed = "none together with unchanged";
            return Err(Error::invalid(format!("{field}.record"), "a record", allowed));
        }
        return Ok(Compare::Unchanged { scope: self::scope(field, scope)?, since });
    }
    let record = record.ok_or_else(|| missing(field, "record", "the name of a record"))?;
    let record = record_name(field, record)?;
    let is = relation(field, is)?;
    let equal = || match is {
        Relation::Equal => Ok(true),
        Relation::NotEqual => Ok(false),
        Relation::Less | Relation::Greater => {
            let allowed = "RELATION_EQUAL or RELATION_NOT_EQUAL";
            Err(Error::invalid(format!("{field}.is"), format!("{is:?}"), allowed))
        }
    };
    let wrong = |what: &str, of: &str| {
        Error::invalid(format!("{field}.{what}"), "of another record", format!("of {of}"))
    };
    let to = to.ok_or_else(|| missing(field, "to", "a value to compare with"))?;
    Ok(match (to, record) {
        (To::Exists(exists), record) => Compare::Exists { record, exists: exists == equal()? },
        (To::CreateRevision(than), record) => Compare::CreateRevision { record, is, than },
        (To::ModRevision(than), record) => Compare::ModRevision { record, is, than },
        (To::Version(than), RecordName::Config(item)) => Compare::Version { item, is, than },
        (To::Content(content), RecordName::Config(item)) => {
            Compare::Content { item, equal: equal()?, to: content.into() }
        }
        (To::Value(than), RecordName::Counter(counter)) => Compare::Counter { counter, is, than },
        (To::Health(health), RecordName::Instance(instance)) => {
            let named = super::health(&format!("{field}.health"), health)?;
            let to = named.ok_or_else(|| missing(field, "health", "HEALTH_PASSING and so on"))?;
            Compare::Health { instance, equal: equal()?, to }
        }
        (To::Token(than), RecordName::Lock(lock)) => Compare::Token { lock, is, than },
        (To::Version(_), _) => return Err(wrong("version", "a config item")),
        (To::Content(_), _) => return Err(wrong("content", "a config item")),
        (To::Value(_), _) => return Err(wrong("value", "a counter")),
        (To::Health(_), _) => return Err(wrong("health", "an instance")),
        (To::Token(_), _) => return Err(wrong("token", "a lock")),
    })
}

fn relation(field: &str, value: i32) -> Result<Relation, Error> {
    Ok(match v1::Relation::try_from(value) {
        Ok(v1::Relation::Unspecified | v1::Relation::Equal) => Relation::Equal,
        Ok(v1::Relation::NotEqual) => Relation::NotEqual,
        Ok(v1::Relation::Less) => Relation::Less,
        Ok(v1::Relation::Greater) => Relation::Greater,
        Err(_) => {
            let allowed = "RELATION_EQUAL, _NOT_EQUAL, _LESS, _GREATER";
            return Err(super::unknown(&format!("{field}.is"), value, allowed));
        }
    })
}

// ---- to the wire ----

/// None for the reply to a command that no transaction carries.
pub fn result(reply: StepReply) -> Option<v1::TxnResult> {
    use v1::txn_result::Result as Wire;
    let result = match reply {
        StepReply::Found(record) => {
            Wire::Get(v1::FoundRecord { record: record.as_ref().and_then(found_record) })
        }
        StepReply::Range { records, more } => {
            let found = |record| v1::FoundRecord { record: found_record(record) };
            Wire::Range(v1::FoundRecords { records: records.iter().map(found).collect(), more })
        }
        StepReply::Written(reply) => written(reply)?,
    };
    Some(v1::TxnResult { result: Some(result) })
}

fn written(reply: state::Reply) -> Option<v1::txn_result::Result> {
    use state::Reply;
    use v1::txn_result::Result as Wire;
    Some(match reply {
        Reply::Registered { created, mod_revision } => {
            Wire::Register(v1::RegisterResponse { header: None, created, mod_revision })
        }
        Reply::Deregistered { removed } => {
            Wire::Deregister(v1::DeregisterResponse { header: None, removed })
        }
        Reply::InstanceUpdated(it) => {
            let instance = Some(instance(&it));
            Wire::UpdateInstance(v1::UpdateInstanceResponse { header: None, instance })
        }
        Reply::ServicePut { created } => {
            Wire::PutService(v1::PutServiceResponse { header: None, created })
        }
        Reply::ServiceDeleted { removed } => {
            Wire::DeleteService(v1::DeleteServiceResponse { header: None, removed })
        }
        Reply::ConfigPublished { version, changed } => {
            Wire::PublishConfig(v1::PublishConfigResponse { header: None, version, changed })
        }
        Reply::ConfigDeleted { removed, version } => {
            Wire::DeleteConfig(v1::DeleteConfigResponse { header: None, removed, version })
        }
        Reply::CounterChanged { value, changed, mod_revision: _ } => {
            Wire::Counter(v1::AddCounterResponse { header: None, value, changed })
        }
        Reply::CounterDeleted { removed } => {
            Wire::DeleteCounter(v1::DeleteCounterResponse { header: None, removed })
        }
        Reply::LockAcquired { token } => {
            Wire::AcquireLock(v1::AcquireLockResponse { header: None, token, ahead: 0 })
        }
        Reply::LockReleased { released } => {
            Wire::ReleaseLock(v1::ReleaseLockResponse { header: None, released })
        }
        Reply::LockUpdated { changed } => {
            Wire::UpdateLock(v1::UpdateLockResponse { header: None, changed })
        }
        Reply::SessionOpened { .. }
        | Reply::SessionClosed { .. }
        | Reply::SessionsExpired { .. }
        | Reply::Reaped { .. }
        | Reply::NamespacePut { .. }
        | Reply::NamespaceDeleted { .. }
        | Reply::MemberAdmitted { .. }
        | Reply::MemberRetired { .. }
        | Reply::SchemaPut { .. }
        | Reply::SchemaDeleted { .. }
        | Reply::GrayEnded { .. }
        | Reply::GrayJudged { .. }
        | Reply::ConfigReported { .. }
        | Reply::LockQueued { .. }
        | Reply::AlarmPut { .. }
        | Reply::AlarmDeleted { .. }
        | Reply::AlarmJudged { .. }
        | Reply::PostNoted { .. }
        | Reply::HealthJudged { .. }
        | Reply::SagaBegun { .. }
        | Reply::SagaTurned { .. }
        | Reply::BranchRegistered { .. }
        | Reply::SagasAdvanced { .. }
        | Reply::Guarded { .. }
        | Reply::Txn { .. } => return None,
    })
}

fn found_record(record: &Record) -> Option<v1::found_record::Record> {
    use v1::found_record::Record as Wire;
    Some(match record {
        Record::Namespace(it) => Wire::Namespace(namespace_record(it)),
        Record::Service(it) => Wire::Service(service_record(it)),
        Record::Instance(it) => Wire::Instance(instance(it)),
        Record::Config(it) => Wire::Config(config::item(it, config::Shown::All { contents: true })),
        Record::Counter(it) => Wire::Counter(counter::counter(it, None)),
        Record::Lock(it) => Wire::Lock(lock::lock_request(it)),
        Record::Session(it) => Wire::Session(session(it, 0)),
        Record::Meta(_)
        | Record::Reply(_)
        | Record::Member(_)
        | Record::Release(_)
        | Record::Schema(_)
        | Record::Report(_)
        | Record::Alarm(_)
        | Record::Saga(_)
        | Record::Removal(_) => return None,
    })
}
