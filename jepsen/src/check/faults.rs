//! When faults were in the way, for promises that hold only without.
//!
//! A fault is in the way from `{:beginning n}` on, for some do their harm before `{:begin n, ..}` tells what was
//! done, and until `{:end n, ..}` or `{:skipped n, ..}`. Histories of before `:beginning` was told begin with the latter.

use std::collections::BTreeSet;

use super::coverage::{get, nemesis};
use super::leases::Time;
use crate::history::History;

/// When the nemesis did something, and whether a fault held from then on.
pub struct Faults(Vec<(usize, Time, bool)>);

impl Faults {
    pub fn new(history: &History) -> Faults {
        let mut hold = BTreeSet::new();
        let times = nemesis(history).map(|(_, op)| {
            hold.extend(["beginning", "begin"].into_iter().filter_map(|key| get(op, key)));
            for over in ["end", "skipped"].into_iter().filter_map(|key| get(op, key)) {
                hold.remove(over);
            }
            (op.index, op.time, !hold.is_empty())
        });
        Faults(times.collect())
    }

    /// Since when nothing was in the way at this op; None: something is.
    pub fn last_before(&self, index: usize) -> Option<Time> {
        let before = self.0.partition_point(|(at, ..)| *at < index);
        match before.checked_sub(1).map(|at| self.0[at]) {
            None => Some(0),
            Some((_, time, holds)) => (!holds).then_some(time),
        }
    }
}
