//! One set of stories for every database. Those of a server are run by hand: see README.md.

#![allow(clippy::unwrap_used)]

use quorate::client::{BranchContext, BranchOp, BranchResults};

/// What a debit answers.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Receipt {
    #[prost(int64, tag = "1")]
    pub number: i64,
}

pub fn context(namespace: &str, gid: &str, op: BranchOp) -> BranchContext {
    BranchContext {
        namespace: namespace.into(),
        gid: gid.into(),
        branch: "a".into(),
        op,
        attempt: 1,
        epoch: 1,
        results: BranchResults::default(),
    }
}

macro_rules! stories {
    ($name:ident, $database:ty, $open:expr, $age:literal, $(#[$how:meta])*) => {
        mod $name {
            use std::time::Duration;

            use futures::future::join_all;
            use quorate::client::{BranchContext, BranchOp};
            use quorate_barrier::{
                Barrier, Error, Gate, Outcome, clean_up, create_table, mark_sent, was_sent,
            };
            use sqlx::Pool;
            use tonic::{Code, Status};

            use super::{Receipt, context};

            type Database = $database;

            async fn open() -> Pool<Database> {
                let pool: Pool<Database> = $open().await;
                create_table(&pool).await.unwrap();
                create_table(&pool).await.unwrap();
                for statement in [
                    "CREATE TABLE account (cents BIGINT NOT NULL)",
                    "INSERT INTO account VALUES (100)",
                ] {
                    sqlx::query(statement).execute(&pool).await.unwrap();
                }
                pool
            }

            async fn cents(pool: &Pool<Database>) -> i64 {
                sqlx::query_scalar("SELECT cents FROM account").fetch_one(pool).await.unwrap()
            }

            /// Takes ten from the account, or gives them back.
            async fn call(
                pool: &Pool<Database>,
                context: &BranchContext,
            ) -> Result<Outcome<Receipt>, Error> {
                let back = matches!(context.op, BranchOp::Compensate | BranchOp::Cancel);
                let statement = match back {
                    true => "UPDATE account SET cents = cents + 10",
                    false => "UPDATE account SET cents = cents - 10",
                };
                let work = Barrier::of(context).run(pool, |mut tx| async move {
                    sqlx::query(statement).execute(&mut *tx).await?;
                    let left = sqlx::query_scalar("SELECT cents FROM account");
                    let number = left.fetch_one(&mut *tx).await?;
                    Ok((Receipt { number }, tx))
                });
                work.await
            }

            /// The same, until the database does not refuse it, as the coordinator does.
            async fn insist(pool: &Pool<Database>, context: &BranchContext) -> Outcome<Receipt> {
                loop {
                    match call(pool, context).await {
                        Ok(outcome) => return outcome,
                        Err(Error::Database(_)) => tokio::task::yield_now().await,
                        Err(error) => panic!("{error}"),
                    }
                }
            }

            #[tokio::test]
            $(#[$how])*
            async fn what_comes_again_is_not_done_again_and_gets_the_same_answer() {
                let pool = open().await;
                let action = context("team", "t-1", BranchOp::Action);
                let receipt = Receipt { number: 90 };
                assert_eq!(call(&pool, &action).await.unwrap(), Outcome::Executed(receipt.clone()));
                for _ in 0..2 {
                    assert_eq!(call(&pool, &action).await.unwrap(), Outcome::Duplicate(receipt.clone()));
                }
                let answer = call(&pool, &action).await.unwrap().into_response().unwrap();
                assert_eq!(answer.into_inner(), receipt);
                assert_eq!(cents(&pool).await, 90);
                // Another transaction, another branch and another namespace are other ones.
                for other in [
                    context("team", "t-2", BranchOp::Action),
                    BranchContext { branch: "b".into(), ..action.clone() },
                    context("other", "t-1", BranchOp::Action),
                    context("team", "T-1", BranchOp::Action),
                    context("team/t-1", "x", BranchOp::Action),
                    context("team", "t-1/x", BranchOp::Action),
                ] {
                    let outcome = call(&pool, &other).await.unwrap();
                    assert!(matches!(outcome, Outcome::Executed(_)), "{other:?}: {outcome:?}");
                }
                assert_eq!(cents(&pool).await, 30);
            }

            #[tokio::test]
            $(#[$how])*
            async fn what_was_done_is_undone_once() {
                let pool = open().await;
                for (does, undoes) in
                    [(BranchOp::Action, BranchOp::Compensate), (BranchOp::Try, BranchOp::Cancel)]
                {
                    let (does, undoes) = (context("", "t-1", does), context("", "t-1", undoes));
                    call(&pool, &does).await.unwrap();
                    let outcome = call(&pool, &undoes).await.unwrap();
                    assert_eq!(outcome, Outcome::Executed(Receipt { number: 100 }));
                    let outcome = call(&pool, &undoes).await.unwrap();
                    assert_eq!(outcome, Outcome::Duplicate(Receipt { number: 100 }));
                    // A late copy of what was undone does not do it again, and is not told that all is well.
                    let late = call(&pool, &does).await.unwrap();
                    assert_eq!(late, Outcome::Hanging);
                    assert_eq!(late.into_response().unwrap_err().code(), Code::Aborted);
                    assert_eq!(cents(&pool).await, 100);
                }
            }

            #[tokio::test]
            $(#[$how])*
            async fn what_is_undone_before_it_comes_is_never_done() {
                let pool = open().await;
                for (does, undoes) in
                    [(BranchOp::Action, BranchOp::Compensate), (BranchOp::Try, BranchOp::Cancel)]
                {
                    let (does, undoes) = (context("", "t-1", does), context("", "t-1", undoes));
                    let outcome = call(&pool, &undoes).await.unwrap();
                    assert_eq!(outcome, Outcome::EmptyCompensation);
                    assert!(outcome.into_response().is_ok());
                    let again = call(&pool, &undoes).await.unwrap();
                    assert_eq!(again, Outcome::Duplicate(Receipt::default()));
                    for _ in 0..2 {
                        assert_eq!(call(&pool, &does).await.unwrap(), Outcome::Hanging);
                    }
                    assert_eq!(cents(&pool).await, 100);
                }
            }

            #[tokio::test]
            $(#[$how])*
            async fn a_confirmation_is_its_own_origin() {
                let pool = open().await;
                let [attempt, confirm] =
                    [BranchOp::Try, BranchOp::Confirm].map(|op| context("", "t-1", op));
                for context in [&attempt, &confirm] {
                    let outcome = call(&pool, context).await.unwrap();
                    assert!(matches!(outcome, Outcome::Executed(_)), "{outcome:?}");
                    let outcome = call(&pool, context).await.unwrap();
                    assert!(matches!(outcome, Outcome::Duplicate(_)), "{outcome:?}");
                }
                assert_eq!(cents(&pool).await, 80);
            }

            /// Work that fails, and a participant that dies before it commits, leave no mark.
            #[tokio::test]
            $(#[$how])*
            async fn what_was_rolled_back_may_come_again() {
                let pool = open().await;
                let action = context("", "t-1", BranchOp::Action);
                let barrier = Barrier::of(&action);
                let spend = "UPDATE account SET cents = cents - 10";
                let refused = barrier.clone().run::<_, Receipt, _, _>(&pool, |mut tx| async move {
                    sqlx::query(spend).execute(&mut *tx).await?;
                    Err(Error::refused("not enough"))
                });
                let status = Status::from(refused.await.unwrap_err());
                assert_eq!((status.code(), status.message()), (Code::Aborted, "not enough"));
                let mut tx = pool.begin().await.unwrap();
                assert_eq!(barrier.enter(&mut tx).await.unwrap(), Gate::Go);
                sqlx::query(spend).execute(&mut *tx).await.unwrap();
                drop(tx);
                assert_eq!(cents(&pool).await, 100);
                let outcome = call(&pool, &action).await.unwrap();
                assert_eq!(outcome, Outcome::Executed(Receipt { number: 90 }));
                // What was refused need not be undone: there is no mark of it.
                let refused = context("", "t-2", BranchOp::Action);
                let nothing = Barrier::of(&refused).run::<_, Receipt, _, _>(&pool, |_| async {
                    Err(Error::refused("no"))
                });
                nothing.await.unwrap_err();
                let undo = context("", "t-2", BranchOp::Compensate);
                assert_eq!(call(&pool, &undo).await.unwrap(), Outcome::EmptyCompensation);
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            $(#[$how])*
            async fn of_many_at_once_one_does_it() {
                let pool = open().await;
                for gid in 0..10 {
                    let action = context("", &format!("t-{gid}"), BranchOp::Action);
                    let calls = (0..8).map(|_| {
                        let (pool, action) = (pool.clone(), action.clone());
                        tokio::spawn(async move { insist(&pool, &action).await })
                    });
                    let outcomes = join_all(calls).await.into_iter().map(Result::unwrap);
                    let executed = outcomes.filter(|it| matches!(it, Outcome::Executed(_)));
                    assert_eq!(executed.count(), 1);
                }
                assert_eq!(cents(&pool).await, 0);
            }

            /// An action and its compensation at the same time come to nothing, whoever is first.
            #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            $(#[$how])*
            async fn an_action_and_its_compensation_at_once_come_to_nothing() {
                let pool = open().await;
                let runs = (0..40).map(|gid| {
                    let pool = pool.clone();
                    tokio::spawn(async move {
                        let gid = format!("t-{gid}");
                        let [does, undoes] =
                            [BranchOp::Action, BranchOp::Compensate].map(|op| context("", &gid, op));
                        let both =
                            futures::join!(insist(&pool, &does), insist(&pool, &undoes));
                        match both {
                            (Outcome::Executed(_), Outcome::Executed(_)) => {}
                            (Outcome::Hanging, Outcome::EmptyCompensation) => {}
                            otherwise => panic!("{otherwise:?}"),
                        }
                    })
                });
                for run in join_all(runs).await {
                    run.unwrap();
                }
                assert_eq!(cents(&pool).await, 100);
            }

            #[tokio::test]
            $(#[$how])*
            async fn parts_are_done_once_each() {
                let pool = open().await;
                let barrier = Barrier::of(&context("", "t-1", BranchOp::Action));
                let mut tx = pool.begin().await.unwrap();
                for part in ["ledger", "mail"] {
                    let barrier = barrier.clone().part(part);
                    assert_eq!(barrier.enter(&mut tx).await.unwrap(), Gate::Go);
                    assert_eq!(barrier.enter(&mut tx).await.unwrap(), Gate::Duplicate);
                    assert_eq!(barrier.kept_answer(&mut tx).await.unwrap(), None);
                    barrier.keep_answer(&mut tx, &[0, 255]).await.unwrap();
                    let kept = barrier.kept_answer(&mut tx).await.unwrap();
                    assert_eq!(kept, Some(vec![0, 255]));
                }
                tx.commit().await.unwrap();
            }

            #[tokio::test]
            $(#[$how])*
            async fn a_sender_that_is_asked_stands_by_its_answer() {
                let pool = open().await;
                let ask = |gid: &'static str| {
                    let pool = pool.clone();
                    async move {
                        let mut tx = pool.begin().await.unwrap();
                        let context = context("team", gid, BranchOp::Query);
                        let sent = was_sent(&mut tx, &context).await.unwrap();
                        tx.commit().await.unwrap();
                        sent
                    }
                };
                // Asked while the local transaction is open: it waits for what becomes of it.
                for (gid, commits) in [("m-1", true), ("m-2", false)] {
                    let mut tx = pool.begin().await.unwrap();
                    assert_eq!(mark_sent(&mut tx, "team", gid).await.unwrap(), Gate::Go);
                    let asked = tokio::spawn(ask(gid));
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    match commits {
                        true => tx.commit().await.unwrap(),
                        false => tx.rollback().await.unwrap(),
                    }
                    assert_eq!(asked.await.unwrap(), commits);
                    // Asked again it says the same.
                    assert_eq!(ask(gid).await, commits);
                    let mut tx = pool.begin().await.unwrap();
                    let late = mark_sent(&mut tx, "team", gid).await.unwrap();
                    assert_eq!(late, if commits { Gate::Duplicate } else { Gate::Hanging });
                    tx.rollback().await.unwrap();
                }
            }

            #[tokio::test]
            $(#[$how])*
            async fn old_marks_are_removed() {
                let pool = open().await;
                let mut tx = pool.begin().await.unwrap();
                for gid in 0..1_500 {
                    let action = context("", &format!("t-{gid}"), BranchOp::Action);
                    assert_eq!(Barrier::of(&action).enter(&mut tx).await.unwrap(), Gate::Go);
                }
                tx.commit().await.unwrap();
                let day = Duration::from_secs(86_400);
                assert_eq!(clean_up(&pool, day).await.unwrap(), 0);
                assert_eq!(clean_up(&pool, Duration::MAX).await.unwrap(), 0);
                sqlx::query($age).execute(&pool).await.unwrap();
                let young = context("", "young", BranchOp::Action);
                call(&pool, &young).await.unwrap();
                assert_eq!(clean_up(&pool, day).await.unwrap(), 1_500);
                assert!(matches!(call(&pool, &young).await.unwrap(), Outcome::Duplicate(_)));
            }

            /// Handlers of tonic want this.
            #[test]
            fn its_futures_may_be_sent() {
                fn is_send(_: impl Send) {}
                let _ = |pool: &Pool<Database>, context: &BranchContext| {
                    is_send(call(pool, context));
                };
            }
        }
    };
}

#[cfg(feature = "sqlite")]
async fn sqlite() -> sqlx::SqlitePool {
    use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
    let dir = tempfile::tempdir().unwrap();
    let options = SqliteConnectOptions::new()
        .filename(dir.path().join("test.sqlite"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool = SqlitePoolOptions::new().max_connections(4).after_connect(move |_, _| {
        // The directory lives as long as the pool.
        let _ = &dir;
        Box::pin(async { Ok(()) })
    });
    pool.connect_with(options).await.unwrap()
}

#[cfg(feature = "sqlite")]
stories!(
    of_sqlite,
    sqlx::Sqlite,
    super::sqlite,
    "UPDATE quorate_barrier SET created_at = created_at - 90000",
);

/// In a schema of its own.
#[cfg(feature = "postgres")]
async fn postgres() -> sqlx::PgPool {
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
    let url = std::env::var("QUORATE_TEST_POSTGRES").expect("the URL of a PostgreSQL");
    let options: PgConnectOptions = url.parse().unwrap();
    let schema = format!("t{:016x}", rand::random::<u64>());
    let admin =
        PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"));
    sqlx::query(create).execute(&admin).await.unwrap();
    let options = options.options([("search_path", schema)]);
    PgPoolOptions::new().max_connections(8).connect_with(options).await.unwrap()
}

#[cfg(feature = "postgres")]
stories!(
    of_postgres,
    sqlx::Postgres,
    super::postgres,
    "UPDATE quorate_barrier SET created_at = created_at - interval '25 hours'",
    #[ignore = "needs a PostgreSQL: see README.md"]
);

/// In a database of its own.
#[cfg(feature = "mysql")]
async fn mysql() -> sqlx::MySqlPool {
    use sqlx::mysql::{MySqlConnectOptions, MySqlPoolOptions};
    let url = std::env::var("QUORATE_TEST_MYSQL").expect("the URL of a MySQL");
    let options: MySqlConnectOptions = url.parse().unwrap();
    let database = format!("t{:016x}", rand::random::<u64>());
    let admin =
        MySqlPoolOptions::new().max_connections(1).connect_with(options.clone()).await.unwrap();
    let create = sqlx::AssertSqlSafe(format!("CREATE DATABASE {database}"));
    sqlx::query(create).execute(&admin).await.unwrap();
    let options = options.database(&database);
    MySqlPoolOptions::new().max_connections(8).connect_with(options).await.unwrap()
}

#[cfg(feature = "mysql")]
stories!(
    of_mysql,
    sqlx::MySql,
    super::mysql,
    "UPDATE quorate_barrier SET created_at = created_at - INTERVAL 25 HOUR",
    #[ignore = "needs a MySQL: see README.md"]
);
