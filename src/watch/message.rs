//! What watchers get: the messages.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::Capacity;
use super::range::Range;
use crate::state::{
    BranchPlan, Change, Endpoint, Gray, HealthCheck, Key, Measure, Pairs, Picks, Probe, Record,
    Release, SagaBranch, State,
};

/// One message to a watcher, shared by all who get it.
#[derive(Debug)]
pub struct Message {
    /// With this message the watcher is complete up to this revision, unless more of a snapshot is to
    /// come.
    pub revision: u64,
    pub kind: Kind,
    /// Records in the order of their keys for a snapshot, changes in their order otherwise.
    pub events: Box<[Change]>,
    /// About the bytes of the events on the wire, never fewer.
    pub(super) bytes: usize,
    encoded: OnceLock<Bytes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The whole range as it is at the revision; what the watcher knew before is void.
    Snapshot { more: bool },
    /// All changes of this one revision that fall in the range.
    Changes,
    /// No change up to the revision.
    Bookmark,
}

/// A range at one revision, cut into messages.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) revision: u64,
    pub(super) messages: Vec<Arc<Message>>,
    pub(super) bytes: usize,
    /// Of all that there are.
    total: Arc<AtomicUsize>,
}

impl Message {
    pub(super) fn new(revision: u64, kind: Kind, events: Box<[Change]>) -> Arc<Message> {
        let bytes = events.iter().map(weigh).sum();
        Arc::new(Message { revision, kind, events, bytes, encoded: OnceLock::new() })
    }

    /// The message as bytes: made by the first who asks, shared by all others.
    pub fn encoded(&self, encode: impl FnOnce(&Message) -> Bytes) -> Bytes {
        self.encoded.get_or_init(|| encode(self)).clone()
    }
}

impl Snapshot {
    /// `total` counts its bytes as long as it lives.
    pub(super) fn of(
        range: &Range,
        state: &State,
        capacity: &Capacity,
        total: &Arc<AtomicUsize>,
    ) -> Snapshot {
        let revision = state.revision();
        let mut pieces: Vec<Vec<Change>> = vec![Vec::new()];
        let mut bytes = 0;
        range.visit(state, &mut |change| {
            let weight = weigh(&change);
            let piece = pieces.last_mut().expect("there is always one");
            if piece.len() >= capacity.snapshot_events
                || (!piece.is_empty() && bytes + weight > capacity.message_bytes)
            {
                pieces.push(vec![change]);
                bytes = weight;
            } else {
                piece.push(change);
                bytes += weight;
            }
        });
        let last = pieces.len() - 1;
        let messages: Vec<Arc<Message>> = pieces
            .into_iter()
            .enumerate()
            .map(|(i, piece)| {
                Message::new(revision, Kind::Snapshot { more: i < last }, piece.into())
            })
            .collect();
        let bytes = messages.iter().map(|message| message.bytes).sum();
        total.fetch_add(bytes, Ordering::Relaxed);
        Snapshot { revision, messages, bytes, total: total.clone() }
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// About the bytes of an event on the wire, never fewer: the texts, and for each field the most that
/// its tag, its length or its number can take.
pub(super) fn weigh(change: &Change) -> usize {
    const EVENT: usize = 16;
    const TEXT: usize = 5;
    const NUMBER: usize = 12;
    let pairs = |pairs: &Pairs| -> usize {
        pairs.iter().map(|(key, value)| key.len() + value.len() + 3 * TEXT).sum()
    };
    let key = match &change.key {
        Key::Service { namespace, name } => namespace.len() + name.len() + 2 * TEXT,
        Key::Instance { namespace, service, id } => {
            namespace.len() + service.len() + id.len() + 3 * TEXT
        }
        Key::Config { namespace, group, key } => {
            namespace.len() + group.len() + key.len() + 3 * TEXT
        }
        Key::Counter { namespace, name, labels } => {
            namespace.len() + name.len() + pairs(labels) + 2 * TEXT
        }
        Key::Alarm { namespace, name } => namespace.len() + name.len() + 2 * TEXT,
        Key::Saga { namespace, gid } => namespace.len() + gid.len() + 2 * TEXT,
        Key::Lock { namespace, lock, ticket: _ } => {
            namespace.len() + lock.len() + 2 * TEXT + NUMBER
        }
        Key::Meta
        | Key::Namespace { .. }
        | Key::Session { .. }
        | Key::Reply { .. }
        | Key::Member { .. }
        | Key::Release { .. }
        | Key::Schema { .. }
        | Key::Report { .. }
        | Key::Removal { .. } => 0,
    };
    let record = match &change.record {
        Some(Record::Service(service)) => {
            service.policy.len()
                + pairs(&service.policy_parameters)
                + pairs(&service.metadata)
                + service.health_check.as_ref().map_or(0, weigh_check)
                + TEXT
                + 6 * NUMBER
        }
        Some(Record::Instance(instance)) => {
            let endpoint = |e: Endpoint<&str>| e.name.len() + e.host.len() + 4 * TEXT;
            instance.endpoints.iter().map(endpoint).sum::<usize>()
                + pairs(&instance.metadata)
                + instance.zone.len()
                + instance.reason.len()
                + instance.hash_key.len()
                + 3 * TEXT
                + 9 * NUMBER
        }
        Some(Record::Config(item)) => {
            item.gray.iter().map(|gray| weigh_gray(gray, pairs)).sum::<usize>()
                + weigh_release(&item.current)
                + pairs(&item.labels)
                + TEXT
                + 7 * NUMBER
        }
        Some(Record::Alarm(alarm)) => {
            let rule = &alarm.rule;
            let texts = [&rule.counter, &rule.webhook, &rule.description, &alarm.post_error];
            texts.map(|text| text.len() + TEXT).iter().sum::<usize>()
                + pairs(&rule.labels)
                + 14 * NUMBER
        }
        Some(Record::Counter(_)) => 7 * NUMBER,
        Some(Record::Saga(saga)) => {
            let texts = saga
                .suspended
                .reason()
                .into_iter()
                .chain([&saga.error])
                .map(|text| text.len() + TEXT);
            texts.sum::<usize>()
                + saga.terms.query.len()
                + TEXT
                + saga.branches.iter().map(weigh_branch).sum::<usize>()
                + 28 * NUMBER
        }
        Some(Record::Lock(request)) => {
            request.holder.len() + request.value.len() + 2 * TEXT + 6 * NUMBER
        }
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
        )
        | None => 0,
    };
    EVENT + key + record
}

fn weigh_release(release: &Release) -> usize {
    // The names of an origin and of an ending, a digest, and numbers.
    const REST: usize = 512;
    let end = release.end.as_ref().map_or(0, |end| end.by.len());
    release.len() + release.author.len() + release.comment.len() + end + REST
}

/// Its payload is left out.
fn weigh_branch(branch: &SagaBranch) -> usize {
    const TEXT: usize = 5;
    const NUMBER: usize = 12;
    let BranchPlan { id, trial, action, compensation, payload: _, after, policy: _ } =
        &*branch.plan;
    let texts = [id, trial, action, compensation].map(|text| text.len() + TEXT);
    texts.iter().sum::<usize>() + branch.result.len() + TEXT + (after.len() + 14) * NUMBER
}

fn weigh_check(check: &HealthCheck) -> usize {
    const REST: usize = 96;
    let probe = match &check.probe {
        Probe::Tcp => 0,
        Probe::Http { path, host, statuses: _ } => path.len() + host.len(),
        Probe::Grpc { service } => service.len(),
    };
    check.endpoint.len() + probe + REST
}

fn weigh_gray(gray: &Gray, pairs: impl Fn(&Pairs) -> usize) -> usize {
    const REST: usize = 512;
    let picks = match &gray.picks {
        Picks::Labels(labels) => pairs(labels),
        Picks::Clients(clients) => clients.iter().map(|client| client.len() + 8).sum(),
        Picks::Share { .. } => 0,
    };
    let gate = match gray.gate.as_ref().map(|gate| &gate.measure) {
        Some(Measure::Counter { name, labels, base: _ }) => name.len() + pairs(labels),
        Some(Measure::Unhealthy) | None => 0,
    };
    weigh_release(&gray.release) + picks + gate + REST
}
