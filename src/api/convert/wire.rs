//! An instance as the bytes of its message, without the message: an answer would copy each of its texts to the heap
//! only to copy it once more. Says the same as [`super::instance`].

use bytes::BufMut;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::state;

/// Appends the bytes of the message.
pub fn put_instance(instance: &state::Instance, to: &mut Vec<u8>) {
    let state::Instance {
        namespace,
        service,
        id,
        endpoints,
        weight,
        zone,
        metadata,
        health,
        admin,
        reason,
        hash_key,
        session,
        // As in the message.
        orphaned_at_ms: _,
        critical_since_ms,
        create_revision,
        mod_revision,
        created_at_ms,
        modified_at_ms,
    } = instance;
    put_text(1, namespace, to);
    put_text(2, service, to);
    put_text(3, id, to);
    for state::Endpoint { name, host, port } in endpoints.iter() {
        let port = u64::from(port);
        put_head(4, text_len(1, name) + text_len(2, host) + number_len(3, port), to);
        put_text(1, name, to);
        put_text(2, host, to);
        put_number(3, port, to);
    }
    // Told also when it is 0.
    encode_key(5, WireType::Varint, to);
    encode_varint(u64::from(*weight), to);
    put_text(6, zone, to);
    for (key, value) in metadata.iter() {
        put_head(7, text_len(1, key) + text_len(2, value), to);
        put_text(1, key, to);
        put_text(2, value, to);
    }
    put_enum(8, super::health_shown(*health).into(), to);
    put_enum(9, super::admin_shown(*admin).into(), to);
    put_text(10, reason, to);
    put_text(11, hash_key, to);
    put_number(12, session.unwrap_or(0), to);
    put_number(13, *create_revision, to);
    put_number(14, *mod_revision, to);
    put_number(15, *created_at_ms, to);
    put_number(16, *modified_at_ms, to);
    put_number(17, critical_since_ms.unwrap_or(0), to);
}

/// The head of a field that is a message or a text of so many bytes.
pub fn put_head(tag: u32, len: usize, to: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, to);
    encode_varint(len as u64, to);
}

/// Bytes of such a field.
pub fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn put_text(tag: u32, text: &str, to: &mut Vec<u8>) {
    if !text.is_empty() {
        put_head(tag, text.len(), to);
        to.extend_from_slice(text.as_bytes());
    }
}

fn text_len(tag: u32, text: &str) -> usize {
    if text.is_empty() { 0 } else { field_len(tag, text.len()) }
}

pub fn put_number(tag: u32, number: u64, to: &mut impl BufMut) {
    if number != 0 {
        encode_key(tag, WireType::Varint, to);
        encode_varint(number, to);
    }
}

pub fn number_len(tag: u32, number: u64) -> usize {
    if number == 0 { 0 } else { key_len(tag) + encoded_len_varint(number) }
}

/// Our enumerations have no negative values.
fn put_enum(tag: u32, value: i32, to: &mut Vec<u8>) {
    put_number(tag, u64::from(value.unsigned_abs()), to);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use prost::Message as _;

    use super::*;
    use crate::api::convert;
    use crate::proto::v1;

    fn instance(long: usize, empty: bool, number: u64) -> state::Instance {
        let text = |name: &str| if empty { String::new() } else { name.repeat(long) };
        let endpoint =
            |port| state::Endpoint { name: text("grpc"), host: "host".repeat(long), port };
        state::Instance {
            namespace: "default".into(),
            service: "wëb".repeat(long).into(),
            id: "a".repeat(long).into(),
            endpoints: vec![endpoint(1), endpoint(65_535)].into(),
            weight: number as u32 % 65_536,
            zone: text("zone").into(),
            metadata: if empty {
                state::Pairs::default()
            } else {
                [("b", "v".repeat(long)), ("a", String::new()), ("empty", String::new())]
                    .into_iter()
                    .collect()
            },
            health: if empty { state::Health::Passing } else { state::Health::Critical },
            admin: if empty { state::Admin::Enabled } else { state::Admin::Draining },
            reason: text("why").into(),
            hash_key: text("key").into(),
            session: (number != 0).then_some(number),
            orphaned_at_ms: None,
            critical_since_ms: (number % 2 == 1).then_some(number),
            create_revision: number,
            mod_revision: number,
            created_at_ms: number,
            modified_at_ms: number,
        }
    }

    #[test]
    fn the_bytes_are_those_of_the_message() {
        for long in [1, 40, 200] {
            for empty in [false, true] {
                for number in [0, 1, 127, 128, u64::MAX] {
                    let instance = instance(long, empty, number);
                    let mut bytes = vec![7];
                    put_instance(&instance, &mut bytes);
                    let message = convert::instance(&instance);
                    assert_eq!(v1::Instance::decode(&bytes[1..]).unwrap(), message);
                    // In another order of the pairs, but no byte more.
                    assert_eq!(bytes.len() - 1, message.encoded_len());
                }
            }
        }
    }
}
