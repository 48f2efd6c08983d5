//! Changes as `watch` prints them, of records that have one name.

use serde_json::{Value, json};

use super::super::{Context, Error, output};
use crate::client::WatchUpdate;
use crate::proto::v1::watch_event;

/// One line per event. `shown` tells the name of the record's kind, its JSON, its name and its text.
pub fn show_events(
    context: &Context,
    update: WatchUpdate,
    shown: impl Fn(watch_event::Record) -> Option<(&'static str, Value, String, String)>,
) -> Result<(), Error> {
    let revision = update.revision();
    let printer = context.printer();
    let events = match update {
        WatchUpdate::Bookmark { .. } if printer.is_json() => {
            return printer.json(&json!({"op": "bookmark", "revision": revision}));
        }
        WatchUpdate::Bookmark { .. } => return Ok(()),
        WatchUpdate::Snapshot { events, .. } => {
            if printer.is_json() {
                let count = events.len();
                printer.json(&json!({"op": "snapshot", "revision": revision, "events": count}))?;
            }
            events
        }
        WatchUpdate::Changes { events, .. } => events,
    };
    for event in events {
        let Some((kind, value, name, text)) = event.record.and_then(&shown) else { continue };
        match (printer.is_json(), event.deleted) {
            (true, deleted) => {
                let op = if deleted { "delete" } else { "put" };
                printer.json(&json!({"op": op, "revision": revision, kind: value}))?;
            }
            (false, true) => output::line(&output::one_line(format!("{revision} - {name}")))?,
            (false, false) => output::line(&output::one_line(format!("{revision} {text}")))?,
        }
    }
    Ok(())
}
