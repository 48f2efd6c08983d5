//! The carts, in the memory of the instance that their user's id maps to.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use quorate::client::{Client, Counter};
use tonic::{Request, Response, Status, async_trait, service::Routes};

use crate::Failed;
use crate::proto::cart_server::{Cart, CartServer};
use crate::proto::{PutRequest, PutResponse, TakeRequest, TakeResponse};
use crate::service::{self, Place};

struct Carts {
    carts: Mutex<HashMap<String, HashMap<String, u32>>>,
    requests: Counter,
}

pub async fn run(client: Client, place: Place) -> Result<(), Failed> {
    let counters = service::counters(&client).await?;
    let requests = service::requests(&counters, "shop-cart", &place.id);
    let routes = Routes::new(CartServer::new(Carts { carts: Mutex::default(), requests }));
    service::serve(&client, "shop-cart", &place, routes, counters).await
}

#[async_trait]
impl Cart for Carts {
    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.requests.increment();
        let PutRequest { user, item, quantity } = request.into_inner();
        let mut carts = self.carts.lock().unwrap_or_else(PoisonError::into_inner);
        carts.entry(user).or_default().insert(item, quantity);
        Ok(Response::new(PutResponse {}))
    }

    async fn take(&self, request: Request<TakeRequest>) -> Result<Response<TakeResponse>, Status> {
        self.requests.increment();
        let user = request.into_inner().user;
        let cart = self.carts.lock().unwrap_or_else(PoisonError::into_inner).remove(&user);
        let items = cart.ok_or_else(|| Status::not_found(format!("{user} has no cart here")))?;
        Ok(Response::new(TakeResponse { items }))
    }
}
