//! Clients of global transactions: they begin sagas, messages and TCC under names of their own, so that each
//! call may be repeated, and wait for some of them; and operators, who meddle now and then.

use quorate::state::{
    Addition, Barrier, BarrierOutcome, BranchPlan, CallAnswer, CallPolicy, CounterKind,
    CounterName, Saga, SagaBegin, SagaMode, SagaName, SagaOp, SagaOrder, SagaRecovery, SagaTerms,
    Step, Txn,
};

use super::*;
use crate::oracle::saga_calls::CallId;
use crate::oracle::saga_effects::{ACCOUNT, LOCAL};
use crate::participants::{PLAIN, Visit};

const BANK: &str = "quorate:///bank/bank.Bank";
/// What is moved at once.
const AMOUNTS: std::ops::Range<i64> = 1..100;
/// Below this an account of the cluster is not debited.
const FLOOR: i64 = -300;
/// How long a client waits for a transaction.
const WAIT: Duration = Duration::from_secs(3);

/// Who carries out a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Bank,
    Plain,
    Counter,
}

fn counter_target(add: i64, floor: Option<i64>) -> String {
    let floor = floor.map_or_else(String::new, |floor| format!("&floor={floor}"));
    format!("counter:///{ACCOUNT}?delta={add}{floor}")
}

impl Writer {
    pub(super) async fn run_sagas(mut self) {
        while self.world.is_busy() {
            runtime::sleep(millis(&mut self.random, 20..250)).await;
            self.count += 1;
            match self.random.random_range(0..12) {
                0..6 => self.saga().await,
                6..8 => self.message().await,
                8..10 => self.tcc().await,
                _ => self.operate().await,
            }
        }
    }

    fn saga_name(&self) -> SagaName {
        SagaName { namespace: NAMESPACE.to_owned(), gid: format!("g{}", self.mark()) }
    }

    async fn ask_for(&mut self, op: Op) -> Option<Outcome> {
        self.write(op, None).await
    }

    // ---- sagas ----

    /// Moves money between accounts, so that all branches together add nothing.
    async fn saga(&mut self) {
        let forward = self.random.random_bool(0.25);
        let count = self.random.random_range(2..=4);
        let style = self.random.random_range(0..3);
        let mut left = 0;
        let mut branches = Vec::new();
        for number in 0..count {
            let who = match self.random.random_range(0..10) {
                0..6 => Who::Bank,
                6..9 => Who::Counter,
                _ => Who::Plain,
            };
            // The last one evens it out.
            let amount = match number + 1 == count {
                true => -left,
                false => self.random.random_range(AMOUNTS) - AMOUNTS.end / 2,
            };
            let who = match who {
                Who::Plain if number + 1 == count => Who::Bank,
                // An addition of nothing leaves no trace.
                Who::Counter if amount == 0 => Who::Bank,
                who => who,
            };
            left += if who == Who::Plain { 0 } else { amount };
            // One behind the other, all at once, or some behind some.
            let after = (0..number).filter(|before| match style {
                0 => before + 1 == number,
                1 => false,
                _ => self.random.random_bool(0.4),
            });
            let after = after.collect();
            branches.push(self.branch(number, who, amount, after, forward));
        }
        let name = self.saga_name();
        let submit = self.random.random_bool(0.8);
        let terms = self.terms(forward, String::new());
        let begin = SagaBegin { name: name.clone(), mode: SagaMode::Saga, terms, branches, submit };
        let begin = Op::BeginSaga(Box::new(begin));
        if self.ask_for(begin.clone()).await.is_none() {
            return;
        }
        // As a client that was restarted meanwhile.
        if self.random.random_bool(0.2) {
            self.ask_for(begin).await;
        }
        if !submit {
            self.decide(&name, 0.8).await;
        }
        self.wait(name).await;
    }

    /// Submits what is prepared, or gives it up.
    async fn decide(&mut self, name: &SagaName, submits: f64) {
        let name = name.clone();
        let op = match self.random.random_bool(submits) {
            true => Op::SubmitSaga { name },
            false => Op::AbortSaga { name, reason: "second thoughts".to_owned() },
        };
        self.ask_for(op).await;
    }

    fn branch(
        &mut self,
        number: u32,
        who: Who,
        amount: i64,
        after: Vec<u32>,
        forward: bool,
    ) -> BranchPlan {
        let (action, compensation) = match who {
            Who::Bank => (format!("{BANK}/Move"), format!("{BANK}/Undo")),
            Who::Plain => (format!("{PLAIN}/do"), format!("{PLAIN}/undo")),
            Who::Counter => {
                // What must be carried out is not to be refused for ever.
                let floor = (!forward).then_some(FLOOR);
                (counter_target(amount, floor), counter_target(-amount, None))
            }
        };
        BranchPlan {
            id: format!("b{number}"),
            trial: String::new(),
            action,
            compensation,
            payload: amount.to_string().into_bytes().into(),
            after,
            policy: self.policy(),
        }
    }

    fn policy(&mut self) -> CallPolicy {
        let random = &mut self.random;
        let pause_ms = random.random_range(20..150);
        CallPolicy {
            timeout_ms: random.random_range(200..1_500),
            attempts: if random.random_bool(0.5) { 0 } else { random.random_range(3..9) },
            pause_ms,
            pause_max_ms: pause_ms + random.random_range(0..600),
        }
    }

    fn terms(&mut self, forward: bool, query: String) -> SagaTerms {
        let query_policy = self.policy();
        let random = &mut self.random;
        let mut sometimes = |chance, range, otherwise| match random.random_bool(chance) {
            true => random.random_range(range),
            false => otherwise,
        };
        SagaTerms {
            recovery: if forward { SagaRecovery::Forward } else { SagaRecovery::Backward },
            prepared_timeout_ms: sometimes(1.0, 1_000..3_000, 0),
            timeout_ms: sometimes(0.2, 2_000..8_000, 0),
            suspend_after_ms: sometimes(0.3, 4_000..20_000, 3_600_000),
            retention_ms: 24 * 3_600_000,
            delay_ms: sometimes(0.1, 1..1_500, 0),
            query,
            query_policy,
        }
    }

    // ---- messages ----

    /// Takes money from an account of the client's own and has it delivered.
    async fn message(&mut self) {
        let count = self.random.random_range(1..=3);
        let mut branches = Vec::new();
        let mut sum = 0;
        for number in 0..count {
            let amount = self.random.random_range(AMOUNTS);
            let who = if self.random.random_bool(0.7) { Who::Bank } else { Who::Counter };
            sum += amount;
            let branch = self.branch(number, who, amount, Vec::new(), true);
            branches.push(BranchPlan { compensation: String::new(), ..branch });
        }
        let (name, mode) = (self.saga_name(), SagaMode::Message);
        let terms = self.terms(false, format!("{BANK}/Query"));
        let begin = SagaBegin { name: name.clone(), mode, terms, branches, submit: false };
        if self.ask_for(Op::BeginSaga(Box::new(begin))).await.is_none() {
            return;
        }
        if self.random.random_bool(0.1) {
            // It dies before its own part.
            return;
        }
        runtime::sleep(millis(&mut self.random, 0..60)).await;
        if !self.world.services().commit_local(&name.gid) {
            return self.decide(&name, 0.0).await;
        }
        self.world.oracle().took_effect(&name.gid, "", LOCAL, -sum);
        if self.random.random_bool(0.2) {
            // It dies before it submits.
            return;
        }
        self.decide(&name, 1.0).await;
        self.wait(name).await;
    }

    // ---- TCC ----

    /// Reserves money in several places, then has it moved everywhere or given back everywhere.
    async fn tcc(&mut self) {
        let (name, mode) = (self.saga_name(), SagaMode::Tcc);
        let terms = self.terms(false, String::new());
        let branches = Vec::new();
        let begin = SagaBegin { name: name.clone(), mode, terms, branches, submit: false };
        if self.ask_for(Op::BeginSaga(Box::new(begin))).await.is_none() {
            return;
        }
        let mut tried = true;
        for number in 0..self.random.random_range(1..=3) {
            tried = self.try_branch(&name, number).await;
            if !tried {
                break;
            }
        }
        if self.random.random_bool(0.1) {
            // It dies before it decides.
            return;
        }
        self.decide(&name, if tried { 1.0 } else { 0.0 }).await;
        self.wait(name).await;
    }

    /// Registers a branch and tries it. False = it is not certain that it can be confirmed.
    async fn try_branch(&mut self, name: &SagaName, number: u32) -> bool {
        let native = self.random.random_bool(0.3);
        let amount = self.random.random_range(AMOUNTS);
        let (trial, action, compensation) = match native {
            true => {
                let target = counter_target(amount, None);
                (String::new(), target.clone(), target)
            }
            false => {
                let target = |method: &str| format!("{BANK}/{method}");
                (target("Try"), target("Confirm"), target("Cancel"))
            }
        };
        let branch = self.branch(number, Who::Bank, amount, Vec::new(), true);
        let plan = BranchPlan { trial, action, compensation, ..branch };
        let (name, id) = (name.clone(), plan.id.clone());
        let register = Op::RegisterBranch { name: name.clone(), plan: Box::new(plan) };
        match self.ask_for(register).await {
            Some(Outcome { result: Ok(_), .. }) => {}
            _ => return false,
        }
        if native {
            let kind = Some(CounterKind::Gauge);
            let (namespace, counter) = (NAMESPACE.to_owned(), ACCOUNT.to_owned());
            let counter = CounterName { namespace, name: counter, labels: Pairs::default() };
            let (delta, floor) = (-amount, Some(FLOOR));
            let addition = Addition { name: counter, kind, delta, floor, ceil: None };
            let then = vec![Step::Write(Op::AddCounter(Box::new(addition)))];
            let txn = Box::new(Txn { when: Vec::new(), then, otherwise: Vec::new() });
            let barrier = Barrier { name, branch: id, op: SagaOp::Try };
            let outcome = self.ask_for(Op::GuardedTxn { barrier, txn }).await;
            let result = outcome.map(|outcome| outcome.result);
            let Some(Ok(Reply::Guarded { outcome, txn: _ })) = result else { return false };
            return matches!(outcome, BarrierOutcome::Executed | BarrierOutcome::Duplicate);
        }
        for attempt in 1..=3 {
            let id = CallId { gid: name.gid.clone(), branch: id.clone(), op: "try", attempt };
            let visit = Visit::bank(id, amount);
            let patience = Duration::from_secs(1);
            let answer = runtime::timeout(patience, self.world.visit(self.client, visit)).await;
            match answer {
                Ok(Some(CallAnswer::Succeeded { .. })) => return true,
                Ok(Some(CallAnswer::Failed { .. })) => return false,
                Ok(Some(CallAnswer::Unknown { .. } | CallAnswer::Ongoing { .. }) | None)
                | Err(_) => {}
            }
        }
        false
    }

    // ---- waiting, operators ----

    async fn wait(&mut self, name: SagaName) {
        if self.random.random_bool(0.4) {
            return;
        }
        let (world, gid) = (self.world.clone(), name.gid.clone());
        let floor = world.oracle().floor;
        let node = any(&mut self.random, &world.nodes);
        let timeout = Duration::from_secs(1);
        let wait = move |node: Node| async move { node.wait_for_saga(&name, WAIT, timeout).await };
        let patience = WAIT + 2 * timeout;
        match world.ask(self.client, node, patience, wait).await {
            Ok((saga, revision, _)) => {
                trace!(world, "{} sees {gid} {:?} at {revision}", self.client, saga.status());
                world.oracle().saga_is_seen(floor, revision, &saga);
            }
            Err(error) => trace!(world, "{} does not see {gid}: {error:?}", self.client),
        }
    }

    /// One order for one transaction that is not finished.
    async fn operate(&mut self) {
        let (running, suspended) = self.world.oracle().unfinished_sagas();
        let pick = |of: &[Arc<Saga>], random: &mut StdRng| match of {
            [] => None,
            of => Some(of[random.random_range(0..of.len())].clone()),
        };
        let random = &mut self.random;
        let chosen = match random.random_bool(0.7) {
            true => pick(&suspended, random).or_else(|| pick(&running, random)),
            false => pick(&running, random),
        };
        let Some(saga) = chosen else { return };
        let order = match (saga.is_suspended(), random.random_range(0..10)) {
            (true, 0) => SagaOrder::Finish,
            (true, 1) => {
                let branches = u32::try_from(saga.branches.len()).expect("branches are few");
                SagaOrder::Skip { branch: random.random_range(0..branches.max(1)) }
            }
            (true, _) => SagaOrder::Resume,
            (false, 0..4) => SagaOrder::Suspend { reason: "let me see".to_owned() },
            (false, _) => SagaOrder::Retry,
        };
        if matches!(order, SagaOrder::Finish | SagaOrder::Skip { .. }) {
            self.world.oracle().saga_effects.by_hand.insert(saga.gid.to_string());
        }
        let name = SagaName { namespace: saga.namespace.to_string(), gid: saga.gid.to_string() };
        self.ask_for(Op::OrderSaga { name, order }).await;
    }
}
