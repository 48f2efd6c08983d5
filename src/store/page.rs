//! The records of the image that lie together in one row of sled, in the order of their keys. What sled takes for a
//! row has little to do with its length; most records are short.
//!
//! A record in a page, little endian: u16 bytes that its key shares with the key before it in the page, u16 further
//! bytes of the key, u32 bytes of the value; the further bytes; the value.

use super::image::{Error, Row};
use crate::limits::IMAGE_PAGE_BYTES;

const HEAD: usize = 8;
/// A page that has so many bytes and would have more than [`IMAGE_PAGE_BYTES`] with the next record is cut.
const CUT_BYTES: usize = IMAGE_PAGE_BYTES / 4 * 3;

/// Some records.
#[derive(Debug, Default)]
pub struct Page {
    bytes: Vec<u8>,
    last: Vec<u8>,
}

impl Page {
    /// Adds a record behind all others.
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let shared = self.last.iter().zip(key).take_while(|(a, b)| a == b).count();
        let length = |length| u16::try_from(length).expect("a key is shorter than 64 KiB");
        let value_length =
            u32::try_from(value.len()).expect("a record is no longer than RECORD_BYTES");
        let mut head = [0; HEAD];
        head[..2].copy_from_slice(&length(shared).to_le_bytes());
        head[2..4].copy_from_slice(&length(key.len() - shared).to_le_bytes());
        head[4..].copy_from_slice(&value_length.to_le_bytes());
        self.bytes.extend_from_slice(&head);
        self.bytes.extend_from_slice(&key[shared..]);
        self.bytes.extend_from_slice(value);
        self.last.truncate(shared);
        self.last.extend_from_slice(&key[shared..]);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The key of the last record.
    pub fn last_key(&self) -> &[u8] {
        &self.last
    }
}

/// The records of a page, one after the other.
#[derive(Debug)]
pub struct Records<'a> {
    rest: &'a [u8],
    key: Vec<u8>,
    /// None behind the last record.
    value: Option<&'a [u8]>,
}

impl<'a> Records<'a> {
    /// At the first record.
    pub fn new(bytes: &'a [u8]) -> Result<Records<'a>, Error> {
        let mut records = Records { rest: bytes, key: Vec::new(), value: None };
        records.advance()?;
        match bytes.len() > IMAGE_PAGE_BYTES && !records.rest.is_empty() {
            true => Err(Error::damaged("a long page has more than one record")),
            false => Ok(records),
        }
    }

    /// Key and value of the record at which this stands; None behind the last one.
    pub fn current(&self) -> Option<(&[u8], &'a [u8])> {
        self.value.map(|value| (&*self.key, value))
    }

    /// On to the next record.
    pub fn advance(&mut self) -> Result<(), Error> {
        if self.rest.is_empty() {
            self.value = None;
            return Ok(());
        }
        let damaged = || Error::damaged("a page is cut off");
        let (head, rest) = self.rest.split_first_chunk::<HEAD>().ok_or_else(damaged)?;
        let [a, b, c, d, length @ ..] = *head;
        let (shared, further) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        let (further, rest) = rest.split_at_checked(further.into()).ok_or_else(damaged)?;
        let length = usize::try_from(u32::from_le_bytes(length)).map_err(|_| damaged())?;
        let (value, rest) = rest.split_at_checked(length).ok_or_else(damaged)?;
        if usize::from(shared) > self.key.len() {
            return Err(Error::damaged("a key shares more bytes than the key before it has"));
        }
        if self.key[shared.into()..] >= *further && self.value.is_some() {
            return Err(Error::damaged("the records of a page are not in the order of keys"));
        }
        self.key.truncate(shared.into());
        self.key.extend_from_slice(further);
        (self.value, self.rest) = (Some(value), rest);
        Ok(())
    }
}

/// All records of a page.
pub fn read(bytes: &[u8]) -> Result<Vec<Row>, Error> {
    let (mut records, mut rows) = (Records::new(bytes)?, Vec::new());
    while let Some((key, value)) = records.current() {
        rows.push((key.to_vec(), value.to_vec()));
        records.advance()?;
    }
    Ok(rows)
}

/// Cuts records into pages: of up to [`IMAGE_PAGE_BYTES`], and, but for the last one, not far from it unless the next
/// record is long. A record that is longer than a page is one by itself.
#[derive(Debug, Default)]
pub struct Packer {
    full: Option<Page>,
    open: Page,
}

impl Packer {
    /// Adds a record behind all others. Returns a page that nothing is added to any more.
    pub fn push(&mut self, key: &[u8], value: &[u8]) -> Option<Page> {
        assert!(self.open.is_empty() || *self.open.last < *key, "not in the order of keys");
        let mut finished = None;
        let bytes = self.open.bytes.len();
        if bytes > 0 && bytes + HEAD + key.len() + value.len() > CUT_BYTES {
            finished = self.full.replace(std::mem::take(&mut self.open));
        }
        self.open.push(key, value);
        finished
    }

    /// The last two pages; the first of them may be missing, the second one empty.
    pub fn finish(self) -> (Option<Page>, Page) {
        let Packer { full, open } = self;
        match full {
            Some(mut page) if page.bytes.len() + open.bytes.len() <= IMAGE_PAGE_BYTES => {
                let mut records = Records::new(&open.bytes).expect("a page that was just made");
                while let Some((key, value)) = records.current() {
                    page.push(key, value);
                    records.advance().expect("a page that was just made");
                }
                (None, page)
            }
            full => (full, open),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn pack(rows: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<Page> {
        let mut packer = Packer::default();
        let mut pages: Vec<Page> =
            rows.iter().filter_map(|(key, value)| packer.push(key, value)).collect();
        let (page, last) = packer.finish();
        pages.extend(page);
        pages.push(last);
        pages
    }

    proptest! {
        #[test]
        fn what_is_packed_is_read(
            rows in prop::collection::btree_map(
                prop::collection::vec(0u8..3, 0..9),
                (0usize..600).prop_map(|length| vec![7; length]),
                0..60,
            ),
        ) {
            let pages = pack(&rows);
            let read: Vec<_> = pages.iter().flat_map(|page| read(page.bytes()).unwrap()).collect();
            prop_assert_eq!(read, rows.into_iter().collect::<Vec<_>>());
            if let [.., full, last] = &*pages {
                prop_assert!(full.bytes().len() + last.bytes().len() > IMAGE_PAGE_BYTES);
            }
            for (number, page) in pages.iter().enumerate() {
                prop_assert!(page.bytes().len() <= IMAGE_PAGE_BYTES);
                let last = number + 1 == pages.len();
                prop_assert!(last || page.bytes().len() > CUT_BYTES - 600 - 2 * HEAD - 9);
                prop_assert!(last || page.last_key() == self::read(page.bytes()).unwrap().pop().unwrap().0);
            }
        }

        /// Whatever is there instead of a page: records in order, or an error.
        #[test]
        fn damage_is_an_error(
            count in 1usize..9,
            length in 0usize..40,
            at in any::<prop::sample::Index>(),
            with in prop::option::of(any::<u8>()),
        ) {
            let rows = (0..count as u8).map(|key| (vec![key / 3, key], vec![key; length])).collect();
            let mut bytes = pack(&rows).pop().unwrap().bytes().to_vec();
            match with {
                Some(with) => *at.get_mut(&mut bytes) = with,
                None => bytes.truncate(at.index(bytes.len())),
            }
            if let Ok(rows) = read(&bytes) {
                prop_assert!(rows.is_sorted_by(|a, b| a.0 < b.0));
            }
        }
    }

    #[test]
    fn a_long_record_is_a_page_by_itself() {
        let long = vec![1; 2 * IMAGE_PAGE_BYTES];
        let row = |key: u8, value: &[u8]| (vec![key], value.to_vec());
        let rows = [row(1, b"a"), row(2, b"b"), row(3, &long), row(4, b""), row(5, b"c")];
        let pages = pack(&rows.clone().into());
        let pages: Vec<_> = pages.iter().map(|page| read(page.bytes()).unwrap()).collect();
        assert_eq!(pages, [&rows[..2], &rows[2..3], &rows[3..]]);
        assert_eq!(read(b"").unwrap(), []);

        let mut both = Page::default();
        both.push(&[3], &long);
        assert!(Records::new(both.bytes()).is_ok());
        both.push(&[4], b"");
        assert!(Records::new(both.bytes()).is_err());
    }

    /// What a page looks like on the disk.
    #[test]
    fn bytes() {
        let rows = [(b"abc".to_vec(), b"12".to_vec()), (b"abde".to_vec(), b"".to_vec())];
        let page = pack(&rows.into()).pop().unwrap();
        assert_eq!(page.bytes(), b"\0\0\x03\0\x02\0\0\0abc12\x02\0\x02\0\0\0\0\0de");
    }
}
