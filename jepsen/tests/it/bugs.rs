//! Planted bugs: that their patches can be read, fit the sources as they are, and are told of.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use quorate_jepsen::bugs::{self, Bug, Command, Error, Finder};

/// How many kinds of bugs docs/TESTING.md lists.
const KINDS: u32 = 18;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn all() -> Vec<Bug> {
    bugs::read_all(&root().join("jepsen/bugs")).unwrap()
}

#[test]
fn every_kind_of_bug_is_planted() {
    let bugs = all();
    let numbers: BTreeSet<u32> = bugs.iter().map(|bug| bug.number).collect();
    assert_eq!(numbers, (1..=KINDS).collect());
    for bug in bugs {
        assert!(bug.name.starts_with(&format!("{:02}-", bug.number)), "{}", bug.name);
    }
}

/// The sources change: a patch that fits no more is made anew.
#[test]
fn every_patch_fits_the_sources() {
    for bug in all() {
        for file in &bug.files {
            assert!(file.path.starts_with("src/"), "{} is no bug of the product", bug.name);
            let text = fs::read_to_string(root().join(&file.path)).unwrap();
            let planted = file.apply(&text).unwrap_or_else(|error| panic!("{}: {error}", bug.name));
            assert_ne!(planted, text, "{}", bug.name);
        }
    }
}

#[test]
fn every_bug_is_told_of() {
    let text = fs::read_to_string(root().join("docs/TESTING.md")).unwrap();
    for bug in all() {
        assert!(
            text.contains(&format!("`{}`", bug.name)),
            "{} is not in docs/TESTING.md",
            bug.name
        );
    }
}

const HEAD: &str = "Bug: 3 it forgets\nFound-by: A=b sim --seeds 0..4\nFound-by: test --lib x::y\n\
    Expect: lost\n\nWhy.\n\n";
const DIFF: &str = "--- a/src/x.rs\n+++ b/src/x.rs\n@@ -1,3 +1,2 @@\n one\n-two\n-three\n+2\n";

#[test]
fn a_patch_is_read() {
    let bug = Bug::parse("03-x", &format!("{HEAD}{DIFF}")).unwrap();
    assert_eq!((bug.number, bug.title.as_str()), (3, "it forgets"));
    let finders: Vec<String> = bug.finders.iter().map(Finder::to_string).collect();
    assert_eq!(finders, ["A=b sim --seeds 0..4", "test --lib x::y"]);
    assert_eq!(bug.finders[0].command, Command::Sim { first: 0, behind: 4 });
    assert_eq!(bug.explains("first\nit lost all\n"), Some("it lost all"));
    assert_eq!(bug.explains("something else"), None);

    let no_finder = HEAD.replace("Found-by: A=b sim --seeds 0..4\nFound-by: test --lib x::y\n", "");
    for (head, diff) in [
        (HEAD.replace("Bug: 3", "Bug: x"), DIFF),
        (HEAD.replace("Expect: lost\n", ""), DIFF),
        (HEAD.replace("0..4", "4..4"), DIFF),
        (HEAD.replace("sim --seeds", "guess"), DIFF),
        (HEAD.replace("Expect", "Hope"), DIFF),
        (no_finder, DIFF),
        (HEAD.to_owned(), ""),
        (HEAD.to_owned(), "--- a/src/x.rs\n+++ b/src/x.rs\nwhat?\n"),
        (HEAD.to_owned(), "--- a/src/x.rs\n+++ b/src/x.rs\n@@ -1 +1 @@\nwhat?\n"),
    ] {
        let read = Bug::parse("03-x", &format!("{head}{diff}"));
        assert!(matches!(read, Err(Error::Malformed { .. })), "{head}{diff}: {read:?}");
    }
}

/// As git writes it.
#[test]
fn a_patch_of_two_files_is_read() {
    let between = "diff --git a/src/y.rs b/src/y.rs\nindex 0123456..789abcd 100644\n";
    let second = DIFF.replace("src/x.rs", "src/y.rs");
    let bug = Bug::parse("03-x", &format!("{HEAD}{DIFF}{between}{second}")).unwrap();
    let paths: Vec<&str> = bug.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["src/x.rs", "src/y.rs"]);
    assert_eq!(bug.files[0].apply("one\ntwo\nthree\n").unwrap(), "one\n2\n");
}

/// Numbers of lines are no matter, but what is to change must stand at one place.
#[test]
fn a_patch_finds_its_place() {
    let bug = Bug::parse("03-x", &format!("{HEAD}{DIFF}")).unwrap();
    let apply = |text: &str| bug.files[0].apply(text);
    assert_eq!(apply("zero\none\ntwo\nthree\nfour\n").unwrap(), "zero\none\n2\nfour\n");
    for (text, places) in [("one\ntwo\n", 0), ("one\ntwo\nthree\none\ntwo\nthree\n", 2)] {
        let refused = apply(text);
        assert!(matches!(&refused, Err(Error::Place { count, .. }) if *count == places), "{text}");
    }
    // The end of another line is not the line.
    assert!(apply("someone\ntwo\nthree\n").is_err());
}
