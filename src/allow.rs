//! What `--health-check-allow` lets a node connect to: networks, and names of hosts. The list decides over
//! the address that a name has been resolved to, never over the name alone, so that whoever owns a name
//! cannot send a node anywhere else; and the caller connects to that address, without resolving again.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::limits;

/// Empty: nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    networks: Vec<Network>,
    names: Vec<Name>,
}

/// Invariant: IPv4 is never written as IPv6, and the bits behind the prefix are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Host(String),
    /// All names below it; begins with a dot.
    Below(String),
}

/// What is wrong with a list: the part, and what may stand there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub value: String,
    pub allowed: String,
}

impl AllowList {
    /// Parts separated by commas: `10.0.0.0/8`, `10.1.2.3`, `2001:db8::/32`, `web.example.com`,
    /// `.example.com`.
    pub fn parse(given: &str) -> Result<AllowList, Wrong> {
        let mut list = AllowList::default();
        let parts = given.split(',').map(str::trim).filter(|part| !part.is_empty());
        for part in parts {
            match (Network::parse(part)?, Name::parse(part)) {
                (Some(network), _) => list.networks.push(network),
                (None, Some(name)) => list.names.push(name),
                (None, None) => return Err(wrong(part)),
            }
        }
        let count = list.networks.len() + list.names.len();
        if count > limits::HEALTH_ALLOWED {
            let allowed = format!("at most {} networks and names", limits::HEALTH_ALLOWED);
            return Err(Wrong { value: format!("{count} of them"), allowed });
        }
        Ok(list)
    }

    /// Whether a host may be connected to at an address. A network allows whoever is in it. A name allows
    /// the addresses that it resolves to, but none that is no other host's: loopback, link-local (where
    /// clouds keep their secrets), multicast and the unspecified ones take a network.
    pub fn allows(&self, host: &str, address: IpAddr) -> bool {
        let address = plain(address);
        self.networks.iter().any(|network| network.contains(address))
            || (!is_special(address) && self.names_host(host))
    }

    /// False when no address whatever would make [`AllowList::allows`] true: there is no need to resolve
    /// the name.
    pub fn may_allow(&self, host: &str) -> bool {
        match host.parse() {
            Ok(address) => self.allows(host, address),
            Err(_) => !self.networks.is_empty() || self.names_host(host),
        }
    }

    fn names_host(&self, host: &str) -> bool {
        if host.parse::<IpAddr>().is_ok() {
            return false;
        }
        let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
        self.names.iter().any(|name| match name {
            Name::Host(name) => *name == host,
            Name::Below(end) => host.len() > end.len() && host.ends_with(end.as_str()),
        })
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks = self.networks.iter().map(|n| format!("{}/{}", n.address, n.prefix));
        let names = self.names.iter().map(|name| match name {
            Name::Host(name) | Name::Below(name) => name.clone(),
        });
        f.write_str(&networks.chain(names).collect::<Vec<_>>().join(","))
    }
}

impl Network {
    /// None: it is no network at all.
    fn parse(part: &str) -> Result<Option<Network>, Wrong> {
        let (address, prefix) = match part.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (part, None),
        };
        let Ok(given) = address.parse::<IpAddr>() else {
            return match prefix {
                Some(_) => Err(wrong(part)),
                None => Ok(None),
            };
        };
        let bits = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits(given),
            Some(prefix) => {
                let digits = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
                let prefix = prefix.parse().ok().filter(|prefix| digits && *prefix <= bits(given));
                prefix.ok_or_else(|| wrong(part))?
            }
        };
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8. A wider one is no network of IPv4 and stays what it is.
        let network = match given.to_canonical() {
            IpAddr::V4(address) if given.is_ipv6() && prefix >= 96 => {
                Network { address: address.into(), prefix: prefix - 96 }
            }
            _ => Network { address: given, prefix },
        };
        let masked = network.masked(network.address);
        if masked != network.address {
            let allowed = format!("zeros behind the prefix: {masked}/{}", network.prefix);
            return Err(Wrong { value: part.to_owned(), allowed });
        }
        Ok(Some(network))
    }

    fn masked(&self, address: IpAddr) -> IpAddr {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        }
    }

    fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == self.address
    }
}

impl Name {
    fn parse(part: &str) -> Option<Name> {
        let (below, name) = match part.strip_prefix('.') {
            Some(name) => (true, name),
            None => (false, part),
        };
        let label = |label: &str| {
            let byte = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
            !label.is_empty() && label.bytes().all(byte)
        };
        // What consists of numbers alone is an address that is misspelt, or one that a resolver would take
        // for one.
        let number = |label: &str| label.bytes().all(|b| b.is_ascii_digit());
        let last = name.rsplit('.').next().unwrap_or_default();
        if name.len() > limits::HOST_BYTES || !name.split('.').all(label) || number(last) {
            return None;
        }
        let lower = part.to_ascii_lowercase();
        Some(if below { Name::Below(lower) } else { Name::Host(lower) })
    }
}

fn wrong(part: &str) -> Wrong {
    let allowed = "networks (10.0.0.0/8, 2001:db8::/32), addresses, names of hosts (web.example.com) and, \
                   with a dot before them, all names below (.example.com)";
    Wrong { value: part.to_owned(), allowed: allowed.to_owned() }
}

/// IPv4 as such, also where IPv6 only carries it: mapped, or translated by NAT64 (RFC 6052).
fn plain(address: IpAddr) -> IpAddr {
    let IpAddr::V6(six) = address.to_canonical() else { return address.to_canonical() };
    match six.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
            Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)).into()
        }
        _ => six.into(),
    }
}

/// Addresses that are no other host's, or of a network that a name must not lead to.
fn is_special(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => {
            let this_network = four.octets()[0] == 0;
            this_network
                || four.is_loopback()
                || four.is_link_local()
                || four.is_multicast()
                || four.is_broadcast()
        }
        IpAddr::V6(six) => {
            // The low 32 bits of what is left of ::/96 were once IPv4 as well.
            let compatible = six.segments()[..6] == [0; 6];
            compatible || six.is_unicast_link_local() || six.is_multicast()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn list(text: &str) -> AllowList {
        AllowList::parse(text).unwrap()
    }

    fn allows(text: &str, host: &str, address: &str) -> bool {
        list(text).allows(host, address.parse().unwrap())
    }

    #[test]
    fn networks_allow_what_is_in_them() {
        for (text, address, allowed) in [
            ("", "10.0.0.1", false),
            ("10.0.0.0/8", "10.255.255.255", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/9", "10.128.0.0", false),
            ("10.1.2.3", "10.1.2.3", true),
            ("10.1.2.3", "10.1.2.4", false),
            ("0.0.0.0/0", "127.0.0.1", true),
            ("0.0.0.0/0", "::1", false),
            ("2001:db8::/33", "2001:db8:7fff::1", true),
            ("2001:db8::/33", "2001:db8:8000::1", false),
            ("::1", "::1", true),
            ("::/0", "::1", true),
            // IPv4 in the clothes of IPv6 is what it is.
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("::/0", "::ffff:10.0.0.1", false),
            ("::ffff:10.0.0.0/104", "10.9.9.9", true),
            ("::ffff:10.0.0.0/104", "11.9.9.9", false),
            ("10.0.0.0/8", "64:ff9b::a00:1", true),
            ("2001:db8::/32, 64:ff9b::/96", "64:ff9b::7f00:1", false),
        ] {
            assert_eq!(allows(text, "x.example", address), allowed, "{text} {address}");
            assert_eq!(allows(text, address, address), allowed, "{text} {address}");
        }
    }

    /// The name is the operator's word for where it leads, but not to this machine, and not to where a
    /// cloud keeps its secrets.
    #[test]
    fn names_allow_what_they_resolve_to_but_nothing_special() {
        for (text, host, address, allowed) in [
            ("web.example.com", "web.example.com", "192.0.2.1", true),
            ("web.example.com", "WEB.example.com.", "192.0.2.1", true),
            ("web.example.com", "a.web.example.com", "192.0.2.1", false),
            ("web.example.com", "webxexample.com", "192.0.2.1", false),
            (".example.com", "web.example.com", "192.0.2.1", true),
            (".example.com", "a.web.example.com", "2001:db8::1", true),
            (".example.com", "example.com", "192.0.2.1", false),
            (".example.com", "evilexample.com", "192.0.2.1", false),
            (".example.com", "web.example.com.evil.org", "192.0.2.1", false),
            (".example.com", "web.example.com", "127.0.0.1", false),
            (".example.com", "web.example.com", "0.0.0.0", false),
            (".example.com", "web.example.com", "169.254.169.254", false),
            (".example.com", "web.example.com", "::ffff:169.254.169.254", false),
            (".example.com", "web.example.com", "64:ff9b::a9fe:a9fe", false),
            (".example.com", "web.example.com", "::127.0.0.1", false),
            (".example.com", "web.example.com", "::1", false),
            (".example.com", "web.example.com", "::", false),
            (".example.com", "web.example.com", "fe80::1", false),
            (".example.com", "web.example.com", "224.0.0.1", false),
            (".example.com", "web.example.com", "255.255.255.255", false),
            (".example.com, 127.0.0.0/8", "web.example.com", "127.0.0.1", true),
        ] {
            assert_eq!(allows(text, host, address), allowed, "{text} {host} {address}");
        }
    }

    #[test]
    fn what_can_never_be_allowed_is_known_without_resolving() {
        assert!(!list("").may_allow("web.example.com"));
        assert!(!list("").may_allow("10.0.0.1"));
        assert!(!list("a.example").may_allow("b.example"));
        assert!(list("a.example").may_allow("A.example"));
        assert!(!list("a.example").may_allow("10.0.0.1"));
        assert!(list("10.0.0.0/8").may_allow("whatever.example"));
        assert!(!list("10.0.0.0/8").may_allow("11.0.0.1"));
        assert!(list("10.0.0.0/8").may_allow("::ffff:10.0.0.1"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, value) in [
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("10.0.0.0/+8", "10.0.0.0/+8"),
            ("10.0.0.0/", "10.0.0.0/"),
            ("::/129", "::/129"),
            ("a.example, 10.0.0", "10.0.0"),
            ("256.0.0.1", "256.0.0.1"),
            ("http://a.example", "http://a.example"),
            ("a.example:80", "a.example:80"),
            ("a..example", "a..example"),
            ("*.example", "*.example"),
            (".", "."),
            ("example/8", "example/8"),
        ] {
            let wrong = AllowList::parse(text).unwrap_err();
            assert_eq!(wrong.value, value, "{text}");
            assert!(wrong.allowed.starts_with("networks (10.0.0.0/8"), "{wrong:?}");
        }
        let wrong = AllowList::parse("10.0.0.1/8").unwrap_err();
        assert_eq!(wrong.allowed, "zeros behind the prefix: 10.0.0.0/8");
        let many = vec!["10.0.0.1"; limits::HEALTH_ALLOWED + 1].join(",");
        assert_eq!(AllowList::parse(&many).unwrap_err().value, "257 of them");
        assert_eq!(AllowList::parse(" , ").unwrap(), AllowList::default());
        assert_eq!(list("10.0.0.0/8, .Example.com").to_string(), "10.0.0.0/8,.example.com");
    }
}
