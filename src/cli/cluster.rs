//! `quorate member` and `quorate move-leader`.

use serde_json::json;

use super::output::{self, Printer, Table};
use super::{Context, Error, view};
use crate::options;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Member {
    /// List members
    List {
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Add a node that replicates but does not vote yet
    Add {
        /// Its number, which no member ever had
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        id: u64,
        /// Address at which the other nodes reach it
        #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
        peer: String,
        /// Address at which clients reach it
        #[arg(long, value_name = "HOST:PORT", value_parser = host_port)]
        client: String,
    },
    /// Let a node vote that was added and has caught up
    Promote { id: u64 },
    /// Remove a member; its number is never used again
    Remove { id: u64 },
}

#[derive(Debug, clap::Args)]
pub struct MoveLeader {
    /// The voter that shall lead [default: the one whose log is longest]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    to: Option<u64>,
}

fn host_port(given: &str) -> Result<String, String> {
    options::split_host_port(given)
        .map(|_| given.to_owned())
        .ok_or_else(|| "expected host:port, for instance 10.0.0.4:7651".to_owned())
}

impl Member {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let (client, printer) = (context.client()?, context.printer());
        match self {
            Member::List { stale } => {
                let answer = client.members(view::wanted(stale)).await?;
                show(answer.header, answer.members, printer)
            }
            Member::Add { id, peer, client: address } => {
                let request = v1::AddLearnerRequest {
                    id,
                    peer_address: peer.clone(),
                    client_address: address.clone(),
                };
                let answer = client.add_learner(request).await?;
                let join = answer.members.iter().find(|member| member.id != id);
                let join = join.map(|member| member.peer_address.clone()).unwrap_or_default();
                show(answer.header, answer.members, printer)?;
                output::note(&format!(
                    "start it with:\n  quorate serve --id {id} --data-dir DIR --join {join} \
                     --advertise-peer {peer} --advertise-client {address} --listen-peer IP:PORT \
                     --listen-client IP:PORT --listen-http IP:PORT\nwhen it has caught up \
                     (`quorate endpoint status`), let it vote:\n  quorate member promote {id}"
                ));
                Ok(())
            }
            Member::Promote { id } => {
                let answer = client.promote(id).await?;
                show(answer.header, answer.members, printer)
            }
            Member::Remove { id } => {
                let answer = client.remove(id).await?;
                show(answer.header, answer.members, printer)
            }
        }
    }
}

impl MoveLeader {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let answer = context.client()?.transfer_leader(self.to).await?;
        let value = json!({
            "revision": view::revision(&answer.header),
            "leader_id": answer.leader_id,
        });
        context.printer().answer(&value, || format!("node {} leads", answer.leader_id))
    }
}

fn show(
    header: Option<v1::Header>,
    members: Vec<v1::Member>,
    printer: Printer,
) -> Result<(), Error> {
    let members: Vec<view::Member> = members.into_iter().map(Into::into).collect();
    let value = json!({"revision": view::revision(&header), "members": members});
    printer.table(&value, || {
        let mut table = Table::new(&["id", "peers", "clients", "is leader", "is learner"]);
        for member in &members {
            table.row([
                member.id.to_string(),
                member.peer_address.clone(),
                member.client_address.clone(),
                output::yes(member.leader),
                output::yes(member.learner),
            ]);
        }
        table
    })
}
