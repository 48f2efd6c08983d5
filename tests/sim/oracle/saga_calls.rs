//! A call is recorded before it is made: RUNNING, with its attempt and its epoch, was applied somewhere.
//! Attempts follow each other with rising epochs, and nobody makes one twice; an answer counts for the attempt
//! that it was given to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quorate::raft::types::NodeId;
use quorate::state::{
    Blob, CallAnswer, CallName, CallState, Saga, SagaCall, SagaLeg, SagaMode, SagaOp,
};

use super::Oracle;

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId {
    pub gid: String,
    /// Empty for a query.
    pub branch: String,
    pub op: &'static str,
    pub attempt: u32,
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CallId { gid, branch, op, attempt } = self;
        write!(f, "{gid}/{branch}/{op}/{attempt}")
    }
}

#[derive(Debug, Default)]
pub struct SagaCalls {
    /// Epochs of the calls that were recorded as RUNNING.
    recorded: BTreeMap<CallId, u64>,
    /// Who has made them.
    made: BTreeSet<(CallId, NodeId)>,
    /// What was answered.
    answered: BTreeMap<CallId, Answered>,
}

#[derive(Debug, Default)]
struct Answered {
    succeeded: bool,
    refused: bool,
}

fn id_of(saga: &Saga, name: CallName, attempt: u32) -> CallId {
    let (branch, op) = match name {
        CallName::Query => ("", "query"),
        CallName::Branch { number, leg } => {
            let op = match (leg, saga.mode) {
                (SagaLeg::Forward, SagaMode::Tcc) => SagaOp::Confirm,
                (SagaLeg::Forward, SagaMode::Saga | SagaMode::Message) => SagaOp::Action,
                (SagaLeg::Backward, SagaMode::Tcc) => SagaOp::Cancel,
                (SagaLeg::Backward, SagaMode::Saga | SagaMode::Message) => SagaOp::Compensate,
            };
            (&*saga.branches[number as usize].plan.id, op.name())
        }
    };
    CallId { gid: saga.gid.to_string(), branch: branch.to_owned(), op, attempt }
}

/// The cluster adds to its counters itself.
fn is_called(saga: &Saga, name: CallName) -> bool {
    let CallName::Branch { number, leg } = name else { return true };
    let plan = &saga.branches[number as usize].plan;
    let target = match leg {
        SagaLeg::Forward => &plan.action,
        SagaLeg::Backward => &plan.compensation,
    };
    !target.starts_with("counter:")
}

/// All calls of a transaction that are kept.
fn calls(saga: &Saga) -> impl Iterator<Item = (CallName, &SagaCall)> {
    let branches = (0..).zip(&saga.branches);
    let branches =
        branches.map(|(number, it)| (CallName::Branch { number, leg: it.leg }, &it.call));
    branches.chain([(CallName::Query, &saga.query)])
}

impl Oracle {
    pub fn calls_are_recorded(&mut self, new: &Saga) -> Result<(), String> {
        for (name, call) in new.live_calls() {
            let CallState::Running { deadline_ms: _, epoch } = call.state else { continue };
            let id = id_of(new, name, call.attempt);
            let first = CallId { attempt: 0, ..id.clone() };
            match self.saga_calls.recorded.range(first..id.clone()).next_back() {
                Some((last, last_epoch))
                    if last.attempt + 1 != id.attempt || *last_epoch > epoch =>
                {
                    return Err(format!("{id} of epoch {epoch} follows {last} of {last_epoch}"));
                }
                None if id.attempt != 1 => return Err(format!("{id} is the first attempt")),
                Some(_) | None => {}
            }
            if let Some(before) = self.saga_calls.recorded.insert(id.clone(), epoch)
                && before != epoch
            {
                return Err(format!("{id} was recorded in epoch {before}, then in {epoch}"));
            }
        }
        Ok(())
    }

    /// A leader makes a call, with the answers of others that it brings along.
    pub fn call_is_made(
        &mut self,
        node: NodeId,
        id: &CallId,
        epoch: u64,
        results: Result<Vec<(&str, &Blob)>, String>,
    ) {
        self.counts.calls_made += 1;
        match self.saga_calls.recorded.get(id) {
            Some(recorded) if *recorded == epoch => {}
            recorded => self.violated(format!(
                "{id} is made in epoch {epoch}; what was recorded is of {recorded:?}"
            )),
        }
        // Of an attempt that was made twice, the first could have its effect after the second was refused.
        if !self.saga_calls.made.insert((id.clone(), node)) {
            self.violated(format!("node {node} makes {id} twice"));
        }
        for (branch, result) in results.unwrap_or_default() {
            if result.as_bytes() != format!("{}/{branch}", id.gid).as_bytes() {
                self.violated(format!("{id} is told that {branch} has answered {result:?}"));
            }
        }
    }

    pub fn call_is_answered(&mut self, id: &CallId, answer: &CallAnswer) {
        let answered = self.saga_calls.answered.entry(id.clone()).or_default();
        match answer {
            CallAnswer::Succeeded { .. } => answered.succeeded = true,
            CallAnswer::Failed { .. } => answered.refused = true,
            CallAnswer::Ongoing { .. } | CallAnswer::Unknown { .. } => {}
        }
    }

    /// Whether an earlier leader has begun the same.
    pub fn was_begun_before(&self, id: &CallId, epoch: u64) -> bool {
        let first = CallId { attempt: 0, ..id.clone() };
        let mut before = self.saga_calls.recorded.range(first..id.clone());
        before.any(|(_, recorded)| *recorded < epoch)
    }

    /// The attempt of a call that is under way now.
    pub fn under_way(&self, id: &CallId) -> Option<(CallName, u32)> {
        let saga = self.history.sagas().find(|saga| *saga.gid == *id.gid)?;
        let mut calls = saga.live_calls();
        calls.find_map(|(name, call)| {
            let now = id_of(&saga, name, call.attempt);
            let same = (&now.branch, now.op) == (&id.branch, id.op);
            let running = matches!(call.state, CallState::Running { .. });
            (same && running).then_some((name, call.attempt))
        })
    }

    /// Whether the participant of a branch has refused its action.
    pub fn was_refused(&self, saga: &Saga, number: usize, attempt: u32) -> bool {
        let number = u32::try_from(number).expect("branches are few");
        let name = CallName::Branch { number, leg: SagaLeg::Forward };
        let answered = self.saga_calls.answered.get(&id_of(saga, name, attempt));
        answered.is_some_and(|answered| answered.refused) || !is_called(saga, name)
    }

    /// What is settled now was answered so, in the attempt that counts.
    pub fn answers_count_once(&self, old: Option<&Saga>, new: &Saga) -> Result<(), String> {
        let Some(old) = old else { return Ok(()) };
        for (name, call) in calls(new).filter(|(name, _)| is_called(new, *name)) {
            let before = calls(old).find(|(before, _)| *before == name).map(|(_, call)| call.state);
            if before == Some(call.state) {
                continue;
            }
            let id = id_of(new, name, call.attempt);
            let answered = self.saga_calls.answered.get(&id);
            let told = match call.state {
                CallState::Succeeded => answered.is_some_and(|answered| answered.succeeded),
                CallState::Failed => answered.is_some_and(|answered| answered.refused),
                CallState::Pending
                | CallState::Running { .. }
                | CallState::Unknown { .. }
                | CallState::Ongoing { .. }
                | CallState::Skipped => true,
            };
            if !told {
                return Err(format!("{id} is {:?}; its answers were {answered:?}", call.state));
            }
        }
        Ok(())
    }
}
