//! The words of stories about global transactions.

use super::center::transaction;
use super::*;

pub(super) fn parse(verb: &str, words: &mut Words, term: u64) -> Option<Op> {
    Some(match verb {
        "begin" => Op::BeginSaga(Box::new(begin(words))),
        "submit-saga" => Op::SubmitSaga { name: name(&words.next()) },
        "abort-saga" => Op::AbortSaga { name: name(&words.next()), reason: words.text("reason") },
        "register-branch" => {
            let name = name(&words.next());
            let id = words.next();
            let plan = Box::new(plan(words, &id, "Confirm", "Cancel"));
            words.take("call");
            words.take("attempts");
            Op::RegisterBranch { name, plan }
        }
        "advance" => Op::AdvanceSagas {
            epoch: words.number("epoch").unwrap_or(term),
            steps: words.all(step),
        },
        "suspend" | "resume" | "skip" | "finish" | "retry" => {
            let name = name(&words.next());
            let order = match verb {
                "suspend" => SagaOrder::Suspend { reason: words.text("reason") },
                "resume" => SagaOrder::Resume,
                "skip" => SagaOrder::Skip { branch: words.next().parse().unwrap() },
                "finish" => SagaOrder::Finish,
                _ => SagaOrder::Retry,
            };
            Op::OrderSaga { name, order }
        }
        "try" | "action" | "compensate" | "confirm" | "cancel" => {
            let (name, branch) = (name(&words.next()), words.next());
            let op = match verb {
                "try" => SagaOp::Try,
                "action" => SagaOp::Action,
                "compensate" => SagaOp::Compensate,
                "confirm" => SagaOp::Confirm,
                _ => SagaOp::Cancel,
            };
            let txn = Box::new(transaction(words, term));
            Op::GuardedTxn { barrier: Barrier { name, branch, op }, txn }
        }
        _ => return None,
    })
}

fn name(text: &str) -> SagaName {
    let (namespace, gid) = text.split_once('/').unwrap();
    SagaName { namespace: namespace.into(), gid: gid.into() }
}

/// `namespace/gid saga|message|tcc`, `branches=N` one after the other (`bare=N`: the one without a compensation) or `dag=1,2:1,3:1+2`, terms, `submit`.
fn begin(words: &mut Words) -> SagaBegin {
    let name = name(&words.next());
    let mode = match &*words.next() {
        "saga" => SagaMode::Saga,
        "message" => SagaMode::Message,
        "tcc" => SagaMode::Tcc,
        other => panic!("{other} is no mode"),
    };
    let submit = words.flag("submit");
    let recovery = match words.flag("forward") {
        true => SagaRecovery::Forward,
        false => SagaRecovery::Backward,
    };
    let mut number = |name, default| words.number(name).unwrap_or(default);
    let terms = SagaTerms {
        recovery,
        prepared_timeout_ms: number("prepared", 30_000),
        timeout_ms: number("timeout", 0),
        suspend_after_ms: number("suspend_after", 86_400_000),
        retention_ms: number("retention", 60_000),
        delay_ms: number("delay", 0),
        query: words.text("query"),
        query_policy: policy(words),
    };
    let undone = if mode == SagaMode::Message { "" } else { "Undo" };
    let count = words.number("branches").unwrap_or(0);
    let bare = words.number("bare");
    let dag = words.take("dag");
    let mut branches: Vec<BranchPlan> = (0..count)
        .map(|i| {
            let id = (i + 1).to_string();
            let after = i.checked_sub(1).into_iter().map(|before| before as u32).collect();
            let undone = if bare == Some(i + 1) { "" } else { undone };
            BranchPlan { after, ..plan(words, &id, "Do", undone) }
        })
        .collect();
    for part in dag.iter().flat_map(|dag| dag.split(',')) {
        let (id, after) = part.split_once(':').unwrap_or((part, ""));
        let after = after.split('+').filter(|id| !id.is_empty());
        let after = after.map(|id| id.parse::<u32>().unwrap() - 1).collect();
        branches.push(BranchPlan { after, ..plan(words, id, "Do", undone) });
    }
    words.take("call");
    words.take("attempts");
    SagaBegin { name, mode, terms, branches, submit }
}

fn policy(words: &Words) -> CallPolicy {
    let number = |name: &str| {
        words.0.iter().find_map(|word| word.strip_prefix(name)).map(|text| text.parse().unwrap())
    };
    CallPolicy {
        timeout_ms: number("call=").unwrap_or(5_000),
        attempts: number("attempts=").unwrap_or(0) as u32,
        pause_ms: 200,
        pause_max_ms: 60_000,
    }
}

fn plan(words: &Words, id: &str, action: &str, compensation: &str) -> BranchPlan {
    let target = |method: &str| match method {
        "" => String::new(),
        method => format!("quorate:///s{id}/p.S/{method}"),
    };
    BranchPlan {
        id: id.into(),
        trial: if action == "Confirm" { target("Try") } else { String::new() },
        action: target(action),
        compensation: target(compensation),
        payload: b"{}".to_vec().into(),
        after: vec![],
        policy: policy(words),
    }
}

/// `namespace/gid=due`, or `namespace/gid=CALL@ATTEMPT:ANSWER`, with the call `query`, `NUMBER` or
/// `-NUMBER` for the way back, and the answer `ok`, `ok:RESULT`, `no:ERROR`, `ongoing:PAUSE` or `unknown:ERROR`.
fn step(text: &str) -> SagaStep {
    let (saga, what) = text.split_once('=').unwrap();
    let name = name(saga);
    if what == "due" {
        return SagaStep { name, news: SagaNews::Due };
    }
    let (call, rest) = what.split_once('@').unwrap();
    let (attempt, answer) = rest.split_once(':').unwrap();
    let call = match (call, call.strip_prefix('-')) {
        ("query", _) => CallName::Query,
        (_, Some(number)) => {
            CallName::Branch { number: number.parse().unwrap(), leg: SagaLeg::Backward }
        }
        (number, None) => {
            CallName::Branch { number: number.parse().unwrap(), leg: SagaLeg::Forward }
        }
    };
    let (kind, said) = answer.split_once(':').unwrap_or((answer, ""));
    // `~300` stands for that many letters.
    let long = said.strip_prefix('~').map(|length| "x".repeat(length.parse().unwrap()));
    let said = long.as_deref().unwrap_or(said);
    let answer = match kind {
        "ok" => CallAnswer::Succeeded { result: said.as_bytes().into() },
        "no" => CallAnswer::Failed { error: said.replace('_', " ") },
        "ongoing" => CallAnswer::Ongoing { pause_ms: said.parse().unwrap_or(0) },
        "unknown" => CallAnswer::Unknown { error: said.replace('_', " ") },
        other => panic!("{other} is no answer"),
    };
    SagaStep { name, news: SagaNews::Answer { call, attempt: attempt.parse().unwrap(), answer } }
}

impl Teller {
    /// True when it was one of these.
    pub(super) fn look_at_sagas(&self, verb: &str, words: &mut Words, out: &mut String) -> bool {
        let sagas = match verb {
            "due-sagas" => self.state.due_sagas(self.at_ms, 100),
            "left-behind" => self.state.sagas_left_behind(self.term),
            "sagas" => {
                let namespace = words.next();
                let status = words.take("status").map(|status| match &*status {
                    "prepared" => SagaStatus::Prepared,
                    "suspended" => SagaStatus::Suspended,
                    "failed" => SagaStatus::Failed,
                    _ => SagaStatus::Succeeded,
                });
                let [prefix, after] = ["prefix", "after"].map(|name| words.text(name));
                let limit = words.number("limit").unwrap_or(100) as usize;
                let (page, more) = self.state.sagas(&namespace, status, &prefix, &after, limit);
                writeln!(out, "more: {more}").unwrap();
                page
            }
            _ => return false,
        };
        for saga in sagas {
            writeln!(out, "{}: {}", show_key(&saga.key()), saga.status().name()).unwrap();
        }
        writeln!(out, "next at {:?}", self.state.next_saga_ms()).unwrap();
        true
    }
}

fn show_call(call: &SagaCall) -> String {
    let state = match call.state {
        CallState::Running { deadline_ms, epoch } => {
            format!("running until {deadline_ms} in term {epoch}")
        }
        CallState::Unknown { again_ms } => format!("unknown, again at {again_ms}"),
        CallState::Ongoing { again_ms } => format!("ongoing, again at {again_ms}"),
        other => format!("{other:?}").to_lowercase(),
    };
    let failures = match call.failures {
        0 => String::new(),
        failures => format!(" ({failures} failed)"),
    };
    if call.attempt == 0 { state } else { format!("{state} #{}{failures}", call.attempt) }
}

pub(super) fn show(saga: &Saga, part: &mut dyn FnMut(&str, String)) {
    let why = saga.suspended.reason().map(|why| format!(" ({why})")).unwrap_or_default();
    let phase = format!("{:?} {:?}{why} since {}", saga.mode, saga.phase, saga.since_ms);
    part("", phase);
    if saga.query != SagaCall::default() {
        part("query", show_call(&saga.query));
    }
    for branch in &saga.branches {
        let back = if branch.leg == SagaLeg::Backward { "undo " } else { "" };
        let result = String::from_utf8_lossy(branch.result.as_bytes()).into_owned();
        let result = if result.is_empty() { result } else { format!(" with {result}") };
        let marks = match branch.marks {
            0 => String::new(),
            marks => format!(", marks {marks:05b}"),
        };
        let call = show_call(&branch.call);
        part("", format!("{}: {back}{call}{result}{marks}", branch.plan.id));
    }
    part("error", saga.error.to_string());
    part("fires at", saga.fire_at_ms().map(|at_ms| at_ms.to_string()).unwrap_or_default());
    part("", format!("epoch {}", saga.epoch));
    part("", format!("revisions {}..{}", saga.create_revision, saga.mod_revision));
}
