//! The orders: take a user's cart, ask what it costs, and subtract the discount of the moment.

use quorate::client::{Channel, Client, Counter, HashKey};
use tonic::{Request, Response, Status, async_trait, service::Routes};

use crate::Failed;
use crate::proto::cart_client::CartClient;
use crate::proto::catalogue_client::CatalogueClient;
use crate::proto::order_server::{Order, OrderServer};
use crate::proto::{PlaceRequest, PlaceResponse, PriceRequest, TakeRequest};
use crate::service::{self, Live, Place};

struct Orders {
    carts: CartClient<Channel>,
    catalogue: CatalogueClient<Channel>,
    settings: Live,
    requests: Counter,
}

pub async fn run(client: Client, place: Place) -> Result<(), Failed> {
    let counters = service::counters(&client).await?;
    let orders = Orders {
        carts: CartClient::new(client.channel("quorate:///shop-cart").await?),
        // A price may be asked for again, whatever became of the first question.
        catalogue: CatalogueClient::new(
            client.channel("quorate:///shop-catalogue?retry=lost").await?,
        ),
        settings: Live::open(&client, &place.id).await?,
        requests: service::requests(&counters, "shop-order", &place.id),
    };
    let routes = Routes::new(OrderServer::new(orders));
    service::serve(&client, "shop-order", &place, routes, counters).await
}

#[async_trait]
impl Order for Orders {
    async fn place(
        &self,
        request: Request<PlaceRequest>,
    ) -> Result<Response<PlaceResponse>, Status> {
        self.requests.increment();
        let user = request.into_inner().user;
        let (mut carts, mut catalogue) = (self.carts.clone(), self.catalogue.clone());
        let mut take = Request::new(TakeRequest { user: user.clone() });
        take.extensions_mut().insert(HashKey::of(&user));
        let items = carts.take(take).await?.into_inner().items;
        let mut cents = 0;
        for (item, quantity) in items {
            let price = catalogue.price(PriceRequest { item }).await?.into_inner();
            cents += price.cents * u64::from(quantity);
        }
        let discount_percent = self.settings.get().discount_percent.min(100);
        let total_cents = cents * u64::from(100 - discount_percent) / 100;
        Ok(Response::new(PlaceResponse { total_cents, discount_percent }))
    }
}
