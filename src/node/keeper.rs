//! The leader's loop over sessions and orphaned instances. It holds no truth: deadlines live in the
//! memory of the leader alone, on its monotonic clock, and are restarted in full by the next one;
//! what it decides becomes a command in the log.
//!
//! Invariants: a session is expired only after its whole TTL passed on this leader's clock without
//! an acknowledged keep-alive, and only under the term in which that was decided; once its expiry is
//! proposed it takes no more keep-alives.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Leadership, Node};
use crate::error::Error;
use crate::failpoint::failpoint;
use crate::proto::v1::Consistency;
use crate::runtime::{self, Instant};
use crate::state::{Command, Instance, InstanceName, Op, Reply};

/// How often deadlines are looked at.
const TICK: Duration = Duration::from_millis(100);
/// A tick that comes this late means that the process was stopped: clients could not reach it either,
/// so what it slept is added to every deadline.
const STALLED: Duration = Duration::from_secs(1);
/// Sessions or instances in one command.
const BATCH: usize = 1_000;
/// Orphans that are looked at in one tick: the state is locked meanwhile.
const ORPHANS: usize = 10_000;
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub struct Keeper {
    watch: Mutex<Option<Watch>>,
}

/// What the leader of one term knows of its sessions.
#[derive(Debug)]
struct Watch {
    term: u64,
    sessions: BTreeMap<u64, Deadline>,
    /// When to look at which session: each once, at its deadline or before.
    due: BTreeSet<(Instant, u64)>,
    /// The greatest session id seen; ids grow, so newer ones are the new ones.
    newest: u64,
}

#[derive(Debug)]
struct Deadline {
    at: Instant,
    /// Its place in `due`: a keep-alive moves the deadline alone, and the place follows when it is reached, so that it
    /// is moved once in a TTL, however often the session is kept alive.
    queued: Instant,
    expiring: bool,
}

impl Watch {
    /// The session lives until `at` at least.
    fn set(&mut self, session: u64, at: Instant) {
        match self.sessions.entry(session) {
            Entry::Occupied(mut known) => known.get_mut().at = known.get().at.max(at),
            Entry::Vacant(place) => {
                place.insert(Deadline { at, queued: at, expiring: false });
                self.due.insert((at, session));
            }
        }
    }

    /// Adds what the process slept to every deadline but of those whose expiry was proposed: the
    /// proposal may be in the log without an answer, and must not overtake a keep-alive.
    fn postpone(&mut self, slept: Duration) {
        for deadline in self.sessions.values_mut().filter(|deadline| !deadline.expiring) {
            deadline.at += slept;
        }
    }

    /// Sessions whose deadline has passed.
    fn due(&mut self, now: Instant) -> Vec<u64> {
        let mut passed = Vec::new();
        let reached = self.due.iter().take_while(|(queued, _)| *queued <= now);
        for (queued, id) in reached.copied().collect::<Vec<_>>() {
            match self.sessions.get_mut(&id) {
                Some(deadline) if deadline.at > now => {
                    self.due.remove(&(queued, id));
                    deadline.queued = deadline.at;
                    self.due.insert((deadline.at, id));
                }
                _ => passed.push(id),
            }
        }
        passed
    }

    fn forget(&mut self, session: u64) {
        if let Some(old) = self.sessions.remove(&session) {
            self.due.remove(&(old.queued, session));
        }
    }
}

impl Keeper {
    fn watch(&self) -> MutexGuard<'_, Option<Watch>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Restarts the TTLs of sessions. The caller has just confirmed that this node leads `term`.
    pub fn renew(&self, node: &Node, term: u64, sessions: &[u64]) -> Vec<Result<u64, Error>> {
        let now = Instant::now();
        let ttls: Vec<Option<u64>> = node.read(|state| {
            sessions
                .iter()
                .map(|id| state.session(*id).map(|session| session.record.ttl_ms))
                .collect()
        });
        let mut watch = self.watch();
        let Some(watch) = watch.as_mut().filter(|watch| watch.term == term) else {
            // The new leader has not looked at its sessions yet; it will give each a full TTL.
            let error = Error::NoLeader { leader: None, definite: true };
            return sessions.iter().map(|_| Err(error.clone())).collect();
        };
        let renew = |(id, ttl_ms): (&u64, Option<u64>)| {
            let Some(ttl_ms) = ttl_ms else {
                return Err(Error::SessionExpired { session: *id });
            };
            if watch.sessions.get(id).is_some_and(|deadline| deadline.expiring) {
                return Err(Error::SessionExpired { session: *id });
            }
            let ttl = Duration::from_millis(ttl_ms);
            watch.set(*id, now + ttl);
            Ok(ttl_ms)
        };
        sessions.iter().zip(ttls).map(renew).collect()
    }

    /// The process was stopped for so long.
    fn postpone(&self, slept: Duration) {
        if let Some(watch) = self.watch().as_mut() {
            watch.postpone(slept);
        }
    }

    /// Starts or goes on with the watch of `term`: sessions not seen yet get a full TTL from now.
    fn look(&self, node: &Node, term: u64) {
        let now = Instant::now();
        let mut watch = self.watch();
        if watch.as_ref().is_none_or(|watch| watch.term != term) {
            let empty = Watch { term, sessions: BTreeMap::new(), due: BTreeSet::new(), newest: 0 };
            *watch = Some(empty);
        }
        let Some(watch) = watch.as_mut() else { return };
        let new: Vec<(u64, u64)> = node.read(|state| {
            let new = state.sessions_after(watch.newest);
            new.map(|(session, _)| (session.id, session.ttl_ms)).collect()
        });
        for (id, ttl_ms) in new {
            watch.newest = id;
            if !watch.sessions.contains_key(&id) {
                let ttl = Duration::from_millis(ttl_ms);
                watch.set(id, now + ttl);
            }
        }
    }

    /// Sessions whose TTL has passed; they take no more keep-alives.
    fn overdue(&self, node: &Node) -> Vec<u64> {
        let now = Instant::now();
        let mut watch = self.watch();
        let Some(watch) = watch.as_mut() else { return Vec::new() };
        let mut overdue = Vec::new();
        for id in watch.due(now) {
            if node.read(|state| state.session(id).is_none()) {
                watch.forget(id);
            } else if overdue.len() < BATCH
                && let Some(deadline) = watch.sessions.get_mut(&id)
            {
                deadline.expiring = true;
                overdue.push(id);
            }
        }
        overdue
    }

    fn stop(&self) {
        *self.watch() = None;
    }
}

/// Ticks, whatever else the keeper waits for meanwhile: only so a tick that is late tells that the process was
/// stopped, and a proposal that takes long does not.
struct Pulse {
    due: Instant,
}

impl Pulse {
    fn new() -> Self {
        Pulse { due: Instant::now() + TICK }
    }

    /// Waits for the next tick; how long the process was stopped before it, if it was.
    async fn tick(&mut self) -> Option<Duration> {
        runtime::sleep(self.due.saturating_duration_since(Instant::now())).await;
        let now = Instant::now();
        let late = now.saturating_duration_since(self.due);
        self.due = now + TICK;
        (late > STALLED).then_some(late)
    }
}

/// Runs the keeper until the node is dropped.
pub async fn run(node: Node) {
    let mut pulse = Pulse::new();
    // The term whose state this node is known to have in full.
    let mut ready = None;
    let mut reaper = Reaper::default();
    loop {
        if let Some(slept) = pulse.tick().await {
            node.keeper().postpone(slept);
        }
        let Leadership::Leader { term } = node.leadership() else {
            node.keeper().stop();
            ready = None;
            continue;
        };
        if ready != Some(term) {
            // Everything committed before this term must be applied before sessions are counted.
            if node.barrier(Consistency::Linearizable, TIMEOUT).await.is_err() {
                continue;
            }
            ready = Some(term);
            pulse = Pulse::new();
        }
        node.keeper().look(&node, term);
        let overdue = node.keeper().overdue(&node);
        let mut work = pin!(async {
            if !overdue.is_empty() {
                expire(&node, term, overdue).await;
            }
            reaper.reap(&node).await;
        });
        loop {
            tokio::select! {
                biased;
                slept = pulse.tick() => {
                    if let Some(slept) = slept {
                        node.keeper().postpone(slept);
                    }
                }
                () = &mut work => break,
            }
        }
    }
}

async fn expire(node: &Node, term: u64, sessions: Vec<u64>) {
    tracing::info!(count = sessions.len(), first = sessions.first(), "sessions expired");
    failpoint!(await Expiry, |_| ());
    let op = Op::ExpireSessions { term, sessions };
    if let Err(error) = node.propose_here(&Command { request: None, op }, TIMEOUT).await {
        // Still marked as expiring: they take no keep-alive, and the next tick proposes them again.
        tracing::info!(%error, "the expiry of sessions was not proposed");
    }
}

/// Goes round the orphaned instances, some of them in each tick.
#[derive(Debug, Default)]
struct Reaper {
    /// The last one looked at; None = begins anew.
    after: Option<InstanceName>,
}

impl Reaper {
    /// Deregisters instances that have been orphans for longer than their service allows.
    async fn reap(&mut self, node: &Node) {
        let now_ms = node.now_ms();
        let after = self.after.take();
        let mut due = Vec::new();
        self.after = node.read(|state| {
            let mut looked_at = 0;
            for (instance, due_ms) in state.orphans(after.as_ref()) {
                looked_at += 1;
                if due_ms <= now_ms {
                    due.push(name(instance));
                }
                if looked_at == ORPHANS || due.len() == BATCH {
                    return Some(name(instance));
                }
            }
            None
        });
        if due.is_empty() {
            return;
        }
        let op = Op::Reap { instances: due };
        match node.propose_here(&Command { request: None, op }, TIMEOUT).await {
            Ok(outcome) => {
                if let Ok(Reply::Reaped { removed }) = outcome.result {
                    tracing::info!(removed, "orphaned instances deregistered");
                }
            }
            Err(error) => tracing::info!(%error, "the removal of orphans was not proposed"),
        }
    }
}

fn name(instance: &Instance) -> InstanceName {
    InstanceName {
        namespace: instance.namespace.to_string(),
        service: instance.service.to_string(),
        id: instance.id.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn watch() -> Watch {
        Watch { term: 1, sessions: BTreeMap::new(), due: BTreeSet::new(), newest: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_does_not_tick_was_stopped() {
        let mut pulse = Pulse::new();
        for _ in 0..50 {
            assert_eq!(pulse.tick().await, None);
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(pulse.tick().await, Some(Duration::from_secs(5) - TICK));
        assert_eq!(pulse.tick().await, None);
    }

    /// An expiry whose outcome is not known may still be in the log: a stall does not bring its
    /// session back, or a keep-alive would be acknowledged that the expiry then overtakes.
    #[test]
    fn what_was_proposed_for_expiry_stays_so_over_a_stall() {
        let (mut watch, now) = (watch(), Instant::now());
        watch.set(1, now);
        watch.set(2, now);
        watch.sessions.get_mut(&1).unwrap().expiring = true;
        watch.postpone(Duration::from_secs(5));
        assert!(watch.sessions[&1].expiring, "{watch:?}");
        // It stays due, so that its expiry is proposed again; the others get what was slept.
        assert_eq!(watch.due(now), [1], "{watch:?}");
        assert_eq!(watch.due(now + Duration::from_secs(5)), [1, 2], "{watch:?}");
        assert_eq!(watch.due.len(), 2);
    }

    #[test]
    fn a_session_is_due_when_its_last_keep_alive_says() {
        let (mut watch, now) = (watch(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        watch.set(1, at(10));
        watch.set(2, at(11));
        watch.set(1, at(15));
        // Of two at once, the one that began earlier may come later.
        watch.set(1, at(14));
        assert!(watch.due(at(9)).is_empty(), "{watch:?}");
        assert_eq!(watch.due(at(12)), [2], "{watch:?}");
        assert_eq!(watch.due(at(14)), [2], "{watch:?}");
        watch.set(1, at(16));
        watch.forget(2);
        assert!(watch.due(at(15)).is_empty(), "{watch:?}");
        assert_eq!(watch.due(at(16)), [1], "{watch:?}");
        assert_eq!(watch.due(at(16)), [1], "{watch:?}");
        watch.forget(1);
        assert!(watch.due.is_empty() && watch.sessions.is_empty(), "{watch:?}");
    }
}
