//! `quorate service register`: for good, or, with --session-ttl, for as long as the command runs.

use std::io::Read as _;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Context, Error, milliseconds, output, pair, view};
use crate::cli::lock::Stop;
use crate::client::{
    Client, Registration, RegistrationOptions, RegistrationState, RegistrationStatus,
};
use crate::proto::v1;
use crate::{limits, options};

#[derive(Debug, Default, PartialEq, clap::Args)]
pub struct Args {
    /// Name of the service; - reads the whole instance as JSON from standard input, in the form that
    /// `service get SERVICE ID -w json` prints
    service: String,
    /// Name of the instance within its service
    #[arg(long, value_name = "ID")]
    id: Option<String>,
    /// Address, with the name of the port if it has one; may be repeated
    #[arg(long, value_name = "[NAME=]HOST:PORT", value_parser = endpoint)]
    address: Vec<view::Endpoint>,
    /// Share of the load relative to the others, 0..=65535 [default: 1]
    #[arg(long, value_name = "N", value_parser = weight)]
    weight: Option<u32>,
    /// Where it runs
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Metadata; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
    /// Its health [default: passing]
    #[arg(long, value_enum)]
    health: Option<view::Health>,
    /// Why, for whoever looks at the instance
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Keep the instance alive as long as this command runs, and deregister it at the end; when the
    /// command dies the instance turns critical after this time, 1s..=1h
    #[arg(long, value_name = "DURATION", value_parser = session_ttl)]
    session_ttl: Option<Duration>,
}

fn endpoint(given: &str) -> Result<view::Endpoint, String> {
    let (name, address) = given.split_once('=').unwrap_or(("", given));
    let (host, port) = options::split_host_port(address)
        .ok_or("expected host:port or name=host:port, for instance grpc=10.0.0.1:8080")?;
    Ok(view::Endpoint { name: name.to_owned(), host, port })
}

fn weight(given: &str) -> Result<u32, String> {
    let weight = given.parse().ok().filter(|weight| *weight <= limits::WEIGHT);
    weight.ok_or_else(|| format!("allowed: 0..={}", limits::WEIGHT))
}

fn session_ttl(given: &str) -> Result<Duration, String> {
    milliseconds("session-ttl", given, &limits::SESSION_TTL_MS)
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let ttl = args.session_ttl;
    let instance = match args.service.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .map_err(|error| Error::io("standard input", error))?;
            args.with_json(&text, &context.namespace())?
        }
        _ => args.instance(&context.namespace())?,
    };
    let client = context.client()?;
    match ttl {
        None => {
            let answer = client.register(instance.clone(), None).await?;
            let v1::RegisterResponse { header, created, mod_revision } = answer;
            let revision = view::revision(&header);
            tell(&Registered { revision, created, mod_revision, session: 0 }, &instance, context)
        }
        Some(ttl) => hold(&client, instance, ttl, context).await,
    }
}

impl Args {
    /// The instance that the flags describe.
    fn instance(self, namespace: &str) -> Result<v1::Instance, Error> {
        let id = self.id.ok_or_else(|| Error::usage("--id is missing".to_owned()))?;
        if self.address.is_empty() {
            return Err(Error::usage("--address is missing: host:port of the instance".to_owned()));
        }
        Ok(v1::Instance {
            namespace: namespace.to_owned(),
            service: self.service,
            id,
            endpoints: self.address.into_iter().map(Into::into).collect(),
            weight: self.weight,
            zone: self.zone.unwrap_or_default(),
            metadata: self.meta.into_iter().collect(),
            health: v1::Health::from(self.health.unwrap_or_default()).into(),
            admin: v1::Admin::Enabled.into(),
            reason: self.reason.unwrap_or_else(|| "quorate service register".to_owned()),
            ..v1::Instance::default()
        })
    }

    /// The instance that standard input describes: the answer of `service get`, or its `instance`.
    fn with_json(self, text: &str, namespace: &str) -> Result<v1::Instance, Error> {
        let only = Args {
            service: self.service.clone(),
            session_ttl: self.session_ttl,
            ..Args::default()
        };
        if self != only {
            let why = "with - every field of the instance comes from standard input";
            return Err(Error::usage(why.to_owned()));
        }
        let wrong = |error: serde_json::Error| Error::usage(format!("standard input: {error}"));
        let mut value: Value = serde_json::from_str(text).map_err(wrong)?;
        if let Some(instance) = value.get_mut("instance") {
            value = instance.take();
        }
        let instance: view::Instance = serde_json::from_value(value).map_err(wrong)?;
        let mut instance = instance.into_registration();
        if instance.namespace.is_empty() {
            namespace.clone_into(&mut instance.namespace);
        }
        Ok(instance)
    }
}

/// What came of it. A registration that is held knows no revision but its own.
struct Registered {
    revision: u64,
    created: bool,
    mod_revision: u64,
    session: u64,
}

fn tell(registered: &Registered, instance: &v1::Instance, context: &Context) -> Result<(), Error> {
    let Registered { revision, created, mod_revision, session } = registered;
    let v1::Instance { namespace, service, id, .. } = instance;
    let value = json!({
        "revision": revision,
        "created": created,
        "mod_revision": mod_revision,
        "namespace": namespace,
        "service": service,
        "id": id,
        "session": session,
    });
    context.printer().answer(&value, || {
        let done = match created {
            true => format!("{service}/{id} registered at revision {mod_revision}"),
            false => format!("{service}/{id} is as asked, at revision {mod_revision}"),
        };
        match session {
            0 => done,
            session => format!("{done}, alive until Ctrl-C (session {session})"),
        }
    })
}

/// Keeps the instance registered until this command is told to stop, through lost sessions too.
async fn hold(
    client: &Client,
    instance: v1::Instance,
    ttl: Duration,
    context: &Context,
) -> Result<(), Error> {
    let mut stop = Stop::new()?;
    let options = RegistrationOptions::new(instance.clone()).session_ttl(ttl);
    let registration = client.registration(options)?;
    let result = tokio::select! {
        biased;
        _ = stop.wait() => Ok(()),
        error = follow(&registration, &instance, context) => Err(error),
    };
    // Also after an error, of which nobody knows how far it came.
    let gone = registration.shutdown(Duration::ZERO).await;
    result?;
    output::note(&format!("deregistered at revision {}", gone?));
    Ok(())
}

/// Says what becomes of the registration; returns when it does not come about at all.
async fn follow(registration: &Registration, instance: &v1::Instance, context: &Context) -> Error {
    let patience = sleep(context.options.timeout);
    tokio::pin!(patience);
    let mut statuses = registration.subscribe();
    statuses.mark_changed();
    // The session of the last registration that was told.
    let mut told = None;
    let mut lost = false;
    loop {
        tokio::select! {
            biased;
            changed = statuses.changed() => if changed.is_err() {
                return crate::error::Error::internal("the registration has ended").into();
            },
            () = &mut patience, if told.is_none() => {
                let nobody = crate::error::Error::Timeout { definite: false };
                return statuses.borrow().error.clone().unwrap_or(nobody).into();
            }
        }
        let RegistrationStatus { state, error } = statuses.borrow_and_update().clone();
        match (state, error) {
            (RegistrationState::Registered { session, revision, created }, _) if told.is_none() => {
                let mod_revision = revision;
                let registered = Registered { revision, created, mod_revision, session };
                if let Err(error) = tell(&registered, instance, context) {
                    return error;
                }
                told = Some(session);
            }
            (RegistrationState::Registered { session, revision, .. }, _) => {
                if lost || told != Some(session) {
                    let again = format!("registered again at revision {revision}");
                    output::note(&format!("{again} (session {session})"));
                }
                (told, lost) = (Some(session), false);
            }
            (RegistrationState::Lost, error) => {
                let why = error.map(|error| format!(": {error}")).unwrap_or_default();
                output::note(&format!("registration lost{why}; registering again"));
                lost = true;
            }
            (RegistrationState::Pending, Some(error)) if !error.retryable() => match error {
                // It may end within the patience: the process before this one has died just now.
                crate::error::Error::OwnedByAnother { .. } => {
                    output::note(&format!("{error}; waiting for its end"));
                }
                error => return error.into(),
            },
            (RegistrationState::Pending, _) => {}
            (RegistrationState::Closed, error) => {
                let ended = || crate::error::Error::internal("the registration has ended");
                return error.unwrap_or_else(ended).into();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use clap::Parser as _;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &[&str]) -> Args {
        Line::try_parse_from(std::iter::once(&"register").chain(line)).unwrap().args
    }

    fn refused(line: &[&str]) -> String {
        let line = std::iter::once(&"register").chain(line);
        Line::try_parse_from(line).unwrap_err().to_string()
    }

    #[test]
    fn flags_describe_an_instance() {
        let line = [
            "web",
            "--id",
            "web-1",
            "--address",
            "10.0.0.1:80",
            "--address",
            "grpc=[::1]:81",
            "--weight",
            "0",
            "--zone",
            "eu",
            "--meta",
            "a=1=2",
            "--meta",
            "b=",
            "--health",
            "warning",
        ];
        let instance = args(&line).instance("n").unwrap();
        let expected = v1::Instance {
            namespace: "n".into(),
            service: "web".into(),
            id: "web-1".into(),
            endpoints: vec![
                v1::Endpoint { name: String::new(), host: "10.0.0.1".into(), port: 80 },
                v1::Endpoint { name: "grpc".into(), host: "::1".into(), port: 81 },
            ],
            weight: Some(0),
            zone: "eu".into(),
            metadata: [("a", "1=2"), ("b", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            health: v1::Health::Warning.into(),
            admin: v1::Admin::Enabled.into(),
            reason: "quorate service register".into(),
            ..v1::Instance::default()
        };
        assert_eq!(instance, expected);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let missing = |line: &[&str]| args(line).instance("n").unwrap_err().to_string();
        assert_eq!(missing(&["web"]), "--id is missing");
        assert!(missing(&["web", "--id", "a"]).starts_with("--address is missing"));
        let error = refused(&["web", "--address", "10.0.0.1"]);
        assert!(error.contains("'10.0.0.1' for '--address") && error.contains("name=host:port"));
        assert!(refused(&["web", "--weight", "65536"]).contains("allowed: 0..=65535"));
        assert!(refused(&["web", "--session-ttl", "10ms"]).contains("allowed: 1s..=3600s"));
        assert!(refused(&["web", "--meta", "a"]).contains("expected KEY=VALUE"));
        assert!(refused(&["web", "--health", "unknown"]).contains("passing, warning, critical"));
    }

    #[test]
    fn standard_input_describes_an_instance() {
        let instance =
            r#"{"service": "s", "id": "i", "endpoints": [{"host": "h", "port": 1}], "session": 7}"#;
        let dash = || args(&["-", "--session-ttl", "5s"]);
        let bare = dash().with_json(instance, "n").unwrap();
        assert_eq!((bare.namespace.as_str(), bare.service.as_str(), bare.session), ("n", "s", 0));
        let answer = format!(r#"{{"revision": 3, "instance": {instance}}}"#);
        assert_eq!(dash().with_json(&answer, "n").unwrap(), bare);
        let error = dash().with_json(r#"{"service": 1}"#, "n").unwrap_err();
        assert_eq!(error.code(), options::exit::USAGE);
        assert!(error.to_string().starts_with("standard input: invalid type"), "{error}");
        let error = args(&["-", "--id", "x"]).with_json(instance, "n").unwrap_err();
        assert!(error.to_string().starts_with("with - every field"), "{error}");
    }
}
