//! The same keys on the same endpoints in every process, and in other programs where they build the same
//! ring or table. What is expected was computed apart from this code, in Python with xxhash, zlib and the
//! algorithms as their papers, Envoy and nginx describe them.

use xxhash_rust::xxh64::Xxh64;

use super::super::ring::{Ring, counts, envoy_counts, envoy_points, ketama_points};
use super::*;

const NODES: [&str; 5] =
    ["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80", "10.0.0.4:80", "10.0.0.5:80"];

fn nodes(weights: [u32; 5]) -> Vec<Endpoint<()>> {
    // Not in the order of their names, which must not matter.
    let nodes = NODES.into_iter().zip(weights).rev();
    nodes.map(|(id, weight)| weighted(id, weight)).collect()
}

/// The numbers of the owners of `customer-0` to `customer-23`, and a digest of those of ten thousand keys.
fn mapping(snapshot: &Snapshot<()>, hash: fn(&[u8]) -> u64) -> (String, u64) {
    let owner = |key: String| picked(snapshot, Some(hash(key.as_bytes())), ZERO, 1);
    let number = |id: &str| NODES.iter().position(|node| *node == id).unwrap().to_string();
    let few = (0..24).map(|i| number(owner(format!("customer-{i}")))).collect();
    let mut digest = Xxh64::new(0);
    for i in 0..10_000 {
        digest.update(owner(format!("key-{i}")).as_bytes());
        digest.update(b"\n");
    }
    (few, digest.digest())
}

#[test]
fn points_are_those_of_envoy_and_grpc() {
    let mut drawn = Vec::new();
    envoy_points("10.0.0.1:80", 3, 101, &mut drawn);
    for (i, expected) in [
        (0, 0x75041381e7371a08),
        (1, 0x18341d927ea10691),
        (9, 0x6756892c00094185),
        (10, 0xf99ee87359be81e9),
        (99, 0x9a69b7c351664afb),
        (100, 0xddbe9b37608a4e11u64),
    ] {
        assert_eq!(drawn[i], (expected, 3), "point {i}");
    }
}

#[test]
fn counts_of_points_are_those_of_envoy() {
    assert_eq!(envoy_counts(&[1; 5], 1024, 8_388_608), [205; 5]);
    assert_eq!(envoy_counts(&[1, 2, 3, 4, 5], 1024, 8_388_608), [69, 138, 207, 276, 345]);
    assert_eq!(envoy_counts(&[1; 5], 1024, 1024), [205, 205, 205, 205, 204]);
    // The example in Envoy's source.
    assert_eq!(envoy_counts(&[1; 4], 6, 6), [2, 1, 2, 1]);
}

#[test]
fn counts_of_points_follow_the_weights() {
    assert_eq!(counts(&[1, 1], 160, 1 << 20), [160, 160]);
    assert_eq!(counts(&[1, 10], 160, 1 << 20), [160, 1600]);
    // The unit is a power of two, so the greater weights hardly decide it.
    assert_eq!(counts(&[100, 100], 160, 1 << 20), [250, 250]);
    assert_eq!(counts(&[100, 65], 160, 1 << 20), [250, 162]);
    // A ring that would be too large, and one that cannot be small enough.
    assert_eq!(counts(&[1, 65_535], 160, 1000), [1, 639]);
    assert_eq!(counts(&[1; 4], 160, 3), [1; 4]);
}

#[test]
fn keys_are_where_others_have_them() {
    let same = [1; 5];
    let rising = [1, 2, 3, 4, 5];
    for (policy, weights, few, digest) in [
        ("ring_hash", same, "033003414014030311022401", 0xef956c091805dab3),
        ("ring_hash?min_ring_size=1024", same, "033003414014033341232401", 0x6b301608018c5fdb),
        ("ring_hash?min_ring_size=1024", rising, "033043414014043341332442", 0x454b14b4f2a50cbf),
        ("maglev", same, "432112203104000342034410", 0xe43e274dd5d45c1),
        ("maglev?table_size=65537", rising, "432412233134334342234413", 0x77af66d525f07e5a),
        ("rendezvous", same, "322014323230433020111111", 0x6e0040e37fff6d86),
        ("rendezvous", rising, "322244323432433444341414", 0x944bdc928d54d330u64),
    ] {
        let found = mapping(&snapshot(policy, nodes(weights)), hash);
        assert_eq!((found.0.as_str(), found.1), (few, digest), "{policy} {weights:?}");
    }
}

#[test]
fn ketama_is_the_ring_of_nginx() {
    assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    let found = mapping(&snapshot("ketama", nodes([1; 5])), crc32);
    assert_eq!((found.0.as_str(), found.1), ("333140202404331302324333", 0x4b73528f948488b6));
    // A name without a port.
    let mut drawn = Vec::new();
    ketama_points("localhost", 0, 1, &mut drawn);
    assert_eq!(drawn, [(crc32(b"localhost\0\0\0\0\0") << 32, 0)]);
}

/// An instance that comes back under another id with its hash key has the keys that it had.
#[test]
fn the_hash_key_is_the_identity() {
    for policy in ["ring_hash", "ketama", "maglev", "rendezvous"] {
        let before = snapshot(policy, nodes([1; 5]));
        let mut endpoints = nodes([1; 5]);
        endpoints[2].hash_key = std::mem::replace(&mut endpoints[2].id, "other".to_owned());
        let hash_key = endpoints[2].hash_key.clone();
        let after = snapshot(policy, endpoints);
        for (was, is) in owners(&before, 1_000).into_iter().zip(owners(&after, 1_000)) {
            let expected = if was == hash_key { "other" } else { was };
            assert_eq!(is, expected, "{policy}");
        }
    }
}

/// The index against a search through all points, with hashes that are as close as they can be.
#[test]
fn lookups_find_the_first_point_at_or_after_the_key() {
    let mut random = Random(SEED);
    for points in [1u32, 2, 3, 5, 64, 1_000] {
        let mut drawn: Vec<(u64, u32)> = (0..points)
            .map(|owner| match owner % 4 {
                0 => (random.next(), owner),
                1 => (u64::MAX - u64::from(random.below(3)), owner),
                2 => (u64::from(random.below(3)), owner),
                _ => ((1 << 63) + u64::from(random.below(50)), owner),
            })
            .collect();
        let ring = Ring::new(&drawn);
        drawn.sort_unstable();
        let near =
            drawn.iter().flat_map(|(hash, _)| [hash.wrapping_sub(1), *hash, hash.wrapping_add(1)]);
        for key in near.chain([0, 1, u64::MAX, 1 << 63]).chain((0..1_000).map(|_| random.next())) {
            let expected = drawn.iter().find(|(hash, _)| *hash >= key).unwrap_or(&drawn[0]);
            assert_eq!(ring.owner(ring.find(key)), expected.1, "{key:#x} of {points} points");
        }
    }
}
