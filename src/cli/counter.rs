//! `quorate counter`.

mod alarm;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::json;

use super::follow::follow;
use super::output::{self, Table};
use super::{Context, Error, pair, view};
use crate::client::{SessionOptions, WatchRange, WatchUpdate};
use crate::limits;
use crate::proto::v1::{self, watch_event};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Add to a counter, which comes into being with its first addition; prints the new value
    Add {
        #[command(flatten)]
        name: Name,
        /// What is added; negative for gauges only
        #[arg(default_value_t = 1, allow_negative_numbers = true)]
        delta: i64,
        /// Make it a counter that goes up and down, if it does not exist
        #[arg(long)]
        gauge: bool,
        /// Refuse to go below
        #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
        floor: Option<i64>,
        /// Refuse to go above
        #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
        ceil: Option<i64>,
    },
    /// Give a counter a value; a new one becomes a gauge
    Set {
        #[command(flatten)]
        name: Name,
        #[arg(allow_negative_numbers = true)]
        value: i64,
        /// Only if this is its value; a counter that does not exist is at 0
        #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
        expect: Option<i64>,
        /// Make it a counter that only grows, if it does not exist
        #[arg(long)]
        counter: bool,
    },
    /// Take a counter to 0
    Reset {
        #[command(flatten)]
        name: Name,
        /// Only if this is its value
        #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
        expect: Option<i64>,
    },
    /// Show a counter and what was added in the last 1, 5 and 15 minutes
    Get {
        #[command(flatten)]
        name: Name,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// List counters
    List {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Only counters with this label; may be repeated
        #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
        label: Vec<(String, String)>,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Remove a counter
    Delete {
        #[command(flatten)]
        name: Name,
    },
    /// Alarms on counters
    #[command(subcommand)]
    Alarm(Box<alarm::Command>),
    /// Print values as they change, until Ctrl-C
    Watch {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Begin with the changes after this revision instead of with what there is
        #[arg(long, value_name = "REVISION", default_value_t = 0)]
        after: u64,
    },
}

#[derive(Debug, clap::Args)]
pub struct Name {
    name: String,
    /// Label of the counter; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
}

/// A counter as JSON shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Counter {
    namespace: String,
    name: String,
    labels: BTreeMap<String, String>,
    kind: &'static str,
    value: i64,
    create_revision: u64,
    mod_revision: u64,
    created_at_ms: u64,
    modified_at_ms: u64,
    windows: Vec<Window>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Window {
    minutes: u64,
    covers_ms: u64,
    sum: i64,
    rate: f64,
}

impl From<v1::Counter> for Counter {
    fn from(counter: v1::Counter) -> Counter {
        let kind = match counter.kind() {
            v1::CounterKind::Counter => "counter",
            v1::CounterKind::Gauge => "gauge",
            v1::CounterKind::Unspecified => "",
        };
        let windows = counter.windows.iter().map(|window| {
            let v1::CounterWindow { minutes, covers_ms, sum, rate } = *window;
            Window { minutes, covers_ms, sum, rate }
        });
        Counter {
            kind,
            windows: windows.collect(),
            namespace: counter.namespace,
            name: counter.name,
            labels: counter.labels,
            value: counter.value,
            create_revision: counter.create_revision,
            mod_revision: counter.mod_revision,
            created_at_ms: counter.created_at_ms,
            modified_at_ms: counter.modified_at_ms,
        }
    }
}

impl Counter {
    fn series(&self) -> String {
        series(&self.name, &self.labels)
    }

    fn rate(&self, minutes: u64) -> String {
        let window = self.windows.iter().find(|window| window.minutes == minutes);
        window.map(|window| format!("{:.2}/s", window.rate)).unwrap_or_default()
    }
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Command::Add { name, delta, gauge, floor, ceil } => {
                let kind =
                    if gauge { v1::CounterKind::Gauge } else { v1::CounterKind::Unspecified };
                let (namespace, name, labels) = name.parts(context);
                let kind = kind.into();
                let request = v1::AddCounterRequest {
                    namespace,
                    name,
                    labels,
                    kind,
                    delta,
                    floor,
                    ceil,
                    request_id: None,
                };
                // So that an answer that was lost does not count twice when it is asked for again.
                let client = context.client()?;
                let session = client.session(SessionOptions::default()).await?;
                let answer = client.add_counter(request, Some(&session)).await;
                // It has served its purpose, and ends by itself if this fails.
                let _ = session.close().await;
                let answer = answer?;
                let revision = view::revision(&answer.header);
                let value = json!({"revision": revision, "value": answer.value});
                context.printer().answer(&value, || answer.value.to_string())
            }
            Command::Set { name, value, expect, counter } => {
                let kind =
                    if counter { v1::CounterKind::Counter } else { v1::CounterKind::Unspecified };
                let (namespace, name, labels) = name.parts(context);
                let request = v1::SetCounterRequest {
                    namespace,
                    name,
                    labels,
                    kind: kind.into(),
                    value,
                    expected: expect,
                    request_id: None,
                };
                let answer = context.client()?.set_counter(request, None).await?;
                changed(context, &answer.header, answer.value, answer.changed)
            }
            Command::Reset { name, expect } => {
                let (namespace, name, labels) = name.parts(context);
                let request = v1::ResetCounterRequest {
                    namespace,
                    name,
                    labels,
                    expected: expect,
                    request_id: None,
                };
                let answer = context.client()?.reset_counter(request, None).await?;
                changed(context, &answer.header, answer.value, answer.changed)
            }
            Command::Get { name, stale } => {
                let (namespace, name, labels) = name.parts(context);
                let consistency = view::wanted(stale).into();
                let request = v1::GetCounterRequest { namespace, name, labels, consistency };
                let answer = context.client()?.get_counter(request).await?;
                let counter = Counter::from(answer.counter.unwrap_or_default());
                let value = json!({
                    "revision": view::revision(&answer.header),
                    "consistency": view::consistency(&answer.header),
                    "counter": counter,
                });
                context.printer().table(&value, || table(&[counter]))
            }
            Command::List { prefix, label, stale } => {
                let counters = all(context, prefix, label, stale).await?;
                context.printer().table(&json!({"counters": counters}), || table(&counters))
            }
            Command::Delete { name } => {
                let (namespace, name, labels) = name.parts(context);
                let request =
                    v1::DeleteCounterRequest { namespace, name, labels, request_id: None };
                let answer = context.client()?.delete_counter(request, None).await?;
                let revision = view::revision(&answer.header);
                let value = json!({"revision": revision, "removed": answer.removed});
                context.printer().answer(&value, || match answer.removed {
                    true => format!("removed at revision {revision}"),
                    false => "there was no such counter".to_owned(),
                })
            }
            Command::Alarm(command) => Box::pin(command.run(context)).await,
            Command::Watch { prefix, after } => {
                let range = WatchRange::Counters { namespace: context.namespace(), prefix };
                let watch = context.client()?.watch_after(range, after);
                follow(context, watch, |update| show(context, update)).await
            }
        }
    }
}

impl Name {
    fn parts(self, context: &Context) -> (String, String, BTreeMap<String, String>) {
        (context.namespace(), self.name, self.label.into_iter().collect())
    }
}

fn changed(
    context: &Context,
    header: &Option<v1::Header>,
    value: i64,
    changed: bool,
) -> Result<(), Error> {
    let revision = view::revision(header);
    let json = json!({"revision": revision, "value": value, "changed": changed});
    context.printer().answer(&json, || match changed {
        true => format!("{value} at revision {revision}"),
        false => format!("{value}, as it was"),
    })
}

/// Page by page.
async fn all(
    context: &Context,
    prefix: String,
    labels: Vec<(String, String)>,
    stale: bool,
) -> Result<Vec<Counter>, Error> {
    let (client, namespace) = (context.client()?, context.namespace());
    let mut request = v1::ListCountersRequest {
        namespace,
        prefix,
        labels: labels.into_iter().collect(),
        limit: limits::DEFAULT_PAGE as u32,
        consistency: view::wanted(stale).into(),
        ..v1::ListCountersRequest::default()
    };
    let mut counters: Vec<Counter> = Vec::new();
    loop {
        let page = client.list_counters(request.clone()).await?;
        counters.extend(page.counters.into_iter().map(Counter::from));
        let Some(last) = counters.last().filter(|_| page.more) else { return Ok(counters) };
        request.after_name = last.name.clone();
        request.after_labels = last.labels.clone();
    }
}

fn table(counters: &[Counter]) -> Table {
    let mut table =
        Table::new(&["counter", "kind", "value", "1 min", "5 min", "15 min", "revision", "age"]);
    let now_ms = output::now_ms();
    for counter in counters {
        table.row([
            counter.series(),
            counter.kind.to_owned(),
            counter.value.to_string(),
            counter.rate(1),
            counter.rate(5),
            counter.rate(15),
            counter.mod_revision.to_string(),
            output::age(now_ms, counter.modified_at_ms),
        ]);
    }
    table
}

/// As Prometheus writes it.
fn series(name: &str, labels: &BTreeMap<String, String>) -> String {
    let labels: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}={value:?}")).collect();
    match labels.is_empty() {
        true => name.to_owned(),
        false => format!("{name}{{{}}}", labels.join(",")),
    }
}

fn show(context: &Context, update: WatchUpdate) -> Result<(), Error> {
    view::show_events(context, update, |record| {
        let watch_event::Record::Counter(counter) = record else { return None };
        let counter = Counter::from(counter);
        let series = counter.series();
        let text = format!("{series} {}", counter.value);
        Some(("counter", json!(counter), series, text))
    })
}
