//! `quorate service`: what is registered, and the settings of services.

mod balance;
mod check;
mod consul;
mod import;
mod policy;
mod register;
mod settings;
mod show;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::output::{self, Table};
use super::{Context, Error, milliseconds, pair, view};
use crate::limits;
use crate::proto::v1;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Register an instance, for good or as long as this command runs
    Register(register::Args),
    /// Remove an instance
    Deregister {
        service: String,
        id: String,
        /// Only if its revision is still this one
        #[arg(long, value_name = "REVISION", default_value_t = 0)]
        if_revision: u64,
    },
    /// Show the instances of a service, or one instance with everything known of it
    Get(Get),
    /// List services
    List {
        /// Only names that start with this
        #[arg(default_value = "")]
        prefix: String,
        /// Answer from what the asked node has, even if it is behind
        #[arg(long)]
        stale: bool,
    },
    /// Print changes as they happen, until Ctrl-C
    Watch {
        /// One service [default: every service of the namespace]
        service: Option<String>,
        /// Begin with the changes after this revision instead of with what there is
        #[arg(long, value_name = "REVISION", default_value_t = 0)]
        after: u64,
    },
    /// Show which instance a key maps to, and why
    Resolve(balance::Resolve),
    /// Show how keys spread over the instances, and how many move when some are gone
    Spread(balance::Spread),
    /// Take an instance out of discovery and back
    Maint(Maint),
    /// Create a service's settings, or replace all of them
    Put(Put),
    /// Have the cluster check the persistent instances of a service, or show how it does
    Check(check::Args),
    /// Show how clients balance a service, or say how
    Policy(policy::Args),
    /// Remove the settings of a service without instances
    Delete { service: String },
    /// Register the services of Consul service definition files
    Import(Import),
}

#[derive(Debug, clap::Args)]
pub struct Get {
    service: String,
    id: Option<String>,
    /// Only instances that can take calls
    #[arg(long, conflicts_with = "id")]
    healthy: bool,
    /// Only this zone
    #[arg(long, value_name = "ZONE", conflicts_with = "id")]
    zone: Option<String>,
    /// Only instances with this metadata; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair, conflicts_with = "id")]
    meta: Vec<(String, String)>,
    /// Answer from what the asked node has, even if it is behind
    #[arg(long)]
    stale: bool,
}

#[derive(Debug, clap::Args)]
pub struct Maint {
    service: String,
    id: String,
    #[command(flatten)]
    to: MaintTo,
    /// Why, for whoever looks at the instance
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct MaintTo {
    /// Back in discovery
    #[arg(long)]
    enable: bool,
    /// Hidden from discovery
    #[arg(long)]
    disable: bool,
    /// Finishes its calls and gets no new ones
    #[arg(long)]
    drain: bool,
}

#[derive(Debug, clap::Args)]
pub struct Put {
    service: String,
    /// Discovery returns all instances when fewer than this percentage are healthy; 0 = never
    #[arg(long, value_name = "PERCENT", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=100))]
    protect_threshold: u32,
    /// How long an instance may stay critical after its session ended [default: 30s]
    #[arg(long, value_name = "DURATION", value_parser = deregister_after)]
    deregister_after: Option<Duration>,
    /// Balancing policy that clients are told, for instance ring_hash
    #[arg(long, value_name = "NAME", default_value = "")]
    policy: String,
    /// Parameter of the policy; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    policy_parameter: Vec<(String, String)>,
    /// Metadata of the service; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    meta: Vec<(String, String)>,
    /// Only if its revision is still this one
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    if_revision: u64,
}

#[derive(Debug, clap::Args)]
pub struct Import {
    /// JSON files with `service` or `services`; - is standard input
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only say what would be registered
    #[arg(long)]
    dry_run: bool,
    /// Host of entries without an address; Consul takes its agent's
    #[arg(long, value_name = "HOST")]
    default_address: Option<String>,
}

fn deregister_after(given: &str) -> Result<Duration, String> {
    milliseconds("deregister-after", given, &limits::DEREGISTER_AFTER_MS)
}

impl Command {
    pub async fn run(self, context: &Context) -> Result<(), Error> {
        match self {
            Command::Register(args) => register::run(args, context).await,
            Command::Deregister { service, id, if_revision } => {
                deregister(context, service, id, if_revision).await
            }
            Command::Get(args) => show::get(args, context).await,
            Command::List { prefix, stale } => list(context, &prefix, stale).await,
            Command::Watch { service, after } => watch::run(context, service, after).await,
            Command::Resolve(args) => balance::resolve(args, context).await,
            Command::Spread(args) => balance::spread(args, context).await,
            Command::Maint(args) => maint(args, context).await,
            Command::Put(args) => put(args, context).await,
            Command::Check(args) => check::run(args, context).await,
            Command::Policy(args) => policy::run(args, context).await,
            Command::Delete { service } => delete(context, service).await,
            Command::Import(args) => import::run(args, context).await,
        }
    }
}

async fn deregister(
    context: &Context,
    service: String,
    id: String,
    expected_mod_revision: u64,
) -> Result<(), Error> {
    let request = v1::DeregisterRequest {
        namespace: context.namespace(),
        service: service.clone(),
        id: id.clone(),
        expected_mod_revision,
        request_id: None,
    };
    let answer = context.client()?.deregister(request, None).await?;
    let revision = view::revision(&answer.header);
    let value = json!({"revision": revision, "removed": answer.removed});
    context.printer().answer(&value, || match answer.removed {
        true => format!("{service}/{id} deregistered at revision {revision}"),
        false => format!("{service}/{id} was not registered"),
    })
}

async fn list(context: &Context, prefix: &str, stale: bool) -> Result<(), Error> {
    let namespace = context.namespace();
    let services = context.client()?.all_services(&namespace, prefix, view::wanted(stale)).await?;
    let services: Vec<view::Service> = services.into_iter().map(Into::into).collect();
    context.printer().table(&json!({"services": services}), || {
        let mut table = Table::new(&["service", "instances", "healthy", "protect", "policy"]);
        for service in &services {
            table.row([
                service.name.clone(),
                service.instances.to_string(),
                service.healthy_instances.to_string(),
                show::protect_threshold(service),
                service.policy.clone(),
            ]);
        }
        table
    })
}

async fn maint(args: Maint, context: &Context) -> Result<(), Error> {
    let Maint { service, id, to, reason } = args;
    let (admin, word) = match to {
        MaintTo { enable: true, .. } => (v1::Admin::Enabled, "enable"),
        MaintTo { disable: true, .. } => (v1::Admin::Disabled, "disable"),
        MaintTo { .. } => (v1::Admin::Draining, "drain"),
    };
    let request = v1::UpdateInstanceRequest {
        namespace: context.namespace(),
        service: service.clone(),
        id: id.clone(),
        admin: admin.into(),
        reason: reason.unwrap_or_else(|| format!("quorate service maint --{word}")),
        ..v1::UpdateInstanceRequest::default()
    };
    let answer = context.client()?.update_instance(request, None).await?;
    let revision = view::revision(&answer.header);
    let instance = view::Instance::from(answer.instance.unwrap_or_default());
    let value = json!({"revision": revision, "instance": instance});
    context.printer().answer(&value, || {
        format!("{service}/{id} is {} at revision {revision}", instance.admin.as_str())
    })
}

async fn put(args: Put, context: &Context) -> Result<(), Error> {
    let name = args.service.clone();
    let service = v1::Service {
        namespace: context.namespace(),
        name: args.service,
        protect_threshold_percent: args.protect_threshold,
        deregister_after_ms: args.deregister_after.map(|after| after.as_millis() as u64),
        policy: args.policy,
        policy_parameters: args.policy_parameter.into_iter().collect(),
        metadata: args.meta.into_iter().collect(),
        ..v1::Service::default()
    };
    let request = v1::PutServiceRequest {
        service: Some(service),
        expected_mod_revision: args.if_revision,
        request_id: None,
    };
    let answer = context.client()?.put_service(request, None).await?;
    let revision = view::revision(&answer.header);
    let value = json!({"revision": revision, "created": answer.created});
    context.printer().answer(&value, || match answer.created {
        true => format!("service {name} created at revision {revision}"),
        false => format!("service {name} is as asked, at revision {revision}"),
    })
}

async fn delete(context: &Context, name: String) -> Result<(), Error> {
    let request = v1::DeleteServiceRequest {
        namespace: context.namespace(),
        name: name.clone(),
        request_id: None,
    };
    let answer = context.client()?.delete_service(request, None).await?;
    let revision = view::revision(&answer.header);
    let value = json!({"revision": revision, "removed": answer.removed});
    context.printer().answer(&value, || match answer.removed {
        true => format!("settings of service {name} deleted at revision {revision}"),
        false => format!("service {name} has no settings"),
    })
}
