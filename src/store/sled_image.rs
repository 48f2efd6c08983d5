//! The image in sled 0.34.7. What that release does, and what is done about it here:
//!
//! - it can panic or fail on damaged files: every call runs under `panic::guarded`, any error makes the
//!   image unusable until it is set aside;
//! - an opening that takes the whole process with it would do so for ever: `sled_store` counts them;
//! - `flush` does not sync on Linux, and its background flusher only logs errors: there is no
//!   flusher, and the files are synced here after each flush;
//! - large values go to files of their own that are never synced: values are cut into chunks;
//! - until a batch is written it keeps all that the batch replaces: long writes are cut into parts;
//! - after a power failure it may come back older, or mixed: count and digest are written in the same
//!   batch as the last records and compared with a full scan at start-up.
//!
//! A write of several parts takes the meta away with the first of them and brings the new one with the last. In
//! between there is no image, and a start rebuilds it, as after a refill that broke off.
//!
//! Keys in the one tree: `m` the meta; `r` + key the record, as the number of further chunks (u16,
//! big endian) and the first chunk; `c` + key + chunk number (u16, big endian, from 1) a further chunk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bincode::Options;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::image::{Error, Image, ImageMeta, Point, Row, Rows, Tally, Write};
pub use super::sled_store::SledStore;
use crate::limits::{
    IMAGE_CACHE_BYTES, IMAGE_CHUNK_BYTES, IMAGE_PART_BYTES, IMAGE_PART_RECORDS, RECORD_BYTES,
};
use crate::panic;

const META_KEY: &[u8] = b"m";
const RECORD: u8 = b'r';
const CHUNK: u8 = b'c';
const META_VERSION: u8 = 1;
/// sled may keep its file a little longer than the handle; a restart within one process waits for it.
const LOCK_RETRIES: usize = 2_000;
const LOCK_WAIT: Duration = Duration::from_millis(10);

const _: () = assert!(RECORD_BYTES / IMAGE_CHUNK_BYTES < u16::MAX as usize);

/// The image in one sled directory.
pub struct SledImage {
    dir: PathBuf,
    /// None: a call into sled panicked, or a reset failed half-way.
    open: Option<Open>,
    meta: Option<ImageMeta>,
    tally: Tally,
    /// Records may be added without a meta: the image is empty, or was reset by this process.
    filling: bool,
    broken: bool,
}

#[derive(Debug)]
struct Open {
    db: sled::Db,
    /// sled's log, for our own sync. Opened once, so that no write error goes unreported.
    data: File,
}

/// Meta as bytes: version, bincode of this, xxh3 of all before. The names of `log_id` and
/// `membership` are raft's; here they are bytes.
#[derive(Serialize, Deserialize)]
struct StoredMeta {
    index: u64,
    log_id: Vec<u8>,
    membership: Vec<u8>,
    records: u64,
    digest: u64,
}

impl SledImage {
    /// Opens or creates. Reads the meta, not the records: see [`super::image::verify`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<SledImage, Error> {
        let dir = dir.into();
        let created = !dir.exists();
        fs::create_dir_all(&dir)?;
        let open = open_sled(&dir)?;
        if created {
            sync_dir(&dir)?;
            if let Some(parent) = dir.parent() {
                sync_dir(parent)?;
            }
        }
        let mut image = SledImage {
            dir,
            open: Some(open),
            meta: None,
            tally: Tally::default(),
            filling: false,
            broken: false,
        };
        let (meta, empty) = image.call(|open| Ok((open.db.get(META_KEY)?, open.db.is_empty())))?;
        image.filling = empty;
        if let Some(bytes) = meta {
            let meta = decode_meta(&bytes)?;
            image.tally = Tally { records: meta.records, digest: meta.digest };
            image.meta = Some(meta);
        }
        Ok(image)
    }

    fn usable(&self) -> Result<&Open, Error> {
        let open = self.open.as_ref().filter(|_| !self.broken);
        open.ok_or_else(|| Error::damaged("it was given up after an earlier error"))
    }

    /// Runs one call into sled. After a panic the database is leaked: dropping it could panic again,
    /// and its directory is set aside anyway.
    fn call<T>(&mut self, f: impl FnOnce(&Open) -> sled::Result<T>) -> Result<T, Error> {
        let open = self.usable()?;
        let result = guarded(|| f(open));
        if result.is_err() {
            self.broken = true;
        }
        result
    }

    /// Applies a part of a write or a refill that has more. Not synced, but for the first part of a write: the
    /// part with the new meta syncs everything, and the old meta must be gone before anything else changes.
    fn apply_part(&mut self, mut part: Part) -> Result<(), Error> {
        if self.meta.take().is_some() {
            part.batch.remove(META_KEY);
            return self.apply(part.batch);
        }
        self.call(|open| open.db.apply_batch(part.batch))
    }

    fn apply(&mut self, batch: sled::Batch) -> Result<(), Error> {
        self.call(|open| {
            open.db.apply_batch(batch)?;
            open.db.flush()?;
            Ok(())
        })?;
        let synced = self.sync();
        if synced.is_err() {
            self.broken = true;
        }
        Ok(synced?)
    }

    fn rows(&self) -> Result<Scan<'_>, Error> {
        let open = self.usable()?;
        let rows = guarded(|| Ok(open.db.range([RECORD]..[RECORD + 1])))?;
        Ok(Scan { open, rows: Some(rows) })
    }

    fn sync(&self) -> io::Result<()> {
        let open = self.open.as_ref().ok_or_else(|| io::Error::other("the image is closed"))?;
        open.data.sync_all()?;
        // Values are chunked so that sled makes no such files; should it make one, it counts.
        let blobs = self.dir.join("blobs");
        let mut found = false;
        for entry in fs::read_dir(&blobs)? {
            File::open(entry?.path())?.sync_all()?;
            found = true;
        }
        if found {
            sync_dir(&blobs)?;
        }
        sync_dir(&self.dir)
    }
}

/// What is handed to sled at once.
#[derive(Default)]
struct Part {
    batch: sled::Batch,
    records: usize,
    bytes: usize,
}

impl Part {
    /// Takes what is there when it is enough for a part.
    fn full(&mut self) -> Option<Part> {
        let full = self.records >= IMAGE_PART_RECORDS || self.bytes >= IMAGE_PART_BYTES;
        full.then(|| std::mem::take(self))
    }

    fn count(&mut self, key: &[u8], value: &[u8]) {
        self.records += 1;
        self.bytes += key.len() + value.len();
    }

    /// Puts one record, given the number of chunks that its key has now.
    fn put(&mut self, key: &[u8], value: &[u8], old_chunks: u16) {
        self.count(key, value);
        let mut chunks = value.chunks(IMAGE_CHUNK_BYTES);
        let first = chunks.next().unwrap_or_default();
        let count = u16::try_from(chunks.len()).expect("a record is no longer than RECORD_BYTES");
        let mut row = Vec::with_capacity(2 + first.len());
        row.extend_from_slice(&count.to_be_bytes());
        row.extend_from_slice(first);
        self.batch.insert(record_key(key), row);
        for (number, chunk) in (1u16..).zip(chunks) {
            self.batch.insert(chunk_key(key, number), chunk);
        }
        for number in count + 1..=old_chunks {
            self.batch.remove(chunk_key(key, number));
        }
    }

    fn remove(&mut self, key: &[u8], old_chunks: u16) {
        self.count(key, &[]);
        self.batch.remove(record_key(key));
        for number in 1..=old_chunks {
            self.batch.remove(chunk_key(key, number));
        }
    }
}

impl std::fmt::Debug for SledImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SledImage").field("dir", &self.dir).field("meta", &self.meta).finish()
    }
}

impl Drop for SledImage {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            close(open, self.broken);
        }
    }
}

impl Image for SledImage {
    fn meta(&self) -> Option<ImageMeta> {
        self.meta.clone()
    }

    fn write(
        &mut self,
        changes: &mut dyn Iterator<Item = Write>,
        point: &Point,
    ) -> Result<ImageMeta, Error> {
        if self.meta.is_none() && !self.filling {
            return Err(Error::damaged("a write or a refill did not come to its end"));
        }
        let mut part = Part::default();
        let mut tally = self.tally;
        for (key, value) in changes {
            if let Some(full) = part.full() {
                self.apply_part(full)?;
            }
            let old = self.call(|open| open.db.get(record_key(&key)))?;
            let mut old_chunks = 0;
            if let Some(row) = old {
                let old = match assemble(&key, &row, |key| self.call(|open| open.db.get(key))) {
                    Ok(old) => old,
                    Err(error) => {
                        self.broken = true;
                        return Err(error);
                    }
                };
                if value.as_deref() == Some(&*old) {
                    continue;
                }
                tally.remove(&key, &old);
                old_chunks = u16::try_from((old.len().max(1) - 1) / IMAGE_CHUNK_BYTES)
                    .expect("a record is no longer than RECORD_BYTES");
            }
            match value {
                Some(value) => {
                    tally.add(&key, &value);
                    part.put(&key, &value, old_chunks);
                }
                None => part.remove(&key, old_chunks),
            }
        }
        let meta = ImageMeta { point: point.clone(), records: tally.records, digest: tally.digest };
        part.batch.insert(META_KEY, encode_meta(&meta));
        self.apply(part.batch)?;
        self.tally = tally;
        self.meta = Some(meta.clone());
        self.filling = false;
        Ok(meta)
    }

    fn scan(&self) -> Rows<'_> {
        match self.rows() {
            Ok(scan) => Box::new(scan),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn visit(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let mut scan = self.rows()?;
        while let Some(row) = scan.step() {
            let (key, row) = row?;
            let key = &key[1..];
            match row.strip_prefix(&[0; 2]) {
                Some(value) => take(key, value),
                None => take(key, &scan.assemble(key, &row)?),
            }
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), Error> {
        if self.filling && self.tally == Tally::default() && !self.broken {
            return Ok(());
        }
        self.meta = None;
        self.tally = Tally::default();
        self.filling = false;
        if let Some(open) = self.open.take() {
            close(open, self.broken);
        }
        // The rename is the moment at which the old content is gone for good.
        let discarded = discarded(&self.dir);
        if discarded.exists() {
            fs::remove_dir_all(&discarded)?;
        }
        if self.dir.exists() {
            fs::rename(&self.dir, &discarded)?;
        }
        *self = SledImage::open(self.dir.clone())?;
        if discarded.exists() {
            fs::remove_dir_all(&discarded)?;
        }
        Ok(())
    }

    fn fill(&mut self, rows: &mut dyn Iterator<Item = Row>) -> Result<(), Error> {
        assert!(self.meta.is_none() && self.filling, "only an image that was reset is filled");
        let mut part = Part::default();
        for (key, value) in rows {
            if let Some(full) = part.full() {
                self.apply_part(full)?;
            }
            self.tally.add(&key, &value);
            part.put(&key, &value, 0);
        }
        self.apply_part(part)
    }

    fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }
}

/// Records in key order with their chunks put together.
struct Scan<'a> {
    open: &'a Open,
    /// None after an error.
    rows: Option<sled::Iter>,
}

impl Scan<'_> {
    /// The next key and record row.
    fn step(&mut self) -> Option<Result<(sled::IVec, sled::IVec), Error>> {
        let mut rows = self.rows.take()?;
        match guarded(|| rows.next().transpose()) {
            Ok(row) => {
                self.rows = Some(rows);
                row.map(Ok)
            }
            Err(error) => {
                // It may be half-way through something.
                std::mem::forget(rows);
                Some(Err(error))
            }
        }
    }

    fn assemble(&self, key: &[u8], row: &[u8]) -> Result<Vec<u8>, Error> {
        assemble(key, row, |key| guarded(|| self.open.db.get(key)))
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let row = self.step()?.and_then(|(key, row)| {
            let key = key[1..].to_vec();
            let value = self.assemble(&key, &row)?;
            Ok((key, value))
        });
        if row.is_err() {
            self.rows = None;
        }
        Some(row)
    }
}

fn record_key(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(RECORD);
    out.extend_from_slice(key);
    out
}

fn chunk_key(key: &[u8], number: u16) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 + key.len());
    out.push(CHUNK);
    out.extend_from_slice(key);
    out.extend_from_slice(&number.to_be_bytes());
    out
}

/// The value whose record row is `row`. All chunks but the last one are full, or it is damaged: the
/// number of chunks of a value must follow from its length.
fn assemble(
    key: &[u8],
    row: &[u8],
    mut get: impl FnMut(Vec<u8>) -> Result<Option<sled::IVec>, Error>,
) -> Result<Vec<u8>, Error> {
    let Some((count, first)) = row.split_first_chunk::<2>() else {
        return Err(Error::damaged("a record is too short"));
    };
    let count = u16::from_be_bytes(*count);
    if count > 0 && first.len() != IMAGE_CHUNK_BYTES {
        return Err(Error::damaged("the first chunk of a long record is not full"));
    }
    let mut value = first.to_vec();
    for number in 1..=count {
        let chunk = get(chunk_key(key, number))?
            .ok_or_else(|| Error::damaged(format!("chunk {number} of {count} is missing")))?;
        let full = if number == count { !chunk.is_empty() } else { true };
        let right = chunk.len() <= IMAGE_CHUNK_BYTES
            && (number == count || chunk.len() == IMAGE_CHUNK_BYTES);
        if !full || !right {
            return Err(Error::damaged(format!("chunk {number} of {count} has a wrong length")));
        }
        value.extend_from_slice(&chunk);
    }
    Ok(value)
}

fn coding() -> impl Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_limit(RECORD_BYTES as u64)
        .reject_trailing_bytes()
}

fn encode_meta(meta: &ImageMeta) -> Vec<u8> {
    let stored = StoredMeta {
        index: meta.point.index,
        log_id: meta.point.log_id.to_vec(),
        membership: meta.point.membership.to_vec(),
        records: meta.records,
        digest: meta.digest,
    };
    let mut out = vec![META_VERSION];
    coding()
        .serialize_into(&mut out, &stored)
        .expect("raft's ids and memberships are far smaller than a record");
    let hash = xxh3_64(&out);
    out.extend_from_slice(&hash.to_le_bytes());
    out
}

fn decode_meta(bytes: &[u8]) -> Result<ImageMeta, Error> {
    let Some((body, hash)) = bytes.split_last_chunk::<8>() else {
        return Err(Error::damaged("the meta is too short"));
    };
    if xxh3_64(body) != u64::from_le_bytes(*hash) {
        return Err(Error::damaged("the meta does not match its own hash"));
    }
    match body.split_first() {
        Some((&META_VERSION, body)) => {
            let stored: StoredMeta = coding()
                .deserialize(body)
                .map_err(|error| Error::damaged(format!("the meta: {error}")))?;
            Ok(ImageMeta {
                point: Point {
                    index: stored.index,
                    log_id: stored.log_id.into(),
                    membership: stored.membership.into(),
                },
                records: stored.records,
                digest: stored.digest,
            })
        }
        Some((version, _)) => Err(Error::damaged(format!(
            "it has format version {version}, this release reads {META_VERSION}"
        ))),
        None => Err(Error::damaged("the meta is empty")),
    }
}

fn open_sled(dir: &Path) -> Result<Open, Error> {
    let config =
        sled::Config::new().path(dir).cache_capacity(IMAGE_CACHE_BYTES).flush_every_ms(None);
    let mut tries = 0;
    let db = loop {
        match guarded(|| config.open()) {
            Err(Error::Io(error)) if error.to_string().contains("could not acquire lock") => {
                tries += 1;
                if tries == LOCK_RETRIES {
                    return Err(Error::Io(io::Error::new(io::ErrorKind::ResourceBusy, error)));
                }
                std::thread::park_timeout(LOCK_WAIT);
            }
            result => break result?,
        }
    };
    Ok(Open { db, data: File::options().read(true).write(true).open(dir.join("db"))? })
}

fn close(open: Open, broken: bool) {
    if broken {
        std::mem::forget(open);
    } else if panic::guarded(|| drop(open)).is_err() {
        tracing::warn!("sled panicked while the image was closed");
    }
}

pub(super) fn guarded<T>(f: impl FnOnce() -> sled::Result<T>) -> Result<T, Error> {
    match panic::guarded(f) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) => Err(Error::Io(error)),
        Ok(Err(error)) => Err(Error::damaged(format!("sled: {error}"))),
        Err(message) => Err(Error::damaged(format!("sled panicked: {message}"))),
    }
}

/// Where a reset puts the old directory until it is deleted.
pub(super) fn discarded(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().map_or_else(OsString::new, OsString::from);
    name.push(".discarded");
    dir.with_file_name(name)
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
