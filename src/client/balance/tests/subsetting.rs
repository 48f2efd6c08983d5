//! Subsets: which of many endpoints a client uses.

use std::collections::BTreeSet;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn subset(client: &str, zone: &str, size: usize, endpoints: Vec<Endpoint<()>>) -> BTreeSet<String> {
    let policy =
        format!("random?subset_size={size}{}", if zone.is_empty() { "" } else { "&zone=prefer" });
    let snapshot = Snapshot::new(&policy.parse().unwrap(), &origin(client, zone), endpoints);
    snapshot.chosen().iter().map(|member| member.endpoint().id.clone()).collect()
}

/// Any change to one endpoint changes one member of the subset at most, whatever it was.
#[test]
fn one_change_moves_at_most_one() {
    let one = || (any::<bool>(), 0u32..2, any::<bool>(), any::<bool>());
    let given = (vec(one(), 1..30), one(), any::<prop::sample::Index>(), 1usize..8, any::<bool>());
    check("tests::subsetting::one", 512, given, |(endpoints, other, changed, size, zoned)| {
        let make = |i: usize, (healthy, weight, enabled, home): (bool, u32, bool, bool)| Endpoint {
            healthy,
            weight,
            admin: if enabled { Admin::Enabled } else { Admin::Draining },
            zone: if home { "home" } else { "away" }.to_owned(),
            ..endpoint(format!("n-{i:03}"))
        };
        let before: Vec<_> =
            endpoints.iter().enumerate().map(|(i, given)| make(i, *given)).collect();
        let changed = changed.index(before.len());
        let mut changes = vec![before.clone(); 3];
        changes[0][changed] = make(changed, other);
        changes[1].remove(changed);
        changes[2].push(make(999, other));
        let zone = if zoned { "home" } else { "" };
        let was = subset("me", zone, size, before);
        for after in changes {
            let is = subset("me", zone, size, after.clone());
            let (gone, come) = (was.difference(&is).count(), is.difference(&was).count());
            assert!(gone <= 1 && come <= 1, "{was:?} to {is:?} with {after:?}");
        }
    });
}

/// Healthy endpoints come first, then those of the own zone; the rest fills up.
#[test]
fn who_is_in_a_subset() {
    let mut endpoints = numbered(10);
    endpoints[..4].iter_mut().for_each(|endpoint| endpoint.zone = "home".to_owned());
    endpoints[0].healthy = false;
    let set = subset("me", "home", 5, endpoints.clone());
    assert_eq!(set.len(), 5);
    for id in ["n-001", "n-002", "n-003"] {
        assert!(set.contains(id), "{set:?}");
    }
    assert!(!set.contains("n-000"), "{set:?}");
    assert_eq!(subset("me", "home", 10, endpoints.clone()).len(), 10);
    assert_eq!(subset("me", "home", 99, endpoints).len(), 10);
}

/// Over many clients everybody is used alike: within what chance allows.
#[test]
fn clients_use_all_endpoints_alike() {
    let mut counts = std::collections::BTreeMap::<String, u32>::new();
    for client in 0..2_000 {
        for id in subset(&format!("client-{client}"), "", 5, numbered(50)) {
            *counts.entry(id).or_default() += 1;
        }
    }
    assert_eq!(counts.len(), 50);
    // 200 each; the standard deviation is 13.4.
    assert!(counts.values().all(|count| (150..250).contains(count)), "{counts:?}");
}

/// What was known of an endpoint is still known when it comes back into the subset, or from draining.
#[test]
fn what_is_aside_is_not_forgotten() {
    let policy: Policy = "least_request".parse().unwrap();
    let all = Snapshot::new(&policy, &Origin::default(), numbered(2));
    let pick = std::iter::from_fn(|| all.call(None, ZERO, 3).candidate().ok()).next().unwrap();
    let id = pick.endpoint().id.clone();
    let flight = pick.start(ZERO);
    let mut draining = numbered(2);
    for endpoint in draining.iter_mut().filter(|endpoint| endpoint.id == id) {
        endpoint.admin = Admin::Draining;
    }
    let aside = successor(&all, draining, ZERO);
    assert_ne!(picked(&aside, None, ZERO, 3), id);
    let back = successor(&aside, numbered(2), ZERO);
    let member = back.members().iter().find(|member| member.endpoint().id == id).unwrap();
    assert_eq!(member.in_flight(), 1);
    drop(flight);
    assert_eq!(member.in_flight(), 0);
}
