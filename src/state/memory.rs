//! The tables in memory, their indexes and counts. Every write to a record goes through a function of
//! this file or of the files below it and yields what it [`Written`], so that no write can be forgotten
//! by the image, by a watcher or by a transaction that is taken back. What a command may write is
//! decided in `registry`, `config`, `counter`, `lock`, `session` and `member`.
//!
//! Invariants:
//! - an instance has a holder (see [`Instance::holder`]) only while that session lives;
//! - `held` and `orphans` are exactly what the instances' fields say, `checked` what those of services say;
//!   so are all counts;
//! - a service without settings has instances; a service's namespace exists;
//! - names are shared: the key of a map, the records below it and the indexes hold one `Arc<str>`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

mod alarm;
mod config;
mod counter;
mod lock;
mod restoration;
mod saga;

pub(super) use self::alarm::AlarmTable;
pub(super) use self::config::{ConfigTable, ItemTable};
pub(super) use self::counter::CounterTable;
pub(super) use self::lock::LockTables;
pub(super) use self::restoration::Restoration;
pub(super) use self::saga::{SagaPlace, SagaTable, SagaTimers};
use super::catalog::{Catalog, Place};
use super::journal::{Journal, Written};
use super::member::Members;
use super::registry::share_reason;
use super::table::{
    Class, Instance, Key, Namespace, Record, Removal, Service, Session, StoredReply,
};
use crate::limits;

#[derive(Debug)]
pub(super) struct Tables {
    pub namespaces: BTreeMap<Arc<str>, NamespaceTable>,
    pub ledger: Ledger,
    pub members: Members,
}

#[derive(Debug)]
pub(super) struct NamespaceTable {
    /// The default namespace has a record in the image only after it was put: until then its
    /// revisions are 0.
    pub record: Arc<Namespace>,
    pub services: Catalog<ServiceTable>,
    pub config: ConfigTable,
    pub counters: CounterTable,
    pub locks: LockTables,
    pub alarms: AlarmTable,
    pub sagas: SagaTable,
    /// When something of each class was last removed.
    removals: BTreeMap<Class, Removal>,
}

#[derive(Debug)]
pub(super) struct ServiceTable {
    pub name: Arc<ServiceName>,
    /// None: it exists through its instances only.
    pub settings: Option<Arc<Service>>,
    pub instances: Catalog<Arc<Instance>>,
    /// Instances that can take calls.
    pub healthy: usize,
    /// Instances that are not disabled.
    pub visible: usize,
    /// Made when somebody asks for it, gone with the next change.
    version: OnceLock<ServiceVersion>,
}

/// Stands for all there is of a service at one time. Two of them are equal only when nothing of the service has
/// changed in between.
#[derive(Debug, Clone, Default)]
pub struct ServiceVersion(Arc<()>);

impl PartialEq for ServiceVersion {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServiceName {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

impl ServiceName {
    /// Makes one of its instances share the texts that many have alike.
    fn share(&self, instance: &mut Arc<Instance>) {
        let instance = Arc::make_mut(instance);
        instance.namespace = self.namespace.clone();
        instance.service = self.name.clone();
        share_reason(&mut instance.reason);
    }
}

/// Sessions, who holds what, and how much there is of everything.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub sessions: BTreeMap<u64, SessionEntry>,
    /// The instances of live sessions.
    held: BTreeSet<Held>,
    /// The instances whose session has expired.
    pub orphans: BTreeSet<(Arc<ServiceName>, Arc<str>)>,
    /// The services that ask for health checks.
    pub checked: BTreeSet<Arc<ServiceName>>,
    pub instances: u64,
    pub services: u64,
    pub replies: u64,
    /// Items, deleted ones included.
    pub items: u64,
    pub releases: u64,
    pub counters: u64,
    pub alarms: u64,
    pub saga_timers: SagaTimers,
    /// Requests for locks, granted or waiting.
    pub lock_requests: u64,
    /// The requests for locks of each session.
    requested: BTreeSet<(u64, LockPlace)>,
    /// The items that each session has reported.
    reported: BTreeSet<(u64, Arc<ItemName>)>,
    /// The items that have a gray release with a gate.
    pub gated: BTreeSet<Arc<ItemName>>,
}

/// Namespace, lock and ticket of a request for a lock.
pub(super) type LockPlace = (Arc<str>, Arc<str>, u64);

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ItemName {
    pub namespace: Arc<str>,
    pub group: Arc<str>,
    pub key: Arc<str>,
}

impl ItemName {
    /// Namespace, group and key, for a record that shares them.
    pub fn parts(&self) -> (Arc<str>, Arc<str>, Arc<str>) {
        (self.namespace.clone(), self.group.clone(), self.key.clone())
    }
}

/// A live session with what hangs on it.
#[derive(Debug)]
pub struct SessionEntry {
    pub record: Arc<Session>,
    /// How many instances it keeps alive.
    pub instances: usize,
    /// Stored replies by sequence: at most [`limits::SESSION_IN_FLIGHT`].
    pub(super) replies: BTreeMap<u64, Arc<StoredReply>>,
    /// The greatest `lowest_unacknowledged` of the stored replies. No reply below it is stored.
    pub(super) lowest: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Held {
    session: u64,
    /// None only in the bound before the first instance of a session.
    service: Option<Arc<ServiceName>>,
    id: Arc<str>,
}

impl Default for Tables {
    fn default() -> Self {
        let name: Arc<str> = limits::DEFAULT_NAMESPACE.into();
        let record = Arc::new(Namespace {
            name: name.clone(),
            description: String::new(),
            create_revision: 0,
            mod_revision: 0,
        });
        Tables {
            namespaces: BTreeMap::from([(name, NamespaceTable::new(record))]),
            ledger: Ledger::default(),
            members: Members::default(),
        }
    }
}

impl Tables {
    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceTable> {
        self.namespaces.get(namespace)?.services.get(name)
    }

    pub fn put_namespace_record(&mut self, mut record: Namespace) -> Written {
        if let Some(namespace) = self.namespaces.get(&*record.name) {
            record.name = namespace.record.name.clone();
        }
        let record = Arc::new(record);
        let key = Key::Namespace { name: record.name.clone() };
        let before = match self.namespaces.get_mut(&*record.name) {
            Some(namespace) => {
                let before = std::mem::replace(&mut namespace.record, record.clone());
                (before.mod_revision > 0).then_some(Record::Namespace(before))
            }
            None => {
                self.namespaces.insert(record.name.clone(), NamespaceTable::new(record.clone()));
                None
            }
        };
        Written::put(key, Record::Namespace(record), before)
    }

    /// The namespace exists, has nothing in it and is not the default one. What it remembers of
    /// removals goes with it.
    pub fn remove_namespace_record(&mut self, name: &str) -> Vec<Written> {
        let gone = self.namespaces.remove(name).expect("asked for by its key");
        assert!(gone.used_by().is_none(), "{name} still had {:?}", gone.used_by());
        let namespace = gone.record.name.clone();
        let mut writes: Vec<Written> = gone
            .removals
            .into_iter()
            .map(|(class, removal)| {
                let key = Key::Removal { namespace: namespace.clone(), class };
                Written::removed(key, Record::Removal(removal))
            })
            .collect();
        writes.push(Written::removed(
            Key::Namespace { name: namespace },
            Record::Namespace(gone.record),
        ));
        writes
    }

    /// None when there is no such instance.
    pub fn remove_instance(&mut self, namespace: &str, service: &str, id: &str) -> Option<Written> {
        let namespace = self.namespaces.get_mut(namespace)?;
        let table = namespace.services.get_mut(service)?;
        let gone = table.instances.remove(id)?;
        table.count(Some(&gone), None);
        self.ledger.follow(&table.name, Some(&gone), None);
        namespace.prune(&mut self.ledger, service);
        Some(Written::removed(gone.key(), Record::Instance(gone)))
    }

    /// Remembers that something of `class` is removed from an existing namespace at `revision`. None
    /// when that is known.
    pub fn note_removal(
        &mut self,
        namespace: &str,
        class: Class,
        revision: u64,
    ) -> Option<Written> {
        let table = self.namespaces.get_mut(namespace).expect("something of it is removed");
        table.put_removal(class, Removal { revision })
    }

    /// Makes the record under `key` what it was before a write that is taken back.
    pub fn put_back(&mut self, key: Key, before: Option<Record>) {
        let Some(record) = before else { return self.remove(&key) };
        match record {
            // These replace what is there; an instance also replaces it in the indexes.
            Record::Instance(_)
            | Record::Service(_)
            | Record::Config(_)
            | Record::Release(_)
            | Record::Counter(_)
            | Record::Lock(_)
            | Record::Report(_)
            | Record::Saga(_)
            | Record::Removal(_) => self.restore(key, record),
            Record::Meta(_)
            | Record::Namespace(_)
            | Record::Session(_)
            | Record::Reply(_)
            | Record::Member(_)
            | Record::Alarm(_)
            | Record::Schema(_) => unreachable!("no transaction writes {key:?}"),
        }
    }

    /// Removes what a transaction that is taken back has made.
    fn remove(&mut self, key: &Key) {
        let there = "made by the transaction that is taken back";
        match key {
            Key::Instance { namespace, service, id } => {
                self.remove_instance(namespace, service, id).expect(there);
            }
            Key::Service { namespace, name } => {
                let namespace = self.namespaces.get_mut(namespace).expect(there);
                let table = namespace.services.get_mut(name).expect(there);
                table.remove_settings(&mut self.ledger).expect(there);
                namespace.prune(&mut self.ledger, name);
            }
            Key::Config { namespace, group, key } => {
                let table = self.namespaces.get_mut(namespace).expect(there);
                table.config.remove_item(&mut self.ledger, group, key).expect(there);
            }
            Key::Release { namespace, group, key, version } => {
                let table = self.namespaces.get_mut(namespace).expect(there);
                let item = table.config.item_mut(group, key).expect(there);
                item.remove_release(&mut self.ledger, *version).expect(there);
            }
            Key::Counter { namespace, name, labels } => {
                let table = self.namespaces.get_mut(namespace).expect(there);
                table.counters.remove(&mut self.ledger, name, labels).expect(there);
            }
            Key::Lock { namespace, lock, ticket } => {
                let table = self.namespaces.get_mut(namespace).expect(there);
                table.locks.remove(&mut self.ledger, lock, *ticket).expect(there);
            }
            Key::Removal { namespace, class } => {
                let table = self.namespaces.get_mut(namespace).expect(there);
                table.removals.remove(class).expect(there);
            }
            Key::Meta
            | Key::Namespace { .. }
            | Key::Session { .. }
            | Key::Reply { .. }
            | Key::Member { .. }
            | Key::Alarm { .. }
            | Key::Saga { .. }
            | Key::Schema { .. }
            | Key::Report { .. } => unreachable!("no transaction makes {key:?}"),
        }
    }

    /// All records but Meta, in the order of their keys.
    pub fn records(&self) -> impl Iterator<Item = (Key, Record)> + '_ {
        let tables = || self.namespaces.values().flat_map(|n| n.services.values());
        let namespaces = self
            .namespaces
            .values()
            .filter(|table| table.record.mod_revision > 0)
            .map(|table| &table.record)
            .map(|r| (Key::Namespace { name: r.name.clone() }, Record::Namespace(r.clone())));
        let services = tables()
            .filter_map(|table| table.settings.as_ref())
            .map(|record| (record.key(), Record::Service(record.clone())));
        let instances = tables()
            .flat_map(|table| table.instances.values())
            .map(|record| (record.key(), Record::Instance(record.clone())));
        let sessions = self.ledger.sessions.values().map(|entry| {
            (Key::Session { id: entry.record.id }, Record::Session(entry.record.clone()))
        });
        let replies = self.ledger.sessions.values().flat_map(|entry| {
            entry.replies.iter().map(|(sequence, reply)| {
                let key = Key::Reply { session: entry.record.id, sequence: *sequence };
                (key, Record::Reply(reply.clone()))
            })
        });
        let members = self
            .members
            .all()
            .map(|record| (Key::Member { node: record.node }, Record::Member(record.clone())));
        let all = || self.namespaces.values();
        let removals = all().flat_map(|namespace| {
            namespace.removals.iter().map(|(class, removal)| {
                let key = Key::Removal { namespace: namespace.record.name.clone(), class: *class };
                (key, Record::Removal(*removal))
            })
        });
        // In the order of the kinds.
        let registry = namespaces.chain(services).chain(instances);
        let sessions = registry.chain(sessions).chain(replies).chain(members);
        let config = sessions
            .chain(all().flat_map(|namespace| namespace.config.item_records()))
            .chain(all().flat_map(|namespace| namespace.config.release_records()))
            .chain(all().flat_map(|namespace| namespace.config.schema_records()))
            .chain(all().flat_map(|namespace| namespace.config.report_records()));
        config
            .chain(all().flat_map(|namespace| namespace.counters.records()))
            .chain(all().flat_map(|namespace| namespace.alarms.records()))
            .chain(all().flat_map(|namespace| namespace.locks.records()))
            .chain(removals)
            .chain(all().flat_map(|namespace| namespace.sagas.records()))
    }

    /// Takes a record of [`Tables::records`]; the order of the keys puts a namespace before what is in
    /// it, an item before its releases, and a session before its replies.
    pub fn restore(&mut self, key: Key, record: Record) {
        assert!(record.is_of(&key), "restoring {key:?}, which has the record {record:?}");
        let parent =
            "restored in the order of the keys, so that a parent comes before its children";
        // The change of each write is dropped: the records come from where changes go.
        match (key, record) {
            (Key::Namespace { .. }, Record::Namespace(record)) => {
                self.put_namespace_record(Arc::unwrap_or_clone(record));
            }
            (Key::Service { .. }, Record::Service(record)) => {
                let namespace = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let table = namespace.service_mut(&mut self.ledger, &record.name);
                let mut record = Arc::unwrap_or_clone(record);
                record.namespace = table.name.namespace.clone();
                record.name = table.name.name.clone();
                table.put_settings(&mut self.ledger, record);
            }
            (Key::Instance { .. }, Record::Instance(mut record)) => {
                let namespace = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let table = namespace.service_mut(&mut self.ledger, &record.service);
                table.name.share(&mut record);
                table.put_instance(&mut self.ledger, record);
            }
            (Key::Session { .. }, Record::Session(record)) => {
                self.ledger.put_session(Arc::unwrap_or_clone(record));
            }
            (Key::Reply { session, sequence }, Record::Reply(record)) => {
                let entry = self.ledger.sessions.get_mut(&session).expect(parent);
                entry.lowest = entry.lowest.max(record.lowest_unacknowledged);
                entry.replies.insert(sequence, record);
                self.ledger.replies += 1;
            }
            (Key::Member { .. }, Record::Member(record)) => {
                self.members.put(Arc::unwrap_or_clone(record));
            }
            (Key::Config { .. }, Record::Config(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let item = table.config.table_mut(&*record.group, &*record.key);
                let mut record = Arc::unwrap_or_clone(record);
                (record.namespace, record.group, record.key) = item.name().parts();
                item.put_item(&mut self.ledger, record);
            }
            (Key::Release { namespace, group, key, .. }, Record::Release(record)) => {
                let table = self.namespaces.get_mut(&*namespace).expect(parent);
                let item = table.config.item_mut(&group, &key).expect(parent);
                item.put_release(&mut self.ledger, record);
            }
            (Key::Schema { .. }, Record::Schema(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let mut record = Arc::unwrap_or_clone(record);
                let names = table.config.names(&record.group, &record.key);
                (record.namespace, record.group, record.key) = names.parts();
                table.config.put_schema(record);
            }
            (Key::Report { .. }, Record::Report(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let item = table.config.item_mut(&record.group, &record.key).expect(parent);
                let mut record = Arc::unwrap_or_clone(record);
                (record.namespace, record.group, record.key) = item.name().parts();
                item.put_report(&mut self.ledger, record);
            }
            (Key::Counter { .. }, Record::Counter(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let mut record = Arc::unwrap_or_clone(record);
                (record.namespace, record.name) = table.counters.names(&record.name);
                table.counters.put(&mut self.ledger, record);
            }
            (Key::Lock { .. }, Record::Lock(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let mut record = Arc::unwrap_or_clone(record);
                (record.namespace, record.lock) = table.locks.names(&record.lock);
                table.locks.put(&mut self.ledger, record);
            }
            (Key::Alarm { .. }, Record::Alarm(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let mut record = Arc::unwrap_or_clone(record);
                (record.namespace, record.name) = table.alarms.names(&record.name);
                table.alarms.put(&mut self.ledger, record);
            }
            (Key::Saga { .. }, Record::Saga(record)) => {
                let table = self.namespaces.get_mut(&*record.namespace).expect(parent);
                let mut record = Arc::unwrap_or_clone(record);
                record.namespace = table.sagas.namespace().clone();
                table.sagas.put(&mut self.ledger, record);
            }
            (Key::Removal { namespace, class }, Record::Removal(removal)) => {
                let table = self.namespaces.get_mut(&*namespace).expect(parent);
                table.put_removal(class, removal);
            }
            (key, record) => unreachable!("{key:?} does not go with {record:?}"),
        }
    }
}

impl NamespaceTable {
    fn new(record: Arc<Namespace>) -> NamespaceTable {
        let name = record.name.clone();
        NamespaceTable {
            record,
            services: Catalog::default(),
            config: ConfigTable::new(name.clone()),
            counters: CounterTable::new(name.clone()),
            locks: LockTables::new(name.clone()),
            alarms: AlarmTable::new(name.clone()),
            sagas: SagaTable::new(name),
            removals: BTreeMap::new(),
        }
    }

    /// How many of what there are in it; None when it is empty.
    pub fn used_by(&self) -> Option<(usize, &'static str)> {
        let uses = [
            (self.services.len(), "service"),
            (self.config.len(), "config item"),
            (self.counters.len(), "counter"),
            (self.locks.len(), "lock"),
            (self.alarms.len(), "alarm"),
            (self.sagas.len(), "global transaction"),
        ];
        uses.into_iter().find(|(count, _)| *count > 0)
    }

    /// Since when it is there. The default one always was, whenever it was first described: 0.
    pub fn begins(&self) -> u64 {
        match &*self.record.name {
            limits::DEFAULT_NAMESPACE => 0,
            _ => self.record.create_revision,
        }
    }

    /// When something of a class was last removed; 0 = never.
    pub fn removal(&self, class: Class) -> u64 {
        self.removals.get(&class).map_or(0, |removal| removal.revision)
    }

    fn put_removal(&mut self, class: Class, removal: Removal) -> Option<Written> {
        let before = self.removals.insert(class, removal);
        let key = Key::Removal { namespace: self.record.name.clone(), class };
        (before != Some(removal))
            .then(|| Written::put(key, Record::Removal(removal), before.map(Record::Removal)))
    }

    /// The service, which comes into being without settings and must get settings or an instance
    /// before the command is over.
    pub fn service_mut(&mut self, ledger: &mut Ledger, service: &str) -> &mut ServiceTable {
        let namespace = &self.record.name;
        self.services.get_or_insert_with(service, |name| {
            ledger.services += 1;
            ServiceTable {
                name: Arc::new(ServiceName { namespace: namespace.clone(), name: name.clone() }),
                settings: None,
                instances: Catalog::default(),
                healthy: 0,
                visible: 0,
                version: OnceLock::new(),
            }
        })
    }

    /// A service without settings and instances does not exist.
    pub fn prune(&mut self, ledger: &mut Ledger, service: &str) {
        let Some(table) = self.services.get(service) else { return };
        if table.settings.is_none() && table.instances.is_empty() {
            self.services.remove(service);
            ledger.services -= 1;
        }
    }
}

impl ServiceTable {
    /// `record` holds the names of this table.
    pub fn put_settings(&mut self, ledger: &mut Ledger, record: Service) -> Written {
        match record.health_check {
            Some(_) => _ = ledger.checked.insert(self.name.clone()),
            None => _ = ledger.checked.remove(&self.name),
        }
        self.version.take();
        let record = Arc::new(record);
        let before = self.settings.replace(record.clone());
        Written::put(record.key(), Record::Service(record), before.map(Record::Service))
    }

    /// None when it has no settings. The caller prunes.
    pub fn remove_settings(&mut self, ledger: &mut Ledger) -> Option<Written> {
        self.version.take();
        ledger.checked.remove(&self.name);
        self.settings.take().map(|gone| Written::removed(gone.key(), Record::Service(gone)))
    }

    /// `record` holds the names of this table, and the id of its predecessor if there is one.
    pub fn put_instance(
        &mut self,
        ledger: &mut Ledger,
        record: impl Into<Arc<Instance>>,
    ) -> Written {
        let record = record.into();
        let old = self.instances.put(&record.id, record.clone());
        self.written(ledger, record, old)
    }

    /// As [`ServiceTable::put_instance`], where its predecessor is.
    pub fn replace_instance(
        &mut self,
        ledger: &mut Ledger,
        place: Place,
        record: Instance,
    ) -> Written {
        let record = Arc::new(record);
        let old = self.instances.replace(place, record.clone());
        debug_assert!(Arc::ptr_eq(&record.id, &old.id), "{} in the place of {}", record.id, old.id);
        self.written(ledger, record, Some(old))
    }

    fn written(
        &mut self,
        ledger: &mut Ledger,
        record: Arc<Instance>,
        old: Option<Arc<Instance>>,
    ) -> Written {
        self.count(old.as_deref(), Some(&record));
        ledger.follow(&self.name, old.as_deref(), Some(&record));
        Written::put(record.key(), Record::Instance(record), old.map(Record::Instance))
    }

    pub fn version(&self) -> ServiceVersion {
        self.version.get_or_init(ServiceVersion::default).clone()
    }

    /// To be called with each change of an instance.
    fn count(&mut self, old: Option<&Instance>, new: Option<&Instance>) {
        self.version.take();
        let one = |instance: Option<&Instance>, is: fn(&Instance) -> bool| {
            usize::from(instance.is_some_and(is))
        };
        self.healthy += one(new, Instance::is_healthy);
        self.healthy -= one(old, Instance::is_healthy);
        self.visible += one(new, Instance::is_visible);
        self.visible -= one(old, Instance::is_visible);
    }
}

impl Ledger {
    pub fn put_session(&mut self, record: Session) -> Written {
        let id = record.id;
        let record = Arc::new(record);
        // A new session holds nothing yet; a restored one may.
        let instances = self.held_by(id).count();
        let lowest = 0;
        let entry =
            SessionEntry { record: record.clone(), instances, replies: BTreeMap::new(), lowest };
        let before = self.sessions.insert(id, entry);
        assert!(before.is_none(), "session {id} was there: {before:?}");
        Written::put(Key::Session { id }, Record::Session(record), None)
    }

    /// Removes a session that exists, whose instances are gone or orphaned and whose locks are released,
    /// and its stored replies.
    pub fn remove_session(&mut self, id: u64, journal: &mut Journal) {
        let gone = self.sessions.remove(&id).expect("asked for by its id");
        assert_eq!(gone.instances, 0, "instances that session {id} still held");
        self.replies -= gone.replies.len() as u64;
        for (sequence, reply) in gone.replies {
            let key = Key::Reply { session: id, sequence };
            journal.push(Written::removed(key, Record::Reply(reply)));
        }
        journal.push(Written::removed(Key::Session { id }, Record::Session(gone.record)));
    }

    /// Requests for locks of a session, by namespace, lock and ticket.
    pub fn requested_by(&self, session: u64) -> impl Iterator<Item = &LockPlace> {
        let first = (session, LockPlace::default());
        let all = self.requested.range(first..);
        all.take_while(move |(of, _)| *of == session).map(|(_, place)| place)
    }

    /// Items that a session has reported.
    pub fn reported_by(&self, session: u64) -> impl Iterator<Item = &Arc<ItemName>> {
        let empty: Arc<str> = Arc::default();
        let name = ItemName { namespace: empty.clone(), group: empty.clone(), key: empty };
        let all = self.reported.range((session, Arc::new(name))..);
        all.take_while(move |(of, _)| *of == session).map(|(_, name)| name)
    }

    /// The instances of a live session, by service and id.
    pub fn held_by(&self, session: u64) -> impl Iterator<Item = (&Arc<ServiceName>, &Arc<str>)> {
        let first = Held { session, service: None, id: Arc::default() };
        self.held
            .range(first..)
            .take_while(move |held| held.session == session)
            .filter_map(|held| Some((held.service.as_ref()?, &held.id)))
    }

    /// Keeps indexes and counts when an instance of `service` is put or removed.
    fn follow(
        &mut self,
        service: &Arc<ServiceName>,
        old: Option<&Instance>,
        new: Option<&Instance>,
    ) {
        self.instances += u64::from(new.is_some());
        self.instances -= u64::from(old.is_some());

        let holder = |instance: Option<&Instance>| instance.and_then(Instance::holder);
        if holder(old) != holder(new) {
            let held = |instance: Option<&Instance>| instance.and_then(|it| Held::of(service, it));
            if let Some(held) = held(old) {
                assert!(self.held.remove(&held), "{held:?} was not held");
                self.count_held(held.session, |instances| instances - 1);
            }
            if let Some(held) = held(new) {
                self.count_held(held.session, |instances| instances + 1);
                self.held.insert(held);
            }
        }

        let orphan = |instance: Option<&Instance>| {
            instance.filter(|i| i.orphaned_at_ms.is_some()).map(|i| i.id.clone())
        };
        match (orphan(old), orphan(new)) {
            (None, Some(id)) => _ = self.orphans.insert((service.clone(), id)),
            (Some(id), None) => _ = self.orphans.remove(&(service.clone(), id)),
            (Some(_), Some(_)) | (None, None) => {}
        }
    }

    fn count_held(&mut self, session: u64, change: fn(usize) -> usize) {
        let entry = self.sessions.get_mut(&session).expect("what holds an instance lives");
        entry.instances = change(entry.instances);
    }
}

impl Held {
    /// None when no session holds the instance, which is one of `service`.
    fn of(service: &Arc<ServiceName>, instance: &Instance) -> Option<Held> {
        let session = instance.holder()?;
        Some(Held { session, service: Some(service.clone()), id: instance.id.clone() })
    }
}
