//! A segment: one file of fixed length with a header and frames behind it.
//!
//! ```text
//!  0  [8]  "QUORATEL"
//!  8  u32  version of the format, 1
//! 12  u32  CRC32C of these 512 bytes with this field as zeros
//! 16  u64  id of the log, the same in all its segments
//! 24  u64  number: 1, 2, 3, ... without a gap; never reused
//! 32  u64  epoch: seeds the checksums of the frames; differs for each number
//! 40  u64  bytes of the file
//! 48       zeros
//! ```
//!
//! A file gets its name `segment-<number>.wal` only after its length and its header are durable, so
//! that a segment with a bad header or length is damaged, never just unfinished. Until then, and
//! again after its entries were purged, it is called `spare-<number>.wal` and its content means
//! nothing.

use std::io;
use std::sync::Arc;

use super::{LENGTHS, frame};
use crate::store::disk::{Disk, File};

/// Bytes of the header. A whole sector, so that no write of a frame touches the header's sector.
pub(super) const HEADER: usize = 512;
pub(super) const VERSION: u32 = 1;
const MAGIC: &[u8; 8] = b"QUORATEL";
/// Zeros are written in pieces of this size and synced in larger ones: a single sync of a whole
/// segment would hold up those of the live one for as long.
const FILL_BYTES: u64 = 1024 * 1024;
const FILL_SYNC_BYTES: u64 = 8 * FILL_BYTES;

/// One open segment; readers share it with the writer.
#[derive(Debug)]
pub(super) struct Segment {
    pub number: u64,
    pub bytes: u64,
    /// Where the frames' checksums begin.
    pub seed: u32,
    pub file: Arc<dyn File>,
}

/// Why a segment's header is not accepted.
pub(super) enum BadHeader {
    Damaged(&'static str),
    Version(u32),
}

pub(super) fn name(number: u64) -> String {
    format!("segment-{number:020}.wal")
}

pub(super) fn spare_name(number: u64) -> String {
    format!("spare-{number:020}.wal")
}

/// The number in the name of a segment.
pub(super) fn parse_name(file: &str) -> Option<u64> {
    let number = file.strip_prefix("segment-")?.strip_suffix(".wal")?.parse().ok()?;
    (name(number) == file).then_some(number)
}

pub(super) fn is_spare_name(file: &str) -> bool {
    file.starts_with("spare-") && file.ends_with(".wal")
}

/// Different for each number of a log, and not to be guessed by who does not know the log's id, so
/// that no client can smuggle in a payload which looks like a frame.
fn epoch(log_id: u64, number: u64) -> u64 {
    log_id.wrapping_add(number.wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn header(log_id: u64, number: u64, bytes: u64) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(MAGIC);
    out[8..12].copy_from_slice(&VERSION.to_le_bytes());
    out[16..24].copy_from_slice(&log_id.to_le_bytes());
    out[24..32].copy_from_slice(&number.to_le_bytes());
    out[32..40].copy_from_slice(&epoch(log_id, number).to_le_bytes());
    out[40..48].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c::crc32c(&out);
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    out
}

impl Segment {
    /// Reads the header. Returns the segment and the id of the log that it belongs to.
    pub fn open(file: Arc<dyn File>, number: u64) -> io::Result<Result<(Segment, u64), BadHeader>> {
        let len = file.len()?;
        if len < HEADER as u64 {
            return Ok(Err(BadHeader::Damaged("the file is shorter than its header")));
        }
        let mut bytes = [0; HEADER];
        file.read_at(0, &mut bytes)?;
        if &bytes[..8] != MAGIC {
            return Ok(Err(BadHeader::Damaged("the header does not begin like one")));
        }
        let mut crc = [0; 4];
        crc.copy_from_slice(&bytes[12..16]);
        bytes[12..16].fill(0);
        if crc32c::crc32c(&bytes) != u32::from_le_bytes(crc) {
            return Ok(Err(BadHeader::Damaged("the header's checksum is wrong")));
        }
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let version = word(8) as u32;
        if version != VERSION {
            return Ok(Err(BadHeader::Version(version)));
        }
        if word(24) != number {
            return Ok(Err(BadHeader::Damaged("the header is that of another segment")));
        }
        let size = word(40);
        if !LENGTHS.contains(&size) || !size.is_multiple_of(frame::ALIGN as u64) {
            return Ok(Err(BadHeader::Damaged("the header has a length that no segment gets")));
        }
        if len < size {
            return Ok(Err(BadHeader::Damaged("the file is shorter than the header says")));
        }
        Ok(Ok((Segment { number, bytes: size, seed: frame::seed(word(32)), file }, word(16))))
    }

    /// Turns a spare file into segment `number`, durably.
    pub fn prepare(disk: &dyn Disk, spare: &str, of: &Shape, number: u64) -> io::Result<Segment> {
        let file = disk.open(spare)?;
        file.write_at(0, &header(of.log_id, number, of.bytes))?;
        file.sync()?;
        disk.rename(spare, &name(number))?;
        disk.sync_dir()?;
        let seed = frame::seed(epoch(of.log_id, number));
        Ok(Segment { number, bytes: of.bytes, seed, file })
    }
}

/// What new segments of a log look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub log_id: u64,
    pub bytes: u64,
}

/// Creates a spare file whose blocks exist, so that a write to it neither runs out of space nor
/// changes the file system's own structures.
pub(super) fn create_spare(disk: &dyn Disk, name: &str, bytes: u64) -> io::Result<()> {
    let file = match disk.create(name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(name)?;
            disk.create(name)?
        }
        other => other?,
    };
    let mut at = 0;
    while at < bytes {
        let piece = (bytes - at).min(FILL_BYTES);
        file.fill(at, piece)?;
        at += piece;
        if at % FILL_SYNC_BYTES == 0 || at == bytes {
            file.sync()?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_those_that_we_write() {
        assert_eq!(parse_name("segment-00000000000000000012.wal"), Some(12));
        for name in ["segment-12.wal", "segment-0000000000000000012x.wal", "spare-1.wal", "x"] {
            assert_eq!(parse_name(name), None, "{name}");
        }
        assert!(is_spare_name(&spare_name(3)) && !is_spare_name(&name(3)));
    }

    /// Old bytes stay readable: change this only together with the format's version.
    #[test]
    fn the_bytes_of_a_header_stay_as_they_are() {
        let bytes = header(0x0102_0304_0506_0708, 5, 4096);
        let hex: String = bytes[..48].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "51554f524154454c0100000079b030a208070605040302010500000000000000\
             71737a81a36317180010000000000000"
        );
        assert!(bytes[48..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn epochs_differ() {
        let seeds: std::collections::BTreeSet<u32> =
            (0..10_000).map(|number| frame::seed(epoch(77, number))).collect();
        assert!(seeds.len() > 9_990, "{} of 10000", seeds.len());
    }
}
