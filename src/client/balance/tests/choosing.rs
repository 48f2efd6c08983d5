//! Policies that do not hash, and what all of them promise.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

#[test]
fn nothing_to_pick_from_is_an_answer() {
    for policy in POLICIES {
        let empty = snapshot(policy, Vec::new());
        assert_eq!(empty.pick(Some(1), ZERO, 2).unwrap_err(), Unavailable::Empty, "{policy}");
        let draining = Endpoint { admin: Admin::Draining, ..endpoint("a") };
        let endpoints = vec![draining, weighted("b", 0)];
        let unusable = snapshot(policy, endpoints);
        let expected = Unavailable::Unusable { endpoints: 2 };
        assert_eq!(unusable.pick(None, ZERO, 2).unwrap_err(), expected, "{policy}");
    }
}

/// Each endpoint is a candidate of a call once, whatever the policy; then there is none.
#[test]
fn every_endpoint_is_a_candidate_once() {
    let calls = (1usize..14, any::<Option<u64>>(), any::<u64>());
    check("tests::choosing::every", 64, calls, |(n, hash, random)| {
        for policy in POLICIES {
            let snapshot = snapshot(policy, numbered(n));
            let mut call = snapshot.call(hash, ZERO, random);
            let mut seen: Vec<_> =
                std::iter::from_fn(|| call.candidate().ok()).map(|pick| pick.endpoint()).collect();
            let last = call.candidate().unwrap_err();
            assert_eq!(last, Unavailable::Exhausted { tried: n }, "{policy}");
            seen.sort_by(|a, b| a.id.cmp(&b.id));
            assert_eq!(seen, numbered(n).iter().collect::<Vec<_>>(), "{policy}");
        }
    });
}

/// Attempts are limited, also where there are more endpoints.
#[test]
fn attempts_end() {
    for policy in POLICIES {
        let snapshot = snapshot(policy, numbered(100));
        let mut call = snapshot.call(Some(5), ZERO, 6);
        let tried = std::iter::from_fn(|| call.candidate().ok()).count();
        assert_eq!(tried, crate::limits::BALANCE_ATTEMPTS, "{policy}");
    }
}

/// Draining and disabled endpoints and those of weight 0 never get a call, in no policy, not even when
/// nobody else is healthy; the same arguments give the same choice.
#[test]
fn no_call_goes_where_none_should() {
    let one = (any::<bool>(), 0u32..3, 0u32..3, 0usize..3);
    let given = (vec(one, 0..12), any::<Option<u64>>(), any::<u64>());
    check("tests::choosing::no_call", 256, given, |(endpoints, hash, random)| {
        let endpoints: Vec<_> = (0..)
            .zip(endpoints)
            .map(|(i, (healthy, weight, admin, zone))| Endpoint {
                healthy,
                weight,
                admin: [Admin::Enabled, Admin::Draining, Admin::Disabled][admin as usize],
                zone: ["", "x", "y"][zone].to_owned(),
                ..endpoint(format!("n-{i:03}"))
            })
            .collect();
        for policy in POLICIES {
            let more =
                ["", "zone=prefer", "subset_size=3", "zone=prefer&subset_size=2&panic_percent=0"];
            for more in more {
                let policy =
                    format!("{policy}{}{more}", if policy.contains('?') { '&' } else { '?' });
                let make = || {
                    let (policy, origin) = (policy.parse().unwrap(), origin("me", "x"));
                    Snapshot::new(&policy, &origin, endpoints.clone())
                };
                let (snapshot, again) = (make(), make());
                let (mut call, mut same) =
                    (snapshot.call(hash, ZERO, random), again.call(hash, ZERO, random));
                loop {
                    let (pick, twin) = (call.candidate(), same.candidate());
                    let (pick, twin) = match (pick, twin) {
                        (Ok(pick), Ok(twin)) => (pick, twin),
                        (pick, twin) => {
                            assert_eq!(pick.unwrap_err(), twin.unwrap_err(), "{policy}");
                            break;
                        }
                    };
                    let endpoint = pick.endpoint();
                    assert_eq!(endpoint, twin.endpoint(), "{policy}");
                    assert!(endpoint.admin == Admin::Enabled && endpoint.weight > 0, "{policy}");
                }
            }
        }
    });
}

#[test]
fn round_robin_takes_turns() {
    let snapshot = snapshot("round_robin", numbered(3));
    let ids: Vec<_> = (0..7).map(|i| picked(&snapshot, None, ZERO, i)).collect();
    for (i, id) in ids.iter().enumerate().skip(1) {
        let turn = |id: &str| id[2..].parse::<usize>().unwrap();
        assert_eq!(turn(id), (turn(ids[i - 1]) + 1) % 3, "{ids:?}");
    }
    // The next snapshot goes on where this one was.
    let next = successor(&snapshot, numbered(3), ZERO);
    assert_eq!(picked(&next, None, ZERO, 0), ids[1]);
}

/// The sequences that nginx's algorithm gives.
#[test]
fn weighted_round_robin_is_smooth() {
    use super::super::rotation::period;
    assert_eq!(*period(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
    assert_eq!(*period(&[1, 2, 3, 4]), [3, 2, 1, 3, 0, 2, 3, 1, 2, 3]);
    assert_eq!(*period(&[1000, 1000, 500]), [0, 1, 2, 0, 1]);
    assert_eq!(*period(&[7]), [0]);
    // Over a whole period the shares are exact.
    let snapshot = snapshot("weighted_round_robin", vec![weighted("a", 5), weighted("b", 2)]);
    assert_eq!(tally(&snapshot, 7_000, ZERO), [5_000, 2_000]);
}

/// Where a period cannot hold the weights, they are close; where there are many endpoints, they are
/// interleaved by weight; building it takes no time to speak of.
#[test]
fn weighted_round_robin_of_many() {
    use super::super::rotation::period;
    let mut weights: Vec<u32> = (0..1_000).map(|i| 1 + i * 65).collect();
    weights[0] = 65_535;
    let steps = period(&weights);
    assert!((65_000..70_000).contains(&steps.len()), "{}", steps.len());
    let mut counts = vec![0u32; 1_000];
    steps.iter().for_each(|i| counts[*i as usize] += 1);
    let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    for (count, weight) in counts.iter().zip(&weights) {
        let expected = f64::from(*weight) / sum * steps.len() as f64;
        assert!(*count >= 1 && (f64::from(*count) - expected).abs() <= 2.0, "{count} {expected}");
    }
    // A hundred thousand of weight 1 and one of 3: that one three times, far apart.
    let mut weights = vec![1; 100_000];
    weights[7] = 3;
    let steps = period(&weights);
    let places: Vec<_> = (0..steps.len()).filter(|at| steps[*at] == 7).collect();
    assert_eq!((steps.len(), places.len()), (100_002, 3));
    assert!(places.windows(2).all(|pair| pair[1] - pair[0] > 30_000), "{places:?}");
}

#[test]
fn random_follows_the_weights() {
    for weights in [[1, 10, 0, 3, 65_535, 1], [1, 2, 3, 4, 5, 6], [9, 9, 9, 9, 9, 1]] {
        let endpoints = (0..).zip(weights).map(|(i, w)| weighted(format!("n-{i}"), w)).collect();
        let snapshot = snapshot("random", endpoints);
        let sum: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
        for (member, count) in snapshot.members().iter().zip(tally(&snapshot, 1_000_000, ZERO)) {
            let expected = 1e6 * f64::from(member.endpoint().weight) / sum;
            let deviation = (count as f64 - expected).abs();
            assert!(deviation <= 5.0 * expected.sqrt(), "{member:?}: {count} for {expected}");
        }
    }
}

/// Without load the shares are those of the weights; then the less loaded of two is taken.
#[test]
fn least_request_prefers_the_less_loaded() {
    let endpoints = vec![weighted("a", 1), weighted("b", 3)];
    let idle = share(&snapshot("least_request", endpoints), "b", 100_000, ZERO);
    assert!((idle - 0.75).abs() < 0.01, "{idle}");

    let snapshot = snapshot("least_request", numbered(2));
    let mut flights = vec![snapshot.pick(None, ZERO, 1).unwrap().start(ZERO)];
    let busy = snapshot.members().iter().find(|member| member.in_flight() == 1).unwrap();
    for random in 0..1_000 {
        assert_ne!(picked(&snapshot, None, ZERO, random), busy.endpoint().id);
    }
    // Calls that go on are spread to within one.
    for random in 0..99 {
        flights.push(snapshot.pick(None, ZERO, random).unwrap().start(ZERO));
    }
    assert_eq!(snapshot.members().iter().map(Member::in_flight).collect::<Vec<_>>(), [50, 50]);
    drop(flights);
    assert_eq!(snapshot.members().iter().map(Member::in_flight).collect::<Vec<_>>(), [0, 0]);
}

/// Calls under way are spread by weight, far more evenly than chance would; more choices, more so.
#[test]
fn least_request_spreads_by_weight() {
    let spread = |policy: &str| {
        let endpoints = (0..100).map(|i| weighted(format!("n-{i:03}"), 1 + i % 2)).collect();
        let snapshot = snapshot(policy, endpoints);
        let mut random = Random(SEED);
        let flights: Vec<_> = (0..15_000)
            .map(|_| snapshot.pick(None, ZERO, random.next()).unwrap().start(ZERO))
            .collect();
        let loads = snapshot
            .members()
            .iter()
            .map(|member| member.in_flight() as f64 / f64::from(member.endpoint().weight));
        let peak = loads.fold(0.0, f64::max) / 100.0;
        drop(flights);
        peak
    };
    let (one, two, ten) =
        (spread("random"), spread("least_request"), spread("least_request?choice_count=10"));
    assert!(two < 1.06 && one > 1.15 && ten <= two, "{one} {two} {ten}");
}

/// Equal in calls under way, ten times as slow: it gets next to none.
#[test]
fn peak_ewma_prefers_the_faster() {
    let snapshot = snapshot("peak_ewma", numbered(2));
    let mut random = Random(SEED);
    let mut now = ZERO;
    let mut slow = 0;
    for _ in 0..1_000 {
        let pick = snapshot.pick(None, now, random.next()).unwrap();
        let is_slow = pick.endpoint().id == "n-000";
        slow += u32::from(is_slow);
        let flight = pick.start(now);
        now += if is_slow { 100 * MS } else { 10 * MS };
        flight.finish(Outcome::Success, now);
    }
    // A few as it fades: it is asked again after some of the time in which a latency fades to 1/e.
    assert!((1..20).contains(&slow), "{slow}");
}

/// A peak counts at once; what is faster pulls it down by and by; a failure never does.
#[test]
fn peak_ewma_remembers_a_peak() {
    let snapshot = snapshot("peak_ewma?decay_ms=10000", numbered(1));
    let member = &snapshot.members()[0];
    let call = |at: Duration, latency: Duration, outcome: Outcome| {
        let started = snapshot.pick(None, at, 1).unwrap().start(at);
        started.finish(outcome, at + latency);
        member.latency(at + latency).unwrap()
    };
    assert_eq!(member.latency(ZERO), None);
    assert_eq!(call(ZERO, 10 * MS, Outcome::Success), 10 * MS);
    assert_eq!(call(100 * MS, 200 * MS, Outcome::Success), 200 * MS);
    // After one time constant: 200/e + 10 * (1 - 1/e) = 79.9 ms.
    let after = call(10_290 * MS, 10 * MS, Outcome::Success);
    assert!((79 * MS..81 * MS).contains(&after), "{after:?}");
    // A fast failure is no proof of speed: as a success it would have been 49 ms.
    let failed = call(15_300 * MS, MS, Outcome::Failure);
    assert_eq!(failed, after);
    // Idle, it fades.
    let idle = member.latency(35_300 * MS).unwrap();
    assert!(idle < 12 * MS, "{idle:?}");
}

/// A new endpoint that fails fast is not the fastest one.
#[test]
fn peak_ewma_does_not_prefer_who_fails_at_once() {
    let snapshot = snapshot("peak_ewma?ejection=off", numbered(2));
    let first = snapshot.pick(None, ZERO, 1).unwrap();
    let good = first.endpoint().id.clone();
    first.start(ZERO).finish(Outcome::Success, 20 * MS);
    let other = snapshot.pick(None, 20 * MS, 2).unwrap();
    assert_ne!(other.endpoint().id, good);
    other.start(20 * MS).finish(Outcome::Failure, 21 * MS);
    for random in 0..100 {
        assert_eq!(snapshot.pick(None, 30 * MS, random).unwrap().endpoint().id, good);
    }
}

/// Nobody knows a new endpoint: it gets one call, and no other one before that has answered.
#[test]
fn peak_ewma_tries_an_unknown_endpoint_once() {
    let snapshot = snapshot("peak_ewma", numbered(2));
    let known = snapshot.pick(None, ZERO, 1).unwrap();
    let id = known.endpoint().id.as_str();
    known.start(ZERO).finish(Outcome::Success, 50 * MS);
    let other = snapshot.pick(None, 50 * MS, 2).unwrap();
    assert_ne!(other.endpoint().id, id);
    let flight = other.start(50 * MS);
    for random in 0..100 {
        assert_eq!(picked(&snapshot, None, 51 * MS, random), id);
    }
    flight.finish(Outcome::Success, 55 * MS);
    assert_ne!(picked(&snapshot, None, 55 * MS, 3), id);
}

#[test]
fn pick_first_stays_with_the_first() {
    let snapshot = snapshot("pick_first", numbered(3));
    for random in 0..100 {
        assert_eq!(picked(&snapshot, None, ZERO, random), "n-000");
    }
    let mut endpoints = numbered(3);
    endpoints[0].healthy = false;
    let next = successor(&snapshot, endpoints, ZERO);
    assert_eq!(picked(&next, None, ZERO, 0), "n-001");
    // Shuffled, clients differ, and each of them stays with its own.
    let policy = "pick_first?shuffle=on".parse().unwrap();
    let firsts: std::collections::BTreeSet<_> = (0..50)
        .map(|client| {
            let snapshot = Snapshot::new(&policy, &origin(&format!("c-{client}"), ""), numbered(3));
            let first = picked(&snapshot, None, ZERO, 0).to_owned();
            assert_eq!(picked(&snapshot, None, ZERO, 99), first);
            first
        })
        .collect();
    assert_eq!(firsts.len(), 3);
}

/// No hash: at random, as gRPC does.
#[test]
fn a_call_without_a_key_goes_anywhere() {
    let snapshot = snapshot("ring_hash", numbered(4));
    let ids: std::collections::BTreeSet<_> =
        (0..200).map(|random| picked(&snapshot, None, ZERO, random)).collect();
    assert_eq!(ids.len(), 4);
}
