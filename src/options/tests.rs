//! Options of nodes and commands: right, wrong, and from where.

#![allow(clippy::unwrap_used)]

use clap::Parser as _;

use super::*;

#[derive(Debug, clap::Parser)]
struct ServeLine {
    #[command(flatten)]
    serve: Serve,
}

const THREE: &str = "3=c:7651,1=127.0.0.1:7651,2=b:7651";

/// The config that this command line and this file give.
fn serve_with(line: &[&str], file: &str) -> Result<Config, Error> {
    let line = std::iter::once("serve").chain(line.iter().copied());
    let raw = ServeLine::try_parse_from(line).unwrap().serve;
    Config::check(raw, &File::parse(file).unwrap())
}

/// Adds options to a line that is right by itself.
fn serve(line: &[&str]) -> Result<Config, Error> {
    let right = ["--id", "1", "--data-dir", "/d", "--initial-cluster", THREE];
    serve_with(&[&right, line].concat(), "")
}

fn refused(line: &[&str]) -> String {
    serve(line).unwrap_err().to_string()
}

fn client(raw: Global, file: &str) -> Result<Client, Error> {
    Client::check(raw, &File::parse(file).unwrap())
}

#[test]
fn defaults() {
    let config = serve(&[]).unwrap();
    assert_eq!(
        config,
        Config {
            id: 1,
            data_dir: "/d".into(),
            cluster_id: Some(cluster_id(&config.initial_members, "quorate")),
            initial_members: vec![
                (1, "127.0.0.1:7651".into()),
                (2, "b:7651".into()),
                (3, "c:7651".into())
            ],
            join: None,
            listen: Listen {
                client: "127.0.0.1:7650".parse().unwrap(),
                peer: "127.0.0.1:7651".parse().unwrap(),
                http: "127.0.0.1:7652".parse().unwrap(),
            },
            advertise_client: "127.0.0.1:7650".into(),
            advertise_peer: "127.0.0.1:7651".into(),
            timing: Timing { heartbeat_ms: 100, election_min_ms: 250, election_max_ms: 400 },
            snapshot_entries: 100_000,
            snapshot_keep_entries: 20_000,
            digest_entries: 100_000,
            webhook_allow: Vec::new(),
            participant_allow: Vec::new(),
            health_check_allow: Default::default(),
            worker_threads: 1,
            log: Log { filter: "warn,openraft=error,quorate=info".into(), format: LogFormat::Text },
            durability: Durability::Fdatasync,
            exit_with_parent: false,
        }
    );
}

#[test]
fn every_option_may_stand_in_the_file_and_a_flag_beats_it() {
    let file = r#"
        id = 2
        data-dir = "/from-file"
        listen-client = "127.0.0.1:1"
        listen-peer = "127.0.0.1:2"
        listen-http = "127.0.0.1:3"
        advertise-client = "b:1"
        advertise-peer = "b:2"
        initial-cluster = "1=a:2,2=b:2"
        cluster-token = "blue"
        heartbeat-ms = 50
        election-min-ms = 200
        election-max-ms = "300"
        snapshot-entries = 1000
        worker-threads = 4
        log-level = "debug"
        log-format = "json"
        unsafe-no-fsync = true
        endpoints = "x:1,y:2"
        write-out = "json"
        command-timeout = 3
        namespace = "n"
    "#;
    let config = serve_with(&["--data-dir", "/from-flag", "--heartbeat-ms", ""], file).unwrap();
    assert_eq!(config.id, 2);
    assert_eq!(config.data_dir, PathBuf::from("/from-flag"));
    assert_eq!(config.listen.http, "127.0.0.1:3".parse().unwrap());
    assert_eq!((config.advertise_client.as_str(), config.advertise_peer.as_str()), ("b:1", "b:2"));
    assert_eq!(config.cluster_id, Some(cluster_id(&config.initial_members, "blue")));
    assert_eq!(config.timing.heartbeat_ms, 50, "an empty flag is not a flag");
    assert_eq!(config.timing.election_max_ms, 300);
    assert_eq!((config.snapshot_entries, config.snapshot_keep_entries), (1000, 200));
    assert_eq!(config.worker_threads, 4);
    assert_eq!(
        config.log,
        Log { filter: "info,openraft=warn,quorate=debug".into(), format: LogFormat::Json }
    );
    assert_eq!(config.durability, Durability::None);
    assert_eq!(
        client(Global::default(), file).unwrap(),
        Client {
            endpoints: vec!["x:1".into(), "y:2".into()],
            output: Output::Json,
            timeout: Duration::from_secs(3),
            namespace: "n".into(),
        }
    );
}

/// The environment of this test process is not changed: each option names its variable to clap, and
/// clap's order (flag, then environment) is shown by the test of the binary.
#[test]
fn every_visible_option_has_its_environment_variable() {
    for command in [
        Serve::augment_args_for_test(),
        <Global as clap::Args>::augment_args(clap::Command::new("global")),
    ] {
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let long = argument.get_long().unwrap();
            let variable = format!("QUORATE_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(argument.get_env().unwrap().to_str().unwrap(), variable);
        }
    }
}

impl Serve {
    fn augment_args_for_test() -> clap::Command {
        <Serve as clap::Args>::augment_args(clap::Command::new("serve"))
    }
}

#[test]
fn the_file_names_what_it_does_not_know() {
    let error = File::parse("idd = 1").unwrap_err();
    assert!(error.starts_with("\"idd\" is not an option; allowed: id, data-dir, "), "{error}");
    assert!(error.ends_with("endpoints, write-out, command-timeout, namespace"), "{error}");
    assert!(!error.contains("exit-with-parent"), "{error}");
    assert!(File::parse("id = ").unwrap_err().contains("line 1"));
    assert!(File::parse("id = 1.5").unwrap_err().contains("a whole number"));
    let absent = Path::new("/nowhere/quorate.toml");
    let error = File::read(Some(absent)).unwrap_err().to_string();
    assert!(error.starts_with("/nowhere/quorate.toml: "), "{error}");
}

#[test]
fn a_wrong_value_is_named_with_what_is_allowed() {
    let list = |line: &[&str]| {
        let (option, value) = (line[0], line[1]);
        let error = refused(&[&format!("{option}={value}")]);
        let prefix = format!("{option}: {value:?} is not allowed; allowed: ");
        error.strip_prefix(&prefix).unwrap_or_else(|| panic!("{error}")).to_owned()
    };
    assert_eq!(list(&["--heartbeat-ms", "4"]), "a number 5..=10000");
    assert_eq!(list(&["--election-min-ms", "-1"]), "a number 10..=60000");
    assert_eq!(list(&["--snapshot-entries", "many"]), "a number 10..=100000000");
    assert_eq!(list(&["--worker-threads", "0"]), "a number 1..=64");
    assert_eq!(list(&["--log-format", "xml"]), "text, json");
    assert_eq!(list(&["--unsafe-no-fsync", "maybe"]), "true, false");
    assert!(list(&["--log-level", "quorate=loud"]).starts_with("error, warn, info"));
    for address in ["localhost:7650", "127.0.0.1", "127.0.0.1:0", ":7650", "127.0.0.1:70000"] {
        assert!(list(&["--listen-http", address]).starts_with("IP:port"), "{address}");
    }
    for address in ["b", "b:0", ":1", "b c:1", "[::g]:1", "::1:1", "b:1:2", "b:65536"] {
        assert!(list(&["--advertise-client", address]).starts_with("host:port"), "{address}");
    }
    assert!(list(&["--cluster-token", "two words"]).starts_with("1..=128 bytes"));
}

#[test]
fn options_that_must_be_there() {
    let error = |line: &[&str]| serve_with(line, "").unwrap_err().to_string();
    assert!(error(&[]).starts_with("--id is missing"));
    assert!(error(&["--id", "1"]).starts_with("--data-dir is missing"));
    assert!(error(&["--id", "1", "--data-dir", "d"]).starts_with("--initial-cluster is missing"));
}

#[test]
fn initial_clusters() {
    let right = initial_cluster(" 3=c:1, 1=a:1 ,2=[::1]:1").unwrap();
    assert_eq!(members_text(&right), "1=a:1,2=[::1]:1,3=c:1");
    let error = |given: &str| initial_cluster(given).unwrap_err().to_string();
    assert!(error("a:1").contains("N=host:port"));
    assert!(error("1=a").contains("host:port"));
    assert!(error("0=a:1").contains("a number 1..=9223372036854775807"));
    assert!(error("9223372036854775808=a:1").contains("a number 1..="));
    assert!(error("1=a:1,1=b:1").contains("1 is there twice"));
    assert!(error("1=a:1,2=a:1").contains("a:1 is there twice"));
    assert!(error("1=a:1,").contains("\"\" is not allowed"));
    let ten: Vec<String> = (1..=10).map(|id| format!("{id}=h{id}:1")).collect();
    assert!(error(&ten.join(",")).contains("at most 9 members"));
}

#[test]
fn a_node_is_in_its_initial_cluster_or_joins() {
    let with = |line: &[&str]| serve_with(&[&["--data-dir", "d"], line].concat(), "");
    let error = with(&["--id", "4", "--initial-cluster", THREE]).unwrap_err().to_string();
    assert!(error.contains("does not go with --id 4"), "{error}");
    let joining = with(&["--id", "4", "--join", "b:7651"]).unwrap();
    assert_eq!((joining.cluster_id, joining.initial_members.len()), (None, 0));
    assert_eq!(joining.join.as_deref(), Some("b:7651"));
    assert_eq!(joining.advertise_peer, "127.0.0.1:7651");
    let told = with(&["--id", "4", "--join", "b:7651", "--initial-cluster", THREE]).unwrap();
    assert_eq!(told.cluster_id, serve(&[]).unwrap().cluster_id);
    let error = refused(&["--join", "b:7651"]);
    assert!(error.contains("node 1 is in the cluster from its beginning"), "{error}");
}

#[test]
fn the_cluster_id_depends_on_members_and_token_alone() {
    let of = |members: &str, token: &str| cluster_id(&initial_cluster(members).unwrap(), token);
    // Written in data directories: must never change.
    assert_eq!(of("1=a:1,2=b:1", "quorate"), "78d90bffc39dd395a502a5150a0723e5");
    assert_eq!(of("1=a:1,2=b:1", "quorate"), of("2=b:1,1=a:1", "quorate"));
    assert_ne!(of("1=a:1,2=b:1", "quorate"), of("1=a:1,2=b:2", "quorate"));
    assert_ne!(of("1=a:1,2=b:1", "quorate"), of("1=a:1,2=b:1", "blue"));
}

#[test]
fn advertised_addresses() {
    let everywhere = ["--listen-client", "0.0.0.0:7650", "--listen-peer", "[::]:7651"];
    let error = refused(&everywhere);
    assert!(error.starts_with("--advertise-client is missing"), "{error}");
    assert!(error.contains("--listen-client 0.0.0.0:7650"), "{error}");
    let config = serve(&[&everywhere[..], &["--advertise-client", "a:7650"]].concat()).unwrap();
    assert_eq!(config.advertise_client, "a:7650");
    assert_eq!(config.advertise_peer, "127.0.0.1:7651", "the node's own entry");
    assert!(
        refused(&["--advertise-client", "0.0.0.0:1"]).starts_with("--advertise-client is missing")
    );
    let error = refused(&["--advertise-peer", "a:7651"]);
    assert!(error.contains("there node 1 is at 127.0.0.1:7651"), "{error}");
    let line = ["--id", "4", "--data-dir", "d", "--join", "b:1", "--listen-peer", "0.0.0.0:1"];
    let error = serve_with(&line, "").unwrap_err().to_string();
    assert!(error.starts_with("--advertise-peer is missing"), "{error}");
}

#[test]
fn listeners_have_ports_of_their_own() {
    let error = refused(&["--listen-http", "127.0.0.1:7650"]);
    assert!(error.contains("--listen-client 127.0.0.1:7650 does not go with --listen-http"));
    let error = refused(&["--listen-http", "0.0.0.0:7651"]);
    assert!(error.contains("--listen-peer 127.0.0.1:7651 does not go with --listen-http"));
    assert!(serve(&["--listen-http", "127.0.0.2:7650"]).is_ok());
}

#[test]
fn timeouts_relate() {
    let error = refused(&["--heartbeat-ms", "200"]);
    assert!(error.contains("--election-min-ms 250 does not go with --heartbeat-ms 200"), "{error}");
    let error = refused(&["--election-max-ms", "250"]);
    assert!(
        error.contains("--election-max-ms 250 does not go with --election-min-ms 250"),
        "{error}"
    );
    let timing = ["--heartbeat-ms", "150", "--election-min-ms", "300", "--election-max-ms", "301"];
    assert!(serve(&timing).is_ok());
}

#[test]
fn a_bare_flag_is_true() {
    assert_eq!(serve(&["--unsafe-no-fsync"]).unwrap().durability, Durability::None);
    assert_eq!(serve(&["--unsafe-no-fsync=false"]).unwrap().durability, Durability::Fdatasync);
    assert!(serve(&["--exit-with-parent"]).unwrap().exit_with_parent);
}

#[test]
fn client_options() {
    let with = |change: fn(&mut Global)| {
        let mut raw = Global::default();
        change(&mut raw);
        client(raw, "").map_err(|error| error.to_string())
    };
    let defaults = with(|_| {}).unwrap();
    assert_eq!(defaults.endpoints, ["127.0.0.1:7650", "127.0.0.1:7660", "127.0.0.1:7670"]);
    assert_eq!((defaults.output, defaults.timeout.as_secs()), (Output::Simple, 5));
    assert_eq!(defaults.namespace, "default");
    let once = with(|raw| raw.endpoints = Some("a:1, b:2,a:1".into())).unwrap();
    assert_eq!(once.endpoints, ["a:1", "b:2"]);
    let error = with(|raw| raw.endpoints = Some("http://a:1".into())).unwrap_err();
    assert!(error.starts_with("--endpoints: \"http://a:1\" is not allowed"), "{error}");
    let error = with(|raw| raw.write_out = Some("yaml".into())).unwrap_err();
    assert_eq!(error, "--write-out: \"yaml\" is not allowed; allowed: simple, table, json");
    let error = with(|raw| raw.command_timeout = Some("10m".into())).unwrap_err();
    assert!(error.contains("1ms..=300s"), "{error}");
    assert!(with(|raw| raw.namespace = Some("-x".into())).is_err());
}

#[test]
fn durations() {
    let any = Duration::ZERO..=Duration::MAX;
    let parse = |given: &str| duration("d", given, any.clone()).ok();
    assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(parse("5"), Some(Duration::from_secs(5)));
    assert_eq!(parse("2m"), Some(Duration::from_secs(120)));
    assert_eq!(parse("1h"), Some(Duration::from_secs(3600)));
    assert_eq!(parse("2d"), Some(Duration::from_secs(172_800)));
    for wrong in ["", "s", "-1s", "1.5s", "5 parsecs", "18446744073709551615d", "٣s"] {
        assert_eq!(parse(wrong), None, "{wrong}");
    }
}
