//! What the command line can do, and how verdicts are printed.

pub mod bugs;
pub mod check;
mod rounds;
pub mod run;

use std::io::{self, Write as _};

use clap::ValueEnum;
use quorate_jepsen::report::{Report, Valid};
use serde_json::json;

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Format {
    Simple,
    Json,
}

/// To standard output.
fn print(text: &str) -> Result<(), String> {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(|error| format!("standard output: {error}"))
}

fn print_report(report: &Report, format: Format) -> Result<(), String> {
    print(&match format {
        Format::Simple => report.to_string(),
        Format::Json => format!("{}\n", report.to_json()),
    })
}

fn print_verdict(valid: Valid, reports: &[Report], format: Format) -> Result<(), String> {
    print(&match format {
        Format::Simple => {
            let reports: String = reports.iter().map(Report::to_string).collect();
            format!("{reports}verdict: {valid}\n")
        }
        Format::Json => {
            let reports: Vec<_> = reports.iter().map(Report::to_json).collect();
            format!("{}\n", json!({ "valid": valid.to_json(), "reports": reports }))
        }
    })
}
