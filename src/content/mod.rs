//! What is inside a config item: is it well-formed, does it fit its schema, and how do two versions of
//! it differ. Pure functions of bytes; no state, no clock, no network, no files. Work, memory and stack
//! are bounded by constants of [`crate::limits`] whatever the bytes are: what would go beyond is
//! refused. Which item has which format and schema is decided elsewhere.

mod cost;
mod diff;
mod json;
mod properties;
mod schema;
mod toml;
mod yaml;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_properties;
#[cfg(test)]
mod tests_schema;

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::error::Error;
use crate::limits::CONFIG_VALUE_BYTES;

pub use diff::diff;
pub use schema::Schema;

/// How the bytes of an item are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Format {
    /// Any UTF-8.
    Text,
    /// RFC 8259, without duplicate keys, numbers within the range of a double.
    Json,
    /// YAML 1.2 with its core schema, any number of documents.
    Yaml,
    /// TOML 1.0.
    Toml,
    /// Java's `.properties`, as UTF-8.
    Properties,
    /// Any bytes.
    Binary,
}

impl Format {
    pub const ALL: [Format; 6] = [
        Format::Text,
        Format::Json,
        Format::Yaml,
        Format::Toml,
        Format::Properties,
        Format::Binary,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Json => "json",
            Format::Yaml => "yaml",
            Format::Toml => "toml",
            Format::Properties => "properties",
            Format::Binary => "binary",
        }
    }

    /// What the extension of a file's name suggests; `None` for one that says nothing certain.
    pub fn of_file_name(name: &str) -> Option<Format> {
        let file = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let (_, extension) = file.rsplit_once('.')?;
        let known = [
            ("json", Format::Json),
            ("yaml", Format::Yaml),
            ("yml", Format::Yaml),
            ("toml", Format::Toml),
            ("properties", Format::Properties),
        ];
        known.iter().find(|(known, _)| extension.eq_ignore_ascii_case(known)).map(|(_, f)| *f)
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let known = Format::ALL.into_iter().find(|format| format.as_str() == name);
        known.ok_or_else(|| {
            let names: Vec<_> = Format::ALL.iter().map(|format| format.as_str()).collect();
            Error::invalid("format", name, names.join(", "))
        })
    }
}

/// Why an item, or a schema, is refused, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// From 1; 0 = unknown.
    pub line: usize,
    /// In characters, from 1; 0 = unknown.
    pub column: usize,
    /// What breaks a schema, as a JSON pointer; empty for the whole document and for all else.
    pub path: String,
    pub why: String,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line > 0 {
            write!(f, "line {}, column {}: ", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(f, "at {}: ", self.path)?;
        }
        f.write_str(&self.why)
    }
}

impl std::error::Error for Malformed {}

impl Malformed {
    fn new(why: impl Into<String>) -> Self {
        Malformed { line: 0, column: 0, path: String::new(), why: why.into() }
    }

    fn at_path(path: impl Into<String>, why: impl Into<String>) -> Self {
        Malformed { path: path.into(), ..Malformed::new(why) }
    }

    /// The place of byte `offset`; one behind the end is where the text ends.
    fn at_offset(text: &[u8], offset: usize, why: impl Into<String>) -> Self {
        let before = &text[..offset.min(text.len())];
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Malformed { line, column: characters(&before[line_start..]) + 1, ..Malformed::new(why) }
    }
}

/// Characters that begin in these bytes of UTF-8.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// Refuses bytes that are not well-formed in their format.
pub fn check(format: Format, bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.len() > CONFIG_VALUE_BYTES {
        let why = format!("{} bytes; at most {CONFIG_VALUE_BYTES} are allowed", bytes.len());
        return Err(Malformed::new(why));
    }
    match format {
        Format::Binary => Ok(()),
        Format::Text => utf8(bytes).map(|_| ()),
        Format::Json => json::parse(utf8(bytes)?).map(|_| ()),
        Format::Yaml => yaml::parse(utf8(bytes)?).map(|_| ()),
        Format::Toml => toml::parse(utf8(bytes)?).map(|_| ()),
        Format::Properties => properties::parse(utf8(bytes)?).map(|_| ()),
    }
}

/// The documents of an item as values that a schema can speak of.
fn values(format: Format, bytes: &[u8]) -> Result<Vec<Value>, Malformed> {
    if bytes.len() > CONFIG_VALUE_BYTES {
        check(format, bytes)?;
    }
    match format {
        Format::Json => Ok(vec![json::parse(utf8(bytes)?)?]),
        Format::Yaml => Ok(yaml::parse(utf8(bytes)?)?.iter().map(yaml::Document::value).collect()),
        Format::Toml => Ok(vec![toml::parse(utf8(bytes)?)?]),
        Format::Properties => {
            let pairs = properties::parse(utf8(bytes)?)?;
            let object = pairs.into_iter().map(|(key, value)| (key, Value::String(value)));
            Ok(vec![Value::Object(object.collect())])
        }
        Format::Text | Format::Binary => Err(Malformed::new(format!(
            "an item of format {format} has no structure that a schema could describe; allowed: \
             json, yaml, toml, properties"
        ))),
    }
}

fn utf8(bytes: &[u8]) -> Result<&str, Malformed> {
    std::str::from_utf8(bytes).map_err(|error| {
        let at = error.valid_up_to();
        let why = match error.error_len() {
            Some(_) => format!("byte 0x{:02x} is not UTF-8", bytes[at]),
            None => "the text ends inside a character of UTF-8".to_owned(),
        };
        Malformed::at_offset(bytes, at, why)
    })
}

/// Some programs read over a byte order mark and some take it for content.
fn without_mark(text: &str) -> Result<&str, Malformed> {
    if text.starts_with('\u{feff}') {
        return Err(Malformed::at_offset(
            text.as_bytes(),
            0,
            "the text begins with a byte order mark; remove it",
        ));
    }
    Ok(text)
}

fn too_deep() -> String {
    format!("nested more than {} levels deep", crate::limits::CONTENT_DEPTH)
}
