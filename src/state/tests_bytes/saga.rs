//! Samples of global transactions.

use super::*;

fn name() -> SagaName {
    SagaName { namespace: "default".into(), gid: "order-7".into() }
}

fn policy() -> CallPolicy {
    CallPolicy { timeout_ms: 5_000, attempts: 3, pause_ms: 200, pause_max_ms: 60_000 }
}

fn plan(id: &str, after: Vec<u32>) -> BranchPlan {
    BranchPlan {
        id: id.into(),
        trial: "http://a/try".into(),
        action: "quorate:///stock/p.Stock/Take".into(),
        compensation: "https://a/undo".into(),
        payload: b"\xFF{}".to_vec().into(),
        after,
        policy: policy(),
    }
}

fn terms(recovery: SagaRecovery) -> SagaTerms {
    SagaTerms {
        recovery,
        prepared_timeout_ms: 30_000,
        timeout_ms: 300,
        suspend_after_ms: 86_400_000,
        retention_ms: 60_000,
        delay_ms: 301,
        query: "http://q".into(),
        query_policy: policy(),
    }
}

pub(super) fn commands() -> Vec<(String, Command)> {
    let mut all = Vec::new();
    let mut sample = |name: &str, op: Op| {
        all.push((name.to_owned(), Command { request: None, op }));
    };
    for (mode, recovery) in [
        (SagaMode::Saga, SagaRecovery::Backward),
        (SagaMode::Message, SagaRecovery::Forward),
        (SagaMode::Tcc, SagaRecovery::Backward),
    ] {
        let branches = vec![plan("1", vec![]), plan("2", vec![0, 300])];
        let submit = mode == SagaMode::Saga;
        let begin = SagaBegin { name: name(), mode, terms: terms(recovery), branches, submit };
        let sampled = format!("begin-{mode:?}").to_lowercase();
        sample(&sampled, Op::BeginSaga(Box::new(begin)));
    }
    sample("submit-saga", Op::SubmitSaga { name: name() });
    sample("abort-saga", Op::AbortSaga { name: name(), reason: "late".into() });
    let plan = Box::new(plan("1", vec![]));
    sample("register-branch", Op::RegisterBranch { name: name(), plan });
    let answers = [
        CallAnswer::Succeeded { result: b"\xFE".to_vec().into() },
        CallAnswer::Failed { error: "full".into() },
        CallAnswer::Ongoing { pause_ms: 300 },
        CallAnswer::Unknown { error: "gone".into() },
    ];
    let calls = [
        CallName::Query,
        CallName::Branch { number: 1, leg: SagaLeg::Forward },
        CallName::Branch { number: 300, leg: SagaLeg::Backward },
        CallName::Query,
    ];
    let mut steps: Vec<SagaStep> = calls
        .into_iter()
        .zip(answers)
        .map(|(call, answer)| SagaStep {
            name: name(),
            news: SagaNews::Answer { call, attempt: 301, answer },
        })
        .collect();
    steps.push(SagaStep { name: name(), news: SagaNews::Due });
    sample("advance-sagas", Op::AdvanceSagas { epoch: 302, steps });
    let orders = [
        ("suspend", SagaOrder::Suspend { reason: "look".into() }),
        ("resume", SagaOrder::Resume),
        ("skip", SagaOrder::Skip { branch: 300 }),
        ("finish", SagaOrder::Finish),
        ("retry", SagaOrder::Retry),
    ];
    for (sampled, order) in orders {
        sample(&format!("order-{sampled}"), Op::OrderSaga { name: name(), order });
    }
    for op in [SagaOp::Try, SagaOp::Action, SagaOp::Compensate, SagaOp::Confirm, SagaOp::Cancel] {
        let barrier = Barrier { name: name(), branch: "1".into(), op };
        let txn = Box::new(Txn { when: vec![], then: vec![], otherwise: vec![] });
        sample(&format!("guarded-{}", op.name()), Op::GuardedTxn { barrier, txn });
    }
    all
}

const STATES: [CallState; 7] = [
    CallState::Pending,
    CallState::Running { deadline_ms: 1_700_000_000_000, epoch: 7 },
    CallState::Unknown { again_ms: 1_700_000_000_001 },
    CallState::Ongoing { again_ms: 1_700_000_000_002 },
    CallState::Succeeded,
    CallState::Failed,
    CallState::Skipped,
];

fn a_saga(mode: SagaMode, phase: SagaPhase) -> Saga {
    let SagaName { namespace, gid } = name();
    let call = |state| SagaCall { state, attempt: 300, failures: 2 };
    let branch = |state| SagaBranch {
        plan: plan("1", vec![0]).into(),
        leg: SagaLeg::Backward,
        call: call(state),
        result: b"\xFE".to_vec().into(),
        marks: 3,
    };
    let mut branches: Vec<SagaBranch> = STATES.map(branch).into();
    branches[0].leg = SagaLeg::Forward;
    Saga {
        namespace: namespace.into(),
        gid: gid.into(),
        mode,
        terms: terms(SagaRecovery::Forward).into(),
        phase,
        since_ms: 1_700_000_000_003,
        suspended: match phase {
            SagaPhase::Submitted => Suspension::Stuck("look".into()),
            _ => Suspension::None,
        },
        start_at_ms: 1_700_000_000_004,
        query: call(STATES[1]),
        branches,
        epoch: 7,
        error: "full".into(),
        create_revision: 302,
        mod_revision: 303,
        created_at_ms: 1_600_000_000_000,
        modified_at_ms: 1_700_000_000_005,
    }
}

pub(super) fn records() -> Vec<(String, Key, Record)> {
    let mut all = Vec::new();
    for (name, mode, phase) in [
        ("saga", SagaMode::Saga, SagaPhase::Submitted),
        ("saga-prepared", SagaMode::Message, SagaPhase::Prepared),
        ("saga-aborting", SagaMode::Tcc, SagaPhase::Aborting),
        ("saga-succeeded", SagaMode::Saga, SagaPhase::Succeeded),
        ("saga-failed", SagaMode::Saga, SagaPhase::Failed),
    ] {
        let saga = a_saga(mode, phase);
        all.push((name.to_owned(), saga.key(), Record::Saga(saga.into())));
    }
    let suspended = Suspension::Ordered("look".into());
    let saga = Saga { suspended, ..a_saga(SagaMode::Saga, SagaPhase::Aborting) };
    all.push(("saga-suspended".into(), saga.key(), Record::Saga(saga.into())));
    let mut reply = |name: String, result: Result<Reply, Refusal>| {
        let outcome = Outcome { revision: 12, duplicate: false, result };
        let stored = StoredReply { lowest_unacknowledged: 6, outcome };
        let key = Key::Reply { session: 7, sequence: 0x0102_0304_0506_0708 };
        all.push((format!("reply-{name}"), key, Record::Reply(stored.into())));
    };
    let statuses = [
        SagaStatus::Prepared,
        SagaStatus::Submitted,
        SagaStatus::Aborting,
        SagaStatus::Succeeded,
        SagaStatus::Failed,
        SagaStatus::Suspended,
    ];
    for status in statuses {
        reply(format!("saga-is-{}", status.name()), Err(Refusal::SagaIs { status }));
    }
    let (status, mod_revision) = (SagaStatus::Submitted, 300);
    let gid = "order-7".into();
    reply("saga-begun".into(), Ok(Reply::SagaBegun { gid, status, created: true, mod_revision }));
    reply("saga-turned".into(), Ok(Reply::SagaTurned { status, changed: true, mod_revision }));
    reply("branch-registered".into(), Ok(Reply::BranchRegistered { number: 300, created: true }));
    reply("sagas-advanced".into(), Ok(Reply::SagasAdvanced { taken: 300 }));
    for (name, outcome) in [
        ("executed", BarrierOutcome::Executed),
        ("duplicate", BarrierOutcome::Duplicate),
        ("empty", BarrierOutcome::EmptyCompensation),
        ("hanging", BarrierOutcome::Hanging),
        ("unmet", BarrierOutcome::Unmet),
    ] {
        let carried_out = outcome == BarrierOutcome::Executed;
        let txn = carried_out.then(|| Reply::Txn { succeeded: true, replies: vec![] }.into());
        reply(format!("guarded-{name}"), Ok(Reply::Guarded { outcome, txn }));
    }
    let name = "default/order-7".into();
    reply("not-found-saga".into(), Err(Refusal::NotFound { kind: Kind::Saga, name }));
    all
}

/// The most that is let through, of the longest texts.
#[test]
fn the_greatest_saga_fits() {
    let long = |bytes: usize| format!("http://{}", "x".repeat(bytes - "http://".len()));
    let room = limits::SAGA_BYTES / limits::SAGA_BRANCHES;
    let mut branches: Vec<BranchPlan> = (0..limits::SAGA_BRANCHES as u32)
        .map(|i| BranchPlan {
            id: format!("{i:0128}"),
            trial: String::new(),
            action: long(limits::SAGA_TARGET_BYTES),
            compensation: long(limits::SAGA_TARGET_BYTES),
            payload: Blob::default(),
            after: (0..i).collect(),
            policy: policy(),
        })
        .collect();
    for plan in &mut branches {
        plan.payload = vec![0xFF; room - plan.bytes()].into();
    }
    let terms = SagaTerms {
        query: String::new(),
        query_policy: CallPolicy { attempts: 1, ..policy() },
        ..terms(SagaRecovery::Forward)
    };
    let mode = SagaMode::Saga;
    let begin = SagaBegin { name: name(), mode, terms, branches: branches.clone(), submit: true };
    let mut state = State::default();
    let mut run = |op: Op, at_ms: u64| {
        let command = Command { request: None, op };
        command.check().unwrap();
        let bytes = command.encode().unwrap();
        state.apply(&Entry { term: 1, at_ms, commands: vec![&bytes] }).outcomes.remove(0).result
    };
    branches[7].payload = vec![0xFF; branches[7].payload.len() + 1].into();
    let more = Op::BeginSaga(Box::new(SagaBegin { branches, ..begin.clone() }));
    assert!(Command { request: None, op: more }.check().is_err());
    run(Op::BeginSaga(Box::new(begin)), 1 << 40).unwrap();
    run(
        Op::AdvanceSagas { epoch: 1, steps: vec![SagaStep { name: name(), news: SagaNews::Due }] },
        (1 << 40) + 301,
    )
    .unwrap();
    for number in 0..limits::SAGA_BRANCHES as u32 {
        let call = CallName::Branch { number, leg: SagaLeg::Forward };
        let result = vec![0xFF; limits::SAGA_RESULT_BYTES].into();
        let news = SagaNews::Answer { call, attempt: 1, answer: CallAnswer::Succeeded { result } };
        let steps = vec![SagaStep { name: name(), news }];
        let taken = run(Op::AdvanceSagas { epoch: 1, steps }, (1 << 40) + 301);
        assert_eq!(taken, Ok(Reply::SagasAdvanced { taken: 1 }));
    }
    let saga = state.saga("default", "order-7").unwrap();
    assert_eq!(saga.status(), SagaStatus::Succeeded);
    let bytes = Record::Saga(saga.clone()).encode();
    assert!(bytes.len() > limits::SAGA_BYTES && bytes.len() <= limits::RECORD_BYTES);
    assert_eq!(Record::decode(&saga.key(), &bytes), Ok(Record::Saga(saga.clone())));
}
