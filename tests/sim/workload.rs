//! The clients of a run: writers with and without sessions, readers, watchers. Each draws from its own
//! random numbers, asks random nodes and tells the oracle what it was told.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate::error::Error;
use quorate::node::Node;
use quorate::proto::v1::Consistency;
use quorate::runtime;
use quorate::state::{
    Admin, Command, Endpoint, Health, InstanceName, InstancePatch, Key, Op, Outcome, Pairs, Record,
    Refusal, Registration, Reply, RequestId, Saga, SagaName, SagaOrder, ServiceSettings, State,
};
use quorate::watch::{Kind, Range, Selector};
use rand::RngExt as _;
use rand::rngs::StdRng;
use tokio::sync::mpsc;

use crate::cluster::World;
use crate::network::CLIENTS;
use crate::oracle::history::TAG;
use crate::oracle::watches::View;
use crate::oracle::writes::{Write, instance_key};
use crate::plant::Plant;
use crate::trace::trace;

mod center;
mod sagas;

const NAMESPACE: &str = "default";
const SERVICES: [&str; 3] = ["s0", "s1", "s2"];
const INSTANCES: [&str; 3] = ["i0", "i1", "i2"];
/// How long a client goes on with one write.
const PATIENCE: Duration = Duration::from_secs(8);
/// Writes of one session under way at once.
const LANES: usize = 3;

/// Lets the writers of a session begin their tasks, and all others. The handles end when the world is
/// no longer busy.
pub fn spawn(world: &Arc<World>) -> Vec<runtime::JoinHandle<()>> {
    let mut tasks = Vec::new();
    let mut next = CLIENTS;
    let mut number = || {
        next += 1;
        next
    };
    for _ in 0..3 * world.load {
        let client = number();
        let session = Arc::new(Session { id: client, inner: Mutex::default() });
        for lane in 0..LANES {
            let random = world.fork_random();
            let writer = Writer::new(world.clone(), client, lane, random);
            tasks.push(world.harness.spawn(writer.run_in_session(session.clone())));
        }
        tasks.push(world.harness.spawn(keep_alive(world.clone(), session, world.fork_random())));
    }
    for _ in 0..2 * world.load {
        let (client, random) = (number(), world.fork_random());
        let writer = Writer::new(world.clone(), client, 0, random);
        tasks.push(world.harness.spawn(writer.run_alone()));
    }
    for _ in 0..2 * world.load {
        let (client, random) = (number(), world.fork_random());
        let writer = Writer::new(world.clone(), client, 0, random);
        tasks.push(world.harness.spawn(writer.run_sagas()));
    }
    for _ in 0..3 * world.load {
        tasks.push(world.harness.spawn(read(world.clone(), number(), world.fork_random())));
    }
    for watcher in 0..3 {
        let service = |at: usize| Selector::service(NAMESPACE, SERVICES[at % SERVICES.len()]);
        let range = match watcher {
            0 => Selector::services(NAMESPACE).into(),
            1 => service(1).into(),
            at => Range::new(vec![service(at), service(at + 1)]).expect("two selectors"),
        };
        let (client, random) = (number(), world.fork_random());
        tasks.push(world.harness.spawn(watch(world.clone(), client, range, random)));
    }
    for range in center::ranges() {
        let (client, random) = (number(), world.fork_random());
        tasks.push(world.harness.spawn(watch(world.clone(), client, range, random)));
    }
    tasks
}

fn any<T: Copy>(random: &mut StdRng, of: &[T]) -> T {
    of[random.random_range(0..of.len())]
}

fn millis(random: &mut StdRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(random.random_range(range))
}

pub fn shared_name(random: &mut StdRng) -> InstanceName {
    InstanceName {
        namespace: NAMESPACE.to_owned(),
        service: any(random, &SERVICES).to_owned(),
        id: any(random, &INSTANCES).to_owned(),
    }
}

// ---- sessions ----

/// A client's session and the numbers of its writes.
#[derive(Debug)]
struct Session {
    /// The client's number.
    id: u64,
    inner: Mutex<SessionState>,
}

#[derive(Debug, Default)]
struct SessionState {
    open: Option<OpenSession>,
    next: u64,
    under_way: BTreeSet<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OpenSession {
    id: u64,
    ttl: Duration,
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, SessionState> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Option<OpenSession> {
        self.lock().open
    }

    /// The id of the next write; None without a session.
    fn begin(&self) -> Option<RequestId> {
        let mut state = self.lock();
        let session = state.open?.id;
        state.next += 1;
        let sequence = state.next;
        state.under_way.insert(sequence);
        let lowest_unacknowledged = *state.under_way.first().unwrap_or(&sequence);
        Some(RequestId { session, sequence, lowest_unacknowledged })
    }

    fn finish(&self, request: &RequestId) {
        let mut state = self.lock();
        if state.open.is_some_and(|open| open.id == request.session) {
            state.under_way.remove(&request.sequence);
        }
    }

    fn set(&self, open: Option<OpenSession>) {
        *self.lock() = SessionState { open, ..SessionState::default() };
    }

    /// Forgets a session that is no more, unless another one has taken its place.
    fn lost(&self, id: u64) {
        let mut state = self.lock();
        if state.open.is_some_and(|open| open.id == id) {
            *state = SessionState::default();
        }
    }
}

async fn keep_alive(world: Arc<World>, session: Arc<Session>, mut random: StdRng) {
    while world.is_busy() {
        let Some(open) = session.current() else {
            runtime::sleep(Duration::from_millis(50)).await;
            continue;
        };
        runtime::sleep(open.ttl / 5).await;
        let node = any(&mut random, &world.nodes);
        let sent = world.now();
        let timeout = Duration::from_millis(600);
        let answer = world
            .ask(session.id, node, timeout, move |node| async move {
                node.keep_alive(open.id, timeout).await
            })
            .await;
        trace!(world, "{} keeps {} alive at {node}: {answer:?}", session.id, open.id);
        match answer {
            Ok(_) => world.oracle().session_renewed(open.id, sent),
            Err(Error::SessionExpired { .. }) => {
                let now = world.now();
                world.oracle().session_refused(open.id, now);
                session.lost(open.id);
            }
            Err(_) => {}
        }
    }
}

// ---- writers ----

struct Writer {
    world: Arc<World>,
    client: u64,
    lane: usize,
    random: StdRng,
    count: u64,
    /// The node that answered last.
    home: Option<u64>,
    place: Option<center::Place>,
    /// Of the names under which it stands in line.
    generation: u64,
}

impl Writer {
    fn new(world: Arc<World>, client: u64, lane: usize, random: StdRng) -> Writer {
        let (count, home, place, generation) = (0, None, None, 0);
        Writer { world, client, lane, random, count, home, place, generation }
    }

    /// The pause between two writes, in ms. Now and then all rush: entries follow each other closely then.
    async fn pause(&mut self, ms: std::ops::Range<u64>) {
        const EVERY_MS: u128 = 2_000;
        const RUSH_MS: u128 = 300;
        let rush = self.world.now().as_millis() % EVERY_MS < RUSH_MS;
        let ms = if rush { 0..3 } else { ms };
        runtime::sleep(millis(&mut self.random, ms)).await;
    }

    async fn run_in_session(mut self, session: Arc<Session>) {
        while self.world.is_busy() {
            self.pause(5..80).await;
            let Some(open) = session.current() else {
                if self.lane == 0 {
                    self.open(&session).await;
                }
                continue;
            };
            if self.lane == 0 && self.random.random_range(0..150) == 0 {
                // The client dies, or says good-bye.
                if self.random.random_range(0..2) == 0 {
                    session.lost(open.id);
                } else if let Some(request) = session.begin() {
                    self.count += 1;
                    self.world.oracle().session_closing(open.id);
                    let op = Op::CloseSession { session: open.id };
                    self.write(op, Some(request)).await;
                    session.lost(open.id);
                }
                continue;
            }
            if self.wants_its_turn() {
                self.turn_at_lock(&session, open).await;
                continue;
            }
            let op = self.op(Some(open.id));
            let Some(request) = session.begin() else { continue };
            self.write_in(&session, op, request).await;
        }
        if self.lane == 0 {
            // Some leave their session to its end.
            if let Some(open) = session.current()
                && self.random.random_range(0..2) == 0
                && let Some(request) = session.begin()
            {
                self.count += 1;
                self.world.oracle().session_closing(open.id);
                self.write(Op::CloseSession { session: open.id }, Some(request)).await;
            }
            session.set(None);
        }
    }

    /// One write of a session, and what its end says of the session.
    async fn write_in(&mut self, session: &Session, op: Op, request: RequestId) -> Option<Outcome> {
        let outcome = self.write(op, Some(request)).await;
        session.finish(&request);
        if let Some(Outcome { result: Err(Refusal::SessionExpired { session: id }), .. }) = &outcome
        {
            let now = self.world.now();
            self.world.oracle().session_refused(*id, now);
            session.lost(*id);
        }
        outcome
    }

    async fn run_alone(mut self) {
        while self.world.is_busy() {
            self.pause(10..120).await;
            let op = self.op(None);
            self.write(op, None).await;
        }
    }

    async fn open(&mut self, session: &Session) {
        self.count += 1;
        let ttl_ms = self.random.random_range(1_000..4_000);
        let sent = self.world.now();
        let op = Op::OpenSession { ttl_ms, client: format!("client {}", self.client) };
        let Some(outcome) = self.write(op, None).await else { return };
        if let Ok(Reply::SessionOpened { session: id, ttl_ms }) = outcome.result {
            let ttl = Duration::from_millis(ttl_ms);
            self.world.oracle().session_opened(id, ttl, sent);
            session.set(Some(OpenSession { id, ttl }));
        }
    }

    /// Marks the write that was counted last; each has its own.
    fn mark(&self) -> String {
        format!("{}.{}.{}", self.client, self.lane, self.count)
    }

    /// What the next write does.
    fn op(&mut self, session: Option<u64>) -> Op {
        self.count += 1;
        if self.random.random_range(0..3) == 0 {
            return self.center_op();
        }
        let mark: Pairs = [(TAG, self.mark())].into_iter().collect();
        let random = &mut self.random;
        let name = shared_name(random);
        match random.random_range(0..100) {
            0..40 => Op::Register(Box::new(registration(name, mark, None))),
            40..55 => {
                let own = format!("c{}-{}", self.client, random.random_range(0..3));
                let name = InstanceName { id: own, ..name };
                Op::Register(Box::new(registration(name, mark, session)))
            }
            55..75 => {
                let expected_mod_revision = self.expected(&name);
                Op::UpdateInstance(Box::new(InstancePatch {
                    name,
                    weight: None,
                    admin: None,
                    health: None,
                    reason: String::new(),
                    metadata: Some(mark),
                    expected_mod_revision,
                }))
            }
            75..85 => {
                let expected_mod_revision = self.expected(&name);
                Op::Deregister { name, expected_mod_revision }
            }
            85..97 => Op::PutService(Box::new(ServiceSettings {
                namespace: name.namespace,
                name: name.service,
                protect_threshold_percent: random.random_range(0..=100),
                deregister_after_ms: random.random_range(1_000..3_000),
                policy: "round_robin".to_owned(),
                policy_parameters: Pairs::default(),
                metadata: mark,
                expected_mod_revision: None,
                health_check: None,
            })),
            _ => Op::DeleteService { namespace: name.namespace, name: name.service },
        }
    }

    /// Sometimes a write compares: often with what is there, sometimes with what is not.
    fn expected(&mut self, name: &InstanceName) -> Option<u64> {
        if self.random.random_range(0..2) == 0 {
            return None;
        }
        let key = instance_key(name);
        let oracle = self.world.oracle();
        let revision = oracle.history.revision;
        let behind = u64::from(self.random.random_range(0..4u32) == 0);
        match oracle.history.at(&key, revision.saturating_sub(behind)) {
            Some(Record::Instance(instance)) => Some(instance.mod_revision),
            Some(_) | None => Some(0),
        }
    }

    /// One write, again and again until its outcome is known or patience is at its end.
    async fn write(&mut self, op: Op, request: Option<RequestId>) -> Option<Outcome> {
        let world = self.world.clone();
        let floor = world.oracle().floor;
        let mut write = Write { tag: self.mark(), op, request, floor, maybe: false };
        let mut command = Command { request, op: self.spoilt(&write.op) };
        if let Err(refusal) = command.check() {
            world.violated(format!("{write:?} is refused: {refusal:?}"));
            return None;
        }
        let give_up = runtime::Instant::now() + PATIENCE;
        for attempt in 0u64.. {
            let node = self.home.unwrap_or_else(|| any(&mut self.random, &world.nodes));
            let timeout = millis(&mut self.random, 200..2_500);
            if world.plant == Plant::RetryForgotten
                && let Some(request) = &mut command.request
                && attempt > 0
            {
                // Far from the numbers that the client uses itself.
                request.sequence += 1_000_000 * attempt;
            }
            let sent = command.clone();
            trace!(world, "{}.{} asks {node}: {}", self.client, self.lane, write.tag);
            let answer = world
                .ask(
                    self.client,
                    node,
                    timeout + Duration::from_millis(50),
                    move |node| async move { node.propose(&sent, timeout).await },
                )
                .await;
            match answer {
                Ok(outcome) => {
                    trace!(
                        world,
                        "{}.{} hears of {}: {} {}",
                        self.client,
                        self.lane,
                        write.tag,
                        outcome.revision,
                        outcome.duplicate
                    );
                    self.home = Some(node);
                    world.oracle().acknowledged(&write, &outcome);
                    return Some(outcome);
                }
                Err(error) => {
                    trace!(
                        world,
                        "{}.{} fails with {}: {error:?}", self.client, self.lane, write.tag
                    );
                    self.home = None;
                    write.maybe |= !error.definite();
                    if let Error::Internal { .. } | Error::Invalid { .. } = &error {
                        world.violated(format!("{write:?} failed: {error:?}"));
                    }
                    let repeatable = error.definite() || self.is_repeatable(&write);
                    if !repeatable || runtime::Instant::now() >= give_up {
                        break;
                    }
                }
            }
            runtime::sleep(millis(&mut self.random, 5..100)).await;
        }
        world.oracle().gave_up(&write);
        None
    }
}

/// An operator lets a suspended transaction go on.
pub async fn resume(world: &Arc<World>, saga: &Saga) {
    let name = SagaName { namespace: saga.namespace.to_string(), gid: saga.gid.to_string() };
    let command = Command { request: None, op: Op::OrderSaga { name, order: SagaOrder::Resume } };
    let (node, timeout) = (world.leader().unwrap_or(1), Duration::from_secs(1));
    let order = move |node: Node| async move { node.propose(&command, timeout).await };
    let answer = world.ask(CLIENTS, node, timeout, order).await;
    trace!(world, "an operator resumes {}: {answer:?}", saga.gid);
}

fn registration(name: InstanceName, metadata: Pairs, session: Option<u64>) -> Registration {
    Registration {
        name,
        endpoints: vec![Endpoint { name: "http".into(), host: "10.0.0.1".into(), port: 80 }].into(),
        weight: 1,
        zone: String::new(),
        metadata,
        health: Health::Passing,
        admin: Admin::Enabled,
        reason: String::new(),
        hash_key: String::new(),
        session,
    }
}

// ---- readers ----

async fn read(world: Arc<World>, client: u64, mut random: StdRng) {
    while world.is_busy() {
        runtime::sleep(millis(&mut random, 5..60)).await;
        let key = match random.random_range(0..3) {
            0 => center::any_key(&mut random),
            _ => instance_key(&shared_name(&mut random)),
        };
        let node = any(&mut random, &world.nodes);
        let stale = random.random_range(0..10) == 0;
        let consistency = if stale { Consistency::Stale } else { Consistency::Linearizable };
        read_once(&world, client, node, consistency, key, Duration::from_millis(1_500)).await;
    }
}

/// One read of one instance, counter or item; true when it was answered.
pub async fn read_once(
    world: &Arc<World>,
    client: u64,
    node: u64,
    consistency: Consistency,
    key: Key,
    timeout: Duration,
) -> bool {
    let floor = (consistency != Consistency::Stale).then(|| world.oracle().floor);
    let sought = key.clone();
    let answer = world
        .ask(client, node, timeout, move |node| async move {
            node.barrier(consistency, timeout).await?;
            Ok(node.read(|state| (state.revision(), look(state, &sought))))
        })
        .await;
    match answer {
        Ok((revision, found)) => {
            trace!(world, "{client} reads {revision} at {node}");
            world.oracle().read(floor, revision, &key, found.as_ref());
            true
        }
        Err(error) => {
            trace!(world, "{client} does not read at {node}: {error:?}");
            false
        }
    }
}

fn look(state: &State, key: &Key) -> Option<Record> {
    match key {
        Key::Instance { namespace, service, id } => {
            state.instance(namespace, service, id).map(Record::Instance)
        }
        Key::Counter { namespace, name, labels } => {
            state.counter(namespace, name, labels).cloned().map(Record::Counter)
        }
        Key::Config { namespace, group, key } => {
            state.config_item(namespace, group, key).cloned().map(Record::Config)
        }
        other => panic!("nobody reads {other:?}"),
    }
}

// ---- watchers ----

async fn watch(world: Arc<World>, client: u64, range: Range, mut random: StdRng) {
    let mut view = View::new(range);
    // Watchers go on after the writers, until they have seen it all or time is up.
    let mut late = 0;
    while late < 30 {
        let node = any(&mut random, &world.nodes);
        watch_at(&world, client, node, &mut view, &mut random).await;
        view.disconnected();
        late += u64::from(!world.is_busy());
        runtime::sleep(millis(&mut random, 10..300)).await;
        if !world.is_busy() && view.complete >= world.oracle().history.revision {
            break;
        }
    }
    world.oracle().watched_all(&view);
}

/// Follows the range at one node until something ends it.
async fn watch_at(
    world: &Arc<World>,
    client: u64,
    node: u64,
    view: &mut View,
    random: &mut StdRng,
) {
    let range = view.range.clone();
    let timeout = Duration::from_secs(1);
    let skipped = u64::from(world.plant == Plant::WatchSkips && view.complete > 0);
    let after = view.complete + skipped;
    let (tx, mut rx) = mpsc::channel(4);
    let answer = world
        .ask(client, node, timeout, move |node| async move {
            node.barrier(Consistency::Linearizable, timeout).await?;
            let mut subscription = node.watch(range, after)?;
            drop(node);
            runtime::spawn(async move {
                while let Some(next) = subscription.next().await {
                    if tx.send(next).await.is_err() {
                        break;
                    }
                }
            });
            Ok(())
        })
        .await;
    trace!(world, "{client} watches at {node} after {after}: {answer:?}");
    if answer.is_err() {
        return;
    }
    let slow = random.random_range(0..4) == 0;
    let mut left = random.random_range(20..400u64);
    loop {
        let next = match runtime::timeout(Duration::from_millis(400), rx.recv()).await {
            Ok(Some(next)) => next,
            Ok(None) => return,
            Err(_) if world.is_busy() => continue,
            // Nothing more comes: another look at whether it has seen all.
            Err(_) => return,
        };
        if slow && world.is_busy() {
            runtime::sleep(millis(random, 0..150)).await;
        }
        if !world.reaches_client(node, client).await {
            return;
        }
        match next {
            Ok(message) => {
                let (revision, kind) = (message.revision, message.kind);
                trace!(world, "{client} sees {revision} {kind:?}");
                let mut events = &message.events[..];
                if world.plant == Plant::WatchSplits && events.len() > 1 && kind == Kind::Changes {
                    let (first, rest) = events.split_at(1);
                    world.oracle().watched(view, revision, kind, first);
                    events = rest;
                }
                world.oracle().watched(view, revision, kind, events);
            }
            Err(error) => {
                trace!(world, "{client} watches no more: {error:?}");
                if let Error::WatchLagged { resume_revision } = error {
                    let mut oracle = world.oracle();
                    oracle.counts.watch_lags += 1;
                    if resume_revision != view.complete {
                        oracle.violated(format!(
                            "a watcher that saw {} is told to resume after {resume_revision}",
                            view.complete
                        ));
                    }
                }
                return;
            }
        }
        left -= 1;
        if left == 0 {
            return;
        }
    }
}
