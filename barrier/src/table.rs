//! The table of the marks: `quorate_barrier`.

use std::time::Duration;

use sqlx::{Error, Pool};

use super::dialect::Dialect;

/// Marks that are removed in one transaction.
const BATCH: i64 = 1_000;
/// No mark is older than 1 000 years; databases do not reckon with much more.
const EVER: Duration = Duration::from_secs(1_000 * 365 * 86_400);

/// Makes the table, unless it is there. To be done when the participant starts, or by its migrations.
pub async fn create_table<DB: Dialect>(pool: &Pool<DB>) -> Result<(), Error> {
    let mut tx = pool.begin().await?;
    for statement in DB::CREATE {
        DB::execute(&mut tx, statement).await?;
    }
    tx.commit().await
}

/// Removes the marks that are older than this, a thousand at a time, and says how many they were. To be
/// done now and then.
///
/// No transaction may be under way that is so old: without its marks a late call would be taken for the
/// first. So it is longer than transactions may take, and than operators leave them suspended; a month
/// rather than a day.
pub async fn clean_up<DB: Dialect>(pool: &Pool<DB>, older_than: Duration) -> Result<u64, Error> {
    let seconds = older_than.min(EVER).as_secs() as i64;
    let mut removed = 0;
    loop {
        let mut tx = pool.begin().await?;
        let batch = DB::forget(&mut tx, seconds, BATCH).await?;
        tx.commit().await?;
        removed += batch;
        if batch < BATCH as u64 {
            return Ok(removed);
        }
    }
}
