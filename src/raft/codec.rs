//! Bytes of log entries, votes and consensus messages: on disk and between peers.
//!
//! Entries are written by hand, so that a batch of commands is sliced out of the received buffer
//! instead of copied; the rare rest is bincode. Each payload begins with a format version.

use bincode::Options as _;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::types::{Batch, Entry, LeaderId, LogId, Payload, Types, Vote};
use crate::limits::PEER_MESSAGE_BYTES;

/// Format version of everything in this file.
const VERSION: u8 = 1;

const BLANK: u8 = 0;
const NORMAL: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Bytes that are not what this release writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}")]
pub struct Malformed {
    pub what: &'static str,
}

fn malformed(what: &'static str) -> Malformed {
    Malformed { what }
}

fn options() -> impl bincode::Options {
    bincode::DefaultOptions::new()
        .with_fixint_encoding()
        .with_limit(PEER_MESSAGE_BYTES as u64)
        .reject_trailing_bytes()
}

/// Any serde value behind the format version.
pub fn to_bytes<T: Serialize>(value: &T) -> Bytes {
    let mut out = vec![VERSION];
    options()
        .serialize_into(&mut out, value)
        .expect("a message that was built within its limits fits a peer message");
    Bytes::from(out)
}

/// Items as lists that [`from_bytes`] reads, each ended by the item with which it reaches `bytes`. A list is made when
/// it is asked for.
pub fn lists_to_bytes<T: Serialize>(
    items: impl IntoIterator<Item = T>,
    bytes: usize,
) -> impl Iterator<Item = Bytes> {
    const HEAD: usize = 1 + size_of::<u64>();
    let mut items = items.into_iter();
    std::iter::from_fn(move || {
        let (mut list, mut count) = (vec![0; HEAD], 0u64);
        while list.len() < bytes {
            let Some(item) = items.next() else { break };
            options().serialize_into(&mut list, &item).expect("an item fits a peer message");
            count += 1;
        }
        list[0] = VERSION;
        list[1..HEAD].copy_from_slice(&count.to_le_bytes());
        (count > 0).then(|| Bytes::from(list))
    })
}

/// The inverse of [`to_bytes`].
pub fn from_bytes<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, Malformed> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => options().deserialize(rest).map_err(|_| malformed(what)),
        Some(_) | None => Err(malformed(what)),
    }
}

fn put_log_id(out: &mut BytesMut, log_id: &LogId) {
    out.put_u64_le(log_id.leader_id.term);
    out.put_u64_le(log_id.leader_id.node_id);
    out.put_u64_le(log_id.index);
}

fn get_log_id(input: &mut Bytes) -> Result<LogId, Malformed> {
    if input.len() < 24 {
        return Err(malformed("log id"));
    }
    let leader_id = LeaderId { term: input.get_u64_le(), node_id: input.get_u64_le() };
    Ok(LogId { leader_id, index: input.get_u64_le() })
}

fn put_optional_log_id(out: &mut BytesMut, log_id: Option<&LogId>) {
    match log_id {
        None => out.put_u8(0),
        Some(log_id) => {
            out.put_u8(1);
            put_log_id(out, log_id);
        }
    }
}

fn get_u8(input: &mut Bytes, what: &'static str) -> Result<u8, Malformed> {
    if input.is_empty() { Err(malformed(what)) } else { Ok(input.get_u8()) }
}

fn get_u32(input: &mut Bytes, what: &'static str) -> Result<u32, Malformed> {
    if input.len() < 4 { Err(malformed(what)) } else { Ok(input.get_u32_le()) }
}

fn get_optional_log_id(input: &mut Bytes) -> Result<Option<LogId>, Malformed> {
    match get_u8(input, "log id")? {
        0 => Ok(None),
        1 => get_log_id(input).map(Some),
        _ => Err(malformed("log id")),
    }
}

fn check_version(input: &mut Bytes, what: &'static str) -> Result<(), Malformed> {
    if get_u8(input, what)? == VERSION { Ok(()) } else { Err(malformed(what)) }
}

/// Bytes that [`put_entry`] will write.
pub fn entry_size(entry: &Entry) -> usize {
    match &entry.payload {
        Payload::Blank => 26,
        Payload::Normal(batch) => 26 + 12 + batch.commands.len(),
        // Memberships are rare and small; a guess that is too low only grows the buffer once.
        Payload::Membership(_) => 512,
    }
}

/// version, kind, log id, payload to the end.
pub fn put_entry(out: &mut BytesMut, entry: &Entry) {
    out.reserve(entry_size(entry));
    out.put_u8(VERSION);
    match &entry.payload {
        Payload::Blank => {
            out.put_u8(BLANK);
            put_log_id(out, &entry.log_id);
        }
        Payload::Normal(batch) => {
            out.put_u8(NORMAL);
            put_log_id(out, &entry.log_id);
            out.put_u64_le(batch.at_ms);
            out.put_u32_le(batch.count);
            out.put_slice(&batch.commands);
        }
        Payload::Membership(membership) => {
            out.put_u8(MEMBERSHIP);
            put_log_id(out, &entry.log_id);
            out.put_slice(&to_bytes(membership));
        }
    }
}

pub fn encode_entry(entry: &Entry) -> Bytes {
    let mut out = BytesMut::new();
    put_entry(&mut out, entry);
    out.freeze()
}

pub fn decode_entry(mut input: Bytes) -> Result<Entry, Malformed> {
    check_version(&mut input, "entry")?;
    let kind = get_u8(&mut input, "entry")?;
    let log_id = get_log_id(&mut input)?;
    let payload = match kind {
        BLANK if input.is_empty() => Payload::Blank,
        NORMAL if input.len() >= 12 => {
            let at_ms = input.get_u64_le();
            let count = input.get_u32_le();
            Payload::Normal(Batch { at_ms, count, commands: input })
        }
        MEMBERSHIP => Payload::Membership(from_bytes("membership", &input)?),
        _ => return Err(malformed("entry")),
    };
    Ok(Entry { log_id, payload })
}

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.node_id);
    out.put_u8(u8::from(vote.committed));
}

fn get_vote(input: &mut Bytes) -> Result<Vote, Malformed> {
    if input.len() < 17 {
        return Err(malformed("vote"));
    }
    let leader_id = LeaderId { term: input.get_u64_le(), node_id: input.get_u64_le() };
    Ok(Vote { leader_id, committed: input.get_u8() != 0 })
}

pub fn encode_vote(vote: &Vote) -> Bytes {
    let mut out = BytesMut::with_capacity(18);
    out.put_u8(VERSION);
    put_vote(&mut out, vote);
    out.freeze()
}

pub fn decode_vote(mut input: Bytes) -> Result<Vote, Malformed> {
    check_version(&mut input, "vote")?;
    get_vote(&mut input)
}

pub fn encode_log_id(log_id: &LogId) -> Bytes {
    let mut out = BytesMut::with_capacity(25);
    out.put_u8(VERSION);
    put_log_id(&mut out, log_id);
    out.freeze()
}

pub fn decode_log_id(mut input: Bytes) -> Result<LogId, Malformed> {
    check_version(&mut input, "log id")?;
    get_log_id(&mut input)
}

/// version, vote, previous log id, commit, then each entry behind its length.
pub fn encode_append(request: &AppendEntriesRequest<Types>) -> Bytes {
    let size: usize = request.entries.iter().map(|entry| entry_size(entry) + 4).sum();
    let mut out = BytesMut::with_capacity(size + 80);
    out.put_u8(VERSION);
    put_vote(&mut out, &request.vote);
    put_optional_log_id(&mut out, request.prev_log_id.as_ref());
    put_optional_log_id(&mut out, request.leader_commit.as_ref());
    for entry in &request.entries {
        let at = out.len();
        out.put_u32_le(0);
        put_entry(&mut out, entry);
        let length = u32::try_from(out.len() - at - 4).expect("an entry is below 4 GiB");
        out[at..at + 4].copy_from_slice(&length.to_le_bytes());
    }
    out.freeze()
}

pub fn decode_append(mut input: Bytes) -> Result<AppendEntriesRequest<Types>, Malformed> {
    check_version(&mut input, "append")?;
    let vote = get_vote(&mut input)?;
    let prev_log_id = get_optional_log_id(&mut input)?;
    let leader_commit = get_optional_log_id(&mut input)?;
    let mut entries = Vec::new();
    while !input.is_empty() {
        let length = get_u32(&mut input, "append")? as usize;
        if input.len() < length {
            return Err(malformed("append"));
        }
        entries.push(decode_entry(input.split_to(length))?);
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// The answer to one request of an append stream.
pub type AppendResult = Result<Option<LogId>, StreamAppendError<Types>>;

pub fn encode_append_result(result: &AppendResult) -> Bytes {
    let mut out = BytesMut::with_capacity(32);
    out.put_u8(VERSION);
    match result {
        Ok(matching) => {
            out.put_u8(0);
            put_optional_log_id(&mut out, matching.as_ref());
        }
        Err(StreamAppendError::Conflict(log_id)) => {
            out.put_u8(1);
            put_log_id(&mut out, log_id);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub fn decode_append_result(mut input: Bytes) -> Result<AppendResult, Malformed> {
    check_version(&mut input, "append result")?;
    Ok(match get_u8(&mut input, "append result")? {
        0 => Ok(get_optional_log_id(&mut input)?),
        1 => Err(StreamAppendError::Conflict(get_log_id(&mut input)?)),
        2 => Err(StreamAppendError::HigherVote(get_vote(&mut input)?)),
        _ => return Err(malformed("append result")),
    })
}

/// The answer to a unary append (heartbeats).
pub fn encode_append_response(response: &AppendEntriesResponse<Types>) -> Bytes {
    to_bytes(response)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::raft::types::{Member, Membership};

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 7, node_id: 2 }, index }
    }

    fn entries() -> Vec<Entry> {
        let member = Member { peer_address: "a:1".to_owned(), client_address: "a:2".to_owned() };
        let membership = Membership::new(
            vec![BTreeSet::from([1, 2]), BTreeSet::from([2, 3])],
            BTreeMap::from([(1, member.clone()), (2, member.clone()), (3, member)]),
        )
        .unwrap();
        let commands = Bytes::from_static(b"\x03\0\0\0abc\0\0\0\0");
        vec![
            Entry { log_id: log_id(0), payload: Payload::Membership(membership) },
            Entry { log_id: log_id(1), payload: Payload::Blank },
            Entry {
                log_id: log_id(2),
                payload: Payload::Normal(Batch { at_ms: 9, count: 2, commands }),
            },
        ]
    }

    #[test]
    fn lists_are_cut_where_they_are_full() {
        let items = [30, 30, 50, 1, 200].map(|length| vec![7u8; length]);
        let lists: Vec<Bytes> = lists_to_bytes(&items, 100).collect();
        let read = |list: &Bytes| from_bytes::<Vec<Vec<u8>>>("list", list).unwrap();
        let lengths: Vec<Vec<usize>> =
            lists.iter().map(|list| read(list).iter().map(Vec::len).collect()).collect();
        // Each has a head of nine bytes, each item one of eight.
        assert_eq!(lengths, [vec![30, 30, 50], vec![1, 200]]);
        assert!(lists_to_bytes(None::<u64>, 100).next().is_none());
        // Whole ones are what they would be by themselves.
        let whole: Vec<Bytes> = lists_to_bytes([1u64, 2], 100).collect();
        assert_eq!(whole, [to_bytes(&[1u64, 2].to_vec())]);
    }

    /// So whoever sends them has one at a time, however many items there are.
    #[test]
    fn a_list_is_made_when_it_is_asked_for() {
        let encoded = std::cell::Cell::new(0);
        let items = (0..9u64).inspect(|_| encoded.set(encoded.get() + 1));
        let mut lists = lists_to_bytes(items, 32);
        for made in [3, 6, 9] {
            assert_eq!(from_bytes::<Vec<u64>>("list", &lists.next().unwrap()).unwrap().len(), 3);
            assert_eq!(encoded.get(), made);
        }
        assert!(lists.next().is_none());
    }

    /// A log written by an older release must stay readable: these bytes never change.
    #[test]
    fn entry_bytes_are_fixed() {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        let all = entries();
        assert_eq!(
            hex(&encode_entry(&all[1])),
            "0100070000000000000002000000000000000100000000000000"
        );
        assert_eq!(
            hex(&encode_entry(&all[2])),
            "0101070000000000000002000000000000000200000000000000\
             090000000000000002000000030000006162630\
             0000000"
        );
        assert_eq!(
            hex(&encode_vote(&Vote {
                leader_id: LeaderId { term: 3, node_id: 1 },
                committed: true
            })),
            "010300000000000000010000000000000001"
        );
    }

    #[test]
    fn entries_and_messages_survive_the_wire() {
        for entry in entries() {
            assert_eq!(decode_entry(encode_entry(&entry)).unwrap(), entry);
        }
        let request = AppendEntriesRequest::<Types> {
            vote: Vote { leader_id: LeaderId { term: 7, node_id: 2 }, committed: true },
            prev_log_id: None,
            entries: entries(),
            leader_commit: Some(log_id(1)),
        };
        let back = decode_append(encode_append(&request)).unwrap();
        assert_eq!(back.entries, request.entries);
        assert_eq!(back.vote, request.vote);
        assert_eq!(back.leader_commit, request.leader_commit);
        for result in [
            Ok(None),
            Ok(Some(log_id(4))),
            Err(StreamAppendError::Conflict(log_id(5))),
            Err(StreamAppendError::HigherVote(request.vote)),
        ] {
            assert_eq!(decode_append_result(encode_append_result(&result)).unwrap(), result);
        }
    }

    #[test]
    fn every_truncation_is_refused_or_is_a_shorter_message_but_never_panics() {
        let request = AppendEntriesRequest::<Types> {
            vote: Vote { leader_id: LeaderId { term: 7, node_id: 2 }, committed: true },
            prev_log_id: Some(log_id(9)),
            entries: entries(),
            leader_commit: None,
        };
        let bytes = encode_append(&request);
        for cut in 0..bytes.len() {
            if let Ok(back) = decode_append(bytes.slice(..cut)) {
                assert!(back.entries.len() < request.entries.len());
            }
        }
    }

    #[test]
    fn a_batch_gives_its_commands_back() {
        let batch =
            Batch { at_ms: 0, count: 2, commands: Bytes::from_static(b"\x03\0\0\0abc\0\0\0\0") };
        assert_eq!(batch.iter().collect::<Vec<_>>(), [&b"abc"[..], &b""[..]]);
    }
}
