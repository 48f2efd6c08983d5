//! The client against nodes that follow a script.

#![allow(clippy::unwrap_used)]
// Nothing here is part of a simulated node.
#![allow(clippy::disallowed_methods)]

mod config;
mod exactly_once;
mod fake;
mod lock;
mod registration;
mod session;
mod stream;
mod transaction;
mod unary;
mod watch;

use std::time::Duration;

use super::{Client, Options};
use crate::proto::v1::{self, *};
use fake::Node;

/// A client that is quick to give up on a node.
fn client(nodes: &[&Node]) -> Client {
    Client::connect(options(nodes)).unwrap()
}

fn options(nodes: &[&Node]) -> Options {
    Options {
        attempt_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_millis(200),
        call_timeout: Duration::from_secs(5),
        seed: Some(1),
        ..Options::new(nodes.iter().map(|node| node.address.clone()))
    }
}

fn instance(id: &str) -> v1::Instance {
    v1::Instance { service: "s".into(), id: id.into(), ..Default::default() }
}

fn register(id: &str) -> RegisterRequest {
    instance(id).into()
}

fn get(id: &str) -> GetInstanceRequest {
    GetInstanceRequest { service: "s".into(), id: id.into(), ..Default::default() }
}

/// Waits until something holds.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..500 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("did not happen within 5 s: {what}");
}
