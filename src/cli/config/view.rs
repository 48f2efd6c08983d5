//! Records of the configuration center as JSON shows them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::content::Format;
use crate::proto::v1;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConfigItem {
    pub namespace: String,
    pub group: String,
    pub key: String,
    pub labels: BTreeMap<String, String>,
    pub release: Option<Release>,
    /// The gray release by which the client gets it; empty = the current one.
    pub rule: String,
    pub gray: Vec<Gray>,
    pub keep: u32,
    pub last_version: u64,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Release {
    pub version: u64,
    pub revision: u64,
    pub at_ms: u64,
    pub author: String,
    pub comment: String,
    pub origin: &'static str,
    pub origin_version: u64,
    pub origin_rule: String,
    pub format: &'static str,
    pub sha256: String,
    pub bytes: u64,
    pub ending: Option<&'static str>,
    pub ended_at_ms: u64,
    pub ended_by: String,
    /// When it is shown and UTF-8.
    pub content: Option<String>,
    /// When it is shown and not UTF-8.
    pub content_base64: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gray {
    pub rule: String,
    pub priority: u32,
    /// One of the three is set.
    pub labels: Option<BTreeMap<String, String>>,
    pub clients: Option<Vec<String>>,
    pub percent: Option<f64>,
    pub gate: Option<Gate>,
    pub since_ms: u64,
    pub release: Option<Release>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// None = the share of unhealthy clients is measured.
    pub counter: Option<Counter>,
    pub bound: u64,
    pub for_ms: u64,
    pub promote: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Counter {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub base: i64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Instance {
    pub client: String,
    pub session: u64,
    pub version: u64,
    pub rule: String,
    pub since_ms: u64,
    pub lost_at_ms: u64,
}

impl ConfigItem {
    pub fn of(item: v1::ConfigItem, contents: bool) -> ConfigItem {
        ConfigItem {
            namespace: item.namespace,
            group: item.group,
            key: item.key,
            labels: item.labels,
            release: item.release.map(|release| Release::of(release, contents)),
            rule: item.rule,
            gray: item.gray.into_iter().map(|gray| Gray::of(gray, contents)).collect(),
            keep: item.keep,
            last_version: item.last_version,
            create_revision: item.create_revision,
            mod_revision: item.mod_revision,
            created_at_ms: item.created_at_ms,
            modified_at_ms: item.modified_at_ms,
        }
    }
}

impl Release {
    pub fn of(release: v1::ConfigRelease, contents: bool) -> Release {
        let shown = contents && release.origin() != v1::ConfigOrigin::Deleted;
        let (content, content_base64) = match std::str::from_utf8(&release.content) {
            _ if !shown => (None, None),
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(&release.content))),
        };
        Release {
            origin: origin(release.origin()),
            format: format_name(release.format()),
            ending: ending(release.ending()),
            version: release.version,
            revision: release.revision,
            at_ms: release.at_ms,
            author: release.author,
            comment: release.comment,
            origin_version: release.origin_version,
            origin_rule: release.origin_rule,
            sha256: release.sha256,
            bytes: release.bytes,
            ended_at_ms: release.ended_at_ms,
            ended_by: release.ended_by,
            content,
            content_base64,
        }
    }

    /// How it came about and, of a gray one that is over, how it ended.
    pub fn how(&self) -> String {
        let came = match self.origin {
            "rolled back" => format!("rolled back to {}", self.origin_version),
            "promoted" => format!("promoted {}", self.origin_version),
            "gray" => format!("gray {}", self.origin_rule),
            other => other.to_owned(),
        };
        match self.ending {
            None => came,
            Some(ending) => format!("{came}, {ending}"),
        }
    }

    pub fn short_sha256(&self) -> String {
        self.sha256.chars().take(12).collect()
    }
}

impl Gray {
    pub fn of(gray: v1::GrayRelease, contents: bool) -> Gray {
        use v1::gray_terms::Picks;
        let v1::GrayRelease { terms, release, since_ms } = gray;
        let v1::GrayTerms { rule, priority, picks, gate } = terms.unwrap_or_default();
        let (mut labels, mut clients, mut percent) = (None, None, None);
        match picks {
            Some(Picks::Labels(picked)) => labels = Some(picked.labels),
            Some(Picks::Clients(picked)) => clients = Some(picked.clients),
            Some(Picks::BasisPoints(points)) => percent = Some(f64::from(points) / 100.0),
            // Of a later release.
            None => {}
        }
        let gate = gate.map(|gate| Gate {
            counter: match gate.measure {
                Some(v1::gate::Measure::Counter(v1::GateCounter { name, labels, base })) => {
                    Some(Counter { name, labels, base })
                }
                Some(v1::gate::Measure::Unhealthy(_)) | None => None,
            },
            bound: gate.bound,
            for_ms: gate.for_ms,
            promote: gate.promote,
        });
        let release = release.map(|release| Release::of(release, contents));
        Gray { rule, priority, labels, clients, percent, gate, since_ms, release }
    }
}

impl From<v1::ConfigInstance> for Instance {
    fn from(instance: v1::ConfigInstance) -> Instance {
        let v1::ConfigInstance { client, session, version, rule, since_ms, lost_at_ms } = instance;
        Instance { client, session, version, rule, since_ms, lost_at_ms }
    }
}

fn origin(origin: v1::ConfigOrigin) -> &'static str {
    match origin {
        v1::ConfigOrigin::Published => "published",
        v1::ConfigOrigin::RolledBack => "rolled back",
        v1::ConfigOrigin::Promoted => "promoted",
        v1::ConfigOrigin::Gray => "gray",
        v1::ConfigOrigin::Deleted => "deleted",
        v1::ConfigOrigin::Unspecified => "unknown",
    }
}

fn ending(ending: v1::GrayEnding) -> Option<&'static str> {
    match ending {
        v1::GrayEnding::Unspecified => None,
        v1::GrayEnding::Promoted => Some("promoted"),
        v1::GrayEnding::Aborted => Some("aborted"),
        v1::GrayEnding::RolledBack => Some("rolled back by its gate"),
    }
}

pub fn format_name(format: v1::ConfigFormat) -> &'static str {
    match format {
        v1::ConfigFormat::Unspecified | v1::ConfigFormat::Text => Format::Text.as_str(),
        v1::ConfigFormat::Json => Format::Json.as_str(),
        v1::ConfigFormat::Yaml => Format::Yaml.as_str(),
        v1::ConfigFormat::Toml => Format::Toml.as_str(),
        v1::ConfigFormat::Properties => Format::Properties.as_str(),
        v1::ConfigFormat::Binary => Format::Binary.as_str(),
    }
}

/// As the API numbers it.
pub fn wire_format(format: Format) -> v1::ConfigFormat {
    match format {
        Format::Text => v1::ConfigFormat::Text,
        Format::Json => v1::ConfigFormat::Json,
        Format::Yaml => v1::ConfigFormat::Yaml,
        Format::Toml => v1::ConfigFormat::Toml,
        Format::Properties => v1::ConfigFormat::Properties,
        Format::Binary => v1::ConfigFormat::Binary,
    }
}

/// For people and clap: `text`, `json`, ...
pub fn parse_format(given: &str) -> Result<Format, String> {
    let known = Format::ALL.into_iter().find(|format| format.as_str() == given);
    known.ok_or_else(|| {
        let names: Vec<&str> = Format::ALL.iter().map(|format| format.as_str()).collect();
        format!("allowed: {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_in_words() {
        let how = |release: v1::ConfigRelease| Release::of(release, false).how();
        let of = |origin: v1::ConfigOrigin| v1::ConfigRelease {
            origin: origin.into(),
            origin_version: 3,
            origin_rule: "canary".into(),
            ..Default::default()
        };
        assert_eq!(how(of(v1::ConfigOrigin::Published)), "published");
        assert_eq!(how(of(v1::ConfigOrigin::RolledBack)), "rolled back to 3");
        assert_eq!(how(of(v1::ConfigOrigin::Promoted)), "promoted 3");
        assert_eq!(how(of(v1::ConfigOrigin::Deleted)), "deleted");
        let gray = of(v1::ConfigOrigin::Gray);
        assert_eq!(how(gray.clone()), "gray canary");
        let ended = v1::ConfigRelease { ending: v1::GrayEnding::Aborted.into(), ..gray };
        assert_eq!(how(ended), "gray canary, aborted");
    }

    #[test]
    fn contents() {
        let release =
            |content: &[u8]| v1::ConfigRelease { content: content.to_vec(), ..Default::default() };
        let text = Release::of(release("größer".as_bytes()), true);
        assert_eq!((text.content.as_deref(), text.content_base64), (Some("größer"), None));
        let binary = Release::of(release(&[0xff, 0xfe, 0]), true);
        assert_eq!((binary.content, binary.content_base64.as_deref()), (None, Some("//4A")));
        let hidden = Release::of(release(b"x"), false);
        assert_eq!((hidden.content, hidden.content_base64), (None, None));
    }

    #[test]
    fn formats_go_round() {
        for format in Format::ALL {
            assert_eq!(format_name(wire_format(format)), format.as_str());
            assert_eq!(parse_format(format.as_str()), Ok(format));
        }
        assert!(parse_format("xml").is_err_and(|why| why.contains("properties")));
    }
}
