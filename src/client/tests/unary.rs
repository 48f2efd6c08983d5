//! Which node gets a unary call, and when it is sent again.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use futures::FutureExt;

use super::fake::{Node, plain};
use super::*;
use crate::client::connection::settle;
use crate::client::request::Request as _;
use crate::client::{Call, DownloadError, ReadFrom, SessionOptions};
use crate::error::Error;

/// Fails the first `times` calls of the kind that `fails` names.
fn failing(times: usize, error: Error, fails: fn(&Call) -> bool) -> Node {
    let seen = AtomicUsize::new(0);
    Node::simple(move |call| {
        if fails(call) && seen.fetch_add(1, Ordering::Relaxed) < times {
            return Err(error.clone());
        }
        Ok(plain(call))
    })
}

fn is_register(call: &Call) -> bool {
    matches!(call, Call::Register(_))
}

#[tokio::test]
async fn a_write_with_an_id_is_sent_again_under_the_same_id() {
    let node = failing(3, Error::LeaderChanged, is_register);
    let client = client(&[&node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    client.register(register("a"), Some(&session)).await.unwrap();
    client.register(register("b"), Some(&session)).await.unwrap();
    let first = RequestId { session: 7, sequence: 1, lowest_unacknowledged: 1 };
    let second = RequestId { session: 7, sequence: 2, lowest_unacknowledged: 2 };
    let expected = [first, first, first, first, second].map(Some);
    assert_eq!(node.register_ids(), expected);
}

#[tokio::test]
async fn a_write_without_an_id_is_not_sent_again_when_it_may_have_taken_place() {
    let node = failing(1, Error::LeaderChanged, is_register);
    let error = client(&[&node]).register(register("a"), None).await.unwrap_err();
    assert_eq!(error, Error::LeaderChanged);
    assert!(!error.definite());
    assert_eq!(node.register_ids(), [None]);
}

/// The state has no answer to keep for a call without an id: what it says of a copy is no word of the first.
#[test]
fn a_copy_without_an_id_does_not_speak_for_the_first() {
    let refused = Error::NotFound { kind: "transaction".to_owned(), name: "n/g".to_owned() };
    assert_eq!(settle(refused.clone(), false, false), refused);
    assert_eq!(settle(refused.clone(), true, true), refused);
    let unknown = settle(refused, true, false);
    assert!(!unknown.definite(), "{unknown:?}");
    assert!(unknown.to_string().contains("n/g"), "{unknown}");
    let id = Some(RequestId { session: 7, sequence: 1, lowest_unacknowledged: 1 });
    let submit = |request_id| v1::SubmitSagaRequest { request_id, ..Default::default() };
    assert!(submit(id).is_identified() && !submit(None).is_identified());
    assert!(submit(None).is_repeatable());
}

/// The answer that a schema has changed is not kept: the first copy may come later and be carried out.
#[test]
fn a_copy_that_missed_a_schema_does_not_speak_for_the_first() {
    let changed = Error::SchemaChanged { checked: 1, current: 2 };
    let in_step = |error: Error| Error::InStep { step: 0, error: Box::new(error) };
    for passing in [changed.clone(), in_step(changed)] {
        assert!(passing.definite());
        let unknown = settle(passing, true, true);
        assert!(!unknown.definite(), "{unknown:?}");
    }
    let refused = in_step(Error::CompareFailed { expected: 1, current: 2 });
    assert_eq!(settle(refused.clone(), true, true), refused);
}

/// What is forgotten soon would be begun anew by a copy.
#[test]
fn a_transaction_of_short_memory_is_not_begun_twice() {
    let begin = |gid: &str, retention_ms| v1::BeginSagaRequest {
        gid: gid.to_owned(),
        retention_ms,
        ..Default::default()
    };
    assert!(begin("g", None).is_repeatable());
    assert!(begin("g", Some(3_600_000)).is_repeatable());
    assert!(!begin("g", Some(1_000)).is_repeatable());
    assert!(!begin("", None).is_repeatable());
}

#[tokio::test]
async fn a_write_without_an_id_is_sent_again_when_it_did_not_take_place() {
    let node = failing(2, Error::NoLeader { leader: None, definite: true }, is_register);
    client(&[&node]).register(register("a"), None).await.unwrap();
    assert_eq!(node.register_ids(), [None; 3]);
}

#[tokio::test]
async fn an_error_that_will_not_pass_is_returned_at_once() {
    let refusal = Error::CompareFailed { expected: 1, current: 2 };
    let node = failing(1, refusal.clone(), is_register);
    let client = client(&[&node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    let error = client.register(register("a"), Some(&session)).await.unwrap_err();
    assert_eq!(error, refusal);
    assert_eq!(node.register_ids().len(), 1);
}

#[tokio::test]
async fn a_read_is_repeated_on_another_node() {
    let bad = Node::simple(|_| Err(Error::ShuttingDown { definite: true }));
    let good = Node::simple(|call| Ok(plain(call)));
    let client = client(&[&bad, &good]);
    for _ in 0..4 {
        client.get_instance(get("a")).await.unwrap();
    }
    assert_eq!(good.calls().len(), 4);
}

#[tokio::test]
async fn a_refused_connection_is_definite() {
    let mut node = Node::simple(|call| Ok(plain(call)));
    node.stop();
    let client = client(&[&node]).with_timeout(Duration::from_millis(300));
    let error = client.register(register("a"), None).await.unwrap_err();
    assert!(matches!(error, Error::Connection { definite: true, .. }), "{error:?}");
    // And hence even a write without an id goes on to the next node.
    let live = Node::simple(|call| Ok(plain(call)));
    let client = super::client(&[&node, &live]);
    for _ in 0..4 {
        client.register(register("a"), None).await.unwrap();
    }
    assert_eq!(live.register_ids(), [None; 4]);
}

#[tokio::test]
async fn a_connection_is_made_again_after_the_node_was_restarted() {
    let mut node = Node::simple(|call| Ok(plain(call)));
    let client = client(&[&node]);
    client.get_instance(get("a")).await.unwrap();
    node.stop();
    node.start();
    client.get_instance(get("b")).await.unwrap();
    assert_eq!(node.calls().len(), 2);
}

/// A node that takes a call and never answers, like one that was stopped by a signal.
fn silent(fails: fn(&Call) -> bool) -> Node {
    Node::new(move |call| {
        async move {
            if fails(&call) {
                std::future::pending::<()>().await;
            }
            Ok(plain(&call))
        }
        .boxed()
    })
}

#[tokio::test]
async fn a_silent_node_does_not_eat_the_deadline() {
    let silent_one = silent(is_register);
    let other = Node::simple(|call| Ok(plain(call)));
    // The silent one leads, so that it is asked first.
    silent_one.says(1, 1, Some((1, "")));
    other.says(2, 1, Some((1, "")));
    let client = client(&[&silent_one, &other]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    eventually("the leader is learned", || client.leader().as_ref() == Some(&silent_one.address))
        .await;
    let begun = Instant::now();
    client.register(register("a"), Some(&session)).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert_eq!(silent_one.register_ids().len(), 1);
    assert_eq!(silent_one.register_ids(), other.register_ids());
}

#[tokio::test]
async fn a_write_without_an_id_waits_for_its_node_up_to_the_deadline() {
    let node = silent(is_register);
    let client = client(&[&node]).with_timeout(Duration::from_millis(700));
    let begun = Instant::now();
    let error = client.register(register("a"), None).await.unwrap_err();
    assert_eq!(error, Error::Timeout { definite: false });
    assert!(begun.elapsed() >= Duration::from_millis(600), "{:?}", begun.elapsed());
    assert_eq!(node.register_ids(), [None]);
}

#[tokio::test]
async fn doubt_about_an_earlier_attempt_stays() {
    // First nobody knows what became of the write, then the node certainly does not take it.
    let count = AtomicUsize::new(0);
    let node = Node::simple(move |call| match call {
        Call::Register(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            Err(Error::LeaderChanged)
        }
        Call::Register(_) => Err(Error::NoLeader { leader: None, definite: true }),
        call => Ok(plain(call)),
    });
    let client = client(&[&node]).with_timeout(Duration::from_millis(300));
    let session = client.session(SessionOptions::default()).await.unwrap();
    let error = client.register(register("a"), Some(&session)).await.unwrap_err();
    assert_eq!(error, Error::NoLeader { leader: None, definite: false });
}

#[tokio::test]
async fn an_expired_session_does_not_make_an_earlier_attempt_definite() {
    let count = AtomicUsize::new(0);
    let node = Node::simple(move |call| match call {
        Call::Register(_) if count.fetch_add(1, Ordering::Relaxed) == 0 => {
            Err(Error::LeaderChanged)
        }
        Call::Register(_) => Err(Error::SessionExpired { session: 7 }),
        call => Ok(plain(call)),
    });
    let client = client(&[&node]);
    let session = client.session(SessionOptions::default()).await.unwrap();
    let error = client.register(register("a"), Some(&session)).await.unwrap_err();
    assert_eq!(error, Error::SessionExpired { session: 7 });
    assert!(!error.definite(), "{error:?}");
}

#[tokio::test]
async fn writes_follow_the_leader() {
    let nodes: Vec<Node> = (0..3).map(|_| Node::simple(|call| Ok(plain(call)))).collect();
    let say = |leader: usize, term: u64| {
        for (i, node) in nodes.iter().enumerate() {
            node.says(i as u64 + 1, term, Some((leader as u64 + 1, &nodes[leader].address)));
        }
    };
    say(2, 5);
    let client = client(&[&nodes[0], &nodes[1], &nodes[2]]);
    client.register(register("a"), None).await.unwrap();
    eventually("the leader is learned", || client.leader().as_ref() == Some(&nodes[2].address))
        .await;
    let before = nodes[2].register_ids().len();
    for _ in 0..10 {
        client.register(register("a"), None).await.unwrap();
        client.get_instance(get("a")).await.unwrap();
    }
    assert_eq!(nodes[2].register_ids().len(), before + 10);
    assert!(nodes[2].calls().len() >= 20, "fresh reads go to the leader too");
    // The old leader comes to know; a client that goes on writing does as well.
    say(0, 6);
    for _ in 0..40 {
        client.register(register("a"), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        if client.leader().as_ref() == Some(&nodes[0].address) {
            return;
        }
    }
    panic!("the client goes on with {:?}", client.leader());
}

#[tokio::test]
async fn a_leader_named_by_an_error_is_asked_next() {
    let leader = Node::simple(|call| Ok(plain(call)));
    let hint = leader.address.clone();
    let follower = Node::simple(move |call| match call {
        Call::Register(_) => Err(Error::NoLeader { leader: Some(hint.clone()), definite: true }),
        call => Ok(plain(call)),
    });
    // The client was not told of the leader.
    let client = client(&[&follower]);
    for _ in 0..5 {
        client.register(register("a"), None).await.unwrap();
    }
    assert_eq!((follower.register_ids().len(), leader.register_ids().len()), (1, 5));
    assert_eq!(client.endpoints(), [follower.address.clone(), leader.address.clone()]);
}

#[tokio::test]
async fn an_older_leader_is_not_believed() {
    let new = Node::simple(|call| Ok(plain(call)));
    let old = Node::simple(|call| Ok(plain(call)));
    // The old leader was cut off from the others and has not noticed.
    new.says(1, 9, Some((1, &new.address)));
    old.says(2, 8, Some((2, &old.address)));
    for _ in 0..20 {
        let client = client(&[&new, &old]);
        client.register(register("a"), None).await.unwrap();
        // Whichever answers first, the later term wins, and it stays.
        eventually("the new leader is learned", || client.leader().as_ref() == Some(&new.address))
            .await;
        client.at(&old.address).unwrap().status().await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(client.leader().as_ref(), Some(&new.address));
    }
}

#[tokio::test]
async fn stale_reads_go_round_and_fresh_ones_if_asked() {
    let nodes: Vec<Node> = (0..3).map(|_| Node::simple(|call| Ok(plain(call)))).collect();
    for (i, node) in nodes.iter().enumerate() {
        node.says(i as u64 + 1, 1, Some((1, &nodes[0].address)));
    }
    let all: Vec<&Node> = nodes.iter().collect();
    let client = client(&all);
    let stale = GetInstanceRequest { consistency: Consistency::Stale.into(), ..get("a") };
    for _ in 0..9 {
        client.get_instance(stale.clone()).await.unwrap();
    }
    assert_eq!(nodes.iter().map(|node| node.calls().len()).collect::<Vec<_>>(), [3, 3, 3]);
    let spread = Options { read_from: ReadFrom::Any, ..options(&all) };
    let client = Client::connect(spread).unwrap();
    for _ in 0..9 {
        client.get_instance(get("a")).await.unwrap();
    }
    assert_eq!(nodes.iter().map(|node| node.calls().len()).collect::<Vec<_>>(), [6, 6, 6]);
}

#[tokio::test]
async fn a_pinned_client_stays_with_its_node() {
    let nodes: Vec<Node> = (0..2).map(|_| Node::simple(|call| Ok(plain(call)))).collect();
    for node in &nodes {
        node.says(1, 1, Some((1, &nodes[0].address)));
    }
    let client = client(&[&nodes[0], &nodes[1]]).at(&nodes[1].address).unwrap();
    for _ in 0..5 {
        client.register(register("a"), None).await.unwrap();
    }
    assert_eq!(nodes[1].register_ids().len(), 5);
    assert_eq!(client.endpoints(), [nodes[1].address.clone()]);
}

#[tokio::test]
async fn a_full_queue_is_waited_for() {
    let error = Error::Overloaded { queue: "proposals".into(), limit: 16 };
    let node = failing(4, error, is_register);
    client(&[&node]).register(register("a"), None).await.unwrap();
    assert_eq!(node.register_ids().len(), 5);
}

#[tokio::test]
async fn many_calls_share_one_attempt_to_connect() {
    let node = Arc::new(Node::simple(|call| Ok(plain(call))));
    let client = client(&[&node]);
    let calls = (0..500).map(|i| {
        let client = client.clone();
        async move { client.get_instance(get(&i.to_string())).await }
    });
    for (i, answer) in futures::future::join_all(calls).await.into_iter().enumerate() {
        assert_eq!(answer.unwrap().instance.unwrap().id, i.to_string());
    }
}

#[tokio::test]
async fn every_service_is_listed_page_by_page() {
    let node = Node::simple(|call| Ok(plain(call)));
    let names: Vec<String> = (0..2_345).map(|i| format!("s{i:05}")).collect();
    *node.fake.services.lock().unwrap() = names.clone();
    let services = client(&[&node]).all_services("", "s", Consistency::Linearizable).await.unwrap();
    assert_eq!(services.into_iter().map(|service| service.name).collect::<Vec<_>>(), names);
    let sessions = client(&[&node]).all_sessions(Consistency::Stale).await.unwrap();
    assert_eq!(sessions.iter().map(|session| session.id).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test]
async fn a_snapshot_is_whole_or_an_error() {
    let node = Node::simple(|call| Ok(plain(call)));
    let chunk = |bytes: &'static [u8], total_bytes: u64| {
        Ok(SnapshotResponse {
            chunk: bytes.into(),
            total_bytes,
            applied_index: 11 * u64::from(total_bytes != 0),
            revision: 9 * u64::from(total_bytes != 0),
        })
    };
    let client = client(&[&node]);
    *node.fake.snapshot.lock().unwrap() = vec![chunk(b"abc", 5), chunk(b"de", 0)];
    let mut file = Vec::new();
    let info = client.snapshot_to(&mut file).await.unwrap();
    assert_eq!((info.bytes, info.applied_index, info.revision), (5, 11, 9));
    assert_eq!(file, b"abcde");
    *node.fake.snapshot.lock().unwrap() = vec![chunk(b"abc", 5)];
    let error = client.snapshot_to(&mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, DownloadError::Cut { received: 3, expected: 5 }), "{error}");
    *node.fake.snapshot.lock().unwrap() =
        vec![chunk(b"abc", 5), Err(Error::ShuttingDown { definite: true }.into())];
    let error = client.snapshot_to(&mut Vec::new()).await.unwrap_err();
    assert!(matches!(error, DownloadError::Call(Error::ShuttingDown { .. })), "{error}");
}

#[tokio::test]
async fn the_status_of_all_names_those_that_are_down() {
    let mut nodes: Vec<Node> = (0..3).map(|_| Node::simple(|call| Ok(plain(call)))).collect();
    for (i, node) in nodes.iter().enumerate() {
        node.says(i as u64 + 1, 1, Some((1, &nodes[0].address)));
    }
    nodes[1].stop();
    let all: Vec<&Node> = nodes.iter().collect();
    let client = client(&all);
    let status = client.status_of_all().await;
    let up: Vec<bool> = status.iter().map(|(_, status)| status.is_ok()).collect();
    assert_eq!(up, [true, false, true]);
    assert_eq!(status[1].0, nodes[1].address);
    assert_eq!(client.digest().await.unwrap().digest, "00000000000000ff");
    client.members(Consistency::Stale).await.unwrap();
    client.add_learner(AddLearnerRequest { id: 4, ..Default::default() }).await.unwrap();
    client.promote(4).await.unwrap();
    client.transfer_leader(None).await.unwrap();
    client.remove(4).await.unwrap();
    client.put_namespace(PutNamespaceRequest::default(), None).await.unwrap();
    client.list_namespaces(ListNamespacesRequest::default()).await.unwrap();
    client.delete_namespace(DeleteNamespaceRequest::default(), None).await.unwrap();
    client.put_service(v1::Service::default(), None).await.unwrap();
    client.get_service(GetServiceRequest::default()).await.unwrap();
    client.delete_service(DeleteServiceRequest::default(), None).await.unwrap();
    client.deregister(DeregisterRequest::default(), None).await.unwrap();
    client.update_instance(UpdateInstanceRequest::default(), None).await.unwrap();
    client.list_instances(ListInstancesRequest::default()).await.unwrap();
}
