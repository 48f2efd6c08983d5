//! Faults: what is done to a cluster while clients work, and the proof that it took effect.
//!
//! A fault that did nothing would make a run look better than it is. So each one shows by what it did: a
//! process that is gone, one that the kernel calls stopped, bytes that had to wait.

mod clock;
mod damage;
pub mod failpoint;
mod frames;
mod links;
mod membership;
mod partition;
mod plan;
mod process;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::pin::Pin;

use clap::ValueEnum;

use crate::cluster::Cluster;
use crate::edn::Value;
use crate::random::Random;
pub use plan::{Plan, Step};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kind {
    /// Links between nodes, or between clients and a node, pass nothing or are cut.
    Partition,
    /// Links are late, or narrow.
    Slow,
    /// SIGKILL, and a start later.
    Kill,
    /// SIGSTOP, and SIGCONT or SIGKILL later.
    Pause,
    /// Leadership is handed over.
    Transfer,
    /// A node is removed and a new one takes its place.
    Member,
    /// Files of a node that is down are damaged.
    Damage,
    /// Wall clocks jump, of a binary with the feature `failpoints`.
    Clock,
    /// A place in the code panics, waits or fails, of the same binary.
    Failpoint,
}

/// What `all` stands for: the faults that any binary can suffer.
pub const KINDS: &[Kind] = &[
    Kind::Partition,
    Kind::Slow,
    Kind::Kill,
    Kind::Pause,
    Kind::Transfer,
    Kind::Member,
    Kind::Damage,
];

/// A fault that is to be: drawn from the plan's seed before the run begins, but for what only the cluster
/// knows, such as who leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    Partition(partition::Partition),
    Links(links::Slow),
    Kill(process::Kill),
    Pause(process::Pause),
    Transfer(membership::Transfer),
    Member(membership::Replace),
    Damage(damage::Damage),
    Clock(clock::Jump),
    Failpoint(failpoint::Failpoint),
}

/// What a fault does its work with.
#[derive(Debug)]
pub struct Scene<'a> {
    pub cluster: &'a mut Cluster,
    pub random: Random,
}

/// A fault that was begun.
pub struct Begun {
    /// What was done, for the history.
    pub what: Value,
    /// Whether a majority of nodes can go on, so that operations must succeed meanwhile.
    pub leaves_majority: bool,
    pub active: Box<dyn Active>,
}

impl fmt::Debug for Begun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begun").field("what", &self.what).finish_non_exhaustive()
    }
}

impl Begun {
    fn new(what: Value, leaves_majority: bool, active: impl Active + 'static) -> Begun {
        Begun { what, leaves_majority, active: Box::new(active) }
    }
}

/// A fault that holds.
pub trait Active {
    /// Ends it, and says what proves that it took effect, or, as an error, what is missing.
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a>;
}

pub type Proof = Result<String, String>;

/// Faults come one after the other, in the task that holds the cluster.
pub type Ending<'a> = Pin<Box<dyn Future<Output = io::Result<Proof>> + 'a>>;

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Partition => "partition",
            Kind::Slow => "slow",
            Kind::Kill => "kill",
            Kind::Pause => "pause",
            Kind::Transfer => "transfer",
            Kind::Member => "member",
            Kind::Damage => "damage",
            Kind::Clock => "clock",
            Kind::Failpoint => "failpoint",
        }
    }

    /// One fault of this kind for a cluster of so many nodes.
    fn draw(self, nodes: usize, random: &mut Random) -> Fault {
        match self {
            Kind::Partition => Fault::Partition(partition::Partition::draw(nodes, random)),
            Kind::Slow => Fault::Links(links::Slow::draw(random)),
            Kind::Kill => Fault::Kill(process::Kill::draw(random)),
            Kind::Pause => Fault::Pause(process::Pause::draw(random)),
            Kind::Transfer => Fault::Transfer(membership::Transfer::draw(random)),
            Kind::Member => Fault::Member(membership::Replace::draw(random)),
            Kind::Damage => Fault::Damage(damage::Damage::draw(random)),
            Kind::Clock => Fault::Clock(clock::Jump::draw(random)),
            Kind::Failpoint => Fault::Failpoint(failpoint::Failpoint::draw(random)),
        }
    }

    /// Whether it wants to be alone: it needs a majority for what it does, or strikes what another fault has
    /// left of a node.
    fn is_alone(self) -> bool {
        match self {
            Kind::Partition | Kind::Slow | Kind::Kill | Kind::Pause | Kind::Clock => false,
            Kind::Transfer | Kind::Member | Kind::Damage | Kind::Failpoint => true,
        }
    }

    /// Whether it shows only in what is sent meanwhile.
    fn is_on_links(self) -> bool {
        matches!(self, Kind::Partition | Kind::Slow)
    }
}

impl Fault {
    pub fn kind(&self) -> Kind {
        match self {
            Fault::Partition(_) => Kind::Partition,
            Fault::Links(_) => Kind::Slow,
            Fault::Kill(_) => Kind::Kill,
            Fault::Pause(_) => Kind::Pause,
            Fault::Transfer(_) => Kind::Transfer,
            Fault::Member(_) => Kind::Member,
            Fault::Damage(_) => Kind::Damage,
            Fault::Clock(_) => Kind::Clock,
            Fault::Failpoint(_) => Kind::Failpoint,
        }
    }

    /// Begins it. None: the cluster is in no state for it, for instance because no node is left to kill.
    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        match self {
            Fault::Partition(partition) => partition.begin(scene).await,
            Fault::Links(slow) => slow.begin(scene),
            Fault::Kill(kill) => kill.begin(scene).await,
            Fault::Pause(pause) => pause.begin(scene).await,
            Fault::Transfer(transfer) => transfer.begin(scene).await,
            Fault::Member(replace) => replace.begin(scene).await,
            Fault::Damage(damage) => damage.begin(scene).await,
            Fault::Clock(jump) => jump.begin(scene).await,
            Fault::Failpoint(failpoint) => failpoint.begin(scene).await,
        }
    }

    /// Its name and how it is meant, for the schedule.
    pub fn describe(&self) -> String {
        match self {
            Fault::Partition(fault) => format!("{fault:?}"),
            Fault::Links(fault) => format!("{fault:?}"),
            Fault::Kill(fault) => format!("{fault:?}"),
            Fault::Pause(fault) => format!("{fault:?}"),
            Fault::Transfer(fault) => format!("{fault:?}"),
            Fault::Member(fault) => format!("{fault:?}"),
            Fault::Damage(fault) => format!("{fault:?}"),
            Fault::Clock(fault) => format!("{fault:?}"),
            Fault::Failpoint(fault) => format!("{fault:?}"),
        }
    }
}

/// An EDN map with keywords as keys.
fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    let entries = entries.into_iter().map(|(key, value)| (Value::keyword(key), value));
    Value::Map(entries.collect::<BTreeMap<_, _>>())
}

fn ids(nodes: &[u64]) -> Value {
    Value::Vector(nodes.iter().map(|&id| Value::Int(id as i64)).collect())
}

/// Which nodes a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    One,
    Leader,
    /// As many as the cluster can do without, the leader among them.
    Minority,
    All,
}

impl Whom {
    fn draw(random: &mut Random) -> Whom {
        *random.pick(&[Whom::One, Whom::Leader, Whom::Leader, Whom::Minority, Whom::All])
    }

    fn name(self) -> &'static str {
        match self {
            Whom::One => "one",
            Whom::Leader => "leader",
            Whom::Minority => "minority",
            Whom::All => "all",
        }
    }

    /// Nodes that run; a random one stands for the leader when there is none.
    async fn choose(self, scene: &mut Scene<'_>) -> Vec<u64> {
        let mut nodes = scene.cluster.awake();
        scene.random.shuffle(&mut nodes);
        let most = match self {
            Whom::One | Whom::Leader => 1,
            Whom::Minority => scene.cluster.ids().len().div_ceil(2) - 1,
            Whom::All => nodes.len(),
        };
        if matches!(self, Whom::Leader | Whom::Minority)
            && let Some((leader, _)) = scene.cluster.leader().await
        {
            nodes.sort_by_key(|&id| id != leader);
        }
        nodes.truncate(most.max(1));
        nodes
    }
}

/// Whether a majority is left when these are struck.
fn majority_without(scene: &Scene<'_>, struck: &[u64]) -> bool {
    let nodes = scene.cluster.ids();
    let left = nodes.iter().filter(|id| !struck.contains(id)).count();
    left > nodes.len() / 2
}

#[cfg(test)]
mod testing {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;

    /// A cluster whose processes end by themselves, soon after they were started.
    pub struct Mayflies {
        pub cluster: Cluster,
        dir: PathBuf,
    }

    impl Mayflies {
        pub async fn new(name: &str) -> Mayflies {
            let name = format!("quorate-jepsen-{name}-{}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            let cluster = Cluster::start(Path::new("/bin/false"), &dir, 3, &[]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
            Mayflies { cluster, dir }
        }

        pub fn scene(&mut self) -> Scene<'_> {
            Scene { cluster: &mut self.cluster, random: Random::new(1) }
        }

        /// Whose end was noted since this was asked before.
        pub fn exits(&mut self) -> Vec<u64> {
            let defects = self.cluster.take_defects();
            assert!(defects.iter().all(|defect| defect.f == "exited"), "{defects:?}");
            let mut nodes: Vec<u64> = defects.iter().map(|defect| defect.node).collect();
            nodes.sort_unstable();
            nodes
        }
    }

    impl Drop for Mayflies {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}
