//! The groups, found by the names in a change: what that costs does not depend on how many watch
//! something else, only on how many lengths the prefixes have that are watched.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::group::Group;
use super::range::Names;
use super::{Class, Match, Selector};

/// Each group stands under each selector of its range.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// By class and namespace; then by the first name and, under that, by the second.
    classes: BTreeMap<Class, BTreeMap<Box<str>, Matches<Matches<Groups>>>>,
}

/// By number, and so in the order in which they were made.
type Groups = Vec<Arc<Group>>;

/// Something for each [`Match`] that somebody watches.
#[derive(Debug)]
struct Matches<T> {
    any: T,
    exact: BTreeMap<Box<str>, T>,
    /// By their length in bytes.
    prefixes: BTreeMap<usize, BTreeMap<Box<str>, T>>,
}

/// So that nothing is left of those who have gone.
trait Vacant: Default {
    fn is_vacant(&self) -> bool;
}

impl Index {
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    pub(super) fn insert(&mut self, group: &Arc<Group>) {
        for selector in group.range.selectors() {
            self.change(selector, |groups| {
                assert!(
                    groups.last().is_none_or(|last| last.number < group.number),
                    "group {} is not the newest",
                    group.number
                );
                groups.push(group.clone());
            });
        }
    }

    pub(super) fn remove(&mut self, group: &Arc<Group>) {
        for selector in group.range.selectors() {
            self.change(selector, |groups| {
                let at = groups.binary_search_by_key(&group.number, |group| group.number);
                groups.remove(at.expect("a group stands under its selectors"));
            });
        }
    }

    /// The groups whose range holds the names: one with several selectors that do so, several times.
    pub(super) fn groups<'a>(&'a self, names: Names<'a>) -> impl Iterator<Item = &'a Arc<Group>> {
        let firsts = self.classes.get(&names.class).and_then(|of| of.get(names.namespace));
        let seconds = firsts.into_iter().flat_map(move |firsts| firsts.holding(names.first));
        seconds.flat_map(move |seconds| seconds.holding(names.second)).flatten()
    }

    fn change(&mut self, selector: &Selector, change: impl FnOnce(&mut Groups)) {
        let Selector { class, namespace, first, second } = selector;
        let of_class = self.classes.entry(*class).or_default();
        change_at(of_class, namespace.as_str(), |firsts| {
            firsts.change(first, |seconds| seconds.change(second, change));
        });
        if of_class.is_empty() {
            self.classes.remove(class);
        }
    }
}

impl<T: Vacant> Matches<T> {
    /// What stands at the matches that hold the name.
    fn holding<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a T> {
        let prefixes = self.prefixes.range(..=name.len()).filter_map(|(length, prefixes)| {
            // A length that divides a character is no prefix's of this name.
            prefixes.get(name.get(..*length)?)
        });
        std::iter::once(&self.any).chain(self.exact.get(name)).chain(prefixes)
    }

    fn change(&mut self, at: &Match, change: impl FnOnce(&mut T)) {
        match at {
            Match::Any => change(&mut self.any),
            Match::Exact(name) => change_at(&mut self.exact, name.as_str(), change),
            Match::Prefix(prefix) => {
                let of_length = self.prefixes.entry(prefix.len()).or_default();
                change_at(of_length, prefix.as_str(), change);
                if of_length.is_empty() {
                    self.prefixes.remove(&prefix.len());
                }
            }
        }
    }
}

fn change_at<T: Vacant>(map: &mut BTreeMap<Box<str>, T>, at: &str, change: impl FnOnce(&mut T)) {
    let value = map.entry(at.into()).or_default();
    change(value);
    if value.is_vacant() {
        map.remove(at);
    }
}

impl<T: Default> Default for Matches<T> {
    fn default() -> Self {
        Matches { any: T::default(), exact: BTreeMap::new(), prefixes: BTreeMap::new() }
    }
}

impl<T: Vacant> Vacant for Matches<T> {
    fn is_vacant(&self) -> bool {
        self.any.is_vacant() && self.exact.is_empty() && self.prefixes.is_empty()
    }
}

impl Vacant for Groups {
    fn is_vacant(&self) -> bool {
        self.is_empty()
    }
}
