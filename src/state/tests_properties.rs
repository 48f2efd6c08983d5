//! Properties over random histories: the state against the naive model, replicas that were given one
//! log in different cuts, the changes against the records, and a state restored half-way. Beside them:
//! no bytes whatever make `apply` panic.
//!
//! The seed is fixed, so that a failure can be repeated; `PROPTEST_RNG_SEED=n` and `PROPTEST_CASES=n`
//! choose another and more.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};

use super::memory::ServiceTable;
use super::tests::{due_alarms, due_gates};
use super::tests_model::{Model, name_of, name_of_item, status_of_saga};
use super::*;

mod center;
mod rules;
mod saga;
mod wild;

use self::center::{ALARMS, COUNTERS, Center, GROUPS, KEYS, LOCKS, center};
pub(super) use self::wild::wild_command;
use crate::limits;

const SEED: u64 = 7;

pub(super) fn check<S: Strategy>(name: &str, strategy: S, test: impl Fn(S::Value)) {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    let seed = match config.rng_seed {
        RngSeed::Fixed(seed) => seed,
        RngSeed::Random => SEED,
    };
    config.rng_seed = RngSeed::Fixed(seed);
    let cases = config.cases;
    let run = TestRunner::new(config).run(&strategy, |value| {
        test(value);
        Ok(())
    });
    let again = format!(
        "again: PROPTEST_RNG_SEED={seed} PROPTEST_CASES={cases} cargo test --lib state::{name}"
    );
    match run {
        Ok(()) => {}
        Err(TestError::Fail(why, least)) => panic!("{why}\nleast input: {least:#?}\n{again}"),
        Err(TestError::Abort(why)) => panic!("{why}\n{again}"),
    }
}

// ---- histories ----

/// A history before it is known which sessions and revisions there will be.
#[derive(Debug, Clone)]
struct Sketch(Vec<EntrySketch>);

#[derive(Debug, Clone)]
struct EntrySketch {
    term: u64,
    /// Relative to the entry before.
    at_ms: i64,
    commands: Vec<CommandSketch>,
}

#[derive(Debug, Clone)]
struct CommandSketch {
    request: Option<RequestSketch>,
    op: OpSketch,
}

#[derive(Debug, Clone)]
struct RequestSketch {
    session: Pick,
    sequence: Sequence,
    lowest: Lowest,
}

#[derive(Debug, Clone, Copy)]
enum Pick {
    /// One of the live sessions.
    Live(usize),
    /// One of all sessions that ever were.
    Any(usize),
    Unknown,
}

#[derive(Debug, Clone, Copy)]
enum Sequence {
    /// After the greatest stored one, this many further on.
    Next(u64),
    /// Before the greatest stored one, by this many.
    Again(u64),
    Zero,
}

#[derive(Debug, Clone, Copy)]
enum Lowest {
    Zero,
    /// Below the write's own sequence by this many.
    Below(u64),
    Above,
}

#[derive(Debug, Clone, Copy)]
enum Expect {
    Any,
    Current,
    Other(u64),
}

#[derive(Debug, Clone)]
enum OpSketch {
    Open {
        ttl_ms: u64,
    },
    Close(Pick),
    Expire {
        sessions: Vec<Pick>,
        other_term: bool,
    },
    Reap(Vec<InstanceName>),
    ReapOrphans,
    /// Of each the health, whether it is of the instance as it is, and whether by the present check.
    Judge(Vec<(InstanceName, Health, bool, bool)>),
    Register {
        registration: Registration,
        session: Option<Pick>,
    },
    Deregister {
        name: InstanceName,
        expect: Expect,
    },
    Update {
        patch: InstancePatch,
        expect: Expect,
    },
    PutService {
        settings: ServiceSettings,
        expect: Expect,
    },
    DeleteService {
        namespace: String,
        name: String,
    },
    PutNamespace {
        name: String,
        description: String,
    },
    DeleteNamespace {
        name: String,
    },
    Admit {
        node: u64,
        store: Option<u128>,
    },
    Retire {
        node: u64,
    },
    Center(Center),
    Saga(saga::Sketch),
    Bytes(Vec<u8>),
}

const NAMESPACES: [&str; 3] = ["default", "n", "o"];
const SERVICES: [&str; 3] = ["a", "ab", "b"];
const CLASSES: [Class; 6] =
    [Class::Service, Class::Config, Class::Counter, Class::Lock, Class::Alarm, Class::Saga];

fn namespace() -> impl Strategy<Value = String> {
    prop_oneof![12 => Just("default"), 4 => Just("n"), 1 => Just("o")].prop_map(String::from)
}

fn service() -> impl Strategy<Value = String> {
    prop_oneof![3 => Just("a"), 1 => Just("ab"), 1 => Just("b")].prop_map(String::from)
}

fn instance() -> impl Strategy<Value = InstanceName> {
    (namespace(), service(), select(vec!["x", "y", "z"]))
        .prop_map(|(namespace, service, id)| InstanceName { namespace, service, id: id.to_owned() })
}

fn text(texts: &[&'static str]) -> impl Strategy<Value = String> + use<> {
    select(texts.to_vec()).prop_map(String::from)
}

fn metadata() -> impl Strategy<Value = Pairs> {
    let pairs = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Pairs>();
    select(vec![
        pairs(&[]),
        pairs(&[("k", "1")]),
        pairs(&[("k", "2")]),
        pairs(&[("j", "1"), ("k", "1")]),
    ])
}

fn health() -> impl Strategy<Value = Health> {
    select(vec![Health::Passing, Health::Passing, Health::Warning, Health::Critical])
}

fn admin() -> impl Strategy<Value = Admin> {
    select(vec![Admin::Enabled, Admin::Enabled, Admin::Draining, Admin::Disabled])
}

fn pick() -> impl Strategy<Value = Pick> {
    prop_oneof![
        16 => (0..8usize).prop_map(Pick::Live),
        3 => (0..8usize).prop_map(Pick::Any),
        1 => Just(Pick::Unknown),
    ]
}

fn expect() -> impl Strategy<Value = Expect> {
    prop_oneof![
        5 => Just(Expect::Any),
        3 => Just(Expect::Current),
        1 => (0..20u64).prop_map(Expect::Other),
    ]
}

fn registration() -> BoxedStrategy<OpSketch> {
    let endpoints = (0..2u16).prop_map(|n| {
        let host = format!("10.0.0.{n}");
        [Endpoint { name: "grpc", host: &host, port: 80 + n }].into_iter().collect::<Endpoints>()
    });
    let fields = (
        instance(),
        endpoints,
        0..3u32,
        text(&["", "", "z1"]),
        metadata(),
        health(),
        admin(),
        text(&["", "", "", "by hand"]),
        text(&["", "", "", "ring"]),
        proptest::option::weighted(0.7, pick()),
    );
    fields
        .prop_map(
            |(
                name,
                endpoints,
                weight,
                zone,
                metadata,
                health,
                admin,
                reason,
                hash_key,
                session,
            )| {
                let registration = Registration {
                    name,
                    endpoints,
                    weight,
                    zone,
                    metadata,
                    health,
                    admin,
                    reason,
                    hash_key,
                    session: None,
                };
                OpSketch::Register { registration, session }
            },
        )
        .boxed()
}

fn update() -> BoxedStrategy<OpSketch> {
    let fields = (
        instance(),
        proptest::option::of(0..3u32),
        proptest::option::of(admin()),
        proptest::option::of(health()),
        text(&["", "", "noted"]),
        proptest::option::weighted(0.2, metadata()),
        expect(),
    );
    fields
        .prop_map(|(name, weight, admin, health, reason, metadata, expect)| {
            let expected_mod_revision = None;
            let patch = InstancePatch {
                name,
                weight,
                admin,
                health,
                reason,
                metadata,
                expected_mod_revision,
            };
            OpSketch::Update { patch, expect }
        })
        .boxed()
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let http = Probe::Http { path: "/".into(), host: String::new(), statuses: (200, 299) };
    let probe = select(vec![Probe::Tcp, http, Probe::Grpc { service: String::new() }]);
    (probe, text(&["", "grpc", "other"]), 1..3u32).prop_map(|(probe, endpoint, failures)| {
        let (interval_ms, timeout_ms, successes) = (1_000, 1_000, 1);
        HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes }
    })
}

fn put_service() -> BoxedStrategy<OpSketch> {
    let fields = (
        namespace(),
        service(),
        select(vec![0, 34, 50, 100]),
        select(vec![1_000, 30_000]),
        text(&["", "ring_hash"]),
        metadata(),
        expect(),
        proptest::option::of(health_check()),
    );
    fields
        .prop_map(|(namespace, name, protect, after, policy, metadata, expect, health_check)| {
            let settings = ServiceSettings {
                namespace,
                name,
                protect_threshold_percent: protect,
                deregister_after_ms: after,
                policy,
                policy_parameters: metadata.clone(),
                metadata,
                expected_mod_revision: None,
                health_check,
            };
            OpSketch::PutService { settings, expect }
        })
        .boxed()
}

fn command() -> BoxedStrategy<CommandSketch> {
    let op = prop_oneof![
        6 => (1_000..3_000u64).prop_map(|ttl_ms| OpSketch::Open { ttl_ms }),
        2 => pick().prop_map(OpSketch::Close),
        4 => (vec(pick(), 0..3), proptest::bool::weighted(0.2))
            .prop_map(|(sessions, other_term)| OpSketch::Expire { sessions, other_term }),
        2 => vec(instance(), 0..4).prop_map(OpSketch::Reap),
        3 => Just(OpSketch::ReapOrphans),
        8 => vec(
            (instance(), health(), proptest::bool::weighted(0.8), proptest::bool::weighted(0.8)),
            1..4
        )
        .prop_map(OpSketch::Judge),
        30 => registration(),
        6 => (instance(), expect())
            .prop_map(|(name, expect)| OpSketch::Deregister { name, expect }),
        15 => update(),
        6 => put_service(),
        4 => (namespace(), service())
            .prop_map(|(namespace, name)| OpSketch::DeleteService { namespace, name }),
        6 => (namespace(), text(&["", "said"]))
            .prop_map(|(name, description)| OpSketch::PutNamespace { name, description }),
        3 => namespace().prop_map(|name| OpSketch::DeleteNamespace { name }),
        3 => (1..4u64, proptest::option::of(1..3u128))
            .prop_map(|(node, store)| OpSketch::Admit { node, store }),
        2 => (1..4u64).prop_map(|node| OpSketch::Retire { node }),
        1 => vec(any::<u8>(), 0..20).prop_map(OpSketch::Bytes),
        80 => center().prop_map(OpSketch::Center),
        48 => saga::sketch().prop_map(OpSketch::Saga),
    ];
    let sequence = prop_oneof![
        4 => Just(Sequence::Next(1)),
        2 => (1..4u64).prop_map(Sequence::Next),
        4 => (0..4u64).prop_map(Sequence::Again),
        1 => Just(Sequence::Zero),
    ];
    let lowest = prop_oneof![
        5 => Just(Lowest::Zero),
        16 => (0..4u64).prop_map(Lowest::Below),
        1 => Just(Lowest::Above),
    ];
    let request = (pick(), sequence, lowest)
        .prop_map(|(session, sequence, lowest)| RequestSketch { session, sequence, lowest });
    (proptest::option::weighted(0.35, request), op)
        .prop_map(|(request, op)| CommandSketch { request, op })
        .boxed()
}

/// What most histories begin with, so that not half of the commands fall on empty ground.
const PEOPLE: [fn() -> OpSketch; 8] = [
    || OpSketch::Open { ttl_ms: 1_000 },
    || OpSketch::Open { ttl_ms: 2_000 },
    || OpSketch::Open { ttl_ms: 3_000 },
    || OpSketch::PutNamespace { name: "n".into(), description: "said".into() },
    center::published,
    center::published_gray,
    center::an_alarm,
    center::another_alarm,
];

fn history(entries: usize) -> impl Strategy<Value = Sketch> {
    let term = prop_oneof![9 => Just(1u64), 1 => Just(2u64)];
    let at_ms = prop_oneof![
        24 => 0..2_000i64,
        8 => 0..40_000i64,
        4 => -3_000..0i64,
        // Beyond the longest window.
        1 => 0..1_000_000i64,
    ];
    // Some have more commands than are looked at at once.
    let many = limits::LOOK_AHEAD..3 * limits::LOOK_AHEAD;
    let commands = prop_oneof![40 => vec(command(), 1..6), 1 => vec(command(), many)];
    let entry = (term, at_ms, commands).prop_map(|(term, at_ms, commands)| EntrySketch {
        term,
        at_ms,
        commands,
    });
    (proptest::bool::weighted(0.8), vec(entry, 1..entries)).prop_map(|(peopled, mut entries)| {
        if peopled {
            let commands = PEOPLE.map(|op| CommandSketch { request: None, op: op() }).to_vec();
            entries.insert(0, EntrySketch { term: 1, at_ms: 0, commands });
        }
        Sketch(entries)
    })
}

/// A log entry that owns its commands.
#[derive(Debug, Clone)]
struct Logged {
    term: u64,
    at_ms: u64,
    commands: Vec<Vec<u8>>,
}

impl Logged {
    fn apply_to(&self, state: &mut State) -> Applied {
        let commands = self.commands.iter().map(Vec::as_slice).collect();
        state.apply(&Entry { term: self.term, at_ms: self.at_ms, commands })
    }
}

/// Gives the sketch its numbers by letting the model live through it; with the model's outcomes.
fn fill_in(sketch: &Sketch) -> Vec<(Logged, Vec<Outcome>, Model)> {
    let mut model = Model::default();
    let mut opened: Vec<u64> = Vec::new();
    let mut at_ms = 100_000u64;
    let mut log = Vec::new();
    for entry in &sketch.0 {
        at_ms = at_ms.saturating_add_signed(entry.at_ms);
        let (mut commands, mut outcomes) = (Vec::new(), Vec::new());
        for sketch in &entry.commands {
            let bytes = sketch.fill_in(&model, &opened, entry.term);
            let outcome = model.apply(&bytes, entry.term, at_ms);
            if let Ok(Reply::SessionOpened { session, .. }) = outcome.result {
                opened.push(session);
            }
            commands.push(bytes);
            outcomes.push(outcome);
        }
        log.push((Logged { term: entry.term, at_ms, commands }, outcomes, model.clone()));
    }
    log
}

/// What a sketch gets its numbers from.
struct Ground<'a> {
    model: &'a Model,
    /// All sessions that ever were.
    opened: &'a [u64],
    term: u64,
}

impl Ground<'_> {
    fn session(&self, pick: Pick) -> u64 {
        let live = self.model.sessions.iter().map(|s| s.id);
        let session = match pick {
            Pick::Live(n) => live.cycle().nth(n),
            Pick::Any(n) => self.opened.iter().copied().cycle().nth(n),
            Pick::Unknown => None,
        };
        session.unwrap_or(1_000_000)
    }

    fn revision(&self, expect: Expect, current: u64) -> Option<u64> {
        match expect {
            Expect::Any => None,
            Expect::Current => Some(current),
            Expect::Other(other) => Some(other),
        }
    }

    fn value(&self, expect: Expect, current: i64) -> Option<i64> {
        match expect {
            Expect::Any => None,
            Expect::Current => Some(current),
            Expect::Other(other) => Some(other as i64),
        }
    }
}

impl OpSketch {
    fn fill_in(self, ground: &Ground<'_>) -> Op {
        let Ground { model, term, .. } = *ground;
        match self {
            OpSketch::Open { ttl_ms } => Op::OpenSession { ttl_ms, client: "c".into() },
            OpSketch::Close(pick) => Op::CloseSession { session: ground.session(pick) },
            OpSketch::Expire { sessions, other_term } => Op::ExpireSessions {
                term: term + u64::from(other_term),
                sessions: sessions.into_iter().map(|pick| ground.session(pick)).collect(),
            },
            OpSketch::Reap(instances) => Op::Reap { instances },
            OpSketch::ReapOrphans => {
                Op::Reap { instances: model.orphans().into_iter().map(|(name, _)| name).collect() }
            }
            OpSketch::Judge(verdicts) => {
                let verdicts = verdicts.into_iter().map(|(name, health, fresh, same)| {
                    let settings = model.settings_revision(&name.namespace, &name.service);
                    HealthVerdict {
                        mod_revision: model
                            .instance_revision(&name)
                            .saturating_sub(u64::from(!fresh)),
                        settings_revision: settings.saturating_sub(u64::from(!same)),
                        name,
                        health,
                        reason: "check".into(),
                    }
                });
                Op::JudgeHealth { verdicts: verdicts.collect() }
            }
            OpSketch::Register { mut registration, session: pick } => {
                registration.session = pick.map(|pick| ground.session(pick));
                Op::Register(Box::new(registration))
            }
            OpSketch::Deregister { name, expect } => {
                let expected_mod_revision = ground.revision(expect, model.instance_revision(&name));
                Op::Deregister { name, expected_mod_revision }
            }
            OpSketch::Update { mut patch, expect } => {
                patch.expected_mod_revision =
                    ground.revision(expect, model.instance_revision(&patch.name));
                Op::UpdateInstance(Box::new(patch))
            }
            OpSketch::PutService { mut settings, expect } => {
                let current = model.settings_revision(&settings.namespace, &settings.name);
                settings.expected_mod_revision = ground.revision(expect, current);
                Op::PutService(Box::new(settings))
            }
            OpSketch::DeleteService { namespace, name } => Op::DeleteService { namespace, name },
            OpSketch::PutNamespace { name, description } => Op::PutNamespace { name, description },
            OpSketch::DeleteNamespace { name } => Op::DeleteNamespace { name },
            OpSketch::Admit { node, store } => Op::AdmitMember { node, store },
            OpSketch::Retire { node } => Op::RetireMember { node },
            OpSketch::Center(center) => center.fill_in(ground),
            OpSketch::Saga(saga) => saga.fill_in(ground.model, ground.term),
            OpSketch::Bytes(bytes) => panic!("{bytes:?} are no command"),
        }
    }
}

impl CommandSketch {
    fn fill_in(&self, model: &Model, opened: &[u64], term: u64) -> Vec<u8> {
        let ground = Ground { model, opened, term };
        if let OpSketch::Bytes(bytes) = &self.op {
            return bytes.clone();
        }
        let op = self.op.clone().fill_in(&ground);
        let request = self.request.as_ref().map(|sketch| {
            let session = ground.session(sketch.session);
            let stored = model.replies.iter().filter(|reply| reply.0 == session);
            let greatest = stored.map(|reply| reply.1).max().unwrap_or(0);
            let sequence = match sketch.sequence {
                Sequence::Next(n) => greatest + n,
                Sequence::Again(n) => greatest.saturating_sub(n).max(1),
                Sequence::Zero => 0,
            };
            let lowest_unacknowledged = match sketch.lowest {
                Lowest::Zero => 0,
                Lowest::Below(n) => sequence.saturating_sub(n),
                Lowest::Above => sequence + 1,
            };
            RequestId { session, sequence, lowest_unacknowledged }
        });
        Command { request, op }.encode().unwrap()
    }
}

fn bytes_of(state: &State) -> Vec<(Vec<u8>, Vec<u8>)> {
    state.records().map(|(key, record)| (key.encode(), record.encode())).collect()
}

/// Through the bytes, as an image or a snapshot does it.
fn restored(state: &State) -> State {
    let records = bytes_of(state).into_iter().map(|(key, value)| {
        let key = Key::decode(&key)?;
        let record = Record::decode(&key, &value)?;
        Ok((key, record))
    });
    State::restore::<Corrupt>(records).unwrap()
}

/// Shows what differs as records, not as bytes.
fn assert_records_alike(state: &State, model: &Model, entry: &Logged) {
    let (found, expected) = (bytes_of(state), model.records());
    if found == expected {
        return;
    }
    let missing = |of: &[(Vec<u8>, Vec<u8>)], from: &[(Vec<u8>, Vec<u8>)]| -> Vec<_> {
        of.iter()
            .filter(|pair| !from.contains(pair))
            .map(|(key, value)| {
                let key = Key::decode(key).unwrap();
                (Record::decode(&key, value), key)
            })
            .collect()
    };
    let commands: Vec<_> =
        entry.commands.iter().map(|bytes| Command::<String>::decode(bytes)).collect();
    panic!(
        "after {commands:#?}\nonly in the state: {:#?}\nonly in the model: {:#?}",
        missing(&found, &expected),
        missing(&expected, &found),
    );
}

/// Everything that can be read must be the same.
fn assert_reads_alike(state: &State, model: &Model) {
    let filters = ["", "z1"].into_iter().flat_map(|zone| {
        [vec![], vec![("k".to_owned(), "1".to_owned())]].into_iter().flat_map(move |metadata| {
            [false, true].map(|healthy_only| {
                let (zone, metadata) = (zone.to_owned(), metadata.clone().into());
                Filter { healthy_only, zone, metadata }
            })
        })
    });
    let filters: Vec<Filter> = filters.collect();
    let mut services_in_all = 0;
    for namespace in NAMESPACES {
        let expected = model.services(namespace);
        services_in_all += expected.len() as u64;
        let (page, more) = state.services(namespace, "", "", 100);
        assert!(!more);
        let views: Vec<_> = page
            .iter()
            .map(|view| {
                let set = view.settings.mod_revision > 0;
                (view.settings.name.to_string(), set, view.instances, view.healthy)
            })
            .collect();
        assert_eq!(views, expected, "services of {namespace}");
        for (prefix, after, limit) in [("a", "", 1), ("a", "a", 2), ("", "a", 1), ("b", "a", 1)] {
            let mut names: Vec<&str> = expected
                .iter()
                .map(|service| &*service.0)
                .filter(|name| name.starts_with(prefix) && *name > after)
                .collect();
            let rest = names.len() > limit;
            names.truncate(limit);
            let (page, more) = state.services(namespace, prefix, after, limit);
            let found: Vec<&str> = page.iter().map(|view| &*view.settings.name).collect();
            assert_eq!((found, more), (names, rest), "{namespace}: {prefix} {after} {limit}");
        }
        for service in SERVICES {
            for filter in &filters {
                let (ids, protected) = model.discover(namespace, service, filter);
                let found = state.discover(namespace, service, filter);
                let found_ids: Vec<String> =
                    found.instances.iter().map(|i| i.id.to_string()).collect();
                assert_eq!((found_ids, found.protected), (ids, protected), "{filter:?}");
                assert_eq!(found.service, state.service(namespace, service));
            }
            for instance in state.instances(namespace, service) {
                let same = state.instance(namespace, service, &instance.id).unwrap();
                assert_eq!(*instance, same);
            }
        }
    }
    let checked: Vec<_> = state.checked_services().map(|s| Service::clone(s)).collect();
    assert_eq!(checked, model.checked());
    for service in checked {
        let names = (&*service.namespace, &*service.name);
        let (mut found, mut after) = (vec![], String::new());
        loop {
            let (page, last) = state.checkable_instances(names.0, names.1, &after, 1);
            found.extend(page.iter().map(|i| name_of(i)));
            let Some(last) = last else { break };
            after = last.to_string();
        }
        assert_eq!(found, model.checkable(names));
    }
    let orphans: Vec<_> = state.orphans(None).map(|(i, due)| (name_of(i), due)).collect();
    assert_eq!(orphans, model.orphans());
    for (i, (name, _)) in orphans.iter().enumerate() {
        let behind = state.orphans(Some(name)).map(|(i, due)| (name_of(i), due));
        assert!(behind.eq(orphans[i + 1..].iter().cloned()), "behind {name:?}");
    }
    let held = |id| {
        let own = |i: &&Instance| i.session == Some(id) && i.orphaned_at_ms.is_none();
        model.instances.iter().filter(own).count()
    };
    let sessions: Vec<_> = state.sessions().map(|(s, n)| ((**s).clone(), n)).collect();
    let expected: Vec<_> = model.sessions.iter().map(|s| (s.clone(), held(s.id))).collect();
    assert_eq!(sessions, expected);
    for session in &model.sessions {
        let entry = state.session(session.id).unwrap();
        assert_eq!((&*entry.record, entry.instances), (session, held(session.id)));
        assert_eq!(entry.lowest, model.lowest(session.id));
    }
    let mut members = model.members.clone();
    members.sort_by_key(|member| member.node);
    assert!(state.members().map(|member| &**member).eq(&members));
    for node in 0..5 {
        let expected = members.iter().find(|member| member.node == node);
        assert_eq!(state.member(node).map(|member| &**member), expected);
    }
    let counts = Counts {
        instances: model.instances.len() as u64,
        services: services_in_all,
        sessions: model.sessions.len() as u64,
        namespaces: state.namespaces().count() as u64,
        replies: model.replies.len() as u64,
        members: model.members.len() as u64,
        items: model.items.len() as u64,
        releases: model.items.iter().map(|i| model.past(&name_of_item(i)).len() as u64).sum(),
        counters: model.counters.len() as u64,
        lock_requests: model.locks.len() as u64,
        alarms: model.alarms.len() as u64,
        sagas: model.sagas.len() as u64,
    };
    assert_eq!(state.counts(), counts);
    for namespace in NAMESPACES {
        assert_config_alike(state, model, namespace);
        assert_counters_alike(state, model, namespace);
        assert_locks_alike(state, model, namespace);
        assert_alarms_alike(state, model, namespace);
        saga::assert_alike(state, model, namespace);
    }
    assert_indexes_alike(state, model);
}

fn assert_config_alike(state: &State, model: &Model, namespace: &str) {
    for (deleted, group, labels) in
        [(false, "", Pairs::default()), (true, "g", [("k", "1")].into_iter().collect())]
    {
        let (group, prefix) = (group.to_owned(), "a".to_owned());
        let filter = ConfigFilter { group, prefix, labels, deleted };
        let mut expected: Vec<&ConfigItem> = model
            .items
            .iter()
            .filter(|item| *item.namespace == *namespace)
            .filter(|item| deleted || item.current.content.is_some())
            .filter(|item| filter.group.is_empty() || *item.group == *filter.group)
            .filter(|item| item.labels.has_all(&filter.labels))
            .collect();
        expected.sort_by_key(|item| (&item.group, &item.key));
        let (page, more) = state.config_items(namespace, &filter, ("", ""), 100);
        assert!(!more && page.iter().map(|item| &**item).eq(expected.iter().copied()));
        // Page by page.
        let mut paged = vec![];
        let mut after = (String::new(), String::new());
        loop {
            let (page, more) = state.config_items(namespace, &filter, (&after.0, &after.1), 1);
            assert!(page.len() == 1 || !more);
            let Some(item) = page.first() else { break };
            after = (item.group.to_string(), item.key.to_string());
            paged.extend(page);
            if !more {
                break;
            }
        }
        assert!(paged.iter().map(|item| &**item).eq(expected));
    }
    for (group, key) in GROUPS.into_iter().flat_map(|group| KEYS.map(|key| (group, key))) {
        let [n, g, k] = [namespace, group, key].map(str::to_owned);
        let name = ItemName { namespace: n, group: g, key: k };
        let item = state.config_item(namespace, group, key);
        assert_eq!(item.map(|item| &**item), model.item(&name));
        let schema = state.schema(namespace, group, key);
        assert_eq!(schema.map(|schema| &**schema), model.schema(&name));
        let reports = state.config_reports(namespace, group, key).map(|report| &**report);
        assert!(reports.eq(model.reports_of(&name)));
        let history = state.config_history(namespace, group, key);
        let past = model.past(&name);
        let Some(history) = history else {
            assert!(past.is_empty() && item.is_none());
            continue;
        };
        assert!(history.releases.iter().rev().map(|release| &**release).eq(past.iter().copied()));
        let item = item.unwrap();
        for version in 0..=item.last_version {
            let gray = item.gray.iter().map(|gray| &*gray.release);
            let mut all = past.iter().copied().chain([&*item.current]).chain(gray);
            let found = state.config_release(namespace, group, key, version);
            assert_eq!(found.map(|r| &**r), all.find(|release| release.version == version));
        }
    }
}

fn assert_counters_alike(state: &State, model: &Model, namespace: &str) {
    for (prefix, label) in [("", vec![]), ("c", vec![("k", "1")]), ("cd", vec![])] {
        let labels: Pairs = label.into_iter().collect();
        let filter = CounterFilter { prefix: prefix.into(), labels };
        let mut expected: Vec<Counter> = model
            .counters
            .iter()
            .filter(|c| c.name.namespace == namespace && c.name.name.starts_with(prefix))
            .filter(|c| c.name.labels.has_all(&filter.labels))
            .map(|c| c.record())
            .collect();
        expected.sort_by_key(Counter::key);
        let (page, more) = state.counters(namespace, &filter, None, 100);
        assert!(!more && page.iter().map(|counter| &**counter).eq(&expected));
        if let Some((first, rest)) = expected.split_first() {
            let after = Some((&*first.name, &first.labels));
            let (page, more) = state.counters(namespace, &filter, after, 1);
            assert_eq!(more, rest.len() > 1);
            assert!(page.iter().map(|counter| &**counter).eq(rest.iter().take(1)));
        }
    }
    for tally in model.counters.iter().filter(|c| c.name.namespace == namespace) {
        let CounterName { name, labels, .. } = &tally.name;
        let counter = state.counter(namespace, name, labels).unwrap();
        for slots in [1, 6, 30, limits::COUNTER_SLOTS] {
            for later_ms in [0, 9_999, 55_000, 2_000_000] {
                let now_ms = model.now_ms + later_ms;
                let (sum, expected) = (counter.sum(slots, now_ms), tally.window(slots, now_ms));
                assert_eq!(sum, expected, "{slots} slots to {now_ms} ms of {counter:?}");
            }
        }
    }
    assert!(COUNTERS.iter().all(|name| {
        let none = [("no", "such")].into_iter().collect();
        state.counter(namespace, name, &none).is_none()
    }));
}

fn assert_locks_alike(state: &State, model: &Model, namespace: &str) {
    let mut held = vec![];
    for lock in LOCKS {
        let line = model.line(namespace, lock);
        assert!(state.lock(namespace, lock).map(|r| &**r).eq(line.iter().copied()));
        for (place, request) in line.iter().enumerate() {
            assert_eq!(request.token.is_some(), place == 0, "{request:?}");
        }
        held.extend(line.first().map(|first| ((*first).clone(), line.len() - 1)));
    }
    let (page, more) = state.locks(namespace, "", "", 100);
    assert!(!more);
    let page: Vec<_> = page.iter().map(|(first, wait)| ((**first).clone(), *wait)).collect();
    assert_eq!(page, held);
    let (page, more) = state.locks(namespace, "", "", 1);
    assert_eq!((page.len(), more), (held.len().min(1), held.len() > 1));
}

fn assert_alarms_alike(state: &State, model: &Model, namespace: &str) {
    let all = model.alarms_that(|alarm| *alarm.namespace == *namespace);
    for name in ALARMS {
        let expected = all.iter().copied().find(|alarm| &*alarm.name == name);
        assert_eq!(state.alarm(namespace, name).map(|alarm| &**alarm), expected);
    }
    for (prefix, after, limit) in [("", "", 100), ("", "", 1), ("", "x", 1), ("y", "", 1)] {
        let listed = all.iter().copied();
        let mut listed: Vec<&Alarm> =
            listed.filter(|a| a.name.starts_with(prefix) && &*a.name > after).collect();
        let rest = listed.len() > limit;
        listed.truncate(limit);
        let (page, more) = state.alarms(namespace, prefix, after, limit);
        assert_eq!(more, rest, "{prefix} {after} {limit}");
        assert!(page.iter().map(|alarm| &**alarm).eq(listed), "{prefix} {after} {limit}");
    }
}

/// What the tables keep beside the records, and what hangs on the clock.
fn assert_indexes_alike(state: &State, model: &Model) {
    let ledger = &state.tables.ledger;
    for session in &model.sessions {
        let requested = ledger.requested_by(session.id);
        let mut requested: Vec<_> =
            requested.map(|(n, l, ticket)| (n.to_string(), l.to_string(), *ticket)).collect();
        requested.sort();
        let own = model.locks.iter().filter(|r| r.session == session.id);
        let mut expected: Vec<_> =
            own.map(|r| (r.namespace.to_string(), r.lock.to_string(), r.ticket)).collect();
        expected.sort();
        assert_eq!(requested, expected);
        let reported: Vec<_> = ledger
            .reported_by(session.id)
            .map(|n| [&n.namespace, &n.group, &n.key].map(|text| text.to_string()))
            .collect();
        let own = model.reports.iter().filter(|r| r.session == session.id);
        let mut expected: Vec<_> =
            own.map(|r| [&r.namespace, &r.group, &r.key].map(|text| text.to_string())).collect();
        expected.sort();
        assert_eq!(reported, expected);
    }
    for later_ms in [0, 1_000, 20_000] {
        let now_ms = model.now_ms + later_ms;
        let due = due_gates(state, now_ms);
        let mut due: Vec<_> = due
            .map(|(item, gray, v)| (name_of_item(&item), gray.rule.clone(), v.promote, v.why))
            .collect();
        due.sort();
        let mut expected = vec![];
        for item in &model.items {
            for gray in &item.gray {
                let verdict = model.verdict(item, gray, now_ms);
                let named = (name_of_item(item), gray.rule.clone());
                expected.extend(verdict.map(|(promote, why)| (named.0, named.1, promote, why)));
            }
        }
        expected.sort();
        assert_eq!(due, expected);
    }
    for later_ms in [0, 1, 4_999, 5_000, 70_000] {
        let now_ms = model.now_ms + later_ms;
        let due: Vec<_> = due_alarms(state, now_ms).collect();
        assert!(due.iter().map(|alarm| &**alarm).eq(model.due_alarms(now_ms)), "at {now_ms}");
    }
    saga::assert_timers_alike(state, model);
    let untold = state.untold_alarms();
    assert!(untold.iter().map(|alarm| &**alarm).eq(model.untold_alarms()), "{untold:?}");
    // Whatever a restored state knows, this one knows, and nothing more.
    assert_eq!(format!("{:?}", restored(state).tables.ledger), format!("{ledger:?}"));
}

/// Whoever has seen a service at one version knows what it is for as long as the version is that one.
fn assert_versions_move(known: &mut Vec<(Option<ServiceVersion>, Discovery)>, state: &State) {
    let names =
        NAMESPACES.iter().flat_map(|namespace| SERVICES.map(|service| (namespace, service)));
    let now: Vec<_> = names
        .map(|(namespace, service)| {
            let version = state.service_version(namespace, service);
            (version, state.discover(namespace, service, &Filter::default()))
        })
        .collect();
    for ((before, was), (after, is)) in known.iter().zip(&now) {
        assert!(before != after || was == is, "{was:?} has become {is:?} unnoticed");
    }
    *known = now;
}

#[test]
fn behaves_like_the_model() {
    check("tests_properties::behaves_like_the_model", history(40), |sketch| {
        let mut state = State::default();
        let mut versions = Vec::new();
        for (entry, outcomes, model) in fill_in(&sketch) {
            let before = state.revision();
            let applied = entry.apply_to(&mut state);
            assert_eq!(applied.outcomes, outcomes, "answers to {entry:?}");
            assert_records_alike(&state, &model, &entry);
            assert_reads_alike(&state, &model);
            assert_versions_move(&mut versions, &state);

            assert_eq!(applied.meta, state.meta());
            let mut revision = before;
            for event in &applied.events {
                assert!(!event.changes.is_empty());
                assert_eq!(event.at_ms, model.now_ms);
                let registry =
                    |change: &Change| !matches!(change.key, Key::Reply { .. } | Key::Member { .. });
                revision += u64::from(event.changes.iter().any(registry));
                assert_eq!(event.revision, revision, "{event:?}");
            }
            assert_eq!(revision, state.revision(), "each revision has its event");
        }
    });
}

#[test]
fn the_cut_into_entries_does_not_matter() {
    let strategy = (history(30), vec(1..4usize, 1..8));
    check("tests_properties::the_cut_into_entries_does_not_matter", strategy, |(sketch, cuts)| {
        let (mut whole, mut single, mut cut) =
            (State::default(), State::default(), State::default());
        let mut lengths = cuts.iter().cycle();
        for (entry, _, _) in fill_in(&sketch) {
            let expected = entry.apply_to(&mut whole);
            let pieces = |state: &mut State, length: &mut dyn FnMut() -> usize| {
                let mut got = Applied { outcomes: vec![], events: vec![], meta: state.meta() };
                let mut rest = &entry.commands[..];
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(length().min(rest.len()));
                    let piece = Logged { commands: piece.to_vec(), ..entry.clone() };
                    let applied = piece.apply_to(state);
                    got.outcomes.extend(applied.outcomes);
                    got.events.extend(applied.events);
                    got.meta = applied.meta;
                    rest = after;
                }
                got
            };
            assert_eq!(pieces(&mut single, &mut || 1), expected);
            assert_eq!(pieces(&mut cut, &mut || *lengths.next().unwrap()), expected);
        }
        assert_eq!(bytes_of(&single), bytes_of(&whole));
        assert_eq!(bytes_of(&cut), bytes_of(&whole));
        assert_eq!(single.digest(), whole.digest());
    });
}

#[test]
fn the_changes_make_up_the_records() {
    check("tests_properties::the_changes_make_up_the_records", history(40), |sketch| {
        let mut state = State::default();
        let mut image = BTreeMap::new();
        for (entry, _, _) in fill_in(&sketch) {
            let applied = entry.apply_to(&mut state);
            for change in applied.events.iter().flat_map(|event| &event.changes) {
                assert_ne!(change.key, Key::Meta);
                let key = change.key.encode();
                match &change.record {
                    Some(record) => image.insert(key, record.encode()),
                    None => Some(image.remove(&key).expect("what is removed was there")),
                };
            }
            image.insert(Key::Meta.encode(), Record::Meta(applied.meta).encode());
        }
        let image: Vec<_> = image.into_iter().collect();
        assert_eq!(bytes_of(&state), image);

        let digest = image
            .iter()
            .fold(0u64, |digest, (key, value)| digest.wrapping_add(record_hash(key, value)));
        assert_eq!(state.digest(), (digest, image.len() as u64));
    });
}

#[test]
fn a_restored_state_goes_on_alike() {
    let strategy = (history(40), 0..40usize);
    check("tests_properties::a_restored_state_goes_on_alike", strategy, |(sketch, at)| {
        let log = fill_in(&sketch);
        let (before, after) = log.split_at(at.min(log.len()));
        let mut state = State::default();
        for (entry, _, _) in before {
            entry.apply_to(&mut state);
        }
        let mut copy = restored(&state);
        assert_eq!(copy.counts(), state.counts());
        for (entry, _, model) in after {
            assert_eq!(entry.apply_to(&mut copy), entry.apply_to(&mut state));
            assert_reads_alike(&copy, model);
        }
        assert_eq!(bytes_of(&copy), bytes_of(&state));
        assert_eq!(bytes_of(&restored(&copy)), bytes_of(&state));
    });
}

fn of_item<'a>(group: &'a Arc<str>, key: &'a Arc<str>) -> Vec<(String, &'a Arc<str>)> {
    vec![
        (format!("group of item {group}/{key}"), group),
        (format!("key of item {group}/{key}"), key),
    ]
}

/// The names of a record, each with what has it in common with others.
fn names(record: &Record) -> Vec<(String, &Arc<str>)> {
    let (namespace, names) = match record {
        Record::Instance(it) => {
            (&it.namespace, vec![(format!("service {}", it.service), &it.service)])
        }
        Record::Config(it) => (&it.namespace, of_item(&it.group, &it.key)),
        Record::Schema(it) => (&it.namespace, of_item(&it.group, &it.key)),
        Record::Report(it) => (&it.namespace, of_item(&it.group, &it.key)),
        Record::Counter(it) => (&it.namespace, vec![(format!("counter {}", it.name), &it.name)]),
        Record::Lock(it) => (&it.namespace, vec![(format!("lock {}", it.lock), &it.lock)]),
        Record::Alarm(it) => (&it.namespace, vec![]),
        Record::Saga(it) => (&it.namespace, vec![]),
        _ => return Vec::new(),
    };
    let below = names.into_iter().map(|(what, name)| (format!("{what} of {namespace}"), name));
    below.chain([(format!("namespace {namespace}"), namespace)]).collect()
}

/// A name that many records have is there once, however they have come in.
#[test]
fn names_are_shared() {
    check("tests_properties::names_are_shared", history(40), |sketch| {
        let mut state = State::default();
        for (entry, _, _) in fill_in(&sketch) {
            entry.apply_to(&mut state);
        }
        for (how, state) in [("applied", &state), ("restored", &restored(&state))] {
            let records: Vec<Record> = state.records().map(|(_, record)| record).collect();
            let mut seen = BTreeMap::new();
            for (what, name) in records.iter().flat_map(names) {
                let first = seen.entry(what.clone()).or_insert(name);
                assert!(Arc::ptr_eq(first, name), "{what} is there twice, {how}");
            }
        }
    });
}

/// A property over histories in which nothing happens holds for nothing.
#[test]
fn histories_reach_every_answer() {
    let config = Config { rng_seed: RngSeed::Fixed(SEED), ..Config::default() };
    let mut runner = TestRunner::new(config);
    let mut seen = BTreeMap::<String, usize>::new();
    for _ in 0..3_000 {
        let sketch = history(40).new_tree(&mut runner).unwrap().current();
        for (_, outcomes, model) in fill_in(&sketch) {
            for outcome in outcomes {
                let duplicate = if outcome.duplicate { "again " } else { "" };
                let shown = match &outcome.result {
                    Ok(Reply::InstanceUpdated(_)) => "InstanceUpdated".to_owned(),
                    Ok(Reply::GrayJudged { ending }) => format!("GrayJudged {ending:?}"),
                    Ok(Reply::AlarmJudged { status }) => format!("AlarmJudged {status:?}"),
                    Ok(Reply::SagaBegun { status, created, .. }) => {
                        format!("SagaBegun {status:?} {created}")
                    }
                    Ok(Reply::SagaTurned { status, changed, .. }) => {
                        format!("SagaTurned {status:?} {changed}")
                    }
                    Ok(Reply::SagasAdvanced { taken }) => {
                        format!("SagasAdvanced {}", taken.min(&2))
                    }
                    Err(Refusal::SagaIs { status }) => format!("SagaIs {status:?}"),
                    Ok(Reply::Guarded { outcome, .. }) => format!("Guarded {outcome:?}"),
                    Ok(Reply::Txn { succeeded, replies }) => {
                        let wrote = |reply: &StepReply| matches!(reply, StepReply::Written(_));
                        let writes = replies.iter().filter(|reply| wrote(reply)).count().min(3);
                        format!("Txn {succeeded}, {writes} writes")
                    }
                    Err(Refusal::InStep { step, refusal }) => {
                        let why = format!("{refusal:?}");
                        let why = why.split(' ').next().unwrap();
                        format!("InStep {} {why}", if *step == 0 { "0" } else { "later" })
                    }
                    Ok(reply) => {
                        // Whether it did anything is the part of an answer that matters here.
                        let shown = format!("{reply:?}");
                        let nothing = [": false", ": 0 ", "expired: 0", "removed: 0"];
                        let name = shown.split(' ').next().unwrap().to_owned();
                        let idle = nothing.iter().any(|part| shown.contains(part));
                        format!("{name}{}", if idle { " (nothing)" } else { "" })
                    }
                    Err(refusal) => format!("{refusal:?}").split(' ').next().unwrap().to_owned(),
                };
                *seen.entry(format!("{duplicate}{shown}")).or_default() += 1;
            }
            let orphans = model.orphans().len();
            *seen.entry(format!("{orphans} orphans")).or_default() += 1;
            let due = model.due_alarms(model.now_ms).len();
            *seen.entry(format!("{due} due alarms")).or_default() += 1;
            for saga in &model.sagas {
                *seen.entry(format!("{:?} {:?}", saga.mode, status_of_saga(saga))).or_default() +=
                    1;
            }
            let untold = model.untold_alarms().len();
            *seen.entry(format!("{untold} untold alarms")).or_default() += 1;
        }
    }
    let expected = [
        "1 due alarms",
        "1 orphans",
        "1 untold alarms",
        "2 due alarms",
        "2 orphans",
        "AlarmDeleted",
        "AlarmDeleted (nothing)",
        "AlarmJudged None",
        "AlarmJudged Some(Clear)",
        "AlarmJudged Some(Pending)",
        "AlarmJudged Some(Raised)",
        "AlarmPut",
        "AlarmPut (nothing)",
        "BranchRegistered",
        "BranchRegistered (nothing)",
        "CompareFailed",
        "ConfigDeleted",
        "ConfigDeleted (nothing)",
        "ConfigPublished",
        "ConfigPublished (nothing)",
        "ConfigReported",
        "ConfigReported (nothing)",
        "CounterChanged",
        "CounterChanged (nothing)",
        "CounterDeleted",
        "Deregistered",
        "Deregistered (nothing)",
        "GrayEnded",
        "GrayJudged None",
        "GrayJudged Some(Promoted)",
        "GrayJudged Some(RolledBack)",
        "Guarded Duplicate",
        "Guarded EmptyCompensation",
        "Guarded Executed",
        "Guarded Hanging",
        "HealthJudged",
        "HealthJudged (nothing)",
        "InStep 0 NotFound",
        "InStep later CompareFailed",
        "InStep later Invalid",
        "InStep later LockHeld",
        "InStep later NotFound",
        "InStep later OutOfBounds",
        "InStep later SchemaChanged",
        "InUse",
        "InstanceUpdated",
        "Invalid",
        "LockAcquired",
        "LockHeld",
        "LockQueued",
        "LockReleased",
        "LockUpdated",
        "LockUpdated (nothing)",
        "MemberAdmitted",
        "MemberAdmitted (nothing)",
        "MemberRetired",
        "MemberRetired (nothing)",
        "NamespaceDeleted",
        "NamespaceDeleted (nothing)",
        "NamespacePut",
        "NamespacePut (nothing)",
        "NotFound",
        "OutOfBounds",
        "OwnedByAnother",
        "PostNoted",
        "PostNoted (nothing)",
        "Reaped",
        "Reaped (nothing)",
        "Registered",
        "Registered (nothing)",
        "Message Failed",
        "Message Prepared",
        "Message Submitted",
        "Message Succeeded",
        "Message Suspended",
        "Saga Aborting",
        "Saga Failed",
        "Saga Prepared",
        "Saga Submitted",
        "Saga Succeeded",
        "Saga Suspended",
        "SagaBegun Prepared false",
        "SagaBegun Prepared true",
        "SagaBegun Submitted true",
        "SagaIs Aborting",
        "SagaIs Failed",
        "SagaIs Submitted",
        "SagaIs Succeeded",
        "SagaIs Suspended",
        "SagaTurned Submitted true",
        "SagaTurned Suspended true",
        "SagasAdvanced 0",
        "SagasAdvanced 1",
        "SagasAdvanced 2",
        "SchemaChanged",
        "SchemaDeleted",
        "SchemaPut",
        "SchemaPut (nothing)",
        "SequenceForgotten",
        "ServiceDeleted",
        "ServiceDeleted (nothing)",
        "ServicePut",
        "ServicePut (nothing)",
        "SessionClosed",
        "SessionClosed (nothing)",
        "SessionExpired",
        "SessionOpened",
        "SessionsExpired",
        "SessionsExpired (nothing)",
        "StaleTerm",
        "Tcc Aborting",
        "Tcc Failed",
        "Tcc Prepared",
        "Tcc Submitted",
        "Tcc Succeeded",
        "Tcc Suspended",
        "Txn false, 1 writes",
        "Txn true, 1 writes",
        "Txn true, 2 writes",
        "Txn true, 3 writes",
        "Undecodable",
        "ValueDiffers",
        "again ConfigPublished",
        "again CounterChanged",
        "again InStep later NotFound",
        "again InstanceUpdated",
        "again LockAcquired",
        "again NotFound",
        "again Registered",
        "again SessionOpened",
        "again Txn true, 1 writes",
    ];
    let rare: Vec<_> =
        expected.iter().filter(|name| seen.get(**name).is_none_or(|n| *n < 10)).collect();
    assert!(rare.is_empty(), "{rare:?} are rare in {seen:#?}");
}

// ---- wild input ----

#[test]
fn no_bytes_make_it_panic() {
    let entry = (wild::wild_number(), wild::wild_number(), vec(wild::wild_bytes(), 0..5))
        .prop_map(|(term, at_ms, commands)| Logged { term, at_ms, commands });
    check("tests_properties::no_bytes_make_it_panic", vec(entry, 1..20), |log| {
        let mut state = State::default();
        let mut model = Model::default();
        for entry in &log {
            let outcomes: Vec<_> = entry
                .commands
                .iter()
                .map(|bytes| model.apply(bytes, entry.term, entry.at_ms))
                .collect();
            model.now_ms = model.now_ms.max(entry.at_ms);
            assert_eq!(entry.apply_to(&mut state).outcomes, outcomes);
            assert_records_alike(&state, &model, entry);
        }
        assert_eq!(bytes_of(&restored(&state)), bytes_of(&state));
    });
}
