//! `quorate config gray`: releases that some clients get first.

use std::time::Duration;

use serde_json::json;

use super::publish::{self, Content};
use super::{
    Context, Error, Name, Note, Table, answers, limits, milliseconds, output, pair, shown, view,
};
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a release for some clients, in place of an earlier one under the same rule
    Publish(Box<Publish>),
    /// List the gray releases of an item, in the order in which their rules are tried
    List {
        #[command(flatten)]
        name: Name,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Give a gray release to everybody, as a new release
    Promote(End),
    /// Take a gray release from those who got it
    Abort(End),
}

#[derive(Debug, clap::Args)]
pub struct Publish {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    content: Content,
    /// Name of the rule, unique in its item
    #[arg(long, value_name = "NAME")]
    rule: String,
    #[command(flatten)]
    picks: Picks,
    /// When several rules pick a client, the greatest priority decides
    #[arg(long, value_name = "N", default_value_t = 0)]
    priority: u32,
    #[command(flatten)]
    gate: Gate,
    /// Only if the version of the current release is this one
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    #[command(flatten)]
    note: Note,
}

/// Who gets it.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
struct Picks {
    /// Clients that have all of these labels; separated by commas, or repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, value_delimiter = ',')]
    labels: Vec<(String, String)>,
    /// Clients with these ids; separated by commas, or repeated
    #[arg(long, value_name = "CLIENT", value_delimiter = ',')]
    clients: Vec<String>,
    /// This share of all clients, with up to two decimals; a greater share only adds clients
    #[arg(long, value_name = "PERCENT", value_parser = basis_points)]
    percent: Option<u32>,
}

/// What ends it.
#[derive(Debug, Clone, Default, clap::Args)]
struct Gate {
    /// Roll it back when the counters of this name that have all these labels have grown by more than
    /// the bound
    #[arg(long, value_name = "NAME[{KEY=VALUE,..}]", value_parser = counter,
        requires_all = ["gate_bound", "gate_for"], conflicts_with = "gate_unhealthy")]
    gate_counter: Option<(String, Vec<(String, String)>)>,
    #[arg(long, value_name = "N", requires = "gate_counter")]
    gate_bound: Option<u64>,
    /// Roll it back when more than this share of the clients that got it are lost or critical
    #[arg(long, value_name = "PERCENT", requires = "gate_for",
        value_parser = clap::value_parser!(u64).range(0..=100))]
    gate_unhealthy: Option<u64>,
    /// How long the gate looks, 1s..=30d
    #[arg(long, value_name = "DURATION", value_parser = gate_for)]
    gate_for: Option<Duration>,
    /// Give it to everybody once that time has passed
    #[arg(long, requires = "gate_for")]
    gate_promote: bool,
}

#[derive(Debug, clap::Args)]
pub struct End {
    #[command(flatten)]
    name: Name,
    rule: String,
    /// Only if the gray release has this version
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,
    #[command(flatten)]
    note: Note,
}

/// `12.5` as 1 250 hundredths of a percent.
fn basis_points(given: &str) -> Result<u32, String> {
    let wrong = || "allowed: 0..=100, with up to two decimals".to_owned();
    let (whole, part) = given.split_once('.').unwrap_or((given, "0"));
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(part) || part.len() > 2 {
        return Err(wrong());
    }
    let whole: u32 = whole.parse().map_err(|_| wrong())?;
    let part: u32 = format!("{part:0<2}").parse().map_err(|_| wrong())?;
    let points = whole.checked_mul(100).and_then(|points| points.checked_add(part));
    points.filter(|points| *points <= 10_000).ok_or_else(wrong)
}

/// `errors{service=orders,code=500}`.
fn counter(given: &str) -> Result<(String, Vec<(String, String)>), String> {
    let (name, labels) = match given.split_once('{') {
        None => (given, ""),
        Some((name, rest)) => (name, rest.strip_suffix('}').ok_or("the closing } is missing")?),
    };
    if name.is_empty() {
        return Err("expected NAME or NAME{KEY=VALUE,..}".to_owned());
    }
    let labels = labels.split(',').filter(|label| !label.is_empty()).map(pair);
    Ok((name.to_owned(), labels.collect::<Result<_, _>>()?))
}

fn gate_for(given: &str) -> Result<Duration, String> {
    milliseconds("gate-for", given, &limits::CONFIG_GATE_MS)
}

impl Picks {
    fn terms(self) -> v1::gray_terms::Picks {
        use v1::gray_terms::Picks;
        match self.percent {
            Some(points) => Picks::BasisPoints(points),
            None if self.clients.is_empty() => {
                Picks::Labels(v1::LabelPicks { labels: self.labels.into_iter().collect() })
            }
            None => Picks::Clients(v1::ClientPicks { clients: self.clients }),
        }
    }
}

impl Gate {
    fn terms(self) -> Result<Option<v1::Gate>, Error> {
        let (measure, bound) = match (self.gate_counter, self.gate_unhealthy) {
            (Some((name, labels)), _) => {
                let labels = labels.into_iter().collect();
                let counter = v1::GateCounter { name, labels, base: 0 };
                (v1::gate::Measure::Counter(counter), self.gate_bound.unwrap_or(0))
            }
            (None, Some(percent)) => (v1::gate::Measure::Unhealthy(true), percent),
            (None, None) if self.gate_for.is_some() => {
                let why = "--gate-for needs --gate-counter or --gate-unhealthy";
                return Err(Error::usage(why.to_owned()));
            }
            (None, None) => return Ok(None),
        };
        let for_ms = self.gate_for.map_or(0, |time| time.as_millis() as u64);
        Ok(Some(v1::Gate { measure: Some(measure), bound, for_ms, promote: self.gate_promote }))
    }
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Command::Publish(args) => publish(*args, context).await,
            Command::List { name, stale } => list(context, name, stale).await,
            Command::Promote(args) => end(context, args, true).await,
            Command::Abort(args) => end(context, args, false).await,
        }
    }
}

async fn publish(args: Publish, context: &Context) -> Result<(), Error> {
    let Publish { name, content, rule, picks, priority, gate, expect, note } = args;
    let (group, key) = name.parts()?;
    let terms = v1::GrayTerms { rule, priority, picks: Some(picks.terms()), gate: gate.terms()? };
    let request = v1::PublishConfigRequest {
        namespace: context.namespace(),
        group,
        key,
        content: content.bytes()?,
        author: note.author(),
        comment: note.comment,
        expected_version: expect,
        gray: Some(Box::new(terms)),
        ..v1::PublishConfigRequest::default()
    };
    publish::send(context, request, &content).await
}

async fn list(context: &Context, name: Name, stale: bool) -> Result<(), Error> {
    let (group, key) = name.parts()?;
    let request = v1::GetConfigRequest {
        namespace: context.namespace(),
        group,
        key,
        consistency: answers::wanted(stale).into(),
        ..v1::GetConfigRequest::default()
    };
    let answer = context.client()?.get_config(request).await?;
    let gray = answer.item.unwrap_or_default().gray;
    let gray: Vec<view::Gray> = gray.into_iter().map(|gray| view::Gray::of(gray, false)).collect();
    let value = json!({
        "revision": answers::revision(&answer.header),
        "consistency": answers::consistency(&answer.header),
        "gray": gray,
    });
    context.printer().table(&value, || {
        let headers =
            ["rule", "priority", "version", "who", "gate", "since", "size", "sha256", "author"];
        let mut table = Table::new(&headers);
        for gray in &gray {
            let Some(release) = &gray.release else { continue };
            table.row([
                gray.rule.clone(),
                gray.priority.to_string(),
                release.version.to_string(),
                who(gray),
                gray.gate.as_ref().map(gate_line).unwrap_or_default(),
                output::timestamp(gray.since_ms),
                output::bytes(release.bytes),
                release.short_sha256(),
                release.author.clone(),
            ]);
        }
        table
    })
}

async fn end(context: &Context, args: End, promote: bool) -> Result<(), Error> {
    let End { name, rule, expect, note } = args;
    let (group, key) = name.parts()?;
    let name = shown(&group, &key);
    let request = v1::EndGrayRequest {
        namespace: context.namespace(),
        group,
        key,
        rule: rule.clone(),
        promote,
        author: note.author(),
        comment: note.comment,
        expected_version: expect,
        request_id: None,
    };
    let answer = context.client()?.end_gray(request, None).await?;
    let revision = answers::revision(&answer.header);
    let value = json!({"revision": revision, "version": answer.version});
    context.printer().answer(&value, || match promote {
        true => format!("{name}: {rule} is for everybody, as version {}", answer.version),
        false => format!("{name}: {rule} (version {}) has ended", answer.version),
    })
}

/// Whom a rule picks, in a cell.
fn who(gray: &view::Gray) -> String {
    match (&gray.labels, &gray.clients, gray.percent) {
        (Some(labels), _, _) => output::pairs(labels),
        (_, Some(clients), _) if clients.len() > 3 => {
            format!("{} and {} more", clients[..3].join(","), clients.len() - 3)
        }
        (_, Some(clients), _) => clients.join(","),
        (_, _, Some(percent)) => format!("{percent}%"),
        (None, None, None) => "unknown".to_owned(),
    }
}

fn gate_line(gate: &view::Gate) -> String {
    let measure = match &gate.counter {
        Some(counter) => {
            let labels = match counter.labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", output::pairs(&counter.labels).replace(' ', ",")),
            };
            format!("{}{labels} > {} + {}", counter.name, counter.base, gate.bound)
        }
        None => format!("unhealthy > {}%", gate.bound),
    };
    let then = if gate.promote { ", then for everybody" } else { "" };
    let time = output::duration(Duration::from_millis(gate.for_ms));
    format!("{measure} within {time}{then}")
}

/// A gray release in one cell.
pub fn line(gray: &view::Gray) -> String {
    let version = gray.release.as_ref().map_or(0, |release| release.version);
    let gate = gray.gate.as_ref().map(|gate| format!(", gate {}", gate_line(gate)));
    let gate = gate.unwrap_or_default();
    format!("{} version {version} priority {} for {}{gate}", gray.rule, gray.priority, who(gray))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn shares() {
        for (given, points) in
            [("0", 0), ("5", 500), ("12.5", 1_250), ("0.01", 1), ("99.99", 9_999), ("100", 10_000)]
        {
            assert_eq!(basis_points(given), Ok(points), "{given}");
        }
        for given in ["", ".", "5.", ".5", "-1", "100.01", "1.234", "1e1", "99999999999"] {
            assert!(basis_points(given).is_err(), "{given}");
        }
    }

    #[test]
    fn counters_and_gates() {
        assert_eq!(counter("errors").unwrap(), ("errors".to_owned(), vec![]));
        let (name, labels) = counter("errors{service=orders,code=500}").unwrap();
        let pairs = [("service", "orders"), ("code", "500")];
        assert_eq!(name, "errors");
        assert_eq!(labels, pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
        for given in ["", "{a=b}", "x{a=b", "x{a}"] {
            assert!(counter(given).is_err(), "{given}");
        }
        let gate = Gate {
            gate_counter: Some((name, labels)),
            gate_bound: Some(10),
            gate_for: Some(Duration::from_secs(600)),
            gate_promote: true,
            gate_unhealthy: None,
        };
        let terms = gate.terms().unwrap().unwrap();
        assert_eq!((terms.bound, terms.for_ms, terms.promote), (10, 600_000, true));
        let release = v1::GrayRelease {
            terms: Some(v1::GrayTerms {
                rule: "canary".into(),
                priority: 7,
                picks: Some(v1::gray_terms::Picks::BasisPoints(1_250)),
                gate: Some(terms),
            }),
            release: Some(v1::ConfigRelease { version: 4, ..Default::default() }),
            since_ms: 0,
        };
        let shown = line(&view::Gray::of(release, false));
        let expected = "canary version 4 priority 7 for 12.5%, gate errors{code=500,service=orders} \
                        > 0 + 10 within 10m, then for everybody";
        assert_eq!(shown, expected);
        assert!(Gate::default().terms().unwrap().is_none());
        let alone = Gate { gate_for: Some(Duration::from_secs(1)), ..Gate::default() };
        assert!(alone.terms().unwrap_err().to_string().contains("--gate-counter"));
    }
}
