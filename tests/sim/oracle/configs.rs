//! The versions of an item only grow. A publication over an expected version follows that version, so that
//! nothing is overwritten which its author has not seen; a refused one is told what there was.

use std::collections::BTreeMap;

use quorate::state::{Event, ItemName, Key, Publication, Record};

use super::Oracle;
use super::history::History;

#[derive(Debug, Default)]
pub struct Configs {
    /// What was acknowledged, by the version that it was to replace: nobody else has replaced that one.
    replaced: BTreeMap<(Key, u64), String>,
}

pub fn item_key(name: &ItemName) -> Key {
    Key::Config {
        namespace: name.namespace.as_str().into(),
        group: name.group.as_str().into(),
        key: name.key.as_str().into(),
    }
}

impl History {
    /// 0 before it was published.
    pub fn version_at(&self, item: &Key, revision: u64) -> u64 {
        match self.at(item, revision) {
            Some(Record::Config(item)) => item.version(),
            Some(_) | None => 0,
        }
    }
}

impl Oracle {
    /// Something was applied for the first time.
    pub fn versions_grow(&self, event: &Event) -> Result<(), String> {
        for change in &event.changes {
            let Key::Config { .. } = &change.key else { continue };
            let before = self.history.version_at(&change.key, event.revision - 1);
            let after = self.history.version_at(&change.key, event.revision);
            if after != before + 1 {
                return Err(format!(
                    "version {after} of {:?} follows {before} at revision {}",
                    change.key, event.revision
                ));
            }
        }
        Ok(())
    }

    /// A publication was acknowledged.
    pub fn was_published(
        &mut self,
        publication: &Publication,
        revision: u64,
        version: u64,
    ) -> Result<(), String> {
        self.counts.publications += 1;
        let key = item_key(&publication.name);
        let found = match self.history.at(&key, revision) {
            Some(Record::Config(item)) => (item.version(), item.current.author.as_str()),
            Some(_) | None => (0, ""),
        };
        if found != (version, publication.author.as_str()) {
            return Err(format!("its item was at {found:?}"));
        }
        let Some(expected) = publication.expected_version else { return Ok(()) };
        let before = self.history.version_at(&key, revision - 1);
        if before != expected {
            return Err(format!("it has overwritten version {before}"));
        }
        let author = publication.author.clone();
        match self.configs.replaced.insert((key, expected), author) {
            Some(other) => Err(format!("{other} has replaced version {expected} too")),
            None => Ok(()),
        }
    }
}
