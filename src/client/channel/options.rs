//! What a channel is asked for: a URI, and what no URI can say.

use std::path::PathBuf;
use std::str::FromStr;

use http::HeaderName;

use super::super::balance::{Origin, Policy};
use super::tls::TlsOptions;
use crate::error::Error;

/// Settings of a [`Channel`](super::Channel). A URI is parsed into them:
///
/// ```text
/// quorate:///SERVICE?PARAMETER=VALUE&...
/// ```
///
/// | parameter | meaning |
/// |---|---|
/// | `namespace` | where the service is; without it "default" |
/// | `policy` and the policy's parameters | instead of the policy that the service's record sets; see [`balance`](super::super::balance) |
/// | `hash_header` | the header of a call that holds its key, for policies that hash |
/// | `port` | name of the instances' port; without it "grpc", and the first one where there is none of that name |
/// | `from_zone` | the zone of this client, for policies with `zone=prefer` |
/// | `retry` | `unsent`: calls that an instance certainly did not begin with go to the next one. `lost`: also those that it may have begun with, for services whose calls can all be repeated |
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelOptions {
    /// Empty = "default".
    pub namespace: String,
    pub service: String,
    /// None = as the service's record says, and the default policy where it says nothing.
    pub policy: Option<Policy>,
    pub hash_header: Option<HeaderName>,
    pub port: Option<String>,
    /// Who picks. An empty id = a random one.
    pub origin: Origin,
    pub retry: Retry,
    /// For instances whose metadata have `tls=true`.
    pub tls: Option<TlsOptions>,
    /// Keeps what is known of the service for a start while the cluster cannot be reached.
    pub directory: Option<PathBuf>,
}

/// Which calls that failed go to another instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// Those that no instance began with.
    #[default]
    Unsent,
    /// Those that an instance may have begun with too: no answer came, or UNAVAILABLE.
    Lost,
}

impl ChannelOptions {
    /// The service as it is, in the namespace "default".
    pub fn new(service: impl Into<String>) -> ChannelOptions {
        ChannelOptions {
            namespace: String::new(),
            service: service.into(),
            policy: None,
            hash_header: None,
            port: None,
            origin: Origin::default(),
            retry: Retry::default(),
            tls: None,
            directory: None,
        }
    }

    pub fn tls(mut self, tls: TlsOptions) -> Self {
        self.tls = Some(tls);
        self
    }

    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    fn set(&mut self, name: &str, value: &str) -> Result<bool, Error> {
        match name {
            "namespace" => self.namespace = value.to_owned(),
            "hash_header" => self.hash_header = Some(header(value)?),
            "port" => self.port = Some(value.to_owned()),
            "from_zone" => self.origin.zone = value.to_owned(),
            "retry" => {
                self.retry = match value {
                    "unsent" => Retry::Unsent,
                    "lost" => Retry::Lost,
                    _ => return Err(Error::invalid("retry", value, "unsent or lost")),
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

impl FromStr for ChannelOptions {
    type Err = Error;

    fn from_str(uri: &str) -> Result<ChannelOptions, Error> {
        const ALLOWED: &str = "quorate:///SERVICE?PARAMETER=VALUE&...";
        let wrong = || Error::invalid("channel", uri, ALLOWED);
        let rest = uri.strip_prefix("quorate:///").ok_or_else(wrong)?;
        let (service, query) = rest.split_once('?').unwrap_or((rest, ""));
        if service.is_empty() || service.contains('/') {
            return Err(wrong());
        }
        let mut options = ChannelOptions::new(decoded("service", service)?);
        let mut policy = None;
        let mut parameters: Vec<(String, String)> = Vec::new();
        let mut seen = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| Error::invalid("channel parameter", pair, "name=value"))?;
            let value = decoded(name, value)?;
            if seen.contains(&name) {
                return Err(Error::invalid(name, value, "given once"));
            }
            seen.push(name);
            match name {
                "policy" => policy = Some(value),
                _ if options.set(name, &value)? => {}
                _ => parameters.push((name.to_owned(), value)),
            }
        }
        let pairs = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        options.policy = match (policy, parameters.first()) {
            (Some(name), _) => Some(Policy::parse(&name, pairs)?),
            (None, None) => None,
            (None, Some((name, _))) => {
                let allowed = "namespace, hash_header, port, from_zone, retry, policy; \
                               and parameters of a policy beside policy=NAME";
                return Err(Error::invalid("channel parameter", name, allowed));
            }
        };
        Ok(options)
    }
}

/// A header that a call can carry as text.
fn header(name: &str) -> Result<HeaderName, Error> {
    let wrong =
        || Error::invalid("hash_header", name, "name of a header that does not end in -bin");
    let header = HeaderName::from_str(name).map_err(|_| wrong())?;
    // As in gRFC A42: what is binary is no key.
    if header.as_str().ends_with("-bin") { Err(wrong()) } else { Ok(header) }
}

/// Takes the %XX away.
fn decoded(field: &str, text: &str) -> Result<String, Error> {
    let wrong = || Error::invalid(field, text, "UTF-8, with %XX for what a URI cannot hold");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit(), digit());
        bytes.push((high.ok_or_else(wrong)? * 16 + low.ok_or_else(wrong)?) as u8);
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(uri: &str) -> Result<ChannelOptions, Error> {
        uri.parse()
    }

    #[test]
    fn a_uri_says_what_is_wanted() {
        assert_eq!(parse("quorate:///orders").unwrap(), ChannelOptions::new("orders"));
        let options = parse(
            "quorate:///a%2Fb?policy=ring_hash&bound=1.25&hash_header=X-User&namespace=eu\
             &port=rpc&from_zone=z%201&retry=lost",
        )
        .unwrap();
        let expected = ChannelOptions {
            namespace: "eu".into(),
            policy: Some("ring_hash?bound=1.25".parse().unwrap()),
            hash_header: Some(HeaderName::from_static("x-user")),
            port: Some("rpc".into()),
            origin: Origin { id: String::new(), zone: "z 1".into() },
            retry: Retry::Lost,
            ..ChannelOptions::new("a/b")
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn what_is_wrong_with_a_uri_is_said() {
        for (uri, says) in [
            ("http:///orders", "channel"),
            ("quorate:///", "channel"),
            ("quorate://orders", "channel"),
            ("quorate:///a/b", "channel"),
            ("quorate:///a?policy", "name=value"),
            ("quorate:///a?policy=fastest", "least_request"),
            ("quorate:///a?bound=1.25", "beside policy=NAME"),
            ("quorate:///a?policy=random&points=3", "policy parameter"),
            ("quorate:///a?retry=always", "unsent or lost"),
            ("quorate:///a?retry=lost&retry=lost", "given once"),
            ("quorate:///a?hash_header=key-bin", "-bin"),
            ("quorate:///a?hash_header=a%20b", "hash_header"),
            ("quorate:///a?port=%f", "%XX"),
            ("quorate:///a%ff", "UTF-8"),
        ] {
            let error = parse(uri).unwrap_err();
            assert!(error.to_string().contains(says), "{uri}: {error}");
        }
    }
}
