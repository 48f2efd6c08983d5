//! Elections: a lock whose holder, the leader, tells everybody a value, for instance its address.

use std::collections::BTreeMap;

use futures::{Stream, stream};
use tokio::time::sleep;

use super::connection::Client;
use super::lock::{Lock, LockGuard, Lost};
use super::session::Session;
use super::watch::{Watch, WatchUpdate};
use crate::error::Error;
use crate::proto::v1;
use crate::proto::v1::watch_event::Record;

/// An election by its name; the records are those of the lock of that name.
///
/// ```no_run
/// # use quorate::client::{Client, Session};
/// # async fn example(client: Client, session: Session) -> Result<(), quorate::error::Error> {
/// let leadership = client.election("default", "scheduler").campaign(&session, "10.0.0.7:80").await?;
/// tokio::select! {
///     why = leadership.lost() => println!("leads no more: {why}"),
///     () = async { /* the work of a leader, with leadership.token() */ } => {}
/// }
/// leadership.resign().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Election {
    lock: Lock,
}

/// Who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leader {
    /// What it told everybody.
    pub value: String,
    /// Greater than that of every leader before it.
    pub token: u64,
    pub session: u64,
    pub holder: String,
}

/// To lead, as far as is known; dropped, it resigns in the background. What the leader does should carry
/// the token, as with a [`LockGuard`].
#[derive(Debug)]
pub struct Leadership {
    guard: LockGuard,
}

impl Client {
    /// An election; an empty namespace is "default".
    pub fn election(&self, namespace: impl Into<String>, name: impl Into<String>) -> Election {
        Election { lock: self.lock(namespace, name) }
    }
}

impl Election {
    /// How long to campaign; otherwise as long as the session lives.
    pub fn timeout(mut self, timeout: std::time::Duration) -> Election {
        self.lock = self.lock.timeout(timeout);
        self
    }

    /// Waits to be elected, in the order in which everybody asked; see [`Lock::acquire`].
    pub async fn campaign(
        &self,
        session: &Session,
        value: impl Into<String>,
    ) -> Result<Leadership, Error> {
        let guard = self.lock.acquire_valued(session, value.into()).await?;
        Ok(Leadership { guard })
    }

    /// Who leads now; None = nobody.
    pub async fn leader(&self) -> Result<Option<Leader>, Error> {
        Ok(self.lock.line().await?.iter().find_map(Leader::of))
    }

    /// Who leads now, or None while nobody does, and then every change of it, once. Ends with an
    /// error that will not pass.
    pub fn observe(&self) -> impl Stream<Item = Result<Option<Leader>, Error>> + Send + use<> {
        let watch = self.lock.client().watch(self.lock.range());
        let observer = Observer {
            lock: self.lock.clone(),
            watch,
            line: BTreeMap::new(),
            told: None,
            failed: 0,
        };
        stream::unfold(Some(observer), |observer| async move {
            let mut observer = observer?;
            match observer.next().await {
                Ok(leader) => Some((Ok(leader), Some(observer))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

impl Leader {
    fn of(request: &v1::LockRequest) -> Option<Leader> {
        (request.token != 0).then(|| Leader {
            value: request.value.clone(),
            token: request.token,
            session: request.session,
            holder: request.holder.clone(),
        })
    }
}

/// Invariant: `line` holds the requests of the lock up to the watch's revision.
struct Observer {
    lock: Lock,
    watch: Watch,
    /// By ticket, which is all that a watch says of a request that has gone.
    line: BTreeMap<u64, v1::LockRequest>,
    /// None = nothing was told so far.
    told: Option<Option<Leader>>,
    failed: u32,
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Leader>, Error> {
        loop {
            let events = match self.watch.next().await {
                Some(Ok(WatchUpdate::Snapshot { events, .. })) => {
                    self.line.clear();
                    events
                }
                Some(Ok(WatchUpdate::Changes { events, .. })) => events,
                Some(Ok(WatchUpdate::Bookmark { .. })) => continue,
                Some(Err(error @ Error::Invalid { .. })) => return Err(error),
                Some(Err(_)) | None => {
                    sleep(self.lock.client().backoff(self.failed)).await;
                    self.failed += 1;
                    self.watch = self.lock.client().watch(self.lock.range());
                    continue;
                }
            };
            self.failed = 0;
            for event in events {
                let Some(Record::Lock(request)) = event.record else { continue };
                match event.deleted {
                    true => self.line.remove(&request.ticket),
                    false => self.line.insert(request.ticket, request),
                };
            }
            let leader = self.line.values().find_map(Leader::of);
            if self.told.as_ref() != Some(&leader) {
                self.told = Some(leader.clone());
                return Ok(leader);
            }
        }
    }
}

impl Leadership {
    /// The fencing token.
    pub fn token(&self) -> u64 {
        self.guard.token()
    }

    /// Tells everybody another value.
    pub async fn proclaim(&self, value: impl Into<String>) -> Result<(), Error> {
        self.guard.update(value).await.map(drop)
    }

    /// Holds in a transaction as long as this leadership lasts, see [`LockGuard::condition`].
    pub fn condition(&self) -> v1::Compare {
        self.guard.condition()
    }

    /// False when it is known to have ended.
    pub fn is_held(&self) -> bool {
        self.guard.is_held()
    }

    /// Returns when it has ended.
    pub async fn lost(&self) -> Lost {
        self.guard.lost().await
    }

    /// Lets the next one lead. False when it had ended before.
    pub async fn resign(self) -> Result<bool, Error> {
        self.guard.release().await
    }
}
