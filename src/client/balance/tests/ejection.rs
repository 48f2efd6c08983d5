//! Outliers, on the clock of the test.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Sends each endpoint so many calls, of which those of `bad` fail in so many percent of the cases.
fn calls(snapshot: &Snapshot<()>, each: u32, bad: &[&str], percent: u32, now: Duration) {
    // The flights are made at the members themselves: also at those that no policy would pick.
    for member in snapshot.members() {
        let fails = bad.contains(&member.endpoint().id.as_str());
        for i in 0..each {
            let outcome =
                if fails && i % 100 < percent { Outcome::Failure } else { Outcome::Success };
            member.load.begin(0);
            let flight = Flight::new(std::sync::Arc::clone(&member.load), load::nanos(now));
            flight.finish(outcome, now);
        }
    }
}

use super::super::load;

fn ejected(snapshot: &Snapshot<()>) -> Vec<&str> {
    let members = snapshot.members().iter().filter(|member| member.is_ejected());
    members.map(|member| member.endpoint().id.as_str()).collect()
}

/// Sweeps at the seconds of the interval, beginning with the one that starts the clock.
fn started(policy: &str, n: usize) -> Snapshot<()> {
    let snapshot = snapshot(policy, numbered(n));
    let first = snapshot.sweep(SECOND, 0);
    assert_eq!(first, Sweep { next: Some(10 * SECOND), ..Sweep::default() });
    snapshot
}

const CALM: &str = "round_robin?consecutive_failures=0";

/// A story of one endpoint: it fails, is ejected, returns, fails again and is ejected for twice as long.
#[test]
fn an_outlier_is_ejected_and_returns() {
    let snapshot = started(CALM, 10);
    // Nothing happens before the interval has passed.
    calls(&snapshot, 100, &["n-003"], 90, 2 * SECOND);
    assert_eq!(snapshot.sweep(5 * SECOND, 0).next, Some(6 * SECOND));
    assert_eq!(ejected(&snapshot), [""; 0]);
    // Then it is ejected, for 30 s.
    let sweep = snapshot.sweep(11 * SECOND, 0);
    assert_eq!((sweep.ejected, sweep.returned), (vec![3], vec![]));
    assert_eq!(ejected(&snapshot), ["n-003"]);
    assert_eq!(tally(&snapshot, 1_000, 12 * SECOND)[3], 0);
    for second in [21, 31, 41] {
        assert_eq!(snapshot.sweep(second * SECOND, 0).returned, [0; 0], "at {second}");
    }
    assert_eq!(snapshot.sweep(51 * SECOND, 0).returned, [3]);
    assert_eq!(tally(&snapshot, 1_000, 51 * SECOND)[3], 100);
    // The second time it takes 60 s.
    calls(&snapshot, 100, &["n-003"], 90, 52 * SECOND);
    assert_eq!(snapshot.sweep(61 * SECOND, 0).ejected, [3]);
    for second in (71..=121).step_by(10) {
        assert_eq!(snapshot.sweep(second * SECOND, 0).returned, [0; 0], "at {second}");
    }
    assert_eq!(snapshot.sweep(131 * SECOND, 0).returned, [3]);
}

/// What was is forgotten, an interval for each time.
#[test]
fn ejections_are_forgotten() {
    let snapshot = started(CALM, 10);
    calls(&snapshot, 100, &["n-003"], 90, 2 * SECOND);
    snapshot.sweep(11 * SECOND, 0);
    for second in (21..=71).step_by(10) {
        snapshot.sweep(second * SECOND, 0);
    }
    assert_eq!(ejected(&snapshot), [""; 0]);
    calls(&snapshot, 100, &["n-003"], 90, 72 * SECOND);
    assert_eq!(snapshot.sweep(81 * SECOND, 0).ejected, [3]);
    // 30 s again.
    snapshot.sweep(111 * SECOND, 0);
    assert_eq!(snapshot.sweep(121 * SECOND, 0).returned, [3]);
}

/// By its success rate: 30 % of failures where others have none are far below the mean; where everybody has
/// them they are not. With fewer calls or fewer endpoints nothing is compared.
#[test]
fn success_rates_are_compared() {
    let all: Vec<String> = (0..10).map(|i| format!("n-{i:03}")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for (n, each, bad, expected) in [
        (10, 100, &["n-007"][..], 1),
        (10, 100, &all[..], 0),
        (10, 99, &["n-007"][..], 0),
        (5, 100, &["n-001"][..], 1),
        (4, 100, &["n-001"][..], 0),
    ] {
        let snapshot = started(CALM, n);
        calls(&snapshot, each, bad, 30, 2 * SECOND);
        let sweep = snapshot.sweep(11 * SECOND, 0);
        assert_eq!(sweep.ejected.len(), expected, "{n} endpoints, {each} calls, {bad:?}");
    }
}

/// By its percentage of failures, with fewer calls than a success rate needs: more than 85 %.
#[test]
fn percentages_of_failures_are_limited() {
    for (each, percent, expected) in [(60, 100, 1), (49, 100, 0), (60, 50, 0)] {
        let snapshot = started(CALM, 10);
        calls(&snapshot, each, &["n-007"], percent, 2 * SECOND);
        let sweep = snapshot.sweep(11 * SECOND, 0);
        assert_eq!(sweep.ejected.len(), expected, "{each} calls, {percent} %");
    }
    // 85 of 100 exactly is not more than 85 %. Without success rates only this one counts.
    let policy = "round_robin?consecutive_failures=0&success_rate_stdev_factor=100000";
    for (percent, expected) in [(85, 0), (86, 1)] {
        let snapshot = started(policy, 10);
        calls(&snapshot, 100, &["n-007"], percent, 2 * SECOND);
        assert_eq!(snapshot.sweep(11 * SECOND, 0).ejected.len(), expected, "{percent} %");
    }
}

/// At most 10 % are ejected at once: of 30 three, though four are outliers; of a few, one. The number holds
/// for both ways together, and as endpoints go.
#[test]
fn most_endpoints_stay() {
    for (n, most) in [(30, 3), (29, 2), (10, 1), (6, 1), (2, 1), (1, 0)] {
        let policy = "round_robin?consecutive_failures=5";
        let snapshot = started(policy, n);
        let bad: Vec<String> = (0..n.div_ceil(2)).map(|i| format!("n-{i:03}")).collect();
        let bad: Vec<&str> = bad.iter().map(String::as_str).collect();
        calls(&snapshot, 200, &bad, 100, 2 * SECOND);
        assert_eq!(ejected(&snapshot).len(), most, "{n} endpoints, in a row");
        snapshot.sweep(11 * SECOND, 5);
        assert_eq!(ejected(&snapshot).len(), most, "{n} endpoints");
        // An endpoint that is gone is no longer ejected, and makes room.
        let gone = ejected(&snapshot).first().map(|id| (*id).to_owned());
        let rest = numbered(n).into_iter().filter(|endpoint| Some(&endpoint.id) != gone.as_ref());
        let next = successor(&snapshot, rest.collect(), 12 * SECOND);
        calls(&next, 200, &bad, 100, 13 * SECOND);
        next.sweep(21 * SECOND, 5);
        let share = ((n - usize::from(gone.is_some())) / 10).max(1);
        assert!(ejected(&next).len() <= share, "{n} endpoints: {:?}", ejected(&next));
    }
}

/// Five failures in a row eject at once; a success in between begins the row again.
#[test]
fn failures_in_a_row_eject_at_once() {
    let snapshot = snapshot("round_robin", numbered(10));
    let fail = |outcome: Outcome| {
        let mut call = snapshot.call(None, SECOND, 1);
        let pick = loop {
            let pick = call.candidate().unwrap();
            if pick.endpoint().id == "n-002" {
                break pick;
            }
        };
        pick.start(SECOND).finish(outcome, SECOND);
    };
    for _ in 0..4 {
        fail(Outcome::Failure);
    }
    fail(Outcome::Success);
    for _ in 0..4 {
        fail(Outcome::Failure);
    }
    assert_eq!(ejected(&snapshot), [""; 0]);
    fail(Outcome::Failure);
    assert_eq!(ejected(&snapshot), ["n-002"]);
    assert_eq!(tally(&snapshot, 1_000, SECOND)[2], 0);
    // The next snapshot knows of it; one whose policy ejects nobody forgets it.
    let next = successor(&snapshot, numbered(12), 2 * SECOND);
    assert_eq!(tally(&next, 1_100, SECOND)[2], 0);
    let off = "round_robin?ejection=off".parse().unwrap();
    let off = next.successor(&off, next.origin(), numbered(12), 3 * SECOND);
    assert_eq!(ejected(&off), [""; 0]);
    assert_eq!(off.sweep(9 * SECOND, 0), Sweep::default());
    assert!(tally(&off, 1_200, SECOND)[2] > 90);
}

/// Ejected endpoints are unavailable, so too many of them are called again; and a hash passes them.
#[test]
fn ejection_counts_as_unavailable() {
    let policy = "ring_hash?ejection_max_percent=100&consecutive_failures=1";
    let snapshot = snapshot(policy, numbered(10));
    let bad = ["n-000", "n-001", "n-002", "n-003", "n-004"];
    calls(&snapshot, 1, &bad, 100, SECOND);
    assert_eq!(ejected(&snapshot), bad);
    let rest = super::snapshot("ring_hash", numbered(10).split_off(5));
    assert_eq!(owners(&snapshot, 1_000), owners(&rest, 1_000));
    calls(&snapshot, 1, &["n-005"], 100, SECOND);
    let all = super::snapshot("ring_hash", numbered(10));
    assert_eq!(owners(&snapshot, 1_000), owners(&all, 1_000));
}

/// One that returns starts slowly, where the policy says so.
#[test]
fn a_returning_endpoint_starts_slowly() {
    let snapshot = started("random?slow_start_ms=10000&consecutive_failures=1", 10);
    calls(&snapshot, 1, &["n-003"], 100, 2 * SECOND);
    assert_eq!(ejected(&snapshot), ["n-003"]);
    for second in [11, 21, 31, 41] {
        snapshot.sweep(second * SECOND, 0);
    }
    assert_eq!(ejected(&snapshot), [""; 0]);
    assert!(share(&snapshot, "n-003", 20_000, 41 * SECOND) < 0.02);
    assert!(share(&snapshot, "n-003", 20_000, 51 * SECOND) > 0.08);
}
