//! `quorate service get`.

use std::time::Duration;

use serde_json::json;

use super::{Context, Error, Get, Table, output, view};
use crate::error;
use crate::proto::v1;

pub async fn get(args: Get, context: &Context) -> Result<(), Error> {
    match args.id.clone() {
        Some(id) => one(args, id, context).await,
        None => all(args, context).await,
    }
}

async fn one(args: Get, id: String, context: &Context) -> Result<(), Error> {
    let request = v1::GetInstanceRequest {
        namespace: context.namespace(),
        service: args.service,
        id,
        consistency: view::wanted(args.stale).into(),
    };
    let answer = context.client()?.get_instance(request).await?;
    let instance = view::Instance::from(answer.instance.unwrap_or_default());
    let value = json!({
        "revision": view::revision(&answer.header),
        "consistency": view::consistency(&answer.header),
        "instance": instance,
    });
    context.printer().table(&value, || detail(&instance))
}

async fn all(args: Get, context: &Context) -> Result<(), Error> {
    let name = args.service.clone();
    let filter = v1::InstanceFilter {
        healthy_only: args.healthy,
        zone: args.zone.unwrap_or_default(),
        metadata: args.meta.into_iter().collect(),
    };
    let request = v1::ListInstancesRequest {
        namespace: context.namespace(),
        service: args.service,
        filter: Some(filter),
        consistency: view::wanted(args.stale).into(),
    };
    let answer = context.client()?.list_instances(request).await?;
    // A service exists through its settings or its instances. An empty list alone would not tell one
    // without matching instances from one that is misspelt.
    let Some(service) = answer.service.map(view::Service::from) else {
        return Err(error::Error::NotFound { kind: "service".to_owned(), name }.into());
    };
    let instances: Vec<view::Instance> = answer.instances.into_iter().map(Into::into).collect();
    let value = json!({
        "revision": view::revision(&answer.header),
        "consistency": view::consistency(&answer.header),
        "protected": answer.protected,
        "service": service,
        "instances": instances,
    });
    let printer = context.printer();
    printer.answer(&value, || {
        let mut text = format!("{}\n", printer.render(&settings(&service)));
        if answer.protected {
            text += "too few instances are healthy: all of them are shown (protect threshold)\n\n";
        }
        text + &printer.render(&list(&instances, output::now_ms()))
    })
}

fn settings(service: &view::Service) -> Table {
    let deregister_after = Duration::from_millis(service.deregister_after_ms);
    let mut fields = vec![
        ("service", service.name.clone()),
        ("namespace", service.namespace.clone()),
        ("instances", format!("{}, {} healthy", service.instances, service.healthy_instances)),
        ("protect threshold", protect_threshold(service)),
        ("deregister after", output::duration(deregister_after)),
    ];
    let policy = match service.policy_parameters.is_empty() {
        true => service.policy.clone(),
        false => format!("{} {}", service.policy, output::pairs(&service.policy_parameters)),
    };
    fields.extend([("policy", policy), ("metadata", output::pairs(&service.metadata))]);
    fields.extend(checked(service));
    fields.retain(|(_, value)| !value.is_empty());
    Table::record(fields)
}

/// How it is checked, and what of it is not.
pub fn checked(service: &view::Service) -> Vec<(&'static str, String)> {
    let Some(check) = &service.health_check else { return Vec::new() };
    let mut fields = vec![("health check", check.to_string())];
    if service.unchecked_instances > 0 {
        let (count, why) = (service.unchecked_instances, &service.unchecked_reason);
        fields.push(("not checked", format!("{count} of its instances; {why}")));
    }
    fields
}

/// As a cell.
pub fn protect_threshold(service: &view::Service) -> String {
    match service.protect_threshold_percent {
        0 => "off".to_owned(),
        percent => format!("{percent}%"),
    }
}

fn list(instances: &[view::Instance], now_ms: u64) -> Table {
    let mut table =
        Table::new(&["id", "address", "weight", "zone", "health", "admin", "age", "reason"]);
    for instance in instances {
        table.row([
            instance.id.clone(),
            instance.addresses(),
            weight(instance),
            instance.zone.clone(),
            instance.health.as_str().to_owned(),
            instance.admin.as_str().to_owned(),
            output::age(now_ms, instance.created_at_ms),
            instance.reason.clone(),
        ]);
    }
    table
}

fn weight(instance: &view::Instance) -> String {
    instance.weight.unwrap_or(crate::limits::DEFAULT_WEIGHT).to_string()
}

fn detail(instance: &view::Instance) -> Table {
    let at =
        |at_ms: u64, revision: u64| format!("{} (revision {revision})", output::timestamp(at_ms));
    let mut fields = vec![
        ("service", instance.service.clone()),
        ("id", instance.id.clone()),
        ("namespace", instance.namespace.clone()),
    ];
    for endpoint in &instance.endpoints {
        fields.push(("address", endpoint.to_string()));
    }
    fields.extend([
        ("weight", weight(instance)),
        ("zone", instance.zone.clone()),
        ("health", instance.health.as_str().to_owned()),
        ("admin", instance.admin.as_str().to_owned()),
        ("reason", instance.reason.clone()),
        ("hash key", instance.hash_key.clone()),
    ]);
    for (key, value) in &instance.metadata {
        fields.push(("metadata", format!("{key}={value}")));
    }
    fields.push(match instance.session {
        0 => ("session", "none: persistent".to_owned()),
        session => ("session", session.to_string()),
    });
    if instance.critical_since_ms > 0 {
        fields.push(("critical since", output::timestamp(instance.critical_since_ms)));
    }
    fields.push(("created", at(instance.created_at_ms, instance.create_revision)));
    fields.push(("changed", at(instance.modified_at_ms, instance.mod_revision)));
    fields.retain(|(_, value)| !value.is_empty());
    Table::record(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Output;

    fn instance() -> view::Instance {
        v1::Instance {
            namespace: "default".into(),
            service: "web".into(),
            id: "web-1".into(),
            endpoints: vec![
                v1::Endpoint { name: "http".into(), host: "10.0.0.1".into(), port: 80 },
                v1::Endpoint { name: "metrics".into(), host: "10.0.0.1".into(), port: 81 },
            ],
            weight: Some(5),
            zone: "eu-1".into(),
            metadata: [("v".to_owned(), "2".to_owned())].into(),
            health: v1::Health::Critical.into(),
            admin: v1::Admin::Enabled.into(),
            reason: "session 7 expired".into(),
            session: 7,
            create_revision: 3,
            mod_revision: 9,
            created_at_ms: 1_735_689_600_000,
            modified_at_ms: 1_735_689_720_000,
            critical_since_ms: 1_735_689_720_000,
            ..v1::Instance::default()
        }
        .into()
    }

    #[test]
    fn instances_in_a_table() {
        let text = list(&[instance()], 1_735_689_792_000).render(Output::Simple);
        let lines: Vec<String> = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        let expected = [
            "ID ADDRESS WEIGHT ZONE HEALTH ADMIN AGE REASON",
            "web-1 http=10.0.0.1:80,metrics=10.0.0.1:81 5 eu-1 critical enabled 3m12s session 7 expired",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_instance_in_detail() {
        let expected = "\
service          web
id               web-1
namespace        default
address          http=10.0.0.1:80
address          metrics=10.0.0.1:81
weight           5
zone             eu-1
health           critical
admin            enabled
reason           session 7 expired
metadata         v=2
session          7
critical since   2025-01-01T00:02:00.000Z
created          2025-01-01T00:00:00.000Z (revision 3)
changed          2025-01-01T00:02:00.000Z (revision 9)
";
        assert_eq!(detail(&instance()).render(Output::Simple), expected);
    }

    #[test]
    fn settings_of_a_service() {
        let service = v1::Service {
            namespace: "default".into(),
            name: "web".into(),
            protect_threshold_percent: 30,
            deregister_after_ms: None,
            policy: "ring_hash".into(),
            policy_parameters: [("size".to_owned(), "1024".to_owned())].into(),
            instances: 3,
            healthy_instances: 2,
            health_check: Some(Box::new(v1::HealthCheck {
                probe: Some(v1::health_check::Probe::Tcp(v1::TcpProbe {})),
                endpoint: String::new(),
                interval_ms: 10_000,
                timeout_ms: 500,
                failures: 3,
                successes: 1,
            })),
            unchecked_instances: 1,
            unchecked_reason: "web-1: no".into(),
            ..v1::Service::default()
        };
        let expected = "\
service             web
namespace           default
instances           3, 2 healthy
protect threshold   30%
deregister after    30s
policy              ring_hash size=1024
health check        tcp, every 10s, timeout 500ms, 3 failures to critical, 1 success to passing
not checked         1 of its instances; web-1: no
";
        assert_eq!(settings(&service.into()).render(Output::Simple), expected);
    }
}
