//! Watching a range: a snapshot, then every change, over as many connections as it takes.
//!
//! Invariant: `revision` is the revision up to which everything was handed out. It is what a broken
//! watch resumes after, on another node; what comes again at or below it is dropped.

use std::fmt;
use std::sync::Arc;

use futures::{Stream, stream};
use tokio::time::{Instant, sleep_until, timeout};
use tonic::Streaming;

use super::config::or_default;
use super::connection::Client;
use super::remote::{Failure, Remote, failure};
use super::request::Route;
use crate::error::Error;
use crate::limits;
use crate::proto::v1::watch_selector::What;
use crate::proto::v1::{
    ConfigClient, ConfigSelector, NameSelector, ServiceSelector, WatchEvent, WatchRangesRequest,
    WatchRequest, WatchResponse, WatchSelector, config_selector, name_selector,
};

/// What is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchRange {
    /// One service: its settings and its instances.
    Service { namespace: String, service: String },
    /// Every service of a namespace.
    Namespace { namespace: String },
    /// One item of configuration; its group may be empty for "default".
    Config { namespace: String, group: String, key: String },
    /// The items of a group, or, when it is empty, of all groups, whose keys start with the prefix.
    ConfigPrefix { namespace: String, group: String, prefix: String },
    /// The counters whose names start with the prefix.
    Counters { namespace: String, prefix: String },
    /// The alarms whose names start with the prefix.
    Alarms { namespace: String, prefix: String },
    /// One lock: who holds it and who waits for it.
    Lock { namespace: String, lock: String },
    /// One global transaction. Payloads are left out, here and below.
    Saga { namespace: String, gid: String },
    /// The global transactions whose gids start with the prefix.
    Sagas { namespace: String, prefix: String },
    /// All of these in one stream: what several of them hold comes once, and all changes of one
    /// revision in one update. 1 to 32 single ranges, however they are nested.
    Many(Vec<WatchRange>),
}

impl WatchRange {
    /// Its single ranges.
    fn flatten(&self, into: &mut Vec<WatchSelector>) {
        let (namespace, what) = match self {
            WatchRange::Service { namespace, service } => {
                (namespace, What::Services(ServiceSelector { service: service.clone() }))
            }
            WatchRange::Namespace { namespace } => {
                (namespace, What::Services(ServiceSelector::default()))
            }
            WatchRange::Config { namespace, group, key } => {
                let group = or_default(group, limits::DEFAULT_GROUP).to_owned();
                let name = Some(config_selector::Name::Key(key.clone()));
                (namespace, What::Config(ConfigSelector { group, name }))
            }
            WatchRange::ConfigPrefix { namespace, group, prefix } => {
                let name = Some(config_selector::Name::Prefix(prefix.clone()));
                (namespace, What::Config(ConfigSelector { group: group.clone(), name }))
            }
            WatchRange::Counters { namespace, prefix } => {
                (namespace, What::Counters(prefixed(prefix)))
            }
            WatchRange::Alarms { namespace, prefix } => (namespace, What::Alarms(prefixed(prefix))),
            WatchRange::Lock { namespace, lock } => (namespace, What::Locks(named(lock))),
            WatchRange::Saga { namespace, gid } => (namespace, What::Sagas(named(gid))),
            WatchRange::Sagas { namespace, prefix } => (namespace, What::Sagas(prefixed(prefix))),
            WatchRange::Many(ranges) => {
                return ranges.iter().for_each(|range| range.flatten(into));
            }
        };
        into.push(WatchSelector { namespace: namespace.clone(), what: Some(what) });
    }
}

fn named(name: &str) -> NameSelector {
    NameSelector { r#match: Some(name_selector::Match::Name(name.to_owned())) }
}

fn prefixed(prefix: &str) -> NameSelector {
    NameSelector { r#match: Some(name_selector::Match::Prefix(prefix.to_owned())) }
}

/// What a watcher learns, in this order only: a snapshot or the revision it resumed after, then what
/// followed.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchUpdate {
    /// The whole range at `revision`: what the watcher knew before is void. Comes first, and again
    /// when the nodes no longer hold the changes since the watcher was last connected.
    Snapshot { revision: u64, events: Vec<WatchEvent> },
    /// All changes of the range up to `revision`, in order.
    Changes { revision: u64, events: Vec<WatchEvent> },
    /// Nothing has changed up to `revision`.
    Bookmark { revision: u64 },
}

impl WatchUpdate {
    /// With this revision a later watch can resume, see [`Client::watch_after`].
    pub fn revision(&self) -> u64 {
        match self {
            WatchUpdate::Snapshot { revision, .. }
            | WatchUpdate::Changes { revision, .. }
            | WatchUpdate::Bookmark { revision } => *revision,
        }
    }
}

/// A watch. It goes on through the loss of nodes and connections; only an error that will not pass,
/// such as a name that is not allowed, ends it.
pub struct Watch {
    client: Client,
    range: WatchRange,
    /// Who watches configuration.
    viewer: Option<ConfigClient>,
    revision: u64,
    /// A snapshot that is older is not taken.
    floor: u64,
    source: Option<Source>,
    attempt: u32,
    /// Not to connect before.
    pause_until: Option<Instant>,
    avoid: Option<Arc<Remote>>,
    /// Since when every snapshot that was offered is older than `revision`.
    behind_since: Option<Instant>,
    finished: bool,
}

struct Source {
    node: Arc<Remote>,
    messages: Streaming<WatchResponse>,
    /// A snapshot that has begun: its revision and what came of it.
    partial: Option<(u64, Vec<WatchEvent>)>,
}

/// What one message amounts to.
enum Step {
    Update(WatchUpdate),
    Nothing,
    /// The node is not usable for this watch now.
    Leave(&'static str),
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("range", &self.range)
            .field("revision", &self.revision)
            .field("node", &self.node())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Watches from now on: begins with a snapshot. Connects on the first [`Watch::next`].
    pub fn watch(&self, range: WatchRange) -> Watch {
        self.watch_after(range, 0)
    }

    /// Resumes: the changes after `revision`, or a snapshot when the nodes no longer hold them.
    pub fn watch_after(&self, range: WatchRange, revision: u64) -> Watch {
        Watch {
            client: self.clone(),
            range,
            viewer: None,
            revision,
            floor: revision,
            source: None,
            attempt: 0,
            pause_until: None,
            avoid: None,
            behind_since: None,
            finished: false,
        }
    }
}

/// A watch that begins anew after whatever ends it: for those who hold what they saw for as long as the
/// program runs.
pub(super) struct Following {
    client: Client,
    range: WatchRange,
    viewer: Option<ConfigClient>,
    watch: Option<Watch>,
    /// Nothing older is taken: a node that lags must not take its watcher back to what was before.
    floor: u64,
    attempt: u32,
    /// Not to begin before.
    pause_until: Option<Instant>,
}

impl Following {
    /// Begins with a snapshot that is no older than `floor`.
    pub(super) fn new(client: &Client, range: WatchRange, floor: u64) -> Following {
        let client = client.clone();
        Following { client, range, viewer: None, watch: None, floor, attempt: 0, pause_until: None }
    }

    /// See [`Watch::seen_by`].
    pub(super) fn seen_by(mut self, client: ConfigClient) -> Following {
        self.viewer = Some(client);
        self
    }

    /// The next update, or the error that ended the watch, after which the next one begins, following a
    /// pause. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Result<WatchUpdate, Error> {
        if let Some(until) = self.pause_until {
            sleep_until(until).await;
            self.pause_until = None;
        }
        let watch = self.watch.get_or_insert_with(|| {
            let watch = self.client.watch(self.range.clone()).not_before(self.floor);
            Watch { viewer: self.viewer.clone(), ..watch }
        });
        let error = match watch.next().await {
            Some(Ok(update)) => {
                self.attempt = 0;
                return Ok(update);
            }
            Some(Err(error)) => error,
            None => Error::internal("the watch has ended"),
        };
        // Every node is behind for long: it is another history, of which anything is newer.
        self.floor = match error {
            Error::Internal { .. } => 0,
            _ => self.floor.max(watch.revision()),
        };
        self.watch = None;
        let pause = limits::FOLLOW_AGAIN.min(self.client.backoff(self.attempt) * 4);
        self.attempt += 1;
        self.pause_until = Some(Instant::now() + pause);
        Err(error)
    }
}

impl Watch {
    /// Items of configuration come as this client gets them, by their gray releases; otherwise with all
    /// of these. To be said before the first [`Watch::next`].
    pub fn seen_by(mut self, client: ConfigClient) -> Watch {
        self.viewer = Some(client);
        self
    }

    /// Waits for a node that has come to this revision, of which the caller has seen something, instead of
    /// beginning with an older snapshot.
    pub(super) fn not_before(mut self, revision: u64) -> Watch {
        self.floor = self.floor.max(revision);
        self
    }

    /// Revision up to which everything was handed out; 0 = nothing was.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Address of the node that is listened to now.
    pub fn node(&self) -> Option<&str> {
        self.source.as_ref().map(|source| source.node.address.as_str())
    }

    /// The next update; None after the error that ended the watch. Dropping the future loses
    /// nothing.
    pub async fn next(&mut self) -> Option<Result<WatchUpdate, Error>> {
        while !self.finished {
            let outcome = match &mut self.source {
                None => self.connect().await,
                Some(source) => {
                    match timeout(limits::WATCH_SILENCE, source.messages.message()).await {
                        Ok(Ok(Some(message))) => match self.take(message) {
                            Step::Update(update) => {
                                self.attempt = 0;
                                return Some(Ok(update));
                            }
                            Step::Nothing => Ok(()),
                            Step::Leave(why) => self.leave(why),
                        },
                        Ok(Ok(None)) => self.leave("ended by the node"),
                        Ok(Err(status)) => self.failed(failure(&status)),
                        Err(_) => self.failed(Failure {
                            error: Error::Timeout { definite: true },
                            silent: true,
                        }),
                    }
                }
            };
            if let Err(error) = outcome {
                self.finished = true;
                self.source = None;
                return Some(Err(error));
            }
        }
        None
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<WatchUpdate, Error>> + Send {
        stream::unfold(self, |mut watch| async move {
            let item = watch.next().await?;
            Some((item, watch))
        })
    }

    async fn connect(&mut self) -> Result<(), Error> {
        if let Some(until) = self.pause_until {
            sleep_until(until).await;
            self.pause_until = None;
        }
        let node = self.client.pick(Route::Anywhere, self.avoid.as_ref());
        let patience = self.client.options().attempt_timeout;
        let after_revision = self.revision;
        let answer = match &self.range {
            WatchRange::Service { namespace, service } => {
                let (namespace, service) = (namespace.clone(), service.clone());
                let request = WatchRequest { namespace, service, after_revision };
                node.server_stream(request, patience).await
            }
            WatchRange::Namespace { namespace } => {
                let (namespace, service) = (namespace.clone(), String::new());
                let request = WatchRequest { namespace, service, after_revision };
                node.server_stream(request, patience).await
            }
            range => {
                let mut selectors = Vec::new();
                range.flatten(&mut selectors);
                let client = self.viewer.clone();
                let request = WatchRangesRequest { selectors, after_revision, client };
                node.server_stream(request, patience).await
            }
        };
        match answer {
            Ok(messages) => {
                self.source = Some(Source { node, messages, partial: None });
                Ok(())
            }
            Err(failure) => {
                self.avoid = Some(node);
                self.failed(failure)
            }
        }
    }

    /// Looks for another node, unless the error will not pass.
    fn failed(&mut self, failure: Failure) -> Result<(), Error> {
        if let Some(source) = self.source.take() {
            self.avoid = Some(source.node);
        }
        if let Some(node) = &self.avoid {
            self.client.note(node, &failure);
        }
        let error = failure.error;
        if !error.retryable() && !matches!(error, Error::WatchLagged { .. }) {
            return Err(error);
        }
        tracing::debug!(revision = self.revision, %error, "watch interrupted");
        self.pause();
        Ok(())
    }

    fn leave(&mut self, why: &'static str) -> Result<(), Error> {
        tracing::debug!(revision = self.revision, why, "watch interrupted");
        if let Some(source) = self.source.take() {
            self.avoid = Some(source.node);
        }
        if self.behind_since.is_some_and(|since| since.elapsed() > limits::WATCH_BEHIND) {
            return Err(Error::internal(format!(
                "every node is behind revision {} that was seen before: was the cluster restored \
                 from a backup? begin a new watch",
                self.revision
            )));
        }
        self.pause();
        Ok(())
    }

    fn pause(&mut self) {
        self.pause_until = Some(Instant::now() + self.client.backoff(self.attempt));
        self.attempt += 1;
    }

    fn take(&mut self, message: WatchResponse) -> Step {
        let Some(source) = &mut self.source else { return Step::Nothing };
        let revision = message.revision;
        if message.snapshot {
            if revision < self.revision.max(self.floor) {
                // Going back in time is worse than waiting for a node that has caught up.
                self.behind_since.get_or_insert_with(Instant::now);
                return Step::Leave("the node is behind what was seen before");
            }
            let mut events = match source.partial.take() {
                Some((begun, events)) if begun == revision => events,
                Some(_) | None => Vec::new(),
            };
            events.extend(message.events);
            if message.more {
                source.partial = Some((revision, events));
                return Step::Nothing;
            }
            self.revision = revision;
            self.behind_since = None;
            return Step::Update(WatchUpdate::Snapshot { revision, events });
        }
        if source.partial.is_some() {
            return Step::Leave("a snapshot was not completed");
        }
        if revision <= self.revision {
            return Step::Nothing;
        }
        self.revision = revision;
        self.behind_since = None;
        if message.bookmark {
            Step::Update(WatchUpdate::Bookmark { revision })
        } else {
            Step::Update(WatchUpdate::Changes { revision, events: message.events })
        }
    }
}
