//! Locks and elections: the order of the line, fencing, and what a holder that dies, stops or loses its
//! leader does to the others.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use quorate::client::txn::{Txn, counter};
use quorate::client::{Client, LockGuard, Lost, Session, SessionOptions};
use quorate::error::Error;
use quorate::proto::v1;
use quorate::proto::v1::locks_client::LocksClient;
use rustix::process::Signal;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use super::harness::{Cluster, PATIENCE, channel, eventually, quorate, run, send, text};

const LOCK: &str = "deploy";

async fn session(client: &Client) -> Session {
    let options = SessionOptions { ttl: Duration::from_secs(60), ..SessionOptions::default() };
    client.session(options).await.unwrap()
}

async fn line(client: &Client) -> Vec<v1::LockRequest> {
    eventually("the line", async || text(client.lock("", LOCK).line().await)).await
}

async fn until_line_has(client: &Client, length: usize) {
    eventually("the line", async || {
        let line = line(client).await;
        if line.len() == length { Ok(()) } else { Err(format!("{line:?}")) }
    })
    .await;
}

/// Six stand in line; the leader is killed and started again twice while the lock goes from one to the
/// next. They get it in the order in which they asked, each with a greater token.
#[test]
fn the_line_is_kept_in_order_over_killed_leaders() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let first = client.lock("", LOCK).acquire(&session(&client).await).await.unwrap();
        let shared = session(&client).await;
        let mut waiting = Vec::new();
        for number in 0..6 {
            let own = client.clone();
            // Every other one shares a session.
            let session = if number % 2 == 0 { shared.clone() } else { session(&client).await };
            waiting.push(tokio::spawn(async move {
                own.lock("", LOCK).value(number.to_string()).acquire(&session).await.unwrap()
            }));
            until_line_has(&client, number + 2).await;
        }
        let mut token = first.token();
        let mut holder: LockGuard = first;
        for (number, next) in waiting.into_iter().enumerate() {
            let leader = cluster.leader().await;
            if number == 1 || number == 3 {
                cluster.kill(leader);
            }
            let before = holder.token();
            assert!(timeout(PATIENCE, holder.release()).await.unwrap().unwrap());
            holder = timeout(PATIENCE, next).await.expect("the next one gets it").unwrap();
            assert!(holder.token() > token, "{} after {token}", holder.token());
            token = holder.token();
            let line = line(&client).await;
            assert_eq!(line[0].value, number.to_string());
            assert_eq!((line[0].token, line.len()), (token, 6 - number));
            assert!(line.iter().all(|request| request.token != before));
            if !cluster.node(leader).is_running() {
                cluster.start(leader).await;
            }
        }
        assert!(holder.is_held());
        drop(holder);
        until_line_has(&client, 0).await;
        cluster.same_digest().await;
    });
}

/// Tasks of two sessions read and write a counter under a lock, which is the only thing that keeps
/// their additions from being lost, while the leader is killed and started again.
#[test]
fn a_lock_excludes_over_killed_leaders() {
    const ROUNDS: i64 = 8;
    const TASKS: i64 = 6;
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let sessions = [session(&client).await, session(&client).await];
        let inside = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let (client, session) = (client.clone(), sessions[task as usize % 2].clone());
            let inside = inside.clone();
            tasks.spawn(async move {
                let (lock, sum) = (client.lock("", LOCK), counter("", "sum"));
                for _ in 0..ROUNDS {
                    let guard = lock.acquire(&session).await.unwrap();
                    assert!(!inside.swap(true, Ordering::SeqCst), "two hold the lock");
                    let read = Txn::new().then(sum.get()).commit(&client, None).await.unwrap();
                    let Some(v1::txn_result::Result::Get(found)) = &read.results[0].result else {
                        panic!("{read:?}")
                    };
                    let value = match &found.record {
                        Some(v1::found_record::Record::Counter(counter)) => counter.value,
                        None => 0,
                        other => panic!("{other:?}"),
                    };
                    let write = Txn::new().when(guard.condition()).then(sum.set(value + 1));
                    assert!(write.commit(&client, Some(&session)).await.unwrap().succeeded);
                    assert!(inside.swap(false, Ordering::SeqCst));
                    assert!(guard.release().await.unwrap());
                }
            });
        }
        for _ in 0..2 {
            let leader = cluster.leader().await;
            cluster.kill(leader);
            cluster.leader().await;
            cluster.start(leader).await;
        }
        timeout(PATIENCE * 2, async {
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        })
        .await
        .expect("all tasks finish");
        let request = v1::GetCounterRequest { name: "sum".into(), ..Default::default() };
        let counter = client.get_counter(request).await.unwrap().counter.unwrap();
        assert_eq!(counter.value, ROUNDS * TASKS);
        cluster.same_digest().await;
    });
}

/// Starts a command and returns the first line that it prints, as JSON.
async fn started(cluster: &Cluster, words: &[&str]) -> (Child, Value) {
    let endpoints = cluster.endpoints().join(",");
    let mut child = quorate(words)
        .args(["--endpoints", &endpoints, "--command-timeout", "30s", "-w", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().unwrap();
    (child, serde_json::from_str(&line).unwrap())
}

/// A holder is stopped for longer than its session lives. The next one gets the lock with a greater token;
/// what the old holder then does with its token is refused; and once it wakes it notices.
#[test]
fn a_holder_that_was_stopped_is_fenced_off() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let (holder, held) = started(&cluster, &["lock", LOCK, "--ttl", "2s"]).await;
        let old = held["token"].as_u64().unwrap();
        assert_eq!(held["lock"], LOCK);
        let own = session(&client).await;
        let refused = client.lock("", LOCK).try_acquire(&own).await.unwrap_err();
        assert!(matches!(refused, Error::LockHeld { token, .. } if token == old), "{refused:?}");

        let pid = holder.id().unwrap();
        send(pid, Signal::STOP);
        let stopped = Instant::now();
        let next = timeout(PATIENCE, client.lock("", LOCK).acquire(&own)).await.unwrap().unwrap();
        // It was kept alive at most a moment before.
        assert!(stopped.elapsed() > Duration::from_secs(1), "{:?}", stopped.elapsed());
        assert!(next.token() > old);

        // What the old holder sends when it goes on where it was.
        let effects = counter("", "effects");
        let guarded = |token: u64| {
            let held = next.name().token().is(token);
            Txn::new().when(held).then(effects.add(1)).commit(&client, None)
        };
        assert!(!guarded(old).await.unwrap().succeeded);
        assert!(guarded(next.token()).await.unwrap().succeeded);
        let request = v1::GetCounterRequest { name: "effects".into(), ..Default::default() };
        assert_eq!(client.get_counter(request).await.unwrap().counter.unwrap().value, 1);

        send(pid, Signal::CONT);
        let output = timeout(PATIENCE, holder.wait_with_output()).await.unwrap().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{errors}");
        assert!(errors.contains("lock deploy is lost: the session has ended"), "{errors}");
        assert!(next.is_held(), "the old holder does not take the lock with it");
    });
}

/// Any gRPC client waits for a lock with `wait_ms`, through any node; when the time is over its place in
/// the line is gone.
#[test]
fn a_plain_client_waits_for_a_lock() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let follower = cluster.followers().await[0];
        let mut locks = LocksClient::new(channel(&cluster.node(follower).client).await);
        let sessions = [session(&client).await, session(&client).await, session(&client).await];
        let [first, second, third] = [0, 1, 2].map(|number: usize| v1::AcquireLockRequest {
            lock: LOCK.into(),
            session: sessions[number].id(),
            ..Default::default()
        });
        let held = locks.acquire(first.clone()).await.unwrap().into_inner();
        assert_ne!(held.token, 0);
        let refused = Error::from(locks.acquire(second.clone()).await.unwrap_err());
        assert!(matches!(refused, Error::LockHeld { .. }), "{refused:?}");

        let waits = v1::AcquireLockRequest { wait_ms: 50_000, ..second };
        let mut other = locks.clone();
        let waiting = tokio::spawn(async move { other.acquire(waits).await });
        until_line_has(&client, 2).await;
        let short = v1::AcquireLockRequest { wait_ms: 300, ..third };
        let late = Error::from(locks.acquire(short).await.unwrap_err());
        assert_eq!(late.reason(), v1::Reason::Timeout, "{late:?}");
        let left = line(&client).await;
        let left: Vec<u64> = left.iter().map(|request| request.session).collect();
        assert_eq!(left, [sessions[0].id(), sessions[1].id()]);

        // With its session the holder's place goes, as it does with a release.
        sessions[0].close().await.unwrap();
        let next = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap().into_inner();
        assert!(next.token > held.token);
        assert_eq!(line(&client).await.len(), 1);
    });
}

/// So does the client's own call, for longer than an attempt may take that is not to wait; and when the time is over it
/// says so, under an id too.
#[test]
fn a_call_waits_for_a_lock() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let (first, second) = (session(&client).await, session(&client).await);
        let request = |session: &Session, wait_ms| v1::AcquireLockRequest {
            lock: LOCK.into(),
            session: session.id(),
            wait_ms,
            ..Default::default()
        };
        client.acquire_lock(request(&first, 0), Some(&first)).await.unwrap();
        let late = client.acquire_lock(request(&second, 2_500), Some(&second)).await.unwrap_err();
        assert_eq!(late, Error::Timeout { definite: true });
        assert_eq!(line(&client).await.len(), 1);
        let waiting = tokio::spawn({
            let (client, request, second) =
                (client.clone(), request(&second, 4_000), second.clone());
            async move { client.acquire_lock(request, Some(&second)).await }
        });
        until_line_has(&client, 2).await;
        tokio::time::sleep(Duration::from_millis(2_500)).await;
        first.close().await.unwrap();
        assert_ne!(waiting.await.unwrap().unwrap().token, 0);
    });
}

/// A place in the line is given up when the time is over or the future is dropped; a guard that is dropped
/// releases; and whoever is told the token can take the lock away, which the holder notices.
#[test]
fn places_and_locks_are_given_up() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let own = session(&client).await;
        let lock = client.lock("", LOCK);
        let guard = lock.acquire(&own).await.unwrap();

        let short = lock.clone().timeout(Duration::from_millis(300));
        let error = short.acquire(&own).await.unwrap_err();
        assert_eq!(error, Error::Timeout { definite: true });
        until_line_has(&client, 1).await;

        let dropped = timeout(Duration::from_millis(300), lock.acquire(&own)).await;
        assert!(dropped.is_err());
        until_line_has(&client, 1).await;

        let request = v1::ReleaseLockRequest {
            lock: LOCK.into(),
            token: guard.token(),
            ..Default::default()
        };
        assert!(client.release_lock(request, None).await.unwrap().released);
        assert_eq!(timeout(PATIENCE, guard.lost()).await.unwrap(), Lost::Taken);
        assert!(!guard.is_held());
        let next = lock.try_acquire(&own).await.unwrap();
        assert!(!guard.release().await.unwrap(), "it has nothing to release any more");
        assert!(next.is_held());
        assert_eq!(line(&client).await[0].token, next.token());
        drop(next);
        until_line_has(&client, 0).await;
    });
}

/// Leaders come and go; an observer hears of each, of each value, and of nobody.
#[test]
fn an_election_and_its_observer() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let election = client.election("", "scheduler");
        let mut told = Box::pin(election.observe());
        let mut next = async || {
            let leader = timeout(PATIENCE, told.next()).await.expect("news").unwrap().unwrap();
            leader.map(|leader| (leader.value, leader.token))
        };
        assert_eq!(next().await, None);
        assert_eq!(election.leader().await.unwrap(), None);

        let first = election.campaign(&session(&client).await, "a:1").await.unwrap();
        assert_eq!(next().await, Some(("a:1".to_owned(), first.token())));
        let other = session(&client).await;
        let campaign = tokio::spawn({
            let election = election.clone();
            async move { election.campaign(&other, "b:1").await.unwrap() }
        });
        first.proclaim("a:2").await.unwrap();
        assert_eq!(next().await, Some(("a:2".to_owned(), first.token())));
        let leader = cluster.leader().await;
        cluster.kill(leader);
        let found = election.leader().await.unwrap().unwrap();
        assert_eq!((found.value.as_str(), found.token), ("a:2", first.token()));
        assert!(!campaign.is_finished());
        assert!(first.resign().await.unwrap());
        let second = timeout(PATIENCE, campaign).await.unwrap().unwrap();
        assert_eq!(next().await, Some(("b:1".to_owned(), second.token())));
        cluster.start(leader).await;
        assert!(second.is_held());
        drop(second);
        assert_eq!(next().await, None);
    });
}

/// The command of a session that closes while it waits leaves no place behind.
#[test]
fn a_waiter_whose_session_ends_is_told() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let _held = client.lock("", LOCK).acquire(&session(&client).await).await.unwrap();
        let own = session(&client).await;
        let waiting = tokio::spawn({
            let (client, own) = (client.clone(), own.clone());
            async move { client.lock("", LOCK).acquire(&own).await }
        });
        until_line_has(&client, 2).await;
        own.close().await.unwrap();
        let error = timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error, Error::SessionExpired { session: own.id() });
        sleep(Duration::from_millis(1)).await;
        assert_eq!(line(&client).await.len(), 1);
    });
}
