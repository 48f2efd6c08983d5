//! Interactive transactions against a node that holds a few counters and counts what it is asked.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::fake::{Node, plain};
use super::*;
use crate::client::txn::counter;
use crate::client::{Answer, Call, Session, SessionOptions, Transaction, TransactionOptions};
use crate::error::Error;
use crate::proto::v1::txn_step::Step;

/// Counters of the namespace "n" as the state keeps them, as far as these tests ask.
#[derive(Default)]
struct Store {
    revision: u64,
    /// Value and mod_revision.
    counters: BTreeMap<String, (i64, u64)>,
    /// What somebody else does before the transaction with this number is answered.
    meanwhile: BTreeMap<usize, Vec<(&'static str, i64)>>,
    /// Errors that the transaction with this number gets after it has taken place.
    lost: BTreeMap<usize, Error>,
    /// Replies to ids.
    replies: BTreeMap<u64, TxnResponse>,
    asked: Vec<TxnRequest>,
}

impl Store {
    fn set(&mut self, name: &str, value: i64) {
        self.revision += 1;
        self.counters.insert(name.to_owned(), (value, self.revision));
    }

    fn mod_revision(&self, name: &RecordName) -> u64 {
        let Some(record_name::Record::Counter(name)) = &name.record else { panic!("{name:?}") };
        self.counters.get(&name.name).map_or(0, |(_, revision)| *revision)
    }

    fn answer(&mut self, request: &TxnRequest) -> Result<TxnResponse, Error> {
        let number = self.asked.len();
        self.asked.push(request.clone());
        for (name, value) in self.meanwhile.remove(&number).unwrap_or_default() {
            self.set(name, value);
        }
        let sequence = request.request_id.map_or(0, |id| id.sequence);
        let answer = match self.replies.get(&sequence) {
            Some(stored) => stored.clone(),
            None => self.carry_out(request),
        };
        if sequence != 0 {
            self.replies.insert(sequence, answer.clone());
        }
        self.lost.remove(&number).map_or(Ok(answer), Err)
    }

    fn carry_out(&mut self, request: &TxnRequest) -> TxnResponse {
        let holds = |compare: &Compare| {
            let Some(compare::To::ModRevision(revision)) = compare.to else {
                panic!("{compare:?}")
            };
            self.mod_revision(compare.record.as_ref().unwrap()) == revision
        };
        let succeeded = request.when.iter().all(holds);
        let steps = if succeeded { &request.then } else { &request.or_else };
        let results = steps.iter().map(|step| self.step(step.step.as_ref().unwrap())).collect();
        let header = Some(Header { revision: self.revision, ..Default::default() });
        TxnResponse { header, succeeded, results, barrier: 0 }
    }

    fn step(&mut self, step: &Step) -> TxnResult {
        use txn_result::Result as Wire;
        let result = match step {
            Step::Get(RecordName { record: Some(record_name::Record::Counter(name)) }) => {
                let found = self.counters.get(&name.name).map(|(value, mod_revision)| {
                    let (value, mod_revision) = (*value, *mod_revision);
                    let name = name.name.clone();
                    let counter = Counter { name, value, mod_revision, ..Default::default() };
                    found_record::Record::Counter(counter)
                });
                Wire::Get(FoundRecord { record: found })
            }
            Step::SetCounter(request) => {
                self.set(&request.name, request.value);
                let (value, changed) = (request.value, true);
                Wire::Counter(AddCounterResponse { header: None, value, changed })
            }
            other => panic!("no script asks for {other:?}"),
        };
        TxnResult { result: Some(result) }
    }
}

struct World {
    node: Node,
    store: Arc<Mutex<Store>>,
}

/// Counters `a` at 10 and `b` at 0.
fn world() -> World {
    let mut store = Store::default();
    store.set("a", 10);
    store.set("b", 0);
    let store = Arc::new(Mutex::new(store));
    let node = Node::simple({
        let store = store.clone();
        move |call| match call {
            Call::Txn(request) => store.lock().unwrap().answer(request).map(Answer::Txn),
            call => Ok(plain(call)),
        }
    });
    World { node, store }
}

impl World {
    fn client(&self) -> Client {
        client(&[&self.node])
    }

    fn meanwhile(&self, number: usize, writes: &[(&'static str, i64)]) {
        self.store.lock().unwrap().meanwhile.insert(number, writes.to_vec());
    }

    fn asked(&self) -> Vec<TxnRequest> {
        self.store.lock().unwrap().asked.clone()
    }

    fn value(&self, name: &str) -> i64 {
        self.store.lock().unwrap().counters[name].0
    }
}

async fn value(t: &Transaction, name: &str) -> Result<i64, Error> {
    Ok(t.get(&counter("n", name)).await?.map_or(0, |found| found.value))
}

/// Moves 1 from `a` to `b`; returns what it saw.
async fn transfer(t: Transaction) -> Result<(i64, i64), Error> {
    let (a, b) = (value(&t, "a").await?, value(&t, "b").await?);
    t.write(counter("n", "a").set(a - 1));
    t.write(counter("n", "b").set(b + 1));
    // Not seen before the commit.
    assert_eq!(value(&t, "a").await?, a);
    Ok((a, b))
}

fn attempts(attempts: u32) -> TransactionOptions {
    TransactionOptions { attempts, ..Default::default() }
}

#[tokio::test]
async fn each_read_is_guarded_by_those_before_and_the_commit_by_all() {
    let world = world();
    let done = world.client().transaction(TransactionOptions::default(), transfer).await.unwrap();
    assert_eq!((done.value, done.attempts, done.revision), ((10, 0), 1, 4));
    assert_eq!((done.results.len(), world.value("a"), world.value("b")), (2, 9, 1));
    let asked = world.asked();
    let shape: Vec<_> =
        asked.iter().map(|it| (it.when.len(), it.then.len(), it.or_else.len())).collect();
    // The second read reads both afresh when the first one does not hold any more.
    assert_eq!(shape, [(0, 1, 0), (1, 1, 2), (2, 2, 2)]);
    assert_eq!(asked[2].when[0], counter("n", "a").mod_revision().is(1));
    assert_eq!(asked[2].when[1], counter("n", "b").mod_revision().is(2));
    assert!(asked.iter().all(|request| request.request_id.is_none()));
}

/// Somebody else writes between two reads: the closure never sees both, and the second attempt knows all
/// that it needs.
#[tokio::test]
async fn a_read_that_would_mix_two_revisions_starts_anew() {
    let world = world();
    world.meanwhile(1, &[("a", 5), ("b", 5)]);
    let done = world.client().transaction(TransactionOptions::default(), transfer).await.unwrap();
    assert_eq!((done.value, done.attempts), ((5, 5), 2));
    assert_eq!(world.asked().len(), 3, "two reads and one commit");
    assert_eq!((world.value("a"), world.value("b")), (4, 6));
}

/// A commit that conflicts brings the fresh values with it.
#[tokio::test]
async fn a_commit_that_conflicts_needs_no_reads_to_be_tried_again() {
    let world = world();
    world.meanwhile(2, &[("b", 7)]);
    let done = world.client().transaction(TransactionOptions::default(), transfer).await.unwrap();
    assert_eq!((done.value, done.attempts), ((10, 7), 2));
    assert_eq!(world.asked().len(), 4, "two reads and two commits");
    assert_eq!((world.value("a"), world.value("b")), (9, 8));
}

/// A closure that goes on after a conflict, or makes an error of its own out of it, is run again.
#[tokio::test]
async fn a_conflict_cannot_be_overlooked() {
    let world = world();
    world.meanwhile(1, &[("a", 5)]);
    let careless = |t: Transaction| async move {
        let a = value(&t, "a").await?;
        let b = value(&t, "b").await.unwrap_or(-1);
        t.write(counter("n", "b").set(b + a));
        Ok::<_, Error>(b)
    };
    let done = world.client().transaction(attempts(2), careless).await.unwrap();
    assert_eq!((done.value, done.attempts, world.value("b")), (0, 2, 5));
}

#[tokio::test]
async fn attempts_are_bounded_and_the_error_names_what_conflicted() {
    let world = world();
    for number in 2..20 {
        world.meanwhile(number, &[("b", 100 + number as i64)]);
    }
    let error = world.client().transaction(attempts(3), transfer).await.unwrap_err();
    assert_eq!(error, Error::Conflict { attempts: 3, what: "counter n/b".to_owned() });
    assert!(error.definite());
    assert_eq!(world.value("a"), 10);
    let none = world.client().transaction(attempts(0), transfer).await.unwrap_err();
    assert!(matches!(none, Error::Invalid { .. }), "{none}");
}

/// An error of the closure ends the transaction, and nothing is written.
#[tokio::test]
async fn an_error_of_the_closure_writes_nothing() {
    #[derive(Debug, PartialEq)]
    enum Own {
        Broke,
        Call(Error),
    }
    impl From<Error> for Own {
        fn from(error: Error) -> Own {
            Own::Call(error)
        }
    }
    let world = world();
    let poor = |t: Transaction| async move {
        t.write(counter("n", "b").set(1));
        let a = value(&t, "a").await?;
        if a < 100 { Err(Own::Broke) } else { Ok(()) }
    };
    let error = world.client().transaction(TransactionOptions::default(), poor).await.unwrap_err();
    assert_eq!(error, Own::Broke);
    assert_eq!((world.asked().len(), world.value("b")), (1, 0));
}

/// What only reads commits nothing: all that it saw was true at one revision.
#[tokio::test]
async fn a_transaction_that_only_reads_needs_no_commit() {
    let world = world();
    let look = |t: Transaction| async move {
        let (a, again) = tokio::join!(value(&t, "a"), value(&t, "a"));
        assert_eq!(a, again);
        Ok::<_, Error>((a?, value(&t, "c").await?, t.revision()))
    };
    let done = world.client().transaction(TransactionOptions::default(), look).await.unwrap();
    assert_eq!((done.value, done.revision), ((10, 0, 2), 2));
    assert_eq!(world.asked().len(), 2);
}

/// The answer of the commit is lost. With a session it is asked for again, and counts once; without one
/// the outcome is unknown, and is not tried again.
#[tokio::test]
async fn a_lost_answer() {
    let world = world();
    world.store.lock().unwrap().lost.insert(2, Error::LeaderChanged);
    let client = world.client();
    let session: Session = client.session(SessionOptions::default()).await.unwrap();
    let options = TransactionOptions { session: Some(session), ..Default::default() };
    let done = client.transaction(options, transfer).await.unwrap();
    assert_eq!((done.attempts, world.value("a"), world.value("b")), (1, 9, 1));
    let asked = world.asked();
    assert_eq!((asked.len(), &asked[2]), (4, &asked[3]));

    world.store.lock().unwrap().lost.insert(6, Error::LeaderChanged);
    let error = client.transaction(TransactionOptions::default(), transfer).await.unwrap_err();
    assert_eq!((error.definite(), world.asked().len()), (false, 7));
    assert_eq!((world.value("a"), world.value("b")), (8, 2));
}
