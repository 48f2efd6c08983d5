//! The changes of the last revisions, for watchers that resume.

use std::collections::VecDeque;
use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::Capacity;
use super::message::{Message, Range};

#[derive(Debug)]
pub(super) struct Ring {
    /// Oldest first. Invariant: holds every watchable change of a revision above `floor`.
    recent: VecDeque<Recent>,
    floor: u64,
    events: usize,
    bytes: usize,
}

/// One revision.
#[derive(Debug)]
struct Recent {
    revision: u64,
    tag: Tag,
    message: Arc<Message>,
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

    pub(super) fn push(&mut self, message: Arc<Message>, capacity: &Capacity) {
        self.events += message.events.len();
        self.bytes += message.bytes;
        let tag = Tag::of(&message);
        self.recent.push_back(Recent { revision: message.revision, tag, message });
        while self.events > capacity.ring_events || self.bytes > capacity.ring_bytes {
            let oldest = self.recent.pop_front().expect("it holds something, so it is not empty");
            self.events -= oldest.message.events.len();
            self.bytes -= oldest.message.bytes;
            self.floor = oldest.revision;
        }
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
            if let Some(message) = recent.message.within(range) {
                if message.bytes > capacity.message_bytes {
                    return None;
                }
                found.push_back(message);
            }
        }
        Some(found)
    }
}

impl Tag {
    fn of(message: &Message) -> Tag {
        match message.one_service() {
            Some((namespace, service)) => {
                Tag::One { namespace: hash(namespace, ""), service: hash(namespace, service) }
            }
            None => Tag::Mixed,
        }
    }
}

fn hash(namespace: &str, service: &str) -> u64 {
    xxh3_64_with_seed(service.as_bytes(), xxh3_64(namespace.as_bytes()))
}
