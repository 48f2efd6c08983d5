//! The nodes that are or were members. Consensus knows who is a member now; what is kept here outlives
//! a removal, so that a number is never given to a second node, by whichever node it is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::command::{Refusal, Reply, invalid};
use super::journal::{Journal, Written};
use super::table::{Key, Member, Record};
use crate::limits;

#[derive(Debug, Default)]
pub(super) struct Members(BTreeMap<u64, Arc<Member>>);

impl Members {
    pub fn get(&self, node: u64) -> Option<&Arc<Member>> {
        self.0.get(&node)
    }

    pub fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Member>> {
        self.0.values()
    }

    pub fn put(&mut self, record: Member) -> Written {
        let record = Arc::new(record);
        let before = self.0.insert(record.node, record.clone());
        let key = Key::Member { node: record.node };
        Written::put(key, Record::Member(record), before.map(Record::Member))
    }

    pub fn admit(
        &mut self,
        node: u64,
        store: Option<u128>,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let known = match self.get(node) {
            None if self.0.len() >= limits::MEMBERS => {
                let allowed = limits::MEMBERS as u64;
                let limit = "members of the cluster, past ones included".into();
                return Err(Refusal::LimitReached { limit, allowed });
            }
            None => None,
            Some(member) if member.removed => {
                let allowed = format!("a number that no member ever had; node {node} was removed");
                return Err(invalid("id", node.to_string(), allowed));
            }
            Some(member) => Some(member.store),
        };
        if let (Some(Some(known)), Some(given)) = (known, store)
            && known != given
        {
            let allowed = format!("{known:032x}, the data directory that node {node} has had");
            return Err(invalid("store", format!("{given:032x}"), allowed));
        }
        let store = known.flatten().or(store);
        let changed = known != Some(store);
        if changed {
            journal.push(self.put(Member { node, store, removed: false }));
        }
        Ok(Reply::MemberAdmitted { changed })
    }

    /// A node that was not noted is noted now: it is a member from before, of which nobody has said
    /// anything yet.
    pub fn retire(&mut self, node: u64, journal: &mut Journal) -> Result<Reply, Refusal> {
        let known = self.get(node);
        let changed = known.is_none_or(|member| !member.removed);
        if changed {
            let store = known.and_then(|member| member.store);
            journal.push(self.put(Member { node, store, removed: true }));
        }
        Ok(Reply::MemberRetired { changed })
    }
}
