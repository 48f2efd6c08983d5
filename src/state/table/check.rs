//! How the persistent instances of a service are checked, as a part of its settings.

use serde::{Deserialize, Serialize};

use super::{Endpoint, Endpoints};

/// The endpoint that a gRPC check asks when none is named.
const GRPC: &str = "grpc";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    pub probe: Probe,
    /// See [`HealthCheck::target`].
    pub endpoint: String,
    pub interval_ms: u64,
    /// At most the interval.
    pub timeout_ms: u64,
    /// In a row until an instance is critical.
    pub failures: u32,
    /// In a row until one that is critical passes.
    pub successes: u32,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// A connection.
    Tcp,
    Http {
        path: String,
        /// The Host header; empty = that of the endpoint.
        host: String,
        /// The first and the last status that is expected.
        statuses: (u16, u16),
    },
    /// `grpc.health.v1`.
    Grpc {
        /// Empty = the server as a whole.
        service: String,
    },
}

impl HealthCheck {
    /// The endpoint that is asked: the one of the name that the check states. When it states none, the
    /// first one, or for gRPC the one named so if there is one.
    pub fn target<'a>(&self, endpoints: &'a Endpoints) -> Option<Endpoint<&'a str>> {
        let named = |name: &str| endpoints.iter().find(|endpoint| endpoint.name == name);
        match (self.endpoint.as_str(), &self.probe) {
            ("", Probe::Grpc { .. }) => named(GRPC).or_else(|| endpoints.iter().next()),
            ("", Probe::Tcp | Probe::Http { .. }) => endpoints.iter().next(),
            (name, _) => named(name),
        }
    }
}
