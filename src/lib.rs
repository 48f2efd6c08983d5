//! Quorate: a Raft-replicated service registry.
//!
//! The map of the code stands in `docs/ARCHITECTURE.md`. From the inside out: [`state`] is the pure
//! core, `store` keeps it on disk, `raft` replicates it, `node` is the door to it, `api` serves it,
//! [`client`] calls it and `cli` is the command line.

pub mod error;
pub mod limits;
pub mod proto;
