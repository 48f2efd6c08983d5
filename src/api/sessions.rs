//! `quorate.v1.Sessions`.

use futures::stream::{BoxStream, StreamExt as _};
use prost::Message as _;
use tonic::{Request, Response, Status, Streaming};

use super::stream::{Packed, Pipeline};
use super::{Api, timeout};
use crate::proto::v1;
use crate::proto::v1::sessions_server;

#[derive(Debug)]
pub struct Sessions(pub Api);

#[tonic::async_trait]
impl sessions_server::Sessions for Sessions {
    type StreamStream = BoxStream<'static, Result<v1::StreamResponse, Status>>;

    async fn open(
        &self,
        request: Request<v1::OpenSessionRequest>,
    ) -> Result<Response<v1::OpenSessionResponse>, Status> {
        self.0.write(request).await
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Result<Response<v1::KeepAliveResponse>, Status> {
        let timeout = timeout(request.metadata());
        let session = request.into_inner().session;
        let ttl_ms = self.0.node.keep_alive(session, timeout).await?;
        Ok(Response::new(v1::KeepAliveResponse { header: Some(self.0.header()), ttl_ms }))
    }

    async fn close(
        &self,
        request: Request<v1::CloseSessionRequest>,
    ) -> Result<Response<v1::CloseSessionResponse>, Status> {
        self.0.write(request).await
    }

    async fn list(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        self.0.read(request).await
    }

    /// For whoever serves this without `super::stream`, which sends the bytes as they are.
    async fn stream(
        &self,
        request: Request<Streaming<v1::StreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let messages = Pipeline::new(&self.0, request.into_inner());
        let response = |Packed(bytes)| {
            v1::StreamResponse::decode(bytes).map_err(|error| Status::internal(error.to_string()))
        };
        Ok(Response::new(messages.map(move |next| next.and_then(response)).boxed()))
    }
}
