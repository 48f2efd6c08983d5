//! TOML 1.0. The parser reads 1.1; what is new in it is refused, because the programs that read the items
//! may be older.

use serde_json::{Map, Number, Value};
use toml_parser::decoder::Encoding;
use toml_parser::parser::{Event, EventKind, parse_document};

use super::{Malformed, too_deep};
use crate::limits::CONTENT_DEPTH;

pub(super) fn parse(text: &str) -> Result<Value, Malformed> {
    let table = text.parse::<::toml::Table>().map_err(|error| {
        let why = error.message().trim_end().replace('\n', "; ");
        match error.span() {
            Some(span) => Malformed::at_offset(text.as_bytes(), span.start, why),
            None => Malformed::new(why),
        }
    })?;
    only_1_0(text)?;
    object(table, 1)
}

/// The parser itself nests at most 80 levels in one key or value, and a value may follow a key.
fn object(table: ::toml::Table, depth: usize) -> Result<Value, Malformed> {
    if depth > CONTENT_DEPTH {
        return Err(Malformed::new(too_deep()));
    }
    let members = table.into_iter().map(|(key, value)| Ok((key, convert(value, depth)?)));
    Ok(Value::Object(members.collect::<Result<Map<_, _>, Malformed>>()?))
}

/// Dates and times are texts, and so are the numbers that JSON does not have (`inf`, `nan`).
fn convert(value: ::toml::Value, depth: usize) -> Result<Value, Malformed> {
    Ok(match value {
        ::toml::Value::String(text) => Value::String(text),
        ::toml::Value::Integer(number) => number.into(),
        ::toml::Value::Float(number) => match Number::from_f64(number) {
            Some(number) => Value::Number(number),
            None => Value::String(number.to_string().to_lowercase()),
        },
        ::toml::Value::Boolean(value) => Value::Bool(value),
        ::toml::Value::Datetime(moment) => Value::String(moment.to_string()),
        ::toml::Value::Array(items) => {
            if depth + 1 > CONTENT_DEPTH {
                return Err(Malformed::new(too_deep()));
            }
            let items = items.into_iter().map(|item| convert(item, depth + 1));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        ::toml::Value::Table(table) => object(table, depth + 1)?,
    })
}

/// Refuses what TOML 1.1 added, in a text that parses.
fn only_1_0(text: &str) -> Result<(), Malformed> {
    let tokens = toml_parser::Source::new(text).lex().into_vec();
    // Of the open arrays and inline tables: whether it is a table.
    let mut open: Vec<bool> = Vec::new();
    let mut comma: Option<usize> = None;
    let mut found: Option<(usize, &str)> = None;
    let mut look = |event: Event| {
        let at = event.span().start();
        let in_table = open.last() == Some(&true);
        let mut refuse = |at: usize, why: &'static str| {
            found.get_or_insert((at, why));
        };
        match event.kind() {
            EventKind::InlineTableOpen => open.push(true),
            EventKind::ArrayOpen => open.push(false),
            EventKind::InlineTableClose => {
                open.pop();
                if let Some(comma) = comma {
                    refuse(comma, "TOML 1.0 allows no comma before the end of an inline table");
                }
            }
            EventKind::ArrayClose => {
                open.pop();
            }
            EventKind::Newline | EventKind::Comment if in_table => {
                refuse(at, "TOML 1.0 allows no line end and no comment in an inline table");
            }
            EventKind::SimpleKey | EventKind::Scalar => {
                let raw = &text[at..event.span().end()];
                match event.encoding() {
                    Some(Encoding::BasicString | Encoding::MlBasicString) => {
                        if let Some(escape) = new_escape(raw) {
                            refuse(at + escape, "TOML 1.0 has no escapes \\e and \\x");
                        }
                    }
                    Some(Encoding::LiteralString | Encoding::MlLiteralString) => {}
                    None if event.kind() == EventKind::Scalar => {
                        let colon = raw.find(':');
                        if colon.is_some_and(|at| raw.as_bytes().get(at + 3) != Some(&b':')) {
                            refuse(at, "TOML 1.0 allows no time without seconds");
                        }
                    }
                    None => {}
                }
            }
            _ => {}
        }
        match event.kind() {
            EventKind::ValueSep => comma = Some(at),
            EventKind::Whitespace | EventKind::Newline | EventKind::Comment => {}
            _ => comma = None,
        }
    };
    parse_document(&tokens, &mut look, &mut ());
    match found {
        Some((at, why)) => Err(Malformed::at_offset(text.as_bytes(), at, why)),
        None => Ok(()),
    }
}

/// Where an escape of TOML 1.1 stands in the text of a string.
fn new_escape(raw: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, byte) in raw.bytes().enumerate() {
        match (escaped, byte) {
            (true, b'e' | b'x') => return Some(at - 1),
            (true, _) => escaped = false,
            (false, b'\\') => escaped = true,
            (false, _) => {}
        }
    }
    None
}
