//! The one error of the public API, inside the server and in the client: few kinds, each with what a
//! caller can do about it and whether a write certainly did not happen. One match to
//! [`tonic::Status`], one back.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::proto::v1::Reason;

/// `ErrorInfo.domain` of every error of ours.
pub const DOMAIN: &str = "quorate";

/// What went wrong. `definite()` tells whether a write certainly did not take place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{field}: {value:?} is not allowed; allowed: {allowed}")]
    Invalid { field: String, value: String, allowed: String },
    #[error("{kind} {name:?} does not exist")]
    NotFound { kind: String, name: String },
    #[error("session {session} is unknown or has expired; open a new one")]
    SessionExpired { session: u64 },
    #[error("sequence {sequence} was acknowledged before; the lowest known is {lowest}")]
    SequenceForgotten { sequence: u64, lowest: u64 },
    #[error("more than {limit} unacknowledged writes in one session; wait for answers")]
    TooManyInFlight { limit: u64 },
    #[error("expected revision {expected}, the record is at {current}")]
    CompareFailed { expected: u64, current: u64 },
    #[error("the instance belongs to the live session {owner}")]
    OwnedByAnother { owner: u64 },
    #[error("limit reached: {limit} (at most {allowed})")]
    LimitReached { limit: String, allowed: u64 },
    #[error("{kind} {name:?} is in use by {by}")]
    InUse { kind: String, name: String, by: String },
    /// `definite` is false for a write that was handed to a leader whose answer is unknown.
    #[error("no leader could be reached{}", leader.as_ref().map(|l| format!("; last known: {l}")).unwrap_or_default())]
    NoLeader { leader: Option<String>, definite: bool },
    #[error("overloaded: {queue} is full ({limit}); try again")]
    Overloaded { queue: String, limit: u64 },
    #[error("the deadline passed{}", if *definite { "" } else { "; the write may have taken place" })]
    Timeout { definite: bool },
    #[error("the watcher was too slow; resume after revision {resume_revision}")]
    WatchLagged { resume_revision: u64 },
    #[error("the node is shutting down")]
    ShuttingDown { definite: bool },
    #[error("the leader changed while the write was under way; it may have taken place")]
    LeaderChanged,
    #[error(
        "the node is low on disk space ({free_bytes} bytes free) and takes no writes as the leader"
    )]
    NoSpace { free_bytes: u64 },
    #[error("membership: {why}")]
    Membership { why: String },
    /// The transport failed before an answer arrived.
    #[error("connection: {message}")]
    Connection { message: String, definite: bool },
    #[error("internal error: {message}")]
    Internal { message: String },
    #[error("expected the value {expected}, the counter is at {current}")]
    ValueDiffers { expected: i64, current: i64 },
    #[error("{value} and {delta} would cross the bound {bound}; nothing was added")]
    OutOfBounds { value: i64, delta: i64, bound: i64 },
    #[error("the lock is held by session {owner} with token {token}")]
    LockHeld { owner: u64, token: u64 },
    #[error("the schema changed from revision {checked} to {current} meanwhile; try again")]
    SchemaChanged { checked: u64, current: u64 },
    /// A global transaction.
    #[error("the transaction is {status}")]
    SagaIs { status: String },
    /// `line` and `column` are 0 where they are not known; `path` is a JSON pointer.
    #[error("{}", malformed(.field, *.line, *.column, .path, .why))]
    Malformed { field: String, line: u64, column: u64, path: String, why: String },
    /// Of an optimistic transaction, which was tried so often; nothing of it took place.
    #[error("the transaction conflicted with others {attempts} times, at last over {what}")]
    Conflict { attempts: u32, what: String },
    /// Of a step of a transaction, by its place.
    #[error("step {step}: {error}")]
    InStep { step: u32, error: Box<Error> },
}

fn malformed(field: &str, line: u64, column: u64, path: &str, why: &str) -> String {
    let mut text = field.to_owned();
    if line > 0 {
        text.push_str(&format!(", line {line}"));
    }
    if column > 0 {
        text.push_str(&format!(", column {column}"));
    }
    if !path.is_empty() {
        text.push_str(&format!(", at {path}"));
    }
    format!("{text}: {why}")
}

impl Error {
    pub fn invalid(
        field: impl Into<String>,
        value: impl Into<String>,
        allowed: impl Into<String>,
    ) -> Self {
        let mut value = value.into();
        // An error message is no place for a megabyte of input.
        if value.len() > 64 {
            value.truncate(value.floor_char_boundary(64));
            value.push('…');
        }
        Error::Invalid { field: field.into(), value, allowed: allowed.into() }
    }

    pub fn internal(message: impl ToString) -> Self {
        Error::Internal { message: message.to_string() }
    }

    /// Of a transaction of one step: what was wrong is wrong with that step.
    pub fn without_step(self) -> Self {
        if let Error::InStep { error, .. } = self { *error } else { self }
    }

    /// True when a write that got this error certainly did not take place. It speaks of the copy of the
    /// write that it answers: who has sent the write before and got no answer, or an answer that is
    /// not definite, still does not know. The client library keeps count of that for each call.
    pub fn definite(&self) -> bool {
        match self {
            Error::Invalid { .. }
            | Error::NotFound { .. }
            | Error::TooManyInFlight { .. }
            | Error::CompareFailed { .. }
            | Error::OwnedByAnother { .. }
            | Error::LimitReached { .. }
            | Error::InUse { .. }
            | Error::Overloaded { .. }
            | Error::WatchLagged { .. }
            | Error::NoSpace { .. }
            | Error::Membership { .. }
            | Error::ValueDiffers { .. }
            | Error::OutOfBounds { .. }
            | Error::LockHeld { .. }
            | Error::SagaIs { .. }
            | Error::SchemaChanged { .. }
            | Error::Conflict { .. }
            | Error::Malformed { .. } => true,
            Error::InStep { error, .. } => error.definite(),
            // Who answers cannot know whether the write was sent before: an earlier copy may have
            // taken place while the session lived, or before its answer was forgotten.
            Error::SessionExpired { .. } | Error::SequenceForgotten { .. } => false,
            Error::LeaderChanged | Error::Internal { .. } => false,
            Error::NoLeader { definite, .. }
            | Error::Timeout { definite }
            | Error::ShuttingDown { definite }
            | Error::Connection { definite, .. } => *definite,
        }
    }

    /// True when the same call may succeed if it is sent again, here or to another node. A write
    /// without a request id may only be repeated when the error is also [`Error::definite`].
    pub fn retryable(&self) -> bool {
        match self {
            Error::NoLeader { .. }
            | Error::Overloaded { .. }
            | Error::Timeout { .. }
            | Error::ShuttingDown { .. }
            | Error::LeaderChanged
            | Error::Connection { .. }
            | Error::SchemaChanged { .. }
            | Error::TooManyInFlight { .. } => true,
            Error::InStep { error, .. } => error.retryable(),
            Error::Invalid { .. }
            | Error::NotFound { .. }
            | Error::SessionExpired { .. }
            | Error::SequenceForgotten { .. }
            | Error::CompareFailed { .. }
            | Error::OwnedByAnother { .. }
            | Error::LimitReached { .. }
            | Error::InUse { .. }
            | Error::WatchLagged { .. }
            | Error::NoSpace { .. }
            | Error::Membership { .. }
            | Error::ValueDiffers { .. }
            | Error::OutOfBounds { .. }
            | Error::LockHeld { .. }
            | Error::SagaIs { .. }
            | Error::Conflict { .. }
            | Error::Malformed { .. }
            | Error::Internal { .. } => false,
        }
    }

    /// The reason as the public API numbers it.
    pub fn reason(&self) -> Reason {
        self.parts().1
    }

    pub fn code(&self) -> Code {
        self.parts().0
    }

    /// Code, reason and the metadata from which the error can be read back.
    fn parts(&self) -> (Code, Reason, Vec<(&'static str, String)>) {
        match self {
            Error::Invalid { field, value, allowed } => (
                Code::InvalidArgument,
                Reason::InvalidArgument,
                vec![
                    ("field", field.clone()),
                    ("value", value.clone()),
                    ("allowed", allowed.clone()),
                ],
            ),
            Error::NotFound { kind, name } => (
                Code::NotFound,
                Reason::NotFound,
                vec![("kind", kind.clone()), ("name", name.clone())],
            ),
            Error::SessionExpired { session } => (
                Code::FailedPrecondition,
                Reason::SessionExpired,
                vec![("session", session.to_string())],
            ),
            Error::SequenceForgotten { sequence, lowest } => (
                Code::FailedPrecondition,
                Reason::SequenceForgotten,
                vec![("sequence", sequence.to_string()), ("lowest", lowest.to_string())],
            ),
            Error::TooManyInFlight { limit } => (
                Code::ResourceExhausted,
                Reason::TooManyInFlight,
                vec![("limit", limit.to_string())],
            ),
            Error::CompareFailed { expected, current } => (
                Code::FailedPrecondition,
                Reason::CompareFailed,
                vec![("expected", expected.to_string()), ("current", current.to_string())],
            ),
            Error::OwnedByAnother { owner } => (
                Code::FailedPrecondition,
                Reason::OwnedByAnother,
                vec![("owner", owner.to_string())],
            ),
            Error::LimitReached { limit, allowed } => (
                Code::ResourceExhausted,
                Reason::LimitReached,
                vec![("limit", limit.clone()), ("allowed", allowed.to_string())],
            ),
            Error::InUse { kind, name, by } => (
                Code::FailedPrecondition,
                Reason::InUse,
                vec![("kind", kind.clone()), ("name", name.clone()), ("by", by.clone())],
            ),
            Error::NoLeader { leader, .. } => (
                Code::Unavailable,
                Reason::NoLeader,
                leader.iter().map(|l| ("leader", l.clone())).collect(),
            ),
            Error::Overloaded { queue, limit } => (
                Code::ResourceExhausted,
                Reason::Overloaded,
                vec![("queue", queue.clone()), ("limit", limit.to_string())],
            ),
            Error::Timeout { .. } => (Code::DeadlineExceeded, Reason::Timeout, vec![]),
            Error::WatchLagged { resume_revision } => (
                Code::Aborted,
                Reason::WatchLagged,
                vec![("resume_revision", resume_revision.to_string())],
            ),
            Error::ShuttingDown { .. } => (Code::Unavailable, Reason::ShuttingDown, vec![]),
            Error::LeaderChanged => (Code::Unavailable, Reason::LeaderChanged, vec![]),
            Error::NoSpace { free_bytes } => (
                Code::ResourceExhausted,
                Reason::NoSpace,
                vec![("free_bytes", free_bytes.to_string())],
            ),
            Error::Membership { why } => {
                (Code::FailedPrecondition, Reason::Membership, vec![("why", why.clone())])
            }
            Error::Connection { message, .. } => {
                (Code::Unavailable, Reason::Unspecified, vec![("message", message.clone())])
            }
            Error::Internal { message } => {
                (Code::Internal, Reason::Internal, vec![("message", message.clone())])
            }
            Error::ValueDiffers { expected, current } => (
                Code::FailedPrecondition,
                Reason::CompareFailed,
                vec![
                    ("expected_value", expected.to_string()),
                    ("current_value", current.to_string()),
                ],
            ),
            Error::OutOfBounds { value, delta, bound } => (
                Code::OutOfRange,
                Reason::OutOfBounds,
                vec![
                    ("value", value.to_string()),
                    ("delta", delta.to_string()),
                    ("bound", bound.to_string()),
                ],
            ),
            Error::LockHeld { owner, token } => (
                Code::FailedPrecondition,
                Reason::LockHeld,
                vec![("owner", owner.to_string()), ("token", token.to_string())],
            ),
            Error::SagaIs { status } => {
                (Code::FailedPrecondition, Reason::SagaStatus, vec![("status", status.clone())])
            }
            Error::SchemaChanged { checked, current } => (
                Code::Aborted,
                Reason::SchemaChanged,
                vec![("checked", checked.to_string()), ("current", current.to_string())],
            ),
            Error::Malformed { field, line, column, path, why } => (
                Code::InvalidArgument,
                Reason::Malformed,
                vec![
                    ("field", field.clone()),
                    ("line", line.to_string()),
                    ("column", column.to_string()),
                    ("path", path.clone()),
                    ("why", why.clone()),
                ],
            ),
            Error::Conflict { attempts, what } => (
                Code::Aborted,
                Reason::CompareFailed,
                vec![("attempts", attempts.to_string()), ("what", what.clone())],
            ),
            Error::InStep { step, error } => {
                let (code, reason, mut pairs) = error.parts();
                pairs.push(("step", step.to_string()));
                (code, reason, pairs)
            }
        }
    }

    /// Reason, metadata and the `definite` flag: what [`Error::from_wire`] reads back.
    pub fn to_wire(&self) -> (Code, Reason, HashMap<String, String>) {
        let (code, reason, pairs) = self.parts();
        let mut metadata: HashMap<String, String> =
            pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        metadata.insert("definite".to_owned(), self.definite().to_string());
        (code, reason, metadata)
    }

    /// The error that a server of ours described, or, for a reason that this release does not know or
    /// a status that is not ours, the nearest by code.
    pub fn from_wire(
        code: Code,
        message: &str,
        reason: Reason,
        metadata: &BTreeMap<String, String>,
    ) -> Self {
        if let Some(step) = metadata.get("step").and_then(|step| step.parse().ok()) {
            let mut metadata = metadata.clone();
            metadata.remove("step");
            let error = Error::from_wire(code, message, reason, &metadata);
            return Error::InStep { step, error: Box::new(error) };
        }
        let text = |key: &str| metadata.get(key).cloned().unwrap_or_default();
        let signed = |key: &str| metadata.get(key).and_then(|v| v.parse().ok()).unwrap_or(0i64);
        let number = |key: &str| metadata.get(key).and_then(|v| v.parse().ok()).unwrap_or(0u64);
        let definite = metadata.get("definite").is_some_and(|v| v == "true");
        // Of a status that is not ours there is only its text.
        let told = || metadata.get("message").map_or(message, String::as_str).to_owned();
        match reason {
            Reason::InvalidArgument => Error::Invalid {
                field: text("field"),
                value: text("value"),
                allowed: text("allowed"),
            },
            Reason::NotFound => Error::NotFound { kind: text("kind"), name: text("name") },
            Reason::SessionExpired => Error::SessionExpired { session: number("session") },
            Reason::SequenceForgotten => {
                Error::SequenceForgotten { sequence: number("sequence"), lowest: number("lowest") }
            }
            Reason::TooManyInFlight => Error::TooManyInFlight { limit: number("limit") },
            Reason::CompareFailed if metadata.contains_key("current_value") => {
                Error::ValueDiffers {
                    expected: signed("expected_value"),
                    current: signed("current_value"),
                }
            }
            Reason::CompareFailed if metadata.contains_key("attempts") => Error::Conflict {
                attempts: number("attempts").try_into().unwrap_or(u32::MAX),
                what: text("what"),
            },
            Reason::CompareFailed => {
                Error::CompareFailed { expected: number("expected"), current: number("current") }
            }
            Reason::OwnedByAnother => Error::OwnedByAnother { owner: number("owner") },
            Reason::LimitReached => {
                Error::LimitReached { limit: text("limit"), allowed: number("allowed") }
            }
            Reason::InUse => {
                Error::InUse { kind: text("kind"), name: text("name"), by: text("by") }
            }
            Reason::NoLeader => {
                Error::NoLeader { leader: metadata.get("leader").cloned(), definite }
            }
            Reason::Overloaded => {
                Error::Overloaded { queue: text("queue"), limit: number("limit") }
            }
            Reason::Timeout => Error::Timeout { definite },
            Reason::WatchLagged => {
                Error::WatchLagged { resume_revision: number("resume_revision") }
            }
            Reason::ShuttingDown => Error::ShuttingDown { definite },
            Reason::LeaderChanged => Error::LeaderChanged,
            Reason::NoSpace => Error::NoSpace { free_bytes: number("free_bytes") },
            Reason::Membership => Error::Membership { why: text("why") },
            Reason::Internal => Error::Internal { message: told() },
            Reason::OutOfBounds => Error::OutOfBounds {
                value: signed("value"),
                delta: signed("delta"),
                bound: signed("bound"),
            },
            Reason::LockHeld => Error::LockHeld { owner: number("owner"), token: number("token") },
            Reason::SagaStatus => Error::SagaIs { status: text("status") },
            Reason::SchemaChanged => {
                Error::SchemaChanged { checked: number("checked"), current: number("current") }
            }
            Reason::Malformed => Error::Malformed {
                field: text("field"),
                line: number("line"),
                column: number("column"),
                path: text("path"),
                why: text("why"),
            },
            Reason::Unspecified => match code {
                Code::DeadlineExceeded | Code::Cancelled => Error::Timeout { definite: false },
                Code::Unavailable => Error::Connection { message: told(), definite },
                // Not even those that blame the request: an answer that this side refuses to read, such
                // as one that is too long, looks the same.
                Code::Ok
                | Code::Unknown
                | Code::InvalidArgument
                | Code::OutOfRange
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::ResourceExhausted
                | Code::FailedPrecondition
                | Code::Aborted
                | Code::Unimplemented
                | Code::Internal
                | Code::DataLoss
                | Code::Unauthenticated => {
                    Error::Internal { message: format!("{code:?}: {message}") }
                }
            },
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        let (code, reason, metadata) = error.to_wire();
        let mut details = ErrorDetails::with_error_info(reason_name(reason), DOMAIN, metadata);
        if matches!(error, Error::Overloaded { .. }) {
            details.set_retry_info(Some(Duration::from_millis(50)));
        }
        Status::with_error_details(code, error.to_string(), details)
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Error {
        let details = status.get_error_details();
        let (reason, metadata) = match details.error_info() {
            Some(info) if info.domain == DOMAIN => {
                let name = format!("REASON_{}", info.reason);
                let reason = Reason::from_str_name(&name).unwrap_or(Reason::Unspecified);
                (reason, info.metadata.clone().into_iter().collect())
            }
            Some(_) | None => (Reason::Unspecified, BTreeMap::new()),
        };
        Error::from_wire(status.code(), status.message(), reason, &metadata)
    }
}

/// `REASON_NOT_FOUND` is `NOT_FOUND` in `ErrorInfo.reason`, as Google's API guide asks for.
fn reason_name(reason: Reason) -> &'static str {
    reason.as_str_name().trim_start_matches("REASON_")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// One of each kind, and whether a write that gets it certainly did not take place.
    fn all() -> Vec<(Error, bool)> {
        let text = || "x".to_owned();
        let mut all = vec![
            (Error::invalid("f", "v", "a"), true),
            (Error::NotFound { kind: text(), name: text() }, true),
            (Error::SessionExpired { session: 7 }, false),
            (Error::SequenceForgotten { sequence: 3, lowest: 4 }, false),
            (Error::TooManyInFlight { limit: 5 }, true),
            (Error::CompareFailed { expected: 1, current: 2 }, true),
            (Error::OwnedByAnother { owner: 9 }, true),
            (Error::LimitReached { limit: text(), allowed: 1 }, true),
            (Error::InUse { kind: text(), name: text(), by: text() }, true),
            (Error::Overloaded { queue: text(), limit: 1 }, true),
            (Error::WatchLagged { resume_revision: 8 }, true),
            (Error::LeaderChanged, false),
            (Error::NoSpace { free_bytes: 1 }, true),
            (Error::Membership { why: text() }, true),
            (Error::Internal { message: text() }, false),
            (Error::ValueDiffers { expected: -1, current: 2 }, true),
            (Error::OutOfBounds { value: 1, delta: -2, bound: 0 }, true),
            (Error::LockHeld { owner: 3, token: 4 }, true),
            (Error::SchemaChanged { checked: 1, current: 2 }, true),
            (Error::SagaIs { status: text() }, true),
            (Error::Conflict { attempts: 16, what: text() }, true),
            (
                Error::Malformed { field: text(), line: 1, column: 2, path: text(), why: text() },
                true,
            ),
            (
                Error::InStep {
                    step: 3,
                    error: Box::new(Error::CompareFailed { expected: 1, current: 2 }),
                },
                true,
            ),
        ];
        for definite in [true, false] {
            all.push((Error::NoLeader { leader: None, definite }, definite));
            all.push((Error::NoLeader { leader: Some(text()), definite }, definite));
            all.push((Error::Timeout { definite }, definite));
            all.push((Error::ShuttingDown { definite }, definite));
            all.push((Error::Connection { message: text(), definite }, definite));
        }
        all
    }

    #[test]
    fn errors_come_back_from_the_wire_and_say_there_what_is_definite() {
        for (error, definite) in all() {
            assert_eq!(error.definite(), definite, "{error:?}");
            let status = Status::from(error.clone());
            let info = status.get_details_error_info().unwrap();
            assert_eq!(info.metadata["definite"], definite.to_string(), "{error:?}");
            assert_eq!(Error::from(status), error);
        }
    }

    /// A status that is no error of ours says nothing about a write, whatever its code.
    #[test]
    fn a_foreign_status_is_never_definite_about_a_write() {
        for code in 1..=16 {
            let code = Code::from_i32(code);
            let error = Error::from(Status::new(code, "from a proxy"));
            assert!(!error.definite(), "{code:?}: {error:?}");
            assert!(
                error.to_string().contains("from a proxy") || error.reason() == Reason::Timeout
            );
        }
    }
}
