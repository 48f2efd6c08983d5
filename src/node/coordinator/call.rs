//! One call of a participant: what it is about, as the state has recorded it.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::SAGA_RESULTS_BYTES;
use crate::state::{Blob, BranchPlan, CallName, Saga, SagaLeg, SagaMode};

/// What a participant is asked for.
#[derive(Debug, Clone)]
pub struct Call {
    saga: Arc<Saga>,
    name: CallName,
    /// From 1, of this branch and direction.
    pub attempt: u32,
    /// Term of the leader that calls.
    pub epoch: u64,
    /// Nobody waits for an answer any longer.
    pub timeout: Duration,
}

impl Call {
    pub(super) fn new(
        saga: Arc<Saga>,
        name: CallName,
        attempt: u32,
        epoch: u64,
        timeout: Duration,
    ) -> Call {
        Call { saga, name, attempt, epoch, timeout }
    }

    pub fn namespace(&self) -> &str {
        &self.saga.namespace
    }

    pub fn gid(&self) -> &str {
        &self.saga.gid
    }

    /// Id of the branch; empty for a query, which is about the whole.
    pub fn branch(&self) -> &str {
        self.plan().map_or("", |plan| &plan.id)
    }

    /// What the metadata `quorate-op` says.
    pub fn op(&self) -> &'static str {
        match (self.name, self.saga.mode) {
            (CallName::Query, _) => "query",
            (CallName::Branch { leg: SagaLeg::Forward, .. }, SagaMode::Tcc) => "confirm",
            (CallName::Branch { leg: SagaLeg::Backward, .. }, SagaMode::Tcc) => "cancel",
            (CallName::Branch { leg: SagaLeg::Forward, .. }, _) => "action",
            (CallName::Branch { leg: SagaLeg::Backward, .. }, _) => "compensate",
        }
    }

    pub fn target(&self) -> &str {
        match (self.name, self.plan()) {
            (CallName::Branch { leg: SagaLeg::Forward, .. }, Some(plan)) => &plan.action,
            (CallName::Branch { leg: SagaLeg::Backward, .. }, Some(plan)) => &plan.compensation,
            (CallName::Query, _) | (_, None) => &self.saga.terms.query,
        }
    }

    pub fn payload(&self) -> Blob {
        self.plan().map(|plan| plan.payload.clone()).unwrap_or_default()
    }

    /// What earlier actions answered: of an action those of the branches that it comes after, of a
    /// compensation its own. An error says that it is too much for one call.
    pub fn results(&self) -> Result<Vec<(&str, &Blob)>, String> {
        let CallName::Branch { number, leg } = self.name else { return Ok(Vec::new()) };
        let own = [number];
        let wanted = match (leg, self.plan()) {
            (SagaLeg::Forward, Some(plan)) => &*plan.after,
            (SagaLeg::Backward, _) | (_, None) => &own,
        };
        let branches = wanted.iter().filter_map(|number| self.saga.branches.get(*number as usize));
        let results = branches.map(|branch| (branch.plan.id.as_str(), &branch.result));
        let results: Vec<(&str, &Blob)> =
            results.filter(|(_, result)| !result.as_bytes().is_empty()).collect();
        let bytes: usize = results.iter().map(|(id, result)| id.len() + result.len()).sum();
        if bytes > SAGA_RESULTS_BYTES {
            return Err(format!(
                "the branches before it have answered {bytes} bytes, and {SAGA_RESULTS_BYTES} \
                 can be passed on"
            ));
        }
        Ok(results)
    }

    /// Whose calls are limited together: a service, or a host.
    pub(super) fn participant(&self) -> Arc<str> {
        let target = self.target();
        let end = match target.strip_prefix("quorate:///") {
            Some(path) => {
                target.len() - path.rsplitn(3, '/').take(2).map(|p| p.len() + 1).sum::<usize>()
            }
            None => {
                let host = target.find("://").map_or(0, |at| at + 3);
                target[host..].find(['/', '?']).map_or(target.len(), |at| host + at)
            }
        };
        target[..end].into()
    }

    fn plan(&self) -> Option<&BranchPlan> {
        match self.name {
            CallName::Query => None,
            CallName::Branch { number, leg: _ } => {
                self.saga.branches.get(number as usize).map(|branch| &*branch.plan)
            }
        }
    }
}
