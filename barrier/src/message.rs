//! The sender of a message in two phases: how it answers when the cluster asks what came of its local
//! transaction.
//!
//! The local transaction writes the mark of the message; who asks before it has committed writes that mark
//! itself, so that it can never commit. So the answer stands, whatever the local transaction still does.

use quorate::client::BranchContext;
use sqlx::{Error, Transaction};

use super::dialect::{Dialect, Mark};
use super::{Gate, key};

const SENT: &str = "sent";
const UNSENT: &str = "unsent";

/// In the local transaction whose success sends the message: [`Gate::Go`] once, then [`Gate::Duplicate`].
/// [`Gate::Hanging`] says that the message was given up, because it took too long: roll everything back.
pub async fn mark_sent<DB: Dialect>(
    tx: &mut Transaction<'_, DB>,
    namespace: &str,
    gid: &str,
) -> Result<Gate, Error> {
    let gid = key(namespace, gid);
    if DB::insert(tx, mark(&gid, SENT)).await? {
        return Ok(Gate::Go);
    }
    match DB::exists(tx, mark(&gid, UNSENT)).await? {
        true => Ok(Gate::Hanging),
        false => Ok(Gate::Duplicate),
    }
}

/// For the query: whether the local transaction has committed. It waits for one that is open; when it says
/// false, and its own transaction commits, the local one never will. True is answered with OK, false with
/// ABORTED.
pub async fn was_sent<DB: Dialect>(
    tx: &mut Transaction<'_, DB>,
    context: &BranchContext,
) -> Result<bool, Error> {
    let gid = key(&context.namespace, &context.gid);
    if DB::insert(tx, mark(&gid, SENT)).await? {
        DB::insert(tx, mark(&gid, UNSENT)).await?;
        return Ok(false);
    }
    Ok(!DB::exists(tx, mark(&gid, UNSENT)).await?)
}

fn mark<'a>(gid: &'a str, op: &'static str) -> Mark<'a> {
    Mark { gid, branch: "", op, part: "" }
}
