//! `quorate.v1.Alarms`.

use tonic::{Request, Response, Status};

use super::Api;
use crate::proto::v1;
use crate::proto::v1::alarms_server;

#[derive(Debug)]
pub struct Alarms(pub Api);

#[tonic::async_trait]
impl alarms_server::Alarms for Alarms {
    async fn put(
        &self,
        request: Request<v1::PutAlarmRequest>,
    ) -> Result<Response<v1::PutAlarmResponse>, Status> {
        self.0.write(request).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteAlarmRequest>,
    ) -> Result<Response<v1::DeleteAlarmResponse>, Status> {
        self.0.write(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListAlarmsRequest>,
    ) -> Result<Response<v1::ListAlarmsResponse>, Status> {
        self.0.read(request).await
    }
}
