//! The registry: instances that live with sessions. Each client leads one life after the other, and in between
//! it lists who is there.

use std::net::{Ipv4Addr, SocketAddr};

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::sleep;

use super::life::{self, GONE, Ids, Lives, TERMS};
use super::{Boxed, Client, Invocation, Ways, Workload, not_read, ok, pair};
use crate::check::{registry, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const SERVICE: &str = "jepsen";
/// Nobody calls them.
const NOWHERE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1);

#[derive(Debug, Default)]
pub struct Registry {
    ids: Ids,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![registry::check(history, TERMS)?, replay::order(history)?])
}

impl Workload for Registry {
    fn prepare<'a>(&'a self, way: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(life::prepare(way, SERVICE))
    }

    fn client(&self, number: usize, mut random: Random) -> Box<dyn Client> {
        let lives = Lives::new(SERVICE, NOWHERE, self.ids.clone(), random.fork());
        Box::new(One { lives, random, last: 0, waits: number == 0 })
    }
}

struct One {
    lives: Lives,
    random: Random,
    last: usize,
    /// Waits at the end until everything must be gone.
    waits: bool,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        let list = || Invocation::new("list", Value::Nil);
        if self.random.chance(40) {
            return Some(list());
        }
        Some(self.lives.next().unwrap_or_else(list))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        match self.last {
            1 if self.waits => Some(Invocation::new("wait", Value::Int(GONE.as_millis() as i64))),
            1..=3 if self.waits => Some(Invocation::new("list", Value::Nil)),
            _ => None,
        }
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            let way = ways.home();
            match what.f {
                "wait" => {
                    sleep(GONE).await;
                    Outcome::Ok { value: what.value.clone(), at: None }
                }
                "list" => list(way).await,
                _ => self.lives.invoke(way, what).await,
            }
        })
    }
}

async fn list(way: &Connection) -> Outcome {
    let request = v1::ListInstancesRequest { service: SERVICE.to_owned(), ..Default::default() };
    match way.list_instances(request).await {
        Ok(answer) => {
            let shown = answer.instances.iter().map(|instance| {
                let healthy = instance.health() == v1::Health::Passing;
                pair(life::shown(&instance.id), Value::Bool(healthy))
            });
            ok(Value::Vector(shown.collect()), answer.header, false)
        }
        Err(error) => not_read(&error),
    }
}
