//! Sessions that clients open, keep alive and leave alone.

use quorate::error::Error;
use quorate::proto::v1;

use super::{not_written, ok};
use crate::check::leases::EXPIRED;
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::run::recorder::Outcome;

/// The outcome of `:open`, and the session.
pub async fn open(way: &Connection, ttl_ms: u64) -> (Outcome, Option<i64>) {
    let request = v1::OpenSessionRequest { ttl_ms, client: "jepsen".to_owned() };
    match way.open_session(request).await {
        Ok(answer) => {
            let session = answer.session as i64;
            let value = Value::Vector(vec![Value::Int(session)]);
            (ok(value, answer.header, true), Some(session))
        }
        Err(error) => (not_written(&error), None),
    }
}

/// The outcome of `:beat [session]`. One without an answer may still prolong the session.
pub async fn beat(way: &Connection, session: i64) -> Outcome {
    match way.keep_alive(v1::KeepAliveRequest { session: session as u64 }).await {
        Ok(_) => Outcome::Ok { value: Value::Vector(vec![Value::Int(session)]), at: None },
        Err(Error::SessionExpired { .. }) => Outcome::Fail(EXPIRED.to_owned()),
        Err(error) => not_written(&error),
    }
}

pub fn is_expired(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Fail(why) if why == EXPIRED)
}
