//! Samples of configuration, counters, alarms, locks and transactions.

use super::*;

fn item() -> ItemName {
    ItemName { namespace: "default".into(), group: "app".into(), key: "db".into() }
}

fn counter() -> CounterName {
    let labels = pairs(&[("code", "200"), ("zone", "")]);
    CounterName { namespace: "default".into(), name: "hits".into(), labels }
}

fn lock() -> LockName {
    LockName { namespace: "default".into(), lock: "deploy".into() }
}

fn holder() -> Holder {
    Holder { session: 7, name: "web-1".into() }
}

fn content(format: Format) -> Content {
    Content { format, bytes: b"a = 1\n\0\xFF".to_vec().into() }
}

fn gate(measure: Measure) -> Gate {
    Gate { measure, bound: 300, for_ms: 60_000, promote: true }
}

fn errors(base: i64) -> Measure {
    Measure::Counter { name: "errors".into(), labels: pairs(&[("app", "db")]), base }
}

pub(super) fn commands() -> Vec<(String, Command)> {
    let mut all = vec![];
    let mut sample = |name: &str, op: Op| {
        let request = Some(RequestId { session: 7, sequence: 9, lowest_unacknowledged: 8 });
        all.push((name.to_owned(), Command { request, op }));
    };
    let (author, comment) = ("ann".to_owned(), "for the sale".to_owned());
    let publication = Publication {
        name: item(),
        content: content(Format::Yaml),
        labels: Some(pairs(&[("team", "core")])),
        keep: Some(300),
        author: author.clone(),
        comment: comment.clone(),
        expected_version: Some(3),
        schema: 12,
        gray: None,
    };
    let plain = Publication {
        content: content(Format::Text),
        labels: None,
        keep: None,
        expected_version: None,
        ..publication.clone()
    };
    sample("publish", Op::PublishConfig(Box::new(publication)));
    for (name, format) in [
        ("text", Format::Text),
        ("json", Format::Json),
        ("toml", Format::Toml),
        ("properties", Format::Properties),
        ("binary", Format::Binary),
    ] {
        let publication = Publication { content: content(format), ..plain.clone() };
        sample(&format!("publish-{name}"), Op::PublishConfig(Box::new(publication)));
    }
    let clients = Picks::Clients(vec!["web-1".into(), "web-2".into()]);
    for (name, picks, gate) in [
        ("labels", Picks::Labels(pairs(&[("zone", "eu")])), None),
        ("clients", clients, Some(gate(errors(0)))),
        ("share", Picks::Share { basis_points: 2_500 }, Some(gate(Measure::Unhealthy))),
    ] {
        let gray = Some(GrayTerms { rule: "canary".into(), priority: 5, picks, gate });
        let publication = Publication { gray, ..plain.clone() };
        sample(&format!("publish-gray-{name}"), Op::PublishConfig(Box::new(publication)));
    }
    let deletion = ConfigDeletion {
        name: item(),
        expected_version: Some(3),
        author: author.clone(),
        comment: comment.clone(),
        purge: true,
    };
    sample("delete-config", Op::DeleteConfig(Box::new(deletion)));
    let rollback = ConfigRollback {
        name: item(),
        version: 2,
        expected_version: Some(3),
        author: author.clone(),
        comment: comment.clone(),
        schema: 12,
    };
    sample("rollback-config", Op::RollbackConfig(Box::new(rollback.clone())));
    let schema = SchemaPut { name: item(), text: "{}".into(), checked_revision: 3 };
    sample("put-schema", Op::PutSchema(Box::new(schema)));
    sample("delete-schema", Op::DeleteSchema { name: item() });
    let decision = GrayDecision {
        name: item(),
        rule: "canary".into(),
        version: Some(4),
        promote: true,
        author,
        comment,
        schema: 12,
    };
    sample("end-gray", Op::EndGray(Box::new(decision)));
    sample("judge-gray", Op::JudgeGray { name: item(), rule: "canary".into(), schema: 12 });
    let items = vec![Running { name: item(), version: 4, rule: "canary".into() }];
    sample("report-config", Op::ReportConfig { session: 7, client: "web-1".into(), items });
    let addition = Addition {
        name: counter(),
        kind: Some(CounterKind::Gauge),
        delta: -3,
        floor: Some(i64::MIN),
        ceil: Some(i64::MAX),
    };
    sample("add", Op::AddCounter(Box::new(addition.clone())));
    let least = Addition { kind: None, floor: None, ceil: None, ..addition };
    sample("add-least", Op::AddCounter(Box::new(least.clone())));
    let kind = Some(CounterKind::Counter);
    let setting = Setting { name: counter(), kind, value: -1, expected: Some(300) };
    sample("set", Op::SetCounter(Box::new(setting)));
    sample("reset", Op::ResetCounter { name: counter(), expected: Some(-300) });
    sample("delete-counter", Op::DeleteCounter { name: counter() });
    let claim = Claim { lock: lock(), holder: holder(), value: "10.0.0.1".into(), wait: true };
    sample("acquire", Op::AcquireLock(Box::new(claim)));
    let by = Leaving::Holder(holder());
    sample("release", Op::ReleaseLock { lock: lock(), by });
    let token = Op::ReleaseLock { lock: lock(), by: Leaving::Token(12) };
    sample("release-token", token.clone());
    let place = Op::ReleaseLock { lock: lock(), by: Leaving::Place(12) };
    sample("release-place", place);
    let value = "10.0.0.2".to_owned();
    sample("update-lock", Op::UpdateLock { lock: lock(), holder: holder(), value });

    let records = [
        RecordName::Namespace { name: "default".into() },
        RecordName::Service { namespace: "default".into(), name: "web".into() },
        RecordName::Instance(name()),
        RecordName::Config(item()),
        RecordName::Counter(counter()),
        RecordName::Lock(lock()),
        RecordName::Session { id: 7 },
    ];
    let scopes = [
        (Class::Service, Match::Any, Match::Any),
        (Class::Config, Match::Exact("app".into()), Match::Prefix("d".into())),
        (Class::Counter, Match::Prefix("h".into()), Match::Any),
        (Class::Lock, Match::Exact("deploy".into()), Match::Any),
    ];
    let scopes = scopes.map(|(class, first, second)| Scope {
        class,
        namespace: "default".to_owned(),
        first,
        second,
    });
    let mut when = vec![
        Compare::CreateRevision { record: records[2].clone(), is: Relation::Equal, than: 300 },
        Compare::ModRevision { record: records[3].clone(), is: Relation::NotEqual, than: 300 },
        Compare::Version { item: item(), is: Relation::Less, than: 300 },
        Compare::Content { item: item(), equal: true, to: b"\xFF".to_vec().into() },
        Compare::Counter { counter: counter(), is: Relation::Greater, than: -300 },
        Compare::Health { instance: name(), equal: false, to: Health::Critical },
        Compare::Token { lock: lock(), is: Relation::Equal, than: 300 },
    ];
    let exists = |record: &RecordName| Compare::Exists { record: record.clone(), exists: true };
    when.extend(records.iter().map(exists));
    let unchanged = |scope: &Scope| Compare::Unchanged { scope: scope.clone(), since: 300 };
    when.extend(scopes.iter().map(unchanged));
    let mut then: Vec<Step> = records.into_iter().map(Step::Get).collect();
    then.extend(scopes.map(|scope| Step::Range { scope, limit: 300 }));
    let otherwise = vec![
        Step::Write(Op::RollbackConfig(Box::new(rollback))),
        Step::Write(Op::AddCounter(Box::new(least))),
        Step::Write(token),
        Step::Write(Op::Deregister { name: name(), expected_mod_revision: None }),
    ];
    sample("txn", Op::Txn(Box::new(Txn { when, then, otherwise })));
    sample("txn-nothing", Op::Txn(Box::new(Txn { when: vec![], then: vec![], otherwise: vec![] })));
    let scope = || Scope {
        class: Class::Alarm,
        namespace: "default".to_owned(),
        first: Match::Prefix("e".into()),
        second: Match::Any,
    };
    let when = vec![Compare::Unchanged { scope: scope(), since: 300 }];
    let then = vec![Step::Range { scope: scope(), limit: 300 }];
    sample("txn-alarms", Op::Txn(Box::new(Txn { when, then, otherwise: vec![] })));
    let measures = [AlarmMeasure::Value, AlarmMeasure::Rate { slots: 30 }];
    for (measure, side) in measures.into_iter().zip([AlarmSide::Below, AlarmSide::Above]) {
        let rule = Box::new(a_rule(measure, side));
        let name = format!("put-alarm-{side:?}").to_lowercase();
        sample(&name, Op::PutAlarm { name: alarm(), rule });
    }
    sample("delete-alarm", Op::DeleteAlarm { name: alarm() });
    sample("judge-alarm", Op::JudgeAlarm { name: alarm() });
    let error = "no answer".to_owned();
    sample("note-post", Op::NotePost { name: alarm(), transition: 300, error });
    all
}

fn release(version: u64, origin: Origin) -> Release {
    Release {
        version,
        revision: 300,
        at_ms: 1_700_000_000_000,
        author: "ann".into(),
        comment: "for the sale".into(),
        origin,
        content: Some(content(Format::Json)),
        end: None,
    }
}

fn a_config() -> ConfigItem {
    let gray = |rule: &str, version: u64, picks, gate| {
        Arc::new(Gray {
            rule: rule.into(),
            priority: 5,
            picks,
            gate,
            release: Arc::new(release(version, Origin::Gray { rule: rule.into() })),
            since_ms: 1_700_000_000_001,
        })
    };
    let clients = Picks::Clients(vec!["web-1".into()]);
    ConfigItem {
        namespace: "default".into(),
        group: "app".into(),
        key: "db".into(),
        current: Arc::new(release(1, Origin::Published)),
        gray: vec![
            gray("a", 2, Picks::Labels(pairs(&[("zone", "eu")])), None),
            gray("b", 3, clients, Some(gate(errors(-300)))),
            gray("c", 4, Picks::Share { basis_points: 2_500 }, Some(gate(Measure::Unhealthy))),
        ],
        labels: pairs(&[("team", "core")]),
        keep: 300,
        last_version: 301,
        create_revision: 302,
        mod_revision: 303,
        created_at_ms: 1_600_000_000_000,
        modified_at_ms: 1_700_000_000_001,
    }
}

fn a_counter() -> Counter {
    let CounterName { namespace, name, labels } = counter();
    Counter {
        namespace: namespace.into(),
        name: name.into(),
        labels,
        kind: CounterKind::Gauge,
        value: -300,
        open: Slot { number: 170_000_000, sum: -3 },
        past: [Slot { number: 169_999_950, sum: i64::MAX }, Slot { number: 169_999_999, sum: 7 }]
            .into(),
        create_revision: 302,
        mod_revision: 303,
        created_at_ms: 1_600_000_000_000,
        modified_at_ms: 1_700_000_000_001,
    }
}

fn alarm() -> AlarmName {
    AlarmName { namespace: "default".into(), name: "errors".into() }
}

fn a_rule(measure: AlarmMeasure, side: AlarmSide) -> AlarmRule {
    AlarmRule {
        counter: "hits".into(),
        labels: pairs(&[("code", "500")]),
        measure,
        side,
        bound_milli: -300,
        for_ms: 60_000,
        webhook: "https://hooks/a".into(),
        description: "too many".into(),
    }
}

fn an_alarm(status: AlarmStatus, rule: AlarmRule) -> Alarm {
    let AlarmName { namespace, name } = alarm();
    Alarm {
        namespace: namespace.into(),
        name: name.into(),
        rule,
        status,
        since_ms: 1_700_000_000_000,
        measured_milli: -301,
        transitions: 300,
        posted: 299,
        post_error: "no answer".into(),
        create_revision: 302,
        mod_revision: 303,
    }
}

fn a_request(token: Option<u64>) -> LockRequest {
    LockRequest {
        namespace: "default".into(),
        lock: "deploy".into(),
        ticket: 302,
        session: 7,
        holder: "web-1".into(),
        value: "10.0.0.1".into(),
        token,
        requested_at_ms: 1_700_000_000_000,
        acquired_at_ms: token.map(|_| 1_700_000_000_001),
        mod_revision: 303,
    }
}

pub(super) fn records() -> Vec<(String, Key, Record)> {
    let mut all = vec![];
    let mut sample = |name: &str, key: Key, record: Record| {
        all.push((name.to_owned(), key, record));
    };
    let [namespace, group, key]: [Arc<str>; 3] = ["default", "app", "db"].map(Arc::from);
    let names = || (namespace.clone(), group.clone(), key.clone());
    let config = a_config();
    sample("config", config.key(), Record::Config(config.clone().into()));
    let deleted = ConfigItem {
        current: Arc::new(Release { content: None, ..release(5, Origin::Deleted) }),
        gray: vec![],
        labels: Pairs::default(),
        ..config
    };
    sample("config-deleted", deleted.key(), Record::Config(deleted.into()));
    let mut past = |name: &str, origin: Origin, how: Option<Ending>| {
        let (namespace, group, key) = names();
        let by = "gate: too many".to_owned();
        let end = how.map(|how| GrayEnd { at_ms: 1_700_000_000_002, how, by });
        let release = Release { end, ..release(0x0102_0304, origin) };
        let key = Key::Release { namespace, group, key, version: release.version };
        sample(name, key, Record::Release(release.into()));
    };
    past("release", Origin::Published, None);
    past("release-rolled-back", Origin::RolledBack { version: 300 }, None);
    past("release-promoted", Origin::Promoted { version: 300 }, None);
    let gray = || Origin::Gray { rule: "canary".into() };
    past("release-gray-promoted", gray(), Some(Ending::Promoted));
    past("release-gray-aborted", gray(), Some(Ending::Aborted));
    past("release-gray-rolled-back", gray(), Some(Ending::RolledBack));
    let (n, g, k) = names();
    let schema = Schema {
        namespace: n.clone(),
        group: g.clone(),
        key: k.clone(),
        text: "{}".into(),
        create_revision: 302,
        mod_revision: 303,
    };
    let place = Key::Schema { namespace: n.clone(), group: g.clone(), key: k.clone() };
    sample("schema", place, Record::Schema(schema.into()));
    let report = Report {
        namespace: n.clone(),
        group: g.clone(),
        key: k.clone(),
        session: 7,
        client: "web-1".into(),
        version: 300,
        rule: "canary".into(),
        since_ms: 1_700_000_000_000,
        lost_at_ms: None,
    };
    let place = Key::Report { namespace: n, group: g, key: k, session: 7 };
    sample("report", place.clone(), Record::Report(report.clone().into()));
    let lost = Report { lost_at_ms: Some(1_700_000_000_001), rule: String::new(), ..report };
    sample("report-lost", place, Record::Report(lost.into()));
    let counter = a_counter();
    sample("counter", counter.key(), Record::Counter(counter.clone().into()));
    let new = Counter {
        kind: CounterKind::Counter,
        labels: Pairs::default(),
        past: [].into(),
        ..counter
    };
    sample("counter-new", new.key(), Record::Counter(new.into()));
    for (name, token) in [("lock", Some(303)), ("lock-waiting", None)] {
        let request = a_request(token);
        sample(name, request.key(), Record::Lock(request.into()));
    }
    for (name, status, measure, side) in [
        ("alarm", AlarmStatus::Raised, AlarmMeasure::Value, AlarmSide::Below),
        ("alarm-pending", AlarmStatus::Pending, AlarmMeasure::Rate { slots: 30 }, AlarmSide::Above),
        ("alarm-clear", AlarmStatus::Clear, AlarmMeasure::Rate { slots: 300 }, AlarmSide::Below),
    ] {
        let alarm = an_alarm(status, a_rule(measure, side));
        sample(name, alarm.key(), Record::Alarm(alarm.into()));
    }
    for class in CLASSES {
        let name = format!("removal-{class:?}").to_lowercase();
        let key = Key::Removal { namespace: "default".into(), class };
        sample(&name, key, Record::Removal(Removal { revision: 300 }));
    }

    let mut reply = |name: &str, result: Result<Reply, Refusal>| {
        let outcome = Outcome { revision: 12, duplicate: false, result };
        let stored = StoredReply { lowest_unacknowledged: 6, outcome };
        let key = Key::Reply { session: 7, sequence: 0x0102_0304_0506_0708 };
        sample(&format!("reply-{name}"), key, Record::Reply(stored.into()));
    };
    reply("published", Ok(Reply::ConfigPublished { version: 300, changed: true }));
    reply("config-deleted", Ok(Reply::ConfigDeleted { removed: true, version: 300 }));
    reply("schema-put", Ok(Reply::SchemaPut { changed: true, mod_revision: 300 }));
    reply("schema-deleted", Ok(Reply::SchemaDeleted { removed: true }));
    reply("gray-ended", Ok(Reply::GrayEnded { version: 300 }));
    for ending in [Ending::Promoted, Ending::Aborted, Ending::RolledBack] {
        let name = format!("gray-judged-{ending:?}").to_lowercase();
        reply(&name, Ok(Reply::GrayJudged { ending: Some(ending) }));
    }
    reply("gray-not-judged", Ok(Reply::GrayJudged { ending: None }));
    reply("reported", Ok(Reply::ConfigReported { changed: 2 }));
    let (value, mod_revision) = (-300, 300);
    reply("counter-changed", Ok(Reply::CounterChanged { value, changed: true, mod_revision }));
    reply("counter-deleted", Ok(Reply::CounterDeleted { removed: true }));
    reply("acquired", Ok(Reply::LockAcquired { token: 300 }));
    reply("queued", Ok(Reply::LockQueued { ticket: 300, ahead: 2 }));
    reply("released", Ok(Reply::LockReleased { released: true }));
    reply("lock-updated", Ok(Reply::LockUpdated { changed: true }));
    reply("alarm-put", Ok(Reply::AlarmPut { changed: true, mod_revision: 300 }));
    reply("alarm-deleted", Ok(Reply::AlarmDeleted { removed: true }));
    for status in [AlarmStatus::Clear, AlarmStatus::Pending, AlarmStatus::Raised] {
        let name = format!("alarm-judged-{status:?}").to_lowercase();
        reply(&name, Ok(Reply::AlarmJudged { status: Some(status) }));
    }
    reply("alarm-not-judged", Ok(Reply::AlarmJudged { status: None }));
    reply("post-noted", Ok(Reply::PostNoted { changed: true }));
    // A record in an answer has its number before it.
    let session =
        Session { id: 7, ttl_ms: 10_000, client: "web-1".into(), opened_at_ms: 1_650_000_000_000 };
    let namespace = Namespace {
        name: "default".into(),
        description: "ours".into(),
        create_revision: 1,
        mod_revision: 2,
    };
    let service = Service {
        namespace: "default".into(),
        name: "web".into(),
        protect_threshold_percent: 70,
        deregister_after_ms: 30_000,
        policy: String::new(),
        policy_parameters: Pairs::default(),
        metadata: Pairs::default(),
        create_revision: 4,
        mod_revision: 5,
        health_check: None,
    };
    let instance = super::records()
        .into_iter()
        .find_map(|(_, _, record)| matches!(record, Record::Instance(_)).then_some(record));
    let found = [
        Record::Namespace(namespace.into()),
        Record::Service(service.into()),
        instance.unwrap(),
        Record::Session(session.into()),
        Record::Config(a_config().into()),
        Record::Counter(a_counter().into()),
        Record::Lock(a_request(Some(303)).into()),
    ];
    let mut replies = vec![
        StepReply::Written(Reply::LockAcquired { token: 300 }),
        StepReply::Found(None),
        StepReply::Range { records: found[1..3].to_vec(), more: true },
    ];
    replies.extend(found.into_iter().map(|record| StepReply::Found(Some(record))));
    reply("txn", Ok(Reply::Txn { succeeded: true, replies }));
    let raised = an_alarm(AlarmStatus::Raised, a_rule(AlarmMeasure::Value, AlarmSide::Above));
    let records = vec![Record::Alarm(raised.into())];
    let replies = vec![StepReply::Range { records, more: false }];
    reply("txn-alarms", Ok(Reply::Txn { succeeded: true, replies }));

    let name = || "default/app/db".to_owned();
    for kind in [Kind::Config, Kind::Release, Kind::Gray, Kind::Counter, Kind::Lock, Kind::Alarm] {
        let sample = format!("not-found-{kind:?}").to_lowercase();
        reply(&sample, Err(Refusal::NotFound { kind, name: name() }));
    }
    reply("schema-changed", Err(Refusal::SchemaChanged { checked: 300, current: 301 }));
    reply("value-differs", Err(Refusal::ValueDiffers { expected: -300, current: 301 }));
    reply("out-of-bounds", Err(Refusal::OutOfBounds { value: -300, delta: 5, bound: i64::MAX }));
    reply("lock-held", Err(Refusal::LockHeld { owner: 300, token: 301 }));
    let refusal = Box::new(Refusal::CompareFailed { expected: 3, current: 4 });
    reply("in-step", Err(Refusal::InStep { step: 300, refusal }));
    all
}

/// What `check` lets through makes the greatest item, the greatest release of its history, the
/// greatest schema, counter, alarm, lock, report and answer: all can be stored, and read.
#[test]
fn the_greatest_records_fit() {
    let mut state = State::default();
    let mut at_ms = 1u64 << 62;
    let mut run = |op: Op, at_ms: u64| {
        let command = Command { request: None, op };
        command.check().unwrap();
        let bytes = command.encode().unwrap();
        let entry = Entry { term: 1, at_ms, commands: vec![&bytes] };
        let result = state.apply(&entry).outcomes.remove(0).result;
        (result.unwrap(), state.records().collect::<Vec<_>>())
    };
    let long = |letter: &str| format!("{letter}{}", "x".repeat(limits::NAME_BYTES - 1));
    let (name, said) = (
        ItemName { namespace: "default".into(), group: long("g"), key: long("k") },
        ("a".repeat(limits::TEXT_BYTES), "c".repeat(limits::COMMENT_BYTES)),
    );
    let most = limits::METADATA_TOTAL_BYTES / limits::METADATA_PAIRS;
    let labels: Pairs = (0..limits::METADATA_PAIRS)
        .map(|i| (format!("{i:0128}"), "v".repeat(most - 128)))
        .collect();
    let value = |bytes: usize, fill: u8| Content {
        format: Format::Binary,
        bytes: vec![fill; bytes].into(),
    };
    let publication = |content: Content| Publication {
        name: name.clone(),
        content,
        labels: Some(labels.clone()),
        keep: Some(1_000),
        author: said.0.clone(),
        comment: said.1.clone(),
        expected_version: None,
        schema: 0,
        gray: None,
    };
    let whole = publication(value(limits::CONFIG_VALUE_BYTES, 0));
    run(Op::PublishConfig(Box::new(whole)), at_ms);
    let metric_labels: Pairs = (0..limits::COUNTER_LABELS)
        .map(|i| (format!("l{i:0127}"), "v".repeat(limits::COUNTER_LABEL_BYTES)))
        .collect();
    let mut last = vec![];
    for rule in 0..limits::CONFIG_GRAYS {
        let clients = (0..limits::CONFIG_GRAY_CLIENTS).map(|i| format!("{i:0128}")).collect();
        let name = long("c");
        let measure = Measure::Counter { name, labels: metric_labels.clone(), base: 0 };
        let for_ms = *limits::CONFIG_GATE_MS.end();
        let gray = GrayTerms {
            rule: long(&rule.to_string()),
            priority: u32::MAX,
            picks: Picks::Clients(clients),
            gate: Some(Gate { measure, bound: u64::MAX, for_ms, promote: true }),
        };
        let content = value(limits::CONFIG_GRAY_BYTES / limits::CONFIG_GRAYS, rule as u8);
        let publication =
            Publication { labels: None, keep: None, gray: Some(gray), ..publication(content) };
        (_, last) = run(Op::PublishConfig(Box::new(publication)), at_ms);
    }
    let great = last.iter().map(|(_, record)| record.encode().len()).max().unwrap();
    assert!(great > 3 * 1024 * 1024, "the greatest item has {great} bytes");
    let schema = SchemaPut {
        name: ItemName { key: long("s"), ..name.clone() },
        text: "s".repeat(limits::SCHEMA_BYTES),
        checked_revision: 0,
    };
    run(Op::PutSchema(Box::new(schema)), at_ms);
    let (reply, _) =
        run(Op::OpenSession { ttl_ms: 1_000, client: "c".repeat(limits::TEXT_BYTES) }, at_ms);
    let Reply::SessionOpened { session, .. } = reply else { panic!() };
    let items = vec![Running { name: name.clone(), version: 9, rule: long("0") }];
    run(Op::ReportConfig { session, client: long("c"), items }, at_ms);
    let holder = Holder { session, name: long("h") };
    let claim = Claim {
        lock: LockName { namespace: "default".into(), lock: long("l") },
        holder,
        value: "v".repeat(limits::LOCK_VALUE_BYTES),
        wait: true,
    };
    run(Op::AcquireLock(Box::new(claim)), at_ms);
    let alarm = AlarmName { namespace: "default".into(), name: long("a") };
    let webhook = format!("https://{}", "w".repeat(limits::WEBHOOK_BYTES - "https://".len()));
    let rule = AlarmRule {
        counter: long("c"),
        labels: metric_labels.clone(),
        measure: AlarmMeasure::Value,
        side: AlarmSide::Below,
        bound_milli: i64::MAX,
        for_ms: *limits::ALARM_FOR_MS.start(),
        webhook: webhook.clone(),
        description: "d".repeat(limits::TEXT_BYTES),
    };
    let longer = Box::new(AlarmRule { webhook: format!("{webhook}w"), ..rule.clone() });
    let op = Op::PutAlarm { name: alarm.clone(), rule: longer };
    assert!(Command { request: None, op }.check().is_err());
    run(Op::PutAlarm { name: alarm.clone(), rule: Box::new(rule) }, at_ms);
    run(Op::JudgeAlarm { name: alarm.clone() }, at_ms);
    let error = "e".repeat(limits::TEXT_BYTES);
    run(Op::NotePost { name: alarm, transition: 1, error }, at_ms);
    // Every slot of the longest window.
    for _ in 0..2 * limits::COUNTER_SLOTS {
        at_ms += limits::COUNTER_SLOT_MS;
        let addition = Addition {
            name: CounterName {
                namespace: "default".into(),
                name: long("c"),
                labels: metric_labels.clone(),
            },
            kind: Some(CounterKind::Gauge),
            delta: i64::MAX / 200,
            floor: None,
            ceil: None,
        };
        (_, last) = run(Op::AddCounter(Box::new(addition)), at_ms);
    }
    for (key, record) in &last {
        let bytes = record.encode();
        assert!(bytes.len() <= limits::RECORD_BYTES, "{} bytes under {key:?}", bytes.len());
        assert_eq!(Record::decode(key, &bytes), Ok(record.clone()));
    }
    let slots = last.iter().find_map(|(_, record)| match record {
        Record::Counter(counter) => Some(counter.past.len() as u64),
        _ => None,
    });
    assert_eq!(slots, Some(limits::COUNTER_SLOTS - 1));
}

/// An answer that is as long as it may be is stored for exactly-once; a longer one is refused.
#[test]
fn the_greatest_answer_is_stored() {
    let key = |key: &str| ItemName { key: key.into(), ..item() };
    let publish = |name: &str, bytes: usize| {
        Op::PublishConfig(Box::new(Publication {
            name: key(name),
            content: Content { format: Format::Text, bytes: vec![b'x'; bytes].into() },
            labels: None,
            keep: None,
            author: String::new(),
            comment: String::new(),
            expected_version: None,
            schema: 0,
            gray: None,
        }))
    };
    let both = || {
        let get = |name: &str| Step::Get(RecordName::Config(key(name)));
        let (when, otherwise) = Default::default();
        Op::Txn(Box::new(Txn { when, then: vec![get("a"), get("b")], otherwise }))
    };
    let (mut room, mut stored) = (0, 0);
    for spare in [200, 0, 1] {
        let mut state = State::default();
        let mut run = |request: Option<RequestId>, op: Op| {
            let command = Command { request, op };
            command.check().unwrap();
            let bytes = command.encode().unwrap();
            let applied = state.apply(&Entry { term: 1, at_ms: 1, commands: vec![&bytes] });
            for change in applied.events.iter().flat_map(|event| &event.changes) {
                let Some(record) = &change.record else { continue };
                let bytes = record.encode();
                assert_eq!(Record::decode(&change.key, &bytes), Ok(record.clone()));
                if matches!(record, Record::Reply(_)) {
                    stored = bytes.len();
                }
            }
            applied.outcomes.into_iter().next().unwrap().result
        };
        run(None, Op::OpenSession { ttl_ms: 1_000, client: String::new() }).unwrap();
        run(None, publish("a", limits::CONFIG_VALUE_BYTES)).unwrap();
        let rest = match spare {
            200 => limits::CONFIG_VALUE_BYTES - 300,
            spare => limits::CONFIG_VALUE_BYTES - 300 + room + spare,
        };
        run(None, publish("b", rest)).unwrap();
        let request = Some(RequestId { session: 1, sequence: 1, lowest_unacknowledged: 1 });
        let result = run(request, both());
        match (spare, result) {
            (200, Ok(reply)) => {
                let bytes = super::super::table::coding(usize::MAX >> 1).serialized_size(&reply);
                room = limits::TXN_REPLY_BYTES - bytes.unwrap() as usize;
            }
            (0, Ok(_)) => assert!(stored > limits::TXN_REPLY_BYTES, "{stored}"),
            (1, Err(Refusal::LimitReached { allowed, .. })) => {
                assert_eq!(allowed, limits::TXN_REPLY_BYTES as u64);
            }
            (spare, other) => panic!("{spare}: {}", other.is_ok()),
        }
    }
}
