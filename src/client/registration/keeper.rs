//! The task of a registration: brings the cluster to what is desired, and keeps it there.
//!
//! It does one thing after the other, and what it was doing may be dropped at any point, which is how a registration
//! ends: only of the registration itself it must be known then what became of it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{RegistrationState, Shared, is_final};
use crate::client::connection::settle;
use crate::client::remote::lock;
use crate::client::session::{Session, SessionOptions, SessionState, Ticket};
use crate::client::txn::Txn;
use crate::error::Error;
use crate::limits;
use crate::proto::v1::found_record::Record as Found;
use crate::proto::v1::txn_result::Result as Step;
use crate::proto::v1::{self, Consistency};

pub struct Keeper {
    shared: Arc<Shared>,
    name: v1::InstanceName,
    session: Option<Session>,
    /// The session is not the caller's.
    own: bool,
    session_ttl: Duration,
    health: Option<watch::Receiver<v1::Health>>,
    /// The last one that was said.
    measured: Option<v1::Health>,
    /// The record as it was last seen; None = there was none. What is written to it says so.
    known: Option<v1::Instance>,
    /// The last session with which anything was written; 0 = nothing was.
    writer: u64,
    /// Whether the instance is registered with `writer`.
    registered: bool,
    created: bool,
    asked: Option<Asked>,
    check_at: Instant,
    /// Failures in a row.
    attempt: u32,
}

/// A registration from before it is sent until it is known what became of it, under one id: while it may come
/// later it must not be taken for one that did not take place.
struct Asked {
    /// Dropped, the cluster may forget what it answered.
    _ticket: Ticket,
    request: v1::TxnRequest,
    instance: v1::Instance,
    /// What was said last of what is in it.
    said: u64,
    sent: bool,
}

const UNHEARD: &str = "no node has answered for longer than its session lives";

impl Shared {
    fn lost(&self, name: &v1::InstanceName, why: impl std::fmt::Display) {
        self.status.send_if_modified(|status| {
            let held = matches!(status.state, RegistrationState::Registered { .. });
            if held {
                let v1::InstanceName { service, id, .. } = name;
                tracing::warn!(service, id, %why, "registration lost; registering again");
                status.state = RegistrationState::Lost;
            }
            held
        });
    }
}

/// Tells how the registration ended, also when its task panics.
struct Ending(Arc<Shared>);

impl Ending {
    fn tell(&self, ended: Result<u64, Error>) {
        let first = |known: &mut Option<Result<u64, Error>>| {
            let first = known.is_none();
            known.get_or_insert(ended);
            first
        };
        self.0.status.send_modify(|status| status.state = RegistrationState::Closed);
        self.0.ended.send_if_modified(first);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.tell(Err(Error::internal("the task of a registration was ended")));
    }
}

/// Keeps the instance registered until nobody holds the registration, then deregisters it.
pub async fn keep(mut keeper: Keeper) {
    let ending = Ending(keeper.shared.clone());
    let mut closing = keeper.shared.closing.subscribe();
    tokio::select! {
        biased;
        _ = closing.wait_for(|closing| *closing) => {}
        () = keeper.run() => {}
    }
    let ended = keeper.end().await;
    if let Err(error) = &ended {
        let v1::InstanceName { service, id, .. } = &keeper.name;
        tracing::warn!(service, id, %error, "instance not deregistered; it ends with its session");
    }
    ending.tell(ended);
}

impl Keeper {
    pub fn new(
        shared: Arc<Shared>,
        session: Option<Session>,
        session_ttl: Duration,
        health: Option<watch::Receiver<v1::Health>>,
    ) -> Keeper {
        let name = {
            let desired = lock(&shared.desired);
            let v1::Instance { namespace, service, id, .. } = desired.instance();
            crate::client::txn::instance(namespace, service, id)
        };
        Keeper {
            shared,
            name,
            own: session.is_none(),
            session,
            session_ttl,
            health,
            measured: None,
            known: None,
            writer: 0,
            registered: false,
            created: false,
            asked: None,
            check_at: Instant::now(),
            attempt: 0,
        }
    }

    /// Returns when the session that was given is closed.
    async fn run(&mut self) {
        while let Some((session, id)) = self.alive().await {
            let (shared, name) = (self.shared.clone(), self.name.clone());
            let (mut states, mut overdue) = (session.subscribe(), session.overdue());
            let alive = SessionState::Alive { session: id };
            // A call may wait for the cluster for long: what becomes of the session is heard meanwhile.
            let done = tokio::select! {
                biased;
                done = self.turn(&session, id) => done,
                // Whatever is under way comes too late.
                _ = states.wait_for(|state| *state != alive) => Ok(()),
                () = async {
                    let _ = overdue.wait_for(|overdue| *overdue).await;
                    shared.lost(&name, UNHEARD);
                    std::future::pending().await
                } => Ok(()),
            };
            match done {
                Ok(()) => self.attempt = 0,
                Err(error) => {
                    session.note(&error);
                    self.failed(error).await;
                }
            }
        }
    }

    /// A session that is alive, as far as is known; None when it was closed.
    async fn alive(&mut self) -> Option<(Session, u64)> {
        loop {
            let session = match &self.session {
                Some(session) => session.clone(),
                None => {
                    let options = SessionOptions {
                        ttl: self.session_ttl,
                        client: Some(self.session_name()),
                        reopen: true,
                    };
                    match self.shared.client.patient_session(options).await {
                        Ok(session) => self.session.insert(session).clone(),
                        Err(error) => {
                            self.failed(error).await;
                            continue;
                        }
                    }
                }
            };
            let mut states = session.subscribe();
            match *states.borrow_and_update() {
                SessionState::Alive { session: id } => return Some((session.clone(), id)),
                SessionState::Closed => return None,
                SessionState::Expired { session: id } => {
                    self.shared.lost(&self.name, Error::SessionExpired { session: id });
                }
            }
            // Its sender lives as long as `session`.
            let _ = states.changed().await;
        }
    }

    /// For people.
    fn session_name(&self) -> String {
        let v1::InstanceName { service, id, .. } = &self.name;
        let mut name = format!("{} {service}/{id}", self.shared.client.options().client_name);
        name.truncate(name.floor_char_boundary(limits::TEXT_BYTES));
        name
    }

    /// One thing that is due; when nothing is, waits until something may be.
    async fn turn(&mut self, session: &Session, id: u64) -> Result<(), Error> {
        self.follow_health();
        if self.writer != id {
            if self.writer != 0 && !self.own {
                // Its holder gave it up by itself: the cluster may take writes of it for as long as it
                // does not know.
                self.shared.client.close_session(self.writer).await?;
            }
            self.registered = false;
            self.writer = id;
        }
        if !self.registered {
            return self.register(session).await;
        }
        let patch = lock(&self.shared.desired).patch();
        match patch {
            Some((request, said)) => self.update(session, request, said).await,
            None => {
                self.wait(session).await;
                Ok(())
            }
        }
    }

    /// Registers what is desired, unless somebody else changes the record again and again.
    async fn register(&mut self, session: &Session) -> Result<(), Error> {
        for _ in 0..limits::REGISTRATION_CONFLICTS {
            if self.ask(session).await? {
                return Ok(());
            }
        }
        Err(self.conflict())
    }

    /// Registers what is desired, or asks on about the registration of which nobody knows what became. False =
    /// somebody else has changed the record.
    async fn ask(&mut self, session: &Session) -> Result<bool, Error> {
        let mut asked = match self.asked.take() {
            Some(asked) if asked.instance.session == self.writer => asked,
            Some(_) | None => self.asking(session).await?,
        };
        let uncertain = std::mem::replace(&mut asked.sent, true);
        let request = asked.request.clone();
        self.asked = Some(asked);
        let answer = self.shared.client.txn(request, Some(session)).await;
        let answer = answer.map_err(|error| match error {
            // Every copy of it is refused alike.
            Error::Invalid { .. } => error,
            error => settle(error, uncertain, true),
        });
        if let Err(error) = &answer
            && !error.definite()
        {
            return Err(error.clone());
        }
        let Some(Asked { instance, said, .. }) = self.asked.take() else {
            unreachable!("what was sent is kept")
        };
        // There is one step, here as in all transactions of a registration.
        let answer = answer.map_err(Error::without_step)?;
        let Some(done) = registered(&answer) else {
            self.known = found(answer);
            return Ok(false);
        };
        lock(&self.shared.desired).was_registered(&instance, said);
        let v1::Instance { service, id, .. } = &instance;
        tracing::debug!(service, id, revision = done.mod_revision, "registered");
        self.known = Some(v1::Instance { mod_revision: done.mod_revision, ..instance });
        (self.registered, self.created) = (true, done.created);
        self.check_later();
        self.shared.acknowledged.send_replace(said);
        self.tell();
        Ok(true)
    }

    async fn asking(&self, session: &Session) -> Result<Asked, Error> {
        let ticket = session.next_request_id().await?;
        let first = self.shared.status.borrow().state == RegistrationState::Pending;
        let (instance, said) = lock(&self.shared.desired).registration(self.known.as_ref(), first);
        let instance = v1::Instance { session: self.writer, ..instance };
        let request = Txn::new()
            .when(self.name.mod_revision().is(self.revision()))
            .then(instance.clone())
            .or_else(self.name.get());
        let request = v1::TxnRequest { request_id: Some(ticket.request_id()), ..request.into() };
        Ok(Asked { _ticket: ticket, request, instance, said, sent: false })
    }

    /// Writes the fields that have changed. Where somebody else was quicker looks what became of it first.
    async fn update(
        &mut self,
        session: &Session,
        mut request: v1::UpdateInstanceRequest,
        said: u64,
    ) -> Result<(), Error> {
        request.expected_mod_revision = self.revision();
        match self.shared.client.update_instance(request, Some(session)).await {
            Ok(answer) => {
                lock(&self.shared.desired).acknowledge(said);
                self.see(answer.instance);
                self.shared.acknowledged.send_replace(said);
                self.tell();
                Ok(())
            }
            Err(Error::CompareFailed { .. } | Error::NotFound { .. }) => {
                self.look(Consistency::Linearizable).await?;
                if self.registered && lock(&self.shared.desired).patch().is_none() {
                    // It is disabled, and need not be drained.
                    self.shared.acknowledged.send_replace(said);
                }
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Returns when something may be due.
    async fn wait(&mut self, session: &Session) {
        let mut overdue = session.overdue();
        if !*overdue.borrow_and_update() {
            self.tell();
        }
        tokio::select! {
            () = self.shared.more.notified() => {}
            // Its sender lives as long as `session`.
            _ = overdue.changed() => self.check_at = Instant::now(),
            () = changed(&mut self.health) => {}
            () = sleep_until(self.check_at) => {
                self.check_later();
                if let Err(error) = self.look(Consistency::Stale).await {
                    tracing::debug!(%error, "not known whether the instance is registered");
                }
            }
        }
    }

    /// Looks whether the record is as it was left. What one node has is enough as long as it knows
    /// what was known here, and as long as it has a record.
    async fn look(&mut self, consistency: Consistency) -> Result<(), Error> {
        let v1::InstanceName { namespace, service, id } = self.name.clone();
        let mut request = v1::GetInstanceRequest { namespace, service, id, consistency: 0 };
        request.set_consistency(consistency);
        let answer = match self.shared.client.get_instance(request.clone()).await {
            Err(Error::NotFound { .. }) if consistency == Consistency::Stale => {
                request.set_consistency(Consistency::Linearizable);
                self.shared.client.get_instance(request).await
            }
            answer => answer,
        };
        match answer {
            Ok(answer) => {
                let revision = answer.header.map_or(0, |header| header.revision);
                if revision >= self.revision() {
                    self.see(answer.instance);
                }
                Ok(())
            }
            Err(Error::NotFound { .. }) => {
                self.see(None);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Takes note of the record as it is.
    fn see(&mut self, record: Option<v1::Instance>) {
        match &record {
            Some(record) if record.session == self.writer => {
                lock(&self.shared.desired).see(record);
            }
            Some(record) => {
                self.registered = false;
                self.shared.lost(&self.name, Error::OwnedByAnother { owner: record.session });
            }
            None => {
                self.registered = false;
                self.shared.lost(&self.name, "it was deregistered");
            }
        }
        self.known = record;
    }

    /// Says the health that is measured now, unless it was said before.
    fn follow_health(&mut self) {
        let Some(health) = &self.health else { return };
        let measured = *health.borrow();
        if health.has_changed().is_err() {
            // Nobody measures it any more; this was the last one.
            self.health = None;
        }
        if self.measured.replace(measured) == Some(measured) {
            return;
        }
        if let Err(error) = lock(&self.shared.desired).set_health(measured, String::new()) {
            tracing::warn!(%error, "a health that cannot be told");
        }
    }

    fn revision(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.mod_revision)
    }

    /// Between half an interval and a whole one, so that many do not look at the same time.
    fn check_later(&mut self) {
        let interval = limits::REGISTRATION_CHECK.as_nanos() as u64;
        let pause = interval / 2 + self.shared.client.random() % (interval / 2);
        self.check_at = Instant::now() + Duration::from_nanos(pause);
    }

    fn conflict(&self) -> Error {
        let what = format!("instance {}", self.name.id);
        Error::Conflict { attempts: limits::REGISTRATION_CONFLICTS, what }
    }

    // ---- what the holder is told ----

    /// That the instance is registered, and nothing is wrong.
    fn tell(&self) {
        let state = RegistrationState::Registered {
            session: self.writer,
            revision: self.revision(),
            created: self.created,
        };
        self.shared.status.send_if_modified(|status| {
            let news = status.state != state || status.error.is_some();
            status.state = state;
            status.error = None;
            news
        });
    }

    /// Says so, and pauses.
    async fn failed(&mut self, error: Error) {
        let v1::InstanceName { service, id, .. } = &self.name;
        tracing::debug!(service, id, %error, "not registered as desired; trying on");
        let overdue = self.session.as_ref().is_some_and(|session| *session.overdue().borrow());
        if overdue {
            self.shared.lost(&self.name, UNHEARD);
        }
        let stuck = is_final(&error);
        self.shared.status.send_if_modified(|status| {
            let news = status.error.as_ref() != Some(&error);
            status.error = Some(error);
            news
        });
        let pause = match stuck {
            true => limits::REGISTRATION_CHECK,
            false => limits::FOLLOW_AGAIN.min(self.shared.client.backoff(self.attempt) * 4),
        };
        self.attempt += 1;
        tokio::select! {
            () = sleep(pause) => {}
            // What was said may be the remedy.
            () = self.shared.more.notified(), if stuck => {}
        }
    }

    // ---- the end ----

    /// Deregisters the instance. Returns the revision at which it was certainly gone; 0 = nothing was
    /// ever written.
    async fn end(&mut self) -> Result<u64, Error> {
        let Some(session) = self.session.take() else { return Ok(0) };
        if self.own {
            let id = session.id();
            let answer = session.close().await?;
            if self.writer == 0 || (answer.closed && self.writer == id) {
                return Ok(answer.header.map_or(0, |header| header.revision));
            }
            // It had expired, and what it registered is an orphan.
            return self.remove(None).await;
        }
        if self.writer == 0 {
            return Ok(0);
        }
        let alive = SessionState::Alive { session: self.writer };
        if session.state() == alive {
            let patience = self.shared.client.timeout();
            let heard = timeout(patience, self.hear_of_last(&session)).await;
            if heard.map_err(|_| Error::Timeout { definite: false })? {
                return self.remove(Some(&session)).await;
            }
        }
        self.shared.client.close_session(self.writer).await?;
        self.remove(None).await
    }

    /// Finds out what became of a registration that was not answered: while the session lives it could come after the
    /// record was removed. False = the session has ended.
    async fn hear_of_last(&mut self, session: &Session) -> bool {
        let mut attempt = 0;
        while self.asked.as_ref().is_some_and(|asked| asked.instance.session == self.writer) {
            match self.ask(session).await {
                Err(Error::SessionExpired { .. }) => return false,
                Err(_) if self.asked.is_some() => {
                    sleep(self.shared.client.backoff(attempt)).await;
                    attempt += 1;
                }
                Ok(_) | Err(_) => {}
            }
        }
        true
    }

    /// Removes the record if it is this registration's. A session must be one of which nothing is on its way; without one
    /// that session must be gone.
    async fn remove(&mut self, session: Option<&Session>) -> Result<u64, Error> {
        let client = self.shared.client.clone();
        for attempt in 0..limits::REGISTRATION_CONFLICTS {
            let when = match &self.known {
                Some(known) if known.session == self.writer => {
                    self.name.mod_revision().is(known.mod_revision)
                }
                // Somebody else's stays.
                Some(_) | None => self.name.is_missing(),
            };
            let request =
                Txn::new().when(when).then(self.name.deregister()).or_else(self.name.get());
            let answer = match request.commit(&client, session).await {
                Ok(answer) => answer,
                // Sent twice it does no harm: the record would have another revision.
                Err(error) if error.retryable() && session.is_none() => {
                    sleep(client.backoff(attempt)).await;
                    continue;
                }
                Err(error) => return Err(error.without_step()),
            };
            let revision = answer.header.map_or(0, |header| header.revision);
            if answer.succeeded {
                return Ok(revision);
            }
            self.known = found(answer);
            if self.known.as_ref().is_none_or(|known| known.session != self.writer) {
                return Ok(revision);
            }
        }
        Err(self.conflict())
    }
}

/// Returns when the health has changed or nobody measures it any more.
async fn changed(health: &mut Option<watch::Receiver<v1::Health>>) {
    match health {
        Some(health) => drop(health.changed().await),
        None => std::future::pending().await,
    }
}

fn registered(answer: &v1::TxnResponse) -> Option<v1::RegisterResponse> {
    match &answer.results.first()?.result {
        Some(Step::Register(registered)) => Some(*registered),
        _ => None,
    }
}

fn found(answer: v1::TxnResponse) -> Option<v1::Instance> {
    match answer.results.into_iter().next()?.result {
        Some(Step::Get(v1::FoundRecord { record: Some(Found::Instance(instance)) })) => {
            Some(instance)
        }
        _ => None,
    }
}
