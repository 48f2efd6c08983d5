//! `quorate.v1.Counters`.

use tonic::{Request, Response, Status};

use super::Api;
use crate::proto::v1;
use crate::proto::v1::counters_server;

#[derive(Debug)]
pub struct Counters(pub Api);

#[tonic::async_trait]
impl counters_server::Counters for Counters {
    async fn add(
        &self,
        request: Request<v1::AddCounterRequest>,
    ) -> Result<Response<v1::AddCounterResponse>, Status> {
        self.0.write(request).await
    }

    async fn set(
        &self,
        request: Request<v1::SetCounterRequest>,
    ) -> Result<Response<v1::SetCounterResponse>, Status> {
        self.0.write(request).await
    }

    async fn reset(
        &self,
        request: Request<v1::ResetCounterRequest>,
    ) -> Result<Response<v1::ResetCounterResponse>, Status> {
        self.0.write(request).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteCounterRequest>,
    ) -> Result<Response<v1::DeleteCounterResponse>, Status> {
        self.0.write(request).await
    }

    async fn get(
        &self,
        request: Request<v1::GetCounterRequest>,
    ) -> Result<Response<v1::GetCounterResponse>, Status> {
        self.0.read(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListCountersRequest>,
    ) -> Result<Response<v1::ListCountersResponse>, Status> {
        self.0.read(request).await
    }
}
