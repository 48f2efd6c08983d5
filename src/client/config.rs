//! Configuration as a program holds it: the current values of some items in memory, kept up to date by a
//! watch, on disk for a start without the cluster, and reported as what this client runs.
//!
//! Invariant: a value is only ever replaced by what the cluster says. While no node can be reached the
//! last values stay; an item that is deleted is gone at once, in memory and on disk.
//!
//! One task follows the watch and is the only writer of the values; one writes files, one reports. Each
//! of the latter two works through names that are due, each name once, so that neither a slow disk nor
//! a cluster without a leader ever holds a value back or makes a queue grow.

mod changes;
mod disk;
mod reports;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::connection::Client;
use super::remote::{lock, spawn};
use super::session::Session;
use super::watch::{Following, WatchRange, WatchUpdate};
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, watch_event};

pub use changes::{ConfigChange, ConfigChanges};

/// Group and key.
type Name = (String, String);
/// By group, then key: looked up without making a name.
type Values = BTreeMap<String, BTreeMap<String, Arc<ConfigValue>>>;

/// What a [`ConfigCache`] holds, as whom, and what it does besides.
#[derive(Debug, Clone)]
pub struct ConfigCacheOptions {
    /// Empty = "default".
    pub namespace: String,
    /// 1..=32.
    pub items: Vec<ConfigItems>,
    /// Whose values they are: gray releases pick clients by id and labels. The id is 1..=128 bytes and
    /// should be the same after a restart of the program.
    pub client: v1::ConfigClient,
    pub reporting: Reporting,
    /// Reports go through this session; None = one of the cache's own, opened when there is something
    /// to report, and again when it was lost. A gate that looks for critical instances finds those of this session:
    /// register the program's instance with the same.
    pub session: Option<Session>,
    /// TTL of the cache's own session: how long the client is listed after it has died.
    pub session_ttl: Duration,
    /// Where the last values are kept. Made when it does not exist; of one cache at a time.
    pub directory: Option<PathBuf>,
}

/// An item, or many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfigItems {
    /// An empty group means "default".
    Key { group: String, key: String },
    /// Keys that start with this; in all groups when the group is empty.
    Prefix { group: String, prefix: String },
}

/// What the cluster is told that this client runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reporting {
    Off,
    /// Each value that the program was given, by [`ConfigCache::get`] or as a change.
    #[default]
    HandedOut,
    /// What the program says it has applied, see [`ConfigCache::applied`].
    Explicit,
}

impl ConfigCacheOptions {
    pub fn new(client_id: impl Into<String>) -> ConfigCacheOptions {
        ConfigCacheOptions {
            namespace: String::new(),
            items: Vec::new(),
            client: v1::ConfigClient { id: client_id.into(), labels: BTreeMap::new() },
            reporting: Reporting::default(),
            session: None,
            session_ttl: Duration::from_millis(limits::DEFAULT_SESSION_TTL_MS),
            directory: None,
        }
    }

    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    pub fn key(mut self, group: impl Into<String>, key: impl Into<String>) -> Self {
        self.items.push(ConfigItems::Key { group: group.into(), key: key.into() });
        self
    }

    pub fn prefix(mut self, group: impl Into<String>, prefix: impl Into<String>) -> Self {
        self.items.push(ConfigItems::Prefix { group: group.into(), prefix: prefix.into() });
        self
    }

    pub fn label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.client.labels.insert(name.into(), value.into());
        self
    }

    pub fn reporting(mut self, reporting: Reporting) -> Self {
        self.reporting = reporting;
        self
    }

    pub fn session(mut self, session: Session) -> Self {
        self.session = Some(session);
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    fn check(&self) -> Result<(), Error> {
        if self.items.is_empty() || self.items.len() > limits::WATCH_SELECTORS {
            let allowed = format!("1..={}", limits::WATCH_SELECTORS);
            return Err(Error::invalid("items", self.items.len().to_string(), allowed));
        }
        let id = &self.client.id;
        if id.is_empty() || id.len() > limits::NAME_BYTES {
            let allowed = format!("1..={} bytes", limits::NAME_BYTES);
            return Err(Error::invalid("client.id", id, allowed));
        }
        Ok(())
    }

    fn range(&self) -> WatchRange {
        let ranges = self.items.iter().map(|items| {
            let namespace = self.namespace.clone();
            match items.clone() {
                ConfigItems::Key { group, key } => WatchRange::Config { namespace, group, key },
                ConfigItems::Prefix { group, prefix } => {
                    WatchRange::ConfigPrefix { namespace, group, prefix }
                }
            }
        });
        WatchRange::Many(ranges.collect())
    }

    fn holds(&self, item: &v1::ConfigItem) -> bool {
        item.namespace == or_default(&self.namespace, limits::DEFAULT_NAMESPACE)
            && self.items.iter().any(|items| match items {
                ConfigItems::Key { group, key } => {
                    item.group == or_default(group, limits::DEFAULT_GROUP) && item.key == *key
                }
                ConfigItems::Prefix { group, prefix } => {
                    (group.is_empty() || item.group == *group) && item.key.starts_with(prefix)
                }
            })
    }
}

/// The name that an empty one means.
pub(super) fn or_default<'a>(name: &'a str, default: &'a str) -> &'a str {
    if name.is_empty() { default } else { name }
}

/// What this client gets of one item.
#[derive(Debug)]
pub struct ConfigValue {
    item: v1::ConfigItem,
    stale: bool,
    /// Grows with each value that arrives.
    sequence: u64,
    handed_out: AtomicBool,
}

impl ConfigValue {
    fn new(item: v1::ConfigItem, sequence: u64, stale: bool) -> Arc<ConfigValue> {
        let handed_out = AtomicBool::new(false);
        Arc::new(ConfigValue { item, stale, sequence, handed_out })
    }

    pub fn content(&self) -> &[u8] {
        self.item.release.as_ref().map_or(&[], |release| &release.content)
    }

    /// None when it is not UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.content()).ok()
    }

    pub fn format(&self) -> v1::ConfigFormat {
        self.item.release.as_ref().map_or(v1::ConfigFormat::Unspecified, |r| r.format())
    }

    pub fn version(&self) -> u64 {
        self.item.release.as_ref().map_or(0, |release| release.version)
    }

    /// The gray release by which this client gets it; empty = it is the current one.
    pub fn rule(&self) -> &str {
        &self.item.rule
    }

    /// True for what was read from disk and not yet confirmed by the cluster.
    pub fn is_stale(&self) -> bool {
        self.stale
    }

    pub fn group(&self) -> &str {
        &self.item.group
    }

    pub fn key(&self) -> &str {
        &self.item.key
    }

    /// With labels, author, times and all else that is known.
    pub fn item(&self) -> &v1::ConfigItem {
        &self.item
    }

    fn name(&self) -> Name {
        (self.item.group.clone(), self.item.key.clone())
    }

    /// What tells one value of an item from another. Not the version: an item that was purged begins
    /// anew.
    fn identity(&self) -> (u64, u64, &str) {
        let revision = self.item.release.as_ref().map_or(0, |release| release.revision);
        (revision, self.version(), self.rule())
    }
}

/// How far a cache is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigCacheStatus {
    /// The cluster has answered: no value is stale.
    pub synced: bool,
    /// Up to which the values are complete; 0 before the cluster has answered.
    pub revision: u64,
    /// Why the values are not followed now; nodes that cannot be reached are no error.
    pub error: Option<Error>,
}

/// The current values of some items. Clones are the same cache; it ends with the last of them.
#[derive(Clone)]
pub struct ConfigCache {
    shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

struct Shared {
    client: Client,
    options: ConfigCacheOptions,
    values: RwLock<Values>,
    status: watch::Sender<ConfigCacheStatus>,
    /// Held while values change, so that a new subscriber misses nothing and gets nothing twice.
    subscribers: Mutex<changes::Subscribers>,
    reports: reports::Wanted,
    /// Names whose files are not as the values are.
    unsaved: Mutex<BTreeSet<Name>>,
    unsaved_more: Notify,
    /// No more names will come.
    unsaved_all: AtomicBool,
    closing: watch::Sender<bool>,
    /// Tasks that run.
    running: watch::Sender<usize>,
}

/// Exists as long as somebody holds the cache; the tasks hold only `Shared`.
struct Guard {
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.end();
    }
}

impl fmt::Debug for ConfigCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigCache")
            .field("items", &self.shared.options.items)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a cache: reads what is on disk and begins to follow the cluster, for which it does not
    /// wait, see [`ConfigCache::synced`].
    ///
    /// ```no_run
    /// use quorate::client::{Client, ConfigCacheOptions, Options};
    ///
    /// # async fn example() -> Result<(), quorate::error::Error> {
    /// let client = Client::connect(Options::new(["10.0.0.1:7650", "10.0.0.2:7650"]))?;
    /// let options = ConfigCacheOptions::new("orders-1")
    ///     .label("zone", "eu-1")
    ///     .key("orders", "limits.json")
    ///     .directory("/var/cache/orders/config");
    /// let cache = client.config_cache(options).await?;
    /// let limits = cache.get("orders", "limits.json");
    /// # Ok(())
    /// # }
    /// ```
    pub async fn config_cache(&self, options: ConfigCacheOptions) -> Result<ConfigCache, Error> {
        options.check()?;
        let (store, found) = match &options.directory {
            None => (None, Vec::new()),
            Some(directory) => {
                let (directory, wanted) = (directory.clone(), options.clone());
                let open = move || {
                    let namespace = or_default(&wanted.namespace, limits::DEFAULT_NAMESPACE);
                    disk::Store::open(directory, namespace, |item| wanted.holds(item))
                };
                let opened = tokio::task::spawn_blocking(open).await;
                let opened = opened.map_err(Error::internal)?.map_err(|error| {
                    let shown = options.directory.clone().unwrap_or_default();
                    Error::invalid("directory", shown.display().to_string(), error.to_string())
                })?;
                (Some(opened.0), opened.1)
            }
        };
        let mut values = Values::new();
        for item in found {
            let value = ConfigValue::new(item, 0, true);
            let group = values.entry(value.item.group.clone()).or_default();
            group.insert(value.item.key.clone(), value);
        }
        let shared = Arc::new(Shared {
            client: self.clone(),
            reports: reports::Wanted::default(),
            options,
            values: RwLock::new(values),
            status: watch::Sender::default(),
            subscribers: Mutex::default(),
            unsaved: Mutex::default(),
            unsaved_more: Notify::new(),
            unsaved_all: AtomicBool::new(false),
            closing: watch::Sender::new(false),
            running: watch::Sender::new(0),
        });
        let following = shared.clone();
        shared.run(async move {
            follow(following.clone()).await;
            following.unsaved_all.store(true, Ordering::Release);
            following.unsaved_more.notify_one();
        });
        if shared.options.reporting != Reporting::Off {
            shared.run(reports::run(shared.clone()));
        }
        if let Some(store) = store {
            shared.run(save(shared.clone(), store));
        }
        let guard = Arc::new(Guard { shared: shared.clone() });
        Ok(ConfigCache { shared, _guard: guard })
    }
}

impl ConfigCache {
    /// The value of an item; None when there is none, or when nothing is known yet. An empty group
    /// means "default". Takes well under a microsecond: the only lock is held by others for a few
    /// insertions at most.
    pub fn get(&self, group: &str, key: &str) -> Option<Arc<ConfigValue>> {
        let value = self.shared.value(or_default(group, limits::DEFAULT_GROUP), key)?;
        self.shared.hand_out(&value);
        Some(value)
    }

    /// All values of one moment, by group and key. They do not count as handed out.
    pub fn all(&self) -> Vec<Arc<ConfigValue>> {
        self.shared.all()
    }

    /// What there is, as changes from nothing, then every change. Who reads slowly gets several changes
    /// of an item as one; no item is left out.
    pub fn changes(&self) -> ConfigChanges {
        ConfigChanges::new(self.shared.clone())
    }

    /// Says that the program now runs this value, with [`Reporting::Explicit`].
    pub fn applied(&self, value: &ConfigValue) {
        if self.shared.options.reporting == Reporting::Explicit {
            self.shared.reports.set(value);
        }
    }

    pub fn status(&self) -> ConfigCacheStatus {
        self.shared.status.borrow().clone()
    }

    /// Returns when the cluster has answered and no value is stale, or with the error for which it
    /// does not answer, such as a name that is not allowed. Waits for nodes for as long as it takes.
    pub async fn synced(&self) -> Result<(), Error> {
        let mut status = self.shared.status.subscribe();
        let known = status.wait_for(|status| status.synced || status.error.is_some()).await;
        let known = known.map_err(Error::internal)?;
        match &known.error {
            Some(error) if !known.synced => Err(error.clone()),
            Some(_) | None => Ok(()),
        }
    }

    /// Follows nothing any more, writes what is not yet on disk and ends the cache's own session. The
    /// values stay as they are.
    pub async fn close(&self) {
        self.shared.end();
        let mut running = self.shared.running.subscribe();
        // What takes longer than a call goes on by itself.
        let _ = timeout(self.shared.client.timeout(), running.wait_for(|count| *count == 0)).await;
    }
}

impl Shared {
    fn run(self: &Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|count| *count += 1);
        let shared = self.clone();
        spawn(async move {
            task.await;
            shared.running.send_modify(|count| *count -= 1);
        });
    }

    fn end(&self) {
        self.closing.send_replace(true);
        lock(&self.subscribers).end();
    }

    async fn closed(&self) {
        // An error means that the sender is gone, which cannot be: `self` holds it.
        let _ = self.closing.subscribe().wait_for(|closing| *closing).await;
    }

    fn value(&self, group: &str, key: &str) -> Option<Arc<ConfigValue>> {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        values.get(group)?.get(key).cloned()
    }

    fn all(&self) -> Vec<Arc<ConfigValue>> {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        values.values().flat_map(BTreeMap::values).cloned().collect()
    }

    fn hand_out(&self, value: &ConfigValue) {
        if !value.handed_out.load(Ordering::Relaxed)
            && !value.handed_out.swap(true, Ordering::Relaxed)
            && self.options.reporting == Reporting::HandedOut
        {
            self.reports.advance(value);
        }
    }

    /// Takes what the watch says; returns the names whose files may have to change.
    fn take(&self, update: WatchUpdate, sequence: &mut u64) -> BTreeSet<Name> {
        let revision = update.revision();
        let first = !self.status.borrow().synced;
        let (events, whole) = match update {
            WatchUpdate::Bookmark { .. } => (Vec::new(), false),
            WatchUpdate::Changes { events, .. } => (events, false),
            WatchUpdate::Snapshot { events, .. } => (events, true),
        };
        // What is there afterwards of each name that is told.
        let mut told: BTreeMap<Name, Option<Arc<ConfigValue>>> = BTreeMap::new();
        for event in events {
            // A record of a later release's kind is none of ours.
            let Some(watch_event::Record::Config(item)) = event.record else { continue };
            *sequence += 1;
            let name = (item.group.clone(), item.key.clone());
            let value = (!event.deleted).then(|| ConfigValue::new(item, *sequence, false));
            told.insert(name, value);
        }
        if whole {
            for value in self.all() {
                told.entry(value.name()).or_insert(None);
            }
        }
        let mut subscribers = lock(&self.subscribers);
        let mut changes = Vec::new();
        {
            // Only insertions are made under this lock; old values are dropped after it.
            let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
            for ((group, key), after) in &told {
                let before = match after {
                    Some(value) => {
                        let group = match values.get_mut(group) {
                            Some(group) => group,
                            None => values.entry(group.clone()).or_default(),
                        };
                        group.insert(key.clone(), value.clone())
                    }
                    None => values.get_mut(group).and_then(|group| group.remove(key)),
                };
                changes.push((before, after.clone()));
            }
        }
        for (before, after) in changes {
            match (&before, &after) {
                (Some(old), Some(new)) if old.identity() == new.identity() => {
                    // The program may still hold what it was given, so it runs this one.
                    if old.handed_out.load(Ordering::Relaxed) {
                        self.hand_out(new);
                    }
                    continue;
                }
                (Some(old), None) => self.reports.forget(&old.name()),
                (None, None) => continue,
                (_, Some(_)) => {}
            }
            subscribers.tell(before, after);
        }
        drop(subscribers);
        self.status.send_modify(|status| {
            let synced = status.synced || whole;
            *status = ConfigCacheStatus { synced, revision, error: None };
        });
        if first && whole {
            tracing::debug!(revision, "configuration synced");
        }
        told.into_keys().collect()
    }
}

/// Follows the cluster until the cache ends.
async fn follow(shared: Arc<Shared>) {
    let mut sequence = 0;
    let floor = shared.all().iter().map(|value| value.item.mod_revision).max().unwrap_or(0);
    let following = Following::new(&shared.client, shared.options.range(), floor);
    let mut following = following.seen_by(shared.options.client.clone());
    loop {
        let update = tokio::select! {
            biased;
            () = shared.closed() => return,
            update = following.next() => update,
        };
        match update {
            Ok(update) => {
                let names = shared.take(update, &mut sequence);
                if shared.options.directory.is_some() && !names.is_empty() {
                    lock(&shared.unsaved).extend(names);
                    shared.unsaved_more.notify_one();
                }
            }
            Err(error) => {
                tracing::warn!(%error, "configuration is not followed; trying again");
                shared.status.send_modify(|status| status.error = Some(error));
            }
        }
    }
}

/// Keeps the files as the values are, until the cache ends and the last value is written.
async fn save(shared: Arc<Shared>, mut store: disk::Store) {
    loop {
        // In this order: what came before the end is seen.
        let all = shared.unsaved_all.load(Ordering::Acquire);
        let names = std::mem::take(&mut *lock(&shared.unsaved));
        if names.is_empty() {
            if all {
                return;
            }
            shared.unsaved_more.notified().await;
            continue;
        }
        let states: Vec<_> = names
            .into_iter()
            .map(|name| {
                let value = shared.value(&name.0, &name.1);
                (name, value)
            })
            .collect();
        let write = move || {
            let failed = store.save(states);
            (store, failed)
        };
        // An error means that the runtime ends.
        let Ok((returned, failed)) = tokio::task::spawn_blocking(write).await else { return };
        store = returned;
        let Some((error, names)) = failed else { continue };
        tracing::warn!(%error, items = names.len(), "configuration not written to disk; trying again");
        if all {
            return;
        }
        lock(&shared.unsaved).extend(names);
        tokio::select! {
            biased;
            () = shared.closed() => {}
            () = sleep(limits::FOLLOW_AGAIN) => {}
        }
    }
}
