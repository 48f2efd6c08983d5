//! Command lines, their errors and exit codes, the help, and that the documentation is complete.

#![allow(clippy::unwrap_used)]

use clap::{CommandFactory as _, Parser as _};

use super::*;
use crate::options::Output;

fn check(line: &[&str]) -> Result<Invocation, Error> {
    let line = std::iter::once(&"quorate").chain(line);
    Line::try_parse_from(line).map_err(Error::CommandLine)?.check()
}

fn other(line: &[&str]) -> Other {
    match check(line).unwrap() {
        Invocation::Other(other) => *other,
        Invocation::Serve(config) => panic!("{config:?}"),
    }
}

fn refused(line: &[&str]) -> (u8, String) {
    let error = check(line).unwrap_err();
    (error.code(), error.to_string())
}

#[test]
fn the_command_line_is_well_formed() {
    Line::command().debug_assert();
}

/// Every command as the README, the documentation and scripts type it.
#[test]
fn commands_that_are_understood() {
    let lines = "
        dev
        dev --nodes 5 --base-port 9000 --data-dir d --restart -w json -- --heartbeat-ms 50
        bench register --clients 256 --connections 4 --without-ids --rate 1000 --pids 1,2
        bench stream-get --streams 2 --window 64 --stale --keep --no-fill -w json
        service register web --id a --address h:1 --address grpc=h:2 --weight 3 --zone z --meta k=v --health warning --session-ttl 5s --reason r
        service register - --session-ttl 5s
        service deregister web a --if-revision 7
        service get web
        service get web --healthy --zone z --meta k=v --stale
        service get web a -w json
        service list
        service list we --stale
        service watch
        service watch web --after 12 -w json
        service maint web a --disable --reason why
        service maint web a --enable
        service maint web a --drain
        service put web --protect-threshold 30 --deregister-after 1m --policy ring_hash --policy-parameter size=1 --meta k=v --if-revision 1
        service policy web
        service policy web --off
        service policy web --set bound=2
        service policy web ring_hash?points=200 --set bound=1.25 --set zone=prefer -w json
        service delete web
        service import a.json b.json - --dry-run --default-address h
        config publish g/app.yaml f.yaml --expect 3 --label a=b --label c=d --keep 9 --author me --comment why
        config publish a/b - --group g --format json --no-labels
        config publish a --value -x --expect 0
        config get a
        config get g/a --version 3 --stale
        config get a --as me --client-label zone=eu --meta
        config list
        config list app. --group g --label a=b --deleted --stale
        config delete g/a --expect 3 --purge --comment why
        config history a -w table
        config diff a
        config diff a 1 2 -w json
        config rollback a 3 --expect 5 --author me
        config gray publish a f --rule canary --labels zone=eu,tier=1 --priority 5
        config gray publish a --value x --rule canary --clients a,b --gate-unhealthy 10 --gate-for 10m --gate-promote
        config gray publish a - --rule canary --percent 12.5 --gate-counter errors{code=500} --gate-bound 3 --gate-for 1h --expect 2
        config gray list a --stale
        config gray promote a canary --expect 4
        config gray abort g/a canary --comment why
        config instances a
        config watch
        config watch a --after 3 --as me --client-label zone=eu
        config watch --prefix app. --group g -w json
        config export d --overwrite
        config import d --dry-run --overwrite --author me
        config schema put a s.json
        config schema get a
        config schema delete a
        endpoint status -w table
        endpoint status --cluster
        endpoint health
        member list
        member add 4 --peer h:1 --client h:2
        member promote 4
        member remove 4
        move-leader
        move-leader 2
        snapshot save f
        snapshot status f
        snapshot restore f --data-dir d --id 1 --initial-cluster 1=h:1 --cluster-token t
        session list
        session close 7
        namespace list
        namespace put n --description d
        namespace delete n
        version
        completion bash
        completion zsh
        completion fish
        --endpoints h:1,h:2 service list -n team --command-timeout 500ms
        service list --endpoints h:1 --namespace team
    ";
    for line in lines.lines().filter(|line| !line.trim().is_empty()) {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert!(matches!(check(&words), Ok(Invocation::Other(_))), "{line}");
    }
    let serve = ["serve", "--id", "1", "--data-dir", "d", "--initial-cluster", "1=127.0.0.1:7651"];
    assert!(matches!(check(&serve), Ok(Invocation::Serve(config)) if config.id == 1));
}

#[test]
fn global_options_may_stand_anywhere() {
    for line in [
        &["-w", "json", "-n", "team", "--endpoints", "h:1", "service", "list"][..],
        &["service", "list", "-w", "json", "-n", "team", "--endpoints", "h:1"],
    ] {
        let context = other(line).context;
        assert_eq!(context.options.output, Output::Json);
        assert_eq!(context.options.namespace, "team");
        assert_eq!(context.options.endpoints, ["h:1"]);
    }
}

#[test]
fn wrong_lines_exit_with_2_and_say_what_is_wrong() {
    for (line, why) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["service", "register"], "<SERVICE>"),
        (&["service", "maint", "web", "a"], "--enable|--disable|--drain"),
        (&["service", "maint", "web", "a", "--enable", "--drain"], "cannot be used with"),
        (&["service", "put", "web", "--protect-threshold", "101"], "101 is not in 0..=100"),
        (&["service", "put", "web", "--deregister-after", "1ms"], "allowed: 1s..=86400s"),
        (&["service", "get", "web", "a", "--healthy"], "cannot be used with"),
        (&["config", "publish", "a"], "--value <TEXT>"),
        (&["config", "publish", "a", "f", "--value", "x"], "cannot be used with"),
        (&["config", "publish", "a", "f", "--keep", "0"], "allowed: 1..=1000"),
        (&["config", "publish", "a", "f", "--format", "xml"], "allowed: text, json, yaml"),
        (&["config", "get", "a", "--version", "1", "--as", "me"], "cannot be used with"),
        (&["config", "get", "a", "--client-label", "a=b"], "--as <CLIENT>"),
        (&["config", "gray", "publish", "a", "f", "--rule", "r"], "--percent <PERCENT>"),
        (
            &["config", "gray", "publish", "a", "f", "--rule", "r", "--percent", "101"],
            "allowed: 0..=100",
        ),
        (
            &[
                "config",
                "gray",
                "publish",
                "a",
                "f",
                "--rule",
                "r",
                "--percent",
                "1",
                "--gate-counter",
                "errors",
                "--gate-for",
                "1m",
            ],
            "--gate-bound",
        ),
        (&["config", "watch", "a", "--prefix", "b"], "cannot be used with"),
        (&["member", "add", "0", "--peer", "h:1", "--client", "h:2"], "0 is not in 1.."),
        (&["member", "add", "4", "--peer", "h", "--client", "h:2"], "expected host:port"),
        (&["dev", "--nodes", "4"], "[possible values: 1, 3, 5]"),
        (&["completion", "cmd"], "[possible values: bash, zsh, fish]"),
        (&["-w", "yaml", "version"], "--write-out: \"yaml\" is not allowed"),
        (&["serve"], "--id is missing"),
        (&["--config", "/nowhere.toml", "version"], "/nowhere.toml: "),
    ] {
        let (code, error) = refused(line);
        assert_eq!(code, exit::USAGE, "{line:?}");
        assert!(error.contains(why), "{line:?}: {error}");
        assert!(!error.starts_with("error"), "{line:?}: {error}");
    }
}

#[test]
fn a_file_serves_nodes_and_commands() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("quorate.toml");
    let file =
        "id = 1\ndata-dir = \"d\"\ninitial-cluster = \"1=127.0.0.1:7651\"\nwrite-out = \"json\"";
    std::fs::write(&path, file).unwrap();
    let path = path.to_str().unwrap();
    assert!(matches!(check(&["serve", "--config", path]), Ok(Invocation::Serve(_))));
    assert_eq!(other(&["version", "--config", path]).context.options.output, Output::Json);
    let context = other(&["-w", "table", "version", "--config", path]).context;
    assert_eq!(context.options.output, Output::Table);
}

#[test]
fn codes_of_errors() {
    let call = crate::error::Error::Timeout { definite: false };
    assert_eq!(Error::from(call).code(), exit::ERROR);
    assert_eq!(Error::refused(exit::ADDRESS_IN_USE, String::new()).code(), 5);
    assert_eq!((Error::Told.code(), Error::Told.is_quiet()), (1, true));
    assert_eq!((Error::Closed.code(), Error::Closed.is_quiet()), (0, true));
}

/// The first page that a person sees.
#[test]
fn help() {
    let help = Line::command().term_width(100).render_help().to_string();
    let expected = "\
Service registry, configuration and transactions for a team, in one Raft-replicated binary

Usage: quorate [OPTIONS] <COMMAND>

Commands:
  serve        Run one node
  dev          Run a whole cluster on this machine, for trying things out
  service      Register and find services
  config       Publish, read and follow configuration
  counter      Count, and look at counters
  endpoint     Look at single nodes
  member       Look at and change who belongs to the cluster
  move-leader  Let another node lead
  snapshot     Back up the cluster, and make a new one from a backup
  session      Look at sessions
  namespace    Look at and change namespaces
  lock         Take a lock and hold it while a command runs, or until Ctrl-C
  elect        Campaign in an election and lead until Ctrl-C, or see who leads
  txn          Carry out an atomic transaction
  saga         Look at transactions across services, and settle what cannot go on
  bench        Measure a cluster under load
  version      Print the version
  completion   Print the completion script of a shell
  help         Print this message or the help of the given subcommand(s)
";
    let (top, options) = help.split_once("\nOptions:\n").unwrap();
    assert_eq!(top, expected);
    for word in
        ["--config", "--endpoints", "-w, --write-out", "--command-timeout", "-n, --namespace"]
    {
        assert!(options.contains(word), "{word}: {options}");
    }
    let mut serve = Line::command();
    let serve = serve.find_subcommand_mut("serve").unwrap().render_help().to_string();
    assert!(
        serve.contains("--initial-cluster") && !serve.contains("--exit-with-parent"),
        "{serve}"
    );
}

/// Every command and every field of its JSON is described.
#[test]
fn documentation_is_complete() {
    let page = include_str!("../../docs/CLI.md");
    for command in Line::command().get_subcommands() {
        let (name, mut leaves) = (command.get_name(), command.get_subcommands().peekable());
        if leaves.peek().is_none() {
            assert!(page.contains(&format!("`quorate {name}`")), "quorate {name}");
        }
        for leaf in leaves {
            let leaf = format!("quorate {name} {}", leaf.get_name());
            assert!(page.contains(&format!("`{leaf}`")), "{leaf}");
        }
    }
    let status = crate::proto::v1::StatusResponse::default();
    for record in [
        serde_json::to_value(view::Instance::from(crate::proto::v1::Instance::default())),
        serde_json::to_value(view::Service::from(crate::proto::v1::Service::default())),
        serde_json::to_value(view::Member::from(crate::proto::v1::Member::default())),
        serde_json::to_value(view::Namespace::from(crate::proto::v1::Namespace::default())),
        serde_json::to_value(view::Session::from(crate::proto::v1::Session::default())),
        serde_json::to_value(view::LockRequest::from(crate::proto::v1::LockRequest::default())),
        serde_json::to_value(view::saga::Saga::from(crate::proto::v1::Saga::default())),
        serde_json::to_value(view::saga::Branch::from(crate::proto::v1::SagaBranch::default())),
        serde_json::to_value(view::Status::from(status)),
    ]
    .map(Result::unwrap)
    .into_iter()
    .chain(config::records())
    {
        for field in record.as_object().unwrap().keys() {
            assert!(page.contains(&format!("\"{field}\"")), "{field}");
        }
    }
    for option in
        <options::Global as clap::Args>::augment_args(clap::Command::new("")).get_arguments()
    {
        assert!(page.contains(&format!("--{}`", option.get_long().unwrap())), "{option}");
    }
}
