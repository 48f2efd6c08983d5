//! Lists of texts in one allocation, which the versions of a record share. There may be a million
//! instances, each is replaced as a whole with every change, and a list of strings would be an
//! allocation for each of its texts, each time.
//!
//! Layout, which is also the encoding: each text is its length and its bytes, a number stands for
//! itself. A number is written in groups of six bits, the lowest first, one group per byte; 0x40 says
//! that another group follows. So every byte of a number is ASCII and the whole is UTF-8.

use std::fmt;
use std::sync::Arc;

use serde::de::{Error as _, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

const GROUP_BITS: u32 = 6;
const MORE: u8 = 1 << GROUP_BITS;

/// Pairs of texts: metadata, parameters and labels. Their order is that of their encoding, which says
/// nothing to people.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
pub struct Pairs(Packed);

/// One named address of an instance. `T` holds its texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<T = String> {
    pub name: T,
    pub host: T,
    pub port: u16,
}

/// The addresses of an instance.
#[derive(Clone, PartialEq, Eq, Default, Serialize)]
pub struct Endpoints(Packed);

impl Pairs {
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> + Clone {
        self.0.items(pair)
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.iter().find(|(candidate, _)| *candidate == key).map(|(_, value)| value)
    }

    /// True when all of `wanted` are among them.
    pub fn has_all(&self, wanted: &Pairs) -> bool {
        wanted.iter().all(|(key, value)| self.get(key) == Some(value))
    }

    /// The text that they are encoded as, by which they are found.
    pub(super) fn as_packed(&self) -> &str {
        &self.0.0
    }

    /// None when the text is not one that pairs are encoded as.
    pub(super) fn from_packed(text: Arc<str>) -> Option<Pairs> {
        let mut rest = &*text;
        while !rest.is_empty() {
            pair(&mut rest)?;
        }
        Some(Pairs(Packed(text)))
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        let mut out = Writer::default();
        for (key, value) in pairs {
            out.text(key.as_ref());
            out.text(value.as_ref());
        }
        Pairs(out.done())
    }
}

impl From<Vec<(String, String)>> for Pairs {
    fn from(pairs: Vec<(String, String)>) -> Self {
        pairs.into_iter().collect()
    }
}

impl Endpoints {
    pub fn iter(&self) -> impl Iterator<Item = Endpoint<&str>> + Clone {
        self.0.items(endpoint)
    }

    pub fn len(&self) -> usize {
        self.iter().count()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn as_packed(&self) -> &str {
        &self.0.0
    }
}

impl<T: AsRef<str>> FromIterator<Endpoint<T>> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint<T>>>(endpoints: I) -> Self {
        let mut out = Writer::default();
        for endpoint in endpoints {
            out.text(endpoint.name.as_ref());
            out.text(endpoint.host.as_ref());
            out.number(endpoint.port.into());
        }
        Endpoints(out.done())
    }
}

impl From<Vec<Endpoint>> for Endpoints {
    fn from(endpoints: Vec<Endpoint>) -> Self {
        endpoints.into_iter().collect()
    }
}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        checked(from, "packed pairs of texts", |rest| pair(rest).is_some()).map(Pairs)
    }
}

impl<'de> Deserialize<'de> for Endpoints {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        checked(from, "packed endpoints", |rest| endpoint(rest).is_some()).map(Endpoints)
    }
}

fn pair<'a>(rest: &mut &'a str) -> Option<(&'a str, &'a str)> {
    Some((text(rest)?, text(rest)?))
}

fn endpoint<'a>(rest: &mut &'a str) -> Option<Endpoint<&'a str>> {
    let (name, host) = pair(rest)?;
    Some(Endpoint { name, host, port: number(rest)?.try_into().ok()? })
}

/// Invariant: made by a [`Writer`], or checked when it was read.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
struct Packed(Arc<str>);

impl Packed {
    /// All empty ones are one.
    fn of(text: &str) -> Packed {
        if text.is_empty() { Packed::default() } else { Packed(text.into()) }
    }

    fn items<'a, T>(
        &'a self,
        take: fn(&mut &'a str) -> Option<T>,
    ) -> impl Iterator<Item = T> + Clone + use<'a, T> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let more = !rest.is_empty();
            more.then(|| take(&mut rest).expect("packed as it was written or checked"))
        })
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Packed {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

/// Reads a packed list, all of whose items `take` can read.
fn checked<'de, D: Deserializer<'de>>(
    from: D,
    what: &'static str,
    take: fn(&mut &str) -> bool,
) -> Result<Packed, D::Error> {
    struct Text(&'static str, fn(&mut &str) -> bool);

    impl Visitor<'_> for Text {
        type Value = Packed;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Packed, E> {
            let mut rest = text;
            while !rest.is_empty() {
                if !(self.1)(&mut rest) {
                    return Err(E::invalid_value(Unexpected::Other("other bytes"), &self));
                }
            }
            Ok(Packed::of(text))
        }
    }

    from.deserialize_str(Text(what, take)).map_err(D::Error::custom)
}

#[derive(Default)]
struct Writer(String);

impl Writer {
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.push_str(text);
    }

    fn number(&mut self, mut number: u64) {
        loop {
            let group = (number % u64::from(MORE)) as u8;
            number >>= GROUP_BITS;
            if number == 0 {
                return self.0.push(char::from(group));
            }
            self.0.push(char::from(group | MORE));
        }
    }

    fn done(self) -> Packed {
        Packed::of(&self.0)
    }
}

fn text<'a>(rest: &mut &'a str) -> Option<&'a str> {
    let length = usize::try_from(number(rest)?).ok()?;
    let (text, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(text)
}

/// None also for a number that a [`Writer`] would have written in fewer bytes: equal lists have equal
/// bytes.
fn number(rest: &mut &str) -> Option<u64> {
    let mut number = 0u64;
    for (i, byte) in rest.bytes().enumerate() {
        let group = u64::from(byte % MORE);
        let shift = GROUP_BITS * u32::try_from(i).ok()?;
        if !byte.is_ascii() || shift >= u64::BITS || group << shift >> shift != group {
            return None;
        }
        number |= group << shift;
        if byte & MORE == 0 {
            *rest = &rest[i + 1..];
            return (group != 0 || i == 0).then_some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bincode::Options as _;
    use proptest::prelude::*;

    use super::super::table::coding;
    use super::*;

    fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Option<T> {
        coding(1 << 20).deserialize(bytes).ok()
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_out(pairs: Vec<(String, String)>, ports: Vec<(String, u16)>) {
            let packed: Pairs = pairs.iter().map(|(key, value)| (key, value)).collect();
            prop_assert!(packed.iter().eq(pairs.iter().map(|(k, v)| (k.as_str(), v.as_str()))));
            prop_assert_eq!(packed.len(), pairs.len());
            prop_assert_eq!(packed.is_empty(), pairs.is_empty());
            let first = pairs.first().map(|(key, value)| (key.as_str(), value.as_str()));
            prop_assert_eq!(first.and_then(|(key, _)| packed.get(key)), first.map(|(_, v)| v));
            let bytes = coding(1 << 20).serialize(&packed).unwrap();
            prop_assert_eq!(read::<Pairs>(&bytes), Some(packed));

            let endpoint = |(name, port): &(String, u16)| {
                Endpoint { name: name.clone(), host: name.repeat(20), port: *port }
            };
            let endpoints: Vec<Endpoint> = ports.iter().map(endpoint).collect();
            let packed = Endpoints::from(endpoints.clone());
            let owned = packed.iter().map(|Endpoint { name, host, port }| {
                Endpoint { name: name.to_owned(), host: host.to_owned(), port }
            });
            prop_assert!(owned.eq(endpoints));
            let bytes = coding(1 << 20).serialize(&packed).unwrap();
            prop_assert_eq!(read::<Endpoints>(&bytes), Some(packed));
        }

        /// Any text is refused or is what some list packs to, so that nothing panics later.
        #[test]
        fn any_text_is_read_or_refused(text in "[\0-\u{3}A-C\u{40}-\u{45}ä]{0,12}") {
            let bytes = coding(1 << 20).serialize(&text).unwrap();
            if let Some(packed) = read::<Pairs>(&bytes) {
                prop_assert_eq!(packed.iter().collect::<Pairs>(), packed);
            }
            if let Some(packed) = read::<Endpoints>(&bytes) {
                prop_assert_eq!(packed.iter().collect::<Endpoints>(), packed);
            }
        }

        #[test]
        fn numbers_have_one_form(number: u64) {
            let mut out = Writer::default();
            out.number(number);
            let mut rest = &*out.0;
            prop_assert_eq!(super::number(&mut rest), Some(number));
            prop_assert!(rest.is_empty());
            let last = out.0.pop().unwrap();
            let longer = format!("{}{}\0", out.0, char::from(last as u8 | MORE));
            prop_assert_eq!(super::number(&mut &*longer), None);
        }
    }

    #[test]
    fn the_layout_is_what_the_head_says() {
        let pairs: Pairs = [("k", "v".repeat(100))].into_iter().collect();
        assert_eq!(*pairs.0.0, *format!("\u{1}k\u{64}\u{1}{}", "v".repeat(100)));
        assert_eq!(read::<Pairs>(&coding(64).serialize("\u{1}k").unwrap()), None);
        assert_eq!(
            read::<Endpoints>(&coding(64).serialize("\0\0\u{40}\u{40}\u{10}").unwrap()),
            None
        );
    }
}
