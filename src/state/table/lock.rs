//! Records of locks.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Key;

/// One who holds a lock or waits for it. The requests of a lock stand in line by their tickets; the
/// first holds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    pub namespace: Arc<str>,
    pub lock: Arc<str>,
    /// Revision at which it was made: its place in the line.
    pub ticket: u64,
    /// It ends with its session.
    pub session: u64,
    /// Tells several that share a session apart.
    pub holder: String,
    /// What the holder tells everybody, for instance its address.
    pub value: String,
    /// Since it holds the lock: the fencing token, which is the revision at which it got it.
    pub token: Option<u64>,
    pub requested_at_ms: u64,
    /// When it got the lock.
    pub acquired_at_ms: Option<u64>,
    pub mod_revision: u64,
}

impl LockRequest {
    pub fn key(&self) -> Key {
        Key::Lock {
            namespace: self.namespace.clone(),
            lock: self.lock.clone(),
            ticket: self.ticket,
        }
    }
}
