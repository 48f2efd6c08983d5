//! `quorate elect`: leads an election as long as it runs, or tells who leads.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt as _;
use serde_json::{Value, json};

use super::lock::{Stop, end, session, ttl, wait};
use super::{Context, Error, output};
use crate::client::Leader;
use crate::options::exit;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the election, which is that of its lock
    name: String,
    /// What the leader tells everybody, for instance its address
    #[arg(required_unless_present = "listen", conflicts_with = "listen")]
    value: Option<String>,
    /// Print who leads, and every change of it, until Ctrl-C
    #[arg(short, long)]
    listen: bool,
    /// How long the leadership outlives this process, 1s..=1h [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = ttl, conflicts_with = "listen")]
    ttl: Option<Duration>,
    /// How long to campaign [default: until elected]
    #[arg(long, value_name = "DURATION", value_parser = wait, conflicts_with = "listen")]
    timeout: Option<Duration>,
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.listen {
        true => listen(&args.name, context).await,
        false => lead(args, context).await,
    }
}

async fn listen(name: &str, context: &Context) -> Result<(), Error> {
    let mut stop = Stop::new()?;
    let mut leaders = pin!(context.client()?.election(context.namespace(), name).observe());
    loop {
        let leader = tokio::select! {
            biased;
            _ = stop.wait() => return Ok(()),
            leader = leaders.next() => match leader {
                Some(leader) => leader?,
                None => return Ok(()),
            },
        };
        let value = json!({"election": name, "leader": leader.as_ref().map(view)});
        context.printer().answer(&value, || match &leader {
            Some(leader) => {
                format!("{name} is led by {} with token {}", quoted(&leader.value), leader.token)
            }
            None => format!("{name} is led by nobody"),
        })?;
    }
}

fn view(leader: &Leader) -> Value {
    let Leader { value, token, session, holder } = leader;
    json!({"value": value, "token": token, "session": session, "holder": holder})
}

fn quoted(value: &str) -> String {
    format!("{:?}", output::one_line(value.to_owned()))
}

async fn lead(args: Args, context: &Context) -> Result<(), Error> {
    let (name, value) = (args.name, args.value.unwrap_or_default());
    let mut stop = Stop::new()?;
    let session = session(context, args.ttl, &format!("elect {name}")).await?;
    let led = async {
        let election = context.client()?.election(context.namespace(), &name);
        let election = match args.timeout {
            Some(timeout) => election.timeout(timeout),
            None => election,
        };
        let elected = tokio::select! {
            biased;
            _ = stop.wait() => return Ok(()),
            elected = election.campaign(&session, value.clone()) => elected,
        };
        let leadership = elected.map_err(|error| match (error, args.timeout) {
            (crate::error::Error::Timeout { .. }, Some(timeout)) => {
                let waited = output::duration(timeout);
                Error::refused(exit::ERROR, format!("not elected within {waited}"))
            }
            (error, _) => error.into(),
        })?;
        let token = leadership.token();
        let said =
            json!({"election": name, "value": value, "token": token, "session": session.id()});
        context.printer().answer(&said, || {
            format!("{name} is led by {} with token {token}, until Ctrl-C", quoted(&value))
        })?;
        tokio::select! {
            biased;
            why = leadership.lost() => {
                Err(Error::refused(exit::ERROR, format!("{name} is led by another: {why}")))
            }
            _ = stop.wait() => Ok(()),
        }
    };
    let result = led.await;
    end(&session).await;
    result
}
