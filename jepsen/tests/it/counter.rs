//! The counter: between what is certain and what is possible.

use quorate_jepsen::check::counter;
use quorate_jepsen::random::Random;

use crate::lines::{done, found, history};

fn judge(lines: &str, expected: &[&str]) {
    found(&counter::check(&history(lines)).unwrap(), expected);
}

fn read(value: i64) -> String {
    done(9, "read", "[1 nil]", &format!("[1 {value}]"))
}

#[test]
fn certain_sums() {
    let adds = done(0, "add", "[1 5]", "[1 5 5]") + &done(0, "add", "[1 -2]", "[1 -2 3]");
    judge(&(adds.clone() + &read(3)), &[]);
    for wrong in [0, 2, 4, 5] {
        judge(&(adds.clone() + &read(wrong)), &["wrong-sum"]);
    }
    // The answer of an addition itself.
    judge(&done(0, "add", "[1 5]", "[1 5 6]"), &["wrong-sum"]);
    // Another counter has nothing to do with it.
    judge(&(adds + &done(9, "read", "[2 nil]", "[2 3]")), &["wrong-sum"]);
}

#[test]
fn what_is_unknown_or_failed() {
    let unknown = "0 invoke add [1 5]\n0 info add [1 5]\n1 invoke add [1 -3]\n1 info add [1 -3]\n";
    for (value, expected) in
        [(0, &[][..]), (5, &[]), (-3, &[]), (2, &[]), (6, &["wrong-sum"]), (-4, &["wrong-sum"])]
    {
        judge(&(unknown.to_owned() + &read(value)), expected);
    }
    let failed = "0 invoke add [1 5]\n0 fail add [1 5]\n".to_owned();
    judge(&(failed.clone() + &read(0)), &[]);
    judge(&(failed + &read(5)), &["wrong-sum"]);
}

#[test]
fn what_overlaps() {
    let lines = |value| {
        format!(
            "0 invoke add [1 5]\n9 invoke read [1 nil]\n1 invoke add [1 7]\n1 ok add [1 7 7]\n9 ok read [1 {value}]\n0 ok add [1 5 12]\n"
        )
    };
    for value in [0, 5, 7, 12] {
        judge(&lines(value), &[]);
    }
    judge(&lines(13), &["wrong-sum"]);
    judge(&lines(-1), &["wrong-sum"]);
    // Invoked after the read had ended.
    judge(&(read(5) + &done(0, "add", "[1 5]", "[1 5 5]")), &["wrong-sum"]);
}

/// Its own answer contains an addition, whatever else does.
#[test]
fn what_an_addition_is_answered() {
    judge(&done(0, "add", "[1 5]", "[1 5 0]"), &["wrong-sum"]);
    judge(&done(0, "add", "[1 -5]", "[1 -5 0]"), &["wrong-sum"]);
    let both = |first: i64, second: i64| {
        format!(
            "0 invoke add [1 5]\n1 invoke add [1 -3]\n0 ok add [1 5 {first}]\n1 ok add [1 -3 {second}]\n"
        )
    };
    for (first, second) in [(5, 2), (2, -3)] {
        judge(&both(first, second), &[]);
    }
    for (first, second) in [(0, 2), (-3, 2), (5, 5), (5, -8)] {
        judge(&both(first, second), &["wrong-sum"]);
    }
}

#[test]
fn one_addition_too_few_or_too_many_is_seen() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let mut sum = 0;
        let mut lines = String::new();
        for process in 0..30 {
            let delta = random.between(1..=100) as i64 - 50;
            // Some are never answered, and take place or not.
            if random.chance(10) {
                lines +=
                    &format!("{process} invoke add [1 {delta}]\n{process} info add [1 {delta}]\n");
                sum += if random.chance(50) { delta } else { 0 };
            } else {
                sum += delta;
                lines +=
                    &done(process, "add", &format!("[1 {delta}]"), &format!("[1 {delta} {sum}]"));
            }
        }
        judge(&(lines.clone() + &done(99, "read", "[1 nil]", &format!("[1 {sum}]"))), &[]);
        let wrong = sum + if seed % 2 == 0 { 10_000 } else { -10_000 };
        judge(&(lines + &done(99, "read", "[1 nil]", &format!("[1 {wrong}]"))), &["wrong-sum"]);
    }
}
