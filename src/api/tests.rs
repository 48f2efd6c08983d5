//! The services over real connections to a real node of one, and what needs no node: limits of every
//! field, conversions, deadlines.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use futures::stream::{self, Stream, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::Code;
use tonic::transport::Channel;

use super::stream::{Packed, Pipeline};
use super::*;
use crate::limits::{self, STREAM_CALLS_IN_FLIGHT, STREAM_FRAME_CALLS};
use crate::listeners::tests::free_address;
use crate::options::{Config, Durability, Listen, Log, LogFormat, Timing, cluster_id};
use crate::proto::v1::cluster_client::ClusterClient;
use crate::proto::v1::config_client::ConfigClient;
use crate::proto::v1::registry_client::RegistryClient;
use crate::proto::v1::sessions_client::SessionsClient;
use crate::proto::v1::stream_answer::Answer;
use crate::proto::v1::stream_call::Call;
use crate::proto::v1::watch_event::Record;
use crate::proto::v1::watch_selector::What;
use crate::proto::v1::watches_client::WatchesClient;
use crate::proto::v1::{self, StreamCall, StreamRequest};
use crate::server::Server;
use crate::state::{
    Claim, Command, Endpoints, Holder, InstanceName, Leaving, LockName, Op, Pairs, Reply,
};

const REGISTRY: &str = "quorate.v1.Registry";
const SESSIONS: &str = "quorate.v1.Sessions";
const CLUSTER: &str = "quorate.v1.Cluster";
const WATCHES: &str = "quorate.v1.Watches";

/// A node that serves, in its own directory.
struct TestNode {
    server: Server,
    config: Config,
    channel: Channel,
    dir: tempfile::TempDir,
}

fn config(dir: &tempfile::TempDir, members: &[(u64, String)], peer: SocketAddr) -> Config {
    let listen = Listen { client: free_address(), peer, http: free_address() };
    Config {
        id: 1,
        data_dir: dir.path().to_owned(),
        cluster_id: Some(cluster_id(members, "test")),
        initial_members: members.to_vec(),
        join: None,
        listen,
        advertise_client: listen.client.to_string(),
        advertise_peer: peer.to_string(),
        timing: Timing { heartbeat_ms: 20, election_min_ms: 60, election_max_ms: 120 },
        snapshot_entries: limits::SNAPSHOT_ENTRIES,
        snapshot_keep_entries: limits::SNAPSHOT_KEEP_ENTRIES,
        digest_entries: limits::DIGEST_ENTRIES,
        webhook_allow: Vec::new(),
        participant_allow: Vec::new(),
        health_check_allow: Default::default(),
        worker_threads: 1,
        log: Log { filter: "warn".into(), format: LogFormat::Text },
        durability: Durability::Fdatasync,
        exit_with_parent: false,
    }
}

impl TestNode {
    /// A cluster of one.
    async fn start() -> TestNode {
        let peer = free_address();
        let node = TestNode::with_members(&[(1, peer.to_string())], peer).await;
        // A new leader takes keep-alives once it has looked at its sessions.
        let unknown = || node.api().node.keep_alive(u64::MAX, DEFAULT_CALL_TIMEOUT);
        while unknown().await != Err(Error::SessionExpired { session: u64::MAX }) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        node
    }

    /// One of three, the others of which are down: nothing can be decided.
    async fn lonely() -> TestNode {
        let peer = free_address();
        let others = [(2, free_address().to_string()), (3, free_address().to_string())];
        let members = [&[(1, peer.to_string())][..], &others].concat();
        TestNode::with_members(&members, peer).await
    }

    async fn with_members(members: &[(u64, String)], peer: SocketAddr) -> TestNode {
        let dir = tempfile::tempdir().unwrap();
        let config = config(&dir, members, peer);
        let server = Server::start(&config).await.unwrap();
        let channel = connect(&config).await;
        TestNode { server, config, channel, dir }
    }

    fn api(&self) -> &Api {
        self.server.api()
    }

    fn registry(&self) -> RegistryClient<Channel> {
        RegistryClient::new(self.channel.clone())
    }

    fn watches(&self) -> WatchesClient<Channel> {
        WatchesClient::new(self.channel.clone())
    }

    fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel.clone())
    }

    fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    /// One GET: status line and body.
    async fn http(&self, path: &str) -> (String, String) {
        let mut stream = tokio::net::TcpStream::connect(self.config.listen.http).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    }
}

async fn connect(config: &Config) -> Channel {
    let address = format!("http://{}", config.listen.client);
    Channel::from_shared(address).unwrap().connect().await.unwrap()
}

fn instance(id: &str) -> v1::Instance {
    v1::Instance {
        service: "web".into(),
        id: id.into(),
        endpoints: vec![v1::Endpoint { name: String::new(), host: "10.0.0.1".into(), port: 80 }],
        ..v1::Instance::default()
    }
}

fn register(id: &str) -> v1::RegisterRequest {
    v1::RegisterRequest { instance: Some(instance(id)), request_id: None }
}

fn get(id: &str) -> v1::GetInstanceRequest {
    v1::GetInstanceRequest { service: "web".into(), id: id.into(), ..Default::default() }
}

fn list() -> v1::ListInstancesRequest {
    v1::ListInstancesRequest { service: "web".into(), ..Default::default() }
}

fn watch(after_revision: u64) -> v1::WatchRequest {
    v1::WatchRequest { service: "web".into(), after_revision, ..Default::default() }
}

fn http(path: &str, status_min: u32) -> v1::HealthCheck {
    let probe = v1::HttpProbe { path: path.into(), status_min, ..Default::default() };
    let probe = Some(v1::health_check::Probe::Http(probe));
    v1::HealthCheck { probe, ..Default::default() }
}

/// What is left out of a check is filled in, and the answer says what the node would not check: this one
/// checks nothing anywhere.
#[tokio::test]
async fn a_health_check_comes_back_whole() {
    let node = TestNode::start().await;
    let mut registry = node.registry();
    registry.register(register("1")).await.unwrap();
    let open = v1::OpenSessionRequest::default();
    let session = node.sessions().open(open).await.unwrap().into_inner().session;
    let mut ephemeral = register("2");
    ephemeral.instance.as_mut().unwrap().session = session;
    registry.register(ephemeral).await.unwrap();
    let put = async |registry: &mut RegistryClient<Channel>, check: v1::HealthCheck| {
        let health_check = Some(Box::new(check));
        let service = v1::Service { name: "web".into(), health_check, ..Default::default() };
        let put = v1::PutServiceRequest { service: Some(service), ..Default::default() };
        registry.put_service(put).await.unwrap();
        let name = v1::GetServiceRequest { name: "web".into(), ..Default::default() };
        registry.get_service(name).await.unwrap().into_inner().service.unwrap()
    };
    let service = put(&mut registry, http("", 300)).await;
    let check = service.health_check.unwrap();
    let expected =
        v1::HttpProbe { path: "/".into(), host: String::new(), status_min: 300, status_max: 300 };
    assert_eq!(check.probe, Some(v1::health_check::Probe::Http(expected)));
    assert_eq!((check.interval_ms, check.timeout_ms), (10_000, 2_000));
    assert_eq!((check.failures, check.successes), (3, 2));
    assert_eq!(service.unchecked_instances, 1);
    assert!(
        service.unchecked_reason.starts_with("1: --health-check-allow"),
        "{}",
        service.unchecked_reason
    );
    let listed = registry.list_instances(list()).await.unwrap().into_inner().service.unwrap();
    assert_eq!(listed.unchecked_instances, 1);
    let services = registry.list_services(v1::ListServicesRequest::default()).await.unwrap();
    assert_eq!(services.into_inner().services[0].unchecked_instances, 0, "it is not asked there");

    let short = v1::HealthCheck { interval_ms: 1_000, endpoint: "none".into(), ..http("/", 0) };
    let service = put(&mut registry, short).await;
    assert_eq!(service.unchecked_reason, "1: it has no endpoint \"none\"");
    let check = service.health_check.unwrap();
    let Some(v1::health_check::Probe::Http(probe)) = check.probe else { panic!("{check:?}") };
    assert_eq!((probe.status_min, probe.status_max), (200, 299));
    assert_eq!((check.interval_ms, check.timeout_ms), (1_000, 1_000));
    node.server.stop().await;
}

/// Answers of discovery are kept for whoever asks the same: each change shows at once, to every filter, with the
/// header of its own time.
#[tokio::test]
async fn discovery_never_answers_with_what_was() {
    let node = TestNode::start().await;
    let mut registry = node.registry();
    let filters = [
        v1::InstanceFilter::default(),
        v1::InstanceFilter { healthy_only: true, ..Default::default() },
        v1::InstanceFilter { zone: "z1".into(), ..Default::default() },
    ];
    let mut last = 0;
    let mut look = async |expected: [usize; 3]| {
        for _ in 0..2 {
            for (filter, expected) in filters.iter().zip(expected) {
                let request = v1::ListInstancesRequest { filter: Some(filter.clone()), ..list() };
                let answer = node.registry().list_instances(request.clone()).await.unwrap();
                let answer = answer.into_inner();
                let header = answer.header.unwrap();
                assert_eq!(header.consistency(), Consistency::Linearizable);
                assert_eq!((header.node_id, answer.instances.len()), (1, expected), "{filter:?}");
                let revision = node.api().node.read(crate::state::State::revision);
                assert_eq!(header.revision, revision);
                assert!(last <= header.revision);
                last = header.revision;
                // The same as whoever encodes for one caller.
                let apart = node.api().read(Request::new(request)).await.unwrap().into_inner();
                assert_eq!(answer, apart);
            }
        }
    };
    look([0, 0, 0]).await;
    registry.register(register("1")).await.unwrap();
    look([1, 1, 0]).await;
    let mut zoned = register("2");
    zoned.instance.as_mut().unwrap().zone = "z1".into();
    registry.register(zoned).await.unwrap();
    look([2, 2, 1]).await;
    let drains = v1::UpdateInstanceRequest {
        service: "web".into(),
        id: "2".into(),
        admin: v1::Admin::Draining.into(),
        ..Default::default()
    };
    registry.update_instance(drains).await.unwrap();
    look([2, 1, 1]).await;
    // Settings are part of the answer, and decide what it holds.
    for (protect_threshold_percent, expected) in [(90, [2, 2, 1]), (10, [2, 1, 1])] {
        let service =
            v1::Service { name: "web".into(), protect_threshold_percent, ..Default::default() };
        let put = v1::PutServiceRequest { service: Some(service), ..Default::default() };
        registry.put_service(put).await.unwrap();
        look(expected).await;
    }
    for id in ["1", "2"] {
        let gone =
            v1::DeregisterRequest { service: "web".into(), id: id.into(), ..Default::default() };
        registry.deregister(gone).await.unwrap();
    }
    look([0, 0, 0]).await;
    node.server.stop().await;
}

#[tokio::test]
async fn a_service_is_registered_discovered_changed_and_removed() {
    let node = TestNode::start().await;
    let mut registry = node.registry();
    let created = registry.register(register("1")).await.unwrap().into_inner();
    let header = created.header.unwrap();
    assert_eq!((created.created, created.mod_revision), (true, header.revision));
    assert_eq!((header.node_id, header.duplicate, header.consistency), (1, false, 0));
    let again = registry.register(register("1")).await.unwrap().into_inner();
    assert_eq!((again.created, again.mod_revision), (false, created.mod_revision));

    // What was left out got its default, and the answer says how fresh it is.
    let got = registry.get_instance(get("1")).await.unwrap().into_inner();
    let found = got.instance.unwrap();
    assert_eq!((&*found.namespace, found.weight), ("default", Some(1)));
    assert_eq!((found.health(), found.admin()), (v1::Health::Passing, v1::Admin::Enabled));
    let header = got.header.unwrap();
    assert_eq!(header.consistency(), Consistency::Linearizable);
    assert_eq!(header.revision, created.mod_revision);
    let stale = v1::GetInstanceRequest { consistency: Consistency::Stale.into(), ..get("1") };
    let stale = registry.get_instance(stale).await.unwrap().into_inner();
    assert_eq!(stale.header.unwrap().consistency(), Consistency::Stale);

    let change = v1::UpdateInstanceRequest {
        service: "web".into(),
        id: "1".into(),
        admin: v1::Admin::Draining.into(),
        weight: Some(7),
        metadata: BTreeMap::from([("rack".into(), "b".into())]),
        replace_metadata: true,
        ..Default::default()
    };
    let changed = registry.update_instance(change).await.unwrap().into_inner().instance.unwrap();
    assert_eq!((changed.admin(), changed.weight), (v1::Admin::Draining, Some(7)));
    assert_eq!(changed.metadata["rack"], "b");
    let healthy = v1::InstanceFilter { healthy_only: true, ..Default::default() };
    let filtered = v1::ListInstancesRequest { filter: Some(healthy), ..list() };
    let filtered = registry.list_instances(filtered).await.unwrap().into_inner();
    assert!(filtered.instances.is_empty(), "it drains");
    let all = registry.list_instances(list()).await.unwrap().into_inner();
    assert_eq!((all.instances, all.protected), (vec![changed], false));
    assert_eq!(all.service.unwrap().instances, 1);

    let settings = v1::Service {
        name: "web".into(),
        policy: "ring_hash".into(),
        policy_parameters: BTreeMap::from([("points".into(), "100".into())]),
        ..Default::default()
    };
    let put = v1::PutServiceRequest { service: Some(settings), ..Default::default() };
    assert!(registry.put_service(put).await.unwrap().into_inner().created);
    let name = v1::GetServiceRequest { name: "web".into(), ..Default::default() };
    let service = registry.get_service(name).await.unwrap().into_inner().service.unwrap();
    assert_eq!((&*service.policy, service.deregister_after_ms), ("ring_hash", Some(30_000)));
    let services = registry.list_services(v1::ListServicesRequest::default()).await.unwrap();
    assert_eq!(services.into_inner().services, [service]);

    let delete = v1::DeleteServiceRequest { name: "web".into(), ..Default::default() };
    let refused = registry.delete_service(delete.clone()).await.unwrap_err();
    assert!(matches!(Error::from(refused), Error::InUse { .. }));
    let gone =
        v1::DeregisterRequest { service: "web".into(), id: "1".into(), ..Default::default() };
    assert!(registry.deregister(gone.clone()).await.unwrap().into_inner().removed);
    assert!(!registry.deregister(gone).await.unwrap().into_inner().removed);
    assert!(registry.delete_service(delete).await.unwrap().into_inner().removed);

    let dev = v1::PutNamespaceRequest { name: "dev".into(), ..Default::default() };
    assert!(registry.put_namespace(dev).await.unwrap().into_inner().created);
    let all = registry.list_namespaces(v1::ListNamespacesRequest::default()).await.unwrap();
    let names: Vec<String> = all.into_inner().namespaces.into_iter().map(|n| n.name).collect();
    assert_eq!(names, ["default", "dev"]);
    let dev = v1::DeleteNamespaceRequest { name: "dev".into(), ..Default::default() };
    assert!(registry.delete_namespace(dev).await.unwrap().into_inner().removed);
    node.server.stop().await;
}

#[tokio::test]
async fn errors_say_what_is_wrong_and_whether_it_happened() {
    let node = TestNode::start().await;
    let mut registry = node.registry();
    let mut sessions = node.sessions();

    let missing = registry.get_instance(get("nobody")).await.unwrap_err();
    assert_eq!(missing.code(), Code::NotFound);
    let error = Error::from(missing);
    let name = "default/web/nobody".to_owned();
    assert_eq!(error, Error::NotFound { kind: "instance".into(), name });
    assert!(error.definite());

    let mut bad = register("1");
    bad.instance.as_mut().unwrap().weight = Some(70_000);
    let refused = registry.register(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let expected = Error::invalid("instance.weight", "70000", "0..=65535");
    assert_eq!(Error::from(refused), expected);

    let opened = sessions.open(v1::OpenSessionRequest::default()).await.unwrap().into_inner();
    assert_eq!(opened.ttl_ms, limits::DEFAULT_SESSION_TTL_MS);
    let alive = sessions.keep_alive(v1::KeepAliveRequest { session: opened.session }).await;
    assert_eq!(alive.unwrap().into_inner().ttl_ms, opened.ttl_ms);
    let unknown = sessions.keep_alive(v1::KeepAliveRequest { session: 99 }).await.unwrap_err();
    assert_eq!(Error::from(unknown), Error::SessionExpired { session: 99 });

    // A repetition gets the stored answer; the same number for another write is the client's defect.
    let request_id =
        Some(v1::RequestId { session: opened.session, sequence: 1, lowest_unacknowledged: 1 });
    let once = v1::RegisterRequest { request_id, ..register("1") };
    let first = registry.register(once.clone()).await.unwrap().into_inner();
    let second = registry.register(once).await.unwrap().into_inner();
    assert_eq!((first.created, second.created), (true, true));
    assert!(!first.header.unwrap().duplicate && second.header.unwrap().duplicate);
    let reused = v1::DeregisterRequest {
        service: "web".into(),
        id: "1".into(),
        request_id,
        ..Default::default()
    };
    let refused = Error::from(registry.deregister(reused).await.unwrap_err());
    let Error::Invalid { field, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(field, "request_id.sequence");

    let listed = sessions.list(v1::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.sessions.len(), 1);
    assert_eq!(listed.sessions[0].id, opened.session);
    let close = v1::CloseSessionRequest { session: opened.session, request_id: None };
    assert!(sessions.close(close).await.unwrap().into_inner().closed);
    node.server.stop().await;
}

#[tokio::test]
async fn a_caller_learns_in_time_that_nothing_can_be_decided() {
    let node = TestNode::lonely().await;
    let mut registry = node.registry();
    for millis in [1_000, 1_500] {
        let timeout = Duration::from_millis(millis);
        let started = Instant::now();
        let mut request = Request::new(register("1"));
        request.set_timeout(timeout);
        let status = registry.register(request).await.unwrap_err();
        let took = started.elapsed();
        assert!(took > timeout / 2 && took < 2 * timeout, "{took:?} for {timeout:?}");
        let error = Error::from(status.clone());
        // Our own answer, not the transport's: it says that the write did not take place.
        assert!(error.definite(), "{status:?}");
        assert!(matches!(error, Error::NoLeader { .. } | Error::Timeout { .. }), "{error:?}");
        let mut request = Request::new(get("1"));
        request.set_timeout(timeout);
        let error = Error::from(registry.get_instance(request).await.unwrap_err());
        assert!(matches!(error, Error::NoLeader { .. } | Error::Timeout { .. }), "{error:?}");
    }
    // What needs no decision is answered all the same.
    let stale = v1::ListInstancesRequest { consistency: Consistency::Stale.into(), ..list() };
    assert!(registry.list_instances(stale).await.unwrap().into_inner().instances.is_empty());
    let (line, body) = node.http("/readyz").await;
    assert_eq!(line, "HTTP/1.1 503 Service Unavailable");
    assert!(body.contains("no leader"), "{body}");
    assert_eq!(node.http("/livez").await.0, "HTTP/1.1 200 OK");
    let status = node.cluster().status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader_id, status.errors.is_empty()), (0, false));
    node.server.stop().await;
}

fn calls(calls: Vec<(u64, Call)>) -> StreamRequest {
    let calls = calls.into_iter().map(|(id, call)| StreamCall { id, call: Some(call) });
    StreamRequest { calls: calls.collect() }
}

/// Sends the messages, then nothing more; returns the answers by id and how the stream ended.
async fn exchange(
    node: &TestNode,
    requests: Vec<StreamRequest>,
) -> (BTreeMap<u64, Answer>, Result<(), Status>) {
    let mut responses = node.sessions().stream(stream::iter(requests)).await.unwrap().into_inner();
    let mut answers = BTreeMap::new();
    loop {
        match responses.message().await {
            Ok(Some(response)) => {
                assert!((1..=STREAM_FRAME_CALLS).contains(&response.answers.len()));
                for answer in response.answers {
                    let twice = answers.insert(answer.id, answer.answer.unwrap());
                    assert!(twice.is_none(), "call {} was answered twice", answer.id);
                }
            }
            Ok(None) => return (answers, Ok(())),
            Err(status) => return (answers, Err(status)),
        }
    }
}

#[tokio::test]
async fn the_stream_answers_every_kind_of_call_as_the_unary_services_do() {
    let node = TestNode::start().await;
    let (answers, end) = exchange(
        &node,
        vec![calls(vec![
            (1, Call::Register(register("1"))),
            (2, Call::OpenSession(v1::OpenSessionRequest { ttl_ms: 2_000, client: "c".into() })),
            (3, Call::OpenSession(v1::OpenSessionRequest { ttl_ms: 60_000, client: "c".into() })),
            (u64::MAX, Call::Register(v1::RegisterRequest::default())),
        ])],
    )
    .await;
    end.unwrap();
    let Answer::Register(registered) = &answers[&1] else { panic!("{answers:?}") };
    assert!(registered.created && registered.header.unwrap().node_id == 1);
    let Answer::OpenSession(opened) = &answers[&2] else { panic!("{answers:?}") };
    let session = opened.session;
    // Closed beside calls that take the first one to be open.
    let Answer::OpenSession(second) = &answers[&3] else { panic!("{answers:?}") };
    let second = second.session;
    let Answer::Error(error) = &answers[&u64::MAX] else { panic!("{answers:?}") };
    assert_eq!(
        (error.code, error.reason()),
        (Code::InvalidArgument.into(), v1::Reason::InvalidArgument)
    );
    assert_eq!((&*error.metadata["field"], &*error.metadata["definite"]), ("instance", "true"));

    let service = v1::Service { name: "web".into(), ..Default::default() };
    let (answers, end) = exchange(
        &node,
        vec![
            calls(vec![
                (1, Call::GetInstance(get("1"))),
                (2, Call::GetInstance(get("nobody"))),
                (3, Call::ListInstances(list())),
                (
                    4,
                    Call::GetService(v1::GetServiceRequest {
                        name: "web".into(),
                        ..Default::default()
                    }),
                ),
                (5, Call::KeepAlive(v1::KeepAliveRequest { session })),
                (6, Call::KeepAlive(v1::KeepAliveRequest { session: 77 })),
                (7, Call::GetInstance(v1::GetInstanceRequest { consistency: 2, ..get("1") })),
                (8, Call::GetInstance(v1::GetInstanceRequest { consistency: 9, ..get("1") })),
            ]),
            calls(vec![
                (
                    9,
                    Call::UpdateInstance(v1::UpdateInstanceRequest {
                        service: "web".into(),
                        id: "1".into(),
                        weight: Some(3),
                        ..Default::default()
                    }),
                ),
                (
                    10,
                    Call::PutService(v1::PutServiceRequest {
                        service: Some(service),
                        ..Default::default()
                    }),
                ),
                (
                    11,
                    Call::CloseSession(v1::CloseSessionRequest {
                        session: second,
                        request_id: None,
                    }),
                ),
                (
                    12,
                    Call::DeleteService(v1::DeleteServiceRequest {
                        name: "none".into(),
                        ..Default::default()
                    }),
                ),
                (
                    13,
                    Call::Deregister(v1::DeregisterRequest {
                        service: "web".into(),
                        id: "nobody".into(),
                        ..Default::default()
                    }),
                ),
            ]),
            StreamRequest { calls: vec![StreamCall { id: 14, call: None }] },
        ],
    )
    .await;
    end.unwrap();
    assert_eq!(answers.len(), 14);
    let consistency = |header: &Option<Header>| header.unwrap().consistency();
    let reason = |id: u64| match &answers[&id] {
        Answer::Error(error) => error.reason(),
        other => panic!("{other:?}"),
    };
    assert!(matches!(&answers[&1], Answer::GetInstance(got)
        if got.instance.as_ref().unwrap().id == "1"
            && consistency(&got.header) == Consistency::Linearizable));
    assert_eq!(reason(2), v1::Reason::NotFound);
    assert!(matches!(&answers[&3], Answer::ListInstances(list) if list.instances.len() == 1));
    assert!(
        matches!(&answers[&4], Answer::GetService(got) if got.service.as_ref().unwrap().instances == 1)
    );
    assert!(matches!(&answers[&5], Answer::KeepAlive(alive) if alive.ttl_ms == 2_000));
    assert_eq!(reason(6), v1::Reason::SessionExpired);
    assert!(matches!(&answers[&7], Answer::GetInstance(got)
        if consistency(&got.header) == Consistency::Stale));
    assert_eq!(reason(8), v1::Reason::InvalidArgument);
    assert!(matches!(&answers[&9], Answer::UpdateInstance(changed)
        if changed.instance.as_ref().unwrap().weight == Some(3)));
    assert!(matches!(&answers[&10], Answer::PutService(put) if put.created));
    assert!(matches!(&answers[&11], Answer::CloseSession(closed) if closed.closed));
    assert!(matches!(&answers[&12], Answer::DeleteService(deleted) if !deleted.removed));
    assert!(matches!(&answers[&13], Answer::Deregister(gone) if !gone.removed));
    assert_eq!(reason(14), v1::Reason::InvalidArgument);
    node.server.stop().await;
}

#[tokio::test]
async fn the_stream_carries_many_calls_and_later_messages_see_earlier_answers() {
    let node = TestNode::start().await;
    let count = 3 * STREAM_FRAME_CALLS as u64;
    let ids: Vec<u64> = (0..count).collect();
    let requests = |call: fn(u64) -> Call| {
        ids.chunks(STREAM_FRAME_CALLS)
            .map(|ids| calls(ids.iter().map(|id| (*id, call(*id))).collect()))
            .collect()
    };
    let (answers, end) =
        exchange(&node, requests(|id| Call::Register(register(&id.to_string())))).await;
    end.unwrap();
    assert_eq!(answers.len() as u64, count);
    assert!(answers.values().all(|a| matches!(a, Answer::Register(r) if r.created)), "{answers:?}");
    let (answers, end) =
        exchange(&node, requests(|id| Call::GetInstance(get(&id.to_string())))).await;
    end.unwrap();
    assert_eq!(answers.len() as u64, count);
    for (id, answer) in answers {
        let Answer::GetInstance(got) = answer else { panic!("{answer:?}") };
        assert_eq!(got.instance.unwrap().id, id.to_string());
    }
    node.server.stop().await;
}

#[tokio::test]
async fn a_message_of_too_many_calls_ends_the_stream_after_what_was_asked_before() {
    let node = TestNode::start().await;
    let too_many = (0..=STREAM_FRAME_CALLS as u64).map(|id| (id + 10, Call::GetInstance(get("1"))));
    for bad in [calls(too_many.collect()), StreamRequest::default()] {
        let count = bad.calls.len();
        let (answers, end) =
            exchange(&node, vec![calls(vec![(1, Call::Register(register("1")))]), bad]).await;
        assert_eq!(answers.keys().copied().collect::<Vec<_>>(), [1]);
        let allowed = format!("1..={STREAM_FRAME_CALLS} calls in one message");
        let expected = Error::invalid("calls", format!("{count} calls"), allowed);
        assert_eq!(Error::from(end.unwrap_err()), expected);
    }
    node.server.stop().await;
}

/// Messages of the greatest size for ever; counts how many were taken.
struct Endless {
    taken: Arc<AtomicUsize>,
}

impl Stream for Endless {
    type Item = Result<StreamRequest, Status>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let at = self.taken.fetch_add(1, Ordering::SeqCst) * STREAM_FRAME_CALLS;
        let calls = (at..at + STREAM_FRAME_CALLS).map(|id| StreamCall {
            id: id as u64,
            call: Some(match id % 2 {
                0 => Call::Register(register("1")),
                _ => Call::GetInstance(get("1")),
            }),
        });
        Poll::Ready(Some(Ok(StreamRequest { calls: calls.collect() })))
    }
}

/// Nothing is answered here before its deadline, so the calls pile up to their bound.
#[tokio::test]
async fn a_stream_takes_in_no_more_than_may_be_under_way_and_ends_when_the_node_stops() {
    let node = TestNode::lonely().await;
    let taken = Arc::new(AtomicUsize::new(0));
    let mut pipeline = Pipeline::new(node.api(), Endless { taken: taken.clone() });
    let nothing = tokio::time::timeout(Duration::from_millis(300), pipeline.next()).await;
    assert!(nothing.is_err(), "no answer yet");
    // Two messages are under way, a third waits for room, a fourth is not read.
    assert_eq!(STREAM_CALLS_IN_FLIGHT, 2 * STREAM_FRAME_CALLS);
    assert_eq!(taken.load(Ordering::SeqCst), 3);
    node.api().drain.begin();
    let mut answered = BTreeMap::new();
    let end = loop {
        match pipeline.next().await.expect("it ends with an error") {
            Ok(Packed(response)) => {
                for answer in
                    <v1::StreamResponse as prost::Message>::decode(response).unwrap().answers
                {
                    let Some(Answer::Error(error)) = answer.answer else { panic!("{answer:?}") };
                    let twice = answered.insert(answer.id, error);
                    assert!(twice.is_none(), "call {} was answered twice", answer.id);
                }
            }
            Err(status) => break status,
        }
    };
    // All that had begun is answered, nothing else is; the end says that the rest never began.
    assert_eq!(answered.len(), STREAM_CALLS_IN_FLIGHT);
    assert_eq!(*answered.keys().last().unwrap() as usize, STREAM_CALLS_IN_FLIGHT - 1);
    assert_eq!(Error::from(end), Error::ShuttingDown { definite: true });
    assert!(pipeline.next().await.is_none());
    assert_eq!(taken.load(Ordering::SeqCst), 3, "nothing was read after the drain began");
    node.server.stop().await;
}

/// Answers may be thousands of times as long as their calls: no more are made than the next message takes, so those that
/// come later show what was written meanwhile.
#[tokio::test]
async fn long_answers_are_made_when_there_is_room_for_them() {
    let node = TestNode::start().await;
    let mut configs = ConfigClient::new(node.channel.clone());
    let publish = |letter: u8| v1::PublishConfigRequest {
        group: "g".into(),
        key: "k".into(),
        format: v1::ConfigFormat::Text.into(),
        content: vec![letter; limits::STREAM_FRAME_BYTES],
        ..Default::default()
    };
    configs.publish(publish(b'a')).await.unwrap();
    let get = v1::GetConfigRequest { group: "g".into(), key: "k".into(), ..Default::default() };
    let calls =
        (0..64).map(|id| StreamCall { id, call: Some(Call::GetConfig(get.clone())) }).collect();
    let input = stream::iter([Ok(StreamRequest { calls })]);
    let mut pipeline = Pipeline::new(node.api(), input);
    let mut seen = Vec::new();
    while let Some(packed) = pipeline.next().await {
        let Packed(response) = packed.unwrap();
        let response = <v1::StreamResponse as prost::Message>::decode(response).unwrap();
        for answer in response.answers {
            let Some(Answer::GetConfig(found)) = answer.answer else { panic!("{answer:?}") };
            seen.push((answer.id, found.item.unwrap().release.unwrap().content[0]));
        }
        if seen.len() == 1 {
            configs.publish(publish(b'b')).await.unwrap();
        }
    }
    let expected: Vec<(u64, u8)> =
        (0..64).map(|id| (id, if id == 0 { b'a' } else { b'b' })).collect();
    assert_eq!(seen, expected);
    node.server.stop().await;
}

/// So are those to writes, which may also read; reads go on beside them.
#[tokio::test]
async fn long_answers_to_writes_are_made_when_there_is_room_for_them() {
    const CALLS: u64 = 64;
    let node = TestNode::start().await;
    let content = vec![b'a'; limits::STREAM_FRAME_BYTES / 2];
    let publish = v1::PublishConfigRequest {
        group: "g".into(),
        key: "k".into(),
        format: v1::ConfigFormat::Text.into(),
        content,
        ..Default::default()
    };
    ConfigClient::new(node.channel.clone()).publish(publish).await.unwrap();
    let get = v1::GetConfigRequest { group: "g".into(), key: "k".into(), ..Default::default() };
    let item = v1::ItemName { group: "g".into(), key: "k".into(), ..Default::default() };
    let item = v1::RecordName { record: Some(v1::record_name::Record::Config(item)) };
    let add = v1::AddCounterRequest { name: "c".into(), delta: 1, ..Default::default() };
    let steps = [v1::txn_step::Step::AddCounter(add), v1::txn_step::Step::Get(item)];
    let then: Vec<_> = steps.map(|step| v1::TxnStep { step: Some(step) }).into();
    let txn = v1::TxnRequest { then, ..Default::default() };
    let calls = (0..2 * CALLS).map(|id| StreamCall {
        id,
        call: Some(if id < CALLS { Call::Txn(txn.clone()) } else { Call::GetConfig(get.clone()) }),
    });
    let input = stream::iter([Ok(StreamRequest { calls: calls.collect() })]);
    let mut pipeline = Pipeline::new(node.api(), input);
    let mut seen = std::collections::BTreeSet::new();
    while let Some(packed) = pipeline.next().await {
        let Packed(response) = packed.unwrap();
        let made = response.len() + pipeline.made();
        assert!(made < 4 * limits::STREAM_FRAME_BYTES, "{made} bytes of answers");
        let response = <v1::StreamResponse as prost::Message>::decode(response).unwrap();
        for answer in response.answers {
            let of_txn = match answer.answer {
                Some(Answer::Txn(done)) => done.succeeded && done.results.len() == 2,
                Some(Answer::GetConfig(_)) => false,
                other => panic!("{other:?}"),
            };
            assert_eq!(of_txn, answer.id < CALLS);
            assert!(seen.insert(answer.id), "{} twice", answer.id);
        }
    }
    assert_eq!(seen.len() as u64, 2 * CALLS);
    node.server.stop().await;
}

#[tokio::test]
async fn a_watch_shows_a_snapshot_and_then_every_change() {
    let node = TestNode::start().await;
    let mut registry = node.registry();
    registry.register(register("1")).await.unwrap();
    let mut watcher = registry.watch(watch(0)).await.unwrap().into_inner();
    let first = watcher.message().await.unwrap().unwrap();
    assert_eq!(
        (first.revision, first.snapshot, first.more, first.events.len()),
        (1, true, false, 1)
    );

    registry.register(register("2")).await.unwrap();
    let gone =
        v1::DeregisterRequest { service: "web".into(), id: "1".into(), ..Default::default() };
    registry.deregister(gone).await.unwrap();
    let service = v1::Service { name: "web".into(), ..Default::default() };
    let put = v1::PutServiceRequest { service: Some(service), ..Default::default() };
    registry.put_service(put).await.unwrap();
    let mut seen = Vec::new();
    for _ in 0..3 {
        let message = watcher.message().await.unwrap().unwrap();
        assert!(!message.snapshot && !message.bookmark);
        for event in message.events {
            let name = match event.record.unwrap() {
                Record::Instance(instance) => format!("{}/{}", instance.service, instance.id),
                Record::Service(service) => {
                    // It has an instance: the counts are not told here.
                    assert_eq!((service.instances, service.healthy_instances), (0, 0));
                    service.name
                }
                other => panic!("{other:?}"),
            };
            seen.push((message.revision, name, event.deleted));
        }
    }
    let expected = [(2, "web/2", false), (3, "web/1", true), (4, "web", false)];
    assert_eq!(
        seen,
        expected.map(|(revision, name, deleted)| (revision, name.to_owned(), deleted))
    );

    // Resumed, on the path that encodes every message itself: the same, and where the node is.
    let request = Request::new(watch(2));
    let mut resumed = {
        use crate::proto::v1::registry_server::Registry as _;
        registry::Registry(node.api().clone()).watch(request).await.unwrap().into_inner()
    };
    for revision in [3, 4] {
        assert_eq!(resumed.next().await.unwrap().unwrap().revision, revision);
    }
    let mut resumed = registry.watch(watch(4)).await.unwrap().into_inner();
    let bookmark = resumed.message().await.unwrap().unwrap();
    assert_eq!((bookmark.revision, bookmark.bookmark, bookmark.events.len()), (4, true, 0));
    // From the future of this cluster: a snapshot.
    let mut lost = registry.watch(watch(1_000)).await.unwrap().into_inner();
    assert!(lost.message().await.unwrap().unwrap().snapshot);

    let bad = v1::WatchRequest { namespace: "no spaces".into(), ..Default::default() };
    let refused = Error::from(registry.watch(bad).await.unwrap_err());
    assert!(matches!(refused, Error::Invalid { field, .. } if field == "namespace"));
    let status = node.cluster().status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.watchers, 4);

    // The watchers are told when the node stops, and do not hold it up.
    let started = Instant::now();
    node.server.stop().await;
    let end = watcher.message().await.unwrap_err();
    assert_eq!(Error::from(end), Error::ShuttingDown { definite: true });
    assert!(started.elapsed() < limits::SHUTDOWN, "{:?}", started.elapsed());
}

/// A service of the namespace; the empty one is all of them.
fn selector(namespace: &str, service: &str) -> v1::WatchSelector {
    let what = What::Services(v1::ServiceSelector { service: service.into() });
    v1::WatchSelector { namespace: namespace.into(), what: Some(what) }
}

fn events(message: v1::WatchResponse) -> (u64, Vec<String>) {
    let names = message.events.into_iter().map(|event| match event.record.unwrap() {
        Record::Instance(i) => format!("{}/{}/{}", i.namespace, i.service, i.id),
        Record::Service(s) => format!("{}/{}", s.namespace, s.name),
        other => panic!("{other:?}"),
    });
    (message.revision, names.collect())
}

#[tokio::test]
async fn a_watch_of_several_selectors_shows_each_revision_in_one_message() {
    let node = TestNode::start().await;
    let mut registry = node.registry();
    let opened = node.sessions().open(v1::OpenSessionRequest::default()).await.unwrap();
    let session = opened.into_inner().session;
    let of_session = |service: &str, id: &str| v1::RegisterRequest {
        instance: Some(v1::Instance { service: service.into(), session, ..instance(id) }),
        request_id: None,
    };
    for service in ["web", "db", "other"] {
        registry.register(of_session(service, "1")).await.unwrap();
    }
    let dev = v1::PutNamespaceRequest { name: "dev".into(), ..Default::default() };
    registry.put_namespace(dev).await.unwrap();
    let settings =
        v1::Service { namespace: "dev".into(), name: "web".into(), ..Default::default() };
    let put = v1::PutServiceRequest { service: Some(settings), ..Default::default() };
    registry.put_service(put).await.unwrap();

    // The empty namespace is the default one, and one of them is asked for twice.
    let selectors = vec![
        selector("dev", ""),
        selector("", "web"),
        selector("default", "db"),
        selector("", "db"),
    ];
    let request = |after_revision| {
        let selectors = selectors.clone();
        v1::WatchRangesRequest { selectors, after_revision, client: None }
    };
    let mut watcher = node.watches().watch(request(0)).await.unwrap().into_inner();
    let first = watcher.message().await.unwrap().unwrap();
    assert!(first.snapshot && !first.more);
    let (start, names) = events(first);
    assert_eq!(names, ["dev/web", "default/db/1", "default/web/1"]);

    let close = v1::CloseSessionRequest { session, ..Default::default() };
    node.sessions().close(close).await.unwrap();
    registry.register(register("2")).await.unwrap();
    let closed = watcher.message().await.unwrap().unwrap();
    assert!(closed.events.iter().all(|event| event.deleted));
    let (revision, mut names) = events(closed);
    names.sort();
    assert_eq!((revision, names), (start + 1, vec!["default/db/1".into(), "default/web/1".into()]));
    let registered = (start + 2, vec!["default/web/2".to_owned()]);
    assert_eq!(events(watcher.message().await.unwrap().unwrap()), registered);

    // Resumed, with shared bytes and on the path that encodes every message itself.
    let mut resumed = node.watches().watch(request(start + 1)).await.unwrap().into_inner();
    assert_eq!(events(resumed.message().await.unwrap().unwrap()), registered);
    let mut resumed = {
        use crate::proto::v1::watches_server::Watches as _;
        let watches = super::watch::Watches(node.api().clone());
        watches.watch(Request::new(request(start + 1))).await.unwrap().into_inner()
    };
    assert_eq!(events(resumed.next().await.unwrap().unwrap()), registered);

    let nothing = v1::WatchSelector { namespace: String::new(), what: None };
    let many = vec![selector("", "web"); limits::WATCH_SELECTORS + 1];
    for (bad, wrong) in [
        (vec![selector("", ""), selector("", "no spaces")], "selectors[1].services.service"),
        (vec![selector("", ""), selector("", ""), selector("/", "")], "selectors[2].namespace"),
        (vec![nothing], "selectors[0].what"),
        (vec![], "selectors"),
        (many, "selectors"),
    ] {
        let request = v1::WatchRangesRequest { selectors: bad, after_revision: 0, client: None };
        let refused = Error::from(node.watches().watch(request).await.unwrap_err());
        assert!(matches!(&refused, Error::Invalid { field, .. } if field == wrong), "{refused}");
    }
    node.server.stop().await;
    let end = watcher.message().await.unwrap_err();
    assert_eq!(Error::from(end), Error::ShuttingDown { definite: true });
}

#[tokio::test]
async fn operators_see_health_figures_and_the_cluster() {
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let node = TestNode::start().await;
    node.registry().register(register("1")).await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut health = HealthClient::new(node.channel.clone());
    for service in ["", REGISTRY, SESSIONS, CLUSTER, WATCHES] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let status = health.check(request).await.unwrap().into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service:?}");
    }
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(node.channel.clone());
    let mut answers =
        reflection.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    for service in [REGISTRY, SESSIONS, CLUSTER, WATCHES] {
        assert!(names.iter().any(|name| name == service), "{names:?}");
    }

    assert_eq!(node.http("/livez").await.0, "HTTP/1.1 200 OK");
    assert_eq!(node.http("/readyz").await, ("HTTP/1.1 200 OK".into(), "ok\n".into()));
    let (_, version) = node.http("/version").await;
    assert!(version.contains(env!("CARGO_PKG_VERSION")) && version.contains("\"node_id\":1"));
    let (_, metrics) = node.http("/metrics").await;
    for name in [
        "quorate_has_leader",
        "quorate_is_leader",
        "quorate_leader_changes_seen_total",
        "quorate_proposals_committed_total",
        "quorate_proposals_applied_total",
        "quorate_proposals_pending",
        "quorate_proposals_failed_total",
        "quorate_slow_apply_total",
        "quorate_instance_count",
        "quorate_session_count",
        "quorate_watcher_count",
        "quorate_service_count",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(&format!("\n{name} ")), "{name} is missing in {metrics}");
        assert!(metrics.contains(&format!("# HELP {name} ")), "{name} is not described");
    }
    assert!(metrics.contains("quorate_disk_wal_fsync_duration_seconds_bucket"), "{metrics}");

    let mut cluster = node.cluster();
    let status = cluster.status(v1::StatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.leader_id, status.instances, &*status.durability), (1, 1, "fdatasync"));
    assert_eq!(Some(&status.cluster_id), node.config.cluster_id.as_ref());
    assert_eq!(status.leader_client_address, node.config.advertise_client);
    let members = cluster.members(v1::MembersRequest::default()).await.unwrap().into_inner();
    assert_eq!(members.members.len(), 1);
    let member = &members.members[0];
    assert_eq!((member.id, member.leader, member.learner), (1, true, false));
    assert_eq!(member.peer_address, node.config.advertise_peer);
    let digest = cluster.digest(v1::DigestRequest {}).await.unwrap().into_inner();
    assert_eq!(digest.digest.len(), 16);
    assert!(digest.applied_index > 0 && digest.records > 0);
    let mut chunks = cluster.snapshot(v1::SnapshotRequest {}).await.unwrap().into_inner();
    let mut total = None;
    let mut bytes = 0;
    while let Some(chunk) = chunks.message().await.unwrap() {
        bytes += chunk.chunk.len() as u64;
        total.get_or_insert((chunk.total_bytes, chunk.revision));
    }
    assert_eq!(total, Some((bytes, 1)));
    for (id, peer_address, client_address, field) in [
        (0, "h:1", "", "id"),
        (u64::MAX, "h:1", "", "id"),
        (2, "nothing", "", "peer_address"),
        (2, "h:1", "h:0", "client_address"),
    ] {
        let request = v1::AddLearnerRequest {
            id,
            peer_address: peer_address.into(),
            client_address: client_address.into(),
        };
        let error = Error::from(cluster.add_learner(request).await.unwrap_err());
        assert!(matches!(&error, Error::Invalid { field: f, .. } if f == field), "{error:?}");
    }
    node.server.stop().await;
}

#[tokio::test]
async fn a_stopped_node_comes_back_with_everything() {
    let node = TestNode::start().await;
    node.registry().register(register("1")).await.unwrap();
    let TestNode { server, config, dir, .. } = node;
    server.stop().await;
    let server = Server::start(&config).await.unwrap();
    let mut registry = RegistryClient::new(connect(&config).await);
    let found = registry.get_instance(get("1")).await.unwrap().into_inner();
    assert_eq!(found.instance.unwrap().mod_revision, 1);
    // Its ports are its own while it serves, and a second node on them leaves its data alone.
    let other = tempfile::tempdir().unwrap();
    let second = Config { data_dir: other.path().to_owned(), ..config.clone() };
    let error = Server::start(&second).await.unwrap_err();
    assert_eq!(error.exit_code(), crate::options::exit::ADDRESS_IN_USE);
    assert!(error.to_string().contains(&config.listen.client.to_string()), "{error}");
    assert_eq!(std::fs::read_dir(other.path()).unwrap().count(), 0);
    server.stop().await;
    drop(dir);
}

// ---- without a node ----

/// What the node would refuse, and how.
fn refusal<W: Write>(request: W) -> Error {
    match request.command() {
        Ok(command) => Error::from(command.check().expect_err("it is out of its limits")),
        Err(error) => error,
    }
}

fn read_refusal<R: Read>(request: R) -> Error {
    request.query().err().expect("it is out of its limits")
}

#[test]
fn every_field_out_of_its_limits_is_named_with_its_value_and_what_is_allowed() {
    let long = |bytes: usize| "x".repeat(bytes + 1);
    let register = |change: &dyn Fn(&mut v1::Instance)| {
        let mut instance = instance("1");
        change(&mut instance);
        refusal(v1::RegisterRequest { instance: Some(instance), request_id: None })
    };
    let update = |change: &dyn Fn(&mut v1::UpdateInstanceRequest)| {
        let mut request = v1::UpdateInstanceRequest {
            service: "web".into(),
            id: "1".into(),
            ..Default::default()
        };
        change(&mut request);
        refusal(request)
    };
    let put = |change: &dyn Fn(&mut v1::Service)| {
        let mut service = v1::Service { name: "web".into(), ..Default::default() };
        change(&mut service);
        refusal(v1::PutServiceRequest { service: Some(service), ..Default::default() })
    };
    let get = |namespace: &str, service: &str, id: &str| {
        let (namespace, service, id) = (namespace.into(), service.into(), id.into());
        read_refusal(v1::GetInstanceRequest { namespace, service, id, consistency: 0 })
    };
    let list = |change: &dyn Fn(&mut v1::ListInstancesRequest)| {
        let mut request = list();
        change(&mut request);
        read_refusal(request)
    };
    let services = |change: &dyn Fn(&mut v1::ListServicesRequest)| {
        let mut request = v1::ListServicesRequest::default();
        change(&mut request);
        read_refusal(request)
    };
    let endpoint =
        |name: &str, host: &str, port| v1::Endpoint { name: name.into(), host: host.into(), port };
    let id = |session, sequence, lowest_unacknowledged| {
        let request_id = Some(v1::RequestId { session, sequence, lowest_unacknowledged });
        refusal(v1::RegisterRequest { instance: Some(instance("1")), request_id })
    };
    let pair = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
    let many: BTreeMap<String, String> =
        (0..=limits::METADATA_PAIRS).map(|i| (i.to_string(), String::new())).collect();
    let heavy: BTreeMap<String, String> =
        (0..20).map(|i| (i.to_string(), "v".repeat(1_000))).collect();
    let names = "1..=128 bytes of [A-Za-z0-9._:/-], starting with a letter or digit";
    let open = |ttl_ms, client: String| refusal(v1::OpenSessionRequest { ttl_ms, client });

    let table: Vec<(Error, &str, &str, &str)> = vec![
        (refusal(v1::RegisterRequest::default()), "instance", "", "an instance"),
        (register(&|i| i.namespace = "a b".into()), "instance.namespace", "a b", names),
        (register(&|i| i.service = String::new()), "instance.service", "", names),
        (register(&|i| i.id = "-1".into()), "instance.id", "-1", names),
        (register(&|i| i.endpoints.clear()), "instance.endpoints", "0 endpoints", "1..=16"),
        (
            register(&|i| {
                i.endpoints = (0..17).map(|n| endpoint(&n.to_string(), "h", 1)).collect()
            }),
            "instance.endpoints",
            "17 endpoints",
            "1..=16",
        ),
        (
            register(&|i| i.endpoints = vec![endpoint("a", "h", 1), endpoint("a", "h", 2)]),
            "instance.endpoints[1].name",
            "a",
            "no other",
        ),
        (
            register(&|i| i.endpoints[0].name = long(128)),
            "instance.endpoints[0].name",
            "xxx",
            "at most 128",
        ),
        (
            register(&|i| i.endpoints[0].host = String::new()),
            "instance.endpoints[0].host",
            "",
            "1..=253",
        ),
        (
            register(&|i| i.endpoints[0].host = "h:80".repeat(70)),
            "instance.endpoints[0].host",
            "h:80",
            "1..=253",
        ),
        (register(&|i| i.endpoints[0].port = 0), "instance.endpoints[0].port", "0", "1..=65535"),
        (
            register(&|i| i.endpoints[0].port = 65_536),
            "instance.endpoints[0].port",
            "65536",
            "1..=65535",
        ),
        (register(&|i| i.weight = Some(65_536)), "instance.weight", "65536", "0..=65535"),
        (register(&|i| i.zone = long(64)), "instance.zone", "xxx", "at most 64 bytes"),
        (register(&|i| i.metadata = pair("", "v")), "instance.metadata key", "", "1..=128 bytes"),
        (
            register(&|i| i.metadata = pair("k", &long(1_024))),
            "instance.metadata[\"k\"]",
            "xxx",
            "at most 1024",
        ),
        (
            register(&|i| i.metadata = many.clone()),
            "instance.metadata",
            "65 pairs",
            "at most 64 pairs",
        ),
        (
            register(&|i| i.metadata = heavy.clone()),
            "instance.metadata",
            "20030 bytes",
            "at most 16384",
        ),
        (register(&|i| i.health = 4), "instance.health", "4", "HEALTH_PASSING"),
        (register(&|i| i.admin = -1), "instance.admin", "-1", "ADMIN_ENABLED"),
        (register(&|i| i.reason = long(256)), "instance.reason", "xxx", "at most 256 bytes"),
        (register(&|i| i.hash_key = long(128)), "instance.hash_key", "xxx", "at most 128 bytes"),
        (id(5, 0, 0), "request_id.sequence", "0", "from 1"),
        (id(5, 3, 4), "request_id.lowest_unacknowledged", "4", "at most the sequence, 3"),
        (update(&|u| u.namespace = "/".into()), "namespace", "/", names),
        (update(&|u| u.service = String::new()), "service", "", names),
        (update(&|u| u.id = String::new()), "id", "", names),
        (update(&|u| u.weight = Some(65_536)), "weight", "65536", "0..=65535"),
        (update(&|u| u.health = 9), "health", "9", "HEALTH_PASSING"),
        (update(&|u| u.admin = 9), "admin", "9", "ADMIN_ENABLED"),
        (update(&|u| u.reason = long(256)), "reason", "xxx", "at most 256 bytes"),
        (update(&|u| u.metadata = pair("k", "v")), "metadata", "1 pairs", "replace_metadata"),
        (
            update(&|u| (u.metadata, u.replace_metadata) = (pair("", "v"), true)),
            "metadata key",
            "",
            "1..=128 bytes",
        ),
        (refusal(v1::DeregisterRequest::default()), "service", "", names),
        (refusal(v1::PutServiceRequest::default()), "service", "", "a service"),
        (put(&|s| s.namespace = "é".into()), "service.namespace", "é", names),
        (put(&|s| s.name = long(128)), "service.name", "xxx", names),
        (
            put(&|s| s.protect_threshold_percent = 101),
            "service.protect_threshold_percent",
            "101",
            "0..=100",
        ),
        (
            put(&|s| s.deregister_after_ms = Some(999)),
            "service.deregister_after_ms",
            "999",
            "1000..=86400000",
        ),
        (put(&|s| s.policy = long(64)), "service.policy", "xxx", "ring_hash, ketama"),
        (
            put(&|s| s.policy_parameters = pair("bound", "2")),
            "service.policy_parameters[bound]",
            "2",
            "none without a policy",
        ),
        (
            put(&|s| {
                s.policy = "random".into();
                s.policy_parameters = pair("", "");
            }),
            "service.policy_parameters",
            "",
            "zone, subset_size",
        ),
        (
            put(&|s| s.health_check = Some(Box::default())),
            "service.health_check.probe",
            "none",
            "one of tcp, http and grpc",
        ),
        (
            put(&|s| s.health_check = Some(http("ready", 0).into())),
            "service.health_check.http.path",
            "ready",
            "begins with /",
        ),
        (
            put(&|s| s.health_check = Some(http("/", 70_000).into())),
            "service.health_check.http.status_min",
            "70000",
            "100..=599",
        ),
        (
            put(&|s| {
                let timeout_ms = 1_001;
                let check = v1::HealthCheck { interval_ms: 1_000, timeout_ms, ..http("/", 0) };
                s.health_check = Some(check.into());
            }),
            "service.health_check.timeout_ms",
            "1001",
            "100..=1000",
        ),
        (put(&|s| s.metadata = many.clone()), "service.metadata", "65 pairs", "at most 64 pairs"),
        (refusal(v1::DeleteServiceRequest::default()), "name", "", names),
        (refusal(v1::PutNamespaceRequest::default()), "name", "", names),
        (
            refusal(v1::PutNamespaceRequest {
                name: "n".into(),
                description: long(256),
                ..Default::default()
            }),
            "description",
            "xxx",
            "at most 256 bytes",
        ),
        (
            refusal(v1::DeleteNamespaceRequest { name: "default".into(), ..Default::default() }),
            "name",
            "default",
            "any namespace but",
        ),
        (open(999, String::new()), "ttl_ms", "999", "1000..=3600000"),
        (open(3_600_001, String::new()), "ttl_ms", "3600001", "1000..=3600000"),
        (open(0, long(256)), "client", "xxx", "at most 256 bytes"),
        (get("a b", "web", "1"), "namespace", "a b", names),
        (get("", "", "1"), "service", "", names),
        (get("", "web", ""), "id", "", names),
        (
            read_refusal(v1::GetInstanceRequest { consistency: 3, ..super::tests::get("1") }),
            "consistency",
            "3",
            "CONSISTENCY_LINEARIZABLE",
        ),
        (list(&|l| l.service = String::new()), "service", "", names),
        (
            list(&|l| l.filter = Some(v1::InstanceFilter { zone: long(64), ..Default::default() })),
            "filter.zone",
            "xxx",
            "at most 64 bytes",
        ),
        (
            list(&|l| {
                l.filter = Some(v1::InstanceFilter { metadata: many.clone(), ..Default::default() })
            }),
            "filter.metadata",
            "65 pairs",
            "at most 64 pairs",
        ),
        (read_refusal(v1::GetServiceRequest::default()), "name", "", names),
        (services(&|s| s.namespace = "?".into()), "namespace", "?", names),
        (services(&|s| s.prefix = long(128)), "prefix", "xxx", "at most 128 bytes"),
        (services(&|s| s.after = long(128)), "after", "xxx", "at most 128 bytes"),
        (services(&|s| s.limit = 10_001), "limit", "10001", "1..=10000"),
        (services(&|s| s.consistency = -1), "consistency", "-1", "CONSISTENCY_LINEARIZABLE"),
        (
            read_refusal(v1::ListNamespacesRequest { consistency: 7 }),
            "consistency",
            "7",
            "CONSISTENCY_LINEARIZABLE",
        ),
        (
            read_refusal(v1::ListSessionsRequest { limit: 10_001, ..Default::default() }),
            "limit",
            "10001",
            "1..=10000",
        ),
        (convert::range("a b".into(), String::new()).unwrap_err(), "namespace", "a b", names),
        (convert::range(String::new(), "a b".into()).unwrap_err(), "service", "a b", names),
    ];
    for (error, field, value, allowed) in table {
        let Error::Invalid { field: f, value: v, allowed: a } = &error else {
            panic!("{error:?} for {field}")
        };
        assert_eq!(f, field, "{error}");
        assert!(v.starts_with(value) && v.len() <= 70, "{field}: {v:?} is not {value:?}");
        assert!(a.contains(allowed), "{field}: {a:?} does not say {allowed:?}");
    }
}

#[test]
fn what_a_request_leaves_out_gets_its_default() {
    let Op::Register(registration) = register("1").command().unwrap().op else { panic!() };
    let name = InstanceName { namespace: "default".into(), service: "web".into(), id: "1".into() };
    assert_eq!((registration.name, registration.weight), (name, limits::DEFAULT_WEIGHT));
    assert_eq!(registration.session, None);
    let zero = v1::Instance { weight: Some(0), session: 9, ..instance("1") };
    let zero = v1::RegisterRequest { instance: Some(zero), request_id: None };
    let Op::Register(registration) = zero.command().unwrap().op else { panic!() };
    assert_eq!((registration.weight, registration.session), (0, Some(9)));

    let patch = v1::UpdateInstanceRequest::default().command().unwrap();
    let Op::UpdateInstance(patch) = patch.op else { panic!() };
    assert_eq!((patch.admin, patch.health, patch.metadata), (None, None, None));
    let emptied = v1::UpdateInstanceRequest { replace_metadata: true, ..Default::default() };
    let Op::UpdateInstance(patch) = emptied.command().unwrap().op else { panic!() };
    assert_eq!(patch.metadata, Some(Pairs::default()), "replaced by nothing");

    let open = v1::OpenSessionRequest::default().command().unwrap();
    let expected =
        Op::OpenSession { ttl_ms: limits::DEFAULT_SESSION_TTL_MS, client: String::new() };
    assert_eq!(open.op, expected);
    let unnumbered = Some(v1::RequestId { session: 0, sequence: 4, lowest_unacknowledged: 4 });
    let unnumbered = v1::RegisterRequest { request_id: unnumbered, ..register("1") };
    assert_eq!(unnumbered.command().unwrap().request, None);
    let (_, (limit, after)) = v1::ListSessionsRequest::default().query().unwrap();
    assert_eq!((limit, after), (limits::DEFAULT_PAGE, 0));
}

#[test]
fn a_listing_that_fits_no_answer_is_refused_with_the_limit() {
    let heavy = Arc::new(crate::state::Instance {
        namespace: "default".into(),
        service: "web".into(),
        id: "1".into(),
        endpoints: Endpoints::default(),
        weight: 1,
        zone: "".into(),
        metadata: (0..16).map(|i| (format!("{i:02}"), "v".repeat(1_000))).collect(),
        health: crate::state::Health::Passing,
        admin: crate::state::Admin::Enabled,
        reason: "".into(),
        hash_key: "".into(),
        session: None,
        orphaned_at_ms: None,
        critical_since_ms: None,
        create_revision: 1,
        mod_revision: 1,
        created_at_ms: 1,
        modified_at_ms: 1,
    });
    let found = |count| crate::state::Discovery {
        instances: vec![heavy.clone(); count],
        ..Default::default()
    };
    let answer = v1::ListInstancesRequest::respond(Header::default(), found(4_000)).unwrap();
    assert_eq!(answer.instances.len(), 4_000);
    let refused = v1::ListInstancesRequest::respond(Header::default(), found(4_200)).unwrap_err();
    let Error::LimitReached { allowed, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(allowed, CLIENT_ANSWER_BYTES as u64);
}

#[test]
fn the_callers_deadline_is_kept_with_time_to_answer() {
    let timeout_of = |text: &str| {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().unwrap());
        timeout(&metadata)
    };
    assert_eq!(timeout(&MetadataMap::new()), DEFAULT_CALL_TIMEOUT);
    assert_eq!(timeout_of("1S"), Duration::from_millis(925));
    assert_eq!(timeout_of("100m"), Duration::from_millis(90));
    assert_eq!(timeout_of("5000u"), Duration::from_micros(4_500));
    assert_eq!(timeout_of("2H"), MAX_CALL_TIMEOUT - Duration::from_millis(75));
    assert_eq!(timeout_of("1M"), Duration::from_millis(59_925));
    assert_eq!(timeout_of("0n"), Duration::ZERO);
    for nonsense in ["", "S", "12", "123456789S", "-1S", "1x", "+1S"] {
        assert_eq!(parse_timeout(nonsense), None, "{nonsense:?}");
    }
}

/// A message of the stream holds thousands of calls and answers, and each takes the space of the
/// greatest kind: registrations set the measure.
#[test]
fn calls_of_the_stream_are_no_greater_than_registrations() {
    assert!(size_of::<Call>() <= size_of::<v1::RegisterRequest>() + 16, "{}", size_of::<Call>());
    let greatest = size_of::<v1::UpdateInstanceResponse>() + 80;
    assert!(size_of::<Answer>() <= greatest, "{} of {greatest}", size_of::<Answer>());
}

/// A lock, and those who ask for it by commands of their own.
struct LockOf<'a> {
    node: &'a crate::node::Node,
    name: LockName,
}

impl LockOf<'_> {
    fn of(test_node: &TestNode) -> LockOf<'_> {
        let name = LockName { namespace: "default".to_owned(), lock: "l".to_owned() };
        LockOf { node: &test_node.api().node, name }
    }

    async fn carry_out(&self, op: Op) -> Reply {
        let command = Command { request: None, op };
        self.node.propose(&command, DEFAULT_CALL_TIMEOUT).await.unwrap().result.unwrap()
    }

    async fn session(&self) -> Holder {
        let op = Op::OpenSession { ttl_ms: 60_000, client: String::new() };
        let Reply::SessionOpened { session, .. } = self.carry_out(op).await else { panic!() };
        Holder { session, name: String::new() }
    }

    async fn claim(&self, holder: &Holder) -> Reply {
        let (lock, holder) = (self.name.clone(), holder.clone());
        let claim = Claim { lock, holder, value: String::new(), wait: true };
        self.carry_out(Op::AcquireLock(Box::new(claim))).await
    }

    async fn token(&self, holder: &Holder) -> u64 {
        let Reply::LockAcquired { token } = self.claim(holder).await else { panic!() };
        token
    }

    async fn ticket(&self, holder: &Holder) -> u64 {
        let Reply::LockQueued { ticket, .. } = self.claim(holder).await else { panic!() };
        ticket
    }

    async fn release(&self, holder: &Holder) {
        let by = Leaving::Holder(holder.clone());
        self.carry_out(Op::ReleaseLock { lock: self.name.clone(), by }).await;
    }
}

/// The lock comes just when the time of a call is over: a copy of the call, sent through another node, may have
/// answered with it.
#[tokio::test]
async fn a_lock_that_comes_at_the_last_moment_is_kept() {
    let test_node = TestNode::start().await;
    let lock = LockOf::of(&test_node);
    let (first, second) = (lock.session().await, lock.session().await);
    lock.token(&first).await;
    let ticket = lock.ticket(&second).await;
    lock.release(&first).await;
    let late = Error::Timeout { definite: true };
    let give_up =
        |ticket| lock::give_up(lock.node, &lock.name, ticket, Instant::now(), late.clone());
    let kept = give_up(ticket).await.unwrap();
    assert_eq!(kept, lock.token(&second).await);

    let ticket = lock.ticket(&first).await;
    for _ in 0..2 {
        assert_eq!(give_up(ticket).await, Err(late.clone()));
    }
    test_node.server.stop().await;
}

/// A node that has not heard yet that a holder released its lock and asked for it again still knows the old request,
/// with a token that is worth nothing.
#[tokio::test]
async fn a_lock_that_was_held_before_is_not_taken_for_the_one_that_is_waited_for() {
    let test_node = TestNode::start().await;
    let lock = LockOf::of(&test_node);
    let (first, second) = (lock.session().await, lock.session().await);
    let old = lock.token(&first).await;
    // What the others have decided and this node gets to know later: `first` leaves, `second` gets the lock, `first` is in
    // line behind it.
    let ticket = lock.node.read(crate::state::State::revision) + 3;
    let (node, name, holder) = (lock.node.clone(), lock.name.clone(), first.clone());
    let waiting = crate::runtime::spawn(async move {
        lock::wait_for(&node, &name, &holder, ticket, ticket).await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    lock.release(&first).await;
    lock.token(&second).await;
    // Asked for twice it is the same request.
    for _ in 0..2 {
        assert_eq!(lock.ticket(&first).await, ticket);
    }
    lock.release(&second).await;
    let token = waiting.await.unwrap().unwrap();
    assert!(token > ticket && ticket > old, "{token}, {ticket}, {old}");
    assert_eq!(token, lock.token(&first).await);
    test_node.server.stop().await;
}

/// The line is left within the time of the call, however much of it was over when the wait began: nobody is left to do
/// it afterwards.
#[tokio::test]
async fn a_wait_for_a_lock_ends_with_the_time_of_its_call() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let test_node = TestNode::start().await;
    let lock = LockOf::of(&test_node);
    let (first, second) = (lock.session().await, lock.session().await);
    lock.token(&first).await;
    // Nothing is applied while somebody reads.
    let (node, (began, begun)) = (lock.node.clone(), std::sync::mpsc::channel());
    let reader = std::thread::spawn(move || {
        node.read(|_| {
            began.send(()).unwrap();
            std::thread::park_timeout(TIMEOUT / 2);
        });
    });
    begun.recv().unwrap();
    let request = v1::AcquireLockRequest {
        lock: "l".to_owned(),
        session: second.session,
        wait_ms: u64::MAX,
        ..Default::default()
    };
    let asked = Instant::now();
    let late = lock::acquire(lock.node, request, TIMEOUT).await;
    assert_eq!(late, Err(Error::Timeout { definite: true }));
    let took = asked.elapsed();
    assert!(took < TIMEOUT * 5 / 4, "{took:?}");
    assert_eq!(lock.node.read(|state| state.lock("default", "l").count()), 1);
    reader.join().unwrap();
    test_node.server.stop().await;
}
