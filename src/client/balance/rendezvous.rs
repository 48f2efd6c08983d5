//! Rendezvous hashing, or highest random weight (Thaler and Ravishankar 1996): a key belongs to the
//! endpoint that has the highest score with it. With the score -w / ln u (Schindelhauer and Schomaker
//! 2005) the shares are exactly those of the weights, and a weight that changes moves keys to or from
//! its endpoint alone.

use super::math::{ln, mix};

#[derive(Debug)]
pub(super) struct Rendezvous {
    keys: Box<[u64]>,
    /// Empty when all are the same.
    weights: Box<[f64]>,
}

impl Rendezvous {
    /// Hashes of the endpoints' keys, and their weights.
    pub(super) fn new(keys: Box<[u64]>, weights: &[u32]) -> Rendezvous {
        let alike = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let weights = if alike { &[] } else { weights };
        Rendezvous { keys, weights: weights.iter().map(|weight| f64::from(*weight)).collect() }
    }

    /// The best of those that may be taken; of equal ones the first.
    #[inline]
    pub(super) fn owner(&self, hash: u64, may: impl Fn(u32) -> bool) -> Option<u32> {
        if self.weights.is_empty() {
            let mut best = None;
            let mut highest = 0;
            for (i, key) in (0u32..).zip(&self.keys) {
                let draw = draw(hash, *key);
                if (draw > highest || best.is_none()) && may(i) {
                    (best, highest) = (Some(i), draw);
                }
            }
            return best;
        }
        let mut best = None;
        let mut highest = 0.0;
        for ((i, key), weight) in (0u32..).zip(&self.keys).zip(&self.weights) {
            // In (0, 1).
            let u = (draw(hash, *key) as f64 + 0.5) * f64::EPSILON / 2.0;
            // -ln u >= 1 - u, which most often tells that the score is lower without a logarithm; what
            // rounding could change is left to the logarithm.
            if *weight < highest * (1.0 - u) * 0.999_999 {
                continue;
            }
            let score = -weight / ln(u);
            if (score > highest || best.is_none()) && may(i) {
                (best, highest) = (Some(i), score);
            }
        }
        best
    }
}

/// 53 bits, as many as a float has.
#[inline]
fn draw(hash: u64, key: u64) -> u64 {
    mix(hash ^ key) >> 11
}
