//! Commands of global transactions and their limits.

use serde::{Deserialize, Serialize};

use super::super::table::{Blob, BranchPlan, CallName, CallPolicy, SagaMode, SagaOp, SagaTerms};
use super::target::Target;
use super::{Refusal, check_name, check_range, check_text, invalid};
use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SagaName<T = String> {
    pub namespace: T,
    pub gid: T,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaBegin<T = String> {
    /// An empty gid is given by the state.
    pub name: SagaName<T>,
    pub mode: SagaMode,
    pub terms: SagaTerms,
    /// None of TCC: these are registered.
    pub branches: Vec<BranchPlan>,
    /// At once.
    pub submit: bool,
}

/// One thing that happened to a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaStep<T = String> {
    pub name: SagaName<T>,
    pub news: SagaNews<T>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaNews<T = String> {
    /// Its time has come, or it was left behind by an earlier leader: what that asks for is done.
    Due,
    /// A call was answered, or was not.
    Answer { call: CallName, attempt: u32, answer: CallAnswer<T> },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallAnswer<T = String> {
    Succeeded {
        result: Blob,
    },
    /// Refused: nothing was done.
    Failed {
        error: T,
    },
    /// Ask again after a pause; 0 = that of the policy.
    Ongoing {
        pause_ms: u64,
    },
    /// It may have been done or not.
    Unknown {
        error: T,
    },
}

/// Which part of which branch a transaction in this cluster carries out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Barrier<T = String> {
    pub name: SagaName<T>,
    /// Id of the branch.
    pub branch: T,
    pub op: SagaOp,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarrierOutcome {
    Executed,
    /// It was done before.
    Duplicate,
    /// There was nothing to take back, and there will never be.
    EmptyCompensation,
    /// It came too late, was taken back before, or is not wanted.
    Hanging,
    /// The transaction's conditions did not hold: nothing is done or marked.
    Unmet,
}

/// What an operator wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaOrder<T = String> {
    Suspend {
        reason: T,
    },
    /// Goes on where it stood, with all its attempts anew.
    Resume,
    /// Of a suspended one: takes a branch for settled in the direction in which the transaction goes.
    Skip {
        branch: u32,
    },
    /// Of a suspended one: takes it for finished in the direction in which it goes.
    Finish,
    /// What waits for its next attempt is called now.
    Retry,
}

impl SagaName {
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        self.check_in("")
    }

    fn check_in(&self, prefix: &str) -> Result<(), Refusal> {
        check_name(prefix, "namespace", &self.namespace)?;
        check_name(prefix, "gid", &self.gid)
    }
}

impl Barrier {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        self.name.check_in("barrier.")?;
        check_name("barrier.", "branch", &self.branch)
    }
}

impl SagaBegin {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_name("", "namespace", &self.name.namespace)?;
        if !self.name.gid.is_empty() {
            check_name("", "gid", &self.name.gid)?;
        }
        let SagaTerms {
            recovery: _,
            prepared_timeout_ms,
            timeout_ms,
            suspend_after_ms,
            retention_ms,
            delay_ms,
            query,
            query_policy,
        } = &self.terms;
        check_range("prepared_timeout_ms", *prepared_timeout_ms, &limits::SAGA_PREPARED_MS)?;
        check_range("timeout_ms", *timeout_ms, &limits::SAGA_TIMEOUT_MS)?;
        check_range("suspend_after_ms", *suspend_after_ms, &limits::SAGA_SUSPEND_AFTER_MS)?;
        check_range("retention_ms", *retention_ms, &limits::SAGA_RETENTION_MS)?;
        check_range("delay_ms", *delay_ms, &limits::SAGA_DELAY_MS)?;
        query_policy.check("query")?;
        check_target("query", query, true)?;
        if query.starts_with("counter:") {
            return Err(invalid("query", query, "somebody who answers: not a counter"));
        }
        if !query.is_empty() && self.mode != SagaMode::Message {
            return Err(invalid("query", query, "empty: only a message asks"));
        }
        if self.mode != SagaMode::Tcc && self.branches.is_empty() {
            return Err(invalid("branches", "0", format!("1..={}", limits::SAGA_BRANCHES)));
        }
        check_branches(self.mode, &self.branches)?;
        for (i, plan) in self.branches.iter().enumerate() {
            plan.check(&format!("branches[{i}]"), self.mode)?;
            if self.branches.iter().take(i).any(|other| other.id == plan.id) {
                let allowed = "an id that no other branch has";
                return Err(invalid(format!("branches[{i}].id"), &plan.id, allowed));
            }
        }
        Ok(())
    }
}

impl BranchPlan {
    pub(super) fn check(&self, at: &str, mode: SagaMode) -> Result<(), Refusal> {
        check_name(&format!("{at}."), "id", &self.id)?;
        check_target(&format!("{at}.trial"), &self.trial, true)?;
        check_target(&format!("{at}.action"), &self.action, false)?;
        check_target(&format!("{at}.compensation"), &self.compensation, true)?;
        let counter = |target: &str| target.starts_with("counter:");
        let undone = mode == SagaMode::Saga && !self.compensation.is_empty();
        if undone && counter(&self.action) != counter(&self.compensation) {
            // The marks of one would not be known to the other.
            let allowed = "a counter exactly when the action is one";
            return Err(invalid(format!("{at}.compensation"), &self.compensation, allowed));
        }
        if mode != SagaMode::Tcc && !self.trial.is_empty() {
            return Err(invalid(format!("{at}.trial"), &self.trial, "empty: only TCC tries"));
        }
        if mode == SagaMode::Message && !self.compensation.is_empty() {
            let allowed = "empty: a message is delivered for good";
            return Err(invalid(format!("{at}.compensation"), &self.compensation, allowed));
        }
        self.policy.check(at)
    }

    /// About what it takes in a record, never less.
    pub(in crate::state) fn bytes(&self) -> usize {
        let BranchPlan { id, trial, action, compensation, payload, after, policy: _ } = self;
        let texts = [id, trial, action, compensation].map(String::len).iter().sum::<usize>();
        texts + payload.len() + 5 * after.len() + limits::SAGA_BRANCH_BYTES
    }
}

impl CallPolicy {
    fn check(&self, at: &str) -> Result<(), Refusal> {
        let CallPolicy { timeout_ms, attempts, pause_ms, pause_max_ms } = *self;
        check_range(&format!("{at}.timeout_ms"), timeout_ms, &limits::SAGA_CALL_MS)?;
        check_range(&format!("{at}.attempts"), attempts.into(), &limits::SAGA_ATTEMPTS)?;
        check_range(&format!("{at}.pause_ms"), pause_ms, &limits::SAGA_PAUSE_MS)?;
        let allowed = pause_ms..=*limits::SAGA_PAUSE_MS.end();
        check_range(&format!("{at}.pause_max_ms"), pause_max_ms, &allowed)
    }
}

impl SagaStep {
    pub(super) fn check(&self, i: usize) -> Result<(), Refusal> {
        let at = format!("steps[{i}].");
        self.name.check_in(&at)?;
        let SagaNews::Answer { call: _, attempt: _, answer } = &self.news else { return Ok(()) };
        match answer {
            CallAnswer::Succeeded { result } => {
                let allowed = 0..=limits::SAGA_RESULT_BYTES as u64;
                check_range(&format!("{at}result"), result.len() as u64, &allowed)
            }
            CallAnswer::Failed { error } | CallAnswer::Unknown { error } => {
                check_text(&format!("{at}error"), error, limits::TEXT_BYTES)
            }
            CallAnswer::Ongoing { pause_ms } => {
                let allowed = 0..=*limits::SAGA_PAUSE_MS.end();
                check_range(&format!("{at}pause_ms"), *pause_ms, &allowed)
            }
        }
    }
}

impl SagaOrder {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        match self {
            SagaOrder::Suspend { reason } => check_text("reason", reason, limits::TEXT_BYTES),
            SagaOrder::Resume
            | SagaOrder::Skip { branch: _ }
            | SagaOrder::Finish
            | SagaOrder::Retry => Ok(()),
        }
    }
}

/// Also asked by the state, which must be able to keep the record, and for which a branch that waits for
/// itself would never be called.
pub(in crate::state) fn check_branches(
    mode: SagaMode,
    branches: &[BranchPlan],
) -> Result<(), Refusal> {
    if mode == SagaMode::Tcc && !branches.is_empty() {
        let count = branches.len().to_string();
        return Err(invalid("branches", count, "none: the branches of TCC are registered"));
    }
    if branches.len() > limits::SAGA_BRANCHES {
        let allowed = format!("at most {}", limits::SAGA_BRANCHES);
        return Err(invalid("branches", branches.len().to_string(), allowed));
    }
    check_bytes(branches.iter().map(BranchPlan::bytes).sum())?;
    for (i, plan) in branches.iter().enumerate() {
        check_after(&format!("branches[{i}].after"), i, &plan.after)?;
    }
    Ok(())
}

/// Likewise.
pub(in crate::state) fn check_bytes(bytes: usize) -> Result<(), Refusal> {
    if bytes > limits::SAGA_BYTES {
        let allowed = format!("at most {} with all that belongs to them", limits::SAGA_BYTES);
        return Err(invalid("branches", format!("{bytes} bytes"), allowed));
    }
    Ok(())
}

/// Likewise.
pub(in crate::state) fn check_after(
    field: &str,
    number: usize,
    after: &[u32],
) -> Result<(), Refusal> {
    let ordered = after.is_sorted_by(|a, b| a < b);
    if ordered && after.last().is_none_or(|last| (*last as usize) < number) {
        return Ok(());
    }
    Err(invalid(field, format!("{after:?}"), "earlier branches in order, each once"))
}

/// Where a call goes.
fn check_target(field: &str, target: &str, may_be_empty: bool) -> Result<(), Refusal> {
    if target.is_empty() && may_be_empty {
        return Ok(());
    }
    if target.len() > limits::SAGA_TARGET_BYTES {
        let allowed = format!("at most {} bytes", limits::SAGA_TARGET_BYTES);
        return Err(invalid(field, target, allowed));
    }
    match Target::parse(target).map_err(|allowed| invalid(field, target, allowed))? {
        Target::Counter(addition) => addition.check(),
        Target::Service { service, path: _ } => check_name("", field, service),
        Target::Url(_) => Ok(()),
    }
}
