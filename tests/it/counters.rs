//! Counters over the death of leaders: what was added counts once. And what hangs on them: gates of gray
//! releases, alarms, the series at /metrics.

use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt as _};
use quorate::client::{
    Client, CounterOptions, Session, SessionOptions, StreamHandle, WatchRange, WatchUpdate,
};
use quorate::error::Error;
use quorate::proto::v1;
use quorate::proto::v1::watch_event::Record;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::harness::{Cluster, Setup, channel, eventually, get, instance, run, text};

const CLIENTS: i64 = 8;
const ADDITIONS: i64 = 10_000;
/// Additions of one client that are under way.
const WINDOW: usize = 128;

fn addition(name: &str, delta: i64) -> v1::AddCounterRequest {
    v1::AddCounterRequest { name: name.into(), delta, ..Default::default() }
}

async fn value(client: &Client, name: &str) -> Result<i64, Error> {
    let request = v1::GetCounterRequest { name: name.into(), ..Default::default() };
    Ok(client.get_counter(request).await?.counter.unwrap().value)
}

async fn session(client: &Client) -> Session {
    let ttl = Duration::from_secs(120);
    client.session(SessionOptions { ttl, ..SessionOptions::default() }).await.unwrap()
}

/// Adds one, under one id until there is an answer.
async fn add_once(stream: &StreamHandle, session: &Session, name: &str) {
    let ticket = session.next_request_id().await.unwrap();
    let request =
        v1::AddCounterRequest { request_id: Some(ticket.request_id()), ..addition(name, 1) };
    loop {
        match stream.call(request.clone(), None).await {
            Ok(_) => return,
            Err(error) => assert!(error.retryable() || !error.definite(), "{error}"),
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// Eight clients add ten thousand times each, while leaders are killed under them: in the end the counter
/// is at the number of additions.
#[test]
fn every_addition_counts_once() {
    run(async {
        let mut cluster = Cluster::three().await;
        let endpoints = cluster.client();
        let mut clients = Vec::new();
        for _ in 0..CLIENTS {
            let client = endpoints.clone();
            clients.push(tokio::spawn(async move {
                let session = session(&client).await;
                let stream = client.stream();
                let mut under_way = FuturesUnordered::new();
                for _ in 0..ADDITIONS {
                    if under_way.len() == WINDOW {
                        under_way.next().await;
                    }
                    under_way.push(add_once(&stream, &session, "hits"));
                }
                while under_way.next().await.is_some() {}
            }));
        }
        for part in [1, 2, 3] {
            eventually("additions", async || {
                let at = text(value(&endpoints, "hits").await)?;
                let enough = at > CLIENTS * ADDITIONS / 8 * part;
                if enough { Ok(()) } else { Err(format!("at {at}")) }
            })
            .await;
            let leader = cluster.leader().await;
            cluster.kill(leader);
            cluster.start(leader).await;
        }
        for client in clients {
            client.await.unwrap();
        }
        assert_eq!(value(&endpoints, "hits").await.unwrap(), CLIENTS * ADDITIONS);
        cluster.same_digest().await;
    });
}

/// The client's own sums, sent every few milliseconds while leaders die: what it says was counted is what
/// the cluster has, and nothing is uncertain, because its session lives.
#[test]
fn sums_of_a_client_count_once() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let interval = Duration::from_millis(5);
        let options = CounterOptions { interval, ..CounterOptions::default() };
        let counters = client.counters(options).await.unwrap();
        let mut expected = [0i64; 3];
        for _ in 0..3 {
            for (i, expected) in expected.iter_mut().enumerate() {
                let counter = counters.gauge("", "level", [("part", i.to_string())]);
                for n in 0..20_000 {
                    let delta = if n % 3 == 0 { -1 } else { 2 };
                    counter.add(delta);
                    *expected += delta;
                    if n % 2_000 == 0 {
                        sleep(Duration::from_millis(2)).await;
                    }
                }
            }
            let leader = cluster.leader().await;
            cluster.kill(leader);
            cluster.start(leader).await;
        }
        counters.flush().await;
        let tally = counters.tally();
        assert_eq!((tally.refused, tally.uncertain), (0, 0), "{tally:?}");
        for (i, expected) in expected.iter().enumerate() {
            let labels = [("part".to_owned(), i.to_string())].into();
            let request =
                v1::GetCounterRequest { name: "level".into(), labels, ..Default::default() };
            let counter = client.get_counter(request).await.unwrap().counter.unwrap();
            assert_eq!(counter.value, *expected, "part {i}");
        }
        // What is added last is sent when nobody can add any more.
        counters.counter("", "last", [] as [(&str, &str); 0]).add(7);
        drop(counters);
        eventually("the last addition", async || match text(value(&client, "last").await)? {
            7 => Ok(()),
            other => Err(other.to_string()),
        })
        .await;
        // A counter is of one kind.
        let counters = client.counters(CounterOptions::default()).await.unwrap();
        counters.gauge("", "last", [] as [(&str, &str); 0]).add(-3);
        counters.flush().await;
        assert_eq!(counters.tally().refused, 3);
        assert!(counters.close(Duration::from_secs(30)).await);
        assert_eq!(value(&client, "last").await.unwrap(), 7);
    });
}

/// A bound refuses what would cross it, whoever adds at the same time: what was taken never exceeds what
/// was there.
#[test]
fn a_stock_is_never_oversold() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let stock =
            v1::SetCounterRequest { name: "stock".into(), value: 500, ..Default::default() };
        client.set_counter(stock, None).await.unwrap();
        let mut buyers = Vec::new();
        for buyer in 0..8 {
            let node = cluster.at(1 + buyer % 3);
            buyers.push(tokio::spawn(async move {
                let session = session(&node).await;
                let (mut sold, mut refused) = (0, 0);
                for _ in 0..100 {
                    let request = v1::AddCounterRequest { floor: Some(0), ..addition("stock", -1) };
                    match node.add_counter(request, Some(&session)).await {
                        Ok(_) => sold += 1,
                        Err(Error::OutOfBounds { bound: 0, .. }) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (sold, refused)
            }));
        }
        let (mut sold, mut refused) = (0, 0);
        for buyer in buyers {
            let (s, r) = buyer.await.unwrap();
            sold += s;
            refused += r;
        }
        assert_eq!((sold, refused), (500, 300));
        assert_eq!(value(&client, "stock").await.unwrap(), 0);
    });
}

/// Every node shows the cluster's counters as series, with their labels.
#[test]
fn counters_are_series_of_prometheus() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        client.add_counter(addition("orders_total", 3), None).await.unwrap();
        let labels = [("region".to_owned(), "a\"b\\c\nd".to_owned())].into();
        let labelled = v1::AddCounterRequest { labels, ..addition("orders_total", 4) };
        client.add_counter(labelled, None).await.unwrap();
        cluster.same_digest().await;
        for node in cluster.running() {
            let (code, text) = get(&node.http, "/metrics").await.unwrap();
            assert_eq!(code, 200);
            for line in [
                "# TYPE orders_total counter",
                "orders_total{namespace=\"default\"} 3",
                "orders_total{namespace=\"default\",region=\"a\\\"b\\\\c\\nd\"} 4",
                "quorate_counter_series 2",
                "quorate_counter_series_left_out 0",
            ] {
                assert!(text.lines().any(|found| found == line), "{line:?} is not in:\n{text}");
            }
        }
    });
}

fn publication(content: &str) -> v1::PublishConfigRequest {
    v1::PublishConfigRequest { key: "app".into(), content: content.into(), ..Default::default() }
}

fn gray(gate: v1::Gate) -> v1::PublishConfigRequest {
    let picks = v1::gray_terms::Picks::BasisPoints(2_500);
    let terms = v1::GrayTerms {
        rule: "canary".into(),
        picks: Some(picks),
        gate: Some(gate),
        ..Default::default()
    };
    v1::PublishConfigRequest { gray: Some(Box::new(terms)), ..publication("new") }
}

async fn history(client: &Client) -> Result<v1::ConfigHistoryResponse, String> {
    let request = v1::ConfigHistoryRequest { key: "app".into(), ..Default::default() };
    text(client.config_history(request).await)
}

/// A gate on a counter, crossed while leaders are being killed: the cluster takes the release back by
/// itself, once, and says why; nobody was given it but those that the rule picks.
#[test]
fn a_gate_rolls_back_while_leaders_die() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        client.publish_config(publication("old"), None).await.unwrap();
        client.add_counter(addition("errors", 100), None).await.unwrap();
        let measure = v1::GateCounter { name: "errors".into(), ..Default::default() };
        let gate = v1::Gate {
            measure: Some(v1::gate::Measure::Counter(measure)),
            bound: 10,
            for_ms: 600_000,
            promote: true,
        };
        let version = client.publish_config(gray(gate), None).await.unwrap().version;
        client.add_counter(addition("errors", 10), None).await.unwrap();
        // At the bound, not beyond it: the release stays, over a leader's death.
        let leader = cluster.leader().await;
        cluster.kill(leader);
        cluster.leader().await;
        let found = eventually("history", async || history(&client).await).await;
        assert_eq!(found.item.unwrap().gray.len(), 1);
        cluster.start(leader).await;

        let session = session(&client).await;
        client.add_counter(addition("errors", 1), Some(&session)).await.unwrap();
        let leader = cluster.leader().await;
        cluster.kill(leader);
        let found = eventually("rolled back", async || {
            let found = history(&client).await?;
            let left = found.item.as_ref().unwrap().gray.len();
            if left == 0 { Ok(found) } else { Err(format!("{left} gray releases")) }
        })
        .await;
        let ended = found.releases.iter().find(|release| release.version == version).unwrap();
        assert_eq!(ended.ending(), v1::GrayEnding::RolledBack, "{ended:?}");
        assert!(ended.ended_by.contains("has grown by 11, more than 10"), "{ended:?}");
        let current = found.item.unwrap().release.unwrap();
        assert_eq!((current.version, found.releases.len()), (1, 2));
        cluster.start(leader).await;
        cluster.same_digest().await;
    });
}

/// A gate on the health of those that got the release: one of them dies with its session.
#[test]
fn a_gate_sees_clients_die() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        client.publish_config(publication("old"), None).await.unwrap();
        let gate = v1::Gate {
            measure: Some(v1::gate::Measure::Unhealthy(true)),
            bound: 40,
            for_ms: 600_000,
            promote: false,
        };
        let version = client.publish_config(gray(gate), None).await.unwrap().version;
        // By hand: the client would keep them alive.
        let node = cluster.node(1).client.clone();
        let mut raw = v1::sessions_client::SessionsClient::new(channel(&node).await);
        let mut sessions = Vec::new();
        for i in 0..2 {
            let request = v1::OpenSessionRequest { ttl_ms: 1_000, ..Default::default() };
            let opened = raw.open(request).await.unwrap().into_inner();
            sessions.push((i, opened.session));
        }
        for (i, session) in &sessions {
            let running = v1::ConfigRunning {
                key: "app".into(),
                version,
                rule: "canary".into(),
                ..Default::default()
            };
            let request = v1::ReportConfigRequest {
                session: *session,
                client: format!("client-{i}"),
                items: vec![running],
                request_id: None,
            };
            client.report_config(request, None).await.unwrap();
        }
        // Nobody keeps them alive.
        let found = eventually("rolled back", async || {
            let found = history(&client).await?;
            let left = found.item.as_ref().unwrap().gray.len();
            if left == 0 { Ok(found) } else { Err(format!("{left} gray releases")) }
        })
        .await;
        let ended = found.releases.iter().find(|release| release.version == version).unwrap();
        assert_eq!(ended.ending(), v1::GrayEnding::RolledBack, "{ended:?}");
        assert!(ended.ended_by.contains("clients are unhealthy"), "{ended:?}");
    });
}

/// When the time of a gate passes, everybody gets the release.
#[test]
fn a_gate_promotes_when_its_time_has_passed() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        client.publish_config(publication("old"), None).await.unwrap();
        let measure = v1::GateCounter { name: "errors".into(), ..Default::default() };
        let gate = v1::Gate {
            measure: Some(v1::gate::Measure::Counter(measure)),
            bound: 10,
            for_ms: 1_000,
            promote: true,
        };
        client.publish_config(gray(gate), None).await.unwrap();
        let found = eventually("promoted", async || {
            let found = history(&client).await?;
            let current = found.item.as_ref().unwrap().release.clone().unwrap();
            if current.version == 3 { Ok(current) } else { Err(format!("{current:?}")) }
        })
        .await;
        assert_eq!((found.origin(), found.origin_version), (v1::ConfigOrigin::Promoted, 2));
    });
}

/// One transaction over configuration, a counter, a lock and the registry reaches a watcher of all of them
/// as one message.
#[test]
fn a_mixed_transaction_is_one_message() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let session = session(&client).await;
        let namespace = String::new;
        let mut watch = cluster.at(2).watch(WatchRange::Many(vec![
            WatchRange::Namespace { namespace: namespace() },
            WatchRange::ConfigPrefix {
                namespace: namespace(),
                group: String::new(),
                prefix: String::new(),
            },
            WatchRange::Counters { namespace: namespace(), prefix: "rel".into() },
            WatchRange::Lock { namespace: namespace(), lock: "deploy".into() },
        ]));
        let first = watch.next().await.unwrap().unwrap();
        assert!(matches!(first, WatchUpdate::Snapshot { .. }), "{first:?}");
        use v1::txn_step::Step;
        let lock = v1::AcquireLockRequest {
            lock: "deploy".into(),
            session: session.id(),
            ..Default::default()
        };
        let steps = [
            Step::AcquireLock(lock),
            Step::PublishConfig(publication("v1")),
            Step::AddCounter(addition("releases", 1)),
            Step::AddCounter(addition("unwatched", 1)),
            Step::Register(instance("web", "a").into()),
        ];
        let then = steps.map(|step| v1::TxnStep { step: Some(step) });
        let request = v1::TxnRequest { then: then.into(), ..Default::default() };
        let answer = client.txn(request, Some(&session)).await.unwrap();
        assert!(answer.succeeded);
        let update = loop {
            let update = watch.next().await.unwrap().unwrap();
            if !matches!(update, WatchUpdate::Bookmark { .. }) {
                break update;
            }
        };
        let WatchUpdate::Changes { revision, events } = update else { panic!("{update:?}") };
        assert_eq!(revision, answer.header.unwrap().revision);
        let kinds = events.iter().map(|event| match event.record.as_ref().unwrap() {
            Record::Instance(_) => "instance",
            Record::Service(_) => "service",
            Record::Config(_) => "config",
            Record::Counter(_) => "counter",
            Record::Lock(_) => "lock",
            Record::Alarm(_) => "alarm",
            Record::Saga(_) => "saga",
        });
        assert_eq!(kinds.collect::<Vec<_>>(), ["lock", "config", "counter", "instance"]);
    });
}

/// Takes what is posted; refuses the first post.
async fn webhook() -> (String, mpsc::UnboundedReceiver<serde_json::Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hooks/", listener.local_addr().unwrap());
    let (tx, rx) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut refused = false;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = Vec::new();
            let body = loop {
                let mut part = [0; 4096];
                let count = stream.read(&mut part).await.unwrap();
                request.extend_from_slice(&part[..count]);
                let text = String::from_utf8_lossy(&request);
                if let Some((_, body)) = text.split_once("\r\n\r\n")
                    && let Ok(body) = serde_json::from_str(body)
                {
                    break body;
                }
            };
            let status = if refused { "204 No Content" } else { "503 Not Now" };
            let answer =
                format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            if refused && tx.send(body).is_err() {
                return;
            }
            refused = true;
        }
    });
    (url, rx)
}

/// An alarm is raised and cleared, each is told to its webhook although that refuses at first and the
/// leader dies, and both can be watched.
#[test]
fn an_alarm_is_raised_told_and_cleared() {
    run(async {
        let (url, mut posts) = webhook().await;
        let mut cluster = Setup::default().option("--webhook-allow", &url).start(3).await;
        let client = cluster.client();
        let alarm = v1::Alarm {
            name: "low".into(),
            counter: "stock".into(),
            below: true,
            bound: 5.0,
            webhook: format!("{url}low"),
            ..Default::default()
        };
        let put = |alarm| v1::PutAlarmRequest { alarm: Some(alarm), request_id: None };
        let elsewhere = v1::Alarm { webhook: "http://127.0.0.1:1/".into(), ..alarm.clone() };
        let error = client.put_alarm(put(elsewhere), None).await.unwrap_err();
        assert!(error.to_string().starts_with("alarm.webhook: "), "{error}");
        let mut watch =
            client.watch(WatchRange::Alarms { namespace: String::new(), prefix: String::new() });
        watch.next().await.unwrap().unwrap();

        client.put_alarm(put(alarm), None).await.unwrap();
        let post = posts.recv().await.unwrap();
        assert_eq!((&post["status"], &post["transition"]), (&"raised".into(), &1.into()), "{post}");
        let leader = cluster.leader().await;
        cluster.kill(leader);
        let stock = v1::SetCounterRequest { name: "stock".into(), value: 9, ..Default::default() };
        let session = session(&client).await;
        client.set_counter(stock, Some(&session)).await.unwrap();
        // The raising may be told again by the new leader, when the old one did not note it.
        let post = loop {
            let post = posts.recv().await.unwrap();
            if post["status"] == "cleared" {
                break post;
            }
        };
        assert_eq!((&post["transition"], &post["measured"]), (&2.into(), &9.0.into()), "{post}");
        let mut seen = Vec::new();
        while seen.last() != Some(&(v1::AlarmStatus::Clear, 2, 2)) {
            let update = watch.next().await.unwrap().unwrap();
            let (WatchUpdate::Changes { events, .. } | WatchUpdate::Snapshot { events, .. }) =
                update
            else {
                continue;
            };
            for event in events {
                let Some(Record::Alarm(alarm)) = event.record else { panic!("{event:?}") };
                seen.push((alarm.status(), alarm.transitions, alarm.posted));
            }
        }
        assert!(seen.iter().any(|seen| seen.0 == v1::AlarmStatus::Raised), "{seen:?}");
        cluster.start(leader).await;
        cluster.same_digest().await;
    });
}
