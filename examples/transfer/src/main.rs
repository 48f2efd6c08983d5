//! Two banks, each with a database of its own, between which money is moved by sagas and by TCC. Without a
//! role's name this program starts a cluster, the banks and their clients as processes, kills all of them
//! again and again, and counts the money in the end: see README.md.

mod audit;
mod bank;
mod client;
mod cluster;
mod director;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;

/// What tonic makes of `proto/`.
#[allow(missing_debug_implementations, clippy::default_trait_access)]
pub mod proto {
    tonic::include_proto!("transfer.v1");
}

/// Anything that ends a process.
pub type Failed = Box<dyn Error + Send + Sync>;

/// The banks, by the names of their services.
pub const BANKS: [&str; 2] = ["bank-north", "bank-south"];
/// Accounts of each bank, numbered from 0. The last one is closed: it takes no money.
pub const ACCOUNTS: u32 = 20;
/// What is on each account in the beginning.
pub const CENTS: i64 = 10_000;

#[derive(Debug, Parser)]
#[command(about = "Money between two banks, by global transactions")]
struct Arguments {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    plan: director::Plan,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// One bank
    Bank(bank::Place),
    /// Customers who move money, until standard input ends
    Client(client::Customers),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let ended = match Arguments::parse() {
        Arguments { role: Some(Role::Bank(place)), .. } => bank::run(place).await.map(|()| true),
        Arguments { role: Some(Role::Client(customers)), .. } => {
            client::run(customers).await.map(|()| true)
        }
        Arguments { role: None, plan } => director::run(plan).await,
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
