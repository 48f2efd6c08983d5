//! The command line: what is typed becomes an [`Invocation`], and all of them but `serve` run here.
//! One file per group of commands; each asks a [`Client`] and hands the answer to [`output`].

pub mod bench;
mod cluster;
mod completion;
mod config;
mod counter;
pub mod dev;
mod elect;
mod endpoint;
mod follow;
mod lock;
mod namespace;
pub mod output;
mod saga;
mod service;
mod session;
mod snapshot;
mod txn;
mod view;

use std::fmt::Display;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::client::{self, Client};
use crate::error;
use crate::options::{self, Config, exit};

/// Service registry, configuration and transactions for a team, in one Raft-replicated binary.
///
/// Every option is also an environment variable, QUORATE_ and its name, and a key of the TOML file
/// of --config; the command line beats the environment, which beats the file.
#[derive(Debug, clap::Parser)]
#[command(name = "quorate", version, max_term_width = 100, infer_subcommands = false)]
pub struct Line {
    /// TOML file with options
    #[arg(long, global = true, env = "QUORATE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    global: options::Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run one node
    Serve(Box<options::Serve>),
    /// Run a whole cluster on this machine, for trying things out
    Dev(dev::Args),
    /// Register and find services
    #[command(subcommand)]
    Service(Box<service::Command>),
    /// Publish, read and follow configuration
    #[command(subcommand)]
    Config(Box<config::Command>),
    /// Count, and look at counters
    #[command(subcommand)]
    Counter(Box<counter::Command>),
    /// Look at single nodes
    #[command(subcommand)]
    Endpoint(endpoint::Command),
    /// Look at and change who belongs to the cluster
    #[command(subcommand)]
    Member(cluster::Member),
    /// Let another node lead
    MoveLeader(cluster::MoveLeader),
    /// Back up the cluster, and make a new one from a backup
    #[command(subcommand)]
    Snapshot(snapshot::Command),
    /// Look at sessions
    #[command(subcommand)]
    Session(session::Command),
    /// Look at and change namespaces
    #[command(subcommand)]
    Namespace(namespace::Command),
    /// Take a lock and hold it while a command runs, or until Ctrl-C
    Lock(Box<lock::Args>),
    /// Campaign in an election and lead until Ctrl-C, or see who leads
    Elect(Box<elect::Args>),
    /// Carry out an atomic transaction
    Txn(txn::Args),
    /// Look at transactions across services, and settle what cannot go on
    #[command(subcommand)]
    Saga(Box<saga::Command>),
    /// Measure a cluster under load
    Bench(bench::BenchArgs),
    /// Print the version
    Version,
    /// Print the completion script of a shell
    Completion(completion::Args),
}

/// What the command line asks for, checked.
#[derive(Debug)]
pub enum Invocation {
    Serve(Box<Config>),
    Other(Box<Other>),
}

/// Any command but `serve`.
#[derive(Debug)]
pub struct Other {
    command: Command,
    context: Context,
}

impl Line {
    /// Reads the configuration file and checks every option.
    pub fn check(self) -> Result<Invocation, Error> {
        let file = options::File::read(self.config.as_deref())?;
        Ok(match self.command {
            Command::Serve(raw) => Invocation::Serve(Box::new(Config::check(*raw, &file)?)),
            command => {
                let options = options::Client::check(self.global, &file)?;
                let context = Context { options, file };
                Invocation::Other(Box::new(Other { command, context }))
            }
        })
    }
}

impl Other {
    /// Carries the command out.
    pub async fn run(self) -> Result<(), Error> {
        let Other { command, context } = self;
        match command {
            Command::Serve(_) => unreachable!("Line::check makes it Invocation::Serve"),
            Command::Dev(args) => dev::run(args, &context).await,
            Command::Service(command) => Box::pin(command.run(&context)).await,
            Command::Config(command) => Box::pin(command.run(&context)).await,
            Command::Counter(command) => Box::pin(command.run(&context)).await,
            Command::Endpoint(command) => command.run(&context).await,
            Command::Member(command) => command.run(&context).await,
            Command::MoveLeader(command) => command.run(&context).await,
            Command::Snapshot(command) => command.run(&context).await,
            Command::Session(command) => command.run(&context).await,
            Command::Namespace(command) => command.run(&context).await,
            Command::Lock(args) => Box::pin(lock::run(*args, &context)).await,
            Command::Elect(args) => Box::pin(elect::run(*args, &context)).await,
            Command::Txn(args) => Box::pin(txn::run(args, &context)).await,
            Command::Saga(command) => Box::pin(command.run(&context)).await,
            Command::Version => completion::version(&context),
            Command::Completion(args) => args.run(),
            Command::Bench(args) => Box::pin(bench::run(args, &context)).await,
        }
    }
}

/// What every command is given.
#[derive(Debug, Clone)]
pub struct Context {
    pub options: options::Client,
    /// The configuration file, for commands that prepare a node.
    pub file: options::File,
}

impl Context {
    pub fn printer(&self) -> output::Printer {
        output::Printer::new(self.options.output)
    }

    /// A client of the cluster; connects when it is first used.
    pub fn client(&self) -> Result<Client, Error> {
        let timeout = self.options.timeout;
        let mut options = client::Options::new(&self.options.endpoints);
        options.client_name = "quorate command line".to_owned();
        options.call_timeout = timeout;
        options.attempt_timeout = options.attempt_timeout.min(timeout);
        options.connect_timeout = options.connect_timeout.min(timeout);
        Ok(Client::connect(options)?)
    }

    pub fn namespace(&self) -> String {
        self.options.namespace.clone()
    }
}

/// Why a command failed, and with which code the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Options(#[from] options::Error),
    /// A command line that clap refused: it says it in its own form.
    #[error("{}", .0.render().to_string().trim_start_matches("error: ").trim_end())]
    CommandLine(clap::Error),
    #[error("{0}")]
    Usage(String),
    #[error(transparent)]
    Call(#[from] error::Error),
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("{why}")]
    Refused { code: u8, why: String },
    /// A command that was run ended with this code, and has said why.
    #[error("the command ended with code {0}")]
    Command(u8),
    /// The answer itself says what failed: nothing more to tell.
    #[error("some of it failed")]
    Told,
    /// The reader of standard output has gone.
    #[error("nobody reads the output")]
    Closed,
}

impl Error {
    pub fn usage(why: String) -> Error {
        Error::Usage(why)
    }

    pub fn io(what: impl Display, error: io::Error) -> Error {
        Error::Io { what: what.to_string(), error }
    }

    /// An error with a code of its own, see [`exit`].
    pub fn refused(code: u8, why: String) -> Error {
        Error::Refused { code, why }
    }

    /// Exit code of the process.
    pub fn code(&self) -> u8 {
        match self {
            Error::Options(_) | Error::CommandLine(_) | Error::Usage(_) => exit::USAGE,
            Error::Call(_) | Error::Io { .. } | Error::Told => exit::ERROR,
            Error::Refused { code, .. } | Error::Command(code) => *code,
            Error::Closed => exit::OK,
        }
    }

    /// True when nothing is left to say on standard error.
    pub fn is_quiet(&self) -> bool {
        matches!(self, Error::Told | Error::Closed | Error::Command(_))
    }
}

/// Parses `key=value`, for clap.
fn pair(given: &str) -> Result<(String, String), String> {
    let (key, value) = given.split_once('=').ok_or("expected KEY=VALUE")?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Parses a duration of which the limits are in milliseconds, for clap.
fn milliseconds(
    option: &str,
    given: &str,
    allowed: &RangeInclusive<u64>,
) -> Result<Duration, String> {
    let allowed = Duration::from_millis(*allowed.start())..=Duration::from_millis(*allowed.end());
    options::duration(option, given, allowed).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
