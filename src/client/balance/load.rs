//! What is known of an endpoint from its calls. It outlives the snapshots that the endpoint is part of,
//! and every thread that picks or calls writes it without a lock; only ejection and the change of a
//! snapshot, which are rare, take one.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Ejection;
use crate::limits;

/// How a call ended, as far as its endpoint is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// No connection, no answer, or one that says that the endpoint is at fault.
    Failure,
}

/// A call under way: it counts at its endpoint until it is finished or dropped. What is dropped, a call
/// that was cancelled for instance, says nothing about the endpoint.
#[derive(Debug)]
pub struct Flight {
    load: Arc<Load>,
    started: u64,
}

impl Flight {
    pub(super) fn new(load: Arc<Load>, now: u64) -> Flight {
        Flight { load, started: now }
    }

    /// Says how the call ended, on the clock by which it started.
    pub fn finish(self, outcome: Outcome, now: Duration) {
        let now = nanos(now);
        self.load.record(outcome, now.saturating_sub(self.started), now);
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.load.end();
    }
}

/// Nanoseconds; 584 years fit.
#[inline]
pub(super) fn nanos(time: Duration) -> u64 {
    time.as_secs().wrapping_mul(1_000_000_000).wrapping_add(u64::from(time.subsec_nanos()))
}

/// In `Load::calls`: the endpoint is not part of the newest snapshot, and on which side of it it is. The
/// rest is the number of calls under way.
const ASIDE: u64 = 1 << 63;
const SIDE: u64 = 1 << 62;
const CALLS: u64 = SIDE - 1;

/// One cache line.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Load {
    calls: AtomicU64,
    /// Latency in ns as the upper 32 bits of a float, and when it was noted, in ticks; 0 = not known.
    latency: AtomicU64,
    successes: AtomicU32,
    failures: AtomicU32,
    /// Failures since the last success.
    streak: AtomicU32,
    /// Written under the lock, as all that follow: how often it was ejected lately.
    multiplier: AtomicU32,
    /// When it was ejected, + 1; 0 = it is not.
    ejected_at: AtomicU64,
    /// Since when it takes calls; 0 = for so long that it does not matter.
    since: AtomicU64,
    /// Weight << 1 | 1 where ejection makes it unavailable; 0 = it is unavailable anyhow.
    standing: AtomicU64,
    lineage: Arc<Lineage>,
}

/// What the snapshots of one service have in common, the endpoints on each side of a snapshot apart.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    pub(super) sides: [Side; 2],
    pub(super) calls: [Calls; 2],
    /// Until when there is an endpoint that does not take its full share yet.
    pub(super) warm_until: AtomicU64,
    /// The slow start and the time in which a latency fades, in ns.
    pub(super) slow_start: AtomicU64,
    pub(super) decay: AtomicU64,
    /// Failures in a row that eject; 0 = never.
    streak: AtomicU32,
    ward: Mutex<Ward>,
}

/// Endpoints of one side that are unavailable because they are ejected, and their weight. Read by every
/// pick, written rarely.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) ejected: AtomicU32,
    pub(super) ejected_weight: AtomicU64,
}

/// Calls of one side; written by every call, so it has a cache line of its own.
///
/// Invariant: it is never less than the calls that the endpoints of the side have under way: it is raised
/// before theirs and lowered after.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Calls(pub(super) AtomicU64);

/// So many calls may be under way at an endpoint: a fraction, rounded up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) calls: u64,
    pub(super) of: u64,
}

impl Bound {
    pub(super) const NONE: Bound = Bound { calls: u64::MAX, of: 1 };

    /// True when one more call is still within the bound: a whole number is less than a fraction rounded up
    /// when it is less than the fraction, so nothing need be divided.
    #[inline]
    fn exceeds(self, calls: u64) -> bool {
        u128::from(calls) * u128::from(self.of) < u128::from(self.calls)
    }
}

/// Ejection of the newest snapshot.
#[derive(Debug, Default)]
pub(super) struct Ward {
    pub(super) settings: Ejection,
    pub(super) endpoints: usize,
    pub(super) ejected: usize,
    /// When the endpoints are compared next; 0 = the clock is not known yet.
    pub(super) due: u64,
}

impl Ward {
    /// So many may be ejected at once: the share that is allowed, at least one, and never the last one.
    pub(super) fn allowed(&self) -> usize {
        let share = self.endpoints * self.settings.max_percent as usize / 100;
        share.max(1).min(self.endpoints.saturating_sub(1))
    }
}

impl Lineage {
    pub(super) fn ward(&self) -> MutexGuard<'_, Ward> {
        self.ward.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, ward: &mut Ward, settings: Ejection, decay: Duration, slow: Duration) {
        self.streak.store(if settings.on { settings.streak } else { 0 }, Relaxed);
        self.decay.store(nanos(decay).max(1), Relaxed);
        self.slow_start.store(nanos(slow), Relaxed);
        ward.settings = settings;
    }
}

impl Load {
    pub(super) fn new(lineage: &Arc<Lineage>) -> Load {
        Load {
            calls: AtomicU64::new(ASIDE),
            latency: AtomicU64::new(0),
            successes: AtomicU32::new(0),
            failures: AtomicU32::new(0),
            streak: AtomicU32::new(0),
            multiplier: AtomicU32::new(0),
            ejected_at: AtomicU64::new(0),
            since: AtomicU64::new(0),
            standing: AtomicU64::new(0),
            lineage: Arc::clone(lineage),
        }
    }

    // ---- calls under way ----

    #[inline]
    pub(super) fn in_flight(&self) -> u64 {
        self.calls.load(Relaxed) & CALLS
    }

    /// Counts a call on a side on which it was just counted; or on the side to which the endpoint has gone
    /// meanwhile.
    pub(super) fn begin(&self, side: usize) {
        self.lineage.calls[side].0.fetch_add(1, Relaxed);
        let before = self.calls.fetch_add(1, Relaxed);
        self.settle(side, before);
    }

    /// The same where the bound allows one more call; the side has been told already.
    #[inline]
    pub(super) fn begin_below(&self, side: usize, bound: Bound) -> bool {
        let more = |calls: u64| bound.exceeds(calls & CALLS).then_some(calls + 1);
        match self.calls.fetch_update(Relaxed, Relaxed, more) {
            Ok(before) => {
                self.settle(side, before);
                true
            }
            Err(_) => false,
        }
    }

    #[inline]
    fn settle(&self, told: usize, calls: u64) {
        if counted(calls) != Some(told) {
            if let Some(side) = counted(calls) {
                self.lineage.calls[side].0.fetch_add(1, Relaxed);
            }
            self.lineage.calls[told].0.fetch_sub(1, Relaxed);
        }
    }

    pub(super) fn end(&self) {
        let before = self.calls.fetch_sub(1, Relaxed);
        if let Some(side) = counted(before) {
            self.lineage.calls[side].0.fetch_sub(1, Relaxed);
        }
    }

    /// Moves the endpoint to a side of the newest snapshot, or off it, with its calls.
    pub(super) fn place(&self, side: Option<usize>) {
        let flags = side.map_or(ASIDE, |side| if side == 1 { SIDE } else { 0 });
        let mut calls = self.calls.load(Relaxed);
        // The new side is told of the calls first. When their number changes meanwhile, once more.
        loop {
            let number = calls & CALLS;
            if let Some(side) = side {
                self.lineage.calls[side].0.fetch_add(number, Relaxed);
            }
            let placed = self.calls.compare_exchange(calls, number | flags, Relaxed, Relaxed);
            let undo = match placed {
                Ok(before) => counted(before),
                Err(_) => side,
            };
            if let Some(side) = undo {
                self.lineage.calls[side].0.fetch_sub(number, Relaxed);
            }
            match placed {
                Ok(_) => return,
                Err(now) => calls = now,
            }
        }
    }

    // ---- latency ----

    fn record(&self, outcome: Outcome, latency: u64, now: u64) {
        let decay = self.lineage.decay.load(Relaxed);
        let failed = outcome == Outcome::Failure;
        let noted = |word: u64| Some(note(word, latency as f32, now, decay, failed));
        // The closure always gives a value, so this cannot fail.
        let _ = self.latency.fetch_update(Relaxed, Relaxed, noted);
        if !failed {
            self.successes.fetch_add(1, Relaxed);
            if self.streak.load(Relaxed) != 0 {
                self.streak.store(0, Relaxed);
            }
            return;
        }
        self.failures.fetch_add(1, Relaxed);
        let streak = self.streak.fetch_add(1, Relaxed).saturating_add(1);
        let most = self.lineage.streak.load(Relaxed);
        if most > 0 && streak >= most {
            let mut ward = self.lineage.ward();
            self.eject(&mut ward, now);
        }
    }

    /// The latency in ns, faded by the time since it was noted; None when there is none.
    pub(super) fn latency(&self, now: u64) -> Option<f32> {
        let word = self.latency.load(Relaxed);
        (word != 0).then(|| faded(word, now, self.lineage.decay.load(Relaxed)))
    }

    /// What one more call would have to wait for, as Finagle's `PeakEwma` weighs it: the latency for each
    /// call under way and itself. An endpoint whose latency is not known gets a call, and no second one
    /// before it has answered, unless the others are worse than that.
    #[inline]
    pub(super) fn cost(&self, now: u64) -> f32 {
        let calls = self.in_flight();
        match self.latency(now) {
            Some(latency) => latency * (calls + 1) as f32,
            None if calls == 0 => 0.0,
            None => limits::BALANCE_UNKNOWN_LATENCY.as_nanos() as f32 * (calls + 1) as f32,
        }
    }

    // ---- slow start ----

    /// Begins the slow start, if there is one.
    pub(super) fn warm_up(&self, now: u64) {
        let window = self.lineage.slow_start.load(Relaxed);
        if window > 0 {
            self.since.store(now.max(1), Relaxed);
            self.lineage.warm_until.fetch_max(now.saturating_add(window), Relaxed);
        }
    }

    /// The share of its weight that it takes, of 2^32. As Envoy's slow start with aggression 1: in
    /// proportion to the time.
    #[inline]
    pub(super) fn warmth(&self, now: u64) -> u64 {
        const FULL: u64 = 1 << 32;
        let since = self.since.load(Relaxed);
        if since == 0 {
            return FULL;
        }
        let window = self.lineage.slow_start.load(Relaxed);
        let passed = now.saturating_sub(since);
        if passed >= window {
            return FULL;
        }
        let share = ((u128::from(passed) << 32) / u128::from(window)) as u64;
        share.max(FULL * limits::BALANCE_SLOW_START_PERCENT / 100)
    }

    // ---- ejection ----

    #[inline]
    pub(super) fn is_ejected(&self) -> bool {
        self.ejected_at.load(Relaxed) != 0
    }

    /// Says what an ejection would take away, under the lock; the caller has set the sides back to 0
    /// before it says so of all endpoints.
    pub(super) fn stand(&self, ward: &mut Ward, side: Option<usize>, weight: u32, healthy: bool) {
        let Some(side) = side else {
            self.standing.store(0, Relaxed);
            self.ejected_at.store(0, Relaxed);
            self.multiplier.store(0, Relaxed);
            return;
        };
        let standing = if healthy { u64::from(weight) << 1 | 1 } else { 0 };
        self.standing.store(standing, Relaxed);
        if self.is_ejected() {
            ward.ejected += 1;
            self.count_ejected(side, 1);
        }
    }

    /// Ejects the endpoint if that is still allowed.
    pub(super) fn eject(&self, ward: &mut Ward, now: u64) -> bool {
        let Some(side) = counted(self.calls.load(Relaxed)) else { return false };
        if self.is_ejected() || ward.ejected >= ward.allowed() {
            return false;
        }
        ward.ejected += 1;
        self.multiplier.fetch_add(1, Relaxed);
        self.streak.store(0, Relaxed);
        self.count_ejected(side, 1);
        self.ejected_at.store(now.saturating_add(1), Relaxed);
        true
    }

    pub(super) fn restore(&self, ward: &mut Ward, now: u64) {
        let Some(side) = counted(self.calls.load(Relaxed)) else { return };
        ward.ejected -= 1;
        self.warm_up(now);
        self.streak.store(0, Relaxed);
        self.ejected_at.store(0, Relaxed);
        self.count_ejected(side, -1);
    }

    fn count_ejected(&self, side: usize, by: i32) {
        let standing = self.standing.load(Relaxed);
        if standing & 1 == 1 {
            let side = &self.lineage.sides[side];
            side.ejected.fetch_add(by as u32, Relaxed);
            side.ejected_weight.fetch_add((i64::from(by) * (standing >> 1) as i64) as u64, Relaxed);
        }
    }

    /// Forgets that it was ejected: the policy ejects nobody any more.
    pub(super) fn pardon(&self) {
        self.ejected_at.store(0, Relaxed);
        self.multiplier.store(0, Relaxed);
    }

    /// One step of the sweep for an endpoint that was not ejected in it: the time is served, or the past
    /// forgotten bit by bit. True when it returns.
    pub(super) fn serve(&self, ward: &mut Ward, now: u64) -> bool {
        let multiplier = self.multiplier.load(Relaxed);
        if !self.is_ejected() {
            self.multiplier.store(multiplier.saturating_sub(1), Relaxed);
            return false;
        }
        let base = nanos(ward.settings.base);
        let most = nanos(ward.settings.max).max(base);
        let until = self.ejected_at.load(Relaxed) - 1;
        let until = until.saturating_add(base.saturating_mul(u64::from(multiplier)).min(most));
        if now <= until {
            return false;
        }
        self.restore(ward, now);
        true
    }

    /// Successes and failures since the last time.
    pub(super) fn take_counts(&self) -> (u32, u32) {
        (self.successes.swap(0, Relaxed), self.failures.swap(0, Relaxed))
    }
}

/// On which side calls of this endpoint count.
#[inline]
fn counted(calls: u64) -> Option<usize> {
    (calls & ASIDE == 0).then_some(usize::from(calls & SIDE != 0))
}

/// About a millisecond; 32 bits of them are 52 days, after which what is old may look newer than it is.
const fn tick(now: u64) -> u32 {
    (now >> 20) as u32
}

fn faded(word: u64, now: u64, decay: u64) -> f32 {
    let latency = f32::from_bits((word >> 32) as u32);
    let ticks = tick(now).wrapping_sub(word as u32);
    // A clock that another thread read a moment earlier gives a little less than 0.
    if ticks == 0 || ticks > u32::MAX / 2 {
        return latency;
    }
    latency * (-(f64::from(ticks) * f64::from(1 << 20) / decay as f64) as f32).exp()
}

/// A latency beside those before it: a peak counts at once and fades; what is lower pulls it down by the
/// time that has passed (Finagle). A failure may be fast and proves nothing: it never lowers it, and where nothing is known it counts as slow.
fn note(word: u64, latency: f32, now: u64, decay: u64, failed: bool) -> u64 {
    let latency = latency.max(1.0);
    let noted = if word == 0 {
        if failed {
            latency.max(limits::BALANCE_UNKNOWN_LATENCY.as_nanos() as f32)
        } else {
            latency
        }
    } else {
        let before = f32::from_bits((word >> 32) as u32);
        let old = faded(word, now, decay);
        if latency >= before {
            latency
        } else if failed {
            before
        } else {
            old + latency * (1.0 - old / before)
        }
    };
    u64::from(noted.to_bits()) << 32 | u64::from(tick(now))
}
