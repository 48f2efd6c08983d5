//! What balancing is told of a service: its instances as endpoints, and which policy is in force.

use super::super::balance::{Admin, Endpoint, Policy};
use super::super::discovery::{ServiceState, is_well};
use super::link::Address;
use crate::error::Error;
use crate::proto::v1;

/// The instances of a service as endpoints, with where each can be reached. `port` is the name of the port
/// to use: an instance that has none of that name is left out. None = "grpc", or else the first one.
pub fn endpoints(state: &ServiceState, port: Option<&str>) -> Vec<Endpoint<Address>> {
    let endpoint = |instance: &v1::Instance| {
        let named = |name: &str| instance.endpoints.iter().find(|port| port.name == name);
        let at = match port {
            Some(name) => named(name),
            None => named("grpc").or(instance.endpoints.first()),
        }?;
        let tls = instance.metadata.get("tls").is_some_and(|value| value == "true");
        let target = Address { host: at.host.clone(), port: u16::try_from(at.port).ok()?, tls };
        Some(Endpoint {
            hash_key: instance.hash_key.clone(),
            weight: instance.weight.unwrap_or(crate::limits::DEFAULT_WEIGHT),
            zone: instance.zone.clone(),
            healthy: state.protected || is_well(instance),
            admin: match instance.admin() {
                v1::Admin::Unspecified | v1::Admin::Enabled => Admin::Enabled,
                v1::Admin::Draining => Admin::Draining,
                v1::Admin::Disabled => Admin::Disabled,
            },
            ..Endpoint::new(instance.id.clone(), target)
        })
    };
    state.instances.values().filter_map(|instance| endpoint(instance)).collect()
}

/// The policy that the service's record sets; None when it sets none, whatever parameters it has.
pub fn policy(state: &ServiceState) -> Result<Option<Policy>, Error> {
    let Some(settings) = state.settings.as_ref().filter(|it| !it.policy.is_empty()) else {
        return Ok(None);
    };
    Policy::of_service(&settings.policy, &settings.policy_parameters)
}
