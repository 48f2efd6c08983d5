//! `lock`, `elect` and `txn` on the command line.

use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use tokio::time::timeout;

use super::harness::{Cluster, PATIENCE, Printed, eventually, printed, quorate, run, send};

struct Shell {
    endpoints: String,
}

impl Shell {
    fn of(cluster: &Cluster) -> Shell {
        Shell { endpoints: cluster.endpoints().join(",") }
    }

    fn line<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        let global = ["--endpoints", &self.endpoints, "--command-timeout", "30s"];
        global.into_iter().chain(words.iter().copied()).collect()
    }

    async fn run(&self, words: &[&str]) -> Printed {
        printed(self.line(words)).await
    }

    async fn json(&self, words: &[&str]) -> Value {
        let all: Vec<&str> = ["-w", "json"].into_iter().chain(words.iter().copied()).collect();
        let printed = self.run(&all).await;
        assert_eq!((printed.code, printed.stderr.as_str()), (0, ""), "{words:?}: {printed:?}");
        serde_json::from_str(&printed.stdout).unwrap_or_else(|error| panic!("{error}: {printed:?}"))
    }

    /// A command that goes on, and the lines that it prints.
    fn start(&self, words: &[&str]) -> (Child, Lines<BufReader<ChildStdout>>) {
        let all: Vec<&str> = ["-w", "json"].into_iter().chain(words.iter().copied()).collect();
        let mut child =
            quorate(self.line(&all)).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        (child, lines)
    }

    /// `txn` with this on standard input.
    async fn txn(&self, more: &[&str], input: &str) -> Printed {
        let words: Vec<&str> = ["txn"].into_iter().chain(more.iter().copied()).collect();
        let mut child = quorate(self.line(&words))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input.as_bytes()).await.unwrap();
        drop(stdin);
        let output = timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        Printed {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> Value {
    let line = timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().unwrap();
    serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
}

/// The exit code and what stands on standard error.
async fn ended(child: Child) -> (i32, String) {
    let output = timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

/// A command runs while the lock is held, is told the token, and its exit code is forwarded.
#[test]
fn a_command_under_a_lock() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let script = "echo $QUORATE_LOCK_NAMESPACE/$QUORATE_LOCK_NAME $QUORATE_LOCK_TOKEN; exit 7";
        let printed = shell.run(&["lock", "deploy", "--", "sh", "-c", script]).await;
        assert_eq!((printed.code, printed.stderr.as_str()), (7, ""), "{printed:?}");
        let token: u64 =
            printed.stdout.strip_prefix("default/deploy ").unwrap().trim().parse().unwrap();
        // As with etcdctl, the command may stand there without the dashes.
        let again = shell.run(&["lock", "deploy", "sh", "-c", "echo $QUORATE_LOCK_TOKEN"]).await;
        assert_eq!(again.code, 0, "{again:?}");
        assert!(again.stdout.trim().parse::<u64>().unwrap() > token);
        assert_eq!(shell.json(&["lock", "list"]).await, json!({"locks": []}));
        let printed = shell.run(&["lock", "deploy", "--", "/does/not/exist"]).await;
        assert_eq!(printed.code, 1, "{printed:?}");
        assert!(printed.stderr.starts_with("error: /does/not/exist: "), "{printed:?}");

        // Whoever holds it is shown, and others do not get it.
        let (holder, mut lines) = shell.start(&["lock", "deploy", "--value", "me"]);
        let held = next(&mut lines).await;
        let token = held["token"].to_string();
        assert_eq!((&held["namespace"], &held["lock"]), (&json!("default"), &json!("deploy")));
        let printed = shell.run(&["lock", "deploy", "--try", "true"]).await;
        assert_eq!((printed.code, printed.stdout.as_str()), (1, ""), "{printed:?}");
        assert!(printed.stderr.starts_with("error: the lock is held by session"), "{printed:?}");
        let printed = shell.run(&["lock", "deploy", "--timeout", "300ms"]).await;
        assert_eq!(printed.code, 1, "{printed:?}");
        assert_eq!(printed.stderr, "error: lock deploy was not had within 300ms\n");
        let list = shell.json(&["lock", "list", "dep"]).await;
        assert_eq!(list["locks"][0]["owner"]["token"], held["token"]);
        assert_eq!(list["locks"][0]["waiting"], 0);
        let line = shell.json(&["lock", "get", "deploy"]).await;
        assert_eq!(line["requests"][0]["value"], "me");
        assert_eq!(line["requests"].as_array().unwrap().len(), 1, "{line}");
        let table = shell.run(&["lock", "get", "deploy", "-w", "table"]).await.stdout;
        assert!(table.contains("| holds ") && table.contains(&token), "{table}");
        let table = shell.run(&["lock", "list"]).await.stdout;
        assert!(table.starts_with("LOCK ") && table.contains(&token), "{table}");

        // Told to end, it releases at once.
        send(holder.id().unwrap(), Signal::TERM);
        assert_eq!(ended(holder).await, (0, String::new()));
        assert_eq!(shell.json(&["lock", "list"]).await, json!({"locks": []}));
        for (words, why) in [
            (&["lock"][..], "<NAME>"),
            (&["lock", "a", "--ttl", "1ms"][..], "allowed: 1s..=3600s"),
            (&["lock", "a", "--try", "--timeout", "1s"][..], "cannot be used with"),
            (&["lock", "release", "a"][..], "--token"),
            (&["elect", "a"][..], "<VALUE>"),
        ] {
            let printed = shell.run(words).await;
            assert_eq!(printed.code, 2, "{words:?}: {printed:?}");
            assert!(printed.stderr.contains(why), "{words:?}: {printed:?}");
        }
    });
}

/// Somebody takes the lock away: the command that ran under it is ended. The same when the command's
/// keeper is stopped for too long.
#[test]
fn a_command_ends_with_its_lock() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let script = "trap 'echo ending; exit 0' TERM; echo {}; while :; do sleep 0.05; done";
        for stopped in [false, true] {
            let words = ["lock", "deploy", "--ttl", "2s", "--", "sh", "-c", script];
            let (keeper, mut lines) = shell.start(&words);
            next(&mut lines).await;
            let line = shell.json(&["lock", "get", "deploy"]).await;
            let token = line["requests"][0]["token"].to_string();
            let pid = keeper.id().unwrap();
            if stopped {
                send(pid, Signal::STOP);
                eventually("the lock is free", async || {
                    match shell.json(&["lock", "list"]).await {
                        list if list == json!({"locks": []}) => Ok(()),
                        list => Err(list.to_string()),
                    }
                })
                .await;
                send(pid, Signal::CONT);
            } else {
                let wrong = shell.json(&["lock", "release", "deploy", "--token", "1"]).await;
                assert_eq!(wrong["released"], false);
                let released = shell.json(&["lock", "release", "deploy", "--token", &token]).await;
                assert_eq!(released["released"], true);
            }
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap();
            assert_eq!(line.as_deref(), Some("ending"), "the command is told to end");
            let (code, stderr) = ended(keeper).await;
            assert_eq!(code, 1, "{stderr}");
            let why = if stopped { "the session has ended" } else { "it was taken" };
            assert!(stderr.contains(&format!("lock deploy is lost: {why}")), "{stderr}");
        }
    });
}

/// Two campaign, a third one listens.
#[test]
fn an_election_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let (listener, mut told) = shell.start(&["elect", "scheduler", "--listen"]);
        assert_eq!(next(&mut told).await, json!({"election": "scheduler", "leader": null}));
        let (first, mut lines) = shell.start(&["elect", "scheduler", "a:1"]);
        let led = next(&mut lines).await;
        assert_eq!((&led["election"], &led["value"]), (&json!("scheduler"), &json!("a:1")));
        let news = next(&mut told).await;
        assert_eq!(
            (&news["leader"]["value"], &news["leader"]["token"]),
            (&led["value"], &led["token"])
        );
        let printed = shell.run(&["elect", "scheduler", "c:1", "--timeout", "200ms"]).await;
        assert_eq!(printed.code, 1, "{printed:?}");
        assert_eq!(printed.stderr, "error: not elected within 200ms\n");
        let (second, mut lines) = shell.start(&["elect", "scheduler", "b:1"]);
        eventually("the second one waits", async || {
            let line = shell.json(&["lock", "get", "scheduler"]).await;
            let waiting = line["requests"].as_array().unwrap().len();
            if waiting == 2 { Ok(()) } else { Err(line.to_string()) }
        })
        .await;
        send(first.id().unwrap(), Signal::INT);
        assert_eq!(ended(first).await, (0, String::new()));
        let next_led = next(&mut lines).await;
        assert!(next_led["token"].as_u64() > led["token"].as_u64());
        assert_eq!(next(&mut told).await["leader"]["value"], "b:1");
        send(second.id().unwrap(), Signal::TERM);
        assert_eq!(ended(second).await.0, 0);
        assert_eq!(next(&mut told).await["leader"], Value::Null);
        send(listener.id().unwrap(), Signal::INT);
        assert_eq!(ended(listener).await, (0, String::new()));
    });
}

/// Transactions as text and as JSON, from a file and from standard input; what is refused and what is
/// malformed.
#[test]
fn transactions_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let shell = Shell::of(&cluster);
        let content = cluster.dir().join("app.yaml");
        std::fs::write(&content, "replicas: 3\n").unwrap();
        let release = format!(
            "config default/app missing\n\
             counter stock = 0\n\
             \n\
             config publish default/app @{} format=yaml author=me\n\
             counter add stock 5 kind=gauge\n\
             instance register web/1 address=10.0.0.1:80 weight=2\n\
             get counter stock\n\
             \n\
             get config default/app\n",
            content.display()
        );
        let file = cluster.dir().join("release.txn");
        std::fs::write(&file, &release).unwrap();
        let file = file.to_str().unwrap();
        let done = shell.json(&["txn", file]).await;
        assert_eq!(done["succeeded"], true, "{done}");
        let results = done["results"].as_array().unwrap();
        assert_eq!(results[0], json!({"publish_config": {"version": 1, "changed": true}}));
        assert_eq!(results[1]["add_counter"]["value"], 5);
        assert_eq!(results[2]["register"]["mod_revision"], done["revision"]);
        assert_eq!(results[3]["get"]["counter"]["value"], 5);
        assert_eq!(results[3]["get"]["counter"]["mod_revision"], done["revision"]);

        // The second time the conditions do not hold.
        let printed = shell.run(&["txn", file]).await;
        assert_eq!((printed.code, printed.stderr.as_str()), (0, ""), "{printed:?}");
        assert!(printed.stdout.starts_with("FAILURE at revision "), "{printed:?}");
        assert!(printed.stdout.contains("default/app version 1: replicas: 3"), "{printed:?}");
        let text = "instance web/1 health = passing\nunchanged counter * since 0\n\n\
                    instance update web/1 weight=5 meta.lane=canary\n\n\
                    range counter *\nget lock deploy\n";
        let failed = shell.txn(&["-w", "json"], text).await;
        let failed: Value = serde_json::from_str(&failed.stdout).unwrap();
        assert_eq!(failed["succeeded"], false);
        let range = &failed["results"][0]["range"];
        assert_eq!(
            (&range["more"], &range["records"][0]["counter"]["name"]),
            (&json!(false), &json!("stock"))
        );
        assert_eq!(failed["results"][1], json!({"get": null}));

        // The same as JSON, with what has been seen as a condition.
        let since = failed["revision"].as_u64().unwrap();
        let object = json!({
            "when": [
                {"record": {"instance": {"service": "web", "id": "1"}}, "health": "passing"},
                {"unchanged": {"scope": {"counters": "*"}, "since": since}}
            ],
            "then": [
                {"update_instance": {"service": "web", "id": "1", "weight": 7}},
                {"add_counter": {"name": "stock", "delta": -2, "floor": 0}}
            ]
        });
        let pretty = serde_json::to_string_pretty(&object).unwrap();
        let printed = shell.txn(&[], &pretty).await;
        assert!(printed.stdout.starts_with("SUCCESS at revision "), "{printed:?}");
        assert!(printed.stdout.contains("web/1 10.0.0.1:80 passing enabled"), "{printed:?}");
        assert!(printed.stdout.ends_with("add_counter       3\n"), "{printed:?}");

        // A step that is refused takes the others back and is named by its place.
        let printed = shell.txn(&[], "\ncounter add other 1\ncounter add stock -4 floor=0\n").await;
        assert_eq!((printed.code, printed.stdout.as_str()), (1, ""), "{printed:?}");
        assert!(
            printed.stderr.starts_with("error: step 1: 3 and -4 would cross the bound 0"),
            "{printed:?}"
        );
        let other = shell.txn(&["-w", "json"], "\nget counter other\n").await;
        let other: Value = serde_json::from_str(&other.stdout).unwrap();
        assert_eq!(other["results"], json!([{"get": null}]));

        for (input, code, why) in [
            ("", 2, "error: standard input, line 1: no step"),
            (
                "counter a > x\n\nget counter a",
                2,
                "error: standard input, line 1: the value: \"x\"",
            ),
            ("\nget counter a\nput a", 2, "error: standard input, line 3: "),
            ("{\n\"then\": [{}]}", 2, "error: standard input, line 2: "),
            ("{\"then\": [", 2, "error: standard input, line 1: EOF"),
            // What only a node can know.
            ("\nlock acquire a session=1", 1, "error: step 0: session 1 is unknown"),
            ("\ncounter add 1a 1", 1, "error: then[0]."),
        ] {
            let printed = shell.txn(&[], input).await;
            assert_eq!(
                (printed.code, printed.stdout.as_str()),
                (code, ""),
                "{input:?}: {printed:?}"
            );
            assert!(printed.stderr.starts_with(why), "{input:?}: {printed:?}");
        }
        let printed = shell.run(&["txn", "/does/not/exist"]).await;
        assert_eq!(printed.code, 1, "{printed:?}");
        assert!(printed.stderr.starts_with("error: /does/not/exist: "), "{printed:?}");
    });
}
