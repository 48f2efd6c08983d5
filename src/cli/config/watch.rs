//! `quorate config watch`: one line per change, or one line of JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::super::follow::follow;
use super::{Context, Error, Name, output, pair, shown, view};
use crate::client::{WatchRange, WatchUpdate};
use crate::proto::v1;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One item; what stands before the first / is its group, unless --group is given [default: all]
    #[arg(value_name = "[GROUP/]KEY", conflicts_with = "prefix")]
    key: Option<String>,
    /// All items whose keys start with this
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// The group [default: default for one item, all groups for a prefix]
    #[arg(short, long, value_name = "GROUP")]
    group: Option<String>,
    /// What this client gets, instead of current releases and all gray ones
    #[arg(long = "as", value_name = "CLIENT")]
    client: Option<String>,
    /// Label of that client; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, requires = "client")]
    client_label: Vec<(String, String)>,
    /// Begin with the changes after this revision instead of with what there is
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    after: u64,
}

/// What the watcher knows, by group and key, to tell what a change changed.
type Known = BTreeMap<(String, String), view::ConfigItem>;

pub async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let namespace = context.namespace();
    let range = match args.key {
        Some(key) => {
            let (group, key) = Name { key, group: args.group }.parts()?;
            WatchRange::Config { namespace, group, key }
        }
        None => {
            let (group, prefix) = (args.group.unwrap_or_default(), args.prefix.unwrap_or_default());
            WatchRange::ConfigPrefix { namespace, group, prefix }
        }
    };
    let printer = context.printer();
    let mut watch = context.client()?.watch_after(range, args.after);
    if let Some(id) = args.client {
        let labels = args.client_label.into_iter().collect();
        watch = watch.seen_by(v1::ConfigClient { id, labels });
    }
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

/// As `service watch`; an item comes with its content.
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
        lines.push(match deleted {
            false => {
                let item = view::ConfigItem::of(item, true);
                json!({"op": "put", "revision": revision, "item": item})
            }
            true => {
                let v1::ConfigItem { namespace, group, key, .. } = item;
                let item = json!({"namespace": namespace, "group": group, "key": key});
                json!({"op": "delete", "revision": revision, "item": item})
            }
        });
    }
    lines
}

/// Time, revision, `+` new, `~` changed, `-` gone, the item, and what.
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
            let items = if events.len() == 1 { "item" } else { "items" };
            line(now_ms, revision, format!("= snapshot of {} {items}", events.len()));
            events
        }
        WatchUpdate::Changes { events, .. } => events,
    };
    for (deleted, item) in events.into_iter().filter_map(item) {
        let name = (item.group.clone(), item.key.clone());
        let shown = shown(&name.0, &name.1);
        if deleted {
            known.remove(&name);
            line(now_ms, revision, format!("- {shown}"));
            continue;
        }
        let new = view::ConfigItem::of(item, false);
        let old = known.insert(name, new.clone());
        let sign = if old.is_some() || new.create_revision != new.mod_revision { '~' } else { '+' };
        let what = difference(old.as_ref(), &new);
        line(new.modified_at_ms, new.mod_revision, format!("{sign} {shown} {what}"));
    }
    text
}

fn item(event: v1::WatchEvent) -> Option<(bool, v1::ConfigItem)> {
    match event.record? {
        v1::watch_event::Record::Config(item) => Some((event.deleted, item)),
        v1::watch_event::Record::Instance(_)
        | v1::watch_event::Record::Service(_)
        | v1::watch_event::Record::Counter(_)
        | v1::watch_event::Record::Lock(_)
        | v1::watch_event::Record::Alarm(_)
        | v1::watch_event::Record::Saga(_) => None,
    }
}

/// The release, when it is another one, and which gray releases are new or over.
fn difference(old: Option<&view::ConfigItem>, new: &view::ConfigItem) -> String {
    let mut words = Vec::new();
    if let Some(release) = &new.release
        && old.is_none_or(|old| old.release != new.release || old.rule != new.rule)
    {
        let rule = match new.rule.as_str() {
            "" => String::new(),
            rule => format!(" by gray rule {rule}"),
        };
        let comment = match release.comment.as_str() {
            "" => String::new(),
            comment => format!(": {comment}"),
        };
        let by = if release.author.is_empty() { "" } else { " by " };
        let (version, format, how) = (release.version, release.format, release.how());
        let size = output::bytes(release.bytes);
        let author = &release.author;
        words.push(format!("version {version}{rule} {format} {size} {how}{by}{author}{comment}"));
    }
    let before = old.map_or(&[][..], |old| &old.gray);
    for gray in &new.gray {
        if !before.contains(gray) {
            words.push(format!("gray {}", super::gray::line(gray)));
        }
    }
    for gray in before {
        if new.gray.iter().all(|left| left.rule != gray.rule) {
            words.push(format!("gray {} has ended", gray.rule));
        }
    }
    if words.is_empty() {
        words.push("the same release".to_owned());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(change: impl FnOnce(&mut v1::ConfigItem)) -> v1::WatchEvent {
        let release = v1::ConfigRelease {
            version: 1,
            author: "ann".into(),
            comment: "first".into(),
            origin: v1::ConfigOrigin::Published.into(),
            format: v1::ConfigFormat::Json.into(),
            content: b"{}".to_vec(),
            bytes: 2,
            ..Default::default()
        };
        let mut item = v1::ConfigItem {
            namespace: "default".into(),
            group: "default".into(),
            key: "a.json".into(),
            release: Some(release),
            create_revision: 5,
            mod_revision: 5,
            modified_at_ms: 1_000,
            ..Default::default()
        };
        change(&mut item);
        let record = Some(v1::watch_event::Record::Config(item));
        v1::WatchEvent { record, deleted: false }
    }

    fn gray(item: &mut v1::ConfigItem) {
        let picks = v1::gray_terms::Picks::BasisPoints(500);
        let terms =
            v1::GrayTerms { rule: "canary".into(), picks: Some(picks), ..Default::default() };
        let release = Some(v1::ConfigRelease { version: 2, ..Default::default() });
        item.gray = vec![v1::GrayRelease { terms: Some(terms), release, since_ms: 0 }];
        item.mod_revision = 6;
    }

    #[test]
    fn lines_of_text() {
        let mut known = Known::new();
        let mut tell = |update| text_lines(update, &mut known, 9_000);
        let snapshot = WatchUpdate::Snapshot { revision: 5, events: vec![event(|_| {})] };
        let expected = "\
1970-01-01T00:00:09.000Z 5 = snapshot of 1 item
1970-01-01T00:00:01.000Z 5 + a.json version 1 json 2 B published by ann: first
";
        assert_eq!(tell(snapshot), expected);
        let changes = WatchUpdate::Changes { revision: 6, events: vec![event(gray)] };
        let expected =
            "1970-01-01T00:00:01.000Z 6 ~ a.json gray canary version 2 priority 0 for 5%\n";
        assert_eq!(tell(changes), expected);
        let ended = event(|item| item.mod_revision = 7);
        let changes = WatchUpdate::Changes { revision: 7, events: vec![ended] };
        assert_eq!(tell(changes), "1970-01-01T00:00:01.000Z 7 ~ a.json gray canary has ended\n");
        let gone = v1::WatchEvent { deleted: true, ..event(|_| {}) };
        let changes = WatchUpdate::Changes { revision: 8, events: vec![gone] };
        assert_eq!(tell(changes), "1970-01-01T00:00:09.000Z 8 - a.json\n");
        assert_eq!(tell(WatchUpdate::Bookmark { revision: 9 }), "");
    }

    #[test]
    fn lines_of_json() {
        let gone = v1::WatchEvent { deleted: true, ..event(|_| {}) };
        let update = WatchUpdate::Changes { revision: 5, events: vec![event(|_| {}), gone] };
        let lines = json_lines(update);
        assert_eq!(lines[0]["item"]["release"]["content"], "{}");
        let expected = r#"{"item":{"group":"default","key":"a.json","namespace":"default"},"op":"delete","revision":5}"#;
        assert_eq!(lines[1].to_string(), expected);
        let update = WatchUpdate::Snapshot { revision: 3, events: Vec::new() };
        assert_eq!(
            json_lines(update)[0].to_string(),
            r#"{"events":0,"op":"snapshot","revision":3}"#
        );
    }
}
