//! What must hold of configuration, counters, locks and transactions whatever happens, told without
//! the model where that is possible.

use std::collections::BTreeSet;

use super::center::question;
use super::*;

/// One command at a time, with the records before and after it.
fn step_by_step(sketch: &Sketch, mut each: impl FnMut(&State, &Logged, &Applied, &State)) {
    let mut state = State::default();
    for (entry, _, _) in fill_in(sketch) {
        for command in &entry.commands {
            let one = Logged { commands: vec![command.clone()], ..entry.clone() };
            let before = restored(&state);
            let applied = one.apply_to(&mut state);
            each(&before, &one, &applied, &state);
        }
    }
}

/// The registry without the clock and without stored replies.
fn registry(state: &State) -> Vec<(Vec<u8>, Vec<u8>)> {
    let own = state.records().filter(|(key, _)| !matches!(key, Key::Meta | Key::Reply { .. }));
    own.map(|(key, record)| (key.encode(), record.encode())).collect()
}

/// Counts and sums that the tables keep beside their records.
fn figures(state: &State) -> Vec<String> {
    let mut figures = vec![];
    for (name, space) in &state.tables.namespaces {
        let lengths =
            [space.services.len(), space.config.len(), space.counters.len(), space.locks.len()];
        figures.push(format!("{name} {lengths:?}"));
        for service in space.services.values() {
            let ServiceTable { healthy, visible, .. } = service;
            figures.push(format!("{:?} {healthy} {visible}", service.name));
        }
        for item in space.config.after(("", ""), "", "") {
            let (bytes, count) = (item.release_bytes(), item.releases().len());
            figures.push(format!("{:?} {bytes} {count}", item.name()));
        }
    }
    figures
}

#[test]
fn what_is_refused_leaves_no_trace() {
    check("tests_properties::rules::what_is_refused_leaves_no_trace", history(30), |sketch| {
        step_by_step(&sketch, |before, entry, applied, after| {
            let outcome = &applied.outcomes[0];
            let is_reply = |change: &Change| matches!(change.key, Key::Reply { .. });
            let of_revision =
                |change: &&Change| !matches!(change.key, Key::Reply { .. } | Key::Member { .. });
            let changes: Vec<_> = applied.events.iter().flat_map(|event| &event.changes).collect();
            assert!(applied.events.len() <= 1, "one event of one command");
            assert_eq!(figures(&restored(after)), figures(after));
            if outcome.result.is_ok() && !outcome.duplicate {
                let revised = changes.iter().any(of_revision);
                assert_eq!(after.revision(), before.revision() + u64::from(revised));
                assert!(applied.events.iter().all(|event| event.revision == after.revision()));
                return;
            }
            assert!(changes.iter().all(|change| is_reply(change)), "{entry:?} wrote {changes:?}");
            assert_eq!(after.revision(), before.revision());
            assert_eq!(registry(after), registry(before));
            assert_eq!(figures(after), figures(before));
            let counts = |state: &State| Counts { replies: 0, ..state.counts() };
            assert_eq!(counts(after), counts(before));
            if changes.is_empty() {
                let ledgers = [after, before].map(|state| format!("{:?}", state.tables.ledger));
                assert_eq!(ledgers[0], ledgers[1]);
            }
        });
    });
}

#[test]
fn a_change_says_whether_there_was_a_record() {
    let name = "tests_properties::rules::a_change_says_whether_there_was_a_record";
    check(name, history(30), |sketch| {
        step_by_step(&sketch, |before, _, applied, after| {
            let keys = |state: &State| state.records().map(|(key, _)| key).collect::<BTreeSet<_>>();
            let mut known = keys(before);
            for change in applied.events.iter().flat_map(|event| &event.changes) {
                let was = known.contains(&change.key);
                match change.record {
                    Some(_) => {
                        assert_eq!(change.fresh, !was, "{change:?}");
                        known.insert(change.key.clone());
                    }
                    None => {
                        assert!(was && !change.fresh, "{change:?}");
                        known.remove(&change.key);
                    }
                }
            }
            assert_eq!(known, keys(after));
        });
    });
}

#[test]
fn a_look_says_what_the_log_would() {
    let reads = (vec(question(), 0..3), vec(center::act(), 0..6), vec(center::act(), 0..6));
    let strategy = (history(20), vec(reads, 4));
    check(
        "tests_properties::rules::a_look_says_what_the_log_would",
        strategy,
        |(sketch, reads)| {
            let mut state = State::default();
            for (entry, _, model) in fill_in(&sketch) {
                entry.apply_to(&mut state);
                let ground = Ground { model: &model, opened: &[], term: 1 };
                for (when, then, otherwise) in reads.clone() {
                    let only_reads = |acts: Vec<center::Act>| -> Vec<Step> {
                        let steps = acts.into_iter().map(|act| act.fill_in(&ground));
                        steps.filter(|step| !matches!(step, Step::Write(_))).collect()
                    };
                    let txn = Txn {
                        when: when.into_iter().map(|question| question.fill_in(&ground)).collect(),
                        then: only_reads(then),
                        otherwise: only_reads(otherwise),
                    };
                    assert!(txn.is_read());
                    let looked = state.look(&txn);
                    let op = Op::Txn(Box::new(txn));
                    let commands = vec![Command { request: None, op }.encode().unwrap()];
                    let before = bytes_of(&state);
                    let applied = Logged { term: 1, at_ms: 0, commands }.apply_to(&mut state);
                    assert_eq!(applied.outcomes[0].result, looked);
                    assert!(applied.events.is_empty());
                    assert_eq!(bytes_of(&state), before);
                }
            }
        },
    );
}

/// Class and namespace of a record, if it is in a scope or was removed from one.
fn class_of(key: &Key) -> Option<(Class, String)> {
    let (class, namespace) = match key {
        Key::Service { namespace, .. } | Key::Instance { namespace, .. } => {
            (Class::Service, namespace)
        }
        Key::Config { namespace, .. }
        | Key::Release { namespace, .. }
        | Key::Schema { namespace, .. }
        | Key::Report { namespace, .. } => (Class::Config, namespace),
        Key::Counter { namespace, .. } => (Class::Counter, namespace),
        Key::Lock { namespace, .. } => (Class::Lock, namespace),
        Key::Alarm { namespace, .. } => (Class::Alarm, namespace),
        Key::Saga { namespace, .. } => (Class::Saga, namespace),
        Key::Removal { namespace, class } => (*class, namespace),
        Key::Meta
        | Key::Namespace { .. }
        | Key::Session { .. }
        | Key::Reply { .. }
        | Key::Member { .. } => return None,
    };
    Some((class, namespace.to_string()))
}

#[test]
fn unchanged_means_that_nothing_happened() {
    let scopes = vec(center::scope(), 6);
    let strategy = (history(20), scopes);
    let name = "tests_properties::rules::unchanged_means_that_nothing_happened";
    check(name, strategy, |(sketch, scopes)| {
        // What each scope showed, and what was touched, after each revision.
        let mut shown: Vec<Vec<Vec<Record>>> = vec![scopes.iter().map(|_| vec![]).collect()];
        let mut touched: Vec<BTreeSet<(Class, String)>> = vec![BTreeSet::new()];
        step_by_step(&sketch, |before, _, applied, after| {
            for event in &applied.events {
                if event.revision as usize == touched.len() {
                    let mut now: BTreeSet<_> =
                        event.changes.iter().filter_map(|change| class_of(&change.key)).collect();
                    for change in &event.changes {
                        if let Key::Namespace { name } = &change.key
                            && before.has_namespace(name) != after.has_namespace(name)
                        {
                            now.extend(CLASSES.map(|class| (class, name.to_string())));
                        }
                    }
                    touched.push(now);
                    shown.push(
                        scopes.iter().map(|s| after.tables.scope(s).flatten().collect()).collect(),
                    );
                }
            }
            let last = touched.len() - 1;
            assert_eq!(last as u64, after.revision());
            for (i, scope) in scopes.iter().enumerate() {
                for back in [0, 1, 2, 3, 5, 9, 20] {
                    let since = last.saturating_sub(back);
                    let compare = Compare::Unchanged { scope: scope.clone(), since: since as u64 };
                    let (then, otherwise) = Default::default();
                    let txn = Txn { when: vec![compare], then, otherwise };
                    let Ok(Reply::Txn { succeeded: holds, .. }) = after.look(&txn) else {
                        panic!("{txn:?}")
                    };
                    let changed = (since..last).any(|at| shown[at][i] != shown[at + 1][i]);
                    assert!(!(changed && holds), "{scope:?} has changed since {since} of {last}");
                    let own = (scope.class, scope.namespace.clone());
                    let quiet = !touched[since + 1..].iter().any(|now| now.contains(&own));
                    if quiet && after.has_namespace(&scope.namespace) {
                        assert!(holds, "nothing of {own:?} was touched since {since} of {last}");
                    }
                }
            }
        });
    });
}

#[test]
fn versions_grow_and_say_the_same_for_ever() {
    let name = "tests_properties::rules::versions_grow_and_say_the_same_for_ever";
    check(name, history(40), |sketch| {
        let mut said: BTreeMap<(ItemName, u64), Release> = BTreeMap::new();
        let mut newest: BTreeMap<ItemName, u64> = BTreeMap::new();
        step_by_step(&sketch, |_, _, _, after| {
            let mut there = BTreeSet::new();
            for (_, record) in after.records() {
                let Record::Config(item) = record else { continue };
                let name = name_of_item(&item);
                there.insert(name.clone());
                let (n, g, k) = (&*item.namespace, &*item.group, &*item.key);
                let past = after.config_history(n, g, k).unwrap().releases;
                assert!(past.len() <= item.keep as usize);
                let bytes: usize = past.iter().map(|release| release.len()).sum();
                assert!(bytes <= limits::CONFIG_HISTORY_BYTES);
                let last = newest.insert(name.clone(), item.last_version).unwrap_or(0);
                assert!(last <= item.last_version, "{name:?} went back from {last}");
                let gray = item.gray.iter().map(|gray| &gray.release);
                let all: Vec<_> = past.iter().chain([&item.current]).chain(gray).collect();
                let versions: BTreeSet<u64> = all.iter().map(|release| release.version).collect();
                assert_eq!(versions.len(), all.len(), "each version once");
                assert!(versions.last().is_some_and(|greatest| *greatest <= item.last_version));
                for release in all {
                    // How it ended is all that is ever noted with it.
                    let release = Release { end: None, ..Release::clone(release) };
                    let key = (name.clone(), release.version);
                    assert_eq!(*said.entry(key).or_insert(release.clone()), release);
                }
            }
            // A purge forgets everything.
            newest.retain(|name, _| there.contains(name));
            said.retain(|(name, _), _| there.contains(name));
        });
    });
}

#[test]
fn locks_go_in_order_and_tokens_grow() {
    let name = "tests_properties::rules::locks_go_in_order_and_tokens_grow";
    check(name, history(40), |sketch| {
        let mut owners: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
        let mut newest: BTreeMap<(String, String), u64> = BTreeMap::new();
        step_by_step(&sketch, |before, _, _, after| {
            for (namespace, lock) in
                NAMESPACES.into_iter().flat_map(|namespace| LOCKS.map(|lock| (namespace, lock)))
            {
                let lines =
                    [before, after].map(|state| state.lock(namespace, lock).collect::<Vec<_>>());
                let place = (namespace.to_owned(), lock.to_owned());
                let newest = newest.entry(place.clone()).or_default();
                // Whoever stays keeps its place, whoever comes stands behind all that ever came.
                let stood: Vec<u64> = lines[0].iter().map(|request| request.ticket).collect();
                let (old, new): (Vec<u64>, Vec<u64>) = lines[1]
                    .iter()
                    .map(|request| request.ticket)
                    .partition(|ticket| stood.contains(ticket));
                assert!(stood.iter().filter(|ticket| old.contains(ticket)).eq(&old));
                let order = lines[1].iter().map(|request| request.ticket);
                assert!(order.eq(old.iter().chain(&new).copied()));
                assert!(new.len() <= 1 && new.iter().all(|ticket| ticket > newest));
                *newest = new.last().copied().unwrap_or(*newest);
                let Some(first) = lines[1].first() else { continue };
                let (ticket, token) = (first.ticket, first.token.unwrap());
                match owners.insert(place, (ticket, token)) {
                    Some((owner, had)) if owner == ticket => assert_eq!(had, token),
                    Some((_, had)) => assert!(token > had, "{token} after {had}"),
                    None => {}
                }
                assert!(lines[1][1..].iter().all(|request| request.token.is_none()));
            }
        });
    });
}

fn item_with(gray: Vec<Gray>, key: &str) -> ConfigItem {
    let release = Release {
        version: 1,
        revision: 1,
        at_ms: 0,
        author: String::new(),
        comment: String::new(),
        origin: Origin::Published,
        content: None,
        end: None,
    };
    ConfigItem {
        namespace: "default".into(),
        group: "g".into(),
        key: key.into(),
        current: release.into(),
        gray: gray.into_iter().map(std::sync::Arc::new).collect(),
        labels: Pairs::default(),
        keep: 1,
        last_version: 1,
        create_revision: 1,
        mod_revision: 1,
        created_at_ms: 0,
        modified_at_ms: 0,
    }
}

fn a_gray(rule: &str, priority: u32, picks: Picks) -> Gray {
    let release = item_with(vec![], "k").current;
    Gray { rule: rule.into(), priority, picks, gate: None, release, since_ms: 0 }
}

#[test]
fn whoever_is_in_a_share_stays_in_a_greater_one() {
    let shares = vec(0..=10_000u32, 1..20);
    let name = "tests_properties::rules::whoever_is_in_a_share_stays_in_a_greater_one";
    check(name, (any::<String>(), "[a-c]{1,3}", shares), |(id, key, mut shares)| {
        shares.sort();
        let client = ConfigClient { id, labels: Pairs::default() };
        let is_in = |basis_points| {
            let gray = a_gray("r", 0, Picks::Share { basis_points });
            item_with(vec![gray], &key).pick(&client).is_some()
        };
        let mut was = false;
        for share in shares {
            assert!(!was || is_in(share), "{share} lost {client:?}");
            was = is_in(share);
        }
        assert!(!is_in(0) && is_in(10_000));
    });
}

#[test]
fn a_share_is_as_great_as_it_says() {
    let of = |key: &str, basis_points: u32| -> BTreeSet<u32> {
        let item = item_with(vec![a_gray("r", 0, Picks::Share { basis_points })], key);
        let is_in = |i: &u32| {
            let client = ConfigClient { id: format!("client-{i}"), labels: Pairs::default() };
            item.pick(&client).is_some()
        };
        (0..20_000).filter(is_in).collect()
    };
    for (basis_points, clients) in [(100, 200), (1_000, 2_000), (5_000, 10_000)] {
        let got = of("k", basis_points).len();
        assert!(got.abs_diff(clients) < clients / 5, "{got} clients, not {clients}");
    }
    // Not the same clients try every new thing.
    let both = of("k", 1_000).intersection(&of("l", 1_000)).count();
    assert!(both.abs_diff(200) < 100, "{both} clients are in two shares of a tenth");
}

#[test]
fn the_greatest_priority_decides_then_the_name() {
    let picks = prop_oneof![
        metadata().prop_map(Picks::Labels),
        Just(Picks::Clients(vec!["c1".into(), "c2".into()])),
        (0..=10_000u32).prop_map(|basis_points| Picks::Share { basis_points }),
    ];
    let rules = vec((text(&["a", "b", "c", "d"]), 0..3u32, picks), 0..12);
    let clients = vec((text(&["c1", "c2", "c3", "c4"]), metadata()), 1..6);
    let name = "tests_properties::rules::the_greatest_priority_decides_then_the_name";
    check(name, (rules, clients), |(rules, clients)| {
        let mut state = State::default();
        let mut commands = vec![center::published()];
        // The last word about a rule is what counts.
        let mut last: BTreeMap<String, (u32, Picks, usize)> = BTreeMap::new();
        for (i, (rule, priority, picks)) in rules.into_iter().enumerate() {
            last.insert(rule.clone(), (priority, picks.clone(), i));
            let terms = GrayTerms { rule, priority, picks, gate: None };
            commands.push(center::plain(&format!("{i}"), Some(terms)));
        }
        let model = Model::default();
        let ground = Ground { model: &model, opened: &[], term: 1 };
        let encode = |sketch: OpSketch| {
            Command { request: None, op: sketch.fill_in(&ground) }.encode().unwrap()
        };
        let commands = commands.into_iter().map(encode).collect();
        let applied = Logged { term: 1, at_ms: 0, commands }.apply_to(&mut state);
        assert!(applied.outcomes.iter().all(|outcome| outcome.result.is_ok()));
        let item = state.config_item("default", "g", "a").unwrap();
        for (id, labels) in clients {
            let client = ConfigClient { id, labels };
            let alone = |picks: &Picks| {
                let one = item_with(vec![a_gray("r", 0, picks.clone())], "a");
                one.pick(&client).is_some()
            };
            let mut getting: Vec<_> = last.iter().filter(|(_, (_, p, _))| alone(p)).collect();
            getting.sort_by_key(|(rule, (priority, _, _))| (std::cmp::Reverse(*priority), *rule));
            let expected = getting.first().map(|(rule, (_, _, i))| (rule.as_str(), i.to_string()));
            let got = item.pick(&client).map(|gray| {
                let content = gray.release.content.as_ref().unwrap().bytes.as_bytes();
                (&*gray.rule, String::from_utf8(content.to_vec()).unwrap())
            });
            assert_eq!(got, expected);
        }
    });
}

/// Back and forth between any two contents, as often as you like.
#[test]
fn a_rollback_of_a_rollback_restores() {
    let name = "tests_properties::rules::a_rollback_of_a_rollback_restores";
    let strategy = (vec(text(&["1", "2", "3", "4"]), 2..10), vec(0..10usize, 1..6));
    check(name, strategy, |(contents, back)| {
        let mut state = State::default();
        let (model, opened) = (Model::default(), []);
        let ground = Ground { model: &model, opened: &opened, term: 1 };
        let apply = |state: &mut State, op: Op| {
            let commands = vec![Command { request: None, op }.encode().unwrap()];
            let applied = Logged { term: 1, at_ms: 0, commands }.apply_to(state);
            assert!(applied.outcomes[0].result.is_ok(), "{applied:?}");
        };
        // By version.
        let mut said = vec![String::new()];
        let current = |state: &State| {
            let item = state.config_item("default", "g", "a").unwrap();
            let content = item.current.content.clone().unwrap().bytes.as_bytes().to_vec();
            (item.current.version, String::from_utf8(content).unwrap())
        };
        for content in contents {
            apply(&mut state, center::plain(&content, None).fill_in(&ground));
            if said.last() != Some(&content) {
                said.push(content);
            }
        }
        for to in back {
            let version = 1 + to % (said.len() - 1);
            let (before, content) = current(&state);
            let rollback = |version: u64| {
                let [namespace, group, key] = ["default", "g", "a"].map(str::to_owned);
                Op::RollbackConfig(Box::new(ConfigRollback {
                    name: ItemName { namespace, group, key },
                    version,
                    expected_version: None,
                    author: String::new(),
                    comment: String::new(),
                    schema: 0,
                }))
            };
            apply(&mut state, rollback(version as u64));
            let (now, got) = current(&state);
            assert_eq!(got, said[version]);
            assert_eq!(now, before + u64::from(got != content));
            if now > before {
                said.push(got);
            }
            apply(&mut state, rollback(before));
            let (then, got) = current(&state);
            assert_eq!(got, content, "back to version {before}");
            if then > now {
                said.push(got);
            }
        }
    });
}
