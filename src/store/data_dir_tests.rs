//! Every way in which a data directory is not the right one.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::data_dir::{DataDir, Error, FORMAT_VERSION, StoreId};
use super::peers::{MemoryPeers, PeerBook};

const NOW: u64 = 1_700_000_000_000;

fn open(path: &std::path::Path) -> Result<DataDir, Error> {
    DataDir::open(path, "production", 3, NOW)
}

/// Kind and text of the refusal; the text must name the path.
#[track_caller]
fn refused(path: &std::path::Path, parts: &[&str]) -> Error {
    let error = open(path).unwrap_err();
    let text = error.to_string();
    assert!(text.contains(path.to_str().unwrap()), "{text:?} names no path");
    for part in parts {
        assert!(text.contains(part), "{text:?} lacks {part:?}");
    }
    error
}

#[test]
fn a_new_directory_is_made_once_and_keeps_its_store_id() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not/there/yet");
    let mut first = open(&path).unwrap();
    assert!(first.is_new());
    assert!(first.log().is_dir() && first.snapshots().is_dir());
    let store_id = first.store_id();
    assert_eq!(store_id.to_string().parse(), Ok(store_id));
    drop(first);

    // The process died before the log was created: it may still be.
    first = open(&path).unwrap();
    assert!(first.is_new());
    assert_eq!(first.store_id(), store_id);
    first.seal().unwrap();
    drop(first);

    let again = open(&path).unwrap();
    assert!(!again.is_new());
    assert_eq!(
        (again.store_id(), again.node_id(), again.cluster_id()),
        (store_id, 3, "production")
    );
    let other = open(&dir.path().join("other")).unwrap();
    assert_ne!(other.store_id(), store_id);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(path.join("identity")).unwrap()).unwrap();
    assert_eq!(json["created_at_ms"], NOW);
}

/// The file as the first release writes it.
#[test]
fn an_identity_of_the_first_release_is_read() {
    let dir = tempfile::tempdir().unwrap();
    for part in ["log", "snapshots"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    let json = r#"{
  "format_version": 1,
  "cluster_id": "production",
  "node_id": 3,
  "store_id": "000102030405060708090a0b0c0d0e0f",
  "created_at_ms": 1700000000000,
  "log_created": true
}"#;
    fs::write(dir.path().join("identity"), json).unwrap();
    let store_id = open(dir.path()).unwrap().store_id();
    assert_eq!(store_id, StoreId(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f));
}

#[test]
fn one_process_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let held = open(dir.path()).unwrap();
    let error = refused(dir.path(), &["in use by another process"]);
    assert!(matches!(error, Error::InUse { .. }));
    drop(held);
    open(dir.path()).unwrap();
}

#[test]
fn a_directory_of_another_cluster_or_node_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(DataDir::open(dir.path(), "staging", 3, NOW).unwrap());
    let error = refused(dir.path(), &["\"staging\"", "\"production\""]);
    assert!(matches!(error, Error::ForeignCluster { .. }));

    let dir = tempfile::tempdir().unwrap();
    drop(DataDir::open(dir.path(), "production", 7, NOW).unwrap());
    let error = refused(dir.path(), &["node 7", "to be node 3"]);
    assert!(matches!(error, Error::OtherNode { found: 7, expected: 3, .. }));
}

#[test]
fn a_later_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    let later = format!("{{\"format_version\": {}, \"new\": []}}", FORMAT_VERSION + 1);
    fs::write(dir.path().join("identity"), later).unwrap();
    let error = refused(dir.path(), &["format version 2", "up to 1"]);
    assert!(matches!(error, Error::NewerFormat { found: 2, .. }));
}

#[test]
fn a_directory_with_something_else_in_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "...").unwrap();
    let error = refused(dir.path(), &["thesis.tex", "no identity"]);
    assert!(matches!(error, Error::NotOurs { .. }));
    assert!(!dir.path().join("lock").exists(), "something was written into a stranger's directory");

    // A log whose identity is gone.
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()).unwrap());
    fs::write(dir.path().join("log/segment"), "...").unwrap();
    fs::remove_file(dir.path().join("identity")).unwrap();
    assert!(matches!(refused(dir.path(), &["\"log\""]), Error::NotOurs { .. }));
}

#[test]
fn an_interrupted_first_opening_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    for part in ["log", "lost+found"] {
        fs::create_dir(dir.path().join(part)).unwrap();
    }
    for part in ["lock", "identity.tmp"] {
        fs::write(dir.path().join(part), "{").unwrap();
    }
    let mut first = open(dir.path()).unwrap();
    assert!(first.is_new());
    first.seal().unwrap();
    drop(first);
    assert!(!open(dir.path()).unwrap().is_new());
}

#[test]
fn a_damaged_identity_is_refused() {
    for (content, part) in [
        ("", "EOF"),
        ("{}", "format_version"),
        ("{\"format_version\": 1}", "cluster_id"),
        (
            "{\"format_version\": 1, \"cluster_id\": \"production\", \"node_id\": 3, \
              \"store_id\": \"xyz\", \"created_at_ms\": 0, \"log_created\": true}",
            "xyz",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("identity"), content).unwrap();
        let error = refused(dir.path(), &[part]);
        assert!(matches!(error, Error::BadIdentity { .. }), "{content:?}");
    }
}

/// An empty log beside an identity would let a node vote twice.
#[test]
fn a_directory_without_its_log_is_refused() {
    for part in ["log", "snapshots"] {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path()).unwrap());
        fs::remove_dir(dir.path().join(part)).unwrap();
        refused(dir.path(), &[part, "missing"]);
    }
}

#[test]
fn a_path_that_is_no_directory_or_not_permitted_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(refused(&file, &["not a directory"]), Error::NotADirectory { .. }));
    assert!(matches!(
        refused(&file.join("below"), &["not a directory"]),
        Error::NotADirectory { .. }
    ));

    let closed = dir.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500)).unwrap();
    if fs::write(closed.join("probe"), "").is_err() {
        assert!(matches!(refused(&closed, &["no permission"]), Error::NoPermission { .. }));
    }
    // Root is not stopped by permissions.
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn cluster_ids_have_a_length() {
    let dir = tempfile::tempdir().unwrap();
    for id in [String::new(), "x".repeat(129)] {
        let error = DataDir::open(dir.path(), &id, 3, NOW).unwrap_err();
        assert!(matches!(error, Error::BadClusterId { .. }));
    }
}

#[test]
fn peers_are_trusted_on_first_use() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(dir.path()).unwrap();
    let memory = MemoryPeers::default();
    let book = data.peers().unwrap();
    for book in [&book as &dyn PeerBook, &memory] {
        assert_eq!(book.known_store(1), None);
        assert_eq!(book.remember(1, StoreId(11)).unwrap(), StoreId(11));
        assert_eq!(book.remember(1, StoreId(12)).unwrap(), StoreId(11), "the first one counts");
        assert_eq!(book.remember(2, StoreId(22)).unwrap(), StoreId(22));
        assert_eq!(book.known_store(1), Some(StoreId(11)));
    }
    // Durable when it returned.
    let again = data.peers().unwrap();
    assert_eq!(again.known_store(2), Some(StoreId(22)));
    assert_eq!(
        fs::read_to_string(dir.path().join("peers")).unwrap(),
        "1 0000000000000000000000000000000b\n2 00000000000000000000000000000016\n"
    );
}

#[test]
fn a_damaged_peer_book_is_an_error_and_not_empty() {
    let dir = tempfile::tempdir().unwrap();
    let data = open(dir.path()).unwrap();
    let line = "1 0000000000000000000000000000000b\n";
    for content in ["1", "x 00\n", "1 0b\n", &format!("{line}{line}")] {
        fs::write(dir.path().join("peers"), content).unwrap();
        assert!(data.peers().is_err(), "{content:?}");
    }
}
