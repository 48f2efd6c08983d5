//! A gRPC server of one unary method, without generated code.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use prost::Message;
use quorate::client::{Client, Options};
use quorate::error::Error;
use quorate::proto::v1;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tower::Service;

use super::Boxed;

/// The method, whatever the server does.
pub const METHOD: &str = "jepsen.Calls/Call";
pub const PATH: &str = "/jepsen.Calls/Call";

/// Serves the method on loopback until the runtime ends.
pub async fn serve<S>(service: S) -> io::Result<SocketAddr>
where
    S: Unary,
{
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let server = Server::builder().add_service(Calls(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Ok(address)
}

/// The client library, which knows all nodes.
pub fn client(endpoints: &[String]) -> Result<Client, Error> {
    Client::connect(Options::new(endpoints))
}

/// An instance that is reached there.
pub fn instance(service: &str, id: String, address: SocketAddr) -> v1::Instance {
    v1::Instance {
        service: service.to_owned(),
        id,
        endpoints: vec![v1::Endpoint {
            name: "grpc".to_owned(),
            host: address.ip().to_string(),
            port: address.port().into(),
        }],
        ..Default::default()
    }
}

/// What a server does with a call. It answers with nothing but whether that went well.
pub trait Unary:
    UnaryService<Self::Request, Response = (), Future: Send> + Clone + Send + Sync + 'static
{
    type Request: Message + Default + 'static;
}

#[derive(Clone)]
struct Calls<S>(S);

impl<S> NamedService for Calls<S> {
    const NAME: &'static str = "jepsen.Calls";
}

impl<S: Unary> Service<http::Request<Body>> for Calls<S> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Boxed<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let codec = tonic_prost::ProstCodec::<(), S::Request>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}
