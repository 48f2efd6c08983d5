//! The bank: conserved, never overdrawn.

use quorate_jepsen::check::bank;
use quorate_jepsen::report::Valid;

use crate::lines::{done, found, history};

fn judge(lines: &str, expected: &[&str]) {
    found(&bank::check(&history(lines), 2, 100).unwrap(), expected);
}

#[test]
fn what_a_bank_does() {
    let transfer = done(0, "transfer", "[0 1 30]", "[0 1 30]");
    judge(&(transfer.clone() + &done(1, "read", "nil", "{0 20 1 80}")), &[]);
    judge(&(transfer + &done(1, "read", "nil", "{0 100 1 0}")), &[]);
}

#[test]
fn what_it_does_not() {
    judge(&done(1, "read", "nil", "{0 20 1 81}"), &["not-conserved"]);
    judge(&done(1, "read", "nil", "{0 20 1 50}"), &["not-conserved"]);
    judge(&done(1, "read", "nil", "{0 -1 1 101}"), &["overdrawn"]);
    judge(&done(1, "read", "nil", "{0 100}"), &["missing-account"]);
}

#[test]
fn without_reads_nothing_is_shown() {
    let transfer = history(&done(0, "transfer", "[0 1 30]", "[0 1 30]"));
    assert_eq!(bank::check(&transfer, 2, 100).unwrap().valid, Valid::Unknown);
    assert!(bank::check(&history(&done(1, "read", "nil", "[1]")), 2, 100).is_err());
}
