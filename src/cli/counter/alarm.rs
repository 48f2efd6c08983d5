//! `quorate counter alarm`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use super::super::follow::follow;
use super::super::output::{self, Table};
use super::super::{Context, Error, milliseconds, pair, view};
use crate::client::{WatchRange, WatchUpdate};
use crate::limits;
use crate::proto::v1::{self, watch_event};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Create or replace an alarm on the sum of the counters of one name
    Put(Put),
    /// List alarms
    List {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Remove an alarm
    Delete { name: String },
    /// Print alarms as they are raised and cleared, until Ctrl-C
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
pub struct Put {
    name: String,
    counter: String,
    /// Only counters with this label; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,
    /// Look at what was added per second in so many minutes instead of at the value
    #[arg(long, value_name = "MINUTES", default_value_t = 0)]
    rate: u32,
    #[command(flatten)]
    bound: Bound,
    /// How long it has to be beyond the bound
    #[arg(long = "for", value_name = "DURATION", value_parser = for_duration, default_value = "0s")]
    lasting: Duration,
    /// Where raising and clearing are posted; the nodes must allow it (--webhook-allow)
    #[arg(long, value_name = "URL", default_value = "")]
    webhook: String,
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Bound {
    /// Raised above this
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    above: Option<f64>,
    /// Raised below this
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    below: Option<f64>,
}

fn for_duration(given: &str) -> Result<Duration, String> {
    milliseconds("for", given, &limits::ALARM_FOR_MS)
}

/// An alarm as JSON shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Alarm {
    namespace: String,
    name: String,
    counter: String,
    labels: BTreeMap<String, String>,
    rate_minutes: u32,
    below: bool,
    bound: f64,
    for_ms: u64,
    webhook: String,
    description: String,
    status: &'static str,
    since_ms: u64,
    measured: f64,
    transitions: u64,
    posted: u64,
    post_error: String,
    create_revision: u64,
    mod_revision: u64,
}

impl From<v1::Alarm> for Alarm {
    fn from(alarm: v1::Alarm) -> Alarm {
        let status = match alarm.status() {
            v1::AlarmStatus::Unspecified => "",
            v1::AlarmStatus::Clear => "clear",
            v1::AlarmStatus::Pending => "pending",
            v1::AlarmStatus::Raised => "raised",
        };
        Alarm {
            status,
            namespace: alarm.namespace,
            name: alarm.name,
            counter: alarm.counter,
            labels: alarm.labels,
            rate_minutes: alarm.rate_minutes,
            below: alarm.below,
            bound: alarm.bound,
            for_ms: alarm.for_ms,
            webhook: alarm.webhook,
            description: alarm.description,
            since_ms: alarm.since_ms,
            measured: alarm.measured,
            transitions: alarm.transitions,
            posted: alarm.posted,
            post_error: alarm.post_error,
            create_revision: alarm.create_revision,
            mod_revision: alarm.mod_revision,
        }
    }
}

impl Alarm {
    fn condition(&self) -> String {
        let series = super::series(&self.counter, &self.labels);
        let measure = match self.rate_minutes {
            0 => series,
            minutes => format!("rate({series}, {minutes} min)"),
        };
        let side = if self.below { '<' } else { '>' };
        let lasting = match self.for_ms {
            0 => String::new(),
            ms => format!(" for {}", output::duration(Duration::from_millis(ms))),
        };
        format!("{measure} {side} {}{lasting}", self.bound)
    }

    fn webhook(&self) -> String {
        match (self.webhook.as_str(), self.post_error.as_str(), self.posted == self.transitions) {
            ("", _, _) => String::new(),
            (_, "", true) => "told".to_owned(),
            (_, "", false) => "telling".to_owned(),
            (_, error, _) => error.to_owned(),
        }
    }
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let (client, printer) = (context.client()?, context.printer());
        match self {
            Command::Put(args) => {
                let Put { name, counter, label, rate, bound, lasting, webhook, description } = args;
                let alarm = v1::Alarm {
                    namespace: context.namespace(),
                    name: name.clone(),
                    counter,
                    labels: label.into_iter().collect(),
                    rate_minutes: rate,
                    below: bound.below.is_some(),
                    bound: bound.below.or(bound.above).unwrap_or_default(),
                    for_ms: lasting.as_millis() as u64,
                    webhook,
                    description,
                    ..v1::Alarm::default()
                };
                let request = v1::PutAlarmRequest { alarm: Some(alarm), request_id: None };
                let answer = client.put_alarm(request, None).await?;
                let revision = view::revision(&answer.header);
                let value = json!({"revision": revision, "changed": answer.changed});
                printer.answer(&value, || match answer.changed {
                    true => format!("alarm {name} put at revision {revision}"),
                    false => format!("alarm {name} is as asked"),
                })
            }
            Command::List { prefix, stale } => {
                let mut request = v1::ListAlarmsRequest {
                    namespace: context.namespace(),
                    prefix,
                    limit: limits::DEFAULT_PAGE as u32,
                    after: String::new(),
                    consistency: view::wanted(stale).into(),
                };
                let mut alarms: Vec<Alarm> = Vec::new();
                loop {
                    let page = client.list_alarms(request.clone()).await?;
                    alarms.extend(page.alarms.into_iter().map(Alarm::from));
                    let Some(last) = alarms.last().filter(|_| page.more) else { break };
                    request.after = last.name.clone();
                }
                printer.table(&json!({"alarms": alarms}), || {
                    let headers = ["alarm", "status", "since", "measured", "condition", "webhook"];
                    let mut table = Table::new(&headers);
                    let now_ms = output::now_ms();
                    for alarm in &alarms {
                        table.row([
                            alarm.name.clone(),
                            alarm.status.to_owned(),
                            output::age(now_ms, alarm.since_ms),
                            alarm.measured.to_string(),
                            alarm.condition(),
                            alarm.webhook(),
                        ]);
                    }
                    table
                })
            }
            Command::Delete { name } => {
                let request = v1::DeleteAlarmRequest {
                    namespace: context.namespace(),
                    name: name.clone(),
                    request_id: None,
                };
                let answer = client.delete_alarm(request, None).await?;
                let revision = view::revision(&answer.header);
                let value = json!({"revision": revision, "removed": answer.removed});
                printer.answer(&value, || match answer.removed {
                    true => format!("alarm {name} removed at revision {revision}"),
                    false => format!("there is no alarm {name}"),
                })
            }
            Command::Watch { prefix, after } => {
                let range = WatchRange::Alarms { namespace: context.namespace(), prefix };
                follow(context, client.watch_after(range, after), |update| show(context, update))
                    .await
            }
        }
    }
}

fn show(context: &Context, update: WatchUpdate) -> Result<(), Error> {
    view::show_events(context, update, |record| {
        let watch_event::Record::Alarm(alarm) = record else { return None };
        let alarm = Alarm::from(alarm);
        let text = format!("{} {} {}", alarm.name, alarm.status, alarm.condition());
        Some(("alarm", json!(alarm), alarm.name, text))
    })
}
