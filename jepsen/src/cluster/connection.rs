//! Bare calls to one node. Nothing is repeated and no other node is asked, so that the outcome of each call
//! is known exactly: an error says whether the call certainly did not take place.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use quorate::error::Error;
use quorate::limits;
use quorate::proto::v1;
use tokio::time::timeout;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{ConnectError, Response, Status, Streaming};
use tower::service_fn;

use super::route::Route;

/// How much longer than the node a caller waits, for an answer that says more than silence.
const GRACE: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_millis(500);

/// A way to one node, with a deadline for each call.
#[derive(Debug, Clone)]
pub struct Connection {
    channel: Channel,
    patience: Duration,
}

impl Connection {
    /// To an address, whatever the rules of the links. Connects when it is first used, and again after the
    /// connection broke.
    pub fn direct(
        address: SocketAddr,
        patience: Duration,
    ) -> Result<Connection, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
        let channel = endpoint.connect_timeout(CONNECT).tcp_nodelay(true).connect_lazy();
        Ok(Connection { channel, patience })
    }

    /// As a client of the cluster.
    pub fn routed(route: Route, patience: Duration) -> Connection {
        let connector = service_fn(move |_: Uri| {
            let route = route.clone();
            async move {
                // Without a connection nothing was sent, however long it would take.
                match timeout(CONNECT, route.connect()).await {
                    Ok(stream) => stream.map(TokioIo::new),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                }
            }
        });
        let channel = Endpoint::from_static("http://node").connect_with_connector_lazy(connector);
        Connection { channel, patience }
    }

    pub fn patience(&self) -> Duration {
        self.patience
    }

    /// The same with another deadline.
    pub fn within(&self, patience: Duration) -> Connection {
        Connection { patience, ..self.clone() }
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.set_timeout(self.patience);
        request
    }

    async fn answer<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Error> {
        match timeout(self.patience + GRACE, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(error(status)),
            Err(_) => Err(Error::Timeout { definite: false }),
        }
    }

    /// A watch, which goes on for as long as it is read.
    pub async fn watch(
        &self,
        request: v1::WatchRangesRequest,
    ) -> Result<Streaming<v1::WatchResponse>, Error> {
        let mut client = v1::watches_client::WatchesClient::new(self.channel.clone());
        self.answer(client.watch(tonic::Request::new(request))).await
    }
}

/// A status that no node sent was made of a failure on the way, and has a source. Certain is only that a call
/// did not take place for which there was no connection.
fn error(status: Status) -> Error {
    let mut source = status.source();
    if source.is_none() {
        return Error::from(status);
    }
    while let Some(reason) = source {
        if reason.is::<ConnectError>() {
            return Error::Connection { message: "no connection".to_owned(), definite: true };
        }
        source = reason.source();
    }
    Error::Connection { message: status.message().to_owned(), definite: false }
}

macro_rules! calls {
    ($($name:ident = $service:ident::$client:ident . $method:ident ($request:ident) -> $response:ident;)*) => {
        impl Connection {
            $(pub async fn $name(&self, message: v1::$request) -> Result<v1::$response, Error> {
                let mut client = v1::$service::$client::new(self.channel.clone())
                    .max_decoding_message_size(limits::CLIENT_ANSWER_BYTES);
                self.answer(client.$method(self.request(message))).await
            })*
        }
    };
}

calls! {
    publish = config_client::ConfigClient.publish(PublishConfigRequest) -> PublishConfigResponse;
    get_config = config_client::ConfigClient.get(GetConfigRequest) -> GetConfigResponse;
    list_config = config_client::ConfigClient.list(ListConfigRequest) -> ListConfigResponse;
    delete_config = config_client::ConfigClient.delete(DeleteConfigRequest) -> DeleteConfigResponse;
    add_counter = counters_client::CountersClient.add(AddCounterRequest) -> AddCounterResponse;
    set_counter = counters_client::CountersClient.set(SetCounterRequest) -> SetCounterResponse;
    get_counter = counters_client::CountersClient.get(GetCounterRequest) -> GetCounterResponse;
    commit = txn_client::TxnClient.commit(TxnRequest) -> TxnResponse;
    open_session = sessions_client::SessionsClient.open(OpenSessionRequest) -> OpenSessionResponse;
    keep_alive = sessions_client::SessionsClient.keep_alive(KeepAliveRequest) -> KeepAliveResponse;
    close_session = sessions_client::SessionsClient.close(CloseSessionRequest) -> CloseSessionResponse;
    acquire_lock = locks_client::LocksClient.acquire(AcquireLockRequest) -> AcquireLockResponse;
    release_lock = locks_client::LocksClient.release(ReleaseLockRequest) -> ReleaseLockResponse;
    register = registry_client::RegistryClient.register(RegisterRequest) -> RegisterResponse;
    deregister = registry_client::RegistryClient.deregister(DeregisterRequest) -> DeregisterResponse;
    put_namespace = registry_client::RegistryClient.put_namespace(PutNamespaceRequest) -> PutNamespaceResponse;
    put_service = registry_client::RegistryClient.put_service(PutServiceRequest) -> PutServiceResponse;
    list_instances = registry_client::RegistryClient.list_instances(ListInstancesRequest) -> ListInstancesResponse;
    begin_saga = sagas_client::SagasClient.begin(BeginSagaRequest) -> BeginSagaResponse;
    register_branch = sagas_client::SagasClient.register_branch(RegisterBranchRequest) -> RegisterBranchResponse;
    submit_saga = sagas_client::SagasClient.submit(SubmitSagaRequest) -> SubmitSagaResponse;
    abort_saga = sagas_client::SagasClient.abort(AbortSagaRequest) -> AbortSagaResponse;
    get_saga = sagas_client::SagasClient.get(GetSagaRequest) -> GetSagaResponse;
    list_sagas = sagas_client::SagasClient.list(ListSagasRequest) -> ListSagasResponse;
    end_gray = config_client::ConfigClient.end_gray(EndGrayRequest) -> EndGrayResponse;
    status = cluster_client::ClusterClient.status(StatusRequest) -> StatusResponse;
    members = cluster_client::ClusterClient.members(MembersRequest) -> MembersResponse;
    add_learner = cluster_client::ClusterClient.add_learner(AddLearnerRequest) -> AddLearnerResponse;
    promote = cluster_client::ClusterClient.promote(PromoteRequest) -> PromoteResponse;
    remove = cluster_client::ClusterClient.remove(RemoveRequest) -> RemoveResponse;
    transfer_leader = cluster_client::ClusterClient.transfer_leader(TransferLeaderRequest) -> TransferLeaderResponse;
    digest = cluster_client::ClusterClient.digest(DigestRequest) -> DigestResponse;
}
