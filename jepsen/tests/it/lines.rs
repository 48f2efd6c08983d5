//! Histories as lines, for tests.

use quorate_jepsen::history::History;
use quorate_jepsen::report::{Report, Valid};

/// A history of lines such as `0 ok write [1 2] @7` (`@7` what it wrote, `@7r` what it saw). A line may begin
/// with its time in milliseconds: `1500: 0 ok beat [1]`; and end with an error: `! expired`.
pub fn history(lines: &str) -> History {
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    let ops = lines.map(|line| {
        let (time, line) = match line.split_once(": ") {
            Some((time, line)) => (time.parse::<i64>().unwrap() * 1_000_000, line),
            None => (0, line),
        };
        let (line, error) = match line.split_once(" ! ") {
            Some((line, error)) => (line, format!(", :error {error:?}")),
            None => (line, String::new()),
        };
        let (line, at) = match line.rsplit_once(" @") {
            Some((line, at)) => (line, Some(at)),
            None => (line, None),
        };
        let at = at.map_or(String::new(), |at| {
            format!(", :revision {}, :wrote {}", at.trim_end_matches('r'), !at.ends_with('r'))
        });
        let mut words = line.splitn(4, ' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("{line:?} lacks a word"));
        let (process, kind, f, value) = (word(), word(), word(), word());
        let op =
            format!("{{:time {time}, :type {kind}, :process {process}, :f :{f}, :value {value}");
        format!("{op}{error}{at}}}\n").replace(":type ", ":type :")
    });
    History::read(&ops.collect::<String>()).unwrap()
}

/// What a report found, and no more; without anything it is a pass.
pub fn found(report: &Report, expected: &[&str]) {
    assert_eq!(report.names(), expected, "{report}");
    assert_eq!(
        report.valid,
        if expected.is_empty() { Valid::True } else { Valid::False },
        "{report}"
    );
}

/// An operation that takes no time.
pub fn done(process: usize, f: &str, asked: &str, heard: &str) -> String {
    format!("{process} invoke {f} {asked}\n{process} ok {f} {heard}\n")
}
