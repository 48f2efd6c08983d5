//! The mark of a node that must take its state from another member, and how one state takes the
//! place of the other. Votes and log stay: they are not what is wrong.
//!
//! Invariant: while the mark is there this node takes part in nothing. It is written before anything
//! is touched and removed after everything is in place, so a start that finds it does all of it again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::checkpoint::{Digest, Error};
use super::data_dir::replace_file;
use super::disk::Disk;
use super::image::ImageStore as _;
use super::recovery::set_aside;
use super::sled_image::sync_dir;
use super::sled_store::SledStore;
use super::snapshot::{self, SnapshotMeta};

/// Why this node needs another state, and who has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What most voters hold at an index at which this node held something else. None: this node has
    /// lost its state, and any member's will do.
    pub right: Option<Digest>,
    /// Number and peer address of the members to ask.
    pub sources: BTreeMap<u64, String>,
}

/// The mark's file.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("rebuild")
}

/// Durable on return.
pub fn write(data_dir: &Path, mark: &Mark) -> io::Result<()> {
    let json = serde_json::to_vec_pretty(mark).map_err(io::Error::other)?;
    replace_file(&path(data_dir), &json)
}

pub(super) fn read(data_dir: &Path) -> io::Result<Option<Mark>> {
    match fs::read(path(data_dir)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(json) => serde_json::from_slice(&json).map(Some).map_err(io::Error::other),
    }
}

/// Durable on return.
pub fn remove(data_dir: &Path) -> io::Result<()> {
    fs::remove_file(path(data_dir))?;
    sync_dir(data_dir)
}

/// Makes a received file the only state there is: the next recovery builds the image from it. What
/// was there is kept for inspection, as what is damaged. Says what it did.
pub fn replace_state(
    data_dir: &Path,
    disk: &dyn Disk,
    received: &SnapshotMeta,
) -> Result<Vec<String>, Error> {
    let io = |what: &str| {
        let what = what.to_owned();
        move |source| Error::Io { what, source }
    };
    let mut report = Vec::new();
    let mut image = SledStore::new(data_dir);
    if image.dir().exists() {
        let place = image.set_aside().map_err(io("setting the image aside"))?;
        report.push(format!("the image was set aside as {place}"));
    }
    for (_, name) in snapshot::list(disk).map_err(io("listing the snapshots"))? {
        set_aside(disk, &name)?;
        report.push(format!("{name} was set aside"));
    }
    let place = snapshot::file_name(received.point.index);
    disk.rename(&received.name, &place).map_err(io("putting the received snapshot in place"))?;
    disk.sync_dir().map_err(io("putting the received snapshot in place"))?;
    Ok(report)
}
