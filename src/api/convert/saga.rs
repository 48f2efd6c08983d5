//! Global transactions, between messages and the state's types.

use super::{namespace, unknown};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::state::{
    self, Barrier, BarrierOutcome, Blob, BranchPlan, CallState, SagaBegin, SagaLeg, SagaMode,
    SagaName, SagaOp, SagaOrder, SagaPhase, SagaRecovery, SagaStatus, SagaTerms,
};

// ---- from the wire ----

pub fn saga_name(namespace: String, gid: String) -> SagaName {
    SagaName { namespace: self::namespace(namespace), gid }
}

pub fn begin(request: v1::BeginSagaRequest) -> Result<(Option<v1::RequestId>, SagaBegin), Error> {
    let v1::BeginSagaRequest {
        namespace,
        gid,
        mode,
        recovery,
        prepared_timeout_ms,
        timeout_ms,
        suspend_after_ms,
        retention_ms,
        delay_ms,
        query,
        query_policy,
        branches,
        concurrent,
        submit,
        request_id,
    } = request;
    let terms = SagaTerms {
        recovery: self::recovery(recovery)?,
        prepared_timeout_ms: or_default(prepared_timeout_ms, limits::DEFAULT_SAGA_PREPARED_MS),
        timeout_ms,
        suspend_after_ms: or_default(suspend_after_ms, limits::DEFAULT_SAGA_SUSPEND_AFTER_MS),
        retention_ms: retention_ms.unwrap_or(limits::DEFAULT_SAGA_RETENTION_MS),
        delay_ms,
        query,
        query_policy: call_policy(query_policy),
    };
    let branches = branches.into_iter().enumerate().map(|(number, branch)| {
        let mut plan = plan(branch, number);
        if !concurrent && plan.after.is_empty() && number > 0 {
            plan.after = vec![number as u32 - 1];
        }
        plan
    });
    let begin = SagaBegin {
        name: saga_name(namespace, gid),
        mode: self::mode(mode)?,
        terms,
        branches: branches.collect(),
        submit,
    };
    Ok((request_id, begin))
}

/// `number` is its place, which is its id when it has none.
pub fn plan(branch: v1::NewSagaBranch, number: usize) -> BranchPlan {
    let v1::NewSagaBranch { id, trial, action, compensation, payload, after, policy } = branch;
    BranchPlan {
        id: if id.is_empty() { number.to_string() } else { id },
        trial,
        action,
        compensation,
        payload: Blob::from(payload),
        after,
        policy: call_policy(policy),
    }
}

/// None = of any.
pub fn wanted_status(value: i32) -> Result<Option<SagaStatus>, Error> {
    match v1::SagaStatus::try_from(value) {
        Ok(v1::SagaStatus::Unspecified) => Ok(None),
        Ok(v1::SagaStatus::Prepared) => Ok(Some(SagaStatus::Prepared)),
        Ok(v1::SagaStatus::Submitted) => Ok(Some(SagaStatus::Submitted)),
        Ok(v1::SagaStatus::Aborting) => Ok(Some(SagaStatus::Aborting)),
        Ok(v1::SagaStatus::Succeeded) => Ok(Some(SagaStatus::Succeeded)),
        Ok(v1::SagaStatus::Failed) => Ok(Some(SagaStatus::Failed)),
        Ok(v1::SagaStatus::Suspended) => Ok(Some(SagaStatus::Suspended)),
        Err(_) => Err(unknown("status", value, "a SagaStatus")),
    }
}

pub fn order(order: Option<v1::order_saga_request::Order>) -> Result<SagaOrder, Error> {
    use v1::order_saga_request::Order;
    match order {
        Some(Order::Suspend(v1::SuspendSaga { reason })) => Ok(SagaOrder::Suspend { reason }),
        Some(Order::Resume(v1::ResumeSaga {})) => Ok(SagaOrder::Resume),
        Some(Order::Skip(v1::SkipSagaBranch { branch })) => Ok(SagaOrder::Skip { branch }),
        Some(Order::Finish(v1::FinishSaga {})) => Ok(SagaOrder::Finish),
        Some(Order::Retry(v1::RetrySaga {})) => Ok(SagaOrder::Retry),
        None => Err(Error::invalid("order", "", "suspend, resume, skip, finish or retry")),
    }
}

pub fn barrier(barrier: v1::SagaBarrier) -> Result<Barrier, Error> {
    let v1::SagaBarrier { namespace, gid, branch, op } = barrier;
    const OPS: [SagaOp; 5] =
        [SagaOp::Try, SagaOp::Action, SagaOp::Compensate, SagaOp::Confirm, SagaOp::Cancel];
    let found = OPS.into_iter().find(|known| known.name() == op);
    let op = found.ok_or_else(|| {
        let allowed = OPS.map(SagaOp::name).join(", ");
        Error::invalid("barrier.op", op, allowed)
    })?;
    Ok(Barrier { name: saga_name(namespace, gid), branch, op })
}

fn mode(value: i32) -> Result<SagaMode, Error> {
    match v1::SagaMode::try_from(value) {
        Ok(v1::SagaMode::Saga) => Ok(SagaMode::Saga),
        Ok(v1::SagaMode::Message) => Ok(SagaMode::Message),
        Ok(v1::SagaMode::Tcc) => Ok(SagaMode::Tcc),
        Ok(v1::SagaMode::Unspecified) | Err(_) => {
            Err(unknown("mode", value, "SAGA_MODE_SAGA, SAGA_MODE_MESSAGE, SAGA_MODE_TCC"))
        }
    }
}

fn recovery(value: i32) -> Result<SagaRecovery, Error> {
    match v1::SagaRecovery::try_from(value) {
        Ok(v1::SagaRecovery::Unspecified | v1::SagaRecovery::Backward) => {
            Ok(SagaRecovery::Backward)
        }
        Ok(v1::SagaRecovery::Forward) => Ok(SagaRecovery::Forward),
        Err(_) => Err(unknown("recovery", value, "SAGA_RECOVERY_BACKWARD, SAGA_RECOVERY_FORWARD")),
    }
}

fn call_policy(policy: Option<v1::SagaPolicy>) -> state::CallPolicy {
    let v1::SagaPolicy { timeout_ms, attempts, pause_ms, pause_max_ms } =
        policy.unwrap_or_default();
    let pause_ms = or_default(pause_ms, limits::DEFAULT_SAGA_PAUSE_MS);
    let longest_ms = limits::DEFAULT_SAGA_PAUSE_MAX_MS.max(pause_ms);
    state::CallPolicy {
        timeout_ms: or_default(timeout_ms, limits::DEFAULT_SAGA_CALL_MS),
        attempts: if attempts == 0 { limits::DEFAULT_SAGA_ATTEMPTS } else { attempts },
        pause_ms,
        pause_max_ms: or_default(pause_max_ms, longest_ms),
    }
}

fn or_default(value: u64, default: u64) -> u64 {
    if value == 0 { default } else { value }
}

// ---- to the wire ----

pub fn barrier_outcome(outcome: BarrierOutcome) -> v1::BarrierOutcome {
    match outcome {
        BarrierOutcome::Executed => v1::BarrierOutcome::Executed,
        BarrierOutcome::Duplicate => v1::BarrierOutcome::Duplicate,
        BarrierOutcome::EmptyCompensation => v1::BarrierOutcome::EmptyCompensation,
        BarrierOutcome::Hanging => v1::BarrierOutcome::Hanging,
        BarrierOutcome::Unmet => v1::BarrierOutcome::Unmet,
    }
}

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
        suspended: suspended.reason().map(|why| why.to_string()).unwrap_or_default(),
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

pub fn status(status: SagaStatus) -> v1::SagaStatus {
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
    // What was done in the cluster is told to whoever does it.
    let state::SagaBranch { plan, leg, call, result, marks: _ } = branch;
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
