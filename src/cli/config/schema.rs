//! `quorate config schema`.

use std::path::PathBuf;

use serde_json::json;

use super::{Context, Error, Name, answers, limits, output, publish, shown};
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Set the schema of an item; the current content must fit it
    Put {
        #[command(flatten)]
        name: Name,
        /// JSON Schema, draft 2020-12 or 7; - is standard input
        file: PathBuf,
    },
    /// Print the schema of an item
    Get {
        #[command(flatten)]
        name: Name,
    },
    /// Let an item have any content that is well-formed
    Delete {
        #[command(flatten)]
        name: Name,
    },
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let (client, printer, namespace) =
            (context.client()?, context.printer(), context.namespace());
        match self {
            Command::Put { name, file } => {
                let (group, key) = name.parts()?;
                let bytes = publish::read(&file, limits::SCHEMA_BYTES)?;
                let schema = String::from_utf8(bytes)
                    .map_err(|error| Error::io(file.display(), std::io::Error::other(error)))?;
                let name = shown(&group, &key);
                let request =
                    v1::PutSchemaRequest { namespace, group, key, schema, request_id: None };
                let answer = client.put_schema(request, None).await?;
                let value = json!({
                    "revision": answers::revision(&answer.header),
                    "changed": answer.changed,
                    "mod_revision": answer.mod_revision,
                });
                printer.answer(&value, || match answer.changed {
                    true => format!("schema of {name} set at revision {}", answer.mod_revision),
                    false => format!("schema of {name} is as asked"),
                })
            }
            Command::Get { name } => {
                let (group, key) = name.parts()?;
                let request = v1::GetSchemaRequest {
                    namespace,
                    group,
                    key,
                    ..v1::GetSchemaRequest::default()
                };
                let answer = client.get_schema(request).await?;
                if !printer.is_json() {
                    return output::raw(answer.schema.as_bytes());
                }
                printer.json(&json!({
                    "revision": answers::revision(&answer.header),
                    "consistency": answers::consistency(&answer.header),
                    "schema": answer.schema,
                    "create_revision": answer.create_revision,
                    "mod_revision": answer.mod_revision,
                }))
            }
            Command::Delete { name } => {
                let (group, key) = name.parts()?;
                let name = shown(&group, &key);
                let request = v1::DeleteSchemaRequest { namespace, group, key, request_id: None };
                let answer = client.delete_schema(request, None).await?;
                let revision = answers::revision(&answer.header);
                let value = json!({"revision": revision, "removed": answer.removed});
                printer.answer(&value, || match answer.removed {
                    true => format!("schema of {name} deleted at revision {revision}"),
                    false => format!("{name} has no schema"),
                })
            }
        }
    }
}
