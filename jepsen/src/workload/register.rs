//! Registers: config items that are read, written and compared-and-set by concurrent clients.
//!
//! A checker's work grows with the operations that overlap, those of unknown outcome for ever. So a
//! group of clients works on one item for a while and then goes on to the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate::error::Error;
use quorate::proto::v1;

use super::{
    Boxed, Client, Invocation, Shape, Ways, Workload, config, int, not_read, not_written, ok, pair,
    parts,
};
use crate::check::replay;
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::linear;
use crate::random::Random;
use crate::register;
use crate::report::Report;
use crate::run::recorder::Outcome;

/// Operations on one item, and values that are written to it.
const PER_KEY: usize = 150;
const VALUES: usize = 5;
/// What one operation of unknown outcome counts for: each doubles a checker's work.
const UNKNOWN: usize = 15;
/// Clients that share an item.
const GROUP: usize = 5;
const GROUP_NAME: &str = "register";

#[derive(Debug)]
pub struct Registers {
    /// Operations of each group so far.
    groups: Vec<Arc<AtomicUsize>>,
    stale_reads: bool,
}

impl Registers {
    pub fn new(shape: Shape) -> Registers {
        let groups = shape.clients.div_ceil(GROUP).max(1);
        let groups = (0..groups).map(|_| Arc::default()).collect();
        Registers { groups, stale_reads: shape.stale_reads }
    }
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![
        register::check(history, &Value::Nil, linear::LIMIT)?,
        replay::order(history)?,
        replay::registers(history)?,
    ])
}

impl Workload for Registers {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        let (group, groups) = (number % self.groups.len(), self.groups.len());
        let (count, stale_reads) = (self.groups[group].clone(), self.stale_reads);
        Box::new(One { count, group, groups, random, last: 0, stale_reads })
    }
}

struct One {
    count: Arc<AtomicUsize>,
    group: usize,
    groups: usize,
    random: Random,
    /// Final reads done.
    last: usize,
    stale_reads: bool,
}

impl One {
    fn key(&self, operations: usize) -> usize {
        operations / PER_KEY * self.groups + self.group
    }
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let key = int(self.key(self.count.fetch_add(1, Ordering::Relaxed)));
        let value = int(self.random.below(VALUES));
        Some(match self.random.below(100) {
            0..45 => Invocation::new("read", pair(key, Value::Nil)),
            45..75 => Invocation::new("write", pair(key, value)),
            _ => {
                let from = int(self.random.below(VALUES));
                Invocation::new("cas", pair(key, pair(from, value)))
            }
        })
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        let key = self.key(self.count.load(Ordering::Relaxed));
        (self.last <= 2).then(|| Invocation::new("read", pair(int(key), Value::Nil)))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let [key, value] = parts(&what.value);
            let name = format!("r-{key}");
            let outcome = match what.f {
                "read" => read(ways.home(), name, key, self.stale_reads).await,
                "write" => write(ways.home(), name, what).await,
                _ => cas(ways.home(), name, what, value).await,
            };
            if matches!(outcome, Outcome::Info(_)) {
                self.count.fetch_add(UNKNOWN, Ordering::Relaxed);
            }
            outcome
        })
    }
}

async fn read(way: &Connection, name: String, key: &Value, stale: bool) -> Outcome {
    let consistency = if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable };
    let request = v1::GetConfigRequest {
        group: GROUP_NAME.to_owned(),
        key: name,
        consistency: consistency.into(),
        ..Default::default()
    };
    match way.get_config(request).await {
        Ok(answer) => {
            let release = answer.item.and_then(|item| item.release).unwrap_or_default();
            let text = String::from_utf8_lossy(&release.content).into_owned();
            let value = text.parse().map_or(Value::String(text), Value::Int);
            ok(pair(key.clone(), value), answer.header, false)
        }
        // That it is not there is what the read saw; the error does not say at which revision.
        Err(Error::NotFound { .. }) => ok(pair(key.clone(), Value::Nil), None, false),
        Err(error) => not_read(&error),
    }
}

async fn write(way: &Connection, name: String, what: &Invocation) -> Outcome {
    let [_, value] = parts(&what.value);
    match way.publish(config::publication(GROUP_NAME, name, value.to_string())).await {
        Ok(answer) => ok(what.value.clone(), answer.header, answer.changed),
        Err(error) => not_written(&error),
    }
}

async fn cas(way: &Connection, name: String, what: &Invocation, change: &Value) -> Outcome {
    let [from, to] = parts(change);
    let content = v1::compare::To::Content(from.to_string().into_bytes());
    let when = vec![config::compare(config::item(GROUP_NAME, name.clone()), content)];
    let publication = config::publication(GROUP_NAME, name, to.to_string());
    let then = vec![config::step(v1::txn_step::Step::PublishConfig(publication))];
    let request = v1::TxnRequest { when, then, ..Default::default() };
    match way.commit(request).await {
        Ok(answer) if answer.succeeded => {
            let changed = answer.results.first().and_then(|result| match &result.result {
                Some(v1::txn_result::Result::PublishConfig(published)) => Some(published.changed),
                _ => None,
            });
            match changed {
                Some(changed) => ok(what.value.clone(), answer.header, changed),
                None => Outcome::Info("a transaction without the result of its step".to_owned()),
            }
        }
        Ok(_) => Outcome::Fail("the value is another".to_owned()),
        Err(error) => not_written(&error),
    }
}
