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
    /// What this node had applied when it set the mark: a log that does not reach as far is not the
    /// one it had. None: not known.
    pub applied: Option<u64>,
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;
    use crate::state::State;
    use crate::store::checkpoint::{Checkpointer, Settings};
    use crate::store::disk::RealDisk;
    use crate::store::image::{Point, Tally};
    use crate::store::inbox::Inbox;
    use crate::store::recovery::{Origin, Recovery};
    use crate::store::snapshot::{Head, write as write_snapshot};

    #[test]
    fn a_mark_is_there_until_it_is_removed_and_is_never_guessed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
        let right = Some(Digest { index: 10, digest: u64::MAX, records: 3 });
        let sources = BTreeMap::from([(2, "b:1".to_owned()), (3, "c:1".to_owned())]);
        let mark = Mark { right, sources, applied: Some(17) };
        write(dir.path(), &mark).unwrap();
        assert_eq!(read(dir.path()).unwrap(), Some(mark));
        fs::write(path(dir.path()), "{").unwrap();
        assert!(read(dir.path()).is_err());
        remove(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap(), None);
    }

    /// A snapshot of the empty state at `index`, which tells states apart well enough here.
    fn file(disk: &dyn Disk, index: u64) -> SnapshotMeta {
        let rows: Vec<_> = State::default()
            .records()
            .map(|(key, record)| (key.encode(), record.encode()))
            .collect();
        let mut tally = Tally::default();
        rows.iter().for_each(|(key, value)| tally.add(key, value));
        let point = Point { index, ..Point::default() };
        let head = Head { cluster_id: "test".to_owned(), point, revision: 0, now_ms: 0 };
        write_snapshot(disk, &head, rows.into_iter().map(Ok::<_, Error>), Some(tally)).unwrap()
    }

    fn recover(dir: &Path, disk: &Arc<dyn Disk>) -> Recovery {
        let settings = Settings { cluster_id: "test".to_owned(), digest_every: 0 };
        let store = Box::new(SledStore::new(dir));
        let inbox = Arc::new(Inbox::new(|| {}));
        Checkpointer::recover(settings, store, disk.clone(), inbox).unwrap().1
    }

    fn received(disk: &dyn Disk, index: u64) -> SnapshotMeta {
        let meta = file(disk, index);
        let name = snapshot::received_name(index, 1);
        disk.rename(&meta.name, &name).unwrap();
        SnapshotMeta { name, ..meta }
    }

    /// A state that is older than what is there takes its place all the same, also when it is done
    /// twice because the first time was interrupted.
    #[test]
    fn another_state_takes_the_place_of_image_and_snapshots() {
        let dir = tempfile::tempdir().unwrap();
        let snapshots = dir.path().join("snapshots");
        let disk: Arc<dyn Disk> = Arc::new(RealDisk::open(snapshots).unwrap());
        file(&*disk, 40);
        file(&*disk, 50);
        let before = recover(dir.path(), &disk);
        assert_eq!(before.point.unwrap().index, 50);
        for index in [30, 20] {
            replace_state(dir.path(), &*disk, &received(&*disk, index)).unwrap();
            assert_eq!(snapshot::list(&*disk).unwrap(), [(index, snapshot::file_name(index))]);
        }
        let after = recover(dir.path(), &disk);
        assert_eq!(after.point.unwrap().index, 20);
        assert_eq!(after.origin, Origin::Snapshot(snapshot::file_name(20)));
        assert!(dir.path().join("image.damaged-1").exists(), "kept for inspection");
    }
}
