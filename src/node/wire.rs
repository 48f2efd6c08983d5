//! What nodes say to each other besides consensus: forwarded commands, read indexes, keep-alives,
//! administration. bincode behind a version byte, see [`crate::raft::codec`].

use std::collections::BTreeMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use tonic::Code;

use crate::error::Error;
use crate::proto::v1::Reason;
use crate::raft::codec::Malformed;
use crate::raft::types::Member;

/// An [`Error`] between peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireError {
    code: i32,
    reason: i32,
    message: String,
    metadata: BTreeMap<String, String>,
}

impl From<Error> for WireError {
    fn from(error: Error) -> Self {
        let (code, reason, metadata) = error.to_wire();
        WireError {
            code: code as i32,
            reason: reason as i32,
            message: error.to_string(),
            metadata: metadata.into_iter().collect(),
        }
    }
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Self {
        let reason = Reason::try_from(error.reason).unwrap_or(Reason::Unspecified);
        Error::from_wire(Code::from_i32(error.code), &error.message, reason, &error.metadata)
    }
}

/// Who a node is, asked by its peers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub client_address: String,
    pub version: String,
}

/// A membership change or leader transfer asked of the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    AddLearner { id: u64, member: Member },
    Promote { id: u64 },
    Remove { id: u64 },
    TransferLeader { to: Option<u64> },
    Describe,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AdminReply {
    Done,
    Leader(u64),
    Description(Description),
}

/// Commands on their way to the leader: for each an id, how long its caller still waits, its bytes.
pub fn encode_forward<'a>(commands: impl Iterator<Item = (u64, u32, &'a Bytes)>) -> Bytes {
    let mut out = BytesMut::new();
    for (id, timeout_ms, command) in commands {
        out.reserve(16 + command.len());
        out.put_u64_le(id);
        out.put_u32_le(timeout_ms);
        let length = u32::try_from(command.len()).expect("commands are below their limit");
        out.put_u32_le(length);
        out.put_slice(command);
    }
    out.freeze()
}

/// The inverse of [`encode_forward`].
pub fn decode_forward(mut input: Bytes) -> Result<Vec<(u64, u32, Bytes)>, Malformed> {
    let mut out = Vec::new();
    while !input.is_empty() {
        if input.len() < 16 {
            return Err(Malformed { what: "forwarded command" });
        }
        let (id, timeout_ms) = (input.get_u64_le(), input.get_u32_le());
        let length = input.get_u32_le() as usize;
        if input.len() < length {
            return Err(Malformed { what: "forwarded command" });
        }
        out.push((id, timeout_ms, input.split_to(length)));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn errors_survive_the_wire() {
        for error in [
            Error::NoLeader { leader: Some("a:1".to_owned()), definite: true },
            Error::Timeout { definite: false },
            Error::SessionExpired { session: 7 },
            Error::invalid("instance.id", "", "1..=128 bytes"),
            Error::LeaderChanged,
        ] {
            assert_eq!(Error::from(WireError::from(error.clone())), error);
        }
    }

    #[test]
    fn forwarded_commands_survive_the_wire_and_truncation_is_refused() {
        let commands = [(1, 10, Bytes::from_static(b"abc")), (2, 20, Bytes::new())];
        let bytes = encode_forward(commands.iter().map(|(id, ms, bytes)| (*id, *ms, bytes)));
        assert_eq!(decode_forward(bytes.clone()).unwrap(), commands);
        assert!(decode_forward(bytes.slice(..bytes.len() - 1)).is_err());
        assert!(decode_forward(bytes.slice(..18)).is_err());
    }
}
