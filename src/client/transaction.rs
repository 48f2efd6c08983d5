//! Interactive optimistic transactions: reads from one revision, buffered writes, one commit that is
//! refused when anything read has changed, and then another attempt.
//!
//! Invariant: all values that one attempt has been given are those of the revision `revision`. Each new
//! read is sent with compares on everything read before, so that it answers only while they hold; it
//! moves the revision of all of them forward. So an attempt never sees a state that never was, and a
//! transaction that commits is serializable: at the revision of its commit everything that it read was as
//! it read it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message as _;
use tokio::time::{Instant, sleep};

use super::connection::Client;
use super::remote::lock;
use super::session::Session;
use super::txn::{FromFound, Range, Record, compare, unchanged};
use crate::error::Error;
use crate::limits;
use crate::proto::v1;
use crate::proto::v1::compare::To;
use crate::proto::v1::found_record::Record as Found;
use crate::proto::v1::record_name::Record as Name;
use crate::proto::v1::scope::Kind;
use crate::proto::v1::txn_result::Result as Answer;
use crate::proto::v1::txn_step::Step;

/// How a transaction is tried.
#[derive(Debug, Clone)]
pub struct TransactionOptions {
    /// With a session the commit takes place exactly once: an answer that is lost is asked for again.
    /// Without one it is never repeated when its outcome is unknown; the error then says so.
    pub session: Option<Session>,
    /// How often it is tried; at least 1.
    pub attempts: u32,
    /// After a conflict, but not after the first, it waits for a random time of at most the first,
    /// doubled each time up to the second.
    pub backoff_min: Duration,
    pub backoff_max: Duration,
}

impl Default for TransactionOptions {
    fn default() -> Self {
        TransactionOptions {
            session: None,
            attempts: limits::TRANSACTION_ATTEMPTS,
            backoff_min: limits::TRANSACTION_BACKOFF_MIN,
            backoff_max: limits::TRANSACTION_BACKOFF_MAX,
        }
    }
}

/// A transaction that took place.
#[derive(Debug, Clone, PartialEq)]
pub struct Committed<T> {
    /// What the closure returned.
    pub value: T,
    /// Of the commit; of a transaction that wrote nothing, the one that everything was read at (0 = it
    /// read nothing either).
    pub revision: u64,
    /// One for each write, in order.
    pub results: Vec<v1::TxnResult>,
    /// How often it was tried.
    pub attempts: u32,
}

/// One attempt of a transaction, as its closure sees it. Clones are the same attempt; it is over when the
/// closure returns, and what is written to it later is not heard.
#[derive(Clone)]
pub struct Transaction {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    state: Mutex<State>,
    /// One read at a time: each is guarded by those before it.
    reading: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Of all that is known; 0 = nothing is.
    revision: u64,
    known: Known,
    writes: Vec<v1::TxnStep>,
    /// What had changed when a read failed over it.
    conflict: Option<String>,
    over: bool,
}

type Known = BTreeMap<Vec<u8>, Entry>;

/// What is known of a record or a range.
#[derive(Debug, Clone)]
struct Entry {
    what: What,
    value: Value,
    /// The closure has seen it in this attempt: the commit depends on it.
    used: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum What {
    Record(v1::RecordName),
    Range(v1::Scope),
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Record(Option<Box<Found>>),
    /// Without its namespace nothing is remembered of what was in a scope.
    Range {
        records: Vec<v1::FoundRecord>,
        in_namespace: bool,
    },
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = lock(&self.shared.state);
        f.debug_struct("Transaction")
            .field("revision", &state.revision)
            .field("known", &state.known.len())
            .field("writes", &state.writes.len())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Runs the closure and commits what it wrote, unless something that it read has changed meanwhile:
    /// then it is run again with fresh values, at most [`TransactionOptions::attempts`] times, after
    /// which the error is [`Error::Conflict`]. So the closure should have no effects but through the
    /// transaction. An error of its own ends the transaction, and nothing takes place.
    ///
    /// ```no_run
    /// use quorate::client::TransactionOptions;
    /// use quorate::client::txn::counter;
    /// use quorate::error::Error;
    /// # async fn example(client: quorate::client::Client) -> Result<(), Error> {
    /// let [from, to] = ["acct_alice", "acct_bob"].map(|name| counter("default", name));
    /// let done = client
    ///     .transaction(TransactionOptions::default(), |t| {
    ///         let (from, to) = (from.clone(), to.clone());
    ///         async move {
    ///             let balance = t.get(&from).await?.map_or(0, |counter| counter.value);
    ///             let amount = balance / 2;
    ///             t.write(from.set(balance - amount));
    ///             t.write(to.add(amount));
    ///             Ok::<_, Error>(amount)
    ///         }
    ///     })
    ///     .await?;
    /// println!("moved {} at revision {}", done.value, done.revision);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn transaction<T, E, F, Fut>(
        &self,
        options: TransactionOptions,
        mut body: F,
    ) -> Result<Committed<T>, E>
    where
        F: FnMut(Transaction) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        if options.attempts == 0 {
            return Err(Error::invalid("attempts", "0", "1 or more").into());
        }
        let mut known = (0, Known::new());
        let mut what = String::new();
        for attempt in 1..=options.attempts {
            let state = State { revision: known.0, known: known.1, ..State::default() };
            let transaction = Transaction {
                shared: Arc::new(Shared {
                    client: self.clone(),
                    state: Mutex::new(state),
                    reading: tokio::sync::Mutex::default(),
                }),
            };
            let begun = Instant::now();
            let outcome = body(transaction.clone()).await;
            let mut state = transaction.close();
            // An attempt that could not read on proves nothing, whatever it returned.
            if state.conflict.is_none() {
                let value = outcome?;
                match self.commit(&mut state, options.session.as_ref()).await? {
                    Some((revision, results)) => {
                        return Ok(Committed { value, revision, results, attempts: attempt });
                    }
                    None => assert!(state.conflict.is_some(), "a refused commit is a conflict"),
                }
            }
            what = state.conflict.take().unwrap_or_default();
            tracing::debug!(attempt, what, "transaction conflicted");
            known = (state.revision, state.known);
            if attempt < options.attempts && attempt > 1 {
                let pause = self.pause(&options, attempt);
                sleep(pause).await;
                // What is older than an attempt takes would only conflict again.
                if pause > begun.elapsed() / 2 {
                    known = self.refresh(known).await;
                }
            }
        }
        Err(Error::Conflict { attempts: options.attempts, what }.into())
    }

    fn pause(&self, options: &TransactionOptions, attempt: u32) -> Duration {
        let doublings = (attempt - 2).min(16);
        let ceiling = (options.backoff_min * (1 << doublings)).min(options.backoff_max);
        let nanos = u64::try_from(ceiling.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.random() % nanos.saturating_add(1).max(1))
    }

    /// Commits; None = a conflict, and the state knows fresh values.
    async fn commit(
        &self,
        state: &mut State,
        session: Option<&Session>,
    ) -> Result<Option<(u64, Vec<v1::TxnResult>)>, Error> {
        if state.writes.is_empty() {
            return Ok(Some((state.revision, Vec::new())));
        }
        let when = state.guards();
        let wanted: Vec<What> = state.used().map(|entry| entry.what.clone()).collect();
        let mut or_else = steps(&wanted);
        if state.is_large() || or_else.len() > limits::TXN_STEPS {
            or_else.clear();
        }
        let mut request = v1::TxnRequest {
            when,
            then: std::mem::take(&mut state.writes),
            or_else,
            ..Default::default()
        };
        let answer = match self.txn(request.clone(), session).await {
            // What is read afresh has become too long. Nothing took place.
            Err(Error::LimitReached { .. }) if !request.or_else.is_empty() => {
                request.or_else.clear();
                self.txn(request.clone(), session).await?
            }
            answer => answer?,
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        if answer.succeeded {
            return Ok(Some((revision, answer.results)));
        }
        let fresh = !request.or_else.is_empty();
        state.take_fresh(revision, &wanted, fresh.then_some(answer.results))?;
        Ok(None)
    }

    /// The same records as they are now; nothing when that cannot be learned.
    async fn refresh(&self, (_, known): (u64, Known)) -> (u64, Known) {
        let wanted: Vec<What> = known.into_values().map(|entry| entry.what).collect();
        if wanted.is_empty() {
            return (0, Known::new());
        }
        let request = v1::TxnRequest { then: steps(&wanted), ..Default::default() };
        let answer = self.txn(request, None).await;
        let fresh = answer.and_then(|answer| {
            let known = known_of(&wanted, answer.results)?;
            Ok((answer.header.map_or(0, |header| header.revision), known))
        });
        fresh.unwrap_or_default()
    }
}

impl Transaction {
    /// A record as it is at the revision of this attempt; None = it does not exist. Writes of this
    /// transaction are not seen: they take place with its commit.
    ///
    /// An error [`Error::Conflict`] means that something read before has changed: the closure should
    /// return with it, for it is run again in any case.
    pub async fn get<R: Record>(&self, record: &R) -> Result<Option<R::Value>, Error> {
        match self.read(What::Record(record.record_name())).await? {
            Value::Record(None) => Ok(None),
            Value::Record(Some(found)) => match R::Value::from_found(*found) {
                Some(value) => Ok(Some(value)),
                None => Err(strange()),
            },
            Value::Range { .. } => Err(strange()),
        }
    }

    /// All records of a range at the revision of this attempt, at most 10 000. The commit is refused
    /// when any was made, changed or removed since; it is careful, and takes any removal of the same kind
    /// in the namespace for one.
    pub async fn range<V: FromFound>(&self, range: &Range<V>) -> Result<Vec<V>, Error> {
        let Value::Range { records, .. } = self.read(What::Range(range.scope().clone())).await?
        else {
            return Err(strange());
        };
        let values = records.into_iter().map(|found| V::from_found(found.record?));
        values.collect::<Option<_>>().ok_or_else(strange)
    }

    /// A step of the commit, after those before it. At most 128.
    pub fn write(&self, step: impl Into<v1::TxnStep>) {
        lock(&self.shared.state).writes.push(step.into());
    }

    /// The revision that everything read so far is from; 0 = nothing was read.
    pub fn revision(&self) -> u64 {
        lock(&self.shared.state).revision
    }

    fn close(&self) -> State {
        let mut state = lock(&self.shared.state);
        let closed = State { over: true, ..State::default() };
        std::mem::replace(&mut state, closed)
    }

    async fn read(&self, what: What) -> Result<Value, Error> {
        let _one = self.shared.reading.lock().await;
        let key = what.key();
        let (when, used, unused) = {
            let mut state = lock(&self.shared.state);
            if state.over {
                return Err(Error::invalid("transaction", "one that is over", "a running one"));
            }
            if let Some(what) = &state.conflict {
                return Err(Error::Conflict { attempts: 1, what: what.clone() });
            }
            if let Some(entry) = state.known.get_mut(&key) {
                entry.used = true;
                return Ok(entry.value.clone());
            }
            let used: Vec<What> = state.used().map(|entry| entry.what.clone()).collect();
            if used.len() >= limits::TXN_COMPARES {
                let allowed = format!("{} records and ranges", limits::TXN_COMPARES);
                return Err(Error::invalid("reads", "more", allowed));
            }
            // What an earlier attempt has read will likely be wanted too.
            let others = || state.known.values().filter(|entry| !entry.used);
            let unused: Vec<What> = match state.is_large() {
                true => Vec::new(),
                false => others().map(|entry| entry.what.clone()).collect(),
            };
            (state.guards(), (used, state.is_large()), unused)
        };
        let (used, large) = used;
        let mut wanted = vec![what];
        wanted.extend(unused);
        if steps(&wanted).len() > limits::TXN_STEPS {
            wanted.truncate(1);
        }
        let mut all: Vec<What> = used.into_iter().chain(wanted.clone()).collect();
        if large || steps(&all).len() > limits::TXN_STEPS {
            all.clear();
        }
        if when.is_empty() {
            all.clear();
        }
        let mut request = v1::TxnRequest {
            when,
            then: steps(&wanted),
            or_else: steps(&all),
            ..Default::default()
        };
        let client = &self.shared.client;
        let answer = match client.txn(request.clone(), None).await {
            // Perhaps only with what was not asked for.
            Err(Error::LimitReached { .. }) if wanted.len() > 1 || !all.is_empty() => {
                wanted.truncate(1);
                all.clear();
                request.then = steps(&wanted);
                request.or_else.clear();
                client.txn(request, None).await?
            }
            answer => answer?,
        };
        let revision = answer.header.map_or(0, |header| header.revision);
        let mut state = lock(&self.shared.state);
        if state.over {
            return Err(Error::invalid("transaction", "one that is over", "a running one"));
        }
        if !answer.succeeded {
            let fresh = !all.is_empty();
            let what = state.take_fresh(revision, &all, fresh.then_some(answer.results))?;
            return Err(Error::Conflict { attempts: 1, what });
        }
        state.known.retain(|_, entry| entry.used);
        state.revision = revision;
        state.known.extend(known_of(&wanted, answer.results)?);
        let entry = state.known.get_mut(&key).ok_or_else(strange)?;
        entry.used = true;
        Ok(entry.value.clone())
    }
}

impl State {
    fn used(&self) -> impl Iterator<Item = &Entry> {
        self.known.values().filter(|entry| entry.used)
    }

    /// Hold as long as nothing has changed that the closure has seen.
    fn guards(&self) -> Vec<v1::Compare> {
        self.used().map(|entry| entry.guard(self.revision)).collect()
    }

    /// True when what is known is too long to be read on the side.
    fn is_large(&self) -> bool {
        let bytes = |entry: &Entry| match &entry.value {
            Value::Record(None) => 0,
            Value::Record(Some(found)) => found.encoded_len(),
            Value::Range { records, .. } => records.iter().map(|it| it.encoded_len()).sum(),
        };
        self.known.values().map(bytes).sum::<usize>() > limits::TRANSACTION_FRESH_BYTES
    }

    /// Ends the attempt over a conflict, of which it says what it was.
    fn take_fresh(
        &mut self,
        revision: u64,
        wanted: &[What],
        results: Option<Vec<v1::TxnResult>>,
    ) -> Result<String, Error> {
        let fresh = match results {
            None => Known::new(),
            Some(results) => known_of(wanted, results)?,
        };
        let changed = self.used().filter(|entry| {
            fresh.get(&entry.what.key()).is_some_and(|now| now.value != entry.value)
        });
        let mut changed: Vec<String> = changed.map(|entry| entry.what.describe()).collect();
        if changed.is_empty() {
            // A range counts removals next to it; or nothing was read afresh.
            changed = self.used().map(|entry| entry.what.describe()).collect();
        }
        changed.truncate(DESCRIBED);
        let what = changed.join(", ");
        self.conflict = Some(what.clone());
        self.revision = if fresh.is_empty() { 0 } else { revision };
        self.known = fresh;
        Ok(what)
    }
}

/// Records that an error names at most.
const DESCRIBED: usize = 8;

impl Entry {
    fn guard(&self, revision: u64) -> v1::Compare {
        let equal = v1::Relation::Equal;
        match (&self.what, &self.value) {
            // A session does not change.
            (What::Record(name @ v1::RecordName { record: Some(Name::Session(_)) }), value) => {
                let exists = !matches!(value, Value::Record(None));
                compare(name.clone(), equal, To::Exists(exists))
            }
            (What::Record(name), Value::Record(found)) => {
                let revision = found.as_deref().map_or(0, mod_revision);
                compare(name.clone(), equal, To::ModRevision(revision))
            }
            (What::Range(scope), Value::Range { in_namespace: false, .. }) => {
                compare(namespace_of(scope), equal, To::Exists(false))
            }
            (What::Range(scope), Value::Range { .. }) => unchanged(scope.clone(), revision),
            (What::Record(_), Value::Range { .. }) | (What::Range(_), Value::Record(_)) => {
                unreachable!("known_of gives each its kind of value")
            }
        }
    }
}

impl What {
    /// Equal for what has equal names.
    fn key(&self) -> Vec<u8> {
        match self {
            What::Record(name) => [&[0], name.encode_to_vec().as_slice()].concat(),
            What::Range(scope) => [&[1], scope.encode_to_vec().as_slice()].concat(),
        }
    }

    fn steps(&self) -> Vec<v1::TxnStep> {
        match self {
            What::Record(name) => vec![Step::Get(name.clone()).into()],
            What::Range(scope) => {
                let limit = limits::PAGE as u32;
                let range = v1::TxnRange { scope: Some(scope.clone()), limit };
                vec![range.into(), Step::Get(namespace_of(scope)).into()]
            }
        }
    }

    fn describe(&self) -> String {
        match self {
            What::Record(name) => describe(name),
            What::Range(v1::Scope { namespace, kind }) => {
                let kind = match kind {
                    Some(Kind::Services(_)) => "services",
                    Some(Kind::Config(_)) => "config items",
                    Some(Kind::Counters(_)) => "counters",
                    Some(Kind::Locks(_)) => "locks",
                    None => "records",
                };
                format!("{kind} of namespace {}", or_default(namespace))
            }
        }
    }
}

/// The name of a record as people write it.
fn describe(name: &v1::RecordName) -> String {
    match &name.record {
        Some(Name::Namespace(name)) => format!("namespace {}", or_default(name)),
        Some(Name::Service(v1::ServiceName { namespace, service })) => {
            format!("service {}/{service}", or_default(namespace))
        }
        Some(Name::Instance(v1::InstanceName { namespace, service, id })) => {
            format!("instance {}/{service}/{id}", or_default(namespace))
        }
        Some(Name::Config(v1::ItemName { namespace, group, key })) => {
            format!("config {}/{}/{key}", or_default(namespace), or_default(group))
        }
        Some(Name::Counter(v1::CounterName { namespace, name, labels })) => {
            let labels: Vec<_> = labels.iter().map(|(k, v)| format!("{k}={v:?}")).collect();
            let labels = match labels.is_empty() {
                true => String::new(),
                false => format!("{{{}}}", labels.join(",")),
            };
            format!("counter {}/{name}{labels}", or_default(namespace))
        }
        Some(Name::Lock(v1::LockName { namespace, lock })) => {
            format!("lock {}/{lock}", or_default(namespace))
        }
        Some(Name::Session(id)) => format!("session {id}"),
        None => "a record".to_owned(),
    }
}

fn or_default(name: &str) -> &str {
    if name.is_empty() { "default" } else { name }
}

fn namespace_of(scope: &v1::Scope) -> v1::RecordName {
    v1::RecordName { record: Some(Name::Namespace(scope.namespace.clone())) }
}

fn steps(wanted: &[What]) -> Vec<v1::TxnStep> {
    wanted.iter().flat_map(What::steps).collect()
}

/// What the steps of `wanted` have found.
fn known_of(wanted: &[What], results: Vec<v1::TxnResult>) -> Result<Known, Error> {
    let mut results = results.into_iter().map(|result| result.result);
    let mut known = Known::new();
    for what in wanted {
        let value = match (what, results.next().flatten()) {
            (What::Record(_), Some(Answer::Get(found))) => {
                Value::Record(found.record.map(Box::new))
            }
            (What::Range(_), Some(Answer::Range(v1::FoundRecords { records, more }))) => {
                if more {
                    let limit = "records of a range".to_owned();
                    return Err(Error::LimitReached { limit, allowed: limits::PAGE as u64 });
                }
                let Some(Answer::Get(namespace)) = results.next().flatten() else {
                    return Err(strange());
                };
                Value::Range { records, in_namespace: namespace.record.is_some() }
            }
            _ => return Err(strange()),
        };
        known.insert(what.key(), Entry { what: what.clone(), value, used: false });
    }
    Ok(known)
}

fn mod_revision(found: &Found) -> u64 {
    match found {
        Found::Namespace(it) => it.mod_revision,
        Found::Service(it) => it.mod_revision,
        Found::Instance(it) => it.mod_revision,
        Found::Config(it) => it.mod_revision,
        Found::Counter(it) => it.mod_revision,
        Found::Lock(it) => it.mod_revision,
        // Has none, see `Entry::guard`.
        Found::Session(_) => 0,
    }
}

fn strange() -> Error {
    Error::internal("a transaction was answered with records of another kind than it asked for")
}
