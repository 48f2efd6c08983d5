//! What the store's tests share: a state that is fed random commands, with its whole past beside it.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::checkpoint::{self, Checkpointer};
use super::image::{ImageMeta, Point, Write};
use super::pending::AppliedEntry;
use super::snapshot::SnapshotMeta;
use crate::limits::LOOK_AHEAD;
use crate::state::{
    Addition, Admin, Command, ConfigDeletion, Content, CounterName, Endpoint, Entry, Format,
    Health, InstanceName, InstancePatch, ItemName, Key, Op, Pairs, Publication, Record,
    Registration, Reply, RequestId, ServiceSettings, State, Step, Txn,
};

/// A state, the entries that made it, and its records after each of them.
#[derive(Debug)]
pub struct World {
    rng: StdRng,
    pub state: State,
    next: u64,
    sessions: Vec<(u64, u64)>,
    /// Some metadata is longer than a chunk of the image.
    pub long_values: bool,
    pub past: BTreeMap<u64, Vec<(Key, Record)>>,
}

pub fn point(index: u64) -> Point {
    let log_id = format!("log id {index}").into();
    Point { index, log_id, membership: format!("members at {}", index / 7).into() }
}

pub fn records(state: &State) -> Vec<(Key, Record)> {
    state.records().collect()
}

/// What the image is handed for an entry by itself.
pub fn writes(entry: &AppliedEntry) -> Vec<Write> {
    let changes = entry.events.iter().flat_map(|event| &event.changes);
    let mut last: BTreeMap<Vec<u8>, Option<Vec<u8>>> = changes
        .map(|change| (change.key.encode(), change.record.as_ref().map(Record::encode)))
        .collect();
    last.insert(Key::Meta.encode(), Some(Record::Meta(entry.meta).encode()));
    last.into_iter().collect()
}

/// A snapshot of all that the log has synced.
pub fn fresh_snapshot(core: &mut Checkpointer) -> Result<SnapshotMeta, checkpoint::Error> {
    core.checkpoint()?;
    core.snapshot()
}

impl World {
    pub fn new(seed: u64) -> World {
        World {
            rng: StdRng::seed_from_u64(seed),
            state: State::default(),
            next: 0,
            sessions: Vec::new(),
            long_values: false,
            past: BTreeMap::new(),
        }
    }

    /// Index of the last entry.
    pub fn index(&self) -> u64 {
        self.next - 1
    }

    /// Applies one random entry; some carry no command, as raft's own do.
    pub fn entry(&mut self) -> AppliedEntry {
        let index = self.next;
        self.next += 1;
        let count = match self.rng.random_range(0..20) {
            _ if index == 0 => 0,
            // More than are looked at at once.
            0 => self.rng.random_range(LOOK_AHEAD..3 * LOOK_AHEAD),
            _ => self.rng.random_range(0..6),
        };
        let commands: Vec<Vec<u8>> = (0..count).map(|_| self.command().encode().unwrap()).collect();
        let entry = Entry {
            term: 1,
            at_ms: 1_000_000 + index * 10,
            commands: commands.iter().map(Vec::as_slice).collect(),
        };
        let applied = self.state.apply(&entry);
        for outcome in &applied.outcomes {
            if let Ok(Reply::SessionOpened { session, .. }) = &outcome.result {
                self.sessions.push((*session, 0));
            }
        }
        self.past.insert(index, records(&self.state));
        AppliedEntry {
            point: point(index),
            events: applied.events,
            meta: applied.meta,
            log_bytes: commands.iter().map(|bytes| bytes.len() as u64).sum(),
        }
    }

    pub fn entries(&mut self, count: usize) -> Vec<AppliedEntry> {
        (0..count).map(|_| self.entry()).collect()
    }

    /// Asserts that a state is exactly the one after `point`'s entry.
    #[track_caller]
    pub fn assert_past(&self, state: &State, point: &Point) {
        assert_eq!(*point, self::point(point.index), "the point is torn");
        assert!(
            records(state) == self.past[&point.index],
            "the state is not the one at {}",
            point.index
        );
    }

    /// Asserts that an image's meta is right for its index.
    #[track_caller]
    pub fn assert_meta(&self, meta: &ImageMeta) {
        let state = State::restore(
            self.past[&meta.point.index].iter().cloned().map(Ok::<_, std::convert::Infallible>),
        );
        assert_eq!((meta.digest, meta.records), state.unwrap().digest());
    }

    fn name(&mut self) -> InstanceName {
        let namespace = if self.rng.random_bool(0.2) { "shop" } else { "default" };
        InstanceName {
            namespace: namespace.into(),
            service: format!("service-{}", self.rng.random_range(0..4)),
            id: format!("i{}", self.rng.random_range(0..12)),
        }
    }

    fn counter(&mut self) -> CounterName {
        let name = format!("counter_{}", self.rng.random_range(0..4));
        CounterName { namespace: "default".into(), name, labels: Pairs::default() }
    }

    fn item(&mut self) -> ItemName {
        let key = format!("item-{}", self.rng.random_range(0..3));
        ItemName { namespace: "default".into(), group: "default".into(), key }
    }

    fn metadata(&mut self) -> Pairs {
        let count = if self.long_values { self.rng.random_range(0..16) } else { 1 };
        (0..count)
            .map(|i| {
                let length = self.rng.random_range(0..1_000);
                let letter = char::from(self.rng.random_range(b'a'..=b'z'));
                (format!("key-{i:02}"), letter.to_string().repeat(length))
            })
            .collect()
    }

    fn command(&mut self) -> Command {
        let mut request = None;
        let mut session = None;
        if !self.sessions.is_empty() && self.rng.random_bool(0.6) {
            let chosen = self.rng.random_range(0..self.sessions.len());
            let (id, sequence) = &mut self.sessions[chosen];
            *sequence += 1;
            request = Some(RequestId {
                session: *id,
                sequence: *sequence,
                lowest_unacknowledged: sequence.saturating_sub(3).max(1),
            });
            session = Some(*id);
        }
        let op = match self.rng.random_range(0..25) {
            0 => Op::OpenSession { ttl_ms: 10_000, client: "test".into() },
            1 if self.sessions.len() > 3 => {
                let chosen = self.rng.random_range(0..self.sessions.len());
                Op::CloseSession { session: self.sessions.remove(chosen).0 }
            }
            2 => Op::PutNamespace { name: "shop".into(), description: "a shop".into() },
            3 => Op::PutService(Box::new(ServiceSettings {
                namespace: "default".into(),
                name: format!("service-{}", self.rng.random_range(0..4)),
                protect_threshold_percent: self.rng.random_range(0..=100),
                deregister_after_ms: 30_000,
                policy: "random".into(),
                policy_parameters: Pairs::default(),
                metadata: self.metadata(),
                expected_mod_revision: None,
                health_check: None,
            })),
            4 => Op::ExpireSessions {
                term: 1,
                sessions: self.sessions.first().map(|(id, _)| *id).into_iter().collect(),
            },
            5 | 6 => {
                let steps = self.rng.random_range(2..8);
                let then = (0..steps).map(|_| Step::Write(self.write(session))).collect();
                Op::Txn(Box::new(Txn { when: Vec::new(), then, otherwise: Vec::new() }))
            }
            7 => self.deletion(true),
            _ => self.write(session),
        };
        Command { request, op }
    }

    /// What a transaction may carry out too. Few names, so that it often concerns one of them twice.
    fn write(&mut self, session: Option<u64>) -> Op {
        match self.rng.random_range(0..20) {
            0..3 => Op::Deregister { name: self.name(), expected_mod_revision: None },
            3..6 => Op::UpdateInstance(Box::new(InstancePatch {
                name: self.name(),
                weight: Some(self.rng.random_range(0..100)),
                admin: None,
                health: Some(Health::Warning),
                reason: String::new(),
                metadata: Some(self.metadata()),
                expected_mod_revision: None,
            })),
            6 => Op::AddCounter(Box::new(Addition {
                name: self.counter(),
                kind: None,
                delta: 1,
                floor: None,
                ceil: None,
            })),
            7 => Op::DeleteCounter { name: self.counter() },
            8 | 9 => Op::PublishConfig(Box::new(Publication {
                name: self.item(),
                content: Content {
                    format: Format::Text,
                    bytes: vec![b'x'; self.rng.random_range(0..100)].into(),
                },
                labels: None,
                keep: Some(2),
                author: String::new(),
                comment: String::new(),
                expected_version: None,
                schema: 0,
                gray: None,
            })),
            10 => self.deletion(false),
            _ => Op::Register(Box::new(Registration {
                name: self.name(),
                endpoints: [Endpoint { name: "http", host: "10.0.0.1", port: 80 }]
                    .into_iter()
                    .collect(),
                weight: 1,
                zone: "a".into(),
                metadata: self.metadata(),
                health: Health::Passing,
                admin: Admin::Enabled,
                reason: "test".into(),
                hash_key: String::new(),
                session,
            })),
        }
    }

    fn deletion(&mut self, purge: bool) -> Op {
        Op::DeleteConfig(Box::new(ConfigDeletion {
            name: self.item(),
            expected_version: None,
            author: String::new(),
            comment: String::new(),
            purge,
        }))
    }
}
