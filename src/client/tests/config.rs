//! A cache of configuration: what it serves, with and without nodes, and what it reports.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::timeout;
use tonic::Status;

use super::fake::{Node, plain};
use super::*;
use crate::client::{Answer, Call, ConfigCache, ConfigCacheOptions, Reporting};
use crate::error::Error;

fn item(key: &str, version: u64, revision: u64, content: &str) -> ConfigItem {
    ConfigItem {
        namespace: "default".into(),
        group: "g".into(),
        key: key.into(),
        release: Some(ConfigRelease {
            version,
            revision,
            content: content.into(),
            ..Default::default()
        }),
        mod_revision: revision,
        ..Default::default()
    }
}

fn put(item: ConfigItem) -> WatchEvent {
    WatchEvent { record: Some(watch_event::Record::Config(item)), deleted: false }
}

fn gone(key: &str) -> WatchEvent {
    WatchEvent { deleted: true, ..put(ConfigItem { release: None, ..item(key, 0, 0, "") }) }
}

fn snapshot(revision: u64, events: Vec<WatchEvent>) -> Result<WatchResponse, Status> {
    Ok(WatchResponse { revision, snapshot: true, events, ..Default::default() })
}

fn changes(revision: u64, events: Vec<WatchEvent>) -> Result<WatchResponse, Status> {
    Ok(WatchResponse { revision, events, ..Default::default() })
}

fn node(scripts: Vec<Vec<Result<WatchResponse, Status>>>) -> Node {
    let node = Node::simple(|call| Ok(plain(call)));
    script(&node, scripts);
    node
}

fn script(node: &Node, scripts: Vec<Vec<Result<WatchResponse, Status>>>) {
    node.fake.watch_scripts.lock().unwrap().extend(scripts);
}

fn wanted() -> ConfigCacheOptions {
    ConfigCacheOptions::new("me").label("zone", "eu").prefix("g", "")
}

async fn synced(cache: &ConfigCache) {
    timeout(Duration::from_secs(10), cache.synced()).await.expect("an answer").unwrap();
}

fn content(cache: &ConfigCache, key: &str) -> Option<String> {
    cache.get("g", key).map(|value| value.text().unwrap().to_owned())
}

/// Every report that arrived: session, then what is said of which key.
fn reports(node: &Node) -> Vec<(u64, Vec<(String, u64)>)> {
    let calls = node.calls().into_iter().filter_map(|call| match call {
        Call::ReportConfig(request) => {
            assert_eq!(request.client, "me");
            assert!(request.request_id.is_some(), "a report may be repeated");
            let items = request.items.into_iter().map(|item| (item.key, item.version)).collect();
            Some((request.session, items))
        }
        _ => None,
    });
    calls.collect()
}

#[tokio::test]
async fn values_follow_the_cluster() {
    let mut node = node(vec![vec![
        snapshot(5, vec![put(item("a", 1, 3, "one")), put(item("b", 2, 5, "two"))]),
        changes(6, vec![put(item("a", 2, 6, "uno")), put(item("c", 1, 6, "three"))]),
        changes(7, vec![gone("b")]),
    ]]);
    let cache = client(&[&node]).config_cache(wanted()).await.unwrap();
    synced(&cache).await;
    eventually("the last change", || cache.status().revision == 7).await;
    assert_eq!(content(&cache, "a").as_deref(), Some("uno"));
    assert_eq!(content(&cache, "b"), None);
    assert_eq!(content(&cache, "c").as_deref(), Some("three"));
    assert!(cache.get("default", "a").is_none());
    assert!(!cache.get("g", "a").unwrap().is_stale());
    let keys: Vec<String> = cache.all().iter().map(|value| value.key().to_owned()).collect();
    assert_eq!(keys, ["a", "c"]);
    let asked = node.fake.range_watches.lock().unwrap()[0].clone();
    let viewer = asked.client.unwrap();
    assert_eq!((viewer.id.as_str(), viewer.labels["zone"].as_str()), ("me", "eu"));

    // The cluster is away: everything stays. It comes back and two items are not what they were.
    node.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(content(&cache, "a").as_deref(), Some("uno"));
    script(&node, vec![vec![snapshot(9, vec![put(item("c", 2, 9, "drei"))])]]);
    node.start();
    eventually("the new snapshot", || cache.status().revision == 9).await;
    assert_eq!((content(&cache, "a"), content(&cache, "c").as_deref()), (None, Some("drei")));
    cache.close().await;
    assert_eq!(content(&cache, "c").as_deref(), Some("drei"));
}

/// Who follows gets what is there, then every change; several changes of one item while nobody reads are
/// one, and an item that came and went meanwhile is none.
#[tokio::test]
async fn changes_come_each_item_once() {
    let mut node = node(vec![vec![snapshot(
        5,
        vec![put(item("a", 1, 3, "one")), put(item("b", 2, 5, "two"))],
    )]]);
    let cache = client(&[&node]).config_cache(wanted()).await.unwrap();
    synced(&cache).await;
    let mut follower = cache.changes();
    for key in ["a", "b"] {
        let change = follower.next().await.unwrap();
        assert_eq!((change.key.as_str(), change.before.is_none()), (key, true));
    }
    node.stop();
    script(
        &node,
        vec![vec![
            changes(6, vec![put(item("b", 3, 6, "zwei")), put(item("c", 1, 6, "new"))]),
            changes(7, vec![gone("c"), put(item("d", 1, 7, "stays"))]),
            // The same release again, of an item that changed otherwise.
            changes(8, vec![put(ConfigItem { keep: 7, ..item("a", 1, 3, "one") })]),
            changes(9, vec![put(item("b", 4, 9, "due")), gone("a")]),
        ]],
    );
    node.start();
    eventually("the last change", || cache.status().revision == 9).await;
    let mut seen = Vec::new();
    for _ in 0..3 {
        let change = follower.next().await.unwrap();
        let version = |value: &Option<Arc<crate::client::ConfigValue>>| {
            value.as_ref().map_or(0, |value| value.version())
        };
        seen.push((change.key.clone(), version(&change.before), version(&change.after)));
    }
    let expected = [("b", 2, 4), ("d", 0, 1), ("a", 1, 0)];
    let expected = expected.map(|(key, before, after)| (key.to_owned(), before, after));
    assert_eq!(seen, expected);
    let more = timeout(Duration::from_millis(50), follower.next()).await;
    assert!(more.is_err(), "{more:?}");
    drop(cache);
    assert!(follower.next().await.is_none(), "the cache has ended");
}

/// Only what the program was given is reported, in one call; again when the session is another one.
#[tokio::test]
async fn what_was_handed_out_is_reported() {
    let sessions = AtomicU64::new(0);
    let lost = Arc::new(AtomicU64::new(0));
    let losing = lost.clone();
    let mut node = Node::simple(move |call| match call {
        Call::OpenSession(request) => Ok(Answer::OpenSession(OpenSessionResponse {
            header: None,
            session: 100 + sessions.fetch_add(1, Ordering::Relaxed),
            ttl_ms: request.ttl_ms,
        })),
        Call::ReportConfig(request) if request.session == losing.load(Ordering::Relaxed) => {
            Err(Error::SessionExpired { session: request.session })
        }
        Call::ReportConfig(request) if request.items.iter().any(|item| item.key == "purged") => {
            Err(Error::NotFound { kind: "config item".into(), name: "purged".into() })
        }
        call => Ok(plain(call)),
    });
    let items = ["a", "b", "c", "purged"].map(|key| put(item(key, 4, 5, key)));
    script(&node, vec![vec![snapshot(5, items.into())]]);
    let cache = client(&[&node]).config_cache(wanted()).await.unwrap();
    synced(&cache).await;
    assert!(cache.get("g", "nothing").is_none());
    assert!(cache.get("g", "a").is_some() && cache.get("g", "b").is_some());
    let pair = |key: &str, version| (key.to_owned(), version);
    let both = vec![pair("a", 4), pair("b", 4)];
    eventually("the report", || !reports(&node).is_empty()).await;
    assert_eq!(reports(&node), [(100, both.clone())]);

    // A change is not reported before the program asks for it.
    node.stop();
    script(&node, vec![vec![changes(6, vec![put(item("a", 5, 6, "new"))])]]);
    node.start();
    eventually("the change", || cache.status().revision == 6).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(reports(&node).len(), 1);
    lost.store(100, Ordering::Relaxed);
    assert_eq!(content(&cache, "a").as_deref(), Some("new"));
    let all = vec![pair("a", 5), pair("b", 4)];
    eventually("the report of the next session", || {
        reports(&node).last() == Some(&(101, all.clone()))
    })
    .await;

    // What the cluster refuses for good does not keep the rest from being told.
    assert!(cache.get("g", "purged").is_some() && cache.get("g", "c").is_some());
    eventually("the rest", || reports(&node).contains(&(101, vec![pair("c", 4)]))).await;
    // Each is told alone after both were refused.
    eventually("the refusal", || reports(&node).contains(&(101, vec![pair("purged", 4)]))).await;
    let count = reports(&node).len();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(reports(&node).len(), count, "told once");
    cache.close().await;
    let closes = |node: &Node| {
        let calls = node.calls();
        calls
            .iter()
            .filter(|call| matches!(call, Call::CloseSession(r) if r.session == 101))
            .count()
    };
    assert_eq!(closes(&node), 1);
}

#[tokio::test]
async fn explicit_reports_say_what_the_program_says() {
    let mut node = node(vec![vec![snapshot(5, vec![put(item("a", 4, 5, "x"))])]]);
    let session = client(&[&node]).session(Default::default()).await.unwrap();
    let options = wanted().reporting(Reporting::Explicit).session(session.clone());
    let cache = client(&[&node]).config_cache(options).await.unwrap();
    synced(&cache).await;
    let value = cache.get("g", "a").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(reports(&node), []);
    cache.applied(&value);
    let expected = [(session.id(), vec![("a".to_owned(), 4)])];
    eventually("the report", || reports(&node) == expected).await;
    cache.close().await;
    let closed = node.calls().iter().any(|call| matches!(call, Call::CloseSession(_)));
    assert!(!closed, "the session is not the cache's");
    node.stop();
}

fn files(directory: &Path) -> Vec<std::path::PathBuf> {
    let mut paths: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// The last values are there when no node is, marked; a damaged file is not served; what was deleted
/// meanwhile goes as soon as the cluster answers.
#[tokio::test]
async fn a_cold_start_serves_the_last_values() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cache/config");
    let items = ["a", "b", "c"].map(|key| put(item(key, 1, 5, &key.repeat(100_000))));
    let mut node = node(vec![vec![snapshot(5, items.into()), changes(6, vec![gone("c")])]]);
    let options = || wanted().directory(&path).reporting(Reporting::Off);
    let cache = client(&[&node]).config_cache(options()).await.unwrap();
    eventually("the last change", || cache.status().revision == 6).await;
    cache.close().await;
    drop(cache);
    node.stop();
    let kept = files(&path);
    assert_eq!(kept.len(), 2, "{kept:?}");
    #[cfg(unix)]
    for file in &kept {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(file).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "others may not read it");
    }

    let cold = client(&[&node]).config_cache(options()).await.unwrap();
    let mut follower = cold.changes();
    let value = cold.get("g", "a").unwrap();
    assert_eq!((value.is_stale(), value.text().unwrap().len()), (true, 100_000));
    assert_eq!(cold.status(), Default::default());
    assert!(content(&cold, "c").is_none());
    for _ in 0..2 {
        assert!(follower.next().await.unwrap().after.unwrap().is_stale());
    }
    // The cluster is back: it confirms one, without a change, and has deleted the other.
    script(&node, vec![vec![snapshot(8, vec![put(item("a", 1, 5, &"a".repeat(100_000)))])]]);
    node.start();
    synced(&cold).await;
    assert!(!cold.get("g", "a").unwrap().is_stale());
    assert!(cold.get("g", "b").is_none());
    let change = follower.next().await.unwrap();
    assert_eq!((change.key.as_str(), change.after.is_none()), ("b", true));
    cold.close().await;
    drop(cold);
    node.stop();
    let kept = files(&path);
    assert_eq!(kept.len(), 1, "{kept:?}");

    // Damage of every kind: a flipped bit anywhere, a cut anywhere, another item's file, half a write.
    let good = std::fs::read(&kept[0]).unwrap();
    let serves = async || {
        let cache = client(&[&node]).config_cache(options()).await.unwrap();
        let found = cache.get("g", "a").map(|value| value.text().unwrap().len());
        assert!(cache.all().len() <= 1);
        found
    };
    assert_eq!(serves().await, Some(100_000));
    for at in [0, 7, 8, 16, 31, 32, 40, good.len() / 2, good.len() - 1] {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&kept[0], &bad).unwrap();
        assert_eq!(serves().await, None, "bit at {at}");
        std::fs::write(&kept[0], &good[..at]).unwrap();
        assert_eq!(serves().await, None, "cut at {at}");
    }
    std::fs::write(&kept[0], &good).unwrap();
    std::fs::write(path.join(format!("{:032x}.item", 7)), &good).unwrap();
    std::fs::write(kept[0].with_extension("1.tmp"), &good[..50]).unwrap();
    assert_eq!(serves().await, Some(100_000));
    // Not what this cache holds.
    let other = ConfigCacheOptions::new("me").key("g", "b").directory(&path);
    let other = client(&[&node]).config_cache(other).await.unwrap();
    assert!(other.all().is_empty());
}

/// A node that lags does not take a client back behind what it has on disk.
#[tokio::test]
async fn an_older_node_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let options = || wanted().directory(directory.path()).reporting(Reporting::Off);
    let mut node = node(vec![vec![snapshot(9, vec![put(item("a", 2, 9, "new"))])]]);
    let cache = client(&[&node]).config_cache(options()).await.unwrap();
    synced(&cache).await;
    cache.close().await;
    node.stop();
    let old = snapshot(8, vec![put(item("a", 1, 8, "old"))]);
    script(&node, vec![vec![old], vec![snapshot(9, vec![put(item("a", 2, 9, "new"))])]]);
    node.start();
    let cache = client(&[&node]).config_cache(options()).await.unwrap();
    let mut follower = cache.changes();
    synced(&cache).await;
    let change = follower.next().await.unwrap();
    assert_eq!(change.after.unwrap().version(), 2);
    assert!(timeout(Duration::from_millis(50), follower.next()).await.is_err());
    assert_eq!(node.fake.range_watches.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn what_cannot_be_followed_is_said() {
    let refused = Error::invalid("client.labels", "x", "other labels");
    let node = node(vec![
        vec![Err(Status::from(refused.clone()))],
        vec![snapshot(3, vec![put(item("a", 1, 3, "x"))])],
    ]);
    let cache = client(&[&node]).config_cache(wanted()).await.unwrap();
    let answer = timeout(Duration::from_secs(5), cache.synced()).await.unwrap();
    // It may have been synced by the next attempt already.
    assert!(answer.is_ok() || answer == Err(refused));
    eventually("the next attempt", || cache.status().synced).await;
    assert_eq!(cache.status().error, None);
    assert_eq!(content(&cache, "a").as_deref(), Some("x"));
    for wrong in [ConfigCacheOptions::new("me"), ConfigCacheOptions::new("").key("g", "a")] {
        let error = client(&[&node]).config_cache(wrong).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    let blocked = tempfile::NamedTempFile::new().unwrap();
    let wrong = wanted().directory(blocked.path().join("below"));
    let error = client(&[&node]).config_cache(wrong).await.unwrap_err();
    assert!(error.to_string().starts_with("directory: "), "{error}");
}
