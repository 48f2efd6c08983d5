//! Configuration items of one namespace, with their past releases, schemas and reports.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use super::super::catalog::Catalog;
use super::super::journal::Written;
use super::super::scope::Match;
use super::super::table::{ConfigItem, Key, Record, Release, Report, Schema};
use super::super::versions::Versions;
use super::{ItemName, Ledger};

#[derive(Debug)]
pub(in crate::state) struct ConfigTable {
    namespace: Arc<str>,
    groups: Catalog<Group>,
    /// Of all groups.
    items: usize,
}

#[derive(Debug)]
struct Group {
    name: Arc<str>,
    items: Catalog<ItemTable>,
}

/// Invariant: has an item or a schema; past releases and reports only with an item.
#[derive(Debug)]
pub(in crate::state) struct ItemTable {
    name: Arc<ItemName>,
    pub item: Option<Arc<ConfigItem>>,
    /// What was current or gray.
    releases: Versions<Arc<Release>>,
    /// Bytes of their contents.
    release_bytes: usize,
    pub schema: Option<Arc<Schema>>,
    /// By session.
    reports: BTreeMap<u64, Arc<Report>>,
    /// The sessions of those that are of lost clients, by client: one of each.
    lost: BTreeMap<String, u64>,
}

impl ConfigTable {
    pub fn new(namespace: Arc<str>) -> ConfigTable {
        ConfigTable { namespace, groups: Catalog::default(), items: 0 }
    }

    /// Names that have an item, be it deleted, or a schema.
    pub fn len(&self) -> usize {
        self.items
    }

    pub fn get(&self, group: &str, key: &str) -> Option<&ItemTable> {
        self.groups.get(group)?.items.get(key)
    }

    /// As [`Catalog::likely`].
    pub fn likely(&self, group: &str, key: &str) -> Option<&Option<(Arc<str>, ItemTable)>> {
        self.groups.get(group)?.items.likely(key)
    }

    pub fn item(&self, group: &str, key: &str) -> Option<&Arc<ConfigItem>> {
        self.get(group, key)?.item.as_ref()
    }

    pub fn item_mut(&mut self, group: &str, key: &str) -> Option<&mut ItemTable> {
        self.groups.get_mut(group)?.items.get_mut(key)
    }

    /// Those of `of`, or of all groups when it is empty, whose keys begin with `prefix`: by group and key, from
    /// behind the names given first. Looks at no others.
    pub fn after<'a>(
        &'a self,
        (group, key): (&'a str, &'a str),
        of: &'a str,
        prefix: &'a str,
    ) -> impl Iterator<Item = &'a ItemTable> {
        let groups = self.groups.range(Bound::Included(group));
        let groups = groups.take_while(move |(name, _)| of.is_empty() || ***name == *of);
        groups.flat_map(move |(name, table)| {
            let from = match **name == *group && key >= prefix {
                true => Bound::Excluded(key),
                false => Bound::Included(prefix),
            };
            let within = table.items.range(from);
            within.take_while(move |(key, _)| key.starts_with(prefix)).map(|(_, item)| item)
        })
    }

    /// Items that are not deleted, by group and key. None stands for what was looked at besides.
    pub fn scope<'a, T: AsRef<str>>(
        &'a self,
        group: &'a Match<T>,
        key: &'a Match<T>,
    ) -> impl Iterator<Item = Option<Arc<ConfigItem>>> + 'a {
        let groups = self.groups.range(group.from());
        let groups = groups.take_while(|(name, _)| group.matches(name));
        groups.flat_map(|(_, table)| {
            let items = table.items.range(key.from());
            let items = items.take_while(|(name, _)| key.matches(name));
            let shown = |item: &Arc<ConfigItem>| item.version() > 0;
            let items = items.map(move |(_, table)| table.item.clone().filter(shown));
            std::iter::once(None).chain(items)
        })
    }

    /// The names under which an item is or will be kept.
    pub fn names(&self, group: &str, key: &str) -> Arc<ItemName> {
        match self.get(group, key) {
            Some(table) => table.name.clone(),
            None => {
                let group = self.groups.get(group).map_or_else(|| group.into(), |g| g.name.clone());
                let namespace = self.namespace.clone();
                Arc::new(ItemName { namespace, group, key: key.into() })
            }
        }
    }

    /// The item has no releases and no reports any more.
    pub fn remove_item(&mut self, ledger: &mut Ledger, group: &str, key: &str) -> Option<Written> {
        let table = self.item_mut(group, key)?;
        let gone = table.item.take()?;
        let left = (table.releases.len(), table.reports.len());
        assert_eq!(left, (0, 0), "releases and reports of {:?}", table.name);
        ledger.items -= 1;
        ledger.gated.remove(&table.name);
        self.prune(group, key);
        Some(Written::removed(gone.key(), Record::Config(gone)))
    }

    pub fn put_schema(&mut self, record: Schema) -> Written {
        let record = Arc::new(record);
        let table = self.table_mut(record.group.clone(), record.key.clone());
        let before = table.schema.replace(record.clone());
        let key = table.schema_key();
        Written::put(key, Record::Schema(record), before.map(Record::Schema))
    }

    pub fn remove_schema(&mut self, group: &str, key: &str) -> Option<Written> {
        let table = self.item_mut(group, key)?;
        let gone = table.schema.take()?;
        let record_key = table.schema_key();
        self.prune(group, key);
        Some(Written::removed(record_key, Record::Schema(gone)))
    }

    pub fn item_records(&self) -> impl Iterator<Item = (Key, Record)> {
        let items = self.all().filter_map(|table| table.item.as_ref());
        items.map(|item| (item.key(), Record::Config(item.clone())))
    }

    pub fn release_records(&self) -> impl Iterator<Item = (Key, Record)> {
        self.all().flat_map(|table| {
            let all = table.releases.iter();
            all.map(|(version, release)| {
                (table.release_key(version), Record::Release(release.clone()))
            })
        })
    }

    pub fn schema_records(&self) -> impl Iterator<Item = (Key, Record)> {
        self.all().filter_map(|table| {
            let schema = table.schema.as_ref()?;
            Some((table.schema_key(), Record::Schema(schema.clone())))
        })
    }

    pub fn report_records(&self) -> impl Iterator<Item = (Key, Record)> {
        self.all().flat_map(|table| {
            let all = table.reports.iter();
            all.map(|(session, report)| {
                (table.report_key(*session), Record::Report(report.clone()))
            })
        })
    }

    fn all(&self) -> impl Iterator<Item = &ItemTable> {
        self.groups.values().flat_map(|group| group.items.values())
    }

    /// The table, which comes into being empty and must get an item or a schema before the command is
    /// over.
    pub fn table_mut<N: AsRef<str> + Into<Arc<str>>>(
        &mut self,
        group: N,
        key: N,
    ) -> &mut ItemTable {
        let ConfigTable { namespace, groups, items } = self;
        let group = groups.get_or_insert_with(group, |name| Group {
            name: name.clone(),
            items: Catalog::default(),
        });
        let name = &group.name;
        group.items.get_or_insert_with(key, |key| {
            *items += 1;
            ItemTable {
                name: Arc::new(ItemName {
                    namespace: namespace.clone(),
                    group: name.clone(),
                    key: key.clone(),
                }),
                item: None,
                releases: Versions::default(),
                release_bytes: 0,
                schema: None,
                reports: BTreeMap::new(),
                lost: BTreeMap::new(),
            }
        })
    }

    fn prune(&mut self, group: &str, key: &str) {
        let Some(table) = self.groups.get_mut(group) else { return };
        if table.items.get(key).is_some_and(|it| it.item.is_none() && it.schema.is_none()) {
            table.items.remove(key);
            self.items -= 1;
        }
        if table.items.is_empty() {
            self.groups.remove(group);
        }
    }
}

impl ItemTable {
    pub fn name(&self) -> &Arc<ItemName> {
        &self.name
    }

    /// Past ones, oldest first.
    pub fn releases(&self) -> impl DoubleEndedIterator<Item = &Arc<Release>> + ExactSizeIterator {
        self.releases.iter().map(|(_, release)| release)
    }

    pub fn release(&self, version: u64) -> Option<&Arc<Release>> {
        self.releases.get(version)
    }

    pub fn release_bytes(&self) -> usize {
        self.release_bytes
    }

    pub fn reports(&self) -> impl ExactSizeIterator<Item = &Arc<Report>> {
        self.reports.values()
    }

    pub fn report(&self, session: u64) -> Option<&Arc<Report>> {
        self.reports.get(&session)
    }

    /// The report that a client left when it was lost.
    pub fn lost_report(&self, client: &str) -> Option<&Arc<Report>> {
        self.reports.get(self.lost.get(client)?)
    }

    /// Clients that were lost.
    pub fn lost(&self) -> usize {
        self.lost.len()
    }

    /// Its releases and reports stay.
    pub fn put_item(&mut self, ledger: &mut Ledger, record: ConfigItem) -> Written {
        let record = Arc::new(record);
        let before = self.item.replace(record.clone());
        ledger.items += u64::from(before.is_none());
        if record.gray.iter().any(|gray| gray.gate.is_some()) {
            ledger.gated.insert(self.name.clone());
        } else {
            ledger.gated.remove(&self.name);
        }
        Written::put(record.key(), Record::Config(record), before.map(Record::Config))
    }

    pub fn put_release(&mut self, ledger: &mut Ledger, record: Arc<Release>) -> Written {
        let version = record.version;
        self.release_bytes += record.len();
        let before = self.releases.put(version, record.clone());
        match &before {
            Some(before) => self.release_bytes -= before.len(),
            None => ledger.releases += 1,
        }
        let key = self.release_key(version);
        Written::put(key, Record::Release(record), before.map(Record::Release))
    }

    pub fn remove_release(&mut self, ledger: &mut Ledger, version: u64) -> Option<Written> {
        let gone = self.releases.remove(version)?;
        self.release_bytes -= gone.len();
        ledger.releases -= 1;
        Some(Written::removed(self.release_key(version), Record::Release(gone)))
    }

    /// A client that is lost must not have left a report before.
    pub fn put_report(&mut self, ledger: &mut Ledger, record: Report) -> Written {
        let record = Arc::new(record);
        let place = (record.session, self.name.clone());
        if record.lost_at_ms.is_none() {
            ledger.reported.insert(place);
        } else {
            ledger.reported.remove(&place);
            let older = self.lost.insert(record.client.clone(), record.session);
            assert_eq!(older, None, "a report of {} that was lost before", record.client);
        }
        let before = self.reports.insert(record.session, record.clone());
        let key = self.report_key(record.session);
        Written::put(key, Record::Report(record), before.map(Record::Report))
    }

    pub fn remove_report(&mut self, ledger: &mut Ledger, session: u64) -> Option<Written> {
        let gone = self.reports.remove(&session)?;
        ledger.reported.remove(&(session, self.name.clone()));
        if gone.lost_at_ms.is_some() {
            self.lost.remove(&gone.client);
        }
        Some(Written::removed(self.report_key(session), Record::Report(gone)))
    }

    fn release_key(&self, version: u64) -> Key {
        let ItemName { namespace, group, key } = &*self.name;
        let (namespace, group, key) = (namespace.clone(), group.clone(), key.clone());
        Key::Release { namespace, group, key, version }
    }

    fn schema_key(&self) -> Key {
        let ItemName { namespace, group, key } = &*self.name;
        Key::Schema { namespace: namespace.clone(), group: group.clone(), key: key.clone() }
    }

    fn report_key(&self, session: u64) -> Key {
        let ItemName { namespace, group, key } = &*self.name;
        let (namespace, group, key) = (namespace.clone(), group.clone(), key.clone());
        Key::Report { namespace, group, key, session }
    }
}
