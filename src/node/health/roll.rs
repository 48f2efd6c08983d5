//! Who is there to check instances. Every voter that can reach the leader says so to it, again and again,
//! and is told who else does: so all of them share out the instances among the same nodes.
//!
//! Invariant: a node that the leader has not answered for [`HEALTH_SILENCE`] checks nothing, and it is no
//! later than this that the leader counts it out: the answer's time runs from before the call, the
//! leader's from when it came in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;

use super::super::{Leadership, Node};
use crate::limits::{HEALTH_BEAT, HEALTH_SILENCE};
use crate::proto::v1::Consistency;
use crate::raft::codec;
use crate::raft::network::Method;
use crate::raft::types::NodeId;
use crate::runtime::{self, Instant};

/// How often it is looked whether another node leads.
const TICK: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Roll {
    /// As the leader.
    led: Mutex<Option<Led>>,
    /// What the leader said last.
    told: Mutex<Option<Told>>,
}

/// What the leader of one term has heard.
#[derive(Debug)]
struct Led {
    term: u64,
    heard: BTreeMap<NodeId, Instant>,
}

#[derive(Debug, Clone)]
struct Told {
    /// In order.
    present: Arc<[NodeId]>,
    until: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Roll {
    /// As the leader of `term`: notes that a node is there and answers who is; None for one that is no
    /// voter. A new leader takes everybody to be there until it knows better, so that nothing is given
    /// away and back when the leadership changes hands.
    fn note(
        &self,
        term: u64,
        voters: &BTreeSet<NodeId>,
        from: NodeId,
        now: Instant,
    ) -> Option<Vec<NodeId>> {
        let mut led = lock(&self.led);
        if led.as_ref().is_none_or(|led| led.term != term) {
            *led = Some(Led { term, heard: voters.iter().map(|id| (*id, now)).collect() });
        }
        let heard = &mut led.as_mut()?.heard;
        if !voters.contains(&from) {
            return None;
        }
        heard.insert(from, now);
        heard.retain(|id, at| {
            voters.contains(id) && now.saturating_duration_since(*at) < HEALTH_SILENCE
        });
        Some(heard.keys().copied().collect())
    }

    fn tell(&self, present: Vec<NodeId>, until: Instant) {
        *lock(&self.told) = Some(Told { present: present.into(), until });
    }

    fn forget(&self) {
        *lock(&self.told) = None;
    }

    /// The nodes that are there, in order; None when this node does not know, and has nothing to check.
    pub fn present(&self, now: Instant) -> Option<Arc<[NodeId]>> {
        let told = lock(&self.told);
        told.as_ref().filter(|told| now < told.until).map(|told| told.present.clone())
    }
}

impl Node {
    /// As the leader: a node is there. None when this node does not lead, or does not know any more.
    pub(in crate::node) fn roll_call(&self, from: NodeId) -> Option<Vec<NodeId>> {
        let Leadership::Leader { term } = self.leadership() else { return None };
        // A leader that has lost sight of the others speaks for nobody.
        self.present_leader().filter(|leader| *leader == self.id())?;
        let metrics = self.0.raft.server_metrics();
        let voters = metrics.borrow_watched().membership_config.voter_ids().collect();
        self.0.health.roll.note(term, &voters, from, Instant::now())
    }

    async fn ask_who_is_there(&self) -> Option<Vec<NodeId>> {
        let own = self.id();
        match self.leadership() {
            Leadership::Leader { .. } => self.roll_call(own),
            Leadership::Follower { leader, address, .. } => {
                let payload = codec::to_bytes(&own);
                let answer = self.ask_leader(leader, &address, Method::Roll, payload).await?;
                codec::from_bytes("roll", &answer).ok().flatten()
            }
            Leadership::Unknown => None,
        }
    }
}

/// Says that this node is there, until the node is dropped; nothing while nothing is to be checked.
pub async fn run(node: Node) {
    let roll = &node.0.health.roll;
    let (mut asked, mut known) = (None, None);
    loop {
        runtime::sleep(TICK).await;
        if node.read(|state| state.checked_services().next().is_none()) || node.rebuilds() {
            roll.forget();
            asked = None;
            continue;
        }
        let (now, leader) = (Instant::now(), node.leader_id());
        let lately = asked.is_some_and(|at| now.saturating_duration_since(at) < HEALTH_BEAT);
        if lately && leader == known {
            continue;
        }
        // Whoever comes, or comes back, first catches up: it would not know all that it is to check.
        if roll.present(now).is_none()
            && node.barrier(Consistency::Linearizable, TIMEOUT).await.is_err()
        {
            continue;
        }
        let now = Instant::now();
        // When there is no answer, the next tick asks again.
        if let Some(present) = node.ask_who_is_there().await {
            roll.tell(present, now + HEALTH_SILENCE);
            (asked, known) = (Some(now), leader);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    #[test]
    fn whoever_is_silent_is_counted_out_and_in_again() {
        let (roll, start) = (Roll::default(), Instant::now());
        let voters = BTreeSet::from([1, 2, 3]);
        let note = |from, after| roll.note(7, &voters, from, start + after);
        // A new leader takes everybody to be there.
        assert_eq!(note(1, Duration::ZERO).unwrap(), [1, 2, 3]);
        assert_eq!(note(2, HEALTH_BEAT).unwrap(), [1, 2, 3]);
        assert_eq!(note(1, HEALTH_SILENCE - MOMENT).unwrap(), [1, 2, 3]);
        assert_eq!(note(1, HEALTH_SILENCE).unwrap(), [1, 2]);
        assert_eq!(note(3, HEALTH_SILENCE + HEALTH_BEAT).unwrap(), [1, 3]);
        // Of another term nothing is known but that everybody was there.
        assert_eq!(roll.note(8, &voters, 1, start + 9 * HEALTH_SILENCE).unwrap(), [1, 2, 3]);
        // Not a voter, or none any more.
        assert_eq!(note(4, Duration::ZERO), None);
        let fewer = BTreeSet::from([1, 2]);
        assert_eq!(roll.note(8, &fewer, 1, start + 9 * HEALTH_SILENCE).unwrap(), [1, 2]);
        assert_eq!(roll.note(8, &fewer, 3, start + 9 * HEALTH_SILENCE), None);
    }

    #[test]
    fn what_was_told_holds_no_longer_than_the_leader_waits() {
        let (roll, now) = (Roll::default(), Instant::now());
        assert_eq!(roll.present(now), None);
        roll.tell(vec![1, 2], now + HEALTH_SILENCE);
        assert_eq!(*roll.present(now).unwrap(), [1, 2]);
        assert!(roll.present(now + HEALTH_SILENCE - MOMENT).is_some());
        assert_eq!(roll.present(now + HEALTH_SILENCE), None);
        roll.forget();
        assert_eq!(roll.present(now), None);
    }
}
