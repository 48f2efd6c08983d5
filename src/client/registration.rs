//! A registration that lasts: one instance that is registered for as long as the program holds it.
//!
//! A [`Registration`] keeps what the program wants its instance to be, and one task that brings the
//! cluster to it: it opens a session, registers, writes what changes, and registers again what is wanted
//! then, not what was wanted first, when the instance is gone. Three ways lead there: its session
//! expired, somebody closed the session, or somebody deregistered the instance. The last is taken for a
//! mistake, as Consul's agents take it: the program runs and says that it serves. Who wants an instance
//! out of discovery disables it (`quorate service maint --disable`), which is kept.
//!
//! Invariants:
//! - while the registration is held and a quorum can be reached, the instance is registered: it is looked
//!   for every [`limits::REGISTRATION_CHECK`], and after whatever else tells that it may be gone;
//! - after [`Registration::shutdown`] has returned Ok it is not;
//! - its instance is never held by two sessions, and nothing of an earlier session comes after what a
//!   later one wrote. Its own session is given up only when the cluster says that it is gone, and from then
//!   on the cluster refuses whatever was sent with it; one that it shares is closed, and the answer is
//!   awaited. Writes of one session are sent one after the other, each with its exactly-once id, which
//!   makes the cluster refuse late copies of those before it. Each write says at which revision it takes
//!   the record to be, so that none is blind to what others did meanwhile;
//! - at most one task and, without a session of the caller's, one session with its own task exist for it.
//!
//! Whose word counts, field by field:
//! - health and metadata are the program's. A change by somebody else, such as a checker from outside,
//!   stays until the program says something else or the instance is registered again;
//! - weight and admin are whoever's spoke last: a change by an operator is taken over, kept by what the
//!   program says of other fields, and registered again. What nobody has seen before the instance
//!   went, less than a check's interval ago, is lost with it;
//! - `disabled` is maintenance, which the program never ends: it stays when the program drains, and when
//!   a process that is started anew finds its instance disabled.

mod desired;
mod keeper;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::connection::Client;
use super::remote::{lock, spawn};
use super::session::Session;
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use desired::Desired;

/// What is registered, and by which session.
#[derive(Debug, Clone)]
pub struct RegistrationOptions {
    /// Its session and what only the cluster says are ignored. Health and admin may be left open: passing
    /// and enabled.
    pub instance: v1::Instance,
    /// One that opens again when it is lost, and that other registrations may share; None = one of the
    /// registration's own.
    pub session: Option<Session>,
    /// TTL of the registration's own session: how long the instance is taken for alive after its
    /// process has died.
    pub session_ttl: Duration,
    /// The health from now on, as somebody measures it. While nobody does, because its sender is gone, the
    /// last one stays.
    pub health: Option<watch::Receiver<v1::Health>>,
}

impl RegistrationOptions {
    pub fn new(instance: v1::Instance) -> RegistrationOptions {
        RegistrationOptions {
            instance,
            session: None,
            session_ttl: Duration::from_millis(limits::DEFAULT_SESSION_TTL_MS),
            health: None,
        }
    }

    pub fn session(mut self, session: Session) -> Self {
        self.session = Some(session);
        self
    }

    pub fn session_ttl(mut self, ttl: Duration) -> Self {
        self.session_ttl = ttl;
        self
    }

    pub fn health(mut self, health: watch::Receiver<v1::Health>) -> Self {
        self.health = Some(health);
        self
    }
}

/// Whether the instance is registered, as far as is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RegistrationState {
    /// It has not been so far.
    #[default]
    Pending,
    Registered {
        session: u64,
        /// At which the instance was last changed, by whomever.
        revision: u64,
        /// False when there was such an instance, for instance one that an earlier session had left.
        created: bool,
    },
    /// It was, and will be again: nothing is known of it for longer than its session lives, or it is
    /// gone.
    Lost,
    /// For good.
    Closed,
}

/// How far a registration is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RegistrationStatus {
    pub state: RegistrationState,
    /// Why the instance is not registered, or not as it is wanted; it is tried on. With
    /// [`Error::OwnedByAnother`] a live session has an instance of this name, which is that of the
    /// process before this one when it died less than its TTL ago.
    pub error: Option<Error>,
}

/// An instance that stays registered, see [the module](self). Clones are the same registration. When the
/// last one is dropped the instance is deregistered in the background, as far as the runtime still runs
/// and the cluster can be reached; [`Registration::shutdown`] says whether it was.
#[derive(Clone)]
pub struct Registration {
    handle: Arc<Handle>,
}

/// Exists as long as somebody holds the registration; its task holds only `Shared`.
struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    desired: Mutex<Desired>,
    /// Something was said of what is desired.
    more: Notify,
    /// Number of the last thing said that the cluster has acknowledged, with all before it.
    acknowledged: watch::Sender<u64>,
    status: watch::Sender<RegistrationStatus>,
    closing: watch::Sender<bool>,
    /// How it ended: the revision at which the instance was certainly gone.
    ended: watch::Sender<Option<Result<u64, Error>>>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.closing.send_replace(true);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("status", &self.status())
            .field("instance", &self.instance())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Registers an instance for as long as the registration is held. Does not wait for the cluster, see
    /// [`Registration::registered`].
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use quorate::client::{Client, Options, RegistrationOptions};
    /// use quorate::proto::v1;
    ///
    /// # async fn example() -> Result<(), quorate::error::Error> {
    /// let client = Client::connect(Options::new(["10.0.0.1:7650", "10.0.0.2:7650"]))?;
    /// let registration = client.registration(RegistrationOptions::new(v1::Instance {
    ///     service: "orders".into(),
    ///     id: "orders-1".into(),
    ///     endpoints: vec![v1::Endpoint { name: "grpc".into(), host: "10.0.1.7".into(), port: 8080 }],
    ///     ..Default::default()
    /// }))?;
    /// registration.registered().await?;
    /// registration.set_health(v1::Health::Warning, "the queue is long")?;
    /// // Until SIGTERM or Ctrl-C; then clients have half a second to turn to others.
    /// registration.run_until_terminated(Duration::from_millis(500)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn registration(&self, options: RegistrationOptions) -> Result<Registration, Error> {
        let RegistrationOptions { instance, session, session_ttl, health } = options;
        if session.as_ref().is_some_and(|session| !session.reopens()) {
            // Lost once, it would leave the instance unregistered for good.
            return Err(Error::invalid("session", "reopen: false", "a session with reopen: true"));
        }
        let shared = Arc::new(Shared {
            client: self.clone(),
            desired: Mutex::new(Desired::new(instance)?),
            more: Notify::new(),
            acknowledged: watch::Sender::new(0),
            status: watch::Sender::default(),
            closing: watch::Sender::new(false),
            ended: watch::Sender::new(None),
        });
        spawn(keeper::keep(keeper::Keeper::new(shared.clone(), session, session_ttl, health)));
        Ok(Registration { handle: Arc::new(Handle { shared }) })
    }
}

impl Registration {
    pub fn status(&self) -> RegistrationStatus {
        self.shared().status.borrow().clone()
    }

    /// Follows the status. The present one counts as seen.
    pub fn subscribe(&self) -> watch::Receiver<RegistrationStatus> {
        self.shared().status.subscribe()
    }

    /// What is wanted of the instance now; its session is not told here.
    pub fn instance(&self) -> v1::Instance {
        lock(&self.shared().desired).instance().clone()
    }

    /// Returns when the instance is registered, or with an error that will not pass by itself, such as a
    /// name that is not allowed. Waits for the cluster, and for the end of another session that has
    /// the instance, for as long as it takes.
    pub async fn registered(&self) -> Result<(), Error> {
        let known = |status: &RegistrationStatus| match status.state {
            RegistrationState::Registered { .. } | RegistrationState::Closed => true,
            RegistrationState::Pending | RegistrationState::Lost => status.is_stuck(),
        };
        let mut status = self.subscribe();
        let status = status.wait_for(known).await.map_err(Error::internal)?;
        match (status.state, &status.error) {
            (RegistrationState::Registered { .. }, _) => Ok(()),
            (RegistrationState::Closed, _) => Err(closed()),
            (_, Some(error)) => Err(error.clone()),
            (_, None) => Err(Error::internal("a registration is stuck without an error")),
        }
    }

    /// Says how the instance is; the reason is for people. The cluster is told in the background, the last
    /// word first, see [`Registration::settled`]; saying the same again tells it nothing.
    pub fn set_health(&self, health: v1::Health, reason: impl Into<String>) -> Result<(), Error> {
        self.say(|desired| desired.set_health(health, reason.into()))
    }

    /// Its share of the load relative to its siblings, see [`v1::Instance::weight`].
    pub fn set_weight(&self, weight: u32) -> Result<(), Error> {
        self.say(|desired| desired.set_weight(weight))
    }

    /// Replaces all of it.
    pub fn set_metadata(&self, metadata: BTreeMap<String, String>) -> Result<(), Error> {
        self.say(|desired| desired.set_metadata(metadata))
    }

    /// Asks for no new calls, and returns when the cluster has acknowledged it: whoever reads from then
    /// on sees it, and who watches does within milliseconds. An instance that is disabled stays so.
    pub async fn drain(&self) -> Result<(), Error> {
        self.say(Desired::drain)?;
        self.settled().await
    }

    /// Returns when the cluster has acknowledged all that was said so far, or with an error that will not
    /// pass by itself. Waits for the cluster for as long as it takes.
    pub async fn settled(&self) -> Result<(), Error> {
        let said = lock(&self.shared().desired).said();
        let mut acknowledged = self.shared().acknowledged.subscribe();
        let mut status = self.subscribe();
        let ends = |status: &RegistrationStatus| {
            status.is_stuck() || status.state == RegistrationState::Closed
        };
        tokio::select! {
            biased;
            done = acknowledged.wait_for(|number| *number >= said) => {
                done.map(drop).map_err(Error::internal)
            }
            stuck = status.wait_for(ends) => {
                let status = stuck.map_err(Error::internal)?;
                Err(status.error.clone().unwrap_or_else(closed))
            }
        }
    }

    /// Drains, waits for the grace, in which clients learn of it and finish their calls, deregisters and
    /// closes the session if it is the registration's own. Without a grace, or while the instance is not
    /// registered, it deregisters at once. Returns the revision at which the instance was gone. An error
    /// says that nobody knows: it turns critical when its session ends, and goes after its service's
    /// `deregister_after`.
    pub async fn shutdown(&self, grace: Duration) -> Result<u64, Error> {
        let shared = self.shared();
        let registered = matches!(self.status().state, RegistrationState::Registered { .. });
        if registered && !grace.is_zero() {
            match timeout(shared.client.timeout(), self.drain()).await {
                Ok(Ok(())) => sleep(grace).await,
                Ok(Err(error)) => tracing::debug!(%error, "not drained before it deregisters"),
                Err(_) => tracing::debug!("not drained in time before it deregisters"),
            }
        }
        shared.closing.send_replace(true);
        let mut ended = shared.ended.subscribe();
        let ended = ended.wait_for(Option::is_some).await.map_err(Error::internal)?;
        ended.clone().unwrap_or_else(|| Err(closed()))
    }

    /// Holds the registration until `signal` comes, then [shuts it down](Registration::shutdown).
    pub async fn run_until(
        &self,
        signal: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<u64, Error> {
        signal.await;
        self.shutdown(grace).await
    }

    /// [Until](Registration::run_until) the process is told to end, by SIGTERM (where there is one) or
    /// Ctrl-C. Installs handlers for these, so that they end the process by themselves no more, not even
    /// after this has returned.
    pub async fn run_until_terminated(&self, grace: Duration) -> Result<u64, Error> {
        let signal = terminated().map_err(Error::internal)?;
        self.run_until(signal, grace).await
    }

    fn shared(&self) -> &Shared {
        &self.handle.shared
    }

    fn say(&self, change: impl FnOnce(&mut Desired) -> Result<bool, Error>) -> Result<(), Error> {
        if change(&mut lock(&self.shared().desired))? {
            // It may be the remedy.
            self.shared().status.send_if_modified(|status| {
                let stuck = status.is_stuck();
                if stuck {
                    status.error = None;
                }
                stuck
            });
            self.shared().more.notify_one();
        }
        Ok(())
    }
}

impl RegistrationStatus {
    /// Trying on does not help by itself.
    fn is_stuck(&self) -> bool {
        self.error.as_ref().is_some_and(is_final)
    }
}

fn is_final(error: &Error) -> bool {
    matches!(error, Error::Invalid { .. } | Error::NotFound { .. } | Error::LimitReached { .. })
}

fn closed() -> Error {
    Error::invalid("registration", "closed", "one that is held")
}

#[cfg(unix)]
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

#[cfg(not(unix))]
fn terminated() -> std::io::Result<impl Future<Output = ()>> {
    Ok(async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "Ctrl-C cannot be heard");
            std::future::pending::<()>().await;
        }
    })
}
