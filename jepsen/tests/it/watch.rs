//! Watches: the six guarantees, broken one by one.

use quorate_jepsen::check::watch;
use quorate_jepsen::random::Random;
use quorate_jepsen::report::Valid;

use crate::lines::{found, history};

fn judge(lines: &str, expected: &[&str]) {
    found(&watch::check(&history(lines)).unwrap(), expected);
}

fn write(pairs: &str, revision: usize) -> String {
    format!("0 invoke write [{pairs}]\n0 ok write [{pairs}] @{revision}\n")
}

fn watched(after: usize, messages: &str) -> String {
    format!("9 invoke watch [{after} nil]\n9 ok watch [{after} [{messages}]]\n")
}

/// Revisions 1 to 4; revision 3 writes two keys, revision 4 deletes one.
fn writes() -> String {
    write("[:a 1]", 1) + &write("[:b 2]", 2) + &write("[:a 3] [:c 4]", 3) + &write("[:b nil]", 4)
}

fn sees(after: usize, messages: &str, expected: &[&str]) {
    judge(&(writes() + &watched(after, messages)), expected);
}

const THREE: &str = "[:changes 3 [[:a 3] [:c 4]]]";
const FOUR: &str = "[:changes 4 [[:b nil]]]";

#[test]
fn what_a_watch_shows() {
    let snapshot = "[:snapshot 2 [[:a 1] [:b 2]]]";
    sees(0, &format!("{snapshot} {THREE} {FOUR} [:bookmark 4] [:bookmark 9]"), &[]);
    sees(2, &format!("{THREE} {FOUR}"), &[]);
    sees(1, &format!("{snapshot} {THREE}"), &[]);
    sees(3, &format!("[:bookmark 3] {FOUR}"), &[]);
}

#[test]
fn order_and_uniqueness() {
    sees(2, &format!("{FOUR} {THREE}"), &["gap", "not-in-order"]);
    sees(2, &format!("{THREE} {THREE}"), &["not-in-order"]);
    sees(3, THREE, &["not-in-order"]);
    sees(3, "[:snapshot 2 [[:a 1] [:b 2]]]", &["not-in-order"]);
    sees(2, &format!("{THREE} {FOUR} [:bookmark 3]"), &["not-in-order"]);
}

#[test]
fn gaps() {
    sees(2, FOUR, &["gap"]);
    sees(1, THREE, &["gap"]);
    // A bookmark promises that all before it was shown.
    sees(2, &format!("{THREE} [:bookmark 4]"), &["gap"]);
}

#[test]
fn halves_and_phantoms() {
    sees(2, "[:changes 3 [[:a 3]]]", &["changes-differ"]);
    sees(2, "[:changes 3 [[:a 3] [:c 5]]]", &["changes-differ"]);
    sees(4, "[:changes 5 [[:a 9]]]", &["phantom-change"]);
}

#[test]
fn snapshots() {
    sees(0, &format!("{THREE} {FOUR}"), &["no-snapshot", "gap"]);
    sees(0, "[:snapshot 2 [[:a 1]]]", &["wrong-snapshot"]);
    sees(0, "[:snapshot 4 [[:a 3] [:b 2] [:c 4]]]", &["wrong-snapshot"]);
    sees(0, "[:snapshot 2 [[:a 3] [:b 2]]]", &["wrong-snapshot"]);
}

#[test]
fn what_is_unknown_may_be_seen() {
    let unknown = "1 invoke write [[:a 7]]\n1 info write [[:a 7]]\n".to_owned();
    let changes = watched(4, "[:changes 5 [[:a 7]]]");
    judge(&(writes() + &unknown + &changes), &[]);
    let snapshot = watched(0, "[:snapshot 6 [[:a 7] [:c 4]]] [:changes 7 [[:a 8]]]");
    judge(&(writes() + &unknown + &write("[:a 8]", 7) + &snapshot), &[]);
    // Whoever else watches must see it too.
    let other = "8 invoke watch [4 nil]\n8 ok watch [4 [[:changes 6 [[:b 8]]]]]\n";
    let both = writes() + &unknown + &write("[:b 8]", 6) + &changes + other;
    judge(&both, &["gap"]);
    let failed = "1 invoke write [[:a 7]]\n1 fail write [[:a 7]]\n".to_owned();
    judge(&(writes() + &failed + &changes), &["phantom-change"]);
}

#[test]
fn who_saw_nothing_shows_nothing() {
    let report = watch::check(&history(&(writes() + &watched(4, "[:bookmark 4]")))).unwrap();
    assert_eq!(report.valid, Valid::Unknown);
}

/// At rest a watch waits until it has told everything that was acknowledged before.
#[test]
fn who_waits_and_hears_too_little() {
    let waits = |after: usize, messages: &str| {
        format!("9 invoke watch [{after} 4]\n9 ok watch [{after} [{messages}]]\n")
    };
    let seen = writes() + &watched(2, &format!("{THREE} {FOUR}"));
    judge(&(seen.clone() + &waits(2, &format!("{THREE} {FOUR}"))), &[]);
    judge(&(seen.clone() + &waits(2, THREE)), &["silent"]);
    judge(&(seen.clone() + &waits(2, "")), &["silent"]);
    judge(&(seen.clone() + &waits(0, "")), &["silent"]);
    judge(&(seen.clone() + &waits(0, "[:snapshot 4 [[:a 3] [:c 4]]]")), &[]);
    judge(&(seen.clone() + &waits(4, "")), &[]);
    // One that does not wait, or that began before the last acknowledgement.
    judge(&(seen.clone() + &watched(2, "")), &[]);
    let before = "9 invoke watch [4 4]\n".to_owned() + &write("[:a 5]", 5);
    judge(&(seen.clone() + &before + "9 ok watch [4 []]\n"), &[]);
    let unknown = "1 invoke write [[:a 7]]\n1 info write [[:a 7]]\n";
    judge(&(seen + unknown + &waits(4, "")), &[]);
}

/// Long streams, of which one message is lost, repeated or moved.
#[test]
fn one_wrong_message_is_seen() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let count = 20;
        let keys: Vec<usize> = (0..count).map(|_| random.below(4)).collect();
        let writes: String =
            (0..count).map(|at| write(&format!("[{} {at}]", keys[at]), at + 1)).collect();
        let messages: Vec<String> =
            (0..count).map(|at| format!("[:changes {} [[{} {at}]]]", at + 1, keys[at])).collect();
        let begin = "[:snapshot 0 []]";
        let judge = |messages: &[String]| {
            let watched = watched(0, &format!("{begin} {}", messages.join(" ")));
            watch::check(&history(&(writes.clone() + &watched))).unwrap().names()
        };
        assert!(judge(&messages).is_empty());
        let at = random.below(count - 1);
        let mut lost = messages.clone();
        lost.remove(at);
        assert_eq!(judge(&lost), ["gap"]);
        let mut repeated = messages.clone();
        repeated.insert(at + 1, messages[at].clone());
        assert_eq!(judge(&repeated), ["not-in-order"]);
        let mut moved = messages;
        moved.swap(at, at + 1);
        assert_eq!(judge(&moved), ["gap", "not-in-order"]);
    }
}
