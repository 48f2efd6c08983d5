//! Standing in line for a lock, holding it and losing it, with nodes that fail.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::{FutureExt as _, StreamExt as _};
use tokio::time::timeout;
use tonic::Status;

use super::fake::{Node, plain};
use super::*;
use crate::client::{Answer, Call, Lost, Session, SessionOptions};
use crate::error::Error;

const SESSION: u64 = 7;

fn header(revision: u64) -> Option<Header> {
    Some(Header { revision, ..Default::default() })
}

fn acquired(token: u64, revision: u64) -> Answer {
    Answer::AcquireLock(AcquireLockResponse { header: header(revision), token, ahead: 1 })
}

fn released() -> Answer {
    Answer::ReleaseLock(ReleaseLockResponse { header: None, released: true })
}

/// A node that answers requests for a lock with `acquire`, told how many came before.
fn node(
    acquire: impl Fn(usize, &AcquireLockRequest) -> Result<Answer, Error> + Send + Sync + 'static,
) -> Node {
    let count = AtomicUsize::new(0);
    Node::simple(move |call| match call {
        Call::AcquireLock(request) => acquire(count.fetch_add(1, Ordering::Relaxed), request),
        Call::ReleaseLock(_) => Ok(released()),
        Call::UpdateLock(_) => {
            Ok(Answer::UpdateLock(UpdateLockResponse { header: None, changed: true }))
        }
        call => Ok(plain(call)),
    })
}

async fn session(node: &Node) -> (Client, Session) {
    let client = client(&[node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    assert_eq!(session.id(), SESSION);
    (client, session)
}

fn request(session: u64, holder: &str, token: u64) -> LockRequest {
    let (namespace, lock) = ("n".to_owned(), "l".to_owned());
    let (holder, value) = (holder.to_owned(), format!("v{token}"));
    // Any numbers that differ.
    let ticket = session * 1_000 + u64::from(holder.as_bytes()[0]);
    LockRequest { namespace, lock, session, holder, value, ticket, token, ..Default::default() }
}

/// Of a request that has gone a watch tells only the ticket.
fn event(request: LockRequest, deleted: bool) -> WatchEvent {
    let request = match deleted {
        true => LockRequest {
            session: 0,
            holder: String::new(),
            value: String::new(),
            token: 0,
            ..request
        },
        false => request,
    };
    WatchEvent { record: Some(watch_event::Record::Lock(request)), deleted }
}

fn update(revision: u64, snapshot: bool, events: Vec<WatchEvent>) -> Result<WatchResponse, Status> {
    Ok(WatchResponse { revision, snapshot, events, ..Default::default() })
}

fn broken() -> Result<WatchResponse, Status> {
    Err(Status::unavailable("broken by the script"))
}

fn script(node: &Node, scripts: Vec<Vec<Result<WatchResponse, Status>>>) {
    node.fake.watch_scripts.lock().unwrap().extend(scripts);
}

fn asked(node: &Node) -> Vec<AcquireLockRequest> {
    let calls = node.calls().into_iter();
    calls
        .filter_map(|call| match call {
            Call::AcquireLock(request) => Some(request),
            _ => None,
        })
        .collect()
}

fn given_up(node: &Node) -> Vec<ReleaseLockRequest> {
    let calls = node.calls().into_iter();
    calls
        .filter_map(|call| match call {
            Call::ReleaseLock(request) => Some(request),
            _ => None,
        })
        .collect()
}

/// A request without an answer is sent again as the same one; the lock is released by its token.
#[tokio::test]
async fn the_request_has_one_id_however_often_it_is_sent() {
    let node = node(|count, _| match count {
        0 | 1 => Err(Error::LeaderChanged),
        _ => Ok(acquired(5, 5)),
    });
    let (client, session) = session(&node).await;
    let guard = client.lock("n", "l").value("me").acquire(&session).await.unwrap();
    assert_eq!((guard.token(), guard.is_held()), (5, true));
    let asked = asked(&node);
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|request| *request == asked[0]), "{asked:?}");
    assert_eq!((asked[0].session, asked[0].queue, asked[0].wait_ms), (SESSION, true, 0));
    assert_eq!((asked[0].value.as_str(), asked[0].holder.len()), ("me", 16));
    assert!(guard.release().await.unwrap());
    let given_up = given_up(&node);
    assert_eq!((given_up.len(), given_up[0].token, given_up[0].session), (1, 5, 0));
}

/// Each request has a holder of its own, unless the caller says otherwise.
#[tokio::test]
async fn the_tasks_of_a_session_are_told_apart() {
    let node = node(|count, _| Ok(acquired(count as u64 + 5, 5)));
    let (client, session) = session(&node).await;
    let lock = client.lock("n", "l");
    let first = lock.acquire(&session).await.unwrap();
    let second = lock.try_acquire(&session).await.unwrap();
    assert_ne!(first.holder(), second.holder());
    let named = lock.holder("me").acquire(&session).await.unwrap();
    assert_eq!(named.holder(), "me");
}

/// The line is followed over broken watches and nodes that are behind, until the own request has a token.
#[tokio::test]
async fn waiting_goes_on_over_broken_watches() {
    let node = node(|_, _| Ok(acquired(0, 5)));
    script(
        &node,
        vec![
            // A node that does not know of the request yet, although it says nothing wrong.
            vec![update(4, true, vec![]), broken()],
            vec![update(5, true, vec![event(request(1, "x", 3), false)]), broken()],
            vec![
                update(
                    6,
                    true,
                    vec![event(request(1, "x", 3), false), event(request(SESSION, "me", 0), false)],
                ),
                update(7, false, vec![event(request(9, "me", 0), false)]),
                broken(),
            ],
            vec![update(
                8,
                false,
                vec![event(request(1, "x", 3), true), event(request(SESSION, "me", 8), false)],
            )],
        ],
    );
    // What the second watch leaves out is asked for, and it is still there.
    *node.fake.line.lock().unwrap() = vec![request(1, "x", 3), request(SESSION, "me", 0)];
    let (client, session) = session(&node).await;
    let lock = client.lock("n", "l").holder("me");
    let waiting = timeout(Duration::from_secs(5), lock.acquire(&session));
    let guard = waiting.await.unwrap().unwrap();
    assert_eq!(guard.token(), 8);
    let watched = node.fake.range_watches.lock().unwrap().clone();
    assert_eq!(watched.iter().map(|it| it.after_revision).collect::<Vec<_>>(), [0, 4, 5, 7]);
}

/// The place is given up when the time is over, once, and again when the future is dropped.
#[tokio::test]
async fn a_place_that_nobody_waits_at_is_given_up() {
    let node = node(|_, _| Ok(acquired(0, 5)));
    *node.fake.line.lock().unwrap() = vec![request(1, "x", 3), request(SESSION, "me", 0)];
    let (client, session) = session(&node).await;
    let lock = client.lock("n", "l").holder("me").timeout(Duration::from_millis(100));
    let error = lock.acquire(&session).await.unwrap_err();
    assert_eq!(error, Error::Timeout { definite: true });
    let left = given_up(&node);
    assert_eq!((left.len(), left[0].holder.as_str(), left[0].session), (1, "me", SESSION));
    assert_eq!(left[0].token, 0);

    let lock = client.lock("n", "l").holder("you");
    assert!(timeout(Duration::from_millis(200), lock.acquire(&session)).await.is_err());
    eventually("the place is given up", || given_up(&node).len() == 2).await;
    assert_eq!(given_up(&node)[1].holder, "you");
}

/// A request whose answer is not known is first settled, then given up: a copy of it that comes late finds
/// its answer stored, and stands in no line.
#[tokio::test]
async fn a_place_is_settled_before_it_is_given_up() {
    let count = Arc::new(AtomicUsize::new(0));
    let node = Node::new({
        let count = count.clone();
        move |call| {
            let first =
                matches!(call, Call::AcquireLock(_)) && count.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if first {
                    std::future::pending::<()>().await;
                }
                match &call {
                    Call::AcquireLock(_) => Ok(acquired(9, 9)),
                    Call::ReleaseLock(_) => Ok(released()),
                    call => Ok(plain(call)),
                }
            }
            .boxed()
        }
    });
    let (client, session) = session(&node).await;
    let lock = client.lock("n", "l").timeout(Duration::from_millis(100));
    assert_eq!(lock.acquire(&session).await.unwrap_err(), Error::Timeout { definite: true });
    eventually("the place is given up", || given_up(&node).len() == 1).await;
    let (asked, left) = (asked(&node), given_up(&node));
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[0], asked[1]);
    assert_eq!(left[0].holder, asked[0].holder);
    assert!(left[0].request_id.unwrap().sequence > asked[0].request_id.unwrap().sequence);
}

/// A node that is low on disk refuses for itself: what was sent to another before may take place. And who
/// has gone releases when there is space again.
#[tokio::test]
async fn a_node_without_space_ends_no_doubt() {
    let (asked_before, left_before) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let node = Node::simple(move |call| match call {
        Call::AcquireLock(_) => match asked_before.fetch_add(1, Ordering::Relaxed) {
            0 => Err(Error::Timeout { definite: false }),
            1 | 2 => Err(Error::NoSpace { free_bytes: 1 }),
            _ => Ok(acquired(5, 5)),
        },
        Call::ReleaseLock(_) => match left_before.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => Err(Error::NoSpace { free_bytes: 1 }),
            _ => Ok(released()),
        },
        call => Ok(plain(call)),
    });
    *node.fake.line.lock().unwrap() = vec![request(SESSION, "me", 5)];
    let (client, session) = session(&node).await;
    let guard = client.lock("n", "l").holder("me").acquire(&session).await.unwrap();
    let asked = asked(&node);
    assert_eq!(asked.len(), 4);
    assert!(asked.iter().all(|it| it.request_id == asked[0].request_id), "{asked:?}");
    drop(guard);
    eventually("it is released", || given_up(&node).len() == 3).await;
}

/// Without waiting: refused, and nothing is left to give up.
#[tokio::test]
async fn a_lock_that_is_held_is_refused() {
    let node = node(|_, _| Err(Error::LockHeld { owner: 3, token: 4 }));
    let (client, session) = session(&node).await;
    let error = client.lock("n", "l").try_acquire(&session).await.unwrap_err();
    assert_eq!(error, Error::LockHeld { owner: 3, token: 4 });
    assert!(!asked(&node)[0].queue);
    session.close().await.unwrap();
    assert_eq!(given_up(&node), []);
}

/// A guard notices that somebody took the lock with its token, but only when a read says so too.
#[tokio::test]
async fn a_lock_that_is_taken_away_is_noticed() {
    let node = node(|_, _| Ok(acquired(5, 5)));
    let own = || request(SESSION, "me", 5);
    *node.fake.line.lock().unwrap() = vec![own()];
    script(&node, vec![vec![update(6, true, vec![]), broken()], vec![]]);
    let (client, session) = session(&node).await;
    let guard = client.lock("n", "l").holder("me").acquire(&session).await.unwrap();
    // The snapshot lacks the request, and the read has it.
    eventually("the second watch", || node.fake.range_watches.lock().unwrap().len() == 2).await;
    assert!(guard.is_held());
    drop(guard);
    eventually("it is released", || given_up(&node).len() == 1).await;

    *node.fake.line.lock().unwrap() = vec![request(8, "other", 9)];
    script(
        &node,
        vec![vec![
            update(5, true, vec![event(own(), false)]),
            update(9, false, vec![event(own(), true)]),
        ]],
    );
    let guard = client.lock("n", "l").holder("me").acquire(&session).await.unwrap();
    let lost = timeout(Duration::from_secs(5), guard.lost()).await.unwrap();
    assert_eq!((lost, guard.is_held()), (Lost::Taken, false));
    drop(guard);
    assert_eq!(given_up(&node).len(), 1, "what is lost is not released");
}

#[tokio::test]
async fn a_lock_is_lost_with_its_session() {
    let node = node(|_, _| Ok(acquired(5, 5)));
    let (client, session) = session(&node).await;
    let guard = client.lock("n", "l").acquire(&session).await.unwrap();
    session.close().await.unwrap();
    assert_eq!((guard.lost().await, guard.is_held()), (Lost::Session, false));
    assert!(!guard.release().await.unwrap());
    assert_eq!(given_up(&node), []);
    let error = client.lock("n", "l").acquire(&session).await.unwrap_err();
    assert_eq!(error, Error::SessionExpired { session: SESSION });
}

/// Every change of the leader is told once; so is that nobody leads.
#[tokio::test]
async fn leaders_are_observed_once_each() {
    let node = node(|_, _| Ok(acquired(5, 5)));
    let lead = |holder: &str, token| event(request(SESSION, holder, token), false);
    let gone = |holder: &str, token| event(request(SESSION, holder, token), true);
    let valued = |value: &str| {
        let valued = LockRequest { value: value.into(), ..request(SESSION, "a", 5) };
        event(valued, false)
    };
    script(
        &node,
        vec![
            vec![
                update(4, true, vec![]),
                update(5, false, vec![lead("a", 5)]),
                update(6, false, vec![event(request(SESSION, "b", 0), false)]),
                update(7, false, vec![valued("new")]),
                broken(),
            ],
            vec![
                // Everything once more, and what happened meanwhile.
                update(8, true, vec![valued("new"), event(request(SESSION, "b", 0), false)]),
                update(9, false, vec![gone("a", 5), lead("b", 9)]),
                update(10, false, vec![gone("b", 9)]),
            ],
        ],
    );
    let leaders = client(&[&node]).election("n", "l").observe();
    let told: Vec<Option<(String, u64)>> = timeout(
        Duration::from_secs(5),
        leaders.take(5).map(|it| it.unwrap().map(|it| (it.value, it.token))).collect(),
    )
    .await
    .unwrap();
    let some = |value: &str, token| Some((value.to_owned(), token));
    assert_eq!(told, [None, some("v5", 5), some("new", 5), some("v9", 9), None]);
}
