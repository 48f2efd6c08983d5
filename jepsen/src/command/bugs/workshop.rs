//! Compiles and runs what finds bugs.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use quorate_jepsen::bugs::{Command, Finder};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::cargo::Cargo;
use crate::sim;

/// How long tests or a run may take: a bug may well keep them from coming to their end.
const LIMIT: Duration = Duration::from_secs(300);
const LOOK: Duration = Duration::from_millis(50);
/// A run whose verdict is unknown, or in which the bug has not shown, is followed by others.
const RUNS: Range<u64> = 1..4;

#[derive(Debug)]
pub struct Workshop {
    dir: PathBuf,
    root: PathBuf,
    cargo: Cargo,
}

/// How a bug was found: what repeats it, and what that said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub by: String,
    pub said: String,
}

/// What one finder has come to.
#[derive(Debug, Default)]
pub struct Search {
    pub found: Option<Found>,
    /// What failed otherwise than expected.
    pub others: Vec<String>,
    /// Runs in which nothing failed.
    pub passed: u64,
    pub built: Duration,
    pub searched: Duration,
}

/// What came of a process.
struct Ended {
    /// None: it was ended, since it took too long.
    status: Option<ExitStatus>,
    output: String,
}

impl Workshop {
    /// For the sources below `root`; what is compiled and what runs leave is below `dir`.
    pub fn new(root: &Path, dir: &Path) -> Result<Workshop, String> {
        let dir = dir.canonicalize().map_err(|error| format!("{}: {error}", dir.display()))?;
        let cargo = Cargo::at(root, &dir.join("target"));
        Ok(Workshop { cargo, root: root.to_owned(), dir })
    }

    /// An error unless it finds nothing. Of runs one that passes is enough, if none is false.
    pub fn passes(&self, finder: &Finder) -> Result<(), String> {
        let search = self.search_until(finder, first_line, |search| search.passed > 0)?;
        let found = search.found.map(|found| format!("{}: {}", found.by, found.said));
        let others = search.others.into_iter().filter(|_| search.passed == 0);
        match found.into_iter().chain(others).next() {
            Some(failure) => Err(format!("it fails without any bug: {finder}: {failure}")),
            None => Ok(()),
        }
    }

    /// Runs a finder until it fails and `explained` shows why.
    pub fn search(
        &self,
        finder: &Finder,
        explained: impl Fn(&str) -> Option<&str>,
    ) -> Result<Search, String> {
        self.search_until(finder, explained, |_| false)
    }

    /// As [`Workshop::search`]; no further run when it is enough.
    fn search_until(
        &self,
        finder: &Finder,
        explained: impl Fn(&str) -> Option<&str>,
        enough: impl Fn(&Search) -> bool,
    ) -> Result<Search, String> {
        let began = Instant::now();
        match &finder.command {
            Command::Sim { first, behind } => {
                let binary = self.cargo.test_binary(&["--test", "sim"], "test")?;
                let (built, began) = (began.elapsed(), Instant::now());
                let wanted = |failure: &str| explained(failure).is_some();
                let seeds = sim::search(&binary, &finder.variables, *first..*behind, wanted);
                let found = seeds.found.map(|(seed, said)| {
                    let command = Command::Sim { first: seed, behind: seed + 1 };
                    let by = Finder { command, ..finder.clone() }.to_string();
                    Found { by, said }
                });
                let searched = began.elapsed();
                Ok(Search { found, others: seeds.others, passed: 0, built, searched })
            }
            Command::Test { target, filter } => {
                let target: Vec<&str> = target.iter().map(String::as_str).collect();
                let binary = self.cargo.test_binary(&target, "test")?;
                let (built, began) = (began.elapsed(), Instant::now());
                let mut command = process::Command::new(binary);
                command.arg(filter).current_dir(&self.root).envs(finder.variables.iter().cloned());
                let ended = self.run(&mut command)?;
                let mut search = Search { built, searched: began.elapsed(), ..Search::default() };
                if ended.output.contains("running 0 tests") {
                    return Err(format!("{finder} runs no test"));
                }
                search.judge(finder.to_string(), &ended, Some(101), explained);
                Ok(search)
            }
            Command::Run(arguments) => {
                let binary = self.cargo.node_binary()?;
                let mut search = Search { built: began.elapsed(), ..Search::default() };
                let own = std::env::current_exe().map_err(|error| error.to_string())?;
                for seed in RUNS {
                    let (began, left) = (Instant::now(), self.dir.join("run"));
                    // It may not be there.
                    let _ = fs::remove_dir_all(&left);
                    let mut command = process::Command::new(&own);
                    command.arg("run").args(arguments).args(["--seed", &seed.to_string()]);
                    command.arg("--binary").arg(&binary).arg("--dir").arg(left);
                    let ended = self.run(&mut command)?;
                    search.searched += began.elapsed();
                    if ended.status.is_some_and(|status| status.code() == Some(3)) {
                        return Err(format!("{finder} --seed {seed}: {}", ended.output));
                    }
                    search.judge(format!("{finder} --seed {seed}"), &ended, Some(1), &explained);
                    if search.found.is_some() || enough(&search) {
                        break;
                    }
                }
                Ok(search)
            }
        }
    }

    /// Runs a process with all that it starts, for a while.
    fn run(&self, command: &mut process::Command) -> Result<Ended, String> {
        let log = self.dir.join("output");
        let failed = |error: std::io::Error| format!("{}: {error}", log.display());
        let file = File::create(&log).map_err(failed)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
        let deadline = Instant::now() + LIMIT;
        let status = loop {
            match child.try_wait().map_err(failed)? {
                Some(status) => break Some(status),
                None if Instant::now() >= deadline => break None,
                None => std::thread::sleep(LOOK),
            }
        };
        if status.is_none() {
            // Nodes that it has started as well.
            let group = Pid::from_child(&child);
            kill_process_group(group, Signal::KILL).map_err(|error| failed(error.into()))?;
            child.wait().map_err(failed)?;
        }
        let output = fs::read(&log).map_err(failed)?;
        Ok(Ended { status, output: String::from_utf8_lossy(&output).into_owned() })
    }
}

fn first_line(text: &str) -> Option<&str> {
    text.lines().next()
}

impl Search {
    /// `fails` is the exit code of a failure.
    fn judge(
        &mut self,
        by: String,
        ended: &Ended,
        fails: Option<i32>,
        explained: impl Fn(&str) -> Option<&str>,
    ) {
        match ended.status.map(|status| status.code()) {
            None => self.others.push(format!("{by} did not end within {LIMIT:?}")),
            Some(Some(0)) => self.passed += 1,
            Some(code) => match explained(&ended.output).filter(|_| code == fails) {
                Some(said) => self.found = Some(Found { by, said: said.to_owned() }),
                None => {
                    let last = ended.output.lines().next_back().unwrap_or_default();
                    self.others.push(format!("{by} ends with {code:?}: {last}"));
                }
            },
        }
    }
}
