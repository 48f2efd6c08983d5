//! What the client knows about each call of the public API: its path, where it goes and whether it
//! may be sent twice; and the codec that encodes a request without giving it away, so that a
//! repetition costs no copy.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};

use crate::limits;
use crate::proto::codec::Decoder;
use crate::proto::v1;

/// Which node a call prefers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Writes and keep-alives: the leader would get them anyhow.
    Leader,
    /// As [`ReadFrom`](super::ReadFrom) says.
    Fresh,
    /// Round all nodes.
    Anywhere,
}

/// One kind of call.
pub trait Request: Message + 'static {
    type Response: Message + Default + 'static;
    const PATH: &'static str;

    fn route(&self) -> Route;

    /// True when it changes nothing, so that an error about it never leaves a doubt.
    fn is_read(&self) -> bool {
        false
    }

    /// True when sending it twice has the effect of sending it once.
    fn is_repeatable(&self) -> bool;

    /// How long a node may take to answer although all is well.
    fn held_back(&self) -> Duration {
        Duration::ZERO
    }

    /// Where the exactly-once id goes, in writes.
    fn request_id(&mut self) -> Option<&mut Option<v1::RequestId>> {
        None
    }

    /// True when it has an id, by which the state gives all its copies one answer.
    fn is_identified(&self) -> bool {
        false
    }
}

macro_rules! reads {
    ($($request:ident => $response:ident, $path:literal;)*) => {$(
        impl Request for v1::$request {
            type Response = v1::$response;
            const PATH: &'static str = concat!("/quorate.v1.", $path);
            fn route(&self) -> Route {
                match self.consistency() {
                    v1::Consistency::Stale => Route::Anywhere,
                    v1::Consistency::Unspecified | v1::Consistency::Linearizable => Route::Fresh,
                }
            }
            fn is_read(&self) -> bool {
                true
            }
            fn is_repeatable(&self) -> bool {
                true
            }
        }
    )*};
}

macro_rules! writes {
    ($($request:ident => $response:ident, $path:literal;)*) => {
        settled_writes! { $($request => $response, $path, |_| false;)* }
    };
}

/// Writes, some of which have the same effect however often they are sent, also without an id.
macro_rules! settled_writes {
    ($($request:ident => $response:ident, $path:literal, $settled:expr;)*) => {$(
        impl Request for v1::$request {
            type Response = v1::$response;
            const PATH: &'static str = concat!("/quorate.v1.", $path);
            fn route(&self) -> Route {
                Route::Leader
            }
            fn is_repeatable(&self) -> bool {
                let settled: fn(&Self) -> bool = $settled;
                self.is_identified() || settled(self)
            }
            fn request_id(&mut self) -> Option<&mut Option<v1::RequestId>> {
                Some(&mut self.request_id)
            }
            fn is_identified(&self) -> bool {
                carries_id(&self.request_id)
            }
        }
    )*};
}

/// Calls without an id and without a consistency; the flags say read and repeatable.
macro_rules! others {
    ($($request:ident => $response:ident, $path:literal, $route:ident, $read:literal, $repeatable:literal;)*) => {$(
        impl Request for v1::$request {
            type Response = v1::$response;
            const PATH: &'static str = concat!("/quorate.v1.", $path);
            fn route(&self) -> Route {
                Route::$route
            }
            fn is_read(&self) -> bool {
                $read
            }
            fn is_repeatable(&self) -> bool {
                $repeatable
            }
        }
    )*};
}

reads! {
    GetInstanceRequest => GetInstanceResponse, "Registry/GetInstance";
    ListInstancesRequest => ListInstancesResponse, "Registry/ListInstances";
    GetServiceRequest => GetServiceResponse, "Registry/GetService";
    ListServicesRequest => ListServicesResponse, "Registry/ListServices";
    ListNamespacesRequest => ListNamespacesResponse, "Registry/ListNamespaces";
    ListSessionsRequest => ListSessionsResponse, "Sessions/List";
    MembersRequest => MembersResponse, "Cluster/Members";
    GetConfigRequest => GetConfigResponse, "Config/Get";
    ListConfigRequest => ListConfigResponse, "Config/List";
    ConfigHistoryRequest => ConfigHistoryResponse, "Config/History";
    DiffConfigRequest => DiffConfigResponse, "Config/Diff";
    GetSchemaRequest => GetSchemaResponse, "Config/GetSchema";
    ConfigInstancesRequest => ConfigInstancesResponse, "Config/Instances";
    GetCounterRequest => GetCounterResponse, "Counters/Get";
    ListCountersRequest => ListCountersResponse, "Counters/List";
    GetLockRequest => GetLockResponse, "Locks/Get";
    ListLocksRequest => ListLocksResponse, "Locks/List";
    ListAlarmsRequest => ListAlarmsResponse, "Alarms/List";
    GetSagaRequest => GetSagaResponse, "Sagas/Get";
    ListSagasRequest => ListSagasResponse, "Sagas/List";
}

writes! {
    RegisterRequest => RegisterResponse, "Registry/Register";
    DeregisterRequest => DeregisterResponse, "Registry/Deregister";
    UpdateInstanceRequest => UpdateInstanceResponse, "Registry/UpdateInstance";
    PutServiceRequest => PutServiceResponse, "Registry/PutService";
    DeleteServiceRequest => DeleteServiceResponse, "Registry/DeleteService";
    PutNamespaceRequest => PutNamespaceResponse, "Registry/PutNamespace";
    DeleteNamespaceRequest => DeleteNamespaceResponse, "Registry/DeleteNamespace";
    PublishConfigRequest => PublishConfigResponse, "Config/Publish";
    DeleteConfigRequest => DeleteConfigResponse, "Config/Delete";
    RollbackConfigRequest => RollbackConfigResponse, "Config/Rollback";
    EndGrayRequest => EndGrayResponse, "Config/EndGray";
    PutSchemaRequest => PutSchemaResponse, "Config/PutSchema";
    DeleteSchemaRequest => DeleteSchemaResponse, "Config/DeleteSchema";
    ReportConfigRequest => ReportConfigResponse, "Config/Report";
    AddCounterRequest => AddCounterResponse, "Counters/Add";
    SetCounterRequest => SetCounterResponse, "Counters/Set";
    ResetCounterRequest => ResetCounterResponse, "Counters/Reset";
    DeleteCounterRequest => DeleteCounterResponse, "Counters/Delete";
    ReleaseLockRequest => ReleaseLockResponse, "Locks/Release";
    UpdateLockRequest => UpdateLockResponse, "Locks/Update";
    PutAlarmRequest => PutAlarmResponse, "Alarms/Put";
    DeleteAlarmRequest => DeleteAlarmResponse, "Alarms/Delete";
    OrderSagaRequest => OrderSagaResponse, "Sagas/Order";
}

impl Request for v1::TxnRequest {
    type Response = v1::TxnResponse;
    const PATH: &'static str = "/quorate.v1.Txn/Commit";

    fn route(&self) -> Route {
        match (self.is_read(), self.consistency()) {
            (false, _) => Route::Leader,
            (true, v1::Consistency::Stale) => Route::Anywhere,
            (true, v1::Consistency::Unspecified | v1::Consistency::Linearizable) => Route::Fresh,
        }
    }

    fn is_read(&self) -> bool {
        self.only_reads()
    }

    fn is_repeatable(&self) -> bool {
        self.is_read() || self.is_identified()
    }

    fn request_id(&mut self) -> Option<&mut Option<v1::RequestId>> {
        (!self.is_read()).then_some(&mut self.request_id)
    }

    fn is_identified(&self) -> bool {
        carries_id(&self.request_id)
    }
}

impl Request for v1::AcquireLockRequest {
    type Response = v1::AcquireLockResponse;
    const PATH: &'static str = "/quorate.v1.Locks/Acquire";

    fn route(&self) -> Route {
        Route::Leader
    }

    fn is_repeatable(&self) -> bool {
        self.is_identified()
    }

    fn held_back(&self) -> Duration {
        Duration::from_millis(self.wait_ms)
    }

    fn request_id(&mut self) -> Option<&mut Option<v1::RequestId>> {
        Some(&mut self.request_id)
    }

    fn is_identified(&self) -> bool {
        carries_id(&self.request_id)
    }
}

impl Request for v1::WaitSagaRequest {
    type Response = v1::WaitSagaResponse;
    const PATH: &'static str = "/quorate.v1.Sagas/Wait";

    fn route(&self) -> Route {
        Route::Fresh
    }

    fn is_read(&self) -> bool {
        true
    }

    fn is_repeatable(&self) -> bool {
        true
    }

    fn held_back(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

settled_writes! {
    SubmitSagaRequest => SubmitSagaResponse, "Sagas/Submit", |_| true;
    AbortSagaRequest => AbortSagaResponse, "Sagas/Abort", |_| true;
    RegisterBranchRequest => RegisterBranchResponse, "Sagas/RegisterBranch", |_| true;
    BeginSagaRequest => BeginSagaResponse, "Sagas/Begin", |begin| !begin.gid.is_empty() && outlasts_calls(begin);
}

/// Whether it is still known when a call that began it ends: a copy would begin anew what was forgotten.
fn outlasts_calls(begin: &v1::BeginSagaRequest) -> bool {
    begin.retention_ms.is_none_or(|ms| Duration::from_millis(ms) >= limits::MAX_CALL_TIMEOUT)
}

others! {
    WatchRequest => WatchResponse, "Registry/Watch", Anywhere, true, true;
    WatchRangesRequest => WatchResponse, "Watches/Watch", Anywhere, true, true;
    // Opening twice leaves a session that nobody keeps alive: it ends by itself.
    OpenSessionRequest => OpenSessionResponse, "Sessions/Open", Leader, false, true;
    KeepAliveRequest => KeepAliveResponse, "Sessions/KeepAlive", Leader, true, true;
    // The id of a session is never used again, so closing it twice closes nothing else.
    CloseSessionRequest => CloseSessionResponse, "Sessions/Close", Leader, false, true;
    StatusRequest => StatusResponse, "Cluster/Status", Anywhere, true, true;
    AddLearnerRequest => AddLearnerResponse, "Cluster/AddLearner", Leader, false, false;
    PromoteRequest => PromoteResponse, "Cluster/Promote", Leader, false, false;
    RemoveRequest => RemoveResponse, "Cluster/Remove", Leader, false, false;
    TransferLeaderRequest => TransferLeaderResponse, "Cluster/TransferLeader", Leader, false, false;
    SnapshotRequest => SnapshotResponse, "Cluster/Snapshot", Anywhere, true, true;
    DigestRequest => DigestResponse, "Cluster/Digest", Anywhere, true, true;
}

pub fn carries_id(id: &Option<v1::RequestId>) -> bool {
    id.as_ref().is_some_and(|id| id.session != 0)
}

/// Encodes a shared request and decodes its response.
pub struct SharedCodec<R>(PhantomData<fn(R)>);

impl<R> Default for SharedCodec<R> {
    fn default() -> Self {
        SharedCodec(PhantomData)
    }
}

/// Most messages are a few hundred bytes; the 8 KiB that are reserved by default for each call cost
/// more than the rare second step of a large one.
const BUFFER: usize = 1024;
const YIELD_AT: usize = 32 * 1024;

impl<R: Request> Codec for SharedCodec<R> {
    type Encode = Arc<R>;
    type Decode = R::Response;
    type Encoder = SharedEncoder<R>;
    type Decoder = Decoder<R::Response>;

    fn encoder(&mut self) -> Self::Encoder {
        SharedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        decoder()
    }
}

pub struct SharedEncoder<R>(PhantomData<fn(R)>);

impl<R: Request> Encoder for SharedEncoder<R> {
    type Item = Arc<R>;
    type Error = Status;

    fn encode(&mut self, item: Arc<R>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buf).map_err(|e| Status::internal(e.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, YIELD_AT)
    }
}

/// Of answers.
pub fn decoder<M>() -> Decoder<M> {
    Decoder::new(BufferSettings::new(BUFFER, YIELD_AT))
}
