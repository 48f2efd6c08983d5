//! Wall-clock time, as a value: the only place that asks the system for it. Monotonic time comes from
//! [`crate::runtime::Instant`], which the simulation controls.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::limits::CLOCK_SLEW_PERCENT;
use crate::runtime::Instant;

/// Milliseconds since the Unix epoch. May jump in either direction; the state only ever takes the
/// greatest value it has seen.
pub trait Clock: Send + Sync + Debug + 'static {
    fn wall_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)] // This is the one place.
    fn wall_ms(&self) -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// A time that goes on by itself from the latest one that it was told, by the monotonic clock and a little slower
/// than that. What a wall clock told in error so passes without a standstill: time goes on, and the lead that it has is
/// lost again.
#[derive(Debug, Clone, Copy)]
pub struct Slew {
    told_ms: u64,
    since: Instant,
}

impl Slew {
    pub fn new(told_ms: u64, now: Instant) -> Self {
        Slew { told_ms, since: now }
    }

    /// Never takes it back, and nothing moves when it is there already: whoever is told its own readings again
    /// goes on at the same pace, whatever of them was rounded off.
    pub fn tell(&mut self, ms: u64, now: Instant) {
        if ms > self.at(now) {
            *self = Slew::new(ms, now);
        }
    }

    pub fn at(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.since).as_millis();
        let slewed = elapsed.saturating_mul(CLOCK_SLEW_PERCENT) / 100;
        self.told_ms.saturating_add(u64::try_from(slewed).unwrap_or(u64::MAX))
    }
}

/// The clock that a process goes by.
pub fn of_process() -> Arc<dyn Clock> {
    #[cfg(feature = "failpoints")]
    if let Some(file) = std::env::var_os("QUORATE_FAULT_CLOCK") {
        return Arc::new(moved::MovedClock::follow(file.into()));
    }
    Arc::new(SystemClock)
}

#[cfg(feature = "failpoints")]
mod moved {
    use std::path::{Path, PathBuf};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use super::{Clock, SystemClock};

    /// How often the file is looked at.
    const LOOK: Duration = Duration::from_millis(20);

    /// The machine's clock, moved by as many milliseconds as a file says.
    #[derive(Debug)]
    pub struct MovedClock(Arc<AtomicI64>);

    impl MovedClock {
        #[allow(clippy::disallowed_methods)] // It has to see the file also while the node's own tasks rest.
        pub fn follow(file: PathBuf) -> MovedClock {
            let moved = Arc::new(AtomicI64::new(read(&file).unwrap_or(0)));
            let followed = Arc::downgrade(&moved);
            std::thread::spawn(move || {
                while let Some(moved) = followed.upgrade() {
                    if let Some(ms) = read(&file)
                        && moved.swap(ms, Ordering::Relaxed) != ms
                    {
                        tracing::warn!("the wall clock is moved by {ms} ms");
                    }
                    drop(moved);
                    std::thread::sleep(LOOK);
                }
            });
            MovedClock(moved)
        }
    }

    /// None = it says nothing that can be understood, so the clock stays as it is.
    fn read(file: &Path) -> Option<i64> {
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    impl Clock for MovedClock {
        fn wall_ms(&self) -> u64 {
            SystemClock.wall_ms().saturating_add_signed(self.0.load(Ordering::Relaxed))
        }
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used, clippy::disallowed_methods)]

        use std::time::Instant;

        use super::*;

        #[test]
        fn the_file_moves_the_clock() {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("clock");
            let clock = MovedClock::follow(file.clone());
            let moves_to = |ms: i64| {
                let give_up = Instant::now() + Duration::from_secs(20);
                while clock.wall_ms().abs_diff(SystemClock.wall_ms().saturating_add_signed(ms))
                    > 5_000
                {
                    assert!(Instant::now() < give_up, "the clock is not moved by {ms} ms");
                    std::thread::sleep(LOOK);
                }
            };
            moves_to(0);
            for ms in [3_600_000, -3_600_000] {
                std::fs::write(&file, ms.to_string()).unwrap();
                moves_to(ms);
            }
            std::fs::write(&file, "later").unwrap();
            std::thread::sleep(3 * LOOK);
            moves_to(-3_600_000);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_lead_is_lost_without_a_standstill() {
        let start = Instant::now();
        let mut slew = Slew::new(5_000, start);
        // Told late, as whatever was told by another one.
        slew.tell(4_000, start + 10 * MS);
        assert_eq!(slew.at(start + 10 * MS), 5_009);
        slew.tell(7_000, start + 20 * MS);
        assert_eq!(slew.at(start + 20 * MS), 7_000);
        assert_eq!(slew.at(start + 1_020 * MS), 7_900);
        // An instant of before.
        assert_eq!(slew.at(start), 7_000);
    }

    /// Readings come back as stamps, some of them late: neither that nor the rounding slows it down.
    #[test]
    fn its_own_readings_do_not_slow_it_down() {
        let start = Instant::now();
        let mut slew = Slew::new(0, start);
        for ms in 1..=1_000_u32 {
            let now = start + ms * MS;
            let stamp = slew.at(start + ms.saturating_sub(7) * MS);
            slew.tell(stamp, now);
            assert_eq!(slew.at(now), u64::from(ms) * 9 / 10);
        }
    }

    #[test]
    fn the_greatest_times_are_no_overflow() {
        let start = Instant::now();
        let mut slew = Slew::new(0, start);
        slew.tell(u64::MAX, start);
        assert_eq!(slew.at(start + 5_000 * MS), u64::MAX);
    }
}
