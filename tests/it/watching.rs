//! Watches at their limits: a watcher that does not read, one that comes back late, changes that are
//! too large for a message.

use std::collections::BTreeSet;
use std::time::Duration;

use quorate::client::{Call, WatchRange, WatchUpdate};
use quorate::error::Error;
use quorate::proto::v1;
use quorate::proto::v1::registry_client::RegistryClient;
use quorate::proto::v1::sessions_client::SessionsClient;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tonic::Streaming;

use super::harness::{Cluster, PATIENCE, Setup, channel, eventually, instance, run};

const SERVICE: &str = "web";

async fn begin(cluster: &Cluster, node: u64, after_revision: u64) -> Streaming<v1::WatchResponse> {
    let channel = channel(&cluster.node(node).client).await;
    let mut registry = RegistryClient::new(channel).max_decoding_message_size(64 * 1024 * 1024);
    let service = SERVICE.to_owned();
    let request = v1::WatchRequest { service, after_revision, ..Default::default() };
    registry.watch(request).await.unwrap().into_inner()
}

async fn next(messages: &mut Streaming<v1::WatchResponse>) -> Result<v1::WatchResponse, Error> {
    let message = timeout(PATIENCE, messages.message()).await.expect("a message in time");
    message.map_err(Error::from).map(|message| message.expect("a watch ends with an error"))
}

/// A watcher stops reading while far more happens than may wait for it. It is cut off, told after
/// which revision to resume, and resumes there without a gap: what it read before and what it reads
/// then are all changes, each once.
#[test]
fn a_slow_watcher_is_cut_off_and_resumes() {
    run(async {
        const WRITES: usize = 22_000;
        let cluster = Setup::default().start(1).await;
        let mut messages = begin(&cluster, 1, 0).await;
        let first = next(&mut messages).await.unwrap();
        assert!(first.snapshot && !first.more && first.events.is_empty(), "{first:?}");

        // 1 KiB each: what the sockets and windows between us take in is less than what follows.
        let calls = (0..WRITES).map(|number| {
            let mut one = instance(SERVICE, &format!("web-{number}"));
            one.metadata.insert("filler".to_owned(), "x".repeat(1_000));
            Call::Register(one.into())
        });
        for outcome in cluster.client().stream().call_many(calls.collect()).await {
            outcome.unwrap();
        }
        let end = cluster.status(1).await.header.unwrap().revision;

        let mut seen = Vec::new();
        let lagged = loop {
            match next(&mut messages).await {
                Ok(message) => {
                    assert!(!message.snapshot, "a snapshot that was not asked for");
                    seen.push(message.revision);
                }
                Err(error) => break error,
            }
        };
        let Error::WatchLagged { resume_revision } = lagged else { panic!("{lagged}") };
        assert_eq!(seen.last().copied().unwrap_or(first.revision), resume_revision);
        assert!(seen.len() < WRITES, "it was not slow");

        let mut messages = begin(&cluster, 1, resume_revision).await;
        while seen.last() != Some(&end) {
            let message = next(&mut messages).await.unwrap();
            assert!(!message.snapshot, "{} is still known", resume_revision);
            assert_eq!(message.events.len(), 1);
            seen.push(message.revision);
        }
        assert_eq!(seen.len(), WRITES);
        assert!(seen.is_sorted_by(|one, other| one < other), "out of order or twice");
    });
}

/// A revision that a node does not hold any more, because it was started since or because it is from
/// another time altogether, is answered by a snapshot that says so; one that it holds, by the changes
/// alone.
#[test]
fn resuming_from_an_old_revision_gives_a_marked_snapshot() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let old = client.register(instance(SERVICE, "a"), None).await.unwrap().mod_revision;
        let new = client.register(instance(SERVICE, "b"), None).await.unwrap().mod_revision;
        for node in cluster.ids() {
            let message = next(&mut begin(&cluster, node, old).await).await.unwrap();
            assert!(!message.snapshot, "node {node} holds it: {message:?}");
            assert_eq!((message.revision, message.events.len()), (new, 1));
        }
        cluster.kill_all();
        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        let range = || WatchRange::Service { namespace: String::new(), service: SERVICE.into() };
        for node in cluster.ids() {
            // SIGTERM and a start: the ring begins at the image, once it was written in time, which a
            // busy machine may need another attempt for.
            for attempt in 0.. {
                eventually("everything is applied", async || {
                    let revision = cluster.status(node).await.header.unwrap().revision;
                    if revision >= new { Ok(()) } else { Err(format!("revision {revision}")) }
                })
                .await;
                let said = cluster.node(node).log_length();
                assert_eq!(cluster.stop(node).await, 0);
                cluster.start(node).await;
                let log = &cluster.node(node).log_text()[said..];
                if log.contains("origin=Image") {
                    break;
                }
                assert!(log.contains("the image was not written in time") && attempt < 5, "{log}");
            }
            let message = next(&mut begin(&cluster, node, old).await).await.unwrap();
            assert!(message.snapshot, "node {node}: {message:?}");
            assert_eq!(message.events.len(), 2);
            assert!(message.revision >= new);
            // From a future that never was here.
            let message = next(&mut begin(&cluster, node, 1_000_000).await).await.unwrap();
            assert!(message.snapshot && message.revision < 1_000_000, "node {node}: {message:?}");
            // The library hands it on as what it is.
            let mut resumed = cluster.at(node).watch_after(range(), old);
            let update = timeout(PATIENCE, resumed.next()).await.unwrap().unwrap().unwrap();
            assert!(matches!(&update, WatchUpdate::Snapshot { events, .. } if events.len() == 2));
        }
    });
}

/// One revision changes more than a message may hold: watchers are cut off rather than shown a part,
/// and a watcher of the library goes on by a snapshot.
#[test]
fn a_change_too_large_for_a_message_comes_as_a_snapshot() {
    run(async {
        const INSTANCES: usize = 200;
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let (session, kept) = open_session(&cluster).await;
        let calls = (0..INSTANCES).map(|number| {
            let mut one = instance(SERVICE, &format!("web-{number}"));
            one.session = session;
            for key in 0..15 {
                one.metadata.insert(format!("key-{key}"), "x".repeat(1_000));
            }
            Call::Register(one.into())
        });
        for outcome in client.stream().call_many(calls.collect()).await {
            outcome.unwrap();
        }
        let range = WatchRange::Service { namespace: String::new(), service: SERVICE.into() };
        let mut watch = client.watch(range);
        let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        let WatchUpdate::Snapshot { events, revision: before } = update else {
            panic!("{update:?}");
        };
        assert_eq!(events.len(), INSTANCES);

        // Nobody keeps the session alive any more: all its instances turn critical at once.
        let mut messages = begin(&cluster, 1, before).await;
        kept.abort();
        let lagged = loop {
            match next(&mut messages).await {
                Ok(message) => assert!(message.events.is_empty(), "a part of it: {message:?}"),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(lagged, Error::WatchLagged { resume_revision } if resume_revision >= before),
            "{lagged}"
        );
        let critical = loop {
            let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
            match update {
                WatchUpdate::Snapshot { events, revision } => {
                    assert!(revision > before);
                    break events;
                }
                WatchUpdate::Bookmark { .. } => {}
                WatchUpdate::Changes { events, .. } => panic!("{} of them", events.len()),
            }
        };
        let ids: BTreeSet<String> = critical
            .into_iter()
            .filter_map(|event| match event.record {
                Some(v1::watch_event::Record::Instance(one)) => {
                    assert_eq!(one.health(), v1::Health::Critical);
                    assert_eq!(one.session, session);
                    Some(one.id)
                }
                _ => None,
            })
            .collect();
        assert_eq!(ids.len(), INSTANCES);
    });
}

/// A session, and the task that keeps it alive until it is aborted.
async fn open_session(cluster: &Cluster) -> (u64, JoinHandle<()>) {
    let mut sessions = SessionsClient::new(channel(&cluster.node(1).client).await);
    let request = v1::OpenSessionRequest { ttl_ms: 4_000, client: "test".into() };
    let session = sessions.open(request).await.unwrap().into_inner().session;
    let kept = tokio::spawn(async move {
        loop {
            sleep(Duration::from_millis(500)).await;
            // An error shows in what becomes of the session.
            let _ = sessions.keep_alive(v1::KeepAliveRequest { session }).await;
        }
    });
    (session, kept)
}
