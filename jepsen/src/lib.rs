//! Jepsen's method: histories of what clients saw, and the checkers that judge them.
//!
//! Nothing here knows Quorate. A history is a value, read from a file that Jepsen's own tools read too; a
//! checker is a function from a history to a verdict, without clock and without randomness.

pub mod append;
pub mod edn;
mod graph;
pub mod history;
mod intern;
pub mod linear;
pub mod register;
pub mod report;
