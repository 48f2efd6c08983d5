//! What happens on disk: followers that come back after the purge, a damaged image, a damaged log.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use quorate::proto::v1;

use super::exactly_once::write_past_purge;
use super::harness::{Cluster, Setup, eventually, flip, instance, run};

/// A follower was down until the leader had purged what it lacks. It catches up by a snapshot, holds
/// the same as the others, and goes on from there.
/// What is done to a directory.
type Damage = fn(&Path);

#[test]
fn a_follower_down_past_the_purge_catches_up_by_snapshot() {
    run(async {
        let mut cluster = Setup::default().option("--snapshot-entries", 20).start(3).await;
        let client = cluster.client();
        client.register(instance("web", "before"), None).await.unwrap();
        let late = cluster.followers().await[0];
        let before = cluster.status(late).await;
        cluster.kill(late);
        let doomed = v1::DeregisterRequest {
            service: "web".into(),
            id: "before".into(),
            ..Default::default()
        };
        assert!(client.deregister(doomed, None).await.unwrap().removed);
        client.register(instance("web", "meanwhile"), None).await.unwrap();
        write_past_purge(&cluster, before.last_log_index).await;

        cluster.start(late).await;
        cluster.same_digest().await;
        let after = cluster.status(late).await;
        // What it lacked first of all is in nobody's log any more.
        assert!(after.snapshot_index > before.last_log_index, "{before:?} and then {after:?}");
        let web = cluster.instances(late, "web").await;
        assert_eq!(web.keys().collect::<Vec<_>>(), ["meanwhile"]);
        let leader = cluster.leader().await;
        assert_eq!(
            cluster.instances(late, "filler").await,
            cluster.instances(leader, "filler").await
        );

        // What came by snapshot survives a crash, and the log goes on behind it.
        client.register(instance("web", "after"), None).await.unwrap();
        cluster.kill(late);
        cluster.start(late).await;
        let web = cluster.instances(late, "web").await;
        assert_eq!(web.keys().collect::<Vec<_>>(), ["after", "meanwhile"]);
        cluster.same_digest().await;
    });
}

/// The image's files are damaged: flipped in many places, cut in half, emptied. Each time the node
/// sets them aside, rebuilds by itself, says so, and holds the same as the others.
#[test]
fn a_node_rebuilds_a_damaged_image_by_itself() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        for number in 0..200 {
            client.register(instance("web", &format!("web-{number}")), None).await.unwrap();
        }
        let damage: [(&str, Damage); 3] = [
            ("flipped", flip_in_places),
            ("cut", |path| cut(path, 2)),
            ("emptied", |path| cut(path, 1_000_000)),
        ];
        for (how, damage) in damage {
            let id = cluster.followers().await[0];
            // SIGTERM writes the image, so that it is what the next start begins with.
            assert_eq!(cluster.stop(id).await, 0);
            let image = cluster.node(id).data.join("image");
            let mut damaged = 0;
            for file in files(&image) {
                if used(&file) > 0 {
                    damage(&file);
                    damaged += 1;
                }
            }
            assert!(damaged > 0, "no files in {}", image.display());
            let said = cluster.node(id).log_length();
            cluster.start(id).await;
            let log = cluster.node(id).log_text();
            assert!(log[said..].contains("set aside"), "{how}: {}", &log[said..]);
            cluster.same_digest().await;
            let found = cluster.instances(id, "web").await;
            assert_eq!(found.len(), 200, "{how}");
            // The rebuilt image is whole: the next start needs no other.
            assert_eq!(cluster.stop(id).await, 0);
            let said = cluster.node(id).log_length();
            cluster.start(id).await;
            let log = cluster.node(id).log_text();
            assert!(!log[said..].contains("set aside"), "{how}: {}", &log[said..]);
            cluster.same_digest().await;
        }
    });
}

/// The middle of a log is damaged: the node refuses to start with a code of its own and says why and
/// what to do, again and again; the other two go on.
#[test]
fn a_node_with_a_damaged_log_refuses_to_start() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        for number in 0..100 {
            client.register(instance("web", &format!("web-{number}")), None).await.unwrap();
        }
        let id = cluster.followers().await[0];
        // So that the log is what the node needs: the image would not save it anyhow.
        cluster.kill(id);
        let log = cluster.node(id).data.join("log");
        let segment = first_segment(&log);
        let middle = used(&segment) / 2;
        flip(&segment, middle, 8);
        for _ in 0..2 {
            let said = cluster.node(id).log_length();
            cluster.spawn(id);
            assert_eq!(cluster.exit_code(id).await, 4);
            let text = cluster.node(id).log_text();
            let text = &text[said..];
            let last = text.lines().last().unwrap_or_default();
            assert!(last.starts_with("error: ") && last.contains("is damaged at byte"), "{text}");
            assert!(last.contains("remove it from the cluster"), "{text}");
        }
        // The others go on.
        client.register(instance("web", "afterwards"), None).await.unwrap();
        for node in cluster.running().map(|node| node.id).collect::<Vec<_>>() {
            assert_eq!(cluster.instances(node, "web").await.len(), 101);
        }
    });
}

/// The log is replaced by an older copy of itself, as by a backup of its directory. Its votes since then are
/// forgotten, and entries that it has acknowledged: the node must not take part again.
#[test]
fn a_log_replaced_by_an_older_copy_is_refused() {
    replaced_by_an_older_copy(false);
}

/// Nor when its newest snapshot is as new as its image, as one is that was just installed.
#[test]
fn a_log_replaced_by_one_older_than_the_own_snapshot_is_refused() {
    replaced_by_an_older_copy(true);
}

fn replaced_by_an_older_copy(snapshot: bool) {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        client.register(instance("web", "before"), None).await.unwrap();
        let id = cluster.followers().await[0];
        let log = cluster.node(id).data.join("log");
        let copy = |from: &Path, to: &Path| {
            for file in files(from) {
                std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
            }
        };
        assert_eq!(cluster.stop(id).await, 0);
        let older = tempfile::tempdir().unwrap();
        copy(&log, older.path());
        cluster.start(id).await;
        client.register(instance("web", "meanwhile"), None).await.unwrap();
        cluster.same_digest().await;
        if snapshot {
            cluster.at(id).snapshot(&mut tokio::io::sink()).await.unwrap();
            cluster.kill(id);
        } else {
            assert_eq!(cluster.stop(id).await, 0);
        }

        copy(older.path(), &log);
        cluster.spawn(id);
        assert_eq!(cluster.exit_code(id).await, 4);
        let text = cluster.node(id).log_text();
        let last = text.lines().last().unwrap_or_default();
        assert!(last.contains("the log was replaced by an older one"), "{text}");
        client.register(instance("web", "afterwards"), None).await.unwrap();
    });
}

/// A write that was torn by a crash is no damage: zeros behind the last frame, half of it missing.
/// The node drops it and starts.
#[test]
fn a_torn_tail_is_removed() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        for number in 0..50 {
            client.register(instance("web", &format!("web-{number}")), None).await.unwrap();
        }
        let id = cluster.followers().await[0];
        cluster.kill(id);
        let segment = first_segment(&cluster.node(id).data.join("log"));
        // What a crash leaves of a frame that was being written when the power went: its beginning.
        let end = used(&segment);
        let file = std::fs::File::options().read(true).write(true).open(&segment).unwrap();
        let mut tail = vec![0; 24];
        file.read_exact_at(&mut tail, end - 200).unwrap();
        file.write_all_at(&tail, end + 8).unwrap();
        file.sync_all().unwrap();
        drop(file);
        cluster.start(id).await;
        cluster.same_digest().await;
        assert_eq!(cluster.instances(id, "web").await.len(), 50);
    });
}

/// All files below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Bytes of a file up to the last one that is not zero.
fn used(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1)
}

fn flip_in_places(path: &Path) {
    let used = used(path);
    for part in 0..16 {
        let at = used * part / 16;
        flip(path, at, 16.min((used - at) as usize));
    }
}

fn cut(path: &Path, parts: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    file.set_len(used(path) / parts).unwrap();
    file.sync_all().unwrap();
}

fn first_segment(log: &Path) -> PathBuf {
    let segment = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("segment-"))
    };
    files(log).into_iter().find(segment).expect("a log has a segment")
}

/// Enough is written for several snapshots and purges; then all nodes are killed at once. What is on
/// disk is whole: the same state on every node.
#[test]
fn snapshots_and_purges_survive_a_kill_of_all_nodes() {
    run(async {
        let mut cluster = Setup::default().option("--snapshot-entries", 10).start(3).await;
        for _ in 0..3 {
            let leader = cluster.leader().await;
            let reached = cluster.status(leader).await.last_log_index;
            write_past_purge(&cluster, reached).await;
            let before = cluster.instances(leader, "filler").await;
            cluster.kill_all();
            cluster.spawn_all();
            cluster.ready(&cluster.ids()).await;
            let leader = cluster.leader().await;
            assert_eq!(cluster.instances(leader, "filler").await, before);
            cluster.same_digest().await;
        }
        eventually("a snapshot on every node", async || {
            for id in cluster.ids() {
                let status = cluster.status(id).await;
                if status.snapshot_index == 0 {
                    return Err(format!("{status:?}"));
                }
            }
            Ok(())
        })
        .await;
    });
}
