//! Global transactions: what each command and what time make of one.
//!
//! The state decides and begins; the leader only calls and tells what came of it. Whatever may be called
//! becomes RUNNING in the very command that makes it possible, so a call is recorded before it is made,
//! and a saga of two steps is three commands. The leader of the term in which the command stands makes
//! the call; a later one finds it left behind and begins it anew, with the same idempotency key.
//!
//! Invariants:
//! - a decision stands: see [`SagaPhase`];
//! - an answer counts for the attempt that is under way in this term, and for nothing else;
//! - whatever is neither finished nor suspended has a time at which it goes on.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::At;
use super::command::{
    CallAnswer, Kind, Refusal, Reply, SagaBegin, SagaName, SagaNews, SagaOrder, SagaStep,
    check_after, check_branches, check_bytes, invalid,
};
use super::config::limit;
use super::journal::Journal;
use super::memory::{SagaTable, Tables};
use super::registry::existing;
use super::table::{
    BranchPlan, CallName, CallPolicy, CallState, Class, Saga, SagaBranch, SagaCall, SagaLeg,
    SagaMode, SagaPhase, Suspension,
};
use crate::limits;

impl Tables {
    /// Begun again with the same content it says where the transaction stands, and submits it if it was only
    /// prepared.
    pub fn begin_saga(
        &mut self,
        begin: SagaBegin<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let SagaBegin { name: SagaName { namespace, gid }, mode, terms, branches, submit } = begin;
        let space = existing(self.namespaces.get_mut(namespace), namespace)?;
        if let Some(old) = space.sagas.get(gid) {
            let plans = old.branches.iter().map(|branch| &*branch.plan);
            let alike = old.mode == mode
                && *old.terms == terms
                && (mode == SagaMode::Tcc || plans.eq(&branches));
            if !alike {
                let (kind, name) = (Kind::Saga, format!("{namespace}/{gid}"));
                return Err(Refusal::InUse { kind, name, by: "another transaction".into() });
            }
            if !submit || old.phase != SagaPhase::Prepared {
                return Ok(begun(old, false));
            }
            let mut saga = Saga::clone(old);
            saga.submit(at);
            saga.stamp(at);
            let reply = begun(&saga, false);
            journal.push(space.sagas.put(&mut self.ledger, saga));
            return Ok(reply);
        }
        check_branches(mode, &branches)?;
        if self.ledger.saga_timers.sagas >= limits::SAGAS as u64 {
            return Err(limit("transactions of the cluster", limits::SAGAS));
        }
        let bytes = branches.iter().map(BranchPlan::bytes).sum();
        self.ledger.saga_timers.check_bytes(bytes)?;
        let gid = if gid.is_empty() { given(&space.sagas, at) } else { gid.into() };
        let mut saga = Saga {
            namespace: space.sagas.namespace().clone(),
            gid,
            mode,
            terms: Arc::new(terms),
            phase: SagaPhase::Prepared,
            since_ms: at.now_ms,
            suspended: Suspension::None,
            start_at_ms: 0,
            query: SagaCall::default(),
            branches: branches.into_iter().map(SagaBranch::new).collect(),
            epoch: at.term,
            error: Arc::default(),
            create_revision: at.revision,
            mod_revision: at.revision,
            created_at_ms: at.now_ms,
            modified_at_ms: at.now_ms,
        };
        if submit {
            saga.submit(at);
        }
        let reply = begun(&saga, true);
        journal.push(space.sagas.put(&mut self.ledger, saga));
        Ok(reply)
    }

    pub fn submit_saga(
        &mut self,
        name: &SagaName<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        self.turn_saga(name, at, journal, |saga| match saga.phase {
            SagaPhase::Prepared => {
                saga.submit(at);
                Ok(())
            }
            SagaPhase::Submitted | SagaPhase::Succeeded => Ok(()),
            SagaPhase::Aborting | SagaPhase::Failed => Err(saga.is_otherwise()),
        })
    }

    pub fn abort_saga(
        &mut self,
        name: &SagaName<&str>,
        reason: &str,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        self.turn_saga(name, at, journal, |saga| match saga.phase {
            SagaPhase::Prepared => {
                saga.end_suspension();
                saga.abort(cut(reason), at);
                Ok(())
            }
            SagaPhase::Aborting | SagaPhase::Failed => Ok(()),
            SagaPhase::Submitted | SagaPhase::Succeeded => Err(saga.is_otherwise()),
        })
    }

    /// Before the branch is tried, so that what may have been tried can be cancelled.
    pub fn register_branch(
        &mut self,
        name: &SagaName<&str>,
        plan: BranchPlan,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let (mut place, mut created) = (0, false);
        let room = self.ledger.saga_timers.check_bytes(plan.bytes());
        self.turn_saga(name, at, journal, |saga| {
            if saga.mode != SagaMode::Tcc {
                let mode = format!("{:?}", saga.mode);
                return Err(invalid("mode", mode, "TCC: others begin with their branches"));
            }
            if saga.phase != SagaPhase::Prepared {
                return Err(saga.is_otherwise());
            }
            place = saga.branches.len();
            if let Some(known) = saga.branches.iter().position(|it| it.plan.id == plan.id) {
                place = known;
                if *saga.branches[known].plan == plan {
                    return Ok(());
                }
                let name = format!("{}/{}/{}", saga.namespace, saga.gid, plan.id);
                let by = "another branch".into();
                return Err(Refusal::InUse { kind: Kind::Saga, name, by });
            }
            if place >= limits::SAGA_BRANCHES {
                return Err(limit("branches of a transaction", limits::SAGA_BRANCHES));
            }
            check_after("branch.after", place, &plan.after)?;
            let known = saga.branches.iter().map(|branch| branch.plan.bytes());
            check_bytes(known.sum::<usize>() + plan.bytes())?;
            room?;
            saga.branches.push(SagaBranch::new(plan));
            created = true;
            Ok(())
        })?;
        Ok(Reply::BranchRegistered { number: place as u32, created })
    }

    /// Ignores what does not apply any more, as [`Tables::judge_health`] does. Steps of one transaction that
    /// follow each other make one change.
    pub fn advance_sagas(
        &mut self,
        epoch: u64,
        steps: &[SagaStep<&str>],
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        if epoch != at.term {
            return Err(Refusal::StaleTerm { proposed: epoch, current: at.term });
        }
        let mut taken = 0;
        for steps in steps.chunk_by(|a, b| a.name == b.name) {
            let name = &steps[0].name;
            let Some(space) = self.namespaces.get_mut(name.namespace) else { continue };
            let Some(old) = space.sagas.get(name.gid) else { continue };
            if old.phase.is_finished() {
                let due = steps.iter().any(|step| step.news == SagaNews::Due);
                taken += u64::from(due && self.forget_saga(name, at, journal));
                continue;
            }
            let mut saga = Saga::clone(old);
            let before = taken;
            for step in steps {
                let told = match &step.news {
                    SagaNews::Due => saga.fire(at),
                    SagaNews::Answer { call, attempt, answer } => {
                        saga.hear(*call, *attempt, answer, at)
                    }
                };
                taken += u64::from(told);
            }
            if taken > before {
                saga.stamp(at);
                journal.push(space.sagas.put(&mut self.ledger, saga));
            }
        }
        Ok(Reply::SagasAdvanced { taken })
    }

    pub fn order_saga(
        &mut self,
        name: &SagaName<&str>,
        order: &SagaOrder<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        self.turn_saga(name, at, journal, |saga| saga.obey(order, at))
    }

    /// Removes a finished transaction whose time is over, or the first of too many. False = it is kept.
    fn forget_saga(&mut self, name: &SagaName<&str>, at: &At, journal: &mut Journal) -> bool {
        let timers = &self.ledger.saga_timers;
        let first = timers.finished.first().is_some_and(|(_, (namespace, gid))| {
            (&**namespace, &**gid) == (name.namespace, name.gid)
        });
        let too_many = first && timers.kept().is_too_much();
        let Some(space) = self.namespaces.get_mut(name.namespace) else { return false };
        let Some(saga) = space.sagas.get(name.gid) else { return false };
        let over = saga.fire_at_ms().is_some_and(|fire_at_ms| fire_at_ms <= at.now_ms);
        if !over && !too_many {
            return false;
        }
        journal.extend(space.sagas.remove(&mut self.ledger, name.gid));
        journal.extend(self.note_removal(name.namespace, Class::Saga, at.revision));
        true
    }

    /// Lets a command work on a copy, which replaces the transaction where it has become another one.
    fn turn_saga(
        &mut self,
        name: &SagaName<&str>,
        at: &At,
        journal: &mut Journal,
        turn: impl FnOnce(&mut Saga) -> Result<(), Refusal>,
    ) -> Result<Reply, Refusal> {
        let SagaName { namespace, gid } = name;
        let space = self.namespaces.get_mut(*namespace);
        let known = space.and_then(|space| {
            let old = space.sagas.get(gid)?.clone();
            Some((&mut space.sagas, old))
        });
        let Some((sagas, old)) = known else {
            let name = format!("{namespace}/{gid}");
            return Err(Refusal::NotFound { kind: Kind::Saga, name });
        };
        let mut saga = Saga::clone(&old);
        turn(&mut saga)?;
        let changed = saga != *old;
        if changed {
            saga.stamp(at);
        }
        let (status, mod_revision) = (saga.status(), saga.mod_revision);
        if changed {
            journal.push(sagas.put(&mut self.ledger, saga));
        }
        Ok(Reply::SagaTurned { status, changed, mod_revision })
    }
}

fn begun(saga: &Saga, created: bool) -> Reply {
    let (gid, status, mod_revision) = (saga.gid.to_string(), saga.status(), saga.mod_revision);
    Reply::SagaBegun { gid, status, created, mod_revision }
}

/// A gid that nobody has: no other command has this revision, but a client may have chosen the name.
fn given(sagas: &SagaTable, at: &At) -> Arc<str> {
    let mut gid = format!("r{}", at.revision);
    while sagas.get(&gid).is_some() {
        gid.push('-');
    }
    gid.into()
}

/// What is kept of what somebody said.
fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(limits::TEXT_BYTES)]
}

impl Saga {
    pub(super) fn stamp(&mut self, at: &At) {
        self.epoch = at.term;
        self.mod_revision = at.revision;
        self.modified_at_ms = at.now_ms;
    }

    fn is_otherwise(&self) -> Refusal {
        Refusal::SagaIs { status: self.status() }
    }

    fn enter(&mut self, phase: SagaPhase, at: &At) {
        self.phase = phase;
        self.since_ms = at.now_ms;
        if phase.is_finished() {
            self.suspended = Suspension::None;
        }
    }

    /// What it was suspended for is settled by a decision, unless an operator has asked for it.
    fn end_suspension(&mut self) {
        if let Suspension::Stuck(_) = self.suspended {
            self.suspended = Suspension::None;
        }
    }

    fn submit(&mut self, at: &At) {
        self.end_suspension();
        self.start_at_ms = at.now_ms.saturating_add(self.terms.delay_ms);
        self.enter(SagaPhase::Submitted, at);
        self.go_on(at);
    }

    fn abort(&mut self, why: &str, at: &At) {
        self.error = why.into();
        self.start_at_ms = 0;
        self.enter(SagaPhase::Aborting, at);
        for branch in &mut self.branches {
            let undone = match self.mode {
                SagaMode::Saga => branch.call.may_have_run(),
                // It may have been tried.
                SagaMode::Tcc => true,
                SagaMode::Message => false,
            };
            if undone && !branch.plan.compensation.is_empty() {
                branch.leg = SagaLeg::Backward;
                branch.call = SagaCall::default();
            }
        }
        self.go_on(at);
    }

    fn suspend(&mut self, why: &str) {
        self.suspended = Suspension::Stuck(why.into());
    }

    /// Does what can be done now: ends a phase, or begins every call whose time has come.
    fn go_on(&mut self, at: &At) {
        if self.is_suspended() {
            return;
        }
        match self.phase {
            SagaPhase::Succeeded | SagaPhase::Failed => {}
            SagaPhase::Prepared => match self.query.state {
                CallState::Succeeded => self.submit(at),
                CallState::Failed => self.abort(&self.error.clone(), at),
                _ if self.asks() && self.may_ask(at) => {
                    self.query.begin(&self.terms.query_policy, at);
                }
                _ => {}
            },
            SagaPhase::Submitted => {
                if self.branches.iter().any(|branch| branch.call.state == CallState::Failed) {
                    self.abort(&self.error.clone(), at);
                } else if self.branches.iter().all(|branch| branch.call.state.is_done()) {
                    self.enter(SagaPhase::Succeeded, at);
                } else if at.now_ms >= self.start_at_ms {
                    self.begin_calls(at);
                }
            }
            SagaPhase::Aborting => {
                if !self.branches.iter().any(SagaBranch::is_to_be_undone) {
                    self.enter(SagaPhase::Failed, at);
                } else {
                    self.begin_calls(at);
                }
            }
        }
    }

    /// Once it has asked, it goes on to ask: the pauses say when.
    fn may_ask(&self, at: &At) -> bool {
        self.query.state != CallState::Pending || at.now_ms >= self.prepared_until_ms()
    }

    fn begin_calls(&mut self, at: &At) {
        let leg = self.leg();
        for (number, waits) in self.waiting().into_iter().enumerate() {
            let SagaBranch { plan, call, leg: own, .. } = &mut self.branches[number];
            if !waits && leg == Some(*own) {
                call.begin(&plan.policy, at);
            }
        }
    }

    /// Of each branch, whether something must come before it.
    fn waiting(&self) -> Vec<bool> {
        if self.phase != SagaPhase::Aborting {
            let is_done = |before: &u32| self.branches[*before as usize].call.state.is_done();
            let waits = |branch: &SagaBranch| !branch.plan.after.iter().all(is_done);
            return self.branches.iter().map(waits).collect();
        }
        // Whatever came after it is undone first, also where there is nothing to undo in between.
        let mut waiting = vec![false; self.branches.len()];
        for (number, branch) in self.branches.iter().enumerate().rev() {
            if waiting[number] || branch.is_to_be_undone() {
                branch.plan.after.iter().for_each(|before| waiting[*before as usize] = true);
            }
        }
        waiting
    }

    /// Its time has come. False = nothing came of it.
    fn fire(&mut self, at: &At) -> bool {
        if self.is_suspended() || self.phase.is_finished() {
            return false;
        }
        let before = self.clone();
        match self.phase {
            SagaPhase::Prepared if !self.asks() => {
                if at.now_ms >= self.prepared_until_ms() {
                    self.abort("not submitted in time", at);
                }
            }
            _ if self.aborts_at_ms().is_some_and(|at_ms| at.now_ms >= at_ms) => {
                self.abort("not finished in time", at);
            }
            _ if at.now_ms >= self.suspends_at_ms() => self.suspend("not finished for too long"),
            _ => {
                self.lapse(at);
                self.go_on(at);
            }
        }
        *self != before
    }

    /// Calls that were never answered have failed.
    fn lapse(&mut self, at: &At) {
        let lapsed = |call: &SagaCall| {
            let CallState::Running { deadline_ms, epoch } = call.state else { return false };
            epoch == at.term && deadline_ms <= at.now_ms
        };
        let calls = self.live_calls().filter(|(_, call)| lapsed(call));
        let calls: Vec<CallName> = calls.map(|(name, _)| name).collect();
        for call in calls {
            // The first may have aborted it, and so ended the others.
            self.fail(call, "no answer", at);
        }
    }

    /// A call was answered. False = not one that is under way.
    fn hear(&mut self, name: CallName, attempt: u32, answer: &CallAnswer<&str>, at: &At) -> bool {
        let may_refuse = self.may_refuse(name);
        let Some((call, policy)) = self.call(name) else { return false };
        let CallState::Running { deadline_ms: _, epoch } = call.state else { return false };
        if epoch != at.term || call.attempt != attempt {
            return false;
        }
        match answer {
            // More than can be kept: nobody let it through.
            CallAnswer::Succeeded { result } if result.len() > limits::SAGA_RESULT_BYTES => {
                return false;
            }
            CallAnswer::Succeeded { result } => {
                call.state = CallState::Succeeded;
                if let CallName::Branch { number, leg: SagaLeg::Forward } = name {
                    self.branches[number as usize].result = result.clone();
                }
            }
            CallAnswer::Ongoing { pause_ms } => {
                let pause_ms = if *pause_ms == 0 { policy.pause_ms } else { *pause_ms };
                let pause_ms = pause_ms.min(*limits::SAGA_PAUSE_MS.end());
                call.state = CallState::Ongoing { again_ms: at.now_ms.saturating_add(pause_ms) };
            }
            CallAnswer::Failed { error } if may_refuse => {
                call.state = CallState::Failed;
                self.error = cut(error).into();
            }
            // What was decided must be done, also where it is refused.
            CallAnswer::Failed { error } | CallAnswer::Unknown { error } => {
                self.fail(name, cut(error), at);
            }
        }
        self.go_on(at);
        true
    }

    /// Whether the word of a participant that refuses decides the transaction.
    fn may_refuse(&self, name: CallName) -> bool {
        match name {
            CallName::Query => true,
            CallName::Branch { number: _, leg } => {
                self.recovers_backward() && leg == SagaLeg::Forward
            }
        }
    }

    /// A call that is about what the transaction does now.
    fn call(&mut self, name: CallName) -> Option<(&mut SagaCall, CallPolicy)> {
        match name {
            CallName::Query => {
                let policy = self.terms.query_policy;
                (self.phase == SagaPhase::Prepared).then_some((&mut self.query, policy))
            }
            CallName::Branch { number, leg } => {
                let goes = self.leg();
                let branch = self.branches.get_mut(number as usize)?;
                let policy = branch.plan.policy;
                (branch.leg == leg && goes == Some(leg)).then_some((&mut branch.call, policy))
            }
        }
    }

    /// A call under way has failed: it is repeated after a pause, or has failed once too often.
    fn fail(&mut self, name: CallName, why: &str, at: &At) {
        let gid = self.gid.clone();
        let Some((call, policy)) = self.call(name) else { return };
        call.failures = call.failures.saturating_add(1);
        let seed = match name {
            CallName::Query => u64::from(u32::MAX),
            CallName::Branch { number, leg: _ } => u64::from(number),
        };
        let spread = xxh3_64_with_seed(gid.as_bytes(), seed << 32 | u64::from(call.attempt));
        let pause_ms = spread_ms(pause_ms(&policy, call.failures), spread);
        call.state = CallState::Unknown { again_ms: at.now_ms.saturating_add(pause_ms) };
        let exhausted = policy.attempts > 0 && call.failures >= policy.attempts;
        self.error = why.into();
        if !exhausted || self.is_suspended() {
            return;
        }
        match name {
            CallName::Branch { number: _, leg: SagaLeg::Backward } => {}
            CallName::Branch { .. } if self.may_refuse(name) => self.abort(why, at),
            CallName::Query | CallName::Branch { .. } => self.suspend("too many attempts failed"),
        }
    }

    fn obey(&mut self, order: &SagaOrder<&str>, at: &At) -> Result<(), Refusal> {
        let suspended = self.is_suspended();
        let needs_suspended = match order {
            SagaOrder::Suspend { .. } => None,
            SagaOrder::Retry => Some(false),
            SagaOrder::Resume | SagaOrder::Skip { .. } | SagaOrder::Finish => Some(true),
        };
        if self.phase.is_finished() || needs_suspended.is_some_and(|needs| needs != suspended) {
            return Err(self.is_otherwise());
        }
        match order {
            SagaOrder::Suspend { reason } => {
                self.suspended = Suspension::Ordered(cut(reason).into());
            }
            SagaOrder::Retry => self.hurry(at),
            SagaOrder::Resume => {
                self.suspended = Suspension::None;
                self.since_ms = at.now_ms;
                self.query.failures = 0;
                for branch in &mut self.branches {
                    branch.call.failures = 0;
                }
                self.hurry(at);
            }
            SagaOrder::Skip { branch: number } => {
                let goes = self.leg();
                let Some(branch) = self.branches.get_mut(*number as usize) else {
                    let name = format!("{}/{}/{number}", self.namespace, self.gid);
                    return Err(Refusal::NotFound { kind: Kind::Saga, name });
                };
                if goes == Some(branch.leg) && !branch.call.state.is_done() {
                    branch.call.state = CallState::Skipped;
                }
            }
            SagaOrder::Finish => match self.phase {
                SagaPhase::Submitted => self.enter(SagaPhase::Succeeded, at),
                _ => self.enter(SagaPhase::Failed, at),
            },
        }
        Ok(())
    }

    /// Calls now what waits for its next attempt.
    fn hurry(&mut self, at: &At) {
        let calls = self.branches.iter_mut().map(|branch| &mut branch.call);
        for call in calls.chain([&mut self.query]) {
            if let CallState::Unknown { again_ms } | CallState::Ongoing { again_ms } =
                &mut call.state
            {
                *again_ms = at.now_ms;
            }
        }
        self.go_on(at);
    }
}

impl SagaBranch {
    fn is_to_be_undone(&self) -> bool {
        self.leg == SagaLeg::Backward && !self.call.state.is_done()
    }
}

impl SagaCall {
    /// Records a call that is made next, if it is time for it.
    fn begin(&mut self, policy: &CallPolicy, at: &At) {
        let due = match self.state {
            CallState::Pending => true,
            CallState::Running { deadline_ms: _, epoch } => epoch != at.term,
            CallState::Unknown { again_ms } | CallState::Ongoing { again_ms } => {
                again_ms <= at.now_ms
            }
            CallState::Succeeded | CallState::Failed | CallState::Skipped => false,
        };
        if due {
            self.attempt = self.attempt.saturating_add(1);
            let deadline_ms = at.now_ms.saturating_add(policy.timeout_ms);
            self.state = CallState::Running { deadline_ms, epoch: at.term };
        }
    }
}

/// The pause after so many failures.
fn pause_ms(policy: &CallPolicy, failures: u32) -> u64 {
    let doubled = 1u64.checked_shl(failures.saturating_sub(1)).unwrap_or(u64::MAX);
    policy.pause_ms.saturating_mul(doubled).min(policy.pause_max_ms)
}

/// A fifth more or less, so that those who failed together do not come back together.
fn spread_ms(pause_ms: u64, hash: u64) -> u64 {
    let milli = u128::from(800 + hash % 401);
    u64::try_from(u128::from(pause_ms) * milli / 1_000).unwrap_or(u64::MAX)
}
