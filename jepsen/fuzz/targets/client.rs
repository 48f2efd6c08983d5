//! What a client is given as text, and what a server tells it of an error. The first byte of the input says
//! which of them the rest is. What is accepted is printed and read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quorate::client::ChannelOptions;
use quorate::client::balance::Policy;
use quorate::error::Error;
use tonic::{Code, Status};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    if *kind == 0 {
        let Some((code, rest)) = rest.split_first() else { return };
        let half = rest.len().min(16);
        let text = String::from_utf8_lossy(&rest[..half]);
        let details = bytes::Bytes::copy_from_slice(&rest[half..]);
        let error = Error::from(Status::with_details(Code::from(i32::from(*code)), text, details));
        assert_eq!(Error::from(Status::from(error.clone())), error);
        return;
    }
    let Ok(text) = std::str::from_utf8(rest) else { return };
    if *kind == 1 {
        drop(text.parse::<ChannelOptions>());
    } else if let Ok(policy) = text.parse::<Policy>() {
        assert_eq!(policy.to_string().parse::<Policy>(), Ok(policy));
    }
});
