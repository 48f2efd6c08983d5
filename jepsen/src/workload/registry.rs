//! The registry: instances that live with sessions. Each client leads one life after the other: it opens a
//! session, registers an instance of its own, keeps the session alive for a while, then deregisters or falls
//! silent. In between it lists who is there.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::sleep;

use super::{
    Boxed, Client, Invocation, Ways, Workload, int, not_read, not_written, ok, pair, parts, session,
};
use crate::check::registry::Terms;
use crate::check::{registry, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const SERVICE: &str = "jepsen";
const TTL_MS: u64 = 2_000;
const GRACE_MS: u64 = 1_000;
/// The leader looks for expired sessions now and then, and the machine may be busy.
const BOUND_MS: u64 = 5_000;
/// Beats of one life.
const BEATS: std::ops::RangeInclusive<u64> = 2..=25;

const TERMS: Terms = Terms {
    ttl: TTL_MS as i64 * 1_000_000,
    grace: GRACE_MS as i64 * 1_000_000,
    bound: BOUND_MS as i64 * 1_000_000,
};

#[derive(Debug, Default)]
pub struct Registry {
    /// Instances so far; each id is used once.
    instances: Arc<AtomicUsize>,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![registry::check(history, TERMS)?, replay::order(history)?])
}

impl Workload for Registry {
    fn prepare<'a>(&'a self, way: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async move {
            let service = v1::Service {
                name: SERVICE.to_owned(),
                deregister_after_ms: Some(GRACE_MS),
                ..Default::default()
            };
            let request = v1::PutServiceRequest { service: Some(service), ..Default::default() };
            way.put_service(request).await.map(|_| ())
        })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        let life = Life::None;
        Box::new(One {
            instances: self.instances.clone(),
            random,
            life,
            last: 0,
            waits: number == 0,
        })
    }
}

#[derive(Debug, Clone, Copy)]
enum Life {
    None,
    /// A session without an instance.
    Open(i64),
    /// The instance is registered, and so many beats are left.
    Registered(i64, usize, u64),
}

struct One {
    instances: Arc<AtomicUsize>,
    random: Random,
    life: Life,
    last: usize,
    /// Waits at the end until everything must be gone.
    waits: bool,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        if self.random.chance(40) {
            return Some(Invocation::new("list", Value::Nil));
        }
        Some(match self.life {
            Life::None => Invocation::new("open", Value::Nil),
            Life::Open(session) => {
                let instance = self.instances.fetch_add(1, Ordering::Relaxed);
                Invocation::new("register", pair(Value::Int(session), int(instance)))
            }
            Life::Registered(session, instance, 0) => {
                self.life = Life::None;
                if self.random.chance(50) {
                    return Some(Invocation::new("list", Value::Nil));
                }
                Invocation::new("deregister", pair(Value::Int(session), int(instance)))
            }
            Life::Registered(session, instance, left) => {
                self.life = Life::Registered(session, instance, left - 1);
                Invocation::new("beat", Value::Vector(vec![Value::Int(session)]))
            }
        })
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        match self.last {
            1 if self.waits => Some(Invocation::new(
                "wait",
                Value::Int((TTL_MS + GRACE_MS + BOUND_MS) as i64 + 500),
            )),
            1..=3 if self.waits => Some(Invocation::new("list", Value::Nil)),
            _ => None,
        }
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let way = ways.home();
            match what.f {
                "wait" => {
                    sleep(Duration::from_millis(TTL_MS + GRACE_MS + BOUND_MS + 500)).await;
                    Outcome::Ok { value: what.value.clone(), at: None }
                }
                "list" => list(way).await,
                "open" => {
                    let (outcome, session) = session::open(way, TTL_MS).await;
                    self.life = session.map_or(Life::None, Life::Open);
                    outcome
                }
                "beat" => {
                    let [Value::Int(session)] = parts(&what.value) else {
                        panic!("{} is no session", what.value);
                    };
                    let outcome = session::beat(way, *session).await;
                    if session::is_expired(&outcome) {
                        self.life = Life::None;
                    }
                    outcome
                }
                "register" => self.register(way, what).await,
                _ => deregister(way, what).await,
            }
        })
    }
}

impl One {
    async fn register(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [Value::Int(session), Value::Int(instance)] = parts(&what.value) else {
            panic!("{} is no registration", what.value);
        };
        let endpoint = v1::Endpoint { host: "127.0.0.1".to_owned(), port: 1, ..Default::default() };
        let record = v1::Instance {
            service: SERVICE.to_owned(),
            id: format!("i-{instance}"),
            endpoints: vec![endpoint],
            session: *session as u64,
            ..Default::default()
        };
        // One of unknown outcome is left to its session: it may take place at any later time.
        self.life = Life::None;
        match way.register(v1::RegisterRequest { instance: Some(record), request_id: None }).await {
            Ok(answer) => {
                let beats = self.random.between(BEATS);
                self.life = Life::Registered(*session, *instance as usize, beats);
                ok(what.value.clone(), answer.header, answer.created)
            }
            // Nothing was sent before under this name.
            Err(Error::SessionExpired { .. }) => {
                Outcome::Fail("the session has expired".to_owned())
            }
            Err(error) => not_written(&error),
        }
    }
}

async fn deregister(way: &Connection, what: &Invocation) -> Outcome {
    let [_, instance] = parts(&what.value);
    let request = v1::DeregisterRequest {
        service: SERVICE.to_owned(),
        id: format!("i-{instance}"),
        ..Default::default()
    };
    match way.deregister(request).await {
        Ok(answer) => ok(what.value.clone(), answer.header, answer.removed),
        Err(error) => not_written(&error),
    }
}

async fn list(way: &Connection) -> Outcome {
    let request = v1::ListInstancesRequest { service: SERVICE.to_owned(), ..Default::default() };
    match way.list_instances(request).await {
        Ok(answer) => {
            let shown = answer.instances.iter().map(|instance| {
                let id = instance.id.strip_prefix("i-").and_then(|id| id.parse().ok());
                let id = id.map_or_else(|| Value::String(instance.id.clone()), Value::Int);
                pair(id, Value::Bool(instance.health() == v1::Health::Passing))
            });
            ok(Value::Vector(shown.collect()), answer.header, false)
        }
        Err(error) => not_read(&error),
    }
}
