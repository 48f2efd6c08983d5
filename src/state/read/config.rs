//! Reads of the configuration center, and which release a client gets.

use std::sync::Arc;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::super::State;
use super::super::command::ItemName;
use super::super::config::Verdict;
use super::super::memory::ItemTable;
use super::super::table::{ConfigItem, Gray, Pairs, Picks, Release, Report, Schema};

/// Who asks for configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigClient {
    pub id: String,
    pub labels: Pairs,
}

/// Which items a listing shows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFilter {
    /// Empty = all groups.
    pub group: String,
    /// How keys begin.
    pub prefix: String,
    /// All these must be there.
    pub labels: Pairs,
    /// Also items that are deleted.
    pub deleted: bool,
}

/// An item with everything known of it.
#[derive(Debug, Clone)]
pub struct ConfigHistory {
    pub item: Arc<ConfigItem>,
    /// Past ones, the newest first.
    pub releases: Vec<Arc<Release>>,
}

impl State {
    /// Also an item that is deleted.
    pub fn config_item(&self, namespace: &str, group: &str, key: &str) -> Option<&Arc<ConfigItem>> {
        self.config_table(namespace, group, key)?.item.as_ref()
    }

    /// At most `limit` items, by group and key, from behind the names `after`, and whether there are
    /// more.
    pub fn config_items(
        &self,
        namespace: &str,
        filter: &ConfigFilter,
        after: (&str, &str),
        limit: usize,
    ) -> (Vec<Arc<ConfigItem>>, bool) {
        let Some(space) = self.tables.namespaces.get(namespace) else {
            return (Vec::new(), false);
        };
        let begin = (filter.group.as_str(), "");
        let mut found = space
            .config
            .after(after.max(begin), &filter.group, &filter.prefix)
            .filter_map(|table| table.item.as_ref())
            .filter(|item| filter.deleted || item.version() > 0)
            .filter(|item| item.labels.has_all(&filter.labels));
        let page = found.by_ref().take(limit).cloned().collect();
        (page, found.next().is_some())
    }

    pub fn config_history(&self, namespace: &str, group: &str, key: &str) -> Option<ConfigHistory> {
        let table = self.config_table(namespace, group, key)?;
        let item = table.item.clone()?;
        Some(ConfigHistory { item, releases: table.releases().rev().cloned().collect() })
    }

    /// A release of an item, be it current, gray or past.
    pub fn config_release(
        &self,
        namespace: &str,
        group: &str,
        key: &str,
        version: u64,
    ) -> Option<&Arc<Release>> {
        let table = self.config_table(namespace, group, key)?;
        let item = table.item.as_ref()?;
        let gray = item.gray.iter().map(|gray| &gray.release);
        let now = [&item.current].into_iter().chain(gray);
        now.chain(table.release(version)).find(|release| release.version == version)
    }

    pub fn schema(&self, namespace: &str, group: &str, key: &str) -> Option<&Arc<Schema>> {
        self.config_table(namespace, group, key)?.schema.as_ref()
    }

    /// What the clients of an item say that they run, by session.
    pub fn config_reports(
        &self,
        namespace: &str,
        group: &str,
        key: &str,
    ) -> impl Iterator<Item = &Arc<Report>> {
        self.config_table(namespace, group, key).into_iter().flat_map(ItemTable::reports)
    }

    /// The items with a gray release that has a gate.
    pub fn gated_items(&self) -> Vec<ItemName> {
        let gated = self.tables.ledger.gated.iter();
        let names = gated.map(|name| ItemName {
            namespace: name.namespace.to_string(),
            group: name.group.to_string(),
            key: name.key.to_string(),
        });
        names.collect()
    }

    /// The gray releases of an item whose gates ask for something at a time, each with what it is. Looks through
    /// counters or reports, so those who ask for all items ask for one after the other.
    pub fn due_gates(&self, name: &ItemName, now_ms: u64) -> Vec<(Arc<Gray>, Verdict)> {
        let table = self.config_table(&name.namespace, &name.group, &name.key);
        let item = table.and_then(|table| Some((table, table.item.as_ref()?)));
        let Some((table, item)) = item else { return Vec::new() };
        let due = item
            .gray
            .iter()
            .filter_map(|gray| Some((gray.clone(), self.tables.judge(table, gray, now_ms)?)));
        due.collect()
    }

    fn config_table(&self, namespace: &str, group: &str, key: &str) -> Option<&ItemTable> {
        self.tables.namespaces.get(namespace)?.config.get(group, key)
    }
}

impl ConfigItem {
    /// The gray release that a client gets; None = the current one.
    pub fn pick(&self, client: &ConfigClient) -> Option<&Arc<Gray>> {
        self.gray.iter().find(|gray| match &gray.picks {
            Picks::Labels(labels) => client.labels.has_all(labels),
            Picks::Clients(clients) => clients.contains(&client.id),
            Picks::Share { basis_points } => self.place(client) < u64::from(*basis_points),
        })
    }

    /// Where a client stands among all of them: 0..10 000. Another place for each item, always the same
    /// for one, so that a greater share only adds clients.
    fn place(&self, client: &ConfigClient) -> u64 {
        let names = [&*self.namespace, &*self.group, &*self.key].join("\0");
        xxh3_64_with_seed(client.id.as_bytes(), xxh3_64(names.as_bytes())) % 10_000
    }
}
