//! Many callers, one round trip: callers that wait at the same time share one round. Used for read
//! indexes and keep-alives. A round starts as soon as a permit is free, so a lone caller never waits
//! for others, and under load rounds grow by themselves.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, Semaphore, oneshot};

use crate::error::Error;
use crate::runtime;

/// Rounds under way at once.
const ROUNDS: usize = 4;

type Waiting<T, R> = Vec<(T, oneshot::Sender<Result<R, Error>>)>;

#[derive(Debug)]
pub struct Batcher<T, R> {
    shared: Arc<Shared<T, R>>,
}

#[derive(Debug)]
struct Shared<T, R> {
    name: &'static str,
    limit: usize,
    waiting: Mutex<Waiting<T, R>>,
    wake: Notify,
}

impl<T, R> Shared<T, R> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<T, R>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// At most `limit` callers wait; one more is refused as overloaded.
    pub fn new(name: &'static str, limit: usize) -> Self {
        let shared = Shared { name, limit, waiting: Mutex::new(Vec::new()), wake: Notify::new() };
        Batcher { shared: Arc::new(shared) }
    }

    /// Waits for the round that this call joins. No deadline of its own: the caller has one.
    pub async fn call(&self, item: T) -> Result<R, Error> {
        let (tx, rx) = oneshot::channel();
        {
            let mut waiting = self.shared.waiting();
            if waiting.len() >= self.shared.limit {
                return Err(Error::Overloaded {
                    queue: self.shared.name.to_owned(),
                    limit: self.shared.limit as u64,
                });
            }
            waiting.push((item, tx));
        }
        self.shared.wake.notify_one();
        rx.await.unwrap_or(Err(Error::ShuttingDown { definite: true }))
    }

    /// Runs rounds until the node is dropped. `round` gets the items and answers each, in order.
    pub async fn run<F, Fut>(&self, round: F)
    where
        F: Fn(Vec<T>) -> Fut,
        Fut: Future<Output = Vec<Result<R, Error>>> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(ROUNDS));
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            while self.shared.waiting().is_empty() {
                self.shared.wake.notified().await;
            }
            // Let callers that are runnable now join this round.
            runtime::yield_now().await;
            let waiting = std::mem::take(&mut *self.shared.waiting());
            let (items, answers): (Vec<T>, Vec<_>) = waiting.into_iter().unzip();
            let round = round(items);
            runtime::spawn(async move {
                let results = round.await;
                drop(permit);
                for (answer, result) in answers.into_iter().zip(results) {
                    // The caller may have given up.
                    let _ = answer.send(result);
                }
            });
        }
    }
}
