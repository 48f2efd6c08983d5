//! Whether the banks' books agree with what the cluster says of every transfer.

use std::collections::BTreeMap;
use std::path::Path;

use quorate::proto::v1::{self, SagaMode, SagaStatus};

use crate::{ACCOUNTS, BANKS, CENTS, Failed, bank};

/// How often each op of each branch of a transfer took effect, in whichever bank.
type Effects = BTreeMap<(String, String), i64>;

/// What became of the transfers of one mode.
#[derive(Debug, Default)]
struct Ended {
    succeeded: u64,
    /// Refused before anything was done.
    untouched: u64,
    /// Something was done and undone.
    undone: u64,
}

/// What is in one bank.
#[derive(Debug, Default, Clone, Copy)]
struct Money {
    balance: i64,
    held: i64,
    promised: i64,
}

/// Prints the sums; true when everything agrees. `told` is what customers were told: gid, and whether the
/// transfer has succeeded.
pub async fn audit(
    dir: &Path,
    transfers: &[v1::Saga],
    told: &BTreeMap<String, bool>,
) -> Result<bool, Failed> {
    let mut effects: BTreeMap<String, Effects> = BTreeMap::new();
    let mut books = Vec::new();
    for name in BANKS {
        let pool = bank::open(&dir.join(name)).await?;
        let rows = sqlx::query_as("SELECT gid, branch, op, count(*) FROM journal GROUP BY 1, 2, 3");
        let rows: Vec<(String, String, String, i64)> = rows.fetch_all(&pool).await?;
        for (gid, branch, op, count) in rows {
            *effects.entry(gid).or_default().entry((branch, op)).or_default() += count;
        }
        let sums = sqlx::query_as("SELECT sum(balance), sum(held), sum(promised) FROM accounts");
        let (balance, held, promised) = sums.fetch_one(&pool).await?;
        books.push((name, Money { balance, held, promised }));
    }

    let (mut wrong, mut saga, mut tcc) = (Vec::new(), Ended::default(), Ended::default());
    for transfer in transfers {
        let done = effects.remove(&transfer.gid).unwrap_or_default();
        if let Err(why) = agrees(transfer, &done) {
            wrong.push(format!("{}: {why}", transfer.gid));
        }
        let ended = if transfer.mode() == SagaMode::Tcc { &mut tcc } else { &mut saga };
        match (transfer.status(), done.is_empty()) {
            (SagaStatus::Succeeded, _) => ended.succeeded += 1,
            (_, true) => ended.untouched += 1,
            (_, false) => ended.undone += 1,
        }
        let succeeded = transfer.status() == SagaStatus::Succeeded;
        if told.get(&transfer.gid).is_some_and(|told| *told != succeeded) {
            wrong.push(format!("{}: its customer was told otherwise", transfer.gid));
        }
    }
    wrong.extend(effects.keys().map(|gid| format!("{gid}: the cluster does not know it")));
    let known: std::collections::BTreeSet<&str> =
        transfers.iter().map(|transfer| transfer.gid.as_str()).collect();
    let lost = told.iter().filter(|(gid, well)| **well && !known.contains(gid.as_str()));
    wrong.extend(lost.map(|(gid, _)| format!("{gid}: it has succeeded, and is lost")));

    println!("\n{:<34} {:>10} {:>10}", "TRANSFERS", "BY SAGA", "BY TCC");
    for (what, by_saga, by_tcc) in [
        ("succeeded", saga.succeeded, tcc.succeeded),
        ("failed before anything was done", saga.untouched, tcc.untouched),
        ("failed, and what was done is undone", saga.undone, tcc.undone),
    ] {
        println!("{what:<35} {by_saga:>9} {by_tcc:>10}");
    }
    println!("whose customers live, and were told  {}", told.len());

    println!("\n{:<12} {:>12} {:>8} {:>10}", "BANK", "BALANCE", "HELD", "PROMISED");
    for (name, Money { balance, held, promised }) in &books {
        println!("{name:<12} {balance:>12} {held:>8} {promised:>10}");
        if (*held, *promised) != (0, 0) {
            wrong.push(format!("{name} has money on its way, and nothing runs"));
        }
    }
    let sum: i64 = books.iter().map(|(_, money)| money.balance).sum();
    let expected = 2 * i64::from(ACCOUNTS) * CENTS;
    println!("{:<12} {sum:>12} of {expected}", "together");
    if sum != expected {
        wrong.push(format!("{sum} is not {expected}"));
    }

    for why in wrong.iter().take(10) {
        eprintln!("error: {why}");
    }
    match wrong.len() {
        0 => println!("\nall of it agrees"),
        count => eprintln!("error: {count} disagree"),
    }
    Ok(wrong.is_empty())
}

/// What was done is what its status says.
fn agrees(transfer: &v1::Saga, done: &Effects) -> Result<(), String> {
    let (does, settles, undoes) = match transfer.mode() {
        SagaMode::Tcc => ("try", Some("confirm"), "cancel"),
        SagaMode::Saga | SagaMode::Message | SagaMode::Unspecified => {
            ("action", None, "compensate")
        }
    };
    let succeeded = match transfer.status() {
        SagaStatus::Succeeded => true,
        SagaStatus::Failed => false,
        status => return Err(format!("it is {status:?}: {}", transfer.error)),
    };
    for branch in ["debit", "credit"] {
        let count = |op: &str| done.get(&(branch.to_owned(), op.to_owned())).copied().unwrap_or(0);
        let settled = settles.map_or(i64::from(succeeded), count);
        let right = match succeeded {
            true => (count(does), settled, count(undoes)) == (1, 1, 0),
            false => count(does) <= 1 && settled == 0 && count(does) == count(undoes),
        };
        if !right {
            return Err(format!("it is {:?}, and was done: {done:?}", transfer.status()));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It must see what it is there for.
    #[test]
    fn what_disagrees_is_noticed() {
        let transfer = |mode: SagaMode, status: SagaStatus| v1::Saga {
            mode: mode.into(),
            status: status.into(),
            ..Default::default()
        };
        let done = |effects: &[(&str, &str, i64)]| -> Effects {
            let owned = effects.iter().map(|(b, op, n)| (((*b).into(), (*op).into()), *n));
            owned.collect()
        };
        let (saga, tcc) = (SagaMode::Saga, SagaMode::Tcc);
        let (well, failed) = (SagaStatus::Succeeded, SagaStatus::Failed);
        let action = [("debit", "action", 1), ("credit", "action", 1)];
        let tried = [("debit", "try", 1), ("credit", "try", 1)];
        let confirmed = [tried[0], tried[1], ("debit", "confirm", 1), ("credit", "confirm", 1)];
        for (mode, status, effects, right) in [
            (saga, well, &action[..], true),
            (saga, well, &action[..1], false),
            (saga, well, &[action[0], ("credit", "action", 2)], false),
            (saga, well, &[action[0], action[1], ("debit", "compensate", 1)], false),
            (saga, failed, &[], true),
            (saga, failed, &[action[0], ("debit", "compensate", 1)], true),
            (saga, failed, &action[..1], false),
            (saga, failed, &[("debit", "compensate", 1)], false),
            (saga, failed, &[("debit", "action", 2), ("debit", "compensate", 2)], false),
            (saga, SagaStatus::Aborting, &[], false),
            (tcc, well, &confirmed[..], true),
            (tcc, well, &confirmed[..3], false),
            (tcc, failed, &[], true),
            (tcc, failed, &[tried[0], ("debit", "cancel", 1)], true),
            (tcc, failed, &tried[..], false),
            (tcc, failed, &confirmed[..], false),
        ] {
            let found = agrees(&transfer(mode, status), &done(effects));
            assert_eq!(found.is_ok(), right, "{mode:?} {status:?} {effects:?}: {found:?}");
        }
    }
}
