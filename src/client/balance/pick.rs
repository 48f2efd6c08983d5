//! The choice of an endpoint for a call, and of others when that one does not answer. No lock, no
//! allocation; what is written is a counter at most.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::Endpoint;
use super::load::{Bound, Flight, nanos};
use super::math::{Random, below, jump, mix};
use super::ring::ketama_place;
use super::rotation::Sampler;
use super::snapshot::{Group, Member, Snapshot, Table};
use crate::limits;

/// Why no endpoint can be picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    #[error("there are no endpoints")]
    Empty,
    /// Draining, disabled, of weight 0; or unhealthy or ejected where the policy does not ignore that.
    #[error("none of {endpoints} endpoints takes calls")]
    Unusable { endpoints: usize },
    #[error("{tried} endpoints were tried for this call and there is no other one to try")]
    Exhausted { tried: usize },
}

/// One call on its way to an endpoint.
pub struct Call<'a, T> {
    pub(super) snapshot: &'a Snapshot<T>,
    pub(super) hash: u64,
    pub(super) now: u64,
    pub(super) random: Random,
    /// The group in which it begins, and whether the other one could take its calls.
    side: u32,
    pub(super) spare: bool,
    pub(super) tried: u32,
    /// Others came to nothing: those that were ejected are asked too.
    pub(super) desperate: bool,
    /// Places of the members that were tried, of all members.
    pub(super) places: [u32; limits::BALANCE_ATTEMPTS],
}

/// The endpoint that was chosen. Where the policy bounds the calls under way, this one counts already.
pub struct Pick<'a, T> {
    pub(super) member: &'a Member<T>,
    pub(super) side: usize,
    pub(super) counts: bool,
}

impl<T> fmt::Debug for Call<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("hash", &self.hash).field("tried", &self.tried).finish()
    }
}

impl<T> fmt::Debug for Pick<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pick").field("id", &self.member.endpoint.id).finish()
    }
}

impl<'a, T> Pick<'a, T> {
    pub fn endpoint(&self) -> &'a Endpoint<T> {
        &self.member.endpoint
    }

    pub fn member(&self) -> &'a Member<T> {
        self.member
    }

    /// Starts the call: it counts as under way until the flight is finished or dropped.
    pub fn start(mut self, now: Duration) -> Flight {
        if !self.counts {
            self.member.load.begin(self.side);
        }
        self.counts = false;
        Flight::new(Arc::clone(&self.member.load), nanos(now))
    }
}

impl<T> Drop for Pick<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.counts {
            self.member.load.end();
        }
    }
}

/// The first candidate, without a call if that is not needed.
#[inline]
pub(super) fn pick<T>(
    snapshot: &Snapshot<T>,
    hash: Option<u64>,
    now: Duration,
    random: u64,
) -> Result<Pick<'_, T>, Unavailable> {
    let mut draws = Random(random);
    let key = hash.unwrap_or_else(|| draws.next());
    match snapshot.choose_plainly(key, nanos(now), &mut draws) {
        Some((i, counts)) => Ok(Pick { member: &snapshot.members[i as usize], side: 0, counts }),
        None => Call::new(snapshot, hash, now, random).choose_any(),
    }
}

impl<'a, T> Call<'a, T> {
    #[inline]
    pub(super) fn new(
        snapshot: &'a Snapshot<T>,
        hash: Option<u64>,
        now: Duration,
        random: u64,
    ) -> Call<'a, T> {
        let mut random = Random(random);
        let hash = hash.unwrap_or_else(|| random.next());
        let (side, spare) = if snapshot.groups[1].len == 0 {
            (0, false)
        } else {
            route(snapshot, hash, &mut random)
        };
        let (now, places) = (nanos(now), [0; limits::BALANCE_ATTEMPTS]);
        Call { snapshot, hash, now, random, side, spare, tried: 0, desperate: false, places }
    }

    /// The first time the endpoint that the policy chooses; then, each time, another one: on a ring the
    /// next one on it, so that keys stay together when their endpoint does not answer.
    #[inline]
    pub fn candidate(&mut self) -> Result<Pick<'a, T>, Unavailable> {
        if self.tried == 0 {
            let plain = self.snapshot.choose_plainly(self.hash, self.now, &mut self.random);
            if let Some((i, counts)) = plain {
                self.places[0] = i;
                self.tried = 1;
                return Ok(Pick { member: &self.snapshot.members[i as usize], side: 0, counts });
            }
        }
        self.choose_any()
    }

    #[inline(never)]
    fn choose_any(&mut self) -> Result<Pick<'a, T>, Unavailable> {
        if self.tried as usize == self.places.len() {
            return Err(self.unavailable());
        }
        let first = self.side as usize;
        let mut pick = self.choose(first).or_else(|| self.choose(1 - first));
        if pick.is_none() && self.tried > 0 && !self.desperate {
            // Who failed more often than others is still better than nobody.
            self.desperate = true;
            pick = self.choose(first).or_else(|| self.choose(1 - first));
        }
        pick.ok_or_else(|| self.unavailable())
    }

    /// One more when so many came to nothing that [`Call::candidate`] names no others: the first from a random
    /// place on that was not tried, is healthy, and of which the caller knows that it can be reached.
    #[cold]
    pub fn reachable(&mut self, is: impl Fn(&T) -> bool) -> Option<Pick<'a, T>> {
        let chosen = self.snapshot.chosen();
        let n = u32::try_from(chosen.len()).ok().filter(|n| *n > 0)?;
        let tried = &self.places[..self.tried as usize];
        let first = below(self.random.next(), n);
        let mut places = (first..n).chain(0..first).filter(|place| !tried.contains(place));
        let place = places.find(|place| {
            let endpoint = &chosen[*place as usize].endpoint;
            endpoint.healthy && is(&endpoint.target)
        })?;
        let side = usize::from(place >= self.snapshot.groups[0].len);
        Some(Pick { member: &chosen[place as usize], side, counts: false })
    }

    #[cold]
    fn unavailable(&self) -> Unavailable {
        match (self.tried, self.snapshot.members.len()) {
            (0, 0) => Unavailable::Empty,
            (0, endpoints) => Unavailable::Unusable { endpoints },
            (tried, _) => Unavailable::Exhausted { tried: tried as usize },
        }
    }
}

/// Chooses the group, and says whether the other one could take its calls. As Envoy's priorities: the
/// client's zone takes all calls while so many of its endpoints are available that 1.4 times as many
/// would be all of them, and so much less when there are fewer. Calls of one key go to one group.
#[cold]
fn route<T>(snapshot: &Snapshot<T>, hash: u64, random: &mut Random) -> (u32, bool) {
    const ALL: u64 = 1 << 16;
    let health = |side: usize| {
        let total = u64::from(snapshot.groups[side].len);
        let available = total.saturating_sub(u64::from(snapshot.unavailable_in(side)));
        (available * ALL * limits::BALANCE_OVERPROVISIONING_PERCENT / 100)
            .checked_div(total)
            .map_or(0, |health| health.min(ALL))
    };
    let (local, rest) = (health(0), health(1));
    let spare = local + rest >= ALL;
    let share = if spare {
        local
    } else {
        let somebody = if snapshot.groups[0].len > 0 { ALL } else { 0 };
        (local * ALL).checked_div(local + rest).unwrap_or(somebody)
    };
    let draw = if snapshot.policy().hashes() { mix(!hash) } else { random.next() };
    (u32::from(draw >> 48 >= share), spare)
}

impl<T> Snapshot<T> {
    pub(super) fn unavailable_in(&self, side: usize) -> u32 {
        self.groups[side].unhealthy + self.lineage.sides[side].ejected.load(Relaxed)
    }

    /// The first candidate, and whether it counts already, in the one case that is common: everybody is
    /// there, in one group. None = find out in another way.
    #[inline]
    fn choose_plainly(&self, hash: u64, now: u64, random: &mut Random) -> Option<(u32, bool)> {
        let lineage = &*self.lineage;
        if !self.plain
            || lineage.sides[0].ejected.load(Relaxed) > 0
            || now < lineage.warm_until.load(Relaxed)
        {
            return None;
        }
        let group = &self.groups[0];
        if let Some(percent) = self.policy().bound_percent() {
            let i = match &group.table {
                Table::Ring { ring, ketama: false } => {
                    self.bound_plainly(percent, hash, |hash| ring.owner(ring.find(hash)))
                }
                Table::Maglev(maglev) => {
                    self.bound_plainly(percent, hash, |hash| maglev.owner(hash))
                }
                _ => None,
            };
            return i.map(|i| (i, true));
        }
        let i = match &group.table {
            Table::Ring { ring, ketama } => {
                ring.owner(ring.find(if *ketama { ketama_place(hash) } else { hash }))
            }
            Table::Maglev(maglev) => maglev.owner(hash),
            Table::Rendezvous(rendezvous) => rendezvous.owner(hash, |_| true)?,
            Table::Random(sampler) => sampler.draw(random),
            Table::LeastRequest { sampler: Sampler::Alike(n @ 2..), choices: 2 } => {
                let (one, other) = two(*n, random.next());
                let load = |i: u32| self.members[i as usize].load.in_flight();
                if load(other) < load(one) { other } else { one }
            }
            Table::PeakEwma { sampler: Sampler::Alike(n @ 2..), choices: 2 } => {
                let (one, other) = two(*n, random.next());
                let cost = |i: u32| self.members[i as usize].load.cost(now);
                if cost(other) < cost(one) { other } else { one }
            }
            Table::Rotation(period) => group.step(period.as_deref()),
            Table::First(order) => order[0],
            Table::Empty | Table::LeastRequest { .. } | Table::PeakEwma { .. } => return None,
        };
        Some((i, false))
    }

    /// See [`Chooser::bounded`].
    #[inline]
    fn bound_plainly(&self, percent: u32, hash: u64, owner: impl Fn(u64) -> u32) -> Option<u32> {
        let calls = &self.lineage.calls[0].0;
        let now = calls.fetch_add(1, Relaxed) + 1;
        for step in 0..limits::BALANCE_PROBES {
            let i = owner(jump(hash, step));
            let member = &self.members[i as usize];
            let bound = bound(now, percent, member.endpoint.weight, self.groups[0].weight);
            if member.load.begin_below(0, bound) {
                return Some(i);
            }
        }
        calls.fetch_sub(1, Relaxed);
        None
    }
}

/// Two different ones of `0..n`, by the halves of one number.
#[inline]
fn two(n: u32, draw: u64) -> (u32, u32) {
    let one = below(draw, n);
    let other = below(draw << 32, n - 1);
    (one, other + u32::from(other >= one))
}

/// How many calls may be under way at an endpoint when so many are in its group: its share of them by
/// weight, times the percentage. At most 2^32 calls, 2^16 of weight and 10 000 percent: 62 bits.
#[inline]
pub(super) fn bound(calls: u64, percent: u32, weight: u32, of: u64) -> Bound {
    let calls = calls.min(1 << 32) * u64::from(percent) * u64::from(weight);
    Bound { calls, of: 100 * of.max(1) }
}

impl Group {
    /// Whose turn it is.
    #[inline]
    pub(super) fn step(&self, period: Option<&[u32]>) -> u32 {
        let step = self.cursor.0.fetch_add(1, Relaxed);
        match period {
            Some(period) => period[(step % period.len() as u64) as usize],
            None => (step % u64::from(self.len)) as u32,
        }
    }
}
