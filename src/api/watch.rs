//! `Registry.Watch` as it is mounted: a message is encoded by the first watcher that gets it, and the
//! same bytes go to all others.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

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
use crate::limits::{CLIENT_ANSWER_BYTES, CLIENT_MESSAGE_BYTES};
use crate::proto::v1::{Consistency, WatchRequest, WatchResponse};
use crate::watch::Message;

pub const PATH: &str = "/quorate.v1.Registry/Watch";

type Messages = BoxStream<'static, Result<Arc<Message>, Status>>;

impl Api {
    /// Begins a watch. It ends with an error: the watcher's being too slow, or the node's stopping.
    pub(super) async fn watch(
        &self,
        request: Request<WatchRequest>,
    ) -> Result<Response<Messages>, Status> {
        let timeout = timeout(request.metadata());
        let WatchRequest { namespace, service, after_revision } = request.into_inner();
        let range = convert::range(namespace, service)?;
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
}

/// The service of one method.
#[derive(Debug, Clone)]
pub struct Shared(pub Api);

impl<B> Service<http::Request<B>> for Shared
where
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
        let method = Method(self.0.clone());
        Box::pin(async move {
            let mut grpc = Grpc::new(SharedCodec)
                .max_decoding_message_size(CLIENT_MESSAGE_BYTES)
                .max_encoding_message_size(CLIENT_ANSWER_BYTES);
            Ok(grpc.server_streaming(method, request).await)
        })
    }
}

struct Method(Api);

impl ServerStreamingService<WatchRequest> for Method {
    type Response = Arc<Message>;
    type ResponseStream = Messages;
    type Future = BoxFuture<'static, Result<Response<Messages>, Status>>;

    fn call(&mut self, request: Request<WatchRequest>) -> Self::Future {
        let api = self.0.clone();
        Box::pin(async move { api.watch(request).await })
    }
}

/// Decodes as always; encodes by copying bytes.
struct SharedCodec;

impl Codec for SharedCodec {
    type Encode = Arc<Message>;
    type Decode = WatchRequest;
    type Encoder = SharedEncoder;
    type Decoder = ProstDecoder<WatchRequest>;

    fn encoder(&mut self) -> SharedEncoder {
        SharedEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<WatchResponse, WatchRequest>::default().decoder()
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
