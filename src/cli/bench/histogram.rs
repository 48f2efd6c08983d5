//! How often which time was seen: buckets whose width grows with the value, as in HdrHistogram, so
//! that every quantile is right to within 1.6 percent at a fixed size.

/// Buckets of one power of two.
const SUB_BITS: u32 = 6;
const SUB: u64 = 1 << SUB_BITS;
/// Greatest value that is told apart: 2^40 ns are 18 minutes.
const MAX_BITS: u32 = 40;
const BUCKETS: usize = ((MAX_BITS - SUB_BITS + 1) as usize) << SUB_BITS;

/// Times in nanoseconds.
#[derive(Debug, Clone)]
pub struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    sum: u128,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { buckets: vec![0; BUCKETS], count: 0, sum: 0, max: 0 }
    }
}

/// Values below `SUB` have a bucket each; above, the leading bit chooses a row of `SUB` buckets and
/// the next `SUB_BITS` bits the bucket in it.
fn bucket(nanos: u64) -> usize {
    let value = nanos.min((1 << MAX_BITS) - 1);
    if value < SUB {
        return value as usize;
    }
    let shift = 63 - value.leading_zeros() - SUB_BITS;
    (((shift + 1) as usize) << SUB_BITS) + ((value >> shift) as usize & (SUB as usize - 1))
}

/// The greatest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let (row, column) = ((bucket >> SUB_BITS) as u32, bucket as u64 & (SUB - 1));
    if row == 0 {
        return column;
    }
    let shift = row - 1;
    ((SUB + column + 1) << shift) - 1
}

impl Histogram {
    /// A time that was seen so often.
    pub fn record_many(&mut self, nanos: u64, times: u64) {
        self.buckets[bucket(nanos)] += times;
        self.count += times;
        self.sum += u128::from(nanos) * u128::from(times);
        self.max = self.max.max(nanos);
    }

    pub fn merge(&mut self, other: &Histogram) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.sum += other.sum;
        self.max = self.max.max(other.max);
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    pub fn mean(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum as f64 / self.count as f64 }
    }

    /// The least value that the share `q` of all values does not exceed, rounded up to its bucket.
    pub fn quantile(&self, q: f64) -> u64 {
        let rank = ((self.count as f64 * q).ceil() as u64).clamp(1, self.count.max(1));
        let mut seen = 0;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(bucket).min(self.max);
            }
        }
        self.max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(upper(index)), index);
            if index + 1 < BUCKETS {
                assert_eq!(bucket(upper(index) + 1), index + 1);
            }
        }
        assert_eq!(upper(BUCKETS - 1), (1 << MAX_BITS) - 1);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn quantiles_are_right_within_their_promise() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.quantile(0.5), histogram.max()), (0, 0));
        let (mut one, mut other) = (Histogram::default(), Histogram::default());
        for i in 1..=100_000u64 {
            histogram.record_many(i * 37, 1);
            if i % 3 == 0 { one.record_many(i * 37, 1) } else { other.record_many(i * 37, 1) }
        }
        one.merge(&other);
        for q in [0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let exact = (100_000.0 * q) * 37.0;
            let got = histogram.quantile(q) as f64;
            assert!(got >= exact && got <= exact * 1.017, "{q}: {got} for {exact}");
            assert_eq!(one.quantile(q), histogram.quantile(q));
        }
        assert_eq!(histogram.max(), 3_700_000);
        assert!((histogram.mean() - 50_000.5 * 37.0).abs() < 1.0);
    }
}
