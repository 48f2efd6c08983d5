//! The changes of one batch as the image takes them: encoded, in the order of their keys. There may be a million of
//! them, of records that nobody has touched for a while: keys are compared where they lie side by side, eight bytes of
//! each at once, and records are encoded one by one, when their turn comes.

use std::vec;

use super::image::Write;
use crate::limits::LOOK_AHEAD;
use crate::state::{self, Instance, Key, Record};

/// So many are compared whole.
const FEW: usize = 32;
/// Keys lie together in blocks of so many bytes, and what the last one of each is longer.
const BLOCK_BYTES: usize = 64 * 1024;
/// Bytes of a key that are compared at once.
const HEAD_BYTES: usize = size_of::<u64>();

/// Collects what is to be written, in any order, each key once.
#[derive(Debug)]
pub struct Unordered {
    keys: Keys,
    writes: Vec<Slot>,
}

/// Encoded keys, one behind the other. In blocks, so that they are never copied.
type Keys = Vec<Vec<u8>>;

#[derive(Debug)]
struct Slot {
    /// Bytes of the key at the depth at which it is being sorted.
    head: u64,
    block: u32,
    /// Where in the block the key begins.
    start: u32,
    length: u32,
    /// None: it goes.
    record: Option<Record>,
}

impl Slot {
    fn key<'k>(&self, keys: &'k [Vec<u8>]) -> &'k [u8] {
        &keys[self.block as usize][self.start as usize..][..self.length as usize]
    }

    fn instance(&self) -> Option<&Instance> {
        match &self.record {
            Some(Record::Instance(instance)) => Some(instance),
            _ => None,
        }
    }
}

impl Unordered {
    pub fn with_capacity(writes: usize) -> Unordered {
        Unordered { keys: Keys::new(), writes: Vec::with_capacity(writes) }
    }

    /// Adds a record, None when it goes.
    pub fn push(&mut self, key: &Key, record: Option<Record>) {
        self.push_with(|out| {
            key.encode_to(out);
            record
        });
    }

    /// Adds the record that `encode` returns after it has appended its key.
    pub fn push_with(&mut self, encode: impl FnOnce(&mut Vec<u8>) -> Option<Record>) {
        if self.keys.last().is_none_or(|block| block.len() >= BLOCK_BYTES) {
            self.keys.push(Vec::with_capacity(BLOCK_BYTES + BLOCK_BYTES / 16));
        }
        let number = |number| u32::try_from(number).expect("a key has a few KiB at most");
        let block = number(self.keys.len() - 1);
        let out = self.keys.last_mut().expect("one was just made sure of");
        let start = out.len();
        let record = encode(out);
        let length = number(out.len() - start);
        self.writes.push(Slot { head: 0, block, start: number(start), length, record });
    }

    pub fn into_ordered(mut self) -> Writes {
        sort(&self.keys, &mut self.writes, 0);
        Writes { keys: self.keys, rest: self.writes.into_iter(), seen: 0 }
    }
}

/// Sorts by the keys, all of which begin with the same `depth` bytes.
fn sort(keys: &[Vec<u8>], writes: &mut [Slot], depth: usize) {
    let whole = |a: &Slot, b: &Slot| a.key(keys).cmp(b.key(keys));
    let [first, rest @ ..] = &*writes else { return };
    if rest.len() < FEW {
        return writes.sort_unstable_by(whole);
    }
    let same = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let first = &first.key(keys)[depth..];
    let common =
        rest.iter().fold(first, |common, slot| &common[..same(common, &slot.key(keys)[depth..])]);
    let depth = depth + common.len();
    for slot in &mut *writes {
        let rest = &slot.key(keys)[depth..];
        let mut head = [0; HEAD_BYTES];
        let length = rest.len().min(HEAD_BYTES);
        head[..length].copy_from_slice(&rest[..length]);
        slot.head = u64::from_be_bytes(head);
    }
    writes.sort_unstable_by_key(|slot| slot.head);
    let depth = depth + HEAD_BYTES;
    for run in writes.chunk_by_mut(|a, b| a.head == b.head) {
        // Where a key ends, zeros are not bytes of it.
        match run.iter().all(|slot| slot.length as usize >= depth) {
            true => sort(keys, run, depth),
            false => run.sort_unstable_by(whole),
        }
    }
}

/// All that is to be written, in the order of keys.
#[derive(Debug)]
pub struct Writes {
    keys: Keys,
    rest: vec::IntoIter<Slot>,
    /// How many of them are at hand.
    seen: usize,
}

impl Iterator for Writes {
    type Item = Write;

    fn next(&mut self) -> Option<Write> {
        if self.seen == 0 {
            let next = self.rest.as_slice();
            self.seen = next.len().min(LOOK_AHEAD);
            state::look_at_whole(next[..self.seen].iter().filter_map(Slot::instance));
        }
        let slot = self.rest.next()?;
        self.seen -= 1;
        Some((slot.key(&self.keys).to_vec(), slot.record.map(|record| record.encode())))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ordered(keys: &BTreeSet<Vec<u8>>) -> Vec<Vec<u8>> {
        let mut shuffled: Vec<_> = keys.iter().collect();
        shuffled.sort_by_key(|key| xxhash_rust::xxh3::xxh3_64(key));
        let mut unordered = Unordered::with_capacity(0);
        for key in shuffled {
            unordered.push_with(|out| {
                out.extend_from_slice(key);
                None
            });
        }
        unordered.into_ordered().map(|(key, _)| key).collect()
    }

    fn bytes(length: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop::sample::select(vec![0, 1, b'a', 0xFF]), length)
    }

    proptest! {
        /// Keys of some groups that share long beginnings, some of which are keys.
        #[test]
        fn keys_come_in_order(
            beginnings in prop::collection::vec(bytes(0..30), 1..4),
            ends in prop::collection::btree_set((0usize..4, bytes(0..20)), 0..300),
        ) {
            let keys: BTreeSet<Vec<u8>> = ends
                .iter()
                .map(|(group, end)| [&*beginnings[group % beginnings.len()], end].concat())
                .collect();
            prop_assert_eq!(ordered(&keys), keys.into_iter().collect::<Vec<_>>());
        }

        /// Keys that are made of few parts and are alike for several times as many bytes as are compared at once; many
        /// are the beginning of others, and zeros may follow.
        #[test]
        fn keys_with_many_parts_in_common_come_in_order(
            parts in prop::collection::vec(prop_oneof![bytes(7..10), Just(vec![0; 8])], 3),
            chosen in prop::collection::btree_set(prop::collection::vec(0usize..3, 0..6), 0..400),
        ) {
            let keys: BTreeSet<Vec<u8>> = chosen
                .iter()
                .map(|chosen| chosen.iter().flat_map(|part| parts[*part].clone()).collect())
                .collect();
            prop_assert_eq!(ordered(&keys), keys.into_iter().collect::<Vec<_>>());
        }
    }

    /// About as long as keys may be: each begins with all of the one before but its last byte.
    #[test]
    fn a_staircase_of_keys_comes_in_order() {
        let stair = |step: usize| [&*vec![b'a'; 8 * step], b"b"].concat();
        let top = (0..40).map(|number| [&*vec![b'a'; 4_000], &[number]].concat());
        let keys: BTreeSet<Vec<u8>> = (0..500).map(stair).chain(top).collect();
        assert_eq!(ordered(&keys), keys.into_iter().collect::<Vec<_>>());
    }
}
