//! The checkers from outside: written histories, simulated ones, broken ones, and second opinions.

#![allow(clippy::unwrap_used)]

mod append;
mod binary;
mod coverage;
mod edn;
mod history;
mod opinion;
mod register;
mod replay;
