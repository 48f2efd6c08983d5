//! The last values on disk: one file for each item, replaced as a whole.
//!
//! A file is 8 bytes of magic, the length and the checksum of what follows (8 and 16 bytes, little
//! endian), and a `ConfigItem` of the API as protobuf. Its name is the hash of the item's names. What
//! is not exactly so is left alone and not served.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;
use xxhash_rust::xxh3::xxh3_128;

use super::{ConfigValue, Name};
use crate::limits;
use crate::proto::v1;

const MAGIC: &[u8; 8] = b"QRCITEM\x01";
const HEAD: usize = 8 + 8 + 16;
const EXTENSION: &str = "item";

/// The files of one cache.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    namespace: String,
    /// The checksum of the file of each item, as far as there is one.
    known: BTreeMap<Name, u128>,
}

impl Store {
    /// Reads the items that are wanted.
    pub fn open(
        directory: PathBuf,
        namespace: &str,
        wanted: impl Fn(&v1::ConfigItem) -> bool,
    ) -> io::Result<(Store, Vec<v1::ConfigItem>)> {
        fs::create_dir_all(&directory)?;
        let mut store =
            Store { directory, namespace: namespace.to_owned(), known: BTreeMap::new() };
        let mut items = Vec::new();
        let mut paths: Vec<PathBuf> = fs::read_dir(&store.directory)?
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<io::Result<_>>()?;
        paths.sort();
        for path in paths {
            if path.extension().is_none_or(|extension| extension != EXTENSION) {
                continue;
            }
            match read(&path) {
                Ok((item, checksum)) => {
                    if path != store.path(&item.namespace, &item.group, &item.key) {
                        tracing::warn!(path = %path.display(), "a file of another item is ignored");
                    } else if wanted(&item) {
                        store.known.insert((item.group.clone(), item.key.clone()), checksum);
                        items.push(item);
                    }
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a file of configuration is ignored");
                }
            }
        }
        Ok((store, items))
    }

    /// Makes the files as these values are; returns the first error and the names that failed.
    pub fn save(
        &mut self,
        states: Vec<(Name, Option<Arc<ConfigValue>>)>,
    ) -> Option<(io::Error, Vec<Name>)> {
        let mut first = None;
        let mut failed = Vec::new();
        let mut done = Vec::new();
        for (name, value) in states {
            match self.save_one(&name, value.as_deref()) {
                Ok(true) => done.push(name),
                Ok(false) => {}
                Err(error) => {
                    first.get_or_insert(error);
                    failed.push(name);
                }
            }
        }
        // The renames and removals are on disk only after this.
        if !done.is_empty()
            && let Err(error) = sync_directory(&self.directory)
        {
            first.get_or_insert(error);
            for name in &done {
                self.known.remove(name);
            }
            failed.extend(done);
        }
        first.map(|error| (error, failed))
    }

    /// True when a file has changed.
    fn save_one(&mut self, name: &Name, value: Option<&ConfigValue>) -> io::Result<bool> {
        let path = self.path(&self.namespace, &name.0, &name.1);
        let Some(value) = value else {
            self.known.remove(name);
            return match fs::remove_file(&path) {
                Ok(()) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(error),
            };
        };
        let payload = value.item().encode_to_vec();
        let checksum = xxh3_128(&payload);
        if self.known.get(name) == Some(&checksum) {
            return Ok(false);
        }
        let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
        let mut file = create(&temporary)?;
        file.write_all(MAGIC)?;
        file.write_all(&(payload.len() as u64).to_le_bytes())?;
        file.write_all(&checksum.to_le_bytes())?;
        file.write_all(&payload)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        self.known.insert(name.clone(), checksum);
        Ok(true)
    }

    fn path(&self, namespace: &str, group: &str, key: &str) -> PathBuf {
        // No name holds a line break.
        let hash = xxh3_128(format!("{namespace}\n{group}\n{key}").as_bytes());
        self.directory.join(format!("{hash:032x}.{EXTENSION}"))
    }
}

fn read(path: &Path) -> io::Result<(v1::ConfigItem, u128)> {
    let damaged = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let mut bytes = Vec::new();
    let longest = HEAD + limits::RECORD_BYTES;
    File::open(path)?.take(longest as u64 + 1).read_to_end(&mut bytes)?;
    let Some((head, payload)) = bytes.split_at_checked(HEAD) else {
        return Err(damaged("it is too short"));
    };
    let (magic, rest) = head.split_at(MAGIC.len());
    let (length, checksum) = rest.split_at(8);
    if magic != MAGIC {
        return Err(damaged("it is of another kind"));
    }
    if length != (payload.len() as u64).to_le_bytes() {
        return Err(damaged("its length is not what it says"));
    }
    let found = xxh3_128(payload);
    if checksum != found.to_le_bytes() {
        return Err(damaged("its checksum is wrong"));
    }
    let item = v1::ConfigItem::decode(payload).map_err(|error| damaged(&error.to_string()))?;
    Ok((item, found))
}

/// For nobody else to read: configuration may hold secrets.
#[cfg(unix)]
fn create(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

#[cfg(not(unix))]
fn create(path: &Path) -> io::Result<File> {
    File::create(path)
}

#[cfg(unix)]
fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Elsewhere a directory cannot be opened, and a rename is on disk by itself.
#[cfg(not(unix))]
fn sync_directory(_: &Path) -> io::Result<()> {
    Ok(())
}
