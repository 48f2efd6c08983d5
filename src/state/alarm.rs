//! Alarms on counters. What a rule asks for is a question to the state at a time; the leader's loop asks it
//! to know when there is something to do, and the state answers it again when the command is carried
//! out. So every replica raises an alarm at the same revision, whoever leads.

use std::sync::Arc;

use super::At;
use super::command::{AlarmName, Kind, Refusal, Reply};
use super::config::limit;
use super::counter::window_ms;
use super::journal::Journal;
use super::memory::{NamespaceTable, Tables};
use super::registry::existing;
use super::table::{Alarm, AlarmMeasure, AlarmRule, AlarmSide, AlarmStatus, Class};
use crate::limits;

impl Tables {
    /// A rule that changes begins anew: what was raised by the old one is cleared.
    pub fn put_alarm(
        &mut self,
        name: &AlarmName<&str>,
        rule: AlarmRule,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let space = existing(self.namespaces.get_mut(name.namespace), name.namespace)?;
        let old = space.alarms.get(name.name);
        if let Some(old) = old
            && old.rule == rule
        {
            let mod_revision = old.mod_revision;
            return Ok(Reply::AlarmPut { changed: false, mod_revision });
        }
        if old.is_none() && self.ledger.alarms >= limits::ALARMS as u64 {
            return Err(limit("alarms of the cluster", limits::ALARMS));
        }
        let was_raised = old.is_some_and(|old| old.status == AlarmStatus::Raised);
        // What was told of an alarm of this name that is gone may be noted only now: no number is used again.
        let used = space.begins().max(space.removal(Class::Alarm));
        let (namespace, name) = space.alarms.names(name.name);
        let alarm = Alarm {
            namespace,
            name,
            rule,
            status: AlarmStatus::Clear,
            since_ms: at.now_ms,
            measured_milli: 0,
            transitions: old.map_or(used, |old| old.transitions) + u64::from(was_raised),
            posted: old.map_or(used, |old| old.posted),
            post_error: String::new(),
            create_revision: old.map_or(at.revision, |old| old.create_revision),
            mod_revision: at.revision,
        };
        journal.push(space.alarms.put(&mut self.ledger, alarm));
        Ok(Reply::AlarmPut { changed: true, mod_revision: at.revision })
    }

    pub fn delete_alarm(
        &mut self,
        name: &AlarmName<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let gone = self
            .namespaces
            .get_mut(name.namespace)
            .and_then(|space| space.alarms.remove(&mut self.ledger, name.name));
        let removed = gone.is_some();
        if removed {
            journal.extend(gone);
            journal.extend(self.note_removal(name.namespace, Class::Alarm, at.revision));
        }
        Ok(Reply::AlarmDeleted { removed })
    }

    /// Does nothing when the rule does not ask for it any more.
    pub fn judge_alarm(
        &mut self,
        name: &AlarmName<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let nothing = Ok(Reply::AlarmJudged { status: None });
        let Some(space) = self.namespaces.get_mut(name.namespace) else { return nothing };
        let Some(old) = space.alarms.get(name.name).cloned() else { return nothing };
        let Some((status, measured_milli)) = space.judge_alarm(&old, at.now_ms) else {
            return nothing;
        };
        let told = (old.status == AlarmStatus::Raised) != (status == AlarmStatus::Raised);
        let alarm = Alarm {
            status,
            since_ms: at.now_ms,
            measured_milli,
            transitions: old.transitions + u64::from(told),
            mod_revision: at.revision,
            ..Alarm::clone(&old)
        };
        journal.push(space.alarms.put(&mut self.ledger, alarm));
        Ok(Reply::AlarmJudged { status: Some(status) })
    }

    /// The webhook was told of a transition, or will not be, because of an error.
    pub fn note_post(
        &mut self,
        name: &AlarmName<&str>,
        transition: u64,
        error: &str,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let AlarmName { namespace, name } = name;
        let space = self.namespaces.get_mut(*namespace);
        let known = space.and_then(|space| {
            let alarm = space.alarms.get(name)?.clone();
            Some((&mut space.alarms, alarm))
        });
        let Some((alarms, old)) = known else {
            let name = format!("{namespace}/{name}");
            return Err(Refusal::NotFound { kind: Kind::Alarm, name });
        };
        // An older transition was told by an earlier leader.
        let changed = transition > old.posted && transition <= old.transitions;
        if changed {
            let alarm = Alarm {
                posted: transition,
                post_error: error.into(),
                mod_revision: at.revision,
                ..Alarm::clone(&old)
            };
            journal.push(alarms.put(&mut self.ledger, alarm));
        }
        Ok(Reply::PostNoted { changed })
    }
}

impl NamespaceTable {
    /// What an alarm of this namespace turns to at a time, and what is measured, in thousandths; None = it
    /// stays as it is.
    pub fn judge_alarm(&self, alarm: &Arc<Alarm>, now_ms: u64) -> Option<(AlarmStatus, i64)> {
        let AlarmRule { counter, labels, measure, side, bound_milli, for_ms, .. } = &alarm.rule;
        let measured = match measure {
            AlarmMeasure::Value => self.sum_of_counters(counter, labels) * 1_000,
            AlarmMeasure::Rate { slots } => {
                let all = self.counters.of(counter).filter(|it| it.labels.has_all(labels));
                let sum: i128 = all.map(|it| i128::from(it.sum(*slots, now_ms))).sum();
                sum * 1_000_000 / i128::from(window_ms(*slots, now_ms).max(1))
            }
        };
        let beyond = match side {
            AlarmSide::Above => measured > i128::from(*bound_milli),
            AlarmSide::Below => measured < i128::from(*bound_milli),
        };
        let long_enough = now_ms.saturating_sub(alarm.since_ms) >= *for_ms;
        let status = match (alarm.status, beyond) {
            (AlarmStatus::Clear, true) if *for_ms == 0 => AlarmStatus::Raised,
            (AlarmStatus::Clear, true) => AlarmStatus::Pending,
            (AlarmStatus::Pending, true) if long_enough => AlarmStatus::Raised,
            (AlarmStatus::Pending | AlarmStatus::Raised, false) => AlarmStatus::Clear,
            (AlarmStatus::Clear, false) | (AlarmStatus::Pending | AlarmStatus::Raised, true) => {
                return None;
            }
        };
        Some((status, super::config::saturate(measured)))
    }
}
