//! Locks in time: a TTL of 1 000 ms.

use quorate_jepsen::check::lock;
use quorate_jepsen::random::Random;

use crate::lines::{found, history};

fn judge(lines: &str, expected: &[&str]) {
    found(&lock::check(&history(lines), 1_000_000_000).unwrap(), expected);
}

/// Takes 10 ms and ends at the time.
fn at(time: usize, process: usize, f: &str, asked: &str, heard: &str) -> String {
    let begin = time - 10;
    format!("{begin}: {process} invoke {f} {asked}\n{time}: {process} ok {f} {heard}\n")
}

fn open(time: usize, session: usize) -> String {
    at(time, session, "open", "nil", &format!("[{session}]"))
}

fn acquire(time: usize, session: usize, token: usize) -> String {
    at(time, session, "acquire", &format!("[{session} 0]"), &format!("[{session} 0 {token}]"))
}

fn release(time: usize, session: usize) -> String {
    let value = format!("[{session} 0]");
    at(time, session, "release", &value, &value)
}

fn guarded(time: usize, session: usize, token: usize, number: usize) -> String {
    let value = format!("[{session} 0 {token}");
    at(time, session, "guarded", &format!("{value}]"), &format!("{value} {number}]"))
}

#[test]
fn one_after_the_other() {
    let sessions = open(100, 1) + &open(110, 2);
    judge(&(sessions.clone() + &acquire(200, 1, 5) + &release(300, 1) + &acquire(400, 2, 6)), &[]);
    // The session may be gone at 1 090: it was opened at 90.
    judge(&(sessions.clone() + &acquire(200, 1, 5) + &acquire(1_095, 2, 6)), &[]);
    // Asked for again by who has it.
    judge(&(sessions.clone() + &acquire(200, 1, 5) + &acquire(300, 1, 5)), &[]);
    // A release of unknown outcome.
    let unknown = "250: 1 invoke release [1 0]\n260: 1 info release [1 0]\n";
    judge(&(sessions + &acquire(200, 1, 5) + unknown + &acquire(400, 2, 6)), &[]);
}

#[test]
fn two_holders() {
    let sessions = open(100, 1) + &open(110, 2);
    judge(&(sessions.clone() + &acquire(200, 1, 5) + &acquire(400, 2, 6)), &["two-holders"]);
    let beat = at(900, 1, "beat", "[1]", "[1]");
    let late = sessions.clone() + &acquire(200, 1, 5) + &beat + &acquire(1_500, 2, 6);
    judge(&late, &["two-holders"]);
    // It released another time.
    let again = acquire(200, 1, 5) + &release(300, 1) + &acquire(400, 1, 6) + &acquire(500, 2, 7);
    judge(&(sessions + &again), &["two-holders"]);
}

#[test]
fn tokens() {
    let sessions = open(100, 1) + &open(110, 2);
    let first = sessions + &acquire(200, 1, 5) + &release(300, 1);
    judge(&(first.clone() + &acquire(400, 2, 5)), &["shared-token"]);
    judge(&(first.clone() + &acquire(400, 2, 4)), &["token-goes-back"]);
    judge(&(first + &acquire(400, 2, 6)), &[]);
}

#[test]
fn an_expiry_that_comes_too_early() {
    let said = |time: usize, f: &str, value: &str| {
        format!("{}: 1 invoke {f} {value}\n{time}: 1 fail {f} {value} ! expired\n", time - 10)
    };
    // It was opened at 90.
    judge(&(open(100, 1) + &said(1_089, "beat", "[1]")), &["expired-early"]);
    judge(&(open(100, 1) + &said(1_089, "acquire", "[1 0]")), &["expired-early"]);
    judge(&(open(100, 1) + &said(1_090, "acquire", "[1 0]")), &[]);
}

#[test]
fn the_store() {
    let sessions = open(100, 1) + &open(110, 2);
    let fenced = guarded(300, 1, 5, 1) + &guarded(1_300, 2, 6, 2);
    judge(&(sessions.clone() + &fenced), &[]);
    let not_fenced = fenced + &guarded(1_400, 1, 5, 3);
    judge(&(sessions.clone() + &not_fenced), &["not-fenced"]);
    // Two writes with one number: one of them is lost.
    judge(&(sessions + &guarded(300, 1, 5, 1) + &guarded(400, 1, 5, 1)), &["not-fenced"]);
}

/// Holders in turn, of which one is given the lock too early or with an old token.
#[test]
fn one_wrong_grant_is_seen() {
    for seed in 0..200 {
        let run = |victim: Option<usize>, early: bool| {
            let mut random = Random::new(seed);
            let (mut time, mut token) = (100, 10);
            let mut lines = String::new();
            for session in 1..=20 {
                lines += &open(time, session);
                token += 1 + random.below(3);
                let wrong = victim == Some(session);
                let given = if wrong && !early { 9 } else { token };
                lines += &acquire(time + 20, session, given);
                // The holder before the victim does not let go.
                let keeps = early && victim == Some(session + 1);
                if !keeps {
                    lines += &release(time + 100 + random.below(50), session);
                }
                time += 200;
            }
            lines
        };
        judge(&run(None, false), &[]);
        let victim = Some(2 + Random::new(seed ^ 0xbad).below(18));
        judge(&run(victim, true), &["two-holders"]);
        judge(&run(victim, false), &["token-goes-back"]);
    }
}
