//! The workers: tasks that call one after the other, or one task per stream that keeps a window of
//! calls under way.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::histogram::Histogram;
use super::phase::{Phase, Shared};
use super::{BenchArgs, Way, Workload, notice, saga, watch};
use crate::cli::Error;
use crate::client::{
    Call, Client, ConfigCache, ConfigCacheOptions, Counter, CounterOptions, Counters, Options,
    Pipeline, Session, SessionOptions, Submission,
};
use crate::error;
use crate::limits;
use crate::proto::v1;

/// Instances of one service, and of one that is discovered as a whole.
const INSTANCES: u32 = 1_000;
const DISCOVERED: u32 = 100;
/// How long a session lives that `heartbeat` keeps alive.
const SESSION_TTL_MS: u64 = *limits::SESSION_TTL_MS.end();
/// Unary clients that share a session: its window must not hold them up.
const CLIENTS_OF_SESSION: u32 = (limits::SESSION_IN_FLIGHT / 4) as u32;
/// Calls under way while filling and cleaning up.
const FILL_WINDOW: usize = 1_024;
/// Calls within the client that are timed together: one takes no longer than the clock.
const LOCAL_CALLS: usize = 256;
/// How long the last sums of counters may take to arrive.
const LOCAL_CLOSE: Duration = Duration::from_secs(10);

/// What is called.
#[derive(Debug)]
pub struct Plan {
    args: BenchArgs,
    namespace: String,
    filler: String,
    consistency: v1::Consistency,
    /// What `heartbeat` keeps alive, by key.
    sessions: OnceLock<Vec<u64>>,
}

impl Plan {
    pub fn new(args: &BenchArgs, namespace: String) -> Plan {
        let consistency = match args.stale {
            true => v1::Consistency::Stale,
            false => v1::Consistency::Linearizable,
        };
        Plan {
            args: args.clone(),
            namespace,
            filler: "v".repeat(args.size as usize),
            consistency,
            sessions: OnceLock::new(),
        }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    pub fn keys(&self) -> u32 {
        self.args.keys
    }

    /// The clients of one thread.
    pub fn share_of_clients(&self, thread: u32) -> std::ops::Range<u32> {
        self.share(self.args.clients, thread)
    }

    pub fn service(&self, key: u32) -> String {
        let size = match self.args.workload {
            Workload::Discover => DISCOVERED,
            _ => INSTANCES,
        };
        format!("{}-{}", self.args.service, key / size)
    }

    fn register(&self, key: u32, change: u64) -> v1::RegisterRequest {
        self.instance(key, change).into()
    }

    /// `change` makes every value another one.
    pub fn instance(&self, key: u32, change: u64) -> v1::Instance {
        let mut value = format!("{change:016x}");
        value.push_str(&self.filler[16..]);
        let others =
            (1..self.args.pairs).map(|pair| (format!("pair-{pair}"), format!("{key:016}")));
        let metadata = others.chain([("value".to_owned(), value)]).collect();
        v1::Instance {
            namespace: self.namespace.clone(),
            service: self.service(key),
            id: format!("i{key}"),
            endpoints: vec![v1::Endpoint {
                name: String::new(),
                host: "192.0.2.1".to_owned(),
                port: 1 + key % 65_535,
            }],
            metadata,
            ..Default::default()
        }
    }

    fn get(&self, key: u32) -> v1::GetInstanceRequest {
        v1::GetInstanceRequest {
            namespace: self.namespace.clone(),
            service: self.service(key),
            id: format!("i{key}"),
            consistency: self.consistency.into(),
        }
    }

    fn discover(&self, key: u32) -> v1::ListInstancesRequest {
        v1::ListInstancesRequest {
            namespace: self.namespace.clone(),
            service: self.service(key),
            consistency: self.consistency.into(),
            ..Default::default()
        }
    }

    fn keep_alive(&self, key: u32) -> v1::KeepAliveRequest {
        let sessions = self.sessions.get().map_or(&[][..], Vec::as_slice);
        v1::KeepAliveRequest { session: sessions.get(key as usize).copied().unwrap_or(0) }
    }

    pub fn deregister(&self, key: u32) -> v1::DeregisterRequest {
        v1::DeregisterRequest {
            namespace: self.namespace.clone(),
            service: self.service(key),
            id: format!("i{key}"),
            ..Default::default()
        }
    }

    fn publish(&self, key: u32, change: u64) -> v1::PublishConfigRequest {
        let mut content = format!("{change:016x}");
        content.push_str(&self.filler[16..]);
        v1::PublishConfigRequest {
            namespace: self.namespace.clone(),
            group: self.args.service.clone(),
            key: format!("i{key}"),
            content: content.into_bytes(),
            ..Default::default()
        }
    }

    fn count(&self, key: u32) -> v1::AddCounterRequest {
        v1::AddCounterRequest {
            namespace: self.namespace.clone(),
            name: format!("{}_count", self.args.service),
            labels: BTreeMap::from([("key".to_owned(), key.to_string())]),
            delta: 1,
            ..Default::default()
        }
    }

    /// Publishes an item, adds to two counters and reads one of them.
    fn txn(&self, key: u32, change: u64) -> v1::TxnRequest {
        use v1::txn_step::Step;
        let v1::AddCounterRequest { namespace, name, labels, .. } = self.count(key);
        let counter = v1::CounterName { namespace, name, labels };
        let read = v1::RecordName { record: Some(v1::record_name::Record::Counter(counter)) };
        let steps = [
            Step::PublishConfig(self.publish(key, change)),
            Step::AddCounter(self.count(key)),
            Step::AddCounter(self.count((key + 1) % self.args.keys)),
            Step::Get(read),
        ];
        let then = steps.into_iter().map(|step| v1::TxnStep { step: Some(step) }).collect();
        v1::TxnRequest { then, ..Default::default() }
    }

    /// What is there before the measurement: a call that makes it for each key.
    fn filling(&self) -> Option<fn(&Plan, u32) -> Call> {
        match self.args.workload {
            Workload::Register
            | Workload::Get
            | Workload::Discover
            | Workload::StreamRegister
            | Workload::StreamGet
            | Workload::Mix
            | Workload::Watch
            | Workload::Deregister => Some(|plan, key| plan.register(key, 0).into()),
            Workload::ConfigCache => Some(|plan, key| plan.publish(key, 0).into()),
            Workload::StreamPublish
            | Workload::Count
            | Workload::StreamCount
            | Workload::CountLocal
            | Workload::Txn
            | Workload::Heartbeat
            | Workload::StreamHeartbeat
            | Workload::Saga => None,
        }
    }

    /// How many watches share a connection.
    pub fn watches_of_connection(&self) -> usize {
        self.args.clients.div_ceil(self.args.streams) as usize
    }

    /// The part of `all` workers that thread number `thread` runs.
    fn share(&self, all: u32, thread: u32) -> std::ops::Range<u32> {
        let from = |thread: u32| {
            (u64::from(all) * u64::from(thread) / u64::from(self.args.threads)) as u32
        };
        from(thread)..from(thread + 1)
    }

    /// Time between two calls of one of `workers`.
    fn interval(&self, workers: u32) -> Option<Duration> {
        let rate = self.args.rate?;
        Some(Duration::from_secs_f64(f64::from(workers) / f64::from(rate)))
    }
}

/// What came out.
#[derive(Debug, Default)]
pub struct Tally {
    pub gets: Histogram,
    pub writes: Histogram,
    /// By reason, within the measured time.
    pub errors: BTreeMap<String, u64>,
    pub example: Option<String>,
}

impl Tally {
    pub fn merge(&mut self, other: Tally) {
        self.gets.merge(&other.gets);
        self.writes.merge(&other.writes);
        for (kind, count) in other.errors {
            *self.errors.entry(kind).or_default() += count;
        }
        self.example = self.example.take().or(other.example);
    }

    pub fn success(&mut self, read: bool, took: Duration) {
        self.successes(read, took, 1);
    }

    /// Several calls that took so long together.
    fn successes(&mut self, read: bool, took: Duration, calls: u64) {
        let histogram = if read { &mut self.gets } else { &mut self.writes };
        histogram.record_many(took.as_nanos() as u64 / calls, calls);
    }

    pub fn failure(&mut self, error: &error::Error) {
        let kind = error.reason().as_str_name().trim_start_matches("REASON_").to_owned();
        let kind = if kind == "UNSPECIFIED" { "CONNECTION".to_owned() } else { kind };
        *self.errors.entry(kind).or_default() += 1;
        self.example.get_or_insert_with(|| error.to_string());
    }
}

/// One thread's workers, until the phase is `Stop`.
pub async fn run(
    thread: u32,
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    options: Options,
) -> Result<Tally, Error> {
    let client = Client::connect(options.clone())?;
    let way = plan.args.workload.way();
    if plan.args.workload == Workload::Deregister {
        return notice::run(thread, plan, shared, options).await;
    }
    if plan.args.workload == Workload::Watch {
        return watch::run(thread, plan, shared, options).await;
    }
    if plan.args.workload == Workload::Saga {
        return saga::run(thread, plan, shared, options).await;
    }
    if way == Way::Local {
        return local(thread, &client, &plan, &shared).await;
    }
    let streamed = way == Way::Streamed;
    let all = if streamed { plan.args.streams } else { plan.args.clients };
    let share = plan.share(all, thread);
    let ids = !plan.args.without_ids
        && !matches!(
            plan.args.workload,
            Workload::Get
                | Workload::Discover
                | Workload::StreamGet
                | Workload::Heartbeat
                | Workload::StreamHeartbeat
        );
    let mut session: Option<Session> = None;
    let mut workers = JoinSet::new();
    for (nth, number) in share.enumerate() {
        let fresh = streamed || (nth as u32).is_multiple_of(CLIENTS_OF_SESSION);
        if ids && fresh {
            let options = SessionOptions { reopen: true, ..Default::default() };
            session = Some(client.session(options).await?);
        }
        let worker = Worker {
            plan: plan.clone(),
            shared: shared.clone(),
            client: client.clone(),
            session: session.clone(),
            random: u64::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
            changes: (u64::from(number) << 40) | 1 << 63,
            interval: plan.interval(all),
            tally: Tally::default(),
        };
        if streamed {
            workers.spawn(worker.stream())
        } else {
            workers.spawn(worker.unary())
        };
    }
    shared.ready.fetch_add(1, Ordering::AcqRel);
    gather(workers).await
}

/// What all workers have counted, when they have ended.
pub async fn gather(mut workers: JoinSet<Tally>) -> Result<Tally, Error> {
    let mut tally = Tally::default();
    while let Some(worker) = workers.join_next().await {
        match worker {
            Ok(part) => tally.merge(part),
            Err(error) => {
                return Err(Error::refused(crate::options::exit::ERROR, error.to_string()));
            }
        }
    }
    Ok(tally)
}

struct Worker {
    plan: Arc<Plan>,
    shared: Arc<Shared>,
    client: Client,
    session: Option<Session>,
    random: u64,
    changes: u64,
    interval: Option<Duration>,
    tally: Tally,
}

impl Worker {
    /// xorshift64*: which key comes next.
    fn draw(&mut self, below: u32) -> u32 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        let high = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
        ((high * u64::from(below)) >> 32) as u32
    }

    fn reads_next(&mut self) -> bool {
        match self.plan.args.workload {
            Workload::Get | Workload::Discover | Workload::StreamGet => true,
            Workload::Register
            | Workload::StreamRegister
            | Workload::StreamPublish
            | Workload::Count
            | Workload::StreamCount
            | Workload::CountLocal
            | Workload::Txn
            | Workload::Heartbeat
            | Workload::StreamHeartbeat
            | Workload::Watch
            | Workload::Deregister
            | Workload::Saga => false,
            Workload::ConfigCache => true,
            Workload::Mix => self.draw(100) < self.plan.args.reads,
        }
    }

    fn next_change(&mut self) -> u64 {
        self.changes += 1;
        self.changes
    }

    /// Takes one outcome into account, while that is measured.
    fn count(&mut self, read: bool, begun: Instant, now: Instant, error: Option<&error::Error>) {
        if self.shared.phase() != Phase::Measure {
            return;
        }
        match error {
            None => self.tally.success(read, now.saturating_duration_since(begun)),
            Some(error) => self.tally.failure(error),
        }
    }

    /// One call after the other.
    async fn unary(mut self) -> Tally {
        self.shared.wait_for_start().await;
        let keys = self.plan.args.keys;
        // Workers of a fixed rate begin one after the other, not all at once.
        let mut due = self.interval.map(|interval| {
            Instant::now() + interval.mul_f64(f64::from(self.draw(1_000)) / 1_000.0)
        });
        while self.shared.phase() != Phase::Stop {
            if let Some(due) = due {
                sleep_until(due).await;
            }
            let (read, key) = (self.reads_next(), self.draw(keys));
            let begun = due.unwrap_or_else(Instant::now);
            let change = self.next_change();
            let (client, plan, session) = (&self.client, &self.plan, self.session.as_ref());
            let error = match plan.args.workload {
                Workload::Get => client.get_instance(plan.get(key)).await.err(),
                Workload::Discover => client.list_instances(plan.discover(key)).await.err(),
                Workload::Heartbeat => client.keep_session_alive(plan.keep_alive(key)).await.err(),
                Workload::Count => client.add_counter(plan.count(key), session).await.err(),
                Workload::Txn => client.txn(plan.txn(key, change), session).await.err(),
                _ => client.register(plan.register(key, change), session).await.err(),
            };
            self.count(read, begun, Instant::now(), error.as_ref());
            self.shared.done.fetch_add(1, Ordering::Relaxed);
            due = due.zip(self.interval).map(|(due, interval)| due + interval);
        }
        self.tally
    }

    /// A window of calls on a stream of its own.
    async fn stream(mut self) -> Tally {
        let stream = self.client.stream();
        let mut pipeline = stream.pipeline();
        self.shared.wait_for_start().await;
        let keys = self.plan.args.keys;
        let window = self.plan.args.window as usize;
        let mut begun = vec![(Instant::now(), false); window];
        let mut idle: Vec<u64> = (0..window as u64).rev().collect();
        let mut due = self.interval.map(|_| Instant::now());
        let (mut batch, mut done) = (Vec::with_capacity(window), Vec::with_capacity(window));
        loop {
            let stopping = self.shared.phase() == Phase::Stop;
            let now = Instant::now();
            while !stopping && due.is_none_or(|due| due <= now) {
                let Some(tag) = idle.pop() else { break };
                let (read, key) = (self.reads_next(), self.draw(keys));
                let mut ticket = None;
                if let (false, Some(session)) = (read, &self.session) {
                    ticket = session.try_next_request_id();
                    if ticket.is_none() {
                        // Every id is given out: answers have to come first.
                        idle.push(tag);
                        break;
                    }
                }
                let call: Call = if read {
                    self.plan.get(key).into()
                } else {
                    let change = self.next_change();
                    let request_id = ticket.as_ref().map(|ticket| ticket.request_id());
                    match self.plan.args.workload {
                        Workload::StreamPublish => v1::PublishConfigRequest {
                            request_id,
                            ..self.plan.publish(key, change)
                        }
                        .into(),
                        Workload::StreamHeartbeat => self.plan.keep_alive(key).into(),
                        Workload::StreamCount => {
                            v1::AddCounterRequest { request_id, ..self.plan.count(key) }.into()
                        }
                        _ => v1::RegisterRequest { request_id, ..self.plan.register(key, change) }
                            .into(),
                    }
                };
                begun[tag as usize] = (due.unwrap_or(now), read);
                batch.push(Submission { tag, call, ticket });
                due = due.zip(self.interval).map(|(due, interval)| due + interval);
            }
            let nothing = batch.is_empty() && idle.len() == window;
            if stopping && nothing {
                return self.tally;
            }
            pipeline.submit(batch.drain(..)).await;
            if nothing {
                // Nothing is under way: wait for the time of the next call, or for a session.
                sleep_until(due.unwrap_or(now + Duration::from_millis(1))).await;
                continue;
            }
            // With a fixed rate and room in the window, the next call must not wait for an answer.
            match due.filter(|_| !idle.is_empty()) {
                Some(due) => {
                    let _ = timeout_at(due, pipeline.completed(&mut done)).await;
                }
                None => {
                    pipeline.completed(&mut done).await;
                }
            }
            let now = Instant::now();
            self.shared.done.fetch_add(done.len() as u64, Ordering::Relaxed);
            for (tag, outcome) in done.drain(..) {
                let (begun, read) = begun[tag as usize];
                self.count(read, begun, now, outcome.as_ref().err());
                idle.push(tag);
            }
        }
    }
}

/// What a thread calls within its client, [`LOCAL_CALLS`] times in a row.
enum Local {
    Count(Counters, Vec<Counter>),
    Read(ConfigCache, Vec<String>),
}

/// Calls within the client, one after the other.
async fn local(thread: u32, client: &Client, plan: &Plan, shared: &Shared) -> Result<Tally, Error> {
    let args = &plan.args;
    let target = match args.workload {
        Workload::ConfigCache => {
            let options = ConfigCacheOptions::new(format!("bench-{thread}"))
                .namespace(&plan.namespace)
                .prefix(&args.service, "");
            let cache = client.config_cache(options).await?;
            cache.synced().await?;
            Local::Read(cache, (0..args.keys).map(|key| plan.publish(key, 0).key).collect())
        }
        _ => {
            let counters = client.counters(CounterOptions::default()).await?;
            let counter = |key| {
                let v1::AddCounterRequest { namespace, name, labels, .. } = plan.count(key);
                counters.counter(&namespace, &name, labels)
            };
            let handles = (0..args.keys).map(counter).collect();
            Local::Count(counters, handles)
        }
    };
    shared.ready.fetch_add(1, Ordering::AcqRel);
    shared.wait_for_start().await;
    let (mut tally, mut added, mut key) = (Tally::default(), 0, thread as usize);
    while shared.phase() != Phase::Stop {
        let measured = shared.phase() == Phase::Measure;
        let begun = Instant::now();
        let mut next = |keys: usize| {
            key = (key + 1) % keys;
            key
        };
        let read = match &target {
            Local::Count(_, counters) => {
                (0..LOCAL_CALLS).for_each(|_| counters[next(counters.len())].increment());
                added += LOCAL_CALLS as u64;
                false
            }
            Local::Read(cache, keys) => {
                for _ in 0..LOCAL_CALLS {
                    let key = &keys[next(keys.len())];
                    if cache.get(&args.service, key).is_none() {
                        let missing = format!("{}/{key} is not in the cache", args.service);
                        return Err(Error::refused(crate::options::exit::ERROR, missing));
                    }
                }
                true
            }
        };
        if measured {
            tally.successes(read, begun.elapsed(), LOCAL_CALLS as u64);
        }
        shared.done.fetch_add(LOCAL_CALLS as u64, Ordering::Relaxed);
        // The client's own tasks run on this thread.
        tokio::task::yield_now().await;
    }
    match target {
        Local::Read(cache, _) => cache.close().await,
        Local::Count(counters, _) => {
            counters.flush().await;
            let counted = counters.tally().counted;
            if counted != added {
                let what = format!("{added} additions were made and {counted} acknowledged");
                return Err(Error::refused(crate::options::exit::ERROR, what));
            }
            counters.close(LOCAL_CLOSE).await;
        }
    }
    Ok(tally)
}

/// Makes once what a workload finds there; nothing for those that make it themselves.
pub async fn fill(client: &Client, plan: &Plan, progress: impl FnMut(u32)) -> Result<(), Error> {
    if matches!(plan.args.workload, Workload::Heartbeat | Workload::StreamHeartbeat) {
        let sessions = open_sessions(client, plan, progress).await?;
        return plan
            .sessions
            .set(sessions)
            .map_err(|_| crate::error::Error::internal("filled twice").into());
    }
    match plan.filling() {
        Some(call) => sweep(client, plan, progress, call).await,
        None => Ok(()),
    }
}

/// A session for each key.
async fn open_sessions(
    client: &Client,
    plan: &Plan,
    mut progress: impl FnMut(u32),
) -> Result<Vec<u64>, Error> {
    let opened = (0..plan.args.keys).map(|_| {
        let (ttl_ms, name) = (SESSION_TTL_MS, "quorate bench".to_owned());
        client.open_session(v1::OpenSessionRequest { ttl_ms, client: name })
    });
    let mut opened = futures::stream::iter(opened).buffer_unordered(FILL_WINDOW);
    let (mut sessions, mut shown) = (Vec::new(), Instant::now());
    while let Some(answer) = opened.next().await {
        sessions.push(answer?.session);
        if shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            progress(sessions.len() as u32);
        }
    }
    Ok(sessions)
}

/// Removes what was made. Counters and items one by one: no stream carries these calls.
pub async fn clean(
    client: &Client,
    plan: &Plan,
    mut progress: impl FnMut(u32),
) -> Result<(), Error> {
    let (counts, publishes) = match plan.args.workload {
        // The participants are gone, the sagas go by themselves.
        Workload::Saga => return Ok(()),
        Workload::Heartbeat | Workload::StreamHeartbeat => {
            let sessions = plan.sessions.get().into_iter().flatten();
            let closed = sessions.map(|&session| client.close_session(session));
            let mut closed = futures::stream::iter(closed).buffer_unordered(FILL_WINDOW);
            while let Some(answer) = closed.next().await {
                answer?;
            }
            return Ok(());
        }
        Workload::Register
        | Workload::Get
        | Workload::Discover
        | Workload::StreamRegister
        | Workload::StreamGet
        | Workload::Mix
        | Workload::Watch
        | Workload::Deregister => {
            return sweep(client, plan, progress, |plan, key| plan.deregister(key).into()).await;
        }
        Workload::Count | Workload::StreamCount | Workload::CountLocal => (true, false),
        Workload::StreamPublish | Workload::ConfigCache => (false, true),
        Workload::Txn => (true, true),
    };
    let mut shown = Instant::now();
    for key in 0..plan.args.keys {
        if counts {
            let v1::AddCounterRequest { namespace, name, labels, .. } = plan.count(key);
            let request = v1::DeleteCounterRequest { namespace, name, labels, request_id: None };
            client.delete_counter(request, None).await?;
        }
        if publishes {
            let v1::PublishConfigRequest { namespace, group, key, .. } = plan.publish(key, 0);
            let purge = true;
            let request =
                v1::DeleteConfigRequest { namespace, group, key, purge, ..Default::default() };
            client.delete_config(request, None).await?;
        }
        if shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            progress(key);
        }
    }
    Ok(())
}

/// One call for each key. The calls have the same effect however often they are made, so one that
/// may have taken place is simply made again.
async fn sweep(
    client: &Client,
    plan: &Plan,
    mut progress: impl FnMut(u32),
    call: impl Fn(&Plan, u32) -> Call,
) -> Result<(), Error> {
    let stream = client.stream();
    let mut pipeline: Pipeline = stream.pipeline();
    let mut next = 0u32;
    let mut again: Vec<u32> = Vec::new();
    let mut repeated = 0u32;
    let mut done = Vec::new();
    let mut shown = Instant::now();
    loop {
        let room = FILL_WINDOW.saturating_sub(pipeline.in_flight());
        let mut batch = Vec::with_capacity(room);
        while batch.len() < room {
            let key = match again.pop() {
                Some(key) => key,
                None if next < plan.args.keys => {
                    next += 1;
                    next - 1
                }
                None => break,
            };
            batch.push(Submission { tag: key.into(), call: call(plan, key), ticket: None });
        }
        pipeline.submit(batch).await;
        if pipeline.completed(&mut done).await == 0 {
            return Ok(());
        }
        for (key, outcome) in done.drain(..) {
            if let Err(error) = outcome {
                repeated += 1;
                if !error.retryable() || repeated > plan.args.keys {
                    return Err(error.into());
                }
                again.push(key as u32);
            }
        }
        if shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            progress(next);
        }
    }
}
