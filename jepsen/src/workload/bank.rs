//! The bank: accounts are counters with a floor of 0, a transfer is one transaction of two additions.

use std::collections::BTreeMap;

use quorate::error::Error;
use quorate::proto::v1;
use v1::txn_step::Step;

use super::{
    Boxed, Client, Invocation, Ways, Workload, config, int, not_read, not_written, ok, parts,
};
use crate::check::{bank, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const ACCOUNTS: usize = 8;
const BALANCE: i64 = 100;

#[derive(Debug)]
pub struct Bank;

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    let total = BALANCE * ACCOUNTS as i64;
    Ok(vec![bank::check(history, ACCOUNTS, total)?, replay::order(history)?])
}

fn name(account: &Value) -> String {
    format!("jepsen_account_{account}")
}

impl Workload for Bank {
    fn prepare<'a>(&'a self, way: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async move {
            let steps = (0..ACCOUNTS).map(|account| {
                config::step(Step::SetCounter(v1::SetCounterRequest {
                    name: name(&int(account)),
                    kind: v1::CounterKind::Gauge.into(),
                    value: BALANCE,
                    ..Default::default()
                }))
            });
            let request = v1::TxnRequest { then: steps.collect(), ..Default::default() };
            way.commit(request).await.map(|_| ())
        })
    }

    fn client(&self, _: usize, random: Random) -> Box<dyn Client> {
        Box::new(One { random, last: 0 })
    }
}

struct One {
    random: Random,
    last: usize,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        if self.random.chance(40) {
            return Some(Invocation::new("read", Value::Nil));
        }
        let from = self.random.below(ACCOUNTS);
        let to = (from + 1 + self.random.below(ACCOUNTS - 1)) % ACCOUNTS;
        let amount = 1 + self.random.below(40);
        Some(Invocation::new("transfer", Value::Vector([from, to, amount].map(int).to_vec())))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        (self.last <= 2).then(|| Invocation::new("read", Value::Nil))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            match what.f {
                "read" => read(ways.home()).await,
                _ => transfer(ways.home(), what).await,
            }
        })
    }
}

async fn transfer(way: &Connection, what: &Invocation) -> Outcome {
    let [from, to, Value::Int(amount)] = parts(&what.value) else {
        panic!("{} has no amount", what.value);
    };
    let add = |account, delta, floor| {
        config::step(Step::AddCounter(v1::AddCounterRequest {
            name: name(account),
            kind: v1::CounterKind::Gauge.into(),
            delta,
            floor,
            ..Default::default()
        }))
    };
    let then = vec![add(from, -amount, Some(0)), add(to, *amount, None)];
    match way.commit(v1::TxnRequest { then, ..Default::default() }).await {
        Ok(answer) => ok(what.value.clone(), answer.header, true),
        Err(error) => not_written(&error),
    }
}

async fn read(way: &Connection) -> Outcome {
    let steps = (0..ACCOUNTS).map(|account| {
        let counter = v1::CounterName { name: name(&int(account)), ..Default::default() };
        let record = v1::record_name::Record::Counter(counter);
        config::step(Step::Get(v1::RecordName { record: Some(record) }))
    });
    let request = v1::TxnRequest { then: steps.collect(), ..Default::default() };
    match way.commit(request).await {
        Ok(answer) => {
            let balances = answer.results.iter().enumerate().filter_map(|(account, result)| {
                match result.result.as_ref()? {
                    v1::txn_result::Result::Get(v1::FoundRecord {
                        record: Some(v1::found_record::Record::Counter(counter)),
                    }) => Some((int(account), Value::Int(counter.value))),
                    _ => None,
                }
            });
            ok(Value::Map(balances.collect::<BTreeMap<_, _>>()), answer.header, false)
        }
        Err(error) => not_read(&error),
    }
}
