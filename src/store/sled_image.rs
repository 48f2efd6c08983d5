//! The image in sled 0.34.7. What that release does, and what is done about it here:
//!
//! - it can panic or fail on damaged files: every call runs under `panic::guarded`, any error makes the
//!   image unusable until it is set aside;
//! - an opening that takes the whole process with it would do so for ever: `sled_store` counts them;
//! - `flush` does not sync on Linux, and its background flusher only logs errors: there is no
//!   flusher, and the files are synced here after each flush;
//! - large values go to files of their own that are never synced: pages are cut into chunks;
//! - a row costs it the same however short it is: records lie together in pages (`store::page`);
//! - until a batch is written it keeps all that the batch replaces, and each leaf of its tree that it had to read: long
//!   writes are cut into parts, of which only the last one is a batch;
//! - its cache drops leaves only after 64 accesses within one of its 256 shards, whatever its capacity, and a leaf is up
//!   to 17 rows however long they are: a leaf is accessed more often than is needed (`Pages`);
//! - after a power failure it may come back older, or mixed: count and digest are written in the same
//!   batch as the last records and compared with a full scan at start-up.
//!
//! A write of several parts takes the meta away with the first of them and brings the new one with the last. In
//! between there is no image, and a start rebuilds it, as after a refill that broke off.
//!
//! Rows of the one tree: `m` the meta; `r` + a key, and `s`, a page, as the number of further chunks (u16, big endian)
//! and the first chunk; `c` + the row of the page + chunk number (u16, big endian, from 1) a further chunk. A record
//! lies in the first page whose key is not before its own, or in `s`, which is behind all of them. So a page keeps
//! its row, whatever comes and goes in it, and is found by a step forwards.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bincode::Options;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::image::{Error, Image, ImageMeta, Point, Row, Rows, Tally, Write};
use super::page::{self, Packer, Page, Records};
pub use super::sled_store::SledStore;
use crate::limits::{IMAGE_CACHE_BYTES, IMAGE_CHUNK_BYTES, IMAGE_PART_ROWS, RECORD_BYTES};
use crate::panic;

const META_KEY: &[u8] = b"m";
const PAGE: u8 = b'r';
const LAST_PAGE: u8 = b's';
const CHUNK: u8 = b'c';
const META_VERSION: u8 = 2;
/// sled may keep its file a little longer than the handle; a restart within one process waits for it.
const LOCK_RETRIES: usize = 2_000;
const LOCK_WAIT: Duration = Duration::from_millis(10);

const _: () = assert!(2 * RECORD_BYTES / IMAGE_CHUNK_BYTES < u16::MAX as usize);

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
    /// Rows after which a part is full.
    part_rows: usize,
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
            part_rows: IMAGE_PART_ROWS,
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

    /// Makes parts short, so that a few records are several.
    #[cfg(test)]
    pub(super) fn set_part(&mut self, rows: usize) {
        self.part_rows = rows;
    }

    /// Takes what is in a part when it is enough for one.
    fn full(&self, part: &mut Part) -> Option<Part> {
        (part.rows.len() >= self.part_rows).then(|| std::mem::take(part))
    }

    /// Applies a part of a write or a refill that has more. Neither atomic nor synced: the meta is away before
    /// anything else changes, and the part with the new meta syncs everything.
    fn apply_part(&mut self, part: Part) -> Result<(), Error> {
        if self.meta.take().is_some() {
            let mut batch = sled::Batch::default();
            batch.remove(META_KEY);
            self.apply(batch)?;
        }
        self.call(|open| {
            for (row, content) in part.rows {
                match content {
                    Some(content) => open.db.insert(row, content)?,
                    None => open.db.remove(row)?,
                };
            }
            Ok(())
        })
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

    /// The pages from that of a record on.
    fn pages(&self, key: &[u8]) -> Result<Pages, Error> {
        Ok(Pages { db: self.usable()?.db.clone(), from: Bound::Included(page_row(key).into()) })
    }

    /// The records in the row of a page.
    fn records<'a>(&self, row: &[u8], content: &'a [u8]) -> Result<Cow<'a, [u8]>, Error> {
        let open = self.usable()?;
        assemble(row, content, |row| guarded(|| open.db.get(row)))
    }

    /// Makes the changes, but for what is in the part that it returns, and counts them.
    fn merge(
        &mut self,
        changes: &mut dyn Iterator<Item = Write>,
        tally: &mut Tally,
    ) -> Result<Part, Error> {
        let mut changes = changes.peekable();
        let mut part = Part::default();
        let mut pages = self.pages(&[])?;
        while let Some((key, _)) = changes.peek() {
            let (row, content) = match pages.seek(key)? {
                Some(found) => found,
                None => (sled::IVec::from(&[LAST_PAGE]), sled::IVec::from(&[0, 0])),
            };
            let old = self.records(&row, &content)?;
            let old_chunks = further_chunks(&old);
            let mut kept = Records::new(&old)?;
            let (mut packer, mut changed) = (Packer::default(), false);
            loop {
                let change = changes.next_if(|(key, _)| is_within(key, &row));
                // What lies before the change stays, without one all that is left.
                let met = loop {
                    let Some((key, value)) = kept.current() else { break None };
                    match change.as_ref().map_or(Ordering::Less, |(new, _)| key.cmp(new)) {
                        Ordering::Less => {}
                        Ordering::Equal => break Some(value),
                        Ordering::Greater => break None,
                    }
                    // A page that was cut by other rules is written anew, changed or not.
                    changed |= part.put_new(packer.push(key, value));
                    kept.advance()?;
                };
                let Some((key, value)) = change else { break };
                if let Some((next, _)) = changes.peek() {
                    assert!(key < *next, "changes come in the order of their keys");
                }
                if value.as_deref() != met {
                    changed = true;
                    met.inspect(|met| tally.remove(&key, met));
                    value.as_ref().inspect(|value| tally.add(&key, value));
                }
                if met.is_some() {
                    kept.advance()?;
                }
                if let Some(value) = value {
                    changed |= part.put_new(packer.push(&key, &value));
                }
                if let Some(full) = self.full(&mut part) {
                    self.apply_part(full)?;
                }
            }
            if changed {
                let (page, last) = packer.finish();
                part.put_new(page);
                part.put(&row, last.bytes(), old_chunks);
            }
        }
        Ok(part)
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
    /// Each with what is to be in it, None to remove it.
    rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Part {
    /// Puts a page, if there is one, into a row of its own. Says whether there was.
    fn put_new(&mut self, page: Option<Page>) -> bool {
        if let Some(page) = &page {
            self.put(&page_row(page.last_key()), page.bytes(), 0);
        }
        page.is_some()
    }

    /// Puts one page, or removes it when there is nothing in it, given the number of further chunks that its row has
    /// now.
    fn put(&mut self, row: &[u8], records: &[u8], old_chunks: usize) {
        let mut chunks = records.chunks(IMAGE_CHUNK_BYTES);
        let first = chunks.next();
        let count = further_chunks(records);
        let content = |first: &[u8]| [&chunk_number(count).to_be_bytes(), first].concat();
        self.rows.push((row.to_vec(), first.map(content)));
        for (number, chunk) in (1..).zip(chunks) {
            self.rows.push((chunk_row(row, number), Some(chunk.to_vec())));
        }
        for number in count + 1..=old_chunks {
            self.rows.push((chunk_row(row, number), None));
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
        let mut tally = self.tally;
        let merged = self.merge(changes, &mut tally);
        self.broken |= merged.is_err();
        let mut batch = sled::Batch::default();
        for (row, content) in merged?.rows {
            match content {
                Some(content) => batch.insert(row, content),
                None => batch.remove(row),
            }
        }
        let meta = ImageMeta { point: point.clone(), records: tally.records, digest: tally.digest };
        batch.insert(META_KEY, encode_meta(&meta));
        self.apply(batch)?;
        self.tally = tally;
        self.meta = Some(meta.clone());
        self.filling = false;
        Ok(meta)
    }

    fn scan(&self) -> Rows<'_> {
        match self.pages(&[]) {
            Ok(pages) => Box::new(Scan { image: self, pages, rows: Vec::new().into_iter() }),
            Err(error) => Box::new(std::iter::once(Err(error))),
        }
    }

    fn visit(&self, take: &mut dyn FnMut(&[u8], &[u8])) -> Result<(), Error> {
        let mut pages = self.pages(&[])?;
        let mut before = None::<sled::IVec>;
        while let Some((row, content)) = pages.step()? {
            let records = self.records(&row, &content)?;
            let mut records = Records::new(&records)?;
            let early =
                |(key, _): (&[u8], _)| before.as_ref().is_some_and(|row| is_within(key, row));
            if records.current().is_some_and(early) {
                return Err(Error::damaged("a record lies behind its page"));
            }
            let mut within = true;
            while let Some((key, value)) = records.current() {
                within = is_within(key, &row);
                take(key, value);
                records.advance()?;
            }
            if !within {
                return Err(Error::damaged("a record lies before its page"));
            }
            before = Some(row);
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
        let empty = self.meta.is_none() && self.filling && self.tally == Tally::default();
        assert!(empty, "only an image that was reset is filled, and once");
        let (mut part, mut packer) = (Part::default(), Packer::default());
        for (key, value) in rows {
            self.tally.add(&key, &value);
            part.put_new(packer.push(&key, &value));
            if let Some(full) = self.full(&mut part) {
                self.apply_part(full)?;
            }
        }
        let (page, last) = packer.finish();
        part.put_new(page);
        part.put_new((!last.is_empty()).then_some(last));
        self.apply_part(part)
    }

    fn bytes(&self) -> u64 {
        let files = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum()
    }
}

/// The pages in order. Each is looked up by itself, which an iterator of sled does not do: one that is scanned once
/// would leave every leaf in the cache.
struct Pages {
    db: sled::Db,
    from: Bound<sled::IVec>,
}

/// Accesses to a leaf from which no other page may be wanted.
const JUMP_ACCESSES: usize = 8;

impl Pages {
    /// The next page: its row and what is in it.
    fn step(&mut self) -> Result<Option<(sled::IVec, sled::IVec)>, Error> {
        let range = (self.from.clone(), Bound::Included(sled::IVec::from(&[LAST_PAGE])));
        let found = guarded(|| self.db.range(range).next().transpose())?;
        if let Some((row, _)) = &found {
            self.from = Bound::Excluded(row.clone());
        }
        Ok(found)
    }

    /// The page of a record that is behind the last page, None when it would be the first record of the very last one.
    fn seek(&mut self, key: &[u8]) -> Result<Option<(sled::IVec, sled::IVec)>, Error> {
        // The next page is the right one as long as the records lie close to each other.
        match self.step()? {
            Some((row, _)) if !is_within(key, &row) => {}
            next => return Ok(next),
        }
        let row = page_row(key);
        for _ in 0..JUMP_ACCESSES {
            guarded(|| self.db.contains_key(&row))?;
        }
        self.from = Bound::Included(row.into());
        self.step()
    }
}

/// Records in the order of their keys.
struct Scan<'a> {
    image: &'a SledImage,
    pages: Pages,
    /// Those of the page at which it is.
    rows: std::vec::IntoIter<Row>,
}

impl Scan<'_> {
    fn next_page(&mut self) -> Result<Option<Vec<Row>>, Error> {
        let Some((row, content)) = self.pages.step()? else { return Ok(None) };
        let records = self.image.records(&row, &content)?;
        page::read(&records).map(Some)
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Row, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            match self.next_page().transpose()? {
                Ok(rows) => self.rows = rows.into_iter(),
                Err(error) => {
                    // There is nothing behind the last page.
                    self.pages.from = Bound::Excluded(vec![LAST_PAGE].into());
                    return Some(Err(error));
                }
            }
        }
    }
}

/// The row of the page whose last record has this key, and before which no page has that record.
fn page_row(key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1 + key.len());
    out.push(PAGE);
    out.extend_from_slice(key);
    out
}

/// Whether a record is not behind the page in this row.
fn is_within(key: &[u8], row: &[u8]) -> bool {
    match row.split_first() {
        Some((&PAGE, last)) => key <= last,
        _ => true,
    }
}

fn chunk_row(row: &[u8], number: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(3 + row.len());
    out.push(CHUNK);
    out.extend_from_slice(row);
    out.extend_from_slice(&chunk_number(number).to_be_bytes());
    out
}

/// Chunks of a page behind the first one.
fn further_chunks(records: &[u8]) -> usize {
    records.len().saturating_sub(1) / IMAGE_CHUNK_BYTES
}

fn chunk_number(number: usize) -> u16 {
    u16::try_from(number).expect("a record is no longer than RECORD_BYTES")
}

/// The records of the page with this row. All chunks but the last one are full, or it is damaged: the number of chunks
/// must follow from their length.
fn assemble<'a>(
    row: &[u8],
    content: &'a [u8],
    mut get: impl FnMut(Vec<u8>) -> Result<Option<sled::IVec>, Error>,
) -> Result<Cow<'a, [u8]>, Error> {
    let Some((count, first)) = content.split_first_chunk::<2>() else {
        return Err(Error::damaged("a page is too short"));
    };
    let count = usize::from(u16::from_be_bytes(*count));
    if count == 0 {
        return Ok(Cow::Borrowed(first));
    }
    if first.len() != IMAGE_CHUNK_BYTES {
        return Err(Error::damaged("the first chunk of a long page is not full"));
    }
    let mut records = first.to_vec();
    for number in 1..=count {
        let chunk = get(chunk_row(row, number))?
            .ok_or_else(|| Error::damaged(format!("chunk {number} of {count} is missing")))?;
        let right = match number == count {
            true => (1..=IMAGE_CHUNK_BYTES).contains(&chunk.len()),
            false => chunk.len() == IMAGE_CHUNK_BYTES,
        };
        if !right {
            return Err(Error::damaged(format!("chunk {number} of {count} has a wrong length")));
        }
        records.extend_from_slice(&chunk);
    }
    Ok(Cow::Owned(records))
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
