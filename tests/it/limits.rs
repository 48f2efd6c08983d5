//! Limits: whatever is out of them is refused with the field, its value and what is allowed, the same
//! by a unary call and on the session stream; and the stream keeps exactly-once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::stream::{self, StreamExt as _};
use quorate::client::{Call, Client, SessionOptions, StreamHandle};
use quorate::error::Error;
use quorate::proto::v1;
use quorate::proto::v1::sessions_client::SessionsClient;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::timeout;

use super::harness::{Cluster, PATIENCE, channel, eventually, instance, printed, quorate, run};

/// One call of the stream as a unary call.
async fn unary(client: &Client, call: Call) -> Result<(), Error> {
    match call {
        Call::Register(request) => client.register(request, None).await.map(drop),
        Call::Deregister(request) => client.deregister(request, None).await.map(drop),
        Call::UpdateInstance(request) => client.update_instance(request, None).await.map(drop),
        Call::GetInstance(request) => client.get_instance(request).await.map(drop),
        Call::ListInstances(request) => client.list_instances(request).await.map(drop),
        Call::PutService(request) => client.put_service(request, None).await.map(drop),
        Call::DeleteService(request) => client.delete_service(request, None).await.map(drop),
        Call::GetService(request) => client.get_service(request).await.map(drop),
        Call::OpenSession(request) => {
            let options = SessionOptions {
                ttl: Duration::from_millis(request.ttl_ms),
                client: Some(request.client),
                ..SessionOptions::default()
            };
            client.session(options).await.map(drop)
        }
        Call::PublishConfig(request) => client.publish_config(request, None).await.map(drop),
        Call::GetConfig(request) => client.get_config(request).await.map(drop),
        Call::DeleteConfig(request) => client.delete_config(request, None).await.map(drop),
        Call::RollbackConfig(request) => client.rollback_config(request, None).await.map(drop),
        Call::ReportConfig(request) => client.report_config(request, None).await.map(drop),
        Call::AddCounter(request) => client.add_counter(request, None).await.map(drop),
        Call::SetCounter(request) => client.set_counter(request, None).await.map(drop),
        Call::GetCounter(request) => client.get_counter(request).await.map(drop),
        Call::AcquireLock(request) => client.acquire_lock(request, None).await.map(drop),
        Call::ReleaseLock(request) => client.release_lock(request, None).await.map(drop),
        Call::UpdateLock(request) => client.update_lock(request, None).await.map(drop),
        Call::Txn(request) => client.txn(request, None).await.map(drop),
        Call::KeepAlive(_) | Call::CloseSession(_) => panic!("no limits to break"),
    }
}

async fn piped(stream: &StreamHandle, call: Call) -> Result<(), Error> {
    stream.call_raw(call).await.map(drop)
}

fn register(change: impl FnOnce(&mut v1::Instance)) -> Call {
    let mut instance = instance("web", "a");
    change(&mut instance);
    Call::Register(instance.into())
}

fn update(change: impl FnOnce(&mut v1::UpdateInstanceRequest)) -> Call {
    let (service, id) = ("web".into(), "a".into());
    let mut request = v1::UpdateInstanceRequest { service, id, ..Default::default() };
    change(&mut request);
    Call::UpdateInstance(request)
}

fn put(change: impl FnOnce(&mut v1::Service)) -> Call {
    let mut service = v1::Service { name: "web".into(), ..Default::default() };
    change(&mut service);
    Call::PutService(service.into())
}

fn numbered(session: u64, sequence: u64, lowest_unacknowledged: u64) -> Call {
    let request_id = Some(v1::RequestId { session, sequence, lowest_unacknowledged });
    Call::Register(v1::RegisterRequest { instance: Some(instance("web", "a")), request_id })
}

fn pairs(count: usize, value: usize) -> BTreeMap<String, String> {
    (0..count).map(|number| (format!("key-{number}"), "v".repeat(value))).collect()
}

/// Every limit of a field, with the call that breaks it: field, value and what is allowed.
fn table(session: u64) -> Vec<(Call, &'static str, String, &'static str)> {
    let long = |bytes: usize| "x".repeat(bytes);
    // Errors show the beginning of what is long.
    let shown = format!("{}…", long(64));
    let endpoint = |count: u32| -> Vec<v1::Endpoint> {
        let one = |name| v1::Endpoint { name: format!("{name}"), host: "h".into(), port: 1 };
        (0..count).map(one).collect()
    };
    let name = "1..=128 bytes of [A-Za-z0-9._:/-]";
    let text = str::to_owned;
    vec![
        (register(|i| i.id = String::new()), "instance.id", text(""), name),
        (register(|i| i.id = long(129)), "instance.id", shown.clone(), name),
        (register(|i| i.service = text("a b")), "instance.service", text("a b"), name),
        (register(|i| i.namespace = text("-a")), "instance.namespace", text("-a"), name),
        (register(|i| i.endpoints.clear()), "instance.endpoints", text("0 endpoints"), "1..=16"),
        (
            register(|i| i.endpoints = endpoint(17)),
            "instance.endpoints",
            text("17 endpoints"),
            "1..=16 endpoints",
        ),
        (
            register(|i| i.endpoints.extend(i.endpoints.clone())),
            "instance.endpoints[1].name",
            text("grpc"),
            "a name that no other endpoint",
        ),
        (
            register(|i| i.endpoints[0].name = long(129)),
            "instance.endpoints[0].name",
            shown.clone(),
            "at most 128 bytes",
        ),
        (
            register(|i| i.endpoints[0].host = text("a/b")),
            "instance.endpoints[0].host",
            text("a/b"),
            "1..=253 bytes",
        ),
        (
            register(|i| i.endpoints[0].host = long(254)),
            "instance.endpoints[0].host",
            shown.clone(),
            "1..=253 bytes",
        ),
        (
            register(|i| i.endpoints[0].port = 0),
            "instance.endpoints[0].port",
            text("0"),
            "1..=65535",
        ),
        (
            register(|i| i.endpoints[0].port = 65_536),
            "instance.endpoints[0].port",
            text("65536"),
            "1..=65535",
        ),
        (register(|i| i.weight = Some(65_536)), "instance.weight", text("65536"), "0..=65535"),
        (register(|i| i.zone = long(65)), "instance.zone", shown.clone(), "at most 64 bytes"),
        (register(|i| i.reason = long(257)), "instance.reason", shown.clone(), "at most 256 bytes"),
        (
            register(|i| i.hash_key = long(129)),
            "instance.hash_key",
            shown.clone(),
            "at most 128 bytes",
        ),
        (register(|i| i.health = 9), "instance.health", text("9"), "HEALTH_PASSING"),
        (register(|i| i.admin = -1), "instance.admin", text("-1"), "ADMIN_ENABLED"),
        (
            register(|i| i.metadata = pairs(65, 1)),
            "instance.metadata",
            text("65 pairs"),
            "at most 64 pairs",
        ),
        (
            register(|i| i.metadata = pairs(17, 1_000)),
            "instance.metadata",
            text("17092 bytes"),
            "at most 16384 bytes",
        ),
        (
            register(|i| i.metadata = pairs(1, 1_025)),
            "instance.metadata[\"key-0\"]",
            format!("{}…", "v".repeat(64)),
            "at most 1024 bytes",
        ),
        (
            register(|i| drop(i.metadata.insert(long(129), String::new()))),
            "instance.metadata key",
            shown.clone(),
            "1..=128 bytes",
        ),
        (Call::Register(v1::RegisterRequest::default()), "instance", text(""), "an instance"),
        (numbered(session, 0, 0), "request_id.sequence", text("0"), "from 1"),
        (
            numbered(session, 1, 2),
            "request_id.lowest_unacknowledged",
            text("2"),
            "at most the sequence, 1",
        ),
        (update(|u| u.id = text("!")), "id", text("!"), name),
        (update(|u| u.weight = Some(70_000)), "weight", text("70000"), "0..=65535"),
        (update(|u| u.reason = long(257)), "reason", shown.clone(), "at most 256 bytes"),
        (update(|u| u.health = 4), "health", text("4"), "HEALTH_CRITICAL"),
        (update(|u| u.admin = 4), "admin", text("4"), "ADMIN_DISABLED"),
        (
            update(|u| u.metadata = pairs(1, 1)),
            "metadata",
            text("1 pairs"),
            "none unless replace_metadata is true",
        ),
        (
            update(|u| {
                u.metadata = pairs(65, 1);
                u.replace_metadata = true;
            }),
            "metadata",
            text("65 pairs"),
            "at most 64 pairs",
        ),
        (
            Call::Deregister(v1::DeregisterRequest { service: text("web"), ..Default::default() }),
            "id",
            text(""),
            name,
        ),
        (put(|s| s.name = text("")), "service.name", text(""), name),
        (
            put(|s| s.protect_threshold_percent = 101),
            "service.protect_threshold_percent",
            text("101"),
            "0..=100",
        ),
        (
            put(|s| s.deregister_after_ms = Some(999)),
            "service.deregister_after_ms",
            text("999"),
            "1000..=86400000",
        ),
        (put(|s| s.policy = long(65)), "service.policy", shown.clone(), "ring_hash, ketama"),
        (
            put(|s| s.policy_parameters = pairs(1, 1)),
            "service.policy_parameters[key-0]",
            text("v"),
            "none without a policy",
        ),
        (
            put(|s| (s.policy, s.policy_parameters) = (text("ring_hash"), pairs(1, 1))),
            "service.policy_parameters",
            text("key-0"),
            "points, min_ring_size",
        ),
        (
            put(|s| {
                s.policy = text("ring_hash");
                s.policy_parameters = [("bound".to_owned(), "9000".to_owned())].into();
            }),
            "service.policy_parameters[bound]",
            text("9000"),
            "1.01..=100",
        ),
        (
            put(|s| s.metadata = pairs(17, 1_000)),
            "service.metadata",
            text("17092 bytes"),
            "at most 16384 bytes",
        ),
        (Call::PutService(v1::PutServiceRequest::default()), "service", text(""), "a service"),
        (
            Call::DeleteService(v1::DeleteServiceRequest { name: text("/"), ..Default::default() }),
            "name",
            text("/"),
            name,
        ),
        (
            Call::GetInstance(v1::GetInstanceRequest {
                service: text("web"),
                id: text("a"),
                consistency: 7,
                ..Default::default()
            }),
            "consistency",
            text("7"),
            "CONSISTENCY_LINEARIZABLE",
        ),
        (
            Call::ListInstances(v1::ListInstancesRequest {
                service: text("web"),
                filter: Some(v1::InstanceFilter { zone: long(65), ..Default::default() }),
                ..Default::default()
            }),
            "filter.zone",
            shown.clone(),
            "at most 64 bytes",
        ),
        (Call::GetService(v1::GetServiceRequest::default()), "name", text(""), name),
        (
            Call::OpenSession(v1::OpenSessionRequest { ttl_ms: 999, client: text("") }),
            "ttl_ms",
            text("999"),
            "1000..=3600000",
        ),
        (
            Call::OpenSession(v1::OpenSessionRequest { ttl_ms: 1_000, client: long(257) }),
            "client",
            shown,
            "at most 256 bytes",
        ),
    ]
}

/// Every limit of a field is kept by unary calls and by the stream, on leader and followers, with the
/// same error: field, value, what is allowed, and that nothing happened.
#[test]
fn each_limit_names_field_value_and_what_is_allowed() {
    run(async {
        let cluster = Cluster::three().await;
        let session = cluster.client().session(SessionOptions::default()).await.unwrap();
        // The session is all that was ever written; a node may not have applied it yet.
        let revision = session.id();
        for node in cluster.ids() {
            let client = cluster.at(node);
            let stream = client.stream();
            for (call, field, value, allowed) in table(session.id()) {
                let by_unary = unary(&client, call.clone()).await.expect_err(field);
                let by_stream = piped(&stream, call).await.expect_err(field);
                assert_eq!(by_unary, by_stream, "{field}");
                let Error::Invalid { field: named, value: shown, allowed: told } = &by_unary else {
                    panic!("{field}: {by_unary}");
                };
                assert_eq!((named.as_str(), shown), (field, &value));
                assert!(told.contains(allowed), "{field}: {told:?} instead of {allowed:?}");
                assert!(by_unary.definite());
            }
        }
        cluster.same_digest().await;
        for id in cluster.ids() {
            assert_eq!(cluster.status(id).await.header.unwrap().revision, revision, "node {id}");
        }
    });
}

/// Pages and listings have limits too, and only unary calls.
#[test]
fn pages_have_limits() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let request = v1::ListServicesRequest { limit: 10_001, ..Default::default() };
        let error = client.list_services(request).await.unwrap_err();
        let expected = Error::invalid("limit", "10001", "1..=10000");
        assert_eq!(error, expected);
        let request = v1::ListSessionsRequest { limit: 10_001, ..Default::default() };
        assert_eq!(client.list_sessions(request).await.unwrap_err(), expected);
        let long = v1::PutNamespaceRequest {
            name: "team".into(),
            description: "x".repeat(257),
            request_id: None,
        };
        let error = client.put_namespace(long, None).await.unwrap_err();
        assert!(
            matches!(&error, Error::Invalid { field, .. } if field == "description"),
            "{error}"
        );
        let delete = v1::DeleteNamespaceRequest { name: "default".into(), request_id: None };
        let error = client.delete_namespace(delete, None).await.unwrap_err();
        assert!(matches!(&error, Error::Invalid { field, .. } if field == "name"), "{error}");
        // Pages that are allowed show everything, once.
        for number in 0..25 {
            let one = instance(&format!("svc-{number:02}"), "a");
            client.register(one, None).await.unwrap();
        }
        let mut seen = Vec::new();
        loop {
            let after = seen.last().cloned().unwrap_or_default();
            let request = v1::ListServicesRequest {
                prefix: "svc-".into(),
                limit: 10,
                after,
                ..Default::default()
            };
            let page = client.list_services(request).await.unwrap();
            seen.extend(page.services.into_iter().map(|service| service.name));
            if !page.more {
                break;
            }
        }
        let expected: Vec<String> = (0..25).map(|number| format!("svc-{number:02}")).collect();
        assert_eq!(seen, expected);
    });
}

/// A session may have 1024 writes whose answers it has not acknowledged; the next one is refused and
/// changes nothing, and is taken as soon as one is acknowledged.
#[test]
fn writes_in_flight_have_a_limit() {
    run(async {
        let cluster = Cluster::three().await;
        let held = cluster.client().session(SessionOptions::default()).await.unwrap();
        let session = held.id();
        let stream = cluster.client().stream();
        let write = |sequence: u64, lowest: u64| {
            let request_id =
                Some(v1::RequestId { session, sequence, lowest_unacknowledged: lowest });
            let instance = Some(instance("web", &format!("web-{sequence}")));
            Call::Register(v1::RegisterRequest { instance, request_id })
        };
        let window = (1..=1_024).map(|sequence| write(sequence, 1)).collect();
        for outcome in stream.call_many(window).await {
            outcome.unwrap();
        }
        let refused = stream.with_timeout(Duration::from_secs(2)).call_raw(write(1_025, 1)).await;
        assert!(matches!(refused, Err(Error::TooManyInFlight { limit: 1_024 })), "{refused:?}");
        assert_eq!(cluster.instances(1, "web").await.len(), 1_024);
        stream.call_raw(write(1_025, 2)).await.unwrap();
        assert_eq!(cluster.instances(1, "web").await.len(), 1_025);
    });
}

/// An answer longer than any request may be reaches its client.
#[test]
fn a_listing_of_several_mebibytes_arrives() {
    run(async {
        let cluster = Cluster::three().await;
        let stream = cluster.client().stream();
        let calls = (0..400).map(|number| {
            let mut big = instance("big", &format!("big-{number}"));
            big.metadata = pairs(12, 1_024);
            Call::Register(big.into())
        });
        for outcome in stream.call_many(calls.collect()).await {
            outcome.unwrap();
        }
        let found = cluster.instances(2, "big").await;
        assert_eq!(found.len(), 400);
        assert!(found.values().all(|one| one.metadata == pairs(12, 1_024)));
        let request = v1::ListInstancesRequest { service: "big".into(), ..Default::default() };
        let answer = stream.call(request, None).await.unwrap();
        assert_eq!(answer.instances.len(), 400);

        // The settings of many services, in one answer.
        let calls = (0..400).map(|number| {
            let name = format!("service-{number:03}");
            let metadata = pairs(12, 1_024);
            let service = v1::Service { name, metadata, ..Default::default() };
            Call::PutService(service.into())
        });
        for outcome in stream.call_many(calls.collect()).await {
            outcome.unwrap();
        }
        let request = v1::ListServicesRequest { prefix: "service-".into(), ..Default::default() };
        let listed = cluster.at(3).list_services(request).await.unwrap();
        assert_eq!((listed.services.len(), listed.more), (400, false));
        assert!(prost::Message::encoded_len(&listed) > 4 * 1024 * 1024);

        // The command line, and a watch, which begins with all of it.
        let endpoint = ["--endpoints", &cluster.node(2).client, "--command-timeout", "30s"];
        let json = |words: &'static [&'static str]| {
            printed(endpoint.into_iter().chain(words.iter().copied()).chain(["-w", "json"]))
        };
        let got = json(&["service", "get", "big"]).await;
        assert_eq!((got.code, &*got.stderr), (0, ""));
        let got: serde_json::Value = serde_json::from_str(&got.stdout).unwrap();
        assert_eq!(got["instances"].as_array().unwrap().len(), 400);
        let listed = json(&["service", "list"]).await;
        assert_eq!((listed.code, &*listed.stderr), (0, ""));
        let listed: serde_json::Value = serde_json::from_str(&listed.stdout).unwrap();
        assert_eq!(listed["services"].as_array().unwrap().len(), 401);
        let mut watch =
            quorate(endpoint.into_iter().chain(["service", "watch", "big", "-w", "json"]));
        let mut watch = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
        let mut ids = BTreeSet::new();
        while ids.len() < 400 {
            let line = timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            match line["op"].as_str() {
                Some("snapshot") => assert_eq!(line["events"], 400),
                Some("put") => {
                    assert_eq!(line["instance"]["metadata"].as_object().unwrap().len(), 12);
                    ids.insert(line["instance"]["id"].as_str().unwrap().to_owned());
                }
                _ => panic!("{line}"),
            }
        }
    });
}

/// Many writes are under way on session streams when the leader is killed. Each is answered, applied
/// once, and shows the answer of its one application.
#[test]
fn the_stream_is_exactly_once_over_a_leader_change() {
    run(async {
        const WRITES: usize = 1_500;
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let options = SessionOptions { ttl: Duration::from_secs(120), ..SessionOptions::default() };
        let session = client.session(options).await.unwrap();
        let stream = client.stream();
        let leader = cluster.leader().await;
        let writes = stream::iter(0..WRITES).map(|number| {
            let (stream, session) = (stream.clone(), session.clone());
            tokio::spawn(async move {
                let request: v1::RegisterRequest = instance("web", &format!("web-{number}")).into();
                stream.call(request, Some(&session)).await
            })
        });
        let mut writes = writes.buffer_unordered(256);
        let mut revisions = BTreeSet::new();
        let mut killed = false;
        while let Some(answer) = timeout(PATIENCE, writes.next()).await.unwrap() {
            let answer = answer.unwrap().unwrap();
            assert!(answer.created, "applied twice: {answer:?}");
            assert_eq!(answer.mod_revision, answer.header.unwrap().revision);
            assert!(
                revisions.insert(answer.mod_revision),
                "two writes at one revision: {answer:?}"
            );
            if !killed && revisions.len() >= WRITES / 3 {
                cluster.kill(leader);
                killed = true;
            }
        }
        assert!(killed);
        assert_eq!(revisions.len(), WRITES);
        let through = cluster.leader().await;
        let found = cluster.instances(through, "web").await;
        let there: BTreeSet<u64> = found.values().map(|one| one.mod_revision).collect();
        assert_eq!(there, revisions);
        cluster.start(leader).await;
        cluster.same_digest().await;
    });
}

/// One id sent three times in one frame, and once more by a unary call: applied once, answered four
/// times alike. The same number for another kind of write is refused.
#[test]
fn one_id_many_times_in_one_frame() {
    run(async {
        let cluster = Cluster::three().await;
        let session = cluster.client().session(SessionOptions::default()).await.unwrap();
        let ticket = session.next_request_id().await.unwrap();
        let request = v1::RegisterRequest {
            instance: Some(instance("web", "a")),
            request_id: Some(ticket.request_id()),
        };
        for node in cluster.ids() {
            let mut bare = SessionsClient::new(channel(&cluster.node(node).client).await);
            let call = |id| v1::StreamCall { id, call: Some(Call::Register(request.clone())) };
            let frame = v1::StreamRequest { calls: vec![call(1), call(2), call(3)] };
            let mut answers = bare.stream(stream::iter([frame])).await.unwrap().into_inner();
            let mut got = BTreeMap::new();
            while let Some(message) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
                for answer in message.answers {
                    let Some(v1::stream_answer::Answer::Register(register)) = answer.answer else {
                        panic!("{answer:?}");
                    };
                    assert!(got.insert(answer.id, register).is_none(), "answered twice");
                }
            }
            assert_eq!(got.keys().copied().collect::<Vec<u64>>(), [1, 2, 3]);
            let fresh = got.values().filter(|one| !one.header.unwrap().duplicate).count();
            // The first node's first copy is the one that was applied.
            assert_eq!(fresh, usize::from(node == cluster.ids()[0]), "{got:?}");
            let revisions: BTreeSet<u64> =
                got.values().map(|one| one.header.unwrap().revision).collect();
            assert_eq!(revisions.len(), 1);
            assert!(got.values().all(|one| one.created));
            let unary = cluster.at(node).register(request.clone(), None).await.unwrap();
            assert!(unary.header.unwrap().duplicate);
            assert!(revisions.contains(&unary.mod_revision));
        }
        let other = v1::DeregisterRequest {
            service: "web".into(),
            id: "a".into(),
            request_id: Some(ticket.request_id()),
            ..Default::default()
        };
        let refused = cluster.client().deregister(other, None).await.unwrap_err();
        assert!(
            matches!(&refused, Error::Invalid { field, .. } if field == "request_id.sequence"),
            "{refused}"
        );
        eventually("the instance as it was registered", async || {
            let found = cluster.instances(2, "web").await;
            if found.len() == 1 { Ok(()) } else { Err(format!("{found:?}")) }
        })
        .await;
    });
}
