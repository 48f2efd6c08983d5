//! Registrations that last: what the guard of the client library keeps registered while leaders die, the
//! cluster is away, sessions end and operators interfere; and how it ends.

use std::process::Stdio;
use std::time::Duration;

use quorate::client::{
    Client, Registration, RegistrationOptions, RegistrationState, SessionOptions, Watch,
    WatchRange, WatchUpdate,
};
use quorate::proto::v1::{self, Admin, Consistency, Health};
use rustix::process::Signal;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::time::{Instant, sleep, timeout};

use super::harness::{
    Cluster, PATIENCE, eventually, get_instance, instance, quorate, run, send, text,
};

const SERVICE: &str = "orders";
/// The shortest that an election on a busy machine does not outlast.
const TTL: Duration = Duration::from_secs(4);

async fn registered(client: &Client, id: &str) -> Registration {
    let options = RegistrationOptions::new(instance(SERVICE, id)).session_ttl(TTL);
    let registration = client.registration(options).unwrap();
    timeout(PATIENCE, registration.registered()).await.unwrap().unwrap();
    registration
}

async fn settled(registration: &Registration) {
    timeout(PATIENCE, registration.settled()).await.unwrap().unwrap();
}

/// The session that holds the instance and the revision of its record, as its program knows them.
fn held(registration: &Registration) -> Option<(u64, u64)> {
    match registration.status().state {
        RegistrationState::Registered { session, revision, .. } => Some((session, revision)),
        RegistrationState::Pending | RegistrationState::Lost | RegistrationState::Closed => None,
    }
}

/// Waits until another session than this holds the instance.
async fn held_by_another_than(registration: &Registration, session: u64) -> u64 {
    eventually("another session", async || match held(registration) {
        Some((other, _)) if other != session => Ok(other),
        _ => Err(format!("{:?}", registration.status())),
    })
    .await
}

async fn read(client: &Client, id: &str) -> v1::Instance {
    eventually("the instance", async || text(client.get_instance(get_instance(SERVICE, id)).await))
        .await
        .instance
        .unwrap()
}

/// Waits until the record is so.
async fn shows(client: &Client, id: &str, holds: impl Fn(&v1::Instance) -> bool) -> v1::Instance {
    eventually("the record", async || {
        let record = text(client.get_instance(get_instance(SERVICE, id)).await)?.instance.unwrap();
        if holds(&record) { Ok(record) } else { Err(format!("{record:?}")) }
    })
    .await
}

async fn is_gone(client: &Client, id: &str) {
    eventually("the end of the instance", async || {
        match client.get_instance(get_instance(SERVICE, id)).await {
            Err(quorate::error::Error::NotFound { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}

async fn set(client: &Client, id: &str, change: impl FnOnce(&mut v1::UpdateInstanceRequest)) {
    let mut request =
        v1::UpdateInstanceRequest { service: SERVICE.into(), id: id.into(), ..Default::default() };
    change(&mut request);
    client.update_instance(request, None).await.unwrap();
}

/// Everything that happens to the instances of the service from now on.
struct Seen {
    watch: Watch,
}

impl Seen {
    async fn from_now(client: &Client) -> Seen {
        let range = WatchRange::Service { namespace: String::new(), service: SERVICE.into() };
        let mut watch = client.watch(range);
        timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap();
        Seen { watch }
    }

    /// The changes up to a revision, each instance with whether it was removed.
    async fn up_to(&mut self, revision: u64) -> Vec<(v1::Instance, bool, u64)> {
        let mut seen = Vec::new();
        while self.watch.revision() < revision {
            let update = timeout(PATIENCE, self.watch.next()).await.expect("an update");
            let at = update.as_ref().unwrap().as_ref().unwrap().revision();
            let (WatchUpdate::Changes { events, .. } | WatchUpdate::Snapshot { events, .. }) =
                update.unwrap().unwrap()
            else {
                continue;
            };
            for event in events {
                if let Some(v1::watch_event::Record::Instance(instance)) = event.record {
                    seen.push((instance, event.deleted, at));
                }
            }
        }
        seen
    }
}

/// The death of a leader is nothing to a registration: the session lives on, and what is said meanwhile
/// is written.
#[test]
fn a_registration_outlives_the_leader() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let registration = registered(&client, "a").await;
        let (session, _) = held(&registration).unwrap();
        let mut seen = Seen::from_now(&client).await;
        for weight in [2, 3] {
            let leader = cluster.leader().await;
            cluster.kill(leader);
            registration.set_weight(weight).unwrap();
            settled(&registration).await;
            cluster.start(leader).await;
        }
        sleep(TTL).await;
        registration.set_health(Health::Warning, "tired").unwrap();
        settled(&registration).await;
        let record = read(&client, "a").await;
        assert_eq!((record.session, record.weight), (session, Some(3)));
        assert_eq!((record.health(), record.reason.as_str()), (Health::Warning, "tired"));
        let changes = seen.up_to(record.mod_revision).await;
        assert!(changes.iter().all(|(_, deleted, _)| !deleted), "{changes:?}");
        assert!(changes.iter().all(|(it, ..)| it.health() != Health::Critical), "{changes:?}");
    });
}

/// All nodes are away for longer than the session lives, and the program goes on saying what it wants. It
/// is told that its registration is lost; when they are back, the last of what it said is there, and
/// no watcher sees the instance go.
#[test]
fn a_registration_outlives_the_absence_of_the_cluster() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let registration = registered(&client, "a").await;
        let mut statuses = registration.subscribe();
        let before = read(&client, "a").await;
        cluster.kill_all();
        registration.set_weight(2).unwrap();
        let lost = statuses.wait_for(|status| status.state == RegistrationState::Lost);
        timeout(PATIENCE, lost).await.unwrap().unwrap();
        registration.set_weight(3).unwrap();
        registration.set_metadata([("version".to_owned(), "7".to_owned())].into()).unwrap();
        sleep(TTL).await;
        cluster.spawn_all();
        cluster.ready(&cluster.ids()).await;
        settled(&registration).await;
        timeout(PATIENCE, registration.registered()).await.unwrap().unwrap();
        let after = read(&cluster.client(), "a").await;
        assert_eq!((after.weight, after.metadata["version"].as_str()), (Some(3), "7"));
        assert_eq!(after.health(), Health::Passing);
        // It was never removed and made again.
        assert_eq!(after.create_revision, before.create_revision);
        let sessions = client.all_sessions(Consistency::Linearizable).await.unwrap();
        assert_eq!(sessions.iter().map(|it| it.id).collect::<Vec<_>>(), [after.session]);
    });
}

/// The process is stopped for longer than its session lives, as by a debugger or a swapped machine. Others
/// see its instance critical; when it goes on it registers again, by a new session, what it is told to
/// by then: an operator has disabled the orphan.
#[test]
fn a_process_that_was_stopped_registers_again() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let endpoints = cluster.endpoints().join(",");
        let mut process = quorate(["service", "register", SERVICE, "--id", "a"])
            .args(["--address", "10.0.0.1:80", "--weight", "7", "--session-ttl", "2s"])
            .args(["--endpoints", &endpoints])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut notes = BufReader::new(process.stderr.take().unwrap()).lines();
        let first = read(&client, "a").await;
        let pid = process.id().unwrap();
        send(pid, Signal::STOP);
        shows(&client, "a", |record| record.health() == Health::Critical).await;
        set(&client, "a", |request| request.admin = Admin::Disabled.into()).await;
        send(pid, Signal::CONT);
        let again = shows(&client, "a", |record| record.health() == Health::Passing).await;
        assert_ne!(again.session, first.session);
        assert_eq!((again.admin(), again.weight), (Admin::Disabled, Some(7)));
        assert_eq!(again.create_revision, first.create_revision);

        // A session that an operator closes takes the instance with it, for a moment.
        let closed = client.close_session(again.session).await.unwrap();
        assert!(closed.closed && closed.removed_instances == 1);
        let new = shows(&client, "a", |record| record.session != again.session).await;
        assert_eq!((new.health(), new.weight), (Health::Passing, Some(7)));
        // The record may be seen before the process has its answer.
        let mut said = String::new();
        while said.matches("registered again at revision").count() < 2 {
            let line = timeout(PATIENCE, notes.next_line()).await.unwrap().unwrap();
            said += &line.unwrap_or_else(|| panic!("it has ended: {said}"));
        }
        assert_eq!(said.matches("registration lost").count(), 2, "{said}");
        send(pid, Signal::TERM);
        assert!(timeout(PATIENCE, process.wait()).await.unwrap().unwrap().success());
        is_gone(&client, "a").await;
        while let Some(line) = timeout(PATIENCE, notes.next_line()).await.unwrap().unwrap() {
            said += &line;
        }
        assert!(said.contains("deregistered at revision"), "{said}");
    });
}

/// The program is told when its session was closed under it, and what it said before and after is what is
/// registered again; what an operator said is kept.
#[test]
fn what_is_desired_is_registered_again() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let registration = registered(&client, "a").await;
        let mut statuses = registration.subscribe();
        let (session, _) = held(&registration).unwrap();
        set(&client, "a", |request| {
            request.admin = Admin::Disabled.into();
            request.reason = "new disk".into();
        })
        .await;
        // A report of health does not end the maintenance.
        registration.set_health(Health::Warning, "slow").unwrap();
        settled(&registration).await;
        let record = read(&client, "a").await;
        assert_eq!((record.admin(), record.health()), (Admin::Disabled, Health::Warning));

        client.close_session(session).await.unwrap();
        registration.set_weight(9).unwrap();
        let other = held_by_another_than(&registration, session).await;
        settled(&registration).await;
        let record = read(&client, "a").await;
        assert_eq!(record.session, other);
        assert_eq!((record.admin(), record.health()), (Admin::Disabled, Health::Warning));
        assert_eq!(record.weight, Some(9));
        assert!(statuses.has_changed().unwrap());
        assert!(matches!(
            statuses.borrow_and_update().state,
            RegistrationState::Registered { session, .. } if session == other
        ));
        // Whoever disabled it enables it.
        set(&client, "a", |request| request.admin = Admin::Enabled.into()).await;
        registration.set_health(Health::Passing, "").unwrap();
        settled(&registration).await;
        assert_eq!(read(&client, "a").await.admin(), Admin::Enabled);

        // Deregistered by mistake: it comes back by itself, by the same session.
        let request =
            v1::DeregisterRequest { service: SERVICE.into(), id: "a".into(), ..Default::default() };
        let gone = client.deregister(request, None).await.unwrap();
        assert!(gone.removed);
        let back = read(&client, "a").await;
        assert_eq!((back.session, back.weight, back.health()), (other, Some(9), Health::Passing));
    });
}

/// A watcher sees the instance draining, then, after the grace, gone. It is gone when the shutdown says so,
/// at the revision that it says, and so is the session.
#[test]
fn a_shutdown_drains_then_deregisters() {
    run(async {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        let registration = registered(&client, "a").await;
        let mut seen = Seen::from_now(&client).await;
        let grace = Duration::from_millis(500);
        let begun = Instant::now();
        let gone = timeout(PATIENCE, registration.shutdown(grace)).await.unwrap().unwrap();
        assert!(begun.elapsed() >= grace);
        assert_eq!(registration.status().state, RegistrationState::Closed);
        let changes = seen.up_to(gone).await;
        let [(draining, false, drained), (_, true, removed)] = &changes[..] else {
            panic!("{changes:?}")
        };
        assert_eq!(draining.admin(), Admin::Draining);
        assert!(drained < removed && *removed == gone, "{changes:?}");
        let through = cluster.leader().await;
        assert!(cluster.instances(through, SERVICE).await.is_empty());
        assert!(client.all_sessions(Consistency::Linearizable).await.unwrap().is_empty());

        // The same while the leader dies: Ok means gone.
        let registration = registered(&client, "b").await;
        let leader = cluster.leader().await;
        let ended = tokio::spawn({
            let registration = registration.clone();
            async move { registration.shutdown(Duration::from_millis(1)).await }
        });
        cluster.kill(leader);
        timeout(PATIENCE, ended).await.unwrap().unwrap().unwrap();
        let through = cluster.leader().await;
        assert!(cluster.instances(through, SERVICE).await.is_empty());
    });
}

/// Who drops its registration is deregistered, long before its session would have ended.
#[test]
fn a_dropped_registration_is_deregistered() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let options = RegistrationOptions::new(instance(SERVICE, "a"))
            .session_ttl(Duration::from_secs(3_600));
        let registration = client.registration(options).unwrap();
        timeout(PATIENCE, registration.registered()).await.unwrap().unwrap();
        drop(registration);
        is_gone(&client, "a").await;
        eventually("the end of the session", async || {
            let sessions = text(client.all_sessions(Consistency::Linearizable).await)?;
            if sessions.is_empty() { Ok(()) } else { Err(format!("{sessions:?}")) }
        })
        .await;
    });
}

/// Several instances share a session: one ends without the others; with the session they come back
/// together.
#[test]
fn registrations_share_a_session() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let options = SessionOptions { ttl: TTL, reopen: true, ..Default::default() };
        let session = client.session(options).await.unwrap();
        let mut registrations = Vec::new();
        for id in ["a", "b", "c"] {
            let options = RegistrationOptions::new(instance(SERVICE, id)).session(session.clone());
            registrations.push(client.registration(options).unwrap());
        }
        for registration in &registrations {
            timeout(PATIENCE, registration.registered()).await.unwrap().unwrap();
        }
        let first = session.id();
        let one = registrations.pop().unwrap();
        timeout(PATIENCE, one.shutdown(Duration::ZERO)).await.unwrap().unwrap();
        let through = cluster.leader().await;
        let left = cluster.instances(through, SERVICE).await;
        assert_eq!(left.keys().collect::<Vec<_>>(), ["a", "b"]);

        client.close_session(first).await.unwrap();
        for registration in &registrations {
            let other = held_by_another_than(registration, first).await;
            assert_eq!(other, session.id());
        }
        let back = cluster.instances(through, SERVICE).await;
        assert_eq!(back.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert!(back.values().all(|it| it.session == session.id()), "{back:?}");
    });
}

/// A process that was killed has its successor wait for the rest of its session; an operator's word about
/// the instance outlives it, its own does not.
#[test]
fn a_successor_waits_and_takes_over() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let endpoints = cluster.endpoints().join(",");
        let mut process = quorate(["service", "register", SERVICE, "--id", "a"])
            .args(["--address", "10.0.0.1:80", "--session-ttl", "3s", "--endpoints", &endpoints])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let first = read(&client, "a").await;
        process.kill().await.unwrap();
        let options = RegistrationOptions::new(instance(SERVICE, "a")).session_ttl(TTL);
        let registration = client.registration(options).unwrap();
        let mut statuses = registration.subscribe();
        let waits = statuses.wait_for(|status| status.error.is_some());
        let waits = timeout(PATIENCE, waits).await.unwrap().unwrap().clone();
        let owner = first.session;
        assert_eq!(waits.state, RegistrationState::Pending);
        assert_eq!(waits.error, Some(quorate::error::Error::OwnedByAnother { owner }));
        timeout(PATIENCE, registration.registered()).await.unwrap().unwrap();
        let record = read(&client, "a").await;
        assert_eq!(record.create_revision, first.create_revision);
        assert_eq!(Some(record.session), held(&registration).map(|(session, _)| session));
    });
}
