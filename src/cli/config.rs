//! `quorate config`: items of configuration, their releases, gray releases and schemas.

mod export;
mod gray;
mod import;
mod publish;
mod schema;
mod show;
mod tree;
mod view;
mod watch;

use std::path::PathBuf;

use serde_json::json;

use super::output::{self, Table};
use super::view as answers;
use super::{Context, Error, milliseconds, pair};
use crate::limits;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a release of an item
    Publish(publish::Args),
    /// Print the content of an item, byte by byte
    Get(show::Get),
    /// List items
    List(show::List),
    /// Delete an item; its history stays, and a rollback brings it back
    Delete {
        #[command(flatten)]
        name: Name,
        /// Only if the current version is this one
        #[arg(long, value_name = "VERSION")]
        expect: Option<u64>,
        /// Forget its history and its reports too
        #[arg(long)]
        purge: bool,
        #[command(flatten)]
        note: Note,
    },
    /// List the releases of an item, the newest first
    History {
        #[command(flatten)]
        name: Name,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Show what differs between two releases, as a unified diff
    Diff {
        #[command(flatten)]
        name: Name,
        /// The older version [default: the one before the other]
        from: Option<u64>,
        /// The newer version [default: the current one]
        to: Option<u64>,
    },
    /// Make a new release with the content of an earlier one
    Rollback {
        #[command(flatten)]
        name: Name,
        version: u64,
        /// Only if the current version is this one
        #[arg(long, value_name = "VERSION")]
        expect: Option<u64>,
        #[command(flatten)]
        note: Note,
    },
    /// Give a release to some clients first
    #[command(subcommand)]
    Gray(gray::Command),
    /// Show which clients run which version of an item
    Instances {
        #[command(flatten)]
        name: Name,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Print changes as they happen, until Ctrl-C
    Watch(watch::Args),
    /// Write all items of the namespace into a directory, one file for each
    Export {
        directory: PathBuf,
        /// Replace an earlier export
        #[arg(long)]
        overwrite: bool,
    },
    /// Publish the files of a directory that was exported or laid out in the same way
    Import(import::Args),
    /// Say what the content of an item must be like
    #[command(subcommand)]
    Schema(schema::Command),
}

/// Which item is meant.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Name {
    /// The item; what stands before the first / is its group, unless --group is given
    #[arg(value_name = "[GROUP/]KEY")]
    key: String,
    /// Its group [default: default]; the key may then contain /
    #[arg(short, long, value_name = "GROUP")]
    group: Option<String>,
}

/// Who makes a change, and why.
#[derive(Debug, Clone, Default, PartialEq, clap::Args)]
pub struct Note {
    /// Who makes the change [default: the name of the user]
    #[arg(long, value_name = "NAME", env = "QUORATE_AUTHOR")]
    author: Option<String>,
    /// Why
    #[arg(long, value_name = "TEXT", default_value = "")]
    comment: String,
}

impl Name {
    /// Group and key.
    fn parts(&self) -> Result<(String, String), Error> {
        let (group, key) = match (&self.group, self.key.split_once('/')) {
            (Some(group), _) => (group.as_str(), self.key.as_str()),
            (None, Some((group, key))) => (group, key),
            (None, None) => (limits::DEFAULT_GROUP, self.key.as_str()),
        };
        if group.is_empty() || key.is_empty() {
            let why = format!("{:?}: expected KEY or GROUP/KEY", self.key);
            return Err(Error::usage(why));
        }
        Ok((group.to_owned(), key.to_owned()))
    }
}

/// As one word, which names the item when it is typed again. Should the group contain a / it does not;
/// such a name is typed with --group.
fn shown(group: &str, key: &str) -> String {
    match group == limits::DEFAULT_GROUP && !key.contains('/') {
        true => key.to_owned(),
        false => format!("{group}/{key}"),
    }
}

impl Note {
    fn author(&self) -> String {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let given = self.author.clone().filter(|author| !author.is_empty());
        given
            .or_else(|| ["USER", "LOGNAME", "USERNAME"].into_iter().find_map(set))
            .unwrap_or_default()
    }
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Command::Publish(args) => publish::run(args, context).await,
            Command::Get(args) => show::get(args, context).await,
            Command::List(args) => show::list(args, context).await,
            Command::Delete { name, expect, purge, note } => {
                delete(context, name, expect, purge, note).await
            }
            Command::History { name, stale } => show::history(context, name, stale).await,
            Command::Diff { name, from, to } => diff(context, name, from, to).await,
            Command::Rollback { name, version, expect, note } => {
                rollback(context, name, version, expect, note).await
            }
            Command::Gray(command) => command.run(context).await,
            Command::Instances { name, stale } => show::instances(context, name, stale).await,
            Command::Watch(args) => watch::run(context, args).await,
            Command::Export { directory, overwrite } => {
                export::run(context, directory, overwrite).await
            }
            Command::Import(args) => import::run(context, args).await,
            Command::Schema(command) => command.run(context).await,
        }
    }
}

async fn delete(
    context: &Context,
    name: Name,
    expected_version: Option<u64>,
    purge: bool,
    note: Note,
) -> Result<(), Error> {
    let (group, key) = name.parts()?;
    let request = v1::DeleteConfigRequest {
        namespace: context.namespace(),
        group: group.clone(),
        key: key.clone(),
        expected_version,
        author: note.author(),
        comment: note.comment,
        purge,
        request_id: None,
    };
    let answer = context.client()?.delete_config(request, None).await?;
    let revision = answers::revision(&answer.header);
    let value = json!({"revision": revision, "removed": answer.removed, "version": answer.version});
    let name = shown(&group, &key);
    context.printer().answer(&value, || match (answer.removed, purge) {
        (true, true) => format!("{name} and its history deleted at revision {revision}"),
        (true, false) => format!("{name} deleted, which is version {}", answer.version),
        (false, _) => format!("{name} does not exist"),
    })
}

async fn rollback(
    context: &Context,
    name: Name,
    version: u64,
    expected_version: Option<u64>,
    note: Note,
) -> Result<(), Error> {
    let (group, key) = name.parts()?;
    let request = v1::RollbackConfigRequest {
        namespace: context.namespace(),
        group: group.clone(),
        key: key.clone(),
        version,
        expected_version,
        author: note.author(),
        comment: note.comment,
        request_id: None,
    };
    let answer = context.client()?.rollback_config(request, None).await?;
    let revision = answers::revision(&answer.header);
    let value = json!({"revision": revision, "version": answer.version, "changed": answer.changed});
    let name = shown(&group, &key);
    context.printer().answer(&value, || match answer.changed {
        true => {
            format!("{name} is as in version {version}, which is now version {}", answer.version)
        }
        false => {
            format!("{name} is as in version {version} already, at version {}", answer.version)
        }
    })
}

async fn diff(
    context: &Context,
    name: Name,
    from: Option<u64>,
    to: Option<u64>,
) -> Result<(), Error> {
    let (group, key) = name.parts()?;
    let request = v1::DiffConfigRequest {
        namespace: context.namespace(),
        group,
        key,
        from: from.unwrap_or(0),
        to: to.unwrap_or(0),
        ..v1::DiffConfigRequest::default()
    };
    let answer = context.client()?.diff_config(request).await?;
    let printer = context.printer();
    if printer.is_json() {
        let v1::DiffConfigResponse { header, from, to, diff } = answer;
        let revision = answers::revision(&header);
        let consistency = answers::consistency(&header);
        return printer.json(&json!({
            "revision": revision, "consistency": consistency, "from": from, "to": to, "diff": diff,
        }));
    }
    output::raw(answer.diff.as_bytes())
}

/// One of each record, whose fields docs/CLI.md describes.
#[cfg(test)]
pub fn records() -> Vec<serde_json::Value> {
    let release = view::Release::of(v1::ConfigRelease::default(), true);
    let gate = v1::Gate {
        measure: Some(v1::gate::Measure::Counter(v1::GateCounter::default())),
        ..v1::Gate::default()
    };
    let terms = v1::GrayTerms { gate: Some(gate), ..v1::GrayTerms::default() };
    let gray = v1::GrayRelease { terms: Some(terms), ..v1::GrayRelease::default() };
    let gray = view::Gray::of(gray, false);
    vec![
        json!(view::ConfigItem::of(v1::ConfigItem::default(), false)),
        json!(release),
        json!(gray.gate.as_ref().and_then(|gate| gate.counter.as_ref())),
        json!(gray.gate),
        json!(gray),
        json!(view::Instance::from(v1::ConfigInstance::default())),
    ]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names() {
        let name = |key: &str, group: Option<&str>| {
            let name = Name { key: key.to_owned(), group: group.map(str::to_owned) };
            name.parts().map(|(group, key)| format!("{group} {key}"))
        };
        assert_eq!(name("a.json", None).unwrap(), "default a.json");
        assert_eq!(name("g/a", None).unwrap(), "g a");
        assert_eq!(name("g/a/b", None).unwrap(), "g a/b");
        assert_eq!(name("a/b", Some("g/h")).unwrap(), "g/h a/b");
        for (key, group) in [("", None), ("g/", None), ("/a", None), ("a", Some(""))] {
            assert_eq!(name(key, group).unwrap_err().code(), crate::options::exit::USAGE);
        }
        for (group, key) in [("default", "a"), ("default", "a/b"), ("g", "a"), ("g", "a/b")] {
            let typed = Name { key: shown(group, key), group: None };
            assert_eq!(typed.parts().unwrap(), (group.to_owned(), key.to_owned()));
        }
    }

    #[test]
    fn authors() {
        let note = |author: &str| Note { author: Some(author.to_owned()), comment: String::new() };
        assert_eq!(note("ann").author(), "ann");
        assert_eq!(note("").author(), Note::default().author());
    }
}
