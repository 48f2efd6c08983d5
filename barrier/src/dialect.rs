//! The statements of each database.

use sqlx::{Database, Error};

/// One row of the table, by its unique key.
#[derive(Debug, Clone, Copy)]
pub struct Mark<'a> {
    /// Namespace and gid.
    pub gid: &'a str,
    pub branch: &'a str,
    pub op: &'a str,
    /// In the column `barrier_id`.
    pub part: &'a str,
}

/// A database in which the barrier can stand: [`sqlx::Sqlite`], [`sqlx::Postgres`] and [`sqlx::MySql`], each
/// by the feature of that name.
pub trait Dialect: Database {
    /// What makes the table, if it is not there, and one index by age.
    #[doc(hidden)]
    const CREATE: &'static [&'static str];

    /// False = it is there.
    #[doc(hidden)]
    fn insert(
        connection: &mut Self::Connection,
        mark: Mark<'_>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    /// As it is now, not as a snapshot of the transaction has it.
    #[doc(hidden)]
    fn exists(
        connection: &mut Self::Connection,
        mark: Mark<'_>,
    ) -> impl Future<Output = Result<bool, Error>> + Send;

    #[doc(hidden)]
    fn keep(
        connection: &mut Self::Connection,
        mark: Mark<'_>,
        answer: &[u8],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    #[doc(hidden)]
    fn kept(
        connection: &mut Self::Connection,
        mark: Mark<'_>,
    ) -> impl Future<Output = Result<Option<Vec<u8>>, Error>> + Send;

    /// Executes a statement without parameters.
    #[doc(hidden)]
    fn execute(
        connection: &mut Self::Connection,
        statement: &'static str,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Removes marks older than so many seconds, at most that many; how many.
    #[doc(hidden)]
    fn forget(
        connection: &mut Self::Connection,
        seconds: i64,
        limit: i64,
    ) -> impl Future<Output = Result<u64, Error>> + Send;
}

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
macro_rules! dialect {
    (
        $database:ty,
        create: $create:expr,
        insert: $insert:expr,
        exists: $exists:expr,
        keep: $keep:expr,
        kept: $kept:expr,
        forget: $forget:expr,
    ) => {
        impl Dialect for $database {
            const CREATE: &'static [&'static str] = &$create;

            async fn insert(
                connection: &mut Self::Connection,
                Mark { gid, branch, op, part }: Mark<'_>,
            ) -> Result<bool, Error> {
                let insert = sqlx::query($insert).bind(gid).bind(branch).bind(op).bind(part);
                match insert.execute(connection).await {
                    Ok(done) => Ok(done.rows_affected() == 1),
                    Err(Error::Database(error)) if error.is_unique_violation() => Ok(false),
                    Err(error) => Err(error),
                }
            }

            async fn exists(
                connection: &mut Self::Connection,
                Mark { gid, branch, op, part }: Mark<'_>,
            ) -> Result<bool, Error> {
                let found = sqlx::query($exists).bind(gid).bind(branch).bind(op).bind(part);
                Ok(found.fetch_optional(connection).await?.is_some())
            }

            async fn keep(
                connection: &mut Self::Connection,
                Mark { gid, branch, op, part }: Mark<'_>,
                answer: &[u8],
            ) -> Result<(), Error> {
                let keep = sqlx::query($keep).bind(answer).bind(gid).bind(branch);
                keep.bind(op).bind(part).execute(connection).await.map(drop)
            }

            async fn kept(
                connection: &mut Self::Connection,
                Mark { gid, branch, op, part }: Mark<'_>,
            ) -> Result<Option<Vec<u8>>, Error> {
                let found = sqlx::query_scalar($kept).bind(gid).bind(branch).bind(op).bind(part);
                Ok(found.fetch_optional(connection).await?.flatten())
            }

            async fn execute(
                connection: &mut Self::Connection,
                statement: &'static str,
            ) -> Result<(), Error> {
                sqlx::query(statement).execute(connection).await.map(drop)
            }

            async fn forget(
                connection: &mut Self::Connection,
                seconds: i64,
                limit: i64,
            ) -> Result<u64, Error> {
                let forget = sqlx::query($forget).bind(seconds).bind(limit);
                Ok(forget.execute(connection).await?.rows_affected())
            }
        }
    };
}

#[cfg(feature = "sqlite")]
dialect! {
    sqlx::Sqlite,
    create: [
        "CREATE TABLE IF NOT EXISTS quorate_barrier (
            gid TEXT NOT NULL,
            branch TEXT NOT NULL,
            op TEXT NOT NULL,
            barrier_id TEXT NOT NULL,
            answer BLOB,
            created_at INTEGER NOT NULL DEFAULT (unixepoch()),
            PRIMARY KEY (gid, branch, op, barrier_id)
        ) WITHOUT ROWID",
        "CREATE INDEX IF NOT EXISTS quorate_barrier_created_at ON quorate_barrier (created_at)",
    ],
    insert: "INSERT INTO quorate_barrier (gid, branch, op, barrier_id) VALUES (?, ?, ?, ?)
        ON CONFLICT DO NOTHING",
    exists: "SELECT 1 FROM quorate_barrier
        WHERE gid = ? AND branch = ? AND op = ? AND barrier_id = ?",
    keep: "UPDATE quorate_barrier SET answer = ?
        WHERE gid = ? AND branch = ? AND op = ? AND barrier_id = ?",
    kept: "SELECT answer FROM quorate_barrier
        WHERE gid = ? AND branch = ? AND op = ? AND barrier_id = ?",
    forget: "DELETE FROM quorate_barrier WHERE (gid, branch, op, barrier_id) IN (
            SELECT gid, branch, op, barrier_id FROM quorate_barrier
            WHERE created_at < unixepoch() - ? LIMIT ?
        )",
}

#[cfg(feature = "postgres")]
dialect! {
    sqlx::Postgres,
    create: [
        // Two that find no table at the same time would both make it, and one would fail.
        "SELECT pg_advisory_xact_lock(7165920846221)",
        "CREATE TABLE IF NOT EXISTS quorate_barrier (
            gid text NOT NULL,
            branch text NOT NULL,
            op text NOT NULL,
            barrier_id text NOT NULL,
            answer bytea,
            created_at timestamptz NOT NULL DEFAULT now(),
            PRIMARY KEY (gid, branch, op, barrier_id)
        )",
        "CREATE INDEX IF NOT EXISTS quorate_barrier_created_at ON quorate_barrier (created_at)",
    ],
    insert: "INSERT INTO quorate_barrier (gid, branch, op, barrier_id) VALUES ($1, $2, $3, $4)
        ON CONFLICT DO NOTHING",
    exists: "SELECT 1 FROM quorate_barrier
        WHERE gid = $1 AND branch = $2 AND op = $3 AND barrier_id = $4",
    keep: "UPDATE quorate_barrier SET answer = $1
        WHERE gid = $2 AND branch = $3 AND op = $4 AND barrier_id = $5",
    kept: "SELECT answer FROM quorate_barrier
        WHERE gid = $1 AND branch = $2 AND op = $3 AND barrier_id = $4",
    forget: "DELETE FROM quorate_barrier WHERE (gid, branch, op, barrier_id) IN (
            SELECT gid, branch, op, barrier_id FROM quorate_barrier
            WHERE created_at < now() - $1::bigint * interval '1 second' LIMIT $2
        )",
}

// Columns of bytes: texts would be compared without regard to case.
#[cfg(feature = "mysql")]
dialect! {
    sqlx::MySql,
    create: ["CREATE TABLE IF NOT EXISTS quorate_barrier (
            gid VARBINARY(260) NOT NULL,
            branch VARBINARY(128) NOT NULL,
            op VARBINARY(16) NOT NULL,
            barrier_id VARBINARY(64) NOT NULL,
            answer BLOB,
            created_at TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP,
            PRIMARY KEY (gid, branch, op, barrier_id),
            INDEX quorate_barrier_created_at (created_at)
        ) ENGINE = InnoDB"],
    // Not INSERT IGNORE, which would cut off what is too long.
    insert: "INSERT INTO quorate_barrier (gid, branch, op, barrier_id) VALUES (?, ?, ?, ?)",
    exists: "SELECT 1 FROM quorate_barrier
        WHERE gid = ? AND branch = ? AND op = ? AND barrier_id = ? LOCK IN SHARE MODE",
    keep: "UPDATE quorate_barrier SET answer = ?
        WHERE gid = ? AND branch = ? AND op = ? AND barrier_id = ?",
    kept: "SELECT answer FROM quorate_barrier
        WHERE gid = ? AND branch = ? AND op = ? AND barrier_id = ? LOCK IN SHARE MODE",
    forget: "DELETE FROM quorate_barrier
        WHERE created_at < CURRENT_TIMESTAMP - INTERVAL ? SECOND LIMIT ?",
}
