//! YAML 1.2 with its core schema. Two habits of its readers are followed: `<<` merges a mapping, and a key
//! that is no string counts as its text. Keys that stand twice are refused.
//!
//! A document is a graph as long as it can be: an alias is an edge, and its weight is what the node behind
//! it would grow to. So a document that would explode is refused before anything is copied.

use std::collections::BTreeMap;

use saphyr_parser::{Event, Marker, Parser, ScalarStyle, ScanError, Tag};
use serde_json::{Map, Number, Value};

use super::{Malformed, too_deep};
use crate::limits::{CONTENT_ALIAS_BYTES, CONTENT_DEPTH};

/// What a node weighs besides its text.
const NODE_WEIGHT: usize = 16;

/// One document of a stream. Invariant: children stand before their parents, so it has no cycle.
pub(super) struct Document {
    nodes: Vec<Node>,
    root: usize,
}

struct Node {
    content: Content,
    /// Bytes of the node with all aliases below it expanded.
    weight: usize,
    /// Levels of sequences and mappings from here down, with all aliases expanded.
    height: usize,
}

enum Content {
    Scalar(Value),
    Sequence(Vec<usize>),
    Mapping { members: BTreeMap<String, usize>, merged: Vec<usize> },
}

impl Document {
    pub(super) fn value(&self) -> Value {
        self.value_of(self.root)
    }

    /// Recursion ends after `CONTENT_DEPTH` levels: no node of a document is higher.
    fn value_of(&self, node: usize) -> Value {
        match &self.nodes[node].content {
            Content::Scalar(value) => value.clone(),
            Content::Sequence(items) => {
                Value::Array(items.iter().map(|item| self.value_of(*item)).collect())
            }
            Content::Mapping { members, merged } => {
                let mut object = Map::new();
                // The mapping's own keys first, then those of the mappings that it merges, in order.
                for (key, value) in members {
                    object.insert(key.clone(), self.value_of(*value));
                }
                for source in merged {
                    if let Value::Object(source) = self.value_of(*source) {
                        for (key, value) in source {
                            object.entry(key).or_insert(value);
                        }
                    }
                }
                Value::Object(object)
            }
        }
    }
}

pub(super) fn parse(text: &str) -> Result<Vec<Document>, Malformed> {
    let mut parser = Parser::new_from_str(text);
    let mut documents = Vec::new();
    let mut builder = Builder::default();
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| unreadable(&error))?;
        match event {
            Event::DocumentStart(_) => builder = Builder::default(),
            Event::DocumentEnd => documents.extend(builder.finish()),
            event => builder.take(event, span.start)?,
        }
    }
    Ok(documents)
}

fn unreadable(error: &ScanError) -> Malformed {
    at(*error.marker(), error.info())
}

fn at(marker: Marker, why: impl Into<String>) -> Malformed {
    Malformed { line: marker.line().max(1), column: marker.col() + 1, ..Malformed::new(why) }
}

/// Puts the nodes of one document together.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    root: Option<usize>,
    /// The sequences and mappings that are not at their end.
    open: Vec<Open>,
    /// The nodes that have an anchor; `None` while the node is not at its end.
    anchors: BTreeMap<usize, Option<usize>>,
    /// Weight of everything that stands behind the aliases of the document.
    aliased: usize,
}

struct Open {
    anchor: usize,
    start: Marker,
    content: Content,
    /// The key whose value comes next, and whether it is the plain `<<`.
    key: Option<(String, bool)>,
    weight: usize,
    height: usize,
}

impl Builder {
    fn finish(&mut self) -> Option<Document> {
        let nodes = std::mem::take(&mut self.nodes);
        self.root.take().map(|root| Document { nodes, root })
    }

    fn take(&mut self, event: Event<'_>, start: Marker) -> Result<(), Malformed> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = style == ScalarStyle::Plain;
                let merge = plain && tag.is_none() && text == "<<";
                let value = scalar(&text, plain, tag.as_deref()).map_err(|why| at(start, why))?;
                let weight = NODE_WEIGHT + text.len();
                let content = Content::Scalar(value);
                let node = self.add(Node { content, weight, height: 0 });
                self.anchored(anchor, Some(node));
                // A key is its text as it was written: `1.0` is not `1`.
                self.place(node, start, Some((text.into_owned(), merge)))
            }
            Event::SequenceStart(anchor, _) => {
                self.begin(anchor, start, Content::Sequence(Vec::new()))
            }
            Event::MappingStart(anchor, _) => {
                let (members, merged) = (BTreeMap::new(), Vec::new());
                self.begin(anchor, start, Content::Mapping { members, merged })
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Some(open) = self.open.pop() else {
                    return Err(at(start, "an end without a beginning"));
                };
                let Open { anchor, start, content, weight, height, .. } = open;
                let node = self.add(Node { content, weight, height });
                self.anchored(anchor, Some(node));
                self.place(node, start, None)
            }
            Event::Alias(anchor) => self.alias(anchor, start),
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Anchors are numbered from 1; 0 is none.
    fn anchored(&mut self, anchor: usize, node: Option<usize>) {
        if anchor != 0 {
            self.anchors.insert(anchor, node);
        }
    }

    fn begin(&mut self, anchor: usize, start: Marker, content: Content) -> Result<(), Malformed> {
        if self.open.len() == CONTENT_DEPTH {
            return Err(at(start, too_deep()));
        }
        self.anchored(anchor, None);
        let (weight, height) = (NODE_WEIGHT, 1);
        self.open.push(Open { anchor, start, content, key: None, weight, height });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, start: Marker) -> Result<(), Malformed> {
        let node = match self.anchors.get(&anchor) {
            Some(Some(node)) => *node,
            Some(None) => return Err(at(start, "an alias inside of the node that it stands for")),
            None => return Err(at(start, "an alias for a node of another document")),
        };
        self.aliased = self.aliased.saturating_add(self.nodes[node].weight);
        if self.aliased > CONTENT_ALIAS_BYTES {
            let why = format!(
                "with this alias the document would grow by more than {CONTENT_ALIAS_BYTES} bytes"
            );
            return Err(at(start, why));
        }
        if self.open.len() + self.nodes[node].height > CONTENT_DEPTH {
            return Err(at(start, too_deep()));
        }
        let key = match &self.nodes[node].content {
            Content::Scalar(Value::String(text)) => Some((text.clone(), false)),
            Content::Scalar(value) => Some((value.to_string(), false)),
            Content::Sequence(_) | Content::Mapping { .. } => None,
        };
        self.place(node, start, key)
    }

    /// Puts a node where it belongs. `key` is its text if it may be a key as it is.
    fn place(
        &mut self,
        node: usize,
        start: Marker,
        key: Option<(String, bool)>,
    ) -> Result<(), Malformed> {
        let (weight, height) = (self.nodes[node].weight, self.nodes[node].height);
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        open.weight = open.weight.saturating_add(weight);
        open.height = open.height.max(height + 1);
        match &mut open.content {
            Content::Sequence(items) => items.push(node),
            Content::Mapping { members, merged } => match open.key.take() {
                None => {
                    let Some((key, merge)) = key else {
                        return Err(at(start, "a key must be a scalar"));
                    };
                    if members.contains_key(&key) || merge && !merged.is_empty() {
                        let why = format!("the key {key:?} stands twice in one mapping");
                        return Err(at(start, why));
                    }
                    open.key = Some((key, merge));
                }
                Some((key, merge)) => {
                    let is_mapping =
                        |node: &usize| matches!(self.nodes[*node].content, Content::Mapping { .. });
                    match &self.nodes[node].content {
                        Content::Mapping { .. } if merge => merged.push(node),
                        Content::Sequence(items)
                            if merge && !items.is_empty() && items.iter().all(is_mapping) =>
                        {
                            merged.extend(items);
                        }
                        _ => {
                            members.insert(key, node);
                        }
                    }
                }
            },
            Content::Scalar(_) => unreachable!("only sequences and mappings are open"),
        }
        Ok(())
    }
}

/// The value of a scalar by its tag, or by the core schema when it is plain and has none. Dates are texts,
/// and so are the numbers that JSON does not have (`.inf`, `.nan`).
fn scalar(text: &str, plain: bool, tag: Option<&Tag>) -> Result<Value, String> {
    let string = || Value::String(text.to_owned());
    let Some(tag) = tag else {
        return Ok(if plain { core(text) } else { string() });
    };
    let name = format!("{}{}", tag.handle, tag.suffix);
    let value = core(text);
    let fits = match name.strip_prefix("tag:yaml.org,2002:") {
        Some("int") => value.is_i64() || value.is_u64() || value.is_f64() && is_integer(text),
        Some("float") => value.is_number() || is_no_number(text),
        Some("bool") => value.is_boolean(),
        Some("null") => value.is_null(),
        // Other tags of YAML (!!str, !!binary, !!timestamp, ...) and the tag `!` make texts.
        Some(_) => return Ok(string()),
        None if name == "!" => return Ok(string()),
        // A program's own tag says nothing about the kind.
        None => return Ok(if plain { value } else { string() }),
    };
    match fits {
        true => Ok(value),
        false => Err(format!("{text:?} is not what its tag !!{} says", tag.suffix)),
    }
}

fn core(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" => return Value::Bool(true),
        "false" | "False" | "FALSE" => return Value::Bool(false),
        _ => {}
    }
    number(text).map_or_else(|| Value::String(text.to_owned()), Value::Number)
}

fn is_no_number(text: &str) -> bool {
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    matches!(bare, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN")
}

fn digits(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_digit())
}

fn is_integer(text: &str) -> bool {
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    !bare.is_empty() && digits(bare).is_empty() || radix(text).is_some()
}

/// Digits and base of `0o17` and `0xff`.
fn radix(text: &str) -> Option<(&str, u32)> {
    let octal = text.strip_prefix("0o").map(|digits| (digits, 8));
    let (digits, base) = octal.or_else(|| text.strip_prefix("0x").map(|digits| (digits, 16)))?;
    (!digits.is_empty() && digits.chars().all(|c| c.is_digit(base))).then_some((digits, base))
}

/// Integers are exact up to 64 bits and the nearest double beyond; what no double reaches is the greatest.
fn number(text: &str) -> Option<Number> {
    if let Some((digits, base)) = radix(text) {
        if let Ok(exact) = u64::from_str_radix(digits, base) {
            return Some(exact.into());
        }
        let step = |sum: f64, c: char| {
            sum * f64::from(base) + f64::from(c.to_digit(base).unwrap_or_default())
        };
        return Number::from_f64(digits.chars().fold(0.0, step).min(f64::MAX));
    }
    if is_integer(text) {
        let bare = text.strip_prefix('+').unwrap_or(text);
        if let Ok(exact) = bare.parse::<u64>() {
            return Some(exact.into());
        }
        if let Ok(exact) = bare.parse::<i64>() {
            return Some(exact.into());
        }
    } else if !is_float(text) {
        return None;
    }
    let float: f64 = text.parse().ok()?;
    Number::from_f64(float.clamp(f64::MIN, f64::MAX))
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn is_float(text: &str) -> bool {
    let bare = text.strip_prefix(['+', '-']).unwrap_or(text);
    let whole = digits(bare);
    let has_whole = whole.len() < bare.len();
    let (rest, has_part) = match whole.strip_prefix('.') {
        Some(part) => (digits(part), digits(part).len() < part.len()),
        None => (whole, false),
    };
    let exponent = match rest.strip_prefix(['e', 'E']) {
        Some(power) => {
            let power = power.strip_prefix(['+', '-']).unwrap_or(power);
            !power.is_empty() && digits(power).is_empty()
        }
        None => rest.is_empty(),
    };
    (has_whole || has_part) && exponent
}
