//! Whether the cluster came through: no process ended by itself, panicked or believed a damaged log, all answered
//! again after the faults, and all hold the same.
//!
//! Read from what the nemesis wrote into the history, and from the nodes' logs.

use super::coverage::{get, nemesis};
use crate::edn::Value;
use crate::history::{History, Kind};
use crate::report::{Anomaly, Report};

/// Lines of nodes' logs that tell of a defect.
pub type Lines = Vec<String>;

pub fn check(history: &History, defects: &[(String, Lines)]) -> Report {
    let succeeded = history.ops.iter().filter(|op| op.kind == Kind::Ok).count();
    let mut report = Report::new("healthy", succeeded);
    let (mut recovered, mut compared) = (false, false);
    let mut found = |name, what: String, details| {
        report.anomalies.push(Anomaly { name, what, details });
    };
    for (_, op) in nemesis(history) {
        match op.f.as_str() {
            "exited" => {
                found("node-exited", format!("a process ended by itself: {}", op.value), vec![]);
            }
            "believed" => {
                found("damage-believed", format!("a node goes on: {}", op.value), vec![]);
            }
            "unrecovered" => {
                recovered = true;
                found("not-recovered", format!("after the faults: {}", op.value), vec![]);
            }
            "recovered" => recovered = true,
            "digests" => {
                compared = true;
                if get(op, "equal") != Some(&Value::Bool(true)) {
                    found("replicas-differ", format!("at rest: {}", op.value), vec![]);
                }
            }
            _ => {}
        }
    }
    for (log, lines) in defects {
        found("node-panicked", format!("{log} tells of a panic"), lines.clone());
    }
    if !recovered {
        report.unknown.push("it was not looked whether the nodes recovered".to_owned());
    }
    if !compared {
        report.unknown.push("the replicas were not compared".to_owned());
    }
    report.settle();
    report
}
