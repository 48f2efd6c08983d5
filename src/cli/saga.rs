//! `quorate saga`: global transactions, for operators who want to know where one stands and what to do with
//! it, and for trying things out.

use std::time::Duration;

use serde_json::{Value, json};

use super::follow::follow;
use super::output::{self, Table};
use super::view::saga::Saga;
use super::{Context, Error, milliseconds, view};
use crate::client::{Client, WatchRange};
use crate::limits;
use crate::proto::v1::order_saga_request::Order;
use crate::proto::v1::{self, watch_event};

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List global transactions
    List {
        /// Only gids that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Only those of one status
        #[arg(long)]
        status: Option<Status>,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Show one with its branches
    Get {
        gid: String,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Print transactions as they change, until Ctrl-C
    Watch {
        /// Only gids that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Begin with the changes after this revision instead of with what there is
        #[arg(long, value_name = "REVISION", default_value_t = 0)]
        after: u64,
    },
    /// Begin and submit a saga
    Begin(Begin),
    /// Wait until one is finished; exit code 1 unless it succeeded
    Wait {
        gid: String,
        /// For how long [default: until it is finished or suspended]
        #[arg(long = "for", value_name = "DURATION", value_parser = patience)]
        patience: Option<Duration>,
    },
    /// Decide that one that is prepared is carried out
    Submit { gid: String },
    /// Give up one that is prepared
    Abort {
        gid: String,
        /// Why, for others to read
        #[arg(long, value_name = "TEXT", default_value = "")]
        reason: String,
    },
    /// Stop one until it is resumed, whatever clients decide meanwhile
    Suspend {
        gid: String,
        /// Why, for others to read
        #[arg(long, value_name = "TEXT", default_value = "by hand")]
        reason: String,
    },
    /// Go on with a suspended one where it stood, with all attempts anew
    Resume { gid: String },
    /// Take a branch of a suspended one for settled, in the direction in which it goes
    Skip {
        gid: String,
        /// Number of the branch, from 0
        branch: u32,
    },
    /// Take a suspended one for finished, in the direction in which it goes
    Finish { gid: String },
    /// Call now what waits for its next attempt
    Retry { gid: String },
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub enum Status {
    Prepared,
    Submitted,
    Aborting,
    Succeeded,
    Failed,
    Suspended,
}

#[derive(Debug, clap::Args)]
pub struct Begin {
    /// Its gid [default: given by the cluster]
    #[arg(default_value = "")]
    gid: String,
    /// A branch: its action and, behind a space, what takes it back. Targets are
    /// quorate:///service/package.Service/Method, http://..., or counter:///name?delta=1; may be
    /// repeated, in order
    #[arg(long, value_name = "TARGET [TARGET]", required = true)]
    step: Vec<String>,
    /// Bytes of the request of all its branches
    #[arg(long, value_name = "TEXT", default_value = "")]
    payload: String,
    /// Branches do not wait for each other
    #[arg(long)]
    concurrent: bool,
    /// Repeat what cannot be done until it can, instead of taking back what was done
    #[arg(long)]
    forward: bool,
    /// Wait until it is finished; exit code 1 unless it succeeded
    #[arg(long)]
    wait: bool,
}

impl From<Status> for v1::SagaStatus {
    fn from(status: Status) -> v1::SagaStatus {
        match status {
            Status::Prepared => v1::SagaStatus::Prepared,
            Status::Submitted => v1::SagaStatus::Submitted,
            Status::Aborting => v1::SagaStatus::Aborting,
            Status::Succeeded => v1::SagaStatus::Succeeded,
            Status::Failed => v1::SagaStatus::Failed,
            Status::Suspended => v1::SagaStatus::Suspended,
        }
    }
}

fn patience(given: &str) -> Result<Duration, String> {
    milliseconds("for", given, &(1..=30 * 86_400_000))
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        let order = |gid, order| change(context, gid, order);
        match self {
            Command::List { prefix, status, stale } => list(context, prefix, status, stale).await,
            Command::Get { gid, stale } => get(context, gid, stale).await,
            Command::Watch { prefix, after } => {
                let range = WatchRange::Sagas { namespace: context.namespace(), prefix };
                let watch = context.client()?.watch_after(range, after);
                follow(context, watch, |update| view::show_events(context, update, shown)).await
            }
            Command::Begin(args) => begin(context, args).await,
            Command::Wait { gid, patience } => {
                wait(context, &context.client()?, gid, patience).await
            }
            Command::Submit { gid } => submit(context, gid).await,
            Command::Abort { gid, reason } => abort(context, gid, reason).await,
            Command::Suspend { gid, reason } => {
                order(gid, Order::Suspend(v1::SuspendSaga { reason })).await
            }
            Command::Resume { gid } => order(gid, Order::Resume(v1::ResumeSaga {})).await,
            Command::Skip { gid, branch } => {
                order(gid, Order::Skip(v1::SkipSagaBranch { branch })).await
            }
            Command::Finish { gid } => order(gid, Order::Finish(v1::FinishSaga {})).await,
            Command::Retry { gid } => order(gid, Order::Retry(v1::RetrySaga {})).await,
        }
    }
}

async fn list(
    context: &Context,
    prefix: String,
    status: Option<Status>,
    stale: bool,
) -> Result<(), Error> {
    let client = context.client()?;
    let mut request = v1::ListSagasRequest {
        namespace: context.namespace(),
        status: status.map_or(0, |status| v1::SagaStatus::from(status).into()),
        prefix,
        limit: limits::DEFAULT_PAGE as u32,
        after: String::new(),
        consistency: view::wanted(stale).into(),
    };
    let mut sagas: Vec<Saga> = Vec::new();
    loop {
        let page = client.list_sagas(request.clone()).await?;
        sagas.extend(page.sagas.into_iter().map(Saga::from));
        let Some(last) = sagas.last().filter(|_| page.more) else { break };
        request.after = last.gid.clone();
    }
    context.printer().table(&json!({"sagas": sagas}), || {
        let mut table =
            Table::new(&["gid", "mode", "status", "for", "step", "attempts", "next", "error"]);
        let now_ms = output::now_ms();
        for saga in &sagas {
            table.row([
                saga.gid.clone(),
                saga.mode.to_owned(),
                saga.status.to_owned(),
                output::age(now_ms, saga.since_ms),
                saga.progress(),
                saga.attempts().to_string(),
                next(saga, now_ms),
                saga.trouble(),
            ]);
        }
        table
    })
}

/// When time makes something of it.
fn next(saga: &Saga, now_ms: u64) -> String {
    let finished = matches!(saga.status, "succeeded" | "failed");
    match saga.fire_at_ms {
        0 => String::new(),
        _ if finished => String::new(),
        at_ms => until(at_ms, now_ms),
    }
}

fn until(at_ms: u64, now_ms: u64) -> String {
    let left = Duration::from_millis(at_ms.saturating_sub(now_ms));
    if left.is_zero() { "now".to_owned() } else { format!("in {}", output::duration(left)) }
}

async fn get(context: &Context, gid: String, stale: bool) -> Result<(), Error> {
    let consistency = view::wanted(stale).into();
    let request = v1::GetSagaRequest { namespace: context.namespace(), gid, consistency };
    let answer = context.client()?.get_saga(request).await?;
    let saga = Saga::from(answer.saga.unwrap_or_default());
    let value = json!({
        "revision": view::revision(&answer.header),
        "consistency": view::consistency(&answer.header),
        "saga": saga,
    });
    let printer = context.printer();
    printer.answer(&value, || {
        let now_ms = output::now_ms();
        let mut fields = vec![
            ("gid", saga.gid.clone()),
            ("mode", saga.mode.to_owned()),
            ("status", saga.status.to_owned()),
            ("for", output::age(now_ms, saga.since_ms)),
        ];
        if saga.status != saga.phase {
            fields.push(("phase", saga.phase.to_owned()));
            fields.push(("suspended", saga.suspended.clone()));
        }
        if !saga.query.is_empty() {
            let call = &saga.query_call;
            let asked = format!("{} ({}, attempt {})", saga.query, call.state, call.attempt);
            fields.push(("query", asked));
        }
        let optional = [("error", saga.error.clone()), ("next", next(&saga, now_ms))];
        fields.extend(optional.into_iter().filter(|(_, text)| !text.is_empty()));
        let mut branches =
            Table::new(&["branch", "id", "call", "state", "attempt", "failures", "next", "result"]);
        for (number, branch) in saga.branches.iter().enumerate() {
            let call = &branch.call;
            let target = if branch.backward { &branch.compensation } else { &branch.action };
            let at = match call.state {
                "running" | "unknown" | "ongoing" => until(call.at_ms, now_ms),
                _ => String::new(),
            };
            let result = branch.result.clone().or_else(|| branch.result_base64.clone());
            branches.row([
                number.to_string(),
                branch.id.clone(),
                format!("{}{target}", if branch.backward { "undo " } else { "" }),
                call.state.to_owned(),
                call.attempt.to_string(),
                call.failures.to_string(),
                at,
                result.unwrap_or_default(),
            ]);
        }
        format!("{}\n{}", printer.render(&Table::record(fields)), printer.render(&branches))
    })
}

fn shown(record: watch_event::Record) -> Option<(&'static str, Value, String, String)> {
    let watch_event::Record::Saga(saga) = record else { return None };
    let saga = Saga::from(saga);
    let text = format!("{} {} {} {}", saga.gid, saga.status, saga.progress(), saga.trouble());
    Some(("saga", json!(saga), saga.gid, text.trim_end().to_owned()))
}

async fn begin(context: &Context, args: Begin) -> Result<(), Error> {
    let Begin { gid, step, payload, concurrent, forward, wait } = args;
    let branches = step.iter().map(|step| {
        let (action, compensation) = step.split_once(' ').unwrap_or((step, ""));
        v1::NewSagaBranch {
            action: action.to_owned(),
            compensation: compensation.trim().to_owned(),
            payload: payload.clone().into_bytes(),
            ..Default::default()
        }
    });
    let recovery = if forward { v1::SagaRecovery::Forward } else { v1::SagaRecovery::Backward };
    let request = v1::BeginSagaRequest {
        namespace: context.namespace(),
        gid,
        mode: v1::SagaMode::Saga.into(),
        recovery: recovery.into(),
        branches: branches.collect(),
        concurrent,
        submit: true,
        ..Default::default()
    };
    let client = context.client()?;
    let answer = client.begin_saga(request, None).await?;
    let (gid, created) = (answer.gid.clone(), answer.created);
    if wait {
        return self::wait(context, &client, gid, None).await;
    }
    let revision = view::revision(&answer.header);
    let status = view::saga::status(answer.status());
    let value = json!({"revision": revision, "gid": gid, "status": status, "created": created});
    context.printer().answer(&value, || match created {
        true => format!("saga {gid} begun at revision {revision}"),
        false => format!("saga {gid} was begun before and is {status}"),
    })
}

async fn wait(
    context: &Context,
    client: &Client,
    gid: String,
    patience: Option<Duration>,
) -> Result<(), Error> {
    let give_up = patience.map(|patience| tokio::time::Instant::now() + patience);
    let request = v1::WaitSagaRequest {
        namespace: context.namespace(),
        gid: gid.clone(),
        // Within what one call may take.
        timeout_ms: (context.options.timeout / 2).as_millis() as u64,
    };
    let saga = loop {
        let mut request = request.clone();
        let left = give_up.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
        if let Some(left) = left {
            request.timeout_ms = request.timeout_ms.min((left.as_millis() as u64).max(1));
        }
        let answer = client.wait_saga(request).await?;
        let saga = Saga::from(answer.saga.unwrap_or_default());
        let rests = matches!(saga.status, "succeeded" | "failed" | "suspended");
        if rests || left.is_some_and(|left| left.is_zero()) {
            break saga;
        }
    };
    let text = format!("saga {gid} {} {}", saga.status, saga.trouble()).trim_end().to_owned();
    context.printer().answer(&json!({"saga": saga}), || text.clone())?;
    match saga.status {
        "succeeded" => Ok(()),
        _ => Err(Error::Told),
    }
}

async fn submit(context: &Context, gid: String) -> Result<(), Error> {
    let namespace = context.namespace();
    let request = v1::SubmitSagaRequest { namespace, gid: gid.clone(), request_id: None };
    let answer = context.client()?.submit_saga(request, None).await?;
    turned(context, &gid, answer.status(), answer.changed, &answer.header)
}

async fn abort(context: &Context, gid: String, reason: String) -> Result<(), Error> {
    let namespace = context.namespace();
    let request = v1::AbortSagaRequest { namespace, gid: gid.clone(), reason, request_id: None };
    let answer = context.client()?.abort_saga(request, None).await?;
    turned(context, &gid, answer.status(), answer.changed, &answer.header)
}

async fn change(context: &Context, gid: String, order: Order) -> Result<(), Error> {
    let (namespace, order) = (context.namespace(), Some(order));
    let request = v1::OrderSagaRequest { namespace, gid: gid.clone(), order, request_id: None };
    let answer = context.client()?.order_saga(request, None).await?;
    turned(context, &gid, answer.status(), answer.changed, &answer.header)
}

fn turned(
    context: &Context,
    gid: &str,
    status: v1::SagaStatus,
    changed: bool,
    header: &Option<v1::Header>,
) -> Result<(), Error> {
    let (revision, status) = (view::revision(header), view::saga::status(status));
    let value = json!({"revision": revision, "status": status, "changed": changed});
    context.printer().answer(&value, || match changed {
        true => format!("saga {gid} is {status} at revision {revision}"),
        false => format!("saga {gid} is {status}, as before"),
    })
}
