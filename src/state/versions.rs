//! A few things by their version: new ones come at the end and old ones go at the front, so that those
//! are found without looking, and nothing but the ends is touched.

use std::collections::VecDeque;

/// Invariant: in the order of the versions, each once.
#[derive(Debug)]
pub struct Versions<T>(VecDeque<(u64, T)>);

impl<T> Default for Versions<T> {
    fn default() -> Self {
        Versions(VecDeque::new())
    }
}

impl<T> Versions<T> {
    pub fn get(&self, version: u64) -> Option<&T> {
        Some(&self.0[self.place(version).ok()?].1)
    }

    /// Returns what it replaces.
    pub fn put(&mut self, version: u64, value: T) -> Option<T> {
        match self.place(version) {
            Ok(at) => Some(std::mem::replace(&mut self.0[at].1, value)),
            Err(at) => {
                self.0.insert(at, (version, value));
                None
            }
        }
    }

    pub fn remove(&mut self, version: u64) -> Option<T> {
        let at = self.place(version).ok()?;
        self.0.remove(at).map(|(_, value)| value)
    }

    /// The oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (u64, &T)> + ExactSizeIterator {
        self.0.iter().map(|(version, value)| (*version, value))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where a version is, or would be.
    fn place(&self, version: u64) -> Result<usize, usize> {
        match (self.0.front(), self.0.back()) {
            (Some((first, _)), _) if *first == version => Ok(0),
            (_, Some((last, _))) if *last < version => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&version, |(version, _)| *version),
        }
    }
}

impl<T> IntoIterator for Versions<T> {
    type Item = (u64, T);
    type IntoIter = std::collections::vec_deque::IntoIter<(u64, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_an_ordered_map(steps in prop::collection::vec((0..30u64, any::<bool>()), 0..200)) {
            let (mut versions, mut model) = (Versions::default(), BTreeMap::new());
            for (value, (version, put)) in (0..).zip(steps) {
                match put {
                    true => prop_assert_eq!(versions.put(version, value), model.insert(version, value)),
                    false => prop_assert_eq!(versions.remove(version), model.remove(&version)),
                }
                prop_assert_eq!(versions.get(version), model.get(&version));
                prop_assert_eq!(versions.len(), model.len());
                prop_assert_eq!(versions.is_empty(), model.is_empty());
                prop_assert!(versions.iter().eq(model.iter().map(|(version, value)| (*version, value))));
            }
            prop_assert!(versions.into_iter().eq(model));
        }
    }
}
