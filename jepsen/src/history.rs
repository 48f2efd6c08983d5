//! Histories: what processes invoked and what they heard, in the order in which it happened.
//!
//! As Jepsen writes them: one op map per line, or one vector of op maps. Ops of processes that are not
//! numbers (`:nemesis`) are read and written, but belong to no client and are not paired.

use std::collections::HashMap;
use std::fmt;

use crate::edn::{self, Position, Value};

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// Where it stands in the history; ascending, though not without gaps when a history was filtered.
    pub index: usize,
    pub process: Process,
    pub kind: Kind,
    /// What is done: `read`, `txn`.
    pub f: String,
    pub value: Value,
    /// Nanoseconds since the start. The order of a history is that of its ops: no checker looks at this.
    pub time: i64,
    /// Why it failed, or is not known.
    pub error: Option<Value>,
    /// Where the server says that it took place. Only checkers of that order look at it.
    pub at: Option<At>,
}

/// The place of an operation in the order that the server claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At {
    /// Of a write its own, of everything else that of the state it saw.
    pub revision: i64,
    /// Whether it changed the state: no two that did share a revision.
    pub wrote: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Process {
    /// A single thread of operations.
    Client(i64),
    /// What is not one: `nemesis`.
    Other(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Invoke,
    /// It took place.
    Ok,
    /// It certainly did not and will not take place.
    Fail,
    /// It may have, may still, may never.
    Info,
}

/// An operation: the position of its invocation in the history's ops, and of its completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub invoke: usize,
    /// None when the history ends before it.
    pub complete: Option<usize>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    pub ops: Vec<Op>,
}

/// Why a text holds no history that can be judged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Edn(#[from] edn::Error),
    #[error("{position}: {problem}")]
    Op { position: Position, problem: String },
    /// Also what the checkers say of ops that their model does not know.
    #[error("op {index}: {problem}")]
    Malformed { index: usize, problem: String },
}

impl Error {
    pub fn malformed(op: &Op, problem: impl Into<String>) -> Error {
        Error::Malformed { index: op.index, problem: problem.into() }
    }
}

impl History {
    /// Reads a history: op maps one after the other, or vectors of them.
    pub fn read(text: &str) -> Result<History, Error> {
        let mut history = History::default();
        for read in edn::Reader::new(text) {
            let (position, value) = read?;
            match value.untagged().elements() {
                Some(ops) => ops.iter().try_for_each(|op| history.add(position, op))?,
                None => history.add(position, &value)?,
            }
        }
        Ok(history)
    }

    fn add(&mut self, position: Position, value: &Value) -> Result<(), Error> {
        let next = self.ops.last().map_or(0, |op| op.index + 1);
        let wrong = |problem| Error::Op { position, problem };
        let op = Op::from_value(value, next).map_err(wrong)?;
        if op.index < next {
            let problem = format!("index {} after index {}", op.index, next - 1);
            return Err(Error::Op { position, problem });
        }
        self.ops.push(op);
        Ok(())
    }

    /// The clients' operations in the order of their invocations.
    ///
    /// Invariant: a process has at most one open operation. `:info` leaves it open for ever, so a process
    /// ends with it and the client goes on under a new number.
    pub fn calls(&self) -> Result<Vec<Call>, Error> {
        let mut calls: Vec<Call> = Vec::new();
        // The last call of each process.
        let mut last: HashMap<i64, usize> = HashMap::new();
        for (at, op) in self.ops.iter().enumerate() {
            let Process::Client(process) = op.process else { continue };
            let open = last.get(&process).copied();
            if op.kind == Kind::Invoke {
                if let Some(call) = open.map(|call| calls[call])
                    && call.complete.is_none_or(|at| self.ops[at].kind == Kind::Info)
                {
                    let before = self.ops[call.invoke].index;
                    let problem = format!("process {process} invokes while op {before} is open");
                    return Err(Error::malformed(op, problem));
                }
                last.insert(process, calls.len());
                calls.push(Call { invoke: at, complete: None });
                continue;
            }
            let call = open.map(|call| &mut calls[call]).filter(|call| call.complete.is_none());
            let Some(call) = call else {
                let problem = format!("process {process} completes what it did not invoke");
                return Err(Error::malformed(op, problem));
            };
            let invoked = &self.ops[call.invoke];
            if invoked.f != op.f {
                let problem =
                    format!("completes :{} of op {} as :{}", invoked.f, invoked.index, op.f);
                return Err(Error::malformed(op, problem));
            }
            call.complete = Some(at);
        }
        Ok(calls)
    }

    /// How a call ended; what the history does not tell is `:info`.
    pub fn outcome(&self, call: Call) -> Kind {
        call.complete.map_or(Kind::Info, |at| self.ops[at].kind)
    }
}

impl fmt::Display for History {
    /// One op per line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ops.iter().try_for_each(|op| writeln!(f, "{op}"))
    }
}

impl Op {
    /// The op of a map; `next` is its index if it names none.
    fn from_value(value: &Value, next: usize) -> Result<Op, String> {
        let Value::Map(map) = value.untagged() else {
            return Err(format!("an op is a map, this is {value}"));
        };
        let get = |name| map.get(&Value::keyword(name)).map(Value::untagged);
        let kind = match get("type") {
            Some(Value::Keyword(kind)) => {
                Kind::parse(kind).ok_or_else(|| format!("the :type :{kind} is unknown"))?
            }
            Some(other) => return Err(format!("the :type {other} is no keyword")),
            None => return Err("the op has no :type".to_owned()),
        };
        let process = match get("process") {
            Some(Value::Int(process)) => Process::Client(*process),
            Some(Value::Keyword(process)) => Process::Other(process.clone()),
            Some(other) => {
                return Err(format!("the :process {other} is neither number nor keyword"));
            }
            None => return Err("the op has no :process".to_owned()),
        };
        let f = match get("f") {
            Some(Value::Keyword(f)) => f.clone(),
            Some(other) => return Err(format!("the :f {other} is no keyword")),
            None => return Err("the op has no :f".to_owned()),
        };
        let index = match get("index") {
            Some(Value::Int(index)) => {
                usize::try_from(*index).map_err(|_| format!("the :index {index} is negative"))?
            }
            Some(other) => return Err(format!("the :index {other} is no number")),
            None => next,
        };
        let time = match get("time") {
            Some(Value::Int(time)) => *time,
            Some(other) => return Err(format!("the :time {other} is no number")),
            None => 0,
        };
        let value = map.get(&Value::keyword("value")).cloned().unwrap_or(Value::Nil);
        let error = map.get(&Value::keyword("error")).cloned();
        let at = match get("revision") {
            Some(Value::Int(revision)) => {
                Some(At { revision: *revision, wrote: get("wrote") == Some(&Value::Bool(true)) })
            }
            Some(other) => return Err(format!("the :revision {other} is no number")),
            None => None,
        };
        Ok(Op { index, process, kind, f, value, time, error, at })
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { index, process, kind, f: what, value, time, error, at } = self;
        write!(f, "{{:index {index}, :time {time}, :type {kind}, :process {process}, ")?;
        write!(f, ":f :{what}, :value {value}")?;
        if let Some(error) = error {
            write!(f, ", :error {error}")?;
        }
        if let Some(At { revision, wrote }) = at {
            write!(f, ", :revision {revision}, :wrote {wrote}")?;
        }
        f.write_str("}")
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Process::Client(process) => write!(f, "{process}"),
            Process::Other(process) => write!(f, ":{process}"),
        }
    }
}

impl Kind {
    fn parse(kind: &str) -> Option<Kind> {
        Some(match kind {
            "invoke" => Kind::Invoke,
            "ok" => Kind::Ok,
            "fail" => Kind::Fail,
            "info" => Kind::Info,
            _ => return None,
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Invoke => ":invoke",
            Kind::Ok => ":ok",
            Kind::Fail => ":fail",
            Kind::Info => ":info",
        })
    }
}
