//! `quorate config` against a cluster of real processes.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use quorate::proto::v1::*;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::time::timeout;

use super::cli::{Shell, follow, has_fields, next_change, next_json};
use super::harness::{Cluster, PATIENCE, quorate, run, send};

const ITEM: &str = "namespace group key labels release rule gray keep last_version create_revision \
                    mod_revision created_at_ms modified_at_ms";
const RELEASE: &str = "version revision at_ms author comment origin origin_version origin_rule \
                       format sha256 bytes ending ended_at_ms ended_by content content_base64";

fn write(directory: &Path, name: &str, bytes: &[u8]) -> String {
    let path = directory.join(name);
    std::fs::write(&path, bytes).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What a command writes to standard output, as it is, given something on standard input.
async fn raw(shell: &Shell, words: &str, input: &[u8]) -> Vec<u8> {
    let mut command = quorate(shell.line(words));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).await.unwrap();
    let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{words}");
    output.stdout
}

/// The life of an item by commands, as people, as tables and as JSON.
#[test]
fn items_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let dir = cluster.dir();
        let one = write(dir, "one.json", b"{\n  \"n\": 1\n}");
        let told = shell
            .json(&format!(
                "config publish g/a.json {one} --author ann --comment first --label team=x"
            ))
            .await;
        has_fields(&told, "revision version changed namespace group key format");
        assert_eq!((&told["version"], &told["format"]), (&json!(1), &json!("json")));
        assert_eq!(shell.json(&format!("config publish g/a.json {one}")).await["changed"], false);
        let two = raw(&shell, "config publish g/a.json - --expect 1", b"{\n  \"n\": 2\n}\n").await;
        assert_eq!(two, b"g/a.json version 2 published (json)\n");
        shell.fails(&format!("config publish g/a.json {one} --expect 1"), 1, "at 2").await;
        shell.fails("config publish g/a.json --value {", 1, "line 1").await;

        // The content as it is, with and without a line break at its end.
        assert_eq!(raw(&shell, "config get g/a.json", b"").await, b"{\n  \"n\": 2\n}\n");
        assert_eq!(
            raw(&shell, "config get a.json -g g --version 1", b"").await,
            b"{\n  \"n\": 1\n}"
        );
        let json = shell.json("config get g/a.json").await;
        has_fields(&json, "revision consistency why item");
        has_fields(&json["item"], ITEM);
        has_fields(&json["item"]["release"], RELEASE);
        assert_eq!(json["item"]["release"]["content"], "{\n  \"n\": 2\n}\n");
        assert_eq!(json["item"]["labels"], json!({"team": "x"}));
        let meta = shell.run("config get g/a.json --meta").await;
        assert!(meta.contains("labels") && meta.contains("team=x"), "{meta}");
        assert!(shell.run("config get g/a.json -w table").await.contains("| sha256 "));

        // Binary, an empty value, and a key with slashes; a format stays as it is.
        let bytes: Vec<u8> = (0..=255).collect();
        let file = write(dir, "binary", &bytes);
        let told = shell.json(&format!("config publish -g g/h x/../y {file}")).await;
        assert_eq!((&told["group"], &told["format"]), (&json!("g/h"), &json!("binary")));
        assert_eq!(raw(&shell, "config get -g g/h x/../y", b"").await, bytes);
        let json = shell.json("config get -g g/h x/../y").await;
        assert_eq!(json["item"]["release"]["content"], Value::Null);
        assert!(json["item"]["release"]["content_base64"].is_string());
        raw(&shell, "config publish plain - --format yaml", b"").await;
        assert_eq!(raw(&shell, "config get plain", b"").await, b"");
        let told = shell.json("config publish plain --value a:1").await;
        assert_eq!((&told["version"], &told["format"]), (&json!(2), &json!("yaml")));

        let list = shell.json("config list").await;
        let keys: Vec<&str> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|item| item["key"].as_str().unwrap())
            .collect();
        assert_eq!(keys, ["plain", "a.json", "x/../y"]);
        has_fields(&list["items"][0], ITEM);
        let labelled = shell.json("config list --label team=x").await;
        assert_eq!(labelled["items"].as_array().unwrap().len(), 1);
        assert!(shell.run("config list a. -g g -w table").await.contains("| a.json "));

        let diff = shell.run("config diff g/a.json 1 2").await;
        assert!(diff.starts_with("--- version 1\n+++ version 2\n"), "{diff}");
        assert!(diff.contains("\n-  \"n\": 1\n") && diff.contains("\n+  \"n\": 2\n"), "{diff}");
        has_fields(&shell.json("config diff g/a.json").await, "revision consistency from to diff");
        let told = shell.json("config rollback g/a.json 1 --expect 2 --comment back").await;
        assert_eq!((&told["version"], &told["changed"]), (&json!(3), &json!(true)));
        let told = shell.json("config delete g/a.json --expect 3").await;
        assert_eq!((&told["version"], &told["removed"]), (&json!(4), &json!(true)));
        shell.fails("config get g/a.json", 1, "does not exist").await;
        assert!(shell.run("config list --deleted").await.contains("deleted"));
        shell.run("config rollback g/a.json 3").await;
        let history = shell.json("config history g/a.json").await;
        has_fields(&history, "revision consistency item releases");
        has_fields(&history["releases"][0], RELEASE);
        let table = shell.run("config history g/a.json").await;
        let rows: Vec<Vec<&str>> =
            table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["VERSION", "TIME", "AUTHOR", "SIZE", "SHA256", "HOW", "COMMENT"]);
        assert_eq!(rows.len(), 6, "{table}");
        assert!(table.contains("rolled back to 3") && table.contains("ann"), "{table}");
        assert!(rows[5].ends_with(&["published", "first"]), "{table}");
        let purged = shell.run("config delete g/a.json --purge").await;
        assert!(purged.contains("and its history"), "{purged}");
        shell.fails("config history g/a.json", 1, "does not exist").await;
    });
}

/// Schemas, gray releases, who runs what, and the watch by commands.
#[test]
fn schemas_gray_releases_and_watches_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let dir = cluster.dir();
        let schema = "{\"properties\": {\"n\": {\"maximum\": 9}}}\n";
        let file = write(dir, "schema.json", schema.as_bytes());
        let told = shell.json(&format!("config schema put a.json {file}")).await;
        has_fields(&told, "revision changed mod_revision");
        assert_eq!(shell.run("config schema get a.json").await, schema);
        let told = shell.json("config schema get a.json").await;
        has_fields(&told, "revision consistency schema create_revision mod_revision");
        shell.fails("config publish a.json --value {\"n\":10}", 1, "/n").await;
        shell.run("config publish a.json --value {\"n\":1}").await;

        let (mut watch, mut lines) = follow(&shell, "config watch a.json -w json").await;
        assert_eq!(next_json(&mut lines).await["op"], "snapshot");
        let put = next_json(&mut lines).await;
        has_fields(&put["item"], ITEM);
        assert_eq!(put["item"]["release"]["content"], "{\"n\":1}");
        let mine = "config watch --prefix a -w json --as me --client-label zone=eu";
        let (_other, mut seen) = follow(&shell, mine).await;
        assert_eq!(next_json(&mut seen).await["op"], "snapshot");
        assert_eq!(next_json(&mut seen).await["item"]["rule"], "");

        let gray = "config gray publish a.json --value {\"n\":2} --rule canary --labels zone=eu \
                    --priority 5 --gate-counter errors{code=500} --gate-bound 3 --gate-for 1h";
        assert_eq!(shell.json(gray).await["version"], 2);
        let put = next_change(&mut lines).await;
        assert_eq!(
            (&put["item"]["rule"], &put["item"]["release"]["version"]),
            (&json!(""), &json!(1))
        );
        let put = next_change(&mut seen).await;
        assert_eq!(put["item"]["rule"], "canary");
        assert_eq!(put["item"]["release"]["version"], 2);
        let clients = "config gray publish a.json --value {\"n\":3} --rule named --clients x,y \
                       --priority 6 --gate-unhealthy 50 --gate-for 1m --gate-promote";
        shell.run(clients).await;
        let share = "config gray publish a.json --value {\"n\":4} --rule share --percent 0.5";
        shell.run(share).await;
        let list = shell.json("config gray list a.json").await;
        has_fields(&list["gray"][0], "rule priority labels clients percent gate since_ms release");
        let rules: Vec<&str> = list["gray"]
            .as_array()
            .unwrap()
            .iter()
            .map(|gray| gray["rule"].as_str().unwrap())
            .collect();
        assert_eq!(rules, ["named", "canary", "share"]);
        assert_eq!(list["gray"][1]["gate"]["counter"]["labels"], json!({"code": "500"}));
        assert_eq!(list["gray"][2]["percent"], 0.5);
        let table = shell.run("config gray list a.json -w table").await;
        assert!(table.contains("| errors{code=500} > 0 + 3 within 1h"), "{table}");

        // Who asks gets what is theirs, and is told why on standard error.
        let told = shell.try_run("config get a.json --as me --client-label zone=eu").await;
        assert_eq!((told.code, told.stdout.as_str()), (0, "{\"n\":2}"), "{told:?}");
        assert!(told.stderr.contains("version 2: gray rule canary"), "{told:?}");
        let told = shell.json("config get a.json --as x").await;
        assert_eq!(told["item"]["release"]["content"], "{\"n\":3}");
        assert!(told["why"].as_str().unwrap().contains("named"));
        assert_eq!(shell.run("config get a.json").await, "{\"n\":1}");

        shell.fails("config gray promote a.json canary --expect 7", 1, "at 2").await;
        let told = shell.json("config gray promote a.json canary --expect 2").await;
        assert_eq!(told["version"], 5);
        shell.run("config gray abort a.json named --comment no").await;
        shell.run("config gray abort a.json share").await;
        shell.fails("config gray abort a.json share", 1, "does not exist").await;
        assert_eq!(shell.run("config get a.json").await, "{\"n\":2}");
        let history = shell.run("config history a.json").await;
        assert!(
            history.contains("gray named, aborted") && history.contains("promoted 2"),
            "{history}"
        );

        let session = cluster.client().session(Default::default()).await.unwrap();
        let running = ConfigRunning { key: "a.json".into(), version: 5, ..Default::default() };
        let report = ReportConfigRequest {
            session: session.id(),
            client: "me".into(),
            items: vec![running],
            request_id: None,
        };
        cluster.client().report_config(report, None).await.unwrap();
        let told = shell.json("config instances a.json").await;
        has_fields(&told["instances"][0], "client session version rule since_ms lost_at_ms");
        assert_eq!(told["instances"][0]["version"], 5);
        assert!(shell.run("config instances a.json -w table").await.contains("| me "));

        shell.run("config schema delete a.json").await;
        shell.fails("config schema get a.json", 1, "does not exist").await;
        let last = shell.json("config delete a.json").await;
        loop {
            let line = next_change(&mut lines).await;
            if line["op"] == "delete" {
                assert_eq!(line["revision"], last["revision"]);
                break;
            }
        }
        send(watch.id().unwrap(), Signal::INT);
        assert!(timeout(PATIENCE, watch.wait()).await.unwrap().unwrap().success());
    });
}

/// Every file below a directory, from it on.
fn tree(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for group in std::fs::read_dir(directory).unwrap() {
        let group = group.unwrap().path();
        if group.is_file() {
            continue;
        }
        for file in std::fs::read_dir(&group).unwrap() {
            let file = file.unwrap().path();
            let name = file.strip_prefix(directory).unwrap().to_str().unwrap().to_owned();
            files.insert(name, std::fs::read(file).unwrap());
        }
    }
    files
}

fn results(report: &str) -> Vec<(String, String)> {
    let report: Value = serde_json::from_str(report).unwrap();
    let rows = report["items"].as_array().unwrap().iter();
    rows.map(|row| {
        let name = format!("{}/{}", row["group"].as_str().unwrap(), row["key"].as_str().unwrap());
        (name, row["result"].as_str().unwrap().to_owned())
    })
    .collect()
}

/// A namespace goes out as a directory and comes in elsewhere to the byte, whatever its names and
/// contents are; a second import does nothing; what differs is told, and changed when asked for.
#[test]
fn a_namespace_goes_round_as_a_directory() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let client = cluster.client();
        shell.run("namespace put copy").await;
        let long = format!("a{}", "/:".repeat(63));
        let all: Vec<u8> = (0..=255).collect();
        let large = vec![b'x'; 1024 * 1024];
        let items: [(&str, &str, ConfigFormat, &[u8]); 10] = [
            ("default", "app.json", ConfigFormat::Json, b"{\"a\": 1}"),
            ("default", "app.yaml", ConfigFormat::Yaml, b"a: 1\r\nb: \"\xc3\xbc\"\r\n"),
            ("default", "empty", ConfigFormat::Text, b""),
            ("default", "binary.json", ConfigFormat::Binary, &all),
            ("default", "a", ConfigFormat::Text, b"no line break"),
            ("default", "a/b", ConfigFormat::Text, b"below a?\n"),
            ("g/h", "x/../../y", ConfigFormat::Properties, b"a=1\n"),
            ("manifest.json", "manifest.json", ConfigFormat::Toml, b"a = 1\n"),
            ("g", &long, ConfigFormat::Text, b"a long name"),
            ("g", "large", ConfigFormat::Text, &large),
        ];
        for (group, key, format, content) in items {
            let request = PublishConfigRequest {
                group: group.into(),
                key: key.into(),
                format: format.into(),
                content: content.into(),
                labels: [("of".to_owned(), key.chars().take(5).collect())].into(),
                replace_labels: true,
                keep: 7,
                ..Default::default()
            };
            client.publish_config(request, None).await.unwrap();
        }
        let schema = PutSchemaRequest {
            key: "app.json".into(),
            schema: " {\"required\": [\"a\"]}\n\n".into(),
            ..Default::default()
        };
        client.put_schema(schema, None).await.unwrap();

        let (one, two) = (cluster.dir().join("one"), cluster.dir().join("two"));
        let (first, second) = (one.to_str().unwrap(), two.to_str().unwrap());
        let told = shell.json(&format!("config export {first}")).await;
        has_fields(&told, "directory namespace revision items bytes removed");
        assert_eq!(told["items"], 10);
        shell.fails(&format!("config export {first}"), 1, "is not empty").await;
        let exported = tree(&one);
        assert_eq!(exported.len(), 10);
        assert_eq!(exported["default/binary.json"], all);
        assert_eq!(exported["default/a%2Fb"], b"below a?\n");
        assert_eq!(exported["g%2Fh/x%2F..%2F..%2Fy"], b"a=1\n");

        let dry = shell.run(&format!("config import {first} -n copy --dry-run -w json")).await;
        assert!(results(&dry).iter().all(|(_, result)| result == "created"), "{dry}");
        assert_eq!(shell.json("config list -n copy").await, json!({"items": []}));
        let table = shell.run(&format!("config import {first} -n copy")).await;
        assert_eq!(table.matches(" created ").count(), 10, "{table}");
        let again = shell.run(&format!("config import {first} -n copy -w json")).await;
        assert!(results(&again).iter().all(|(_, result)| result == "unchanged"), "{again}");
        shell.run(&format!("config export {second} -n copy")).await;
        assert!(tree(&two) == exported, "the bytes differ");
        let manifest = |dir: &Path| -> Value {
            let text = std::fs::read(dir.join("manifest.json")).unwrap();
            let mut value: Value = serde_json::from_slice(&text).unwrap();
            for volatile in ["namespace", "revision"] {
                value.as_object_mut().unwrap().remove(volatile);
            }
            value
        };
        assert_eq!(manifest(&one), manifest(&two));

        // What differs is not touched, unless it is asked for; single refusals stop nothing.
        std::fs::write(two.join("default/app.json"), "{\"b\": 1}").unwrap();
        std::fs::write(two.join("default/app.yaml"), "changed: true\n").unwrap();
        std::fs::write(two.join("default/new%2Fone.toml"), "a = 1\n").unwrap();
        std::fs::remove_file(two.join("default/empty")).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", two.join("default/empty")).unwrap();
        let line = format!("config import {second} -n copy -w json");
        let told = shell.try_run(&line).await;
        assert_eq!(told.code, 1, "{told:?}");
        let found: BTreeMap<String, String> = results(&told.stdout).into_iter().collect();
        assert_eq!(found["default/app.yaml"], "differs");
        assert_eq!(found["default/app.json"], "differs");
        assert_eq!(found["default/new/one.toml"], "created");
        assert_eq!(found["/"], "failed", "{told:?}");
        assert_eq!(found["default/a"], "unchanged");
        let told = shell.try_run(&format!("{line} --overwrite --author bob")).await;
        assert_eq!(told.code, 1, "{told:?}");
        let found: BTreeMap<String, String> = results(&told.stdout).into_iter().collect();
        assert_eq!(found["default/app.yaml"], "updated");
        assert_eq!(found["default/app.json"], "failed", "its schema refuses it");
        assert_eq!(shell.run("config get app.yaml -n copy").await, "changed: true\n");
        assert_eq!(shell.run("config get app.json -n copy").await, "{\"a\": 1}");
        assert_eq!(shell.run("config get empty -n copy").await, "");
        let history = shell.run("config history app.yaml -n copy").await;
        assert!(history.contains("bob") && history.contains("imported"), "{history}");

        // A schema that the present content does not fit comes after the content that does.
        let schema = "{\"required\": [\"a\", \"b\"]}";
        std::fs::write(two.join("default/app.json"), "{\"a\": 1, \"b\": 2}").unwrap();
        let mut edited: Value =
            serde_json::from_slice(&std::fs::read(two.join("manifest.json")).unwrap()).unwrap();
        let entries = edited["items"].as_array_mut().unwrap();
        let entry = entries.iter_mut().find(|entry| entry["key"] == "app.json").unwrap();
        entry["schema"] = json!(schema);
        std::fs::write(two.join("manifest.json"), edited.to_string()).unwrap();
        let told = shell.try_run(&format!("{line} --overwrite")).await;
        let found: BTreeMap<String, String> = results(&told.stdout).into_iter().collect();
        assert_eq!(found["default/app.json"], "updated", "{told:?}");
        assert_eq!(shell.run("config schema get app.json -n copy").await, schema);
        assert_eq!(shell.run("config get app.json -n copy").await, "{\"a\": 1, \"b\": 2}");
        let told = shell.try_run(&line).await;
        let found: BTreeMap<String, String> = results(&told.stdout).into_iter().collect();
        assert_eq!(found["default/app.json"], "unchanged", "{told:?}");

        // A later export replaces the earlier one and leaves what is not its own.
        shell.run("config delete empty").await;
        std::fs::write(one.join("README"), "mine").unwrap();
        let told = shell.json(&format!("config export {first} --overwrite")).await;
        assert_eq!((&told["items"], &told["removed"]), (&json!(9), &json!(1)));
        assert!(!one.join("default/empty").exists() && one.join("README").exists());
        let told = shell.try_run(&format!("config import {first}")).await;
        assert_eq!(told.code, 0, "{told:?}");
        assert!(told.stderr.contains("README is no item"), "{told:?}");
    });
}
