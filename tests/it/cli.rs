//! The command line: every command against a cluster of real processes, in all three forms of output,
//! and what it does when something is wrong.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::harness::{
    Cluster, PATIENCE, Printed, Setup, eventually, free_ports, get_instance, instance, printed,
    quorate, run, send, text,
};

/// A cluster as the command line sees it.
pub struct Shell {
    pub endpoints: String,
}

impl Shell {
    pub fn of(cluster: &Cluster) -> Shell {
        Shell { endpoints: cluster.endpoints().join(",") }
    }

    pub fn line<'a>(&'a self, words: &'a str) -> Vec<&'a str> {
        let global = ["--endpoints", &self.endpoints, "--command-timeout", "30s"];
        global.into_iter().chain(words.split_whitespace()).collect()
    }

    pub async fn try_run(&self, words: &str) -> Printed {
        printed(self.line(words)).await
    }

    /// Runs a command that must succeed and say nothing of errors.
    pub async fn run(&self, words: &str) -> String {
        let printed = self.try_run(words).await;
        assert_eq!(printed.code, 0, "{words}: {printed:?}");
        assert!(!printed.stderr.contains("error"), "{words}: {printed:?}");
        printed.stdout
    }

    /// The same with `-w json`: one line that parses.
    pub async fn json(&self, words: &str) -> Value {
        let text = self.run(&format!("{words} -w json")).await;
        assert_eq!(text.lines().count(), 1, "{words}: {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{words}: {error}: {text}"))
    }

    /// Runs a command that must fail with this code, an error on stderr and nothing on stdout.
    pub async fn fails(&self, words: &str, code: i32, why: &str) {
        let printed = self.try_run(words).await;
        assert_eq!(printed.code, code, "{words}: {printed:?}");
        assert_eq!(printed.stdout, "", "{words}");
        assert!(printed.stderr.starts_with("error: "), "{words}: {printed:?}");
        assert!(printed.stderr.contains(why), "{words}: {why:?} is not in {printed:?}");
    }
}

/// The fields of a JSON object, which documentation promises.
fn fields(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

pub fn has_fields(value: &Value, expected: &str) {
    let expected: BTreeSet<&str> = expected.split_whitespace().collect();
    let found = fields(value);
    assert!(found.is_superset(&expected), "{expected:?} are not all in {value}");
}

const INSTANCE: &str = "namespace service id endpoints weight zone metadata health admin reason \
                        hash_key session create_revision mod_revision created_at_ms modified_at_ms \
                        critical_since_ms";
const SERVICE: &str = "namespace name protect_threshold_percent deregister_after_ms policy \
                       policy_parameters metadata create_revision mod_revision instances \
                       healthy_instances";

/// Register, find, change and remove services and instances, as people, as tables and as JSON.
#[test]
fn services_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let text =
            shell.run("service register web --id web-1 --address 10.0.0.1:80 --zone eu").await;
        assert!(text.starts_with("web/web-1 registered at revision "), "{text}");
        let json = shell
            .json(
                "service register web --id web-2 --address grpc=10.0.0.2:81 --weight 5 --meta v=2",
            )
            .await;
        has_fields(&json, "revision created mod_revision namespace service id session");
        assert_eq!(json["created"], true);
        assert_eq!(json["namespace"], "default");
        let json = shell.json("service register web --id web-2 --address grpc=10.0.0.2:81").await;
        assert_eq!(json["created"], false);

        let table = shell.run("service get web -w table").await;
        let row = table.lines().find(|line| line.contains("web-1")).unwrap();
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        assert_eq!(
            cells[1..7],
            ["web-1", "10.0.0.1:80", "1", "eu", "passing", "enabled"],
            "{table}"
        );
        let json = shell.json("service get web").await;
        has_fields(&json, "revision consistency protected service instances");
        has_fields(&json["service"], SERVICE);
        has_fields(&json["instances"][0], INSTANCE);
        assert_eq!(json["consistency"], "linearizable");
        assert_eq!(json["instances"].as_array().unwrap().len(), 2);
        assert_eq!(shell.json("service get web --stale").await["consistency"], "stale");
        let json = shell.json("service get web --zone eu").await;
        assert_eq!(json["instances"].as_array().unwrap().len(), 1);

        let json = shell.json("service maint web web-1 --disable --reason upgrade").await;
        assert_eq!(json["instance"]["admin"], "disabled");
        let healthy = shell.json("service get web --healthy").await;
        assert_eq!(healthy["instances"].as_array().unwrap().len(), 1);
        let one = shell.json("service get web web-1").await;
        assert_eq!(one["instance"]["reason"], "upgrade");
        shell.run("service maint web web-1 --enable").await;

        shell
            .json("service put web --protect-threshold 30 --deregister-after 1m --policy random")
            .await;
        let json = shell.json("service list").await;
        has_fields(&json["services"][0], SERVICE);
        assert_eq!(json["services"][0]["protect_threshold_percent"], 30);
        assert_eq!(json["services"][0]["deregister_after_ms"], 60_000);
        assert!(shell.run("service list -w table").await.contains("| web "));
        shell.fails("service delete web", 1, "in use").await;

        // An instance goes round: what `get` prints, `register -` reads.
        let whole = shell.run("service get web web-2 -w json").await;
        assert_eq!(shell.json("service deregister web web-2").await["removed"], true);
        assert_eq!(shell.json("service deregister web web-2").await["removed"], false);
        let mut back = quorate(shell.line("service register - -w json"));
        let mut back = back.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        back.stdin.take().unwrap().write_all(whole.as_bytes()).await.unwrap();
        let output = timeout(PATIENCE, back.wait_with_output()).await.unwrap().unwrap();
        assert!(output.status.success());
        let again = shell.json("service get web web-2").await;
        let whole: Value = serde_json::from_str(&whole).unwrap();
        assert_eq!(again["instance"]["endpoints"], whole["instance"]["endpoints"]);
        assert!(
            again["instance"]["mod_revision"].as_u64() > whole["instance"]["mod_revision"].as_u64()
        );

        for id in ["web-1", "web-2"] {
            shell.run(&format!("service deregister web {id}")).await;
        }
        assert_eq!(shell.json("service delete web").await["removed"], true);
        assert_eq!(shell.json("service list").await, json!({"services": []}));
    });
}

/// Namespaces keep services apart.
#[test]
fn namespaces_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let json = shell.json("namespace put team-a --description ours").await;
        assert_eq!(json["created"], true);
        shell.run("service register web --id a --address h:1 -n team-a").await;
        shell.run("service register web --id b --address h:1").await;
        let names = async |line: &str| {
            let json = shell.json(line).await;
            let instances = json["instances"].as_array().unwrap().clone();
            instances.iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names("service get web -n team-a").await, ["a"]);
        assert_eq!(names("service get web").await, ["b"]);
        let json = shell.json("namespace list").await;
        has_fields(&json["namespaces"][0], "name description create_revision mod_revision");
        assert!(json["namespaces"].to_string().contains("team-a"), "{json}");
        shell.fails("namespace delete team-a", 1, "in use").await;
        shell.run("service deregister web a -n team-a").await;
        assert_eq!(shell.json("namespace delete team-a").await["removed"], true);
        assert!(!shell.run("namespace list").await.contains("team-a"));
    });
}

/// Status, health, members, leadership and sessions.
#[test]
fn the_cluster_by_command() {
    run(async {
        let mut cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let table = shell.run("endpoint status -w table").await;
        let header = table.lines().nth(1).unwrap().to_lowercase();
        let columns = "endpoint | id | version | db size | is leader | is learner | raft term | raft \
                       index | applied index | errors";
        let squeezed = header.split('|').map(str::trim).collect::<Vec<_>>().join(" | ");
        assert_eq!(squeezed.trim_matches([' ', '|']), columns);
        assert_eq!(table.lines().count(), 3 + 3 + 1, "{table}");
        let rows = shell.json("endpoint status").await;
        let leaders = rows.as_array().unwrap().iter().filter(|row| row["status"]["leader"] == true);
        assert_eq!(leaders.count(), 1, "{rows}");
        has_fields(
            &rows[0]["status"],
            "node_id revision cluster_id version leader_id leader_client_address leader learner term \
             last_log_index committed_index applied_index snapshot_index purged_index log_bytes \
             image_bytes snapshot_bytes instances services sessions watchers durability errors \
             uptime_ms",
        );
        let health = shell.json("endpoint health").await;
        assert!(health.as_array().unwrap().iter().all(|row| row["healthy"] == true), "{health}");
        // One endpoint is enough to find all.
        let first = cluster.endpoints()[0].clone();
        let all = eventually("the addresses of all members", async || {
            let one = Shell { endpoints: first.clone() };
            let printed = one.try_run("endpoint status --cluster -w json").await;
            let rows: Value = serde_json::from_str(&printed.stdout).unwrap_or_default();
            let found = rows.as_array().map_or(0, Vec::len);
            if printed.code == 0 && found == 3 { Ok(rows) } else { Err(format!("{printed:?}")) }
        })
        .await;
        let endpoints: BTreeSet<&str> =
            all.as_array().unwrap().iter().map(|row| row["endpoint"].as_str().unwrap()).collect();
        assert_eq!(endpoints, cluster.endpoints().iter().map(String::as_str).collect());

        let members = shell.json("member list").await;
        assert_eq!(members["members"].as_array().unwrap().len(), 3);
        has_fields(&members["members"][0], "id peer_address client_address learner leader");
        let leader = cluster.leader().await;
        let moved = shell.json("move-leader").await;
        assert_ne!(moved["leader_id"], leader);
        let asked = shell.json(&format!("move-leader {leader}")).await;
        assert_eq!(asked["leader_id"], leader);
        shell.fails("move-leader 9", 1, "node 9 is not a voter").await;
        shell.fails("member promote 9", 1, "node 9 is not a member").await;
        shell.fails("member remove 9", 1, "\"9\" does not exist").await;
        assert!(shell.run("member list -w table").await.contains("IS LEADER"));

        let session = cluster.client().session(Default::default()).await.unwrap();
        let sessions = shell.json("session list").await;
        has_fields(&sessions["sessions"][0], "id ttl_ms client opened_at_ms instances");
        assert_eq!(sessions["sessions"][0]["id"], session.id());
        let closed = shell.json(&format!("session close {}", session.id())).await;
        assert_eq!(closed["closed"], true);
        assert_eq!(shell.json("session list").await, json!({"sessions": []}));

        // A node that does not answer is told in its row, and by the exit code.
        let dead = cluster.followers().await[0];
        cluster.kill(dead);
        let quick = ["--command-timeout", "2s", "endpoint", "status", "-w", "json"];
        let line: Vec<&str> = ["--endpoints", &shell.endpoints].into_iter().chain(quick).collect();
        let told = printed(line).await;
        assert_eq!(told.code, 1, "{told:?}");
        let rows: Value = serde_json::from_str(&told.stdout).unwrap();
        for row in rows.as_array().unwrap() {
            let is_dead = row["endpoint"] == cluster.node(dead).client;
            assert_eq!(row["status"].is_null(), is_dead, "{row}");
            assert_eq!(row["error"].is_string(), is_dead, "{row}");
        }
    });
}

/// A fourth node by commands alone: add, start with what `member add` says, promote, remove.
#[test]
fn members_by_command() {
    run(async {
        let mut cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        cluster.define_joining(4);
        let (peer, client) = (cluster.node(4).peer.clone(), cluster.node(4).client.clone());
        let line = format!("member add 4 --peer {peer} --client {client}");
        let added = shell.try_run(&line).await;
        assert_eq!(added.code, 0, "{added:?}");
        assert!(added.stderr.contains("quorate serve --id 4"), "{added:?}");
        assert!(added.stderr.contains("quorate member promote 4"), "{added:?}");
        cluster.start(4).await;
        let promoted = eventually("the promotion of node 4", async || {
            let printed = shell.try_run("member promote 4 -w json").await;
            if printed.code == 0 { Ok(printed.stdout) } else { Err(format!("{printed:?}")) }
        })
        .await;
        let promoted: Value = serde_json::from_str(&promoted).unwrap();
        let members = promoted["members"].as_array().unwrap();
        assert_eq!(members.len(), 4);
        assert!(members.iter().all(|member| member["learner"] == false), "{promoted}");
        let removed = shell.json("member remove 4").await;
        assert_eq!(removed["members"].as_array().unwrap().len(), 3);
    });
}

/// A Consul file becomes instances; what cannot be mapped is told per entry, and by the exit code.
#[test]
fn a_consul_file_is_imported() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/testdata/consul.json");
        let file = file.to_str().unwrap();
        let dry = shell.try_run(&format!("service import {file} --dry-run -w json")).await;
        assert_eq!(dry.code, 1);
        assert_eq!(shell.json("service list").await, json!({"services": []}));
        let printed = shell.try_run(&format!("service import {file} -w json")).await;
        assert_eq!(printed.code, 1, "{printed:?}");
        let report: Value = serde_json::from_str(&printed.stdout).unwrap();
        assert_eq!(report["failed"], 1);
        let results: Vec<&str> = report["entries"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["result"].as_str().unwrap())
            .collect();
        assert_eq!(results, ["created", "created", "failed"]);
        assert!(report["entries"][0]["notes"].to_string().contains("TTL check (30s)"), "{report}");
        assert!(report["entries"][2]["error"].as_str().unwrap().contains("no `port`"), "{report}");
        let one = &shell.json("service get orders orders-1").await["instance"];
        assert_eq!(one["endpoints"], json!([{"name": "", "host": "10.0.0.7", "port": 8080}]));
        assert_eq!(one["weight"], 10);
        assert_eq!(one["metadata"], json!({"tags": "v2,eu", "team": "shop"}));
        assert_eq!(one["session"], 0);
        let table = shell.try_run(&format!("service import {file} -w table")).await;
        assert!(table.stdout.contains("existing"), "{table:?}");
    });
}

/// `service watch` prints what is and each change; `--after` resumes where it ended.
#[test]
fn changes_are_printed_as_they_happen() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let client = cluster.client();
        client.register(instance("web", "a"), None).await.unwrap();
        let (mut watch, mut lines) = follow(&shell, "service watch web -w json").await;
        let snapshot = next_json(&mut lines).await;
        assert_eq!((&snapshot["op"], &snapshot["events"]), (&json!("snapshot"), &json!(1)));
        let put = next_json(&mut lines).await;
        assert_eq!((&put["op"], &put["instance"]["id"]), (&json!("put"), &json!("a")));
        has_fields(&put["instance"], INSTANCE);
        let added = client.register(instance("web", "b"), None).await.unwrap().mod_revision;
        let put = next_change(&mut lines).await;
        assert_eq!((&put["op"], &put["revision"]), (&json!("put"), &json!(added)));
        shell.run("service deregister web a").await;
        let delete = next_change(&mut lines).await;
        assert_eq!((&delete["op"], &delete["instance"]["id"]), (&json!("delete"), &json!("a")));
        // Ctrl-C is the usual end of it.
        send(watch.id().unwrap(), rustix::process::Signal::INT);
        assert!(timeout(PATIENCE, watch.wait()).await.unwrap().unwrap().success());

        let line = format!("service watch web -w json --after {added}");
        let (_watch, mut lines) = follow(&shell, &line).await;
        assert_eq!(next_change(&mut lines).await, delete);
    });
}

pub async fn follow(shell: &Shell, words: &str) -> (Child, Lines<BufReader<ChildStdout>>) {
    let mut child = quorate(shell.line(words)).stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

pub async fn next_json(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line in time").unwrap();
    serde_json::from_str(&line.expect("another line")).unwrap()
}

pub async fn next_change(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    loop {
        let value = next_json(lines).await;
        if value["op"] != "bookmark" {
            return value;
        }
    }
}

/// Backup, look at it, and make a new cluster of it: other members, same data, and both go on apart.
#[test]
fn a_backup_becomes_a_new_cluster() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        for number in 0..50 {
            let one = instance("web", &format!("web-{number}"));
            cluster.client().register(one, None).await.unwrap();
        }
        let file = cluster.dir().join("backup.snap");
        let path = file.to_str().unwrap();
        let saved = shell.json(&format!("snapshot save {path}")).await;
        has_fields(
            &saved,
            "file bytes cluster_id term applied_index revision clock_ms records digest members",
        );
        assert_eq!(saved["bytes"], std::fs::metadata(&file).unwrap().len());
        assert_eq!(shell.json(&format!("snapshot status {path}")).await, saved);
        assert!(shell.run(&format!("snapshot status {path} -w table")).await.contains("| digest "));
        let before = cluster.instances(1, "web").await;
        // Not in the backup.
        cluster.client().register(instance("web", "later"), None).await.unwrap();

        let mut restored = Setup::default().option("--cluster-token", "restored").define(3);
        for id in restored.ids() {
            let data = restored.node(id).data.display().to_string();
            let members = restored.members();
            let line = format!(
                "snapshot restore {path} --id {id} --data-dir {data} --initial-cluster {members} \
                 --cluster-token restored"
            );
            let json = shell.json(&line).await;
            has_fields(&json, "data_dir id cluster_id applied_index revision records");
            let revision = saved["revision"].as_u64().unwrap();
            assert_eq!(json["revision"], revision + 1_000_000_000);
            // Another cluster of the same backup, whose revisions are its own.
            let more = line.replace(&data, &format!("{data}-2")) + " --bump-revision 2000000000";
            assert_eq!(shell.json(&more).await["revision"], revision + 2_000_000_000);
            shell.fails(&line, 3, "not empty").await;
        }
        restored.spawn_all();
        restored.ready(&restored.ids()).await;
        let client = restored.client();
        client.register(instance("other", "a"), None).await.unwrap();
        for id in restored.ids() {
            assert_eq!(restored.instances(id, "web").await, before, "node {id}");
        }
        restored.same_digest().await;
        // A watcher of the old cluster, which went on after the backup, begins anew.
        let seen = saved["revision"].as_u64().unwrap() + 1;
        let line = format!("service watch web -w json --after {seen}");
        let (_watch, mut lines) = follow(&Shell::of(&restored), &line).await;
        assert_eq!(next_json(&mut lines).await["op"], "snapshot");
        assert_ne!(restored.status(1).await.cluster_id, cluster.status(1).await.cluster_id);
        assert_eq!(cluster.instances(1, "web").await.len(), 51);

        // A file that is damaged is not taken.
        super::harness::flip(&file, saved["bytes"].as_u64().unwrap() / 2, 4);
        shell.fails(&format!("snapshot status {path}"), 1, path).await;
    });
}

/// Errors go to stderr with a code that says of which kind they are; nothing to stdout.
#[test]
fn errors_of_commands() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        shell.fails("service get web nobody", 1, "does not exist").await;
        shell.fails("service register web --id a", 2, "--address is missing").await;
        shell.fails("service register a+b --id a --address h:1", 1, "instance.service").await;
        shell.fails("service frobnicate", 2, "frobnicate").await;
        shell.fails("-w yaml service list", 2, "--write-out: \"yaml\"").await;
        shell.fails("snapshot status /nowhere.snap", 1, "/nowhere.snap").await;
        shell.fails("session close nine", 2, "nine").await;
        let nobody = format!("127.0.0.1:{}", free_ports(1));
        let line = ["--endpoints", &nobody, "--command-timeout", "1s", "service", "list"];
        let told = printed(line).await;
        assert_eq!((told.code, told.stdout.as_str()), (1, ""), "{told:?}");
        assert!(told.stderr.starts_with("error: ") && told.stderr.contains(&nobody), "{told:?}");
        // Options come from the environment too.
        let mut by_environment = quorate(["service", "list"]);
        by_environment.env("QUORATE_ENDPOINTS", &shell.endpoints).env("QUORATE_WRITE_OUT", "json");
        let output = timeout(PATIENCE, by_environment.output()).await.unwrap().unwrap();
        assert_eq!(output.stdout, b"{\"services\":[]}\n");
    });
}

/// What needs no cluster.
#[test]
fn version_and_completion() {
    run(async {
        let version = printed(["version"]).await;
        assert_eq!(version.stdout, concat!("quorate ", env!("CARGO_PKG_VERSION"), "\n"));
        let version = printed(["version", "-w", "json"]).await;
        let version: Value = serde_json::from_str(&version.stdout).unwrap();
        assert_eq!(version, json!({"version": env!("CARGO_PKG_VERSION"), "api": "quorate.v1"}));
        for shell in ["bash", "zsh", "fish"] {
            let script = printed(["completion", shell]).await;
            assert_eq!(script.code, 0);
            assert!(script.stdout.contains("move-leader"), "{shell}");
        }
        assert_eq!(printed(["completion", "cmd"]).await.code, 2);
        assert!(printed(["--help"]).await.stdout.contains("Usage: quorate"));
    });
}

/// `quorate dev`: one JSON line when the cluster is ready, data that stays over a restart, a taken port
/// named, and no child left behind, neither after Ctrl-C nor after dev itself was killed.
#[test]
fn a_development_cluster() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let base = free_ports(23);
        let line = [
            "dev".to_owned(),
            "--nodes".to_owned(),
            "3".to_owned(),
            "--base-port".to_owned(),
            base.to_string(),
            "--data-dir".to_owned(),
            dir.path().join("dev").display().to_string(),
            "-w".to_owned(),
            "json".to_owned(),
        ];
        for round in 0..3 {
            let mut dev =
                quorate(&line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(dev.stdout.take().unwrap()).lines();
            let ready = next_json(&mut lines).await;
            assert_eq!(ready["ready"], true);
            has_fields(&ready["nodes"][0], "id pid client peer http data_dir log");
            let pids: Vec<u32> = ready["nodes"]
                .as_array()
                .unwrap()
                .iter()
                .map(|node| u32::try_from(node["pid"].as_u64().unwrap()).unwrap())
                .collect();
            assert_eq!(pids.len(), 3);
            let endpoints: Vec<String> =
                (0..3).map(|k| format!("127.0.0.1:{}", base + 10 * k)).collect();
            assert_eq!(ready["endpoints"], json!(endpoints));
            let client = super::harness::client(&endpoints);
            let id = format!("web-{round}");
            client.register(instance("web", &id), None).await.unwrap();
            for earlier in 0..=round {
                let wanted = get_instance("web", &format!("web-{earlier}"));
                text(client.get_instance(wanted).await).unwrap();
            }
            if round == 0 {
                let second = printed(&line).await;
                assert_eq!(second.code, 5, "{second:?}");
                assert!(second.stderr.contains(&format!("port {base} ")), "{second:?}");
            }
            match round {
                2 => dev.kill().await.unwrap(),
                _ => {
                    send(dev.id().unwrap(), rustix::process::Signal::INT);
                    let status = timeout(PATIENCE, dev.wait()).await.unwrap().unwrap();
                    assert_eq!(status.code(), Some(0));
                }
            }
            eventually("the end of the children", async || {
                let left: Vec<&u32> = pids.iter().filter(|pid| is_running(**pid)).collect();
                if left.is_empty() { Ok(()) } else { Err(format!("{left:?} run")) }
            })
            .await;
        }
        // The directory belongs to that cluster.
        let mut other = line.clone();
        other[2] = "5".to_owned();
        let refused = printed(&other).await;
        assert_eq!(refused.code, 3, "{refused:?}");
    });
}

/// Whether a process that is not our child runs; one that ended and was not awaited does not.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// `service register --session-ttl` holds its instance until it is told to stop.
#[test]
fn a_registration_lives_as_long_as_its_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let words = "service register web --id a --address h:1 --session-ttl 5s -w json";
        let (mut command, mut lines) = follow(&shell, words).await;
        let told = next_json(&mut lines).await;
        let one = shell.json("service get web a").await;
        assert_eq!(one["instance"]["session"], told["session"]);
        send(command.id().unwrap(), rustix::process::Signal::TERM);
        let status = timeout(Duration::from_secs(30), command.wait()).await.unwrap().unwrap();
        assert!(status.success());
        shell.fails("service get web a", 1, "does not exist").await;
        assert_eq!(shell.json("session list").await, json!({"sessions": []}));
    });
}
