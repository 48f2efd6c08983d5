//! The binary: exit codes, both formats, a file and standard input.

use std::io::Write;
use std::process::{Command, Stdio};

/// Exit code, standard output, standard error.
fn run(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_quorate-jepsen"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who refuses the command line does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

const READ: &str = "{:type :invoke :process 0 :f :read :value nil}\n";

fn register(input: &str) -> (i32, String, String) {
    run(&["check", "--model", "register", "-"], input)
}

#[test]
fn exit_codes() {
    let (code, out, _) = register(&format!("{READ}{{:type :ok :process 0 :f :read :value nil}}"));
    assert_eq!((code, out.as_str()), (0, "linearizable: true (1 operations succeeded)\n"));
    let (code, out, _) = register(&format!("{READ}{{:type :ok :process 0 :f :read :value 1}}"));
    assert_eq!(
        (code, out.lines().next()),
        (1, Some("linearizable: false (1 operations succeeded)"))
    );
    let (code, out, _) = register(READ);
    assert_eq!(code, 2);
    assert_eq!(
        out,
        "linearizable: unknown (0 operations succeeded)\nunknown: no operation succeeded\n"
    );
    let (code, out, error) = register(&format!("{READ}{READ}"));
    assert_eq!((code, out.as_str()), (3, ""));
    assert_eq!(error, "error: -: op 1: process 0 invokes while op 0 is open\n");
    assert_eq!(register("{").0, 3);
    assert_eq!(run(&["check", "--model", "register", "/nowhere"], "").0, 3);
    assert_eq!(run(&["check", "--model", "queue", "-"], "").0, 3);
    assert_eq!(run(&["check", "-"], READ).0, 3);
    assert_eq!(run(&["run", "--nemesis", "earthquake"], "").0, 3);
    assert_eq!(run(&["run", "--workload", "queue"], "").0, 3);
    assert_eq!(run(&["run", "--rate", "0"], "").0, 3);
    let (code, _, error) = run(&["run", "--seconds", "15", "--nemesis", "all"], "");
    assert_eq!(code, 3);
    assert!(error.contains("15 s are too short"), "{error}");
    assert_eq!(run(&["run", "--binary", "/nowhere", "--dir", "/dev/null/x"], "").0, 3);

    assert_eq!(run(&[], "").0, 3);
    assert_eq!(run(&["--help"], "").0, 0);
}

#[test]
fn registers_begin_as_they_are_said_to() {
    let history = format!("{READ}{{:type :ok :process 0 :f :read :value 1}}");
    let check =
        |initial| run(&["check", "--model", "register", "--initial", initial, "-"], &history).0;
    assert_eq!((check("1"), check("nil"), check("2")), (0, 1, 1));
    assert_eq!((check("["), check("1 2"), check("")), (3, 3, 3));
}

/// One defect may show in every read after it.
#[test]
fn what_is_printed_is_limited() {
    let lines = (0..50).map(|key| {
        format!("{{:type :invoke :process {key} :f :txn :value [[:r {key} nil]]}}\n{{:type :ok :process {key} :f :txn :value [[:r {key} [1]]]}}\n")
    });
    let input: String = lines.collect();
    let (code, out, _) = run(&["check", "--model", "list-append", "-"], &input);
    assert_eq!(code, 1);
    assert_eq!(out.matches("which nobody appended").count(), 20);
    assert!(out.ends_with("(30 more anomalies: phantom-element)\n"), "{out}");
    let (_, out, _) = run(&["check", "--model", "list-append", "-w", "json", "-"], &input);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["found"], 50);
    assert_eq!(report["anomalies"].as_array().unwrap().len(), 20);
}

#[test]
fn json() {
    let input = "{:type :invoke :process 0 :f :txn :value [[:r :x nil]]}\n\
        {:type :ok :process 0 :f :txn :value [[:r :x [1]]]}";
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/phantom.edn");
    std::fs::write(file, input).unwrap();
    let (code, out, _) = run(&["check", "--model", "list-append", "-w", "json", file], "");
    assert_eq!(code, 1);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["valid"], false);
    assert_eq!(report["property"], "strict-serializable");
    assert_eq!(report["anomalies"][0]["name"], "phantom-element");
    assert_eq!(report["anomalies"][0]["what"], "a read of key :x shows 1, which nobody appended");
}
