//! Who checks what, and when what was seen is a verdict.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use super::*;
use crate::limits::TEXT_BYTES;
use crate::state::{Admin, Endpoint, Endpoints, Health, HealthCheck, Pairs};

const INTERVAL: Duration = Duration::from_secs(10);

fn service(revision: u64, check: HealthCheck) -> Arc<Service> {
    Arc::new(Service {
        namespace: "default".into(),
        name: "web".into(),
        protect_threshold_percent: 0,
        deregister_after_ms: 30_000,
        policy: String::new(),
        policy_parameters: Pairs::default(),
        metadata: Pairs::default(),
        create_revision: 1,
        mod_revision: revision,
        health_check: Some(check),
    })
}

fn a_check() -> HealthCheck {
    HealthCheck {
        probe: Probe::Tcp,
        endpoint: String::new(),
        interval_ms: 10_000,
        timeout_ms: 2_000,
        failures: 3,
        successes: 2,
    }
}

fn instance(id: &str, health: Health, mod_revision: u64) -> Arc<Instance> {
    let endpoint = |name, port| Endpoint { name, host: "10.0.0.1", port };
    Arc::new(Instance {
        namespace: "default".into(),
        service: "web".into(),
        id: id.into(),
        endpoints: [endpoint("http", 80), endpoint("grpc", 81)].into_iter().collect(),
        weight: 1,
        zone: "".into(),
        metadata: Pairs::default(),
        health,
        admin: Admin::Enabled,
        reason: "".into(),
        hash_key: "".into(),
        session: None,
        orphaned_at_ms: None,
        critical_since_ms: None,
        create_revision: 2,
        mod_revision,
        created_at_ms: 0,
        modified_at_ms: 0,
    })
}

fn failed() -> Saw {
    Saw::Failed("connection refused".to_owned())
}

/// A schedule with its clock, whose jitter is half of the interval.
struct Story {
    schedule: Schedule,
    now: Instant,
    service: Arc<Service>,
}

impl Story {
    fn new() -> Story {
        let service = service(1, a_check());
        Story { schedule: Schedule::default(), now: Instant::now(), service }
    }

    fn look(&mut self, instances: &[&Arc<Instance>]) {
        self.schedule.begin_look();
        for instance in instances {
            self.schedule.see(&self.service, instance, self.now, |interval| interval / 2);
        }
        self.schedule.end_look();
    }

    /// Waits for the next check; it is the only one.
    fn next(&mut self) -> Job {
        self.now = self.now.max(self.schedule.next_due().unwrap());
        let job = self.schedule.take_due(self.now).unwrap();
        assert!(self.schedule.take_due(self.now).is_none());
        job
    }

    fn settle(&mut self, job: &Job, saw: Saw) -> Option<String> {
        self.schedule.settle(2, job, saw, self.now)
    }

    fn saw(&mut self, saw: Saw) -> Vec<(Health, u64, String)> {
        let job = self.next();
        self.settle(&job, saw);
        self.verdicts()
    }

    fn verdicts(&mut self) -> Vec<(Health, u64, String)> {
        let verdicts = self.schedule.take_verdicts(9);
        verdicts.into_iter().map(|v| (v.health, v.mod_revision, v.reason)).collect()
    }
}

fn critical(revision: u64) -> Vec<(Health, u64, String)> {
    let reason = "health check from node 2: connection refused".to_owned();
    vec![(Health::Critical, revision, reason)]
}

fn passing(revision: u64) -> Vec<(Health, u64, String)> {
    vec![(Health::Passing, revision, "health check from node 2: passing".to_owned())]
}

#[test]
fn enough_in_a_row_make_a_verdict() {
    let mut story = Story::new();
    story.look(&[&instance("a", Health::Passing, 2)]);
    assert_eq!(story.saw(failed()), []);
    assert_eq!(story.saw(failed()), []);
    // Not in a row.
    assert_eq!(story.saw(Saw::Passed), []);
    assert_eq!(story.saw(failed()), []);
    assert_eq!(story.saw(failed()), []);
    assert_eq!(story.saw(failed()), critical(2));
    // It did not reach the log: the next result says it again.
    assert_eq!(story.saw(failed()), critical(2));
    // It did.
    story.look(&[&instance("a", Health::Critical, 3)]);
    assert_eq!(story.saw(failed()), []);
    assert_eq!(story.saw(Saw::Passed), []);
    assert_eq!(story.saw(failed()), []);
    assert_eq!(story.saw(Saw::Passed), []);
    assert_eq!(story.saw(Saw::Passed), passing(3));
    // A warning is as good as passing to a check.
    story.look(&[&instance("a", Health::Warning, 4)]);
    for _ in 0..5 {
        assert_eq!(story.saw(Saw::Passed), []);
    }
    assert_eq!([story.saw(failed()), story.saw(failed())], [[], []]);
    assert_eq!(story.saw(failed()), critical(4));
}

/// A verdict that waits is taken back by a result that contradicts it, and by what changes meanwhile.
#[test]
fn a_verdict_is_of_the_present() {
    let mut story = Story::new();
    story.service = service(1, HealthCheck { failures: 1, ..a_check() });
    let job = |story: &mut Story, saw| {
        let job = story.next();
        story.settle(&job, saw);
    };
    story.look(&[&instance("a", Health::Passing, 2)]);
    job(&mut story, failed());
    job(&mut story, Saw::Passed);
    assert_eq!(story.verdicts(), []);
    job(&mut story, failed());
    story.look(&[&instance("a", Health::Passing, 3)]);
    assert_eq!(story.verdicts(), [], "it is of revision 2");
    assert_eq!(story.saw(failed()), critical(3));
    // An operator's word, while a check is under way that began before it.
    story.look(&[&instance("a", Health::Critical, 4)]);
    let began = story.next();
    story.look(&[&instance("a", Health::Passing, 5)]);
    story.settle(&began, failed());
    assert_eq!(story.verdicts(), []);
    assert_eq!(story.saw(failed()), critical(5));
    // Another check: what was counted was counted by the old one.
    story.service = service(6, HealthCheck { failures: 2, ..a_check() });
    story.look(&[&instance("a", Health::Passing, 5)]);
    assert_eq!([story.saw(failed()), story.saw(failed())], [vec![], critical(5)]);
    // Other settings with the same check: what was counted counts, for the settings as they are.
    story.service = service(7, HealthCheck { failures: 2, ..a_check() });
    story.look(&[&instance("a", Health::Passing, 5)]);
    let taken = story.next();
    story.settle(&taken, failed());
    let verdicts = story.schedule.take_verdicts(1);
    assert_eq!((verdicts[0].settings_revision, verdicts[0].mod_revision), (7, 5));
    // It came again since: another instance of the same name.
    let mut again = Instance::clone(&instance("a", Health::Passing, 8));
    again.create_revision = 8;
    let old = story.next();
    story.look(&[&Arc::new(again.clone())]);
    story.settle(&old, failed());
    assert_eq!(story.saw(failed()), []);
    // Another address as well.
    again.endpoints = Endpoints::default();
    story.look(&[&Arc::new(again)]);
    assert_eq!(story.saw(failed()), []);
}

#[test]
fn checks_are_spread_over_the_interval_and_do_not_overlap() {
    let mut story = Story::new();
    let start = story.now;
    story.look(&[&instance("a", Health::Passing, 2)]);
    assert_eq!(story.schedule.next_due(), Some(start + INTERVAL / 2));
    assert!(story.schedule.take_due(start).is_none());
    let job = story.next();
    assert_eq!(story.schedule.next_due(), None, "one is under way");
    story.now += INTERVAL / 4;
    story.settle(&job, Saw::Passed);
    assert_eq!(story.schedule.next_due(), Some(start + INTERVAL * 3 / 2));
    // One that took longer than the interval, as the node was stopped.
    let job = story.next();
    story.now += 3 * INTERVAL;
    story.settle(&job, Saw::Passed);
    assert_eq!(story.schedule.next_due(), Some(story.now));
    // What is the same goes on as it was; what is gone is gone, also when its result comes later.
    let job = story.next();
    story.look(&[&instance("a", Health::Passing, 3)]);
    assert_eq!(story.schedule.len(), 1);
    story.look(&[]);
    assert_eq!((story.schedule.len(), story.schedule.next_due()), (0, None));
    story.settle(&job, failed());
    assert_eq!(story.schedule.next_due(), None);
    story.look(&[&instance("a", Health::Passing, 3)]);
    story.schedule.clear();
    assert_eq!((story.schedule.len(), story.schedule.next_due()), (0, None));
}

#[test]
fn what_must_not_be_asked_is_told_once_and_changes_nothing() {
    let mut story = Story::new();
    story.look(&[&instance("a", Health::Passing, 2)]);
    let no = || Saw::NotAllowed("not allowed".to_owned());
    let told: Vec<Option<String>> = (0..4)
        .map(|_| {
            let job = story.next();
            story.settle(&job, no())
        })
        .collect();
    assert_eq!(told, [Some("not allowed".to_owned()), None, None, None]);
    assert_eq!(story.schedule.unchecked(), (1, Some("default/web/a: not allowed".to_owned())));
    assert_eq!(story.verdicts(), []);
    // Of a service it is told once, and again under other settings.
    story.look(&[&instance("a", Health::Passing, 2), &instance("b", Health::Passing, 3)]);
    let again = |story: &mut Story| {
        let told = (0..4).map(|_| {
            story.now = story.schedule.next_due().unwrap().max(story.now);
            let job = story.schedule.take_due(story.now).unwrap();
            story.settle(&job, no())
        });
        told.flatten().count()
    };
    assert_eq!(again(&mut story), 0);
    assert_eq!(story.schedule.unchecked().0, 2);
    story.service = service(9, a_check());
    story.look(&[&instance("a", Health::Passing, 2), &instance("b", Health::Passing, 3)]);
    assert_eq!(again(&mut story), 1);
    story.look(&[&instance("a", Health::Passing, 2)]);
    assert_eq!(again(&mut story), 0);
    story.look(&[]);
    story.look(&[&instance("a", Health::Passing, 2)]);
    assert_eq!(again(&mut story), 1);
    // It ends what was counted.
    assert_eq!([story.saw(failed()), story.saw(failed())], [[], []]);
    assert_eq!(story.schedule.unchecked(), (0, None));
    assert_eq!([story.saw(no()), story.saw(failed()), story.saw(failed())], [[], [], []]);
    assert_eq!(story.saw(failed()), critical(2));
}

/// A node that was stopped has seen nothing: neither for the instance nor against it.
#[test]
fn what_was_not_seen_does_not_count() {
    let mut story = Story::new();
    story.look(&[&instance("a", Health::Passing, 2)]);
    assert_eq!([story.saw(failed()), story.saw(failed())], [[], []]);
    assert_eq!([story.saw(Saw::Nothing), story.saw(Saw::Nothing)], [[], []]);
    assert_eq!(story.saw(failed()), critical(2));
}

#[test]
fn a_reason_fits_the_state() {
    let mut story = Story::new();
    story.service = service(1, HealthCheck { failures: 1, ..a_check() });
    story.look(&[&instance("a", Health::Passing, 2)]);
    let verdicts = story.saw(Saw::Failed("ä".repeat(TEXT_BYTES)));
    assert!((TEXT_BYTES - 1..=TEXT_BYTES).contains(&verdicts[0].2.len()));
}

fn shares(present: &[NodeId]) -> BTreeMap<String, NodeId> {
    let share = |i: u32| {
        let id = format!("web-{i}");
        let checker = checker(&instance(&id, Health::Passing, 1), present).unwrap();
        (id, checker)
    };
    (0..3_000).map(share).collect()
}

/// To the instance: who goes gives away its own, and nobody else's moves.
#[test]
fn a_death_moves_only_its_own() {
    let three = shares(&[1, 2, 3]);
    for node in 1..=3 {
        let count = three.values().filter(|checker| **checker == node).count();
        assert!((900..1_100).contains(&count), "node {node} checks {count} of 3000");
    }
    for gone in 1..=3 {
        let left: Vec<NodeId> = (1..=3).filter(|node| *node != gone).collect();
        let two = shares(&left);
        for (id, checker) in &three {
            match *checker == gone {
                true => assert!(left.contains(&two[id])),
                false => assert_eq!(two[id], *checker, "{id} moved when node {gone} went"),
            }
        }
        let taken = three.iter().filter(|(id, c)| **c == gone && two[*id] == left[0]).count();
        assert!((350..650).contains(&taken), "node {} took {taken} of node {gone}", left[0]);
    }
    // One more takes its share and moves nothing else.
    let four = shares(&[1, 2, 3, 40]);
    assert!(three.iter().all(|(id, checker)| four[id] == *checker || four[id] == 40));
    // The order in which they are told is none.
    assert_eq!(shares(&[3, 1, 2]), three);
    assert_eq!(checker(&instance("a", Health::Passing, 1), &[]), None);
    assert_eq!(checker(&instance("a", Health::Passing, 1), &[7]), Some(7));
}

#[test]
fn the_endpoint_that_is_asked() {
    let endpoints = instance("a", Health::Passing, 1).endpoints.clone();
    let grpc = || Probe::Grpc { service: String::new() };
    let port = |probe, endpoint: &str| {
        let check = HealthCheck { probe, endpoint: endpoint.to_owned(), ..a_check() };
        check.target(&endpoints).map(|endpoint| endpoint.port)
    };
    assert_eq!(port(Probe::Tcp, ""), Some(80));
    assert_eq!(port(grpc(), ""), Some(81));
    assert_eq!(port(grpc(), "http"), Some(80));
    assert_eq!(port(Probe::Tcp, "grpc"), Some(81));
    assert_eq!(port(Probe::Tcp, "metrics"), None);
    let one: Endpoints = [Endpoint { name: "", host: "h", port: 1 }].into_iter().collect();
    let check = HealthCheck { probe: grpc(), ..a_check() };
    assert_eq!(check.target(&one).map(|endpoint| endpoint.port), Some(1));
}
