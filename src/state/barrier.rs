//! The barrier of participants that keep their data in this very cluster: a transaction that carries out a
//! branch's part, or finds that it must not. What was done is marked in the record of the global transaction
//! itself, so nothing is left when that one is forgotten.
//!
//! Invariants, however often and in whatever order calls come:
//! - each part is carried out once at most, and only while the transaction wants it: an action before it is
//!   given up, a compensation after that, a confirmation once it is decided;
//! - a compensation only after what it takes back, and that never after its compensation;
//! - a part whose conditions did not hold is not marked: it may come again.

use super::At;
use super::command::{Barrier, BarrierOutcome, Kind, Refusal, Reply, Txn, invalid};
use super::journal::Journal;
use super::memory::Tables;
use super::table::{Saga, SagaLeg, SagaMode, SagaOp, SagaPhase};

impl Tables {
    pub fn guarded_txn(
        &mut self,
        barrier: &Barrier<&str>,
        txn: Txn<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        journal.begin();
        let result = self.pass(barrier, at, journal).and_then(|outcome| {
            if outcome != BarrierOutcome::Executed {
                return Ok(Reply::Guarded { outcome, txn: None });
            }
            let txn = self.carry_out_txn(txn, at, journal)?;
            let outcome = match txn {
                Reply::Txn { succeeded: false, .. } => BarrierOutcome::Unmet,
                _ => BarrierOutcome::Executed,
            };
            Ok(Reply::Guarded { outcome, txn: Some(Box::new(txn)) })
        });
        match &result {
            Err(_) | Ok(Reply::Guarded { outcome: BarrierOutcome::Unmet, .. }) => {
                journal.take_back(self);
            }
            Ok(_) => journal.commit(),
        }
        result
    }

    /// Marks what is done now.
    fn pass(
        &mut self,
        barrier: &Barrier<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<BarrierOutcome, Refusal> {
        let Barrier { name, branch, op } = barrier;
        let unknown = |what: &[&str]| {
            let name = what.join("/");
            Err(Refusal::NotFound { kind: Kind::Saga, name })
        };
        let space = self.namespaces.get_mut(name.namespace);
        let Some(sagas) = space.map(|space| &mut space.sagas) else {
            return unknown(&[name.namespace, name.gid]);
        };
        let Some(old) = sagas.get(name.gid) else {
            return unknown(&[name.namespace, name.gid]);
        };
        let mut saga = Saga::clone(old);
        if !saga.mode.ops().contains(op) {
            let allowed = match saga.mode {
                SagaMode::Saga => "action or compensate, of a saga",
                SagaMode::Message => "action, of a message",
                SagaMode::Tcc => "try, confirm or cancel, of TCC",
            };
            return Err(invalid("barrier.op", op.name(), allowed));
        }
        let phase = saga.phase;
        let Some(branch) = saga.branches.iter_mut().find(|it| it.plan.id == *branch) else {
            return unknown(&[name.namespace, name.gid, branch]);
        };
        let is_marked = |op: SagaOp| branch.marks & op.mark() != 0;
        if is_marked(*op) {
            return Ok(match op.undone_by() {
                Some(undo) if is_marked(undo) => BarrierOutcome::Hanging,
                _ => BarrierOutcome::Duplicate,
            });
        }
        let wanted = match op {
            SagaOp::Try => phase == SagaPhase::Prepared,
            SagaOp::Confirm => phase == SagaPhase::Submitted,
            SagaOp::Action => phase == SagaPhase::Submitted && branch.leg == SagaLeg::Forward,
            SagaOp::Compensate | SagaOp::Cancel => {
                phase == SagaPhase::Aborting && branch.leg == SagaLeg::Backward
            }
        };
        if !wanted {
            return Ok(BarrierOutcome::Hanging);
        }
        let (marks, outcome) = match op.origin() {
            Some(origin) if !is_marked(origin) => {
                (origin.mark() | op.mark(), BarrierOutcome::EmptyCompensation)
            }
            _ => (op.mark(), BarrierOutcome::Executed),
        };
        branch.marks |= marks;
        saga.stamp(at);
        journal.push(sagas.put(&mut self.ledger, saga));
        Ok(outcome)
    }
}
