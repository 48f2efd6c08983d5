//! Answers whose bytes are made before they are sent, and shared by all who get them.

use std::convert::Infallible;
use std::marker::PhantomData;

use axum::Router;
use axum::extract::Request;
use futures::future::BoxFuture;
use prost::Message;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{Codec, EncodeBuf, Encoder};
use tonic::codegen::http;
use tonic::server::Grpc;

use crate::limits::{CLIENT_ANSWER_BYTES, CLIENT_MESSAGE_BYTES};
use crate::proto::codec::Decoder;

/// A message that is there as bytes.
pub trait Encoded: Send + 'static {
    /// Copies the bytes of the message.
    fn put(self, buf: &mut EncodeBuf<'_>);
}

/// Decodes as always; encodes by copying bytes.
pub struct EncodedCodec<E, R>(PhantomData<fn(E, R)>);

impl<E: Encoded, R: Message + Default + 'static> Codec for EncodedCodec<E, R> {
    type Encode = E;
    type Decode = R;
    type Encoder = EncodedEncoder<E>;
    type Decoder = Decoder<R>;

    fn encoder(&mut self) -> EncodedEncoder<E> {
        EncodedEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        Decoder::default()
    }
}

pub struct EncodedEncoder<E>(PhantomData<fn(E)>);

impl<E: Encoded> Encoder for EncodedEncoder<E> {
    type Item = E;
    type Error = Status;

    fn encode(&mut self, item: E, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.put(buf);
        Ok(())
    }
}

/// Mounts a method whose answers are encoded by themselves; the service that was generated for it answers no more.
pub fn route<E: Encoded, R: Message + Default + 'static>(
    router: Router,
    path: &str,
    serve: impl Fn(Grpc<EncodedCodec<E, R>>, Request) -> BoxFuture<'static, http::Response<Body>>
    + Clone
    + Send
    + Sync
    + 'static,
) -> Router {
    let service = tower::service_fn(move |request: Request| {
        let grpc = Grpc::new(EncodedCodec(PhantomData))
            .max_decoding_message_size(CLIENT_MESSAGE_BYTES)
            .max_encoding_message_size(CLIENT_ANSWER_BYTES);
        let answer = serve(grpc, request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    router.route_service(path, service)
}
