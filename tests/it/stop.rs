//! Stopping in order: SIGTERM to one node, and to each in turn under load.

use std::time::Duration;

use tokio::time::Instant;

use super::harness::{Cluster, Setup, instance, run};
use super::load::Load;

/// From SIGTERM to the end; the promise is 5 s, here is room for a busy machine.
const BOUND: Duration = Duration::from_secs(15);

/// SIGTERM to the leader: another node leads, the process ends by itself with code 0, and the next
/// start begins with the image that it wrote.
#[test]
fn sigterm_hands_leadership_over_and_writes_the_image() {
    run(async {
        let mut cluster = Cluster::three().await;
        cluster.client().register(instance("web", "a"), None).await.unwrap();
        for _ in 0..2 {
            let leader = cluster.leader().await;
            let said = cluster.node(leader).log_length();
            let begun = Instant::now();
            assert_eq!(cluster.stop(leader).await, 0);
            assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
            let log = cluster.node(leader).log_text();
            assert!(!log[said..].contains("WARN"), "{}", &log[said..]);
            assert!(log[said..].contains("stopped"), "{}", &log[said..]);
            let next = cluster.leader().await;
            assert_ne!(next, leader);
            cluster.client().register(instance("web", "b"), None).await.unwrap();
            let said = cluster.node(leader).log_length();
            cluster.start(leader).await;
            let log = cluster.node(leader).log_text();
            assert!(log[said..].contains("origin=Image"), "{}", &log[said..]);
            cluster.same_digest().await;
        }
    });
}

/// A cluster of one hands over to nobody, and stops all the same.
#[test]
fn a_single_node_stops_and_starts() {
    run(async {
        let mut cluster = Setup::default().start(1).await;
        cluster.client().register(instance("web", "a"), None).await.unwrap();
        let begun = Instant::now();
        assert_eq!(cluster.stop(1).await, 0);
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        cluster.start(1).await;
        assert_eq!(cluster.instances(1, "web").await.len(), 1);
    });
}

/// A disk that does not answer while the last image is written: the node stops in time all the same,
/// and misses nothing when it starts again.
#[test]
fn an_image_that_is_not_written_does_not_hold_up_the_stop() {
    run(async {
        let mut cluster = Setup::default().start(1).await;
        cluster.client().register(instance("web", "a"), None).await.unwrap();
        // The sync of the image opens every file here; that of a pipe without a writer never ends.
        let pipe = cluster.node(1).data.join("image/blobs/pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let begun = Instant::now();
        assert_eq!(cluster.stop(1).await, 0);
        assert!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
        let log = cluster.node(1).log_text();
        assert!(log.contains("the image was not written in time"), "{log}");
        std::fs::remove_file(&pipe).unwrap();
        cluster.start(1).await;
        assert_eq!(cluster.instances(1, "web").await.len(), 1);
    });
}

/// Each node in turn is stopped by SIGTERM and started again, under load: nothing is lost and no call
/// of a writer with an id fails.
#[test]
fn a_rolling_restart_under_load_loses_nothing() {
    run(async {
        let mut cluster = Cluster::three().await;
        let load = Load::start(&cluster, 3, 1).await;
        for id in cluster.ids() {
            load.progress(50).await;
            let begun = Instant::now();
            assert_eq!(cluster.stop(id).await, 0);
            assert!(begun.elapsed() < BOUND, "node {id} took {:?}", begun.elapsed());
            load.progress(50).await;
            cluster.start(id).await;
        }
        load.progress(50).await;
        let written = load.stop().await;
        written.check_everywhere(&cluster).await;
    });
}
