//! Exactly once: additions with request ids, each sent several times, to any node, whatever was answered.

use quorate::error::Error;
use quorate::proto::v1;

use super::{Boxed, Client, Invocation, Ways, Workload, counter, not_read, not_written, ok, parts};
use crate::check::{once, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const COUNTER: &str = "jepsen_once";
/// Longer than a run: what is tested is the id, not its lease.
const TTL_MS: u64 = 3_600_000;

#[derive(Debug)]
pub struct Once;

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![once::check(history)?, replay::order(history)?])
}

impl Workload for Once {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, _: usize, random: Random) -> Box<dyn Client> {
        Box::new(One { random, session: None, sequence: 0, current: None, last: 0 })
    }
}

struct One {
    random: Random,
    session: Option<i64>,
    sequence: i64,
    /// The write that is repeated, and whether it was answered.
    current: Option<(Value, bool)>,
    last: usize,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let Some(session) = self.session else { return Some(Invocation::new("open", Value::Nil)) };
        if self.random.chance(15) {
            return Some(Invocation::new("read", Value::Nil));
        }
        if let Some((write, answered)) = &self.current
            && (!answered || self.random.chance(50))
        {
            return Some(Invocation::new("add", write.clone()));
        }
        self.sequence += 1;
        let delta = self.random.between(1..=1_000) as i64;
        let write = [session, self.sequence, delta].map(Value::Int).to_vec();
        self.current = Some((Value::Vector(write.clone()), false));
        Some(Invocation::new("add", Value::Vector(write)))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        // What is unknown is asked for until it is known.
        match &self.current {
            Some((write, false)) if self.last < 10 => Some(Invocation::new("add", write.clone())),
            _ if self.last < 20 => {
                self.last = 20;
                Some(Invocation::new("read", Value::Nil))
            }
            _ => None,
        }
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let way = self.random.pick(&ways.all).clone();
            match what.f {
                "open" => self.open(&way).await,
                "read" => match counter::get(&way, COUNTER.to_owned()).await {
                    Ok((value, header)) => ok(Value::Int(value), header, false),
                    Err(error) => not_read(&error),
                },
                _ => self.add(&way, what).await,
            }
        })
    }
}

impl One {
    async fn open(&mut self, way: &Connection) -> Outcome {
        let request = v1::OpenSessionRequest { ttl_ms: TTL_MS, client: "jepsen".to_owned() };
        match way.open_session(request).await {
            Ok(answer) => {
                let session = answer.session as i64;
                self.session = Some(session);
                ok(Value::Vector(vec![Value::Int(session)]), answer.header, true)
            }
            Err(error) => not_written(&error),
        }
    }

    async fn add(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [Value::Int(session), Value::Int(sequence), Value::Int(delta)] = parts(&what.value)
        else {
            panic!("{} is not of numbers", what.value);
        };
        let id = v1::RequestId {
            session: *session as u64,
            sequence: *sequence as u64,
            lowest_unacknowledged: *sequence as u64,
        };
        let request = v1::AddCounterRequest {
            name: COUNTER.to_owned(),
            kind: v1::CounterKind::Gauge.into(),
            delta: *delta,
            request_id: Some(id),
            ..Default::default()
        };
        match way.add_counter(request).await {
            Ok(answer) => {
                self.current = Some((what.value.clone(), true));
                let revision = answer.header.as_ref().map_or(0, |header| header.revision as i64);
                let value = [*session, *sequence, *delta, answer.value, revision];
                let value = Value::Vector(value.map(Value::Int).to_vec());
                // A repetition tells of an earlier time.
                let first = answer.header.filter(|header| !header.duplicate);
                ok(value, first, answer.changed)
            }
            Err(error) => not_written(&error),
        }
    }
}
