//! Changes of who leads and who belongs.

use std::io;
use std::time::Duration;

use quorate::error::Error;
use quorate::proto::v1;
use tokio::time::{Instant, sleep};

use super::{Active, Begun, Ending, Scene, Whom, ids, map};
use crate::cluster::connection::Connection;
use crate::edn::Value;
use crate::random::Random;

/// How long one change may take, and one call of it.
const PATIENCE: Duration = Duration::from_secs(40);
const CALL: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// Leadership is handed over, several times in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transfer {
    pauses: Vec<Duration>,
}

impl Transfer {
    pub fn draw(random: &mut Random) -> Transfer {
        let times = 1 + random.below(4);
        let pauses = (0..times).map(|_| Duration::from_millis(random.between(100..=1_500)));
        Transfer { pauses: pauses.collect() }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let mut leaders = Vec::new();
        for pause in &self.pauses {
            let Some((leader, _)) = scene.cluster.leader().await else { continue };
            leaders.push(leader);
            let others: Vec<u64> =
                scene.cluster.awake().into_iter().filter(|&id| id != leader).collect();
            if others.is_empty() {
                continue;
            }
            let to = *scene.random.pick(&others);
            // Whether it succeeded is seen by who leads then.
            let _ = scene
                .cluster
                .admin(leader)
                .within(CALL)
                .transfer_leader(v1::TransferLeaderRequest { to })
                .await;
            sleep(*pause).await;
        }
        leaders.extend(scene.cluster.leader().await.map(|(leader, _)| leader));
        let what = map([("kind", Value::keyword("transfer")), ("leaders", ids(&leaders))]);
        Ok(Some(Begun::new(what, true, Transferred { leaders })))
    }
}

struct Transferred {
    leaders: Vec<u64>,
}

impl Active for Transferred {
    fn end<'a>(self: Box<Self>, _: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            let changes = self.leaders.windows(2).filter(|pair| pair[0] != pair[1]).count();
            Ok(match changes {
                0 => Err("the same node led all the time".to_owned()),
                changes => Ok(format!("the leader changed {changes} times")),
            })
        })
    }
}

/// A node is removed, and later a new one, with an empty directory and a new number, takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replace {
    pub(super) whom: Whom,
}

impl Replace {
    pub fn draw(random: &mut Random) -> Replace {
        Replace { whom: *random.pick(&[Whom::One, Whom::Leader]) }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        // Of two nodes neither can do without the other.
        if scene.cluster.awake().len() < 3 {
            return Ok(None);
        }
        let victim = self.whom.choose(scene).await[0];
        self.remove(scene, victim).await.map(Some)
    }

    /// Removes this node, also when half of that was done before.
    pub(super) async fn remove(&self, scene: &mut Scene<'_>, victim: u64) -> io::Result<Begun> {
        let slot = scene.cluster.slot(victim);
        let removed = remove(scene, victim).await;
        if removed.is_ok() {
            scene.cluster.forget(victim)?;
        }
        let what = map([
            ("kind", Value::keyword("replace")),
            ("whom", Value::keyword(self.whom.name())),
            ("nodes", ids(&[victim])),
        ]);
        Ok(Begun::new(what, true, Removed { victim, slot, removed }))
    }
}

/// Calls some node until one carries the change out; the last error if none does.
async fn insist<T>(
    scene: &Scene<'_>,
    without: u64,
    mut call: impl AsyncFnMut(&Connection) -> Result<T, Error>,
) -> Result<T, String> {
    let deadline = Instant::now() + PATIENCE;
    let nodes: Vec<u64> = scene.cluster.awake().into_iter().filter(|&id| id != without).collect();
    let mut last = "no node runs".to_owned();
    for &id in nodes.iter().cycle() {
        match call(&scene.cluster.admin(id).within(CALL)).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = error.to_string(),
        }
        if Instant::now() > deadline {
            break;
        }
        sleep(AGAIN).await;
    }
    Err(last)
}

async fn remove(scene: &Scene<'_>, victim: u64) -> Result<(), String> {
    insist(scene, victim, async |way| way.remove(v1::RemoveRequest { id: victim }).await)
        .await
        .map(|_| ())
}

struct Removed {
    victim: u64,
    slot: usize,
    removed: Result<(), String>,
}

impl Active for Removed {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            if let Err(why) = self.removed {
                return Ok(Err(format!("node {} could not be removed: {why}", self.victim)));
            }
            let through = scene.cluster.ids()[0];
            let id = scene.cluster.join(self.slot, through).await?;
            scene.cluster.takes_slot(id);
            // As the node itself advertises them.
            let request = v1::AddLearnerRequest {
                id,
                peer_address: scene.cluster.node(id).setup.advertised.to_string(),
                client_address: scene.cluster.door(self.slot).to_string(),
            };
            let added = async |way: &Connection| {
                match way.add_learner(request.clone()).await {
                    // Of an earlier attempt without an answer.
                    Err(Error::Membership { why }) if why.contains("already") => Ok(()),
                    answer => answer.map(|_| ()),
                }
            };
            if let Err(why) = insist(scene, id, added).await {
                return Ok(Err(format!("node {id} could not be added: {why}")));
            }
            let promote = async |way: &Connection| way.promote(v1::PromoteRequest { id }).await;
            let members = match insist(scene, id, promote).await {
                Ok(answer) => answer.members,
                Err(why) => return Ok(Err(format!("node {id} could not be promoted: {why}"))),
            };
            let voters: Vec<u64> =
                members.iter().filter(|member| !member.learner).map(|member| member.id).collect();
            Ok(if voters.contains(&id) && !voters.contains(&self.victim) {
                Ok(format!("node {} left, node {id} votes: {voters:?}", self.victim))
            } else {
                Err(format!("the voters are {voters:?}"))
            })
        })
    }
}
