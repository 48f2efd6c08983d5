//! The set: config items, one for each element, that are listed by their prefix.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate::error::Error;
use quorate::proto::v1;

use super::{
    Boxed, Client, Invocation, Ways, Workload, config, int, not_read, not_written, ok, pair, parts,
};
use crate::check::{replay, set};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const GROUP: &str = "set";
/// Elements of one set; then the next one begins. A read lists them all.
const ELEMENTS: usize = 400;

#[derive(Debug, Default)]
pub struct Sets {
    elements: Arc<AtomicUsize>,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![set::check(history)?, replay::order(history)?])
}

impl Workload for Sets {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        // One client reads every set at the end; it is the same at whichever node.
        let last = (number == 0).then_some(0);
        Box::new(One { elements: self.elements.clone(), random, last, attempts: 0 })
    }
}

struct One {
    elements: Arc<AtomicUsize>,
    random: Random,
    /// The set to be read next at the end, for who does.
    last: Option<usize>,
    /// Reads of it so far.
    attempts: usize,
}

/// How often a read at the end is tried.
const ATTEMPTS: usize = 20;

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        if self.random.chance(75) {
            let element = self.elements.fetch_add(1, Ordering::Relaxed);
            return Some(Invocation::new("add", pair(int(element / ELEMENTS), int(element))));
        }
        let current = self.elements.load(Ordering::Relaxed) / ELEMENTS;
        let set = if self.random.chance(70) { current } else { self.random.below(current + 1) };
        Some(Invocation::new("read", pair(int(set), Value::Nil)))
    }

    fn last(&mut self) -> Option<Invocation> {
        let sets = self.elements.load(Ordering::Relaxed).div_ceil(ELEMENTS);
        let set = self.last.filter(|set| *set < sets && self.attempts < ATTEMPTS)?;
        self.attempts += 1;
        Some(Invocation::new("read", pair(int(set), Value::Nil)))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let [set, element] = parts(&what.value);
            if what.f == "add" {
                let key = format!("s-{set}-{element}");
                let request = config::publication(GROUP, key, element.to_string());
                return match ways.home().publish(request).await {
                    Ok(answer) => ok(what.value.clone(), answer.header, answer.changed),
                    Err(error) => not_written(&error),
                };
            }
            match list(ways.home(), set).await {
                Ok((value, header)) => {
                    if self.attempts > 0 {
                        (self.last, self.attempts) = (self.last.map(|set| set + 1), 0);
                    }
                    ok(pair(set.clone(), value), header, false)
                }
                Err(error) => not_read(&error),
            }
        })
    }
}

async fn list(way: &Connection, set: &Value) -> Result<(Value, Option<v1::Header>), Error> {
    let request = v1::ListConfigRequest {
        group: GROUP.to_owned(),
        prefix: format!("s-{set}-"),
        contents: true,
        limit: 10_000,
        ..Default::default()
    };
    let answer = way.list_config(request).await?;
    let elements = answer.items.iter().map(|item| {
        let text = config::text(item);
        text.parse().map_or(Value::String(text), Value::Int)
    });
    Ok((Value::Vector(elements.collect()), answer.header))
}
