//! One branch of a global transaction, as a client writes it down.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;

use super::millis;
use crate::error::Error;
use crate::proto::v1;

/// What one branch does, and what undoes it. Targets are `quorate:///service/package.Service/Method`,
/// called with the payload as its request, or URLs, to which the payload is posted, as far as the nodes allow
/// them.
#[derive(Debug, Clone, PartialEq)]
pub struct Branch {
    plan: v1::NewSagaBranch,
    /// None = as its plan has it.
    after: Option<Vec<String>>,
}

impl Branch {
    /// `id` is unique in its transaction; `action` is what is called: the action of a saga, the delivery of a
    /// message, the confirmation of TCC.
    pub fn new(id: impl Into<String>, action: impl Into<String>) -> Branch {
        let plan = v1::NewSagaBranch { id: id.into(), action: action.into(), ..Default::default() };
        Branch { plan, after: None }
    }

    /// What undoes it: the compensation of a saga, the cancellation of TCC. Without one there is nothing
    /// to undo. A message has none.
    pub fn compensation(mut self, target: impl Into<String>) -> Branch {
        self.plan.compensation = target.into();
        self
    }

    /// What is sent, both to do it and to undo it; together with the other branches' at most 512 KiB.
    pub fn payload(self, message: &impl Message) -> Branch {
        self.bytes(message.encode_to_vec())
    }

    /// The same, encoded.
    pub fn bytes(mut self, payload: impl Into<Vec<u8>>) -> Branch {
        self.plan.payload = payload.into();
        self
    }

    /// The branches that must have succeeded before, by their ids; of none, it may begin at once. They were
    /// added to the transaction before. What they answered comes along with the call.
    pub fn after<I>(mut self, ids: I) -> Branch
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.after = Some(ids.into_iter().map(Into::into).collect());
        self
    }

    /// How long one call may take: 10 ms..=10 minutes, by default 5 s.
    pub fn timeout(mut self, timeout: Duration) -> Branch {
        self.policy().timeout_ms = millis(timeout);
        self
    }

    /// How many calls may fail until the branch counts as refused, or, where that is no way out, the
    /// transaction is suspended; by default any number. What takes back is called until it succeeds.
    pub fn attempts(mut self, attempts: u32) -> Branch {
        self.policy().attempts = attempts;
        self
    }

    /// The pause after the first failure, which doubles up to `greatest`: by default 200 ms and a minute.
    pub fn pauses(mut self, first: Duration, greatest: Duration) -> Branch {
        self.policy().pause_ms = millis(first);
        self.policy().pause_max_ms = millis(greatest);
        self
    }

    /// Of TCC: what the client calls to try it, for people who look at the transaction.
    pub fn trial(mut self, target: impl Into<String>) -> Branch {
        self.plan.trial = target.into();
        self
    }

    pub fn id(&self) -> &str {
        &self.plan.id
    }

    fn policy(&mut self) -> &mut v1::SagaPolicy {
        self.plan.policy.get_or_insert_default()
    }

    /// For the wire; `known` are the numbers of the branches before it.
    pub(super) fn plan(
        &self,
        field: &str,
        known: &BTreeMap<&str, u32>,
        otherwise: Vec<u32>,
    ) -> Result<v1::NewSagaBranch, Error> {
        let mut after = otherwise;
        if let Some(ids) = &self.after {
            let number = |id: &String| {
                let known = known.get(id.as_str()).copied();
                known.ok_or_else(|| Error::invalid(field, id, "ids of branches before it"))
            };
            after = ids.iter().map(number).collect::<Result<_, _>>()?;
            after.sort_unstable();
            after.dedup();
        }
        Ok(v1::NewSagaBranch { after, ..self.plan.clone() })
    }
}

/// All branches for the wire; `otherwise` says what the branch with that number comes after if it does not
/// say so itself.
pub(super) fn numbered(
    branches: &[Branch],
    otherwise: impl Fn(u32) -> Vec<u32>,
) -> Result<Vec<v1::NewSagaBranch>, Error> {
    let mut known = BTreeMap::new();
    let mut plans = Vec::with_capacity(branches.len());
    for (number, branch) in (0..).zip(branches) {
        let field = format!("branches[{number}].after");
        plans.push(branch.plan(&field, &known, otherwise(number))?);
        known.insert(branch.id(), number);
    }
    Ok(plans)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn after(branches: &[Branch]) -> Result<Vec<Vec<u32>>, Error> {
        let plans = numbered(branches, |number| number.checked_sub(1).into_iter().collect())?;
        Ok(plans.into_iter().map(|plan| plan.after).collect())
    }

    #[test]
    fn branches_come_one_after_the_other_unless_they_say_otherwise() {
        let branch = |id: &str| Branch::new(id, "quorate:///s/p.S/M");
        let of = |branches: &[Branch]| after(branches).unwrap();
        assert_eq!(of(&[branch("a"), branch("b"), branch("c")]), [vec![], vec![0], vec![1]]);
        let none = Vec::<String>::new();
        let fork =
            [branch("a"), branch("b").after(none), branch("c").after(["b", "a", "b"]), branch("d")];
        assert_eq!(of(&fork), [vec![], vec![], vec![0, 1], vec![2]]);
        for wrong in ["c", "d", "x"] {
            let refused = after(&[branch("a"), branch("b"), branch("c").after([wrong])]);
            let Err(Error::Invalid { field, value, .. }) = refused else { panic!("{refused:?}") };
            assert_eq!((field.as_str(), value.as_str()), ("branches[2].after", wrong));
        }
    }
}
