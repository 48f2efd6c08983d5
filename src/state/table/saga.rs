//! Records of global transactions: sagas, messages in two phases and TCC, of which one record each holds
//! the whole, its branches included.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Blob, Key};
use crate::limits;

/// A transaction over several services. What never changes is shared by all versions of the record, so
/// that a transition copies a few words for each branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saga {
    pub namespace: Arc<str>,
    pub gid: Arc<str>,
    pub mode: SagaMode,
    pub terms: Arc<SagaTerms>,
    pub phase: SagaPhase,
    /// Since when it is in its phase, or was resumed.
    pub since_ms: u64,
    /// Never of one that is finished.
    pub suspended: Suspension,
    /// No branch is called before.
    pub start_at_ms: u64,
    /// Of a message: asking whoever prepared it what became of it.
    pub query: SagaCall,
    /// Their places are their numbers: branches are added at the end and never removed.
    pub branches: Vec<SagaBranch>,
    /// The term of the leader that changed it last.
    pub epoch: u64,
    /// What went wrong last.
    pub error: Arc<str>,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaMode {
    /// Actions in their order; when one fails, what was done is compensated.
    Saga,
    /// Once submitted, delivered to every branch.
    Message,
    /// Branches are registered before they are tried; then all are confirmed or all cancelled.
    Tcc,
}

/// What was agreed when it began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaTerms {
    /// Of a saga: what becomes of it when a branch cannot be carried out.
    pub recovery: SagaRecovery,
    /// How long it may be prepared.
    pub prepared_timeout_ms: u64,
    /// How long it may be submitted before it is aborted; 0 = for ever. Only of a saga that recovers
    /// backward.
    pub timeout_ms: u64,
    /// How long a phase may last before the transaction is suspended.
    pub suspend_after_ms: u64,
    /// How long it is kept when it is finished.
    pub retention_ms: u64,
    /// From its submission to the first call.
    pub delay_ms: u64,
    /// Of a message: who is asked when it is not submitted in time; empty = nobody, it is aborted.
    pub query: String,
    /// How the query is called.
    pub query_policy: CallPolicy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaRecovery {
    Backward,
    /// The branch is tried until it succeeds, or an operator says otherwise.
    Forward,
}

/// Where it stands. Invariant: never back; from [`SagaPhase::Submitted`] only a saga that recovers
/// backward comes to [`SagaPhase::Aborting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaPhase {
    /// Not decided.
    Prepared,
    Submitted,
    Aborting,
    Succeeded,
    Failed,
}

/// What people are told: the phase, or that it is suspended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SagaStatus {
    Prepared,
    Submitted,
    Aborting,
    Succeeded,
    Failed,
    Suspended,
}

/// Whether nothing goes on until an operator says so, and why. Encoded as the `Option` of a reason that it
/// once was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Suspension {
    None,
    /// It cannot go on by itself.
    Stuck(Arc<str>),
    /// An operator has asked for it: no decision of a client ends it.
    Ordered(Arc<str>),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaBranch {
    pub plan: Arc<BranchPlan>,
    /// What `call` is about.
    pub leg: SagaLeg,
    pub call: SagaCall,
    /// What the action answered.
    pub result: Blob,
    /// What was done for it in this very cluster, as [`SagaOp::mark`]s.
    pub marks: u8,
}

/// What a branch does. Targets are URIs: `quorate:///service/package.Service/Method`, `http:` or `https:`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BranchPlan {
    /// Unique in its transaction.
    pub id: String,
    /// Of TCC: what the client calls itself; empty otherwise.
    pub trial: String,
    /// The action of a saga, the delivery of a message, the confirmation of TCC.
    pub action: String,
    /// The compensation of a saga, the cancellation of TCC; empty = nothing is to be undone.
    pub compensation: String,
    pub payload: Blob,
    /// The branches that must have succeeded before: numbers less than its own, in order.
    pub after: Vec<u32>,
    pub policy: CallPolicy,
}

/// How long a call may take, and how it is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallPolicy {
    pub timeout_ms: u64,
    /// Calls forward that may fail; 0 = any number. What takes back is repeated until it is done.
    pub attempts: u32,
    /// The pause after the first failure, which doubles up to the second.
    pub pause_ms: u64,
    pub pause_max_ms: u64,
}

/// What a participant is asked to do for a branch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaOp {
    Try,
    Action,
    Compensate,
    Confirm,
    Cancel,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum SagaLeg {
    Forward,
    /// Compensation or cancellation.
    Backward,
}

/// How far one call has come that is repeated until it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SagaCall {
    pub state: CallState,
    /// Calls begun. Whoever answers for a call names its attempt.
    pub attempt: u32,
    /// Calls that failed, since the transaction was resumed.
    pub failures: u32,
}

/// Which of a transaction's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum CallName {
    Query,
    Branch { number: u32, leg: SagaLeg },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallState {
    /// Not begun: it certainly did nothing.
    Pending,
    /// Recorded before the call is made, by the leader of a term: it may have done something.
    Running {
        deadline_ms: u64,
        epoch: u64,
    },
    /// It failed, and may have done something or not.
    Unknown {
        again_ms: u64,
    },
    /// The participant is at it and is asked again.
    Ongoing {
        again_ms: u64,
    },
    Succeeded,
    /// The participant has refused, and this call did nothing.
    Failed,
    /// An operator has settled it elsewhere.
    Skipped,
}

impl Default for SagaCall {
    fn default() -> Self {
        SagaCall { state: CallState::Pending, attempt: 0, failures: 0 }
    }
}

impl SagaCall {
    /// It may have, or may yet have, an effect that nobody takes back. Also when it was refused: the same call may
    /// have been made before, by a leader of the same term or by whatever lies between, and be on its way. And
    /// what an operator has settled in one direction is not settled in the other.
    pub fn may_have_run(&self) -> bool {
        self.attempt > 0
    }
}

impl CallState {
    /// Nothing is left to be done.
    pub fn is_done(self) -> bool {
        matches!(self, CallState::Succeeded | CallState::Skipped)
    }

    /// When time alone makes something of it.
    fn fire_at_ms(self) -> Option<u64> {
        match self {
            CallState::Running { deadline_ms, .. } => Some(deadline_ms),
            CallState::Unknown { again_ms } | CallState::Ongoing { again_ms } => Some(again_ms),
            CallState::Pending | CallState::Succeeded | CallState::Failed | CallState::Skipped => {
                None
            }
        }
    }
}

impl SagaBranch {
    pub fn new(plan: BranchPlan) -> SagaBranch {
        SagaBranch {
            plan: Arc::new(plan),
            leg: SagaLeg::Forward,
            call: SagaCall::default(),
            result: Blob::default(),
            marks: 0,
        }
    }
}

impl SagaOp {
    /// As calls name it.
    pub fn name(self) -> &'static str {
        match self {
            SagaOp::Try => "try",
            SagaOp::Action => "action",
            SagaOp::Compensate => "compensate",
            SagaOp::Confirm => "confirm",
            SagaOp::Cancel => "cancel",
        }
    }

    /// What it takes back.
    pub fn origin(self) -> Option<SagaOp> {
        match self {
            SagaOp::Compensate => Some(SagaOp::Action),
            SagaOp::Cancel => Some(SagaOp::Try),
            SagaOp::Try | SagaOp::Action | SagaOp::Confirm => None,
        }
    }

    /// What takes it back.
    pub fn undone_by(self) -> Option<SagaOp> {
        match self {
            SagaOp::Action => Some(SagaOp::Compensate),
            SagaOp::Try => Some(SagaOp::Cancel),
            SagaOp::Compensate | SagaOp::Confirm | SagaOp::Cancel => None,
        }
    }

    /// One bit.
    pub fn mark(self) -> u8 {
        1 << self as u8
    }
}

impl SagaMode {
    /// What its participants are asked for.
    pub fn ops(self) -> &'static [SagaOp] {
        match self {
            SagaMode::Saga => &[SagaOp::Action, SagaOp::Compensate],
            SagaMode::Message => &[SagaOp::Action],
            SagaMode::Tcc => &[SagaOp::Try, SagaOp::Confirm, SagaOp::Cancel],
        }
    }
}

impl Suspension {
    pub fn reason(&self) -> Option<&Arc<str>> {
        match self {
            Suspension::None => None,
            Suspension::Stuck(why) | Suspension::Ordered(why) => Some(why),
        }
    }
}

impl SagaPhase {
    pub fn is_finished(self) -> bool {
        matches!(self, SagaPhase::Succeeded | SagaPhase::Failed)
    }
}

impl SagaStatus {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            SagaStatus::Prepared => "prepared",
            SagaStatus::Submitted => "submitted",
            SagaStatus::Aborting => "aborting",
            SagaStatus::Succeeded => "succeeded",
            SagaStatus::Failed => "failed",
            SagaStatus::Suspended => "suspended",
        }
    }
}

impl Saga {
    pub fn key(&self) -> Key {
        Key::Saga { namespace: self.namespace.clone(), gid: self.gid.clone() }
    }

    /// What it takes in memory, about: what it began with and what came of that.
    pub fn bytes(&self) -> usize {
        let branches = self.branches.iter().map(|it| it.plan.bytes() + it.result.len());
        let own = self.gid.len() + self.error.len() + self.terms.query.len();
        own + limits::SAGA_BRANCH_BYTES + branches.sum::<usize>()
    }

    pub fn status(&self) -> SagaStatus {
        match self.phase {
            _ if self.is_suspended() => SagaStatus::Suspended,
            SagaPhase::Prepared => SagaStatus::Prepared,
            SagaPhase::Submitted => SagaStatus::Submitted,
            SagaPhase::Aborting => SagaStatus::Aborting,
            SagaPhase::Succeeded => SagaStatus::Succeeded,
            SagaPhase::Failed => SagaStatus::Failed,
        }
    }

    pub fn is_suspended(&self) -> bool {
        self.suspended != Suspension::None
    }

    /// Nothing goes on by itself any more: it is finished, or suspended.
    pub fn rests(&self) -> bool {
        self.is_suspended() || self.phase.is_finished()
    }

    /// In which direction branches are called now; None = in neither.
    pub fn leg(&self) -> Option<SagaLeg> {
        match self.phase {
            SagaPhase::Submitted => Some(SagaLeg::Forward),
            SagaPhase::Aborting => Some(SagaLeg::Backward),
            SagaPhase::Prepared | SagaPhase::Succeeded | SagaPhase::Failed => None,
        }
    }

    /// A message that is not submitted in time asks what became of it.
    pub fn asks(&self) -> bool {
        self.mode == SagaMode::Message && !self.terms.query.is_empty()
    }

    /// Whether a branch that cannot be carried out aborts it.
    pub fn recovers_backward(&self) -> bool {
        self.mode == SagaMode::Saga && self.terms.recovery == SagaRecovery::Backward
    }

    /// When a prepared transaction is given up, or asks.
    pub fn prepared_until_ms(&self) -> u64 {
        self.since_ms.saturating_add(self.terms.prepared_timeout_ms)
    }

    /// When a submitted saga is aborted.
    pub fn aborts_at_ms(&self) -> Option<u64> {
        let may = self.recovers_backward()
            && self.terms.timeout_ms > 0
            && self.phase == SagaPhase::Submitted;
        may.then(|| self.since_ms.max(self.start_at_ms).saturating_add(self.terms.timeout_ms))
    }

    /// When a phase has lasted too long.
    pub fn suspends_at_ms(&self) -> u64 {
        self.since_ms.max(self.start_at_ms).saturating_add(self.terms.suspend_after_ms)
    }

    /// When time alone makes something of it; None = never. The record tells it, so that no index can say
    /// otherwise.
    pub fn fire_at_ms(&self) -> Option<u64> {
        if self.is_suspended() {
            return None;
        }
        match self.phase {
            SagaPhase::Succeeded | SagaPhase::Failed => {
                return Some(self.since_ms.saturating_add(self.terms.retention_ms));
            }
            SagaPhase::Prepared if !self.asks() => return Some(self.prepared_until_ms()),
            SagaPhase::Prepared | SagaPhase::Submitted | SagaPhase::Aborting => {}
        }
        let next = self.live_calls().filter_map(|(_, call)| call.state.fire_at_ms()).min();
        let begins = match (self.phase, self.query.state) {
            (SagaPhase::Prepared, CallState::Pending) => Some(self.prepared_until_ms()),
            (SagaPhase::Submitted, _) if next.is_none() => Some(self.start_at_ms),
            _ => None,
        };
        let all = [next, begins, self.aborts_at_ms(), Some(self.suspends_at_ms())];
        all.into_iter().flatten().min()
    }

    /// Whether a call is under way that a leader of an earlier term began.
    pub fn is_left_behind(&self, term: u64) -> bool {
        self.epochs().any(|epoch| epoch < term)
    }

    /// Terms of the leaders that began the calls under way.
    pub fn epochs(&self) -> impl Iterator<Item = u64> {
        self.live_calls().filter_map(|(_, call)| match call.state {
            CallState::Running { deadline_ms: _, epoch } => Some(epoch),
            _ => None,
        })
    }

    /// The calls that are about what the transaction does now; the others are over, whatever they come to.
    pub fn live_calls(&self) -> impl Iterator<Item = (CallName, &SagaCall)> {
        let query = self.phase == SagaPhase::Prepared && self.asks();
        let query = query.then_some((CallName::Query, &self.query));
        let goes = self.leg();
        let branches = (0..).zip(&self.branches).filter(move |(_, it)| goes == Some(it.leg));
        let calls =
            branches.map(|(number, it)| (CallName::Branch { number, leg: it.leg }, &it.call));
        query.into_iter().chain(calls)
    }
}
