//! What makes a run count, and what shows that the cluster came through.

use quorate_jepsen::check::{coverage, health};
use quorate_jepsen::history::History;
use quorate_jepsen::report::Valid;

const OK: &str = "{:type :invoke :process 0 :f :read} {:type :ok :process 0 :f :read :value 1}\n";

fn begin(number: u32, f: &str, majority: bool) -> String {
    let value = format!("{{:begin {number} :what :it :majority {majority}}}");
    format!("{{:type :info :process :nemesis :f :{f} :value {value}}}\n")
}

fn end(number: u32, f: &str, how: &str) -> String {
    let value = format!("{{:end {number} {how}}}");
    format!("{{:type :info :process :nemesis :f :{f} :value {value}}}\n")
}

fn said(f: &str, value: &str) -> String {
    format!("{{:type :info :process :nemesis :f :{f} :value {value}}}\n")
}

fn missing(text: &str, kinds: &[&str]) -> Vec<String> {
    let report = coverage::check(&History::read(text).unwrap(), kinds);
    assert_eq!(report.valid == Valid::True, report.unknown.is_empty(), "{report}");
    assert!(report.anomalies.is_empty());
    report.unknown
}

#[test]
fn a_run_that_counts() {
    let (begin, end) = (begin(1, "kill", true), end(1, "kill", ":proof \"gone\""));
    assert_eq!(missing(&format!("{OK}{begin}{OK}{end}{OK}"), &["kill"]), [""; 0]);
    assert_eq!(missing(OK, &[]), [""; 0]);
}

#[test]
fn a_run_that_does_not_count() {
    let (kill, gone) = (begin(1, "kill", true), end(1, "kill", ":proof \"gone\""));
    let survives = ["nothing succeeded during any kill"];
    assert_eq!(missing(&format!("{OK}{kill}{gone}{OK}"), &["kill"]), survives);
    let before = ["nothing succeeded before the first fault"];
    assert_eq!(missing(&format!("{kill}{OK}{gone}{OK}"), &["kill"]), before);
    let after = ["nothing succeeded after the last fault"];
    assert_eq!(missing(&format!("{OK}{kill}{OK}{gone}"), &["kill"]), after);
    let other = ["pause did not take place"];
    assert_eq!(missing(&format!("{OK}{kill}{OK}{gone}{OK}"), &["kill", "pause"]), other);
    let not = end(1, "kill", ":missing \"still there\"");
    let unproven = ["kill :it took no effect: still there"];
    assert_eq!(missing(&format!("{OK}{kill}{OK}{not}{OK}"), &["kill"]), unproven);
    let open = missing(&format!("{OK}{kill}{OK}"), &["kill"]);
    assert_eq!(open, ["kill :it was not ended", "nothing succeeded after the last fault"]);
}

/// What needs no node shows nothing of the cluster.
#[test]
fn what_clients_do_by_themselves() {
    let (kill, gone) = (begin(1, "kill", true), end(1, "kill", ":proof \"gone\""));
    let survives = ["nothing succeeded during any kill"];
    for alone in ["pick", "wait", "journal", "guarded", "doze", "watch"] {
        let alone = OK.replace(":read", &format!(":{alone}"));
        assert_eq!(missing(&format!("{OK}{kill}{alone}{gone}{OK}"), &["kill"]), survives);
    }
}

/// What was asked before a fault may have been done by then.
#[test]
fn what_was_under_way_before() {
    let (kill, gone) = (begin(1, "kill", true), end(1, "kill", ":proof \"gone\""));
    let (asked, done) = OK.split_once("} ").unwrap();
    let asked = format!("{asked}}}");
    let during = format!("{OK}{asked}{kill}{done}{gone}{OK}");
    assert_eq!(missing(&during, &["kill"]), ["nothing succeeded during any kill"]);
    let after = format!("{OK}{kill}{OK}{asked}{gone}{done}");
    assert_eq!(missing(&after, &["kill"]), ["nothing succeeded after the last fault"]);
}

/// Where no majority is left nothing needs to succeed, and of several faults of a kind one is enough.
#[test]
fn what_needs_no_success() {
    let gone = |number| end(number, "kill", ":proof \"gone\"");
    let all = begin(1, "kill", false);
    assert_eq!(missing(&format!("{OK}{all}{}{OK}", gone(1)), &["kill"]), [""; 0]);
    let (first, second) = (begin(1, "kill", true), begin(2, "kill", true));
    let text = format!("{OK}{first}{}{second}{OK}{}{OK}", gone(1), gone(2));
    assert_eq!(missing(&text, &["kill"]), [""; 0]);
}

#[test]
fn a_cluster_that_came_through() {
    let well = said("recovered", "{:after-ms 3}") + &said("digests", "{:equal true}");
    let judge = |text: &str, defects: &[(String, Vec<String>)]| {
        let report = health::check(&History::read(text).unwrap(), defects);
        (report.valid, report.names())
    };
    assert_eq!(judge(&format!("{OK}{well}"), &[]), (Valid::True, vec![]));
    assert_eq!(judge(OK, &[]).0, Valid::Unknown);
    let recovered = said("recovered", "{:after-ms 3}");
    assert_eq!(judge(&format!("{OK}{recovered}"), &[]).0, Valid::Unknown);
    let panics = [("node-1.log".to_owned(), vec!["panicked at x".to_owned()])];
    let panicked = judge(&format!("{OK}{well}"), &panics);
    assert_eq!(panicked, (Valid::False, vec!["node-panicked"]));
    for (said, name) in [
        (said("exited", "{:node 1 :status \"exit status: 4\"}"), "node-exited"),
        (said("unrecovered", "{:why \"silence\"}"), "not-recovered"),
        (said("believed", "{:node 1 :status \"it answers\"}"), "damage-believed"),
        (said("digests", "{:equal false}"), "replicas-differ"),
        (said("digests", "{}"), "replicas-differ"),
    ] {
        assert_eq!(judge(&format!("{OK}{well}{said}"), &[]), (Valid::False, vec![name]));
    }
}
