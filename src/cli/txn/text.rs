//! The text form of a transaction: one condition or step a line; a blank line ends the conditions, and
//! another one the steps that are carried out when they hold. The grammar stands in docs/CLI.md.

use std::collections::BTreeMap;
use std::str::FromStr;

use super::super::view;
use super::Wrong;
use crate::client::txn::{self, Range, Record};
use crate::options;
use crate::proto::v1;
use crate::proto::v1::compare::To;
use crate::proto::v1::txn_step::Step;

type Result<T> = std::result::Result<T, String>;

pub fn parse(text: &str, namespace: &str) -> std::result::Result<v1::TxnRequest, Wrong> {
    let mut request = v1::TxnRequest::default();
    let mut section = 0;
    for (number, line) in (1..).zip(text.lines()) {
        let at = |why| Wrong { line: number, why };
        let line = line.trim();
        if line.is_empty() {
            section += 1;
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let mut words = Words::of(line, namespace).map_err(at)?;
        match section {
            0 => request.when.push(words.condition().map_err(at)?),
            1 => request.then.push(words.step().map_err(at)?),
            2 => request.or_else.push(words.step().map_err(at)?),
            _ => {
                let why = "a fourth part; allowed: conditions, steps when they hold, steps \
                           otherwise, with one blank line between each";
                return Err(at(why.to_owned()));
            }
        }
        words.end().map_err(at)?;
    }
    if request.then.is_empty() && request.or_else.is_empty() {
        let line = text.lines().count().max(1);
        let why = "no step; needed: conditions (or none), a blank line, steps".to_owned();
        return Err(Wrong { line, why });
    }
    Ok(request)
}

/// The words of a line, not yet unquoted.
struct Words<'a> {
    words: std::vec::IntoIter<&'a str>,
    namespace: &'a str,
}

impl<'a> Words<'a> {
    /// Splits at spaces that are not in quotes.
    fn of(line: &'a str, namespace: &'a str) -> Result<Words<'a>> {
        let mut words = Vec::new();
        let (mut start, mut quoted, mut escaped) = (None, false, false);
        for (at, character) in line.char_indices() {
            match character {
                _ if escaped => escaped = false,
                '\\' if quoted => escaped = true,
                '"' => quoted = !quoted,
                _ => {}
            }
            match (character.is_whitespace() && !quoted, start) {
                (true, Some(from)) => {
                    words.push(&line[from..at]);
                    start = None;
                }
                (false, None) => start = Some(at),
                (true, None) | (false, Some(_)) => {}
            }
        }
        if quoted {
            return Err("a quote is not closed".to_owned());
        }
        words.extend(start.map(|from| &line[from..]));
        Ok(Words { words: words.into_iter(), namespace })
    }

    fn next(&mut self, what: &str) -> Result<&'a str> {
        self.words.next().ok_or_else(|| format!("{what} is missing"))
    }

    fn text(&mut self, what: &str) -> Result<String> {
        unquote(self.next(what)?)
    }

    fn number<T: FromStr>(&mut self, what: &str) -> Result<T> {
        number(what, self.next(what)?)
    }

    fn end(&mut self) -> Result<()> {
        match self.words.next() {
            None => Ok(()),
            Some(word) => Err(format!("{word:?} is too much")),
        }
    }

    fn namespace(&self) -> String {
        self.namespace.to_owned()
    }

    // ---- conditions ----

    fn condition(&mut self) -> Result<v1::Compare> {
        let noun = self.next("a condition")?;
        if noun == "unchanged" {
            let scope = self.scope()?;
            let since = self.next("since REVISION")?;
            if since != "since" {
                return Err(format!("{since:?} stands where \"since REVISION\" should"));
            }
            let since = self.number("the revision")?;
            let unchanged = Some(v1::Unchanged { scope: Some(scope), since });
            return Ok(v1::Compare { unchanged, ..v1::Compare::default() });
        }
        let record = self.record(noun)?;
        let first = self.next("exists, missing, or what is compared")?;
        let equal = v1::Relation::Equal;
        let (is, to) = match (noun, first) {
            (_, "exists") => (equal, To::Exists(true)),
            (_, "missing") => (equal, To::Exists(false)),
            // What a counter is compared by goes without saying.
            ("counter", "=" | "==" | "!=" | "<" | ">") => {
                (relation(first)?, To::Value(self.number("the value")?))
            }
            (noun, field) => {
                let is = relation(self.next("one of = != < >")?)?;
                let to = match (noun, field) {
                    (_, "create") => To::CreateRevision(self.number("the revision")?),
                    (_, "mod") => To::ModRevision(self.number("the revision")?),
                    ("config", "version") => To::Version(self.number("the version")?),
                    ("config", "content") => To::Content(self.content()?),
                    ("counter", "value") => To::Value(self.number("the value")?),
                    ("lock", "token") => To::Token(self.number("the token")?),
                    ("instance", "health") => {
                        let health = self.text("the health")?;
                        To::Health(
                            v1::Health::from(word::<view::Health>("health", &health)?).into(),
                        )
                    }
                    _ => {
                        let own = match noun {
                            "config" => ", version, content",
                            "counter" => ", value",
                            "lock" => ", token",
                            "instance" => ", health",
                            _ => "",
                        };
                        return Err(format!(
                            "{field:?} is nothing to ask of a {noun}; allowed: exists, missing, \
                             create, mod{own}"
                        ));
                    }
                };
                (is, to)
            }
        };
        Ok(v1::Compare { record: Some(record), is: is.into(), to: Some(to), unchanged: None })
    }

    fn record(&mut self, noun: &str) -> Result<v1::RecordName> {
        Ok(match noun {
            "namespace" => txn::namespace(self.text("its name")?).record_name(),
            "service" => txn::service(self.namespace(), self.text("its name")?).record_name(),
            "instance" => self.instance()?.record_name(),
            "config" => self.config()?.record_name(),
            "counter" => self.counter()?.record_name(),
            "lock" => self.lock()?.record_name(),
            "session" => txn::session(self.number("its id")?).record_name(),
            other => {
                return Err(format!(
                    "{other:?} is no kind of record; allowed: namespace, service, instance, \
                     config, counter, lock, session"
                ));
            }
        })
    }

    fn instance(&mut self) -> Result<v1::InstanceName> {
        let given = self.text("SERVICE/ID")?;
        let (service, id) = parts(&given).ok_or_else(|| format!("{given:?} is no SERVICE/ID"))?;
        Ok(txn::instance(self.namespace(), service, id))
    }

    fn config(&mut self) -> Result<v1::ItemName> {
        let given = self.text("GROUP/KEY")?;
        let (group, key) = parts(&given).unwrap_or(("", &given));
        Ok(txn::config(self.namespace(), group, key))
    }

    fn lock(&mut self) -> Result<v1::LockName> {
        Ok(txn::lock(self.namespace(), self.text("its name")?))
    }

    /// `name` or `name{label="value",...}`.
    fn counter(&mut self) -> Result<v1::CounterName> {
        let given = self.next("its name")?;
        let Some((name, labels)) = given.split_once('{') else {
            return Ok(txn::counter(self.namespace(), unquote(given)?));
        };
        let labels = labels
            .strip_suffix('}')
            .ok_or_else(|| format!("{given:?} has labels that do not end in }}"))?;
        let mut counter = txn::counter(self.namespace(), name);
        for label in split_unquoted(labels, ',') {
            let (label, value) =
                label.split_once('=').ok_or_else(|| format!("{label:?} is no LABEL=VALUE"))?;
            counter = counter.label(label, unquote(value)?);
        }
        Ok(counter)
    }

    fn scope(&mut self) -> Result<v1::Scope> {
        let noun = self.next("service, config, counter or lock")?;
        let given = self.text("a name, PREFIX* or *")?;
        let namespace = self.namespace();
        let scope = match noun {
            "service" => txn::services(namespace, names(&given)).scope().clone(),
            "counter" => scope_of(&txn::counters(namespace, names(&given))),
            "lock" => scope_of(&txn::locks(namespace, names(&given))),
            "config" => {
                let (group, key) = match given.as_str() {
                    "*" => ("", "*"),
                    given => parts(given).unwrap_or(("default", given)),
                };
                scope_of(&txn::configs(namespace, group, names(key)))
            }
            other => {
                return Err(format!(
                    "{other:?} is no kind of range; allowed: service, config, counter, lock"
                ));
            }
        };
        Ok(scope)
    }

    // ---- steps ----

    fn step(&mut self) -> Result<v1::TxnStep> {
        let noun = self.next("a step")?;
        match noun {
            "get" => {
                let kind = self.next("a kind of record")?;
                return Ok(Step::Get(self.record(kind)?).into());
            }
            "range" => {
                let scope = Some(self.scope()?);
                let mut options = self.options(&["limit"])?;
                return Ok(v1::TxnRange { scope, limit: options.or("limit", 0)? }.into());
            }
            _ => {}
        }
        let verb = self.next("what to do with it")?;
        Ok(match (noun, verb) {
            ("counter", "add") => {
                let (counter, delta) = (self.counter()?, self.number("what to add")?);
                let mut options = self.options(&["floor", "ceil", "kind"])?;
                v1::AddCounterRequest {
                    floor: options.number("floor")?,
                    ceil: options.number("ceil")?,
                    kind: options.kind()?.into(),
                    ..counter.add(delta)
                }
                .into()
            }
            ("counter", "set") => {
                let (counter, value) = (self.counter()?, self.number("its value")?);
                let mut options = self.options(&["expected", "kind"])?;
                v1::SetCounterRequest {
                    expected: options.number("expected")?,
                    kind: options.kind()?.into(),
                    ..counter.set(value)
                }
                .into()
            }
            ("counter", "reset") => {
                let counter = self.counter()?;
                let expected = self.options(&["expected"])?.number("expected")?;
                v1::ResetCounterRequest { expected, ..counter.reset() }.into()
            }
            ("counter", "delete") => self.counter()?.delete().into(),
            ("config", "publish") => {
                let (item, content) = (self.config()?, self.content()?);
                let known = ["format", "author", "comment", "expected-version", "keep"];
                let mut options = self.options(&known)?;
                v1::PublishConfigRequest {
                    format: options.format()?.into(),
                    author: options.text("author")?,
                    comment: options.text("comment")?,
                    expected_version: options.number("expected-version")?,
                    keep: options.or("keep", 0)?,
                    ..item.publish(content)
                }
                .into()
            }
            ("config", "delete") => {
                let item = self.config()?;
                let mut options = self.options(&["author", "comment", "expected-version"])?;
                v1::DeleteConfigRequest {
                    author: options.text("author")?,
                    comment: options.text("comment")?,
                    expected_version: options.number("expected-version")?,
                    ..item.delete()
                }
                .into()
            }
            ("config", "rollback") => {
                let (item, version) = (self.config()?, self.number("the version")?);
                let mut options = self.options(&["author", "comment", "expected-version"])?;
                v1::RollbackConfigRequest {
                    author: options.text("author")?,
                    comment: options.text("comment")?,
                    expected_version: options.number("expected-version")?,
                    ..item.roll_back(version)
                }
                .into()
            }
            ("instance", "register") => self.register()?.into(),
            ("instance", "update") => self.update()?.into(),
            ("instance", "deregister") => {
                let instance = self.instance()?;
                let expected_mod_revision = self.options(&["if-revision"])?.or("if-revision", 0)?;
                v1::DeregisterRequest { expected_mod_revision, ..instance.deregister() }.into()
            }
            ("service", "put") => self.put_service()?.into(),
            ("service", "delete") => {
                txn::service(self.namespace(), self.text("its name")?).delete().into()
            }
            ("lock", "acquire") => {
                let lock = self.lock()?;
                let mut options = self.options(&["session", "holder", "value"])?;
                v1::AcquireLockRequest {
                    value: options.text("value")?,
                    ..lock.acquire(options.needed("session")?, options.text("holder")?)
                }
                .into()
            }
            ("lock", "release") => {
                let lock = self.lock()?;
                let mut options = self.options(&["session", "holder", "token"])?;
                v1::ReleaseLockRequest {
                    session: options.or("session", 0)?,
                    holder: options.text("holder")?,
                    ..lock.release(options.or("token", 0)?)
                }
                .into()
            }
            ("lock", "update") => {
                let v1::LockName { namespace, lock } = self.lock()?;
                let mut options = self.options(&["session", "holder", "value"])?;
                v1::UpdateLockRequest {
                    namespace,
                    lock,
                    session: options.needed("session")?,
                    holder: options.text("holder")?,
                    value: options.text("value")?,
                    request_id: None,
                }
                .into()
            }
            (noun, verb) => {
                return Err(format!(
                    "\"{noun} {verb}\" is no step; allowed: get, range, counter \
                     add|set|reset|delete, config publish|delete|rollback, instance \
                     register|update|deregister, service put|delete, lock \
                     acquire|release|update"
                ));
            }
        })
    }

    fn register(&mut self) -> Result<v1::Instance> {
        let v1::InstanceName { namespace, service, id } = self.instance()?;
        let known = ["address", "weight", "zone", "health", "reason", "session", "meta."];
        let mut options = self.options(&known)?;
        let mut endpoints = Vec::new();
        for given in options.all("address")? {
            let (name, address) = given.split_once('=').unwrap_or(("", &given));
            let (host, port) = options::split_host_port(address)
                .ok_or_else(|| format!("{given:?} is no [NAME=]HOST:PORT"))?;
            endpoints.push(v1::Endpoint { name: name.to_owned(), host, port: port.into() });
        }
        Ok(v1::Instance {
            namespace,
            service,
            id,
            endpoints,
            weight: options.number("weight")?,
            zone: options.text("zone")?,
            metadata: options.metadata()?,
            health: options.health()?.into(),
            reason: options.text("reason")?,
            session: options.or("session", 0)?,
            ..v1::Instance::default()
        })
    }

    fn update(&mut self) -> Result<v1::UpdateInstanceRequest> {
        let instance = self.instance()?;
        let known = ["weight", "health", "admin", "reason", "if-revision", "meta."];
        let mut options = self.options(&known)?;
        let metadata = options.metadata()?;
        Ok(v1::UpdateInstanceRequest {
            weight: options.number("weight")?,
            health: options.health()?.into(),
            admin: match options.text("admin")?.as_str() {
                "" => v1::Admin::Unspecified,
                "enabled" => v1::Admin::Enabled,
                "draining" => v1::Admin::Draining,
                "disabled" => v1::Admin::Disabled,
                other => {
                    let allowed = "enabled, draining, disabled";
                    return Err(format!("admin: {other:?} is not allowed; allowed: {allowed}"));
                }
            }
            .into(),
            reason: options.text("reason")?,
            replace_metadata: !metadata.is_empty(),
            metadata,
            expected_mod_revision: options.or("if-revision", 0)?,
            ..instance.update()
        })
    }

    fn put_service(&mut self) -> Result<v1::PutServiceRequest> {
        let name = self.text("its name")?;
        let known = ["protect-threshold", "deregister-after", "policy", "if-revision", "meta."];
        let mut options = self.options(&known)?;
        let deregister_after = options.text("deregister-after")?;
        let service = v1::Service {
            namespace: self.namespace(),
            name,
            protect_threshold_percent: options.or("protect-threshold", 0)?,
            deregister_after_ms: match deregister_after.as_str() {
                "" => None,
                given => {
                    let any = std::time::Duration::ZERO..=std::time::Duration::from_secs(86_400);
                    let after = options::duration("deregister-after", given, any)
                        .map_err(|error| error.to_string())?;
                    Some(after.as_millis() as u64)
                }
            },
            policy: options.text("policy")?,
            metadata: options.metadata()?,
            ..v1::Service::default()
        };
        let expected_mod_revision = options.or("if-revision", 0)?;
        Ok(v1::PutServiceRequest {
            service: Some(service),
            expected_mod_revision,
            request_id: None,
        })
    }

    /// A word, or what a file has: `@FILE`.
    fn content(&mut self) -> Result<Vec<u8>> {
        let given = self.text("the content, as a word, in quotes, or as @FILE")?;
        match given.strip_prefix('@') {
            None => Ok(given.into_bytes()),
            Some(file) => std::fs::read(file).map_err(|error| format!("{file}: {error}")),
        }
    }

    /// The rest of the line: `NAME=VALUE` of these names; one that ends in a point stands for all that
    /// begin with it.
    fn options(&mut self, known: &[&str]) -> Result<Options> {
        let mut values: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for word in self.words.by_ref() {
            let is_known = |name: &str| {
                let mut known = known.iter();
                known.any(|one| *one == name || (one.ends_with('.') && name.starts_with(one)))
            };
            match word.split_once('=') {
                Some((name, value)) if is_known(name) => {
                    let of_name = values.entry(name.to_owned()).or_default();
                    if !of_name.is_empty() && name != "address" {
                        return Err(format!("{name} stands there twice"));
                    }
                    of_name.push(unquote(value)?);
                }
                Some(_) | None => {
                    let allowed: Vec<String> = known
                        .iter()
                        .map(|name| match name.ends_with('.') {
                            true => format!("{name}KEY=VALUE"),
                            false => format!("{name}=..."),
                        })
                        .collect();
                    return Err(format!("{word:?} is not allowed; allowed: {}", allowed.join(" ")));
                }
            }
        }
        Ok(Options(values))
    }
}

/// `NAME=VALUE` of a step.
struct Options(BTreeMap<String, Vec<String>>);

impl Options {
    fn all(&mut self, name: &str) -> Result<Vec<String>> {
        Ok(self.0.remove(name).unwrap_or_default())
    }

    /// Empty when it is not given.
    fn text(&mut self, name: &str) -> Result<String> {
        Ok(self.all(name)?.pop().unwrap_or_default())
    }

    fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        self.all(name)?.pop().map(|given| number(name, &given)).transpose()
    }

    fn or<T: FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        Ok(self.number(name)?.unwrap_or(default))
    }

    fn needed<T: FromStr>(&mut self, name: &str) -> Result<T> {
        self.number(name)?.ok_or_else(|| format!("{name}=... is missing"))
    }

    fn health(&mut self) -> Result<v1::Health> {
        match self.text("health")?.as_str() {
            "" => Ok(v1::Health::Unspecified),
            given => Ok(word::<view::Health>("health", given)?.into()),
        }
    }

    fn kind(&mut self) -> Result<v1::CounterKind> {
        counter_kind(&self.text("kind")?)
    }

    fn format(&mut self) -> Result<v1::ConfigFormat> {
        config_format(&self.text("format")?)
    }

    fn metadata(&mut self) -> Result<BTreeMap<String, String>> {
        let mut metadata = BTreeMap::new();
        let all = std::mem::take(&mut self.0);
        for (name, mut values) in all {
            match name.strip_prefix("meta.") {
                Some(key) => {
                    metadata.insert(key.to_owned(), values.pop().unwrap_or_default());
                }
                None => {
                    self.0.insert(name, values);
                }
            }
        }
        Ok(metadata)
    }
}

pub(super) fn counter_kind(given: &str) -> Result<v1::CounterKind> {
    match given {
        "" => Ok(v1::CounterKind::Unspecified),
        "counter" => Ok(v1::CounterKind::Counter),
        "gauge" => Ok(v1::CounterKind::Gauge),
        other => Err(format!("kind: {other:?} is not allowed; allowed: counter, gauge")),
    }
}

pub(super) fn config_format(given: &str) -> Result<v1::ConfigFormat> {
    Ok(match given {
        "" => v1::ConfigFormat::Unspecified,
        "text" => v1::ConfigFormat::Text,
        "json" => v1::ConfigFormat::Json,
        "yaml" => v1::ConfigFormat::Yaml,
        "toml" => v1::ConfigFormat::Toml,
        "properties" => v1::ConfigFormat::Properties,
        "binary" => v1::ConfigFormat::Binary,
        other => {
            let allowed = "text, json, yaml, toml, properties, binary";
            return Err(format!("format: {other:?} is not allowed; allowed: {allowed}"));
        }
    })
}

pub(super) fn relation(given: &str) -> Result<v1::Relation> {
    match given {
        "=" | "==" => Ok(v1::Relation::Equal),
        "!=" => Ok(v1::Relation::NotEqual),
        "<" => Ok(v1::Relation::Less),
        ">" => Ok(v1::Relation::Greater),
        other => Err(format!("{other:?} is no comparison; allowed: = != < >")),
    }
}

fn scope_of<V>(range: &Range<V>) -> v1::Scope {
    range.scope().clone()
}

/// `*`, `PREFIX*` or a name.
pub(super) fn names(given: &str) -> v1::NameMatch {
    match given.strip_suffix('*') {
        Some("") => txn::all(),
        Some(prefix) => txn::starting_with(prefix),
        None => txn::exactly(given),
    }
}

/// The two names of `FIRST/SECOND`; a first name that has a slash itself is told by two slashes.
fn parts(given: &str) -> Option<(&str, &str)> {
    given.split_once("//").or_else(|| given.split_once('/'))
}

fn word<T: clap::ValueEnum>(what: &str, given: &str) -> Result<T> {
    T::from_str(given, false).map_err(|_| {
        let allowed: Vec<_> = T::value_variants()
            .iter()
            .filter_map(|variant| Some(variant.to_possible_value()?.get_name().to_owned()))
            .collect();
        format!("{what}: {given:?} is not allowed; allowed: {}", allowed.join(", "))
    })
}

fn number<T: FromStr>(what: &str, given: &str) -> Result<T> {
    let signed = if T::from_str("-1").is_ok() { "" } else { ", 0 or more" };
    given.parse().map_err(|_| format!("{what}: {given:?} is not a whole number{signed}"))
}

/// Takes the quotes off: they may stand around any part of a word. Within them \" \\ \n and \t.
fn unquote(word: &str) -> Result<String> {
    let mut text = String::new();
    let mut quoted = false;
    let mut characters = word.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => quoted = !quoted,
            '\\' if quoted => match characters.next() {
                Some('n') => text.push('\n'),
                Some('t') => text.push('\t'),
                Some(same @ ('"' | '\\')) => text.push(same),
                other => {
                    let other = other.map(String::from).unwrap_or_default();
                    return Err(format!(
                        "\\{other} is not allowed in quotes; allowed: \\\" \\\\ \\n \\t"
                    ));
                }
            },
            other => text.push(other),
        }
    }
    Ok(text)
}

/// Splits where the separator is not in quotes; nothing from nothing.
fn split_unquoted(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            other if other == separator && !quoted => {
                parts.push(&text[start..at]);
                start = at + other.len_utf8();
            }
            _ => {}
        }
    }
    if !text.is_empty() {
        parts.push(&text[start..]);
    }
    parts
}
