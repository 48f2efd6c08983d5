//! A node whose state is not that of the others, or is lost, takes theirs by itself.

use std::path::Path;
use std::time::Duration;

use quorate::proto::v1;
use quorate::state::{Key, Record};
use quorate::store::image::{Image as _, verify};
use quorate::store::rebuild::{Mark, path, write};
use quorate::store::sled_image::SledImage;

use super::exactly_once::write_past_purge;
use super::harness::{Cluster, Setup, eventually, get, instance, run};
use super::load::{Load, last_write};

/// A node says the first when it has found its mark and the second when it has another's state.
const BEGINS: &str = "this node takes its state from another member";
const IN_PLACE: &str = "the state of another member is in place";
/// No instance is given this weight but by [`make_odd`].
const WRONG: u32 = 999;

fn often(snapshot_entries: u64) -> Setup {
    Setup::default().option("--digest-entries", 50).option("--snapshot-entries", snapshot_entries)
}

/// Changes a record in the image of a node that is down, as a lying memory would have done: count and
/// digest fit it.
fn make_odd(data: &Path) {
    let mut image = SledImage::open(data.join("image")).unwrap();
    let meta = verify(&image).unwrap();
    let rows: Vec<_> = image.scan().map(Result::unwrap).collect();
    let is_victim = |key: &Key| matches!(key, Key::Instance { id, .. } if **id == *"victim");
    let (key, value) =
        rows.into_iter().find(|(key, _)| is_victim(&Key::decode(key).unwrap())).unwrap();
    let Record::Instance(found) = Record::decode(&Key::decode(&key).unwrap(), &value).unwrap()
    else {
        panic!("not an instance");
    };
    let mut wrong = (*found).clone();
    assert_ne!(wrong.weight, WRONG);
    wrong.weight = WRONG;
    let wrong = Record::Instance(wrong.into()).encode();
    let after = image.write(&mut [(key, Some(wrong))].into_iter(), &meta.point).unwrap();
    assert_ne!(after.digest, meta.digest);
    verify(&image).unwrap();
}

/// The weight of the victim as a node shows it.
async fn weight(cluster: &Cluster, id: u64) -> u32 {
    cluster.instances(id, "web").await["victim"].weight.unwrap_or(1)
}

/// What a node has said since its log was `from` bytes long.
async fn says(cluster: &Cluster, id: u64, from: usize, what: &str) {
    eventually(&format!("node {id} says {what:?}"), async || {
        let log = cluster.node(id).log_text();
        if log[from..].contains(what) { Ok(()) } else { Err(log[from..].to_owned()) }
    })
    .await;
}

/// A cluster in which a node that is down holds something else than the others. One that lags far behind them, by 160
/// entries if there is a snapshot each 40, is sent a snapshot, which mends it before anybody notices.
async fn with_an_odd_one(of: impl AsyncFnOnce(&Cluster) -> u64) -> (Cluster, u64) {
    let mut cluster = often(1_000).start(3).await;
    cluster.client().register(instance("web", "victim"), None).await.unwrap();
    let odd = of(&cluster).await;
    // A follower may not have it yet; a linearizable read waits for it.
    assert_eq!(weight(&cluster, odd).await, 1);
    assert_eq!(cluster.stop(odd).await, 0);
    make_odd(&cluster.node(odd).data);
    (cluster, odd)
}

/// The others of a cluster as the sources of a mark.
fn mark(cluster: &Cluster, of: u64) -> Mark {
    let sources = cluster.ids().into_iter().filter(|id| *id != of);
    let sources = sources.map(|id| (id, cluster.node(id).peer.clone())).collect();
    Mark { right: None, sources, applied: None }
}

fn set_mark(cluster: &Cluster, of: u64) {
    write(&cluster.node(of).data, &mark(cluster, of)).unwrap();
}

fn is_marked(cluster: &Cluster, id: u64) -> bool {
    path(&cluster.node(id).data).exists()
}

/// Alarms of a node about replicas that differ.
async fn alarms(cluster: &Cluster, id: u64) -> Vec<String> {
    let errors = cluster.status(id).await.errors;
    errors.into_iter().filter(|error| error.starts_with("CORRUPT")).collect()
}

/// A follower's state differs. Under load it is found, says so, fetches the others' state and starts
/// anew as the same process; nothing acknowledged is lost and the alarm ends.
#[test]
fn an_odd_follower_rebuilds_itself_under_load() {
    run(async {
        let (mut cluster, odd) =
            with_an_odd_one(async |cluster| cluster.followers().await[0]).await;
        cluster.start(odd).await;
        assert_eq!(weight(&cluster, odd).await, WRONG, "the test must make a difference");
        let load = Load::start(&cluster, 2, 1).await;
        says(&cluster, odd, 0, "differs from what most voters hold").await;
        says(&cluster, odd, 0, BEGINS).await;
        says(&cluster, odd, 0, IN_PLACE).await;
        // It has not exited: this fails if it had.
        cluster.ready(&[odd]).await;
        assert_eq!(weight(&cluster, odd).await, 1);
        load.progress(100).await;
        let mut written = load.stop().await;
        let last = last_write(&cluster).await;
        written.acknowledged.insert(last, ("last".to_owned(), true));
        written.check_everywhere(&cluster).await;
        cluster.same_digest().await;
        assert!(!is_marked(&cluster, odd));
        let leader = cluster.leader().await;
        eventually("no more alarm", async || match &alarms(&cluster, leader).await[..] {
            [] => Ok(()),
            alarms => Err(format!("{alarms:?}")),
        })
        .await;
        // Whoever led then.
        let alarm = format!("CORRUPT: the state of node {odd} differs at index");
        let raised = cluster.running().any(|node| {
            let log = node.log_text();
            log.lines().any(|line| line.contains(&alarm) && line.contains("it is being rebuilt"))
        });
        assert!(raised, "nobody has said {alarm:?}");
        // What it holds now survives a crash.
        cluster.kill(odd);
        cluster.start(odd).await;
        assert_eq!(weight(&cluster, odd).await, 1);
        cluster.same_digest().await;
    });
}

/// The leader's own state differs: it lets another one lead, which tells it to rebuild.
#[test]
fn an_odd_leader_steps_down_and_rebuilds_itself() {
    run(async {
        let (mut cluster, odd) = with_an_odd_one(async |cluster| cluster.leader().await).await;
        cluster.start(odd).await;
        cluster.lead(odd).await;
        assert_eq!(weight(&cluster, odd).await, WRONG);
        let load = Load::start(&cluster, 2, 0).await;
        says(&cluster, odd, 0, "which tells it to rebuild").await;
        says(&cluster, odd, 0, IN_PLACE).await;
        cluster.ready(&[odd]).await;
        let mut written = load.stop().await;
        let last = last_write(&cluster).await;
        written.acknowledged.insert(last, ("last".to_owned(), true));
        written.check_everywhere(&cluster).await;
        assert_eq!(weight(&cluster, odd).await, 1);
        cluster.same_digest().await;
        // It may lead again.
        cluster.lead(odd).await;
        assert_eq!(weight(&cluster, odd).await, 1);
    });
}

/// kill -9 at many moments of a rebuild, under load: each start does it again from its beginning, and
/// the last one ends with the others' state.
#[test]
fn a_rebuild_survives_kills() {
    run(async {
        let (mut cluster, odd) =
            with_an_odd_one(async |cluster| cluster.followers().await[0]).await;
        let load = Load::start(&cluster, 2, 0).await;
        let mut interrupted = 0;
        for delay in [0, 2, 5, 10, 15, 20, 30, 40, 60, 80, 120] {
            set_mark(&cluster, odd);
            let said = cluster.node(odd).log_length();
            cluster.spawn(odd);
            says(&cluster, odd, said, BEGINS).await;
            tokio::time::sleep(Duration::from_millis(delay)).await;
            cluster.kill(odd);
            interrupted += u64::from(is_marked(&cluster, odd));
        }
        assert!(interrupted > 0, "no kill came in the middle of a rebuild");
        set_mark(&cluster, odd);
        cluster.start(odd).await;
        let mut written = load.stop().await;
        let last = last_write(&cluster).await;
        written.acknowledged.insert(last, ("last".to_owned(), true));
        written.check_everywhere(&cluster).await;
        assert_eq!(weight(&cluster, odd).await, 1);
        cluster.same_digest().await;
    });
}

/// Two nodes are to be rebuilt, each from the others, and nobody is there to give its state: they wait,
/// say so, answer no reads and may be stopped. As soon as the third is back, without a quorum as it
/// is, both go on.
#[test]
fn who_finds_no_member_waits_for_one() {
    run(async {
        let (mut cluster, odd) =
            with_an_odd_one(async |cluster| cluster.followers().await[0]).await;
        let others: Vec<u64> = cluster.running().map(|node| node.id).collect();
        for id in &others {
            assert_eq!(cluster.stop(*id).await, 0);
        }
        let (other, source) = (others[0], others[1]);
        for id in [odd, other] {
            set_mark(&cluster, id);
            cluster.spawn(id);
        }
        for id in [odd, other] {
            let http = cluster.node(id).http.clone();
            eventually("a reason why it is not ready", async || {
                match get(&http, "/readyz").await {
                    Ok((503, why)) if why.contains("rebuilding: no member has sent") => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            })
            .await;
            assert_eq!(get(&http, "/livez").await.unwrap().0, 200);
            assert!(get(&http, "/metrics").await.unwrap().1.contains("quorate_rebuilding 1"));
            let client = cluster.at(id).with_timeout(Duration::from_secs(1));
            let mut request =
                v1::ListInstancesRequest { service: "web".into(), ..Default::default() };
            request.set_consistency(v1::Consistency::Stale);
            assert!(client.list_instances(request).await.is_err());
        }
        // It may be stopped, and waits again.
        assert_eq!(cluster.stop(odd).await, 0);
        assert!(is_marked(&cluster, odd));
        cluster.spawn(odd);
        cluster.start(source).await;
        cluster.ready(&[odd, other, source]).await;
        for id in [odd, other] {
            says(&cluster, id, 0, IN_PLACE).await;
            assert!(!is_marked(&cluster, id));
        }
        cluster.client().register(instance("web", "after"), None).await.unwrap();
        for id in cluster.ids() {
            assert_eq!(weight(&cluster, id).await, 1);
        }
        cluster.same_digest().await;
    });
}

/// Image and snapshots of a node are gone, and the beginning of its log is purged: with its votes and
/// log it takes another member's state. A node that is alone refuses to start.
#[test]
fn a_lost_state_is_fetched() {
    run(async {
        let mut cluster = often(40).start(3).await;
        write_past_purge(&cluster, 30).await;
        let id = cluster.followers().await[0];
        eventually("a purge of its own log", async || {
            let status = cluster.status(id).await;
            if status.purged_index > 0 { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
        cluster.kill(id);
        lose_state(&cluster.node(id).data);
        let said = cluster.node(id).log_length();
        cluster.start(id).await;
        says(&cluster, id, said, "the state lacks everything from 0").await;
        says(&cluster, id, said, IN_PLACE).await;
        cluster.same_digest().await;
        assert!(!is_marked(&cluster, id));

        let mut alone = often(40).start(1).await;
        write_past_purge(&alone, 30).await;
        alone.kill(1);
        lose_state(&alone.node(1).data);
        alone.spawn(1);
        assert_eq!(alone.exit_code(1).await, 4);
    });
}

fn lose_state(data: &Path) {
    std::fs::remove_dir_all(data.join("image")).unwrap();
    for file in std::fs::read_dir(data.join("snapshots")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
}

/// A node that is to be rebuilt was removed meanwhile: it takes the state, and knows by it that it is
/// no member.
#[test]
fn a_removed_node_learns_so_by_its_rebuild() {
    run(async {
        let (mut cluster, odd) =
            with_an_odd_one(async |cluster| cluster.followers().await[0]).await;
        set_mark(&cluster, odd);
        cluster.client().remove(odd).await.unwrap();
        cluster.spawn(odd);
        says(&cluster, odd, 0, IN_PLACE).await;
        eventually("it knows that it is no member", async || {
            let errors = cluster.status(odd).await.errors;
            match errors.iter().any(|error| error.starts_with("not a member")) {
                true => Ok(()),
                false => Err(format!("{errors:?}")),
            }
        })
        .await;
        cluster.client().register(instance("web", "after"), None).await.unwrap();
    });
}
