//! What global transactions do, they do as a whole: each part takes effect once at most, what is taken back
//! was done before and is never done after, and no money is lost or made when nothing runs any more.

use std::collections::{BTreeMap, BTreeSet};

use quorate::state::{Event, Key, Saga, SagaMode, SagaOp, SagaPhase};

use super::Oracle;
use super::saga_calls::CallId;
use crate::participants::PLAIN;

/// Counters of the cluster that take part begin so.
pub const ACCOUNT: &str = "account";
/// What a client has done itself for a message.
pub const LOCAL: &str = "local";

const OPS: [SagaOp; 5] =
    [SagaOp::Try, SagaOp::Action, SagaOp::Compensate, SagaOp::Confirm, SagaOp::Cancel];

#[derive(Debug, Default)]
pub struct SagaEffects {
    /// What was done, by gid and branch, in order, with what it added.
    done: BTreeMap<(String, String), Vec<(&'static str, i64)>>,
    /// What those did that have no barrier.
    plain: BTreeMap<(String, String), BTreeSet<&'static str>>,
    /// Operators may have settled something of these.
    pub by_hand: BTreeSet<String>,
}

fn is_account(key: &Key) -> bool {
    matches!(key, Key::Counter { name, .. } if name.starts_with(ACCOUNT))
}

impl Oracle {
    /// A participant has done something, for the first time as it believes.
    pub fn took_effect(&mut self, gid: &str, branch: &str, op: &'static str, amount: i64) {
        self.counts.saga_effects += 1;
        let done = self.saga_effects.done.entry((gid.to_owned(), branch.to_owned())).or_default();
        let has = |op: &str| done.iter().any(|(done, _)| *done == op);
        let wrong = match op {
            op if has(op) => true,
            "compensate" => !has("action"),
            "cancel" => !has("try") || has("confirm"),
            "action" => has("compensate"),
            "try" => has("cancel") || has("confirm"),
            "confirm" => !has("try") || has("cancel"),
            _ => false,
        };
        let before = done.clone();
        done.push((op, amount));
        if wrong {
            self.violated(format!("{op} of {gid}/{branch} takes effect after {before:?}"));
        }
    }

    pub fn plain_effect(&mut self, id: &CallId) {
        let place = (id.gid.clone(), id.branch.clone());
        self.saga_effects.plain.entry(place).or_default().insert(id.op);
    }

    /// The cluster's own counters are participants too: what they did is marked in the record.
    pub fn counters_are_guarded(
        &mut self,
        old: Option<&Saga>,
        new: &Saga,
        event: &Event,
    ) -> Result<(), String> {
        let added = self.accounts_changed(event);
        for (number, branch) in new.branches.iter().enumerate() {
            let before = old.and_then(|old| old.branches.get(number)).map_or(0, |it| it.marks);
            let mut marked = OPS.into_iter().filter(|op| branch.marks & !before & op.mark() != 0);
            match (marked.next(), marked.next(), &added[..]) {
                (None, _, _) => {}
                (Some(op), None, [amount]) => {
                    self.took_effect(&new.gid, &branch.plan.id, op.name(), *amount);
                }
                // What was never done is taken back.
                (Some(_), Some(_), []) => {}
                (_, _, added) => {
                    let (gid, branch) = (&new.gid, &branch.plan.id);
                    return Err(format!("{gid}/{branch} is marked and {added:?} was added"));
                }
            }
        }
        Ok(())
    }

    pub fn accounts_change_for_a_reason(&self, event: &Event) -> Result<(), String> {
        let guarded = event.changes.iter().any(|change| matches!(change.key, Key::Saga { .. }));
        match self.accounts_changed(event).is_empty() || guarded {
            true => Ok(()),
            false => Err(format!("{event:?} changes an account, and is of no transaction")),
        }
    }

    fn accounts_changed(&self, event: &Event) -> Vec<i64> {
        let keys = event.changes.iter().map(|change| &change.key).filter(|key| is_account(key));
        let at = |key, revision| self.history.value_at(key, revision);
        keys.map(|key| at(key, event.revision) - at(key, event.revision - 1)).collect()
    }

    /// At the end: those that have succeeded have done everything, the others nothing that lasts.
    pub fn sagas_are_whole(&mut self) {
        let sagas: Vec<_> = self.history.sagas().collect();
        let mut sum = 0;
        let mut wrong = Vec::new();
        for saga in sagas {
            if self.saga_effects.by_hand.contains(&*saga.gid) {
                continue;
            }
            let done = |branch: &str| {
                let place = (saga.gid.to_string(), branch.to_owned());
                self.saga_effects.done.get(&place).map_or(&[][..], Vec::as_slice)
            };
            let succeeded = saga.phase == SagaPhase::Succeeded;
            for branch in &saga.branches {
                let id = &branch.plan.id;
                let ops: Vec<&str> = done(id).iter().map(|(op, _)| *op).collect();
                let whole = match (saga.mode, succeeded) {
                    _ if branch.plan.action.starts_with(PLAIN) => self.plain_is_whole(&saga, id),
                    (SagaMode::Tcc, true) => ops == ["try", "confirm"],
                    (SagaMode::Tcc, false) => ops.is_empty() || ops == ["try", "cancel"],
                    (SagaMode::Saga | SagaMode::Message, true) => ops == ["action"],
                    (SagaMode::Saga, false) => ops.is_empty() || ops == ["action", "compensate"],
                    (SagaMode::Message, false) => ops.is_empty(),
                };
                if !whole {
                    wrong.push(format!("of {} branch {id} has done {ops:?}: {saga:?}", saga.gid));
                }
            }
            let local = !done("").is_empty();
            if saga.mode == SagaMode::Message && local != succeeded {
                wrong.push(format!("{} is {:?}, its client's part {local}", saga.gid, saga.phase));
            }
            let branches = saga.branches.iter().map(|branch| &*branch.plan.id).chain([""]);
            sum += branches.flat_map(done).map(|(_, amount)| amount).sum::<i64>();
            match succeeded {
                true => self.counts.sagas_succeeded += 1,
                false => self.counts.sagas_failed += 1,
            }
        }
        if sum != 0 && wrong.is_empty() {
            wrong.push(format!("the accounts add up to {sum}"));
        }
        for what in wrong {
            self.violated(what);
        }
    }

    /// Whatever it did was taken back at least once, in some order.
    fn plain_is_whole(&self, saga: &Saga, branch: &str) -> bool {
        let place = (saga.gid.to_string(), branch.to_owned());
        let done = self.saga_effects.plain.get(&place);
        let has = |op: &str| done.is_some_and(|done| done.contains(op));
        match saga.phase {
            SagaPhase::Succeeded => has("action") && !has("compensate"),
            _ => !has("action") || has("compensate"),
        }
    }
}
