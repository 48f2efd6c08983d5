//! `quorate service import`: sends what `consul` made of the files, and tells the result per entry.

use std::io::Read as _;
use std::path::Path;

use futures::StreamExt as _;
use serde::Serialize;

use super::{Context, Error, Import, Table, consul};
use crate::client::Client;
use crate::limits;

#[derive(Debug, Serialize)]
struct Row {
    file: String,
    service: String,
    id: String,
    result: Outcome,
    error: Option<String>,
    notes: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Created,
    /// It was there; now it is as the file says.
    Existing,
    /// It would be registered; of a dry run.
    Valid,
    Failed,
}

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Outcome::Created => "created",
            Outcome::Existing => "existing",
            Outcome::Valid => "valid",
            Outcome::Failed => "failed",
        }
    }
}

#[derive(Debug, Serialize)]
struct FileNote {
    file: String,
    note: String,
}

#[derive(Debug, Serialize)]
struct Report {
    entries: Vec<Row>,
    file_notes: Vec<FileNote>,
    failed: usize,
}

pub async fn run(args: Import, context: &Context) -> Result<(), Error> {
    let defaults =
        consul::Defaults { namespace: context.namespace(), address: args.default_address };
    let mut entries = Vec::new();
    let mut file_notes = Vec::new();
    // All files are read before the first entry is sent: one that is no definition stops the import.
    for path in &args.files {
        let file = path.display().to_string();
        let text = read(path)?;
        let import = consul::parse(&text, &defaults).map_err(|why| Error::io(&file, other(why)))?;
        let notes = import.notes.into_iter().map(|note| FileNote { file: file.clone(), note });
        file_notes.extend(notes);
        entries.extend(import.entries.into_iter().map(|entry| (file.clone(), entry)));
    }
    let client = context.client()?;
    let client = (!args.dry_run).then_some(&client);
    let sent = entries.into_iter().map(|(file, entry)| send(client, file, entry));
    let rows: Vec<Row> =
        futures::stream::iter(sent).buffered(limits::IMPORT_IN_FLIGHT).collect().await;
    let failed = rows.iter().filter(|row| row.result == Outcome::Failed).count();
    let report = Report { entries: rows, file_notes, failed };
    let printer = context.printer();
    printer.answer(&report, || {
        let mut text = printer.render(&table(&report));
        for FileNote { file, note } in &report.file_notes {
            text += &format!("{file}: {note}\n");
        }
        text
    })?;
    if failed > 0 { Err(Error::Told) } else { Ok(()) }
}

fn other(why: String) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, why)
}

fn read(path: &Path) -> Result<String, Error> {
    let read = match path.to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        Some(_) | None => std::fs::read_to_string(path),
    };
    read.map_err(|error| Error::io(path.display(), error))
}

async fn send(client: Option<&Client>, file: String, entry: consul::Entry) -> Row {
    let consul::Entry { service, id, instance, notes } = entry;
    let result = match (client, instance) {
        (_, Err(why)) => Err(why),
        (None, Ok(_)) => Ok(Outcome::Valid),
        (Some(client), Ok(instance)) => {
            let answer = client.register(instance, None).await;
            answer.map_err(|error| error.to_string()).map(|answer| match answer.created {
                true => Outcome::Created,
                false => Outcome::Existing,
            })
        }
    };
    let outcome = *result.as_ref().unwrap_or(&Outcome::Failed);
    Row { file, service, id, result: outcome, error: result.err(), notes }
}

fn table(report: &Report) -> Table {
    let mut table = Table::new(&["service", "id", "result", "notes"]);
    for row in &report.entries {
        let notes = row.error.iter().chain(&row.notes).cloned().collect::<Vec<_>>().join("; ");
        table.row([row.service.clone(), row.id.clone(), row.result.as_str().to_owned(), notes]);
    }
    table
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::options::Output;

    #[tokio::test]
    async fn a_dry_run_tells_what_would_be_registered_and_what_not() {
        let text = r#"{"services": [{"name": "a", "address": "h", "port": 1, "connect": {}}, {"name": "b"}]}"#;
        let import = consul::parse(text, &consul::Defaults::default()).unwrap();
        assert!(import.entries.iter().all(|entry| entry.instance.is_err()), "no namespace");
        let defaults = consul::Defaults { namespace: "default".into(), address: None };
        let mut entries = Vec::new();
        for entry in consul::parse(text, &defaults).unwrap().entries {
            entries.push(send(None, "f".into(), entry).await);
        }
        let report = Report { failed: 1, entries, file_notes: Vec::new() };
        let table = table(&report).render(Output::Simple);
        let expected = "\
SERVICE   ID   RESULT   NOTES
a         a    valid    `connect` is not mapped
b         b    failed   no `address`: Consul takes its agent's; give --default-address; no `port`
";
        assert_eq!(table, expected);
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.starts_with(r#"{"entries":[{"file":"f","service":"a","id":"a","result":"valid","error":null,"notes":["#), "{json}");
    }
}
