//! Maglev hashing (Eisenbud et al., NSDI 2016), with the hashes of Envoy's `maglev`: a table of a prime
//! number of slots in which each endpoint takes slots in an order of its own, in turn. With equal weights
//! it is Envoy's table.
//!
//! A lookup is one load, and the load is all but even. The price: when an endpoint comes or goes, not only
//! its own keys move, but about half a percent of all keys between endpoints that stay; together 1.5 / n of
//! them for a hundred endpoints, 6.5 / n for a thousand. And nearly all move when the table gets another
//! size: see [`limits::BALANCE_TABLES`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use xxhash_rust::xxh64::xxh64;

use super::math::mix;
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

const FREE: u32 = u32::MAX;

impl Maglev {
    /// Keys and weights in the order of the keys. There must be one, and at most as many as slots should
    /// get any.
    pub(super) fn new(keys: &[&str], weights: &[u32], table_size: Option<u32>) -> Maglev {
        let size = table_size.unwrap_or_else(|| suitable(keys.len()));
        let mut takers: Vec<Taker> = keys.iter().map(|key| Taker::new(key, size)).collect();
        let mut slots = vec![FREE; size as usize];
        if weights.windows(2).all(|pair| pair[0] == pair[1]) {
            let turns = (0..keys.len()).cycle().take(size as usize);
            turns.for_each(|member| takers[member].take(member, &mut slots));
        } else {
            let most = weights.iter().copied().max().unwrap_or(1);
            let turns: Vec<Turns> = keys
                .iter()
                .zip(weights)
                .map(|(key, weight)| Turns::new(key, *weight, most))
                .collect();
            let mut due: BinaryHeap<_> = turns
                .iter()
                .enumerate()
                .map(|(member, turns)| Reverse((turns.at(0), member, 0)))
                .collect();
            for _ in 0..size {
                let mut first = due.peek_mut().expect("everybody has a next turn");
                let Reverse((_, member, turn)) = *first;
                *first = Reverse((turns[member].at(turn + 1), member, turn + 1));
                drop(first);
                takers[member].take(member, &mut slots);
            }
        }
        Maglev { slots: slots.into(), reciprocal: u64::MAX / u64::from(size) }
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

/// In which rounds an endpoint takes a slot: the heaviest in each, others in proportion. Where an endpoint
/// begins within the rounds that it waits is drawn by its key. In Envoy all begin in the first round, so
/// many light endpoints together get too much.
struct Turns {
    /// The weight and the one of the heaviest, and the beginning, in 65 536ths of a turn, 1..=65 536.
    weight: u64,
    most: u64,
    begin: u64,
}

impl Turns {
    fn new(key: &str, weight: u32, most: u32) -> Turns {
        let begin = (mix(xxh64(key.as_bytes(), 2)) >> 48) + 1;
        Turns { weight: u64::from(weight), most: u64::from(most), begin }
    }

    /// The round of a turn, from 1 on. At most 2^16 of weight and 2^23 turns: 55 bits.
    fn at(&self, turn: u64) -> u64 {
        (self.most * (self.begin + (turn << 16))).div_ceil(self.weight << 16)
    }
}

impl Taker {
    fn new(key: &str, size: u32) -> Taker {
        let size = u64::from(size);
        let next = xxh64(key.as_bytes(), 0) % size;
        let skip = xxh64(key.as_bytes(), 1) % (size - 1) + 1;
        Taker { next: next as u32, skip: skip as u32 }
    }

    /// Takes the next slot of its permutation that is free.
    fn take(&mut self, member: usize, slots: &mut [u32]) {
        let size = slots.len() as u32;
        while slots[self.next as usize] != FREE {
            // Both are less than the size, which is at most 23 bits.
            self.next += self.skip;
            if self.next >= size {
                self.next -= size;
            }
        }
        slots[self.next as usize] = member as u32;
    }
}

/// The first size that suits so many endpoints.
pub(super) fn suitable(endpoints: usize) -> u32 {
    let wanted = endpoints as u64 * limits::BALANCE_TABLE_PER_ENDPOINT;
    let sizes = limits::BALANCE_TABLES;
    sizes.into_iter().find(|size| u64::from(*size) >= wanted).unwrap_or(sizes[sizes.len() - 1])
}
