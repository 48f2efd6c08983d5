//! A write that carries an id is applied once, however often and through whichever node it is sent:
//! over a leader change, a restart of all nodes and the installation of a snapshot.

use std::time::Duration;

use quorate::client::{Client, Session, SessionOptions, Ticket};
use quorate::error::Error;
use quorate::proto::v1;

use super::harness::{Cluster, Setup, eventually, get_instance, instance, run, text};

/// A registration with an id, which was answered, and whose instance somebody else has removed since:
/// applied again it would bring the instance back.
struct Once {
    session: Session,
    ticket: Ticket,
    request: v1::RegisterRequest,
    answer: v1::RegisterResponse,
}

impl Once {
    async fn write(cluster: &Cluster) -> Once {
        let client = cluster.client();
        let options = SessionOptions { ttl: Duration::from_secs(120), ..SessionOptions::default() };
        let session = client.session(options).await.unwrap();
        let ticket = session.next_request_id().await.unwrap();
        let request = v1::RegisterRequest {
            instance: Some(instance("web", "once")),
            request_id: Some(ticket.request_id()),
        };
        let answer = client.register(request.clone(), None).await.unwrap();
        assert!(answer.created);
        assert!(!answer.header.unwrap().duplicate);
        let removal = v1::DeregisterRequest {
            service: "web".into(),
            id: "once".into(),
            ..Default::default()
        };
        assert!(client.deregister(removal, None).await.unwrap().removed);
        Once { session, ticket, request, answer }
    }

    /// Sends the same again to one node: it gets the answer of the first time, and nothing happens.
    async fn repeat(&self, client: &Client) {
        let answer = client.register(self.request.clone(), None).await.unwrap();
        let (first, again) = (self.answer.header.unwrap(), answer.header.unwrap());
        assert!(again.duplicate, "{answer:?}");
        assert_eq!(again.revision, first.revision);
        assert_eq!(answer.mod_revision, self.answer.mod_revision);
        assert_eq!(answer.created, self.answer.created);
        let found = client.get_instance(get_instance("web", "once")).await;
        assert!(matches!(found, Err(Error::NotFound { .. })), "applied twice: {found:?}");
    }
}

/// Repeated through every node, also after the leader was killed, the write is applied once.
#[test]
fn a_repetition_after_a_leader_change_is_applied_once() {
    run(async {
        let mut cluster = Cluster::three().await;
        let once = Once::write(&cluster).await;
        for id in cluster.ids() {
            once.repeat(&cluster.at(id)).await;
        }
        let old = cluster.leader().await;
        cluster.kill(old);
        let new = cluster.leader().await;
        assert_ne!(old, new);
        for node in cluster.running() {
            once.repeat(&node.at()).await;
        }
        cluster.start(old).await;
        once.repeat(&cluster.at(old)).await;
        cluster.same_digest().await;
    });
}

/// The answers are on disk with the state: after all nodes were killed and started again the write
/// is still applied once, and again after the second time, when it comes from the image.
#[test]
fn a_repetition_after_a_restart_of_all_nodes_is_applied_once() {
    run(async {
        let mut cluster = Cluster::three().await;
        let once = Once::write(&cluster).await;
        cluster.kill_all();
        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        for id in cluster.ids() {
            once.repeat(&cluster.at(id)).await;
        }
        // SIGTERM writes the image, so that the next start begins with it.
        for id in cluster.ids() {
            cluster.terminate(id);
        }
        for id in cluster.ids() {
            assert_eq!(cluster.exit_code(id).await, 0);
        }
        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        for id in cluster.ids() {
            once.repeat(&cluster.at(id)).await;
        }
        cluster.same_digest().await;
    });
}

/// The answers travel in snapshots: a node that missed the write and got the state as a snapshot
/// knows it when it leads.
#[test]
fn a_repetition_to_a_leader_that_installed_a_snapshot_is_applied_once() {
    run(async {
        let mut cluster = Setup::default().option("--snapshot-entries", 10).start(3).await;
        let late = cluster.followers().await[0];
        let reached = cluster.status(late).await.last_log_index;
        cluster.kill(late);
        let once = Once::write(&cluster).await;
        write_past_purge(&cluster, reached).await;
        cluster.start(late).await;
        cluster.same_digest().await;
        cluster.lead(late).await;
        once.repeat(&cluster.at(late)).await;
        cluster.same_digest().await;
    });
}

/// Writes until the leader has purged its log beyond `reached`: who ended there cannot be served from
/// the log any more.
pub async fn write_past_purge(cluster: &Cluster, reached: u64) {
    let client = cluster.client();
    let mut number = 0;
    eventually("a purge of the log", async || {
        for _ in 0..10 {
            let id = format!("filler-{number}");
            client.register(instance("filler", &id), None).await.unwrap();
            number += 1;
        }
        let leader = cluster.leader().await;
        let purged = cluster.status(leader).await.purged_index;
        if purged > reached { Ok(()) } else { Err(format!("purged up to {purged} of {reached}")) }
    })
    .await;
}

/// Once the client says that it has the answer, the cluster forgets it: a copy of the write that
/// comes later is refused instead of applied.
#[test]
fn a_forgotten_sequence_is_refused() {
    run(async {
        let cluster = Cluster::three().await;
        let once = Once::write(&cluster).await;
        let Once { session, ticket, request, .. } = once;
        // The next write says that everything below it was answered.
        drop(ticket);
        let client = cluster.client();
        client.register(instance("web", "next"), Some(&session)).await.unwrap();
        for id in cluster.ids() {
            let late = cluster.at(id).register(request.clone(), None).await;
            assert!(matches!(late, Err(Error::SequenceForgotten { .. })), "{late:?}");
            let found = cluster.instances(id, "web").await;
            assert_eq!(found.keys().collect::<Vec<_>>(), ["next"]);
        }
        text(session.close().await).unwrap();
        let late = client.register(request, None).await;
        assert!(matches!(late, Err(Error::SessionExpired { .. })), "{late:?}");
    });
}
