//! Single faults, told one by one: what a random run would seldom meet, or not tell apart.

mod proposals;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use quorate::error::Error;
use quorate::limits;
use quorate::node::{Answer, Leadership, Node, Status};
use quorate::proto::v1::Consistency;
use quorate::raft::codec;
use quorate::raft::machine::{SnapshotFile, raft_meta};
use quorate::raft::network::{PeerError, SnapshotHead};
use quorate::raft::service::PeerHandler;
use quorate::raft::types::{LeaderId, NodeId, Vote};
use quorate::runtime;
use quorate::state::{
    Addition, Admin, AlarmMeasure, AlarmName, AlarmRule, AlarmSide, BranchPlan, CallPolicy,
    Command, CounterKind, CounterName, Endpoint, Health, HealthCheck, InstanceName, Op, Pairs,
    Probe, Registration, Reply, SagaBegin, SagaMode, SagaName, SagaOrder, SagaRecovery, SagaTerms,
    ServiceSettings,
};
use quorate::store::disk::Disk as _;
use quorate::store::fault::{Crash, Faults};
use quorate::store::snapshot;

use crate::cluster::{End, HOOK, World};
use crate::faults::{self, Mix};
use crate::network::CLIENTS;
use crate::oracle::writes::instance_key;
use crate::plant::Plant;
use crate::run::{Report, Setup, finish, pass, play, serves};
use crate::workload;

fn setup(seed: u64) -> Setup {
    let plant = Plant::None;
    Setup { seed, plant, faults: Duration::ZERO, mix: Mix::Everything, nodes: 3, load: 1 }
}

/// Three nodes, without clients, and whatever comes of them.
fn tell_quietly(seed: u64, story: impl AsyncFnOnce(&Arc<World>)) -> Report {
    let report = play(&setup(seed), async |world| {
        world.harness.spawn(faults::revive(world.clone(), world.fork_random()));
        assert!(pass(world, Duration::from_secs(3)).await, "{:?}", world.oracle().violations);
        story(world).await;
    });
    assert!(report.violations.is_empty(), "{report:#?}");
    report
}

/// Three nodes and their clients, without a nemesis.
fn tell(seed: u64, story: impl AsyncFnOnce(&Arc<World>)) -> Report {
    tell_with(setup(seed), story)
}

fn tell_with(setup: Setup, story: impl AsyncFnOnce(&Arc<World>)) -> Report {
    let report = play(&setup, async |world| {
        world.harness.spawn(faults::revive(world.clone(), world.fork_random()));
        let clients = workload::spawn(world);
        assert!(pass(world, Duration::from_secs(3)).await, "{:?}", world.oracle().violations);
        story(world).await;
        if serves(world).await {
            finish(world, clients).await;
        }
    });
    assert!(report.violations.is_empty(), "{report:#?}");
    report
}

fn status(world: &World, id: NodeId) -> Status {
    world.running(id).expect("the node is up").1.status()
}

fn leader(world: &World) -> NodeId {
    world.leader().expect("there is a leader")
}

fn follower(world: &World) -> NodeId {
    world.nodes.iter().copied().find(|id| *id != leader(world)).expect("there are several nodes")
}

/// Runs a piece of a story on a node, as a call that its own tasks serve.
async fn on<T: Send + 'static, F: Future<Output = T> + Send + 'static>(
    world: &World,
    id: NodeId,
    work: impl FnOnce(Node) -> F,
) -> T {
    let (scope, node) = world.running(id).expect("the node is up");
    scope.spawn(work(node)).await.expect("nobody ends it meanwhile")
}

/// A write that changes nothing that the clients look at.
async fn write(world: &World, id: NodeId, timeout: Duration) -> Answer {
    let op = Op::OpenSession { ttl_ms: 1_000, client: "story".to_owned() };
    let command = Command { request: None, op };
    on(world, id, move |node| async move { node.propose(&command, timeout).await }).await
}

/// No other node hears it or is heard by it.
fn cut_off(world: &World, id: NodeId) {
    for other in world.nodes.iter().copied().filter(|other| *other != id) {
        world.network.cut(id, other);
        world.network.cut(other, id);
    }
}

/// The process ends, and a new one begins.
async fn end(world: &Arc<World>, id: NodeId) {
    world.end(id, End { crash: Crash::Kill, image: false }, Duration::ZERO).await;
}

/// Waits until something holds.
async fn until(world: &World, within: Duration, what: &str, holds: impl Fn() -> bool) {
    let give_up = runtime::Instant::now() + within;
    while !holds() {
        assert!(runtime::Instant::now() < give_up, "not within {within:?}: {what}");
        assert!(pass(world, Duration::from_millis(50)).await, "{:?}", world.oracle().violations);
    }
}

/// Where the power fails for all of them, it does so at one instant: not even the last one hears that the others
/// are gone.
#[test]
fn all_lose_their_power_at_once() {
    let report = tell(3, async |world| {
        let end = |id: &NodeId| {
            (*id, End { crash: Crash::Lose, image: false }, Duration::from_millis(100))
        };
        let mut all = pin!(world.end_all(world.nodes.iter().map(end).collect()));
        assert!(futures::poll!(all.as_mut()).is_pending());
        assert!(world.nodes.iter().all(|id| world.running(*id).is_none()));
        all.await;
        until(world, Duration::from_secs(10), "a leader", || world.leader().is_some()).await;
    });
    assert_eq!(report.counts.power_losses, 3);
}

/// A node whose consensus cannot go on ends by itself, instead of listening and answering nobody; the
/// others go on, and it comes back.
#[test]
fn a_node_whose_consensus_has_ended_is_ended() {
    let report = tell(1, async |world| {
        let id = leader(world);
        world.lose_checkpointer(id);
        let fatals = || world.oracle().counts.fatals;
        until(world, Duration::from_secs(20), "the end of the node", || fatals() == 1).await;
        until(world, Duration::from_secs(5), "a leader", || world.leader().is_some()).await;
        until(world, Duration::from_secs(5), "its next life", || world.running(id).is_some()).await;
    });
    assert_eq!(report.counts.fatals, 1, "it is told once: {report:#?}");
}

/// That consensus ends is what an orderly shutdown wants, and no reason to end the process.
#[test]
fn a_node_that_is_shut_down_does_not_end_by_itself() {
    let report = tell(2, async |world| {
        for id in [leader(world), follower(world)] {
            // Even when the disk fails meanwhile.
            world.lose_checkpointer(id);
            world.stop(id).await;
            assert!(pass(world, Duration::from_secs(2)).await);
            let (_, node) = world.running(id).expect("nobody has ended it");
            assert!(node.status().errors.iter().any(|error| error.contains("consensus stopped")));
            drop(node);
            end(world, id).await;
            until(world, Duration::from_secs(5), "a leader", || world.leader().is_some()).await;
        }
    });
    assert_eq!((report.counts.fatals, report.counts.disk_failures), (0, 0), "{report:#?}");
}

/// A full disk is no reason to end consensus: the snapshot is made once there is space. Until then
/// the node applies, serves reads, and keeps its log.
#[test]
fn a_snapshot_that_finds_no_space_is_made_when_there_is_some() {
    let report = tell(3, async |world| {
        let id = follower(world);
        let full = |capacity| {
            world.sabotage(id, |_, snapshots| {
                snapshots.set_faults(Faults { capacity, ..snapshots.faults() });
            });
        };
        full(Some(0));
        // One that was under way may have found its space before.
        assert!(pass(world, Duration::from_secs(1)).await);
        let before = status(world, id);
        let asked = world.snapshots_asked(id);
        // Several times as many entries as a snapshot is made after.
        let enough = || status(world, id).applied_index > before.applied_index + 300;
        until(world, Duration::from_secs(60), "300 entries", enough).await;
        let again = || world.snapshots_asked(id) >= asked + 3;
        until(world, Duration::from_secs(10), "it is tried again and again", again).await;
        let during = status(world, id);
        assert_eq!(during.snapshot_index, before.snapshot_index);
        assert!(during.purged_index <= before.snapshot_index, "{during:?}");
        assert!(during.errors.iter().any(|error| error.contains("NOSPACE")), "{during:?}");
        assert!(serves(world).await);

        full(None);
        let made = || status(world, id).snapshot_index >= during.applied_index;
        until(world, Duration::from_secs(5), "the snapshot", made).await;
        let purged = || status(world, id).purged_index > during.purged_index;
        until(world, Duration::from_secs(2), "the purge", purged).await;
        assert!(status(world, id).errors.is_empty());
    });
    assert_eq!((report.counts.fatals, report.counts.disk_failures), (0, 0), "{report:#?}");
}

/// Whoever waits for space is not in the way of a shutdown.
#[test]
fn a_node_without_space_for_a_snapshot_can_be_shut_down() {
    tell(4, async |world| {
        let id = leader(world);
        world.sabotage(id, |_, snapshots| {
            snapshots.set_faults(Faults { capacity: Some(0), ..snapshots.faults() });
        });
        let asked = world.snapshots_asked(id);
        let tried = || world.snapshots_asked(id) > asked + 1;
        until(world, Duration::from_secs(30), "a snapshot that fails twice", tried).await;

        let began = runtime::Instant::now();
        world.stop(id).await;
        assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
        // What was asked for last is refused, and nothing asks again.
        assert!(pass(world, Duration::from_secs(3)).await);
        let asked = world.snapshots_asked(id);
        assert!(pass(world, Duration::from_secs(10)).await);
        assert_eq!(world.snapshots_asked(id), asked);
        assert!(status(world, id).errors.iter().any(|error| error.contains("consensus stopped")));
        end(world, id).await;
    });
}

/// The write goes to the leader's disk first: whoever forwards it is refused as well.
#[test]
fn a_leader_low_on_space_takes_no_forwarded_writes() {
    tell(5, async |world| {
        let (leads, follows) = (leader(world), follower(world));
        let full = |capacity| {
            world.sabotage(leads, |_, snapshots| {
                snapshots.set_faults(Faults { capacity, ..snapshots.faults() });
            });
        };
        full(Some(0));
        assert!(pass(world, Duration::from_secs(1)).await);
        for id in [leads, follows] {
            let refused = write(world, id, Duration::from_secs(1)).await;
            assert!(matches!(refused, Err(Error::NoSpace { free_bytes: 0 })), "{id}: {refused:?}");
        }
        full(None);
        assert!(pass(world, Duration::from_secs(1)).await);
        for id in [leads, follows] {
            assert!(write(world, id, Duration::from_secs(1)).await.is_ok());
        }
    });
}

/// It would gain nothing: what the others take comes to its disk as well.
#[test]
fn a_follower_low_on_space_passes_writes_on() {
    tell(25, async |world| {
        let follows = follower(world);
        world.sabotage(follows, |_, snapshots| {
            snapshots.set_faults(Faults { capacity: Some(0), ..snapshots.faults() });
        });
        until(world, Duration::from_secs(2), "it is low on space", || {
            status(world, follows).errors.iter().any(|error| error.contains("NOSPACE"))
        })
        .await;
        assert!(write(world, follows, Duration::from_secs(1)).await.is_ok());
        world.sabotage(follows, |_, snapshots| {
            snapshots.set_faults(Faults { capacity: None, ..snapshots.faults() });
        });
    });
}

/// A call has its deadline also while nobody knows whether the leader can be reached.
#[test]
fn a_forwarded_write_is_answered_at_its_deadline() {
    tell(6, async |world| {
        let (leads, follows) = (leader(world), follower(world));
        world.network.cut(follows, leads);
        world.network.reset(follows);
        assert!(pass(world, Duration::from_millis(100)).await);
        let began = runtime::Instant::now();
        let answer = write(world, follows, Duration::from_millis(300)).await;
        let took = began.elapsed();
        assert!(matches!(answer, Err(Error::Timeout { .. })), "{answer:?}");
        assert!(took < Duration::from_millis(450), "answered after {took:?}");
        world.network.heal();
    });
}

/// openraft purges nothing that a follower is to get from the log, and waits for its answers for ever.
#[test]
fn a_follower_that_hangs_does_not_keep_the_log() {
    tell(26, async |world| {
        let (leads, hangs) = (leader(world), follower(world));
        world.sync_time(hangs).set(3_600_000, 3_600_001);
        assert!(pass(world, Duration::from_secs(1)).await);
        let last = status(world, hangs).last_log_index;
        let within = Duration::from_secs(60);
        until(world, within, "the log of the leader is purged", || {
            is_leader(world, leads) && status(world, leads).purged_index > last
        })
        .await;
        // What it gets then is a snapshot.
        world.sync_time(hangs).set(0, 3);
        end(world, hangs).await;
        until(world, within, "the follower is there again", || {
            world.running(hangs).is_some_and(|(_, node)| node.status().applied_index > last)
        })
        .await;
    });
}

/// Nobody was stopped, and no session is put off by how long the expiry of others takes.
#[test]
fn sessions_expire_while_the_disks_are_slow() {
    tell_quietly(28, async |world| {
        for number in 0..12 {
            let op = Op::OpenSession { ttl_ms: 1_000 + 300 * number, client: "story".to_owned() };
            carry_out(world, op).await;
        }
        for id in &world.nodes {
            world.sync_time(*id).set(2_000, 2_001);
        }
        let leads = leader(world);
        until(world, Duration::from_secs(16), "all have expired", || {
            status(world, leads).sessions == 0
        })
        .await;
        assert!(is_leader(world, leads));
    });
}

/// How long a session lives is no matter of wall clocks, whichever way they jump.
#[test]
fn a_clock_that_jumps_moves_no_deadline_of_a_session() {
    tell_quietly(36, async |world| {
        let leads = leader(world);
        for jump_ms in [60_000, -120_000] {
            let op = Op::OpenSession { ttl_ms: 2_000, client: "story".to_owned() };
            carry_out(world, op).await;
            // The leader counts the session by then.
            assert!(pass(world, SECOND / 2).await);
            world.shift_clock(leads, jump_ms);
            assert!(pass(world, SECOND / 2).await);
            assert_eq!(status(world, leads).sessions, 1);
            until(world, 4 * SECOND, "the end of the session", || {
                status(world, leads).sessions == 0
            })
            .await;
        }
        assert!(is_leader(world, leads));
    });
}

/// What a follower needs has rotted on the leader since it was made, and nothing is written of which there would be
/// another.
#[test]
fn a_snapshot_that_rotted_is_made_again_for_who_needs_it() {
    tell_quietly(27, async |world| {
        let (leads, hangs) = (leader(world), follower(world));
        world.sync_time(hangs).set(3_600_000, 3_600_001);
        let last = status(world, hangs).last_log_index;
        while status(world, leads).purged_index <= last + 1 {
            assert!(write(world, leads, Duration::from_secs(1)).await.is_ok());
        }
        // The sessions end, too.
        assert!(pass(world, Duration::from_secs(3)).await);
        world.sabotage(leads, |_, snapshots| {
            for (_, name) in snapshot::list(snapshots).unwrap() {
                snapshots.flip(&name, 400, 1);
            }
        });
        world.sync_time(hangs).set(0, 3);
        end(world, hangs).await;
        until(world, Duration::from_secs(120), "the follower has what the leader has", || {
            let applied = status(world, leads).applied_index;
            world.running(hangs).is_some_and(|(_, node)| node.status().applied_index == applied)
        })
        .await;
        assert!(is_leader(world, leads));
    });
}

/// Reads that wait for a leader that is no more are answered by the next one.
#[test]
fn reads_do_not_wait_for_a_dead_leader() {
    tell(7, async |world| {
        let (leads, follows) = (leader(world), follower(world));
        let others = world.nodes.iter().copied().filter(|id| *id != leads);
        // As if the machine were gone: nobody refuses a connection.
        cut_off(world, leads);
        // Enough of them to take every round there is.
        let (scope, node) = world.running(follows).expect("the node is up");
        let reads: Vec<_> = (0..8)
            .map(|number| {
                let node = node.clone();
                scope.spawn(async move {
                    runtime::sleep(Duration::from_millis(10 * number)).await;
                    node.barrier(Consistency::Linearizable, Duration::from_secs(5)).await
                })
            })
            .collect();
        drop(node);
        let led = || others.clone().any(|id| is_leader(world, id));
        until(world, Duration::from_secs(4), "the next leader", led).await;
        let began = runtime::Instant::now();
        for read in reads {
            assert!(read.await.unwrap().is_ok());
        }
        let took = began.elapsed();
        assert!(took < Duration::from_millis(400), "answered {took:?} after the election");
        world.network.heal();
    });
}

/// How long it takes from a fault of the leader until another node leads.
async fn until_another_leads(world: &World, before: NodeId) -> Duration {
    let began = runtime::Instant::now();
    while !world.nodes.iter().any(|id| *id != before && is_leader(world, *id)) {
        assert!(began.elapsed() < Duration::from_secs(5), "nobody follows node {before}");
        runtime::sleep(Duration::from_millis(1)).await;
    }
    began.elapsed()
}

/// What openraft alone waits for at least: the longest election timeout and the shortest, since a heartbeat
/// that may have been the last one long enough before.
const SILENCE: Duration = Duration::from_millis(600 + 300 - 100);

/// Nobody waits for more of a leader whose process has ended than the end of its lease.
#[test]
fn a_leader_that_has_ended_is_followed_when_its_lease_is_over() {
    tell(31, async |world| {
        for _ in 0..8 {
            let leads = leader(world);
            let crash = End { crash: Crash::Kill, image: false };
            world.end(leads, crash, Duration::from_secs(2)).await;
            let took = until_another_leads(world, leads).await;
            assert!(took < SILENCE, "node {leads} was followed after {took:?}");
            assert!(took > Duration::from_millis(450), "within its lease, after {took:?}");
            assert!(pass(world, Duration::from_secs(4)).await, "{:?}", world.oracle().violations);
        }
    });
}

/// A leader that only says nothing, paused or cut off, keeps what openraft gives it.
#[test]
fn a_leader_that_is_silent_is_given_its_time() {
    tell(32, async |world| {
        for round in 0..8 {
            let leads = leader(world);
            if round % 2 == 0 {
                world.pause(leads);
            } else {
                cut_off(world, leads);
            }
            let took = until_another_leads(world, leads).await;
            world.resume(leads);
            world.network.heal();
            assert!(took >= SILENCE, "node {leads} was followed after {took:?}");
            assert!(pass(world, Duration::from_secs(4)).await, "{:?}", world.oracle().violations);
        }
    });
}

/// A node that is cut off, and told that nobody listens where the leader is, begins no term.
#[test]
fn a_refusal_that_means_nothing_deposes_nobody() {
    tell(33, async |world| {
        let (leads, alone) = (leader(world), follower(world));
        let term = status(world, leads).term;
        for deaf in [false, true] {
            world.network.cut(leads, alone);
            world.network.reject(alone, leads);
            if deaf {
                let other = world.nodes.iter().copied().find(|id| ![leads, alone].contains(id));
                world.network.cut(other.unwrap(), alone);
            }
            assert!(pass(world, Duration::from_secs(5)).await, "{:?}", world.oracle().violations);
            world.network.heal();
            assert!(pass(world, Duration::from_secs(5)).await, "{:?}", world.oracle().violations);
            assert_eq!((leader(world), status(world, leads).term), (leads, term));
        }
    });
}

/// A stream of the log takes as long to open as the lines are, which is longer than a heartbeat: a new leader
/// opens it once and goes on.
#[test]
fn a_leader_at_the_end_of_a_long_line_replicates() {
    tell(22, async |world| {
        for id in world.nodes.clone() {
            world.network.slow_down(id, Some(120));
        }
        let mut took = Duration::ZERO;
        for _ in 0..5 {
            let leads = leader(world);
            let crash = End { crash: Crash::Kill, image: false };
            world.end(leads, crash, Duration::from_secs(5)).await;
            let next = || world.nodes.iter().find(|id| **id != leads && is_leader(world, **id));
            until(world, Duration::from_secs(10), "the next leader", || next().is_some()).await;
            let began = runtime::Instant::now();
            let answer = write(world, leader(world), Duration::from_secs(10)).await;
            assert!(answer.is_ok(), "{answer:?}");
            took += began.elapsed();
        }
        assert!(took < Duration::from_secs(6), "the first writes of five leaders took {took:?}");
        world.network.heal();
    });
}

fn is_leader(world: &World, id: NodeId) -> bool {
    let leadership = world.running(id).map(|(_, node)| node.leadership());
    matches!(leadership, Some(Leadership::Leader { .. }))
}

/// Ships a snapshot file to a node, in the name of the leader.
async fn ship(
    world: &World,
    to: NodeId,
    file: &SnapshotFile,
    head: &SnapshotHead,
) -> Result<(), PeerError> {
    let (head, chunks) = (codec::to_bytes(head), file.chunks(1_000).map(Ok).boxed());
    on(world, to, move |node| async move {
        PeerHandler::snapshot(&node, head, chunks).await.map(|_| ())
    })
    .await
}

/// What is not needed is thrown away, and what is not what it says it is is refused.
#[test]
fn a_snapshot_that_is_not_installed_leaves_nothing_behind() {
    tell(8, async |world| {
        let (leads, follows) = (leader(world), follower(world));
        let file = on(world, leads, |node| async move { node.snapshot().await }).await.unwrap();
        let term = status(world, leads).term;
        let vote = Vote { leader_id: LeaderId { term, node_id: leads }, committed: true };
        let meta = raft_meta(&file.meta.point).unwrap();
        let (membership, bytes) = (meta.last_membership, file.meta.bytes);
        let head = SnapshotHead { vote, last_log_id: meta.last_log_id, membership, bytes };
        let applied = || status(world, follows).applied_index > file.meta.point.index;
        until(world, Duration::from_secs(2), "the follower is ahead", applied).await;
        let received = || {
            let names = world.snapshots(follows).list().unwrap();
            names.into_iter().filter(|name| name.contains("received")).count()
        };
        let installs = world.oracle().counts.installs;
        ship(world, follows, &file, &head).await.unwrap();
        assert_eq!((received(), world.oracle().counts.installs), (0, installs));

        // Consensus would go by the head, and believe that the file reaches that far.
        let mut ahead = head.last_log_id.unwrap();
        ahead.index += 1_000_000;
        let head = SnapshotHead { last_log_id: Some(ahead), ..head };
        let refused = ship(world, follows, &file, &head).await;
        assert!(refused.is_err(), "{refused:?}");
        assert_eq!((received(), world.oracle().counts.installs), (0, installs));
        assert!(status(world, follows).errors.is_empty());
    });
}

/// The newest snapshot file is damaged while its node is down, and what it stood for is purged from
/// the log. The older file lacks what other members may need: a new one is made before anything else.
#[test]
fn a_lost_snapshot_is_made_again_before_the_purged_log_is_missed() {
    tell_quietly(9, async |world| {
        let id = follower(world);
        let disk = world.snapshots(id);
        purge_beyond_the_older_snapshot(world, id).await;
        // The image is ahead of both.
        assert!(pass(world, Duration::from_secs(1)).await);
        let purged = status(world, id).purged_index;
        end(world, id).await;
        let (_, newest) = snapshot::list(&disk).unwrap().pop().unwrap();
        assert!(disk.flip(&newest, 100, 1));

        until(world, Duration::from_secs(2), "its next life", || world.running(id).is_some()).await;
        assert!(disk.list().unwrap().contains(&format!("{newest}.damaged")));
        let (newest, _) = snapshot::list(&disk).unwrap().pop().unwrap();
        assert!(newest >= purged, "the newest snapshot is of {newest}, purged up to {purged}");
        assert!(status(world, id).snapshot_index >= purged);
    });
}

/// Writes until a node has two snapshots, and its log lacks what only the newer one has.
async fn purge_beyond_the_older_snapshot(world: &World, id: NodeId) {
    let disk = world.snapshots(id);
    // Slowly: under load each look at the log makes a snapshot, and the purge is one behind.
    for _ in 0..1_000 {
        let snapshots = snapshot::list(&disk).unwrap();
        if snapshots.len() == 2 && snapshots[0].0 < status(world, id).purged_index {
            return;
        }
        write(world, leader(world), Duration::from_secs(1)).await.unwrap().result.unwrap();
        assert!(pass(world, Duration::from_millis(20)).await);
    }
    panic!("no two snapshots and a purge");
}

/// The power goes, the image is broken, and the only snapshot that the log goes on from cannot be read for once: the
/// node does not start from the older one, and leaves the newer one for its next start. (Seed 2389.)
///
/// With this story's seed the image's last write is broken off.
#[test]
fn a_snapshot_that_could_not_be_read_is_not_given_up() {
    tell_quietly(14, async |world| {
        let id = follower(world);
        let disk = world.snapshots(id);
        purge_beyond_the_older_snapshot(world, id).await;
        let purged = status(world, id).purged_index;
        let (newest, name) = snapshot::list(&disk).unwrap().pop().unwrap();
        world.end(id, End { crash: Crash::Lose, image: true }, Duration::ZERO).await;
        let call = disk.counts().reads;
        world.sabotage(id, |_, snapshots| {
            snapshots.set_faults(Faults { fail_read: Some(call), ..Faults::default() });
        });
        let rebuilt = world.oracle().counts.rebuilds;
        let lives = || world.oracle().counts.rebuilds - rebuilt;
        until(world, Duration::from_secs(10), "two starts", || lives() == 2).await;
        until(world, Duration::from_secs(2), "its next life", || world.running(id).is_some()).await;
        assert!(disk.counts().reads > call && purged <= newest);
        assert!(disk.list().unwrap().contains(&name), "{name} is gone");
        assert!(status(world, id).applied_index >= newest);
    });
}

/// The leader ends between the two steps of a change of members. The next one finishes it: until then
/// a majority of the old members and of the new ones is needed, the dead one among them perhaps.
#[test]
fn a_change_of_members_is_finished_by_the_next_leader() {
    tell_quietly(10, async |world| {
        let (leads, removed) = (leader(world), follower(world));
        let before = status(world, leads).last_log_index;
        let (scope, node) = world.running(leads).expect("the node is up");
        scope.spawn(async move { node.remove(removed, Duration::from_secs(5)).await.map(drop) });
        let other = world.nodes.iter().copied().find(|id| ![leads, removed].contains(id)).unwrap();
        // Behind the record of the removal the first step is on both, and the leader does not know it.
        let at = |id| status(world, id).last_log_index;
        let first = before + 2;
        while at(other) < first || at(removed) < first {
            runtime::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!((at(leads), at(other), at(removed)), (first, first, first));
        end(world, leads).await;
        until(world, Duration::from_secs(5), "a leader", || world.leader().is_some()).await;
        let members = |id| world.running(id).map_or(0, |(_, node)| node.members().len());
        let done = || members(leads) == 2 && members(other) == 2;
        until(world, Duration::from_secs(5), "the second step", done).await;
    });
}

/// A leader that was cut off for less than it takes its connections to break hears old
/// acknowledgements first, and must not take them for new ones: another one leads by then.
#[test]
fn late_acknowledgements_confirm_no_leadership() {
    tell_with(Setup { load: 4, ..setup(11) }, async |world| {
        for round in 0..24u64 {
            let leads = leader(world);
            let others = world.nodes.iter().copied().filter(|id| *id != leads);
            let links = others.flat_map(|id| [(leads, id), (id, leads)]).collect::<Vec<_>>();
            // First what it hears, so that what its last messages bring about is under way.
            let (heard, sent): (Vec<_>, Vec<_>) =
                links.into_iter().partition(|(_, to)| *to == leads);
            for (links, ms) in [(&heard, round % 4), (&sent, 0)] {
                for (from, to) in links {
                    world.network.cut(*from, *to);
                }
                runtime::sleep(Duration::from_millis(ms)).await;
            }
            assert!(pass(world, Duration::from_millis(1_500)).await);
            for number in 0..30 {
                let (world, mut random) = (world.clone(), world.fork_random());
                let key = instance_key(&workload::shared_name(&mut random));
                let (linearizable, timeout) = (Consistency::Linearizable, Duration::from_secs(1));
                world.harness.clone().spawn(async move {
                    runtime::sleep(Duration::from_millis(10 * number)).await;
                    let client = CLIENTS + 50 + number;
                    workload::read_once(&world, client, leads, linearizable, key, timeout).await
                });
            }
            // At another moment between two heartbeats of the new leader each time; and it hears before
            // it is heard.
            runtime::sleep(Duration::from_millis(250 + 17 * round % 100)).await;
            for links in [heard, sent] {
                for (from, to) in links {
                    world.network.join(from, to);
                }
                runtime::sleep(Duration::from_millis(100)).await;
            }
            let rest = Duration::from_millis(2_000 + 7 * round);
            assert!(pass(world, rest).await, "{:?}", world.oracle().violations);
            until(world, Duration::from_secs(2), "a leader", || world.leader().is_some()).await;
        }
    });
}

/// One command that the leader is asked for.
async fn carry_out(world: &World, op: Op) {
    let (command, timeout) = (Command { request: None, op }, Duration::from_secs(2));
    let propose = move |node: Node| async move { node.propose(&command, timeout).await };
    on(world, leader(world), propose).await.unwrap().result.unwrap();
}

async fn add(world: &World, delta: i64) {
    carry_out(world, addition(delta)).await;
}

fn addition(delta: i64) -> Op {
    let (namespace, name) = ("default".to_owned(), "queue".to_owned());
    let name = CounterName { namespace, name, labels: Pairs::default() };
    let kind = Some(CounterKind::Gauge);
    Op::AddCounter(Box::new(Addition { name, kind, delta, floor: None, ceil: None }))
}

async fn put_alarm(world: &World) {
    let rule = AlarmRule {
        counter: "queue".to_owned(),
        labels: Pairs::default(),
        measure: AlarmMeasure::Value,
        side: AlarmSide::Above,
        bound_milli: 0,
        for_ms: 0,
        webhook: HOOK.to_owned(),
        description: String::new(),
    };
    let name = AlarmName { namespace: "default".to_owned(), name: "long".to_owned() };
    carry_out(world, Op::PutAlarm { name, rule: Box::new(rule) }).await;
}

fn transitions(posts: &[serde_json::Value]) -> Vec<u64> {
    posts.iter().map(|post| post["transition"].as_u64().expect("a number")).collect()
}

/// Whoever could not be told for a while hears how things are, and nothing older behind it.
#[test]
fn a_webhook_hears_of_nothing_old_after_something_new() {
    tell_quietly(12, async |world| {
        put_alarm(world).await;
        world.hook().refuses = true;
        let refused = |transition| {
            let posts = transitions(&world.hook().refused);
            posts.iter().filter(|refused| **refused == transition).count()
        };
        add(world, 1).await;
        until(world, Duration::from_secs(20), "attempts", || refused(1) == 3).await;
        add(world, -1).await;
        until(world, Duration::from_secs(20), "newer ones", || refused(2) == 1).await;
        world.hook().refuses = false;
        assert!(pass(world, Duration::from_secs(90)).await);
        let hook = world.hook();
        assert_eq!(transitions(&hook.taken), [2]);
        assert_eq!(hook.taken[0]["status"], "cleared");
        assert_eq!(transitions(&hook.refused), [1, 1, 1, 2]);
    });
}

/// An alarm is given up after a bounded number of attempts, which is noted; its next transition is told.
#[test]
fn a_webhook_that_never_answers_is_given_up() {
    tell_quietly(13, async |world| {
        put_alarm(world).await;
        world.hook().refuses = true;
        add(world, 1).await;
        let noted = || {
            let (_, node) = world.running(leader(world)).expect("the node is up");
            node.read(|state| {
                let alarm = state.alarm("default", "long").expect("it was put");
                (alarm.posted, alarm.post_error.clone())
            })
        };
        until(world, Duration::from_secs(600), "the note", || noted().0 == 1).await;
        assert_eq!(noted().1, "given up after 10 attempts: refused");
        assert_eq!(transitions(&world.hook().refused), [1; 10]);
        assert!(pass(world, Duration::from_secs(90)).await);
        world.hook().refuses = false;
        add(world, -1).await;
        until(world, Duration::from_secs(5), "the note", || noted() == (2, String::new())).await;
        assert_eq!(transitions(&world.hook().taken), [2]);
        assert_eq!(world.hook().refused.len(), 10);
    });
}

/// An alarm that comes and goes faster than its webhook is given up is given up all the same.
#[test]
fn a_webhook_that_never_answers_is_given_up_while_its_alarm_comes_and_goes() {
    tell_quietly(14, async |world| {
        put_alarm(world).await;
        world.hook().refuses = true;
        let noted = || {
            let (_, node) = world.running(leader(world)).expect("the node is up");
            node.read(|state| state.alarm("default", "long").expect("it was put").posted)
        };
        for round in 0..40 {
            if noted() > 0 {
                break;
            }
            add(world, if round % 2 == 0 { 1 } else { -1 }).await;
            assert!(pass(world, Duration::from_secs(20)).await);
        }
        let posts = transitions(&world.hook().refused);
        assert!(noted() > 1, "{posts:?}");
        assert!(posts.len() >= 10 && posts.is_sorted(), "{posts:?}");
    });
}

/// How many instances the stories of health checks have.
const CHECKED: usize = 12;
const SECOND: Duration = Duration::from_secs(1);

fn host(i: usize) -> String {
    format!("host-{i}")
}

/// A service that is checked every second, with so many instances.
async fn put_checked(world: &World) {
    let (interval_ms, timeout_ms, failures, successes) = (1_000, 500, 3, 2);
    let (probe, endpoint) = (Probe::Tcp, String::new());
    let check = HealthCheck { probe, endpoint, interval_ms, timeout_ms, failures, successes };
    put_service(world, Some(check), 30_000).await;
    for i in 0..CHECKED {
        register(world, format!("web-{i}"), &host(i), None).await;
    }
}

async fn put_service(world: &World, health_check: Option<HealthCheck>, deregister_after_ms: u64) {
    let settings = ServiceSettings {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        protect_threshold_percent: 0,
        deregister_after_ms,
        policy: String::new(),
        policy_parameters: Pairs::default(),
        metadata: Pairs::default(),
        expected_mod_revision: None,
        health_check,
    };
    carry_out(world, Op::PutService(Box::new(settings))).await;
}

async fn register(world: &World, id: String, host: &str, session: Option<u64>) {
    let (namespace, service) = ("default".to_owned(), "web".to_owned());
    let registration = Registration {
        name: InstanceName { namespace, service, id },
        endpoints: [Endpoint { name: "", host, port: 80 }].into_iter().collect(),
        weight: 1,
        zone: String::new(),
        metadata: Pairs::default(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: String::new(),
        hash_key: String::new(),
        session,
    };
    carry_out(world, Op::Register(Box::new(registration))).await;
}

/// The instances that are critical, by number, with their reasons.
fn critical(world: &World) -> Vec<(usize, String)> {
    let (_, node) = world.running(leader(world)).expect("the node is up");
    let found = (0..CHECKED).filter_map(|i| {
        let instance = node.read(|state| state.instance("default", "web", &format!("web-{i}")))?;
        (instance.health == Health::Critical).then(|| (i, instance.reason.to_string()))
    });
    found.collect()
}

fn revision(world: &World) -> u64 {
    status(world, leader(world)).revision
}

/// Who asked which host in the time that passes now, by host.
async fn asked(world: &World, time: Duration) -> Vec<Vec<NodeId>> {
    world.targets().asked.clear();
    assert!(pass(world, time).await, "{:?}", world.oracle().violations);
    let asked = std::mem::take(&mut world.targets().asked);
    let by = |i: usize| asked.iter().filter(move |(_, of)| *of == host(i)).map(|(node, _)| *node);
    (0..CHECKED).map(|i| by(i).collect()).collect()
}

/// Each instance is asked by one node, as often as its service says.
fn assert_shared(asked: &[Vec<NodeId>], seconds: usize) {
    for (i, by) in asked.iter().enumerate() {
        assert!(by.iter().all(|node| *node == by[0]), "instance {i} was asked by {by:?}");
        assert!(
            (seconds - 1..=seconds + 1).contains(&by.len()),
            "instance {i}: {} times",
            by.len()
        );
    }
}

/// Nodes share the instances out; a dead one's are checked by the others, and no other instance moves. A
/// new leader counts on from what is known, and nothing is written while nothing changes.
#[test]
fn health_checks_go_on_over_deaths_and_write_nothing() {
    tell_quietly(14, async |world| {
        put_checked(world).await;
        assert!(pass(world, 5 * SECOND).await);
        world.targets().down.insert(host(3));
        until(world, 10 * SECOND, "the verdict", || !critical(world).is_empty()).await;
        let known = critical(world);
        assert_eq!(known[0].0, 3);
        assert!(known[0].1.ends_with(": it is down"), "{known:?}");
        let before = revision(world);

        let three = asked(world, 20 * SECOND).await;
        assert_shared(&three, 20);
        let checkers: std::collections::BTreeSet<NodeId> = three.iter().map(|by| by[0]).collect();
        assert_eq!(checkers.len(), 3, "{three:?}");

        // A follower first, then a leader; both stay away for a while.
        for round in 0..2 {
            let gone = if round == 0 { follower(world) } else { leader(world) };
            world.end(gone, End { crash: Crash::Kill, image: false }, 60 * SECOND).await;
            assert!(pass(world, 6 * SECOND).await);
            let two = asked(world, 20 * SECOND).await;
            assert_shared(&two, 20);
            for (was, is) in three.iter().zip(&two) {
                assert!(was[0] == gone || is[0] == was[0], "{was:?} moved to {is:?}");
                assert_ne!(is[0], gone);
            }
            until(world, 90 * SECOND, "its next life", || world.running(gone).is_some()).await;
            assert!(pass(world, 10 * SECOND).await);
            let again = asked(world, 10 * SECOND).await;
            assert_shared(&again, 10);
            assert!(again.iter().zip(&three).all(|(is, was)| is[0] == was[0]));
        }
        assert_eq!((critical(world), revision(world)), (known, before));
        world.targets().down.clear();
        until(world, 10 * SECOND, "the verdict", || critical(world).is_empty()).await;
        assert_eq!(revision(world), before + 1);
    });
}

/// Who cannot reach the leader checks nothing: what it sees would be worth nothing.
#[test]
fn a_node_that_is_cut_off_checks_nothing() {
    tell_quietly(15, async |world| {
        put_checked(world).await;
        assert!(pass(world, 5 * SECOND).await);
        let alone = leader(world);
        cut_off(world, alone);
        assert!(pass(world, 6 * SECOND).await);
        let two = asked(world, 10 * SECOND).await;
        assert_shared(&two, 10);
        assert!(two.iter().all(|by| !by.contains(&alone)), "node {alone} is alone: {two:?}");
        for other in world.nodes.iter().copied().filter(|id| *id != alone) {
            world.network.join(alone, other);
            world.network.join(other, alone);
        }
        assert!(pass(world, 10 * SECOND).await);
        let three = asked(world, 10 * SECOND).await;
        assert_shared(&three, 10);
        assert!(three.iter().any(|by| by.contains(&alone)));
        assert_eq!(critical(world), []);
    });
}

/// All targets of a machine room fall at once: it is told with few commands.
#[test]
fn many_that_fall_at_once_are_told_together() {
    tell_quietly(16, async |world| {
        put_checked(world).await;
        assert!(pass(world, 5 * SECOND).await);
        let before = revision(world);
        world.targets().down.extend((0..CHECKED).map(host));
        until(world, 10 * SECOND, "the verdicts", || critical(world).len() == CHECKED).await;
        let commands = revision(world) - before;
        assert!((1..=CHECKED as u64).contains(&commands), "{commands} commands");
        assert!(pass(world, 30 * SECOND).await);
        assert_eq!(revision(world), before + commands);
    });
}

/// A saga of one step.
async fn begin_saga(world: &World, name: &SagaName, delay_ms: u64) {
    let policy = CallPolicy { timeout_ms: 5_000, attempts: 0, pause_ms: 100, pause_max_ms: 100 };
    let terms = SagaTerms {
        recovery: SagaRecovery::Backward,
        prepared_timeout_ms: 1_000,
        timeout_ms: 0,
        suspend_after_ms: 3_600_000,
        retention_ms: 3_600_000,
        delay_ms,
        query: String::new(),
        query_policy: policy,
    };
    let target = |method: &str| format!("quorate:///bank/bank.Bank/{method}");
    let branch = BranchPlan {
        id: "b".to_owned(),
        trial: String::new(),
        action: target("Move"),
        compensation: target("Undo"),
        payload: Default::default(),
        after: Vec::new(),
        policy,
    };
    let (name, mode, branches) = (name.clone(), SagaMode::Saga, vec![branch]);
    let begin = SagaBegin { name, mode, terms, branches, submit: true };
    carry_out(world, Op::BeginSaga(Box::new(begin))).await;
}

/// How long a call takes is no matter of wall clocks: a leader whose clock is turned back gives a call up that
/// nobody answers, tells so, and makes the next one. It never makes one again that it has given up.
#[test]
fn a_clock_that_is_turned_back_repeats_no_call() {
    let report = tell_quietly(17, async |world| {
        world.services().calm_down();
        let leads = leader(world);
        let name = SagaName { namespace: "default".to_owned(), gid: "g".to_owned() };
        world.services().deaf = true;
        begin_saga(world, &name, 0).await;
        world.shift_clock(leads, -60_000);
        // The time of the call is over, and by the cluster's time it is not.
        assert!(pass(world, 5 * SECOND + SECOND / 10).await, "{:?}", world.oracle().violations);
        // Whatever changes makes it look at its calls.
        for order in [SagaOrder::Suspend { reason: String::new() }, SagaOrder::Resume] {
            carry_out(world, Op::OrderSaga { name: name.clone(), order }).await;
            assert!(pass(world, SECOND / 10).await, "{:?}", world.oracle().violations);
        }
        world.services().deaf = false;
        let finished = || world.oracle().history.sagas().all(|saga| saga.phase.is_finished());
        until(world, 10 * SECOND, "its end", finished).await;
    });
    assert_eq!(report.counts.saga_effects, 1);
}

/// Clocks that jumped ahead for a moment stop no timer: the time of the cluster goes on from there, a little slower than
/// they do, also when the leader changes, and when all nodes end.
#[test]
fn clocks_that_jumped_ahead_for_a_moment_stop_no_timer() {
    const DAY_MS: i64 = 86_400_000;
    tell_quietly(18, async |world| {
        world.services().calm_down();
        let turn = |ms| world.nodes.iter().for_each(|id| world.shift_clock(*id, ms));
        let told_ms = || world.oracle().history.now_ms();
        put_service(world, None, 3_000).await;
        let before_ms = told_ms();
        turn(DAY_MS);
        add(world, 1).await;
        turn(-DAY_MS);
        assert!((told_ms() - before_ms).abs_diff(DAY_MS.unsigned_abs()) < 1_000);
        let errors = status(world, leader(world)).errors;
        assert!(errors.iter().any(|it| it.contains("clock is 86399 s behind")), "{errors:?}");

        // Each command is stamped, so that many of them are no other matter than few.
        let (since, since_ms) = (runtime::Instant::now(), told_ms());
        for _ in 0..100 {
            assert!(pass(world, SECOND / 10).await);
            add(world, 1).await;
        }
        let real_ms = u64::try_from(since.elapsed().as_millis()).unwrap();
        let gone_ms = told_ms() - since_ms;
        assert!(gone_ms.abs_diff(real_ms * 9 / 10) < 100, "{gone_ms} ms in {real_ms} ms");

        for after in ["nothing", "the end of the leader", "the end of all"] {
            let opened = write(world, leader(world), SECOND).await.unwrap().result.unwrap();
            let Reply::SessionOpened { session, .. } = opened else { panic!("{opened:?}") };
            let id = after.replace(' ', "-");
            register(world, id.clone(), "web", Some(session)).await;
            let name = SagaName { namespace: "default".to_owned(), gid: id.clone() };
            begin_saga(world, &name, 3_000).await;
            match after {
                "the end of the leader" => end(world, leader(world)).await,
                "the end of all" => {
                    let end = |id: &NodeId| {
                        (*id, End { crash: Crash::Lose, image: false }, Duration::ZERO)
                    };
                    world.end_all(world.nodes.iter().map(end).collect()).await;
                }
                _ => {}
            }
            until(world, 10 * SECOND, "the end of the saga", || {
                world.oracle().history.sagas().all(|saga| saga.phase.is_finished())
            })
            .await;
            let (_, node) = world.running(leader(world)).unwrap();
            let is_gone = || node.read(|state| state.instance("default", "web", &id).is_none());
            until(world, 10 * SECOND, "the removal of the orphan", is_gone).await;
        }
    });
}
