//! The words of stories about configuration, counters, locks and transactions.

use super::*;

pub(super) fn parse(verb: &str, words: &mut Words, term: u64) -> Option<Op> {
    Some(match verb {
        "publish" => Op::PublishConfig(Box::new(Publication {
            name: item_name(&words.next()),
            content: content(words),
            labels: words.pairs("label"),
            keep: words.number("keep").map(|keep| keep as u32),
            author: words.text("author"),
            comment: words.text("comment"),
            expected_version: words.number("expect"),
            schema: words.number("schema").unwrap_or(0),
            gray: words.take("gray").map(|rule| gray(rule, words)),
        })),
        "delete-config" => Op::DeleteConfig(Box::new(ConfigDeletion {
            name: item_name(&words.next()),
            expected_version: words.number("expect"),
            author: words.text("author"),
            comment: words.text("comment"),
            purge: words.flag("purge"),
        })),
        "rollback" => Op::RollbackConfig(Box::new(ConfigRollback {
            name: item_name(&words.next()),
            version: words.next().parse().unwrap(),
            expected_version: words.number("expect"),
            author: words.text("author"),
            comment: words.text("comment"),
            schema: words.number("schema").unwrap_or(0),
        })),
        "put-schema" => Op::PutSchema(Box::new(SchemaPut {
            name: item_name(&words.next()),
            text: words.text("text"),
            checked_revision: words.number("checked").unwrap_or(0),
        })),
        "delete-schema" => Op::DeleteSchema { name: item_name(&words.next()) },
        "promote" | "abort" => Op::EndGray(Box::new(GrayDecision {
            name: item_name(&words.next()),
            rule: words.next(),
            version: words.number("version"),
            promote: verb == "promote",
            author: words.text("author"),
            comment: words.text("comment"),
            schema: words.number("schema").unwrap_or(0),
        })),
        "judge" => Op::JudgeGray {
            name: item_name(&words.next()),
            rule: words.next(),
            schema: words.number("schema").unwrap_or(0),
        },
        "report" => Op::ReportConfig {
            session: words.number("session").unwrap(),
            client: words.text("client"),
            items: words.all(running),
        },
        "add" => Op::AddCounter(Box::new(Addition {
            name: counter_name(words),
            kind: kind(words),
            delta: words.next().parse().unwrap(),
            floor: signed(words, "floor"),
            ceil: signed(words, "ceil"),
        })),
        "set" => Op::SetCounter(Box::new(Setting {
            name: counter_name(words),
            kind: kind(words),
            value: words.next().parse().unwrap(),
            expected: signed(words, "expect"),
        })),
        "reset" => {
            Op::ResetCounter { name: counter_name(words), expected: signed(words, "expect") }
        }
        "delete-counter" => Op::DeleteCounter { name: counter_name(words) },
        "acquire" => Op::AcquireLock(Box::new(Claim {
            lock: lock_name(words),
            holder: holder(words),
            value: words.text("value"),
            wait: words.flag("wait"),
        })),
        "release" => Op::ReleaseLock {
            lock: lock_name(words),
            by: match (words.number("token"), words.number("place")) {
                (Some(token), _) => Leaving::Token(token),
                (None, Some(ticket)) => Leaving::Place(ticket),
                (None, None) => Leaving::Holder(holder(words)),
            },
        },
        "update-lock" => Op::UpdateLock {
            lock: lock_name(words),
            holder: holder(words),
            value: words.text("value"),
        },
        "txn" => Op::Txn(Box::new(transaction(words, term))),
        other => return alarm::parse(other, words).or_else(|| saga::parse(other, words, term)),
    })
}

/// `when <compare> ; ... then <step> ; ... else <step> ; ...`
pub(super) fn transaction(words: &mut Words, term: u64) -> Txn {
    let mut txn = Txn { when: vec![], then: vec![], otherwise: vec![] };
    let mut part = String::new();
    for mut words in std::mem::take(&mut words.0).split(|word| word == ";").map(|words| {
        let mut parts = vec![];
        for word in words {
            match word.as_str() {
                "when" | "then" | "else" => parts.push(vec![word.clone()]),
                _ if parts.is_empty() => parts.push(vec![String::new(), word.clone()]),
                _ => parts.last_mut().unwrap().push(word.clone()),
            }
        }
        parts
    }) {
        for mut words in words.drain(..) {
            let begins = words.remove(0);
            if !begins.is_empty() {
                part = begins;
            }
            if words.is_empty() {
                continue;
            }
            let line = words.join(" ");
            let mut words = Words(words);
            match part.as_str() {
                "when" => txn.when.push(compare(&mut words)),
                "then" => txn.then.push(step(&mut words, term)),
                "else" => txn.otherwise.push(step(&mut words, term)),
                other => panic!("{other:?} begins no part of a transaction"),
            }
            words.finish(&line);
        }
    }
    txn
}

fn step(words: &mut Words, term: u64) -> Step {
    let verb = words.next();
    match verb.as_str() {
        "get" => Step::Get(record_name(words)),
        "range" => {
            let limit = words.number("limit").unwrap_or(100);
            Step::Range { scope: scope(words), limit }
        }
        _ => Step::Write(parse_command(&verb, words, term).unwrap().op),
    }
}

fn compare(words: &mut Words) -> Compare {
    let what = words.next();
    match what.as_str() {
        "exists" => Compare::Exists { record: record_name(words), exists: true },
        "absent" => Compare::Exists { record: record_name(words), exists: false },
        "created" => {
            let record = record_name(words);
            Compare::CreateRevision { record, is: relation(words), than: word(words) }
        }
        "modified" => {
            let record = record_name(words);
            Compare::ModRevision { record, is: relation(words), than: word(words) }
        }
        "version" => {
            let item = item_name(&words.next());
            Compare::Version { item, is: relation(words), than: word(words) }
        }
        "content" => {
            let item = item_name(&words.next());
            let equal = relation(words) == Relation::Equal;
            Compare::Content { item, equal, to: words.next().into_bytes().into() }
        }
        "counter" => {
            let counter = counter_name(words);
            Compare::Counter { counter, is: relation(words), than: word(words) }
        }
        "health" => {
            let instance = instance_name(&words.next());
            let equal = relation(words) == Relation::Equal;
            Compare::Health { instance, equal, to: words.health().unwrap() }
        }
        "token" => {
            let lock = lock_name(words);
            Compare::Token { lock, is: relation(words), than: word(words) }
        }
        "unchanged" => {
            let since = words.number("since").unwrap();
            Compare::Unchanged { scope: scope(words), since }
        }
        other => panic!("{other} is no compare"),
    }
}

fn relation(words: &mut Words) -> Relation {
    match words.next().as_str() {
        "=" => Relation::Equal,
        "!=" => Relation::NotEqual,
        "<" => Relation::Less,
        ">" => Relation::Greater,
        other => panic!("{other} is no relation"),
    }
}

fn word<T: std::str::FromStr>(words: &mut Words) -> T
where
    T::Err: std::fmt::Debug,
{
    words.next().parse().unwrap()
}

fn record_name(words: &mut Words) -> RecordName {
    match words.next().as_str() {
        "namespace" => RecordName::Namespace { name: words.next() },
        "service" => {
            let (namespace, name) = words.pair();
            RecordName::Service { namespace, name }
        }
        "instance" => RecordName::Instance(instance_name(&words.next())),
        "config" => RecordName::Config(item_name(&words.next())),
        "counter" => RecordName::Counter(counter_name(words)),
        "lock" => RecordName::Lock(lock_name(words)),
        "session" => RecordName::Session { id: word(words) },
        other => panic!("{other} is no record with a name"),
    }
}

/// `<class> <namespace> [first [second]]`; `*` is any, `x*` how it begins.
fn scope(words: &mut Words) -> Scope {
    let class = match words.next().as_str() {
        "services" => Class::Service,
        "config" => Class::Config,
        "counters" => Class::Counter,
        "locks" => Class::Lock,
        "alarms" => Class::Alarm,
        "sagas" => Class::Saga,
        other => panic!("{other} is no class"),
    };
    let namespace = words.next();
    let mut part = || match words.0.is_empty() {
        true => Match::Any,
        false => match words.next() {
            any if any == "*" => Match::Any,
            word => match word.strip_suffix('*') {
                Some(prefix) => Match::Prefix(prefix.to_owned()),
                None => Match::Exact(word),
            },
        },
    };
    Scope { class, namespace, first: part(), second: part() }
}

fn item_name(text: &str) -> ItemName {
    let InstanceName { namespace, service, id } = instance_name(text);
    ItemName { namespace, group: service, key: id }
}

fn counter_name(words: &mut Words) -> CounterName {
    let (namespace, name) = words.pair();
    CounterName { namespace, name, labels: words.pairs("label").unwrap_or_default() }
}

pub(super) fn lock_name(words: &mut Words) -> LockName {
    let (namespace, lock) = words.pair();
    LockName { namespace, lock }
}

fn holder(words: &mut Words) -> Holder {
    Holder { session: words.number("session").unwrap(), name: words.text("holder") }
}

fn signed(words: &mut Words, name: &str) -> Option<i64> {
    words.take(name).map(|text| text.parse().unwrap())
}

fn kind(words: &mut Words) -> Option<CounterKind> {
    Some(match &*words.take("kind")? {
        "counter" => CounterKind::Counter,
        "gauge" => CounterKind::Gauge,
        other => panic!("{other} is no kind"),
    })
}

fn content(words: &mut Words) -> Content {
    let format = match words.text("format").as_str() {
        "" | "text" => Format::Text,
        "json" => Format::Json,
        other => panic!("{other} is no format of a story"),
    };
    let text = words.text("content");
    Content { format, bytes: text.into_bytes().into() }
}

/// `gray=RULE priority=1 picks=a:1 | clients=a,b | share=100`, and a gate.
fn gray(rule: String, words: &mut Words) -> GrayTerms {
    let picks = match (words.take("clients"), words.number("share")) {
        (Some(clients), _) => {
            let clients = clients.split(',').filter(|client| !client.is_empty());
            Picks::Clients(clients.map(String::from).collect())
        }
        (None, Some(share)) => Picks::Share { basis_points: share as u32 },
        (None, None) => Picks::Labels(words.pairs("picks").unwrap_or_default()),
    };
    let priority = words.number("priority").unwrap_or(0) as u32;
    let gate = words.take("gate").map(|measure| Gate {
        measure: match measure.as_str() {
            "unhealthy" => Measure::Unhealthy,
            name => {
                let labels = words.pairs("gate-label").unwrap_or_default();
                Measure::Counter { name: name.into(), labels, base: 0 }
            }
        },
        bound: words.number("bound").unwrap_or(0),
        for_ms: words.number("for").unwrap_or(10_000),
        promote: words.flag("then-promote"),
    });
    GrayTerms { rule, priority, picks, gate }
}

/// `namespace/group/key@version`, and `@rule` for a gray release.
fn running(word: &str) -> Running {
    let parts: Vec<&str> = word.split('@').collect();
    let (name, version) = (item_name(parts[0]), parts[1].parse().unwrap());
    Running { name, version, rule: parts.get(2).copied().unwrap_or_default().into() }
}

impl Teller {
    /// True when it was one of these.
    pub(super) fn look_at(&mut self, verb: &str, words: &mut Words, out: &mut String) -> bool {
        match verb {
            "look" => {
                let txn = transaction(words, self.term);
                writeln!(out, "{}", show_result(&self.state.look(&txn))).unwrap();
            }
            "windows" => {
                let CounterName { namespace, name, labels } = counter_name(words);
                let counter = self.state.counter(&namespace, &name, &labels).unwrap();
                for slots in [1, 6, 30, 90] {
                    let sum = counter.sum(slots, self.at_ms);
                    let reach_ms = window_ms(slots, self.at_ms);
                    writeln!(out, "{sum} in {slots} slots, {reach_ms} ms").unwrap();
                }
            }
            "lock" => {
                let LockName { namespace, lock } = lock_name(words);
                for request in self.state.lock(&namespace, &lock) {
                    let record = show_record(&Record::Lock(request.clone()));
                    writeln!(out, "{}: {record}", request.ticket).unwrap();
                }
                writeln!(out, "end").unwrap();
            }
            "due" => {
                for (item, gray, verdict) in due_gates(&self.state, self.at_ms) {
                    let name = show_key(&item.key());
                    writeln!(out, "{name} {}: {verdict:?}", gray.rule).unwrap();
                }
                writeln!(out, "end").unwrap();
            }
            "pick" => {
                let name = item_name(&words.next());
                let ItemName { namespace, group, key } = &name;
                let labels = words.pairs("label").unwrap_or_default();
                let client = ConfigClient { id: words.text("client"), labels };
                let item = self.state.config_item(namespace, group, key).unwrap();
                match item.pick(&client) {
                    Some(gray) => {
                        writeln!(out, "{}: v{}", gray.rule, gray.release.version).unwrap();
                    }
                    None => writeln!(out, "the current one, v{}", item.version()).unwrap(),
                }
            }
            other => {
                return self.look_at_alarms(other, words, out)
                    || self.look_at_sagas(other, words, out);
            }
        }
        true
    }
}

pub(super) fn show_result(result: &Result<Reply, Refusal>) -> String {
    let found = |record: &Record| format!("[{}]", show_record(record));
    match result {
        Ok(Reply::InstanceUpdated(instance)) => {
            let record = show_record(&Record::Instance(instance.clone()));
            format!("InstanceUpdated {record}")
        }
        Ok(Reply::Guarded { outcome, txn }) => {
            let txn = txn.as_ref().map(|txn| format!(": {}", show_result(&Ok(Reply::clone(txn)))));
            format!("{outcome:?}{}", txn.unwrap_or_default())
        }
        Ok(Reply::Txn { succeeded, replies }) => {
            let mut shown = format!("Txn {}", if *succeeded { "then" } else { "else" });
            for reply in replies {
                shown.push_str("; ");
                shown.push_str(&match reply {
                    StepReply::Written(reply) => show_result(&Ok(reply.clone())),
                    StepReply::Found(None) => "nothing".into(),
                    StepReply::Found(Some(record)) => found(record),
                    StepReply::Range { records, more } => {
                        let records: Vec<_> = records.iter().map(found).collect();
                        format!("{{{}}} more: {more}", records.join(", "))
                    }
                });
            }
            shown
        }
        Ok(reply) => format!("{reply:?}"),
        Err(refusal) => format!("refused: {refusal:?}"),
    }
}

pub(super) fn show(record: &Record, part: &mut dyn FnMut(&str, String)) {
    let pairs = |pairs: &Pairs| {
        pairs.iter().map(|(key, value)| format!("{key}:{value}")).collect::<Vec<_>>().join(",")
    };
    let times = |created, modified| format!("times {created}..{modified}");
    let revisions = |create, modified| format!("revisions {create}..{modified}");
    match record {
        Record::Config(c) => {
            part("", show_release(&c.current));
            for gray in &c.gray {
                let Gray { rule, priority, picks, gate, release, since_ms } = &**gray;
                let gate = gate.as_ref().map_or(String::new(), |gate| format!(" {gate:?}"));
                let release = show_release(release);
                part(
                    "gray",
                    format!("{rule} {priority} {picks:?}{gate} since {since_ms} ({release})"),
                );
            }
            part("labels", pairs(&c.labels));
            part("keep", c.keep.to_string());
            part("last", c.last_version.to_string());
            part("", revisions(c.create_revision, c.mod_revision));
            part("", times(c.created_at_ms, c.modified_at_ms));
        }
        Record::Release(r) => part("", show_release(r)),
        Record::Schema(s) => {
            part("", format!("{:?}", s.text));
            part("", revisions(s.create_revision, s.mod_revision));
        }
        Record::Report(r) => {
            part("client", r.client.clone());
            part("", format!("v{}", r.version));
            part("rule", r.rule.clone());
            part("since", r.since_ms.to_string());
            part("lost_at", r.lost_at_ms.map(|v| v.to_string()).unwrap_or_default());
        }
        Record::Counter(c) => {
            part("", format!("{:?} {}", c.kind, c.value));
            let slots: Vec<_> = c.past.iter().chain([&c.open]).collect();
            let slots = slots.iter().map(|slot| format!("{}:{:+}", slot.number, slot.sum));
            part("slots", slots.collect::<Vec<_>>().join(","));
            part("", revisions(c.create_revision, c.mod_revision));
            part("", times(c.created_at_ms, c.modified_at_ms));
        }
        Record::Lock(l) => {
            part("session", l.session.to_string());
            part("holder", l.holder.clone());
            part("value", l.value.clone());
            match (l.token, l.acquired_at_ms) {
                (Some(token), Some(at_ms)) => part("token", format!("{token} since {at_ms}")),
                (None, None) => part("", "waits".into()),
                (token, at_ms) => panic!("{token:?} at {at_ms:?}"),
            }
            part("requested_at", l.requested_at_ms.to_string());
            part("modified", l.mod_revision.to_string());
        }
        Record::Alarm(a) => alarm::show(a, part),
        Record::Saga(s) => saga::show(s, part),
        other => panic!("{other:?} is shown elsewhere"),
    }
}

fn show_release(r: &Release) -> String {
    let content = match &r.content {
        Some(Content { format: Format::Text, bytes }) => format!(" {bytes:?}"),
        Some(Content { format, bytes }) => format!(" {format:?} {bytes:?}"),
        None => String::new(),
    };
    let said = |name: &str, text: &str| match text {
        "" => String::new(),
        text => format!(" {name} {text:?}"),
    };
    let (author, comment) = (said("by", &r.author), said("saying", &r.comment));
    let end = r
        .end
        .as_ref()
        .map_or(String::new(), |end| format!(" {:?} at {} by {:?}", end.how, end.at_ms, end.by));
    let Release { version, revision, at_ms, origin, .. } = r;
    format!("v{version} {origin:?}{content}{author}{comment} at {revision}, {at_ms} ms{end}")
}
