//! A client is told of a global transaction what its record says at that revision; and in the end each is
//! finished, or was suspended with a reason and finished when an operator let it go on.

use std::sync::Arc;

use quorate::state::{
    BarrierOutcome, Event, Key, Kind, Op, Record, Refusal, Reply, Saga, SagaBranch, SagaLeg,
    SagaName, SagaOp, SagaOrder, SagaPhase, SagaStatus,
};

use super::Oracle;
use super::history::History;
use super::saga_decisions::{Causes, decision_stands};

pub fn saga_key(name: &SagaName) -> Key {
    Key::Saga { namespace: name.namespace.as_str().into(), gid: name.gid.as_str().into() }
}

impl History {
    pub fn saga_at(&self, key: &Key, revision: u64) -> Option<Arc<Saga>> {
        match self.at(key, revision) {
            Some(Record::Saga(saga)) => Some(saga.clone()),
            Some(_) | None => None,
        }
    }

    /// All that are there now.
    pub fn sagas(&self) -> impl Iterator<Item = Arc<Saga>> {
        let keys = self.keys().filter(|key| matches!(key, Key::Saga { .. }));
        keys.filter_map(|key| self.saga_at(key, u64::MAX))
    }
}

impl Oracle {
    /// Something was applied for the first time.
    pub fn sagas_go_on(&mut self, event: &Event) -> Result<(), String> {
        let mut known: Vec<Arc<Saga>> = Vec::new();
        for change in &event.changes {
            let Key::Saga { namespace: _, gid } = &change.key else { continue };
            let within = known.iter().rev().find(|saga| saga.gid == *gid).cloned();
            let old = within.or_else(|| self.history.saga_at(&change.key, event.revision - 1));
            let Some(Record::Saga(new)) = &change.record else {
                return Err(format!("transaction {gid} is forgotten before its time"));
            };
            known.push(new.clone());
            let old = old.as_deref();
            let causes = Causes {
                at_ms: event.at_ms,
                by_hand: self.saga_effects.by_hand.contains(&**gid),
                refused: &|branch, attempt| self.was_refused(new, branch, attempt),
            };
            decision_stands(old, new, &causes)
                .map_err(|why| format!("{why}; from {old:?} to {new:?}"))?;
            self.answers_count_once(old, new)?;
            self.calls_are_recorded(new)?;
            self.counters_are_guarded(old, new, event)?;
        }
        self.accounts_change_for_a_reason(event)
    }

    /// The answer to what a client asked; None = it was not about a global transaction.
    pub fn saga_stands(
        &self,
        op: &Op,
        revision: u64,
        result: &Result<Reply, Refusal>,
    ) -> Option<Result<(), String>> {
        let name = match op {
            Op::BeginSaga(begin) => &begin.name,
            Op::SubmitSaga { name }
            | Op::AbortSaga { name, reason: _ }
            | Op::RegisterBranch { name, plan: _ }
            | Op::OrderSaga { name, order: _ } => name,
            Op::GuardedTxn { barrier, txn: _ } => &barrier.name,
            _ => return None,
        };
        let found = self.history.saga_at(&saga_key(name), revision);
        let Some(found) = found else { return Some(Err("there was none".to_owned())) };
        let is = |status: SagaStatus| match found.status() == status {
            true => Ok(()),
            false => Err(format!("it was {:?}", found.status())),
        };
        Some(match (op, result) {
            (Op::BeginSaga(_), Ok(Reply::SagaBegun { status, created, mod_revision, .. })) => {
                let new = !created || found.create_revision == revision;
                match (found.mod_revision == *mod_revision, new) {
                    (true, true) => is(*status),
                    _ => Err(format!("it was {found:?}")),
                }
            }
            (_, Ok(Reply::SagaTurned { status, changed, mod_revision })) => {
                match (found.mod_revision == *mod_revision, !changed || *mod_revision == revision) {
                    (true, true) => is(*status),
                    _ => Err(format!("it was {found:?}")),
                }
            }
            (Op::RegisterBranch { plan, .. }, Ok(Reply::BranchRegistered { number, .. })) => {
                match found.branches.get(*number as usize) {
                    Some(branch) if branch.plan == Arc::new((**plan).clone()) => Ok(()),
                    other => Err(format!("there was {other:?}")),
                }
            }
            (Op::GuardedTxn { barrier, .. }, Ok(Reply::Guarded { outcome, txn: _ })) => {
                let mut branches = found.branches.iter();
                let branch = branches.find(|branch| branch.plan.id == barrier.branch);
                let marks = branch.map_or(0, |branch| branch.marks);
                let has = |mark: u8| marks & mark != 0;
                let undone = barrier.op.undone_by().is_some_and(|op| has(op.mark()));
                let true_ = match outcome {
                    BarrierOutcome::Executed => has(barrier.op.mark()) && !undone,
                    BarrierOutcome::Duplicate => has(barrier.op.mark()),
                    BarrierOutcome::Hanging => {
                        undone || !has(barrier.op.mark()) && !wanted(&found, branch, barrier.op)
                    }
                    BarrierOutcome::Unmet => false,
                    BarrierOutcome::EmptyCompensation => false,
                };
                match true_ {
                    true => Ok(()),
                    false => Err(format!("its marks were {marks}")),
                }
            }
            (Op::GuardedTxn { .. }, Err(Refusal::InStep { step: 0, refusal })) => match **refusal {
                Refusal::OutOfBounds { .. } => Ok(()),
                _ => Err("nothing else can be refused".to_owned()),
            },
            (Op::GuardedTxn { .. }, _) => {
                Err("no client asked for anything of the kind".to_owned())
            }
            (_, Err(Refusal::SagaIs { status })) => is(*status),
            // Of TCC, whose branches come one by one.
            (
                Op::OrderSaga { name: _, order: SagaOrder::Skip { branch } },
                Err(Refusal::NotFound { kind: Kind::Saga, .. }),
            ) => match found.branches.get(*branch as usize) {
                None => Ok(()),
                Some(_) => Err("the branch was there".to_owned()),
            },
            _ => Err("no client asked for anything of the kind".to_owned()),
        })
    }

    /// A client has waited for one.
    pub fn saga_is_seen(&mut self, floor: u64, revision: u64, seen: &Saga) {
        if revision < floor {
            let gid = &seen.gid;
            self.violated(format!("{gid} was seen at {revision}; {floor} was known before"));
        }
        let there = self.history.saga_at(&seen.key(), revision);
        if there.as_deref() != Some(seen) {
            self.violated(format!("{seen:?} was seen at {revision}, there was {there:?}"));
        }
        self.counts.sagas_awaited += u64::from(seen.phase.is_finished());
        self.seen(revision);
    }

    /// Those that are neither finished nor suspended, and those that are suspended.
    pub fn unfinished_sagas(&self) -> (Vec<Arc<Saga>>, Vec<Arc<Saga>>) {
        let unfinished = self.history.sagas().filter(|saga| !saga.phase.is_finished());
        unfinished.partition(|saga| !saga.is_suspended())
    }

    pub fn suspended_have_reasons(&mut self) {
        let (_, suspended) = self.unfinished_sagas();
        for saga in suspended {
            if saga.suspended.reason().is_none_or(|why| why.is_empty()) {
                self.violated(format!("{} is suspended and nobody says why", saga.gid));
            }
        }
    }
}

/// Whether a transaction wants a part of one of its branches as it stands.
fn wanted(saga: &Saga, branch: Option<&SagaBranch>, op: SagaOp) -> bool {
    let goes = |leg| branch.is_some_and(|branch| branch.leg == leg);
    match op {
        SagaOp::Try => saga.phase == SagaPhase::Prepared,
        SagaOp::Confirm => saga.phase == SagaPhase::Submitted,
        SagaOp::Action => saga.phase == SagaPhase::Submitted && goes(SagaLeg::Forward),
        SagaOp::Compensate | SagaOp::Cancel => {
            saga.phase == SagaPhase::Aborting && goes(SagaLeg::Backward)
        }
    }
}
