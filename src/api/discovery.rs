//! `Registry.ListInstances` as it is mounted: an answer is encoded once for as long as nothing of its service
//! changes, and the same bytes go to all who ask the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::Router;
use bytes::{BufMut as _, Bytes};
use futures::future::BoxFuture;
use prost::Message as _;
use tonic::codec::EncodeBuf;
use tonic::server::UnaryService;
use tonic::{Request, Response, Status};

use super::calls::Read;
use super::encoded::{self, Encoded};
use super::{Api, read_header, timeout};
use crate::limits;
use crate::proto::v1::{Header, ListInstancesRequest, ListInstancesResponse};
use crate::state::ServiceVersion;

const PATH: &str = "/quorate.v1.Registry/ListInstances";

type Query = <ListInstancesRequest as Read>::Query;

/// Answers that were given, without their headers. The older half is given up when they have become too much.
#[derive(Debug, Default)]
pub struct Answers(Mutex<Generations>);

#[derive(Debug, Default)]
struct Generations {
    young: BTreeMap<Query, Known>,
    old: BTreeMap<Query, Known>,
    /// Of the young ones.
    bytes: usize,
}

/// An answer, and when it holds.
#[derive(Debug, Clone)]
struct Known {
    version: ServiceVersion,
    body: Bytes,
    /// Of the question.
    asked_bytes: usize,
}

impl Answers {
    fn get(&self, query: &Query) -> Option<Known> {
        let mut answers = self.lock();
        if let Some(known) = answers.young.get(query) {
            return Some(known.clone());
        }
        let (query, known) = answers.old.remove_entry(query)?;
        answers.put(query, known.clone());
        Some(known)
    }

    fn put(&self, query: Query, known: Known) {
        self.lock().put(query, known);
    }

    fn lock(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generations {
    fn put(&mut self, query: Query, known: Known) {
        let bytes = |Known { body, asked_bytes, .. }: &Known| {
            body.len() + asked_bytes + limits::DISCOVERY_ANSWER_OVERHEAD
        };
        self.bytes += bytes(&known);
        if let Some(before) = self.young.insert(query, known) {
            self.bytes -= bytes(&before);
        }
        if self.bytes > limits::DISCOVERY_ANSWERS_BYTES / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }
}

/// An answer to one caller.
pub struct Discovered {
    header: Header,
    body: Bytes,
}

impl Encoded for Discovered {
    fn put(self, buf: &mut EncodeBuf<'_>) {
        let head = ListInstancesResponse { header: Some(self.header), ..Default::default() };
        buf.put_slice(&head.encode_to_vec());
        buf.put(self.body);
    }
}

impl Api {
    async fn discover(
        &self,
        request: Request<ListInstancesRequest>,
    ) -> Result<Response<Discovered>, Status> {
        let timeout = timeout(request.metadata());
        let request = request.into_inner();
        let asked_bytes = request.encoded_len();
        let (consistency, query) = request.query()?;
        let used = self.node.barrier(consistency, timeout).await?;
        let known = self.answers.get(&query);
        let (version, found, revision) = self.node.read(|state| {
            let version = state.service_version(&query.0.namespace, &query.0.name);
            let holds =
                known.as_ref().is_some_and(|known| version.as_ref() == Some(&known.version));
            let found = (!holds).then(|| ListInstancesRequest::find(&query, state));
            (version, found, state.revision())
        });
        let header = read_header(self.node.id(), revision, used);
        let body = match (found, known) {
            (None, Some(known)) => known.body,
            (found, _) => {
                let found = found.expect("looked up unless it is known")?;
                let mut response = ListInstancesRequest::respond(header, found)?;
                ListInstancesRequest::complete(&mut response, &self.node);
                response.header = None;
                let body = Bytes::from(response.encode_to_vec());
                if let Some(version) = version {
                    self.answers.put(query, Known { version, body: body.clone(), asked_bytes });
                }
                body
            }
        };
        Ok(Response::new(Discovered { header, body }))
    }
}

struct Method(Api);

impl UnaryService<ListInstancesRequest> for Method {
    type Response = Discovered;
    type Future = BoxFuture<'static, Result<Response<Discovered>, Status>>;

    fn call(&mut self, request: Request<ListInstancesRequest>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { api.discover(request).await })
    }
}

pub fn route(router: Router, api: &Api) -> Router {
    let api = api.clone();
    encoded::route::<Discovered, ListInstancesRequest>(router, PATH, move |mut grpc, request| {
        let method = Method(api.clone());
        Box::pin(async move { grpc.unary(method, request).await })
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn query(service: u32) -> Query {
        let service = format!("service-{service}");
        ListInstancesRequest { service, ..Default::default() }.query().unwrap().1
    }

    /// What is asked for again and again stays, whatever else is asked; what is kept is bounded.
    #[test]
    fn what_nobody_asks_for_goes() {
        let answers = Answers::default();
        let known = |byte: u8| Known {
            version: ServiceVersion::default(),
            body: Bytes::from(vec![byte; 512 * 1024]),
            asked_bytes: 512 * 1024,
        };
        answers.put(query(0), known(7));
        for service in 1..500u32 {
            answers.put(query(service), known(0));
            assert_eq!(answers.get(&query(0)).unwrap().body[0], 7, "after {service}");
            let kept = answers.lock();
            let bytes = (kept.young.len() + kept.old.len()) << 20;
            assert!(bytes <= limits::DISCOVERY_ANSWERS_BYTES + (1 << 20));
        }
        assert!(answers.get(&query(1)).is_none());
        let before = answers.lock().bytes;
        answers.put(query(0), known(8));
        assert_eq!(answers.get(&query(0)).unwrap().body[0], 8);
        assert!(answers.lock().bytes <= before.max(2 << 20));
    }
}
