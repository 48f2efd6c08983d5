//! Active health checks: targets in this process that stop and come back, nodes that are killed, and
//! targets that no node may connect to.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate::client::Client;
use quorate::proto::v1;
use quorate::proto::v1::health_check::Probe;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::cli::Shell;
use super::harness::{
    Cluster, Printed, Setup, eventually, free_ports, get, get_instance, printed, run, text,
};

const LOOPBACK: &str = "127.0.0.0/8";

/// A target on a port of its own, which can be closed and opened again.
struct Target {
    port: u16,
    /// Connections so far.
    connections: Arc<AtomicU64>,
    /// It answers 200 to HTTP, or 503.
    ready: Arc<AtomicBool>,
    serving: Option<JoinHandle<()>>,
}

impl Target {
    async fn open() -> Target {
        let mut target = Target {
            // Not one that the kernel gives to somebody else while the target is closed.
            port: free_ports(1),
            connections: Arc::default(),
            ready: Arc::new(AtomicBool::new(true)),
            serving: None,
        };
        target.reopen().await;
        target
    }

    async fn reopen(&mut self) {
        let (connections, ready) = (self.connections.clone(), self.ready.clone());
        let port = self.port;
        let listener = eventually("the port of a target", async || {
            TcpListener::bind(("127.0.0.1", port)).await.map_err(|error| error.to_string())
        })
        .await;
        self.serving = Some(tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::Relaxed);
                let status = if ready.load(Ordering::Relaxed) { "200 OK" } else { "503 No" };
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    // A TCP check says nothing and is gone.
                    if stream.read(&mut request).await.is_ok_and(|count| count > 0) {
                        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                });
            }
        }));
    }

    async fn close(&mut self) {
        let serving = self.serving.take().expect("it is open");
        serving.abort();
        let _ = serving.await;
    }

    fn count(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

fn check(probe: Probe) -> v1::HealthCheck {
    let (interval_ms, failures, successes) = (1_000, 2, 1);
    v1::HealthCheck { probe: Some(probe), interval_ms, failures, successes, ..Default::default() }
}

fn tcp() -> Probe {
    Probe::Tcp(v1::TcpProbe {})
}

async fn put(client: &Client, service: &str, probe: Probe) {
    let health_check = Some(Box::new(check(probe)));
    let service = v1::Service { name: service.into(), health_check, ..Default::default() };
    client.put_service(service, None).await.unwrap();
}

async fn register(client: &Client, service: &str, id: &str, host: &str, port: u16) {
    let endpoint = v1::Endpoint { name: String::new(), host: host.into(), port: port.into() };
    let instance = v1::Instance {
        service: service.into(),
        id: id.into(),
        endpoints: vec![endpoint],
        ..Default::default()
    };
    client.register(instance, None).await.unwrap();
}

async fn until_health(
    client: &Client,
    service: &str,
    id: &str,
    health: v1::Health,
) -> v1::Instance {
    eventually(&format!("{service}/{id} is {health:?}"), async || {
        let answer = text(client.get_instance(get_instance(service, id)).await)?;
        let instance = answer.instance.unwrap();
        match instance.health() == health {
            true => Ok(instance),
            false => Err(format!("{:?}: {}", instance.health(), instance.reason)),
        }
    })
    .await
}

async fn healthy(client: &Client, service: &str) -> Vec<String> {
    let filter = v1::InstanceFilter { healthy_only: true, ..Default::default() };
    let request = v1::ListInstancesRequest {
        service: service.into(),
        filter: Some(filter),
        ..Default::default()
    };
    let answer = client.list_instances(request).await.unwrap();
    answer.instances.into_iter().map(|instance| instance.id).collect()
}

fn revision_of(status: &v1::StatusResponse) -> u64 {
    status.header.as_ref().unwrap().revision
}

async fn revision(cluster: &Cluster, id: u64) -> u64 {
    revision_of(&cluster.status(id).await)
}

/// Until each target was asked so many times more.
async fn until_asked(targets: &BTreeMap<String, Target>, times: u64) {
    let before: BTreeMap<&String, u64> = targets.iter().map(|(id, t)| (id, t.count())).collect();
    eventually("every target is asked", async || {
        let behind = targets.iter().find(|(id, target)| target.count() < before[id] + times);
        behind.map_or(Ok(()), |(id, target)| Err(format!("{id}: {} times", target.count())))
    })
    .await;
}

/// A target that stops turns its instance critical, with the reason, out of discovery; one that comes back
/// turns it passing: over TCP, over HTTP by its status, and over gRPC by what it says.
#[test]
fn targets_that_stop_and_come_back() {
    run(async {
        let cluster = Setup::default().option("--health-check-allow", LOOPBACK).start(3).await;
        let client = cluster.client();
        let mut target = Target::open().await;
        let http = Target::open().await;
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let grpc = listener.local_addr().unwrap().port();
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;

        put(&client, "tcp", tcp()).await;
        let probe = v1::HttpProbe { path: "/ready".into(), ..Default::default() };
        put(&client, "http", Probe::Http(probe)).await;
        put(&client, "grpc", Probe::Grpc(v1::GrpcProbe { service: "shop".into() })).await;
        // The other one of each service stays: it is only the fallen that is hidden.
        let stays = Target::open().await;
        register(&client, "tcp", "a", "127.0.0.1", target.port).await;
        register(&client, "tcp", "b", "localhost", stays.port).await;
        register(&client, "http", "a", "127.0.0.1", http.port).await;
        register(&client, "grpc", "a", "127.0.0.1", grpc).await;

        for round in 0..2 {
            target.close().await;
            http.ready.store(false, Ordering::Relaxed);
            reporter.set_service_status("shop", tonic_health::ServingStatus::NotServing).await;
            for (service, why) in [
                ("tcp", "connection refused"),
                ("http", "answered 503, expected 200-299"),
                ("grpc", "answered NOT_SERVING"),
            ] {
                let fallen = until_health(&client, service, "a", v1::Health::Critical).await;
                let reason = &fallen.reason;
                let node = reason.strip_prefix("health check from node ").unwrap_or_default();
                let (node, what) = node.split_once(": ").unwrap_or_default();
                assert!(["1", "2", "3"].contains(&node), "{round} {service}: {reason}");
                assert_eq!(what, why, "{round} {service}: {reason}");
                assert_ne!(fallen.critical_since_ms, 0);
            }
            assert_eq!(healthy(&client, "tcp").await, ["b"]);
            assert_eq!(healthy(&client, "http").await, [""; 0]);
            target.reopen().await;
            http.ready.store(true, Ordering::Relaxed);
            reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
            for service in ["tcp", "http", "grpc"] {
                let risen = until_health(&client, service, "a", v1::Health::Passing).await;
                assert!(risen.reason.ends_with(": passing"), "{service}: {}", risen.reason);
                assert_eq!(risen.critical_since_ms, 0);
            }
            assert_eq!(healthy(&client, "tcp").await, ["a", "b"]);
        }

        // What is set by hand stands until the check has seen the contrary.
        let patch = v1::UpdateInstanceRequest {
            service: "tcp".into(),
            id: "a".into(),
            health: v1::Health::Critical.into(),
            reason: "by hand".into(),
            ..Default::default()
        };
        client.update_instance(patch, None).await.unwrap();
        until_health(&client, "tcp", "a", v1::Health::Passing).await;

        // A node counts a verdict when it hears that it was taken: later than others see it.
        eventually("all verdicts are counted", async || {
            let mut turned = 0;
            for id in cluster.ids() {
                let (_, figures) = get(&cluster.node(id).http, "/metrics").await.unwrap();
                let figure = |name: &str| {
                    let line = figures.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_else(|| panic!("no {name}")).trim().parse::<u64>().unwrap()
                };
                turned += figure("quorate_health_transitions_total ");
                assert!(
                    figure("quorate_health_checks_total ")
                        >= figure("quorate_health_check_failures_total ")
                );
                assert_eq!(figure("quorate_health_check_unchecked "), 0);
            }
            if turned >= 13 { Ok(()) } else { Err(turned.to_string()) }
        })
        .await;
    });
}

/// While nothing changes nothing is written, whichever nodes are there: not when a follower dies, nor when
/// the leader does. Whoever is left checks everything, and sees what falls.
#[test]
fn killed_nodes_check_nothing_and_change_nothing() {
    run(async {
        let setup = Setup::default().option("--health-check-allow", LOOPBACK);
        let mut cluster = setup.start(3).await;
        let client = cluster.client();
        let mut targets = BTreeMap::new();
        put(&client, "web", tcp()).await;
        for i in 0..12 {
            let (id, target) = (format!("web-{i:02}"), Target::open().await);
            register(&client, "web", &id, "127.0.0.1", target.port).await;
            targets.insert(id, target);
        }
        until_asked(&targets, 3).await;
        // One is down all the time: it must neither come back nor be told again.
        targets.get_mut("web-00").unwrap().close().await;
        let down = until_health(&client, "web", "web-00", v1::Health::Critical).await;
        let closed = targets.remove("web-00").unwrap();

        let leader = cluster.leader().await;
        let before = cluster.status(leader).await;
        until_asked(&targets, 3).await;
        let after = cluster.status(leader).await;
        assert_eq!(
            (revision_of(&after), after.last_log_index),
            (revision_of(&before), before.last_log_index)
        );
        assert_eq!(after.term, before.term, "the leader has changed meanwhile");

        let follower = cluster.followers().await[0];
        cluster.kill(follower);
        until_asked(&targets, 4).await;
        assert_eq!(revision(&cluster, leader).await, revision_of(&before));
        cluster.start(follower).await;
        until_asked(&targets, 3).await;

        cluster.kill(leader);
        let next = cluster.leader().await;
        until_asked(&targets, 4).await;
        assert_eq!(revision(&cluster, next).await, revision_of(&before));
        let still = client.get_instance(get_instance("web", "web-00")).await.unwrap();
        assert_eq!(still.instance.unwrap(), down);

        // What falls now is seen by whoever took it over, whichever node checked it before.
        for target in targets.values_mut() {
            target.close().await;
        }
        for id in targets.keys() {
            let fallen = until_health(&client, "web", id, v1::Health::Critical).await;
            let by_the_dead = format!("health check from node {leader}:");
            assert!(!fallen.reason.starts_with(&by_the_dead), "{}", fallen.reason);
        }
        drop(closed);
        cluster.start(leader).await;
        cluster.same_digest().await;
    });
}

/// No node connects to what the list does not name, neither by address nor by a name that leads there; it
/// is told, and nothing is written.
#[test]
fn what_is_not_allowed_is_not_connected_to() {
    run(async {
        let setup = Setup::default().option("--health-check-allow", "10.0.0.0/8,localhost");
        let cluster = setup.start(3).await;
        let (client, shell) = (cluster.client(), Shell::of(&cluster));
        let target = Target::open().await;
        put(&client, "web", tcp()).await;
        register(&client, "web", "address", "127.0.0.1", target.port).await;
        register(&client, "web", "mapped", "::ffff:127.0.0.1", target.port).await;
        register(&client, "web", "name", "localhost", target.port).await;
        let before = revision(&cluster, 1).await;
        let told = async |id: u64| -> u64 {
            let errors = cluster.status(id).await.errors;
            let complaint =
                errors.iter().find_map(|e| e.strip_prefix("health checks: ")).unwrap_or("0 ");
            complaint.split(' ').next().unwrap().parse().unwrap()
        };
        eventually("every instance is told of", async || {
            let mut sum = 0;
            for id in cluster.ids() {
                sum += told(id).await;
            }
            if sum == 3 { Ok(()) } else { Err(format!("{sum} of 3")) }
        })
        .await;
        // Each has been due again.
        sleep(Duration::from_secs(2)).await;
        assert_eq!(target.count(), 0);
        assert_eq!(revision(&cluster, 1).await, before);
        for id in ["address", "mapped", "name"] {
            let instance = client.get_instance(get_instance("web", id)).await.unwrap();
            assert_eq!(instance.instance.unwrap().health(), v1::Health::Passing);
        }
        // Without resolving, two of them are known.
        let json = shell.json("service get web").await;
        assert_eq!(json["service"]["unchecked_instances"], 2, "{json}");
        let why = "address: --health-check-allow does not allow 127.0.0.1";
        assert_eq!(json["service"]["unchecked_reason"], why);
        let shown = shell.run("service check web").await;
        assert!(shown.contains(&format!("2 of its instances; {why}")), "{shown}");
        for id in cluster.ids() {
            let log = cluster.node(id).log_text();
            let count = log.matches("instances of a service are not checked").count();
            assert_eq!(count as u64, told(id).await.min(1), "each node says it once:\n{log}");
        }
    });
}

async fn service(client: &Client) -> v1::Service {
    let request = v1::GetServiceRequest { name: "web".into(), ..Default::default() };
    client.get_service(request).await.unwrap().service.unwrap()
}

/// A check is set, changed and taken away by command, beside the other settings, also while others change
/// them.
#[test]
fn checks_by_command() {
    run(async {
        let cluster = Cluster::three().await;
        let (client, shell) = (cluster.client(), Shell::of(&cluster));
        shell.fails("service check web", 1, "web").await;
        shell.fails("service check web --interval 5s", 2, "say --tcp, --http or --grpc").await;
        shell.fails("service check web --http ready", 1, "service.health_check.http.path").await;
        shell.fails("service check web --tcp --interval 1s --timeout 2s", 1, "100..=1000").await;

        let text = shell.run("service check web --http /ready --interval 30s").await;
        let line =
            "http GET /ready, expects 200-299, every 30s, timeout 2s, 3 failures to critical";
        assert!(text.contains(line), "{text}");
        shell
            .run("service put web --protect-threshold 30 --policy least_request --meta owner=ops")
            .await;
        assert_eq!(service(&client).await.health_check, None, "put replaces all settings");
        let json = shell.json("service check web --grpc shop.Cart --endpoint rpc").await;
        let expected = serde_json::json!({
            "grpc": {"service": "shop.Cart"}, "endpoint": "rpc", "interval_ms": 10_000,
            "timeout_ms": 2_000, "failures": 3, "successes": 2,
        });
        assert_eq!(json["health_check"], expected);
        assert_eq!(shell.json("service get web").await["service"]["health_check"], expected);
        let kept = service(&client).await;
        assert_eq!((kept.protect_threshold_percent, &*kept.policy), (30, "least_request"));
        assert_eq!(kept.metadata["owner"], "ops");
        // Nothing new is no change.
        let again = shell.json("service check web --endpoint rpc").await;
        assert_eq!(
            (&again["health_check"], again["revision"].as_u64()),
            (&expected, json["revision"].as_u64())
        );

        // Each changes something else, at the same time, over and over: nothing is lost.
        let one = async |words: &str| -> Printed { printed(shell.line(words)).await };
        let all = tokio::join!(
            one("service check web --interval 40s"),
            one("service check web --timeout 700ms"),
            one("service check web --failures 7"),
            one("service check web --successes 8"),
        );
        for printed in [all.0, all.1, all.2, all.3] {
            assert_eq!(printed.code, 0, "{printed:?}");
        }
        let check = service(&client).await.health_check.unwrap();
        let numbers = (check.interval_ms, check.timeout_ms, check.failures, check.successes);
        assert_eq!(numbers, (40_000, 700, 7, 8));

        assert_eq!(
            shell.json("service check web --off").await["health_check"],
            serde_json::Value::Null
        );
        assert!(shell.run("service check web").await.contains("off"));
        let kept = service(&client).await;
        assert_eq!((kept.health_check, &*kept.policy), (None, "least_request"));

        let wrong = printed([
            "serve",
            "--id",
            "1",
            "--data-dir",
            "/nowhere",
            "--initial-cluster",
            "1=127.0.0.1:1",
            "--health-check-allow",
            "10.0.0.1/8",
        ])
        .await;
        assert_eq!(wrong.code, 2, "{wrong:?}");
        let why = "health-check-allow";
        assert!(wrong.stderr.contains(why) && wrong.stderr.contains("10.0.0.0/8"), "{wrong:?}");
    });
}
