//! `quorate namespace`.

use serde_json::json;

use super::output::Table;
use super::{Context, Error, view};
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List namespaces
    List {
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Create a namespace or change its description
    Put {
        name: String,
        #[arg(long, value_name = "TEXT", default_value = "")]
        description: String,
    },
    /// Delete a namespace without services
    Delete { name: String },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let (client, printer) = (context.client()?, context.printer());
        match self {
            Command::List { stale } => {
                let consistency = view::wanted(stale).into();
                let request = v1::ListNamespacesRequest { consistency };
                let answer = client.list_namespaces(request).await?;
                let namespaces: Vec<view::Namespace> =
                    answer.namespaces.into_iter().map(Into::into).collect();
                let value = json!({
                    "revision": view::revision(&answer.header),
                    "consistency": view::consistency(&answer.header),
                    "namespaces": namespaces,
                });
                printer.table(&value, || {
                    let mut table = Table::new(&["name", "revision", "description"]);
                    for namespace in &namespaces {
                        table.row([
                            namespace.name.clone(),
                            namespace.mod_revision.to_string(),
                            namespace.description.clone(),
                        ]);
                    }
                    table
                })
            }
            Command::Put { name, description } => {
                let request =
                    v1::PutNamespaceRequest { name: name.clone(), description, request_id: None };
                let answer = client.put_namespace(request, None).await?;
                let revision = view::revision(&answer.header);
                let value = json!({"revision": revision, "created": answer.created});
                printer.answer(&value, || match answer.created {
                    true => format!("namespace {name} created at revision {revision}"),
                    false => format!("namespace {name} is as asked, at revision {revision}"),
                })
            }
            Command::Delete { name } => {
                let request = v1::DeleteNamespaceRequest { name: name.clone(), request_id: None };
                let answer = client.delete_namespace(request, None).await?;
                let revision = view::revision(&answer.header);
                let value = json!({"revision": revision, "removed": answer.removed});
                printer.answer(&value, || match answer.removed {
                    true => format!("namespace {name} deleted at revision {revision}"),
                    false => format!("there is no namespace {name}"),
                })
            }
        }
    }
}
