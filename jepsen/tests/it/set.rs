//! The set: nothing is lost, nothing comes from nowhere.

use quorate_jepsen::check::set;
use quorate_jepsen::random::Random;
use quorate_jepsen::report::Valid;

use crate::lines::{done, found, history};

fn judge(lines: &str, expected: &[&str]) {
    found(&set::check(&history(lines)).unwrap(), expected);
}

fn add(element: usize) -> String {
    done(0, "add", &format!("[0 {element}]"), &format!("[0 {element}]"))
}

fn read(elements: &str) -> String {
    done(9, "read", "[0 nil]", &format!("[0 [{elements}]]"))
}

#[test]
fn what_a_set_does() {
    judge(&(add(1) + &add(2) + &read("2 1")), &[]);
    // Of unknown outcome: not there, there later, and then for ever.
    let unknown = "1 invoke add [0 5]\n1 info add [0 5]\n";
    judge(&(unknown.to_owned() + &read("") + &read("5") + &read("5")), &[]);
    // Under way while it is read.
    let open = |elements| format!("1 invoke add [0 5]\n{}1 ok add [0 5]\n", read(elements));
    judge(&(open("") + &read("5")), &[]);
    judge(&(open("5") + &read("5")), &[]);
}

#[test]
fn what_a_set_does_not() {
    judge(&(add(1) + &add(2) + &read("2")), &["lost-element"]);
    judge(&(read("7") + &add(7) + &read("7")), &["phantom-element"]);
    judge(&(add(1) + &read("1 1")), &["duplicate-element"]);
    judge(
        &("1 invoke add [0 5]\n1 fail add [0 5]\n".to_owned() + &read("5")),
        &["failed-but-there"],
    );
    // Seen once, then lost, though its outcome is unknown.
    let unknown = "1 invoke add [0 5]\n1 info add [0 5]\n";
    judge(&(unknown.to_owned() + &read("5") + &read("")), &["lost-element"]);
}

#[test]
fn what_is_not_looked_for_is_not_known() {
    assert_eq!(set::check(&history(&add(1))).unwrap().valid, Valid::Unknown);
    assert!(set::check(&history(&(add(1) + &add(1)))).is_err());
}

#[test]
fn one_lost_element_is_seen() {
    for seed in 0..100 {
        let mut random = Random::new(seed);
        let elements: Vec<usize> = (0..40).collect();
        let adds: String = elements.iter().map(|&element| add(element)).collect();
        let all = |without: Option<usize>| {
            let left = elements.iter().filter(|element| Some(**element) != without);
            left.map(usize::to_string).collect::<Vec<_>>().join(" ")
        };
        judge(&(adds.clone() + &read(&all(None))), &[]);
        let lost = random.below(40);
        judge(&(adds + &read(&all(Some(lost)))), &["lost-element"]);
    }
}
