//! The changes of the last revisions, for watchers that resume.

use std::collections::VecDeque;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Capacity;
use super::message::{self, Kind, Message, Range, weigh};
use crate::state::{Change, Instance, Key, Record, Service};

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
    Gone(Box<Key>),
}

/// Tells most revisions that are of no interest without looking at their changes.
#[derive(Debug, Clone, Copy)]
enum Tag {
    /// All changes are of this service: hashes of its namespace and of both names.
    One {
        namespace: u64,
        service: u64,
    },
    Mixed,
}

impl Ring {
    /// An empty ring for a state that is at `revision`.
    pub(super) fn new(revision: u64) -> Ring {
        Ring { recent: VecDeque::new(), floor: revision, events: 0, bytes: 0 }
    }

    /// Takes the changes of one revision that can be watched. False when there are none.
    pub(super) fn push(&mut self, revision: u64, changes: &[Change], capacity: &Capacity) -> bool {
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
        while self.events > capacity.ring_events || self.bytes > capacity.ring_bytes {
            let oldest = self.recent.pop_front().expect("it holds something, so it is not empty");
            self.events -= oldest.changes.as_slice().len();
            self.bytes -= oldest.bytes;
            self.floor = oldest.revision;
        }
        true
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
        let wanted = match range {
            Range::Service { namespace, service } => hash(namespace, service),
            Range::Namespace { namespace } => hash(namespace, ""),
        };
        let start = self.recent.partition_point(|recent| recent.revision <= revision);
        for recent in self.recent.range(start..) {
            let of_interest = match (recent.tag, range) {
                (Tag::Mixed, _) => true,
                (Tag::One { service, .. }, Range::Service { .. }) => service == wanted,
                (Tag::One { namespace, .. }, Range::Namespace { .. }) => namespace == wanted,
            };
            if !of_interest {
                continue;
            }
            let changes = recent.changes.as_slice().iter().map(Kept::change);
            let changes: Box<[Change]> =
                changes.filter(|change| range.holds(&change.key)).collect();
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
            Some(
                Record::Meta(_)
                | Record::Namespace(_)
                | Record::Session(_)
                | Record::Reply(_)
                | Record::Member(_)
                | Record::Config(_)
                | Record::Release(_)
                | Record::Schema(_)
                | Record::Report(_)
                | Record::Counter(_)
                | Record::Lock(_)
                | Record::Removal(_),
            ) => None,
            None => message::names(&change.key).map(|_| Kept::Gone(Box::new(change.key.clone()))),
        }
    }

    fn names(&self) -> (&str, &str) {
        match self {
            Kept::Service(service) => (&service.namespace, &service.name),
            Kept::Instance(instance) => (&instance.namespace, &instance.service),
            Kept::Gone(key) => {
                let (namespace, service) =
                    message::names(key).expect("only what can be watched is kept");
                (namespace, service)
            }
        }
    }

    fn change(&self) -> Change {
        match self {
            Kept::Service(service) => {
                Change { key: service.key(), record: Some(Record::Service(service.clone())) }
            }
            Kept::Instance(instance) => {
                Change { key: instance.key(), record: Some(Record::Instance(instance.clone())) }
            }
            Kept::Gone(key) => Change { key: Key::clone(key), record: None },
        }
    }
}

impl Tag {
    fn of(changes: &[Kept]) -> Tag {
        let (namespace, service) = changes[0].names();
        if changes[1..].iter().any(|change| change.names() != (namespace, service)) {
            return Tag::Mixed;
        }
        Tag::One { namespace: hash(namespace, ""), service: hash(namespace, service) }
    }
}

fn hash(namespace: &str, service: &str) -> u64 {
    xxh3_64_with_seed(service.as_bytes(), xxh3_64(namespace.as_bytes()))
}
