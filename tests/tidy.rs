//! Rules of the house that a compiler does not know. Each failure names the file and what to do instead.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms each room may use. What is not listed may be used by everybody: error, limits, proto,
/// and, on the server's side, runtime and clock, which stand for tokio and time, and failpoint, which is nothing
/// in a release.
const MAY_USE: &[(&str, &[&str])] = &[
    ("main", &["cli", "server", "options", "panic"]),
    ("cli", &["client", "content", "options", "restore"]),
    ("server", &["api", "assembly", "cli", "http", "listeners", "options", "raft"]),
    ("http", &["api", "node", "state"]),
    ("listeners", &["gather"]),
    (
        "assembly",
        &["node", "options", "participants", "prober", "raft", "store", "watch", "webhook"],
    ),
    ("webhook", &["node"]),
    ("participants", &["client", "node", "state", "webhook"]),
    ("prober", &["allow", "node", "state"]),
    ("restore", &["options", "raft", "state", "store"]),
    ("api", &["content", "node", "policy", "state", "watch"]),
    ("node", &["content", "raft", "state", "store", "watch"]),
    ("raft", &["gather", "state", "store", "watch"]),
    ("watch", &["state"]),
    ("store", &["state", "panic"]),
    ("state", &[]),
    ("client", &["gather", "policy"]),
    ("gather", &[]),
    ("content", &[]),
    ("options", &["allow"]),
    ("allow", &[]),
    ("panic", &[]),
    ("policy", &[]),
    ("runtime", &[]),
    ("clock", &[]),
    ("failpoint", &[]),
    ("error", &[]),
    ("limits", &[]),
    ("proto", &[]),
];

/// Rooms that these alone may use besides their listed ones.
const COMMON: &[&str] = &["error", "limits", "proto", "runtime", "clock", "failpoint"];
/// The client is a crate of its own without the feature `server`; the core knows nothing but numbers.
const COMMON_OF: &[(&str, &[&str])] = &[
    ("client", &["error", "limits", "proto"]),
    ("state", &["limits"]),
    ("store", &["failpoint", "limits"]),
    ("content", &["error", "limits"]),
    ("gather", &["limits"]),
    ("allow", &["limits"]),
    ("policy", &["error", "limits"]),
    ("limits", &[]),
    ("proto", &[]),
    ("error", &["proto"]),
];

/// Text that must not stand in production code, and what to use instead.
const BANNED: &[(&str, &str, &[&str])] = &[
    ("SystemTime::now", "clock::Clock", &["src/clock.rs"]),
    ("std::time::Instant::now", "runtime::Instant", &[]),
    ("tokio::spawn(", "runtime::spawn", &["src/runtime.rs", "src/client", "src/cli"]),
    ("openraft::", "a type of src/raft", &["src/raft", "src/node"]),
    ("sled::", "store::sled_image", &["src/store"]),
    ("todo!(", "the real thing", &[]),
    ("unimplemented!(", "the real thing", &[]),
    ("FIXME", "an issue, or the fix", &[]),
    ("dbg!(", "tracing", &[]),
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<_> = fs::read_dir(directory).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every file below src with its path from the root and its text, without its test module.
fn files() -> Vec<(String, String)> {
    let mut found = Vec::new();
    sources(&root().join("src"), &mut found);
    let files = found.into_iter().map(|path| {
        let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap())
    });
    files.collect()
}

fn is_test(name: &str) -> bool {
    let stem = Path::new(name).file_stem().unwrap().to_str().unwrap();
    stem.starts_with("tests")
        || stem.ends_with("_tests")
        || stem == "testing"
        || name.contains("/tests/")
}

/// The text before an inline test module.
fn production(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap()
}

fn room(name: &str) -> &str {
    let inner = name.strip_prefix("src/").unwrap();
    inner.split('/').next().unwrap().trim_end_matches(".rs")
}

/// The rooms that a text names as `crate::room` (or, in main.rs, `quorate::room`).
fn uses(text: &str) -> BTreeSet<String> {
    let mut rooms = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for prefix in ["crate::", "quorate::"] {
            for (at, _) in line.match_indices(prefix) {
                let rest = &line[at + prefix.len()..];
                let word: String =
                    rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
                if !word.is_empty() {
                    rooms.insert(word);
                }
            }
        }
    }
    rooms
}

#[test]
fn rooms_use_only_what_they_may() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, text) in files() {
        let room = room(&name);
        if is_test(&name) || room == "lib" {
            continue;
        }
        let Some(may) = allowed.get(room) else {
            wrong.push(format!("{name}: room {room:?} is not in MAY_USE of tests/tidy.rs"));
            continue;
        };
        let common = COMMON_OF.iter().find(|(of, _)| *of == room).map_or(COMMON, |(_, c)| c);
        for used in uses(production(&text)) {
            let known = allowed.contains_key(used.as_str());
            if known && used != room && !may.contains(&&*used) && !common.contains(&&*used) {
                wrong.push(format!(
                    "{name} uses crate::{used}; {room} may use {may:?} and {common:?}"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nothing_banned_stands_in_production_code() {
    let mut wrong = Vec::new();
    for (name, text) in files() {
        if is_test(&name) {
            continue;
        }
        for (number, line) in production(&text).lines().enumerate() {
            for (banned, instead, except) in BANNED {
                let comment = line.trim_start().starts_with("//");
                if line.contains(banned)
                    && !(comment && *banned != "FIXME")
                    && !except.iter().any(|except| name.starts_with(except))
                {
                    wrong.push(format!("{name}:{}: {banned} is banned: use {instead}", number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A thousand is `1 000` in prose.
fn spaced(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|group| std::str::from_utf8(group).unwrap()).collect::<Vec<_>>().join(" ")
}

/// What the comments of the public API state is what the node enforces.
#[test]
fn limits_in_the_api_are_those_of_the_node() {
    use quorate::limits::*;
    let bytes = |limit: usize| format!("at most {limit} bytes");
    let range = |range: &std::ops::RangeInclusive<u64>| {
        format!("{}..={}", spaced(*range.start()), spaced(*range.end()))
    };
    let whole = spaced;
    let spaced = |limit: usize| spaced(limit as u64);
    let metadata = format!(
        "At most {METADATA_PAIRS} pairs; keys 1..={METADATA_KEY_BYTES} bytes, values up to {} bytes, \
         {} KiB together.",
        spaced(METADATA_VALUE_BYTES),
        METADATA_TOTAL_BYTES / 1024
    );
    let page = format!("At most this many, 1..={}; 0 = {}.", spaced(PAGE), spaced(DEFAULT_PAGE));
    let names = format!("are 1..={NAME_BYTES} bytes of");
    let ttl = format!(
        "{} ms; 0 = {}.",
        range(&SESSION_TTL_MS),
        spaced(usize::try_from(DEFAULT_SESSION_TTL_MS).unwrap())
    );
    let after = format!(
        "{} ms; absent = {}.",
        range(&DEREGISTER_AFTER_MS),
        spaced(usize::try_from(DEFAULT_DEREGISTER_AFTER_MS).unwrap())
    );
    // Each phrase with how often it stands in the file.
    let stated = [
        ("registry.proto", names, 1),
        ("records.proto", format!("\"metrics\": {}, unique", bytes(NAME_BYTES)), 1),
        ("records.proto", format!("without port: 1..={HOST_BYTES} bytes."), 1),
        ("records.proto", format!("// 1..={}.\n  uint32 port", spaced(usize::from(u16::MAX))), 1),
        ("records.proto", format!("// 1..={ENDPOINTS}.\n  repeated Endpoint"), 1),
        ("records.proto", format!("0..={}, 0 = no load", spaced(WEIGHT as usize)), 1),
        ("records.proto", format!("Absent on Register = {DEFAULT_WEIGHT}."), 1),
        ("records.proto", format!("At most {ZONE_BYTES} bytes; may be empty."), 1),
        ("records.proto", metadata, 1),
        ("records.proto", format!("and why: {}.", bytes(TEXT_BYTES)), 1),
        ("registry.proto", format!("the change: {}; empty", bytes(TEXT_BYTES)), 1),
        ("registry.proto", format!("At most {TEXT_BYTES} bytes.\n  string description"), 1),
        ("records.proto", format!("the hash ring: {};", bytes(NAME_BYTES)), 1),
        ("records.proto", format!("\"ring_hash\"; {};", bytes(POLICY_BYTES)), 1),
        ("records.proto", after, 1),
        ("registry.proto", page.clone(), 1),
        (
            "records.proto",
            format!(
                "{} ms; 0 = {}.",
                range(&HEALTH_INTERVAL_MS),
                whole(DEFAULT_HEALTH_INTERVAL_MS)
            ),
            1,
        ),
        (
            "records.proto",
            format!(
                "{} ms and at most the interval; 0 = {}, or the\n  // interval if that is less.",
                range(&HEALTH_TIMEOUT_MS),
                whole(DEFAULT_HEALTH_TIMEOUT_MS)
            ),
            1,
        ),
        (
            "records.proto",
            format!("until critical: {}; 0 = {DEFAULT_HEALTH_FAILURES}.", range(&HEALTH_STREAK)),
            1,
        ),
        (
            "records.proto",
            format!("until passing: {}; 0 = {DEFAULT_HEALTH_SUCCESSES}.", range(&HEALTH_STREAK)),
            1,
        ),
        ("records.proto", format!("at most {} bytes; empty = \"/\"", spaced(HEALTH_PATH_BYTES)), 1),
        ("records.proto", format!("The Host header: {};", bytes(HEALTH_HOST_BYTES)), 1),
        (
            "records.proto",
            format!(
                "{}; 0 = {} and {}.",
                range(&HEALTH_STATUSES),
                DEFAULT_HEALTH_STATUSES.0,
                DEFAULT_HEALTH_STATUSES.1
            ),
            1,
        ),
        ("records.proto", format!("asked for: {};", bytes(TEXT_BYTES)), 1),
        ("watch.proto", format!("// 1..={WATCH_SELECTORS}.\n  repeated WatchSelector"), 1),
        ("session.proto", page, 1),
        ("session.proto", ttl, 1),
        ("session.proto", format!("for people: {}.", bytes(TEXT_BYTES)), 1),
        ("session.proto", format!("1..={} calls.", spaced(STREAM_FRAME_CALLS)), 1),
        ("common.proto", format!("More than {} unack", spaced(SESSION_IN_FLIGHT)), 1),
        ("cluster.proto", "1..=2^63-1.".to_owned(), 1),
        ("cluster.proto", format!("at most {} MiB a message", SNAPSHOT_CHUNK_BYTES >> 20), 1),
    ];
    assert_eq!(*NODE_IDS.end(), (1 << 63) - 1);
    let mut wrong = Vec::new();
    for (file, phrase, times) in stated {
        let text = fs::read_to_string(root().join("proto/quorate/v1").join(file)).unwrap();
        if text.matches(&phrase).count() != times {
            wrong.push(format!("{file} does not say {phrase:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_holds() {
    let mut wrong = Vec::new();
    for (name, text) in files() {
        if !text.starts_with("//!") {
            wrong.push(format!("{name} does not begin with `//!` and what it holds"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A file that no module declares is never compiled, and its tests never run.
#[test]
fn every_file_is_part_of_the_crate() {
    let all = files();
    let mut wrong = Vec::new();
    for (name, _) in &all {
        let path = Path::new(name);
        let stem = path.file_stem().unwrap().to_str().unwrap();
        if name == "src/lib.rs" || name == "src/main.rs" {
            continue;
        }
        let (module, directory) = if stem == "mod" {
            let directory = path.parent().unwrap();
            (directory.file_name().unwrap().to_str().unwrap(), directory.parent().unwrap())
        } else {
            (stem, path.parent().unwrap())
        };
        let directory = directory.to_str().unwrap();
        let parents = match directory {
            "src" => vec!["src/lib.rs".to_owned()],
            other => vec![format!("{other}.rs"), format!("{other}/mod.rs")],
        };
        let declared = all.iter().any(|(candidate, text)| {
            parents.contains(candidate)
                && text.lines().any(|line| {
                    let line = line.trim();
                    line.ends_with(&format!("mod {module};"))
                })
        });
        if !declared {
            wrong.push(format!("{name} is declared by none of {parents:?}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// Each dependency stands below a comment that says why it is there.
#[test]
fn every_dependency_has_its_reason() {
    let text = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut wrong = Vec::new();
    let mut inside = false;
    let mut reason = false;
    for line in text.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
            reason = false;
        } else if inside && line.starts_with('#') {
            reason = true;
        } else if inside && line.contains('=') && !line.starts_with(' ') {
            if !reason {
                wrong.push(line.to_owned());
            }
            // One comment may stand over a few crates of one purpose, but not over a blank line.
        } else if line.is_empty() {
            reason = false;
        }
    }
    assert!(wrong.is_empty(), "no reason in Cargo.toml:\n{}", wrong.join("\n"));
}
