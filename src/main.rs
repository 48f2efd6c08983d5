//! The binary: parses, dispatches, and turns what went wrong into an exit code.

use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use clap::Parser as _;
use quorate::cli::{Error, Invocation, Line, output};
use quorate::limits::SHUTDOWN_BLOCKED;
use quorate::options::{Config, Durability, Log, LogFormat, exit};
use quorate::runtime::run_to_end;
use quorate::server::Stopped;
use tracing_subscriber::EnvFilter;

/// Its options are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    quorate::panic::install_panic_hook();
    let code = match Line::parse().check() {
        Ok(Invocation::Serve(config)) => serve(*config),
        Ok(Invocation::Other(other)) => match runtime(1) {
            Ok(runtime) => {
                runtime.block_on(other.run()).map_or_else(|error| failed(&error), |()| exit::OK)
            }
            Err(error) => failed(&Error::io("the runtime", error)),
        },
        Err(error) => failed(&error),
    };
    ExitCode::from(code)
}

/// Runs a node until it is told to stop.
fn serve(config: Config) -> u8 {
    log_to_stderr(&config.log);
    if config.durability == Durability::None {
        tracing::warn!(
            "--unsafe-no-fsync: acknowledged writes are not on disk; a power cut loses them and may \
             make this node vote twice; for benchmarks only"
        );
    }
    let runtime = match runtime(config.worker_threads) {
        Ok(runtime) => runtime,
        Err(error) => return failed(&Error::io("the runtime", error)),
    };
    match run_to_end(runtime, quorate::server::run(config), SHUTDOWN_BLOCKED) {
        Ok(Stopped::Asked) => exit::OK,
        Ok(Stopped::ToRebuild) => start_anew(),
        Err(error) => {
            output::note(&format!("error: {error}"));
            error.exit_code()
        }
    }
}

/// Puts the same program with the same arguments in the place of this process, under its number, so
/// that no supervisor is needed; what this one had open is closed. Returns when that is not possible.
fn start_anew() -> u8 {
    let own = std::env::current_exe();
    // The second names the running program also when its file was replaced by another release.
    let programs = own.into_iter().chain(["/proc/self/exe".into()]);
    for program in programs {
        let mut arguments = std::env::args_os();
        let mut command = Command::new(&program);
        if let Some(name) = arguments.next() {
            command.arg0(name);
        }
        let error = command.args(arguments).exec();
        tracing::warn!(%error, program = %program.display(), "cannot be started anew");
    }
    output::note("error: this node must fetch its state and cannot start anew by itself: start it");
    exit::REBUILD
}

fn runtime(threads: usize) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.worker_threads(threads).thread_name("worker").enable_all().build()
}

fn log_to_stderr(log: &Log) {
    let filter = EnvFilter::try_new(&log.filter).expect("options::Log::check has parsed it");
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // When standard error is closed there is nobody left to tell.
        .log_internal_errors(false);
    match log.format {
        LogFormat::Text => subscriber.with_ansi(false).init(),
        LogFormat::Json => subscriber.json().flatten_event(true).init(),
    }
}

fn failed(error: &Error) -> u8 {
    if !error.is_quiet() {
        output::note(&format!("error: {error}"));
    }
    error.code()
}
