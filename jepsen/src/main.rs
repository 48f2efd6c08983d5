//! `quorate-jepsen`: runs clusters under faults and judges histories.
//!
//! Exit codes: 0 the history is as it must be, 1 it is not, 2 that is unknown, 3 there is none or it cannot be
//! judged: the file, the command line or the harness is wrong.

mod cargo;
mod command;
mod sim;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use quorate_jepsen::report::Valid;

#[derive(Debug, Parser)]
#[command(name = "quorate-jepsen", about = "Jepsen's method for Quorate")]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Bugs(command::bugs::Options),
    Check(command::check::Options),
    Run(command::run::Options),
    /// Runs the simulation over many seeds, on all cores.
    ///
    /// Exits with 0 if everything held, 1 if not, and prints the command that repeats each failure; 3 if a run
    /// did not come to its end.
    Sim(sim::Options),
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
    let done = match options.command {
        Command::Bugs(options) => command::bugs::main(&options),
        Command::Check(options) => command::check::main(&options),
        Command::Run(options) => command::run::main(options),
        Command::Sim(options) => sim::run(&options).map(|held| match held {
            true => Valid::True,
            false => Valid::False,
        }),
    };
    match done {
        Ok(Valid::True) => ExitCode::SUCCESS,
        Ok(Valid::False) => ExitCode::from(1),
        Ok(Valid::Unknown) => ExitCode::from(2),
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(WRONG)
        }
    }
}
