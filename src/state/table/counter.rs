//! Records of counters.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Key, Pairs};

/// A number that clients add to. There may be a million of them, and each is replaced with every add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Sorted by key, keys unique.
    pub labels: Pairs,
    pub kind: CounterKind,
    pub value: i64,
    /// What was added in the slot of the last change.
    pub open: Slot,
    /// The slots before it in which something was added, oldest first, as far as a window may reach
    /// back from `open`. Shared by all versions of the record until a slot is over.
    pub past: Arc<[Slot]>,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CounterKind {
    /// Only grows.
    Counter,
    Gauge,
}

/// What was added in one stretch of time: [`crate::limits::COUNTER_SLOT_MS`] from `number` times that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Slot {
    pub number: u64,
    /// Saturates.
    pub sum: i64,
}

impl Counter {
    pub fn key(&self) -> Key {
        Key::Counter {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            labels: self.labels.clone(),
        }
    }
}
