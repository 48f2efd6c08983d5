//! What is watched: selectors of records, and a range as the union of some.

use std::sync::Arc;

use crate::error::Error;
use crate::limits;
use crate::state::{Change, Class, Key, Match, Record, Scope as Selector, ServiceView, State};

/// What a watcher sees: whatever one of the selectors holds. A handle: clones share.
///
/// Invariant: 1..=[`limits::WATCH_SELECTORS`] selectors, in order, none twice; no empty prefix. So
/// two ranges that were written differently and mean the same selectors are equal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range(Arc<[Selector]>);

/// What a record that can be watched is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Names<'a> {
    pub(super) class: Class,
    pub(super) namespace: &'a str,
    pub(super) first: &'a str,
    /// Empty in classes whose records have one name.
    pub(super) second: &'a str,
}

impl Selector {
    /// One service: its settings and its instances.
    pub fn service(namespace: impl Into<String>, service: impl Into<String>) -> Selector {
        let first = Match::Exact(service.into());
        Selector { class: Class::Service, namespace: namespace.into(), first, second: Match::Any }
    }

    /// All services of a namespace and their instances.
    pub fn services(namespace: impl Into<String>) -> Selector {
        let (first, second) = (Match::Any, Match::Any);
        Selector { class: Class::Service, namespace: namespace.into(), first, second }
    }

    /// One item of configuration.
    pub fn config(
        namespace: impl Into<String>,
        group: impl Into<String>,
        key: impl Into<String>,
    ) -> Selector {
        let (first, second) = (Match::Exact(group.into()), Match::Exact(key.into()));
        Selector { class: Class::Config, namespace: namespace.into(), first, second }
    }

    /// One lock: whoever holds it and those who wait for it.
    pub fn lock(namespace: impl Into<String>, lock: impl Into<String>) -> Selector {
        let first = Match::Exact(lock.into());
        Selector { class: Class::Lock, namespace: namespace.into(), first, second: Match::Any }
    }

    pub(super) fn holds(&self, names: Names<'_>) -> bool {
        self.class == names.class
            && self.namespace == names.namespace
            && self.first.matches(names.first)
            && self.second.matches(names.second)
    }
}

impl From<Selector> for Range {
    /// The range of this selector alone.
    ///
    /// # Panics
    /// When it has a second name that its class has not.
    fn from(selector: Selector) -> Range {
        Range::new(vec![selector]).expect("one selector, of names that its class has")
    }
}

impl Range {
    /// The union of the selectors.
    pub fn new(selectors: Vec<Selector>) -> Result<Range, Error> {
        let count = selectors.len();
        if !(1..=limits::WATCH_SELECTORS).contains(&count) {
            let allowed = format!("1..={} selectors", limits::WATCH_SELECTORS);
            return Err(Error::invalid("selectors", format!("{count} selectors"), allowed));
        }
        let mut sorted = Vec::with_capacity(count);
        for (i, Selector { class, namespace, first, second }) in selectors.into_iter().enumerate() {
            let (first, second) = (normal(first), normal(second));
            if second != Match::Any && !has_second(class) {
                let field = format!("selectors[{i}].second");
                let allowed = "nothing: records of this class have one name";
                return Err(Error::invalid(field, text(&second), allowed));
            }
            sorted.push(Selector { class, namespace, first, second });
        }
        sorted.sort();
        sorted.dedup();
        Ok(Range(sorted.into()))
    }

    /// In order; never empty.
    pub fn selectors(&self) -> &[Selector] {
        &self.0
    }

    pub(super) fn holds(&self, names: Names<'_>) -> bool {
        self.0.iter().any(|selector| selector.holds(names))
    }

    /// Shows every record of the range once, in the order of the keys.
    pub(super) fn visit(&self, state: &State, see: &mut impl FnMut(Change)) {
        // The order of the classes is that of their tables' keys.
        for of_class in self.0.chunk_by(|a, b| a.class == b.class) {
            let parts = disjoint(of_class);
            match of_class[0].class {
                // Two tables: first all settings, then all instances.
                Class::Service => {
                    each_service(&parts, state, &mut |view| {
                        let settings = &view.settings;
                        // A service that exists through its instances alone has no record.
                        if settings.create_revision > 0 {
                            let record = Some(Record::Service(settings.clone()));
                            see(Change::new(settings.key(), record));
                        }
                    });
                    each_service(&parts, state, &mut |view| {
                        let settings = &view.settings;
                        for instance in state.instances(&settings.namespace, &settings.name) {
                            let record = Some(Record::Instance(instance.clone()));
                            see(Change::new(instance.key(), record));
                        }
                    });
                }
                Class::Config | Class::Counter | Class::Lock | Class::Alarm | Class::Saga => {
                    for record in parts.iter().flat_map(|part| state.scope(part)) {
                        let key = record.key().expect("records of these classes tell their keys");
                        // A part may hold more than the range.
                        if names(&key).is_some_and(|names| self.holds(names)) {
                            see(Change::new(key, Some(record)));
                        }
                    }
                }
            }
        }
    }
}

/// Every service of the parts, by namespace and name.
fn each_service(parts: &[Selector], state: &State, see: &mut impl FnMut(&ServiceView)) {
    for Selector { namespace, first, .. } in parts {
        if let Match::Exact(name) = first {
            state.service(namespace, name).iter().for_each(&mut *see);
            continue;
        }
        let mut after = String::new();
        loop {
            let (views, more) = state.services(namespace, text(first), &after, limits::PAGE);
            views.iter().for_each(&mut *see);
            match views.last() {
                Some(last) if more => after = last.settings.name.to_string(),
                Some(_) | None => break,
            }
        }
    }
}

/// What these selectors hold, in parts: no two hold the same names, and what one holds comes before what
/// the next one does, by namespace, first and second name. The second name stays open, so that the part
/// may hold more than the selectors, where these have first names that overlap without being the same,
/// or several second names for many first ones.
///
/// `selectors` are of one class and in order.
pub(super) fn disjoint(selectors: &[Selector]) -> Vec<Selector> {
    let mut parts = Vec::new();
    for of_namespace in selectors.chunk_by(|a, b| a.namespace == b.namespace) {
        for first in cover(of_namespace.iter().map(|selector| &selector.first)) {
            let within: Vec<&Selector> =
                of_namespace.iter().filter(|selector| covers(first, &selector.first)).collect();
            let seconds = match within.iter().all(|selector| selector.first == *first) {
                true => cover(within.iter().map(|selector| &selector.second)),
                false => Vec::new(),
            };
            let seconds = match (first, seconds.len()) {
                (_, 1) | (Match::Exact(_), 2..) => seconds,
                _ => vec![&Match::Any],
            };
            parts.extend(seconds.into_iter().map(|second| Selector {
                first: first.clone(),
                second: second.clone(),
                ..of_namespace[0].clone()
            }));
        }
    }
    parts
}

/// The fewest of these that match what they all do. No two of them match the same name, and what one
/// matches comes before all that the next one does.
fn cover<'a>(matches: impl Iterator<Item = &'a Match>) -> Vec<&'a Match> {
    let mut sorted: Vec<&Match> = matches.collect();
    // By text, and what matches more first: so nothing is covered by what stands behind it. All texts
    // between a prefix and a text that begins with it begin with it too: so only the last one that was
    // kept can cover the next.
    sorted.sort_unstable_by_key(|one| (text(one), matches!(one, Match::Exact(_))));
    sorted.dedup_by(|next, kept| covers(kept, next));
    sorted
}

/// Whether the one matches all that the other does.
fn covers(one: &Match, other: &Match) -> bool {
    match (one, other) {
        (Match::Any, _) => true,
        (Match::Prefix(_), Match::Prefix(text) | Match::Exact(text)) => one.matches(text),
        (Match::Exact(_), Match::Exact(_)) => one == other,
        (Match::Prefix(_) | Match::Exact(_), Match::Any) | (Match::Exact(_), Match::Prefix(_)) => {
            false
        }
    }
}

fn text(of: &Match) -> &str {
    match of {
        Match::Any => "",
        Match::Exact(text) | Match::Prefix(text) => text,
    }
}

fn normal(one: Match) -> Match {
    match one {
        Match::Prefix(prefix) if prefix.is_empty() => Match::Any,
        Match::Any | Match::Exact(_) | Match::Prefix(_) => one,
    }
}

fn has_second(class: Class) -> bool {
    match class {
        Class::Config => true,
        Class::Service | Class::Counter | Class::Lock | Class::Alarm | Class::Saga => false,
    }
}

/// The names of a key that can be watched.
pub(super) fn names(key: &Key) -> Option<Names<'_>> {
    match key {
        Key::Service { namespace, name } => Some(Names::of_service(namespace, name)),
        Key::Instance { namespace, service, id: _ } => Some(Names::of_service(namespace, service)),
        Key::Config { namespace, group, key } => Some(Names::of_item(namespace, group, key)),
        Key::Counter { namespace, name, labels: _ } => Some(Names::of_counter(namespace, name)),
        Key::Lock { namespace, lock, ticket: _ } => Some(Names::of_lock(namespace, lock)),
        Key::Alarm { namespace, name } => Some(Names::of_alarm(namespace, name)),
        Key::Saga { namespace, gid } => Some(Names::of_saga(namespace, gid)),
        Key::Meta
        | Key::Namespace { .. }
        | Key::Session { .. }
        | Key::Reply { .. }
        | Key::Member { .. }
        | Key::Release { .. }
        | Key::Schema { .. }
        | Key::Report { .. }
        | Key::Removal { .. } => None,
    }
}

impl<'a> Names<'a> {
    pub(super) fn of_service(namespace: &'a str, service: &'a str) -> Names<'a> {
        Names { class: Class::Service, namespace, first: service, second: "" }
    }

    pub(super) fn of_item(namespace: &'a str, group: &'a str, key: &'a str) -> Names<'a> {
        Names { class: Class::Config, namespace, first: group, second: key }
    }

    pub(super) fn of_counter(namespace: &'a str, name: &'a str) -> Names<'a> {
        Names { class: Class::Counter, namespace, first: name, second: "" }
    }

    pub(super) fn of_alarm(namespace: &'a str, name: &'a str) -> Names<'a> {
        Names { class: Class::Alarm, namespace, first: name, second: "" }
    }

    pub(super) fn of_saga(namespace: &'a str, gid: &'a str) -> Names<'a> {
        Names { class: Class::Saga, namespace, first: gid, second: "" }
    }

    pub(super) fn of_lock(namespace: &'a str, lock: &'a str) -> Names<'a> {
        Names { class: Class::Lock, namespace, first: lock, second: "" }
    }
}
