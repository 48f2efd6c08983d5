//! Global transactions: two accounts with 100 each. Transaction 1 moves 30 from account 0 to account 1.

use quorate_jepsen::check::saga::{self, Terms};
use quorate_jepsen::report::{Report, Valid};

use crate::lines::{done, found, history};

const TERMS: Terms = Terms { accounts: 2, balance: 100 };
const MOVES: &str = "[[0 -30 false] [1 30 false]]";
const MOVED: &str = "{0 [70 0 0] 1 [130 0 0]}";
const UNMOVED: &str = "{0 [100 0 0] 1 [100 0 0]}";
const ACTIONS: &str = "[1 0 :action 1 4 :done] [1 1 :action 1 4 :done]";

fn begin(mode: &str, attempts: usize) -> String {
    let value = format!("[1 :{mode} {attempts} {MOVES}]");
    done(0, "begin", &value, &value)
}

fn look(status: &str) -> String {
    done(1, "look", "[1 nil]", &format!("[1 {status}]"))
}

fn rest(list: &str, journal: &str, read: &str) -> String {
    done(0, "list", "nil", &format!("[{list}]"))
        + &done(0, "journal", "nil", &format!("[{journal}]"))
        + &done(0, "read", "nil", read)
}

fn report(lines: &str) -> Report {
    saga::check(&history(lines), TERMS).unwrap()
}

fn judge(lines: &str, expected: &[&str]) {
    found(&report(lines), expected);
}

#[test]
fn what_sagas_do() {
    let begin = begin("saga", 0);
    let moved = rest("[1 :succeeded]", ACTIONS, MOVED);
    judge(&(begin.clone() + &look(":submitted") + &look(":succeeded") + &moved), &[]);
    let undone = "[1 0 :action 1 4 :done] [1 1 :action 1 4 :refused] \
        [1 1 :compensate 1 4 :empty] [1 0 :compensate 1 4 nil] [1 0 :compensate 2 4 :done] \
        [1 0 :compensate 3 5 :duplicate]";
    let undone = rest("[1 :failed]", undone, UNMOVED);
    judge(&(begin.clone() + &look(":submitted") + &look(":aborting") + &undone), &[]);
    // Of looks at the same time each may come first.
    let both = "1 invoke look [1 nil]\n2 invoke look [1 nil]\n1 ok look [1 :succeeded]\n2 ok look [1 :submitted]\n";
    judge(&(begin + both + &moved), &[]);
}

#[test]
fn what_tccs_do() {
    let begin = begin("tcc", 0);
    let (try_0, try_1) = ("[1 0 :try 1 0 :done]", "[1 1 :try 1 0 :done]");
    let confirm = done(0, "confirm", "[1]", "[1]");
    let confirms = "[1 0 :confirm 1 4 :done] [1 1 :confirm 1 4 :done]";
    let journal = format!("{try_0} {try_1} {confirms}");
    judge(&(begin.clone() + &confirm + &rest("[1 :succeeded]", &journal, MOVED)), &[]);
    let journal = format!("{try_0} [1 0 :cancel 1 4 :done] [1 1 :cancel 1 4 :empty]");
    judge(&(begin + &rest("[1 :failed]", &journal, UNMOVED)), &[]);
}

/// It may exist or not, and is whole either way.
#[test]
fn a_begin_whose_answer_is_lost() {
    let lost = |rest: &str| {
        format!(
            "0 invoke begin [1 :saga 0 {MOVES}]\n0 info begin [1 :saga 0 {MOVES}]\n{}",
            rest.replace("0 invoke", "5 invoke").replace("0 ok", "5 ok")
        )
    };
    judge(&lost(&rest("", "", UNMOVED)), &[]);
    judge(&lost(&rest("[1 :succeeded]", ACTIONS, MOVED)), &[]);
    judge(&lost(&rest("[1 :submitted]", "", UNMOVED)), &["stuck"]);
    // Who called, if there is none?
    let called = rest("", ACTIONS, MOVED);
    judge(&lost(&called), &["phantom-call"]);
    judge(&lost(&(look(":submitted") + &rest("", "", UNMOVED))), &["lost-transaction"]);
}

#[test]
fn what_does_not_end() {
    let begin = begin("saga", 0);
    judge(&(begin.clone() + &rest("", "", UNMOVED)), &["lost-transaction"]);
    let half = "[1 0 :action 1 4 :done]";
    let half_moved = "{0 [70 0 0] 1 [100 0 0]}";
    let stuck = rest("[1 :submitted]", half, half_moved);
    judge(&(begin.clone() + &stuck), &["stuck", "not-conserved"]);
    let suspended = rest("[1 :suspended]", "", UNMOVED);
    judge(&(begin + &suspended), &["suspended"]);
}

#[test]
fn what_is_not_whole() {
    let begin = begin("saga", 0);
    let ends = |status: &str, journal: &str, read: &str| {
        begin.clone() + &rest(&format!("[1 :{status}]"), journal, read)
    };
    let half = "[1 0 :action 1 4 :done]";
    judge(&ends("succeeded", half, "{0 [70 0 0] 1 [100 0 0]}"), &["not-whole", "not-conserved"]);
    let twice = format!("{ACTIONS} [1 1 :action 2 4 :done]");
    judge(&ends("succeeded", &twice, "{0 [70 0 0] 1 [160 0 0]}"), &["not-whole", "not-conserved"]);
    let undone = format!("{ACTIONS} [1 1 :compensate 1 4 :done]");
    judge(&ends("succeeded", &undone, "{0 [70 0 0] 1 [100 0 0]}"), &["not-whole", "not-conserved"]);
    let refused = "[1 0 :action 1 4 :done] [1 1 :action 1 4 :refused]";
    judge(&ends("failed", refused, "{0 [70 0 0] 1 [100 0 0]}"), &["not-undone", "not-conserved"]);
    let over = format!("{refused} [1 0 :compensate 1 4 :done] [1 0 :compensate 2 4 :done]");
    judge(&ends("failed", &over, "{0 [130 0 0] 1 [100 0 0]}"), &["not-undone", "not-conserved"]);
    let nobody = "[1 0 :action 1 4 :done] [1 0 :compensate 1 4 :done]";
    judge(&ends("failed", nobody, UNMOVED), &["failed-for-nothing"]);
    // One that gives up after so many failures needs no refusal.
    let given_up = self::begin("saga", 2) + &rest("[1 :failed]", nobody, UNMOVED);
    judge(&given_up, &[]);
}

#[test]
fn what_a_tcc_does_not() {
    let begin = begin("tcc", 0);
    let ends = |status: &str, journal: &str, read: &str| {
        begin.clone() + &rest(&format!("[1 :{status}]"), journal, read)
    };
    let tries = "[1 0 :try 1 0 :done] [1 1 :try 1 0 :done]";
    let held = "{0 [70 30 0] 1 [100 0 30]}";
    judge(&ends("failed", tries, held), &["not-undone", "account-differs", "not-conserved"]);
    let half = format!("{tries} [1 0 :confirm 1 4 :done]");
    judge(
        &ends("succeeded", &half, "{0 [70 0 0] 1 [100 0 30]}"),
        &["not-whole", "account-differs", "not-conserved"],
    );
    let both = format!("{half} [1 1 :confirm 1 4 :done] [1 1 :cancel 1 4 :done]");
    judge(&ends("succeeded", &both, MOVED), &["not-whole"]);
}

#[test]
fn what_flips() {
    let moved = rest("[1 :succeeded]", ACTIONS, MOVED);
    let flips = |mode: &str, first: &str, second: &str| {
        let looks = look(first) + &look(second);
        report(&(begin(mode, 0) + &looks + &moved)).names().contains(&"decision-flips")
    };
    for mode in ["saga", "tcc"] {
        assert!(flips(mode, ":aborting", ":submitted"));
        assert!(flips(mode, ":succeeded", ":submitted"));
        assert!(flips(mode, ":submitted", ":prepared"));
        assert!(flips(mode, ":submitted", "nil"));
        assert!(!flips(mode, ":prepared", ":submitted"));
        assert!(!flips(mode, "nil", ":submitted"));
    }
    // What is listed at rest counts as well.
    assert!(flips("saga", ":submitted", ":aborting"));
    judge(&(begin("saga", 0) + &look(":failed") + &moved), &["decision-flips"]);
    let cancelled = begin("saga", 0) + &done(2, "cancel", "[1]", "[1]") + &moved;
    judge(&cancelled, &["decision-flips"]);
}

#[test]
fn epochs() {
    let begin = begin("saga", 0);
    let calls = |calls: &str| {
        let journal = format!("{calls} [1 0 :action 9 9 :done] [1 1 :action 1 4 :done]");
        report(&(begin.clone() + &rest("[1 :succeeded]", &journal, MOVED)))
    };
    // Late, which nothing forbids.
    let late = calls("[1 0 :action 2 5 nil] [1 0 :action 1 4 nil]");
    found(&late, &[]);
    assert_eq!(late.notes.len(), 1, "{late}");
    found(&calls("[1 0 :action 1 4 nil] [1 0 :action 1 5 nil]"), &["attempt-of-two-epochs"]);
    found(&calls("[1 0 :action 1 5 nil] [1 0 :action 2 4 nil]"), &["epoch-goes-back"]);
}

#[test]
fn what_nobody_began() {
    let moved = rest("[1 :succeeded] [2 :succeeded]", ACTIONS, MOVED);
    judge(&(begin("saga", 0) + &moved), &["phantom-transaction"]);
    let called = rest("[1 :succeeded]", &format!("{ACTIONS} [2 0 :action 1 4 :done]"), MOVED);
    judge(&(begin("saga", 0) + &called), &["phantom-call"]);
    let refused = begin("saga", 0).replace("0 ok begin", "0 fail begin");
    judge(&(refused + &rest("[1 :succeeded]", ACTIONS, MOVED)), &["phantom-transaction"]);
}

#[test]
fn without_its_end_nothing_is_shown() {
    assert_eq!(report(&begin("saga", 0)).valid, Valid::Unknown);
    let twice = begin("saga", 0) + &begin("saga", 0);
    assert!(saga::check(&history(&twice), TERMS).is_err());
    let wrong = done(0, "read", "nil", "[1]");
    let lines = begin("saga", 0) + &rest("", "", UNMOVED) + &wrong;
    assert!(saga::check(&history(&lines), TERMS).is_err());
}
