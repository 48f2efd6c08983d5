//! Checkers of what one workload asks, each a function from a history to a report.

pub mod balance;
pub mod bank;
mod bounds;
pub mod counter;
pub mod coverage;
mod faults;
pub mod gray;
pub mod health;
pub mod leases;
pub mod lock;
pub mod once;
pub mod registry;
pub mod replay;
pub mod saga;
pub mod set;
pub mod watch;
