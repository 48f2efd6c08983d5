//! Stories: `testdata/*.txt` are scripts with the full output of every step. `REWRITE=1` writes the
//! output anew; read the diff.
//!
//! A step is a sentence (`#`), commands one per line, `----`, and the output. Commands in a row are one
//! log entry; `open as=NAME` ends its entry, and `$NAME` is the session's id from there on. After each
//! step the harness also checks what every story must leave true.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;

mod alarm;
mod center;
mod saga;

/// The gray releases of all items whose gates ask for something at a time.
pub(super) fn due_gates(
    state: &State,
    now_ms: u64,
) -> impl Iterator<Item = (Arc<ConfigItem>, Arc<Gray>, Verdict)> {
    state.gated_items().into_iter().flat_map(move |name| {
        let item = state.config_item(&name.namespace, &name.group, &name.key).unwrap();
        let due = state.due_gates(&name, now_ms).into_iter();
        due.map(|(gray, verdict)| (item.clone(), gray, verdict))
    })
}

/// The alarms of all namespaces that turn to something else at a time.
pub(super) fn due_alarms(state: &State, now_ms: u64) -> impl Iterator<Item = Arc<Alarm>> {
    let all = state.all_alarms().into_iter();
    all.filter(move |alarm| state.is_due_alarm(&alarm.namespace, &alarm.name, now_ms))
}

#[test]
fn registration() {
    check("registration");
}

#[test]
fn sessions() {
    check("sessions");
}

#[test]
fn exactly_once() {
    check("exactly_once");
}

#[test]
fn discovery() {
    check("discovery");
}

#[test]
fn settings() {
    check("settings");
}

#[test]
fn health() {
    check("health");
}

#[test]
fn compares() {
    check("compares");
}

#[test]
fn batches() {
    check("batches");
}

#[test]
fn limits() {
    check("limits");
}

#[test]
fn clock_and_term() {
    check("clock_and_term");
}

#[test]
fn members() {
    check("members");
}

#[test]
fn config() {
    check("config");
}

#[test]
fn gray() {
    check("gray");
}

#[test]
fn counters() {
    check("counters");
}

#[test]
fn alarms() {
    check("alarms");
}

#[test]
fn locks() {
    check("locks");
}

#[test]
fn sagas() {
    check("sagas");
}

#[test]
fn messages() {
    check("messages");
}

#[test]
fn tcc() {
    check("tcc");
}

#[test]
fn barrier() {
    check("barrier");
}

#[test]
fn txn() {
    check("txn");
}

#[test]
fn quotas() {
    check("quotas");
}

fn check(story: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("src/state/testdata")
        .join(format!("{story}.txt"));
    let expected = std::fs::read_to_string(&path).unwrap();
    let mut teller = Teller::default();
    let mut actual = String::new();
    for (number, block) in expected.trim_end().split("\n\n").enumerate() {
        let (comments, rest): (Vec<&str>, Vec<&str>) =
            block.lines().partition(|line| line.starts_with('#'));
        assert!(!comments.is_empty(), "{story}: block {number} says nothing: {block}");
        let commands: Vec<&str> = rest.into_iter().take_while(|line| *line != "----").collect();
        if number > 0 {
            actual.push('\n');
        }
        for line in &comments {
            writeln!(actual, "{line}").unwrap();
        }
        if commands.is_empty() {
            assert_eq!(number, 0, "{story}: only the head of the file has no commands: {block}");
            continue;
        }
        for line in &commands {
            writeln!(actual, "{line}").unwrap();
        }
        let mut output = String::new();
        teller.step(&commands, &mut output);
        write!(actual, "----\n{output}").unwrap();
    }
    if std::env::var_os("REWRITE").is_some() {
        std::fs::write(&path, &actual).unwrap();
    } else if actual != expected {
        let differs = actual.lines().zip(expected.lines()).position(|(a, e)| a != e);
        let line = differs.unwrap_or(actual.lines().count().min(expected.lines().count()));
        panic!(
            "{story}.txt, line {}: expected {:?}, got {:?}; REWRITE=1 cargo test --lib state::tests:: \
             and read the diff",
            line + 1,
            expected.lines().nth(line),
            actual.lines().nth(line),
        );
    }
}

struct Teller {
    state: State,
    /// What the image would hold: every change so far.
    image: BTreeMap<Key, Record>,
    sessions: BTreeMap<String, u64>,
    term: u64,
    at_ms: u64,
}

impl Default for Teller {
    fn default() -> Self {
        let (state, image, sessions) = Default::default();
        Teller { state, image, sessions, term: 1, at_ms: 1000 }
    }
}

impl Teller {
    fn step(&mut self, lines: &[&str], out: &mut String) {
        let mut batch = Vec::new();
        for line in lines {
            let mut words = Words::parse(line, &self.sessions);
            let unchecked = words.flag("unchecked");
            let name = words.take("as");
            let verb = words.next();
            if verb == "bytes" {
                batch.push(super::tests_bytes::from_hex(&words.next()));
            } else if let Some(command) = parse_command(&verb, &mut words, self.term) {
                match command.check() {
                    Err(refusal) if !unchecked => {
                        writeln!(out, "never proposed: {refusal:?}").unwrap();
                    }
                    Ok(()) | Err(_) => batch.push(command.encode().unwrap()),
                }
            } else {
                self.flush(&mut batch, out);
                self.other(&verb, &mut words, out);
            }
            words.finish(line);
            if let Some(name) = name {
                let outcome = self.flush(&mut batch, out).pop();
                let Some(Ok(Reply::SessionOpened { session, .. })) = outcome.map(|o| o.result)
                else {
                    panic!("{line} opened no session");
                };
                self.sessions.insert(format!("${name}"), session);
            }
        }
        self.flush(&mut batch, out);
        if self.image.len() < 2_000 {
            self.check_invariants();
        }
    }

    /// What holds after any story.
    fn check_invariants(&self) {
        let records: BTreeMap<Key, Record> = self.state.records().collect();
        assert_eq!(records, self.image, "the changes make up the records");
        let restored = State::restore(self.state.records().map(Ok::<_, ()>)).unwrap();
        assert!(restored.records().eq(self.state.records()), "restored as it was");
        assert_eq!(restored.counts(), self.state.counts());
        assert!(restored.orphans(None).eq(self.state.orphans(None)));
        assert!(restored.members().eq(self.state.members()));
        assert!(restored.sessions().eq(self.state.sessions()));
        for (restored, entry) in
            restored.tables.ledger.sessions.values().zip(self.state.tables.ledger.sessions.values())
        {
            assert_eq!(restored.lowest, entry.lowest, "lowest of session {}", entry.record.id);
        }
    }

    fn flush(&mut self, batch: &mut Vec<Vec<u8>>, out: &mut String) -> Vec<Outcome> {
        if batch.is_empty() {
            return Vec::new();
        }
        let applied = self.apply(batch);
        batch.clear();
        for outcome in &applied.outcomes {
            writeln!(out, "{}", show_outcome(outcome)).unwrap();
        }
        for Event { revision, at_ms, changes } in &applied.events {
            writeln!(out, "event at revision {revision}, {at_ms} ms").unwrap();
            show_changes(changes, out);
        }
        applied.outcomes
    }

    fn apply(&mut self, batch: &[Vec<u8>]) -> Applied {
        let commands = batch.iter().map(Vec::as_slice).collect();
        let entry = Entry { term: self.term, at_ms: self.at_ms, commands };
        let applied = self.state.apply(&entry);
        assert_eq!(applied.meta, self.state.meta());
        for change in applied.events.iter().flat_map(|event| &event.changes) {
            match &change.record {
                Some(record) => self.image.insert(change.key.clone(), record.clone()),
                None => self.image.remove(&change.key),
            };
        }
        self.image.insert(Key::Meta, Record::Meta(applied.meta));
        applied
    }

    fn other(&mut self, verb: &str, words: &mut Words, out: &mut String) {
        if self.look_at(verb, words, out) {
            return;
        }
        match verb {
            "at" => self.at_ms = words.next().parse().unwrap(),
            "term" => self.term = words.next().parse().unwrap(),
            "restore" => {
                self.state = State::restore(self.state.records().map(Ok::<_, ()>)).unwrap();
                writeln!(out, "restored at revision {}", self.state.revision()).unwrap();
            }
            "repeat" => self.repeat(words, out),
            "meta" => writeln!(out, "{:?}", self.state.meta()).unwrap(),
            "counts" => writeln!(out, "{:?}", self.state.counts()).unwrap(),
            "discover" => self.discover(words, out),
            "service" => {
                let (namespace, name) = words.pair();
                match self.state.service(&namespace, &name) {
                    Some(view) => writeln!(out, "{}", show_view(&view)).unwrap(),
                    None => writeln!(out, "no such service").unwrap(),
                }
            }
            "services" => {
                let namespace = words.next();
                let [prefix, after] = ["prefix", "after"].map(|n| words.text(n));
                let limit = words.number("limit").unwrap_or(100) as usize;
                let (page, more) = self.state.services(&namespace, &prefix, &after, limit);
                for view in page {
                    writeln!(out, "{}", show_view(&view)).unwrap();
                }
                writeln!(out, "more: {more}").unwrap();
            }
            "namespaces" => {
                for namespace in self.state.namespaces() {
                    let record = Record::Namespace(namespace.clone());
                    writeln!(out, "{}: {}", namespace.name, show_record(&record)).unwrap();
                }
            }
            "sessions" => {
                let after = words.number("after").unwrap_or(0);
                for (session, instances) in self.state.sessions_after(after) {
                    let record = show_record(&Record::Session(session.clone()));
                    writeln!(out, "{}: {record}, {instances} instances", session.id).unwrap();
                }
                writeln!(out, "end").unwrap();
            }
            "members" => {
                for member in self.state.members() {
                    let record = show_record(&Record::Member(member.clone()));
                    writeln!(out, "{}: {record}", member.node).unwrap();
                }
                writeln!(out, "end").unwrap();
            }
            "orphans" => {
                for (instance, due) in self.state.orphans(None) {
                    let name = show_key(&instance.key());
                    writeln!(out, "{name} due at {due} ms").unwrap();
                }
                writeln!(out, "end").unwrap();
            }
            other => panic!("unknown command {other:?}"),
        }
    }

    /// `repeat 1..3 <command>`, each an entry of its own, with {i} replaced; prints a summary.
    fn repeat(&mut self, words: &mut Words, out: &mut String) {
        let range = words.next();
        let (first, last) = range.split_once("..").unwrap();
        let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
        let template = std::mem::take(&mut words.0);
        let (mut carried_out, mut refused, mut last_ok) = (0, 0, String::new());
        for i in first..=last {
            let filled = template.iter().map(|word| word.replace("{i}", &i.to_string())).collect();
            let mut words = Words(filled);
            let verb = words.next();
            let command = parse_command(&verb, &mut words, self.term).unwrap();
            command.check().unwrap();
            let outcome = self.apply(&[command.encode().unwrap()]).outcomes.remove(0);
            if outcome.result.is_ok() {
                carried_out += 1;
                last_ok = show_outcome(&outcome);
            } else {
                refused += 1;
                writeln!(out, "{i}: {}", show_outcome(&outcome)).unwrap();
            }
        }
        writeln!(out, "{carried_out} carried out, {refused} refused; last {last_ok}").unwrap();
    }

    fn discover(&self, words: &mut Words, out: &mut String) {
        let (namespace, service) = words.pair();
        let filter = Filter {
            healthy_only: words.flag("healthy"),
            zone: words.text("zone"),
            metadata: words.pairs("meta").unwrap_or_default(),
        };
        let found = self.state.discover(&namespace, &service, &filter);
        let ids: Vec<&str> = found.instances.iter().map(|i| &*i.id).collect();
        writeln!(out, "[{}] protected: {}", ids.join(" "), found.protected).unwrap();
        match found.service {
            Some(view) => writeln!(out, "of {}", show_view(&view)).unwrap(),
            None => writeln!(out, "no such service").unwrap(),
        }
    }
}

fn parse_command(verb: &str, words: &mut Words, term: u64) -> Option<Command> {
    if verb == "repeat" {
        // Its words are those of the command that it repeats.
        return None;
    }
    let request = words.take("req").map(|text| {
        let parts: Vec<u64> = text.split('/').map(|part| part.parse().unwrap()).collect();
        let &[session, sequence, lowest_unacknowledged] = &parts[..] else { panic!("{text}") };
        RequestId { session, sequence, lowest_unacknowledged }
    });
    let op = match verb {
        "open" => Op::OpenSession {
            ttl_ms: words.number("ttl").unwrap_or(10_000),
            client: words.text("client"),
        },
        "close" => Op::CloseSession { session: words.next().parse().unwrap() },
        "expire" => {
            let term = words.number("term").unwrap_or(term);
            Op::ExpireSessions { term, sessions: words.all(|word| word.parse().unwrap()) }
        }
        "reap" => Op::Reap { instances: words.all(instance_name) },
        "register" => Op::Register(Box::new(Registration {
            name: instance_name(&words.next()),
            endpoints: words.endpoints(),
            weight: words.number("weight").unwrap_or(1) as u32,
            zone: words.text("zone"),
            metadata: words.pairs("meta").unwrap_or_default(),
            health: words.health().unwrap_or(Health::Passing),
            admin: words.admin().unwrap_or(Admin::Enabled),
            reason: words.text("reason"),
            hash_key: words.text("hash_key"),
            session: words.number("session"),
        })),
        "deregister" => Op::Deregister {
            name: instance_name(&words.next()),
            expected_mod_revision: words.number("expect"),
        },
        "update" => Op::UpdateInstance(Box::new(InstancePatch {
            name: instance_name(&words.next()),
            weight: words.number("weight").map(|weight| weight as u32),
            admin: words.admin(),
            health: words.health(),
            reason: words.text("reason"),
            metadata: words.pairs("meta"),
            expected_mod_revision: words.number("expect"),
        })),
        "put-service" => {
            let (namespace, name) = words.pair();
            Op::PutService(Box::new(ServiceSettings {
                namespace,
                name,
                protect_threshold_percent: words.number("protect").unwrap_or(0) as u32,
                deregister_after_ms: words.number("after").unwrap_or(30_000),
                policy: words.text("policy"),
                policy_parameters: words.pairs("param").unwrap_or_default(),
                metadata: words.pairs("meta").unwrap_or_default(),
                expected_mod_revision: words.number("expect"),
                health_check: words.check(),
            }))
        }
        "delete-service" => {
            let (namespace, name) = words.pair();
            Op::DeleteService { namespace, name }
        }
        "put-namespace" => {
            Op::PutNamespace { name: words.next(), description: words.text("description") }
        }
        "delete-namespace" => Op::DeleteNamespace { name: words.next() },
        "admit" => Op::AdmitMember {
            node: words.next().parse().unwrap(),
            store: words.number("store").map(u128::from),
        },
        "retire" => Op::RetireMember { node: words.next().parse().unwrap() },
        "judge-health" => Op::JudgeHealth { verdicts: words.all(verdict) },
        other => center::parse(other, words, term)?,
    };
    Some(Command { request, op })
}

/// `namespace/service/id@REVISION/SETTINGS=health:reason`.
fn verdict(text: &str) -> HealthVerdict {
    let (name, rest) = text.split_once('@').unwrap();
    let (revisions, said) = rest.split_once('=').unwrap();
    let (mod_revision, settings_revision) = revisions.split_once('/').unwrap();
    let (health, reason) = said.split_once(':').unwrap();
    HealthVerdict {
        name: instance_name(name),
        mod_revision: mod_revision.parse().unwrap(),
        settings_revision: settings_revision.parse().unwrap(),
        health: health_named(health),
        reason: reason.replace('_', " "),
    }
}

fn instance_name(text: &str) -> InstanceName {
    let parts: Vec<&str> = text.splitn(3, '/').collect();
    let &[namespace, service, id] = &parts[..] else { panic!("{text} is no namespace/service/id") };
    InstanceName { namespace: namespace.into(), service: service.into(), id: id.into() }
}

/// The words of a line: plain ones, `name=value` ones and "quoted parts".
struct Words(Vec<String>);

impl Words {
    fn parse(line: &str, sessions: &BTreeMap<String, u64>) -> Self {
        let mut line = line.to_owned();
        // The longest name first, so that $alice does not end in $al.
        let mut names: Vec<_> = sessions.iter().collect();
        names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        for (name, id) in names {
            line = line.replace(name, &id.to_string());
        }
        assert!(!line.contains('$'), "a session without a name: {line}");
        let (mut words, mut word, mut quoted, mut any) = (Vec::new(), String::new(), false, false);
        for c in line.chars().chain([' ']) {
            match c {
                '"' => (quoted, any) = (!quoted, true),
                ' ' if !quoted => {
                    if any {
                        words.push(std::mem::take(&mut word));
                    }
                    any = false;
                }
                c => {
                    word.push(c);
                    any = true;
                }
            }
        }
        assert!(!quoted, "a quote is open: {line}");
        Words(words)
    }

    fn next(&mut self) -> String {
        assert!(!self.0.is_empty(), "a word is missing");
        self.0.remove(0)
    }

    fn flag(&mut self, name: &str) -> bool {
        let found = self.0.iter().position(|word| word == name);
        found.map(|at| self.0.remove(at)).is_some()
    }

    fn take(&mut self, name: &str) -> Option<String> {
        let prefix = format!("{name}=");
        let at = self.0.iter().position(|word| word.starts_with(&prefix))?;
        Some(self.0.remove(at).split_off(prefix.len()))
    }

    fn text(&mut self, name: &str) -> String {
        let text = self.take(name).unwrap_or_default();
        // `~300` stands for that many letters.
        match text.strip_prefix('~') {
            Some(length) => "x".repeat(length.parse().unwrap()),
            None => text,
        }
    }

    fn number(&mut self, name: &str) -> Option<u64> {
        self.take(name).map(|text| text.parse().unwrap())
    }

    /// `name=key:value`, any number of them; a bare `name=` is no pair.
    fn pairs(&mut self, name: &str) -> Option<Pairs> {
        let mut pairs = Vec::new();
        let mut any = None;
        while let Some(text) = self.take(name) {
            any = Some(());
            if let Some((key, value)) = text.split_once(':') {
                let long = |text: &str| match text.strip_prefix('~') {
                    Some(length) => "x".repeat(length.parse().unwrap()),
                    None => text.to_owned(),
                };
                pairs.push((long(key), long(value)));
            }
        }
        any.map(|()| pairs.into())
    }

    fn endpoints(&mut self) -> Endpoints {
        let mut endpoints: Vec<Endpoint> = Vec::new();
        if self.flag("no-endpoints") {
            return endpoints.into();
        }
        while let Some(text) = self.take("endpoint") {
            let (name, address) = text.split_once('@').unwrap();
            let (host, port) = address.rsplit_once(':').unwrap();
            endpoints.push(Endpoint {
                name: name.into(),
                host: host.into(),
                port: port.parse().unwrap(),
            });
        }
        if endpoints.is_empty() {
            endpoints.push(Endpoint { name: "grpc".into(), host: "10.0.0.1".into(), port: 80 });
        }
        endpoints.into()
    }

    fn health(&mut self) -> Option<Health> {
        Some(health_named(&self.take("health")?))
    }

    /// `check=tcp|http|grpc`, of the endpoint `endpoint=NAME`.
    fn check(&mut self) -> Option<HealthCheck> {
        let probe = match &*self.take("check")? {
            "tcp" => Probe::Tcp,
            "http" => Probe::Http {
                path: self.take("path").unwrap_or_else(|| "/".into()),
                host: self.text("host"),
                statuses: (self.number("from").unwrap_or(200) as u16, 299),
            },
            "grpc" => Probe::Grpc { service: self.text("of") },
            other => panic!("{other} is no probe"),
        };
        let mut number = |name, default| self.number(name).unwrap_or(default);
        Some(HealthCheck {
            probe,
            interval_ms: number("interval", 10_000),
            timeout_ms: number("timeout", 2_000),
            failures: number("failures", 3) as u32,
            successes: number("successes", 2) as u32,
            endpoint: self.text("endpoint"),
        })
    }

    fn admin(&mut self) -> Option<Admin> {
        Some(match &*self.take("admin")? {
            "enabled" => Admin::Enabled,
            "draining" => Admin::Draining,
            "disabled" => Admin::Disabled,
            other => panic!("{other} is no admin state"),
        })
    }

    fn pair(&mut self) -> (String, String) {
        let text = self.next();
        let (namespace, name) = text.split_once('/').unwrap();
        (namespace.into(), name.into())
    }

    fn all<T>(&mut self, parse: impl Fn(&str) -> T) -> Vec<T> {
        self.0.drain(..).map(|word| parse(&word)).collect()
    }

    fn finish(&self, line: &str) {
        assert!(self.0.is_empty(), "{:?} not understood in {line:?}", self.0);
    }
}

fn health_named(name: &str) -> Health {
    match name {
        "passing" => Health::Passing,
        "warning" => Health::Warning,
        "critical" => Health::Critical,
        other => panic!("{other} is no health"),
    }
}

fn show_outcome(outcome: &Outcome) -> String {
    let Outcome { revision, duplicate, result } = outcome;
    let duplicate = if *duplicate { " (duplicate)" } else { "" };
    format!("revision {revision}{duplicate}: {}", center::show_result(result))
}

/// One change a line; replies that are dropped in a row share one.
fn show_changes(changes: &[Change], out: &mut String) {
    let dropped = |change: &Change| match (&change.key, &change.record) {
        (Key::Reply { session, sequence }, None) => Some((*session, *sequence)),
        (_, _) => None,
    };
    let follows = |a: &Change, b: &Change| match (dropped(a), dropped(b)) {
        (Some((session, sequence)), b) => b == Some((session, sequence + 1)),
        (None, _) => false,
    };
    for run in changes.chunk_by(follows) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let key = show_key(&first.key);
        match &first.record {
            Some(record) => writeln!(out, "  {key} = {}", show_record(record)).unwrap(),
            None if run.len() > 1 => {
                writeln!(out, "  {key} up to {} removed", show_key(&last.key)).unwrap();
            }
            None => writeln!(out, "  {key} removed").unwrap(),
        }
    }
}

fn show_key(key: &Key) -> String {
    match key {
        Key::Meta => "meta".into(),
        Key::Namespace { name } => format!("namespace {name}"),
        Key::Service { namespace, name } => format!("service {namespace}/{name}"),
        Key::Instance { namespace, service, id } => format!("instance {namespace}/{service}/{id}"),
        Key::Session { id } => format!("session {id}"),
        Key::Reply { session, sequence } => format!("reply {session}/{sequence}"),
        Key::Member { node } => format!("member {node}"),
        Key::Config { namespace, group, key } => format!("config {namespace}/{group}/{key}"),
        Key::Release { namespace, group, key, version } => {
            format!("release {namespace}/{group}/{key} {version}")
        }
        Key::Schema { namespace, group, key } => format!("schema {namespace}/{group}/{key}"),
        Key::Report { namespace, group, key, session } => {
            format!("report {namespace}/{group}/{key} {session}")
        }
        Key::Counter { namespace, name, labels } => format!("counter {namespace}/{name}{labels:?}"),
        Key::Lock { namespace, lock, ticket } => format!("lock {namespace}/{lock} {ticket}"),
        Key::Alarm { namespace, name } => format!("alarm {namespace}/{name}"),
        Key::Saga { namespace, gid } => format!("saga {namespace}/{gid}"),
        Key::Removal { namespace, class } => format!("removal {namespace} {class:?}"),
    }
}

/// All fields but those of the key; what is empty or none is left out.
fn show_record(record: &Record) -> String {
    let pairs = |pairs: &Pairs| {
        pairs.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(",")
    };
    let revisions = |create, modified| format!("revisions {create}..{modified}");
    let mut parts = Vec::new();
    let mut part = |name: &str, value: String| {
        if !value.is_empty() {
            parts.push(format!("{name} {value}").trim_start().to_owned());
        }
    };
    let number = |value: Option<u64>| value.map(|v| v.to_string()).unwrap_or_default();
    match record {
        Record::Meta(meta) => part("", format!("{meta:?}")),
        Record::Namespace(n) => {
            part("description", n.description.clone());
            part("", revisions(n.create_revision, n.mod_revision));
        }
        Record::Service(s) => {
            part("protect", s.protect_threshold_percent.to_string());
            part("after", format!("{} ms", s.deregister_after_ms));
            part("policy", s.policy.clone());
            part("parameters", pairs(&s.policy_parameters));
            part("metadata", pairs(&s.metadata));
            part("check", s.health_check.as_ref().map(|c| format!("{c:?}")).unwrap_or_default());
            part("", revisions(s.create_revision, s.mod_revision));
        }
        Record::Instance(i) => {
            for Endpoint { name, host, port } in i.endpoints.iter() {
                part("", format!("{name}@{host}:{port}"));
            }
            part("weight", i.weight.to_string());
            part("zone", i.zone.to_string());
            part("metadata", pairs(&i.metadata));
            part("", format!("{:?}", i.health));
            part("", format!("{:?}", i.admin));
            part("reason", format!("{:?}", i.reason));
            part("hash_key", i.hash_key.to_string());
            part("session", number(i.session));
            part("orphaned_at", number(i.orphaned_at_ms.map(NonZeroU64::get)));
            part("critical_since", number(i.critical_since_ms));
            part("", revisions(i.create_revision, i.mod_revision));
            part("", format!("times {}..{}", i.created_at_ms, i.modified_at_ms));
        }
        Record::Session(s) => {
            part("ttl", format!("{} ms", s.ttl_ms));
            part("client", s.client.clone());
            part("opened_at", s.opened_at_ms.to_string());
        }
        Record::Reply(r) => {
            part("lowest", r.lowest_unacknowledged.to_string());
            part("", format!("[{}]", show_outcome(&r.outcome)));
        }
        Record::Member(m) => {
            part("store", m.store.map_or("unknown".to_owned(), |store| format!("{store:x}")));
            part("", if m.removed { "removed".to_owned() } else { String::new() });
        }
        Record::Removal(r) => part("at", r.revision.to_string()),
        other => center::show(other, &mut part),
    }
    parts.join("; ")
}

fn show_view(view: &ServiceView) -> String {
    let ServiceView { settings, instances, healthy } = view;
    let record = show_record(&Record::Service(settings.clone()));
    format!("{}: {record}; {healthy} of {instances} healthy", settings.name)
}
