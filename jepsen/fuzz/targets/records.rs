//! Keys and values of the image and of snapshots: what is accepted is written and read as the same, and
//! encoded keys sort as keys do.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate::state::Key;
use quorate_fuzz::{Input, check_record};

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut keys = Vec::new();
    while !input.is_empty() {
        let (key, value) = (input.counted(), input.counted());
        check_record(key, value);
        keys.extend(Key::decode(key).map(|read| (read, key)));
    }
    keys.sort();
    for pair in keys.windows(2) {
        assert!(pair[0].1 <= pair[1].1, "{pair:?}");
    }
});
