//! Backups: what a snapshot file holds, and a new cluster made from one. A restored node begins as a
//! member of a cluster that has never met the old one: the registry is the file's, but cluster id, node
//! id, members, terms and log are new.
//!
//! Two things of the state are not the file's. What it remembers of members goes: the numbers are free
//! again, since no node of the old cluster is heard in the new one. And the revision moves on by
//! [`Target::revision_step`]: the old cluster may have given out revisions after the backup, and one of
//! the same number would be another state. So a watcher that resumes with a revision of the old
//! cluster, from before or after the backup, gets a snapshot, and a compare with one holds only for a
//! record that the backup has as it was. Of a part of the records nobody can tell whether the old cluster
//! has changed it since: in every namespace something of each class counts as removed at the revision with
//! which the new cluster begins, so that no part is unchanged since an older one.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::limits::{DEFAULT_NAMESPACE, WAL_SEGMENT_BYTES};
use crate::raft::codec;
use crate::raft::machine::raft_meta;
use crate::raft::types::{LeaderId, LogId, Member, Membership, StoredMembership};
use crate::state::{Class, Key, Meta, Record, Removal};
use crate::store::data_dir::{self, DataDir};
use crate::store::disk::{Disk, File, RealDisk};
use crate::store::image::{Point, Row, Tally};
use crate::store::snapshot::{self, Head, Reader, SnapshotMeta};
use crate::store::wal::{OpenError, WalCore, WalOptions, Write};

/// Why a backup cannot be read or restored.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}", path = path.display())]
    Snapshot { path: PathBuf, source: snapshot::Error },
    #[error("data directory: {0}")]
    DataDir(#[from] data_dir::Error),
    #[error("{path} is not empty; a backup is restored into a new directory", path = path.display())]
    NotEmpty { path: PathBuf },
    #[error("the log: {0}")]
    Log(#[from] OpenError),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// What a whole backup file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub meta: SnapshotMeta,
    /// Term of the last entry in it.
    pub term: u64,
    /// Number and peer address of the members at that entry.
    pub members: Vec<(u64, String)>,
}

/// The node that a backup becomes.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// Absent or empty; holds the node afterwards.
    pub data_dir: &'a Path,
    pub cluster_id: &'a str,
    pub node_id: u64,
    /// Number and peer address of every member of the new cluster.
    pub members: &'a [(u64, String)],
    /// How far its revisions are ahead of the backup's.
    pub revision_step: u64,
    /// Wall clock.
    pub now_ms: u64,
}

/// Reads a backup file completely and checks every byte of it.
pub fn inspect(path: &Path) -> Result<Backup, Error> {
    let (disk, name) = backup_disk(path)?;
    let failed = |source| Error::Snapshot { path: path.to_owned(), source };
    let meta = snapshot::verify(&disk, &name).map_err(failed)?;
    let raft =
        raft_meta(&meta.point).map_err(|source| Error::Io { path: path.to_owned(), source })?;
    let members =
        raft.last_membership.nodes().map(|(id, member)| (*id, member.peer_address.clone()));
    Ok(Backup {
        term: raft.last_log_id.map_or(0, |log_id| log_id.leader_id.term),
        members: members.collect(),
        meta,
    })
}

/// Makes a data directory of a new cluster from a backup. Every node of the new cluster restores the
/// same file with the same members; then all are started.
///
/// The result is what a node would hold that has applied everything up to the file's index, made its
/// snapshot there and purged its log: the file, written anew under the new cluster id and with the new
/// members, and a log that begins behind it. All nodes agree on that index, since its log id is the
/// same on all: leader 0 of term 0, as in the first entry of any cluster. Terms begin anew, so no
/// vote of the old cluster counts.
///
/// The directory appears complete or not at all: it is built under another name beside it.
pub fn restore(path: &Path, target: &Target<'_>) -> Result<SnapshotMeta, Error> {
    let backup = inspect(path)?;
    let failed = |at: &Path| {
        let path = at.to_owned();
        move |source| Error::Io { path, source }
    };
    refuse_used(target.data_dir)?;
    let building = building(target.data_dir)?;
    match fs::remove_dir_all(&building) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(&building)(error)),
    }
    let mut dir = DataDir::open(&building, target.cluster_id, target.node_id, target.now_ms)?;
    let meta = write_parts(path, &backup, target, &dir)?;
    dir.seal()?;
    drop(dir);
    fs::rename(&building, target.data_dir).map_err(failed(target.data_dir))?;
    let parent = parent(target.data_dir);
    fs::File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed(parent))?;
    Ok(meta)
}

/// Log and snapshot of the restored node.
fn write_parts(
    path: &Path,
    backup: &Backup,
    target: &Target<'_>,
    dir: &DataDir,
) -> Result<SnapshotMeta, Error> {
    let disk = |path: PathBuf| RealDisk::open(&path).map_err(|source| Error::Io { path, source });
    let point = point(backup.meta.point.index, target.revision_step, target.members);
    let log: Arc<dyn Disk> = Arc::new(disk(dir.log())?);
    let options =
        WalOptions { segment_bytes: WAL_SEGMENT_BYTES, create: true, log_id: rand::random() };
    let (mut core, _) = WalCore::open(log, options)?;
    let purged = Write::Purged { index: point.index, log_id: point.log_id.clone() };
    core.stage(&purged)
        .and_then(|()| core.close())
        .map_err(|source| Error::Io { path: dir.log(), source })?;

    let (source, name) = backup_disk(path)?;
    let failed = |source| Error::Snapshot { path: path.to_owned(), source };
    let reader = Reader::open(&source, &name).map_err(failed)?;
    let head = Head {
        cluster_id: target.cluster_id.to_owned(),
        point,
        revision: backup.meta.revision + target.revision_step,
        now_ms: backup.meta.now_ms,
    };
    let mut translation = Translation {
        revision_step: target.revision_step,
        revision: head.revision,
        tally: Tally { records: backup.meta.records, digest: backup.meta.digest },
        removals: BTreeMap::new(),
    };
    translation.remove_all(DEFAULT_NAMESPACE);
    let rows = reader.map(Some).chain([None]).flat_map(|row| match row {
        Some(Ok(row)) => match translation.rows(row) {
            Ok(rows) => rows.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        },
        Some(Err(error)) => vec![Err(error.to_string())],
        None => translation.rest().into_iter().map(Ok).collect(),
    });
    let meta = snapshot::write(&disk(dir.snapshots())?, &head, rows, None).map_err(failed)?;
    translation.tally.check(meta.records, meta.digest).map_err(|why| Error::Io {
        path: dir.snapshots(),
        source: io::Error::other(format!("what was written is not what was read: {why}")),
    })?;
    Ok(meta)
}

/// The records of the backup as the new cluster has them, in the order of their keys.
struct Translation {
    revision_step: u64,
    /// With which the new cluster begins.
    revision: u64,
    /// Kept to what comes out.
    tally: Tally,
    /// Those of the namespaces so far that have not come out yet.
    removals: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Translation {
    /// What comes out with a record of the backup.
    fn rows(&mut self, (key, value): Row) -> Result<Vec<Row>, String> {
        let decoded = Key::decode(&key).map_err(|error| error.to_string())?;
        let mut rows = Vec::new();
        if self.removals.first_key_value().is_some_and(|(first, _)| *first < key) {
            let later = self.removals.split_off(&key);
            rows = self.rest();
            self.removals = later;
        }
        match &decoded {
            Key::Meta => {
                let record = Record::decode(&decoded, &value).map_err(|error| error.to_string())?;
                let Record::Meta(Meta { revision, now_ms }) = record else {
                    unreachable!("{record:?} was decoded under the key of the meta")
                };
                let revision = revision + self.revision_step;
                let moved = Record::Meta(Meta { revision, now_ms }).encode();
                self.tally.remove(&key, &value);
                self.tally.add(&key, &moved);
                rows.push((key, moved));
            }
            // Others come instead.
            Key::Member { .. } | Key::Removal { .. } => self.tally.remove(&key, &value),
            Key::Namespace { name } => {
                self.remove_all(name);
                rows.push((key, value));
            }
            Key::Service { .. }
            | Key::Instance { .. }
            | Key::Session { .. }
            | Key::Reply { .. }
            | Key::Config { .. }
            | Key::Release { .. }
            | Key::Schema { .. }
            | Key::Report { .. }
            | Key::Counter { .. }
            | Key::Lock { .. }
            | Key::Alarm { .. }
            | Key::Saga { .. } => rows.push((key, value)),
        }
        Ok(rows)
    }

    /// The removals that have not come out yet.
    fn rest(&mut self) -> Vec<Row> {
        let rows: Vec<Row> = std::mem::take(&mut self.removals).into_iter().collect();
        for (key, value) in &rows {
            self.tally.add(key, value);
        }
        rows
    }

    /// Something of each class counts as removed from a namespace.
    fn remove_all(&mut self, namespace: &str) {
        for class in Class::ALL {
            let key = Key::Removal { namespace: namespace.into(), class };
            let removal = Record::Removal(Removal { revision: self.revision });
            self.removals.insert(key.encode(), removal.encode());
        }
    }
}

/// Where the new cluster begins. Nodes whose revisions began apart would have one log and two states: their logs begin
/// apart as well, so that consensus sees it.
fn point(index: u64, revision_step: u64, members: &[(u64, String)]) -> Point {
    let log_id = LogId { leader_id: LeaderId { term: 0, node_id: revision_step }, index };
    let voters = members.iter().map(|(id, _)| *id).collect();
    let nodes = members.iter().map(|(id, peer_address)| {
        let peer_address = peer_address.clone();
        // As at the beginning of any cluster: each member tells its own to the others.
        (*id, Member { peer_address, client_address: String::new() })
    });
    let nodes: BTreeMap<u64, Member> = nodes.collect();
    let membership = Membership::new(vec![voters], nodes).expect("every voter is among the nodes");
    let membership = StoredMembership::new(Some(log_id), membership);
    Point { index, log_id: codec::encode_log_id(&log_id), membership: codec::to_bytes(&membership) }
}

fn refuse_used(path: &Path) -> Result<(), Error> {
    match fs::read_dir(path) {
        Ok(mut entries) => match entries.next() {
            None => Ok(()),
            Some(_) => Err(Error::NotEmpty { path: path.to_owned() }),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { path: path.to_owned(), source }),
    }
}

/// The directory's name while it is being made; what an interrupted restore left has it too.
fn building(path: &Path) -> Result<PathBuf, Error> {
    let Some(name) = path.file_name() else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not the name of a directory");
        return Err(Error::Io { path: path.to_owned(), source });
    };
    let mut building = name.to_owned();
    building.push(".restoring");
    Ok(path.with_file_name(building))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

fn backup_disk(path: &Path) -> Result<(BackupDisk, String), Error> {
    let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let Some(name) = name else {
        let source = io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file");
        return Err(Error::Io { path: path.to_owned(), source });
    };
    Ok((BackupDisk(parent(path).to_owned()), name))
}

/// The directory of a backup, which may be anybody's: files in it are only read.
#[derive(Debug)]
struct BackupDisk(PathBuf);

#[derive(Debug)]
struct BackupFile(fs::File);

fn read_only<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "a backup is only read"))
}

impl Disk for BackupDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        read_only()
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(BackupFile(fs::File::open(self.0.join(name))?)))
    }

    fn create(&self, _: &str) -> io::Result<Arc<dyn File>> {
        read_only()
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        read_only()
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        read_only()
    }

    fn sync_dir(&self) -> io::Result<()> {
        read_only()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        read_only()
    }
}

impl File for BackupFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        read_only()
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        read_only()
    }
}

#[cfg(test)]
mod tests;
