//! `quorate service check`: how the cluster checks the persistent instances of a service. What is not given
//! stays as it is, and so do the other settings of the service.

use std::time::Duration;

use serde_json::json;

use super::{Context, Error, Table, milliseconds, settings, show, view};
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::health_check::Probe;

#[derive(Debug, Default, Clone, PartialEq, clap::Args)]
#[command(group(clap::ArgGroup::new("rest").multiple(true)))]
pub struct Args {
    service: String,
    /// Passes when a connection is made
    #[arg(long, group = "probe")]
    tcp: bool,
    /// Passes when a GET of this path over plain HTTP is answered with an expected status
    #[arg(long, value_name = "PATH", group = "probe")]
    http: Option<String>,
    /// Passes when grpc.health.v1 says that the service, or the server as a whole, serves
    #[arg(long, value_name = "SERVICE", group = "probe", num_args = 0..=1, default_missing_value = "")]
    grpc: Option<String>,
    /// Checks nothing any more
    #[arg(long, group = "probe", conflicts_with = "rest")]
    off: bool,
    /// Name of the endpoint that is asked [default: for gRPC the one named grpc, else the first]
    #[arg(long, value_name = "NAME", group = "rest")]
    endpoint: Option<String>,
    /// The Host header of --http [default: host and port of the endpoint]
    #[arg(long, value_name = "HOST", group = "rest")]
    host: Option<String>,
    /// The status, or the first and the last, that --http expects [default: 200-299]
    #[arg(long, value_name = "N[-N]", value_parser = statuses, group = "rest")]
    status: Option<(u32, u32)>,
    /// From the beginning of a check to that of the next [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = interval, group = "rest")]
    interval: Option<Duration>,
    /// How long connection and answer may take together [default: 2s]
    #[arg(long, value_name = "DURATION", value_parser = timeout, group = "rest")]
    timeout: Option<Duration>,
    /// Failures in a row until an instance is critical [default: 3]
    #[arg(long, value_name = "N", value_parser = streak, group = "rest")]
    failures: Option<u32>,
    /// Successes in a row until it is passing again [default: 2]
    #[arg(long, value_name = "N", value_parser = streak, group = "rest")]
    successes: Option<u32>,
}

fn interval(given: &str) -> Result<Duration, String> {
    milliseconds("interval", given, &limits::HEALTH_INTERVAL_MS)
}

fn timeout(given: &str) -> Result<Duration, String> {
    milliseconds("timeout", given, &limits::HEALTH_TIMEOUT_MS)
}

fn streak(given: &str) -> Result<u32, String> {
    let allowed = limits::HEALTH_STREAK;
    let number = given.parse().ok().filter(|number| allowed.contains(&u64::from(*number)));
    number.ok_or_else(|| format!("allowed: {allowed:?}"))
}

fn statuses(given: &str) -> Result<(u32, u32), String> {
    let allowed = limits::HEALTH_STATUSES;
    let (first, last) = given.split_once('-').unwrap_or((given, given));
    let status = |text: &str| text.parse().ok().filter(|n| allowed.contains(&u64::from(*n)));
    match (status(first), status(last)) {
        (Some(first), Some(last)) if first <= last => Ok((first, last)),
        _ => Err(format!("allowed: one of {allowed:?}, or two as FIRST-LAST")),
    }
}

impl Args {
    fn changes(&self) -> bool {
        *self != Args { service: self.service.clone(), ..Args::default() }
    }

    /// What the check becomes. A new one begins with what is given and defaults; without a probe what is given
    /// changes the present one.
    fn wanted(self, present: Option<v1::HealthCheck>) -> Result<Option<v1::HealthCheck>, Error> {
        let Args { service, tcp, http, grpc, off, endpoint, host, status, .. } = self;
        let Args { interval, timeout, failures, successes, .. } = self;
        if off {
            return Ok(None);
        }
        let probe = match (tcp, http, grpc) {
            (true, _, _) => Some(Probe::Tcp(v1::TcpProbe {})),
            (_, Some(path), _) => Some(Probe::Http(v1::HttpProbe { path, ..Default::default() })),
            (_, _, Some(service)) => Some(Probe::Grpc(v1::GrpcProbe { service })),
            (false, None, None) => None,
        };
        let mut check = match (probe, present) {
            (Some(probe), _) => v1::HealthCheck { probe: Some(probe), ..Default::default() },
            (None, Some(present)) => present,
            (None, None) => {
                let why = format!("{service} has no health check: say --tcp, --http or --grpc");
                return Err(Error::usage(why));
            }
        };
        match &mut check.probe {
            Some(Probe::Http(probe)) => {
                probe.host = host.unwrap_or_else(|| std::mem::take(&mut probe.host));
                if let Some((first, last)) = status {
                    (probe.status_min, probe.status_max) = (first, last);
                }
            }
            Some(Probe::Tcp(_) | Probe::Grpc(_)) | None if host.is_some() || status.is_some() => {
                let why = "--host and --status go with --http".to_owned();
                return Err(Error::usage(why));
            }
            Some(Probe::Tcp(_) | Probe::Grpc(_)) | None => {}
        }
        check.endpoint = endpoint.unwrap_or(check.endpoint);
        let ms = |given: Option<Duration>, known| given.map_or(known, |it| it.as_millis() as u64);
        check.interval_ms = ms(interval, check.interval_ms);
        check.timeout_ms = ms(timeout, check.timeout_ms);
        check.failures = failures.unwrap_or(check.failures);
        check.successes = successes.unwrap_or(check.successes);
        Ok(Some(check))
    }
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let (client, namespace) = (context.client()?, context.namespace());
    let name = &args.service;
    if args.changes() {
        let change = |service: &v1::Service| {
            let present = service.health_check.as_deref();
            let wanted = args.clone().wanted(present.cloned())?;
            let stays = wanted.as_ref() == present;
            let health_check = wanted.map(Box::new);
            Ok((!stays).then(|| v1::Service { health_check, ..service.clone() }))
        };
        let (service, revision) = settings::change(&client, &namespace, name, change).await?;
        if revision == 0 {
            return shown(context, revision, service.into());
        }
    }
    // What was written lacks the defaults, and does not say what is not checked.
    let (service, revision) = settings::read(&client, &namespace, name).await?;
    shown(context, revision, service.into())
}

fn shown(context: &Context, revision: u64, service: view::Service) -> Result<(), Error> {
    let value = json!({
        "revision": revision,
        "service": service.name,
        "health_check": service.health_check,
        "unchecked_instances": service.unchecked_instances,
        "unchecked_reason": service.unchecked_reason,
    });
    context.printer().table(&value, || {
        let mut fields = vec![("service", service.name.clone())];
        match &service.health_check {
            Some(_) => fields.extend(show::checked(&service)),
            None => fields.push(("health check", "off".to_owned())),
        }
        Table::record(fields)
    })
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

    fn parse(line: &str) -> Result<Args, String> {
        let line = std::iter::once("check").chain(line.split_whitespace());
        Line::try_parse_from(line).map(|line| line.args).map_err(|error| error.to_string())
    }

    fn wanted(
        line: &str,
        present: Option<v1::HealthCheck>,
    ) -> Result<Option<v1::HealthCheck>, Error> {
        let args = parse(line).unwrap();
        assert!(args.changes(), "{line}");
        args.wanted(present)
    }

    #[test]
    fn flags_describe_a_check() {
        let check = |probe| v1::HealthCheck { probe: Some(probe), ..Default::default() };
        let tcp = check(Probe::Tcp(v1::TcpProbe {}));
        assert_eq!(wanted("web --tcp", None).unwrap(), Some(tcp.clone()));
        let line = "web --http /ready --host a.example --status 200-204 --endpoint http \
                    --interval 5s --timeout 500ms --failures 1 --successes 4";
        let http = v1::HttpProbe {
            path: "/ready".into(),
            host: "a.example".into(),
            status_min: 200,
            status_max: 204,
        };
        let http = v1::HealthCheck {
            probe: Some(Probe::Http(http)),
            endpoint: "http".into(),
            interval_ms: 5_000,
            timeout_ms: 500,
            failures: 1,
            successes: 4,
        };
        assert_eq!(wanted(line, Some(tcp)).unwrap(), Some(http.clone()));
        for (line, service) in [("web --grpc", ""), ("web --grpc shop.Cart", "shop.Cart")] {
            let grpc = check(Probe::Grpc(v1::GrpcProbe { service: service.into() }));
            // A new probe begins with defaults.
            assert_eq!(wanted(line, Some(http.clone())).unwrap(), Some(grpc));
        }
        assert_eq!(wanted("web --off", Some(http)).unwrap(), None);
        assert!(!parse("web").unwrap().changes());
    }

    #[test]
    fn without_a_probe_the_present_check_is_changed() {
        let http =
            v1::HttpProbe { path: "/".into(), host: "h".into(), status_min: 200, status_max: 299 };
        let present = v1::HealthCheck {
            probe: Some(Probe::Http(http.clone())),
            interval_ms: 7_000,
            failures: 9,
            ..Default::default()
        };
        let to = wanted("web --interval 1m --status 204", Some(present.clone())).unwrap();
        let probe = v1::HttpProbe { status_min: 204, status_max: 204, ..http };
        let expected =
            v1::HealthCheck { probe: Some(Probe::Http(probe)), interval_ms: 60_000, ..present };
        assert_eq!(to, Some(expected));
        let error = wanted("web --interval 1m", None).unwrap_err().to_string();
        assert_eq!(error, "web has no health check: say --tcp, --http or --grpc");
        let error = wanted("web --tcp --host a", None).unwrap_err().to_string();
        assert_eq!(error, "--host and --status go with --http");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, expected) in [
            ("web --tcp --grpc", "cannot be used with"),
            ("web --off --interval 5s", "cannot be used with"),
            ("web --tcp --interval 10ms", "1s..=3600s"),
            ("web --tcp --timeout 10ms", "100ms..=60s"),
            ("web --tcp --failures 0", "allowed: 1..=100"),
            ("web --tcp --successes 101", "allowed: 1..=100"),
            ("web --http / --status 99", "allowed: one of 100..=599"),
            ("web --http / --status 299-200", "FIRST-LAST"),
            ("web --http", "a value is required"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
