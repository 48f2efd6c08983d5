//! Waits for memory once instead of many times. With many records each look-up waits for several places
//! in memory, one after the other; of places that are known a processor fetches many at once. So what a
//! number of commands are about is looked at before the first of them is carried out, and instances before the first
//! of them is read: each step for all of them, then the next one. Nothing is decided here, and nothing of it can be
//! seen but the time that it saves.

use std::hint::black_box;

use super::command::{Command, CounterName, InstanceName, ItemName, Op};
use super::memory::Tables;
use super::table::Instance;

/// Bytes that a processor fetches at once.
const CACHE_LINE: usize = 64;

impl Tables {
    pub(super) fn look_ahead<'c>(&self, commands: impl Iterator<Item = &'c Command<&'c str>>) {
        let (mut instances, mut counters, mut items) = (Vec::new(), Vec::new(), Vec::new());
        for command in commands {
            match &command.op {
                Op::Register(registration) => instances.push(&registration.name),
                Op::Deregister { name, .. } => instances.push(name),
                Op::UpdateInstance(patch) => instances.push(&patch.name),
                Op::AddCounter(addition) => counters.push(&addition.name),
                Op::SetCounter(setting) => counters.push(&setting.name),
                Op::PublishConfig(publication) => items.push(&publication.name),
                _ => {}
            }
        }
        self.look_at_instances(&instances, 1);
        self.look_at_counters(&counters);
        self.look_at_items(&items);
    }

    /// With so many cache lines of the metadata of each. There may be as many services as instances, so what leads
    /// through them is looked at as well.
    pub(super) fn look_at_instances<T: AsRef<str>>(
        &self,
        names: &[&InstanceName<T>],
        lines: usize,
    ) {
        let services = names.iter().filter_map(|InstanceName { namespace, service, id }| {
            let services = &self.namespaces.get(namespace.as_ref())?.services;
            Some((services.likely(service.as_ref())?, id.as_ref()))
        });
        let services: Vec<_> = services.collect();
        let tables = || services.iter().filter_map(|(slot, id)| Some((slot.as_ref()?, id)));
        let mut seen = 0;
        for ((name, table), _) in tables() {
            seen ^= first(name) ^ table.healthy;
            seen ^= table.instances.len() ^ table.name.name.len();
        }
        let places: Vec<_> =
            tables().filter_map(|((_, table), id)| table.instances.likely(id)).collect();
        for (id, _) in places.iter().copied().flatten() {
            seen ^= id.len();
        }
        black_box(seen);
        look_at(places.iter().copied().flatten().map(|(_, instance)| &**instance), lines);
    }

    fn look_at_counters(&self, names: &[&CounterName<&str>]) {
        let series = names.iter().filter_map(|CounterName { namespace, name, labels }| {
            Some((self.namespaces.get(*namespace)?.counters.likely(name)?, labels))
        });
        let series: Vec<_> = series.collect();
        let places = series.iter().filter_map(|(series, labels)| {
            let (_, series) = series.as_ref()?;
            series.likely(labels)
        });
        let places: Vec<_> = places.collect();
        let counters = || places.iter().copied().flatten().map(|(_, counter)| counter);
        let mut seen = 0;
        for counter in counters() {
            seen ^= counter.value ^ counter.open.sum ^ counter.modified_at_ms as i64;
        }
        for counter in counters() {
            seen ^= counter.past.first().map_or(0, |slot| slot.sum);
        }
        black_box(seen);
    }

    fn look_at_items(&self, names: &[&ItemName<&str>]) {
        let places = names.iter().filter_map(|ItemName { namespace, group, key }| {
            self.namespaces.get(*namespace)?.config.likely(group, key)
        });
        let places: Vec<_> = places.collect();
        let tables = || places.iter().copied().flatten().map(|(_, table)| table);
        let mut seen = 0;
        for table in tables() {
            seen ^= table.item.as_ref().map_or(0, |item| item.last_version ^ item.modified_at_ms);
            seen ^= table.releases().next().map_or(0, |release| release.version);
        }
        for table in tables() {
            seen ^= table.item.as_ref().map_or(0, |item| item.current.at_ms);
        }
        black_box(seen);
    }
}

/// Has the names of instances at hand.
pub fn look_at_names<'i>(instances: impl Iterator<Item = &'i Instance> + Clone) {
    let mut seen = 0;
    for instance in instances.clone() {
        seen ^= instance.id.len();
    }
    for instance in instances {
        seen ^= first(&instance.id);
    }
    black_box(seen);
}

/// Has all that instances consist of at hand.
pub fn look_at_whole<'i>(instances: impl Iterator<Item = &'i Instance> + Clone) {
    look_at(instances, usize::MAX);
}

/// Has all that instances consist of at hand, but for the end of long metadata.
pub fn look_at_all<'i>(instances: impl Iterator<Item = &'i Instance> + Clone) {
    look_at(instances, 1);
}

fn look_at<'i>(instances: impl Iterator<Item = &'i Instance> + Clone, lines: usize) {
    let mut seen = 0;
    for instance in instances.clone() {
        seen ^= instance.weight as usize ^ instance.modified_at_ms as usize;
        seen ^= instance.metadata.as_packed().len() ^ instance.zone.len() ^ instance.id.len();
    }
    for instance in instances {
        seen ^= first(&instance.id) ^ first(&instance.zone) ^ first(&instance.reason);
        seen ^= first(instance.endpoints.as_packed());
        let metadata = instance.metadata.as_packed().as_bytes();
        for byte in metadata.iter().step_by(CACHE_LINE).take(lines) {
            seen ^= usize::from(*byte);
        }
    }
    black_box(seen);
}

fn first(text: &str) -> usize {
    usize::from(text.as_bytes().first().copied().unwrap_or_default())
}
