//! `quorate.v1.Config`.

use tonic::{Request, Response, Status};

use super::Api;
use crate::proto::v1;
use crate::proto::v1::config_server;

#[derive(Debug)]
pub struct Config(pub Api);

#[tonic::async_trait]
impl config_server::Config for Config {
    async fn publish(
        &self,
        request: Request<v1::PublishConfigRequest>,
    ) -> Result<Response<v1::PublishConfigResponse>, Status> {
        self.0.write(request).await
    }

    async fn get(
        &self,
        request: Request<v1::GetConfigRequest>,
    ) -> Result<Response<v1::GetConfigResponse>, Status> {
        self.0.read(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListConfigRequest>,
    ) -> Result<Response<v1::ListConfigResponse>, Status> {
        self.0.read(request).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteConfigRequest>,
    ) -> Result<Response<v1::DeleteConfigResponse>, Status> {
        self.0.write(request).await
    }

    async fn history(
        &self,
        request: Request<v1::ConfigHistoryRequest>,
    ) -> Result<Response<v1::ConfigHistoryResponse>, Status> {
        self.0.read(request).await
    }

    async fn rollback(
        &self,
        request: Request<v1::RollbackConfigRequest>,
    ) -> Result<Response<v1::RollbackConfigResponse>, Status> {
        self.0.write(request).await
    }

    async fn diff(
        &self,
        request: Request<v1::DiffConfigRequest>,
    ) -> Result<Response<v1::DiffConfigResponse>, Status> {
        self.0.read(request).await
    }

    async fn end_gray(
        &self,
        request: Request<v1::EndGrayRequest>,
    ) -> Result<Response<v1::EndGrayResponse>, Status> {
        self.0.write(request).await
    }

    async fn put_schema(
        &self,
        request: Request<v1::PutSchemaRequest>,
    ) -> Result<Response<v1::PutSchemaResponse>, Status> {
        self.0.write(request).await
    }

    async fn get_schema(
        &self,
        request: Request<v1::GetSchemaRequest>,
    ) -> Result<Response<v1::GetSchemaResponse>, Status> {
        self.0.read(request).await
    }

    async fn delete_schema(
        &self,
        request: Request<v1::DeleteSchemaRequest>,
    ) -> Result<Response<v1::DeleteSchemaResponse>, Status> {
        self.0.write(request).await
    }

    async fn report(
        &self,
        request: Request<v1::ReportConfigRequest>,
    ) -> Result<Response<v1::ReportConfigResponse>, Status> {
        self.0.write(request).await
    }

    async fn instances(
        &self,
        request: Request<v1::ConfigInstancesRequest>,
    ) -> Result<Response<v1::ConfigInstancesResponse>, Status> {
        self.0.read(request).await
    }
}
