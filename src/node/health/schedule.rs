//! Which instances this node checks, when the next check of each is due, and when what the checks saw is a
//! verdict. Plain data: time, results and chance are arguments.
//!
//! Invariant: what is counted is only what contradicts the health in the state. So a node that begins with
//! an instance, because another died or leads, begins where that one would have had to, and nothing flaps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::super::shortened;
use super::Saw;
use crate::raft::types::NodeId;
use crate::runtime::Instant;
use crate::state::{Health, HealthVerdict, Instance, InstanceName, Service};

/// Namespace, service and id.
pub type Name = (Arc<str>, Arc<str>, Arc<str>);

/// The node that checks an instance: the one of those present with the greatest hash over both (Thaler and
/// Ravishankar, "Using name-based mappings to increase hit rates", 1998). When a node goes, only what it
/// checked moves; when one comes, only what it will check.
pub fn checker(instance: &Instance, present: &[NodeId]) -> Option<NodeId> {
    let names = [&instance.namespace, &instance.service, &instance.id];
    let hash = names.iter().fold(0, |hash, name| xxh3_64_with_seed(name.as_bytes(), hash));
    let score = |node: &NodeId| (xxh3_64_with_seed(&node.to_le_bytes(), hash), *node);
    present.iter().copied().max_by_key(score)
}

#[derive(Debug, Default)]
pub struct Schedule {
    checks: BTreeMap<Name, Check>,
    /// Those that no check is under way of.
    due: BTreeSet<(Instant, Name)>,
    /// Verdicts that wait to be proposed.
    verdicts: BTreeMap<Name, HealthVerdict>,
    /// The services of which it was told that instances are not checked, under settings of a revision.
    told: BTreeMap<(Arc<str>, Arc<str>), u64>,
    /// Tells the results of a check from those of an earlier one of the same name.
    serial: u64,
    /// Number of the look that goes on.
    look: u64,
}

#[derive(Debug)]
struct Check {
    service: Arc<Service>,
    instance: Arc<Instance>,
    serial: u64,
    /// When the next one begins; None while one is under way.
    due: Option<Instant>,
    began: Instant,
    /// Results in a row that contradict the health.
    streak: u32,
    /// Why it is not checked, if it is not.
    unchecked: Option<String>,
    seen: u64,
}

/// One check to be carried out.
#[derive(Debug, Clone)]
pub struct Job {
    pub name: Name,
    pub serial: u64,
    pub service: Arc<Service>,
    pub instance: Arc<Instance>,
}

impl Job {
    pub fn timeout(&self) -> Duration {
        let check = self.service.health_check.as_ref();
        check.map_or(Duration::ZERO, |check| Duration::from_millis(check.timeout_ms))
    }
}

impl Schedule {
    /// Begins to look which instances there are; each is told by [`Schedule::see`].
    pub fn begin_look(&mut self) {
        self.look += 1;
    }

    /// An instance that this node is to check. What is new begins somewhere in its first interval, so that
    /// thousands that come at once are not asked at once.
    pub fn see(
        &mut self,
        service: &Arc<Service>,
        instance: &Arc<Instance>,
        now: Instant,
        jitter: impl FnOnce(Duration) -> Duration,
    ) {
        let Some(settings) = &service.health_check else { return };
        let name = (instance.namespace.clone(), instance.service.clone(), instance.id.clone());
        if let Some(check) = self.checks.get_mut(&name) {
            let same = check.service.health_check == service.health_check
                && check.instance.create_revision == instance.create_revision
                && (Arc::ptr_eq(&check.instance, instance)
                    || check.instance.endpoints == instance.endpoints);
            if same {
                check.seen = self.look;
                // What was counted contradicts a health that it has no more; and a verdict is of the
                // instance and the settings as they were.
                if check.instance.health != instance.health {
                    check.streak = 0;
                }
                if check.instance.mod_revision != instance.mod_revision
                    || check.service.mod_revision != service.mod_revision
                {
                    self.verdicts.remove(&name);
                }
                check.service = service.clone();
                check.instance = instance.clone();
                return;
            }
            self.forget(&name);
        }
        self.serial += 1;
        let due = now + jitter(Duration::from_millis(settings.interval_ms));
        self.due.insert((due, name.clone()));
        let check = Check {
            service: service.clone(),
            instance: instance.clone(),
            serial: self.serial,
            due: Some(due),
            began: now,
            streak: 0,
            unchecked: None,
            seen: self.look,
        };
        self.checks.insert(name, check);
    }

    /// What was not seen is not to be checked any more.
    pub fn end_look(&mut self) {
        let gone: Vec<Name> = self
            .checks
            .iter()
            .filter(|(_, check)| check.seen != self.look)
            .map(|(name, _)| name.clone())
            .collect();
        gone.iter().for_each(|name| self.forget(name));
        if !gone.is_empty() {
            let checks = &self.checks;
            self.told.retain(|(namespace, service), _| {
                let first = (namespace.clone(), service.clone(), Arc::default());
                let next = checks.range(first..).next();
                next.is_some_and(|((n, s, _), _)| n == namespace && s == service)
            });
        }
    }

    fn forget(&mut self, name: &Name) {
        self.verdicts.remove(name);
        if let Some(Check { due: Some(due), .. }) = self.checks.remove(name) {
            self.due.remove(&(due, name.clone()));
        }
    }

    /// Nothing is to be checked; results of what is under way count for nothing.
    pub fn clear(&mut self) {
        self.checks.clear();
        self.due.clear();
        self.verdicts.clear();
    }

    pub fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    /// The check that has been due for longest, which is under way from now on.
    pub fn take_due(&mut self, now: Instant) -> Option<Job> {
        if self.next_due()? > now {
            return None;
        }
        let (_, name) = self.due.pop_first()?;
        let check = self.checks.get_mut(&name)?;
        check.due = None;
        check.began = now;
        let (service, instance) = (check.service.clone(), check.instance.clone());
        Some(Job { name, serial: check.serial, service, instance })
    }

    /// What a check of this node saw. Answers why the instance is not checked, when that is news: it is the
    /// first of its service.
    pub fn settle(&mut self, node: NodeId, job: &Job, saw: Saw, now: Instant) -> Option<String> {
        let name = &job.name;
        let check = self.checks.get_mut(name).filter(|check| check.serial == job.serial)?;
        let settings = check.service.health_check.as_ref()?;
        let due = (check.began + Duration::from_millis(settings.interval_ms)).max(now);
        check.due = Some(due);
        self.due.insert((due, name.clone()));

        // A check that began before the health was set says nothing against it.
        if job.instance.health != check.instance.health {
            return None;
        }
        let is_critical = check.instance.health == Health::Critical;
        let verdict = match (saw, is_critical) {
            (Saw::Nothing, _) => return None,
            (Saw::NotAllowed(why), _) => {
                check.streak = 0;
                self.verdicts.remove(name);
                check.unchecked = Some(why.clone());
                let service = (name.0.clone(), name.1.clone());
                let settings = check.service.mod_revision;
                return (self.told.insert(service, settings) != Some(settings)).then_some(why);
            }
            (Saw::Passed, true) => Some((settings.successes, Health::Passing, "passing".into())),
            (Saw::Failed(why), false) => Some((settings.failures, Health::Critical, why)),
            (Saw::Passed, false) | (Saw::Failed(_), true) => None,
        };
        check.unchecked = None;
        let Some((needed, health, why)) = verdict else {
            check.streak = 0;
            self.verdicts.remove(name);
            return None;
        };
        check.streak = check.streak.saturating_add(1);
        if check.streak >= needed {
            let verdict = HealthVerdict {
                name: InstanceName {
                    namespace: name.0.to_string(),
                    service: name.1.to_string(),
                    id: name.2.to_string(),
                },
                mod_revision: check.instance.mod_revision,
                settings_revision: check.service.mod_revision,
                health,
                reason: shortened(format!("health check from node {node}: {why}")),
            };
            self.verdicts.insert(name.clone(), verdict);
        }
        None
    }

    /// At most so many verdicts. One that does not reach the log comes again with the next result.
    pub fn take_verdicts(&mut self, most: usize) -> Vec<HealthVerdict> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some((_, verdict)) = self.verdicts.pop_first()
        {
            taken.push(verdict);
        }
        taken
    }

    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// How many of the instances are not checked, and why the first is not.
    pub fn unchecked(&self) -> (usize, Option<String>) {
        let mut all = self.checks.iter().filter_map(|((namespace, service, id), check)| {
            let why = check.unchecked.as_ref()?;
            Some((namespace, service, id, why))
        });
        let first = all.next();
        let count = usize::from(first.is_some()) + all.count();
        (
            count,
            first.map(|(namespace, service, id, why)| format!("{namespace}/{service}/{id}: {why}")),
        )
    }
}
