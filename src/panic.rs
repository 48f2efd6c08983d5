//! What a panic does: it is logged and the process aborts, because a node whose invariant does not
//! hold must not go on answering. The one exception is a thread inside [`guarded`]: foreign code
//! whose panics are an expected way of failing (sled opening damaged files).

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::Cell;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};

thread_local! {
    /// How many [`guarded`] calls this thread is inside of.
    static GUARDS: Cell<u32> = const { Cell::new(0) };
}

/// Runs `work` and returns the message of its panic as an error. Whatever `work` was changing must
/// not be used after an error.
pub fn guarded<R>(work: impl FnOnce() -> R) -> Result<R, String> {
    GUARDS.set(GUARDS.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDS.set(GUARDS.get() - 1);
    result.map_err(|payload| message(payload.as_ref()).to_owned())
}

/// True while the calling thread is inside [`guarded`].
pub fn is_guarded() -> bool {
    GUARDS.get() > 0
}

/// From now on a panic outside of [`guarded`] aborts the process. Called once, by `main`.
pub fn install_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        if is_guarded() {
            tracing::warn!(panic = message(info.payload()), at = location(info), "guarded panic");
            return;
        }
        let backtrace = Backtrace::force_capture();
        if tracing::dispatcher::has_been_set() {
            tracing::error!(
                panic = message(info.payload()),
                at = location(info),
                %backtrace,
                "panic; the process aborts"
            );
        } else {
            let thread = std::thread::current();
            // A closed standard error must not keep the process from ending.
            let _ = writeln!(
                std::io::stderr(),
                "error: defect: thread {:?} panicked at {}: {}\n{backtrace}",
                thread.name().unwrap_or("unnamed"),
                location(info),
                message(info.payload())
            );
        }
        std::process::abort();
    }));
}

fn location(info: &PanicHookInfo<'_>) -> String {
    info.location().map(ToString::to_string).unwrap_or_default()
}

fn message(payload: &(dyn Any + Send)) -> &str {
    if let Some(text) = payload.downcast_ref::<&str>() {
        text
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text
    } else {
        "panic without a message"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_panic_is_an_error_and_the_guard_ends_with_it() {
        assert!(!is_guarded());
        let error = guarded(|| {
            assert!(is_guarded());
            let numbers: Vec<u32> = Vec::new();
            assert!(!numbers.is_empty(), "no numbers: {}", numbers.len());
        });
        assert_eq!(error, Err("no numbers: 0".to_owned()));
        assert!(!is_guarded());
        assert_eq!(guarded(|| 7), Ok(7));
    }

    #[test]
    fn guards_nest() {
        let outer = guarded(|| {
            let inner = guarded(|| std::panic::panic_any(5));
            assert_eq!(inner, Err::<(), _>("panic without a message".to_owned()));
            is_guarded()
        });
        assert_eq!(outer, Ok(true));
        assert!(!is_guarded());
    }
}
