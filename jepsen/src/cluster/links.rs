//! What happens to bytes on their way from one party to another, and what happened to them so far.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// Who sends or receives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    Clients,
    Node(u64),
}

/// One direction between two parties.
pub type Pair = (Party, Party);

/// What happens on one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rule {
    pub block: Option<Block>,
    /// Each chunk arrives so much later, and up to `jitter` more.
    pub delay: Duration,
    pub jitter: Duration,
    pub bytes_per_second: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Block {
    /// Packets are lost: nothing arrives, nobody is told, and what was sent arrives after the heal, as by
    /// TCP's repetitions.
    Freeze,
    /// Connections are reset, new ones too.
    Cut,
}

/// What happened on one direction so far: the proof that a fault took effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes that arrived.
    pub passed: u64,
    /// Times that bytes or a connection had to wait because they were blocked.
    pub held: u64,
    /// Connections that were reset or refused.
    pub cut: u64,
    /// Chunks that were made late.
    pub slowed: u64,
}

impl Traffic {
    /// What came after an earlier look.
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            passed: self.passed - before.passed,
            held: self.held - before.held,
            cut: self.cut - before.cut,
            slowed: self.slowed - before.slowed,
        }
    }
}

pub type Rules = BTreeMap<Pair, Rule>;

/// The rules of all links of a cluster; clones share them.
#[derive(Debug, Clone)]
pub struct Links {
    rules: Arc<watch::Sender<Rules>>,
    traffic: Arc<Mutex<BTreeMap<Pair, Traffic>>>,
    strangers: Arc<AtomicU64>,
}

impl Default for Links {
    fn default() -> Links {
        Links {
            rules: Arc::new(watch::Sender::new(Rules::new())),
            traffic: Arc::default(),
            strangers: Arc::default(),
        }
    }
}

impl Links {
    /// Changes rules; connections obey at once.
    pub fn change(&self, change: impl FnOnce(&mut Rules)) {
        self.rules.send_modify(change);
    }

    pub fn rule(&self, pair: Pair) -> Rule {
        self.rules.borrow().get(&pair).copied().unwrap_or_default()
    }

    pub fn traffic(&self, pair: Pair) -> Traffic {
        self.counted().get(&pair).copied().unwrap_or_default()
    }

    pub(super) fn count(&self, pair: Pair, count: impl FnOnce(&mut Traffic)) {
        count(self.counted().entry(pair).or_default());
    }

    pub(super) fn count_stranger(&self) {
        self.strangers.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections between nodes that were dropped because it was not found out whose they were; some end
    /// before that.
    pub fn strangers(&self) -> u64 {
        self.strangers.load(Ordering::Relaxed)
    }

    /// Waits until none of the directions is blocked by this.
    pub(super) async fn without(&self, pairs: &[Pair], block: Block) {
        self.until(|rules| !any(rules, pairs, block)).await;
    }

    /// Waits until one of the directions is blocked by this.
    pub(super) async fn with(&self, pairs: &[Pair], block: Block) {
        self.until(|rules| any(rules, pairs, block)).await;
    }

    async fn until(&self, holds: impl Fn(&Rules) -> bool) {
        let mut rules = self.rules.subscribe();
        // The sender lives as long as self.
        let _ = rules.wait_for(|rules| holds(rules)).await;
    }

    fn counted(&self) -> MutexGuard<'_, BTreeMap<Pair, Traffic>> {
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn any(rules: &Rules, pairs: &[Pair], block: Block) -> bool {
    let blocked = |pair| rules.get(pair).and_then(|rule: &Rule| rule.block);
    pairs.iter().any(|pair| blocked(pair) == Some(block))
}
