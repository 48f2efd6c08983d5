//! JSON by RFC 8259, strict where readers disagree: a key that stands twice in one object is refused,
//! and so is a number that no double can hold.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{Malformed, characters, too_deep, without_mark};
use crate::limits::CONTENT_DEPTH;

/// How the visitor tells [`place`] that the fault is the key that ends where the reader stands.
const TWICE: &str = "stands twice in one object";

pub(super) fn parse(text: &str) -> Result<Value, Malformed> {
    let text = without_mark(text)?;
    let mut reader = serde_json::Deserializer::from_str(text);
    let value = Level(0).deserialize(&mut reader).and_then(|value| reader.end().map(|()| value));
    value.map_err(|error| place(text, &error))
}

/// serde_json counts bytes within a line; a person counts characters.
fn place(text: &str, error: &serde_json::Error) -> Malformed {
    let message = error.to_string();
    let why = message.rsplit_once(" at line ").map_or(message.as_str(), |(why, _)| why);
    if error.is_eof() {
        return Malformed::at_offset(text.as_bytes(), text.len(), why);
    }
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or("").as_bytes();
    let mut end = error.column().min(line.len());
    if why.ends_with(TWICE) {
        // Show where the key begins: a key holds no quote without a backslash.
        let quotes = (0..end.saturating_sub(1)).rev().filter(|at| line[*at] == b'"');
        let opening = |at: &usize| {
            line[..*at].iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 0
        };
        end = quotes.into_iter().find(opening).map_or(end, |at| at + 1);
    }
    Malformed { line: error.line(), column: characters(&line[..end]).max(1), ..Malformed::new(why) }
}

/// Reads one value inside of so many arrays and objects.
#[derive(Clone, Copy)]
struct Level(usize);

impl Level {
    fn deeper<E: serde::de::Error>(self) -> Result<Level, E> {
        if self.0 == CONTENT_DEPTH {
            return Err(E::custom(too_deep()));
        }
        Ok(Level(self.0 + 1))
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        reader.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    /// Fractions, and integers beyond 64 bits, which are still integers to a schema.
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("number out of range"))?;
        Ok(Value::Number(number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Value, A::Error> {
        let level = self.deeper()?;
        let mut items = Vec::new();
        while let Some(item) = array.next_element_seed(level)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Value, A::Error> {
        let level = self.deeper()?;
        let mut members = Map::new();
        while let Some(key) = object.next_key::<String>()? {
            if members.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} {TWICE}")));
            }
            let value = object.next_value_seed(level)?;
            members.insert(key, value);
        }
        Ok(Value::Object(members))
    }
}
