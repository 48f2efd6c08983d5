//! Transactions: one that writes goes through the log, any other is a read.

use super::{Read, Write, command};
use crate::api::convert;
use crate::error::Error;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{Command, Op, Reply, State, Txn};

impl Write for v1::TxnRequest {
    type Response = v1::TxnResponse;

    fn command(self) -> Result<Command, Error> {
        let convert::txn::Txn { txn, barrier, consistency: _, request_id } =
            convert::txn::txn(self)?;
        let txn = Box::new(txn);
        let op = match barrier {
            Some(barrier) => Op::GuardedTxn { barrier, txn },
            None => Op::Txn(txn),
        };
        Ok(command(request_id, op))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let (outcome, txn) = match reply {
            Reply::Guarded { outcome, txn } => (Some(outcome), txn.map(|txn| *txn)),
            other => (None, Some(other)),
        };
        let barrier = outcome.map_or(0, |it| convert::saga::barrier_outcome(it).into());
        let (succeeded, replies) = match txn {
            Some(Reply::Txn { succeeded, replies }) => (succeeded, replies),
            Some(_) => return None,
            None => (false, Vec::new()),
        };
        let results = replies.into_iter().map(convert::txn::result).collect::<Option<_>>()?;
        Some(v1::TxnResponse { header: Some(header), succeeded, results, barrier })
    }
}

impl Read for v1::TxnRequest {
    type Query = Txn;
    type Found = Reply;
    type Response = v1::TxnResponse;

    fn query(self) -> Result<(Consistency, Txn), Error> {
        let convert::txn::Txn { txn, barrier: _, consistency, request_id: _ } =
            convert::txn::txn(self)?;
        txn.check()?;
        Ok((consistency, txn))
    }

    fn find(txn: &Txn, state: &State) -> Result<Reply, Error> {
        Ok(state.look(txn)?)
    }

    fn respond(header: Header, found: Reply) -> Result<Self::Response, Error> {
        <Self as Write>::respond(header, found)
            .ok_or_else(|| Error::internal("a transaction that reads has written"))
    }
}
