//! Calls of locks. How a lock is waited for stands in [`crate::api::lock`].

use std::sync::Arc;

use super::{Page, Read, Write, command, fitting};
use crate::api::convert;
use crate::api::convert::lock::{lock_name, lock_request};
use crate::error::Error;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{Claim, Command, Holder, Leaving, LockName, LockRequest, Op, Reply, State};

impl Write for v1::AcquireLockRequest {
    type Response = v1::AcquireLockResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, lock, session, holder, value, wait_ms, queue, request_id } = self;
        if queue && wait_ms > 0 {
            let allowed = "0 together with queue";
            return Err(Error::invalid("wait_ms", wait_ms.to_string(), allowed));
        }
        let claim = Claim {
            lock: lock_name(namespace, lock),
            holder: Holder { session, name: holder },
            value,
            wait: queue || wait_ms > 0,
        };
        Ok(command(request_id, Op::AcquireLock(Box::new(claim))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let (token, ahead) = match reply {
            Reply::LockAcquired { token } => (token, 0),
            Reply::LockQueued { ticket: _, ahead } => (0, ahead),
            _ => return None,
        };
        Some(v1::AcquireLockResponse { header: Some(header), token, ahead })
    }
}

impl Write for v1::ReleaseLockRequest {
    type Response = v1::ReleaseLockResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, lock, session, holder, token, request_id } = self;
        let by = match token {
            0 => Leaving::Holder(Holder { session, name: holder }),
            token if session == 0 && holder.is_empty() => Leaving::Token(token),
            token => {
                let allowed = "0 together with a session or a holder";
                return Err(Error::invalid("token", token.to_string(), allowed));
            }
        };
        let lock = lock_name(namespace, lock);
        Ok(command(request_id, Op::ReleaseLock { lock, by }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::LockReleased { released } = reply else { return None };
        Some(v1::ReleaseLockResponse { header: Some(header), released })
    }
}

impl Write for v1::UpdateLockRequest {
    type Response = v1::UpdateLockResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { namespace, lock, session, holder, value, request_id } = self;
        let (lock, holder) = (lock_name(namespace, lock), Holder { session, name: holder });
        Ok(command(request_id, Op::UpdateLock { lock, holder, value }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::LockUpdated { changed } = reply else { return None };
        Some(v1::UpdateLockResponse { header: Some(header), changed })
    }
}

impl Read for v1::GetLockRequest {
    type Query = LockName;
    type Found = Vec<Arc<LockRequest>>;
    type Response = v1::GetLockResponse;

    fn query(self) -> Result<(Consistency, LockName), Error> {
        let name = lock_name(self.namespace, self.lock);
        name.check()?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(name: &LockName, state: &State) -> Result<Self::Found, Error> {
        Ok(state.lock(&name.namespace, &name.lock).cloned().collect())
    }

    fn respond(header: Header, found: Self::Found) -> Result<Self::Response, Error> {
        let requests = found.iter().map(|request| lock_request(request)).collect();
        fitting(found.len(), v1::GetLockResponse { header: Some(header), requests })
    }
}

impl Read for v1::ListLocksRequest {
    type Query = Page;
    type Found = (Vec<(Arc<LockRequest>, usize)>, bool);
    type Response = v1::ListLocksResponse;

    fn query(self) -> Result<(Consistency, Page), Error> {
        let Self { namespace, prefix, limit, after, consistency } = self;
        let page = Page::new(namespace, prefix, after, limit)?;
        Ok((convert::consistency(consistency)?, page))
    }

    fn find(query: &Page, state: &State) -> Result<Self::Found, Error> {
        let Page { namespace, prefix, after, limit } = query;
        Ok(state.locks(namespace, prefix, after, *limit))
    }

    fn respond(header: Header, (found, more): Self::Found) -> Result<Self::Response, Error> {
        let locks = found.iter().map(|(owner, waiting)| v1::HeldLock {
            owner: Some(lock_request(owner)),
            waiting: *waiting as u64,
        });
        let locks = locks.collect();
        fitting(found.len(), v1::ListLocksResponse { header: Some(header), locks, more })
    }
}
