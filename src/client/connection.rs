//! The client itself: which node gets a call, who leads, and when a call is sent again.
//!
//! Invariant: a write that may have taken place is repeated only when it carries an id, and the
//! error of a call says `definite` only when no attempt of it can have taken place.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::time::{Instant, sleep};

use super::discovery::Discoveries;
use super::options::{Options, ReadFrom, address};
use super::remote::{Failure, Remote, lock, spawn};
use super::request::{Request, Route};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;

/// A client of one cluster. Cheap to clone; clones share connections and what is known of the
/// leader. Must be used within a tokio runtime.
#[derive(Clone)]
pub struct Client {
    pub(super) inner: Arc<Inner>,
    timeout: Duration,
    pinned: Option<Arc<Remote>>,
}

pub(super) struct Inner {
    pub(super) options: Arc<Options>,
    routing: Mutex<Routing>,
    cursor: AtomicUsize,
    rng: Mutex<StdRng>,
    pub(super) discoveries: Mutex<Discoveries>,
}

/// The nodes that are known and what is known of the leader.
struct Routing {
    /// Those of the options first, then leaders that were learned.
    nodes: Vec<Arc<Remote>>,
    given: usize,
    leader: Option<Arc<Remote>>,
    /// Greatest term that a node has reported; an older leader is not believed.
    term: u64,
    /// When the leader was last confirmed or searched for.
    checked: Option<Instant>,
}

/// An answer, and when the attempt that got it was sent.
pub(super) struct Answered<T> {
    pub response: T,
    pub sent: Instant,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.endpoints())
            .field("leader", &self.leader())
            .field("pinned", &self.pinned)
            .field("timeout", &self.timeout)
            .finish()
    }
}

impl Client {
    /// Checks the options; connections are opened when they are needed.
    pub fn connect(options: Options) -> Result<Client, Error> {
        options.check()?;
        let options = Arc::new(options);
        let mut nodes: Vec<Arc<Remote>> = Vec::new();
        for endpoint in &options.endpoints {
            let address = address(endpoint)?;
            if nodes.iter().all(|node| node.address != address) {
                nodes.push(Remote::new(address, options.clone()));
            }
        }
        let mut rng = match options.seed {
            Some(seed) => StdRng::seed_from_u64(seed),
            None => rand::make_rng(),
        };
        let inner = Inner {
            cursor: AtomicUsize::new(rng.random_range(0..nodes.len())),
            routing: Mutex::new(Routing {
                given: nodes.len(),
                nodes,
                leader: None,
                term: 0,
                checked: None,
            }),
            rng: Mutex::new(rng),
            discoveries: Mutex::default(),
            options: options.clone(),
        };
        Ok(Client { inner: Arc::new(inner), timeout: options.call_timeout, pinned: None })
    }

    /// The same client with another deadline for each call.
    pub fn with_timeout(&self, call_timeout: Duration) -> Client {
        Client { timeout: call_timeout, ..self.clone() }
    }

    /// The same client, but every call goes to this node only.
    pub fn at(&self, endpoint: &str) -> Result<Client, Error> {
        let address = address(endpoint)?;
        let known = lock(&self.inner.routing).node(&address);
        let remote = known.unwrap_or_else(|| Remote::new(address, self.inner.options.clone()));
        Ok(Client { pinned: Some(remote), ..self.clone() })
    }

    /// True when every call goes to one node.
    pub(super) fn is_pinned(&self) -> bool {
        self.pinned.is_some()
    }

    /// How long a call of this client may take.
    pub fn timeout(&self) -> Duration {
        self.timeout
    }

    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Addresses of the nodes that calls may go to: the given ones, then leaders learned.
    pub fn endpoints(&self) -> Vec<String> {
        match &self.pinned {
            Some(remote) => vec![remote.address.clone()],
            None => {
                lock(&self.inner.routing).nodes.iter().map(|node| node.address.clone()).collect()
            }
        }
    }

    /// Address of the leader as far as it is known.
    pub fn leader(&self) -> Option<String> {
        lock(&self.inner.routing).leader.as_ref().map(|node| node.address.clone())
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Remote>> {
        match &self.pinned {
            Some(remote) => vec![remote.clone()],
            None => lock(&self.inner.routing).nodes.clone(),
        }
    }

    /// One call with all its repetitions.
    pub(super) async fn call<R: Request>(&self, request: R) -> Result<R::Response, Error> {
        let answered = self.call_until(request, Instant::now() + self.timeout).await?;
        Ok(answered.response)
    }

    pub(super) async fn call_until<R: Request>(
        &self,
        request: R,
        deadline: Instant,
    ) -> Result<Answered<R::Response>, Error> {
        let repeatable = request.is_repeatable();
        let request = Arc::new(request);
        let mut avoid: Option<Arc<Remote>> = None;
        let mut uncertain = false;
        let mut last = Error::Timeout { definite: true };
        for attempt in 0u32.. {
            let sent = Instant::now();
            let left = deadline.saturating_duration_since(sent);
            if left.is_zero() {
                break;
            }
            let remote = self.pick(request.route(), avoid.as_ref());
            // A call that may not be repeated gains nothing from giving up early.
            let patience = self.attempt_patience(attempt).saturating_add(request.held_back());
            let patience = if repeatable { left.min(patience) } else { left };
            let failure = match remote.unary(&request, patience).await {
                Ok(response) => return Ok(Answered { response, sent }),
                Err(failure) => failure,
            };
            self.note(&remote, &failure);
            let error = failure.error;
            tracing::debug!(path = R::PATH, node = %remote.address, attempt, %error, "call failed");
            // The node held it back for as long as it was asked to.
            let over = matches!(error, Error::Timeout { definite: true })
                && !request.held_back().is_zero()
                && sent.elapsed() >= request.held_back();
            if over || !error.retryable() || !(repeatable || error.definite()) {
                return Err(settle(error, uncertain, request.is_identified()));
            }
            uncertain |= !request.is_read() && !error.definite();
            // A full queue is full for every node; any other error is a reason to ask elsewhere.
            avoid = if matches!(error, Error::Overloaded { .. }) { None } else { Some(remote) };
            last = error;
            let pause = self.backoff(attempt);
            if Instant::now() + pause >= deadline {
                break;
            }
            sleep(pause).await;
        }
        Err(settle(last, uncertain, request.is_identified()))
    }

    /// How long attempt number `attempt` waits for its node.
    pub(super) fn attempt_patience(&self, attempt: u32) -> Duration {
        self.inner.options.attempt_timeout * (1 << (attempt / 3).min(4))
    }

    /// Exponential backoff with full jitter.
    pub(super) fn backoff(&self, attempt: u32) -> Duration {
        let ceiling =
            (limits::CLIENT_BACKOFF_MIN * (1 << attempt.min(16))).min(limits::CLIENT_BACKOFF_MAX);
        let nanos = lock(&self.inner.rng).random_range(0..=ceiling.as_nanos() as u64);
        Duration::from_nanos(nanos)
    }

    pub(super) fn random(&self) -> u64 {
        lock(&self.inner.rng).random()
    }

    /// The node for the next attempt: for writes the leader, else round all; nodes that failed just
    /// now come last.
    pub(super) fn pick(&self, route: Route, avoid: Option<&Arc<Remote>>) -> Arc<Remote> {
        if let Some(remote) = &self.pinned {
            return remote.clone();
        }
        let to_leader = match route {
            Route::Leader => true,
            Route::Fresh => self.inner.options.read_from == ReadFrom::Leader,
            Route::Anywhere => false,
        };
        let avoided = |node: &Arc<Remote>| avoid.is_some_and(|avoid| Arc::ptr_eq(node, avoid));
        if to_leader {
            self.check_leader();
        }
        let routing = lock(&self.inner.routing);
        if to_leader
            && let Some(leader) = &routing.leader
            && !avoided(leader)
            && !leader.is_suspect()
        {
            return leader.clone();
        }
        let start = self.inner.cursor.fetch_add(1, Ordering::Relaxed);
        let count = routing.nodes.len();
        let ring = || (0..count).map(|i| &routing.nodes[start.wrapping_add(i) % count]);
        ring()
            .find(|node| !avoided(node) && !node.is_suspect())
            .or_else(|| ring().find(|node| !avoided(node)))
            .unwrap_or(&routing.nodes[start % count])
            .clone()
    }

    /// Draws conclusions from a failure.
    pub(super) fn note(&self, remote: &Arc<Remote>, failure: &Failure) {
        if failure.silent {
            remote.suspect();
        }
        if self.pinned.is_some() {
            return;
        }
        match &failure.error {
            Error::NoLeader { leader: Some(leader), .. } => self.believe(remote, leader),
            Error::Timeout { .. } | Error::Connection { .. } if failure.silent => {
                self.doubt(remote);
            }
            Error::NoLeader { leader: None, .. }
            | Error::LeaderChanged
            | Error::ShuttingDown { .. } => self.doubt(remote),
            Error::Timeout { .. }
            | Error::Connection { .. }
            | Error::Invalid { .. }
            | Error::NotFound { .. }
            | Error::SessionExpired { .. }
            | Error::SequenceForgotten { .. }
            | Error::TooManyInFlight { .. }
            | Error::CompareFailed { .. }
            | Error::OwnedByAnother { .. }
            | Error::LimitReached { .. }
            | Error::InUse { .. }
            | Error::Overloaded { .. }
            | Error::WatchLagged { .. }
            | Error::NoSpace { .. }
            | Error::Membership { .. }
            | Error::ValueDiffers { .. }
            | Error::OutOfBounds { .. }
            | Error::LockHeld { .. }
            | Error::SagaIs { .. }
            | Error::SchemaChanged { .. }
            | Error::Malformed { .. }
            | Error::InStep { .. }
            | Error::Conflict { .. }
            | Error::Internal { .. } => {}
        }
    }

    /// A node named another one as the leader.
    fn believe(&self, source: &Arc<Remote>, leader: &str) {
        let Ok(address) = address(leader) else {
            tracing::warn!(leader, "a node named a leader whose address cannot be read");
            return self.doubt(source);
        };
        if address == source.address {
            // It says that it leads, yet did not do it: its view is old.
            return self.doubt(source);
        }
        let mut routing = lock(&self.inner.routing);
        let node = routing.node_or_new(address, &self.inner.options);
        routing.leader = Some(node);
        routing.checked = Some(Instant::now());
    }

    /// The node does not lead, or cannot be reached: forget it as the leader and search.
    fn doubt(&self, remote: &Arc<Remote>) {
        {
            let mut routing = lock(&self.inner.routing);
            if routing.leader.as_ref().is_some_and(|leader| Arc::ptr_eq(leader, remote)) {
                routing.leader = None;
            }
        }
        self.check_leader();
    }

    /// Where a stream does better than at this node: at the leader, when that is known to be another one and answers.
    /// `silent` says that this one has not answered for a while. Keeps that knowledge fresh.
    pub(super) fn better_than(&self, node: &Arc<Remote>, silent: bool) -> Option<Arc<Remote>> {
        if self.pinned.is_some() {
            return None;
        }
        if silent {
            self.ask_who_leads(true);
        } else {
            self.check_leader();
        }
        if !silent && self.inner.options.read_from == ReadFrom::Any {
            return None;
        }
        let leader = lock(&self.inner.routing).leader.clone()?;
        (!Arc::ptr_eq(&leader, node) && !leader.is_suspect()).then_some(leader)
    }

    /// Asks in the background who leads: the leader itself every few seconds, or every node while
    /// none is known.
    pub(super) fn check_leader(&self) {
        self.ask_who_leads(false);
    }

    /// `everybody` = ask all nodes although a leader is known. Each question ends by itself, and how
    /// often it is asked is limited: so they are few at any time.
    fn ask_who_leads(&self, everybody: bool) {
        if self.pinned.is_some() {
            return;
        }
        let now = Instant::now();
        let asked = {
            let mut routing = lock(&self.inner.routing);
            let leader = routing.leader.clone().filter(|leader| !everybody && !leader.is_suspect());
            let interval = match leader {
                Some(_) => limits::CLIENT_LEADER_CHECK,
                None => limits::CLIENT_LEADER_SEARCH,
            };
            if routing.checked.is_some_and(|checked| now < checked + interval) {
                return;
            }
            routing.checked = Some(now);
            match leader {
                Some(leader) => vec![leader],
                None => routing.nodes.clone(),
            }
        };
        let inner = self.inner.clone();
        spawn(async move { inner.search(asked).await });
    }
}

impl Inner {
    async fn search(&self, asked: Vec<Arc<Remote>>) {
        let request = Arc::new(v1::StatusRequest {});
        let patience = self.options.connect_timeout;
        let mut answers: FuturesUnordered<_> = asked
            .into_iter()
            .map(|node| {
                let request = request.clone();
                async move {
                    let answer = node.unary(&request, patience).await;
                    (node, answer)
                }
            })
            .collect();
        let mut learned = false;
        while let Some((node, answer)) = answers.next().await {
            match answer {
                Ok(status) => learned |= self.learn(&node, &status),
                Err(_) => {
                    let mut routing = lock(&self.routing);
                    if routing.leader.as_ref().is_some_and(|leader| Arc::ptr_eq(leader, &node)) {
                        routing.leader = None;
                        routing.checked = None;
                    }
                }
            }
        }
        if !learned {
            // A cluster that was rebuilt counts its terms from the beginning.
            let mut routing = lock(&self.routing);
            if routing.leader.is_none() {
                routing.term = 0;
            }
        }
    }

    /// Takes one node's view of who leads, unless a later one is known.
    fn learn(&self, node: &Arc<Remote>, status: &v1::StatusResponse) -> bool {
        let answered_by = status.header.as_ref().map_or(0, |header| header.node_id);
        node.node_id.store(answered_by, Ordering::Relaxed);
        let mut routing = lock(&self.routing);
        if status.leader_id == 0 || status.term < routing.term {
            return false;
        }
        // An address under which we reached the node ourselves is better than the advertised one.
        let leader = if status.leader_id == answered_by {
            Some(node.clone())
        } else {
            let known = routing
                .nodes
                .iter()
                .find(|known| known.node_id.load(Ordering::Relaxed) == status.leader_id)
                .cloned();
            known.or_else(|| {
                let address = address(&status.leader_client_address).ok()?;
                Some(routing.node_or_new(address, &self.options))
            })
        };
        let Some(leader) = leader else { return false };
        let news = routing.leader.as_ref().is_none_or(|old| !Arc::ptr_eq(old, &leader));
        if news {
            tracing::debug!(leader = %leader.address, term = status.term, "leader learned");
        }
        routing.term = status.term;
        routing.leader = Some(leader);
        true
    }
}

impl Routing {
    fn node(&self, address: &str) -> Option<Arc<Remote>> {
        self.nodes.iter().find(|node| node.address == address).cloned()
    }

    fn node_or_new(&mut self, address: String, options: &Arc<Options>) -> Arc<Remote> {
        if let Some(node) = self.node(&address) {
            return node;
        }
        if self.nodes.len() >= limits::CLIENT_NODES && self.nodes.len() > self.given {
            self.nodes.remove(self.given);
        }
        let node = Remote::new(address, options.clone());
        if self.nodes.len() < limits::CLIENT_NODES {
            self.nodes.push(node.clone());
        }
        node
    }
}

/// The error of a call of which an earlier attempt may have taken place (`uncertain`). Only what the
/// state itself answered to the id of the write (`identified`) holds for the earlier attempt too, because the
/// state gives every attempt the same answer; of anything else it is no longer known.
pub(super) fn settle(error: Error, uncertain: bool, identified: bool) -> Error {
    if !uncertain {
        return error;
    }
    let unknown = |error: Error| Error::Connection {
        message: format!("{error}; an earlier attempt may have taken place"),
        definite: false,
    };
    let step = if let Error::InStep { error, .. } = &error { error } else { &error };
    // The state keeps no answer that says this: the earlier attempt may come later and be carried out.
    let identified = identified && !matches!(step, Error::SchemaChanged { .. });
    match error {
        // These leave it open themselves.
        Error::SessionExpired { .. }
        | Error::SequenceForgotten { .. }
        | Error::LeaderChanged
        | Error::Internal { .. } => error,
        Error::NotFound { .. }
        | Error::CompareFailed { .. }
        | Error::OwnedByAnother { .. }
        | Error::LimitReached { .. }
        | Error::InUse { .. }
        | Error::ValueDiffers { .. }
        | Error::OutOfBounds { .. }
        | Error::LockHeld { .. }
        | Error::SagaIs { .. }
        | Error::SchemaChanged { .. }
        | Error::InStep { .. }
        | Error::Conflict { .. } => match identified {
            true => error,
            false => unknown(error),
        },
        Error::NoLeader { leader, .. } => Error::NoLeader { leader, definite: false },
        Error::Timeout { .. } => Error::Timeout { definite: false },
        Error::ShuttingDown { .. } => Error::ShuttingDown { definite: false },
        Error::Connection { message, .. } => Error::Connection { message, definite: false },
        Error::Invalid { .. }
        | Error::TooManyInFlight { .. }
        | Error::Overloaded { .. }
        | Error::WatchLagged { .. }
        | Error::NoSpace { .. }
        | Error::Malformed { .. }
        | Error::Membership { .. } => unknown(error),
    }
}
