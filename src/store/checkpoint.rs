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

use super::disk::Disk;
use super::image::{self, Image, ImageMeta, ImageStore, Point, Tally};
use super::inbox::Inbox;
use super::pending::{AppliedEntry, Marks, Pending};
use super::recovery::{self, Recovery, first_meta, load_snapshot, refill};
use super::snapshot::{self, Head, SnapshotMeta, is_received};
use crate::limits::{DIGESTS_KEPT, SNAPSHOTS_KEPT};
use crate::state::{Meta, State};

/// Entries and changes between two looks into the inbox during long work.
const PUMP_EVERY: usize = 4_096;

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
    #[error("the digest at index {index} was not asked for in time; the image is at {at}")]
    TooLate { index: u64, at: u64 },
    #[error("the checkpointer has stopped")]
    Stopped,
    #[error("the checkpointer panicked")]
    Panicked,
    #[error("{limit} requests wait for the checkpointer already")]
    Busy { limit: usize },
}

/// The digest of the state at one applied index; equal on all replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    pending: Pending,
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
        let mut pending = Pending::new(Marks { every: settings.digest_every, ..Marks::default() });
        if recovery.point.is_none() {
            pending.seed(recovery.state.records());
        }
        inbox.set_marks(pending.marks().clone());
        let mut checkpointer = Checkpointer {
            cluster_id: settings.cluster_id,
            image,
            disk,
            inbox,
            pending,
            digests: VecDeque::new(),
            snapshot: recovery.snapshot.clone(),
            failed: false,
        };
        if let Some(meta) = checkpointer.image.meta()
            && checkpointer.pending.marks().contains(meta.point.index)
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

    /// Takes what waits in the inbox.
    pub fn drain(&mut self) {
        self.inbox.drain_into(&mut self.pending);
    }

    /// Merges what the log has synced.
    pub fn merge(&mut self) {
        if let Some(synced) = self.inbox.synced() {
            self.pending.advance(synced);
        }
    }

    /// Writes what the own log has synced, as [`Inbox::set_synced`] said, to the image: one batch per
    /// stage. Returns the image's meta, None when nothing was ever written.
    pub fn checkpoint(&mut self) -> Result<Option<ImageMeta>, Error> {
        self.usable()?;
        self.drain();
        self.merge();
        for stage in self.pending.take_stages() {
            let Checkpointer { image, inbox, pending, .. } = self;
            let point = stage.point.expect("only a stage with a point is taken");
            if let Some(at) = image.meta().map(|meta| meta.point.index) {
                assert!(point.index > at, "entries up to {} for an image at {at}", point.index);
            }
            let mut rows = stage.changes.into_iter().enumerate().map(|(i, (key, record))| {
                if i % PUMP_EVERY == PUMP_EVERY - 1 {
                    pump(inbox, pending);
                }
                (key.encode(), record.map(|record| record.encode()))
            });
            match image.write(&mut rows, &point) {
                Ok(meta) if stage.closed => {
                    self.keep_digest(&meta);
                }
                Ok(_) => {}
                Err(error) => {
                    self.failed = true;
                    return Err(error.into());
                }
            }
        }
        Ok(self.image.meta())
    }

    /// Checkpoint, then a snapshot file from the image, which nothing changes meanwhile. The newest
    /// files stay, older ones go.
    pub fn snapshot(&mut self) -> Result<SnapshotMeta, Error> {
        let meta = self.checkpoint()?.ok_or(Error::Nothing)?;
        if let Some(last) = &self.snapshot
            && last.point == meta.point
            && last.digest == meta.digest
        {
            return Ok(last.clone());
        }
        let Checkpointer { image, inbox, pending, disk, .. } = self;
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
        let rows = rows.enumerate().map(|(i, row)| {
            if i % PUMP_EVERY == PUMP_EVERY - 1 {
                pump(inbox, pending);
            }
            row
        });
        let expected = Tally { records: meta.records, digest: meta.digest };
        let written = snapshot::write(&**disk, &head, rows, Some(expected));
        if let Err(snapshot::Error::Source { .. }) = &written {
            self.failed = true;
        }
        let written = written?;
        self.snapshot = Some(written.clone());
        self.remove_old();
        Ok(written)
    }

    /// Replaces the state by that of a snapshot file: one that [`super::receiver::Receiver::finish`]
    /// has named, or one that is in place already. Whatever step a crash interrupts, the next start
    /// finds the old state or the new one. A received file that is refused is removed.
    pub fn install(&mut self, name: &str) -> Result<(SnapshotMeta, State), Error> {
        self.usable()?;
        self.drain();
        let checked = self.check_install(name);
        if checked.is_err() && is_received(name) {
            // Best effort: start-up removes it as well.
            let _ = self.disk.remove(name);
        }
        let (meta, state) = checked?;
        // An error from here on leaves open which state the disk holds: only a start can tell.
        self.failed = true;
        let meta = self.flip(meta)?;
        refill(&mut *self.image, &*self.disk, &meta)?;
        self.failed = false;
        self.snapshot = Some(meta.clone());
        self.pending.clear();
        self.digests.clear();
        if self.pending.marks().contains(meta.point.index) {
            let Point { index, .. } = meta.point;
            self.digests.push_back(Digest { index, digest: meta.digest, records: meta.records });
        }
        self.remove_old();
        Ok((meta, state))
    }

    /// Puts a snapshot in place. From then on it is the state, since it is newer than the image.
    fn flip(&self, meta: SnapshotMeta) -> Result<SnapshotMeta, Error> {
        let place = snapshot::file_name(meta.point.index);
        let io = |source| Error::Io { what: format!("putting {place} in place"), source };
        if place != meta.name {
            self.disk.rename(&meta.name, &place).map_err(io)?;
        }
        self.disk.sync_dir().map_err(io)?;
        Ok(SnapshotMeta { name: place, ..meta })
    }

    /// All of a snapshot is read and understood before anything changes.
    fn check_install(&self, name: &str) -> Result<(SnapshotMeta, State), Error> {
        let (meta, state) = load_snapshot(&*self.disk, name, &self.cluster_id)?;
        let at = self.image.meta().map(|meta| meta.point.index);
        let applied = self.pending.last_index().max(at);
        if let Some(applied) = applied.filter(|applied| *applied > meta.point.index) {
            let name = name.to_owned();
            return Err(Error::Stale { name, index: meta.point.index, applied });
        }
        Ok((meta, state))
    }

    /// Has the digest at exactly `index` computed: a checkpoint will end there. For an index that is
    /// not merged yet; `Ok(None)` = it will be among [`Checkpointer::digests`] later.
    pub fn digest_at(&mut self, index: u64) -> Result<Option<Digest>, Error> {
        self.usable()?;
        self.drain();
        if let Some(found) = self.digests.iter().rev().find(|digest| digest.index == index) {
            return Ok(Some(*found));
        }
        let at = self.image.meta().map_or(0, |meta| meta.point.index);
        if let Some(meta) = self.image.meta().filter(|meta| meta.point.index == index) {
            return Ok(Some(self.keep_digest(&meta)));
        }
        if index < at || !self.pending.mark(index) {
            self.forget_digest(index);
            return Err(Error::TooLate { index, at: self.pending.merged_index().unwrap_or(at) });
        }
        self.inbox.set_marks(self.pending.marks().clone());
        Ok(None)
    }

    /// Nobody waits for the digest at `index` any more.
    pub fn forget_digest(&mut self, index: u64) {
        self.pending.unmark(index);
        self.inbox.set_marks(self.pending.marks().clone());
    }

    /// The digests at the last few indices where one was wanted, oldest first.
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

    pub fn pending(&self) -> &Pending {
        &self.pending
    }

    pub(super) fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// True when a stage waits for its digest: a checkpoint should not wait for the timer.
    pub(super) fn wants_digest(&self) -> bool {
        self.pending.has_closed_stage()
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
        if self.pending.marks().at.contains(&digest.index) {
            self.forget_digest(digest.index);
        }
        digest
    }

    /// Keeps the newest snapshot files. That an old one stays is no reason to fail.
    fn remove_old(&self) {
        let remove = || {
            let found = snapshot::list(&*self.disk)?;
            let old = found.len().saturating_sub(SNAPSHOTS_KEPT);
            for (_, name) in &found[..old] {
                self.disk.remove(name)?;
            }
            if old > 0 { self.disk.sync_dir() } else { Ok(()) }
        };
        if let Err(error) = remove() {
            tracing::warn!(%error, "old snapshots stay");
        }
    }
}

/// Keeps the inbox short during long work.
fn pump(inbox: &Inbox, pending: &mut Pending) {
    inbox.drain_into(pending);
    if let Some(synced) = inbox.synced() {
        pending.advance(synced);
    }
}
