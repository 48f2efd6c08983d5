//! Policies as text.

use proptest::collection::btree_map;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::error::Error;

const NAMES: [&str; 10] = [
    "ring_hash",
    "ketama",
    "maglev",
    "rendezvous",
    "least_request",
    "peak_ewma",
    "weighted_round_robin",
    "round_robin",
    "random",
    "pick_first",
];

#[test]
fn what_is_canonical() {
    for (text, canonical) in [
        ("ring_hash", "ring_hash"),
        ("ring_hash?", "ring_hash"),
        ("ring_hash?points=160&bound=off", "ring_hash"),
        (
            "ring_hash?zone=prefer&bound=1.25&points=200",
            "ring_hash?points=200&bound=1.25&zone=prefer",
        ),
        ("maglev?bound=on", "maglev?bound=1.25"),
        ("maglev?bound=1.50", "maglev?bound=1.5"),
        ("maglev?bound=2.0&table_size=10007", "maglev?table_size=10007&bound=2"),
        ("maglev?table_size=auto", "maglev"),
        ("least_request?choice_count=02", "least_request"),
        ("peak_ewma?decay_ms=5000", "peak_ewma?decay_ms=5000"),
        ("random?ejection=off&slow_start_ms=30000", "random?slow_start_ms=30000&ejection=off"),
        ("pick_first?shuffle=on&subset_size=20", "pick_first?shuffle=on&subset_size=20"),
        ("round_robin?panic_percent=0", "round_robin?panic_percent=0"),
    ] {
        let policy: Policy = text.parse().unwrap();
        assert_eq!(policy.to_string(), canonical, "{text}");
    }
    assert_eq!(Policy::default().to_string(), "least_request");
}

/// The error names what was given and what is allowed.
#[test]
fn what_is_refused() {
    for (text, field, value, allowed) in [
        ("", "policy", "", "ring_hash, ketama, maglev"),
        ("Ring_Hash", "policy", "Ring_Hash", "pick_first"),
        ("ring_hash?points", "policy parameter", "points", "name=value"),
        ("ring_hash?point=1", "policy parameter", "point", "points, min_ring_size"),
        ("round_robin?points=1", "policy parameter", "points", "zone, subset_size"),
        ("round_robin?bound=2", "policy parameter", "bound", "zone"),
        ("ring_hash?points=0", "policy parameter points", "0", "1..=10000"),
        ("ring_hash?points=1e3", "policy parameter points", "1e3", "1..=10000"),
        ("ring_hash?points=+1", "policy parameter points", "+1", "1..=10000"),
        ("ring_hash?points=", "policy parameter points", "", "1..=10000"),
        ("ring_hash?points=1&points=1", "policy parameter points", "1", "given once"),
        ("ring_hash?min_ring_size=x", "policy parameter min_ring_size", "x", "1..=8388608 or off"),
        ("maglev?table_size=65536", "policy parameter table_size", "65536", "a prime of"),
        (
            "maglev?bound=1",
            "policy parameter bound",
            "1",
            "1.01..=100 with two decimals, on or off",
        ),
        ("maglev?bound=1.255", "policy parameter bound", "1.255", "two decimals"),
        ("maglev?bound=1.", "policy parameter bound", "1.", "two decimals"),
        ("maglev?bound=.5", "policy parameter bound", ".5", "two decimals"),
        ("maglev?bound=1.-5", "policy parameter bound", "1.-5", "two decimals"),
        ("maglev?bound=+2", "policy parameter bound", "+2", "two decimals"),
        ("least_request?choice_count=1", "policy parameter choice_count", "1", "2..=10"),
        ("random?zone=home", "policy parameter zone", "home", "prefer or ignore"),
        ("random?ejection=yes", "policy parameter ejection", "yes", "on or off"),
        ("random?subset_size=0", "policy parameter subset_size", "0", "1..=100000 or off"),
        ("random?panic_percent=101", "policy parameter panic_percent", "101", "0..=100"),
        (
            "ring_hash?min_ring_size=10&max_ring_size=9",
            "policy parameter min_ring_size",
            "10",
            "at most max_ring_size, 9",
        ),
    ] {
        let error = text.parse::<Policy>().unwrap_err();
        let Error::Invalid { field: found, value: given, allowed: may } = &error else {
            panic!("{text}: {error:?}")
        };
        assert_eq!((found.as_str(), given.as_str()), (field, value), "{text}");
        assert!(may.contains(allowed), "{text}: {error}");
    }
}

/// As the record of a service holds it, with the record's names in errors.
#[test]
fn what_a_record_holds() {
    let of = |name: &str, parameters: &[(&str, &str)]| {
        let parameters =
            parameters.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Policy::of_service(name, &parameters.collect())
    };
    assert_eq!(of("", &[]), Ok(None));
    let policy = of("ring_hash", &[("bound", "1.25"), ("zone", "prefer")]).unwrap().unwrap();
    assert_eq!(policy.to_string(), "ring_hash?bound=1.25&zone=prefer");
    for (name, parameters, field, value, allowed) in [
        ("p2c", &[][..], "service.policy", "p2c", "ring_hash, ketama"),
        ("", &[("bound", "2")], "service.policy_parameters[bound]", "2", "none without a policy"),
        ("random", &[("bound", "2")], "service.policy_parameters", "bound", "zone, subset_size"),
        ("maglev", &[("bound", "1")], "service.policy_parameters[bound]", "1", "1.01..=100"),
        (
            "ring_hash",
            &[("min_ring_size", "10"), ("max_ring_size", "9")],
            "service.policy_parameters[min_ring_size]",
            "10",
            "at most max_ring_size, 9",
        ),
    ] {
        let Error::Invalid { field: found, value: given, allowed: may } =
            of(name, parameters).unwrap_err()
        else {
            panic!("{name}")
        };
        assert_eq!((found.as_str(), given.as_str()), (field, value));
        assert!(may.contains(allowed), "{name}: {may}");
    }
    let every: Vec<&str> = policy.all_parameters().into_iter().map(|(name, _)| name).collect();
    assert!(every.contains(&"points") && !every.contains(&"choice_count"), "{every:?}");
}

/// Any parameters that are accepted come back from the canonical text, and in any order.
#[test]
fn text_and_back() {
    let names = Policy::new("ring_hash").unwrap();
    let parameters: Vec<&'static str> = [
        "points",
        "min_ring_size",
        "max_ring_size",
        "table_size",
        "bound",
        "choice_count",
        "decay_ms",
        "shuffle",
        "zone",
        "subset_size",
        "panic_percent",
        "slow_start_ms",
        "ejection",
        "ejection_interval_ms",
        "ejection_base_ms",
        "ejection_max_ms",
        "ejection_max_percent",
        "success_rate_hosts",
        "success_rate_calls",
        "success_rate_stdev_factor",
        "failure_percent",
        "failure_percent_hosts",
        "failure_percent_calls",
        "consecutive_failures",
    ]
    .into();
    assert!(names.get("points").is_some() && names.get("choice_count").is_none());
    let values = prop_oneof![
        select(vec!["on", "off", "auto", "prefer", "ignore", "1.25", "2.5", "101", "65537"])
            .prop_map(str::to_owned),
        (0u32..12_000).prop_map(|number| number.to_string()),
        ".{0,6}",
    ];
    let given = (select(NAMES.to_vec()), btree_map(select(parameters), values, 0..8));
    check("tests::policy::text", 2_000, given, |(name, parameters)| {
        // Of what is refused the rest is tried.
        let mut policy = Policy::new(name).unwrap();
        for (parameter, value) in &parameters {
            let before = policy.clone();
            match policy.set(parameter, value) {
                Ok(()) => assert!(policy.get(parameter).is_some()),
                Err(Error::Invalid { .. }) => assert_eq!(policy, before, "{parameter}={value}"),
                Err(error) => panic!("{error:?}"),
            }
        }
        let text = policy.to_string();
        match text.parse::<Policy>() {
            Ok(again) => {
                assert_eq!(again, policy, "{text}");
                assert_eq!(again.to_string(), text);
                let set = policy.parameters();
                let pairs = set.iter().rev().map(|(name, value)| (*name, value.as_str()));
                assert_eq!(Policy::parse(name, pairs).unwrap(), policy);
            }
            // The one relation between two parameters.
            Err(error) => assert!(error.to_string().contains("at most max_ring_size"), "{error}"),
        }
    });
}
