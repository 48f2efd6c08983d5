//! Exactly once: repeated under one id, counted once.

use quorate_jepsen::check::once;
use quorate_jepsen::random::Random;

use crate::lines::{done, found, history};

fn judge(lines: &str, expected: &[&str]) {
    found(&once::check(&history(lines)).unwrap(), expected);
}

/// One answered copy of a write: session 1.
fn add(sequence: usize, delta: i64, value: i64, revision: i64) -> String {
    let asked = format!("[1 {sequence} {delta}]");
    done(0, "add", &asked, &format!("[1 {sequence} {delta} {value} {revision}]"))
}

fn read(value: i64) -> String {
    done(9, "read", "nil", &value.to_string())
}

#[test]
fn copies_count_once() {
    let lines = add(1, 5, 5, 1) + &add(1, 5, 5, 1) + &add(2, 3, 8, 2) + &add(2, 3, 8, 2);
    judge(&(lines.clone() + &read(8)), &[]);
    judge(&(lines.clone() + &read(13)), &["wrong-sum"]);
    judge(&(lines + &read(5)), &["wrong-sum"]);
}

/// Its own answer contains a write, also when an earlier copy of it was the one that counted.
#[test]
fn what_a_write_is_answered() {
    judge(&add(1, 5, 0, 1), &["wrong-sum"]);
    let unknown = "0 invoke add [1 1 5]\n0 info add [1 1 5]\n".to_owned();
    let other = done(2, "add", "[2 1 3]", "[2 1 3 8 2]");
    let later = |value: i64| done(1, "add", "[1 1 5]", &format!("[1 1 5 {value} 1]"));
    judge(&(unknown.clone() + &other + &later(5)), &[]);
    judge(&(unknown + &other + &later(3)), &["wrong-sum"]);
}

#[test]
fn copies_that_are_answered_differently() {
    judge(&(add(1, 5, 5, 1) + &add(1, 5, 10, 1)), &["answers-differ"]);
    judge(&(add(1, 5, 5, 1) + &add(1, 5, 5, 2)), &["answers-differ"]);
}

#[test]
fn one_that_overwrites_another() {
    judge(&(add(1, 5, 5, 1) + &add(2, 3, 5, 2)), &["lost-addition", "wrong-sum"]);
    judge(&(add(1, 5, 5, 1) + &add(2, 3, 8, 1)), &["lost-addition"]);
}

/// A copy without an answer is answered by the next one; if none is, it may have counted or not.
#[test]
fn unknown_copies() {
    let unknown = "0 invoke add [1 1 5]\n0 info add [1 1 5]\n";
    let later = done(1, "add", "[1 1 5]", "[1 1 5 5 1]");
    judge(&(unknown.to_owned() + &later + &read(5)), &[]);
    judge(&(unknown.to_owned() + &later + &read(10)), &["wrong-sum"]);
    judge(&(unknown.to_owned() + &read(5)), &[]);
    judge(&(unknown.to_owned() + &read(0)), &[]);
    // A definite failure of a later copy says nothing of the first.
    let refused = "1 invoke add [1 1 5]\n1 fail add [1 1 5]\n";
    judge(&(unknown.to_owned() + refused + &read(5)), &[]);
    judge(&(refused.to_owned() + &read(5)), &["wrong-sum"]);
}

#[test]
fn one_id_for_two_writes_is_no_history() {
    let lines = add(1, 5, 5, 1) + &add(1, 6, 11, 2);
    assert!(once::check(&history(&lines)).is_err());
}

#[test]
fn what_counts_twice_is_seen() {
    for seed in 0..200 {
        let mut random = Random::new(seed);
        let victim = 1 + random.below(20);
        let run = |twice: bool| {
            let mut random = Random::new(seed ^ 0x5eed);
            let mut sum = 0;
            let mut lines = String::new();
            for sequence in 1..=20 {
                let delta = random.between(1..=50) as i64;
                sum += delta;
                lines += &add(sequence, delta, sum, sequence as i64);
                if random.chance(30) {
                    lines += &add(sequence, delta, sum, sequence as i64);
                }
                sum += if twice && sequence == victim { delta } else { 0 };
            }
            lines + &read(sum)
        };
        judge(&run(false), &[]);
        judge(&run(true), &["wrong-sum"]);
    }
}
