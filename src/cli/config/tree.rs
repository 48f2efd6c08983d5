//! A namespace as a directory: GROUP/KEY for each item, and `manifest.json` with what a file cannot say.
//!
//! A name of the registry becomes one file name, whatever is in it: all bytes but letters, digits, `.`,
//! `_` and `-` are written as `%` and two hexadecimal digits. So no name leads out of the directory, and
//! no key is the directory of another one. Reading goes through no symlink.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::limits;

pub const MANIFEST: &str = "manifest.json";
/// Of the manifest's form.
pub const FORM: u32 = 1;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub quorate_config: u32,
    pub namespace: String,
    /// Of the answer that the last of the items came with.
    pub revision: u64,
    /// By group and key.
    pub items: Vec<Entry>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub group: String,
    pub key: String,
    /// From the directory on; follows from the names.
    pub file: String,
    pub format: String,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub keep: u32,
    /// When it was exported.
    #[serde(default)]
    pub version: u64,
    #[serde(default)]
    pub sha256: String,
    #[serde(default)]
    pub schema: Option<String>,
}

/// The file of an item, from the directory on.
pub fn file_of(group: &str, key: &str) -> String {
    let group = match group {
        // The manifest's place.
        MANIFEST => format!("%{:02X}{}", MANIFEST.as_bytes()[0], &MANIFEST[1..]),
        group => escape(group),
    };
    format!("{group}/{}", escape(key))
}

/// One name of a file system for any name. A name that is too long for it is cut and gets its hash
/// behind `%~`, which no other name does: then only the manifest knows the item.
fn escape(name: &str) -> String {
    let mut escaped = String::new();
    for (i, byte) in name.bytes().enumerate() {
        let plain = byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if plain && !(i == 0 && byte == b'.') {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    if escaped.len() <= limits::EXPORT_NAME_BYTES {
        return escaped;
    }
    let hash = &sha256(name.as_bytes())[..32];
    escaped.truncate(limits::EXPORT_NAME_BYTES - hash.len() - 2);
    format!("{escaped}%~{hash}")
}

/// The name that a file stands for; None when it stands for none.
pub fn unescape(file: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = file.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, behind) = rest.split_at_checked(2)?;
        rest = behind;
        let digits = std::str::from_utf8(digits).ok()?;
        if !digits.bytes().all(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b)) {
            return None;
        }
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
    }
    String::from_utf8(bytes).ok()
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The manifest of a directory; None when it has none.
pub fn manifest(directory: &Path) -> Result<Option<Manifest>, String> {
    let bytes = match read(directory, MANIFEST, limits::MANIFEST_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{MANIFEST}: {error}")),
    };
    let manifest: Manifest =
        serde_json::from_slice(&bytes).map_err(|error| format!("{MANIFEST}: {error}"))?;
    if manifest.quorate_config != FORM {
        return Err(format!(
            "{MANIFEST}: quorate_config is {}; this release reads {FORM}",
            manifest.quorate_config
        ));
    }
    Ok(Some(manifest))
}

/// Reads a regular file of the directory without following a symlink in it.
pub fn read(directory: &Path, file: &str, at_most: usize) -> io::Result<Vec<u8>> {
    if let Some((group, _)) = file.split_once('/') {
        // That it is a directory is told when the file in it is opened.
        refuse_link(&directory.join(group))?;
    }
    let path = directory.join(file);
    refuse_link(&path)?;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits();
    let opened = OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(&path)?;
    if !opened.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    opened.take(at_most as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > at_most {
        return Err(io::Error::other(format!("more than {at_most} bytes")));
    }
    Ok(bytes)
}

fn refuse_link(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_symlink() {
        return Err(io::Error::other("a symlink, which is not followed"));
    }
    Ok(())
}

/// Writes a file as a whole; a symlink in its place is replaced, not followed.
pub fn write(directory: &Path, file: &str, bytes: &[u8]) -> io::Result<()> {
    if let Some((group, _)) = file.split_once('/') {
        let group = directory.join(group);
        match fs::create_dir(&group) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&group)?.is_dir() {
                    let why = format!("{} is not a directory", group.display());
                    return Err(io::Error::other(why));
                }
            }
            Err(error) => return Err(error),
        }
    }
    let path = directory.join(file);
    // Not a name of an item: those do not begin with a dot.
    let temporary = path.with_file_name(format!(".{}.tmp", std::process::id()));
    let mut out = File::create(&temporary)?;
    out.write_all(bytes)?;
    drop(out);
    fs::rename(&temporary, &path)
}

/// What lies in a directory.
#[derive(Debug, Default)]
pub struct Found {
    /// Files of items, from the directory on.
    pub files: Vec<String>,
    /// What cannot be an item, and why.
    pub refused: Vec<(String, String)>,
    /// Files beside the groups.
    pub ignored: Vec<String>,
}

/// Looks for items: files in directories of the directory. What begins with a dot is not looked at.
pub fn walk(directory: &Path) -> io::Result<Found> {
    let mut found = Found::default();
    for (name, path) in entries(directory)? {
        let kind = fs::symlink_metadata(&path)?;
        if name == MANIFEST && !kind.is_dir() {
            continue;
        }
        if kind.is_symlink() {
            found.refused.push((name, "a symlink, which is not followed".to_owned()));
            continue;
        }
        if !kind.is_dir() {
            found.ignored.push(name);
            continue;
        }
        for (inner, path) in entries(&path)? {
            let file = format!("{name}/{inner}");
            let kind = fs::symlink_metadata(&path)?;
            if kind.is_symlink() {
                found.refused.push((file, "a symlink, which is not followed".to_owned()));
            } else if kind.is_dir() {
                let why = "a directory; a key with / is a file with %2F in its name";
                found.refused.push((file, why.to_owned()));
            } else if !kind.is_file() {
                found.refused.push((file, "not a regular file".to_owned()));
            } else {
                found.files.push(file);
            }
        }
    }
    Ok(found)
}

/// By name; names that are not UTF-8 stand for no item, and are shown as far as they can be.
fn entries(directory: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') {
            entries.push((name, entry.path()));
        }
    }
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_and_files() {
        for (group, key, file) in [
            ("default", "app.json", "default/app.json"),
            ("g/h", "a/../b", "g%2Fh/a%2F..%2Fb"),
            ("a:b", "..", "a%3Ab/%2E."),
            ("manifest.json", "manifest.json", "%6Danifest.json/manifest.json"),
            ("g", "100%", "g/100%25"),
        ] {
            assert_eq!(file_of(group, key), file);
            let (g, k) = file.split_once('/').unwrap();
            assert_eq!((unescape(g).as_deref(), unescape(k).as_deref()), (Some(group), Some(key)));
        }
        for wrong in ["%", "%2", "%2f", "%zz", "%ff%fe", "%FF", "a%~00"] {
            assert_eq!(unescape(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn long_names_fit_and_stay_apart() {
        let one = format!("a{}", "/".repeat(127));
        let other = format!("a{}b", "/".repeat(126));
        let (one, other) = (file_of("g", &one), file_of("g", &other));
        assert_ne!(one, other);
        for file in [one, other] {
            let name = file.strip_prefix("g/").unwrap();
            assert_eq!(name.len(), limits::EXPORT_NAME_BYTES);
            assert_eq!(unescape(name), None);
        }
        let fits = format!("a{}", "/".repeat(66));
        assert_eq!(unescape(&escape(&fits)), Some(fits));
    }

    #[test]
    fn symlinks_are_not_followed() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "s").unwrap();
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        write(root, "g/a", b"one").unwrap();
        write(root, "g/a", b"two").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), root.join("g/link")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.join("away")).unwrap();
        fs::create_dir(root.join("g/inner")).unwrap();
        fs::create_dir(root.join(".git")).unwrap();
        fs::write(root.join("README"), "").unwrap();
        let found = walk(root).unwrap();
        assert_eq!(
            (found.files, found.ignored),
            (vec!["g/a".to_owned()], vec!["README".to_owned()])
        );
        let refused: Vec<&str> = found.refused.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(refused, ["away", "g/inner", "g/link"]);
        assert_eq!(read(root, "g/a", 3).unwrap(), b"two");
        assert!(read(root, "g/a", 2).unwrap_err().to_string().contains("more than 2 bytes"));
        for file in ["g/link", "away/secret"] {
            assert!(read(root, file, 10).unwrap_err().to_string().contains("symlink"), "{file}");
        }
        assert!(write(root, "away/new", b"").is_err());
        assert!(!outside.path().join("new").exists());
        // The link is replaced, what it pointed to stays.
        write(root, "g/link", b"mine").unwrap();
        assert_eq!(fs::read(outside.path().join("secret")).unwrap(), b"s");
        assert_eq!(read(root, "g/link", 10).unwrap(), b"mine");
    }

    #[test]
    fn manifests() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(manifest(directory.path()), Ok(None));
        let says = |text: &str| {
            fs::write(directory.path().join(MANIFEST), text).unwrap();
            manifest(directory.path())
        };
        let good =
            r#"{"quorate_config": 1, "namespace": "n", "revision": 1, "items": [], "later": 1}"#;
        assert!(says(good).unwrap().is_some());
        assert!(says(&good.replace("1,", "2,")).unwrap_err().contains("this release reads 1"));
        assert!(says("{").unwrap_err().starts_with("manifest.json: "));
    }
}
