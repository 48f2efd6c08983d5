//! Typed calls of configuration, counters, locks and transactions, one method each. Requests and answers are
//! the messages of `proto/`; a `session` makes a write exactly once: it gets an id, and is repeated until
//! it is answered or its deadline passes.

use tokio::time::Instant;

use super::connection::Client;
use super::request::Request;
use super::session::Session;
use crate::error::Error;
use crate::proto::v1;

macro_rules! writes {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(
                &self,
                request: v1::$request,
                session: Option<&Session>,
            ) -> Result<v1::$response, Error> {
                self.write(request, session).await
            })*
        }
    };
}

macro_rules! reads {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ident;)*) => {
        impl Client {
            $($(#[$doc])*
            pub async fn $name(&self, request: v1::$request) -> Result<v1::$response, Error> {
                self.call(request).await
            })*
        }
    };
}

writes! {
    /// Makes a release of a configuration item, for everybody or for some.
    publish_config(PublishConfigRequest) -> PublishConfigResponse;
    delete_config(DeleteConfigRequest) -> DeleteConfigResponse;
    /// Makes a new release with the content of an earlier one.
    rollback_config(RollbackConfigRequest) -> RollbackConfigResponse;
    /// Gives a gray release to everybody, or to nobody.
    end_gray(EndGrayRequest) -> EndGrayResponse;
    put_schema(PutSchemaRequest) -> PutSchemaResponse;
    delete_schema(DeleteSchemaRequest) -> DeleteSchemaResponse;
    /// Says what a client runs.
    report_config(ReportConfigRequest) -> ReportConfigResponse;
    /// Adds to a counter: with a session exactly once.
    add_counter(AddCounterRequest) -> AddCounterResponse;
    set_counter(SetCounterRequest) -> SetCounterResponse;
    reset_counter(ResetCounterRequest) -> ResetCounterResponse;
    delete_counter(DeleteCounterRequest) -> DeleteCounterResponse;
    acquire_lock(AcquireLockRequest) -> AcquireLockResponse;
    release_lock(ReleaseLockRequest) -> ReleaseLockResponse;
    update_lock(UpdateLockRequest) -> UpdateLockResponse;
    put_alarm(PutAlarmRequest) -> PutAlarmResponse;
    delete_alarm(DeleteAlarmRequest) -> DeleteAlarmResponse;
    /// Begins a global transaction: see [`Client::saga`] for how to make one.
    begin_saga(BeginSagaRequest) -> BeginSagaResponse;
    submit_saga(SubmitSagaRequest) -> SubmitSagaResponse;
    abort_saga(AbortSagaRequest) -> AbortSagaResponse;
    register_branch(RegisterBranchRequest) -> RegisterBranchResponse;
    /// Suspends, resumes or settles a global transaction by hand.
    order_saga(OrderSagaRequest) -> OrderSagaResponse;
    /// An atomic transaction; one that writes nothing is a read and needs no session.
    txn(TxnRequest) -> TxnResponse;
}

reads! {
    get_config(GetConfigRequest) -> GetConfigResponse;
    /// One page.
    list_config(ListConfigRequest) -> ListConfigResponse;
    config_history(ConfigHistoryRequest) -> ConfigHistoryResponse;
    diff_config(DiffConfigRequest) -> DiffConfigResponse;
    get_schema(GetSchemaRequest) -> GetSchemaResponse;
    /// Who runs what.
    config_instances(ConfigInstancesRequest) -> ConfigInstancesResponse;
    get_counter(GetCounterRequest) -> GetCounterResponse;
    /// One page.
    list_counters(ListCountersRequest) -> ListCountersResponse;
    get_lock(GetLockRequest) -> GetLockResponse;
    /// One page.
    list_locks(ListLocksRequest) -> ListLocksResponse;
    get_saga(GetSagaRequest) -> GetSagaResponse;
    /// One page.
    list_sagas(ListSagasRequest) -> ListSagasResponse;
    /// One page.
    list_alarms(ListAlarmsRequest) -> ListAlarmsResponse;
    /// A session that whoever opens it keeps alive; [`Client::session`] keeps one by itself.
    open_session(OpenSessionRequest) -> OpenSessionResponse;
    keep_session_alive(KeepAliveRequest) -> KeepAliveResponse;
}

impl Client {
    /// Waits until a global transaction is finished or suspended, or the time is over: that of the request,
    /// or, when it states none, most of that of the call. See [`SagaHandle::wait`](super::SagaHandle::wait)
    /// for one that waits on.
    pub async fn wait_saga(
        &self,
        mut request: v1::WaitSagaRequest,
    ) -> Result<v1::WaitSagaResponse, Error> {
        if request.timeout_ms == 0 {
            // The answer must have arrived when the call's time is over.
            request.timeout_ms = (self.timeout() * 3 / 4).as_millis().max(1) as u64;
        }
        self.call(request).await
    }

    /// Every item that a listing asks for, page by page, each handed to `take`. The pages are read one
    /// after the other: what changes meanwhile may be as before or as after.
    pub async fn all_config(
        &self,
        mut request: v1::ListConfigRequest,
        mut take: impl FnMut(v1::ConfigItem),
    ) -> Result<(), Error> {
        loop {
            let page = self.list_config(request.clone()).await?;
            let Some(last) = page.items.last() else { return Ok(()) };
            request.after_group.clone_from(&last.group);
            request.after_key.clone_from(&last.key);
            page.items.into_iter().for_each(&mut take);
            if !page.more {
                return Ok(());
            }
        }
    }

    /// A write, with an id of `session` unless it carries one already.
    pub(super) async fn write<R: Request>(
        &self,
        mut request: R,
        session: Option<&Session>,
    ) -> Result<R::Response, Error> {
        let deadline = Instant::now() + self.timeout();
        let carries_one = request.is_repeatable();
        // The ticket lives until the last attempt is over: only then may the cluster forget the answer.
        let mut ticket = None;
        if let Some(session) = session
            && !carries_one
        {
            let next = session.ticket_until(deadline).await?;
            if let Some(id) = request.request_id() {
                *id = Some(next.request_id());
            }
            ticket = Some(next);
        }
        let result = self.call_until(request, deadline).await;
        drop(ticket);
        match result {
            Ok(answered) => Ok(answered.response),
            Err(error) => {
                if let Some(session) = session {
                    session.note(&error);
                }
                Err(error)
            }
        }
    }
}
