//! Alarms, between messages and the state's types.

use super::{map, namespace, pairs};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::state::{self, AlarmMeasure, AlarmName, AlarmRule, AlarmSide, AlarmStatus};

pub fn alarm_name(namespace: String, name: String) -> AlarmName {
    AlarmName { namespace: self::namespace(namespace), name }
}

pub fn rule(alarm: Option<v1::Alarm>) -> Result<(AlarmName, AlarmRule), Error> {
    let v1::Alarm {
        namespace,
        name,
        counter,
        labels,
        rate_minutes,
        below,
        bound,
        for_ms,
        webhook,
        description,
        // Output only.
        status: _,
        since_ms: _,
        measured: _,
        transitions: _,
        posted: _,
        post_error: _,
        create_revision: _,
        mod_revision: _,
    } = alarm.ok_or_else(|| Error::invalid("alarm", "", "an alarm"))?;
    let bound_milli = (bound * 1_000.0).round();
    if !bound_milli.is_finite() || bound_milli.abs() > GREATEST {
        let allowed = format!("a number from {} to {}", -GREATEST / 1_000.0, GREATEST / 1_000.0);
        return Err(Error::invalid("alarm.bound", bound.to_string(), allowed));
    }
    let measure = match rate_minutes {
        0 => AlarmMeasure::Value,
        minutes => {
            AlarmMeasure::Rate { slots: u64::from(minutes) * 60_000 / limits::COUNTER_SLOT_MS }
        }
    };
    let rule = AlarmRule {
        counter,
        labels: pairs(labels),
        measure,
        side: if below { AlarmSide::Below } else { AlarmSide::Above },
        bound_milli: bound_milli as i64,
        for_ms,
        webhook,
        description,
    };
    Ok((alarm_name(namespace, name), rule))
}

/// Every whole number up to it is a double.
const GREATEST: f64 = 9_007_199_254_740_992.0;

pub fn alarm(alarm: &state::Alarm) -> v1::Alarm {
    let state::Alarm {
        namespace,
        name,
        rule,
        status,
        since_ms,
        measured_milli,
        transitions,
        posted,
        post_error,
        create_revision,
        mod_revision,
    } = alarm;
    let AlarmRule { counter, labels, measure, side, bound_milli, for_ms, webhook, description } =
        rule;
    let status = match status {
        AlarmStatus::Clear => v1::AlarmStatus::Clear,
        AlarmStatus::Pending => v1::AlarmStatus::Pending,
        AlarmStatus::Raised => v1::AlarmStatus::Raised,
    };
    let rate_minutes = match measure {
        AlarmMeasure::Value => 0,
        AlarmMeasure::Rate { slots } => slots * limits::COUNTER_SLOT_MS / 60_000,
    };
    v1::Alarm {
        namespace: namespace.to_string(),
        name: name.to_string(),
        counter: counter.clone(),
        labels: map(labels),
        rate_minutes: u32::try_from(rate_minutes).unwrap_or(u32::MAX),
        below: *side == AlarmSide::Below,
        bound: *bound_milli as f64 / 1_000.0,
        for_ms: *for_ms,
        webhook: webhook.clone(),
        description: description.clone(),
        status: status.into(),
        since_ms: *since_ms,
        measured: *measured_milli as f64 / 1_000.0,
        transitions: *transitions,
        posted: *posted,
        post_error: post_error.clone(),
        create_revision: *create_revision,
        mod_revision: *mod_revision,
    }
}

/// What was removed: its names.
pub fn alarm_names(namespace: &str, name: &str) -> v1::Alarm {
    v1::Alarm { namespace: namespace.to_owned(), name: name.to_owned(), ..v1::Alarm::default() }
}
