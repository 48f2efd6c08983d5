//! A node that is not one: the generated services with a script behind them, on a real socket.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::client::{Answer, Call};
use crate::error::Error;
use crate::proto::v1::{self, *};

pub type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Result<Answer, Status>> + Send + Sync>;

/// What a watcher gets on one connection; when it is through, the connection hangs.
pub type WatchScript = Vec<Result<WatchResponse, Status>>;

/// What one node was asked and what it answers.
pub struct Fake {
    handler: Handler,
    pub calls: Arc<Mutex<Vec<Call>>>,
    pub status: Mutex<StatusResponse>,
    pub watches: Mutex<Vec<WatchRequest>>,
    pub range_watches: Mutex<Vec<WatchRangesRequest>>,
    pub watch_scripts: Mutex<VecDeque<WatchScript>>,
    /// Calls after which a stream breaks, unanswered ones included; 0 = never. One stream only.
    pub break_stream_after: AtomicUsize,
    pub streams: AtomicUsize,
    pub snapshot: Mutex<Vec<Result<SnapshotResponse, Status>>>,
    pub services: Mutex<Vec<String>>,
    /// Who holds the lock, whichever, and who waits for it.
    pub line: Mutex<Vec<LockRequest>>,
}

/// A fake with a socket. Everything of it, its connections included, ends with `stop` or drop.
pub struct Node {
    pub fake: Arc<Fake>,
    pub address: String,
    runtime: Option<Runtime>,
}

impl Node {
    /// A node that answers every call with `handler`.
    pub fn new(
        handler: impl Fn(Call) -> BoxFuture<'static, Result<Answer, Status>> + Send + Sync + 'static,
    ) -> Node {
        let fake = Arc::new(Fake {
            handler: Arc::new(handler),
            calls: Arc::default(),
            status: Mutex::default(),
            watches: Mutex::default(),
            range_watches: Mutex::default(),
            watch_scripts: Mutex::default(),
            break_stream_after: AtomicUsize::new(0),
            streams: AtomicUsize::new(0),
            snapshot: Mutex::default(),
            services: Mutex::default(),
            line: Mutex::default(),
        });
        let mut node = Node { fake, address: "127.0.0.1:0".into(), runtime: None };
        node.start();
        node
    }

    /// A node that answers at once.
    pub fn simple(
        handler: impl Fn(&Call) -> Result<Answer, Error> + Send + Sync + 'static,
    ) -> Node {
        Node::new(move |call| {
            let answer = handler(&call).map_err(Status::from);
            async move { answer }.boxed()
        })
    }

    pub fn start(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let wanted: SocketAddr = self.address.parse().unwrap();
        let fake = self.fake.clone();
        let (ready, bound) = std::sync::mpsc::channel();
        runtime.spawn(async move {
            let listener = TcpListener::bind(wanted).await.unwrap();
            ready.send(listener.local_addr().unwrap()).unwrap();
            tonic::transport::Server::builder()
                .add_service(registry_server::RegistryServer::from_arc(fake.clone()))
                .add_service(sessions_server::SessionsServer::from_arc(fake.clone()))
                .add_service(watches_server::WatchesServer::from_arc(fake.clone()))
                .add_service(locks_server::LocksServer::from_arc(fake.clone()))
                .add_service(txn_server::TxnServer::from_arc(fake.clone()))
                .add_service(config_server::ConfigServer::from_arc(fake.clone()))
                .add_service(cluster_server::ClusterServer::from_arc(fake))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        self.address = bound.recv().unwrap().to_string();
        self.runtime = Some(runtime);
    }

    /// Kills the node with all its connections; `start` brings it back under the same address.
    pub fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // From a thread of its own, because it waits until every socket is closed, which a test
            // in a runtime must not.
            let stopping = std::thread::spawn(move || {
                runtime.shutdown_timeout(std::time::Duration::from_secs(5));
            });
            stopping.join().unwrap();
        }
    }

    pub fn calls(&self) -> Vec<Call> {
        self.fake.calls.lock().unwrap().clone()
    }

    /// The ids of the registrations that arrived, in order; None = without one.
    pub fn register_ids(&self) -> Vec<Option<RequestId>> {
        self.calls()
            .into_iter()
            .filter_map(|call| match call {
                Call::Register(request) => Some(request.request_id),
                _ => None,
            })
            .collect()
    }

    /// Lets the node say who leads.
    pub fn says(&self, node_id: u64, term: u64, leader: Option<(u64, &str)>) {
        let (leader_id, leader_client_address) =
            leader.map(|(id, address)| (id, address.to_owned())).unwrap_or_default();
        *self.fake.status.lock().unwrap() = StatusResponse {
            header: Some(Header { node_id, ..Default::default() }),
            leader_id,
            leader_client_address,
            term,
            ..Default::default()
        };
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The answer that fits a call and says nothing.
pub fn plain(call: &Call) -> Answer {
    let header = Some(Header { revision: 1, ..Default::default() });
    match call {
        Call::Register(_) => {
            Answer::Register(RegisterResponse { header, created: true, mod_revision: 1 })
        }
        Call::Deregister(_) => Answer::Deregister(DeregisterResponse { header, removed: true }),
        Call::UpdateInstance(_) => {
            Answer::UpdateInstance(UpdateInstanceResponse { header, ..Default::default() })
        }
        Call::GetInstance(request) => Answer::GetInstance(GetInstanceResponse {
            header,
            instance: Some(Instance { id: request.id.clone(), ..Default::default() }),
        }),
        Call::ListInstances(_) => {
            Answer::ListInstances(ListInstancesResponse { header, ..Default::default() })
        }
        Call::PutService(_) => Answer::PutService(PutServiceResponse { header, created: true }),
        Call::DeleteService(_) => {
            Answer::DeleteService(DeleteServiceResponse { header, removed: true })
        }
        Call::GetService(_) => {
            Answer::GetService(GetServiceResponse { header, ..Default::default() })
        }
        Call::KeepAlive(_) => Answer::KeepAlive(KeepAliveResponse { header, ttl_ms: 10_000 }),
        Call::OpenSession(request) => {
            Answer::OpenSession(OpenSessionResponse { header, session: 7, ttl_ms: request.ttl_ms })
        }
        Call::ReportConfig(request) => Answer::ReportConfig(ReportConfigResponse {
            header,
            changed: request.items.len() as u64,
        }),
        Call::PublishConfig(_)
        | Call::GetConfig(_)
        | Call::DeleteConfig(_)
        | Call::RollbackConfig(_)
        | Call::AddCounter(_)
        | Call::SetCounter(_)
        | Call::GetCounter(_)
        | Call::AcquireLock(_)
        | Call::ReleaseLock(_)
        | Call::UpdateLock(_)
        | Call::Txn(_) => panic!("no script asks for {call:?}"),
        Call::CloseSession(_) => Answer::CloseSession(CloseSessionResponse {
            header,
            closed: true,
            removed_instances: 0,
        }),
    }
}

impl Fake {
    async fn handle(&self, call: Call) -> Result<Answer, Status> {
        self.calls.lock().unwrap().push(call.clone());
        (self.handler)(call).await
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<StreamResponse, Status>> + Send>>;

/// One unary method by way of the handler.
macro_rules! unary {
    ($method:ident, $variant:ident, $request:ident, $response:ident) => {
        // What `async_trait` makes of an `async fn`; it does not look into macros.
        fn $method<'a, 'b>(
            &'a self,
            request: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async move {
                match self.handle(Call::$variant(request.into_inner())).await? {
                    Answer::$variant(response) => Ok(Response::new(response)),
                    other => panic!("the script answers {other:?}"),
                }
            })
        }
    };
}

#[tonic::async_trait]
impl registry_server::Registry for Fake {
    unary!(register, Register, RegisterRequest, RegisterResponse);
    unary!(deregister, Deregister, DeregisterRequest, DeregisterResponse);
    unary!(update_instance, UpdateInstance, UpdateInstanceRequest, UpdateInstanceResponse);
    unary!(get_instance, GetInstance, GetInstanceRequest, GetInstanceResponse);
    unary!(list_instances, ListInstances, ListInstancesRequest, ListInstancesResponse);
    unary!(put_service, PutService, PutServiceRequest, PutServiceResponse);
    unary!(delete_service, DeleteService, DeleteServiceRequest, DeleteServiceResponse);
    unary!(get_service, GetService, GetServiceRequest, GetServiceResponse);

    async fn list_services(
        &self,
        request: Request<ListServicesRequest>,
    ) -> Result<Response<ListServicesResponse>, Status> {
        let request = request.into_inner();
        let names = self.services.lock().unwrap().clone();
        let mut matching: Vec<String> = names
            .into_iter()
            .filter(|name| name.starts_with(&request.prefix) && *name > request.after)
            .collect();
        let more = matching.len() > request.limit as usize;
        matching.truncate(request.limit as usize);
        let services =
            matching.into_iter().map(|name| v1::Service { name, ..Default::default() }).collect();
        Ok(Response::new(ListServicesResponse { header: None, services, more }))
    }

    async fn put_namespace(
        &self,
        _: Request<PutNamespaceRequest>,
    ) -> Result<Response<PutNamespaceResponse>, Status> {
        Ok(Response::new(PutNamespaceResponse { header: None, created: true }))
    }

    async fn delete_namespace(
        &self,
        _: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<DeleteNamespaceResponse>, Status> {
        Ok(Response::new(DeleteNamespaceResponse { header: None, removed: true }))
    }

    async fn list_namespaces(
        &self,
        _: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        Ok(Response::new(ListNamespacesResponse::default()))
    }

    type WatchStream = Watched;

    async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.watches.lock().unwrap().push(request.into_inner());
        Ok(Response::new(self.next_script()))
    }
}

type Watched = Pin<Box<dyn Stream<Item = Result<WatchResponse, Status>> + Send>>;

impl Fake {
    fn next_script(&self) -> Watched {
        let script = self.watch_scripts.lock().unwrap().pop_front().unwrap_or_default();
        futures::stream::iter(script).chain(futures::stream::pending()).boxed()
    }
}

#[tonic::async_trait]
impl watches_server::Watches for Fake {
    type WatchStream = Watched;

    async fn watch(
        &self,
        request: Request<WatchRangesRequest>,
    ) -> Result<Response<Watched>, Status> {
        self.range_watches.lock().unwrap().push(request.into_inner());
        Ok(Response::new(self.next_script()))
    }
}

/// Methods of which nothing here makes use.
macro_rules! unserved {
    ($($method:ident($request:ident) -> $response:ident;)*) => {$(
        fn $method<'a, 'b>(
            &'a self,
            _: Request<$request>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<$response>, Status>> + Send + 'b>>
        where
            'a: 'b,
            Self: 'b,
        {
            Box::pin(async { Err(Status::unimplemented(stringify!($method))) })
        }
    )*};
}

#[tonic::async_trait]
impl config_server::Config for Fake {
    unary!(publish, PublishConfig, PublishConfigRequest, PublishConfigResponse);
    unary!(get, GetConfig, GetConfigRequest, GetConfigResponse);
    unary!(delete, DeleteConfig, DeleteConfigRequest, DeleteConfigResponse);
    unary!(rollback, RollbackConfig, RollbackConfigRequest, RollbackConfigResponse);
    unary!(report, ReportConfig, ReportConfigRequest, ReportConfigResponse);
    unserved! {
        list(ListConfigRequest) -> ListConfigResponse;
        history(ConfigHistoryRequest) -> ConfigHistoryResponse;
        diff(DiffConfigRequest) -> DiffConfigResponse;
        end_gray(EndGrayRequest) -> EndGrayResponse;
        put_schema(PutSchemaRequest) -> PutSchemaResponse;
        get_schema(GetSchemaRequest) -> GetSchemaResponse;
        delete_schema(DeleteSchemaRequest) -> DeleteSchemaResponse;
        instances(ConfigInstancesRequest) -> ConfigInstancesResponse;
    }
}

#[tonic::async_trait]
impl locks_server::Locks for Fake {
    unary!(acquire, AcquireLock, AcquireLockRequest, AcquireLockResponse);
    unary!(release, ReleaseLock, ReleaseLockRequest, ReleaseLockResponse);
    unary!(update, UpdateLock, UpdateLockRequest, UpdateLockResponse);

    async fn get(&self, _: Request<GetLockRequest>) -> Result<Response<GetLockResponse>, Status> {
        let requests = self.line.lock().unwrap().clone();
        Ok(Response::new(GetLockResponse { header: None, requests }))
    }

    async fn list(
        &self,
        _: Request<ListLocksRequest>,
    ) -> Result<Response<ListLocksResponse>, Status> {
        Ok(Response::new(ListLocksResponse::default()))
    }
}

#[tonic::async_trait]
impl txn_server::Txn for Fake {
    unary!(commit, Txn, TxnRequest, TxnResponse);
}

#[tonic::async_trait]
impl sessions_server::Sessions for Fake {
    unary!(open, OpenSession, OpenSessionRequest, OpenSessionResponse);
    unary!(keep_alive, KeepAlive, KeepAliveRequest, KeepAliveResponse);
    unary!(close, CloseSession, CloseSessionRequest, CloseSessionResponse);

    async fn list(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let after = request.into_inner().after;
        let sessions = (after + 1..=after + 2)
            .filter(|id| *id <= 3)
            .map(|id| v1::Session { id, ..Default::default() })
            .collect();
        Ok(Response::new(ListSessionsResponse { header: None, sessions, more: after == 0 }))
    }

    type StreamStream = Answers;

    async fn stream(
        &self,
        request: Request<Streaming<StreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let limit = self.break_stream_after.swap(0, Ordering::Relaxed);
        let (answers, receiver) = mpsc::unbounded_channel();
        let mut frames = request.into_inner();
        let handler = self.handler.clone();
        let seen = self.calls.clone();
        let task = async move {
            let mut count = 0;
            while let Ok(Some(frame)) = frames.message().await {
                assert!(!frame.calls.is_empty(), "an empty frame");
                let mut batch = Vec::new();
                for call in frame.calls {
                    let id = call.id;
                    let call = call.call.expect("a call of a known kind");
                    seen.lock().unwrap().push(call.clone());
                    count += 1;
                    if limit != 0 && count >= limit {
                        let _ = answers.send(Err(Status::unavailable("broken by the script")));
                        return;
                    }
                    batch.push((id, handler(call)));
                }
                let answers = answers.clone();
                tokio::spawn(async move {
                    let answered = batch.into_iter().map(|(id, answer)| async move {
                        let answer = answer.await.unwrap_or_else(|status| {
                            let error = Error::from(status);
                            let (code, reason, metadata) = error.to_wire();
                            Answer::Error(StreamError {
                                code: code.into(),
                                message: error.to_string(),
                                reason: reason.into(),
                                metadata: metadata.into_iter().collect(),
                            })
                        });
                        StreamAnswer { id, answer: Some(answer) }
                    });
                    let mut answered: futures::stream::FuturesUnordered<_> = answered.collect();
                    while let Some(first) = answered.next().await {
                        let mut frame = vec![first];
                        while let Some(Some(next)) = answered.next().now_or_never() {
                            frame.push(next);
                        }
                        let _ = answers.send(Ok(StreamResponse { answers: frame }));
                    }
                });
            }
        };
        tokio::spawn(task);
        Ok(Response::new(UnboundedReceiverStream::new(receiver).boxed()))
    }
}

#[tonic::async_trait]
impl cluster_server::Cluster for Fake {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(self.status.lock().unwrap().clone()))
    }

    async fn members(
        &self,
        _: Request<MembersRequest>,
    ) -> Result<Response<MembersResponse>, Status> {
        Ok(Response::new(MembersResponse::default()))
    }

    async fn add_learner(
        &self,
        _: Request<AddLearnerRequest>,
    ) -> Result<Response<AddLearnerResponse>, Status> {
        Ok(Response::new(AddLearnerResponse::default()))
    }

    async fn promote(
        &self,
        _: Request<PromoteRequest>,
    ) -> Result<Response<PromoteResponse>, Status> {
        Ok(Response::new(PromoteResponse::default()))
    }

    async fn remove(&self, _: Request<RemoveRequest>) -> Result<Response<RemoveResponse>, Status> {
        Ok(Response::new(RemoveResponse::default()))
    }

    async fn transfer_leader(
        &self,
        _: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderResponse>, Status> {
        Ok(Response::new(TransferLeaderResponse::default()))
    }

    type SnapshotStream = Pin<Box<dyn Stream<Item = Result<SnapshotResponse, Status>> + Send>>;

    async fn snapshot(
        &self,
        _: Request<SnapshotRequest>,
    ) -> Result<Response<Self::SnapshotStream>, Status> {
        let messages = std::mem::take(&mut *self.snapshot.lock().unwrap());
        Ok(Response::new(futures::stream::iter(messages).boxed()))
    }

    async fn digest(&self, _: Request<DigestRequest>) -> Result<Response<DigestResponse>, Status> {
        Ok(Response::new(DigestResponse {
            digest: "00000000000000ff".into(),
            ..Default::default()
        }))
    }
}
