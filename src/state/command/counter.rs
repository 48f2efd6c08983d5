//! Commands of counters and their limits.

use serde::{Deserialize, Serialize};

use super::super::table::{CounterKind, Pairs};
use super::{Refusal, check_name, invalid};
use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct CounterName<T = String> {
    pub namespace: T,
    pub name: T,
    /// Sorted by key, keys unique.
    pub labels: Pairs,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addition<T = String> {
    pub name: CounterName<T>,
    /// None = what it is; a new one only grows.
    pub kind: Option<CounterKind>,
    pub delta: i64,
    /// Refused when a negative delta would take the value below it.
    pub floor: Option<i64>,
    /// Refused when a positive delta would take the value above it.
    pub ceil: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting<T = String> {
    pub name: CounterName<T>,
    /// None = what it is; a new one is a gauge.
    pub kind: Option<CounterKind>,
    pub value: i64,
    /// A counter that does not exist is at 0.
    pub expected: Option<i64>,
}

impl CounterName {
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.check_in("")
    }

    pub(crate) fn check_in(&self, prefix: &str) -> Result<(), Refusal> {
        check_name(prefix, "namespace", &self.namespace)?;
        check_metric_name(&format!("{prefix}name"), &self.name)?;
        check_labels(&format!("{prefix}labels"), &self.labels)
    }
}

/// Counters are series of Prometheus, so their names are what it takes. The prefix of the figures that
/// the node itself shows is not theirs.
pub(crate) fn check_metric_name(field: &str, name: &str) -> Result<(), Refusal> {
    let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b':';
    let first = |b: u8| rest(b) && !b.is_ascii_digit();
    if name.bytes().next().is_some_and(first)
        && name.bytes().all(rest)
        && name.len() <= limits::NAME_BYTES
        && !name.starts_with(limits::METRIC_PREFIX)
    {
        return Ok(());
    }
    let allowed = format!(
        "1..={} bytes of [A-Za-z0-9_:], not starting with a digit or with {:?}",
        limits::NAME_BYTES,
        limits::METRIC_PREFIX
    );
    Err(invalid(field, name, allowed))
}

pub(crate) fn check_labels(field: &str, labels: &Pairs) -> Result<(), Refusal> {
    let count = labels.len();
    if count > limits::COUNTER_LABELS {
        let allowed = format!("at most {} labels", limits::COUNTER_LABELS);
        return Err(invalid(field, format!("{count} labels"), allowed));
    }
    let mut last = "";
    for (key, value) in labels.iter() {
        let rest = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        let first = |b: u8| rest(b) && !b.is_ascii_digit();
        if !key.bytes().next().is_some_and(first)
            || !key.bytes().all(rest)
            || key.len() > limits::COUNTER_LABEL_BYTES
            || key.starts_with("__")
            || key == limits::NAMESPACE_LABEL
        {
            let allowed = format!(
                "1..={} bytes of [A-Za-z0-9_], not starting with a digit or \"__\", not {:?}",
                limits::COUNTER_LABEL_BYTES,
                limits::NAMESPACE_LABEL
            );
            return Err(invalid(format!("{field} key"), key, allowed));
        }
        if value.len() > limits::COUNTER_LABEL_BYTES {
            let allowed = format!("at most {} bytes", limits::COUNTER_LABEL_BYTES);
            return Err(invalid(format!("{field}[{key:?}]"), value, allowed));
        }
        if last >= key {
            return Err(invalid(format!("{field} key"), key, "keys in order, each once"));
        }
        last = key;
    }
    Ok(())
}

impl Addition {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()?;
        if let (Some(floor), Some(ceil)) = (self.floor, self.ceil)
            && floor > ceil
        {
            return Err(invalid("floor", floor.to_string(), format!("at most ceil, {ceil}")));
        }
        Ok(())
    }
}

impl Setting {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()
    }
}
