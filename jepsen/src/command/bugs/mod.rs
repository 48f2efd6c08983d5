//! `bugs`: plants one bug after the other into a copy of the sources, and sees whether the tests find it.

mod tree;
mod workshop;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use quorate_jepsen::bugs::{self, Bug, Command, Finder};
use quorate_jepsen::report::Valid;
use serde_json::json;

use self::tree::Tree;
use self::workshop::{Found, Workshop};
use super::{Format, print};

/// Where the bugs are, from the root of the repository.
const BUGS: &str = "jepsen/bugs";
/// What is shown of a failure.
const SHOWN: usize = 160;

/// Plants bugs into a copy of the sources, and lets the tests find them.
///
/// To be run in the root of the repository. Exits with 0 if every bug was found by what its patch names, for
/// the reason that it names, 1 if one was missed, 3 if that is not known: a patch does not apply or does not
/// compile, or a test fails without any bug.
#[derive(Debug, Args)]
pub struct Options {
    /// Bugs by the names of their patches, or how these begin; without it, all
    names: Vec<String>,
    /// Only tells which bugs there are, and what finds them
    #[arg(long)]
    list: bool,
    /// Does not see first that all tests pass without any bug
    #[arg(long)]
    no_control: bool,
    /// Where the copy lies and is compiled [default: `bugs` in the target directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// How to print the result
    #[arg(short, long, default_value = "simple")]
    write_out: Format,
}

/// What came of one bug.
#[derive(Debug)]
struct Row<'a> {
    bug: &'a Bug,
    /// What it took to compile, and to run.
    built: Duration,
    searched: Duration,
    verdict: Verdict,
}

#[derive(Debug)]
enum Verdict {
    Found(Found),
    /// What failed otherwise.
    Missed(Vec<String>),
    Broken(String),
}

pub fn main(options: &Options) -> Result<Valid, String> {
    let mut bugs = bugs::read_all(Path::new(BUGS)).map_err(|error| error.to_string())?;
    let names = &options.names;
    if let Some(name) = names.iter().find(|name| !bugs.iter().any(|bug| is_named(bug, name))) {
        return Err(format!("no bug is called {name}"));
    }
    bugs.retain(|bug| names.is_empty() || names.iter().any(|name| is_named(bug, name)));
    if options.list {
        let list: Vec<_> = bugs.iter().map(|bug| (listed(bug), describe(bug))).collect();
        print_all(list, options.write_out)?;
        return Ok(Valid::True);
    }
    let dir = options.dir.clone().unwrap_or_else(|| {
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
        PathBuf::from(target).join("bugs")
    });
    let tree = Tree::copy(&dir.join("tree"))?;
    let workshop = Workshop::new(tree.root(), &dir)?;
    let began = Instant::now();
    let tell = |what: &str| eprintln!("{:>5} s  {what}", began.elapsed().as_secs());
    if !options.no_control {
        for finder in distinct(&bugs) {
            tell(&format!("without a bug: {finder}"));
            workshop.passes(&finder)?;
        }
    }
    let mut rows = Vec::new();
    for bug in &bugs {
        tell(&bug.name);
        let row = hunt(&tree, &workshop, bug);
        tell(&row.line());
        rows.push(row);
    }
    let (mut missed, mut broken) = (0, 0);
    for row in &rows {
        missed += usize::from(matches!(row.verdict, Verdict::Missed(_)));
        broken += usize::from(matches!(row.verdict, Verdict::Broken(_)));
    }
    print_all(rows.iter().map(|row| (row.line(), row.to_json())).collect(), options.write_out)?;
    let found = rows.len() - missed - broken;
    tell(&format!("{found} of {} bugs found, {missed} missed, {broken} unknown", rows.len()));
    match (missed, broken) {
        (0, 0) => Ok(Valid::True),
        (0, _) => Err(format!("{broken} bugs could not be looked for")),
        _ => Ok(Valid::False),
    }
}

fn is_named(bug: &Bug, name: &str) -> bool {
    let name = Path::new(name).file_name().unwrap_or_default().to_string_lossy();
    bug.name.starts_with(name.trim_end_matches(".patch"))
}

/// One line each, or one document.
fn print_all(all: Vec<(String, serde_json::Value)>, format: Format) -> Result<(), String> {
    print(&match format {
        Format::Simple => all.into_iter().map(|(line, _)| line + "\n").collect(),
        Format::Json => {
            let all: Vec<_> = all.into_iter().map(|(_, value)| value).collect();
            format!("{}\n", json!(all))
        }
    })
}

fn listed(bug: &Bug) -> String {
    let finders: Vec<String> = bug.finders.iter().map(Finder::to_string).collect();
    format!("{}: {}: {}", bug.name, bug.title, finders.join(", or "))
}

fn describe(bug: &Bug) -> serde_json::Value {
    let finders: Vec<String> = bug.finders.iter().map(Finder::to_string).collect();
    json!({
        "name": bug.name,
        "number": bug.number,
        "title": bug.title,
        "finders": finders,
        "expected": bug.expected,
    })
}

/// All that finds bugs, once; of the seeds of one simulation the union.
fn distinct(bugs: &[Bug]) -> Vec<Finder> {
    let mut seeds: BTreeMap<_, (u64, u64)> = BTreeMap::new();
    let mut others = std::collections::BTreeSet::new();
    for finder in bugs.iter().flat_map(|bug| &bug.finders) {
        match finder.command {
            Command::Sim { first, behind } => {
                let known = seeds.entry(finder.variables.clone()).or_insert((first, behind));
                *known = (known.0.min(first), known.1.max(behind));
            }
            Command::Test { .. } | Command::Run(_) => {
                others.insert(finder.clone());
            }
        }
    }
    let seeds = seeds.into_iter().map(|(variables, (first, behind))| Finder {
        variables,
        command: Command::Sim { first, behind },
    });
    seeds.chain(others).collect()
}

/// Plants a bug, and takes it out again.
fn hunt<'a>(tree: &Tree, workshop: &Workshop, bug: &'a Bug) -> Row<'a> {
    let (mut built, mut searched) = (Duration::ZERO, Duration::ZERO);
    let mut look = || {
        let _planted = tree.plant(bug)?;
        let mut others = Vec::new();
        for finder in &bug.finders {
            let search = workshop.search(finder, |failure| bug.explains(failure))?;
            built += search.built;
            searched += search.searched;
            if let Some(found) = search.found {
                return Ok(Verdict::Found(found));
            }
            others.extend(search.others);
        }
        Ok(Verdict::Missed(others))
    };
    let verdict = look().unwrap_or_else(Verdict::Broken);
    Row { bug, built, searched, verdict }
}

impl Row<'_> {
    fn line(&self) -> String {
        let Row { bug, built, searched, verdict } = self;
        let (built, searched) = (built.as_secs(), searched.as_secs());
        let name = &bug.name;
        match verdict {
            Verdict::Found(Found { by, said }) => {
                let said = shortened(said);
                format!("{name}: {by}; {built} s to compile, found after {searched} s: {said}")
            }
            Verdict::Missed(others) => {
                let others: String = others.iter().map(|other| format!("; {other}")).collect();
                format!("{name}: MISSED after {searched} s{others}")
            }
            Verdict::Broken(why) => format!("{name}: UNKNOWN: {why}"),
        }
    }

    fn to_json(&self) -> serde_json::Value {
        let mut value = describe(self.bug);
        value["compile_ms"] = json!(self.built.as_millis() as u64);
        value["search_ms"] = json!(self.searched.as_millis() as u64);
        match &self.verdict {
            Verdict::Found(Found { by, said }) => {
                value["found"] = json!(true);
                value["by"] = json!(by);
                value["said"] = json!(said);
            }
            Verdict::Missed(others) => {
                value["found"] = json!(false);
                value["others"] = json!(others);
            }
            Verdict::Broken(why) => value["error"] = json!(why),
        }
        value
    }
}

fn shortened(text: &str) -> String {
    let text = text.trim();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text.to_owned(),
    }
}
