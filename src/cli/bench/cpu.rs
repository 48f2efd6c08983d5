//! Processor time of processes, from /proc. The kernel counts it in hundredths of a second, so only
//! runs of some seconds tell something.

use std::collections::BTreeMap;

/// Microseconds of one tick of `/proc/*/stat`: USER_HZ is 100 on every architecture of Linux that we
/// run on.
const TICK_US: u64 = 10_000;

/// Processor time used so far.
#[derive(Debug, Default)]
pub struct Sample {
    own_us: Option<u64>,
    by_pid_us: BTreeMap<u32, u64>,
}

impl Sample {
    pub fn take(pids: &[u32]) -> Sample {
        Sample {
            own_us: read("self"),
            by_pid_us: pids
                .iter()
                .filter_map(|&pid| Some((pid, read(&pid.to_string())?)))
                .collect(),
        }
    }

    /// Of this process since an earlier sample.
    pub fn own_since(&self, before: &Sample) -> Option<u64> {
        self.own_us?.checked_sub(before.own_us?)
    }

    /// Of another process since an earlier sample; None when it is not the same one any more.
    pub fn since(&self, before: &Sample, pid: u32) -> Option<u64> {
        self.by_pid_us.get(&pid)?.checked_sub(*before.by_pid_us.get(&pid)?)
    }
}

fn read(process: &str) -> Option<u64> {
    parse(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// Time in user and kernel mode: fields 14 and 15. The second field is a name in parentheses that may
/// hold anything, parentheses and blanks included.
fn parse(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let kernel: u64 = fields.next()?.parse().ok()?;
    Some((user + kernel) * TICK_US)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_shift_the_fields() {
        let stat = "42 (a) b (c)) S 1 42 42 0 -1 4194560 100 0 0 0 250 50 7 7 20 0 8 0 100 1 1";
        assert_eq!(parse(stat), Some(3_000_000));
        assert_eq!(parse("42 (a) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn time_passes() {
        let before = Sample::take(&[1, u32::MAX]);
        let mut sum = 0u64;
        let after = loop {
            for i in 0..1_000_000u64 {
                sum = std::hint::black_box(sum.wrapping_add(i * i));
            }
            let after = Sample::take(&[]);
            if after.own_since(&before).is_some_and(|us| us > 0) {
                break after;
            }
        };
        assert_eq!(after.since(&before, u32::MAX), None);
    }
}
