//! What health checks say of instances. Which node checks which instance, and how often it must fail, is
//! decided outside; the state takes a verdict only of the instance that was checked, by the settings
//! that it was checked by: whatever has changed since, an operator's word among it, stands.

use std::sync::Arc;

use super::At;
use super::command::{HealthVerdict, InstanceName, Refusal, Reply};
use super::journal::Journal;
use super::memory::Tables;
use super::table::Instance;

impl Tables {
    /// Ignores what does not apply any more, as [`Tables::reap`] does.
    pub fn judge_health(
        &mut self,
        verdicts: &[HealthVerdict<&str>],
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let mut changed = 0;
        // Instances of one machine fall together, and share their reason.
        let mut last: Arc<str> = Arc::default();
        for verdict in verdicts {
            let InstanceName { namespace, service, id } = &verdict.name;
            let space = self.namespaces.get_mut(*namespace);
            let Some(table) = space.and_then(|space| space.services.get_mut(service)) else {
                continue;
            };
            let as_checked = table.settings.as_ref().is_some_and(|settings| {
                settings.health_check.is_some()
                    && settings.mod_revision == verdict.settings_revision
            });
            let Some(old) = table.instances.get(id).filter(|old| {
                as_checked
                    && old.is_checkable()
                    && old.mod_revision == verdict.mod_revision
                    && old.health != verdict.health
            }) else {
                continue;
            };
            let mut instance = Instance::clone(old);
            instance.set_health(verdict.health, at);
            if *last != *verdict.reason {
                last = verdict.reason.into();
            }
            instance.stamp(last.clone(), at);
            journal.push(table.put_instance(&mut self.ledger, instance));
            changed += 1;
        }
        Ok(Reply::HealthJudged { changed })
    }
}
