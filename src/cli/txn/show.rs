//! What a transaction answers: SUCCESS or FAILURE, as etcdctl says it, and a row for each step.

use serde_json::{Value, json};

use super::super::output::{self, Table};
use super::super::{Context, Error, view};
use crate::proto::v1;
use crate::proto::v1::found_record::Record;
use crate::proto::v1::txn_result::Result as Answer;
use crate::proto::v1::txn_step::Step;

pub fn print(
    request: &v1::TxnRequest,
    answer: v1::TxnResponse,
    context: &Context,
) -> Result<(), Error> {
    let steps = if answer.succeeded { &request.then } else { &request.or_else };
    let rows: Vec<(&str, Answer)> = steps
        .iter()
        .zip(answer.results)
        .filter_map(|(step, result)| Some((verb(step.step.as_ref()?), result.result?)))
        .collect();
    let revision = view::revision(&answer.header);
    let results: Vec<Value> =
        rows.iter().map(|(verb, answer)| json!({*verb: value(answer)})).collect();
    let all = json!({"revision": revision, "succeeded": answer.succeeded, "results": results});
    let printer = context.printer();
    printer.answer(&all, || {
        let word = if answer.succeeded { "SUCCESS" } else { "FAILURE" };
        let head = format!("{word} at revision {revision}\n");
        if rows.is_empty() {
            return head;
        }
        let mut table = Table::new(&["step", "result"]);
        for (verb, answer) in &rows {
            let mut verb = (*verb).to_owned();
            for cell in cells(answer) {
                table.row([std::mem::take(&mut verb), cell]);
            }
        }
        head + &printer.render(&table)
    })
}

/// As a step of the JSON form is named.
fn verb(step: &Step) -> &'static str {
    match step {
        Step::Register(_) => "register",
        Step::Deregister(_) => "deregister",
        Step::UpdateInstance(_) => "update_instance",
        Step::PutService(_) => "put_service",
        Step::DeleteService(_) => "delete_service",
        Step::PublishConfig(_) => "publish_config",
        Step::DeleteConfig(_) => "delete_config",
        Step::RollbackConfig(_) => "rollback_config",
        Step::AddCounter(_) => "add_counter",
        Step::SetCounter(_) => "set_counter",
        Step::ResetCounter(_) => "reset_counter",
        Step::DeleteCounter(_) => "delete_counter",
        Step::AcquireLock(_) => "acquire_lock",
        Step::ReleaseLock(_) => "release_lock",
        Step::UpdateLock(_) => "update_lock",
        Step::Get(_) => "get",
        Step::Range(_) => "range",
    }
}

fn value(answer: &Answer) -> Value {
    match answer {
        Answer::Register(it) => json!({"created": it.created, "mod_revision": it.mod_revision}),
        Answer::Deregister(it) => json!({"removed": it.removed}),
        Answer::UpdateInstance(it) => {
            json!({"instance": it.instance.clone().map(view::Instance::from)})
        }
        Answer::PutService(it) => json!({"created": it.created}),
        Answer::DeleteService(it) => json!({"removed": it.removed}),
        Answer::PublishConfig(it) => json!({"version": it.version, "changed": it.changed}),
        Answer::DeleteConfig(it) => json!({"removed": it.removed, "version": it.version}),
        Answer::Counter(it) => json!({"value": it.value, "changed": it.changed}),
        Answer::DeleteCounter(it) => json!({"removed": it.removed}),
        Answer::AcquireLock(it) => json!({"token": it.token}),
        Answer::ReleaseLock(it) => json!({"released": it.released}),
        Answer::UpdateLock(it) => json!({"changed": it.changed}),
        Answer::Get(it) => it.record.as_ref().map_or(Value::Null, record),
        Answer::Range(it) => {
            let records: Vec<Value> =
                it.records.iter().filter_map(|found| found.record.as_ref()).map(record).collect();
            json!({"records": records, "more": it.more})
        }
    }
}

/// `{"counter": {...}}`, with the field names of the API.
fn record(record: &Record) -> Value {
    match record {
        Record::Namespace(it) => json!({"namespace": view::Namespace::from(it.clone())}),
        Record::Service(it) => json!({"service": view::Service::from(it.clone())}),
        Record::Instance(it) => json!({"instance": view::Instance::from(it.clone())}),
        Record::Config(it) => {
            let release = it.release.clone().unwrap_or_default();
            json!({"config": {
                "namespace": it.namespace,
                "group": it.group,
                "key": it.key,
                "labels": it.labels,
                "version": release.version,
                "format": format_word(release.format()),
                "content": String::from_utf8_lossy(&release.content),
                "sha256": release.sha256,
                "bytes": release.bytes,
                "author": release.author,
                "comment": release.comment,
                "create_revision": it.create_revision,
                "mod_revision": it.mod_revision,
                "created_at_ms": it.created_at_ms,
                "modified_at_ms": it.modified_at_ms,
            }})
        }
        Record::Counter(it) => json!({"counter": {
            "namespace": it.namespace,
            "name": it.name,
            "labels": it.labels,
            "kind": match it.kind() {
                v1::CounterKind::Gauge => "gauge",
                v1::CounterKind::Counter | v1::CounterKind::Unspecified => "counter",
            },
            "value": it.value,
            "create_revision": it.create_revision,
            "mod_revision": it.mod_revision,
            "created_at_ms": it.created_at_ms,
            "modified_at_ms": it.modified_at_ms,
        }}),
        Record::Lock(it) => json!({"lock": view::LockRequest::from(it.clone())}),
        Record::Session(it) => {
            json!({"session": {"id": it.id, "ttl_ms": it.ttl_ms, "client": it.client,
                "opened_at_ms": it.opened_at_ms}})
        }
    }
}

fn format_word(format: v1::ConfigFormat) -> &'static str {
    match format {
        v1::ConfigFormat::Unspecified | v1::ConfigFormat::Text => "text",
        v1::ConfigFormat::Json => "json",
        v1::ConfigFormat::Yaml => "yaml",
        v1::ConfigFormat::Toml => "toml",
        v1::ConfigFormat::Properties => "properties",
        v1::ConfigFormat::Binary => "binary",
    }
}

/// The lines of one result.
fn cells(answer: &Answer) -> Vec<String> {
    let or = |holds: bool, yes: &str, no: &str| if holds { yes } else { no }.to_owned();
    vec![match answer {
        Answer::Register(it) => {
            format!("{} at {}", or(it.created, "created", "changed"), it.mod_revision)
        }
        Answer::Deregister(v1::DeregisterResponse { removed, .. })
        | Answer::DeleteService(v1::DeleteServiceResponse { removed, .. })
        | Answer::DeleteConfig(v1::DeleteConfigResponse { removed, .. })
        | Answer::DeleteCounter(v1::DeleteCounterResponse { removed, .. }) => {
            or(*removed, "removed", "was not there")
        }
        Answer::UpdateInstance(it) => it.instance.as_ref().map(instance).unwrap_or_default(),
        Answer::PutService(it) => or(it.created, "created", "replaced"),
        Answer::PublishConfig(it) => {
            format!("version {}{}", it.version, or(it.changed, "", " (unchanged)"))
        }
        Answer::Counter(it) => it.value.to_string(),
        Answer::AcquireLock(it) => format!("token {}", it.token),
        Answer::ReleaseLock(it) => or(it.released, "released", "was not held"),
        Answer::UpdateLock(it) => or(it.changed, "changed", "unchanged"),
        Answer::Get(it) => it.record.as_ref().map_or("does not exist".to_owned(), line),
        Answer::Range(it) => {
            let mut lines: Vec<String> =
                it.records.iter().filter_map(|found| found.record.as_ref()).map(line).collect();
            if it.more {
                lines.push("and more".to_owned());
            }
            if lines.is_empty() {
                lines.push("nothing".to_owned());
            }
            return lines;
        }
    }]
}

fn instance(instance: &v1::Instance) -> String {
    let shown = view::Instance::from(instance.clone());
    format!(
        "{}/{} {} {} {}",
        shown.service,
        shown.id,
        shown.addresses(),
        shown.health.as_str(),
        shown.admin.as_str()
    )
}

fn line(record: &Record) -> String {
    match record {
        Record::Namespace(it) => format!("namespace {}", it.name),
        Record::Service(it) => format!("service {} mod {}", it.name, it.mod_revision),
        Record::Instance(it) => instance(it),
        Record::Config(it) => {
            let release = it.release.clone().unwrap_or_default();
            let content = String::from_utf8_lossy(&release.content);
            let shown: String = content.chars().take(SHOWN).collect();
            let cut = if shown.len() < content.len() { "..." } else { "" };
            format!("{}/{} version {}: {shown}{cut}", it.group, it.key, release.version)
        }
        Record::Counter(it) => {
            let labels = match it.labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", output::pairs(&it.labels)),
            };
            format!("{}{labels} = {}", it.name, it.value)
        }
        Record::Lock(it) => match it.token {
            0 => format!("{} waited for by session {}", it.lock, it.session),
            token => format!("{} held by session {} with token {token}", it.lock, it.session),
        },
        Record::Session(it) => format!("session {} of {}", it.id, it.client),
    }
}

/// Characters of the content of an item in a table; JSON has all of it.
const SHOWN: usize = 60;
