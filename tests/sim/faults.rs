//! The nemesis: what goes wrong in a run, when and for how long, drawn from the run's seed. Faults
//! overlap; between them it is quiet now and then, so that operations succeed before, during and after.

use std::sync::Arc;
use std::time::Duration;

use quorate::raft::types::NodeId;
use quorate::runtime::{self, Instant};
use quorate::store::fault::{Crash, Faults};
use rand::RngExt as _;
use rand::rngs::StdRng;

use crate::cluster::{End, World};
use crate::network::CLIENTS;
use crate::participants::PARTICIPANTS;
use crate::trace::trace;

/// Clients that a partition may reach.
const SOME_CLIENTS: u64 = 9;

fn any(world: &World, random: &mut StdRng) -> NodeId {
    world.nodes[random.random_range(0..world.nodes.len())]
}

/// The leader more often than chance would have it.
fn target(world: &World, random: &mut StdRng) -> NodeId {
    let node = any(world, random);
    match world.leader() {
        Some(leader) if random.random_range(0..2) == 0 => leader,
        Some(_) | None => node,
    }
}

fn millis(random: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

fn crash(random: &mut StdRng) -> End {
    let crash = Crash::ALL[random.random_range(0..Crash::ALL.len())];
    // sled promises little: its last write may be gone.
    let image = crash != Crash::Kill && random.random_range(0..3) == 0;
    End { crash, image }
}

/// Starts whoever is down and due, and ends the lives of those that gave up by themselves. Goes on
/// to the end of the run.
pub async fn revive(world: Arc<World>, mut random: StdRng) {
    loop {
        let aborted = std::mem::take(&mut *world.aborted.lock().expect("no task panicked here"));
        for (id, _) in aborted {
            let (end, rest) = (crash(&mut random), millis(&mut random, 20..800));
            world.end(id, end, rest).await;
        }
        for id in world.nodes.iter().copied() {
            world.start_if_due(id);
        }
        runtime::sleep(Duration::from_millis(10)).await;
    }
}

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Kill,
    KillAll,
    Partition,
    Lossy,
    Pause,
    Hold,
    Transfer,
    Clock,
    SlowDisk,
    /// Most disks stand still for seconds, while messages travel.
    Stall,
    Snapshot,
    Reset,
    Spoil,
}

/// How often each goes wrong, as parts of a hundred.
const FAULTS: [(Fault, u32); 13] = [
    (Fault::Kill, 20),
    (Fault::KillAll, 5),
    (Fault::Partition, 23),
    (Fault::Lossy, 8),
    (Fault::Pause, 8),
    (Fault::Hold, 6),
    (Fault::Transfer, 7),
    (Fault::Clock, 4),
    (Fault::SlowDisk, 5),
    (Fault::Stall, 2),
    (Fault::Snapshot, 3),
    (Fault::Reset, 2),
    (Fault::Spoil, 7),
];

/// Which faults a run has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mix {
    Everything,
    /// Processes and machines.
    Crashes,
    Network,
    Disks,
    /// Whatever makes nodes late, and nothing that ends them.
    Delays,
}

impl Mix {
    pub const ALL: [Mix; 5] =
        [Mix::Everything, Mix::Crashes, Mix::Network, Mix::Disks, Mix::Delays];

    fn has(self, fault: Fault) -> bool {
        match self {
            Mix::Everything => true,
            Mix::Crashes => matches!(fault, Fault::Kill | Fault::KillAll | Fault::Snapshot),
            Mix::Network => matches!(
                fault,
                Fault::Partition | Fault::Lossy | Fault::Hold | Fault::Reset | Fault::Transfer
            ),
            Mix::Disks => matches!(
                fault,
                Fault::Kill | Fault::SlowDisk | Fault::Stall | Fault::Snapshot | Fault::Spoil
            ),
            Mix::Delays => matches!(
                fault,
                Fault::Pause | Fault::Hold | Fault::Transfer | Fault::Clock | Fault::Stall
            ),
        }
    }

    fn draw(self, random: &mut StdRng) -> Fault {
        let all = FAULTS.iter().filter(|(fault, _)| self.has(*fault));
        let mut at = random.random_range(0..all.clone().map(|(_, parts)| parts).sum());
        for (fault, parts) in all {
            match at.checked_sub(*parts) {
                Some(rest) => at = rest,
                None => return *fault,
            }
        }
        unreachable!("what is drawn is below the sum")
    }
}

/// Does harm until `until`.
pub async fn harm(world: Arc<World>, mut random: StdRng, until: Instant) {
    while Instant::now() < until {
        let pause = match random.random_range(0..4) {
            0 => millis(&mut random, 1_000..2_500),
            _ => millis(&mut random, 50..900),
        };
        runtime::sleep(pause).await;
        let (fault, own) = (world.mix.draw(&mut random), world.fork_random());
        // Each fault has a task of its own, so that they overlap.
        world.harness.spawn(happen(world.clone(), fault, own));
    }
}

async fn happen(world: Arc<World>, fault: Fault, mut random: StdRng) {
    let random = &mut random;
    match fault {
        Fault::Kill => {
            let (id, end, rest) =
                (target(&world, random), crash(random), millis(random, 20..2_500));
            world.end(id, end, rest).await;
        }
        Fault::KillAll => {
            let nodes = world.nodes.iter();
            let ends: Vec<_> =
                nodes.map(|id| (*id, crash(random), millis(random, 20..1_500))).collect();
            let of_power = ends.iter().all(|(_, end, _)| end.crash != Crash::Kill);
            world.end_all(ends).await;
            world.oracle().counts.blackouts += u64::from(of_power);
        }
        Fault::Partition => partition(&world, random).await,
        Fault::Lossy => lossy(&world, random).await,
        Fault::Pause => {
            let id = target(&world, random);
            let length = millis(random, 200..2_500);
            trace!(world, "nemesis pauses {id}");
            world.oracle().counts.pauses += 1;
            world.pause(id);
            if length > Duration::from_secs(2) {
                runtime::sleep(Duration::from_secs(2)).await;
                world.network.reset(id);
            }
            runtime::sleep(length.saturating_sub(Duration::from_secs(2))).await;
            if length <= Duration::from_secs(2) {
                runtime::sleep(length).await;
            }
            trace!(world, "nemesis resumes {id}");
            world.resume(id);
        }
        Fault::Hold => {
            let id = target(&world, random);
            let length = millis(random, 200..2_000);
            trace!(world, "nemesis holds what {id} sends");
            world.oracle().counts.pauses += 1;
            world.network.hold(id, Instant::now() + length);
        }
        Fault::Transfer => transfer(&world, random).await,
        Fault::Clock => {
            let id = any(&world, random);
            let shift = random.random_range(-60_000..60_000);
            trace!(world, "nemesis turns the clock of {id} by {shift}");
            world.shift_clock(id, shift);
        }
        Fault::SlowDisk => {
            let id = target(&world, random);
            let time = world.sync_time(id);
            let most = random.random_range(20..600);
            trace!(world, "nemesis slows the syncs of {id} to {most}");
            time.set(most / 4, most);
            runtime::sleep(millis(random, 300..2_500)).await;
            time.set(0, 3);
        }
        Fault::Stall => stall(&world, random).await,
        Fault::Snapshot => {
            let id = any(&world, random);
            trace!(world, "nemesis asks {id} for a snapshot");
            if let Some((scope, node)) = world.running(id) {
                scope.spawn(async move {
                    // Whether there is anything to make one of is not the point.
                    drop(node.snapshot().await);
                });
            }
        }
        Fault::Reset => {
            let id = any(&world, random);
            trace!(world, "nemesis resets the connections of {id}");
            world.network.reset(id);
        }
        Fault::Spoil => sabotage(&world, random).await,
    }
}

/// The disks of all but the leader, or but any one node, take seconds for a sync: nothing is
/// committed, and who leads goes on to lead.
async fn stall(world: &World, random: &mut StdRng) {
    let one = target(world, random);
    let (least, length) = (random.random_range(500..4_000), millis(random, 1_000..8_000));
    trace!(world, "nemesis stalls the syncs of all but {one} to {least}");
    let others = || world.nodes.iter().filter(|id| **id != one);
    for id in others() {
        world.sync_time(*id).set(least, least + 500);
    }
    runtime::sleep(length).await;
    for id in others() {
        world.sync_time(*id).set(0, 3);
    }
}

async fn partition(world: &World, random: &mut StdRng) {
    let mut links: Vec<(u64, u64)> = Vec::new();
    let one = target(world, random);
    let others: Vec<NodeId> = world.nodes.iter().copied().filter(|id| *id != one).collect();
    let both = |a: u64, b: u64| [(a, b), (b, a)];
    match random.random_range(0..7) {
        // Alone, but for some clients.
        0 | 1 => {
            links.extend(others.iter().flat_map(|other| both(one, *other)));
            let clients = (0..SOME_CLIENTS).filter(|_| random.random_range(0..3) == 0);
            links.extend(clients.flat_map(|client| both(one, CLIENTS + client)));
            if random.random_range(0..3) == 0 {
                links.extend(both(one, PARTICIPANTS));
            }
        }
        // Deaf.
        2 => links.extend(others.iter().map(|other| (*other, one))),
        // Mute.
        3 => links.extend(others.iter().map(|other| (one, *other))),
        // Nobody sees anybody.
        4 => {
            let all = || world.nodes.iter().copied();
            links.extend(all().flat_map(|from| all().map(move |to| (from, to))));
            links.retain(|(from, to)| from != to);
        }
        // One link: two others do not see each other.
        5 => links.extend(both(others[0], others[1])),
        // One link in one direction.
        _ => links.push((one, others[random.random_range(0..others.len())])),
    }
    let rejects = random.random();
    trace!(world, "nemesis cuts {links:?}, and says so: {rejects}");
    world.oracle().counts.partitions += 1;
    for (from, to) in &links {
        match rejects {
            true => world.network.reject(*from, *to),
            false => world.network.cut(*from, *to),
        }
    }
    runtime::sleep(millis(random, 100..4_000)).await;
    trace!(world, "nemesis joins {links:?}");
    for (from, to) in &links {
        world.network.join(*from, *to);
    }
}

async fn lossy(world: &World, random: &mut StdRng) {
    let id = any(world, random);
    let one_in = random.random_range(2..10);
    let slow = (random.random_range(0..2) == 0).then(|| random.random_range(10..300));
    trace!(world, "nemesis makes {id} lossy: 1 in {one_in}, slow {slow:?}");
    let nodes = world.nodes.iter().copied();
    let peers = nodes.chain(CLIENTS..CLIENTS + SOME_CLIENTS).chain([PARTICIPANTS]);
    let peers = peers.filter(|to| *to != id);
    let links: Vec<_> = peers.flat_map(|peer| [(id, peer), (peer, id)]).collect();
    for (from, to) in &links {
        world.network.lose(*from, *to, Some(one_in));
    }
    world.network.slow_down(id, slow);
    runtime::sleep(millis(random, 300..3_000)).await;
    for (from, to) in &links {
        world.network.lose(*from, *to, None);
    }
    world.network.slow_down(id, None);
}

async fn transfer(world: &Arc<World>, random: &mut StdRng) {
    let (from, to) = (any(world, random), any(world, random));
    let to = (random.random_range(0..3) > 0).then_some(to);
    trace!(world, "nemesis asks {from} to let {to:?} lead");
    let Some((scope, node)) = world.running(from) else { return };
    let told = world.clone();
    scope.spawn(async move {
        let result = node.transfer_leader(to, Duration::from_secs(3)).await;
        trace!(told, "{to:?} leads: {result:?}");
        if result.is_ok() {
            told.oracle().counts.transfers += 1;
        }
    });
}

/// A call to a disk of a node fails soon, or the power goes off in the middle of its work.
async fn sabotage(world: &World, random: &mut StdRng) {
    let id = target(world, random);
    let (kind, ahead) = (random.random_range(0..6), random.random_range(0..12));
    let of_log = random.random_range(0..3) > 0;
    trace!(world, "nemesis spoils a disk of {id}: log {of_log}, {kind}, in {ahead} calls");
    world.sabotage(id, |log, snapshots| {
        let disk = if of_log { log } else { snapshots };
        let (counts, faults) = (disk.counts(), disk.faults());
        disk.set_faults(match kind {
            0 => Faults { fail_write: Some(counts.writes + ahead), ..faults },
            1 | 2 => Faults { fail_sync: Some(counts.syncs + ahead), ..faults },
            _ if of_log => Faults { power_off_at: Some(counts.calls + ahead), ..faults },
            3 => Faults { fail_sync_dir: Some(counts.dir_syncs + ahead / 2), ..faults },
            4 => Faults { fail_read: Some(counts.reads + ahead), ..faults },
            _ => Faults { capacity: Some(0), ..faults },
        });
    });
    runtime::sleep(Duration::from_secs(2)).await;
    world.repair(id);
}

/// Nothing is wrong any more, and whoever was down comes back.
pub fn heal(world: &World) {
    trace!(world, "nemesis heals everything");
    world.network.heal();
    world.services().calm_down();
    for id in world.nodes.iter().copied() {
        world.resume(id);
        world.sync_time(id).set(0, 3);
        world.repair(id);
    }
}
