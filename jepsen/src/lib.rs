//! Jepsen's method: real processes, faults while clients work, a history of what clients saw, and checkers
//! that judge it.
//!
//! Two halves that meet in the history. The checkers know nothing of Quorate: a checker is a function from
//! a history to a report, without clock and without randomness. What runs clusters, clients and faults
//! judges nothing.

pub mod append;
pub mod bugs;
pub mod check;
pub mod cluster;
pub mod edn;
mod graph;
pub mod history;
mod intern;
pub mod linear;
pub mod nemesis;
pub mod random;
pub mod register;
pub mod report;
pub mod run;
pub mod store;
pub mod workload;
