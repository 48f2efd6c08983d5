//! Real processes: clusters of `quorate serve`, the command line, and a client of theirs, on a real
//! file system and real sockets. Everything here goes through the public API: the built binary and
//! the crate's client library or generated messages. One file per topic; `harness` starts, kills and
//! cleans up, `load` writes and watches while the faults happen.
//!
//! No test asserts a speed, and none sleeps in the hope that something has happened by then: all wait
//! for what they need, up to a generous deadline.

#![cfg(feature = "server")]
// Tests stop at what they did not expect, and run on real time and threads.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod echo;
mod harness;
mod load;
mod participant;

mod basics;
mod channel;
mod cli;
mod cli_balance;
mod cli_txn;
mod config;
mod config_cache;
mod config_cli;
mod counters;
mod crashes;
mod discovery;
mod disk;
mod exactly_once;
mod health;
mod http;
mod limits;
mod locks;
mod membership;
mod pause;
mod policy;
mod rebuild;
mod refusals;
mod registration;
mod saga_client;
mod sagas;
mod sessions;
mod stop;
mod transactions;
mod watching;
