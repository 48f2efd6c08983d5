//! Starts that are refused: bad options, ports taken, a data directory that is not this node's. Each
//! ends with a code of its own and names what is wrong.

use std::net::TcpListener;
use std::path::Path;

use super::harness::{Cluster, Printed, Setup, free_ports, instance, printed, run};

/// `quorate serve` that is expected to end by itself.
async fn serve(id: &str, data: &Path, port: u16, further: &[&str]) -> Printed {
    let ports = [0, 1, 2].map(|offset| format!("127.0.0.1:{}", port + offset));
    let data = data.to_str().unwrap();
    let mut arguments = vec!["serve", "--id", id, "--data-dir", data];
    arguments.extend(["--listen-client", &ports[0], "--listen-peer", &ports[1]]);
    arguments.extend(["--listen-http", &ports[2]]);
    arguments.extend(further);
    printed(arguments).await
}

fn refused(printed: &Printed, code: i32, words: &[&str]) {
    assert_eq!(printed.code, code, "{printed:?}");
    assert_eq!(printed.stdout, "", "{printed:?}");
    assert!(printed.stderr.contains("error: "), "{printed:?}");
    for word in words {
        assert!(printed.stderr.contains(word), "{word:?} is not in {printed:?}");
    }
}

/// Wrong options end with code 2 before anything is opened, and the error names the option, what it
/// was and what is allowed.
#[test]
fn bad_options_are_named() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        let members = ["--initial-cluster", "1=127.0.0.1:7651"];
        for (id, further, words) in [
            ("0", &[][..], &["--id", "\"0\"", "1..=9223372036854775807"][..]),
            ("1", &["--heartbeat-ms", "500"], &["--election-min-ms 250", "--heartbeat-ms 500"]),
            ("1", &["--heartbeat-ms", "fast"], &["--heartbeat-ms", "\"fast\"", "5..=10000"]),
            (
                "1",
                &["--election-max-ms", "250"],
                &["--election-max-ms 250", "--election-min-ms 250"],
            ),
            ("1", &["--snapshot-entries", "9"], &["--snapshot-entries", "10..=100000000"]),
            ("1", &["--log-level", "a=b=c"], &["--log-level", "\"a=b=c\""]),
            ("1", &["--worker-threads", "65"], &["--worker-threads", "1..=64"]),
            ("1", &["--join", "host"], &["--join", "host:port"]),
            ("1", &["--join", "127.0.0.1:1"], &["--join 127.0.0.1:1", "--initial-cluster"]),
            ("2", &[], &["--initial-cluster", "--id 2"]),
            ("1", &["--advertise-peer", "127.0.0.1:9"], &["--advertise-peer 127.0.0.1:9"]),
            ("1", &["--no-such-option"], &["--no-such-option"]),
            ("1", &["--config", "/nowhere.toml"], &["/nowhere.toml"]),
        ] {
            let further: Vec<&str> = members.iter().chain(further).copied().collect();
            refused(&serve(id, &data, free_ports(3), &further).await, 2, words);
        }
        let printed = serve("1", &data, free_ports(3), &["--initial-cluster", "1=a:1,1=b:1"]).await;
        refused(&printed, 2, &["--initial-cluster", "1 is there twice"]);
        refused(&serve("1", &data, free_ports(3), &[]).await, 2, &["--initial-cluster is missing"]);
        let printed = super::harness::printed(["serve"]).await;
        refused(&printed, 2, &["--id is missing"]);
        assert!(!data.exists(), "nothing was opened");
    });
}

/// A port that somebody else holds ends the start with code 5; the error names address and purpose.
#[test]
fn taken_ports_are_named() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        for (offset, purpose) in [(0, "client"), (1, "peer"), (2, "http")] {
            let port = free_ports(3);
            let taken = TcpListener::bind(("127.0.0.1", port + offset)).unwrap();
            let address = taken.local_addr().unwrap().to_string();
            let members = format!("1=127.0.0.1:{}", port + 1);
            let printed =
                serve("1", &dir.path().join(purpose), port, &["--initial-cluster", &members]).await;
            refused(&printed, 5, &[&address, purpose]);
        }
    });
}

/// A data directory that is another cluster's, another node's, in use, of a later release or no data
/// directory at all is refused with code 3 and left as it is.
#[test]
fn wrong_data_directories_are_refused() {
    run(async {
        let mut cluster = Setup::default().start(1).await;
        cluster.client().register(instance("web", "a"), None).await.unwrap();
        let data = cluster.node(1).data.clone();
        let members = format!("1={},2=127.0.0.1:1", cluster.node(1).peer);
        let own = format!("1={}", cluster.node(1).peer);

        let port = free_ports(3);
        let in_use = serve("1", &data, port, &["--initial-cluster", &own]).await;
        refused(&in_use, 3, &["in use", data.to_str().unwrap()]);
        assert_eq!(cluster.stop(1).await, 0);

        let foreign = ["--initial-cluster", &own, "--cluster-token", "another"];
        refused(&serve("1", &data, port, &foreign).await, 3, &["belongs to cluster"]);
        let other = ["--initial-cluster", &members];
        refused(&serve("1", &data, port, &other).await, 3, &["belongs to cluster"]);
        // The same cluster, started as another node of it.
        let dir = tempfile::tempdir().unwrap();
        let copied = dir.path().join("data");
        let mut pair = Setup::default().start(1).await;
        assert_eq!(pair.stop(1).await, 0);
        std::fs::create_dir(&copied).unwrap();
        let identity = std::fs::read_to_string(data.join("identity")).unwrap();
        std::fs::write(
            copied.join("identity"),
            identity.replace("\"node_id\": 1", "\"node_id\": 7"),
        )
        .unwrap();
        let as_other = serve("1", &copied, port, &["--initial-cluster", &own]).await;
        refused(&as_other, 3, &["belongs to node 7", "to be node 1"]);
        std::fs::write(
            copied.join("identity"),
            identity.replace("\"format_version\": 1", "\"format_version\": 99"),
        )
        .unwrap();
        let later = serve("1", &copied, port, &["--initial-cluster", &own]).await;
        refused(&later, 3, &["format version 99"]);
        std::fs::write(copied.join("identity"), "{").unwrap();
        let unread = serve("1", &copied, port, &["--initial-cluster", &own]).await;
        refused(&unread, 3, &["cannot be read as an identity"]);

        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        std::fs::write(home.join("letter.txt"), "dear").unwrap();
        let stranger = serve("1", &home, port, &["--initial-cluster", &own]).await;
        refused(&stranger, 3, &["letter.txt", "not a data directory"]);
        let file = home.join("letter.txt");
        refused(
            &serve("1", &file, port, &["--initial-cluster", &own]).await,
            3,
            &["not a directory"],
        );

        // None of this did any harm.
        cluster.start(1).await;
        assert_eq!(cluster.instances(1, "web").await.len(), 1);
    });
}

/// A node whose data directory was deleted may have voted: it is refused under its old id, and told
/// what to do. The others go on.
#[test]
fn a_wiped_node_is_refused() {
    run(async {
        let mut cluster = Cluster::three().await;
        let id = cluster.followers().await[0];
        cluster.client().register(instance("web", "a"), None).await.unwrap();
        cluster.kill(id);
        std::fs::remove_dir_all(&cluster.node(id).data).unwrap();
        for _ in 0..2 {
            let said = cluster.node(id).log_length();
            cluster.spawn(id);
            assert_eq!(cluster.exit_code(id).await, 3);
            let text = cluster.node(id).log_text();
            let text = &text[said..];
            assert!(text.contains("another data directory"), "{text}");
            assert!(text.contains(&format!("member remove {id}")), "{text}");
        }
        cluster.client().register(instance("web", "b"), None).await.unwrap();
        let leader = cluster.leader().await;
        assert_eq!(cluster.instances(leader, "web").await.len(), 2);
    });
}
