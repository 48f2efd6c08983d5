//! Global transactions. `:begin [gid mode attempts [[account amount refuses] ..]]`, mode `:saga` or `:tcc`; of a
//! TCC `:try [gid branch move]`, `:confirm [gid]`, `:cancel [gid]`; `:look [gid status]`. At rest, once: `:list
//! [[gid status] ..]` of all of them; `:journal [[gid branch op attempt epoch how] ..]`, every call that
//! participants got, in their order; `:read {account [balance held promised] ..}`.
//!
//! What was acknowledged as begun comes to an end. One that has succeeded has done each of its parts once and
//! undone none; one that has failed has undone exactly what it had done; what was not begun has called nobody.
//! No look contradicts another one: a decision stands. Together the accounts hold what they held.

use std::collections::{BTreeMap, HashMap};

use super::counter::{int, part};
use super::replay::anomaly;
use crate::edn::Value;
use crate::history::{Error, History, Kind, Op};
use crate::report::Report;

/// What there was in the beginning.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    pub accounts: usize,
    /// On each of them.
    pub balance: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    Saga,
    Tcc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Prepared,
    Submitted,
    Aborting,
    Succeeded,
    Failed,
    Suspended,
}

impl Status {
    fn is_end(self) -> bool {
        matches!(self, Status::Succeeded | Status::Failed)
    }

    /// Whether a transaction of this status may have another one later. Suspended is an anomaly by itself.
    fn may_become(self, later: Status, mode: Mode) -> bool {
        use Status::{Aborting, Failed, Prepared, Submitted, Succeeded, Suspended};
        match (self, later) {
            (before, after) if before == after => true,
            (Prepared, _) | (Suspended, _) | (_, Suspended) => true,
            (Submitted, Succeeded) | (Aborting, Failed) => true,
            // A saga goes back when a branch is refused; what is confirmed is confirmed.
            (Submitted, Aborting | Failed) => mode == Mode::Saga,
            (Submitted | Aborting | Succeeded | Failed, _) => false,
        }
    }
}

/// A transaction that somebody began, or wanted to.
struct Begun<'a> {
    op: &'a Op,
    mode: Mode,
    outcome: Kind,
    /// A call that fails so often is taken for a refusal; 0 = never.
    attempts: i64,
    /// What each branch moves.
    moves: Vec<(usize, i64)>,
    /// What was acknowledged for it: one and the same, whoever says it.
    decided: Vec<(&'a Op, Status)>,
    looks: Vec<Look<'a>>,
}

struct Look<'a> {
    /// Places of the invocation and the completion.
    from: usize,
    to: usize,
    op: &'a Op,
    /// None: there is no such transaction.
    status: Option<Status>,
}

/// What came of the calls to a branch.
#[derive(Default)]
struct Effects {
    /// By op: how often it took effect.
    done: BTreeMap<String, usize>,
    refused: bool,
}

impl Effects {
    fn of(&self, op: &str) -> usize {
        self.done.get(op).copied().unwrap_or(0)
    }
}

/// In which epochs something was called.
#[derive(Default)]
struct Epochs {
    /// By attempt.
    of: BTreeMap<i64, i64>,
    /// So far.
    greatest: i64,
}

/// What participants were asked, by gid and branch.
type Journal = BTreeMap<(i64, usize), Effects>;

pub fn check(history: &History, terms: Terms) -> Result<Report, Error> {
    let calls = history.calls()?;
    let succeeded = calls.iter().filter(|call| history.outcome(**call) == Kind::Ok).count();
    let mut report = Report::new("settled", succeeded);
    let mut begun = begun(history)?;
    let (mut list, mut journal, mut read) = (None, None, None);
    for call in calls.iter().filter(|call| history.outcome(**call) == Kind::Ok) {
        let Some(complete) = call.complete else { continue };
        let op = &history.ops[complete];
        let mut see = |gid: &Value, shown: &Value| {
            let status = status(op, shown)?;
            let gid = number(op, gid)?;
            let Some(begun) = begun.get_mut(&gid) else {
                let what = format!("nobody began transaction {gid}");
                report.anomalies.push(anomaly("phantom-transaction", what, &[op]));
                return Ok::<(), Error>(());
            };
            begun.looks.push(Look { from: call.invoke, to: complete, op, status });
            Ok(())
        };
        match op.f.as_str() {
            "begin" | "try" => {}
            "confirm" | "cancel" => {
                let status = if op.f == "confirm" { Status::Succeeded } else { Status::Failed };
                if let Some(begun) = begun.get_mut(&int(op, 0)?) {
                    begun.decided.push((op, status));
                }
            }
            "look" => see(part(op, 0)?, part(op, 1)?)?,
            "list" => {
                for shown in op.value.elements().unwrap_or_default() {
                    let Some([gid, status]) = shown.elements() else {
                        return Err(Error::malformed(op, "a list shows [gid status]"));
                    };
                    see(gid, status)?;
                }
                list = Some((call.invoke, op));
            }
            "journal" => journal = Some(read_journal(op, &mut report)?),
            "read" => read = Some(op),
            other => return Err(Error::malformed(op, format!("a saga knows no :{other}"))),
        }
    }
    let (Some(list), Some(journal), Some(read)) = (list, journal, read) else {
        report.unknown.push("the end was not looked at: no list, no journal or no read".to_owned());
        report.settle();
        return Ok(report);
    };
    for (&gid, begun) in &begun {
        stands(gid, begun, &mut report);
        ends(gid, begun, list, &journal, &mut report);
    }
    for (gid, branch) in journal.keys() {
        if !begun.contains_key(gid) {
            let what =
                format!("branch {branch} of transaction {gid}, which nobody began, is called");
            report.anomalies.push(anomaly("phantom-call", what, &[]));
        }
    }
    adds_up(read, terms, &begun, &journal, &mut report)?;
    report.settle();
    Ok(report)
}

fn number(op: &Op, value: &Value) -> Result<i64, Error> {
    match value {
        Value::Int(number) => Ok(*number),
        other => Err(Error::malformed(op, format!("{other} is no number"))),
    }
}

fn status(op: &Op, value: &Value) -> Result<Option<Status>, Error> {
    Ok(Some(match value {
        Value::Nil => return Ok(None),
        Value::Keyword(name) => match name.as_str() {
            "prepared" => Status::Prepared,
            "submitted" => Status::Submitted,
            "aborting" => Status::Aborting,
            "succeeded" => Status::Succeeded,
            "failed" => Status::Failed,
            "suspended" => Status::Suspended,
            other => return Err(Error::malformed(op, format!("the status :{other} is unknown"))),
        },
        other => return Err(Error::malformed(op, format!("{other} is no status"))),
    }))
}

fn begun(history: &History) -> Result<BTreeMap<i64, Begun<'_>>, Error> {
    let mut all = BTreeMap::new();
    for call in history.calls()? {
        let op = &history.ops[call.invoke];
        if op.f != "begin" {
            continue;
        }
        let mode = match part(op, 1)? {
            Value::Keyword(mode) if mode == "saga" => Mode::Saga,
            Value::Keyword(mode) if mode == "tcc" => Mode::Tcc,
            other => return Err(Error::malformed(op, format!("{other} is no mode"))),
        };
        let wrong = || Error::malformed(op, "a branch moves [account amount refuses]");
        let moves =
            part(op, 3)?.elements().ok_or_else(wrong)?.iter().map(|what| match what.elements() {
                Some([Value::Int(account), Value::Int(amount), _]) => {
                    Ok((usize::try_from(*account).map_err(|_| wrong())?, *amount))
                }
                _ => Err(wrong()),
            });
        let begun = Begun {
            op,
            mode,
            outcome: history.outcome(call),
            attempts: int(op, 2)?,
            moves: moves.collect::<Result<_, _>>()?,
            decided: Vec::new(),
            looks: Vec::new(),
        };
        if all.insert(int(op, 0)?, begun).is_some() {
            return Err(Error::malformed(op, "a gid is used once"));
        }
    }
    Ok(all)
}

/// What took effect, and whether epochs grow with the attempts.
fn read_journal(op: &Op, report: &mut Report) -> Result<Journal, Error> {
    let wrong = || Error::malformed(op, "a journal shows [gid branch op attempt epoch how]");
    let mut journal = Journal::new();
    // By gid, branch and op.
    let mut epochs: HashMap<(i64, i64, &str), Epochs> = HashMap::new();
    let mut overtaken = 0;
    for entry in op.value.elements().ok_or_else(wrong)? {
        let Some(
            [
                Value::Int(gid),
                Value::Int(branch),
                Value::Keyword(what),
                Value::Int(attempt),
                Value::Int(epoch),
                how,
            ],
        ) = entry.elements()
        else {
            return Err(wrong());
        };
        let number = usize::try_from(*branch).map_err(|_| wrong())?;
        let effects = journal.entry((*gid, number)).or_default();
        if *how == Value::keyword("done") {
            *effects.done.entry(what.clone()).or_default() += 1;
        }
        effects.refused |= *how == Value::keyword("refused");
        // Tries are the client's own.
        if what == "try" {
            continue;
        }
        let epochs = epochs.entry((*gid, *branch, what)).or_default();
        overtaken += usize::from(*epoch < epochs.greatest);
        epochs.greatest = epochs.greatest.max(*epoch);
        if epochs.of.insert(*attempt, *epoch).is_some_and(|before| before != *epoch) {
            let what = format!("attempt {attempt} of {gid}/{branch}/{what} is made in two epochs");
            report.anomalies.push(anomaly("attempt-of-two-epochs", what, &[]));
        }
    }
    for ((gid, branch, what), Epochs { of, .. }) in &epochs {
        if of.values().zip(of.values().skip(1)).any(|(before, after)| before > after) {
            let what = format!("epochs of {gid}/{branch}/{what} go back: {of:?}");
            report.anomalies.push(anomaly("epoch-goes-back", what, &[]));
        }
    }
    if overtaken > 0 {
        // Nothing forbids it: a call that was under way when its leader was deposed arrives when it arrives.
        let calls = "calls of an older epoch came after one of a newer epoch for the same";
        report.notes.push(format!("{overtaken} {calls}"));
    }
    Ok(journal)
}

/// No look contradicts another one.
fn stands(gid: i64, begun: &Begun<'_>, report: &mut Report) {
    for (number, first) in begun.looks.iter().enumerate() {
        if first.status == Some(Status::Suspended) {
            let what = format!("transaction {gid} is suspended");
            report.anomalies.push(anomaly("suspended", what, &[begun.op, first.op]));
        }
        for second in &begun.looks[number + 1..] {
            let (early, late) =
                if second.to < first.from { (second, first) } else { (first, second) };
            let ordered = early.to < late.from;
            let follows = |early: &Look<'_>, late: &Look<'_>| match (early.status, late.status) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(early), Some(late)) => early.may_become(late, begun.mode),
            };
            if !(follows(early, late) || (!ordered && follows(late, early))) {
                let what =
                    format!("transaction {gid} is {:?} and then {:?}", early.status, late.status);
                report.anomalies.push(anomaly("decision-flips", what, &[early.op, late.op]));
            }
        }
    }
}

/// How it ended, and whether that is what it did.
fn ends(
    gid: i64,
    begun: &Begun<'_>,
    (listed, list): (usize, &Op),
    journal: &Journal,
    report: &mut Report,
) {
    let at_rest = begun.looks.iter().find(|look| look.from == listed);
    let status = at_rest.and_then(|look| look.status);
    let mut found = |name, what: String| {
        report.anomalies.push(anomaly(name, what, &[begun.op]));
    };
    let known = begun.outcome == Kind::Ok || begun.looks.iter().any(|look| look.status.is_some());
    if known && status.is_none() {
        found("lost-transaction", format!("transaction {gid} is not there in op {}", list.index));
    }
    if begun.outcome == Kind::Fail && status.is_some() {
        found("phantom-transaction", format!("transaction {gid} was refused, and is there"));
    }
    if let Some(status) = status.filter(|status| !status.is_end() && *status != Status::Suspended) {
        found("stuck", format!("transaction {gid} is still {status:?} at rest"));
        return;
    }
    for (op, _) in begun.decided.iter().filter(|(_, decided)| status != Some(*decided)) {
        found("decision-flips", format!("transaction {gid} is {status:?} in spite of {op}"));
    }
    let effects: Vec<_> =
        (0..begun.moves.len()).map(|branch| journal.get(&(gid, branch))).collect();
    for (branch, effects) in effects.iter().enumerate() {
        let of = |op: &str| effects.map_or(0, |effects| effects.of(op));
        let (does, settles, undoes) = match begun.mode {
            Mode::Saga => (of("action"), None, of("compensate")),
            Mode::Tcc => (of("try"), Some(of("confirm")), of("cancel")),
        };
        let shown = effects.map(|effects| &effects.done);
        let who = format!("branch {branch} of transaction {gid}");
        match status {
            None if effects.is_some() => {
                found("phantom-call", format!("{who}, which is not there, was called"));
            }
            Some(Status::Succeeded) if (does, settles.unwrap_or(1), undoes) != (1, 1, 0) => {
                found("not-whole", format!("{who}, which has succeeded, did {shown:?}"));
            }
            Some(Status::Failed) if does > 1 || does != undoes || settles.unwrap_or(0) != 0 => {
                found("not-undone", format!("{who}, which has failed, did {shown:?}"));
            }
            _ => {}
        }
    }
    let refused = effects.iter().flatten().any(|effects| effects.refused);
    if begun.mode == Mode::Saga && begun.attempts == 0 && status == Some(Status::Failed) && !refused
    {
        found("failed-for-nothing", format!("transaction {gid} has failed, and nobody refused it"));
    }
}

/// Money is where the journal says, and there is as much as there was.
fn adds_up(
    read: &Op,
    terms: Terms,
    begun: &BTreeMap<i64, Begun<'_>>,
    journal: &Journal,
    report: &mut Report,
) -> Result<(), Error> {
    let wrong = || Error::malformed(read, "a read shows {account [balance held promised]}");
    let Value::Map(shown) = &read.value else { return Err(wrong()) };
    let mut expected = vec![terms.balance; terms.accounts];
    for ((gid, branch), effects) in journal {
        let Some((account, amount)) = begun.get(gid).and_then(|begun| begun.moves.get(*branch))
        else {
            continue;
        };
        // Money of a TCC is on its account until it is confirmed, or on its way.
        let times = effects.of("action") + effects.of("confirm");
        let times = times as i64 - effects.of("compensate") as i64;
        if let Some(balance) = expected.get_mut(*account) {
            *balance += amount * times;
        }
    }
    let mut sum = 0;
    for (account, expected) in expected.iter().enumerate() {
        let account = Value::Int(account as i64);
        let parts = shown.get(&account).and_then(Value::elements).ok_or_else(wrong)?;
        let [Value::Int(balance), Value::Int(held), Value::Int(promised)] = parts else {
            return Err(wrong());
        };
        sum += balance;
        if (*balance, *held, *promised) != (*expected, 0, 0) {
            let what = format!(
                "account {account} has {balance}, {held} held and {promised} promised; what took \
                 effect makes it {expected}"
            );
            report.anomalies.push(anomaly("account-differs", what, &[]));
        }
    }
    let total = terms.balance * terms.accounts as i64;
    if sum != total {
        let what = format!("all accounts together hold {sum}, not {total}");
        report.anomalies.push(anomaly("not-conserved", what, &[]));
    }
    Ok(())
}
