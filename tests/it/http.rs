//! The HTTP port and the standard gRPC services: what operators, orchestrators and tools ask.

use std::collections::BTreeMap;

use serde_json::Value;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use super::harness::{Cluster, channel, eventually, get, instance, run};

/// The names that users of such systems look for.
const METRICS: [&str; 20] = [
    "quorate_has_leader",
    "quorate_is_leader",
    "quorate_leader_changes_seen_total",
    "quorate_proposals_committed_total",
    "quorate_proposals_applied_total",
    "quorate_proposals_pending",
    "quorate_proposals_failed_total",
    "quorate_disk_wal_fsync_duration_seconds_bucket",
    "quorate_disk_wal_fsync_duration_seconds_sum",
    "quorate_disk_wal_fsync_duration_seconds_count",
    "quorate_slow_apply_total",
    "quorate_instance_count",
    "quorate_service_count",
    "quorate_session_count",
    "quorate_watcher_count",
    "quorate_raft_term",
    "quorate_state_revision",
    "quorate_build_info",
    "quorate_uptime_seconds",
    "process_resident_memory_bytes",
];

/// Prometheus' text: names of series to values; those with labels once per label set.
fn series(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let value = value.parse().unwrap_or_else(|error| panic!("{line:?}: {error}"));
        assert!(series.insert(name.to_owned(), value).is_none(), "{line:?} is there twice");
    }
    series
}

/// Every node is alive, ready and says what it is; the metrics have the names and the values that they
/// should.
#[test]
fn each_node_answers_over_http() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        for id in ["a", "b", "c"] {
            client.register(instance("web", id), None).await.unwrap();
        }
        let leader = cluster.leader().await;
        let status = cluster.status(leader).await;
        cluster.same_digest().await;
        for node in cluster.running() {
            assert_eq!(get(&node.http, "/livez").await.unwrap(), (200, "ok\n".to_owned()));
            assert_eq!(get(&node.http, "/readyz").await.unwrap(), (200, "ok\n".to_owned()));
            assert_eq!(get(&node.http, "/nothing").await.unwrap().0, 404);
            let (code, version) = get(&node.http, "/version").await.unwrap();
            let version: Value = serde_json::from_str(&version).unwrap();
            assert_eq!(code, 200);
            assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
            assert_eq!(version["node_id"], node.id);
            assert_eq!(version["cluster_id"], status.cluster_id);

            let (code, text) = get(&node.http, "/metrics").await.unwrap();
            assert_eq!(code, 200);
            let series = series(&text);
            for name in METRICS {
                let bare = |key: &str| key.split('{').next() == Some(name);
                assert!(series.keys().any(|key| bare(key)), "{name} is not in\n{text}");
                let family = ["_bucket", "_sum", "_count"]
                    .iter()
                    .find_map(|suffix| name.strip_suffix(suffix))
                    .filter(|family| family.ends_with("_seconds"))
                    .unwrap_or(name);
                assert!(text.contains(&format!("# TYPE {family} ")), "{family} has no type");
            }
            assert_eq!(series["quorate_has_leader"], 1.0);
            assert_eq!(series["quorate_is_leader"], f64::from(node.id == leader));
            assert_eq!(series["quorate_instance_count"], 3.0);
            assert_eq!(series["quorate_service_count"], 1.0);
            assert!(series["quorate_proposals_applied_total"] >= 3.0);
            assert!(series["quorate_disk_wal_fsync_duration_seconds_count"] >= 3.0);
        }
    });
}

/// A node without a quorum is alive but not ready, and says why; so does the gRPC health service.
#[test]
fn a_node_without_a_leader_is_not_ready() {
    run(async {
        let mut cluster = Cluster::three().await;
        let leader = cluster.leader().await;
        let alone = cluster.followers().await[0];
        let health = HealthClient::new(channel(&cluster.node(alone).client).await);
        let status_of = async |service: &str| {
            let request = HealthCheckRequest { service: service.to_owned() };
            let answer = health.clone().check(request).await.unwrap();
            answer.into_inner().status()
        };
        for service in ["", "quorate.v1.Registry", "quorate.v1.Sessions", "quorate.v1.Cluster"] {
            eventually("a node that serves", async || match status_of(service).await {
                ServingStatus::Serving => Ok(()),
                other => Err(format!("{service:?}: {other:?}")),
            })
            .await;
        }
        for id in cluster.ids() {
            if id != alone {
                cluster.kill(id);
            }
        }
        let http = cluster.node(alone).http.clone();
        let reason = eventually("a node that is not ready", async || {
            match get(&http, "/readyz").await.unwrap() {
                (503, reason) => Ok(reason),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        assert!(reason.contains("no leader"), "{reason:?}");
        assert_eq!(get(&http, "/livez").await.unwrap().0, 200);
        let (_, metrics) = get(&http, "/metrics").await.unwrap();
        assert_eq!(series(&metrics)["quorate_has_leader"], 0.0);
        eventually("a node that does not serve", async || match status_of("").await {
            ServingStatus::NotServing => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        cluster.start(leader).await;
        cluster.ready(&[alone]).await;
    });
}

/// A tool that knows nothing of us finds the services and their messages by reflection.
#[test]
fn reflection_names_the_services() {
    run(async {
        let cluster = Cluster::three().await;
        let channel = channel(&cluster.node(1).client).await;
        let ask = async |request: MessageRequest| {
            let mut reflection = ServerReflectionClient::new(channel.clone());
            let request =
                ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let requests = futures::stream::iter([request]);
            let answers = reflection.server_reflection_info(requests).await?;
            let answer = answers.into_inner().message().await?.unwrap();
            Ok::<_, tonic::Status>(answer.message_response.unwrap())
        };
        let MessageResponse::ListServicesResponse(list) =
            ask(MessageRequest::ListServices(String::new())).await.unwrap()
        else {
            panic!("not a list of services");
        };
        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        for name in [
            "quorate.v1.Registry",
            "quorate.v1.Sessions",
            "quorate.v1.Cluster",
            "grpc.health.v1.Health",
        ] {
            assert!(names.iter().any(|listed| listed == name), "{name} is not in {names:?}");
        }
        // Peers talk on a port of their own.
        assert!(names.iter().all(|name| !name.contains("peer")), "{names:?}");
        let symbol = MessageRequest::FileContainingSymbol("quorate.v1.Registry".to_owned());
        let MessageResponse::FileDescriptorResponse(files) = ask(symbol).await.unwrap() else {
            panic!("not a file");
        };
        assert!(!files.file_descriptor_proto.is_empty());
        let unknown = MessageRequest::FileContainingSymbol("quorate.v1.Nothing".to_owned());
        assert_eq!(ask(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
    });
}
