//! A participant in global transactions for tests: a gRPC server in the test's process that writes down every
//! call, answers as it is told, and keeps what was done and undone, as a participant with a barrier would.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use prost::Message as _;
use quorate::client::Client;
use quorate::proto::v1;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Code, Request, Response, Status};

use super::echo::{Raw, instance};
use super::harness::eventually;

/// One call as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub gid: String,
    pub branch: String,
    pub op: String,
    pub attempt: u32,
    pub epoch: u64,
    pub payload: Vec<u8>,
    pub results: BTreeMap<String, Vec<u8>>,
}

/// What it does with one call.
#[derive(Debug, Clone)]
pub enum Say {
    Answer(&'static str),
    Refuse(Code),
    /// Does it, and answers after that long.
    Late(Duration),
    /// Never answers, and does nothing.
    Nothing,
}

#[derive(Default)]
pub struct Book {
    pub calls: Vec<Seen>,
    /// What is said to the next calls of a method, before the usual answer.
    told: BTreeMap<String, VecDeque<Say>>,
    /// Effects by gid and branch: how often the action, and how often the compensation, took effect.
    pub effects: BTreeMap<(String, String), (u32, u32)>,
    /// Refuses some, and loses some answers before and after it has done what was asked.
    pub loses: bool,
    /// The marks of the barrier: gid, branch and op.
    marks: BTreeSet<(String, String, String)>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<Book>>);

/// Stops when it is dropped.
pub struct Participant {
    pub address: SocketAddr,
    book: Arc<Mutex<Book>>,
    server: JoinHandle<()>,
}

impl NamedService for Service {
    const NAME: &'static str = "bank.Bank";
}

impl tower::Service<http::Request<tonic::body::Body>> for Service {
    type Response = http::Response<tonic::body::Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let service = Method { method, book: self.0.clone() };
        Box::pin(async move { Ok(Grpc::new(Raw).unary(service, request).await) })
    }
}

struct Method {
    method: String,
    book: Arc<Mutex<Book>>,
}

impl UnaryService<Vec<u8>> for Method {
    type Response = Vec<u8>;
    type Future = BoxFuture<'static, Result<Response<Vec<u8>>, Status>>;

    fn call(&mut self, request: Request<Vec<u8>>) -> Self::Future {
        let metadata = request.metadata();
        let text = |name: &str| {
            metadata.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
        };
        let results = metadata
            .get_bin("quorate-results-bin")
            .map(|value| v1::SagaResults::decode(value.to_bytes().unwrap()).unwrap().results);
        let seen = Seen {
            method: self.method.clone(),
            gid: text("quorate-gid"),
            branch: text("quorate-branch"),
            op: text("quorate-op"),
            attempt: text("quorate-attempt").parse().unwrap(),
            epoch: text("quorate-epoch").parse().unwrap(),
            results: results.unwrap_or_default(),
            payload: request.into_inner(),
        };
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.calls.push(seen.clone());
        let say = book.told.get_mut(&self.method).and_then(VecDeque::pop_front);
        let say = say.or_else(|| book.loses.then(|| book.mishap(&seen)).flatten());
        let does = !matches!(say, Some(Say::Refuse(_) | Say::Nothing));
        if does && let Err(status) = book.carry_out(&seen) {
            return Box::pin(async { Err(status) });
        }
        drop(book);
        Box::pin(async move {
            match say {
                None => Ok(Response::new(format!("{} done", seen.method).into_bytes())),
                Some(Say::Answer(text)) => Ok(Response::new(text.as_bytes().to_vec())),
                Some(Say::Refuse(code)) => Err(Status::new(code, "as it was told")),
                Some(Say::Late(delay)) => {
                    tokio::time::sleep(delay).await;
                    Ok(Response::new(b"late".to_vec()))
                }
                Some(Say::Nothing) => std::future::pending().await,
            }
        })
    }
}

impl Book {
    /// By the number of the call and what it is about: the same load has the same mishaps.
    fn mishap(&self, seen: &Seen) -> Option<Say> {
        let hash = xxhash_rust::xxh3::xxh3_64(format!("{}{:?}", self.calls.len(), seen).as_bytes());
        match (hash % 100, seen.op.as_str()) {
            (0..4, "action") if seen.attempt == 1 => Some(Say::Refuse(Code::Aborted)),
            (4..8, _) => Some(Say::Refuse(Code::Unavailable)),
            (8..10, _) => Some(Say::Late(Duration::from_millis(700))),
            (10..11, _) => Some(Say::Nothing),
            _ => None,
        }
    }

    /// As a barrier does: an action once and never after its compensation, a compensation once and only of
    /// what was done.
    fn carry_out(&mut self, seen: &Seen) -> Result<(), Status> {
        let (gid, branch) = (seen.gid.clone(), seen.branch.clone());
        let origin = match seen.op.as_str() {
            "compensate" => "action",
            "cancel" => "try",
            op => op,
        };
        let first_of_origin = self.marks.insert((gid.clone(), branch.clone(), origin.to_owned()));
        let first = seen.op == origin && first_of_origin
            || seen.op != origin
                && self.marks.insert((gid.clone(), branch.clone(), seen.op.clone()));
        let undoes = seen.op != origin;
        if undoes && first_of_origin {
            return Ok(());
        }
        if !first {
            let undone =
                |op: &str| self.marks.contains(&(gid.clone(), branch.clone(), op.to_owned()));
            // A late one, after its compensation.
            if !undoes && (undone("compensate") || undone("cancel")) {
                return Err(Status::aborted("it was given up before"));
            }
            return Ok(());
        }
        let effects = self.effects.entry((gid, branch)).or_default();
        match undoes {
            false => effects.0 += 1,
            true => effects.1 += 1,
        }
        Ok(())
    }
}

impl Participant {
    pub async fn start() -> Participant {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let book = Arc::<Mutex<Book>>::default();
        let router = Server::builder().add_service(Service(book.clone()));
        let server = tokio::spawn(async move {
            router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Participant { address, book, server }
    }

    /// Registers it as an instance of the service "bank".
    pub async fn register(self, client: &Client) -> Participant {
        client.register(instance("bank", "bank-1", self.address), None).await.unwrap();
        self
    }

    pub fn book<R>(&self, look: impl FnOnce(&mut Book) -> R) -> R {
        look(&mut self.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the next calls of a method get, each once.
    pub fn tell(&self, method: &str, say: impl IntoIterator<Item = Say>) {
        self.book(|book| book.told.entry(method.to_owned()).or_default().extend(say));
    }

    /// Waits until somebody has called.
    pub async fn called(&self) {
        eventually("a call", async || match self.heard().is_empty() {
            true => Err("not yet".to_owned()),
            false => Ok(()),
        })
        .await;
    }

    /// The calls so far, as `Method(branch op attempt)`.
    pub fn heard(&self) -> Vec<String> {
        self.book(|book| {
            let text = |seen: &Seen| {
                format!("{}({} {} {})", seen.method, seen.branch, seen.op, seen.attempt)
            };
            book.calls.iter().map(text).collect()
        })
    }
}

impl Drop for Participant {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// `quorate:///bank/bank.Bank/METHOD`.
pub fn target(method: &str) -> String {
    format!("quorate:///bank/bank.Bank/{method}")
}
