//! The bytes of a frame: the unit that the log writes, checks and reads.
//!
//! ```text
//!  0  u32  CRC32C of the segment's epoch, bytes 4.. of this header, payload and padding
//!  4  u32  bytes of the payload
//!  8  u64  sequence number: 1, 2, 3, ... over all segments
//! 16  u64  index; its meaning depends on the kind
//! 24  u32  this sequence number minus the highest one that was synced when the frame was written
//! 28  u8   kind
//! 29  [3]  tag: CRC32C (upper 24 bits) of the segment's epoch and bytes 4..29
//! 32       payload, padded with zeros to a multiple of 8
//! ```
//!
//! Little-endian throughout. Both checks begin with the epoch, which a reused segment changes: what
//! an earlier use has left in the file never validates. The tag makes the length trustworthy before
//! anything as long is touched, and keeps the search for later frames from computing the CRC of
//! everything that looks like a header.

use crate::limits;

/// Bytes before the payload.
pub(super) const HEADER: usize = 32;
/// Frames begin at multiples of this.
pub(super) const ALIGN: usize = 8;

/// Numbers are written to disk and never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// First in each segment: what the segments before it amount to, see `Content::encode`.
    State = 1,
    /// Payload: the vote.
    Vote = 2,
    /// Payload: the committed id.
    Committed = 3,
    /// `index`: of the entry. Payload: the entry.
    Entry = 4,
    /// `index`: the first index that is dropped.
    Truncate = 5,
    /// `index`: the last index that may go. Payload: its log id.
    Purged = 6,
    /// Carries nothing but the mark of what was synced before it.
    Mark = 7,
    /// Last in a segment: the stream goes on in the next one, which exists.
    End = 8,
}

impl Kind {
    fn new(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::State,
            2 => Kind::Vote,
            3 => Kind::Committed,
            4 => Kind::Entry,
            5 => Kind::Truncate,
            6 => Kind::Purged,
            7 => Kind::Mark,
            8 => Kind::End,
            _ => return None,
        })
    }
}

/// What a frame says besides its payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: Kind,
    pub sequence: u64,
    /// Every frame up to this sequence number was synced before this frame was written.
    pub synced: u64,
    pub index: u64,
}

/// A frame that verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'a> {
    pub head: Head,
    pub payload: &'a [u8],
}

impl Frame<'_> {
    /// Bytes from the frame's first to the next frame's first.
    pub fn size(&self) -> usize {
        size(self.payload.len())
    }
}

/// Why there is no frame at some place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// No header of this epoch: nothing was written here, or it was overwritten or damaged.
    Header,
    /// A header of this epoch, and something else than what it announces behind it.
    Payload,
}

/// Both checks of a segment start from this value.
pub(super) fn seed(epoch: u64) -> u32 {
    crc32c::crc32c(&epoch.to_le_bytes())
}

/// Bytes of a frame with a payload of this many bytes.
pub(super) fn size(payload: usize) -> usize {
    HEADER + payload.next_multiple_of(ALIGN)
}

/// Appends a frame to `buf`.
pub(super) fn encode(buf: &mut Vec<u8>, seed: u32, head: Head, payload: &[u8]) {
    let start = buf.len();
    let len = payload.len();
    let distance = head.sequence - head.synced;
    assert!(len <= limits::WAL_FRAME_BYTES, "a payload of {len} bytes");
    assert!((1..=u64::from(u32::MAX)).contains(&distance), "{distance} frames unsynced");
    buf.reserve(size(len));
    buf.extend_from_slice(&[0; 4]);
    buf.extend_from_slice(&(len as u32).to_le_bytes());
    buf.extend_from_slice(&head.sequence.to_le_bytes());
    buf.extend_from_slice(&head.index.to_le_bytes());
    buf.extend_from_slice(&(distance as u32).to_le_bytes());
    buf.push(head.kind as u8);
    let tag = tag(seed, &buf[start + 4..start + 29]);
    buf.extend_from_slice(&tag);
    buf.extend_from_slice(payload);
    buf.resize(start + size(len), 0);
    let crc = crc32c::crc32c_append(seed, &buf[start + 4..]);
    buf[start..start + 4].copy_from_slice(&crc.to_le_bytes());
}

fn tag(seed: u32, bytes: &[u8]) -> [u8; 3] {
    let [_, a, b, c] = crc32c::crc32c_append(seed, bytes).to_le_bytes();
    [a, b, c]
}

/// The frame at the start of `bytes`, which reach to the end of the segment.
pub(super) fn decode(bytes: &[u8], seed: u32) -> Result<Frame<'_>, Bad> {
    let header: &[u8; HEADER] = bytes.first_chunk().ok_or(Bad::Header)?;
    // Cheap refusals first: the search runs over every place of a segment.
    let kind = Kind::new(header[28]).ok_or(Bad::Header)?;
    let len = u32::from_le_bytes(field(header, 4)) as usize;
    if len > limits::WAL_FRAME_BYTES || header[29..32] != tag(seed, &header[4..29]) {
        return Err(Bad::Header);
    }
    let sequence = u64::from_le_bytes(field(header, 8));
    let distance = u64::from(u32::from_le_bytes(field(header, 24)));
    let synced = match sequence.checked_sub(distance) {
        Some(synced) if distance > 0 => synced,
        Some(_) | None => return Err(Bad::Header),
    };
    let whole = bytes.get(..size(len)).ok_or(Bad::Payload)?;
    if crc32c::crc32c_append(seed, &whole[4..]) != u32::from_le_bytes(field(header, 0)) {
        return Err(Bad::Payload);
    }
    let head = Head { kind, sequence, synced, index: u64::from_le_bytes(field(header, 16)) };
    Ok(Frame { head, payload: &whole[HEADER..HEADER + len] })
}

/// Every frame that verifies at or after `from`, with its place, whatever lies between.
pub(super) fn find(
    bytes: &[u8],
    from: usize,
    seed: u32,
) -> impl Iterator<Item = (usize, Frame<'_>)> {
    let mut at = from.next_multiple_of(ALIGN);
    std::iter::from_fn(move || {
        while at + HEADER <= bytes.len() {
            let here = at;
            match decode(&bytes[here..], seed) {
                Ok(frame) => {
                    at += frame.size();
                    return Some((here, frame));
                }
                Err(Bad::Header | Bad::Payload) => at += ALIGN,
            }
        }
        None
    })
}

fn field<const N: usize>(header: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[at..at + N]);
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const HEAD: Head = Head { kind: Kind::Entry, sequence: 9, synced: 4, index: 17 };

    /// Old bytes stay readable: change this only together with the format's version.
    #[test]
    fn the_bytes_of_a_frame_stay_as_they_are() {
        let mut bytes = Vec::new();
        encode(&mut bytes, seed(3), HEAD, b"abc");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "2f52825203000000090000000000000011000000000000000500000004\
             8f1a4e6162630000000000"
        );
        assert_eq!(decode(&bytes, seed(3)).unwrap(), Frame { head: HEAD, payload: b"abc" });
    }

    #[test]
    fn no_flipped_bit_and_no_cut_goes_unnoticed() {
        let mut good = Vec::new();
        encode(&mut good, seed(3), HEAD, b"payload of odd length");
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes, seed(3)).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(decode(&good[..len], seed(3)).is_err(), "cut at {len}");
        }
        assert_eq!(decode(&good, seed(4)), Err(Bad::Header), "another epoch");
        assert_eq!(decode(&[0; 64], seed(3)), Err(Bad::Header), "zeros");
    }

    /// A length from the disk must not make us read or allocate beyond what is there.
    #[test]
    fn a_length_is_checked_before_it_is_used() {
        let mut bytes = Vec::new();
        encode(&mut bytes, seed(3), HEAD, &[7; 40]);
        for len in [limits::WAL_FRAME_BYTES as u32, limits::WAL_FRAME_BYTES as u32 + 1, u32::MAX] {
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            let tag = tag(seed(3), &bytes[4..29]);
            bytes[29..32].copy_from_slice(&tag);
            assert!(decode(&bytes, seed(3)).is_err(), "{len}");
        }
    }

    #[test]
    fn the_search_finds_frames_behind_rubbish() {
        let mut bytes = vec![0xa5; 48];
        encode(&mut bytes, seed(3), HEAD, b"one");
        bytes.extend([0x5a; 40]);
        encode(&mut bytes, seed(3), Head { sequence: 10, ..HEAD }, b"two");
        encode(&mut bytes, seed(8), Head { sequence: 11, ..HEAD }, b"stale");
        let found: Vec<_> =
            find(&bytes, 3, seed(3)).map(|(at, frame)| (at, frame.payload)).collect();
        assert_eq!(found, [(48, &b"one"[..]), (128, &b"two"[..])]);
    }
}
