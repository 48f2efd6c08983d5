//! Where damage to a log is certain to be seen, from what its files hold: `src/store/wal` tells of the bytes.
//!
//! Not every byte of them counts. Behind the end of the log there is what an earlier use has left, and of its last
//! frames nobody can say whether they ever reached the disk.

/// Bytes of a segment's header, and of a frame's.
const SEGMENT: usize = 512;
const HEADER: usize = 32;
const ALIGN: usize = 8;
const STATE: u8 = 1;
const END: u8 = 8;

/// A frame: in which segment, where and how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub segment: usize,
    pub at: usize,
    pub bytes: usize,
}

/// The frames of a log, in the order of its segments, of which another one says that they were on the disk
/// before it was written.
pub fn synced(segments: &[&[u8]]) -> Vec<Frame> {
    let mut frames: Vec<(Frame, Said)> = Vec::new();
    'segments: for (segment, bytes) in segments.iter().enumerate() {
        let mut at = SEGMENT;
        loop {
            let follows = |said: &Said| frames.last().is_none_or(|(_, last)| last.next(said));
            let begins = |said: &Said| (at == SEGMENT) == (said.kind == STATE);
            let found = Said::read(bytes, at).filter(|said| follows(said) && begins(said));
            // What does not go on with the stream is no part of it.
            let Some(said) = found else { break 'segments };
            frames.push((Frame { segment, at, bytes: said.bytes }, said));
            at += said.bytes;
            if said.kind == END {
                break;
            }
        }
    }
    // The last one may be torn itself, and says nothing then.
    let witness = frames.len().checked_sub(2).map(|at| frames[at].1);
    let until = witness.map_or(0, |said| said.synced);
    frames.iter().take_while(|(_, said)| said.sequence <= until).map(|(frame, _)| *frame).collect()
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy)]
struct Said {
    kind: u8,
    sequence: u64,
    /// The frames up to this one were on the disk.
    synced: u64,
    bytes: usize,
}

impl Said {
    /// None: there is no frame.
    fn read(bytes: &[u8], at: usize) -> Option<Said> {
        let header: &[u8; HEADER] = bytes.get(at..)?.first_chunk()?;
        let word = |at: usize| header[at..].first_chunk().map(|word| u32::from_le_bytes(*word));
        let long = |at: usize| header[at..].first_chunk().map(|long| u64::from_le_bytes(*long));
        let (payload, sequence, distance) = (word(4)? as usize, long(8)?, u64::from(word(24)?));
        let size = HEADER + payload.next_multiple_of(ALIGN);
        let is_one = matches!(header[28], STATE..=END)
            && (1..=sequence).contains(&distance)
            && at + size <= bytes.len();
        is_one.then(|| Said {
            kind: header[28],
            sequence,
            synced: sequence - distance,
            bytes: size,
        })
    }

    fn next(&self, other: &Said) -> bool {
        self.sequence + 1 == other.sequence
    }
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// A frame of which so many before it, and itself, were not on the disk.
    pub fn frame(kind: u8, sequence: u64, distance: u32, payload: usize) -> Vec<u8> {
        let mut bytes = vec![0; HEADER + payload.next_multiple_of(ALIGN)];
        bytes[4..8].copy_from_slice(&(payload as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        bytes[24..28].copy_from_slice(&distance.to_le_bytes());
        bytes[28] = kind;
        bytes
    }

    pub fn segment(frames: &[Vec<u8>], rest: &[u8]) -> Vec<u8> {
        [&[7; SEGMENT][..], &frames.concat(), rest].concat()
    }

    /// So many frames, each in a group of its own, and so many bytes behind them.
    pub fn log(frames: u64, rest: usize) -> Vec<u8> {
        let frames = (1..=frames).map(|at| frame(if at == 1 { STATE } else { 4 }, at, 1, 40));
        segment(&frames.collect::<Vec<_>>(), &vec![9; rest])
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{frame, segment};
    use super::*;

    fn places(segments: &[Vec<u8>]) -> Vec<(usize, usize)> {
        let segments: Vec<&[u8]> = segments.iter().map(|segment| &**segment).collect();
        synced(&segments).iter().map(|frame| (frame.segment, frame.at)).collect()
    }

    #[test]
    fn what_a_later_frame_vouches_for() {
        // Two groups of two frames, a frame by itself, and the last one.
        let mut frames = vec![frame(STATE, 1, 1, 3), frame(4, 2, 1, 20)];
        frames.extend([frame(4, 3, 1, 8), frame(4, 4, 2, 8), frame(7, 5, 1, 0), frame(4, 6, 1, 8)]);
        let at = [512, 552, 608, 648].map(|at| (0, at));
        assert_eq!(places(&[segment(&frames, &[0; 4096])]), at);
        // Without the last frame the one before it may be torn, and nobody else speaks for the second group.
        assert_eq!(places(&[segment(&frames[..5], &[0; 4096])]), at[..2]);
        for few in 0..2 {
            assert_eq!(places(&[segment(&frames[..few], &[0; 4096])]), []);
        }
        // What an earlier use of the file has left does not count.
        let left = [frame(4, 2, 1, 8), frame(4, 3, 1, 8)].concat();
        assert_eq!(places(&[segment(&frames, &left)]), at);
        let unused = segment(&[frame(STATE, 1, 1, 3), frame(4, 2, 1, 8)], &[]);
        assert_eq!(places(&[segment(&frames, &[]), unused]), at);
    }

    #[test]
    fn what_goes_on_in_the_next_segment() {
        let first =
            segment(&[frame(STATE, 7, 1, 3), frame(4, 8, 1, 8), frame(END, 9, 1, 0)], &[9; 99]);
        let second =
            segment(&[frame(STATE, 10, 1, 3), frame(4, 11, 2, 8), frame(4, 12, 1, 8)], &[0; 64]);
        let at = [(0, 512), (0, 552), (0, 592)];
        assert_eq!(places(&[first, second]), at);
    }
}
