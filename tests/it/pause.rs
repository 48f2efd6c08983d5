//! A leader that is paused and deposed meanwhile believes, when it wakes, that it still leads.

use std::time::Duration;

use quorate::client::{Client, Options};
use quorate::proto::v1;
use quorate::proto::v1::sessions_client::SessionsClient;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;

use super::harness::{Cluster, PATIENCE, channel, eventually, get_instance, instance, run, text};

/// Calls of each kind that wait for the paused leader.
const CALLS: usize = 50;

/// The leader is paused beyond the election timeout; another one acknowledges a write and closes a
/// session. When the old one wakes, with reads and keep-alives waiting in its sockets, it answers each
/// read with the newest write or an error, and each keep-alive of the closed session with an error.
#[test]
fn a_leader_that_wakes_serves_no_stale_read_and_no_keep_alive() {
    run(async {
        let cluster = Cluster::three().await;
        for round in 0..3 {
            let old = cluster.leader().await;
            // One attempt per call, over connections that stand before the pause.
            let waking = patient_client(&cluster.node(old).client);
            let keeper = SessionsClient::new(channel(&cluster.node(old).client).await);
            let options = quorate::client::SessionOptions {
                ttl: Duration::from_secs(120),
                ..Default::default()
            };
            let session = cluster.client().session(options).await.unwrap();
            let before = cluster.client().register(versioned(2 * round), None).await.unwrap();
            let answer = waking.get_instance(get_instance("web", "a")).await.unwrap();
            assert_eq!(answer.instance.unwrap().mod_revision, before.mod_revision);
            // A leader that has just been elected looks at its sessions first.
            eventually("a keep-alive", async || keep_alive(&keeper, session.id()).await).await;

            cluster.pause(old);
            let new = cluster.leader_without(&[old]).await;
            let newest = cluster.at(new).register(versioned(2 * round + 1), None).await.unwrap();
            assert!(newest.mod_revision > before.mod_revision);
            let closed = cluster.at(new).close_session(session.id()).await.unwrap();
            assert!(closed.closed);

            let mut calls = JoinSet::new();
            for _ in 0..CALLS {
                let (reader, keeper, id) = (waking.clone(), keeper.clone(), session.id());
                calls.spawn(async move {
                    let answer = reader.get_instance(get_instance("web", "a")).await;
                    match answer {
                        Ok(answer) => Ok(Some(answer.instance.unwrap().mod_revision)),
                        Err(_) => Ok(None),
                    }
                });
                calls.spawn(async move {
                    match keep_alive(&keeper, id).await {
                        Ok(ttl_ms) => Err(ttl_ms),
                        Err(_) => Ok(None),
                    }
                });
            }
            // Gives the calls a chance to be in the sockets; whether they are does not change what is
            // right.
            sleep(Duration::from_millis(200)).await;
            cluster.resume(old);
            let mut answered = 0;
            while let Some(outcome) = calls.join_next().await {
                match outcome.unwrap() {
                    Ok(Some(revision)) => {
                        assert_eq!(revision, newest.mod_revision, "a stale read in round {round}");
                        answered += 1;
                    }
                    Ok(None) => {}
                    Err(ttl_ms) => panic!("a closed session was given {ttl_ms} ms more"),
                }
            }
            eprintln!("round {round}: {answered} of {CALLS} reads were answered");
            // It follows the new leader and answers like any other node.
            eventually("a read through the node that was paused", async || {
                let answer = text(cluster.at(old).get_instance(get_instance("web", "a")).await)?;
                assert_eq!(answer.instance.unwrap().mod_revision, newest.mod_revision);
                Ok(())
            })
            .await;
            drop(session);
        }
        cluster.same_digest().await;
    });
}

/// A follower that is paused and wakes answers reads no older than what was acknowledged meanwhile.
#[test]
fn a_follower_that_wakes_serves_no_stale_read() {
    run(async {
        let cluster = Cluster::three().await;
        let asleep = cluster.followers().await[0];
        let waking = patient_client(&cluster.node(asleep).client);
        cluster.client().register(versioned(0), None).await.unwrap();
        waking.get_instance(get_instance("web", "a")).await.unwrap();
        cluster.pause(asleep);
        let mut newest = 0;
        for version in 1..20 {
            // A client that knows only the other nodes.
            let others = cluster.running().filter(|node| node.id != asleep);
            let client = super::harness::client(others.map(|node| &node.client));
            newest = client.register(versioned(version), None).await.unwrap().mod_revision;
        }
        let read = tokio::spawn(async move {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match waking.get_instance(get_instance("web", "a")).await {
                    Ok(answer) => return answer.instance.unwrap().mod_revision,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
            }
        });
        sleep(Duration::from_millis(100)).await;
        cluster.resume(asleep);
        assert_eq!(read.await.unwrap(), newest);
    });
}

fn versioned(version: usize) -> v1::Instance {
    let mut instance = instance("web", "a");
    instance.metadata.insert("version".to_owned(), version.to_string());
    instance
}

/// A client of one node that waits for it instead of asking again.
fn patient_client(address: &str) -> Client {
    let mut options = Options::new([address]);
    options.call_timeout = PATIENCE;
    options.attempt_timeout = PATIENCE;
    Client::connect(options).unwrap().at(address).unwrap()
}

/// One keep-alive by a bare call.
async fn keep_alive(sessions: &SessionsClient<Channel>, session: u64) -> Result<u64, String> {
    let answer = sessions.clone().keep_alive(v1::KeepAliveRequest { session }).await;
    answer.map(|answer| answer.into_inner().ttl_ms).map_err(|status| status.to_string())
}
