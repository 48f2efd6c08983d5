//! Sessions: what happens to the instances of a process that dies, closes its session, keeps it alive
//! through any node, or loses the leader.

use std::process::Stdio;
use std::time::Duration;

use quorate::client::{SessionOptions, SessionState, Watch, WatchRange, WatchUpdate};
use quorate::error::Error;
use quorate::proto::v1;
use quorate::proto::v1::sessions_client::SessionsClient;
use tokio::time::{Instant, sleep, timeout};

use super::harness::{
    Cluster, PATIENCE, channel, eventually, get_instance, instance, quorate, run, text,
};

const SERVICE: &str = "web";

/// A service whose orphans go after the shortest time.
async fn short_lived(cluster: &Cluster) {
    let service = v1::Service {
        name: SERVICE.into(),
        deregister_after_ms: Some(1_000),
        ..Default::default()
    };
    cluster.client().put_service(service, None).await.unwrap();
}

fn watch(cluster: &Cluster) -> Watch {
    let range = WatchRange::Service { namespace: String::new(), service: SERVICE.into() };
    cluster.client().watch(range)
}

/// The next change of an instance, and whether it removes it.
async fn next_change(watch: &mut Watch) -> (v1::Instance, bool) {
    loop {
        let update = timeout(PATIENCE, watch.next()).await.expect("a change").unwrap().unwrap();
        let WatchUpdate::Changes { events, .. } = update else { continue };
        for event in events {
            if let Some(v1::watch_event::Record::Instance(instance)) = event.record {
                return (instance, event.deleted);
            }
        }
    }
}

/// A process registers itself with a session and is killed. Its instance turns critical, says why, is
/// out of discovery, and goes after `deregister_after`.
#[test]
fn a_session_dies_with_its_process() {
    run(async {
        let cluster = Cluster::three().await;
        short_lived(&cluster).await;
        let mut watch = watch(&cluster);
        let arguments = ["service", "register", SERVICE, "--id", "a", "--address", "10.0.0.1:80"];
        let mut process = quorate(arguments)
            .args(["--session-ttl", "3s", "--endpoints", &cluster.endpoints().join(",")])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let client = cluster.client();
        let alive = eventually("the instance of the process", async || {
            text(client.get_instance(get_instance(SERVICE, "a")).await)
        })
        .await;
        let alive = alive.instance.unwrap();
        assert_eq!(alive.health(), v1::Health::Passing);
        assert_ne!(alive.session, 0);
        // The watch is at least where this read was.
        while watch.revision() < alive.mod_revision {
            timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        }
        process.kill().await.unwrap();

        let (orphan, deleted) = next_change(&mut watch).await;
        assert!(!deleted, "{orphan:?}");
        assert_eq!((orphan.id.as_str(), orphan.health()), ("a", v1::Health::Critical));
        assert!(orphan.reason.contains("expired"), "{:?}", orphan.reason);
        assert!(orphan.reason.contains(&alive.session.to_string()), "{:?}", orphan.reason);
        assert_eq!(orphan.critical_since_ms, orphan.modified_at_ms);
        let lived = orphan.modified_at_ms - alive.modified_at_ms;
        assert!(lived >= 3_000, "it was given {lived} of 3000 ms");
        let filter = v1::InstanceFilter { healthy_only: true, ..Default::default() };
        let request = v1::ListInstancesRequest {
            service: SERVICE.into(),
            filter: Some(filter),
            ..Default::default()
        };
        assert!(client.list_instances(request).await.unwrap().instances.is_empty());

        let (gone, deleted) = next_change(&mut watch).await;
        assert!(deleted && gone.id == "a", "{gone:?}");
        for id in cluster.ids() {
            assert!(cluster.instances(id, SERVICE).await.is_empty());
        }
        cluster.same_digest().await;
    });
}

/// A closed session takes its instances with it at once, on every node, and its id is worth nothing
/// from then on.
#[test]
fn closing_a_session_removes_its_instances_at_once() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let session = client.session(SessionOptions::default()).await.unwrap();
        for id in ["a", "b"] {
            let ephemeral = v1::Instance { session: session.id(), ..instance(SERVICE, id) };
            client.register(ephemeral, Some(&session)).await.unwrap();
        }
        client.register(instance(SERVICE, "c"), None).await.unwrap();
        let ticket = session.next_request_id().await.unwrap();
        let answer = session.close().await.unwrap();
        assert!(answer.closed);
        assert_eq!(answer.removed_instances, 2);
        for id in cluster.ids() {
            assert_eq!(cluster.instances(id, SERVICE).await.keys().collect::<Vec<_>>(), ["c"]);
            let late = v1::RegisterRequest {
                instance: Some(instance(SERVICE, "d")),
                request_id: Some(ticket.request_id()),
            };
            let refused = cluster.at(id).register(late, None).await;
            assert!(matches!(refused, Err(Error::SessionExpired { .. })), "{refused:?}");
            let ephemeral = v1::Instance { session: session.id(), ..instance(SERVICE, "e") };
            let refused = cluster.at(id).register(ephemeral, None).await;
            assert!(matches!(refused, Err(Error::SessionExpired { .. })), "{refused:?}");
        }
        assert_eq!(session.state(), SessionState::Closed);
        assert!(client.all_sessions(v1::Consistency::Linearizable).await.unwrap().is_empty());
    });
}

/// Keep-alives through a follower hold a session for several times its TTL.
#[test]
fn keep_alives_through_a_follower_hold_a_session() {
    run(async {
        let cluster = Cluster::three().await;
        let follower = cluster.followers().await[0];
        let client = cluster.at(follower);
        let ttl = Duration::from_secs(3);
        let options = SessionOptions { ttl, ..SessionOptions::default() };
        let session = client.session(options).await.unwrap();
        assert_eq!(session.ttl(), ttl);
        let ephemeral = v1::Instance { session: session.id(), ..instance(SERVICE, "a") };
        client.register(ephemeral, Some(&session)).await.unwrap();
        // Nothing is awaited here: time itself is what the session must survive.
        sleep(ttl * 5 / 2).await;
        assert_eq!(session.state(), SessionState::Alive { session: session.id() });
        let found = cluster.instances(follower, SERVICE).await;
        assert_eq!(found["a"].health(), v1::Health::Passing);
        assert_eq!(found["a"].session, session.id());
    });
}

/// A session that nobody keeps alive ends; a leader change in the middle of its TTL gives it the full
/// TTL once more, and not less.
#[test]
fn a_session_gets_its_full_ttl_after_a_leader_change() {
    run(async {
        let mut cluster = Cluster::three().await;
        short_lived(&cluster).await;
        let ttl = Duration::from_secs(5);
        for _ in 0..3 {
            let leader = cluster.leader().await;
            let mut watch = watch(&cluster);
            timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
            let other = cluster.followers().await[0];
            let mut sessions = SessionsClient::new(channel(&cluster.node(other).client).await);
            let request = v1::OpenSessionRequest { ttl_ms: 5_000, client: "test".into() };
            let opened = Instant::now();
            let session = sessions.open(request).await.unwrap().into_inner().session;
            let ephemeral = v1::Instance { session, ..instance(SERVICE, "a") };
            cluster.client().register(ephemeral, None).await.unwrap();
            assert!(!next_change(&mut watch).await.1);

            sleep((ttl / 2).saturating_sub(opened.elapsed())).await;
            let killed = Instant::now();
            cluster.kill(leader);
            let in_time = opened.elapsed() < ttl;
            let (orphan, deleted) = next_change(&mut watch).await;
            let lived = killed.elapsed();
            assert!(!deleted);
            assert_eq!(orphan.health(), v1::Health::Critical);
            cluster.start(leader).await;
            if in_time {
                assert!(lived >= ttl, "the new leader gave it {lived:?} of {ttl:?}");
                let renewed = sessions.keep_alive(v1::KeepAliveRequest { session }).await;
                let error = Error::from(renewed.unwrap_err());
                assert!(matches!(error, Error::SessionExpired { .. }), "{error}");
                return;
            }
            // The machine was so slow that the session may have ended before: again.
            assert!(next_change(&mut watch).await.1, "the orphan goes");
        }
        panic!("three times the leader was not killed in time");
    });
}

/// A client holds its session over a leader change, and its instances stay as they are.
#[test]
fn a_client_keeps_its_session_over_a_leader_change() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let ttl = Duration::from_secs(8);
        let options = SessionOptions { ttl, ..SessionOptions::default() };
        let session = client.session(options).await.unwrap();
        let ephemeral = v1::Instance { session: session.id(), ..instance(SERVICE, "a") };
        let registered = client.register(ephemeral, Some(&session)).await.unwrap().mod_revision;
        let leader = cluster.leader().await;
        cluster.kill(leader);
        cluster.leader().await;
        // Beyond the TTL: without a keep-alive that reached the new leader it would have ended.
        sleep(ttl + ttl / 4).await;
        assert_eq!(session.state(), SessionState::Alive { session: session.id() });
        let through = cluster.leader().await;
        let found = cluster.instances(through, SERVICE).await;
        assert_eq!(found["a"].health(), v1::Health::Passing);
        assert_eq!(found["a"].mod_revision, registered);
        client.register(instance(SERVICE, "b"), Some(&session)).await.unwrap();
    });
}
