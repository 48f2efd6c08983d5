//! Java's `.properties`, as `java.util.Properties.load(Reader)` reads it: `#` and `!` begin comments, a
//! backslash at the end of a line continues it, keys end at `=`, `:` or a blank, the last of two equal
//! keys wins. The text is UTF-8; `\uXXXX` must be four digits and no half of a surrogate pair.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::CharIndices;

use super::{Malformed, without_mark};

pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, Malformed> {
    let mut reader = Reader { text: without_mark(text)?, rest: text.char_indices().peekable() };
    let mut pairs = BTreeMap::new();
    while reader.next_line() {
        let key = reader.word(true)?;
        reader.separator();
        let value = reader.word(false)?;
        pairs.insert(key, value);
    }
    Ok(pairs)
}

struct Reader<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

fn is_blank(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\x0c')
}

fn is_end(c: char) -> bool {
    matches!(c, '\n' | '\r')
}

impl Reader<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn skip(&mut self, which: impl Fn(char) -> bool) {
        while self.peek().is_some_and(&which) {
            self.rest.next();
        }
    }

    /// Goes to the first character of the next line that is neither blank nor a comment.
    fn next_line(&mut self) -> bool {
        loop {
            self.skip(|c| is_blank(c) || is_end(c));
            match self.peek() {
                None => return false,
                Some('#' | '!') => self.skip(|c| !is_end(c)),
                Some(_) => return true,
            }
        }
    }

    /// What stands between key and value: blanks and at most one `=` or `:`.
    fn separator(&mut self) {
        self.blanks();
        if matches!(self.peek(), Some('=' | ':')) {
            self.rest.next();
            self.blanks();
        }
    }

    /// Blanks, over the ends of continued lines.
    fn blanks(&mut self) {
        loop {
            self.skip(is_blank);
            let mut ahead = self.rest.clone();
            match (ahead.next(), ahead.next()) {
                (Some((_, '\\')), Some((_, c))) if is_end(c) => {
                    self.rest.next();
                    self.continuation();
                }
                _ => return,
            }
        }
    }

    /// Behind a backslash, before the end of its line: goes to the first character of the next one that is
    /// no blank.
    fn continuation(&mut self) {
        if let Some((_, '\r')) = self.rest.next()
            && self.peek() == Some('\n')
        {
            self.rest.next();
        }
        self.skip(is_blank);
    }

    /// Until the end of the logical line, or of the key.
    fn word(&mut self, key: bool) -> Result<String, Malformed> {
        let mut word = String::new();
        // A first half of a surrogate pair, and where it stands.
        let mut half: Option<(u16, usize)> = None;
        while let Some((at, c)) = self.rest.peek().copied() {
            if is_end(c) || key && (is_blank(c) || matches!(c, '=' | ':')) {
                break;
            }
            self.rest.next();
            let escape = (c == '\\').then(|| self.peek()).flatten();
            match escape {
                Some(end) if is_end(end) => {
                    self.continuation();
                    continue;
                }
                Some('u') => {
                    self.rest.next();
                    let unit = self.unit(at)?;
                    match (half.take(), unit) {
                        (None, 0xd800..=0xdbff) => half = Some((unit, at)),
                        (first, unit) => {
                            let place = first.map_or(at, |(_, at)| at);
                            let units = first.map(|(first, _)| first).into_iter().chain([unit]);
                            let read: Result<String, _> = char::decode_utf16(units).collect();
                            word += &read.map_err(|_| self.alone(place))?;
                        }
                    }
                    continue;
                }
                _ => {}
            }
            if let Some((_, at)) = half {
                return Err(self.alone(at));
            }
            match escape {
                Some(escaped) => {
                    self.rest.next();
                    word.push(match escaped {
                        't' => '\t',
                        'n' => '\n',
                        'r' => '\r',
                        'f' => '\x0c',
                        other => other,
                    });
                }
                // Java drops a backslash at the very end of the file.
                None if c == '\\' => {}
                None => word.push(c),
            }
        }
        match half {
            Some((_, at)) => Err(self.alone(at)),
            None => Ok(word),
        }
    }

    /// The four digits behind `\u`, which stands at `at`.
    fn unit(&mut self, at: usize) -> Result<u16, Malformed> {
        let mut unit = 0;
        for _ in 0..4 {
            let digit = self.peek().and_then(|c| c.to_digit(16)).ok_or_else(|| {
                let why = "\\u needs four hexadecimal digits; a backslash itself is written \\\\";
                Malformed::at_offset(self.text.as_bytes(), at, why)
            })?;
            self.rest.next();
            unit = unit * 16 + u16::try_from(digit).expect("a digit is below 16");
        }
        Ok(unit)
    }

    fn alone(&self, at: usize) -> Malformed {
        let why = "half of a surrogate pair; characters beyond U+FFFF are written as two \\uXXXX";
        Malformed::at_offset(self.text.as_bytes(), at, why)
    }
}
