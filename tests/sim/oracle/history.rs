//! The order of all changes, as the first node that applied each entry has made them, and every
//! version of every record.

use std::collections::BTreeMap;

use quorate::state::{Applied, Change, Key, Meta, Outcome, Record, State, record_hash};
use quorate::watch::{Class, Match, Range};

/// Metadata key under which each write leaves its mark.
pub const TAG: &str = "tag";

#[derive(Debug)]
pub struct History {
    /// What the state holds now, with the hash of each record.
    records: BTreeMap<Key, (Record, u64)>,
    /// Versions of what has a revision, by the revision from which they hold.
    versions: BTreeMap<Key, Vec<(u64, Option<Record>)>>,
    /// What each revision changed, stored replies and members aside.
    revisions: BTreeMap<u64, Vec<Change>>,
    /// First stored answer of each request id.
    pub replies: BTreeMap<(u64, u64), Outcome>,
    /// At which revision the write with this mark took place.
    pub tags: BTreeMap<String, u64>,
    digest: u64,
    pub revision: u64,
}

impl Default for History {
    fn default() -> History {
        let mut history = History {
            records: BTreeMap::new(),
            versions: BTreeMap::new(),
            revisions: BTreeMap::new(),
            replies: BTreeMap::new(),
            tags: BTreeMap::new(),
            digest: 0,
            revision: 0,
        };
        for (key, record) in State::default().records() {
            history.put(key, Some(record));
        }
        history
    }
}

/// The mark in a record. An item has that of its current release.
pub fn tag_of(record: &Record) -> Option<&str> {
    let metadata = match record {
        Record::Instance(instance) => &instance.metadata,
        Record::Service(service) => &service.metadata,
        Record::Config(item) => return Some(&item.current.author),
        Record::Lock(request) => return Some(&request.value),
        Record::Meta(_)
        | Record::Namespace(_)
        | Record::Session(_)
        | Record::Reply(_)
        | Record::Member(_)
        | Record::Release(_)
        | Record::Schema(_)
        | Record::Report(_)
        | Record::Counter(_)
        | Record::Removal(_)
        | Record::Alarm(_)
        | Record::Saga(_) => {
            return None;
        }
    };
    metadata.get(TAG)
}

impl History {
    /// Takes what one more entry did. Says what is wrong with it in itself; sessions that it ended
    /// are added to `ended`.
    pub fn apply(&mut self, applied: &Applied, ended: &mut Vec<u64>) -> Result<(), String> {
        let mut result = Ok(());
        let mut wrong = |what: String| {
            if result.is_ok() {
                result = Err(what);
            }
        };
        for event in &applied.events {
            let mut visible = Vec::new();
            for Change { key, record, fresh: _ } in &event.changes {
                let old = self.records.get(key).map(|(record, _)| record);
                match key {
                    Key::Reply { session, sequence } => {
                        if let Some(Record::Reply(reply)) = record {
                            let id = (*session, *sequence);
                            let outcome = reply.outcome.clone();
                            if let Some(before) = self.replies.insert(id, outcome) {
                                wrong(format!(
                                    "request {sequence} of session {session} was carried out twice: \
                                     {before:?}, then {:?}",
                                    reply.outcome
                                ));
                            }
                        }
                    }
                    Key::Session { id } => {
                        if record.is_none() {
                            ended.push(*id);
                        }
                    }
                    Key::Meta
                    | Key::Namespace { .. }
                    | Key::Service { .. }
                    | Key::Instance { .. }
                    | Key::Member { .. }
                    | Key::Config { .. }
                    | Key::Release { .. }
                    | Key::Schema { .. }
                    | Key::Report { .. }
                    | Key::Counter { .. }
                    | Key::Lock { .. }
                    | Key::Removal { .. }
                    | Key::Alarm { .. }
                    | Key::Saga { .. } => {}
                }
                if let Some(tag) = record.as_ref().and_then(tag_of)
                    && old.and_then(tag_of) != Some(tag)
                    && let Some(before) = self.tags.insert(tag.to_owned(), event.revision)
                {
                    wrong(format!(
                        "write {tag} took place twice: at revisions {before} and {}",
                        event.revision
                    ));
                }
                if !matches!(key, Key::Reply { .. } | Key::Member { .. }) {
                    visible.push(Change::new(key.clone(), record.clone()));
                    let versions = self.versions.entry(key.clone()).or_default();
                    versions.push((event.revision, record.clone()));
                }
                self.put(key.clone(), record.clone());
            }
            if visible.is_empty() {
                continue;
            }
            if event.revision != self.revision + 1 {
                wrong(format!("revision {} follows {}", event.revision, self.revision));
            }
            self.revision = event.revision;
            self.revisions.insert(event.revision, visible);
        }
        let Meta { revision, now_ms: _ } = applied.meta;
        if revision != self.revision {
            wrong(format!("the state is at revision {revision}, its changes at {}", self.revision));
        }
        self.put(Key::Meta, Some(Record::Meta(applied.meta)));
        result
    }

    fn put(&mut self, key: Key, record: Option<Record>) {
        let old = match record {
            Some(record) => {
                let hash = record_hash(&key.encode(), &record.encode());
                self.digest = self.digest.wrapping_add(hash);
                self.records.insert(key, (record, hash))
            }
            None => self.records.remove(&key),
        };
        if let Some((_, hash)) = old {
            self.digest = self.digest.wrapping_sub(hash);
        }
    }

    /// The clock of the state.
    pub fn now_ms(&self) -> u64 {
        match self.records.get(&Key::Meta) {
            Some((Record::Meta(meta), _)) => meta.now_ms,
            _ => 0,
        }
    }

    /// Digest of the state and number of its records.
    pub fn digest(&self) -> (u64, u64) {
        (self.digest, self.records.len() as u64)
    }

    /// The record as it was at a revision.
    pub fn at(&self, key: &Key, revision: u64) -> Option<&Record> {
        let versions = self.versions.get(key)?;
        let behind = versions.partition_point(|(from, _)| *from <= revision);
        versions[..behind].last()?.1.as_ref()
    }

    /// Everything that has ever been there, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.versions.keys()
    }

    /// All that a record has been, by the revision from which it was so.
    pub fn versions_of(&self, key: &Key) -> &[(u64, Option<Record>)] {
        self.versions.get(key).map_or(&[], Vec::as_slice)
    }

    /// The records under the keys from `first` to `last` as they were at a revision.
    pub fn between(&self, first: Key, last: Key, revision: u64) -> impl Iterator<Item = &Record> {
        let keys = self.versions.range(first..=last).map(|(key, _)| key);
        keys.filter_map(move |key| self.at(key, revision))
    }

    /// What a revision changed.
    pub fn changes(&self, revision: u64) -> &[Change] {
        self.revisions.get(&revision).map_or(&[], Vec::as_slice)
    }

    /// What the revisions in `after..=upto` changed within a range, by revision.
    pub fn within(&self, range: &Range, after: u64, upto: u64) -> Vec<(u64, Vec<Change>)> {
        if after >= upto {
            return Vec::new();
        }
        let changes = self.revisions.range(after + 1..=upto).map(|(revision, changes)| {
            let changes = changes.iter().filter(|change| holds(range, &change.key));
            (*revision, changes.cloned().collect::<Vec<_>>())
        });
        changes.filter(|(_, changes)| !changes.is_empty()).collect()
    }

    /// A range as it was at a revision.
    pub fn range_at(&self, range: &Range, revision: u64) -> BTreeMap<Key, Record> {
        let keys = self.versions.keys().filter(|key| holds(range, key));
        keys.filter_map(|key| Some((key.clone(), self.at(key, revision)?.clone()))).collect()
    }
}

fn holds(range: &Range, key: &Key) -> bool {
    let (class, namespace, first, second) = match key {
        Key::Service { namespace, name } => (Class::Service, namespace, &**name, ""),
        Key::Instance { namespace, service, id: _ } => (Class::Service, namespace, &**service, ""),
        Key::Config { namespace, group, key } => (Class::Config, namespace, &**group, &**key),
        Key::Counter { namespace, name, labels: _ } => (Class::Counter, namespace, &**name, ""),
        Key::Lock { namespace, lock, ticket: _ } => (Class::Lock, namespace, &**lock, ""),
        Key::Alarm { namespace, name } => (Class::Alarm, namespace, &**name, ""),
        Key::Saga { namespace, gid } => (Class::Saga, namespace, &**gid, ""),
        Key::Meta
        | Key::Namespace { .. }
        | Key::Session { .. }
        | Key::Reply { .. }
        | Key::Member { .. }
        | Key::Release { .. }
        | Key::Schema { .. }
        | Key::Report { .. }
        | Key::Removal { .. } => {
            return false;
        }
    };
    let named = |of: &Match, name: &str| match of {
        Match::Any => true,
        Match::Prefix(prefix) => name.starts_with(prefix.as_str()),
        Match::Exact(exact) => name == exact,
    };
    range.selectors().iter().any(|selector| {
        selector.class == class
            && **namespace == *selector.namespace
            && named(&selector.first, first)
            && named(&selector.second, second)
    })
}
