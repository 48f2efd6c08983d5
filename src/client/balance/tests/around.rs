//! What surrounds a policy: panic, zones, slow start.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn sick(n: usize, unhealthy: usize) -> Vec<Endpoint<()>> {
    let mut endpoints = numbered(n);
    endpoints[..unhealthy].iter_mut().for_each(|endpoint| endpoint.healthy = false);
    endpoints
}

/// Half of them are available: only those. One less: all.
#[test]
fn when_too_few_are_available_all_are_called() {
    for policy in POLICIES.into_iter().filter(|policy| !policy.starts_with("pick_first")) {
        let calm = snapshot(policy, sick(10, 5));
        let counts = tally(&calm, 2_000, ZERO);
        assert!(counts[..5].iter().all(|count| *count == 0), "{policy}: {counts:?}");
        assert!(counts[5..].iter().all(|count| *count > 0), "{policy}: {counts:?}");
        let panic = successor(&calm, sick(10, 6), ZERO);
        let counts = tally(&panic, 2_000, ZERO);
        assert!(counts.iter().all(|count| *count > 0), "{policy}: {counts:?}");
        // With the threshold off there is nobody to call when nobody is available.
        let off =
            format!("{policy}{}panic_percent=0", if policy.contains('?') { '&' } else { '?' });
        let off = snapshot(&off, sick(3, 3));
        let why = off.pick(Some(1), ZERO, 1).unwrap_err();
        assert_eq!(why, Unavailable::Unusable { endpoints: 3 }, "{policy}");
    }
}

/// Ten endpoints at home and ten away, some of them unhealthy.
fn zones(sick_at_home: usize, sick_away: usize) -> Vec<Endpoint<()>> {
    (0..20)
        .map(|i| Endpoint {
            zone: if i < 10 { "home" } else { "away" }.to_owned(),
            healthy: i % 10 >= if i < 10 { sick_at_home } else { sick_away },
            ..endpoint(format!("n-{i:03}"))
        })
        .collect()
}

fn zoned(policy: &str, endpoints: Vec<Endpoint<()>>) -> Snapshot<()> {
    let query = if policy.contains('?') { '&' } else { '?' };
    let policy = format!("{policy}{query}zone=prefer").parse().unwrap();
    Snapshot::new(&policy, &origin("me", "home"), endpoints)
}

/// Calls that stay at home, of 1 000, and those that hit somebody unhealthy.
fn at_home(snapshot: &Snapshot<()>) -> (u64, u64) {
    let counts = tally(snapshot, 10_000, ZERO);
    let sum = |of: fn(&Endpoint<()>) -> bool| {
        let members = snapshot.members().iter().zip(&counts);
        members.filter(|(member, _)| of(member.endpoint())).map(|(_, count)| count).sum::<u64>()
    };
    (sum(|endpoint| endpoint.zone == "home") / 10, sum(|endpoint| !endpoint.healthy))
}

/// The own zone takes everything while it can, and 1.4 times its available share when it cannot.
#[test]
fn calls_stay_in_the_zone_and_overflow() {
    for policy in POLICIES.into_iter().filter(|policy| !policy.starts_with("pick_first")) {
        for (sick, expected) in [(0, 1_000), (2, 1_000), (5, 700), (8, 280), (10, 0)] {
            let (home, unhealthy) = at_home(&zoned(policy, zones(sick, 0)));
            assert!(home.abs_diff(expected) <= 20, "{policy}, {sick} sick: {home} at home");
            assert_eq!(unhealthy, 0, "{policy}, {sick} sick");
        }
        // Neither can take what the other cannot: in proportion, and to all.
        let (home, unhealthy) = at_home(&zoned(policy, zones(8, 9)));
        assert!(home.abs_diff(666) <= 20, "{policy}: {home} at home");
        assert!(unhealthy > 0, "{policy}");
        // Nobody at home, or nobody knows where that is.
        let away = zones(0, 0).split_off(10);
        assert_eq!(at_home(&zoned(policy, away)), (0, 0), "{policy}");
        let nowhere = Snapshot::new(&policy.parse().unwrap(), &origin("me", "home"), zones(0, 0));
        let (home, _) = at_home(&nowhere);
        assert!(home.abs_diff(500) <= 150, "{policy}: {home} at home without zones");
    }
}

/// With a hash the same keys overflow, whatever the random numbers are; and candidates of a call go on in
/// the other zone.
#[test]
fn keys_overflow_together() {
    for policy in ["ring_hash", "maglev", "rendezvous"] {
        let snapshot = zoned(policy, zones(5, 0));
        for key in 0..500u64 {
            let key = Some(hash(&key.to_le_bytes()));
            assert_eq!(picked(&snapshot, key, ZERO, 1), picked(&snapshot, key, ZERO, 2));
        }
        let snapshot = zoned(policy, zones(0, 0));
        let mut call = snapshot.call(Some(1), ZERO, 1);
        let zones: Vec<_> = std::iter::from_fn(|| call.candidate().ok())
            .map(|pick| pick.endpoint().zone.as_str())
            .collect();
        assert_eq!(zones, [["home"; 10].as_slice(), &["away"; 6]].concat(), "{policy}");
    }
}

/// A new endpoint begins with a tenth of its share and has all of it after the time; which it takes from
/// all others alike.
#[test]
fn a_new_endpoint_starts_slowly() {
    for policy in [
        "ring_hash",
        "maglev",
        "rendezvous",
        "ring_hash?bound=2",
        "least_request",
        "random",
        "round_robin",
        "weighted_round_robin",
    ] {
        let query = if policy.contains('?') { '&' } else { '?' };
        let policy = format!("{policy}{query}slow_start_ms=10000");
        let old = snapshot(&policy, numbered(9));
        // At the very beginning nobody starts slowly: there would be nobody else.
        assert!(share(&old, "n-004", 20_000, ZERO) > 0.07, "{policy}");
        let new = successor(&old, numbered(10), 100 * SECOND);
        let full = share(&new, "n-009", 40_000, 111 * SECOND);
        assert!((0.08..0.125).contains(&full), "{policy}: {full}");
        for (at, least, most) in [(100, 0.05, 0.13), (105, 0.40, 0.60), (108, 0.7, 0.9)] {
            let begins = share(&new, "n-009", 40_000, at * SECOND) / full;
            // Of two choices the new one is drawn less often, and taken when it is.
            assert!((least..most).contains(&begins), "{policy} at {at}: {begins}");
        }
    }
}

/// While an endpoint starts, keys move to it one by one, and none moves back or between others.
#[test]
fn keys_enter_a_starting_endpoint_one_by_one() {
    for policy in ["ring_hash?slow_start_ms=10000", "rendezvous?slow_start_ms=10000"] {
        let old = snapshot(policy, numbered(9));
        let new = successor(&old, numbered(10), 100 * SECOND);
        let at = |now: Duration| -> Vec<&str> {
            (0..3_000u64)
                .map(|key| (key, key + now.as_secs()))
                .map(|(key, random)| picked(&new, Some(hash(&key.to_le_bytes())), now, random))
                .collect()
        };
        let mut before = owners(&old, 3_000);
        for second in 100..=111 {
            let after = at(second * SECOND);
            for (was, is) in before.iter().zip(&after) {
                assert!(was == is || *is == "n-009", "{policy} at {second}: {was} to {is}");
            }
            before = after;
        }
        let fresh = snapshot(policy, numbered(10));
        assert_eq!(before, owners(&fresh, 3_000), "{policy}");
    }
}

/// One that was unhealthy starts slowly too; where most are new, nobody does.
#[test]
fn who_starts_slowly() {
    let policy = "random?slow_start_ms=10000";
    let ill = snapshot(policy, sick(10, 1));
    let well = successor(&ill, numbered(10), 100 * SECOND);
    assert!(share(&well, "n-000", 20_000, 100 * SECOND) < 0.02);
    // The next snapshot in between does not begin it again.
    let next = successor(&well, numbered(10), 105 * SECOND);
    assert!(share(&next, "n-000", 20_000, 109 * SECOND) > 0.08);

    let few = snapshot(policy, numbered(4));
    let many = successor(&few, numbered(10), 100 * SECOND);
    assert!(share(&many, "n-009", 20_000, 100 * SECOND) > 0.08);
}
