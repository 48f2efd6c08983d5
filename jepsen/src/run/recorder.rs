//! The history of a run as it comes about: in memory, and line by line in a file.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::edn::Value;
use crate::history::{At, History, Kind, Op, Process};

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Ok {
        value: Value,
        at: Option<At>,
    },
    /// It certainly did not take place.
    Fail(String),
    /// It may have taken place, or may still.
    Info(String),
}

#[derive(Debug)]
pub struct Recorder {
    start: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    history: History,
    file: BufWriter<File>,
    /// The first failure to write, told at the end: an operation cannot do anything about it.
    failed: Option<io::Error>,
}

impl Recorder {
    pub fn new(file: &Path) -> io::Result<Recorder> {
        let file = BufWriter::new(File::create(file)?);
        let inner = Inner { history: History::default(), file, failed: None };
        Ok(Recorder { start: Instant::now(), inner: Mutex::new(inner) })
    }

    pub fn elapsed(&self) -> std::time::Duration {
        self.start.elapsed()
    }

    /// To be called before anything is sent.
    pub fn invoke(&self, process: i64, f: &str, value: Value) {
        self.add(Process::Client(process), Kind::Invoke, f, value, None, None);
    }

    /// To be called after the answer has arrived. What was invoked is the value of what did not succeed.
    pub fn complete(&self, process: i64, f: &str, invoked: Value, outcome: Outcome) {
        let process = Process::Client(process);
        let error = |text: String| Some(Value::String(text));
        match outcome {
            Outcome::Ok { value, at } => self.add(process, Kind::Ok, f, value, None, at),
            Outcome::Fail(why) => self.add(process, Kind::Fail, f, invoked, error(why), None),
            Outcome::Info(why) => self.add(process, Kind::Info, f, invoked, error(why), None),
        }
    }

    /// What is done to the cluster.
    pub fn nemesis(&self, f: &str, value: Value) {
        self.add(Process::Other("nemesis".to_owned()), Kind::Info, f, value, None, None);
    }

    fn add(
        &self,
        process: Process,
        kind: Kind,
        f: &str,
        value: Value,
        error: Option<Value>,
        at: Option<At>,
    ) {
        // Index and time are taken under the lock, so that the order of the history is that of time.
        let mut inner = self.lock();
        let time = i64::try_from(self.start.elapsed().as_nanos()).unwrap_or(i64::MAX);
        let index = inner.history.ops.len();
        let op = Op { index, process, kind, f: f.to_owned(), value, time, error, at };
        if let Err(error) = writeln!(inner.file, "{op}") {
            inner.failed.get_or_insert(error);
        }
        inner.history.ops.push(op);
    }

    /// How many operations of clients succeeded so far.
    pub fn succeeded(&self) -> usize {
        let inner = self.lock();
        inner.history.ops.iter().filter(|op| op.kind == Kind::Ok).count()
    }

    /// The history so far, which is then in its file too.
    pub fn history(&self) -> io::Result<History> {
        let mut inner = self.lock();
        if let Some(error) = inner.failed.take() {
            return Err(error);
        }
        inner.file.flush()?;
        Ok(inner.history.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
