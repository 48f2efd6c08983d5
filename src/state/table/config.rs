//! Records of the configuration center.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::blob::Blob;
use super::{Key, Pairs};

/// An item with what is served of it now. What was served before is in its [`Release`]s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigItem {
    pub namespace: Arc<str>,
    pub group: Arc<str>,
    pub key: Arc<str>,
    /// What everybody gets whom no gray release picks. Without content: the item is deleted.
    pub current: Arc<Release>,
    /// What some get instead: the greatest priority first, then by name.
    pub gray: Vec<Arc<Gray>>,
    pub labels: Pairs,
    /// Releases that are kept behind the current one.
    pub keep: u32,
    /// Of the newest release, gray ones included. Versions only grow.
    pub last_version: u64,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

/// One version of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    pub version: u64,
    /// At which it was made.
    pub revision: u64,
    pub at_ms: u64,
    pub author: String,
    pub comment: String,
    pub origin: Origin,
    /// None = the item was deleted with this version.
    pub content: Option<Content>,
    /// How it ended as a gray release; None = it never was one, or still is.
    pub end: Option<GrayEnd>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    pub format: Format,
    pub bytes: Blob,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    Text,
    Json,
    Yaml,
    Toml,
    Properties,
    Binary,
}

/// How a release came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    Published,
    /// With the content of an earlier version.
    RolledBack {
        version: u64,
    },
    /// With the content of a gray release, which everybody got from then on.
    Promoted {
        version: u64,
    },
    /// For those that a rule picks.
    Gray {
        rule: String,
    },
    Deleted,
}

/// How a gray release ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrayEnd {
    pub at_ms: u64,
    pub how: Ending,
    /// Who, or which gate, and why.
    pub by: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    Promoted,
    Aborted,
    /// Its gate was crossed.
    RolledBack,
}

/// A release that some get instead of the current one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gray {
    /// Unique in its item.
    pub rule: Arc<str>,
    /// The greatest that picks a client decides.
    pub priority: u32,
    pub picks: Picks,
    pub gate: Option<Gate>,
    pub release: Arc<Release>,
    /// Since when the rule is as it is.
    pub since_ms: u64,
}

/// Which clients get a gray release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Picks {
    /// Those that have all these labels.
    Labels(Pairs),
    /// These; sorted, each once.
    Clients(Vec<String>),
    /// This part of all, in hundredths of a percent, by a stable hash of the client's id.
    Share { basis_points: u32 },
}

/// What ends a gray release without anybody's doing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    pub measure: Measure,
    /// The release is rolled back as soon as the measure is greater.
    pub bound: u64,
    /// How long the gate looks, from when the rule became as it is: whoever gives more clients the
    /// release has it looked at again.
    pub for_ms: u64,
    /// Once that time has passed, everybody gets the release; otherwise nothing happens.
    pub promote: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Measure {
    /// By how much the sum of the counters of this name with all these labels has grown since a gate
    /// of the release first looked at it, when it was `base`.
    Counter { name: String, labels: Pairs, base: i64 },
    /// Percent of the clients that got the release who were lost since and have not come back for a
    /// while, or who hold a critical instance.
    Unhealthy,
}

/// What content of an item must be like.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schema {
    pub namespace: Arc<str>,
    pub group: Arc<str>,
    pub key: Arc<str>,
    /// A JSON Schema.
    pub text: String,
    pub create_revision: u64,
    pub mod_revision: u64,
}

/// What a client says that it runs of an item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub namespace: Arc<str>,
    pub group: Arc<str>,
    pub key: Arc<str>,
    pub session: u64,
    /// The client's id.
    pub client: String,
    pub version: u64,
    /// The gray release that it got; empty = the current one.
    pub rule: String,
    pub since_ms: u64,
    /// When its session was lost. Only what was reported of a gray release that still runs is kept
    /// for so long, and only the last loss of a client.
    pub lost_at_ms: Option<u64>,
}

impl ConfigItem {
    pub fn key(&self) -> Key {
        Key::Config {
            namespace: self.namespace.clone(),
            group: self.group.clone(),
            key: self.key.clone(),
        }
    }

    /// The version that everybody gets; 0 = the item is deleted.
    pub fn version(&self) -> u64 {
        self.current.content.as_ref().map_or(0, |_| self.current.version)
    }

    pub fn gray(&self, rule: &str) -> Option<&Arc<Gray>> {
        self.gray.iter().find(|gray| *gray.rule == *rule)
    }
}

impl Release {
    /// Bytes of its content.
    pub fn len(&self) -> usize {
        self.content.as_ref().map_or(0, |content| content.bytes.len())
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
