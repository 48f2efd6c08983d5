//! The registry in time: a TTL of 1 000 ms, a grace of 500, a bound of 500.

use quorate_jepsen::check::registry::{self, Terms};
use quorate_jepsen::report::{Report, Valid};

use crate::lines::history;

const MS: i64 = 1_000_000;
const TERMS: Terms = Terms { ttl: 1_000 * MS, grace: 500 * MS, bound: 500 * MS };

fn check(lines: &str) -> Report {
    registry::check(&history(lines), TERMS).unwrap()
}

fn judge(lines: &str, expected: &[&str]) {
    let report = check(lines);
    assert_eq!(report.names(), expected, "{report}");
}

/// Takes 10 ms and ends at the time.
fn at(time: i64, process: usize, f: &str, asked: &str, heard: &str) -> String {
    let begin = time - 10;
    format!("{begin}: {process} invoke {f} {asked}\n{time}: {process} ok {f} {heard}\n")
}

/// Session 7 with instance 1, registered at 200, kept alive until 500.
fn life() -> String {
    at(100, 0, "open", "nil", "[7]")
        + &at(200, 0, "register", "[7 1]", "[7 1]")
        + &at(500, 0, "beat", "[7]", "[7]")
}

fn list(time: i64, shown: &str) -> String {
    at(time, 9, "list", "nil", &format!("[{shown}]"))
}

#[test]
fn as_long_as_the_session_lives() {
    judge(&(life() + &list(1_400, "[1 true]")), &[]);
    judge(&(life() + &list(1_400, "")), &["lost-instance"]);
    judge(&(life() + &list(1_400, "[1 false]")), &["expired-early"]);
    // The beat was sent at 490: from 1 490 on the session may be gone.
    judge(&(life() + &list(1_489, "")), &["lost-instance"]);
    judge(&(life() + &list(1_495, "")), &[]);
    judge(&(life() + &list(1_495, "[1 false]")), &[]);
}

#[test]
fn what_was_not_acknowledged_need_not_be_there() {
    let open = at(100, 0, "open", "nil", "[7]");
    let register = "150: 0 invoke register [7 1]\n";
    judge(&(open.clone() + register + &list(300, "") + &list(400, "[1 true]")), &[]);
    let registered = "350: 0 ok register [7 1]\n";
    judge(&(open + register + &list(300, "") + registered + &list(400, "")), &["lost-instance"]);
}

#[test]
fn after_a_deregistration() {
    let leave = at(600, 0, "deregister", "[7 1]", "[7 1]");
    judge(&(life() + &leave + &list(700, "")), &[]);
    judge(&(life() + &leave + &list(700, "[1 true]")), &["resurrected"]);
    judge(&(life() + &leave + &list(700, "[1 false]")), &["resurrected"]);
    // While it is under way both are right, and so they are when its outcome is unknown.
    let open = "600: 0 invoke deregister [7 1]\n";
    judge(&(life() + open + &list(700, "") + &list(800, "[1 true]")), &[]);
    let unknown = format!("{open}650: 0 info deregister [7 1]\n");
    judge(&(life() + &unknown + &list(700, "") + &list(800, "[1 true]")), &[]);
}

#[test]
fn after_a_node_said_that_it_has_expired() {
    let expired = "1_600: 0 invoke beat [7]\n1_610: 0 fail beat [7] ! expired\n".replace('_', "");
    judge(&(life() + &expired + &list(1_700, "[1 false]")), &[]);
    // It may have been proposed only; after the bound it is decided.
    judge(&(life() + &expired + &list(1_700, "[1 true]")), &[]);
    judge(&(life() + &expired + &list(2_200, "[1 true]")), &["outlives-session"]);
    // Unless another leader came in between, with which the session goes on.
    let fault = "1700: :nemesis info kill {}\n";
    judge(&(life() + &expired + fault + &list(2_200, "[1 true]")), &[]);
    judge(&(life() + &expired + fault + &list(3_300, "[1 true]")), &["outlives-session"]);
}

#[test]
fn when_it_is_left_alone() {
    // The last beat ended at 500: gone after 2 500.
    judge(&(life() + &list(2_600, "[1 false]")), &["lingers"]);
    judge(&(life() + &list(2_400, "[1 false]")), &[]);
    assert_eq!(check(&(life() + &list(2_600, ""))).valid, Valid::True);
    assert_eq!(check(&(life() + &list(2_400, ""))).valid, Valid::Unknown);
    // A fault may restart the TTL, and an unanswered beat may arrive late.
    let fault = "2000: :nemesis info kill {}\n";
    judge(&(life() + fault + &list(3_900, "[1 false]")), &[]);
    judge(&(life() + fault + &list(4_100, "[1 false]")), &["lingers"]);
    // Of what comes afterwards nothing was in the way.
    judge(&(life() + &list(2_600, "[1 false]") + "2700: :nemesis info kill {}\n"), &["lingers"]);
    let holds = "2000: :nemesis info pause {:begin 1}\n".to_owned();
    judge(&(life() + &holds + &list(9_000, "[1 false]")), &[]);
    let ended = holds + "4000: :nemesis info pause {:end 1}\n";
    judge(&(life() + &ended + &list(5_900, "[1 false]")), &[]);
    judge(&(life() + &ended + &list(6_100, "[1 false]")), &["lingers"]);
    let late = "1400: 0 invoke beat [7]\n1450: 0 info beat [7]\n";
    judge(&(life() + late + &list(2_600, "[1 true]")), &[]);
}

#[test]
fn what_nobody_registered() {
    judge(&(life() + &list(600, "[1 true] [2 true]")), &["phantom-instance"]);
    // Not yet, or certainly not.
    let later = at(700, 1, "register", "[7 2]", "[7 2]");
    judge(&(life() + &list(600, "[1 true] [2 true]") + &later), &["phantom-instance"]);
    let failed = "550: 1 invoke register [7 2]\n560: 1 fail register [7 2]\n";
    judge(&(life() + failed + &list(600, "[1 true] [2 true]")), &["phantom-instance"]);
    // It may be on its way.
    let asked = "580: 1 invoke register [7 2]\n";
    judge(&(life() + asked + &list(600, "[1 true] [2 true]")), &[]);
}

/// One without an answer may be there, and goes with its session.
#[test]
fn what_was_not_acknowledged_goes_too() {
    let unknown = at(100, 0, "open", "nil", "[7]")
        + "150: 0 invoke register [7 1]\n160: 0 info register [7 1]\n";
    judge(&(unknown.clone() + &list(2_100, "[1 false]")), &[]);
    judge(&(unknown.clone() + &list(2_200, "[1 false]")), &["lingers"]);
    assert_eq!(check(&(unknown + &list(2_200, ""))).valid, Valid::True);
}

#[test]
fn after_a_keep_alive_of_unknown_outcome() {
    let late = life() + "1400: 0 invoke beat [7]\n1450: 0 info beat [7]\n";
    // It may have counted until nobody waited for it any more: gone after 3 450.
    judge(&(late.clone() + &list(3_400, "[1 false]")), &[]);
    judge(&(late + &list(3_500, "[1 false]")), &["lingers"]);
    // A fault may have held it up.
    let held = "1300: :nemesis info partition {:begin 1}\n";
    let late = life() + held + "1400: 0 invoke beat [7]\n1450: 0 info beat [7]\n";
    let ended = late + "3000: :nemesis info partition {:end 1}\n";
    judge(&(ended.clone() + &list(4_900, "[1 false]")), &[]);
    judge(&(ended + &list(5_100, "[1 false]")), &["lingers"]);
    let open = life() + "1400: 0 invoke beat [7]\n";
    judge(&(open + &list(9_000, "[1 false]")), &[]);
}

#[test]
fn an_expiry_that_comes_too_early() {
    // The last beat was sent at 490.
    let said = |time, f: &str, value: &str| {
        format!("{}: 0 invoke {f} {value}\n{time}: 0 fail {f} {value} ! expired\n", time - 10)
    };
    let end = at(9_000, 9, "list", "nil", "[]");
    judge(&(life() + &said(1_489, "beat", "[7]") + &end), &["expired-early"]);
    judge(&(life() + &said(1_490, "beat", "[7]") + &end), &[]);
    judge(&(life() + &said(1_489, "register", "[7 2]") + &end), &["expired-early"]);
    // A leader on its way out, whose decision comes to nothing, and the next one.
    let next = at(1_600, 0, "beat", "[7]", "[7]");
    judge(&(life() + &said(1_500, "beat", "[7]") + &next + &end), &[]);
    // Under way together: which of them came first is not known.
    let beat = "1480: 1 invoke beat [7]\n".to_owned() + &said(1_500, "beat", "[7]");
    judge(&(life() + &beat + "1510: 1 ok beat [7]\n" + &end), &[]);
}

/// Some faults do their harm before it is told what was done, and what was skipped may have done some.
#[test]
fn a_fault_is_in_the_way_from_its_beginning_on() {
    let begins = life() + "2000: :nemesis info transfer {:beginning 1}\n";
    judge(&(begins.clone() + &list(9_000, "[1 false]")), &[]);
    let begun = begins.clone() + "6000: :nemesis info transfer {:begin 1}\n";
    judge(&(begun.clone() + &list(9_000, "[1 false]")), &[]);
    let ended = begun + "7000: :nemesis info transfer {:end 1}\n";
    judge(&(ended.clone() + &list(8_900, "[1 false]")), &[]);
    judge(&(ended + &list(9_100, "[1 false]")), &["lingers"]);
    let skipped = begins + "6000: :nemesis info transfer {:skipped 1 :what \"it\"}\n";
    judge(&(skipped.clone() + &list(7_900, "[1 false]")), &[]);
    judge(&(skipped + &list(8_100, "[1 false]")), &["lingers"]);
}
