//! `quorate config export`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use futures::StreamExt as _;
use serde_json::json;

use super::tree::{self, Entry, Manifest};
use super::{Context, Error, answers, limits, output, view};
use crate::client::Client;
use crate::error;
use crate::options::exit;
use crate::proto::v1;

pub async fn run(context: &Context, directory: PathBuf, overwrite: bool) -> Result<(), Error> {
    let wrong = |error| Error::io(directory.display(), error);
    fs::create_dir_all(&directory).map_err(wrong)?;
    let before = earlier(&directory, overwrite)?;
    let client = context.client()?;
    let namespace = context.namespace();
    let mut manifest = Manifest {
        quorate_config: tree::FORM,
        namespace: namespace.clone(),
        revision: 0,
        items: Vec::new(),
    };
    let (mut bytes, mut gray) = (0, 0);
    let mut request = v1::ListConfigRequest {
        namespace: namespace.clone(),
        contents: true,
        ..v1::ListConfigRequest::default()
    };
    loop {
        let page = client.list_config(request.clone()).await?;
        manifest.revision = answers::revision(&page.header);
        let Some(last) = page.items.last() else { break };
        request.after_group.clone_from(&last.group);
        request.after_key.clone_from(&last.key);
        let written = page.items.into_iter().map(|item| {
            gray += item.gray.len();
            entry(&client, &directory, item)
        });
        let written: Vec<_> =
            futures::stream::iter(written).buffered(limits::IMPORT_IN_FLIGHT).collect().await;
        for entry in written {
            let (entry, length) = entry?;
            bytes += length;
            manifest.items.push(entry);
        }
        if !page.more {
            break;
        }
    }
    let mut text =
        serde_json::to_string_pretty(&manifest).map_err(|error| Error::io("JSON", error.into()))?;
    text.push('\n');
    tree::write(&directory, tree::MANIFEST, text.as_bytes()).map_err(wrong)?;
    // What the earlier export had and this one has not.
    let files: BTreeSet<&str> = manifest.items.iter().map(|entry| entry.file.as_str()).collect();
    let mut removed = 0;
    for file in before.iter().filter(|file| !files.contains(file.as_str())) {
        if fs::symlink_metadata(directory.join(file)).is_ok_and(|kind| kind.is_file()) {
            fs::remove_file(directory.join(file)).map_err(wrong)?;
            removed += 1;
        }
    }
    if gray > 0 {
        output::note(&format!("{gray} gray releases are not part of an export"));
    }
    let value = json!({
        "directory": directory.display().to_string(),
        "namespace": namespace,
        "revision": manifest.revision,
        "items": manifest.items.len(),
        "bytes": bytes,
        "removed": removed,
    });
    context.printer().answer(&value, || {
        let (items, size) = (manifest.items.len(), output::bytes(bytes));
        format!("{items} items of namespace {namespace} ({size}) in {}", directory.display())
    })
}

/// The files of an earlier export that is to be replaced. Anything else that lies there is not ours to
/// touch.
fn earlier(directory: &Path, overwrite: bool) -> Result<BTreeSet<String>, Error> {
    let wrong = |error| Error::io(directory.display(), error);
    let empty = fs::read_dir(directory).map_err(wrong)?.next().is_none();
    if empty {
        return Ok(BTreeSet::new());
    }
    let shown = directory.display();
    if !overwrite {
        let why = format!("{shown} is not empty; --overwrite replaces an earlier export");
        return Err(Error::refused(exit::ERROR, why));
    }
    let refused = |why: String| Error::refused(exit::ERROR, format!("{shown}: {why}"));
    let manifest = tree::manifest(directory).map_err(refused)?;
    let manifest = manifest
        .ok_or_else(|| refused("not empty, and no export: it has no manifest.json".to_owned()))?;
    Ok(manifest.items.iter().map(|entry| tree::file_of(&entry.group, &entry.key)).collect())
}

/// Writes the file of an item.
async fn entry(
    client: &Client,
    directory: &Path,
    item: v1::ConfigItem,
) -> Result<(Entry, u64), Error> {
    let request = v1::GetSchemaRequest {
        namespace: item.namespace.clone(),
        group: item.group.clone(),
        key: item.key.clone(),
        ..v1::GetSchemaRequest::default()
    };
    let schema = match client.get_schema(request).await {
        Ok(answer) => Some(answer.schema),
        Err(error::Error::NotFound { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    let release = item.release.unwrap_or_default();
    let file = tree::file_of(&item.group, &item.key);
    tree::write(directory, &file, &release.content)
        .map_err(|error| Error::io(directory.join(&file).display(), error))?;
    let entry = Entry {
        format: view::format_name(release.format()).to_owned(),
        group: item.group,
        key: item.key,
        file,
        labels: item.labels,
        keep: item.keep,
        version: release.version,
        sha256: release.sha256,
        schema,
    };
    Ok((entry, release.bytes))
}
