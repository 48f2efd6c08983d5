//! What a client is told when it is made, and how the address of a node is written.

use std::time::Duration;

use crate::error::Error;
use crate::limits;

/// Where reads go that must be fresh, and streams with all that they carry. Stale reads always go round all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadFrom {
    /// To the leader while it is known: one hop less.
    #[default]
    Leader,
    /// Round all nodes: any of them answers a linearizable read, which takes load off the leader. One stream goes to
    /// one of them, which hands writes on.
    Any,
}

/// Settings of a [`Client`](super::Client).
#[derive(Debug, Clone)]
pub struct Options {
    /// Client addresses of the nodes, `host:port` or `http://host:port`; one is enough, more survive
    /// the loss of a node.
    pub endpoints: Vec<String>,
    /// Who this is, for people: the name of the sessions that it opens.
    pub client_name: String,
    /// How long opening one connection may take.
    pub connect_timeout: Duration,
    /// How long one node may take to answer before a call that can be repeated goes to another one.
    pub attempt_timeout: Duration,
    /// How long a call may take with all its repetitions.
    pub call_timeout: Duration,
    /// HTTP/2 connections to each node, over which unary calls are spread. One carries about 50 000
    /// calls a second.
    pub connections: usize,
    pub read_from: ReadFrom,
    /// Seed of the random numbers that spread repetitions; None = from the operating system.
    pub seed: Option<u64>,
}

impl Options {
    pub fn new<I>(endpoints: I) -> Options
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Options {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            client_name: "quorate-client".to_owned(),
            connect_timeout: limits::CLIENT_CONNECT_TIMEOUT,
            attempt_timeout: limits::CLIENT_ATTEMPT_TIMEOUT,
            call_timeout: limits::DEFAULT_CALL_TIMEOUT,
            connections: 1,
            read_from: ReadFrom::default(),
            seed: None,
        }
    }

    /// Refuses what cannot work, before anything is opened.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.endpoints.is_empty() || self.endpoints.len() > limits::CLIENT_NODES {
            let allowed = format!("1..={}", limits::CLIENT_NODES);
            return Err(Error::invalid("endpoints", self.endpoints.len().to_string(), allowed));
        }
        if !(1..=limits::CLIENT_CONNECTIONS).contains(&self.connections) {
            let allowed = format!("1..={}", limits::CLIENT_CONNECTIONS);
            return Err(Error::invalid("connections", self.connections.to_string(), allowed));
        }
        for (field, value) in [
            ("connect_timeout", self.connect_timeout),
            ("attempt_timeout", self.attempt_timeout),
            ("call_timeout", self.call_timeout),
        ] {
            if value.is_zero() {
                return Err(Error::invalid(field, format!("{value:?}"), "more than 0"));
            }
        }
        Ok(())
    }
}

/// The one form of an address: lower-case `host:port`, which is how two spellings of one node are
/// seen to be the same.
pub(super) fn address(text: &str) -> Result<String, Error> {
    const ALLOWED: &str = "host:port or http://host:port";
    let trimmed = text.trim();
    if trimmed.starts_with("https://") {
        let allowed = "host:port or http://host:port; TLS is not served yet";
        return Err(Error::invalid("endpoint", text, allowed));
    }
    let bare = trimmed.strip_prefix("http://").unwrap_or(trimmed);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let (host, port) =
        bare.rsplit_once(':').ok_or_else(|| Error::invalid("endpoint", text, ALLOWED))?;
    let port: u16 = port.parse().map_err(|_| Error::invalid("endpoint", text, ALLOWED))?;
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let plausible = !host.is_empty()
        && host.len() <= limits::HOST_BYTES
        && (bracketed || !host.contains(':'))
        && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._[]:%".contains(&b));
    if port == 0 || !plausible {
        return Err(Error::invalid("endpoint", text, ALLOWED));
    }
    Ok(format!("{}:{port}", host.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn addresses() {
        for (text, canonical) in [
            ("127.0.0.1:7650", "127.0.0.1:7650"),
            ("http://Node-1.example:7650/", "node-1.example:7650"),
            ("[::1]:7650", "[::1]:7650"),
            (" http://[fe80::1]:1 ", "[fe80::1]:1"),
        ] {
            assert_eq!(address(text).unwrap(), canonical, "{text}");
        }
        for text in
            ["", "host", "host:", "host:0", "host:65536", ":1", "::1:7650", "a b:1", "a/b:1"]
        {
            assert!(matches!(address(text), Err(Error::Invalid { .. })), "{text}");
        }
        let tls = address("https://a:1").unwrap_err();
        assert!(tls.to_string().contains("TLS"), "{tls}");
    }

    #[test]
    fn options_are_checked() {
        assert!(Options::new(["a:1"]).check().is_ok());
        assert!(Options::new(Vec::<String>::new()).check().is_err());
        assert!(Options { connections: 0, ..Options::new(["a:1"]) }.check().is_err());
        let hurried = Options { call_timeout: Duration::ZERO, ..Options::new(["a:1"]) };
        assert!(hurried.check().is_err());
    }
}
