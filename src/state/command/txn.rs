//! Atomic transactions: what they compare, and what they carry out.

use std::cell::Cell;
use std::thread::LocalKey;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::super::scope::Scope;
use super::super::table::{Blob, Health, Record};
use super::{
    Command, CounterName, InstanceName, ItemName, LockName, Op, Refusal, Reply,
    check_instance_name, check_name, check_range, invalid,
};
use crate::limits;

/// When all compares hold, `then` is carried out, otherwise `otherwise`: all of it, with one revision,
/// or, when one operation is refused, nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Txn<T = String> {
    pub when: Vec<Compare<T>>,
    pub then: Vec<Step<T>>,
    pub otherwise: Vec<Step<T>>,
}

/// A question about the state before the transaction. What does not exist has revision, version and
/// value 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Compare<T = String> {
    Exists {
        record: RecordName<T>,
        exists: bool,
    },
    CreateRevision {
        record: RecordName<T>,
        is: Relation,
        than: u64,
    },
    ModRevision {
        record: RecordName<T>,
        is: Relation,
        than: u64,
    },
    /// Of the current release.
    Version {
        item: ItemName<T>,
        is: Relation,
        than: u64,
    },
    /// Whether the current release has these bytes.
    Content {
        item: ItemName<T>,
        equal: bool,
        to: Blob,
    },
    Counter {
        counter: CounterName<T>,
        is: Relation,
        than: i64,
    },
    /// Holds for no instance that does not exist.
    Health {
        instance: InstanceName<T>,
        equal: bool,
        to: Health,
    },
    /// The fencing token of whoever holds the lock; 0 = nobody.
    Token {
        lock: LockName<T>,
        is: Relation,
        than: u64,
    },
    /// Nothing in the scope was made, changed or removed after the revision. Also false when anything
    /// of the scope's class was removed from its namespace since: who was removed is not remembered.
    Unchanged {
        scope: Scope<T>,
        since: u64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Relation {
    Equal,
    NotEqual,
    Less,
    Greater,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordName<T = String> {
    Namespace {
        name: T,
    },
    /// Its settings.
    Service {
        namespace: T,
        name: T,
    },
    Instance(InstanceName<T>),
    Config(ItemName<T>),
    Counter(CounterName<T>),
    /// Whoever holds it.
    Lock(LockName<T>),
    Session {
        id: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step<T = String> {
    Write(Op<T>),
    Get(RecordName<T>),
    /// At most so many records, in order.
    Range {
        scope: Scope<T>,
        limit: u64,
    },
}

/// What a step answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepReply {
    Written(Reply),
    Found(Option<Record>),
    Range { records: Vec<Record>, more: bool },
}

thread_local! {
    /// Transactions that are being read, each within the one before, and answers.
    static TRANSACTIONS: Cell<u8> = const { Cell::new(0) };
    static ANSWERS: Cell<u8> = const { Cell::new(0) };
}

/// The answer of a transaction is within that of its barrier, and those of its steps are within both.
const ANSWERS_WITHIN: u8 = 2;

/// Reads a transaction, unless it is within another one.
pub(super) fn not_nested<'de, D, T>(from: D) -> Result<Box<Txn<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    within(&TRANSACTIONS, 1, "a transaction within a transaction", from)
}

/// Reads what is within an answer, unless that is within others itself, more than any transaction says.
pub(super) fn few_levels<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    within(
        &ANSWERS,
        ANSWERS_WITHIN,
        "more answers within each other than any transaction has",
        from,
    )
}

/// A record or a command has room for so many levels that a reader which follows them down runs out of stack,
/// on every node that has it.
fn within<'de, D, T>(
    levels: &'static LocalKey<Cell<u8>>,
    most: u8,
    else_it_is: &str,
    from: D,
) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    let around = levels.get();
    if around == most {
        return Err(D::Error::custom(else_it_is));
    }
    levels.set(around + 1);
    let read = T::deserialize(from);
    levels.set(around);
    read
}

impl Relation {
    pub(crate) fn holds<N: Ord>(self, left: N, right: N) -> bool {
        match self {
            Relation::Equal => left == right,
            Relation::NotEqual => left != right,
            Relation::Less => left < right,
            Relation::Greater => left > right,
        }
    }
}

impl<T> Txn<T> {
    /// True when it writes nothing, whichever way it goes.
    pub fn is_read(&self) -> bool {
        !self.then.iter().chain(&self.otherwise).any(|step| matches!(step, Step::Write(_)))
    }
}

impl Txn {
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let Txn { when, then, otherwise } = self;
        check_range("when", when.len() as u64, &(0..=limits::TXN_COMPARES as u64))?;
        for (i, compare) in when.iter().enumerate() {
            compare.check(&format!("when[{i}]."))?;
        }
        for (list, steps) in [("then", then), ("or_else", otherwise)] {
            check_range(list, steps.len() as u64, &(0..=limits::TXN_STEPS as u64))?;
            for (i, step) in steps.iter().enumerate() {
                step.check(&format!("{list}[{i}]."))?;
            }
        }
        Ok(())
    }
}

impl Compare {
    fn check(&self, prefix: &str) -> Result<(), Refusal> {
        match self {
            Compare::Exists { record, exists: _ }
            | Compare::CreateRevision { record, is: _, than: _ }
            | Compare::ModRevision { record, is: _, than: _ } => record.check(prefix),
            Compare::Version { item, is: _, than: _ }
            | Compare::Content { item, equal: _, to: _ } => item.check_in(prefix),
            Compare::Counter { counter, is: _, than: _ } => counter.check_in(prefix),
            Compare::Health { instance, equal: _, to: _ } => check_instance_name(prefix, instance),
            Compare::Token { lock, is: _, than: _ } => lock.check_in(prefix),
            Compare::Unchanged { scope, since: _ } => scope.check(prefix),
        }
    }
}

impl RecordName {
    pub(crate) fn check(&self, prefix: &str) -> Result<(), Refusal> {
        match self {
            RecordName::Namespace { name } => check_name(prefix, "name", name),
            RecordName::Service { namespace, name } => {
                check_name(prefix, "namespace", namespace)?;
                check_name(prefix, "name", name)
            }
            RecordName::Instance(name) => check_instance_name(prefix, name),
            RecordName::Config(name) => name.check_in(prefix),
            RecordName::Counter(name) => name.check_in(prefix),
            RecordName::Lock(name) => name.check_in(prefix),
            RecordName::Session { id: _ } => Ok(()),
        }
    }
}

impl Step {
    fn check(&self, prefix: &str) -> Result<(), Refusal> {
        match self {
            Step::Get(record) => record.check(prefix),
            Step::Range { scope, limit } => {
                scope.check(prefix)?;
                check_range(&format!("{prefix}limit"), *limit, &(1..=limits::PAGE as u64))
            }
            Step::Write(op) => {
                check_allowed(op, prefix)?;
                Command::check_op(op).map_err(|refusal| match refusal {
                    Refusal::Invalid { field, value, allowed } => {
                        Refusal::Invalid { field: format!("{prefix}{field}"), value, allowed }
                    }
                    other => other,
                })
            }
        }
    }
}

/// What a transaction may carry out: what can be taken back, and waits for nobody.
pub(in crate::state) fn check_allowed<T>(op: &Op<T>, prefix: &str) -> Result<(), Refusal> {
    let what = match op {
        Op::Register(_)
        | Op::Deregister { .. }
        | Op::UpdateInstance(_)
        | Op::PutService(_)
        | Op::DeleteService { .. }
        | Op::PublishConfig(_)
        | Op::RollbackConfig(_)
        | Op::AddCounter(_)
        | Op::SetCounter(_)
        | Op::ResetCounter { .. }
        | Op::DeleteCounter { .. }
        | Op::ReleaseLock { .. }
        | Op::UpdateLock { .. } => return Ok(()),
        Op::DeleteConfig(deletion) if !deletion.purge => return Ok(()),
        Op::AcquireLock(claim) if !claim.wait => return Ok(()),
        Op::DeleteConfig(_) => "a purge",
        Op::AcquireLock(_) => "waiting for a lock",
        Op::Txn(_) | Op::GuardedTxn { .. } => "a transaction",
        Op::OpenSession { .. } | Op::CloseSession { .. } | Op::ExpireSessions { .. } => "a session",
        Op::Reap { .. } => "the removal of orphans",
        Op::JudgeHealth { .. } => "a verdict of health checks",
        Op::PutNamespace { .. } | Op::DeleteNamespace { .. } => "a namespace",
        Op::AdmitMember { .. } | Op::RetireMember { .. } => "a member",
        Op::PutSchema(_) | Op::DeleteSchema { .. } => "a schema",
        Op::EndGray(_) | Op::JudgeGray { .. } => "the end of a gray release",
        Op::ReportConfig { .. } => "a report",
        Op::PutAlarm { .. }
        | Op::DeleteAlarm { .. }
        | Op::JudgeAlarm { .. }
        | Op::NotePost { .. } => "an alarm",
        Op::BeginSaga(_)
        | Op::SubmitSaga { .. }
        | Op::AbortSaga { .. }
        | Op::RegisterBranch { .. }
        | Op::AdvanceSagas { .. }
        | Op::OrderSaga { .. } => "a global transaction",
    };
    let allowed = "registrations, releases and rollbacks of configuration, counters, and locks \
                   that are not waited for";
    Err(invalid(format!("{prefix}write"), what, allowed))
}
