//! The endpoints of a service at one moment with what its policy makes of them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::load::{Lineage, Load, Side, nanos};
use super::maglev::Maglev;
use super::math::{hash, mix};
use super::pick::{Call, Pick, Unavailable, pick};
use super::rendezvous::Rendezvous;
use super::ring::{self, Ring};
use super::rotation::{Sampler, period};
use super::subset;
use super::{Admin, Algorithm, Endpoint, Origin, Policy};
use crate::limits;

/// Endpoints that do not change, for any number of threads that pick from them. What calls have shown of
/// an endpoint stays with it from one snapshot to the next: see [`Snapshot::successor`].
#[derive(Debug)]
pub struct Snapshot<T> {
    policy: Policy,
    origin: Origin,
    /// Those of each group, and then those that get no calls; sorted by id within each of them.
    pub(super) members: Box<[Member<T>]>,
    /// The client's own zone and the rest; only the first where zones do not matter.
    pub(super) groups: [Group; 2],
    /// One group, all of it healthy.
    pub(super) plain: bool,
    pub(super) lineage: Arc<Lineage>,
}

/// An endpoint with what is known of it.
#[derive(Debug)]
pub struct Member<T> {
    pub(super) endpoint: Endpoint<T>,
    /// Hash of the id, by which a key enters an endpoint that is starting.
    pub(super) id_hash: u64,
    pub(super) load: Arc<Load>,
}

/// Endpoints among which the policy chooses.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) first: u32,
    pub(super) len: u32,
    pub(super) table: Table,
    pub(super) unhealthy: u32,
    pub(super) weight: u64,
    pub(super) healthy_weight: u64,
    pub(super) cursor: Cursor,
}

/// Written by every pick that goes round: a cache line of its own.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Cursor(pub(super) AtomicU64);

#[derive(Debug)]
pub(super) enum Table {
    Empty,
    Ring {
        ring: Ring,
        ketama: bool,
    },
    Maglev(Maglev),
    Rendezvous(Rendezvous),
    Random(Sampler),
    LeastRequest {
        sampler: Sampler,
        choices: u32,
    },
    PeakEwma {
        sampler: Sampler,
        choices: u32,
    },
    /// Steps of a period; None = one of each.
    Rotation(Option<Box<[u32]>>),
    First(Box<[u32]>),
}

impl<T> Snapshot<T> {
    /// The first endpoints of a service. Of endpoints with the same id the last one counts.
    pub fn new(policy: &Policy, origin: &Origin, endpoints: Vec<Endpoint<T>>) -> Snapshot<T> {
        build(policy, origin, endpoints, None, 0)
    }

    /// What comes after this snapshot: its endpoints keep what is known of those of the same id, new ones
    /// start slowly if the policy says so. Once there is a successor, the loads are counted for it; whoever
    /// still picks from this one picks well, but of endpoints that may have gone.
    pub fn successor(
        &self,
        policy: &Policy,
        origin: &Origin,
        endpoints: Vec<Endpoint<T>>,
        now: Duration,
    ) -> Snapshot<T> {
        build(policy, origin, endpoints, Some(self), nanos(now))
    }

    /// Begins a call: `hash` is that of its key, for policies that hash (None = at random, as in gRFC
    /// A42); `now` is the time since any moment that is always the same one; `random` any random number.
    #[inline]
    pub fn call(&self, hash: Option<u64>, now: Duration, random: u64) -> Call<'_, T> {
        Call::new(self, hash, now, random)
    }

    /// The first candidate of a call.
    #[inline]
    pub fn pick(
        &self,
        hash: Option<u64>,
        now: Duration,
        random: u64,
    ) -> Result<Pick<'_, T>, Unavailable> {
        pick(self, hash, now, random)
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// All endpoints: first those among which the policy chooses, those of the client's zone before others.
    pub fn members(&self) -> &[Member<T>] {
        &self.members
    }

    /// The endpoint with this id.
    pub fn member(&self, id: &str) -> Option<&Member<T>> {
        Some(&self.members[self.find(id)?])
    }

    /// Those among which the policy chooses: enabled, with a weight, and in the subset. They need not be
    /// healthy.
    pub fn chosen(&self) -> &[Member<T>] {
        &self.members[..self.groups.iter().map(|group| group.len as usize).sum()]
    }

    pub(super) fn group(&self, side: usize) -> &[Member<T>] {
        let group = &self.groups[side];
        &self.members[group.first as usize..(group.first + group.len) as usize]
    }
}

impl<T> Member<T> {
    pub fn endpoint(&self) -> &Endpoint<T> {
        &self.endpoint
    }

    /// Calls under way.
    pub fn in_flight(&self) -> u64 {
        self.load.in_flight()
    }

    /// How long its calls took lately, with the weight that `peak_ewma` gives them.
    pub fn latency(&self, now: Duration) -> Option<Duration> {
        Some(Duration::from_nanos(self.load.latency(nanos(now))? as u64))
    }

    /// True while it is left out because it failed more than others.
    pub fn is_ejected(&self) -> bool {
        self.load.is_ejected()
    }

    #[inline]
    pub(super) fn is_available(&self) -> bool {
        self.endpoint.healthy && !self.load.is_ejected()
    }
}

fn build<T>(
    policy: &Policy,
    origin: &Origin,
    mut endpoints: Vec<Endpoint<T>>,
    before: Option<&Snapshot<T>>,
    now: u64,
) -> Snapshot<T> {
    let lineage = before.map_or_else(Arc::default, |before| Arc::clone(&before.lineage));
    // A stable sort, from the last to the first: the last of the same id comes first and is kept.
    endpoints.reverse();
    endpoints.sort_by(|a, b| a.id.cmp(&b.id));
    endpoints.dedup_by(|later, earlier| later.id == earlier.id);

    let sides = sides(policy, origin, &endpoints);
    let mut members: Vec<(Option<usize>, Member<T>)> = sides
        .into_iter()
        .zip(endpoints)
        .map(|(side, endpoint)| {
            let known =
                before.and_then(|before| Some(&before.members[before.find(&endpoint.id)?].load));
            let load = known.map_or_else(|| Arc::new(Load::new(&lineage)), Arc::clone);
            (side, Member { id_hash: hash(endpoint.id.as_bytes()), endpoint, load })
        })
        .collect();
    members.sort_by_key(|(side, _)| side.unwrap_or(2));

    succeed(policy, &lineage, before, &members, now);
    let (sides, members): (Vec<_>, Vec<_>) = members.into_iter().unzip();
    let first = sides.partition_point(|side| *side == Some(0));
    let second = sides.partition_point(|side| side.is_some());
    let cursor = |side: usize| match before {
        Some(before) => before.groups[side].cursor.0.load(Relaxed),
        // Clients begin at different endpoints.
        None => mix(hash(origin.id.as_bytes())) >> 32,
    };
    let groups = [
        Group::new(policy, origin, &members[..first], 0, cursor(0)),
        Group::new(policy, origin, &members[first..second], first, cursor(1)),
    ];
    let plain = groups[0].len > 0 && groups[1].len == 0 && groups[0].unhealthy == 0;
    let (policy, origin) = (policy.clone(), origin.clone());
    Snapshot { policy, origin, members: members.into(), groups, plain, lineage }
}

/// In which group each endpoint is; None = it gets no calls.
fn sides<T>(policy: &Policy, origin: &Origin, endpoints: &[Endpoint<T>]) -> Vec<Option<usize>> {
    let zoned = policy.prefers_zone() && !origin.zone.is_empty();
    let local = |endpoint: &Endpoint<T>| !zoned || endpoint.zone == origin.zone;
    let mut sides: Vec<_> = endpoints
        .iter()
        .map(|endpoint| {
            let takes = endpoint.admin == Admin::Enabled && endpoint.weight > 0;
            takes.then(|| usize::from(!local(endpoint)))
        })
        .collect();
    if let Some(size) = policy.subset_size() {
        let ranked = sides.iter().zip(endpoints).enumerate().filter_map(|(i, (side, endpoint))| {
            let rank = (!endpoint.healthy, (*side)?);
            Some((i, rank, endpoint.id.as_str()))
        });
        for i in subset::others(&origin.id, size as usize, ranked) {
            sides[i] = None;
        }
    }
    sides
}

/// Moves what is known of the endpoints from the snapshot before to these.
fn succeed<T>(
    policy: &Policy,
    lineage: &Arc<Lineage>,
    before: Option<&Snapshot<T>>,
    members: &[(Option<usize>, Member<T>)],
    now: u64,
) {
    let mut ward = lineage.ward();
    let decay = match policy.algorithm() {
        Algorithm::PeakEwma { decay, .. } => decay,
        _ => Duration::from_millis(limits::DEFAULT_BALANCE_DECAY_MS),
    };
    let slow_start = policy.slow_start().unwrap_or_default();
    lineage.set(&mut ward, *policy.ejection(), decay, slow_start);
    for Side { ejected, ejected_weight, .. } in &lineage.sides {
        ejected.store(0, Relaxed);
        ejected_weight.store(0, Relaxed);
    }
    ward.ejected = 0;
    ward.endpoints = members.iter().filter(|(side, _)| side.is_some()).count();
    let took = |id: &str| before.is_some_and(|before| before.takes(id));
    let starting: Vec<_> = members
        .iter()
        .filter(|(side, member)| {
            side.is_some() && member.endpoint.healthy && !took(&member.endpoint.id)
        })
        .collect();
    // Where most are new, there is nobody who could take the calls for them.
    if before.is_some() && starting.len() * 2 <= ward.endpoints {
        starting.iter().for_each(|(_, member)| member.load.warm_up(now));
    }
    for (side, Member { endpoint, load, .. }) in members {
        if !policy.ejection().on {
            load.pardon();
        }
        load.place(*side);
        load.stand(&mut ward, *side, endpoint.weight, endpoint.healthy);
    }
    // Those that are gone take nothing away any more.
    let mut kept: Vec<_> = members.iter().map(|(_, member)| Arc::as_ptr(&member.load)).collect();
    kept.sort_unstable();
    for gone in before.into_iter().flat_map(|before| &before.members) {
        if kept.binary_search(&Arc::as_ptr(&gone.load)).is_err() {
            gone.load.place(None);
            gone.load.stand(&mut ward, None, 0, false);
        }
    }
}

impl<T> Snapshot<T> {
    /// The place of an endpoint.
    fn find(&self, id: &str) -> Option<usize> {
        let ends = [self.groups[0].len as usize, self.chosen().len(), self.members.len()];
        let mut start = 0;
        for end in ends {
            let group = &self.members[start..end];
            if let Ok(i) = group.binary_search_by(|member| member.endpoint.id.as_str().cmp(id)) {
                return Some(start + i);
            }
            start = end;
        }
        None
    }

    /// True when the endpoint got calls here.
    fn takes(&self, id: &str) -> bool {
        let place = self.find(id).filter(|place| *place < self.chosen().len());
        place.is_some_and(|place| self.members[place].endpoint.healthy)
    }
}

impl Group {
    fn new<T>(
        policy: &Policy,
        origin: &Origin,
        members: &[Member<T>],
        first: usize,
        cursor: u64,
    ) -> Group {
        let weight = |member: &Member<T>| u64::from(member.endpoint.weight);
        let healthy = members.iter().filter(|member| member.endpoint.healthy);
        Group {
            first: first as u32,
            len: members.len() as u32,
            table: Table::new(policy, origin, members),
            unhealthy: (members.len() - healthy.clone().count()) as u32,
            weight: members.iter().map(weight).sum(),
            healthy_weight: healthy.map(weight).sum(),
            cursor: Cursor(AtomicU64::new(cursor)),
        }
    }
}

impl Table {
    fn new<T>(policy: &Policy, origin: &Origin, members: &[Member<T>]) -> Table {
        if members.is_empty() {
            return Table::Empty;
        }
        let weights: Vec<u32> = members.iter().map(|member| member.endpoint.weight).collect();
        let sampler = || Sampler::new(&weights);
        match policy.algorithm() {
            Algorithm::RingHash { points, min_ring_size, max_ring_size } => {
                let counts = match min_ring_size {
                    Some(least) => ring::envoy_counts(&weights, least, max_ring_size),
                    None => ring::counts(&weights, points, max_ring_size),
                };
                Table::Ring { ring: ring(members, &counts, ring::envoy_points), ketama: false }
            }
            Algorithm::Ketama => {
                let most = *limits::BALANCE_RING.end() as u32;
                let counts = ring::counts(&weights, limits::DEFAULT_BALANCE_POINTS, most);
                Table::Ring { ring: ring(members, &counts, ring::ketama_points), ketama: true }
            }
            Algorithm::Maglev { table_size } => {
                let keys: Vec<&str> = members.iter().map(|member| member.key()).collect();
                Table::Maglev(Maglev::new(&keys, &weights, table_size))
            }
            Algorithm::Rendezvous => {
                let keys = members.iter().map(|member| hash(member.key().as_bytes())).collect();
                Table::Rendezvous(Rendezvous::new(keys, &weights))
            }
            Algorithm::LeastRequest { choices } => {
                Table::LeastRequest { sampler: sampler(), choices }
            }
            Algorithm::PeakEwma { choices, .. } => Table::PeakEwma { sampler: sampler(), choices },
            Algorithm::WeightedRoundRobin => Table::Rotation(Some(period(&weights))),
            Algorithm::RoundRobin => Table::Rotation(None),
            Algorithm::Random => Table::Random(sampler()),
            Algorithm::PickFirst { shuffle } => {
                let mut order: Vec<u32> = (0..members.len() as u32).collect();
                if shuffle {
                    let rank = |i: &u32| subset::rank(&origin.id, members[*i as usize].id());
                    order.sort_by_cached_key(rank);
                }
                Table::First(order.into())
            }
        }
    }
}

impl<T> Member<T> {
    fn id(&self) -> &str {
        &self.endpoint.id
    }

    fn key(&self) -> &str {
        if self.endpoint.hash_key.is_empty() { &self.endpoint.id } else { &self.endpoint.hash_key }
    }
}

/// Draws the points of an endpoint by its key.
type Points = fn(&str, u32, u64, &mut Vec<(u64, u32)>);

fn ring<T>(members: &[Member<T>], counts: &[u64], points: Points) -> Ring {
    let mut drawn = Vec::with_capacity(counts.iter().sum::<u64>() as usize);
    for ((owner, member), count) in (0u32..).zip(members).zip(counts) {
        points(member.key(), owner, *count, &mut drawn);
    }
    Ring::new(&drawn)
}
