//! Global transactions: clients begin sagas and TCCs of two or three branches that move money between
//! accounts of participants, some with branches that are refused, and look how far they are. In the end all of
//! them are listed, and the participants' books are opened.

mod bank;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use quorate::client::{BranchContext, BranchOp, BranchResults, Registration};
use quorate::error::Error;
use quorate::proto::v1;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use super::{
    Boxed, Client, Invocation, Shape, Ways, Workload, int, not_read, not_written, ok, pair, parts,
    server,
};
use crate::check::saga::Terms;
use crate::check::{replay, saga};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;
use bank::{Bank, Move};

const ACCOUNTS: usize = 8;
const BALANCE: i64 = 200;
const TERMS: Terms = Terms { accounts: ACCOUNTS, balance: BALANCE };

/// Gids are numbers, behind this.
const PREFIX: &str = "jepsen-";
/// How long the cluster waits for a participant, and how long it pauses, so short that what has failed goes on
/// soon after the faults.
const CALL_MS: u64 = 1_000;
const PAUSE_MS: u64 = 50;
const PAUSE_MAX_MS: u64 = 1_000;
/// How long a TCC may be tried.
const PREPARED_MS: u64 = 5_000;
/// Which ones are looked at, and how often in the end.
const RECENT: usize = 100;
const LOOKS: usize = 10;
/// How long all of them may take to end when nothing is in their way.
const PATIENCE: Duration = Duration::from_secs(40);
const AGAIN: Duration = Duration::from_millis(200);
/// How long participants may take to be registered at the beginning.
const OPENING: Duration = Duration::from_secs(10);
const PAGE: u32 = 10_000;

#[derive(Debug)]
pub struct Sagas {
    shared: Arc<Shared>,
    endpoints: Vec<String>,
    participants: Mutex<Vec<Registration>>,
}

#[derive(Debug)]
struct Shared {
    bank: Bank,
    /// Transactions so far; each gid is used once.
    gids: AtomicUsize,
}

pub fn judge(history: &History) -> Result<Vec<Report>, history::Error> {
    Ok(vec![saga::check(history, TERMS)?, replay::order(history)?])
}

impl Sagas {
    pub fn new(shape: Shape) -> Sagas {
        let shared = Shared { bank: Bank::new(ACCOUNTS, BALANCE), gids: AtomicUsize::new(0) };
        Sagas {
            shared: Arc::new(shared),
            endpoints: shape.endpoints,
            participants: Mutex::default(),
        }
    }
}

impl Workload for Sagas {
    fn prepare<'a>(&'a self, _: &'a Connection) -> Boxed<'a, Result<(), Error>> {
        Box::pin(async move {
            let mut participants = self.participants.lock().await;
            if participants.is_empty() {
                let client = server::client(&self.endpoints)?;
                *participants = self.shared.bank.open(&client).await?;
            }
            for participant in participants.iter() {
                let registered = timeout(OPENING, participant.registered()).await;
                registered.map_err(|_| Error::Timeout { definite: false })??;
            }
            Ok(())
        })
    }

    fn client(&self, number: usize, random: Random) -> Box<dyn Client> {
        let (shared, trials, last) = (self.shared.clone(), VecDeque::new(), 0);
        Box::new(One { shared, random, trials, last, audits: number == 0 })
    }
}

struct One {
    shared: Arc<Shared>,
    random: Random,
    /// What is left to do of the TCC that this client tries.
    trials: VecDeque<Invocation>,
    last: usize,
    /// Opens the books in the end.
    audits: bool,
}

impl Client for One {
    fn next(&mut self) -> Option<Invocation> {
        if let Some(next) = self.trials.pop_front() {
            return Some(next);
        }
        let begun = self.shared.gids.load(Ordering::Relaxed);
        if begun > 0 && self.random.chance(40) {
            return Some(self.look(begun));
        }
        let gid = self.shared.gids.fetch_add(1, Ordering::Relaxed);
        let mode = if self.random.chance(25) { "tcc" } else { "saga" };
        // A few are given up when a call has failed so often, without a refusal.
        let attempts = if self.random.chance(30) { 2 } else { 0 };
        let value = vec![int(gid), Value::keyword(mode), int(attempts), self.moves()];
        Some(Invocation::new("begin", Value::Vector(value)))
    }

    fn last(&mut self) -> Option<Invocation> {
        self.last += 1;
        if !self.audits {
            let begun = self.shared.gids.load(Ordering::Relaxed);
            return (self.last <= LOOKS && begun > 0).then(|| self.look(begun));
        }
        let f = ["list", "journal", "read"].get(self.last - 1)?;
        Some(Invocation::new(f, Value::Nil))
    }

    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome> {
        Box::pin(async move {
            match what.f {
                "begin" => self.begin(ways.home(), what).await,
                "try" => self.attempt(ways.home(), what).await,
                "confirm" | "cancel" => self.decide(ways.home(), what).await,
                "look" => look(self.random.pick(&ways.all), what).await,
                "list" => list(ways).await,
                "journal" => Outcome::Ok { value: self.shared.bank.journal(), at: None },
                _ => Outcome::Ok { value: self.shared.bank.balances(), at: None },
            }
        })
    }
}

fn gid(number: &Value) -> String {
    format!("{PREFIX}{number}")
}

impl One {
    fn look(&mut self, begun: usize) -> Invocation {
        let first = begun.saturating_sub(RECENT);
        let gid = first + self.random.below(begun - first);
        Invocation::new("look", pair(int(gid), Value::Nil))
    }

    /// `[[account amount refuses] ..]`, which add up to nothing.
    fn moves(&mut self) -> Value {
        let branches = 2 + self.random.below(2);
        let mut accounts: Vec<usize> = (0..ACCOUNTS).collect();
        self.random.shuffle(&mut accounts);
        let mut amounts = vec![1 + self.random.below(40) as i64];
        if branches == 3 {
            amounts.push(1 + self.random.below(40) as i64);
        }
        amounts.push(-amounts.iter().sum::<i64>());
        self.random.shuffle(&mut amounts);
        let refuses = self.random.chance(15).then(|| self.random.below(branches));
        let moves = accounts.into_iter().zip(amounts).enumerate();
        let moves = moves.map(|(number, (account, amount))| {
            let refuses = Value::Bool(refuses == Some(number));
            Value::Vector(vec![int(account), Value::Int(amount), refuses])
        });
        Value::Vector(moves.collect())
    }

    async fn begin(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [number, mode, attempts, moves] = parts(&what.value);
        let is_tcc = *mode == Value::keyword("tcc");
        let moves = moves.elements().unwrap_or_default();
        let branches = moves.iter().enumerate().map(|(branch, what)| plan(branch, what, attempts));
        let request = match is_tcc {
            false => v1::BeginSagaRequest {
                mode: v1::SagaMode::Saga.into(),
                branches: branches.collect(),
                concurrent: self.random.chance(30),
                submit: true,
                ..Default::default()
            },
            true => v1::BeginSagaRequest {
                mode: v1::SagaMode::Tcc.into(),
                prepared_timeout_ms: PREPARED_MS,
                ..Default::default()
            },
        };
        match way.begin_saga(v1::BeginSagaRequest { gid: gid(number), ..request }).await {
            Ok(answer) => {
                if is_tcc {
                    let branches = moves.iter().enumerate().map(|(branch, what)| {
                        let value = vec![number.clone(), int(branch), what.clone()];
                        Invocation::new("try", Value::Vector(value))
                    });
                    self.trials.extend(branches);
                    let decision = self.decision(number, 80);
                    self.trials.extend(decision);
                }
                ok(what.value.clone(), answer.header, answer.created)
            }
            Err(error) => not_written(&error),
        }
    }

    /// Confirms so often; now and then it does nothing, and the time runs out.
    fn decision(&mut self, number: &Value, confirms: usize) -> Option<Invocation> {
        let f = if self.random.chance(confirms) { "confirm" } else { "cancel" };
        (!self.random.chance(10)).then(|| Invocation::new(f, Value::Vector(vec![number.clone()])))
    }

    /// Registers the branch, and then tries it. What has no good answer is not confirmed.
    async fn attempt(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [number, Value::Int(branch), moves] = parts(&what.value) else {
            panic!("{} has no branch", what.value);
        };
        let plan = plan(*branch as usize, moves, &Value::Int(0));
        let request = v1::RegisterBranchRequest {
            gid: gid(number),
            branch: Some(plan),
            ..Default::default()
        };
        let outcome = match way.register_branch(request).await {
            Ok(answer) => {
                let context = BranchContext {
                    namespace: "default".to_owned(),
                    gid: gid(number),
                    branch: branch.to_string(),
                    op: BranchOp::Try,
                    attempt: 1,
                    epoch: 0,
                    results: BranchResults::default(),
                };
                match self.shared.bank.call(context, message(moves)).await {
                    Ok(()) => ok(what.value.clone(), answer.header, answer.created),
                    // The branch is registered, whatever became of its try.
                    Err(status) => Outcome::Info(status.message().to_owned()),
                }
            }
            Err(error) => not_written(&error),
        };
        if !matches!(outcome, Outcome::Ok { .. }) {
            self.trials.clear();
            let decision = self.decision(number, 0);
            self.trials.extend(decision);
        }
        outcome
    }

    async fn decide(&mut self, way: &Connection, what: &Invocation) -> Outcome {
        let [number] = parts(&what.value);
        let gid = gid(number);
        let answer = if what.f == "confirm" {
            let request = v1::SubmitSagaRequest { gid, ..Default::default() };
            way.submit_saga(request).await.map(|answer| (answer.header, answer.changed))
        } else {
            let request = v1::AbortSagaRequest { gid, ..Default::default() };
            way.abort_saga(request).await.map(|answer| (answer.header, answer.changed))
        };
        match answer {
            Ok((header, changed)) => ok(what.value.clone(), header, changed),
            Err(error) => {
                // The same once more is the same decision.
                if !error.definite() && self.random.chance(70) {
                    self.trials.push_back(what.clone());
                }
                not_written(&error)
            }
        }
    }
}

fn message(what: &Value) -> Move {
    let [Value::Int(account), Value::Int(amount), Value::Bool(refuses)] = parts(what) else {
        panic!("{what} moves nothing");
    };
    Move { account: *account as u32, amount: *amount, refuses: *refuses }
}

fn plan(branch: usize, what: &Value, attempts: &Value) -> v1::NewSagaBranch {
    let message = message(what);
    let target = bank::target(message.account as usize);
    let Value::Int(attempts) = attempts else { panic!("{attempts} is no number of attempts") };
    v1::NewSagaBranch {
        id: branch.to_string(),
        action: target.clone(),
        compensation: target,
        payload: prost::Message::encode_to_vec(&message),
        policy: Some(v1::SagaPolicy {
            timeout_ms: CALL_MS,
            attempts: *attempts as u32,
            pause_ms: PAUSE_MS,
            pause_max_ms: PAUSE_MAX_MS,
        }),
        ..Default::default()
    }
}

fn status(saga: &v1::Saga) -> Value {
    Value::keyword(match saga.status() {
        v1::SagaStatus::Unspecified => "unspecified",
        v1::SagaStatus::Prepared => "prepared",
        v1::SagaStatus::Submitted => "submitted",
        v1::SagaStatus::Aborting => "aborting",
        v1::SagaStatus::Succeeded => "succeeded",
        v1::SagaStatus::Failed => "failed",
        v1::SagaStatus::Suspended => "suspended",
    })
}

async fn look(way: &Connection, what: &Invocation) -> Outcome {
    let [number, _] = parts(&what.value);
    let request = v1::GetSagaRequest { gid: gid(number), ..Default::default() };
    match way.get_saga(request).await {
        Ok(answer) => {
            let status = answer.saga.as_ref().map_or(Value::Nil, status);
            ok(pair(number.clone(), status), answer.header, false)
        }
        Err(Error::NotFound { .. }) => {
            Outcome::Ok { value: pair(number.clone(), Value::Nil), at: None }
        }
        Err(error) => not_read(&error),
    }
}

/// `[[gid status] ..]` of all, when they have ended or have had their time.
async fn list(ways: &Ways) -> Outcome {
    // What nobody has an answer to may still begin.
    sleep(ways.home().patience() + bank::AFTER).await;
    let until = Instant::now() + PATIENCE;
    for way in ways.all.iter().cycle() {
        let over = Instant::now() > until;
        match all(way).await {
            Ok(sagas) => {
                let ended = [v1::SagaStatus::Succeeded, v1::SagaStatus::Failed];
                if over || sagas.iter().all(|saga| ended.contains(&saga.status())) {
                    // A late call may still do something.
                    sleep(bank::AFTER).await;
                    let shown = sagas.iter().map(|saga| {
                        let number = saga.gid.strip_prefix(PREFIX).and_then(|it| it.parse().ok());
                        let name = || Value::String(saga.gid.clone());
                        pair(number.map_or_else(name, Value::Int), status(saga))
                    });
                    return Outcome::Ok { value: Value::Vector(shown.collect()), at: None };
                }
            }
            Err(error) if over => return not_read(&error),
            Err(_) => {}
        }
        sleep(AGAIN).await;
    }
    Outcome::Fail("there are no nodes".to_owned())
}

async fn all(way: &Connection) -> Result<Vec<v1::Saga>, Error> {
    let mut sagas: Vec<v1::Saga> = Vec::new();
    loop {
        let after = sagas.last().map(|saga| saga.gid.clone()).unwrap_or_default();
        let request = v1::ListSagasRequest { limit: PAGE, after, ..Default::default() };
        let page = way.list_sagas(request).await?;
        sagas.extend(page.sagas);
        if !page.more {
            return Ok(sagas);
        }
    }
}
