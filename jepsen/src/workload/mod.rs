//! Workloads: what clients do, and by which checkers the history of it is judged.
//!
//! A workload is two things that share nothing but the form of the history: clients, which generate
//! operations and carry them out, and a judgement of what they saw.

mod append;
mod balance;
mod bank;
mod config;
mod counter;
mod gray;
mod life;
mod lock;
mod once;
mod register;
mod registry;
mod saga;
mod server;
mod session;
mod set;
mod watch;

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;

use clap::ValueEnum;
use quorate::error::Error;
use quorate::proto::v1;

use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::history::{self, At, History};
use crate::random::Random;
use crate::report::Report;
use crate::run::recorder::Outcome;

pub type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Reads, writes and cas of config items: linearizable, and in the order of the revisions.
    Register,
    /// Transactions of reads and appends: strictly serializable.
    Append,
    /// Items that are added and listed: none is lost.
    Set,
    /// Additions: sums within their bounds.
    Counter,
    /// Transfers between accounts: money is conserved.
    Bank,
    /// Additions with ids that are sent again and again: each counts once.
    Once,
    /// Watches: the six guarantees.
    Watch,
    /// Instances with sessions: there as long as they are kept alive, and not longer.
    Registry,
    /// Locks: exclusive, and fenced by their tokens.
    Lock,
    /// Global transactions: done or undone as a whole, none is stuck.
    Saga,
    /// Clients that balance: nobody is picked who has left.
    Balance,
    /// Gray releases: each client gets the release that is its own.
    Gray,
}

pub const KINDS: &[Kind] = &[
    Kind::Register,
    Kind::Append,
    Kind::Set,
    Kind::Counter,
    Kind::Bank,
    Kind::Once,
    Kind::Watch,
    Kind::Registry,
    Kind::Lock,
    Kind::Saga,
    Kind::Balance,
    Kind::Gray,
];

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    pub f: &'static str,
    pub value: Value,
}

impl Invocation {
    pub fn new(f: &'static str, value: Value) -> Invocation {
        Invocation { f, value }
    }
}

/// The ways of one client to all nodes, and the one that it uses.
#[derive(Debug, Clone)]
pub struct Ways {
    pub all: Vec<Connection>,
    pub home: usize,
}

impl Ways {
    pub fn home(&self) -> &Connection {
        &self.all[self.home]
    }
}

/// One thread of operations.
pub trait Client: Send {
    /// What to do next; None = nothing now.
    fn next(&mut self) -> Option<Invocation>;
    /// What to do when all is healed, until None: reads that show what has become of everything.
    fn last(&mut self) -> Option<Invocation>;
    fn invoke<'a>(&'a mut self, what: &'a Invocation, ways: &'a Ways) -> Boxed<'a, Outcome>;
}

pub trait Workload: Debug + Send + Sync {
    /// What must be there before clients begin. May be repeated.
    fn prepare<'a>(&'a self, way: &'a Connection) -> Boxed<'a, Result<(), Error>>;
    fn client(&self, number: usize, random: Random) -> Box<dyn Client>;
}

/// How a run is shaped, as far as its workload needs to know.
#[derive(Debug, Clone)]
pub struct Shape {
    pub clients: usize,
    /// Where the client library finds the nodes.
    pub endpoints: Vec<String>,
    /// Of registers, see `run::options::Options`.
    pub stale_reads: bool,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Register => "register",
            Kind::Append => "append",
            Kind::Set => "set",
            Kind::Counter => "counter",
            Kind::Bank => "bank",
            Kind::Once => "once",
            Kind::Watch => "watch",
            Kind::Registry => "registry",
            Kind::Lock => "lock",
            Kind::Saga => "saga",
            Kind::Balance => "balance",
            Kind::Gray => "gray",
        }
    }

    pub fn workload(self, shape: Shape) -> Arc<dyn Workload> {
        match self {
            Kind::Register => Arc::new(register::Registers::new(shape)),
            Kind::Append => Arc::new(append::Append::default()),
            Kind::Set => Arc::new(set::Sets::default()),
            Kind::Counter => Arc::new(counter::Counters),
            Kind::Bank => Arc::new(bank::Bank),
            Kind::Once => Arc::new(once::Once),
            Kind::Watch => Arc::new(watch::Watches::default()),
            Kind::Registry => Arc::new(registry::Registry::default()),
            Kind::Lock => Arc::new(lock::Locks::default()),
            Kind::Saga => Arc::new(saga::Sagas::new(shape)),
            Kind::Balance => Arc::new(balance::Balance::new(shape)),
            Kind::Gray => Arc::new(gray::Grays::default()),
        }
    }

    /// Judges the history of such a workload.
    pub fn judge(self, history: &History) -> Result<Vec<Report>, history::Error> {
        match self {
            Kind::Register => register::judge(history),
            Kind::Append => append::judge(history),
            Kind::Set => set::judge(history),
            Kind::Counter => counter::judge(history),
            Kind::Bank => bank::judge(history),
            Kind::Once => once::judge(history),
            Kind::Watch => watch::judge(history),
            Kind::Registry => registry::judge(history),
            Kind::Lock => lock::judge(history),
            Kind::Saga => saga::judge(history),
            Kind::Balance => balance::judge(history),
            Kind::Gray => gray::judge(history),
        }
    }
}

/// An answer with what it says about its place in the order.
fn ok(value: Value, header: Option<v1::Header>, wrote: bool) -> Outcome {
    let revision = header.map(|header| i64::try_from(header.revision).unwrap_or(i64::MAX));
    Outcome::Ok { value, at: revision.map(|revision| At { revision, wrote }) }
}

/// What the error of a write says about it.
fn not_written(error: &Error) -> Outcome {
    if error.definite() {
        Outcome::Fail(error.to_string())
    } else {
        Outcome::Info(error.to_string())
    }
}

/// A read without an answer changed nothing and told nothing.
fn not_read(error: &Error) -> Outcome {
    Outcome::Fail(error.to_string())
}

fn int(number: usize) -> Value {
    Value::Int(i64::try_from(number).unwrap_or(i64::MAX))
}

fn pair(first: Value, second: Value) -> Value {
    Value::Vector(vec![first, second])
}

/// The elements of a value that a generator made.
fn parts<const N: usize>(value: &Value) -> &[Value; N] {
    let elements = value.elements().and_then(|elements| elements.try_into().ok());
    elements.unwrap_or_else(|| panic!("{value} has not {N} elements"))
}
