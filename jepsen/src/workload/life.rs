//! Lives of instances: each opens a session, registers in it under an id of its own, keeps it alive for a while,
//! and then deregisters or falls silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;

use super::{Invocation, int, not_written, ok, pair, parts, server, session};
use crate::check::leases::EXPIRED;
use crate::check::registry::Terms;
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::random::Random;
use crate::run::recorder::Outcome;

const TTL_MS: u64 = 2_000;
const GRACE_MS: u64 = 1_000;
/// The leader looks for expired sessions now and then, and the machine may be busy.
const BOUND_MS: u64 = 5_000;
/// After so long everything is gone that nobody keeps alive.
pub const GONE: Duration = Duration::from_millis(TTL_MS + GRACE_MS + BOUND_MS + 500);
/// Beats of one life.
const BEATS: std::ops::RangeInclusive<u64> = 2..=25;

pub const TERMS: Terms = Terms {
    ttl: TTL_MS as i64 * 1_000_000,
    grace: GRACE_MS as i64 * 1_000_000,
    bound: BOUND_MS as i64 * 1_000_000,
};

/// Instances so far, of all clients; each id is used once.
pub type Ids = Arc<AtomicUsize>;

/// Makes the service in which instances live.
pub async fn prepare(way: &Connection, service: &str) -> Result<(), Error> {
    let service = v1::Service {
        name: service.to_owned(),
        deregister_after_ms: Some(GRACE_MS),
        ..Default::default()
    };
    let request = v1::PutServiceRequest { service: Some(service), ..Default::default() };
    way.put_service(request).await.map(|_| ())
}

pub fn id(instance: impl std::fmt::Display) -> String {
    format!("i-{instance}")
}

/// The number of an instance, or its id if it is none of ours.
pub fn shown(id: &str) -> Value {
    let number = id.strip_prefix("i-").and_then(|id| id.parse().ok());
    number.map_or_else(|| Value::String(id.to_owned()), Value::Int)
}

#[derive(Debug, Clone, Copy)]
enum Life {
    None,
    /// A session without an instance.
    Open(i64),
    /// The instance is registered, and so many beats are left.
    Registered(i64, usize, u64),
}

/// One life after the other.
#[derive(Debug)]
pub struct Lives {
    service: &'static str,
    address: SocketAddr,
    ids: Ids,
    random: Random,
    life: Life,
}

impl Lives {
    /// `address` is where the instances say that they are.
    pub fn new(service: &'static str, address: SocketAddr, ids: Ids, random: Random) -> Lives {
        Lives { service, address, ids, random, life: Life::None }
    }

    /// The next step; None: the instance falls silent.
    pub fn next(&mut self) -> Option<Invocation> {
        Some(match self.life {
            Life::None => Invocation::new("open", Value::Nil),
            Life::Open(session) => {
                let instance = self.ids.fetch_add(1, Ordering::Relaxed);
                Invocation::new("register", pair(Value::Int(session), int(instance)))
            }
            Life::Registered(session, instance, 0) => {
                self.life = Life::None;
                if self.random.chance(50) {
                    return None;
                }
                Invocation::new("deregister", pair(Value::Int(session), int(instance)))
            }
            Life::Registered(session, instance, left) => {
                self.life = Life::Registered(session, instance, left - 1);
                Invocation::new("beat", Value::Vector(vec![Value::Int(session)]))
            }
        })
    }

    pub async fn invoke(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        match what.f {
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
            _ => self.deregister(way, what).await,
        }
    }

    async fn register(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [Value::Int(session), Value::Int(instance)] = parts(&what.value) else {
            panic!("{} is no registration", what.value);
        };
        let record = v1::Instance {
            session: *session as u64,
            ..server::instance(self.service, id(instance), self.address)
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
            Err(Error::SessionExpired { .. }) => Outcome::Fail(EXPIRED.to_owned()),
            Err(error) => not_written(&error),
        }
    }

    async fn deregister(&self, way: &Connection, what: &Invocation) -> Outcome {
        let [_, instance] = parts(&what.value);
        let (service, id) = (self.service.to_owned(), id(instance));
        let request = v1::DeregisterRequest { service, id, ..Default::default() };
        match way.deregister(request).await {
            Ok(answer) => ok(what.value.clone(), answer.header, answer.removed),
            Err(error) => not_written(&error),
        }
    }
}
