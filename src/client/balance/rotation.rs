//! Choosing without a hash: in proportion to weights at random, and in turn.

use std::collections::BTreeMap;

use super::math::Random;
use crate::limits;

/// Draws in proportion to weights in constant time (Walker's alias method, as Vose builds it, 1991).
#[derive(Debug)]
pub(super) enum Sampler {
    Alike(u32),
    /// For each column the share of 2^32 that it keeps, and who has the rest.
    Alias(Box<[(u32, u32)]>),
}

impl Sampler {
    pub(super) fn new(weights: &[u32]) -> Sampler {
        let n = weights.len() as u32;
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            return Sampler::Alike(n);
        }
        let sum: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        // A column holds sum; an endpoint brings weight * n.
        let mut left: Vec<u64> = weights.iter().map(|w| u64::from(*w) * u64::from(n)).collect();
        let mut columns = vec![(u32::MAX, 0); weights.len()];
        let (mut small, mut large): (Vec<u32>, Vec<u32>) =
            (0..n).partition(|i| left[*i as usize] < sum);
        while let (Some(lesser), Some(greater)) = (small.pop(), large.last().copied()) {
            let kept = left[lesser as usize];
            let share = (u128::from(kept) << 32) / u128::from(sum);
            columns[lesser as usize] = (share as u32, greater);
            let rest = &mut left[greater as usize];
            *rest -= sum - kept;
            if *rest < sum {
                large.pop();
                small.push(greater);
            }
        }
        for i in large.into_iter().chain(small) {
            columns[i as usize] = (u32::MAX, i);
        }
        Sampler::Alias(columns.into())
    }

    #[inline]
    pub(super) fn draw(&self, random: &mut Random) -> u32 {
        match self {
            Sampler::Alike(n) => random.below(*n),
            Sampler::Alias(columns) => {
                let draw = random.next();
                let i = super::math::below(draw, columns.len() as u32);
                let (kept, other) = columns[i as usize];
                if draw as u32 <= kept { i } else { other }
            }
        }
    }
}

/// One period of smooth weighted round robin (nginx): in each step everybody gains its weight, the
/// greatest is taken and pays the sum. So an endpoint that is worth 5 of 7 steps is not taken five times
/// in a row. The period is made beforehand: a choice is one addition to a shared counter.
///
/// Weights are rounded to what a period can hold; where there are too many endpoints for so many steps,
/// those of the same weight gain and pay as one and take their steps in turn.
pub(super) fn period(weights: &[u32]) -> Box<[u32]> {
    let weights = rounded(weights);
    let steps: u64 = weights.iter().sum();
    let groups: Vec<Vec<u32>> = if weights.len() as u64 * steps <= limits::BALANCE_PERIOD_WORK {
        (0..weights.len() as u32).map(|i| vec![i]).collect()
    } else {
        let mut classes = BTreeMap::<u64, Vec<u32>>::new();
        for (i, weight) in (0u32..).zip(&weights) {
            classes.entry(*weight).or_default().push(i);
        }
        classes.into_values().rev().collect()
    };
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|members| {
            let gain = (weights[members[0] as usize] * members.len() as u64) as i64;
            Group { gain, current: 0, members, turn: 0 }
        })
        .collect();
    (0..steps).map(|_| step(&mut groups, steps as i64)).collect()
}

struct Group {
    gain: i64,
    current: i64,
    members: Vec<u32>,
    turn: usize,
}

fn step(groups: &mut [Group], sum: i64) -> u32 {
    let mut best = 0;
    for i in 0..groups.len() {
        groups[i].current += groups[i].gain;
        if groups[i].current > groups[best].current {
            best = i;
        }
    }
    let group = &mut groups[best];
    group.current -= sum;
    let member = group.members[group.turn];
    group.turn = (group.turn + 1) % group.members.len();
    member
}

/// The weights without their common divisor, in proportion to each other as well as a period allows, 1
/// at least.
fn rounded(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |a, b| gcd(a, u64::from(*b))).max(1);
    let weights = weights.iter().map(|weight| u64::from(*weight) / divisor);
    let sum: u64 = weights.clone().sum();
    let most = (weights.len() as u64 * limits::BALANCE_PERIOD_PER_ENDPOINT)
        .clamp(limits::BALANCE_PERIOD_LEAST, limits::BALANCE_PERIOD);
    if sum <= most {
        return weights.collect();
    }
    weights.map(|weight| ((weight * most + sum / 2) / sum).max(1)).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
