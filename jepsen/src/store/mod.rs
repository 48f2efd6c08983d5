//! The directory of a run: what was asked for, what was planned, what happened, and what it was worth.
//!
//! ```text
//! run.edn       options and seed
//! schedule.txt  the faults as they were drawn from the seed
//! history.edn   what clients and the nemesis did
//! node-N.log    what the nodes said
//! data/         the nodes' directories; not kept when all was as it must be
//!
//! results.json  verdict, reports, counts, faults
//! history.jsonl the history once more
//! registers/    the history of each register, of a run that has such
//! plot.svg      latencies and rates
//! ```
//!
//! A verdict is made of this alone, so that a stored run can be judged again.

mod json;
mod logs;
mod plot;
mod split;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use clap::ValueEnum as _;
use serde_json::json;

use crate::check::{coverage, health};
use crate::cluster::DATA;
use crate::edn::{self, Value};
use crate::history::{self, History};
use crate::nemesis::Plan;
use crate::report::{Report, Valid};
use crate::run::options::Options;
use crate::workload;

pub const HISTORY: &str = "history.edn";
const RUN: &str = "run.edn";
const SCHEDULE: &str = "schedule.txt";

/// Why a directory cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{HISTORY}: {0}")]
    History(#[from] history::Error),
    #[error("{RUN}: {0}")]
    Run(String),
}

/// Makes the directory of a run, which must not hold one.
pub fn begin(options: &Options, plan: &Plan) -> io::Result<()> {
    let dir = &options.dir;
    fs::create_dir_all(dir)?;
    if dir.join(RUN).exists() {
        return Err(io::Error::other(format!("{} holds a run already", dir.display())));
    }
    let kinds = options.nemesis.iter().map(|kind| Value::keyword(kind.name()));
    let run = [
        ("workload", Value::keyword(options.workload.name())),
        ("nemesis", Value::Vector(kinds.collect())),
        ("nodes", Value::Int(options.nodes as i64)),
        ("seconds", Value::Int(options.seconds as i64)),
        ("seed", Value::Int(options.seed as i64)),
        ("clients", Value::Int(options.clients as i64)),
        ("rate", Value::Float(edn::Float(options.rate))),
        ("ballast", Value::Int(options.ballast as i64)),
        ("stale-reads", Value::Bool(options.stale_reads)),
        ("patience-ms", Value::Int(options.patience.as_millis() as i64)),
    ];
    let run = run.into_iter().map(|(key, value)| (Value::keyword(key), value));
    fs::write(dir.join(RUN), format!("{}\n", Value::Map(run.collect())))?;
    fs::write(dir.join(SCHEDULE), plan.to_string())
}

/// What a run was worth.
#[derive(Debug)]
pub struct Verdict {
    pub valid: Valid,
    pub reports: Vec<Report>,
    history: History,
    run: Run,
}

/// What was asked for.
#[derive(Debug)]
struct Run {
    workload: workload::Kind,
    nemesis: Vec<String>,
    /// All of it.
    options: Value,
}

/// Judges what a run has left in its directory.
pub fn judge(dir: &Path) -> Result<Verdict, Error> {
    let run = asked_for(&fs::read_to_string(dir.join(RUN))?).map_err(Error::Run)?;
    let history = History::read(&fs::read_to_string(dir.join(HISTORY))?)?;
    let kinds: Vec<&str> = run.nemesis.iter().map(String::as_str).collect();
    let mut reports = run.workload.judge(&history)?;
    reports.push(health::check(&history, &logs::panics(dir)?));
    reports.push(coverage::check(&history, &kinds));
    Ok(Verdict { valid: worst(&reports), reports, history, run })
}

/// Leaves what people and other tools look at.
pub fn finish(dir: &Path, verdict: &Verdict) -> Result<(), Error> {
    let Verdict { history, run, .. } = verdict;
    fs::write(dir.join("results.json"), format!("{:#}\n", results(verdict)))?;
    fs::write(dir.join("history.jsonl"), json::lines(history))?;
    let title = format!("{}: {}", run.options, verdict.valid);
    fs::write(dir.join("plot.svg"), plot::svg(history, &title)?)?;
    if run.workload == workload::Kind::Register {
        let registers = dir.join("registers");
        fs::create_dir_all(&registers)?;
        for (key, history) in split::by_key(history) {
            fs::write(registers.join(format!("{key}.edn")), history.to_string())?;
        }
    }
    // What the nodes had on disk is of use only to find out what went wrong.
    if verdict.valid == Valid::True && dir.join(DATA).exists() {
        fs::remove_dir_all(dir.join(DATA))?;
    }
    Ok(())
}

fn results(verdict: &Verdict) -> serde_json::Value {
    let counts = counts(&verdict.history)
        .into_iter()
        .map(|(f, [ok, fail, info])| (f, json!({ "ok": ok, "fail": fail, "info": info })));
    let faults = coverage::spans(&verdict.history).into_iter().map(|span| {
        let seconds = |time: i64| time as f64 / 1e9;
        json!({
            "kind": span.kind,
            "what": json::value(&span.what),
            "begin": seconds(span.begin.1),
            "end": span.end.map(|(_, time)| seconds(time)),
            "proof": span.proof,
            "missing": span.missing,
        })
    });
    json!({
        "valid": verdict.valid.to_json(),
        "run": json::value(&verdict.run.options),
        "operations": counts.collect::<serde_json::Map<_, _>>(),
        "faults": faults.collect::<Vec<_>>(),
        "reports": verdict.reports.iter().map(Report::to_json).collect::<Vec<_>>(),
    })
}

/// One false is false; unknown is not a pass.
fn worst(reports: &[Report]) -> Valid {
    let any = |valid| reports.iter().any(|report| report.valid == valid);
    if any(Valid::False) {
        Valid::False
    } else if any(Valid::Unknown) {
        Valid::Unknown
    } else {
        Valid::True
    }
}

fn asked_for(text: &str) -> Result<Run, String> {
    let values = edn::read(text).map_err(|error| error.to_string())?;
    let Some(options @ Value::Map(run)) = values.first() else { return Err("no map".to_owned()) };
    let get = |key: &str| run.get(&Value::keyword(key));
    let workload = match get("workload") {
        Some(Value::Keyword(name)) => workload::Kind::from_str(name, false)?,
        _ => return Err("no :workload".to_owned()),
    };
    let kinds = get("nemesis").and_then(Value::elements).unwrap_or_default();
    let kinds = kinds.iter().filter_map(|kind| match kind {
        Value::Keyword(name) => Some(name.clone()),
        _ => None,
    });
    Ok(Run { workload, nemesis: kinds.collect(), options: options.clone() })
}

/// How many operations ended how, by what they did.
fn counts(history: &History) -> BTreeMap<String, [usize; 3]> {
    let mut counts: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    for op in &history.ops {
        let at = match op.kind {
            history::Kind::Ok => 0,
            history::Kind::Fail => 1,
            history::Kind::Info if matches!(op.process, history::Process::Client(_)) => 2,
            history::Kind::Info | history::Kind::Invoke => continue,
        };
        counts.entry(op.f.clone()).or_default()[at] += 1;
    }
    counts
}
