//! Deterministic subsetting: of many endpoints a client uses a few, so that not everybody is connected
//! with everybody. Each client ranks the endpoints by rendezvous and takes the first ones (gRFC A68), so
//! one endpoint that comes, goes or changes is at most one change to the subset.

use super::math::{hash, mix};

/// The rank of an endpoint for a client.
pub(super) fn rank(client: &str, endpoint: &str) -> u64 {
    mix(mix(hash(client.as_bytes())) ^ hash(endpoint.as_bytes()))
}

/// Those that are not in the subset. Before the rank comes what the caller prefers: a property of the
/// endpoint alone, or one change would change the order of others.
pub(super) fn others<'a, P: Ord>(
    client: &str,
    size: usize,
    endpoints: impl Iterator<Item = (usize, P, &'a str)>,
) -> Vec<usize> {
    let mut ranked: Vec<_> =
        endpoints.map(|(i, preferred, id)| (preferred, rank(client, id), id, i)).collect();
    if ranked.len() <= size {
        return Vec::new();
    }
    ranked.select_nth_unstable(size);
    ranked.into_iter().skip(size).map(|(.., i)| i).collect()
}
