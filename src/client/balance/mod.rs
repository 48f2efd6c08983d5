//! Balancing without I/O: which of many endpoints gets a call.
//!
//! A [`Snapshot`] holds the endpoints of a service with what a [`Policy`] makes of them: a ring, a table, a
//! sequence. It does not change; when the endpoints do, its [`successor`](Snapshot::successor) takes its
//! place and keeps what calls have shown of the endpoints that stay. Any number of threads pick from it.
//!
//! There is no clock, no source of randomness and no runtime in here: time, random numbers and the hashes
//! of keys are arguments, and what to connect to is any type of the caller's. So it serves for gRPC as for
//! HTTP, the shards of a database or a cache.
//!
//! ```
//! use std::time::Duration;
//!
//! use quorate::client::balance::{Endpoint, Origin, Outcome, Policy, Snapshot, hash};
//!
//! let policy: Policy = "ring_hash?bound=1.25".parse()?;
//! let endpoints = ["a", "b", "c"].map(|id| Endpoint::new(id, format!("{id}.example:8080")));
//! let snapshot = Snapshot::new(&policy, &Origin::default(), endpoints.into());
//!
//! // Time since the program began, and a random number.
//! let (now, random) = (Duration::from_millis(7), 4);
//! let mut call = snapshot.call(Some(hash(b"customer-17")), now, random);
//! let first = call.candidate().expect("there are endpoints");
//! let flight = first.start(now);
//! // ... it does not answer; the next one for this key does.
//! flight.finish(Outcome::Failure, now + Duration::from_millis(20));
//! let second = call.candidate().expect("there are more endpoints");
//! assert_ne!(first_id(&snapshot), second.endpoint().id);
//! # fn first_id(snapshot: &Snapshot<String>) -> String {
//! #     let pick = snapshot.pick(Some(hash(b"customer-17")), Duration::ZERO, 4).unwrap();
//! #     pick.endpoint().id.clone()
//! # }
//! # Ok::<(), quorate::error::Error>(())
//! ```
//!
//! What a policy may be asked for beside its algorithm: `bound` (no endpoint gets more than so many times
//! the average of calls under way; for policies that hash), `zone=prefer`, `subset_size`, `panic_percent`,
//! `slow_start_ms` and the ejection of outliers, which wants [`Snapshot::sweep`] to be called now and then.
//!
//! What to choose: `ring_hash` moves the fewest keys, `maglev` is the fastest and the most even one but moves
//! half a percent of the keys astray with each change, `rendezvous` is exact in both and takes 2 ns for each
//! endpoint. Without keys, `least_request`.

mod chooser;
mod ejection;
mod load;
mod maglev;
mod math;
mod pick;
mod rendezvous;
mod ring;
mod rotation;
mod snapshot;
mod subset;

#[cfg(test)]
mod tests;

pub use crate::policy::{Algorithm, Ejection, Policy};
pub use ejection::Sweep;
pub use load::{Flight, Outcome};
pub(super) use math::{GOLDEN, mix};
pub use math::{crc32, hash};
pub use pick::{Call, Pick, Unavailable};
pub use snapshot::{Member, Snapshot};

/// Something that takes calls: `T` is what the caller needs to reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint<T> {
    /// Tells it from others; what is known of an endpoint is known by it.
    pub id: String,
    /// Its identity for policies that hash; empty = the id. Whoever takes the place of another one, after a
    /// restart under another address for instance, keeps its keys when it keeps this. Of two with the
    /// same one the first by id gets the keys of both.
    pub hash_key: String,
    /// Its share of the calls relative to others; 0 = none.
    pub weight: u32,
    pub zone: String,
    pub healthy: bool,
    pub admin: Admin,
    pub target: T,
}

/// Whether an endpoint should get new calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admin {
    #[default]
    Enabled,
    /// Finishes its calls and gets no new ones, not even when all others are unavailable.
    Draining,
    Disabled,
}

/// Who picks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// Different for each client, or all of them choose the same subset and begin at the same endpoint.
    pub id: String,
    /// Where it is; empty = not known, so no zone is preferred.
    pub zone: String,
}

impl<T> Endpoint<T> {
    /// Healthy, enabled, of weight 1 and in no zone.
    pub fn new(id: impl Into<String>, target: T) -> Endpoint<T> {
        Endpoint {
            id: id.into(),
            hash_key: String::new(),
            weight: crate::limits::DEFAULT_WEIGHT,
            zone: String::new(),
            healthy: true,
            admin: Admin::Enabled,
            target,
        }
    }

    /// The same endpoint, to be reached in another way.
    pub fn with_target<U>(self, target: U) -> Endpoint<U> {
        let Endpoint { id, hash_key, weight, zone, healthy, admin, target: _ } = self;
        Endpoint { id, hash_key, weight, zone, healthy, admin, target }
    }
}
