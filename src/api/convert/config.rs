//! Configuration, between messages and the state's types.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{map, namespace, pairs, unknown};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::state::{self, ConfigClient, ConfigItem, ItemName};

/// An empty group is the default one.
pub fn item_name(namespace: String, group: String, key: String) -> ItemName {
    let group = if group.is_empty() { limits::DEFAULT_GROUP.to_owned() } else { group };
    ItemName { namespace: self::namespace(namespace), group, key }
}

pub fn publication(
    request: v1::PublishConfigRequest,
) -> Result<(state::Publication, Option<v1::RequestId>), Error> {
    let v1::PublishConfigRequest {
        namespace,
        group,
        key,
        format,
        content,
        labels,
        replace_labels,
        keep,
        author,
        comment,
        expected_version,
        gray,
        request_id,
    } = request;
    if !replace_labels && !labels.is_empty() {
        // Ignoring them would look like success.
        let value = format!("{} pairs", labels.len());
        return Err(Error::invalid("labels", value, "none unless replace_labels is true"));
    }
    let publication = state::Publication {
        name: item_name(namespace, group, key),
        content: state::Content { format: self::format(format)?, bytes: content.into() },
        labels: replace_labels.then(|| pairs(labels)),
        keep: (keep != 0).then_some(keep),
        author,
        comment,
        expected_version,
        // Found by the node, which checks the content.
        schema: 0,
        gray: gray.map(|terms| gray_terms(*terms)).transpose()?,
    };
    Ok((publication, request_id))
}

fn format(value: i32) -> Result<state::Format, Error> {
    Ok(match v1::ConfigFormat::try_from(value) {
        Ok(v1::ConfigFormat::Unspecified | v1::ConfigFormat::Text) => state::Format::Text,
        Ok(v1::ConfigFormat::Json) => state::Format::Json,
        Ok(v1::ConfigFormat::Yaml) => state::Format::Yaml,
        Ok(v1::ConfigFormat::Toml) => state::Format::Toml,
        Ok(v1::ConfigFormat::Properties) => state::Format::Properties,
        Ok(v1::ConfigFormat::Binary) => state::Format::Binary,
        Err(_) => {
            let allowed = "CONFIG_FORMAT_TEXT, _JSON, _YAML, _TOML, _PROPERTIES, _BINARY";
            return Err(unknown("format", value, allowed));
        }
    })
}

fn gray_terms(terms: v1::GrayTerms) -> Result<state::GrayTerms, Error> {
    let v1::GrayTerms { rule, priority, picks, gate } = terms;
    let picks = match picks {
        Some(v1::gray_terms::Picks::Labels(v1::LabelPicks { labels })) => {
            state::Picks::Labels(pairs(labels))
        }
        Some(v1::gray_terms::Picks::Clients(v1::ClientPicks { mut clients })) => {
            clients.sort();
            clients.dedup();
            state::Picks::Clients(clients)
        }
        Some(v1::gray_terms::Picks::BasisPoints(basis_points)) => {
            state::Picks::Share { basis_points }
        }
        None => {
            let allowed = "labels, clients or basis_points";
            return Err(Error::invalid("gray.picks", "none", allowed));
        }
    };
    let gate = gate.map(|gate| {
        let v1::Gate { measure, bound, for_ms, promote } = gate;
        let measure = match measure {
            Some(v1::gate::Measure::Counter(v1::GateCounter { name, labels, base: _ })) => {
                state::Measure::Counter { name, labels: pairs(labels), base: 0 }
            }
            Some(v1::gate::Measure::Unhealthy(true)) => state::Measure::Unhealthy,
            Some(v1::gate::Measure::Unhealthy(false)) | None => {
                let allowed = "counter, or unhealthy = true";
                return Err(Error::invalid("gray.gate.measure", "none", allowed));
            }
        };
        Ok(state::Gate { measure, bound, for_ms, promote })
    });
    Ok(state::GrayTerms { rule, priority, picks, gate: gate.transpose()? })
}

pub fn client(client: v1::ConfigClient) -> Result<ConfigClient, Error> {
    let v1::ConfigClient { id, labels } = client;
    let labels = pairs(labels);
    state::check_client("client.id", &id)?;
    state::check_pairs("client.labels", &labels)?;
    Ok(ConfigClient { id, labels })
}

// ---- to the wire ----

/// How much of an item is shown.
#[derive(Debug, Clone, Copy)]
pub enum Shown<'a> {
    /// The current release and all gray ones, with contents or without.
    All { contents: bool },
    /// What this client gets.
    To(&'a ConfigClient),
}

pub fn item(item: &ConfigItem, shown: Shown<'_>) -> v1::ConfigItem {
    let ConfigItem {
        namespace,
        group,
        key,
        current,
        gray,
        labels,
        keep,
        last_version,
        create_revision,
        mod_revision,
        created_at_ms,
        modified_at_ms,
    } = item;
    let (release, rule, gray) = match shown {
        Shown::All { contents } => {
            let gray = gray.iter().map(|gray| self::gray(gray, contents)).collect();
            (self::release(current, contents), String::new(), gray)
        }
        Shown::To(client) => match item.pick(client) {
            Some(gray) => (self::release(&gray.release, true), gray.rule.to_string(), vec![]),
            None => (self::release(current, true), String::new(), vec![]),
        },
    };
    v1::ConfigItem {
        namespace: namespace.to_string(),
        group: group.to_string(),
        key: key.to_string(),
        labels: map(labels),
        release: Some(release),
        rule,
        gray,
        keep: *keep,
        last_version: *last_version,
        create_revision: *create_revision,
        mod_revision: *mod_revision,
        created_at_ms: *created_at_ms,
        modified_at_ms: *modified_at_ms,
    }
}

/// Why a client gets what it gets.
pub fn why(item: &ConfigItem, client: &ConfigClient) -> String {
    let Some(gray) = item.pick(client) else {
        return match item.gray.len() {
            0 => "the current release; there is no gray one".to_owned(),
            count => format!("the current release: none of {count} gray rules picks the client"),
        };
    };
    let because = match &gray.picks {
        state::Picks::Labels(labels) => {
            let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("the client has {}", labels.join(", "))
        }
        state::Picks::Clients(_) => "the client is named".to_owned(),
        state::Picks::Share { basis_points } => {
            let percent = f64::from(*basis_points) / 100.0;
            format!("the client is among {percent} %")
        }
    };
    format!("gray rule {}: {because}", gray.rule)
}

fn gray(gray: &state::Gray, contents: bool) -> v1::GrayRelease {
    let state::Gray { rule, priority, picks, gate, release, since_ms } = gray;
    use v1::gray_terms::Picks;
    let picks = match picks {
        state::Picks::Labels(labels) => Picks::Labels(v1::LabelPicks { labels: map(labels) }),
        state::Picks::Clients(clients) => {
            Picks::Clients(v1::ClientPicks { clients: clients.clone() })
        }
        state::Picks::Share { basis_points } => Picks::BasisPoints(*basis_points),
    };
    let gate = gate.as_ref().map(|gate| {
        let state::Gate { measure, bound, for_ms, promote } = gate;
        let measure = match measure {
            state::Measure::Counter { name, labels, base } => {
                v1::gate::Measure::Counter(v1::GateCounter {
                    name: name.clone(),
                    labels: map(labels),
                    base: *base,
                })
            }
            state::Measure::Unhealthy => v1::gate::Measure::Unhealthy(true),
        };
        v1::Gate { measure: Some(measure), bound: *bound, for_ms: *for_ms, promote: *promote }
    });
    v1::GrayRelease {
        terms: Some(v1::GrayTerms {
            rule: rule.to_string(),
            priority: *priority,
            picks: Some(picks),
            gate,
        }),
        release: Some(self::release(release, contents)),
        since_ms: *since_ms,
    }
}

pub fn release(release: &state::Release, with_content: bool) -> v1::ConfigRelease {
    let state::Release { version, revision, at_ms, author, comment, origin, content, end } =
        release;
    let (origin, origin_version, origin_rule) = match origin {
        state::Origin::Published => (v1::ConfigOrigin::Published, 0, ""),
        state::Origin::RolledBack { version } => (v1::ConfigOrigin::RolledBack, *version, ""),
        state::Origin::Promoted { version } => (v1::ConfigOrigin::Promoted, *version, ""),
        state::Origin::Gray { rule } => (v1::ConfigOrigin::Gray, 0, rule.as_str()),
        state::Origin::Deleted => (v1::ConfigOrigin::Deleted, 0, ""),
    };
    let format = content.as_ref().map_or(v1::ConfigFormat::Unspecified, |c| match c.format {
        state::Format::Text => v1::ConfigFormat::Text,
        state::Format::Json => v1::ConfigFormat::Json,
        state::Format::Yaml => v1::ConfigFormat::Yaml,
        state::Format::Toml => v1::ConfigFormat::Toml,
        state::Format::Properties => v1::ConfigFormat::Properties,
        state::Format::Binary => v1::ConfigFormat::Binary,
    });
    let ending = end.as_ref().map_or(v1::GrayEnding::Unspecified, |end| match end.how {
        state::Ending::Promoted => v1::GrayEnding::Promoted,
        state::Ending::Aborted => v1::GrayEnding::Aborted,
        state::Ending::RolledBack => v1::GrayEnding::RolledBack,
    });
    let bytes = content.as_ref().map_or(&[][..], |content| content.bytes.as_bytes());
    v1::ConfigRelease {
        version: *version,
        revision: *revision,
        at_ms: *at_ms,
        author: author.clone(),
        comment: comment.clone(),
        origin: origin.into(),
        origin_version,
        origin_rule: origin_rule.to_owned(),
        format: format.into(),
        content: if with_content { bytes.to_vec() } else { Vec::new() },
        sha256: content.as_ref().map(|_| sha256(bytes)).unwrap_or_default(),
        bytes: bytes.len() as u64,
        ending: ending.into(),
        ended_at_ms: end.as_ref().map_or(0, |end| end.at_ms),
        ended_by: end.as_ref().map(|end| end.by.clone()).unwrap_or_default(),
    }
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    Sha256::digest(bytes).iter().fold(String::with_capacity(64), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

pub fn report(report: &state::Report) -> v1::ConfigInstance {
    let state::Report { session, client, version, rule, since_ms, lost_at_ms, .. } = report;
    v1::ConfigInstance {
        client: client.clone(),
        session: *session,
        version: *version,
        rule: rule.clone(),
        since_ms: *since_ms,
        lost_at_ms: lost_at_ms.unwrap_or(0),
    }
}

/// What was removed: its names.
pub fn item_names(namespace: &str, group: &str, key: &str) -> v1::ConfigItem {
    v1::ConfigItem {
        namespace: namespace.to_owned(),
        group: group.to_owned(),
        key: key.to_owned(),
        labels: BTreeMap::new(),
        ..v1::ConfigItem::default()
    }
}
