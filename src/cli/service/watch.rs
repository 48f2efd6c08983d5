//! `quorate service watch`: one line per change, or one line of JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::follow::follow;
use super::{Context, Error, output, view};
use crate::client::{WatchRange, WatchUpdate};
use crate::proto::v1;

/// What the watcher knows, to tell what a change changed. Service settings have an empty id.
type Known = BTreeMap<(String, String), Item>;

#[derive(Debug, Clone, PartialEq)]
enum Item {
    Instance(view::Instance),
    Service(view::Service),
}

pub async fn run(context: &Context, service: Option<String>, after: u64) -> Result<(), Error> {
    let namespace = context.namespace();
    let range = match service {
        Some(service) => WatchRange::Service { namespace, service },
        None => WatchRange::Namespace { namespace },
    };
    let printer = context.printer();
    let watch = context.client()?.watch_after(range, after);
    let mut known = Known::new();
    follow(context, watch, |update| {
        if printer.is_json() {
            return json_lines(update).iter().try_for_each(|value| printer.json(value));
        }
        match text_lines(update, &mut known, output::now_ms()) {
            text if text.is_empty() => Ok(()),
            text => output::line(&text),
        }
    })
    .await
}

/// `snapshot` says how many `put` follow that are the whole range; then come `put`, `delete` and, while
/// nothing happens, `bookmark`. With any `revision` a later watch can resume.
fn json_lines(update: WatchUpdate) -> Vec<Value> {
    let revision = update.revision();
    let (mut lines, events) = match update {
        WatchUpdate::Bookmark { .. } => {
            return vec![json!({"op": "bookmark", "revision": revision})];
        }
        WatchUpdate::Snapshot { events, .. } => {
            (vec![json!({"op": "snapshot", "revision": revision, "events": events.len()})], events)
        }
        WatchUpdate::Changes { events, .. } => (Vec::new(), events),
    };
    for (deleted, item) in events.into_iter().filter_map(item) {
        lines.push(match (deleted, item) {
            (false, Item::Instance(instance)) => {
                json!({"op": "put", "revision": revision, "instance": instance})
            }
            (false, Item::Service(service)) => {
                let mut service = json!(service);
                // They would say how it was, not how it is: an instance's change does not tell them.
                for count in ["instances", "healthy_instances"] {
                    service.as_object_mut().and_then(|fields| fields.remove(count));
                }
                json!({"op": "put", "revision": revision, "service": service})
            }
            (true, Item::Instance(view::Instance { namespace, service, id, .. })) => json!({
                "op": "delete", "revision": revision,
                "instance": {"namespace": namespace, "service": service, "id": id},
            }),
            (true, Item::Service(view::Service { namespace, name, .. })) => json!({
                "op": "delete", "revision": revision,
                "service": {"namespace": namespace, "name": name},
            }),
        });
    }
    lines
}

/// Time, revision, `+` new, `~` changed, `-` gone, who, and what. Times are the leader's clock; for
/// what is gone, this machine's.
fn text_lines(update: WatchUpdate, known: &mut Known, now_ms: u64) -> String {
    let revision = update.revision();
    let mut text = String::new();
    let mut line = |at_ms: u64, revision: u64, rest: String| {
        let rest = output::one_line(rest);
        text.push_str(&format!("{} {revision} {rest}\n", output::timestamp(at_ms)));
    };
    let events = match update {
        WatchUpdate::Bookmark { .. } => return text,
        WatchUpdate::Snapshot { events, .. } => {
            known.clear();
            let records = if events.len() == 1 { "record" } else { "records" };
            line(now_ms, revision, format!("= snapshot of {} {records}", events.len()));
            events
        }
        WatchUpdate::Changes { events, .. } => events,
    };
    for (deleted, item) in events.into_iter().filter_map(item) {
        let (key, name) = match &item {
            Item::Instance(instance) => {
                let key = (instance.service.clone(), instance.id.clone());
                let name = format!("{}/{}", key.0, key.1);
                (key, name)
            }
            Item::Service(service) => ((service.name.clone(), String::new()), service.name.clone()),
        };
        if deleted {
            known.remove(&key);
            line(now_ms, revision, format!("- {name}"));
            continue;
        }
        let old = known.insert(key, item.clone());
        match item {
            Item::Instance(new) => {
                let old = match &old {
                    Some(Item::Instance(old)) => Some(old),
                    Some(Item::Service(_)) | None => None,
                };
                let sign = sign(old.is_some(), new.create_revision == new.mod_revision);
                let what = old.map_or_else(|| whole(&new), |old| difference(old, &new));
                line(new.modified_at_ms, new.mod_revision, format!("{sign} {name} {what}"));
            }
            Item::Service(new) => {
                let sign = sign(old.is_some(), new.create_revision == new.mod_revision);
                let threshold = super::show::protect_threshold(&new);
                let what = format!("settings: protect {threshold} policy {:?}", new.policy);
                line(now_ms, new.mod_revision, format!("{sign} {name} {what}"));
            }
        }
    }
    text
}

fn item(event: v1::WatchEvent) -> Option<(bool, Item)> {
    // A record of a later release's kind is none of what this release shows.
    Some((
        event.deleted,
        match event.record? {
            v1::watch_event::Record::Instance(instance) => Item::Instance(instance.into()),
            v1::watch_event::Record::Service(service) => Item::Service(service.into()),
            v1::watch_event::Record::Config(_)
            | v1::watch_event::Record::Counter(_)
            | v1::watch_event::Record::Lock(_)
            | v1::watch_event::Record::Alarm(_)
            | v1::watch_event::Record::Saga(_) => return None,
        },
    ))
}

/// A watch that resumed does not know what was there before.
fn sign(was_known: bool, is_created: bool) -> char {
    if was_known || !is_created { '~' } else { '+' }
}

fn whole(instance: &view::Instance) -> String {
    let mut words = vec![instance.addresses(), instance.health.as_str().to_owned()];
    if instance.admin != view::Admin::Enabled {
        words.push(instance.admin.as_str().to_owned());
    }
    words.extend(reason(instance));
    words.join(" ")
}

/// The fields that differ.
fn difference(old: &view::Instance, new: &view::Instance) -> String {
    let weight = |instance: &view::Instance| {
        instance.weight.unwrap_or(crate::limits::DEFAULT_WEIGHT).to_string()
    };
    let fields = [
        ("address", old.addresses(), new.addresses()),
        ("weight", weight(old), weight(new)),
        ("zone", old.zone.clone(), new.zone.clone()),
        ("health", old.health.as_str().to_owned(), new.health.as_str().to_owned()),
        ("admin", old.admin.as_str().to_owned(), new.admin.as_str().to_owned()),
        ("session", old.session.to_string(), new.session.to_string()),
        ("hash key", old.hash_key.clone(), new.hash_key.clone()),
        ("metadata", output::pairs(&old.metadata), output::pairs(&new.metadata)),
    ];
    let changed = fields.into_iter().filter(|(_, old, new)| old != new);
    let shown = |text: String| if text.is_empty() { "none".to_owned() } else { text };
    let mut words: Vec<String> = changed
        .map(|(field, old, new)| format!("{field} {} -> {}", shown(old), shown(new)))
        .collect();
    words.extend(reason(new));
    words.join(", ")
}

fn reason(instance: &view::Instance) -> Option<String> {
    (!instance.reason.is_empty()).then(|| format!("({})", instance.reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(change: impl FnOnce(&mut v1::Instance)) -> v1::WatchEvent {
        let mut instance = v1::Instance {
            namespace: "default".into(),
            service: "web".into(),
            id: "web-1".into(),
            endpoints: vec![v1::Endpoint { name: String::new(), host: "h".into(), port: 80 }],
            weight: Some(1),
            health: v1::Health::Passing.into(),
            admin: v1::Admin::Enabled.into(),
            reason: "r".into(),
            create_revision: 5,
            mod_revision: 5,
            modified_at_ms: 1_000,
            ..v1::Instance::default()
        };
        change(&mut instance);
        let record = Some(v1::watch_event::Record::Instance(instance));
        v1::WatchEvent { record, deleted: false }
    }

    fn settings() -> v1::WatchEvent {
        let service = v1::Service {
            namespace: "default".into(),
            name: "web".into(),
            protect_threshold_percent: 30,
            policy: "ring_hash".into(),
            create_revision: 4,
            mod_revision: 6,
            ..v1::Service::default()
        };
        let record = Some(v1::watch_event::Record::Service(service));
        v1::WatchEvent { record, deleted: false }
    }

    /// A story: what there is, a change, the end, and a watcher that has lost its thread.
    #[test]
    fn lines_of_text() {
        let mut known = Known::new();
        let mut tell = |update| text_lines(update, &mut known, 9_000);
        let snapshot =
            WatchUpdate::Snapshot { revision: 6, events: vec![settings(), instance(|_| {})] };
        let expected = "\
1970-01-01T00:00:09.000Z 6 = snapshot of 2 records
1970-01-01T00:00:09.000Z 6 ~ web settings: protect 30% policy \"ring_hash\"
1970-01-01T00:00:01.000Z 5 + web/web-1 h:80 passing (r)
";
        assert_eq!(tell(snapshot), expected);
        let critical = instance(|instance| {
            instance.health = v1::Health::Critical.into();
            instance.metadata.insert("v".into(), "2".into());
            instance.reason = "session 7 expired".into();
            instance.mod_revision = 7;
        });
        let expected = "1970-01-01T00:00:01.000Z 7 ~ web/web-1 health passing -> critical, \
                        metadata none -> v=2, (session 7 expired)\n";
        let changes = WatchUpdate::Changes { revision: 7, events: vec![critical] };
        assert_eq!(tell(changes), expected);
        assert_eq!(tell(WatchUpdate::Bookmark { revision: 8 }), "");
        let gone = v1::WatchEvent { deleted: true, ..instance(|_| {}) };
        let changes = WatchUpdate::Changes { revision: 9, events: vec![gone] };
        assert_eq!(tell(changes), "1970-01-01T00:00:09.000Z 9 - web/web-1\n");
        let later = instance(|instance| instance.mod_revision = 10);
        let changes = WatchUpdate::Changes { revision: 10, events: vec![later] };
        assert_eq!(tell(changes), "1970-01-01T00:00:01.000Z 10 ~ web/web-1 h:80 passing (r)\n");
    }

    #[test]
    fn lines_of_json() {
        let lines = |update| -> Vec<String> {
            json_lines(update).iter().map(ToString::to_string).collect()
        };
        assert_eq!(
            lines(WatchUpdate::Snapshot { revision: 3, events: Vec::new() }),
            [r#"{"events":0,"op":"snapshot","revision":3}"#]
        );
        assert_eq!(
            lines(WatchUpdate::Bookmark { revision: 4 }),
            [r#"{"op":"bookmark","revision":4}"#]
        );
        let gone = v1::WatchEvent { deleted: true, ..instance(|_| {}) };
        let events = vec![instance(|_| {}), gone];
        let lines = lines(WatchUpdate::Changes { revision: 5, events });
        assert!(lines[0].contains(r#""op":"put","revision":5"#), "{}", lines[0]);
        assert!(lines[0].contains(r#""health":"passing""#), "{}", lines[0]);
        let expected = r#"{"instance":{"id":"web-1","namespace":"default","service":"web"},"op":"delete","revision":5}"#;
        assert_eq!(lines[1], expected);
        let changes = WatchUpdate::Changes { revision: 6, events: vec![settings()] };
        let service = &json_lines(changes)[0]["service"];
        assert_eq!(service["protect_threshold_percent"], 30);
        assert_eq!(
            (&service["instances"], &service["healthy_instances"]),
            (&Value::Null, &Value::Null)
        );
    }
}
