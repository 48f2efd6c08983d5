//! The choice of a candidate where it is not plain: some endpoints were tried, are unavailable or starting,
//! or the policy asks for more than one look.

use std::sync::atomic::Ordering::Relaxed;

use super::load::Bound;
use super::math::{below, jump, mix};
use super::pick::{Call, Pick, bound};
use super::ring::{Ring, ketama_place};
use super::rotation::Sampler;
use super::snapshot::{Group, Member, Table};
use crate::limits;

impl<'a, T> Call<'a, T> {
    /// A candidate in one group.
    pub(super) fn choose(&mut self, side: usize) -> Option<Pick<'a, T>> {
        let snapshot = self.snapshot;
        let group = &snapshot.groups[side];
        let unavailable = snapshot.unavailable_in(side);
        let mut chooser = Chooser {
            side,
            group,
            members: snapshot.group(side),
            picky: unavailable > 0 && !self.panics(group, unavailable),
            starting: self.now < snapshot.lineage.warm_until.load(Relaxed),
            call: self,
        };
        let bound = snapshot.policy().bound_percent();
        let chosen = match (&group.table, bound) {
            (Table::Empty, _) => None,
            (Table::Ring { ring, ketama }, None) => chooser.walk(ring, *ketama),
            (Table::Maglev(maglev), None) => chooser.probe(|hash| Some(maglev.owner(hash))),
            (Table::Rendezvous(rendezvous), None) => {
                let may = |i| chooser.may(i);
                let best = rendezvous.owner(chooser.call.hash, may);
                best.or_else(|| chooser.scan(0))
            }
            (Table::Ring { ring, ketama }, Some(percent)) => {
                let owner = |hash| {
                    let place = if *ketama { ketama_place(hash) } else { hash };
                    Some(ring.owner(ring.find(place)))
                };
                return chooser.bounded(percent, owner);
            }
            (Table::Maglev(maglev), Some(percent)) => {
                return chooser.bounded(percent, |hash| Some(maglev.owner(hash)));
            }
            (Table::Rendezvous(rendezvous), Some(percent)) => {
                return chooser.bounded(percent, |hash| rendezvous.owner(hash, |_| true));
            }
            (Table::Random(sampler), _) => chooser.random(sampler),
            (Table::LeastRequest { sampler, choices }, _) => {
                chooser.least_request(sampler, *choices)
            }
            (Table::PeakEwma { sampler, choices }, _) => chooser.peak_ewma(sampler, *choices),
            (Table::Rotation(period), _) => chooser.rotate(period.as_deref()),
            (Table::First(order), _) => {
                let mut order = order.iter().copied();
                order.find(|i| chooser.may(*i)).or_else(|| chooser.scan(0))
            }
        };
        chosen.map(|i| chooser.take(i, false))
    }

    /// Too few endpoints are available, and no other group can take the calls: those that may be
    /// unavailable are called too, before the others break down under the load (Envoy's panic threshold).
    #[cold]
    fn panics(&self, group: &Group, unavailable: u32) -> bool {
        let available = u64::from(group.len.saturating_sub(unavailable));
        let least = u64::from(group.len) * u64::from(self.snapshot.policy().panic_percent());
        !self.spare && available * 100 < least
    }
}

/// A choice in one group.
struct Chooser<'c, 'a, T> {
    call: &'c mut Call<'a, T>,
    side: usize,
    group: &'a Group,
    members: &'a [Member<T>],
    /// Some are unavailable, and that matters.
    picky: bool,
    /// Some are in their slow start.
    starting: bool,
}

impl<'a, T> Chooser<'_, 'a, T> {
    #[inline]
    fn take(self, i: u32, counts: bool) -> Pick<'a, T> {
        let call = self.call;
        call.places[call.tried as usize] = self.group.first + i;
        call.tried += 1;
        Pick { member: &self.members[i as usize], side: self.side, counts }
    }

    #[inline]
    fn was_tried(&self, i: u32) -> bool {
        self.call.tried > 0
            && self.call.places[..self.call.tried as usize].contains(&(self.group.first + i))
    }

    /// Not tried, and available as far as that matters.
    #[inline]
    fn could(&self, i: u32) -> bool {
        let member = &self.members[i as usize];
        !self.was_tried(i)
            && (!self.picky
                || member.is_available()
                || (self.call.desperate && member.endpoint.healthy))
    }

    /// The same, and it does not leave this key to another one because it is starting. A key that has
    /// entered stays: the share grows, and what it is compared with depends on key and endpoint alone.
    #[inline]
    fn may(&self, i: u32) -> bool {
        self.could(i) && (!self.starting || self.enters(i, self.call.hash))
    }

    /// The same for policies that do not hash.
    #[inline]
    fn may_now(&mut self, i: u32) -> bool {
        if !self.could(i) {
            return false;
        }
        !self.starting || {
            let draw = self.call.random.next();
            self.enters(i, draw)
        }
    }

    /// The mix is another one than that of rendezvous, or the keys that an endpoint owns would be those
    /// that may not enter.
    #[cold]
    fn enters(&self, i: u32, draw: u64) -> bool {
        let member = &self.members[i as usize];
        mix(!(draw ^ member.id_hash)) >> 32 < member.load.warmth(self.call.now)
    }

    /// Anyone that could be taken, looked for from a random one on: after chance has found none.
    #[cold]
    fn scan(&self, from: u32) -> Option<u32> {
        let n = self.group.len;
        (from..n).chain(0..from).find(|i| self.could(*i))
    }

    /// Along the ring from the place of the key.
    #[inline]
    fn walk(&mut self, ring: &Ring, ketama: bool) -> Option<u32> {
        let hash = self.call.hash;
        let mut place = ring.find(if ketama { ketama_place(hash) } else { hash });
        let owner = ring.owner(place);
        if self.may(owner) {
            return Some(owner);
        }
        for _ in 0..ring.len().min(limits::BALANCE_WALK) {
            place = ring.after(place);
            let owner = ring.owner(place);
            if self.may(owner) {
                return Some(owner);
            }
        }
        self.scan(below(mix(hash), self.group.len))
    }

    /// From one random place to the next, which are the same for the same key.
    #[inline]
    fn probe(&mut self, owner: impl Fn(u64) -> Option<u32>) -> Option<u32> {
        let hash = self.call.hash;
        for step in 0..limits::BALANCE_PROBES {
            let i = owner(jump(hash, step))?;
            if self.may(i) {
                return Some(i);
            }
        }
        self.scan(below(mix(hash), self.group.len))
    }

    /// Consistent hashing with bounded loads (Mirrokni, Thorup, Zadimoghaddam 2016): nobody gets a call
    /// that makes it exceed `percent` of its share of the calls under way, this one included. Who would is
    /// passed over by random jumps (Chen, Coleman, Shrivastava, arXiv 1908.08762): the next on the ring
    /// would get the overflow of everybody before it.
    #[inline]
    fn bounded(mut self, percent: u32, owner: impl Fn(u64) -> Option<u32>) -> Option<Pick<'a, T>> {
        let lineage = &self.call.snapshot.lineage;
        let total = &lineage.calls[self.side].0;
        let calls = total.fetch_add(1, Relaxed) + 1;
        let mut weight = self.group.weight;
        if self.picky {
            let ejected = lineage.sides[self.side].ejected_weight.load(Relaxed);
            weight = self.group.healthy_weight.saturating_sub(ejected);
        }
        if self.call.tried > 0 {
            weight = self.weight_left();
        }
        let bound = |member: &Member<T>| bound(calls, percent, member.endpoint.weight, weight);
        let hash = self.call.hash;
        for step in 0..limits::BALANCE_PROBES {
            let Some(i) = owner(jump(hash, step)) else { break };
            let member = &self.members[i as usize];
            if self.may(i) && member.load.begin_below(self.side, bound(member)) {
                return Some(self.take(i, true));
            }
        }
        match self.scan_below(bound) {
            Some(i) => Some(self.take(i, true)),
            None => {
                total.fetch_sub(1, Relaxed);
                None
            }
        }
    }

    /// Chance found none: the first one below its bound. There is one, as the bounds add up to more than
    /// the calls; unless others have filled it meanwhile, when it is the one with the least load.
    #[cold]
    fn scan_below(&mut self, bound: impl Fn(&Member<T>) -> Bound) -> Option<u32> {
        let n = self.group.len;
        let from = below(mix(self.call.hash), n);
        let mut least: Option<(u64, u32)> = None;
        for i in (from..n).chain(0..from) {
            let member = &self.members[i as usize];
            if !self.could(i) {
                continue;
            }
            if member.load.begin_below(self.side, bound(member)) {
                return Some(i);
            }
            let load = (member.load.in_flight() << 16) / u64::from(member.endpoint.weight);
            if least.is_none_or(|(lower, _)| load < lower) {
                least = Some((load, i));
            }
        }
        let (_, i) = least?;
        self.members[i as usize].load.begin_below(self.side, Bound::NONE).then_some(i)
    }

    /// The weight of those that could be taken, after some were tried.
    #[cold]
    fn weight_left(&self) -> u64 {
        let left = (0..self.group.len).filter(|i| self.could(*i));
        left.map(|i| u64::from(self.members[i as usize].endpoint.weight)).sum()
    }

    #[inline]
    fn random(&mut self, sampler: &Sampler) -> Option<u32> {
        for _ in 0..limits::BALANCE_PROBES {
            let i = sampler.draw(&mut self.call.random);
            if self.may_now(i) {
                return Some(i);
            }
        }
        let from = self.call.random.below(self.group.len);
        self.scan(from)
    }

    /// The power of choices (Mitzenmacher 1996; gRFC A48, Envoy's `least_request`): of some that are drawn
    /// in proportion to their weights, the one with the fewest calls under way for its weight. Among equal
    /// ones it is the first drawn, so that without load the shares are those of the weights.
    #[inline]
    fn least_request(&mut self, sampler: &Sampler, choices: u32) -> Option<u32> {
        let members = self.members;
        self.best(sampler, choices, |i, best| {
            let (one, other) = (&members[i as usize], &members[best as usize]);
            one.load.in_flight() * u64::from(other.endpoint.weight)
                < other.load.in_flight() * u64::from(one.endpoint.weight)
        })
    }

    /// The same with latency times calls under way instead of their number (Finagle's `PeakEwma`).
    #[inline]
    fn peak_ewma(&mut self, sampler: &Sampler, choices: u32) -> Option<u32> {
        let (members, now) = (self.members, self.call.now);
        let cost = |i: u32| members[i as usize].load.cost(now);
        let weight = |i: u32| members[i as usize].endpoint.weight as f32;
        self.best(sampler, choices, |i, best| cost(i) * weight(best) < cost(best) * weight(i))
    }

    #[inline]
    fn best(
        &mut self,
        sampler: &Sampler,
        choices: u32,
        better: impl Fn(u32, u32) -> bool,
    ) -> Option<u32> {
        let mut best = None;
        let choices = choices.min(self.group.len);
        let (mut drawn, mut repeated) = (0, 0);
        for _ in 0..limits::BALANCE_PROBES {
            let i = sampler.draw(&mut self.call.random);
            if !self.may_now(i) {
                continue;
            }
            // Drawn again: another one instead; but where weights are so far apart that it is drawn
            // nearly always, not for long.
            if best == Some(i) && repeated < limits::BALANCE_REPEATS {
                repeated += 1;
                continue;
            }
            if best.is_none_or(|best| better(i, best)) {
                best = Some(i);
            }
            drawn += 1;
            if drawn == choices {
                break;
            }
        }
        best.or_else(|| {
            let from = self.call.random.below(self.group.len);
            self.scan(from)
        })
    }

    #[inline]
    fn rotate(&mut self, period: Option<&[u32]>) -> Option<u32> {
        for _ in 0..limits::BALANCE_PROBES {
            let i = self.group.step(period);
            if self.may_now(i) {
                return Some(i);
            }
        }
        let from = self.call.random.below(self.group.len);
        self.scan(from)
    }
}
