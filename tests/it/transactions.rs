//! Optimistic transactions from several clients at once, over killed leaders: nothing is lost, nothing
//! counts twice, and nobody sees half of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quorate::client::txn::{self, Txn, config, configs, counter, counters, starting_with};
use quorate::client::{Client, Session, SessionOptions, TransactionOptions};
use quorate::error::Error;
use quorate::limits;
use quorate::proto::v1;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::harness::{Cluster, PATIENCE, eventually, run, text};

const ACCOUNTS: usize = 4;
const BEGIN: i64 = 1_000;
const WORKERS: usize = 4;

/// Numbers without a library: the tests need no more than that they differ.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

async fn options(client: &Client) -> TransactionOptions {
    let ttl = Duration::from_secs(120);
    let session: Session =
        client.session(SessionOptions { ttl, ..Default::default() }).await.unwrap();
    TransactionOptions { session: Some(session), attempts: 1_000, ..Default::default() }
}

/// Where the money is: what one transfer moves, in counters or in items of configuration.
#[derive(Clone, Copy)]
enum Bank {
    Counters,
    Config,
}

impl Bank {
    fn begin(self) -> Txn {
        (0..ACCOUNTS).fold(Txn::new(), |txn, number| txn.then(self.set(number, BEGIN)))
    }

    fn counter(number: usize) -> v1::CounterName {
        counter("", format!("acct_{number}"))
    }

    fn item(number: usize) -> v1::ItemName {
        config("", "bank", format!("acct-{number}"))
    }

    fn set(self, number: usize, value: i64) -> v1::TxnStep {
        match self {
            Bank::Counters => Bank::counter(number).set(value).into(),
            Bank::Config => Bank::item(number).publish(value.to_string()).into(),
        }
    }

    async fn read(self, t: &quorate::client::Transaction, number: usize) -> Result<i64, Error> {
        Ok(match self {
            Bank::Counters => t.get(&Bank::counter(number)).await?.unwrap().value,
            Bank::Config => money(&t.get(&Bank::item(number)).await?.unwrap()),
        })
    }

    /// All accounts, as one range.
    async fn read_all(self, t: &quorate::client::Transaction) -> Result<Vec<i64>, Error> {
        Ok(match self {
            Bank::Counters => {
                let all = t.range(&counters("", starting_with("acct_"))).await?;
                all.iter().map(|counter| counter.value).collect()
            }
            Bank::Config => {
                t.range(&configs("", "bank", txn::all())).await?.iter().map(money).collect()
            }
        })
    }
}

fn money(item: &v1::ConfigItem) -> i64 {
    let content = &item.release.as_ref().unwrap().content;
    std::str::from_utf8(content).unwrap().parse().unwrap()
}

/// Workers move money between accounts, never below 0; an auditor adds all up in between; the leader is
/// killed and started again. In the end each account has what the transfers that were answered say.
fn transfers(bank: Bank) {
    run(async move {
        let mut cluster = Cluster::three().await;
        let client = cluster.client();
        assert!(bank.begin().commit(&client, None).await.unwrap().succeeded);
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let conflicts = Arc::new(AtomicU64::new(0));
        let mut workers = JoinSet::new();
        for worker in 0..WORKERS {
            // Each has connections of its own.
            let client = cluster.client();
            let (stop, done, conflicts) = (stop.clone(), done.clone(), conflicts.clone());
            workers.spawn(async move {
                let options = options(&client).await;
                let mut dice = Dice(worker as u64 + 1);
                let mut moved: BTreeMap<usize, i64> = BTreeMap::new();
                while !stop.load(Ordering::Relaxed) {
                    let from = dice.roll(ACCOUNTS);
                    let to = (from + 1 + dice.roll(ACCOUNTS - 1)) % ACCOUNTS;
                    let amount = 1 + dice.roll(300) as i64;
                    let transfer = client.transaction(options.clone(), |t| async move {
                        let (a, b) = (bank.read(&t, from).await?, bank.read(&t, to).await?);
                        assert!(a >= 0 && b >= 0, "{a} and {b} at {}", t.revision());
                        if a < amount {
                            return Ok(0);
                        }
                        t.write(bank.set(from, a - amount));
                        t.write(bank.set(to, b + amount));
                        Ok::<_, Error>(amount)
                    });
                    let committed = transfer.await.unwrap();
                    *moved.entry(from).or_default() -= committed.value;
                    *moved.entry(to).or_default() += committed.value;
                    done.fetch_add(1, Ordering::Relaxed);
                    conflicts.fetch_add(u64::from(committed.attempts) - 1, Ordering::Relaxed);
                }
                moved
            });
        }
        let auditor = tokio::spawn({
            let (client, stop) = (cluster.client(), stop.clone());
            async move {
                let mut audits = 0;
                while !stop.load(Ordering::Relaxed) {
                    // One by one and as a range: all from one revision.
                    let options = TransactionOptions { attempts: 1_000, ..Default::default() };
                    let audit = client.transaction(options, |t| async move {
                        let mut one_by_one = Vec::new();
                        for number in 0..ACCOUNTS {
                            one_by_one.push(bank.read(&t, number).await?);
                        }
                        Ok::<_, Error>((one_by_one, bank.read_all(&t).await?))
                    });
                    let (one_by_one, range) = audit.await.unwrap().value;
                    assert_eq!(one_by_one, range, "two revisions in one transaction");
                    assert_eq!(range.iter().sum::<i64>(), BEGIN * ACCOUNTS as i64, "{range:?}");
                    audits += 1;
                    // The workers shall get on, too.
                    sleep(Duration::from_millis(50)).await;
                }
                audits
            }
        });
        let progress = async |count: u64| {
            let until = done.load(Ordering::Relaxed) + count;
            eventually("transfers", async || match done.load(Ordering::Relaxed) {
                now if now >= until => Ok(()),
                now => Err(format!("{now} of {until}")),
            })
            .await;
        };
        progress(20).await;
        for _ in 0..3 {
            let leader = cluster.leader().await;
            cluster.kill(leader);
            progress(20).await;
            cluster.start(leader).await;
            progress(20).await;
        }
        stop.store(true, Ordering::Relaxed);
        let mut expected = vec![BEGIN; ACCOUNTS];
        while let Some(moved) = timeout(PATIENCE, workers.join_next()).await.unwrap() {
            for (number, by) in moved.unwrap() {
                expected[number] += by;
            }
        }
        let audits = timeout(PATIENCE, auditor).await.unwrap().unwrap();
        assert!(audits > 0);
        eprintln!(
            "{} transfers, {} conflicts, {audits} audits",
            done.load(Ordering::Relaxed),
            conflicts.load(Ordering::Relaxed)
        );
        let look = |t: quorate::client::Transaction| async move { bank.read_all(&t).await };
        let all = client.transaction(TransactionOptions::default(), look).await.unwrap().value;
        assert_eq!(all, expected);
        cluster.same_digest().await;
    });
}

#[test]
fn transfers_between_counters_over_killed_leaders() {
    transfers(Bank::Counters);
}

#[test]
fn transfers_between_config_items_over_killed_leaders() {
    transfers(Bank::Config);
}

/// A range that was read guards against what is made in it: of two that each make the next name, none
/// makes the same as the other.
#[test]
fn a_range_guards_against_phantoms() {
    const EACH: usize = 10;
    run(async {
        let cluster = Cluster::three().await;
        let mut workers = JoinSet::new();
        for _ in 0..3 {
            let client = cluster.client();
            workers.spawn(async move {
                let options = options(&client).await;
                let mut made = Vec::new();
                for _ in 0..EACH {
                    let next = client.transaction(options.clone(), |t| async move {
                        let all = t.range(&counters("", starting_with("seat_"))).await?;
                        let number = all.len();
                        t.write(counter("", format!("seat_{number:03}")).add(1));
                        Ok::<_, Error>(number)
                    });
                    made.push(next.await.unwrap().value);
                }
                made
            });
        }
        let mut made = Vec::new();
        while let Some(own) = timeout(PATIENCE, workers.join_next()).await.unwrap() {
            made.extend(own.unwrap());
        }
        made.sort_unstable();
        assert_eq!(made, (0..3 * EACH).collect::<Vec<_>>());

        // In a namespace that does not exist there is nothing, until it is made.
        let client = cluster.client();
        let look = |t: quorate::client::Transaction| async move {
            let nothing = t.range(&counters("later", txn::all())).await?;
            t.write(counter("", "looked").add(1));
            Ok::<_, Error>(nothing.len())
        };
        let seen = client.transaction(TransactionOptions::default(), look).await.unwrap();
        assert_eq!((seen.value, seen.attempts), (0, 1));
    });
}

/// A transaction is one revision over all kinds of records, or nothing: a step that is refused takes
/// those before it back.
#[test]
fn a_transaction_is_all_or_nothing() {
    run(async {
        let cluster = Cluster::three().await;
        let client = cluster.client();
        let options = options(&client).await;
        let session = options.session.clone().unwrap();
        let (stock, app) = (counter("", "stock"), config("", "", "app.yaml"));
        let lock = client.lock("", "release").acquire(&session).await.unwrap();
        let release = |amount: i64| {
            let take = v1::AddCounterRequest {
                floor: Some(0),
                kind: v1::CounterKind::Gauge.into(),
                ..stock.add(amount)
            };
            Txn::new()
                .when(lock.condition())
                .then(app.publish(format!("replicas: {amount}")))
                .then(super::harness::instance("web", "canary"))
                .then(take)
                .or_else(stock.get())
        };
        let done = release(5).commit(&client, Some(&session)).await.unwrap();
        assert!(done.succeeded);
        let revision = done.header.unwrap().revision;
        let read = Txn::new()
            .then(app.get())
            .then(txn::instance("", "web", "canary").get())
            .then(stock.get());
        let read = read.commit(&client, None).await.unwrap();
        use v1::found_record::Record;
        for result in &read.results {
            let Some(v1::txn_result::Result::Get(found)) = &result.result else { panic!() };
            let at = match found.record.as_ref().unwrap() {
                Record::Config(it) => it.mod_revision,
                Record::Instance(it) => it.mod_revision,
                Record::Counter(it) => it.mod_revision,
                other => panic!("{other:?}"),
            };
            assert_eq!(at, revision);
        }
        let refused = release(-6).commit(&client, Some(&session)).await.unwrap_err();
        let Error::InStep { step: 2, error } = &refused else { panic!("{refused:?}") };
        assert!(matches!(**error, Error::OutOfBounds { value: 5, delta: -6, bound: 0 }), "{error}");
        assert!(refused.definite());
        // The release that stood before it was taken back.
        let get = v1::GetConfigRequest { key: "app.yaml".into(), ..Default::default() };
        let item = client.get_config(get).await.unwrap().item.unwrap();
        assert_eq!(item.release.unwrap().content, b"replicas: 5");

        assert!(lock.release().await.unwrap());
        let late = eventually("an answer", async || {
            text(Txn::new().when(app.version().is(1)).then(stock.get()).commit(&client, None).await)
        })
        .await;
        assert!(late.succeeded);
    });
}

/// What is answered to the commands of one entry may be more than fits a message between nodes.
#[test]
fn long_answers_come_through_a_follower() {
    run(async {
        let cluster = Cluster::three().await;
        let follower = cluster.followers().await[0];
        let client = cluster.at(follower);
        let long = config("", "bank", "long");
        let publish = long.publish("x".repeat(limits::CONFIG_VALUE_BYTES));
        Txn::new().then(publish).commit(&client, None).await.unwrap();
        let reads = limits::PEER_MESSAGE_BYTES / limits::CONFIG_VALUE_BYTES * 3 / 2;
        let mut answers = JoinSet::new();
        for _ in 0..reads {
            let txn = Txn::new().then(counter("", "reads").add(1)).then(long.get());
            let client = client.clone();
            answers.spawn(async move { txn.commit(&client, None).await });
        }
        for answer in answers.join_all().await {
            let v1::TxnResponse { results, .. } = answer.unwrap();
            let Some(v1::txn_result::Result::Get(found)) = &results[1].result else { panic!() };
            let Some(v1::found_record::Record::Config(item)) = &found.record else { panic!() };
            assert_eq!(item.release.as_ref().unwrap().content.len(), limits::CONFIG_VALUE_BYTES);
        }
        assert_eq!(cluster.leader().await, cluster.status(follower).await.leader_id);
    });
}
