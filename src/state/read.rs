//! What can be read from the state. Records are shared, never copied; nothing here changes anything.

mod alarm;
mod check;
mod config;
mod counter;
mod lock;
mod saga;

use std::ops::Bound;
use std::sync::Arc;

pub use self::config::{ConfigClient, ConfigFilter, ConfigHistory};
pub use self::counter::CounterFilter;
use super::State;
use super::command::{InstanceName, Refusal, Reply, Txn};
use super::memory::{ServiceName, ServiceTable, ServiceVersion, SessionEntry};
use super::scope::Scope;
use super::table::{Instance, Member, Namespace, Pairs, Record, Service, Session};
use crate::limits;

/// Which instances discovery returns.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filter {
    /// Only those that can take calls, unless the protect threshold returns all.
    pub healthy_only: bool,
    /// Empty = all zones.
    pub zone: String,
    /// All these pairs must be there.
    pub metadata: Pairs,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Discovery {
    /// By id.
    pub instances: Vec<Arc<Instance>>,
    /// So few instances are healthy that `healthy_only` was not obeyed.
    pub protected: bool,
    /// None when there is no such service.
    pub service: Option<ServiceView>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceView {
    /// The defaults, with revisions 0, for a service that only exists through its instances.
    pub settings: Arc<Service>,
    pub instances: u64,
    /// Those that can take calls.
    pub healthy: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub instances: u64,
    pub services: u64,
    pub sessions: u64,
    /// With the default one.
    pub namespaces: u64,
    /// Stored for exactly-once.
    pub replies: u64,
    /// Nodes that are or were members, as far as they have been noted.
    pub members: u64,
    /// Of configuration, deleted ones included.
    pub items: u64,
    /// Past ones, of all items.
    pub releases: u64,
    pub counters: u64,
    pub alarms: u64,
    /// Global transactions.
    pub sagas: u64,
    /// For locks: those that hold one and those that wait.
    pub lock_requests: u64,
}

impl Counts {
    /// All of them, or nearly.
    pub fn records(&self) -> u64 {
        let Counts { instances, services, sessions, namespaces, replies, members, .. } = self;
        let Counts { items, releases, counters, alarms, sagas, lock_requests, .. } = self;
        let registry = instances + services + sessions + namespaces + replies + members;
        registry + items + releases + counters + alarms + sagas + lock_requests
    }
}

impl State {
    pub fn instance(&self, namespace: &str, service: &str, id: &str) -> Option<Arc<Instance>> {
        self.tables.service(namespace, service)?.instances.get(id).cloned()
    }

    /// Has instances at hand that are read next, with all that an answer repeats of them: for up to
    /// [`limits::LOOK_AHEAD`] at once.
    pub fn look_at_instances(&self, names: &[&InstanceName]) {
        self.tables.look_at_instances(names, usize::MAX);
    }

    /// All instances of a service, by id.
    pub fn instances<'a>(
        &'a self,
        namespace: &str,
        service: &str,
    ) -> impl Iterator<Item = &'a Arc<Instance>> + use<'a> {
        let table = self.tables.service(namespace, service);
        table.into_iter().flat_map(|table| table.instances.values())
    }

    /// The instances of a service for a caller that wants to call it. Whether so few are healthy that
    /// all are returned is decided for the whole service, before zone and metadata choose.
    pub fn discover(&self, namespace: &str, service: &str, filter: &Filter) -> Discovery {
        let Some(table) = self.tables.service(namespace, service) else {
            return Discovery::default();
        };
        let protected = filter.healthy_only && table.is_under_threshold();
        let admits: fn(&Instance) -> bool = match (filter.healthy_only, protected) {
            (false, _) => |_| true,
            (true, true) => Instance::is_visible,
            (true, false) => Instance::is_healthy,
        };
        let instances = table
            .instances
            .values()
            .filter(|instance| admits(instance) && filter.matches(instance))
            .cloned()
            .collect();
        Discovery { instances, protected, service: Some(table.view()) }
    }

    /// None when there is no such service.
    pub fn service_version(&self, namespace: &str, service: &str) -> Option<ServiceVersion> {
        self.tables.service(namespace, service).map(ServiceTable::version)
    }

    pub fn service(&self, namespace: &str, name: &str) -> Option<ServiceView> {
        Some(self.tables.service(namespace, name)?.view())
    }

    /// At most `limit` services of a namespace whose names begin with `prefix`, in order, from behind
    /// the name `after` (empty = from the first), and whether there are more.
    pub fn services(
        &self,
        namespace: &str,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> (Vec<ServiceView>, bool) {
        let Some(namespace) = self.tables.namespaces.get(namespace) else {
            return (Vec::new(), false);
        };
        let from = if prefix > after { Bound::Included(prefix) } else { Bound::Excluded(after) };
        let mut found =
            namespace.services.range(from).take_while(|(name, _)| name.starts_with(prefix));
        let page = found.by_ref().take(limit).map(|(_, table)| table.view()).collect();
        (page, found.next().is_some())
    }

    /// By name; the default one is always there.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<Namespace>> {
        self.tables.namespaces.values().map(|namespace| &namespace.record)
    }

    pub fn has_namespace(&self, name: &str) -> bool {
        self.tables.namespaces.contains_key(name)
    }

    /// None when it is unknown or has ended.
    pub fn session(&self, id: u64) -> Option<&SessionEntry> {
        self.tables.ledger.sessions.get(&id)
    }

    /// The live sessions by id, each with how many instances it keeps alive.
    pub fn sessions(&self) -> impl Iterator<Item = (&Arc<Session>, usize)> {
        self.sessions_after(0)
    }

    /// Those of [`State::sessions`] with a greater id. Ids begin with 1.
    pub fn sessions_after(&self, id: u64) -> impl Iterator<Item = (&Arc<Session>, usize)> {
        let range = (Bound::Excluded(id), Bound::Unbounded);
        let sessions = self.tables.ledger.sessions.range(range);
        sessions.map(|(_, entry)| (&entry.record, entry.instances))
    }

    /// The instances whose session has expired, by namespace, service and id, from behind `after`, each with
    /// the time from which it can be reaped.
    pub fn orphans(
        &self,
        after: Option<&InstanceName>,
    ) -> impl Iterator<Item = (&Arc<Instance>, u64)> {
        let from = after.map_or(Bound::Unbounded, |InstanceName { namespace, service, id }| {
            let (namespace, name) = (namespace.as_str().into(), service.as_str().into());
            Bound::Excluded((Arc::new(ServiceName { namespace, name }), id.as_str().into()))
        });
        self.tables.ledger.orphans.range((from, Bound::Unbounded)).map(|(name, id)| {
            let table = self.tables.service(&name.namespace, &name.name);
            table
                .and_then(|table| {
                    let instance = table.instances.get(id)?;
                    Some((instance, table.reap_at_ms(instance)?))
                })
                .expect("the index of orphans names orphans")
        })
    }

    /// What is remembered of a node; None when it never was a member, or has not been noted yet.
    pub fn member(&self, node: u64) -> Option<&Arc<Member>> {
        self.tables.members.get(node)
    }

    /// Every node that is or was a member, by number.
    pub fn members(&self) -> impl Iterator<Item = &Arc<Member>> {
        self.tables.members.all()
    }

    pub fn counts(&self) -> Counts {
        let ledger = &self.tables.ledger;
        Counts {
            instances: ledger.instances,
            services: ledger.services,
            sessions: ledger.sessions.len() as u64,
            namespaces: self.tables.namespaces.len() as u64,
            replies: ledger.replies,
            members: self.tables.members.all().len() as u64,
            items: ledger.items,
            releases: ledger.releases,
            counters: ledger.counters,
            alarms: ledger.alarms,
            sagas: ledger.saga_timers.sagas,
            lock_requests: ledger.lock_requests,
        }
    }

    /// The records of a scope, in the order of their keys; of services first one's settings, then its
    /// instances.
    pub fn scope<'a>(&'a self, scope: &'a Scope) -> impl Iterator<Item = Record> + 'a {
        self.tables.scope(scope).flatten()
    }

    /// Carries out a transaction that only reads.
    pub fn look(&self, txn: &Txn) -> Result<Reply, Refusal> {
        self.tables.look(txn)
    }
}

impl ServiceTable {
    fn view(&self) -> ServiceView {
        let settings = self.settings.clone().unwrap_or_else(|| {
            Arc::new(Service {
                namespace: self.name.namespace.clone(),
                name: self.name.name.clone(),
                protect_threshold_percent: 0,
                deregister_after_ms: limits::DEFAULT_DEREGISTER_AFTER_MS,
                policy: String::new(),
                policy_parameters: Pairs::default(),
                metadata: Pairs::default(),
                create_revision: 0,
                mod_revision: 0,
                health_check: None,
            })
        });
        let [instances, healthy] = [self.instances.len(), self.healthy].map(|n| n as u64);
        ServiceView { settings, instances, healthy }
    }

    fn is_under_threshold(&self) -> bool {
        let percent = self.settings.as_ref().map_or(0, |s| u64::from(s.protect_threshold_percent));
        self.healthy as u64 * 100 < percent * self.visible as u64
    }

    /// When an instance of this service may be reaped; None unless it is an orphan.
    pub(super) fn reap_at_ms(&self, instance: &Instance) -> Option<u64> {
        let after = self
            .settings
            .as_ref()
            .map_or(limits::DEFAULT_DEREGISTER_AFTER_MS, |settings| settings.deregister_after_ms);
        Some(instance.orphaned_at_ms?.get().saturating_add(after))
    }
}

impl Filter {
    fn matches(&self, instance: &Instance) -> bool {
        (self.zone.is_empty() || *self.zone == *instance.zone)
            && instance.metadata.has_all(&self.metadata)
    }
}
