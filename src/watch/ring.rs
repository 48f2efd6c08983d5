//! The changes of the last revisions, for watchers that resume.

use std::collections::VecDeque;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::message::{Kind, Message, weigh};
use super::range::{Names, Range, names};
use super::{Capacity, Match, Selector};
use crate::state::{
    self, Alarm, Change, ConfigItem, Counter, Instance, Key, LockRequest, Record, Saga, Service,
};

#[derive(Debug)]
pub(super) struct Ring {
    /// Oldest first. Invariant: holds every watchable change of a revision above `floor`.
    recent: VecDeque<Recent>,
    floor: u64,
    events: usize,
    bytes: usize,
}

/// One revision. Every write on every node comes through here, and most are never asked for: what can
/// be made again is left out, and one change needs no allocation.
#[derive(Debug)]
struct Recent {
    revision: u64,
    tag: Tag,
    bytes: usize,
    changes: Changes,
}

#[derive(Debug)]
enum Changes {
    One(Kept),
    Many(Box<[Kept]>),
}

/// A change that can be watched. A record tells its key.
#[derive(Debug)]
enum Kept {
    Service(Arc<Service>),
    Instance(Arc<Instance>),
    Config(Arc<ConfigItem>),
    Counter(Arc<Counter>),
    Lock(Arc<LockRequest>),
    Alarm(Arc<Alarm>),
    Saga(Arc<Saga>),
    Gone(Box<Key>),
}

/// Tells most revisions that are of no interest without looking at their changes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tag {
    /// All changes have the same names: hashes of class and namespace, of these and the first name, and
    /// of all. Half a hash is enough: what it takes for another one is looked at in vain.
    One {
        space: u32,
        first: u32,
        all: u32,
    },
    Mixed,
}

/// The tags that one change of interest could have: for each selector, of those names that it fixes.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    spaces: Vec<u32>,
    firsts: Vec<u32>,
    alls: Vec<u32>,
}

impl Ring {
    /// An empty ring for a state that is at `revision`.
    pub(super) fn new(revision: u64) -> Ring {
        Ring { recent: VecDeque::new(), floor: revision, events: 0, bytes: 0 }
    }

    /// Takes the changes of one revision that can be watched. False when there are none.
    pub(super) fn push(&mut self, revision: u64, changes: &[Change]) -> bool {
        let mut bytes = 0;
        let mut kept = changes.iter().filter_map(|change| {
            let kept = Kept::of(change)?;
            bytes += weigh(change);
            Some(kept)
        });
        let Some(first) = kept.next() else { return false };
        let changes = match kept.next() {
            None => Changes::One(first),
            Some(second) => Changes::Many([first, second].into_iter().chain(kept).collect()),
        };
        let tag = Tag::of(changes.as_slice());
        self.events += changes.as_slice().len();
        self.bytes += bytes;
        self.recent.push_back(Recent { revision, tag, bytes, changes });
        true
    }

    /// Forgets the oldest revisions that are too many.
    pub(super) fn trim(&mut self, capacity: &Capacity) {
        let mut count = 0;
        for oldest in &self.recent {
            if self.events <= capacity.ring_events && self.bytes <= capacity.ring_bytes {
                break;
            }
            self.events -= oldest.changes.as_slice().len();
            self.bytes -= oldest.bytes;
            self.floor = oldest.revision;
            count += 1;
        }
        assert!(
            self.events <= capacity.ring_events && self.bytes <= capacity.ring_bytes,
            "{} changes of {} bytes in an empty ring",
            self.events,
            self.bytes,
        );
        let instances = self.recent.range(..count).filter_map(|oldest| match &oldest.changes {
            Changes::One(Kept::Instance(instance)) => Some(&**instance),
            Changes::One(_) | Changes::Many(_) => None,
        });
        state::look_at_all(instances);
        self.recent.drain(..count);
    }

    /// What happened in the range after `revision`; None when that is forgotten in part, or when the
    /// changes of one revision are too many for one message.
    pub(super) fn after(
        &self,
        revision: u64,
        range: &Range,
        capacity: &Capacity,
    ) -> Option<VecDeque<Arc<Message>>> {
        if revision < self.floor {
            return None;
        }
        let mut found = VecDeque::new();
        let wanted = Wanted::of(range);
        let start = self.recent.partition_point(|recent| recent.revision <= revision);
        for recent in self.recent.range(start..) {
            if !wanted.admits(recent.tag) {
                continue;
            }
            let of_range =
                recent.changes.as_slice().iter().filter(|kept| range.holds(kept.names()));
            let changes: Box<[Change]> = of_range.map(Kept::change).collect();
            if !changes.is_empty() {
                let message = Message::new(recent.revision, Kind::Changes, changes);
                if message.bytes > capacity.message_bytes {
                    return None;
                }
                found.push_back(message);
            }
        }
        Some(found)
    }
}

impl Changes {
    fn as_slice(&self) -> &[Kept] {
        match self {
            Changes::One(one) => std::slice::from_ref(one),
            Changes::Many(many) => many,
        }
    }
}

impl Kept {
    /// None when nobody can watch it.
    fn of(change: &Change) -> Option<Kept> {
        match &change.record {
            Some(Record::Service(service)) => Some(Kept::Service(service.clone())),
            Some(Record::Instance(instance)) => Some(Kept::Instance(instance.clone())),
            Some(Record::Config(item)) => Some(Kept::Config(item.clone())),
            Some(Record::Counter(counter)) => Some(Kept::Counter(counter.clone())),
            Some(Record::Lock(request)) => Some(Kept::Lock(request.clone())),
            Some(Record::Alarm(alarm)) => Some(Kept::Alarm(alarm.clone())),
            Some(Record::Saga(saga)) => Some(Kept::Saga(saga.clone())),
            Some(
                Record::Meta(_)
                | Record::Namespace(_)
                | Record::Session(_)
                | Record::Reply(_)
                | Record::Member(_)
                | Record::Release(_)
                | Record::Schema(_)
                | Record::Report(_)
                | Record::Removal(_),
            ) => None,
            None => names(&change.key).map(|_| Kept::Gone(Box::new(change.key.clone()))),
        }
    }

    fn names(&self) -> Names<'_> {
        match self {
            Kept::Service(service) => Names::of_service(&service.namespace, &service.name),
            Kept::Instance(instance) => Names::of_service(&instance.namespace, &instance.service),
            Kept::Config(item) => Names::of_item(&item.namespace, &item.group, &item.key),
            Kept::Counter(counter) => Names::of_counter(&counter.namespace, &counter.name),
            Kept::Lock(request) => Names::of_lock(&request.namespace, &request.lock),
            Kept::Alarm(alarm) => Names::of_alarm(&alarm.namespace, &alarm.name),
            Kept::Saga(saga) => Names::of_saga(&saga.namespace, &saga.gid),
            Kept::Gone(key) => names(key).expect("only what can be watched is kept"),
        }
    }

    fn change(&self) -> Change {
        match self {
            Kept::Service(service) => {
                Change::new(service.key(), Some(Record::Service(service.clone())))
            }
            Kept::Instance(instance) => {
                Change::new(instance.key(), Some(Record::Instance(instance.clone())))
            }
            Kept::Config(item) => Change::new(item.key(), Some(Record::Config(item.clone()))),
            Kept::Counter(counter) => {
                Change::new(counter.key(), Some(Record::Counter(counter.clone())))
            }
            Kept::Lock(request) => Change::new(request.key(), Some(Record::Lock(request.clone()))),
            Kept::Alarm(alarm) => Change::new(alarm.key(), Some(Record::Alarm(alarm.clone()))),
            Kept::Saga(saga) => Change::new(saga.key(), Some(Record::Saga(saga.clone()))),
            Kept::Gone(key) => Change::new(Key::clone(key), None),
        }
    }
}

impl Tag {
    fn of(changes: &[Kept]) -> Tag {
        let names = changes[0].names();
        match changes[1..].iter().all(|change| change.names() == names) {
            true => Tag::one(names),
            false => Tag::Mixed,
        }
    }

    pub(super) fn one(names: Names<'_>) -> Tag {
        let space = hash(names.class as u64, names.namespace);
        let first = hash(space, names.first);
        let all = hash(first, names.second);
        Tag::One { space: half(space), first: half(first), all: half(all) }
    }
}

impl Wanted {
    pub(super) fn of(range: &Range) -> Wanted {
        let mut wanted = Wanted::default();
        for Selector { class, namespace, first, second } in range.selectors() {
            let space = hash(*class as u64, namespace);
            match (first, second) {
                (Match::Exact(first), Match::Exact(second)) => {
                    wanted.alls.push(half(hash(hash(space, first), second)));
                }
                (Match::Exact(first), Match::Any | Match::Prefix(_)) => {
                    wanted.firsts.push(half(hash(space, first)));
                }
                (Match::Any | Match::Prefix(_), _) => wanted.spaces.push(half(space)),
            }
        }
        wanted
    }

    /// False only when no change with this tag is of interest.
    pub(super) fn admits(&self, tag: Tag) -> bool {
        match tag {
            Tag::Mixed => true,
            Tag::One { space, first, all } => {
                self.firsts.contains(&first)
                    || self.spaces.contains(&space)
                    || self.alls.contains(&all)
            }
        }
    }
}

fn hash(seed: u64, text: &str) -> u64 {
    xxh3_64_with_seed(text.as_bytes(), seed)
}

fn half(hash: u64) -> u32 {
    hash as u32
}
