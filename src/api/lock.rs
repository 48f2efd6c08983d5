//! `quorate.v1.Locks`, and how a lock is waited for: the request stands in line in the state, and whoever
//! waits for it follows the line. When the wait is over without the lock, the place is given up; a call
//! that its client breaks off leaves it where it is, so that the same call to another node finds it.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::calls::Write as _;
use super::{Api, calls, timeout};
use crate::error::Error;
use crate::node::Node;
use crate::proto::v1::locks_server;
use crate::proto::v1::{self, Consistency};
use crate::runtime::{self, Instant};
use crate::state::{Claim, Command, Holder, Leaving, LockName, Op, Outcome, Reply, State};
use crate::watch::{Range, Selector};

#[derive(Debug)]
pub struct Locks(pub Api);

#[tonic::async_trait]
impl locks_server::Locks for Locks {
    async fn acquire(
        &self,
        request: Request<v1::AcquireLockRequest>,
    ) -> Result<Response<v1::AcquireLockResponse>, Status> {
        let timeout = timeout(request.metadata());
        Ok(Response::new(acquire(&self.0.node, request.into_inner(), timeout).await?))
    }

    async fn release(
        &self,
        request: Request<v1::ReleaseLockRequest>,
    ) -> Result<Response<v1::ReleaseLockResponse>, Status> {
        self.0.write(request).await
    }

    async fn update(
        &self,
        request: Request<v1::UpdateLockRequest>,
    ) -> Result<Response<v1::UpdateLockResponse>, Status> {
        self.0.write(request).await
    }

    async fn get(
        &self,
        request: Request<v1::GetLockRequest>,
    ) -> Result<Response<v1::GetLockResponse>, Status> {
        self.0.read(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListLocksRequest>,
    ) -> Result<Response<v1::ListLocksResponse>, Status> {
        self.0.read(request).await
    }
}

/// Where a request stands in the line of a lock.
enum Place {
    Holds {
        token: u64,
    },
    Waits,
    /// It has ended, or is not known yet.
    Gone,
}

/// Asks for a lock and waits for it as long as the request says.
pub async fn acquire(
    node: &Node,
    request: v1::AcquireLockRequest,
    timeout: Duration,
) -> Result<v1::AcquireLockResponse, Error> {
    let deadline = Instant::now() + timeout;
    let wait = Duration::from_millis(request.wait_ms).min(timeout);
    let command = request.command()?;
    let outcome = node.propose(&command, timeout).await?;
    let Outcome { revision, result: Ok(Reply::LockQueued { ticket, .. }), .. } = &outcome else {
        return calls::response::<v1::AcquireLockRequest>(node.id(), outcome);
    };
    let Op::AcquireLock(claim) = command.op else { unreachable!("it was made of such a request") };
    if wait.is_zero() {
        return calls::response::<v1::AcquireLockRequest>(node.id(), outcome);
    }
    let Claim { lock, holder, .. } = *claim;
    let waiting = wait_for(node, &lock, &holder, *ticket, *revision);
    // Queueing took some of the call's time. Once that is over, nobody may be left to give the place up.
    let until = (Instant::now() + wait).min(deadline);
    let token = match runtime::timeout_at(until, waiting).await {
        Ok(Ok(token)) => token,
        // There is no place to give up.
        Ok(Err(error @ Error::NotFound { .. })) => return Err(error),
        Ok(Err(error)) => give_up(node, &lock, *ticket, deadline, error).await?,
        Err(_) => {
            let late = Error::Timeout { definite: true };
            give_up(node, &lock, *ticket, deadline, late).await?
        }
    };
    let reply = Ok(Reply::LockAcquired { token });
    let outcome = Outcome { revision: token, result: reply, ..outcome };
    calls::response::<v1::AcquireLockRequest>(node.id(), outcome)
}

/// Waits until the holder has the lock by its request with this ticket, which is in the state at `revision`.
/// This node may be behind that, and know of an earlier request of the same holder.
pub(super) async fn wait_for(
    node: &Node,
    lock: &LockName,
    holder: &Holder,
    ticket: u64,
    revision: u64,
) -> Result<u64, Error> {
    let range = Selector::lock(lock.namespace.clone(), lock.lock.clone());
    // Only what comes is of interest: the watch begins with where the node is now.
    let present = node.read(State::revision);
    let mut line = node.watch(Range::from(range), present)?;
    while let Some(message) = line.next().await {
        // What a message says is in the state by now, and maybe more.
        message?;
        let (place, known) = node.read(|state| (place(state, lock, ticket), state.revision()));
        match place {
            Place::Holds { token } => return Ok(token),
            Place::Gone if known >= revision => break,
            Place::Waits | Place::Gone => {}
        }
    }
    let name = format!("{}/{} of session {}", lock.namespace, lock.lock, holder.session);
    Err(Error::NotFound { kind: "request for the lock".to_owned(), name })
}

fn place(state: &State, lock: &LockName, ticket: u64) -> Place {
    let own = state.lock(&lock.namespace, &lock.lock).find(|request| request.ticket == ticket);
    match own.map(|own| own.token) {
        Some(Some(token)) => Place::Holds { token },
        Some(None) => Place::Waits,
        None => Place::Gone,
    }
}

/// Leaves the line, because of `why`. Answers the token when the lock has come meanwhile: it is not given up, for a
/// copy of the request may have answered with it.
pub(super) async fn give_up(
    node: &Node,
    lock: &LockName,
    ticket: u64,
    deadline: Instant,
    why: Error,
) -> Result<u64, Error> {
    let left = || deadline.saturating_duration_since(Instant::now()).max(LEAVING);
    let op = Op::ReleaseLock { lock: lock.clone(), by: Leaving::Place(ticket) };
    let mut left_it = node.propose(&Command { request: None, op }, left()).await;
    if let Ok(Outcome { result: Ok(Reply::LockReleased { released: false }), .. }) = left_it {
        match node.barrier(Consistency::Linearizable, left()).await {
            Ok(_) => {
                if let Place::Holds { token } = node.read(|state| place(state, lock, ticket)) {
                    return Ok(token);
                }
            }
            Err(error) => left_it = Err(error),
        }
    }
    match left_it {
        Ok(_) => Err(why),
        Err(error) => {
            tracing::debug!(%error, "a place in the line of a lock was not given up");
            Err(Error::Timeout { definite: false })
        }
    }
}

/// How long leaving a line may take beyond the deadline of the call that waited.
const LEAVING: Duration = Duration::from_secs(1);
