//! The participant's side of global transactions: what a call says of itself, and what its answers mean.
//!
//! ```no_run
//! use quorate::client::{BranchContext, BranchOp, participant};
//! # struct Debit { cents: i64 }
//! async fn debit(request: tonic::Request<Debit>) -> Result<tonic::Response<()>, tonic::Status> {
//!     let context = BranchContext::of(&request)?;
//!     assert_eq!(context.op, BranchOp::Action);
//!     if request.get_ref().cents > 1_000 {
//!         // Nothing was done: the saga is given up, and whatever was called is compensated.
//!         return Err(participant::refused("more than there is"));
//!     }
//!     // Whatever is done here is done once for each `namespace`, `gid`, `branch` and `op`; the crate
//!     // quorate-barrier sees to that in the participant's own database.
//!     Ok(tonic::Response::new(()))
//! }
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use prost::Message;
use tonic::metadata::{BinaryMetadataKey, MetadataMap, MetadataValue};
use tonic::{Request, Status};
use tonic_types::{ErrorDetails, StatusExt as _};
use tracing::Instrument as _;
use tracing::instrument::Instrumented;

use crate::error::Error;
use crate::proto::v1::SagaResults;

const NAMESPACE: &str = "quorate-namespace";
const GID: &str = "quorate-gid";
const BRANCH: &str = "quorate-branch";
const OP: &str = "quorate-op";
const ATTEMPT: &str = "quorate-attempt";
const EPOCH: &str = "quorate-epoch";
const RESULTS: &str = "quorate-results-bin";

/// What a participant is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BranchOp {
    /// Of a saga: do it. Of a message: take it.
    Action,
    /// Of a saga: undo it.
    Compensate,
    /// Of TCC, by the client: reserve what it takes, so that confirming it cannot fail.
    Try,
    /// Of TCC: do it, with what was reserved.
    Confirm,
    /// Of TCC: set free what was reserved.
    Cancel,
    /// Of a message, to its sender: OK = it is to be submitted, ABORTED = it is to be given up.
    Query,
}

impl BranchOp {
    pub const ALL: [BranchOp; 6] = [
        BranchOp::Action,
        BranchOp::Compensate,
        BranchOp::Try,
        BranchOp::Confirm,
        BranchOp::Cancel,
        BranchOp::Query,
    ];

    /// As the metadata has it.
    pub fn name(self) -> &'static str {
        match self {
            BranchOp::Action => "action",
            BranchOp::Compensate => "compensate",
            BranchOp::Try => "try",
            BranchOp::Confirm => "confirm",
            BranchOp::Cancel => "cancel",
            BranchOp::Query => "query",
        }
    }

    fn of(name: &str) -> Option<BranchOp> {
        BranchOp::ALL.into_iter().find(|op| op.name() == name)
    }
}

impl fmt::Display for BranchOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What branches have answered: bytes of a response message, or the body of an HTTP answer, by the id of the
/// branch; without those that answered nothing, or more than 4 KiB.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BranchResults(pub BTreeMap<String, Vec<u8>>);

impl BranchResults {
    /// The answer of a branch; None when it was empty, or there is none.
    pub fn get(&self, branch: &str) -> Option<&[u8]> {
        self.0.get(branch).map(Vec::as_slice)
    }

    /// The same, decoded.
    pub fn decode<M: Message + Default>(&self, branch: &str) -> Result<Option<M>, Error> {
        let decoded = self.get(branch).map(M::decode).transpose();
        decoded.map_err(|error| Error::internal(format!("the answer of {branch}: {error}")))
    }
}

/// Which branch of which transaction a call is about. Invariant of the coordinator: calls with the same
/// `namespace`, `gid`, `branch` and `op` ask for the same, which is to be done once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BranchContext {
    pub namespace: String,
    pub gid: String,
    /// Empty in a query, which is about the whole.
    pub branch: String,
    pub op: BranchOp,
    /// From 1, of this branch and op.
    pub attempt: u32,
    /// Term of the leader that calls; 0 = the client itself, which tries.
    pub epoch: u64,
    /// Of an action what the branches before it have answered, of a compensation what its own action has.
    pub results: BranchResults,
}

impl BranchContext {
    /// What a call of a tonic service is about. INVALID_ARGUMENT when it says nothing of a transaction, or
    /// what it says cannot be read.
    pub fn of<T>(request: &Request<T>) -> Result<BranchContext, Status> {
        match request.extensions().get::<BranchContext>() {
            Some(context) => Ok(context.clone()),
            None => BranchContext::of_headers(request.metadata().as_ref()),
        }
    }

    /// The same from the headers of any HTTP request.
    pub fn of_headers(headers: &HeaderMap) -> Result<BranchContext, Status> {
        let (op, attempt, epoch) =
            (text(headers, OP)?, text(headers, ATTEMPT)?, text(headers, EPOCH)?);
        Ok(BranchContext {
            namespace: text(headers, NAMESPACE)?.to_owned(),
            gid: text(headers, GID)?.to_owned(),
            branch: text(headers, BRANCH)?.to_owned(),
            op: BranchOp::of(op).ok_or_else(|| unreadable(OP))?,
            attempt: attempt.parse().map_err(|_| unreadable(ATTEMPT))?,
            epoch: epoch.parse().map_err(|_| unreadable(EPOCH))?,
            results: results(headers)?,
        })
    }

    /// Sends all this along with a call: of the client of a TCC with its try.
    pub fn inject<T>(&self, request: &mut Request<T>) {
        let BranchContext { namespace, gid, branch, op, attempt, epoch, results } = self;
        let metadata = request.metadata_mut();
        let (attempt, epoch) = (attempt.to_string(), epoch.to_string());
        for (key, value) in [
            (NAMESPACE, namespace.as_str()),
            (GID, gid),
            (BRANCH, branch),
            (OP, op.name()),
            (ATTEMPT, &attempt),
            (EPOCH, &epoch),
        ] {
            // The cluster takes no names that are not visible ASCII.
            if let Ok(value) = MetadataValue::try_from(value) {
                metadata.insert(key, value);
            }
        }
        if !results.0.is_empty() {
            let results = results.0.iter().map(|(id, result)| (id.clone(), result.clone()));
            let results = SagaResults { results: results.collect() }.encode_to_vec();
            let key = BinaryMetadataKey::from_static(RESULTS);
            metadata.insert_bin(key, MetadataValue::from_bytes(&results));
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &'static str) -> Result<&'a str, Status> {
    let missing =
        || Status::invalid_argument(format!("no call of a global transaction: no {name}"));
    headers.get(name).ok_or_else(missing)?.to_str().map_err(|_| unreadable(name))
}

fn unreadable(name: &str) -> Status {
    Status::invalid_argument(format!("{name} cannot be read"))
}

fn results(headers: &HeaderMap) -> Result<BranchResults, Status> {
    let Some(value) = headers.get(RESULTS) else { return Ok(BranchResults::default()) };
    // Which knows how binary metadata is written.
    let mut alone = HeaderMap::new();
    alone.insert(HeaderName::from_static(RESULTS), value.clone());
    let bytes = MetadataMap::from_headers(alone);
    let bytes = bytes.get_bin(RESULTS).and_then(|value| value.to_bytes().ok());
    let decoded = bytes.and_then(|bytes| SagaResults::decode(bytes).ok());
    let decoded = decoded.ok_or_else(|| unreadable(RESULTS))?;
    Ok(BranchResults(decoded.results.into_iter().collect()))
}

// ---- answers ----

/// Nothing was done, and will not be: the transaction is given up where it still can be. Of a query: the
/// message is to be given up.
pub fn refused(why: impl Into<String>) -> Status {
    Status::aborted(why)
}

/// It is being done: ask again after this time; zero = as the branch's policy says.
pub fn ongoing(again_after: Duration) -> Status {
    let mut details = ErrorDetails::new();
    if !again_after.is_zero() {
        details.set_retry_info(Some(again_after));
    }
    Status::with_error_details(tonic::Code::FailedPrecondition, "ongoing", details)
}

// ---- the layer ----

/// Reads the [`BranchContext`] of every call that has one, puts it into the request's extensions, where axum's
/// `Extension` finds it too, and names the transaction in whatever is logged while the call is served.
#[derive(Debug, Clone, Copy, Default)]
pub struct ParticipantLayer;

/// See [`ParticipantLayer`].
#[derive(Debug, Clone)]
pub struct ParticipantService<S> {
    inner: S,
}

impl<S> tower::Layer<S> for ParticipantLayer {
    type Service = ParticipantService<S>;

    fn layer(&self, inner: S) -> ParticipantService<S> {
        ParticipantService { inner }
    }
}

impl<S, B> tower::Service<http::Request<B>> for ParticipantService<S>
where
    S: tower::Service<http::Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Instrumented<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        // What cannot be read is refused by whoever asks for it.
        let Ok(context) = BranchContext::of_headers(request.headers()) else {
            return self.inner.call(request).instrument(tracing::Span::none());
        };
        let BranchContext { namespace, gid, branch, op, attempt, .. } = &context;
        let span = tracing::info_span!("branch", %namespace, %gid, %branch, %op, attempt);
        request.extensions_mut().insert(context);
        let served = span.in_scope(|| self.inner.call(request));
        served.instrument(span)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn context(op: BranchOp) -> BranchContext {
        let results = BTreeMap::from([("a".to_owned(), vec![0, 255, 7]), ("b".into(), vec![1])]);
        BranchContext {
            namespace: "team".into(),
            gid: "t-1".into(),
            branch: "c".into(),
            op,
            attempt: 3,
            epoch: 9,
            results: BranchResults(results),
        }
    }

    #[test]
    fn what_is_sent_along_is_read_back() {
        for op in BranchOp::ALL {
            let mut request = Request::new(());
            context(op).inject(&mut request);
            assert_eq!(BranchContext::of(&request).unwrap(), context(op));
        }
    }

    #[test]
    fn what_is_not_of_a_transaction_is_refused() {
        let refused = BranchContext::of(&Request::new(())).unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument);
        for name in [NAMESPACE, GID, BRANCH, OP, ATTEMPT, EPOCH] {
            let mut request = Request::new(());
            context(BranchOp::Action).inject(&mut request);
            request.metadata_mut().remove(name);
            let refused = BranchContext::of(&request).unwrap_err();
            assert!(refused.message().contains(name), "{refused:?}");
        }
        for (name, wrong) in [(OP, "undo"), (ATTEMPT, "-1"), (EPOCH, "")] {
            let mut request = Request::new(());
            context(BranchOp::Action).inject(&mut request);
            request.metadata_mut().insert(name, wrong.parse().unwrap());
            let refused = BranchContext::of(&request).unwrap_err();
            assert!(refused.message().contains(name), "{refused:?}");
        }
    }

    #[test]
    fn an_answer_says_when_to_ask_again() {
        let status = ongoing(Duration::from_millis(250));
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        let delay = status.get_details_retry_info().unwrap().retry_delay;
        assert_eq!(delay, Some(Duration::from_millis(250)));
        assert!(ongoing(Duration::ZERO).get_details_retry_info().is_none());
        assert_eq!(refused("no").code(), tonic::Code::Aborted);
    }

    #[tokio::test]
    async fn the_layer_hands_the_context_on() {
        use tower::{Layer as _, Service as _};
        let service = tower::service_fn(|request: http::Request<()>| async move {
            Ok::<_, std::convert::Infallible>(request.extensions().get::<BranchContext>().cloned())
        });
        let mut service = ParticipantLayer.layer(service);
        let mut request = Request::new(());
        context(BranchOp::Cancel).inject(&mut request);
        let mut wire = http::Request::new(());
        *wire.headers_mut() = request.metadata().as_ref().clone();
        assert_eq!(service.call(wire).await.unwrap(), Some(context(BranchOp::Cancel)));
        assert_eq!(service.call(http::Request::new(())).await.unwrap(), None);
    }
}
