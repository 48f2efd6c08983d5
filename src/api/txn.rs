//! `quorate.v1.Txn`.

use tonic::{Request, Response, Status};

use super::Api;
use super::calls::txn::is_read;
use crate::proto::v1;
use crate::proto::v1::txn_server;

#[derive(Debug)]
pub struct Txn(pub Api);

#[tonic::async_trait]
impl txn_server::Txn for Txn {
    async fn commit(
        &self,
        request: Request<v1::TxnRequest>,
    ) -> Result<Response<v1::TxnResponse>, Status> {
        match is_read(request.get_ref()) {
            true => self.0.read(request).await,
            false => self.0.write(request).await,
        }
    }
}
