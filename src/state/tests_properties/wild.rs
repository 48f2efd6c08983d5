//! Wild input: few of everything, so that commands meet, and none of it within the limits.

use super::*;

pub(super) fn wild_text() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => text(&["default", "", "a", "a\0", "a\0b", "\u{10FFFF}"]),
        1 => any::<String>(),
    ]
}

pub(super) fn wild_number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..6u64, 1 => any::<u64>(), 1 => Just(u64::MAX)]
}

fn wild_pairs() -> impl Strategy<Value = Pairs> {
    vec((wild_text(), wild_text()), 0..3).prop_map(Pairs::from)
}

fn wild_name() -> impl Strategy<Value = InstanceName> {
    (wild_text(), wild_text(), wild_text()).prop_map(|(namespace, service, id)| InstanceName {
        namespace,
        service,
        id,
    })
}

fn wild_check() -> impl Strategy<Value = HealthCheck> {
    let statuses = (any::<u16>(), any::<u16>());
    let probe = prop_oneof![
        Just(Probe::Tcp),
        (wild_text(), wild_text(), statuses).prop_map(|(path, host, statuses)| Probe::Http {
            path,
            host,
            statuses
        }),
        wild_text().prop_map(|service| Probe::Grpc { service }),
    ];
    let numbers = (wild_number(), wild_number(), any::<u32>(), any::<u32>());
    (probe, wild_text(), numbers).prop_map(|(probe, endpoint, numbers)| {
        let (interval_ms, timeout_ms, failures, successes) = numbers;
        HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes }
    })
}

fn wild_verdict() -> impl Strategy<Value = HealthVerdict> {
    let revisions = (wild_number(), wild_number());
    (wild_name(), revisions, health(), wild_text()).prop_map(|(name, revisions, health, reason)| {
        let (mod_revision, settings_revision) = revisions;
        HealthVerdict { name, mod_revision, settings_revision, health, reason }
    })
}

fn wild_registry() -> BoxedStrategy<Op> {
    let endpoint = (wild_text(), wild_text(), any::<u16>())
        .prop_map(|(name, host, port)| Endpoint { name, host, port });
    let register = (
        (
            wild_name(),
            vec(endpoint, 0..3).prop_map(Endpoints::from),
            any::<u32>(),
            wild_text(),
            wild_pairs(),
        ),
        (health(), admin(), wild_text(), wild_text(), proptest::option::of(wild_number())),
    )
        .prop_map(|(a, b)| {
            let (
                (name, endpoints, weight, zone, metadata),
                (health, admin, reason, hash_key, session),
            ) = (a, b);
            Op::Register(Box::new(Registration {
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
            }))
        });
    let update = (
        wild_name(),
        (any::<Option<u32>>(), proptest::option::of(admin()), proptest::option::of(health())),
        wild_text(),
        proptest::option::of(wild_pairs()),
        proptest::option::of(wild_number()),
    )
        .prop_map(
            |(name, (weight, admin, health), reason, metadata, expected_mod_revision)| {
                Op::UpdateInstance(Box::new(InstancePatch {
                    name,
                    weight,
                    admin,
                    health,
                    reason,
                    metadata,
                    expected_mod_revision,
                }))
            },
        );
    let put_service = (
        (wild_text(), wild_text(), any::<u32>(), wild_number(), wild_text()),
        (
            wild_pairs(),
            wild_pairs(),
            proptest::option::of(wild_number()),
            proptest::option::of(wild_check()),
        ),
    )
        .prop_map(|(a, b)| {
            let (namespace, name, protect_threshold_percent, deregister_after_ms, policy) = a;
            let (policy_parameters, metadata, expected_mod_revision, health_check) = b;
            Op::PutService(Box::new(ServiceSettings {
                namespace,
                name,
                protect_threshold_percent,
                deregister_after_ms,
                policy,
                policy_parameters,
                metadata,
                expected_mod_revision,
                health_check,
            }))
        });
    prop_oneof![
        4 => (wild_number(), wild_text())
            .prop_map(|(ttl_ms, client)| Op::OpenSession { ttl_ms, client }),
        1 => wild_number().prop_map(|session| Op::CloseSession { session }),
        2 => (wild_number(), vec(wild_number(), 0..4))
            .prop_map(|(term, sessions)| Op::ExpireSessions { term, sessions }),
        1 => vec(wild_name(), 0..4).prop_map(|instances| Op::Reap { instances }),
        1 => vec(wild_verdict(), 0..4).prop_map(|verdicts| Op::JudgeHealth { verdicts }),
        8 => register.boxed(),
        2 => (wild_name(), proptest::option::of(wild_number())).prop_map(
            |(name, expected_mod_revision)| Op::Deregister { name, expected_mod_revision }
        ),
        4 => update.boxed(),
        2 => put_service.boxed(),
        1 => (wild_text(), wild_text())
            .prop_map(|(namespace, name)| Op::DeleteService { namespace, name }),
        3 => (wild_text(), wild_text())
            .prop_map(|(name, description)| Op::PutNamespace { name, description }),
        1 => wild_text().prop_map(|name| Op::DeleteNamespace { name }),
        2 => (wild_number(), any::<Option<u128>>())
            .prop_map(|(node, store)| Op::AdmitMember { node, store }),
        1 => wild_number().prop_map(|node| Op::RetireMember { node }),
    ]
    .boxed()
}

fn wild_option<S: Strategy>(of: S) -> impl Strategy<Value = Option<S::Value>> {
    proptest::option::of(of)
}

fn wild_item() -> impl Strategy<Value = ItemName> {
    (wild_text(), wild_text(), wild_text()).prop_map(|(namespace, group, key)| ItemName {
        namespace,
        group,
        key,
    })
}

fn wild_counter() -> impl Strategy<Value = CounterName> {
    (wild_text(), wild_text(), wild_pairs()).prop_map(|(namespace, name, labels)| CounterName {
        namespace,
        name,
        labels,
    })
}

fn wild_lock() -> impl Strategy<Value = LockName> {
    (wild_text(), wild_text()).prop_map(|(namespace, lock)| LockName { namespace, lock })
}

fn wild_holder() -> impl Strategy<Value = Holder> {
    (wild_number(), wild_text()).prop_map(|(session, name)| Holder { session, name })
}

fn wild_kind() -> impl Strategy<Value = CounterKind> {
    select(vec![CounterKind::Counter, CounterKind::Gauge])
}

fn wild_value() -> impl Strategy<Value = i64> {
    prop_oneof![4 => -3..6i64, 1 => any::<i64>(), 1 => Just(i64::MIN), 1 => Just(i64::MAX)]
}

fn wild_publication() -> BoxedStrategy<Publication> {
    let formats = [Format::Text, Format::Json, Format::Yaml, Format::Toml, Format::Binary];
    let content = (select(formats.to_vec()), vec(any::<u8>(), 0..3))
        .prop_map(|(format, bytes)| Content { format, bytes: bytes.into() });
    let picks = prop_oneof![
        wild_pairs().prop_map(Picks::Labels),
        vec(wild_text(), 0..3).prop_map(Picks::Clients),
        any::<u32>().prop_map(|basis_points| Picks::Share { basis_points }),
    ];
    let measure = prop_oneof![
        (wild_text(), wild_pairs(), any::<i64>())
            .prop_map(|(name, labels, base)| Measure::Counter { name, labels, base }),
        Just(Measure::Unhealthy),
    ];
    let gate = (measure, wild_number(), wild_number(), any::<bool>())
        .prop_map(|(measure, bound, for_ms, promote)| Gate { measure, bound, for_ms, promote });
    let gray = (wild_text(), any::<u32>(), picks, wild_option(gate))
        .prop_map(|(rule, priority, picks, gate)| GrayTerms { rule, priority, picks, gate });
    let first = (wild_item(), content, wild_option(wild_pairs()), wild_option(0..4u32));
    let second = (wild_text(), wild_text(), wild_option(0..3u64), wild_schema(), wild_option(gray));
    (first, second)
        .prop_map(|((name, content, labels, keep), second)| {
            let (author, comment, expected_version, schema, gray) = second;
            Publication {
                name,
                content,
                labels,
                keep,
                author,
                comment,
                expected_version,
                schema,
                gray,
            }
        })
        .boxed()
}

/// There mostly is none.
fn wild_schema() -> impl Strategy<Value = u64> {
    prop_oneof![4 => Just(0u64), 1 => wild_number()]
}

fn wild_center() -> BoxedStrategy<Op> {
    let report = (wild_item(), wild_number(), wild_text())
        .prop_map(|(name, version, rule)| Running { name, version, rule });
    let config = prop_oneof![
        8 => wild_publication().prop_map(|publication| Op::PublishConfig(Box::new(publication))).boxed(),
        2 => (wild_item(), wild_option(wild_number()), wild_text(), wild_text(), any::<bool>())
            .prop_map(|(name, expected_version, author, comment, purge)| {
                Op::DeleteConfig(Box::new(ConfigDeletion {
                    name, expected_version, author, comment, purge,
                }))
            }),
        2 => (wild_item(), wild_number(), wild_option(wild_number()), wild_text(), wild_schema())
            .prop_map(|(name, version, expected_version, author, schema)| {
                let comment = String::new();
                Op::RollbackConfig(Box::new(ConfigRollback {
                    name, version, expected_version, author, comment, schema,
                }))
            }),
        1 => (wild_item(), wild_text(), wild_number()).prop_map(|(name, text, checked_revision)| {
            Op::PutSchema(Box::new(SchemaPut { name, text, checked_revision }))
        }),
        1 => wild_item().prop_map(|name| Op::DeleteSchema { name }),
        1 => (wild_item(), wild_text(), wild_option(wild_number()), any::<bool>(), wild_schema())
            .prop_map(|(name, rule, version, promote, schema)| {
                let (author, comment) = Default::default();
                Op::EndGray(Box::new(GrayDecision {
                    name, rule, version, promote, author, comment, schema,
                }))
            }),
        2 => (wild_item(), wild_text(), wild_schema())
            .prop_map(|(name, rule, schema)| Op::JudgeGray { name, rule, schema }),
        3 => (wild_number(), wild_text(), vec(report, 0..4))
            .prop_map(|(session, client, items)| Op::ReportConfig { session, client, items }),
    ];
    let bound = || wild_option(wild_value());
    let counters = prop_oneof![
        4 => (wild_counter(), wild_option(wild_kind()), wild_value(), bound(), bound()).prop_map(
            |(name, kind, delta, floor, ceil)| {
                Op::AddCounter(Box::new(Addition { name, kind, delta, floor, ceil }))
            }
        ),
        2 => (wild_counter(), wild_option(wild_kind()), wild_value(), bound()).prop_map(
            |(name, kind, value, expected)| {
                Op::SetCounter(Box::new(Setting { name, kind, value, expected }))
            }
        ),
        1 => (wild_counter(), bound())
            .prop_map(|(name, expected)| Op::ResetCounter { name, expected }),
        1 => wild_counter().prop_map(|name| Op::DeleteCounter { name }),
    ];
    let leaving = prop_oneof![
        wild_holder().prop_map(Leaving::Holder),
        wild_number().prop_map(Leaving::Token),
        wild_number().prop_map(Leaving::Place),
    ];
    let locks = prop_oneof![
        4 => (wild_lock(), wild_holder(), wild_text(), any::<bool>()).prop_map(
            |(lock, holder, value, wait)| {
                Op::AcquireLock(Box::new(Claim { lock, holder, value, wait }))
            }
        ),
        2 => (wild_lock(), leaving).prop_map(|(lock, by)| Op::ReleaseLock { lock, by }),
        1 => (wild_lock(), wild_holder(), wild_text())
            .prop_map(|(lock, holder, value)| Op::UpdateLock { lock, holder, value }),
    ];
    let rate = wild_number().prop_map(|slots| AlarmMeasure::Rate { slots });
    let measure = prop_oneof![Just(AlarmMeasure::Value), rate];
    let side = select(vec![AlarmSide::Above, AlarmSide::Below]);
    let texts = (wild_text(), wild_text(), wild_text());
    let rule = (texts, wild_pairs(), measure, side, wild_value(), wild_number()).prop_map(
        |((counter, webhook, description), labels, measure, side, bound_milli, for_ms)| AlarmRule {
            counter,
            labels,
            measure,
            side,
            bound_milli,
            for_ms,
            webhook,
            description,
        },
    );
    let name =
        || (wild_text(), wild_text()).prop_map(|(namespace, name)| AlarmName { namespace, name });
    let alarms = prop_oneof![
        3 => (name(), rule)
            .prop_map(|(name, rule)| Op::PutAlarm { name, rule: Box::new(rule) }),
        1 => name().prop_map(|name| Op::DeleteAlarm { name }),
        3 => name().prop_map(|name| Op::JudgeAlarm { name }),
        1 => (name(), wild_number(), wild_text())
            .prop_map(|(name, transition, error)| Op::NotePost { name, transition, error }),
    ];
    prop_oneof![1 => alarms.boxed(), 3 => config.boxed(), 1 => counters.boxed(), 1 => locks.boxed()]
        .boxed()
}

fn wild_record() -> impl Strategy<Value = RecordName> {
    prop_oneof![
        wild_text().prop_map(|name| RecordName::Namespace { name }),
        (wild_text(), wild_text())
            .prop_map(|(namespace, name)| RecordName::Service { namespace, name }),
        wild_name().prop_map(RecordName::Instance),
        wild_item().prop_map(RecordName::Config),
        wild_counter().prop_map(RecordName::Counter),
        wild_lock().prop_map(RecordName::Lock),
        wild_number().prop_map(|id| RecordName::Session { id }),
    ]
}

fn wild_scope() -> impl Strategy<Value = Scope> {
    let class = select(CLASSES.to_vec());
    let wild_match = || {
        prop_oneof![
            Just(Match::Any),
            wild_text().prop_map(Match::Exact),
            wild_text().prop_map(Match::Prefix),
        ]
    };
    (class, wild_text(), wild_match(), wild_match())
        .prop_map(|(class, namespace, first, second)| Scope { class, namespace, first, second })
}

fn wild_compare() -> BoxedStrategy<Compare> {
    let relation =
        || select(vec![Relation::Equal, Relation::NotEqual, Relation::Less, Relation::Greater]);
    prop_oneof![
        (wild_record(), any::<bool>())
            .prop_map(|(record, exists)| Compare::Exists { record, exists }),
        (wild_record(), relation(), wild_number())
            .prop_map(|(record, is, than)| Compare::CreateRevision { record, is, than }),
        (wild_record(), relation(), wild_number())
            .prop_map(|(record, is, than)| Compare::ModRevision { record, is, than }),
        (wild_item(), relation(), wild_number()).prop_map(|(item, is, than)| Compare::Version {
            item,
            is,
            than
        }),
        (wild_item(), any::<bool>(), vec(any::<u8>(), 0..3))
            .prop_map(|(item, equal, to)| Compare::Content { item, equal, to: to.into() }),
        (wild_counter(), relation(), wild_value())
            .prop_map(|(counter, is, than)| Compare::Counter { counter, is, than }),
        (wild_name(), any::<bool>(), health()).prop_map(|(instance, equal, to)| Compare::Health {
            instance,
            equal,
            to
        }),
        (wild_lock(), relation(), wild_number()).prop_map(|(lock, is, than)| Compare::Token {
            lock,
            is,
            than
        }),
        (wild_scope(), wild_number())
            .prop_map(|(scope, since)| Compare::Unchanged { scope, since }),
    ]
    .boxed()
}

fn wild_op() -> BoxedStrategy<Op> {
    let flat = || prop_oneof![2 => wild_registry(), 3 => wild_center(), 2 => saga::wild()].boxed();
    let step = |op: BoxedStrategy<Op>| {
        prop_oneof![
            4 => op.prop_map(Step::Write),
            1 => wild_record().prop_map(Step::Get),
            1 => (wild_scope(), wild_number())
                .prop_map(|(scope, limit)| Step::Range { scope, limit }),
        ]
    };
    let steps = || vec(step(flat().boxed()), 0..4);
    let txn = (vec(wild_compare(), 0..3), steps(), steps())
        .prop_map(|(when, then, otherwise)| Op::Txn(Box::new(Txn { when, then, otherwise })));
    prop_oneof![8 => flat(), 2 => txn, 1 => saga::wild_guarded()].boxed()
}

pub(in crate::state) fn wild_command() -> BoxedStrategy<Command> {
    let request = (wild_number(), wild_number(), wild_number()).prop_map(
        |(session, sequence, lowest_unacknowledged)| RequestId {
            session,
            sequence,
            lowest_unacknowledged,
        },
    );
    (proptest::option::of(request), wild_op())
        .prop_map(|(request, op)| Command { request, op })
        .boxed()
}

/// Bytes of a command with some of them changed, cut off or added.
pub(super) fn wild_bytes() -> impl Strategy<Value = Vec<u8>> {
    let damage = vec((any::<proptest::sample::Index>(), any::<u8>(), 0..4u8), 0..3);
    let damaged = (wild_command(), damage).prop_map(|(command, damage)| {
        let mut bytes = command.encode().unwrap();
        for (at, byte, how) in damage {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match how {
                0 => bytes.truncate(at),
                1 => bytes.insert(at, byte),
                2 => bytes[at] = byte,
                _ => bytes[at] ^= 1 << (byte % 8),
            }
        }
        bytes
    });
    let headed = vec(any::<u8>(), 0..64).prop_map(|mut bytes| {
        bytes.insert(0, COMMAND_VERSION);
        bytes
    });
    prop_oneof![8 => damaged, 1 => headed, 1 => vec(any::<u8>(), 0..64)]
}
