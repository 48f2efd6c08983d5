//! The catalogue: what things cost. Any instance knows as much as any other.

use quorate::client::{Client, Counter};
use tonic::{Request, Response, Status, async_trait, service::Routes};

use crate::Failed;
use crate::proto::catalogue_server::{Catalogue, CatalogueServer};
use crate::proto::{PriceRequest, PriceResponse};
use crate::service::{self, Place};

/// What there is, and what it costs in cents.
pub const ITEMS: [(&str, u64); 4] =
    [("apple", 40), ("bread", 320), ("cheese", 780), ("wine", 1_190)];

struct Prices {
    requests: Counter,
}

pub async fn run(client: Client, place: Place) -> Result<(), Failed> {
    let counters = service::counters(&client).await?;
    let requests = service::requests(&counters, "shop-catalogue", &place.id);
    let routes = Routes::new(CatalogueServer::new(Prices { requests }));
    service::serve(&client, "shop-catalogue", &place, routes, counters).await
}

#[async_trait]
impl Catalogue for Prices {
    async fn price(
        &self,
        request: Request<PriceRequest>,
    ) -> Result<Response<PriceResponse>, Status> {
        self.requests.increment();
        let item = request.into_inner().item;
        let found = ITEMS.iter().find(|(name, _)| *name == item);
        let (_, cents) = found.ok_or_else(|| Status::not_found(format!("there is no {item}")))?;
        Ok(Response::new(PriceResponse { cents: *cents }))
    }
}
