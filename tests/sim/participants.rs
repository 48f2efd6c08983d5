//! Whom global transactions call: services outside the cluster that keep accounts. A call travels, is
//! carried out and answered by tasks of the world's, so whoever made it may be dead when it arrives. It gets
//! lost before its effect or after it, comes late, is refused, fails, or is asked to come again.
//!
//! - `bank` has a barrier in the very database in which it keeps its accounts, as participants should: each
//!   part is carried out once at most, and none that was taken back. What it refuses leaves no mark.
//! - [`PLAIN`] carries out whatever comes, as often as it comes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use quorate::node::{Call, Leadership, Participants};
use quorate::raft::types::NodeId;
use quorate::runtime;
use quorate::state::{CallAnswer, Command, Op, SagaName, SagaNews, SagaStep};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::oneshot;

use crate::cluster::World;
use crate::oracle::saga_calls::CallId;
use crate::plant::Plant;
use crate::trace::trace;

/// Where they are in the network.
pub const PARTICIPANTS: u64 = 50;
/// URLs of what has no barrier begin so.
pub const PLAIN: &str = "http://plain";

/// What a participant is asked for: with an empty branch, about the whole.
#[derive(Debug, Clone)]
pub struct Visit {
    pub id: CallId,
    /// By which the barrier knows it, together with the op.
    key: String,
    pub plain: bool,
    /// What an action adds, or how much is tried, confirmed or cancelled.
    pub amount: i64,
}

impl Visit {
    /// The payload is the amount; a query has none.
    pub fn new(id: CallId, target: &str, payload: &[u8]) -> Visit {
        let text = std::str::from_utf8(payload).expect("clients write numbers");
        let amount = match text {
            "" => 0,
            text => text.parse().expect("clients write numbers"),
        };
        Visit { plain: target.starts_with(PLAIN), ..Visit::bank(id, amount) }
    }

    /// Of the bank.
    pub fn bank(id: CallId, amount: i64) -> Visit {
        Visit { key: format!("{}/{}", id.gid, id.branch), id, plain: false, amount }
    }
}

/// What the participants know.
#[derive(Debug)]
pub struct Services {
    random: StdRng,
    /// Whatever comes is carried out and answered at once.
    calm: bool,
    /// Nothing that comes is carried out or answered.
    pub deaf: bool,
    /// The bank's barrier: which parts are marked, and by what.
    marks: BTreeMap<(String, &'static str), &'static str>,
    /// Whether the local transaction of a message was committed; false = it never will be.
    local: BTreeMap<String, bool>,
}

/// What becomes of one call.
#[derive(Debug, Clone, Default)]
struct Fate {
    late: Duration,
    works: Duration,
    ends: End,
    /// Whether the caller notices that it is not answered.
    silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum End {
    #[default]
    Answered,
    Refused,
    /// It fails, and nothing was done.
    Fails,
    /// It is done, and nobody hears of it.
    AnswerLost,
    /// The participant is at it: it is done a while later, or when it is asked again.
    Ongoing {
        done_after: Option<Duration>,
    },
}

/// What a call has done.
struct Effect {
    amount: i64,
}

impl Services {
    pub fn new(seed: u64) -> Services {
        Services {
            random: StdRng::seed_from_u64(seed),
            calm: false,
            deaf: false,
            marks: BTreeMap::new(),
            local: BTreeMap::new(),
        }
    }

    /// From now on nothing goes wrong.
    pub fn calm_down(&mut self) {
        self.calm = true;
    }

    /// The client's own part of a message. False = the participant was asked before, and has said that there
    /// will be none.
    pub fn commit_local(&mut self, gid: &str) -> bool {
        *self.local.entry(gid.to_owned()).or_insert(true)
    }

    fn fate(&mut self, op: &str) -> Fate {
        if self.calm {
            return Fate::default();
        }
        let random = &mut self.random;
        let mut millis = |range| Duration::from_millis(random.random_range(range));
        let (late, works) = (millis(300..4_000), millis(0..20));
        let (slow, soon) = (millis(100..2_000), millis(0..800));
        let late = if random.random_range(0..100) < 8 { late } else { Duration::ZERO };
        let works = if random.random_range(0..100) < 6 { slow } else { works };
        let may_refuse = matches!(op, "action" | "try");
        let ends = match random.random_range(0..100) {
            0..12 if may_refuse => End::Refused,
            0..3 => End::Refused,
            12..20 => End::Fails,
            20..26 => End::AnswerLost,
            26..33 => End::Ongoing { done_after: (random.random_range(0..2) == 0).then_some(soon) },
            _ => End::Answered,
        };
        Fate { late, works, ends, silent: random.random_range(0..2) == 0 }
    }

    fn carry_out(&mut self, visit: &Visit, refuses: bool) -> (CallAnswer, Option<Effect>) {
        let CallId { gid, branch, op, attempt: _ } = &visit.id;
        let done = CallAnswer::Succeeded { result: Default::default() };
        let refused = |error: &str| CallAnswer::Failed { error: error.to_owned() };
        match (*op, visit.plain) {
            ("query", _) => match *self.local.entry(gid.clone()).or_insert(false) {
                true => (done, None),
                false => (refused("it was not committed"), None),
            },
            (_, true) => (done, Some(Effect { amount: 0 })),
            (op, false) => {
                let part = |op| (visit.key.clone(), op);
                let (origin, amount) = match op {
                    "action" | "confirm" => (None, visit.amount),
                    "try" => (None, -visit.amount),
                    "compensate" => (Some("action"), -visit.amount),
                    "cancel" => (Some("try"), visit.amount),
                    other => panic!("nobody asks for {other}"),
                };
                if let Some(origin) = origin
                    && let Entry::Vacant(vacant) = self.marks.entry(part(origin))
                {
                    vacant.insert(op);
                    self.marks.insert(part(op), op);
                    return (done, None);
                }
                match self.marks.entry(part(op)) {
                    Entry::Occupied(by) if *by.get() == op => (done, None),
                    Entry::Occupied(_) => (refused("it was taken back before"), None),
                    // The database takes the mark back with everything else.
                    Entry::Vacant(_) if refuses => (refused("not now"), None),
                    Entry::Vacant(vacant) => {
                        vacant.insert(op);
                        let result = format!("{gid}/{branch}").into_bytes().into();
                        (CallAnswer::Succeeded { result }, Some(Effect { amount }))
                    }
                }
            }
        }
    }
}

impl World {
    /// One call to its end; None = it is never answered.
    pub async fn visit(self: &Arc<Self>, from: u64, visit: Visit) -> Option<CallAnswer> {
        let (tx, rx) = oneshot::channel();
        let world = self.clone();
        self.harness.spawn(async move {
            if let Some(answer) = world.serve(from, visit).await {
                // The caller may have given up.
                let _ = tx.send(answer);
            }
        });
        rx.await.ok()
    }

    async fn serve(self: Arc<Self>, from: u64, visit: Visit) -> Option<CallAnswer> {
        let Fate { late, works, ends, silent } = self.services().fate(visit.id.op);
        let unknown = |error: &str| CallAnswer::Unknown { error: error.to_owned() };
        trace!(self, "{from}>services {}", visit.id);
        runtime::sleep(late).await;
        if !self.travel(from, PARTICIPANTS).await {
            return (!silent).then(|| unknown("no connection"));
        }
        runtime::sleep(works).await;
        if self.services().deaf {
            return None;
        }
        let answer = match ends {
            End::Answered | End::Refused | End::AnswerLost => {
                self.carry_out(&visit, ends == End::Refused)
            }
            End::Fails => unknown("out of order"),
            End::Ongoing { done_after } => {
                if let Some(time) = done_after {
                    let (world, visit) = (self.clone(), visit.clone());
                    self.harness.spawn(async move {
                        runtime::sleep(time).await;
                        world.carry_out(&visit, false);
                    });
                }
                CallAnswer::Ongoing { pause_ms: if silent { 0 } else { 50 } }
            }
        };
        if !self.travel(PARTICIPANTS, from).await || ends == End::AnswerLost {
            return (!silent).then(|| unknown("the connection broke"));
        }
        Some(answer)
    }

    fn carry_out(&self, visit: &Visit, refuses: bool) -> CallAnswer {
        let (answer, effect) = self.services().carry_out(visit, refuses);
        trace!(self, "services answer {} {answer:?}", visit.id);
        if let Some(Effect { amount }) = effect {
            let mut oracle = self.oracle();
            match visit.plain {
                true => oracle.plain_effect(&visit.id),
                false => oracle.took_effect(&visit.id.gid, &visit.id.branch, visit.id.op, amount),
            }
        }
        answer
    }
}

/// The way from a node to the participants.
pub struct SimParticipants {
    pub world: Arc<World>,
    pub id: NodeId,
}

impl fmt::Debug for SimParticipants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimParticipants").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Participants for SimParticipants {
    fn call(&self, call: Call) -> BoxFuture<'static, CallAnswer> {
        make(self.world.clone(), self.id, call).boxed()
    }
}

async fn make(world: Arc<World>, from: NodeId, call: Call) -> CallAnswer {
    let id = CallId {
        gid: call.gid().to_owned(),
        branch: call.branch().to_owned(),
        op: call.op(),
        attempt: call.attempt,
    };
    world.oracle().call_is_made(from, &id, call.epoch, call.results());
    let visit = Visit::new(id.clone(), call.target(), call.payload().as_bytes());
    let answer = match world.plant {
        Plant::None => world.visit(from, visit).await,
        _ => make_wrongly(&world, from, &call, visit).await,
    };
    let Some(answer) = answer else { return std::future::pending().await };
    trace!(world, "{from} hears of {id}: {answer:?}");
    world.oracle().call_is_answered(&id, &answer);
    answer
}

/// As a coordinator would that has the planted bug.
async fn make_wrongly(
    world: &Arc<World>,
    from: NodeId,
    call: &Call,
    mut visit: Visit,
) -> Option<CallAnswer> {
    let id = visit.id.clone();
    match world.plant {
        Plant::CallUnrecorded => {
            let answer = world.visit(from, visit.clone()).await;
            let Some(CallAnswer::Unknown { .. }) = answer else { return answer };
            visit.id.attempt += 1;
            world.oracle().call_is_made(from, &visit.id, call.epoch, Ok(Vec::new()));
            world.visit(from, visit).await
        }
        Plant::KeyOfAttempt => {
            visit.key = format!("{}/{}", visit.key, id.attempt);
            world.visit(from, visit).await
        }
        Plant::SilenceIsRefusal => {
            let refused = CallAnswer::Failed { error: "no answer".to_owned() };
            let patience = call.timeout.saturating_sub(Duration::from_millis(2));
            match runtime::timeout(patience, world.visit(from, visit)).await {
                Ok(Some(CallAnswer::Unknown { .. }) | None) | Err(_) => Some(refused),
                Ok(answer) => answer,
            }
        }
        Plant::OngoingIsDone => match world.visit(from, visit).await {
            Some(CallAnswer::Ongoing { .. }) => {
                Some(CallAnswer::Succeeded { result: Default::default() })
            }
            answer => answer,
        },
        Plant::LateIsHeard => {
            let (of_world, (tx, rx)) = (world.clone(), oneshot::channel());
            world.harness.spawn(async move {
                let answer = of_world.visit(from, visit).await;
                if let Some(answer) = &answer {
                    tell(&of_world, &id, answer.clone()).await;
                }
                // The caller may be dead.
                let _ = tx.send(answer);
            });
            rx.await.ok()?
        }
        Plant::TakeoverForgotten if world.oracle().was_begun_before(&id, call.epoch) => None,
        _ => world.visit(from, visit).await,
    }
}

/// Tells the answer of a call as if it were that of a later attempt which is under way now.
async fn tell(world: &Arc<World>, id: &CallId, answer: CallAnswer) {
    let under_way = world.oracle().under_way(id);
    let Some((call, attempt)) = under_way.filter(|(_, attempt)| *attempt != id.attempt) else {
        return;
    };
    let Some((_, node)) = world.leader().and_then(|leader| world.running(leader)) else { return };
    let Leadership::Leader { term: epoch } = node.leadership() else { return };
    let name = SagaName { namespace: "default".to_owned(), gid: id.gid.clone() };
    let steps = vec![SagaStep { name, news: SagaNews::Answer { call, attempt, answer } }];
    let command = Command { request: None, op: Op::AdvanceSagas { epoch, steps } };
    // What becomes of it is what the oracle looks at.
    drop(node.propose(&command, Duration::from_secs(1)).await);
}
