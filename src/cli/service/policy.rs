//! `quorate service policy`: how clients balance a service, as they will read it.

use serde_json::json;

use super::output::Table;
use super::{Context, Error, pair, settings};
use crate::client::balance::Policy;
use crate::error;
use crate::proto::v1;

#[derive(Debug, clap::Args)]
pub struct Args {
    service: String,
    /// What clients are told from now on: a name, for instance ring_hash, or a name with parameters,
    /// ring_hash?bound=1.25
    #[arg(value_name = "POLICY")]
    policy: Option<String>,
    /// Parameter of the policy, by default of the present one; may be repeated
    #[arg(long, value_name = "PARAMETER=VALUE", value_parser = pair)]
    set: Vec<(String, String)>,
    /// Leave the choice to clients
    #[arg(long, conflicts_with_all = ["policy", "set"])]
    off: bool,
}

impl Args {
    fn changes(&self) -> bool {
        self.off || self.policy.is_some() || !self.set.is_empty()
    }

    /// What the policy becomes.
    fn wanted(&self, service: &v1::Service) -> Result<Option<Policy>, Error> {
        if self.off {
            return Ok(None);
        }
        let base = match &self.policy {
            Some(policy) => policy.parse().map_err(usage)?,
            None => of(service)?.ok_or_else(|| {
                let name = &self.service;
                Error::usage(format!(
                    "{name} has no policy whose parameters could be set: name one"
                ))
            })?,
        };
        let parameters = base.parameters();
        let kept = parameters.iter().map(|(name, value)| (*name, value.as_str()));
        let kept = kept.filter(|(name, _)| self.set.iter().all(|(set, _)| set != name));
        let set = self.set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        Policy::parse(base.name(), kept.chain(set)).map(Some).map_err(usage)
    }
}

/// A policy is checked before anything is sent: it is part of the command line.
fn usage(error: error::Error) -> Error {
    Error::usage(error.to_string())
}

pub async fn run(args: Args, context: &Context) -> Result<(), Error> {
    let (client, namespace) = (context.client()?, context.namespace());
    let (service, revision) = if args.changes() {
        let change = |service: &v1::Service| {
            let policy = args.wanted(service)?;
            let parameters = policy.as_ref().map(Policy::parameters).unwrap_or_default();
            Ok(Some(v1::Service {
                policy: policy.map_or("", |policy| policy.name()).to_owned(),
                policy_parameters: parameters.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
                ..service.clone()
            }))
        };
        settings::change(&client, &namespace, &args.service, change).await?
    } else {
        settings::read(&client, &namespace, &args.service).await?
    };
    tell(&service, revision, context)
}

fn of(service: &v1::Service) -> Result<Option<Policy>, error::Error> {
    Policy::of_service(&service.policy, &service.policy_parameters)
}

fn tell(service: &v1::Service, revision: u64, context: &Context) -> Result<(), Error> {
    // A record of an earlier release may hold anything.
    let policy = of(service)?;
    let parameters = policy.as_ref().map(Policy::all_parameters).unwrap_or_default();
    let text = policy.as_ref().map(Policy::to_string);
    let by_name = parameters.iter().cloned().collect::<std::collections::BTreeMap<_, _>>();
    let value = json!({
        "revision": revision,
        "namespace": service.namespace,
        "service": service.name,
        "policy": policy.as_ref().map(Policy::name),
        "text": text,
        "parameters": by_name,
    });
    let printer = context.printer();
    printer.answer(&value, || {
        let Some((policy, text)) = policy.as_ref().zip(text) else {
            let name = &service.name;
            return format!("{name} has no policy: clients choose for themselves");
        };
        let default = Policy::new(policy.name()).unwrap_or_default();
        let mut table = Table::new(&["parameter", "value", "default"]);
        for (name, value) in parameters {
            let default = default.get(name).unwrap_or_default();
            table.row([name.to_owned(), value, default]);
        }
        let fields = [("service", service.name.clone()), ("policy", text)];
        format!("{}\n{}", printer.render(&Table::record(fields)), printer.render(&table))
    })
}
