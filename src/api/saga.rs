//! `quorate.v1.Sagas`.

use std::time::Duration;

use tonic::{Request, Response, Status};

use super::{Api, convert, read_header, timeout};
use crate::proto::v1::{self, sagas_server};

#[derive(Debug)]
pub struct Sagas(pub Api);

#[tonic::async_trait]
impl sagas_server::Sagas for Sagas {
    async fn begin(
        &self,
        request: Request<v1::BeginSagaRequest>,
    ) -> Result<Response<v1::BeginSagaResponse>, Status> {
        self.0.write(request).await
    }

    async fn submit(
        &self,
        request: Request<v1::SubmitSagaRequest>,
    ) -> Result<Response<v1::SubmitSagaResponse>, Status> {
        self.0.write(request).await
    }

    async fn abort(
        &self,
        request: Request<v1::AbortSagaRequest>,
    ) -> Result<Response<v1::AbortSagaResponse>, Status> {
        self.0.write(request).await
    }

    async fn register_branch(
        &self,
        request: Request<v1::RegisterBranchRequest>,
    ) -> Result<Response<v1::RegisterBranchResponse>, Status> {
        self.0.write(request).await
    }

    async fn wait(
        &self,
        request: Request<v1::WaitSagaRequest>,
    ) -> Result<Response<v1::WaitSagaResponse>, Status> {
        let timeout = timeout(request.metadata());
        let v1::WaitSagaRequest { namespace, gid, timeout_ms } = request.into_inner();
        let name = convert::saga::saga_name(namespace, gid);
        let patience = match timeout_ms {
            0 => timeout,
            timeout_ms => Duration::from_millis(timeout_ms).min(timeout),
        };
        let node = &self.0.node;
        let (saga, revision, used) = node.wait_for_saga(&name, patience, timeout).await?;
        let header = Some(read_header(node.id(), revision, used));
        let saga = Some(convert::saga::saga(&saga, false));
        Ok(Response::new(v1::WaitSagaResponse { header, saga }))
    }

    async fn get(
        &self,
        request: Request<v1::GetSagaRequest>,
    ) -> Result<Response<v1::GetSagaResponse>, Status> {
        self.0.read(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListSagasRequest>,
    ) -> Result<Response<v1::ListSagasResponse>, Status> {
        self.0.read(request).await
    }

    async fn order(
        &self,
        request: Request<v1::OrderSagaRequest>,
    ) -> Result<Response<v1::OrderSagaResponse>, Status> {
        self.0.write(request).await
    }
}
