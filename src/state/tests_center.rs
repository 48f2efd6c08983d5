//! Configuration, counters, locks and transactions where a history would rarely come: limits, ends of
//! ranges, and what once was wrong.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use super::*;
use crate::limits;

/// A state and its clock.
#[derive(Default)]
struct World {
    state: State,
    now_ms: u64,
}

impl World {
    fn outcome(&mut self, op: Op) -> Outcome {
        let bytes = Command { request: None, op }.encode().unwrap();
        self.entry(&[bytes]).outcomes.remove(0)
    }

    fn entry(&mut self, commands: &[Vec<u8>]) -> Applied {
        let commands = commands.iter().map(Vec::as_slice).collect();
        self.state.apply(&Entry { term: 1, at_ms: self.now_ms, commands })
    }

    /// What is within the limits and is carried out.
    fn run(&mut self, op: Op) -> Reply {
        let command = Command { request: None, op };
        command.check().unwrap();
        self.outcome(command.op).result.unwrap()
    }

    fn refused(&mut self, op: Op) -> Refusal {
        self.outcome(op).result.unwrap_err()
    }

    fn session(&mut self) -> u64 {
        match self.run(Op::OpenSession { ttl_ms: 10_000, client: "c".into() }) {
            Reply::SessionOpened { session, .. } => session,
            other => panic!("{other:?}"),
        }
    }

    fn holds(&mut self, compare: Compare) -> bool {
        let (then, otherwise) = Default::default();
        match self.run(Op::Txn(Box::new(Txn { when: vec![compare], then, otherwise }))) {
            Reply::Txn { succeeded, .. } => succeeded,
            other => panic!("{other:?}"),
        }
    }
}

fn item(key: &str) -> ItemName {
    ItemName { namespace: "default".into(), group: "g".into(), key: key.into() }
}

fn text(text: impl Into<String>) -> Content {
    Content { format: Format::Text, bytes: text.into().into_bytes().into() }
}

fn publication(key: &str, content: impl Into<String>) -> Publication {
    Publication {
        name: item(key),
        content: text(content),
        labels: None,
        keep: None,
        author: "ann".into(),
        comment: String::new(),
        expected_version: None,
        schema: 0,
        gray: None,
    }
}

fn publish(key: &str, content: impl Into<String>) -> Op {
    Op::PublishConfig(Box::new(publication(key, content)))
}

fn delete(key: &str, purge: bool) -> Op {
    let (name, author, comment) = (item(key), "ann".into(), String::new());
    let deletion = ConfigDeletion { name, expected_version: None, author, comment, purge };
    Op::DeleteConfig(Box::new(deletion))
}

fn roll_back(key: &str, version: u64) -> Op {
    Op::RollbackConfig(Box::new(ConfigRollback {
        name: item(key),
        version,
        expected_version: None,
        author: "ann".into(),
        comment: String::new(),
        schema: 0,
    }))
}

fn share(rule: &str, basis_points: u32, gate: Option<Gate>) -> GrayTerms {
    GrayTerms { rule: rule.into(), priority: 0, picks: Picks::Share { basis_points }, gate }
}

fn publish_gray(key: &str, content: impl Into<String>, terms: GrayTerms) -> Op {
    let publication = Publication { gray: Some(terms), ..publication(key, content) };
    Op::PublishConfig(Box::new(publication))
}

fn counter(name: &str) -> CounterName {
    CounterName { namespace: "default".into(), name: name.into(), labels: Pairs::default() }
}

fn add(name: &str, delta: i64) -> Op {
    let (name, kind, floor, ceil) = (counter(name), None, None, None);
    Op::AddCounter(Box::new(Addition { name, kind, delta, floor, ceil }))
}

fn lock(lock: &str) -> LockName {
    LockName { namespace: "default".into(), lock: lock.into() }
}

fn acquire(name: &str, session: u64, holder: &str, wait: bool) -> Op {
    let holder = Holder { session, name: holder.into() };
    Op::AcquireLock(Box::new(Claim { lock: lock(name), holder, value: String::new(), wait }))
}

fn txn(then: Vec<Step>) -> Op {
    Op::Txn(Box::new(Txn { when: vec![], then, otherwise: vec![] }))
}

fn scope(class: Class) -> Scope {
    Scope { class, namespace: "default".into(), first: Match::Any, second: Match::Any }
}

fn unchanged(class: Class, since: u64) -> Compare {
    Compare::Unchanged { scope: scope(class), since }
}

/// A deleted item is in no scope any more, so its end must be remembered as that of anything else is.
#[test]
fn a_deleted_item_has_changed_its_scope() {
    for purge in [false, true] {
        let mut world = World::default();
        world.run(publish("a", "1"));
        let since = world.state.revision();
        assert!(world.holds(unchanged(Class::Config, since)));
        world.run(delete("a", purge));
        assert!(!world.holds(unchanged(Class::Config, since)), "purge: {purge}");
        let since = world.state.revision();
        assert!(world.holds(unchanged(Class::Config, since)));
        assert!(world.holds(unchanged(Class::Counter, 0)), "of another class");
    }
}

/// What was away is another one afterwards, whichever way it came back.
#[test]
fn an_item_that_comes_back_begins_anew() {
    for back in [roll_back("a", 1), publish("a", "1")] {
        let mut world = World { now_ms: 1_000, ..World::default() };
        world.run(publish("a", "1"));
        world.run(delete("a", false));
        world.now_ms = 2_000;
        world.run(back);
        let item = world.state.config_item("default", "g", "a").unwrap();
        let revision = world.state.revision();
        assert_eq!((item.create_revision, item.created_at_ms), (revision, 2_000));
        assert_eq!(item.version(), 3);
    }
}

/// Looked at or sent through the log: too much is refused in the same words.
#[test]
fn a_look_refuses_as_the_log_does() {
    let mut world = World::default();
    for i in 0..=limits::TXN_RECORDS {
        world.run(add(&format!("c{i}"), 1));
    }
    let range = |limit| Step::Range { scope: scope(Class::Counter), limit };
    let some = Step::Get(RecordName::Counter(counter("c0")));
    let both = [
        Txn { when: vec![], then: vec![some, range(6_000), range(6_000)], otherwise: vec![] },
        Txn { when: vec![unchanged(Class::Counter, u64::MAX)], then: vec![], otherwise: vec![] },
    ];
    let limit = Refusal::LimitReached {
        limit: "records in the scopes of a transaction".into(),
        allowed: limits::TXN_RECORDS as u64,
    };
    let refusals = [Refusal::InStep { step: 2, refusal: Box::new(limit.clone()) }, limit];
    for (txn, refusal) in both.into_iter().zip(refusals) {
        assert_eq!(world.state.look(&txn), Err(refusal.clone()));
        assert_eq!(world.refused(Op::Txn(Box::new(txn))), refusal);
    }
    // As many as there may be.
    let reply = world.run(txn(vec![range(limits::PAGE as u64)]));
    let Reply::Txn { replies, .. } = reply else { panic!("{reply:?}") };
    let [StepReply::Range { records, more: true }] = &replies[..] else { panic!() };
    assert_eq!(records.len(), limits::TXN_RECORDS);
}

/// Groups and deleted items that are only passed by cost a transaction something, too.
#[test]
fn what_is_passed_by_is_bounded() {
    let mut world = World::default();
    for i in 0..=limits::TXN_RECORDS + 1 {
        let name = ItemName { group: format!("g{i}"), ..item("k") };
        world.run(Op::PublishConfig(Box::new(Publication { name, ..publication("k", "v") })));
    }
    let nowhere = Scope { second: Match::Exact("x".into()), ..scope(Class::Config) };
    let compare = Compare::Unchanged { scope: nowhere, since: u64::MAX };
    let txn = Txn { when: vec![compare], then: vec![], otherwise: vec![] };
    let refusal = Refusal::LimitReached {
        limit: "groups and deleted items in the scopes of a transaction".into(),
        allowed: limits::TXN_RECORDS as u64,
    };
    assert_eq!(world.state.look(&txn), Err(refusal));
}

/// The log may say what `check` would not.
#[test]
fn no_bound_is_too_great_for_a_gate() {
    let mut world = World::default();
    world.run(publish("a", "1"));
    let gate =
        Gate { measure: Measure::Unhealthy, bound: u64::MAX, for_ms: u64::MAX, promote: true };
    world.outcome(publish_gray("a", "2", share("r", 10_000, Some(gate)))).result.unwrap();
    for client in ["c1", "c2"] {
        let session = world.session();
        let items = vec![Running { name: item("a"), version: 2, rule: "r".into() }];
        world.run(Op::ReportConfig { session, client: client.into(), items });
        world.run(Op::ExpireSessions { term: 1, sessions: vec![session] });
    }
    assert!(world.state.due_gates(&item("a"), 0).is_empty());
    let judge = Op::JudgeGray { name: item("a"), rule: "r".into(), schema: 0 };
    assert_eq!(world.run(judge), Reply::GrayJudged { ending: None });
}

#[test]
fn an_item_that_is_reported_twice_counts_once() {
    let mut world = World::default();
    let session = world.session();
    for i in 0..=limits::CONFIG_REPORTS {
        world.run(publish(&format!("k{i}"), "1"));
    }
    let report = |items: &[usize]| Op::ReportConfig {
        session,
        client: "c".into(),
        items: items
            .iter()
            .map(|i| Running { name: item(&format!("k{i}")), version: 1, rule: String::new() })
            .collect(),
    };
    let most: Vec<usize> = (1..limits::CONFIG_REPORTS).collect();
    world.run(report(&most));
    assert_eq!(world.run(report(&[0, 0, 1])), Reply::ConfigReported { changed: 1 });
    let refusal = world.refused(report(&[limits::CONFIG_REPORTS]));
    let (limit, allowed) = ("config items that one session reports".into(), 1_024);
    assert_eq!(refusal, Refusal::LimitReached { limit, allowed });
}

/// A part that would be overlooked is refused, and each first name is one of its class.
#[test]
fn a_scope_names_what_there_is() {
    let any = |class| scope(class);
    let with = |class, first, second| Scope { first, second, ..any(class) };
    let exact = |text: &str| Match::Exact(text.to_owned());
    let prefix = |text: &str| Match::Prefix(text.to_owned());
    for class in [Class::Service, Class::Config, Class::Counter, Class::Lock] {
        assert_eq!(any(class).check(""), Ok(()));
        assert_eq!(with(class, prefix(""), Match::Any).check(""), Ok(()));
        let second = with(class, exact("a"), exact("b")).check("when[0].");
        if class == Class::Config {
            assert_eq!(second, Ok(()));
        } else {
            let Err(Refusal::Invalid { field, .. }) = second else { panic!("{second:?}") };
            assert_eq!(field, "when[0].second");
        }
        let long = with(class, prefix(&"x".repeat(limits::NAME_BYTES + 1)), Match::Any);
        assert!(long.check("").is_err());
        assert!(with(class, exact(""), Match::Any).check("").is_err());
    }
    assert_eq!(with(Class::Counter, exact("_total:x"), Match::Any).check(""), Ok(()));
    assert!(with(Class::Counter, exact("a-b"), Match::Any).check("").is_err());
    assert!(with(Class::Lock, exact("_"), Match::Any).check("").is_err());
    assert!(with(Class::Lock, exact("a-b"), Match::Any).check("").is_ok());
    let nowhere = Scope { namespace: "-".into(), ..any(Class::Lock) };
    let Err(Refusal::Invalid { field, .. }) = nowhere.check("then[3].") else { panic!() };
    assert_eq!(field, "then[3].namespace");
}

/// The default namespace is always there, so its first description is not its beginning.
#[test]
fn a_description_changes_no_scope() {
    let mut world = World::default();
    world.run(add("c", 1));
    let since = world.state.revision();
    world.run(Op::PutNamespace { name: "default".into(), description: "ours".into() });
    assert!(world.holds(unchanged(Class::Counter, since)));
    // Any other one begins with its record, and what was before that is not known.
    let elsewhere = |since| Compare::Unchanged {
        scope: Scope { namespace: "n".into(), ..scope(Class::Counter) },
        since,
    };
    assert!(!world.holds(elsewhere(since)));
    for description in ["", "ours"] {
        world.run(Op::PutNamespace { name: "n".into(), description: description.into() });
        assert!(!world.holds(elsewhere(since)));
        assert!(world.holds(elsewhere(since + 2)));
    }
    world.run(Op::DeleteNamespace { name: "n".into() });
    assert!(!world.holds(elsewhere(u64::MAX)));
}

/// Transactions are not nested, however deep the bytes say: a reader must not follow them down.
#[test]
fn nested_transactions_are_no_command() {
    let inner = Command { request: None, op: txn(vec![]) }.encode().unwrap();
    assert!(Command::<String>::decode(&inner).is_ok());
    let nested = Command { request: None, op: txn(vec![Step::Write(txn(vec![]))]) };
    let bytes = nested.encode().unwrap();
    assert!(Command::<String>::decode(&bytes).is_err() && Command::<&str>::decode(&bytes).is_err());
    let head = &bytes[..2];
    let level = bytes[2..].len() - inner[2..].len();
    // Op, no compares, one step, which writes; and at the end what follows the steps of each.
    let level = &bytes[2..2 + level - 1];
    let depth = limits::COMMAND_BYTES / (level.len() + 1) - 2;
    let deep = [head, &level.repeat(depth), &inner[2..], &vec![0; depth]].concat();
    assert!(deep.len() < limits::COMMAND_BYTES);
    let mut world = World::default();
    let applied = world.entry(&[deep, inner.clone(), bytes, inner]);
    let undecodable: Vec<bool> = applied
        .outcomes
        .iter()
        .map(|outcome| outcome.result == Err(Refusal::Undecodable))
        .collect();
    assert_eq!(undecodable, [true, false, true, false]);
}

/// Nor are answers, beyond what transactions say.
#[test]
fn nested_answers_are_not_followed() {
    let key = Key::Reply { session: 1, sequence: 1 };
    let bytes = |result| {
        let outcome = Outcome { revision: 1, duplicate: false, result };
        let reply = StoredReply { lowest_unacknowledged: 1, outcome };
        Record::Reply(Arc::new(reply)).encode()
    };
    let read = |bytes: &[u8]| Record::decode(&key, bytes).map(|_| ());
    let refusal = Refusal::Undecodable;
    let in_step = |refusal| Refusal::InStep { step: 0, refusal: Box::new(refusal) };
    let written = |reply| StepReply::Written(reply);
    let said = |replies| Reply::Txn { succeeded: true, replies };
    let guarded =
        |txn| Reply::Guarded { outcome: BarrierOutcome::Executed, txn: Some(Box::new(txn)) };
    let plain = || Reply::AlarmDeleted { removed: true };
    for allowed in
        [Err(in_step(refusal.clone())), Ok(guarded(said(vec![written(plain()), written(plain())])))]
    {
        assert_eq!(read(&bytes(allowed)), Ok(()));
    }
    let deepen = |shallow: Vec<u8>, deep: Vec<u8>| {
        let same = shallow.iter().zip(&deep).take_while(|(a, b)| a == b).count();
        let level = deep.len() - shallow.len();
        let (head, rest) = deep.split_at(same);
        [head, &rest[..level].repeat(limits::RECORD_BYTES / level / 2), &rest[level..]].concat()
    };
    let deep = deepen(bytes(Err(in_step(refusal.clone()))), bytes(Err(in_step(in_step(refusal)))));
    assert!(deep.len() > limits::RECORD_BYTES / 4 && read(&deep).is_err());
    let deep = deepen(bytes(Ok(guarded(plain()))), bytes(Ok(guarded(guarded(plain())))));
    assert!(deep.len() > limits::RECORD_BYTES / 4 && read(&deep).is_err());
    let deep = bytes(Ok(guarded(said(vec![written(said(vec![written(plain())]))]))));
    assert!(read(&deep).is_err());
}

/// A gate that is set again, or later, looks for its whole time from then on: neither is it over before
/// it began, nor does it promote what it never looked at.
#[test]
fn a_gate_looks_from_when_it_was_set() {
    let gate = |promote| {
        let measure = Measure::Counter { name: "errors".into(), labels: Pairs::default(), base: 0 };
        Some(Gate { measure, bound: 2, for_ms: 10_000, promote })
    };
    let judge = || Op::JudgeGray { name: item("a"), rule: "r".into(), schema: 0 };
    let nothing = Reply::GrayJudged { ending: None };
    for promote in [false, true] {
        let mut world = World::default();
        world.run(add("errors", 5));
        world.run(publish("a", "1"));
        world.run(publish_gray("a", "2", share("r", 100, None)));
        world.now_ms = 60_000;
        world.run(publish_gray("a", "2", share("r", 100, gate(promote))));
        assert_eq!(world.run(judge()), nothing, "set late, promote: {promote}");
        // A greater share of the same release: looked at for as long again.
        world.now_ms = 69_999;
        world.run(add("errors", 2));
        world.run(publish_gray("a", "2", share("r", 5_000, gate(promote))));
        world.now_ms = 79_998;
        assert_eq!(world.run(judge()), nothing);
        let mut crossed = World { now_ms: world.now_ms, ..World::default() };
        std::mem::swap(&mut crossed.state, &mut world.state);
        let records: Vec<_> = crossed.state.records().map(Ok::<_, ()>).collect();
        world.state = State::restore(records).unwrap();
        // What was counted since the gate was first set still counts.
        crossed.run(add("errors", 1));
        let back = Reply::GrayJudged { ending: Some(Ending::RolledBack) };
        assert_eq!(crossed.run(judge()), back);
        world.now_ms += 1;
        let ending = promote.then_some(Ending::Promoted);
        assert_eq!(world.run(judge()), Reply::GrayJudged { ending });
    }
}

/// A session that holds a lock and waits for it again never gets it by its own end: nobody is told of
/// an owner that never was one, and the next owner has a token of its own.
#[test]
fn an_ending_session_is_granted_nothing() {
    let mut ends: Vec<fn(&[u64]) -> Op> = vec![];
    ends.push(|sessions| Op::CloseSession { session: sessions[0] });
    ends.push(|sessions| Op::ExpireSessions { term: 1, sessions: sessions.to_vec() });
    for end in ends {
        let mut world = World::default();
        let [going, also, staying] = [(); 3].map(|()| world.session());
        world.run(acquire("l", going, "1", true));
        world.run(acquire("l", going, "2", true));
        world.run(acquire("l", also, "1", true));
        world.run(acquire("l", staying, "1", true));
        let bytes = Command { request: None, op: end(&[going, also]) }.encode().unwrap();
        let applied = world.entry(&[bytes]);
        let left: Vec<u64> = world.state.lock("default", "l").map(|r| r.session).collect();
        let granted: Vec<u64> = applied.events[0]
            .changes
            .iter()
            .filter_map(|change| match &change.record {
                Some(Record::Lock(request)) => Some(request.session),
                _ => None,
            })
            .collect();
        assert_eq!(granted, left[..1], "one owner in {applied:?}");
        let first = world.state.lock("default", "l").next().unwrap();
        assert_eq!(first.token, Some(world.state.revision()));
    }
}

/// Eight rules of commands that nobody checked still make a record that can be stored.
#[test]
fn no_rules_are_too_much_for_an_item() {
    let mut world = World::default();
    let mut great = publication("a", "x".repeat(limits::COMMAND_BYTES - 512));
    world.outcome(Op::PublishConfig(Box::new(great.clone()))).result.unwrap();
    great.content = text("1");
    great.labels = Some([("k", "x".repeat(limits::COMMAND_BYTES - 512))].into_iter().collect());
    world.outcome(Op::PublishConfig(Box::new(great))).result.unwrap();
    // The labels stay.
    let content = "x".repeat(limits::COMMAND_BYTES - 512);
    world.outcome(publish("a", content)).result.unwrap();
    let mut great = publication("a", "2");
    let mut refused = 0;
    for rule in 0..8 {
        let clients = vec!["x".repeat(limits::COMMAND_BYTES - 512)];
        let rule = format!("r{rule}");
        let (priority, picks, gate) = (0, Picks::Clients(clients), None);
        great.gray = Some(GrayTerms { rule, priority, picks, gate });
        let outcome = world.outcome(Op::PublishConfig(Box::new(great.clone())));
        refused += usize::from(outcome.result.is_err());
    }
    assert!(refused > 0);
    for (key, record) in world.state.records() {
        let bytes = record.encode();
        assert_eq!(Record::decode(&key, &bytes), Ok(record));
    }
}

/// As many as a namespace, or the cluster, may have; then room comes back.
#[test]
fn there_is_an_end_to_everything() {
    let full = |world: &mut World, count: usize, make: &dyn Fn(usize) -> Op, limit: &str| {
        let encode = |i| Command { request: None, op: make(i) }.encode().unwrap();
        let numbers: Vec<usize> = (0..count).collect();
        for some in numbers.chunks(limits::BATCH_COMMANDS) {
            let commands: Vec<_> = some.iter().map(|i| encode(*i)).collect();
            let applied = world.entry(&commands);
            assert!(applied.outcomes.iter().all(|outcome| outcome.result.is_ok()));
        }
        let refusal = world.refused(make(count));
        let allowed = count as u64;
        assert_eq!(refusal, Refusal::LimitReached { limit: limit.into(), allowed });
        // What is there can be written, what is not has no place in a transaction either.
        world.outcome(make(7)).result.unwrap();
        let refusal = world.refused(txn(vec![Step::Write(make(count))]));
        assert!(matches!(refusal, Refusal::InStep { step: 0, .. }), "{refusal:?}");
    };
    let mut world = World::default();
    let session = world.session();
    let hold = |i: usize| acquire(&format!("l{i}"), session, "", false);
    full(&mut world, limits::LOCKS, &hold, "locks of a namespace");
    let refusal = world.refused(txn(vec![Step::Write(hold(limits::LOCKS + 1))]));
    assert!(matches!(refusal, Refusal::InStep { .. }));
    let release = |i: usize| {
        let holder = Holder { session, name: String::new() };
        Op::ReleaseLock { lock: lock(&format!("l{i}")), by: Leaving::Holder(holder) }
    };
    // One step makes room for the next.
    world.run(txn(vec![Step::Write(release(3)), Step::Write(hold(limits::LOCKS))]));
    assert_eq!(world.state.counts().lock_requests, limits::LOCKS as u64);

    let make = |i: usize| publish(&format!("k{i}"), "1");
    full(&mut world, limits::CONFIG_ITEMS, &make, "config items of a namespace");
    let schema = |key: &str| {
        Op::PutSchema(Box::new(SchemaPut {
            name: item(key),
            text: "{}".into(),
            checked_revision: 0,
        }))
    };
    assert!(matches!(world.refused(schema("more")), Refusal::LimitReached { .. }));
    // Deleted it still counts, purged not.
    world.run(delete("k3", false));
    assert!(matches!(world.refused(schema("more")), Refusal::LimitReached { .. }));
    world.run(delete("k3", true));
    world.run(schema("more"));
    assert!(matches!(world.refused(make(3)), Refusal::LimitReached { .. }));

    let mut world = World::default();
    let make = |i: usize| add(&format!("c{i}"), 1);
    full(&mut world, limits::COUNTERS, &make, "counters of the cluster");
    world.run(Op::PutNamespace { name: "n".into(), description: String::new() });
    let elsewhere = CounterName { namespace: "n".into(), ..counter("c") };
    let (kind, value, expected) = (None, 1, None);
    let set = Op::SetCounter(Box::new(Setting { name: elsewhere, kind, value, expected }));
    assert!(matches!(world.refused(set.clone()), Refusal::LimitReached { .. }));
    world.run(Op::DeleteCounter { name: counter("c5") });
    world.run(set);
}

#[test]
fn a_transaction_has_so_many_parts() {
    let compare = Compare::Exists { record: RecordName::Session { id: 1 }, exists: false };
    let get = || Step::Get(RecordName::Session { id: 1 });
    let of = |compares: usize, then: usize, otherwise: usize| {
        let op = Op::Txn(Box::new(Txn {
            when: vec![compare.clone(); compares],
            then: vec![get(); then],
            otherwise: vec![get(); otherwise],
        }));
        match (Command { request: None, op }).check() {
            Ok(()) => None,
            Err(Refusal::Invalid { field, value, allowed }) => {
                assert_eq!((&*value, &*allowed), ("129", "0..=128"));
                Some(field)
            }
            Err(other) => panic!("{other:?}"),
        }
    };
    assert_eq!(of(128, 128, 128), None);
    assert_eq!(of(129, 0, 0).as_deref(), Some("when"));
    assert_eq!(of(0, 129, 0).as_deref(), Some("then"));
    assert_eq!(of(0, 0, 129).as_deref(), Some("or_else"));
    let running = Running { name: item("k"), version: 1, rule: String::new() };
    let items = vec![running; limits::CONFIG_REPORTS + 1];
    let op = Op::ReportConfig { session: 1, client: "c".into(), items };
    assert!((Command { request: None, op }).check().is_err());
    let clients: Vec<String> =
        (0..=limits::CONFIG_GRAY_CLIENTS).map(|i| format!("{i:05}")).collect();
    let gray = |clients: &[String]| {
        let picks = Picks::Clients(clients.to_vec());
        let terms = GrayTerms { picks, ..share("r", 0, None) };
        Command { request: None, op: publish_gray("k", "1", terms) }.check()
    };
    assert_eq!(gray(&clients[1..]), Ok(()));
    assert!(gray(&clients).is_err());
}

/// Of two words about one item the last counts, and nothing tells of the first.
#[test]
fn the_last_word_of_a_report_counts() {
    let mut world = World::default();
    let session = world.session();
    world.run(publish("a", "1"));
    world.run(publish("a", "2"));
    let report = |versions: &[u64]| Op::ReportConfig {
        session,
        client: "c".into(),
        items: versions
            .iter()
            .map(|version| Running { name: item("a"), version: *version, rule: String::new() })
            .collect(),
    };
    assert_eq!(world.run(report(&[2, 1])), Reply::ConfigReported { changed: 1 });
    let revision = world.state.revision();
    assert_eq!(world.run(report(&[2, 1])), Reply::ConfigReported { changed: 0 });
    assert_eq!(world.state.revision(), revision);
    assert_eq!(world.run(report(&[1, 2])), Reply::ConfigReported { changed: 1 });
}

// ---- global transactions ----

fn tcc(gid: &str) -> SagaBegin {
    let policy = CallPolicy { timeout_ms: 5_000, attempts: 0, pause_ms: 200, pause_max_ms: 60_000 };
    let terms = SagaTerms {
        recovery: SagaRecovery::Backward,
        prepared_timeout_ms: 30_000,
        timeout_ms: 0,
        suspend_after_ms: 86_400_000,
        retention_ms: 86_400_000,
        delay_ms: 0,
        query: String::new(),
        query_policy: policy,
    };
    let name = SagaName { namespace: "default".into(), gid: gid.into() };
    SagaBegin { name, mode: SagaMode::Tcc, terms, branches: vec![], submit: false }
}

/// Beyond so many the oldest ones go before their time, and the state itself asks for it.
#[test]
fn too_many_finished_transactions_go_in_their_order() {
    let mut world = World { now_ms: 1_000, ..World::default() };
    let encoded = |op| Command { request: None, op }.encode().unwrap();
    let count = limits::SAGAS_FINISHED + 3;
    for number in 0..count {
        let gid = format!("t-{number:06}");
        let name = SagaName { namespace: "default".into(), gid: gid.clone() };
        // Without a branch there is nothing to be cancelled: it is over at once.
        let abort = Op::AbortSaga { name, reason: String::new() };
        world.entry(&[encoded(Op::BeginSaga(Box::new(tcc(&gid)))), encoded(abort)]);
        world.now_ms += 1;
    }
    assert_eq!(world.state.next_saga_ms(), Some(world.state.meta().now_ms), "it is time");
    let due = world.state.due_sagas(world.now_ms, 100);
    let gids: Vec<&str> = due.iter().map(|saga| &*saga.gid).collect();
    assert_eq!(gids, ["t-000000", "t-000001", "t-000002"]);
    let due = |number: usize| SagaStep {
        name: SagaName { namespace: "default".into(), gid: format!("t-{number:06}") },
        news: SagaNews::Due,
    };
    // Out of turn nothing goes.
    let out_of_turn = Op::AdvanceSagas { epoch: 1, steps: vec![due(5)] };
    assert_eq!(world.run(out_of_turn), Reply::SagasAdvanced { taken: 0 });
    let in_turn = Op::AdvanceSagas { epoch: 1, steps: (0..5).map(due).collect() };
    assert_eq!(world.run(in_turn), Reply::SagasAdvanced { taken: 3 });
    assert_eq!(world.state.counts().sagas, limits::SAGAS_FINISHED as u64);
    assert!(world.state.due_sagas(world.now_ms, 100).is_empty());
    let first = world.state.sagas("default", None, "", "", 1).0.remove(0);
    assert_eq!(&*first.gid, "t-000003");
}

fn laden<'a>(gid: &'a str, payload: &Blob) -> SagaBegin<&'a str> {
    let terms = tcc(gid).terms;
    let branch = BranchPlan {
        id: "1".into(),
        trial: String::new(),
        action: "http://a".into(),
        compensation: String::new(),
        payload: payload.clone(),
        after: vec![],
        policy: terms.query_policy,
    };
    let name = SagaName { namespace: "default", gid };
    SagaBegin { name, mode: SagaMode::Saga, terms, branches: vec![branch], submit: false }
}

/// What they are made of is bounded too. All share one payload, so the test itself takes little.
#[test]
fn transactions_are_bounded_in_what_they_take() {
    let payload: Blob = vec![0; 500_000].into();
    let mut world = World::default();
    let mut at = At { term: 1, now_ms: 1_000, revision: 1 };
    let mut journal = Journal::default();
    let mut gids: Vec<String> = Vec::new();
    let refused = loop {
        let gid = format!("t-{:06}", gids.len());
        at.revision += 1;
        match world.state.tables.begin_saga(laden(&gid, &payload), &at, &mut journal) {
            Ok(_) => gids.push(gid),
            Err(refusal) => break refusal,
        }
    };
    let limit = "bytes of the cluster's transactions".to_owned();
    assert_eq!(refused, Refusal::LimitReached { limit, allowed: limits::SAGAS_BYTES as u64 });
    assert!((2_140..=2_147).contains(&gids.len()), "{}", gids.len());
    // Finished ones make room before their time, the first of them first, and no more of them than must.
    for gid in &gids {
        at.revision += 1;
        at.now_ms += 1;
        let name = SagaName { namespace: "default", gid };
        world.state.tables.abort_saga(&name, "", &at, &mut journal).unwrap();
    }
    world.now_ms = at.now_ms;
    assert_eq!(world.state.next_saga_ms(), Some(world.state.meta().now_ms), "it is time");
    let due = world.state.due_sagas(world.now_ms, 10_000);
    assert!(due.iter().map(|saga| &*saga.gid).eq(gids[..due.len()].iter().map(String::as_str)));
    let kept = gids.len() - due.len();
    assert!((530..=536).contains(&kept), "{kept}");
    let steps = due.iter().map(|saga| SagaStep {
        name: SagaName { namespace: "default".into(), gid: saga.gid.to_string() },
        news: SagaNews::Due,
    });
    for steps in steps.collect::<Vec<_>>().chunks(limits::SAGA_STEPS) {
        let taken = steps.len() as u64;
        let advance = Op::AdvanceSagas { epoch: 1, steps: steps.to_vec() };
        assert_eq!(world.run(advance), Reply::SagasAdvanced { taken });
    }
    assert!(world.state.due_sagas(world.now_ms, 1).is_empty());
    assert_eq!(world.state.counts().sagas, kept as u64);
    world.state.tables.begin_saga(laden("more", &payload), &at, &mut journal).unwrap();
}

/// A gid that the cluster gives is given once to a request, however often that is sent.
#[test]
fn a_given_gid_is_given_once_to_a_request() {
    let mut world = World::default();
    let session = world.session();
    let request = RequestId { session, sequence: 1, lowest_unacknowledged: 1 };
    let op = || Op::BeginSaga(Box::new(tcc("")));
    let bytes = Command { request: Some(request), op: op() }.encode().unwrap();
    let first = world.entry(std::slice::from_ref(&bytes)).outcomes.remove(0);
    let again = world.entry(&[bytes]).outcomes.remove(0);
    assert!(!first.duplicate && again.duplicate);
    assert_eq!(again.result, first.result);
    assert_eq!(world.state.counts().sagas, 1);
    // Without an id each is another one.
    world.run(op());
    assert_eq!(world.state.counts().sagas, 2);
}
