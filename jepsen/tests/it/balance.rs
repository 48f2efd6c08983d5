//! Balancing in time: a TTL of 1 000 ms, which ends within 500; clients know it 2 000 ms later.

use quorate_jepsen::check::balance::{self, Terms};
use quorate_jepsen::check::registry;
use quorate_jepsen::report::{Report, Valid};

use crate::lines::{found, history};

const MS: i64 = 1_000_000;
const TERMS: Terms = Terms {
    life: registry::Terms { ttl: 1_000 * MS, grace: 0, bound: 500 * MS },
    bound: 2_000 * MS,
};

/// Instance 5 lives in session 7 and leaves at 3 s and revision 20.
const LIFE: &str = "\
    0: 0 invoke open nil\n10: 0 ok open [7] @10\n\
    20: 0 invoke register [7 5]\n30: 0 ok register [7 5] @11\n\
    2000: 0 invoke beat [7]\n2010: 0 ok beat [7]\n\
    2990: 0 invoke deregister [7 5]\n3000: 0 ok deregister [7 5] @20\n";

/// Who was picked from one time to another.
fn pick(from: i64, to: i64, seen: i64, picks: &str) -> String {
    picks_of(from, to, seen, true, picks, 0)
}

fn picks_of(from: i64, to: i64, seen: i64, connected: bool, picks: &str, empty: u32) -> String {
    let heard = format!("[{seen} {connected} [{picks}] {empty} []]");
    format!("{from}: 1 invoke pick [{seen}]\n{to}: 1 ok pick {heard}\n")
}

fn fault(at: i64, key: &str) -> String {
    format!("{at}: :nemesis info kill {{:{key} 1}}\n")
}

fn report(lines: &str) -> Report {
    balance::check(&history(lines), TERMS).unwrap()
}

fn judge(lines: &str, expected: &[&str]) {
    found(&report(lines), expected);
}

#[test]
fn who_may_be_picked() {
    let late = pick(5_000, 5_100, 20, "[-1 3]");
    judge(&(LIFE.to_owned() + &late), &[]);
    // Shortly after it has left, by one who does not know.
    let early = pick(4_900, 4_950, 19, "[-1 3] [5 1]");
    judge(&(LIFE.to_owned() + &early + &late), &[]);
}

#[test]
fn who_may_not() {
    let late = pick(5_000, 5_100, 20, "[-1 3]");
    let never = pick(4_000, 4_100, 12, "[6 1]");
    judge(&(LIFE.to_owned() + &never + &late), &["phantom-instance"]);
    // Before anybody registered it.
    let before = pick(0, 5, 1, "[5 1]");
    judge(&(before + LIFE + &late), &["phantom-instance"]);
    let strange = pick(4_000, 4_100, 12, "[\"x\" 1]");
    judge(&(LIFE.to_owned() + &strange + &late), &["phantom-instance"]);
    let knows = pick(3_100, 3_200, 20, "[5 1]");
    judge(&(LIFE.to_owned() + &knows + &late), &["known-gone"]);
    let late = pick(5_001, 5_100, 19, "[5 1]");
    judge(&(LIFE.to_owned() + &late), &["picked-after-leaving"]);
}

/// Left alone at 2 010 ms, it is critical at 3 510 at the latest, and picked until 5 510.
#[test]
fn who_has_fallen_silent() {
    let (life, _) = LIFE.split_once("2990").unwrap();
    let left = "0: 2 invoke register [7 9]\n0: 2 ok register [7 9] @1\n\
        1: 2 invoke deregister [7 9]\n1: 2 ok deregister [7 9] @2\n";
    let life = format!("{left}{life}");
    judge(&(life.clone() + &pick(5_500, 5_501, 12, "[5 1]")), &[]);
    judge(&(life.clone() + &pick(5_510, 5_520, 12, "[5 1]")), &["picked-after-session"]);
    // One that may have been deregistered is gone with its session too.
    let unknown = "2950: 3 invoke deregister [7 5]\n2960: 3 info deregister [7 5]\n";
    judge(&(life + unknown + &pick(5_510, 5_520, 12, "[5 1]")), &["picked-after-session"]);
}

#[test]
fn whose_session_is_said_to_expire_too_early() {
    // The last beat was sent at 2 s.
    let (life, _) = LIFE.split_once("2990").unwrap();
    let said = "2980: 0 invoke beat [7]\n2990: 0 fail beat [7] ! expired\n";
    assert_eq!(report(&format!("{life}{said}")).names(), ["expired-early"]);
}

#[test]
fn who_is_excused() {
    let clean = pick(20_000, 20_100, 20, "[-1 1]");
    let excused = |lines: &str| {
        let report = report(&(LIFE.to_owned() + lines + &clean));
        found(&report, &[]);
        assert_eq!(report.notes.len(), 1, "{report}");
    };
    let late = pick(6_000, 6_100, 19, "[5 1]");
    // While a fault holds, and shortly after it.
    excused(&(fault(2_000, "begin") + &late + &fault(7_000, "end")));
    excused(&(fault(2_000, "begin") + &fault(4_500, "end") + &late));
    excused(&picks_of(6_000, 6_100, 19, false, "[5 1]", 0));
    let over = fault(2_000, "begin") + &fault(3_500, "end") + &late;
    judge(&(LIFE.to_owned() + &over + &clean), &["picked-after-leaving"]);
}

#[test]
fn lists_are_not_empty_and_calls_do_not_fail() {
    let late = pick(5_000, 5_100, 20, "[-1 3]");
    let empty = picks_of(4_000, 4_100, 20, false, "", 2);
    judge(&(LIFE.to_owned() + &empty + &late), &["empty-list"]);
    let failed = pick(4_000, 4_100, 20, "").replace(" []]", " [\"no\"]]");
    judge(&(LIFE.to_owned() + &failed + &late), &["failed-call"]);
}

#[test]
fn without_picks_nothing_is_shown() {
    assert_eq!(report(LIFE).valid, Valid::Unknown);
    assert_eq!(
        report(&(LIFE.to_owned() + &pick(4_000, 4_100, 20, "[-1 1]"))).valid,
        Valid::Unknown
    );
    let wrong = "1: 1 invoke pick [1]\n2: 1 ok pick [1]\n";
    assert!(balance::check(&history(&(LIFE.to_owned() + wrong)), TERMS).is_err());
}
