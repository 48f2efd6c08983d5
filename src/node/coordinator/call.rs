//! One call of a participant: what it is about, as the state has recorded it.

use std::sync::Arc;
use std::time::Duration;

use crate::limits::SAGA_RESULTS_BYTES;
use crate::state::{Blob, BranchPlan, CallName, Saga, SagaLeg, SagaMode, SagaName, SagaOp, Target};

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
        self.saga_op().map_or("query", SagaOp::name)
    }

    /// None = a query.
    pub(super) fn saga_op(&self) -> Option<SagaOp> {
        let CallName::Branch { number: _, leg } = self.name else { return None };
        Some(match (leg, self.saga.mode) {
            (SagaLeg::Forward, SagaMode::Tcc) => SagaOp::Confirm,
            (SagaLeg::Backward, SagaMode::Tcc) => SagaOp::Cancel,
            (SagaLeg::Forward, SagaMode::Saga | SagaMode::Message) => SagaOp::Action,
            (SagaLeg::Backward, SagaMode::Saga | SagaMode::Message) => SagaOp::Compensate,
        })
    }

    pub(super) fn saga_name(&self) -> SagaName {
        SagaName { namespace: self.namespace().to_owned(), gid: self.gid().to_owned() }
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

    /// Whose calls are limited together: a service, a host, or the counters of the cluster.
    pub(super) fn participant(&self) -> Arc<str> {
        match Target::parse(self.target()) {
            Ok(Target::Service { service, path: _ }) => {
                format!("{}/{service}", self.namespace()).into()
            }
            Ok(Target::Url(url)) => {
                let host = url.find("://").map_or(0, |at| at + 3);
                let end = url[host..].find(['/', '?']).map_or(url.len(), |at| host + at);
                url[..end].into()
            }
            Ok(Target::Counter(_)) | Err(_) => "counter://".into(),
        }
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
