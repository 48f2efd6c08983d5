//! `quorate.v1.Watches`, and its method and `Registry.Watch` as they are mounted: a message is encoded
//! by the first watcher that gets it, and the same bytes go to all others.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use bytes::BufMut as _;
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::{Body as HttpBody, Service, StdError, http};
use tonic::server::{Grpc, ServerStreamingService};
use tonic::{Request, Response, Status};
use tonic_prost::{ProstCodec, ProstDecoder};

use super::{Api, convert, shutting_down, timeout};
use crate::error::Error;
use crate::limits::{CLIENT_ANSWER_BYTES, CLIENT_MESSAGE_BYTES};
use crate::proto::v1::{
    Consistency, WatchRangesRequest, WatchRequest, WatchResponse, watches_server,
};
use crate::watch::{Message, Range};

type Messages = BoxStream<'static, Result<Arc<Message>, Status>>;
pub type Responses = BoxStream<'static, Result<WatchResponse, Status>>;

/// A request that begins a watch.
pub trait Ranged: prost::Message + Default + 'static {
    const PATH: &'static str;

    /// What is watched, and the revision after which.
    fn range(self) -> Result<(Range, u64), Error>;
}

impl Ranged for WatchRequest {
    const PATH: &'static str = "/quorate.v1.Registry/Watch";

    fn range(self) -> Result<(Range, u64), Error> {
        let WatchRequest { namespace, service, after_revision } = self;
        Ok((convert::range(namespace, service)?, after_revision))
    }
}

impl Ranged for WatchRangesRequest {
    const PATH: &'static str = "/quorate.v1.Watches/Watch";

    fn range(self) -> Result<(Range, u64), Error> {
        let WatchRangesRequest { selectors, after_revision } = self;
        Ok((convert::ranges(selectors)?, after_revision))
    }
}

impl Api {
    /// Begins a watch. It ends with an error: the watcher's being too slow, or the node's stopping.
    async fn watch<R: Ranged>(&self, request: Request<R>) -> Result<Response<Messages>, Status> {
        let timeout = timeout(request.metadata());
        let (range, after_revision) = request.into_inner().range()?;
        // Without it a node that lags behind the one watched before would show the past again.
        self.node.barrier(Consistency::Linearizable, timeout).await?;
        let subscription = self.node.watch(range, after_revision)?;
        let drained = Box::pin(self.drain.clone().begun());
        let messages = stream::unfold(Some((subscription, drained)), async |watch| {
            let (mut subscription, mut drained) = watch?;
            tokio::select! {
                biased;
                () = &mut drained => Some((Err(shutting_down().into()), None)),
                next = subscription.next() => match next? {
                    Ok(message) => Some((Ok(message), Some((subscription, drained)))),
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
            messages.map(|next| next.map(|message| convert::watch_response(&message))).boxed()
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
    router.route_service(R::PATH, Shared::<R> { api: api.clone(), method: PhantomData })
}

/// The service of one method.
#[derive(Debug)]
struct Shared<R> {
    api: Api,
    method: PhantomData<fn(R)>,
}

impl<R> Clone for Shared<R> {
    fn clone(&self) -> Self {
        Shared { api: self.api.clone(), method: PhantomData }
    }
}

impl<R, B> Service<http::Request<B>> for Shared<R>
where
    R: Ranged,
    B: HttpBody + Send + 'static,
    B::Error: Into<StdError> + Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let method = Method(self.api.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(SharedCodec::<R>(PhantomData))
                .max_decoding_message_size(CLIENT_MESSAGE_BYTES)
                .max_encoding_message_size(CLIENT_ANSWER_BYTES);
            Ok(grpc.server_streaming(method, request).await)
        })
    }
}

struct Method(Api);

impl<R: Ranged> ServerStreamingService<R> for Method {
    type Response = Arc<Message>;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<R>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { api.watch(request).await })
    }
}

/// Decodes as always; encodes by copying bytes.
struct SharedCodec<R>(PhantomData<fn(R)>);

impl<R: Ranged> Codec for SharedCodec<R> {
    type Encode = Arc<Message>;
    type Decode = R;
    type Encoder = SharedEncoder;
    type Decoder = ProstDecoder<R>;

    fn encoder(&mut self) -> SharedEncoder {
        SharedEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WatchResponse, R>::default().decoder()
    }
}

struct SharedEncoder;

impl Encoder for SharedEncoder {
    type Item = Arc<Message>;
    type Error = Status;

    fn encode(&mut self, message: Arc<Message>, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(convert::watch_bytes(&message));
        Ok(())
    }
}
