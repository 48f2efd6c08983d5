//! `quorate-jepsen`: judges histories.
//!
//! Exit codes: 0 the history is as it must be, 1 it is not, 2 that is unknown, 3 it cannot be judged: the
//! file or the command line is wrong.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use quorate_jepsen::edn::Value;
use quorate_jepsen::history::History;
use quorate_jepsen::report::{Report, Valid};
use quorate_jepsen::{append, linear, register};
use serde_json::json;

mod sim;

#[derive(Debug, Parser)]
#[command(name = "quorate-jepsen", about = "Judges histories of what clients of a database saw")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Judges a history in Jepsen's EDN.
    ///
    /// Exits with 0 if the history is as it must be, 1 if it is not, 2 if that is unknown, 3 if it cannot be
    /// judged.
    Check {
        /// What the operations are, and with it what is asked of them.
        #[arg(long)]
        model: Model,
        /// How to print the verdict.
        #[arg(short, long, default_value = "simple")]
        write_out: Format,
        /// How many configurations to visit for each register before the verdict is unknown.
        #[arg(long, default_value_t = linear::LIMIT)]
        limit: usize,
        /// The history; - is standard input.
        file: PathBuf,
    },
    /// Runs the simulation over many seeds, on all cores.
    ///
    /// Exits with 0 if everything held, 1 if not, and prints the command that repeats each failure; 3 if a run
    /// did not come to its end.
    Sim(sim::Options),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Model {
    /// Reads, writes and cas of registers that begin as nil: linearizable.
    Register,
    /// Transactions of appends and reads: strictly serializable.
    ListAppend,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Simple,
    Json,
}

const WRONG: u8 = 3;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(error) => {
            // Help is an error of clap's too, one that succeeds. If it cannot be printed, nothing can.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(WRONG) } else { ExitCode::SUCCESS };
        }
    };
    let (model, write_out, limit, file) = match options.command {
        Command::Check { model, write_out, limit, file } => (model, write_out, limit, file),
        Command::Sim(options) => {
            return match sim::run(&options) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::from(1),
                Err(problem) => {
                    eprintln!("error: {problem}");
                    ExitCode::from(WRONG)
                }
            };
        }
    };
    let printed = judge(model, limit, &file).and_then(|report| {
        let mut out = io::stdout().lock();
        let written = match write_out {
            Format::Simple => write!(out, "{report}"),
            Format::Json => writeln!(out, "{}", to_json(&report)),
        };
        written.and_then(|()| out.flush()).map_err(|error| format!("standard output: {error}"))?;
        Ok(report.valid)
    });
    match printed {
        Ok(Valid::True) => ExitCode::SUCCESS,
        Ok(Valid::False) => ExitCode::from(1),
        Ok(Valid::Unknown) => ExitCode::from(2),
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(WRONG)
        }
    }
}

fn judge(model: Model, limit: usize, file: &Path) -> Result<Report, String> {
    let name = file.display();
    let text = read(file).map_err(|error| format!("{name}: {error}"))?;
    let report = History::read(&text).and_then(|history| match model {
        Model::Register => register::check(&history, &Value::Nil, limit),
        Model::ListAppend => append::check(&history),
    });
    report.map_err(|error| format!("{name}: {error}"))
}

fn read(file: &Path) -> io::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        io::stdin().lock().read_to_string(&mut text)?;
        Ok(text)
    } else {
        std::fs::read_to_string(file)
    }
}

fn to_json(report: &Report) -> serde_json::Value {
    let anomalies = report.anomalies.iter().map(
        |anomaly| json!({ "name": anomaly.name, "what": anomaly.what, "details": anomaly.details }),
    );
    json!({
        "property": report.property,
        "valid": match report.valid {
            Valid::True => json!(true),
            Valid::False => json!(false),
            Valid::Unknown => json!("unknown"),
        },
        "succeeded": report.succeeded,
        "anomalies": anomalies.collect::<Vec<_>>(),
        "unknown": report.unknown,
    })
}
