//! Ejection of outliers: endpoints whose calls fail more often than those of others get none for a while
//! (gRFC A50, after Envoy's outlier detection). Failures in a row eject at once, where they are noted.
//!
//! Different from A50: `max_ejection_percent` is not exceeded by the last ejection, except that one is
//! always allowed, and the last endpoint is never ejected. A call for which all others were tried goes to
//! the ejected ones too. The enforcement percentages are 100.

use std::time::Duration;

use super::load::{Ward, nanos};
use super::math::Random;
use super::snapshot::{Member, Snapshot};

/// What a sweep did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sweep {
    /// Places in [`Snapshot::members`].
    pub ejected: Vec<usize>,
    pub returned: Vec<usize>,
    /// After which time the next one is due; None = the policy ejects nobody.
    pub next: Option<Duration>,
}

/// The calls of an endpoint in one interval.
#[derive(Debug, Clone, Copy)]
struct Count {
    place: usize,
    calls: u32,
    failures: u32,
}

impl<T> Snapshot<T> {
    /// Compares the endpoints and ejects outliers, and lets those return whose time is over. Does nothing
    /// before it is due, so it may be called too often; `random` decides whose turn is first when not
    /// all outliers may be ejected.
    pub fn sweep(&self, now: Duration, random: u64) -> Sweep {
        let now = nanos(now);
        let mut ward = self.lineage.ward();
        let settings = ward.settings;
        if !settings.on {
            return Sweep::default();
        }
        let mut sweep = Sweep::default();
        let interval = nanos(settings.interval);
        let members = self.chosen();
        if ward.due == 0 {
            // The first interval begins.
            ward.due = now.saturating_add(interval);
            for member in members {
                member.load.take_counts();
            }
        } else if ward.due <= now {
            ward.due = now.saturating_add(interval);
            let counts = self.counts(members, random);
            succeed_too_rarely(members, &counts, &mut ward, now, &mut sweep);
            fail_too_often(members, &counts, &mut ward, now, &mut sweep);
            for (place, member) in members.iter().enumerate() {
                if !sweep.ejected.contains(&place) && member.load.serve(&mut ward, now) {
                    sweep.returned.push(place);
                }
            }
        }
        sweep.next = Some(Duration::from_nanos(ward.due - now));
        sweep
    }

    fn counts(&self, members: &[Member<T>], random: u64) -> Vec<Count> {
        let mut counts: Vec<Count> = members
            .iter()
            .enumerate()
            .map(|(place, member)| {
                let (successes, failures) = member.load.take_counts();
                Count { place, calls: successes.saturating_add(failures), failures }
            })
            .collect();
        if let Ok(n @ 1..) = u32::try_from(counts.len()) {
            counts.rotate_left(Random(random).below(n) as usize);
        }
        counts
    }
}

/// Those with calls enough to be compared, if they are enough.
fn comparable(counts: &[Count], calls: u32, hosts: u32) -> Vec<Count> {
    let mut comparable = counts.to_vec();
    comparable.retain(|count| count.calls >= calls);
    if comparable.len() < hosts as usize {
        comparable.clear();
    }
    comparable
}

/// The success rate is lower than the mean by more than some standard deviations.
fn succeed_too_rarely<T>(
    members: &[Member<T>],
    counts: &[Count],
    ward: &mut Ward,
    now: u64,
    sweep: &mut Sweep,
) {
    let settings = ward.settings;
    let counts = comparable(counts, settings.success_rate_calls, settings.success_rate_hosts);
    let rate = |count: &Count| f64::from(count.calls - count.failures) / f64::from(count.calls);
    let n = counts.len() as f64;
    let mean = counts.iter().map(rate).sum::<f64>() / n;
    let variance = counts.iter().map(|count| (rate(count) - mean).powi(2)).sum::<f64>() / n;
    let least = mean - variance.sqrt() * f64::from(settings.stdev_factor) / 1_000.0;
    for count in counts.iter().filter(|count| rate(count) < least) {
        if members[count.place].load.eject(ward, now) {
            sweep.ejected.push(count.place);
        }
    }
}

/// More than a percentage of its calls failed.
fn fail_too_often<T>(
    members: &[Member<T>],
    counts: &[Count],
    ward: &mut Ward,
    now: u64,
    sweep: &mut Sweep,
) {
    let settings = ward.settings;
    for count in comparable(counts, settings.failure_calls, settings.failure_hosts) {
        let most = u64::from(count.calls) * u64::from(settings.failure_percent);
        if u64::from(count.failures) * 100 > most && members[count.place].load.eject(ward, now) {
            sweep.ejected.push(count.place);
        }
    }
}
