//! Many callers, one round trip: callers that wait at the same time share one round. Used for read
//! indexes and keep-alives. A round starts as soon as a permit is free, so a lone caller never waits
//! for others, and under load rounds grow by themselves; rounds that may be late keep a distance besides.

use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, oneshot};

use crate::error::Error;
use crate::runtime::{self, Instant};

/// Rounds under way at once.
const ROUNDS: usize = 4;

type Joined<R> = oneshot::Receiver<Result<R, Error>>;
type Waiting<T, R> = Vec<(T, oneshot::Sender<Result<R, Error>>)>;

#[derive(Debug)]
pub struct Batcher<T, R> {
    shared: Arc<Shared<T, R>>,
}

#[derive(Debug)]
struct Shared<T, R> {
    name: &'static str,
    limit: usize,
    /// From the start of a round to that of the next one, at least.
    distance: Duration,
    waiting: Mutex<Waiting<T, R>>,
    wake: Notify,
}

impl<T, R> Shared<T, R> {
    fn waiting(&self) -> MutexGuard<'_, Waiting<T, R>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, waiting: &mut Waiting<T, R>, item: T) -> Result<Joined<R>, Error> {
        if waiting.len() >= self.limit {
            let (queue, limit) = (self.name.to_owned(), self.limit as u64);
            return Err(Error::Overloaded { queue, limit });
        }
        let (answer, joined) = oneshot::channel();
        waiting.push((item, answer));
        Ok(joined)
    }
}

async fn outcome<R>(joined: Joined<R>) -> Result<R, Error> {
    joined.await.unwrap_or(Err(Error::ShuttingDown { definite: true }))
}

impl<T: Send + 'static, R: Send + 'static> Batcher<T, R> {
    /// At most `limit` callers wait; one more is refused as overloaded.
    pub fn new(name: &'static str, limit: usize) -> Self {
        Batcher::spaced(name, limit, Duration::ZERO)
    }

    /// As [`Batcher::new`]; a round starts no earlier than `distance` after the one before.
    pub fn spaced(name: &'static str, limit: usize, distance: Duration) -> Self {
        let (waiting, wake) = (Mutex::new(Vec::new()), Notify::new());
        Batcher { shared: Arc::new(Shared { name, limit, distance, waiting, wake }) }
    }

    /// Waits for the round that this call joins. No deadline of its own: the caller has one.
    pub async fn call(&self, item: T) -> Result<R, Error> {
        let joined = self.shared.join(&mut self.shared.waiting(), item)?;
        self.shared.wake.notify_one();
        outcome(joined).await
    }

    /// As [`Batcher::call`], for several; answers in their order.
    pub async fn call_all(&self, items: Vec<T>) -> Vec<Result<R, Error>> {
        let joined: Vec<_> = {
            let mut waiting = self.shared.waiting();
            items.into_iter().map(|item| self.shared.join(&mut waiting, item)).collect()
        };
        self.shared.wake.notify_one();
        let mut outcomes = Vec::with_capacity(joined.len());
        for joined in joined {
            outcomes.push(match joined {
                Ok(joined) => outcome(joined).await,
                Err(error) => Err(error),
            });
        }
        outcomes
    }

    /// Runs rounds until the node is dropped. `round` gets the items and answers each, in order.
    pub async fn run<F, Fut>(&self, round: F)
    where
        F: Fn(Vec<T>) -> Fut,
        Fut: Future<Output = Vec<Result<R, Error>>> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(ROUNDS));
        let mut next = Instant::now();
        loop {
            let Ok(permit) = permits.clone().acquire_owned().await else { return };
            while self.shared.waiting().is_empty() {
                self.shared.wake.notified().await;
            }
            if !self.shared.distance.is_zero() {
                runtime::sleep_until(next).await;
                next = Instant::now() + self.shared.distance;
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Calls made so many ms after the beginning, and in which round each was answered, and when.
    async fn answered(distance: u64, calls: &[u64]) -> Vec<(usize, u64)> {
        let distance = Duration::from_millis(distance);
        let batcher = Arc::new(Batcher::<(), usize>::spaced("tests", 100, distance));
        let rounds = Arc::new(Mutex::new(0));
        let driver = batcher.clone();
        runtime::spawn(async move {
            let round = |items: Vec<()>| {
                *rounds.lock().unwrap() += 1;
                std::future::ready(vec![Ok(*rounds.lock().unwrap()); items.len()])
            };
            driver.run(round).await;
        });
        let begun = Instant::now();
        let calls = calls.iter().map(|at| async {
            runtime::sleep_until(begun + Duration::from_millis(*at)).await;
            let round = batcher.call(()).await.unwrap();
            (round, u64::try_from((Instant::now() - begun).as_millis()).unwrap())
        });
        futures::future::join_all(calls).await
    }

    /// Those beyond the limit are refused, the others answered, each with its own outcome.
    #[tokio::test(start_paused = true)]
    async fn several_join_a_round_as_far_as_there_is_room() {
        let batcher = Arc::new(Batcher::<u64, u64>::new("tests", 3));
        let driver = batcher.clone();
        runtime::spawn(async move {
            let round = |items: Vec<u64>| {
                let answer = |item: &u64| match item % 2 {
                    0 => Ok(item * 10),
                    _ => Err(Error::SessionExpired { session: *item }),
                };
                std::future::ready(items.iter().map(answer).collect())
            };
            driver.run(round).await;
        });
        let full = || Err(Error::Overloaded { queue: "tests".to_owned(), limit: 3 });
        let expired = Err(Error::SessionExpired { session: 3 });
        let answers = batcher.call_all(vec![2, 3, 4, 5, 6]).await;
        assert_eq!(answers, [Ok(20), expired, Ok(40), full(), full()]);
        assert_eq!(batcher.call_all(Vec::new()).await, []);
    }

    #[tokio::test(start_paused = true)]
    async fn rounds_keep_their_distance_and_a_lone_caller_does_not_wait() {
        let found = answered(10, &[5, 6, 14, 16, 50, 50]).await;
        assert_eq!(found, [(1, 5), (2, 15), (2, 15), (3, 25), (4, 50), (4, 50)]);
        let found = answered(0, &[5, 6, 14]).await;
        assert_eq!(found, [(1, 5), (2, 6), (3, 14)]);
    }
}
