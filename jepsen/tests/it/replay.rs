//! Replay by revision: the order that a server claims, against real time and against a naive model.

use quorate_jepsen::check::replay;
use quorate_jepsen::random::Random;

use crate::lines::{found, history};

fn order(lines: &str, expected: &[&str]) {
    found(&replay::order(&history(lines)).unwrap(), expected);
}

fn registers(lines: &str, expected: &[&str]) {
    found(&replay::registers(&history(lines)).unwrap(), expected);
}

#[test]
fn an_order_that_agrees_with_time() {
    order(
        "0 invoke write [1 1]
         1 invoke write [1 2]
         1 ok write [1 2] @2
         2 invoke read [1 nil]
         2 ok read [1 2] @2r
         0 ok write [1 1] @1
         0 invoke write [1 1]
         0 ok write [1 1] @2r",
        &[],
    );
}

#[test]
fn two_writes_at_one_revision() {
    order(
        "0 invoke write [1 1]
         1 invoke write [2 1]
         0 ok write [1 1] @5
         1 ok write [2 1] @5",
        &["shared-revision"],
    );
}

#[test]
fn revisions_that_go_back() {
    let first = "0 invoke write [1 1]\n 0 ok write [1 1] @5\n";
    order(
        &format!("{first} 1 invoke read [1 nil]\n 1 ok read [1 nil] @4r"),
        &["revision-goes-back"],
    );
    order(&format!("{first} 1 invoke write [2 1]\n 1 ok write [2 1] @4"), &["revision-goes-back"]);
    // Its own revision cannot be one that was there before it was asked for.
    let read = "1 invoke read [1 nil]\n 1 ok read [1 nil] @5r\n";
    order(&format!("{read} 0 invoke write [1 1]\n 0 ok write [1 1] @5"), &["revision-goes-back"]);
    // Of operations that overlap either may be the first.
    order(
        "0 invoke write [1 1]
         1 invoke read [1 nil]
         0 ok write [1 1] @5
         1 ok read [1 nil] @4r",
        &[],
    );
}

#[test]
fn registers_that_replay() {
    registers(
        "0 invoke write [1 1]
         1 invoke cas [1 [1 2]]
         1 ok cas [1 [1 2]] @2
         0 ok write [1 1] @1
         2 invoke read [1 nil]
         2 ok read [1 2] @2r
         3 invoke write [1 2]
         3 ok write [1 2] @2r",
        &[],
    );
}

#[test]
fn registers_that_contradict_their_revisions() {
    let write = "0 invoke write [1 1]\n 0 ok write [1 1] @1\n";
    let read = |value, at| format!("1 invoke read [1 nil]\n 1 ok read [1 {value}] @{at}r\n");
    registers(&(write.to_owned() + &read("2", 1)), &["replay-differs"]);
    registers(&(write.to_owned() + &read("1", 0)), &["replay-differs"]);
    let cas = "1 invoke cas [1 [3 2]]\n 1 ok cas [1 [3 2]] @2\n";
    registers(&(write.to_owned() + cas), &["replay-differs"]);
    // It says that there was nothing to change.
    let unchanged = "1 invoke write [1 4]\n 1 ok write [1 4] @1r\n";
    registers(&(write.to_owned() + unchanged), &["replay-differs"]);
}

#[test]
fn what_is_unknown_explains_one_change() {
    let unknown = "0 invoke write [1 7]\n 0 info write [1 7]\n";
    let one = "1 invoke write [1 1]\n 1 ok write [1 1] @2\n";
    let read = |value, at| format!("2 invoke read [1 nil]\n 2 ok read [1 {value}] @{at}r\n");
    registers(&format!("{unknown}{one}{}", read("7", 3)), &[]);
    registers(&format!("{unknown}{}{one}{}", read("7", 1), read("1", 2)), &[]);
    // It took place before the write of 1, and cannot take place again.
    let twice = format!("{unknown}{}{one}{}", read("7", 1), read("7", 3));
    registers(&twice, &["replay-differs"]);
    // It was invoked after the read that would show it.
    registers(&format!("{}{unknown}", read("7", 1)), &["replay-differs"]);
    let failed = "0 invoke write [1 7]\n 0 fail write [1 7]\n";
    registers(&format!("{failed}{}", read("7", 1)), &["replay-differs"]);
}

/// A register that works, with clients that overlap: lines in the order of the history.
fn simulate(seed: u64, count: usize) -> Vec<String> {
    let mut random = Random::new(seed);
    let (mut value, mut revision) = (0, 0);
    let mut lines = Vec::new();
    let mut open: Vec<(usize, String)> = Vec::new();
    for process in 0..count {
        // Each takes place when it is invoked and is answered later.
        let (asked, answer, at) = if random.chance(50) {
            value = 1 + random.below(5);
            revision += 1;
            (format!("write [1 {value}]"), format!("write [1 {value}]"), format!("@{revision}"))
        } else {
            let seen = if revision == 0 { "nil".to_owned() } else { value.to_string() };
            ("read [1 nil]".to_owned(), format!("read [1 {seen}]"), format!("@{revision}r"))
        };
        lines.push(format!("{process} invoke {asked}"));
        open.push((process, format!("{process} ok {answer} {at}")));
        while open.len() > 3 || !open.is_empty() && random.chance(40) {
            lines.push(open.remove(random.below(open.len())).1);
        }
    }
    lines.extend(open.into_iter().map(|(_, line)| line));
    lines
}

#[test]
fn what_works_replays_and_what_is_changed_does_not() {
    let mut caught = 0;
    for seed in 0..200 {
        let lines = simulate(seed, 60);
        order(&lines.join("\n"), &[]);
        registers(&lines.join("\n"), &[]);
        // One answered read shows something else.
        let mut random = Random::new(seed ^ 0xbad);
        let reads: Vec<usize> =
            (0..lines.len()).filter(|&at| lines[at].contains(" ok read ")).collect();
        let mut changed = lines.clone();
        let victim = *random.pick(&reads);
        let (head, at) = lines[victim].rsplit_once(" @").unwrap();
        let head = head.rsplit_once(' ').unwrap().0;
        changed[victim] = format!("{head} 9] @{at}");
        let report = replay::registers(&history(&changed.join("\n"))).unwrap();
        caught += usize::from(report.names() == ["replay-differs"]);
    }
    assert_eq!(caught, 200);
}

fn lists(lines: &str, expected: &[&str]) {
    found(&replay::lists(&history(lines)).unwrap(), expected);
}

/// A transaction that succeeds at once.
fn txn(process: usize, steps: &str, at: &str) -> String {
    format!("{process} invoke txn [{steps}]\n{process} ok txn [{steps}] @{at}\n")
}

#[test]
fn lists_that_replay() {
    let lines = txn(0, "[:append 1 1] [:r 1 [1]]", "1")
        + &txn(1, "[:r 1 [1]] [:append 1 2] [:append 2 3] [:r 1 [1 2]]", "2")
        + &txn(2, "[:r 1 [1 2]] [:r 2 [3]] [:r 3 []]", "2r");
    lists(&lines, &[]);
}

#[test]
fn lists_that_contradict_their_revisions() {
    let first = txn(0, "[:append 1 1]", "1");
    let second = txn(0, "[:append 1 2]", "2");
    for read in ["[:r 1 [1]]", "[:r 1 [2 1]]", "[:r 1 [1 2 3]]", "[:r 1 []]"] {
        lists(&(first.clone() + &second + &txn(1, read, "2r")), &["replay-differs"]);
    }
    lists(&txn(0, "[:append 1 1] [:r 1 []]", "1"), &["replay-differs"]);
}

#[test]
fn what_is_unknown_may_be_in_a_list_as_a_whole() {
    let unknown =
        "9 invoke txn [[:append 1 7] [:append 2 8]]\n9 info txn [[:append 1 7] [:append 2 8]]\n";
    let start = unknown.to_owned() + &txn(0, "[:append 1 1]", "2");
    let read = |steps| txn(1, steps, "3r");
    lists(&(start.clone() + &read("[:r 1 [1]] [:r 2 []]")), &[]);
    lists(&(start.clone() + &read("[:r 1 [7 1]] [:r 2 [8]]")), &[]);
    // Half of it.
    lists(&(start.clone() + &read("[:r 1 [7 1]] [:r 2 []]")), &["replay-differs"]);
    // It was there, and then it was not.
    let gone = start + &read("[:r 1 [1 7]]") + &txn(1, "[:r 1 [1]]", "4r");
    lists(&gone, &["replay-differs"]);
}
