//! EDN, as far as Jepsen's histories use it: a reader that knows where it is, and a writer.
//!
//! Absent: ratios, big numbers beyond 64 bits, metadata. The format: <https://github.com/edn-format/edn>.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::hash::{Hash, Hasher};

/// How deep collections, tags and discards may stand in each other. A history needs about six; the reader
/// recurses, so this is what keeps a hostile file from its stack.
pub const DEPTH: usize = 64;

/// One EDN element. Sets and maps are ordered by their elements, so equal ones are written alike.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Value {
    Nil,
    Bool(bool),
    Int(i64),
    Float(Float),
    Char(char),
    String(String),
    /// Without its colon.
    Keyword(String),
    Symbol(String),
    Vector(Vec<Value>),
    List(Vec<Value>),
    Set(BTreeSet<Value>),
    Map(BTreeMap<Value, Value>),
    /// `#tag value`; the tag without its `#`. Records such as `#jepsen.history.Op{..}` are read as this.
    Tagged(String, Box<Value>),
}

/// A float with a total order: equal when the bits are.
#[derive(Debug, Clone, Copy)]
pub struct Float(pub f64);

impl PartialEq for Float {
    fn eq(&self, other: &Float) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Float {}

impl PartialOrd for Float {
    fn partial_cmp(&self, other: &Float) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Float {
    fn cmp(&self, other: &Float) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl Hash for Float {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.to_bits().hash(state);
    }
}

/// Line and column, both from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text is not EDN, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{position}: {problem}")]
pub struct Error {
    pub position: Position,
    pub problem: String,
}

impl Value {
    /// A keyword, by its name without the colon.
    pub fn keyword(name: &str) -> Value {
        Value::Keyword(name.to_owned())
    }

    /// The value below its tags.
    pub fn untagged(&self) -> &Value {
        let mut value = self;
        while let Value::Tagged(_, inner) = value {
            value = inner;
        }
        value
    }

    /// The elements of a vector or a list; Clojure prints transactions as either.
    pub fn elements(&self) -> Option<&[Value]> {
        match self.untagged() {
            Value::Vector(elements) | Value::List(elements) => Some(elements),
            _ => None,
        }
    }
}

/// The elements of a text one after the other, each with the place where it begins. After an error comes
/// nothing more.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    text: &'a str,
    at: usize,
    /// What `place` knows already, so that a whole text costs one pass.
    known: (usize, Position),
    failed: bool,
}

impl Iterator for Reader<'_> {
    type Item = Result<(Position, Value), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let read = self.top();
        self.failed = read.is_err();
        read.transpose()
    }
}

impl<'a> Reader<'a> {
    pub fn new(text: &'a str) -> Reader<'a> {
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Reader { text, at, known: (at, Position { line: 1, column: 1 }), failed: false }
    }

    fn top(&mut self) -> Result<Option<(Position, Value)>, Error> {
        self.skip(0)?;
        if self.at == self.text.len() {
            return Ok(None);
        }
        let position = self.place(self.at);
        Ok(Some((position, self.value(0)?)))
    }

    /// The position of a byte. Positions are mostly asked in order.
    fn place(&mut self, at: usize) -> Position {
        if at < self.known.0 {
            self.known = (0, Position { line: 1, column: 1 });
        }
        let (from, mut position) = self.known;
        for character in self.text.get(from..at).unwrap_or_default().chars() {
            if character == '\n' {
                position = Position { line: position.line + 1, column: 1 };
            } else {
                position.column += 1;
            }
        }
        self.known = (at, position);
        position
    }

    fn fail<T>(&mut self, at: usize, problem: impl Into<String>) -> Result<T, Error> {
        Err(Error { position: self.place(at), problem: problem.into() })
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn advance(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.at += character.len_utf8();
        Some(character)
    }

    /// Over white space, commas, comments and discarded elements.
    fn skip(&mut self, depth: usize) -> Result<(), Error> {
        loop {
            match self.peek() {
                Some(character) if is_space(character) => {
                    self.advance();
                }
                Some(';') => {
                    let rest = self.rest();
                    self.at += rest.find('\n').unwrap_or(rest.len());
                }
                Some('#') if self.rest().starts_with("#_") => {
                    let start = self.at;
                    self.at += 2;
                    if depth >= DEPTH {
                        return self.too_deep(start);
                    }
                    self.skip(depth + 1)?;
                    if self.peek().is_none_or(|character| ")]}".contains(character)) {
                        return self.fail(start, "#_ with nothing to discard");
                    }
                    self.value(depth + 1)?;
                }
                _ => return Ok(()),
            }
        }
    }

    fn too_deep<T>(&mut self, at: usize) -> Result<T, Error> {
        self.fail(at, format!("nested more than {DEPTH} deep"))
    }

    /// One element; the reader stands at its first character.
    fn value(&mut self, depth: usize) -> Result<Value, Error> {
        let start = self.at;
        if depth >= DEPTH {
            return self.too_deep(start);
        }
        let Some(first) = self.peek() else { return self.fail(start, "the text ends too early") };
        match first {
            '[' => Ok(Value::Vector(self.sequence(']', depth)?)),
            '(' => Ok(Value::List(self.sequence(')', depth)?)),
            '{' => self.map(depth),
            '"' => self.string(),
            '\\' => self.character(),
            '#' => self.dispatch(depth),
            ':' => {
                self.advance();
                let name = self.token();
                if name.is_empty() {
                    return self.fail(start, "a colon without a keyword");
                }
                Ok(Value::keyword(name))
            }
            ')' | ']' | '}' => self.fail(start, format!("'{first}' closes nothing")),
            _ => self.atom(),
        }
    }

    /// The elements up to a bracket, which is consumed; the reader stands at the opening one.
    fn sequence(&mut self, close: char, depth: usize) -> Result<Vec<Value>, Error> {
        let start = self.at;
        let open = self.advance().unwrap_or_default();
        let mut elements = Vec::new();
        loop {
            self.skip(depth + 1)?;
            match self.peek() {
                None => return self.fail(start, format!("'{open}' is never closed")),
                Some(character) if character == close => {
                    self.advance();
                    return Ok(elements);
                }
                Some(_) => elements.push(self.value(depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, Error> {
        let start = self.at;
        let mut elements = self.sequence('}', depth)?.into_iter();
        let mut map = BTreeMap::new();
        while let Some(key) = elements.next() {
            let Some(value) = elements.next() else {
                return self.fail(start, format!("the map has no value for its key {key}"));
            };
            if map.contains_key(&key) {
                return self.fail(start, format!("the map has the key {key} twice"));
            }
            map.insert(key, value);
        }
        Ok(Value::Map(map))
    }

    fn string(&mut self) -> Result<Value, Error> {
        let start = self.at;
        self.advance();
        let mut string = String::new();
        loop {
            let at = self.at;
            match self.advance() {
                None => return self.fail(start, "the string is never closed"),
                Some('"') => return Ok(Value::String(string)),
                Some('\\') => string.push(match self.advance() {
                    Some('n') => '\n',
                    Some('t') => '\t',
                    Some('r') => '\r',
                    Some('b') => '\u{8}',
                    Some('f') => '\u{c}',
                    Some(same @ ('"' | '\\')) => same,
                    Some('u') => self.escaped(at)?,
                    _ => return self.fail(at, "an escape that EDN does not know"),
                }),
                Some(character) => string.push(character),
            }
        }
    }

    /// `XXXX` of `\uXXXX`, and the second half when it is the first of a surrogate pair.
    fn escaped(&mut self, at: usize) -> Result<char, Error> {
        let mut units = Vec::new();
        loop {
            let unit = self.rest().get(..4).filter(|digits| is_hex(digits));
            let Some(unit) = unit.and_then(|digits| u16::from_str_radix(digits, 16).ok()) else {
                return self.fail(at, "\\u wants four hexadecimal digits");
            };
            self.at += 4;
            units.push(unit);
            let decoded = char::decode_utf16(units.iter().copied()).next();
            if let Some(Ok(character)) = decoded {
                return Ok(character);
            }
            if units.len() == 2 || !self.rest().starts_with("\\u") {
                return self.fail(at, "half of a surrogate pair");
            }
            self.at += 2;
        }
    }

    fn character(&mut self) -> Result<Value, Error> {
        let start = self.at;
        self.advance();
        let Some(first) = self.advance() else { return self.fail(start, "a character is missing") };
        if is_space(first) && first != ',' {
            return self.fail(start, "a character is missing");
        }
        // A delimiter is a character by itself: `\(`; otherwise the name goes on: `\newline`.
        let name =
            if ends_token(first) { first.to_string() } else { format!("{first}{}", self.token()) };
        let mut characters = name.chars();
        let only = characters.next().filter(|_| characters.next().is_none());
        let character = match name.as_str() {
            "newline" => '\n',
            "return" => '\r',
            "space" => ' ',
            "tab" => '\t',
            "backspace" => '\u{8}',
            "formfeed" => '\u{c}',
            _ => match only.or_else(|| unicode(&name)) {
                Some(character) => character,
                None => return self.fail(start, format!("\\{name} is no character")),
            },
        };
        Ok(Value::Char(character))
    }

    /// `#{set}`, `##Inf`, `#tag value`.
    fn dispatch(&mut self, depth: usize) -> Result<Value, Error> {
        let start = self.at;
        self.advance();
        if self.peek() == Some('{') {
            let elements = self.sequence('}', depth)?;
            let (count, set) = (elements.len(), BTreeSet::from_iter(elements));
            if set.len() < count {
                return self.fail(start, "the set has an element twice");
            }
            return Ok(Value::Set(set));
        }
        let name = self.token();
        if let Some(symbolic) = name.strip_prefix('#') {
            let float = match symbolic {
                "Inf" => f64::INFINITY,
                "-Inf" => f64::NEG_INFINITY,
                "NaN" => f64::NAN,
                _ => return self.fail(start, format!("#{name} is no number")),
            };
            return Ok(Value::Float(Float(float)));
        }
        if !name.starts_with(|first: char| first.is_alphabetic() || first == ':') {
            return self.fail(start, "# wants a tag, a set or _");
        }
        self.skip(depth + 1)?;
        if self.peek().is_none_or(|character| ")]}".contains(character)) {
            return self.fail(start, format!("the tag #{name} has no value"));
        }
        Ok(Value::Tagged(name.to_owned(), Box::new(self.value(depth + 1)?)))
    }

    fn token(&mut self) -> &'a str {
        let rest = self.rest();
        let end = rest.find(ends_token).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    /// Numbers, nil, booleans, symbols.
    fn atom(&mut self) -> Result<Value, Error> {
        let start = self.at;
        let token = self.token();
        let Some(first) = token.chars().next() else {
            let found = self.peek().unwrap_or_default();
            return self.fail(start, format!("{found:?} begins no element"));
        };
        match token {
            "nil" => return Ok(Value::Nil),
            "true" => return Ok(Value::Bool(true)),
            "false" => return Ok(Value::Bool(false)),
            _ => {}
        }
        let unsigned = token.strip_prefix(['+', '-']).unwrap_or(token);
        if !unsigned.starts_with(|digit: char| digit.is_ascii_digit()) {
            // Metadata, quotes and dereferences are Clojure's, not EDN's.
            if "'`~@^%".contains(first) {
                return self.fail(start, format!("{first:?} begins no element"));
            }
            return Ok(Value::Symbol(token.to_owned()));
        }
        let whole = unsigned.strip_suffix('N').unwrap_or(unsigned);
        if whole.bytes().all(|byte| byte.is_ascii_digit()) {
            let digits = token.strip_suffix('N').unwrap_or(token);
            return match digits.parse() {
                Ok(number) => Ok(Value::Int(number)),
                Err(_) => self.fail(start, format!("{token} does not fit into 64 bits")),
            };
        }
        let decimal = token.strip_suffix('M').unwrap_or(token);
        let numeric = decimal.bytes().all(|byte| b"0123456789+-.eE".contains(&byte));
        match decimal.parse() {
            Ok(number) if numeric => Ok(Value::Float(Float(number))),
            _ => self.fail(start, format!("{token} is no number")),
        }
    }
}

fn is_space(character: char) -> bool {
    character.is_whitespace() || character == ','
}

fn ends_token(character: char) -> bool {
    is_space(character) || "()[]{}\";\\".contains(character)
}

fn is_hex(digits: &str) -> bool {
    digits.len() == 4 && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The character of `uXXXX`.
fn unicode(name: &str) -> Option<char> {
    let digits = name.strip_prefix('u').filter(|digits| is_hex(digits))?;
    char::from_u32(u32::from_str_radix(digits, 16).ok()?)
}

/// Every element of a text.
pub fn read(text: &str) -> Result<Vec<Value>, Error> {
    Reader::new(text).map(|read| read.map(|(_, value)| value)).collect()
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Nil => f.write_str("nil"),
            Value::Bool(value) => write!(f, "{value}"),
            Value::Int(value) => write!(f, "{value}"),
            Value::Float(Float(value)) => write_float(f, *value),
            Value::Char(value) => write_char(f, *value),
            Value::String(value) => write_string(f, value),
            Value::Keyword(name) => write!(f, ":{name}"),
            Value::Symbol(name) => f.write_str(name),
            Value::Vector(elements) => write_all(f, "[", elements, "]"),
            Value::List(elements) => write_all(f, "(", elements, ")"),
            Value::Set(elements) => write_all(f, "#{", elements, "}"),
            Value::Map(entries) => {
                f.write_str("{")?;
                for (at, (key, value)) in entries.iter().enumerate() {
                    let comma = if at > 0 { ", " } else { "" };
                    write!(f, "{comma}{key} {value}")?;
                }
                f.write_str("}")
            }
            Value::Tagged(tag, value) => write!(f, "#{tag} {value}"),
        }
    }
}

fn write_all<'a>(
    f: &mut fmt::Formatter<'_>,
    open: &str,
    elements: impl IntoIterator<Item = &'a Value>,
    close: &str,
) -> fmt::Result {
    f.write_str(open)?;
    for (at, element) in elements.into_iter().enumerate() {
        let space = if at > 0 { " " } else { "" };
        write!(f, "{space}{element}")?;
    }
    f.write_str(close)
}

fn write_float(f: &mut fmt::Formatter<'_>, value: f64) -> fmt::Result {
    if value.is_nan() {
        f.write_str("##NaN")
    } else if value.is_infinite() {
        f.write_str(if value > 0.0 { "##Inf" } else { "##-Inf" })
    } else {
        // Debug always has a point or an exponent, so that it is read as a float again.
        write!(f, "{value:?}")
    }
}

fn write_char(f: &mut fmt::Formatter<'_>, value: char) -> fmt::Result {
    match value {
        '\n' => f.write_str("\\newline"),
        '\r' => f.write_str("\\return"),
        ' ' => f.write_str("\\space"),
        '\t' => f.write_str("\\tab"),
        '\u{8}' => f.write_str("\\backspace"),
        '\u{c}' => f.write_str("\\formfeed"),
        _ if value.is_whitespace() || value.is_control() => write!(f, "\\u{:04x}", value as u32),
        _ => write!(f, "\\{value}"),
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, value: &str) -> fmt::Result {
    f.write_char('"')?;
    for character in value.chars() {
        match character {
            '\n' => f.write_str("\\n")?,
            '\t' => f.write_str("\\t")?,
            '\r' => f.write_str("\\r")?,
            '\u{8}' => f.write_str("\\b")?,
            '\u{c}' => f.write_str("\\f")?,
            '"' | '\\' => write!(f, "\\{character}")?,
            _ if character.is_control() => write!(f, "\\u{:04x}", character as u32)?,
            _ => f.write_char(character)?,
        }
    }
    f.write_char('"')
}
