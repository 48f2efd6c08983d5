//! Commands of locks and their limits.

use serde::{Deserialize, Serialize};

use super::{Refusal, check_name, check_text};
use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LockName<T = String> {
    pub namespace: T,
    pub lock: T,
}

/// One who wants a lock, or has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder<T = String> {
    pub session: u64,
    /// Tells several that share a session apart; may be empty.
    pub name: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim<T = String> {
    pub lock: LockName<T>,
    pub holder: Holder<T>,
    pub value: T,
    /// Stands in line when the lock is held; otherwise refused.
    pub wait: bool,
}

/// Whose request for a lock ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leaving<T = String> {
    /// Whether it holds the lock or waits for it.
    Holder(Holder<T>),
    /// Whoever holds it with this fencing token.
    Token(u64),
    /// Whoever waits for it with this ticket.
    Place(u64),
}

impl LockName {
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.check_in("")
    }

    pub(crate) fn check_in(&self, prefix: &str) -> Result<(), Refusal> {
        check_name(prefix, "namespace", &self.namespace)?;
        check_name(prefix, "lock", &self.lock)
    }
}

impl Holder {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_text("holder", &self.name, limits::NAME_BYTES)
    }
}

impl Claim {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.lock.check()?;
        self.holder.check()?;
        check_value(&self.value)
    }
}

pub(super) fn check_value(value: &str) -> Result<(), Refusal> {
    check_text("value", value, limits::LOCK_VALUE_BYTES)
}

impl Leaving {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            Leaving::Holder(holder) => holder.check(),
            Leaving::Token(_) | Leaving::Place(_) => Ok(()),
        }
    }
}
