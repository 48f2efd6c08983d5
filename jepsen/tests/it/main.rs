//! The checkers from outside: written histories, simulated ones, broken ones, and second opinions.

#![allow(clippy::unwrap_used)]

mod append;
mod balance;
mod bank;
mod binary;
mod bugs;
mod counter;
mod coverage;
mod edn;
mod failpoints;
mod gray;
mod history;
mod lines;
mod lock;
mod once;
mod opinion;
mod register;
mod registry;
mod replay;
mod saga;
mod set;
mod watch;
