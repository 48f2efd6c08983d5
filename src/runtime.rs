//! The one way by which everything from the node down spawns tasks, waits and draws random numbers.
//!
//! In production this is tokio and nothing else. In a simulation each node runs inside a [`Scope`]:
//! every task it spawns belongs to the scope, so that killing the scope drops them all, as `kill -9`
//! would, and its random numbers come from the run's seed. Time is tokio's, which a simulation pauses.

#![allow(clippy::disallowed_methods)] // What is banned elsewhere is done here.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::{StdRng, ThreadRng};
use rand::{Rng, SeedableRng, TryRng};
use tokio::task::AbortHandle;
pub use tokio::task::JoinHandle;
/// Monotonic time.
pub use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

tokio::task_local! {
    static SCOPE: Scope;
}

/// The tasks and the random source of one simulated node.
#[derive(Debug, Clone)]
pub struct Scope(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: Mutex<ScopeState>,
}

#[derive(Debug)]
struct ScopeState {
    dead: bool,
    paused: bool,
    /// Tasks that wanted to run while the scope was paused, in that order.
    held: Vec<Waker>,
    tasks: Vec<AbortHandle>,
    random: StdRng,
}

impl Scope {
    pub fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed);
        let state =
            ScopeState { dead: false, paused: false, held: Vec::new(), tasks: Vec::new(), random };
        Scope(Arc::new(Inner { state: Mutex::new(state) }))
    }

    /// Runs a future inside the scope; what it spawns belongs to the scope too.
    pub async fn run<F: Future>(&self, future: F) -> F::Output {
        SCOPE.scope(self.clone(), future).await
    }

    /// Spawns a future inside the scope.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let gate = Gate { scope: self.clone(), future: Box::pin(future) };
        let handle = tokio::spawn(SCOPE.scope(self.clone(), gate));
        self.adopt(handle.abort_handle());
        handle
    }

    /// Lets no task of the scope run until [`Scope::resume`], while time goes on: SIGSTOP.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Ends a pause: SIGCONT.
    pub fn resume(&self) {
        let held = {
            let mut state = self.lock();
            state.paused = false;
            std::mem::take(&mut state.held)
        };
        for task in held {
            task.wake();
        }
    }

    /// Drops every task of the scope at its next turn, and refuses new ones.
    pub fn kill(&self) {
        let tasks = {
            let mut state = self.lock();
            state.dead = true;
            std::mem::take(&mut state.tasks)
        };
        for task in tasks {
            task.abort();
        }
    }

    fn adopt(&self, task: AbortHandle) {
        let mut state = self.lock();
        if state.dead {
            task.abort();
            return;
        }
        // Finished tasks are swept now and then, so that a long run does not collect them.
        if state.tasks.len() == state.tasks.capacity() {
            state.tasks.retain(|task| !task.is_finished());
        }
        state.tasks.push(task);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ScopeState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds a task back while its scope is paused.
struct Gate<F> {
    scope: Scope,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Gate<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = self.scope.lock();
            if state.paused {
                state.held.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.future.as_mut().poll(context)
    }
}

/// Spawns a task. A bare `tokio::spawn` would escape the kill of a simulated node.
pub fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match SCOPE.try_with(Clone::clone) {
        Ok(scope) => scope.spawn(future),
        Err(_) => tokio::spawn(future),
    }
}

/// Runs work that blocks on a disk: on a thread of its own in production, in place in a simulation.
pub async fn blocking<T, F>(work: F) -> T
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    if SCOPE.try_with(|_| ()).is_ok() {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Runs a future to its end on a runtime that ends with it. A thread that is blocked by then, by a disk
/// that does not answer for instance, is waited for no longer than `linger`: dropping the runtime
/// would wait for ever.
pub fn run_to_end<F: Future>(
    runtime: tokio::runtime::Runtime,
    future: F,
    linger: Duration,
) -> F::Output {
    let output = runtime.block_on(future);
    runtime.shutdown_timeout(linger);
    output
}

/// Lets every other runnable task run once.
pub async fn yield_now() {
    tokio::task::yield_now().await;
}

/// A random duration below `limit`.
pub fn jitter(limit: Duration) -> Duration {
    let nanos = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX).max(1);
    Duration::from_nanos(random().next_u64() % nanos)
}

/// The random source of the current task.
pub fn random() -> Random {
    match SCOPE.try_with(Clone::clone) {
        Ok(scope) => Random::Seeded(scope),
        Err(_) => Random::Thread(rand::rng()),
    }
}

/// See [`random`].
#[derive(Debug)]
pub enum Random {
    Thread(ThreadRng),
    Seeded(Scope),
}

impl TryRng for Random {
    type Error = std::convert::Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Self::Error> {
        Ok(match self {
            Random::Thread(random) => random.next_u32(),
            Random::Seeded(scope) => scope.lock().random.next_u32(),
        })
    }

    fn try_next_u64(&mut self) -> Result<u64, Self::Error> {
        Ok(match self {
            Random::Thread(random) => random.next_u64(),
            Random::Seeded(scope) => scope.lock().random.next_u64(),
        })
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Self::Error> {
        match self {
            Random::Thread(random) => random.fill_bytes(bytes),
            Random::Seeded(scope) => scope.lock().random.fill_bytes(bytes),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_blocked_thread_does_not_hold_up_the_end() {
        for mut builder in [
            tokio::runtime::Builder::new_current_thread(),
            tokio::runtime::Builder::new_multi_thread(),
        ] {
            let runtime = builder.worker_threads(2).enable_all().build().unwrap();
            // Blocked until this test is over.
            let (_keep, blocked) = mpsc::channel::<()>();
            let begun = std::time::Instant::now();
            let given_up = async {
                let work = blocking(move || blocked.recv());
                timeout(Duration::from_millis(20), work).await.is_err()
            };
            assert!(run_to_end(runtime, given_up, Duration::from_millis(50)));
            assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        }
    }
}
