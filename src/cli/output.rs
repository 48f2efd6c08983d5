//! How answers are written: tables, JSON lines, and sizes and durations as people say them. The
//! JSON of each command is described in docs/CLI.md; its fields are only ever added to.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::Error;
use crate::clock::{Clock as _, SystemClock};
use crate::options::Output;

/// Writes to standard output in one format.
#[derive(Debug, Clone, Copy)]
pub struct Printer {
    format: Output,
}

impl Printer {
    pub fn new(format: Output) -> Printer {
        Printer { format }
    }

    pub fn is_json(&self) -> bool {
        self.format == Output::Json
    }

    /// True for tables with lines, which are asked for, as opposed to simple ones.
    pub fn is_table(&self) -> bool {
        self.format == Output::Table
    }

    /// One answer: `value` as one line of JSON, else what `text` makes.
    pub fn answer(
        &self,
        value: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> Result<(), Error> {
        if self.is_json() { self.json(value) } else { line(&text()) }
    }

    /// One answer that is a list or a record: `value` as one line of JSON, else the table.
    pub fn table(
        &self,
        value: &impl Serialize,
        table: impl FnOnce() -> Table,
    ) -> Result<(), Error> {
        self.answer(value, || table().render(self.format))
    }

    /// One line of JSON.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Error> {
        let text = serde_json::to_string(value).map_err(|error| Error::io("JSON", error.into()))?;
        line(&text)
    }

    /// The table as text, for answers that consist of more than one.
    pub fn render(&self, table: &Table) -> String {
        table.render(self.format)
    }
}

/// Writes a line (or lines) to standard output at once. A reader that has gone is no failure: the
/// command ends quietly, as a filter should.
pub fn line(text: &str) -> Result<(), Error> {
    write(&[text.as_bytes(), if text.ends_with('\n') { b"" } else { b"\n" }])
}

/// Writes these bytes and nothing else to standard output.
pub fn raw(bytes: &[u8]) -> Result<(), Error> {
    write(&[bytes])
}

fn write(parts: &[&[u8]]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let written = parts.iter().try_for_each(|part| out.write_all(part)).and_then(|()| out.flush());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::io("standard output", error),
    })
}

/// Writes a line to standard error: progress and notices, which no script reads.
pub fn note(text: &str) {
    // Nothing can be done, and nothing is lost, when nobody listens.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Rows of text under headers.
#[derive(Debug, Clone, Default)]
pub struct Table {
    headers: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headers: &[&'static str]) -> Table {
        Table { headers: headers.to_vec(), rows: Vec::new() }
    }

    /// A table of two columns without headers: names and values of one record.
    pub fn record<'a>(fields: impl IntoIterator<Item = (&'a str, String)>) -> Table {
        let rows = fields.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
        Table { headers: Vec::new(), rows }
    }

    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> = cells.into_iter().map(one_line).collect();
        assert!(
            self.headers.is_empty() || cells.len() == self.headers.len(),
            "{} cells under {} headers",
            cells.len(),
            self.headers.len()
        );
        self.rows.push(cells);
    }

    /// Ends with a newline, except when there is nothing at all to show.
    pub fn render(&self, format: Output) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0).max(self.headers.len());
        let mut widths = vec![0; columns];
        let header: Vec<String> = self.headers.iter().map(|header| header.to_uppercase()).collect();
        for row in std::iter::once(&header).chain(&self.rows) {
            for (cell, width) in row.iter().zip(&mut widths) {
                *width = cell.chars().count().max(*width);
            }
        }
        match format {
            Output::Simple | Output::Json => self.aligned(&header, &widths),
            Output::Table => self.boxed(&header, &widths),
        }
    }

    fn aligned(&self, header: &[String], widths: &[usize]) -> String {
        let mut text = String::new();
        let header = Some(header).filter(|header| !header.is_empty());
        for row in header.into_iter().chain(self.rows.iter().map(Vec::as_slice)) {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, "{cell:width$}   ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }

    fn boxed(&self, header: &[String], widths: &[usize]) -> String {
        let mut rule = String::from("+");
        for width in widths {
            rule.push_str(&"-".repeat(width + 2));
            rule.push('+');
        }
        rule.push('\n');
        let line = |row: &[String]| {
            let mut line = String::from("|");
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, " {cell:width$} |");
            }
            line.push('\n');
            line
        };
        let mut text = rule.clone();
        if !header.is_empty() {
            text.push_str(&line(header));
            text.push_str(&rule);
        }
        for row in &self.rows {
            text.push_str(&line(row));
        }
        if !self.rows.is_empty() {
            text.push_str(&rule);
        }
        text
    }
}

/// Text of others in one cell or line: no line break and no terminal control gets through.
pub fn one_line(cell: String) -> String {
    if cell.contains(char::is_control) { cell.replace(char::is_control, " ") } else { cell }
}

/// `17 B`, `1.5 MiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // The largest unit of which there is at least one, where 1023.95 and more rounds up to the next.
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `830us`, `12ms`, `5s`, `3m12s`, `4h5m`, `2d3h`: two units at most.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let pair = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        small => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match seconds {
        0 if duration.as_millis() == 0 => format!("{}us", duration.as_micros()),
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3_600 => pair(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => pair(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        86_400.. => pair(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// How long ago `at_ms` was; clocks of different machines may put it into the future: then 0s.
pub fn age(now_ms: u64, at_ms: u64) -> String {
    match now_ms.saturating_sub(at_ms) / 1_000 {
        0 => "0s".to_owned(),
        seconds => duration(Duration::from_secs(seconds)),
    }
}

/// Milliseconds since the Unix epoch by this machine's clock, for ages on the screen and the dates of
/// files only.
pub fn now_ms() -> u64 {
    SystemClock.wall_ms()
}

/// `2026-01-31T23:59:59.123Z`.
pub fn timestamp(at_ms: u64) -> String {
    let (seconds, millis) = (at_ms / 1_000, at_ms % 1_000);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Howard Hinnant, "chrono-compatible low-level date algorithms", civil_from_days; years count
    // from March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest % 3_600 / 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Cell of a yes-or-no column.
pub fn yes(value: bool) -> String {
    if value { "true" } else { "false" }.to_owned()
}

/// Pairs as `a=1 b=2`.
pub fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let pairs: Vec<String> =
        pairs.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn sample() -> Table {
        let mut table = Table::new(&["id", "raft term", "errors"]);
        table.row(["1".into(), "22".into(), String::new()]);
        table.row(["größer".into(), "3".into(), "two\nlines\u{1b}[31m".into()]);
        table
    }

    #[test]
    fn simple_tables_are_aligned_and_end_in_no_spaces() {
        let expected = "\
ID       RAFT TERM   ERRORS
1        22
größer   3           two lines [31m
";
        assert_eq!(sample().render(Output::Simple), expected);
    }

    #[test]
    fn tables_with_lines() {
        let expected = "\
+--------+-----------+----------------+
| ID     | RAFT TERM | ERRORS         |
+--------+-----------+----------------+
| 1      | 22        |                |
| größer | 3         | two lines [31m |
+--------+-----------+----------------+
";
        assert_eq!(sample().render(Output::Table), expected);
        let empty = Table::new(&["id"]);
        assert_eq!(empty.render(Output::Table), "+----+\n| ID |\n+----+\n");
        assert_eq!(empty.render(Output::Simple), "ID\n");
    }

    #[test]
    fn records_have_no_header() {
        let record = Table::record([("id", "7".to_owned()), ("zone", "eu".to_owned())]);
        assert_eq!(record.render(Output::Simple), "id     7\nzone   eu\n");
        assert_eq!(
            record.render(Output::Table),
            "+------+----+\n| id   | 7  |\n| zone | eu |\n+------+----+\n"
        );
    }

    #[test]
    #[should_panic(expected = "1 cells under 2 headers")]
    fn a_row_of_the_wrong_width_is_a_defect() {
        Table::new(&["a", "b"]).row(["1".to_owned()]);
    }

    #[test]
    fn sizes() {
        let list = [0, 1023, 1024, 1536, 1024 * 1024 - 1, 64 << 20, u64::MAX];
        let texts: Vec<String> = list.into_iter().map(bytes).collect();
        let expected = ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "64.0 MiB", "16.0 EiB"];
        assert_eq!(texts, expected);
    }

    #[test]
    fn durations_and_ages() {
        let list = [0, 1, 59, 60, 192, 3_600, 14_700, 86_400, 183_600];
        let texts: Vec<String> =
            list.into_iter().map(|s| duration(Duration::from_secs(s))).collect();
        assert_eq!(texts, ["0us", "1s", "59s", "1m", "3m12s", "1h", "4h5m", "1d", "2d3h"]);
        assert_eq!(duration(Duration::from_micros(830)), "830us");
        assert_eq!(duration(Duration::from_micros(12_999)), "12ms");
        assert_eq!(age(5_000, 2_000), "3s");
        assert_eq!(age(5_000, 4_999), "0s");
        assert_eq!(age(5_000, 6_000), "0s");
        assert_eq!(age(600_000, 0), "10m");
    }

    #[test]
    fn timestamps() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(timestamp(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(1_735_689_600_001), "2025-01-01T00:00:00.001Z");
        assert_eq!(timestamp(4_107_542_399_000), "2100-02-28T23:59:59.000Z");
        assert_eq!(timestamp(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }
}
