//! `quorate.v1.Watches`, and its method and `Registry.Watch` as they are mounted: a message is encoded
//! by the first watcher that gets it, and the same bytes go to all others.

use std::sync::Arc;

use axum::Router;
use bytes::BufMut as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::codec::EncodeBuf;
use tonic::server::ServerStreamingService;
use tonic::{Request, Response, Status};

use super::encoded::{self, Encoded};
use super::{Api, convert, shutting_down, timeout};
use crate::error::Error;
use crate::proto::v1::{
    Consistency, WatchRangesRequest, WatchRequest, WatchResponse, watches_server,
};
use crate::state::ConfigClient;
use crate::watch::{Message, Range};

type Messages = BoxStream<'static, Result<Sent, Status>>;
pub type Responses = BoxStream<'static, Result<WatchResponse, Status>>;

/// A message to one watcher.
#[derive(Debug)]
pub struct Sent {
    message: Arc<Message>,
    client: Option<Arc<ConfigClient>>,
}

/// What a request asks for.
#[derive(Debug)]
pub struct Wanted {
    range: Range,
    after_revision: u64,
    client: Option<Arc<ConfigClient>>,
}

/// A request that begins a watch.
pub trait Ranged: prost::Message + Default + 'static {
    const PATH: &'static str;

    fn wanted(self) -> Result<Wanted, Error>;
}

impl Ranged for WatchRequest {
    const PATH: &'static str = "/quorate.v1.Registry/Watch";

    fn wanted(self) -> Result<Wanted, Error> {
        let WatchRequest { namespace, service, after_revision } = self;
        let range = convert::range(namespace, service)?;
        Ok(Wanted { range, after_revision, client: None })
    }
}

impl Ranged for WatchRangesRequest {
    const PATH: &'static str = "/quorate.v1.Watches/Watch";

    fn wanted(self) -> Result<Wanted, Error> {
        let WatchRangesRequest { selectors, after_revision, client } = self;
        let range = convert::ranges(selectors)?;
        let client = client.map(convert::config::client).transpose()?.map(Arc::new);
        Ok(Wanted { range, after_revision, client })
    }
}

impl Api {
    /// Begins a watch. It ends with an error: the watcher's being too slow, or the node's stopping.
    async fn watch<R: Ranged>(&self, request: Request<R>) -> Result<Response<Messages>, Status> {
        let timeout = timeout(request.metadata());
        let Wanted { range, after_revision, client } = request.into_inner().wanted()?;
        // Without it a node that lags behind the one watched before would show the past again.
        self.node.barrier(Consistency::Linearizable, timeout).await?;
        let subscription = self.node.watch(range, after_revision)?;
        let drained = Box::pin(self.drain.clone().begun());
        let begin = Some((subscription, drained, client));
        let messages = stream::unfold(begin, async |watch| {
            let (mut subscription, mut drained, client) = watch?;
            tokio::select! {
                biased;
                () = &mut drained => Some((Err(shutting_down().into()), None)),
                next = subscription.next() => match next? {
                    Ok(message) => {
                        let sent = Sent { message, client: client.clone() };
                        Some((Ok(sent), Some((subscription, drained, client))))
                    }
                    Err(error) => Some((Err(error.into()), None)),
                },
            }
        });
        Ok(Response::new(messages.boxed()))
    }

    /// For whoever serves a watch without [`Shared`]: each watcher's messages are made for it alone.
    pub(super) async fn watch_apart<R: Ranged>(
        &self,
        request: Request<R>,
    ) -> Result<Response<Responses>, Status> {
        let messages = self.watch(request).await?;
        Ok(messages.map(|messages| {
            let response = |Sent { message, client }: Sent| {
                convert::watch_response(&message, client.as_deref())
            };
            messages.map(move |next| next.map(response)).boxed()
        }))
    }
}

#[derive(Debug)]
pub struct Watches(pub Api);

#[tonic::async_trait]
impl watches_server::Watches for Watches {
    type WatchStream = Responses;

    async fn watch(
        &self,
        request: Request<WatchRangesRequest>,
    ) -> Result<Response<Responses>, Status> {
        self.0.watch_apart(request).await
    }
}

/// Mounts the method of these requests.
pub fn route<R: Ranged>(router: Router, api: &Api) -> Router {
    let api = api.clone();
    encoded::route::<Sent, R>(router, R::PATH, move |mut grpc, request| {
        let method = Method(api.clone());
        Box::pin(async move { grpc.server_streaming(method, request).await })
    })
}

struct Method(Api);

impl<R: Ranged> ServerStreamingService<R> for Method {
    type Response = Sent;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { api.watch(request).await })
    }
}

impl Encoded for Sent {
    fn put(self, buf: &mut EncodeBuf<'_>) {
        buf.put(convert::watch_bytes(&self.message, self.client.as_deref()));
    }
}
