//! Watches: half of the clients write config items, one or several at one revision; the others watch them all,
//! each time for a while at some node, and go on after the revision up to which they were complete.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Streaming;
use v1::txn_step::Step;

use super::{Boxed, Client, Invocation, Ways, Workload, config, int, not_written, ok, pair, parts};
use crate::check::{replay, watch};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const GROUP: &str = "watch";
const KEYS: usize = 12;
/// How long one watch lasts.
const MILLIS: std::ops::RangeInclusive<u64> = 300..=3_000;
/// How much longer one may take, at rest, until it has told everything, and the pause before it is asked for again.
const COMPLETE: Duration = Duration::from_secs(15);
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Watches {
    /// Values so far; each is written once.
    values: Arc<AtomicUsize>,
    /// The greatest revision that was acknowledged.
    acknowledged: Arc<AtomicI64>,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![watch::check(history)?, replay::order(history)?])
}

impl Workload for Watches {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        match number % 2 {
            0 => {
                let (values, acknowledged) = (self.values.clone(), self.acknowledged.clone());
                Box::new(Writer { values, acknowledged, random })
            }
            _ => {
                let acknowledged = self.acknowledged.clone();
                Box::new(Watcher { random, acknowledged, after: 0, last: 0 })
            }
        }
    }
}

struct Writer {
    values: Arc<AtomicUsize>,
    acknowledged: Arc<AtomicI64>,
    random: Random,
}

impl Client for Writer {
    fn next(&mut self) -> Option<Invocation> {
        if self.random.chance(15) {
            let key = int(self.random.below(KEYS));
            return Some(Invocation::new("write", Value::Vector(vec![pair(key, Value::Nil)])));
        }
        let keys: BTreeSet<usize> =
            (0..1 + self.random.below(3)).map(|_| self.random.below(KEYS)).collect();
        let pairs = keys
            .into_iter()
            .map(|key| pair(int(key), int(self.values.fetch_add(1, Ordering::Relaxed))));
        Some(Invocation::new("write", Value::Vector(pairs.collect())))
    }

    fn last(&mut self) -> Option<Invocation> {
        None
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let outcome = write(ways.home(), what).await;
            if let Outcome::Ok { at: Some(at), .. } = &outcome
                && at.wrote
            {
                self.acknowledged.fetch_max(at.revision, Ordering::Relaxed);
            }
            outcome
        })
    }
}

async fn write(way: &Connection, what: &Invocation) -> Outcome {
    let pairs = what.value.elements().unwrap_or_default();
    if let [only] = pairs
        && let [key, Value::Nil] = parts(only)
    {
        return delete(way, what, key).await;
    }
    let then = pairs.iter().map(|written| {
        let [key, value] = parts(written);
        let publication = config::publication(GROUP, format!("w-{key}"), value.to_string());
        config::step(Step::PublishConfig(publication))
    });
    let request = v1::TxnRequest { then: then.collect(), ..Default::default() };
    match way.commit(request).await {
        Ok(answer) => ok(what.value.clone(), answer.header, true),
        Err(error) => not_written(&error),
    }
}

async fn delete(way: &Connection, what: &Invocation, key: &Value) -> Outcome {
    let request = v1::DeleteConfigRequest {
        group: GROUP.to_owned(),
        key: format!("w-{key}"),
        ..Default::default()
    };
    match way.delete_config(request).await {
        Ok(answer) => ok(what.value.clone(), answer.header, answer.removed),
        Err(error) => not_written(&error),
    }
}

struct Watcher {
    random: Random,
    acknowledged: Arc<AtomicI64>,
    after: i64,
    last: usize,
}

impl Client for Watcher {
    fn next(&mut self) -> Option<Invocation> {
        // Now and then from the beginning, or from long ago.
        let after = match self.random.below(10) {
            0 => 0,
            1 => self.after / 2,
            _ => self.after,
        };
        Some(Invocation::new("watch", pair(Value::Int(after), Value::Nil)))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        let after = if self.last == 1 { self.after } else { 0 };
        let least = Value::Int(self.acknowledged.load(Ordering::Relaxed));
        (self.last <= 2).then(|| Invocation::new("watch", pair(Value::Int(after), least)))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let [Value::Int(after), least] = parts(&what.value) else {
                panic!("{} is no watch", what.value);
            };
            let way = self.random.pick(&ways.all).clone();
            let mut heard = Heard { messages: Vec::new(), complete: *after, partial: None };
            let until = Instant::now() + Duration::from_millis(self.random.between(MILLIS));
            if let Value::Int(least) = least {
                complete(&way, until, *least, &mut heard).await;
            } else {
                match watch(&way, *after).await {
                    Ok(mut stream) => listen(&mut stream, until, i64::MAX, &mut heard).await,
                    Err(error) => {
                        // Not at once again: a node that is down refuses in no time.
                        sleep(AGAIN).await;
                        return Outcome::Fail(error.to_string());
                    }
                }
            }
            self.after = self.after.max(heard.complete);
            let value = pair(Value::Int(*after), Value::Vector(heard.messages));
            Outcome::Ok { value, at: None }
        })
    }
}

async fn watch(way: &Connection, after: i64) -> Result<Streaming<v1::WatchResponse>, Error> {
    let selector = v1::ConfigSelector { group: GROUP.to_owned(), name: None };
    let selector = v1::WatchSelector {
        what: Some(v1::watch_selector::What::Config(selector)),
        ..Default::default()
    };
    let request = v1::WatchRangesRequest {
        selectors: vec![selector],
        after_revision: after as u64,
        client: None,
    };
    way.watch(request).await
}

struct Heard {
    messages: Vec<Value>,
    complete: i64,
    /// A snapshot that is not whole yet.
    partial: Option<Vec<Value>>,
}

/// Listens until it is time, and then for as long as it may take until everything up to a revision was told, also
/// when the stream breaks.
async fn complete(way: &Connection, until: Instant, least: i64, heard: &mut Heard) {
    let deadline = until + COMPLETE;
    loop {
        heard.partial = None;
        match watch(way, heard.complete).await {
            Ok(mut stream) => {
                listen(&mut stream, until, i64::MAX, heard).await;
                listen(&mut stream, deadline, least, heard).await;
            }
            Err(_) => sleep(AGAIN).await,
        }
        if heard.complete >= least || Instant::now() >= deadline {
            return;
        }
    }
}

/// Listens until it is time, a revision is complete or the stream ends; a stream that breaks has said what it has
/// said.
async fn listen(
    stream: &mut Streaming<v1::WatchResponse>,
    until: Instant,
    enough: i64,
    heard: &mut Heard,
) {
    while heard.complete < enough
        && let Ok(Ok(Some(message))) = timeout_at(until, stream.message()).await
    {
        let revision = message.revision as i64;
        let changes: Vec<Value> = message.events.iter().map(change).collect();
        let entry = |kind, changes| {
            Value::Vector(vec![Value::keyword(kind), Value::Int(revision), Value::Vector(changes)])
        };
        if message.bookmark {
            heard.messages.push(pair(Value::keyword("bookmark"), Value::Int(revision)));
        } else if message.snapshot {
            let mut all = heard.partial.take().unwrap_or_default();
            all.extend(changes);
            if message.more {
                heard.partial = Some(all);
                continue;
            }
            heard.messages.push(entry("snapshot", all));
        } else {
            heard.messages.push(entry("changes", changes));
        }
        heard.complete = revision;
    }
}

/// `[key value]` of an event; what is no item of ours is shown as it is, for the checker to find.
fn change(event: &v1::WatchEvent) -> Value {
    let Some(v1::watch_event::Record::Config(item)) = &event.record else {
        return pair(Value::String(format!("{event:?}")), Value::Nil);
    };
    let key = item.key.strip_prefix("w-").and_then(|key| key.parse().ok());
    let key = key.map_or_else(|| Value::String(item.key.clone()), Value::Int);
    let text = config::text(item);
    let value = match event.deleted {
        true => Value::Nil,
        false => text.parse().map_or(Value::String(text), Value::Int),
    };
    pair(key, value)
}
