//! Configuration over the API: releases through faults, content that is refused, gray releases as
//! different clients see them, and who runs what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate::client::{
    Client, ConfigCache, ConfigCacheOptions, Reporting, SessionOptions, Watch, WatchRange,
    WatchUpdate,
};
use quorate::error::Error;
use quorate::proto::v1::{self, *};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::cli::Shell;
use super::harness::{Cluster, PATIENCE, Setup, channel, eventually, run, text};

pub const GROUP: &str = "g";

pub fn publish(key: &str, format: ConfigFormat, content: &[u8]) -> PublishConfigRequest {
    PublishConfigRequest {
        group: GROUP.into(),
        key: key.into(),
        format: format.into(),
        content: content.to_vec(),
        author: "ann".into(),
        comment: format!("of {} bytes", content.len()),
        ..Default::default()
    }
}

pub fn get(key: &str) -> GetConfigRequest {
    GetConfigRequest { group: GROUP.into(), key: key.into(), ..Default::default() }
}

/// The current release, read through one node.
async fn current(client: &Client, key: &str) -> Result<ConfigRelease, Error> {
    client.get_config(get(key)).await.map(|answer| answer.item.unwrap().release.unwrap())
}

async fn history(client: &Client, key: &str) -> Vec<ConfigRelease> {
    let request =
        ConfigHistoryRequest { group: GROUP.into(), key: key.into(), ..Default::default() };
    client.config_history(request).await.unwrap().releases
}

fn rollback(key: &str, version: u64) -> RollbackConfigRequest {
    RollbackConfigRequest { group: GROUP.into(), key: key.into(), version, ..Default::default() }
}

fn delete(key: &str) -> DeleteConfigRequest {
    DeleteConfigRequest { group: GROUP.into(), key: key.into(), ..Default::default() }
}

/// Publish, roll back, delete and undelete, each with another leader killed before it: every release is
/// there afterwards, on every node, with who, when, what and how.
#[test]
fn releases_over_leader_kills() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let session = client.session(SessionOptions::default()).await.unwrap();
        let with = Some(&session);
        let json = ConfigFormat::Json;
        client.publish_config(publish("a", json, b"{\"n\": 1}\n"), with).await.unwrap();

        let leader = cluster.leader().await;
        cluster.kill(leader);
        let second =
            client.publish_config(publish("a", json, b"{\"n\": 2}\n"), with).await.unwrap();
        assert_eq!((second.version, second.changed), (2, true));
        let again = client.publish_config(publish("a", json, b"{\"n\": 2}\n"), with).await.unwrap();
        assert_eq!((again.version, again.changed), (2, false));
        cluster.start(leader).await;

        let leader = cluster.leader().await;
        cluster.kill(leader);
        let third = client.rollback_config(rollback("a", 1), with).await.unwrap();
        assert_eq!((third.version, third.changed), (3, true));
        let stale = PublishConfigRequest {
            expected_version: Some(2),
            ..publish("a", json, b"{\"n\": 3}\n")
        };
        let error = client.publish_config(stale, with).await.unwrap_err();
        assert_eq!(error, Error::CompareFailed { expected: 2, current: 3 });
        cluster.start(leader).await;

        let leader = cluster.leader().await;
        cluster.kill(leader);
        let gone = client.delete_config(delete("a"), with).await.unwrap();
        assert_eq!((gone.removed, gone.version), (true, 4));
        assert!(matches!(current(&client, "a").await, Err(Error::NotFound { .. })));
        let listed = ListConfigRequest { group: GROUP.into(), ..Default::default() };
        assert!(client.list_config(listed.clone()).await.unwrap().items.is_empty());
        let all = ListConfigRequest { deleted: true, ..listed };
        assert_eq!(client.list_config(all).await.unwrap().items.len(), 1);
        cluster.start(leader).await;
        let back = client.rollback_config(rollback("a", 2), with).await.unwrap();
        assert_eq!(back.version, 5);

        let told = history(&client, "a").await;
        let how: Vec<(u64, ConfigOrigin, u64)> =
            told.iter().map(|r| (r.version, r.origin(), r.origin_version)).collect();
        let expected = [
            (5, ConfigOrigin::RolledBack, 2),
            (4, ConfigOrigin::Deleted, 0),
            (3, ConfigOrigin::RolledBack, 1),
            (2, ConfigOrigin::Published, 0),
            (1, ConfigOrigin::Published, 0),
        ];
        assert_eq!(how, expected);
        assert!(told.is_sorted_by(|newer, older| newer.revision > older.revision));
        assert_eq!((told[4].author.as_str(), told[4].comment.as_str()), ("ann", "of 9 bytes"));
        assert!(told[4].at_ms > 1_700_000_000_000 && told[4].content.is_empty());
        assert_eq!(told[0].sha256, told[3].sha256);
        assert_eq!((told[0].sha256.len(), told[1].sha256.as_str()), (64, ""));
        let diff = DiffConfigRequest {
            group: GROUP.into(),
            key: "a".into(),
            from: 1,
            to: 2,
            ..Default::default()
        };
        let diff = client.diff_config(diff).await.unwrap().diff;
        assert!(diff.contains("-{\"n\": 1}\n+{\"n\": 2}\n"), "{diff}");

        cluster.kill_all();
        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        for id in cluster.ids() {
            let client = cluster.at(id);
            assert_eq!(history(&client, "a").await, told, "node {id}");
            assert_eq!(current(&client, "a").await.unwrap().content, b"{\"n\": 2}\n");
            let old = GetConfigRequest { version: 1, ..get("a") };
            let old = client.get_config(old).await.unwrap().item.unwrap();
            assert_eq!(old.release.unwrap().content, b"{\"n\": 1}\n");
        }
        let purge = DeleteConfigRequest { purge: true, ..delete("a") };
        assert!(client.delete_config(purge, None).await.unwrap().removed);
        let request =
            ConfigHistoryRequest { group: GROUP.into(), key: "a".into(), ..Default::default() };
        assert!(client.config_history(request).await.is_err());
        cluster.same_digest().await;
    });
}

fn put_schema(key: &str, schema: &str) -> PutSchemaRequest {
    PutSchemaRequest {
        group: GROUP.into(),
        key: key.into(),
        schema: schema.into(),
        ..Default::default()
    }
}

/// What is not well-formed or not as its schema asks is refused with its place, through whichever node
/// and by every way in; so is a schema that the current content does not fit.
#[test]
fn malformed_content_is_refused_with_its_place() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let shell = Shell::of(&cluster);
        let dir = cluster.dir().to_owned();
        client.put_schema(put_schema("s.json", SCHEMA), None).await.unwrap();
        client.put_schema(put_schema("s.yaml", SCHEMA), None).await.unwrap();
        let cases: [(&str, ConfigFormat, &str, u64, &str); 6] = [
            ("a.json", ConfigFormat::Json, "{\n  \"a\": 1,\n}\n", 3, ""),
            ("a.yaml", ConfigFormat::Yaml, "a: 1\nb: [1, 2\n", 3, ""),
            ("a.toml", ConfigFormat::Toml, "a = 1\nb = \n", 2, ""),
            ("a.txt", ConfigFormat::Text, "fine\n\u{0}", 0, ""),
            ("s.json", ConfigFormat::Json, "{\"port\": \"high\"}", 0, "/port"),
            ("s.yaml", ConfigFormat::Yaml, "port: 70000\n", 0, "/port"),
        ];
        for (key, format, content, line, path) in cases {
            if key == "a.txt" {
                continue;
            }
            for id in cluster.ids() {
                let request = publish(key, format, content.as_bytes());
                let error = cluster.at(id).publish_config(request, None).await.unwrap_err();
                let Error::Malformed { field, line: found, path: at, .. } = &error else {
                    panic!("{key}: {error}");
                };
                assert_eq!((field.as_str(), at.as_str()), ("content", path), "{key}: {error}");
                assert!(line == 0 || (1..=line).contains(found), "{key}: {error}");
                assert!(error.definite());
            }
            let file = dir.join(key);
            std::fs::write(&file, content).unwrap();
            let place = if path.is_empty() { "line " } else { path };
            let words = format!("config publish {GROUP}/{key} {}", file.display());
            shell.fails(&words, 1, place).await;
            assert!(matches!(current(&client, key).await, Err(Error::NotFound { .. })), "{key}");
        }
        let text = publish("a.txt", ConfigFormat::Text, b"\xff");
        assert!(matches!(
            client.publish_config(text, None).await,
            Err(Error::Malformed { line: 1, .. })
        ));

        // Whatever else would make it current is refused as well: a gray release, a rollback.
        let good = publish("s.json", ConfigFormat::Json, b"{\"port\": 80}");
        client.publish_config(good, None).await.unwrap();
        let bad = publish("s.json", ConfigFormat::Json, b"{\"port\": 0}");
        let terms = gray("r", 1, gray_terms::Picks::BasisPoints(1));
        let bad = PublishConfigRequest { gray: Some(Box::new(terms)), ..bad };
        let error = client.publish_config(bad, None).await.unwrap_err();
        assert!(matches!(&error, Error::Malformed { path, .. } if path == "/port"), "{error}");
        let remove =
            DeleteSchemaRequest { group: GROUP.into(), key: "s.json".into(), ..Default::default() };
        assert!(client.delete_schema(remove, None).await.unwrap().removed);
        let free = publish("s.json", ConfigFormat::Json, b"{\"port\": \"any\"}");
        client.publish_config(free, None).await.unwrap();
        let error = client.put_schema(put_schema("s.json", SCHEMA), None).await.unwrap_err();
        let Error::Malformed { field, path, .. } = &error else { panic!("{error}") };
        assert_eq!((field.as_str(), path.as_str()), ("the current content", "/port"));
        client.rollback_config(rollback("s.json", 1), None).await.unwrap();
        client.put_schema(put_schema("s.json", SCHEMA), None).await.unwrap();
        let error = client.rollback_config(rollback("s.json", 2), None).await.unwrap_err();
        assert!(matches!(&error, Error::Malformed { path, .. } if path == "/port"), "{error}");
        let error = client.put_schema(put_schema("x", "{\"type\": 7}"), None).await.unwrap_err();
        assert!(matches!(&error, Error::Malformed { field, .. } if field == "schema"), "{error}");
    });
}

const SCHEMA: &str = r#"{
    "type": "object",
    "required": ["port"],
    "properties": {"port": {"type": "integer", "minimum": 1, "maximum": 65535}}
}"#;

fn gray(rule: &str, priority: u32, picks: gray_terms::Picks) -> GrayTerms {
    GrayTerms { rule: rule.into(), priority, picks: Some(picks), gate: None }
}

/// Content of one of two kinds, and a schema that wants one of them.
fn of_kind(kind: &str, number: u64) -> Vec<u8> {
    format!("{{\"kind\": \"{kind}\", \"number\": {number}}}").into_bytes()
}

fn kind_of(content: &[u8]) -> &str {
    if content.starts_with(b"{\"kind\": \"a\"") { "a" } else { "b" }
}

fn is_refusal(error: &Error) -> bool {
    match error {
        Error::InStep { error, .. } => is_refusal(error),
        Error::Malformed { .. } | Error::SchemaChanged { .. } | Error::NotFound { .. } => true,
        _ => false,
    }
}

/// Publishers of two kinds of content, by publication, transaction, rollback and promotion, race with somebody who
/// changes the schema between one kind, the other and none, through all nodes. Every release that
/// became current fits the schema that was in force at its revision, and the content that was current
/// when a schema came into force fits that.
#[test]
fn no_content_gets_past_a_schema_that_changes() {
    run(async {
        const KEY: &str = "raced.json";
        let cluster = Cluster::three().await;
        let first = PublishConfigRequest {
            keep: 1_000,
            ..publish(KEY, ConfigFormat::Json, &of_kind("a", 0))
        };
        cluster.client().publish_config(first, None).await.unwrap();
        let done = Arc::new(AtomicBool::new(false));
        let mut writers = JoinSet::new();
        for (number, id) in (0u64..).zip(cluster.ids().into_iter().cycle().take(6)) {
            let client = cluster.at(id);
            let done = done.clone();
            writers.spawn(async move {
                let (mut went, mut refused) = (0u64, 0u64);
                for step in 0u64.. {
                    if done.load(Ordering::Relaxed) {
                        break;
                    }
                    let kind = if (number + step / 3) % 2 == 0 { "a" } else { "b" };
                    let content = of_kind(kind, number * 1_000_000 + step);
                    let request = publish(KEY, ConfigFormat::Json, &content);
                    let result = match (number % 3, step % 2) {
                        (1, 1) => {
                            let version = 1 + step % 40;
                            client.rollback_config(rollback(KEY, version), None).await.map(|_| ())
                        }
                        (2, _) => {
                            let rule = format!("rule-{number}");
                            let terms = gray(&rule, 1, gray_terms::Picks::BasisPoints(10));
                            let request =
                                PublishConfigRequest { gray: Some(Box::new(terms)), ..request };
                            match client.publish_config(request, None).await {
                                Ok(_) => {
                                    let end = EndGrayRequest {
                                        group: GROUP.into(),
                                        key: KEY.into(),
                                        rule,
                                        promote: true,
                                        ..Default::default()
                                    };
                                    client.end_gray(end, None).await.map(|_| ())
                                }
                                Err(error) => Err(error),
                            }
                        }
                        (0, 1) => {
                            let step =
                                TxnStep { step: Some(txn_step::Step::PublishConfig(request)) };
                            let txn = TxnRequest { then: vec![step], ..Default::default() };
                            client.txn(txn, None).await.map(|_| ())
                        }
                        _ => client.publish_config(request, None).await.map(|_| ()),
                    };
                    // The others are to have their turn too.
                    sleep(Duration::from_millis(2)).await;
                    match result {
                        Ok(()) => went += 1,
                        Err(error) if is_refusal(&error) => refused += 1,
                        Err(error) => panic!("{error}"),
                    }
                }
                (went, refused)
            });
        }
        // Every release, also those that the history has forgotten by the end.
        let range =
            WatchRange::Config { namespace: String::new(), group: GROUP.into(), key: KEY.into() };
        let mut watch = cluster.client().watch(range);
        let first = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        let seen = Arc::new(Mutex::new((first.revision(), Vec::new())));
        let noting = seen.clone();
        let watcher = tokio::spawn(async move {
            while let Some(update) = watch.next().await {
                let update = update.unwrap();
                let revision = update.revision();
                let WatchUpdate::Changes { events, .. } = update else { continue };
                let mut noting = noting.lock().unwrap();
                for event in events {
                    let Some(watch_event::Record::Config(item)) = event.record else { panic!() };
                    let grays = item.gray.into_iter().map(|gray| gray.release.unwrap());
                    noting.1.extend(grays);
                    noting.1.extend(item.release);
                }
                noting.0 = revision;
            }
        });
        // (from which revision on, which kind is asked for)
        let mut asked: Vec<(u64, Option<&str>)> = Vec::new();
        let flipper = cluster.client();
        let mut flips = BTreeMap::from([("a", 0), ("b", 0)]);
        let mut turn = 0;
        while flips.values().any(|count| *count < 8) {
            turn += 1;
            let wants = [Some("a"), Some("b"), None][turn % 3];
            match wants {
                Some(kind) => {
                    let schema =
                        format!("{{\"properties\": {{\"kind\": {{\"const\": \"{kind}\"}}}}}}");
                    match flipper.put_schema(put_schema(KEY, &schema), None).await {
                        Ok(answer) if answer.changed => {
                            asked.push((answer.mod_revision, wants));
                            *flips.get_mut(kind).unwrap() += 1;
                            // Long enough for some to meet it.
                            sleep(Duration::from_millis(40)).await;
                        }
                        Ok(_) | Err(Error::Malformed { .. } | Error::CompareFailed { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                None => {
                    let request = DeleteSchemaRequest {
                        group: GROUP.into(),
                        key: KEY.into(),
                        ..Default::default()
                    };
                    let answer = flipper.delete_schema(request, None).await.unwrap();
                    if answer.removed {
                        asked.push((answer.header.unwrap().revision, None));
                        // Until the content is of either kind.
                        sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        }
        done.store(true, Ordering::Relaxed);
        let mut totals = (0, 0);
        while let Some(one) = writers.join_next().await {
            let (went, refused) = one.unwrap();
            totals = (totals.0 + went, totals.1 + refused);
        }
        assert!(totals.0 > 20 && totals.1 > 20, "no race: {totals:?}");

        let last = history(&cluster.client(), KEY).await.remove(0).revision;
        let releases = eventually("all releases", async || {
            let seen = seen.lock().unwrap();
            match seen.0 >= last {
                true => Ok(seen.1.clone()),
                false => Err(format!("{} of {last}", seen.0)),
            }
        })
        .await;
        watcher.abort();
        let (mut checked, mut both) = (0, BTreeSet::new());
        for release in &releases {
            let kind = kind_of(&release.content);
            let in_force = asked.iter().rev().find(|(from, _)| *from < release.revision);
            if let Some((from, Some(wanted))) = in_force {
                assert_eq!(*wanted, kind, "{release:?} against the schema of {from}");
                checked += 1;
                both.insert(kind);
            }
        }
        assert!(checked > 0 && both.len() == 2, "{checked} releases met a schema: {both:?}");
        // Only releases that everybody got, each from its revision on.
        let current = releases.iter().filter(|release| release.origin() != ConfigOrigin::Gray);
        let current: BTreeMap<u64, &ConfigRelease> =
            current.map(|release| (release.revision, release)).collect();
        for (from, wanted) in &asked {
            // The first was there before the watch.
            let Some((_, release)) = current.range(..from).next_back() else { continue };
            if let Some(wanted) = wanted {
                assert_eq!(kind_of(&release.content), *wanted, "{release:?} when {from} came");
            }
        }
        cluster.same_digest().await;
    });
}

/// What a client is shown of an item, by each of the three ways: version and rule.
struct Eyes {
    who: ConfigClient,
    watch: Watch,
    seen: (u64, String),
    cache: ConfigCache,
}

impl Eyes {
    async fn open(client: &Client, id: &str, labels: &[(&str, &str)]) -> Eyes {
        let labels = labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let who = ConfigClient { id: id.into(), labels };
        let mut options = ConfigCacheOptions::new(id).key(GROUP, "a").reporting(Reporting::Off);
        options.client = who.clone();
        let cache = client.config_cache(options).await.unwrap();
        let range =
            WatchRange::Config { namespace: String::new(), group: GROUP.into(), key: "a".into() };
        let watch = client.watch(range).seen_by(who.clone());
        Eyes { who, watch, seen: (0, String::new()), cache }
    }

    async fn check(&mut self, client: &Client, revision: u64, version: u64, rule: &str) {
        let what = format!("{:?} at {revision}", self.who);
        let expected = (version, rule.to_owned());
        let request = GetConfigRequest { client: Some(self.who.clone()), ..get("a") };
        let answer = client.get_config(request).await.unwrap();
        let item = answer.item.unwrap();
        assert_eq!((item.release.unwrap().version, item.rule), expected, "{what}: get");
        assert!(answer.why.contains(if rule.is_empty() { "current" } else { rule }), "{what}");
        while self.watch.revision() < revision {
            let update = timeout(PATIENCE, self.watch.next()).await.unwrap().unwrap().unwrap();
            let (WatchUpdate::Snapshot { events, .. } | WatchUpdate::Changes { events, .. }) =
                update
            else {
                continue;
            };
            for event in events {
                let Some(watch_event::Record::Config(item)) = event.record else { panic!() };
                assert!(!event.deleted && item.gray.is_empty());
                self.seen = (item.release.unwrap().version, item.rule);
            }
        }
        assert_eq!(self.seen, expected, "{what}: watch");
        eventually(&what, async || {
            let value = self.cache.get(GROUP, "a").ok_or("nothing")?;
            let found = (value.version(), value.rule().to_owned());
            if found == expected { Ok(()) } else { Err(format!("cache: {found:?}")) }
        })
        .await;
    }
}

/// Gray releases by label, by client and by share: each client sees the same in an answer, in a watch
/// and in its cache, by the greatest priority; promotion and abortion reach all of them.
#[test]
fn gray_releases_as_clients_see_them() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let text = |content: &str| publish("a", ConfigFormat::Text, content.as_bytes());
        let mut revision = 0;
        let mut go = async |request: PublishConfigRequest| {
            let answer = client.publish_config(request, None).await.unwrap();
            revision = answer.header.unwrap().revision;
            (answer.version, revision)
        };
        let (_, at) = go(text("for all")).await;
        let mut one = Eyes::open(&client, "one", &[]).await;
        let mut eu = Eyes::open(&client, "two", &[("zone", "eu"), ("tier", "1")]).await;
        let mut both = Eyes::open(&client, "three", &[("zone", "eu")]).await;
        for eyes in [&mut one, &mut eu, &mut both] {
            eyes.check(&client, at, 1, "").await;
        }
        let labels = LabelPicks { labels: [("zone".to_owned(), "eu".to_owned())].into() };
        let terms = gray("eu", 10, gray_terms::Picks::Labels(labels));
        let (v2, _) =
            go(PublishConfigRequest { gray: Some(Box::new(terms)), ..text("for eu") }).await;
        let picks = ClientPicks { clients: vec!["three".into(), "one".into(), "one".into()] };
        let terms = gray("named", 20, gray_terms::Picks::Clients(picks));
        let (v3, at) =
            go(PublishConfigRequest { gray: Some(Box::new(terms)), ..text("for some") }).await;
        assert_eq!((v2, v3), (2, 3));
        one.check(&client, at, 3, "named").await;
        eu.check(&client, at, 2, "eu").await;
        both.check(&client, at, 3, "named").await;

        // A share: stable, and a greater one only adds clients.
        let share = async |basis_points| {
            let terms = gray("share", 30, gray_terms::Picks::BasisPoints(basis_points));
            let request =
                PublishConfigRequest { gray: Some(Box::new(terms)), ..text("for a share") };
            client.publish_config(request, None).await.unwrap();
            let mut picked = BTreeSet::new();
            for number in 0..200 {
                let who = ConfigClient { id: format!("c-{number}"), labels: BTreeMap::new() };
                let request = GetConfigRequest { client: Some(who), ..get("a") };
                if client.get_config(request).await.unwrap().item.unwrap().rule == "share" {
                    picked.insert(number);
                }
            }
            picked
        };
        let few = share(2_000).await;
        let many = share(6_000).await;
        assert!((15..=70).contains(&few.len()) && (90..=150).contains(&many.len()));
        assert!(few.is_subset(&many));
        let all = share(10_000).await;
        assert_eq!(all.len(), 200);
        let end = |rule: &str, promote| EndGrayRequest {
            group: GROUP.into(),
            key: "a".into(),
            rule: rule.into(),
            promote,
            author: "bob".into(),
            ..Default::default()
        };
        let ended = client.end_gray(end("share", false), None).await.unwrap();
        let at = ended.header.unwrap().revision;
        one.check(&client, at, 3, "named").await;
        eu.check(&client, at, 2, "eu").await;

        // A version that is not the one that runs is not promoted.
        let other = EndGrayRequest { expected_version: Some(2), ..end("named", true) };
        let error = client.end_gray(other, None).await.unwrap_err();
        assert_eq!(error, Error::CompareFailed { expected: 2, current: 3 });
        let promoted = client.end_gray(end("named", true), None).await.unwrap();
        let (version, at) = (promoted.version, promoted.header.unwrap().revision);
        one.check(&client, at, version, "").await;
        eu.check(&client, at, 2, "eu").await;
        both.check(&client, at, 2, "eu").await;
        let aborted = client.end_gray(end("eu", false), None).await.unwrap();
        let at = aborted.header.unwrap().revision;
        for eyes in [&mut one, &mut eu, &mut both] {
            eyes.check(&client, at, version, "").await;
            assert_eq!(eyes.cache.get(GROUP, "a").unwrap().text(), Some("for some"));
        }
        let told = history(&client, "a").await;
        let last = told.first().unwrap();
        assert_eq!((last.origin(), last.origin_version), (ConfigOrigin::Promoted, 3));
        let eu = told.iter().find(|release| release.version == 2).unwrap();
        assert_eq!(eu.ending(), GrayEnding::Aborted);
        assert!(eu.ended_by.starts_with("bob"), "{eu:?}");
    });
}

async fn instances(client: &Client, key: &str) -> Vec<ConfigInstance> {
    let request =
        ConfigInstancesRequest { group: GROUP.into(), key: key.into(), ..Default::default() };
    client.config_instances(request).await.unwrap().instances
}

/// Who runs what: caches report what they handed out, since when; again through a session that
/// replaces a lost one; and who is lost is not listed any more.
#[test]
fn who_runs_what() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let json = ConfigFormat::Json;
        client.publish_config(publish("a", json, b"1"), None).await.unwrap();
        let mut caches = Vec::new();
        for id in ["one", "two"] {
            let options = ConfigCacheOptions::new(id).prefix(GROUP, "");
            let cache = client.config_cache(options).await.unwrap();
            cache.synced().await.unwrap();
            assert_eq!(cache.get(GROUP, "a").unwrap().version(), 1);
            caches.push(cache);
        }
        let runs = async |expected: &[(&str, u64)]| {
            let what = format!("{expected:?}");
            eventually(&what, async || {
                let told = instances(&client, "a").await;
                let mut found: Vec<(&str, u64)> =
                    told.iter().map(|one| (one.client.as_str(), one.version)).collect();
                found.sort_unstable();
                if found == expected { Ok(told.clone()) } else { Err(format!("{told:?}")) }
            })
            .await
        };
        let told = runs(&[("one", 1), ("two", 1)]).await;
        assert!(told.iter().all(|one| one.since_ms > 1_700_000_000_000 && one.lost_at_ms == 0));
        client.publish_config(publish("a", json, b"2"), None).await.unwrap();
        eventually("the second version", async || {
            match caches[0].get(GROUP, "a").unwrap().version() {
                2 => Ok(()),
                version => Err(version.to_string()),
            }
        })
        .await;
        let told = runs(&[("one", 2), ("two", 1)]).await;
        let one = told.iter().find(|one| one.client == "one").unwrap().clone();
        let two = told.iter().find(|one| one.client == "two").unwrap().clone();
        assert!(one.since_ms >= two.since_ms);

        // The session is taken away, and the leader too: the cache reports again by itself.
        client.close_session(one.session).await.unwrap();
        let leader = cluster.leader().await;
        cluster.kill(leader);
        let told = runs(&[("one", 2), ("two", 1)]).await;
        let again = told.iter().find(|other| other.client == "one").unwrap();
        assert_ne!(again.session, one.session);
        cluster.start(leader).await;
        caches.remove(0).close().await;
        runs(&[("two", 1)]).await;

        // One that dies: its session is kept alive by nobody.
        let channel = channel(&cluster.node(1).client).await;
        let mut sessions = v1::sessions_client::SessionsClient::new(channel);
        let open = OpenSessionRequest { ttl_ms: 1_000, client: "dead".into() };
        let session = sessions.open(open).await.unwrap().into_inner().session;
        let running = ConfigRunning {
            group: GROUP.into(),
            key: "a".into(),
            version: 2,
            ..Default::default()
        };
        let report = ReportConfigRequest {
            session,
            client: "dead".into(),
            items: vec![running],
            request_id: None,
        };
        assert_eq!(client.report_config(report, None).await.unwrap().changed, 1);
        runs(&[("two", 1)]).await;
        cluster.same_digest().await;
    });
}

/// Values of 1 MiB: published, watched, read from the history, which is bounded by bytes, and there again
/// after a restart, in a backup, and on a node that was rebuilt from a snapshot.
#[test]
fn large_values() {
    run(async {
        const BYTES: usize = 1024 * 1024;
        const VERSIONS: u8 = 12;
        let mut cluster = Setup::default().option("--snapshot-entries", 10).start(3).await;
        let client = cluster.client();
        let shell = Shell::of(&cluster);
        let value = |version: u8| {
            let bytes = (0..BYTES).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3]);
            bytes.map(|byte| byte ^ version).collect::<Vec<u8>>()
        };
        let binary = ConfigFormat::Binary;
        let mut too_long = value(0);
        too_long.push(0);
        let error = client.publish_config(publish("big", binary, &too_long), None).await;
        assert!(matches!(error, Err(Error::Invalid { .. })), "{error:?}");
        // A watch that resumes after revision 0, on another node, would begin with a snapshot.
        let other = PublishConfigRequest { group: "other".into(), ..publish("a", binary, b"") };
        client.publish_config(other, None).await.unwrap();
        let range = WatchRange::ConfigPrefix {
            namespace: String::new(),
            group: GROUP.into(),
            prefix: String::new(),
        };
        let mut watch = client.watch(range);
        let first = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        let WatchUpdate::Snapshot { revision: 1.., events } = first else { panic!("{first:?}") };
        assert!(events.is_empty());
        let away = cluster.followers().await[0];
        cluster.kill(away);
        for version in 1..=VERSIONS {
            let answer = client.publish_config(publish("big", binary, &value(version)), None).await;
            assert_eq!(answer.unwrap().version, u64::from(version));
        }
        let mut seen = 0;
        while seen < VERSIONS {
            let update = timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
            let WatchUpdate::Changes { events, .. } = update else { continue };
            for event in events {
                let Some(watch_event::Record::Config(item)) = event.record else { panic!() };
                seen += 1;
                assert!(item.release.unwrap().content == value(seen), "version {seen} as watched");
            }
        }
        cluster.start(away).await;
        let newest = u64::from(VERSIONS);
        let kept = async |client: &Client| {
            let told = history(client, "big").await;
            let versions: Vec<u64> = told.iter().map(|release| release.version).collect();
            // The current one and 8 MiB of past ones.
            assert_eq!(versions, (newest - 8..=newest).rev().collect::<Vec<_>>());
            for version in [newest, newest - 8] {
                let request = GetConfigRequest { version, ..get("big") };
                let item = client.get_config(request).await.unwrap().item.unwrap();
                let content = item.release.unwrap().content;
                assert!(content == value(version as u8), "version {version}");
            }
        };
        eventually("the node that was away", async || {
            text(current(&cluster.at(away), "big").await).map(|_| ())
        })
        .await;
        for id in cluster.ids() {
            kept(&cluster.at(id)).await;
        }
        // Contents of many large items come in several pages and several messages.
        for key in ["big-1", "big-2", "big-3"] {
            client.publish_config(publish(key, binary, &value(1)), None).await.unwrap();
        }
        let cache =
            client.config_cache(ConfigCacheOptions::new("me").prefix(GROUP, "big-")).await.unwrap();
        cache.synced().await.unwrap();
        assert_eq!(cache.all().iter().filter(|one| one.content() == value(1)).count(), 3);
        cluster.same_digest().await;

        let file = cluster.dir().join("backup.snap");
        let path = file.to_str().unwrap();
        shell.json(&format!("snapshot save {path}")).await;
        let mut restored = Setup::default().option("--cluster-token", "restored").define(1);
        let (data, members) = (restored.node(1).data.display().to_string(), restored.members());
        let line = format!(
            "snapshot restore {path} --id 1 --data-dir {data} --initial-cluster {members} \
             --cluster-token restored"
        );
        shell.json(&line).await;
        restored.start(1).await;
        kept(&restored.client()).await;
        cluster.kill_all();
        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        kept(&cluster.client()).await;
    });
}
