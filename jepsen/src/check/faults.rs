//! When faults were in the way, for promises that hold only without.

use super::coverage::{get, nemesis};
use super::leases::Time;
use crate::history::History;

/// When the nemesis did something, and whether a fault held from then on.
pub struct Faults(Vec<(usize, Time, bool)>);

impl Faults {
    pub fn new(history: &History) -> Faults {
        let mut hold = 0;
        let times = nemesis(history).map(|(_, op)| {
            hold += i32::from(get(op, "begin").is_some()) - i32::from(get(op, "end").is_some());
            (op.index, op.time, hold > 0)
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
