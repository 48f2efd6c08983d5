//! A backup is made, inspected, restored, and the restored node is started.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::assembly::assemble;
use crate::options::{self, Config};
use crate::proto::v1::Consistency;
use crate::state::{
    Admin, Command, Endpoint, Entry, Health, InstanceName, Op, Registration, State,
};

const OLD_CLUSTER: &str = "0123456789abcdef0123456789abcdef";
const NEW_CLUSTER: &str = "fedcba9876543210fedcba9876543210";
const TIMEOUT: Duration = Duration::from_secs(20);

fn register(id: &str) -> Command {
    let name = InstanceName { namespace: "default".into(), service: "web".into(), id: id.into() };
    let endpoints = vec![Endpoint { name: String::new(), host: "h".into(), port: 80 }];
    let registration = Registration {
        name,
        endpoints,
        weight: 1,
        zone: String::new(),
        metadata: Vec::new(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: "test".into(),
        hash_key: String::new(),
        session: None,
    };
    Command { request: None, op: Op::Register(Box::new(registration)) }
}

/// A backup of an old cluster of three, in term 7 at index 41, with 300 instances.
fn backup(directory: &Path) -> (PathBuf, State) {
    let mut state = State::default();
    for number in 0..300 {
        let command = register(&format!("web-{number}")).encode().unwrap();
        state.apply(&Entry { term: 7, at_ms: 1_000 + number, commands: vec![&command] });
    }
    let log_id = LogId { leader_id: LeaderId { term: 7, node_id: 2 }, index: 41 };
    let members: Vec<(u64, String)> = (1..=3).map(|id| (id, format!("old-{id}:7651"))).collect();
    let point = Point { log_id: codec::encode_log_id(&log_id), ..point(41, &members) };
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

fn target<'a>(data_dir: &'a Path, cluster_id: &'a str, members: &'a [(u64, String)]) -> Target<'a> {
    Target { data_dir, cluster_id, node_id: 4, members, now_ms: 5 }
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
/// cluster id is made from it, starts, leads, knows what the old cluster knew, takes writes with the
/// next revision, and still has everything after a restart.
#[tokio::test]
async fn a_restored_node_starts_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (path, state) = backup(directory.path());
    let data_dir = directory.path().join("new");
    let config = config(&data_dir);
    let cluster_id = config.cluster_id.clone().unwrap();
    let target = target(&data_dir, &cluster_id, &config.initial_members);
    let meta = restore(&path, &target).unwrap();
    assert_eq!((meta.digest, meta.records), state.digest());
    assert_eq!(meta.cluster_id, cluster_id);

    let assembly = assemble(&config).await.unwrap();
    let node = assembly.node.clone();
    node.barrier(Consistency::Linearizable, TIMEOUT).await.unwrap();
    node.read(|restored| {
        assert_eq!(restored.digest(), state.digest());
        assert_eq!(restored.revision(), 300);
    });
    let members = node.members();
    assert_eq!(members.len(), 1, "{members:?}");
    assert_eq!(node.propose(&register("new"), TIMEOUT).await.unwrap().revision, 301);
    assembly.stop().await;

    let assembly = assemble(&config).await.unwrap();
    let node = assembly.node.clone();
    node.barrier(Consistency::Linearizable, TIMEOUT).await.unwrap();
    node.read(|state| {
        assert!(state.instance("default", "web", "new").is_some());
        assert!(state.instance("default", "web", "web-299").is_some());
    });
    assembly.stop().await;
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
