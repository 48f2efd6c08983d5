//! List-append: transactions over config items, each of which holds a list of numbers.
//!
//! An append replaces the item's content, if the item is still at the revision at which it was read before;
//! what the transaction reads is read in that same transaction.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use quorate::error::Error;
use quorate::proto::v1;
use v1::compare::To;
use v1::txn_step::Step;

use super::{Boxed, Client, Invocation, Ways, Workload, config, int, not_read, not_written, ok};
use crate::append;
use crate::check::replay;
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const GROUP: &str = "append";
/// Keys in use at the same time, and elements that are appended to all of them until others take their place.
const KEYS: usize = 6;
const ELEMENTS: usize = 200;
/// Steps of one transaction.
const STEPS: usize = 4;

#[derive(Debug, Default)]
pub struct Append {
    /// Elements so far; each is appended once.
    elements: Arc<AtomicUsize>,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![append::check(history)?, replay::order(history)?, replay::lists(history)?])
}

impl Workload for Append {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, _: usize, random: Random) -> Box<dyn Client> {
        Box::new(One { elements: self.elements.clone(), random, last: 0 })
    }
}

struct One {
    elements: Arc<AtomicUsize>,
    random: Random,
    last: usize,
}

fn read(key: usize) -> Value {
    Value::Vector(vec![Value::keyword("r"), int(key), Value::Nil])
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let first = self.elements.load(Ordering::Relaxed) / ELEMENTS * KEYS;
        let steps = (0..1 + self.random.below(STEPS)).map(|_| {
            let key = first + self.random.below(KEYS);
            if self.random.chance(50) {
                return read(key);
            }
            let element = int(self.elements.fetch_add(1, Ordering::Relaxed));
            Value::Vector(vec![Value::keyword("append"), int(key), element])
        });
        Some(Invocation::new("txn", Value::Vector(steps.collect())))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        let first = self.elements.load(Ordering::Relaxed) / ELEMENTS * KEYS;
        // Those of the turn before too: what was appended to them late was not read since.
        let keys = first.saturating_sub(KEYS)..first + KEYS;
        let reads = keys.map(read).collect();
        (self.last == 1).then(|| Invocation::new("txn", Value::Vector(reads)))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(transact(what, ways.home()))
    }
}

/// The parts of `[:append key element]` and `[:r key nil]`.
fn parts(step: &Value) -> (bool, &Value, &Value) {
    let [what, key, element] = super::parts(step);
    (*what == Value::keyword("append"), key, element)
}

fn name(key: &Value) -> String {
    format!("l-{key}")
}

async fn transact(what: &Invocation, way: &Connection) -> Outcome {
    let steps = what.value.elements().unwrap_or_default();
    let appended = steps.iter().map(parts).filter(|(appends, ..)| *appends);
    let mut keys: Vec<&Value> = appended.map(|(_, key, _)| key).collect();
    keys.sort();
    keys.dedup();
    let before = match fetch(&keys, way).await {
        Ok(before) => before,
        // Nothing is written before that.
        Err(error) => return not_read(&error),
    };
    let when = before.iter().map(|(key, (revision, _))| {
        config::compare(config::item(GROUP, name(key)), To::ModRevision(*revision))
    });
    let when = when.collect();
    let mut lists: BTreeMap<&Value, String> =
        before.iter().map(|(key, (_, list))| (*key, list.clone())).collect();
    let then = steps.iter().map(|step| {
        let (appends, key, element) = parts(step);
        let step = if appends {
            let list = lists.entry(key).or_default();
            let space = if list.is_empty() { "" } else { " " };
            list.push_str(&format!("{space}{element}"));
            Step::PublishConfig(config::publication(GROUP, name(key), list.clone()))
        } else {
            Step::Get(config::item(GROUP, name(key)))
        };
        config::step(step)
    });
    let request = v1::TxnRequest { then: then.collect(), when, ..Default::default() };
    match way.commit(request).await {
        Ok(answer) if answer.succeeded && answer.results.len() == steps.len() => {
            let heard = steps.iter().zip(&answer.results).map(|(step, result)| match parts(step) {
                (true, ..) => step.clone(),
                (false, key, _) => {
                    let list = config::found(result).map_or(Value::Vector(vec![]), list);
                    Value::Vector(vec![Value::keyword("r"), key.clone(), list])
                }
            });
            ok(Value::Vector(heard.collect()), answer.header, !keys.is_empty())
        }
        Ok(answer) if !answer.succeeded => Outcome::Fail("a key has changed".to_owned()),
        Ok(_) => Outcome::Info("not as many results as steps".to_owned()),
        Err(error) if keys.is_empty() => not_read(&error),
        Err(error) => not_written(&error),
    }
}

/// Revision and content of items, of all at one revision.
async fn fetch<'a>(
    keys: &[&'a Value],
    way: &Connection,
) -> Result<BTreeMap<&'a Value, (u64, String)>, Error> {
    if keys.is_empty() {
        return Ok(BTreeMap::new());
    }
    let steps = keys.iter().map(|key| config::step(Step::Get(config::item(GROUP, name(key)))));
    let request = v1::TxnRequest { then: steps.collect(), ..Default::default() };
    let answer = way.commit(request).await?;
    let found = keys.iter().zip(&answer.results).map(|(key, result)| {
        let item = config::found(result);
        (*key, item.map_or((0, String::new()), |item| (item.mod_revision, config::text(item))))
    });
    Ok(found.collect())
}

fn list(item: &v1::ConfigItem) -> Value {
    let text = config::text(item);
    let elements = text.split(' ').filter(|word| !word.is_empty());
    // What is no number was never appended, and the checker will say so.
    let elements =
        elements.map(|word| word.parse().map_or(Value::String(word.to_owned()), Value::Int));
    Value::Vector(elements.collect())
}
