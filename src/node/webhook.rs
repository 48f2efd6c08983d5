//! Telling the outside of alarms: the leader posts the last transition to the alarm's webhook until it is
//! taken, a bounded number of times, and notes in the state that it was told or given up. A new leader
//! goes on with what is not noted: so each is told at least once, unless a newer one overtakes it, and may be
//! told twice.
//!
//! Few posts are under way at a time, and fewer of them to one host; whoever pauses after a failure holds up nobody.
//!
//! Invariant: at most one task of a leader tells of an alarm.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::codegen::http::Uri;

use super::{Leadership, Node, is_below, shortened};
use crate::error::Error;
use crate::limits::{
    WEBHOOK_AGAIN, WEBHOOK_AGAIN_MAX, WEBHOOK_ATTEMPTS, WEBHOOK_TIMEOUT, WEBHOOKS_OF_HOST,
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

/// Who is being told, by namespace and name of the alarm.
type Telling = BTreeMap<(String, String), runtime::JoinHandle<()>>;

/// Who may post, in the order in which they ask.
#[derive(Debug)]
struct Turns {
    all: Arc<Semaphore>,
    hosts: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Turns {
    fn new() -> Turns {
        Turns { all: Arc::new(Semaphore::new(WEBHOOKS_UNDER_WAY)), hosts: Mutex::default() }
    }

    /// Waits for one to this URL; it is over when both are dropped.
    async fn take(&self, url: &str) -> [OwnedSemaphorePermit; 2] {
        let of_host = {
            let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
            hosts.retain(|_, turns| Arc::strong_count(turns) > 1);
            let turns = || Arc::new(Semaphore::new(WEBHOOKS_OF_HOST));
            hosts.entry(host(url)).or_insert_with(turns).clone()
        };
        // That of the host first: whoever waits for it leaves the other to those who can post.
        let of_host = take(of_host).await;
        [of_host, take(self.all.clone()).await]
    }
}

async fn take(turns: Arc<Semaphore>) -> OwnedSemaphorePermit {
    turns.acquire_owned().await.expect("nobody closes the semaphores of turns")
}

fn host(url: &str) -> String {
    let host = url.parse::<Uri>().ok().and_then(|url| Some(url.host()?.to_ascii_lowercase()));
    host.unwrap_or_default()
}

/// Runs until the node is dropped.
pub async fn run(node: Node) {
    let turns = Arc::new(Turns::new());
    let mut telling = Telling::new();
    loop {
        runtime::sleep(TICK).await;
        telling.retain(|_, task| !task.is_finished());
        if !matches!(node.leadership(), Leadership::Leader { .. }) {
            continue;
        }
        // As many as there are alarms at most.
        for alarm in node.read(|state| state.untold_alarms()) {
            let names = (alarm.namespace.to_string(), alarm.name.to_string());
            if telling.contains_key(&names) {
                continue;
            }
            let (node, turns, (namespace, name)) = (node.clone(), turns.clone(), names.clone());
            let task = runtime::spawn(async move { tell(&node, &turns, &namespace, &name).await });
            telling.insert(names, task);
        }
    }
}

/// Posts the newest transition of an alarm until it is taken or given up. One that comes meanwhile takes
/// its place: nobody hears of an older one after a newer one. It takes over the attempts too, or an alarm that
/// comes and goes would never be given up.
async fn tell(node: &Node, turns: &Turns, namespace: &str, name: &str) {
    let untold = || {
        let alarm = node.read(|state| state.alarm(namespace, name).cloned());
        alarm.filter(|alarm| alarm.is_untold())
    };
    let (mut attempt, mut pause) = (0, WEBHOOK_AGAIN);
    // What is not noted is told again by the next leader.
    while matches!(node.leadership(), Leadership::Leader { .. }) {
        let Some(waiting) = untold() else { return };
        let turn = turns.take(&waiting.rule.webhook).await;
        // That may have taken long.
        let Some(alarm) = untold() else { return };
        if alarm.rule.webhook != waiting.rule.webhook
            || !matches!(node.leadership(), Leadership::Leader { .. })
        {
            continue;
        }
        // The list may be another one than when the alarm was put.
        if let Err(error) = node.check_webhook(&alarm.rule.webhook) {
            drop(turn);
            return note(node, &alarm, error.to_string()).await;
        }
        let posted = post(node, &alarm).await;
        drop(turn);
        let Err(error) = posted else { return note(node, &alarm, String::new()).await };
        attempt += 1;
        if attempt == WEBHOOK_ATTEMPTS {
            let error = format!("given up after {attempt} attempts: {error}");
            return note(node, &alarm, error).await;
        }
        tracing::debug!(url = alarm.rule.webhook, attempt, error, "webhook not told yet");
        runtime::sleep(pause).await;
        pause = (pause * 2).min(WEBHOOK_AGAIN_MAX);
    }
}

/// One attempt.
async fn post(node: &Node, alarm: &Alarm) -> Result<(), String> {
    let posted = node.webhooks().post(&alarm.rule.webhook, body(alarm).to_string());
    match runtime::timeout(WEBHOOK_TIMEOUT, posted).await {
        Ok(result) => result,
        Err(_) => Err(format!("no answer within {} s", WEBHOOK_TIMEOUT.as_secs())),
    }
}

/// Notes that a transition was told, or, with an error, that it will not be.
async fn note(node: &Node, alarm: &Alarm, error: String) {
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
    while matches!(node.leadership(), Leadership::Leader { .. }) {
        match node.propose_here(&command, TIMEOUT).await {
            Ok(_) => return,
            Err(error) => tracing::info!(%error, "a post to a webhook is not noted yet"),
        }
        runtime::sleep(WEBHOOK_AGAIN).await;
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

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// A host takes no more than its own turns, and none of the others' while it waits for one.
    #[test]
    fn a_host_leaves_turns_to_the_others() {
        let turns = Turns::new();
        let take = |url: &str| turns.take(url).now_or_never();
        let dead = ["http://a.example/1", "https://A.example:8443/2?x"];
        let mut taken: Vec<_> = dead.iter().cycle().take(40).filter_map(|url| take(url)).collect();
        assert_eq!(taken.len(), WEBHOOKS_OF_HOST);
        taken.extend((0..40).filter_map(|i| take(&format!("http://b{i}.example/"))));
        assert_eq!(taken.len(), WEBHOOKS_UNDER_WAY);
        drop(taken);
        assert!(take(dead[0]).is_some());
        assert_eq!(turns.hosts.lock().unwrap_or_else(PoisonError::into_inner).len(), 1);
    }

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
            ("http://hooks/a", "http://hooks/a/../b", false),
            ("http://hooks/a/", "http://hooks/a/../b", false),
            ("http://hooks/a/", "http://hooks/a/%2E%2e/b", false),
            ("http://hooks/a/", "http://hooks/a/b.c", true),
        ] {
            assert_eq!(is_below(prefix, url), allowed, "{prefix} {url}");
        }
    }
}
