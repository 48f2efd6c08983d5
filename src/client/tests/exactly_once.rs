//! The client against three nodes that share a state and fail at random: what was acknowledged took
//! place exactly once, and what failed definitely did not.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tonic::Status;

use super::fake::{Node, plain};
use super::*;
use crate::client::{Answer, Call, SessionOptions};
use crate::error::Error;
use crate::limits;

/// What a state machine keeps of one session.
#[derive(Default)]
struct Scope {
    lowest: u64,
    answered: BTreeSet<u64>,
}

#[derive(Default)]
struct Model {
    scopes: BTreeMap<u64, Scope>,
    /// How often each registration took place.
    applied: BTreeMap<String, u32>,
    opened: u64,
}

impl Model {
    fn register(&mut self, request: &RegisterRequest) -> Result<bool, Error> {
        let name = request.instance.as_ref().unwrap().id.clone();
        if let Some(id) = request.request_id {
            let scope = self.scopes.get_mut(&id.session).expect("an open session");
            if id.sequence < scope.lowest {
                let lowest = scope.lowest;
                return Err(Error::SequenceForgotten { sequence: id.sequence, lowest });
            }
            if id.lowest_unacknowledged > scope.lowest {
                scope.lowest = id.lowest_unacknowledged;
                scope.answered = scope.answered.split_off(&scope.lowest);
            }
            if scope.answered.contains(&id.sequence) {
                return Ok(true);
            }
            assert!(scope.answered.len() < limits::SESSION_IN_FLIGHT, "too many in flight");
            scope.answered.insert(id.sequence);
        }
        *self.applied.entry(name).or_default() += 1;
        Ok(false)
    }
}

/// `lost` is the share of calls that are applied and never answered.
fn node(model: Arc<Mutex<Model>>, seed: u64, lost: f64) -> Node {
    let rng = Mutex::new(StdRng::seed_from_u64(seed));
    Node::new(move |call| {
        let (before, after, lost, pause, copy) = {
            let mut rng = rng.lock().unwrap();
            let mut chance = |p| rng.random_bool(p);
            let fate = (chance(0.1), chance(0.1), chance(lost), chance(0.1), chance(0.05));
            (fate.0, fate.1, fate.2, fate.3, fate.4)
        };
        let model = model.clone();
        async move {
            let request = match call {
                Call::Register(request) => request,
                Call::OpenSession(_) => {
                    let mut model = model.lock().unwrap();
                    model.opened += 1;
                    let session = model.opened;
                    model.scopes.insert(session, Scope { lowest: 1, ..Default::default() });
                    return Ok(Answer::OpenSession(OpenSessionResponse {
                        header: None,
                        session,
                        ttl_ms: 60_000,
                    }));
                }
                call => return Ok(plain(&call)),
            };
            if before {
                return Err(Status::from(Error::NoLeader { leader: None, definite: true }));
            }
            if copy && request.request_id.is_some() {
                // The network holds a copy back and delivers it late.
                let (model, request) = (model.clone(), request.clone());
                tokio::spawn(async move {
                    tokio::time::sleep(Duration::from_millis(300)).await;
                    let _ = model.lock().unwrap().register(&request);
                });
            }
            if pause {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let duplicate = model.lock().unwrap().register(&request)?;
            if lost {
                // Applied, and the answer never comes.
                std::future::pending::<()>().await;
            }
            if after {
                return Err(Status::from(Error::LeaderChanged));
            }
            let header = Some(Header { duplicate, ..Default::default() });
            Ok(Answer::Register(RegisterResponse { header, created: true, mod_revision: 1 }))
        }
        .boxed()
    })
}

fn judge(model: &Model, outcomes: &[(String, bool, Result<(), Error>)]) {
    let (mut fine, mut unknown) = (0, 0);
    for (name, with_id, outcome) in outcomes {
        let applied = model.applied.get(name).copied().unwrap_or(0);
        match outcome {
            Ok(()) => {
                fine += 1;
                assert_eq!(applied, 1, "{name} was acknowledged");
            }
            Err(error) if error.definite() => assert_eq!(applied, 0, "{name}: {error:?}"),
            Err(error) => {
                unknown += 1;
                assert!(applied <= 1, "{name} was applied {applied} times: {error:?}");
                assert!(!with_id, "with an id it should have come through: {name}: {error:?}");
            }
        }
    }
    assert!(fine > outcomes.len() / 2, "{fine} of {}", outcomes.len());
    assert!(unknown > 0, "the test never saw an unknown outcome");
}

async fn cluster(seed: u64, lost: f64) -> (Arc<Mutex<Model>>, Vec<Node>, Client) {
    let model = Arc::new(Mutex::new(Model::default()));
    let nodes: Vec<Node> = (0..3).map(|i| node(model.clone(), seed * 10 + i, lost)).collect();
    let all: Vec<&Node> = nodes.iter().collect();
    let options = Options {
        attempt_timeout: Duration::from_millis(100),
        call_timeout: Duration::from_secs(10),
        seed: Some(seed),
        ..options(&all)
    };
    let client = Client::connect(options).unwrap();
    (model, nodes, client)
}

#[tokio::test]
async fn unary_calls_take_place_exactly_once() {
    let (model, _nodes, client) = cluster(1, 0.02).await;
    let session = client.session(SessionOptions::default()).await.unwrap();
    let workers = (0..40).map(|worker| {
        let (client, session) = (client.clone(), session.clone());
        // A write without an id waits for its lost answer up to the deadline.
        let hasty = client.with_timeout(Duration::from_millis(500));
        async move {
            let mut outcomes = Vec::new();
            for i in 0..50 {
                let name = format!("{worker}-{i}");
                let with_id = worker % 4 != 0;
                let outcome = if with_id {
                    client.register(register(&name), Some(&session)).await
                } else {
                    hasty.register(register(&name), None).await
                };
                outcomes.push((name, with_id, outcome.map(|_| ())));
            }
            outcomes
        }
    });
    let outcomes: Vec<_> = join_all(workers).await.into_iter().flatten().collect();
    tokio::time::sleep(Duration::from_millis(400)).await;
    judge(&model.lock().unwrap(), &outcomes);
}

#[tokio::test]
async fn streamed_calls_take_place_exactly_once() {
    // A stream answers every call or breaks.
    let (model, mut nodes, client) = cluster(2, 0.0).await;
    let session = client.session(SessionOptions::default()).await.unwrap();
    let stream = client.stream();
    for node in &nodes {
        node.fake.break_stream_after.store(300, std::sync::atomic::Ordering::Relaxed);
    }
    let workers = (0..40).map(|worker| {
        let (session, stream) = (session.clone(), stream.clone());
        let hasty = stream.with_timeout(Duration::from_millis(500));
        tokio::spawn(async move {
            let mut outcomes = Vec::new();
            for i in 0..50 {
                let name = format!("{worker}-{i}");
                let with_id = worker % 4 != 0;
                let outcome = if with_id {
                    stream.call(register(&name), Some(&session)).await
                } else {
                    hasty.call(register(&name), None).await
                };
                outcomes.push((name, with_id, outcome.map(|_| ())));
            }
            outcomes
        })
    });
    let workers: Vec<_> = workers.collect();
    // Meanwhile nodes die and come back.
    for round in 0..4 {
        tokio::time::sleep(Duration::from_millis(150)).await;
        nodes[round % 3].stop();
        tokio::time::sleep(Duration::from_millis(50)).await;
        nodes[round % 3].start();
    }
    let outcomes: Vec<_> =
        join_all(workers).await.into_iter().flat_map(|worker| worker.unwrap()).collect();
    tokio::time::sleep(Duration::from_millis(400)).await;
    judge(&model.lock().unwrap(), &outcomes);
}
