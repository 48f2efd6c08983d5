//! A backup is made, inspected, restored, and the restored node is started.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::assembly::{Progress, assemble};
use crate::limits;
use crate::node::Node;
use crate::options::{self, Config};
use crate::proto::v1::Consistency;
use crate::state::{
    Addition, Admin, Claim, Command, Compare, Corrupt, CounterName, Endpoint, Entry, Health,
    Holder, InstanceName, LockName, Match, Op, Pairs, Refusal, Registration, Reply, Scope, State,
    Txn,
};
use crate::watch::{Kind, Range, Selector};

const OLD_CLUSTER: &str = "0123456789abcdef0123456789abcdef";
const NEW_CLUSTER: &str = "fedcba9876543210fedcba9876543210";
const TIMEOUT: Duration = Duration::from_secs(20);

fn register(id: &str) -> Command {
    let name = InstanceName { namespace: "default".into(), service: "web".into(), id: id.into() };
    let endpoints = vec![Endpoint { name: String::new(), host: "h".into(), port: 80 }].into();
    let registration = Registration {
        name,
        endpoints,
        weight: 1,
        zone: String::new(),
        metadata: Pairs::default(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: "test".into(),
        hash_key: String::new(),
        session: None,
    };
    Command { request: None, op: Op::Register(Box::new(registration)) }
}

/// A backup of an old cluster of three, in term 7 at index 41, with 300 instances. It knows node 4, which
/// the new cluster has too, as removed.
fn backup(directory: &Path) -> (PathBuf, State) {
    let mut state = State::default();
    for op in [Op::AdmitMember { node: 1, store: Some(1) }, Op::RetireMember { node: 4 }] {
        let command = Command::<String> { request: None, op }.encode().unwrap();
        state.apply(&Entry { term: 7, at_ms: 1_000, commands: vec![&command] });
    }
    for number in 0..300 {
        let command = register(&format!("web-{number}")).encode().unwrap();
        state.apply(&Entry { term: 7, at_ms: 1_000 + number, commands: vec![&command] });
    }
    let log_id = LogId { leader_id: LeaderId { term: 7, node_id: 2 }, index: 41 };
    let members: Vec<(u64, String)> = (1..=3).map(|id| (id, format!("old-{id}:7651"))).collect();
    let point = Point { log_id: codec::encode_log_id(&log_id), ..point(41, 0, &members) };
    let head = Head {
        cluster_id: OLD_CLUSTER.into(),
        point,
        revision: state.revision(),
        now_ms: state.meta().now_ms,
    };
    let rows =
        state.records().map(|(key, record)| Ok::<_, io::Error>((key.encode(), record.encode())));
    let disk = RealDisk::open(directory).unwrap();
    let meta = snapshot::write(&disk, &head, rows, None).unwrap();
    let path = directory.join("backup");
    fs::rename(directory.join(meta.name), &path).unwrap();
    (path, state)
}

fn config(data_dir: &Path) -> Config {
    let file = format!(
        "id = 4\ndata-dir = {data_dir:?}\ninitial-cluster = \"4=127.0.0.1:7651\"\n\
         heartbeat-ms = 20\nelection-min-ms = 50\nelection-max-ms = 100"
    );
    let path = data_dir.with_extension("toml");
    fs::write(&path, file).unwrap();
    let file = options::File::read(Some(&path)).unwrap();
    Config::check(options::Serve::default(), &file).unwrap()
}

/// What is the registry's in a state: everything but meta, members and when something was removed.
fn registry(state: &State) -> Vec<(Key, Record)> {
    let others = |key: &Key| matches!(key, Key::Meta | Key::Member { .. } | Key::Removal { .. });
    state.records().filter(|(key, _)| !others(key)).collect()
}

/// All that a watcher of the service gets before the first bookmark or change: whether it is a snapshot,
/// how many instances, and the revision.
async fn resumed(node: &Node, after_revision: u64) -> (bool, usize, u64) {
    let range = Range::from(Selector::service("default", "web"));
    let mut watch = node.watch(range, after_revision).unwrap();
    let mut events = 0;
    loop {
        let message = watch.next().await.unwrap().unwrap();
        events += message.events.len();
        match message.kind {
            Kind::Snapshot { more: true } => {}
            Kind::Snapshot { more: false } => return (true, events, message.revision),
            Kind::Changes | Kind::Bookmark => return (false, events, message.revision),
        }
    }
}

fn scope(class: Class) -> Scope {
    Scope { class, namespace: "default".into(), first: Match::Any, second: Match::Any }
}

fn target<'a>(data_dir: &'a Path, cluster_id: &'a str, members: &'a [(u64, String)]) -> Target<'a> {
    let revision_step = limits::RESTORE_REVISION_STEP;
    Target { data_dir, cluster_id, node_id: 4, members, revision_step, now_ms: 5 }
}

#[test]
fn a_backup_says_what_it_holds() {
    let directory = tempfile::tempdir().unwrap();
    let (path, state) = backup(directory.path());
    let backup = inspect(&path).unwrap();
    let (digest, records) = state.digest();
    assert_eq!((backup.meta.digest, backup.meta.records), (digest, records));
    assert_eq!((backup.term, backup.meta.point.index, backup.meta.revision), (7, 41, 300));
    assert_eq!(backup.meta.cluster_id, OLD_CLUSTER);
    assert_eq!(backup.members[1], (2, "old-2:7651".to_owned()));
}

/// The story of a disaster: all that is left is a backup. A node with another number and another
/// cluster id is made from it, starts, leads, knows what the old cluster knew, takes writes with
/// revisions that the old cluster never gave out, and still has everything after a restart.
#[tokio::test]
async fn a_restored_node_starts_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (path, state) = backup(directory.path());
    let data_dir = directory.path().join("new");
    let config = config(&data_dir);
    let cluster_id = config.cluster_id.clone().unwrap();
    let target = target(&data_dir, &cluster_id, &config.initial_members);
    let meta = restore(&path, &target).unwrap();
    assert_eq!(meta.records, state.digest().1 - 2 + 6, "without two members, with six removals");
    assert_eq!((meta.revision, &meta.cluster_id), (1_000_000_300, &cluster_id));

    let assembly = assemble(&config, &Progress::default()).await.unwrap();
    let node = assembly.node.clone();
    node.barrier(Consistency::Linearizable, TIMEOUT).await.unwrap();
    node.read(|restored| {
        assert_eq!(registry(restored), registry(&state));
        assert_eq!(restored.revision(), 1_000_000_300);
        assert_eq!(restored.meta().now_ms, state.meta().now_ms);
    });
    let members = node.members();
    assert_eq!(members.len(), 1, "{members:?}");

    // The old cluster went on after the backup. Whatever a watcher saw there, it begins anew here, also
    // when the new cluster has changes of its own.
    let old = [1, 299, 300, 301, 999_999_999];
    for after in old {
        assert_eq!(resumed(&node, after).await, (true, 300, 1_000_000_300), "after {after}");
    }
    assert_eq!(resumed(&node, 1_000_000_300).await, (false, 0, 1_000_000_300));
    assert_eq!(node.propose(&register("new"), TIMEOUT).await.unwrap().revision, 1_000_000_301);
    for after in old {
        assert_eq!(resumed(&node, after).await, (true, 301, 1_000_000_301), "after {after}");
    }
    assert_eq!(resumed(&node, 1_000_000_300).await, (false, 1, 1_000_000_301));
    // Nor does a compare hold with a revision that only the old cluster gave out.
    let name =
        InstanceName { namespace: "default".into(), service: "web".into(), id: "new".into() };
    for expected in [301, 1_300] {
        let name = name.clone();
        let op = Op::Deregister { name, expected_mod_revision: Some(expected) };
        let outcome = node.propose(&Command { request: None, op }, TIMEOUT).await.unwrap();
        let refused = Refusal::CompareFailed { expected, current: 1_000_000_301 };
        assert_eq!(outcome.result, Err(refused));
    }

    // Nor is anything unchanged since one.
    for (since, unchanged) in
        [(300, false), (301, false), (1_000_000_299, false), (1_000_000_301, true)]
    {
        let compare = Compare::Unchanged { scope: scope(Class::Service), since };
        let looked = Txn { when: vec![compare], then: vec![], otherwise: vec![] };
        let reply = node.read(|state| state.look(&looked)).unwrap();
        assert_eq!(reply, Reply::Txn { succeeded: unchanged, replies: vec![] }, "since {since}");
    }

    // The old cluster's members are forgotten: number 4, removed there, is this node's here.
    while node.read(|state| state.members().next().is_none()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let known: Vec<(u64, bool)> =
        node.read(|state| state.members().map(|member| (member.node, member.removed)).collect());
    assert_eq!(known, [(4, false)]);
    assembly.stop().await;

    let assembly = assemble(&config, &Progress::default()).await.unwrap();
    let node = assembly.node.clone();
    node.barrier(Consistency::Linearizable, TIMEOUT).await.unwrap();
    node.read(|state| {
        assert!(state.instance("default", "web", "new").is_some());
        assert!(state.instance("default", "web", "web-299").is_some());
    });
    assembly.stop().await;
}

/// In every namespace each class counts as removed, whatever there is of it, and all stands in its place.
#[test]
fn what_was_removed_since_the_backup_is_not_known() {
    let mut state = State::default();
    let name = |namespace: &str| namespace.to_owned();
    let lock = LockName { namespace: name("default"), lock: name("l") };
    let counter = |namespace: &str| CounterName {
        namespace: namespace.into(),
        name: "c".into(),
        labels: Pairs::default(),
    };
    let add = |namespace: &str| {
        let (name, kind, floor, ceil) = (counter(namespace), None, None, None);
        Op::AddCounter(Box::new(Addition { name, kind, delta: 1, floor, ceil }))
    };
    let (holder, value) = (Holder { session: 1, name: name("h") }, name(""));
    for op in [
        Op::OpenSession { ttl_ms: 10_000, client: name("") },
        Op::PutNamespace { name: name("z"), description: name("") },
        Op::PutNamespace { name: name("a"), description: name("") },
        Op::AcquireLock(Box::new(Claim { lock, holder, value, wait: false })),
        add("a"),
        add("default"),
        Op::DeleteCounter { name: counter("a") },
        Op::AdmitMember { node: 1, store: Some(1) },
    ] {
        let command = Command { request: None, op }.encode().unwrap();
        let entry = Entry { term: 7, at_ms: 1_000, commands: vec![&command] };
        assert!(state.apply(&entry).outcomes[0].result.is_ok());
    }
    let (digest, records) = state.digest();
    let mut translation = Translation {
        revision_step: 100,
        revision: state.revision() + 100,
        tally: Tally { records, digest },
        removals: BTreeMap::new(),
    };
    translation.remove_all("default");
    let rows = state.records().map(|(key, record)| (key.encode(), record.encode()));
    let mut rows: Vec<Row> = rows.flat_map(|row| translation.rows(row).unwrap()).collect();
    rows.extend(translation.rest());
    assert!(rows.is_sorted_by(|one, next| one.0 < next.0));
    let records = rows.iter().map(|(key, value)| {
        let key = Key::decode(key).unwrap();
        let record = Record::decode(&key, value)?;
        Ok::<_, Corrupt>((key, record))
    });
    let restored = State::restore(records).unwrap();
    assert_eq!(restored.digest(), (translation.tally.digest, translation.tally.records));
    assert_eq!(registry(&restored), registry(&state));
    let removals: Vec<(String, Class, u64)> = restored
        .records()
        .filter_map(|(key, record)| match (key, record) {
            (Key::Removal { namespace, class }, Record::Removal(removal)) => {
                Some((namespace.to_string(), class, removal.revision))
            }
            _ => None,
        })
        .collect();
    let mut expected = Vec::new();
    for namespace in ["a", "default", "z"] {
        let class = |class: Class| (name(namespace), class, state.revision() + 100);
        let mut own = Class::ALL.map(class);
        own.sort_by_key(|(_, class, _)| *class as u8);
        expected.extend(own);
    }
    assert_eq!(removals, expected);
}

#[test]
fn a_directory_in_use_is_left_alone_and_a_half_made_one_is_made_again() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = backup(directory.path());
    let members = [(4, "a:1".to_owned())];
    let data_dir = directory.path().join("new");
    fs::create_dir(&data_dir).unwrap();
    fs::create_dir_all(directory.path().join("new.restoring/log")).unwrap();
    restore(&path, &target(&data_dir, NEW_CLUSTER, &members)).unwrap();
    assert!(!directory.path().join("new.restoring").exists());
    let error = restore(&path, &target(&data_dir, NEW_CLUSTER, &members)).unwrap_err();
    assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
    let again = DataDir::open(&data_dir, NEW_CLUSTER, 4, 6).unwrap();
    assert!(!again.is_new());
}

#[test]
fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (path, _) = backup(directory.path());
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    let data_dir = directory.path().join("new");
    let members = [(4, "a:1".to_owned())];
    let error = restore(&path, &target(&data_dir, NEW_CLUSTER, &members)).unwrap_err();
    assert!(error.to_string().contains("is damaged at byte"), "{error}");
    assert!(!data_dir.exists() && !directory.path().join("new.restoring").exists());
    let error = inspect(&directory.path().join("absent")).unwrap_err();
    assert!(error.to_string().contains("absent"), "{error}");
}
