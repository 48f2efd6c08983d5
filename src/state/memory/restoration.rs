//! Tables that are put together from all records of a state. There may be a million instances: what is ordered is not
//! searched for each, and the indexes are made when all of them are there.

use std::sync::Arc;

use super::{Held, ServiceName, Tables};
use crate::state::table::{Instance, Key, Record};

/// Takes the records in the order of their keys.
#[derive(Debug, Default)]
pub struct Restoration {
    tables: Tables,
    /// The service whose instances come.
    service: Option<Arc<ServiceName>>,
    /// Those that have come of it.
    instances: Vec<Arc<Instance>>,
    /// Those of all services that a session holds.
    held: Vec<Held>,
}

impl Restoration {
    /// Panics when the record contradicts others.
    pub fn put(&mut self, key: Key, record: Record) {
        match record {
            Record::Instance(instance) => {
                assert_eq!(instance.key(), key, "the key of an instance");
                self.put_instance(instance);
            }
            record => {
                self.place_instances();
                self.place_held();
                self.tables.restore(key, record);
            }
        }
    }

    /// After the last record.
    pub fn finish(mut self) -> Tables {
        self.place_instances();
        self.place_held();
        let ledger = &self.tables.ledger;
        let held: usize = ledger.sessions.values().map(|entry| entry.instances).sum();
        assert_eq!(held, ledger.held.len(), "instances of sessions, and instances held");
        self.tables
    }

    fn put_instance(&mut self, mut instance: Arc<Instance>) {
        let is_its = |service: &&Arc<ServiceName>| {
            service.name == instance.service && service.namespace == instance.namespace
        };
        let service = match self.service.as_ref().filter(is_its) {
            Some(service) => service.clone(),
            None => self.begin_service(&instance),
        };
        service.share(&mut instance);
        self.held.extend(Held::of(&service, &instance));
        if instance.orphaned_at_ms.is_some() {
            self.tables.ledger.orphans.insert((service, instance.id.clone()));
        }
        self.instances.push(instance);
    }

    fn begin_service(&mut self, first: &Instance) -> Arc<ServiceName> {
        self.place_instances();
        let Tables { namespaces, ledger, .. } = &mut self.tables;
        let namespace =
            namespaces.get_mut(&*first.namespace).expect("it comes before what is in it");
        let service = &namespace.service_mut(ledger, &first.service).name;
        self.service.insert(service.clone()).clone()
    }

    fn place_instances(&mut self) {
        let Some(service) = self.service.take() else { return };
        let Tables { namespaces, ledger, .. } = &mut self.tables;
        let namespace = namespaces.get_mut(&*service.namespace).expect("its service has begun");
        let table = namespace.service_mut(ledger, &service.name);
        let instances = std::mem::take(&mut self.instances);
        for instance in &instances {
            table.count(None, Some(instance));
        }
        ledger.instances += instances.len() as u64;
        table.instances.append(instances.into_iter().map(|it| (it.id.clone(), it)));
    }

    /// Before the first session: it counts what it holds.
    fn place_held(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.tables.ledger.held.append(&mut held.into_iter().collect());
    }
}
