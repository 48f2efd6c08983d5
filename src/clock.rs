//! Wall-clock time, as a value: the only place that asks the system for it. Monotonic time comes from
//! [`crate::runtime::Instant`], which the simulation controls.

use std::fmt::Debug;
use std::time::{SystemTime, UNIX_EPOCH};

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
