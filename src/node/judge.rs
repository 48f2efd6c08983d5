//! The leader's loop over the gates of gray releases and over alarms. It holds no truth: what a gate or an
//! alarm asks for is a question to the state, asked here to know when there is something to do, and answered again by the state when
//! the command is carried out. So a leader that was deposed, or two that believe to lead, do nothing that
//! is not asked for.

use std::time::Duration;

use super::{Leadership, Node};
use crate::error::Error;
use crate::runtime;
use crate::state::{
    Alarm, AlarmName, Command, Ending, Gray, GrayDecision, ItemName, Op, Refusal, Reply, Verdict,
};

/// How often gates and alarms are looked at.
const TICK: Duration = Duration::from_millis(250);
const TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until the node is dropped.
pub async fn run(node: Node) {
    loop {
        runtime::sleep(TICK).await;
        if !matches!(node.leadership(), Leadership::Leader { .. }) {
            continue;
        }
        let (alarms, gated) = node.read(|state| (state.all_alarms(), state.gated_items()));
        // Each may look through many counters: the state is locked for one at a time.
        for alarm in alarms {
            let due =
                node.read(|state| state.is_due_alarm(&alarm.namespace, &alarm.name, node.now_ms()));
            if due {
                judge_alarm(&node, &alarm).await;
            }
            runtime::yield_now().await;
        }
        for name in gated {
            let due = node.read(|state| state.due_gates(&name, node.now_ms()));
            for (gray, verdict) in due {
                judge_gate(&node, &name, &gray, &verdict).await;
            }
            runtime::yield_now().await;
        }
    }
}

async fn judge_gate(node: &Node, name: &ItemName, gray: &Gray, verdict: &Verdict) {
    let path = format!("{}/{}/{}", name.namespace, name.group, name.key);
    match judge(node, name, gray, verdict.promote).await {
        Ok(Some(ending)) => {
            let why = &verdict.why;
            tracing::info!(item = path, rule = %gray.rule, ?ending, why, "gate decided");
        }
        // Another leader was faster, or it is not due any more.
        Ok(None) => {}
        // The next tick tries again.
        Err(error) => tracing::info!(item = path, rule = %gray.rule, %error, "gate not judged"),
    }
}

async fn judge_alarm(node: &Node, alarm: &Alarm) {
    let (namespace, name) = (alarm.namespace.to_string(), alarm.name.to_string());
    let op = Op::JudgeAlarm { name: AlarmName { namespace, name } };
    match node.propose_here(&Command { request: None, op }, TIMEOUT).await {
        Ok(outcome) => {
            if let Ok(Reply::AlarmJudged { status: Some(status) }) = outcome.result {
                let (namespace, name) = (&alarm.namespace, &alarm.name);
                tracing::info!(%namespace, %name, ?status, "alarm turned");
            }
        }
        // The next tick tries again.
        Err(error) => tracing::info!(name = %alarm.name, %error, "alarm not judged"),
    }
}

async fn judge(
    node: &Node,
    name: &ItemName,
    gray: &Gray,
    promote: bool,
) -> Result<Option<Ending>, Error> {
    let (name, rule) = (name.clone(), gray.rule.to_string());
    let mut schema = 0;
    if promote {
        // As whoever promotes it by hand: the schema may have changed since it was published.
        let decision = GrayDecision {
            name: name.clone(),
            rule: rule.clone(),
            version: Some(gray.release.version),
            promote,
            author: "gate".to_owned(),
            comment: String::new(),
            schema: 0,
        };
        let mut command = Command { request: None, op: Op::EndGray(Box::new(decision.clone())) };
        match node.prepare(&mut command, TIMEOUT).await {
            Ok(()) => {}
            Err(error @ Error::Malformed { .. }) => {
                let comment = format!("it cannot be promoted: {error}");
                let decision = GrayDecision { promote: false, comment, ..decision };
                return propose(node, Op::EndGray(Box::new(decision))).await;
            }
            Err(error) => return Err(error),
        }
        let Op::EndGray(prepared) = command.op else { unreachable!("it was made as one") };
        schema = prepared.schema;
    }
    propose(node, Op::JudgeGray { name, rule, schema }).await
}

async fn propose(node: &Node, op: Op) -> Result<Option<Ending>, Error> {
    match node.propose_here(&Command { request: None, op }, TIMEOUT).await?.result {
        Ok(Reply::GrayJudged { ending }) => Ok(ending),
        Ok(Reply::GrayEnded { version: _ }) => Ok(Some(Ending::Aborted)),
        Ok(other) => Err(Error::internal(format!("a judgement answered {other:?}"))),
        // It has ended, or was replaced, meanwhile.
        Err(Refusal::NotFound { .. } | Refusal::CompareFailed { .. }) => Ok(None),
        Err(refusal) => Err(refusal.into()),
    }
}
