//! Telling the outside of alarms: the leader posts each transition to the alarm's webhook until it is
//! taken, a bounded number of times, and notes in the state that it was told or given up. A new leader
//! goes on with what is not noted: so each is told at least once, and may be told twice.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::Semaphore;

use super::{Leadership, Node};
use crate::error::Error;
use crate::limits::{
    TEXT_BYTES, WEBHOOK_AGAIN, WEBHOOK_AGAIN_MAX, WEBHOOK_ATTEMPTS, WEBHOOK_TIMEOUT,
    WEBHOOKS_UNDER_WAY,
};
use crate::runtime;
use crate::state::{Alarm, AlarmName, AlarmSide, AlarmStatus, Command, Op};

/// How often it is looked for transitions to tell.
const TICK: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Posts over HTTP.
pub trait Webhooks: Send + Sync + Debug + 'static {
    /// Sends one JSON document. An answer other than 2xx is an error.
    fn post(&self, url: &str, body: String) -> BoxFuture<'static, Result<(), String>>;
}

/// Which transition of which alarm.
type Told = BTreeMap<(String, String), u64>;

/// Runs until the node is dropped.
pub async fn run(node: Node) {
    let permits = Arc::new(Semaphore::new(WEBHOOKS_UNDER_WAY));
    // What this leader is telling: kept until the state says that it was told.
    let mut telling = Told::new();
    loop {
        runtime::sleep(TICK).await;
        if !matches!(node.leadership(), Leadership::Leader { .. }) {
            telling.clear();
            continue;
        }
        let untold = node.read(|state| state.untold_alarms());
        let names = |alarm: &Alarm| (alarm.namespace.to_string(), alarm.name.to_string());
        telling.retain(|name, _| untold.iter().any(|alarm| names(alarm) == *name));
        for alarm in untold {
            let known = telling.get(&names(&alarm)).copied().unwrap_or(0);
            if known >= alarm.transitions {
                continue;
            }
            let Ok(permit) = permits.clone().try_acquire_owned() else { break };
            telling.insert(names(&alarm), alarm.transitions);
            let node = node.clone();
            runtime::spawn(async move {
                tell(&node, &alarm).await;
                drop(permit);
            });
        }
    }
}

async fn tell(node: &Node, alarm: &Alarm) {
    let error = post(node, alarm).await.err().unwrap_or_default();
    let (namespace, name) = (alarm.namespace.to_string(), alarm.name.to_string());
    if error.is_empty() {
        tracing::info!(namespace, name, transition = alarm.transitions, "webhook told");
    } else {
        tracing::warn!(namespace, name, transition = alarm.transitions, error, "webhook not told");
    }
    let op = Op::NotePost {
        name: AlarmName { namespace, name },
        transition: alarm.transitions,
        error: shortened(error),
    };
    let command = Command { request: None, op };
    // What is not noted is told again by the next leader.
    while matches!(node.leadership(), Leadership::Leader { .. }) {
        match node.propose_here(&command, TIMEOUT).await {
            Ok(_) => return,
            Err(error) => tracing::info!(%error, "a post to a webhook is not noted yet"),
        }
        runtime::sleep(WEBHOOK_AGAIN).await;
    }
}

async fn post(node: &Node, alarm: &Alarm) -> Result<(), String> {
    let url = &alarm.rule.webhook;
    // The list may be another one than when the alarm was put.
    node.check_webhook(url).map_err(|error| error.to_string())?;
    let body = body(alarm).to_string();
    let mut pause = WEBHOOK_AGAIN;
    let mut attempt = 1;
    loop {
        let posted = runtime::timeout(WEBHOOK_TIMEOUT, node.webhooks().post(url, body.clone()));
        let error = match posted.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {} s", WEBHOOK_TIMEOUT.as_secs()),
        };
        if attempt == WEBHOOK_ATTEMPTS {
            return Err(format!("given up after {attempt} attempts: {error}"));
        }
        tracing::debug!(url, attempt, error, "webhook not told yet");
        attempt += 1;
        runtime::sleep(pause).await;
        pause = (pause * 2).min(WEBHOOK_AGAIN_MAX);
        if !matches!(node.leadership(), Leadership::Leader { .. }) {
            return Err("another node leads".to_owned());
        }
    }
}

fn body(alarm: &Alarm) -> serde_json::Value {
    let rule = &alarm.rule;
    let labels: BTreeMap<&str, &str> = rule.labels.iter().collect();
    let milli = |value: i64| value as f64 / 1_000.0;
    json!({
        "alarm": &*alarm.name,
        "namespace": &*alarm.namespace,
        "status": match alarm.status {
            AlarmStatus::Raised => "raised",
            AlarmStatus::Clear | AlarmStatus::Pending => "cleared",
        },
        "counter": rule.counter,
        "labels": labels,
        "measured": milli(alarm.measured_milli),
        "bound": milli(rule.bound_milli),
        "side": match rule.side {
            AlarmSide::Above => "above",
            AlarmSide::Below => "below",
        },
        "since_ms": alarm.since_ms,
        "transition": alarm.transitions,
        "description": rule.description,
    })
}

fn shortened(mut error: String) -> String {
    if let Some(cut) = (0..=TEXT_BYTES.min(error.len())).rev().find(|i| error.is_char_boundary(*i))
    {
        error.truncate(cut);
    }
    error
}

impl Node {
    /// Refuses a URL that no `--webhook-allow` of this node begins.
    pub(super) fn check_webhook(&self, url: &str) -> Result<(), Error> {
        let allowed = &self.0.config.webhook_allow;
        if url.is_empty() || allowed.iter().any(|prefix| is_below(prefix, url)) {
            return Ok(());
        }
        let allowed = match allowed.is_empty() {
            true => "none: this node has no --webhook-allow".to_owned(),
            false => format!("a URL that begins with {}", allowed.join(" or ")),
        };
        Err(Error::invalid("alarm.webhook", url, allowed))
    }
}

/// Whole parts only: `http://hooks` is no beginning of `http://hooks.example.com`.
fn is_below(prefix: &str, url: &str) -> bool {
    let Some(rest) = url.strip_prefix(prefix) else { return false };
    prefix.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_allows_whole_parts() {
        for (prefix, url, allowed) in [
            ("http://hooks", "http://hooks", true),
            ("http://hooks", "http://hooks/a", true),
            ("http://hooks", "http://hooks?a", true),
            ("http://hooks/", "http://hooks/a", true),
            ("http://hooks", "http://hooks.example.com/", false),
            ("http://hooks", "http://hooks:8080/", false),
            ("http://hooks", "http://hooks@evil/", false),
            ("http://hooks/a", "http://hooks/b", false),
        ] {
            assert_eq!(is_below(prefix, url), allowed, "{prefix} {url}");
        }
    }
}
