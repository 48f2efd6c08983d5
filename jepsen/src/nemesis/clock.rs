//! Wall clocks that jump. Only a binary with the feature `failpoints` has a clock that can be moved.

use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::{Active, Begun, Ending, Proof, Scene, Whom, ids, map};
use crate::edn::Value;
use crate::random::Random;

/// How long a node may take to notice.
const LOOK: Duration = Duration::from_millis(20);
const LOOKS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Jump {
    whom: Whom,
    /// By how much, one jump after the other; the last one holds until the fault ends.
    ms: Vec<i64>,
}

impl Jump {
    /// From a tenth of a second to some hours, forwards or backwards.
    pub fn draw(random: &mut Random) -> Jump {
        let whom = Whom::draw(random);
        let count = if random.chance(25) { 2 + random.below(4) } else { 1 };
        let jumps = (0..count).map(|_| {
            let magnitude = 10i64.pow(2 + random.below(6) as u32);
            let ms = magnitude + random.below(magnitude as usize) as i64;
            if random.chance(50) { ms } else { -ms }
        });
        Jump { whom, ms: jumps.collect() }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let nodes = self.whom.choose(scene).await;
        if nodes.is_empty() {
            return Ok(None);
        }
        let mut noticed = true;
        for &ms in &self.ms {
            noticed &= move_all(scene, &nodes, ms).await?;
        }
        let what = map([
            ("kind", Value::keyword("clock")),
            ("whom", Value::keyword(self.whom.name())),
            ("nodes", ids(&nodes)),
            ("ms", Value::Vector(self.ms.iter().map(|&ms| Value::Int(ms)).collect())),
        ]);
        let proof = match noticed {
            true => Ok(format!("{} logs tell of {} jumps", nodes.len(), self.ms.len())),
            false => {
                Err("not every node's log tells that its clock was moved; only a binary with the \
                          feature failpoints can"
                    .to_owned())
            }
        };
        Ok(Some(Begun::new(what, true, Moved { nodes, proof })))
    }
}

/// Moves the clocks, and says whether all nodes have noticed.
async fn move_all(scene: &Scene<'_>, nodes: &[u64], ms: i64) -> io::Result<bool> {
    let before: Vec<usize> = nodes
        .iter()
        .map(|&id| scene.cluster.node(id).clock_notices(ms))
        .collect::<Result<_, _>>()?;
    for &id in nodes {
        scene.cluster.node(id).move_clock(ms)?;
    }
    for _ in 0..LOOKS {
        let mut noticed = true;
        for (&id, before) in nodes.iter().zip(&before) {
            noticed &= scene.cluster.node(id).clock_notices(ms)? > *before;
        }
        if noticed {
            return Ok(true);
        }
        sleep(LOOK).await;
    }
    Ok(false)
}

struct Moved {
    nodes: Vec<u64>,
    proof: Proof,
}

impl Active for Moved {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            for &id in &self.nodes {
                // A node that was replaced meanwhile has no clock.
                if scene.cluster.ids().contains(&id) {
                    scene.cluster.node(id).move_clock(0)?;
                }
            }
            Ok(self.proof)
        })
    }
}
