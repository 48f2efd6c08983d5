//! A whole node: takes its ports, puts the node together, serves clients, peers and operators, and
//! stops in order.

use std::future::{self, Future};
use std::io;
use std::sync::{Arc, OnceLock};

use axum::serve::ListenerExt as _;
use futures::future::BoxFuture;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::service::Routes;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::api::{About, Api, Drain};
use crate::assembly::{self, Assembly, Progress, assemble};
use crate::http;
use crate::limits::{PEER_MESSAGE_BYTES, SHUTDOWN, SHUTDOWN_CALLS};
use crate::listeners::{self, Port};
use crate::options::{Config, exit};
use crate::proto::DESCRIPTORS;
use crate::proto::peer::peer_server;
use crate::raft::transport::PeerServer;
use crate::runtime::{self, Instant};

/// How often the health service looks whether the node is ready.
const HEALTH_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);
/// How often the recorder tidies what nobody has scraped.
const UPKEEP_INTERVAL: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Listen(#[from] listeners::Error),
    #[error(transparent)]
    Assembly(#[from] assembly::Error),
    #[error("the HTTP server ended: {0}")]
    Http(io::Error),
    #[error("signals cannot be handled: {0}")]
    Signals(io::Error),
    #[error("metrics: {0}")]
    Metrics(#[from] metrics_exporter_prometheus::BuildError),
    #[error("reflection: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Listen(_) => exit::ADDRESS_IN_USE,
            Error::Assembly(error) => error.exit_code(),
            Error::Http(_) | Error::Signals(_) | Error::Metrics(_) | Error::Reflection(_) => {
                exit::ERROR
            }
        }
    }
}

/// Why a node has stopped in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was told to.
    Asked,
    /// Its state is not that of the others: it is to be started anew at once, and fetches theirs.
    ToRebuild,
}

/// Runs a node until it is told to stop, or has to start anew.
pub async fn run(config: Config) -> Result<Stopped, Error> {
    let mut signals = Signals::new(config.exit_with_parent).map_err(Error::Signals)?;
    let server = tokio::select! {
        biased;
        why = signals.next() => {
            tracing::info!(why, "stopped before it had started");
            return Ok(Stopped::Asked);
        }
        server = Server::start(&config) => server?,
    };
    tracing::info!(
        id = config.id,
        client = %config.listen.client,
        peer = %config.listen.peer,
        http = %config.listen.http,
        "serving"
    );
    let node = server.api.node.clone();
    let (why, stopped) = tokio::select! {
        biased;
        why = signals.next() => (why, Stopped::Asked),
        () = node.until_rebuild() => ("the state must come from another node", Stopped::ToRebuild),
    };
    tracing::info!(why, "stopping");
    tokio::select! {
        biased;
        why = signals.next() => {
            // The first time when it stops for another reason.
            tracing::warn!(why, "told to stop while stopping: the process ends at once");
            return Ok(Stopped::Asked);
        }
        () = server.stop() => tracing::info!("stopped"),
    }
    Ok(stopped)
}

/// A node that serves.
#[derive(Debug)]
pub struct Server {
    api: Api,
    assembly: Assembly,
    /// Ends the server for clients.
    finish: oneshot::Sender<()>,
    clients: JoinHandle<()>,
    /// Peers, HTTP, health and upkeep: served until the end.
    others: Vec<JoinHandle<()>>,
}

impl Server {
    pub async fn start(config: &Config) -> Result<Server, Error> {
        let version = env!("CARGO_PKG_VERSION");
        let started = Instant::now();
        let client_port = Port::take("client", config.listen.client)?;
        let peer_port = Port::take("peer", config.listen.peer)?;
        let http_port = Port::take("http", config.listen.http)?;
        let metrics = http::install_metrics(version)?;
        let reflection = reflection()?;

        let progress = Progress::default();
        let serving = Arc::new(OnceLock::new());
        let starting = {
            let progress = progress.clone();
            Arc::new(move || progress.text())
        };
        let router = http::router(serving.clone(), starting, metrics.clone());
        let http = http_port.open()?.tap_io(listeners::tune);
        let mut http = axum::serve(http, router).into_future();

        let assembly = tokio::select! {
            biased;
            assembly = assemble(config, &progress) => assembly?,
            Err(error) = &mut http => return Err(Error::Http(error)),
        };
        let opened = (|| Ok((client_port.open()?, peer_port.open()?)))();
        let (client_port, peer_port) = match opened {
            Ok(ports) => ports,
            Err(error) => {
                assembly.stop().await;
                return Err(Error::Listen(error));
            }
        };
        let node = assembly.node.clone();
        let about = About {
            cluster_id: assembly.identity.cluster_id.clone(),
            version: version.to_owned(),
            durability: config.durability.as_str().to_owned(),
            started,
        };
        let api = Api {
            node: node.clone(),
            about: Arc::new(about),
            drain: Drain::default(),
            answers: Arc::default(),
        };
        // Set here and nowhere else.
        let _ = serving.set(api.clone());

        let peers =
            PeerServer::new(assembly.identity.clone(), Arc::new(node), assembly.initialized);
        let peers = peer_server::PeerServer::new(peers)
            .max_decoding_message_size(PEER_MESSAGE_BYTES)
            .max_encoding_message_size(PEER_MESSAGE_BYTES);
        let peers = listeners::peer_server()
            .add_service(peers)
            .serve_with_incoming(listeners::incoming(peer_port));

        let (reporter, health) = tonic_health::server::health_reporter();
        let routes = reflection(api.routes().add_service(health));
        let (finish, finished) = oneshot::channel::<()>();
        // Dropped unsent it ends the server as well.
        let finished = async { drop(finished.await) };
        let clients = listeners::client_server()
            .add_routes(routes.prepare())
            .serve_with_incoming_shutdown(listeners::incoming(client_port), finished);

        let others = vec![
            task("peers", peers),
            task("http", http),
            runtime::spawn(report_health(api.clone(), reporter)),
            runtime::spawn(async move {
                loop {
                    runtime::sleep(UPKEEP_INTERVAL).await;
                    metrics.run_upkeep();
                }
            }),
        ];
        Ok(Server { api, assembly, finish, clients: task("clients", clients), others })
    }

    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Stops within [`SHUTDOWN`]: no new connections and calls; running calls and streams end; the
    /// leadership is handed over, the image written, the log closed.
    pub async fn stop(self) {
        let Server { api, assembly, finish, mut clients, mut others } = self;
        let give_up = Instant::now() + SHUTDOWN;
        api.drain.begin();
        drop(finish);
        if runtime::timeout(SHUTDOWN_CALLS, &mut clients).await.is_err() {
            tracing::warn!("some calls were still running");
            others.push(clients);
        }
        if runtime::timeout_at(give_up, assembly.stop()).await.is_err() {
            tracing::warn!("the image was not written in time; the log has everything");
        }
        for task in others {
            task.abort();
            // Its ports are free once it is gone.
            let _ = task.await;
        }
    }
}

/// Runs a server for as long as the process lives.
fn task<E: std::fmt::Display>(
    name: &'static str,
    server: impl Future<Output = Result<(), E>> + Send + 'static,
) -> JoinHandle<()> {
    runtime::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, name, "a server ended");
        }
    })
}

/// Adds server reflection in the two versions that tools ask for.
fn reflection() -> Result<impl FnOnce(Routes) -> Routes, tonic_reflection::server::Error> {
    let builder = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
    Ok(move |routes: Routes| routes.add_service(v1).add_service(v1alpha))
}

/// Keeps `grpc.health.v1` at what `/readyz` says, for the server as a whole and for each service.
async fn report_health(api: Api, reporter: HealthReporter) {
    let mut told = None;
    loop {
        let ready = api.node.is_ready() && !api.drain.has_begun();
        if told != Some(ready) {
            told = Some(ready);
            let status = match ready {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            for service in [
                "",
                "quorate.v1.Registry",
                "quorate.v1.Sessions",
                "quorate.v1.Cluster",
                "quorate.v1.Watches",
            ] {
                reporter.set_service_status(service, status).await;
            }
        }
        runtime::sleep(HEALTH_INTERVAL).await;
    }
}

/// What tells a process to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    parent_gone: BoxFuture<'static, ()>,
}

impl Signals {
    fn new(with_parent: bool) -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            parent_gone: match with_parent {
                true => Box::pin(crate::cli::dev::parent_gone()),
                false => Box::pin(future::pending()),
            },
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = &mut self.parent_gone => {
                self.parent_gone = Box::pin(future::pending());
                "the parent process is gone"
            }
        }
    }
}
