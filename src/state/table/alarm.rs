//! Records of alarms on counters.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Key, Pairs};

/// A rule, and how things stand by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub rule: AlarmRule,
    pub status: AlarmStatus,
    /// Since when, and what was measured then, in thousandths.
    pub since_ms: u64,
    pub measured_milli: i64,
    /// The number of its last raising or clearing. An alarm begins above all numbers that one of its name
    /// can have had before: at 0 where none was ever deleted.
    pub transitions: u64,
    /// The transition that the webhook was told last, or that was given up, and then why.
    pub posted: u64,
    pub post_error: String,
    pub create_revision: u64,
    pub mod_revision: u64,
}

/// When an alarm is raised: a measure of the sum of counters is beyond a bound for some time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmRule {
    /// The counters of this name that have all these labels; without any their sum is 0.
    pub counter: String,
    pub labels: Pairs,
    pub measure: AlarmMeasure,
    pub side: AlarmSide,
    /// In thousandths.
    pub bound_milli: i64,
    /// How long without a pause before the alarm is raised. It is cleared at once.
    pub for_ms: u64,
    /// Where each raising and clearing is posted; empty = nowhere.
    pub webhook: String,
    pub description: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlarmMeasure {
    Value,
    /// What was added per second in a window of so many slots.
    Rate {
        slots: u64,
    },
}

/// On which side of the bound the alarm is raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlarmSide {
    Above,
    Below,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AlarmStatus {
    Clear,
    /// Beyond the bound, not for long enough.
    Pending,
    Raised,
}

impl Alarm {
    /// Its webhook has not been told of its last transition.
    pub fn is_untold(&self) -> bool {
        !self.rule.webhook.is_empty() && self.posted < self.transitions
    }

    pub fn key(&self) -> Key {
        Key::Alarm { namespace: self.namespace.clone(), name: self.name.clone() }
    }
}
