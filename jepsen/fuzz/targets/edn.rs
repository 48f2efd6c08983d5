//! The reader of histories: what it takes for EDN is written, read again and is the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate_jepsen::edn::{Reader, Value};

fuzz_target!(|text: &str| {
    let read: Vec<_> = Reader::new(text).collect();
    let values: Vec<&Value> = read.iter().flatten().map(|(_, value)| value).collect();
    let lines: Vec<String> = values.iter().map(|value| value.to_string()).collect();
    let written = lines.join("\n");
    let again: Result<Vec<_>, _> = Reader::new(&written).collect();
    let again = again.unwrap_or_else(|error| panic!("{written:?} is not read back: {error}"));
    let again: Vec<&Value> = again.iter().map(|(_, value)| value).collect();
    assert_eq!(again, values, "read back from {written:?}");
});
