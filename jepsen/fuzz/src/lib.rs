//! What the targets share: how they cut their input, and what must be true of any record.
//!
//! A target is a program in `targets/`. docs/TESTING.md says what each of them asserts and how to run it.

use quorate::state::{Key, Record};

/// The fuzzer's bytes, taken from the front. What is missing reads as zeros, so that every input means
/// something.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.bytes(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    pub fn byte(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    pub fn short(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    pub fn word(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// A small number or, behind a byte of ones, any.
    pub fn number(&mut self) -> u64 {
        match self.byte() {
            u8::MAX => u64::from_le_bytes(self.array()),
            small => small.into(),
        }
    }

    /// Bytes behind their length.
    pub fn counted(&mut self) -> &'a [u8] {
        let length = self.short();
        self.bytes(length.into())
    }
}

/// A record that is accepted is written again as what is read as the same; a key has only one form.
pub fn check_record(key: &[u8], value: &[u8]) -> Option<(Key, Record)> {
    let read = Key::decode(key).ok()?;
    assert_eq!(read.encode(), key, "{read:?}");
    let record = Record::decode(&read, value).ok()?;
    let written = record.encode();
    match Record::decode(&read, &written) {
        Ok(again) => assert_eq!(again, record),
        Err(error) => panic!("{record:?} is not read back: {error}"),
    }
    Some((read, record))
}
