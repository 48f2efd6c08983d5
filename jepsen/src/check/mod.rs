//! Checkers of what one workload asks, each a function from a history to a report.

pub mod coverage;
pub mod health;
pub mod replay;
