//! Everything that happens in a run, in order, folded into one hash: the same seed must give the
//! same hash. `QUORATE_SIM_TRACE=<file>` also writes it down, to see where two runs part.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate::runtime::Instant;
use xxhash_rust::xxh3::xxh3_64_with_seed;

#[derive(Debug)]
pub struct Trace {
    start: Instant,
    events: Arc<AtomicU64>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    hash: u64,
    line: String,
    file: Option<BufWriter<File>>,
}

impl Trace {
    /// Begins at the present virtual time, and counts the events for others to see.
    pub fn new(file: Option<File>, events: Arc<AtomicU64>) -> Trace {
        let file = file.map(BufWriter::new);
        let inner = Inner { hash: 0, line: String::new(), file };
        Trace { start: Instant::now(), events, inner: Mutex::new(inner) }
    }

    /// Virtual time since the beginning.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    pub fn event(&self, what: fmt::Arguments<'_>) {
        let at = self.now();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { hash, line, file } = &mut *inner;
        line.clear();
        writeln!(line, "{:>6}.{:03} {what}", at.as_secs(), at.subsec_millis())
            .expect("a string takes everything");
        *hash = xxh3_64_with_seed(line.as_bytes(), *hash);
        self.events.fetch_add(1, Ordering::Relaxed);
        if let Some(file) = file {
            file.write_all(line.as_bytes()).expect("the trace file can be written");
        }
    }

    /// The hash of all events so far, and how many they are.
    pub fn result(&self) -> (u64, u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &mut inner.file {
            file.flush().expect("the trace file can be written");
        }
        (inner.hash, self.events.load(Ordering::Relaxed))
    }
}

/// `trace!(world, "format", arguments)`
macro_rules! trace {
    ($world:expr, $($argument:tt)*) => {
        $world.trace.event(format_args!($($argument)*))
    };
}
pub(crate) use trace;
