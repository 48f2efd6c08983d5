//! `quorate txn`: an atomic transaction, written as text or as JSON.

mod json;
mod show;
mod text;

use std::io::Read as _;
use std::path::PathBuf;

use super::{Context, Error};
use crate::proto::v1;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The transaction, as text (conditions, a blank line, steps when they hold, a blank line, steps
    /// otherwise) or as JSON; docs/CLI.md has the grammar. - is standard input
    #[arg(default_value = "-", value_name = "FILE")]
    file: PathBuf,
}

/// What is wrong with a transaction, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
struct Wrong {
    line: usize,
    why: String,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let (name, text) = match args.file.as_os_str().to_str() {
        Some("-") => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Error::io("standard input", error))?;
            ("standard input".to_owned(), text)
        }
        _ => {
            let name = args.file.display().to_string();
            let text =
                std::fs::read_to_string(&args.file).map_err(|error| Error::io(&name, error))?;
            (name, text)
        }
    };
    let request = parse(&text, &context.namespace())
        .map_err(|wrong| Error::usage(format!("{name}, {wrong}")))?;
    let answer = context.client()?.txn(request.clone(), None).await?;
    show::print(&request, answer, context)
}

fn parse(text: &str, namespace: &str) -> Result<v1::TxnRequest, Wrong> {
    match text.trim_start().starts_with('{') {
        true => json::parse(text, namespace),
        false => text::parse(text, namespace),
    }
}

#[cfg(test)]
mod tests;
