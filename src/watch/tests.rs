//! Stories about the six guarantees (ordered, unique, reliable, atomic, resumable, bookmarkable), then
//! a model: watchers of random ranges, speeds and resumes. Each message must hold just what filtering
//! all changes of its revision gives, and each picture must equal the state's at every revision that
//! its watcher is told to be complete at.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Included, Unbounded};
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures::FutureExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use super::range::{Names, disjoint};
use super::ring::{Tag, Wanted};
use super::*;
use crate::state::{
    Admin, Change, Command, Endpoint, Entry, Health, HealthCheck, InstanceName, Key, Op, Pairs,
    Probe, Record, Registration, Reply, ServiceSettings,
};

/// All watchable records at one revision.
type Records = BTreeMap<Key, Record>;

/// A state with its hub, and what the state was at every revision.
struct World {
    state: State,
    hub: Hub,
    history: History,
}

struct History {
    records: BTreeMap<u64, Records>,
    changes: BTreeMap<u64, Vec<Change>>,
}

impl History {
    /// What happened in the range after one revision and up to another, by revision.
    fn within(&self, range: &Range, after: u64, upto: u64) -> Vec<(u64, Vec<Change>)> {
        let revisions =
            self.changes.range((Excluded(after), Included(upto))).map(|(revision, changes)| {
                let of_range = changes.iter().filter(|change| holds(range, &change.key));
                (*revision, of_range.cloned().collect::<Vec<_>>())
            });
        revisions.filter(|(_, changes)| !changes.is_empty()).collect()
    }
}

impl World {
    fn new(capacity: Capacity) -> World {
        let state = State::default();
        let hub = Hub::with_capacity(state.revision(), capacity);
        let records = BTreeMap::from([(0, Records::new())]);
        World { state, hub, history: History { records, changes: BTreeMap::new() } }
    }

    /// Applies the commands as one entry and publishes it as a node does. Returns the replies.
    fn apply(&mut self, ops: Vec<Op>) -> Vec<Reply> {
        let (replies, events) = self.apply_unpublished(ops);
        drop(self.hub.publish(self.state.revision(), &events));
        replies
    }

    fn apply_unpublished(&mut self, ops: Vec<Op>) -> (Vec<Reply>, Vec<Event>) {
        let mut replies = Vec::new();
        let mut events = Vec::new();
        // One entry per command here, so that the history has every revision; published as one.
        for op in ops {
            let bytes = Command { request: None, op }.encode().unwrap();
            let applied = self.state.apply(&Entry { term: 1, at_ms: 1, commands: vec![&bytes] });
            replies.extend(applied.outcomes.into_iter().filter_map(|outcome| outcome.result.ok()));
            for event in &applied.events {
                let changes = self.history.changes.entry(event.revision).or_default();
                changes.extend(event.changes.iter().map(super::seen));
            }
            events.extend(applied.events);
            self.history.records.insert(self.state.revision(), watchable(&self.state));
        }
        (replies, events)
    }

    fn watch(&self, range: Range, after: u64) -> Watcher {
        let subscription = self.hub.subscribe(range.clone(), after, &self.state).unwrap();
        Watcher::new(subscription, range, after, &self.history)
    }

    fn queued_bytes(&self) -> usize {
        self.hub.shared.queued_bytes.load(Ordering::Relaxed)
    }
}

/// What can be watched in a state, found without the help of the code under test.
fn watchable(state: &State) -> Records {
    state.records().filter(|(_, r)| matches!(r, Record::Service(_) | Record::Instance(_))).collect()
}

fn within(records: &Records, range: &Range) -> Records {
    let of_range = records.iter().filter(|(key, _)| holds(range, key));
    of_range.map(|(k, r)| (k.clone(), r.clone())).collect()
}

fn holds(range: &Range, key: &Key) -> bool {
    let (namespace, service) = match key {
        Key::Service { namespace, name } => (namespace, name),
        Key::Instance { namespace, service, id: _ } => (namespace, service),
        Key::Meta
        | Key::Namespace { .. }
        | Key::Session { .. }
        | Key::Reply { .. }
        | Key::Member { .. }
        | Key::Config { .. }
        | Key::Release { .. }
        | Key::Schema { .. }
        | Key::Report { .. }
        | Key::Counter { .. }
        | Key::Lock { .. }
        | Key::Removal { .. }
        | Key::Alarm { .. }
        | Key::Saga { .. } => return false,
    };
    let names = Names { class: Class::Service, namespace, first: service, second: "" };
    range.selectors().iter().any(|selector| selects(selector, names))
}

fn selects(selector: &Selector, names: Names<'_>) -> bool {
    let matches = |wanted: &Match, name: &str| match wanted {
        Match::Any => true,
        Match::Prefix(prefix) => name.starts_with(prefix.as_str()),
        Match::Exact(exact) => name == exact,
    };
    (selector.class, selector.namespace.as_str()) == (names.class, names.namespace)
        && matches(&selector.first, names.first)
        && matches(&selector.second, names.second)
}

/// A client: builds its picture of the range from the messages, and checks each.
struct Watcher {
    subscription: Subscription,
    range: Range,
    known: Records,
    /// As a client would resume.
    complete: u64,
    /// Of a snapshot that has more to come.
    partial: Option<(u64, Records)>,
    /// Not checked yet: complete at the first revision, it was told that until the second this happened.
    told: Vec<(u64, u64, Vec<Change>)>,
    snapshots: u64,
    changes: u64,
    bookmarks: u64,
}

impl Watcher {
    fn new(subscription: Subscription, range: Range, after: u64, history: &History) -> Watcher {
        let known = history.records.get(&after).map(|r| within(r, &range)).unwrap_or_default();
        Watcher {
            subscription,
            range,
            known,
            complete: after,
            partial: None,
            told: Vec::new(),
            snapshots: 0,
            changes: 0,
            bookmarks: 0,
        }
    }

    /// The next message if there is one, taken in.
    fn poll(&mut self) -> Option<Result<Arc<Message>, Error>> {
        let next = self.subscription.next().now_or_never()??;
        if let Ok(message) = &next {
            self.take_in(message);
        }
        Some(next)
    }

    fn take_in(&mut self, message: &Message) {
        for change in &message.events {
            assert!(holds(&self.range, &change.key), "{change:?} is not in {:?}", self.range);
        }
        match message.kind {
            Kind::Snapshot { more } => {
                let (revision, mut records) = self.partial.take().unwrap_or_else(|| {
                    assert!(self.complete <= message.revision || self.snapshots == 0);
                    (message.revision, Records::new())
                });
                assert_eq!(revision, message.revision, "one snapshot, one revision");
                for change in &message.events {
                    let record = change.record.clone().expect("a snapshot deletes nothing");
                    let last = records.last_key_value().map(|(key, _)| key);
                    assert!(last < Some(&change.key), "{last:?}, then {:?}", change.key);
                    records.insert(change.key.clone(), record);
                }
                if more {
                    self.partial = Some((revision, records));
                } else {
                    self.known = records;
                    self.complete = revision;
                    self.snapshots += 1;
                }
            }
            Kind::Changes => {
                assert!(self.partial.is_none(), "changes within a snapshot");
                assert!(message.revision > self.complete, "unique and ordered");
                assert!(!message.events.is_empty());
                for change in &message.events {
                    match &change.record {
                        Some(record) => {
                            self.known.insert(change.key.clone(), record.clone());
                        }
                        None => assert!(
                            self.known.remove(&change.key).is_some(),
                            "{:?} was removed but never known",
                            change.key
                        ),
                    }
                }
                self.told.push((self.complete, message.revision, message.events.to_vec()));
                self.complete = message.revision;
                self.changes += 1;
            }
            Kind::Bookmark => {
                assert!(self.partial.is_none(), "a bookmark within a snapshot");
                assert!(message.events.is_empty());
                assert!(message.revision >= self.complete);
                self.told.push((self.complete, message.revision, Vec::new()));
                self.complete = message.revision;
                self.bookmarks += 1;
            }
        }
    }

    /// Reads all that is there; None, or the error that ended the watch.
    fn drain(&mut self) -> Option<Error> {
        while let Some(next) = self.poll() {
            if let Err(error) = next {
                return Some(error);
            }
        }
        None
    }

    /// Each message held what happened, and the picture equals the state as it was at the revision that
    /// the watcher is complete at.
    fn check(&mut self, history: &History) {
        for (after, upto, changes) in self.told.drain(..) {
            let told: Vec<_> =
                Some((upto, changes)).filter(|(_, c)| !c.is_empty()).into_iter().collect();
            assert_eq!(told, history.within(&self.range, after, upto), "{:?}", self.range);
        }
        if self.partial.is_none() {
            let state = within(&history.records[&self.complete], &self.range);
            assert_eq!(self.known, state, "{:?} at revision {}", self.range, self.complete);
        }
    }
}

fn service(name: &str) -> Range {
    Selector::service("default", name).into()
}

fn namespace(name: &str) -> Range {
    Selector::services(name).into()
}

fn prefix(prefix: &str) -> Selector {
    Selector { first: Match::Prefix(prefix.into()), ..Selector::services("default") }
}

fn name(service: &str, id: &str) -> InstanceName {
    InstanceName { namespace: "default".into(), service: service.into(), id: id.into() }
}

fn registration(name: InstanceName, reason: &str, session: Option<u64>) -> Op {
    Op::Register(Box::new(Registration {
        name,
        endpoints: vec![Endpoint { name: "grpc".into(), host: "10.0.0.1".into(), port: 80 }].into(),
        weight: 1,
        zone: String::new(),
        metadata: Pairs::default(),
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: reason.into(),
        hash_key: String::new(),
        session,
    }))
}

fn register(service: &str, id: &str, reason: &str) -> Op {
    registration(name(service, id), reason, None)
}

fn put_service(namespace: &str, name: &str, policy: &str) -> Op {
    Op::PutService(Box::new(ServiceSettings {
        namespace: namespace.into(),
        name: name.into(),
        protect_threshold_percent: 0,
        deregister_after_ms: 30_000,
        policy: policy.into(),
        policy_parameters: Pairs::default(),
        metadata: Pairs::default(),
        expected_mod_revision: None,
        health_check: None,
    }))
}

fn deregister(service: &str, id: &str) -> Op {
    Op::Deregister { name: name(service, id), expected_mod_revision: None }
}

fn open_session(world: &mut World) -> u64 {
    match world.apply(vec![Op::OpenSession { ttl_ms: 10_000, client: String::new() }])[..] {
        [Reply::SessionOpened { session, .. }] => session,
        ref other => panic!("{other:?}"),
    }
}

fn small() -> Capacity {
    Capacity { ring_events: 8, queue_messages: 4, snapshot_events: 3, ..Capacity::default() }
}

#[test]
fn a_watch_begins_with_a_snapshot_and_goes_on_with_every_change_in_order() {
    let mut world = World::new(Capacity::default());
    world.apply(vec![
        put_service("default", "web", "ring_hash"),
        register("web", "1", "a"),
        register("other", "1", "a"),
    ]);
    let mut web = world.watch(service("web"), 0);
    let mut all = world.watch(namespace("default"), 0);
    let first = web.poll().unwrap().unwrap();
    assert_eq!((first.revision, first.kind), (3, Kind::Snapshot { more: false }));
    assert_eq!(first.events.len(), 2, "settings and instance, nothing of the other service");
    assert!(web.poll().is_none(), "nothing until something changes");

    world.apply(vec![register("web", "2", "a"), register("web", "2", "b"), deregister("web", "1")]);
    world.apply(vec![register("other", "2", "a"), register("web", "3", "a")]);
    let revisions: Vec<u64> =
        std::iter::from_fn(|| web.poll()).map(|m| m.unwrap().revision).collect();
    assert_eq!(revisions, [4, 5, 6, 8], "7 was the other service's");
    web.check(&world.history);
    assert_eq!(all.drain(), None);
    assert_eq!((all.complete, all.changes), (8, 5));
    all.check(&world.history);
}

#[test]
fn the_snapshot_of_an_empty_range_is_one_empty_message() {
    let world = World::new(Capacity::default());
    for range in [service("web"), namespace("default"), namespace("nowhere")] {
        let mut watcher = world.watch(range, 0);
        let first = watcher.poll().unwrap().unwrap();
        assert_eq!(
            (first.revision, first.kind, first.events.len()),
            (0, Kind::Snapshot { more: false }, 0)
        );
    }
}

#[test]
fn all_changes_of_a_revision_come_in_one_message() {
    let mut world = World::new(Capacity::default());
    let session = open_session(&mut world);
    for (service, id) in [("a", "1"), ("a", "2"), ("b", "1")] {
        world.apply(vec![registration(name(service, id), "", Some(session))]);
    }
    let before = world.state.revision();
    let mut a = world.watch(service("a"), before);
    let mut all = world.watch(namespace("default"), before);
    a.drain();
    all.drain();
    world.apply(vec![Op::CloseSession { session }]);
    for (watcher, events) in [(&mut a, 2), (&mut all, 3)] {
        let message = watcher.poll().unwrap().unwrap();
        assert_eq!((message.revision, message.events.len()), (before + 1, events));
        assert!(watcher.poll().is_none());
        watcher.check(&world.history);
    }
    // The ring cuts the same revision in the same way for one who resumes.
    let mut late = world.watch(service("a"), before);
    assert_eq!(late.poll().unwrap().unwrap().events.len(), 2);
}

#[test]
fn a_resumed_watch_gets_just_the_changes_after_its_revision() {
    let mut world = World::new(small());
    for i in 0..6 {
        world.apply(vec![
            register("web", &i.to_string(), ""),
            register("other", &i.to_string(), ""),
        ]);
    }
    // 12 revisions, of which the ring holds 5..=12.
    for after in 4..=12 {
        let mut watcher = world.watch(service("web"), after);
        assert_eq!(watcher.drain(), None);
        assert_eq!((watcher.snapshots, watcher.complete), (0, 12), "resumed after {after}");
        let expected = (after + 1..=12).filter(|revision| revision % 2 == 1).count() as u64;
        assert_eq!(watcher.changes, expected, "resumed after {after}");
        watcher.check(&world.history);
    }
}

#[test]
fn a_resume_from_before_the_ring_or_from_the_future_gets_a_snapshot() {
    let mut world = World::new(small());
    for i in 0..12 {
        world.apply(vec![register("web", &(i % 2).to_string(), &i.to_string())]);
    }
    for after in [1, 3, 13, 1_000, u64::MAX] {
        let mut watcher = world.watch(service("web"), after);
        let first = watcher.poll().unwrap().unwrap();
        assert_eq!((first.kind, first.revision), (Kind::Snapshot { more: false }, 12), "{after}");
        watcher.check(&world.history);
        world.apply(vec![]);
    }
}

#[test]
fn a_quiet_range_is_resumed_from_any_revision_while_somebody_watches_it() {
    let mut world = World::new(small());
    world.apply(vec![register("web", "1", "")]);
    let mut watcher = world.watch(service("web"), 0);
    watcher.drain();
    for i in 0..20 {
        world.apply(vec![register("busy", &i.to_string(), "")]);
    }
    let mut resumed = world.watch(service("web"), 1);
    assert_eq!(resumed.drain(), None);
    assert_eq!((resumed.snapshots, resumed.changes, resumed.complete), (0, 0, 21));
    resumed.check(&world.history);
    // With the watcher goes what is known about the range.
    drop((watcher, resumed));
    let mut late = world.watch(service("web"), 1);
    late.drain();
    assert_eq!(late.snapshots, 1);
}

#[test]
fn a_slow_watcher_is_cut_off_with_the_revision_to_resume_from_and_the_others_are_not() {
    let mut world = World::new(small());
    let mut slow = world.watch(service("web"), 0);
    let mut quick = world.watch(service("web"), 0);
    slow.drain();
    for i in 0..3 {
        world.apply(vec![register("web", &i.to_string(), "")]);
        quick.drain();
    }
    assert_eq!(slow.poll().unwrap().unwrap().revision, 1);
    for i in 3..7 {
        world.apply(vec![register("web", &i.to_string(), "")]);
        assert_eq!(quick.drain(), None);
    }
    // Four wait in the queue: 4 to 7. The slow one has read 1 and lost 2.
    assert_eq!(slow.drain(), Some(Error::WatchLagged { resume_revision: 1 }));
    assert!(slow.subscription.next().now_or_never().unwrap().is_none(), "the watch has ended");
    slow.check(&world.history);
    assert_eq!(quick.complete, 7);
    // It resumes without gap or duplicate.
    let mut resumed = world.watch(service("web"), 1);
    assert_eq!(resumed.drain(), None);
    assert_eq!((resumed.changes, resumed.snapshots, resumed.complete), (6, 0, 7));
    resumed.check(&world.history);
}

#[test]
fn a_watcher_that_is_cut_off_within_a_snapshot_resumes_where_it_was_before() {
    let mut world = World::new(small());
    for i in 0..9 {
        world.apply(vec![register("web", &i.to_string(), "")]);
    }
    let mut slow = world.watch(service("web"), 0);
    assert_eq!(slow.poll().unwrap().unwrap().kind, Kind::Snapshot { more: true });
    world.hub.close();
    assert_eq!(slow.poll().unwrap().unwrap().kind, Kind::Snapshot { more: true });
    assert_eq!(slow.subscription.reader.complete, 0);
    assert_eq!(slow.drain(), Some(Error::ShuttingDown { definite: true }));
}

#[test]
fn one_entry_of_the_greatest_size_cuts_nobody_off() {
    let mut world = World::new(Capacity::default());
    let mut watcher = world.watch(namespace("default"), 0);
    watcher.drain();
    let commands: Vec<Vec<u8>> = (0..limits::BATCH_COMMANDS)
        .map(|i| {
            Command { request: None, op: register("web", &i.to_string(), "") }.encode().unwrap()
        })
        .collect();
    let commands = commands.iter().map(Vec::as_slice).collect();
    let applied = world.state.apply(&Entry { term: 1, at_ms: 1, commands });
    drop(world.hub.publish(applied.meta.revision, &applied.events));
    assert_eq!(watcher.drain(), None);
    assert_eq!(watcher.changes, limits::BATCH_COMMANDS as u64);
    assert_eq!(watcher.known, watchable(&world.state));
}

#[test]
fn a_large_snapshot_comes_in_pieces_by_events_and_by_bytes() {
    let mut world = World::new(small());
    for i in 0..10 {
        world.apply(vec![register("web", &i.to_string(), &"r".repeat(100))]);
    }
    let pieces = |world: &World| {
        let mut watcher = world.watch(service("web"), 0);
        let pieces: Vec<(usize, Kind)> = std::iter::from_fn(|| watcher.poll())
            .map(|message| message.unwrap())
            .inspect(|message| assert!(message.bytes <= world.hub.shared.capacity.message_bytes))
            .map(|message| (message.events.len(), message.kind))
            .collect();
        watcher.check(&world.history);
        pieces
    };
    let more = |more| Kind::Snapshot { more };
    assert_eq!(
        pieces(&world),
        [(3, more(true)), (3, more(true)), (3, more(true)), (1, more(false))]
    );
    let weight = Message::new(
        0,
        Kind::Changes,
        std::iter::once(&world.state)
            .flat_map(|state| state.instances("default", "web").take(1))
            .map(|i| Change::new(i.key(), Some(Record::Instance(i.clone()))))
            .collect(),
    );
    world.hub = Hub::with_capacity(
        world.state.revision(),
        Capacity { message_bytes: 2 * weight.bytes, ..Capacity::default() },
    );
    assert_eq!(pieces(&world).iter().map(|(events, _)| *events).collect::<Vec<_>>(), [2; 5]);
}

#[test]
fn changes_too_large_for_one_message_reach_the_watchers_as_a_snapshot() {
    let mut world = World::new(Capacity { message_bytes: 500, ..Capacity::default() });
    let session = open_session(&mut world);
    for i in 0..20 {
        world.apply(vec![registration(name("web", &i.to_string()), "", Some(session))]);
    }
    let before = world.state.revision();
    let mut watcher = world.watch(service("web"), before);
    assert_eq!(watcher.drain(), None);
    world.apply(vec![Op::CloseSession { session }, register("web", "later", "")]);
    assert_eq!(watcher.drain(), Some(Error::WatchLagged { resume_revision: before }));
    let mut resumed = world.watch(service("web"), before);
    assert_eq!(resumed.drain(), None);
    assert_eq!((resumed.snapshots, resumed.complete), (1, before + 2));
    resumed.check(&world.history);
    assert_eq!(world.queued_bytes(), 0);
}

#[test]
fn after_a_snapshot_install_every_watcher_gets_a_snapshot_in_order() {
    let mut world = World::new(small());
    for i in 0..9 {
        world.apply(vec![register("web", &i.to_string(), "")]);
    }
    let mut up_to_date = world.watch(service("web"), 0);
    up_to_date.drain();
    let mut amid_snapshot = world.watch(service("web"), 0);
    amid_snapshot.poll();
    let mut behind = world.watch(service("web"), 9);
    behind.drain();
    for i in 0..2 {
        world.apply(vec![deregister("web", &i.to_string())]);
        up_to_date.drain();
    }
    let mut lost = world.watch(service("web"), 9);
    for i in 2..8 {
        world.apply(vec![deregister("web", &i.to_string())]);
        up_to_date.drain();
    }
    // What the installed snapshot holds was never published here.
    world.apply_unpublished(vec![register("web", "new", ""), deregister("web", "8")]);
    drop(world.hub.reset(&world.state));
    world.apply(vec![register("web", "after", "")]);
    for watcher in [&mut up_to_date, &mut amid_snapshot, &mut behind, &mut lost] {
        let snapshots = watcher.snapshots;
        assert_eq!(watcher.drain(), None);
        assert!(watcher.snapshots > snapshots);
        assert_eq!(watcher.complete, world.state.revision());
        watcher.check(&world.history);
    }
    assert_eq!(world.queued_bytes(), 0);
    // Nothing from before is resumable, everything after is.
    let mut resumed = world.watch(service("web"), 16);
    resumed.poll();
    assert_eq!(resumed.snapshots, 1);
    let mut resumed = world.watch(service("web"), 19);
    resumed.drain();
    assert_eq!((resumed.snapshots, resumed.changes), (0, 1));
}

#[test]
fn a_snapshot_after_an_install_can_be_overrun_like_any_message() {
    let mut world = World::new(small());
    let mut watcher = world.watch(service("web"), 0);
    watcher.drain();
    drop(world.hub.reset(&world.state));
    for i in 0..4 {
        world.apply(vec![register("web", &i.to_string(), "")]);
    }
    assert_eq!(watcher.drain(), Some(Error::WatchLagged { resume_revision: 0 }));
}

#[test]
fn what_all_have_read_leaves_the_queue_and_who_is_lost_holds_nothing_back() {
    let mut world = World::new(small());
    let mut quick = world.watch(service("web"), 0);
    let mut stalled = world.watch(service("web"), 0);
    quick.drain();
    stalled.drain();
    for i in 0..4 {
        world.apply(vec![register("web", &i.to_string(), "")]);
        quick.drain();
    }
    assert!(world.queued_bytes() > 0, "they wait for the stalled one");
    world.apply(vec![register("web", "overrun", "")]);
    quick.drain();
    assert_eq!(world.queued_bytes(), 0, "the stalled one is lost and nobody else waits");
    assert!(matches!(stalled.drain(), Some(Error::WatchLagged { .. })));
    // The same when the one that everybody waits for goes away.
    let waiting = world.watch(service("web"), 0);
    world.apply(vec![register("web", "more", "")]);
    quick.drain();
    assert!(world.queued_bytes() > 0);
    drop(waiting);
    assert_eq!(world.queued_bytes(), 0);
}

#[test]
fn the_bytes_that_wait_are_bounded_over_all_ranges() {
    let mut world = World::new(Capacity { queue_bytes: 2_000, ..Capacity::default() });
    let mut watchers: Vec<Watcher> =
        (0..10).map(|i| world.watch(service(&i.to_string()), 0)).collect();
    watchers.iter_mut().for_each(|watcher| assert_eq!(watcher.drain(), None));
    for round in 0..50 {
        for i in 0..10 {
            world.apply(vec![register(&i.to_string(), "1", &round.to_string())]);
        }
    }
    // Each range may keep its newest message.
    assert!(world.queued_bytes() <= 2_000 + 10 * 300, "{}", world.queued_bytes());
    let lagged = watchers.iter_mut().filter_map(Watcher::drain).count();
    assert_eq!(lagged, 10);
    drop(watchers);
    assert_eq!(world.queued_bytes(), 0);
}

/// A watcher that has read the last entry loses nothing to one that reads nothing, of whatever range.
#[test]
fn whoever_is_furthest_behind_makes_room_for_the_others() {
    let mut world = World::new(Capacity { queue_bytes: 4_000, ..Capacity::default() });
    let mut stalled = world.watch(service("quiet"), 0);
    let mut quick = world.watch(service("busy"), 0);
    stalled.drain();
    quick.drain();
    for round in 0..100 {
        if world.queued_bytes() < 3_000 {
            world.apply(vec![register("quiet", "1", &round.to_string())]);
        }
    }
    for round in 0..20 {
        let entry = (0..8).map(|id| register("busy", &id.to_string(), &round.to_string()));
        world.apply(entry.collect());
        assert_eq!(quick.drain(), None, "round {round}");
        quick.check(&world.history);
    }
    assert!(matches!(stalled.drain(), Some(Error::WatchLagged { .. })));
    assert_eq!(world.queued_bytes(), 0);
}

/// While a range changes, each who comes needs a snapshot of his own, and keeps it until he has read it.
#[test]
fn the_snapshots_of_slow_readers_are_bounded() {
    let capacity = Capacity { snapshot_bytes: 1_000, message_bytes: 400, ..Capacity::default() };
    let mut world = World::new(capacity);
    let live = |world: &World| world.hub.shared.snapshot_bytes.load(Ordering::Relaxed);
    for id in ["2", "3"] {
        world.apply(vec![register("web", id, &"r".repeat(200))]);
    }
    let mut slow = Vec::new();
    while live(&world) <= 1_000 {
        slow.push(world.watch(service("web"), 0));
        world.apply(vec![register("web", "1", &slow.len().to_string())]);
        assert!(slow.len() < 10, "{} bytes", live(&world));
    }
    let refused = |world: &World, range| {
        let subscription = world.hub.subscribe(range, 0, &world.state);
        let limit = 1_000;
        let overloaded = Error::Overloaded { queue: "bytes of watch snapshots".into(), limit };
        assert_eq!(subscription.map(|_| ()), Err(overloaded));
        assert_eq!(world.hub.watchers(), slow.len() as u64);
    };
    refused(&world, service("web"));
    // A small one is no burden.
    drop(world.watch(service("other"), 0));
    // Whoever resumes needs none.
    let mut resumed = world.watch(service("web"), world.state.revision());
    assert_eq!(resumed.drain(), None);
    drop(resumed);
    assert_eq!(slow[0].drain(), None);
    let mut late = world.watch(service("web"), 0);
    assert_eq!(late.drain(), None);
    assert_eq!(late.snapshots, 1);
    drop((late, slow));
    assert_eq!(live(&world), 0);
    assert!(world.hub.shared.lock().groups.is_empty());
}

#[test]
fn watchers_of_a_range_share_messages_snapshots_and_bytes() {
    let mut world = World::new(Capacity::default());
    world.apply(vec![register("web", "1", "")]);
    let mut one = world.watch(service("web"), 0);
    let mut two = world.watch(service("web"), 0);
    let mut whole = world.watch(namespace("default"), 0);
    let (a, b) = (one.poll().unwrap().unwrap(), two.poll().unwrap().unwrap());
    assert!(Arc::ptr_eq(&a, &b), "one snapshot for both");
    whole.poll();
    world.apply(vec![register("web", "2", "")]);
    let messages = [one.poll(), two.poll(), whole.poll()].map(|next| next.unwrap().unwrap());
    assert!(messages.iter().all(|message| Arc::ptr_eq(message, &messages[0])));
    let mut calls = 0;
    let bytes = messages.map(|message| {
        message.encoded(|_| {
            calls += 1;
            Bytes::from_static(b"bytes")
        })
    });
    assert_eq!((calls, &bytes[2][..]), (1, &b"bytes"[..]));
    // One who comes after the change gets a new snapshot.
    let mut three = world.watch(service("web"), 0);
    three.poll();
    three.check(&world.history);
    assert_eq!(three.complete, 2);
}

#[test]
fn publishing_touches_only_those_who_watch_what_changed() {
    let mut world = World::new(Capacity::default());
    let _idle: Vec<Watcher> =
        (0..10_000).map(|i| world.watch(service(&format!("idle-{i}")), 0)).collect();
    let _elsewhere = world.watch(namespace("elsewhere"), 0);
    let _prefixes: Vec<Watcher> =
        (0..1_000).map(|i| world.watch(prefix(&format!("idle-{i}")).into(), 0)).collect();
    let (_, events) = world.apply_unpublished(vec![register("web", "1", "")]);
    assert_eq!(world.hub.publish(1, &events).groups.len(), 0);
    let _web = world.watch(service("web"), 0);
    let _all = world.watch(namespace("default"), 0);
    let ops = (0..100).map(|i| register("web", &i.to_string(), "x")).collect();
    let (_, events) = world.apply_unpublished(ops);
    let wake_ups = world.hub.publish(world.state.revision(), &events);
    assert_eq!(wake_ups.groups.len(), 2, "each group once, however many messages it gets");
}

/// Selectors of which some hold the same, and one of a class of which there is nothing.
fn overlapping() -> Range {
    let selectors = vec![
        Selector::services("dev"),
        prefix("ab"),
        prefix("a"),
        Selector::service("default", "abc"),
        Selector::service("default", "z"),
        Selector { class: Class::Config, ..Selector::services("default") },
    ];
    Range::new(selectors).unwrap()
}

#[test]
fn each_revision_reaches_a_watcher_of_several_selectors_in_one_message_with_each_change_once() {
    let mut world = World::new(Capacity::default());
    world.apply(vec![Op::PutNamespace { name: "dev".into(), description: String::new() }]);
    let session = open_session(&mut world);
    for service in ["b", "z", "abc", "a"] {
        world.apply(vec![registration(name(service, "1"), "", Some(session))]);
    }
    let dev = InstanceName { namespace: "dev".into(), ..name("b", "1") };
    world.apply(vec![registration(dev, "", Some(session))]);
    let before = world.state.revision();

    let mut watcher = world.watch(overlapping(), 0);
    let snapshot = watcher.poll().unwrap().unwrap();
    assert_eq!((snapshot.events.len(), watcher.snapshots), (4, 1), "not that of b in default");
    world.apply(vec![Op::CloseSession { session }]);
    let message = watcher.poll().unwrap().unwrap();
    assert_eq!((message.revision, message.events.len()), (before + 1, 4));
    // A single service that several of the selectors hold.
    world.apply(vec![register("abc", "2", ""), register("b", "2", "")]);
    let message = watcher.poll().unwrap().unwrap();
    assert_eq!((message.revision, message.events.len()), (before + 2, 1));
    assert!(watcher.poll().is_none());
    watcher.check(&world.history);

    // The ring tells the same to one who resumes.
    let mut late = world.watch(overlapping(), before);
    assert_eq!(late.drain(), None);
    assert_eq!((late.snapshots, late.changes, late.bookmarks), (0, 2, 1));
    late.check(&world.history);
}

#[test]
fn a_prefix_is_watched_and_resumed() {
    let mut world = World::new(small());
    let mut watcher = world.watch(prefix("ab").into(), 0);
    assert_eq!(watcher.drain(), None);
    for service in ["a", "ab", "abc", "ac", "b"] {
        world.apply(vec![register(service, "1", "")]);
    }
    assert_eq!(watcher.drain(), None);
    assert_eq!((watcher.changes, watcher.complete), (2, 3));
    watcher.check(&world.history);
    // While somebody watches the range, and when nobody does.
    for watched in [true, false] {
        for (after, changes) in [(1, 2), (2, 1), (3, 0), (5, 0)] {
            let mut resumed = world.watch(prefix("ab").into(), after);
            assert_eq!(resumed.drain(), None);
            assert_eq!((resumed.snapshots, resumed.changes, resumed.complete), (0, changes, 5));
            resumed.check(&world.history);
        }
        if watched {
            watcher = world.watch(service("b"), 0);
        }
    }
    watcher.drain();
    watcher.check(&world.history);
}

#[test]
fn what_several_selectors_hold_is_in_a_snapshot_once_and_in_order() {
    let mut world = World::new(small());
    world.apply(vec![Op::PutNamespace { name: "dev".into(), description: String::new() }]);
    for service in ["abc", "a", "b", "ab", "z"] {
        world.apply(vec![put_service("default", service, ""), put_service("dev", service, "")]);
        world.apply(vec![register(service, "1", ""), register(service, "2", "")]);
    }
    // The watcher checks the order, over the pieces as well.
    let mut watcher = world.watch(overlapping(), 0);
    assert_eq!(watcher.drain(), None);
    assert_eq!((watcher.known.len(), watcher.snapshots), (5 + 4 + 8, 1));
    watcher.check(&world.history);
}

#[test]
fn ranges_that_mean_the_same_share_a_group_and_equal_parts_a_message() {
    let mut world = World::new(Capacity::default());
    let session = open_session(&mut world);
    for service in ["a", "b", "c"] {
        world.apply(vec![registration(name(service, "1"), "", Some(session))]);
    }
    let (a, b) = (Selector::service("default", "a"), Selector::service("default", "b"));
    let one = Range::new(vec![a.clone(), b.clone()]).unwrap();
    let two = Range::new(vec![b.clone(), a.clone(), b.clone()]).unwrap();
    let all = Selector { first: Match::Prefix(String::new()), ..a.clone() };
    assert_eq!(Range::from(all), namespace("default"));
    let three = Range::new(vec![a, b, Selector::service("default", "z")]).unwrap();
    let revision = world.state.revision();
    let mut watchers = [one, two, three].map(|range| world.watch(range, revision));
    assert_eq!(world.hub.shared.lock().groups.len(), 2);
    watchers.iter_mut().for_each(|watcher| assert_eq!(watcher.drain(), None));
    world.apply(vec![Op::CloseSession { session }]);
    let messages = watchers.each_mut().map(|watcher| watcher.poll().unwrap().unwrap());
    assert!(messages.iter().all(|message| Arc::ptr_eq(message, &messages[0])));
    assert_eq!(messages[0].events.len(), 2);
}

#[test]
fn a_range_of_none_or_too_many_or_with_a_name_too_many_is_refused() {
    let many = |count: usize| (0..count).map(|i| Selector::service("n", i.to_string())).collect();
    let refused = |count: usize| {
        let allowed = format!("1..={} selectors", limits::WATCH_SELECTORS);
        Error::invalid("selectors", format!("{count} selectors"), allowed)
    };
    for count in [0, limits::WATCH_SELECTORS + 1] {
        assert_eq!(Range::new(many(count)), Err(refused(count)));
    }
    assert_eq!(Range::new(many(limits::WATCH_SELECTORS)).unwrap().selectors().len(), 32);
    for class in CLASSES {
        let second = Match::Exact("key".into());
        let selector = Selector { class, second, ..Selector::services("n") };
        let range = Range::new(vec![Selector::services("n"), selector]);
        let Err(error) = range else {
            assert_eq!(class, Class::Config);
            continue;
        };
        assert!(matches!(error, Error::Invalid { field, .. } if field == "selectors[1].second"));
    }
}

/// Every class, also those of which the state has nothing: who is found by the names in a change is who
/// selects it, and no tag hides a change from one who selects it.
#[test]
fn the_index_and_the_tags_find_what_filtering_finds() {
    let mut rng = StdRng::seed_from_u64(7);
    let (namespaces, texts) = (["n", "m"], ["a", "ab", "abc", "é", "éa", "b"]);
    let mut index = Index::default();
    let mut groups: Vec<Arc<Group>> = Vec::new();
    let mut found = 0;
    for number in 0..3_000 {
        if rng.random_bool(0.45) && !groups.is_empty() {
            let group = groups.remove(rng.random_range(0..groups.len()));
            index.remove(&group);
        } else {
            let count = rng.random_range(1..5);
            let selectors = (0..count).map(|_| {
                let mut selector = any_selector(&mut rng, &namespaces, &["a", "ab", "abc", "b"]);
                if rng.random_bool(0.2) {
                    selector.first = Match::Prefix("é".into());
                }
                selector
            });
            let range = Range::new(selectors.collect()).unwrap();
            groups.push(Arc::new(Group::new(number, range, 0)));
            index.insert(groups.last().unwrap());
        }
        let class = *CLASSES.choose(&mut rng).unwrap();
        let mut any_text = || *texts.choose(&mut rng).unwrap();
        let (first, mut second) = (any_text(), any_text());
        if class != Class::Config {
            second = "";
        }
        let names = Names { class, namespace: namespaces.choose(&mut rng).unwrap(), first, second };
        let selecting = groups.iter().filter(|group| {
            let selecting = group.range.selectors().iter().any(|s| selects(s, names));
            assert_eq!(group.range.holds(names), selecting);
            let admitted = Wanted::of(&group.range).admits(Tag::one(names));
            assert!(admitted || !selecting, "{names:?} is hidden from {:?}", group.range);
            selecting
        });
        let expected: BTreeSet<u64> = selecting.map(|group| group.number).collect();
        let numbers = index.groups(names).map(|group| group.number).collect::<BTreeSet<u64>>();
        assert_eq!(numbers, expected, "{names:?}");
        found += numbers.len();
    }
    assert!(found > 3_000, "{found} is too few to prove anything");
    groups.iter().for_each(|group| index.remove(group));
    assert!(index.is_empty());
}

/// A snapshot is made of these parts.
#[test]
fn the_parts_of_a_range_hold_each_name_of_it_once_and_in_order() {
    let mut rng = StdRng::seed_from_u64(8);
    let (namespaces, texts) = (["m", "n"], ["a", "ab", "abc", "b"]);
    let mut open = 0;
    for _ in 0..3_000 {
        let class = *CLASSES.choose(&mut rng).unwrap();
        let mut selectors = Vec::new();
        while selectors.len() < 4 {
            let selector = any_selector(&mut rng, &namespaces, &texts);
            if selector.class == class {
                selectors.push(selector);
            }
        }
        let range = Range::new(selectors).unwrap();
        let parts = disjoint(range.selectors());
        let mut last = 0;
        for namespace in namespaces {
            for (first, second) in texts.iter().flat_map(|a| texts.map(|b| (*a, b))) {
                let second = if class == Class::Config { second } else { "" };
                let names = Names { class, namespace, first, second };
                let holding: Vec<usize> =
                    (0..parts.len()).filter(|at| selects(&parts[*at], names)).collect();
                let wanted = range.selectors().iter().any(|selector| selects(selector, names));
                assert!(holding.len() == 1 || !wanted && holding.is_empty(), "{range:?} {names:?}");
                assert!(holding.iter().all(|at| *at >= last), "{range:?} {names:?}");
                last = holding.first().copied().unwrap_or(last);
                open += usize::from(!wanted && !holding.is_empty());
            }
        }
    }
    assert!(open > 0, "overlaps of first names were tried");
}

/// What is looked at does not grow with those who watch other names, whatever is fixed of them.
#[test]
fn ten_thousand_other_names_are_not_found() {
    let mut index = Index::default();
    let config = |first: Match, second: Match| Selector {
        class: Class::Config,
        first,
        second,
        ..Selector::services("n")
    };
    let exact = |text: &str| Match::Exact(text.into());
    let mut selectors = Vec::new();
    for i in 0..10_000 {
        selectors.push(config(exact("app"), exact(&format!("key-{i}"))));
        selectors.push(config(exact("app"), Match::Prefix(format!("key-{i}/"))));
        selectors.push(config(exact(&format!("group-{i}")), Match::Any));
        selectors.push(Selector::service("n", i.to_string()));
    }
    let wanted = [
        config(Match::Any, Match::Any),
        config(exact("app"), Match::Any),
        config(exact("app"), Match::Prefix("key".into())),
        config(exact("app"), exact("key-77/x")),
        config(Match::Prefix("a".into()), Match::Prefix("key-77/".into())),
    ];
    let group = |(number, selector): (usize, &Selector)| {
        Arc::new(Group::new(number as u64, selector.clone().into(), 0))
    };
    for group in wanted.iter().chain(&selectors).enumerate().map(group) {
        index.insert(&group);
    }
    let names = Names { class: Class::Config, namespace: "n", first: "app", second: "key-77/x" };
    let found: Vec<Range> = index.groups(names).map(|group| group.range.clone()).collect();
    let of_77 = config(exact("app"), Match::Prefix("key-77/".into()));
    assert_eq!(found.len(), wanted.len() + 1);
    assert!(wanted.into_iter().chain([of_77]).all(|one| found.contains(&one.into())));
}

#[test]
fn a_dropped_watch_leaves_nothing_behind_and_too_many_are_refused() {
    let mut world = World::new(Capacity { watchers: 3, ..small() });
    let mut watchers: Vec<Watcher> =
        ["a", "a", "b"].map(|name| world.watch(service(name), 0)).into_iter().collect();
    let refused = world.hub.subscribe(service("c"), 0, &world.state).unwrap_err();
    assert_eq!(refused, Error::Overloaded { queue: "watchers".into(), limit: 3 });
    assert_eq!(world.hub.watchers(), 3);
    watchers[0].drain();
    for i in 0..9 {
        world.apply(vec![register("a", &i.to_string(), "")]);
    }
    assert!(watchers[0].drain().is_some());
    watchers.clear();
    assert_eq!(world.hub.watchers(), 0);
    let inner = world.hub.shared.lock();
    assert!(
        inner.groups.is_empty()
            && inner.index.is_empty()
            && inner.parts.iter().all(BTreeMap::is_empty)
    );
    drop(inner);
    assert_eq!(world.queued_bytes(), 0);
    // A watch that ended is no obstacle for a new one of the same range.
    let mut again = world.watch(service("a"), 0);
    assert_eq!(again.drain(), None);
    again.check(&world.history);
}

#[test]
fn a_closed_hub_ends_every_watch_and_admits_none() {
    let world = World::new(small());
    let mut watcher = world.watch(service("web"), 0);
    watcher.drain();
    world.hub.close();
    assert_eq!(watcher.drain(), Some(Error::ShuttingDown { definite: true }));
    let refused = world.hub.subscribe(service("web"), 0, &world.state).unwrap_err();
    assert_eq!(refused, Error::ShuttingDown { definite: true });
}

#[test]
fn a_bookmark_tells_an_idle_watcher_how_far_it_is_complete() {
    let mut world = World::new(Capacity::default());
    let mut idle = world.watch(service("web"), 0);
    let mut unread = world.watch(service("web"), 0);
    idle.drain();
    world.apply(vec![register("other", "1", ""), register("other", "2", "")]);
    assert!(idle.poll().is_none());
    for _ in 0..BOOKMARK_PARTS {
        world.hub.bookmark();
    }
    let bookmark = idle.poll().unwrap().unwrap();
    assert_eq!((bookmark.revision, bookmark.kind), (2, Kind::Bookmark));
    assert!(idle.poll().is_none(), "one per interval");
    idle.check(&world.history);
    // A bookmark never overtakes what is unread, nor comes after something newer.
    world.apply(vec![register("web", "1", "")]);
    assert_eq!(unread.drain(), None);
    assert_eq!((unread.snapshots, unread.changes, unread.bookmarks, unread.complete), (1, 1, 0, 3));
}

#[tokio::test(start_paused = true)]
async fn idle_watchers_get_a_bookmark_in_every_interval() {
    let mut world = World::new(Capacity::default());
    crate::runtime::spawn(world.hub.clone().run());
    let mut watchers: Vec<Watcher> =
        (0..25).map(|i| world.watch(service(&i.to_string()), 0)).collect();
    watchers.iter_mut().for_each(|watcher| assert_eq!(watcher.drain(), None));
    world.apply(vec![register("busy", "1", "")]);
    for watcher in &mut watchers {
        for _ in 0..3 {
            let within = limits::WATCH_BOOKMARK_INTERVAL + std::time::Duration::from_millis(100);
            let next = tokio::time::timeout(within, watcher.subscription.next()).await;
            let message = next.expect("in time").unwrap().unwrap();
            assert_eq!((message.kind, message.revision), (Kind::Bookmark, 1));
        }
    }
}

#[test]
#[should_panic(expected = "changes of revision 1 after revision 1")]
fn publishing_twice_is_a_defect() {
    let mut world = World::new(Capacity::default());
    let (_, events) = world.apply_unpublished(vec![register("web", "1", "")]);
    drop(world.hub.publish(1, &events));
    drop(world.hub.publish(1, &events));
}

#[test]
#[should_panic(expected = "a state that was not published")]
fn subscribing_to_a_state_that_was_not_published_is_a_defect() {
    let mut world = World::new(Capacity::default());
    world.apply_unpublished(vec![register("web", "1", "")]);
    world.watch(service("web"), 0);
}

/// Real threads: a wake-up must never be lost, whenever the watcher looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiting_watcher_is_woken_by_every_publication() {
    let mut world = World::new(Capacity::default());
    let last = 3_000;
    let mut tasks = Vec::new();
    for i in 0..8 {
        let range = if i % 2 == 0 { service("web") } else { namespace("default") };
        let mut watcher = world.watch(range, 0);
        tasks.push(crate::runtime::spawn(async move {
            while watcher.complete < last {
                let message = watcher.subscription.next().await.unwrap().unwrap();
                watcher.take_in(&message);
            }
            watcher
        }));
    }
    for i in 0..last {
        world.apply(vec![register("web", &(i % 50).to_string(), &i.to_string())]);
        if i % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    for task in tasks {
        let done = tokio::time::timeout(std::time::Duration::from_secs(20), task);
        let mut watcher = done.await.expect("a wake-up was lost").unwrap();
        assert_eq!(watcher.changes + watcher.snapshots, last + 1);
        watcher.check(&world.history);
    }
}

/// What a message is taken to weigh bounds what it weighs: so no message is refused by a client.
#[test]
fn the_estimate_of_a_messages_bytes_is_never_too_low_nor_far_too_high() {
    let mut rng = StdRng::seed_from_u64(1);
    let text = |rng: &mut StdRng, most: usize| "x".repeat(rng.random_range(0..=most));
    for round in 0..300 {
        let most = if round % 2 == 0 { 0 } else { limits::NAME_BYTES - 1 };
        let named = |rng: &mut StdRng| format!("n{}", text(rng, most));
        let (namespace, service) = (named(&mut rng), named(&mut rng));
        let name = InstanceName {
            namespace: namespace.clone(),
            service: service.clone(),
            id: named(&mut rng),
        };
        let pairs = |rng: &mut StdRng| -> Pairs {
            (0..rng.random_range(0..8)).map(|i| (format!("k{i}"), text(rng, 200))).collect()
        };
        let endpoints = (0..rng.random_range(1..5)).map(|i| Endpoint {
            name: i.to_string(),
            host: format!("h{}", "h".repeat(most)),
            port: u16::MAX,
        });
        let mut world = World::new(Capacity::default());
        world.apply(vec![
            Op::PutNamespace { name: namespace.clone(), description: String::new() },
            Op::Register(Box::new(Registration {
                name: name.clone(),
                endpoints: endpoints.collect(),
                weight: limits::WEIGHT,
                zone: text(&mut rng, limits::ZONE_BYTES),
                metadata: pairs(&mut rng),
                health: Health::Critical,
                admin: Admin::Disabled,
                reason: text(&mut rng, limits::TEXT_BYTES),
                hash_key: text(&mut rng, most),
                session: None,
            })),
            Op::PutService(Box::new(ServiceSettings {
                namespace: namespace.clone(),
                name: service,
                protect_threshold_percent: 100,
                deregister_after_ms: 86_400_000,
                policy: text(&mut rng, limits::POLICY_BYTES),
                policy_parameters: pairs(&mut rng),
                metadata: pairs(&mut rng),
                expected_mod_revision: None,
                health_check: Some(HealthCheck {
                    probe: Probe::Http {
                        path: text(&mut rng, limits::HEALTH_PATH_BYTES),
                        host: text(&mut rng, limits::HEALTH_HOST_BYTES),
                        statuses: (100, 599),
                    },
                    endpoint: text(&mut rng, most),
                    interval_ms: *limits::HEALTH_INTERVAL_MS.end(),
                    timeout_ms: *limits::HEALTH_TIMEOUT_MS.end(),
                    failures: 100,
                    successes: 100,
                }),
            })),
            Op::Deregister { name, expected_mod_revision: None },
        ]);
        let range = Selector::services(namespace).into();
        let messages = world.hub.shared.lock().ring.after(0, &range, &Capacity::default()).unwrap();
        assert_eq!(messages.len(), 3);
        for message in messages {
            let bytes = crate::api::convert::watch_bytes(&message, None).len();
            assert!(bytes <= message.bytes, "{bytes} of at most {}", message.bytes);
            assert!(message.bytes <= 2 * bytes + 200, "{bytes} is far from {}", message.bytes);
        }
    }
}

impl World {
    /// The ring holds the last revisions that fit it since it began at one, and no other. Returns which bound the
    /// oldest of the others would break.
    fn check_ring(&self, began: u64) -> Option<&'static str> {
        let capacity = &self.hub.shared.capacity;
        let (mut events, mut bytes) = (0, 0);
        let since = self.history.changes.range((Excluded(began), Unbounded)).rev();
        let mut known = since.map(|(revision, changes)| {
            let watched = changes.iter().filter(|change| names(&change.key).is_some());
            events += watched.clone().count();
            bytes += watched.map(message::weigh).sum::<usize>();
            (*revision, events > capacity.ring_events, bytes > capacity.ring_bytes)
        });
        let (floor, broken) = match known.find(|(_, many, long)| *many || *long) {
            Some((revision, true, _)) => (revision, Some("forgotten by number")),
            Some((revision, false, _)) => (revision, Some("forgotten by bytes")),
            None => (began, None),
        };
        let ring = &self.hub.shared.lock().ring;
        let of_all = Selector::services("default").into();
        let known = |after| ring.after(after, &of_all, &Capacity::default()).is_some();
        assert!(known(floor), "after {floor}");
        assert!(floor == 0 || !known(floor - 1), "after {floor}");
        broken
    }
}

/// Of any class, with names of which one is often the beginning of another.
fn any_selector(rng: &mut StdRng, namespaces: &[&str], texts: &[&str]) -> Selector {
    let any_match = |rng: &mut StdRng| {
        let text = texts.choose(rng).unwrap().to_string();
        match rng.random_range(0..10) {
            0..2 => Match::Any,
            2..5 => Match::Prefix(text[..rng.random_range(0..=text.len())].into()),
            _ => Match::Exact(text),
        }
    };
    let namespace = namespaces.choose(rng).unwrap().to_string();
    let class = *CLASSES.choose(rng).unwrap();
    let second = if class == Class::Config { any_match(rng) } else { Match::Any };
    Selector { class, namespace, first: any_match(rng), second }
}

const CLASSES: [Class; 4] = [Class::Service, Class::Config, Class::Counter, Class::Lock];

/// One random run. The seed decides everything; a failure prints it.
fn model(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let capacity = Capacity {
        ring_events: rng.random_range(1..40),
        ring_bytes: rng.random_range(500..20_000),
        queue_messages: rng.random_range(1..20),
        queue_bytes: rng.random_range(300..20_000),
        snapshot_bytes: usize::MAX,
        snapshot_events: rng.random_range(1..6),
        message_bytes: rng.random_range(300..3_000),
        watchers: 100,
    };
    let mut world = World::new(capacity);
    let services = ["a", "ab", "abc", "b"];
    let ids = ["1", "2", "3", "4", "5", "6"];
    let namespaces = ["default", "dev"];
    world.apply(vec![Op::PutNamespace { name: "dev".into(), description: String::new() }]);
    let mut sessions = Vec::new();
    let mut watchers: Vec<Watcher> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut ring_began = 0;
    let any_range = |rng: &mut StdRng| {
        let mut count = rng.random_range(1..=4);
        if rng.random_bool(0.1) {
            count = limits::WATCH_SELECTORS;
        }
        // Nearly all of the class of which there is something.
        let selectors = (0..count).map(|_| match any_selector(rng, &namespaces, &services) {
            other if rng.random_bool(0.1) => other,
            selector => Selector { class: Class::Service, second: Match::Any, ..selector },
        });
        Range::new(selectors.collect()).unwrap()
    };
    let any_op = |rng: &mut StdRng, sessions: &[u64]| {
        let namespace = namespaces.choose(rng).unwrap().to_string();
        let service = services.choose(rng).unwrap().to_string();
        let id = ids.choose(rng).unwrap().to_string();
        let name = InstanceName { namespace: namespace.clone(), service: service.clone(), id };
        match rng.random_range(0..100) {
            0..50 => {
                let session = sessions.choose(rng).copied().filter(|_| rng.random_bool(0.6));
                registration(name, &rng.random_range(0..5).to_string(), session)
            }
            50..70 => Op::Deregister { name, expected_mod_revision: None },
            70..80 => put_service(&namespace, &service, &rng.random_range(0..5).to_string()),
            80..85 => Op::DeleteService { namespace, name: service },
            85..92 => Op::OpenSession { ttl_ms: 10_000, client: String::new() },
            92..96 if !sessions.is_empty() => {
                Op::ExpireSessions { term: 1, sessions: sessions.to_vec() }
            }
            _ => Op::CloseSession { session: sessions.choose(rng).copied().unwrap_or(99) },
        }
    };
    for _ in 0..400 {
        match rng.random_range(0..100) {
            0..50 => {
                let ops =
                    (0..rng.random_range(1..6)).map(|_| any_op(&mut rng, &sessions)).collect();
                let replies = world.apply(ops);
                sessions.extend(replies.iter().filter_map(|reply| match reply {
                    Reply::SessionOpened { session, .. } => Some(*session),
                    _ => None,
                }));
                sessions.retain(|id| world.state.session(*id).is_some());
                seen.extend(world.check_ring(ring_began));
            }
            50..60 if watchers.len() < 12 => {
                let now = world.state.revision();
                let after = match rng.random_range(0..4) {
                    0 => 0,
                    1 => now + rng.random_range(1..5),
                    _ => rng.random_range(now.saturating_sub(30)..=now),
                };
                watchers.push(world.watch(any_range(&mut rng), after));
            }
            60..63 if !watchers.is_empty() => {
                watchers.swap_remove(rng.random_range(0..watchers.len()));
            }
            63..66 => {
                world.hub.bookmark();
            }
            66 => {
                let ops = (0..rng.random_range(1..6)).map(|_| any_op(&mut rng, &[])).collect();
                world.apply_unpublished(ops);
                sessions.retain(|id| world.state.session(*id).is_some());
                drop(world.hub.reset(&world.state));
                ring_began = world.state.revision();
                seen.insert("reset");
            }
            _ if !watchers.is_empty() => {
                // A few messages of one watcher: some are always quicker than others.
                let at = rng.random_range(0..watchers.len());
                for _ in 0..rng.random_range(1..=1 + 4 * at) {
                    let watcher = &mut watchers[at];
                    match watcher.poll() {
                        Some(Ok(message)) => {
                            let names =
                                message.events.iter().filter_map(|change| names(&change.key));
                            let services: BTreeSet<_> =
                                names.map(|n| (n.namespace, n.first)).collect();
                            let several = services.len() > 1 && watcher.range.selectors().len() > 1;
                            if several && message.kind == Kind::Changes {
                                seen.insert("several");
                            }
                            seen.insert(match message.kind {
                                Kind::Snapshot { more: true } => "piece",
                                Kind::Snapshot { more: false } => "snapshot",
                                Kind::Changes => "changes",
                                Kind::Bookmark => "bookmark",
                            });
                            watcher.check(&world.history);
                        }
                        Some(Err(error)) => {
                            seen.insert("lagged");
                            let complete = watcher.complete;
                            assert_eq!(error, Error::WatchLagged { resume_revision: complete });
                            // It resumes with what it knows, as a client does.
                            let range = watcher.range.clone();
                            let known = std::mem::take(&mut watcher.known);
                            let mut resumed = world.watch(range, complete);
                            resumed.known = known;
                            watchers[at] = resumed;
                            break;
                        }
                        None => break,
                    }
                }
            }
            _ => {}
        }
    }
    // In the end everybody catches up.
    for mut watcher in watchers {
        while let Some(error) = watcher.drain() {
            assert_eq!(error, Error::WatchLagged { resume_revision: watcher.complete });
            let known = std::mem::take(&mut watcher.known);
            watcher = world.watch(watcher.range.clone(), watcher.complete);
            watcher.known = known;
        }
        watcher.check(&world.history);
        let now = within(&world.history.records[&world.state.revision()], &watcher.range);
        assert_eq!(watcher.known, now, "caught up");
    }
    assert_eq!(world.hub.watchers(), 0);
    assert_eq!(world.queued_bytes(), 0);
    SEEN.lock().unwrap().extend(seen);
}

/// What happened in any of the runs: a model that never resets or lags proves nothing.
static SEEN: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());

#[test]
fn every_picture_equals_the_state_at_its_revision() {
    for seed in 0..300 {
        if let Err(panic) = std::panic::catch_unwind(|| model(seed)) {
            eprintln!("seed {seed}");
            std::panic::resume_unwind(panic);
        }
    }
    let all = [
        "bookmark",
        "changes",
        "forgotten by bytes",
        "forgotten by number",
        "lagged",
        "piece",
        "reset",
        "several",
        "snapshot",
    ];
    assert_eq!(SEEN.lock().unwrap().iter().copied().collect::<Vec<_>>(), all);
}
