//! Commands of health checks and their limits.

use serde::{Deserialize, Serialize};

use super::super::table::{Health, HealthCheck, Probe};
use super::{InstanceName, Refusal, check_instance_name, check_range, check_text, invalid};
use crate::limits;

/// What a check says of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthVerdict<T = String> {
    pub name: InstanceName<T>,
    /// The instance that was checked, and the settings by which it was: once either has changed the
    /// verdict is of something else.
    pub mod_revision: u64,
    pub settings_revision: u64,
    pub health: Health,
    pub reason: T,
}

pub(super) fn check_verdicts(verdicts: &[HealthVerdict]) -> Result<(), Refusal> {
    let allowed = 1..=limits::HEALTH_VERDICTS as u64;
    check_range("verdicts", verdicts.len() as u64, &allowed)?;
    verdicts.iter().enumerate().try_for_each(|(i, verdict)| {
        check_instance_name(&format!("verdicts[{i}]."), &verdict.name)?;
        check_text(&format!("verdicts[{i}].reason"), &verdict.reason, limits::TEXT_BYTES)
    })
}

impl HealthCheck {
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes } = self;
        let field = |name: &str| format!("service.health_check.{name}");
        match probe {
            Probe::Tcp => {}
            Probe::Http { path, host, statuses: (first, last) } => {
                let bytes = limits::HEALTH_PATH_BYTES;
                let visible = |b: u8| b.is_ascii_graphic() && b != b'#';
                if !path.starts_with('/') || path.len() > bytes || !path.bytes().all(visible) {
                    let allowed = format!(
                        "a path that begins with /, 1..={bytes} bytes of visible ASCII without #"
                    );
                    return Err(invalid(field("http.path"), path, allowed));
                }
                let host_byte = |b: u8| b.is_ascii_alphanumeric() || b"._:[]-".contains(&b);
                let bytes = limits::HEALTH_HOST_BYTES;
                if host.len() > bytes || !host.bytes().all(host_byte) {
                    let allowed = format!("at most {bytes} bytes of [A-Za-z0-9._:-] and brackets");
                    return Err(invalid(field("http.host"), host, allowed));
                }
                let statuses = &limits::HEALTH_STATUSES;
                check_range(&field("http.status_min"), u64::from(*first), statuses)?;
                let allowed = u64::from(*first)..=*statuses.end();
                check_range(&field("http.status_max"), u64::from(*last), &allowed)?;
            }
            Probe::Grpc { service } => {
                check_text(&field("grpc.service"), service, limits::TEXT_BYTES)?;
            }
        }
        check_text(&field("endpoint"), endpoint, limits::NAME_BYTES)?;
        check_range(&field("interval_ms"), *interval_ms, &limits::HEALTH_INTERVAL_MS)?;
        let longest = (*limits::HEALTH_TIMEOUT_MS.end()).min(*interval_ms);
        let allowed = *limits::HEALTH_TIMEOUT_MS.start()..=longest;
        check_range(&field("timeout_ms"), *timeout_ms, &allowed)?;
        check_range(&field("failures"), u64::from(*failures), &limits::HEALTH_STREAK)?;
        check_range(&field("successes"), u64::from(*successes), &limits::HEALTH_STREAK)
    }
}
