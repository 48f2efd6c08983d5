//! A channel to a service: any gRPC client that tonic generates takes it, and each call goes to an instance
//! that the service's policy picks.
//!
//! From `Cargo.toml` to a balanced call:
//!
//! ```toml
//! quorate = { version = "0.1", default-features = false }    # the client, without the server
//! tonic = "0.14"
//! tokio = { version = "1", features = ["full"] }
//! ```
//!
//! ```no_run
//! use quorate::client::{Client, HashKey, Options};
//! # // What tonic generates from the proto file of the service.
//! # mod shop {
//! #     pub struct GetCart { pub user: String }
//! #     pub struct CartClient<T>(T);
//! #     impl<T> CartClient<T> {
//! #         pub fn new(channel: T) -> Self { CartClient(channel) }
//! #         pub async fn get(&mut self, _: tonic::Request<GetCart>) -> Result<(), tonic::Status> { Ok(()) }
//! #     }
//! # }
//! # use shop::{CartClient, GetCart};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::connect(Options::new(["10.0.0.1:7650", "10.0.0.2:7650"]))?;
//! let channel = client.channel("quorate:///cart?policy=ring_hash").await?;
//! let mut carts = CartClient::new(channel);
//!
//! // Calls of one user go to one instance; without a key any of them may do.
//! let mut request = tonic::Request::new(GetCart { user: "u-17".into() });
//! request.extensions_mut().insert(HashKey::of("u-17"));
//! let cart = carts.get(request).await?;
//! # Ok(())
//! # }
//! ```
//!
//! The server's side of it is [`Client::registration`](super::Client::registration). Without `policy=` in the URI the
//! service's own policy is in force, which `quorate service policy cart ring_hash` sets and changes for all clients at
//! once; [`ChannelOptions`] lists what else a URI may say, [`balance`](super::balance) the policies and what to choose.
//!
//! Different from tonic's own balancing channel it chooses when it sees the call, so that it can hash; it
//! knows how busy and how fast each instance is; and a connection that cannot be opened costs a call nothing
//! but the way to the next candidate.
//!
//! Invariants:
//! - a call that an instance may have begun with is sent to no other one, unless it is said that it may be
//!   ([`Retry::Lost`]);
//! - an absent cluster takes nothing from a channel: it goes on with the instances that it knows.

mod body;
mod call;
mod deadline;
mod endpoints;
mod link;
mod options;
mod tls;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use http::{Request, Response};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tonic::Status;

use super::balance::{GOLDEN, Policy, Snapshot, hash, mix};
use super::connection::Client;
use super::discovery::{Discovery, DiscoveryOptions, ServiceState};
use super::remote::spawn;
use crate::error::Error;
use crate::limits;
use deadline::Deadline;
use tls::Tls;

pub use call::may_have_taken_place;
pub use endpoints::{endpoints, policy};
pub use link::{Address, Link};
pub use options::{ChannelOptions, Retry};
pub use tls::TlsOptions;

/// The key of a call, for policies that hash: put it into the extensions of a request. Calls of one key go
/// to one instance, as long as it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HashKey(pub u64);

impl HashKey {
    pub fn of(key: impl AsRef<[u8]>) -> HashKey {
        HashKey(hash(key.as_ref()))
    }
}

/// Who answered a call: in the extensions of the answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedBy {
    /// Id of the instance.
    pub instance: Arc<str>,
    /// Instances that the call was sent to, or tried to connect to.
    pub attempts: u32,
}

/// A service of the registry as a tower service. Cheap to clone; clones share connections and what is known
/// of the instances. Must be used within a tokio runtime.
#[derive(Clone)]
pub struct Channel {
    core: Arc<Core>,
    _guard: Arc<Guard>,
}

struct Core {
    options: ChannelOptions,
    tls: Option<Tls>,
    discovery: Discovery,
    snapshot: ArcSwap<Snapshot<Arc<Link>>>,
    /// There is a snapshot of what was discovered.
    known: watch::Sender<bool>,
    closing: watch::Sender<bool>,
    calls: Arc<Semaphore>,
    /// How long a call without a deadline waits for the first state.
    patience: Duration,
    began: Instant,
    seed: u64,
    /// Random numbers that were drawn.
    drawn: AtomicU64,
}

/// Exists as long as somebody holds the channel; the task that follows the service holds `Core` only.
struct Guard(Arc<Core>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.closing.send_replace(true);
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("options", &self.core.options).finish_non_exhaustive()
    }
}

impl Client {
    /// A channel to a service, `quorate:///SERVICE?PARAMETER=VALUE&...`: see [`ChannelOptions`]. Does not
    /// wait for the cluster: the first calls do.
    pub async fn channel(&self, uri: &str) -> Result<Channel, Error> {
        self.channel_with(uri.parse()?).await
    }

    pub async fn channel_with(&self, options: ChannelOptions) -> Result<Channel, Error> {
        let tls = options.tls.as_ref().map(Tls::new).transpose()?;
        let discovery = self
            .discovery(DiscoveryOptions {
                namespace: options.namespace.clone(),
                service: options.service.clone(),
                directory: options.directory.clone(),
            })
            .await?;
        let seed = self.random();
        let mut origin = options.origin.clone();
        if origin.id.is_empty() {
            origin.id = format!("{seed:016x}");
        }
        let policy = options.policy.clone().unwrap_or_default();
        let core = Arc::new(Core {
            snapshot: ArcSwap::from_pointee(Snapshot::new(&policy, &origin, Vec::new())),
            tls,
            discovery,
            known: watch::Sender::new(false),
            closing: watch::Sender::new(false),
            calls: Arc::new(Semaphore::new(limits::CHANNEL_CALLS)),
            patience: self.timeout(),
            began: Instant::now(),
            seed,
            drawn: AtomicU64::new(0),
            options,
        });
        spawn(follow(core.clone()));
        Ok(Channel { _guard: Arc::new(Guard(core.clone())), core })
    }
}

impl Channel {
    pub fn options(&self) -> &ChannelOptions {
        &self.core.options
    }

    /// What the registry says of the service.
    pub fn discovery(&self) -> &Discovery {
        &self.core.discovery
    }

    /// The instances as they are balanced now, with what is known of each.
    pub fn snapshot(&self) -> Arc<Snapshot<Arc<Link>>> {
        self.core.snapshot.load_full()
    }
}

impl tower::Service<Request<tonic::body::Body>> for Channel {
    type Response = Response<tonic::body::Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    /// Always: who is ready is asked when the call is seen.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.core.clone().call(request))
    }
}

impl Core {
    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The calls of one channel need different numbers, not secret ones.
    fn random(&self) -> u64 {
        let drawn = self.drawn.fetch_add(GOLDEN, Ordering::Relaxed);
        mix(self.seed.wrapping_add(drawn))
    }

    /// Waits for the first state of the service.
    async fn be_known(&self, deadline: &Deadline) -> Result<(), Status> {
        if *self.known.borrow() {
            return Ok(());
        }
        let mut known = self.known.subscribe();
        let ready = async {
            tokio::select! {
                biased;
                // The sender is held by `self`.
                _ = known.wait_for(|known| *known) => Ok(()),
                Err(error) = self.discovery.synced() => Err(Status::from(error)),
            }
        };
        let patience = match deadline.get() {
            Some(deadline) => deadline,
            None => Instant::now() + self.patience,
        };
        let waited = tokio::time::timeout_at(patience, ready).await;
        waited.unwrap_or_else(|_| {
            let service = &self.options.service;
            let message = format!("{service}: the cluster has not told of its instances yet");
            Err(Status::new(deadline.code(), message))
        })
    }

    /// Makes a snapshot of a state and puts it into place.
    async fn take(self: &Arc<Self>, state: Arc<ServiceState>, policy: Policy) {
        let many = state.instances.len() >= limits::CHANNEL_APART;
        let core = self.clone();
        let build = move || {
            let before = core.snapshot.load_full();
            let endpoints = endpoints(&state, core.options.port.as_deref());
            let endpoints = endpoints.into_iter().map(|endpoint| {
                let known = before.member(&endpoint.id).map(|member| &member.endpoint().target);
                let known = known.filter(|link| *link.address() == endpoint.target);
                let link = known.cloned().unwrap_or_else(|| {
                    let address = endpoint.target.clone();
                    Arc::new(Link::new(&endpoint.id, address, core.tls.clone()))
                });
                endpoint.with_target(link)
            });
            let endpoints = endpoints.collect();
            let after = before.successor(&policy, before.origin(), endpoints, core.now());
            core.snapshot.store(Arc::new(after));
        };
        if !many {
            build();
        } else if let Err(error) = tokio::task::spawn_blocking(build).await {
            // It did not panic: the runtime is going down.
            tracing::debug!(%error, "no snapshot");
        }
        self.known.send_replace(true);
    }

    /// The policy in force for a state; `last` where the service's record says what cannot be.
    fn policy(&self, state: &ServiceState, last: Policy) -> Policy {
        if let Some(policy) = &self.options.policy {
            return policy.clone();
        }
        match endpoints::policy(state) {
            Ok(policy) => policy.unwrap_or_default(),
            Err(error) => {
                let service = &self.options.service;
                tracing::warn!(service, %error, "policy of the service not understood; the last one stays");
                last
            }
        }
    }
}

/// Follows the service until nobody holds the channel.
async fn follow(core: Arc<Core>) {
    let mut closing = core.closing.subscribe();
    let mut states = core.discovery.subscribe();
    let mut policy = core.snapshot.load().policy().clone();
    loop {
        let sweep = core.snapshot.load().sweep(core.now(), core.random());
        let due = sweep.next.map(|next| Instant::now() + next);
        let state = tokio::select! {
            biased;
            _ = closing.wait_for(|closing| *closing) => return,
            state = states.next() => state,
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => continue,
        };
        let Some(state) = state else { return };
        if state.revision > 0 || core.discovery.status().synced {
            policy = core.policy(&state, policy);
            core.take(state, policy.clone()).await;
        }
    }
}
