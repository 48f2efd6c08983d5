//! Global transactions as JSON and tables show them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::proto::v1;

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Saga {
    pub namespace: String,
    pub gid: String,
    pub mode: &'static str,
    pub status: &'static str,
    /// What it was when it was suspended, the status otherwise.
    pub phase: &'static str,
    pub since_ms: u64,
    pub suspended: String,
    pub error: String,
    pub recovery: &'static str,
    pub prepared_timeout_ms: u64,
    pub timeout_ms: u64,
    pub suspend_after_ms: u64,
    pub retention_ms: u64,
    pub delay_ms: u64,
    pub start_at_ms: u64,
    pub fire_at_ms: u64,
    pub query: String,
    pub query_policy: Policy,
    pub query_call: Call,
    pub branches: Vec<Branch>,
    pub epoch: u64,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub created_at_ms: u64,
    pub modified_at_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Branch {
    pub id: String,
    pub trial: String,
    pub action: String,
    pub compensation: String,
    /// As text where it is one; null where it is not shown.
    pub payload: Option<String>,
    pub payload_base64: Option<String>,
    pub after: Vec<u32>,
    pub policy: Policy,
    pub backward: bool,
    pub call: Call,
    pub result: Option<String>,
    pub result_base64: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Policy {
    pub timeout_ms: u64,
    pub attempts: u32,
    pub pause_ms: u64,
    pub pause_max_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Call {
    pub state: &'static str,
    pub attempt: u32,
    pub failures: u32,
    pub at_ms: u64,
    pub epoch: u64,
}

pub fn status(status: v1::SagaStatus) -> &'static str {
    match status {
        v1::SagaStatus::Unspecified => "",
        v1::SagaStatus::Prepared => "prepared",
        v1::SagaStatus::Submitted => "submitted",
        v1::SagaStatus::Aborting => "aborting",
        v1::SagaStatus::Succeeded => "succeeded",
        v1::SagaStatus::Failed => "failed",
        v1::SagaStatus::Suspended => "suspended",
    }
}

/// None for those of a later release.
fn known<T: TryFrom<i32>>(value: i32, name: fn(T) -> &'static str) -> &'static str {
    T::try_from(value).map_or("unknown", name)
}

impl From<v1::Saga> for Saga {
    fn from(saga: v1::Saga) -> Saga {
        let mode = |mode| match mode {
            v1::SagaMode::Unspecified => "",
            v1::SagaMode::Saga => "saga",
            v1::SagaMode::Message => "message",
            v1::SagaMode::Tcc => "tcc",
        };
        let recovery = |recovery| match recovery {
            v1::SagaRecovery::Unspecified | v1::SagaRecovery::Backward => "backward",
            v1::SagaRecovery::Forward => "forward",
        };
        Saga {
            mode: known(saga.mode, mode),
            status: known(saga.status, status),
            phase: known(saga.phase, status),
            recovery: known(saga.recovery, recovery),
            namespace: saga.namespace,
            gid: saga.gid,
            since_ms: saga.since_ms,
            suspended: saga.suspended,
            error: saga.error,
            prepared_timeout_ms: saga.prepared_timeout_ms,
            timeout_ms: saga.timeout_ms,
            suspend_after_ms: saga.suspend_after_ms,
            retention_ms: saga.retention_ms,
            delay_ms: saga.delay_ms,
            start_at_ms: saga.start_at_ms,
            fire_at_ms: saga.fire_at_ms,
            query: saga.query,
            query_policy: saga.query_policy.unwrap_or_default().into(),
            query_call: saga.query_call.unwrap_or_default().into(),
            branches: saga.branches.into_iter().map(Branch::from).collect(),
            epoch: saga.epoch,
            create_revision: saga.create_revision,
            mod_revision: saga.mod_revision,
            created_at_ms: saga.created_at_ms,
            modified_at_ms: saga.modified_at_ms,
        }
    }
}

impl From<v1::SagaBranch> for Branch {
    fn from(branch: v1::SagaBranch) -> Branch {
        let (payload, payload_base64) = text(branch.payload);
        let (result, result_base64) = text(branch.result);
        Branch {
            id: branch.id,
            trial: branch.trial,
            action: branch.action,
            compensation: branch.compensation,
            payload,
            payload_base64,
            after: branch.after,
            policy: branch.policy.unwrap_or_default().into(),
            backward: branch.backward,
            call: branch.call.unwrap_or_default().into(),
            result,
            result_base64,
        }
    }
}

impl From<v1::SagaPolicy> for Policy {
    fn from(policy: v1::SagaPolicy) -> Policy {
        let v1::SagaPolicy { timeout_ms, attempts, pause_ms, pause_max_ms } = policy;
        Policy { timeout_ms, attempts, pause_ms, pause_max_ms }
    }
}

impl From<v1::SagaCall> for Call {
    fn from(call: v1::SagaCall) -> Call {
        let v1::SagaCall { state, attempt, failures, at_ms, epoch } = call;
        let name = |state| match state {
            v1::SagaCallState::Unspecified => "",
            v1::SagaCallState::Pending => "pending",
            v1::SagaCallState::Running => "running",
            v1::SagaCallState::Unknown => "unknown",
            v1::SagaCallState::Ongoing => "ongoing",
            v1::SagaCallState::Succeeded => "succeeded",
            v1::SagaCallState::Failed => "failed",
            v1::SagaCallState::Skipped => "skipped",
        };
        Call { state: known(state, name), attempt, failures, at_ms, epoch }
    }
}

impl Saga {
    /// How far it is, for people: `2/3` branches are done, or `1/2 undone` of those that must be.
    pub fn progress(&self) -> String {
        let settled = |branch: &&Branch| matches!(branch.call.state, "succeeded" | "skipped");
        let back: Vec<&Branch> = self.branches.iter().filter(|branch| branch.backward).collect();
        match self.phase {
            "aborting" | "failed" => {
                let undone = back.iter().copied().filter(settled).count();
                format!("{undone}/{} undone", back.len())
            }
            _ => {
                format!("{}/{}", self.branches.iter().filter(settled).count(), self.branches.len())
            }
        }
    }

    /// Attempts of all its calls.
    pub fn attempts(&self) -> u32 {
        let calls = self.branches.iter().map(|branch| branch.call.attempt);
        calls.sum::<u32>() + self.query_call.attempt
    }

    /// Why nothing goes on, or what went wrong last.
    pub fn trouble(&self) -> String {
        if self.status == "succeeded" {
            return String::new();
        }
        match (self.suspended.as_str(), self.error.as_str()) {
            ("", error) => error.to_owned(),
            (why, "") => why.to_owned(),
            (why, error) => format!("{why}: {error}"),
        }
    }
}

/// As text where it is one, else as base64.
fn text(bytes: Vec<u8>) -> (Option<String>, Option<String>) {
    match String::from_utf8(bytes) {
        Ok(text) if text.is_empty() => (None, None),
        // What would not be seen as it is.
        Ok(text) if text.contains(|c: char| c.is_control() && !c.is_whitespace()) => {
            (None, Some(STANDARD.encode(text)))
        }
        Ok(text) => (Some(text), None),
        Err(error) => (None, Some(STANDARD.encode(error.as_bytes()))),
    }
}
