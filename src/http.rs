//! What operators and orchestrators ask over plain HTTP: `/livez`, `/readyz`, `/metrics`, `/version`.

mod counters;

use std::fs;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::api::Api;
use crate::node::Status;

/// The HTTP server's state.
#[derive(Clone)]
struct Http {
    /// Empty while the node starts.
    api: Arc<OnceLock<Api>>,
    /// How far the start is.
    starting: Arc<dyn Fn() -> String + Send + Sync>,
    metrics: PrometheusHandle,
}

/// Answers also while the node starts, which takes as long as a member lets it wait whose state it
/// needs: `api` is set afterwards, and until then `starting` says why the node is not ready.
pub fn router(
    api: Arc<OnceLock<Api>>,
    starting: Arc<dyn Fn() -> String + Send + Sync>,
    metrics: PrometheusHandle,
) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(render))
        .route("/version", get(version))
        .with_state(Http { api, starting, metrics })
}

/// 200 while this node can serve; 503 with the reason otherwise.
async fn readyz(State(http): State<Http>) -> (StatusCode, String) {
    let reason = match http.api.get() {
        Some(api) => unready(api),
        None => Some((http.starting)()),
    };
    match reason {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

/// Why this node cannot serve now.
fn unready(api: &Api) -> Option<String> {
    if api.drain.has_begun() {
        return Some("the node is about to stop".to_owned());
    }
    if api.node.is_ready() {
        return None;
    }
    let errors = api.node.status().errors;
    match errors.is_empty() {
        true => Some("nothing of the log is applied yet".to_owned()),
        false => Some(errors.join("; ")),
    }
}

async fn version(State(http): State<Http>) -> impl IntoResponse {
    let Some(api) = http.api.get() else {
        return (StatusCode::SERVICE_UNAVAILABLE, (http.starting)()).into_response();
    };
    let version = serde_json::json!({
        "version": api.about.version,
        "cluster_id": api.about.cluster_id,
        "node_id": api.node.id(),
    });
    ([(header::CONTENT_TYPE, "application/json")], format!("{version}\n")).into_response()
}

async fn render(State(http): State<Http>) -> impl IntoResponse {
    record_process();
    if let Some(api) = http.api.get() {
        record(&api.node.status());
        metrics::gauge!("quorate_uptime_seconds").set(api.about.started.elapsed().as_secs_f64());
    }
    let mut text = http.metrics.render();
    if let Some(api) = http.api.get() {
        counters::render(&api.node, &mut text);
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

/// The process's recorder; made by the first call, before anything that records is built.
pub fn install_metrics(version: &str) -> Result<PrometheusHandle, BuildError> {
    // 50 us to 10 s: a sync on fast flash takes 0.1 ms, one on a busy disk seconds.
    const SECONDS: [f64; 17] = [
        0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
        0.5, 1.0, 2.5, 5.0, 10.0,
    ];
    // There is one recorder for a process; nodes that share a process share their figures.
    static INSTALLED: Mutex<Option<PrometheusHandle>> = Mutex::new(None);
    let mut installed = INSTALLED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(handle) = &*installed {
        return Ok(handle.clone());
    }
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .build_recorder();
    let handle = recorder.handle();
    if metrics::set_global_recorder(recorder).is_err() {
        tracing::warn!("figures are recorded elsewhere; /metrics shows none");
    }
    describe();
    metrics::gauge!("quorate_build_info", "version" => version.to_owned()).set(1.0);
    *installed = Some(handle.clone());
    Ok(handle)
}

fn describe() {
    use metrics::{describe_counter as counter, describe_gauge as gauge};
    gauge!("quorate_has_leader", "Whether this node knows a leader.");
    gauge!("quorate_is_leader", "Whether this node leads.");
    gauge!("quorate_is_learner", "Whether this node replicates without a vote.");
    gauge!("quorate_is_ready", "Whether this node can serve: what /readyz says.");
    counter!("quorate_leader_changes_seen_total", "Leaders that followed each other here.");
    counter!("quorate_proposals_committed_total", "Log entries known to be committed.");
    counter!("quorate_proposals_applied_total", "Log entries applied to the state.");
    gauge!("quorate_proposals_pending", "Commands that wait for their answer.");
    counter!("quorate_proposals_failed_total", "Commands answered by an error of this node.");
    counter!("quorate_commands_proposed_total", "Commands handed to the log or to the leader.");
    counter!("quorate_commands_applied_total", "Commands applied to the state.");
    counter!("quorate_slow_apply_total", "Batches whose application took too long.");
    gauge!("quorate_corrupt_replicas", "Replicas that differ from the others; on the leader.");
    gauge!("quorate_health_check_instances", "Instances that this node checks.");
    gauge!("quorate_health_check_unchecked", "Those of them that it must not, or cannot, check.");
    counter!("quorate_health_checks_total", "Health checks that this node carried out.");
    counter!("quorate_health_check_failures_total", "Those of them that failed.");
    counter!("quorate_health_transitions_total", "Instances that its checks have turned.");
    gauge!("quorate_saga_running", "Global transactions neither finished nor suspended.");
    gauge!("quorate_saga_suspended", "Global transactions that wait for an operator.");
    gauge!("quorate_saga_calls_under_way", "Calls of participants under way; on the leader.");
    counter!("quorate_saga_calls_total", "Calls of participants that this node has begun.");
    counter!("quorate_saga_call_failures_total", "Those of them that came to nothing.");
    metrics::describe_histogram!(
        "quorate_saga_duration_seconds",
        "From the beginning of a global transaction to its end; on the leader."
    );
    gauge!("quorate_rebuilding", "Whether this node fetches its state from another one.");
    gauge!("quorate_raft_term", "Current term.");
    gauge!("quorate_log_last_index", "Index of the last log entry.");
    gauge!("quorate_snapshot_index", "Index of the newest snapshot.");
    gauge!("quorate_purged_index", "Index up to which the log was purged.");
    gauge!("quorate_state_revision", "Revision of the state.");
    gauge!("quorate_instance_count", "Registered instances.");
    gauge!("quorate_service_count", "Services.");
    gauge!("quorate_session_count", "Live sessions.");
    gauge!("quorate_watcher_count", "Watchers of this node.");
    gauge!("quorate_disk_log_bytes", "Bytes of the log on disk.");
    gauge!("quorate_disk_image_bytes", "Bytes of the image on disk.");
    gauge!("quorate_disk_snapshot_bytes", "Bytes of the newest snapshot file.");
    gauge!("quorate_uptime_seconds", "Seconds since the node started.");
    gauge!("quorate_build_info", "1; the release is in the label.");
    gauge!("process_resident_memory_bytes", "Memory that the process holds.");
    gauge!("process_virtual_memory_bytes", "Memory that the process has reserved.");
    gauge!("process_threads", "Threads of the process.");
    gauge!("process_open_fds", "Open files and connections.");
    counter!("process_cpu_seconds_total", "CPU time of the process, in whole seconds.");
    metrics::describe_histogram!(
        "quorate_disk_wal_fsync_duration_seconds",
        "How long a sync of the log takes."
    );
}

/// Takes over what the node counts itself.
fn record(status: &Status) {
    #[expect(clippy::cast_precision_loss, reason = "figures above 2^53 need not be exact")]
    let gauge = |name: &'static str, value: u64| metrics::gauge!(name).set(value as f64);
    let counter = |name: &'static str, value: u64| metrics::counter!(name).absolute(value);
    gauge("quorate_has_leader", u64::from(status.leader.is_some()));
    gauge("quorate_is_leader", u64::from(status.is_leader));
    gauge("quorate_is_learner", u64::from(status.learner));
    gauge("quorate_corrupt_replicas", status.corrupt_replicas);
    gauge("quorate_health_check_instances", status.health.instances);
    gauge("quorate_health_check_unchecked", status.health.unchecked);
    counter("quorate_health_checks_total", status.health.checks);
    counter("quorate_health_check_failures_total", status.health.failures);
    counter("quorate_health_transitions_total", status.health.turned);
    gauge("quorate_saga_running", status.sagas.running);
    gauge("quorate_saga_suspended", status.sagas.suspended);
    gauge("quorate_saga_calls_under_way", status.sagas.under_way);
    counter("quorate_saga_calls_total", status.sagas.calls);
    counter("quorate_saga_call_failures_total", status.sagas.failures);
    counter("quorate_leader_changes_seen_total", status.leader_changes);
    counter("quorate_proposals_committed_total", status.committed_index);
    counter("quorate_proposals_applied_total", status.applied_index);
    gauge("quorate_proposals_pending", status.proposals_pending);
    counter("quorate_proposals_failed_total", status.proposals_failed);
    counter("quorate_commands_proposed_total", status.proposals_proposed);
    counter("quorate_commands_applied_total", status.commands_applied);
    counter("quorate_slow_apply_total", status.slow_applies);
    gauge("quorate_raft_term", status.term);
    gauge("quorate_log_last_index", status.last_log_index);
    gauge("quorate_snapshot_index", status.snapshot_index);
    gauge("quorate_purged_index", status.purged_index);
    gauge("quorate_state_revision", status.revision);
    gauge("quorate_instance_count", status.instances);
    gauge("quorate_service_count", status.services);
    gauge("quorate_session_count", status.sessions);
    gauge("quorate_watcher_count", status.watchers);
    gauge("quorate_disk_log_bytes", status.log_bytes);
    gauge("quorate_disk_image_bytes", status.image_bytes);
    gauge("quorate_disk_snapshot_bytes", status.snapshot_bytes);
}

/// What Linux says about the process; elsewhere these figures are absent.
fn record_process() {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for (field, name, scale) in [
        ("VmRSS:", "process_resident_memory_bytes", 1024.0),
        ("VmSize:", "process_virtual_memory_bytes", 1024.0),
        ("Threads:", "process_threads", 1.0),
    ] {
        if let Some(value) = field_of(&status, field) {
            metrics::gauge!(name).set(value * scale);
        }
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        metrics::gauge!("process_open_fds")
            .set(f64::from(u32::try_from(files.count()).unwrap_or(u32::MAX)));
    }
    // The 14th and 15th fields, counted from behind the name, which may hold spaces. The kernel
    // reports them in hundredths of a second to every process.
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    metrics::counter!("process_cpu_seconds_total").absolute(ticks / 100);
}

/// The number behind a name in `/proc/self/status`.
fn field_of(status: &str, field: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_the_kernels_text() {
        let status = "Name:\tquorate\nVmSize:\t  123456 kB\nVmRSS:\t    4321 kB\nThreads:\t7\n";
        assert_eq!(field_of(status, "VmRSS:"), Some(4321.0));
        assert_eq!(field_of(status, "Threads:"), Some(7.0));
        assert_eq!(field_of(status, "VmSwap:"), None);
    }
}
