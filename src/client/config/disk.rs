//! The last values on disk: a file for each item, a `ConfigItem` of the API as protobuf, see [`kept`]. What
//! is not exactly so is left alone and not served.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prost::Message as _;

use super::{ConfigValue, Name};
use crate::client::kept;
use crate::limits;
use crate::proto::v1;

const MAGIC: &[u8; 8] = b"QRCITEM\x01";
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
            && let Err(error) = kept::sync_directory(&self.directory)
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
        let checksum = kept::checksum(&payload);
        if self.known.get(name) == Some(&checksum) {
            return Ok(false);
        }
        kept::write(&path, MAGIC, &payload)?;
        self.known.insert(name.clone(), checksum);
        Ok(true)
    }

    fn path(&self, namespace: &str, group: &str, key: &str) -> PathBuf {
        kept::path(&self.directory, &[namespace, group, key], EXTENSION)
    }
}

fn read(path: &Path) -> io::Result<(v1::ConfigItem, u128)> {
    let payload = kept::read(path, MAGIC, limits::RECORD_BYTES)?;
    let item = v1::ConfigItem::decode(&*payload).map_err(io::Error::other)?;
    Ok((item, kept::checksum(&payload)))
}
