//! Waits for memory once instead of many times. With many records each look-up waits for several places
//! in memory, one after the other; of places that are known a processor fetches many at once. So what a
//! number of commands are about is looked at before the first of them is carried out: each step for all of
//! them, then the next one. Nothing is decided here, and nothing of it can be seen but the time that it saves.

use std::hint::black_box;

use super::command::{Command, InstanceName, Op};
use super::memory::Tables;
use super::table::Instance;

/// So many are looked at at once.
pub const LOOK_AHEAD: usize = 32;

impl Tables {
    pub(super) fn look_ahead<'c>(&self, commands: impl Iterator<Item = &'c Command<&'c str>>) {
        let tables: Vec<_> = commands
            .filter_map(|command| {
                let InstanceName { namespace, service, id } = instance_of(&command.op)?;
                Some((self.service(namespace, service)?, *id))
            })
            .collect();
        let places: Vec<_> =
            tables.iter().filter_map(|(table, id)| table.instances.likely(id)).collect();
        look_at_all(places.iter().copied().flatten().map(|(_, instance)| &**instance));
    }
}

/// The instance that a command writes, when it is one.
fn instance_of<T>(op: &Op<T>) -> Option<&InstanceName<T>> {
    match op {
        Op::Register(registration) => Some(&registration.name),
        Op::Deregister { name, .. } => Some(name),
        Op::UpdateInstance(patch) => Some(&patch.name),
        _ => None,
    }
}

/// Has all that instances consist of at hand.
pub fn look_at_all<'i>(instances: impl Iterator<Item = &'i Instance> + Clone) {
    let mut seen = 0;
    for instance in instances.clone() {
        seen ^= instance.weight as usize ^ instance.modified_at_ms as usize;
        seen ^= instance.metadata.as_packed().len() ^ instance.zone.len() ^ instance.id.len();
    }
    let first = |text: &str| usize::from(text.as_bytes().first().copied().unwrap_or_default());
    for instance in instances {
        seen ^= first(&instance.id);
        seen ^= first(instance.endpoints.as_packed()) ^ first(instance.metadata.as_packed());
    }
    black_box(seen);
}
