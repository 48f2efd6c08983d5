//! Sessions: the lease that ephemeral instances hang on, and the scope of exactly-once ids.
//!
//! A session is kept alive by a task of its own. An error of a keep-alive is not an expiry: the
//! session is lost only when the cluster says so, or when its TTL has passed without an acknowledged
//! keep-alive, measured from when that keep-alive was sent.

use std::fmt;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::connection::Client;
use super::remote::{lock, spawn};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;

/// How a session is opened.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// How long the session outlives its last keep-alive.
    pub ttl: Duration,
    /// Who holds it, for people; None = the name of the client.
    pub client: Option<String>,
    /// Open another session when this one is lost. What hung on the lost one, ephemeral instances
    /// for instance, is the caller's to register again: see [`Session::subscribe`].
    pub reopen: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        SessionOptions {
            ttl: Duration::from_millis(limits::DEFAULT_SESSION_TTL_MS),
            client: None,
            reopen: false,
        }
    }
}

/// What is known of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    Alive {
        session: u64,
    },
    /// Lost. With `reopen`, an `Alive` with another id follows.
    Expired {
        session: u64,
    },
    /// Closed by its holder.
    Closed,
}

/// An open session. Clones are the same session; when the last one is dropped it is closed, as far
/// as the cluster can be reached.
#[derive(Clone)]
pub struct Session {
    shared: Arc<Shared>,
    _guard: Arc<Guard>,
}

struct Shared {
    client: Client,
    options: SessionOptions,
    scope: RwLock<Arc<Scope>>,
    state: watch::Sender<SessionState>,
    patience: Patience,
    /// The TTL of a session that is waited for has passed without an acknowledged keep-alive.
    overdue: watch::Sender<bool>,
}

/// What becomes of a session whose TTL has passed without an acknowledged keep-alive, of which the
/// cluster has not said that it has expired: while no node answered, none could.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// It is lost: whoever holds a lock must not take it for held any longer.
    Ttl,
    /// It is kept alive on, until the cluster says that it is gone. Nobody else can take over meanwhile
    /// what hangs on it, and a cluster that comes back finds it as it was.
    ClusterSaysSo,
}

/// Exists as long as the caller holds the session; the keep-alive task holds only `Shared`.
struct Guard {
    shared: Arc<Shared>,
}

/// The ids of one session. A session that is opened again begins with a new scope.
struct Scope {
    session: u64,
    ttl: Duration,
    sequences: Mutex<Sequences>,
    /// One permit for each sequence that may be given out before `lowest` advances.
    window: Semaphore,
}

/// Invariant: every sequence below `lowest` is settled; `settled[i]` belongs to `lowest + i`; the
/// first of them, if any, is not settled.
struct Sequences {
    lowest: u64,
    settled: std::collections::VecDeque<bool>,
}

/// The right to send one write, with its exactly-once id. The write may be sent as often as needed
/// while the ticket exists; when it is dropped the sequence counts as answered, and a copy of the
/// write that is still on its way will be refused.
pub struct Ticket {
    scope: Arc<Scope>,
    id: v1::RequestId,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Client {
    /// Opens a session and keeps it alive in the background until it is closed, lost or dropped.
    pub async fn session(&self, options: SessionOptions) -> Result<Session, Error> {
        self.session_with(options, Patience::Ttl).await
    }

    /// A session that is lost only when the cluster says so, for what does no harm while nobody knows
    /// whether it is alive; see [`Session::overdue`].
    pub(super) async fn patient_session(&self, options: SessionOptions) -> Result<Session, Error> {
        self.session_with(options, Patience::ClusterSaysSo).await
    }

    async fn session_with(
        &self,
        options: SessionOptions,
        patience: Patience,
    ) -> Result<Session, Error> {
        let deadline = Instant::now() + self.timeout();
        let (scope, sent) = open(self, &options, deadline).await?;
        let state = SessionState::Alive { session: scope.session };
        let shared = Arc::new(Shared {
            client: self.clone(),
            options,
            scope: RwLock::new(scope),
            state: watch::Sender::new(state),
            patience,
            overdue: watch::Sender::new(false),
        });
        spawn(keep(shared.clone(), sent));
        let guard = Arc::new(Guard { shared: shared.clone() });
        Ok(Session { shared, _guard: guard })
    }
}

impl Session {
    /// The id, which an ephemeral instance carries in `Instance.session`.
    pub fn id(&self) -> u64 {
        self.shared.scope().session
    }

    /// The TTL that the cluster granted.
    pub fn ttl(&self) -> Duration {
        self.shared.scope().ttl
    }

    pub fn state(&self) -> SessionState {
        *self.shared.state.borrow()
    }

    /// Follows the state. The present one counts as seen.
    pub fn subscribe(&self) -> watch::Receiver<SessionState> {
        self.shared.state.subscribe()
    }

    pub(super) fn reopens(&self) -> bool {
        self.shared.options.reopen
    }

    /// Whether nobody knows if the session is alive, as long as it is one that is waited for.
    pub(super) fn overdue(&self) -> watch::Receiver<bool> {
        self.shared.overdue.subscribe()
    }

    /// Returns when the session has been lost, or at once when it is not alive. With `reopen` a
    /// short loss may pass unseen here; [`Session::subscribe`] shows every new id.
    pub async fn expired(&self) {
        let mut states = self.subscribe();
        // An error means that the sender is gone, which cannot be: `self` holds it.
        let _ = states.wait_for(|state| !matches!(state, SessionState::Alive { .. })).await;
    }

    /// The next exactly-once id. Waits while [`limits::SESSION_IN_FLIGHT`] sequences are given out
    /// beyond the lowest one that is not answered, at most as long as a call of the client may take.
    pub async fn next_request_id(&self) -> Result<Ticket, Error> {
        self.ticket_until(Instant::now() + self.shared.client.timeout()).await
    }

    pub(super) async fn ticket_until(&self, deadline: Instant) -> Result<Ticket, Error> {
        let scope = self.shared.scope();
        if !self.shared.is_current(&scope) {
            return Err(Error::SessionExpired { session: scope.session });
        }
        match timeout_at(deadline, scope.window.acquire()).await {
            Ok(Ok(permit)) => permit.forget(),
            Ok(Err(_)) => return Err(Error::SessionExpired { session: scope.session }),
            Err(_) => return Err(Error::Timeout { definite: true }),
        }
        Ok(Ticket::new(scope))
    }

    /// The next id if one is free now.
    pub fn try_next_request_id(&self) -> Option<Ticket> {
        let scope = self.shared.scope();
        if !self.shared.is_current(&scope) {
            return None;
        }
        scope.window.try_acquire().ok()?.forget();
        Some(Ticket::new(scope))
    }

    /// Sequences given out beyond the lowest one that is not answered.
    pub fn in_flight(&self) -> usize {
        lock(&self.shared.scope().sequences).settled.len()
    }

    /// Closes the session: its ephemeral instances are deregistered at once.
    pub async fn close(&self) -> Result<v1::CloseSessionResponse, Error> {
        let session = self.id();
        self.shared.end(SessionState::Closed);
        self.shared.client.call(v1::CloseSessionRequest { session, request_id: None }).await
    }

    /// Draws conclusions from the error of a write of this session.
    pub(super) fn note(&self, error: &Error) {
        if let Error::SessionExpired { session } = error {
            self.shared.lost(*session);
        }
    }
}

impl Ticket {
    fn new(scope: Arc<Scope>) -> Ticket {
        let id = {
            let mut sequences = lock(&scope.sequences);
            let sequence = sequences.lowest + sequences.settled.len() as u64;
            sequences.settled.push_back(false);
            v1::RequestId {
                session: scope.session,
                sequence,
                lowest_unacknowledged: sequences.lowest,
            }
        };
        Ticket { scope, id }
    }

    /// What goes into the write's `request_id`.
    pub fn request_id(&self) -> v1::RequestId {
        self.id
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let advanced = lock(&self.scope.sequences).settle(self.id.sequence);
        if advanced > 0 {
            self.scope.window.add_permits(advanced);
        }
    }
}

impl Sequences {
    /// Marks a sequence as answered and returns by how much `lowest` advanced.
    fn settle(&mut self, sequence: u64) -> usize {
        let offset = sequence
            .checked_sub(self.lowest)
            .expect("a sequence is settled once, when its ticket is dropped");
        self.settled[offset as usize] = true;
        let mut advanced = 0;
        while self.settled.front() == Some(&true) {
            self.settled.pop_front();
            self.lowest += 1;
            advanced += 1;
        }
        advanced
    }
}

impl Scope {
    fn new(session: u64, ttl: Duration) -> Scope {
        Scope {
            session,
            ttl,
            sequences: Mutex::new(Sequences {
                lowest: 1,
                settled: std::collections::VecDeque::new(),
            }),
            window: Semaphore::new(limits::SESSION_IN_FLIGHT),
        }
    }
}

impl Shared {
    fn scope(&self) -> Arc<Scope> {
        self.scope.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn is_current(&self, scope: &Scope) -> bool {
        *self.state.borrow() == SessionState::Alive { session: scope.session }
    }

    /// Ends the present session; the first end of it counts. Returns false when it had ended.
    fn end(&self, state: SessionState) -> bool {
        let ended = self.state.send_if_modified(|current| {
            let ends = match (*current, state) {
                (SessionState::Alive { session }, SessionState::Expired { session: lost }) => {
                    session == lost
                }
                (SessionState::Closed, _) => false,
                (_, SessionState::Closed) => true,
                (_, SessionState::Alive { .. }) | (SessionState::Expired { .. }, _) => false,
            };
            if ends {
                *current = state;
            }
            ends
        });
        if ended {
            self.scope().window.close();
        }
        ended
    }

    fn lost(&self, session: u64) -> bool {
        let lost = self.end(SessionState::Expired { session });
        if lost {
            tracing::warn!(session, "session lost");
        }
        lost
    }

    fn set_overdue(&self, overdue: bool) {
        let changes = |known: &mut bool| std::mem::replace(known, overdue) != overdue;
        self.overdue.send_if_modified(changes);
    }

    /// Goes on with a new session, unless the holder has closed meanwhile.
    fn renew(&self, scope: Arc<Scope>) -> bool {
        let session = scope.session;
        *self.scope.write().unwrap_or_else(std::sync::PoisonError::into_inner) = scope;
        self.state.send_if_modified(|current| match *current {
            SessionState::Expired { .. } => {
                *current = SessionState::Alive { session };
                true
            }
            SessionState::Alive { .. } | SessionState::Closed => false,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let session = self.shared.scope().session;
        if self.shared.end(SessionState::Closed) {
            close_later(&self.shared.client, session);
        }
    }
}

/// Closes a session that nobody holds any more, as far as that is possible.
fn close_later(client: &Client, session: u64) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    let client = client.clone();
    runtime.spawn(async move {
        let request = v1::CloseSessionRequest { session, request_id: None };
        if let Err(error) = client.call(request).await {
            tracing::debug!(session, %error, "session not closed; it ends with its TTL");
        }
    });
}

async fn open(
    client: &Client,
    options: &SessionOptions,
    deadline: Instant,
) -> Result<(Arc<Scope>, Instant), Error> {
    let name = options.client.as_ref().unwrap_or(&client.options().client_name);
    let request =
        v1::OpenSessionRequest { ttl_ms: options.ttl.as_millis() as u64, client: name.clone() };
    let answered = client.call_until(request, deadline).await?;
    let ttl = Duration::from_millis(answered.response.ttl_ms);
    Ok((Arc::new(Scope::new(answered.response.session, ttl)), answered.sent))
}

/// Keeps the session alive until it ends; with `reopen`, the ones after it too.
async fn keep(shared: Arc<Shared>, mut acknowledged: Instant) {
    let mut states = shared.state.subscribe();
    loop {
        let scope = shared.scope();
        keep_one(&shared, &scope, acknowledged, &mut states).await;
        if *shared.state.borrow() == SessionState::Closed || !shared.options.reopen {
            return;
        }
        let mut attempt = 0;
        acknowledged = loop {
            let deadline = Instant::now() + shared.client.timeout();
            let opened = tokio::select! {
                biased;
                _ = states.wait_for(|state| *state == SessionState::Closed) => return,
                opened = open(&shared.client, &shared.options, deadline) => opened,
            };
            match opened {
                Ok((scope, sent)) => {
                    let session = scope.session;
                    if !shared.renew(scope) {
                        close_later(&shared.client, session);
                        return;
                    }
                    break sent;
                }
                Err(error) => {
                    tracing::warn!(%error, "session not opened again; trying on");
                    sleep(shared.client.backoff(attempt)).await;
                    attempt += 1;
                }
            }
        };
    }
}

/// Returns when the session of `scope` is not alive any more.
async fn keep_one(
    shared: &Arc<Shared>,
    scope: &Arc<Scope>,
    mut acknowledged: Instant,
    states: &mut watch::Receiver<SessionState>,
) {
    let session = scope.session;
    let alive = SessionState::Alive { session };
    let mut ttl = scope.ttl;
    loop {
        let expiry = acknowledged + ttl;
        let beat = async {
            sleep_until(acknowledged + ttl / 3).await;
            // Up to the expiry, on whichever node: as long as one answers in time nothing is lost.
            let now = Instant::now();
            let until =
                if now < expiry || shared.patience == Patience::Ttl { expiry } else { now + ttl };
            shared.client.call_until(v1::KeepAliveRequest { session }, until).await
        };
        let answer = tokio::select! {
            biased;
            _ = states.wait_for(|state| *state != alive) => return,
            answer = beat => answer,
        };
        match answer {
            Ok(answered) => {
                acknowledged = answered.sent;
                ttl = Duration::from_millis(answered.response.ttl_ms);
                shared.set_overdue(false);
            }
            Err(Error::SessionExpired { .. }) => {
                shared.lost(session);
                shared.set_overdue(false);
                return;
            }
            Err(error) if Instant::now() < expiry => {
                tracing::debug!(session, %error, "keep-alive failed; trying again");
                sleep((ttl / 10).min(expiry - Instant::now())).await;
            }
            Err(error) if shared.patience == Patience::ClusterSaysSo => {
                tracing::debug!(session, %error, "keep-alive failed beyond the TTL; trying on");
                shared.set_overdue(true);
                sleep(ttl / 10).await;
            }
            Err(error) => {
                tracing::debug!(session, %error, "no keep-alive was acknowledged within the TTL");
                if shared.lost(session) {
                    // The cluster may still count on it; nobody here does.
                    close_later(&shared.client, session);
                }
                return;
            }
        }
    }
}
