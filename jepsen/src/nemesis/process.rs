//! Processes that are killed and stopped.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::sleep;

use super::{Active, Begun, Ending, Scene, Whom, ids, majority_without, map};
use crate::edn::Value;
use crate::random::Random;

/// How long a stopped process may take until the kernel says so.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kill {
    whom: Whom,
    /// Kills after the first one, each some time after a start, so that recovery is struck too.
    again_after: Vec<Duration>,
}

impl Kill {
    pub fn draw(random: &mut Random) -> Kill {
        let whom = Whom::draw(random);
        let again = if random.chance(25) { 2 + random.below(4) } else { 0 };
        let pauses = (0..again).map(|_| Duration::from_millis(random.between(50..=1_500)));
        Kill { whom, again_after: pauses.collect() }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let nodes = self.whom.choose(scene).await;
        if nodes.is_empty() {
            return Ok(None);
        }
        let leaves_majority = majority_without(scene, &nodes);
        let mut killed = kill(scene, &nodes)?;
        for pause in &self.again_after {
            for &id in &nodes {
                scene.cluster.spawn(id)?;
            }
            sleep(*pause).await;
            killed.extend(kill(scene, &nodes)?);
        }
        let kind = if self.again_after.is_empty() { "kill" } else { "crash-loop" };
        let what = map([
            ("kind", Value::keyword(kind)),
            ("whom", Value::keyword(self.whom.name())),
            ("nodes", ids(&nodes)),
            ("times", Value::Int(1 + self.again_after.len() as i64)),
        ]);
        Ok(Some(Begun::new(what, leaves_majority, Killed { nodes, killed })))
    }
}

/// How each of them ended; the cluster has noted those that had done so by themselves.
fn kill(scene: &mut Scene<'_>, nodes: &[u64]) -> io::Result<Vec<(u64, Option<ExitStatus>)>> {
    // All are told before any is awaited: it happens at once.
    for &id in nodes {
        if scene.cluster.node(id).pid().is_some() {
            scene.cluster.signal(id, Signal::KILL)?;
        }
    }
    nodes.iter().map(|&id| Ok((id, scene.cluster.kill(id)?))).collect()
}

struct Killed {
    nodes: Vec<u64>,
    killed: Vec<(u64, Option<ExitStatus>)>,
}

impl Active for Killed {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            for &id in &self.nodes {
                scene.cluster.spawn(id)?;
            }
            let by_us = |status: &Option<ExitStatus>| {
                status.is_some_and(|status| status.signal() == Some(Signal::KILL.as_raw()))
            };
            let other = self.killed.iter().find(|(_, status)| !by_us(status));
            Ok(match other {
                None => Ok(format!("{} processes ended by SIGKILL", self.killed.len())),
                Some((id, status)) => Err(format!("node {id} ended otherwise: {status:?}")),
            })
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pause {
    whom: Whom,
    /// A process that never wakes.
    then_kill: bool,
}

impl Pause {
    pub fn draw(random: &mut Random) -> Pause {
        let whom = Whom::draw(random);
        Pause { whom, then_kill: random.chance(25) }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let nodes = self.whom.choose(scene).await;
        if nodes.is_empty() {
            return Ok(None);
        }
        let leaves_majority = majority_without(scene, &nodes);
        for &id in &nodes {
            scene.cluster.signal(id, Signal::STOP)?;
        }
        let what = map([
            ("kind", Value::keyword(if self.then_kill { "pause-then-kill" } else { "pause" })),
            ("whom", Value::keyword(self.whom.name())),
            ("nodes", ids(&nodes)),
        ]);
        let stopped = are_stopped(scene, &nodes).await;
        let then_kill = self.then_kill;
        Ok(Some(Begun::new(what, leaves_majority, Paused { nodes, stopped, then_kill })))
    }
}

async fn are_stopped(scene: &Scene<'_>, nodes: &[u64]) -> bool {
    let stopped = |&id: &u64| scene.cluster.node(id).state() == Some('T');
    for _ in 0..LOOKS {
        if nodes.iter().all(stopped) {
            return true;
        }
        sleep(LOOK).await;
    }
    false
}

struct Paused {
    nodes: Vec<u64>,
    stopped: bool,
    then_kill: bool,
}

impl Active for Paused {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            // A node may have been killed meanwhile by another fault, which proves itself.
            let there: Vec<u64> = self
                .nodes
                .into_iter()
                .filter(|&id| scene.cluster.node(id).pid().is_some())
                .collect();
            let still = are_stopped(scene, &there).await;
            for &id in &there {
                if self.then_kill {
                    scene.cluster.kill(id)?;
                    scene.cluster.spawn(id)?;
                } else {
                    scene.cluster.signal(id, Signal::CONT)?;
                }
            }
            Ok(if self.stopped && still {
                Ok(format!("the kernel called {} processes stopped until the end", there.len()))
            } else {
                Err("the kernel did not call all processes stopped all the time".to_owned())
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::nemesis::testing::Mayflies;

    /// A process that had ended before it was killed is a defect, and not only a fault without effect.
    #[tokio::test]
    async fn who_ends_by_itself_before_it_is_killed() {
        let mut mayflies = Mayflies::new("kill").await;
        let mut scene = mayflies.scene();
        let kill = Kill { whom: Whom::All, again_after: Vec::new() };
        let begun = kill.begin(&mut scene).await.unwrap().unwrap();
        assert!(begun.active.end(&mut scene).await.unwrap().is_err());
        assert_eq!(mayflies.exits(), [1, 2, 3]);
    }
}
