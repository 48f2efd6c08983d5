//! `quorate session`.

use std::time::Duration;

use serde_json::json;

use super::output::{self, Table};
use super::{Context, Error, view};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List sessions
    List {
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Close a session: its instances are deregistered at once
    Close { id: u64 },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let (client, printer) = (context.client()?, context.printer());
        match self {
            Command::List { stale } => {
                let sessions = client.all_sessions(view::wanted(stale)).await?;
                let sessions: Vec<view::Session> = sessions.into_iter().map(Into::into).collect();
                printer.table(&json!({"sessions": sessions}), || {
                    let mut table = Table::new(&["id", "ttl", "instances", "age", "client"]);
                    let now_ms = output::now_ms();
                    for session in &sessions {
                        table.row([
                            session.id.to_string(),
                            output::duration(Duration::from_millis(session.ttl_ms)),
                            session.instances.to_string(),
                            output::age(now_ms, session.opened_at_ms),
                            session.client.clone(),
                        ]);
                    }
                    table
                })
            }
            Command::Close { id } => {
                let answer = client.close_session(id).await?;
                let value = json!({
                    "revision": view::revision(&answer.header),
                    "closed": answer.closed,
                    "removed_instances": answer.removed_instances,
                });
                printer.answer(&value, || match answer.closed {
                    true => {
                        format!(
                            "session {id} closed, {} instances removed",
                            answer.removed_instances
                        )
                    }
                    false => format!("there is no session {id}"),
                })
            }
        }
    }
}
