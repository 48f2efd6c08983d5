//! Snapshot files: the whole state at one log index, for restarting, for members that are far behind
//! and for backups. A file is written next to its final name, synced, read back completely, renamed,
//! and the directory synced; what has the final name was whole at that moment.
//!
//! All numbers are little endian. Every byte of a file is covered by a checksum:
//!
//! ```text
//! header   magic "QUORSNAP" | version u32 | length u32 | payload | crc32c u32 of all before
//!          payload: cluster id (u16 length + bytes) | index u64 | log id (u32 length + bytes)
//!                   | membership (u32 length + bytes) | revision u64 | now_ms u64
//! blocks   1u8 | length u32, 1 ..= SNAPSHOT_BLOCK_BYTES | crc32c u32 | payload
//!          The crc covers the block's number (u64, from 0), kind, length and payload. The payloads
//!          together are the records in key order, each: key length u32 | value length u32 | key | value.
//! footer   2u8 | blocks u64 | records u64 | state digest u64 | length of the file u64
//!          | xxh3 u64 of all before | magic "PANSROUQ"
//! ```

use std::io;

use super::disk::Disk;
use super::image::Point;
use crate::limits::{RECORD_BYTES, SNAPSHOT_HEADER_BYTES};

pub use super::snapshot_reader::{Reader, verify};
pub use super::snapshot_writer::write;

pub(super) const MAGIC: &[u8; 8] = b"QUORSNAP";
pub(super) const END_MAGIC: &[u8; 8] = b"PANSROUQ";
/// Format version of the files that this release writes, and the only one it reads.
pub const VERSION: u32 = 1;
pub(super) const BLOCK: u8 = 1;
pub(super) const FOOTER: u8 = 2;
const RECEIVED: &str = "received-";
const INSTALLING: &str = "installing-";
pub(super) const HEADER_FIXED: usize = 16;
pub(super) const CRC: usize = 4;
pub(super) const BLOCK_HEADER: usize = 9;
pub(super) const FOOTER_BYTES: usize = 49;
pub(super) const FOOTER_HASHED: usize = 33;
pub(super) const RECORD_HEADER: usize = 8;

/// What the header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub cluster_id: String,
    pub point: Point,
    /// Revision and clock of the state, for listings; the records say the same.
    pub revision: u64,
    pub now_ms: u64,
}

/// A snapshot file that was found whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotMeta {
    pub name: String,
    pub cluster_id: String,
    pub point: Point,
    pub revision: u64,
    pub now_ms: u64,
    pub records: u64,
    pub digest: u64,
    /// Length of the file.
    pub bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("snapshot {name} is damaged at byte {offset}: {why}")]
    Damaged { name: String, offset: u64, why: String },
    #[error("snapshot {name} has format version {found}; this release reads {VERSION}")]
    Version { name: String, found: u32 },
    #[error("snapshot {name} belongs to cluster {found:?}, this is {expected:?}")]
    ForeignCluster { name: String, found: String, expected: String },
    #[error("a received snapshot does not fit: {why}")]
    Transfer { why: String },
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The records to be written could not be read.
    #[error("the source of snapshot {name}: {why}")]
    Source { name: String, why: String },
}

impl Error {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// The name of the snapshot at `index`. Padded, so that names sort like indices.
pub fn file_name(index: u64) -> String {
    format!("snapshot-{index:020}.snap")
}

/// The index in a name that [`file_name`] made.
fn index_of(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("snapshot-")?.strip_suffix(".snap")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

/// The name of a received snapshot that is whole and not installed yet. `number` tells apart those of
/// one index.
pub(super) fn received_name(index: u64, number: u64) -> String {
    format!("{RECEIVED}{index:020}-{number}.snap")
}

/// Whether there is a received snapshot of that number.
pub(super) fn is_received_as(name: &str, number: u64) -> bool {
    is_received(name) && name.ends_with(&format!("-{number}.snap"))
}

pub(super) fn is_received(name: &str) -> bool {
    name.starts_with(RECEIVED)
}

/// The name of an empty file that is there from before a received snapshot is put in place until the node has made
/// one of its own: only such a snapshot may end behind the log.
pub(super) fn installing_name(index: u64) -> String {
    format!("{INSTALLING}{index:020}")
}

/// The index in a name that [`installing_name`] made.
pub(super) fn installing_index(name: &str) -> Option<u64> {
    name.strip_prefix(INSTALLING)?.parse().ok()
}

/// Index and name of every snapshot in place, by index. Nothing is opened.
pub fn list(disk: &dyn Disk) -> io::Result<Vec<(u64, String)>> {
    let names = disk.list()?.into_iter();
    let mut found: Vec<_> =
        names.filter_map(|name| index_of(&name).map(|index| (index, name))).collect();
    found.sort();
    Ok(found)
}

/// Removes what an interrupted write or transfer left. True when there was something.
pub fn clean_tmp(disk: &dyn Disk) -> io::Result<bool> {
    let mut removed = false;
    for name in disk.list()? {
        if name.ends_with(".tmp") || is_received(&name) {
            disk.remove(&name)?;
            removed = true;
        }
    }
    if removed {
        disk.sync_dir()?;
    }
    Ok(removed)
}

/// Key, value and their lengths.
pub(super) const RECORD_CAP: usize = RECORD_HEADER + 2 * RECORD_BYTES;

pub(super) fn put_u32(out: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("lengths are capped far below 4 GiB");
    out.extend_from_slice(&number.to_le_bytes());
}

pub(super) fn block_crc(number: u64, kind_and_length: &[u8], payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c(&number.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c_append(crc, kind_and_length), payload)
}

pub(super) fn encode_head(head: &Head) -> Vec<u8> {
    let mut payload = Vec::new();
    let id = u16::try_from(head.cluster_id.len()).expect("a cluster id is a short text");
    payload.extend_from_slice(&id.to_le_bytes());
    payload.extend_from_slice(head.cluster_id.as_bytes());
    payload.extend_from_slice(&head.point.index.to_le_bytes());
    put_u32(&mut payload, head.point.log_id.len());
    payload.extend_from_slice(&head.point.log_id);
    put_u32(&mut payload, head.point.membership.len());
    payload.extend_from_slice(&head.point.membership);
    payload.extend_from_slice(&head.revision.to_le_bytes());
    payload.extend_from_slice(&head.now_ms.to_le_bytes());
    assert!(
        payload.len() <= SNAPSHOT_HEADER_BYTES,
        "a snapshot header of {} bytes; at most {SNAPSHOT_HEADER_BYTES}",
        payload.len()
    );
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&VERSION.to_le_bytes());
    put_u32(&mut out, payload.len());
    out.extend_from_slice(&payload);
    out
}

pub(super) fn decode_head(payload: &[u8]) -> Option<Head> {
    let mut rest = payload;
    let id_len = u16::from_le_bytes(take::<2>(&mut rest)?);
    let cluster_id = String::from_utf8(take_bytes(&mut rest, id_len.into())?.to_vec()).ok()?;
    let index = u64::from_le_bytes(take::<8>(&mut rest)?);
    let length = u32::from_le_bytes(take::<4>(&mut rest)?) as usize;
    let log_id = take_bytes(&mut rest, length)?.to_vec().into();
    let length = u32::from_le_bytes(take::<4>(&mut rest)?) as usize;
    let membership = take_bytes(&mut rest, length)?.to_vec().into();
    let revision = u64::from_le_bytes(take::<8>(&mut rest)?);
    let now_ms = u64::from_le_bytes(take::<8>(&mut rest)?);
    let point = Point { index, log_id, membership };
    rest.is_empty().then_some(Head { cluster_id, point, revision, now_ms })
}

pub(super) fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (found, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*found)
}

pub(super) fn take_bytes<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (found, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(found)
}
