//! Counters that are added to, up and down, without request ids: each addition is sent once.

use quorate::error::Error;
use quorate::proto::v1;

use super::{
    Boxed, Client, Invocation, Ways, Workload, int, not_read, not_written, ok, pair, parts,
};
use crate::check::{counter, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const COUNTERS: usize = 8;

#[derive(Debug)]
pub struct Counters;

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![counter::check(history)?, replay::order(history)?])
}

impl Workload for Counters {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, _: usize, random: Random) -> Box<dyn Client> {
        Box::new(One { random, last: 0 })
    }
}

struct One {
    random: Random,
    /// Counters read at the end.
    last: usize,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let counter = int(self.random.below(COUNTERS));
        if self.random.chance(40) {
            return Some(Invocation::new("read", pair(counter, Value::Nil)));
        }
        let delta = self.random.between(1..=1_000) as i64;
        let delta = if self.random.chance(40) { -delta } else { delta };
        Some(Invocation::new("add", pair(counter, Value::Int(delta))))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        let counter = int(self.last - 1);
        (self.last <= COUNTERS).then(|| Invocation::new("read", pair(counter, Value::Nil)))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let [counter, delta] = parts(&what.value);
            let name = format!("jepsen_{counter}");
            let Value::Int(delta) = *delta else {
                return match get(ways.home(), name).await {
                    Ok((value, header)) => {
                        ok(pair(counter.clone(), Value::Int(value)), header, false)
                    }
                    Err(error) => not_read(&error),
                };
            };
            let request = v1::AddCounterRequest {
                name,
                kind: v1::CounterKind::Gauge.into(),
                delta,
                ..Default::default()
            };
            match ways.home().add_counter(request).await {
                Ok(answer) => {
                    let value = vec![counter.clone(), Value::Int(delta), Value::Int(answer.value)];
                    ok(Value::Vector(value), answer.header, answer.changed)
                }
                Err(error) => not_written(&error),
            }
        })
    }
}

/// A counter that does not exist is at 0; the answer then tells no revision.
pub(super) async fn get(
    way: &Connection,
    name: String,
) -> Result<(i64, Option<v1::Header>), Error> {
    let request = v1::GetCounterRequest { name, ..Default::default() };
    match way.get_counter(request).await {
        Ok(answer) => Ok((answer.counter.map_or(0, |counter| counter.value), answer.header)),
        Err(Error::NotFound { .. }) => Ok((0, None)),
        Err(error) => Err(error),
    }
}
