//! What each call of the public API means to the state: one implementation of [`Write`] or [`Read`]
//! per request, used by the unary services and by the stream alike. Those of the registry and of sessions
//! stand here, those of the other services below.

pub mod alarm;
pub mod config;
pub mod counter;
pub mod lock;
pub mod saga;
pub mod txn;

use std::sync::Arc;

use super::convert;
use crate::error::Error;
use crate::limits;
use crate::node::Node;
use crate::proto::v1::stream_answer::Answer;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{
    self, Command, Discovery, Filter, Instance, InstanceName, Namespace, Op, Outcome, Reply,
    ServiceView, Session, State,
};

/// A request that becomes a command.
pub trait Write: Sized {
    type Response;

    fn command(self) -> Result<Command, Error>;

    /// What the state's reply means to the caller; None when it is the reply to another kind of
    /// command.
    fn respond(header: Header, reply: Reply) -> Option<Self::Response>;
}

/// A write that is also served by the stream.
pub trait StreamWrite: Write {
    fn wrap(response: <Self as Write>::Response) -> Answer;
}

/// A request that only reads.
pub trait Read: Sized {
    /// The request with what was left out filled in, within its limits.
    type Query: Send + Sync;
    /// What was found, shared with the state.
    type Found: Send;
    type Response;

    fn query(self) -> Result<(Consistency, Self::Query), Error>;

    /// Tells the query what time it is for the cluster, in ms since the Unix epoch.
    fn stamp(_query: &mut Self::Query, _now_ms: u64) {}

    /// Runs with the state locked: finds, copies nothing.
    fn find(query: &Self::Query, state: &State) -> Result<Self::Found, Error>;

    fn respond(header: Header, found: Self::Found) -> Result<Self::Response, Error>;

    /// Adds what the node that answers knows and the state does not.
    fn complete(_response: &mut Self::Response, _node: &Node) {}
}

/// What a write answers, as its caller sees it.
pub fn response<W: Write>(node_id: u64, outcome: Outcome) -> Result<W::Response, Error> {
    let Outcome { revision, duplicate, result } = outcome;
    let header = Header { revision, consistency: 0, node_id, duplicate };
    W::respond(header, result?).ok_or_else(|| {
        // The stored answer is that of another write: the client has used one number twice.
        Error::invalid("request_id.sequence", "a used one", "a number that is used for one write")
    })
}

/// As [`response`], for the stream.
pub fn stream_response<W: StreamWrite>(node_id: u64, outcome: Outcome) -> Result<Answer, Error> {
    response::<W>(node_id, outcome).map(W::wrap)
}

/// Which kind of answer belongs to which request.
macro_rules! stream_writes {
    ($($request:ident => $answer:ident,)*) => {
        $(impl StreamWrite for v1::$request {
            fn wrap(response: <Self as Write>::Response) -> Answer {
                Answer::$answer(response)
            }
        })*
    };
}

stream_writes! {
    RegisterRequest => Register,
    DeregisterRequest => Deregister,
    UpdateInstanceRequest => UpdateInstance,
    PutServiceRequest => PutService,
    DeleteServiceRequest => DeleteService,
    OpenSessionRequest => OpenSession,
    CloseSessionRequest => CloseSession,
    PublishConfigRequest => PublishConfig,
    DeleteConfigRequest => DeleteConfig,
    RollbackConfigRequest => RollbackConfig,
    ReportConfigRequest => ReportConfig,
    AddCounterRequest => AddCounter,
    SetCounterRequest => SetCounter,
    AcquireLockRequest => AcquireLock,
    ReleaseLockRequest => ReleaseLock,
    UpdateLockRequest => UpdateLock,
    TxnRequest => Txn,
}

fn command(request_id: Option<v1::RequestId>, op: Op) -> Command {
    Command { request: convert::request_id(request_id), op }
}

impl Write for v1::RegisterRequest {
    type Response = v1::RegisterResponse;

    fn command(self) -> Result<Command, Error> {
        let registration = convert::registration(self.instance)?;
        Ok(command(self.request_id, Op::Register(Box::new(registration))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::Registered { created, mod_revision } = reply else { return None };
        Some(v1::RegisterResponse { header: Some(header), created, mod_revision })
    }
}

impl Write for v1::DeregisterRequest {
    type Response = v1::DeregisterResponse;

    fn command(self) -> Result<Command, Error> {
        let name = convert::instance_name(self.namespace, self.service, self.id);
        let expected_mod_revision = convert::expected(self.expected_mod_revision);
        Ok(command(self.request_id, Op::Deregister { name, expected_mod_revision }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::Deregistered { removed } = reply else { return None };
        Some(v1::DeregisterResponse { header: Some(header), removed })
    }
}

impl Write for v1::UpdateInstanceRequest {
    type Response = v1::UpdateInstanceResponse;

    fn command(self) -> Result<Command, Error> {
        let (patch, request_id) = convert::patch(self)?;
        Ok(command(request_id, Op::UpdateInstance(Box::new(patch))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::InstanceUpdated(instance) = reply else { return None };
        let instance = Some(convert::instance(&instance));
        Some(v1::UpdateInstanceResponse { header: Some(header), instance })
    }
}

impl Write for v1::PutServiceRequest {
    type Response = v1::PutServiceResponse;

    fn command(self) -> Result<Command, Error> {
        let settings = convert::settings(self.service, self.expected_mod_revision)?;
        Ok(command(self.request_id, Op::PutService(Box::new(settings))))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::ServicePut { created } = reply else { return None };
        Some(v1::PutServiceResponse { header: Some(header), created })
    }
}

impl Write for v1::DeleteServiceRequest {
    type Response = v1::DeleteServiceResponse;

    fn command(self) -> Result<Command, Error> {
        let namespace = convert::namespace(self.namespace);
        Ok(command(self.request_id, Op::DeleteService { namespace, name: self.name }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::ServiceDeleted { removed } = reply else { return None };
        Some(v1::DeleteServiceResponse { header: Some(header), removed })
    }
}

impl Write for v1::PutNamespaceRequest {
    type Response = v1::PutNamespaceResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { name, description, request_id } = self;
        Ok(command(request_id, Op::PutNamespace { name, description }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::NamespacePut { created } = reply else { return None };
        Some(v1::PutNamespaceResponse { header: Some(header), created })
    }
}

impl Write for v1::DeleteNamespaceRequest {
    type Response = v1::DeleteNamespaceResponse;

    fn command(self) -> Result<Command, Error> {
        Ok(command(self.request_id, Op::DeleteNamespace { name: self.name }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::NamespaceDeleted { removed } = reply else { return None };
        Some(v1::DeleteNamespaceResponse { header: Some(header), removed })
    }
}

impl Write for v1::OpenSessionRequest {
    type Response = v1::OpenSessionResponse;

    fn command(self) -> Result<Command, Error> {
        let Self { ttl_ms, client } = self;
        let ttl_ms = if ttl_ms == 0 { limits::DEFAULT_SESSION_TTL_MS } else { ttl_ms };
        Ok(command(None, Op::OpenSession { ttl_ms, client }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::SessionOpened { session, ttl_ms } = reply else { return None };
        Some(v1::OpenSessionResponse { header: Some(header), session, ttl_ms })
    }
}

impl Write for v1::CloseSessionRequest {
    type Response = v1::CloseSessionResponse;

    fn command(self) -> Result<Command, Error> {
        Ok(command(self.request_id, Op::CloseSession { session: self.session }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::SessionClosed { closed, removed_instances } = reply else { return None };
        Some(v1::CloseSessionResponse { header: Some(header), closed, removed_instances })
    }
}

impl Read for v1::GetInstanceRequest {
    type Query = InstanceName;
    type Found = Arc<Instance>;
    type Response = v1::GetInstanceResponse;

    fn query(self) -> Result<(Consistency, InstanceName), Error> {
        let name = convert::instance_name(self.namespace, self.service, self.id);
        state::check_instance_name("", &name)?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(name: &InstanceName, state: &State) -> Result<Arc<Instance>, Error> {
        let InstanceName { namespace, service, id } = name;
        state.instance(namespace, service, id).ok_or_else(|| Error::NotFound {
            kind: "instance".to_owned(),
            name: format!("{namespace}/{service}/{id}"),
        })
    }

    fn respond(header: Header, found: Arc<Instance>) -> Result<Self::Response, Error> {
        let instance = Some(convert::instance(&found));
        Ok(v1::GetInstanceResponse { header: Some(header), instance })
    }
}

impl Read for v1::ListInstancesRequest {
    type Query = (ServiceName, Filter);
    type Found = Discovery;
    type Response = v1::ListInstancesResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let name = ServiceName::new(self.namespace, "service", self.service)?;
        let v1::InstanceFilter { healthy_only, zone, metadata } = self.filter.unwrap_or_default();
        let metadata = convert::pairs(metadata);
        state::check_text("filter.zone", &zone, limits::ZONE_BYTES)?;
        state::check_pairs("filter.metadata", &metadata)?;
        let filter = Filter { healthy_only, zone, metadata };
        Ok((convert::consistency(self.consistency)?, (name, filter)))
    }

    fn find((name, filter): &Self::Query, state: &State) -> Result<Discovery, Error> {
        Ok(state.discover(&name.namespace, &name.name, filter))
    }

    fn respond(header: Header, found: Discovery) -> Result<Self::Response, Error> {
        let Discovery { instances, protected, service } = found;
        let response = v1::ListInstancesResponse {
            header: Some(header),
            instances: instances.iter().map(|instance| convert::instance(instance)).collect(),
            protected,
            service: service.as_ref().map(convert::service),
        };
        fitting(instances.len(), response)
    }

    fn complete(response: &mut Self::Response, node: &Node) {
        complete_service(response.service.as_mut(), node);
    }
}

impl Read for v1::GetServiceRequest {
    type Query = ServiceName;
    type Found = ServiceView;
    type Response = v1::GetServiceResponse;

    fn query(self) -> Result<(Consistency, ServiceName), Error> {
        let name = ServiceName::new(self.namespace, "name", self.name)?;
        Ok((convert::consistency(self.consistency)?, name))
    }

    fn find(query: &ServiceName, state: &State) -> Result<ServiceView, Error> {
        let ServiceName { namespace, name } = query;
        state.service(namespace, name).ok_or_else(|| Error::NotFound {
            kind: "service".to_owned(),
            name: format!("{namespace}/{name}"),
        })
    }

    fn respond(header: Header, found: ServiceView) -> Result<Self::Response, Error> {
        let service = Some(convert::service(&found));
        Ok(v1::GetServiceResponse { header: Some(header), service })
    }

    fn complete(response: &mut Self::Response, node: &Node) {
        complete_service(response.service.as_mut(), node);
    }
}

/// Says which instances this node would not check.
fn complete_service(service: Option<&mut v1::Service>, node: &Node) {
    let Some(service) = service.filter(|service| service.health_check.is_some()) else { return };
    (service.unchecked_instances, service.unchecked_reason) =
        node.unchecked(&service.namespace, &service.name);
}

impl Read for v1::ListServicesRequest {
    type Query = Page;
    type Found = (Vec<ServiceView>, bool);
    type Response = v1::ListServicesResponse;

    fn query(self) -> Result<(Consistency, Page), Error> {
        let Self { namespace, prefix, limit, after, consistency } = self;
        let page = Page::new(namespace, prefix, after, limit)?;
        Ok((convert::consistency(consistency)?, page))
    }

    fn find(query: &Page, state: &State) -> Result<Self::Found, Error> {
        let Page { namespace, prefix, after, limit } = query;
        Ok(state.services(namespace, prefix, after, *limit))
    }

    fn respond(header: Header, (found, more): Self::Found) -> Result<Self::Response, Error> {
        let services = found.iter().map(convert::service).collect();
        fitting(found.len(), v1::ListServicesResponse { header: Some(header), services, more })
    }
}

impl Read for v1::ListNamespacesRequest {
    type Query = ();
    type Found = Vec<Arc<Namespace>>;
    type Response = v1::ListNamespacesResponse;

    fn query(self) -> Result<(Consistency, ()), Error> {
        Ok((convert::consistency(self.consistency)?, ()))
    }

    fn find((): &(), state: &State) -> Result<Self::Found, Error> {
        Ok(state.namespaces().cloned().collect())
    }

    fn respond(header: Header, found: Self::Found) -> Result<Self::Response, Error> {
        let namespaces = found.iter().map(convert::namespace_record).collect();
        fitting(found.len(), v1::ListNamespacesResponse { header: Some(header), namespaces })
    }
}

impl Read for v1::ListSessionsRequest {
    /// Limit, and the id to continue after.
    type Query = (usize, u64);
    type Found = (Vec<(Arc<Session>, usize)>, bool);
    type Response = v1::ListSessionsResponse;

    fn query(self) -> Result<(Consistency, Self::Query), Error> {
        let Self { consistency, limit, after } = self;
        Ok((convert::consistency(consistency)?, (convert::page(limit)?, after)))
    }

    fn find((limit, after): &Self::Query, state: &State) -> Result<Self::Found, Error> {
        let mut sessions = state.sessions_after(*after);
        let page = sessions.by_ref().take(*limit);
        let page = page.map(|(session, instances)| (session.clone(), instances)).collect();
        Ok((page, sessions.next().is_some()))
    }

    fn respond(header: Header, (found, more): Self::Found) -> Result<Self::Response, Error> {
        let sessions = found.iter().map(|(session, n)| convert::session(session, *n)).collect();
        fitting(found.len(), v1::ListSessionsResponse { header: Some(header), sessions, more })
    }
}

/// Names of a service, checked.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    pub namespace: String,
    pub name: String,
}

impl ServiceName {
    fn new(namespace: String, field: &str, name: String) -> Result<ServiceName, Error> {
        let namespace = convert::namespace(namespace);
        state::check_name("", "namespace", &namespace)?;
        state::check_name("", field, &name)?;
        Ok(ServiceName { namespace, name })
    }
}

/// A page of what has one name in a namespace: services, locks, alarms.
#[derive(Debug)]
pub struct Page {
    namespace: String,
    prefix: String,
    after: String,
    limit: usize,
}

impl Page {
    fn new(namespace: String, prefix: String, after: String, limit: u32) -> Result<Page, Error> {
        let namespace = convert::namespace(namespace);
        state::check_name("", "namespace", &namespace)?;
        state::check_text("prefix", &prefix, limits::NAME_BYTES)?;
        state::check_text("after", &after, limits::NAME_BYTES)?;
        let limit = convert::page(limit)?;
        Ok(Page { namespace, prefix, after, limit })
    }
}

/// So many records always fit an answer.
const ALWAYS_FIT: usize = limits::CLIENT_ANSWER_BYTES / limits::RECORD_WIRE_BYTES - 1;

/// The response, unless its records are too much for one answer.
fn fitting<T: prost::Message>(records: usize, response: T) -> Result<T, Error> {
    if records > ALWAYS_FIT && response.encoded_len() > limits::CLIENT_ANSWER_BYTES {
        let limit = "bytes of an answer; filter, ask for less or watch instead".to_owned();
        return Err(Error::LimitReached { limit, allowed: limits::CLIENT_ANSWER_BYTES as u64 });
    }
    Ok(response)
}
