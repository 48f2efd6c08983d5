//! A participant in global transactions is called more than once for the same: an answer is lost, a leader
//! dies, a compensation overtakes the action that it undoes. The barrier makes its effects happen once. It
//! writes a mark for each call into a table of the participant's own database, in the very transaction
//! that does the work: so there is a mark exactly if the work was done.
//!
#![cfg_attr(feature = "sqlite", doc = "```")]
#![cfg_attr(not(feature = "sqlite"), doc = "```ignore")]
//! use quorate::client::BranchContext;
//! use quorate_barrier::{Barrier, Error};
//! use sqlx::SqlitePool;
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # struct Debit { #[prost(string, tag = 1)] account: String, #[prost(int64, tag = 2)] cents: i64 }
//! # #[derive(Clone, PartialEq, prost::Message)]
//! # struct Receipt { #[prost(int64, tag = 1)] left: i64 }
//!
//! /// A method of a tonic service.
//! async fn debit(
//!     pool: &SqlitePool,
//!     request: tonic::Request<Debit>,
//! ) -> Result<tonic::Response<Receipt>, tonic::Status> {
//!     let context = BranchContext::of(&request)?;
//!     let Debit { account, cents } = request.into_inner();
//!     let outcome = Barrier::of(&context).run(pool, |mut tx| async move {
//!         let left: Option<(i64,)> = sqlx::query_as(
//!             "UPDATE accounts SET cents = cents - $1 WHERE name = $2 AND cents >= $1 RETURNING cents",
//!         )
//!         .bind(cents)
//!         .bind(&account)
//!         .fetch_optional(&mut *tx)
//!         .await?;
//!         let (left,) = left.ok_or_else(|| Error::refused("not enough"))?;
//!         Ok((Receipt { left }, tx))
//!     });
//!     outcome.await?.into_response()
//! }
//! ```
//!
//! The rules, for an op and its origin (of `cancel` it is `try`, of `compensate` it is `action`; every other
//! op is its own):
//!
//! ```text
//! a = insert the mark of the origin, unless it is there
//! b = insert the mark of the op, unless it is there
//! the op undoes, and a was inserted   -> EmptyCompensation: there is nothing to undo
//! b was not inserted                  -> Hanging, if what undoes the op has been there; else Duplicate
//! otherwise                           -> Go
//! ```
//!
//! An empty compensation leaves the mark of its origin behind: when the late action comes, it finds its
//! own mark, and does nothing.
//!
//! Two calls about one branch at the same time are put in order by the unique key of the table: while a
//! transaction that has inserted a mark is open, whoever wants to insert the same one waits. When the
//! first commits, the second finds the mark; when it is rolled back, the second inserts it.
//! - SQLite has one writer at a time: the second waits for the database as long as its `busy_timeout` says.
//!   Enter the barrier before anything is read: a transaction that has read and then wants to write is refused
//!   at once when somebody else wrote in between.
//! - PostgreSQL: `ON CONFLICT DO NOTHING` waits for the other transaction. Above READ COMMITTED the second is
//!   refused with a serialization failure if the first committed after its snapshot.
//! - MySQL: the insertion waits for the lock on the other's index record. When the first of three is rolled
//!   back, one of the others may be refused as a deadlock.
//!
//! Whoever is refused so, or waits for too long, gets an error, which the coordinator repeats.

mod dialect;
mod message;
mod table;

use prost::Message;
use quorate::client::{BranchContext, BranchOp, participant};
use sqlx::{Pool, Transaction};
use tonic::{Response, Status};

pub use dialect::Dialect;
use dialect::Mark;
pub use message::{mark_sent, was_sent};
pub use table::{clean_up, create_table};

/// The barrier of one call: of its branch and op. See [the crate](self).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Barrier {
    gid: String,
    branch: String,
    op: BranchOp,
    part: String,
}

/// What is to be done with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It is the first: do the work and commit.
    Go,
    /// The work was done before. Nothing is to be done; the answer is OK.
    Duplicate,
    /// What is to be undone was not done, and will not be. Commit, do nothing; the answer is OK.
    EmptyCompensation,
    /// It comes after what undoes it. Nothing is to be done; the answer is ABORTED, never OK.
    Hanging,
}

/// What came of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome<T> {
    Executed(T),
    /// With what the first one answered.
    Duplicate(T),
    EmptyCompensation,
    Hanging,
}

/// Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What the participant itself says.
    #[error("{}", .0.message())]
    Answer(#[from] Status),
    #[error("database: {0}")]
    Database(#[from] sqlx::Error),
}

impl Error {
    /// See [`participant::refused`].
    pub fn refused(why: impl Into<String>) -> Error {
        Error::Answer(participant::refused(why))
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Status {
        match error {
            Error::Answer(status) => status,
            // To be repeated.
            Error::Database(error) => Status::unavailable(format!("database: {error}")),
        }
    }
}

impl<T: Default> Outcome<T> {
    /// For the coordinator: it may go on, unless this call is hanging.
    pub fn into_response(self) -> Result<Response<T>, Status> {
        match self {
            Outcome::Executed(answer) | Outcome::Duplicate(answer) => Ok(Response::new(answer)),
            Outcome::EmptyCompensation => Ok(Response::new(T::default())),
            Outcome::Hanging => Err(participant::refused("it was given up before it came")),
        }
    }
}

impl Barrier {
    pub fn of(context: &BranchContext) -> Barrier {
        let BranchContext { namespace, gid, branch, op, .. } = context;
        Barrier { gid: key(namespace, gid), branch: branch.clone(), op: *op, part: String::new() }
    }

    /// A barrier of its own for a part of what the call does, for instance in another database: 1..=64 bytes of
    /// ASCII, the same in every op of the branch. The parts are done once each, not all or nothing.
    pub fn part(mut self, part: impl Into<String>) -> Barrier {
        self.part = part.into();
        self
    }

    /// Writes the marks into the caller's transaction and says what is to be done. Whatever that is, the
    /// transaction is to be committed, unless the work fails: then it is rolled back, and the marks go with it.
    pub async fn enter<DB: Dialect>(
        &self,
        tx: &mut Transaction<'_, DB>,
    ) -> Result<Gate, sqlx::Error> {
        let origin = match self.op {
            BranchOp::Compensate => BranchOp::Action,
            BranchOp::Cancel => BranchOp::Try,
            op => op,
        };
        let undoes = origin != self.op;
        let first = DB::insert(tx, self.mark(origin.name())).await?;
        let inserted = match undoes {
            true => DB::insert(tx, self.mark(self.op.name())).await?,
            false => first,
        };
        if undoes && first {
            return Ok(Gate::EmptyCompensation);
        }
        if inserted {
            return Ok(Gate::Go);
        }
        let undone_by = match self.op {
            BranchOp::Action => BranchOp::Compensate,
            BranchOp::Try => BranchOp::Cancel,
            BranchOp::Compensate | BranchOp::Confirm | BranchOp::Cancel | BranchOp::Query => {
                return Ok(Gate::Duplicate);
            }
        };
        match DB::exists(tx, self.mark(undone_by.name())).await? {
            true => Ok(Gate::Hanging),
            false => Ok(Gate::Duplicate),
        }
    }

    /// Keeps with the mark what the call answers, in the transaction that has entered with [`Gate::Go`]: whoever
    /// comes again gets it from [`Barrier::kept_answer`]. At most 64 KiB in MySQL; the coordinator takes 4.
    pub async fn keep_answer<DB: Dialect>(
        &self,
        tx: &mut Transaction<'_, DB>,
        answer: &[u8],
    ) -> Result<(), sqlx::Error> {
        DB::keep(tx, self.mark(self.op.name()), answer).await
    }

    /// None = none was kept.
    pub async fn kept_answer<DB: Dialect>(
        &self,
        tx: &mut Transaction<'_, DB>,
    ) -> Result<Option<Vec<u8>>, sqlx::Error> {
        DB::kept(tx, self.mark(self.op.name())).await
    }

    /// All of it in a transaction of the pool: enters, does the work if it is to be done, keeps its answer and
    /// commits. The work gets the transaction and hands it back with its answer; when it fails instead,
    /// everything is rolled back, and the next call finds no mark.
    ///
    /// After [`Error::Database`] from the commit nobody knows whether it took place; the next call finds
    /// out.
    pub async fn run<DB, T, F, Fut>(self, pool: &Pool<DB>, work: F) -> Result<Outcome<T>, Error>
    where
        DB: Dialect,
        T: Message + Default,
        F: FnOnce(Transaction<'static, DB>) -> Fut,
        Fut: Future<Output = Result<(T, Transaction<'static, DB>), Error>>,
    {
        let mut tx = pool.begin().await?;
        let outcome = match self.enter(&mut tx).await? {
            Gate::Go => {
                let answer;
                (answer, tx) = work(tx).await?;
                let kept = answer.encode_to_vec();
                if !kept.is_empty() {
                    self.keep_answer(&mut tx, &kept).await?;
                }
                Outcome::Executed(answer)
            }
            Gate::Duplicate => {
                let kept = self.kept_answer(&mut tx).await?.unwrap_or_default();
                let unreadable = |error| Status::internal(format!("what was answered: {error}"));
                Outcome::Duplicate(T::decode(&*kept).map_err(unreadable)?)
            }
            Gate::EmptyCompensation => Outcome::EmptyCompensation,
            Gate::Hanging => Outcome::Hanging,
        };
        tx.commit().await?;
        Ok(outcome)
    }

    fn mark<'a>(&'a self, op: &'a str) -> Mark<'a> {
        Mark { gid: &self.gid, branch: &self.branch, op, part: &self.part }
    }
}

/// The first part of a mark. Names may have slashes in them, but no bars.
fn key(namespace: &str, gid: &str) -> String {
    format!("{namespace}|{gid}")
}
