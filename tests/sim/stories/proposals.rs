//! Of the way of writes into the log.

use super::*;

/// The disks of the followers are slow from now on, so that nothing is committed for seconds.
fn slow_followers(world: &World) -> Vec<NodeId> {
    let leads = leader(world);
    let followers: Vec<_> = world.nodes.iter().copied().filter(|id| *id != leads).collect();
    followers.iter().for_each(|id| world.sync_time(*id).set(5_000, 5_001));
    followers
}

/// Begins a write at a node.
fn begin(world: &World, id: NodeId, timeout: Duration) -> runtime::JoinHandle<Answer> {
    let (scope, node) = world.running(id).expect("the node is up");
    let command = Command { request: None, op: addition(1) };
    scope.spawn(async move { node.propose(&command, timeout).await })
}

const LONG: Duration = Duration::from_secs(60);

/// While entries are in flight the next one waits until it is full, and never are too many in flight.
#[test]
fn entries_that_wait_grow_until_they_are_full() {
    tell_quietly(41, async |world| {
        let leads = leader(world);
        let followers = slow_followers(world);
        let before = status(world, leads);
        let full = limits::BATCH_COMMANDS;
        let most = limits::FULL_PROPOSALS_IN_FLIGHT;
        // Commands that come at once, and the commands and entries that are proposed by then.
        let steps = [
            (1, 1, 1),
            (1, 2, 2),
            (10, 2, 2),
            (full - 11, 2, 2),
            (1, full + 2, 3),
            ((most - 3) * full, (most - 2) * full + 2, most),
            (2 * full, (most - 2) * full + 2, most),
        ];
        let mut answers = Vec::new();
        for (come, commands, entries) in steps {
            answers.extend((0..come).map(|_| begin(world, leads, LONG)));
            assert!(pass(world, Duration::from_millis(100)).await);
            let now = status(world, leads);
            let proposed = now.proposals_proposed - before.proposals_proposed;
            let appended = now.last_log_index - before.last_log_index;
            assert_eq!((proposed, appended), (commands as u64, entries as u64));
        }
        assert_eq!(status(world, leads).proposals_pending, answers.len() as u64);
        followers.iter().for_each(|id| world.sync_time(*id).set(0, 3));
        for answer in answers {
            answer.await.expect("nobody ends it").unwrap().result.unwrap();
        }
        assert_eq!(status(world, leads).proposals_pending, 0);
    });
}

/// A write that waits behind entries in flight is given up at its deadline, however many come after it.
#[test]
fn a_write_that_is_not_proposed_is_answered_at_its_deadline() {
    tell_quietly(42, async |world| {
        let leads = leader(world);
        let followers = slow_followers(world);
        for _ in 0..limits::PROPOSALS_IN_FLIGHT {
            begin(world, leads, LONG);
            assert!(pass(world, Duration::from_millis(20)).await);
        }
        let waits = begin(world, leads, Duration::from_millis(200));
        for _ in 0..30 {
            begin(world, leads, LONG);
            runtime::sleep(Duration::from_millis(10)).await;
        }
        assert!(waits.is_finished());
        let answer = waits.await.expect("nobody ends it");
        assert!(matches!(answer, Err(Error::Timeout { definite: true })), "{answer:?}");
        followers.iter().for_each(|id| world.sync_time(*id).set(0, 3));
    });
}

/// However many deadlines pass: what was appended is in flight until somebody knows what became of it.
#[test]
fn entries_that_nobody_waits_for_are_in_flight() {
    tell_quietly(43, async |world| {
        let leads = leader(world);
        let followers = slow_followers(world);
        let before = status(world, leads).last_log_index;
        let mut answers = Vec::new();
        for _ in 0..8 {
            let answer = write(world, leads, Duration::from_millis(200)).await;
            answers.push(matches!(answer, Err(Error::Timeout { definite: true })));
        }
        let appended = status(world, leads).last_log_index - before;
        assert_eq!(appended, limits::PROPOSALS_IN_FLIGHT as u64);
        assert_eq!(answers, [false, false, true, true, true, true, true, true]);
        // Nobody waits: a shutdown would not, either.
        assert_eq!(status(world, leads).proposals_pending, 0);
        followers.iter().for_each(|id| world.sync_time(*id).set(0, 3));
        assert!(write(world, leads, LONG).await.is_ok());
        assert_eq!(status(world, leads).proposals_pending, 0);
    });
}

/// Also while entries go through one after the other, and those before it may wait for longer.
#[test]
fn a_write_far_back_in_the_queue_is_answered_at_its_deadline() {
    tell_quietly(44, async |world| {
        let leads = leader(world);
        world.nodes.iter().for_each(|id| world.sync_time(*id).set(40, 41));
        let others: Vec<_> =
            (1..limits::PROPOSAL_QUEUE).map(|_| begin(world, leads, LONG)).collect();
        let waits = begin(world, leads, Duration::from_millis(60));
        runtime::sleep(Duration::from_millis(120)).await;
        let through = others.iter().filter(|write| write.is_finished()).count();
        assert!(through > 0, "none went through");
        let behind = limits::FULL_PROPOSALS_IN_FLIGHT * limits::BATCH_COMMANDS;
        assert!(through + behind < others.len(), "its turn came: {through} were before it");
        assert!(waits.is_finished());
        let answer = waits.await.expect("nobody ends it");
        assert!(matches!(answer, Err(Error::Timeout { definite: true })), "{answer:?}");
        for write in others {
            write.await.expect("nobody ends it").unwrap().result.unwrap();
        }
    });
}

fn follows_another(world: &World, id: NodeId) -> bool {
    let leadership = world.running(id).map(|(_, node)| node.leadership());
    matches!(leadership, Some(Leadership::Follower { .. }))
}

/// What it has appended waits for its disk; what it has not appended does not wait for that.
#[test]
fn a_deposed_leader_passes_on_what_it_has_not_proposed() {
    tell_quietly(45, async |world| {
        let leads = leader(world);
        cut_off(world, leads);
        world.network.reset(leads);
        let mut appended = Vec::new();
        for _ in 0..limits::PROPOSALS_IN_FLIGHT {
            appended.push(begin(world, leads, LONG));
            assert!(pass(world, Duration::from_millis(20)).await);
        }
        let waits = begin(world, leads, LONG);
        until_another_leads(world, leads).await;
        world.sync_time(leads).set(3_000, 3_001);
        world.network.heal();
        until(world, 20 * SECOND, "it follows", || follows_another(world, leads)).await;
        until(world, SECOND, "what waited is passed on", || waits.is_finished()).await;
        // Nor does what comes next, not even for a moment.
        for _ in 0..5 {
            let answer = write(world, leads, Duration::from_millis(40)).await;
            assert!(answer.is_ok(), "{answer:?}");
        }
        assert!(appended.iter().all(|write| !write.is_finished()));
        waits.await.expect("nobody ends it").unwrap().result.unwrap();
        world.sync_time(leads).set(0, 3);
        for write in appended {
            let answer = write.await.expect("nobody ends it");
            assert!(matches!(answer, Err(Error::LeaderChanged)), "{answer:?}");
        }
    });
}

/// What a follower must not pass on is refused, and the refusal tells where clients reach the leader.
#[test]
fn a_refusal_names_where_clients_reach_the_leader() {
    tell_quietly(46, async |world| {
        let (leads, follows) = (leader(world), follower(world));
        // The members have told each other by then.
        assert!(pass(world, SECOND).await);
        let command = Command { request: None, op: addition(1) };
        let refused = move |node: Node| async move { node.propose_here(&command, SECOND).await };
        let answer = on(world, follows, refused).await;
        match &answer {
            Err(Error::NoLeader { leader, definite: true }) => {
                assert_eq!(*leader, Some(format!("client-{leads}")));
            }
            _ => panic!("{answer:?}"),
        }
    });
}
