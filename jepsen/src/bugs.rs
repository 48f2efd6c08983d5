//! Planted bugs: patches of the code under test, each with what must find it. A layer of tests is believed
//! because it finds them.
//!
//! A file is a unified diff below a head:
//!
//! ```text
//! Bug: 1 stale read through a deposed leader
//! Found-by: QUORATE_SIM_LOAD=4 sim --seeds 0..40
//! Expect: a linearizable read of
//!
//! What is wrong, in a sentence or two.
//!
//! --- a/src/node.rs
//! +++ b/src/node.rs
//! ```
//!
//! The number is that of the list in docs/TESTING.md. Several finders are tried in their order, until one
//! fails with one of the expected texts.

use std::fmt;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::Path;

/// One planted bug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bug {
    /// Of its file, without the ending.
    pub name: String,
    pub number: u32,
    pub title: String,
    pub finders: Vec<Finder>,
    /// What the right failure says, one of them at least.
    pub expected: Vec<String>,
    pub files: Vec<FilePatch>,
}

/// What must fail when a bug is there, and passes without.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finder {
    /// Of the environment.
    pub variables: Vec<(String, String)>,
    pub command: Command,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Command {
    /// Random seeds of the simulation, the last one excluded.
    Sim { first: u64, behind: u64 },
    /// `cargo test` of the crate with these arguments: which target, and which test of it.
    Test { target: Vec<String>, filter: String },
    /// `quorate-jepsen run` with these arguments.
    Run(Vec<String>),
}

/// What changes in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePatch {
    /// From the root of the repository.
    pub path: String,
    hunks: Vec<Hunk>,
}

/// Consecutive lines, each with its end, and what takes their place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Hunk {
    before: String,
    after: String,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: String, source: io::Error },
    #[error("{name}: {why}")]
    Malformed { name: String, why: String },
    #[error("{path}: {count} places have the lines\n{lines}")]
    Place { path: String, count: usize, lines: String },
}

/// All bugs of a directory, by name.
pub fn read_all(directory: &Path) -> Result<Vec<Bug>, Error> {
    let io = |source| Error::Io { path: directory.display().to_string(), source };
    let mut bugs = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "patch") {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).map_err(io)?;
            bugs.push(Bug::parse(&name, &text)?);
        }
    }
    bugs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(bugs)
}

impl Bug {
    pub fn parse(name: &str, text: &str) -> Result<Bug, Error> {
        let malformed = |why: String| Error::Malformed { name: name.to_owned(), why };
        let (head, diff) = text
            .split_once("\n--- ")
            .map(|(head, _)| text.split_at(head.len() + 1))
            .ok_or_else(|| malformed("there is no diff in it".to_owned()))?;
        let (mut of, mut finders, mut expected) = (None, Vec::new(), Vec::new());
        // A blank line ends what is for programs.
        for line in head.lines().take_while(|line| !line.is_empty()) {
            match line.split_once(": ") {
                Some(("Bug", text)) => of = text.split_once(' '),
                Some(("Found-by", text)) => finders.push(Finder::parse(text).map_err(malformed)?),
                Some(("Expect", text)) => expected.push(text.to_owned()),
                _ => return Err(malformed(format!("{line:?} is not of the head"))),
            }
        }
        let (number, title) = of.ok_or_else(|| malformed("no number and title".to_owned()))?;
        let number = number.parse().map_err(|_| malformed(format!("{number} is no number")))?;
        if finders.is_empty() || expected.is_empty() {
            return Err(malformed("nobody is said to find it, or not how".to_owned()));
        }
        let files = parse_diff(diff).map_err(malformed)?;
        let (name, title) = (name.to_owned(), title.to_owned());
        Ok(Bug { name, number, title, finders, expected, files })
    }

    /// The line of a failure that was expected.
    pub fn explains<'a>(&self, failure: &'a str) -> Option<&'a str> {
        let expected = |line: &&str| self.expected.iter().any(|text| line.contains(text.as_str()));
        failure.lines().find(expected)
    }
}

impl Finder {
    pub fn parse(text: &str) -> Result<Finder, String> {
        let mut words = text.split_whitespace().peekable();
        let mut variables = Vec::new();
        while let Some((name, value)) = words.peek().and_then(|word| word.split_once('=')) {
            variables.push((name.to_owned(), value.to_owned()));
            words.next();
        }
        let kind = words.next().unwrap_or_default();
        let mut words: Vec<String> = words.map(str::to_owned).collect();
        let command = match (kind, words.as_slice()) {
            ("sim", [option, seeds]) if option == "--seeds" => {
                let Range { start, end } = parse_seeds(seeds)?;
                Command::Sim { first: start, behind: end }
            }
            ("test", [_, ..]) => {
                let filter = words.pop().unwrap_or_default();
                Command::Test { target: words, filter }
            }
            ("run", _) => Command::Run(words),
            _ => return Err(format!("{text:?} is no finder")),
        };
        Ok(Finder { variables, command })
    }
}

impl fmt::Display for Finder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.variables {
            write!(f, "{name}={value} ")?;
        }
        match &self.command {
            Command::Sim { first, behind } => write!(f, "sim --seeds {first}..{behind}"),
            Command::Test { target, filter } => write!(f, "test {} {filter}", target.join(" ")),
            Command::Run(arguments) => write!(f, "run {}", arguments.join(" ")),
        }
    }
}

/// `A..B`
pub fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let wrong = || "not of the form A..B".to_owned();
    let (first, behind) = text.split_once("..").ok_or_else(wrong)?;
    let number = |text: &str| text.parse::<u64>().map_err(|_| wrong());
    let range = number(first)?..number(behind)?;
    if range.is_empty() { Err("there is no seed in it".to_owned()) } else { Ok(range) }
}

fn parse_diff(diff: &str) -> Result<Vec<FilePatch>, String> {
    let mut files: Vec<FilePatch> = Vec::new();
    for line in diff.split_inclusive('\n') {
        if ["--- ", "diff ", "index "].iter().any(|other| line.starts_with(other)) {
            continue;
        }
        if let Some(path) = line.strip_prefix("+++ b/") {
            let path = path.trim_end().to_owned();
            files.push(FilePatch { path, hunks: Vec::new() });
            continue;
        }
        let file = files.last_mut().ok_or_else(|| format!("{line:?} belongs to no file"))?;
        if line.starts_with("@@ ") {
            file.hunks.push(Hunk::default());
            continue;
        }
        let hunk = file.hunks.last_mut().ok_or_else(|| format!("{line:?} belongs to no hunk"))?;
        match line.split_at_checked(1) {
            Some((" ", rest)) => {
                hunk.before += rest;
                hunk.after += rest;
            }
            Some(("-", rest)) => hunk.before += rest,
            Some(("+", rest)) => hunk.after += rest,
            _ => return Err(format!("{line:?} is not of a diff")),
        }
    }
    if files.is_empty() { Err("it changes no file".to_owned()) } else { Ok(files) }
}

impl FilePatch {
    /// The text with the bug. The numbers of lines in a diff change with every change above them, so that
    /// a hunk goes where its lines are, which must be one place.
    pub fn apply(&self, text: &str) -> Result<String, Error> {
        let mut text = text.to_owned();
        for Hunk { before, after } in &self.hunks {
            let places: Vec<usize> = text
                .match_indices(before.as_str())
                .map(|(at, _)| at)
                .filter(|at| *at == 0 || text[..*at].ends_with('\n'))
                .collect();
            let [at] = places[..] else {
                let (path, lines) = (self.path.clone(), before.clone());
                return Err(Error::Place { path, count: places.len(), lines });
            };
            text.replace_range(at..at + before.len(), after);
        }
        Ok(text)
    }
}
