//! Records by name: found through a hash, since every write and every look-up does that, and listed in
//! the order of the names. The hash decides nothing that can be seen.

use std::collections::BTreeMap;
use std::hash::BuildHasher as _;
use std::ops::Bound;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

/// Invariant: `order` holds the name of every occupied slot, `found` its slot; the rest is in `free`.
#[derive(Debug)]
pub(super) struct Catalog<T> {
    slots: Vec<Option<(Arc<str>, T)>>,
    free: Vec<u32>,
    found: HashTable<u32>,
    order: BTreeMap<Arc<str>, u32>,
    hashing: DefaultHashBuilder,
}

/// Where a name is, until it is removed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(u32);

impl<T> Default for Catalog<T> {
    fn default() -> Self {
        Catalog {
            slots: Vec::new(),
            free: Vec::new(),
            found: HashTable::new(),
            order: BTreeMap::new(),
            hashing: DefaultHashBuilder::default(),
        }
    }
}

impl<T> Catalog<T> {
    pub fn get(&self, name: &str) -> Option<&T> {
        Some(self.at(self.find(name)?))
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut T> {
        let place = self.find(name)?;
        Some(self.at_mut(place))
    }

    pub fn find(&self, name: &str) -> Option<Place> {
        let hash = self.hashing.hash_one(name);
        let slot = self.found.find(hash, |slot| *occupied(&self.slots, *slot).0 == *name)?;
        Some(Place(*slot))
    }

    /// Where a name is if it is there at all: found by its hash alone, nothing of it is read.
    pub fn likely(&self, name: &str) -> Option<&Option<(Arc<str>, T)>> {
        let slot = self.found.find(self.hashing.hash_one(name), |_| true)?;
        self.slots.get(*slot as usize)
    }

    pub fn at(&self, place: Place) -> &T {
        &occupied(&self.slots, place.0).1
    }

    /// Returns what it replaces.
    pub fn replace(&mut self, place: Place, value: T) -> T {
        std::mem::replace(self.at_mut(place), value)
    }

    /// A new name is shared with whoever gives it as such.
    pub fn get_or_insert_with(
        &mut self,
        name: impl AsRef<str> + Into<Arc<str>>,
        make: impl FnOnce(&Arc<str>) -> T,
    ) -> &mut T {
        let place = self.find(name.as_ref()).unwrap_or_else(|| {
            let name: Arc<str> = name.into();
            let value = make(&name);
            self.insert(name, value)
        });
        self.at_mut(place)
    }

    /// In the order of the names.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.order.values().map(|slot| &occupied(&self.slots, *slot).1)
    }

    /// In the order of the names, from a bound on.
    pub fn range(&self, from: Bound<&str>) -> impl Iterator<Item = (&Arc<str>, &T)> {
        let range = self.order.range::<str, _>((from, Bound::Unbounded));
        range.map(|(name, slot)| (name, &occupied(&self.slots, *slot).1))
    }

    pub fn len(&self) -> usize {
        self.order.len()
    }

    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns what it replaces.
    pub fn put(&mut self, name: &Arc<str>, value: T) -> Option<T> {
        match self.find(name) {
            Some(place) => Some(self.replace(place, value)),
            None => {
                self.insert(name.clone(), value);
                None
            }
        }
    }

    pub fn remove(&mut self, name: &str) -> Option<T> {
        let Catalog { slots, free, found, order, hashing } = self;
        let hash = hashing.hash_one(name);
        let entry = found.find_entry(hash, |slot| *occupied(slots, *slot).0 == *name).ok()?;
        let (slot, _) = entry.remove();
        order.remove(name);
        free.push(slot);
        slots[slot as usize].take().map(|(_, value)| value)
    }

    /// Adds many names at once, none of which is there yet: the order is not searched for each.
    pub fn append(&mut self, entries: impl ExactSizeIterator<Item = (Arc<str>, T)>) {
        let total = self.len() + entries.len();
        self.slots.reserve(entries.len());
        let mut order: BTreeMap<_, _> =
            entries.map(|(name, value)| (name.clone(), self.enter(name, value))).collect();
        self.order.append(&mut order);
        assert_eq!(self.len(), total, "a name was added that was there");
    }

    /// The name is not there yet.
    fn insert(&mut self, name: Arc<str>, value: T) -> Place {
        let slot = self.enter(name.clone(), value);
        self.order.insert(name, slot);
        Place(slot)
    }

    /// The caller keeps `order`.
    fn enter(&mut self, name: Arc<str>, value: T) -> u32 {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            u32::try_from(self.slots.len() - 1).expect("limits are far below it")
        });
        let Catalog { slots, found, hashing, .. } = self;
        let hash = hashing.hash_one(&*name);
        slots[slot as usize] = Some((name, value));
        found.insert_unique(hash, slot, |slot| hashing.hash_one(&*occupied(slots, *slot).0));
        slot
    }

    fn at_mut(&mut self, place: Place) -> &mut T {
        &mut self.slots[place.0 as usize].as_mut().expect(OCCUPIED).1
    }
}

const OCCUPIED: &str = "what the hash and the order name is occupied";

fn occupied<T>(slots: &[Option<(Arc<str>, T)>], slot: u32) -> &(Arc<str>, T) {
    slots[slot as usize].as_ref().expect(OCCUPIED)
}

// Whatever is put and removed, it answers as an ordered map does.
#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_an_ordered_map(steps in prop::collection::vec((0..60u32, 0..5u32), 0..400)) {
            let (mut catalog, mut model) = (Catalog::default(), BTreeMap::new());
            let mut places = BTreeMap::new();
            for (value, (name, what)) in (0..).zip(steps) {
                let name: Arc<str> = format!("i{name}").into();
                match what {
                    0 => prop_assert_eq!(catalog.remove(&name), model.remove(&name)),
                    1 => {
                        let made = model.entry(name.clone()).or_insert(value);
                        prop_assert_eq!(catalog.get_or_insert_with(&*name, |_| value), made);
                    }
                    2 => {
                        let is_new = |i: &u32| !model.contains_key(&*format!("i{i}"));
                        let new: Vec<_> = [50, 7, 59].into_iter().filter(is_new).collect();
                        let entry = |i: u32| (Arc::<str>::from(format!("i{i}")), value + i);
                        catalog.append(new.iter().copied().map(entry));
                        model.extend(new.into_iter().map(entry));
                    }
                    _ => prop_assert_eq!(catalog.put(&name, value), model.insert(name.clone(), value)),
                }
                prop_assert_eq!(catalog.get(&name), model.get(&name));
                prop_assert_eq!(catalog.get_mut(&name), model.get_mut(&name));
                if let (Some(place), Some(known)) = (catalog.find(&name), model.get_mut(&name)) {
                    prop_assert_eq!(catalog.replace(place, value + 100), *known);
                    *known = value + 100;
                    places.insert(name, place);
                }
                places.retain(|name, _| model.contains_key(name));
                for (name, place) in &places {
                    prop_assert_eq!(Some(catalog.at(*place)), model.get(name));
                }
                prop_assert_eq!(catalog.len(), model.len());
                prop_assert_eq!(catalog.is_empty(), model.is_empty());
            }
            prop_assert!(catalog.values().eq(model.values()));
            let from = Bound::Excluded("i3");
            prop_assert!(catalog.range(from).eq(model.range::<str, _>((from, Bound::Unbounded))));
            prop_assert!(catalog.slots.len() <= 60, "slots are used again");
        }
    }
}
