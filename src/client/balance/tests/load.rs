//! Calls under way, as many threads count them while snapshots follow each other.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, RwLock};

use super::*;

/// Calls that the sides of the newest snapshot say are under way.
fn sides(snapshot: &Snapshot<()>) -> [u64; 2] {
    [0, 1].map(|side| snapshot.lineage.calls[side].0.load(Relaxed))
}

/// Whoever leaves takes its calls with it, whoever returns brings them, and whoever moves to another
/// zone's side moves them.
#[test]
fn calls_move_with_their_endpoint() {
    let make = |zone: &str| Endpoint { zone: zone.to_owned(), ..endpoint("a") };
    let policy: Policy = "ring_hash?bound=1.25&zone=prefer".parse().unwrap();
    let first = Snapshot::new(&policy, &origin("", "home"), vec![make("home"), endpoint("b")]);
    let flight = first.pick(Some(1), ZERO, 1).unwrap().start(ZERO);
    let held = first.pick(Some(1), ZERO, 1).unwrap();
    assert_eq!(held.endpoint().id, "a");
    assert_eq!(sides(&first), [2, 0]);
    let away = successor(&first, vec![make("away"), endpoint("b")], ZERO);
    assert_eq!(sides(&away), [0, 2]);
    drop(held);
    assert_eq!(sides(&away), [0, 1]);
    let gone = successor(&away, vec![endpoint("b")], ZERO);
    assert_eq!(sides(&gone), [0, 0]);
    // A pick from a snapshot of the past, of an endpoint that is gone.
    let late = first.pick(Some(1), ZERO, 1).unwrap().start(ZERO);
    assert_eq!(sides(&gone), [0, 0]);
    drop((flight, late));
    assert_eq!(sides(&gone), [0, 0]);
    assert_eq!(first.members()[0].in_flight(), 0);
}

#[test]
fn a_pick_that_is_not_started_gives_its_place_back() {
    let snapshot = snapshot("maglev?bound=1.25", numbered(3));
    let picks: Vec<_> = (0..10).map(|i| snapshot.pick(Some(i), ZERO, i).unwrap()).collect();
    assert_eq!(sides(&snapshot), [10, 0]);
    drop(picks);
    assert_eq!(sides(&snapshot), [0, 0]);
    assert!(snapshot.members().iter().all(|member| member.in_flight() == 0));
    let none = super::snapshot(
        "maglev?bound=1.25&panic_percent=0",
        vec![Endpoint { healthy: false, ..endpoint("a") }],
    );
    none.pick(Some(1), ZERO, 1).unwrap_err();
    assert_eq!(sides(&none), [0, 0]);
}

/// Threads pick, start, finish and drop while endpoints come, go and change sides. In the end nothing is
/// under way, and nothing was lost or counted twice on the way there.
#[test]
fn counts_are_exact_under_threads() {
    for policy in ["ring_hash?bound=1.25&zone=prefer", "least_request?zone=prefer&subset_size=4"] {
        let policy: Policy = policy.parse().unwrap();
        let endpoints = |round: u64| -> Vec<Endpoint<()>> {
            let mut random = Random(round);
            (0..8)
                .filter_map(|i| {
                    let draw = random.next();
                    let zone = if draw & 1 == 0 { "home" } else { "away" }.to_owned();
                    let admin = if draw & 6 == 0 { Admin::Draining } else { Admin::Enabled };
                    (draw & 24 != 0).then(|| Endpoint { zone, admin, ..endpoint(format!("n-{i}")) })
                })
                .collect()
        };
        let first = Snapshot::new(&policy, &origin("me", "home"), endpoints(0));
        let current = RwLock::new(Arc::new(first));
        std::thread::scope(|scope| {
            for thread in 0..3u64 {
                let current = &current;
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let mut flights = Vec::new();
                    for step in 0..20_000u64 {
                        let snapshot = Arc::clone(&current.read().unwrap());
                        if let Ok(pick) = snapshot.pick(Some(random.next()), ZERO, step)
                            && step % 3 != 0
                        {
                            flights.push(pick.start(ZERO));
                        }
                        if flights.len() > 20 {
                            let i = random.below(flights.len() as u32) as usize;
                            flights.swap_remove(i).finish(Outcome::Success, ZERO);
                        }
                    }
                });
            }
            for round in 1..300 {
                let before = Arc::clone(&current.read().unwrap());
                let next = successor(&before, endpoints(round), ZERO);
                *current.write().unwrap() = Arc::new(next);
                std::thread::yield_now();
            }
        });
        let last = current.into_inner().unwrap();
        assert_eq!(sides(&last), [0, 0], "{policy}");
        assert!(last.members().iter().all(|member| member.in_flight() == 0), "{policy}");
    }
}
