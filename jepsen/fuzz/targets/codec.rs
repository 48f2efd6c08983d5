//! Bytes of entries, votes and ids in the log, and of what peers say: what is accepted is written and read as
//! the same. The first byte of the input says what the rest is.
#![no_main]

use std::fmt::Debug;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quorate::raft::codec::{self, Malformed};
use quorate::raft::types::{Entry, Membership, Outcomes, Payload};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let rest = Bytes::copy_from_slice(rest);
    match kind % 7 {
        0 => entry(rest),
        1 => same(rest, codec::decode_vote, codec::encode_vote),
        2 => same(rest, codec::decode_log_id, codec::encode_log_id),
        3 => same(rest, codec::decode_append_result, codec::encode_append_result),
        4 => {
            let Ok(read) = codec::decode_append(rest) else { return };
            let again = codec::decode_append(codec::encode_append(&read)).expect("written by us");
            assert_eq!(format!("{again:?}"), format!("{read:?}"));
        }
        5 => same(
            rest,
            |bytes| codec::from_bytes::<Outcomes>("outcomes", &bytes),
            |outcomes| codec::to_bytes(outcomes),
        ),
        _ => same(
            rest,
            |bytes| codec::from_bytes::<Membership>("membership", &bytes),
            |membership| codec::to_bytes(membership),
        ),
    }
});

fn same<T: PartialEq + Debug>(
    bytes: Bytes,
    decode: impl Fn(Bytes) -> Result<T, Malformed>,
    encode: impl Fn(&T) -> Bytes,
) {
    let Ok(read) = decode(bytes) else { return };
    assert_eq!(decode(encode(&read)).as_ref(), Ok(&read));
}

fn entry(bytes: Bytes) {
    same(bytes.clone(), codec::decode_entry, codec::encode_entry);
    let Ok(Entry { payload: Payload::Normal(batch), .. }) = codec::decode_entry(bytes) else {
        return;
    };
    let carried: usize = batch.iter().map(|command| command.len() + 4).sum();
    assert!(carried <= batch.commands.len());
}
