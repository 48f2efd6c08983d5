//! The checkpointer: carries applied entries into the image, makes snapshot files from it, installs
//! received ones, and puts the state together again at start-up. Synchronous; see [`super::driver`]
//! for who calls it.
//!
//! Invariants:
//! - the image is never ahead of the own log's last sync, or a power failure would leave a node that
//!   has applied what its log does not know;
//! - a snapshot file in place was read back completely, and takes the image's place from the moment
//!   of its rename when it is newer;
//! - the newest of image and snapshots that is whole is the state; nothing is put together from two.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::image::{self, Image, ImageMeta, ImageStore, Point, Tally};
use super::inbox::Inbox;
use super::pending::AppliedEntry;
use super::recovery::{self, Recovery, first_meta, load_snapshot, refill};
use super::snapshot::{self, Head, SnapshotMeta, is_received};
use crate::failpoint::failpoint;
use crate::limits::{DIGESTS_KEPT, SNAPSHOT_LACKS_BYTES, SNAPSHOTS_KEPT};
use crate::state::{Meta, State};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image failed. The checkpointer does nothing any more: restart the node, which sets the
    /// image aside and rebuilds it.
    #[error(transparent)]
    Image(#[from] image::Error),
    #[error(transparent)]
    Snapshot(#[from] snapshot::Error),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    #[error("nothing has been applied and synced yet: there is nothing to make a snapshot of")]
    Nothing,
    #[error("snapshot {name} ends at index {index}; this node has applied {applied}")]
    Stale { name: String, index: u64, applied: u64 },
    #[error("the checkpointer has stopped")]
    Stopped,
    #[error("the checkpointer panicked")]
    Panicked,
    #[error("{limit} requests wait for the checkpointer already")]
    Busy { limit: usize },
}

/// The digest of the state at one applied index; equal on all replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Digest {
    pub index: u64,
    pub digest: u64,
    pub records: u64,
}

/// Settings of a checkpointer.
#[derive(Debug)]
pub struct Settings {
    pub cluster_id: String,
    /// Every node computes its digest at the multiples of this index; 0 = never.
    pub digest_every: u64,
}

#[derive(Debug)]
pub struct Checkpointer {
    cluster_id: String,
    image: Box<dyn Image>,
    disk: Arc<dyn Disk>,
    inbox: Arc<Inbox>,
    digests: VecDeque<Digest>,
    /// The newest snapshot known to be whole.
    snapshot: Option<SnapshotMeta>,
    failed: bool,
}

impl Checkpointer {
    /// Reads back what the disk holds; see the module's invariants. An error means that the disk
    /// itself fails, not that something on it is damaged.
    pub fn recover(
        settings: Settings,
        store: Box<dyn ImageStore>,
        disk: Arc<dyn Disk>,
        inbox: Arc<Inbox>,
    ) -> Result<(Checkpointer, Recovery), Error> {
        let (image, recovery) = recovery::recover(store, &*disk, &settings.cluster_id)?;
        {
            let mut pending = inbox.settled();
            pending.set_digest_every(settings.digest_every);
            if recovery.point.is_none() {
                pending.seed(recovery.state.records());
            }
        }
        let mut checkpointer = Checkpointer {
            cluster_id: settings.cluster_id,
            image,
            disk,
            inbox,
            digests: VecDeque::new(),
            snapshot: recovery.snapshot.clone(),
            failed: false,
        };
        if let Some(meta) = checkpointer.image.meta()
            && checkpointer.inbox.settled().has_digest(meta.point.index)
        {
            checkpointer.keep_digest(&meta);
        }
        Ok((checkpointer, recovery))
    }

    /// Takes the next applied entry, in log order, every index once. The apply path does this through
    /// its own reference to the inbox.
    pub fn absorb(&self, entry: AppliedEntry) {
        self.inbox.absorb(entry);
    }

    /// Writes what the own log has synced, as [`Inbox::set_synced`] said, to the image: one batch per
    /// stage. Returns the image's meta, None when nothing was ever written.
    pub fn checkpoint(&mut self) -> Result<Option<ImageMeta>, Error> {
        self.usable()?;
        let stages = self.inbox.settled().take_stages();
        for stage in stages {
            failpoint!(CheckpointBeforeWrite, |error| {
                self.failed = true;
                Err(image::Error::Io(error).into())
            });
            let image = &mut self.image;
            let point = stage.point.expect("only a stage with a point is taken");
            if let Some(at) = image.meta().map(|meta| meta.point.index) {
                assert!(point.index > at, "entries up to {} for an image at {at}", point.index);
            }
            match image.write(&mut stage.changes.into_writes(), &point) {
                Ok(meta) if stage.closed => {
                    self.keep_digest(&meta);
                }
                Ok(_) => {}
                Err(error) => {
                    self.failed = true;
                    return Err(error.into());
                }
            }
            failpoint!(CheckpointAfterWrite);
        }
        Ok(self.image.meta())
    }

    /// True when the image lacks little, and has most of the entries since the newest snapshot: a snapshot of it lets most
    /// of the log be purged.
    pub fn is_image_recent(&self) -> bool {
        let Some(image) = self.image.meta().map(|meta| meta.point.index) else { return false };
        let snapshot = self.snapshot.as_ref().map_or(0, |meta| meta.point.index);
        let pending = self.inbox.settled();
        let lacks = pending.last_index().map_or(0, |applied| applied - image);
        lacks < image.saturating_sub(snapshot) && pending.log_bytes() <= SNAPSHOT_LACKS_BYTES
    }

    /// A snapshot file of what is in the image, which nothing changes meanwhile, unless the newest one is that and still
    /// whole. The newest files stay, older ones go.
    pub fn snapshot(&mut self) -> Result<SnapshotMeta, Error> {
        self.usable()?;
        let meta = self.image.meta().ok_or(Error::Nothing)?;
        if let Some(last) = &self.snapshot
            && last.point == meta.point
            && last.digest == meta.digest
        {
            match snapshot::verify(&*self.disk, &last.name) {
                Ok(_) => return Ok(last.clone()),
                Err(error) => tracing::error!(%error, "a snapshot is made again"),
            }
        }
        failpoint!(SnapshotCreate, |source| {
            Err(Error::Io { what: "beginning a snapshot".to_owned(), source })
        });
        let Checkpointer { image, disk, .. } = self;
        let mut rows = image.scan().peekable();
        let Meta { revision, now_ms } = match rows.peek() {
            Some(Ok((key, value))) => first_meta(key, value)
                .ok_or_else(|| image::Error::damaged("it does not begin with the state's meta"))
                .inspect_err(|_| self.failed = true)?,
            // The writer meets the error, or the missing records.
            Some(Err(_)) | None => Meta::default(),
        };
        let cluster_id = self.cluster_id.clone();
        let head = Head { cluster_id, point: meta.point.clone(), revision, now_ms };
        let expected = Tally { records: meta.records, digest: meta.digest };
        let written = snapshot::write(&**disk, &head, rows, Some(expected));
        if let Err(snapshot::Error::Source { .. }) = &written {
            self.failed = true;
        }
        let written = written?;
        self.snapshot = Some(written.clone());
        self.remove_old(None);
        Ok(written)
    }

    /// Replaces the state by that of a snapshot file: one that [`super::receiver::Receiver::finish`]
    /// has named, or one that is in place already. Whatever step a crash interrupts, the next start
    /// finds the old state or the new one. A received file that is refused is removed.
    pub fn install(&mut self, name: &str) -> Result<(SnapshotMeta, State), Error> {
        self.usable()?;
        let checked = self.check_install(name);
        if checked.is_err() && is_received(name) {
            // Best effort: start-up removes it as well.
            let _ = self.disk.remove(name);
        }
        let (meta, state) = checked?;
        // An error from here on leaves open which state the disk holds: only a start can tell.
        self.failed = true;
        failpoint!(SnapshotInstall, |source| {
            Err(Error::Io { what: format!("installing {name}"), source })
        });
        let meta = self.flip(meta)?;
        failpoint!(SnapshotInstalled);
        refill(&mut *self.image, &*self.disk, &meta)?;
        self.failed = false;
        self.snapshot = Some(meta.clone());
        self.digests.clear();
        let Point { index, .. } = meta.point;
        let mut pending = self.inbox.settled();
        pending.clear();
        if pending.has_digest(index) {
            self.digests.push_back(Digest { index, digest: meta.digest, records: meta.records });
        }
        drop(pending);
        self.remove_old(Some(index));
        Ok((meta, state))
    }

    /// Puts a snapshot in place. From then on it is the state, since it is newer than the image.
    fn flip(&self, meta: SnapshotMeta) -> Result<SnapshotMeta, Error> {
        let place = snapshot::file_name(meta.point.index);
        let io = |source| Error::Io { what: format!("putting {place} in place"), source };
        if place != meta.name {
            match self.disk.create(&snapshot::installing_name(meta.point.index)) {
                // A crash came before the snapshot was in place.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                result => drop(result.map_err(io)?),
            }
            self.disk.sync_dir().map_err(io)?;
            self.disk.rename(&meta.name, &place).map_err(io)?;
        }
        self.disk.sync_dir().map_err(io)?;
        Ok(SnapshotMeta { name: place, ..meta })
    }

    /// All of a snapshot is read and understood before anything changes.
    fn check_install(&self, name: &str) -> Result<(SnapshotMeta, State), Error> {
        let (meta, state) = load_snapshot(&*self.disk, name, &self.cluster_id)?;
        let at = self.image.meta().map(|meta| meta.point.index);
        let applied = self.inbox.settled().last_index().max(at);
        if let Some(applied) = applied.filter(|applied| *applied > meta.point.index) {
            let name = name.to_owned();
            return Err(Error::Stale { name, index: meta.point.index, applied });
        }
        Ok((meta, state))
    }

    /// The digests at the last few indices where every node computes one, oldest first.
    pub fn digests(&self) -> impl Iterator<Item = &Digest> {
        self.digests.iter()
    }

    /// The newest snapshot known to be whole.
    pub fn newest_snapshot(&self) -> Option<&SnapshotMeta> {
        self.snapshot.as_ref()
    }

    pub fn image_meta(&self) -> Option<ImageMeta> {
        self.image.meta()
    }

    /// Bytes of the image on disk.
    pub fn image_bytes(&self) -> u64 {
        self.image.bytes()
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// True when the image has failed.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    fn usable(&self) -> Result<(), Error> {
        if self.failed {
            return Err(image::Error::damaged("it was given up after an earlier error").into());
        }
        Ok(())
    }

    fn keep_digest(&mut self, meta: &ImageMeta) -> Digest {
        let ImageMeta { point, records, digest } = meta;
        let digest = Digest { index: point.index, digest: *digest, records: *records };
        self.digests.push_back(digest);
        if self.digests.len() > DIGESTS_KEPT {
            self.digests.pop_front();
        }
        digest
    }

    /// Keeps the newest snapshot files, of which the newest one was `installed`, or is the node's own. That an old one
    /// stays is no reason to fail.
    fn remove_old(&self, installed: Option<u64>) {
        let remove = || {
            let found = snapshot::list(&*self.disk)?;
            let old = found.len().saturating_sub(SNAPSHOTS_KEPT);
            let old = found[..old].iter().map(|(_, name)| name.clone());
            let notes = self.disk.list()?.into_iter();
            let notes = notes.filter(|name| {
                let index = snapshot::installing_index(name);
                index.is_some() && index != installed
            });
            let gone: Vec<String> = old.chain(notes).collect();
            for name in &gone {
                self.disk.remove(name)?;
            }
            if gone.is_empty() { Ok(()) } else { self.disk.sync_dir() }
        };
        if let Err(error) = remove() {
            tracing::warn!(%error, "old snapshots stay");
        }
    }
}
