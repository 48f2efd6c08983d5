//! Knows what must hold, and says when it does not. One file per promise; all of them lean on the
//! [`history`]: the one order of changes that the first node to apply each entry has made.

pub mod completeness;
pub mod configs;
pub mod counters;
pub mod disks;
pub mod elections;
pub mod history;
pub mod locks;
pub mod logs;
pub mod order;
pub mod quorums;
pub mod reads;
pub mod replicas;
pub mod saga_calls;
pub mod saga_decisions;
pub mod saga_effects;
pub mod sagas;
pub mod sessions;
pub mod transactions;
pub mod watches;
pub mod writes;

use quorate::state::Applied;

use configs::Configs;
use counters::Counters;
use disks::Disks;
use elections::Elections;
use history::History;
use locks::Locks;
use logs::Logs;
use replicas::Replicas;
use saga_calls::SagaCalls;
use saga_effects::SagaEffects;
use sessions::Sessions;
use writes::Writes;

/// What one run has seen so far. A violation ends the run.
#[derive(Debug, Default)]
pub struct Oracle {
    pub history: History,
    pub replicas: Replicas,
    pub disks: Disks,
    pub logs: Logs,
    pub elections: Elections,
    pub writes: Writes,
    pub sessions: Sessions,
    pub configs: Configs,
    pub counters: Counters,
    pub locks: Locks,
    pub saga_calls: SagaCalls,
    pub saga_effects: SagaEffects,
    /// The greatest revision that any client knows of: each linearizable call that begins later must
    /// see it.
    pub floor: u64,
    pub violations: Vec<String>,
    pub counts: Counts,
}

/// What took place: a run in which nothing happened proves nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: u64,
    /// Writes whose outcome their client never learned.
    pub unknown: u64,
    /// Acknowledged writes that the state had carried out before, on an earlier attempt.
    pub duplicates: u64,
    /// Acknowledged additions to counters, in transactions too.
    pub additions: u64,
    /// Acknowledged publications, and those that were refused because of another version.
    pub publications: u64,
    pub conflicts: u64,
    /// Transactions that were carried out, and those of which a step was refused.
    pub transactions: u64,
    pub taken_back: u64,
    /// How often a client has come to hold a lock, and how often it was told to wait.
    pub locks_held: u64,
    pub locks_awaited: u64,
    /// Calls of participants that leaders have made, and what was done for the first time.
    pub calls_made: u64,
    pub saga_effects: u64,
    /// Global transactions that ended well and those that were taken back, operators' aside; and how often
    /// a client saw one finished.
    pub sagas_succeeded: u64,
    pub sagas_failed: u64,
    pub sagas_awaited: u64,
    pub reads: u64,
    pub stale_reads: u64,
    pub watch_messages: u64,
    pub watch_snapshots: u64,
    pub watch_lags: u64,
    pub sessions: u64,
    pub keep_alives: u64,
    pub expired: u64,
    pub kills: u64,
    pub power_losses: u64,
    /// Losses of power of all nodes at once.
    pub blackouts: u64,
    pub disk_failures: u64,
    /// Consensus ended by itself, and the node with it.
    pub fatals: u64,
    pub partitions: u64,
    pub pauses: u64,
    pub transfers: u64,
    pub leaders: u64,
    /// Leaders that led in the term of another one.
    pub shared_terms: u64,
    pub snapshots: u64,
    pub purges: u64,
    pub installs: u64,
    pub cuts: u64,
    pub rebuilds: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        let Counts {
            acknowledged,
            unknown,
            duplicates,
            additions,
            publications,
            conflicts,
            transactions,
            taken_back,
            locks_held,
            locks_awaited,
            calls_made,
            saga_effects,
            sagas_succeeded,
            sagas_failed,
            sagas_awaited,
            reads,
            stale_reads,
            watch_messages,
            watch_snapshots,
            watch_lags,
            sessions,
            keep_alives,
            expired,
            kills,
            power_losses,
            blackouts,
            disk_failures,
            fatals,
            partitions,
            pauses,
            transfers,
            leaders,
            shared_terms,
            snapshots,
            purges,
            installs,
            cuts,
            rebuilds,
        } = other;
        for (sum, more) in [
            (&mut self.acknowledged, acknowledged),
            (&mut self.unknown, unknown),
            (&mut self.duplicates, duplicates),
            (&mut self.additions, additions),
            (&mut self.publications, publications),
            (&mut self.conflicts, conflicts),
            (&mut self.transactions, transactions),
            (&mut self.taken_back, taken_back),
            (&mut self.locks_held, locks_held),
            (&mut self.locks_awaited, locks_awaited),
            (&mut self.calls_made, calls_made),
            (&mut self.saga_effects, saga_effects),
            (&mut self.sagas_succeeded, sagas_succeeded),
            (&mut self.sagas_failed, sagas_failed),
            (&mut self.sagas_awaited, sagas_awaited),
            (&mut self.reads, reads),
            (&mut self.stale_reads, stale_reads),
            (&mut self.watch_messages, watch_messages),
            (&mut self.watch_snapshots, watch_snapshots),
            (&mut self.watch_lags, watch_lags),
            (&mut self.sessions, sessions),
            (&mut self.keep_alives, keep_alives),
            (&mut self.expired, expired),
            (&mut self.kills, kills),
            (&mut self.power_losses, power_losses),
            (&mut self.blackouts, blackouts),
            (&mut self.disk_failures, disk_failures),
            (&mut self.fatals, fatals),
            (&mut self.partitions, partitions),
            (&mut self.pauses, pauses),
            (&mut self.transfers, transfers),
            (&mut self.leaders, leaders),
            (&mut self.shared_terms, shared_terms),
            (&mut self.snapshots, snapshots),
            (&mut self.purges, purges),
            (&mut self.installs, installs),
            (&mut self.cuts, cuts),
            (&mut self.rebuilds, rebuilds),
        ] {
            *sum += more;
        }
    }
}

impl Oracle {
    /// Notes a violation.
    pub fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    fn check(&mut self, result: Result<(), String>) {
        if let Err(what) = result {
            self.violated(what);
        }
    }

    /// An entry was applied for the first time: what is wrong with it in itself.
    fn is_in_order(&mut self, applied: &Applied) {
        for event in &applied.events {
            let result = self
                .lines_have_one_head(event)
                .and_then(|()| self.pair_changes_together(event))
                .and_then(|()| self.versions_grow(event))
                .and_then(|()| self.sagas_go_on(event));
            self.check(result);
        }
    }

    /// A client has learned that the state was at this revision.
    pub fn seen(&mut self, revision: u64) {
        self.floor = self.floor.max(revision);
    }
}
