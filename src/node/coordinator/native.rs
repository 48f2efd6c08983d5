//! Counters of the cluster as participants: no service is called, the addition is proposed as a transaction
//! behind the barrier.

use super::{Call, TIMEOUT};
use crate::error::Error;
use crate::node::{Node, shortened};
use crate::state::{
    Addition, Barrier, BarrierOutcome, CallAnswer, Command, Op, Refusal, Reply, Step, Txn,
};

/// Adds, once.
pub async fn call(node: Node, call: Call, addition: Addition) -> CallAnswer {
    let Some(op) = call.saga_op() else {
        return CallAnswer::Unknown { error: "a counter cannot be asked".to_owned() };
    };
    let barrier = Barrier { name: call.saga_name(), branch: call.branch().to_owned(), op };
    let then = vec![Step::Write(Op::AddCounter(Box::new(addition)))];
    let txn = Box::new(Txn { when: Vec::new(), then, otherwise: Vec::new() });
    let command = Command { request: None, op: Op::GuardedTxn { barrier, txn } };
    match node.propose_here(&command, TIMEOUT.min(call.timeout)).await {
        Ok(outcome) => match outcome.result {
            Ok(Reply::Guarded { outcome: BarrierOutcome::Hanging, txn: _ }) => {
                CallAnswer::Failed { error: "it was taken back before".to_owned() }
            }
            Ok(_) => CallAnswer::Succeeded { result: Default::default() },
            Err(Refusal::InStep { step: _, refusal }) => refused(*refusal),
            Err(refusal) => refused(refusal),
        },
        Err(error) => CallAnswer::Unknown { error: shortened(error.to_string()) },
    }
}

fn refused(refusal: Refusal) -> CallAnswer {
    CallAnswer::Failed { error: shortened(Error::from(refusal).to_string()) }
}
