//! One run: a cluster, its clients and its nemesis, on virtual time, from one seed.

use std::cell::RefCell;
use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once, mpsc};
use std::time::Duration;

use quorate::proto::v1::Consistency;
use quorate::runtime::{self, Instant};
use quorate::state::InstanceName;

use crate::cluster::World;
use crate::faults::{self, Mix};
use crate::network::CLIENTS;
use crate::oracle::Counts;
use crate::oracle::writes::instance_key;
use crate::plant::Plant;
use crate::trace::{Trace, trace};
use crate::workload;

/// Real time without an event after which a run hangs. On a loaded machine a run may take long.
const WATCHDOG: Duration = Duration::from_secs(300);
/// Virtual time within which a healed cluster serves, and within which its nodes are equal.
const SERVICE: Duration = Duration::from_secs(5);
const EQUAL: Duration = Duration::from_secs(10);
/// Virtual time after which a client's call has ended whatever happens.
const CALLS: Duration = Duration::from_secs(20);
/// Virtual time within which global transactions end when nothing goes wrong.
const SAGAS: Duration = Duration::from_secs(20);
/// Longest TTL of a session and the time that its expiry may take.
const EXPIRY: Duration = Duration::from_secs(7);

/// What is run.
#[derive(Debug, Clone)]
pub struct Setup {
    pub seed: u64,
    pub plant: Plant,
    /// How long things go wrong, in virtual time.
    pub faults: Duration,
    /// What goes wrong.
    pub mix: Mix,
    pub nodes: u64,
    /// Multiplies the clients.
    pub load: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Report {
    pub seed: u64,
    pub hash: u64,
    pub events: u64,
    /// Empty: everything held.
    pub violations: Vec<String>,
    pub counts: Counts,
    /// Virtual time.
    pub took: Duration,
}

thread_local! {
    /// Panics of this thread's tasks, which tokio would swallow.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static RUNNING: RefCell<bool> = const { RefCell::new(false) };
}

/// A panic during a run is a finding; in production it would end the process.
fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if RUNNING.with_borrow(|running| *running) {
                let what = format!("{info}");
                eprintln!("{what}");
                PANICS.with_borrow_mut(|panics| panics.push(what));
            } else {
                usual(info);
            }
        }));
    });
}

/// Ends the process when a run does not come to its end: virtual time has stopped.
struct Watchdog(#[allow(dead_code, reason = "its drop ends the thread")] mpsc::Sender<()>);

impl Watchdog {
    fn start(setup: &Setup, events: Arc<AtomicU64>) -> Watchdog {
        let (sender, receiver) = mpsc::channel::<()>();
        let setup = setup.clone();
        std::thread::spawn(move || {
            let mut before = 0;
            while receiver.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = events.load(Ordering::Relaxed);
                if now == before {
                    eprintln!("{setup:?} hangs after {now} events\n{}", repeat(&setup));
                    std::process::exit(3);
                }
                before = now;
            }
        });
        Watchdog(sender)
    }
}

/// The command that repeats a run.
pub fn repeat(setup: &Setup) -> String {
    let plant = match setup.plant {
        Plant::None => String::new(),
        plant => format!("QUORATE_SIM_PLANT={plant:?} "),
    };
    let Setup { seed, plant: _, faults, mix, nodes, load } = setup;
    let seconds = faults.as_secs();
    format!(
        "repeat with: {plant}QUORATE_SIM_SECONDS={seconds} QUORATE_SIM_NODES={nodes} \
         QUORATE_SIM_LOAD={load} QUORATE_SIM_MIX={mix:?} QUORATE_SIM_SEED={seed} \
         cargo test --test sim one_seed_from_the_environment -- --nocapture"
    )
}

/// Runs a seed to its end.
pub fn run(setup: &Setup) -> Report {
    play(setup, async |world| story(world, setup).await)
}

/// Runs a story in a world of its own. Nothing goes wrong in it but what the story does.
pub fn play(setup: &Setup, story: impl AsyncFnOnce(&Arc<World>)) -> Report {
    install_hook();
    let events = Arc::new(AtomicU64::new(0));
    let watchdog = Watchdog::start(setup, events.clone());
    RUNNING.set(true);
    PANICS.take();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without drivers needs nothing that could be missing");
    let report = runtime.block_on(async {
        let file = std::env::var_os("QUORATE_SIM_TRACE")
            .map(|path| File::create(path).expect("the trace file can be created"));
        let world = World::new(setup, Trace::new(file, events));
        // What it asks nodes draws from the seed, too, and blocks no thread.
        world.harness.clone().run(story(&world)).await;
        let (hash, events) = world.trace.result();
        let oracle = std::mem::take(&mut *world.oracle());
        let violations = oracle.violations;
        let took = world.now();
        for id in &world.nodes {
            world.drop_life(*id);
        }
        world.harness.kill();
        Report { seed: setup.seed, hash, events, violations, counts: oracle.counts, took }
    });
    drop(runtime);
    RUNNING.set(false);
    PANICS.take();
    drop(watchdog);
    report
}

/// True when something was found, which ends the run.
pub fn is_over(world: &World) -> bool {
    for what in PANICS.take() {
        world.violated(what);
    }
    !world.oracle().violations.is_empty()
}

/// Waits, unless something is found; false in that case.
pub async fn pass(world: &World, time: Duration) -> bool {
    let until = Instant::now() + time;
    while Instant::now() < until {
        runtime::sleep(Duration::from_millis(50)).await;
        if is_over(world) {
            return false;
        }
    }
    true
}

async fn story(world: &Arc<World>, setup: &Setup) {
    world.harness.spawn(faults::revive(world.clone(), world.fork_random()));
    world.harness.spawn(count_leaders(world.clone()));
    world.harness.spawn(look_at_indexes(world.clone()));
    let tasks = workload::spawn(world);
    if !pass(world, Duration::from_secs(2)).await {
        return;
    }
    let until = Instant::now() + setup.faults;
    let nemesis = world.harness.spawn(faults::harm(world.clone(), world.fork_random(), until));
    if !pass(world, setup.faults).await {
        return;
    }
    // Its last faults end by themselves; what they do after the healing is undone by a second one.
    nemesis.abort();
    faults::heal(world);
    if !pass(world, Duration::from_secs(4)).await {
        return;
    }
    faults::heal(world);
    if !serves(world).await || !pass(world, Duration::from_secs(2)).await {
        return;
    }
    finish(world, tasks).await;
}

/// The clients end, then all must be equal.
pub async fn finish(world: &Arc<World>, clients: Vec<runtime::JoinHandle<()>>) {
    world.busy.store(false, Ordering::Relaxed);
    world.services().calm_down();
    if !sagas_come_to_rest(world).await {
        return;
    }
    for client in clients {
        if runtime::timeout(CALLS, client).await.is_err() {
            world.violated(format!("a client's call has not ended after {CALLS:?}"));
            return;
        }
        if is_over(world) {
            return;
        }
    }
    if pass(world, EXPIRY).await && sagas_end(world).await {
        ends_well(world).await;
    }
    is_over(world);
}

/// How often the leadership has changed.
pub async fn count_leaders(world: Arc<World>) {
    let mut known = None;
    loop {
        runtime::sleep(Duration::from_millis(20)).await;
        if let Some(leader) = world.leader()
            && known != Some(leader)
        {
            known = Some(leader);
            trace!(world, "{leader} leads");
            world.oracle().counts.leaders += 1;
        }
    }
}

async fn look_at_indexes(world: Arc<World>) {
    loop {
        runtime::sleep(Duration::from_millis(50)).await;
        for id in world.nodes.iter().copied() {
            let Some((_, node)) = world.running(id) else { continue };
            world.oracle().indexes_are_in_order(&node.status());
        }
    }
}

/// Each node answers a linearizable read within bounded time.
pub async fn serves(world: &Arc<World>) -> bool {
    for id in world.nodes.iter().copied() {
        let give_up = Instant::now() + SERVICE;
        loop {
            let name = InstanceName {
                namespace: "default".to_owned(),
                service: "s0".to_owned(),
                id: "i0".to_owned(),
            };
            let (key, linearizable) = (instance_key(&name), Consistency::Linearizable);
            let timeout = Duration::from_secs(1);
            if workload::read_once(world, CLIENTS, id, linearizable, key, timeout).await {
                break;
            }
            if is_over(world) {
                return false;
            }
            if Instant::now() >= give_up {
                let status = statuses(world);
                world.violated(format!(
                    "node {id} serves no linearizable read {SERVICE:?} after the healing: {status}"
                ));
                return false;
            }
        }
    }
    true
}

fn statuses(world: &World) -> String {
    let mut text = String::new();
    for id in world.nodes.iter().copied() {
        match world.running(id) {
            Some((_, node)) => text += &format!("\n{:?}", node.status()),
            None => text += &format!("\nnode {id} is down"),
        }
    }
    text
}

/// Every global transaction ends or is suspended, when nothing goes wrong.
async fn sagas_come_to_rest(world: &Arc<World>) -> bool {
    let give_up = Instant::now() + SAGAS;
    loop {
        let (running, _) = world.oracle().unfinished_sagas();
        if running.is_empty() {
            world.oracle().suspended_have_reasons();
            return !is_over(world);
        }
        if Instant::now() >= give_up {
            world.violated(format!("{} not at rest after {SAGAS:?}: {running:?}", running.len()));
            return false;
        }
        if !pass(world, Duration::from_millis(200)).await {
            return false;
        }
    }
}

/// Whatever is suspended ends when an operator lets it go on.
async fn sagas_end(world: &Arc<World>) -> bool {
    let give_up = Instant::now() + SAGAS;
    while sagas_come_to_rest(world).await {
        let (_, suspended) = world.oracle().unfinished_sagas();
        if suspended.is_empty() {
            return true;
        }
        if Instant::now() >= give_up {
            world.violated(format!("suspended again and again for {SAGAS:?}: {suspended:?}"));
            return false;
        }
        for saga in suspended {
            workload::resume(world, &saga).await;
        }
    }
    false
}

/// All nodes are equal, and equal to what was applied.
pub async fn ends_well(world: &Arc<World>) {
    let give_up = Instant::now() + EQUAL;
    let digests = loop {
        let mut digests = Vec::new();
        for id in world.nodes.iter().copied() {
            if let Some((_, node)) = world.running(id)
                && let Ok(digest) = node.digest().await
            {
                digests.push((id, digest));
            }
        }
        let index = |(_, (index, _, _)): &(u64, (u64, u64, u64))| *index;
        let equal = digests.windows(2).all(|pair| index(&pair[0]) == index(&pair[1]));
        if digests.len() == world.nodes.len() && equal {
            break digests;
        }
        if Instant::now() >= give_up {
            let status = statuses(world);
            world.violated(format!("the nodes are not equal after {EQUAL:?}: {status}"));
            return;
        }
        runtime::sleep(Duration::from_millis(50)).await;
    };
    trace!(world, "end {digests:?}");
    for (id, (_, digest, records)) in digests {
        world.oracle().ends_with(id, digest, records);
    }
    for id in world.nodes.iter().copied() {
        let Some((_, node)) = world.running(id) else { continue };
        let sessions: Vec<u64> =
            node.read(|state| state.sessions().map(|(session, _)| session.id).collect());
        if !sessions.is_empty() {
            world.violated(format!("sessions {sessions:?} have not expired on node {id}"));
        }
        let status = node.status();
        world.oracle().counts.purges += u64::from(status.purged_index > 0);
        // A lead that the nemesis has given the cluster's time is lost by itself, in ten times as long.
        let of_clock = |error: &String| error.starts_with("this machine's clock");
        let errors: Vec<String> = status.errors.into_iter().filter(|it| !of_clock(it)).collect();
        if !errors.is_empty() {
            world.violated(format!("node {id} ends with errors: {errors:?}"));
        }
    }
    let mut oracle = world.oracle();
    oracle.failed_writes_are_not_there();
    oracle.counters_add_up();
    oracle.no_lock_is_left();
    oracle.sagas_are_whole();
}
