//! Ops are read in both forms, paired, and refused when they are no history.

use quorate_jepsen::history::{Call, History};

const LINES: &str = "\
{:index 0, :time 5, :type :invoke, :process 0, :f :write, :value 1}
{:index 1, :time 6, :type :info, :process :nemesis, :f :kill, :value [\"n1\"]}
{:index 2, :time 7, :type :invoke, :process 1, :f :read, :value nil}
{:index 3, :time 8, :type :info, :process 0, :f :write, :value 1, :error :timeout}
{:index 4, :time 9, :type :ok, :process 1, :f :read, :value 1, :revision 7, :wrote false}
{:index 5, :time 9, :type :invoke, :process 1, :f :read, :value nil}
";

#[test]
fn both_forms_are_the_same_history() {
    let history = History::read(LINES).unwrap();
    assert_eq!(history.to_string(), LINES);
    assert_eq!(History::read(&format!("[{LINES}]")).unwrap(), history);
    let records = LINES.replace("{:index", "#jepsen.history.Op{:index");
    assert_eq!(History::read(&records).unwrap(), history);
    let calls = history.calls().unwrap();
    let call = |invoke, complete| Call { invoke, complete };
    assert_eq!(calls, [call(0, Some(3)), call(2, Some(4)), call(5, None)]);
}

#[test]
fn without_index_and_time_the_order_counts() {
    let history = History::read(
        "{:type :invoke :process 0 :f :read} {:type :ok :process 0 :f :read :value 1}",
    );
    let indices: Vec<usize> = history.unwrap().ops.iter().map(|op| op.index).collect();
    assert_eq!(indices, [0, 1]);
}

fn refused(text: &str, expected: &str) {
    let error = History::read(text).and_then(|history| history.calls()).unwrap_err();
    assert_eq!(error.to_string(), expected, "{text}");
}

#[test]
fn what_is_no_history() {
    refused("{:type :invoke", "line 1, column 1: '{' is never closed");
    refused("\n 7", "line 2, column 2: an op is a map, this is 7");
    refused("{:process 0 :f :read}", "line 1, column 1: the op has no :type");
    refused("{:type :done :process 0 :f :read}", "line 1, column 1: the :type :done is unknown");
    refused("{:type :ok :f :read}", "line 1, column 1: the op has no :process");
    refused("{:type :ok :process 0}", "line 1, column 1: the op has no :f");
    refused(
        "{:type :ok :process 0 :f :read :index -1}",
        "line 1, column 1: the :index -1 is negative",
    );
    refused(
        "{:type :ok :process 0 :f :read :revision :x}",
        "line 1, column 1: the :revision :x is no number",
    );
    let op = |index: usize, kind: &str, f: &str| {
        format!("{{:index {index}, :type :{kind}, :process 0, :f :{f}, :value nil}}\n")
    };
    let (invoke, read) = ("invoke", "read");
    refused(&(op(1, invoke, read) + &op(1, "ok", read)), "line 2, column 1: index 1 after index 1");
    refused(&op(0, "ok", read), "op 0: process 0 completes what it did not invoke");
    let twice = op(0, invoke, read) + &op(1, invoke, read);
    refused(&twice, "op 1: process 0 invokes while op 0 is open");
    let after_info = op(0, invoke, read) + &op(1, "info", read) + &op(2, invoke, read);
    refused(&after_info, "op 2: process 0 invokes while op 0 is open");
    let other = op(0, invoke, read) + &op(1, "ok", "write");
    refused(&other, "op 1: completes :read of op 0 as :write");
    let again = op(0, invoke, read) + &op(1, "ok", read) + &op(2, "ok", read);
    refused(&again, "op 2: process 0 completes what it did not invoke");
}
