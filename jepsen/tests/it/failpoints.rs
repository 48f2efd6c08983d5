//! Failpoints: the nemesis knows those of the binary.

use std::collections::BTreeSet;

use quorate_jepsen::nemesis::failpoint::POINTS;

#[test]
fn the_points_are_those_of_the_binary() {
    let source = include_str!("../../../src/failpoint.rs");
    let (_, list) = source.split_once("    points! {\n").unwrap();
    let (list, _) = list.split_once("\n    }\n").unwrap();
    let names =
        list.lines().filter_map(|line| line.trim().strip_suffix("\",")?.split_once(" = \""));
    let names: BTreeSet<&str> = names.map(|(_, name)| name).collect();
    assert_eq!(POINTS.iter().map(|point| point.name).collect::<BTreeSet<_>>(), names);
    assert!(names.len() >= 10, "{names:?}");
}
