//! Locks, between messages and the state's types.

use super::namespace;
use crate::proto::v1;
use crate::state::{self, LockName};

pub fn lock_name(namespace: String, lock: String) -> LockName {
    LockName { namespace: self::namespace(namespace), lock }
}

pub fn lock_request(request: &state::LockRequest) -> v1::LockRequest {
    let state::LockRequest {
        namespace,
        lock,
        ticket,
        session,
        holder,
        value,
        token,
        requested_at_ms,
        acquired_at_ms,
        mod_revision,
    } = request;
    v1::LockRequest {
        namespace: namespace.to_string(),
        lock: lock.to_string(),
        session: *session,
        holder: holder.clone(),
        value: value.clone(),
        ticket: *ticket,
        token: token.unwrap_or(0),
        requested_at_ms: *requested_at_ms,
        acquired_at_ms: acquired_at_ms.unwrap_or(0),
        mod_revision: *mod_revision,
    }
}
