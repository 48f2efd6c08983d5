//! Commands of alarms and their limits.

use serde::{Deserialize, Serialize};

use super::super::table::{AlarmMeasure, AlarmRule};
use super::{
    Refusal, check_labels, check_metric_name, check_name, check_range, check_text, invalid,
};
use crate::limits;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AlarmName<T = String> {
    pub namespace: T,
    pub name: T,
}

impl AlarmName {
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        check_name("", "namespace", &self.namespace)?;
        check_name("", "name", &self.name)
    }
}

impl AlarmRule {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        check_metric_name("alarm.counter", &self.counter)?;
        check_labels("alarm.labels", &self.labels)?;
        if let AlarmMeasure::Rate { slots } = self.measure {
            let minutes = slots.saturating_mul(limits::COUNTER_SLOT_MS) / 60_000;
            let longest = limits::COUNTER_SLOTS * limits::COUNTER_SLOT_MS / 60_000;
            check_range("alarm.rate_minutes", minutes, &(1..=longest))?;
        }
        check_range("alarm.for_ms", self.for_ms, &limits::ALARM_FOR_MS)?;
        check_text("alarm.description", &self.description, limits::TEXT_BYTES)?;
        let is_url = ["http://", "https://"].iter().any(|scheme| self.webhook.starts_with(scheme));
        if !self.webhook.is_empty() && (!is_url || self.webhook.len() > limits::WEBHOOK_BYTES) {
            let allowed = format!(
                "nothing, or a URL with http:// or https:// of at most {} bytes",
                limits::WEBHOOK_BYTES
            );
            return Err(invalid("alarm.webhook", &self.webhook, allowed));
        }
        Ok(())
    }
}
