//! Counters, between messages and the state's types.

use std::collections::BTreeMap;

use super::{map, namespace, pairs, unknown};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::state::{self, CounterName, Pairs};

/// The windows that answers show, in minutes.
const WINDOWS: [u64; 3] = [1, 5, 15];

pub fn counter_name(
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
) -> CounterName {
    CounterName { namespace: self::namespace(namespace), name, labels: pairs(labels) }
}

/// None = unspecified.
pub fn kind(value: i32) -> Result<Option<state::CounterKind>, Error> {
    match v1::CounterKind::try_from(value) {
        Ok(v1::CounterKind::Unspecified) => Ok(None),
        Ok(v1::CounterKind::Counter) => Ok(Some(state::CounterKind::Counter)),
        Ok(v1::CounterKind::Gauge) => Ok(Some(state::CounterKind::Gauge)),
        Err(_) => Err(unknown("kind", value, "COUNTER_KIND_COUNTER, COUNTER_KIND_GAUGE")),
    }
}

/// With its windows, when the time is given.
pub fn counter(counter: &state::Counter, now_ms: Option<u64>) -> v1::Counter {
    let state::Counter {
        namespace,
        name,
        labels,
        kind,
        value,
        open: _,
        past: _,
        create_revision,
        mod_revision,
        created_at_ms,
        modified_at_ms,
    } = counter;
    let kind = match kind {
        state::CounterKind::Counter => v1::CounterKind::Counter,
        state::CounterKind::Gauge => v1::CounterKind::Gauge,
    };
    let window = |minutes: u64, now_ms: u64| {
        let slots = minutes * 60_000 / limits::COUNTER_SLOT_MS;
        let covers_ms = state::window_ms(slots, now_ms);
        let sum = counter.sum(slots, now_ms);
        let rate = sum as f64 * 1000.0 / covers_ms.max(1) as f64;
        v1::CounterWindow { minutes, covers_ms, sum, rate }
    };
    let windows = now_ms.into_iter().flat_map(|now_ms| WINDOWS.map(|w| window(w, now_ms)));
    v1::Counter {
        namespace: namespace.to_string(),
        name: name.to_string(),
        labels: map(labels),
        kind: kind.into(),
        value: *value,
        create_revision: *create_revision,
        mod_revision: *mod_revision,
        created_at_ms: *created_at_ms,
        modified_at_ms: *modified_at_ms,
        windows: windows.collect(),
    }
}

/// What was removed: its names.
pub fn counter_names(namespace: &str, name: &str, labels: &Pairs) -> v1::Counter {
    v1::Counter {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        labels: map(labels),
        ..v1::Counter::default()
    }
}
