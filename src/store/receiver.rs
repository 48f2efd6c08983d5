//! Receives a snapshot file from another member, chunk by chunk, into a temporary file. What arrives
//! counts for nothing before all of it was checked, and takes effect only when the checkpointer
//! installs it: until then a restart throws it away.

use std::io;
use std::sync::Arc;

use super::disk::{Disk, File};
use super::snapshot::{Error, SnapshotMeta, is_received_as, received_name, verify};
use crate::failpoint::failpoint;
use crate::limits::{DISK_LOW_BYTES, PEER_MESSAGE_BYTES, SNAPSHOT_FILE_BYTES, SNAPSHOT_SYNC_BYTES};

/// A transfer under way. Dropping it ends it and removes its file.
#[derive(Debug)]
pub struct Receiver {
    disk: Arc<dyn Disk>,
    file: Arc<dyn File>,
    /// Empty once the file has another name.
    name: String,
    /// No other transfer has it, under way or waiting for its installation.
    number: u64,
    cluster_id: String,
    total: u64,
    received: u64,
    unsynced: u64,
}

impl Receiver {
    /// `total` is the length of the file that will come. It must fit the disk.
    pub fn begin(disk: Arc<dyn Disk>, cluster_id: &str, total: u64) -> Result<Receiver, Error> {
        if total > SNAPSHOT_FILE_BYTES {
            let why = format!("{total} bytes announced; at most {SNAPSHOT_FILE_BYTES}");
            return Err(Error::Transfer { why });
        }
        let free = disk.free_bytes().map_err(Error::io("asking for free space"))?;
        if total > free.saturating_sub(DISK_LOW_BYTES) {
            let why = format!("{total} bytes announced, {free} bytes free");
            return Err(Error::Transfer { why });
        }
        let mut number = 1u64;
        let (name, file) = loop {
            let name = format!("incoming-{number}.tmp");
            match disk.create(&name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                result => {
                    let file = result.map_err(Error::io("creating a temporary file"))?;
                    let names = disk.list().map_err(Error::io("listing the received snapshots"))?;
                    if !names.iter().any(|name| is_received_as(name, number)) {
                        break (name, file);
                    }
                    disk.remove(&name).map_err(Error::io("removing a temporary file"))?;
                    number += 1;
                }
            }
        };
        let cluster_id = cluster_id.to_owned();
        Ok(Receiver { disk, file, name, number, cluster_id, total, received: 0, unsynced: 0 })
    }

    /// Takes the bytes that belong at `offset`. They must follow the ones before without a gap.
    pub fn chunk(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let transfer = |why: String| Err(Error::Transfer { why });
        if offset != self.received {
            return transfer(format!("a chunk at {offset}, expected one at {}", self.received));
        }
        if bytes.len() > PEER_MESSAGE_BYTES {
            return transfer(format!("a chunk of {} bytes", bytes.len()));
        }
        let length = bytes.len() as u64;
        if length > self.total - self.received {
            return transfer(format!("more than the {} bytes announced", self.total));
        }
        let what = || Error::io(format!("writing {}", self.name));
        self.file.write_at(offset, bytes).map_err(what())?;
        self.received += length;
        self.unsynced += length;
        if self.unsynced >= SNAPSHOT_SYNC_BYTES {
            self.file.sync().map_err(what())?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Checks that the file is complete, whole and of this cluster. The answer's `name` is what
    /// [`super::checkpoint::Checkpointer::install`] takes; a restart before that forgets it.
    pub fn finish(mut self) -> Result<SnapshotMeta, Error> {
        if self.received != self.total {
            let why = format!("{} of {} bytes have arrived", self.received, self.total);
            return Err(Error::Transfer { why });
        }
        self.file.sync().map_err(Error::io(format!("syncing {}", self.name)))?;
        let meta = verify(&*self.disk, &self.name)?;
        if meta.cluster_id != self.cluster_id {
            return Err(Error::ForeignCluster {
                name: self.name.clone(),
                found: meta.cluster_id,
                expected: self.cluster_id.clone(),
            });
        }
        failpoint!(SnapshotReceived, |error| {
            Err(Error::io(format!("renaming {}", self.name))(error))
        });
        let name = received_name(meta.point.index, self.number);
        self.disk
            .rename(&self.name, &name)
            .map_err(Error::io(format!("renaming {}", self.name)))?;
        self.name.clear();
        Ok(SnapshotMeta { name, ..meta })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // Best effort: start-up removes it as well.
            let _ = self.disk.remove(&self.name);
        }
    }
}
