//! Leases and the bookkeeping of ids.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::fake::{Node, plain};
use super::*;
use crate::client::{Answer, Call, Session, SessionOptions, SessionState, Ticket};
use crate::error::Error;
use crate::limits;

/// A node whose sessions live for `ttl`; each opened session gets the next id. While `deaf` it takes
/// no keep-alive; `expired` holds the id of a session that has expired.
struct Leases {
    node: Node,
    deaf: Arc<AtomicBool>,
    expired: Arc<AtomicU64>,
}

fn leases(ttl: Duration) -> Leases {
    let deaf = Arc::new(AtomicBool::new(false));
    let expired = Arc::new(AtomicU64::new(0));
    let opened = AtomicU64::new(100);
    let node = Node::simple({
        let (deaf, expired) = (deaf.clone(), expired.clone());
        move |call| match call {
            Call::KeepAlive(request) if expired.load(Ordering::Relaxed) == request.session => {
                Err(Error::SessionExpired { session: request.session })
            }
            Call::KeepAlive(_) if deaf.load(Ordering::Relaxed) => {
                Err(Error::NoLeader { leader: None, definite: true })
            }
            Call::KeepAlive(_) => Ok(Answer::KeepAlive(KeepAliveResponse {
                header: None,
                ttl_ms: ttl.as_millis() as u64,
            })),
            Call::OpenSession(_) => Ok(Answer::OpenSession(OpenSessionResponse {
                header: None,
                session: opened.fetch_add(1, Ordering::Relaxed),
                ttl_ms: ttl.as_millis() as u64,
            })),
            call => Ok(plain(call)),
        }
    });
    Leases { node, deaf, expired }
}

fn closed(node: &Node) -> Vec<u64> {
    node.calls()
        .into_iter()
        .filter_map(|call| match call {
            Call::CloseSession(request) => Some(request.session),
            _ => None,
        })
        .collect()
}

fn beats(node: &Node) -> usize {
    node.calls().iter().filter(|call| matches!(call, Call::KeepAlive(_))).count()
}

#[tokio::test]
async fn a_session_is_kept_alive_every_third_of_its_ttl() {
    let leases = leases(Duration::from_millis(300));
    let session = client(&[&leases.node]).session(SessionOptions::default()).await.unwrap();
    assert_eq!(session.ttl(), Duration::from_millis(300));
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    let beats = beats(&leases.node);
    assert!((7..=11).contains(&beats), "{beats} keep-alives in 1.05 s");
    assert_eq!(session.state(), SessionState::Alive { session: 100 });
}

#[tokio::test]
async fn a_keep_alive_that_fails_is_not_an_expiry() {
    let leases = leases(Duration::from_millis(900));
    let session = client(&[&leases.node]).session(SessionOptions::default()).await.unwrap();
    for _ in 0..3 {
        leases.deaf.store(true, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(500)).await;
        leases.deaf.store(false, Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(session.state(), SessionState::Alive { session: 100 });
    }
}

#[tokio::test]
async fn a_session_is_lost_when_its_ttl_passes_unacknowledged() {
    let leases = leases(Duration::from_millis(400));
    let session = client(&[&leases.node]).session(SessionOptions::default()).await.unwrap();
    leases.deaf.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    session.expired().await;
    let lived = begun.elapsed();
    assert!(lived > Duration::from_millis(200) && lived < Duration::from_millis(700), "{lived:?}");
    assert_eq!(session.state(), SessionState::Expired { session: 100 });
    let error = session.next_request_id().await.unwrap_err();
    assert_eq!(error, Error::SessionExpired { session: 100 });
    // The cluster is told, because it may still count on the session.
    eventually("the lost session is closed", || closed(&leases.node) == [100]).await;
}

#[tokio::test]
async fn a_session_is_lost_when_the_cluster_says_so() {
    let leases = leases(Duration::from_secs(60));
    let client = client(&[&leases.node]);
    let short = super::session::leases(Duration::from_millis(600));
    let session = super::client(&[&short.node]).session(SessionOptions::default()).await.unwrap();
    short.expired.store(100, Ordering::Relaxed);
    let begun = Instant::now();
    session.expired().await;
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    // Or in answer to a write.
    let node = Node::simple(|call| match call {
        Call::Register(_) => Err(Error::SessionExpired { session: 7 }),
        call => Ok(plain(call)),
    });
    let other = super::client(&[&node]);
    let session = other.session(SessionOptions::default()).await.unwrap();
    let error = other.register(register("a"), Some(&session)).await.unwrap_err();
    assert_eq!(error, Error::SessionExpired { session: 7 });
    assert_eq!(session.state(), SessionState::Expired { session: 7 });
    // The expiry of somebody else's session is not ours.
    let session = client.session(SessionOptions::default()).await.unwrap();
    session.note(&Error::SessionExpired { session: 7 });
    assert_eq!(session.state(), SessionState::Alive { session: 100 });
}

#[tokio::test]
async fn a_lost_session_is_opened_again_on_request() {
    let leases = leases(Duration::from_millis(300));
    let options = SessionOptions { reopen: true, ..Default::default() };
    let session = client(&[&leases.node]).session(options).await.unwrap();
    let old = session.next_request_id().await.unwrap();
    assert_eq!((old.request_id().session, old.request_id().sequence), (100, 1));
    let mut states = session.subscribe();
    leases.expired.store(100, Ordering::Relaxed);
    states.changed().await.unwrap();
    assert_eq!(*states.borrow_and_update(), SessionState::Expired { session: 100 });
    states.changed().await.unwrap();
    assert_eq!(*states.borrow_and_update(), SessionState::Alive { session: 101 });
    assert_eq!(session.id(), 101);
    let new = session.next_request_id().await.unwrap();
    assert_eq!((new.request_id().session, new.request_id().sequence), (101, 1));
}

#[tokio::test]
async fn a_session_ends_with_its_last_holder() {
    let leases = leases(Duration::from_secs(10));
    let client = client(&[&leases.node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    let clone = session.clone();
    drop(session);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(closed(&leases.node), [0; 0]);
    drop(clone);
    eventually("the session is closed", || closed(&leases.node) == [100]).await;
    let session = client.session(SessionOptions::default()).await.unwrap();
    assert!(session.close().await.unwrap().closed);
    assert_eq!(session.state(), SessionState::Closed);
    drop(session);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(closed(&leases.node), [100, 101], "closed once");
}

async fn opened() -> (Node, Session) {
    let node = Node::simple(|call| Ok(plain(call)));
    let client = client(&[&node]).with_timeout(Duration::from_millis(100));
    let session = client.session(SessionOptions::default()).await.unwrap();
    (node, session)
}

#[tokio::test]
async fn the_lowest_unacknowledged_never_skips_an_outstanding_sequence() {
    let (_node, session) = opened().await;
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut outstanding: Vec<Ticket> = Vec::new();
        for step in 0..5_000 {
            if rng.random_bool(0.5) {
                if let Some(ticket) = session.try_next_request_id() {
                    outstanding.push(ticket);
                } else {
                    assert!(session.in_flight() >= limits::SESSION_IN_FLIGHT, "refused too early");
                }
            } else if !outstanding.is_empty() {
                let lucky = rng.random_range(0..outstanding.len());
                outstanding.swap_remove(lucky);
            }
            let Some(newest) =
                outstanding.iter().map(Ticket::request_id).max_by_key(|id| id.sequence)
            else {
                continue;
            };
            let lowest = outstanding.iter().map(|t| t.request_id().sequence).min().unwrap();
            assert!(
                newest.lowest_unacknowledged <= lowest,
                "seed {seed} step {step}: {newest:?} forgets {lowest}"
            );
            let window = newest.sequence - newest.lowest_unacknowledged;
            assert!(
                window < limits::SESSION_IN_FLIGHT as u64,
                "seed {seed} step {step}: {newest:?}"
            );
        }
    }
    // With everything settled the next id acknowledges all before it.
    let id = session.next_request_id().await.unwrap().request_id();
    assert_eq!(id.sequence, id.lowest_unacknowledged);
}

#[tokio::test]
async fn one_slow_write_holds_the_window() {
    let (_node, session) = opened().await;
    let slow = session.next_request_id().await.unwrap();
    for _ in 1..limits::SESSION_IN_FLIGHT {
        drop(session.next_request_id().await.unwrap());
    }
    // Everything but the slow one is answered, yet the cluster still keeps all these answers.
    assert!(session.try_next_request_id().is_none());
    let error = session.next_request_id().await.unwrap_err();
    assert_eq!(error, Error::Timeout { definite: true });
    let waiting = tokio::spawn({
        let session = session.clone();
        async move { session.next_request_id().await.map(|ticket| ticket.request_id()) }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(slow);
    let id = waiting.await.unwrap().unwrap();
    assert_eq!(id.sequence, limits::SESSION_IN_FLIGHT as u64 + 1);
    assert_eq!(id.lowest_unacknowledged, id.sequence);
}
