//! Which transaction comes before which and why, and the cycles that this may not have.
//!
//! The anomalies are Adya's (Weak Consistency, 1999), found as in Elle (Kingsbury & Alvaro, VLDB 2020):
//! strongly connected components (Tarjan, 1972), and in each a short cycle of every kind.

use std::collections::{BTreeMap, VecDeque};

/// Why one transaction comes before another, from what proves most to what proves least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// It wrote the version before the other's.
    WriteWrite,
    /// It wrote what the other read.
    WriteRead,
    /// It read the version before the other's: an anti-dependency.
    ReadWrite,
    /// It had completed when the other was invoked.
    RealTime,
}

use Kind::{ReadWrite, RealTime, WriteRead, WriteWrite};

/// A path back to its beginning, as (node, kind of the edge that leaves it).
pub(crate) type Cycle = Vec<(usize, Kind)>;

/// Of edges between the same two nodes with the same kind, the first reason is kept.
#[derive(Debug)]
pub(crate) struct Graph<R> {
    edges: Vec<BTreeMap<(usize, Kind), R>>,
    /// When each node was invoked and completed. Edges of real time may lack where others imply them.
    times: Vec<(usize, Option<usize>)>,
}

impl<R> Graph<R> {
    pub fn new(times: Vec<(usize, Option<usize>)>) -> Graph<R> {
        let edges = times.iter().map(|_| BTreeMap::new()).collect();
        Graph { edges, times }
    }

    fn is_before(&self, first: usize, second: usize) -> bool {
        self.times[first].1.is_some_and(|complete| complete < self.times[second].0)
    }

    /// A transaction may see itself: that is no edge.
    pub fn add(&mut self, from: usize, to: usize, kind: Kind, reason: R) {
        if from != to {
            self.edges[from].entry((to, kind)).or_insert(reason);
        }
    }

    pub fn reason(&self, from: usize, to: usize, kind: Kind) -> Option<&R> {
        self.edges[from].get(&(to, kind))
    }

    fn leaving(&self, from: usize, allowed: &[Kind]) -> impl Iterator<Item = (usize, Kind)> {
        self.edges[from].keys().copied().filter(move |(_, kind)| allowed.contains(kind))
    }

    /// At most one cycle of each kind for each component, short ones first within a component. There is one
    /// if the graph has a cycle at all.
    pub fn cycles(&self) -> Vec<(&'static str, Cycle)> {
        const WW: &[Kind] = &[WriteWrite];
        const WR: &[Kind] = &[WriteWrite, WriteRead];
        const RW: &[Kind] = &[WriteWrite, WriteRead, ReadWrite];
        const WW_RT: &[Kind] = &[WriteWrite, RealTime];
        const WR_RT: &[Kind] = &[WriteWrite, WriteRead, RealTime];
        const ALL: &[Kind] = &[WriteWrite, WriteRead, ReadWrite, RealTime];
        // An edge of the second kind, and a way back over edges of the third.
        let searches = [
            (WW, WriteWrite, WW),
            (WR, WriteRead, WR),
            (RW, ReadWrite, WR),
            (RW, ReadWrite, RW),
            (WW_RT, WriteWrite, WW_RT),
            (WR_RT, WriteRead, WR_RT),
            (ALL, ReadWrite, WR_RT),
            (ALL, ReadWrite, ALL),
        ];
        // Most histories have no cycle: then one look is enough.
        let whole = self.components(ALL);
        let mut found: Vec<(&'static str, usize, Cycle)> = Vec::new();
        if whole.iter().all(|component| component.len() < 2) {
            return Vec::new();
        }
        let home = membership(&whole, self.edges.len());
        for (within, first, back) in searches {
            for component in self.components(within) {
                let Some(cycle) = self.shortest(&component, first, back) else { continue };
                let (name, home) = (name(&cycle), home[cycle[0].0]);
                if !found.iter().any(|(other, at, _)| *other == name && *at == home) {
                    found.push((name, home, cycle));
                }
            }
        }
        found.into_iter().map(|(name, _, cycle)| (name, cycle)).collect()
    }

    /// The shortest cycle of an edge of kind `first` and a way back, from a limited number of such edges.
    fn shortest(&self, component: &[usize], first: Kind, back: &[Kind]) -> Option<Cycle> {
        // Once there is a cycle, how many edges are asked for a shorter one.
        const TRIED: usize = 500;
        // How many nodes are visited in all. If the way back may use what the component
        // is made of, the first edge has one; else giving up costs a name, since a later search succeeds.
        const VISITS: usize = 2_000_000;
        if component.len() < 2 {
            return None;
        }
        let mut inside = vec![false; self.edges.len()];
        component.iter().for_each(|&node| inside[node] = true);
        let starts = component.iter().flat_map(|&from| {
            let edges = self.edges[from].keys().filter(move |(_, kind)| *kind == first);
            edges.map(move |(to, _)| (from, *to))
        });
        let mut starts: Vec<(usize, usize)> = starts.filter(|(_, to)| inside[*to]).collect();
        // The evidence that is the easiest to follow: an edge against real time.
        if back.contains(&RealTime)
            && let Some(&(from, to)) = starts.iter().find(|&&(from, to)| self.is_before(to, from))
        {
            return Some(vec![(from, first), (to, RealTime)]);
        }
        // Edges that lead back the furthest close the shortest cycles.
        starts.sort_by_key(|&(from, to)| self.times[to].0 as i64 - self.times[from].0 as i64);
        let mut best: Option<Cycle> = None;
        let (mut tried, mut visits) = (0, VISITS);
        for (from, to) in starts {
            if visits == 0 || best.is_some() && tried >= TRIED {
                break;
            }
            tried += 1;
            if let Some(path) = self.path(to, from, back, &inside, &mut visits)
                && best.as_ref().is_none_or(|best| path.len() + 1 < best.len())
            {
                best = Some(collapse(std::iter::once((from, first)).chain(path).collect()));
            }
        }
        best
    }

    /// A shortest path, in breadth first order; the last node is not part of it.
    fn path(
        &self,
        from: usize,
        to: usize,
        allowed: &[Kind],
        inside: &[bool],
        visits: &mut usize,
    ) -> Option<Cycle> {
        let mut came: BTreeMap<usize, (usize, Kind)> = BTreeMap::new();
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front() {
            *visits = visits.checked_sub(1)?;
            if node == to {
                let mut path = Vec::new();
                let mut at = to;
                while at != from {
                    let (before, kind) = came[&at];
                    path.push((before, kind));
                    at = before;
                }
                path.reverse();
                return Some(path);
            }
            for (next, kind) in self.leaving(node, allowed) {
                if inside[next] && next != from && !came.contains_key(&next) {
                    came.insert(next, (node, kind));
                    queue.push_back(next);
                }
            }
        }
        None
    }

    /// Tarjan's strongly connected components, with a stack of its own instead of recursion.
    fn components(&self, allowed: &[Kind]) -> Vec<Vec<usize>> {
        const UNSEEN: usize = usize::MAX;
        let count = self.edges.len();
        let (mut order, mut low) = (vec![UNSEEN; count], vec![UNSEEN; count]);
        let mut on_stack = vec![false; count];
        let (mut stack, mut components, mut seen) = (Vec::new(), Vec::new(), 0);
        for root in 0..count {
            if order[root] != UNSEEN {
                continue;
            }
            let mut work = vec![(root, self.leaving(root, allowed))];
            while let Some((node, successors)) = work.last_mut() {
                let node = *node;
                if order[node] == UNSEEN {
                    (order[node], low[node]) = (seen, seen);
                    seen += 1;
                    stack.push(node);
                    on_stack[node] = true;
                }
                if let Some((next, _)) = successors.next() {
                    if order[next] == UNSEEN {
                        work.push((next, self.leaving(next, allowed)));
                    } else if on_stack[next] {
                        low[node] = low[node].min(order[next]);
                    }
                    continue;
                }
                work.pop();
                if let Some((parent, _)) = work.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == order[node] {
                    let mut component = Vec::new();
                    while let Some(member) = stack.pop() {
                        on_stack[member] = false;
                        component.push(member);
                        if member == node {
                            break;
                        }
                    }
                    component.sort_unstable();
                    components.push(component);
                }
            }
        }
        components
    }
}

/// Real time is transitive: of edges of it in a row, one is enough.
fn collapse(mut cycle: Cycle) -> Cycle {
    let mut before = None;
    cycle.retain(|&(_, kind)| {
        let again = kind == RealTime && before == Some(RealTime);
        before = Some(kind);
        !again
    });
    cycle
}

fn membership(components: &[Vec<usize>], count: usize) -> Vec<usize> {
    let mut home = vec![0; count];
    for (at, component) in components.iter().enumerate() {
        component.iter().for_each(|&node| home[node] = at);
    }
    home
}

/// What a cycle is called: by its edges of each kind.
fn name(cycle: &Cycle) -> &'static str {
    let has = |wanted| cycle.iter().filter(|(_, kind)| *kind == wanted).count();
    match (has(ReadWrite), has(WriteRead), has(RealTime)) {
        (0, 0, 0) => "G0",
        (0, _, 0) => "G1c",
        (1, _, 0) => "G-single",
        (_, _, 0) => "G2-item",
        (0, 0, _) => "G0-realtime",
        (0, _, _) => "G1c-realtime",
        (1, _, _) => "G-single-realtime",
        (_, _, _) => "G2-item-realtime",
    }
}
