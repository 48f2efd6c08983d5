//! Commands of the configuration center and their limits.

use serde::{Deserialize, Serialize};

use super::super::table::{Content, Gate, Measure, Pairs, Picks};
use super::{Refusal, check_labels, check_name, check_pairs, check_range, check_text, invalid};
use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ItemName<T = String> {
    pub namespace: T,
    pub group: T,
    pub key: T,
}

/// A new release, for everybody or for some.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication<T = String> {
    pub name: ItemName<T>,
    pub content: Content,
    /// None = as they are.
    pub labels: Option<Pairs>,
    /// Past releases to keep; None = as it is.
    pub keep: Option<u32>,
    pub author: T,
    pub comment: T,
    /// Of the current release; 0 = there is none.
    pub expected_version: Option<u64>,
    /// The `mod_revision` of the schema that the content was checked against; 0 = the item had none.
    pub schema: u64,
    /// None = for everybody.
    pub gray: Option<GrayTerms<T>>,
}

/// Who gets a gray release, and what ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrayTerms<T = String> {
    pub rule: T,
    pub priority: u32,
    pub picks: Picks,
    /// The base of its measure is not looked at: the state knows it.
    pub gate: Option<Gate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigDeletion<T = String> {
    pub name: ItemName<T>,
    pub expected_version: Option<u64>,
    pub author: T,
    pub comment: T,
    /// Forgets the releases too.
    pub purge: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigRollback<T = String> {
    pub name: ItemName<T>,
    /// The release whose content becomes current again.
    pub version: u64,
    pub expected_version: Option<u64>,
    pub author: T,
    pub comment: T,
    /// As of [`Publication`].
    pub schema: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaPut<T = String> {
    pub name: ItemName<T>,
    pub text: T,
    /// The revision of the current release whose content was checked against the schema; 0 = there was no
    /// item. Versions begin anew when an item is purged, revisions do not.
    pub checked_revision: u64,
}

/// The end of a gray release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrayDecision<T = String> {
    pub name: ItemName<T>,
    pub rule: T,
    /// The version that is decided about; None = whichever runs.
    pub version: Option<u64>,
    /// To everybody; otherwise to nobody.
    pub promote: bool,
    pub author: T,
    pub comment: T,
    /// As of [`Publication`]; of no meaning without `promote`.
    pub schema: u64,
}

/// What a client runs of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Running<T = String> {
    pub name: ItemName<T>,
    pub version: u64,
    /// The gray release that it got; empty = the current one.
    pub rule: T,
}

impl ItemName {
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.check_in("")
    }

    pub(crate) fn check_in(&self, prefix: &str) -> Result<(), Refusal> {
        check_name(prefix, "namespace", &self.namespace)?;
        check_name(prefix, "group", &self.group)?;
        check_name(prefix, "key", &self.key)
    }
}

impl Publication {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()?;
        let bytes = self.content.bytes.len();
        if bytes > limits::CONFIG_VALUE_BYTES {
            let allowed = format!("at most {} bytes", limits::CONFIG_VALUE_BYTES);
            return Err(invalid("content", format!("{bytes} bytes"), allowed));
        }
        self.labels.as_ref().map_or(Ok(()), |labels| check_pairs("labels", labels))?;
        if let Some(keep) = self.keep {
            check_range("keep", u64::from(keep), &limits::CONFIG_KEEP)?;
        }
        check_note(&self.author, &self.comment)?;
        self.gray.as_ref().map_or(Ok(()), GrayTerms::check)
    }
}

impl GrayTerms {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_name("gray.", "rule", &self.rule)?;
        match &self.picks {
            Picks::Labels(labels) if labels.is_empty() => {
                return Err(invalid("gray.labels", "none", "1 label or more"));
            }
            Picks::Labels(labels) => check_pairs("gray.labels", labels)?,
            Picks::Clients(clients) => {
                let allowed = 1..=limits::CONFIG_GRAY_CLIENTS as u64;
                check_range("gray.clients", clients.len() as u64, &allowed)?;
                for (i, client) in clients.iter().enumerate() {
                    let field = format!("gray.clients[{i}]");
                    check_client(&field, client)?;
                    if i > 0 && clients[i - 1] >= *client {
                        return Err(invalid(field, client, "clients in order, each once"));
                    }
                }
            }
            Picks::Share { basis_points } => {
                check_range("gray.basis_points", u64::from(*basis_points), &(0..=10_000))?;
            }
        }
        let Some(gate) = &self.gate else { return Ok(()) };
        check_range("gray.gate.for_ms", gate.for_ms, &limits::CONFIG_GATE_MS)?;
        match &gate.measure {
            Measure::Counter { name, labels, base: _ } => {
                check_metric_name("gray.gate.counter", name)?;
                check_labels("gray.gate.labels", labels)
            }
            Measure::Unhealthy => check_range("gray.gate.bound", gate.bound, &(0..=100)),
        }
    }
}

pub(crate) use super::counter::check_metric_name;

impl ConfigDeletion {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()?;
        check_note(&self.author, &self.comment)
    }
}

impl ConfigRollback {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()?;
        check_note(&self.author, &self.comment)
    }
}

impl SchemaPut {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()?;
        let bytes = self.text.len();
        if bytes > limits::SCHEMA_BYTES {
            let allowed = format!("at most {} bytes", limits::SCHEMA_BYTES);
            return Err(invalid("schema", format!("{bytes} bytes"), allowed));
        }
        Ok(())
    }
}

impl GrayDecision {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check()?;
        check_name("", "rule", &self.rule)?;
        check_note(&self.author, &self.comment)
    }
}

impl Running {
    pub(super) fn check(&self, i: usize) -> Result<(), Refusal> {
        let prefix = format!("items[{i}].");
        self.name.check_in(&prefix)?;
        check_text(&format!("{prefix}rule"), &self.rule, limits::NAME_BYTES)
    }
}

/// Who a client says it is, to the configuration center.
pub(crate) fn check_client(field: &str, client: &str) -> Result<(), Refusal> {
    if client.is_empty() || client.len() > limits::NAME_BYTES {
        return Err(invalid(field, client, format!("1..={} bytes", limits::NAME_BYTES)));
    }
    Ok(())
}

fn check_note(author: &str, comment: &str) -> Result<(), Refusal> {
    check_text("author", author, limits::TEXT_BYTES)?;
    check_text("comment", comment, limits::COMMENT_BYTES)
}
