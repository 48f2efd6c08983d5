//! Gray releases: item 1, readers 0 (tier 0, zone 0), 1 (tier 1, zone 1), 2 (tier 0, zone 2).

use quorate_jepsen::check::gray;
use quorate_jepsen::report::{Report, Valid};

use crate::lines::{done, found, history};

fn write(f: &str, value: &str, revision: i64) -> String {
    format!("0 invoke {f} {value}\n0 ok {f} {value} @{revision}\n")
}

fn read(reader: i64, shown: &str, revision: i64) -> String {
    reads("read", reader, shown, revision)
}

fn reads(f: &str, reader: i64, shown: &str, revision: i64) -> String {
    format!("1 invoke {f} [1 {reader} nil]\n1 ok {f} [1 {reader} {shown}] @{revision}r\n")
}

/// 10 is current, 20 is for tier 0.
fn begin() -> String {
    write("publish", "[1 10]", 1) + &write("gray", "[1 20 \"a\" 0 {:labels {\"tier\" \"0\"}}]", 2)
}

/// Promoted, and all is said.
fn end() -> String {
    write("end", "[1 \"a\" true]", 100)
        + &reads("final", 0, "[20 \"\"]", 100)
        + &reads("final", 1, "[20 \"\"]", 100)
}

fn report(lines: &str) -> Report {
    gray::check(&history(lines)).unwrap()
}

fn judge(lines: &str, expected: &[&str]) {
    found(&report(lines), expected);
}

#[test]
fn who_gets_what() {
    let reads = read(0, "[20 \"a\"]", 2) + &read(1, "[10 \"\"]", 2) + &read(2, "[20 \"a\"]", 3);
    judge(&(begin() + &reads + &end()), &[]);
    // An earlier revision, read later.
    judge(&(begin() + &reads + &read(0, "[10 \"\"]", 1) + &end()), &[]);
    // The greatest priority, then the name.
    let several = write("gray", "[1 30 \"b\" 0 {:clients [0 1]}]", 3)
        + &write("gray", "[1 40 \"c\" 1 {:clients [2]}]", 4)
        + &read(0, "[20 \"a\"]", 4)
        + &read(1, "[30 \"b\"]", 4)
        + &read(2, "[40 \"c\"]", 4)
        + &write("end", "[1 \"b\" false]", 5)
        + &read(1, "[10 \"\"]", 5)
        + &write("end", "[1 \"c\" false]", 6);
    judge(&(begin() + &several + &end()), &[]);
    let nothing = done(1, "read", "[1 0 nil]", "[1 0 nil]");
    judge(&(nothing + &begin() + &reads + &end()), &[]);
}

/// The share is that of docs/CONFIG.md: none of 0, all of 10 000, and a greater one only adds.
#[test]
fn shares() {
    let shown = |share: i64, reader: i64, gray: bool| {
        let publish = write("gray", &format!("[1 30 \"b\" 9 {{:share {share}}}]"), 3);
        let shown = if gray { "[30 \"b\"]" } else { "[10 \"\"]" };
        let over = write("end", "[1 \"b\" false]", 4) + &read(0, "[20 \"a\"]", 4);
        report(&(begin() + &publish + &read(reader, shown, 3) + &over + &end())).valid
            == Valid::True
    };
    for reader in [1, 3, 5, 7, 9] {
        assert!(shown(10_000, reader, true) && !shown(10_000, reader, false));
        assert!(!shown(0, reader, true) && shown(0, reader, false));
        let gets: Vec<bool> =
            [1_000, 3_000, 5_000, 9_000].map(|share| shown(share, reader, true)).to_vec();
        assert!(gets.is_sorted(), "reader {reader}: {gets:?}");
    }
}

#[test]
fn what_is_not_theirs() {
    let fine = read(0, "[20 \"a\"]", 2);
    let others = fine.clone() + &read(1, "[20 \"a\"]", 2);
    judge(&(begin() + &others + &end()), &["replay-differs", "for-others"]);
    let withheld = fine.clone() + &read(2, "[10 \"\"]", 2);
    judge(&(begin() + &withheld + &end()), &["replay-differs"]);
    let phantom = fine.clone() + &read(1, "[99 \"\"]", 2);
    judge(&(begin() + &phantom + &end()), &["replay-differs", "phantom-release"]);
    let rule = fine.clone() + &read(0, "[20 \"b\"]", 2);
    judge(&(begin() + &rule + &end()), &["replay-differs", "phantom-release"]);
    let early = fine + &read(1, "[20 \"\"]", 2);
    judge(&(begin() + &early + &end()), &["replay-differs", "not-promoted"]);
    // What was refused is seen by nobody.
    let refused = "2 invoke publish [1 50]\n2 fail publish [1 50]\n".to_owned();
    let refused = refused + &read(0, "[20 \"a\"]", 2) + &read(1, "[50 \"\"]", 3);
    judge(&(begin() + &refused + &end()), &["replay-differs", "phantom-release"]);
}

#[test]
fn what_is_over() {
    let aborted = read(0, "[20 \"a\"]", 2) + &write("end", "[1 \"a\" false]", 3);
    let rest = |shown: &str| reads("final", 0, shown, 9) + &reads("final", 1, "[10 \"\"]", 9);
    judge(&(begin() + &aborted + &rest("[10 \"\"]")), &[]);
    // Whatever revision the read says.
    let stale = read(0, "[20 \"a\"]", 2);
    judge(&(begin() + &aborted + &stale + &rest("[10 \"\"]")), &["gray-after-its-end"]);
    judge(
        &(begin() + &aborted + &rest("[20 \"\"]")),
        &["replay-differs", "not-promoted", "not-the-same"],
    );
    let still = begin() + &read(0, "[20 \"a\"]", 2) + &reads("final", 0, "[20 \"a\"]", 2);
    judge(&still, &["still-gray"]);
}

/// It may have taken place at any time from its invocation on, or never, but only once.
#[test]
fn writes_of_unknown_outcome() {
    let lost = "5 invoke publish [1 50]\n5 info publish [1 50]\n".to_owned();
    let gray = read(0, "[20 \"a\"]", 2);
    let begin = begin() + &lost + &gray;
    judge(&(begin.clone() + &end()), &[]);
    let seen = read(1, "[10 \"\"]", 3) + &read(1, "[50 \"\"]", 7);
    judge(&(begin.clone() + &seen + &end()), &[]);
    let gone = seen + &read(1, "[10 \"\"]", 8);
    judge(&(begin.clone() + &gone + &end()), &["replay-differs"]);
    // An end that may have taken place explains what went.
    let ended = "6 invoke end [1 \"a\" false]\n6 info end [1 \"a\" false]\n".to_owned();
    let without = ended + &read(0, "[10 \"\"]", 9);
    let rest = reads("final", 0, "[10 \"\"]", 10) + &reads("final", 1, "[10 \"\"]", 10);
    judge(&(begin + &without + &rest), &[]);
}

#[test]
fn without_gray_or_rest_nothing_is_shown() {
    assert_eq!(report(&(begin() + &read(0, "[20 \"a\"]", 2))).valid, Valid::Unknown);
    assert_eq!(report(&(begin() + &read(1, "[10 \"\"]", 2) + &end())).valid, Valid::Unknown);
    let wrong = done(1, "read", "[1 0 nil]", "[1 0 20]");
    assert!(gray::check(&history(&(begin() + &wrong))).is_err());
    let wrong = done(1, "gray", "[1 2 \"a\" 0 {}]", "nil");
    assert!(gray::check(&history(&wrong)).is_err());
}
