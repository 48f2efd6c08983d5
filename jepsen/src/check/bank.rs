//! The bank: `:transfer [from to amount]` between accounts, atomically; `:read {account balance ..}` of all
//! of them. Money is neither made nor lost in any read, and no account is overdrawn.

use crate::edn::Value;
use crate::history::{Error, History, Kind};
use crate::report::Report;

use super::replay::anomaly;

/// Judges a bank whose accounts together hold `total`.
pub fn check(history: &History, accounts: usize, total: i64) -> Result<Report, Error> {
    history.calls()?;
    let succeeded = history.ops.iter().filter(|op| op.kind == Kind::Ok);
    let mut report = Report::new("conserved", succeeded.clone().count());
    let mut reads = 0;
    for op in succeeded.filter(|op| op.f == "read") {
        reads += 1;
        let Value::Map(balances) = &op.value else {
            return Err(Error::malformed(op, "a read shows a map"));
        };
        let mut sum = 0;
        for (account, balance) in balances {
            let Value::Int(balance) = balance else {
                return Err(Error::malformed(op, "a balance is a number"));
            };
            if *balance < 0 {
                let what = format!("account {account} is at {balance}");
                report.anomalies.push(anomaly("overdrawn", what, &[op]));
            }
            sum += balance;
        }
        if balances.len() != accounts {
            let what = format!("{} accounts of {accounts} are shown", balances.len());
            report.anomalies.push(anomaly("missing-account", what, &[op]));
        } else if sum != total {
            let what = format!("all accounts together hold {sum}, not {total}");
            report.anomalies.push(anomaly("not-conserved", what, &[op]));
        }
    }
    if reads == 0 {
        report.unknown.push("no read succeeded".to_owned());
    }
    report.settle();
    Ok(report)
}
