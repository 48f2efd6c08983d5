//! Quorate: a Raft-replicated service registry.
//!
//! The map of the code stands in `docs/ARCHITECTURE.md`. From the inside out: [`state`] is the pure
//! core, `store` keeps it on disk, `raft` replicates it, `node` is the door to it, `api` serves it,
//! [`client`] calls it and `cli` is the command line.

#[cfg(feature = "server")]
pub mod allow;
#[cfg(feature = "server")]
pub mod api;
#[cfg(feature = "server")]
pub mod assembly;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
#[cfg(feature = "server")]
pub mod clock;
#[cfg(feature = "server")]
pub mod content;
pub mod error;
#[cfg(feature = "server")]
pub mod failpoint;
pub mod gather;
#[cfg(feature = "server")]
pub mod http;
pub mod limits;
#[cfg(feature = "server")]
pub mod listeners;
#[cfg(feature = "server")]
pub mod node;
#[cfg(feature = "server")]
pub mod options;
#[cfg(feature = "server")]
pub mod panic;
#[cfg(feature = "server")]
pub mod participants;
mod policy;
#[cfg(feature = "server")]
pub mod prober;
pub mod proto;
#[cfg(feature = "server")]
pub mod raft;
#[cfg(feature = "server")]
pub mod restore;
#[cfg(feature = "server")]
pub mod runtime;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod state;
#[cfg(feature = "server")]
pub mod store;
#[cfg(feature = "server")]
pub mod watch;
#[cfg(feature = "server")]
pub mod webhook;
