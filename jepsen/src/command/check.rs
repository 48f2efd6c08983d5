//! `check`: judges a history in a file, or a run in its directory.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use quorate_jepsen::edn::{self, Value};
use quorate_jepsen::history::History;
use quorate_jepsen::report::Valid;
use quorate_jepsen::{append, linear, register, store};

use super::{Format, print_report, print_verdict};

/// Judges a history in Jepsen's EDN, or the directory of a run.
///
/// Exits with 0 if the history is as it must be, 1 if it is not, 2 if that is unknown, 3 if it cannot be
/// judged.
#[derive(Debug, Args)]
pub struct Options {
    /// What the operations of a file are, and with it what is asked of them; a run knows its own
    #[arg(long)]
    model: Option<Model>,
    /// How to print the verdict
    #[arg(short, long, default_value = "simple")]
    write_out: Format,
    /// How many configurations to visit for each register before the verdict is unknown
    #[arg(long, default_value_t = linear::LIMIT)]
    limit: usize,
    /// What registers hold at the beginning, in EDN
    #[arg(long, default_value = "nil", value_name = "VALUE")]
    initial: String,
    /// The history, - for standard input; or the directory of a run
    file: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Model {
    /// Reads, writes and cas of registers that begin as nil: linearizable
    Register,
    /// Transactions of appends and reads: strictly serializable
    ListAppend,
}

pub fn main(options: &Options) -> Result<Valid, String> {
    let name = options.file.display();
    let named = |problem: String| format!("{name}: {problem}");
    if options.file.is_dir() {
        let verdict = store::judge(&options.file).map_err(|error| named(error.to_string()))?;
        print_verdict(verdict.valid, &verdict.reports, options.write_out)?;
        return Ok(verdict.valid);
    }
    let Some(model) = options.model else {
        return Err(named(
            "a file needs a --model; only a run's directory knows its own".to_owned(),
        ));
    };
    let text = read(&options.file).map_err(|error| named(error.to_string()))?;
    let history = History::read(&text).map_err(|error| named(error.to_string()))?;
    let report = match model {
        Model::Register => register::check(&history, &initial(&options.initial)?, options.limit),
        Model::ListAppend => append::check(&history),
    };
    let report = report.map_err(|error| named(error.to_string()))?;
    print_report(&report, options.write_out)?;
    Ok(report.valid)
}

fn initial(text: &str) -> Result<Value, String> {
    let values = edn::read(text).map_err(|error| format!("--initial {text:?}: {error}"))?;
    match values.as_slice() {
        [value] => Ok(value.clone()),
        _ => Err(format!("--initial {text:?} is not one value")),
    }
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
