//! Health checks, between messages and the state's types.

use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::health_check::Probe as Wire;
use crate::state::{HealthCheck, Probe};

/// With what was left out filled in.
pub fn health_check(check: v1::HealthCheck) -> Result<HealthCheck, Error> {
    let v1::HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes } = check;
    let probe = match probe {
        Some(Wire::Tcp(v1::TcpProbe {})) => Probe::Tcp,
        Some(Wire::Http(v1::HttpProbe { path, host, status_min, status_max })) => {
            let (first, last) = limits::DEFAULT_HEALTH_STATUSES;
            let status = |field: &str, given, default| match given {
                0 => Ok(default),
                given => u16::try_from(given).map_err(|_| {
                    let field = format!("service.health_check.http.{field}");
                    let allowed = format!("{:?}", limits::HEALTH_STATUSES);
                    Error::invalid(field, given.to_string(), allowed)
                }),
            };
            let path = if path.is_empty() { "/".to_owned() } else { path };
            let first = status("status_min", status_min, first)?;
            // From a status above the usual last one on: that one alone.
            let last = status("status_max", status_max, last.max(first))?;
            Probe::Http { path, host, statuses: (first, last) }
        }
        Some(Wire::Grpc(v1::GrpcProbe { service })) => Probe::Grpc { service },
        None => {
            let allowed = "one of tcp, http and grpc";
            return Err(Error::invalid("service.health_check.probe", "none", allowed));
        }
    };
    let or = |given, default| if given == 0 { default } else { given };
    let interval_ms = or(interval_ms, limits::DEFAULT_HEALTH_INTERVAL_MS);
    Ok(HealthCheck {
        probe,
        endpoint,
        interval_ms,
        timeout_ms: or(timeout_ms, limits::DEFAULT_HEALTH_TIMEOUT_MS.min(interval_ms)),
        failures: match failures {
            0 => limits::DEFAULT_HEALTH_FAILURES,
            given => given,
        },
        successes: match successes {
            0 => limits::DEFAULT_HEALTH_SUCCESSES,
            given => given,
        },
    })
}

pub fn record(check: &HealthCheck) -> v1::HealthCheck {
    let HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes } = check;
    let probe = match probe {
        Probe::Tcp => Wire::Tcp(v1::TcpProbe {}),
        Probe::Http { path, host, statuses: (first, last) } => Wire::Http(v1::HttpProbe {
            path: path.clone(),
            host: host.clone(),
            status_min: u32::from(*first),
            status_max: u32::from(*last),
        }),
        Probe::Grpc { service } => Wire::Grpc(v1::GrpcProbe { service: service.clone() }),
    };
    v1::HealthCheck {
        probe: Some(probe),
        endpoint: endpoint.clone(),
        interval_ms: *interval_ms,
        timeout_ms: *timeout_ms,
        failures: *failures,
        successes: *successes,
    }
}
