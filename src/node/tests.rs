//! Membership changes that break off half-way, nodes that are not who they say, webhooks that do not answer and checks of
//! contents that take long, on real nodes of one process.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::limits;
use crate::listeners::tests::free_address;
use crate::options::{self, Durability, Listen, LogFormat, Timing, cluster_id};
use crate::raft::transport::hello;
use crate::server::Server;
use crate::state::{
    Addition, AlarmMeasure, AlarmName, AlarmRule, AlarmSide, Content, CounterName, Format,
    ItemName, Op, Pairs, Publication,
};

const TIMEOUT: Duration = Duration::from_secs(20);

/// A node in a directory of its own: the only voter of its cluster, or one that waits to be added.
struct TestNode {
    server: Server,
    peer: String,
    _dir: tempfile::TempDir,
}

impl TestNode {
    async fn start(id: u64, join: Option<&TestNode>) -> TestNode {
        TestNode::start_at(free_address(), id, join, Vec::new()).await
    }

    async fn start_at(
        peer: SocketAddr,
        id: u64,
        join: Option<&TestNode>,
        webhook_allow: Vec<String>,
    ) -> TestNode {
        let dir = tempfile::tempdir().unwrap();
        let [client, http] = [(); 2].map(|()| free_address());
        let members = vec![(id, peer.to_string())];
        let config = options::Config {
            id,
            data_dir: dir.path().to_owned(),
            cluster_id: join.is_none().then(|| cluster_id(&members, "test")),
            initial_members: if join.is_none() { members } else { Vec::new() },
            join: join.map(|node| node.peer.clone()),
            listen: Listen { client, peer, http },
            advertise_client: client.to_string(),
            advertise_peer: peer.to_string(),
            timing: Timing { heartbeat_ms: 20, election_min_ms: 60, election_max_ms: 120 },
            snapshot_entries: limits::SNAPSHOT_ENTRIES,
            snapshot_keep_entries: limits::SNAPSHOT_KEEP_ENTRIES,
            digest_entries: limits::DIGEST_ENTRIES,
            webhook_allow,
            participant_allow: Vec::new(),
            health_check_allow: Default::default(),
            worker_threads: 1,
            log: options::Log { filter: "warn".into(), format: LogFormat::Text },
            durability: Durability::Fdatasync,
            exit_with_parent: false,
        };
        let server = Server::start(&config).await.unwrap();
        let node = TestNode { server, peer: peer.to_string(), _dir: dir };
        if join.is_none() {
            node.node().barrier(Consistency::Linearizable, TIMEOUT).await.unwrap();
        }
        node
    }

    fn node(&self) -> &Node {
        &self.server.api().node
    }

    /// As a leader that stops after this.
    async fn note(&self, op: Op) {
        let outcome = self.node().propose_here(&Command { request: None, op }, TIMEOUT).await;
        outcome.unwrap().result.unwrap();
    }

    async fn add(&self, id: u64, peer_address: &str) -> Result<Vec<u64>, Error> {
        let (peer_address, client_address) = (peer_address.to_owned(), "127.0.0.1:1".to_owned());
        let member = Member { peer_address, client_address };
        self.node().add_learner(id, member, TIMEOUT).await.map(numbers)
    }

    async fn remove(&self, id: u64) -> Result<Vec<u64>, Error> {
        self.node().remove(id, TIMEOUT).await.map(numbers)
    }

    /// Store and removal of a node, as they are noted.
    fn noted(&self, id: u64) -> Option<(Option<u128>, bool)> {
        let noted = self.node().read(|state| state.member(id).cloned());
        noted.map(|member| (member.store, member.removed))
    }

    async fn until_noted(&self, id: u64) -> u128 {
        loop {
            if let Some((Some(store), false)) = self.noted(id) {
                return store;
            }
            runtime::sleep(AGAIN).await;
        }
    }
}

fn numbers(members: Vec<MemberStatus>) -> Vec<u64> {
    members.into_iter().map(|member| member.id).collect()
}

fn refused<T: Debug>(result: Result<T, Error>, field: &str, value: &str, allowed: &str) {
    match result {
        Err(Error::Invalid { field: f, value: v, allowed: a }) => {
            assert_eq!((&*f, &*v), (field, value));
            assert!(a.contains(allowed), "{a}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_removal_that_broke_off_is_finished_by_repeating_it() {
    let one = TestNode::start(1, None).await;
    let nobody = free_address().to_string();
    assert_eq!(one.add(9, &nobody).await.unwrap(), [1, 9]);
    assert_eq!(one.noted(9), Some((None, false)), "nobody answered there");

    one.note(Op::RetireMember { node: 9 }).await;
    assert_eq!(numbers(one.node().members()), [1, 9], "it broke off here");
    refused(one.add(9, &nobody).await, "id", "9", "node 9 was removed");
    refused(one.node().promote(9, TIMEOUT).await, "id", "9", "node 9 was removed");
    for _ in 0..2 {
        assert_eq!(one.remove(9).await.unwrap(), [1]);
        assert_eq!(one.noted(9), Some((None, true)));
    }
    refused(one.add(9, &nobody).await, "id", "9", "node 9 was removed");
    let never = one.remove(8).await.unwrap_err();
    assert_eq!(never, Error::NotFound { kind: "member".into(), name: "8".into() });
    assert_eq!(one.noted(8), None);
    one.server.stop().await;
}

#[tokio::test]
async fn an_addition_that_broke_off_is_finished_or_given_up() {
    let one = TestNode::start(1, None).await;
    let nobody = free_address().to_string();
    for id in [8, 9] {
        one.note(Op::AdmitMember { node: id, store: None }).await;
    }
    assert_eq!(one.add(9, &nobody).await.unwrap(), [1, 9]);
    let again = one.add(9, &nobody).await.unwrap_err();
    assert_eq!(again, Error::Membership { why: "node 9 is a member already".into() });
    assert_eq!(one.remove(8).await.unwrap(), [1, 9]);
    refused(one.add(8, &nobody).await, "id", "8", "node 8 was removed");
    one.server.stop().await;
}

#[tokio::test]
async fn a_number_goes_with_its_data_directory() {
    let one = TestNode::start(1, None).await;
    let own = one.until_noted(1).await;
    let nine = TestNode::start(9, Some(&one)).await;

    let other = one.add(7, &nine.peer).await.unwrap_err();
    let why = format!("{}: node 7 was meant, node 9 answers", nine.peer);
    assert_eq!(other, Error::Membership { why });
    assert_eq!(one.noted(7), None);

    // Its number was given to a node with another directory, whose addition broke off.
    one.note(Op::AdmitMember { node: 9, store: Some(5) }).await;
    let answer = hello(None, &nine.peer).await.unwrap().identity.unwrap();
    let allowed = "00000000000000000000000000000005, the data directory that node 9 has had";
    refused(one.add(9, &nine.peer).await, "store", &answer.store_id, allowed);
    assert_eq!(numbers(one.node().members()), [1]);
    nine.server.stop().await;

    // A node that answers is noted when it is added.
    let ten = TestNode::start(10, Some(&one)).await;
    assert_eq!(one.add(10, &ten.peer).await.unwrap(), [1, 10]);
    let answer = hello(None, &ten.peer).await.unwrap().identity.unwrap();
    assert_eq!(format!("{:032x}", one.until_noted(10).await), answer.store_id);

    // What is noted holds for nodes that have not met it: a wiped node 9 learns that it is one.
    while ten.noted(9) != Some((Some(5), false)) {
        runtime::sleep(AGAIN).await;
    }
    let identity = crate::raft::transport::Identity {
        cluster_id: one.node().0.config.cluster_id.clone(),
        node_id: 9,
        store_id: crate::store::data_dir::StoreId(6),
        version: String::new(),
        book: Arc::new(crate::store::peers::MemoryPeers::default()),
    };
    let known = hello(Some(&identity), &ten.peer).await.unwrap().known_store_id;
    assert_eq!(known, format!("{:032x}", 5));
    assert_eq!(one.noted(1), Some((Some(own), false)));
    ten.server.stop().await;
    one.server.stop().await;
}

#[tokio::test]
async fn a_member_that_is_started_after_its_addition_is_noted_then() {
    let one = TestNode::start(1, None).await;
    let peer = free_address();
    // Its number is known, its directory is not made yet.
    assert_eq!(one.add(9, &peer.to_string()).await.unwrap(), [1, 9]);
    assert_eq!(one.noted(9), Some((None, false)));
    let nine = TestNode::start_at(peer, 9, Some(&one), Vec::new()).await;
    let store = one.until_noted(9).await;
    let answer = hello(None, &nine.peer).await.unwrap().identity.unwrap();
    assert_eq!(format!("{store:032x}"), answer.store_id);
    nine.server.stop().await;
    one.server.stop().await;
}

/// Takes connections and answers each, or none.
async fn webhook(address: &str, answers: bool) -> String {
    let listener = tokio::net::TcpListener::bind((address, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    runtime::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            if answers {
                let answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n";
                stream.read_exact(&mut [0; 64]).await.unwrap();
                stream.write_all(answer).await.unwrap();
            }
            open.push(stream);
        }
    });
    url
}

/// However many alarms wait for it, and although it is their turn first.
#[tokio::test]
async fn a_webhook_that_does_not_answer_holds_up_no_other() {
    let (dead, live) = (webhook("127.0.0.1", false).await, webhook("127.0.0.2", true).await);
    let allowed = vec![dead.clone(), live.clone()];
    let one = TestNode::start_at(free_address(), 1, None, allowed).await;
    let queue = || CounterName {
        namespace: "default".to_owned(),
        name: "queue".to_owned(),
        labels: Pairs::default(),
    };
    let alarm = |name: &str, webhook: &str| Op::PutAlarm {
        name: AlarmName { namespace: "default".to_owned(), name: name.to_owned() },
        rule: Box::new(AlarmRule {
            counter: queue().name,
            labels: Pairs::default(),
            measure: AlarmMeasure::Value,
            side: AlarmSide::Above,
            bound_milli: 0,
            for_ms: 0,
            webhook: webhook.to_owned(),
            description: String::new(),
        }),
    };
    for i in 0..2 * limits::WEBHOOKS_UNDER_WAY {
        one.note(alarm(&format!("dead-{i}"), &dead)).await;
    }
    one.note(alarm("live", &live)).await;
    let addition = Addition { name: queue(), kind: None, delta: 1, floor: None, ceil: None };
    one.note(Op::AddCounter(Box::new(addition))).await;
    let until = async |holds: fn(&crate::state::Alarm) -> bool| {
        while !one.node().read(|state| state.alarm("default", "live").is_some_and(|it| holds(it))) {
            runtime::sleep(AGAIN).await;
        }
    };
    until(|live| live.transitions == 1).await;
    let told = runtime::timeout(limits::WEBHOOK_TIMEOUT * 4 / 5, until(|live| live.posted == 1));
    told.await.expect("it is told before the others have failed");
    one.server.stop().await;
}

/// Checks of contents aside take turns: one too many waits, no longer than its caller, and each gives its turn back.
#[tokio::test]
async fn checks_of_contents_take_turns() {
    let one = TestNode::start(1, None).await;
    let [namespace, group, key] = ["default", "app", "big"].map(str::to_owned);
    let bytes = format!("\"{}\"", "x".repeat(limits::CONFIG_CHECK_BYTES)).into_bytes();
    let op = Op::PublishConfig(Box::new(Publication {
        name: ItemName { namespace, group, key },
        content: Content { format: Format::Json, bytes: bytes.into() },
        labels: None,
        keep: None,
        author: String::new(),
        comment: String::new(),
        expected_version: None,
        schema: 0,
        gray: None,
    }));
    let mut command = Command { request: None, op };
    let turns = u32::try_from(limits::CONFIG_CHECKS).unwrap();
    let all = one.node().0.schemas.checks.clone().acquire_many_owned(turns).await.unwrap();
    let late = one.node().prepare(&mut command, Duration::from_millis(50)).await;
    assert_eq!(late, Err(Error::Timeout { definite: true }));
    drop(all);
    for _ in 0..2 * turns {
        one.node().prepare(&mut command, TIMEOUT).await.unwrap();
    }
    one.server.stop().await;
}
