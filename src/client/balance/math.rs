//! The arithmetic of balancing: mixing, random numbers, and a logarithm that gives the same bits
//! on every machine.

/// The hash of a key for the policies that hash: XXH64 with seed 0, as in Envoy and gRPC. They need a
/// hash whose bits are all alike: an id or a counter itself would put all keys into one place.
pub fn hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh64::xxh64(key, 0)
}

/// The hash of a key as nginx's `hash ... consistent` takes it, for the policy `ketama`: CRC-32.
pub fn crc32(key: &[u8]) -> u64 {
    u64::from(!crc32_of(!0, key))
}

/// What each byte does to a CRC-32 (IEEE 802.3, reflected).
const CRC32: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// Goes on with a CRC-32 that is not inverted yet.
pub(super) fn crc32_of(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| (crc >> 8) ^ CRC32[usize::from(crc as u8 ^ byte)])
}

/// 2^64 divided by the golden ratio: its multiples are spread evenly.
pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64 (Stafford's variant 13): a permutation in which each bit of the input
/// changes half of the output.
pub const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Where a key goes when it cannot stay: itself first, then one place after the other, as if at random.
pub(super) const fn jump(hash: u64, step: u32) -> u64 {
    if step == 0 { hash } else { mix(hash.wrapping_add(GOLDEN.wrapping_mul(step as u64))) }
}

/// SplitMix64 (Steele, Lea, Flood 2014): any seed gives a good sequence, so that one number of the
/// caller's is enough for all choices of a call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// One of `0..n`, by multiplication (Lemire 2019); what it is biased by is below 2^-32.
    pub(super) fn below(&mut self, n: u32) -> u32 {
        below(self.next(), n)
    }
}

pub(super) const fn below(draw: u64, n: u32) -> u32 {
    (((draw >> 32) * n as u64) >> 32) as u32
}

/// The natural logarithm of a normal number above 0, to about 15 digits. It is made of operations that
/// IEEE 754 rounds exactly, so that all machines weigh alike; the one of the C library is not.
pub(super) fn ln(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // ln m = 2 artanh s, |s| <= 0.172.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let square = s * s;
    let mut sum = 0.0;
    for odd in (1..=19).rev().step_by(2) {
        sum = sum * square + 1.0 / f64::from(odd);
    }
    2.0 * s * sum + f64::from(exponent) * std::f64::consts::LN_2
}
