//! Maglev hashing (Eisenbud et al., NSDI 2016), with the hashes and the weights of Envoy's `maglev`: a
//! table of a prime number of slots in which each endpoint takes slots in an order of its own, in turn.
//!
//! A lookup is one load, and the load is all but even; the price is that about 2/n of the keys move when
//! an endpoint comes or goes, some of them between endpoints that stay.

use std::collections::BTreeMap;

use xxhash_rust::xxh64::xxh64;

use super::math::is_prime;
use crate::limits;

#[derive(Debug)]
pub(super) struct Maglev {
    slots: Box<[u32]>,
    /// 2^64 / slots, rounded down: a multiplication instead of a division.
    reciprocal: u64,
}

/// The permutation of one endpoint, and how far it has come in it.
struct Taker {
    next: u32,
    skip: u32,
}

/// Endpoints of one weight, which take their slots in the same rounds.
struct Class {
    weight: u64,
    target: u64,
    members: Vec<u32>,
}

impl Maglev {
    /// Keys and weights in the order of the keys. There must be one, and at most as many as slots should
    /// get any.
    pub(super) fn new(keys: &[&str], weights: &[u32], table_size: Option<u32>) -> Maglev {
        let size = table_size.unwrap_or_else(|| suitable(keys.len()));
        let mut takers: Vec<Taker> = keys.iter().map(|key| Taker::new(key, size)).collect();
        let mut classes = BTreeMap::<u32, Vec<u32>>::new();
        for (member, weight) in (0u32..).zip(weights) {
            classes.entry(*weight).or_default().push(member);
        }
        let most = u64::from(weights.iter().copied().max().unwrap_or(1));
        let mut classes: Vec<Class> = classes
            .into_iter()
            .map(|(weight, members)| Class { weight: u64::from(weight), target: 0, members })
            .collect();
        const FREE: u32 = u32::MAX;
        let mut slots = vec![FREE; size as usize];
        let mut taken = 0;
        let mut round = Vec::new();
        for iteration in 1.. {
            // In iteration i an endpoint has had its share of i turns of the heaviest one.
            round.clear();
            let mut due = 0;
            for class in &mut classes {
                if iteration * class.weight >= class.target {
                    class.target += most;
                    round.extend_from_slice(&class.members);
                    due += 1;
                }
            }
            if due > 1 {
                round.sort_unstable();
            }
            for member in &round {
                let taker = &mut takers[*member as usize];
                while slots[taker.next as usize] != FREE {
                    taker.advance(size);
                }
                slots[taker.next as usize] = *member;
                taken += 1;
                if taken == size {
                    let reciprocal = u64::MAX / u64::from(size);
                    return Maglev { slots: slots.into(), reciprocal };
                }
            }
        }
        unreachable!("the heaviest endpoint takes a slot in each iteration")
    }

    /// The owner of a key: that of the slot `hash % slots`.
    #[inline]
    pub(super) fn owner(&self, hash: u64) -> u32 {
        let size = self.slots.len() as u64;
        let quotient = ((u128::from(hash) * u128::from(self.reciprocal)) >> 64) as u64;
        let mut slot = hash - quotient * size;
        // The quotient is too small by 2 at most.
        while slot >= size {
            slot -= size;
        }
        self.slots[slot as usize]
    }
}

impl Taker {
    fn new(key: &str, size: u32) -> Taker {
        let size = u64::from(size);
        let next = xxh64(key.as_bytes(), 0) % size;
        let skip = xxh64(key.as_bytes(), 1) % (size - 1) + 1;
        Taker { next: next as u32, skip: skip as u32 }
    }

    fn advance(&mut self, size: u32) {
        self.next += self.skip;
        if self.next >= size {
            self.next -= size;
        }
    }
}

/// The default, and the next prime above so many slots for each endpoint when that is more.
fn suitable(endpoints: usize) -> u32 {
    let greatest = *limits::BALANCE_TABLE.end() as u32;
    let wanted = endpoints as u64 * u64::from(limits::BALANCE_TABLE_PER_ENDPOINT);
    if wanted <= u64::from(limits::DEFAULT_BALANCE_TABLE) {
        return limits::DEFAULT_BALANCE_TABLE;
    }
    let wanted = u32::try_from(wanted).unwrap_or(greatest).min(greatest);
    (wanted..=greatest).find(|n| is_prime(*n)).unwrap_or(greatest)
}
