//! Alarms on counters.

use super::*;

impl Model {
    fn alarm(&mut self, name: &AlarmName) -> Option<&mut Alarm> {
        self.alarms.iter_mut().find(|a| *a.namespace == *name.namespace && *a.name == *name.name)
    }

    pub(super) fn put_alarm(&mut self, name: AlarmName, rule: AlarmRule, place: &Place) -> Answer {
        self.needs_namespace(&name.namespace)?;
        let count = self.alarms.len();
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
                transitions: 0,
                posted: 0,
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
        let Some(alarm) = self.alarm(name).cloned() else {
            return Ok(Reply::AlarmJudged { status: None });
        };
        let AlarmRule { counter, labels, measure, side, bound_milli, for_ms, .. } = &alarm.rule;
        let own = self.counters.iter().filter(|c| {
            *c.name.namespace == *alarm.namespace
                && c.name.name == *counter
                && c.name.labels.has_all(labels)
        });
        let measured = match measure {
            AlarmMeasure::Value => own.map(|c| i128::from(c.value) * 1_000).sum::<i128>(),
            AlarmMeasure::Rate { slots } => {
                let added: i128 = own.map(|c| i128::from(c.window(*slots, place.now_ms))).sum();
                let whole = (u128::from(*slots) * 10_000).saturating_sub(10_000);
                let ms = (whole + u128::from(place.now_ms % 10_000)).clamp(1, u64::MAX.into());
                added * 1_000_000 / ms as i128
            }
        };
        let bound = i128::from(*bound_milli);
        let beyond = match side {
            AlarmSide::Above => measured > bound,
            AlarmSide::Below => measured < bound,
        };
        let long = place.now_ms.saturating_sub(alarm.since_ms) >= *for_ms;
        let next = match (beyond, alarm.status) {
            (false, _) => AlarmStatus::Clear,
            (true, AlarmStatus::Clear) if *for_ms > 0 => AlarmStatus::Pending,
            (true, AlarmStatus::Pending) if !long => AlarmStatus::Pending,
            (true, _) => AlarmStatus::Raised,
        };
        if next == alarm.status {
            return Ok(Reply::AlarmJudged { status: None });
        }
        let told = [next, alarm.status].contains(&AlarmStatus::Raised);
        let alarm = self.alarm(name).unwrap();
        alarm.status = next;
        alarm.since_ms = place.now_ms;
        alarm.measured_milli = measured.clamp(i64::MIN.into(), i64::MAX.into()) as i64;
        alarm.transitions += u64::from(told);
        alarm.mod_revision = place.revision;
        Ok(Reply::AlarmJudged { status: Some(next) })
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
