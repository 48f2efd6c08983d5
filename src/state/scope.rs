//! A part of the records: what a compare, a range or a watcher names.

use std::ops::Bound;

use serde::{Deserialize, Serialize};

use super::command::{Refusal, check_metric_name, check_name, check_text, invalid};
use super::table::Class;
use crate::limits;

/// The records of one class in one namespace whose names match.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Scope<T = String> {
    pub class: Class,
    pub namespace: T,
    /// Service, group of an item, gid of a global transaction, or the name of a counter, a lock or
    /// an alarm.
    pub first: Match<T>,
    /// Key of an item; nothing else has a second name: [`Match::Any`].
    pub second: Match<T>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Match<T = String> {
    Any,
    Exact(T),
    Prefix(T),
}

impl<T: AsRef<str>> Match<T> {
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Match::Any => true,
            Match::Exact(exact) => exact.as_ref() == name,
            Match::Prefix(prefix) => name.starts_with(prefix.as_ref()),
        }
    }

    /// Where names that match begin in their order; those that match are in a row.
    pub(super) fn from(&self) -> Bound<&str> {
        match self {
            Match::Any => Bound::Unbounded,
            Match::Exact(name) | Match::Prefix(name) => Bound::Included(name.as_ref()),
        }
    }
}

impl Match {
    fn check(&self, prefix: &str, field: &str, class: Class) -> Result<(), Refusal> {
        match self {
            Match::Any => Ok(()),
            Match::Exact(name) if class == Class::Counter => {
                check_metric_name(&format!("{prefix}{field}"), name)
            }
            Match::Exact(name) => check_name(prefix, field, name),
            Match::Prefix(name) => {
                check_text(&format!("{prefix}{field}"), name, limits::NAME_BYTES)
            }
        }
    }
}

impl Scope {
    pub fn check(&self, prefix: &str) -> Result<(), Refusal> {
        check_name(prefix, "namespace", &self.namespace)?;
        let first = match self.class {
            Class::Service => "service",
            Class::Config => "group",
            Class::Counter => "name",
            Class::Lock => "lock",
            Class::Alarm => "name",
            Class::Saga => "gid",
        };
        self.first.check(prefix, first, self.class)?;
        match (&self.second, self.class) {
            (second, Class::Config) => second.check(prefix, "key", self.class),
            (Match::Any, _) => Ok(()),
            (Match::Exact(name) | Match::Prefix(name), class) => {
                let allowed = format!("any: nothing of class {class:?} has a second name");
                Err(invalid(format!("{prefix}second"), name, allowed))
            }
        }
    }
}
