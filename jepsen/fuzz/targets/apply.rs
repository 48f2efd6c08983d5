//! Commands of the log. Input: control bytes, each followed by the fields of a command as the log's codec
//! writes them, without lengths, so that a mutation of one command leaves its neighbours readable.
//!
//! Two states that are given the same entries answer the same and are the same, also when one of them is
//! restored from its records in between; and the changes that are told are those that were made.
#![no_main]

use std::collections::BTreeMap;

use bincode::Options as _;
use libfuzzer_sys::fuzz_target;
use quorate::state::{Applied, Command, Entry, Key, Record, State};
use quorate_fuzz::{Input, check_record};

/// The entry ends before the command.
const NEW_ENTRY: u8 = 1;
/// Time passes before the command: a number of tenths of a second.
const LATER: u8 = 2;
const OTHER_TERM: u8 = 4;
/// The second state is restored from its records.
const RESTORE: u8 = 8;
/// The command is bytes behind their length.
const ANY_BYTES: u8 = 16;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut pair = Pair::default();
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let (mut term, mut at_ms) = (1, 1_700_000_000_000);
    while !input.is_empty() {
        let control = input.byte();
        if control & (NEW_ENTRY | LATER | OTHER_TERM | RESTORE) != 0 {
            pair.apply(term, at_ms, &std::mem::take(&mut batch));
        }
        if control & LATER != 0 {
            at_ms = input.number().saturating_mul(100).saturating_add(at_ms);
        }
        if control & OTHER_TERM != 0 {
            term = input.number();
        }
        if control & RESTORE != 0 {
            pair.restore();
        }
        if control & ANY_BYTES != 0 {
            batch.push(input.counted().to_vec());
        } else if let Some(command) = command(&mut input) {
            batch.push(command);
        }
    }
    pair.apply(term, at_ms, &batch);
    pair.restore();
});

fn command(input: &mut Input<'_>) -> Option<Vec<u8>> {
    let coding = bincode::DefaultOptions::new().with_varint_encoding().with_limit(1 << 20);
    let read = coding.allow_trailing_bytes().deserialize_from::<_, Command>(&mut input.0);
    let command = read.ok()?;
    let bytes = command.encode().ok()?;
    assert_eq!(Command::decode(&bytes), Ok(command));
    Some(bytes)
}

#[derive(Default)]
struct Pair {
    one: State,
    other: State,
    /// Of the first, as its changes tell.
    records: BTreeMap<Key, Record>,
}

impl Pair {
    fn apply(&mut self, term: u64, at_ms: u64, batch: &[Vec<u8>]) {
        let commands = batch.iter().map(Vec::as_slice).collect();
        let entry = Entry { term, at_ms, commands };
        let applied = self.one.apply(&entry);
        assert_eq!(applied, self.other.apply(&entry));
        self.follow(&applied);
    }

    fn follow(&mut self, applied: &Applied) {
        for change in applied.events.iter().flat_map(|event| &event.changes) {
            let before = match &change.record {
                Some(record) => self.records.insert(change.key.clone(), record.clone()),
                None => self.records.remove(&change.key),
            };
            assert_eq!(change.fresh, before.is_none(), "{change:?}, before {before:?}");
        }
        self.records.insert(Key::Meta, Record::Meta(applied.meta));
    }

    fn restore(&mut self) {
        let records = self.one.records();
        assert!(self.records.clone().into_iter().eq(records), "other changes than were told");
        let stored = self.other.records().map(|(key, record)| {
            check_record(&key.encode(), &record.encode()).ok_or("a record that is not read back")
        });
        let restored = State::restore(stored).expect("restored");
        assert_eq!(restored.digest(), self.one.digest());
        self.other = restored;
    }
}
