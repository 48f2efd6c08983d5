//! What a client knows of a service: its instances and its settings, kept up to date by one watch.
//!
//! Everything that is known is one immutable [`ServiceState`] behind an atomic swap: whoever looks sees
//! instances, weights, health and policy of one revision. Many changes within a short time become one
//! state; the first of them is not held up.
//!
//! Invariants:
//! - a state is only ever replaced by what the cluster says: while no node can be reached the last one
//!   stays;
//! - a service with a protect threshold is never left without instances: when the last one goes, those
//!   that were there stay, and the state says so.

mod disk;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use arc_swap::ArcSwap;
use futures::{Stream, stream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tower::discover::Change;

use super::config::or_default;
use super::connection::Client;
use super::remote::{lock, spawn};
use super::watch::{Following, WatchRange, WatchUpdate};
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, watch_event};

/// Which service, and where the last state is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveryOptions {
    /// Empty = "default".
    pub namespace: String,
    pub service: String,
    /// For a start while the cluster cannot be reached. Made when it does not exist; may be shared by
    /// services, but not by processes.
    pub directory: Option<PathBuf>,
}

impl DiscoveryOptions {
    pub fn new(service: impl Into<String>) -> DiscoveryOptions {
        DiscoveryOptions { namespace: String::new(), service: service.into(), directory: None }
    }

    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }
}

/// A service at one revision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ServiceState {
    /// 0 = nothing is known yet.
    pub revision: u64,
    /// All of them by id, also those that take no calls.
    pub instances: BTreeMap<String, Arc<v1::Instance>>,
    /// None: the service exists through its instances only, or not at all.
    pub settings: Option<Arc<v1::Service>>,
    /// Fewer instances are healthy than the service's protect threshold asks for: all count as healthy,
    /// because it is less likely that they all are broken than that something is wrong with the checks.
    pub protected: bool,
    /// Read from disk, and not confirmed by the cluster yet.
    pub stale: bool,
}

impl ServiceState {
    /// The instances that should get calls, by id.
    pub fn usable(&self) -> impl Iterator<Item = &Arc<v1::Instance>> {
        self.instances.values().filter(|instance| self.is_usable(instance))
    }

    fn is_usable(&self, instance: &v1::Instance) -> bool {
        is_enabled(instance) && (self.protected || is_well(instance))
    }
}

fn is_enabled(instance: &v1::Instance) -> bool {
    let enabled = matches!(instance.admin(), v1::Admin::Enabled | v1::Admin::Unspecified);
    enabled && instance.weight != Some(0)
}

pub(super) fn is_well(instance: &v1::Instance) -> bool {
    instance.health() != v1::Health::Critical
}

/// How far a discovery is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DiscoveryStatus {
    /// The cluster has answered: the state is not stale.
    pub synced: bool,
    /// Why the service is not followed now; nodes that cannot be reached are no error.
    pub error: Option<Error>,
}

/// Follows one service. Clones are the same; the watch ends with the last of them.
#[derive(Clone)]
pub struct Discovery {
    handle: Arc<Handle>,
}

pub(super) struct Handle {
    shared: Arc<Shared>,
}

/// The discoveries that somebody holds, by namespace and service: one watch serves all who ask for the same.
#[derive(Default)]
pub(super) struct Discoveries(BTreeMap<(String, String), Weak<Handle>>);

struct Shared {
    client: Client,
    options: DiscoveryOptions,
    state: ArcSwap<ServiceState>,
    status: watch::Sender<DiscoveryStatus>,
    /// Counts states.
    states: watch::Sender<u64>,
    closing: watch::Sender<bool>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}

impl fmt::Debug for Discovery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discovery")
            .field("options", &self.handle.shared.options)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Begins to follow a service; does not wait for the cluster, see [`Discovery::synced`]. Discoveries of
    /// the same service share one watch, those with a directory apart.
    pub async fn discovery(&self, options: DiscoveryOptions) -> Result<Discovery, Error> {
        if let Some(directory) = options.directory.clone() {
            let opened = disk::open(directory.clone(), &options).await;
            let (store, kept) = opened.map_err(|error| {
                let shown = directory.display().to_string();
                Error::invalid("directory", shown, error.to_string())
            })?;
            return Ok(self.discover(options, kept.unwrap_or_default(), Some(store)));
        }
        if self.is_pinned() {
            return Ok(self.discover(options, ServiceState::default(), None));
        }
        let namespace = or_default(&options.namespace, limits::DEFAULT_NAMESPACE);
        let name = (namespace.to_owned(), options.service.clone());
        let mut held = lock(&self.inner.discoveries);
        if let Some(handle) = held.0.get(&name).and_then(Weak::upgrade) {
            return Ok(Discovery { handle });
        }
        let discovery = self.discover(options, ServiceState::default(), None);
        held.0.retain(|_, handle| handle.strong_count() > 0);
        held.0.insert(name, Arc::downgrade(&discovery.handle));
        Ok(discovery)
    }

    fn discover(
        &self,
        options: DiscoveryOptions,
        state: ServiceState,
        store: Option<disk::Store>,
    ) -> Discovery {
        let shared = Arc::new(Shared {
            client: self.clone(),
            options,
            state: ArcSwap::from_pointee(state),
            status: watch::Sender::default(),
            states: watch::Sender::new(0),
            closing: watch::Sender::new(false),
        });
        if let Some(store) = store {
            // Before the first state can come.
            let states = shared.states.subscribe();
            spawn(store.keep(shared.clone(), states));
        }
        spawn(follow(shared.clone()));
        Discovery { handle: Arc::new(Handle { shared }) }
    }
}

impl Discovery {
    /// What is known now. Never waits.
    pub fn state(&self) -> Arc<ServiceState> {
        self.handle.shared.state.load_full()
    }

    pub fn options(&self) -> &DiscoveryOptions {
        &self.handle.shared.options
    }

    pub fn status(&self) -> DiscoveryStatus {
        self.handle.shared.status.borrow().clone()
    }

    /// Returns when the cluster has answered, or with the error for which it does not answer, such as a
    /// name that is not allowed. Waits for nodes for as long as it takes.
    pub async fn synced(&self) -> Result<(), Error> {
        let mut status = self.handle.shared.status.subscribe();
        let known = status.wait_for(|status| status.synced || status.error.is_some()).await;
        let known = known.map_err(Error::internal)?;
        match &known.error {
            Some(error) if !known.synced => Err(error.clone()),
            Some(_) | None => Ok(()),
        }
    }

    /// Tells of every state; who reads slowly sees the last one.
    pub fn subscribe(&self) -> States {
        let mut counts = self.handle.shared.states.subscribe();
        counts.mark_changed();
        States { discovery: self.clone(), counts }
    }

    /// The instances that should get calls, as insertions of those that there are and then every change,
    /// for whoever balances with tower. A changed instance is inserted again.
    pub fn changes(
        &self,
    ) -> impl Stream<Item = Result<Change<String, Arc<v1::Instance>>, Error>> + Send + use<> {
        let begin = (self.subscribe(), BTreeMap::new(), VecDeque::new());
        stream::unfold(begin, |(mut states, mut known, mut changes)| async move {
            while changes.is_empty() {
                let state = states.next().await?;
                let usable: BTreeMap<String, Arc<v1::Instance>> =
                    state.usable().map(|it| (it.id.clone(), it.clone())).collect();
                changes = differences(&known, &usable);
                known = usable;
            }
            let change = changes.pop_front()?;
            Some((Ok(change), (states, known, changes)))
        })
    }
}

fn differences(
    before: &BTreeMap<String, Arc<v1::Instance>>,
    after: &BTreeMap<String, Arc<v1::Instance>>,
) -> VecDeque<Change<String, Arc<v1::Instance>>> {
    let new = after.iter().filter(|(id, instance)| before.get(*id) != Some(*instance));
    let new = new.map(|(id, instance)| Change::Insert(id.clone(), instance.clone()));
    let gone = before.keys().filter(|id| !after.contains_key(*id));
    new.chain(gone.map(|id| Change::Remove(id.clone()))).collect()
}

/// See [`Discovery::subscribe`].
#[derive(Debug)]
pub struct States {
    discovery: Discovery,
    counts: watch::Receiver<u64>,
}

impl States {
    /// The next state that was not seen; the first time the present one.
    pub async fn next(&mut self) -> Option<Arc<ServiceState>> {
        self.counts.changed().await.ok()?;
        Some(self.discovery.state())
    }
}

/// What the watch has told, from which states are made.
#[derive(Debug, Default)]
struct Known {
    revision: u64,
    instances: BTreeMap<String, Arc<v1::Instance>>,
    settings: Option<Arc<v1::Service>>,
}

impl Known {
    fn take(&mut self, update: WatchUpdate) -> bool {
        self.revision = update.revision();
        let (events, whole) = match update {
            WatchUpdate::Bookmark { .. } => return false,
            WatchUpdate::Changes { events, .. } => (events, false),
            WatchUpdate::Snapshot { events, .. } => (events, true),
        };
        if whole {
            self.instances.clear();
            self.settings = None;
        }
        for v1::WatchEvent { record, deleted } in events {
            match record {
                Some(watch_event::Record::Instance(instance)) if deleted => {
                    self.instances.remove(&instance.id);
                }
                Some(watch_event::Record::Instance(instance)) => {
                    self.instances.insert(instance.id.clone(), Arc::new(instance));
                }
                Some(watch_event::Record::Service(service)) => {
                    self.settings = (!deleted).then(|| Arc::new(service));
                }
                // A record of a later release's kind is none of ours.
                Some(_) | None => {}
            }
        }
        true
    }

    /// What this amounts to after `last`.
    fn state(&self, last: &ServiceState) -> ServiceState {
        let threshold = self.settings.as_ref().map_or(0, |it| it.protect_threshold_percent);
        let mut state = ServiceState {
            revision: self.revision,
            instances: self.instances.clone(),
            settings: self.settings.clone(),
            protected: false,
            stale: false,
        };
        if threshold > 0 && !state.instances.values().any(|it| is_enabled(it)) {
            // An empty list is what a broken deployment looks like.
            let kept = last.instances.iter().filter(|(_, instance)| is_enabled(instance));
            state.instances.extend(kept.map(|(id, instance)| (id.clone(), instance.clone())));
        }
        let enabled = state.instances.values().filter(|it| is_enabled(it));
        let (all, well) = enabled.fold((0u64, 0u64), |(all, well), instance| {
            (
                all + 1,
                well + u64::from(self.instances.contains_key(&instance.id) && is_well(instance)),
            )
        });
        state.protected = all > 0 && well * 100 < all * u64::from(threshold);
        state
    }
}

/// Follows the cluster until nobody holds the discovery.
async fn follow(shared: Arc<Shared>) {
    let mut closing = shared.closing.subscribe();
    let mut known = Known::default();
    // When the last state was made, and whether there is more to tell.
    let mut told: Option<Instant> = None;
    let mut more = false;
    let DiscoveryOptions { namespace, service, .. } = shared.options.clone();
    let range = WatchRange::Service { namespace, service };
    let mut following = Following::new(&shared.client, range, shared.state.load().revision);
    loop {
        let due = told.map_or_else(Instant::now, |told| told + limits::DISCOVERY_PAUSE);
        let update = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            () = sleep_until(due), if more => {
                shared.tell(&known);
                (told, more) = (Some(Instant::now()), false);
                continue;
            }
            update = following.next() => update,
        };
        match update {
            Ok(update) => more |= known.take(update),
            Err(error) => {
                let service = &shared.options.service;
                tracing::warn!(service, %error, "service not followed; trying again");
                shared.status.send_modify(|status| status.error = Some(error));
            }
        }
    }
}

impl Shared {
    fn tell(&self, known: &Known) {
        let state = known.state(&self.state.load());
        self.state.store(Arc::new(state));
        self.status.send_modify(|status| *status = DiscoveryStatus { synced: true, error: None });
        self.states.send_modify(|count| *count += 1);
    }
}
