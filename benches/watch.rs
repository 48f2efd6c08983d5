//! What one change costs that is watched: `cargo bench --bench watch`. From the hub's `publish` until every watcher
//! has its message, encoded once and shared. Under `cargo test --benches` each runs once.
#![allow(clippy::unwrap_used)]

use divan::Bencher;
use divan::counter::ItemsCount;
use futures::FutureExt as _;
use quorate::state::{
    Admin, Applied, Command, Endpoint, Entry, Health, InstanceName, Op, Registration, State,
};
use quorate::watch::{Hub, Range, Selector};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() {
    divan::main();
}

fn change(state: &mut State, service: usize, weight: u32) -> Applied {
    let op = Op::Register(Box::new(Registration {
        name: InstanceName {
            namespace: "default".into(),
            service: format!("service-{service}"),
            id: "a".into(),
        },
        endpoints: vec![Endpoint { name: String::new(), host: "192.0.2.1".into(), port: 8080 }]
            .into(),
        weight,
        zone: String::new(),
        metadata: vec![("value".into(), "x".repeat(256))].into(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: String::new(),
        hash_key: String::new(),
        session: None,
    }));
    let command = Command { request: None, op }.encode().unwrap();
    state.apply(&Entry { term: 1, at_ms: 1, commands: vec![&command] })
}

/// `watchers` of each of `services`, of which the first one changes.
fn fan_out(bencher: Bencher<'_, '_>, services: usize, watchers: usize) {
    let mut state = State::default();
    let hub = Hub::new(state.revision());
    let mut subscriptions = Vec::new();
    for service in 0..services {
        for _ in 0..watchers {
            let selector = Selector::service("default", format!("service-{service}"));
            let range = Range::new(vec![selector]).unwrap();
            let mut subscription = hub.subscribe(range, 0, &state).unwrap();
            // The snapshot.
            subscription.next().now_or_never().unwrap().unwrap().unwrap();
            if service == 0 {
                subscriptions.push(subscription);
            } else {
                // It stays, and hears nothing.
                std::mem::forget(subscription);
            }
        }
    }
    let mut weight = 0;
    bencher.counter(ItemsCount::new(watchers)).bench_local(|| {
        weight = weight % 1_000 + 1;
        let applied = change(&mut state, 0, weight);
        drop(hub.publish(state.revision(), &applied.events));
        for subscription in &mut subscriptions {
            let message = subscription.next().now_or_never().unwrap().unwrap().unwrap();
            divan::black_box(message);
        }
    });
}

/// Watchers that hear of it.
#[divan::bench(args = [1, 100, 10_000])]
fn of_one_service(bencher: Bencher<'_, '_>, watchers: usize) {
    fan_out(bencher, 1, watchers);
}

/// One watcher hears of it, the others watch something else.
#[divan::bench(args = [1, 100, 10_000])]
fn beside_idle_ones(bencher: Bencher<'_, '_>, services: usize) {
    fan_out(bencher, services, 1);
}
