//! What the state takes for each kind of command: `cargo bench --bench state`. Each sample applies one log entry of
//! 256 commands to a state that holds what they are about; items a second are commands. Under
//! `cargo test --benches` each runs once, so that it does not rot.
#![allow(clippy::unwrap_used)]

use divan::Bencher;
use divan::counter::ItemsCount;
use quorate::state::{
    Addition, Admin, Claim, Command, Content, CounterName, Endpoint, Entry, Format, Health, Holder,
    InstanceName, ItemName, LockName, Op, Pairs, Publication, Registration, Reply, State, Step,
    Txn,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const COMMANDS: u64 = 256;
const KEYS: u64 = 100_000;

fn main() {
    divan::main();
}

struct World {
    state: State,
    /// Of an entry.
    at_ms: u64,
}

impl World {
    fn new() -> World {
        World { state: State::default(), at_ms: 1_700_000_000_000 }
    }

    fn apply(&mut self, commands: &[Vec<u8>]) -> quorate::state::Applied {
        self.at_ms += 1;
        let commands = commands.iter().map(Vec::as_slice).collect();
        self.state.apply(&Entry { term: 1, at_ms: self.at_ms, commands })
    }

    /// Applies what `op` makes of every key.
    fn with(mut self, keys: u64, op: impl Fn(u64) -> Op) -> World {
        let keys = sized(keys);
        for first in (0..keys).step_by(COMMANDS as usize) {
            let keys = first..keys.min(first + COMMANDS);
            self.apply(&keys.map(|key| encoded(op(key))).collect::<Vec<_>>());
        }
        self
    }
}

/// `cargo bench` says that it is one; `cargo test` does not, and gets along with a few.
fn sized(keys: u64) -> u64 {
    if std::env::args().any(|argument| argument == "--bench") { keys } else { keys.min(2_000) }
}

fn encoded(op: Op) -> Vec<u8> {
    Command { request: None, op }.encode().unwrap()
}

/// Applies entries of such commands: each with other keys, drawn from all of them, and other contents.
fn run(bencher: Bencher<'_, '_>, mut world: World, keys: u64, op: impl Fn(u64, u64) -> Op) {
    let keys = sized(keys);
    let mut number = 0u64;
    let entry = || {
        let commands = (0..COMMANDS).map(|_| {
            number += 1;
            // The upper half of the product: the lower bits of one number after the other are in order.
            encoded(op((number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % keys, number))
        });
        commands.collect::<Vec<_>>()
    };
    let bencher = bencher.counter(ItemsCount::new(COMMANDS));
    bencher.with_inputs(entry).bench_local_refs(|entry| world.apply(entry));
}

fn register(key: u64, change: u64) -> Op {
    let filler = format!("{change:0256}");
    Op::Register(Box::new(Registration {
        name: InstanceName {
            namespace: "default".into(),
            service: format!("service-{}", key / 100),
            id: format!("i{key}"),
        },
        endpoints: vec![Endpoint { name: String::new(), host: "192.0.2.1".into(), port: 8080 }]
            .into(),
        weight: 100,
        zone: String::new(),
        metadata: vec![("value".into(), filler)].into(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: String::new(),
        hash_key: String::new(),
        session: None,
    }))
}

fn publication(key: u64, change: u64) -> Publication {
    Publication {
        name: ItemName { namespace: "default".into(), group: "g".into(), key: format!("i{key}") },
        content: Content {
            format: Format::Text,
            bytes: format!("{change:0256}").into_bytes().into(),
        },
        labels: None,
        keep: Some(10),
        author: "bench".into(),
        comment: String::new(),
        expected_version: None,
        schema: 0,
        gray: None,
    }
}

fn addition(key: u64) -> Addition {
    let name = format!("c{key}");
    let name = CounterName { namespace: "default".into(), name, labels: Pairs::default() };
    Addition { name, kind: None, delta: 1, floor: None, ceil: None }
}

#[divan::bench(args = [10_000, KEYS, 1_000_000])]
fn register_again(bencher: Bencher<'_, '_>, keys: u64) {
    run(bencher, World::new().with(keys, |key| register(key, 0)), keys, register);
}

#[divan::bench]
fn register_and_deregister(bencher: Bencher<'_, '_>) {
    let op = |key: u64, number: u64| match number % 2 {
        0 => register(key, number),
        _ => {
            let Op::Register(registration) = register(key, number) else { unreachable!() };
            Op::Deregister { name: registration.name, expected_mod_revision: None }
        }
    };
    run(bencher, World::new().with(KEYS, |key| register(key, 0)), KEYS, op);
}

#[divan::bench(args = [10_000, KEYS])]
fn publish_config(bencher: Bencher<'_, '_>, keys: u64) {
    let op = |key, change| Op::PublishConfig(Box::new(publication(key, change)));
    run(bencher, World::new().with(keys, |key| op(key, 0)), keys, op);
}

#[divan::bench(args = [10_000, KEYS, 1_000_000])]
fn add_to_counter(bencher: Bencher<'_, '_>, keys: u64) {
    let op = |key, _| Op::AddCounter(Box::new(addition(key)));
    run(bencher, World::new().with(keys, |key| op(key, 0)), keys, op);
}

#[divan::bench]
fn take_a_lock(bencher: Bencher<'_, '_>) {
    let mut world = World::new();
    let open = encoded(Op::OpenSession { ttl_ms: 3_600_000, client: "bench".into() });
    let reply = world.apply(&[open]).outcomes.remove(0).result;
    let Ok(Reply::SessionOpened { session, .. }) = reply else { panic!("{reply:?}") };
    // Taken again it changes its value.
    let op = move |key: u64, number: u64| {
        let lock = LockName { namespace: "default".into(), lock: format!("l{}", key % 5_000) };
        let holder = Holder { session, name: String::new() };
        Op::AcquireLock(Box::new(Claim { lock, holder, value: number.to_string(), wait: false }))
    };
    run(bencher, world, KEYS, op);
}

#[divan::bench]
fn transaction_of_three_writes(bencher: Bencher<'_, '_>) {
    let op = |key: u64, change: u64| {
        let then = vec![
            Step::Write(Op::PublishConfig(Box::new(publication(key, change)))),
            Step::Write(Op::AddCounter(Box::new(addition(key)))),
            Step::Write(Op::AddCounter(Box::new(addition((key + 1) % KEYS)))),
        ];
        Op::Txn(Box::new(Txn { when: vec![], then, otherwise: vec![] }))
    };
    run(bencher, World::new(), KEYS, op);
}

/// What every node does at the same index.
#[divan::bench(args = [1_000, 100_000])]
fn digest(bencher: Bencher<'_, '_>, keys: u64) {
    let mut world = World::new();
    for key in 0..keys {
        world.apply(&[encoded(register(key, 0))]);
    }
    bencher.counter(ItemsCount::new(keys)).bench_local(|| world.state.digest());
}
