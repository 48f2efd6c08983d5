//! The schedule of a run's faults, drawn from its seed before it begins.

use std::fmt;
use std::time::Duration;

use super::{Fault, Kind};
use crate::random::Random;

/// Faults that hold together for a while, after a time of rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    pub rest: Duration,
    pub lasts: Duration,
    /// One begins after the other, and the last to come is the first to go.
    pub faults: Vec<Fault>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
}

impl Plan {
    /// Faults for a time. Every kind comes once before any comes again; now and then two hold at once.
    pub fn draw(kinds: &[Kind], nodes: usize, time: Duration, random: &mut Random) -> Plan {
        let mut steps = Vec::new();
        let mut planned = Duration::ZERO;
        let mut round = Vec::new();
        while !kinds.is_empty() {
            let mut faults: Vec<Fault> = Vec::new();
            for _ in 0..if random.chance(30) { 2 } else { 1 } {
                if round.is_empty() {
                    round = kinds.to_vec();
                    random.shuffle(&mut round);
                }
                // Two of a kind would undo each other, and nothing is late on a link that passes nothing.
                let goes = |kind: Kind| {
                    let clash = |other: Kind| {
                        let both_on_links = kind.is_on_links() && other.is_on_links();
                        kind.is_alone() || other.is_alone() || kind == other || both_on_links
                    };
                    !faults.iter().any(|fault| clash(fault.kind()))
                };
                if let Some(kind) = round.pop_if(|kind| goes(*kind)) {
                    faults.push(kind.draw(nodes, random));
                }
            }
            // Before the processes are stopped that would have sent something.
            faults.sort_by_key(|fault| !fault.kind().is_on_links());
            let rest = Duration::from_millis(random.between(3_000..=5_000));
            let lasts = Duration::from_millis(random.between(3_000..=7_000));
            planned += rest + lasts;
            if planned > time {
                break;
            }
            steps.push(Step { rest, lasts, faults });
        }
        Plan { steps }
    }
}

impl Plan {
    /// Kinds of faults that do not come up, for want of time.
    pub fn lacks(&self, kinds: &[Kind]) -> Vec<Kind> {
        let faults = || self.steps.iter().flat_map(|step| &step.faults);
        let lacks = |kind: &&Kind| !faults().any(|fault| fault.kind() == **kind);
        kinds.iter().filter(lacks).copied().collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut at = Duration::ZERO;
        for Step { rest, lasts, faults } in &self.steps {
            at += *rest;
            let faults: Vec<String> = faults.iter().map(Fault::describe).collect();
            writeln!(
                f,
                "{:>8.3} s for {:.3} s: {}",
                at.as_secs_f64(),
                lasts.as_secs_f64(),
                faults.join(" + ")
            )?;
            at += *lasts;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan_in_which_every_kind_comes_up() {
        let draw = |seed| {
            Plan::draw(super::super::KINDS, 5, Duration::from_secs(150), &mut Random::new(seed))
        };
        for seed in 0..200 {
            let plan = draw(seed);
            assert_eq!(plan, draw(seed));
            assert_eq!(plan.lacks(super::super::KINDS), [], "seed {seed}:\n{plan}");
            for step in &plan.steps {
                let on_links = |fault: &Fault| fault.kind().is_on_links();
                assert!(step.faults.is_sorted_by_key(|fault| !on_links(fault)), "seed {seed}");
                assert!(step.faults.iter().filter(|fault| on_links(fault)).count() < 2, "{seed}");
                let alone = step.faults.iter().any(|fault| fault.kind().is_alone());
                assert_eq!(
                    step.faults.len(),
                    if alone { 1 } else { step.faults.len().clamp(1, 2) }
                );
            }
            let time: Duration = plan.steps.iter().map(|step| step.rest + step.lasts).sum();
            assert!(time <= Duration::from_secs(150), "seed {seed}: {time:?}");
        }
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn no_kinds_no_faults() {
        let plan = Plan::draw(&[], 3, Duration::from_secs(60), &mut Random::new(1));
        assert!(plan.steps.is_empty());
        assert_eq!(plan.lacks(&[Kind::Kill]), [Kind::Kill]);
    }
}
