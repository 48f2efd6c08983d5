//! A watch over broken connections.

use std::time::Duration;

use tonic::Status;

use super::fake::{Node, plain};
use super::*;
use crate::client::{WatchRange, WatchUpdate};
use crate::error::Error;

fn event(id: &str) -> WatchEvent {
    WatchEvent { record: Some(watch_event::Record::Instance(instance(id))), deleted: false }
}

fn snapshot(revision: u64, more: bool, ids: &[&str]) -> Result<WatchResponse, Status> {
    let events = ids.iter().copied().map(event).collect();
    Ok(WatchResponse { revision, snapshot: true, more, bookmark: false, events })
}

fn changes(revision: u64, ids: &[&str]) -> Result<WatchResponse, Status> {
    let events = ids.iter().copied().map(event).collect();
    Ok(WatchResponse { revision, events, ..Default::default() })
}

fn bookmark(revision: u64) -> Result<WatchResponse, Status> {
    Ok(WatchResponse { revision, bookmark: true, ..Default::default() })
}

fn broken() -> Result<WatchResponse, Status> {
    Err(Status::unavailable("broken by the script"))
}

fn show(update: &WatchUpdate) -> String {
    let ids = |events: &[WatchEvent]| {
        let names = events.iter().map(|event| match &event.record {
            Some(watch_event::Record::Instance(instance)) => instance.id.clone(),
            Some(watch_event::Record::Service(service)) => service.name.clone(),
            Some(other) => panic!("{other:?}"),
            None => String::new(),
        });
        names.collect::<Vec<_>>().join("+")
    };
    match update {
        WatchUpdate::Snapshot { revision, events } => {
            format!("snapshot@{revision} {}", ids(events))
        }
        WatchUpdate::Changes { revision, events } => format!("changes@{revision} {}", ids(events)),
        WatchUpdate::Bookmark { revision } => format!("bookmark@{revision}"),
    }
}

/// Runs the scripts, one for each connection in turn, and returns the first `count` updates and the
/// revisions that were asked for.
async fn check(
    scripts: Vec<Vec<Result<WatchResponse, Status>>>,
    count: usize,
) -> (Vec<String>, Vec<u64>) {
    let node = Node::simple(|call| Ok(plain(call)));
    node.fake.watch_scripts.lock().unwrap().extend(scripts);
    let range = WatchRange::Service { namespace: "n".into(), service: "s".into() };
    let mut watch = client(&[&node]).watch(range);
    let mut updates = Vec::new();
    while updates.len() < count {
        match tokio::time::timeout(Duration::from_secs(5), watch.next()).await.expect("an update") {
            Some(Ok(update)) => {
                assert_eq!(watch.revision(), update.revision());
                updates.push(show(&update));
            }
            Some(Err(error)) => updates.push(format!("error {}", error.reason().as_str_name())),
            None => {
                updates.push("end".into());
                break;
            }
        }
    }
    // Nothing comes after what was expected.
    let more = tokio::time::timeout(Duration::from_millis(50), watch.next()).await;
    assert!(!matches!(more, Ok(Some(_))), "{more:?} after {updates:?}");
    let asked = node.fake.watches.lock().unwrap().clone();
    assert!(asked.iter().all(|request| request.namespace == "n" && request.service == "s"));
    (updates, asked.iter().map(|request| request.after_revision).collect())
}

#[tokio::test]
async fn a_watch_goes_on_without_gap_or_duplicate() {
    let (updates, asked) = check(
        vec![
            vec![
                snapshot(5, true, &["a"]),
                snapshot(5, false, &["b"]),
                changes(6, &["c"]),
                broken(),
            ],
            // The next node begins a little early and repeats.
            vec![
                changes(6, &["c"]),
                bookmark(6),
                changes(7, &["d", "e"]),
                changes(7, &["d"]),
                broken(),
            ],
            vec![bookmark(9), broken()],
            // The node was away for long: everything before is void.
            vec![snapshot(20, false, &["z"]), changes(21, &["y"])],
        ],
        6,
    )
    .await;
    assert_eq!(
        updates,
        [
            "snapshot@5 a+b",
            "changes@6 c",
            "changes@7 d+e",
            "bookmark@9",
            "snapshot@20 z",
            "changes@21 y"
        ]
    );
    assert_eq!(asked, [0, 6, 7, 9]);
}

#[tokio::test]
async fn half_a_snapshot_is_never_seen() {
    let (updates, asked) = check(
        vec![
            vec![snapshot(5, true, &["a"]), broken()],
            vec![snapshot(8, true, &["b"]), changes(9, &["x"])],
            vec![snapshot(9, true, &["a"]), snapshot(9, true, &["b"]), snapshot(9, false, &[])],
        ],
        1,
    )
    .await;
    assert_eq!(updates, ["snapshot@9 a+b"]);
    assert_eq!(asked, [0, 0, 0]);
}

#[tokio::test]
async fn a_watch_does_not_go_back_in_time() {
    let (updates, asked) = check(
        vec![
            vec![snapshot(5, false, &["a"]), changes(8, &["b"]), broken()],
            // This node is behind.
            vec![snapshot(7, false, &["a"]), changes(8, &["b"])],
            vec![changes(7, &["q"]), changes(9, &["c"])],
        ],
        3,
    )
    .await;
    assert_eq!(updates, ["snapshot@5 a", "changes@8 b", "changes@9 c"]);
    assert_eq!(asked, [0, 8, 8]);
}

#[tokio::test]
async fn a_watcher_that_was_too_slow_resumes() {
    let lagged = Err(Status::from(Error::WatchLagged { resume_revision: 6 }));
    let (updates, asked) = check(
        vec![vec![snapshot(5, false, &[]), changes(6, &["a"]), lagged], vec![changes(7, &["b"])]],
        3,
    )
    .await;
    assert_eq!(updates, ["snapshot@5 ", "changes@6 a", "changes@7 b"]);
    assert_eq!(asked, [0, 6]);
}

#[tokio::test]
async fn an_error_that_will_not_pass_ends_a_watch() {
    let refused = Err(Status::from(Error::invalid("namespace", "n", "other names")));
    let (updates, _) = check(vec![vec![refused]], 2).await;
    assert_eq!(updates, ["error REASON_INVALID_ARGUMENT", "end"]);
}

#[tokio::test]
async fn several_ranges_are_watched_in_one_stream_and_resumed() {
    let node = Node::simple(|call| Ok(plain(call)));
    let scripts = [vec![snapshot(5, false, &["a"]), broken()], vec![changes(6, &["b", "c"])]];
    node.fake.watch_scripts.lock().unwrap().extend(scripts);
    let (dev, web) = ("dev".to_owned(), "web".to_owned());
    let range = WatchRange::Many(vec![
        WatchRange::Namespace { namespace: dev.clone() },
        WatchRange::Many(vec![WatchRange::Service {
            namespace: dev.clone(),
            service: web.clone(),
        }]),
    ]);
    let mut watch = client(&[&node]).watch(range);
    assert_eq!(show(&watch.next().await.unwrap().unwrap()), "snapshot@5 a");
    assert_eq!(show(&watch.next().await.unwrap().unwrap()), "changes@6 b+c");
    let selector = |service: String| WatchSelector {
        namespace: dev.clone(),
        what: Some(watch_selector::What::Services(ServiceSelector { service })),
    };
    let selectors = vec![selector(String::new()), selector(web)];
    let asked = |after_revision| {
        let selectors = selectors.clone();
        WatchRangesRequest { selectors, after_revision, client: None }
    };
    assert_eq!(*node.fake.range_watches.lock().unwrap(), [asked(0), asked(5)]);
    assert!(node.fake.watches.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_watch_survives_its_node() {
    let mut first = Node::simple(|call| Ok(plain(call)));
    let mut second = Node::simple(|call| Ok(plain(call)));
    let client = client(&[&first, &second]);
    for node in [&first, &second] {
        let mut scripts = node.fake.watch_scripts.lock().unwrap();
        scripts.push_back(vec![snapshot(5, false, &["a"])]);
    }
    let mut watch = client.watch_after(WatchRange::Namespace { namespace: String::new() }, 3);
    assert_eq!(show(&watch.next().await.unwrap().unwrap()), "snapshot@5 a");
    let (lost, other) = if watch.node() == Some(first.address.as_str()) {
        (&mut first, &mut second)
    } else {
        (&mut second, &mut first)
    };
    *other.fake.watch_scripts.lock().unwrap() = [vec![changes(6, &["b"])]].into();
    lost.stop();
    assert_eq!(show(&watch.next().await.unwrap().unwrap()), "changes@6 b");
    let asked: Vec<u64> =
        other.fake.watches.lock().unwrap().iter().map(|request| request.after_revision).collect();
    assert_eq!(asked, [5]);
    let revisions: Vec<u64> =
        lost.fake.watches.lock().unwrap().iter().map(|r| r.after_revision).collect();
    assert_eq!(revisions, [3]);
}
