//! `quorate config get`, `list`, `history` and `instances`.

use serde_json::json;

use super::{Context, Error, Name, Table, answers, output, pair, shown, view};
use crate::proto::v1;

#[derive(Debug, clap::Args)]
pub struct Get {
    #[command(flatten)]
    name: Name,
    /// This release, be it current, gray or past [default: the current one]
    #[arg(long, value_name = "VERSION", conflicts_with = "client")]
    version: Option<u64>,
    /// What this client gets, and why
    #[arg(long = "as", value_name = "CLIENT")]
    client: Option<String>,
    /// Label of that client; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, requires = "client")]
    client_label: Vec<(String, String)>,
    /// Show what is known of the item instead of its content; so does -w table
    #[arg(long)]
    meta: bool,
    /// Answer from what the asked node has, even if it is behind
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, clap::Args)]
pub struct List {
    /// Only keys that start with this
    #[arg(default_value = "")]
    prefix: String,
    /// Only this group [default: all]
    #[arg(short, long, value_name = "GROUP", default_value = "")]
    group: String,
    /// Only items with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Also deleted items
    #[arg(long)]
    deleted: bool,
    /// Answer from what the asked node has, even if it is behind
    #[arg(long)]
    stale: bool,
}

pub async fn get(args: Get, context: &Context) -> Result<(), Error> {
    let Get { name, version, client, client_label, meta, stale } = args;
    let (group, key) = name.parts()?;
    let asked_as = client.is_some();
    let labels = client_label.into_iter().collect();
    let request = v1::GetConfigRequest {
        namespace: context.namespace(),
        group,
        key,
        version: version.unwrap_or(0),
        client: client.map(|id| v1::ConfigClient { id, labels }),
        consistency: answers::wanted(stale).into(),
    };
    let answer = context.client()?.get_config(request).await?;
    let v1::GetConfigResponse { header, item, why } = answer;
    let item = item.unwrap_or_default();
    let printer = context.printer();
    if !printer.is_json() && !printer.is_table() && !meta {
        let release = item.release.unwrap_or_default();
        if asked_as {
            output::note(&format!("version {}: {why}", release.version));
        }
        return output::raw(&release.content);
    }
    let item = view::ConfigItem::of(*item, true);
    let value = json!({
        "revision": answers::revision(&header),
        "consistency": answers::consistency(&header),
        "why": why,
        "item": item,
    });
    printer.table(&value, || record(&item, &why))
}

fn record(item: &view::ConfigItem, why: &str) -> Table {
    let at =
        |at_ms: u64, revision: u64| format!("{} (revision {revision})", output::timestamp(at_ms));
    let mut fields = vec![
        ("key", item.key.clone()),
        ("group", item.group.clone()),
        ("namespace", item.namespace.clone()),
        ("labels", output::pairs(&item.labels)),
    ];
    if let Some(release) = &item.release {
        fields.extend([
            ("version", release.version.to_string()),
            ("why", why.to_owned()),
            ("format", release.format.to_owned()),
            ("size", output::bytes(release.bytes)),
            ("sha256", release.sha256.clone()),
            ("how", release.how()),
            ("author", release.author.clone()),
            ("comment", release.comment.clone()),
            ("released", at(release.at_ms, release.revision)),
        ]);
        if release.ending.is_some() {
            let ended = format!("{} {}", output::timestamp(release.ended_at_ms), release.ended_by);
            fields.push(("ended", ended));
        }
    }
    for gray in &item.gray {
        fields.push(("gray", super::gray::line(gray)));
    }
    fields.extend([
        ("keep", item.keep.to_string()),
        ("newest version", item.last_version.to_string()),
        ("created", at(item.created_at_ms, item.create_revision)),
        ("changed", at(item.modified_at_ms, item.mod_revision)),
    ]);
    fields.retain(|(_, value)| !value.is_empty());
    Table::record(fields)
}

pub async fn list(args: List, context: &Context) -> Result<(), Error> {
    let request = v1::ListConfigRequest {
        namespace: context.namespace(),
        group: args.group,
        prefix: args.prefix,
        labels: args.label.into_iter().collect(),
        deleted: args.deleted,
        consistency: answers::wanted(args.stale).into(),
        ..v1::ListConfigRequest::default()
    };
    let mut items = Vec::new();
    let take = |item| items.push(view::ConfigItem::of(item, false));
    context.client()?.all_config(request, take).await?;
    context.printer().table(&json!({"items": items}), || {
        let headers =
            ["group", "key", "version", "format", "size", "gray", "labels", "changed", "author"];
        let mut table = Table::new(&headers);
        for item in &items {
            let Some(release) = &item.release else { continue };
            let deleted = release.origin == "deleted";
            let rules: Vec<&str> = item.gray.iter().map(|gray| gray.rule.as_str()).collect();
            table.row([
                item.group.clone(),
                item.key.clone(),
                release.version.to_string(),
                if deleted { "deleted" } else { release.format }.to_owned(),
                output::bytes(release.bytes),
                rules.join(","),
                output::pairs(&item.labels),
                output::timestamp(release.at_ms),
                release.author.clone(),
            ]);
        }
        table
    })
}

pub async fn history(context: &Context, name: Name, stale: bool) -> Result<(), Error> {
    let (group, key) = name.parts()?;
    let request = v1::ConfigHistoryRequest {
        namespace: context.namespace(),
        group,
        key,
        consistency: answers::wanted(stale).into(),
    };
    let answer = context.client()?.config_history(request).await?;
    let releases: Vec<view::Release> =
        answer.releases.into_iter().map(|release| view::Release::of(release, false)).collect();
    let value = json!({
        "revision": answers::revision(&answer.header),
        "consistency": answers::consistency(&answer.header),
        "item": answer.item.map(|item| view::ConfigItem::of(item, false)),
        "releases": releases,
    });
    context.printer().table(&value, || {
        let headers = ["version", "time", "author", "size", "sha256", "how", "comment"];
        let mut table = Table::new(&headers);
        for release in &releases {
            table.row([
                release.version.to_string(),
                output::timestamp(release.at_ms),
                release.author.clone(),
                output::bytes(release.bytes),
                release.short_sha256(),
                release.how(),
                release.comment.clone(),
            ]);
        }
        table
    })
}

pub async fn instances(context: &Context, name: Name, stale: bool) -> Result<(), Error> {
    let (group, key) = name.parts()?;
    let request = v1::ConfigInstancesRequest {
        namespace: context.namespace(),
        group: group.clone(),
        key: key.clone(),
        consistency: answers::wanted(stale).into(),
    };
    let answer = context.client()?.config_instances(request).await?;
    let instances: Vec<view::Instance> = answer.instances.into_iter().map(Into::into).collect();
    let value = json!({
        "revision": answers::revision(&answer.header),
        "consistency": answers::consistency(&answer.header),
        "group": group,
        "key": key,
        "name": shown(&group, &key),
        "instances": instances,
    });
    context.printer().table(&value, || {
        let mut table = Table::new(&["client", "session", "version", "rule", "since", "lost"]);
        for instance in &instances {
            let lost = match instance.lost_at_ms {
                0 => String::new(),
                at_ms => output::timestamp(at_ms),
            };
            table.row([
                instance.client.clone(),
                instance.session.to_string(),
                instance.version.to_string(),
                instance.rule.clone(),
                output::timestamp(instance.since_ms),
                lost,
            ]);
        }
        table
    })
}
