//! Writes snapshot files; the format stands in `snapshot`.

use std::io;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::disk::{Disk, File};
use super::image::{Row, Tally};
use super::snapshot::{
    BLOCK, BLOCK_HEADER, END_MAGIC, Error, FOOTER, FOOTER_BYTES, Head, RECORD_CAP, RECORD_HEADER,
    SnapshotMeta, block_crc, encode_head, file_name, put_u32, verify,
};
use crate::failpoint::failpoint;
use crate::limits::{SNAPSHOT_BLOCK_BYTES, SNAPSHOT_RESERVE_BYTES, SNAPSHOT_SYNC_BYTES};

/// Writes the snapshot of `records`, which come in key order, and reads it back before it gets its
/// name. `expected` is what the source promises about them; anything else is an error and leaves no
/// file.
pub fn write<E: std::fmt::Display>(
    disk: &dyn Disk,
    head: &Head,
    records: impl IntoIterator<Item = Result<Row, E>>,
    expected: Option<Tally>,
) -> Result<SnapshotMeta, Error> {
    let name = file_name(head.point.index);
    let tmp = format!("{name}.tmp");
    let written = write_tmp(disk, head, &tmp, records, expected);
    let meta = written.and_then(|()| verify(disk, &tmp)).and_then(|meta| {
        failpoint!(SnapshotBeforeRename, |error| Err(Error::io(format!("renaming {tmp}"))(error)));
        disk.rename(&tmp, &name).map_err(Error::io(format!("renaming {tmp}")))?;
        failpoint!(SnapshotAfterRename, |error| {
            Err(Error::io("syncing the snapshot directory")(error))
        });
        disk.sync_dir().map_err(Error::io("syncing the snapshot directory"))?;
        Ok(SnapshotMeta { name, ..meta })
    });
    if meta.is_err() {
        // Best effort: start-up removes it as well.
        let _ = disk.remove(&tmp);
    }
    meta
}

fn write_tmp<E: std::fmt::Display>(
    disk: &dyn Disk,
    head: &Head,
    tmp: &str,
    records: impl IntoIterator<Item = Result<Row, E>>,
    expected: Option<Tally>,
) -> Result<(), Error> {
    let source = |why: String| Error::Source { name: tmp.to_owned(), why };
    let mut writer = Writer::create(disk, tmp, head)?;
    for row in records {
        let (key, value) = row.map_err(|error| source(error.to_string()))?;
        writer.push(&key, &value)?;
    }
    if let Some(expected) = expected {
        writer.tally.check(expected.records, expected.digest).map_err(source)?;
    }
    writer.finish()
}

/// Appends to a new file; holds at most one block and one record.
struct Writer<'a> {
    disk: &'a dyn Disk,
    name: String,
    file: Arc<dyn File>,
    offset: u64,
    unsynced: u64,
    hash: Xxh3,
    blocks: u64,
    tally: Tally,
    /// Records that do not fill a block yet.
    buffer: Vec<u8>,
    last_key: Option<Vec<u8>>,
}

impl<'a> Writer<'a> {
    fn create(disk: &'a dyn Disk, name: &str, head: &Head) -> Result<Writer<'a>, Error> {
        let what = || Error::io(format!("creating {name}"));
        let file = match disk.create(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                disk.remove(name).map_err(what())?;
                disk.create(name).map_err(what())?
            }
            result => result.map_err(what())?,
        };
        let mut writer = Writer {
            disk,
            name: name.to_owned(),
            file,
            offset: 0,
            unsynced: 0,
            hash: Xxh3::new(),
            blocks: 0,
            tally: Tally::default(),
            buffer: Vec::with_capacity(2 * SNAPSHOT_BLOCK_BYTES),
            last_key: None,
        };
        let mut header = encode_head(head);
        let crc = crc32c::crc32c(&header);
        header.extend_from_slice(&crc.to_le_bytes());
        writer.append(&header)?;
        Ok(writer)
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let what = || Error::io(format!("writing {}", self.name));
        self.file.write_at(self.offset, bytes).map_err(what())?;
        self.hash.update(bytes);
        self.offset += bytes.len() as u64;
        self.unsynced += bytes.len() as u64;
        // In small steps, so that the log never waits behind one large writeback.
        if self.unsynced >= SNAPSHOT_SYNC_BYTES {
            self.file.sync().map_err(what())?;
            self.unsynced = 0;
            self.leave_the_reserve().map_err(what())?;
        }
        Ok(())
    }

    /// The log must not run out of space because of a snapshot that does not fit.
    fn leave_the_reserve(&self) -> io::Result<()> {
        let free = self.disk.free_bytes()?;
        if free < SNAPSHOT_RESERVE_BYTES {
            let why = format!(
                "{free} bytes free after {} of the snapshot; {SNAPSHOT_RESERVE_BYTES} are left to the log",
                self.offset
            );
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(())
    }

    fn push(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        let why = if RECORD_HEADER + key.len() + value.len() > RECORD_CAP {
            Some("a record is longer than its limit")
        } else if self.last_key.as_deref().is_some_and(|last| last >= key) {
            Some("the records are not in key order")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(Error::Source { name: self.name.clone(), why: why.to_owned() });
        }
        key.clone_into(self.last_key.get_or_insert_default());
        self.tally.add(key, value);
        put_u32(&mut self.buffer, key.len());
        put_u32(&mut self.buffer, value.len());
        self.buffer.extend_from_slice(key);
        self.buffer.extend_from_slice(value);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut done = 0;
        while buffer.len() - done >= SNAPSHOT_BLOCK_BYTES {
            self.block(&buffer[done..done + SNAPSHOT_BLOCK_BYTES])?;
            done += SNAPSHOT_BLOCK_BYTES;
        }
        buffer.drain(..done);
        self.buffer = buffer;
        Ok(())
    }

    fn block(&mut self, payload: &[u8]) -> Result<(), Error> {
        let mut bytes = Vec::with_capacity(BLOCK_HEADER + payload.len());
        bytes.push(BLOCK);
        put_u32(&mut bytes, payload.len());
        let crc = block_crc(self.blocks, &bytes, payload);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(payload);
        self.blocks += 1;
        self.append(&bytes)
    }

    fn finish(mut self) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.buffer);
        if !rest.is_empty() {
            self.block(&rest)?;
        }
        let mut footer = vec![FOOTER];
        let length = self.offset + FOOTER_BYTES as u64;
        for number in [self.blocks, self.tally.records, self.tally.digest, length] {
            footer.extend_from_slice(&number.to_le_bytes());
        }
        let mut hash = self.hash.clone();
        hash.update(&footer);
        footer.extend_from_slice(&hash.digest().to_le_bytes());
        footer.extend_from_slice(END_MAGIC);
        self.append(&footer)?;
        self.file.sync().map_err(Error::io(format!("syncing {}", self.name)))
    }
}
