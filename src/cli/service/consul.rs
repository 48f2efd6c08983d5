//! Consul service definitions as instances of ours, so that a team can move with its own files. What
//! has no counterpart is told per entry instead of dropped in silence; a wrong entry does not stop
//! its neighbours. HCL is not read. The mapping is a pure function; `service import` sends its result.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::limits;
use crate::options;
use crate::proto::{host_port, v1};

/// `reason` of every imported instance.
const REASON: &str = "imported from a Consul service definition";
/// Metadata key that holds the tags, separated by commas.
const TAGS: &str = "tags";

/// What the definitions do not say themselves.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    pub namespace: String,
    /// Host of entries without an address; Consul takes its agent's.
    pub address: Option<String>,
}

/// One file.
#[derive(Debug, Clone, PartialEq)]
pub struct Import {
    pub entries: Vec<Entry>,
    /// What stands in the file outside of its services and is not mapped.
    pub notes: Vec<String>,
}

/// One service definition.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// As far as the entry says it; for showing.
    pub service: String,
    pub id: String,
    /// The instance to register, or why there is none.
    pub instance: Result<v1::Instance, String>,
    /// What of the entry is not mapped, or is mapped to something else.
    pub notes: Vec<String>,
}

/// Maps the text of one file.
pub fn parse(text: &str, defaults: &Defaults) -> Result<Import, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| {
        match text.trim_start().starts_with(['{', '[']) {
            true => format!("not JSON: {error}"),
            false => "not JSON; HCL is not supported: convert the file to JSON first".to_owned(),
        }
    })?;
    let Value::Object(file) = value else {
        return Err("expected an object with `service` or `services`".to_owned());
    };
    let mut import = Import { entries: Vec::new(), notes: Vec::new() };
    let mut found = false;
    for (key, value) in normalised(file) {
        match (key.as_str(), value) {
            ("service", value) => {
                found = true;
                import.entries.push(entry(value, defaults));
            }
            ("services", Value::Array(values)) => {
                found = true;
                import.entries.extend(values.into_iter().map(|value| entry(value, defaults)));
            }
            ("services", other) => {
                return Err(format!("`services` is {}, expected an array", kind(&other)));
            }
            (other, _) => import.notes.push(format!("`{other}` is not mapped")),
        }
    }
    if !found {
        return Err("neither `service` nor `services` in it".to_owned());
    }
    let mut seen = BTreeSet::new();
    for entry in &mut import.entries {
        if let Ok(instance) = &entry.instance {
            let name = (instance.namespace.clone(), instance.service.clone(), instance.id.clone());
            if !seen.insert(name) {
                entry.instance = Err("the same service and id stand above in this file".to_owned());
            }
        }
    }
    Ok(import)
}

fn entry(value: Value, defaults: &Defaults) -> Entry {
    let Value::Object(fields) = value else {
        let instance = Err(format!("the entry is {}, expected an object", kind(&value)));
        return Entry { service: String::new(), id: String::new(), instance, notes: Vec::new() };
    };
    let mut fields = Fields { rest: normalised(fields), notes: Vec::new(), wrong: Vec::new() };
    let service = fields.text("name").unwrap_or_default();
    let id = fields.text("id").filter(|id| !id.is_empty()).unwrap_or_else(|| service.clone());
    let mapped = instance(&mut fields, service.clone(), id.clone(), defaults);
    for key in std::mem::take(&mut fields.rest).into_keys() {
        fields.notes.push(format!("`{key}` is not mapped"));
    }
    let instance = match fields.wrong.is_empty() {
        true => check(&mapped).map(|()| mapped),
        false => Err(fields.wrong.join("; ")),
    };
    Entry { service, id, instance, notes: fields.notes }
}

/// Takes the fields that have a counterpart; what it leaves is not mapped.
fn instance(fields: &mut Fields, service: String, id: String, defaults: &Defaults) -> v1::Instance {
    let mut metadata = BTreeMap::new();
    if let Some(meta) = fields.object("meta") {
        for (key, value) in meta {
            match value {
                Value::String(value) => drop(metadata.insert(key, value)),
                other => {
                    fields.wrong.push(format!("`meta.{key}` is {}, expected text", kind(&other)))
                }
            }
        }
    }
    let tags = fields.texts("tags");
    if !tags.is_empty() {
        if metadata.contains_key(TAGS) {
            fields.notes.push("`tags` are not mapped: `meta` has a key \"tags\"".to_owned());
        } else {
            if tags.iter().any(|tag| tag.contains(',')) {
                fields.notes.push("a tag contains a comma, which also separates tags".to_owned());
            }
            metadata.insert(TAGS.to_owned(), tags.join(","));
        }
    }
    let mut weight = None;
    if let Some(mut weights) = fields.object("weights") {
        weight =
            weights.remove("passing").and_then(|value| fields.whole("weights.passing", &value));
        if weights.remove("warning").is_some() {
            let note = "`weights.warning` is not mapped: an instance has one weight";
            fields.notes.push(note.to_owned());
        }
    }
    let zone = fields.object("locality").map(|mut locality| {
        if locality.contains_key("region") {
            fields.notes.push("`locality.region` is not mapped".to_owned());
        }
        match locality.remove("zone") {
            Some(Value::String(zone)) => zone,
            Some(_) | None => String::new(),
        }
    });
    let namespace = fields.text("namespace").filter(|namespace| !namespace.is_empty());
    let address = fields
        .text("address")
        .filter(|address| !address.is_empty())
        .or_else(|| defaults.address.clone());
    let host = address.unwrap_or_else(|| {
        let why = "no `address`: Consul takes its agent's; give --default-address";
        fields.wrong.push(why.to_owned());
        String::new()
    });
    let port = fields.rest.remove("port").and_then(|value| fields.whole("port", &value));
    let port = port.filter(|port| *port > 0).unwrap_or_else(|| {
        if fields.wrong.iter().all(|why| !why.starts_with("`port`")) {
            fields.wrong.push("no `port`".to_owned());
        }
        0
    });
    checks(fields);
    quiet(fields);
    v1::Instance {
        namespace: namespace.unwrap_or_else(|| defaults.namespace.clone()),
        service,
        id,
        endpoints: vec![v1::Endpoint { name: String::new(), host, port }],
        weight,
        zone: zone.unwrap_or_default(),
        metadata,
        health: v1::Health::Passing.into(),
        admin: v1::Admin::Enabled.into(),
        reason: REASON.to_owned(),
        ..v1::Instance::default()
    }
}

/// Checks run in Consul's agent, next to the instance; an import can run none of them.
fn checks(fields: &mut Fields) {
    let mut all = Vec::new();
    all.extend(fields.rest.remove("check"));
    match fields.rest.remove("checks") {
        Some(Value::Array(list)) => all.extend(list),
        Some(other) => all.push(other),
        None => {}
    }
    for check in all {
        let Value::Object(check) = check else {
            fields.wrong.push(format!("a check is {}, expected an object", kind(&check)));
            continue;
        };
        let check = normalised(check);
        if let Some(ttl) = check.get("ttl") {
            fields.notes.push(format!(
                "TTL check ({}) is not kept: the instance is persistent; to bind it to its process, \
                 register it there with --session-ttl",
                shown(ttl)
            ));
        } else {
            const KINDS: [&str; 11] = [
                "http",
                "tcp",
                "udp",
                "grpc",
                "h2ping",
                "args",
                "script",
                "docker_container_id",
                "alias_service",
                "alias_node",
                "os_service",
            ];
            let kind = KINDS.into_iter().find(|kind| check.contains_key(*kind));
            fields.notes.push(match kind {
                // The command may hold a secret.
                Some("args" | "script") => "script check is not mapped".to_owned(),
                Some(kind) => format!("{kind} check ({}) is not mapped", shown(&check[kind])),
                None => "check of an unknown kind is not mapped".to_owned(),
            });
        }
        if let Some(after) = check.get("deregister_critical_service_after") {
            fields.notes.push(format!(
                "deregister_critical_service_after ({}) is a setting of the service here: \
                 `service put --deregister-after`",
                shown(after)
            ));
        }
    }
}

/// Drops fields that only repeat Consul's default, and those whose value must not be shown.
fn quiet(fields: &mut Fields) {
    let is_default = |key: &str, value: &Value| match key {
        "enable_tag_override" => *value == Value::Bool(false),
        "kind" => value.as_str().is_some_and(|kind| matches!(kind, "" | "typical")),
        "partition" => value.as_str().is_some_and(|name| matches!(name, "" | "default")),
        _ => value.is_null() || value.as_str() == Some(""),
    };
    fields.rest.retain(|key, value| !is_default(key, value));
    if let Some(Value::String(kind)) = fields.rest.remove("kind") {
        fields.notes.push(format!("`kind` {kind:?} is not mapped: registered as a plain instance"));
    }
    if fields.rest.remove("enable_tag_override").is_some() {
        let note = "`enable_tag_override` is not mapped: whoever may write may change the tags";
        fields.notes.push(note.to_owned());
    }
}

/// The limits of the registry that a definition of Consul's may exceed, so that a dry run tells them.
fn check(instance: &v1::Instance) -> Result<(), String> {
    for (field, name) in
        [("namespace", &instance.namespace), ("name", &instance.service), ("id", &instance.id)]
    {
        if field == "name" && name.is_empty() {
            return Err("no `name`".to_owned());
        }
        options::name(field, name).map_err(|error| error.to_string().replacen("--", "", 1))?;
    }
    for endpoint in &instance.endpoints {
        let address = host_port(&endpoint.host, endpoint.port);
        if options::split_host_port(&address).is_none() {
            return Err(format!("`address` and `port`: {address:?} is not host:port"));
        }
    }
    if instance.weight() > limits::WEIGHT {
        return Err(format!("`weights.passing`: {} > {}", instance.weight(), limits::WEIGHT));
    }
    if instance.zone.len() > limits::ZONE_BYTES {
        return Err(format!("`locality.zone` is longer than {} bytes", limits::ZONE_BYTES));
    }
    let pairs = &instance.metadata;
    if pairs.len() > limits::METADATA_PAIRS {
        return Err(format!("more than {} pairs of metadata", limits::METADATA_PAIRS));
    }
    let mut total = 0;
    for (key, value) in pairs {
        if key.is_empty() || key.len() > limits::METADATA_KEY_BYTES {
            return Err(format!("meta key {key:?}: 1..={} bytes", limits::METADATA_KEY_BYTES));
        }
        if value.len() > limits::METADATA_VALUE_BYTES {
            return Err(format!(
                "value of {key:?} has {} bytes, at most {}",
                value.len(),
                limits::METADATA_VALUE_BYTES
            ));
        }
        total += key.len() + value.len();
    }
    if total > limits::METADATA_TOTAL_BYTES {
        return Err(format!("{total} bytes of metadata, at most {}", limits::METADATA_TOTAL_BYTES));
    }
    Ok(())
}

/// Fields of one entry, taken one by one.
struct Fields {
    rest: BTreeMap<String, Value>,
    notes: Vec<String>,
    /// Why the entry cannot be imported.
    wrong: Vec<String>,
}

impl Fields {
    /// Takes a text; a wrong kind of value makes the entry wrong.
    fn text(&mut self, key: &str) -> Option<String> {
        match self.rest.remove(key)? {
            Value::String(text) => Some(text),
            Value::Null => None,
            other => {
                self.wrong.push(format!("`{key}` is {}, expected text", kind(&other)));
                None
            }
        }
    }

    fn object(&mut self, key: &str) -> Option<Map<String, Value>> {
        match self.rest.remove(key)? {
            // Keys of `meta` are the user's own; all others are Consul's.
            Value::Object(object) if key == "meta" => Some(object),
            Value::Object(object) => Some(normalised(object).into_iter().collect()),
            Value::Null => None,
            other => {
                self.wrong.push(format!("`{key}` is {}, expected an object", kind(&other)));
                None
            }
        }
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        let list = match self.rest.remove(key) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => vec![other],
        };
        let mut texts = Vec::new();
        for value in list {
            match value {
                Value::String(text) => texts.push(text),
                other => self.wrong.push(format!("`{key}` holds {}, expected text", kind(&other))),
            }
        }
        texts
    }

    fn whole(&mut self, key: &str, value: &Value) -> Option<u32> {
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        if number.is_none() {
            self.wrong.push(format!("`{key}` is {value}, expected a whole number"));
        }
        number
    }
}

/// Consul reads `enable_tag_override`, `EnableTagOverride` and `enableTagOverride` alike.
fn normalised(object: Map<String, Value>) -> BTreeMap<String, Value> {
    object.into_iter().map(|(key, value)| (snake(&key), value)).collect()
}

fn snake(key: &str) -> String {
    let mut snake = String::with_capacity(key.len() + 4);
    let mut previous_lower = false;
    for c in key.chars() {
        if c.is_ascii_uppercase() && previous_lower {
            snake.push('_');
        }
        previous_lower = c.is_ascii_lowercase() || c.is_ascii_digit();
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn defaults() -> Defaults {
        Defaults { namespace: "default".into(), address: None }
    }

    fn only(text: &str) -> Entry {
        let mut import = parse(text, &defaults()).unwrap();
        assert_eq!(import.entries.len(), 1, "{import:?}");
        import.entries.remove(0)
    }

    /// The example of Consul's documentation, and what becomes of each of its fields.
    #[test]
    fn one_service_with_everything() {
        let entry = only(include_str!("../testdata/service.json"));
        let instance = entry.instance.unwrap();
        assert_eq!((entry.service.as_str(), entry.id.as_str()), ("redis", "redis-1"));
        assert_eq!(
            instance,
            v1::Instance {
                namespace: "default".into(),
                service: "redis".into(),
                id: "redis-1".into(),
                endpoints: vec![v1::Endpoint {
                    name: String::new(),
                    host: "10.1.2.3".into(),
                    port: 8000
                }],
                weight: Some(5),
                zone: "eu-1a".into(),
                metadata: [("meta", "for my service"), ("tags", "primary,v2")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .into(),
                health: v1::Health::Passing.into(),
                admin: v1::Admin::Enabled.into(),
                reason: REASON.into(),
                ..v1::Instance::default()
            }
        );
        let expected = [
            "`weights.warning` is not mapped: an instance has one weight",
            "`locality.region` is not mapped",
            "script check is not mapped",
            "TTL check (30s) is not kept: the instance is persistent; to bind it to its process, \
             register it there with --session-ttl",
            "deregister_critical_service_after (90m) is a setting of the service here: \
             `service put --deregister-after`",
            "http check (http://127.0.0.1:8000/health) is not mapped",
            "`kind` \"connect-proxy\" is not mapped: registered as a plain instance",
            "`enable_tag_override` is not mapped: whoever may write may change the tags",
            "`connect` is not mapped",
            "`proxy` is not mapped",
            "`tagged_addresses` is not mapped",
            "`token` is not mapped",
        ];
        assert_eq!(entry.notes, expected);
        assert!(!format!("{:?}", entry.notes).contains("233b604b"), "a token is not shown");
    }

    /// One file, many services: right ones are mapped beside wrong ones, each with its reason.
    #[test]
    fn many_services_right_and_wrong() {
        let import = parse(include_str!("../testdata/services.json"), &defaults()).unwrap();
        let told: Vec<String> = import
            .entries
            .iter()
            .map(|entry| {
                let result = match &entry.instance {
                    Ok(instance) => {
                        let endpoint = &instance.endpoints[0];
                        format!("{}:{} in {}", endpoint.host, endpoint.port, instance.namespace)
                    }
                    Err(why) => why.clone(),
                };
                format!("{}/{}: {result}", entry.service, entry.id)
            })
            .collect();
        let expected = [
            "web/web: 10.0.0.1:80 in default",
            "web/web-2: 10.0.0.2:80 in default",
            "api/api: fd00::1:8080 in team-a",
            "web/web: the same service and id stand above in this file",
            "db/db: no `address`: Consul takes its agent's; give --default-address",
            "db/db-2: no `port`",
            "/: no `name`",
            "bad name/bad name: name: \"bad name\" is not allowed; allowed: \
             1..=128 bytes of A-Za-z0-9._:/-, first a letter or digit",
            "cache/cache: `port` is \"11211\", expected a whole number",
            "heavy/heavy: `weights.passing`: 65536 > 65535",
            "tagged/tagged: `tags` holds a number, expected text",
            "meta/meta: `meta.retries` is a number, expected text",
            "/: the entry is text, expected an object",
        ];
        assert_eq!(told, expected);
        assert_eq!(import.notes, ["`node_name` is not mapped"]);
    }

    #[test]
    fn entries_without_an_address_take_the_default_one() {
        let with = Defaults { namespace: "n".into(), address: Some("10.9.9.9".into()) };
        let import = parse(r#"{"service": {"name": "db", "port": 1}}"#, &with).unwrap();
        let instance = import.entries[0].instance.clone().unwrap();
        assert_eq!(instance.endpoints[0].host, "10.9.9.9");
        assert_eq!((instance.namespace.as_str(), instance.weight), ("n", None));
        assert_eq!(import.entries[0].notes, [] as [&str; 0]);
    }

    #[test]
    fn keys_are_read_as_consul_reads_them() {
        let entry = only(
            r#"{"Service": {"ID": "a", "Name": "s", "Address": "h", "Port": 1, "Kind": "",
                "EnableTagOverride": false, "Weights": {"Passing": 3}, "Meta": {"CamelCase": "x"}}}"#,
        );
        let instance = entry.instance.unwrap();
        assert_eq!((instance.id.as_str(), instance.weight), ("a", Some(3)));
        assert_eq!(instance.metadata["CamelCase"], "x");
        assert_eq!(entry.notes, [] as [&str; 0]);
    }

    #[test]
    fn tags_that_do_not_fit() {
        let service = |rest: &str| {
            only(&format!(r#"{{"service": {{"name": "s", "address": "h", "port": 1, {rest}}}}}"#))
        };
        let entry = service(r#""tags": ["a"], "meta": {"tags": "mine"}"#);
        assert_eq!(entry.instance.unwrap().metadata["tags"], "mine");
        assert_eq!(entry.notes, ["`tags` are not mapped: `meta` has a key \"tags\""]);
        let entry = service(r#""tags": ["a,b"]"#);
        assert_eq!(entry.notes, ["a tag contains a comma, which also separates tags"]);
        let entry = service(&format!(r#""tags": ["{}"]"#, "x".repeat(1025)));
        assert_eq!(entry.instance.unwrap_err(), "value of \"tags\" has 1025 bytes, at most 1024");
    }

    #[test]
    fn files_that_are_not_definitions() {
        let error = |text: &str| parse(text, &defaults()).unwrap_err();
        assert!(error("service {\n  name = \"web\"\n}").contains("HCL is not supported"));
        assert!(error("{\"service\": ").starts_with("not JSON: EOF"));
        assert_eq!(error("[]"), "expected an object with `service` or `services`");
        assert_eq!(error("{\"check\": {}}"), "neither `service` nor `services` in it");
        assert_eq!(error("{\"services\": {}}"), "`services` is an object, expected an array");
    }

    #[test]
    fn keys_in_snake_case() {
        for key in ["enable_tag_override", "EnableTagOverride", "enableTagOverride"] {
            assert_eq!(snake(key), "enable_tag_override");
        }
        assert_eq!((snake("ID").as_str(), snake("TTL").as_str()), ("id", "ttl"));
    }
}
