//! The configuration center.

use super::*;

impl Model {
    pub fn item(&self, name: &ItemName) -> Option<&ConfigItem> {
        self.items.iter().find(|item| is(name, &item.namespace, &item.group, &item.key))
    }

    /// The version that everybody gets; 0 = there is nothing to get.
    pub fn shown(&self, name: &ItemName) -> u64 {
        match self.item(name) {
            Some(item) if item.current.content.is_some() => item.current.version,
            Some(_) | None => 0,
        }
    }

    pub fn schema(&self, name: &ItemName) -> Option<&Schema> {
        self.schemas.iter().find(|schema| is(name, &schema.namespace, &schema.group, &schema.key))
    }

    pub fn schema_revision(&self, name: &ItemName) -> u64 {
        self.schema(name).map_or(0, |schema| schema.mod_revision)
    }

    /// Past releases, oldest first.
    pub fn past(&self, name: &ItemName) -> Vec<&Release> {
        let mut own: Vec<_> =
            self.releases.iter().filter(|(of, _)| of == name).map(|(_, release)| release).collect();
        own.sort_by_key(|release| release.version);
        own
    }

    pub fn reports_of(&self, name: &ItemName) -> Vec<&Report> {
        let own = |report: &&Report| is(name, &report.namespace, &report.group, &report.key);
        let mut own: Vec<_> = self.reports.iter().filter(own).collect();
        own.sort_by_key(|report| report.session);
        own
    }

    /// Names of a namespace that have an item or a schema.
    pub(super) fn config_names(&self, namespace: &str) -> usize {
        let items = self.items.iter().map(|i| (&*i.namespace, &*i.group, &*i.key));
        let schemas = self.schemas.iter().map(|s| (&*s.namespace, &*s.group, &*s.key));
        let mut names: Vec<_> = items.chain(schemas).filter(|name| name.0 == namespace).collect();
        names.sort();
        names.dedup();
        names.len()
    }

    fn room_for(&self, name: &ItemName) -> Result<(), Refusal> {
        let known = self.item(name).is_some() || self.schema(name).is_some();
        if !known && self.config_names(&name.namespace) >= limits::CONFIG_ITEMS {
            return Err(too_many("config items of a namespace", 100_000));
        }
        Ok(())
    }

    fn checked_against(&self, name: &ItemName, checked: u64) -> Result<(), Refusal> {
        let current = self.schema_revision(name);
        if checked != current {
            return Err(Refusal::SchemaChanged { checked, current });
        }
        Ok(())
    }

    pub(super) fn publish(&mut self, p: Publication, place: &Place) -> Answer {
        let name = p.name;
        self.needs_namespace(&name.namespace)?;
        let shown = self.shown(&name);
        expected(p.expected_version, shown)?;
        self.checked_against(&name, p.schema)?;
        self.room_for(&name)?;
        let mut release = release(&p.author, &p.comment, Origin::Published, place);
        release.content = Some(p.content);
        if let Some(terms) = p.gray {
            if shown == 0 {
                return Err(Refusal::NotFound { kind: Kind::Config, name: path(&name) });
            }
            if p.labels.is_some() || p.keep.is_some() {
                let allowed = "none with a gray release: they belong to the item";
                return Err(invalid("labels", "labels or keep", allowed));
            }
            return self.publish_gray(&name, terms, release, place);
        }
        let Some(old) = self.item(&name).cloned() else {
            release.version = 1;
            self.items.push(ConfigItem {
                namespace: name.namespace.into(),
                group: name.group.into(),
                key: name.key.into(),
                current: Arc::new(release),
                gray: vec![],
                labels: p.labels.unwrap_or_default(),
                keep: p.keep.unwrap_or(50),
                last_version: 1,
                create_revision: place.revision,
                mod_revision: place.revision,
                created_at_ms: place.now_ms,
                modified_at_ms: place.now_ms,
            });
            return Ok(Reply::ConfigPublished { version: 1, changed: true });
        };
        let mut next = old.clone();
        next.labels = p.labels.unwrap_or(next.labels);
        next.keep = p.keep.unwrap_or(next.keep);
        if next == old && old.current.content == release.content {
            return Ok(Reply::ConfigPublished { version: shown, changed: false });
        }
        let version = self.make_current(next, release, vec![], place);
        Ok(Reply::ConfigPublished { version, changed: true })
    }

    fn publish_gray(
        &mut self,
        name: &ItemName,
        terms: GrayTerms,
        mut new: Release,
        place: &Place,
    ) -> Answer {
        let mut item = self.item(name).unwrap().clone();
        let old = item.gray.iter().find(|gray| *gray.rule == *terms.rule).cloned();
        item.gray.retain(|gray| *gray.rule != *terms.rule);
        if item.gray.len() == 8 {
            return Err(too_many("gray releases of a config item", 8));
        }
        let bytes = |release: &Release| release.content.as_ref().map_or(0, |c| c.bytes.len());
        let in_all: usize = item.gray.iter().map(|gray| bytes(&gray.release)).sum();
        if in_all + bytes(&new) > 1024 * 1024 {
            return Err(too_many("bytes of an item's gray releases", 1024 * 1024));
        }
        let mut ended = vec![];
        let mut began = None;
        match &old {
            // The same content: the release goes on.
            Some(old) if old.release.content == new.content => {
                new = (*old.release).clone();
                began = old.gate.clone();
            }
            _ => {
                item.last_version += 1;
                new.version = item.last_version;
                new.origin = Origin::Gray { rule: terms.rule.clone() };
                if let Some(old) = &old {
                    let by = format!("replaced by version {}", new.version);
                    ended.push(end_of(old, Ending::Aborted, by, place));
                }
            }
        }
        let mut gate = terms.gate;
        if let Some(Gate { measure: Measure::Counter { name: counter, labels, base }, .. }) =
            &mut gate
        {
            *base = match began.map(|gate| gate.measure) {
                Some(Measure::Counter { name: n, labels: l, base })
                    if (&n, &l) == (&*counter, &*labels) =>
                {
                    base
                }
                _ => self
                    .sum_of(&name.namespace, counter, labels)
                    .clamp(i64::MIN.into(), i64::MAX.into())
                    .try_into()
                    .unwrap(),
            };
        }
        let version = new.version;
        let mut gray = Gray {
            rule: terms.rule.into(),
            priority: terms.priority,
            picks: terms.picks,
            gate,
            release: Arc::new(new),
            since_ms: place.now_ms,
        };
        if let Some(old) = old {
            let since_ms = std::mem::replace(&mut gray.since_ms, old.since_ms);
            if gray == *old {
                return Ok(Reply::ConfigPublished { version, changed: false });
            }
            gray.since_ms = since_ms;
        }
        item.gray.push(Arc::new(gray));
        item.gray.sort_by_key(|gray| (u32::MAX - gray.priority, gray.rule.clone()));
        self.put(item, ended, place);
        Ok(Reply::ConfigPublished { version, changed: true })
    }

    pub(super) fn roll_back(&mut self, r: ConfigRollback, place: &Place) -> Answer {
        let Some(item) = self.item(&r.name).cloned() else {
            return Err(Refusal::NotFound { kind: Kind::Config, name: path(&r.name) });
        };
        let shown = self.shown(&r.name);
        expected(r.expected_version, shown)?;
        self.checked_against(&r.name, r.schema)?;
        let mut known = self.past(&r.name);
        known.push(&item.current);
        let Some(found) = known.into_iter().find(|release| release.version == r.version) else {
            let name = format!("{} version {}", path(&r.name), r.version);
            return Err(Refusal::NotFound { kind: Kind::Release, name });
        };
        let content = found.content.clone();
        if content.is_none() {
            let allowed = "a version with content; this one is a deletion";
            return Err(invalid("version", &r.version.to_string(), allowed));
        }
        if content == item.current.content {
            return Ok(Reply::ConfigPublished { version: shown, changed: false });
        }
        let origin = Origin::RolledBack { version: r.version };
        let release = Release { content, ..release(&r.author, &r.comment, origin, place) };
        let version = self.make_current(item, release, vec![], place);
        Ok(Reply::ConfigPublished { version, changed: true })
    }

    pub(super) fn delete_config(&mut self, d: ConfigDeletion, place: &Place) -> Answer {
        let shown = self.shown(&d.name);
        expected(d.expected_version, shown)?;
        let Some(mut item) = self.item(&d.name).cloned() else {
            return Ok(Reply::ConfigDeleted { removed: false, version: 0 });
        };
        if d.purge {
            self.items.retain(|i| !is(&d.name, &i.namespace, &i.group, &i.key));
            self.releases.retain(|(of, _)| *of != d.name);
            self.reports.retain(|r| !is(&d.name, &r.namespace, &r.group, &r.key));
            return Ok(Reply::ConfigDeleted { removed: true, version: 0 });
        }
        if shown == 0 {
            return Ok(Reply::ConfigDeleted { removed: false, version: item.current.version });
        }
        let by = format!("the item was deleted by {:?}", d.author);
        let ended = std::mem::take(&mut item.gray);
        let ended =
            ended.iter().map(|gray| end_of(gray, Ending::Aborted, by.clone(), place)).collect();
        let release = release(&d.author, &d.comment, Origin::Deleted, place);
        let version = self.make_current(item, release, ended, place);
        Ok(Reply::ConfigDeleted { removed: true, version })
    }

    pub(super) fn put_schema(&mut self, s: SchemaPut, place: &Place) -> Answer {
        self.needs_namespace(&s.name.namespace)?;
        let current = self.item(&s.name).map_or(0, |item| item.current.revision);
        expected(Some(s.checked_revision), current)?;
        self.room_for(&s.name)?;
        let ItemName { namespace, group, key } = &s.name;
        let mut record = Schema {
            namespace: namespace.as_str().into(),
            group: group.as_str().into(),
            key: key.as_str().into(),
            text: s.text,
            create_revision: place.revision,
            mod_revision: place.revision,
        };
        if let Some(old) = self.schema(&s.name) {
            if old.text == record.text {
                let mod_revision = old.mod_revision;
                return Ok(Reply::SchemaPut { changed: false, mod_revision });
            }
            record.create_revision = old.create_revision;
        }
        self.schemas.retain(|old| !is(&s.name, &old.namespace, &old.group, &old.key));
        self.schemas.push(record);
        Ok(Reply::SchemaPut { changed: true, mod_revision: place.revision })
    }

    pub(super) fn delete_schema(&mut self, name: &ItemName) -> Answer {
        let removed = self.schema(name).is_some();
        self.schemas.retain(|old| !is(name, &old.namespace, &old.group, &old.key));
        Ok(Reply::SchemaDeleted { removed })
    }

    pub(super) fn end_gray(&mut self, d: GrayDecision, place: &Place) -> Answer {
        let Some(item) = self.item(&d.name) else {
            return Err(Refusal::NotFound { kind: Kind::Config, name: path(&d.name) });
        };
        let Some(gray) = item.gray.iter().find(|gray| *gray.rule == *d.rule).cloned() else {
            let name = format!("{} rule {}", path(&d.name), d.rule);
            return Err(Refusal::NotFound { kind: Kind::Gray, name });
        };
        expected(d.version, gray.release.version)?;
        if d.promote {
            self.checked_against(&d.name, d.schema)?;
        }
        let how = if d.promote { Ending::Promoted } else { Ending::Aborted };
        let version = self.end(&d.name, &gray, how, &d.author, &d.comment, place);
        Ok(Reply::GrayEnded { version })
    }

    /// Whether the gate asks for a promotion, or for a rollback, and why.
    pub fn verdict(&self, item: &ConfigItem, gray: &Gray, now_ms: u64) -> Option<(bool, String)> {
        let gate = gray.gate.as_ref()?;
        let over = now_ms >= gray.since_ms.saturating_add(gate.for_ms);
        if over && !gate.promote {
            return None;
        }
        let bound = i128::from(gate.bound);
        match &gate.measure {
            Measure::Counter { name, labels, base } => {
                let grown = self.sum_of(&item.namespace, name, labels) - i128::from(*base);
                if grown > bound {
                    let why = format!("counter {name} has grown by {grown}, more than {bound}");
                    return Some((false, why));
                }
            }
            Measure::Unhealthy => {
                let all = self.reports_of(&name_of_item(item));
                let mut got = all.clone();
                got.retain(|report| ran(report, gray));
                let mut clients: Vec<&str> = got.iter().map(|report| &*report.client).collect();
                clients.sort();
                clients.dedup();
                let unwell = |client: &&&str| {
                    let own = || got.iter().filter(|report| report.client == **client);
                    let critical = |i: &Instance| {
                        i.health == Health::Critical
                            && i.orphaned_at_ms.is_none()
                            && own().any(|report| i.session == Some(report.session))
                    };
                    let mut of_client = all.iter().filter(|report| report.client == **client);
                    let back = of_client.any(|report| report.lost_at_ms.is_none());
                    let lost = |at: u64| !back || now_ms.saturating_sub(at) < 60_000;
                    own().filter_map(|report| report.lost_at_ms).any(lost)
                        || self.instances.iter().any(critical)
                };
                let bad = clients.iter().filter(unwell).count();
                let count = clients.len();
                if bad as i128 * 100 > bound * count as i128 {
                    let why =
                        format!("{bad} of {count} clients are unhealthy, more than {bound} %");
                    return Some((false, why));
                }
            }
        }
        let why = format!("nothing crossed the gate for {} ms", gate.for_ms);
        over.then_some((true, why))
    }

    pub(super) fn judge(
        &mut self,
        name: &ItemName,
        rule: &str,
        schema: u64,
        place: &Place,
    ) -> Answer {
        let gray = |item: &ConfigItem| item.gray.iter().find(|gray| *gray.rule == *rule).cloned();
        let found = self.item(name).and_then(|item| Some((item, gray(item)?)));
        let due = found.and_then(|(item, gray)| {
            let verdict = self.verdict(item, &gray, place.now_ms)?;
            Some((gray, verdict))
        });
        let Some((gray, (promote, why))) = due else {
            return Ok(Reply::GrayJudged { ending: None });
        };
        if promote {
            self.checked_against(name, schema)?;
        }
        let how = if promote { Ending::Promoted } else { Ending::RolledBack };
        self.end(name, &gray, how, "gate", &why, place);
        Ok(Reply::GrayJudged { ending: Some(how) })
    }

    pub(super) fn report(
        &mut self,
        session: u64,
        client: &str,
        items: &[Running],
        place: &Place,
    ) -> Answer {
        if !self.sessions.iter().any(|s| s.id == session) {
            return Err(Refusal::SessionExpired { session });
        }
        let mut changed = 0;
        for running in items {
            let ItemName { namespace, group, key } = &running.name;
            let Some(item) = self.item(&running.name) else {
                return Err(Refusal::NotFound { kind: Kind::Config, name: path(&running.name) });
            };
            if running.version > item.last_version {
                let allowed = format!("at most {}, the newest version", item.last_version);
                return Err(invalid("version", &running.version.to_string(), &allowed));
            }
            let record = Report {
                namespace: namespace.as_str().into(),
                group: group.as_str().into(),
                key: key.as_str().into(),
                session,
                client: client.into(),
                version: running.version,
                rule: running.rule.clone(),
                since_ms: place.now_ms,
                lost_at_ms: None,
            };
            if items.iter().rev().find(|other| other.name == running.name) != Some(running) {
                // Somewhere behind it something else is said of the item.
                continue;
            }
            let old = self.reports.iter_mut().find(|old| {
                old.session == session && is(&running.name, &old.namespace, &old.group, &old.key)
            });
            match old {
                Some(old) if Report { since_ms: old.since_ms, ..record.clone() } == *old => {}
                Some(old) => {
                    *old = record;
                    changed += 1;
                }
                None => {
                    self.reports.push(record);
                    changed += 1;
                }
            }
            if self.reports.iter().filter(|r| r.session == session).count() > 1024 {
                return Err(too_many("config items that one session reports", 1024));
            }
        }
        Ok(Reply::ConfigReported { changed })
    }

    /// Only what was reported of a gray release that still runs is of use once a session was lost.
    pub(super) fn forget_reports(&mut self, session: u64, lost_at_ms: Option<u64>) {
        let mut lost = Vec::new();
        for i in (0..self.reports.len()).rev() {
            if self.reports[i].session != session {
                continue;
            }
            let report = &self.reports[i];
            let item = self.items.iter().find(|item| {
                (&item.namespace, &item.group, &item.key)
                    == (&report.namespace, &report.group, &report.key)
            });
            let runs = item.unwrap().gray.iter().any(|gray| ran(report, gray));
            if lost_at_ms.is_some() && runs {
                self.reports[i].lost_at_ms = lost_at_ms;
                lost.push(self.reports[i].clone());
            } else {
                self.reports.remove(i);
            }
        }
        // The last loss of a client counts.
        self.reports.retain(|report| {
            report.lost_at_ms.is_none()
                || report.session == session
                || lost.iter().all(|new| {
                    (&new.namespace, &new.group, &new.key, &new.client)
                        != (&report.namespace, &report.group, &report.key, &report.client)
                })
        });
    }

    fn end(
        &mut self,
        name: &ItemName,
        gray: &Gray,
        how: Ending,
        author: &str,
        comment: &str,
        place: &Place,
    ) -> u64 {
        let mut item = self.item(name).unwrap().clone();
        item.gray.retain(|other| other.rule != gray.rule);
        let by = match (author, comment) {
            ("", only) | (only, "") => only.to_owned(),
            (author, comment) => format!("{author}: {comment}"),
        };
        let ended = vec![end_of(gray, how, by, place)];
        let version = gray.release.version;
        if how != Ending::Promoted {
            self.put(item, ended, place);
            return version;
        }
        let mut release = release(author, comment, Origin::Promoted { version }, place);
        release.content = gray.release.content.clone();
        self.make_current(item, release, ended, place)
    }

    /// The next version, for everybody. An item that was deleted begins anew.
    fn make_current(
        &mut self,
        mut item: ConfigItem,
        mut release: Release,
        ended: Vec<Release>,
        place: &Place,
    ) -> u64 {
        if item.current.content.is_none() {
            item.create_revision = place.revision;
            item.created_at_ms = place.now_ms;
        }
        item.last_version += 1;
        release.version = item.last_version;
        let version = release.version;
        item.current = Arc::new(release);
        self.put(item, ended, place);
        version
    }

    fn put(&mut self, mut item: ConfigItem, ended: Vec<Release>, place: &Place) {
        item.mod_revision = place.revision;
        item.modified_at_ms = place.now_ms;
        let name = name_of_item(&item);
        let old = self.item(&name).unwrap().current.clone();
        if old.version != item.current.version {
            self.releases.push((name.clone(), (*old).clone()));
        }
        self.releases.extend(ended.into_iter().map(|release| (name.clone(), release)));
        loop {
            let past = self.past(&name);
            let content =
                |release: &&Release| release.content.as_ref().map_or(0, |c| c.bytes.len());
            let bytes: usize = past.iter().map(content).sum();
            if past.len() <= item.keep as usize && bytes <= 8 * 1024 * 1024 {
                break;
            }
            // A release for everybody was out when the next one of them came.
            let out = |release: &Release| match &release.end {
                Some(end) => end.at_ms,
                None => {
                    let mut later = past.iter().filter(|other| other.end.is_none());
                    let next = later.find(|other| other.version > release.version);
                    next.map_or(item.current.at_ms, |next| next.at_ms)
                }
            };
            let first = past.iter().min_by_key(|r| (out(r), r.end.is_none(), r.version));
            let first = first.unwrap().version;
            self.releases.retain(|(of, release)| *of != name || release.version != first);
        }
        self.reports.retain(|report| {
            !is(&name, &report.namespace, &report.group, &report.key)
                || report.lost_at_ms.is_none()
                || item.gray.iter().any(|gray| ran(report, gray))
        });
        let at = self.items.iter().position(|old| name_of_item(old) == name).unwrap();
        self.items[at] = item;
    }
}

fn is(name: &ItemName, namespace: &str, group: &str, key: &str) -> bool {
    name.namespace == namespace && name.group == group && name.key == key
}

pub(in crate::state) fn name_of_item(item: &ConfigItem) -> ItemName {
    ItemName {
        namespace: item.namespace.to_string(),
        group: item.group.to_string(),
        key: item.key.to_string(),
    }
}

fn path(name: &ItemName) -> String {
    format!("{}/{}/{}", name.namespace, name.group, name.key)
}

/// Whether a client got this gray release.
fn ran(report: &Report, gray: &Gray) -> bool {
    *report.rule == *gray.rule && report.version == gray.release.version
}

/// Without version and content.
fn release(author: &str, comment: &str, origin: Origin, place: &Place) -> Release {
    Release {
        version: 0,
        revision: place.revision,
        at_ms: place.now_ms,
        author: author.into(),
        comment: comment.into(),
        origin,
        content: None,
        end: None,
    }
}

fn end_of(gray: &Gray, how: Ending, by: String, place: &Place) -> Release {
    let mut release = (*gray.release).clone();
    release.end = Some(GrayEnd { at_ms: place.now_ms, how, by });
    release
}
