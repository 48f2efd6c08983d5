//! Writers and watchers that go on while nodes die, and what must hold of what they saw.
//!
//! Every acknowledgement carries the revision that the write got, so the order of all writes is
//! known: what a writer was told, what every watcher saw and what is there in the end are held
//! against each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::client::{Client, SessionOptions, Watch, WatchRange, WatchUpdate};
use quorate::proto::v1;
use tokio::task::JoinHandle;

use super::harness::{Cluster, client, eventually, instance, text};

/// The service that everything here is about.
pub const SERVICE: &str = "load";
/// Long enough for a cluster that is started anew.
const TTL: Duration = Duration::from_secs(120);

/// Writers under way.
pub struct Load {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    writers: Vec<JoinHandle<Written>>,
}

/// What writers were told.
#[derive(Debug, Default)]
pub struct Written {
    /// Acknowledged, by the revision that each write got: the instance, and whether it is there
    /// after it.
    pub acknowledged: BTreeMap<u64, (String, bool)>,
    /// Writes without an id whose fate is unknown.
    pub unknown: BTreeSet<String>,
    /// Writes that certainly did not take place.
    pub refused: BTreeSet<String>,
}

impl Load {
    /// Starts writers. Those with a session never see an error: each write carries an id and is
    /// repeated until it is answered. Those without may get one, which then says whether the write
    /// may have taken place.
    pub async fn start(cluster: &Cluster, with_session: usize, without: usize) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let mut writers = Vec::new();
        for writer in 0..with_session {
            let client = cluster.client();
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            writers.push(tokio::spawn(write_once(client, writer, stop, acknowledged)));
        }
        for writer in 0..without {
            let client = cluster.client().with_timeout(Duration::from_secs(3));
            let (stop, acknowledged) = (stop.clone(), acknowledged.clone());
            writers.push(tokio::spawn(write_maybe(client, writer, stop, acknowledged)));
        }
        Load { stop, acknowledged, writers }
    }

    /// Waits for that many further acknowledgements.
    pub async fn progress(&self, count: u64) {
        let from = self.acknowledged.load(Ordering::Relaxed);
        eventually("progress of the writers", async || {
            assert!(self.writers.iter().all(|writer| !writer.is_finished()), "a writer gave up");
            let more = self.acknowledged.load(Ordering::Relaxed) - from;
            if more >= count { Ok(()) } else { Err(format!("{more} of {count} writes")) }
        })
        .await;
    }

    /// Lets the writes under way end and tells what all were told.
    pub async fn stop(self) -> Written {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Written::default();
        for writer in self.writers {
            let one = writer.await.expect("no writer may fail");
            for (revision, write) in one.acknowledged {
                let other = all.acknowledged.insert(revision, write.clone());
                assert!(other.is_none(), "two writes at revision {revision}: {write:?}, {other:?}");
            }
            all.unknown.extend(one.unknown);
            all.refused.extend(one.refused);
        }
        assert!(!all.acknowledged.is_empty());
        all
    }
}

/// Registers instances, and deregisters every third one. An error, or an answer that shows that a
/// write was applied twice, ends the writer in panic.
async fn write_once(
    client: Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Written {
    let options = SessionOptions { ttl: TTL, ..SessionOptions::default() };
    let session = client.session(options).await.unwrap();
    let mut written = Written::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("once-{writer}-{number}");
        let answer = client.register(instance(SERVICE, &id), Some(&session)).await.unwrap();
        // Applied a second time it would not have been created.
        assert!(answer.created, "{id}: {answer:?}");
        let revision = answer.header.unwrap().revision;
        assert_eq!(answer.mod_revision, revision, "{id}");
        written.acknowledged.insert(revision, (id.clone(), true));
        acknowledged.fetch_add(1, Ordering::Relaxed);
        if number % 3 == 0 {
            let request = v1::DeregisterRequest {
                service: SERVICE.into(),
                id: id.clone(),
                ..Default::default()
            };
            let answer = client.deregister(request, Some(&session)).await.unwrap();
            assert!(answer.removed, "{id}: {answer:?}");
            written.acknowledged.insert(answer.header.unwrap().revision, (id, false));
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        number += 1;
    }
    session.close().await.unwrap();
    written
}

/// Registers instances without an id.
async fn write_maybe(
    client: Client,
    writer: usize,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
) -> Written {
    let mut written = Written::default();
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let id = format!("maybe-{writer}-{number}");
        match client.register(instance(SERVICE, &id), None).await {
            Ok(answer) => {
                // Sent again after it had taken place it would not have been created.
                assert!(answer.created, "{id}: {answer:?}");
                written.acknowledged.insert(answer.mod_revision, (id, true));
                acknowledged.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.definite() => drop(written.refused.insert(id)),
            Err(_) => drop(written.unknown.insert(id)),
        }
        number += 1;
    }
    written
}

impl Written {
    /// Holds what writers were told against what there is.
    pub fn check(&self, found: &BTreeMap<String, v1::Instance>) {
        let mut last: BTreeMap<&str, (u64, bool)> = BTreeMap::new();
        for (revision, (id, present)) in &self.acknowledged {
            last.insert(id, (*revision, *present));
        }
        for (id, (revision, present)) in &last {
            let there = found.get(*id).map(|instance| instance.mod_revision);
            let expected = present.then_some(*revision);
            assert_eq!(there, expected, "{id} after its last write, at revision {revision}");
        }
        for id in found.keys() {
            assert!(!self.refused.contains(id), "{id} is there, though it was refused for certain");
            let known = last.contains_key(id.as_str()) || self.unknown.contains(id);
            assert!(known, "{id} is there, but nobody wrote it");
        }
    }

    /// The same of every running node, by linearizable reads, and all of them hold the same.
    pub async fn check_everywhere(&self, cluster: &Cluster) {
        let nodes: Vec<u64> = cluster.running().map(|node| node.id).collect();
        for node in nodes {
            self.check(&cluster.instances(node, SERVICE).await);
        }
        cluster.same_digest().await;
    }
}

/// What one watcher saw.
#[derive(Debug, Default)]
pub struct Seen {
    /// Complete up to this revision.
    revision: u64,
    /// Revision of the first snapshot.
    begun: u64,
    snapshots: usize,
    /// By revision, instances and whether they are there after it.
    changes: Vec<(u64, Vec<(String, bool)>)>,
    /// The range as the watcher knows it: revisions of instances.
    known: BTreeMap<String, u64>,
    error: Option<String>,
}

/// A watcher under way.
pub struct Watcher {
    name: String,
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

impl Seen {
    fn take(&mut self, update: WatchUpdate) -> Result<(), String> {
        let revision = update.revision();
        let name = |event: &v1::WatchEvent| match &event.record {
            Some(v1::watch_event::Record::Instance(instance)) => {
                Ok((instance.id.clone(), instance.mod_revision, event.deleted))
            }
            other => Err(format!("an event of {other:?}")),
        };
        match update {
            WatchUpdate::Snapshot { events, .. } => {
                if revision < self.revision {
                    return Err(format!("a snapshot of {revision} after {}", self.revision));
                }
                if self.snapshots == 0 {
                    self.begun = revision;
                }
                self.snapshots += 1;
                self.known.clear();
                for event in &events {
                    let (id, mod_revision, _) = name(event)?;
                    self.known.insert(id, mod_revision);
                }
            }
            WatchUpdate::Changes { events, .. } => {
                if self.snapshots == 0 || revision <= self.revision {
                    return Err(format!("changes of {revision} after {}", self.revision));
                }
                let mut changes = Vec::new();
                for event in &events {
                    let (id, mod_revision, deleted) = name(event)?;
                    if deleted {
                        self.known.remove(&id);
                    } else if mod_revision == revision {
                        self.known.insert(id.clone(), mod_revision);
                    } else {
                        return Err(format!("{id} of {mod_revision} in changes of {revision}"));
                    }
                    changes.push((id, !deleted));
                }
                self.changes.push((revision, changes));
            }
            WatchUpdate::Bookmark { .. } => {
                if revision < self.revision {
                    return Err(format!("a bookmark of {revision} after {}", self.revision));
                }
            }
        }
        self.revision = revision;
        Ok(())
    }
}

impl Watcher {
    /// Watches with the client library, at first through this node; when it dies the library goes to
    /// another one.
    pub async fn begin(cluster: &Cluster, node: u64) -> Watcher {
        let address = cluster.node(node).client.clone();
        // The library chooses a node by chance: until it chooses this one.
        let watch = eventually("a watch through the wanted node", async || {
            let mut watch = cluster.client().watch(range());
            let first = text(watch.next().await.unwrap())?;
            match watch.node() == Some(&address) {
                true => Ok((watch, first)),
                false => Err(format!("it is {:?}", watch.node())),
            }
        })
        .await;
        Watcher::spawn(format!("of node {node}"), async move |seen| follow(watch, seen).await)
    }

    /// Watches with bare gRPC calls, through the next node whenever one fails.
    pub async fn begin_raw(cluster: &Cluster) -> Watcher {
        let endpoints = cluster.endpoints();
        let watcher =
            Watcher::spawn("raw".to_owned(), async move |seen| follow_raw(endpoints, seen).await);
        eventually("the raw watch", async || {
            let snapshots = watcher.seen.lock().unwrap().snapshots;
            if snapshots > 0 { Ok(()) } else { Err("no snapshot".to_owned()) }
        })
        .await;
        watcher
    }

    fn spawn<F>(name: String, follow: impl FnOnce(Arc<Mutex<Seen>>) -> F) -> Watcher
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let seen = Arc::new(Mutex::new(Seen::default()));
        Watcher { name, task: tokio::spawn(follow(seen.clone())), seen }
    }

    /// Waits until the watcher is complete up to a revision, ends it and tells what it saw.
    pub async fn end(self, revision: u64) -> Seen {
        let Watcher { name, seen, task } = self;
        eventually(&format!("watcher {name} at revision {revision}"), async || {
            let seen = seen.lock().unwrap();
            assert_eq!(seen.error, None, "watcher {name}");
            match seen.revision >= revision {
                true => Ok(()),
                false => Err(format!("it is at {}", seen.revision)),
            }
        })
        .await;
        task.abort();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.error, None, "watcher {name}");
        seen
    }
}

fn range() -> WatchRange {
    WatchRange::Service { namespace: String::new(), service: SERVICE.to_owned() }
}

async fn follow((mut watch, first): (Watch, WatchUpdate), seen: Arc<Mutex<Seen>>) {
    let mut next = Some(Ok(first));
    while let Some(update) = next {
        let taken = match update {
            Ok(update) => seen.lock().unwrap().take(update),
            Err(error) => Err(format!("the watch ended: {error}")),
        };
        if let Err(error) = taken {
            seen.lock().unwrap().error = Some(error);
            return;
        }
        next = watch.next().await;
    }
}

async fn follow_raw(endpoints: Vec<String>, seen: Arc<Mutex<Seen>>) {
    for endpoint in endpoints.iter().cycle() {
        // No error of the transport is worth a word: the next node is asked.
        if let Err(Some(error)) = follow_one(endpoint, &seen).await {
            seen.lock().unwrap().error = Some(error);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Follows one node until it fails; an error in the words of [`Seen::take`] is the watch's.
async fn follow_one(endpoint: &str, seen: &Mutex<Seen>) -> Result<(), Option<String>> {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{endpoint}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(1))
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2));
    let channel = endpoint.connect().await.map_err(|_| None)?;
    let mut registry = v1::registry_client::RegistryClient::new(channel)
        .max_decoding_message_size(64 * 1024 * 1024);
    let after_revision = seen.lock().unwrap().revision;
    let request =
        v1::WatchRequest { service: SERVICE.to_owned(), after_revision, ..Default::default() };
    let mut messages = registry.watch(request).await.map_err(|_| None)?.into_inner();
    let mut snapshot = Vec::new();
    while let Some(message) = messages.message().await.map_err(|_| None)? {
        let v1::WatchResponse { revision, events, .. } = message;
        let update = if message.snapshot {
            snapshot.extend(events);
            if message.more {
                continue;
            }
            WatchUpdate::Snapshot { revision, events: std::mem::take(&mut snapshot) }
        } else if message.bookmark {
            WatchUpdate::Bookmark { revision }
        } else {
            WatchUpdate::Changes { revision, events }
        };
        seen.lock().unwrap().take(update).map_err(Some)?;
    }
    Ok(())
}

/// Writes one more instance and returns its revision: whoever is complete up to it has seen all.
pub async fn last_write(cluster: &Cluster) -> u64 {
    let endpoints: Vec<&str> = cluster.running().map(|node| node.client.as_str()).collect();
    let answer = client(endpoints).register(instance(SERVICE, "last"), None).await.unwrap();
    assert!(answer.created);
    answer.mod_revision
}

/// Holds what watchers saw against what writers were told and what there is: each change once and in
/// order. With `gapless`, nobody needed a second snapshot.
pub fn check_watchers(
    watchers: &[Seen],
    written: &Written,
    found: &BTreeMap<String, v1::Instance>,
    gapless: bool,
) {
    let found: BTreeMap<String, u64> =
        found.iter().map(|(id, instance)| (id.clone(), instance.mod_revision)).collect();
    let common = watchers.iter().map(|seen| seen.begun).max().unwrap();
    let after = |seen: &Seen| -> BTreeMap<u64, Vec<(String, bool)>> {
        seen.changes.iter().filter(|(revision, _)| *revision > common).cloned().collect()
    };
    for (at, seen) in watchers.iter().enumerate() {
        assert_eq!(seen.known, found, "watcher {at} ends with another state");
        if !gapless {
            continue;
        }
        assert_eq!(seen.snapshots, 1, "watcher {at} was given a snapshot in between");
        let changes: BTreeMap<u64, Vec<(String, bool)>> = seen.changes.iter().cloned().collect();
        for (revision, write) in written.acknowledged.range(seen.begun + 1..) {
            let change = changes.get(revision);
            assert_eq!(change, Some(&vec![write.clone()]), "watcher {at} at revision {revision}");
        }
        assert_eq!(after(seen), after(&watchers[0]), "watchers 0 and {at} saw different changes");
    }
}
