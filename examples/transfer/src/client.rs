//! Customers who move money from bank to bank, one transfer after the other, and say what came of each.

use std::time::Duration;

use quorate::client::{Branch, BranchContext, Channel, Client, Options, SagaOutcome};
use quorate::error::Error;
use rand::RngExt as _;
use tokio::io::AsyncReadExt as _;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tonic::{Request, Status};

use crate::proto::Move;
use crate::proto::bank_client::BankClient;
use crate::{ACCOUNTS, BANKS, Failed};

/// How long one call of a bank may take.
const CALL: Duration = Duration::from_secs(1);
/// How long trying may take until all is cancelled, and a saga until it is given up: less than now and then
/// a bank or a leader is away, so that compensations meet what was done, what was not, and what comes later.
const TRYING: Duration = Duration::from_secs(3);
const SAGA: Duration = Duration::from_millis(1_200);

#[derive(Debug, Clone, clap::Args)]
pub struct Customers {
    /// What the names of their transfers begin with
    #[arg(long)]
    name: String,
    /// How many move money at the same time
    #[arg(long)]
    customers: u32,
    /// Client addresses of the cluster
    #[arg(long)]
    endpoints: String,
}

/// From one account to one of the other bank.
#[derive(Debug, Clone, Copy)]
struct Transfer {
    from: (&'static str, u32),
    to: (&'static str, u32),
    cents: i64,
}

/// Prints a line for each transfer of which the end is known: its gid and how it ended.
pub async fn run(customers: Customers) -> Result<(), Failed> {
    let client = Client::connect(Options::new(customers.endpoints.split(',')))?;
    // The banks do nothing twice: so calls may be repeated whatever became of the first one.
    let mut banks = Vec::new();
    for bank in BANKS {
        banks.push(client.channel(&format!("quorate:///{bank}?retry=lost")).await?);
    }
    let stop = tokio::spawn(async {
        // An error ends it as well.
        let _ = tokio::io::stdin().read_to_end(&mut Vec::new()).await;
    });
    let mut tasks = JoinSet::new();
    for customer in 0..customers.customers {
        let (client, banks, name) = (client.clone(), banks.clone(), customers.name.clone());
        let stop = stop.abort_handle();
        tasks.spawn(async move {
            for number in 0u64.. {
                if stop.is_finished() {
                    return;
                }
                let gid = format!("{name}-{customer}-{number}");
                let transfer = Transfer::random();
                let ended = match number % 2 {
                    0 => transfer.by_saga(&client, &gid).await,
                    _ => transfer.by_tcc(&client, &banks, &gid).await,
                };
                match ended {
                    Ok(SagaOutcome::Succeeded { .. }) => println!("{gid} succeeded"),
                    Ok(SagaOutcome::Failed { .. }) => println!("{gid} failed"),
                    Ok(SagaOutcome::Suspended { reason, .. }) => eprintln!("{gid}: {reason}"),
                    Err(error) => {
                        eprintln!("{gid}: {error}");
                        sleep(CALL).await;
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    Ok(())
}

impl Transfer {
    fn random() -> Transfer {
        let mut rng = rand::rng();
        let from = rng.random_range(0..BANKS.len());
        let mut account = || rng.random_range(0..ACCOUNTS);
        let (payer, payee) = (account(), account());
        Transfer {
            from: (BANKS[from], payer),
            to: (BANKS[1 - from], payee),
            cents: rng.random_range(1..=500),
        }
    }

    async fn by_saga(self, client: &Client, gid: &str) -> Result<SagaOutcome, Error> {
        let plan = client
            .saga("")
            .gid(gid)
            .timeout(SAGA)
            .branch(self.branch("debit", self.from, "Debit", "UndoDebit"))
            .branch(self.branch("credit", self.to, "Credit", "UndoCredit"));
        loop {
            match plan.submit_and_wait().await {
                // Begun or not: the same plan again finds out.
                Err(error) if !error.definite() || error.retryable() => sleep(CALL / 10).await,
                ended => return ended,
            }
        }
    }

    async fn by_tcc(
        self,
        client: &Client,
        banks: &[Channel],
        gid: &str,
    ) -> Result<SagaOutcome, Error> {
        let plan = client.tcc("").gid(gid).timeout(TRYING);
        let bank = |name: &str| {
            let place = BANKS.iter().position(|bank| *bank == name).unwrap_or_default();
            BankClient::new(banks[place].clone())
        };
        let (mut payer, mut payee) = (bank(self.from.0), bank(self.to.0));
        let tried = plan.run(|tcc| async move {
            let debit = self.branch("debit", self.from, "ConfirmDebit", "CancelDebit");
            let credit = self.branch("credit", self.to, "ConfirmCredit", "CancelCredit");
            let (from, to) = (self.from.1, self.to.1);
            tcc.try_branch(debit, |context| async move {
                payer.try_debit(self.request(from, &context)).await
            })
            .await?;
            tcc.try_branch(credit, |context| async move {
                payee.try_credit(self.request(to, &context)).await
            })
            .await?;
            Ok::<_, Status>(())
        });
        // Tried and confirmed, refused, or nobody knows: the transaction does.
        let _ = tried.await;
        match client.saga_handle("", gid).wait().await {
            // It was never begun.
            Err(Error::NotFound { .. }) => Ok(SagaOutcome::Failed { error: String::new() }),
            ended => ended,
        }
    }

    fn branch(
        self,
        id: &str,
        (bank, account): (&str, u32),
        action: &str,
        compensation: &str,
    ) -> Branch {
        let target = |method: &str| format!("quorate:///{bank}/transfer.v1.Bank/{method}");
        Branch::new(id, target(action))
            .compensation(target(compensation))
            .payload(&Move { account, cents: self.cents })
            .timeout(CALL)
            .pauses(CALL / 20, CALL)
    }

    fn request(self, account: u32, context: &BranchContext) -> Request<Move> {
        let mut request = Request::new(Move { account, cents: self.cents });
        request.set_timeout(CALL);
        context.inject(&mut request);
        request
    }
}
