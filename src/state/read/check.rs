//! Which instances are to be checked.

use std::ops::Bound;
use std::sync::Arc;

use super::super::State;
use super::super::table::{Instance, Service};

impl State {
    /// The services that ask for health checks, by namespace and name.
    pub fn checked_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.tables.ledger.checked.iter().map(|name| {
            let table = self.tables.service(&name.namespace, &name.name);
            let settings = table.and_then(|table| table.settings.as_ref());
            settings.expect("the index of checked services names services with a check")
        })
    }

    /// Those of the next `limit` instances of a service, by id from behind `after` (empty = from the
    /// first), that a health check may be about, and the id of the last one that was looked at; None
    /// when there are no more.
    pub fn checkable_instances(
        &self,
        namespace: &str,
        service: &str,
        after: &str,
        limit: usize,
    ) -> (Vec<Arc<Instance>>, Option<Arc<str>>) {
        let Some(table) = self.tables.service(namespace, service) else {
            return (Vec::new(), None);
        };
        let mut rest = table.instances.range(Bound::Excluded(after));
        let page: Vec<&Arc<Instance>> =
            rest.by_ref().take(limit).map(|(_, instance)| instance).collect();
        let last = page.last().map(|instance| instance.id.clone());
        let more = rest.next().is_some();
        let found = page.into_iter().filter(|instance| instance.is_checkable()).cloned().collect();
        (found, last.filter(|_| more))
    }
}
