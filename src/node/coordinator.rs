//! The leader's loop over global transactions: makes the calls that transactions have begun in its term, and
//! tells the state what came of them. It decides nothing. Which call is made when, how often, and what
//! follows from its answer is computed by the state, and every call stands there as RUNNING before it is
//! made. So a leader that was deposed makes calls that nobody counts, with the same idempotency keys as its
//! successor, and a new one needs to know nothing but the state.
//!
//! What is told goes in batches: while one is on its way to the disks of a quorum, the next fills up.
//!
//! How a participant is called is a parameter, [`Participants`].

mod call;
mod lines;
mod native;

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;

pub use self::call::Call;
use self::lines::Lines;
use super::{Answer, Leadership, Node, is_below, shortened};
use crate::error::Error;
use crate::failpoint::failpoint;
use crate::limits::{COMMAND_BYTES, SAGA_STEPS};
use crate::proto::v1::Consistency;
use crate::runtime::{self, Instant};
use crate::state::{
    BranchPlan, CallAnswer, CallName, CallState, Command, Kind, Op, Refusal, Reply, Saga, SagaName,
    SagaNews, SagaStep, State, Target,
};

/// How often it is looked whether this node leads.
const TICK: Duration = Duration::from_millis(50);
/// Pause after a command that was not carried out, and after one that changed nothing: the clocks of
/// two leaders differ.
const AGAIN: Duration = Duration::from_millis(50);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Commands that tell what came of calls, on their way at the same time.
const PROPOSALS: usize = 2;
/// Transactions that time has made something of, in one command.
const DUE: usize = 512;
/// Bytes of one command's steps.
const STEPS_BYTES: usize = COMMAND_BYTES / 2;
/// A step besides its texts and its result.
const STEP_BYTES: usize = 128;

/// What came of a call that has waited too long for its turn: it has not failed, and is made later.
const NOT_ASKED: CallAnswer = CallAnswer::Ongoing { pause_ms: 0 };

/// Calls participants.
pub trait Participants: Send + Sync + Debug + 'static {
    /// Calls once. Whoever waits for it gives up after the call's timeout.
    fn call(&self, call: Call) -> BoxFuture<'static, CallAnswer>;
}

/// What this node counts of the calls that it made.
#[derive(Debug, Default)]
pub struct Figures {
    calls: AtomicU64,
    failures: AtomicU64,
    under_way: AtomicU64,
}

/// See [`super::Status`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SagaStatus {
    /// Transactions that are neither finished nor suspended, and those that wait for an operator.
    pub running: u64,
    pub suspended: u64,
    /// Calls of participants that this node has begun, those of them that came to nothing, and those
    /// under way.
    pub calls: u64,
    pub failures: u64,
    pub under_way: u64,
}

impl Node {
    /// Waits until a transaction is finished or suspended; when the time is over it is as it is. With
    /// the revision at which it was so, and whether that is all there was.
    pub async fn wait_for_saga(
        &self,
        name: &SagaName,
        patience: Duration,
        timeout: Duration,
    ) -> Result<(Arc<Saga>, u64, Consistency), Error> {
        name.check()?;
        let deadline = Instant::now() + patience;
        self.barrier(Consistency::Linearizable, timeout).await?;
        loop {
            let look = |state: &State| {
                let found = find_saga(state, name)?;
                let wait = match found.rests() {
                    true => None,
                    // With the state's lock held, so that nothing goes unheard.
                    false => Some(self.0.replica.sagas.wait(&found)?),
                };
                Ok::<_, Error>((found, state.revision(), wait))
            };
            let (found, revision, wait) = self.read(look)?;
            let Some(mut wait) = wait else {
                return Ok((found, revision, Consistency::Linearizable));
            };
            if runtime::timeout_at(deadline, wait.woken()).await.is_err() {
                let (found, revision) =
                    self.read(|state| (find_saga(state, name), state.revision()));
                // Others may know more by now.
                return Ok((found?, revision, Consistency::Stale));
            }
        }
    }

    /// Refuses URLs that no `--participant-allow` of this node begins.
    pub(super) fn check_participants(&self, op: &Op) -> Result<(), Error> {
        let plan = |at: &str, plan: &BranchPlan| {
            self.check_participant(&format!("{at}.action"), &plan.action)?;
            self.check_participant(&format!("{at}.compensation"), &plan.compensation)
        };
        match op {
            Op::BeginSaga(begin) => {
                self.check_participant("query", &begin.terms.query)?;
                let mut plans = begin.branches.iter().enumerate();
                plans.try_for_each(|(i, it)| plan(&format!("branches[{i}]"), it))
            }
            Op::RegisterBranch { name: _, plan: it } => plan("branch", it),
            _ => Ok(()),
        }
    }

    fn check_participant(&self, field: &str, target: &str) -> Result<(), Error> {
        match Target::parse(target) {
            Ok(Target::Url(url)) if url.parse::<tonic::codegen::http::Uri>().is_err() => {
                return Err(Error::invalid(field, target, "a URL"));
            }
            Ok(Target::Url(url)) if !self.may_call(url) => {}
            // What is no target at all, the state refuses.
            _ => return Ok(()),
        }
        let allowed = &self.0.config.participant_allow;
        let allowed = match allowed.is_empty() {
            true => "quorate:///service/package.Service/Method: this node has no \
                     --participant-allow"
                .to_owned(),
            false => format!("a URL that begins with {}", allowed.join(" or ")),
        };
        Err(Error::invalid(field, target, allowed))
    }

    fn may_call(&self, url: &str) -> bool {
        self.0.config.participant_allow.iter().any(|prefix| is_below(prefix, url))
    }

    pub(super) fn saga_status(&self) -> SagaStatus {
        let Figures { calls, failures, under_way } = &self.0.saga_figures;
        let (running, suspended) = self.read(|state| state.saga_counts());
        let [calls, failures, under_way] =
            [calls, failures, under_way].map(|figure| figure.load(Ordering::Relaxed));
        SagaStatus { running, suspended, calls, failures, under_way }
    }
}

/// One transaction by its name.
pub fn find_saga(state: &State, name: &SagaName) -> Result<Arc<Saga>, Error> {
    let SagaName { namespace, gid } = name;
    let unknown = || Refusal::NotFound { kind: Kind::Saga, name: format!("{namespace}/{gid}") };
    Ok(state.saga(namespace, gid).cloned().ok_or_else(unknown)?)
}

/// Runs until the node is dropped.
pub async fn run(node: Node) {
    let mut led = (0, BTreeSet::new());
    loop {
        if let Leadership::Leader { term } = node.leadership() {
            let board = &node.0.replica.sagas;
            board.follow();
            // What it saw before in the same term it may have called: the state finds that out of itself.
            let seen = if led.0 == term { led.1 } else { BTreeSet::new() };
            led = (term, Leading::new(&node, term, seen).run().await);
            board.unfollow();
            node.0.saga_figures.under_way.store(0, Ordering::Relaxed);
        }
        runtime::sleep(TICK).await;
    }
}

/// One call of one transaction.
type CallKey = (Arc<str>, Arc<str>, CallName, u32);

/// A call that waits its turn or is under way.
#[derive(Debug)]
struct Job {
    key: CallKey,
    call: Call,
    deadline: Instant,
}

/// A call that has ended.
#[derive(Debug)]
struct Done {
    key: CallKey,
    participant: Arc<str>,
    answer: CallAnswer,
}

/// A command that has come back.
#[derive(Debug)]
enum Proposed {
    Reports(Vec<(CallKey, CallAnswer)>, Answer),
    Due(Vec<SagaName>, Answer),
}

/// One term of leadership.
struct Leading<'a> {
    node: &'a Node,
    term: u64,
    lines: Lines<Job>,
    calls: FuturesUnordered<BoxFuture<'static, Done>>,
    /// Calls from when they were seen in the state until the state has what came of them.
    known: BTreeSet<CallKey>,
    /// What is to be told.
    reports: VecDeque<(CallKey, CallAnswer)>,
    reports_under_way: usize,
    /// Transactions that are to go on.
    due: VecDeque<SagaName>,
    due_under_way: bool,
    proposals: FuturesUnordered<BoxFuture<'static, Proposed>>,
    /// No command before.
    not_before: Instant,
}

impl<'a> Leading<'a> {
    fn new(node: &'a Node, term: u64, known: BTreeSet<CallKey>) -> Self {
        Leading {
            node,
            term,
            lines: Lines::default(),
            calls: FuturesUnordered::new(),
            known,
            reports: VecDeque::new(),
            reports_under_way: 0,
            due: VecDeque::new(),
            due_under_way: false,
            proposals: FuturesUnordered::new(),
            not_before: Instant::now(),
        }
    }

    /// Until this node leads no more, or again. Returns the calls that it has seen.
    async fn run(mut self) -> BTreeSet<CallKey> {
        let barrier = self.node.barrier(Consistency::Linearizable, TIMEOUT);
        if barrier.await.is_err() || !self.leads() {
            return self.known;
        }
        let (left_behind, begun) = self
            .node
            .read(|state| (state.sagas_left_behind(self.term), state.sagas_begun(self.term)));
        if !left_behind.is_empty() {
            tracing::info!(count = left_behind.len(), "global transactions taken over");
        }
        self.due.extend(left_behind.iter().map(|saga| name_of(saga)));
        self.look(begun);
        let mut tick = Instant::now() + TICK;
        loop {
            self.begin_calls();
            self.propose();
            let wake = self.wake().map_or(tick, |wake| wake.min(tick));
            tokio::select! {
                biased;
                Some(done) = self.calls.next() => self.hear(done),
                Some(proposed) = self.proposals.next() => self.settle(proposed),
                changed = self.node.0.replica.sagas.changed() => self.look(changed),
                () = runtime::sleep_until(wake) => {}
            }
            // What else is there already goes with it.
            while let Some(Some(done)) = futures::FutureExt::now_or_never(self.calls.next()) {
                self.hear(done);
            }
            if Instant::now() >= tick {
                tick = Instant::now() + TICK;
                self.put_off();
                if !self.leads() {
                    return self.known;
                }
            }
        }
    }

    fn leads(&self) -> bool {
        self.node.leadership() == Leadership::Leader { term: self.term }
    }

    /// Takes up the calls that transactions have begun.
    fn look(&mut self, sagas: Vec<Arc<Saga>>) {
        // With the state locked, it is not behind the entry that has begun them.
        let (now, now_ms) = (Instant::now(), self.node.read(|_| self.node.now_ms()));
        for saga in sagas {
            if saga.phase.is_finished() {
                record_end(&saga);
                continue;
            }
            for (name, call) in saga.live_calls() {
                let CallState::Running { deadline_ms, epoch } = call.state else { continue };
                let left = Duration::from_millis(deadline_ms.saturating_sub(now_ms));
                let key = (saga.namespace.clone(), saga.gid.clone(), name, call.attempt);
                if epoch != self.term || !self.known.insert(key.clone()) {
                    continue;
                }
                if left.is_zero() {
                    self.reports.push_front((key, NOT_ASKED));
                    continue;
                }
                let call = Call::new(saga.clone(), name, call.attempt, epoch, left);
                self.lines.push(call.participant(), Job { key, call, deadline: now + left });
            }
        }
    }

    fn begin_calls(&mut self) {
        while let Some((participant, job)) = self.lines.next() {
            let Job { key, mut call, deadline } = job;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.reports.push_front((key, NOT_ASKED));
                self.lines.done(&participant);
                continue;
            }
            if !self.is_wanted(&key) {
                self.known.remove(&key);
                self.lines.done(&participant);
                continue;
            }
            call.timeout = left;
            self.node.0.saga_figures.calls.fetch_add(1, Ordering::Relaxed);
            let answer = self.call(call);
            self.calls.push(Box::pin(async move {
                failpoint!(await SagaDecided, |error: std::io::Error| {
                    let error = error.to_string();
                    Done { key, participant, answer: CallAnswer::Unknown { error } }
                });
                let answer = runtime::timeout_at(deadline, answer).await;
                let answer = answer.unwrap_or_else(|_| no_answer());
                Done { key, participant, answer }
            }));
        }
        let under_way = self.calls.len() as u64;
        self.node.0.saga_figures.under_way.store(under_way, Ordering::Relaxed);
    }

    /// It may have waited, and the transaction gone another way meanwhile.
    fn is_wanted(&self, (namespace, gid, name, attempt): &CallKey) -> bool {
        self.node.read(|state| {
            let Some(saga) = state.saga(namespace, gid) else { return false };
            saga.live_calls().any(|(live, call)| {
                let runs =
                    matches!(call.state, CallState::Running { epoch, .. } if epoch == self.term);
                live == *name && call.attempt == *attempt && runs
            })
        })
    }

    /// Takes out calls that will be over before their turn comes.
    fn put_off(&mut self) {
        let soon = Instant::now() + AGAIN + TICK;
        for Job { key, .. } in self.lines.give_up(|job| job.deadline <= soon) {
            self.reports.push_front((key, NOT_ASKED));
        }
    }

    /// Makes it.
    fn call(&self, call: Call) -> BoxFuture<'static, CallAnswer> {
        let unknown = |error: String| -> BoxFuture<'static, CallAnswer> {
            Box::pin(std::future::ready(CallAnswer::Unknown { error: shortened(error) }))
        };
        match Target::parse(call.target()) {
            Ok(Target::Counter(addition)) => {
                Box::pin(native::call(self.node.clone(), call, *addition))
            }
            // The list may be another one than when the transaction began.
            Ok(Target::Url(url)) if !self.node.may_call(url) => {
                unknown("--participant-allow of the leader does not allow it".to_owned())
            }
            Ok(Target::Service { .. } | Target::Url(_)) => self.node.0.participants.call(call),
            Err(allowed) => unknown(format!("the target is not {allowed}")),
        }
    }

    fn hear(&mut self, done: Done) {
        let Done { key, participant, answer } = done;
        self.lines.done(&participant);
        if !matches!(answer, CallAnswer::Succeeded { .. } | CallAnswer::Ongoing { .. }) {
            self.node.0.saga_figures.failures.fetch_add(1, Ordering::Relaxed);
        }
        self.reports.push_back((key, answer));
    }

    fn settle(&mut self, proposed: Proposed) {
        match proposed {
            Proposed::Reports(reports, Ok(_)) => {
                self.reports_under_way -= 1;
                for (key, _) in reports {
                    self.known.remove(&key);
                }
            }
            // Told twice it counts once.
            Proposed::Reports(reports, Err(error)) => {
                self.reports_under_way -= 1;
                self.pause(&error);
                for report in reports.into_iter().rev() {
                    self.reports.push_front(report);
                }
            }
            Proposed::Due(_, Ok(outcome)) => {
                self.due_under_way = false;
                if let Ok(Reply::SagasAdvanced { taken: 0 }) = outcome.result {
                    self.not_before = Instant::now() + AGAIN;
                }
            }
            Proposed::Due(names, Err(error)) => {
                self.due_under_way = false;
                self.pause(&error);
                self.due.extend(names);
            }
        }
    }

    fn pause(&mut self, error: &Error) {
        tracing::debug!(%error, "what became of global transactions is not told yet");
        self.not_before = Instant::now() + AGAIN;
    }

    /// When there is something to propose without anything else happening.
    fn wake(&self) -> Option<Instant> {
        let now = Instant::now();
        let reports = !self.reports.is_empty();
        if reports && self.reports_under_way < PROPOSALS
            || !self.due.is_empty() && !self.due_under_way
        {
            return Some(self.not_before.max(now));
        }
        // What is under way wakes it.
        if reports || self.due_under_way {
            return None;
        }
        let (next_ms, now_ms) = (self.node.read(State::next_saga_ms), self.node.now_ms());
        let left = Duration::from_millis(next_ms?.saturating_sub(now_ms));
        Some(self.not_before.max(now + left))
    }

    fn propose(&mut self) {
        if Instant::now() < self.not_before {
            return;
        }
        while self.report() {}
        if !self.due_under_way {
            if self.due.is_empty() {
                let due = self.node.read(|state| state.due_sagas(self.node.now_ms(), DUE));
                // A call that nobody has made must not be found to have had no answer.
                let untold = self.reports.iter().filter(|(_, answer)| *answer == NOT_ASKED);
                let untold: BTreeSet<(&str, &str)> =
                    untold.map(|((namespace, gid, ..), _)| (&**namespace, &**gid)).collect();
                let due = due.iter().filter(|it| !untold.contains(&(&*it.namespace, &*it.gid)));
                self.due.extend(due.map(|saga| name_of(saga)));
            }
            if !self.due.is_empty() {
                let names: Vec<SagaName> = self.due.drain(..self.due.len().min(DUE)).collect();
                let step = |name: &SagaName| SagaStep { name: name.clone(), news: SagaNews::Due };
                let answer = self.advance(names.iter().map(step).collect());
                self.due_under_way = true;
                self.proposals.push(Box::pin(async { Proposed::Due(names, answer.await) }));
            }
        }
    }

    /// Proposes what is to be told, as much as one command takes. False when nothing is, or enough is on its way.
    fn report(&mut self) -> bool {
        if self.reports_under_way >= PROPOSALS || self.reports.is_empty() {
            return false;
        }
        self.reports_under_way += 1;
        let reports = self.batch();
        let step = |((namespace, gid, call, attempt), answer): &(CallKey, CallAnswer)| {
            let (namespace, gid) = (namespace.to_string(), gid.to_string());
            let answer = answer.clone();
            let news = SagaNews::Answer { call: *call, attempt: *attempt, answer };
            SagaStep { name: SagaName { namespace, gid }, news }
        };
        let answer = self.advance(reports.iter().map(step).collect());
        self.proposals.push(Box::pin(async { Proposed::Reports(reports, answer.await) }));
        true
    }

    /// As many of the reports as one command takes.
    fn batch(&mut self) -> Vec<(CallKey, CallAnswer)> {
        let (mut batch, mut bytes) = (Vec::new(), 0);
        while let Some((key, answer)) = self.reports.front() {
            bytes += STEP_BYTES + key.0.len() + key.1.len() + bytes_of(answer);
            if !batch.is_empty() && (bytes > STEPS_BYTES || batch.len() == SAGA_STEPS) {
                break;
            }
            batch.extend(self.reports.pop_front());
        }
        batch
    }

    fn advance(&self, steps: Vec<SagaStep>) -> impl Future<Output = Answer> + Send + 'static {
        let op = Op::AdvanceSagas { epoch: self.term, steps };
        let node = self.node.clone();
        async move { node.propose_here(&Command { request: None, op }, TIMEOUT).await }
    }
}

/// The state finds this out by itself when its clock has come to the deadline, which is a
/// little late when this node's was turned back.
fn no_answer() -> CallAnswer {
    CallAnswer::Unknown { error: "no answer".to_owned() }
}

fn bytes_of(answer: &CallAnswer) -> usize {
    match answer {
        CallAnswer::Succeeded { result } => result.len(),
        CallAnswer::Failed { error } | CallAnswer::Unknown { error } => error.len(),
        CallAnswer::Ongoing { pause_ms: _ } => 0,
    }
}

fn name_of(saga: &Saga) -> SagaName {
    SagaName { namespace: saga.namespace.to_string(), gid: saga.gid.to_string() }
}

fn record_end(saga: &Saga) {
    let took_ms = saga.since_ms.saturating_sub(saga.created_at_ms);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of months are exact")]
    let seconds = took_ms as f64 / 1_000.0;
    let outcome = saga.status().name();
    metrics::histogram!("quorate_saga_duration_seconds", "outcome" => outcome).record(seconds);
    tracing::debug!(gid = %saga.gid, outcome, took_ms, "global transaction finished");
}
