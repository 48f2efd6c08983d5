//! Balancing: half of the clients lead lives of instances, the others call the service through the client library
//! without a pause, each with a client of its own, and write down who served them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use quorate::client::{Channel, Options, ServedBy};
use quorate::error::Error;
use quorate::limits;
use quorate::proto::v1;
use tokio::sync::OnceCell;
use tokio::time::{Instant, sleep, timeout};
use tonic::server::UnaryService;
use tonic::{Code, Request, Response, Status};

use super::life::{self, Ids, Lives};
use super::server::{self, Unary};
use super::{Boxed, Client, Invocation, Shape, Ways, Workload, int, ok, pair};
use crate::check::balance::Terms;
use crate::check::{balance, replay};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

const SERVICE: &str = "jepsen-balanced";
/// Instances that are always there: their ids are negative.
const PERMANENT: i64 = 2;
/// How long one client picks in one operation, and how fast.
const MILLIS: std::ops::RangeInclusive<u64> = 100..=400;
const PICK: Duration = Duration::from_millis(10);
/// How long one call may take: everybody is on this machine.
const CALL: Duration = Duration::from_secs(5);

/// How long a client may pick an instance that has left, when nothing is in its way: its node is found dead, the
/// next one is asked, and what that tells becomes a state.
const BOUND: Duration = limits::CLIENT_PROBE_INTERVAL
    .saturating_add(limits::CLIENT_PROBE_TIMEOUT)
    .saturating_add(limits::CLIENT_ATTEMPT_TIMEOUT)
    .saturating_add(limits::CLIENT_BACKOFF_MAX)
    .saturating_add(limits::DISCOVERY_PAUSE);

const TERMS: Terms = Terms { life: life::TERMS, bound: BOUND.as_nanos() as i64 };

#[derive(Debug)]
pub struct Balance {
    endpoints: Vec<String>,
    ids: Ids,
    /// Where all instances are.
    address: OnceCell<SocketAddr>,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![balance::check(history, TERMS)?, replay::order(history)?])
}

impl Balance {
    pub fn new(shape: Shape) -> Balance {
        Balance { endpoints: shape.endpoints, ids: Ids::default(), address: OnceCell::new() }
    }
}

impl Workload for Balance {
    fn prepare<'a>(&'a self, way: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async move {
            let address = self.address.get_or_try_init(|| server::serve(Anybody)).await;
            let address = *address.map_err(|error| Error::internal(error.to_string()))?;
            life::prepare(way, SERVICE).await?;
            for number in 1..=PERMANENT {
                let instance = server::instance(SERVICE, life::id(-number), address);
                let request = v1::RegisterRequest { instance: Some(instance), request_id: None };
                way.register(request).await?;
            }
            Ok(())
        })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        let Some(&address) = self.address.get() else { panic!("it was not prepared") };
        match number % 2 {
            0 => {
                let lives = Lives::new(SERVICE, address, self.ids.clone(), random);
                Box::new(Operator { lives })
            }
            _ => {
                let endpoints = self.endpoints.clone();
                Box::new(Picker { endpoints, random, channel: None, seen: 0, last: 0 })
            }
        }
    }
}

/// A server that does nothing, and that well.
#[derive(Clone)]
struct Anybody;

impl UnaryService<()> for Anybody {
    type Response = ();
    type Future = std::future::Ready<Result<Response<()>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(())))
    }
}

impl Unary for Anybody {
    type Request = ();
}

struct Operator {
    lives: Lives,
}

impl Client for Operator {
    fn next(&mut self) -> Option<Invocation> {
        self.lives.next()
    }

    fn last(&mut self) -> Option<Invocation> {
        None
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(self.lives.invoke(ways.home(), what))
    }
}

struct Picker {
    endpoints: Vec<String>,
    random: Random,
    channel: Option<Channel>,
    /// The revision of the state that it knew when its last operation began.
    seen: i64,
    last: usize,
}

/// What came of a pick.
enum Picked {
    By(Value),
    /// The list was empty.
    Nobody,
    Failed(String),
}

impl Client for Picker {
    fn next(&mut self) -> Option<Invocation> {
        Some(Invocation::new("pick", Value::Vector(vec![Value::Int(self.seen)])))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        match self.last {
            1 => {
                let gone = life::GONE + BOUND;
                Some(Invocation::new("wait", Value::Int(gone.as_millis() as i64)))
            }
            2..=3 => self.next(),
            _ => None,
        }
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, _: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            if what.f == "wait" {
                sleep(life::GONE + BOUND).await;
                return Outcome::Ok { value: what.value.clone(), at: None };
            }
            match self.known().await {
                Ok(channel) => self.pick(&channel).await,
                // Nothing was picked so far.
                Err(error) => Outcome::Fail(error.to_string()),
            }
        })
    }
}

impl Picker {
    /// The channel, when the cluster has told of the service.
    async fn known(&mut self) -> Result<Channel, Error> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let options = Options {
                    seed: Some(self.random.next()),
                    ..Options::new(self.endpoints.clone())
                };
                let client = quorate::client::Client::connect(options)?;
                let channel = client.channel(&format!("quorate:///{SERVICE}")).await?;
                self.channel.insert(channel).clone()
            }
        };
        let synced = timeout(CALL, channel.discovery().synced()).await;
        synced.map_err(|_| Error::Timeout { definite: true })??;
        Ok(channel)
    }

    /// `[seen connected [[instance count] ..] empty [error ..]]`
    async fn pick(&mut self, channel: &Channel) -> Outcome {
        let (mut counts, mut empty, mut errors) = (BTreeMap::new(), 0, Vec::new());
        // From one operation to the next there is time enough to make use of it.
        let now = channel.discovery().state().revision;
        let seen = std::mem::replace(&mut self.seen, i64::try_from(now).unwrap_or(i64::MAX));
        let mut connected = true;
        let until = Instant::now() + Duration::from_millis(self.random.between(MILLIS));
        while Instant::now() < until {
            let (status, state) = (channel.discovery().status(), channel.discovery().state());
            connected &= status.synced && status.error.is_none() && !state.stale;
            match one(channel).await {
                Picked::By(instance) => *counts.entry(instance).or_insert(0) += 1,
                Picked::Nobody => empty += 1,
                Picked::Failed(error) => errors.push(Value::String(error)),
            }
            sleep(PICK).await;
        }
        let counts = counts.into_iter().map(|(instance, count)| pair(instance, int(count)));
        let value = vec![
            Value::Int(seen),
            Value::Bool(connected),
            Value::Vector(counts.collect()),
            int(empty),
            Value::Vector(errors),
        ];
        ok(Value::Vector(value), None, false)
    }
}

async fn one(channel: &Channel) -> Picked {
    let is_empty = channel.discovery().state().usable().next().is_none();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let path = http::uri::PathAndQuery::from_static(server::PATH);
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    match timeout(CALL, grpc.unary(Request::new(()), path, codec)).await {
        Ok(Ok(answer)) => match answer.extensions().get::<ServedBy>() {
            Some(served) => Picked::By(life::shown(&served.instance)),
            None => Picked::Failed("the answer does not say who served".to_owned()),
        },
        Ok(Err(status)) if status.code() == Code::Unavailable && is_empty => Picked::Nobody,
        Ok(Err(status)) => Picked::Failed(status.to_string()),
        Err(_) => Picked::Failed(format!("no answer within {CALL:?}")),
    }
}
