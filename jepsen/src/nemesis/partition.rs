//! Partitions: which pairs of parties do not reach each other, in which direction, and how.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::time::sleep;

use super::{Active, Begun, Ending, Scene, ids, map};
use crate::cluster::links::{Block, Pair, Party, Traffic};
use crate::edn::Value;
use crate::random::Random;

/// What was being written when a link was frozen may still arrive.
const SETTLE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    shape: Shape,
    /// Packets get lost, or connections are reset.
    freezes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One node alone.
    One,
    /// The leader, with as many as are still a minority.
    Leader,
    /// A majority and the rest.
    Halves,
    /// One node in the middle reaches all; the others are in two camps that do not reach each other.
    Bridge,
    /// Each node reaches only its neighbours in a ring: there are majorities, but no two nodes see the same.
    Ring,
    /// One node is not heard, but hears.
    Mute,
    /// One node hears nothing, but is heard.
    Deaf,
    /// No client reaches one node.
    Clients,
}

const SHAPES: &[Shape] = &[
    Shape::One,
    Shape::Leader,
    Shape::Leader,
    Shape::Halves,
    Shape::Bridge,
    Shape::Ring,
    Shape::Mute,
    Shape::Deaf,
    Shape::Clients,
];

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Shape::One => "one",
            Shape::Leader => "leader",
            Shape::Halves => "halves",
            Shape::Bridge => "bridge",
            Shape::Ring => "ring",
            Shape::Mute => "mute",
            Shape::Deaf => "deaf",
            Shape::Clients => "clients",
        }
    }

    /// The directions on which nothing passes, for nodes in a random order and the leader.
    fn blocked(self, nodes: &[u64], leader: u64) -> BTreeSet<Pair> {
        let count = nodes.len();
        let minority = count.div_ceil(2) - 1;
        let first = nodes[0];
        // Followers say nothing to each other: where few links break, one is the leader's.
        let mut leader_first = nodes.to_vec();
        leader_first.sort_by_key(|&id| id != leader);
        match self {
            Shape::One => between(&[first], nodes),
            Shape::Leader => between(&leader_first[..minority.max(1)], nodes),
            Shape::Halves => between(&nodes[..minority.max(1)], nodes),
            Shape::Bridge => {
                let (one, other) = leader_first[..count - 1].split_at((count - 1) / 2);
                one.iter()
                    .flat_map(|&from| other.iter().flat_map(move |&to| both(from, to)))
                    .collect()
            }
            Shape::Ring => {
                let far = |a: usize, b: usize| a.abs_diff(b).min(count - a.abs_diff(b)) > count / 4;
                let pairs = (0..count).flat_map(|a| (0..a).map(move |b| (a, b)));
                // In a ring of three all are neighbours: it is cut open.
                let cut =
                    pairs.filter(|&(a, b)| if count > 3 { far(a, b) } else { a.abs_diff(b) > 1 });
                cut.flat_map(|(a, b)| both(leader_first[a], leader_first[b])).collect()
            }
            Shape::Mute => nodes[1..].iter().map(|&to| pair(first, to)).collect(),
            Shape::Deaf => nodes[1..].iter().map(|&from| pair(from, first)).collect(),
            Shape::Clients => {
                let node = Party::Node(first);
                [(Party::Clients, node), (node, Party::Clients)].into()
            }
        }
    }
}

fn pair(from: u64, to: u64) -> Pair {
    (Party::Node(from), Party::Node(to))
}

fn both(one: u64, other: u64) -> [Pair; 2] {
    [pair(one, other), pair(other, one)]
}

/// Both directions between a camp and the rest.
fn between(camp: &[u64], nodes: &[u64]) -> BTreeSet<Pair> {
    let rest = nodes.iter().filter(|id| !camp.contains(id));
    rest.flat_map(|&other| camp.iter().flat_map(move |&one| both(one, other))).collect()
}

impl Partition {
    pub fn draw(nodes: usize, random: &mut Random) -> Partition {
        let shapes = if nodes > 1 { SHAPES } else { &[Shape::Clients] };
        Partition { shape: *random.pick(shapes), freezes: random.chance(60) }
    }

    pub async fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let mut nodes = scene.cluster.ids();
        scene.random.shuffle(&mut nodes);
        let leader = scene.cluster.leader().await.map_or(nodes[0], |(id, _)| id);
        let pairs = self.shape.blocked(&nodes, leader);
        // A reset has no direction: only lost packets make a partition that is one-way.
        let one_way = matches!(self.shape, Shape::Mute | Shape::Deaf);
        let block = if self.freezes || one_way { Block::Freeze } else { Block::Cut };
        let links = scene.cluster.links();
        let looked = pairs.iter().map(|&pair| (pair, links.traffic(pair)));
        let mut before: Vec<(Pair, Traffic)> = looked.collect();
        links.change(|rules| {
            for &pair in &pairs {
                rules.entry(pair).or_default().block = Some(block);
            }
        });
        sleep(SETTLE).await;
        for (pair, before) in &mut before {
            before.passed = links.traffic(*pair).passed;
        }
        let what = map([
            ("kind", Value::keyword(self.shape.name())),
            ("how", Value::keyword(if block == Block::Cut { "reset" } else { "loss" })),
            ("leader", ids(&[leader])),
            ("blocked", Value::Vector(pairs.iter().map(described).collect())),
        ]);
        Ok(Some(Begun::new(what, true, Parted { before })))
    }
}

fn described(&(from, to): &Pair) -> Value {
    let name = |party| match party {
        Party::Clients => Value::keyword("clients"),
        Party::Node(id) => Value::Int(id as i64),
    };
    Value::Vector(vec![name(from), name(to)])
}

struct Parted {
    before: Vec<(Pair, Traffic)>,
}

impl Active for Parted {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            let links = scene.cluster.links();
            let mut total = Traffic::default();
            for &(pair, before) in &self.before {
                let now = links.traffic(pair).since(before);
                total.passed += now.passed;
                total.held += now.held;
                total.cut += now.cut;
            }
            links.change(|rules| {
                for (pair, _) in &self.before {
                    rules.entry(*pair).or_default().block = None;
                }
            });
            Ok(if total.passed > 0 {
                Err(format!("{} bytes passed", total.passed))
            } else if total.held + total.cut == 0 {
                Err("nobody tried to pass".to_owned())
            } else {
                Ok(format!("{} waits, {} resets, no byte passed", total.held, total.cut))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each shape lets through, as `from>to`.
    fn passes(shape: Shape, nodes: &[u64], leader: u64) -> String {
        let blocked = shape.blocked(nodes, leader);
        let mut sorted = nodes.to_vec();
        sorted.sort_unstable();
        let pairs = sorted.iter().flat_map(|&a| sorted.iter().map(move |&b| (a, b)));
        let open = pairs.filter(|&(a, b)| a != b && !blocked.contains(&pair(a, b)));
        open.map(|(a, b)| format!("{a}>{b}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn shapes_of_three() {
        let nodes = [1, 2, 3];
        assert_eq!(passes(Shape::One, &nodes, 2), "2>3 3>2");
        assert_eq!(passes(Shape::Leader, &nodes, 2), "1>3 3>1");
        assert_eq!(passes(Shape::Halves, &nodes, 2), "2>3 3>2");
        assert_eq!(passes(Shape::Bridge, &nodes, 2), "1>3 2>3 3>1 3>2");
        assert_eq!(passes(Shape::Ring, &nodes, 2), "1>2 1>3 2>1 3>1");
        assert_eq!(passes(Shape::Bridge, &nodes, 1), "1>3 2>3 3>1 3>2");
        assert_eq!(passes(Shape::Mute, &nodes, 2), "2>1 2>3 3>1 3>2");
        assert_eq!(passes(Shape::Deaf, &nodes, 2), "1>2 1>3 2>3 3>2");
        assert_eq!(passes(Shape::Clients, &nodes, 2), "1>2 1>3 2>1 2>3 3>1 3>2");
    }

    #[test]
    fn shapes_of_five() {
        let nodes = [1, 2, 3, 4, 5];
        assert_eq!(passes(Shape::Leader, &nodes, 4), "1>4 2>3 2>5 3>2 3>5 4>1 5>2 5>3");
        // Each reaches two others: a majority with itself.
        let ring = "1>2 1>4 2>1 2>3 3>2 3>5 4>1 4>5 5>3 5>4";
        assert_eq!(passes(Shape::Ring, &nodes, 4), ring);
        let bridge = "1>4 1>5 2>3 2>5 3>2 3>5 4>1 4>5 5>1 5>2 5>3 5>4";
        assert_eq!(passes(Shape::Bridge, &nodes, 4), bridge);
    }
}
