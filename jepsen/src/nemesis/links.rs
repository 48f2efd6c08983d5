//! Links that are late or narrow, all of them or those of one node.

use std::io;
use std::time::Duration;

use super::{Active, Begun, Ending, Scene, ids, map};
use crate::cluster::links::{Pair, Party, Rule};
use crate::edn::Value;
use crate::random::Random;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slow {
    delay: Duration,
    jitter: Duration,
    bytes_per_second: Option<u64>,
    /// Only the links of one node.
    one: bool,
}

impl Slow {
    pub fn draw(random: &mut Random) -> Slow {
        let millis = |random: &mut Random, range| Duration::from_millis(random.between(range));
        let one = random.chance(50);
        if random.chance(30) {
            let rate = random.between(20_000..=200_000);
            let (delay, jitter) = (Duration::ZERO, Duration::ZERO);
            return Slow { delay, jitter, bytes_per_second: Some(rate), one };
        }
        let (delay, jitter) = (millis(random, 5..=150), millis(random, 0..=200));
        Slow { delay, jitter, bytes_per_second: None, one }
    }

    pub fn begin(&self, scene: &mut Scene<'_>) -> io::Result<Option<Begun>> {
        let nodes = scene.cluster.ids();
        let struck = if self.one { vec![*scene.random.pick(&nodes)] } else { nodes.clone() };
        let all = nodes.iter().flat_map(|&a| nodes.iter().map(move |&b| (a, b)));
        let touched = all.filter(|(a, b)| a != b && (struck.contains(a) || struck.contains(b)));
        let pairs: Vec<Pair> = touched.map(|(a, b)| (Party::Node(a), Party::Node(b))).collect();
        let links = scene.cluster.links();
        let before = pairs.iter().map(|&pair| links.traffic(pair).slowed).sum();
        let Slow { delay, jitter, bytes_per_second, .. } = *self;
        links.change(|rules| {
            for &pair in &pairs {
                let block = rules.get(&pair).and_then(|rule| rule.block);
                rules.insert(pair, Rule { block, delay, jitter, bytes_per_second });
            }
        });
        let millis = |time: Duration| Value::Int(time.as_millis() as i64);
        let kind = if bytes_per_second.is_some() { "throttle" } else { "delay" };
        let what = map([
            ("kind", Value::keyword(kind)),
            ("nodes", ids(&struck)),
            ("delay-ms", millis(delay)),
            ("jitter-ms", millis(jitter)),
            (
                "bytes-per-second",
                bytes_per_second.map_or(Value::Nil, |rate| Value::Int(rate as i64)),
            ),
        ]);
        // Answers may come too late for everybody.
        Ok(Some(Begun::new(what, false, Slowed { pairs, before })))
    }
}

struct Slowed {
    pairs: Vec<Pair>,
    before: u64,
}

impl Active for Slowed {
    fn end<'a>(self: Box<Self>, scene: &'a mut Scene<'_>) -> Ending<'a> {
        Box::pin(async move {
            let links = scene.cluster.links();
            let now: u64 = self.pairs.iter().map(|&pair| links.traffic(pair).slowed).sum();
            links.change(|rules| {
                for pair in &self.pairs {
                    let block = rules.get(pair).and_then(|rule| rule.block);
                    rules.insert(*pair, Rule { block, ..Rule::default() });
                }
            });
            Ok(match now - self.before {
                0 => Err("nothing was sent".to_owned()),
                chunks => Ok(format!("{chunks} chunks were late")),
            })
        })
    }
}
