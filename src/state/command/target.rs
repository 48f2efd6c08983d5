//! Where the calls of global transactions go.

use super::super::table::{CounterKind, Pairs};
use super::{Addition, CounterName};
use crate::limits;

/// A target as it is written: visible ASCII, nothing of it escaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target<'a> {
    /// `quorate:///service/package.Service/Method`; the service's name may have slashes in it. `path` is
    /// `/package.Service/Method`.
    Service {
        service: &'a str,
        path: &'a str,
    },
    Url(&'a str),
    /// `counter:///name?delta=-5&floor=0`, besides `ceil=`, `namespace=` and `label.NAME=VALUE`.
    Counter(Box<Addition>),
}

const FORMS: &str = "quorate:///service/package.Service/Method, counter:///name?delta=NUMBER, http://… or \
                     https://…, in visible ASCII";

impl<'a> Target<'a> {
    /// An error says what is allowed.
    pub fn parse(text: &'a str) -> Result<Target<'a>, String> {
        let wrong = || FORMS.to_owned();
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong());
        }
        if let Some(rest) = text.strip_prefix("quorate:///") {
            let (front, method) = rest.rsplit_once('/').ok_or_else(wrong)?;
            let (service, interface) = front.rsplit_once('/').ok_or_else(wrong)?;
            if [service, interface, method].iter().any(|part| part.is_empty()) {
                return Err(wrong());
            }
            return Ok(Target::Service { service, path: &rest[service.len()..] });
        }
        if let Some(rest) = text.strip_prefix("counter:///") {
            return Ok(Target::Counter(Box::new(addition(rest)?)));
        }
        let host = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match host {
            Some(host) if !host.is_empty() && !host.starts_with('/') => Ok(Target::Url(text)),
            _ => Err(wrong()),
        }
    }
}

fn addition(text: &str) -> Result<Addition, String> {
    const ALLOWED: &str = "counter:///name?delta=NUMBER, also floor=, ceil=, namespace= and label.NAME=VALUE, each once, \
         joined by &";
    let wrong = || ALLOWED.to_owned();
    let (name, query) = text.split_once('?').ok_or_else(wrong)?;
    let (mut delta, mut floor, mut ceil, mut namespace) = (None, None, None, None);
    let mut labels: Vec<(&str, &str)> = Vec::new();
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').ok_or_else(wrong)?;
        // Nobody is to find that what they have escaped is not read as they meant it.
        if value.contains(['%', '=', '?', '#']) {
            return Err(wrong());
        }
        let number = || value.parse::<i64>().map(Some).map_err(|_| wrong());
        let twice = match (key, key.strip_prefix("label.")) {
            ("delta", _) => std::mem::replace(&mut delta, number()?).is_some(),
            ("floor", _) => std::mem::replace(&mut floor, number()?).is_some(),
            ("ceil", _) => std::mem::replace(&mut ceil, number()?).is_some(),
            ("namespace", _) => namespace.replace(value).is_some(),
            (_, Some(label)) => {
                labels.push((label, value));
                false
            }
            _ => true,
        };
        if twice {
            return Err(wrong());
        }
    }
    labels.sort_unstable();
    let name = CounterName {
        namespace: namespace.unwrap_or(limits::DEFAULT_NAMESPACE).to_owned(),
        name: name.to_owned(),
        labels: labels.into_iter().collect::<Pairs>(),
    };
    // What is compensated goes both ways.
    let kind = Some(CounterKind::Gauge);
    Ok(Addition { name, kind, delta: delta.ok_or_else(wrong)?, floor, ceil })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn targets_are_told_apart() {
        let service = Target::Service { service: "a/b", path: "/p.S/M" };
        assert_eq!(Target::parse("quorate:///a/b/p.S/M").unwrap(), service);
        assert_eq!(Target::parse("http://a").unwrap(), Target::Url("http://a"));
        let text = "counter:///stock?delta=-5&floor=0&label.sku=a:1&namespace=shop&label.b=2";
        let Target::Counter(found) = Target::parse(text).unwrap() else { panic!("{text}") };
        let name = CounterName {
            namespace: "shop".to_owned(),
            name: "stock".to_owned(),
            labels: [("b", "2"), ("sku", "a:1")].into_iter().collect(),
        };
        let kind = Some(CounterKind::Gauge);
        assert_eq!(*found, Addition { name, kind, delta: -5, floor: Some(0), ceil: None });
    }

    #[test]
    fn what_is_no_target_is_refused() {
        for text in [
            "",
            "quorate:///a/M",
            "quorate:///a//M",
            "quorate:////p.S/M",
            "quorate://a/p.S/M",
            "http://",
            "http:///a",
            "ftp://a",
            "counter:///stock",
            "counter:///stock?floor=0",
            "counter:///stock?delta=x",
            "counter:///stock?delta=1&delta=2",
            "counter:///stock?delta=1&colour=2",
            "counter:///stock?delta=1&label.a=%20",
            "quorate:///ä/p.S/M",
        ] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }
}
