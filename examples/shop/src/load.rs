//! Users who fill their carts and order, and what becomes of their calls.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use quorate::client::channel::may_have_taken_place;
use quorate::client::{Channel, Client, HashKey, Retry, ServedBy};
use tokio::task::JoinSet;
use tonic::{Code, Request, Response, Status};

use crate::Failed;
use crate::catalogue::ITEMS;
use crate::proto::cart_client::CartClient;
use crate::proto::order_client::OrderClient;
use crate::proto::{PlaceRequest, PutRequest};

/// What the load has seen.
#[derive(Debug, Default)]
pub struct Seen {
    /// Orders that were placed.
    pub orders: AtomicU64,
    /// Orders whose cart was in the memory of an instance that is gone, or on one that the user's key had
    /// moved away from: what the death or the coming of an instance costs.
    pub carts_lost: AtomicU64,
    /// Calls that may have taken place and must not be repeated: an instance died with them.
    pub uncertain: AtomicU64,
    /// Calls that needed another instance than the first one.
    pub moved_on: AtomicU64,
    /// Orders by the discount that they got.
    pub discounts: Mutex<BTreeMap<u32, u64>>,
    /// Answers by service and instance.
    pub served: Mutex<BTreeMap<(&'static str, String), u64>>,
    /// Failures that should not have been, and the first of them.
    pub failed: AtomicU64,
    pub example: Mutex<Option<Status>>,
}

/// A running load.
pub struct Load {
    pub seen: Arc<Seen>,
    /// By which the carts are found.
    pub carts: Channel,
    stopping: Arc<AtomicBool>,
    users: JoinSet<()>,
}

impl Load {
    pub async fn start(client: &Client, users: u64) -> Result<Load, Failed> {
        let carts = client.channel("quorate:///shop-cart").await?;
        let orders = client.channel("quorate:///shop-order").await?;
        let (seen, stopping) = (Arc::<Seen>::default(), Arc::<AtomicBool>::default());
        let mut load = Load { seen, carts: carts.clone(), stopping, users: JoinSet::new() };
        for worker in 0..users {
            let (seen, stopping) = (load.seen.clone(), load.stopping.clone());
            let (carts, orders) =
                (CartClient::new(carts.clone()), OrderClient::new(orders.clone()));
            load.users.spawn(async move {
                let mut user = User { carts, orders, seen };
                for round in 0u64.. {
                    if stopping.load(Ordering::Relaxed) {
                        return;
                    }
                    // Many users, one after the other.
                    user.shop(format!("user-{}", (round * users + worker) % 1_000), round).await;
                }
            });
        }
        Ok(load)
    }

    /// Lets everybody finish.
    pub async fn stop(mut self) -> Arc<Seen> {
        self.stopping.store(true, Ordering::Relaxed);
        while self.users.join_next().await.is_some() {}
        self.seen
    }
}

struct User {
    carts: CartClient<Channel>,
    orders: OrderClient<Channel>,
    seen: Arc<Seen>,
}

impl User {
    async fn shop(&mut self, user: String, round: u64) {
        let (item, _) = ITEMS[round as usize % ITEMS.len()];
        let put = PutRequest { user: user.clone(), item: item.to_owned(), quantity: 1 };
        let mut request = Request::new(put);
        request.extensions_mut().insert(HashKey::of(&user));
        // To put something into a cart twice changes nothing: such calls may be repeated.
        request.extensions_mut().insert(Retry::Lost);
        let put = self.carts.put(request).await;
        if self.seen.is_well("shop-cart", &put) {
            let placed = self.orders.place(PlaceRequest { user }).await;
            if self.seen.is_well("shop-order", &placed)
                && let Ok(placed) = placed
            {
                self.seen.orders.fetch_add(1, Ordering::Relaxed);
                let mut discounts = locked(&self.seen.discounts);
                *discounts.entry(placed.into_inner().discount_percent).or_default() += 1;
            }
        }
    }
}

impl Seen {
    /// Notes what became of a call.
    fn is_well<T>(&self, service: &'static str, outcome: &Result<Response<T>, Status>) -> bool {
        let status = match outcome {
            Ok(answer) => {
                if let Some(ServedBy { instance, attempts }) = answer.extensions().get() {
                    *locked(&self.served).entry((service, instance.to_string())).or_default() += 1;
                    self.moved_on.fetch_add(u64::from(*attempts > 1), Ordering::Relaxed);
                }
                return true;
            }
            Err(status) => status,
        };
        let count = match status.code() {
            Code::NotFound => &self.carts_lost,
            _ if may_have_taken_place(status) => &self.uncertain,
            _ => {
                locked(&self.example).get_or_insert_with(|| status.clone());
                &self.failed
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        false
    }
}

pub fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
