//! Locks: standing in line, holding, and noticing the loss.
//!
//! Who asks stands in a line that the cluster keeps, and follows it through a watch until the lock is its
//! own; nothing is lost with a node or a watch but time. A place that nobody waits at any more is given
//! up, as far as the cluster can be reached; otherwise it ends with its session.

use std::fmt;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::connection::{Client, settle};
use super::remote::spawn;
use super::session::{Session, SessionState, Ticket};
use super::watch::{Watch, WatchRange, WatchUpdate};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::watch_event::Record;

/// A lock by its name. Taking it gives a [`LockGuard`], whose [`token`](LockGuard::token) goes wherever
/// the lock protects something.
///
/// ```no_run
/// # use quorate::client::{Client, Session};
/// # async fn example(client: Client, session: Session) -> Result<(), quorate::error::Error> {
/// let guard = client.lock("default", "deploy").acquire(&session).await?;
/// println!("mine, with token {}", guard.token());
/// guard.release().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Lock {
    client: Client,
    name: v1::LockName,
    holder: Option<String>,
    value: String,
    timeout: Option<Duration>,
}

/// Why a lock that was held is not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    #[error("the session has ended")]
    Session,
    #[error("it was taken from its holder")]
    Taken,
}

impl Client {
    /// A lock; an empty namespace is "default".
    pub fn lock(&self, namespace: impl Into<String>, name: impl Into<String>) -> Lock {
        Lock {
            client: self.clone(),
            name: v1::LockName { namespace: namespace.into(), lock: name.into() },
            holder: None,
            value: String::new(),
            timeout: None,
        }
    }

    /// All locks of a namespace that are held, however many pages that takes.
    pub async fn all_locks(
        &self,
        namespace: &str,
        prefix: &str,
        consistency: v1::Consistency,
    ) -> Result<Vec<v1::HeldLock>, Error> {
        let mut request = v1::ListLocksRequest {
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
            limit: limits::PAGE as u32,
            after: String::new(),
            consistency: consistency.into(),
        };
        let mut all: Vec<v1::HeldLock> = Vec::new();
        loop {
            let page = self.list_locks(request.clone()).await?;
            let last = page.locks.last().and_then(|lock| lock.owner.as_ref());
            request.after = last.map(|owner| owner.lock.clone()).unwrap_or_default();
            let more = page.more && !page.locks.is_empty();
            all.extend(page.locks);
            if !more {
                return Ok(all);
            }
        }
    }
}

impl Lock {
    /// Who holds it, within the session. By default each request for the lock has a name of its own,
    /// so that the tasks of a process which share a session exclude each other. Two requests of one
    /// session with the same holder are one: both get the lock at once.
    pub fn holder(mut self, holder: impl Into<String>) -> Lock {
        self.holder = Some(holder.into());
        self
    }

    /// What whoever looks at the lock learns of its holder.
    pub fn value(mut self, value: impl Into<String>) -> Lock {
        self.value = value.into();
        self
    }

    /// How long to wait for the lock; otherwise as long as the session lives.
    pub fn timeout(mut self, timeout: Duration) -> Lock {
        self.timeout = Some(timeout);
        self
    }

    /// Waits for the lock, in the order in which everybody asked. When the time is over
    /// ([`Error::Timeout`]) or the future is dropped, the place in the line is given up, and the lock too
    /// if it came meanwhile.
    pub async fn acquire(&self, session: &Session) -> Result<LockGuard, Error> {
        self.acquire_valued(session, self.value.clone()).await
    }

    pub(super) async fn acquire_valued(
        &self,
        session: &Session,
        value: String,
    ) -> Result<LockGuard, Error> {
        let deadline = self.timeout.map(|timeout| Instant::now() + timeout);
        let place = self.place(session, value, true);
        let mut place = match deadline {
            None => place.await?,
            // Even the right to ask may have to be waited for.
            Some(deadline) => match timeout_at(deadline, place).await {
                Ok(place) => place?,
                Err(_) => return Err(Error::Timeout { definite: true }),
            },
        };
        let waited = match deadline {
            None => place.wait().await,
            Some(deadline) => match timeout_at(deadline, place.wait()).await {
                Ok(waited) => waited,
                Err(_) => {
                    place.leave().await;
                    return Err(Error::Timeout { definite: true });
                }
            },
        };
        let (token, follower) = waited?;
        Ok(place.into_guard(token, follower))
    }

    /// Takes the lock if nobody holds it; [`Error::LockHeld`] otherwise.
    pub async fn try_acquire(&self, session: &Session) -> Result<LockGuard, Error> {
        let mut place = self.place(session, self.value.clone(), false).await?;
        let patience = self.timeout.unwrap_or(self.client.timeout()).min(self.client.timeout());
        let answer = match timeout(patience, place.ask()).await {
            Ok(answer) => answer?,
            Err(_) => return Err(Error::Timeout { definite: true }),
        };
        let follower = place.standing().follower();
        Ok(place.into_guard(answer.token, follower))
    }

    /// Who holds the lock and who waits for it, in the order of the line.
    pub async fn line(&self) -> Result<Vec<v1::LockRequest>, Error> {
        let v1::LockName { namespace, lock } = self.name.clone();
        let request = v1::GetLockRequest { namespace, lock, ..Default::default() };
        Ok(self.client.get_lock(request).await?.requests)
    }

    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    pub(super) fn range(&self) -> WatchRange {
        let v1::LockName { namespace, lock } = self.name.clone();
        WatchRange::Lock { namespace, lock }
    }

    async fn place(&self, session: &Session, value: String, queue: bool) -> Result<Place, Error> {
        let ticket = session.next_request_id().await?;
        let holder =
            self.holder.clone().unwrap_or_else(|| format!("{:016x}", self.client.random()));
        let v1::LockName { namespace, lock } = self.name.clone();
        let id = ticket.request_id();
        let request = v1::AcquireLockRequest {
            namespace,
            lock,
            // That of the ticket: the session may be another one by now.
            session: id.session,
            holder,
            value,
            wait_ms: 0,
            queue,
            request_id: Some(id),
        };
        let client = self.client.clone();
        let session = session.clone();
        let standing = Standing { client, session, request, ticket: Some(ticket), asked: false };
        Ok(Place { standing: Some(standing) })
    }
}

/// A place in the line, or one that may be there: it is given up when this is dropped.
struct Place {
    /// None once the place is given up, or is a guard's.
    standing: Option<Standing>,
}

struct Standing {
    client: Client,
    session: Session,
    request: v1::AcquireLockRequest,
    /// Kept until the request is answered: without an answer it may still be on its way, and must be
    /// carried out or refused before the place can be given up for good.
    ticket: Option<Ticket>,
    asked: bool,
}

impl Place {
    fn standing(&mut self) -> &mut Standing {
        self.standing.as_mut().expect("a place is left once, by its owner")
    }

    /// Asks for the lock until there is an answer.
    async fn ask(&mut self) -> Result<v1::AcquireLockResponse, Error> {
        let answer = self.standing().ask().await;
        if let Err(error) = &answer
            && (error.definite() || matches!(error, Error::SessionExpired { .. }))
        {
            // There is no place to give up.
            self.standing = None;
        }
        answer
    }

    /// Returns with the fencing token when the lock is had.
    async fn wait(&mut self) -> Result<(u64, Follower), Error> {
        let answer = self.ask().await?;
        let mut follower = self.standing().follower();
        if answer.token != 0 {
            return Ok((answer.token, follower));
        }
        let asked_at = answer.header.map_or(0, |header| header.revision);
        match follower.follow(asked_at, |own| own != Own::Waits).await? {
            Own::Holds(token) => Ok((token, follower)),
            Own::Gone | Own::Waits => {
                let v1::AcquireLockRequest { namespace, lock, session, .. } = &follower.request;
                let name = format!("{namespace}/{lock} of session {session}");
                Err(Error::NotFound { kind: "request for the lock".to_owned(), name })
            }
        }
    }

    /// Gives the place up, and waits a moment for that.
    async fn leave(mut self) {
        let Some(standing) = self.standing.take().filter(|standing| standing.asked) else { return };
        let (done, left) = tokio::sync::oneshot::channel();
        spawn(async move {
            standing.leave().await;
            let _ = done.send(());
        });
        let _ = timeout(limits::LOCK_LEAVING, left).await;
    }

    fn into_guard(mut self, token: u64, follower: Follower) -> LockGuard {
        let standing = self.standing.take().expect("a place is left once, by its owner");
        let (sender, lost) = watch::channel(None);
        let Standing { client, session, request, .. } = standing;
        let held = request.session;
        spawn(follower.until_lost(token, sender));
        LockGuard { client, session, held, request, token, lost, released: false }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(standing) = self.standing.take().filter(|standing| standing.asked)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(standing.leave());
        }
    }
}

impl Standing {
    fn follower(&self) -> Follower {
        let (client, request) = (self.client.clone(), self.request.clone());
        let line = client.watch(range(&request));
        Follower { client, states: self.session.subscribe(), request, line, ticket: None }
    }

    /// Sends the request with one and the same id until it is answered or the session has ended.
    async fn ask(&mut self) -> Result<v1::AcquireLockResponse, Error> {
        // Of an attempt that was dropped nobody knows.
        let mut uncertain = std::mem::replace(&mut self.asked, true);
        let ended = ended(self.session.subscribe(), self.request.session);
        let asking = async {
            for attempt in 0.. {
                match self.client.acquire_lock(self.request.clone(), Some(&self.session)).await {
                    // A node that is low on disk answers for itself alone: what was sent before may take place.
                    Err(error)
                        if error.retryable()
                            || uncertain && matches!(error, Error::NoSpace { .. }) =>
                    {
                        uncertain |= !error.definite();
                        tracing::debug!(lock = %self.request.lock, %error, "asking on for a lock");
                        sleep(self.client.backoff(attempt)).await;
                    }
                    answer => return answer.map_err(|error| settle(error, uncertain, true)),
                }
            }
            unreachable!("the attempts do not end")
        };
        let answer = tokio::select! {
            biased;
            answer = asking => answer,
            () = ended => Err(Error::SessionExpired { session: self.request.session }),
        };
        self.ticket = None;
        answer
    }

    /// Gives up the place, or the lock if it has come. Ends with the session at the latest.
    async fn leave(mut self) {
        if self.ticket.is_some()
            && let Err(error) = self.ask().await
            && (error.definite() || matches!(error, Error::SessionExpired { .. }))
        {
            return;
        }
        let v1::AcquireLockRequest { namespace, lock, session, holder, .. } = self.request;
        let request =
            v1::ReleaseLockRequest { namespace, lock, session, holder, token: 0, request_id: None };
        release(&self.client, &self.session, session, request).await;
    }
}

/// Releases for whoever has gone: until there is an answer, or the session has ended.
async fn release(client: &Client, session: &Session, held: u64, request: v1::ReleaseLockRequest) {
    let ended = ended(session.subscribe(), held);
    let releasing = async {
        for attempt in 0.. {
            match client.release_lock(request.clone(), Some(session)).await {
                Err(error) if error.retryable() || matches!(error, Error::NoSpace { .. }) => {
                    sleep(client.backoff(attempt)).await;
                }
                Err(error) => {
                    tracing::debug!(lock = %request.lock, %error, "a lock was not given up");
                    return;
                }
                Ok(_) => return,
            }
        }
    };
    tokio::select! {
        biased;
        () = releasing => {}
        () = ended => {}
    }
}

fn range(request: &v1::AcquireLockRequest) -> WatchRange {
    WatchRange::Lock { namespace: request.namespace.clone(), lock: request.lock.clone() }
}

/// Returns when this session is not alive any more.
async fn ended(mut states: watch::Receiver<SessionState>, session: u64) {
    // An error means that nobody keeps the session any more.
    let _ = states.wait_for(|state| *state != SessionState::Alive { session }).await;
}

/// Where a request stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Own {
    Waits,
    Holds(u64),
    Gone,
}

/// Follows one request. It holds no clone of the session: only who has the guard keeps it open.
struct Follower {
    client: Client,
    states: watch::Receiver<SessionState>,
    request: v1::AcquireLockRequest,
    line: Watch,
    /// Of the request, once it was seen: all that a watch says of a request that has gone.
    ticket: Option<u64>,
}

impl Follower {
    fn is_own(&self, other: &v1::LockRequest) -> bool {
        (other.session, &other.holder) == (self.request.session, &self.request.holder)
    }

    fn place_in(&mut self, line: &[v1::LockRequest]) -> Own {
        let own = line.iter().find(|other| self.is_own(other));
        self.ticket = own.map(|own| own.ticket).or(self.ticket);
        match own.map(|own| own.token) {
            None => Own::Gone,
            Some(0) => Own::Waits,
            Some(token) => Own::Holds(token),
        }
    }

    /// What an update says of the request, which was in the line at `asked_at`; None = nothing.
    fn learn(&mut self, update: WatchUpdate, asked_at: u64) -> Option<Own> {
        // A node that is behind tells of the time before the request.
        if update.revision() < asked_at {
            return None;
        }
        let (events, mut own) = match update {
            WatchUpdate::Snapshot { events, .. } => (events, Some(Own::Gone)),
            WatchUpdate::Changes { events, .. } => (events, None),
            WatchUpdate::Bookmark { .. } => return None,
        };
        for event in events {
            match event.record {
                Some(Record::Lock(gone)) if event.deleted => {
                    own = if self.ticket == Some(gone.ticket) { Some(Own::Gone) } else { own };
                }
                Some(Record::Lock(request)) if self.is_own(&request) => {
                    own = Some(self.place_in(&[request]));
                }
                _ => {}
            }
        }
        own
    }

    /// Returns when the request stands where it is `enough`. It is asked for with a linearizable read
    /// now and then, for a node that is cut off from the others may keep a watch and say nothing new.
    async fn follow(&mut self, asked_at: u64, enough: impl Fn(Own) -> bool) -> Result<Own, Error> {
        let mut ended = std::pin::pin!(ended(self.states.clone(), self.request.session));
        let mut look = Instant::now() + limits::LOCK_RECHECK;
        let mut attempt = 0;
        loop {
            let own = tokio::select! {
                biased;
                () = &mut ended => {
                    return Err(Error::SessionExpired { session: self.request.session });
                }
                update = self.line.next() => match update {
                    Some(Ok(update)) => self.learn(update, asked_at),
                    Some(Err(error)) if matches!(error, Error::Invalid { .. }) => return Err(error),
                    Some(Err(_)) | None => {
                        // It will not go on by itself: begin anew, but not in a hurry.
                        sleep(self.client.backoff(attempt)).await;
                        attempt += 1;
                        self.line = self.client.watch(range(&self.request));
                        continue;
                    }
                },
                () = sleep_until(look) => None,
            };
            match own {
                Some(own @ (Own::Waits | Own::Holds(_))) if enough(own) => return Ok(own),
                Some(Own::Waits | Own::Holds(_)) => continue,
                None if Instant::now() < look => continue,
                // Only a read says for certain that the request has gone.
                Some(Own::Gone) | None => {}
            }
            look = Instant::now() + limits::LOCK_RECHECK;
            let v1::AcquireLockRequest { namespace, lock, .. } = self.request.clone();
            let request = v1::GetLockRequest { namespace, lock, ..Default::default() };
            let asked = tokio::select! {
                biased;
                () = &mut ended => {
                    return Err(Error::SessionExpired { session: self.request.session });
                }
                asked = self.client.get_lock(request) => asked,
            };
            match asked.map(|answer| self.place_in(&answer.requests)) {
                Ok(own) if enough(own) => return Ok(own),
                Ok(_) => attempt = 0,
                Err(error) => {
                    tracing::debug!(lock = %self.request.lock, %error, "line of a lock not read");
                    look = Instant::now() + self.client.backoff(attempt);
                    attempt += 1;
                }
            }
        }
    }

    /// Says when the lock that was had with `token` is lost; ends when nobody listens any more.
    async fn until_lost(mut self, token: u64, lost: watch::Sender<Option<Lost>>) {
        let followed = tokio::select! {
            biased;
            () = lost.closed() => return,
            followed = self.follow(token, |own| own != Own::Holds(token)) => followed,
        };
        let why = match followed {
            Err(Error::SessionExpired { .. }) => Lost::Session,
            Ok(_) | Err(_) => Lost::Taken,
        };
        lost.send_replace(Some(why));
    }
}

/// A lock that is held, as far as is known. It keeps the session open; dropped, it releases the lock in
/// the background.
///
/// The lock may be lost while the holder does not know it: when its process is stopped for longer than
/// the session lives, somebody else gets the lock before the holder can notice. So whatever the lock
/// protects should be told the [`token`](LockGuard::token) and turn away lower ones than it has seen.
pub struct LockGuard {
    client: Client,
    session: Session,
    /// The session's id when the lock was got: it may have been opened again since.
    held: u64,
    request: v1::AcquireLockRequest,
    token: u64,
    lost: watch::Receiver<Option<Lost>>,
    released: bool,
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("namespace", &self.request.namespace)
            .field("lock", &self.request.lock)
            .field("session", &self.held)
            .field("holder", &self.request.holder)
            .field("token", &self.token)
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

impl LockGuard {
    /// The fencing token: greater than that of everybody who held the lock before.
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Within its session.
    pub fn holder(&self) -> &str {
        &self.request.holder
    }

    pub fn name(&self) -> v1::LockName {
        let v1::AcquireLockRequest { namespace, lock, .. } = self.request.clone();
        v1::LockName { namespace, lock }
    }

    /// Holds in a transaction exactly as long as this lock is held: with it as a condition, what a
    /// holder does that has lost the lock is refused.
    pub fn condition(&self) -> v1::Compare {
        self.name().token().is(self.token)
    }

    /// Why the lock is known to be lost; None = it is not.
    pub fn is_lost(&self) -> Option<Lost> {
        match self.session.state() {
            SessionState::Alive { session } if session == self.held => *self.lost.borrow(),
            _ => Some(Lost::Session),
        }
    }

    /// False when the lock is known to be lost.
    pub fn is_held(&self) -> bool {
        self.is_lost().is_none()
    }

    /// Returns when the lock is lost: the session has ended, or somebody took the lock away with its
    /// token.
    pub async fn lost(&self) -> Lost {
        let mut lost = self.lost.clone();
        let told = async {
            match lost.wait_for(Option::is_some).await {
                Ok(why) => why.unwrap_or(Lost::Taken),
                // Its task has ended with the runtime.
                Err(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = ended(self.session.subscribe(), self.held) => Lost::Session,
            why = told => why,
        }
    }

    /// Changes what others see of the holder.
    pub async fn update(&self, value: impl Into<String>) -> Result<v1::UpdateLockResponse, Error> {
        let v1::AcquireLockRequest { namespace, lock, holder, .. } = self.request.clone();
        let request = v1::UpdateLockRequest {
            namespace,
            lock,
            session: self.held,
            holder,
            value: value.into(),
            request_id: None,
        };
        self.client.update_lock(request, Some(&self.session)).await
    }

    /// Releases the lock. False when it was lost before. After an error it is tried on in the
    /// background.
    pub async fn release(mut self) -> Result<bool, Error> {
        let answer = self.client.release_lock(self.release_request(), Some(&self.session)).await;
        match answer {
            Ok(answer) => {
                self.released = true;
                Ok(answer.released)
            }
            Err(Error::SessionExpired { .. }) => {
                self.released = true;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// By the token, which nobody else ever has: a late copy takes the lock from nobody else.
    fn release_request(&self) -> v1::ReleaseLockRequest {
        let v1::LockName { namespace, lock } = self.name();
        v1::ReleaseLockRequest { namespace, lock, token: self.token, ..Default::default() }
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.released || !self.is_held() {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (client, session) = (self.client.clone(), self.session.clone());
        let (held, request) = (self.held, self.release_request());
        runtime.spawn(async move { release(&client, &session, held, request).await });
    }
}
