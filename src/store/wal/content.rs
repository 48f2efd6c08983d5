//! What the log holds at one point of its stream, apart from the entries' bytes. The writer keeps
//! one to check what it is given, recovery replays one, and each segment begins with one, so that
//! the segments before it may go.

use std::ops::Range;

use bytes::Bytes;

/// Vote, ids and the range of live entries.
///
/// Invariant: `live` begins right behind `purged`, or further on when the log began at a higher index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    pub purged: Option<(u64, Bytes)>,
    /// Indexes of the entries that are neither truncated nor purged.
    pub live: Range<u64>,
}

impl Content {
    /// The only index that may come next; None when any may.
    pub fn next(&self) -> Option<u64> {
        if self.live.is_empty() {
            self.purged.as_ref().map(|(index, _)| index + 1)
        } else {
            Some(self.live.end)
        }
    }

    pub fn may_append(&self, index: u64) -> Result<(), String> {
        match self.next() {
            Some(next) if next != index => Err(format!("entry {index} where {next} belongs")),
            Some(_) | None if index == u64::MAX => Err(format!("entry {index}")),
            Some(_) | None => Ok(()),
        }
    }

    pub fn append(&mut self, index: u64) {
        if self.live.is_empty() {
            self.live.start = index;
        }
        self.live.end = index + 1;
    }

    /// The index from which entries are dropped that come after `last`, or after none.
    pub fn first_after(&self, last: Option<u64>) -> u64 {
        let purged = self.purged.as_ref().map(|(purged, _)| *purged);
        last.or(purged).map_or(0, |last| last.saturating_add(1))
    }

    pub fn may_truncate(&self, from: u64) -> Result<(), String> {
        match &self.purged {
            Some((purged, _)) if from <= *purged => {
                Err(format!("truncation from {from}, but {purged} is purged"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Drops the entries from `from` on.
    pub fn truncate(&mut self, from: u64) {
        self.live.end = self.live.end.min(from.max(self.live.start));
    }

    pub fn may_purge(&self, index: u64) -> Result<(), String> {
        match &self.purged {
            Some((purged, _)) if index < *purged => Err(format!("purged {index} after {purged}")),
            Some(_) | None if index == u64::MAX => Err(format!("purged {index}")),
            Some(_) | None => Ok(()),
        }
    }

    /// Drops the entries up to `index`.
    pub fn purge(&mut self, index: u64, log_id: Bytes) {
        self.purged = Some((index, log_id));
        self.live.start = self.live.start.max(index + 1);
        self.live.end = self.live.end.max(self.live.start);
    }

    /// Bytes that [`Content::encode`] gives.
    pub fn encoded_len(&self) -> usize {
        let len = |id: Option<&Bytes>| id.map_or(0, Bytes::len);
        let purged = self.purged.as_ref().map(|(_, log_id)| log_id);
        36 + len(self.vote.as_ref()) + len(self.committed.as_ref()) + len(purged)
    }

    /// Payload of a state frame: the live range (u64, u64), then vote, committed id, purged id,
    /// each as a length (u32, all ones for none) and bytes, then the purged index (u64).
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.live.start.to_le_bytes());
        out.extend_from_slice(&self.live.end.to_le_bytes());
        let purged = self.purged.as_ref().map(|(_, log_id)| log_id);
        for id in [self.vote.as_ref(), self.committed.as_ref(), purged] {
            out.extend_from_slice(&id.map_or(u32::MAX, |id| id.len() as u32).to_le_bytes());
            out.extend_from_slice(id.map_or(&[][..], |id| id));
        }
        let index = self.purged.as_ref().map_or(0, |(index, _)| *index);
        out.extend_from_slice(&index.to_le_bytes());
        out
    }

    pub fn decode(mut bytes: &[u8]) -> Option<Content> {
        let start = u64::from_le_bytes(take(&mut bytes)?);
        let end = u64::from_le_bytes(take(&mut bytes)?);
        let mut id = || {
            let len = u32::from_le_bytes(take(&mut bytes)?);
            if len == u32::MAX {
                return Some(None);
            }
            let (id, rest) = bytes.split_at_checked(len as usize)?;
            bytes = rest;
            Some(Some(Bytes::copy_from_slice(id)))
        };
        let (vote, committed, purged) = (id()?, id()?, id()?);
        let index = u64::from_le_bytes(take(&mut bytes)?);
        let purged = purged.map(|log_id| (index, log_id));
        let behind = purged.as_ref().is_none_or(|(index, _)| *index < start);
        let whole = bytes.is_empty() && start <= end && behind;
        whole.then_some(Content { vote, committed, purged, live: start..end })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn content_is_read_back_as_it_was_written() {
        let full = Content {
            vote: Some(Bytes::from_static(b"v")),
            committed: Some(Bytes::new()),
            purged: Some((7, Bytes::from_static(b"seven"))),
            live: 8..12,
        };
        for content in [Content::default(), full] {
            let bytes = content.encode();
            assert_eq!(Content::decode(&bytes).unwrap(), content);
            assert_eq!(bytes.len(), content.encoded_len());
            for len in 0..bytes.len() {
                assert_eq!(Content::decode(&bytes[..len]), None, "cut at {len}");
            }
        }
    }

    /// Old bytes stay readable: change this only together with the format's version.
    #[test]
    fn the_bytes_of_a_state_stay_as_they_are() {
        let content = Content {
            vote: Some(Bytes::from_static(b"vo")),
            committed: None,
            purged: Some((7, Bytes::from_static(b"id"))),
            live: 8..12,
        };
        let hex: String = content.encode().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "08000000000000000c0000000000000002000000766fffffffff0200000069640700000000000000"
        );
    }

    /// It would be nothing that the writer can go on from.
    #[test]
    fn live_entries_that_are_purged_are_no_content() {
        for (index, live) in [(7, 7..9), (u64::MAX, 7..9), (u64::MAX, u64::MAX..u64::MAX)] {
            let purged = Some((index, Bytes::from_static(b"id")));
            let content = Content { purged, live, ..Content::default() };
            assert_eq!(Content::decode(&content.encode()), None, "{content:?}");
        }
    }

    #[test]
    fn entries_follow_each_other_without_a_gap() {
        let mut content = Content::default();
        assert!(content.may_append(5).is_ok(), "an empty log may begin anywhere");
        content.append(5);
        content.append(6);
        assert!(content.may_append(8).is_err());
        assert!(content.may_append(6).is_err());
        content.truncate(6);
        assert!(content.may_append(6).is_ok());
        content.append(6);
        content.purge(9, Bytes::new());
        assert!(content.may_append(7).is_err(), "entries up to 9 are purged");
        content.append(10);
        assert!(content.may_truncate(9).is_err());
        assert!(content.may_purge(8).is_err());
        assert_eq!(content.first_after(None), 10);
        content.truncate(10);
        assert_eq!(content.next(), Some(10));
        let empty = Content::default();
        assert!(empty.may_append(u64::MAX).is_err());
        assert!(empty.may_purge(u64::MAX).is_err());
    }
}
