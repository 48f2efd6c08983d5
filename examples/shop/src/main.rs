//! A shop on top of Quorate: cart, catalogue and order are processes of their own that register, read their
//! settings live, count their calls and find each other through the balancing channel. Without a
//! service's name this program starts them all, puts load on them, kills and adds instances meanwhile, and
//! says what came of it: see README.md.

mod cart;
mod catalogue;
mod director;
mod load;
mod order;
mod service;

use std::error::Error;
use std::process::ExitCode;

use clap::Parser;
use quorate::client::{Client, Options};

/// What tonic makes of `proto/`.
#[allow(missing_debug_implementations, clippy::default_trait_access)]
pub mod proto {
    tonic::include_proto!("shop.v1");
}

/// Anything that ends a service or the program.
pub type Failed = Box<dyn Error + Send + Sync>;

#[derive(Debug, Parser)]
#[command(about = "A shop on top of Quorate")]
struct Arguments {
    /// Client addresses of the cluster
    #[arg(long, global = true, env = "QUORATE_ENDPOINTS",
        default_value = quorate::limits::DEFAULT_ENDPOINTS)]
    endpoints: String,
    #[command(subcommand)]
    service: Option<Service>,
    #[command(flatten)]
    plan: director::Plan,
}

#[derive(Debug, clap::Subcommand)]
enum Service {
    /// One instance of the carts
    Cart(service::Place),
    /// One instance of the catalogue
    Catalogue(service::Place),
    /// One instance of the orders
    Order(service::Place),
}

#[tokio::main]
async fn main() -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse()).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<ExitCode, Failed> {
    let client = Client::connect(Options::new(arguments.endpoints.split(',')))?;
    match arguments.service {
        Some(Service::Cart(place)) => cart::run(client, place).await?,
        Some(Service::Catalogue(place)) => catalogue::run(client, place).await?,
        Some(Service::Order(place)) => order::run(client, place).await?,
        None => return director::run(client, arguments.endpoints, arguments.plan).await,
    }
    Ok(ExitCode::SUCCESS)
}
