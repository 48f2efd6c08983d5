//! The register: `:read v`, `:write v`, `:cas [from to]`, each key a register of its own.
//!
//! In a history of several keys every value is `[key value]`, as Jepsen's `independent` writes it. Values of
//! registers are scalars, so the form tells which it is. Linearizability is local (Herlihy & Wing, 1990):
//! the history is linearizable if each key's is.

use std::collections::BTreeMap;

use crate::edn::Value;
use crate::history::{Call, Error, History, Kind, Op};
use crate::intern::Interner;
use crate::linear::{self, Model, Operation, Stuck, Verdict};
use crate::report::{Anomaly, Report};

/// What a register is asked, with the answer; values are interned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Input {
    Read(u32),
    Write(u32),
    Cas(u32, u32),
}

#[derive(Debug, Clone, Copy)]
pub struct Register;

impl Model for Register {
    type State = u32;
    type Input = Input;

    fn step(&self, state: &u32, input: &Input) -> Option<u32> {
        match *input {
            Input::Read(value) => (value == *state).then_some(value),
            Input::Write(value) => Some(value),
            Input::Cas(from, to) => (from == *state).then_some(to),
        }
    }
}

/// Judges a history of registers that begin as `initial`; `limit` is the number of configurations to visit
/// for each key.
pub fn check(history: &History, initial: &Value, limit: usize) -> Result<Report, Error> {
    let calls = history.calls()?;
    let keyed = is_keyed(history, &calls)?;
    let mut interner = Interner::default();
    let initial = interner.id(initial);
    let mut keys: BTreeMap<Value, (Vec<Operation<Input>>, Vec<Call>)> = BTreeMap::new();
    let mut succeeded = 0;
    for call in calls {
        let outcome = history.outcome(call);
        succeeded += usize::from(outcome == Kind::Ok);
        let (key, input) = input(history, call, keyed, &mut interner)?;
        let (operations, its_calls) = keys.entry(key).or_default();
        if let Some(input) = input {
            let complete = call.complete.filter(|_| outcome == Kind::Ok);
            operations.push(Operation { input, invoke: call.invoke, complete });
            its_calls.push(call);
        }
    }
    let mut report = Report::new("linearizable", succeeded);
    for (key, (operations, calls)) in &keys {
        let key = keyed.then_some(key);
        match linear::check(&Register, initial, operations, limit) {
            Verdict::Linearizable { .. } => {}
            Verdict::NotLinearizable(stuck) => {
                report.anomalies.push(describe(history, key, calls, &stuck, &interner));
            }
            Verdict::Unknown => {
                let of = key.map_or(String::new(), |key| format!(" of key {key}"));
                let count = operations.len();
                report.unknown.push(format!(
                    "more than {limit} configurations for the {count} operations{of}"
                ));
            }
        }
    }
    report.settle();
    Ok(report)
}

/// Whether values are `[key value]`: either all are or none is.
fn is_keyed(history: &History, calls: &[Call]) -> Result<bool, Error> {
    let mut keyed = None;
    for call in calls {
        for at in std::iter::once(call.invoke).chain(call.complete) {
            let op = &history.ops[at];
            let pair = pair(&op.value);
            let this = if op.f == "cas" {
                pair.is_some_and(|(_, value)| self::pair(value).is_some())
            } else {
                pair.is_some()
            };
            if *keyed.get_or_insert(this) != this {
                let problem = "some values are [key value], some are not".to_owned();
                return Err(Error::malformed(op, problem));
            }
        }
    }
    Ok(keyed.unwrap_or(false))
}

fn pair(value: &Value) -> Option<(&Value, &Value)> {
    match value.elements()? {
        [first, second] => Some((first, second)),
        _ => None,
    }
}

/// The key, and what the register was asked; None if that changed nothing and told nothing.
fn input(
    history: &History,
    call: Call,
    keyed: bool,
    interner: &mut Interner,
) -> Result<(Value, Option<Input>), Error> {
    let invoked = &history.ops[call.invoke];
    let split = |op: &'_ Op| -> (Value, Value) {
        match pair(&op.value).filter(|_| keyed) {
            Some((key, value)) => (key.clone(), value.clone()),
            None => (Value::Nil, op.value.clone()),
        }
    };
    let (key, asked) = split(invoked);
    let completed = call.complete.map(|at| &history.ops[at]);
    let heard = completed.map(|op| (op, split(op)));
    if let Some((op, (other, _))) = &heard
        && *other != key
    {
        return Err(Error::malformed(op, format!("is about key {other}, was invoked for {key}")));
    }
    let heard = heard.map(|(op, (_, value))| (op, value)).filter(|(op, _)| op.kind == Kind::Ok);
    let is_write = match invoked.f.as_str() {
        "read" => false,
        "write" | "cas" => true,
        other => return Err(Error::malformed(invoked, format!("a register knows no :{other}"))),
    };
    if let Some((op, value)) = &heard
        && is_write
        && *value != asked
    {
        return Err(Error::malformed(op, format!("completes {asked} as {value}")));
    }
    let input = match invoked.f.as_str() {
        "read" => heard.map(|(_, value)| Input::Read(interner.id(&value))),
        "write" => Some(Input::Write(interner.id(&asked))),
        _ => match pair(&asked) {
            Some((from, to)) => Some(Input::Cas(interner.id(from), interner.id(to))),
            None => return Err(Error::malformed(invoked, "a cas wants [from to]")),
        },
    };
    let failed = history.outcome(call) == Kind::Fail;
    Ok((key, input.filter(|_| !failed)))
}

fn describe(
    history: &History,
    key: Option<&Value>,
    calls: &[Call],
    stuck: &Stuck<u32>,
    interner: &Interner,
) -> Anomaly {
    let op = |number: usize| {
        let call: Call = calls[number];
        &history.ops[call.complete.unwrap_or(call.invoke)]
    };
    let last = op(stuck.operation);
    let states = stuck.states.iter().map(|&state| interner.value(state).to_string());
    let states = states.collect::<Vec<_>>().join(", ");
    let of = key.map_or(String::new(), |key| format!("key {key}: "));
    let what = format!(
        "{of}the history up to op {} has no order; its operation fits none of the states {states}",
        last.index
    );
    let mut details =
        vec![format!("not placed: {last}"), "one order of those before it:".to_owned()];
    // The whole order may be as long as the history; its end is what matters.
    let skipped = stuck.order.len().saturating_sub(SHOWN);
    if skipped > 0 {
        details.push(format!("  ({skipped} more)"));
    }
    details.extend(stuck.order.iter().skip(skipped).map(|&number| format!("  {}", op(number))));
    Anomaly { name: "nonlinearizable", what, details }
}

/// How many operations of an order are shown.
const SHOWN: usize = 10;
