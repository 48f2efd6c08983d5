//! `quorate lock`: takes a lock and holds it as long as a command runs, or as long as this one does; and
//! who holds which.

use std::process::ExitStatus;
use std::time::Duration;

use serde_json::json;
use tokio::process::Child;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::output::{self, Table};
use super::{Context, Error, milliseconds, view};
use crate::client::{LockGuard, Lost, Session, SessionOptions};
use crate::options::exit;
use crate::proto::v1;
use crate::{limits, options};

#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    override_usage = "quorate lock [OPTIONS] NAME [-- COMMAND ARGS...]\n       \
                      quorate lock list [PREFIX] | get NAME | release NAME --token TOKEN"
)]
pub struct Args {
    #[command(subcommand)]
    look: Option<Look>,
    /// Name of the lock
    #[arg(required = true)]
    name: Option<String>,
    /// How long the lock outlives this process, 1s..=1h [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = ttl)]
    ttl: Option<Duration>,
    /// How long to wait for the lock [default: until it is had]
    #[arg(long, value_name = "DURATION", value_parser = wait, conflicts_with = "try_only")]
    timeout: Option<Duration>,
    /// Do not wait: fail when somebody holds it
    #[arg(long = "try", id = "try_only")]
    try_only: bool,
    /// What others see of the holder
    #[arg(long, value_name = "TEXT", default_value = "")]
    value: String,
    /// Runs while the lock is held; its environment has QUORATE_LOCK_TOKEN and so on
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
enum Look {
    /// List locks that are held
    List {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Show who holds a lock and who waits for it
    Get {
        name: String,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Take a lock away from its holder; the next one in line gets it
    Release {
        name: String,
        /// Only from the holder with this token
        #[arg(long, value_name = "TOKEN", value_parser = clap::value_parser!(u64).range(1..))]
        token: u64,
    },
}

pub(super) fn ttl(given: &str) -> Result<Duration, String> {
    milliseconds("ttl", given, &limits::SESSION_TTL_MS)
}

pub(super) fn wait(given: &str) -> Result<Duration, String> {
    let allowed = Duration::from_millis(1)..=Duration::from_secs(30 * 86_400);
    options::duration("timeout", given, allowed).map_err(|error| error.to_string())
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    match args.look {
        Some(Look::List { prefix, stale }) => list(context, &prefix, stale).await,
        Some(Look::Get { name, stale }) => get(context, name, stale).await,
        Some(Look::Release { name, token }) => release(context, name, token).await,
        None => hold(args, context).await,
    }
}

async fn list(context: &Context, prefix: &str, stale: bool) -> Result<(), Error> {
    let wanted = view::wanted(stale);
    let locks = context.client()?.all_locks(&context.namespace(), prefix, wanted).await?;
    let locks: Vec<(view::LockRequest, u64)> = locks
        .into_iter()
        .map(|lock| (lock.owner.unwrap_or_default().into(), lock.waiting))
        .collect();
    let values: Vec<_> = locks
        .iter()
        .map(|(owner, waiting)| json!({"lock": owner.lock, "owner": owner, "waiting": waiting}))
        .collect();
    context.printer().table(&json!({"locks": values}), || {
        let mut table =
            Table::new(&["lock", "token", "session", "holder", "value", "held for", "waiting"]);
        let now_ms = output::now_ms();
        for (owner, waiting) in &locks {
            table.row([
                owner.lock.clone(),
                owner.token.to_string(),
                owner.session.to_string(),
                owner.holder.clone(),
                owner.value.clone(),
                output::age(now_ms, owner.acquired_at_ms),
                waiting.to_string(),
            ]);
        }
        table
    })
}

async fn get(context: &Context, lock: String, stale: bool) -> Result<(), Error> {
    let consistency = view::wanted(stale).into();
    let request = v1::GetLockRequest { namespace: context.namespace(), lock, consistency };
    let answer = context.client()?.get_lock(request).await?;
    let value = json!({
        "revision": view::revision(&answer.header),
        "consistency": view::consistency(&answer.header),
        "requests": requests(&answer.requests),
    });
    context.printer().table(&value, || {
        let mut table = Table::new(&["place", "token", "session", "holder", "value", "for"]);
        let now_ms = output::now_ms();
        for (number, request) in answer.requests.iter().enumerate() {
            let (place, since_ms) = match request.token {
                0 => (format!("waits ({number})"), request.requested_at_ms),
                _ => ("holds".to_owned(), request.acquired_at_ms),
            };
            table.row([
                place,
                request.token.to_string(),
                request.session.to_string(),
                request.holder.clone(),
                request.value.clone(),
                output::age(now_ms, since_ms),
            ]);
        }
        table
    })
}

fn requests(requests: &[v1::LockRequest]) -> Vec<view::LockRequest> {
    requests.iter().cloned().map(Into::into).collect()
}

async fn release(context: &Context, lock: String, token: u64) -> Result<(), Error> {
    let request = v1::ReleaseLockRequest {
        namespace: context.namespace(),
        lock: lock.clone(),
        token,
        ..v1::ReleaseLockRequest::default()
    };
    let answer = context.client()?.release_lock(request, None).await?;
    let revision = view::revision(&answer.header);
    let value = json!({"revision": revision, "released": answer.released});
    context.printer().answer(&value, || match answer.released {
        true => format!("lock {lock} released at revision {revision}"),
        false => format!("lock {lock} is not held with token {token}"),
    })
}

/// SIGTERM and Ctrl-C.
pub(super) struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    pub fn new() -> Result<Stop, Error> {
        let listen = |kind| signal(kind).map_err(|error| Error::io("signals", error));
        Ok(Stop {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    /// Returns the signal that came.
    pub async fn wait(&mut self) -> SignalKind {
        tokio::select! {
            biased;
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
        }
    }
}

/// A session for as long as this command runs.
pub(super) async fn session(
    context: &Context,
    ttl: Option<Duration>,
    what: &str,
) -> Result<Session, Error> {
    let ttl = ttl.unwrap_or(Duration::from_millis(limits::DEFAULT_SESSION_TTL_MS));
    let client = Some(format!("quorate {what}").chars().take(64).collect());
    Ok(context.client()?.session(SessionOptions { ttl, client, reopen: false }).await?)
}

/// Ends the session, and with it the lock or the place in its line.
pub(super) async fn end(session: &Session) {
    if let Err(error) = session.close().await {
        output::note(&format!("the session was not closed and ends with its TTL: {error}"));
    }
}

async fn hold(args: Args, context: &Context) -> Result<(), Error> {
    let name = args.name.clone().unwrap_or_default();
    let mut stop = Stop::new()?;
    let session = session(context, args.ttl, &format!("lock {name}")).await?;
    let held = async {
        let lock = context.client()?.lock(context.namespace(), &name).value(&args.value);
        let lock = match args.timeout {
            Some(timeout) => lock.timeout(timeout),
            None => lock,
        };
        let acquired = tokio::select! {
            biased;
            signal = stop.wait() => return Err(Error::Command(code_of(signal.as_raw_value()))),
            acquired = async {
                if args.try_only { lock.try_acquire(&session).await } else { lock.acquire(&session).await }
            } => acquired,
        };
        let guard = acquired.map_err(|error| match (error, args.timeout) {
            (crate::error::Error::Timeout { .. }, Some(timeout)) => {
                let waited = output::duration(timeout);
                Error::refused(exit::ERROR, format!("lock {name} was not had within {waited}"))
            }
            (error, _) => error.into(),
        })?;
        match args.command.split_first() {
            None => until_told(&guard, &mut stop, context).await,
            Some((program, arguments)) => {
                let mut command = tokio::process::Command::new(program);
                let held = guard.name();
                command
                    .args(arguments)
                    .env("QUORATE_LOCK_NAME", held.lock)
                    .env("QUORATE_LOCK_NAMESPACE", held.namespace)
                    .env("QUORATE_LOCK_TOKEN", guard.token().to_string())
                    .env("QUORATE_LOCK_SESSION", session.id().to_string())
                    .env("QUORATE_LOCK_HOLDER", guard.holder());
                let child = command.spawn().map_err(|error| Error::io(program, error))?;
                supervise(child, &guard, &mut stop).await
            }
        }
    };
    let result = held.await;
    end(&session).await;
    result
}

/// Prints the token and holds the lock until Ctrl-C.
async fn until_told(guard: &LockGuard, stop: &mut Stop, context: &Context) -> Result<(), Error> {
    let v1::LockName { namespace, lock } = guard.name();
    let (token, holder) = (guard.token(), guard.holder());
    let value = json!({"namespace": namespace, "lock": lock, "token": token, "holder": holder});
    context.printer().answer(&value, || format!("{lock} held with token {token}, until Ctrl-C"))?;
    tokio::select! {
        biased;
        why = guard.lost() => Err(lost(&lock, why)),
        _ = stop.wait() => Ok(()),
    }
}

fn lost(name: &str, why: Lost) -> Error {
    Error::refused(exit::ERROR, format!("lock {name} is lost: {why}"))
}

/// Waits for the command, which is told to end when the lock is lost or this process is told to. Its exit
/// code becomes ours.
async fn supervise(mut child: Child, guard: &LockGuard, stop: &mut Stop) -> Result<(), Error> {
    let why = loop {
        tokio::select! {
            biased;
            status = child.wait() => return forward(status),
            why = guard.lost() => break why,
            // Ctrl-C goes to the whole process group: the command has got it too.
            signal = stop.wait() => if signal == SignalKind::terminate() {
                terminate(&child);
            },
        }
    };
    let error = lost(&guard.name().lock, why);
    output::note(&format!("error: {error}; ending the command"));
    terminate(&child);
    if timeout(limits::LOCK_COMMAND_STOP, child.wait()).await.is_err() {
        child.kill().await.map_err(|error| Error::io("the command", error))?;
    }
    Err(Error::Command(exit::ERROR))
}

fn terminate(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        // It may have ended meanwhile.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

fn forward(status: std::io::Result<ExitStatus>) -> Result<(), Error> {
    use std::os::unix::process::ExitStatusExt as _;
    let status = status.map_err(|error| Error::io("the command", error))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(Error::Command(u8::try_from(code).unwrap_or(exit::ERROR))),
        None => Err(Error::Command(code_of(status.signal().unwrap_or_default()))),
    }
}

/// What a shell makes of a command that a signal ended.
fn code_of(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(exit::ERROR)
}
