//! `quorate endpoint`: each node by itself.

use std::time::Duration;

use futures::future::join_all;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::output::{self, Printer, Table};
use super::{Context, Error, view};
use crate::client::Client;
use crate::error;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Version, role, log position and alarms of each node
    Status {
        /// Ask all members of the cluster instead of --endpoints alone
        #[arg(long)]
        cluster: bool,
    },
    /// Time a linearizable read through each node
    Health {
        /// Ask all members of the cluster instead of --endpoints alone
        #[arg(long)]
        cluster: bool,
    },
}

/// What one node says of itself, or why it says nothing.
#[derive(Debug, Serialize)]
struct StatusRow {
    endpoint: String,
    status: Option<view::Status>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct HealthRow {
    endpoint: String,
    healthy: bool,
    took_us: u64,
    error: Option<String>,
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let (client, printer) = (context.client()?, context.printer());
        match self {
            Command::Status { cluster } => {
                let endpoints = endpoints(&client, context, cluster).await?;
                let rows = join_all(endpoints.into_iter().map(|at| status(&client, at))).await;
                show_status(&rows, printer)
            }
            Command::Health { cluster } => {
                let endpoints = endpoints(&client, context, cluster).await?;
                let rows = join_all(endpoints.into_iter().map(|at| health(&client, at))).await;
                show_health(&rows, printer)
            }
        }
    }
}

async fn endpoints(
    client: &Client,
    context: &Context,
    cluster: bool,
) -> Result<Vec<String>, Error> {
    if !cluster {
        return Ok(context.options.endpoints.clone());
    }
    let answer = client.members(v1::Consistency::Stale).await?;
    Ok(answer.members.into_iter().map(|member| member.client_address).collect())
}

/// The client of one node, once it takes connections: what the client tries again until its deadline
/// is told at once here.
async fn reach(client: &Client, endpoint: &str) -> Result<Client, error::Error> {
    let node = client.at(endpoint)?;
    let failed = |why: String| error::Error::Connection {
        message: format!("{endpoint}: {why}"),
        definite: true,
    };
    match timeout(client.options().connect_timeout, TcpStream::connect(endpoint)).await {
        Ok(Ok(_)) => Ok(node),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("no answer".to_owned())),
    }
}

async fn status(client: &Client, endpoint: String) -> StatusRow {
    let answer = match reach(client, &endpoint).await {
        Ok(node) => node.status().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(status) => StatusRow { endpoint, status: Some(status.into()), error: None },
        Err(error) => StatusRow { endpoint, status: None, error: Some(error.to_string()) },
    }
}

async fn health(client: &Client, endpoint: String) -> HealthRow {
    let start = Instant::now();
    // Any read will do, as long as the node must ask the leader before it answers.
    let request = v1::ListServicesRequest {
        limit: 1,
        consistency: v1::Consistency::Linearizable.into(),
        ..v1::ListServicesRequest::default()
    };
    let answer = match reach(client, &endpoint).await {
        Ok(node) => node.list_services(request).await,
        Err(error) => Err(error),
    };
    let took_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
    let error = answer.err().map(|error| error.to_string());
    HealthRow { endpoint, healthy: error.is_none(), took_us, error }
}

fn show_status(rows: &[StatusRow], printer: Printer) -> Result<(), Error> {
    printer.table(&rows, || {
        let mut table = Table::new(&[
            "endpoint",
            "id",
            "version",
            "db size",
            "is leader",
            "is learner",
            "raft term",
            "raft index",
            "applied index",
            "errors",
        ]);
        for row in rows {
            let endpoint = row.endpoint.clone();
            let error = row.error.clone().unwrap_or_default();
            match &row.status {
                Some(status) => table.row([
                    endpoint,
                    status.node_id.to_string(),
                    status.version.clone(),
                    output::bytes(status.image_bytes),
                    output::yes(status.leader),
                    output::yes(status.learner),
                    status.term.to_string(),
                    status.last_log_index.to_string(),
                    status.applied_index.to_string(),
                    status.errors.join("; "),
                ]),
                None => {
                    let unknown = std::iter::repeat_n("-".to_owned(), 8);
                    table.row([endpoint].into_iter().chain(unknown).chain([error]));
                }
            }
        }
        table
    })?;
    told(rows.iter().all(|row| row.status.is_some()))
}

fn show_health(rows: &[HealthRow], printer: Printer) -> Result<(), Error> {
    printer.table(&rows, || {
        let mut table = Table::new(&["endpoint", "healthy", "took", "error"]);
        for row in rows {
            table.row([
                row.endpoint.clone(),
                output::yes(row.healthy),
                output::duration(Duration::from_micros(row.took_us)),
                row.error.clone().unwrap_or_default(),
            ]);
        }
        table
    })?;
    told(rows.iter().all(|row| row.healthy))
}

/// An endpoint that failed is a row of the answer, and the command's failure.
fn told(all: bool) -> Result<(), Error> {
    if all { Ok(()) } else { Err(Error::Told) }
}
