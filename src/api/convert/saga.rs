//! Global transactions, between messages and the state's types.

use crate::proto::v1;
use crate::state::{self, CallState, SagaLeg, SagaMode, SagaPhase, SagaRecovery, SagaStatus};

/// A watch leaves payloads out: they would come again with every transition.
pub fn saga(saga: &state::Saga, payloads: bool) -> v1::Saga {
    let state::Saga {
        namespace,
        gid,
        mode,
        terms,
        phase,
        since_ms,
        suspended,
        start_at_ms,
        query,
        branches,
        epoch,
        error,
        create_revision,
        mod_revision,
        created_at_ms,
        modified_at_ms,
    } = saga;
    let mode = match mode {
        SagaMode::Saga => v1::SagaMode::Saga,
        SagaMode::Message => v1::SagaMode::Message,
        SagaMode::Tcc => v1::SagaMode::Tcc,
    };
    let phase = match phase {
        SagaPhase::Prepared => SagaStatus::Prepared,
        SagaPhase::Submitted => SagaStatus::Submitted,
        SagaPhase::Aborting => SagaStatus::Aborting,
        SagaPhase::Succeeded => SagaStatus::Succeeded,
        SagaPhase::Failed => SagaStatus::Failed,
    };
    let recovery = match terms.recovery {
        SagaRecovery::Backward => v1::SagaRecovery::Backward,
        SagaRecovery::Forward => v1::SagaRecovery::Forward,
    };
    v1::Saga {
        namespace: namespace.to_string(),
        gid: gid.to_string(),
        mode: mode.into(),
        status: status(saga.status()).into(),
        phase: status(phase).into(),
        since_ms: *since_ms,
        suspended: suspended.as_ref().map(|why| why.to_string()).unwrap_or_default(),
        error: error.to_string(),
        recovery: recovery.into(),
        prepared_timeout_ms: terms.prepared_timeout_ms,
        timeout_ms: terms.timeout_ms,
        suspend_after_ms: terms.suspend_after_ms,
        retention_ms: terms.retention_ms,
        delay_ms: terms.delay_ms,
        query: terms.query.clone(),
        query_policy: Some(policy(&terms.query_policy)),
        query_call: Some(call(query)),
        branches: branches.iter().map(|it| branch(it, payloads)).collect(),
        start_at_ms: *start_at_ms,
        fire_at_ms: saga.fire_at_ms().unwrap_or(0),
        epoch: *epoch,
        create_revision: *create_revision,
        mod_revision: *mod_revision,
        created_at_ms: *created_at_ms,
        modified_at_ms: *modified_at_ms,
    }
}

/// Of one that is gone.
pub fn names(namespace: &str, gid: &str) -> v1::Saga {
    v1::Saga { namespace: namespace.to_owned(), gid: gid.to_owned(), ..v1::Saga::default() }
}

fn status(status: SagaStatus) -> v1::SagaStatus {
    match status {
        SagaStatus::Prepared => v1::SagaStatus::Prepared,
        SagaStatus::Submitted => v1::SagaStatus::Submitted,
        SagaStatus::Aborting => v1::SagaStatus::Aborting,
        SagaStatus::Succeeded => v1::SagaStatus::Succeeded,
        SagaStatus::Failed => v1::SagaStatus::Failed,
        SagaStatus::Suspended => v1::SagaStatus::Suspended,
    }
}

fn policy(policy: &state::CallPolicy) -> v1::SagaPolicy {
    let state::CallPolicy { timeout_ms, attempts, pause_ms, pause_max_ms } = *policy;
    v1::SagaPolicy { timeout_ms, attempts, pause_ms, pause_max_ms }
}

fn call(call: &state::SagaCall) -> v1::SagaCall {
    let state::SagaCall { state, attempt, failures } = *call;
    let (state, at_ms, epoch) = match state {
        CallState::Pending => (v1::SagaCallState::Pending, 0, 0),
        CallState::Running { deadline_ms, epoch } => {
            (v1::SagaCallState::Running, deadline_ms, epoch)
        }
        CallState::Unknown { again_ms } => (v1::SagaCallState::Unknown, again_ms, 0),
        CallState::Ongoing { again_ms } => (v1::SagaCallState::Ongoing, again_ms, 0),
        CallState::Succeeded => (v1::SagaCallState::Succeeded, 0, 0),
        CallState::Failed => (v1::SagaCallState::Failed, 0, 0),
        CallState::Skipped => (v1::SagaCallState::Skipped, 0, 0),
    };
    v1::SagaCall { state: state.into(), attempt, failures, at_ms, epoch }
}

fn branch(branch: &state::SagaBranch, payloads: bool) -> v1::SagaBranch {
    let state::SagaBranch { plan, leg, call, result } = branch;
    v1::SagaBranch {
        id: plan.id.clone(),
        trial: plan.trial.clone(),
        action: plan.action.clone(),
        compensation: plan.compensation.clone(),
        payload: if payloads { plan.payload.as_bytes().to_vec() } else { Vec::new() },
        after: plan.after.clone(),
        policy: Some(policy(&plan.policy)),
        backward: *leg == SagaLeg::Backward,
        call: Some(self::call(call)),
        result: result.as_bytes().to_vec(),
    }
}
