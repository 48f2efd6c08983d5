//! Gray releases: clients publish items for everybody and for some, by label, by id and by share, promote and
//! abort what is gray, and read as this client or that one. In the end nothing is gray, and everybody reads the
//! same.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::sleep;
use v1::gray_terms::Picks;

use super::{
    Boxed, Client, Invocation, Ways, Workload, config, int, not_read, not_written, ok, parts,
};
use crate::check::{gray, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const GROUP: &str = gray::GROUP;
/// Items at one time. When the outcome of a write is unknown another item takes the place of its own, so that
/// the checker has little to guess about each.
const PLACES: usize = 4;
const RULES: [&str; 4] = ["a", "b", "c", "d"];
/// Readers, each with labels of its own.
const READERS: usize = 40;
/// Reads of each item in the end.
const LAST: usize = 12;
/// Between two attempts to end a gray release in the end.
const AGAIN: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub struct Grays {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Which item is in each place: the place plus a multiple of their number.
    items: [AtomicUsize; PLACES],
    /// Values so far; each is published once.
    values: AtomicUsize,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![gray::check(history)?, replay::order(history)?])
}

impl Workload for Grays {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async { Ok(()) })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        let last = if number == 0 { Last::Begin } else { Last::Over };
        Box::new(One { shared: self.shared.clone(), random, last })
    }
}

struct One {
    shared: Arc<Shared>,
    random: Random,
    last: Last,
}

/// How far the end is.
enum Last {
    Begin,
    /// What is left: first gray releases are ended, then everybody reads.
    Steps(VecDeque<Invocation>),
    Over,
}

impl Shared {
    fn item(&self, place: usize) -> usize {
        place + PLACES * self.items[place].load(Ordering::Relaxed)
    }

    /// Another item takes the place of this one, unless that was done before.
    fn replace(&self, item: usize) {
        let (place, round) = (item % PLACES, item / PLACES);
        let (from, to) = (round, round + 1);
        let _ = self.items[place].compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
    }
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let item = int(self.shared.item(self.random.below(PLACES)));
        let rule = |random: &mut Random| Value::String((*random.pick(&RULES)).to_owned());
        let value = || int(self.shared.values.fetch_add(1, Ordering::Relaxed));
        let (f, value) = match self.random.below(100) {
            0..50 => ("read", vec![item, int(self.random.below(READERS)), Value::Nil]),
            50..65 => ("publish", vec![item, value()]),
            65..85 => {
                let rule = rule(&mut self.random);
                let priority = int(self.random.below(3));
                ("gray", vec![item, value(), rule, priority, self.picks()])
            }
            _ => {
                let promote = Value::Bool(self.random.chance(50));
                ("end", vec![item, rule(&mut self.random), promote])
            }
        };
        Some(Invocation::new(f, Value::Vector(value)))
    }

    fn last(&mut self) -> Option<Invocation> {
        match &mut self.last {
            Last::Begin => {
                self.last = Last::Steps(self.steps());
                Some(Invocation::new("wait", Value::Nil))
            }
            Last::Steps(steps) => steps.pop_front(),
            Last::Over => None,
        }
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let way = ways.home();
            let outcome = match what.f {
                "read" => read(way, what).await,
                // From any node.
                "final" => read(self.random.pick(&ways.all), what).await,
                "wait" => {
                    // What nobody has an answer to has come to its end.
                    sleep(way.patience() * 2).await;
                    Outcome::Ok { value: Value::Nil, at: None }
                }
                "publish" | "gray" => publish(way, what).await,
                _ => {
                    let (outcome, ended) = end(way, what).await;
                    if let Last::Steps(steps) = &mut self.last
                        && !ended
                    {
                        sleep(AGAIN).await;
                        steps.push_front(what.clone());
                    }
                    outcome
                }
            };
            if let (Outcome::Info(_), Some([Value::Int(item), ..])) =
                (&outcome, what.value.elements())
            {
                self.shared.replace(*item as usize);
            }
            outcome
        })
    }
}

impl One {
    /// `{:labels {name value}}`, `{:clients [number ..]}` or `{:share hundredths}`
    fn picks(&mut self) -> Value {
        let (kind, value) = match self.random.below(4) {
            0 => {
                let clients = (0..5).map(|_| int(self.random.below(READERS)));
                ("clients", Value::Vector(clients.collect()))
            }
            1 => ("share", int(self.random.below(10_001))),
            several => {
                let labels = gray::labels(self.random.below(READERS) as i64);
                let labels = labels.into_iter().take(several - 1);
                let labels = labels.map(|(name, it)| (Value::String(name), Value::String(it)));
                ("labels", Value::Map(labels.collect()))
            }
        };
        Value::Map(BTreeMap::from([(Value::keyword(kind), value)]))
    }

    fn steps(&mut self) -> VecDeque<Invocation> {
        let items: Vec<usize> = (0..PLACES).map(|place| self.shared.item(place)).collect();
        let mut steps = VecDeque::new();
        for &item in &items {
            for rule in RULES {
                let promote = Value::Bool(self.random.chance(50));
                let value = vec![int(item), Value::String(rule.to_owned()), promote];
                steps.push_back(Invocation::new("end", Value::Vector(value)));
            }
        }
        for &item in &items {
            for _ in 0..LAST {
                let value = vec![int(item), int(self.random.below(READERS)), Value::Nil];
                steps.push_back(Invocation::new("final", Value::Vector(value)));
            }
        }
        steps
    }
}

async fn publish(way: &Connection, what: &Invocation) -> Outcome {
    let Some([item, value, gray @ ..]) = what.value.elements() else {
        panic!("{} publishes nothing", what.value);
    };
    let gray = match gray {
        [Value::String(rule), Value::Int(priority), picks] => Some(Box::new(v1::GrayTerms {
            rule: rule.clone(),
            priority: *priority as u32,
            picks: Some(terms(picks)),
            gate: None,
        })),
        _ => None,
    };
    let publication = config::publication(GROUP, gray::key(item), value.to_string());
    // How many are kept is a matter of the item, not of one gray release.
    let keep = if gray.is_some() { 0 } else { publication.keep };
    match way.publish(v1::PublishConfigRequest { gray, keep, ..publication }).await {
        Ok(answer) => ok(what.value.clone(), answer.header, answer.changed),
        Err(error) => not_written(&error),
    }
}

fn terms(picks: &Value) -> Picks {
    match gray::Picks::of(picks) {
        Some(gray::Picks::Labels(labels)) => {
            Picks::Labels(v1::LabelPicks { labels: labels.into_iter().collect() })
        }
        Some(gray::Picks::Clients(clients)) => {
            let clients = clients.into_iter().map(gray::client).collect();
            Picks::Clients(v1::ClientPicks { clients })
        }
        Some(gray::Picks::Share(hundredths)) => Picks::BasisPoints(hundredths as u32),
        None => panic!("{picks} picks nobody"),
    }
}

/// Also whether it is certainly ended now.
async fn end(way: &Connection, what: &Invocation) -> (Outcome, bool) {
    let [item, Value::String(rule), Value::Bool(promote)] = parts(&what.value) else {
        panic!("{} ends nothing", what.value);
    };
    let request = v1::EndGrayRequest {
        group: GROUP.to_owned(),
        key: gray::key(item),
        rule: rule.clone(),
        promote: *promote,
        ..Default::default()
    };
    match way.end_gray(request).await {
        Ok(answer) => (ok(what.value.clone(), answer.header, true), true),
        Err(error) => (not_written(&error), matches!(error, Error::NotFound { .. })),
    }
}

/// `[item reader [value rule]]`; nil: there is no such item.
async fn read(way: &Connection, what: &Invocation) -> Outcome {
    let [item, Value::Int(reader), _] = parts(&what.value) else {
        panic!("{} reads nothing", what.value);
    };
    let labels = gray::labels(*reader).into_iter().collect();
    let request = v1::GetConfigRequest {
        group: GROUP.to_owned(),
        key: gray::key(item),
        client: Some(v1::ConfigClient { id: gray::client(*reader), labels }),
        ..Default::default()
    };
    let shown = |shown| Value::Vector(vec![item.clone(), Value::Int(*reader), shown]);
    match way.get_config(request).await {
        Ok(answer) => {
            let got = answer.item.unwrap_or_default();
            let text = config::text(&got);
            let value = text.parse().map_or(Value::String(text), Value::Int);
            let got = Value::Vector(vec![value, Value::String(got.rule)]);
            ok(shown(got), answer.header, false)
        }
        Err(Error::NotFound { .. }) => Outcome::Ok { value: shown(Value::Nil), at: None },
        Err(error) => not_read(&error),
    }
}
