//! Registrations against a node that keeps one instance, and of whose sessions a test decides.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::fake::Node;
use super::*;
use crate::client::{
    Answer, Call, Registration, RegistrationOptions, RegistrationState, RegistrationStatus,
    SessionOptions,
};
use crate::error::Error;
use crate::proto::v1::compare::To;
use crate::proto::v1::found_record::Record as Found;
use crate::proto::v1::txn_result::Result as Done;
use crate::proto::v1::txn_step::Step;

/// What the cluster knows: its sessions, and the one instance with which it is asked.
struct Model {
    revision: u64,
    opened: u64,
    sessions: BTreeSet<u64>,
    ttl: Duration,
    instance: Option<v1::Instance>,
    /// No leader answers.
    away: bool,
    /// Why nothing is registered.
    refuses: Option<Error>,
    /// What is registered is on its way for as long as this holds, and nobody answers.
    loses: bool,
    /// Before anything is proposed.
    refuses_at_once: Option<Error>,
    on_the_way: Vec<TxnRequest>,
    /// Answers that are kept.
    answered: BTreeMap<(u64, u64), Answer>,
    /// Writes that changed something, in words.
    log: Vec<String>,
}

impl Model {
    fn next(&mut self) -> Option<Header> {
        self.revision += 1;
        self.header()
    }

    fn header(&self) -> Option<Header> {
        Some(Header { revision: self.revision, ..Default::default() })
    }

    fn alive(&self, id: &Option<RequestId>) -> Result<(), Error> {
        match id {
            Some(id) if !self.sessions.contains(&id.session) => {
                Err(Error::SessionExpired { session: id.session })
            }
            Some(_) | None => Ok(()),
        }
    }

    fn answer(&mut self, call: &Call) -> Result<Answer, Error> {
        if self.away {
            return Err(Error::NoLeader { leader: None, definite: true });
        }
        match call {
            Call::OpenSession(_) => {
                self.opened += 1;
                self.sessions.insert(self.opened);
                self.log.push(format!("open {}", self.opened));
                let ttl_ms = self.ttl.as_millis() as u64;
                let (header, session) = (self.next(), self.opened);
                Ok(Answer::OpenSession(OpenSessionResponse { header, session, ttl_ms }))
            }
            Call::KeepAlive(KeepAliveRequest { session }) => {
                if !self.sessions.contains(session) {
                    return Err(Error::SessionExpired { session: *session });
                }
                let ttl_ms = self.ttl.as_millis() as u64;
                Ok(Answer::KeepAlive(KeepAliveResponse { header: None, ttl_ms }))
            }
            Call::CloseSession(request) => {
                let closed = self.sessions.remove(&request.session);
                self.log.push(format!("close {} {closed}", request.session));
                let held = self.instance.as_ref().is_some_and(|it| it.session == request.session);
                if closed && held {
                    self.instance = None;
                }
                let header = self.next();
                let removed_instances = u64::from(closed && held);
                Ok(Answer::CloseSession(CloseSessionResponse { header, closed, removed_instances }))
            }
            Call::GetInstance(_) => match self.instance.clone() {
                Some(instance) => Ok(Answer::GetInstance(GetInstanceResponse {
                    header: self.header(),
                    instance: Some(instance),
                })),
                None => Err(absent()),
            },
            Call::UpdateInstance(request) => self.update(request),
            Call::Txn(request) if self.loses => {
                self.on_the_way.push(request.clone());
                Err(Error::Connection { message: "lost".to_owned(), definite: false })
            }
            Call::Txn(request) => match &self.refuses_at_once {
                Some(error) => Err(error.clone()),
                None => self.txn(request),
            },
            call => panic!("{call:?}"),
        }
    }

    fn update(&mut self, request: &UpdateInstanceRequest) -> Result<Answer, Error> {
        self.alive(&request.request_id)?;
        let Some(mut instance) = self.instance.clone() else { return Err(absent()) };
        let expected = request.expected_mod_revision;
        if expected != 0 && expected != instance.mod_revision {
            return Err(Error::CompareFailed { expected, current: instance.mod_revision });
        }
        let mut words = Vec::new();
        if let Some(weight) = request.weight {
            words.push(format!("weight {weight}"));
            instance.weight = Some(weight);
        }
        if request.admin() != Admin::Unspecified {
            words.push(format!("{:?}", request.admin()));
            instance.admin = request.admin;
        }
        if request.health() != Health::Unspecified {
            words.push(format!("{:?}", request.health()));
            instance.health = request.health;
        }
        if request.replace_metadata {
            words.push(format!("{:?}", request.metadata));
            instance.metadata.clone_from(&request.metadata);
        }
        instance.reason.clone_from(&request.reason);
        self.log.push(format!("update {}", words.join(", ")));
        let header = self.next();
        instance.mod_revision = self.revision;
        self.instance = Some(instance.clone());
        Ok(Answer::UpdateInstance(UpdateInstanceResponse { header, instance: Some(instance) }))
    }

    fn txn(&mut self, request: &TxnRequest) -> Result<Answer, Error> {
        self.alive(&request.request_id)?;
        if let Some(id) = request.request_id {
            self.answered.retain(|(session, sequence), _| {
                *session != id.session || *sequence >= id.lowest_unacknowledged
            });
            if let Some(known) = self.answered.get(&(id.session, id.sequence)) {
                return Ok(known.clone());
            }
        }
        let current = self.instance.as_ref().map_or(0, |it| it.mod_revision);
        let succeeded = request.when.iter().all(|compare| match compare.to {
            Some(To::ModRevision(revision)) => revision == current,
            Some(To::Exists(exists)) => exists == (current != 0),
            ref to => panic!("{to:?}"),
        });
        let steps = if succeeded { &request.then } else { &request.or_else };
        let mut results = Vec::new();
        for step in steps {
            let result = match step.step.as_ref().unwrap() {
                Step::Register(request) => self
                    .register(request)
                    .map_err(|error| Error::InStep { step: 0, error: Box::new(error) })?,
                Step::Deregister(_) => {
                    self.log.push("deregister".to_owned());
                    let (header, removed) = (self.next(), self.instance.take().is_some());
                    Done::Deregister(DeregisterResponse { header, removed })
                }
                Step::Get(_) => {
                    Done::Get(FoundRecord { record: self.instance.clone().map(Found::Instance) })
                }
                step => panic!("{step:?}"),
            };
            results.push(TxnResult { result: Some(result) });
        }
        let answer = TxnResponse { header: self.header(), succeeded, results, barrier: 0 };
        if let Some(RequestId { session, sequence, .. }) = request.request_id {
            self.answered.insert((session, sequence), Answer::Txn(answer.clone()));
        }
        Ok(Answer::Txn(answer))
    }

    fn register(&mut self, request: &RegisterRequest) -> Result<Done, Error> {
        if let Some(error) = &self.refuses {
            return Err(error.clone());
        }
        let mut instance = request.instance.clone().unwrap();
        if !self.sessions.contains(&instance.session) {
            return Err(Error::SessionExpired { session: instance.session });
        }
        if let Some(old) = &self.instance
            && old.session != instance.session
            && self.sessions.contains(&old.session)
        {
            return Err(Error::OwnedByAnother { owner: old.session });
        }
        let header = self.next();
        self.log.push(format!(
            "register {} {:?} {:?} weight {}",
            instance.session,
            instance.admin(),
            instance.health(),
            instance.weight.unwrap_or(1),
        ));
        let created = self.instance.is_none();
        instance.mod_revision = self.revision;
        instance.weight.get_or_insert(1);
        self.instance = Some(instance);
        Ok(Done::Register(RegisterResponse { header, created, mod_revision: self.revision }))
    }

    /// As the keeper does it.
    fn expire(&mut self, session: u64) {
        assert!(self.sessions.remove(&session), "session {session} lives");
        self.log.push(format!("expired {session}"));
        self.revision += 1;
        if let Some(instance) = self.instance.as_mut().filter(|it| it.session == session) {
            instance.set_health(Health::Critical);
            instance.reason = format!("session {session} expired");
            instance.mod_revision = self.revision;
        }
    }

    /// As an operator does it.
    fn change(&mut self, change: impl FnOnce(&mut v1::Instance)) {
        self.revision += 1;
        let instance = self.instance.as_mut().expect("an instance");
        change(instance);
        instance.mod_revision = self.revision;
    }

    fn held_by(&self) -> Option<u64> {
        self.instance.as_ref().map(|instance| instance.session)
    }
}

fn absent() -> Error {
    Error::NotFound { kind: "instance".into(), name: "default/s/a".into() }
}

struct Fixture {
    node: Node,
    model: Arc<Mutex<Model>>,
    client: Client,
}

impl Fixture {
    fn new(ttl: Duration) -> Fixture {
        let model = Arc::new(Mutex::new(Model {
            revision: 0,
            opened: 0,
            sessions: BTreeSet::new(),
            ttl,
            instance: None,
            away: false,
            refuses: None,
            loses: false,
            refuses_at_once: None,
            on_the_way: Vec::new(),
            answered: BTreeMap::new(),
            log: Vec::new(),
        }));
        let node = Node::simple({
            let model = model.clone();
            move |call| model.lock().unwrap().answer(call)
        });
        let client = client(&[&node]).with_timeout(Duration::from_millis(500));
        Fixture { node, model, client }
    }

    fn options() -> RegistrationOptions {
        RegistrationOptions::new(v1::Instance { weight: Some(5), ..instance("a") })
    }

    async fn registered(&self) -> Registration {
        let registration = self.client.registration(Fixture::options()).unwrap();
        soon(registration.registered()).await.unwrap();
        registration
    }

    fn with<T>(&self, look: impl FnOnce(&mut Model) -> T) -> T {
        look(&mut self.model.lock().unwrap())
    }

    fn log(&self) -> Vec<String> {
        self.with(|model| model.log.clone())
    }

    fn instance(&self) -> v1::Instance {
        self.with(|model| model.instance.clone()).expect("an instance")
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("within 10 s")
}

async fn until(
    statuses: &mut watch::Receiver<RegistrationStatus>,
    holds: impl FnMut(&RegistrationStatus) -> bool,
) -> RegistrationStatus {
    soon(statuses.wait_for(holds)).await.unwrap().clone()
}

fn is_registered_by(session: u64) -> impl Fn(&RegistrationStatus) -> bool {
    move |status| matches!(status.state, RegistrationState::Registered { session: by, .. } if by == session)
}

/// Each thing that is said is written with the fields it is about; the same again is not.
#[tokio::test]
async fn what_is_said_is_written_once() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    let status = registration.status();
    let revision = fixture.instance().mod_revision;
    let state = RegistrationState::Registered { session: 1, revision, created: true };
    assert_eq!(status, RegistrationStatus { state, error: None });

    registration.set_health(Health::Warning, "slow").unwrap();
    soon(registration.settled()).await.unwrap();
    registration.set_health(Health::Warning, "slow").unwrap();
    registration.set_weight(5).unwrap();
    registration.set_metadata([("v".to_owned(), "2".to_owned())].into()).unwrap();
    soon(registration.settled()).await.unwrap();
    soon(registration.drain()).await.unwrap();
    soon(registration.drain()).await.unwrap();
    let expected = [
        "open 1",
        "register 1 Enabled Passing weight 5",
        "update Warning",
        "update {\"v\": \"2\"}",
        "update Draining",
    ];
    assert_eq!(fixture.log(), expected);
    assert_eq!(registration.status().state, {
        let revision = fixture.instance().mod_revision;
        RegistrationState::Registered { session: 1, revision, created: true }
    });
}

/// While an older call of a shared session is not answered the cluster takes what is younger whenever it comes: a
/// registration whose answer was lost must not come after the record was removed.
#[tokio::test]
async fn what_was_on_its_way_does_not_register_later() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let options = SessionOptions { reopen: true, ..Default::default() };
    let session = fixture.client.session(options).await.unwrap();
    let _older = session.next_request_id().await.unwrap();
    fixture.with(|model| model.loses = true);
    let options = Fixture::options().session(session.clone());
    let registration = fixture.client.registration(options).unwrap();
    while fixture.with(|model| model.on_the_way.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    fixture.with(|model| model.loses = false);
    soon(registration.shutdown(Duration::ZERO)).await.unwrap();
    fixture.with(|model| {
        for late in std::mem::take(&mut model.on_the_way) {
            let _ = model.txn(&late);
        }
        assert_eq!(model.instance, None, "{:?}", model.log);
    });
}

/// What is refused for good is said, also when an earlier copy was not answered.
#[tokio::test]
async fn a_refusal_after_a_lost_answer_is_final() {
    let fixture = Fixture::new(Duration::from_secs(60));
    fixture.with(|model| model.loses = true);
    let registration = fixture.client.registration(Fixture::options()).unwrap();
    while fixture.with(|model| model.on_the_way.is_empty()) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let refusal = Error::invalid("then[0].register.id", "a", "another one");
    fixture.with(|model| {
        model.loses = false;
        model.refuses_at_once = Some(refusal.clone());
    });
    assert_eq!(soon(registration.settled()).await, Err(refusal));
}

#[tokio::test]
async fn what_the_cluster_would_refuse_is_refused_at_once() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    let before = registration.instance();
    let long = "x".repeat(257);
    for error in [
        registration.set_weight(65_536).unwrap_err(),
        registration.set_health(Health::Unspecified, "").unwrap_err(),
        registration.set_health(Health::Passing, long.as_str()).unwrap_err(),
        registration.set_metadata([(String::new(), String::new())].into()).unwrap_err(),
        registration.set_metadata([("k".to_owned(), "v".repeat(1_025))].into()).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
    assert_eq!(registration.instance(), before);
    // Lost once, such a session would leave the instance unregistered for good.
    let session = fixture.client.session(SessionOptions::default()).await.unwrap();
    let error = fixture.client.registration(Fixture::options().session(session)).unwrap_err();
    assert!(error.to_string().contains("reopen"), "{error}");
}

/// What cannot come about is told, and comes about when the reason has gone.
#[tokio::test]
async fn an_error_that_stays_is_told() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let error = Error::NotFound { kind: "namespace".into(), name: "n".into() };
    fixture.with(|model| model.refuses = Some(error.clone()));
    let registration = fixture.client.registration(Fixture::options()).unwrap();
    assert_eq!(soon(registration.registered()).await, Err(error.clone()));
    assert_eq!(soon(registration.drain()).await, Err(error.clone()));
    let status = registration.status();
    assert_eq!((status.state, status.error), (RegistrationState::Pending, Some(error)));
    fixture.with(|model| model.refuses = None);
    // Sooner than it would be tried by itself.
    registration.set_weight(6).unwrap();
    soon(registration.registered()).await.unwrap();
    assert_eq!(fixture.log()[1..], ["register 1 Draining Passing weight 6"]);
}

/// While nobody leads the registration is lost after its TTL, and is there as it was afterwards, by the
/// same session. Of what was said meanwhile the last word counts.
#[tokio::test]
async fn an_absent_cluster_finds_the_same_session_again() {
    let fixture = Fixture::new(Duration::from_millis(600));
    let registration = fixture.registered().await;
    let mut statuses = registration.subscribe();
    fixture.with(|model| model.away = true);
    registration.set_weight(6).unwrap();
    let status = until(&mut statuses, |it| it.state == RegistrationState::Lost).await;
    assert!(status.error.is_none_or(|error| error.retryable()));
    registration.set_weight(7).unwrap();
    registration.set_health(Health::Warning, "tired").unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    fixture.with(|model| model.away = false);
    until(&mut statuses, is_registered_by(1)).await;
    soon(registration.settled()).await.unwrap();
    let log = fixture.log();
    assert_eq!(log[..2], ["open 1", "register 1 Enabled Passing weight 5"]);
    assert_eq!(log[2..], ["update weight 7, Warning"]);
    assert_eq!(fixture.instance().reason, "tired");
}

/// That nobody answers is told when the session's TTL has passed, however long a call may wait.
#[tokio::test]
async fn a_loss_is_told_while_a_call_waits() {
    let fixture = Fixture::new(Duration::from_millis(300));
    let client = fixture.client.with_timeout(Duration::from_secs(3_600));
    let registration = client.registration(Fixture::options()).unwrap();
    soon(registration.registered()).await.unwrap();
    let mut statuses = registration.subscribe();
    fixture.with(|model| model.away = true);
    registration.set_weight(6).unwrap();
    until(&mut statuses, |it| it.state == RegistrationState::Lost).await;
    // The call that waits is of a session that ends.
    fixture.with(|model| {
        model.expire(1);
        model.away = false;
    });
    until(&mut statuses, is_registered_by(2)).await;
    assert_eq!(fixture.instance().weight, Some(6));
}

/// After an expiry what is desired then is registered, with what an operator has said last.
#[tokio::test]
async fn an_expired_session_is_replaced() {
    let fixture = Fixture::new(Duration::from_millis(900));
    let registration = fixture.registered().await;
    let mut statuses = registration.subscribe();
    registration.set_health(Health::Warning, "slow").unwrap();
    soon(registration.settled()).await.unwrap();
    fixture.with(|model| {
        model.change(|instance| instance.weight = Some(9));
        model.expire(1);
    });
    until(&mut statuses, |it| it.state == RegistrationState::Lost).await;
    until(&mut statuses, is_registered_by(2)).await;
    let log = fixture.log();
    assert_eq!(log[3..], ["expired 1", "open 2", "register 2 Enabled Warning weight 9"]);
    // The program speaks last.
    registration.set_weight(3).unwrap();
    soon(registration.settled()).await.unwrap();
    fixture.with(|model| model.expire(2));
    until(&mut statuses, is_registered_by(3)).await;
    assert_eq!(fixture.log().last().unwrap(), "register 3 Enabled Warning weight 3");
}

/// A session that somebody closed takes the instance with it, and whatever only its record knew. What was
/// seen before stays.
#[tokio::test]
async fn a_closed_session_is_replaced() {
    let fixture = Fixture::new(Duration::from_millis(900));
    let registration = fixture.registered().await;
    let mut statuses = registration.subscribe();
    fixture.with(|model| model.change(|instance| instance.set_admin(Admin::Disabled)));
    registration.set_health(Health::Warning, "slow").unwrap();
    soon(registration.settled()).await.unwrap();
    fixture.client.close_session(1).await.unwrap();
    until(&mut statuses, is_registered_by(2)).await;
    assert_eq!(fixture.log().last().unwrap(), "register 2 Disabled Warning weight 5");
}

/// Maintenance is not ended by a report of health, nor by draining, nor by an expiry; the reason for
/// it stays until the program has something to say.
#[tokio::test]
async fn a_disabled_instance_stays_disabled() {
    let fixture = Fixture::new(Duration::from_millis(900));
    let registration = fixture.registered().await;
    let mut statuses = registration.subscribe();
    let disable = |model: &mut Model| {
        model.change(|instance| {
            instance.set_admin(Admin::Disabled);
            instance.reason = "new disk".to_owned();
        });
    };
    fixture.with(disable);
    registration.set_health(Health::Warning, "slow").unwrap();
    soon(registration.settled()).await.unwrap();
    assert_eq!(fixture.instance().admin(), Admin::Disabled);
    soon(registration.drain()).await.unwrap();
    assert_eq!(fixture.instance().admin(), Admin::Disabled);
    fixture.with(|model| model.expire(1));
    until(&mut statuses, is_registered_by(2)).await;
    assert_eq!(fixture.instance().admin(), Admin::Disabled);
    // Enabled by whom it was disabled, it is so for the registration too, and may drain.
    fixture.with(|model| model.change(|instance| instance.set_admin(Admin::Enabled)));
    registration.set_health(Health::Passing, "").unwrap();
    soon(registration.settled()).await.unwrap();
    // Nobody has told of this one.
    fixture.with(disable);
    soon(registration.drain()).await.unwrap();
    let instance = fixture.instance();
    assert_eq!((instance.admin(), instance.reason.as_str()), (Admin::Disabled, "new disk"));
    assert_eq!(fixture.log().iter().filter(|it| it.contains("Draining")).count(), 0);
}

/// What is deregistered comes back, within the interval in which it is looked for.
#[tokio::test]
async fn a_deregistered_instance_comes_back() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    let mut statuses = registration.subscribe();
    registration.set_weight(8).unwrap();
    soon(registration.settled()).await.unwrap();
    fixture.with(|model| model.instance = None);
    until(&mut statuses, |it| it.state == RegistrationState::Lost).await;
    until(&mut statuses, is_registered_by(1)).await;
    assert_eq!(fixture.log().last().unwrap(), "register 1 Enabled Passing weight 8");
    // A write finds out at once.
    fixture.with(|model| model.instance = None);
    registration.set_weight(9).unwrap();
    timeout(Duration::from_secs(1), registration.settled()).await.unwrap().unwrap();
    assert_eq!(fixture.log().last().unwrap(), "register 1 Enabled Passing weight 9");
}

/// A name that a live session has is waited for, and not taken away, not even at the end.
#[tokio::test]
async fn the_instance_of_a_live_session_is_waited_for() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let other = v1::Instance { session: 77, mod_revision: 1, weight: Some(2), ..instance("a") };
    let begin = |model: &mut Model| {
        model.revision += 1;
        model.sessions.insert(77);
        model.instance = Some(other.clone());
    };
    fixture.with(begin);
    let registration = fixture.client.registration(Fixture::options()).unwrap();
    let mut statuses = registration.subscribe();
    let owned = Some(Error::OwnedByAnother { owner: 77 });
    until(&mut statuses, |status| status.error == owned).await;
    assert_eq!(registration.status().state, RegistrationState::Pending);
    fixture.with(|model| {
        model.change(|instance| instance.set_admin(Admin::Draining));
        model.expire(77);
    });
    until(&mut statuses, is_registered_by(1)).await;
    // The process before this one was draining; this one is not.
    assert_eq!(fixture.log().last().unwrap(), "register 1 Enabled Passing weight 5");
    assert!(!fixture.with(|model| model.sessions.contains(&77)));

    fixture.with(begin);
    fixture.with(|model| model.change(|_| {}));
    until(&mut statuses, |status| status.error == owned).await;
    assert_eq!(registration.status().state, RegistrationState::Lost);
    soon(registration.shutdown(Duration::from_secs(1))).await.unwrap();
    assert_eq!(fixture.with(|model| model.held_by()), Some(77));
}

/// Draining, then the grace, then the end; nothing comes after it.
#[tokio::test]
async fn a_shutdown_drains_and_deregisters() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    let held = tokio::time::Instant::now();
    let gone = soon(registration.run_until(async {}, Duration::from_millis(300))).await.unwrap();
    assert!(held.elapsed() >= Duration::from_millis(300), "{:?}", held.elapsed());
    let log = fixture.log();
    assert_eq!(log[2..], ["update Draining", "close 1 true"]);
    assert_eq!(gone, fixture.with(|model| model.revision));
    assert_eq!(fixture.with(|model| model.instance.clone()), None);
    assert_eq!(registration.status().state, RegistrationState::Closed);
    // For good, and however often it is asked for.
    registration.set_weight(9).unwrap();
    assert!(registration.registered().await.is_err());
    assert!(registration.settled().await.is_err());
    assert_eq!(registration.shutdown(Duration::ZERO).await, Ok(gone));
    assert_eq!(fixture.log(), log);
}

/// Without the cluster a shutdown ends with an error that says so, in about the time of one call.
#[tokio::test]
async fn a_shutdown_without_the_cluster_says_so() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    fixture.with(|model| model.away = true);
    let begun = tokio::time::Instant::now();
    let error = soon(registration.shutdown(Duration::from_secs(60))).await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(registration.status().state, RegistrationState::Closed);
}

/// What an expired session has left is removed as well.
#[tokio::test]
async fn a_shutdown_removes_an_orphan() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    fixture.with(|model| model.expire(1));
    soon(registration.shutdown(Duration::ZERO)).await.unwrap();
    assert_eq!(fixture.with(|model| model.instance.clone()), None);
    let log = fixture.log();
    assert_eq!(log[2..], ["expired 1", "close 1 false", "deregister"]);
}

#[tokio::test]
async fn the_last_clone_deregisters() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let registration = fixture.registered().await;
    let clone = registration.clone();
    drop(registration);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fixture.with(|model| model.held_by()), Some(1));
    drop(clone);
    eventually("the instance is gone", || fixture.with(|model| model.instance.is_none())).await;
    assert_eq!(fixture.log().last().unwrap(), "close 1 true");
}

/// Before anything was registered there is nothing to end.
#[tokio::test]
async fn a_registration_that_never_came_about_ends_at_once() {
    let mut fixture = Fixture::new(Duration::from_secs(60));
    fixture.node.stop();
    let registration = fixture.client.registration(Fixture::options()).unwrap();
    let mut statuses = registration.subscribe();
    until(&mut statuses, |status| status.error.is_some()).await;
    assert_eq!(soon(registration.shutdown(Duration::from_secs(60))).await, Ok(0));
}

/// Of a shared session only the own instance ends. A session that its holder gave up by itself, and that
/// the cluster may not have, is closed before the next one registers.
#[tokio::test]
async fn a_shared_session_outlives_its_registrations() {
    let fixture = Fixture::new(Duration::from_millis(600));
    let options = SessionOptions { reopen: true, ..SessionOptions::default() };
    let session = fixture.client.session(options).await.unwrap();
    let options = Fixture::options().session(session.clone());
    let registration = fixture.client.registration(options).unwrap();
    soon(registration.registered()).await.unwrap();
    let mut statuses = registration.subscribe();
    fixture.with(|model| model.away = true);
    soon(session.expired()).await;
    fixture.with(|model| model.away = false);
    until(&mut statuses, is_registered_by(2)).await;
    let log = fixture.log();
    let at = |what: &str| log.iter().position(|line| line == what);
    let (closed, again) = (at("close 1 true"), at("register 2 Enabled Passing weight 5"));
    assert!(closed.is_some() && closed < again, "{log:?}");

    soon(registration.shutdown(Duration::ZERO)).await.unwrap();
    assert_eq!(fixture.with(|model| model.instance.clone()), None);
    assert_eq!(fixture.log().last().unwrap(), "deregister");
    assert_eq!(session.id(), 2);
    assert!(fixture.with(|model| model.sessions.contains(&2)));

    // With the session a registration ends for good.
    let options = Fixture::options().session(session.clone());
    let registration = fixture.client.registration(options).unwrap();
    soon(registration.registered()).await.unwrap();
    let mut statuses = registration.subscribe();
    session.close().await.unwrap();
    until(&mut statuses, |status| status.state == RegistrationState::Closed).await;
    assert_eq!(fixture.with(|model| model.instance.clone()), None);
}

/// A registration follows what somebody else measures, from the first value on.
#[tokio::test]
async fn health_is_followed() {
    let fixture = Fixture::new(Duration::from_secs(60));
    let (health, follower) = watch::channel(Health::Critical);
    let options = Fixture::options().health(follower);
    let registration = fixture.client.registration(options).unwrap();
    soon(registration.registered()).await.unwrap();
    assert_eq!(fixture.log()[1..], ["register 1 Enabled Critical weight 5"]);
    health.send_replace(Health::Passing);
    eventually("the health is told", || fixture.instance().health() == Health::Passing).await;
    health.send_replace(Health::Warning);
    drop(health);
    eventually("the last health", || fixture.instance().health() == Health::Warning).await;
    registration.set_weight(4).unwrap();
    soon(registration.settled()).await.unwrap();
    assert_eq!(fixture.instance().health(), Health::Warning);
}

/// No session is opened while the cluster may still have the one before it.
#[tokio::test]
async fn no_two_sessions_of_a_registration_live() {
    let fixture = Fixture::new(Duration::from_millis(300));
    let registration = fixture.registered().await;
    let mut statuses = registration.subscribe();
    for session in 1..=3 {
        fixture.with(|model| model.away = true);
        until(&mut statuses, |it| it.state == RegistrationState::Lost).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        fixture.with(|model| {
            model.away = false;
            if session % 2 == 0 {
                model.expire(session / 2);
            }
        });
        until(&mut statuses, is_registered_by(1 + session / 2)).await;
        assert_eq!(fixture.with(|model| model.sessions.len()), 1);
    }
    let opened = fixture.log().iter().filter(|line| line.starts_with("open")).count();
    assert_eq!(opened, 2);
}
