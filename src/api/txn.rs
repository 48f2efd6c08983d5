//! `quorate.v1.Txn`.

use tonic::{Request, Response, Status};

use super::Api;
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
        match request.get_ref().only_reads() {
            true => self.0.read(request).await,
            false => self.0.write(request).await,
        }
    }
}
