//! What balancing costs and how well it spreads: `cargo bench --bench balance`, without the server with
//! `--no-default-features`. Under `cargo test --benches` it runs in a small size, so that it does not rot.
//!
//! Each table ends with a hash of everything that was picked: the optimizer cannot drop the work, and
//! the same code gives the same hash. Figures beside a goal say whether they meet it.
#![allow(clippy::disallowed_methods, reason = "the real clock is what a benchmark is for")]
#![allow(clippy::unwrap_used)]

use std::alloc::System;
use std::collections::VecDeque;
use std::hint::black_box;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use maglev::ConsistentHasher;
use quorate::client::balance::{Endpoint, Flight, Origin, Outcome, Snapshot, hash};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// How much is done.
struct Size {
    endpoints: &'static [usize],
    picks: u64,
    rounds: u32,
    keys: u64,
}

const FULL: Size =
    Size { endpoints: &[10, 100, 1_000], picks: 2_000_000, rounds: 7, keys: 10_000_000 };
const SMALL: Size = Size { endpoints: &[10, 50], picks: 2_000, rounds: 2, keys: 20_000 };

const HASHING: [&str; 4] = ["ring_hash", "ketama", "maglev", "rendezvous"];
const ALL: [&str; 14] = [
    "ring_hash",
    "ketama",
    "maglev",
    "rendezvous",
    "ring_hash?bound=1.25",
    "maglev?bound=1.25",
    "rendezvous?bound=1.25",
    "least_request",
    "least_request?choice_count=4",
    "peak_ewma",
    "weighted_round_robin",
    "round_robin",
    "random",
    "pick_first",
];

fn main() {
    // `cargo bench` says so; `cargo test` does not.
    let full = std::env::args().any(|argument| argument == "--bench");
    let only: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let size = if full { FULL } else { SMALL };
    for (name, run) in [
        ("picks", picks as fn(&Size) -> u64),
        ("builds", builds),
        ("spread", spread),
        ("disruption", disruption),
        ("weights", weights),
        ("bounds", bounds),
        ("others", others),
    ] {
        if only.is_empty() || only.iter().any(|wanted| wanted == name) {
            println!("\n## {name}");
            println!("hash of the result: {:016x}", run(&size));
        }
    }
}

fn endpoint(i: usize, weight: u32) -> Endpoint<u32> {
    let id = format!("10.{}.{}.{}:8080", i / 65_536, i / 256 % 256, i % 256);
    Endpoint { weight, ..Endpoint::new(id, i as u32) }
}

fn endpoints(n: usize) -> Vec<Endpoint<u32>> {
    (0..n).map(|i| endpoint(i, 1)).collect()
}

fn snapshot(policy: &str, endpoints: Vec<Endpoint<u32>>) -> Snapshot<u32> {
    Snapshot::new(&policy.parse().unwrap(), &Origin::default(), endpoints)
}

/// The least time per step of some rounds, in ns; what disturbs a round only makes it longer.
fn time(size: &Size, steps: u64, mut round: impl FnMut(u64) -> u64, digest: &mut u64) -> f64 {
    let mut least = f64::INFINITY;
    for _ in 0..size.rounds {
        let start = Instant::now();
        *digest = fold(*digest, black_box(round(steps)));
        least = least.min(start.elapsed().as_nanos() as f64 / steps as f64);
    }
    least
}

fn fold(digest: u64, value: u64) -> u64 {
    digest.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ value
}

fn goal(value: f64, goal: f64) -> String {
    format!("{value:.1} (goal {goal}: {})", if value <= goal { "met" } else { "MISSED" })
}

/// `apart`: the processor may work on several picks at once, as in a program that does something else
/// as well. `chained`: each key depends on the pick before, so that nothing overlaps. `call`: a pick, its
/// start and its end.
fn picks(size: &Size) -> u64 {
    let mut digest = 0;
    println!("ns, the generation of the key (about 1 ns) included");
    println!(
        "{:>28} {:>5} {:>8} {:>8} {:>8} {:>12}",
        "policy", "n", "apart", "chained", "call", "allocations"
    );
    let mut bare = Vec::new();
    for policy in ALL {
        for n in size.endpoints.iter().copied() {
            let snapshot = snapshot(policy, endpoints(n));
            // Everybody has answered once, so that peak_ewma has something to compare.
            for member in 0..(n * 20) as u64 {
                let pick = snapshot.pick(Some(member << 50), Duration::ZERO, member).unwrap();
                let latency = Duration::from_micros(900 + member % 200);
                pick.start(Duration::ZERO).finish(Outcome::Success, latency);
            }
            let steps =
                if policy.starts_with("rendezvous") { size.picks / 100 } else { size.picks };
            let now = Duration::from_millis(1);
            let mut random = Random(1);
            let apart = |steps| {
                (0..steps).fold(0u64, |sum, step| {
                    let pick = snapshot.pick(Some(random.next()), now, step).unwrap();
                    sum.wrapping_add(u64::from(pick.endpoint().target) * (step | 1))
                })
            };
            let region = Region::new(ALLOCATOR);
            let apart = time(size, steps, apart, &mut digest);
            let allocations = region.change().allocations;
            let chained = |steps| {
                let mut key = Random(2);
                (0..steps).fold(0u64, |last, _| {
                    key.0 ^= last;
                    let pick = snapshot.pick(Some(key.next()), now, last).unwrap();
                    u64::from(pick.endpoint().target)
                })
            };
            let chained = time(size, steps, chained, &mut digest);
            let mut random = Random(3);
            let call = |steps| {
                (0..steps).fold(0u64, |sum, step| {
                    let pick = snapshot.pick(Some(random.next()), now, step).unwrap();
                    let target = pick.endpoint().target;
                    pick.start(now).finish(Outcome::Success, now);
                    sum.wrapping_add(u64::from(target) * (step | 1))
                })
            };
            let call = time(size, steps, call, &mut digest);
            assert_eq!(allocations, 0, "{policy} allocates");
            println!(
                "{policy:>28} {n:>5} {apart:>8.1} {chained:>8.1} {call:>8.1} {allocations:>12}"
            );
            bare.push((policy, n, apart, call));
        }
    }
    let of = |policy: &str, n: usize| {
        let found = bare.iter().find(|(p, m, ..)| *p == policy && *m == n).unwrap();
        (found.2, found.3)
    };
    let n = *size.endpoints.last().unwrap();
    println!("n = {n}: ring_hash {}", goal(of("ring_hash", n).0, 20.0));
    println!("n = {n}: maglev {}", goal(of("maglev", n).0, 20.0));
    println!("n = {n}: least_request {}", goal(of("least_request", n).0, 15.0));
    for policy in ["ring_hash", "maglev"] {
        let added = of(&format!("{policy}?bound=1.25"), n).1 - of(policy, n).1;
        println!("n = {n}: what the bound adds to a call, {policy}: {}", goal(added, 15.0));
    }
    digest
}

/// Time and memory of a snapshot with all that belongs to it, and of the next one.
fn builds(size: &Size) -> u64 {
    let mut digest = 0;
    println!("{:>28} {:>5} {:>10} {:>12} {:>10}", "policy", "n", "build ms", "successor ms", "KiB");
    for policy in ALL {
        for n in size.endpoints.iter().copied() {
            let region = Region::new(ALLOCATOR);
            let made = snapshot(policy, endpoints(n));
            let change = region.change();
            let bytes = change.bytes_allocated as isize - change.bytes_deallocated as isize
                + change.bytes_reallocated;
            let policy_parsed = policy.parse().unwrap();
            let (mut build, mut next) = (f64::INFINITY, f64::INFINITY);
            for _ in 0..size.rounds {
                let given = endpoints(n);
                let start = Instant::now();
                let fresh = Snapshot::new(&policy_parsed, made.origin(), given);
                build = build.min(start.elapsed().as_secs_f64() * 1e3);
                let mut given = endpoints(n);
                given.pop();
                let start = Instant::now();
                let after = fresh.successor(&policy_parsed, made.origin(), given, Duration::ZERO);
                next = next.min(start.elapsed().as_secs_f64() * 1e3);
                let pick = after.pick(Some(7), Duration::ZERO, 7).unwrap();
                digest = fold(digest, u64::from(pick.endpoint().target));
            }
            println!("{policy:>28} {n:>5} {build:>10.3} {next:>12.3} {:>10}", bytes / 1024);
            match policy {
                "ring_hash" if n == 1_000 => println!("{:>28} {}", "", goal(build, 5.0)),
                "maglev" if n == 1_000 => println!("{:>28} {}", "", goal(build, 10.0)),
                _ => {}
            }
        }
    }
    digest
}

/// Peak over mean with uniform keys.
fn spread(size: &Size) -> u64 {
    let mut digest = 0;
    println!("peak / mean of {} uniform keys", size.keys);
    for n in size.endpoints.iter().copied() {
        let goals = [1.35, 1.35, 1.05, 1.05];
        for (policy, most) in HASHING.into_iter().zip(goals) {
            let snapshot = snapshot(policy, endpoints(n));
            let mut random = Random(5);
            let mut counts = vec![0u64; n];
            for step in 0..size.keys {
                let pick = snapshot.pick(Some(random.next()), Duration::ZERO, step).unwrap();
                counts[pick.endpoint().target as usize] += 1;
            }
            digest = counts.iter().fold(digest, |digest, count| fold(digest, *count));
            let peak = peak(&counts);
            if n == 1_000 {
                println!("{policy:>28} {n:>5} {peak:.3} (goal {most}: {})", met(peak <= most));
            } else {
                println!("{policy:>28} {n:>5} {peak:.3}");
            }
        }
    }
    digest
}

fn peak(counts: &[u64]) -> f64 {
    let sum: u64 = counts.iter().sum();
    *counts.iter().max().unwrap() as f64 * counts.len() as f64 / sum as f64
}

fn met(met: bool) -> &'static str {
    if met { "met" } else { "MISSED" }
}

/// One endpoint of n goes, one comes: keys that move, in multiples of 1 / n and 1 / (n + 1).
fn disruption(size: &Size) -> u64 {
    let mut digest = 0;
    let keys = (size.keys / 10).max(10_000);
    println!("{keys} keys; moved share as a multiple of the one endpoint's; moved between others");
    for n in size.endpoints.iter().copied() {
        for policy in HASHING {
            let keys = if policy == "rendezvous" { keys / 10 } else { keys };
            let all = snapshot(policy, endpoints(n));
            let more = snapshot(policy, endpoints(n + 1));
            let mut given = endpoints(n);
            let gone = given.remove(n / 3).target;
            let fewer = snapshot(policy, given);
            let mut random = Random(6);
            let (mut removed, mut added, mut astray, mut apart) = (0u64, 0u64, 0u64, 0u64);
            for _ in 0..keys {
                let key = Some(random.next());
                let [was, less, plus] = [&all, &fewer, &more].map(|snapshot| {
                    snapshot.pick(key, Duration::ZERO, 1).unwrap().endpoint().target
                });
                removed += u64::from(less != was);
                astray += u64::from(less != was && was != gone);
                added += u64::from(plus != was);
                apart += u64::from(plus != was && plus != n as u32);
            }
            digest = [removed, added, astray, apart].into_iter().fold(digest, fold);
            let share = |moved: u64, of: usize| moved as f64 / keys as f64 * of as f64;
            let (less, plus) = (share(removed, n), share(added, n + 1));
            let fine = match policy {
                // Not to be met by Maglev itself with more than about 150 endpoints: see src/client/balance.
                "maglev" => less <= 2.5,
                _ => astray == 0 && apart == 0 && plus <= 1.35,
            };
            println!(
                "{policy:>28} {n:>5} removed {less:.2}/n ({astray} of others), added {plus:.2}/(n+1) \
                 ({apart} not to it): {}",
                met(fine)
            );
        }
    }
    digest
}

/// Half of the endpoints have weight 1, half 10: the error of their shares together, and of the worst one.
fn weights(size: &Size) -> u64 {
    let mut digest = 0;
    println!("error of the light half's share, and of the worst single one, {} keys", size.keys);
    for n in size.endpoints.iter().copied() {
        for (policy, most) in [("ring_hash", 0.10), ("maglev", 0.02), ("rendezvous", 0.02)] {
            let given = (0..n).map(|i| endpoint(i, if i % 2 == 0 { 1 } else { 10 })).collect();
            let snapshot = snapshot(policy, given);
            let mut random = Random(7);
            let mut counts = vec![0u64; n];
            let keys = if policy == "rendezvous" { size.keys / 10 } else { size.keys };
            for _ in 0..keys {
                let pick = snapshot.pick(Some(random.next()), Duration::ZERO, 1).unwrap();
                counts[pick.endpoint().target as usize] += 1;
            }
            digest = counts.iter().fold(digest, |digest, count| fold(digest, *count));
            let light: u64 = counts.iter().step_by(2).sum();
            let error = (light as f64 / keys as f64 * 11.0 - 1.0).abs();
            let unit = keys as f64 / (n as f64 * 5.5);
            let worst = counts.iter().enumerate().map(|(i, count)| {
                let weight = if i % 2 == 0 { 1.0 } else { 10.0 };
                (*count as f64 / (unit * weight) - 1.0).abs()
            });
            let worst = worst.fold(0.0, f64::max);
            println!(
                "{policy:>28} {n:>5} {:.2} % (goal {:.0} %: {}), worst {:.1} %",
                error * 100.0,
                most * 100.0,
                met(error <= most || size.keys < 1_000_000),
                worst * 100.0
            );
        }
    }
    digest
}

/// Calls under way at one endpoint over the average, with the bound 1.25, a hundred calls for each endpoint
/// under way; uniform keys and Zipf's law with the exponent 1.1.
fn bounds(size: &Size) -> u64 {
    let mut digest = 0;
    println!(
        "greatest load / average while n * 100 calls are under way; how many were beyond ceil(1.25 avg)"
    );
    let zipf = zipf(1_000_000.min(size.keys as usize));
    for n in size.endpoints.iter().copied() {
        for policy in ["ring_hash", "maglev", "rendezvous"] {
            for law in ["uniform", "zipf 1.1"] {
                for bounded in [false, true] {
                    let name = format!("{policy}{}", if bounded { "?bound=1.25" } else { "" });
                    let snapshot = snapshot(&name, endpoints(n));
                    let mut random = Random(8);
                    let mut flights: VecDeque<Flight> = VecDeque::new();
                    let steps = if policy == "rendezvous" { n * 200 } else { n * 500 };
                    let (mut beyond, mut greatest) = (0u64, 0.0f64);
                    for step in 0..steps as u64 {
                        let key = if law == "uniform" {
                            random.next()
                        } else {
                            let u = random.unit();
                            hash(&zipf.partition_point(|value| *value < u).to_le_bytes())
                        };
                        if flights.len() == n * 100 {
                            flights.pop_front();
                        }
                        let pick = snapshot.pick(Some(key), Duration::ZERO, step).unwrap();
                        digest = fold(digest, u64::from(pick.endpoint().target));
                        let member = pick.member();
                        flights.push_back(pick.start(Duration::ZERO));
                        let average = flights.len() as f64 / n as f64;
                        let load = member.in_flight();
                        beyond += u64::from(load > (1.25 * average).ceil() as u64);
                        if flights.len() == n * 100 {
                            greatest = greatest.max(load as f64 / average);
                        }
                    }
                    let verdict = if bounded { met(beyond == 0) } else { "" };
                    println!("{name:>28} {n:>5} {law:>9} {greatest:>7.2} {beyond:>8} {verdict}");
                }
            }
        }
    }
    digest
}

fn zipf(keys: usize) -> Vec<f64> {
    let mut sum = 0.0;
    let mut cumulated: Vec<f64> = (1..=keys)
        .map(|rank| {
            sum += (rank as f64).powf(-1.1);
            sum
        })
        .collect();
    cumulated.iter_mut().for_each(|value| *value /= sum);
    cumulated
}

/// Crates that do a part of this. They hash the key themselves, so here everybody gets one of 8 bytes.
fn others(size: &Size) -> u64 {
    let mut digest = 0;
    println!("{:>28} {:>5} {:>8} {:>10} {:>12}", "", "n", "pick ns", "build ms", "peak / mean");
    for n in size.endpoints.iter().copied() {
        for policy in HASHING {
            let build = || snapshot(policy, endpoints(n));
            compare(
                size,
                &format!("{policy}, key hashed"),
                n,
                build,
                &mut digest,
                |snapshot, key| {
                    let key = match policy {
                        "ketama" => quorate::client::balance::crc32(&key.to_le_bytes()),
                        _ => hash(&key.to_le_bytes()),
                    };
                    snapshot.pick(Some(key), Duration::ZERO, 1).unwrap().endpoint().target
                },
            );
        }
        let build = || {
            let mut ring = hashring::HashRing::new();
            ring.batch_add((0..n as u32).flat_map(|i| (0..160u32).map(move |j| (i, j))).collect());
            ring
        };
        compare(size, "hashring", n, build, &mut digest, |ring, key| ring.get(&key).unwrap().0);
        // It keeps a permutation of the whole table for each endpoint: 800 MB for 1000 of them.
        if n <= 100 {
            let build = || maglev::Maglev::with_capacity(0..n as u32, 65_537);
            compare(size, "maglev (crate)", n, build, &mut digest, |table, key| {
                *table.get(&key).unwrap()
            });
        }
        let build = || {
            anchorhash::Builder::default().with_resources(0..n as u32).build::<u64>(n as u16 * 2)
        };
        compare(size, "anchorhash", n, build, &mut 0, |anchor, key| {
            *anchor.get_resource(key).unwrap()
        });
        let build = || {
            let address = |i: usize| SocketAddr::from(([10, 0, (i / 256) as u8, i as u8], 8080));
            let buckets: Vec<_> =
                (0..n).map(|i| pingora_ketama::Bucket::new(address(i), 1)).collect();
            pingora_ketama::Continuum::new(&buckets)
        };
        compare(size, "pingora-ketama", n, build, &mut digest, |ring, key| {
            let Some(SocketAddr::V4(address)) = ring.node(&key.to_le_bytes()) else { panic!() };
            let [_, _, high, low] = address.ip().octets();
            u32::from(high) * 256 + u32::from(low)
        });
    }
    digest
}

fn compare<S>(
    size: &Size,
    name: &str,
    n: usize,
    build: impl Fn() -> S,
    digest: &mut u64,
    pick: impl Fn(&S, u64) -> u32,
) {
    let mut least = f64::INFINITY;
    let mut made = build();
    for _ in 0..size.rounds.min(3) {
        let start = Instant::now();
        made = black_box(build());
        least = least.min(start.elapsed().as_secs_f64() * 1e3);
    }
    let slow = name.starts_with("rendezvous");
    let steps = if slow { size.picks / 100 } else { size.picks };
    let mut random = Random(9);
    let ns = time(
        size,
        steps,
        |steps| {
            (0..steps).fold(0u64, |sum, step| {
                sum.wrapping_add(u64::from(pick(&made, random.next())) * (step | 1))
            })
        },
        digest,
    );
    let mut counts = vec![0u64; n];
    for _ in 0..size.keys / 10 {
        counts[pick(&made, random.next()) as usize] += 1;
    }
    println!("{name:>28} {n:>5} {ns:>8.1} {least:>10.3} {:>12.3}", peak(&counts));
}
