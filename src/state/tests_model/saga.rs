//! Global transactions: after whatever happens to one, its rules are gone through until none applies.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::*;

impl Model {
    fn saga(&mut self, name: &SagaName) -> Option<&mut Saga> {
        self.sagas.iter_mut().find(|s| *s.namespace == *name.namespace && *s.gid == *name.gid)
    }

    fn known_saga(&mut self, name: &SagaName) -> Result<&mut Saga, Refusal> {
        let shown = format!("{}/{}", name.namespace, name.gid);
        self.saga(name).ok_or(Refusal::NotFound { kind: Kind::Saga, name: shown })
    }

    pub(super) fn begin_saga(&mut self, begin: SagaBegin, place: &Place) -> Answer {
        let SagaBegin { mut name, mode, terms, branches, submit } = begin;
        self.needs_namespace(&name.namespace)?;
        if let Some(saga) = self.saga(&name) {
            let plans: Vec<_> = saga.branches.iter().map(|b| BranchPlan::clone(&b.plan)).collect();
            let other_plans = mode != SagaMode::Tcc && plans != branches;
            if saga.mode != mode || *saga.terms != terms || other_plans {
                let name = format!("{}/{}", name.namespace, name.gid);
                let by = "another transaction".to_owned();
                return Err(Refusal::InUse { kind: Kind::Saga, name, by });
            }
            if submit && saga.phase == SagaPhase::Prepared {
                submitted(saga, place);
                touch(saga, place);
            }
            return Ok(Reply::SagaBegun {
                gid: name.gid,
                status: shown(saga),
                created: false,
                mod_revision: saga.mod_revision,
            });
        }
        check_branches(mode, &branches)?;
        if self.sagas.len() >= limits::SAGAS {
            return Err(too_many("transactions of the cluster", limits::SAGAS as u64));
        }
        if name.gid.is_empty() {
            name.gid = format!("r{}", place.revision);
            while self.saga(&name).is_some() {
                name.gid.push('-');
            }
        }
        let nothing = SagaCall { state: CallState::Pending, attempt: 0, failures: 0 };
        let mut saga = Saga {
            namespace: name.namespace.as_str().into(),
            gid: name.gid.as_str().into(),
            mode,
            terms: Arc::new(terms),
            phase: SagaPhase::Prepared,
            since_ms: place.now_ms,
            suspended: Suspension::None,
            start_at_ms: 0,
            query: nothing,
            branches: branches.into_iter().map(SagaBranch::new).collect(),
            epoch: place.term,
            error: "".into(),
            create_revision: place.revision,
            mod_revision: place.revision,
            created_at_ms: place.now_ms,
            modified_at_ms: place.now_ms,
        };
        if submit {
            submitted(&mut saga, place);
        }
        let (gid, status) = (name.gid, shown(&saga));
        self.sagas.push(saga);
        Ok(Reply::SagaBegun { gid, status, created: true, mod_revision: place.revision })
    }

    pub(super) fn submit_saga(&mut self, name: &SagaName, place: &Place) -> Answer {
        let saga = self.known_saga(name)?;
        match saga.phase {
            SagaPhase::Aborting | SagaPhase::Failed => Err(Refusal::SagaIs { status: shown(saga) }),
            SagaPhase::Prepared => {
                submitted(saga, place);
                Ok(turned(saga, true, place))
            }
            _ => Ok(turned(saga, false, place)),
        }
    }

    pub(super) fn abort_saga(&mut self, name: &SagaName, reason: &str, place: &Place) -> Answer {
        let saga = self.known_saga(name)?;
        match saga.phase {
            SagaPhase::Submitted | SagaPhase::Succeeded => {
                Err(Refusal::SagaIs { status: shown(saga) })
            }
            SagaPhase::Prepared => {
                decided(saga);
                aborted(saga, &first_bytes(reason), place);
                Ok(turned(saga, true, place))
            }
            _ => Ok(turned(saga, false, place)),
        }
    }

    pub(super) fn register_branch(
        &mut self,
        name: &SagaName,
        plan: BranchPlan,
        place: &Place,
    ) -> Answer {
        let saga = self.known_saga(name)?;
        if saga.mode != SagaMode::Tcc {
            return Err(Refusal::Invalid {
                field: "mode".into(),
                value: format!("{:?}", saga.mode),
                allowed: "TCC: others begin with their branches".into(),
            });
        }
        if saga.phase != SagaPhase::Prepared {
            return Err(Refusal::SagaIs { status: shown(saga) });
        }
        for (number, known) in (0..).zip(&saga.branches) {
            if known.plan.id == plan.id && *known.plan == plan {
                return Ok(Reply::BranchRegistered { number, created: false });
            }
            if known.plan.id == plan.id {
                let name = format!("{}/{}/{}", name.namespace, name.gid, plan.id);
                let by = "another branch".to_owned();
                return Err(Refusal::InUse { kind: Kind::Saga, name, by });
            }
        }
        let number = saga.branches.len();
        if number >= limits::SAGA_BRANCHES {
            return Err(too_many("branches of a transaction", limits::SAGA_BRANCHES as u64));
        }
        check_after("branch.after", number, &plan.after)?;
        check_bytes(saga.branches.iter().map(|b| b.plan.bytes()).sum::<usize>() + plan.bytes())?;
        saga.branches.push(SagaBranch::new(plan));
        touch(saga, place);
        Ok(Reply::BranchRegistered { number: number as u32, created: true })
    }

    /// The table of marks that a participant would keep, looked up as it is described to them.
    pub(super) fn guarded(&mut self, barrier: &Barrier, txn: Txn, place: &Place) -> Answer {
        let Barrier { name, branch, op } = barrier;
        let saga = self.known_saga(name)?;
        let (allowed, its) = match saga.mode {
            SagaMode::Saga => ("action or compensate, of a saga", "action compensate"),
            SagaMode::Message => ("action, of a message", "action"),
            SagaMode::Tcc => ("try, confirm or cancel, of TCC", "try confirm cancel"),
        };
        if !its.split(' ').any(|its| its == op.name()) {
            return Err(Refusal::Invalid {
                field: "barrier.op".into(),
                value: op.name().into(),
                allowed: allowed.into(),
            });
        }
        let phase = saga.phase;
        let Some(found) = saga.branches.iter_mut().find(|it| it.plan.id == *branch) else {
            let name = format!("{}/{}/{branch}", name.namespace, name.gid);
            return Err(Refusal::NotFound { kind: Kind::Saga, name });
        };
        let has = |marks: u8, op: SagaOp| marks & op.mark() != 0;
        let undo = match op {
            SagaOp::Action => Some(SagaOp::Compensate),
            SagaOp::Try => Some(SagaOp::Cancel),
            _ => None,
        };
        let undoes = match op {
            SagaOp::Compensate => Some(SagaOp::Action),
            SagaOp::Cancel => Some(SagaOp::Try),
            _ => None,
        };
        let before = found.marks;
        let forward = found.leg == SagaLeg::Forward;
        let wanted = match (op, phase) {
            (SagaOp::Try, SagaPhase::Prepared) | (SagaOp::Confirm, SagaPhase::Submitted) => true,
            (SagaOp::Action, SagaPhase::Submitted) => forward,
            (SagaOp::Compensate | SagaOp::Cancel, SagaPhase::Aborting) => !forward,
            _ => false,
        };
        let nothing_to_undo = undoes.is_some_and(|undoes| !has(before, undoes));
        let outcome = match has(before, *op) {
            true if undo.is_some_and(|undo| has(before, undo)) => BarrierOutcome::Hanging,
            true => BarrierOutcome::Duplicate,
            false if !wanted => BarrierOutcome::Hanging,
            false if nothing_to_undo => BarrierOutcome::EmptyCompensation,
            false => BarrierOutcome::Executed,
        };
        if outcome == BarrierOutcome::Executed {
            let mut tried = self.clone();
            let reply = tried.txn(txn, place)?;
            let outcome = match &reply {
                Reply::Txn { succeeded: false, .. } => BarrierOutcome::Unmet,
                _ => outcome,
            };
            if outcome == BarrierOutcome::Executed {
                *self = tried;
                let saga = self.known_saga(name)?;
                let found = saga.branches.iter_mut().find(|it| it.plan.id == *branch).unwrap();
                found.marks |= op.mark();
                touch(saga, place);
            }
            return Ok(Reply::Guarded { outcome, txn: Some(Box::new(reply)) });
        }
        if outcome == BarrierOutcome::EmptyCompensation {
            found.marks |= op.mark() | undoes.map_or(0, SagaOp::mark);
            touch(saga, place);
        }
        Ok(Reply::Guarded { outcome, txn: None })
    }

    pub(super) fn advance_sagas(
        &mut self,
        epoch: u64,
        steps: Vec<SagaStep>,
        place: &Place,
    ) -> Answer {
        if epoch != place.term {
            return Err(Refusal::StaleTerm { proposed: epoch, current: place.term });
        }
        let mut taken = 0;
        // A transaction that was finished when its steps in a row began is forgotten by the first of them
        // that is due, and one that a step finishes hears the others of the row in vain.
        for steps in steps.chunk_by(|a, b| a.name == b.name) {
            let name = &steps[0].name;
            let Some(saga) = self.saga(name) else { continue };
            if matches!(saga.phase, SagaPhase::Succeeded | SagaPhase::Failed) {
                let over = place.now_ms >= saga.since_ms.saturating_add(saga.terms.retention_ms);
                if over && steps.iter().any(|step| step.news == SagaNews::Due) {
                    let (namespace, gid) = (saga.namespace.clone(), saga.gid.clone());
                    self.sagas.retain(|s| s.namespace != namespace || s.gid != gid);
                    taken += 1;
                }
                continue;
            }
            for step in steps {
                let before = saga.clone();
                match &step.news {
                    SagaNews::Due => on_time(saga, place),
                    SagaNews::Answer { call, attempt, answer } => {
                        answered(saga, *call, *attempt, answer, place);
                    }
                }
                if *saga != before {
                    touch(saga, place);
                    taken += 1;
                }
            }
        }
        Ok(Reply::SagasAdvanced { taken })
    }

    pub(super) fn order_saga(
        &mut self,
        name: &SagaName,
        order: SagaOrder,
        place: &Place,
    ) -> Answer {
        let saga = self.known_saga(name)?;
        let refused = match (&order, shown(saga)) {
            (_, SagaStatus::Succeeded | SagaStatus::Failed) => true,
            (SagaOrder::Suspend { .. }, _) => false,
            (SagaOrder::Retry, status) => status == SagaStatus::Suspended,
            (SagaOrder::Resume | SagaOrder::Skip { .. } | SagaOrder::Finish, status) => {
                status != SagaStatus::Suspended
            }
        };
        if refused {
            return Err(Refusal::SagaIs { status: shown(saga) });
        }
        let before = saga.clone();
        match order {
            SagaOrder::Suspend { reason } => {
                saga.suspended = Suspension::Ordered(first_bytes(&reason).into());
            }
            SagaOrder::Finish => {
                saga.suspended = Suspension::None;
                saga.since_ms = place.now_ms;
                saga.phase = match saga.phase {
                    SagaPhase::Submitted => SagaPhase::Succeeded,
                    _ => SagaPhase::Failed,
                };
            }
            SagaOrder::Skip { branch } => {
                let forward = saga.phase == SagaPhase::Submitted;
                let backward = saga.phase == SagaPhase::Aborting;
                let Some(it) = saga.branches.get_mut(branch as usize) else {
                    let name = format!("{}/{}/{branch}", name.namespace, name.gid);
                    return Err(Refusal::NotFound { kind: Kind::Saga, name });
                };
                let own = if it.leg == SagaLeg::Forward { forward } else { backward };
                if own && it.call.state != CallState::Succeeded {
                    it.call.state = CallState::Skipped;
                }
            }
            SagaOrder::Resume | SagaOrder::Retry => {
                if order == SagaOrder::Resume {
                    saga.suspended = Suspension::None;
                    saga.since_ms = place.now_ms;
                    saga.query.failures = 0;
                    saga.branches.iter_mut().for_each(|b| b.call.failures = 0);
                }
                let mut calls: Vec<&mut SagaCall> = vec![&mut saga.query];
                calls.extend(saga.branches.iter_mut().map(|b| &mut b.call));
                for call in calls {
                    call.state = match call.state {
                        CallState::Unknown { .. } => CallState::Unknown { again_ms: place.now_ms },
                        CallState::Ongoing { .. } => CallState::Ongoing { again_ms: place.now_ms },
                        other => other,
                    };
                }
                settle(saga, place);
            }
        }
        let changed = *saga != before;
        Ok(turned(saga, changed, place))
    }

    /// Those that time makes something of: first those that go on, then those to be forgotten.
    pub fn due_sagas(&self, now_ms: u64) -> Vec<&Saga> {
        let mut due: Vec<_> =
            self.sagas.iter().filter(|s| fires(s).is_some_and(|at| at <= now_ms)).collect();
        let over = |s: &Saga| matches!(s.phase, SagaPhase::Succeeded | SagaPhase::Failed);
        due.sort_by_key(|s| (over(s), fires(s), &s.namespace, &s.gid));
        due
    }

    pub fn next_saga_ms(&self) -> Option<u64> {
        self.sagas.iter().filter_map(fires).min()
    }

    /// By gid.
    pub fn sagas_that(&self, hold: impl Fn(&Saga) -> bool) -> Vec<&Saga> {
        let mut found: Vec<_> = self.sagas.iter().filter(|saga| hold(saga)).collect();
        found.sort_by_key(|saga| (&saga.namespace, &saga.gid));
        found
    }
}

fn first_bytes(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars() {
        if kept.len() + c.len_utf8() > limits::TEXT_BYTES {
            break;
        }
        kept.push(c);
    }
    kept
}

pub(in crate::state) fn shown(saga: &Saga) -> SagaStatus {
    match (&saga.suspended, saga.phase) {
        (Suspension::Stuck(_) | Suspension::Ordered(_), _) => SagaStatus::Suspended,
        (Suspension::None, SagaPhase::Prepared) => SagaStatus::Prepared,
        (Suspension::None, SagaPhase::Submitted) => SagaStatus::Submitted,
        (Suspension::None, SagaPhase::Aborting) => SagaStatus::Aborting,
        (Suspension::None, SagaPhase::Succeeded) => SagaStatus::Succeeded,
        (Suspension::None, SagaPhase::Failed) => SagaStatus::Failed,
    }
}

fn turned(saga: &mut Saga, changed: bool, place: &Place) -> Reply {
    if changed {
        touch(saga, place);
    }
    Reply::SagaTurned { status: shown(saga), changed, mod_revision: saga.mod_revision }
}

fn touch(saga: &mut Saga, place: &Place) {
    saga.epoch = place.term;
    saga.mod_revision = place.revision;
    saga.modified_at_ms = place.now_ms;
}

/// A client does not overrule an operator.
fn decided(saga: &mut Saga) {
    if let Suspension::Stuck(_) = saga.suspended {
        saga.suspended = Suspension::None;
    }
}

fn submitted(saga: &mut Saga, place: &Place) {
    saga.phase = SagaPhase::Submitted;
    decided(saga);
    saga.since_ms = place.now_ms;
    saga.start_at_ms = place.now_ms.saturating_add(saga.terms.delay_ms);
    settle(saga, place);
}

fn aborted(saga: &mut Saga, why: &str, place: &Place) {
    saga.error = why.into();
    saga.phase = SagaPhase::Aborting;
    saga.since_ms = place.now_ms;
    saga.start_at_ms = 0;
    for b in &mut saga.branches {
        let did_nothing = match b.call.state {
            // The same call may have been made twice, and come once more.
            CallState::Failed => false,
            CallState::Skipped => b.call.attempt == 0,
            CallState::Pending => true,
            _ => false,
        };
        let undo = match saga.mode {
            SagaMode::Message => false,
            SagaMode::Tcc => true,
            SagaMode::Saga => !did_nothing,
        };
        if undo && !b.plan.compensation.is_empty() {
            b.leg = SagaLeg::Backward;
            b.call = SagaCall { state: CallState::Pending, attempt: 0, failures: 0 };
        }
    }
    settle(saga, place);
}

fn over(call: &SagaCall) -> bool {
    call.state == CallState::Succeeded || call.state == CallState::Skipped
}

fn asks(saga: &Saga) -> bool {
    saga.mode == SagaMode::Message && !saga.terms.query.is_empty()
}

/// Goes through the rules until none applies.
fn settle(saga: &mut Saga, place: &Place) {
    while !saga.is_suspended() {
        let before = saga.clone();
        match saga.phase {
            SagaPhase::Prepared if saga.query.state == CallState::Succeeded => {
                return submitted(saga, place);
            }
            SagaPhase::Prepared if saga.query.state == CallState::Failed => {
                let why = saga.error.to_string();
                return aborted(saga, &why, place);
            }
            SagaPhase::Prepared => {
                let until = saga.since_ms.saturating_add(saga.terms.prepared_timeout_ms);
                let asked = saga.query.state != CallState::Pending;
                if asks(saga) && (asked || until <= place.now_ms) {
                    called(&mut saga.query, saga.terms.query_policy, place);
                }
            }
            SagaPhase::Submitted => {
                if saga.branches.iter().any(|b| b.call.state == CallState::Failed) {
                    let why = saga.error.to_string();
                    return aborted(saga, &why, place);
                }
                if saga.branches.iter().all(|b| over(&b.call)) {
                    saga.phase = SagaPhase::Succeeded;
                    saga.since_ms = place.now_ms;
                } else if saga.start_at_ms <= place.now_ms {
                    for i in 0..saga.branches.len() {
                        let needs = saga.branches[i].plan.after.clone();
                        if needs.iter().all(|n| over(&saga.branches[*n as usize].call)) {
                            let policy = saga.branches[i].plan.policy;
                            called(&mut saga.branches[i].call, policy, place);
                        }
                    }
                }
            }
            SagaPhase::Aborting => {
                let left = |b: &SagaBranch| b.leg == SagaLeg::Backward && !over(&b.call);
                if !saga.branches.iter().any(left) {
                    saga.phase = SagaPhase::Failed;
                    saga.since_ms = place.now_ms;
                }
                for i in 0..saga.branches.len() {
                    if !waits_for_later(saga, i) && left(&saga.branches[i]) {
                        let policy = saga.branches[i].plan.policy;
                        called(&mut saga.branches[i].call, policy, place);
                    }
                }
            }
            SagaPhase::Succeeded | SagaPhase::Failed => return,
        }
        if *saga == before {
            return;
        }
    }
}

/// Whether a branch that came after this one, directly or not, is still to be undone.
fn waits_for_later(saga: &Saga, number: usize) -> bool {
    saga.branches.iter().enumerate().any(|(later, branch)| {
        let left = branch.leg == SagaLeg::Backward && !over(&branch.call);
        branch.plan.after.contains(&(number as u32)) && (left || waits_for_later(saga, later))
    })
}

fn called(call: &mut SagaCall, policy: CallPolicy, place: &Place) {
    let again = match call.state {
        CallState::Pending => true,
        CallState::Running { epoch, .. } => epoch != place.term,
        CallState::Unknown { again_ms } => again_ms <= place.now_ms,
        CallState::Ongoing { again_ms } => again_ms <= place.now_ms,
        CallState::Succeeded | CallState::Failed | CallState::Skipped => false,
    };
    if again {
        call.attempt = call.attempt.saturating_add(1);
        let deadline_ms = place.now_ms.saturating_add(policy.timeout_ms);
        call.state = CallState::Running { deadline_ms, epoch: place.term };
    }
}

/// The calls that count now, by their places; the query is at u32::MAX.
fn current(saga: &Saga) -> Vec<(u32, SagaCall, CallPolicy)> {
    let leg = match saga.phase {
        SagaPhase::Prepared => return vec![(u32::MAX, saga.query, saga.terms.query_policy)],
        SagaPhase::Submitted => SagaLeg::Forward,
        SagaPhase::Aborting => SagaLeg::Backward,
        SagaPhase::Succeeded | SagaPhase::Failed => return vec![],
    };
    let all = (0..).zip(&saga.branches).filter(|(_, b)| b.leg == leg);
    all.map(|(i, b)| (i, b.call, b.plan.policy)).collect()
}

fn call_at(saga: &mut Saga, at: u32) -> &mut SagaCall {
    match at {
        u32::MAX => &mut saga.query,
        at => &mut saga.branches[at as usize].call,
    }
}

fn takes_no(saga: &Saga, at: u32) -> bool {
    let backward = saga.mode == SagaMode::Saga && saga.terms.recovery == SagaRecovery::Backward;
    at == u32::MAX || (backward && saga.phase == SagaPhase::Submitted)
}

fn failed(saga: &mut Saga, at: u32, policy: CallPolicy, why: &str, place: &Place) {
    let gid = saga.gid.clone();
    let may_abort = takes_no(saga, at) && at != u32::MAX;
    let call = call_at(saga, at);
    call.failures = call.failures.saturating_add(1);
    let mut pause = policy.pause_ms;
    for _ in 1..call.failures.min(70) {
        pause = pause.saturating_mul(2);
    }
    let pause = pause.min(policy.pause_max_ms);
    let hash = xxh3_64_with_seed(gid.as_bytes(), (u64::from(at) << 32) | u64::from(call.attempt));
    let pause = u128::from(pause) * u128::from(800 + hash % 401) / 1000;
    let pause = pause.min(u128::from(u64::MAX)) as u64;
    call.state = CallState::Unknown { again_ms: place.now_ms.saturating_add(pause) };
    let enough = policy.attempts != 0 && call.failures >= policy.attempts;
    saga.error = why.into();
    if enough && !saga.is_suspended() {
        match may_abort {
            true => aborted(saga, why, place),
            false if saga.phase == SagaPhase::Aborting => {}
            false => saga.suspended = Suspension::Stuck("too many attempts failed".into()),
        }
    }
}

fn answered(saga: &mut Saga, name: CallName, attempt: u32, answer: &CallAnswer, place: &Place) {
    let (at, leg) = match name {
        CallName::Query => (u32::MAX, None),
        CallName::Branch { number: u32::MAX, .. } => return,
        CallName::Branch { number, leg } => (number, Some(leg)),
    };
    let Some((_, call, policy)) = current(saga).into_iter().find(|it| it.0 == at) else { return };
    if leg.is_some_and(|leg| saga.branches[at as usize].leg != leg) || call.attempt != attempt {
        return;
    }
    let CallState::Running { epoch, .. } = call.state else { return };
    if epoch != place.term {
        return;
    }
    match answer {
        CallAnswer::Succeeded { result } => {
            if result.len() > limits::SAGA_RESULT_BYTES {
                return;
            }
            call_at(saga, at).state = CallState::Succeeded;
            if leg == Some(SagaLeg::Forward) {
                saga.branches[at as usize].result = result.clone();
            }
        }
        CallAnswer::Ongoing { pause_ms } => {
            let pause = if *pause_ms > 0 { *pause_ms } else { policy.pause_ms };
            let again_ms = place.now_ms.saturating_add(pause.min(86_400_000));
            call_at(saga, at).state = CallState::Ongoing { again_ms };
        }
        CallAnswer::Failed { error } if takes_no(saga, at) => {
            call_at(saga, at).state = CallState::Failed;
            saga.error = first_bytes(error).into();
        }
        CallAnswer::Failed { error } | CallAnswer::Unknown { error } => {
            failed(saga, at, policy, &first_bytes(error), place);
        }
    }
    settle(saga, place);
}

fn on_time(saga: &mut Saga, place: &Place) {
    let finished = matches!(saga.phase, SagaPhase::Succeeded | SagaPhase::Failed);
    if saga.is_suspended() || finished {
        return;
    }
    let begins = saga.since_ms.max(saga.start_at_ms);
    let backward = saga.mode == SagaMode::Saga && saga.terms.recovery == SagaRecovery::Backward;
    let timeout_ms = saga.terms.timeout_ms;
    let times_out = backward && saga.phase == SagaPhase::Submitted && timeout_ms > 0;
    if saga.phase == SagaPhase::Prepared && !asks(saga) {
        if saga.since_ms.saturating_add(saga.terms.prepared_timeout_ms) <= place.now_ms {
            aborted(saga, "not submitted in time", place);
        }
    } else if times_out && begins.saturating_add(timeout_ms) <= place.now_ms {
        aborted(saga, "not finished in time", place);
    } else if begins.saturating_add(saga.terms.suspend_after_ms) <= place.now_ms {
        saga.suspended = Suspension::Stuck("not finished for too long".into());
    } else {
        let phase = saga.phase;
        for (at, call, policy) in current(saga) {
            let CallState::Running { deadline_ms, epoch } = call.state else { continue };
            if deadline_ms <= place.now_ms && epoch == place.term && saga.phase == phase {
                failed(saga, at, policy, "no answer", place);
            }
        }
        settle(saga, place);
    }
}

/// When time makes something of it.
fn fires(saga: &Saga) -> Option<u64> {
    if saga.is_suspended() {
        return None;
    }
    let terms = &saga.terms;
    let mut times = vec![];
    match saga.phase {
        SagaPhase::Succeeded | SagaPhase::Failed => {
            return Some(saga.since_ms.saturating_add(terms.retention_ms));
        }
        SagaPhase::Prepared => {
            if !asks(saga) || saga.query.state == CallState::Pending {
                times.push(saga.since_ms.saturating_add(terms.prepared_timeout_ms));
            }
            if !asks(saga) {
                return times.pop();
            }
        }
        SagaPhase::Submitted | SagaPhase::Aborting => {}
    }
    let mut waits = false;
    for (_, call, _) in current(saga) {
        if let CallState::Running { deadline_ms: at, .. }
        | CallState::Unknown { again_ms: at }
        | CallState::Ongoing { again_ms: at } = call.state
        {
            waits = true;
            times.push(at);
        }
    }
    let begins = saga.since_ms.max(saga.start_at_ms);
    if saga.phase == SagaPhase::Submitted {
        if !waits {
            times.push(saga.start_at_ms);
        }
        let backward = terms.recovery == SagaRecovery::Backward && saga.mode == SagaMode::Saga;
        if backward && terms.timeout_ms > 0 {
            times.push(begins.saturating_add(terms.timeout_ms));
        }
    }
    times.push(begins.saturating_add(terms.suspend_after_ms));
    times.into_iter().min()
}
