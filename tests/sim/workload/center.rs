//! What the writers do besides the registry: they add to counters, publish configuration, carry out small
//! transactions, and stand in line for locks.

use quorate::state::{
    Addition, Claim, Compare, Content, CounterName, Format, Holder, ItemName, Leaving, LockName,
    Publication, Record, RecordName, Relation, Step, Txn,
};
use quorate::watch::{Class, Match};

use super::*;
use crate::oracle::configs::item_key;
use crate::oracle::counters::counter_key;
use crate::oracle::transactions::PAIR;

const COUNTERS: [&str; 2] = ["c0", "c1"];
const GROUP: &str = "g";
const ITEMS: [&str; 2] = ["k0", "k1"];
const LOCKS: [&str; 2] = ["l0", "l1"];
/// What is added at once: so much that hardly two additions are the same.
const DELTAS: std::ops::Range<i64> = 1..1_000_000;

/// Where a writer stands in the line of a lock.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    session: u64,
    lock: &'static str,
    /// It believes that the lock is its own.
    holds: bool,
}

/// What a reader looks at besides instances.
pub(super) fn any_key(random: &mut StdRng) -> Key {
    match random.random_range(0..3) {
        0 => counter_key(&counter(any(random, &COUNTERS))),
        1 => counter_key(&counter(any(random, &PAIR))),
        _ => item_key(&item(any(random, &ITEMS))),
    }
}

/// What some watch: the counters that are changed together, and configuration; the locks; and
/// global transactions.
pub(super) fn ranges() -> [Range; 3] {
    let of = |class, first| Selector {
        class,
        namespace: NAMESPACE.to_owned(),
        first,
        second: Match::Any,
    };
    let pair = PAIR.map(|name| of(Class::Counter, Match::Exact(name.to_owned())));
    let items = of(Class::Config, Match::Exact(GROUP.to_owned()));
    let [left, right] = pair;
    let both = Range::new(vec![left, right, items]).expect("three selectors");
    [both, of(Class::Lock, Match::Any).into(), of(Class::Saga, Match::Any).into()]
}

fn counter(name: &str) -> CounterName {
    let (namespace, name) = (NAMESPACE.to_owned(), name.to_owned());
    CounterName { namespace, name, labels: Pairs::default() }
}

fn item(key: &str) -> ItemName {
    ItemName { namespace: NAMESPACE.to_owned(), group: GROUP.to_owned(), key: key.to_owned() }
}

impl Writer {
    pub(super) fn center_op(&mut self) -> Op {
        match self.random.random_range(0..100) {
            0..45 => {
                let name = counter(any(&mut self.random, &COUNTERS));
                self.addition(name)
            }
            45..75 => self.publication(),
            _ => self.transaction(),
        }
    }

    fn addition(&mut self, name: CounterName) -> Op {
        let delta = self.random.random_range(DELTAS);
        Op::AddCounter(Box::new(Addition { name, kind: None, delta, floor: None, ceil: None }))
    }

    /// Half of the time only over the version that is known.
    fn publication(&mut self) -> Op {
        let name = item(any(&mut self.random, &ITEMS));
        let expected_version =
            self.random.random_bool(0.5).then(|| match self.known(&item_key(&name)) {
                Some(Record::Config(item)) => item.version(),
                Some(_) | None => 0,
            });
        let bytes = self.mark().into_bytes().into();
        Op::PublishConfig(Box::new(Publication {
            name,
            content: Content { format: Format::Text, bytes },
            labels: None,
            keep: Some(3),
            author: self.mark(),
            comment: String::new(),
            expected_version,
            schema: 0,
            gray: None,
        }))
    }

    /// Adds the same to both counters of the pair and leaves its mark at an instance: half of the time only
    /// from a value that is known, sometimes only up to a bound, which the second counter may cross.
    fn transaction(&mut self) -> Op {
        let [left, right] = PAIR.map(counter);
        let known = match self.known(&counter_key(&left)) {
            Some(Record::Counter(counter)) => counter.value,
            Some(_) | None => 0,
        };
        let mut when = Vec::new();
        if self.random.random_bool(0.5) {
            let (counter, is) = (left.clone(), Relation::Equal);
            when.push(Compare::Counter { counter, is, than: known });
        }
        let delta = self.random.random_range(DELTAS);
        let room = self.random.random_range(DELTAS);
        let ceil = self.random.random_bool(0.3).then_some(known.saturating_add(room));
        let add = |name: &CounterName, ceil| {
            let addition = Addition { name: name.clone(), kind: None, delta, floor: None, ceil };
            Step::Write(Op::AddCounter(Box::new(addition)))
        };
        let mark: Pairs = [(TAG, self.mark())].into_iter().collect();
        let marked = registration(shared_name(&mut self.random), mark, None);
        let marked = Step::Write(Op::Register(Box::new(marked)));
        let then = vec![marked, add(&left, None), add(&right, ceil)];
        let otherwise = [left, right].map(|name| Step::Get(RecordName::Counter(name))).to_vec();
        Op::Txn(Box::new(Txn { when, then, otherwise }))
    }

    /// A record as it is, or as it was a while ago.
    fn known(&mut self, key: &Key) -> Option<Record> {
        let late = self.random.random_range(0..4u32) == 0;
        let behind = if late { self.random.random_range(1..30) } else { 0 };
        let oracle = self.world.oracle();
        let revision = oracle.history.revision.saturating_sub(behind);
        oracle.history.at(key, revision).cloned()
    }

    /// Whoever holds a lock does not keep it for long.
    pub(super) fn wants_its_turn(&mut self) -> bool {
        let holds = self.place.is_some_and(|place| place.holds);
        self.random.random_range(0..8) < if holds { 4 } else { 1 }
    }

    /// Stands in the line of a lock, asks again when its turn comes, or leaves.
    pub(super) async fn turn_at_lock(&mut self, session: &Session, open: OpenSession) {
        let place = self.place.take().filter(|place| place.session == open.id);
        let lock = place.map_or_else(|| any(&mut self.random, &LOCKS), |place| place.lock);
        let holds = place.is_some_and(|place| place.holds);
        let leaves = place.is_some() && (holds || self.random.random_range(0..3) == 0);
        let Some(request) = session.begin() else { return };
        self.count += 1;
        let name = LockName { namespace: NAMESPACE.to_owned(), lock: lock.to_owned() };
        let (lane, generation) = (self.lane, self.generation);
        let holder = Holder { session: open.id, name: format!("{lane}.{generation}") };
        let before = self.world.oracle().greatest_token(lock);
        let op = if leaves {
            // Whoever asks for the end of it holds it no more.
            self.world.oracle().lock_left(lock, &holder);
            Op::ReleaseLock { lock: name, by: Leaving::Holder(holder.clone()) }
        } else {
            let (value, wait) = (self.mark(), self.random.random_bool(0.7));
            Op::AcquireLock(Box::new(Claim { lock: name, holder: holder.clone(), value, wait }))
        };
        let outcome = self.write_in(session, op, request).await;
        let Some(outcome) = outcome else {
            // What was asked for last may still come: nobody stands in line under this name again.
            self.generation += 1;
            return;
        };
        let got = match outcome.result {
            Ok(Reply::LockAcquired { token }) => Some(token),
            // A client that does not look at its place.
            Ok(Reply::LockQueued { ticket, .. }) if self.world.plant == Plant::QueuedIsHeld => {
                Some(ticket)
            }
            Ok(Reply::LockQueued { .. }) => None,
            Ok(Reply::LockReleased { released: false }) if holds => {
                self.world.violated(format!("{holder:?} did not hold {lock} when it released it"));
                return;
            }
            Ok(_) | Err(_) => return,
        };
        self.place = Some(Place { session: open.id, lock, holds: got.is_some() });
        if let Some(token) = got
            && session.current() == Some(open)
        {
            let now = self.world.now();
            self.world.oracle().lock_held(lock, &holder, token, before, now);
        }
    }

    /// What a planted bug makes of an operation on its way.
    pub(super) fn spoilt(&self, op: &Op) -> Op {
        let mut op = op.clone();
        if self.world.plant == Plant::CompareIgnored
            && let Op::PublishConfig(publication) = &mut op
        {
            publication.expected_version = None;
        }
        op
    }

    /// Whether a write may be sent again that may have taken place before.
    pub(super) fn is_repeatable(&self, write: &Write) -> bool {
        // The name of a global transaction tells a repetition.
        let named = matches!(
            write.op,
            Op::BeginSaga(_)
                | Op::SubmitSaga { .. }
                | Op::AbortSaga { .. }
                | Op::RegisterBranch { .. }
                | Op::GuardedTxn { .. }
        );
        named
            || write.request.is_some()
            || (self.world.plant == Plant::AddRepeated && matches!(write.op, Op::AddCounter(_)))
    }
}
