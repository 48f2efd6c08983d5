//! The hash ring: consistent hashing (Karger et al., STOC 1997) with the points of Envoy's `ring_hash`
//! and gRFC A42, or with those of nginx.
//!
//! A key belongs to the first point at or after its hash. So when an endpoint goes, its keys go to
//! whoever stands behind its points, and nobody else's keys move; when one comes, all keys that move go
//! to it.

use super::math::crc32_of;

/// Invariant: `index[b]..index[b + 1]` are the places of the points whose hash begins with the bits `b`,
/// in order; so what is stored of a hash need not repeat these bits, and the number of its owner has room
/// in their place. A lookup touches one entry of the index and, most often, one cache line of points.
#[derive(Debug)]
pub(super) struct Ring {
    bits: u32,
    index: Box<[u32]>,
    /// Hash << bits | owner; behind the last one, a window's length of nothing.
    points: Box<[u64]>,
}

/// Points that are compared at once, without a branch: most buckets have fewer.
const WINDOW: usize = 4;

impl Ring {
    /// Points and their owners, in any order. Of points with the same hash the one of the least owner
    /// comes first. Panics when there is no point, or more than 32 bits can number.
    pub(super) fn new(drawn: &[(u64, u32)]) -> Ring {
        let count =
            u32::try_from(drawn.len()).expect("a ring has at most limits::BALANCE_RING points");
        let greatest = drawn.iter().map(|(_, owner)| *owner).max().expect("a ring has points");
        let bits = count.ilog2().max(u32::BITS - greatest.leading_zeros()).max(1);
        let bucket = |hash: u64| (hash >> (64 - bits)) as usize;
        let mut index = vec![0u32; (1 << bits) + 1];
        for (hash, _) in drawn {
            index[bucket(*hash) + 1] += 1;
        }
        for b in 1..index.len() {
            index[b] += index[b - 1];
        }
        let mut free = index.clone();
        let mut points = vec![0u64; drawn.len() + WINDOW];
        for (hash, owner) in drawn {
            let place = &mut free[bucket(*hash)];
            points[*place as usize] = hash << bits | u64::from(*owner);
            *place += 1;
        }
        for pair in index.windows(2) {
            if pair[1] - pair[0] > 1 {
                points[pair[0] as usize..pair[1] as usize].sort_unstable();
            }
        }
        Ring { bits, index: index.into(), points: points.into() }
    }

    /// The place of the point that a key belongs to.
    #[inline]
    pub(super) fn find(&self, hash: u64) -> u32 {
        let bucket = (hash >> (64 - self.bits)) as usize;
        let (mut place, end) = (self.index[bucket], self.index[bucket + 1]);
        let least = hash << self.bits;
        loop {
            let window = &self.points[place as usize..place as usize + WINDOW];
            let mut before = 0;
            for (ahead, point) in (0u32..).zip(window) {
                before += u32::from(*point < least) & u32::from(place + ahead < end);
            }
            place += before;
            if before < WINDOW as u32 {
                return if place == self.len() { 0 } else { place };
            }
        }
    }

    #[inline]
    pub(super) fn owner(&self, place: u32) -> u32 {
        (self.points[place as usize] & ((1 << self.bits) - 1)) as u32
    }

    #[inline]
    pub(super) fn after(&self, place: u32) -> u32 {
        if place + 1 == self.len() { 0 } else { place + 1 }
    }

    pub(super) fn len(&self) -> u32 {
        (self.points.len() - WINDOW) as u32
    }
}

/// How many points each weight gets: `points` per unit, and one at least. The unit is the greatest power
/// of two that is no more than the least weight, so that it rarely changes when an endpoint comes or
/// goes: only then do keys move between others. Doubled until the ring has at most `most` points.
pub(super) fn counts(weights: &[u32], points: u32, most: u32) -> Vec<u64> {
    let least = weights.iter().min().map_or(1, |least| (*least).max(1));
    let mut unit = 1u64 << least.ilog2();
    loop {
        let count = |weight: &u32| (u64::from(points) * u64::from(*weight) / unit).max(1);
        let counts: Vec<u64> = weights.iter().map(count).collect();
        let one_each = counts.iter().all(|count| *count == 1);
        if one_each || counts.iter().sum::<u64>() <= u64::from(most) {
            return counts;
        }
        unit *= 2;
    }
}

/// Envoy's counts for a ring of at least `min` and at most `max` points: in proportion to the weights,
/// with the fractions carried along the list. They depend on all weights.
pub(super) fn envoy_counts(weights: &[u32], min: u32, max: u32) -> Vec<u64> {
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let least = weights.iter().min().map_or(1.0, |least| f64::from(*least) / sum);
    let scale = ((least * f64::from(min)).ceil() / least).min(f64::from(max));
    let (mut current, mut target) = (0.0, 0.0);
    let counts = weights.iter().map(|weight| {
        target += scale * (f64::from(*weight) / sum);
        let mut count = 0;
        while current < target {
            current += 1.0;
            count += 1;
        }
        count
    });
    counts.collect()
}

/// Point `i` of an endpoint is XXH64 with seed 0 of its key, `_` and `i` in decimal.
pub(super) fn envoy_points(key: &str, owner: u32, count: u64, drawn: &mut Vec<(u64, u32)>) {
    let mut text = [key.as_bytes(), b"_0"].concat();
    for _ in 0..count {
        drawn.push((super::math::hash(&text), owner));
        increment(&mut text, key.len() + 1);
    }
}

/// Adds 1 to the decimal number that begins at `from`.
fn increment(text: &mut Vec<u8>, from: usize) {
    for digit in text[from..].iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return;
        }
        *digit = b'0';
    }
    text.insert(from, b'1');
}

/// The points of `ngx_http_upstream_hash_module`: CRC-32 of host, a zero byte, port and the point
/// before, in the upper half of 64 bits. The key is `host:port`, or a name without a port.
pub(super) fn ketama_points(key: &str, owner: u32, count: u64, drawn: &mut Vec<(u64, u32)>) {
    let (host, port) = key.rsplit_once(':').unwrap_or((key, ""));
    let base = crc32_of(crc32_of(crc32_of(!0, host.as_bytes()), &[0]), port.as_bytes());
    let mut last = 0u32;
    for _ in 0..count {
        last = !crc32_of(base, &last.to_le_bytes());
        drawn.push((u64::from(last) << 32, owner));
    }
}

/// Where a key stands on the ring of nginx.
pub(super) fn ketama_place(hash: u64) -> u64 {
    hash << 32
}
