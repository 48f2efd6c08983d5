//! Reads snapshot files; the format stands in `snapshot`.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use xxhash_rust::xxh3::Xxh3;

use super::disk::{Disk, File};
use super::image::{Point, Row, Tally};
use super::snapshot::{
    BLOCK, BLOCK_HEADER, CRC, END_MAGIC, Error, FOOTER, FOOTER_BYTES, FOOTER_HASHED, HEADER_FIXED,
    Head, MAGIC, RECORD_CAP, RECORD_HEADER, SnapshotMeta, VERSION, block_crc, decode_head, take,
    take_bytes,
};
use crate::limits::{SNAPSHOT_BLOCK_BYTES, SNAPSHOT_HEADER_BYTES};

/// Reads the whole file; every byte of it is checked.
pub fn verify(disk: &dyn Disk, name: &str) -> Result<SnapshotMeta, Error> {
    let mut reader = Reader::open(disk, name)?;
    reader.visit(&mut |_, _| {})?;
    reader.meta().ok_or_else(|| reader.damaged("it has no footer"))
}

/// Reads records in key order, with bounded memory. The last step checks the footer: only a reader
/// that has returned None without an error has read a whole snapshot.
pub struct Reader {
    name: String,
    file: Arc<dyn File>,
    length: u64,
    head: Head,
    /// Bytes of the file that were read and hashed.
    offset: u64,
    hash: Xxh3,
    blocks: u64,
    tally: Tally,
    /// Payload of blocks; `at` is where the next record begins.
    buffer: Vec<u8>,
    at: usize,
    last_key: Option<Vec<u8>>,
    done: bool,
    failed: bool,
}

/// A record in a reader's buffer.
struct Place {
    key: Range<usize>,
    value: Range<usize>,
}

impl Reader {
    pub fn open(disk: &dyn Disk, name: &str) -> Result<Reader, Error> {
        let file = disk.open(name).map_err(Error::io(format!("opening {name}")))?;
        let length = file.len().map_err(Error::io(format!("opening {name}")))?;
        let mut reader = Reader {
            name: name.to_owned(),
            file,
            length,
            head: Head {
                cluster_id: String::new(),
                point: Point::default(),
                revision: 0,
                now_ms: 0,
            },
            offset: 0,
            hash: Xxh3::new(),
            blocks: 0,
            tally: Tally::default(),
            buffer: Vec::new(),
            at: 0,
            last_key: None,
            done: false,
            failed: false,
        };
        reader.read_head()?;
        Ok(reader)
    }

    pub fn head(&self) -> &Head {
        &self.head
    }

    /// None until the footer was read and found right.
    pub fn meta(&self) -> Option<SnapshotMeta> {
        self.done.then(|| SnapshotMeta {
            name: self.name.clone(),
            cluster_id: self.head.cluster_id.clone(),
            point: self.head.point.clone(),
            revision: self.head.revision,
            now_ms: self.head.now_ms,
            records: self.tally.records,
            digest: self.tally.digest,
            bytes: self.length,
        })
    }

    fn damaged(&self, why: impl Into<String>) -> Error {
        Error::Damaged { name: self.name.clone(), offset: self.offset, why: why.into() }
    }

    /// The next `length` bytes. `length` must have been checked against a cap before.
    fn take(&mut self, length: usize) -> Result<Vec<u8>, Error> {
        if (length as u64) > self.length - self.offset {
            return Err(self.damaged("it ends early"));
        }
        let mut bytes = vec![0; length];
        match self.file.read_at(self.offset, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(self.damaged("it ends early"));
            }
            result => result.map_err(Error::io(format!("reading {}", self.name)))?,
        }
        self.offset += length as u64;
        Ok(bytes)
    }

    fn read_head(&mut self) -> Result<(), Error> {
        let fixed = self.take(HEADER_FIXED)?;
        let mut rest = fixed.as_slice();
        let magic = take::<8>(&mut rest);
        let version = take::<4>(&mut rest).map_or(0, u32::from_le_bytes);
        let length = take::<4>(&mut rest).map_or(0, u32::from_le_bytes) as usize;
        if magic.as_ref() != Some(MAGIC) {
            return Err(self.damaged("it does not begin like a snapshot"));
        }
        if length > SNAPSHOT_HEADER_BYTES {
            return Err(self.damaged(format!("a header of {length} bytes")));
        }
        let payload = self.take(length + CRC)?;
        let (payload, crc) = payload.split_at(length);
        let right = crc32c::crc32c_append(crc32c::crc32c(&fixed), payload);
        if crc != right.to_le_bytes() {
            return Err(self.damaged("the header's checksum is wrong"));
        }
        if version != VERSION {
            return Err(Error::Version { name: self.name.clone(), found: version });
        }
        self.head =
            decode_head(payload).ok_or_else(|| self.damaged("the header makes no sense"))?;
        self.hash.update(&fixed);
        self.hash.update(payload);
        self.hash.update(crc);
        Ok(())
    }

    /// The next record, None after the last one.
    pub fn next_row(&mut self) -> Result<Option<Row>, Error> {
        let place = self.step()?;
        Ok(place
            .map(|Place { key, value }| (self.buffer[key].to_vec(), self.buffer[value].to_vec())))
    }

    /// Calls `take` with the key and value of each record that is left.
    pub fn visit(&mut self, take: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        while let Some(Place { key, value }) = self.step()? {
            take(&self.buffer[key], &self.buffer[value]);
        }
        Ok(())
    }

    /// Where the next record stands in the buffer, until the step after this one.
    fn step(&mut self) -> Result<Option<Place>, Error> {
        if self.failed {
            return Err(self.damaged("it was given up after an earlier error"));
        }
        let place = self.advance();
        self.failed = place.is_err();
        place
    }

    fn advance(&mut self) -> Result<Option<Place>, Error> {
        loop {
            if self.done {
                return Ok(None);
            }
            if let Some(place) = self.buffered()? {
                return Ok(Some(place));
            }
            self.read_block()?;
        }
    }

    /// A record that is completely in the buffer.
    fn buffered(&mut self) -> Result<Option<Place>, Error> {
        let mut rest = &self.buffer[self.at..];
        let (Some(key_len), Some(value_len)) = (take::<4>(&mut rest), take::<4>(&mut rest)) else {
            return Ok(None);
        };
        let key_len = u32::from_le_bytes(key_len) as usize;
        let value_len = u32::from_le_bytes(value_len) as usize;
        let Some(length) = key_len
            .checked_add(value_len)
            .and_then(|length| length.checked_add(RECORD_HEADER))
            .filter(|length| *length <= RECORD_CAP)
        else {
            return Err(self.damaged(format!("a record of {key_len} + {value_len} bytes")));
        };
        let (Some(key), Some(value)) =
            (take_bytes(&mut rest, key_len), take_bytes(&mut rest, value_len))
        else {
            return Ok(None);
        };
        if self.last_key.as_deref().is_some_and(|last| last >= key) {
            return Err(self.damaged("the records are not in key order"));
        }
        self.tally.add(key, value);
        key.clone_into(self.last_key.get_or_insert_default());
        let begin = self.at + RECORD_HEADER;
        self.at += length;
        Ok(Some(Place { key: begin..begin + key_len, value: begin + key_len..self.at }))
    }

    fn read_block(&mut self) -> Result<(), Error> {
        let kind = self.take(1)?;
        match kind[0] {
            BLOCK => {}
            FOOTER => return self.read_footer(&kind),
            other => return Err(self.damaged(format!("a block of unknown kind {other}"))),
        }
        let header = self.take(BLOCK_HEADER - 1)?;
        let mut rest = header.as_slice();
        let length = take::<4>(&mut rest).map_or(0, u32::from_le_bytes) as usize;
        if length == 0 || length > SNAPSHOT_BLOCK_BYTES {
            return Err(self.damaged(format!("a block of {length} bytes")));
        }
        let payload = self.take(length)?;
        let kind_and_length = [kind.as_slice(), &header[..4]].concat();
        let crc = block_crc(self.blocks, &kind_and_length, &payload);
        if rest != crc.to_le_bytes() {
            return Err(self.damaged(format!("the checksum of block {} is wrong", self.blocks)));
        }
        for part in [&kind, &header, &payload] {
            self.hash.update(part);
        }
        self.blocks += 1;
        self.buffer.drain(..self.at);
        self.at = 0;
        self.buffer.extend_from_slice(&payload);
        Ok(())
    }

    fn read_footer(&mut self, kind: &[u8]) -> Result<(), Error> {
        if self.at != self.buffer.len() {
            return Err(self.damaged("it ends within a record"));
        }
        let rest = self.take(FOOTER_BYTES - 1)?;
        self.hash.update(kind);
        self.hash.update(&rest[..FOOTER_HASHED - 1]);
        let mut expected = Vec::with_capacity(FOOTER_BYTES - 1);
        let Tally { records, digest } = self.tally;
        for number in [self.blocks, records, digest, self.offset, self.hash.digest()] {
            expected.extend_from_slice(&number.to_le_bytes());
        }
        expected.extend_from_slice(END_MAGIC);
        if rest != expected {
            return Err(self.damaged("the footer does not match the records"));
        }
        if self.offset != self.length {
            return Err(self.damaged("something follows the footer"));
        }
        self.done = true;
        Ok(())
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").field("name", &self.name).field("offset", &self.offset).finish()
    }
}

impl Iterator for Reader {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        self.next_row().transpose()
    }
}
