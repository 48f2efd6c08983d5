//! Consensus: the only place that names openraft.
//!
//! [`log`] and [`machine`] are its storage, [`network`] its way to the peers, [`service`] what peers
//! may ask, [`types`] its types with ours filled in.

pub mod answers;
pub mod codec;
mod commits;
pub mod fetch;
pub mod log;
pub mod machine;
pub mod network;
pub mod service;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod types;
