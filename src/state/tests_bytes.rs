//! Bytes that outlive a release: round trips, the order of keys, damage, and literal samples of every
//! kind of command and record that were written once and must stay readable.
#![allow(clippy::unwrap_used)]

use std::num::NonZeroU64;
use std::sync::Arc;

use bincode::Options as _;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::tests_properties::{check, wild_command};
use super::*;
use crate::limits;

mod center;
mod saga;

pub(super) fn from_hex(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2), "half a byte at the end of {hex}");
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

// ---- literal samples ----

/// `testdata/bytes.txt` holds a name and the bytes per line. A line is never changed and never
/// removed: it stands for logs, images and snapshots that exist. Without its line a sample fails and
/// prints the line to be added.
#[test]
fn old_bytes_stay_readable() {
    let lines: Vec<(&str, &str)> = include_str!("testdata/bytes.txt")
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let (mut samples, mut missing) = (0, Vec::new());
    let mut sample = |name: &str, bytes: Vec<u8>, readable: &dyn Fn(&[u8]) -> bool| {
        samples += 1;
        match lines.iter().find(|(known, _)| *known == name) {
            Some((_, hex)) => {
                assert!(readable(&from_hex(hex)), "{name}: {hex} is read as something else");
                assert_eq!(to_hex(&bytes), *hex, "{name} is written in other bytes");
            }
            None => missing.push(format!("{name} {}", to_hex(&bytes))),
        }
    };
    let own = commands().into_iter().map(|(name, command)| (name.to_owned(), command));
    for (name, command) in own.chain(center::commands()).chain(saga::commands()) {
        sample(&format!("command/{name}"), command.encode().unwrap(), &|bytes| {
            Command::decode(bytes).unwrap() == command
        });
    }
    let records = [records(), center::records(), saga::records()].concat();
    for (name, key, record) in &records {
        sample(&format!("record/{name}"), record.encode(), &|bytes| {
            Record::decode(key, bytes).unwrap() == *record
        });
    }
    let keys = [
        "meta",
        "namespace",
        "service",
        "instance",
        "session",
        "reply-opened",
        "member-removed",
        "config",
        "release",
        "schema",
        "report",
        "counter",
        "counter-new",
        "lock",
        "removal-service",
        "removal-config",
        "removal-counter",
        "removal-lock",
        "alarm",
        "removal-alarm",
        "saga",
        "removal-saga",
    ];
    for (name, key, _) in records.iter().filter(|record| keys.contains(&&*record.0)) {
        sample(&format!("key/{name}"), key.encode(), &|bytes| Key::decode(bytes).unwrap() == *key);
    }
    assert!(missing.is_empty(), "add to bytes.txt:\n{}", missing.join("\n"));
    assert_eq!(lines.len(), samples, "a line without a sample");
}

#[test]
fn hashes_of_records_stay() {
    assert_eq!(record_hash(b"key", b"value"), 12_799_176_785_381_101_966);
    assert_eq!(record_hash(b"", b""), 4_696_993_233_866_070_003);
    assert_ne!(record_hash(b"a", b"bc"), record_hash(b"ab", b"c"));
    assert_eq!(State::default().digest(), (8_764_049_696_572_296_245, 1));
}

fn pairs(pairs: &[(&str, &str)]) -> Pairs {
    pairs.iter().copied().collect()
}

fn name() -> InstanceName {
    InstanceName { namespace: "default".into(), service: "web".into(), id: "web-1".into() }
}

fn endpoints() -> Endpoints {
    let endpoints = [
        Endpoint { name: "grpc", host: "10.0.0.1", port: 50051 },
        Endpoint { name: "", host: "::1", port: 9 },
    ];
    endpoints.into_iter().collect()
}

const STORE: u128 = 0x0123_4567_89AB_CDEF_1032_5476_98BA_DCFE;

fn http() -> Probe {
    Probe::Http { path: "/ready".into(), host: "web.example".into(), statuses: (200, 299) }
}

fn a_check(probe: Probe) -> HealthCheck {
    let (interval_ms, timeout_ms, failures, successes) = (10_000, 2_000, 3, 2);
    HealthCheck { probe, endpoint: "http".into(), interval_ms, timeout_ms, failures, successes }
}

/// One of each operation; the first ones with a request id.
fn commands() -> Vec<(&'static str, Command)> {
    let registration = Registration {
        name: name(),
        endpoints: endpoints(),
        weight: 100,
        zone: "eu-1a".into(),
        metadata: pairs(&[("stage", "prod"), ("version", "1.2")]),
        health: Health::Warning,
        admin: Admin::Draining,
        reason: "deploy 42".into(),
        hash_key: "ring".into(),
        session: Some(7),
    };
    let patch = InstancePatch {
        name: name(),
        weight: Some(0),
        admin: Some(Admin::Disabled),
        health: Some(Health::Critical),
        reason: "probe".into(),
        metadata: Some(pairs(&[("k", "v")])),
        expected_mod_revision: Some(0x0102_0304_0506_0708),
    };
    let settings = ServiceSettings {
        namespace: "default".into(),
        name: "web".into(),
        protect_threshold_percent: 70,
        deregister_after_ms: 30_000,
        policy: "ring_hash".into(),
        policy_parameters: pairs(&[("size", "1024")]),
        metadata: pairs(&[("owner", "ops")]),
        expected_mod_revision: Some(3),
        health_check: None,
    };
    let checked = |probe| {
        let health_check = Some(a_check(probe));
        Op::PutService(Box::new(ServiceSettings { health_check, ..settings.clone() }))
    };
    let request = Some(RequestId { session: 7, sequence: 9, lowest_unacknowledged: 8 });
    let with_id = |op| Command { request, op };
    let plain = |op| Command { request: None, op };
    let (namespace, service) = ("team".to_owned(), "web".to_owned());
    vec![
        ("open", with_id(Op::OpenSession { ttl_ms: 10_000, client: "web-1".into() })),
        ("close", with_id(Op::CloseSession { session: 7 })),
        ("expire", plain(Op::ExpireSessions { term: 3, sessions: vec![7, 8] })),
        ("reap", plain(Op::Reap { instances: vec![name()] })),
        ("register", with_id(Op::Register(Box::new(registration.clone())))),
        (
            "register-persistent",
            plain(Op::Register(Box::new(Registration {
                health: Health::Passing,
                admin: Admin::Enabled,
                session: None,
                ..registration
            }))),
        ),
        ("deregister", with_id(Op::Deregister { name: name(), expected_mod_revision: Some(5) })),
        ("update", plain(Op::UpdateInstance(Box::new(patch.clone())))),
        (
            "update-nothing",
            plain(Op::UpdateInstance(Box::new(InstancePatch {
                weight: None,
                admin: None,
                health: None,
                metadata: None,
                expected_mod_revision: None,
                ..patch
            }))),
        ),
        ("put-service-tcp", plain(checked(Probe::Tcp))),
        ("put-service-http", plain(checked(http()))),
        ("put-service-grpc", plain(checked(Probe::Grpc { service: "web".into() }))),
        ("put-service", plain(Op::PutService(Box::new(settings)))),
        (
            "delete-service",
            plain(Op::DeleteService { namespace: namespace.clone(), name: service }),
        ),
        (
            "put-namespace",
            plain(Op::PutNamespace { name: namespace.clone(), description: "ours".into() }),
        ),
        ("delete-namespace", plain(Op::DeleteNamespace { name: namespace })),
        ("admit", plain(Op::AdmitMember { node: 4, store: Some(STORE) })),
        ("admit-unknown", plain(Op::AdmitMember { node: 4, store: None })),
        ("retire", plain(Op::RetireMember { node: 4 })),
        (
            "judge-health",
            plain(Op::JudgeHealth {
                verdicts: vec![HealthVerdict {
                    name: name(),
                    mod_revision: 300,
                    settings_revision: 5,
                    health: Health::Critical,
                    reason: "connection refused".into(),
                }],
            }),
        ),
    ]
}

/// One of each kind, and a stored reply with each answer and each refusal.
fn records() -> Vec<(String, Key, Record)> {
    let instance = Instance {
        namespace: "default".into(),
        service: "web".into(),
        id: "web-1".into(),
        endpoints: endpoints(),
        weight: 100,
        zone: "eu-1a".into(),
        metadata: pairs(&[("stage", "prod"), ("version", "1.2")]),
        health: Health::Critical,
        admin: Admin::Enabled,
        reason: "session 7 expired".into(),
        hash_key: "ring".into(),
        session: Some(7),
        orphaned_at_ms: NonZeroU64::new(1_700_000_000_000),
        critical_since_ms: Some(1_699_999_999_999),
        create_revision: 11,
        mod_revision: 12,
        created_at_ms: 1_600_000_000_000,
        modified_at_ms: 1_700_000_000_000,
    };
    let instance = Arc::new(instance);
    let web: Arc<str> = "web".into();
    let namespace: Arc<str> = "default".into();
    let service = Service {
        namespace: namespace.clone(),
        name: web.clone(),
        protect_threshold_percent: 70,
        deregister_after_ms: 30_000,
        policy: "ring_hash".into(),
        policy_parameters: pairs(&[("size", "1024")]),
        metadata: pairs(&[("owner", "ops")]),
        create_revision: 4,
        mod_revision: 5,
        health_check: None,
    };
    let checked = Service { health_check: Some(a_check(http())), ..service.clone() };
    let description = "for everybody".to_owned();
    let described =
        Namespace { name: namespace.clone(), description, create_revision: 1, mod_revision: 2 };
    let session =
        Session { id: 7, ttl_ms: 10_000, client: "web-1".into(), opened_at_ms: 1_650_000_000_000 };
    let meta = Meta { revision: 12, now_ms: 1_700_000_000_000 };
    let mut records = vec![
        ("meta".to_owned(), Key::Meta, Record::Meta(meta)),
        (
            "namespace".to_owned(),
            Key::Namespace { name: namespace.clone() },
            Record::Namespace(Arc::new(described)),
        ),
        (
            "service".to_owned(),
            Key::Service { namespace: namespace.clone(), name: web.clone() },
            Record::Service(Arc::new(service)),
        ),
        (
            "service-checked".to_owned(),
            Key::Service { namespace: namespace.clone(), name: web.clone() },
            Record::Service(Arc::new(checked)),
        ),
        (
            "instance".to_owned(),
            Key::Instance { namespace, service: web, id: instance.id.clone() },
            Record::Instance(instance.clone()),
        ),
        ("session".to_owned(), Key::Session { id: 7 }, Record::Session(Arc::new(session))),
    ];
    let text = |text: &str| text.to_owned();
    let mut reply = |name: &str, result: Result<Reply, Refusal>| {
        let outcome = Outcome { revision: 12, duplicate: false, result };
        records.push((
            format!("reply-{name}"),
            Key::Reply { session: 7, sequence: 0x0102_0304_0506_0708 },
            Record::Reply(Arc::new(StoredReply { lowest_unacknowledged: 6, outcome })),
        ));
    };
    reply("opened", Ok(Reply::SessionOpened { session: 12, ttl_ms: 10_000 }));
    reply("closed", Ok(Reply::SessionClosed { closed: true, removed_instances: 3 }));
    reply("expired", Ok(Reply::SessionsExpired { expired: 2 }));
    reply("reaped", Ok(Reply::Reaped { removed: 2 }));
    reply("registered", Ok(Reply::Registered { created: true, mod_revision: 12 }));
    reply("deregistered", Ok(Reply::Deregistered { removed: true }));
    reply("updated", Ok(Reply::InstanceUpdated(instance)));
    reply("service-put", Ok(Reply::ServicePut { created: false }));
    reply("service-deleted", Ok(Reply::ServiceDeleted { removed: true }));
    reply("namespace-put", Ok(Reply::NamespacePut { created: true }));
    reply("namespace-deleted", Ok(Reply::NamespaceDeleted { removed: false }));
    reply("member-admitted", Ok(Reply::MemberAdmitted { changed: true }));
    reply("health-judged", Ok(Reply::HealthJudged { changed: 2 }));
    reply("member-retired", Ok(Reply::MemberRetired { changed: false }));
    let (field, value, allowed) = (text("weight"), text("70000"), text("0..=65535"));
    reply("invalid", Err(Refusal::Invalid { field, value, allowed }));
    let kinds = [Kind::Namespace, Kind::Service, Kind::Instance, Kind::Session];
    for kind in kinds {
        let name = format!("not-found-{kind:?}").to_lowercase();
        reply(&name, Err(Refusal::NotFound { kind, name: text("x") }));
    }
    reply("session-expired", Err(Refusal::SessionExpired { session: 7 }));
    reply("forgotten", Err(Refusal::SequenceForgotten { sequence: 3, lowest: 6 }));
    reply("in-flight", Err(Refusal::TooManyInFlight { limit: 1024 }));
    reply("compare", Err(Refusal::CompareFailed { expected: 3, current: 4 }));
    reply("owned", Err(Refusal::OwnedByAnother { owner: 5 }));
    reply("limit", Err(Refusal::LimitReached { limit: text("sessions"), allowed: 1 }));
    let by = text("2 instances");
    reply("in-use", Err(Refusal::InUse { kind: Kind::Service, name: text("web"), by }));
    reply("stale-term", Err(Refusal::StaleTerm { proposed: 1, current: 2 }));
    reply("undecodable", Err(Refusal::Undecodable));
    let mut member = |name: &str, store, removed| {
        let record = Member { node: 4, store, removed };
        let record = Record::Member(Arc::new(record));
        records.push((format!("member{name}"), Key::Member { node: 4 }, record));
    };
    member("", Some(STORE), false);
    member("-unknown", None, false);
    member("-removed", Some(STORE), true);
    records
}

// ---- round trips, order, damage ----

fn any_text() -> impl Strategy<Value = Arc<str>> {
    // Texts that end or go on where another one has an escape.
    let letters = prop_oneof![Just('\0'), Just('\u{1}'), Just('a'), Just('\u{10FFFF}')];
    let text = vec(letters, 0..4).prop_map(|letters| letters.into_iter().collect::<String>());
    prop_oneof![4 => text, 1 => any::<String>()].prop_map(Arc::from)
}

const CLASSES: [Class; 6] =
    [Class::Service, Class::Config, Class::Counter, Class::Lock, Class::Alarm, Class::Saga];

fn any_key() -> impl Strategy<Value = Key> {
    let number = || prop_oneof![Just(0), Just(1), Just(255), Just(256), any::<u64>()];
    prop_oneof![
        1 => Just(Key::Meta),
        2 => any_text().prop_map(|name| Key::Namespace { name }),
        4 => (any_text(), any_text()).prop_map(|(namespace, name)| Key::Service { namespace, name }),
        6 => (any_text(), any_text(), any_text())
            .prop_map(|(namespace, service, id)| Key::Instance { namespace, service, id }),
        2 => number().prop_map(|id| Key::Session { id }),
        2 => (number(), number()).prop_map(|(session, sequence)| Key::Reply { session, sequence }),
        2 => number().prop_map(|node| Key::Member { node }),
        3 => (any_text(), any_text(), any_text())
            .prop_map(|(namespace, group, key)| Key::Config { namespace, group, key }),
        3 => (any_text(), any_text(), any_text(), number()).prop_map(
            |(namespace, group, key, version)| Key::Release { namespace, group, key, version }
        ),
        1 => (any_text(), any_text(), any_text())
            .prop_map(|(namespace, group, key)| Key::Schema { namespace, group, key }),
        2 => (any_text(), any_text(), any_text(), number()).prop_map(
            |(namespace, group, key, session)| Key::Report { namespace, group, key, session }
        ),
        4 => (any_text(), any_text(), vec((any_text(), any_text()), 0..3)).prop_map(
            |(namespace, name, labels)| {
                let labels = labels.into_iter().collect();
                Key::Counter { namespace, name, labels }
            }
        ),
        2 => (any_text(), any_text())
            .prop_map(|(namespace, name)| Key::Alarm { namespace, name }),
        2 => (any_text(), any_text()).prop_map(|(namespace, gid)| Key::Saga { namespace, gid }),
        3 => (any_text(), any_text(), number())
            .prop_map(|(namespace, lock, ticket)| Key::Lock { namespace, lock, ticket }),
        2 => (any_text(), select(&CLASSES[..]))
            .prop_map(|(namespace, class)| Key::Removal { namespace, class }),
    ]
}

#[test]
fn keys_sort_as_their_bytes() {
    let strategy = (any_key(), any_key());
    check("tests_bytes::keys_sort_as_their_bytes", strategy, |(a, b)| {
        assert_eq!(a.encode().cmp(&b.encode()), a.cmp(&b), "{a:?} and {b:?}");
        assert_eq!(Key::decode(&a.encode()), Ok(a));
    });
}

#[test]
fn what_is_no_key_is_not_read_as_one() {
    let strategy = (any_key(), any::<prop::sample::Index>(), any::<u8>());
    check("tests_bytes::what_is_no_key_is_not_read_as_one", strategy, |(key, at, byte)| {
        let bytes = key.encode();
        let cut = at.index(bytes.len());
        assert!(Key::decode(&bytes[..cut]).is_err(), "{cut} bytes of {key:?}");
        let longer = [&bytes[..], &[byte]].concat();
        assert!(Key::decode(&longer).is_err(), "{key:?} and {byte}");
        let mut changed = bytes;
        changed[cut] = byte;
        if let Ok(other) = Key::decode(&changed) {
            assert_eq!(other.encode(), changed, "one key has one encoding");
        }
    });
    let none = [
        "",
        "00",
        "07",
        "08",
        "0200",
        "020002",
        "02610000",
        "02ff0001",
        "0500",
        "0100",
        "0d610001",
        // A class that there is not, and labels that are none.
        "0f61000107",
        "0f61000100",
        "0c6100016100016100 01",
        "10610001",
    ];
    for bytes in none.map(|bytes| bytes.replace(' ', "")) {
        let bytes = bytes.as_str();
        assert!(Key::decode(&from_hex(bytes)).is_err(), "{bytes}");
    }
}

#[test]
fn commands_come_back() {
    check("tests_bytes::commands_come_back", wild_command(), |command| {
        let bytes = command.encode().unwrap();
        assert_eq!(Command::decode(&bytes), Ok(command));
        for cut in [0, 1, bytes.len() - 1] {
            assert!(Command::<String>::decode(&bytes[..cut]).is_err(), "{cut} bytes");
        }
        assert!(
            Command::<String>::decode(&[&bytes[..], &[0]].concat()).is_err(),
            "a byte too many"
        );
        let mut other = bytes;
        other[0] = COMMAND_VERSION + 1;
        let why = Command::<String>::decode(&other).unwrap_err();
        assert_eq!(why.what, "a command of version 2; this release reads 1");
    });
}

#[test]
fn records_come_back_or_say_what_is_wrong() {
    for (name, key, record) in [records(), center::records()].concat() {
        let bytes = record.encode();
        assert_eq!(Record::decode(&key, &bytes), Ok(record.clone()), "{name}");
        for cut in 0..bytes.len() {
            assert!(Record::decode(&key, &bytes[..cut]).is_err(), "{name}: {cut} bytes");
        }
        assert!(Record::decode(&key, &[&bytes[..], &[0]].concat()).is_err(), "{name}: too long");
        let mut other = bytes.clone();
        other[0] = RECORD_VERSION + 1;
        let why = Record::decode(&key, &other).unwrap_err().to_string();
        assert!(why.ends_with("is of version 2; this release reads 1"), "{why}");
        // Any damage gives a record that fits its key, or an error; a length never an allocation.
        for at in 0..bytes.len() {
            for byte in [0x00, 0x01, 0x7F, 0xFF] {
                let mut damaged = bytes.clone();
                damaged[at] = byte;
                if let Ok(record) = Record::decode(&key, &damaged) {
                    assert!(record.is_of(&key), "{name}: {record:?}");
                }
            }
        }
    }
    let [session, other] = [7, 8].map(|id| Key::Session { id });
    let (_, _, record) = records().remove(5);
    assert_eq!(Record::decode(&session, &record.encode()), Ok(record.clone()));
    let why = Record::decode(&other, &record.encode()).unwrap_err().to_string();
    assert_eq!(why, "corrupt: the record under Session { id: 8 } is of another name");
}

/// A start may take a shorter way to an instance, and comes to the same.
#[test]
fn a_row_is_read_as_its_key_and_then_its_record_are() {
    let apart = |key: &[u8], value: &[u8]| {
        let key = Key::decode(key)?;
        let record = Record::decode(&key, value)?;
        Ok((key, record))
    };
    let same = |key: &[u8], value: &[u8]| {
        assert_eq!(Record::decode_row(key, value), apart(key, value), "{}", to_hex(key));
    };
    for (_, key, record) in [records(), center::records()].concat() {
        let (key, value) = (key.encode(), record.encode());
        assert!(apart(&key, &value).is_ok());
        same(&key, &value);
        for cut in 0..key.len() {
            same(&key[..cut], &value);
        }
        for (at, byte) in (0..key.len()).zip([0x00, 0x01, 0x7F, 0xFF].into_iter().cycle()) {
            let mut damaged = key.clone();
            damaged[at] = byte;
            same(&damaged, &value);
        }
        same(&[&key[..], &[0]].concat(), &value);
        same(&key, &value[..value.len() - 1]);
    }

    let names = || (any_text(), any_text(), any_text());
    let (_, _, record) = records().remove(4);
    let Record::Instance(known) = record else { panic!("{record:?}") };
    check("tests_bytes::a_row", (names(), names()), |(names, others)| {
        let mut instance = (*known).clone();
        (instance.namespace, instance.service, instance.id) = names;
        let unescaped = [&instance.namespace, &instance.service, &instance.id]
            .map(|name| format!("{name}\0\u{1}"))
            .concat();
        let (namespace, service, id) = others;
        let other = Key::Instance { namespace, service, id };
        let key = instance.key().encode();
        let value = Record::Instance(Arc::new(instance)).encode();
        same(&[&key[..1], unescaped.as_bytes()].concat(), &value);
        same(&key, &value);
        same(&other.encode(), &value);
    });
}

#[test]
fn a_command_has_a_greatest_size() {
    let of = |bytes| Command {
        request: None,
        op: Op::PutNamespace { name: "n".into(), description: "x".repeat(bytes) },
    };
    // Of a text whose length takes as many bytes.
    let overhead =
        of(limits::COMMAND_BYTES / 2).encode().unwrap().len() - limits::COMMAND_BYTES / 2;
    let greatest = of(limits::COMMAND_BYTES - overhead);
    let bytes = greatest.encode().unwrap();
    assert_eq!(bytes.len(), limits::COMMAND_BYTES);
    assert_eq!(Command::decode(&bytes), Ok(greatest));
    let refusal = of(limits::COMMAND_BYTES - overhead + 1).encode().unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Invalid { field, .. } if field == "command"),
        "{refusal:?}"
    );
    assert!(Command::<String>::decode(&[&bytes[..], &[0]].concat()).is_err());
}

/// The largest records that two unchecked commands can make fit a record.
#[test]
fn the_largest_record_fits() {
    let large = |field: &str, op: Op| {
        let bytes = Command { request: None, op }.encode().unwrap();
        assert!(bytes.len() > limits::COMMAND_BYTES - 1024, "{field}: {}", bytes.len());
        bytes
    };
    let text = "x".repeat(limits::COMMAND_BYTES - 512);
    let registration = Registration {
        name: name(),
        endpoints: vec![Endpoint { name: text.clone(), host: String::new(), port: 0 }].into(),
        weight: 0,
        zone: String::new(),
        metadata: Pairs::default(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: String::new(),
        hash_key: String::new(),
        session: None,
    };
    let patch = InstancePatch {
        name: name(),
        weight: None,
        admin: None,
        health: None,
        reason: String::new(),
        metadata: Some(vec![(text, String::new())].into()),
        expected_mod_revision: None,
    };
    let open = Command { request: None, op: Op::OpenSession { ttl_ms: 1, client: String::new() } };
    let mut update = Command { request: None, op: Op::UpdateInstance(Box::new(patch)) };
    update.request = Some(RequestId { session: 1, sequence: 1, lowest_unacknowledged: 1 });
    let commands = [
        open.encode().unwrap(),
        large("register", Op::Register(Box::new(registration))),
        update.encode().unwrap(),
    ];
    let mut state = State::default();
    let commands = commands.iter().map(Vec::as_slice).collect();
    let applied = state.apply(&Entry { term: 1, at_ms: 1, commands });
    assert!(applied.outcomes.iter().all(|outcome| outcome.result.is_ok()));
    for (key, record) in state.records() {
        let bytes = record.encode();
        assert!(bytes.len() <= limits::RECORD_BYTES);
        assert_eq!(Record::decode(&key, &bytes), Ok(record));
    }
}
