//! Failpoints: places at which a process can be told from outside to panic, to wait or to fail, so that faults
//! strike where they hurt. Only with the feature `failpoints`, which no release has; without it the macros below
//! leave nothing behind.
//!
//! The file that `QUORATE_FAILPOINTS` names says what is to happen, and may change at any time. Each line is
//! `POINT ACTION [TIMES]`, with the names of [`Point`] and the actions of [`Action`]; without TIMES it goes on for
//! as long as the line is there. A file that is written anew begins anew.

/// A place that can be hit. It only waits or panics here, or, with a second argument, its function returns what
/// that makes of an `io::Error`. In asynchronous code with `await` before the point.
macro_rules! failpoint {
    (await $point:ident) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::pass($crate::failpoint::Point::$point).await;
    };
    (await $point:ident, $fails:expr) => {
        #[cfg(feature = "failpoints")]
        if let Err(error) = $crate::failpoint::hit($crate::failpoint::Point::$point).await {
            return $fails(error);
        }
    };
    ($point:ident) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoint::block($crate::failpoint::Point::$point);
    };
    ($point:ident, $fails:expr) => {
        #[cfg(feature = "failpoints")]
        if let Err(error) = $crate::failpoint::block_or_fail($crate::failpoint::Point::$point) {
            return $fails(error);
        }
    };
}
pub(crate) use failpoint;

#[cfg(feature = "failpoints")]
pub use switched::{Action, Point, block, block_or_fail, follow, hit, pass};

#[cfg(feature = "failpoints")]
mod switched {
    use std::collections::BTreeMap;
    use std::io;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Mutex, MutexGuard, PoisonError};
    use std::time::Duration;

    use crate::runtime;

    /// How often the file is looked at.
    const LOOK: Duration = Duration::from_millis(20);

    macro_rules! points {
        ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
            /// All places, and what each is for.
            #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
            pub enum Point {
                $($(#[$doc])* $point,)*
            }

            impl Point {
                pub const ALL: &[Point] = &[$(Point::$point,)*];

                /// As the file has it.
                pub fn name(self) -> &'static str {
                    match self {
                        $(Point::$point => $name,)*
                    }
                }
            }
        };
    }

    points! {
        /// What was appended is written and not synced: nobody was told. Fails as a sync does.
        LogBeforeSync = "log-before-sync",
        /// It is synced, and nobody was told yet.
        LogAfterSync = "log-after-sync",
        /// The log is about to forget what a snapshot covers. Fails as a write does.
        LogPurge = "log-purge",
        /// The image lags behind what was applied. Fails as the image does.
        CheckpointBeforeWrite = "checkpoint-before-write",
        /// The image is written, and what it was written from is not forgotten.
        CheckpointAfterWrite = "checkpoint-after-write",
        /// A snapshot is about to be made. Fails as a disk without space does.
        SnapshotCreate = "snapshot-create",
        /// It is whole under another name. Fails as the renaming does.
        SnapshotBeforeRename = "snapshot-before-rename",
        /// It has its name, which is not synced. Fails as that sync does.
        SnapshotAfterRename = "snapshot-after-rename",
        /// A snapshot of the leader has arrived as a whole. Fails as a transfer does.
        SnapshotReceived = "snapshot-received",
        /// It is about to become the state. Fails as the renaming does.
        SnapshotInstall = "snapshot-install",
        /// It is the state, and the image is still the old one.
        SnapshotInstalled = "snapshot-installed",
        /// Committed entries are about to be applied.
        Apply = "apply",
        /// A write is applied, and its client was not told. Fails with an outcome that is not known.
        Answer = "answer",
        /// A global transaction is decided and the call of a participant recorded, but not made. Fails as a
        /// participant that cannot be reached.
        SagaDecided = "saga-decided",
        /// Sessions are overdue, and their expiry is not proposed. Fails by leaving that to the next time.
        Expiry = "expiry",
        /// A member's removal is recorded, and the member still votes. Fails with an outcome that is not known.
        MembershipHalf = "membership-half",
    }

    /// What is to happen at a point.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Action {
        /// `panic`
        Panic,
        /// `sleep(MS)`
        Sleep(Duration),
        /// `error`; nothing where a point cannot fail
        Error,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Armed {
        action: Action,
        /// None: for as long as the file says it.
        times: Option<u32>,
    }

    /// What is armed.
    struct Switches {
        /// Whether anything is: what every point asks first.
        any: AtomicBool,
        points: Mutex<BTreeMap<Point, Armed>>,
    }

    static SWITCHES: Switches = Switches::new();

    impl Switches {
        const fn new() -> Switches {
            Switches { any: AtomicBool::new(false), points: Mutex::new(BTreeMap::new()) }
        }

        fn lock(&self) -> MutexGuard<'_, BTreeMap<Point, Armed>> {
            self.points.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn arm(&self, points: BTreeMap<Point, Armed>) {
            self.any.store(!points.is_empty(), Ordering::Relaxed);
            *self.lock() = points;
        }

        /// What is to happen now. `fails` = the point can.
        fn take(&self, point: Point, fails: bool) -> Option<Action> {
            if !self.any.load(Ordering::Relaxed) {
                return None;
            }
            let mut all = self.lock();
            let found = all.get_mut(&point).filter(|it| fails || it.action != Action::Error)?;
            let action = found.action;
            if let Some(times) = &mut found.times {
                *times = times.checked_sub(1)?;
            }
            drop(all);
            // Whoever armed it looks for this.
            tracing::warn!("failpoint {} is hit: {action:?}", point.name());
            Some(action)
        }
    }

    /// Does from now on what the file says that the environment names, if it names one.
    #[allow(clippy::disallowed_methods)] // It has to see the file also while the node's own tasks rest.
    pub fn follow() {
        let Some(file) = std::env::var_os("QUORATE_FAILPOINTS").map(PathBuf::from) else { return };
        std::thread::spawn(move || {
            let mut last = String::new();
            loop {
                if let Ok(text) = std::fs::read_to_string(&file)
                    && text != last
                {
                    SWITCHES.arm(read(&text));
                    last = text;
                }
                std::thread::sleep(LOOK);
            }
        });
    }

    fn read(text: &str) -> BTreeMap<Point, Armed> {
        let mut points = BTreeMap::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            match parse(line) {
                Some((point, armed)) => {
                    points.insert(point, armed);
                }
                None => tracing::warn!("failpoint {line:?} is not understood"),
            }
        }
        points
    }

    fn parse(line: &str) -> Option<(Point, Armed)> {
        let mut words = line.split_whitespace();
        let (name, action) = (words.next()?, words.next()?);
        let point = Point::ALL.iter().copied().find(|point| point.name() == name)?;
        let action = match action {
            "panic" => Action::Panic,
            "error" => Action::Error,
            action => {
                let ms = action.strip_prefix("sleep(")?.strip_suffix(')')?.parse().ok()?;
                Action::Sleep(Duration::from_millis(ms))
            }
        };
        let times = words.next().map(str::parse).transpose().ok()?;
        words.next().is_none().then_some((point, Armed { action, times }))
    }

    /// What came of an action that does not wait.
    fn end(point: Point, action: Action) -> io::Result<()> {
        match action {
            Action::Panic => panic!("failpoint {}", point.name()),
            Action::Error => Err(io::Error::other(format!("failpoint {}", point.name()))),
            Action::Sleep(_) => Ok(()),
        }
    }

    /// A point in code that blocks and cannot fail.
    pub fn block(point: Point) {
        if let Some(action) = SWITCHES.take(point, false) {
            let _ = wait(point, action);
        }
    }

    /// A point in code that blocks and can fail.
    pub fn block_or_fail(point: Point) -> io::Result<()> {
        SWITCHES.take(point, true).map_or(Ok(()), |action| wait(point, action))
    }

    #[allow(clippy::disallowed_methods)] // A disk that hangs blocks its thread.
    fn wait(point: Point, action: Action) -> io::Result<()> {
        if let Action::Sleep(time) = action {
            std::thread::sleep(time);
        }
        end(point, action)
    }

    /// A point in asynchronous code that cannot fail.
    pub async fn pass(point: Point) {
        if let Some(action) = SWITCHES.take(point, false) {
            let _ = wait_async(point, action).await;
        }
    }

    /// A point in asynchronous code that can fail.
    pub async fn hit(point: Point) -> io::Result<()> {
        match SWITCHES.take(point, true) {
            Some(action) => wait_async(point, action).await,
            None => Ok(()),
        }
    }

    async fn wait_async(point: Point, action: Action) -> io::Result<()> {
        if let Action::Sleep(time) = action {
            runtime::sleep(time).await;
        }
        end(point, action)
    }

    #[cfg(test)]
    mod tests {
        #![allow(clippy::unwrap_used)]

        use super::*;

        #[test]
        fn lines() {
            let once = |action| Armed { action, times: Some(1) };
            for (line, expected) in [
                ("apply panic 1", Some((Point::Apply, once(Action::Panic)))),
                (
                    "expiry error",
                    Some((Point::Expiry, Armed { action: Action::Error, times: None })),
                ),
                (
                    " answer  sleep(250) 1 ",
                    Some((Point::Answer, once(Action::Sleep(Duration::from_millis(250))))),
                ),
                ("apply", None),
                ("apply panic one", None),
                ("apply panic 1 2", None),
                ("apply sleep(x)", None),
                ("applies panic", None),
            ] {
                assert_eq!(parse(line), expected, "{line}");
            }
            let names: std::collections::BTreeSet<_> =
                Point::ALL.iter().map(|point| point.name()).collect();
            assert_eq!(names.len(), Point::ALL.len());
        }

        #[test]
        fn a_point_does_what_it_is_told_so_often() {
            let switches = Switches::new();
            assert_eq!(switches.take(Point::Expiry, true), None);
            switches.arm(read("expiry error 2\nunknown panic\napply sleep(5)"));
            // Where it cannot fail nothing happens, and that does not count.
            assert_eq!(switches.take(Point::Expiry, false), None);
            let expiries: Vec<_> = (0..3).map(|_| switches.take(Point::Expiry, true)).collect();
            assert_eq!(expiries, [Some(Action::Error), Some(Action::Error), None]);
            let sleep = Some(Action::Sleep(Duration::from_millis(5)));
            assert!((0..5).all(|_| switches.take(Point::Apply, false) == sleep));
            assert_eq!(switches.take(Point::Answer, true), None);
            switches.arm(BTreeMap::new());
            assert_eq!(switches.take(Point::Apply, false), None);
            let failed = end(Point::Apply, Action::Error).unwrap_err();
            assert_eq!(failed.to_string(), "failpoint apply");
            assert!(std::panic::catch_unwind(|| end(Point::Apply, Action::Panic)).is_err());
        }
    }
}
