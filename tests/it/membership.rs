//! Members that come and go while the cluster works.

use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::sleep;

use super::harness::{Cluster, Setup, eventually, instance, run, text};
use super::load::Load;

async fn members(cluster: &Cluster, through: u64) -> Vec<(u64, bool)> {
    let answer = cluster.at(through).members(v1::Consistency::Linearizable).await.unwrap();
    answer.members.into_iter().map(|member| (member.id, member.learner)).collect()
}

/// A fourth node joins, learns, votes; the leader is removed. Writers with an id see no error all the
/// while, the removed node does not disturb the others, and its id is not taken again.
#[test]
fn a_node_is_added_and_the_leader_removed() {
    run(async {
        // Elections by a removed node would come within the longest timeout; a busy machine should
        // not cause others.
        let setup = Setup::default().option("--election-min-ms", 1_500);
        let mut cluster = setup.option("--election-max-ms", 2_500).start(3).await;
        let client = cluster.client();
        let load = Load::start(&cluster, 2, 0).await;
        load.progress(30).await;

        cluster.define_joining(4);
        cluster.spawn(4);
        let joining = cluster.node(4);
        let request = v1::AddLearnerRequest {
            id: 4,
            peer_address: joining.peer.clone(),
            client_address: joining.client.clone(),
        };
        let answer = client.add_learner(request.clone()).await.unwrap();
        let added = answer.members.iter().find(|member| member.id == 4).unwrap();
        assert!(added.learner);
        assert_eq!(added.client_address, joining.client);
        let again = client.add_learner(request).await;
        assert!(matches!(again, Err(Error::Membership { .. })), "{again:?}");
        cluster.ready(&[4]).await;
        assert!(cluster.status(4).await.learner);
        eventually("the promotion of node 4", async || text(client.promote(4).await)).await;
        assert_eq!(members(&cluster, 4).await, [(1, false), (2, false), (3, false), (4, false)]);
        eventually("node 4 votes", async || {
            let status = cluster.status(4).await;
            if status.learner { Err(format!("{status:?}")) } else { Ok(()) }
        })
        .await;
        load.progress(30).await;

        let removed = cluster.leader().await;
        client.remove(removed).await.unwrap();
        let rest: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != removed).collect();
        let leader = cluster.leader_without(&[removed]).await;
        assert!(rest.contains(&leader));
        let expected: Vec<(u64, bool)> = rest.iter().map(|id| (*id, false)).collect();
        for id in &rest {
            assert_eq!(members(&cluster, *id).await, expected);
        }

        // It still runs, and hears nothing any more: it must not call the others to elections.
        let term = cluster.status(leader).await.term;
        sleep(Duration::from_secs(6)).await;
        load.progress(30).await;
        for id in &rest {
            assert_eq!(cluster.status(*id).await.term, term, "node {id}");
        }
        // It does not answer as if it belonged to them.
        let alone = cluster.at(removed).with_timeout(Duration::from_secs(2));
        let read = alone.list_services(v1::ListServicesRequest::default()).await;
        assert!(read.is_err(), "{read:?}");

        let written = load.stop().await;
        cluster.kill(removed);
        written.check_everywhere(&cluster).await;

        let request = v1::AddLearnerRequest {
            id: removed,
            peer_address: cluster.node(removed).peer.clone(),
            client_address: cluster.node(removed).client.clone(),
        };
        let again = client.add_learner(request).await.unwrap_err();
        was_removed(&again, removed);

        // The three that are left are a cluster like any other.
        let leader = cluster.leader().await;
        cluster.kill(leader);
        // Without a session it is the caller who repeats what may have been lost with the killed node.
        eventually("a write", async || {
            text(client.register(instance("web", "afterwards"), None).await)
        })
        .await;
        let through = cluster.leader().await;
        assert_eq!(cluster.instances(through, "web").await.len(), 1);
    });
}

/// The refusal names the field, its value and what is allowed.
fn was_removed(error: &Error, id: u64) {
    let told = format!("a number that no member ever had; node {id} was removed");
    let expected = Error::Invalid { field: "id".into(), value: id.to_string(), allowed: told };
    assert_eq!(*error, expected);
}

/// A node that joined after a removal has never met the removed one: it refuses its number all the
/// same, also as the leader, also when everybody who has met it is gone, also after a restart.
#[test]
fn a_removed_number_stays_taken_for_nodes_that_came_later() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        cluster.lead(1).await;
        client.remove(3).await.unwrap();
        cluster.kill(3);
        // Repeating a removal is no error.
        let again = eventually("it again", async || text(client.remove(3).await)).await;
        assert!(again.members.iter().all(|member| member.id != 3), "{again:?}");

        cluster.define_joining(4);
        cluster.define_joining(5);
        for id in [4, 5] {
            cluster.spawn(id);
            let joining = cluster.node(id);
            let request = v1::AddLearnerRequest {
                id,
                peer_address: joining.peer.clone(),
                client_address: joining.client.clone(),
            };
            client.add_learner(request).await.unwrap();
            cluster.ready(&[id]).await;
            eventually("the promotion", async || text(client.promote(id).await)).await;
        }
        let add = |cluster: &Cluster| v1::AddLearnerRequest {
            id: 3,
            peer_address: cluster.node(3).peer.clone(),
            client_address: cluster.node(3).client.clone(),
        };
        // Through a new node, carried out by an old leader.
        was_removed(&cluster.at(4).add_learner(add(&cluster)).await.unwrap_err(), 3);

        // The new nodes are all that is left.
        for old in [1, 2] {
            cluster.lead(4).await;
            cluster.at(4).remove(old).await.unwrap();
            cluster.kill(old);
        }
        for id in [4, 5] {
            let met = std::fs::read_to_string(cluster.node(id).data.join("peers")).unwrap();
            assert!(!met.lines().any(|line| line.starts_with("3 ")), "node {id} has met 3: {met}");
        }
        assert_eq!(members(&cluster, 5).await, [(4, false), (5, false)]);
        for id in [4, 5] {
            was_removed(&cluster.at(id).add_learner(add(&cluster)).await.unwrap_err(), 3);
        }
        for id in [4, 5] {
            assert_eq!(cluster.stop(id).await, 0);
        }
        for id in [4, 5] {
            cluster.spawn(id);
        }
        cluster.ready(&[4, 5]).await;
        for removed in 1..=3 {
            let request = v1::AddLearnerRequest { id: removed, ..add(&cluster) };
            was_removed(&cluster.at(5).add_learner(request).await.unwrap_err(), removed);
        }
        let found = cluster.at(4).promote(3).await.unwrap_err();
        was_removed(&found, 3);
    });
}

/// Changes that are not allowed are refused and say why.
#[test]
fn wrong_membership_changes_are_refused() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let add = |id: u64, peer_address: &str| v1::AddLearnerRequest {
            id,
            peer_address: peer_address.into(),
            client_address: String::new(),
        };
        let refused = client.promote(2).await.unwrap_err();
        assert_eq!(refused.to_string(), "membership: node 2 is a voter already");
        let refused = client.promote(9).await.unwrap_err();
        assert!(refused.to_string().contains("node 9 is not a member"), "{refused}");
        let refused = client.remove(9).await.unwrap_err();
        assert_eq!(refused, Error::NotFound { kind: "member".into(), name: "9".into() });
        let refused = client.add_learner(add(0, "127.0.0.1:1")).await.unwrap_err();
        assert!(matches!(&refused, Error::Invalid { field, .. } if field == "id"), "{refused}");
        let refused = client.add_learner(add(9, "nowhere")).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Invalid { field, .. } if field == "peer_address"),
            "{refused}"
        );
        let refused = client.transfer_leader(Some(9)).await.unwrap_err();
        assert!(refused.to_string().contains("node 9 is not a voter"), "{refused}");
        let unchanged = [(1, false), (2, false), (3, false)];
        assert_eq!(members(&cluster, 1).await, unchanged);
    });
}

/// Of two voters one would be down: neither they nor anybody else could decide anything any more.
#[test]
fn a_removal_that_would_leave_no_majority_is_refused() {
    run(async {
        let mut cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        let followers = cluster.followers().await;
        let [down, other] = followers[..] else { panic!("{followers:?}") };
        cluster.kill(down);
        let client = cluster.client();
        for id in [other, leader] {
            let refused = client.remove(id).await.unwrap_err();
            assert!(matches!(&refused, Error::Membership { .. }), "{refused}");
            assert!(refused.to_string().contains("without a majority"), "{refused}");
        }
        // The number is not used up, the leader has stayed, and the cluster goes on.
        assert_eq!(cluster.leader().await, leader);
        client.register(instance("web", "a"), None).await.unwrap();
        client.remove(down).await.unwrap();
        client.register(instance("web", "b"), None).await.unwrap();
        let leads = cluster.leader().await;
        assert_eq!(members(&cluster, leads).await.len(), 2);
    });
}

/// Leadership goes to the node that was asked for, and to any other when none was.
#[test]
fn leadership_is_transferred() {
    run(async {
        let cluster = Cluster::three().await;
        for id in cluster.ids() {
            cluster.lead(id).await;
            let answer = cluster.client().register(instance("web", "a"), None).await;
            answer.unwrap();
        }
        let leader = cluster.leader().await;
        let answer = cluster.client().transfer_leader(None).await.unwrap();
        assert_ne!(answer.leader_id, leader);
    });
}
