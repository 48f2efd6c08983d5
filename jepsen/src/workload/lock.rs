//! Locks with fencing tokens, and a store outside the cluster that they protect. Now and then a holder falls
//! silent until its session must be gone, and then writes as if it still held the lock.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::sleep;

use super::{
    Boxed, Client, Invocation, Ways, Workload, int, not_written, ok, pair, parts, session,
};
use crate::check::leases::EXPIRED;
use crate::check::{lock, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const LOCKS: usize = 2;
const TTL_MS: u64 = 2_000;
/// Things that a holder does before it releases.
const WORK: std::ops::RangeInclusive<u64> = 1..=6;

#[derive(Debug, Default)]
pub struct Locks {
    store: Arc<Store>,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![lock::check(history, TTL_MS as i64 * 1_000_000)?, replay::order(history)?])
}

/// What the locks protect: it takes a write unless it has seen a greater token.
#[derive(Debug, Default)]
struct Store {
    /// By lock: the greatest token, and how many writes there were.
    seen: Mutex<BTreeMap<i64, (i64, i64)>>,
}

impl Store {
    /// The number of the write; None: it was turned away.
    fn write(&self, lock: i64, token: i64) -> Option<i64> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let (greatest, writes) = seen.entry(lock).or_default();
        if token < *greatest {
            return None;
        }
        (*greatest, *writes) = (token, *writes + 1);
        Some(*writes)
    }
}

impl Workload for Locks {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, _: usize, random: Random) -> Box<dyn Client> {
        Box::new(One { store: self.store.clone(), random, session: None, held: None })
    }
}

#[derive(Debug, Clone, Copy)]
struct Held {
    lock: i64,
    token: i64,
    /// What is left to do.
    work: u64,
}

struct One {
    store: Arc<Store>,
    random: Random,
    session: Option<i64>,
    held: Option<Held>,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let Some(session) = self.session else { return Some(Invocation::new("open", Value::Nil)) };
        let session = Value::Int(session);
        if self.random.chance(30) {
            return Some(Invocation::new("beat", Value::Vector(vec![session])));
        }
        let Some(held) = &mut self.held else {
            let lock = int(self.random.below(LOCKS));
            return Some(Invocation::new("acquire", pair(session, lock)));
        };
        let lock = Value::Int(held.lock);
        if held.work == 0 {
            self.held = None;
            return Some(Invocation::new("release", pair(session, lock)));
        }
        held.work -= 1;
        if self.random.chance(5) {
            return Some(Invocation::new("doze", Value::Nil));
        }
        Some(Invocation::new("guarded", Value::Vector(vec![session, lock, Value::Int(held.token)])))
    }

    fn last(&mut self) -> Option<Invocation> {
        None
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let way = ways.home();
            match what.f {
                "open" => {
                    let (outcome, session) = session::open(way, TTL_MS).await;
                    (self.session, self.held) = (session, None);
                    outcome
                }
                "beat" => {
                    let [session] = numbers(&what.value);
                    let outcome = session::beat(way, session).await;
                    if session::is_expired(&outcome) {
                        // It does not let go of the lock at once: that is what the token is for.
                        self.session = self.held.map(|_| session);
                        self.held = self.held.filter(|held| held.work > 0);
                        if self.held.is_none() {
                            self.session = None;
                        }
                    }
                    outcome
                }
                "doze" => {
                    sleep(Duration::from_millis(2 * TTL_MS)).await;
                    Outcome::Ok { value: Value::Nil, at: None }
                }
                "acquire" => self.acquire(way, what).await,
                "release" => self.release(way, what).await,
                _ => self.guarded(what),
            }
        })
    }
}

fn numbers<const N: usize>(value: &Value) -> [i64; N] {
    let all: &[Value; N] = parts(value);
    all.each_ref().map(|part| match part {
        Value::Int(number) => *number,
        other => panic!("{other} is no number"),
    })
}

impl One {
    async fn acquire(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [session, lock] = numbers(&what.value);
        let request = v1::AcquireLockRequest {
            lock: format!("l-{lock}"),
            session: session as u64,
            ..Default::default()
        };
        match way.acquire_lock(request).await {
            Ok(answer) => {
                let token = answer.token as i64;
                self.held = Some(Held { lock, token, work: self.random.between(WORK) });
                let value = [session, lock, token].map(Value::Int).to_vec();
                // Who asks again for what it has changes nothing.
                let at = answer.header.as_ref().map(|header| header.revision);
                ok(Value::Vector(value), answer.header, at == Some(answer.token))
            }
            Err(Error::SessionExpired { .. }) => {
                self.session = None;
                Outcome::Fail(EXPIRED.to_owned())
            }
            Err(error) => {
                let outcome = not_written(&error);
                if matches!(outcome, Outcome::Info(_)) {
                    // It may hold the lock without knowing: its session is left to expire.
                    self.session = None;
                }
                outcome
            }
        }
    }

    async fn release(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [session, lock] = numbers(&what.value);
        let request = v1::ReleaseLockRequest {
            lock: format!("l-{lock}"),
            session: session as u64,
            ..Default::default()
        };
        match way.release_lock(request).await {
            Ok(answer) => ok(what.value.clone(), answer.header, answer.released),
            Err(Error::SessionExpired { .. }) => {
                self.session = None;
                Outcome::Fail(EXPIRED.to_owned())
            }
            Err(error) => {
                // A late copy could release what is acquired next: that is for another session.
                self.session = None;
                not_written(&error)
            }
        }
    }

    /// A write under the lock, as by somebody who does not look whether it still holds it.
    fn guarded(&mut self, what: &Invocation) -> Outcome {
        let [session, lock, token] = numbers(&what.value);
        match self.store.write(lock, token) {
            Some(number) => {
                let value = [session, lock, token, number].map(Value::Int).to_vec();
                Outcome::Ok { value: Value::Vector(value), at: None }
            }
            None => {
                (self.session, self.held) = (None, None);
                Outcome::Fail("a greater token was seen".to_owned())
            }
        }
    }
}
