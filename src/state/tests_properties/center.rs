//! Sketches of configuration, counters, alarms, locks and transactions. There are few names of each, so that
//! commands meet.

use super::*;

#[derive(Debug, Clone)]
pub(super) enum Center {
    Publish {
        publication: Publication,
        expect: Expect,
        stale: bool,
    },
    Delete {
        deletion: ConfigDeletion,
        expect: Expect,
    },
    Rollback {
        rollback: ConfigRollback,
        expect: Expect,
        stale: bool,
    },
    PutSchema {
        schema: SchemaPut,
        stale: bool,
    },
    DeleteSchema(ItemName),
    /// One of those that run.
    EndGray {
        which: usize,
        promote: bool,
        expect: Expect,
        stale: bool,
    },
    EndNoGray(ItemName),
    Judge {
        which: usize,
        stale: bool,
    },
    Report {
        session: Pick,
        client: String,
        items: Vec<(ItemName, usize)>,
    },
    Add(Addition),
    Set {
        setting: Setting,
        expect: Expect,
    },
    Reset {
        name: CounterName,
        expect: Expect,
    },
    DeleteCounter(CounterName),
    Acquire {
        lock: LockName,
        session: Pick,
        holder: String,
        value: String,
        wait: bool,
    },
    /// None = by the token, or with a holder by the ticket.
    Release {
        lock: LockName,
        by: Option<Pick>,
        holder: String,
        expect: Expect,
    },
    PutAlarm {
        name: AlarmName,
        rule: AlarmRule,
        /// The rule that it has, if there is one.
        again: bool,
    },
    DeleteAlarm(AlarmName),
    JudgeAlarm(AlarmName),
    /// One of those that are due.
    JudgeDue(usize),
    NotePost {
        name: AlarmName,
        transition: u64,
        error: String,
    },
    /// The last transition of one of those that were not told of it.
    NoteUntold {
        which: usize,
        error: String,
    },
    /// None = whoever holds it.
    UpdateLock {
        lock: LockName,
        by: Option<Pick>,
        value: String,
    },
    Txn {
        when: Vec<Question>,
        then: Vec<Act>,
        otherwise: Vec<Act>,
    },
}

/// A compare, which becomes one of several by `kind`.
#[derive(Debug, Clone)]
pub(super) struct Question {
    kind: u8,
    record: Named,
    item: ItemName,
    counter: CounterName,
    instance: InstanceName,
    lock: LockName,
    scope: Scope,
    is: Relation,
    /// From the value that holds.
    off: i64,
}

#[derive(Debug, Clone)]
pub(super) enum Named {
    Record(RecordName),
    Session(Pick),
}

#[derive(Debug, Clone)]
pub(super) enum Act {
    Write(Box<OpSketch>),
    Get(Named),
    Range { scope: Scope, limit: u64 },
}

pub(super) const GROUPS: [&str; 2] = ["g", "h"];
pub(super) const KEYS: [&str; 2] = ["a", "ab"];
pub(super) const COUNTERS: [&str; 2] = ["c", "cd"];
pub(super) const LOCKS: [&str; 2] = ["l", "m"];
pub(super) const ALARMS: [&str; 2] = ["x", "y"];

/// Half of the time the one that all others are about, too.
pub(super) fn item() -> impl Strategy<Value = ItemName> {
    let name = |(namespace, group, key): (String, &str, &str)| ItemName {
        namespace,
        group: group.into(),
        key: key.into(),
    };
    prop_oneof![
        1 => Just(("default".to_owned(), GROUPS[0], KEYS[0])).prop_map(name),
        1 => (namespace(), select(GROUPS.to_vec()), select(KEYS.to_vec())).prop_map(name),
    ]
}

pub(super) fn counter() -> impl Strategy<Value = CounterName> {
    let name = |(namespace, name, labels)| CounterName { namespace, name, labels };
    prop_oneof![
        1 => Just(("default".to_owned(), "c".to_owned(), Pairs::default())).prop_map(name),
        1 => (namespace(), text(&["c", "cd"]), metadata()).prop_map(name),
    ]
}

pub(super) fn lock() -> impl Strategy<Value = LockName> {
    let name = |(namespace, lock)| LockName { namespace, lock };
    prop_oneof![
        1 => Just(("default".to_owned(), "l".to_owned())).prop_map(name),
        1 => (namespace(), text(&["l", "m"])).prop_map(name),
    ]
}

fn stale() -> impl Strategy<Value = bool> {
    proptest::bool::weighted(0.1)
}

fn content() -> impl Strategy<Value = Content> {
    let format = prop_oneof![4 => Just(Format::Text), 1 => Just(Format::Json)];
    (format, text(&["1", "2", "3"]))
        .prop_map(|(format, text)| Content { format, bytes: text.into_bytes().into() })
}

fn gray() -> BoxedStrategy<GrayTerms> {
    let picks = prop_oneof![
        metadata().prop_map(Picks::Labels),
        Just(Picks::Clients(vec!["c1".into(), "c2".into()])),
        (0..=10_000u32).prop_map(|basis_points| Picks::Share { basis_points }),
    ];
    let measure = prop_oneof![
        (text(&["c", "cd"]), metadata()).prop_map(|(name, labels)| Measure::Counter {
            name,
            labels,
            base: -1
        }),
        Just(Measure::Unhealthy),
    ];
    let gate = (
        measure,
        select(vec![0u64, 0, 1, 50]),
        select(vec![1_000u64, 20_000, 100_000]),
        any::<bool>(),
    )
        .prop_map(|(measure, bound, for_ms, promote)| Gate { measure, bound, for_ms, promote });
    (text(&["r", "r", "s"]), 0..2u32, picks, proptest::option::weighted(0.7, gate))
        .prop_map(|(rule, priority, picks, gate)| GrayTerms { rule, priority, picks, gate })
        .boxed()
}

fn publish() -> BoxedStrategy<Center> {
    let fields = (
        item(),
        content(),
        proptest::option::weighted(0.2, metadata()),
        proptest::option::weighted(0.2, 1..4u32),
        proptest::option::weighted(0.4, gray()),
        proptest::bool::weighted(0.95),
        expect(),
        stale(),
    );
    fields
        .prop_map(|(name, content, labels, keep, gray, sensible, expect, stale)| {
            let plain = gray.is_none() || !sensible;
            let publication = Publication {
                name,
                content,
                labels: labels.filter(|_| plain),
                keep: keep.filter(|_| plain),
                author: "ann".into(),
                comment: "said".into(),
                expected_version: None,
                schema: 0,
                gray,
            };
            Center::Publish { publication, expect, stale }
        })
        .boxed()
}

fn delete(purges: bool) -> BoxedStrategy<Center> {
    let purge = proptest::bool::weighted(if purges { 0.3 } else { 0.05 });
    (item(), purge, expect())
        .prop_map(|(name, purge, expect)| {
            let (author, comment) = ("ben".into(), String::new());
            let deletion = ConfigDeletion { name, expected_version: None, author, comment, purge };
            Center::Delete { deletion, expect }
        })
        .boxed()
}

fn rollback() -> BoxedStrategy<Center> {
    (item(), 0..8u64, expect(), stale())
        .prop_map(|(name, version, expect, stale)| {
            let (author, comment) = ("cid".into(), "back".into());
            let rollback = ConfigRollback {
                name,
                version,
                expected_version: None,
                author,
                comment,
                schema: 0,
            };
            Center::Rollback { rollback, expect, stale }
        })
        .boxed()
}

fn end_gray() -> BoxedStrategy<Center> {
    (0..4usize, any::<bool>(), expect(), stale())
        .prop_map(|(which, promote, expect, stale)| Center::EndGray {
            which,
            promote,
            expect,
            stale,
        })
        .boxed()
}

fn add() -> BoxedStrategy<Center> {
    let kind = proptest::option::weighted(0.2, kind());
    let delta = prop_oneof![12 => -2..6i64, 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
    let bound = || proptest::option::weighted(0.2, -2..8i64);
    (counter(), kind, delta, bound(), bound())
        .prop_map(|(name, kind, delta, floor, ceil)| {
            Center::Add(Addition { name, kind, delta, floor, ceil })
        })
        .boxed()
}

fn set() -> BoxedStrategy<Center> {
    let kind = proptest::option::weighted(0.2, kind());
    let value = prop_oneof![12 => -2..8i64, 1 => Just(i64::MAX), 1 => Just(i64::MIN)];
    (counter(), kind, value, expect())
        .prop_map(|(name, kind, value, expect)| {
            let setting = Setting { name, kind, value, expected: None };
            Center::Set { setting, expect }
        })
        .boxed()
}

fn kind() -> impl Strategy<Value = CounterKind> {
    select(vec![CounterKind::Counter, CounterKind::Gauge])
}

fn acquire(waits: f64) -> BoxedStrategy<Center> {
    (lock(), pick(), text(&["", "h"]), text(&["", "v"]), proptest::bool::weighted(waits))
        .prop_map(|(lock, session, holder, value, wait)| Center::Acquire {
            lock,
            session,
            holder,
            value,
            wait,
        })
        .boxed()
}

fn release() -> BoxedStrategy<Center> {
    (lock(), proptest::option::of(pick()), text(&["", "h"]), expect())
        .prop_map(|(lock, by, holder, expect)| Center::Release { lock, by, holder, expect })
        .boxed()
}

fn update_lock() -> BoxedStrategy<Center> {
    (lock(), proptest::option::weighted(0.2, pick()), text(&["", "v", "w"]))
        .prop_map(|(lock, by, value)| Center::UpdateLock { lock, by, value })
        .boxed()
}

fn reset() -> BoxedStrategy<Center> {
    (counter(), expect()).prop_map(|(name, expect)| Center::Reset { name, expect }).boxed()
}

fn alarm() -> BoxedStrategy<Center> {
    let name = || {
        (namespace(), text(&["x", "x", "y"]))
            .prop_map(|(namespace, name)| AlarmName { namespace, name })
    };
    let measure = select(vec![
        AlarmMeasure::Value,
        AlarmMeasure::Rate { slots: 1 },
        AlarmMeasure::Rate { slots: 6 },
    ]);
    let side = select(vec![AlarmSide::Above, AlarmSide::Below]);
    let bound_milli = select(vec![0i64, 1_000]);
    let (for_ms, webhook) = (select(vec![0u64, 5_000]), text(&["", "http://h"]));
    let labels = prop_oneof![2 => Just(Pairs::default()), 1 => metadata()];
    let rule = (labels, measure, side, bound_milli, for_ms, webhook).prop_map(
        |(labels, measure, side, bound_milli, for_ms, webhook)| AlarmRule {
            counter: "c".into(),
            labels,
            measure,
            side,
            bound_milli,
            for_ms,
            webhook,
            description: String::new(),
        },
    );
    prop_oneof![
        6 => (name(), rule, proptest::bool::weighted(0.2))
            .prop_map(|(name, rule, again)| Center::PutAlarm { name, rule, again }),
        1 => name().prop_map(Center::DeleteAlarm),
        2 => name().prop_map(Center::JudgeAlarm),
        9 => (0..3usize).prop_map(Center::JudgeDue),
        4 => (0..3usize, text(&["", "no answer"]))
            .prop_map(|(which, error)| Center::NoteUntold { which, error }),
        2 => (name(), 0..3u64, text(&["", "no answer"])).prop_map(|(name, transition, error)| {
            Center::NotePost { name, transition, error }
        }),
    ]
    .boxed()
}

pub(super) fn center() -> BoxedStrategy<Center> {
    prop_oneof![
        16 => publish(),
        3 => delete(true),
        4 => rollback(),
        3 => (item(), text(&["{}", "{}", "[]"]), stale()).prop_map(|(name, text, stale)| {
            Center::PutSchema { schema: SchemaPut { name, text, checked_revision: 0 }, stale }
        }),
        2 => item().prop_map(Center::DeleteSchema),
        4 => end_gray(),
        1 => item().prop_map(Center::EndNoGray),
        8 => (0..4usize, stale()).prop_map(|(which, stale)| Center::Judge { which, stale }),
        8 => (pick(), text(&["c1", "c2"]), vec((item(), 0..3usize), 1..3))
            .prop_map(|(session, client, items)| Center::Report { session, client, items }),
        10 => add(),
        3 => set(),
        2 => reset(),
        2 => counter().prop_map(Center::DeleteCounter),
        8 => acquire(0.7),
        4 => release(),
        2 => update_lock(),
        14 => alarm(),
        24 => txn(),
    ]
    .boxed()
}

/// What a transaction may write, and now and then what it may not.
fn write() -> BoxedStrategy<OpSketch> {
    let own = prop_oneof![
        6 => publish(),
        3 => delete(false),
        3 => rollback(),
        6 => add(),
        2 => set(),
        1 => reset(),
        2 => counter().prop_map(Center::DeleteCounter),
        4 => acquire(0.02),
        4 => release(),
        1 => update_lock(),
    ];
    prop_oneof![
        60 => own.prop_map(OpSketch::Center),
        10 => registration(),
        6 => (instance(), expect())
            .prop_map(|(name, expect)| OpSketch::Deregister { name, expect }),
        5 => update(),
        4 => put_service(),
        3 => (namespace(), service())
            .prop_map(|(namespace, name)| OpSketch::DeleteService { namespace, name }),
        1 => Just(OpSketch::ReapOrphans),
        1 => Just(OpSketch::Open { ttl_ms: 1_000 }),
    ]
    .boxed()
}

pub(super) fn scope() -> BoxedStrategy<Scope> {
    let class = select(CLASSES.to_vec());
    let first = prop_oneof![
        3 => Just(Match::Any),
        1 => text(&["a", "g", "c", "l"]).prop_map(Match::Exact),
        1 => text(&["", "a", "c", "h"]).prop_map(Match::Prefix),
    ];
    let second = prop_oneof![
        3 => Just(Match::Any),
        1 => text(&["a", "ab"]).prop_map(Match::Exact),
        1 => text(&["a", "ab"]).prop_map(Match::Prefix),
    ];
    (class, namespace(), first, second)
        .prop_map(|(class, namespace, first, second)| {
            let second = if class == Class::Config { second } else { Match::Any };
            Scope { class, namespace, first, second }
        })
        .boxed()
}

fn named() -> BoxedStrategy<Named> {
    prop_oneof![
        1 => namespace().prop_map(|name| Named::Record(RecordName::Namespace { name })),
        1 => (namespace(), service()).prop_map(|(namespace, name)| Named::Record(
            RecordName::Service { namespace, name }
        )),
        2 => instance().prop_map(|name| Named::Record(RecordName::Instance(name))),
        2 => item().prop_map(|name| Named::Record(RecordName::Config(name))),
        2 => counter().prop_map(|name| Named::Record(RecordName::Counter(name))),
        2 => lock().prop_map(|name| Named::Record(RecordName::Lock(name))),
        1 => pick().prop_map(Named::Session),
    ]
    .boxed()
}

pub(super) fn question() -> BoxedStrategy<Question> {
    let relation = prop_oneof![
        6 => Just(Relation::Equal),
        1 => Just(Relation::NotEqual),
        1 => Just(Relation::Less),
        1 => Just(Relation::Greater),
    ];
    let off = prop_oneof![8 => Just(0i64), 1 => Just(-1), 1 => Just(1), 2 => -20..0i64];
    let fields = (0..9u8, named(), item(), counter(), instance(), lock(), scope(), relation, off);
    fields
        .prop_map(|(kind, record, item, counter, instance, lock, scope, is, off)| Question {
            kind,
            record,
            item,
            counter,
            instance,
            lock,
            scope,
            is,
            off,
        })
        .boxed()
}

pub(super) fn act() -> BoxedStrategy<Act> {
    prop_oneof![
        8 => write().prop_map(|op| Act::Write(Box::new(op))),
        1 => named().prop_map(Act::Get),
        1 => (scope(), 1..4u64).prop_map(|(scope, limit)| Act::Range { scope, limit }),
    ]
    .boxed()
}

pub(super) fn txn() -> BoxedStrategy<Center> {
    let fields =
        (vec(question(), 0..3), vec(act(), 0..6), vec(act(), 0..3), proptest::bool::weighted(0.5));
    fields
        .prop_map(|(when, mut then, otherwise, entangled)| {
            if entangled {
                // All of a kind at one name.
                for act in &mut then {
                    act.aim();
                }
            }
            Center::Txn { when, then, otherwise }
        })
        .boxed()
}

fn name_of_alarm(alarm: &Alarm) -> AlarmName {
    AlarmName { namespace: alarm.namespace.to_string(), name: alarm.name.to_string() }
}

fn no_alarm() -> AlarmName {
    AlarmName { namespace: "default".into(), name: "none".into() }
}

/// An item that everybody has, and one that some have.
pub(super) fn published() -> OpSketch {
    plain("1", None)
}

pub(super) fn published_gray() -> OpSketch {
    let gate = Gate { measure: Measure::Unhealthy, bound: 50, for_ms: 20_000, promote: true };
    let picks = Picks::Share { basis_points: 5_000 };
    plain("2", Some(GrayTerms { rule: "r".into(), priority: 0, picks, gate: Some(gate) }))
}

/// One that a counter that all are about crosses to and fro, and one that time alone brings back.
pub(super) fn an_alarm() -> OpSketch {
    alarm_of("x", AlarmMeasure::Value)
}

pub(super) fn another_alarm() -> OpSketch {
    alarm_of("y", AlarmMeasure::Rate { slots: 1 })
}

fn alarm_of(name: &str, measure: AlarmMeasure) -> OpSketch {
    let rule = AlarmRule {
        counter: "c".into(),
        labels: Pairs::default(),
        measure,
        side: AlarmSide::Above,
        bound_milli: 0,
        for_ms: 0,
        webhook: "http://h".into(),
        description: String::new(),
    };
    let name = AlarmName { namespace: "default".into(), name: name.into() };
    OpSketch::Center(Center::PutAlarm { name, rule, again: false })
}

pub(super) fn plain(content: &str, gray: Option<GrayTerms>) -> OpSketch {
    let [namespace, group, key] = ["default", "g", "a"].map(str::to_owned);
    let bytes = content.as_bytes().into();
    let publication = Publication {
        name: ItemName { namespace, group, key },
        content: Content { format: Format::Text, bytes },
        labels: None,
        keep: None,
        author: "ann".into(),
        comment: String::new(),
        expected_version: None,
        schema: 0,
        gray,
    };
    OpSketch::Center(Center::Publish { publication, expect: Expect::Any, stale: false })
}

impl Act {
    fn aim(&mut self) {
        let text = |text: &str| text.to_owned();
        let at_item = || ItemName { namespace: text("default"), group: text("g"), key: text("a") };
        let at_counter = || CounterName {
            namespace: text("default"),
            name: text("c"),
            labels: Pairs::default(),
        };
        let at_lock = || LockName { namespace: text("default"), lock: text("l") };
        let at_instance =
            || InstanceName { namespace: text("default"), service: text("a"), id: text("x") };
        let Act::Write(op) = self else { return };
        match &mut **op {
            OpSketch::Register { registration, .. } => registration.name = at_instance(),
            OpSketch::Deregister { name, .. } => *name = at_instance(),
            OpSketch::Update { patch, .. } => patch.name = at_instance(),
            OpSketch::Center(center) => match center {
                Center::Publish { publication, .. } => publication.name = at_item(),
                Center::Delete { deletion, .. } => deletion.name = at_item(),
                Center::Rollback { rollback, .. } => rollback.name = at_item(),
                Center::Add(addition) => addition.name = at_counter(),
                Center::Set { setting, .. } => setting.name = at_counter(),
                Center::Reset { name, .. } | Center::DeleteCounter(name) => *name = at_counter(),
                Center::Acquire { lock, .. }
                | Center::Release { lock, .. }
                | Center::UpdateLock { lock, .. } => *lock = at_lock(),
                _ => {}
            },
            _ => {}
        }
    }

    pub fn fill_in(self, ground: &Ground<'_>) -> Step {
        match self {
            Act::Write(op) => Step::Write(op.fill_in(ground)),
            Act::Get(name) => Step::Get(name.fill_in(ground)),
            Act::Range { scope, limit } => Step::Range { scope, limit },
        }
    }
}

impl Named {
    fn fill_in(self, ground: &Ground<'_>) -> RecordName {
        match self {
            Named::Record(name) => name,
            Named::Session(pick) => RecordName::Session { id: ground.session(pick) },
        }
    }
}

impl Question {
    pub fn fill_in(self, ground: &Ground<'_>) -> Compare {
        let Question { kind, record, item, counter, instance, lock, scope, is, off } = self;
        let model = ground.model;
        let near = |value: u64| value.saturating_add_signed(off);
        let record = record.fill_in(ground);
        let found = model.find(&record);
        match kind {
            0 => Compare::Exists { record, exists: found.is_some() == (off == 0) },
            1 => {
                let than = near(found.map_or(0, |record| record.create_revision()));
                Compare::CreateRevision { record, is, than }
            }
            2 => {
                let than = near(found.map_or(0, |record| record.mod_revision()));
                Compare::ModRevision { record, is, than }
            }
            3 => {
                let than = near(model.shown(&item));
                Compare::Version { item, is, than }
            }
            4 => {
                let to = ["1", "2"][off.unsigned_abs() as usize % 2].to_owned();
                Compare::Content { item, equal: is == Relation::Equal, to: to.into_bytes().into() }
            }
            5 => {
                let than = model.value(&counter).saturating_add(off);
                Compare::Counter { counter, is, than }
            }
            6 => {
                let equal = is == Relation::Equal;
                Compare::Health { instance, equal, to: Health::Passing }
            }
            7 => {
                let than = near(model.token(&lock));
                Compare::Token { lock, is, than }
            }
            _ => Compare::Unchanged { scope, since: near(model.revision) },
        }
    }
}

impl Center {
    pub fn fill_in(self, ground: &Ground<'_>) -> Op {
        let model = ground.model;
        let schema = |name: &ItemName, stale: bool| model.schema_revision(name) + u64::from(stale);
        let gray = |which: usize| {
            let all = model.items.iter().flat_map(|item| {
                item.gray.iter().map(move |gray| (name_of_item(item), gray.clone()))
            });
            all.collect::<Vec<_>>().into_iter().cycle().nth(which)
        };
        let nowhere = || ItemName { namespace: "n".into(), group: "x".into(), key: "x".into() };
        match self {
            Center::Publish { mut publication, expect, stale } => {
                let name = &publication.name;
                publication.expected_version = ground.revision(expect, model.shown(name));
                publication.schema = schema(name, stale);
                Op::PublishConfig(Box::new(publication))
            }
            Center::Delete { mut deletion, expect } => {
                deletion.expected_version = ground.revision(expect, model.shown(&deletion.name));
                Op::DeleteConfig(Box::new(deletion))
            }
            Center::Rollback { mut rollback, expect, stale } => {
                let name = &rollback.name;
                rollback.expected_version = ground.revision(expect, model.shown(name));
                rollback.schema = schema(name, stale);
                // Counted from the newest one.
                let newest = model.item(name).map_or(0, |item| item.last_version);
                rollback.version = newest.saturating_sub(rollback.version);
                Op::RollbackConfig(Box::new(rollback))
            }
            Center::PutSchema { schema: mut put, stale } => {
                let current = model.item(&put.name).map_or(0, |item| item.current.revision);
                put.checked_revision = current.saturating_sub(u64::from(stale));
                Op::PutSchema(Box::new(put))
            }
            Center::DeleteSchema(name) => Op::DeleteSchema { name },
            Center::EndGray { which, promote, expect, stale } => {
                let (name, rule, version) = match gray(which) {
                    Some((name, gray)) => (name, gray.rule.to_string(), gray.release.version),
                    None => (nowhere(), "r".into(), 1),
                };
                Op::EndGray(Box::new(GrayDecision {
                    schema: schema(&name, stale),
                    name,
                    rule,
                    version: ground.revision(expect, version),
                    promote,
                    author: "dan".into(),
                    comment: "enough".into(),
                }))
            }
            Center::EndNoGray(name) => Op::EndGray(Box::new(GrayDecision {
                name,
                rule: "none".into(),
                version: None,
                promote: false,
                author: String::new(),
                comment: String::new(),
                schema: 0,
            })),
            Center::Judge { which, stale } => {
                // One whose gate asks for something, if there is one; or any.
                let due = model.items.iter().flat_map(|item| {
                    let due = |gray: &&std::sync::Arc<Gray>| {
                        model.verdict(item, gray, model.now_ms).is_some()
                    };
                    item.gray.iter().filter(due).map(move |gray| (name_of_item(item), gray.clone()))
                });
                let due = due.collect::<Vec<_>>().into_iter().nth(which);
                let (name, rule) = match due.or_else(|| gray(which)) {
                    Some((name, gray)) => (name, gray.rule.to_string()),
                    None => (nowhere(), "r".into()),
                };
                let schema = schema(&name, stale);
                Op::JudgeGray { name, rule, schema }
            }
            Center::Report { session, client, items } => {
                let items = items.into_iter().map(|(name, which)| {
                    let item = model.item(&name);
                    let gray = item.and_then(|item| item.gray.get(which));
                    let version = item.map_or(0, |item| item.current.version);
                    let version = gray.map_or(version, |gray| gray.release.version);
                    let rule = gray.map_or(String::new(), |gray| gray.rule.to_string());
                    Running { name, version: version + u64::from(which == 2), rule }
                });
                let session = ground.session(session);
                Op::ReportConfig { session, client, items: items.collect() }
            }
            Center::Add(addition) => Op::AddCounter(Box::new(addition)),
            Center::Set { mut setting, expect } => {
                setting.expected = ground.value(expect, model.value(&setting.name));
                Op::SetCounter(Box::new(setting))
            }
            Center::Reset { name, expect } => {
                let expected = ground.value(expect, model.value(&name));
                Op::ResetCounter { name, expected }
            }
            Center::DeleteCounter(name) => Op::DeleteCounter { name },
            Center::Acquire { lock, session, holder, value, wait } => {
                let holder = Holder { session: ground.session(session), name: holder };
                Op::AcquireLock(Box::new(Claim { lock, holder, value, wait }))
            }
            Center::Release { lock, by, holder, expect } => {
                let token = ground.revision(expect, model.token(&lock));
                let by = match by {
                    Some(pick) => {
                        Leaving::Holder(Holder { session: ground.session(pick), name: holder })
                    }
                    None if holder.is_empty() => {
                        Leaving::Token(token.unwrap_or(model.token(&lock)))
                    }
                    None => Leaving::Place(token.unwrap_or(model.ticket(&lock))),
                };
                Op::ReleaseLock { lock, by }
            }
            Center::UpdateLock { lock, by, value } => {
                let line = model.line(&lock.namespace, &lock.lock);
                let first = line.first().map(|r| (r.session, r.holder.clone()));
                let (session, name) = match (by, first) {
                    (None, Some(first)) => first,
                    (by, _) => (ground.session(by.unwrap_or(Pick::Unknown)), String::new()),
                };
                Op::UpdateLock { lock, holder: Holder { session, name }, value }
            }
            Center::PutAlarm { name, rule, again } => {
                let known = |alarm: &Alarm| name_of_alarm(alarm) == name;
                let known = model.alarms.iter().find(|alarm| again && known(alarm));
                let rule = known.map_or(rule, |alarm| alarm.rule.clone());
                Op::PutAlarm { name, rule: Box::new(rule) }
            }
            Center::DeleteAlarm(name) => Op::DeleteAlarm { name },
            Center::JudgeAlarm(name) => Op::JudgeAlarm { name },
            Center::JudgeDue(which) => {
                let due = model.due_alarms(model.now_ms).into_iter().cycle().nth(which);
                Op::JudgeAlarm { name: due.map_or_else(no_alarm, name_of_alarm) }
            }
            Center::NoteUntold { which, error } => {
                let untold = model.untold_alarms().into_iter().cycle().nth(which);
                let transition = untold.map_or(1, |alarm| alarm.transitions);
                let name = untold.map_or_else(no_alarm, name_of_alarm);
                Op::NotePost { name, transition, error }
            }
            Center::NotePost { name, transition, error } => {
                Op::NotePost { name, transition, error }
            }
            Center::Txn { when, then, otherwise } => Op::Txn(Box::new(Txn {
                when: when.into_iter().map(|question| question.fill_in(ground)).collect(),
                then: then.into_iter().map(|act| act.fill_in(ground)).collect(),
                otherwise: otherwise.into_iter().map(|act| act.fill_in(ground)).collect(),
            })),
        }
    }
}
