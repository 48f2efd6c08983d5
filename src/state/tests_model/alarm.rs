//! Alarms on counters.

use super::*;

impl Model {
    fn alarm(&mut self, name: &AlarmName) -> Option<&mut Alarm> {
        self.alarms.iter_mut().find(|a| *a.namespace == *name.namespace && *a.name == *name.name)
    }

    pub(super) fn put_alarm(&mut self, name: AlarmName, rule: AlarmRule, place: &Place) -> Answer {
        self.needs_namespace(&name.namespace)?;
        let count = self.alarms.len();
        // Where alarms were deleted, or the namespace was, one of this name may have been told of before.
        let deleted = self
            .removals
            .iter()
            .filter(|(namespace, class, _)| *namespace == name.namespace && *class == Class::Alarm);
        let deleted = deleted.map(|(_, _, revision)| *revision).max();
        let made =
            self.namespaces.iter().find(|n| *n.name == *name.namespace && *n.name != *"default");
        let used = deleted.unwrap_or(0).max(made.map_or(0, |n| n.create_revision));
        let Some(alarm) = self.alarm(&name) else {
            if count >= limits::ALARMS {
                return Err(too_many("alarms of the cluster", limits::ALARMS as u64));
            }
            self.alarms.push(Alarm {
                namespace: name.namespace.into(),
                name: name.name.into(),
                rule,
                status: AlarmStatus::Clear,
                since_ms: place.now_ms,
                measured_milli: 0,
                transitions: used,
                posted: used,
                post_error: String::new(),
                create_revision: place.revision,
                mod_revision: place.revision,
            });
            return Ok(Reply::AlarmPut { changed: true, mod_revision: place.revision });
        };
        let changed = alarm.rule != rule;
        if changed {
            // Whoever was told that it is raised hears that it is not.
            alarm.transitions += u64::from(alarm.status == AlarmStatus::Raised);
            alarm.status = AlarmStatus::Clear;
            alarm.rule = rule;
            alarm.since_ms = place.now_ms;
            alarm.measured_milli = 0;
            alarm.post_error = String::new();
            alarm.mod_revision = place.revision;
        }
        Ok(Reply::AlarmPut { changed, mod_revision: alarm.mod_revision })
    }

    pub(super) fn delete_alarm(&mut self, name: &AlarmName) -> Answer {
        let removed = self.alarm(name).is_some();
        self.alarms.retain(|a| *a.namespace != *name.namespace || *a.name != *name.name);
        Ok(Reply::AlarmDeleted { removed })
    }

    pub(super) fn judge_alarm(&mut self, name: &AlarmName, place: &Place) -> Answer {
        let alarm = self.alarm(name).cloned();
        let turn = alarm.and_then(|alarm| self.turn(&alarm, place.now_ms));
        let Some((next, measured_milli)) = turn else {
            return Ok(Reply::AlarmJudged { status: None });
        };
        let alarm = self.alarm(name).unwrap();
        let told = [next, alarm.status].contains(&AlarmStatus::Raised);
        alarm.status = next;
        alarm.since_ms = place.now_ms;
        alarm.measured_milli = measured_milli;
        alarm.transitions += u64::from(told);
        alarm.mod_revision = place.revision;
        Ok(Reply::AlarmJudged { status: Some(next) })
    }

    /// What an alarm turns to at a time, if to anything, and what is measured then.
    fn turn(&self, alarm: &Alarm, now_ms: u64) -> Option<(AlarmStatus, i64)> {
        let AlarmRule { counter, labels, measure, side, bound_milli, for_ms, .. } = &alarm.rule;
        let own = self.counters.iter().filter(|c| {
            *c.name.namespace == *alarm.namespace
                && c.name.name == *counter
                && c.name.labels.has_all(labels)
        });
        let measured = match measure {
            AlarmMeasure::Value => own.map(|c| i128::from(c.value) * 1_000).sum::<i128>(),
            AlarmMeasure::Rate { slots } => {
                let added: i128 = own.map(|c| i128::from(c.window(*slots, now_ms))).sum();
                let whole = (u128::from(*slots) * 10_000).saturating_sub(10_000);
                let ms = (whole + u128::from(now_ms % 10_000)).clamp(1, u64::MAX.into());
                added * 1_000_000 / ms as i128
            }
        };
        let bound = i128::from(*bound_milli);
        let beyond = match side {
            AlarmSide::Above => measured > bound,
            AlarmSide::Below => measured < bound,
        };
        let long = now_ms.saturating_sub(alarm.since_ms) >= *for_ms;
        let next = match (beyond, alarm.status) {
            (false, _) => AlarmStatus::Clear,
            (true, AlarmStatus::Clear) if *for_ms > 0 => AlarmStatus::Pending,
            (true, AlarmStatus::Pending) if !long => AlarmStatus::Pending,
            (true, _) => AlarmStatus::Raised,
        };
        let measured_milli = measured.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        (next != alarm.status).then_some((next, measured_milli))
    }

    /// Those that turn at a time.
    pub fn due_alarms(&self, now_ms: u64) -> Vec<&Alarm> {
        self.alarms_that(|alarm| self.turn(alarm, now_ms).is_some())
    }

    /// Those with a transition that somebody should hear of and that was neither told nor given up.
    pub fn untold_alarms(&self) -> Vec<&Alarm> {
        self.alarms_that(|alarm| !alarm.rule.webhook.is_empty() && alarm.posted < alarm.transitions)
    }

    /// By namespace and name.
    pub fn alarms_that(&self, hold: impl Fn(&Alarm) -> bool) -> Vec<&Alarm> {
        let mut found: Vec<_> = self.alarms.iter().filter(|alarm| hold(alarm)).collect();
        found.sort_by_key(|alarm| (&alarm.namespace, &alarm.name));
        found
    }

    pub(super) fn note_post(
        &mut self,
        name: AlarmName,
        transition: u64,
        error: String,
        place: &Place,
    ) -> Answer {
        let Some(alarm) = self.alarm(&name) else {
            let name = format!("{}/{}", name.namespace, name.name);
            return Err(Refusal::NotFound { kind: Kind::Alarm, name });
        };
        let changed = (alarm.posted + 1..=alarm.transitions).contains(&transition);
        if changed {
            alarm.posted = transition;
            alarm.post_error = error;
            alarm.mod_revision = place.revision;
        }
        Ok(Reply::PostNoted { changed })
    }
}
