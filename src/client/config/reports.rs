//! Tells the cluster what this client runs: as many items at once as have changed, again through each
//! new session, for a report lives as long as its session.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::time::sleep;

use super::{ConfigValue, Name, Shared};
use crate::client::remote::lock;
use crate::client::session::{Session, SessionOptions, SessionState};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;

/// What the client runs of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Running {
    /// Of the release: an item that was purged begins anew with version 1, and the cluster knows of no report.
    revision: u64,
    version: u64,
    rule: String,
    /// Of the value, see [`ConfigValue`].
    sequence: u64,
}

/// What the cluster should know.
#[derive(Debug, Default)]
pub struct Wanted {
    items: Mutex<BTreeMap<Name, Running>>,
    more: Notify,
}

impl Wanted {
    pub fn set(&self, value: &ConfigValue) {
        lock(&self.items).insert(value.name(), Running::of(value));
        self.more.notify_one();
    }

    /// As [`Wanted::set`], unless a later value was handed out meanwhile.
    pub fn advance(&self, value: &ConfigValue) {
        let mut items = lock(&self.items);
        let name = value.name();
        if items.get(&name).is_none_or(|known| known.sequence <= value.sequence) {
            items.insert(name, Running::of(value));
            drop(items);
            self.more.notify_one();
        }
    }

    pub fn forget(&self, name: &Name) {
        lock(&self.items).remove(name);
    }

    /// What one session may report: the first by name, should there be too many.
    fn all(&self) -> Vec<(Name, Running)> {
        let items = lock(&self.items);
        if items.len() > limits::CONFIG_REPORTS {
            let allowed = limits::CONFIG_REPORTS;
            tracing::warn!(items = items.len(), allowed, "not all configuration is reported");
        }
        let first = items.iter().take(limits::CONFIG_REPORTS);
        first.map(|(name, running)| (name.clone(), running.clone())).collect()
    }
}

impl Running {
    fn of(value: &ConfigValue) -> Running {
        let (revision, version, rule) = value.identity();
        Running { revision, version, rule: rule.to_owned(), sequence: value.sequence }
    }

    fn is_as(&self, other: &Running) -> bool {
        let what = |running: &Running| (running.revision, running.version);
        what(self) == what(other) && self.rule == other.rule
    }
}

/// Reports until the cache ends.
pub async fn run(shared: Arc<Shared>) {
    let mut own = None;
    tokio::select! {
        biased;
        () = shared.closed() => {}
        () = report(&shared, &mut own) => {}
    }
    // Closed at once, so that the client is not taken for lost.
    if let Some(session) = own
        && let Err(error) = session.close().await
    {
        tracing::debug!(%error, "session of a configuration cache not closed; it ends with its TTL");
    }
}

/// Returns when the session that was given has ended.
async fn report(shared: &Shared, own: &mut Option<Session>) {
    // What the cluster knows, and by which session.
    let mut told: BTreeMap<Name, Running> = BTreeMap::new();
    let mut told_by = 0;
    let mut attempt = 0;
    loop {
        let session = match (&shared.options.session, &*own) {
            (Some(session), _) | (None, Some(session)) => session.clone(),
            (None, None) => {
                shared.reports.more.notified().await;
                let opened = shared
                    .client
                    .session(SessionOptions {
                        ttl: shared.options.session_ttl,
                        client: Some(shared.options.client.id.clone()),
                        reopen: true,
                    })
                    .await;
                match opened {
                    Ok(session) => own.insert(session).clone(),
                    Err(error) => {
                        tracing::debug!(%error, "no session to report configuration with");
                        shared.reports.more.notify_one();
                        pause(shared, &mut attempt).await;
                        continue;
                    }
                }
            }
        };
        let mut states = session.subscribe();
        let id = match *states.borrow_and_update() {
            SessionState::Alive { session } => session,
            SessionState::Expired { .. } => 0,
            SessionState::Closed => return,
        };
        if id != told_by {
            (told, told_by) = (BTreeMap::new(), id);
        }
        let due: Vec<(Name, Running)> = match id {
            0 => Vec::new(),
            _ => shared.reports.all(),
        };
        let due: Vec<(Name, Running)> = due
            .into_iter()
            .filter(|(name, running)| told.get(name).is_none_or(|known| !known.is_as(running)))
            .collect();
        if due.is_empty() {
            tokio::select! {
                () = shared.reports.more.notified() => {
                    // What changes together is told together.
                    sleep(limits::CONFIG_REPORT_PAUSE).await;
                }
                // Its sender lives as long as `session`.
                _ = states.changed() => {}
            }
            continue;
        }
        match send(shared, &session, id, &due).await {
            Ok(()) => {
                told.extend(due);
                attempt = 0;
            }
            Err(error) => {
                tracing::debug!(%error, "configuration not reported; trying again");
                pause(shared, &mut attempt).await;
            }
        }
    }
}

async fn pause(shared: &Shared, attempt: &mut u32) {
    sleep(limits::FOLLOW_AGAIN.min(shared.client.backoff(*attempt) * 4)).await;
    *attempt += 1;
}

/// Reports all of them; what is refused for good, such as an item that was purged, counts as told.
async fn send(
    shared: &Shared,
    session: &Session,
    id: u64,
    due: &[(Name, Running)],
) -> Result<(), Error> {
    match call(shared, session, id, due).await {
        Err(error) if is_final(&error) && due.len() > 1 => {
            for one in due {
                match call(shared, session, id, std::slice::from_ref(one)).await {
                    Err(error) if is_final(&error) => {
                        tracing::debug!(%error, item = ?one.0, "a report is refused");
                    }
                    other => other?,
                }
            }
            Ok(())
        }
        Err(error) if is_final(&error) => {
            tracing::debug!(%error, "a report is refused");
            Ok(())
        }
        other => other,
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. } | Error::Invalid { .. } | Error::LimitReached { .. })
}

async fn call(
    shared: &Shared,
    session: &Session,
    id: u64,
    due: &[(Name, Running)],
) -> Result<(), Error> {
    let items = due.iter().map(|((group, key), running)| v1::ConfigRunning {
        namespace: shared.options.namespace.clone(),
        group: group.clone(),
        key: key.clone(),
        version: running.version,
        rule: running.rule.clone(),
    });
    let request = v1::ReportConfigRequest {
        session: id,
        client: shared.options.client.id.clone(),
        items: items.collect(),
        request_id: None,
    };
    shared.client.report_config(request, Some(session)).await.map(|_| ())
}
