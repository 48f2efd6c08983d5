//! Instances of a service for tests: gRPC servers in the test's process that answer with what they were
//! asked, slowly, wrongly or not at all as they are told; and ones that break the protocol.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf as _, BufMut as _};
use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt as _};
use http::uri::PathAndQuery;
use quorate::client::{Channel, Client, ServedBy};
use quorate::proto::v1;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

/// Messages as they are.
#[derive(Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Raw;
    type Decoder = Raw;

    fn encoder(&mut self) -> Raw {
        Raw
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put_slice(&item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining()).into()))
    }
}

/// How an instance behaves.
#[derive(Default)]
pub struct Manner {
    pub served: AtomicU64,
    /// Milliseconds before it answers.
    pub delay_ms: AtomicU64,
    /// What it answers instead, if it is not 0.
    pub code: AtomicU32,
}

#[derive(Clone)]
struct Service(Arc<Manner>);

impl NamedService for Service {
    const NAME: &'static str = "echo.Echo";
}

impl UnaryService<Vec<u8>> for Service {
    type Response = Vec<u8>;
    type Future = BoxFuture<'static, Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let manner = self.0.clone();
        Box::pin(async move {
            manner.served.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(manner.delay_ms.load(Ordering::SeqCst))).await;
            match manner.code.load(Ordering::SeqCst) {
                0 => Ok(Response::new(request.into_inner())),
                code => Err(Status::new((code as i32).into(), "as it was told")),
            }
        })
    }
}

impl ServerStreamingService<Vec<u8>> for Service {
    type Response = Vec<u8>;
    type ResponseStream = BoxStream<'static, Result<Vec<u8>, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    /// One message at once, and the other one after the delay.
    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let delay = Duration::from_millis(self.0.delay_ms.load(Ordering::SeqCst));
        let message = request.into_inner();
        let other = message.clone();
        let later = stream::once(async move {
            tokio::time::sleep(delay).await;
            Ok(other)
        });
        let messages = stream::once(async { Ok(message) }).chain(later).boxed();
        Box::pin(async { Ok(Response::new(messages)) })
    }
}

impl StreamingService<Vec<u8>> for Service {
    type Response = Vec<u8>;
    type ResponseStream = tonic::Streaming<Vec<u8>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    /// Each message as it comes.
    fn call(&mut self, request: Request<tonic::Streaming<Vec<u8>>>) -> Self::Future {
        self.0.served.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(Response::new(request.into_inner())) })
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Service {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
            let mut grpc = Grpc::new(Raw);
            Ok(match method.as_str() {
                "Stream" => grpc.server_streaming(service, request).await,
                "Chat" => grpc.streaming(service, request).await,
                _ => grpc.unary(service, request).await,
            })
        })
    }
}

/// One instance, on a runtime of its own. It dies, with all its connections, when it is dropped.
pub struct Echo {
    pub id: String,
    pub address: SocketAddr,
    pub manner: Arc<Manner>,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    runtime: Option<Runtime>,
}

impl Echo {
    pub async fn start(id: &str) -> Echo {
        Echo::start_with(id, "127.0.0.1:0", None).await
    }

    pub async fn start_with(id: &str, address: &str, tls: Option<Identity>) -> Echo {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let address = address.to_owned();
        let listener = runtime.spawn(TcpListener::bind(address)).await.unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let manner = Arc::<Manner>::default();
        let (stop, stopped) = oneshot::channel::<()>();
        let mut builder = Server::builder();
        if let Some(identity) = tls {
            builder = builder.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
        }
        let router = builder.add_service(Service(manner.clone()));
        let server = runtime.spawn(async {
            let stopped = async { stopped.await.unwrap_or(()) };
            router
                .serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped)
                .await
                .unwrap();
        });
        let (id, runtime) = (id.to_owned(), Some(runtime));
        Echo { id, address, manner, stop: Some(stop), server, runtime }
    }

    pub fn instance(&self) -> v1::Instance {
        instance("echo", &self.id, self.address)
    }

    pub async fn register(self, client: &Client) -> Echo {
        client.register(self.instance(), None).await.unwrap();
        self
    }

    pub fn served(&self) -> u64 {
        self.manner.served.load(Ordering::SeqCst)
    }

    /// Takes no new calls, finishes those under way and ends.
    pub async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        (&mut self.server).await.unwrap();
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn instance(service: &str, id: &str, address: SocketAddr) -> v1::Instance {
    let endpoint = v1::Endpoint {
        name: "grpc".into(),
        host: address.ip().to_string(),
        port: address.port().into(),
    };
    v1::Instance {
        service: service.into(),
        id: id.into(),
        endpoints: vec![endpoint],
        ..Default::default()
    }
}

pub fn request(text: &str) -> Request<Vec<u8>> {
    Request::new(text.as_bytes().to_vec())
}

/// Calls, checks the echo and tells who answered.
pub async fn say(channel: &Channel, request: Request<Vec<u8>>) -> Result<ServedBy, Status> {
    say_within(channel, request, usize::MAX).await
}

/// The same with a limit of what the caller sends.
pub async fn say_within(
    channel: &Channel,
    request: Request<Vec<u8>>,
    most: usize,
) -> Result<ServedBy, Status> {
    let said = request.get_ref().clone();
    let grpc = tonic::client::Grpc::new(channel.clone());
    let mut grpc = grpc.max_encoding_message_size(most);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/echo.Echo/Say");
    let answer = grpc.unary(request, path, Raw).await?;
    assert_eq!(*answer.get_ref(), said, "an answer to another call");
    Ok(answer.extensions().get::<ServedBy>().expect("told who answered").clone())
}

/// Begins a stream of two messages.
pub async fn stream(
    channel: &Channel,
    request: Request<Vec<u8>>,
) -> Result<tonic::Streaming<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/echo.Echo/Stream");
    Ok(grpc.server_streaming(request, path, Raw).await?.into_inner())
}

/// Begins a stream in both directions, of messages that come back one by one.
pub async fn chat(
    channel: &Channel,
    messages: mpsc::Receiver<Vec<u8>>,
) -> Result<tonic::Streaming<Vec<u8>>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/echo.Echo/Chat");
    let request = Request::new(ReceiverStream::new(messages));
    Ok(grpc.streaming(request, path, Raw).await?.into_inner())
}

/// What a [`Broken`] instance does with a call.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Reads it and closes the connection.
    Lose,
    /// Refuses the stream.
    Refuse,
    /// Reads it and says nothing.
    Swallow,
    /// Says that it begins with no call of the connection.
    GoAway,
    /// Answers with half a message and closes the connection.
    BreakOff,
    /// Answers with messages without end.
    Flood,
}

/// An instance that breaks its calls, and counts those that it has seen.
pub struct Broken {
    pub address: SocketAddr,
    pub seen: Arc<AtomicU64>,
    server: JoinHandle<()>,
}

impl Broken {
    pub async fn start(fault: Fault) -> Broken {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::<AtomicU64>::default();
        let count = seen.clone();
        let server = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(misbehave(socket, fault, count.clone()));
            }
        });
        Broken { address, seen, server }
    }
}

impl Drop for Broken {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn misbehave(mut socket: TcpStream, fault: Fault, seen: Arc<AtomicU64>) {
    if matches!(fault, Fault::GoAway) {
        // Empty settings, and GOAWAY with 0 as the last stream and NO_ERROR.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        let go_away = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let said = socket.write_all(&[&settings[..], &go_away].concat()).await;
        if said.is_ok() {
            // Until the client closes.
            let _ = tokio::io::copy(&mut socket, &mut tokio::io::sink()).await;
        }
        return;
    }
    let Ok(mut connection) = h2::server::handshake(socket).await else { return };
    let mut held = Vec::new();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        seen.fetch_add(1, Ordering::SeqCst);
        match fault {
            Fault::Lose => {
                let (_, mut body) = request.into_parts();
                let read = async {
                    while let Some(Ok(data)) = body.data().await {
                        let _ = body.flow_control().release_capacity(data.len());
                    }
                };
                // The connection has to be driven for the body to come.
                tokio::select! {
                    () = read => {}
                    _ = std::future::poll_fn(|cx| connection.poll_closed(cx)) => {}
                }
                return;
            }
            Fault::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
            Fault::Swallow | Fault::GoAway => held.push((request, respond)),
            Fault::BreakOff => {
                let mut answer = respond.send_response(head(), false).unwrap();
                answer.send_data(MESSAGE[..7].into(), false).unwrap();
                // Until both are on their way.
                let flushed = std::future::poll_fn(|cx| connection.poll_closed(cx));
                let _ = tokio::time::timeout(Duration::from_millis(100), flushed).await;
                return;
            }
            Fault::Flood => {
                let answer = respond.send_response(head(), false).unwrap();
                tokio::spawn(flood(answer));
            }
        }
    }
}

/// A message of 4 KiB with its length before it.
const MESSAGE: &[u8] = {
    let mut message = [0; 5 + 4096];
    message[3] = 0x10;
    &{ message }
};

fn head() -> http::Response<()> {
    http::Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

async fn flood(mut answer: h2::SendStream<bytes::Bytes>) {
    loop {
        answer.reserve_capacity(MESSAGE.len());
        let capacity = std::future::poll_fn(|cx| answer.poll_capacity(cx)).await;
        if !matches!(capacity, Some(Ok(_))) || answer.send_data(MESSAGE.into(), false).is_err() {
            return;
        }
    }
}
