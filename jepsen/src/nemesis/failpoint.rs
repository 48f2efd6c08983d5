//! Failpoints: a place in one node's code panics, waits or fails, once or for a while. Only a binary with the
//! feature `failpoints` has them; what each place is for is told in its `src/failpoint.rs`.

use std::fmt;
use std::io;
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::{Instant, sleep};

use super::membership::Replace;
use super::{Active, Begun, Ending, Scene, Whom, ids, majority_without, map};
use crate::edn::Value;
use crate::random::Random;

/// How long it may take until the place is come to, and how often that is looked for.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(50);
/// How long a process that panics may take to end.
const END: Duration = Duration::from_secs(5);
/// Of sessions that are left alone.
const TTL_MS: u64 = 1_000;
/// What is written on the way.
const COUNTER: &str = "jepsen_failpoint";
/// Of transactions that are begun on the way: the workload asks for all of its own.
const NAMESPACE: &str = "jepsen-failpoint";

/// What brings a node to a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Writes: any node gets there.
    Writes,
    /// Writes that are answered: the leader gets there.
    Answers,
    /// A node is down for so long that the log it lacks is gone.
    Snapshot,
    /// The leader: a session is left alone.
    Session,
    /// The leader: a transaction calls somebody.
    Saga,
    /// The leader: another node is removed.
    Removal,
}

/// A place as the binary knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    pub name: &'static str,
    way: Way,
    /// It can fail there.
    fails: bool,
}

const fn point(name: &'static str, way: Way, fails: bool) -> Point {
    Point { name, way, fails }
}

/// All places; a test holds them against the binary's.
pub const POINTS: &[Point] = &[
    point("log-before-sync", Way::Writes, true),
    point("log-after-sync", Way::Writes, false),
    point("log-purge", Way::Writes, true),
    point("checkpoint-before-write", Way::Writes, true),
    point("checkpoint-after-write", Way::Writes, false),
    point("snapshot-create", Way::Writes, true),
    point("snapshot-before-rename", Way::Writes, true),
    point("snapshot-after-rename", Way::Writes, true),
    point("snapshot-received", Way::Snapshot, true),
    point("snapshot-install", Way::Snapshot, true),
    point("snapshot-installed", Way::Snapshot, false),
    point("apply", Way::Writes, false),
    point("answer", Way::Answers, true),
    point("saga-decided", Way::Saga, true),
    point("expiry", Way::Session, true),
    point("membership-half", Way::Removal, true),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Panic,
    Sleep(u64),
    Error,
}

impl Action {
    /// A process may end of what fails and of what panics, and not of what takes its time.
    fn may_end(self) -> bool {
        match self {
            Action::Panic | Action::Error => true,
            Action::Sleep(_) => false,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Action::Panic => f.write_str("panic"),
            Action::Sleep(ms) => write!(f, "sleep({ms})"),
            Action::Error => f.write_str("error"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failpoint {
    point: Point,
    action: Action,
    /// Once, and not until the fault ends.
    once: bool,
}

impl Failpoint {
    pub fn draw(random: &mut Random) -> Failpoint {
        let point = *random.pick(POINTS);
        let action = match random.below(if point.fails { 3 } else { 2 }) {
            0 => Action::Panic,
            1 => Action::Sleep(random.between(20..=1_500)),
            _ => Action::Error,
        };
        // A process panics once.
        let once = action == Action::Panic || random.chance(50);
        Failpoint { point, action, once }
    }

    /// What the node's file says.
    fn line(&self) -> String {
        let Failpoint { point, action, once } = self;
        format!("{} {action}{}", point.name, if *once { " 1" } else { "" })
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let Some((leader, _)) = scene.cluster.leader().await else { return Ok(None) };
        let others: Vec<u64> =
            scene.cluster.awake().into_iter().filter(|&id| id != leader).collect();
        if others.is_empty() {
            return Ok(None);
        }
        let other = *scene.random.pick(&others);
        let node = match self.point.way {
            Way::Writes if scene.random.chance(50) => leader,
            Way::Writes | Way::Snapshot => other,
            Way::Answers | Way::Session | Way::Saga | Way::Removal => leader,
        };
        let removes = (self.point.way == Way::Removal).then_some(other);
        let before = scene.cluster.node(node).failpoint_hits(self.point.name)?;
        for mortal in [Some(node), removes].into_iter().flatten() {
            scene.cluster.expects_end(mortal, true);
        }
        if self.point.way == Way::Snapshot {
            fall_behind(scene, node, leader).await?;
        }
        scene.cluster.node(node).set_failpoint(&self.line())?;
        if self.point.way == Way::Snapshot {
            scene.cluster.spawn(node)?;
        }
        let deadline = Instant::now() + PATIENCE;
        let (mut hit, mut refusal) = (false, None);
        while !hit && Instant::now() < deadline {
            refusal = lead_there(scene, self.point.way, leader, other).await.err();
            sleep(LOOK).await;
            hit = scene.cluster.node(node).failpoint_hits(self.point.name)? > before;
        }
        if self.action == Action::Panic && hit {
            // A panic under guard ends nothing, so that this is no condition.
            let deadline = Instant::now() + END;
            while scene.cluster.has_ended(node)?.is_none() && Instant::now() < deadline {
                sleep(LOOK).await;
            }
        }
        let what = map([
            ("kind", Value::keyword("failpoint")),
            ("point", Value::keyword(self.point.name)),
            ("does", Value::String(self.line())),
            ("nodes", ids(&[node])),
        ]);
        let leaves_majority = majority_without(scene, &[node]);
        let (point, action) = (self.point, self.action);
        let armed = Armed { node, point, action, before, removes, refusal };
        Ok(Some(Begun::new(what, leaves_majority, armed)))
    }
}

/// Takes the node down until the leader has forgotten what the node lacks.
async fn fall_behind(scene: &mut Scene<'_>, node: u64, leader: u64) -> io::Result<()> {
    let admin = scene.cluster.admin(node).clone();
    let applied = admin.status(v1::StatusRequest {}).await.map_or(0, |it| it.applied_index);
    scene.cluster.kill(node)?;
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        // What becomes of them is seen in the log that is purged.
        let _ = write(scene, leader).await;
        let status = scene.cluster.admin(leader).status(v1::StatusRequest {}).await;
        if status.is_ok_and(|status| status.purged_index > applied) {
            break;
        }
    }
    Ok(())
}

/// Some writes, one after the other, so that each is an entry.
async fn write(scene: &Scene<'_>, leader: u64) -> Result<(), Error> {
    for _ in 0..20 {
        let request = v1::AddCounterRequest {
            name: COUNTER.to_owned(),
            kind: v1::CounterKind::Gauge.into(),
            delta: 1,
            ..Default::default()
        };
        scene.cluster.admin(leader).add_counter(request).await?;
    }
    Ok(())
}

/// Makes it likely that the node gets there, which is seen in the node's log. Calls may well fail on the way; what they
/// heard matters if it does not get there.
async fn lead_there(scene: &Scene<'_>, way: Way, leader: u64, other: u64) -> Result<(), Error> {
    let admin = scene.cluster.admin(leader);
    match way {
        Way::Writes | Way::Answers | Way::Snapshot => write(scene, leader).await?,
        Way::Session => {
            let request =
                v1::OpenSessionRequest { ttl_ms: TTL_MS, client: "jepsen-failpoint".to_owned() };
            admin.open_session(request).await?;
            sleep(Duration::from_millis(TTL_MS)).await;
        }
        Way::Saga => {
            let name = NAMESPACE.to_owned();
            admin.put_namespace(v1::PutNamespaceRequest { name, ..Default::default() }).await?;
            let branch = v1::NewSagaBranch {
                action: format!("counter:///{COUNTER}?delta=1"),
                ..Default::default()
            };
            let request = v1::BeginSagaRequest {
                namespace: NAMESPACE.to_owned(),
                mode: v1::SagaMode::Saga.into(),
                branches: vec![branch],
                submit: true,
                ..Default::default()
            };
            admin.begin_saga(request).await?;
        }
        Way::Removal => {
            admin.remove(v1::RemoveRequest { id: other }).await?;
        }
    }
    Ok(())
}

struct Armed {
    node: u64,
    point: Point,
    action: Action,
    /// How often its log told of a hit before.
    before: usize,
    /// The node whose removal was begun.
    removes: Option<u64>,
    /// What the last call heard that was to lead there.
    refusal: Option<Error>,
}

impl Active for Armed {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            let Armed { node, point, action, before, removes, refusal } = *self;
            scene.cluster.node(node).set_failpoint("")?;
            // It must see that before whatever ends it counts again.
            sleep(2 * LOOK).await;
            let ended = scene.cluster.has_ended(node)?;
            scene.cluster.expects_end(node, false);
            if let Some(status) = &ended
                && !action.may_end()
            {
                scene.cluster.note_exit(node, format!("{status}, by {action}"));
            }
            scene.cluster.spawn(node)?;
            let hits = scene.cluster.node(node).failpoint_hits(point.name)? - before;
            if let Some(victim) = removes {
                // Half a removal is finished, and somebody takes the place.
                let removed = Replace { whom: Whom::One }.remove(scene, victim).await?;
                scene.cluster.expects_end(victim, false);
                if let Err(why) = removed.active.end(scene).await? {
                    return Ok(Err(why));
                }
            }
            Ok(match (hits, ended) {
                (0, _) => {
                    let why = match refusal {
                        Some(error) => format!(": the call that leads there failed: {error}"),
                        None => ", or its binary has no failpoints".to_owned(),
                    };
                    Err(format!("node {node} did not come to {}{why}", point.name))
                }
                (hits, None) => Ok(format!("hit {hits} times")),
                (hits, Some(status)) if !action.may_end() => Err(format!(
                    "hit {hits} times, and ended by {status}, which {action} does not do"
                )),
                (hits, Some(status)) => Ok(format!("hit {hits} times, and ended by {status}")),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;
    use crate::nemesis::testing::Mayflies;

    /// What a failpoint comes to whose node has ended meanwhile.
    async fn ended(name: &str, action: Action) -> (bool, Vec<u64>) {
        let mut mayflies = Mayflies::new(name).await;
        let (node, point) = (1, POINTS[0]);
        let log = mayflies.cluster.node(node).setup.log.clone();
        fs::write(log, format!("failpoint {} is hit", point.name)).unwrap();
        mayflies.cluster.expects_end(node, true);
        let armed = Armed { node, point, action, before: 0, removes: None, refusal: None };
        let proof = Box::new(armed).end(&mut mayflies.scene()).await.unwrap();
        (proof.is_ok(), mayflies.exits())
    }

    #[tokio::test]
    async fn a_place_that_nobody_came_to_is_no_fault_and_says_why() {
        let mut mayflies = Mayflies::new("nowhere").await;
        let (node, point, action) = (1, POINTS[0], Action::Error);
        for refusal in [None, Some(Error::Timeout { definite: true })] {
            let reason = refusal.as_ref().map_or("no failpoints".to_owned(), Error::to_string);
            mayflies.cluster.expects_end(node, true);
            let armed = Armed { node, point, action, before: 0, removes: None, refusal };
            let told = Box::new(armed).end(&mut mayflies.scene()).await.unwrap().unwrap_err();
            assert!(told.contains(point.name) && told.contains(&reason), "{told}");
        }
    }

    #[tokio::test]
    async fn a_process_may_end_of_a_panic_and_not_of_a_pause() {
        assert_eq!(ended("panic", Action::Panic).await, (true, vec![]));
        assert_eq!(ended("error", Action::Error).await, (true, vec![]));
        assert_eq!(ended("pause", Action::Sleep(20)).await, (false, vec![1]));
    }
}
