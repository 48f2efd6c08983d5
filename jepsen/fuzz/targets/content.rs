//! Content of configuration: parsers, schemas, differences. The first byte of the input says what is asked of
//! the rest.
//!
//! Nothing panics, nothing takes long, and the same bytes are always judged in the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate::content::{self, Format, Schema};
use quorate_fuzz::Input;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let what = input.byte();
    let format = Format::ALL[usize::from(what & 0x0f) % Format::ALL.len()];
    match what >> 4 {
        0..=7 => {
            let judged = content::check(format, input.0);
            assert_eq!(content::check(format, input.0), judged);
        }
        8..=11 => {
            let first = input.counted();
            let Ok(text) = std::str::from_utf8(first) else { return };
            let Ok(schema) = Schema::compile(text) else { return };
            let judged = schema.check(format, input.0);
            assert_eq!(schema.check(format, input.0), judged);
            if judged.is_ok() {
                assert_eq!(content::check(format, input.0), Ok(()), "fits a schema");
            }
        }
        _ => {
            let (old, new) = (input.counted(), input.0);
            assert_eq!(content::diff("old", "new", old, new).is_empty(), old == new);
        }
    }
});
