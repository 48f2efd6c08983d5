//! Sketches of global transactions, which meet because there are few gids, and the wild ones.

use super::wild::{wild_number, wild_text};
use super::*;

#[derive(Debug, Clone)]
pub(super) enum Sketch {
    Begin(SagaBegin),
    /// With the content that the transaction has.
    Again {
        which: usize,
        submit: bool,
    },
    Register(SagaName, BranchPlan),
    Submit(SagaName),
    Abort(SagaName),
    Order(SagaName, SagaOrder),
    /// Answers to calls that are under way, and whether by another term or attempt.
    Answers(Vec<(usize, usize, CallAnswer, bool)>),
    /// Those that are due, or any.
    Due(usize),
    /// A part of a branch, by a gauge that may refuse.
    Guarded(usize, usize, usize, i64),
}

fn name() -> impl Strategy<Value = SagaName> {
    (namespace(), text(&["a", "a", "b", "c"]))
        .prop_map(|(namespace, gid)| SagaName { namespace, gid })
}

fn policy() -> impl Strategy<Value = CallPolicy> {
    (select(vec![1_000u64, 5_000]), 0..3u32).prop_map(|(timeout_ms, attempts)| CallPolicy {
        timeout_ms,
        attempts,
        pause_ms: 200,
        pause_max_ms: 60_000,
    })
}

fn plan(id: &'static str, after: Vec<u32>) -> impl Strategy<Value = BranchPlan> {
    (policy(), proptest::bool::weighted(0.8)).prop_map(move |(policy, undone)| BranchPlan {
        id: id.into(),
        trial: String::new(),
        action: "http://a".into(),
        compensation: if undone { "http://c".into() } else { String::new() },
        payload: Blob::default(),
        after: after.clone(),
        policy,
    })
}

fn terms(
    recovery: impl Strategy<Value = SagaRecovery>,
    times: impl Strategy<Value = (u64, u64, u64, u64, u64)>,
    query: impl Strategy<Value = String>,
    query_policy: impl Strategy<Value = CallPolicy>,
) -> impl Strategy<Value = SagaTerms> {
    (recovery, times, query, query_policy).prop_map(|(recovery, times, query, query_policy)| {
        let (prepared_timeout_ms, timeout_ms, suspend_after_ms, retention_ms, delay_ms) = times;
        SagaTerms {
            recovery,
            prepared_timeout_ms,
            timeout_ms,
            suspend_after_ms,
            retention_ms,
            delay_ms,
            query,
            query_policy,
        }
    })
}

fn begin() -> BoxedStrategy<Sketch> {
    let mode = select(vec![SagaMode::Saga, SagaMode::Saga, SagaMode::Message, SagaMode::Tcc]);
    let recovery =
        select(vec![SagaRecovery::Backward, SagaRecovery::Backward, SagaRecovery::Forward]);
    let times = (
        select(vec![1_000u64, 30_000]),
        select(vec![0u64, 5_000]),
        select(vec![20_000u64, 86_400_000]),
        select(vec![0u64, 60_000]),
        select(vec![0u64, 0, 3_000]),
    );
    let terms = terms(recovery, times, text(&["", "http://q"]), policy());
    let plans = select(vec![vec![], vec![0u32]]).prop_flat_map(|after| {
        let third = if after.is_empty() { vec![0, 1] } else { vec![1] };
        (plan("1", vec![]), plan("2", after), plan("3", third))
    });
    let given = proptest::bool::weighted(0.1);
    ((name(), given), mode, terms, (plans, 1..4usize), any::<bool>())
        .prop_map(|((mut name, given), mode, mut terms, (plans, count), submit)| {
            let mut branches: Vec<_> =
                [plans.0, plans.1, plans.2].into_iter().take(count).collect();
            match mode {
                SagaMode::Tcc => branches.clear(),
                SagaMode::Message => {
                    branches.iter_mut().for_each(|plan| plan.compensation.clear());
                }
                SagaMode::Saga => {}
            }
            if mode != SagaMode::Message {
                terms.query.clear();
            }
            if given {
                name.gid.clear();
            }
            // Of TCC nothing can be registered once it is submitted.
            let submit = submit && mode != SagaMode::Tcc;
            Sketch::Begin(SagaBegin { name, mode, terms, branches, submit })
        })
        .boxed()
}

fn op() -> impl Strategy<Value = SagaOp> {
    use SagaOp::{Action, Cancel, Compensate, Confirm, Try};
    select(vec![Action, Action, Action, Compensate, Compensate, Try, Try, Cancel, Confirm])
}

/// What a participant does whose data is a gauge that is never below 0.
fn guarded(name: SagaName, branch: String, op: SagaOp, delta: i64) -> Op {
    let counter =
        CounterName { namespace: "default".into(), name: "stock".into(), labels: Pairs::default() };
    let addition = Addition {
        name: counter,
        kind: Some(CounterKind::Gauge),
        delta,
        floor: Some(0),
        ceil: None,
    };
    let then = vec![Step::Write(Op::AddCounter(Box::new(addition)))];
    let txn = Box::new(Txn { when: vec![], then, otherwise: vec![] });
    Op::GuardedTxn { barrier: Barrier { name, branch, op }, txn }
}

fn answer() -> impl Strategy<Value = CallAnswer> {
    let error = || text(&["no", "gone"]);
    prop_oneof![
        6 => text(&["", "done"])
            .prop_map(|result| CallAnswer::Succeeded { result: result.into_bytes().into() }),
        2 => error().prop_map(|error| CallAnswer::Failed { error }),
        1 => select(vec![0u64, 1_000]).prop_map(|pause_ms| CallAnswer::Ongoing { pause_ms }),
        2 => error().prop_map(|error| CallAnswer::Unknown { error }),
    ]
}

fn order() -> impl Strategy<Value = SagaOrder> {
    prop_oneof![
        2 => Just(SagaOrder::Suspend { reason: "wait".into() }),
        3 => Just(SagaOrder::Resume),
        2 => (0..4u32).prop_map(|branch| SagaOrder::Skip { branch }),
        1 => Just(SagaOrder::Finish),
        1 => Just(SagaOrder::Retry),
    ]
}

pub(super) fn sketch() -> BoxedStrategy<Sketch> {
    let plan = select(vec!["1", "2", "3"]).prop_flat_map(|id| plan(id, vec![]));
    let answers = vec((0..3usize, 0..3usize, answer(), proptest::bool::weighted(0.1)), 1..4);
    prop_oneof![
        12 => begin(),
        4 => (0..3usize, any::<bool>())
            .prop_map(|(which, submit)| Sketch::Again { which, submit }),
        8 => (name(), plan).prop_map(|(name, plan)| Sketch::Register(name, plan)),
        5 => name().prop_map(Sketch::Submit),
        4 => name().prop_map(Sketch::Abort),
        6 => (name(), order()).prop_map(|(name, order)| Sketch::Order(name, order)),
        24 => answers.prop_map(Sketch::Answers),
        12 => (0..3usize).prop_map(Sketch::Due),
        7 => (0..2usize, 0..2usize, 0..4usize, -1..3i64)
            .prop_map(|(which, branch, op, delta)| Sketch::Guarded(which, branch, op, delta)),
    ]
    .boxed()
}

fn name_of(saga: &Saga) -> SagaName {
    SagaName { namespace: saga.namespace.to_string(), gid: saga.gid.to_string() }
}

impl Sketch {
    pub(super) fn fill_in(self, model: &Model, term: u64) -> Op {
        match self {
            Sketch::Begin(begin) => Op::BeginSaga(Box::new(begin)),
            Sketch::Again { which, submit } => {
                let Some(saga) = model.sagas.get(which) else {
                    let (namespace, gid) = ("nowhere".into(), "a".into());
                    return Op::SubmitSaga { name: SagaName { namespace, gid } };
                };
                let plans = saga.branches.iter().filter(|_| saga.mode != SagaMode::Tcc);
                Op::BeginSaga(Box::new(SagaBegin {
                    name: name_of(saga),
                    mode: saga.mode,
                    terms: SagaTerms::clone(&saga.terms),
                    branches: plans.map(|branch| BranchPlan::clone(&branch.plan)).collect(),
                    submit,
                }))
            }
            Sketch::Register(name, plan) => {
                let mut tcc = model
                    .sagas
                    .iter()
                    .filter(|saga| saga.mode == SagaMode::Tcc && saga.phase == SagaPhase::Prepared);
                let Some(saga) = tcc.next_back() else {
                    return Op::RegisterBranch { name, plan: Box::new(plan) };
                };
                // Some are what is registered already.
                let known = saga.branches.iter().find(|branch| branch.plan.id == plan.id);
                let known = known.filter(|_| plan.policy.attempts == 0);
                let plan = known.map_or(plan, |known| BranchPlan::clone(&known.plan));
                Op::RegisterBranch { name: name_of(saga), plan: Box::new(plan) }
            }
            Sketch::Submit(name) => Op::SubmitSaga { name },
            Sketch::Abort(name) => Op::AbortSaga { name, reason: "changed my mind".into() },
            Sketch::Order(name, order) => {
                let mut suspended = model.sagas.iter().filter(|saga| saga.is_suspended());
                let other = matches!(order, SagaOrder::Suspend { .. });
                let name = suspended.next_back().filter(|_| !other).map_or(name, name_of);
                Op::OrderSaga { name, order }
            }
            Sketch::Answers(answers) => {
                let runs = |call: &SagaCall| matches!(call.state, CallState::Running { .. });
                let with = |saga: &&Saga| saga.live_calls().any(|(_, call)| runs(call));
                let running: Vec<&Saga> = model.sagas.iter().filter(with).collect();
                let mut steps = Vec::new();
                for (which, nth, answer, other) in answers {
                    let Some(saga) = running.get(which % running.len().max(1)) else { continue };
                    let calls = saga.live_calls().filter(|(_, call)| runs(call));
                    let calls: Vec<_> = calls.collect();
                    let Some((call, at)) = calls.get(nth % calls.len().max(1)).copied() else {
                        continue;
                    };
                    let attempt = at.attempt + u32::from(other);
                    let news = SagaNews::Answer { call, attempt, answer };
                    steps.push(SagaStep { name: name_of(saga), news });
                }
                Op::AdvanceSagas { epoch: term, steps }
            }
            Sketch::Guarded(which, number, nth, delta) => {
                let unknown = || SagaName { namespace: "default".into(), gid: "a".into() };
                let backward = |branch: &SagaBranch| branch.leg == SagaLeg::Backward;
                let goes_back = |saga: &&Saga| {
                    saga.phase == SagaPhase::Aborting && saga.branches.iter().any(backward)
                };
                // Mostly what goes back, if anything does.
                let back = model.sagas.iter().rev().find(goes_back).filter(|_| nth > 0);
                let saga = back.or_else(|| model.sagas.iter().rev().nth(which));
                let number =
                    back.and_then(|saga| saga.branches.iter().position(backward)).unwrap_or(number);
                // Some are none of its mode.
                let ops = saga.map_or(&[SagaOp::Action][..], |saga| saga.mode.ops());
                let undoes = ops.iter().find(|op| op.origin().is_some());
                let op = match undoes.filter(|_| back.is_some()) {
                    Some(undoes) => *undoes,
                    None => ops.get(nth).copied().unwrap_or(SagaOp::Action),
                };
                let branch = saga.and_then(|saga| saga.branches.get(number));
                let branch = branch.map_or("1".to_owned(), |branch| branch.plan.id.clone());
                guarded(saga.map_or_else(unknown, name_of), branch, op, delta)
            }
            Sketch::Due(count) => {
                let due = model.due_sagas(model.now_ms);
                let left = model.sagas_that(|saga| saga.is_left_behind(term));
                let all = due.into_iter().chain(left).chain(&model.sagas).take(count + 1);
                let due = |saga: &Saga| SagaStep { name: name_of(saga), news: SagaNews::Due };
                let epoch = if count == 2 { 1 } else { term };
                Op::AdvanceSagas { epoch, steps: all.map(due).collect() }
            }
        }
    }
}

pub(super) fn assert_alike(state: &State, model: &Model, namespace: &str) {
    let own = model.sagas_that(|saga| *saga.namespace == *namespace);
    for saga in &own {
        assert_eq!(state.saga(namespace, &saga.gid).map(|saga| &**saga), Some(*saga));
    }
    let statuses = [
        SagaStatus::Prepared,
        SagaStatus::Submitted,
        SagaStatus::Aborting,
        SagaStatus::Succeeded,
        SagaStatus::Failed,
        SagaStatus::Suspended,
    ];
    for status in [None].into_iter().chain(statuses.map(Some)) {
        for (prefix, after, limit) in [("", "", 100), ("", "", 1), ("", "a", 1), ("b", "", 1)] {
            let is = |saga: &&&Saga| status.is_none_or(|status| status_of_saga(saga) == status);
            let listed = own.iter().filter(is).copied();
            let mut listed: Vec<&Saga> =
                listed.filter(|s| s.gid.starts_with(prefix) && &*s.gid > after).collect();
            let rest = listed.len() > limit;
            listed.truncate(limit);
            let (page, more) = state.sagas(namespace, status, prefix, after, limit);
            assert_eq!(more, rest, "{status:?} {prefix} {after} {limit}");
            assert!(page.iter().map(|saga| &**saga).eq(listed), "{status:?} {prefix} {after}");
        }
    }
}

pub(super) fn assert_timers_alike(state: &State, model: &Model) {
    assert_eq!(state.next_saga_ms(), model.next_saga_ms());
    for later_ms in [0, 1, 1_000, 30_000, 100_000_000] {
        let now_ms = model.now_ms.saturating_add(later_ms);
        let due = state.due_sagas(now_ms, 1_000);
        assert!(due.iter().map(|saga| &**saga).eq(model.due_sagas(now_ms)), "at {now_ms}");
        assert_eq!(state.due_sagas(now_ms, 1).len(), due.len().min(1));
    }
    for term in [1, 2, 3] {
        let mut left: Vec<_> =
            state.sagas_left_behind(term).iter().map(|saga| name_of(saga)).collect();
        left.sort();
        let running = |saga: &Saga| !saga.is_suspended() && saga.is_left_behind(term);
        let expected: Vec<_> = model.sagas_that(running).into_iter().map(name_of).collect();
        assert_eq!(left, expected);
    }
}

// ---- wild ----

fn wild_policy() -> impl Strategy<Value = CallPolicy> {
    (wild_number(), 0..3u32, wild_number(), wild_number()).prop_map(
        |(timeout_ms, attempts, pause_ms, pause_max_ms)| CallPolicy {
            timeout_ms,
            attempts,
            pause_ms,
            pause_max_ms,
        },
    )
}

fn wild_plan() -> impl Strategy<Value = BranchPlan> {
    let texts = (wild_text(), wild_text(), wild_text(), wild_text());
    (texts, vec(any::<u8>(), 0..3), vec(0..3u32, 0..2), wild_policy()).prop_map(
        |((id, trial, action, compensation), payload, after, policy)| BranchPlan {
            id,
            trial,
            action,
            compensation,
            payload: payload.into(),
            after,
            policy,
        },
    )
}

pub(super) fn wild() -> BoxedStrategy<Op> {
    let name =
        || (wild_text(), wild_text()).prop_map(|(namespace, gid)| SagaName { namespace, gid });
    let mode = select(vec![SagaMode::Saga, SagaMode::Message, SagaMode::Tcc]);
    let recovery = select(vec![SagaRecovery::Backward, SagaRecovery::Forward]);
    let times = (wild_number(), wild_number(), wild_number(), wild_number(), wild_number());
    let terms = terms(recovery, times, wild_text(), wild_policy());
    let leg = select(vec![SagaLeg::Forward, SagaLeg::Backward]);
    let call = prop_oneof![
        1 => Just(CallName::Query),
        3 => (0..3u32, leg).prop_map(|(number, leg)| CallName::Branch { number, leg }),
        1 => Just(CallName::Branch { number: u32::MAX, leg: SagaLeg::Forward }),
    ];
    let wild_answer = prop_oneof![
        3 => answer(),
        1 => wild_number().prop_map(|pause_ms| CallAnswer::Ongoing { pause_ms }),
        1 => Just(CallAnswer::Succeeded { result: vec![7; limits::SAGA_RESULT_BYTES + 1].into() }),
        1 => Just(CallAnswer::Unknown { error: "\u{10FFFF}".repeat(limits::TEXT_BYTES) }),
    ];
    let news = prop_oneof![
        1 => Just(SagaNews::Due),
        3 => (call, 0..3u32, wild_answer)
            .prop_map(|(call, attempt, answer)| SagaNews::Answer { call, attempt, answer }),
    ];
    let step = (name(), news).prop_map(|(name, news)| SagaStep { name, news });
    prop_oneof![
        6 => (name(), mode, terms, vec(wild_plan(), 0..3), any::<bool>()).prop_map(
            |(name, mode, terms, branches, submit)| {
                Op::BeginSaga(Box::new(SagaBegin { name, mode, terms, branches, submit }))
            }
        ),
        1 => name().prop_map(|name| Op::SubmitSaga { name }),
        1 => (name(), wild_text()).prop_map(|(name, reason)| Op::AbortSaga { name, reason }),
        3 => (name(), wild_plan())
            .prop_map(|(name, plan)| Op::RegisterBranch { name, plan: Box::new(plan) }),
        8 => (wild_number(), vec(step, 0..5))
            .prop_map(|(epoch, steps)| Op::AdvanceSagas { epoch, steps }),
        3 => (name(), order()).prop_map(|(name, order)| Op::OrderSaga { name, order }),
    ]
    .boxed()
}

pub(super) fn wild_guarded() -> impl Strategy<Value = Op> {
    let name = (wild_text(), wild_text());
    (name, wild_text(), op(), any::<i64>()).prop_map(|((namespace, gid), branch, op, delta)| {
        guarded(SagaName { namespace, gid }, branch, op, delta)
    })
}
