//! kill -9: of the leader, and of all nodes at once, under load.

use std::time::Duration;

use quorate::proto::v1::Consistency;

use super::harness::{Cluster, Node, eventually, get, get_instance, instance, run, text};
use super::load::{Load, SERVICE, Watcher, check_watchers, last_write};

/// The leader is killed under load, twice. Every acknowledged write is there afterwards, no write
/// with an id fails, every watcher sees each change once and in order, and writes resume.
#[test]
fn the_leader_is_killed_under_load() {
    run(async {
        let mut cluster = Cluster::three().await;
        let mut watchers = Vec::new();
        for node in cluster.ids() {
            watchers.push(Watcher::begin(&cluster, node).await);
        }
        watchers.push(Watcher::begin_raw(&cluster).await);
        let load = Load::start(&cluster, 3, 2).await;
        load.progress(100).await;
        for _ in 0..2 {
            let leader = cluster.leader().await;
            load.progress(50).await;
            cluster.kill(leader);
            load.progress(100).await;
            let next = cluster.leader().await;
            assert_ne!(next, leader);
            cluster.start(leader).await;
            load.progress(50).await;
        }
        // Somebody saw that its process has ended.
        let asked = |node: &Node| node.log_text().contains("asking for the lead");
        assert!(cluster.running().any(asked));
        let mut written = load.stop().await;
        let last = last_write(&cluster).await;
        written.acknowledged.insert(last, ("last".to_owned(), true));
        written.check_everywhere(&cluster).await;
        let found = cluster.instances(1, SERVICE).await;
        let mut seen = Vec::new();
        for watcher in watchers {
            seen.push(watcher.end(last).await);
        }
        check_watchers(&seen, &written, &found, true);
    });
}

/// The leader is paused under load until another one has taken over, and wakes with calls that it had
/// begun; leadership is also moved on purpose. What was acknowledged stays, once.
#[test]
fn the_leader_is_paused_and_moved_under_load() {
    run(async {
        let cluster = Cluster::three().await;
        let mut watchers = Vec::new();
        for node in cluster.ids() {
            watchers.push(Watcher::begin(&cluster, node).await);
        }
        watchers.push(Watcher::begin_raw(&cluster).await);
        let load = Load::start(&cluster, 3, 3).await;
        for _ in 0..2 {
            load.progress(50).await;
            let leader = cluster.leader().await;
            cluster.pause(leader);
            load.progress(50).await;
            assert_ne!(cluster.leader_without(&[leader]).await, leader);
            cluster.resume(leader);
            load.progress(50).await;
            for id in cluster.ids() {
                cluster.lead(id).await;
                load.progress(10).await;
            }
        }
        let mut written = load.stop().await;
        let last = last_write(&cluster).await;
        written.acknowledged.insert(last, ("last".to_owned(), true));
        written.check_everywhere(&cluster).await;
        let found = cluster.instances(1, SERVICE).await;
        let mut seen = Vec::new();
        for watcher in watchers {
            seen.push(watcher.end(last).await);
        }
        check_watchers(&seen, &written, &found, true);
    });
}

/// All nodes are killed at once under load and started again, twice. Nothing acknowledged is lost,
/// no write with an id fails, and watchers end with the state that there is.
#[test]
fn all_nodes_are_killed_at_once_under_load() {
    run(async {
        let mut cluster = Cluster::three().await;
        let watchers = [Watcher::begin(&cluster, 2).await, Watcher::begin_raw(&cluster).await];
        let load = Load::start(&cluster, 3, 2).await;
        for _ in 0..2 {
            load.progress(100).await;
            cluster.kill_all();
            cluster.spawn_all();
            cluster.ready(&cluster.ids()).await;
        }
        load.progress(50).await;
        let mut written = load.stop().await;
        let last = last_write(&cluster).await;
        written.acknowledged.insert(last, ("last".to_owned(), true));
        written.check_everywhere(&cluster).await;
        let found = cluster.instances(1, SERVICE).await;
        let mut seen = Vec::new();
        for watcher in watchers {
            seen.push(watcher.end(last).await);
        }
        check_watchers(&seen, &written, &found, false);
    });
}

/// Without a quorum nothing is acknowledged and no linearizable read is answered; with it back, both
/// are.
#[test]
fn a_minority_acknowledges_nothing() {
    run(async {
        let mut cluster = Cluster::three().await;
        cluster.client().register(instance("web", "a"), None).await.unwrap();
        let leader = cluster.leader().await;
        let others: Vec<u64> = cluster.ids().into_iter().filter(|id| *id != leader).collect();
        for id in &others {
            cluster.kill(*id);
        }
        let alone = cluster.at(leader).with_timeout(Duration::from_secs(2));
        let write = alone.register(instance("web", "b"), None).await;
        assert!(write.is_err(), "{write:?}");
        let request = get_instance("web", "a");
        let read = alone.get_instance(request.clone()).await;
        assert!(read.is_err(), "{read:?}");
        // What it holds itself it still shows to whoever asks for no more.
        let mut stale = request.clone();
        stale.set_consistency(Consistency::Stale);
        let answer = alone.get_instance(stale).await.unwrap();
        assert_eq!(answer.header.unwrap().consistency(), Consistency::Stale);
        // A leader of nobody says so.
        let http = cluster.node(leader).http.clone();
        eventually("a leader without a quorum is not ready", async || {
            match get(&http, "/readyz").await {
                Ok((503, reason)) if reason.contains("no leader") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert_eq!(cluster.status(leader).await.leader_id, 0);
        cluster.start(others[0]).await;
        cluster.ready(&[leader]).await;
        let client = cluster.at(leader);
        eventually("reads with a quorum", async || {
            text(client.get_instance(request.clone()).await)
        })
        .await;
        client.register(instance("web", "c"), None).await.unwrap();
    });
}
