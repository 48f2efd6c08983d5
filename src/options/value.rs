//! Checks of single values, each with the error that names the option and what is allowed.

use std::ops::RangeInclusive;
use std::time::Duration;

use super::{Error, Scalar};
use crate::limits;

/// Checks `host:port` and returns it. The host is a name or an IP address, IPv6 in brackets.
pub fn host_port(option: &str, given: &str) -> Result<String, Error> {
    const ALLOWED: &str = "host:port, for instance 10.0.0.1:7650, node1:7650 or [::1]:7650";
    split_host_port(given).map(|_| given.to_owned()).ok_or_else(|| invalid(option, given, ALLOWED))
}

/// Host (IPv6 without brackets) and port; None when it is not `host:port`.
pub fn split_host_port(given: &str) -> Option<(String, u16)> {
    let (host, port) = given.rsplit_once(':')?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0)?;
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inner.parse::<std::net::Ipv6Addr>().is_ok().then(|| (inner.to_owned(), port));
    }
    let fits = (1..=limits::HOST_BYTES).contains(&host.len())
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    fits.then(|| (host.to_owned(), port))
}

/// Parses a duration: a whole number and `ms`, `s`, `m`, `h` or `d`; without a unit it is seconds.
pub fn duration(
    option: &str,
    given: &str,
    allowed: RangeInclusive<Duration>,
) -> Result<Duration, Error> {
    let digits = given.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = given.split_at(digits);
    let scale = match unit.trim() {
        "ms" => Some(1),
        "" | "s" => Some(1_000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(scale)
        .and_then(|(number, scale)| number.checked_mul(scale))
        .map(Duration::from_millis)
        .filter(|duration| allowed.contains(duration))
        .ok_or_else(|| {
            let (from, to) = (allowed.start(), allowed.end());
            invalid(option, given, &format!("{from:?}..={to:?}, for instance 500ms, 5s or 1m"))
        })
}

/// A name as the registry allows it.
pub fn name<'a>(option: &str, given: &'a str) -> Result<&'a str, Error> {
    let fits = given.len() <= limits::NAME_BYTES
        && given.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && given.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:/-".contains(&b));
    fits.then_some(given).ok_or_else(|| {
        let most = limits::NAME_BYTES;
        invalid(
            option,
            given,
            &format!("1..={most} bytes of A-Za-z0-9._:/-, first a letter or digit"),
        )
    })
}

pub(super) fn number(
    option: &str,
    given: &str,
    allowed: RangeInclusive<u64>,
) -> Result<u64, Error> {
    given.parse().ok().filter(|number| allowed.contains(number)).ok_or_else(|| {
        let (from, to) = (allowed.start(), allowed.end());
        invalid(option, given, &format!("a number {from}..={to}"))
    })
}

pub(super) fn number_or(
    option: &str,
    given: &Option<Scalar>,
    default: u64,
    allowed: RangeInclusive<u64>,
) -> Result<u64, Error> {
    text(given).map_or(Ok(default), |given| number(option, given, allowed))
}

pub(super) fn flag(option: &str, given: &Option<Scalar>) -> Result<bool, Error> {
    match text(given).unwrap_or("false") {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        other => Err(invalid(option, other, "true, false")),
    }
}

pub(super) fn text(given: &Option<Scalar>) -> Option<&str> {
    given.as_ref().map(|scalar| scalar.0.as_str())
}

pub(super) fn invalid(option: &str, value: &str, allowed: &str) -> Error {
    Error::Invalid { option: option.into(), value: value.into(), allowed: allowed.into() }
}

pub(super) fn missing(option: &str, needed: &str) -> Error {
    Error::Missing { option: option.into(), needed: needed.into() }
}
