//! `quorate config import`: makes the items of a namespace as the files of a directory are. What is so
//! already is left alone, so that a second import does nothing; what differs is only changed when that
//! is asked for, and only from what was looked at. One item that is refused does not stop the others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use serde::Serialize;

use super::tree::{self, Entry};
use super::{Context, Error, Note, Table, limits, output, publish, view};
use crate::client::Client;
use crate::content::{self, Format};
use crate::error;
use crate::proto::v1;

#[derive(Debug, clap::Args)]
pub struct Args {
    directory: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Change items that differ from their files
    #[arg(long)]
    overwrite: bool,
    #[command(flatten)]
    note: Note,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Created,
    Updated,
    /// It is as the file says.
    Unchanged,
    /// It differs, and was not to be changed.
    Differs,
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Updated => "updated",
            Outcome::Unchanged => "unchanged",
            Outcome::Differs => "differs",
            Outcome::Failed => "failed",
        }
    }

    fn is_bad(self) -> bool {
        matches!(self, Outcome::Differs | Outcome::Failed)
    }
}

#[derive(Debug, Serialize)]
struct Row {
    group: String,
    key: String,
    file: String,
    result: Outcome,
    /// Of the item afterwards; 0 = unknown.
    version: u64,
    error: Option<String>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Report {
    namespace: String,
    dry_run: bool,
    items: Vec<Row>,
    failed: usize,
}

/// One item as the directory has it.
#[derive(Debug)]
struct Wanted {
    group: String,
    key: String,
    file: String,
    /// What the manifest says; None = the file alone is there.
    entry: Option<Entry>,
}

/// One item as the cluster has it.
#[derive(Debug, Clone)]
struct Present {
    /// 0 = deleted.
    version: u64,
    format: v1::ConfigFormat,
    sha256: String,
    labels: BTreeMap<String, String>,
    keep: u32,
}

struct Importer<'a> {
    client: Client,
    namespace: String,
    directory: &'a Path,
    present: BTreeMap<(String, String), Present>,
    dry_run: bool,
    overwrite: bool,
    author: String,
    comment: String,
}

pub async fn run(context: &Context, args: Args) -> Result<(), Error> {
    let Args { directory, dry_run, overwrite, note } = args;
    let (wanted, mut rows, ignored) = read(&directory)?;
    let client = context.client()?;
    let namespace = context.namespace();
    let mut present = BTreeMap::new();
    let request = v1::ListConfigRequest {
        namespace: namespace.clone(),
        deleted: true,
        ..v1::ListConfigRequest::default()
    };
    let take = |item: v1::ConfigItem| {
        let release = item.release.unwrap_or_default();
        let deleted = release.origin() == v1::ConfigOrigin::Deleted;
        let one = Present {
            version: if deleted { 0 } else { release.version },
            format: release.format(),
            sha256: release.sha256,
            labels: item.labels,
            keep: item.keep,
        };
        present.insert((item.group, item.key), one);
    };
    client.all_config(request, take).await?;
    let comment = match note.comment.as_str() {
        "" => "imported".to_owned(),
        comment => comment.to_owned(),
    };
    let importer = Importer {
        client,
        namespace: namespace.clone(),
        directory: &directory,
        present,
        dry_run,
        overwrite,
        author: note.author(),
        comment,
    };
    let sent = wanted.into_iter().map(|wanted| importer.one(wanted));
    let done: Vec<Row> =
        futures::stream::iter(sent).buffered(limits::IMPORT_IN_FLIGHT).collect().await;
    rows.extend(done);
    rows.sort_by(|a, b| (&a.group, &a.key, &a.file).cmp(&(&b.group, &b.key, &b.file)));
    let failed = rows.iter().filter(|row| row.result.is_bad()).count();
    let report = Report { namespace, dry_run, items: rows, failed };
    for file in ignored {
        output::note(&format!(
            "{file} is no item: items are files in the directory of their group"
        ));
    }
    context.printer().table(&report, || table(&report))?;
    if failed > 0 { Err(Error::Told) } else { Ok(()) }
}

fn table(report: &Report) -> Table {
    let mut table = Table::new(&["group", "key", "result", "version", "notes"]);
    for row in &report.items {
        let notes = row.error.iter().chain(&row.notes).cloned().collect::<Vec<_>>().join("; ");
        let key = if row.key.is_empty() { row.file.clone() } else { row.key.clone() };
        let version = match row.version {
            0 => String::new(),
            version => version.to_string(),
        };
        table.row([row.group.clone(), key, row.result.as_str().to_owned(), version, notes]);
    }
    table
}

/// The items, rows for what is none, and what is left aside.
type Read = (Vec<Wanted>, Vec<Row>, Vec<String>);

/// Looks at the directory.
fn read(directory: &Path) -> Result<Read, Error> {
    let wrong = |error| Error::io(directory.display(), error);
    let manifest = tree::manifest(directory)
        .map_err(|why| Error::io(directory.display(), std::io::Error::other(why)))?;
    let found = tree::walk(directory).map_err(wrong)?;
    let failed = |group: &str, key: &str, file: String, why: String| Row {
        group: group.to_owned(),
        key: key.to_owned(),
        file,
        result: Outcome::Failed,
        version: 0,
        error: Some(why),
        notes: Vec::new(),
    };
    let mut rows = Vec::new();
    let refused: BTreeMap<String, String> = found.refused.into_iter().collect();
    let mut files: BTreeSet<String> = found.files.into_iter().collect();
    let mut wanted = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in manifest.into_iter().flat_map(|manifest| manifest.items) {
        let Entry { group, key, .. } = &entry;
        let file = tree::file_of(group, key);
        if entry.file != file {
            let why = format!("manifest.json names the file {:?}; it must be {file}", entry.file);
            rows.push(failed(group, key, entry.file.clone(), why));
        } else if !seen.insert(file.clone()) {
            let why = "it stands twice in manifest.json".to_owned();
            rows.push(failed(group, key, file, why));
        } else if files.remove(&file) {
            let (group, key) = (group.clone(), key.clone());
            wanted.push(Wanted { group, key, file, entry: Some(entry) });
        } else if !refused.contains_key(&file) {
            let why = "manifest.json names it, but there is no such file".to_owned();
            rows.push(failed(group, key, file, why));
        }
    }
    for file in files {
        let names = file.split_once('/').and_then(|(group, key)| {
            let names = (tree::unescape(group)?, tree::unescape(key)?);
            // So that each item has one file.
            (tree::file_of(&names.0, &names.1) == file).then_some(names)
        });
        match names {
            Some((group, key)) => wanted.push(Wanted { group, key, file, entry: None }),
            None => rows.push(failed("", "", file, "its name stands for no item".to_owned())),
        }
    }
    rows.extend(refused.into_iter().map(|(file, why)| failed("", "", file, why)));
    Ok((wanted, rows, found.ignored))
}

impl Importer<'_> {
    async fn one(&self, wanted: Wanted) -> Row {
        let mut notes = Vec::new();
        let result = self.make_so(&wanted, &mut notes).await;
        let (result, version, error) = match result {
            Ok((outcome, version)) => (outcome, version, None),
            Err(why) => (Outcome::Failed, 0, Some(why)),
        };
        let Wanted { group, key, file, .. } = wanted;
        Row { group, key, file, result, version, error, notes }
    }

    async fn make_so(
        &self,
        wanted: &Wanted,
        notes: &mut Vec<String>,
    ) -> Result<(Outcome, u64), String> {
        let bytes = tree::read(self.directory, &wanted.file, limits::CONFIG_VALUE_BYTES)
            .map_err(|error| error.to_string())?;
        let sha256 = tree::sha256(&bytes);
        let present = self.present.get(&(wanted.group.clone(), wanted.key.clone()));
        let lives = present.filter(|present| present.version > 0);
        let format = match (&wanted.entry, lives) {
            (Some(entry), _) => view::parse_format(&entry.format)
                .map_err(|why| format!("manifest.json: format {:?}: {why}", entry.format))?,
            (None, Some(present)) => view::parse_format(view::format_name(present.format))?,
            (None, None) => Format::of_file_name(&wanted.key)
                .unwrap_or_else(|| publish::format_of_bytes(&bytes)),
        };
        if let Some(entry) = &wanted.entry
            && !entry.sha256.is_empty()
            && entry.sha256 != sha256
        {
            notes.push("edited since the export".to_owned());
        }
        let has = self.schema(wanted).await.map_err(|error| error.to_string())?;
        let wants = match &wanted.entry {
            Some(entry) => entry.schema.clone(),
            None => has.clone(),
        };
        let mut differs = Vec::new();
        if let Some(present) = lives {
            differs.extend((present.sha256 != sha256).then_some("content"));
            differs.extend((present.format != view::wire_format(format)).then_some("format"));
            if let Some(entry) = &wanted.entry {
                differs.extend((present.labels != entry.labels).then_some("labels"));
                differs.extend((present.keep != entry.keep).then_some("keep"));
            }
        }
        let publishes = lives.is_none() || !differs.is_empty();
        if has != wants {
            differs.push("schema");
        }
        let now = lives.map_or(0, |present| present.version);
        if !publishes && differs.is_empty() {
            return Ok((Outcome::Unchanged, now));
        }
        if !differs.is_empty() && !self.overwrite && (lives.is_some() || has.is_some()) {
            notes.push(format!("another {}; --overwrite changes it", differs.join(", ")));
            return Ok((Outcome::Differs, now));
        }
        let outcome = if lives.is_some() { Outcome::Updated } else { Outcome::Created };
        if lives.is_some() {
            notes.push(differs.join(", "));
        }
        if self.dry_run {
            check(format, &bytes, wants.as_deref())?;
            return Ok((outcome, now));
        }
        let schema_last = self.put_schema(wanted, has, wants.clone(), publishes).await?;
        let mut version = now;
        if publishes {
            version = self.publish(wanted, format, bytes, now).await?;
        }
        if schema_last {
            let request = self.schema_request(wanted, wants.unwrap_or_default());
            self.client.put_schema(request, None).await.map_err(|error| error.to_string())?;
        }
        Ok((outcome, version))
    }

    async fn schema(&self, wanted: &Wanted) -> Result<Option<String>, error::Error> {
        let request = v1::GetSchemaRequest {
            namespace: self.namespace.clone(),
            group: wanted.group.clone(),
            key: wanted.key.clone(),
            ..v1::GetSchemaRequest::default()
        };
        match self.client.get_schema(request).await {
            Ok(answer) => Ok(Some(answer.schema)),
            Err(error::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn schema_request(&self, wanted: &Wanted, schema: String) -> v1::PutSchemaRequest {
        v1::PutSchemaRequest {
            namespace: self.namespace.clone(),
            group: wanted.group.clone(),
            key: wanted.key.clone(),
            schema,
            request_id: None,
        }
    }

    /// Makes the schema so before the content comes. True: it does not fit the content that is still
    /// there and must come afterwards.
    async fn put_schema(
        &self,
        wanted: &Wanted,
        has: Option<String>,
        wants: Option<String>,
        publishes: bool,
    ) -> Result<bool, String> {
        if has == wants {
            return Ok(false);
        }
        let result = match wants {
            Some(schema) => {
                let request = self.schema_request(wanted, schema);
                self.client.put_schema(request, None).await.map(|_| ())
            }
            None => {
                let request = v1::DeleteSchemaRequest {
                    namespace: self.namespace.clone(),
                    group: wanted.group.clone(),
                    key: wanted.key.clone(),
                    request_id: None,
                };
                self.client.delete_schema(request, None).await.map(|_| ())
            }
        };
        match result {
            Ok(()) => Ok(false),
            Err(error::Error::Malformed { .. }) if publishes => Ok(true),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn publish(
        &self,
        wanted: &Wanted,
        format: Format,
        content: Vec<u8>,
        now: u64,
    ) -> Result<u64, String> {
        let request = v1::PublishConfigRequest {
            namespace: self.namespace.clone(),
            group: wanted.group.clone(),
            key: wanted.key.clone(),
            format: view::wire_format(format).into(),
            content,
            labels: wanted.entry.as_ref().map(|entry| entry.labels.clone()).unwrap_or_default(),
            replace_labels: wanted.entry.is_some(),
            keep: wanted.entry.as_ref().map_or(0, |entry| entry.keep),
            author: self.author.clone(),
            comment: self.comment.clone(),
            // Only what was looked at is replaced.
            expected_version: Some(now),
            ..v1::PublishConfigRequest::default()
        };
        match self.client.publish_config(request, None).await {
            Ok(answer) => Ok(answer.version),
            Err(error::Error::CompareFailed { .. }) => {
                Err("somebody else has changed it meanwhile; import again".to_owned())
            }
            Err(error) => Err(error.to_string()),
        }
    }
}

/// What the node would check first.
fn check(format: Format, bytes: &[u8], schema: Option<&str>) -> Result<(), String> {
    let checked = match schema {
        None => content::check(format, bytes),
        Some(schema) => match content::Schema::compile(schema) {
            Ok(schema) => schema.check(format, bytes),
            Err(malformed) => return Err(format!("schema: {malformed}")),
        },
    };
    checked.map_err(|malformed| malformed.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// A tree that somebody wants us to fall for.
    #[test]
    fn what_a_directory_says_is_looked_at() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        tree::write(root, "g/a.json", b"{}").unwrap();
        tree::write(root, "g/twice", b"").unwrap();
        tree::write(root, "g/new%2Fkey", b"").unwrap();
        tree::write(root, "g/%61", b"").unwrap();
        tree::write(root, "g/%zz", b"").unwrap();
        let entry = |key: &str, file: &str| {
            format!(
                r#"{{"group": "g", "key": "{key}", "file": "{file}", "format": "text", "keep": 50}}"#
            )
        };
        let items = [
            entry("a.json", "g/a.json"),
            entry("twice", "g/twice"),
            entry("twice", "g/twice"),
            entry("../../etc/passwd", "g/../../etc/passwd"),
            entry("b", "/etc/passwd"),
            entry("missing", "g/missing"),
        ];
        let text = format!(
            r#"{{"quorate_config": 1, "namespace": "n", "revision": 1, "items": [{}]}}"#,
            items.join(",")
        );
        std::fs::write(root.join(tree::MANIFEST), text).unwrap();
        let (wanted, rows, ignored) = read(root).unwrap();
        let found: Vec<(&str, bool)> =
            wanted.iter().map(|one| (one.key.as_str(), one.entry.is_some())).collect();
        assert_eq!(found, [("a.json", true), ("twice", true), ("new/key", false)]);
        let told: Vec<String> = rows
            .iter()
            .map(|row| format!("{} {}", row.file, row.error.as_deref().unwrap_or_default()))
            .collect();
        let expected = [
            "g/twice it stands twice",
            "g/../../etc/passwd manifest.json names the file",
            "/etc/passwd manifest.json names the file",
            "g/missing manifest.json names it, but",
            "g/%61 its name stands for no item",
            "g/%zz its name stands for no item",
        ];
        assert_eq!(told.len(), expected.len(), "{told:?}");
        for (told, expected) in told.iter().zip(expected) {
            assert!(told.starts_with(expected), "{told}");
        }
        assert!(ignored.is_empty());
    }

    #[test]
    fn a_dry_run_checks() {
        assert!(check(Format::Json, b"{}", None).is_ok());
        let error = check(Format::Json, b"{\n\"a\": }", None).unwrap_err();
        assert!(error.starts_with("line 2"), "{error}");
        let schema = r#"{"required": ["a"]}"#;
        assert!(check(Format::Json, b"{}", Some(schema)).is_err());
        assert!(check(Format::Json, b"{}", Some("{")).unwrap_err().starts_with("schema: "));
    }
}
