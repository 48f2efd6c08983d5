//! Health checks as JSON and as a line.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::output;
use crate::proto::v1;
use crate::proto::v1::health_check::Probe;

/// One of `tcp`, `http` and `grpc` is there.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    #[serde(skip_serializing_if = "Option::is_none")]
    tcp: Option<Tcp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<Http>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<Grpc>,
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    interval_ms: u64,
    #[serde(default)]
    timeout_ms: u64,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    successes: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tcp {}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Http {
    #[serde(default)]
    path: String,
    #[serde(default)]
    host: String,
    #[serde(default)]
    status_min: u32,
    #[serde(default)]
    status_max: u32,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grpc {
    #[serde(default)]
    service: String,
}

impl From<v1::HealthCheck> for HealthCheck {
    fn from(check: v1::HealthCheck) -> HealthCheck {
        let v1::HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes } =
            check;
        let (mut tcp, mut http, mut grpc) = (None, None, None);
        match probe {
            Some(Probe::Tcp(v1::TcpProbe {})) => tcp = Some(Tcp {}),
            Some(Probe::Http(v1::HttpProbe { path, host, status_min, status_max })) => {
                http = Some(Http { path, host, status_min, status_max });
            }
            Some(Probe::Grpc(v1::GrpcProbe { service })) => grpc = Some(Grpc { service }),
            // Of a later release.
            None => {}
        }
        HealthCheck { tcp, http, grpc, endpoint, interval_ms, timeout_ms, failures, successes }
    }
}

impl From<HealthCheck> for v1::HealthCheck {
    fn from(check: HealthCheck) -> v1::HealthCheck {
        let HealthCheck { tcp, http, grpc, .. } = &check;
        // The node refuses a check without a probe. With several the first counts.
        let probe = match (tcp, http, grpc) {
            (Some(Tcp {}), _, _) => Some(Probe::Tcp(v1::TcpProbe {})),
            (_, Some(Http { path, host, status_min, status_max }), _) => {
                Some(Probe::Http(v1::HttpProbe {
                    path: path.clone(),
                    host: host.clone(),
                    status_min: *status_min,
                    status_max: *status_max,
                }))
            }
            (_, _, Some(Grpc { service })) => {
                Some(Probe::Grpc(v1::GrpcProbe { service: service.clone() }))
            }
            (None, None, None) => None,
        };
        v1::HealthCheck {
            probe,
            endpoint: check.endpoint,
            interval_ms: check.interval_ms,
            timeout_ms: check.timeout_ms,
            failures: check.failures,
            successes: check.successes,
        }
    }
}

/// `http GET /ready, expects 200-299, endpoint http, every 10s, timeout 2s, ...`
impl fmt::Display for HealthCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.http, &self.grpc) {
            (Some(Http { path, host, status_min, status_max }), _) => {
                write!(f, "http GET {path}, expects {status_min}-{status_max}")?;
                if !host.is_empty() {
                    write!(f, ", host {host}")?;
                }
            }
            (_, Some(Grpc { service })) if service.is_empty() => f.write_str("grpc")?,
            (_, Some(Grpc { service })) => write!(f, "grpc of {service}")?,
            (None, None) => f.write_str("tcp")?,
        }
        if !self.endpoint.is_empty() {
            write!(f, ", endpoint {}", self.endpoint)?;
        }
        let shown = |ms| output::duration(Duration::from_millis(ms));
        let count = |count: u32, one: &str, more: &str| match count {
            1 => format!("1 {one}"),
            count => format!("{count} {more}"),
        };
        write!(
            f,
            ", every {}, timeout {}, {} to critical, {} to passing",
            shown(self.interval_ms),
            shown(self.timeout_ms),
            count(self.failures, "failure", "failures"),
            count(self.successes, "success", "successes"),
        )
    }
}
