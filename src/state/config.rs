//! The configuration center: what each command may write, and when it is refused.
//!
//! An item has a current release, which everybody gets, and gray releases, each of which some get
//! instead, by its rule. What stops being current or gray goes into the history; what it says is never
//! changed again, only how it ended as a gray release is noted with it. Every release has a version of
//! its own, and versions of an item only grow: a rollback or a promotion is a new release with the
//! content of an old one.
//!
//! Invariant: whatever is current or gray was checked against the schema that the item had when it was
//! published, and the current release against the one that it has now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bincode::Options as _;

use super::At;
use super::command::{
    ConfigDeletion, ConfigRollback, GrayDecision, GrayTerms, ItemName, Kind, Publication, Refusal,
    Reply, Running, SchemaPut, invalid,
};
use super::journal::Journal;
use super::memory::{ItemTable, Ledger, NamespaceTable, Tables};
use super::registry::{compare, existing};
use super::table::{
    Class, ConfigItem, Content, Ending, Gate, Gray, GrayEnd, Health, Measure, Origin, Pairs,
    Release, Report, Schema, coding,
};
use crate::limits;

/// What the gate of a gray release asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// To everybody; otherwise to nobody.
    pub promote: bool,
    pub why: String,
}

impl Tables {
    pub fn publish(
        &mut self,
        publication: Publication<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let Publication { name, content, labels, keep, author, comment, .. } = publication;
        let space = existing(self.namespaces.get_mut(name.namespace), name.namespace)?;
        let table = space.config.get(name.group, name.key);
        let old = table.and_then(|table| table.item.clone());
        compare(publication.expected_version, old.as_ref().map_or(0, |item| item.version()))?;
        check_schema(table, publication.schema)?;
        if table.is_none() && space.config.len() >= limits::CONFIG_ITEMS {
            return Err(limit("config items of a namespace", limits::CONFIG_ITEMS));
        }
        let note = Note { author, comment };
        if let Some(terms) = publication.gray {
            let Some(item) = old.filter(|item| item.version() > 0) else {
                return Err(not_found(Kind::Config, &name));
            };
            if labels.is_some() || keep.is_some() {
                let allowed = "none with a gray release: they belong to the item";
                return Err(invalid("labels", "labels or keep", allowed));
            }
            return publish_gray(
                space,
                &mut self.ledger,
                &item,
                (terms, content),
                note,
                at,
                journal,
            );
        }
        if let Some(item) = &old
            && item.current.content.as_ref() == Some(&content)
            && labels.as_ref().is_none_or(|labels| *labels == item.labels)
            && keep.is_none_or(|keep| keep == item.keep)
        {
            return Ok(Reply::ConfigPublished { version: item.version(), changed: false });
        }
        let release = |version| note.release(version, Origin::Published, Some(content), at);
        let item = match old {
            Some(old) => {
                let lives = old.version() > 0;
                ConfigItem {
                    current: Arc::new(release(old.last_version + 1)),
                    labels: labels.unwrap_or_else(|| old.labels.clone()),
                    keep: keep.unwrap_or(old.keep),
                    create_revision: if lives { old.create_revision } else { at.revision },
                    created_at_ms: if lives { old.created_at_ms } else { at.now_ms },
                    ..ConfigItem::clone(&old)
                }
            }
            None => {
                let names = space.config.names(name.group, name.key);
                ConfigItem {
                    namespace: names.namespace.clone(),
                    group: names.group.clone(),
                    key: names.key.clone(),
                    current: Arc::new(release(1)),
                    gray: Vec::new(),
                    labels: labels.unwrap_or_default(),
                    keep: keep.unwrap_or(limits::DEFAULT_CONFIG_KEEP),
                    last_version: 1,
                    create_revision: at.revision,
                    mod_revision: at.revision,
                    created_at_ms: at.now_ms,
                    modified_at_ms: at.now_ms,
                }
            }
        };
        let version = item.current.version;
        replace(space, &mut self.ledger, item, Vec::new(), at, journal);
        Ok(Reply::ConfigPublished { version, changed: true })
    }

    pub fn rollback(
        &mut self,
        rollback: ConfigRollback<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let ConfigRollback { name, version, expected_version, author, comment, schema } = rollback;
        let (table, old) = self.item(&name)?;
        compare(expected_version, old.version())?;
        check_schema(Some(table), schema)?;
        let release = match table.release(version) {
            Some(release) => release,
            None if old.current.version == version => &old.current,
            None => {
                let name = format!("{} version {version}", path(&name));
                return Err(Refusal::NotFound { kind: Kind::Release, name });
            }
        };
        let Some(content) = &release.content else {
            let allowed = "a version with content; this one is a deletion";
            return Err(invalid("version", version.to_string(), allowed));
        };
        if old.current.content.as_ref() == Some(content) {
            return Ok(Reply::ConfigPublished { version: old.version(), changed: false });
        }
        let note = Note { author, comment };
        let origin = Origin::RolledBack { version };
        let next = old.last_version + 1;
        let current = note.release(next, origin, Some(content.clone()), at);
        let mut item = ConfigItem { current: Arc::new(current), ..ConfigItem::clone(&old) };
        if old.version() == 0 {
            // As after any other publication of what was deleted.
            item.create_revision = at.revision;
            item.created_at_ms = at.now_ms;
        }
        let (space, ledger) = self.space(&name);
        replace(space, ledger, item, Vec::new(), at, journal);
        Ok(Reply::ConfigPublished { version: next, changed: true })
    }

    pub fn delete_config(
        &mut self,
        deletion: ConfigDeletion<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let ConfigDeletion { name, expected_version, author, comment, purge } = deletion;
        let old = self
            .namespaces
            .get(name.namespace)
            .and_then(|space| space.config.item(name.group, name.key))
            .cloned();
        compare(expected_version, old.as_ref().map_or(0, |item| item.version()))?;
        let Some(old) = old else {
            return Ok(Reply::ConfigDeleted { removed: false, version: 0 });
        };
        if purge {
            self.purge(&name, at, journal);
            return Ok(Reply::ConfigDeleted { removed: true, version: 0 });
        }
        if old.version() == 0 {
            return Ok(Reply::ConfigDeleted { removed: false, version: old.current.version });
        }
        let note = Note { author, comment };
        let version = old.last_version + 1;
        let ended = old.gray.iter().map(|gray| {
            gray.ended(Ending::Aborted, format!("the item was deleted by {author:?}"), at)
        });
        let item = ConfigItem {
            current: Arc::new(note.release(version, Origin::Deleted, None, at)),
            gray: Vec::new(),
            ..ConfigItem::clone(&old)
        };
        let ended = ended.collect();
        let (space, ledger) = self.space(&name);
        replace(space, ledger, item, ended, at, journal);
        // The item is in no scope any more.
        journal.extend(self.note_removal(name.namespace, Class::Config, at.revision));
        Ok(Reply::ConfigDeleted { removed: true, version })
    }

    pub fn put_schema(
        &mut self,
        schema: SchemaPut<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let SchemaPut { name, text, checked_revision } = schema;
        let space = existing(self.namespaces.get_mut(name.namespace), name.namespace)?;
        let table = space.config.get(name.group, name.key);
        let item = table.and_then(|table| table.item.as_ref());
        compare(Some(checked_revision), item.map_or(0, |item| item.current.revision))?;
        let old = table.and_then(|table| table.schema.clone());
        if let Some(old) = &old
            && old.text == text
        {
            return Ok(Reply::SchemaPut { changed: false, mod_revision: old.mod_revision });
        }
        if table.is_none() && space.config.len() >= limits::CONFIG_ITEMS {
            return Err(limit("config items of a namespace", limits::CONFIG_ITEMS));
        }
        let names = space.config.names(name.group, name.key);
        journal.push(space.config.put_schema(Schema {
            namespace: names.namespace.clone(),
            group: names.group.clone(),
            key: names.key.clone(),
            text: text.into(),
            create_revision: old.map_or(at.revision, |old| old.create_revision),
            mod_revision: at.revision,
        }));
        Ok(Reply::SchemaPut { changed: true, mod_revision: at.revision })
    }

    pub fn delete_schema(
        &mut self,
        name: &ItemName<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let gone = self
            .namespaces
            .get_mut(name.namespace)
            .and_then(|space| space.config.remove_schema(name.group, name.key));
        let removed = gone.is_some();
        if removed {
            journal.extend(gone);
            journal.extend(self.note_removal(name.namespace, Class::Config, at.revision));
        }
        Ok(Reply::SchemaDeleted { removed })
    }

    pub fn end_gray(
        &mut self,
        decision: GrayDecision<&str>,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let GrayDecision { name, rule, version, promote, author, comment, schema } = decision;
        let (table, item) = self.item(&name)?;
        let Some(gray) = item.gray(rule).cloned() else {
            let name = format!("{} rule {rule}", path(&name));
            return Err(Refusal::NotFound { kind: Kind::Gray, name });
        };
        compare(version, gray.release.version)?;
        if promote {
            check_schema(Some(table), schema)?;
        }
        let note = Note { author, comment };
        let version = self.end(&name, &item, &gray, promote, note, None, at, journal);
        Ok(Reply::GrayEnded { version })
    }

    /// Does nothing when the gate does not ask for it any more.
    pub fn judge_gray(
        &mut self,
        name: &ItemName<&str>,
        rule: &str,
        schema: u64,
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        let nothing = Ok(Reply::GrayJudged { ending: None });
        let Ok((table, item)) = self.item(name) else { return nothing };
        let Some(gray) = item.gray(rule).cloned() else { return nothing };
        let Some(verdict) = self.judge(table, &gray, at.now_ms) else { return nothing };
        if verdict.promote {
            check_schema(Some(table), schema)?;
        }
        let ending = if verdict.promote { Ending::Promoted } else { Ending::RolledBack };
        let note = Note { author: "gate", comment: &verdict.why };
        self.end(name, &item, &gray, verdict.promote, note, Some(ending), at, journal);
        Ok(Reply::GrayJudged { ending: Some(ending) })
    }

    /// What the gate of a gray release of this item asks for at a time; None = nothing.
    pub fn judge(&self, table: &ItemTable, gray: &Gray, now_ms: u64) -> Option<Verdict> {
        let Gate { measure, bound, for_ms, promote } = gray.gate.as_ref()?;
        let end_ms = gray.since_ms.saturating_add(*for_ms);
        if now_ms >= end_ms && !promote {
            return None;
        }
        let crossed = match measure {
            Measure::Counter { name, labels, base } => {
                let space = self.namespaces.get(&*table.name().namespace)?;
                let grown = space.sum_of_counters(name, labels) - i128::from(*base);
                let what = || format!("counter {name} has grown by {grown}, more than {bound}");
                (grown > i128::from(*bound)).then(what)
            }
            Measure::Unhealthy => {
                let mut clients: BTreeMap<&str, Standing> = BTreeMap::new();
                for report in table.reports().filter(|report| report.is_of(gray)) {
                    let standing = clients.entry(&report.client).or_default();
                    standing.lost_at_ms = report.lost_at_ms.or(standing.lost_at_ms);
                    standing.critical |= self.holds_critical(report.session);
                }
                // Who is back may run something else by now.
                for report in table.reports().filter(|report| report.lost_at_ms.is_none()) {
                    if let Some(standing) = clients.get_mut(&*report.client) {
                        standing.live = true;
                    }
                }
                let all = clients.len() as u64;
                let bad = clients.values().filter(|it| it.is_unwell(now_ms)).count() as u64;
                let what = || format!("{bad} of {all} clients are unhealthy, more than {bound} %");
                (u128::from(bad) * 100 > u128::from(*bound) * u128::from(all)).then(what)
            }
        };
        match crossed {
            Some(why) => Some(Verdict { promote: false, why }),
            None if now_ms >= end_ms => {
                let why = format!("nothing crossed the gate for {for_ms} ms");
                Some(Verdict { promote: true, why })
            }
            None => None,
        }
    }

    fn holds_critical(&self, session: u64) -> bool {
        self.ledger.held_by(session).any(|(service, id)| {
            let instance = self
                .service(&service.namespace, &service.name)
                .and_then(|table| table.instances.get(id));
            instance.is_some_and(|instance| instance.health == Health::Critical)
        })
    }

    pub fn report(
        &mut self,
        session: u64,
        client: &str,
        items: &[Running<&str>],
        at: &At,
        journal: &mut Journal,
    ) -> Result<Reply, Refusal> {
        if !self.ledger.sessions.contains_key(&session) {
            return Err(Refusal::SessionExpired { session });
        }
        let mut known = self.ledger.reported_by(session).count();
        let mut new = BTreeSet::new();
        for running in items {
            let (table, item) = self.item(&running.name)?;
            if running.version > item.last_version {
                let allowed = format!("at most {}, the newest version", item.last_version);
                return Err(invalid("version", running.version.to_string(), allowed));
            }
            let ItemName { namespace, group, key } = &running.name;
            let first = table.report(session).is_none() && new.insert((namespace, group, key));
            known += usize::from(first);
            if known > limits::CONFIG_REPORTS {
                return Err(limit("config items that one session reports", limits::CONFIG_REPORTS));
            }
        }
        // Nothing refuses from here on. Of an item that is named twice the last word counts, so that a
        // command which comes back to what was known has changed nothing.
        let last: BTreeMap<_, _> =
            items.iter().enumerate().map(|(i, running)| (&running.name, i)).collect();
        let mut changed = 0;
        for (i, Running { name, version, rule }) in items.iter().enumerate() {
            if last.get(name) != Some(&i) {
                continue;
            }
            let space = self.namespaces.get_mut(name.namespace).expect("the item was found");
            let table = space.config.item_mut(name.group, name.key).expect("the item was found");
            if table.report(session).is_some_and(|report| {
                report.version == *version && report.rule == *rule && report.client == client
            }) {
                continue;
            }
            let names = table.name().clone();
            journal.push(table.put_report(
                &mut self.ledger,
                Report {
                    namespace: names.namespace.clone(),
                    group: names.group.clone(),
                    key: names.key.clone(),
                    session,
                    client: client.into(),
                    version: *version,
                    rule: (*rule).into(),
                    since_ms: at.now_ms,
                    lost_at_ms: None,
                },
            ));
            changed += 1;
        }
        Ok(Reply::ConfigReported { changed })
    }

    /// The session ends; `lost_at_ms` when it was not closed by its client. Of a client that is lost
    /// several times the last loss is remembered.
    pub(super) fn forget_reports_of(
        &mut self,
        session: u64,
        lost_at_ms: Option<u64>,
        journal: &mut Journal,
    ) {
        let names: Vec<_> = self.ledger.reported_by(session).cloned().collect();
        for name in names {
            let space = self.namespaces.get_mut(&name.namespace).expect("reported, so it exists");
            let table = space.config.item_mut(&name.group, &name.key).expect("reported");
            let report = table.report(session).expect("what the index names is there").clone();
            let runs = |item: &Arc<ConfigItem>| item.gray.iter().any(|gray| report.is_of(gray));
            let older = table.lost_report(&report.client).map(|older| older.session);
            let counts = lost_at_ms.is_some()
                && table.item.as_ref().is_some_and(runs)
                && (older.is_some() || table.lost() < limits::CONFIG_LOST);
            if !counts {
                journal.extend(table.remove_report(&mut self.ledger, session));
                continue;
            }
            journal.extend(older.and_then(|older| table.remove_report(&mut self.ledger, older)));
            let report = Report { lost_at_ms, ..Report::clone(&report) };
            journal.push(table.put_report(&mut self.ledger, report));
        }
    }

    fn item(&self, name: &ItemName<&str>) -> Result<(&ItemTable, Arc<ConfigItem>), Refusal> {
        let space = self.namespaces.get(name.namespace);
        let table = space.and_then(|space| space.config.get(name.group, name.key));
        table
            .and_then(|table| Some((table, table.item.clone()?)))
            .ok_or_else(|| not_found(Kind::Config, name))
    }

    /// The namespace of an item that was found.
    fn space(&mut self, name: &ItemName<&str>) -> (&mut NamespaceTable, &mut Ledger) {
        let space = self.namespaces.get_mut(name.namespace).expect("the item was found in it");
        (space, &mut self.ledger)
    }

    /// Ends a gray release; the version is the one that it became, or its own.
    #[allow(clippy::too_many_arguments)]
    fn end(
        &mut self,
        name: &ItemName<&str>,
        item: &ConfigItem,
        gray: &Gray,
        promote: bool,
        note: Note<'_>,
        ending: Option<Ending>,
        at: &At,
        journal: &mut Journal,
    ) -> u64 {
        let ending = ending.unwrap_or(if promote { Ending::Promoted } else { Ending::Aborted });
        let ended = gray.ended(ending, note.text(), at);
        let left = item.gray.iter().filter(|other| other.rule != gray.rule).cloned().collect();
        let (current, version) = if promote {
            let version = item.last_version + 1;
            let origin = Origin::Promoted { version: gray.release.version };
            let content = gray.release.content.clone();
            (Arc::new(note.release(version, origin, content, at)), version)
        } else {
            (item.current.clone(), gray.release.version)
        };
        let next = ConfigItem { current, gray: left, ..item.clone() };
        let (space, ledger) = self.space(name);
        replace(space, ledger, next, vec![ended], at, journal);
        version
    }

    fn purge(&mut self, name: &ItemName<&str>, at: &At, journal: &mut Journal) {
        let space = self.namespaces.get_mut(name.namespace).expect("the item was found");
        let table = space.config.item_mut(name.group, name.key).expect("the item was found");
        let versions: Vec<u64> = table.releases().map(|release| release.version).collect();
        for version in versions {
            journal.extend(table.remove_release(&mut self.ledger, version));
        }
        let sessions: Vec<u64> = table.reports().map(|report| report.session).collect();
        for session in sessions {
            journal.extend(table.remove_report(&mut self.ledger, session));
        }
        journal.extend(space.config.remove_item(&mut self.ledger, name.group, name.key));
        journal.extend(self.note_removal(name.namespace, Class::Config, at.revision));
    }
}

/// A gray release of an existing item, in place of an earlier one under the same rule.
fn publish_gray(
    space: &mut NamespaceTable,
    ledger: &mut Ledger,
    item: &ConfigItem,
    (terms, content): (GrayTerms<&str>, Content),
    note: Note<'_>,
    at: &At,
    journal: &mut Journal,
) -> Result<Reply, Refusal> {
    let GrayTerms { rule, priority, picks, gate } = terms;
    let old = item.gray(rule);
    if old.is_none() && item.gray.len() >= limits::CONFIG_GRAYS {
        return Err(limit("gray releases of a config item", limits::CONFIG_GRAYS));
    }
    let others = || item.gray.iter().filter(|gray| *gray.rule != *rule);
    let bytes = others().map(|gray| gray.release.len()).sum::<usize>() + content.bytes.len();
    if bytes > limits::CONFIG_GRAY_BYTES {
        return Err(limit("bytes of an item's gray releases", limits::CONFIG_GRAY_BYTES));
    }
    // The same content under other terms is the same release: who got it keeps it. Its gate looks for
    // its whole time again, at whoever gets the release now, and goes on counting from where it began.
    let same = old.filter(|old| old.release.content.as_ref() == Some(&content));
    let version = same.map_or(item.last_version + 1, |old| old.release.version);
    let release = match same {
        Some(old) => old.release.clone(),
        None => {
            let origin = Origin::Gray { rule: rule.into() };
            Arc::new(note.release(version, origin, Some(content), at))
        }
    };
    let gate = gate.map(|gate| gate.based(space, same.and_then(|old| old.gate.as_ref())));
    let since_ms = at.now_ms;
    let gray = Gray { rule: rule.into(), priority, picks, gate, release, since_ms };
    if let Some(same) = same
        && **same == (Gray { since_ms: same.since_ms, ..gray.clone() })
    {
        return Ok(Reply::ConfigPublished { version, changed: false });
    }
    let ended = old
        .filter(|_| same.is_none())
        .map(|old| old.ended(Ending::Aborted, format!("replaced by version {version}"), at));
    let mut grays: Vec<Arc<Gray>> = others().cloned().collect();
    grays.push(Arc::new(gray));
    grays.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.rule.cmp(&b.rule)));
    if coding(limits::CONFIG_GRAY_RECORD_BYTES).serialized_size(&grays).is_err() {
        let limited = "bytes of an item's gray releases with their rules";
        return Err(limit(limited, limits::CONFIG_GRAY_RECORD_BYTES));
    }
    let last_version = item.last_version.max(version);
    let next = ConfigItem { gray: grays, last_version, ..item.clone() };
    replace(space, ledger, next, ended.into_iter().collect(), at, journal);
    Ok(Reply::ConfigPublished { version, changed: true })
}

/// Makes `next` the item: what was current before goes into its history, and so does `ended`, which
/// was gray; reports of lost clients that only mattered for what ended are forgotten.
fn replace(
    space: &mut NamespaceTable,
    ledger: &mut Ledger,
    next: ConfigItem,
    ended: Vec<Release>,
    at: &At,
    journal: &mut Journal,
) {
    let table = space.config.table_mut(next.group.clone(), next.key.clone());
    let before = table.item.clone();
    let next = ConfigItem {
        last_version: next.last_version.max(next.current.version),
        mod_revision: at.revision,
        modified_at_ms: at.now_ms,
        ..next
    };
    let (keep, current) = (next.keep as usize, next.current.version);
    journal.push(table.put_item(ledger, next));
    if let Some(before) = before
        && before.current.version != current
    {
        journal.push(table.put_release(ledger, before.current.clone()));
    }
    let any_ended = !ended.is_empty();
    for release in ended {
        journal.push(table.put_release(ledger, Arc::new(release)));
    }
    let is_too_much = |table: &ItemTable| {
        table.releases().len() > keep || table.release_bytes() > limits::CONFIG_HISTORY_BYTES
    };
    if is_too_much(table) {
        for version in longest_out(table) {
            journal.extend(table.remove_release(ledger, version));
            if !is_too_much(table) {
                break;
            }
        }
    }
    if any_ended {
        let gray = table.item.as_ref().map_or(&[][..], |item| &item.gray[..]);
        let forgotten: Vec<u64> = table
            .reports()
            .filter(|report| report.lost_at_ms.is_some())
            .filter(|report| !gray.iter().any(|gray| report.is_of(gray)))
            .map(|report| report.session)
            .collect();
        for session in forgotten {
            journal.extend(table.remove_report(ledger, session));
        }
    }
}

/// The past releases, those first that nobody gets for the longest time; of two that ended together the gray
/// one is first.
fn longest_out(table: &ItemTable) -> Vec<u64> {
    let mut next_ms = table.item.as_ref().map_or(0, |item| item.current.at_ms);
    let past = table.releases().rev().map(|release| match &release.end {
        Some(end) => (end.at_ms, false, release.version),
        None => (std::mem::replace(&mut next_ms, release.at_ms), true, release.version),
    });
    let mut past: Vec<_> = past.collect();
    past.sort_unstable();
    past.into_iter().map(|(.., version)| version).collect()
}

/// How a client that got a gray release is, by all of its reports of the item.
#[derive(Debug, Default)]
struct Standing {
    live: bool,
    critical: bool,
    lost_at_ms: Option<u64>,
}

impl Standing {
    fn is_unwell(&self, now_ms: u64) -> bool {
        let rest_ms = limits::CONFIG_LOST_REST_MS;
        let lost = |at_ms: u64| !self.live || now_ms < at_ms.saturating_add(rest_ms);
        self.critical || self.lost_at_ms.is_some_and(lost)
    }
}

/// Who made a release, and why.
#[derive(Clone, Copy)]
struct Note<'a> {
    author: &'a str,
    comment: &'a str,
}

impl Note<'_> {
    /// Both, as far as they are there.
    fn text(&self) -> String {
        let parts = [self.author, self.comment];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(": ")
    }

    fn release(&self, version: u64, origin: Origin, content: Option<Content>, at: &At) -> Release {
        Release {
            version,
            revision: at.revision,
            at_ms: at.now_ms,
            author: self.author.into(),
            comment: self.comment.into(),
            origin,
            content,
            end: None,
        }
    }
}

impl Gray {
    fn ended(&self, how: Ending, by: String, at: &At) -> Release {
        Release {
            end: Some(GrayEnd { at_ms: at.now_ms, how, by }),
            ..Release::clone(&self.release)
        }
    }
}

impl Report {
    /// True when the client got this gray release.
    pub fn is_of(&self, gray: &Gray) -> bool {
        self.version == gray.release.version && *self.rule == *gray.rule
    }
}

impl Gate {
    /// With what its counter is at now, or was when the release began.
    fn based(self, space: &NamespaceTable, old: Option<&Gate>) -> Gate {
        let measure = match self.measure {
            Measure::Counter { name, labels, base: _ } => {
                let kept = match old.map(|old| &old.measure) {
                    Some(Measure::Counter { name: n, labels: l, base })
                        if *n == name && *l == labels =>
                    {
                        Some(*base)
                    }
                    Some(Measure::Counter { .. } | Measure::Unhealthy) | None => None,
                };
                let base = kept.unwrap_or_else(|| saturate(space.sum_of_counters(&name, &labels)));
                Measure::Counter { name, labels, base }
            }
            Measure::Unhealthy => Measure::Unhealthy,
        };
        Gate { measure, ..self }
    }
}

impl NamespaceTable {
    /// The sum of the counters of a name that have all these labels.
    pub fn sum_of_counters(&self, name: &str, labels: &Pairs) -> i128 {
        if labels.is_empty() {
            return self.counters.sum(name);
        }
        let all = self.counters.of(name).filter(|counter| counter.labels.has_all(labels));
        all.map(|counter| i128::from(counter.value)).sum()
    }
}

pub(super) fn saturate(sum: i128) -> i64 {
    i64::try_from(sum).unwrap_or(if sum < 0 { i64::MIN } else { i64::MAX })
}

/// Content must have been checked against the schema that the item has now.
fn check_schema(table: Option<&ItemTable>, checked: u64) -> Result<(), Refusal> {
    let current = table.and_then(|table| table.schema.as_ref()).map_or(0, |s| s.mod_revision);
    if checked != current {
        return Err(Refusal::SchemaChanged { checked, current });
    }
    Ok(())
}

fn path(name: &ItemName<&str>) -> String {
    format!("{}/{}/{}", name.namespace, name.group, name.key)
}

fn not_found(kind: Kind, name: &ItemName<&str>) -> Refusal {
    Refusal::NotFound { kind, name: path(name) }
}

pub(super) fn limit(limit: &str, allowed: usize) -> Refusal {
    Refusal::LimitReached { limit: limit.into(), allowed: allowed as u64 }
}
