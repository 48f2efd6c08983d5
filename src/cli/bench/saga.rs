//! The workload `saga`: sagas of two steps from their beginning to their end, with a participant in this
//! process that does nothing but answer.

use std::convert::Infallible;
use std::future::Ready;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::super::Error;
use super::load::{Plan, Tally, gather};
use super::phase::{Phase, Shared};
use crate::client::{Branch, Client, Options, SagaOutcome};
use crate::proto::v1;

#[derive(Debug, Clone)]
struct Participant;

impl NamedService for Participant {
    const NAME: &'static str = "quorate.bench.Participant";
}

impl UnaryService<()> for Participant {
    type Response = ();
    type Future = Ready<Result<Response<()>, Status>>;

    fn call(&mut self, _: Request<()>) -> Self::Future {
        std::future::ready(Ok(Response::new(())))
    }
}

impl tower::Service<http::Request<tonic::body::Body>> for Participant {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        Box::pin(async {
            Ok(Grpc::new(ProstCodec::<(), ()>::default()).unary(Participant, request).await)
        })
    }
}

/// A participant that is registered.
struct Serving {
    instance: v1::Instance,
    /// Ends with this value.
    _server: JoinSet<()>,
}

impl Serving {
    async fn start(
        client: &Client,
        plan: &Plan,
        thread: u32,
        endpoint: &str,
    ) -> Result<Serving, Error> {
        let failed = |error| Error::io("the participant", error);
        let host = own_address(endpoint);
        let listener = TcpListener::bind((host, 0)).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let router = Server::builder().add_service(Participant);
            // It ends with the process.
            let _ = router.serve_with_incoming(TcpIncoming::from(listener)).await;
        });
        let endpoint = v1::Endpoint {
            name: "grpc".to_owned(),
            host: address.ip().to_string(),
            port: address.port().into(),
        };
        let instance = v1::Instance {
            namespace: plan.namespace().to_owned(),
            service: service(plan),
            id: format!("participant-{thread}"),
            endpoints: vec![endpoint],
            ..Default::default()
        };
        let register = v1::RegisterRequest { instance: Some(instance.clone()), request_id: None };
        client.register(register, None).await?;
        Ok(Serving { instance, _server: server })
    }

    async fn end(self, client: &Client) -> Result<(), Error> {
        let v1::Instance { namespace, service, id, .. } = self.instance.clone();
        let request = v1::DeregisterRequest { namespace, service, id, ..Default::default() };
        client.deregister(request, None).await?;
        Ok(())
    }
}

/// The address of this machine from which a node is reached.
fn own_address(endpoint: &str) -> IpAddr {
    let socket = UdpSocket::bind("0.0.0.0:0").or_else(|_| UdpSocket::bind("[::]:0"));
    let connected = socket.and_then(|socket| {
        socket.connect(endpoint)?;
        socket.local_addr()
    });
    connected.map_or(Ipv4Addr::LOCALHOST.into(), |address| address.ip())
}

fn service(plan: &Plan) -> String {
    format!("{}-participant", plan.service(0))
}

/// Each client begins one saga after the other and waits for its end.
pub async fn run(
    thread: u32,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    options: Options,
) -> Result<Tally, Error> {
    let client = Client::connect(options.clone())?;
    let endpoint = options.endpoints.first().cloned().unwrap_or_default();
    let serving = Serving::start(&client, &plan, thread, &endpoint).await?;
    let run = rand::random::<u64>();
    let mut workers = JoinSet::new();
    for number in plan.share_of_clients(thread) {
        let (client, plan, shared) = (client.clone(), plan.clone(), shared.clone());
        workers.spawn(async move {
            let mut tally = Tally::default();
            for count in 0u64.. {
                if shared.phase() == Phase::Stop {
                    break;
                }
                let gid = format!("bench-{run:016x}-{number}-{count}");
                let began = Instant::now();
                let outcome = one(&client, &plan, gid).await;
                if shared.phase() == Phase::Measure {
                    match outcome {
                        Ok(()) => tally.success(false, began.elapsed()),
                        Err(error) => tally.failure(&error),
                    }
                }
                shared.done.fetch_add(1, Ordering::Relaxed);
            }
            tally
        });
    }
    shared.ready.fetch_add(1, Ordering::AcqRel);
    shared.wait_for_start().await;
    let tally = gather(workers).await?;
    serving.end(&client).await?;
    Ok(tally)
}

async fn one(client: &Client, plan: &Plan, gid: String) -> Result<(), crate::error::Error> {
    let target =
        |method: &str| format!("quorate:///{}/{}/{method}", service(plan), Participant::NAME);
    let branch = |id| Branch::new(id, target("Do")).compensation(target("Undo"));
    let saga = client.saga(plan.namespace()).gid(gid).branch(branch("0")).branch(branch("1"));
    // Nobody looks at them again.
    match saga.retention(RETENTION).submit_and_wait().await? {
        SagaOutcome::Succeeded { results: _ } => Ok(()),
        SagaOutcome::Failed { error } | SagaOutcome::Suspended { reason: _, error } => {
            Err(crate::error::Error::internal(error))
        }
    }
}

const RETENTION: Duration = Duration::from_secs(10);
