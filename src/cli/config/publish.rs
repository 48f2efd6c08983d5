//! `quorate config publish`, and what it shares with gray releases: content and its format.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Context, Error, Name, Note, answers, limits, pair, shown, view};
use crate::client::Client;
use crate::content::Format;
use crate::error;
use crate::proto::v1;

#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    content: Content,
    /// Only if the current version is this one; 0 = the item does not exist
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    /// Label of the item; may be repeated, and replaces all labels that it has
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Remove all labels of the item
    #[arg(long, conflicts_with = "label")]
    no_labels: bool,
    /// Past releases to keep, 1..=1000 [default: as it is, 50 for a new item]
    #[arg(long, value_name = "N", value_parser = keep)]
    keep: Option<u32>,
    #[command(flatten)]
    note: Note,
}

/// Where content comes from, and what it is.
#[derive(Debug, clap::Args)]
#[group(id = "content", required = true, multiple = true, args = ["file", "value"])]
pub struct Content {
    /// File with the content; - is standard input
    #[arg(conflicts_with = "value")]
    file: Option<PathBuf>,
    /// The content itself
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    value: Option<String>,
    /// text, json, yaml, toml, properties or binary [default: by the extension of the key or of the
    /// file, else as it is, else text or binary]
    #[arg(long, value_name = "FORMAT", value_parser = view::parse_format)]
    format: Option<Format>,
}

impl Content {
    pub fn bytes(&self) -> Result<Vec<u8>, Error> {
        match (&self.value, &self.file) {
            (Some(value), _) => Ok(value.clone().into_bytes()),
            (None, Some(file)) => read(file, limits::CONFIG_VALUE_BYTES),
            (None, None) => Err(Error::usage("FILE or --value is missing".to_owned())),
        }
    }

    /// The format as far as the command line says it.
    fn format(&self, key: &str) -> Option<Format> {
        let file = self.file.as_deref().and_then(Path::to_str);
        self.format
            .or_else(|| Format::of_file_name(key))
            .or_else(|| file.and_then(Format::of_file_name))
    }
}

/// Reads a file, or standard input, of at most that many bytes.
pub fn read(path: &Path, at_most: usize) -> Result<Vec<u8>, Error> {
    let all = |source: &mut dyn Read| {
        let mut bytes = Vec::new();
        source.take(at_most as u64 + 1).read_to_end(&mut bytes)?;
        match bytes.len() > at_most {
            true => Err(io::Error::other(format!("more than {at_most} bytes"))),
            false => Ok(bytes),
        }
    };
    match path.to_str() {
        Some("-") => all(&mut io::stdin()).map_err(|error| Error::io("standard input", error)),
        Some(_) | None => std::fs::File::open(path)
            .and_then(|mut file| all(&mut file))
            .map_err(|error| Error::io(path.display(), error)),
    }
}

/// The format of content that nothing names.
pub fn format_of_bytes(bytes: &[u8]) -> Format {
    if std::str::from_utf8(bytes).is_ok() { Format::Text } else { Format::Binary }
}

fn keep(given: &str) -> Result<u32, String> {
    let allowed = limits::CONFIG_KEEP;
    let keep = given.parse().ok().filter(|keep| allowed.contains(&u64::from(*keep)));
    keep.ok_or_else(|| format!("allowed: {}..={}", allowed.start(), allowed.end()))
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let Args { name, content, expect, label, no_labels, keep, note } = args;
    let (group, key) = name.parts()?;
    let request = v1::PublishConfigRequest {
        namespace: context.namespace(),
        group,
        key,
        content: content.bytes()?,
        replace_labels: no_labels || !label.is_empty(),
        labels: label.into_iter().collect(),
        keep: keep.unwrap_or(0),
        author: note.author(),
        comment: note.comment,
        expected_version: expect,
        ..v1::PublishConfigRequest::default()
    };
    send(context, request, &content).await
}

/// Publishes and tells it.
pub async fn send(
    context: &Context,
    mut request: v1::PublishConfigRequest,
    content: &Content,
) -> Result<(), Error> {
    let client = context.client()?;
    let answer = match content.format(&request.key) {
        Some(format) => {
            request.format = view::wire_format(format).into();
            client.publish_config(request.clone(), None).await?
        }
        None => as_it_is(&client, &mut request).await?,
    };
    let revision = answers::revision(&answer.header);
    let format = request.format();
    let value = json!({
        "revision": revision,
        "version": answer.version,
        "changed": answer.changed,
        "namespace": request.namespace,
        "group": request.group,
        "key": request.key,
        "format": view::format_name(format),
    });
    context.printer().answer(&value, || {
        let name = shown(&request.group, &request.key);
        let format = view::format_name(format);
        let rule = request.gray.as_ref().map(|terms| format!(" under rule {}", terms.rule));
        let rule = rule.unwrap_or_default();
        match answer.changed {
            true => format!("{name} version {} published{rule} ({format})", answer.version),
            false => format!("{name} is as asked{rule}, at version {}", answer.version),
        }
    })
}

/// Publishes in the format that the item has; with the version that was looked at, so that nobody
/// changes the format meanwhile.
async fn as_it_is(
    client: &Client,
    request: &mut v1::PublishConfigRequest,
) -> Result<v1::PublishConfigResponse, Error> {
    let given = request.expected_version;
    let mut attempt = 0;
    loop {
        let get = v1::GetConfigRequest {
            namespace: request.namespace.clone(),
            group: request.group.clone(),
            key: request.key.clone(),
            ..v1::GetConfigRequest::default()
        };
        let release = match client.get_config(get).await {
            Ok(answer) => answer.item.and_then(|item| item.release),
            Err(error::Error::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        let format = match &release {
            Some(release) => release.format(),
            None => view::wire_format(format_of_bytes(&request.content)),
        };
        request.format = format.into();
        let seen = release.map_or(0, |release| release.version);
        request.expected_version = Some(given.unwrap_or(seen));
        attempt += 1;
        match client.publish_config(request.clone(), None).await {
            Err(error::Error::CompareFailed { .. })
                if given.is_none() && attempt < limits::PUBLISH_ATTEMPTS => {}
            other => return Ok(other?),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn content(file: Option<&str>, format: Option<Format>) -> Content {
        Content { file: file.map(PathBuf::from), value: None, format }
    }

    #[test]
    fn formats_are_guessed_from_names() {
        assert_eq!(content(Some("x.yaml"), None).format("a.json"), Some(Format::Json));
        assert_eq!(content(Some("d/x.yml"), None).format("a"), Some(Format::Yaml));
        assert_eq!(content(Some("-"), None).format("a.b"), None);
        assert_eq!(content(None, Some(Format::Text)).format("a.json"), Some(Format::Text));
        assert_eq!(format_of_bytes("ü".as_bytes()), Format::Text);
        assert_eq!(format_of_bytes(&[0xff]), Format::Binary);
    }

    #[test]
    fn files_that_are_too_long_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"12345").unwrap();
        assert_eq!(read(file.path(), 5).unwrap(), b"12345");
        let error = read(file.path(), 4).unwrap_err().to_string();
        assert!(error.ends_with("more than 4 bytes"), "{error}");
    }
}
