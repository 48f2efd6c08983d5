//! Records as JSON shows them: the messages of the API with the same field names, enums as words.
//! `Instance` is also what `service register -` reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::proto::{host_port, v1};

mod check;
mod events;
pub mod saga;

pub use self::check::HealthCheck;
pub use self::events::show_events;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    #[serde(default)]
    pub name: String,
    pub host: String,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Instance {
    #[serde(default)]
    pub namespace: String,
    pub service: String,
    pub id: String,
    pub endpoints: Vec<Endpoint>,
    #[serde(default)]
    pub weight: Option<u32>,
    #[serde(default)]
    pub zone: String,
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
    #[serde(default)]
    pub health: Health,
    #[serde(default)]
    pub admin: Admin,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub hash_key: String,
    // From here on what only the cluster says: accepted and ignored on input.
    #[serde(default)]
    pub session: u64,
    #[serde(default)]
    pub create_revision: u64,
    #[serde(default)]
    pub mod_revision: u64,
    #[serde(default)]
    pub created_at_ms: u64,
    #[serde(default)]
    pub modified_at_ms: u64,
    #[serde(default)]
    pub critical_since_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    #[default]
    Passing,
    Warning,
    Critical,
    /// Of a later release.
    #[value(skip)]
    #[serde(skip_deserializing)]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Admin {
    #[default]
    Enabled,
    Draining,
    Disabled,
    /// Of a later release.
    #[serde(skip_deserializing)]
    Unknown,
}

impl Health {
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Passing => "passing",
            Health::Warning => "warning",
            Health::Critical => "critical",
            Health::Unknown => "unknown",
        }
    }
}

impl Admin {
    pub fn as_str(self) -> &'static str {
        match self {
            Admin::Enabled => "enabled",
            Admin::Draining => "draining",
            Admin::Disabled => "disabled",
            Admin::Unknown => "unknown",
        }
    }
}

impl From<v1::Health> for Health {
    fn from(health: v1::Health) -> Health {
        match health {
            v1::Health::Passing => Health::Passing,
            v1::Health::Warning => Health::Warning,
            v1::Health::Critical => Health::Critical,
            v1::Health::Unspecified => Health::Unknown,
        }
    }
}

impl From<Health> for v1::Health {
    fn from(health: Health) -> v1::Health {
        match health {
            Health::Passing => v1::Health::Passing,
            Health::Warning => v1::Health::Warning,
            Health::Critical => v1::Health::Critical,
            Health::Unknown => v1::Health::Unspecified,
        }
    }
}

impl From<v1::Admin> for Admin {
    fn from(admin: v1::Admin) -> Admin {
        match admin {
            v1::Admin::Enabled => Admin::Enabled,
            v1::Admin::Draining => Admin::Draining,
            v1::Admin::Disabled => Admin::Disabled,
            v1::Admin::Unspecified => Admin::Unknown,
        }
    }
}

impl From<Admin> for v1::Admin {
    fn from(admin: Admin) -> v1::Admin {
        match admin {
            Admin::Enabled => v1::Admin::Enabled,
            Admin::Draining => v1::Admin::Draining,
            Admin::Disabled => v1::Admin::Disabled,
            Admin::Unknown => v1::Admin::Unspecified,
        }
    }
}

impl From<v1::Instance> for Instance {
    fn from(instance: v1::Instance) -> Instance {
        Instance {
            health: instance.health().into(),
            admin: instance.admin().into(),
            namespace: instance.namespace,
            service: instance.service,
            id: instance.id,
            endpoints: instance.endpoints.into_iter().map(Endpoint::from).collect(),
            weight: instance.weight,
            zone: instance.zone,
            metadata: instance.metadata,
            reason: instance.reason,
            hash_key: instance.hash_key,
            session: instance.session,
            create_revision: instance.create_revision,
            mod_revision: instance.mod_revision,
            created_at_ms: instance.created_at_ms,
            modified_at_ms: instance.modified_at_ms,
            critical_since_ms: instance.critical_since_ms,
        }
    }
}

impl Instance {
    /// The addresses in one cell: `10.0.0.1:80` or `grpc=10.0.0.1:80,metrics=10.0.0.1:81`.
    pub fn addresses(&self) -> String {
        let all: Vec<String> = self.endpoints.iter().map(Endpoint::to_string).collect();
        all.join(",")
    }

    /// A request to register it; what only the cluster says is left out.
    pub fn into_registration(self) -> v1::Instance {
        v1::Instance {
            namespace: self.namespace,
            service: self.service,
            id: self.id,
            endpoints: self.endpoints.into_iter().map(v1::Endpoint::from).collect(),
            weight: self.weight,
            zone: self.zone,
            metadata: self.metadata,
            health: v1::Health::from(self.health).into(),
            admin: v1::Admin::from(self.admin).into(),
            reason: self.reason,
            hash_key: self.hash_key,
            ..v1::Instance::default()
        }
    }
}

impl From<v1::Endpoint> for Endpoint {
    fn from(endpoint: v1::Endpoint) -> Endpoint {
        let port = u16::try_from(endpoint.port).unwrap_or_default();
        Endpoint { name: endpoint.name, host: endpoint.host, port }
    }
}

impl From<Endpoint> for v1::Endpoint {
    fn from(endpoint: Endpoint) -> v1::Endpoint {
        v1::Endpoint { name: endpoint.name, host: endpoint.host, port: endpoint.port.into() }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.name.is_empty() {
            write!(f, "{}=", self.name)?;
        }
        f.write_str(&host_port(&self.host, self.port))
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    pub protect_threshold_percent: u32,
    pub deregister_after_ms: u64,
    pub policy: String,
    pub policy_parameters: BTreeMap<String, String>,
    pub metadata: BTreeMap<String, String>,
    pub create_revision: u64,
    pub mod_revision: u64,
    pub instances: u64,
    pub healthy_instances: u64,
    pub health_check: Option<HealthCheck>,
    pub unchecked_instances: u64,
    pub unchecked_reason: String,
}

impl From<v1::Service> for Service {
    fn from(service: v1::Service) -> Service {
        Service {
            deregister_after_ms: service
                .deregister_after_ms
                .unwrap_or(crate::limits::DEFAULT_DEREGISTER_AFTER_MS),
            namespace: service.namespace,
            name: service.name,
            protect_threshold_percent: service.protect_threshold_percent,
            policy: service.policy,
            policy_parameters: service.policy_parameters,
            metadata: service.metadata,
            create_revision: service.create_revision,
            mod_revision: service.mod_revision,
            instances: service.instances,
            healthy_instances: service.healthy_instances,
            health_check: service.health_check.map(|check| HealthCheck::from(*check)),
            unchecked_instances: service.unchecked_instances,
            unchecked_reason: service.unchecked_reason,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Member {
    pub id: u64,
    pub peer_address: String,
    pub client_address: String,
    pub learner: bool,
    pub leader: bool,
}

impl From<v1::Member> for Member {
    fn from(member: v1::Member) -> Member {
        let v1::Member { id, peer_address, client_address, learner, leader } = member;
        Member { id, peer_address, client_address, learner, leader }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Namespace {
    pub name: String,
    pub description: String,
    pub create_revision: u64,
    pub mod_revision: u64,
}

impl From<v1::Namespace> for Namespace {
    fn from(namespace: v1::Namespace) -> Namespace {
        let v1::Namespace { name, description, create_revision, mod_revision } = namespace;
        Namespace { name, description, create_revision, mod_revision }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Session {
    pub id: u64,
    pub ttl_ms: u64,
    pub client: String,
    pub opened_at_ms: u64,
    pub instances: u64,
}

impl From<v1::Session> for Session {
    fn from(session: v1::Session) -> Session {
        let v1::Session { id, ttl_ms, client, opened_at_ms, instances } = session;
        Session { id, ttl_ms, client, opened_at_ms, instances }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LockRequest {
    pub namespace: String,
    pub lock: String,
    pub session: u64,
    pub holder: String,
    pub value: String,
    pub ticket: u64,
    /// 0 = it waits.
    pub token: u64,
    pub requested_at_ms: u64,
    pub acquired_at_ms: u64,
    pub mod_revision: u64,
}

impl From<v1::LockRequest> for LockRequest {
    fn from(request: v1::LockRequest) -> LockRequest {
        let v1::LockRequest { namespace, lock, session, holder, value, ticket, token, .. } =
            request;
        let v1::LockRequest { requested_at_ms, acquired_at_ms, mod_revision, .. } = request;
        LockRequest {
            namespace,
            lock,
            session,
            holder,
            value,
            ticket,
            token,
            requested_at_ms,
            acquired_at_ms,
            mod_revision,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    pub node_id: u64,
    pub revision: u64,
    pub cluster_id: String,
    pub version: String,
    pub leader_id: u64,
    pub leader_client_address: String,
    pub leader: bool,
    pub learner: bool,
    pub term: u64,
    pub last_log_index: u64,
    pub committed_index: u64,
    pub applied_index: u64,
    pub snapshot_index: u64,
    pub purged_index: u64,
    pub log_bytes: u64,
    pub image_bytes: u64,
    pub snapshot_bytes: u64,
    pub instances: u64,
    pub services: u64,
    pub sessions: u64,
    pub watchers: u64,
    pub durability: String,
    pub errors: Vec<String>,
    pub uptime_ms: u64,
}

impl From<v1::StatusResponse> for Status {
    fn from(status: v1::StatusResponse) -> Status {
        let header = status.header.unwrap_or_default();
        Status {
            node_id: header.node_id,
            revision: header.revision,
            cluster_id: status.cluster_id,
            version: status.version,
            leader: status.leader_id != 0 && status.leader_id == header.node_id,
            leader_id: status.leader_id,
            leader_client_address: status.leader_client_address,
            learner: status.learner,
            term: status.term,
            last_log_index: status.last_log_index,
            committed_index: status.committed_index,
            applied_index: status.applied_index,
            snapshot_index: status.snapshot_index,
            purged_index: status.purged_index,
            log_bytes: status.log_bytes,
            image_bytes: status.image_bytes,
            snapshot_bytes: status.snapshot_bytes,
            instances: status.instances,
            services: status.services,
            sessions: status.sessions,
            watchers: status.watchers,
            durability: status.durability,
            errors: status.errors,
            uptime_ms: status.uptime_ms,
        }
    }
}

/// Revision of an answer.
pub fn revision(header: &Option<v1::Header>) -> u64 {
    header.as_ref().map_or(0, |header| header.revision)
}

/// The consistency that a read used, as a word.
pub fn consistency(header: &Option<v1::Header>) -> &'static str {
    match header.as_ref().map_or(v1::Consistency::Unspecified, v1::Header::consistency) {
        v1::Consistency::Linearizable => "linearizable",
        v1::Consistency::Stale => "stale",
        v1::Consistency::Unspecified => "unknown",
    }
}

/// What a read asks for.
pub fn wanted(stale: bool) -> v1::Consistency {
    if stale { v1::Consistency::Stale } else { v1::Consistency::Linearizable }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn instance() -> v1::Instance {
        v1::Instance {
            namespace: "n".into(),
            service: "s".into(),
            id: "i".into(),
            endpoints: vec![
                v1::Endpoint { name: "grpc".into(), host: "h".into(), port: 1 },
                v1::Endpoint { name: String::new(), host: "::1".into(), port: 2 },
            ],
            weight: Some(0),
            zone: "z".into(),
            metadata: [("k".to_owned(), "v".to_owned())].into(),
            health: v1::Health::Critical.into(),
            admin: v1::Admin::Draining.into(),
            reason: "r".into(),
            hash_key: "h".into(),
            session: 1,
            create_revision: 2,
            mod_revision: 3,
            created_at_ms: 4,
            modified_at_ms: 5,
            critical_since_ms: 6,
        }
    }

    /// What `get -w json` prints can be registered again as it is.
    #[test]
    fn an_instance_goes_round() {
        let view = Instance::from(instance());
        assert_eq!(view.addresses(), "grpc=h:1,[::1]:2");
        let text = serde_json::to_string(&view).unwrap();
        let read: Instance = serde_json::from_str(&text).unwrap();
        assert_eq!(read, view);
        let own = v1::Instance {
            session: 0,
            create_revision: 0,
            mod_revision: 0,
            created_at_ms: 0,
            modified_at_ms: 0,
            critical_since_ms: 0,
            ..instance()
        };
        assert_eq!(read.into_registration(), own);
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let text = r#"{"service": "s", "id": "i", "endpoints": [{"host": "h", "port": 1}]}"#;
        let registration = serde_json::from_str::<Instance>(text).unwrap().into_registration();
        assert_eq!(registration.weight, None);
        assert_eq!(registration.health(), v1::Health::Passing);
        assert_eq!(registration.admin(), v1::Admin::Enabled);
        let wrong = |text: &str| serde_json::from_str::<Instance>(text).unwrap_err().to_string();
        assert!(wrong(r#"{"servise": "s"}"#).contains("unknown field `servise`"));
        let port = r#"{"service": "s", "id": "i", "endpoints": [{"host": "h", "port": 70000}]}"#;
        assert!(wrong(port).contains("expected u16"));
        assert!(wrong(r#"{"health": "unknown"}"#).contains("unknown variant"));
    }
}
