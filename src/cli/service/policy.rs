//! `quorate service policy`: how clients balance a service, as they will read it.

use serde_json::json;

use super::output::Table;
use super::{Context, Error, pair, view};
use crate::client::balance::Policy;
use crate::client::txn::{self, Txn};
use crate::proto::v1::found_record::Record;
use crate::proto::v1::txn_result::Result as Step;
use crate::proto::v1::{self, Consistency};
use crate::{error, limits};

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
    let client = context.client()?;
    let namespace = context.namespace();
    let request = v1::GetServiceRequest {
        namespace: namespace.clone(),
        name: args.service.clone(),
        consistency: Consistency::Linearizable.into(),
    };
    let (mut service, revision) = match client.get_service(request).await {
        Ok(answer) => (answer.service.unwrap_or_default(), view::revision(&answer.header)),
        // Its settings are made, as by `service put`.
        Err(error::Error::NotFound { kind, .. }) if kind == "service" && args.changes() => {
            (named(&namespace, &args.service), 0)
        }
        Err(error) => return Err(error.into()),
    };
    if !args.changes() {
        return tell(&service, revision, context);
    }
    // Somebody else's change of another setting must not be lost.
    let name = txn::service(&namespace, &args.service);
    for _ in 0..limits::TRANSACTION_ATTEMPTS {
        let policy = args.wanted(&service)?;
        let parameters = policy.as_ref().map(Policy::parameters).unwrap_or_default();
        let changed = v1::Service {
            policy: policy.map_or("", |policy| policy.name()).to_owned(),
            policy_parameters: parameters.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            ..service.clone()
        };
        let request = Txn::new()
            .when(name.mod_revision().is(service.mod_revision))
            .then(changed.clone())
            .or_else(name.get());
        let answer = request.commit(&client, None).await.map_err(without_step)?;
        if answer.succeeded {
            return tell(&changed, view::revision(&answer.header), context);
        }
        service = found(answer).unwrap_or_else(|| named(&namespace, &args.service));
    }
    let what = format!("service {}", args.service);
    Err(error::Error::Conflict { attempts: limits::TRANSACTION_ATTEMPTS, what }.into())
}

fn named(namespace: &str, name: &str) -> v1::Service {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    v1::Service { namespace, name, ..v1::Service::default() }
}

fn of(service: &v1::Service) -> Result<Option<Policy>, error::Error> {
    Policy::of_service(&service.policy, &service.policy_parameters)
}

fn found(answer: v1::TxnResponse) -> Option<v1::Service> {
    match answer.results.into_iter().next()?.result {
        Some(Step::Get(v1::FoundRecord { record: Some(Record::Service(service)) })) => {
            Some(service)
        }
        _ => None,
    }
}

/// The transaction has one step.
fn without_step(error: error::Error) -> Error {
    match error {
        error::Error::InStep { error, .. } => (*error).into(),
        error => error.into(),
    }
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
